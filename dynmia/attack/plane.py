"""The FPR-TPR plane: how often each sample is flagged by the models that did and did not train on it."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import xarray as xr
from scipy.stats import beta, norm

from ..errors import UserError, bounded, choose
from ..store.run import boolean, checked_run
from .others import LOG_ODDS, attack_scores

LEVELS = (0.001, 0.01, 0.1)  # pooled false-positive rates at which the attack's true-positive rate is reported


def vulnerability_plane(
    run: xr.Dataset,
    rule: str = "fpr@0.01",
    *,
    attack: str = "online",
    centre: str = "mean",
    variance: str = "auto",
    keep: np.ndarray | None = None,
    roc: bool = True,
) -> xr.Dataset:
    """Run an attack (leave-one-out LiRA) at every checkpoint of ``run`` and place every sample on the plane.

    Args:
        run: a run (:mod:`dynmia.store.run`).
        rule: ``fpr@a``, one threshold a checkpoint so that the false-positive rate pooled over all models and samples
            is a; or ``bayes``, score > 0 (attacks ``online`` and ``shokri``, whose score is a log-odds).
        attack, centre, variance: see :func:`dynmia.attack.others.attack_scores`.
        keep: another inclusion mask (N, n), of True and False or 1 and 0, for permutation nulls; default the run's own.
        roc: with hits and places; without them the plane takes half the time.

    Returns:
        A data set with dims epoch, sample and level. Its variables are tp, fp (counts), n_in, n_out, tpr, fpr,
        advantage = tpr - fpr; per epoch threshold, test_accuracy, train_accuracy; hits (level, epoch, sample), the
        in-models that flag the sample at the pooled FPR ``level``; place_in, place_out (epoch, sample), the sums over
        the sample's in-models (out-models) of the share of all out-scores below (in-scores above) theirs, from which
        the AUC follows.

    Raises:
        UserError: an unknown rule or option, or a run that cannot be scored.
    """
    return vulnerability_planes(run, [rule], attack=attack, centre=centre, variance=variance, keep=keep, roc=roc)[rule]


def vulnerability_planes(
    run: xr.Dataset,
    rules: Iterable[str],
    *,
    attack: str = "online",
    centre: str = "mean",
    variance: str = "auto",
    keep: np.ndarray | None = None,
    roc: bool = True,
) -> dict[str, xr.Dataset]:
    """The planes of several decision rules from one scoring, by rule; see :func:`vulnerability_plane`."""
    levels = {rule: parse_rule(rule) for rule in rules}
    if None in levels.values() and attack not in LOG_ODDS:
        raise UserError(f"rule 'bayes' needs attack {' or '.join(map(repr, LOG_ODDS))}, not {attack!r}: use fpr@0.01.")
    run = checked_run(run)
    mask = run.keep.values if keep is None else boolean(keep)
    if mask.shape != run.keep.shape:
        raise UserError(f"keep has shape {mask.shape}: the run has (models, samples) {run.keep.shape}.")
    epochs, (models, samples) = run.sizes["epoch"], mask.shape
    counts = {rule: {name: np.zeros((epochs, samples), np.int32) for name in ("tp", "fp")} for rule in levels}
    places = {name: np.zeros((epochs, samples)) for name in ("place_in", "place_out")} if roc else {}
    hits = np.zeros((len(LEVELS), epochs, samples), np.int32)
    thresholds = {rule: np.zeros(epochs) for rule in levels}
    for t in range(epochs):  # one checkpoint at a time bounds the memory
        scores = attack_scores(
            run.phi.values[t], mask, run.label.values, attack=attack, centre=centre, variance=variance
        )
        if roc:
            outside, places["place_in"][t], places["place_out"][t] = _placements(scores, mask)
        else:  # the thresholds stand where they would after sorting
            outside = scores[~mask]
            outside.partition([_position(outside, level) for level in levels.values() if level is not None] or [0])
        for rule, level in levels.items():
            thresholds[rule][t] = 0.0 if level is None else _threshold(outside, level)
            flagged = scores > thresholds[rule][t]
            counts[rule]["tp"][t], counts[rule]["fp"][t] = (flagged & mask).sum(0), (flagged & ~mask).sum(0)
        if not roc:
            continue
        for number, a in enumerate(LEVELS):
            hits[number, t] = ((scores > _threshold(outside, a)) & mask).sum(0)
    n_in = mask.sum(0)
    n_out = models - n_in
    dims = ("epoch", "sample")
    planes = {}
    for rule in levels:
        tpr, fpr = counts[rule]["tp"] / n_in, counts[rule]["fp"] / n_out
        planes[rule] = xr.Dataset(  # of bare arrays, in one go: labels that are compared cost more than the scoring
            {name: (dims, value) for name, value in (counts[rule] | places).items()}
            | ({"hits": (("level", *dims), hits)} if roc else {})
            | {
                "n_in": ("sample", n_in), "n_out": ("sample", n_out),
                "threshold": ("epoch", thresholds[rule]),
                **{name: run[name].variable for name in ("train_accuracy", "test_accuracy", "label")},
                "tpr": (dims, tpr), "fpr": (dims, fpr), "advantage": (dims, tpr - fpr),
            },
            coords={"level": list(LEVELS)} | {name: run[name].variable for name in run.sizes if name in run.coords},
            attrs=run.attrs | {"rule": rule, "attack": attack, "centre": centre, "variance": variance},
        )  # fmt: skip
    return planes


def parse_rule(rule: str) -> float | None:
    """The level a of ``fpr@a``; None for ``bayes``."""
    if rule == "bayes":
        return None
    match = re.fullmatch(r"fpr@(\d*\.?\d+(?:e-?\d+)?)", str(rule))
    level = float(match[1]) if match else 0.0
    if not 0 < level < 1:
        raise UserError(f"unknown decision rule {rule!r}: use bayes, or fpr@a with a between 0 and 1, like fpr@0.01.")
    return level


def rate_interval(count: xr.DataArray, trials: xr.DataArray, level: float = 0.95, method: str = "wilson") -> xr.Dataset:
    """Interval of a sample's rate from its count, as a data set with ``low`` and ``high``.

    Args:
        count, trials: flagged models and all models, of any broadcastable shape.
        level: confidence.
        method: ``wilson`` (score interval, Wilson 1927) or ``jeffreys`` (Beta(1/2, 1/2) prior; Brown et al. 2001).
    """
    choose(method, ["wilson", "jeffreys"], "interval")
    bounded("level", level, 0, 1, whole=False)
    alpha = 1 - level
    if method == "jeffreys":
        low = xr.apply_ufunc(beta.ppf, alpha / 2, count + 0.5, trials - count + 0.5).where(count > 0, 0.0)
        high = xr.apply_ufunc(beta.ppf, 1 - alpha / 2, count + 0.5, trials - count + 0.5).where(count < trials, 1.0)
    else:
        z = norm.ppf(1 - alpha / 2)
        middle = (count + z**2 / 2) / (trials + z**2)
        half = z / (trials + z**2) * np.sqrt(count * (trials - count) / trials + z**2 / 4)
        low, high = (middle - half).clip(0, 1), (middle + half).clip(0, 1)
    return xr.Dataset({"low": low, "high": high})


def _threshold(outside: np.ndarray, level: float) -> float:
    """The score that a share of at most ``level`` of the sorted out-scores exceeds (floor(level M), no ties)."""
    return float(outside[_position(outside, level)])


def _position(outside: np.ndarray, level: float) -> int:
    return len(outside) - 1 - int(level * len(outside) + 1e-9)


def _placements(scores: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sorted out-scores; for each sample, summed over its in-models, the share of all out-scores below theirs; and
    over its out-models the share of all in-scores above. Ties count one half (Mann-Whitney). One sort serves all.
    """
    order = np.argsort(scores, None)
    ranked, member = scores.ravel()[order], mask.ravel()[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # of groups of equal scores
    size, below = np.diff(starts, append=len(ranked)), {}
    for side in (False, True):
        here = np.add.reduceat((member == side).astype(np.int64), starts)
        below[side] = np.repeat((2 * np.cumsum(here) - here) / (2 * here.sum()), size)
    placed = np.empty(mask.shape)
    placed.ravel()[order] = np.where(member, below[False], 1 - below[True])
    inside, outside = (np.einsum("ij,ij->j", placed, (mask == side).astype(float)) for side in (True, False))
    return ranked[~member], inside, outside

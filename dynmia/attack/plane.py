"""The FPR-TPR plane: how often each sample is flagged by the models that did and did not train on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import xarray as xr
from scipy.stats import beta, norm

from ..errors import UserError, bounded, choose
from ..store.run import boolean, checked_run
from .others import attack_scores
from .scoring import STUDY, Scoring, level_of

CUTS = (1 / 3, 2 / 3)  # of a rate, between low, middle and high
LEVELS = (0.001, 0.01, 0.1)  # pooled false-positive rates at which the attack's true-positive rate is reported


def vulnerability_plane(
    run: xr.Dataset, scoring: Scoring | str = "fpr@0.01", *, keep: np.ndarray | None = None, roc: bool = True
) -> xr.Dataset:
    """Run an attack (leave-one-out LiRA) at every checkpoint of ``run`` and place every sample on the plane.

    Args:
        run: a run (:mod:`dynmia.store.run`).
        scoring: a :class:`dynmia.attack.scoring.Scoring`, or the name of a reading of the study's own attack.
        keep: another inclusion mask (N, n), of True and False or 1 and 0, for permutation nulls; default the run's own.
        roc: with hits and places; without them the plane takes half the time.

    Returns:
        A data set with dims epoch, sample and level. Its variables are tp, fp (counts), n_in, n_out, tpr, fpr,
        advantage = tpr - fpr; state, of :func:`state_of` with the cuts in its attribute; per epoch threshold,
        test_accuracy, train_accuracy; hits (level, epoch, sample), the in-models that flag the sample at the pooled FPR
        ``level``; place_in, place_out (epoch, sample), the sums over the sample's in-models (out-models) of the share
        of all out-scores below (in-scores above) theirs, from which the AUC follows.

    Raises:
        UserError: an unknown name, or a run that cannot be scored.
    """
    scoring = Scoring.of(scoring)
    return vulnerability_planes(run, [scoring.reading], scoring, keep=keep, roc=roc)[scoring.reading]


def vulnerability_planes(
    run: xr.Dataset,
    readings: Iterable[str],
    scoring: Scoring = STUDY,
    *,
    keep: np.ndarray | None = None,
    roc: bool = True,
) -> dict[str, xr.Dataset]:
    """The planes of several readings of one scoring, by reading; see :func:`vulnerability_plane`."""
    levels = {reading: level_of(replace(scoring, reading=reading).reading) for reading in readings}
    run = checked_run(run)
    mask = run.keep.values if keep is None else boolean(keep)
    if mask.shape != run.keep.shape:
        raise UserError(f"keep has shape {mask.shape}: the run has (models, samples) {run.keep.shape}.")
    epochs, (models, samples) = run.sizes["epoch"], mask.shape
    dims, n_in = ("epoch", "sample"), mask.sum(0)
    n_out = models - n_in
    counts = np.zeros((len(levels), 2, epochs, samples), np.int32)
    thresholds = np.zeros((len(levels), epochs))
    places = {name: np.zeros((epochs, samples)) for name in ("place_in", "place_out")} if roc else {}
    hits = np.zeros((len(LEVELS), epochs, samples), np.int32)
    for t in range(epochs):  # one checkpoint at a time bounds the memory
        scores = attack_scores(run.phi.values[t], mask, run.label.values, scoring)
        if roc:
            outside, places["place_in"][t], places["place_out"][t] = _placements(scores, mask)
            for number, a in enumerate(LEVELS):
                hits[number, t] = ((scores > outside[_position(outside, a)]) & mask).sum(0)
        else:  # the thresholds stand where they would after sorting
            outside = scores[~mask]
            outside.partition([_position(outside, level) for level in levels.values() if level is not None] or [0])
        for number, level in enumerate(levels.values()):
            thresholds[number, t] = 0.0 if level is None else outside[_position(outside, level)]
            flagged = scores > thresholds[number, t]
            counts[number, :, t] = (flagged & mask).sum(0), (flagged & ~mask).sum(0)
    planes = {}
    for reading, (tp, fp), threshold in zip(levels, counts, thresholds):
        tpr, fpr = tp / n_in, fp / n_out
        planes[reading] = xr.Dataset(  # of bare arrays, in one go: labels that are compared cost more than the scoring
            {name: (dims, value) for name, value in ({"tp": tp, "fp": fp} | places).items()}
            | ({"hits": (("level", *dims), hits)} if roc else {})
            | {
                "n_in": ("sample", n_in), "n_out": ("sample", n_out), "threshold": ("epoch", threshold),
                **{name: run[name].variable for name in ("train_accuracy", "test_accuracy", "label")},
                "tpr": (dims, tpr), "fpr": (dims, fpr), "advantage": (dims, tpr - fpr),
                "state": (dims, state_of(tpr, fpr), {"cuts": CUTS}),
            },
            coords={"level": list(LEVELS)} | {name: run[name].variable for name in run.sizes if name in run.coords},
            attrs=run.attrs
            | {"rule": reading, "attack": scoring.attack, "centre": scoring.centre, "variance": scoring.variance},
        )  # fmt: skip
    return planes


def state_of(tpr: np.ndarray, fpr: np.ndarray, cuts: tuple[float, float] = CUTS) -> np.ndarray:
    """The 3 x 3 state of each pair of rates, 3 * (third of TPR) + third of FPR.

    A rate is low below the first of ``cuts``, high above the second, and in the middle on and between them. Equal
    ratios of counts divide to equal floats, so a rate of exactly 2/3 is never counted as above it.
    """
    low, high = cuts
    third_of_tpr, third_of_fpr = (np.add(rate >= low, rate > high, dtype=np.int8) for rate in (tpr, fpr))
    return (3 * third_of_tpr + third_of_fpr).astype(np.int64)  # of few bytes up to here, for speed


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


def _position(outside: np.ndarray, level: float) -> int:
    """Where, among sorted out-scores, the one that a share of at most ``level`` exceeds (floor(level M), no ties)."""
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
        count = np.add.reduceat((member == side).astype(np.int64), starts)
        below[side] = np.repeat((2 * np.cumsum(count) - count) / (2 * count.sum()), size)
    placed = np.empty(mask.shape)
    placed.ravel()[order] = np.where(member, below[False], 1 - below[True])
    inside, outside = (np.einsum("ij,ij->j", placed, (mask == side).astype(float)) for side in (True, False))
    return ranked[~member], inside, outside


LEAST = 12  # models: below, too many samples of a half have no two models on each side


def part_of(run: xr.Dataset, models: np.ndarray, least: int = 2) -> xr.Dataset:
    """The run of the models at ``models``, without the samples that fewer than ``least`` of them did or did not see.

    Who that is depends on the keep mask alone, so no kind of sample is preferred; at 10 models it is 2 % of them.
    """
    inside = run.keep.values[models].sum(0)
    return run.isel(model=models, sample=np.flatnonzero(np.minimum(inside, len(models) - inside) >= least))


def halves(
    run: xr.Dataset, dim: str, draws: int, seed: int = 0, scoring: Scoring | str = "fpr@0.01"
) -> Iterator[xr.Dataset]:
    """Random halves of the models or samples of ``run``, each followed by its complement; an odd one is left over.

    Halves of the models have the samples that ``scoring`` of the whole run can score there (:func:`part_of`).
    """
    size, least = run.sizes[dim], Scoring.of(scoring).for_models(run.sizes["model"]).least
    if dim == "model" and size < LEAST:
        raise UserError(f"{size} models are too few to halve: an interval over models needs {LEAST}.")
    for numbers in numbers_of_halves(size, draws, seed):
        yield run.isel(sample=numbers) if dim == "sample" else part_of(run, numbers, least)


def planes_of_halves(
    run: xr.Dataset, scoring: Scoring | str, dim: str, draws: int, seed: int = 0, *, roc: bool = True
) -> Iterator[xr.Dataset]:
    """The planes of :func:`halves`, scored with the variance that ``auto`` means for the whole run."""
    scoring = Scoring.of(scoring).for_models(run.sizes["model"])
    return (vulnerability_plane(part, scoring, roc=roc) for part in halves(run, dim, draws, seed, scoring))


def numbers_of_halves(size: int, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The numbers that :func:`halves` takes of ``size``."""
    bounded("draws", draws, 1)
    bounded("seed", seed, 0)
    rng = np.random.default_rng([seed, 4])
    for _ in range((draws + 1) // 2):
        order = rng.permutation(size)
        yield from (np.sort(order[: size // 2]), np.sort(order[-(size // 2) :]))

"""The FPR-TPR plane: how often each sample is flagged by the models that did and did not train on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr
from scipy.special import expit
from scipy.stats import beta, norm

from ..errors import UserError, bounded, choose
from ..store.run import boolean, checked_run
from .others import attack_scores
from .scoring import STUDY, Scoring, level_of

CUTS = (1 / 3, 2 / 3)  # of a rate, between low, middle and high
LEVELS = (0.001, 0.01, 0.1)  # pooled false-positive rates at which the attack's true-positive rate is reported


def vulnerability_plane(
    run: xr.Dataset, scoring: Scoring | str = STUDY, *, keep: np.ndarray | None = None, roc: bool = True
) -> xr.Dataset:
    """Run an attack, leave-one-out, at every checkpoint of ``run`` and place every sample on the FPR-TPR plane.

    A sample's TPR is the mean of the decisions over the models that trained on it, its FPR that over the others; a
    decision is 0 or 1, or under the reading ``posterior`` the probability of membership itself.

    Args:
        run: a run (:mod:`dynmia.store.run`).
        scoring: a :class:`dynmia.attack.scoring.Scoring`, or what its ``of`` reads: ``posterior``, ``bayes``,
            ``fpr@0.01`` of the study's own attack, ``lira:bayes`` of another.
        keep: another inclusion mask (N, n), of True and False or 1 and 0, for permutation nulls; default the run's own.
        roc: with hits and places; without them the plane takes half the time.

    Returns:
        A data set with dims epoch, sample and level. Its variables are tp, fp (sums of decisions), n_in, n_out,
        tpr = tp / n_in, fpr = fp / n_out (NaN without such models), advantage = tpr - fpr; state, of :func:`state_of`
        with the cuts in its attribute; per epoch threshold (NaN if there is none), test_accuracy, train_accuracy; hits
        (level, epoch, sample), the in-models that flag the sample at the pooled FPR ``level``, NaN if the out-scores
        are too few to tell it; place_in, place_out (epoch, sample), the sums over the sample's in-models (out-models)
        of the share of all out-scores below (in-scores above) theirs, from which the AUC follows.

    Raises:
        UserError: an unknown name, a level a below one over the number of out-scores, or a run that cannot be scored.
    """
    [plane] = vulnerability_planes(run, [scoring], keep=keep, roc=roc).values()
    return plane


def vulnerability_planes(
    run: xr.Dataset, scorings: Iterable[Scoring | str], *, keep: np.ndarray | None = None, roc: bool = True
) -> dict[str, xr.Dataset]:
    """The planes of several scorings, by their text; those that differ in the reading alone share the scores."""
    named = Scoring.named(scorings)
    by_attack: dict[Scoring, dict[str, str]] = {}
    for name, scoring in named.items():
        by_attack.setdefault(replace(scoring, reading=""), {})[name] = scoring.reading
    run = checked_run(run)
    planes: dict[str, xr.Dataset] = {}
    for scoring, readings in by_attack.items():
        planes |= _planes(run, scoring, readings, keep, roc)
    return {name: planes[name] for name in named}


def _planes(
    run: xr.Dataset, scoring: Scoring, readings: dict[str, str], keep: np.ndarray | None, roc: bool
) -> dict[str, xr.Dataset]:
    """The planes of one attack; ``readings`` by the name of the plane."""
    levels = {name: level_of(reading) for name, reading in readings.items()}
    mask = run.keep.values if keep is None else boolean(keep)
    if mask.shape != run.keep.shape:
        raise UserError(f"keep has shape {mask.shape}: the run has (models, samples) {run.keep.shape}.")
    epochs, (models, samples) = run.sizes["epoch"], mask.shape
    dims, n_in = ("epoch", "sample"), mask.sum(0)
    n_out = models - n_in
    for a in filter(None, levels.values()):
        if a * n_out.sum() < 1:
            raise UserError(
                f"reading 'fpr@{a:g}' needs {np.ceil(1 / a):.0f} out-scores, pairs of a sample and a model "
                f"that did not train on it; this run has {n_out.sum()}: use a higher level, or posterior."
            )
    decided = {
        name: np.zeros((2, epochs, samples), float if reading == "posterior" else np.int32)
        for name, reading in readings.items()
    }
    thresholds = {name: np.full(epochs, np.nan) for name in readings}
    places = {name: np.zeros((epochs, samples)) for name in ("place_in", "place_out")} if roc else {}
    hits = np.full((len(LEVELS), epochs, samples), np.nan, np.float32)  # exact for counts
    for t in range(epochs):  # one checkpoint at a time bounds the memory
        scores = attack_scores(run.phi.values[t], mask, run.label.values, scoring)
        if roc:
            outside, places["place_in"][t], places["place_out"][t] = _placements(scores, mask)
            for number, a in enumerate(LEVELS):
                if a * n_out.sum() < 1:
                    continue
                hits[number, t] = ((scores > outside[_position(outside, a)]) & mask).sum(0)
        elif thresholded := [level for level in levels.values() if level is not None]:
            outside = scores[~mask]  # the thresholds stand where they would after sorting
            outside.partition([_position(outside, a) for a in thresholded])
        for name, level in levels.items():
            if readings[name] == "posterior":
                p = expit(scores)
                inside = np.einsum("ij,ij->j", p, mask)
                decided[name][:, t] = inside, p.sum(0) - inside
                continue
            thresholds[name][t] = 0.0 if level is None else outside[_position(outside, level)]
            flagged = scores > thresholds[name][t]
            decided[name][:, t] = (flagged & mask).sum(0), (flagged & ~mask).sum(0)
    planes = {}
    for name, (tp, fp) in decided.items():
        with np.errstate(invalid="ignore"):  # no models of a side: 0 / 0
            tpr, fpr = tp / n_in, fp / n_out
        planes[name] = xr.Dataset(  # of bare arrays, in one go: labels that are compared cost more than the scoring
            {name: (dims, value) for name, value in ({"tp": tp, "fp": fp} | places).items()}
            | ({"hits": (("level", *dims), hits)} if roc else {})
            | {
                "n_in": ("sample", n_in), "n_out": ("sample", n_out), "threshold": ("epoch", thresholds[name]),
                **{name: run[name].variable for name in ("train_accuracy", "test_accuracy", "label")},
                "tpr": (dims, tpr), "fpr": (dims, fpr), "advantage": (dims, tpr - fpr),
                "state": (dims, state_of(tpr, fpr), {"cuts": CUTS}),
            },
            coords={"level": list(LEVELS)} | {name: run[name].variable for name in run.sizes if name in run.coords},
            attrs=run.attrs
            | {"rule": name, "attack": scoring.attack, "centre": scoring.centre, "variance": scoring.variance},
        )  # fmt: skip
    return planes


def state_of(tpr: np.ndarray, fpr: np.ndarray, cuts: tuple[float, float] = CUTS) -> np.ndarray:
    """The 3 x 3 state of each pair of rates, 3 * (third of TPR) + third of FPR.

    A rate is low below the first of ``cuts``, high above the second, and in the middle on and between them. Equal
    ratios of counts divide to equal floats, so a rate of exactly 2/3 is never counted as above it. An unknown rate
    (NaN) is the one that is not vulnerable: a low TPR, a high FPR.
    """
    low, high = cuts
    third_of_tpr = np.add(tpr >= low, tpr > high, dtype=np.int8)
    third_of_fpr = np.add(~(fpr < low), ~(fpr <= high), dtype=np.int8)
    return (3 * third_of_tpr + third_of_fpr).astype(np.int64)  # of few bytes up to here, for speed


def rate_interval(count: xr.DataArray, trials: xr.DataArray, level: float = 0.95, method: str = "wilson") -> xr.Dataset:
    """Interval of a sample's rate from its count, as a data set with ``low`` and ``high``.

    For a sum of probabilities, as of the reading ``posterior``, it is conservative: they vary less than decisions of 0
    and 1 with the same mean.

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
        low, high = np.minimum(low, count / trials), np.maximum(high, count / trials)  # of a part of a decision
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


def part_of(run: xr.Dataset, models: np.ndarray | None = None, least: int = 2) -> xr.Dataset:
    """The run of the models at ``models`` (all), without samples that fewer than ``least`` of them did or did not see.

    Who that is depends on the keep mask alone, so no kind of sample is preferred; at 10 models it is 2 % of them.
    """
    models = np.arange(run.sizes["model"]) if models is None else models
    inside = run.keep.values[models].sum(0)
    return run.isel(model=models, sample=np.flatnonzero(np.minimum(inside, len(models) - inside) >= least))


def halves(
    run: xr.Dataset, dim: str, draws: int, seed: int = 0, scoring: Scoring | str = STUDY
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
    run: xr.Dataset, scorings: Sequence[Scoring | str], dim: str, draws: int, seed: int = 0, *, roc: bool = True
) -> Iterator[list[xr.Dataset]]:
    """The planes of :func:`halves` under each of ``scorings``, with the variance that ``auto`` means for the whole run.

    The scorings are readings of one attack; its least number of models on each side says which samples a half has.
    """
    alike = [Scoring.of(scoring).for_models(run.sizes["model"]) for scoring in scorings]
    for part in halves(run, dim, draws, seed, alike[0]):
        yield list(vulnerability_planes(part, alike, roc=roc).values())


def numbers_of_halves(size: int, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The numbers that :func:`halves` takes of ``size``."""
    bounded("draws", draws, 1)
    bounded("seed", seed, 0)
    rng = np.random.default_rng([seed, 4])
    for _ in range((draws + 1) // 2):
        order = rng.permutation(size)
        yield from (np.sort(order[: size // 2]), np.sort(order[-(size // 2) :]))

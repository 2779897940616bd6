"""One rule for every interval: random halves of the models, and of the samples, each scored as if it were all there is.

Leave-one-out statistics come from the half, and the decision threshold is set anew. The variance of a figure over the
halves estimates its variance over samples, or over models (Shao and Wu 1989; the factor (n - d)/d of their delete-d
jackknife is 1 for d = n/2). Half is deleted and not one: a sample's state is a step function of about 10 flags, and the
delete-one jackknife is not consistent for figures that are not smooth, while one that deletes many is. No model is
drawn twice, so no copy of a target sits in its own reference set, as in a bootstrap over models.

From there to the ends, for figures, differences and ratios alike:

1. The two variances are added. What belongs to one model on one sample is in either, so it counts once too often (Owen
   2007). Student's t has draws / 2 degrees of freedom a dimension, or one less than the models (samples) if these are
   fewer; Satterthwaite's (1946) for the sum.
2. A figure that few samples bias (entropy, peaks) is corrected by the halves of samples: 2 x value - mean over halves.
3. Runs on one pool are halved alike, so what they share cancels in a difference or ratio. Ratios are Fieller's (1954):
   no upper end where the lower figure is not clear of zero, and none at all where it is not positive.
4. No width is zero: a share of 0 or 100 % reaches at least to the exact binomial limit (Clopper and Pearson 1934), a
   date at least to the checkpoint on either side. Another figure that no half moves has no interval, NaN.
5. Ends are clipped to what is possible, and ``clipped`` says which. ``carrier`` is the model, if there is one, whose
   presence alone explains more than nine tenths of the variance over halves of the models.
6. Undefined stays undefined: no interval for a figure that is NaN, or is so in more than half of the halves.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from ..attack.plane import LEAST, numbers_of_halves, planes_of_halves, vulnerability_planes
from ..attack.scoring import STUDY, Scoring
from ..dynamics.metrics import METRICS
from ..errors import UserError, bounded, choose
from ..store.run import study_of

OVER = {  # what else might have been drawn, and along which dimensions the halves are taken
    "samples": ("these models on other samples like these", ["sample"]),
    "models": ("these samples under another population of as many models", ["model"]),
    "both": ("another population of as many models on other samples", ["model", "sample"]),
}
CHOSEN = (
    "displacement", "advantage", "auc", "speed_mean", "vulnerable", "transition_peak", "early_recall", "entropy_change",
)  # fmt: skip
NEEDED = ("tpr", "fpr", "advantage", "state", "n_in", "hits")  # what the metrics read, the AUC apart
ROC = ("auc", "tpr_1pct", "tpr_01pct")  # metrics that need the whole ROC curve
CARRIED = 0.9  # share of the variance over halves of the models from which one model carries the figure

Drawn = Mapping[str, np.ndarray]  # for each dimension the figures of its halves, (draw,) or (figure, draw)


@dataclass(frozen=True)
class Scored:
    """Metrics of a run and of its halves, of which intervals, differences and ratios are made.

    Attributes:
        plane: of the whole run.
        value: by metric.
        halves: for each dimension a row a half, each followed by its complement; a column a metric.
        keep: of the run; with data set, samples and labels it tells what another run shares.
        seed: of the halves.
    """

    plane: xr.Dataset
    value: pd.Series
    halves: dict[str, pd.DataFrame]
    keep: xr.DataArray
    seed: int = 0

    def drawn(self, metric: str) -> dict[str, np.ndarray]:
        """The metric of the halves along each dimension, (draw,)."""
        return {dim: table[metric].to_numpy(float) for dim, table in self.halves.items()}

    def alike(self, other: Scored) -> list[str]:
        """The dimensions along which the two were halved alike and have something in common."""
        same = study_of(self.plane).dataset == study_of(other.plane).dataset
        same = same and all(self.plane[name].equals(other.plane[name]) for name in ("sample", "label"))
        return ["sample"] * same + ["model"] * (same and np.array_equal(self.keep, other.keep))


def summarise(
    run: xr.Dataset, scoring: Scoring | str = STUDY, *, only: Collection[str] = METRICS, draws: int = 20,
    seed: int = 0, level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Metrics with the intervals that the book prints: over both, or over samples if the models are too few to halve.

    Which it is stands in ``attrs["over"]``. See :func:`interval`.
    """
    over = "both" if run.sizes["model"] >= LEAST else "samples"
    return interval(run, scoring, over, only=only, draws=draws, seed=seed, level=level)


def interval(
    run: xr.Dataset, scoring: Scoring | str = STUDY, over: str = "models", *, only: Collection[str] = CHOSEN,
    draws: int = 20, seed: int = 0, level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Metrics of an attack with an interval over samples, over models, or over both, by the rule of this module.

    Over samples the figure is that of the same models on infinitely many samples; over models it is the mean over
    populations of the same number N of models, not the limit of many models.

    Args:
        run, scoring: as for :func:`dynmia.attack.plane.vulnerability_plane`.
        over: a name of ``OVER``.
        only: names of metrics.
        draws: halves of each kind, two by two the complements of each other.
        seed: of the halves.
        level: confidence.

    Returns:
        Index metric; columns label, value, low, high, unit, error (standard error), clipped (``low``, ``high``,
        ``both`` or nothing), carrier (a model, or NaN); attributes level and over.

    Raises:
        UserError: an unknown name, fewer than 20 draws, or fewer than 12 models to halve.
    """
    bounded("level", level, 0, 1, whole=False)
    table = ends(score_halves(run, scoring, over, only=only, draws=draws, seed=seed), level)
    table.attrs["over"] = over
    return table


def score_halves(
    run: xr.Dataset, scoring: Scoring | str, over: str = "both", *, only: Collection[str] = CHOSEN, draws: int = 20,
    seed: int = 0,
) -> Scored:  # fmt: skip
    """What every interval of a run is made of; arguments and errors as for :func:`interval`."""
    [scored] = score_readings(run, [scoring], over, only=only, draws=draws, seed=seed).values()
    return scored


def score_readings(
    run: xr.Dataset, scorings: Iterable[Scoring | str], over: str = "both", *, only: Collection[str] = CHOSEN,
    draws: int = 20, seed: int = 0,
) -> dict[str, Scored]:  # fmt: skip
    """:func:`score_halves` of several scorings, by their text; readings of one attack share its scores."""
    bounded("draws", draws, 20)
    metrics = [choose(name, METRICS, "metric") for name in only]
    if not metrics:
        raise UserError(f"no metric is named: name at least one of {', '.join(METRICS)}.")
    _, dims = OVER[choose(over, OVER, "interval")]
    named = Scoring.named(scorings)
    halves = {dim: _halved(run, named, dim, metrics, draws, seed) for dim in dims}
    planes = vulnerability_planes(run, named.values())
    return {
        name: Scored(plane, figures([plane], metrics).iloc[0], {dim: halves[dim][name] for dim in dims}, run.keep, seed)
        for name, plane in planes.items()
    }


def ends(scored: Scored, level: float = 0.95) -> pd.DataFrame:
    """The table of :func:`interval`."""
    rows = {}
    for name in map(str, scored.value.index):
        metric, drawn = METRICS[name], scored.drawn(name)
        row = estimate(scored.value[name], drawn, scored.keep.sizes, name, level)
        if metric.unit == "epoch":
            row = _one_checkpoint_each_way(row, scored.plane.epoch.values)
        elif metric.trials is not None:
            row = _binomial(row, float(metric.trials(scored.plane)), level)
        rows[name] = row | {"label": metric.label, "unit": metric.unit, "carrier": _carrier(drawn, scored)}
    columns = ["label", "value", "low", "high", "unit", "error", "clipped", "carrier"]
    table = pd.DataFrame.from_dict(rows, "index", columns=columns)
    table.attrs["level"] = level
    return table.rename_axis("metric")


def estimate(
    value: float, drawn: Drawn, sizes: Mapping[Hashable, int], metric: str = "", level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A figure with its interval from those of its halves.

    Args:
        value: of the whole.
        drawn: of the halves along each dimension, (draw,).
        sizes: of the whole along each dimension.
        metric: what it is, if it is one of ``METRICS``: of these some are corrected, and all are clipped.
        level: confidence.
        bounds: what is possible, if it is no metric.

    Returns:
        value, low, high, error, clipped.
    """
    parts = {dim: part[None] for dim, part in drawn.items()}
    centre, spreads = _centre_and_spreads(np.array([value]), parts, sizes, metric, ())
    error, quantile = _error(np.ones(1), spreads, level)
    return _row(value, centre[0] - quantile * error, centre[0] + quantile * error, error, *(bounds or _bounds(metric)))


def contrast(
    value: np.ndarray, drawn: Drawn, sizes: Mapping[Hashable, int], metric: str = "", how: str = "ratio",
    alike: Collection[str] = ("model", "sample"), level: float = 0.95,
) -> dict[str, Any]:  # fmt: skip
    """The difference or ratio of two figures, the first less or over the second, from those of their halves.

    Args:
        value: of the two, (2,).
        drawn: of their halves along each dimension, (2, draw).
        sizes, metric, level: as for :func:`estimate`; sizes of the smaller of the two.
        how: ``difference`` or ``ratio``.
        alike: dimensions along which the two were halved alike: what their halves have in common along others is
            chance, and left out.

    Returns:
        As :func:`estimate`; of a ratio to a figure that is not positive all is NaN.
    """
    choose(how, ("difference", "ratio"), "contrast")
    (least, most), (first, second) = _bounds(metric), value
    centre, spreads = _centre_and_spreads(value, drawn, sizes, metric, alike)
    if how == "difference":
        error, quantile = _error(np.array([1.0, -1.0]), spreads, level)
        half, middle = quantile * error, centre[0] - centre[1]
        return _row(first - second, middle - half, middle + half, error, least - most, most - least)
    quotient = first / second if second > 0 else np.nan
    error, quantile = _error(np.array([1.0, -quotient]), spreads, level)
    low, high = (
        fieller(centre, np.sum([spread for spread, _ in spreads], 0), quantile) if error > 0 else (np.nan, np.nan)
    )
    return _row(quotient, low, high, error / second, 0.0 if least >= 0 else -np.inf, np.inf)


def ratio(above: Scored, below: Scored, metric: str, level: float = 0.95) -> pd.Series:
    """A metric of one run over that of another: :func:`contrast`."""
    return _of_two(above, below, metric, "ratio", level)


def difference(more: Scored, less: Scored, metric: str, level: float = 0.95) -> pd.Series:
    """A metric of one run less that of another: :func:`contrast`."""
    return _of_two(more, less, metric, "difference", level)


def _of_two(first: Scored, second: Scored, metric: str, how: str, level: float) -> pd.Series:
    value, others = np.array([first.value[metric], second.value[metric]]), second.drawn(metric)
    drawn = {dim: np.stack([part, others[dim]]) for dim, part in first.drawn(metric).items()}
    least: dict[Hashable, int] = {dim: min(scored.keep.sizes[dim] for scored in (first, second)) for dim in drawn}
    return pd.Series(contrast(value, drawn, least, metric, how, first.alike(second), level))


def fieller(pair: np.ndarray, covariance: np.ndarray, quantile: float) -> tuple[float, float]:
    """Ends of all r with (a - r b)^2 <= quantile^2 Var(a - r b); no upper end unless b is clear of zero."""
    (a, b), v = pair, quantile**2 * covariance
    square, middle, rest = b**2 - v[1, 1], a * b - v[0, 1], a**2 - v[0, 0]
    root = np.sqrt(max(middle**2 - square * rest, 0.0))
    if square > 0 and b > 0:
        return (middle - root) / square, (middle + root) / square
    return ((middle - root) / square if rest > 0 and a > 0 else -np.inf), np.inf


def _bounds(metric: str) -> tuple[float, float]:
    return (METRICS[metric].low, METRICS[metric].high) if metric else (-np.inf, np.inf)


def _centre_and_spreads(
    value: np.ndarray, drawn: Drawn, sizes: Mapping[Hashable, int], metric: str, alike: Collection[str]
) -> tuple[np.ndarray, list[tuple[np.ndarray, float]]]:
    """Figures (k,), corrected if they are biased; for each dimension their covariance (k, k) and degrees of freedom.

    Nothing for the dimensions if more than half of the halves of one have an undefined figure.
    """
    centre, spreads = np.asarray(value, float), []
    for dim, part in drawn.items():
        known = part[:, np.isfinite(part).all(0)]
        if 2 * known.shape[1] < part.shape[1]:
            return centre, []
        covariance = np.cov(known, ddof=0).reshape(len(value), len(value))
        covariance = covariance if dim in alike else covariance * np.eye(len(value))
        spreads.append((covariance, min(sizes.get(dim, np.inf) - 1, part.shape[1] // 2)))
        if dim == "sample" and metric and METRICS[metric].biased:
            centre = 2 * centre - known.mean(1)
    return centre, spreads


def _error(weights: np.ndarray, spreads: list[tuple[np.ndarray, float]], level: float) -> tuple[float, float]:
    """Standard error of a weighted sum of figures, and the quantile of Student's t; NaN if no half moves it."""
    parts = [(weights @ covariance @ weights, free) for covariance, free in spreads]
    variance = float(sum(part for part, _ in parts))
    if not variance > 0:
        return (0.0 if variance == 0 and parts else np.nan), np.nan
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    return np.sqrt(variance), stats.t.ppf((1 + level) / 2, freedom)


def _row(value: float, low: float, high: float, error: float, least: float, most: float) -> dict[str, Any]:
    """A figure with the ends that are possible, and which of them were not; no end for what is undefined."""
    if np.isnan(value):
        low = high = error = np.nan
    beyond = " ".join(name for name, over in (("low", low < least), ("high", high > most)) if over)
    clipped = beyond if " " not in beyond else "both"
    return {
        "value": float(value), "low": float(np.clip(low, least, most)), "high": float(np.clip(high, least, most)),
        "error": float(error), "clipped": clipped,
    }  # fmt: skip


def _one_checkpoint_each_way(row: dict[str, Any], epochs: np.ndarray) -> dict[str, Any]:
    """The interval of a date, which lies within the run and reaches at least to the checkpoint on either side."""
    if np.isnan(row["error"]):
        return row
    before, after = epochs[epochs < row["value"]], epochs[epochs > row["value"]]
    low, high = np.fmin(row["low"], [epochs[0], *before][-1]), np.fmax(row["high"], [*after, epochs[-1]][0])
    return _row(row["value"], low, high, row["error"], *epochs[[0, -1]])


def _binomial(row: dict[str, Any], trials: float, level: float) -> dict[str, Any]:
    """The interval of a share (%) of ``trials``: at 0 and 100 % it reaches at least to the exact binomial limit."""
    if np.isnan(row["error"]):
        return row
    reach = 100 * (1 - ((1 - level) / 2) ** (1 / trials))
    if row["value"] == 0:
        row = row | {"low": 0.0, "high": np.fmax(row["high"], reach)}
    if row["value"] == 100:
        row = row | {"low": np.fmin(row["low"], 100 - reach), "high": 100.0}
    return row


def _carrier(drawn: Drawn, scored: Scored) -> float:
    """The model that explains more than ``CARRIED`` of the variance over halves of the models; NaN if none does."""
    if "model" not in drawn:
        return np.nan
    parts = numbers_of_halves(scored.keep.sizes["model"], len(drawn["model"]), scored.seed)
    member = np.array([np.isin(np.arange(scored.keep.sizes["model"]), part) for part in parts], float)
    apart, swap = (part[::2] - part[1::2] for part in (drawn["model"], member))  # complements: (draw,), (draw, N)
    apart, swap = apart[np.isfinite(apart)], swap[np.isfinite(apart)]
    total = (apart**2).sum() * (swap**2).sum(0)
    share = (apart @ swap) ** 2 / np.where(total > 0, total, np.inf)
    models = scored.keep["model"].values if "model" in scored.keep.coords else np.arange(len(share))
    return float(models[share.argmax()]) if len(apart) and share.max() > CARRIED else np.nan


def halved(
    run: xr.Dataset, scoring: Scoring | str, dim: str, *, only: Collection[str] = CHOSEN, draws: int = 20, seed: int = 0
) -> pd.DataFrame:
    """The metrics of ``draws`` halves along ``dim`` (``sample`` or ``model``), one row each."""
    [table] = _halved(run, {"": Scoring.of(scoring)}, dim, only, draws, seed).values()
    return table


def _halved(
    run: xr.Dataset, scorings: Mapping[str, Scoring], dim: str, only: Collection[str], draws: int, seed: int
) -> dict[str, pd.DataFrame]:
    """The metrics of the halves under each scoring; those of one attack are halved and scored together."""
    roc = any(name in ROC for name in only)
    found: dict[str, pd.DataFrame] = {}
    used = [*NEEDED, *(("place_in", "place_out", "n_out") if "auc" in only else ())]
    groups: dict[Scoring, list[str]] = {}
    for name, scoring in scorings.items():
        groups.setdefault(replace(scoring, reading=""), []).append(name)
    for names in groups.values():
        alike = [scorings[name] for name in names]
        planes: list[list[xr.Dataset]] = [[] for _ in names]
        for several in planes_of_halves(run, alike, dim, draws, seed, roc=roc):
            for kept, plane in zip(planes, several):
                kept.append(plane[[name for name in used if name in plane]])
        found |= {name: figures(kept, only) for name, kept in zip(names, planes)}
    return found


def figures(planes: Sequence[xr.Dataset], only: Collection[str] = CHOSEN) -> pd.DataFrame:
    """Metrics of many planes with the same checkpoints, one row a plane, one column a metric.

    The planes are laid side by side and each is picked by weights 0 and 1, as a bootstrap draw is, which is much faster
    than one after another. The AUC is linearised in its weights, so it is taken plane by plane.
    """
    used = [name for name in NEEDED if name in planes[0]]
    joined = xr.concat([plane[used].drop_vars("sample") for plane in planes], "sample", data_vars="minimal")
    picked = np.repeat(np.eye(len(planes)), [plane.sizes["sample"] for plane in planes], axis=1)
    weights = xr.DataArray(picked, dims=("draw", "sample"))
    alone = ("auc", "silhouette")
    values: dict[str, Sequence[float] | np.ndarray]
    values = {name: METRICS[name].of(joined, weights).values for name in only if name not in alone}
    values |= {name: [float(METRICS[name].of(plane, None)) for plane in planes] for name in only if name in alone}
    return pd.DataFrame({name: values[name] for name in only})

"""Intervals of population figures over samples, over models, or over both, by one delete-half jackknife.

A figure of N models and n samples is scored again on random halves of the samples, or of the models, each half as if it
were all there is: leave-one-out statistics come from the half, and the decision threshold is set anew. The variance of
the figure over the halves estimates its variance over samples, or over models (Shao and Wu 1989; the factor (n - d)/d
of their delete-d jackknife is 1 for d = n/2). Half is deleted and not one: a sample's state is a step function of about
10 flags, and the delete-one jackknife is not consistent for figures that are not smooth, while one that deletes many
is. No model is drawn twice, so no copy of a target sits in its own reference set, as in a bootstrap over models.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from ..attack.plane import LEAST, planes_of_halves, vulnerability_plane
from ..attack.scoring import Scoring
from ..dynamics.metrics import METRICS
from ..errors import UserError, bounded, choose
from .resample import summarise

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


def interval(
    run: xr.Dataset,
    scoring: Scoring | str = "fpr@0.01",
    over: str = "models",
    *,
    only: Collection[str] = CHOSEN,
    draws: int = 20,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Metrics of an attack with a Student-t interval over samples, over models, or over both.

    Over samples the figure is that of the same models on infinitely many samples, so an entropy or a peak, which few
    samples bias, is corrected by the halves: 2 x value - mean over halves. Over models it is the mean over populations
    of the same number N of models, not the limit of many models. For ``both`` the two variances are added. What belongs
    to one model on one sample is in either of them, so the sum is too large by it once (Owen 2007).

    Args:
        over: a name of ``OVER``.
        only: names of metrics; those that are epochs are steps, for which no t interval holds.
        draws: halves, two by two the complements of each other. Degrees of freedom: draws / 2, or the models (samples)
            less one if they are fewer; Satterthwaite's for the sum.

    Returns:
        Index metric; columns label, value, low, high, unit, error (standard error), as those of
        :func:`dynmia.stats.resample.summarise`.

    Raises:
        UserError: an unknown name, fewer than 20 draws, or fewer than 12 models to halve.
    """
    value, drawn = score_halves(run, scoring, over, only=only, draws=draws, seed=seed)
    return from_halves(value, drawn, run.sizes, level)


Scored = tuple[pd.Series, dict[str, pd.DataFrame]]  # metrics of a run, and of its halves along each dimension


def score_halves(
    run: xr.Dataset,
    scoring: Scoring | str,
    over: str = "both",
    *,
    only: Collection[str] = CHOSEN,
    draws: int = 20,
    seed: int = 0,
) -> Scored:
    """What :func:`interval` and :func:`ratio` are made of; arguments and errors as there."""
    bounded("draws", draws, 20)
    metrics = [choose(name, METRICS, "metric") for name in only]
    if not metrics:
        raise UserError(f"no metric is named: name at least one of {', '.join(METRICS)}.")
    _, dims = OVER[choose(over, OVER, "interval")]
    drawn = {dim: halved(run, scoring, dim, only=metrics, draws=draws, seed=seed) for dim in dims}
    return figures([vulnerability_plane(run, scoring)], metrics).iloc[0], drawn


def every(
    run: xr.Dataset,
    scoring: Scoring | str = "fpr@0.01",
    *,
    only: Collection[str] = METRICS,
    draws: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """All of ``METRICS``, or those in ``only``, with the intervals that the book prints.

    They are over both, models and samples, or over samples where the models are too few to halve. No t interval holds
    for an epoch, which moves in steps: those have :func:`dynmia.stats.resample.summarise`'s bootstrap over samples.

    Returns:
        As :func:`interval`; error is NaN for epochs.
    """
    steps = [name for name in only if METRICS[choose(name, METRICS, "metric")].unit == "epoch"]
    over = "both" if run.sizes["model"] >= LEAST else "samples"
    rest = [name for name in only if name not in steps]
    table = summarise(vulnerability_plane(run, scoring), draws=200, only=steps, seed=seed)
    if rest:
        table = pd.concat([interval(run, scoring, over, only=rest, draws=draws, seed=seed), table])
    else:
        table = table.assign(error=np.nan)
    return table.loc[list(only)].rename_axis("metric")


def ratio(above: Scored, below: Scored, metric: str, level: float = 0.95, paired: bool = True) -> pd.Series:
    """A metric of one run over that of another, with Fieller's interval from what :func:`score_halves` returned.

    Runs of one size are halved alike, so what paired samples, or models of one number, have in common cancels. Where
    the lower figure is not clear of zero the interval has no upper end (Fieller 1954).

    Args:
        paired: False for runs that have no sample in common: what their halves have in common is chance, and left out.

    Returns:
        value, low, high; a ratio to a figure that is not positive is undefined, NaN.
    """
    value = centre = np.array([scored[0][metric] for scored in (above, below)])
    drawn = {dim: np.array([scored[1][dim][metric] for scored in (above, below)]) for dim in above[1]}
    if "sample" in drawn and METRICS[metric].interval == "basic":
        centre = 2 * value - drawn["sample"].mean(1)
    return quotient(value, list(drawn.values()), centre, level, paired)


def quotient(
    value: np.ndarray, drawn: Sequence[np.ndarray], centre: np.ndarray | None = None, level: float = 0.95,
    paired: bool = True,
) -> pd.Series:  # fmt: skip
    """Ratio of two figures (2,) with Fieller's interval from those of their halves along each dimension, (2, draws)."""
    covariance = np.sum([np.cov(part, ddof=0) for part in drawn], 0)
    if not paired:
        covariance = np.diag(np.diag(covariance))
    quantile = stats.t.ppf((1 + level) / 2, drawn[0].shape[1] // 2)
    low, high = fieller(value if centre is None else centre, covariance, quantile)
    return pd.Series({"value": value[0] / value[1] if value[1] > 0 else np.nan, "low": low, "high": high})


def fieller(pair: np.ndarray, covariance: np.ndarray, quantile: float) -> tuple[float, float]:
    """Ends of all r with (a - r b)^2 <= quantile^2 Var(a - r b); no upper end unless b is clear of zero."""
    (a, b), v = pair, quantile**2 * covariance
    square, middle, rest = b**2 - v[1, 1], a * b - v[0, 1], a**2 - v[0, 0]
    root = np.sqrt(max(middle**2 - square * rest, 0.0))
    if square > 0 and b > 0:
        return (middle - root) / square, (middle + root) / square
    return ((middle - root) / square if rest > 0 and a > 0 else -np.inf), np.inf


def from_halves(
    value: pd.Series, drawn: Mapping[str, pd.DataFrame], sizes: Mapping[Hashable, int], level: float = 0.95
) -> pd.DataFrame:
    """The table of :func:`interval` from figures and those of the halves (:func:`halved`) along each dimension."""
    bounded("level", level, 0, 1, whole=False)
    metrics = {str(name): METRICS[str(name)] for name in value.index}
    parts = {dim: table.var(ddof=0) for dim, table in drawn.items()}
    variance = sum(parts.values())
    squares = sum(part**2 / min(sizes[dim] - 1, len(drawn[dim]) // 2) for dim, part in parts.items())
    freedom = np.where(squares > 0, variance**2 / np.maximum(squares, 1e-300), 1.0)  # Satterthwaite 1946
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
    centre = value.copy()
    if "sample" in drawn:
        biased = [name for name, metric in metrics.items() if metric.interval == "basic"]
        centre[biased] = 2 * value[biased] - drawn["sample"][biased].mean()
    table = pd.DataFrame({"label": {name: metric.label for name, metric in metrics.items()}, "value": value})
    tops = {"%": 100.0, "% per checkpoint": 100.0, "": 1.0}  # of shares, AUC and silhouette
    bounds = [(0.0 if m.unit.startswith("%") else m.floor, tops.get(m.unit, np.inf)) for m in metrics.values()]
    for name, end in (("low", centre - half), ("high", centre + half)):
        table[name] = [float(np.clip(v, *bound)) for v, bound in zip(end, bounds)]
    table = table.assign(unit=[metric.unit for metric in metrics.values()], error=np.sqrt(variance))
    table.attrs["level"] = level
    return table.rename_axis("metric")


def halved(
    run: xr.Dataset, scoring: Scoring | str, dim: str, *, only: Collection[str] = CHOSEN, draws: int = 20, seed: int = 0
) -> pd.DataFrame:
    """The metrics of ``draws`` halves along ``dim`` (``sample`` or ``model``), one row each."""
    roc = any(name in ROC for name in only)
    return figures(list(planes_of_halves(run, scoring, dim, draws, seed, roc=roc)), only)


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

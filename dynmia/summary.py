"""Every printed metric of a population, with its bootstrap interval and its no-signal level."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from . import dynamics as dyn
from .dynamics import Weights
from .errors import bounded, choose
from .plane import vulnerability_plane
from .pool import draw_keep
from .runs import study_of

EARLY = 150 / 400  # the share of training at which the paper finds over 70 % of the finally vulnerable
BLOCK = 100  # bootstrap draws held in memory at once
CLUSTER_DRAWS = 200  # k-means is fitted anew in each


@dataclass(frozen=True)
class Metric:
    """One population figure: how to compute it, and how its bootstrap interval is formed.

    ``basic`` intervals (2 x estimate - quantiles) are for figures whose resampled value is biased: entropies come out
    low and peaks high. ``percentile`` is for the rest, and for epochs.
    """

    label: str
    unit: str
    of: Callable[[xr.Dataset, Weights], xr.DataArray]
    digits: int = 1
    interval: str = "percentile"
    floor: float = -np.inf  # no interval goes below


def _over_time(figure: Callable[[xr.Dataset, Weights], xr.DataArray]) -> Callable[[xr.Dataset, Weights], xr.DataArray]:
    """``figure``, which compares checkpoints; NaN where the plane has only one."""

    def of(plane: xr.Dataset, weights: Weights) -> xr.DataArray:
        if plane.sizes["epoch"] < 2:
            return np.nan * _last(dyn.population_mean(plane.tpr, weights))
        return figure(plane, weights)

    return of


def _last(values: xr.DataArray) -> xr.DataArray:
    return values.isel(epoch=-1, drop=True)


def _peak_epoch(values: xr.DataArray) -> xr.DataArray:
    return values.epoch[values.fillna(-1).argmax("epoch")].drop_vars("epoch")


def _early(plane: xr.Dataset, weights: Weights, name: str) -> xr.DataArray:
    wanted = EARLY * float(plane.epoch[-1])
    share = dyn.early_identification(plane, weights)[name]
    return _last(share.reindex(epoch=[wanted], method="pad"))  # NaN if the first checkpoint is later


def epoch_of_recall(plane: xr.Dataset, weights: Weights = None, share: float = 0.7) -> xr.DataArray:
    """The first checkpoint from which the recall of the finally vulnerable stays at or above ``share``."""
    recall = dyn.early_identification(plane, weights).recall
    good = (recall >= share - 1e-9).isel(epoch=slice(None, None, -1))
    stays = good.cumprod("epoch").sum("epoch")  # checkpoints at the end that are all good
    return recall.epoch[(recall.sizes["epoch"] - stays).clip(max=recall.sizes["epoch"] - 1)].drop_vars("epoch")


def _speed(plane: xr.Dataset, weights: Weights) -> xr.DataArray:
    return 1000 * dyn.population_mean(dyn.encoding_speed(plane), weights)


METRICS: dict[str, Metric] = {
    "auc": Metric("attack AUC at the end", "", lambda p, w: _last(dyn.auc(p, w)), 3),
    "tpr_1pct": Metric(
        "attack TPR at 1 % FPR, at the end", "%", lambda p, w: 100 * _last(dyn.tpr_at_fpr(p, 0.01, w)), 1
    ),
    "tpr_01pct": Metric(
        "attack TPR at 0.1 % FPR, at the end", "%", lambda p, w: 100 * _last(dyn.tpr_at_fpr(p, 0.001, w)), 1
    ),
    "advantage": Metric(
        "mean advantage at the end", "/1000", lambda p, w: 1000 * _last(dyn.population_mean(p.advantage, w)), 0
    ),
    "dynamic": Metric(
        "mean dynamic vulnerability",
        "/1000",
        lambda p, w: 1000 * dyn.population_mean(dyn.dynamic_vulnerability(p), w),
        0,
    ),
    "displacement": Metric(
        "centre-of-mass displacement", "/1000", _over_time(lambda p, w: _last(dyn.displacement(p, w))), 0
    ),
    "entropy_change": Metric(
        "spatial entropy change",
        "bits",
        _over_time(lambda p, w: dyn.spatial_entropy(p.isel(epoch=[0, -1]), w).diff("epoch").isel(epoch=0, drop=True)),
        2,
        "basic",
    ),
    "speed_mean": Metric(
        "encoding speed, mean", "/1000 per epoch", _over_time(lambda p, w: _speed(p, w).mean("epoch")), 1
    ),
    "speed_peak": Metric(
        "encoding speed, peak",
        "/1000 per epoch",
        _over_time(lambda p, w: _speed(p, w).max("epoch")),
        1,
        "basic",
        0.0,
    ),
    "speed_peak_epoch": Metric(
        "encoding speed, epoch of the peak", "epoch", _over_time(lambda p, w: _peak_epoch(_speed(p, w))), 0
    ),
    "vulnerable": Metric(
        "vulnerable at the end", "%", lambda p, w: 100 * _last(dyn.population_mean(dyn.vulnerable(p), w)), 1
    ),
    "transition_peak": Metric(
        "transition to vulnerable, peak",
        "% per checkpoint",
        _over_time(lambda p, w: 100 * dyn.transition_to_vulnerable(p, w).max("epoch")),
        1,
        "basic",
        0.0,
    ),
    "transition_peak_epoch": Metric(
        "transition to vulnerable, epoch of the peak",
        "epoch",
        _over_time(lambda p, w: _peak_epoch(dyn.transition_to_vulnerable(p, w))),
        0,
    ),
    "early_recall": Metric(
        "finally vulnerable that are so at 3/8 of training",
        "%",
        _over_time(lambda p, w: 100 * _early(p, w, "recall")),
        0,
    ),
    "early_precision": Metric(
        "vulnerable at 3/8 of training that stay so to the end",
        "%",
        _over_time(lambda p, w: 100 * _early(p, w, "precision")),
        0,
    ),
    "recall_epoch": Metric("epoch from which that recall stays above 70 %", "epoch", _over_time(epoch_of_recall), 0),
    "silhouette": Metric("silhouette of 3 clusters, at the end", "", lambda p, w: dyn.silhouette(p, w), 2),
}


def summarise(
    plane: xr.Dataset, *, draws: int = 1000, seed: int = 0, level: float = 0.95, only: Collection[str] = METRICS
) -> pd.DataFrame:
    """Every metric of ``METRICS`` with its bootstrap interval over samples.

    Decision thresholds are those of the plane; they are not set anew in each draw. Intervals say how sure the figure is
    for this population of models and for samples like these, not for another population of models.

    Args:
        plane: from :func:`dynmia.plane.vulnerability_plane`.
        draws: bootstrap draws.
        seed: of the draws.
        level: confidence.
        only: names of the metrics that are wanted.

    Returns:
        Index metric; columns label, value, low, high, unit.
    """
    bounded("draws", draws, 20)
    bounded("level", level, 0, 1, whole=False)
    plane = plane.assign(state=dyn.states(plane))  # once, not in every metric of every block
    wanted = {choose(name, METRICS, "metric"): METRICS[name] for name in only}
    rows, columns = {}, {name: [] for name in wanted}  # type: ignore[var-annotated]
    for start in range(0, draws, BLOCK):
        weights = bootstrap_weights(plane, min(BLOCK, draws - start), seed, start)
        for name, metric in wanted.items():
            if name != "silhouette" or start < CLUSTER_DRAWS:
                columns[name].append(np.atleast_1d(metric.of(plane, weights).values))
    for name, metric in wanted.items():
        value = float(metric.of(plane, None))
        drawn = np.concatenate(columns[name])
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (np.nan, np.nan)
        if metric.interval == "basic":
            low, high = 2 * value - high, 2 * value - low
        rows[name] = [metric.label, value, max(low, metric.floor), max(high, metric.floor), metric.unit]
    table = pd.DataFrame.from_dict(rows, "index", columns=["label", "value", "low", "high", "unit"])
    table.attrs["level"] = level
    return table.rename_axis("metric")


def bootstrap_weights(plane: xr.Dataset, draws: int = 200, seed: int = 0, block: int = 0) -> xr.DataArray:
    """How often each sample is drawn in each of ``draws`` bootstrap draws with replacement, (draw, sample)."""
    bounded("draws", draws, 1)
    bounded("seed", seed, 0)
    samples = plane.sizes["sample"]
    rng = np.random.default_rng([seed, block])
    weights = np.stack([np.bincount(rng.integers(0, samples, samples), minlength=samples) for _ in range(draws)])
    return xr.DataArray(weights.astype(float), dims=("draw", "sample"))


def null_summary(
    run: xr.Dataset,
    rule: str = "fpr@0.01",
    *,
    draws: int = 20,
    seed: int = 0,
    level: float = 0.95,
    planes: Iterable[xr.Dataset] | None = None,
    value: pd.Series | None = None,
    **options: Any,
) -> pd.DataFrame:
    """The no-signal level of every metric: redraw the keep mask under the same design and rescore the same phi.

    Args:
        run, rule, options: as for :func:`dynmia.plane.vulnerability_plane`.
        planes: the planes of the null if they are at hand (from :func:`null_planes`); None makes them.
        draws: permuted populations; ``low`` and ``high`` are quantiles over them (their extremes if they are few).
        value: of the population itself, by metric; with it comes the p-value (:func:`p_values`).

    Returns:
        Index metric; columns value (mean), low, high, and p if ``value`` is given.
    """
    planes = null_planes(run, rule, draws=draws, seed=seed, **options) if planes is None else planes
    drawn = null_table(planes)
    table = quantiles(drawn, level)
    return table if value is None else table.assign(p=p_values(value, drawn))


def null_table(planes: Iterable[xr.Dataset], only: Collection[str] = METRICS) -> pd.DataFrame:
    """Every metric (or those in ``only``) of every plane: one row a plane, one column a metric."""
    return pd.DataFrame([{name: float(METRICS[name].of(p, None)) for name in only} for p in planes])


def quantiles(drawn: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Mean and central interval of each column (its extremes if the rows are few), as value, low, high."""
    bounded("level", level, 0, 1, whole=False)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = (drawn.quantile(q, interpolation="lower" if q < 0.5 else "higher") for q in tails)
    return pd.DataFrame({"value": drawn.mean(), "low": low, "high": high}).rename_axis("metric")


def p_values(value: pd.Series, drawn: pd.DataFrame) -> pd.Series:
    """Two-sided permutation p-value of each metric (Phipson and Smyth 2010, eq. 2).

    The share of draws, the population itself counted as one, at least as far from the mean of them all as ``value``.
    Assumes that without a signal the keep mask and its redraws are exchangeable, as they are under the run's design;
    then p <= a has a probability of at most a. NaN where the population has no value.
    """
    count = 1 + drawn.notna().sum()
    centre = (value + drawn.sum()) / count
    far = (drawn - centre).abs() >= (value - centre).abs() - 1e-12
    return ((1 + far.where(drawn.notna()).sum()) / count).where(value.notna())


def null_planes(
    run: xr.Dataset, rule: str = "fpr@0.01", *, draws: int = 20, seed: int = 0, **options: Any
) -> Iterator[xr.Dataset]:
    """Planes of the same phi under keep masks that no model was trained with."""
    for keep in null_masks(run, draws, seed):
        yield vulnerability_plane(run, rule, keep=keep, **options)


def null_masks(run: xr.Dataset, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Keep masks (N, n) drawn anew under the design of ``run``."""
    bounded("draws of the permutation null", draws, 1)
    bounded("seed", seed, 0)
    models, samples = run.sizes["model"], run.sizes["sample"]
    design = study_of(run).design
    for draw in range(draws):
        yield draw_keep(models, samples, design, int(np.random.SeedSequence([seed, draw, 3]).generate_state(1)[0]))


def resolved(low: float, high: float, digits: int) -> int:
    """Decimals to print: ``digits``, but none beyond the first that half the interval resolves."""
    half = (high - low) / 2
    return int(np.clip(-np.floor(np.log10(half)), 0, digits)) if 0 < half < np.inf else digits


def decimals(name: str, row: pd.Series) -> int:
    """:func:`resolved` for a metric with its interval in ``row``."""
    return resolved(row.low, row.high, METRICS[name].digits)


def cell(value: float, low: float, high: float, digits: int = 1, least: int = 0) -> str:
    """``value [low, high]`` to what the interval resolves, at ``least``; ``undefined`` where there is no value."""
    if np.isnan(value):
        return "undefined"
    digits = max(least, resolved(low, high, digits))
    return "{} [{}, {}]".format(*(f"{round(v, digits) + 0.0:.{digits}f}" for v in (value, low, high)))


def band(low: float, high: float, p: float = np.nan, digits: int = 1) -> str:
    """A no-signal level as it is printed: ``low to high``, with the p-value of the figure beside it if there is one."""
    ends = " to ".join(f"{round(end, digits) + 0.0:.{digits}f}" for end in (low, high))
    return ends if np.isnan(p) else f"{ends} (p = {p:.2g})"


def rounded(table: pd.DataFrame, null: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table as it is printed: one column ``value [interval]``, and the no-signal level if given."""
    lines = []
    for name, row in table.iterrows():
        line = [row.label, row.unit, cell(row.value, row.low, row.high, METRICS[str(name)].digits)]
        if null is not None:
            noise = null.loc[name]
            line.append(band(noise.low, noise.high, noise.get("p", np.nan), decimals(str(name), row)))
        lines.append(line)
    columns = ["metric", "unit", f"value [{100 * table.attrs.get('level', 0.95):g} % interval]"] + (
        [] if null is None else ["no signal"]
    )
    return pd.DataFrame(lines, columns=columns).set_index("metric")

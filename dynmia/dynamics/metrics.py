"""Every printed metric of a population."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from . import cloud as dyn
from .cloud import Weights

EARLY = 150 / 400  # the share of training at which the paper finds over 70 % of the finally vulnerable


@dataclass(frozen=True)
class Metric:
    """One population figure: how to compute it, and what its interval must know (:mod:`dynmia.stats.intervals`).

    Attributes:
        unit: ``epoch`` for the date of an event, NaN if it never happens.
        of: the figure of a plane, by weights of its samples or as it is.
        digits: decimals in print.
        low, high: what is possible.
        biased: fewer samples give another value on average: entropies come out low and peaks high.
        trials: of a share, how many it is a share of.
    """

    label: str
    unit: str
    of: Callable[[xr.Dataset, Weights], xr.DataArray]
    digits: int = 1
    low: float = -np.inf
    high: float = np.inf
    biased: bool = False
    trials: Callable[[xr.Dataset], float] | None = None


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
    when = values.epoch[values.fillna(-1).argmax("epoch")].drop_vars("epoch")
    return when.where(values.max("epoch") > 0)


def _early(plane: xr.Dataset, weights: Weights, name: str) -> xr.DataArray:
    """At 3/8 of training, linear between checkpoints; NaN if the first is later."""
    when, epochs = EARLY * float(plane.epoch[-1]), plane.epoch.values
    after = int(np.searchsorted(epochs, when))
    share = dyn.early_identification(plane, weights)[name].isel(epoch=[max(after - 1, 0), after])
    if when < epochs[0]:
        return np.nan * _last(share)
    part = 0.0 if epochs[after] == when else (epochs[after] - when) / (epochs[after] - epochs[max(after - 1, 0)])
    return _last(share) if part == 0 else part * share.isel(epoch=0, drop=True) + (1 - part) * _last(share)


def epoch_of_recall(plane: xr.Dataset, weights: Weights = None, share: float = 0.7) -> xr.DataArray:
    """The first checkpoint from which the recall of the finally vulnerable stays at ``share``; NaN without any."""
    recall = dyn.early_identification(plane, weights).recall
    good = (recall >= share - 1e-9).isel(epoch=slice(None, None, -1))
    stays = good.cumprod("epoch").sum("epoch")  # checkpoints at the end that are all good
    when = recall.epoch[(recall.sizes["epoch"] - stays).clip(max=recall.sizes["epoch"] - 1)].drop_vars("epoch")
    return when.where(_last(recall).notnull())


def _samples(plane: xr.Dataset) -> float:
    return plane.sizes["sample"]


def _vulnerable(plane: xr.Dataset, share: float) -> float:
    """How many samples are vulnerable at the checkpoint nearest to a ``share`` of training."""
    now = dyn.vulnerable(plane).sel(epoch=share * float(plane.epoch[-1]), method="nearest")
    return float(now.sum())


def _speed(plane: xr.Dataset, weights: Weights) -> xr.DataArray:
    return _per_mille(dyn.encoding_speed(plane), weights)


def _per_mille(values: xr.DataArray, weights: Weights) -> xr.DataArray:
    return 1000 * dyn.population_mean(values, weights)


def _hits(level: float) -> Callable[[xr.Dataset, Weights], xr.DataArray]:
    return lambda plane, weights: 100 * _last(dyn.tpr_at_fpr(plane, level, weights))


def _entropy_change(plane: xr.Dataset, weights: Weights) -> xr.DataArray:
    return dyn.spatial_entropy(plane.isel(epoch=[0, -1]), weights).diff("epoch").isel(epoch=0, drop=True)


PLANE = 1000 * np.sqrt(2)  # the diagonal of the plane, in thousandths
ENTROPY = 2 * np.log2(11)  # of 11 x 11 cells

METRICS: dict[str, Metric] = {
    "auc": Metric("attack AUC at the end", "", lambda p, w: _last(dyn.auc(p, w)), 3, 0, 1),
    "tpr_1pct": Metric("attack TPR at 1 % FPR, at the end", "%", _hits(0.01), 1, 0, 100, trials=_samples),
    "tpr_01pct": Metric("attack TPR at 0.1 % FPR, at the end", "%", _hits(0.001), 1, 0, 100, trials=_samples),
    "advantage": Metric(
        "mean advantage at the end", "/1000", lambda p, w: _last(_per_mille(p.advantage, w)), 0, -1000, 1000
    ),
    "dynamic": Metric(
        "mean dynamic vulnerability", "/1000", lambda p, w: _per_mille(dyn.dynamic_vulnerability(p), w), 0, -1000, 1000
    ),
    "displacement": Metric(
        "centre-of-mass displacement", "/1000", _over_time(lambda p, w: _last(dyn.displacement(p, w))), 0, 0, PLANE
    ),
    "entropy_change": Metric(
        "spatial entropy change", "bits", _over_time(_entropy_change), 2, -ENTROPY, ENTROPY, biased=True
    ),
    "speed_mean": Metric(
        "encoding speed, mean", "/1000 per epoch", _over_time(lambda p, w: _speed(p, w).mean("epoch")), 1, 0, PLANE
    ),
    "speed_peak": Metric(
        "encoding speed, peak", "/1000 per epoch", _over_time(lambda p, w: _speed(p, w).max("epoch")), 1, 0, PLANE,
        biased=True,
    ),
    "speed_peak_epoch": Metric(
        "encoding speed, epoch of the peak", "epoch", _over_time(lambda p, w: _peak_epoch(_speed(p, w))), 0
    ),
    "vulnerable": Metric(
        "vulnerable at the end", "%", lambda p, w: 100 * _last(dyn.population_mean(dyn.vulnerable(p), w)), 1, 0, 100,
        trials=_samples,
    ),
    "transition_peak": Metric(
        "transition to vulnerable, peak", "% per checkpoint",
        _over_time(lambda p, w: 100 * dyn.transition_to_vulnerable(p, w).max("epoch")), 1, 0, 100, biased=True,
        trials=_samples,
    ),
    "transition_peak_epoch": Metric(
        "transition to vulnerable, epoch of the peak", "epoch",
        _over_time(lambda p, w: _peak_epoch(dyn.transition_to_vulnerable(p, w))), 0,
    ),
    "early_recall": Metric(
        "finally vulnerable that are so at 3/8 of training", "%",
        _over_time(lambda p, w: 100 * _early(p, w, "recall")), 0, 0, 100, trials=lambda p: _vulnerable(p, 1),
    ),
    "early_precision": Metric(
        "vulnerable at 3/8 of training that stay so to the end", "%",
        _over_time(lambda p, w: 100 * _early(p, w, "precision")), 0, 0, 100, trials=lambda p: _vulnerable(p, EARLY),
    ),
    "recall_epoch": Metric("epoch from which that recall stays above 70 %", "epoch", _over_time(epoch_of_recall), 0),
    "silhouette": Metric("silhouette of 3 clusters, at the end", "", lambda p, w: dyn.silhouette(p, w), 2, -1, 1),
}  # fmt: skip

"""Every printed metric of a population, with its bootstrap interval and its no-signal level."""

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
    return _per_mille(dyn.encoding_speed(plane), weights)


def _per_mille(values: xr.DataArray, weights: Weights) -> xr.DataArray:
    return 1000 * dyn.population_mean(values, weights)


def _hits(level: float) -> Callable[[xr.Dataset, Weights], xr.DataArray]:
    return lambda plane, weights: 100 * _last(dyn.tpr_at_fpr(plane, level, weights))


def _entropy_change(plane: xr.Dataset, weights: Weights) -> xr.DataArray:
    return dyn.spatial_entropy(plane.isel(epoch=[0, -1]), weights).diff("epoch").isel(epoch=0, drop=True)


METRICS: dict[str, Metric] = {
    "auc": Metric("attack AUC at the end", "", lambda p, w: _last(dyn.auc(p, w)), 3),
    "tpr_1pct": Metric("attack TPR at 1 % FPR, at the end", "%", _hits(0.01)),
    "tpr_01pct": Metric("attack TPR at 0.1 % FPR, at the end", "%", _hits(0.001)),
    "advantage": Metric("mean advantage at the end", "/1000", lambda p, w: _last(_per_mille(p.advantage, w)), 0),
    "dynamic": Metric(
        "mean dynamic vulnerability", "/1000", lambda p, w: _per_mille(dyn.dynamic_vulnerability(p), w), 0
    ),
    "displacement": Metric(
        "centre-of-mass displacement", "/1000", _over_time(lambda p, w: _last(dyn.displacement(p, w))), 0
    ),
    "entropy_change": Metric("spatial entropy change", "bits", _over_time(_entropy_change), 2, "basic"),
    "speed_mean": Metric(
        "encoding speed, mean", "/1000 per epoch", _over_time(lambda p, w: _speed(p, w).mean("epoch"))
    ),
    "speed_peak": Metric(
        "encoding speed, peak", "/1000 per epoch", _over_time(lambda p, w: _speed(p, w).max("epoch")), 1, "basic", 0.0
    ),
    "speed_peak_epoch": Metric(
        "encoding speed, epoch of the peak", "epoch", _over_time(lambda p, w: _peak_epoch(_speed(p, w))), 0
    ),
    "vulnerable": Metric(
        "vulnerable at the end", "%", lambda p, w: 100 * _last(dyn.population_mean(dyn.vulnerable(p), w))
    ),
    "transition_peak": Metric(
        "transition to vulnerable, peak", "% per checkpoint",
        _over_time(lambda p, w: 100 * dyn.transition_to_vulnerable(p, w).max("epoch")), 1, "basic", 0.0,
    ),
    "transition_peak_epoch": Metric(
        "transition to vulnerable, epoch of the peak", "epoch",
        _over_time(lambda p, w: _peak_epoch(dyn.transition_to_vulnerable(p, w))), 0,
    ),
    "early_recall": Metric(
        "finally vulnerable that are so at 3/8 of training", "%",
        _over_time(lambda p, w: 100 * _early(p, w, "recall")), 0,
    ),
    "early_precision": Metric(
        "vulnerable at 3/8 of training that stay so to the end", "%",
        _over_time(lambda p, w: 100 * _early(p, w, "precision")), 0,
    ),
    "recall_epoch": Metric("epoch from which that recall stays above 70 %", "epoch", _over_time(epoch_of_recall), 0),
    "silhouette": Metric("silhouette of 3 clusters, at the end", "", lambda p, w: dyn.silhouette(p, w), 2),
}  # fmt: skip

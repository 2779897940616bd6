"""Runs on the same pool compared at the same epoch, or at the same fit, with intervals that pair the samples.

A run that fits more slowly leaks less at an equal epoch even if it leaks as much for what it has learnt. So every
figure is also read at the moment when the mean accuracy over the models first reaches a level that all runs reach.
Draw 0 of every result is the estimate itself, the others are bootstrap draws over samples that all runs share, so that
differences and ratios of runs are plain arithmetic; :func:`estimate` turns what comes out into a value and interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from .errors import UserError, choose
from .summary import METRICS, bootstrap_weights

Planes = Mapping[str, xr.Dataset]
STATE = ("auc", "advantage", "displacement", "entropy_change", "vulnerable")  # need the first and last checkpoint only
MATCHINGS = {
    "epoch": "at the last epoch",
    "train": "at equal train accuracy",
    "test": "at equal held-out accuracy",
    "best": "each at its best held-out accuracy",
}


def metrics_of(planes: Planes, names: Sequence[str], draws: int = 1000, seed: int = 0) -> xr.Dataset:
    """Metrics of ``summary.METRICS`` of whole runs, dims (run, draw); a UserError if they are not on the same pool."""
    weights = _weights(planes, draws, seed)
    rows = [_drawn(plane, names, weights) for plane in planes.values()]
    return xr.concat(rows, pd.Index(list(planes), name="run"))


def metrics_at(planes: Planes, epochs: Mapping[str, float], draws: int = 1000, seed: int = 0) -> xr.Dataset:
    """The metrics of ``STATE`` had each run stopped at its own epoch, linear between checkpoints; dims (run, draw)."""
    weights, rows = _weights(planes, draws, seed), []
    for run, plane in planes.items():
        after = int(np.clip(np.searchsorted(plane.epoch, epochs[run]), 1, plane.sizes["epoch"] - 1))
        start, end = plane.epoch.values[[after - 1, after]]
        share = (epochs[run] - start) / (end - start)
        before, now = (_drawn(plane.isel(epoch=[0, t]), STATE, weights) for t in (after - 1, after))
        rows.append((1 - share) * before + share * now)
    return xr.concat(rows, pd.Index(list(planes), name="run"))


def metric_curves(planes: Planes, draws: int = 200, seed: int = 0) -> dict[str, xr.Dataset]:
    """The metrics of ``STATE`` had training stopped at each checkpoint: a data set (epoch, draw) a run."""
    weights, curves = _weights(planes, draws, seed), {}
    for run, plane in planes.items():
        stops = [_drawn(plane.isel(epoch=[0, t]), STATE, weights) for t in range(plane.sizes["epoch"])]
        curves[run] = xr.concat(stops, plane.epoch)
    return curves


def envelope(plane: xr.Dataset, accuracy: str) -> xr.DataArray:
    """The highest mean accuracy over the models so far, over epoch; ``accuracy`` is train or test."""
    mean = plane[f"{choose(accuracy, ['train', 'test'], 'accuracy')}_accuracy"].mean("model")
    return mean.copy(data=np.maximum.accumulate(mean.values))


def common_level(planes: Planes, accuracy: str, share: float = 0.95) -> float:
    """The accuracy at ``share`` of the rise that all runs go through: from the highest start to the lowest top.

    Short of all of the rise, because where accuracy levels off the moment of the last bit of it is a matter of noise.
    """
    curves = [envelope(plane, accuracy) for plane in planes.values()]
    low, high = max(float(curve[0]) for curve in curves), min(float(curve[-1]) for curve in curves)
    if not low < high:
        raise UserError(f"no {accuracy} accuracy that all runs pass through: train the slowest for longer.")
    return low + share * (high - low)


def epoch_at(plane: xr.Dataset, accuracy: str, level: float) -> float:
    """When the mean accuracy first reaches ``level``, linear between checkpoints; NaN outside what the run reaches."""
    curve = envelope(plane, accuracy).values
    if not curve[0] <= level <= curve[-1]:
        return np.nan
    after = max(1, int(np.searchsorted(curve, level)))
    return float(np.interp(level, curve[after - 1 : after + 1], plane.epoch[after - 1 : after + 1]))


def matched_epochs(planes: Planes, matching: str, share: float = 0.95) -> dict[str, float]:
    """The epoch at which each run is read under a matching of ``MATCHINGS``."""
    if choose(matching, MATCHINGS, "matching") == "epoch":
        return dict.fromkeys(planes, float(min(plane.epoch[-1] for plane in planes.values())))
    if matching == "best":
        return {run: float(plane.test_accuracy.mean("model").idxmax("epoch")) for run, plane in planes.items()}
    level = common_level(planes, matching, share)
    return {run: epoch_at(plane, matching, level) for run, plane in planes.items()}


def ratio(above: xr.DataArray, below: xr.DataArray) -> xr.DataArray:
    """Ratio of two runs, draw by draw: infinite where ``below`` is not positive, NaN if its estimate is not."""
    return (above / below.where(below > 0)).fillna(np.inf if float(below[0]) > 0 else np.nan)


def estimate(drawn: xr.DataArray, level: float = 0.95) -> pd.Series:
    """Value, low and high of a metric, difference or ratio (draw): draw 0, and quantiles of the others."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(drawn[1:], tails, method="nearest")  # between draws nothing: ratios may be infinite
    return pd.Series({"value": float(drawn[0]), "low": low, "high": high})


def _weights(planes: Planes, draws: int, seed: int) -> xr.DataArray:
    """(draw, sample): ones, then bootstrap weights, the same for all runs."""
    first, *others = planes.values()
    if any(not np.array_equal(first.sample, plane.sample) for plane in others):
        raise UserError(f"{', '.join(planes)} are not on the same pool: their samples cannot be paired.")
    ones = xr.DataArray(np.ones((1, first.sizes["sample"])), dims=("draw", "sample"))
    return xr.concat([ones, bootstrap_weights(first, draws, seed)], "draw") if draws else ones


def _drawn(plane: xr.Dataset, names: Sequence[str], weights: xr.DataArray) -> xr.Dataset:
    """Metrics over draws; where the interval is basic, reflected about the estimate to undo the draws' bias."""
    values = {name: METRICS[choose(name, METRICS, "metric")].of(plane, weights) for name in names}
    for name in names:
        if METRICS[name].interval == "basic":
            values[name] = (2 * values[name][0] - values[name]).clip(METRICS[name].floor)
    return xr.Dataset(values)

"""Runs on the same pool compared at the same epoch, or at the same fit, with intervals that pair the samples.

A run that fits more slowly leaks less at an equal epoch even if it leaks as much for what it has learnt. So every
figure is also read at the moment when the mean accuracy over the models first reaches a level that all runs reach.
Draw 0 of every result is the estimate itself, the others are bootstrap draws over samples that all runs share, so that
differences and ratios of runs are plain arithmetic; :func:`estimate` turns what comes out into a value and interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from . import dynamics as dyn
from .errors import UserError, choose
from .summary import METRICS, bootstrap_weights

Planes = Mapping[str, xr.Dataset]
Nulls = Mapping[str, Sequence[xr.Dataset]]  # for each run planes of its permutation null
STATE: dict[str, Callable[..., xr.DataArray]] = {  # metrics of summary.METRICS that a moment has, over epoch
    "auc": dyn.auc,
    "advantage": lambda plane, weights: 1000 * dyn.population_mean(plane.advantage, weights),
    "displacement": dyn.displacement,
    "entropy_change": lambda plane, weights: (h := dyn.spatial_entropy(plane, weights)) - h.isel(epoch=0),
    "vulnerable": lambda plane, weights: 100 * dyn.population_mean(dyn.vulnerable(plane), weights),
}
MATCHINGS = {
    "epoch": "at the last epoch",
    "train": "at equal train accuracy",
    "test": "at equal held-out accuracy",
    "best": "each at its best held-out accuracy",
}


def metrics_of(planes: Planes, names: Sequence[str], draws: int = 1000, seed: int = 0) -> xr.Dataset:
    """Metrics of ``summary.METRICS`` of whole runs, dims (run, draw); a UserError if they are not on the same pool."""
    weights = _weights(planes, draws, seed)
    rows = [
        xr.Dataset({name: _unbiased(name, METRICS[name].of(plane, weights)) for name in names})
        for plane in planes.values()
    ]
    return xr.concat(rows, pd.Index(list(planes), name="run"))


def state_curves(planes: Planes, draws: int = 1000) -> dict[str, xr.Dataset]:
    """The metrics of ``STATE`` had training stopped at each checkpoint: for each run a data set (epoch, draw)."""
    weights, curves = _weights(planes, draws), {}
    for run, plane in planes.items():
        plane = plane.assign(state=dyn.states(plane))
        values = {name: _unbiased(name, of(plane, weights)) for name, of in STATE.items()}
        curves[run] = xr.Dataset(values).transpose("epoch", "draw")
    return curves


def at_epochs(curves: Planes, epochs: Mapping[str, float]) -> xr.Dataset:
    """The curves of the runs in ``epochs``, each at its own epoch, linear between checkpoints: dims (run, draw)."""
    rows = [curves[run].interp(epoch=epoch).drop_vars("epoch") for run, epoch in epochs.items()]
    return xr.concat(rows, pd.Index(list(epochs), name="run"))


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
    if not curve[0] - 1e-9 <= level <= curve[-1] + 1e-9:  # rounding of the means
        return np.nan
    after = max(1, int(np.searchsorted(curve, level - 1e-9)))
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


def estimate(drawn: xr.DataArray) -> pd.Series:
    """Value, low and high of a metric, difference or ratio (draw): draw 0, and quantiles of the others."""
    low, high = np.quantile(
        drawn[1:], [0.025, 0.975], method="nearest"
    )  # between draws nothing: ratios may be infinite
    return pd.Series({"value": float(drawn[0]), "low": low, "high": high})


def _weights(planes: Planes, draws: int, seed: int = 0) -> xr.DataArray:
    """(draw, sample): ones, then bootstrap weights, the same for all runs."""
    first, *others = planes.values()
    if any(not np.array_equal(first.sample, plane.sample) for plane in others):
        raise UserError(f"{', '.join(planes)} are not on the same pool: their samples cannot be paired.")
    ones = xr.DataArray(np.ones((1, first.sizes["sample"])), dims=("draw", "sample"))
    return xr.concat([ones, bootstrap_weights(first, draws, seed)], "draw") if draws else ones


def _unbiased(name: str, drawn: xr.DataArray) -> xr.DataArray:
    """Where a metric's interval is basic, its draws reflected about the estimate, to undo their bias."""
    metric = METRICS[name]
    return (2 * drawn.isel(draw=0) - drawn).clip(metric.floor) if metric.interval == "basic" else drawn

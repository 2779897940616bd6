"""Runs on the same pool compared at the same epoch, or at the same fit, with intervals that pair what runs share.

A run that fits more slowly leaks less at an equal epoch even if it leaks as much for what it has learnt. So every
figure is also read at the moment when the mean accuracy over the models first reaches a level that all runs reach.
Draw 0 of every result is the run itself; the others are its halves of models and then its halves of samples
(:mod:`dynmia.stats.intervals`), taken alike from all runs, so that differences are plain arithmetic. :func:`estimate`
turns what comes out into a value with its interval over models and samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..attack.plane import planes_of_halves, vulnerability_plane
from ..attack.scoring import Scoring
from ..dynamics.metrics import METRICS
from ..errors import UserError, choose
from . import intervals

Planes = Mapping[str, xr.Dataset]
Halved = Mapping[str, Sequence[xr.Dataset]]  # for each run what with_halves returns, or its plane alone
Nulls = Mapping[str, Sequence[xr.Dataset]]  # for each run planes of its permutation null


def with_halves(runs: Planes, scoring: Scoring | str, draws: int = 20) -> dict[str, list[xr.Dataset]]:
    """For each run its plane, those of ``draws`` halves of its models, and those of ``draws`` halves of its samples."""
    first, *others = runs.values()
    if any(not np.array_equal(first.sample, run.sample) for run in others):
        raise UserError(f"{', '.join(runs)} are not on the same pool: their samples cannot be paired.")

    def planes(run: xr.Dataset) -> Iterator[xr.Dataset]:
        yield vulnerability_plane(run, Scoring.of(scoring).for_models(run.sizes["model"]))
        for dim in ("model", "sample"):
            yield from (plane for [plane] in planes_of_halves(run, [scoring], dim, draws))

    return {name: [plane.drop_vars("hits") for plane in planes(run)] for name, run in runs.items()}


def metrics_of(planes: Halved, names: Sequence[str]) -> xr.Dataset:
    """Metrics of whole runs, dims (run, draw)."""
    rows = {name: [[METRICS[name].of(part, None) for part in parts] for parts in planes.values()] for name in names}
    figures = {name: (("run", "draw"), np.array(row, float)) for name, row in rows.items()}
    return xr.Dataset(figures, {"run": list(planes)})


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


def estimate(
    drawn: xr.DataArray, metric: str = "", level: float = 0.95, bounds: tuple[float, float] | None = None
) -> pd.Series:
    """A metric, or any figure, of a run and its halves (draw): :func:`dynmia.stats.intervals.estimate`."""
    value, halved = _parts(drawn)
    return pd.Series(intervals.estimate(value, halved, {}, metric, level, bounds))


def contrast(
    first: xr.DataArray, second: xr.DataArray, metric: str = "", how: str = "ratio", level: float = 0.95
) -> pd.Series:
    """The first figure (draw) over the second, or less it: :func:`dynmia.stats.intervals.contrast`."""
    value, halved = _parts(xr.concat([first, second], "run"))
    return pd.Series(intervals.contrast(value, halved, {}, metric, how, level=level))


def _parts(drawn: xr.DataArray) -> tuple[Any, dict[str, np.ndarray]]:
    """Figures of whole runs, and of their halves along each dimension (..., draw)."""
    values, half = drawn.transpose(..., "draw").values, drawn.sizes["draw"] // 2
    return values[..., 0], {"model": values[..., 1 : half + 1], "sample": values[..., half + 1 :]}

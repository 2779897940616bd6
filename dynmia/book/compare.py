"""Figures that set runs beside each other: curves over epochs and paths over the plane, one colour a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from .. import registry
from ..dynamics import cloud as dyn
from ..stats.matching import Nulls, Planes
from ..stats.resample import bootstrap_weights
from ..store.run import study_of
from .plots import COLOURS, INK, NULL, STYLE, band

DATASETS = {name: known.title for name, known in registry.DATASETS.items()}
MODELS = {"cnn": "shallow CNN", "deep-cnn": "deeper CNN", "mlp": "MLP", "cnn-dropout": "shallow CNN, dropout"}
OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW", "sam-sgd": "SAM", "sam-adamw": "SAM, AdamW"}
FACTORS = ["dataset", "model", "optimizer", "rho", "pool_size", "seed"]
MARKERS = "osD^vPX*"


def labels(planes: Planes) -> dict[str, str]:
    """What tells each run or plane from the others, in words: only the factors in which they differ."""
    studies = {name: study_of(plane) for name, plane in planes.items()}
    differ = [field for field in FACTORS if len({getattr(study, field) for study in studies.values()}) > 1]
    words = {}
    for name, study in studies.items():
        rho = f"rho {study.rho:g}" if study.optimizer.startswith("sam") else ""
        text = {
            "dataset": DATASETS.get(study.dataset, study.title), "model": MODELS.get(study.model, study.model.upper()),
            "optimizer": OPTIMIZERS[study.optimizer], "rho": rho, "pool_size": f"pool {planes[name].sizes['sample']:,}",
            "seed": f"seed {study.seed}",
        }  # fmt: skip
        words[name] = ", ".join(text[field] for field in differ or FACTORS[:1] if text[field])
    return words


def colours(planes: Planes) -> dict[str, str]:
    """The colour of each run: that of its data set if no two share one, else a dark to light scale in order."""
    sets = [study_of(plane).dataset for plane in planes.values()]
    if len(set(sets)) == len(sets):
        return {name: COLOURS.get(data, INK) for name, data in zip(planes, sets)}
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.88, len(sets)))
    return {name: to_hex(shade) for name, shade in zip(planes, shades)}


def grid(
    count: int, columns: int, each: tuple[float, float], room: tuple[float, float] = (0, 0), **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of ``count`` panels in rows of ``columns``, and its axes; ``each`` and ``room`` are inches."""
    rows = -(-count // columns)
    size = columns * each[0] + room[0], rows * each[1] + room[1]
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes


def shaded(axis: Axes, x: Any, value: Any, interval: Any, alpha: float = 0.2, **look: Any) -> None:
    """A line over its interval (low, high), a band of the same colour."""
    axis.fill_between(x, *interval, color=look["color"], alpha=alpha, lw=0)
    axis.plot(x, value, **look)


def errors(table: pd.DataFrame) -> np.ndarray:
    """Distances from value to low and high, (2, n), as error bars take them; never negative."""
    return np.maximum([table.value - table.low, table.high - table.value], 0)


@rc_context(STYLE)
def curves(
    planes: Planes, of: Callable[..., xr.DataArray], label: str, nulls: Nulls | None = None, axis: Axes | None = None
) -> Figure:
    """A population figure over epochs for each run, with its bootstrap band.

    Args:
        planes: by name (:func:`dynmia.attack.plane.vulnerability_plane`).
        of: ``of(plane, weights)`` gives the figure over epochs, as the functions of :mod:`dynmia.dynamics.cloud` do.
        label: of the y axis, with its unit.
        nulls: for each name, planes of its permutation null; their whole range is one grey band.
        axis: draw into this one.
    """
    words, shades = labels(planes), colours(planes)
    if axis is None:
        _, axis = plt.subplots(figsize=(5.8, 3.6))
    for number, (name, plane) in enumerate(planes.items()):
        value = of(plane, None)
        low, high = band(of(plane, bootstrap_weights(plane)))
        if of is dyn.spatial_entropy:  # resampled entropies come out low: reflect (the basic bootstrap)
            low, high = 2 * value.values - high, 2 * value.values - low
        look = dict[str, Any](color=shades[name], marker=MARKERS[number % len(MARKERS)], label=words[name])
        shaded(axis, value.epoch, value, (low, high), ms=3, lw=1.3, **look)
    values = [of(noise, None) for noise in itertools.chain(*(nulls or {}).values())]
    if values:
        noise = xr.concat(values, "draw", join="outer")
        low, high = noise.min("draw"), noise.max("draw")
        axis.fill_between(noise.epoch, low, high, color=NULL, alpha=0.5, lw=0, label="no signal")
    axis.set(xlabel="epoch", ylabel=label)
    axis.legend()
    return axis.get_figure()  # type: ignore[return-value]


@rc_context(STYLE)
def paths(planes: Planes, nulls: Nulls | None = None) -> Figure:
    """The paths of the centres of mass on one plane, with 95 % crosses at the last checkpoint."""
    words, shades = labels(planes), colours(planes)
    figure, axis = plt.subplots(figsize=(5.8, 4.2))
    axis.axline((0, 0), slope=1, color=INK, lw=0.8, ls=":", label="chance")
    for noise in itertools.chain(*(nulls or {}).values()):
        centre = dyn.centre_of_mass(noise)
        axis.plot(centre.fpr, centre.tpr, color=NULL, lw=0.6)
    centres = {name: dyn.centre_of_mass(plane) for name, plane in planes.items()}
    for number, (name, plane) in enumerate(planes.items()):
        drawn = dyn.centre_of_mass(plane.isel(epoch=[-1]), bootstrap_weights(plane))
        x, y = centres[name].fpr.values, centres[name].tpr.values
        axis.plot(x, y, color=shades[name], marker=MARKERS[number % len(MARKERS)], ms=3, lw=1, label=words[name])
        axis.errorbar(
            x[-1:], y[-1:], xerr=abs(band(drawn.fpr) - x[-1]), yerr=abs(band(drawn.tpr) - y[-1]),
            color=shades[name], lw=1.2, capsize=2,
        )  # fmt: skip
    rates = np.concatenate([centre.fpr for centre in centres.values()])
    low, high = rates.min(), rates.max()
    room = max(high - low, 0.01)
    axis.set(xlabel="mean FPR", ylabel="mean TPR", xlim=(max(0.0, low - 0.7 * room), high + 0.7 * room))
    axis.legend()
    return figure

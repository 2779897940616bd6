"""Figures that set runs beside each other: curves over epochs and paths over the plane, one colour a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import dynamics as dyn
from .plots import COLOURS, INK, NULL, STYLE, band
from .runs import study_of
from .summary import bootstrap_weights

DATASETS = {
    "digits": "digits", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cinic10": "CINIC-10"
}  # fmt: skip
MODELS = {"cnn": "shallow CNN", "deep-cnn": "deeper CNN", "mlp": "MLP", "cnn-dropout": "shallow CNN, dropout"}
OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW", "sam-sgd": "SAM", "sam-adamw": "SAM, AdamW"}
FACTORS = ["dataset", "model", "optimizer", "rho", "pool_size", "seed"]
MARKERS = "osD^vPX*"


def labels(planes: Mapping[str, xr.Dataset]) -> dict[str, str]:
    """What tells each run or plane from the others, in words: only the factors in which they differ."""
    studies = {name: study_of(plane) for name, plane in planes.items()}
    differ = [field for field in FACTORS if len({getattr(study, field) for study in studies.values()}) > 1] or [
        "dataset"
    ]
    words = {}
    for name, study in studies.items():
        rho = f"rho {study.rho:g}" if study.optimizer.startswith("sam") else ""
        text = {
            "dataset": DATASETS.get(study.dataset, study.title), "model": MODELS.get(study.model, study.model.upper()),
            "optimizer": OPTIMIZERS[study.optimizer], "rho": rho, "pool_size": f"pool {planes[name].sizes['sample']:,}",
            "seed": f"seed {study.seed}",
        }  # fmt: skip
        words[name] = ", ".join(text[field] for field in differ if text[field])
    return words


def colours(planes: Mapping[str, xr.Dataset]) -> dict[str, str]:
    """The colour of each run: that of its data set if no two share one, else a dark to light scale in order."""
    sets = [study_of(plane).dataset for plane in planes.values()]
    if len(set(sets)) == len(sets):
        return {name: COLOURS.get(data, INK) for name, data in zip(planes, sets)}
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.88, len(sets)))
    return {name: "#" + "".join(f"{round(255 * v):02x}" for v in shade[:3]) for name, shade in zip(planes, shades)}


def curves(
    planes: Mapping[str, xr.Dataset],
    of: Callable[..., xr.DataArray],
    label: str,
    nulls: Mapping[str, Sequence[xr.Dataset]] | None = None,
    axis: Axes | None = None,
) -> Figure:
    """A population figure over epochs for each run, with its bootstrap band.

    Args:
        planes: by name (:func:`dynmia.plane.vulnerability_plane`).
        of: ``of(plane, weights)`` gives the figure over epochs, as the functions of :mod:`dynmia.dynamics` do.
        label: of the y axis, with its unit.
        nulls: for each name, planes of its permutation null; their whole range is one grey band.
        axis: draw into this one.
    """
    words, shades = labels(planes), colours(planes)
    with plt.rc_context(STYLE):
        if axis is None:
            _, axis = plt.subplots(figsize=(5.8, 3.6))
        for number, (name, plane) in enumerate(planes.items()):
            value = of(plane, None)
            low, high = band(of(plane, bootstrap_weights(plane)))
            if of is dyn.spatial_entropy:  # resampled entropies come out low: reflect (the basic bootstrap)
                low, high = 2 * value.values - high, 2 * value.values - low
            axis.fill_between(value.epoch, low, high, color=shades[name], alpha=0.2, lw=0)
            mark = MARKERS[number % len(MARKERS)]
            axis.plot(value.epoch, value, color=shades[name], marker=mark, ms=3, lw=1.3, label=words[name])
        values = [of(noise, None) for several in (nulls or {}).values() for noise in several]
        if values:
            joined = xr.concat(values, "draw", join="outer")
            axis.fill_between(
                joined.epoch, joined.min("draw"), joined.max("draw"), color=NULL, alpha=0.5, lw=0, label="no signal"
            )
        axis.set(xlabel="epoch", ylabel=label)
        axis.legend()
        return axis.get_figure()  # type: ignore[return-value]


def paths(planes: Mapping[str, xr.Dataset], nulls: Mapping[str, Sequence[xr.Dataset]] | None = None) -> Figure:
    """The paths of the centres of mass on one plane, with 95 % crosses at the last checkpoint."""
    words, shades = labels(planes), colours(planes)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.8, 4.2))
        axis.axline((0, 0), slope=1, color=INK, lw=0.8, ls=":", label="chance")
        for several in (nulls or {}).values():
            for noise in several:
                centre = dyn.centre_of_mass(noise)
                axis.plot(centre.fpr, centre.tpr, color=NULL, lw=0.6)
        for number, (name, plane) in enumerate(planes.items()):
            centre = dyn.centre_of_mass(plane)
            drawn = dyn.centre_of_mass(plane.isel(epoch=[-1]), bootstrap_weights(plane))
            x, y = centre.fpr.values, centre.tpr.values
            axis.plot(x, y, color=shades[name], marker=MARKERS[number % len(MARKERS)], ms=3, lw=1, label=words[name])
            axis.errorbar(
                x[-1:], y[-1:], xerr=abs(band(drawn.fpr) - x[-1]), yerr=abs(band(drawn.tpr) - y[-1]),
                color=shades[name], lw=1.2, capsize=2,
            )  # fmt: skip
        spans = [dyn.centre_of_mass(plane) for plane in planes.values()]
        low, high = (float(f([float(f(c.fpr)) for c in spans])) for f in (np.min, np.max))
        room = max(high - low, 0.01)
        axis.set(xlabel="mean FPR", ylabel="mean TPR", xlim=(max(0.0, low - 0.7 * room), high + 0.7 * room))
        axis.legend()
    return figure

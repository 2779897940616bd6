"""One figure style for the whole study: colour-blind safe, labelled with units, the same colour for the same thing.

Figures of one population and of several; intervals are 95 % bootstrap over samples, and grey is the no-signal level
where the planes of a permutation null are given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure

from .. import registry
from ..attack.plane import rate_interval
from ..dynamics import cloud as dyn
from ..dynamics.metrics import METRICS
from ..stats.matching import Nulls, Planes
from ..stats.resample import bootstrap_weights
from ..store.run import study_of

COLOURS = {name: known.colour for name, known in registry.DATASETS.items()}  # the same in every chapter
OTHER, NULL, INK = "#E69F00", "#9A9A9A", "#333333"
STYLE: Any = {
    "figure.constrained_layout.use": True, "figure.dpi": 100, "savefig.dpi": 200, "font.size": 10, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.25, "axes.axisbelow": True,
    "axes.titlesize": 10, "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip
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


def looks(planes: Planes) -> dict[str, dict[str, Any]]:
    """Colour (of the data set if no two runs share one, else on a dark to light scale), marker and label of each."""
    words, sets = labels(planes), [study_of(plane).dataset for plane in planes.values()]
    shades = [COLOURS.get(data, INK) for data in sets]
    if len(set(sets)) < len(sets):
        shades = [to_hex(shade) for shade in plt.get_cmap("viridis")(np.linspace(0, 0.88, len(sets)))]
    return {
        name: {"color": shade, "marker": marker, "label": words[name]}
        for name, shade, marker in zip(planes, shades, itertools.cycle(MARKERS))
    }


def colour_of(plane: xr.Dataset) -> str:
    """The colour of the plane's data set."""
    return COLOURS.get(plane.attrs["title"].split("-")[0], OTHER)


def titled(metric: str, gap: str = " ") -> str:
    """Label of a metric of ``METRICS``, and after ``gap`` its unit if it has one."""
    label, unit = METRICS[metric].label, METRICS[metric].unit
    return f"{label}{gap}({unit})" if unit else label


@contextmanager
def panels(
    rows: int, columns: int, size: tuple[float, float], *, count: int | None = None, grid: bool = True, **options: Any
) -> Iterator[Any]:
    """A figure and its axes, always (rows, columns), to be drawn in within the ``with``; size in inches.

    Args: ``count`` of panels that are shown (default: all); whether they have a ``grid``; options of ``plt.subplots``.
    """
    with plt.rc_context(STYLE | {"axes.grid": grid}):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
        for axis in axes.flat[rows * columns if count is None else count :]:
            axis.set_visible(False)
        yield figure, axes


def shaded(axis: Axes, x: Any, value: Any, interval: Any, alpha: float = 0.2, named: str = "", **look: Any) -> None:
    """A line over its interval (low, high), a band of the same colour that is ``named`` so in the legend, if at all."""
    axis.fill_between(x, *interval, color=look["color"], alpha=alpha, lw=0, label=named)
    axis.plot(x, value, **look)


def bars(table: pd.DataFrame) -> np.ndarray:
    """Distances from value to low and high, (2, n), as error bars take them; never negative."""
    return np.maximum([table.value - table.low, table.high - table.value], 0)


def limits(values: xr.DataArray) -> np.ndarray:
    """The 95 % percentile limits of ``values`` (draw, epoch), as (2, epoch); a share of nothing is NaN and left out."""
    return pd.DataFrame(values.transpose("draw", "epoch").values).quantile([0.025, 0.975]).to_numpy()


def legend_outside(figure: Any, axis: Axes, where: str = "upper center", columns: int = 0) -> None:
    """What ``axis`` shows, beside or above all panels; in one line if above, or in so many ``columns``."""
    handles, names = axis.get_legend_handles_labels()
    columns = columns or (len(names) if where == "upper center" else 1)
    figure.legend(handles, names, loc=f"outside {where}", ncols=columns)


def log_axis(axis: Any, ticks: Sequence[float] | np.ndarray, names: Sequence[str] | None = None) -> None:
    """A logarithmic x-axis with these ticks only."""
    axis.set_xscale("log")
    axis.set_xticks(ticks, ticks if names is None else names)
    axis.minorticks_off()


def frame(axis: Axes) -> None:
    """An empty plane: the chance diagonal and the vulnerable corner."""
    axis.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
    axis.add_patch(plt.Rectangle((0, 2 / 3), 1 / 3, 1 / 3, fill=False, ec=COLOURS["cifar10"], lw=1.2, ls="--"))
    axis.set(xlabel="FPR (share of out-models)", ylabel="TPR (share of in-models)")
    axis.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")


def cloud(axis: Axes, plane: xr.Dataset, epoch: int) -> Any:
    """A histogram of the cloud on the lattice of tenths, on a log scale that all checkpoints share."""
    now, edges = plane.sel(epoch=epoch), np.linspace(-0.05, 1.05, 12)
    norm = LogNorm(1, plane.sizes["sample"])
    *_, image = axis.hist2d(now.fpr.values, now.tpr.values, edges, cmin=1, cmap="viridis", norm=norm)
    frame(axis)
    axis.set_title(f"epoch {epoch}")
    return image


def curve(axis: Axes, plane: xr.Dataset, of: Callable[..., xr.DataArray], **look: Any) -> None:
    """The population figure ``of(plane, weights)`` over epochs with its bootstrap band; ``look`` as of ``shaded``."""
    value = of(plane, None)
    low, high = limits(of(plane, bootstrap_weights(plane)))
    if of is dyn.spatial_entropy:  # resampled entropies come out low: reflect (the basic bootstrap)
        low, high = 2 * value.values - high, 2 * value.values - low
    shaded(axis, value.epoch, value, (low, high), ms=3, **look)


def noise_band(axis: Axes, nulls: Iterable[xr.Dataset], of: Callable[..., xr.DataArray]) -> None:
    """The whole range of a population figure over planes of a permutation null, as one grey band."""
    values = [of(plane, None) for plane in nulls]
    if values:
        noise = xr.concat(values, "draw", join="outer")
        low, high = noise.min("draw"), noise.max("draw")
        axis.fill_between(noise.epoch, low, high, color=NULL, alpha=0.5, lw=0, label="no signal")


def noise_paths(axis: Axes, nulls: Iterable[xr.Dataset], label: str | None = None) -> None:
    """The chance diagonal and the paths of the centres of mass of planes of a permutation null."""
    axis.axline((0, 0), slope=1, color=INK, lw=0.8, ls=":", label="chance")
    for number, plane in enumerate(nulls):
        centre = dyn.centre_of_mass(plane)
        axis.plot(centre.fpr, centre.tpr, color=NULL, lw=0.6, label=None if number else label)


def trajectories(plane: xr.Dataset, samples: Sequence[int] | None = None) -> Figure:
    """Paths of single samples over the plane, coloured by epoch, each with the Wilson interval of its last state.

    Args:
        samples: positions along the sample dimension; default six, from the most to the least dynamically vulnerable.
    """
    if samples is None:
        order = np.argsort(dyn.dynamic_vulnerability(plane).values)[::-1]
        samples = order[np.linspace(0, len(order) - 1, 6).astype(int)].tolist()
    columns = min(3, len(samples))
    rows = -(-len(samples) // columns)
    size = 3.0 * columns + 0.8, 2.9 * rows
    with panels(rows, columns, size, count=len(samples), sharex=True, sharey=True) as (figure, axes):
        for axis, sample in zip(axes.flat, samples):
            path = plane.isel(sample=sample)
            last = path.isel(epoch=-1)
            frame(axis)
            axis.plot(path.fpr, path.tpr, color=NULL, lw=0.8, zorder=1)
            points = axis.scatter(path.fpr, path.tpr, c=plane.epoch.values, cmap="viridis", s=22, zorder=2)
            fpr, tpr = rate_interval(last.fp, last.n_out), rate_interval(last.tp, last.n_in)
            axis.plot([fpr.low, fpr.high], [last.tpr, last.tpr], color=INK, lw=1.2, zorder=3)
            axis.plot([last.fpr, last.fpr], [tpr.low, tpr.high], color=INK, lw=1.2, zorder=3)
            axis.set_title(f"sample {int(path.sample)}, class {int(path.label)}")
            axis.label_outer()
        figure.colorbar(points, ax=axes, label="epoch", shrink=0.8)
    return figure


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
    if axis is None:
        with panels(1, 1, (5.8, 3.6)) as (_, [[axis]]):
            return curves(planes, of, label, nulls, axis)
    for name, look in looks(planes).items():
        curve(axis, planes[name], of, lw=1.3, **look)
    noise_band(axis, itertools.chain(*(nulls or {}).values()), of)
    axis.set(xlabel="epoch", ylabel=label)
    axis.legend()
    return axis.get_figure()  # type: ignore[return-value]


def paths(planes: Planes, nulls: Nulls | None = None) -> Figure:
    """The paths of the centres of mass on one plane, with 95 % crosses at the last checkpoint."""
    with panels(1, 1, (5.8, 4.2)) as (figure, [[axis]]):
        noise_paths(axis, itertools.chain(*(nulls or {}).values()))
        centres = {name: dyn.centre_of_mass(plane) for name, plane in planes.items()}
        for name, look in looks(planes).items():
            drawn = dyn.centre_of_mass(planes[name].isel(epoch=[-1]), bootstrap_weights(planes[name]))
            x, y = centres[name].fpr.values, centres[name].tpr.values
            axis.plot(x, y, ms=3, lw=1, **look)
            ends = {"xerr": abs(limits(drawn.fpr) - x[-1]), "yerr": abs(limits(drawn.tpr) - y[-1])}
            axis.errorbar(x[-1:], y[-1:], **ends, color=look["color"], lw=1.2, capsize=2)
        rates = np.concatenate([centre.fpr for centre in centres.values()])
        low, high = rates.min(), rates.max()
        room = max(high - low, 0.01)
        axis.set(xlabel="mean FPR", ylabel="mean TPR", xlim=(max(0.0, low - 0.7 * room), high + 0.7 * room))
        axis.legend()
    return figure

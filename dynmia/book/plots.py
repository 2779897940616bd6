"""One figure style for the whole study: colour-blind safe, labelled with units, the same colour for the same thing.

Every function takes a plane and returns a matplotlib figure; intervals are 95 % bootstrap over samples, and the grey
band is the no-signal level when the planes of a permutation null are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..dynamics import cloud as dyn
from ..registry import DATASETS
from ..stats.resample import bootstrap_weights

COLOURS = {name: known.colour for name, known in DATASETS.items()}  # the same in every chapter
OTHER, NULL, INK = "#E69F00", "#9A9A9A", "#333333"
STYLE: Any = {
    "figure.constrained_layout.use": True, "figure.dpi": 100, "savefig.dpi": 200, "font.size": 10, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.25, "axes.axisbelow": True,
    "axes.titlesize": 10, "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip


def colour_of(plane: xr.Dataset) -> str:
    """The colour of the plane's data set."""
    return COLOURS.get(plane.attrs["title"].split("-")[0], OTHER)


def key_figure(plane: xr.Dataset, null: Sequence[xr.Dataset] = ()) -> Figure:
    """Three panels that tell the story: the plane at the end, the path of the centre of mass, early identification."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.5))
        image = _cloud(axes[0], plane, int(plane.epoch[-1]))
        figure.colorbar(image, ax=axes[0], label="samples (log scale)", shrink=0.8)
        _path(axes[1], plane, null)
        _early(axes[2], plane)
    return figure


def accuracy(plane: xr.Dataset) -> Figure:
    """Accuracy on a model's own half and on the held-out set over epochs: mean and range over the models."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 3.2))
        for name, word, line in (("train_accuracy", "own half", "-"), ("test_accuracy", "held out", "--")):
            value = 100 * plane[name]
            low, high = value.min("model"), value.max("model")
            axis.fill_between(plane.epoch, low, high, color=colour_of(plane), alpha=0.2, lw=0)
            axis.plot(plane.epoch, value.mean("model"), color=colour_of(plane), ls=line, marker="o", ms=3, label=word)
        axis.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 103))
        axis.legend()
    return figure


def plane_at(plane: xr.Dataset, epochs: Sequence[int] | None = None) -> Figure:
    """The cloud of samples on the FPR-TPR plane at some checkpoints (default four, spread over training)."""
    if epochs is None:
        epochs = [int(plane.epoch[i]) for i in np.linspace(0, plane.sizes["epoch"] - 1, 4).round().astype(int)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(epochs), figsize=(2.7 * len(epochs) + 0.8, 3.1), sharex=True, sharey=True)
        for axis, epoch in zip(np.atleast_1d(axes), epochs):
            image = _cloud(axis, plane, epoch)
            axis.label_outer()
        figure.colorbar(image, ax=axes, label="samples (log scale)", shrink=0.8)
    return figure


def trajectories(plane: xr.Dataset, samples: Sequence[int] | None = None) -> Figure:
    """Paths of single samples over the plane, coloured by epoch, each with the Wilson interval of its last state.

    Args:
        samples: positions along the sample dimension; default six, from the most to the least dynamically vulnerable.
    """
    from ..attack.plane import rate_interval

    if samples is None:
        order = np.argsort(dyn.dynamic_vulnerability(plane).values)[::-1]
        samples = order[np.linspace(0, len(order) - 1, 6).astype(int)].tolist()
    epochs = plane.epoch.values
    with plt.rc_context(STYLE):
        columns = min(3, len(samples))
        rows = -(-len(samples) // columns)
        size = (3.0 * columns + 0.8, 2.9 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
        for axis, sample in zip(axes.flat, samples):
            one = plane.isel(sample=sample)
            frame(axis)
            axis.plot(one.fpr, one.tpr, color=NULL, lw=0.8, zorder=1)
            points = axis.scatter(one.fpr, one.tpr, c=epochs, cmap="viridis", s=22, zorder=2)
            last = one.isel(epoch=-1)
            for count, trials, horizontal in ((last.fp, last.n_out, True), (last.tp, last.n_in, False)):
                interval = rate_interval(count, trials)
                span = [float(interval.low), float(interval.high)]
                state = [float(last.fpr)] * 2, [float(last.tpr)] * 2
                axis.plot(*((span, state[1]) if horizontal else (state[0], span)), color=INK, lw=1.2, zorder=3)
            axis.set_title(f"sample {int(one.sample)}, class {int(one.label)}")
            axis.label_outer()
        for axis in axes.flat[len(samples) :]:
            axis.set_visible(False)
        figure.colorbar(points, ax=axes, label="epoch", shrink=0.8)
    return figure


def centre_path(plane: xr.Dataset, null: Sequence[xr.Dataset] = ()) -> Figure:
    """The path of the centre of mass, and its displacement over epochs."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.5))
        _path(axes[0], plane, null)
        _curve(axes[1], plane, dyn.displacement, "displacement of the centre (thousandths)", null)
    return figure


def entropy_and_speed(plane: xr.Dataset, null: Sequence[xr.Dataset] = ()) -> Figure:
    """Spatial entropy and mean membership encoding speed over epochs."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.3))
        _curve(axes[0], plane, dyn.spatial_entropy, "spatial entropy (bits)", null)
        _curve(axes[1], plane, _mean_speed, "encoding speed (thousandths an epoch)", null)
    return figure


def transitions(plane: xr.Dataset, null: Sequence[xr.Dataset] = ()) -> Figure:
    """The 3 x 3 transition matrix pooled over training as a heat map, and the transition to vulnerable over epochs."""
    counts = dyn.transition_counts(plane).sum("epoch")
    matrix = dyn.transition_matrix(counts)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.6), width_ratios=(1.25, 1))
        image = axes[0].imshow(matrix, cmap="cividis", vmin=0, vmax=1)
        for row, column in np.ndindex(matrix.shape):
            if counts[row, column] > 0:
                value = float(matrix[row, column])
                text = f"{value:.2f}".lstrip("0") if value >= 0.005 else "<.01"
                axes[0].text(column, row, text, ha="center", va="center", fontsize=7, color="w" if value < 0.5 else "k")
        names = [name.replace("TPR ", "").replace(", FPR ", " / ") for name in dyn.STATES]
        axes[0].set_xticks(range(9), names, rotation=45, ha="right")
        axes[0].set_yticks(range(9), [f"{n} ({int(c)})" for n, c in zip(names, counts.sum("target"))])
        axes[0].set(xlabel="to state (TPR / FPR)", ylabel="from state (TPR / FPR) and its count")
        figure.colorbar(image, ax=axes[0], label="probability a checkpoint", shrink=0.7)
        axes[1].grid(alpha=0.25)
        _curve(axes[1], plane, _to_vulnerable, "transition to vulnerable (% a checkpoint)", null)
    return figure


def early_identification(plane: xr.Dataset) -> Figure:
    """Recall, precision and first entry of the finally vulnerable samples over epochs."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 3.5))
        _early(axis, plane)
    return figure


def _mean_speed(plane: xr.Dataset, weights: dyn.Weights = None) -> xr.DataArray:
    return 1000 * dyn.population_mean(dyn.encoding_speed(plane), weights)


def _to_vulnerable(plane: xr.Dataset, weights: dyn.Weights = None) -> xr.DataArray:
    return 100 * dyn.transition_to_vulnerable(plane, weights)


def frame(axis: Axes) -> None:
    """An empty plane: the chance diagonal and the vulnerable corner."""
    axis.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
    axis.add_patch(Rectangle((0, 2 / 3), 1 / 3, 1 / 3, fill=False, ec=COLOURS["cifar10"], lw=1.2, ls="--"))
    axis.set(
        xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="FPR (share of out-models)", ylabel="TPR (share of in-models)"
    )
    axis.set_aspect("equal")


def _cloud(axis: Axes, plane: xr.Dataset, epoch: int):  # type: ignore[no-untyped-def]
    """A histogram of the cloud on the lattice of tenths, on a log scale that all checkpoints share."""
    from matplotlib.colors import LogNorm

    now = plane.sel(epoch=epoch)
    edges = np.linspace(-0.05, 1.05, 12)
    count, _, _ = np.histogram2d(now.fpr.values, now.tpr.values, [edges, edges])
    norm = LogNorm(1, plane.sizes["sample"])
    image = axis.pcolormesh(edges, edges, np.where(count > 0, count, np.nan).T, cmap="viridis", norm=norm)
    frame(axis)
    axis.set_title(f"epoch {epoch}")
    return image


def band(values: xr.DataArray) -> np.ndarray:
    """The 95 % percentile band of ``values`` (draw, epoch), as (2, epoch)."""
    drawn = values.transpose("draw", "epoch").values
    band = np.full((2, drawn.shape[1]), np.nan)
    known = np.isfinite(drawn).any(0)  # a share of nothing, such as the precision before anything is vulnerable, is NaN
    band[:, known] = np.nanquantile(drawn[:, known], [0.025, 0.975], axis=0)
    return band


def _curve(
    axis: Axes, plane: xr.Dataset, of: Callable[..., xr.DataArray], label: str, null: Sequence[xr.Dataset] = ()
) -> None:
    """A population figure over epochs with its bootstrap band and the no-signal band."""
    value, drawn = of(plane, None), of(plane, bootstrap_weights(plane))
    low, high = band(drawn)
    if of is dyn.spatial_entropy:  # resampled entropies come out low: reflect (the basic bootstrap)
        low, high = 2 * value.values - high, 2 * value.values - low
    colour = colour_of(plane)
    axis.fill_between(value.epoch, low, high, color=colour, alpha=0.25, lw=0, label="95 % interval")
    axis.plot(value.epoch, value, color=colour, marker="o", ms=3, label="measured")
    if len(null):
        values = np.stack([of(other, None).values for other in null])
        axis.fill_between(value.epoch, values.min(0), values.max(0), color=NULL, alpha=0.5, lw=0, label="no signal")
    axis.set(xlabel="epoch", ylabel=label)
    axis.legend()


def _path(axis: Axes, plane: xr.Dataset, null: Sequence[xr.Dataset] = ()) -> None:
    """The path of the centre of mass, with 95 % crosses, over the paths of the permutation null."""
    centre = dyn.centre_of_mass(plane)
    drawn = dyn.centre_of_mass(plane, bootstrap_weights(plane))
    x, y = centre.fpr.values, centre.tpr.values
    axis.axline((0, 0), slope=1, color=INK, lw=0.8, ls=":", label="chance")
    for number, other in enumerate(null):
        noise = dyn.centre_of_mass(other)
        axis.plot(noise.fpr, noise.tpr, color=NULL, lw=0.6, label=None if number else "no signal")
    axis.errorbar(
        x, y, xerr=np.abs(band(drawn.fpr) - x), yerr=np.abs(band(drawn.tpr) - y),
        color=colour_of(plane), lw=1.2, elinewidth=0.7, marker="o", ms=3, label="centre, 95 %",
    )  # fmt: skip
    for t in (0, -1):
        axis.annotate(
            f"epoch {int(plane.epoch[t])}", (x[t], y[t]), xytext=(6, -2), textcoords="offset points", fontsize=8
        )
    span = max(np.ptp(x), 0.01)  # leave room at the left: under fpr@a the path is a vertical line
    axis.set(xlabel="mean FPR", ylabel="mean TPR", xlim=(max(0.0, x.min() - 1.6 * span), x.max() + 0.7 * span))
    axis.legend(loc="center left")


def _early(axis: Axes, plane: xr.Dataset) -> None:
    """Recall, precision and first entry, with bands."""
    value = dyn.early_identification(plane)
    drawn = dyn.early_identification(plane, bootstrap_weights(plane))
    looks = {"recall": ("-", colour_of(plane)), "entered": ("--", "#009E73"), "precision": (":", "#0072B2")}
    words = {"recall": "vulnerable now (recall)", "entered": "entered once by now", "precision": "precision"}
    for name, (line, colour) in looks.items():
        axis.fill_between(value.epoch, *(100 * band(drawn[name])), color=colour, alpha=0.2, lw=0)
        axis.plot(value.epoch, 100 * value[name], color=colour, ls=line, label=words[name])
    axis.axhline(70, color=INK, lw=0.8, ls=":")
    axis.set(xlabel="epoch", ylabel="of the finally vulnerable (%)", ylim=(-3, 103))
    axis.legend()

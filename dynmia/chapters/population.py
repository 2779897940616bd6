"""Page 01: figures of one population, what they show against noise in words, and beside the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..book.plots import INK, cloud, colour_of, curve, limits, noise_band, noise_paths, panels, shaded
from ..dynamics import cloud as dyn
from ..stats.resample import bootstrap_weights


def key_figure(plane: xr.Dataset, null: Sequence[xr.Dataset] = ()) -> Figure:
    """Three panels that tell the story: the plane at the end, the path of the centre of mass, early identification."""
    with panels(1, 3, (10.5, 3.5)) as (figure, [axes]):
        image = cloud(axes[0], plane, int(plane.epoch[-1]))
        figure.colorbar(image, ax=axes[0], label="samples (log scale)", shrink=0.8)
        _path(axes[1], plane, null)
        _early(axes[2], plane)
    return figure


def centre_path(plane: xr.Dataset, null: Sequence[xr.Dataset] = ()) -> Figure:
    """The path of the centre of mass, and its displacement over epochs."""
    with panels(1, 2, (8.4, 3.5)) as (figure, [axes]):
        _path(axes[0], plane, null)
        _measured(axes[1], plane, dyn.displacement, "displacement of the centre (thousandths)", null)
    return figure


def entropy_and_speed(plane: xr.Dataset, null: Sequence[xr.Dataset] = ()) -> Figure:
    """Spatial entropy and mean membership encoding speed over epochs."""

    def speed(plane: xr.Dataset, weights: dyn.Weights = None) -> xr.DataArray:
        return 1000 * dyn.population_mean(dyn.encoding_speed(plane), weights)

    with panels(1, 2, (8.4, 3.3)) as (figure, [axes]):
        _measured(axes[0], plane, dyn.spatial_entropy, "spatial entropy (bits)", null)
        _measured(axes[1], plane, speed, "encoding speed (thousandths an epoch)", null)
    return figure


def transitions(plane: xr.Dataset, null: Sequence[xr.Dataset] = ()) -> Figure:
    """The 3 x 3 transition matrix pooled over training as a heat map, and the transition to vulnerable over epochs."""

    def to_vulnerable(plane: xr.Dataset, weights: dyn.Weights = None) -> xr.DataArray:
        return 100 * dyn.transition_to_vulnerable(plane, weights)

    counts = dyn.transition_counts(plane).sum("epoch")
    matrix = dyn.transition_matrix(counts)
    with panels(1, 2, (10.5, 4.6), grid=False, width_ratios=(1.25, 1)) as (figure, [axes]):
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
        _measured(axes[1], plane, to_vulnerable, "transition to vulnerable (% a checkpoint)", null)
    return figure


def early_identification(plane: xr.Dataset) -> Figure:
    """Recall, precision and first entry of the finally vulnerable samples over epochs."""
    with panels(1, 1, (5.6, 3.5)) as (figure, [[axis]]):
        _early(axis, plane)
    return figure


def _measured(
    axis: Axes, plane: xr.Dataset, of: Callable[..., xr.DataArray], label: str, null: Sequence[xr.Dataset]
) -> None:
    """A population figure over epochs with its bootstrap band and the no-signal band."""
    look = {"color": colour_of(plane), "marker": "o", "label": "measured"}
    curve(axis, plane, of, alpha=0.25, named="95 % interval", **look)
    noise_band(axis, null, of)
    axis.set(xlabel="epoch", ylabel=label)
    axis.legend()


def _path(axis: Axes, plane: xr.Dataset, null: Sequence[xr.Dataset]) -> None:
    """Path of the centre of mass, with 95 % crosses, over the paths of the permutation null."""
    centre = dyn.centre_of_mass(plane)
    drawn = dyn.centre_of_mass(plane, bootstrap_weights(plane))
    x, y = centre.fpr.values, centre.tpr.values
    noise_paths(axis, null, "no signal")
    axis.errorbar(
        x, y, xerr=np.abs(limits(drawn.fpr) - x), yerr=np.abs(limits(drawn.tpr) - y),
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
    for name, line, colour, label in (
        ("recall", "-", colour_of(plane), "vulnerable now (recall)"),
        ("entered", "--", "#009E73", "entered once by now"),
        ("precision", ":", "#0072B2", "precision"),
    ):
        interval = 100 * limits(drawn[name])
        shaded(axis, value.epoch, 100 * value[name], interval, color=colour, ls=line, label=label)
    axis.axhline(70, color=INK, lw=0.8, ls=":")
    axis.set(xlabel="epoch", ylabel="of the finally vulnerable (%)", ylim=(-3, 103))
    axis.legend()


def compare(row: pd.Series, null: pd.Series) -> str:
    """``above``, ``below`` (the whole interval outside the no-signal band) or ``not distinguishable from``."""
    return "above" if row.low > null.high else "below" if row.high < null.low else "not distinguishable from"

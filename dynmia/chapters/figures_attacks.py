"""Figures of the chapter on other attacks, in the style of :mod:`dynmia.book.plots`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..book.plots import INK, MARKERS, NULL, cloud, limits, panels, shaded
from ..stats.matching import Planes
from ..stats.resample import bootstrap_weights


def intervals(table: pd.DataFrame, looks: Mapping[str, dict[str, Any]], labels: Mapping[str, str]) -> Figure:
    """Values with intervals over their no-signal ranges (grey): a panel a metric, a row a group, a mark a run.

    Args:
        table: index (metric, group, run); columns value, low, high, null_low, null_high.
        looks: from :func:`dynmia.chapters.figures_early.styles`.
        labels: metric to label of its x axis.
    """
    groups = list(table.index.get_level_values("group").unique())
    columns = min(3, len(labels))
    rows = -(-len(labels) // columns)
    size = columns * 3.3 + 1.2, rows * (0.42 * len(groups) + 1.0) + 0.6
    with panels(rows, columns, size, count=len(labels), sharey=True) as (figure, axes):
        for axis, (metric, label) in zip(axes.flat, labels.items()):
            for (group, name), row in table.xs(metric, level="metric").iterrows():
                y = groups.index(group) + 0.7 * (list(looks).index(name) / max(len(looks) - 1, 1) - 0.5)
                axis.plot([row.null_low, row.null_high], [y, y], color=NULL, lw=4, alpha=0.6, solid_capstyle="butt")
                axis.plot([row.low, row.high], [y, y], color=looks[name]["color"], lw=1.4)
                axis.plot(row.value, y, color=looks[name]["color"], marker=looks[name]["marker"], ms=4, ls="")
            for y in range(1, len(groups)):
                axis.axhline(y - 0.5, color=INK, lw=0.4)
            axis.grid(visible=False, axis="y")
            axis.set(xlabel=label, yticks=range(len(groups)), yticklabels=groups, ylim=(len(groups) - 0.5, -0.5))
        handles = [plt.Line2D([], [], ls="", **{key: look[key] for key in ("color", "marker", "label")}, ms=4)
                   for look in looks.values()] + [plt.Line2D([], [], color=NULL, lw=4, label="no signal")]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def shares_over_epochs(planes: Planes, shares: Mapping[str, Callable], draws: int = 100) -> Figure:
    """Shares over epochs in per cent, one panel a figure ``of(plane, weights)`` and one line a plane, with bands."""
    with panels(1, len(shares), (4.8 * len(shares), 3.5)) as (figure, axes):
        for axis, (label, of) in zip(axes.flat, shares.items()):
            for number, (name, plane) in enumerate(planes.items()):
                value, shade = 100 * of(plane, None), plt.get_cmap("viridis")(0.9 * number / max(len(planes) - 1, 1))
                drawn = limits(100 * of(plane, bootstrap_weights(plane, draws)))
                shaded(axis, value.epoch, value, drawn, color=shade, marker=MARKERS[number], ms=3, lw=1, label=name)
            axis.set(xlabel="epoch", ylabel=label)
        axes[0, 0].legend()
    return figure


def clouds(planes: Planes) -> Figure:
    """The cloud at the end of each plane, and the share of samples whose FPR is at least so high."""
    count, columns = len(planes) + 1, 4 if len(planes) > 5 else 3
    rows = -(-count // columns)
    with panels(rows, columns, (columns * 2.75, rows * 2.9), count=count) as (figure, axes):
        last = axes.flat[len(planes)]
        shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(planes)))
        for number, (name, plane) in enumerate(planes.items()):
            image = cloud(axes.flat[number], plane, int(plane.epoch[-1]))
            axes.flat[number].set_title(name)
            fpr = np.sort(plane.fpr.values[-1])
            steps = np.unique(fpr[fpr > 0])
            share = 100 * (1 - np.searchsorted(fpr, steps) / len(fpr))
            last.plot(steps, share, color=shades[number], marker=MARKERS[number], ms=2.5, lw=1, label=name)
        last.set(xlabel="FPR of a sample, at least", ylabel="samples (%)", yscale="log", xlim=(0, 1.04))
        last.legend(fontsize=6)
        figure.colorbar(image, ax=axes, label="samples (log scale)", shrink=0.6)
    return figure


def matrices(tables: Mapping[str, pd.DataFrame], words: Mapping[str, str]) -> Figure:
    """Heat maps of agreement between attacks, value and half-width of its 95 % interval in each cell.

    Args:
        tables: for each title, a table with index (a, b) and columns value, low, high.
        words: attack to label, in order.
    """
    names = list(words)
    with panels(1, len(tables), (5.6 * len(tables), 4.6), grid=False, sharey=True) as (figure, axes):
        for axis, (title, table) in zip(axes.flat, tables.items()):
            values = np.full((len(names), len(names)), np.nan)
            for (a, b), row in table.iterrows():
                j, i = sorted((names.index(a), names.index(b)))
                values[i, j] = row.value
                text = f"{row.value:.2f}\n±{(row.high - row.low) / 2:.2f}"
                axis.text(j, i, text, ha="center", va="center", fontsize=7, color="k" if row.value > 0.55 else "w")
            image = axis.imshow(values, cmap="cividis", vmin=0, vmax=1)
            axis.set_xticks(range(len(names)), [words[name] for name in names], rotation=45, ha="right")
            axis.set_yticks(range(len(names)), [words[name] for name in names])
            axis.set_title(title)
        figure.colorbar(image, ax=axes, label="agreement (1: the same)", shrink=0.7)
    return figure

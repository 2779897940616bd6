"""Figures of the chapter on definitions, in the style of :mod:`dynmia.book.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ..book.plots import COLOURS, INK, MARKERS, NULL, bars, legend_outside, panels, titled
from ..dynamics import cloud as dyn
from .definitions import RUNS, SETS
from .sensitivity import OUTCOMES

SHADES = ["#F4F4F4", "#D55E00", "#F0E442", "#56B4E9"]  # of OUTCOMES, in their order
SIGNS = ["", "–", "?", "+"]
LINES = ["-", "--", "-.", ":"]


def matrix(words: pd.DataFrame, among: Sequence[Any]) -> Figure:
    """Conclusions (rows) against choices (columns): which hold, from :func:`dynmia.chapters.sensitivity.outcomes`."""
    codes = words.map(OUTCOMES.index).to_numpy()
    with panels(1, 1, (10.5, 0.32 * len(words) + 2.4), grid=False) as (figure, [[axis]]):
        axis.imshow(codes, cmap=ListedColormap(SHADES), vmin=0, vmax=3, aspect="auto")
        for row, column in np.ndindex(codes.shape):
            axis.text(column, row, SIGNS[codes[row, column]], ha="center", va="center", color=INK)
        axis.set_xticks(range(len(among)), [choice.label for choice in among], rotation=50, ha="right")
        axis.set_yticks(range(len(words)), words.index)
        for number, (a, b) in enumerate(pairwise(among)):
            if a.kind != b.kind:
                axis.axvline(number + 0.5, color=INK, lw=1)
        for number in range(1, len(words)):
            axis.axhline(number - 0.5, color="w", lw=1)
        seen = [code for code in (3, 2, 1, 0) if (codes == code).any()]
        handles = [plt.Rectangle((0, 0), 1, 1, fc=SHADES[code], ec=INK, lw=0.5) for code in seen]
        names = [f"{SIGNS[code]}  {OUTCOMES[code]}".strip() for code in seen]
        figure.legend(handles, names, loc="outside upper right", ncols=len(seen))
    return figure


def values(table: pd.DataFrame, among: Sequence[Any], metrics: Sequence[str], noise: str) -> Figure:
    """One panel a metric: its value and interval under each choice, one colour a data set; grey is no signal.

    Args:
        table: from :func:`dynmia.chapters.sensitivity.compute`.
        noise: the run whose no-signal range is drawn.
    """
    rows = -(-len(metrics) // 2)
    with panels(rows, 2, (10, 3.0 * rows), count=len(metrics)) as (figure, axes):
        for axis, metric in zip(axes.flat, metrics):
            labels = [choice.label for choice in among if (noise, choice.label, metric) in table.index]
            at = np.arange(len(labels))
            for number, (data, run) in enumerate(RUNS.items()):
                part = table.loc[[(run, label, metric) for label in labels]]
                look = {"fmt": MARKERS[number], "ms": 4, "lw": 1.2, "color": COLOURS[data], "label": SETS[data]}
                axis.errorbar(part.value, at + 0.16 * (number - 1.5), xerr=bars(part), **look)
            part = table.loc[[(noise, label, metric) for label in labels]]
            axis.hlines(at, part.null_low, part.null_high, color=NULL, lw=7, alpha=0.6, label="no signal", zorder=0)
            axis.axhline(0.5, color=INK, lw=0.8, ls=":")
            axis.set_yticks(at, labels)
            axis.invert_yaxis()
            axis.set_xlabel(titled(metric), fontsize=9)
        legend_outside(figure, axes[0, 0])
    return figure


def rules(planes: Mapping[str, Mapping[str, xr.Dataset]]) -> Figure:
    """Why the rule decides: entropy and mean speed over epochs, one colour a data set and one line a rule.

    Args:
        planes: for each data set, for each rule, the plane.
    """
    with panels(1, 2, (10, 3.6)) as (figure, [[left, right]]):
        for data, by_rule in planes.items():
            for line, (rule, plane) in zip(LINES, by_rule.items()):
                look = {"color": COLOURS[data], "ls": line, "lw": 1.4, "label": f"{SETS[data]}, {rule}"}
                left.plot(plane.epoch, dyn.spatial_entropy(plane), **look)
                speed = 1000 * dyn.encoding_speed(plane).mean("sample")
                right.plot(speed.epoch, speed, **look)
        left.set(xlabel="epoch", ylabel="spatial entropy (bits)")
        right.set(xlabel="epoch", ylabel="encoding speed (thousandths an epoch)", yscale="log")
        legend_outside(figure, left, "right center")
    return figure

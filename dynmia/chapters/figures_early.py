"""Figures of the chapter on early warning, in the style of :mod:`dynmia.book.plots`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..book.plots import COLOURS, INK, NULL, OTHER, limits, looks, panels, shaded
from ..dynamics import cloud as dyn
from ..stats.matching import Planes
from ..stats.resample import bootstrap_weights
from ..store.run import study_of
from .early import stay

SHADES = ["#0072B2", "#D55E00", "#009E73", "#E69F00"]  # of scores and kinds, in the order in which they are given


def styles(planes: Planes) -> dict[str, dict[str, Any]]:
    """Marker and label of each run or plane, colour by data set, line by model, as matplotlib takes them."""
    studies = {name: study_of(plane) for name, plane in planes.items()}
    models = list(dict.fromkeys(study.model for study in studies.values()))
    lines = ["-", "--", ":", "-."]
    return {
        name: look | {"color": COLOURS.get(study.dataset, OTHER), "ls": lines[models.index(study.model) % 4]}
        for (name, look), study in zip(looks(planes).items(), studies.values())
    }


def early_panels(planes: Planes, nulls: Sequence[xr.Dataset] = (), draws: int = 100) -> Figure:
    """Recall, precision, first entry and stay over epochs, one line a run with its band; grey is no signal."""

    def of(name: str) -> Callable[[xr.Dataset, dyn.Weights], xr.DataArray]:
        return lambda plane, weights: 100 * dyn.early_identification(plane, weights)[name]

    shares = {
        "recall: of the finally vulnerable, so now": of("recall"),
        "precision: of the vulnerable now, so finally": of("precision"),
        "entry: of the finally vulnerable, so once by now": of("entered"),
        "stay: of those that have entered, never leave": lambda plane, weights: 100 * stay(plane, weights),
    }
    with panels(2, 2, (9.6, 6.6), sharex=True) as (figure, axes):
        for axis, (label, value) in zip(axes.flat, shares.items()):
            for name, look in styles(planes).items():
                plane = planes[name]
                line, drawn = value(plane, None), value(plane, bootstrap_weights(plane, draws))
                shaded(axis, line.epoch, line, limits(drawn), alpha=0.15, ms=3, lw=1.2, **look)
            if len(nulls):
                noise = np.stack([value(plane, None).values for plane in nulls])
                low, high = np.fmin.reduce(noise), np.fmax.reduce(noise)
                axis.fill_between(nulls[0].epoch, low, high, color=NULL, alpha=0.3, lw=0, label="no signal", zorder=0)
            axis.set(title=label, ylabel="samples (%)", xlabel="epoch", ylim=(-3, 103))
            axis.label_outer()
        axes[0, 0].axhline(70, color=INK, lw=0.8, ls=":")
        axes[0, 0].legend()
    return figure


def prediction_panels(runs: Mapping[str, Planes]) -> Figure:
    """Average precision over epochs, one panel a run and one line a score; dotted is the chance level.

    Args:
        runs: for each panel title, for each line, value, low and high over epoch, and chance.
    """
    columns = 2 if len(runs) in (2, 4) else min(3, len(runs))
    rows = -(-len(runs) // columns)
    size = columns * 3.4 + 0.4, rows * 2.9 + 0.3
    with panels(rows, columns, size, count=len(runs), sharey=True) as (figure, axes):
        for axis, (title, lines) in zip(axes.flat, runs.items()):
            for number, (name, line) in enumerate(lines.items()):
                look = dict[str, Any](color=SHADES[number], ls=["-", "--", "-.", ":"][number], lw=1.3, label=name)
                shaded(axis, line.epoch, line.value, (line.low, line.high), **look)
            axis.axhline(float(line.chance), color=INK, lw=0.9, ls=":", label="chance")
            axis.set(title=title, ylim=(0, 1.03), xlabel="epoch")
        for axis in axes[:, 0]:
            axis.set_ylabel("average precision")
        axes[0, 0].legend(loc="lower right")
    return figure

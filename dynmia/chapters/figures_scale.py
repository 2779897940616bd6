"""Figures of the chapters on data complexity and on pool size, in the style of :mod:`dynmia.book.plots`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ..book import maker
from ..book.plots import (
    COLOURS,
    DATASETS,
    INK,
    MARKERS,
    NULL,
    bars,
    curves,
    legend_outside,
    panels,
    shaded,
    titled,
)
from ..dynamics import cloud as dyn
from ..dynamics.metrics import METRICS
from ..stats.matching import Nulls, Planes
from ..stats.trends import rank_trend


def against_complexity(
    figures: pd.DataFrame, complexity: pd.DataFrame, metrics: Sequence[str], measures: Sequence[str]
) -> Figure:
    """Each metric (row) over each measure of complexity (column), with both 95 % intervals, and the rank trend.

    Args:
        figures: index (data set, metric), columns value, low, high, null_low, null_high.
        complexity: index (data set, measure), columns value, low, high.
        metrics, measures: which.
    """
    names = figures.index.get_level_values(0).unique()
    size = len(measures) * 2.6 + 0.6, len(metrics) * 2.5 + 0.5
    with panels(len(metrics), len(measures), size, sharex="col", sharey="row") as (figure, axes):
        for axis, (metric, measure) in zip(axes.flat, itertools.product(metrics, measures)):
            x = complexity.xs(measure, level=1).loc[names]
            y = figures.xs(metric, level=1).loc[names]
            axis.axhspan(y.null_low.min(), y.null_high.max(), color=NULL, alpha=0.5, lw=0)
            for name, mark in zip(names, MARKERS):
                a, b = x.loc[[name]], y.loc[[name]]
                look = dict(color=COLOURS[name], marker=mark, ms=5, capsize=2, label=DATASETS[name])
                axis.errorbar(a.value, b.value, xerr=bars(a), yerr=bars(b), **look)
            rho, p = rank_trend(x.value.to_numpy(), y.value.to_numpy())
            axis.set_title(f"rank correlation {rho:.1f}, p = {p:.3f}", fontsize=8)
            label, unit, _ = maker("complexity").MEASURES[measure]
            axis.set(xlabel=f"{label}\n({unit})".replace("\n()", ""), ylabel=_name(metric))
            axis.label_outer(remove_inner_ticks=False)
        legend_outside(figure, axes[0, 0])
    return figure


def displacement_curves(members: Mapping[str, Planes], nulls: Nulls) -> Figure:
    """Displacement over epochs, one panel a data set, one curve a population of ``members`` (data set, name)."""
    with panels(1, len(members), (4.6 * len(members), 3.5)) as (figure, axes):
        for axis, (name, planes) in zip(axes.flat, members.items()):
            curves(planes, dyn.displacement, _name("displacement"), {n: nulls[n] for n in planes}, axis)
            axis.set_title(DATASETS.get(name, name))
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def over_pool_size(
    tables: Mapping[str, Mapping[str, pd.DataFrame]], laws: Mapping[str, Mapping[str, Any]], target: int,
    paper: Mapping[str, Mapping[str, float]],
) -> Figure:  # fmt: skip
    """Each metric over the pool size, log-log: measured, the fitted curve and its prediction interval to ``target``.

    Args:
        tables: metric, data set to a table with index pool size and columns value, low, high, null_low, null_high.
        laws: metric, data set to the fitted curve; may lack some.
        target: the paper's pool size.
        paper: metric, data set to the paper's value, drawn as a star at ``target``.
    """
    rows = -(-len(tables) // 2)
    with panels(rows, 2, (2 * 4.3, rows * 3.2), count=len(tables), sharex=True) as (figure, axes):
        for axis, (metric, sets) in zip(axes.flat, tables.items()):
            for number, (name, table) in enumerate(sets.items()):
                table = table[table.value > 0]
                sizes, colour = table.index.to_numpy(), COLOURS.get(name, INK)
                law = laws.get(metric, {}).get(name)
                if law:
                    line = np.geomspace(sizes.min(), max(target, sizes.max()), 60)
                    middle, *interval = law.predict(line)
                    shaded(axis, line, middle, interval, alpha=0.15, color=colour, lw=1.2)
                look = dict(marker=MARKERS[number], ms=5, capsize=2, label=DATASETS.get(name, name))
                axis.errorbar(sizes, table.value, bars(table), color=colour, ls="", **look)
                theirs = paper.get(metric, {}).get(name, 0)
                if theirs > 0:
                    star = dict(marker="*", ms=12, mfc="none", mec=colour, label=f"paper, {DATASETS.get(name, name)}")
                    axis.plot(target, theirs, ls="", **star)
            noise = pd.concat(sets.values()).groupby(level=0).null_high.max()
            bottom = 0.3 * min(float(t.value[t.value > 0].min()) for t in sets.values())
            if (noise > bottom).any():
                label = "no signal, and below"
                axis.fill_between(noise.index, bottom, noise.clip(bottom), color=NULL, alpha=0.5, lw=0, label=label)
            _log_axes(axis)
            axis.set_ylabel(_name(metric))
            axis.legend()
    return figure


def equal_progress(tables: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Displacement over the pool size at equal epochs, equal steps and equal accuracy, one panel a data set.

    Args:
        tables: data set, kind of equality to a table with index pool size and columns value, low, high.
    """
    with panels(1, len(tables), (4.3 * len(tables), 3.4), sharey=True) as (figure, axes):
        for axis, (name, kinds) in zip(axes.flat, tables.items()):
            for number, (kind, table) in enumerate(kinds.items()):
                line, fill = (("-", None), ("--", "w"), (":", "w"))[number]
                look = dict(marker=MARKERS[number], mfc=fill, ms=5, capsize=2, label=f"equal {kind}")
                axis.errorbar(table.index, table.value, bars(table), color=COLOURS.get(name, INK), ls=line, **look)
            _log_axes(axis)
            axis.set(title=DATASETS.get(name, name), ylabel=_name("displacement") if axis is axes[0, 0] else "")
            axis.legend()
    return figure


def _log_axes(axis: Axes) -> None:
    """Pool size and value on log axes with plain numbers."""
    axis.set(xscale="log", yscale="log", xlabel="pool size (samples)")
    low, high = axis.get_ylim()
    for scale, subs in ((axis.xaxis, (2, 5)), (axis.yaxis, (1, 2, 5) if high < 1000 * low else (1,))):
        scale.set_major_locator(LogLocator(subs=subs))
        scale.set_major_formatter(StrMethodFormatter("{x:,g}"))
        scale.set_minor_formatter(NullFormatter())


def _name(metric: str) -> str:
    name = titled(metric, "\n") if metric in METRICS else "attack AUC - 0.5"
    return name.replace("/1000", "thousandths")

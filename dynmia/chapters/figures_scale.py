"""Figures of the chapters on data complexity and on pool size, in the style of :mod:`dynmia.book.plots`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ..book import maker
from ..book.compare import DATASETS, MARKERS, curves, errors, grid, shaded
from ..book.plots import COLOURS, INK, NULL, STYLE
from ..dynamics import cloud as dyn
from ..dynamics.metrics import METRICS
from ..stats.matching import Nulls, Planes
from ..stats.trends import Law, rank_trend


@rc_context(STYLE)
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
    panels = len(metrics) * len(measures)
    figure, axes = grid(panels, len(measures), (2.6, 2.5), (0.6, 0.5), sharex="col", sharey="row")
    for axis, (metric, measure) in zip(axes.flat, itertools.product(metrics, measures)):
        x = complexity.xs(measure, level=1).loc[names]
        y = figures.xs(metric, level=1).loc[names]
        axis.axhspan(y.null_low.min(), y.null_high.max(), color=NULL, alpha=0.5, lw=0)
        for name, mark in zip(names, MARKERS):
            a, b = x.loc[[name]], y.loc[[name]]
            look = dict(color=COLOURS[name], marker=mark, ms=5, capsize=2, label=DATASETS[name])
            axis.errorbar(a.value, b.value, xerr=errors(a), yerr=errors(b), **look)
        rho, p = rank_trend(x.value.to_numpy(), y.value.to_numpy())
        axis.set_title(f"rank correlation {rho:.1f}, p = {p:.3f}", fontsize=8)
        label, unit, _ = maker("complexity").MEASURES[measure]
        axis.set(xlabel=f"{label}\n({unit})".replace("\n()", ""), ylabel=_name(metric))
        axis.label_outer(remove_inner_ticks=False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(names))
    return figure


@rc_context(STYLE)
def displacement_curves(members: Mapping[str, Planes], nulls: Nulls) -> Figure:
    """Displacement over epochs, one panel a data set, one curve a population of ``members`` (data set, name)."""
    figure, axes = plt.subplots(1, len(members), figsize=(4.6 * len(members), 3.5), squeeze=False)
    for axis, (name, planes) in zip(axes.flat, members.items()):
        curves(planes, dyn.displacement, _name("displacement"), {n: nulls[n] for n in planes}, axis)
        axis.set_title(DATASETS.get(name, name))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


@rc_context(STYLE)
def over_pool_size(
    tables: Mapping[str, Mapping[str, pd.DataFrame]], laws: Mapping[str, Mapping[str, Law]], target: int,
    paper: Mapping[str, Mapping[str, float]],
) -> Figure:  # fmt: skip
    """Each metric over the pool size, log-log: measured, the fitted curve and its prediction interval to ``target``.

    Args:
        tables: metric, data set to a table with index pool size and columns value, low, high, null_low, null_high.
        laws: metric, data set to the fitted curve; may lack some.
        target: the paper's pool size.
        paper: metric, data set to the paper's value, drawn as a star at ``target``.
    """
    figure, axes = grid(len(tables), 2, (4.3, 3.2), sharex=True)
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
            axis.errorbar(sizes, table.value, errors(table), color=colour, ls="", **look)
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


@rc_context(STYLE)
def equal_progress(tables: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Displacement over the pool size at equal epochs, equal steps and equal accuracy, one panel a data set.

    Args:
        tables: data set, kind of equality to a table with index pool size and columns value, low, high.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(4.3 * len(tables), 3.4), sharey=True, squeeze=False)
    for axis, (name, kinds) in zip(axes.flat, tables.items()):
        for number, (kind, table) in enumerate(kinds.items()):
            line, fill = (("-", None), ("--", "w"), (":", "w"))[number]
            look = dict(marker=MARKERS[number], mfc=fill, ms=5, capsize=2, label=f"equal {kind}")
            axis.errorbar(table.index, table.value, errors(table), color=COLOURS.get(name, INK), ls=line, **look)
        _log_axes(axis)
        axis.set(title=DATASETS.get(name, name), ylabel=_name("displacement") if axis is axes[0, 0] else "")
        axis.legend()
    return figure


def _log_axes(axis: Axes) -> None:
    """Pool size and value on log axes with plain numbers."""
    axis.set(xscale="log", yscale="log", xlabel="pool size (samples)")
    low, high = axis.get_ylim()
    for one, subs in ((axis.xaxis, (2, 5)), (axis.yaxis, (1, 2, 5) if high < 1000 * low else (1,))):
        one.set_major_locator(LogLocator(subs=subs))
        one.set_major_formatter(StrMethodFormatter("{x:,g}"))
        one.set_minor_formatter(NullFormatter())


def _name(metric: str) -> str:
    label, unit = (METRICS[metric].label, METRICS[metric].unit) if metric in METRICS else ("attack AUC - 0.5", "")
    return f"{label}\n({unit})".replace("/1000", "thousandths").replace("\n()", "")

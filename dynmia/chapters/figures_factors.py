"""Figures of the chapters on architecture and optimiser: leakage against size and fit, dose and response."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from ..book.plots import INK, MARKERS, NULL, bars, legend_outside, limits, looks, panels, shaded, titled
from ..stats.matching import Nulls, Planes
from ..stats.resample import bootstrap_weights
from .factors import MATCHINGS, STATE

LEAKAGE = {"attack AUC": STATE["auc"], "vulnerable (%)": STATE["vulnerable"]}
GAP = "train minus held-out accuracy (points)"
CLOCKS = {
    "epoch": lambda plane: plane.epoch,
    "train accuracy (%)": lambda plane: 100 * plane.train_accuracy.mean("model"),
    "held-out accuracy (%)": lambda plane: 100 * plane.test_accuracy.mean("model"),
    GAP: lambda plane: 100 * (plane.train_accuracy - plane.test_accuracy).mean("model"),
}
SHADES = ("#000000", "#0072B2", "#E69F00", "#CC79A7")  # Okabe and Ito: one for each matching


def axis_label(metric: str) -> str:
    """Name and unit of a metric, broken over two lines."""
    return re.sub(r",? at the end(?=\n|$)", "", titled(metric, "\n"))


def against_size(tables: Mapping[str, pd.DataFrame], size: pd.DataFrame, words: Mapping[str, str]) -> Figure:
    """Metrics against depth (upper row) and parameters (lower row), with intervals and no-signal levels.

    Args:
        tables: by what they show, such as "at the last epoch": index (run, metric), columns value, low, high and, where
            known, null_low and null_high; the metrics of the first are the columns of the figure.
        size: from :func:`dynmia.chapters.factors.sizes`.
        words: what to call each run.
    """
    metrics = next(iter(tables.values())).index.get_level_values("metric").unique()
    with panels(2, len(metrics), (2.5 * len(metrics), 6.6), sharex="row") as (figure, axes):
        for row, (what, unit) in enumerate((("depth", "weight layers"), ("parameters", "parameters"))):
            for axis, metric in zip(axes[row], metrics):
                for number, (when, table) in enumerate(tables.items()):
                    if metric not in table.index.get_level_values("metric"):
                        continue
                    some = table.xs(metric, level="metric").loc[size.index]
                    if "null_low" in some:
                        axis.vlines(size[what], some.null_low, some.null_high, color=NULL, lw=6, label="no signal")
                    axis.errorbar(
                        size[what], some.value, yerr=bars(some), ls="",
                        marker=MARKERS[number], ms=5, capsize=2, color=SHADES[number], label=when,
                        mfc=SHADES[number] if number == 0 else "w",
                    )  # fmt: skip
                axis.set(xlabel=unit, ylabel=axis_label(metric))
                axis.margins(x=0.15)
                if what == "parameters":
                    axis.set_xscale("log")
                names = axis.secondary_xaxis("top")
                names.set_xticks(size[what], [words[run] for run in size.index], rotation=60, ha="left", fontsize=7)
                names.minorticks_off()
        legend_outside(figure, axes[0, 0], columns=3)
    return figure


def against_fit(planes: Planes, nulls: Nulls | None = None, clocks: Sequence[str] = tuple(CLOCKS)[:3]) -> Figure:
    """Leakage against each of ``clocks``, names of ``CLOCKS``: one point a checkpoint, 95 % bands."""
    size = 3.5 * len(clocks), 3.1 * len(LEAKAGE)
    with panels(len(LEAKAGE), len(clocks), size, sharex="col", sharey="row") as (figure, axes):
        for name, look in looks(planes).items():
            plane, weights = planes[name], bootstrap_weights(planes[name])
            for row, (label, of) in zip(axes, LEAKAGE.items()):
                value, drawn = of(plane, None), limits(of(plane, weights))
                for axis, clock in zip(row, clocks):
                    shaded(axis, CLOCKS[clock](plane), value, drawn, alpha=0.15, ms=3, lw=1, **look)
                row[0].set_ylabel(label)
        for row, of in zip(axes, LEAKAGE.values()):
            values = [float(of(noise, None)[t]) for some in (nulls or {}).values() for noise in some for t in (0, -1)]
            for axis in row if values else []:
                axis.axhspan(min(values), max(values), color=NULL, alpha=0.5, lw=0, label="no signal")
        for axis, label in zip(axes[-1], clocks):
            axis.set_xlabel(label)
        axes[0, 0].legend()
    return figure


def dose_response(table: pd.DataFrame, rho: Mapping[str, float], metrics: tuple[str, ...], reference: str) -> Figure:
    """Difference from the reference against SAM's rho, one line a matching, with intervals and no-signal bands.

    Args:
        table: from :func:`dynmia.chapters.factors.contrasts`.
        rho: of each run.
        metrics: one panel each.
        reference: its name in words.
    """
    runs = sorted(rho, key=lambda run: rho[run])
    with panels(1, len(metrics), (2.9 * len(metrics), 3.6), sharex=True) as (figure, axes):
        for axis, metric in zip(axes[0], metrics):
            axis.axhline(0, color=INK, lw=0.8, ls=":")
            for number, (matching, when) in enumerate(MATCHINGS.items()):
                some = table.xs((matching, metric), level=("matching", "metric")).loc[runs]
                place = [number / 5 - 0.3 + k for k in range(len(runs))]
                axis.vlines(place, some.null_low, some.null_high, color=NULL, lw=5, alpha=0.6)
                look = dict(color=SHADES[number], marker=MARKERS[number], ms=4, lw=0.8, capsize=2, label=when)
                axis.errorbar(place, some.value, bars(some), **look)
            axis.set_xticks(range(len(runs)), [f"{rho[run]:g}" for run in runs])
            name = axis_label(metric).replace("(%)", "(points)")
            axis.set(xlabel="rho", ylabel=f"{name}\nSAM minus {reference}")
        legend_outside(figure, axes[0, 0])
    return figure

"""Figures of the chapter on the number of shadow models, in the style of :mod:`dynmia.book.plots`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from ..book import maker
from ..book.plots import INK, NULL, log_axis, panels
from ..dynamics.metrics import METRICS
from .how_many import CHECK, Z, effect, set_looks
from .retest import LABELS

precision = maker("precision")
AGREEMENT, WANTED = precision.AGREEMENT, precision.WANTED
SHADES = {"lira:fpr@0.01": "#D55E00", "lira:bayes": "#0072B2"}


def bias_panels(tables: Mapping[str, pd.DataFrame], rule: str) -> Figure:
    """Every metric over the number of models: mean over subsets, 1.96 spreads, and the value of all models."""
    with panels(2, 4, (11, 5.2), sharex=True) as (figure, axes):
        for axis, name in zip(axes.flat, WANTED):
            for number, (run, look) in enumerate(set_looks(tables).items()):
                part = tables[run].loc[rule, name, :]
                sizes = part.index.get_level_values("models")
                at = sizes.to_numpy() * (1.04 if number else 0.96)  # side by side
                axis.axhline(part.full.iloc[0], color=look["color"], lw=1, ls="--")
                style = {"fmt": "os"[number], "ms": 4, "capsize": 2, "lw": 1.1} | look
                axis.errorbar(at, part.full + part.bias, Z * part.spread, **style)
            log_axis(axis, sizes)
            axis.set(title=METRICS[name].label.replace(" that are", "\nthat are"), ylabel=METRICS[name].unit)
        for axis in axes[1]:
            axis.set_xlabel("shadow models N")
        axes[0, 0].legend()
    return figure


def agreement_panels(measured: pd.DataFrame) -> Figure:
    """Rank agreement and changed labels over the number of models: between disjoint subsets, and with the whole."""
    means = measured.groupby(level=["run", "rule", "models"], sort=False).mean().sort_index()
    rules = measured.index.unique("rule")
    with panels(len(rules), 3, (10.5, 3.1 * len(rules)), sharex=True, sharey="col") as (figure, axes):
        for line, rule in zip(axes, rules):
            for axis, (name, label) in zip(line, AGREEMENT.items()):
                for run, look in set_looks(measured.index.unique("run")).items():
                    mean = means.loc[run, rule]
                    for other, ls, word in (("disjoint", "-", "disjoint"), ("full", "--", "with the whole")):
                        values = mean[f"{name}_{other}"].dropna()
                        style = {"color": look["color"], "ls": ls, "label": f"{look['label']}, {word}"}
                        axis.plot(values.index, values, marker="o", ms=4, mfc=None if ls == "-" else "w", **style)
                log_axis(axis, mean.index[:-1])
                for word in (" of dyn", " 'v", " that"):
                    label = label.replace(word, "\n" + word[1:])
                axis.set(title=rule, ylabel=label)
        for axis in axes[-1]:
            axis.set_xlabel("shadow models N")
        axes[0, 0].legend()
    return figure


def required_panels(
    measured: pd.DataFrame, tables: Mapping[str, pd.DataFrame], planes: Mapping[str, xr.Dataset], rule: str
) -> Figure:
    """Half-width of a sample's advantage and of two metrics over the number of models, with what was measured."""
    grid, measured = np.geomspace(4, 1000, 60), measured.sort_index()
    with panels(1, 3, (11, 3.7)) as (figure, [axes]):
        axes[0].plot(grid, Z * np.sqrt(1 / grid), color=INK, ls=":", label="worst case, independent")
        for run, look in set_looks(tables).items():
            deff = effect(measured, run, rule)[1]
            # invert the function at a half-width of 0.02: N grows with its inverse square
            needed = [precision.required_shadow_models(0.02, plane=planes[run], design_effect=d) for d in (1.0, deff)]
            scale = 0.02 * np.sqrt(needed)
            noise = (measured.loc[run, rule].noise_disjoint.dropna() ** 2).groupby(level="models").mean() ** 0.5
            axes[0].plot(grid, scale[0] / np.sqrt(grid), color=look["color"], ls="--", lw=1)
            axes[0].plot(grid, scale[1] / np.sqrt(grid), **look)
            axes[0].plot(noise.index, Z * noise, "o", color=look["color"], ms=5)
            for axis, name in zip(axes[1:], ("advantage", "vulnerable")):
                value, low, high = Z * precision.spread_law(tables[run], rule, name).predict(grid)
                axis.fill_between(grid, low, high, color=look["color"], alpha=0.18, lw=0)
                axis.plot(grid, value, **look)
                for corrected, part in tables[run].loc[rule, name, :].groupby("corrected"):
                    x = part.index.get_level_values("models")
                    axis.plot(x, Z * part.spread, "o", color=look["color"], mfc="w" if corrected else None, ms=5)
                axis.set(title=METRICS[name].label, ylabel=f"half-width ({METRICS[name].unit})")
        axes[0].set(title="a sample's advantage", ylabel="half-width")
        for axis in axes:
            axis.set(xscale="log", yscale="log", xlabel="shadow models N")
            axis.axvline(20, color=NULL, lw=0.9, ls=":")
        axes[0].legend()
    return figure


def retest_panels(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Measured statistics of test and retest with their intervals, beside what sampling noise alone gives."""
    with panels(1, 2, (11, 4.2), width_ratios=(1, 0.8)) as (figure, [axes]):
        for axis, over in zip(axes, (True, False)):
            names = [name for name in LABELS if name.startswith("cv_") == over][::-1]
            for number, (rule, table) in enumerate(tables.items()):
                rows, colour = table.loc[names], SHADES.get(rule, INK)
                y = np.arange(len(names)) + (0.16 - 0.32 * number)
                look = {"color": NULL, "lw": 6, "alpha": 0.7, "label": None if number else "noise"}
                axis.hlines(y, rows.noise_low, rows.noise_high, **look)
                low, high = rows[["low", "population_low"]].min(axis=1), rows[["high", "population_high"]].max(axis=1)
                axis.hlines(y, low, high, color=colour, lw=1.2)
                axis.plot(rows.value, y, "o" if not number else "s", color=colour, ms=4, label=rule)
                axis.plot(rows.chance, y, "|", color=INK, ms=10, label=None if number or over else "chance")
            axis.set_yticks(range(len(names)), [LABELS[name] for name in names], fontsize=8)
        axes[0].axvline(CHECK, color=INK, lw=0.9, ls=":")
        axes[0].set(xlabel="coefficient of variation", xlim=(0, None))
        axes[1].set(xlabel="agreement", xlim=(-0.02, 1.02))
        axes[1].legend(loc="upper left")
    return figure

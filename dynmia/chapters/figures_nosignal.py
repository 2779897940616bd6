"""Figures of the chapter on the no-signal level, in the style of :mod:`dynmia.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..noise import CHEAP, LEVEL, expected_rates
from ..plots import COLOURS, INK, NULL, STYLE
from ..summary import METRICS
from .nosignal import BIAS, WITHIN, explained

LOOKS = {
    ("pooled", "bernoulli"): {"color": COLOURS["mnist"], "marker": "o", "ls": "-"},
    ("pooled", "balanced"): {"color": COLOURS["cifar10"], "marker": "s", "ls": "--"},
    ("per-sample", "bernoulli"): {"color": COLOURS["digits"], "marker": "^", "ls": "-"},
    ("per-sample", "balanced"): {"color": COLOURS["cinic10"], "marker": "v", "ls": "--"},
}


def share_map(tables: Mapping[str, pd.DataFrame], level: float = LEVEL) -> Figure:
    """Share explained of every metric of every run, one panel a rule; a frame where p > ``level``."""
    with plt.rc_context(STYLE | {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure, axes = plt.subplots(1, len(tables), figsize=(15, 7), sharey=True, squeeze=False)
        for axis, (rule, table) in zip(axes.flat, tables.items()):
            share = explained(table).value.unstack("run", sort=False)
            p = table.p.unstack("run", sort=False)
            image = axis.imshow(share.abs(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
            for row, column in np.ndindex(share.shape):
                value = share.iat[row, column]
                if np.isfinite(value):
                    dark = abs(value) > 60
                    text = f"{round(value)}" if abs(value) < 1000 else "≫"
                    axis.text(column, row, text, ha="center", va="center", fontsize=6, color="w" if dark else "k")
                if not p.iat[row, column] <= level:
                    box = (column - 0.44, row - 0.44), 0.88, 0.88
                    axis.add_patch(plt.Rectangle(*box, fill=False, ec=COLOURS["cifar10"], lw=1.4))
            axis.set_yticks(range(len(share)), [METRICS[name].label for name in share.index])
            axis.set_xticks(range(share.shape[1]), share.columns, rotation=90, fontsize=7)
            axis.set_title(f"rule {rule}")
        figure.colorbar(image, ax=axes, label="size of the no-signal mean (% of the effect, cut at 100)", shrink=0.7)
    return figure


def bias_figure(bias: pd.DataFrame, rules: Sequence[str]) -> Figure:
    """Figures of ``BIAS`` on pure noise against N, one row a rule, with 95 % Monte-Carlo bars and the closed form."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(rules), len(BIAS), figsize=(13.5, 3 * len(rules)), squeeze=False)
        for row, rule in zip(axes, rules):
            for axis, (name, label) in zip(row, BIAS.items()):
                axis.axhline(0, color=INK, lw=0.7)
                for number, ((variance, design), look) in enumerate(LOOKS.items()):
                    part = bias.loc[variance, design].xs((rule, name), level=("rule", "metric"))
                    bars = np.abs(part[["low", "high"]].sub(part.value, axis=0)).T.to_numpy()
                    at = part.index * 1.03 ** (number - 1.5)  # side by side
                    words = f"{variance}, {design}"
                    axis.errorbar(at, part.value, bars, ms=3.5, lw=0.9, elinewidth=0.9, label=words, **look)
                    if name == "dynamic" and variance == "pooled":
                        rates = [expected_rates(int(models), rule, design) for models in part.index]
                        exact = [1000 * (tpr - fpr) for tpr, fpr in rates]
                        axis.plot(at, exact, color=INK, ls="", marker="_", ms=14, zorder=5)
                axis.set_xscale("log", base=2)
                axis.set_xticks(2 ** np.arange(3, 8), 2 ** np.arange(3, 8))
                axis.minorticks_off()
                axis.set(title=rule, ylabel=label, xlabel="shadow models N")
        axes[0, -1].legend(title="variance, design", title_fontsize=8)
    return figure


def level_figure(rates: pd.DataFrame) -> Figure:
    """Rejection rate on noise of every metric, one panel a rule; grey 4 to 6 %, ticks what ties allow."""
    with plt.rc_context(STYLE):
        rules = rates.index.unique("rule")
        figure, axes = plt.subplots(1, len(rules), figsize=(11, 4.6), sharex=True, sharey=True, squeeze=False)
        for axis, rule in zip(axes.flat, rules):
            part = rates.loc[rule].loc[CHEAP[::-1]]
            part, at = part.where(part.defined > 0), np.arange(len(part))
            axis.axvspan(*WITHIN, color=NULL, alpha=0.3, lw=0)
            axis.plot(part.attainable, at, "|", color=COLOURS["cifar10"], ms=12, mew=2, label="what ties allow")
            bars = np.abs(part[["low", "high"]].sub(part.value, axis=0)).T.to_numpy()
            axis.errorbar(
                part.value, at, xerr=bars, fmt="o", ms=4, color=COLOURS["mnist"], lw=1, label="measured, 95 %"
            )
            axis.set_yticks(at, [METRICS[name].label for name in part.index])
            axis.set(title=f"rule {rule}", xlabel="rejected on noise at p ≤ 0.05 (%)")
        axes[0, 0].legend(loc="upper left")
    return figure

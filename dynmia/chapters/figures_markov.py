"""Figures of the chapter on the Markov assumption, in the style of :mod:`dynmia.plots`."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..plots import COLOURS, INK, NULL, STYLE
from .markov import MATTERS

SHADES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]


def _colour(run: str) -> str:
    return next((shade for name, shade in COLOURS.items() if run.startswith(name)), COLOURS["digits"])


def overview(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What the state before adds, run by run under the first rule; observed against chain for all rules."""
    rule, table = next(iter(tables.items()))
    table = table[table.share.notna()].sort_values("share")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10.5, 0.19 * len(table) + 1.3), width_ratios=[1.2, 1])
        for y, row in enumerate(table.itertuples()):
            axes[0].plot([row.share_low, row.share_high], [y, y], color=_colour(row.run), lw=1.4)
            axes[0].plot(row.share, y, "o", color=_colour(row.run), ms=4)
        axes[0].plot(table.noise_share, range(len(table)), "|", color=NULL, ms=9, mew=2, label="no signal")
        axes[0].axvline(MATTERS, color=INK, lw=0.9, ls=":", label="from here on it matters")
        axes[0].axvline(0, color=INK, lw=0.6)
        axes[0].set_yticks(range(len(table)), table.run, fontsize=7)
        axes[0].set(xlabel="taken away by the state before (% of what is open)", title=f"memory, {rule}")
        axes[0].set_ylim(-3.5, len(table))
        axes[0].legend(loc="lower right")
        for (name, part), mark in zip(tables.items(), "os"):
            for row in part.itertuples():
                x, y = (row.observed_ever, row.chain_ever)
                axes[1].plot(x, y, mark, color=_colour(row.run), ms=5, mfc="none" if mark == "s" else None)
            axes[1].plot([], [], mark, color=INK, mfc="none" if mark == "s" else None, label=name)
        axes[1].plot([0, 100], [0, 100], color=INK, lw=0.9, ls=":")
        axes[1].set(
            xlabel="ever vulnerable, observed (%)", ylabel="ever vulnerable, by the chain (%)", title="its cost"
        )
        axes[1].legend()
    return figure


def curves(noise: pd.DataFrame, intervals: Mapping[str, pd.DataFrame]) -> Figure:
    """What the state before adds against the number of models, and against the distance of checkpoints."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
        most = noise.models[np.isfinite(noise.models)].max()
        for (name, part), shade, mark in zip(noise.groupby("curve", sort=False), SHADES, "osD^"):
            part = part.assign(x=part.models.replace(np.inf, 2 * most))
            some = part[np.isfinite(part.models)]
            axes[0].plot(some.x, some.share, color=shade, lw=1.2)
            axes[0].vlines(part.x, part.low, part.high, color=shade, lw=1.2)
            axes[0].plot(part.x, part.share, mark, color=shade, ms=4.5, label=name)
        axes[0].set_xscale("log")
        ticks = sorted(noise.models[np.isfinite(noise.models)].unique())
        axes[0].set_xticks([*ticks, 2 * most], [*(f"{tick:g}" for tick in ticks), "no noise"])
        axes[0].minorticks_off()
        axes[0].set(
            xlabel="models", ylabel="taken away by the state before\n(% of what is open)", title="measurement noise"
        )
        for (name, part), mark in zip(intervals.items(), "osD^"):
            axes[1].vlines(part.epochs, part.low, part.high, color=_colour(name), lw=1.2)
            axes[1].plot(part.epochs, part.share, mark + "-", color=_colour(name), ms=4.5, lw=1.2, label=name)
        axes[1].set(xlabel="distance of checkpoints (epochs)", title="checkpoint interval")
        axes[0].set_ylim(top=1.35 * max(noise.high.max(), *(part.high.max() for part in intervals.values())))
        for axis in axes:
            axis.axhline(MATTERS, color=INK, lw=0.9, ls=":")
            axis.axhline(0, color=INK, lw=0.6)
            axis.legend(loc="upper right")
    return figure

"""Figures of the uncertainty chapter: reliability diagrams, and calibration error beside correlation."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from ..plots import INK, NULL, STYLE
from ..reliability import reliability_diagram
from .calibrated import PREDICTORS
from .uncertainty import ESTIMATORS

COLOURS = {
    "single model": "#999999", "ensemble": "#D55E00", "MC dropout": "#56B4E9", "MC-dropout ensemble": "#0072B2",
    "deep ensemble": "#009E73", "dropout off, one model": "#E69F00", "dropout off, ensemble": "#CC79A7",
}  # fmt: skip
LINES = {
    "mi_all": "#E69F00", "mi_out": "#D55E00", "variance_out": "#CC79A7", "mc_mi": "#56B4E9", "dropout_out": "#0072B2",
    "deep_mi": "#009E73",
}  # fmt: skip


def diagrams(recorded: Mapping[str, xr.Dataset], bins: int = 15) -> Figure:
    """Accuracy against confidence on held-out images at the end, a panel a predictor; bars: share of the images."""
    found = [n for n, (role, key, _) in PREDICTORS.items() if f"confidence_{key}" in recorded.get(role, {})]
    with plt.rc_context(STYLE):
        size = (2.35 * len(found) + 0.4, 2.8)
        figure, axes = plt.subplots(1, len(found), figsize=size, sharex=True, sharey=True, squeeze=False)
        for axis, name in zip(axes[0], found):
            role, key, _ = PREDICTORS[name]
            last = recorded[role].isel(seldom=-1)
            table = reliability_diagram(last[f"confidence_{key}"].values, last[f"right_{key}"].values, bins)
            share = table["count"] / table["count"].sum()
            axis.bar((table.index + 0.5) / bins, share, 0.9 / bins, color=NULL, alpha=0.5, label="share of images")
            axis.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":", label="calibrated")
            axis.plot(table.confidence, table.accuracy, color=COLOURS[name], marker="o", ms=3, label="accuracy")
            axis.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[0, 0.5, 1], xlabel="confidence", title=name)
        axes[0, 0].set(ylabel="accuracy, share of images")
        axes[0, 0].legend(loc="upper left")
    return figure


def calibration_and_correlation(calibrated: pd.DataFrame, found: pd.DataFrame) -> Figure:
    """Calibration error over training, and at the end beside the correlation with vulnerability.

    Args:
        calibrated, found: from :func:`dynmia.chapters.calibrated.calibrations` and ``pairs``.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.7))
        for name in calibrated.index.unique("predictor"):
            rows = calibrated.loc[name]
            axes[0].fill_between(rows.index, rows.low, rows.high, color=COLOURS[name], alpha=0.25, lw=0)
            axes[0].plot(rows.index, rows.value, color=COLOURS[name], marker="o", ms=3, label=name)
        axes[0].set(xlabel="epoch", ylabel="expected calibration error", ylim=(0, None))
        axes[0].legend()
        for name, row in found.iterrows():
            axes[1].errorbar(
                row.ece, row.r,
                xerr=[[max(row.ece - row.ece_low, 0)], [max(row.ece_high - row.ece, 0)]],
                yerr=np.abs([[row.r_low - row.r], [row.r_high - row.r]]), marker="D" if row.mixed else "o", ls="",
                color=COLOURS[row.predictor], mfc="white" if row.mixed else COLOURS[row.predictor], ms=6, lw=1,
                label=ESTIMATORS[str(name)],
            )  # fmt: skip
        axes[1].axhline(0, color=INK, lw=0.8, ls=":")
        axes[1].set(xlabel="expected calibration error", ylabel="Spearman correlation", ylim=(-1, 1))
        axes[1].legend(loc="lower right")
    return figure

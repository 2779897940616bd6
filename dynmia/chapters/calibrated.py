"""How well the predictors behind the estimators of uncertainty are calibrated, and whether that matters for r."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from ..book.plots import INK, NULL, panels, shaded
from . import reliability
from .uncertainty import ESTIMATORS, MIXED

PREDICTORS = {  # what predicts the held-out images: its population, its name there, and the estimators made of it
    "single model": ("base", "single", ()),
    "ensemble": ("base", "ensemble", ("mi_all", "mi_out")),
    "dropout off, one model": ("dropout", "single", ()),
    "dropout off, ensemble": ("dropout", "ensemble", ("dropout_all", "dropout_out")),
    "MC dropout": ("dropout", "mc", ("mc_mi",)),
    "MC-dropout ensemble": ("dropout", "mc_ensemble", ()),
    "deep ensemble": ("deep", "ensemble", ("deep_mi",)),
}
COLOURS = {
    "single model": "#999999", "ensemble": "#D55E00", "MC dropout": "#56B4E9", "MC-dropout ensemble": "#0072B2",
    "deep ensemble": "#009E73", "dropout off, one model": "#E69F00", "dropout off, ensemble": "#CC79A7",
}  # fmt: skip
LINES = {
    "mi_all": "#E69F00", "mi_out": "#D55E00", "variance_out": "#CC79A7", "mc_mi": "#56B4E9", "dropout_out": "#0072B2",
    "deep_mi": "#009E73",
}  # fmt: skip


def calibrations(recorded: Mapping[str, xr.Dataset], bins: int = 15, draws: int = 300) -> pd.DataFrame:
    """Calibration on held-out images of every predictor of ``PREDICTORS`` that was recorded, at each checkpoint.

    Returns:
        Index (predictor, epoch); columns accuracy, confidence (mean), value, low, high, calibrated (see
        :func:`dynmia.chapters.reliability.calibration`), and mass_value, mass_low, mass_high, mass_calibrated, the same
        with bins of equal mass.
    """
    rows = {}
    for name, (role, predictor, _) in PREDICTORS.items():
        if f"confidence_{predictor}" in recorded.get(role, {}):
            p, right = (recorded[role][f"{kind}_{predictor}"] for kind in ("confidence", "right"))
            for t, epoch in enumerate(p.seldom.values):
                pair = p[t].values, right[t].values
                row = reliability.calibration(*pair, bins, draws=draws)
                mass = reliability.calibration(*pair, bins, adaptive=True, draws=draws).add_prefix("mass_")
                means = pd.Series({"accuracy": pair[1].mean(), "confidence": pair[0].mean()})
                rows[name, int(epoch)] = pd.concat([means, row, mass])
    return pd.DataFrame(rows).T.rename_axis(["predictor", "epoch"])


def pairs(calibrated: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Calibration error at the end beside the Spearman correlation, all samples, of each estimator that has both.

    Returns:
        Index estimator; columns predictor, mixed (over in- and out-models), ece, ece_low, ece_high, r, r_low, r_high.
    """
    last = calibrated.groupby("predictor").tail(1).droplevel("epoch")
    rows, ends = {}, ["value", "low", "high"]
    for predictor, error in last.iterrows():
        for name in PREDICTORS[str(predictor)][2]:
            row = table.loc[name, "all", "all models", "spearman"]
            rows[name] = [predictor, name in MIXED, *error[ends], *row[ends]]
    columns = ["predictor", "mixed", "ece", "ece_low", "ece_high", "r", "r_low", "r_high"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns)


def verdict(found: pd.DataFrame) -> str:
    """Does the better calibrated of two estimators correlate more? Of pairs whose intervals are apart in both."""
    rows = list(found[~found.mixed].itertuples())
    apart = [
        (a.ece < b.ece) == (a.r > b.r)
        for a, b in combinations(rows, 2)
        if (a.ece_high < b.ece_low or b.ece_high < a.ece_low) and (a.r_high < b.r_low or b.r_high < a.r_low)
    ]
    word = "no order is to be seen"
    if apart and all(apart):
        word = "better calibration goes along with a higher correlation"
    elif apart and not any(apart):
        word = "the better calibrated one correlates less"
    count = f"{len(apart)} of the {len(rows) * (len(rows) - 1) // 2} pairs of estimators without the in/out difference"
    if not apart:
        return f"{count} differ clearly in both calibration error and correlation: {word}."
    return (
        f"{count} differ clearly in both calibration error and correlation on all samples; in {sum(apart)} of these "
        f"the better calibrated one correlates more: {word}. Among {len(rows)} estimators this only describes."
    )


def diagrams(recorded: Mapping[str, xr.Dataset], bins: int = 15) -> Figure:
    """Accuracy against confidence on held-out images at the end, a panel a predictor; bars: share of the images."""
    names = [n for n, (role, key, _) in PREDICTORS.items() if f"confidence_{key}" in recorded.get(role, {})]
    with panels(1, len(names), (2.35 * len(names) + 0.4, 2.8), sharex=True, sharey=True) as (figure, [axes]):
        for axis, name in zip(axes, names):
            role, key, _ = PREDICTORS[name]
            last = recorded[role].isel(seldom=-1)
            pair = last[f"confidence_{key}"].values, last[f"right_{key}"].values
            table = reliability.reliability_diagram(*pair, bins)
            share = table["count"] / table["count"].sum()
            axis.bar((table.index + 0.5) / bins, share, 0.9 / bins, color=NULL, alpha=0.5, label="share of images")
            axis.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":", label="calibrated")
            axis.plot(table.confidence, table.accuracy, color=COLOURS[name], marker="o", ms=3, label="accuracy")
            axis.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[0, 0.5, 1], xlabel="confidence", title=name)
        axes[0].set(ylabel="accuracy, share of images")
        axes[0].legend(loc="upper left")
    return figure


def calibration_and_correlation(calibrated: pd.DataFrame, correlated: pd.DataFrame) -> Figure:
    """Calibration error over training, and at the end beside the correlation with vulnerability.

    Args:
        calibrated, correlated: from :func:`calibrations` and :func:`pairs`.
    """
    with panels(1, 2, (9.6, 3.7)) as (figure, [[left, right]]):
        for name in calibrated.index.unique("predictor"):
            rows = calibrated.loc[name]
            look = {"color": COLOURS[name], "marker": "o", "ms": 3, "label": name}
            shaded(left, rows.index, rows.value, (rows.low, rows.high), alpha=0.25, **look)
        left.set(xlabel="epoch", ylabel="expected calibration error", ylim=(0, None))
        left.legend()
        for name, row in correlated.iterrows():
            look = {"marker": "D", "mfc": "white"} if row.mixed else {"marker": "o"}
            xerr, yerr = (
                [[max(row[x] - row[f"{x}_low"], 0)], [max(row[f"{x}_high"] - row[x], 0)]] for x in ("ece", "r")
            )
            right.errorbar(row.ece, row.r, yerr, xerr, color=COLOURS[row.predictor], ls="", ms=6, lw=1,
                           label=ESTIMATORS[str(name)], **look)  # fmt: skip
        right.axhline(0, color=INK, lw=0.8, ls=":")
        right.set(xlabel="expected calibration error", ylabel="Spearman correlation", ylim=(-1, 1))
        right.legend(loc="lower right")
    return figure

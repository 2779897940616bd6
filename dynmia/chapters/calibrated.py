"""How well the predictors behind the estimators of uncertainty are calibrated, and whether that matters for r."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pandas as pd
import xarray as xr

from .. import reliability
from .uncertainty import MIXED

PREDICTORS = {  # what predicts the held-out images: its population, its name there, and the estimators made of it
    "single model": ("base", "single", ()),
    "ensemble": ("base", "ensemble", ("mi_all", "mi_out")),
    "dropout off, one model": ("dropout", "single", ()),
    "dropout off, ensemble": ("dropout", "ensemble", ("dropout_all", "dropout_out")),
    "MC dropout": ("dropout", "mc", ("mc_mi",)),
    "MC-dropout ensemble": ("dropout", "mc_ensemble", ()),
    "deep ensemble": ("deep", "ensemble", ("deep_mi",)),
}


def calibrations(recorded: Mapping[str, xr.Dataset], bins: int = 15, draws: int = 300) -> pd.DataFrame:
    """Calibration on held-out images of every predictor of ``PREDICTORS`` that was recorded, at each checkpoint.

    Returns:
        Index (predictor, epoch); columns accuracy, confidence (mean), value, low, high, calibrated (see
        :func:`dynmia.reliability.calibration`), and mass_value, mass_low, mass_high, mass_calibrated, the same with
        bins of equal mass.
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
    rows = {}
    for predictor in last.index:
        for name in PREDICTORS[predictor][2]:
            error, row = last.loc[predictor], table.loc[name, "all", "all models", "spearman"]
            rows[name] = [predictor, name in MIXED, error.value, error.low, error.high, row.value, row.low, row.high]
    columns = ["predictor", "mixed", "ece", "ece_low", "ece_high", "r", "r_low", "r_high"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns)


def verdict(found: pd.DataFrame) -> str:
    """Does the better calibrated of two estimators correlate more? Of pairs whose intervals are apart in both."""
    rows = list(found[~found.mixed].itertuples())
    clear = [
        (a.ece < b.ece) == (a.r > b.r)
        for a, b in combinations(rows, 2)
        if (a.ece_high < b.ece_low or b.ece_high < a.ece_low) and (a.r_high < b.r_low or b.r_high < a.r_low)
    ]
    count = f"{len(clear)} of the {len(rows) * (len(rows) - 1) // 2} pairs of estimators without the in/out difference"
    if not clear:
        return f"{count} differ clearly in both calibration error and correlation: no order is to be seen."
    word = "better calibration goes along with a higher correlation" if all(clear) else "no order is to be seen"
    word = word if any(clear) else "the better calibrated one correlates less"
    return (
        f"{count} differ clearly in both calibration error and correlation on all samples; in {sum(clear)} of these "
        f"the better calibrated one correlates more: {word}. Among {len(rows)} estimators this only describes."
    )

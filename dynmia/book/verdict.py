"""A verdict in words, computed: what a population shows, against noise and beside the paper."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import xarray as xr

from ..dynamics.metrics import METRICS
from .cells import decimals
from .tables import read_table

CLAIMS = {  # metric: what it means for it to lie above (below) the no-signal band
    "displacement": ("the cloud moves as a whole", "the cloud moves less than noise would"),
    "entropy_change": ("the cloud spreads over the plane", "the cloud gathers"),
    "vulnerable": ("some samples end up vulnerable", "fewer end up vulnerable than by chance"),
    "transition_peak": (
        "samples turn vulnerable faster than noise explains",
        "fewer samples turn vulnerable than by chance",
    ),
    "early_recall": ("the finally vulnerable can partly be told early", "early membership says less than chance"),
}


def compare(row: pd.Series, null: pd.Series) -> str:
    """``above``, ``below`` (the whole interval outside the no-signal band) or ``not distinguishable from``."""
    if row.low > null.high:
        return "above"
    return "below" if row.high < null.low else "not distinguishable from"


def verdict(table: pd.DataFrame, null: pd.DataFrame) -> list[str]:
    """One sentence a claim; its figures are those of ``summarise`` and ``null_summary``."""
    sentences = []
    for name, (above, below) in CLAIMS.items():
        row, noise, metric = table.loc[name], null.loc[name], METRICS[name]
        side = compare(row, noise)
        meaning = {"above": above, "below": below}.get(side, "no conclusion")
        digits = decimals(name, row)
        number = [f"{value + 0.0:.{digits}f}" for value in (row.value, row.low, row.high, noise.low, noise.high)]
        label = metric.label[0].upper() + metric.label[1:]
        unit = f" {metric.unit}".replace(" /1000", " thousandths")
        sentences.append(
            f"{label}: {number[0]}{unit} (95 % interval {number[1]} to {number[2]}), "
            f"{side} the no-signal level of {number[3]} to {number[4]}: {meaning}."
        )
    return sentences


def instability(plane: xr.Dataset, points: float = 1.0) -> str:
    """A warning if the mean train accuracy falls by more than ``points`` per cent after it has passed 90 %, else ''."""
    mean = 100 * plane.train_accuracy.mean("model")
    fall = -mean.diff("epoch").where(mean.shift(epoch=1).isel(epoch=slice(1, None)) > 90, 0)
    worst = fall.isel(epoch=int(fall.argmax("epoch")))
    if float(worst) <= points:
        return ""
    return (
        f"Mean train accuracy falls by {float(worst):.1f} points at epoch {int(worst.epoch)}: some models pass through "
        "an instability of the optimiser there. Speed and transition peaks near it measure the fall and the recovery."
    )


def beside_paper(table: pd.DataFrame, paper: str | Path, dataset: str) -> pd.DataFrame:
    """Our figures beside the paper's for ``dataset``, from the table file of the paper's values.

    The two are at different scale (see the setting column), so this is a comparison of direction and size, not a test.
    """
    values = read_table(paper, "paper.csv").reset_index()
    rows = []
    for _, entry in values[(values.dataset == dataset) & values.metric.isin(list(METRICS))].iterrows():
        row, metric = table.loc[entry.metric], METRICS[entry.metric]
        ours = [f"{row[key] + 0.0:.{decimals(entry.metric, row)}f}" for key in ("value", "low", "high")]
        inside = row.low <= entry.value <= row.high
        rows.append([
            metric.label, metric.unit, f"{entry.value:g}", entry.setting, f"{ours[0]} [{ours[1]}, {ours[2]}]",
            "inside our interval" if inside else ("ours is higher" if row.low > entry.value else "ours is lower"),
        ])  # fmt: skip
    columns = ["metric", "unit", "paper", "paper's setting", "ours [95 % interval]", "comparison"]
    return pd.DataFrame(rows, columns=columns).set_index("metric")

"""Numbers as a page prints them: a value with its interval to what the interval resolves, and the no-signal level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..dynamics.metrics import METRICS


def resolved(low: float, high: float, digits: int) -> int:
    """Decimals to print: ``digits``, but none beyond the first that half the interval resolves."""
    half = (high - low) / 2
    return int(np.clip(-np.floor(np.log10(half)), 0, digits)) if 0 < half < np.inf else digits


def decimals(name: str, row: pd.Series) -> int:
    """:func:`resolved` for a metric with its interval in ``row``."""
    return resolved(row.low, row.high, METRICS[name].digits)


def cell(value: float, low: float, high: float, digits: int = 1, least: int = 0, clipped: object = "") -> str:
    """``value [low, high]`` to what the interval resolves, at ``least``; ``undefined`` where there is no value.

    An end that was ``clipped`` to what is possible (``low``, ``high``, ``both``) has an asterisk.
    """
    if np.isnan(value):
        return "undefined"
    digits = max(least, resolved(low, high, digits))
    value, low, high = (round(number, digits) + 0.0 for number in (value, low, high))
    if np.isnan([low, high]).any():
        return f"{value:.{digits}f} [no interval]"
    first, last = ("*" * (clipped in (end, "both")) for end in ("low", "high"))
    return f"{value:.{digits}f} [{low:.{digits}f}{first}, {high:.{digits}f}{last}]"


def said(row: Any, digits: int = 1, blank: str = "–") -> str:
    """:func:`cell` of value, low and high of ``row``; ``blank`` where one of them is not finite."""
    known = np.isfinite([row.value, row.low, row.high]).all()
    return cell(row.value, row.low, row.high, digits) if known else blank


def carried(text: str, carrier: float) -> str:
    """``by model 7``: it alone explains more than nine tenths of what moves the figure over halves of the models."""
    return text if np.isnan(carrier) else f"{text}, by model {carrier:.0f}"


def band(low: float, high: float, p: float = np.nan, digits: int = 1) -> str:
    """A no-signal level as it is printed: ``low to high``, with the p-value of the figure beside it if there is one."""
    ends = " to ".join(f"{round(end, digits) + 0.0:.{digits}f}" for end in (low, high))
    return ends if np.isnan(p) else f"{ends} (p = {p:.2g})"


def rounded(table: pd.DataFrame, null: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table as it is printed: one column ``value [interval]``, and the no-signal level if given."""
    lines = []
    for name, row in table.iterrows():
        text = cell(row.value, row.low, row.high, METRICS[str(name)].digits, clipped=row.get("clipped"))
        line = [row.label, row.unit, carried(text, row.get("carrier", np.nan))]
        if null is not None:
            noise = null.loc[name]
            line.append(band(noise.low, noise.high, noise.get("p", np.nan), decimals(str(name), row)))
        lines.append(line)
    over = " over samples" * (table.attrs.get("over") == "samples")
    columns = ["metric", "unit", f"value [{100 * table.attrs.get('level', 0.95):g} % interval{over}]", "no signal"]
    return pd.DataFrame(lines, columns=columns[: 3 if null is None else 4]).set_index("metric")


def instability(plane: xr.Dataset, points: float = 1.0) -> str:
    """A warning if the mean train accuracy falls by more than ``points`` per cent after it has passed 90 %, else ''."""
    mean = 100 * plane.train_accuracy.mean("model")
    before = mean.shift(epoch=1)
    fall = (before - mean).where(before > 90, 0)
    worst = fall.isel(epoch=int(fall.argmax("epoch")))
    if float(worst) <= points:
        return ""
    return (
        f"Mean train accuracy falls by {float(worst):.1f} points at epoch {int(worst.epoch)}: some models pass through "
        "an instability of the optimiser there. Speed and transition peaks near it measure the fall and the recovery."
    )


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of claims.csv, as a page shows them."""

    def numbers(row: Any) -> tuple[str, str]:
        if np.isnan(row.value):
            return "not measured", ""
        least = int(row.unit == "ratio")  # 1 is no effect, so whole numbers would not tell
        digits = max(least, resolved(row.low, row.high, 3))
        noise = "" if np.isnan(row.null_low) else band(row.null_low, row.null_high, digits=digits)
        return carried(cell(row.value, row.low, row.high, 3, least, row.clipped), row.carrier), noise

    table = table.reset_index()
    cells = [numbers(row) for row in table.itertuples()]
    return pd.DataFrame({
        "claim": table.sentence, "unit": table.unit.fillna(""),
        "paper": [f"{value:.3g}" if np.isfinite(value) else "" for value in table.paper],
        "ours [95 %]": [ours for ours, _ in cells], "no signal": [noise for _, noise in cells],
        "verdict": table.verdict, "setting": table.setting, "reading": table.reading,
    })  # fmt: skip

"""What several chapters need: panels in the style of the study, and labels with units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..book.cells import cell
from ..book.plots import STYLE
from ..dynamics.metrics import METRICS


@contextmanager
def panels(rows: int, columns: int, size: tuple[float, float], *, grid: bool = True, **options: Any) -> Iterator[Any]:
    """A figure and its axes, always (rows, columns), to be drawn in within the ``with``; size in inches."""
    with plt.rc_context(STYLE | {"axes.grid": grid}):
        yield plt.subplots(rows, columns, figsize=size, squeeze=False, **options)


def legend_outside(figure: Any, axis: Axes, where: str = "upper center") -> None:
    """What ``axis`` shows, beside or above all panels; in one line if above."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc=f"outside {where}", ncols=len(names) if where == "upper center" else 1)


def log_axis(axis: Any, ticks: Sequence[float] | np.ndarray, names: Sequence[str] | None = None) -> None:
    """A logarithmic x-axis with these ticks only."""
    axis.set_xscale("log")
    axis.set_xticks(ticks, ticks if names is None else names)
    axis.minorticks_off()


def bars(table: pd.DataFrame) -> np.ndarray:
    """Distances from value down to low and up to high, (2, rows), as an error bar takes them."""
    return table[["low", "high"]].sub(table.value, axis=0).abs().T.to_numpy(float)


def said(row: Any, digits: int = 1, blank: str = "–") -> str:
    """``value [low, high]`` of ``row`` to what the interval resolves; ``blank`` where one of them is not finite."""
    known = np.isfinite([row.value, row.low, row.high]).all()
    return cell(row.value, row.low, row.high, digits) if known else blank


def titled(metric: str) -> str:
    """Label of a metric of :data:`dynmia.dynamics.metrics.METRICS`, with its unit if it has one."""
    label, unit = METRICS[metric].label, METRICS[metric].unit
    return f"{label} ({unit})" if unit else label

"""Trends over data sets and pool sizes: ordered intervals, exact rank tests, fitted curves and what they predict."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import UserError


def directions(table: pd.DataFrame) -> list[str]:
    """From each row (value, low, high) to the next: ``rises``, ``falls``, or ``open`` where the intervals overlap."""
    pairs = itertools.pairwise(table.itertuples())
    return ["rises" if a.high < b.low else "falls" if b.high < a.low else "open" for a, b in pairs]


def rank_trend(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Spearman's rank correlation and the exact one-sided p-value that y rises with x, over all n! orders (n <= 8)."""
    if not 2 <= len(x) <= 8:
        raise UserError(f"an exact rank test takes 2 to 8 points, not {len(x)}.")
    rank = stats.rankdata(x)
    orders = np.array(list(itertools.permutations(stats.rankdata(y))))
    scale = len(x) * rank.std() * orders[0].std()
    if scale == 0:
        return np.nan, 1.0
    rho = (orders - orders.mean()) @ (rank - rank.mean()) / scale
    return float(rho[0]), float((rho >= rho[0] - 1e-9).mean())

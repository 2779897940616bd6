"""Do two planes of the same samples agree? Ranks of samples, and overlap of the finally vulnerable.

The planes may come from two attacks on one population (robustness) or from two populations (test and retest).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import hypergeom, norm, rankdata

from ..dynamics import cloud as dyn
from ..dynamics.cloud import Weights
from ..errors import UserError
from .resample import bootstrap_weights

TAILS = [0.025, 0.975]


def rank_agreement(a: xr.Dataset, b: xr.Dataset, weights: Weights = None) -> xr.DataArray:
    """Spearman's correlation over samples between the two planes' dynamic vulnerability.

    Integer weights repeat samples, ties get their mean rank; NaN where all samples of a plane tie.
    """
    values = np.stack([dyn.dynamic_vulnerability(plane).values for plane in _same(a, b)])  # (2, sample)

    def spearman(times: np.ndarray) -> float:
        ranks = rankdata(np.repeat(values, times.astype(int), axis=1), axis=1)
        ranks -= ranks.mean(1, keepdims=True)
        length = np.sqrt((ranks**2).sum(1)).prod()
        return float((ranks[0] @ ranks[1]) / length) if length > 0 else np.nan

    times = xr.ones_like(a.sample, float) if weights is None else weights
    return xr.apply_ufunc(spearman, times, input_core_dims=[["sample"]], vectorize=True)


def overlap(a: xr.Dataset, b: xr.Dataset, weights: Weights = None) -> xr.DataArray:
    """Jaccard index of the two finally vulnerable sets, common over joint members; NaN where both are empty."""
    first, second = (dyn.vulnerable(plane).isel(epoch=-1, drop=True) for plane in _same(a, b))
    return dyn.share_of(first & second, first | second, weights)


def chance_overlap(a: xr.Dataset, b: xr.Dataset) -> tuple[float, float, float]:
    """Jaccard index of random sets of the same sizes: mean and interval, exact (hypergeometric intersection)."""
    sizes = [int(dyn.vulnerable(plane).isel(epoch=-1).sum()) for plane in _same(a, b)]
    if not sum(sizes):
        return np.nan, np.nan, np.nan
    common = hypergeom(a.sizes["sample"], *sizes)
    support = np.arange(min(sizes) + 1)
    jaccard = support / (sum(sizes) - support)
    low, high = common.ppf(TAILS).astype(int)
    return float(common.pmf(support) @ jaccard), float(jaccard[low]), float(jaccard[high])


def agreement(a: xr.Dataset, b: xr.Dataset, *, draws: int = 200) -> pd.DataFrame:
    """Both measures with their bootstrap interval over samples, and what unrelated planes would give.

    Two attacks on the *same* models also agree on noise; for that no-signal level call this on two planes of one
    permuted mask. ``chance`` is for planes that share nothing: independent ranks, random sets.

    Returns:
        Index measure (spearman, jaccard); columns value, low, high, chance, chance_low, chance_high.

    Raises:
        UserError: the planes are on other samples.
    """
    weights, rows = bootstrap_weights(a, draws), {}
    independent = norm.ppf(TAILS) / np.sqrt(a.sizes["sample"] - 1)
    measures = [("spearman", rank_agreement, (0.0, *independent)), ("jaccard", overlap, chance_overlap(a, b))]
    for name, of, chance in measures:
        drawn = of(a, b, weights).values
        known = drawn[np.isfinite(drawn)]
        ends = np.quantile(known, TAILS) if len(known) else [np.nan, np.nan]
        rows[name] = [float(of(a, b)), *ends, *chance]
    columns = ["value", "low", "high", "chance", "chance_low", "chance_high"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("measure")


def _same(a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    if not np.array_equal(a.sample, b.sample):
        raise UserError("the two planes are not on the same samples in the same order: select their common samples.")
    return a, b

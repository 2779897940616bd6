"""Resampling: the bootstrap over samples, and the permutation null, the no-signal level of every metric."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import pandas as pd
import xarray as xr

from ..attack.plane import vulnerability_plane
from ..attack.scoring import STUDY, Scoring
from ..dynamics.metrics import METRICS
from ..errors import bounded
from ..pool.pool import draw_keep
from ..store.run import study_of


def bootstrap_weights(plane: xr.Dataset, draws: int = 200, seed: int = 0, block: int = 0) -> xr.DataArray:
    """How often each sample is drawn in each of ``draws`` bootstrap draws with replacement, (draw, sample)."""
    bounded("draws", draws, 1)
    bounded("seed", seed, 0)
    samples = plane.sizes["sample"]
    rng = np.random.default_rng([seed, block])
    weights = np.stack([np.bincount(rng.integers(0, samples, samples), minlength=samples) for _ in range(draws)])
    return xr.DataArray(weights.astype(float), dims=("draw", "sample"))


def null_summary(
    run: xr.Dataset,
    scoring: Scoring | str = STUDY,
    *,
    draws: int = 20,
    seed: int = 0,
    level: float = 0.95,
    planes: Iterable[xr.Dataset] | None = None,
    value: pd.Series | None = None,
) -> pd.DataFrame:
    """The no-signal level of every metric: redraw the keep mask under the same design and rescore the same phi.

    Args:
        planes: from :func:`null_planes`, if they are at hand.
        draws: permuted populations; ``low`` and ``high`` are quantiles over them (their extremes if they are few).
        value: of the population itself, by metric; with it comes the p-value (:func:`p_values`).

    Returns:
        Index metric; columns value (mean), low, high, draws (that define the metric), and p if ``value`` is given.
    """
    drawn = null_table(null_planes(run, scoring, draws=draws, seed=seed) if planes is None else planes)
    table = quantiles(drawn, level)
    return table if value is None else table.assign(p=p_values(value, drawn))


def null_table(planes: Iterable[xr.Dataset], only: Collection[str] = METRICS) -> pd.DataFrame:
    """Every metric (or those in ``only``) of every plane: one row a plane, one column a metric."""
    return pd.DataFrame([{name: float(METRICS[name].of(p, None)) for name in only} for p in planes])


def quantiles(drawn: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Mean and central interval of each column (its extremes if the rows are few), and how many are defined (draws)."""
    bounded("level", level, 0, 1, whole=False)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = (drawn.quantile(q, interpolation="lower" if q < 0.5 else "higher") for q in tails)
    table = pd.DataFrame({"value": drawn.mean(), "low": low, "high": high, "draws": drawn.notna().sum()})
    return table.rename_axis("metric")


def p_values(value: pd.Series, drawn: pd.DataFrame) -> pd.Series:
    """Two-sided permutation p-value of each metric: 2 min(lower, upper tail), at most 1.

    A tail is (1 + b) / (1 + m) of m defined draws of which b are at least as far out (Phipson and Smyth 2010, eq. 2).
    Assumes that without a signal the keep mask and its redraws are exchangeable, as they are under the run's design;
    then p <= a has a probability of at most a. NaN where the population has no value, or no draw has one.
    """
    count = drawn.notna().sum()
    below, above = (drawn <= value + 1e-12).sum(), (drawn >= value - 1e-12).sum()
    p = (2 * (1 + np.minimum(below, above)) / (1 + count)).clip(upper=1.0)
    return p.where(value.notna() & (count > 0))


def null_planes(
    run: xr.Dataset, scoring: Scoring | str = STUDY, *, draws: int = 20, seed: int = 0, roc: bool = True
) -> Iterator[xr.Dataset]:
    """Planes of the same phi under keep masks that no model was trained with."""
    for keep in null_masks(run, draws, seed):
        yield vulnerability_plane(run, scoring, keep=keep, roc=roc)


def null_masks(run: xr.Dataset, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Keep masks (N, n) drawn anew under the design of ``run``."""
    bounded("draws of the permutation null", draws, 1)
    bounded("seed", seed, 0)
    models, samples = run.sizes["model"], run.sizes["sample"]
    design = study_of(run).design
    for draw in range(draws):
        yield draw_keep(models, samples, design, int(np.random.SeedSequence([seed, draw, 3]).generate_state(1)[0]))

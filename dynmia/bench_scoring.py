"""Measured cost of scoring at the paper's size, against two loops as public code writes them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np


def scoring() -> dict[str, float]:
    """Seconds of scoring at the paper's size in this process, and of the baselines for as much."""
    import tracemalloc

    import xarray as xr

    from .lira import ATTACKS, lira_scores
    from .plane import vulnerability_plane
    from .pool import draw_keep
    from .summary import summarise

    checkpoints, models, samples, few = 41, 20, 50_000, 100
    rng, result = np.random.default_rng(0), {}
    phi, keep = rng.standard_normal((checkpoints, models, samples), np.float32), draw_keep(models, samples)
    phi += np.linspace(0, 2, checkpoints, dtype=np.float32)[:, None, None] * keep

    def timed(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def score(attack: str, centre: str, variance: str) -> None:
        for part in phi:
            lira_scores(part, keep, attack=attack, centre=centre, variance=variance)

    for centre, attack, variance in product(("mean", "median"), ATTACKS, ("pooled", "per-sample")):
        name = f"lira_{attack}_{centre}" + ("_pooled" if variance == "pooled" else "")
        result[name] = timed(partial(score, attack, centre, variance))
    tracemalloc.start()
    lira_scores(phi[-1], keep, variance="per-sample")
    result["memory"] = tracemalloc.get_traced_memory()[1] / 1e9
    tracemalloc.stop()
    scale = checkpoints * samples / few
    result["lira_scipy_loop"] = scale * timed(lambda: scipy_loop(phi[-1, :, :few], keep[:, :few]))
    result["lira_nan_loop"] = checkpoints * timed(lambda: nan_loop(phi[-1], keep))
    run = xr.Dataset(
        {
            "phi": (("epoch", "model", "sample"), phi), "keep": (("model", "sample"), keep),
            "label": ("sample", np.zeros(samples, np.int64)),
            **{f"{part}_accuracy": (("epoch", "model"), np.ones((checkpoints, models))) for part in ("train", "test")},
        },
        coords={"epoch": 10 * np.arange(checkpoints)},
    )  # fmt: skip
    start = time.perf_counter()
    plane = vulnerability_plane(run)
    result["plane"] = time.perf_counter() - start
    result["summarise_1000_draws"] = timed(lambda: summarise(plane, draws=1000))
    for million in (0.01, 0.1, 1.0):
        count = int(1e6 * million)
        phi, keep = rng.standard_normal((1, models, count), np.float32), draw_keep(models, count)
        seconds = [timed(partial(score, "online", "mean", "pooled")) for _ in range(3)]
        result[f"lira_per_million_at_{count}"] = statistics.median(seconds) / million
    return result


def nan_loop(phi: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Online LiRA, per-sample variance, one target at a time with NaN where a model is of the other class."""
    scores = np.empty(phi.shape)
    for target in range(len(phi)):
        others = (np.arange(len(phi)) != target)[:, None]
        inside, outside = np.where(keep & others, phi, np.nan), np.where(~keep & others, phi, np.nan)
        x = phi[target]
        scores[target] = _log_density(x, np.nanmean(inside, 0), np.nanvar(inside, 0, ddof=1)) - _log_density(
            x, np.nanmean(outside, 0), np.nanvar(outside, 0, ddof=1)
        )
    return scores


def _log_density(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    return -0.5 * (np.log(2 * np.pi * var) + (x - mean) ** 2 / var)


def scipy_loop(phi: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Online LiRA, per-sample variance, one (target, sample) pair at a time, as public code does."""
    from scipy.stats import norm

    scores = np.empty(phi.shape)
    for target, sample in np.ndindex(*phi.shape):
        others = np.arange(len(phi)) != target
        inside, outside = phi[others & keep[:, sample], sample], phi[others & ~keep[:, sample], sample]
        x = phi[target, sample]
        scores[target, sample] = norm.logpdf(x, inside.mean(), inside.std(ddof=1)) - norm.logpdf(
            x, outside.mean(), outside.std(ddof=1)
        )
    return scores

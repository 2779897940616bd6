"""Do the 95 % intervals hold? Their coverage in the simulator, where the truth is known by brute force.

Every estimand is a mean at the same number of models N: over samples, the figure of the same models on many samples;
over models, that of the same samples under many populations; over both, that of many populations on many samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr
from scipy import stats

from dynmia.attack.plane import rate_interval, vulnerability_plane
from dynmia.book.makers import table_place, two_processes, write_table
from dynmia.book.tables import READINGS
from dynmia.cli import Folder
from dynmia.dynamics.metrics import METRICS
from dynmia.stats.intervals import CHOSEN, OVER, Scored, ends, figures, halved
from dynmia.stats.resample import bootstrap_weights
from dynmia.stats.simulate import Simulator

SCENARIOS: dict[str, dict[str, Any]] = {
    "normal": {},
    "normal, model effect": {"effect": 0.5},
    "heavy tails, model effect": {"effect": 0.5, "noise": "heavy"},
    "skewed, model effect": {"effect": 0.5, "noise": "skewed"},
    "one model collapses": {"effect": 0.5, "collapse": 1 / 20},
}
MODELS, SAMPLES, MANY, RULE = 20, 150, 3000, "lira:fpr@0.01"  # the rivals know this scoring alone
SETTING = {"samples": MANY, "checkpoints": 3, "separation": 1.5}
BINS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)  # of a sample's expected rate
SETS = dict.fromkeys(READINGS, 40) | {RULE: 100}
INDEX = ["scenario", "rule", "over", "method", "metric"]
COLUMNS = ["value", "estimand", "truth", "coverage", "error", "ratio", "binomial", "populations"]


def coverage(
    name: str, scoring: str = RULE, sets: int = 100, each: int = 4, others: int = 28, rivals: int = 40
) -> pd.DataFrame:
    """Coverage of every interval in one scenario.

    Args:
        name: of ``SCENARIOS``.
        scoring: of the populations.
        sets: of samples; each: populations on a set whose intervals are formed.
        others: further populations on each set, for the estimand over models and the rates of single samples.
        rivals: populations on which the intervals that are not recommended are formed as well.

    Returns:
        Index (scenario, rule, over, method, metric); columns value (mean over populations), estimand, truth (the ideal
        attack), coverage (share), error (its standard error, over sets), ratio (root mean square of the standard
        errors that the intervals claim, over the standard deviation that they should), populations. For
        single samples, method ``wilson`` or ``jeffreys`` and metric such as ``tpr 0.4 to 0.6``: binomial is the
        coverage if the flags of a sample were independent.
    """
    kept, single, whole = [], [], []
    for number in range(sets):
        many = Simulator(**SETTING | SCENARIOS[name], seed=number)
        few = Simulator(**SETTING | SCENARIOS[name] | {"samples": SAMPLES}, seed=number)
        few.__dict__["centres"] = tuple(part[:, :SAMPLES] for part in many.centres)  # the first of the many
        runs = [many.run(MODELS, r) for r in range(each)]
        large = figures([vulnerability_plane(run, scoring) for run in runs])
        runs = [run.isel(sample=slice(SAMPLES)) for run in runs]
        planes = [vulnerability_plane(run, scoring) for run in runs]
        planes += [vulnerability_plane(few.run(MODELS, each + r), scoring) for r in range(others)]
        same = figures(planes).mean()
        whole.append(large)
        single.append(planes)
        part, all_ = 1 - SAMPLES / MANY, 1 - 1 / (each + others)  # the estimand has the figure itself in it
        for r, run in enumerate(runs):
            wanted = {"samples": (large.iloc[r], part), "models": (same, all_), "both": (None, 1.0)}
            drawn = {dim: halved(run, scoring, dim, seed=r) for dim in ("sample", "model")}
            value = figures([planes[r]]).iloc[0]
            tables = {
                (over, "halves"): ends(Scored(planes[r], value, {dim: drawn[dim] for dim in dims}, run.keep, r))
                for over, (_, dims) in OVER.items()
            }
            tables["samples", "bootstrap"] = bootstrap_samples(planes[r])
            if scoring == RULE and number * each + r < rivals:
                for method, rival in RIVALS.items():
                    tables["models", method] = rival(run)
            for (over, method), table in tables.items():
                target, share = wanted[over]
                table = table.assign(estimand=target, share=share, set=number, over=over, method=method)
                kept.append(table.reset_index())
    table, expected = pd.concat(kept), pd.concat(whole).mean()
    table["estimand"] = table.estimand.fillna(table.metric.map(expected))
    truth = figures([_truth(name, scoring, s) for s in range(min(sets, 20))], [m for m in CHOSEN if m != "auc"]).mean()
    rows = {
        (name, scoring, *key): _row(part) | {"truth": truth.get(str(key[2]), np.nan)}
        for key, part in table.groupby(["over", "method", "metric"], sort=False)
    }
    rows |= {(name, scoring, "one sample", *key): row for key, row in _single(single).items()}
    return pd.DataFrame.from_dict(rows, "index", columns=COLUMNS).rename_axis(INDEX)


def _row(part: pd.DataFrame) -> dict[str, float]:
    """Coverage of one metric's intervals, with the estimand moved off the figure that is part of it."""
    off = (part.value - part.estimand) / np.sqrt(part.share)
    half = (part.high - part.low) / 2
    middle = (part.high + part.low) / 2 - part.value  # not zero where the interval corrects a bias
    hit = ((off + middle).abs() <= half).groupby(part.set).mean()
    claimed = part.error.fillna(half / stats.norm.ppf(0.975)) if "error" in part else half / stats.norm.ppf(0.975)
    return {
        "value": part.value.mean(), "estimand": part.estimand.mean(), "coverage": hit.mean(),
        "error": hit.std() / np.sqrt(len(hit)), "populations": len(part),
        "ratio": np.sqrt((claimed**2).mean()) / (off + middle).std(),
    }  # fmt: skip


def _truth(name: str, scoring: str, seed: int) -> xr.Dataset:
    """The plane of the ideal attack, with as many models on each side as the metrics ask for."""
    plane = Simulator(**SETTING | SCENARIOS[name], seed=seed).truth(scoring)
    return plane.assign(n_in=("sample", np.full(MANY, MODELS // 2)))


def _single(sets: Sequence[Sequence[xr.Dataset]]) -> dict[tuple[str, str], dict[str, float]]:
    """Coverage of a sample's expected rate at the end, by that rate; and if its flags were independent."""
    parts = []
    for number, planes in enumerate(sets):
        for rate, hits, trials in (("tpr", "tp", "n_in"), ("fpr", "fp", "n_out")):
            count = np.stack([plane[hits].values[-1] for plane in planes])
            size = np.stack([plane[trials].values for plane in planes])
            p = count.sum(0) / size.sum(0)
            for method in ("wilson", "jeffreys"):
                ends = rate_interval(xr.DataArray(count), xr.DataArray(size), method=method)
                hit = (ends.low.values <= p) & (p <= ends.high.values)
                parts.append(pd.DataFrame({
                    "set": number, "method": method, "rate": rate, "p": p, "hit": hit.mean(0),
                    "binomial": binomial_coverage(p, size, method), "claimed": (p * (1 - p) / size).mean(0),
                    "variance": ((count / size - p) ** 2).mean(0) * len(planes) / (len(planes) - 1),
                }))  # fmt: skip
    table = pd.concat(parts)
    table["metric"] = [
        f"{rate} {BINS[k]:g} to {BINS[k + 1]:g}"
        for rate, k in zip(table.rate, np.clip(np.searchsorted(BINS, table.p, "right") - 1, 0, len(BINS) - 2))
    ]
    every = table.assign(metric=table.rate + " all")
    rows = {}
    for key, part in pd.concat([every, table]).groupby(["method", "metric"]):
        by_set = part.groupby("set").hit.agg(["sum", "size"])
        mean = part.hit.mean()
        spread = (by_set["sum"] - mean * by_set["size"]).std() * np.sqrt(len(by_set)) / len(part)
        rows[key] = {
            "value": part.p.mean(), "estimand": part.p.mean(), "truth": np.nan, "coverage": mean, "error": spread,
            "ratio": np.sqrt(part.claimed.mean() / part.variance.mean()) if part.variance.mean() > 0 else np.nan,
            "binomial": part.binomial.mean(), "populations": len(part) * len(sets[0]),
        }  # fmt: skip
    return rows


def binomial_coverage(p: np.ndarray, trials: np.ndarray, method: str) -> np.ndarray:
    """Exact coverage of a rate's interval, for binomial counts with rates p (n,), mean over rows of trials (R, n)."""
    held = np.zeros(trials.shape)
    for size in np.unique(trials):
        count = np.arange(size + 1)[:, None]
        ends = rate_interval(xr.DataArray(count), xr.DataArray(np.full_like(count, size)), method=method)
        hit = (ends.low.values <= p) & (p <= ends.high.values)
        held += (trials == size) * (hit * stats.binom.pmf(count, size, p)).sum(0)
    return held.mean(0)


def delete_one(run: xr.Dataset) -> pd.DataFrame:
    """The jackknife that deletes one model after another."""
    models = run.sizes["model"]
    rest = [run.isel(model=np.arange(models) != i) for i in range(models)]
    drawn = figures([vulnerability_plane(part, RULE) for part in rest])
    return _table(run, np.sqrt((models - 1) * drawn.var(ddof=0)), stats.t.ppf(0.975, models - 1))


def half_against_half(run: xr.Dataset) -> pd.DataFrame:
    """From the difference of complementary halves, E (a - b)^2 / 4: right if variances fall as 1 / N."""
    drawn = halved(run, RULE, "model")
    apart = drawn.iloc[::2].reset_index(drop=True) - drawn.iloc[1::2].reset_index(drop=True)
    return _table(run, np.sqrt((apart**2).mean() / 4), stats.t.ppf(0.975, 10))


def bootstrap_samples(plane: xr.Dataset, draws: int = 100) -> pd.DataFrame:
    """Samples drawn with replacement, thresholds kept: quantiles, for biased figures mirrored at the value (basic)."""
    weights, rows = bootstrap_weights(plane, draws), {}
    for name in CHOSEN:
        value, drawn = float(METRICS[name].of(plane, None)), METRICS[name].of(plane, weights).values
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        rows[name] = [value, 2 * value - high, 2 * value - low] if METRICS[name].biased else [value, low, high]
    table = pd.DataFrame.from_dict(rows, "index", columns=["value", "low", "high"])
    return table.clip(lower=pd.Series({name: METRICS[name].low for name in CHOSEN}), axis=0).rename_axis("metric")


def bootstrap_models(run: xr.Dataset, draws: int = 20) -> pd.DataFrame:
    """Models drawn with replacement; no copy of a target is in its own statistics."""
    models, rng = run.sizes["model"], np.random.default_rng(5)
    times = [np.bincount(rng.integers(0, models, models), minlength=models) for _ in range(draws)]
    drawn = figures([weighted_plane(run, row) for row in times], [m for m in CHOSEN if m != "auc"])
    return _table(run, drawn.std(), stats.t.ppf(0.975, models - 1))


RIVALS: dict[str, Callable[[xr.Dataset], pd.DataFrame]] = {
    "delete one": delete_one, "half against half": half_against_half, "bootstrap": bootstrap_models
}  # fmt: skip


def _table(run: xr.Dataset, error: pd.Series, quantile: float) -> pd.DataFrame:
    value = figures([vulnerability_plane(run, RULE)], error.index).iloc[0]
    table = pd.DataFrame({"value": value, "low": value - quantile * error, "high": value + quantile * error})
    return table.assign(error=error).rename_axis("metric")


def weighted_plane(run: xr.Dataset, times: np.ndarray, rule: str = RULE) -> xr.Dataset:
    """The plane of a population with ``times`` (N,) copies of each model, all copies of a target left out.

    With w copies, a group of c models with copies, mean m and d = x - m: m' = m - w d / (c - w), and
    M2' = M2 - w d^2 c / (c - w); the pooled variance divides by c' - 1. Samples with fewer than two distinct models
    on a side are left out.
    """
    level = float(rule.removeprefix("lira:fpr@"))
    w, keep = times[times > 0][:, None], run.keep.values[times > 0]
    usable = np.minimum(keep.sum(0), (~keep).sum(0)) >= 2
    keep, phi = keep[:, usable], run.phi.values[:, times > 0][..., usable].astype(float)
    rates = np.empty((2, len(phi), int(usable.sum())))
    for t, x in enumerate(phi):
        scores = np.zeros(x.shape)
        for sign, side in ((-1, keep), (1, ~keep)):
            weight = w * side
            count = weight.sum(0)
            mean = (weight * x).sum(0) / count
            d = np.where(side, x - mean, 0)
            left = (w * d**2).sum() - (w[:, 0] * (d**2 * count / (count - weight)).sum(1))
            variance = (left / ((count - 1).sum() - weight.sum(1)))[:, None]
            off = x - mean + weight * d / (count - weight)
            scores += sign * 0.5 * (np.log(variance) + off**2 / variance)
        outside = np.sort(np.repeat(scores, w[:, 0], 0)[~np.repeat(keep, w[:, 0], 0)])
        flagged = w * (scores > outside[len(outside) - 1 - int(level * len(outside) + 1e-9)])
        rates[:, t] = [(flagged * side).sum(0) / (w * side).sum(0) for side in (keep, ~keep)]
    tpr, fpr = (xr.DataArray(rate, dims=("epoch", "sample")) for rate in rates)
    plane = xr.Dataset({"tpr": tpr, "fpr": fpr, "advantage": tpr - fpr}, {"epoch": run.epoch})
    plane = plane.assign(n_in=("sample", (w * keep).sum(0))).assign_coords(sample=run.sample.values[usable])
    return plane


def main(folder: Folder = "data") -> None:
    """Measure every scenario under every scoring, two at once; an hour."""
    place = table_place(folder, "coverage.csv")
    jobs = [(name, scoring) for scoring in (*READINGS, RULE) for name in SCENARIOS]
    with two_processes() as pool:
        tables = dict(zip(jobs, pool.map(coverage, *zip(*jobs), [SETS[scoring] for _, scoring in jobs])))
    order = [tables[name, scoring] for name in SCENARIOS for scoring in (RULE, *READINGS)]
    sizes = ", ".join(f"{sets} sets of samples under {scoring}" for scoring, sets in SETS.items())
    about = f"{sizes}, seeds from 0; numpy {np.__version__}, scipy {scipy.__version__}"
    write_table(pd.concat(order), place, about, digits=5)

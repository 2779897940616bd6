"""Test and retest: how alike are populations that differ in their models alone, beside what chance would do.

Sampling noise alone is what is left if the populations had the same rates: every trial of a sample is drawn anew from
the models of all populations, independently of the other samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import expit
from scipy.stats import chi2

from ..attack.others import attack_scores
from ..attack.scoring import Scoring
from ..dynamics import cloud as dyn
from ..dynamics.cloud import Weights
from ..dynamics.metrics import METRICS
from ..errors import UserError
from ..stats.agreement import TAILS, chance_overlap, overlap
from ..stats.resample import bootstrap_weights

POPULATION = (
    "advantage", "displacement", "entropy_change", "speed_mean", "vulnerable", "transition_peak", "early_recall",
)  # fmt: skip
LEAK = 1 / 3  # mean final advantage over the populations from which a sample counts as leaking
LABELS = {
    "cv_sample": "CV of a leaking sample's advantage, median", "icc_advantage": "ICC(2,1), final advantage",
    "icc_dynamic": "ICC(2,1), dynamic vulnerability", "jaccard": "vulnerable sets, Jaccard index",
    "kappa": "vulnerable sets, Cohen's kappa", **{f"cv_{name}": f"CV of {METRICS[name].label}" for name in POPULATION},
}  # fmt: skip


def icc(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Intraclass correlation ICC(2,1): absolute agreement of single ratings, targets and raters random.

    (BMS - EMS) / (BMS + (k - 1) EMS + k (JMS - EMS) / n), Shrout and Fleiss (1979), case 2. Raters are populations: a
    shift between them counts as disagreement.

    Args:
        values: (n targets, k raters).
        weights: how often each target counts, (draw, n); None is once, in one draw.

    Returns:
        (draw,); NaN without any variance.
    """
    if np.ndim(values) != 2 or min(values.shape) < 2:
        raise UserError(f"an intraclass correlation needs at least 2 targets and 2 raters, not shape {values.shape}.")
    times = np.ones((1, len(values))) if weights is None else weights
    k, n = values.shape[1], times.sum(1)
    values = values - values.mean()  # the sums of squares below then hardly cancel
    columns = times @ values / n[:, None]
    grand = columns.mean(1)
    between = k * (times @ values.mean(1) ** 2 - n * grand**2)
    judges = n * ((columns - grand[:, None]) ** 2).sum(1)
    rest = times @ (values**2).sum(1) - n * k * grand**2 - between - judges
    bms, jms, ems = between / (n - 1), judges / (k - 1), np.maximum(rest, 0) / ((n - 1) * (k - 1))
    total = bms + (k - 1) * ems + k * (jms - ems) / n
    return (bms - ems) / np.where(total > 1e-15, total, np.nan)


def kappa(a: xr.Dataset, b: xr.Dataset, weights: Weights = None) -> xr.DataArray:
    """Cohen's kappa (1960) of the two planes' finally vulnerable labels: 0 is what unrelated labels give."""
    first, second = (dyn.vulnerable(plane).isel(epoch=-1, drop=True) for plane in (a, b))
    p, q = dyn.population_mean(first, weights), dyn.population_mean(second, weights)
    agree, chance = dyn.population_mean(first == second, weights), p * q + (1 - p) * (1 - q)
    return (agree - chance) / (1 - chance).where(chance < 1)


def redrawn(
    runs: Sequence[xr.Dataset], planes: Sequence[xr.Dataset], draws: int, seed: int = 0
) -> Iterator[list[xr.Dataset]]:
    """Planes of the same populations if all had the same rates: sampling noise of their numbers of trials alone.

    For each population, sample and side, as many models as it has there are drawn with replacement from those of all
    populations, each with its flags at all checkpoints. At one checkpoint the counts are binomial at the pooled rates;
    over training a model's flags stay together. Assumes that samples and trials are independent given the rates. The
    pooled rates rest on finitely many trials too, so that agreement is overstated a little.

    Args:
        runs, planes: of the populations, in one order; LiRA planes of any rule.
    """
    flags = np.concatenate([_flags(run, plane) for run, plane in zip(runs, planes)], axis=1)  # (epoch, all models, n)
    keep = np.concatenate([run.keep.values for run in runs])
    rng = np.random.default_rng(seed)
    samples = np.arange(keep.shape[1])
    for _ in range(draws):
        found = []
        for plane in planes:
            counts = {}
            for name, trials, mask in (("tp", plane.n_in.values, keep), ("fp", plane.n_out.values, ~keep)):
                order = np.argsort(~mask, axis=0, kind="stable")  # models of this side first
                pick = (rng.random((trials.max(), len(samples))) * mask.sum(0)).astype(int)
                drawn = (np.arange(trials.max())[:, None] < trials).astype(np.float32)
                weight = np.zeros(keep.shape, np.float32)
                np.add.at(weight, (order[pick, samples], samples[None]), drawn)
                counts[name] = (("epoch", "sample"), np.einsum("tmz,mz->tz", flags, weight))
            new = plane.assign(counts)
            new["tpr"], new["fpr"] = new.tp / new.n_in, new.fp / new.n_out
            found.append(new.assign(advantage=new.tpr - new.fpr, state=dyn.states(new, dyn.CUTS)))
        yield found


def _flags(run: xr.Dataset, plane: xr.Dataset) -> np.ndarray:
    """The decisions of all models on all samples, float32 (epoch, N, n)."""
    options = {name: plane.attrs[name] for name in ("centre", "variance")}
    scoring, decided = Scoring.of(plane.attrs["rule"], **options), []
    for phi, threshold in zip(run.phi.values, plane.threshold.values):
        scores = attack_scores(phi, run.keep.values, run.label.values, scoring)
        decided.append(expit(scores) if scoring.reading == "posterior" else scores > threshold)
    return np.array(decided, np.float32)


def statistics(planes: Sequence[xr.Dataset], weights: Weights = None) -> pd.DataFrame:
    """How alike the populations are, by the names of ``LABELS``, one row a bootstrap draw (one without weights).

    Coefficients of variation are standard deviation (k - 1) over the absolute mean of the k populations. A sample leaks
    if its mean final advantage over them is at least ``LEAK``. Agreement of sets is the mean over pairs.
    """
    times = None if weights is None else weights.transpose("draw", "sample").values
    final = np.stack([plane.advantage.values[-1] for plane in planes], 1)  # (n, k)
    dynamic = np.stack([dyn.dynamic_vulnerability(plane).values for plane in planes], 1)
    pairs = list(itertools.combinations(planes, 2))
    found: dict[str, Any] = {}
    for name in POPULATION:
        found[f"cv_{name}"] = _cv([METRICS[name].of(plane, weights).values for plane in planes])
    leaking = final.mean(1) >= LEAK
    single = _cv(final[leaking].T)
    found["cv_sample"] = np.nan
    if leaking.any():
        order = single.argsort()
        mass = (np.ones((1, len(final))) if times is None else times)[:, leaking][:, order].cumsum(1)
        found["cv_sample"] = single[order][(mass >= mass[:, -1:] / 2).argmax(1)]  # the lower median
    found["icc_advantage"], found["icc_dynamic"] = icc(final, times), icc(dynamic, times)
    found["jaccard"] = np.mean([overlap(a, b, weights).values for a, b in pairs], axis=0)
    found["kappa"] = np.mean([kappa(a, b, weights).values for a, b in pairs], axis=0)
    return pd.DataFrame({name: np.atleast_1d(value) for name, value in found.items()})


def _cv(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    mean = np.abs(np.mean(values, axis=0))
    return np.std(values, axis=0, ddof=1) / np.where(mean > 0, mean, np.nan)


def retest(
    runs: Sequence[xr.Dataset], planes: Sequence[xr.Dataset], *, draws: int = 200, redraws: int = 20
) -> pd.DataFrame:
    """Every statistic with its intervals, and what sampling noise alone and unrelated sets would give.

    Args:
        runs, planes: of populations on the same samples.
        draws: of the bootstrap over samples, which are drawn alike in all populations.
        redraws: of :func:`redrawn`.

    Returns:
        Index as ``LABELS``; columns value; low, high, the bootstrap over samples: for these populations (it
        adds noise to a coefficient of variation, so that a small one may lie below its interval);
        population_low, population_high, for coefficients of variation, where that of more such populations lies: the
        exact interval of a standard deviation of k normal values (chi-squared), the mean taken as known; noise,
        noise_low, noise_high, mean and range over the redraws; chance, of sets that share nothing but their sizes.

    Raises:
        UserError: fewer than two populations, or not on the same samples.
    """
    if len(planes) < 2 or not all(np.array_equal(plane.sample, planes[0].sample) for plane in planes):
        raise UserError("test and retest needs at least two populations on the same samples in the same order.")
    value = statistics(planes).iloc[0]
    low, high = statistics(planes, bootstrap_weights(planes[0], draws)).quantile(TAILS).to_numpy()
    noise = pd.concat([statistics(other) for other in redrawn(runs, planes, redraws)])
    table = pd.DataFrame({"value": value, "low": low, "high": high})
    free = len(planes) - 1
    over = [f"cv_{name}" for name in POPULATION]
    for name, tail in zip(("population_low", "population_high"), TAILS[::-1]):
        table.loc[over, name] = value[over] * np.sqrt(free / chi2.ppf(tail, free))
    table = table.assign(noise=noise.mean(), noise_low=noise.min(), noise_high=noise.max())
    table.loc["jaccard", "chance"] = np.mean([chance_overlap(a, b)[0] for a, b in itertools.combinations(planes, 2)])
    table.loc["kappa", "chance"] = 0.0
    return table.loc[list(LABELS)].rename_axis("statistic")

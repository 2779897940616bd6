"""The bias of leave-one-out scores in populations without a signal, simulated and in closed form.

If phi does not depend on the keep mask, a target is as far from the members as from the others, but its own side is
estimated without it, from one model fewer. That mean is noisier, so further away on average, and the score leans
towards the other side: the attack does slightly worse than chance.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
import pandas as pd
import xarray as xr
from scipy import optimize, stats

from dynmia.attack.plane import vulnerability_planes
from dynmia.attack.scoring import Scoring, level_of
from dynmia.book.makers import table_place, two_processes, write_table
from dynmia.book.tables import RULES
from dynmia.cli import Folder
from dynmia.dynamics.metrics import METRICS
from dynmia.stats.simulate import Simulator

CHEAP = [name for name in METRICS if name != "silhouette"]  # k-means takes longer than all others together
MODELS = (8, 16, 20, 32, 64, 128)
DESIGNS = ("bernoulli", "balanced")
CHECKPOINTS = 4


def expected_rates(models: int, rule: str = "bayes", design: str = "bernoulli") -> tuple[float, float]:
    """Mean TPR and FPR of leave-one-out LiRA where there is no signal, normal phi and the true variance known.

    With a in- and b out-models the score of a target at distance U from the mean out and V from the mean in is
    (U^2 - V^2) / 2 = A B / 2 with A = U - V, B = U + V. U and V are normal with covariance 1 and variances 1 + 1/b and
    1 + 1/(a - 1) for a member, 1 + 1/(b - 1) and 1 + 1/a for another, in units of the variance of phi. So for ``bayes``
    TPR = 1/2 + arcsin(rho) / pi, rho = corr(A, B): at a = b = c, TPR - FPR falls as -(2 / c^3)^(1/2) / (2 pi).

    Returns:
        TPR and FPR, means over the design's a; for ``fpr@a`` at the threshold whose FPR pooled over models is a.
    """
    need = 3 if models >= 6 else 2  # as pool.draw_keep
    a = np.array([models // 2]) if design == "balanced" else np.arange(need, models - need + 1)
    b, share = models - a, stats.binom.pmf(a, models, 0.5)
    share = share / share.sum()
    z, step = np.polynomial.legendre.leggauss(600)
    z, step = 5 * (z + 1), 5 * step  # from 0 to 10; the half below 0 is its mirror image

    def exceeds(threshold: float, var_u: np.ndarray, var_v: np.ndarray) -> np.ndarray:
        var_a, var_b = var_u + var_v - 2, var_u + var_v + 2
        slope = (var_u - var_v) / np.sqrt(var_a * var_b)  # rho
        away = (2 * threshold / np.sqrt(var_a * var_b))[:, None] / z - slope[:, None] * z
        return 2 * (stats.norm.sf(away / np.sqrt(1 - slope**2)[:, None]) * stats.norm.pdf(z)) @ step

    def fpr(threshold: float) -> np.ndarray:
        return exceeds(threshold, 1 + 1 / (b - 1), 1 + 1 / a)

    level, threshold = level_of(Scoring.of(rule).reading), 0.0
    if level is not None:
        pooled = share * b / (share * b).sum()
        threshold = optimize.brentq(lambda t: pooled @ fpr(t) - level, -50, 50, xtol=1e-12)
    return float(share @ exceeds(threshold, 1 + 1 / b, 1 + 1 / (a - 1))), float(share @ fpr(threshold))


def metric_values(planes: Iterable[xr.Dataset], checkpoints: int | None = None) -> xr.Dataset:
    """The metrics ``CHEAP`` of many planes of one size at once, each (draw, population).

    Args:
        planes: one a draw.
        checkpoints: of a population, if the epochs of a plane hold several, one after another, ten epochs apart.
    """
    wanted = ["tpr", "fpr", "advantage", "state", "place_in", "place_out", "hits", "n_in", "n_out"]
    whole = xr.concat(
        [plane[wanted] for plane in planes], "draw", data_vars="all", coords="minimal", compat="override",
        join="override",
    )  # fmt: skip
    checkpoints = checkpoints or whole.sizes["epoch"]
    whole = whole.drop_vars("epoch").coarsen(epoch=checkpoints).construct(epoch=("population", "epoch"))
    whole = whole.assign_coords(epoch=10 * np.arange(checkpoints))
    return xr.Dataset(
        {name: _entropy_change(whole) if name == "entropy_change" else METRICS[name].of(whole, None) for name in CHEAP}
    ).transpose("draw", "population")


def _entropy_change(whole: xr.Dataset, block: int = 64) -> xr.DataArray:
    """Of each population: a block of them is one plane, in which the weights choose the samples of each."""
    ends = whole[["tpr", "fpr"]].isel(epoch=[0, -1]).transpose("epoch", "draw", "population", "sample")
    _, draws, populations, samples = ends.tpr.shape
    rates = {name: ends[name].values.reshape(2, -1) for name in ("tpr", "fpr")}
    changes = []
    for start in range(0, draws * populations, block):
        part = slice(start * samples, (start + block) * samples)
        plane = xr.Dataset({name: (("epoch", "sample"), rate[:, part]) for name, rate in rates.items()})
        plane = plane.assign(n_in=plane.tpr[0], epoch=ends.epoch.values)
        own = np.kron(np.eye(plane.sizes["sample"] // samples), np.ones(samples))
        changes.append(METRICS["entropy_change"].of(plane, xr.DataArray(own, dims=("draw", "sample"))))
    return xr.DataArray(np.concatenate(changes).reshape(draws, populations), dims=("draw", "population"))


def bias(
    models: int, design: str, populations: int = 100, samples: int = 500, variance: str = "pooled", seed: int = 0
) -> pd.DataFrame:
    """Mean of every metric over ``populations`` without a signal, and its 95 % Monte-Carlo interval.

    Returns:
        Index (rule, metric), columns value, low, high.
    """
    simulator = Simulator(samples, CHECKPOINTS - 1, separation=0, spread_in=1, seed=seed)
    planes = [
        vulnerability_planes(
            simulator.run(models, number, design), [Scoring.of(rule, variance=variance) for rule in RULES]
        )
        for number in range(populations)
    ]
    tables = {}
    for rule in RULES:
        drawn = metric_values(plane[rule] for plane in planes).isel(population=0).to_dataframe()[CHEAP]
        half = 1.96 * drawn.std() / np.sqrt(drawn.notna().sum())
        tables[rule] = pd.DataFrame({"value": drawn.mean(), "low": drawn.mean() - half, "high": drawn.mean() + half})
    return pd.concat(tables, names=["rule", "metric"])


def _bias(case: tuple[str, str, int]) -> pd.DataFrame:
    variance, design, models = case
    return bias(models, design, variance=variance)


def main(folder: Folder = "data") -> None:
    """Measure the bias for both variances and designs and every number of models, two processes at once; minutes."""
    place = table_place(folder, "null-bias.csv")
    cases = list(product(("pooled", "per-sample"), DESIGNS, MODELS))
    with two_processes() as pool:
        table = pd.concat(dict(zip(cases, pool.map(_bias, cases))), names=["variance", "design", "models"])
    about = f"100 populations of 500 samples each, seed 0; numpy {np.__version__}"
    write_table(table, place, about, digits=5)

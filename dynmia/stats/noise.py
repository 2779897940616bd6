"""Populations without a signal: the bias of leave-one-out scores, and whether the permutation test keeps its level.

If phi does not depend on the keep mask, a target is as far from the members as from the others, but its own side is
estimated without it, from one model fewer. That mean is noisier, so further away on average, and the score leans
towards the other side: the attack does slightly worse than chance.

    python -m dynmia.stats.noise      # writes data/null-bias.csv and data/null-calibration.csv
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import optimize, stats
from scipy.special import expit

from ..attack.plane import parse_rule, vulnerability_planes
from ..book.tables import read_table, script
from ..dynamics import cloud as dyn
from ..dynamics.metrics import METRICS
from ..store.folder import write_atomic
from ..store.run import project_root, resolve
from .resample import null_masks, p_values
from .simulate import Simulator

RULES = ("fpr@0.01", "bayes")
CHEAP = [name for name in METRICS if name != "silhouette"]  # k-means takes longer than all others together
CORRELATED = {  # of a sample's dynamic vulnerability (Spearman) with a stand-in for a measure of its hardness
    "r_all": "correlation, a measure of all models",
    "r_out": "correlation, a measure of the out-models (not exchangeable)",
}
CALIBRATED = {name: METRICS[name].label for name in CHEAP} | CORRELATED
MODELS = (8, 16, 20, 32, 64, 128)
DESIGNS = ("bernoulli", "balanced")
BATCHES, BATCH = 100, 25  # populations of a batch share their masks, so that one call scores them all
SAMPLES = 65  # of a population whose test is calibrated: 1 % of its 650 out-scores is not near a whole number
CHECKPOINTS = 4
LEVEL, DRAWS = 0.05, 199  # 10 of 200 populations: without ties the test has this level to the digit


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

    level, threshold = parse_rule(rule), 0.0
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
    wanted = ["tpr", "fpr", "advantage", "place_in", "place_out", "hits", "n_in", "n_out"]
    whole = xr.concat(
        [plane[wanted] for plane in planes], "draw", data_vars="all", coords="minimal", compat="override",
        join="override",
    )  # fmt: skip
    checkpoints = checkpoints or whole.sizes["epoch"]
    whole = whole.drop_vars("epoch").coarsen(epoch=checkpoints).construct(epoch=("population", "epoch"))
    whole = whole.assign_coords(epoch=10 * np.arange(checkpoints)).assign(state=dyn.states(whole))
    return xr.Dataset(
        {name: _entropy_change(whole) if name == "entropy_change" else METRICS[name].of(whole, None) for name in CHEAP}
    ).transpose("draw", "population")


def _entropy_change(whole: xr.Dataset, block: int = 64) -> xr.DataArray:
    """Of each population: a block of them is one plane, in which the weights choose the samples of each."""
    ends = whole[["tpr", "fpr"]].isel(epoch=[0, -1]).transpose("epoch", "draw", "population", "sample")
    _, draws, populations, samples = ends.tpr.shape
    rates = {name: ends[name].values.reshape(2, -1) for name in ("tpr", "fpr")}
    found = []
    for start in range(0, draws * populations, block):
        part = slice(start * samples, (start + block) * samples)
        plane = xr.Dataset({name: (("epoch", "sample"), rate[:, part]) for name, rate in rates.items()})
        plane = plane.assign(n_in=plane.tpr[0], epoch=ends.epoch.values)
        own = np.kron(np.eye(plane.sizes["sample"] // samples), np.ones(samples))
        found.append(METRICS["entropy_change"].of(plane, xr.DataArray(own, dims=("draw", "sample"))))
    return xr.DataArray(np.concatenate(found).reshape(draws, populations), dims=("draw", "population"))


def correlations(run: xr.Dataset, planes: Iterable[xr.Dataset], checkpoints: int = CHECKPOINTS) -> xr.Dataset:
    """``CORRELATED`` for each plane and population (draw, population): the variance of confidence over models.

    That of all models does not look at the keep mask. That of the out-models keeps the true mask of ``run`` under every
    redraw, as a measure recorded in training must.
    """
    shape = -1, checkpoints, *run.keep.shape
    prob = expit(run.phi.values.astype(float)).reshape(shape)[:, -1]  # (population, N, n), at the last checkpoint
    y = np.stack([plane.advantage.values.reshape(*shape[:2], shape[3]).mean(1) for plane in planes])
    measures = {"r_all": prob.var(1), "r_out": prob.var(1, where=~run.keep.values)}

    def standard(values: np.ndarray) -> np.ndarray:
        ranks = stats.rankdata(values, axis=-1)
        ranks -= ranks.mean(-1, keepdims=True)
        length = np.sqrt((ranks**2).sum(-1, keepdims=True))
        return ranks / np.where(length > 0, length, np.nan)

    found = {name: (standard(x) * standard(y)).sum(-1) for name, x in measures.items()}
    return xr.Dataset({name: (("draw", "population"), r) for name, r in found.items()})


def bias(
    models: int, design: str, populations: int = 100, samples: int = 500, variance: str = "pooled", seed: int = 0
) -> pd.DataFrame:
    """Mean of every metric over ``populations`` without a signal, and its 95 % Monte-Carlo interval.

    Returns:
        Index (rule, metric), columns value, low, high.
    """
    simulator = Simulator(samples, CHECKPOINTS - 1, separation=0, spread_in=1, seed=seed)
    planes = [
        vulnerability_planes(simulator.run(models, number, design), RULES, variance=variance)
        for number in range(populations)
    ]
    tables = {}
    for rule in RULES:
        drawn = metric_values(plane[rule] for plane in planes).isel(population=0).to_dataframe()[CHEAP]
        half = 1.96 * drawn.std() / np.sqrt(drawn.notna().sum())
        tables[rule] = pd.DataFrame({"value": drawn.mean(), "low": drawn.mean() - half, "high": drawn.mean() + half})
    return pd.concat(tables, names=["rule", "metric"])


def rejections(batch: int, populations: int = BATCH, draws: int = DRAWS, models: int = 20) -> pd.DataFrame:
    """How often :func:`dynmia.stats.resample.p_values` is at most ``LEVEL`` in a batch of populations without a signal.

    Each population is compared with its own phi under ``draws`` redrawn masks.

    Returns:
        Index (batch, rule, metric). Columns rejected and defined, counts of populations; attainable, the sum over them
        of the share of masks that would be rejected if each in turn were the true one: what ties leave of ``LEVEL``.
    """
    simulator = Simulator(SAMPLES, populations * CHECKPOINTS - 1, separation=0, spread_in=1, seed=1)
    run = simulator.run(models, batch)
    masks = [run.keep.values, *null_masks(run, draws, seed=batch)]
    planes = [vulnerability_planes(run, RULES, keep=mask) for mask in masks]
    tables = {}
    for rule in RULES:
        values = metric_values((plane[rule] for plane in planes), CHECKPOINTS)
        values, found = values.merge(correlations(run, [plane[rule] for plane in planes])), []
        for population in range(populations):
            one = values.isel(population=population).to_dataframe()[list(CALIBRATED)]
            p = p_values(one.iloc[0], one.iloc[1:])
            tails = [one.round(9).rank(ascending=way, method="max") for way in (True, False)]
            turn = 2 * np.minimum(*tails) / one.notna().sum()  # the p-value of each in its turn
            attainable = ((turn <= LEVEL).sum() / one.notna().sum()).where(p.notna(), 0)
            found.append(pd.DataFrame({"rejected": p <= LEVEL, "defined": p.notna(), "attainable": attainable}))
        tables[batch, rule] = sum(table.astype(float) for table in found)
    return pd.concat(tables, names=["batch", "rule", "metric"]).astype({"rejected": int, "defined": int})


def rejection_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Rates (%) over all batches of :func:`rejections`, index (rule, metric).

    Columns value, low, high (95 % Monte-Carlo interval; batches are the independent units), attainable, defined.
    """

    def by_metric(part: Any) -> Any:
        found = part.groupby(level=["rule", "metric"]).sum()
        return found.reindex([key for key in product(RULES, CALIBRATED) if key in found.index])

    total, batches = by_metric(table), len(table.index.unique("batch"))
    rate = total.rejected / total.defined
    rest = table.rejected - table.defined * rate.reindex(table.index.droplevel("batch")).to_numpy()
    error = np.sqrt(by_metric(rest**2) * batches / (batches - 1)) / total.defined
    return pd.DataFrame({
        "value": 100 * rate, "low": 100 * (rate - 1.96 * error).clip(lower=0), "high": 100 * (rate + 1.96 * error),
        "attainable": 100 * total.attainable / total.defined, "defined": total.defined,
    })  # fmt: skip


def read(name: str, index: list[str]) -> pd.DataFrame:
    """A released table, ``null-bias`` or ``null-calibration``."""
    table = read_table(resolve(f"data/{name}.csv"), "python -m dynmia.stats.noise")
    return table.reset_index().set_index(index).sort_index()


def _write(name: str, table: pd.DataFrame, what: str) -> None:
    text = io.StringIO(f"# made by: python -m dynmia.stats.noise; {what}; numpy {np.__version__}\n")
    text.seek(0, io.SEEK_END)
    table.to_csv(text, float_format="%.5g")
    write_atomic(project_root() / "data" / f"{name}.csv", text.getvalue().encode())


def _bias(case: tuple[str, str, int]) -> pd.DataFrame:
    variance, design, models = case
    return bias(models, design, variance=variance)


def main() -> None:
    """Write both tables; a quarter of an hour of one core."""
    cases = list(product(("pooled", "per-sample"), DESIGNS, MODELS))
    with ProcessPoolExecutor(2) as pool:
        table = pd.concat(dict(zip(cases, pool.map(_bias, cases))), names=["variance", "design", "models"])
        _write("null-bias", table, "100 populations of 500 samples each, seed 0")
        whole = pd.concat(pool.map(rejections, range(BATCHES)))
    what = f"{BATCHES} batches of {BATCH} populations of {SAMPLES} samples and 20 models, {DRAWS} redrawn masks, seed 1"
    _write("null-calibration", whole, what)


if __name__ == "__main__":
    script(main, "null-bias.csv", "null-calibration.csv")

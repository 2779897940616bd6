"""Whether the permutation test keeps its level in populations without a signal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats
from scipy.special import expit

from dynmia.attack.plane import vulnerability_planes
from dynmia.book.makers import maker, table_place, two_processes, write_table
from dynmia.book.tables import RULES, SCORINGS
from dynmia.cli import Folder
from dynmia.dynamics.metrics import METRICS
from dynmia.stats.resample import null_masks, p_values
from dynmia.stats.simulate import Simulator

null_bias = maker("null-bias")
CORRELATED = {  # of a sample's dynamic vulnerability (Spearman) with a stand-in for a measure of its hardness
    "r_all": "correlation, a measure of all models",
    "r_out": "correlation, a measure of the out-models (not exchangeable)",
}
CALIBRATED = {name: METRICS[name].label for name in null_bias.CHEAP} | CORRELATED
BATCHES, BATCH = 100, 25  # populations of a batch share their masks, so that one call scores them all
SAMPLES = 65  # of a population whose test is calibrated: 1 % of its 650 out-scores is not near a whole number
CHECKPOINTS = null_bias.CHECKPOINTS
STUDIED = 0  # of the batches, those in which the attack of the study is tested too, which takes ten times as long
LEVEL, DRAWS = 0.05, 199  # 10 of 200 populations: without ties the test has this level to the digit


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

    coefficients = {name: (standard(x) * standard(y)).sum(-1) for name, x in measures.items()}
    return xr.Dataset({name: (("draw", "population"), r) for name, r in coefficients.items()})


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
    scorings = SCORINGS if batch < STUDIED else RULES
    planes = [vulnerability_planes(run, scorings, keep=mask) for mask in masks]
    tables = {}
    for rule in scorings:
        values = null_bias.metric_values((plane[rule] for plane in planes), CHECKPOINTS)
        values, batch_tables = values.merge(correlations(run, [plane[rule] for plane in planes])), []
        for population in range(populations):
            rows = values.isel(population=population).to_dataframe()[list(CALIBRATED)]
            p = p_values(rows.iloc[0], rows.iloc[1:])
            tails = [rows.round(9).rank(ascending=way, method="max") for way in (True, False)]
            turn = 2 * np.minimum(*tails) / rows.notna().sum()  # the p-value of each in its turn
            attainable = ((turn <= LEVEL).sum() / rows.notna().sum()).where(p.notna(), 0)
            batch_tables.append(pd.DataFrame({"rejected": p <= LEVEL, "defined": p.notna(), "attainable": attainable}))
        tables[batch, rule] = sum(table.astype(float) for table in batch_tables)
    return pd.concat(tables, names=["batch", "rule", "metric"]).astype({"rejected": int, "defined": int})


def rejection_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Rates (%) over all batches of :func:`rejections`, index (rule, metric).

    Columns value, low, high (95 % Monte-Carlo interval; batches are the independent units), attainable, defined.
    """

    def by_metric(part: Any) -> Any:
        totals = part.groupby(level=["rule", "metric"]).sum()
        return totals.reindex([key for key in product(SCORINGS, CALIBRATED) if key in totals.index])

    total = by_metric(table)
    batches = by_metric((table.defined * 0 + 1).to_frame("batches")).batches
    rate = total.rejected / total.defined
    rest = table.rejected - table.defined * rate.reindex(table.index.droplevel("batch")).to_numpy()
    error = np.sqrt(by_metric(rest**2) * batches / (batches - 1)) / total.defined
    return pd.DataFrame({
        "value": 100 * rate, "low": 100 * (rate - 1.96 * error).clip(lower=0), "high": 100 * (rate + 1.96 * error),
        "attainable": 100 * total.attainable / total.defined, "defined": total.defined,
    })  # fmt: skip


def main(folder: Folder = "data") -> None:
    """Test all batches, two processes at once; minutes."""
    place = table_place(folder, "null-calibration.csv")
    with two_processes() as pool:
        table = pd.concat(pool.map(rejections, range(BATCHES)))
    size = (
        f"{BATCHES} batches ({STUDIED} of the study's attack) of {BATCH} populations of {SAMPLES} samples and 20 models"
    )
    write_table(table, place, f"{size}, {DRAWS} redrawn masks, seed 1; numpy {np.__version__}", digits=5)

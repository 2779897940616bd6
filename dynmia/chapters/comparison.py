"""Data sets side by side: their figures in one table, the order of each, and its trend with complexity."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from ..book import maker
from ..book.cells import band, cell
from ..book.plots import DATASETS, labels
from ..book.tables import no_signal
from ..dynamics.metrics import METRICS
from ..stats.trends import directions, rank_trend
from .population import compare


def accuracy(run: xr.Dataset, gap: bool = False) -> tuple[float, float, float]:
    """Held-out accuracy at the end in per cent: mean over the models with its 95 % interval (Student's t).

    With ``gap``, by how many points the accuracy on a model's own half is above it.
    """
    last = run.isel(epoch=-1)
    value = 100 * (last.train_accuracy - last.test_accuracy if gap else last.test_accuracy)
    half = stats.t.ppf(0.975, value.size - 1) * float(value.std(ddof=1)) / np.sqrt(value.size)
    return float(value.mean()), float(value.mean()) - half, float(value.mean()) + half


def gaps(runs: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """The gap between the two accuracies of each run as a measure of :func:`rank_table`: index (run, ``gap``)."""
    rows = [["generalisation gap", *accuracy(run, gap=True)] for run in runs.values()]
    index = pd.MultiIndex.from_product([runs, ["gap"]])
    return pd.DataFrame(rows, index, ["label", "value", "low", "high"])


def above_noise(
    figures: pd.DataFrame, runs: Sequence[str], words: Mapping[str, str], metrics: Sequence[str]
) -> pd.DataFrame:
    """Where the interval of each of ``metrics`` lies to its no-signal level; a row a figure, a column a run."""
    noise = no_signal(figures)
    return pd.DataFrame({
        words[run]: {METRICS[m].label: compare(figures.loc[(run, m)], noise.loc[(run, m)]) for m in metrics}
        for run in runs
    }).replace("not distinguishable from", "not told apart")  # fmt: skip


def side_by_side(
    figures: Mapping[str, pd.DataFrame], runs: Mapping[str, xr.Dataset], metrics: Sequence[str]
) -> pd.DataFrame:
    """One table: for each metric a row a run, for each decision rule ``value [interval]`` and the no-signal level.

    Args:
        figures: rule to the table of :func:`dynmia.book.tables.figures`.
        runs: by name; the accuracy on the held-out set is added from them, its no-signal level is that of guessing.
        metrics: of ``METRICS``.
    """
    rows, words = {}, labels(runs)
    for name, run in runs.items():
        guess = f"{100 / len(np.unique(run.label)):.0f}"
        rows["held-out accuracy at the end (%)", words[name]] = [cell(*accuracy(run)), guess] * len(figures)
    for metric in metrics:
        label = f"{METRICS[metric].label} ({METRICS[metric].unit})".replace(" ()", "")
        for name in runs:
            texts = []
            for table in figures.values():
                row, digits = table.loc[(name, metric)], METRICS[metric].digits
                texts += [cell(row.value, row.low, row.high, digits), band(row.null_low, row.null_high, row.p, digits)]
            rows[label, words[name]] = texts
    columns = pd.MultiIndex.from_product([figures, ["value [95 % interval]", "no signal"]])
    index = pd.MultiIndex.from_tuples(list(rows), names=["metric", "run"])
    return pd.DataFrame(list(rows.values()), index, columns)


def orders(
    figures: pd.DataFrame, runs: Sequence[str], metrics: Sequence[str], words: Mapping[str, str]
) -> pd.DataFrame:
    """For each metric, whether it rises from each run to the next, and the order."""
    steps = [f"{words[a]} to {words[b]}" for a, b in itertools.pairwise(runs)]
    table = pd.DataFrame(
        {METRICS[m].label: directions(pd.DataFrame([figures.loc[(run, m)] for run in runs])) for m in metrics},
        index=steps,
    ).T.rename_axis("metric")
    falls, opens = (table == "falls").any(axis=1), (table == "open").any(axis=1)
    return table.assign(order=np.where(falls, "broken", np.where(opens, "not decided", "holds")))


def rank_table(
    figures: pd.DataFrame, complexity: pd.DataFrame, metrics: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """Spearman's rank correlation of each metric (column) with each measure of complexity (row), and its exact p-value.

    Args:
        figures, complexity: index (data set, metric) and (data set, measure); the data sets are those of ``figures``.
        metrics, measures: which.
    """
    names = list(dict.fromkeys(figures.index.get_level_values(0)))

    def of(table: pd.DataFrame, key: str) -> np.ndarray:
        return np.array([table.value[name, key] for name in names])

    return pd.DataFrame(
        {
            METRICS[metric].label: {
                complexity.label[names[0], m]: "{:.2f} (p = {:.3f})".format(
                    *rank_trend(of(complexity, m), of(figures, metric))
                )
                for m in measures
            }
            for metric in metrics
        }
    ).rename_axis("complexity")


def complexity_table(complexity: pd.DataFrame) -> pd.DataFrame:
    """The measures of every pool as printed: ``value [interval]`` and the no-signal level, one column a data set."""
    columns: dict[str, dict[str, str]] = {}
    for (data, measure), row in complexity.iterrows():  # type: ignore[misc]
        line, digits = f"{row.label} ({row.unit})".replace(" ()", ""), maker("complexity").DIGITS[measure]
        column = columns.setdefault(f"{DATASETS[data]}, n = {row.samples:,}", {})
        column[line] = cell(row.value, row.low, row.high, digits)
        if np.isfinite(row.null_low):
            column[f"{row.label}, no signal"] = f"{row.null_low:.{digits}f} to {row.null_high:.{digits}f}"
    return pd.DataFrame(columns).rename_axis("measure")

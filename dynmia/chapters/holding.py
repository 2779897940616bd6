"""What the page on intervals shows: their coverage in the simulator, and five populations beside what they claim."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from scipy import stats

from ..attack.plane import part_of, vulnerability_plane
from ..book.cells import cell, said
from ..book.plots import INK, MARKERS, NULL, legend_outside, panels, titled
from ..book.tables import read_table
from ..dynamics.metrics import METRICS
from ..stats.intervals import figures, interval
from ..store.run import resolve

LOW, HIGH = 0.93, 0.97  # a 95 % interval holds if its coverage lies here
SHADES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
OVERS = ("samples", "models", "both")


def load(folder: str | os.PathLike[str] = "data") -> pd.DataFrame:
    """The released table ``coverage.csv`` of LiRA under fpr@0.01, index (scenario, over, method, metric)."""
    return read_table(resolve(folder) / "coverage.csv").xs("lira:fpr@0.01", level="rule")


def judge(row: pd.Series) -> str:
    """``holds`` if the coverage is 93 to 97 %, else ``narrow`` or ``wide``; with ``?`` if two standard errors reach."""
    word = "narrow" if row.coverage < LOW else "wide" if row.coverage > HIGH else "holds"
    reach = 2 * row.error
    near = row.coverage + reach >= LOW if word == "narrow" else row.coverage - reach <= HIGH
    return word + ("?" if word != "holds" and near else "")


def coverage_panels(table: pd.DataFrame) -> Figure:
    """Coverage of the interval from halves: a panel for what it is over, a row a metric, a mark a scenario."""
    with panels(1, len(OVERS), (10.5, 4.8), sharey=True, sharex=True) as (figure, axes):
        for axis, over in zip(axes.flat, OVERS):
            part = table.xs((over, "halves"), level=("over", "method"))
            metrics, scenarios = part.index.unique("metric"), part.index.unique("scenario")
            axis.axvspan(100 * LOW, 100 * HIGH, color=NULL, alpha=0.3, lw=0)
            for k, name in enumerate(scenarios):
                rows = part.loc[name].loc[metrics]
                y = np.arange(len(metrics)) + 0.18 * (k - (len(scenarios) - 1) / 2)
                axis.errorbar(100 * rows.coverage, y, xerr=200 * rows.error, color=SHADES[k], marker=MARKERS[k], ms=4,
                              ls="", elinewidth=1, label=name)  # fmt: skip
            axis.set(title=f"over {over}", xlabel="coverage (%)", ylim=(len(metrics) - 0.5, -0.5))
            axis.set_yticks(range(len(metrics)), [textwrap.fill(METRICS[name].label, 34) for name in metrics])
        legend_outside(figure, axes[0, 0])
    return figure


def run_panels(tables: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Values with all three intervals, ``tables[run][over]``: a panel a metric, a row a run."""
    metrics = list(next(iter(next(iter(tables.values())).values())).index)
    with panels(2, -(-len(metrics) // 2), (11, 5.0), sharey=True) as (figure, axes):
        for axis, name in zip(axes.flat, metrics):
            for y, table in enumerate(tables.values()):
                for k, over in enumerate(OVERS):
                    row, at = table[over].loc[name], y + 0.22 * (k - 1)
                    label = f"over {over}" if y == 0 else None
                    axis.plot([row.low, row.high], [at, at], color=SHADES[k], lw=2, label=label)
                    axis.plot(row.value, at, color=INK, marker="o", ms=3)
            axis.set_xlabel(textwrap.fill(titled(name), 32), fontsize=8)
            axis.set_yticks(range(len(tables)), list(tables))
            axis.set_ylim(len(tables) - 0.5, -0.5)
        legend_outside(figure, axes[0, 0])
    return figure


def population_panels(tables: Sequence[pd.DataFrame]) -> Figure:
    """Populations of other models on the same samples, each with its interval over models; dotted: their mean."""
    metrics, at = list(tables[0].index), np.arange(1, len(tables) + 1)
    with panels(2, -(-len(metrics) // 2), (11, 5.0), sharex=True) as (figure, axes):
        for axis, name in zip(axes.flat, metrics):
            rows = pd.DataFrame([table.loc[name, ["value", "low", "high"]] for table in tables]).astype(float)
            axis.vlines(at, rows.low, rows.high, color=SHADES[1], lw=2)
            axis.plot(at, rows.value, color=INK, marker="o", ms=4, ls="")
            axis.axhline(rows.value.mean(), color=INK, lw=0.9, ls=":")
            axis.set_ylabel(textwrap.fill(titled(name), 28), fontsize=8)
            axis.set_xticks(at)
        for axis in axes[-1]:
            axis.set_xlabel("population")
    return figure


def one_model(runs: Mapping[str, xr.Dataset], rule: str, only: Sequence[str]) -> pd.DataFrame:
    """How much of the interval over both is due to the one model that fits its own half worst at the end.

    Returns:
        Index (run, models), models ``all`` or ``without number k``; columns train accuracy (of that model; of the
        others, on average) and, for each metric, ``value [interval]``.
    """
    rows = {}
    for name, run in runs.items():
        fit = run.train_accuracy.values[-1]
        worst = int(fit.argmin())
        others = np.delete(np.arange(len(fit)), worst)
        parts = {"all": (run, fit[worst]), f"without number {worst}": (part_of(run, others), fit[others].mean())}
        for word, (part, accuracy) in parts.items():
            table = interval(part, rule, "both", only=only)
            cells = {titled(metric): said(table.loc[metric], METRICS[metric].digits) for metric in only}
            rows[name, word] = {"train accuracy": f"{accuracy:.3f}"} | cells
    return pd.DataFrame(rows).T.rename_axis(["run", "models"])


def regrouped(runs: Sequence[xr.Dataset], rule: str = "lira:fpr@0.01", partitions: int = 10) -> pd.Series:
    """Standard deviation over populations of every figure, from all models of ``runs`` dealt anew into as many groups.

    The populations of a partition share no model, so the variance over them is unbiased; its mean over partitions is
    surer than that of the runs as they are. The runs must be of the same samples.
    """
    pool = xr.concat([run.drop_vars("model", errors="ignore") for run in runs], "model", data_vars="minimal")
    rng, variance = np.random.default_rng(0), []
    for _ in range(partitions):
        parts = np.array_split(rng.permutation(pool.sizes["model"]), len(runs))
        planes = [vulnerability_plane(part_of(pool, np.sort(part), least=3), rule) for part in parts]
        variance.append(figures(planes).var())
    return pd.DataFrame(variance).mean() ** 0.5


def spread(tables: Sequence[pd.DataFrame], dealt: pd.Series) -> pd.DataFrame:
    """The spread of populations that differ in nothing but their models, against what the interval of each claims.

    Args:
        tables: of ``interval(run, over="models")``, one a population.
        dealt: from :func:`regrouped`.

    Returns:
        Index metric; columns observed (standard deviation over populations), regrouped, claimed (root mean square of
        the standard errors), ratio claimed / observed with low and high (chi-square, for normal figures, the claim
        taken as known), ratio_regrouped, and covered, the populations whose interval holds the mean of the others,
        widened by that mean's own error.
    """
    each = pd.concat(dict(enumerate(tables)))[["value", "error", "low", "high"]].astype(float)
    value, error, low, high = (column.unstack(sort=False) for _, column in each.items())  # (population, metric)
    count, observed, claimed = len(tables), value.std(), (error**2).mean() ** 0.5
    ends = np.sqrt(stats.chi2.ppf([0.025, 0.975], count - 1) / (count - 1))
    others = (value.sum() - value) / (count - 1)
    covered = (value - others).abs() <= (high - low) / 2 * np.sqrt(1 + 1 / (count - 1))
    ratio = claimed / observed
    return pd.DataFrame({
        "observed": observed, "regrouped": dealt[observed.index], "claimed": claimed, "ratio": ratio,
        "low": ratio * ends[0], "high": ratio * ends[1], "ratio_regrouped": claimed / dealt[observed.index],
        "covered": covered.sum(),
    }).rename_axis("metric")  # fmt: skip


def coverage_table(table: pd.DataFrame) -> pd.DataFrame:
    """Coverage in per cent with two standard errors, a row a metric and method, a column a scenario."""
    part = table.drop("one sample", level="over")
    text = part.apply(lambda row: f"{100 * row.coverage:.1f} ± {200 * row.error:.1f}, {judge(row)}", axis=1)
    return text.unstack("scenario", sort=False).rename_axis(columns=None)


def bias_table(table: pd.DataFrame) -> pd.DataFrame:
    """The expected figure of these populations on many samples beside that of the ideal attack."""
    part = table.xs(("both", "halves"), level=("over", "method")).dropna(subset="truth")
    text = part.apply(lambda row: f"{row.estimand:.3g} ({row.truth:.3g})", axis=1).unstack("scenario", sort=False)
    return text.rename(index={name: METRICS[name].label for name in text.index}).rename_axis(columns=None)


def recommended(part: pd.DataFrame) -> str:
    """The method with the smallest errors of those that never cover less than 93 %; else that with the best worst case.

    Args:
        part: rows of one ``over``, with index level method.
    """
    worst, size = part.coverage.groupby("method").min(), part.ratio.groupby("method").mean()
    safe = worst.index[worst >= LOW]
    return str(size[safe].idxmin() if len(safe) else worst.idxmax())


def verdict(table: pd.DataFrame, found: pd.DataFrame, populations: int) -> list[str]:
    """Sentences, computed: which intervals hold, what the others do, and what the populations say."""
    lines, several = [], table.drop("one sample", level="over")
    for (over, method), part in several.groupby(["over", "method"], sort=False):
        words = part.apply(judge, axis=1)
        count = words.str.rstrip("?").value_counts()
        lowest, highest = (
            f"{100 * part.coverage[case]:.1f} % ({METRICS[case[-1]].label}; {case[0]})"
            for case in (part.coverage.idxmin(), part.coverage.idxmax())
        )
        lines.append(
            f"Over {over}, {method}: coverage holds (93 to 97 %) in {count.get('holds', 0)} of {len(part)} cases, is "
            f"higher in {count.get('wide', 0)} and lower in {count.get('narrow', 0)} (of these "
            f"{words.str.endswith('?').sum()} within two standard errors of that range); lowest {lowest}, highest "
            f"{highest}; the claimed standard error is {part.ratio.min():.2f} to {part.ratio.max():.2f} of the true "
            "one."
        )
    for over in OVERS[:2]:  # over both there is one only
        lines.append(f"Recommended over {over}: {recommended(several.xs(over, level='over'))}.")
    part = table.xs(("both", "halves"), level=("over", "method"))
    off = part.estimand / part.truth - 1
    worst = off.abs().groupby("metric").mean().idxmax()
    lines.append(
        f"The expected figure of these few models lies {100 * off.min():+.0f} to {100 * off.max():+.0f} % off that of "
        f"the ideal attack, most for {METRICS[worst].label}: a bias that no interval here covers."
    )
    for method, part in table.xs("one sample", level="over").groupby("method"):
        for rate in ("tpr", "fpr"):
            row = 100 * part.xs(f"{rate} all", level="metric")[["coverage", "binomial"]]
            lines.append(
                f"One sample's {rate.upper()}, {method}: coverage {row.coverage.min():.1f} to {row.coverage.max():.1f} "
                f"%, where independent flags would give {row.binomial.min():.1f} to {row.binomial.max():.1f} %."
            )
    smaller, larger = (found.high < 1).sum(), (found.low > 1).sum()
    lines.append(
        f"{populations} real populations on the same samples: the interval over models claims a spread that agrees "
        f"with theirs for {len(found) - smaller - larger} of {len(found)} figures (the ratio's interval holds 1), is "
        f"smaller for {smaller} and larger for {larger}; {found.covered.sum()} of {populations * len(found)} intervals "
        "hold the mean of the other populations. Against all their models dealt anew into populations, which is surer, "
        f"the claimed standard error is {found.ratio_regrouped.min():.2f} to {found.ratio_regrouped.max():.2f} of the "
        "true one."
    )
    return lines


def ratio_cell(row: pd.Series) -> str:
    """The ratio of :func:`spread` with its interval."""
    return cell(row.ratio, row.low, row.high, 2)

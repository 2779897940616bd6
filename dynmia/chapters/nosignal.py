"""The chapter on the no-signal level: what it explains of each figure, its bias on noise, the level of its test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..book import maker
from ..book.cells import said
from ..book.plots import COLOURS, INK, NULL, bars, log_axis, panels
from ..dynamics.metrics import METRICS

CALIBRATED, LEVEL = maker("null-calibration").CALIBRATED, maker("null-calibration").LEVEL
expected_rates = maker("null-bias").expected_rates
BIAS = {  # the columns of figure and table, in the order in which they are shown
    "dynamic": "mean advantage (thousandths)", "displacement": "displacement (thousandths)",
    "entropy_change": "entropy change (bits)", "vulnerable": "vulnerable at the end (%)",
}  # fmt: skip
LOOKS = {
    ("pooled", "bernoulli"): {"color": COLOURS["mnist"], "marker": "o", "ls": "-"},
    ("pooled", "balanced"): {"color": COLOURS["cifar10"], "marker": "s", "ls": "--"},
    ("per-sample", "bernoulli"): {"color": COLOURS["digits"], "marker": "^", "ls": "-"},
    ("per-sample", "balanced"): {"color": COLOURS["cinic10"], "marker": "v", "ls": "--"},
}
DISCRETE = 4.0  # %: a metric whose ties leave less than this of the 5 % is called discrete
WITHIN = (4.0, 6.0)  # % in which the rejection rate of the others has to lie


def explained(table: pd.DataFrame) -> pd.DataFrame:
    """Share (%) of each effect that the no-signal level explains: its mean over the value, an AUC less 1/2.

    NaN for metrics that are an epoch: a date has no share.

    Args:
        table: from :func:`dynmia.book.tables.figures`, index (run, metric).

    Returns:
        Index (run, metric), columns value, low, high, the mean and the 95 % range of the no-signal populations.
    """
    chance = 0.5 * (table.index.get_level_values("metric") == "auc")
    effect = (table.value - chance).where((table.unit != "epoch") & (table.value != chance))
    ends = pd.DataFrame({end: 100 * (table[f"null_{end}"] - chance) / effect for end in ("value", "low", "high")})
    return ends.assign(low=ends.min(axis=1), high=ends.max(axis=1))


def not_distinguishable(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """For each metric and rule: the share that is explained over the runs, and the runs with p > ``LEVEL``."""
    rows = {}
    for rule, table in tables.items():
        shares = explained(table).value
        for name, part in table.groupby(level="metric", sort=False):
            share, p = shares.xs(name, level="metric").dropna(), part.p.droplevel("metric")
            sure, unsure = p.index[p <= LEVEL], p.index[~(p <= LEVEL)]
            few = ", ".join(unsure) or "none"
            many = "all but " + ", ".join(sure) if len(sure) else "all"
            middle = [round(x) for x in (share.median(), share.min(), share.max())] if share.any() else []
            rows[METRICS[name].label, rule] = {
                "explained (%), median (range)": "{} ({} to {})".format(*middle) if middle else "–",
                "not distinguishable in": f"{len(unsure)} of {len(p)}",
                "these runs": few if len(unsure) <= len(sure) else many,
            }
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["metric", "rule"])


def bias_table(bias: pd.DataFrame, rules: Sequence[str]) -> pd.DataFrame:
    """Simulated mean and interval of each figure of ``BIAS`` at every N with pooled variance, and the closed form."""
    pooled, rows = bias.loc["pooled"], {}
    for rule, (design, models) in product(rules, pooled.index.droplevel(["rule", "metric"]).unique()):
        row = {"mean advantage, closed form (thousandths)": f"{_closed_form(models, rule, design):.2f}"}
        part = pooled.loc[design, models, rule]
        rows[rule, design, models] = row | {words: said(part.loc[name], 2) for name, words in BIAS.items()}
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["rule", "design", "N"]).sort_index()


def _closed_form(models: int, rule: str, design: str = "bernoulli") -> float:
    """Expected advantage on noise, in thousandths."""
    tpr, fpr = expected_rates(models, rule, design)
    return 1000 * (tpr - fpr)


def level_table(rates: pd.DataFrame) -> pd.DataFrame:
    """The rejection rates as they are printed, and whether each is where it has to be."""
    rows = {}
    for (rule, name), row in rates.iterrows():
        rows[rule, CALIBRATED[name]] = {
            "rejected (%)": _rate(row) if row.defined else "–",
            "ties allow (%)": f"{row.attainable:.1f}" if np.isfinite(row.attainable) else "–",
            "populations where it is defined": int(row.defined),
            "finding": _finding(row),
        }
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["rule", "metric"])


def _rate(row: pd.Series) -> str:
    return f"{row.value:.1f} [{row.low:.1f}, {row.high:.1f}]"  # the bounds of 4 and 6 % ask for one decimal


def _finding(row: pd.Series) -> str:
    """What the rejection rate of one metric says, by the rule that the page states."""
    if not row.attainable >= DISCRETE:
        return "discrete: the test is conservative" if not row.low > 100 * LEVEL else "discrete, yet rejects too often"
    if WITHIN[0] <= row.value <= WITHIN[1]:
        return "keeps its level"
    chance = abs(row.value - row.attainable) <= 3 / 1.96 * (row.high - row.low) / 2
    wrong = "the test does not hold for it" if row.name and row.name[-1] == "r_out" else "a fault"  # see the page
    return "outside 4 to 6 %, " + ("within three standard errors of 5 %" if chance else wrong)


def verdict(tables: Mapping[str, pd.DataFrame], bias: pd.DataFrame, rates: pd.DataFrame, models: int = 20) -> list[str]:
    """Sentences, computed: what the no-signal level explains, the bias at ``models``, whether the test keeps its level.

    Args:
        tables: for each rule, from :func:`dynmia.book.tables.figures`.
        bias: index (variance, design, models, rule, metric), from ``null-bias.csv``.
        rates: from :func:`rejection_rates` of ``data/null-calibration.py``.
    """
    sentences = []
    for rule, table in tables.items():
        told = table.p <= LEVEL
        always = told.groupby(level="metric", sort=False).all()
        sure = [METRICS[name].label for name in always.index[always]]
        sentences.append(
            f"`{rule}`: {told.sum()} of {len(table)} figures of {table.index.unique('run').size} runs are told "
            f"from noise (p ≤ {LEVEL:g}); in every run {len(sure)} of {len(always)} metrics are: "
            f"{'; '.join(sure) or 'none'}."
        )
        share = explained(table).value.abs().groupby(level="metric", sort=False).median().dropna()
        below, between, above = (
            "; ".join(f"{METRICS[name].label} ({value:.0f})" for name, value in part.items()) or "none"
            for part in (share[share < 10], share[share.between(10, 50)], share[share > 50])
        )
        sentences.append(
            f"`{rule}`: size of the no-signal mean, as a share (%) of the figure in the median run. Below 10 %, to be "
            f"read as they stand: {below}. From 10 to 50 %: {between}. Above 50 %, to be read against the no-signal "
            f"level only: {above}."
        )
    for rule, table in tables.items():
        row, exact = bias.loc["pooled", "bernoulli", models, rule, "dynamic"], _closed_form(models, rule)
        agree = "agrees with" if row.low <= exact <= row.high else "differs from"
        low, high = table.xs("advantage", level="metric").value.agg(["min", "max"])
        sign = "of the other sign, so it makes no advantage" if exact < 0 else "of the same sign"
        sentences.append(
            f"`{rule}`: at N = {models} the mean advantage on noise is {said(row, 2)} thousandths and {agree} "
            f"the closed form, {exact:.2f}. The runs' advantages lie between {low:.0f} and {high:.0f}: the bias is "
            f"{100 * abs(exact) / high:.1f} to {100 * abs(exact) / low:.1f} % of that, and {sign}."
        )
    continuous = rates.attainable >= DISCRETE
    held, discrete = rates[continuous], rates[~continuous]
    outside = "; ".join(
        f"{CALIBRATED[name]} (`{rule}`, {_rate(row)} %: {_finding(row).split(', ')[1]})"
        for (rule, name), row in held[~held.value.between(*WITHIN)].iterrows()
    )
    sentences.append(
        f"On noise the test rejects {held.value.min():.1f} to {held.value.max():.1f} % at 5 % for the {len(held)} "
        f"continuous figures (Monte-Carlo intervals of about ± {((held.high - held.low) / 2).median():.1f} points); "
        + (f"outside 4 to 6 %: {outside}." if outside else "all lie within 4 to 6 %.")
    )
    sentences.append(
        f"{len(discrete)} figures are discrete: epochs, and shares of samples that noise hardly ever puts into the "
        f"corner. Their ties keep the rate below 5 %; {(discrete.low > 100 * LEVEL).sum() or 'none'} of them rejects "
        "more than that."
    )
    return sentences


def share_map(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Share explained of every metric of every run, one panel a rule; a frame where p > ``LEVEL``."""
    with panels(len(tables), 1, (11, 4.7 * len(tables)), grid=False, sharex=True) as (figure, axes):
        for axis, (rule, table) in zip(axes.flat, tables.items()):
            share, p = (x.unstack("run", sort=False) for x in (explained(table).value, table.p))
            image = axis.imshow(share.abs(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
            for row, column in np.ndindex(share.shape):
                value = share.iat[row, column]
                if np.isfinite(value):
                    text, shade = f"{round(value)}" if abs(value) < 1000 else "≫", "w" if abs(value) > 60 else "k"
                    axis.text(column, row, text, ha="center", va="center", fontsize=6, color=shade)
                if not p.iat[row, column] <= LEVEL:
                    corner = column - 0.44, row - 0.44
                    axis.add_patch(plt.Rectangle(corner, 0.88, 0.88, fill=False, ec=COLOURS["cifar10"], lw=1.4))
            axis.set_yticks(range(len(share)), [METRICS[name].label for name in share.index])
            axis.set_xticks(range(share.shape[1]), share.columns, rotation=90, fontsize=7)
            axis.set_title(f"rule {rule}")
            axis.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="size of the no-signal mean (% of the effect, cut at 100)", shrink=0.7)
    return figure


def bias_figure(bias: pd.DataFrame, rules: Sequence[str]) -> Figure:
    """Figures of ``BIAS`` on pure noise against N, one row a rule, with 95 % Monte-Carlo bars and the closed form."""
    with panels(len(rules), len(BIAS), (13.5, 3 * len(rules))) as (figure, axes):
        for axis, (rule, (name, label)) in zip(axes.flat, product(rules, BIAS.items())):
            axis.axhline(0, color=INK, lw=0.7)
            for number, ((variance, design), look) in enumerate(LOOKS.items()):
                part = bias.loc[variance, design].xs((rule, name), level=("rule", "metric"))
                at = part.index * 1.03 ** (number - 1.5)  # side by side
                look = look | {"label": f"{variance}, {design}"}
                axis.errorbar(at, part.value, bars(part), ms=3.5, lw=0.9, elinewidth=0.9, **look)
                if name == "dynamic" and variance == "pooled":
                    exact = [_closed_form(int(models), rule, design) for models in part.index]
                    axis.plot(at, exact, color=INK, ls="", marker="_", ms=14, zorder=5)
            log_axis(axis, 2 ** np.arange(3, 8))
            axis.set(title=rule, ylabel=label, xlabel="shadow models N")
        axes[0, -1].legend(title="variance, design", title_fontsize=8)
    return figure


def level_figure(rates: pd.DataFrame) -> Figure:
    """Rejection rate on noise of every metric, one panel a rule; grey 4 to 6 %, ticks what ties allow."""
    rules = rates.index.unique("rule")
    with panels(1, len(rules), (11, 4.6), sharex=True, sharey=True) as (figure, axes):
        for axis, rule in zip(axes.flat, rules):
            part = rates.loc[rule].iloc[::-1]
            part, at = part.where(part.defined > 0), np.arange(len(part))
            axis.axvspan(*WITHIN, color=NULL, alpha=0.3, lw=0)
            axis.plot(part.attainable, at, "|", color=COLOURS["cifar10"], ms=12, mew=2, label="what ties allow")
            look = {"fmt": "o", "ms": 4, "lw": 1, "color": COLOURS["mnist"], "label": "measured, 95 %"}
            axis.errorbar(part.value, at, xerr=bars(part), **look)
            axis.set_yticks(at, [CALIBRATED[name] for name in part.index])
            axis.set(title=f"rule {rule}", xlabel="rejected on noise at p ≤ 0.05 (%)")
        axes[0, 0].legend(loc="upper left")
    return figure

"""The chapter on the no-signal level: what it explains of each figure, its bias on noise, the level of its test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..noise import LEVEL, expected_rates
from ..summary import METRICS, cell

BIAS = {  # the columns of figure and table, in the order in which they are shown
    "dynamic": "mean advantage (thousandths)", "displacement": "displacement (thousandths)",
    "entropy_change": "entropy change (bits)", "vulnerable": "vulnerable at the end (%)",
}  # fmt: skip
DISCRETE = 4.0  # %: a metric whose ties leave less than this of the 5 % is called discrete
WITHIN = (4.0, 6.0)  # % in which the rejection rate of the others has to lie


def explained(table: pd.DataFrame) -> pd.DataFrame:
    """Share (%) of each effect that the no-signal level explains: its mean over the value, an AUC less 1/2.

    NaN for metrics that are an epoch: a date has no share.

    Args:
        table: from :func:`dynmia.campaign.figures`, index (run, metric).

    Returns:
        Index (run, metric), columns value, low, high, the mean and the 95 % range of the no-signal populations.
    """
    chance = 0.5 * (table.index.get_level_values("metric") == "auc")
    effect = (table.value - chance).where((table.unit != "epoch") & (table.value != chance))
    ends = pd.DataFrame({k: 100 * (table[f"null_{k}"] - chance) / effect for k in ("value", "low", "high")})
    return ends.assign(low=ends.min(axis=1), high=ends.max(axis=1))


def not_distinguishable(tables: Mapping[str, pd.DataFrame], level: float = LEVEL) -> pd.DataFrame:
    """For each metric and rule: the share that is explained over the runs, and the runs with p > ``level``."""
    lines = []
    for rule, table in tables.items():
        share = explained(table).value
        for name, part in table.groupby(level="metric", sort=False):
            one, open_ = share.xs(name, level="metric"), part[~(part.p <= level)].index.get_level_values("run")
            told = part.index.get_level_values("run").difference(open_, sort=False)
            runs = ", ".join(open_) if len(open_) <= len(told) else "all but " * bool(len(told)) + ", ".join(told)
            middle = "{} ({} to {})".format(*map(round, (one.median(), one.min(), one.max()))) if one.any() else "–"
            lines.append(
                [
                    METRICS[name].label,
                    rule,
                    middle,
                    f"{len(open_)} of {len(part)}",
                    runs or ("all" if len(open_) else "none"),
                ]
            )
    columns = ["metric", "rule", "explained (%), median (range)", "not distinguishable in", "these runs"]
    return pd.DataFrame(lines, columns=columns).set_index(["metric", "rule"])


def bias_table(bias: pd.DataFrame, rules: Sequence[str]) -> pd.DataFrame:
    """Simulated mean and interval of each figure of ``BIAS`` at every N with pooled variance, and the closed form."""
    lines = []
    for design, models in bias.loc["pooled"].index.droplevel(["rule", "metric"]).unique():
        for rule in rules:
            part = bias.loc["pooled", design, models, rule]
            tpr, fpr = expected_rates(models, rule, design)
            numbers = [_cell(part.loc[name], 2) for name in BIAS]
            lines.append([models, design, rule, f"{1000 * (tpr - fpr):.2f}", *numbers])
    columns = ["N", "design", "rule", "mean advantage, closed form (thousandths)", *BIAS.values()]
    return pd.DataFrame(lines, columns=columns).sort_values(["rule", "design", "N"]).set_index(["rule", "design", "N"])


def level_table(rates: pd.DataFrame) -> pd.DataFrame:
    """The rejection rates as they are printed, and whether each is where it has to be."""
    shown = rates.copy()
    shown["rate"] = [_rate(row) if row.defined else "–" for _, row in rates.iterrows()]
    shown["allowed"] = [f"{value:.1f}" if np.isfinite(value) else "–" for value in rates.attainable]
    shown["finding"] = [_finding(row) for _, row in rates.iterrows()]
    shown.index = pd.MultiIndex.from_tuples(
        [(rule, METRICS[name].label) for rule, name in rates.index], names=["rule", "metric"]
    )
    shown = shown[["rate", "allowed", "defined", "finding"]]
    return shown.set_axis(["rejected (%)", "ties allow (%)", "populations where it is defined", "finding"], axis=1)


def _cell(row: pd.Series, digits: int = 1) -> str:
    return cell(row.value, row.low, row.high, digits)


def _rate(row: pd.Series) -> str:
    return f"{row.value:.1f} [{row.low:.1f}, {row.high:.1f}]"  # the bounds of 4 and 6 % ask for one decimal


def _finding(row: pd.Series) -> str:
    """What the rejection rate of one metric says, by the rule that the page states."""
    if not row.attainable >= DISCRETE:
        return "discrete: the test is conservative" if not row.low > 100 * LEVEL else "discrete, yet rejects too often"
    if WITHIN[0] <= row.value <= WITHIN[1]:
        return "keeps its level"
    chance = abs(row.value - row.attainable) <= 3 / 1.96 * (row.high - row.low) / 2
    return "outside 4 to 6 %, " + ("within three standard errors of 5 %" if chance else "a fault")


def verdict(tables: Mapping[str, pd.DataFrame], bias: pd.DataFrame, rates: pd.DataFrame, models: int = 20) -> list[str]:
    """Sentences, computed: what the no-signal level explains, the bias at ``models``, whether the test keeps its level.

    Args:
        tables: for each rule, from :func:`dynmia.campaign.figures`.
        bias: index (variance, design, models, rule, metric), from :func:`dynmia.noise.bias`.
        rates: from :func:`dynmia.noise.rejection_rates`.
    """
    sentences = []
    for rule, table in tables.items():
        runs = table.index.unique("run")
        share = explained(table).value.abs().groupby(level="metric", sort=False).median().dropna()
        sure = [
            METRICS[name].label for name, part in table.groupby(level="metric", sort=False) if (part.p <= LEVEL).all()
        ]
        open_ = int((~(table.p <= LEVEL)).sum())
        sentences.append(
            f"`{rule}`: {len(table) - open_} of {len(table)} figures of {len(runs)} runs are told from noise "
            f"(p ≤ {LEVEL:g}); in every run {len(sure)} of {table.index.unique('metric').size} metrics are: "
            f"{'; '.join(sure) or 'none'}."
        )
        groups = {"below": share[share < 10], "from": share[share.between(10, 50)], "above": share[share > 50]}
        words = {
            side: "; ".join(f"{METRICS[name].label} ({value:.0f})" for name, value in part.items()) or "none"
            for side, part in groups.items()
        }
        sentences.append(
            f"`{rule}`: size of the no-signal mean, as a share (%) of the figure in the median run. Below 10 %, to be "
            f"read as they stand: {words['below']}. From 10 to 50 %: {words['from']}. Above 50 %, to be read against "
            f"the no-signal level only: {words['above']}."
        )
    for rule in tables:
        row = bias.loc["pooled", "bernoulli", models, rule, "dynamic"]
        tpr, fpr = expected_rates(models, rule)
        exact = 1000 * (tpr - fpr)
        agree = "agrees with" if row.low <= exact <= row.high else "differs from"
        observed = tables[rule].xs("advantage", level="metric").value
        sentences.append(
            f"`{rule}`: at N = {models} the mean advantage on noise is {_cell(row, 2)} "
            f"thousandths and {agree} the closed form, {exact:.2f}. The runs' advantages lie between "
            f"{observed.min():.0f} and {observed.max():.0f}: the bias is {100 * abs(exact) / observed.max():.1f} to "
            f"{100 * abs(exact) / observed.min():.1f} % of that, "
            + ("and of the other sign, so it makes no advantage." if exact < 0 else "and of the same sign.")
        )
    held = rates[rates.attainable >= DISCRETE]
    good = held.value.between(*WITHIN)
    outside = [
        f"{METRICS[name].label} (`{rule}`, {_rate(row)} %: {_finding(row).split(', ')[1]})"
        for (rule, name), row in held[~good].iterrows()
    ]
    sentences.append(
        f"On noise the test rejects {held.value.min():.1f} to {held.value.max():.1f} % at 5 % for the {len(held)} "
        f"continuous figures (Monte-Carlo intervals of about ± {((held.high - held.low) / 2).median():.1f} points); "
        + (
            f"outside {WITHIN[0]:g} to {WITHIN[1]:g} %: {'; '.join(outside)}."
            if outside
            else "all lie within 4 to 6 %."
        )
    )
    discrete = rates[~(rates.attainable >= DISCRETE)]
    above = int((discrete.low > 100 * LEVEL).sum())
    sentences.append(
        f"{len(discrete)} figures are discrete: epochs, and shares of samples that noise hardly ever puts into the "
        f"corner. Their ties keep the rate below 5 %; {above or 'none'} of them rejects more than that."
    )
    return sentences

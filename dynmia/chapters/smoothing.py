"""How wrong are counts, and how wrong the smoothed planes? A rule, and what it recommends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from ..book import RULES, maker
from ..book.plots import INK, bars, panels
from ..dynamics.metrics import METRICS

plane_error = maker("plane-error")
COUNTS, NOTHING, GROUP = plane_error.COUNTS, plane_error.NOTHING, plane_error.GROUP
SHADES = {"plug-in": "#D55E00", "shrunken": "#E69F00", "rao-blackwell": "#0072B2", COUNTS: "#9A9A9A"}
SAFE = 0.01  # the most by which an estimate may shift the mean advantage where there is no signal


def _own(errors: pd.DataFrame) -> pd.DataFrame:
    """Errors of a sample's advantage against what the attack itself attains."""
    own = errors[errors.index.get_level_values("truth") != "ideal"]
    return own.xs(("sample", "advantage"), level=["of", "quantity"])


def judge(errors: pd.DataFrame) -> pd.DataFrame:
    """Whether each estimate is, at each N and under each rule, better than counts and safe where there is no signal.

    Better: the whole interval of the MSE ratio of a sample's advantage lies below 1, against the attack's own rates in
    every simulated population and against the other groups in the real ones. Safe: without a signal the mean advantage
    is within ``SAFE`` of that of the counts.

    Returns:
        Index (models, rule, estimate); columns lower, cases, best, worst (the extreme ratios), mean (of the ratios),
        shift (without a signal), passes.
    """
    own, keys = _own(errors).drop(COUNTS, level="estimate"), ["models", "rule", "estimate"]
    judged = own.assign(below=own.high < 1).groupby(keys).agg(
        lower=("below", "sum"), cases=("ratio", "size"), best=("ratio", "min"), worst=("ratio", "max"),
        mean=("ratio", "mean"),
    )  # fmt: skip
    judged["shift"] = own.xs(NOTHING, level="population").bias.groupby(keys).first()
    judged["passes"] = (judged.lower == judged.cases) & (judged["shift"].abs() <= SAFE)
    return judged


def recommended(judged: pd.DataFrame) -> dict[int, str]:
    """For each N the estimate that passes under every rule, of several that with the lowest mean; else ``counts``."""
    found = {}
    for models, part in judged.groupby("models"):
        good = part["passes"].groupby("estimate").all()
        mean = part["mean"].groupby("estimate").mean()[good[good].index]
        found[models] = COUNTS if mean.empty else str(mean.idxmin())
    return found


def verdict(errors: pd.DataFrame) -> list[str]:
    """Sentences, computed from :func:`judge` and the errors themselves."""
    judged = judge(errors)
    best = recommended(judged)
    told = "; ".join(
        f"**{name}** for N = {', '.join(str(n) for n, other in best.items() if other == name)}"
        for name in dict.fromkeys(best.values())
    )
    sentences = [f"For the advantage of a sample the rule below recommends {told}."]
    for name, part in judged.groupby("estimate", sort=False):
        won = [f"{of.lower.sum()} of {of.cases.sum()} cases under `{rule}`" for rule, of in part.groupby("rule")]
        far = part["shift"].abs().idxmax()
        sentences.append(
            f"{name}: a lower error than counts in {' and '.join(won)}; its largest shift without a signal is "
            f"{1000 * part['shift'][far]:.0f} thousandths of advantage (N = {far[0]}, `{far[1]}`)."
        )
    if (name := best.get(GROUP, COUNTS)) != COUNTS:
        part = errors.xs(("population", GROUP, name), level=["of", "models", "estimate"])
        parts = [
            f"{METRICS[quantity].label} lower in {(of.high < 1).sum()}, higher in {(of.low > 1).sum()} of {len(of)}"
            for quantity, of in part.drop(NOTHING, level="population").groupby("quantity")
        ]
        sentences.append(
            f"Figures of a population on the {name} plane at N = {GROUP}, squared error against that on counts "
            f"(populations, rules and truths together): {'; '.join(parts)}."
        )
    return sentences


def ratios(errors: pd.DataFrame, rules: Sequence[str] = RULES) -> Figure:
    """Mean squared error of a sample's advantage as a share of the counts', one row a population and N."""
    own = _own(errors).droplevel("truth")
    cases = [(name, n) for name in (*plane_error.SCENARIOS, *plane_error.REAL) for n in plane_error.POPULATIONS]
    wanted = [case for case in cases if case in own.index.droplevel(["rule", "estimate"])]
    with panels(1, len(rules), (9.6, 0.26 * len(wanted) + 1.4), sharey=True) as (figure, axes):
        for axis, rule in zip(axes.flat, rules):
            for number, (name, marker) in enumerate(zip(plane_error.ESTIMATES, "osD")):
                part = own.xs((rule, name), level=["rule", "estimate"]).loc[wanted].rename(columns={"ratio": "value"})
                look: Any = {"fmt": marker, "ms": 4, "lw": 1, "color": SHADES[name], "label": name}
                axis.errorbar(part.value, np.arange(len(wanted)) + 0.22 * (number - 1), xerr=bars(part), **look)
            axis.axvline(1, color=INK, lw=0.9, ls=":")
            axis.set(title=f"rule {rule}", xlabel="mean squared error / that of counts", xlim=(-0.03, None))
        axes[0, 0].set_yticks(range(len(wanted)), [f"{name}, N = {n}" for name, n in wanted])
        axes[0, 0].invert_yaxis()
        axes[0, -1].legend()
    return figure


def clouds(planes: Mapping[str, Mapping[str, xr.Dataset]]) -> Figure:
    """The cloud at the last checkpoint: one row a population, one column a plane; counts are jittered a little."""
    rows, columns = len(planes), max(len(part) for part in planes.values())
    rng = np.random.default_rng(0)
    with panels(rows, columns, (2.9 * columns, 2.8 * rows + 0.2), sharex=True, sharey=True) as (figure, axes):
        for line, (population, part) in zip(axes, planes.items()):
            for axis, (name, plane) in zip(line, part.items()):
                now = plane.isel(epoch=-1)
                jitter = rng.uniform(-0.015, 0.015, (2, now.sizes["sample"])) * (name == COUNTS)
                shade = SHADES.get(name, INK)
                axis.scatter(now.fpr + jitter[0], now.tpr + jitter[1], s=6, alpha=0.5, lw=0, color=shade)
                axis.axline((0, 0), slope=1, color=INK, lw=0.7, ls=":")
                axis.set(title=f"{population}: {name}", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
            line[0].set_ylabel("TPR")
        for axis in axes[-1]:
            axis.set_xlabel("FPR")
    return figure

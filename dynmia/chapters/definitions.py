"""The choices that the study's definitions leave open, and every metric under each of them, one changed at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t

from ..attack.plane import vulnerability_planes
from ..dynamics import cloud as dyn
from ..dynamics.metrics import EARLY, METRICS
from ..stats.resample import bootstrap_weights
from ._shared import said

SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cinic10": "CINIC-10"}
RUNS = {name: f"{name}-cnn-4000" for name in SETS}  # easiest to hardest
MAIN, SMALL = RUNS["cifar10"], "cifar10-cnn-1000"
BALANCED = f"{SMALL}-balanced"
SEEDS = [SMALL, *(f"{SMALL}-seed{seed}" for seed in range(1, 5))]
OF_STATES = ("vulnerable", "transition_peak", "early_recall")
OF_STEPS = ("speed_mean", "speed_peak", "transition_peak", "early_recall")
OF_RULE = ("displacement", "entropy_change", "speed_mean", "speed_peak", *OF_STATES)
DEPENDS = {  # kind of choice: the metrics that it can change
    "reference": (*OF_RULE, "auc"), "rule": OF_RULE, "variance": (*OF_RULE, "auc"), "centre": (*OF_RULE, "auc"),
    "grid": ("entropy_change",), "cuts": OF_STATES, "interval": OF_STEPS, "design": (*OF_RULE, "auc"),
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A set of definitions; those of the study unless said otherwise.

    Attributes:
        kind, label: what is varied, and how; the label is unique.
        rule, variance, centre: see :func:`dynmia.attack.plane.vulnerability_plane`.
        cuts: of the 3 x 3 states; bins: of the entropy's grid; step: every how many checkpoints are used.
        run: of a design: the run that stands for the same study under it.
    """

    kind: str
    label: str
    rule: str = "fpr@0.01"
    variance: str = "pooled"
    centre: str = "mean"
    cuts: tuple[float, float] = dyn.CUTS
    bins: int = 11
    step: int = 1
    run: str = ""


REFERENCE = Choice("reference", "as in the study")


def choices(run: xr.Dataset) -> list[Choice]:
    """The reference, and every choice that differs from it in one thing; intervals that divide those of ``run``."""
    steps, every = run.sizes["epoch"] - 1, int(run.epoch[1] - run.epoch[0])
    return [
        REFERENCE,
        *(Choice("rule", rule, rule=rule) for rule in ("fpr@0.05", "fpr@0.1", "bayes")),
        Choice("variance", "variance per sample", variance="per-sample"),
        Choice("centre", "median", centre="median"),
        *(Choice("grid", f"B = {bins}", bins=bins) for bins in (3, 5, 8, 21, 51)),
        *(Choice("cuts", f"cuts {a}/{b}", cuts=(float(a), float(b))) for a, b in
          (("0.25", "0.75"), ("0.3", "0.7"), ("0.4", "0.6"))),
        *(Choice("interval", f"every {step * every} epochs", step=step) for step in (2, 4, 5) if steps % step == 0),
        Choice("design", "Bernoulli (pool 1,000)", run=SMALL),
        Choice("design", "balanced (pool 1,000)", run=BALANCED),
    ]  # fmt: skip


def measure(
    run: xr.Dataset,
    among: Sequence[Choice],
    draws: int = 200,
    *,
    only: Collection[str] = DEPENDS["reference"],
    keep: np.ndarray | None = None,
) -> pd.DataFrame:
    """Every metric under every choice of it, in every bootstrap draw over samples.

    Each pair of variance rule and centre is scored once. Runs of equal size share their draws, so that differences
    between runs on the same pool are paired.

    Args:
        run: a run.
        among: choices; designs are left out, they are other runs.
        draws: of the bootstrap; with 0 draws the estimate only.
        only: metrics that are wanted.
        keep: another inclusion mask, for permutation nulls.

    Returns:
        Row 0 the estimate, then one row a draw; columns (label of the choice, metric).
    """
    weights = xr.DataArray(np.ones((1, run.sizes["sample"])), dims=("draw", "sample"))
    weights = xr.concat([weights, bootstrap_weights(run, draws)], "draw") if draws else weights
    among = [choice for choice in among if not choice.run and set(DEPENDS[choice.kind]) & set(only)]
    columns = {}
    for variance, centre in dict.fromkeys((choice.variance, choice.centre) for choice in among):
        same = [choice for choice in among if (choice.variance, choice.centre) == (variance, centre)]
        rules = dict.fromkeys(choice.rule for choice in same)
        planes = vulnerability_planes(run, rules, variance=variance, centre=centre, keep=keep)
        for choice in same:
            plane = planes[choice.rule].isel(epoch=slice(None, None, choice.step))
            plane = plane.assign(state=dyn.states(plane, choice.cuts))
            for metric in DEPENDS[choice.kind]:
                if metric in only:
                    columns[choice.label, metric] = _of(metric, plane, weights, choice.bins)
    return pd.DataFrame(columns)


def _of(metric: str, plane: xr.Dataset, weights: xr.DataArray, bins: int) -> np.ndarray:
    if metric == "entropy_change":
        return np.diff(dyn.spatial_entropy(plane.isel(epoch=[0, -1]), weights, bins).values, axis=0)[0]
    return np.broadcast_to(METRICS[metric].of(plane, weights).values, weights.sizes["draw"])


def interval(drawn: pd.Series, metric: str, margins: int = 0) -> dict[str, float]:
    """Estimate and 95 % interval from its row of draws: quantiles, for biased metrics mirrored at the estimate (basic).

    Args:
        drawn: the estimate, then the bootstrap draws.
        metric: gives the form of the interval, and its floor.
        margins: of a conclusion with that many margins: no floor, and the upper end at the level of Bonferroni.
    """
    value, rest = float(drawn.iloc[0]), drawn.iloc[1:].dropna()
    if np.isnan(value) or rest.empty:
        return {"value": value, "low": np.nan, "high": np.nan}
    tail = 0.025 / max(margins, 1)
    low, high = np.quantile(rest, [0.025, 1 - tail])
    if METRICS[metric].biased:
        high, low = 2 * value - np.quantile(rest, [tail, 0.975])
    floor = -np.inf if margins else METRICS[metric].low
    return {"value": value, "low": max(float(low), floor), "high": max(float(high), floor)}


def shown(metric: str, table: pd.DataFrame, among: Sequence[Choice], words: Mapping[str, str]) -> pd.DataFrame:
    """One metric as it is printed: rows the choices that can change it, columns the runs in ``words`` and no signal."""
    digits, rows = METRICS[metric].digits, {}
    for choice in among:
        if (MAIN, choice.label, metric) in table.index:
            found = {word: table.loc[(run, choice.label, metric)] for run, word in words.items()}
            rows[choice.label] = {word: said(row, digits) for word, row in found.items()} | {
                f"no signal, {word}": f"{row.null_low + 0.0:.{digits}f} to {row.null_high + 0.0:.{digits}f}"
                for word, row in found.items()
                if np.isfinite(row.null_low)
            }
    return pd.DataFrame.from_dict(rows, "index").fillna("–").rename_axis("choice")


def designs(table: pd.DataFrame) -> pd.DataFrame:
    """Balanced inclusion beside Bernoulli, and what another Bernoulli population would give.

    Returns:
        Index metric; columns value, low, high of the balanced run, bernoulli (mean of the Bernoulli populations), and
        expect_low, expect_high, the 95 % prediction interval of one more of them (Student's t, normal populations).
    """
    rows = {}
    for metric in DEPENDS["design"]:
        values = np.array([table.value.get((name, REFERENCE.label, metric), np.nan) for name in SEEDS])
        known, balanced = values[np.isfinite(values)], (BALANCED, REFERENCE.label, metric)
        if balanced in table.index and len(known) >= 3:
            half = t.ppf(0.975, len(known) - 1) * known.std(ddof=1) * np.sqrt(1 + 1 / len(known))
            expected = {"expect_low": known.mean() - half, "expect_high": known.mean() + half}
            rows[metric] = {**table.loc[balanced, ["value", "low", "high"]], "bernoulli": known.mean(), **expected}
    return pd.DataFrame.from_dict(rows, "index").rename_axis("metric")


def evidence(table: pd.DataFrame, planes: Mapping[str, xr.Dataset], among: Sequence[Choice]) -> list[str]:
    """Sentences, computed: what the rule, the interval, the grid and the design do to one run.

    Args:
        table: from :func:`dynmia.chapters.sensitivity.compute`.
        planes: of the main run, by rule.
        among: the choices.
    """
    entropies = {rule: dyn.spatial_entropy(plane).values for rule, plane in planes.items()}
    starts = [f"{bits[0]:.2f} to {bits[-1]:.2f} bits under `{rule}`" for rule, bits in entropies.items()]
    shares, ends, epochs = [], [], next(iter(planes.values())).epoch
    for choice in among:
        key = (RUNS["mnist"], choice.label, "speed_mean")
        if choice.kind in ("reference", "rule", "interval") and key in table.index:
            row = table.loc[key]
            shares.append(f"{100 * (row.null_low + row.null_high) / 2 / row.value:.0f} % ({choice.label})")
        if choice.kind in ("reference", "interval"):
            at = epochs[:: choice.step].sel(epoch=EARLY * float(epochs[-1]), method="pad")
            ends.append(f"{int(at)} ({choice.label})")
    lines = [
        f"Rule and entropy: {SETS['cifar10']} goes from {', '.join(starts)}.",
        f"Rule and speed: without a signal the mean speed of {SETS['mnist']} is this share of the measured one: "
        f"{', '.join(shares)}. The nearer to 100 % and above, the less of it is the data set's.",
        f"Interval and recall: the checkpoint that stands for 3/8 of training is epoch {', '.join(ends)}.",
    ]
    fine = [choice.label for choice in among if choice.kind == "grid" and choice.bins > REFERENCE.bins]
    entropy = table.value.xs("entropy_change", level="metric").unstack("choice")
    if {BALANCED, SMALL} <= set(entropy.index):
        apart = entropy[fine].sub(entropy[REFERENCE.label], axis=0).abs().max(axis=1)
        lines.append(
            f"Grid: beyond B = {REFERENCE.bins} the entropy change moves by at most {apart[BALANCED]:.2f} bits with "
            f"balanced inclusion, where all rates are tenths, and by up to {apart[SMALL]:.2f} bits with Bernoulli, "
            "where each number of in-models has a lattice of its own: a fine grid then counts lattices too."
        )
    one = designs(table)
    if len(one):
        out = [METRICS[name].label for name in one.index[~one.value.between(one.expect_low, one.expect_high)]]
        lines.append(
            f"Design: {len(one) - len(out)} of {len(one)} metrics of the balanced population lie within what one more "
            f"Bernoulli population would give{'; not so: ' + ', '.join(out) if out else ''}. By chance alone about "
            f"{0.05 * len(one):.1f} would not."
        )
    return lines

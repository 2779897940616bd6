"""Every metric, and every margin of a conclusion, under every choice that the definitions leave open.

A conclusion is a list of margins that must all be positive: a value less a multiple of another run's, less a bound.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import pandas as pd
import xarray as xr

from dynmia.attack.plane import vulnerability_planes
from dynmia.attack.scoring import Scoring
from dynmia.book.makers import table_place, write_table
from dynmia.cli import Folder
from dynmia.dynamics import cloud as dyn
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import UserError
from dynmia.stats.resample import bootstrap_weights, null_masks
from dynmia.store.run import open_run, resolve

RUNS = {name: f"{name}-cnn-4000" for name in ("mnist", "fashion_mnist", "cifar10", "cinic10")}  # easiest to hardest
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
        planes = vulnerability_planes(run, rules, Scoring(centre=centre, variance=variance), keep=keep)
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
    """Estimate and 95 % interval from its row of draws: quantiles, for biased metrics mirrored at the estimate.

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


@dataclass(frozen=True)
class Claim:
    """A conclusion: every margin, value of ``a`` - ``factor`` x value of ``b`` - ``bound``, is positive.

    Attributes:
        text: what it says.
        metric: that it is about.
        margins: (a, b, factor, bound); b is empty where there is no second run.
        noise: the bound is the largest no-signal value of ``a``, if that is above ``bound``.
    """

    text: str
    metric: str
    margins: tuple[tuple[str, str, float, float], ...]
    noise: bool = False

    @property
    def runs(self) -> list[str]:
        """Names of the runs, each once."""
        return list(dict.fromkeys(run for margin in self.margins for run in margin[:2] if run))

    def under(self, design: str) -> list[tuple[str, str, float, float]]:
        """The margins, with the run ``design`` for a claim of CIFAR-10 alone, or in place of the run of that pool."""
        old = MAIN if self.runs == [MAIN] else SMALL
        if not design:
            return list(self.margins)
        swapped = [(*(design if run == old else run for run in m[:2]), *m[2:]) for m in self.margins]
        return swapped if old in self.runs else []  # type: ignore[return-value]


def _rising(*runs: str) -> tuple[tuple[str, str, float, float], ...]:
    return tuple((b, a, 1.0, 0.0) for a, b in pairwise(runs))


def _above(bound: float, *runs: str) -> tuple[tuple[str, str, float, float], ...]:
    return tuple((run, "", 0.0, bound) for run in runs)


DEEP, SGD, SAM = "cifar10-baseline", "cifar10-cnn-2000-sgd", "cifar10-cnn-2000-sam-0.1"


DEEP, SGD, SAM = "cifar10-baseline", "cifar10-cnn-2000-sgd", "cifar10-cnn-2000-sam-0.1"
_POOLS = {data: [f"{data}-cnn-{size}" for size in (4000, 2000, 1000, 500)] for data in ("mnist", "cifar10")}
_ORDER = "MNIST < Fashion-MNIST < CIFAR-10 < CINIC-10"
CLAIMS = [
    Claim(f"AUC: {_ORDER}", "auc", _rising(*RUNS.values())),
    Claim(f"displacement: {_ORDER}", "displacement", _rising(*RUNS.values())),
    Claim(f"entropy change: {_ORDER}", "entropy_change", _rising(*RUNS.values())),
    Claim(f"vulnerable: {_ORDER}", "vulnerable", _rising(*RUNS.values())),
    Claim("entropy rises more than without a signal: MNIST", "entropy_change", _above(0.0, RUNS["mnist"]), noise=True),
    Claim("entropy rises more than without a signal: CIFAR-10", "entropy_change", _above(0.0, MAIN), noise=True),
    Claim("more vulnerable than without a signal: MNIST", "vulnerable", _above(0.0, RUNS["mnist"]), noise=True),
    Claim("more vulnerable than without a signal: CIFAR-10", "vulnerable", _above(0.0, MAIN), noise=True),
    Claim("mean speed: CINIC-10 above twice MNIST", "speed_mean", ((RUNS["cinic10"], RUNS["mnist"], 2.0, 0.0),)),
    Claim("peak transition: CIFAR-10 above MNIST", "transition_peak", _rising(RUNS["mnist"], MAIN)),
    Claim("displacement: deeper CNN above shallow", "displacement", _rising(MAIN, DEEP)),
    Claim("displacement falls with the pool: MNIST", "displacement", _rising(*_POOLS["mnist"])),
    Claim("displacement falls with the pool: CIFAR-10", "displacement", _rising(*_POOLS["cifar10"])),
    Claim("the paper's: peak transition of SAM (rho 0.1) below SGD", "transition_peak", _rising(SAM, SGD)),
    Claim("over 70 % recall at 3/8: CIFAR-10", "early_recall", _above(70.0, MAIN)),
    Claim("over 70 % recall at 3/8: deeper CNN", "early_recall", _above(70.0, DEEP)),
]


def compute(folder: str | os.PathLike[str] = "data", draws: int = 400, null: int = 200) -> pd.DataFrame:
    """Every metric and every margin under every choice, from the runs in ``folder``; minutes.

    Returns:
        Index (run, choice, metric), where a margin has its name (:func:`margin_name`) as run; columns value, low, high,
        and null_low, null_high, the range over ``null`` redrawn keep masks where they were drawn.

    Raises:
        UserError: one of the four data sets has no run there.
    """
    claimed: dict[str, set[str]] = {}
    for claim in CLAIMS:
        for name in claim.runs:
            claimed.setdefault(name, set()).add(claim.metric)
    names = dict.fromkeys([*claimed, *SEEDS, BALANCED])
    paths = {name: resolve(folder) / f"{name}.nc" for name in names}
    if absent := [name for name in RUNS.values() if not paths[name].exists()]:
        raise UserError(f"{folder} lacks {', '.join(absent)}: train them by dynmia make campaign --only 02.")
    found, noise, rows = {}, {}, {}
    among = choices(open_run(paths[MAIN]))
    for name, path in paths.items():
        if not path.exists():
            continue
        run = open_run(path)
        whole = name in RUNS.values() or name in (*SEEDS, BALANCED)
        wanted = [REFERENCE] if name in SEEDS[1:] else among
        found[name] = measure(run, wanted, draws, only=DEPENDS["reference"] if whole else claimed[name])
        if name in (RUNS["mnist"], MAIN, SMALL, BALANCED):
            masks = null_masks(run, null)
            noise[name] = pd.concat([measure(run, among, 0, keep=keep) for keep in masks])
        for label, metric in found[name].columns:
            rows[name, label, metric] = interval(found[name][label, metric], metric)
            if name in noise:
                chance = noise[name][label, metric]
                rows[name, label, metric] |= {"null_low": chance.min(), "null_high": chance.max()}
    for claim, choice in product(CLAIMS, among):
        key = (REFERENCE.label if choice.run else choice.label, claim.metric)
        for a, b, factor, bound in claim.under(choice.run):
            if all(name in found and key in found[name] for name in (a, b) if name):
                least = max(bound, noise[a][key].max()) if claim.noise else bound
                drawn = found[a][key] - (factor * found[b][key] if b else 0) - least
                name = margin_name((a, b, factor, bound), claim.noise)
                rows[name, choice.label, claim.metric] = interval(drawn, claim.metric, len(claim.margins))
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["run", "choice", "metric"])


def margin_name(margin: tuple[str, str, float, float], noise: bool = False) -> str:
    """``a - 2 b``, ``a - 70`` or ``a - no signal``."""
    a, b, factor, bound = margin
    return f"{a} - " + ("no signal" if noise else f"{factor:g} {b}" if b else f"{bound:g}")


def main(folder: Folder = "data") -> None:
    """Measure the runs in FOLDER under every choice; eight minutes of one core."""
    place = table_place(folder, "sensitivity.csv")
    write_table(compute(folder), place, "bootstrap and permutation seed 0")

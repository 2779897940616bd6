"""Every metric, and the verdict on conclusions of claims.yml, under every choice that the definitions leave open."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from dynmia.attack.plane import halves, vulnerability_planes
from dynmia.attack.scoring import Scoring
from dynmia.book.makers import maker, table_place, two_processes, write_table
from dynmia.cli import Folder
from dynmia.dynamics import cloud as dyn
from dynmia.errors import UserError
from dynmia.stats.intervals import OVER, Scored, ends, figures
from dynmia.stats.resample import null_masks, quantiles
from dynmia.store.run import open_run, resolve

verdicts = maker("claims")
RUNS = {name: f"{name}-cnn-4000" for name in ("mnist", "fashion_mnist", "cifar10", "cinic10")}  # easiest to hardest
ASKED = (  # of claims.yml: its figures, ratios and steps that small pools can answer
    "order-auc", "order-displacement", "order-entropy", "order-vulnerable", "entropy-small-pool-mnist",
    "entropy-small-pool-cifar10", "vulnerable-mnist", "vulnerable-cifar10", "speed-twice",
    "small-pool-rate-cifar10-over-mnist", "displacement-deeper-cnn", "pool-mnist", "pool-cifar10", "rate-sgd-over-sam",
    "early-recall-shallow", "early-recall-deeper-cnn",
)  # fmt: skip
MAIN, SMALL = RUNS["cifar10"], "cifar10-cnn-1000"
BALANCED = f"{SMALL}-balanced"
SEEDS = [SMALL, *(f"{SMALL}-seed{seed}" for seed in range(1, 5))]
OF_STATES = ("vulnerable", "transition_peak", "early_recall")
OF_STEPS = ("speed_mean", "speed_peak", "transition_peak", "early_recall")
OF_RULE = ("displacement", "entropy_change", "speed_mean", "speed_peak", *OF_STATES)
DEPENDS = {  # kind of choice: the metrics that it can change
    "reference": (*OF_RULE, "auc"), "rule": OF_RULE, "attack": (*OF_RULE, "auc"),
    "variance": (*OF_RULE, "auc"), "centre": (*OF_RULE, "auc"),
    "grid": ("entropy_change",), "cuts": OF_STATES, "interval": OF_STEPS, "design": (*OF_RULE, "auc"),
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A set of definitions; those of the study unless said otherwise.

    Attributes:
        kind, label: what is varied, and how; the label is unique.
        rule, variance, centre: of :class:`dynmia.attack.scoring.Scoring`; the last two are LiRA's.
        cuts: of the 3 x 3 states; bins: of the entropy's grid; step: every how many checkpoints are used.
        run: of a design: the run that stands for the same study under it.
    """

    kind: str
    label: str
    rule: str = "lira:fpr@0.01"
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
        *(Choice("rule", rule, rule=f"lira:{rule}") for rule in ("fpr@0.05", "fpr@0.1", "bayes")),
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
    run: xr.Dataset, among: Sequence[Choice], draws: int = 20, *, only: Collection[str] = DEPENDS["reference"],
    keep: np.ndarray | None = None, seed: int = 0,
) -> dict[str, Scored]:  # fmt: skip
    """Every metric under every choice of it, of the run and of its halves.

    Args:
        run: a run.
        among: choices; designs are left out, they are other runs.
        draws: halves along each dimension; 0 for the figures alone.
        only: metrics that are wanted.
        keep: another inclusion mask, for permutation nulls; it has no halves.
        seed: of the halves.

    Returns:
        By label of the choice.
    """
    among = [choice for choice in among if not choice.run and set(DEPENDS[choice.kind]) & set(only)]
    scored = {}
    for (_, variance, centre), group in groupby(sorted(among, key=_scoring), _scoring):
        same = list(group)
        scorings = {c.rule: Scoring.of(c.rule, variance=variance, centre=centre) for c in same}
        scorings = {rule: scoring.for_models(run.sizes["model"]) for rule, scoring in scorings.items()}
        wanted = {c.label: [metric for metric in DEPENDS[c.kind] if metric in only] for c in same}
        roc = any("auc" in metrics for metrics in wanted.values())
        whole = vulnerability_planes(run, scorings.values(), keep=keep, roc=roc)
        first = next(iter(scorings.values()))
        parts = {
            dim: [
                vulnerability_planes(part, scorings.values(), roc=roc) for part in halves(run, dim, draws, seed, first)
            ]
            for dim in OVER["both"][1] * bool(draws)
        }
        for choice in same:
            plane = _chosen(whole, choice)
            value = _figures([plane], wanted[choice.label], choice.bins).iloc[0]
            drawn = {
                dim: _figures([_chosen(planes, choice) for planes in part], wanted[choice.label], choice.bins)
                for dim, part in parts.items()
            }
            scored[choice.label] = Scored(plane, value, drawn, run.keep, seed)
    return scored


def _scoring(choice: Choice) -> tuple[str, str, str]:
    return Scoring.of(choice.rule).attack, choice.variance, choice.centre


def _chosen(planes: dict[str, xr.Dataset], choice: Choice) -> xr.Dataset:
    plane = planes[choice.rule].isel(epoch=slice(None, None, choice.step))
    return plane.assign(state=dyn.states(plane, choice.cuts))


def _figures(planes: list[xr.Dataset], metrics: Sequence[str], bins: int) -> pd.DataFrame:
    """:func:`dynmia.stats.intervals.figures`, the entropy on a grid of ``bins``."""
    if bins == REFERENCE.bins:
        return figures(planes, metrics)
    bits = [dyn.spatial_entropy(plane.isel(epoch=[0, -1]), bins=bins).values for plane in planes]
    return pd.DataFrame({"entropy_change": [float(last - first) for first, last in bits]})


def under(runs: Sequence[str], design: str) -> list[str]:
    """The runs of a claim, with the run ``design`` for one of CIFAR-10 alone, or in place of the run of that pool."""
    old = MAIN if list(runs) == [MAIN] else SMALL
    swapped = [design if design and run == old else run for run in runs]
    return swapped if not design or old in runs else []


def _job(job: tuple[Path, Sequence[Choice], int, Sequence[str], int]) -> dict[str, tuple[Scored, pd.DataFrame]]:
    """A run under every choice: what ratios ask of it, and the rows of its metrics."""
    path, among, draws, only, null = job
    run, noise = open_run(path), {}
    scored = measure(run, among, draws, only=only)
    if null:
        drawn = [
            {label: result.value for label, result in measure(run, among, 0, only=only, keep=keep).items()}
            for keep in null_masks(run, null)
        ]
        noise = {label: quantiles(pd.DataFrame([values[label] for values in drawn])) for label in scored}
    found = {}
    for label, result in scored.items():
        table = ends(result)[["value", "low", "high"]]
        if label in noise:
            table = table.join(noise[label][["low", "high"]].add_prefix("null_"))
        found[label] = replace(result, plane=result.plane[["label"]]), table
    return found


def compute(folder: str | os.PathLike[str] = "data", draws: int = 20, null: int = 200) -> pd.DataFrame:
    """Every metric, and every conclusion, under every choice, from the runs in ``folder``; minutes.

    Returns:
        Index (subject, choice, metric), the subject a run or a claim; columns value, low, high by the rule of
        :mod:`dynmia.stats.intervals`; null_low and null_high, the central 95 % of ``null`` redrawn keep masks where
        they were drawn; and, of claims, the verdict (without a number of the paper's).

    Raises:
        UserError: one of the four data sets has no run there.
    """
    asked = {claim.id: claim for claim in verdicts.claims() if claim.id in ASKED}
    about: dict[str, set[str]] = {}
    for claim in asked.values():
        for name in claim.runs[0]:
            about.setdefault(name, set()).add(claim.of["metric"])
    paths = {name: resolve(folder) / f"{name}.nc" for name in dict.fromkeys([*about, *SEEDS, BALANCED])}
    if absent := [name for name in RUNS.values() if not paths[name].exists()]:
        raise UserError(f"{folder} lacks {', '.join(absent)}: train them by dynmia make campaign --only 02.")
    alone = {claim.runs[0][0] for claim in asked.values() if claim.measure == "figure"}
    among = choices(open_run(paths[MAIN]))
    jobs = {}
    for name, path in paths.items():
        if path.exists():
            whole = name in RUNS.values() or name in (*SEEDS, BALANCED)
            only = DEPENDS["reference"] if whole else sorted(about[name])
            redrawn = null if name in (*alone, SMALL, BALANCED) else 0
            jobs[name] = path, [REFERENCE] if name in SEEDS[1:] else among, draws, only, redrawn
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    with two_processes() as pool:
        found = dict(zip(jobs, pool.map(_job, jobs.values())))
    for name, results in found.items():
        for label, (_, table) in results.items():
            rows |= {(name, label, str(metric)): row.to_dict() for metric, row in table.iterrows()}
    scored = {name: {label: result for label, (result, _) in results.items()} for name, results in found.items()}
    for claim, choice in product(asked.values(), among):
        label, metric = REFERENCE.label if choice.run else choice.label, claim.of["metric"]
        names = under(claim.runs[0], choice.run)
        if names and metric in DEPENDS[choice.kind] and all(label in scored.get(name, {}) for name in names):
            rows[claim.id, choice.label, metric] = verdict(claim, names, label, scored, rows)
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["subject", "choice", "metric"])


def verdict(claim: Any, names: list[str], label: str, scored: Any, rows: Any) -> dict[str, Any]:
    """What a claim measures of the runs ``names`` under the choice ``label``, and what that makes of it."""
    metric = claim.of["metric"]
    if claim.measure == "figure":
        ours = verdicts.Measured(**rows[names[0], label, metric])
    else:
        pairs = verdicts.pairs(claim.measure, names)
        ours = verdicts.least_ratio([(scored[above][label], scored[below][label]) for above, below in pairs], metric)
    numbers = {key: getattr(ours, key) for key in ("value", "low", "high", "null_low", "null_high")}
    return numbers | {"verdict": verdicts.judge(claim.asserts, claim.than, np.nan, ours, not claim.settings)}


def main(folder: Folder = "data") -> None:
    """Measure the runs in FOLDER under every choice, two processes at once; minutes."""
    place = table_place(folder, "sensitivity.csv")
    write_table(compute(folder), place, "halves and permutation seed 0")

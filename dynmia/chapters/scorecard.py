"""The scorecard: every claim of the paper, what it printed, what we measure, and a verdict by stated rules.

A claim is *clear* if the whole 95 % interval lies on the paper's side of "no effect" and beyond the no-signal level.

    not yet measured at this scale   no released run measures it
    not reproduced                   not clear
    direction reproduced             clear; the paper's number is not ours, or belongs to a setting that ours is not
    reproduced                       clear, and our interval holds the paper's number (keeps to it, if it is a bound)

A number of one setting (a displacement, say) can be reproduced by a population of the paper's model, pool and epochs
alone; ratios, orders, correlations and shares can be by any, and the scale is printed beside each.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr

from ..attack.plane import vulnerability_plane
from ..book import tables as campaign
from ..book.cells import band, cell, resolved
from ..errors import UserError
from ..stats import hardness, intervals
from ..store.run import open_run, resolve, study_of
from .retest import retest

VERDICTS = ("reproduced", "direction reproduced", "not reproduced", "not yet measured at this scale")
ENDS = ("displacement", "entropy_change")  # metrics of which claims take ratios: of two checkpoints, the first and last
PATHS = ("speed_mean", "transition_peak")  # and of all checkpoints
# model, pool and epochs that a number of the paper belongs to
SCALE, SHALLOW_SCALE, SHORTER = ("wrn-28-2", 50_000, 400), ("cnn", 50_000, 400), ("wrn-28-2", 50_000, 160)


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % interval, its no-signal level (NaN: none applies), and the runs that it comes from."""

    value: float
    low: float
    high: float
    null_low: float = np.nan
    null_high: float = np.nan
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        kind: ``key result``, ``mechanism`` or ``experiment``.
        text: the claim in words; chapter: the page that measures it.
        paper: the row (dataset, metric) of the paper's values, or None if it prints no number.
        measure: from the released runs; raises :class:`dynmia.errors.UserError` where they are missing.
        neutral: no effect; sense: +1 if the paper claims more than that, -1 if less.
        bound: the paper's number is a bound, not an estimate.
        setting: model, pool size and epochs that the number belongs to, or None if any scale can reproduce it.
    """

    kind: str
    text: str
    chapter: str
    paper: tuple[str, str] | None
    unit: str
    measure: Callable[[Released], Measured]
    neutral: float = 0.0
    sense: int = 1
    bound: bool = False
    setting: tuple[str, int, int] | None = None


@dataclass
class Released:
    """The released runs and what is computed from them, each once."""

    folder: str | os.PathLike[str] = "data"
    rule: str = "fpr@0.01"
    nulls: int = 200
    _runs: dict[str, xr.Dataset] = field(default_factory=dict)
    _planes: dict[str, xr.Dataset] = field(default_factory=dict)
    _related: dict[str, pd.DataFrame] = field(default_factory=dict)
    _scored: dict[tuple[str, tuple[str, ...], int], intervals.Scored] = field(default_factory=dict)

    def run(self, name: str) -> xr.Dataset:
        """A released run."""
        if name not in self._runs:
            self._runs[name] = open_run(resolve(self.folder) / f"{name}.nc")
        return self._runs[name]

    @functools.cached_property
    def figures(self) -> pd.DataFrame:
        """The table of :func:`dynmia.book.tables.figures`."""
        return campaign.figures(self.folder, self.rule)

    def figure(self, run: str, metric: str, rule: str = "") -> Measured:
        """One metric of one run, under ``rule`` if it is not that of the others."""
        table = campaign.figures(self.folder, rule) if rule else self.figures
        if (run, metric) not in table.index:
            raise UserError(f"figures.csv has no row for {run}.")
        row = table.loc[(run, metric)]
        return Measured(row.value, row.low, row.high, row.null_low, row.null_high, (run,))

    def plane(self, run: str) -> xr.Dataset:
        """The plane of a released run."""
        if run not in self._planes:
            self._planes[run] = vulnerability_plane(self.run(run), self.rule)
        return self._planes[run]

    def over(self, above: str, below: str, metric: str) -> Measured:
        """A metric of one run over that of another, up to the last epoch of both; interval over models and samples."""
        only, last = ENDS if metric in ENDS else PATHS, min(int(self.run(run).epoch[-1]) for run in (above, below))
        first, second = (self._halves(run, only, last) for run in (above, below))
        found = intervals.ratio(first, second, metric)
        return Measured(found.value, found.low, found.high, 1.0, 1.0, (above, below))

    def _halves(self, name: str, only: tuple[str, ...], last: int) -> intervals.Scored:
        key = name, only, last
        if key not in self._scored:
            run = self.run(name).sel(epoch=slice(None, last))
            self._scored[key] = intervals.score_halves(
                run.isel(epoch=[0, -1]) if only == ENDS else run, self.rule, only=only
            )
        return self._scored[key]

    def steps(self, runs: tuple[str, ...], metric: str) -> Measured:
        """The smallest step of a metric from each run to the next, as a ratio: above 1 if they are in that order."""
        found = [self.over(above, below, metric) for below, above in itertools.pairwise(runs)]
        least = min(found, key=lambda one: one.low)
        return Measured(least.value, least.low, least.high, 1.0, 1.0, runs)

    def hardness(self, run: str, measure: str, samples: str, models: str, kind: str) -> Measured:
        """A correlation of :func:`dynmia.stats.hardness.relate`."""
        path = resolve(self.folder) / f"{run}.hardness.nc"
        recorded = hardness.load(path)
        if run not in self._related:
            self._related[run] = hardness.relate(recorded, self.run(run), self.rule, self.nulls)
        row, noise = (self._related[run].loc[measure, samples, m, kind] for m in (models, "no signal"))
        return Measured(row.value, row.low, row.high, noise.low, noise.high, (run,))


def _advantage_spread(released: Released) -> Measured:
    """Coefficient of variation of the mean advantage over populations that differ in their seed alone.

    The interval is that over more such populations; there is no no-signal level of a spread.
    """
    runs = campaign.released("14r", released.folder)
    if len(runs) < 5:
        raise UserError("five populations of one study are not released yet.")
    row = retest(list(runs.values()), list(map(released.plane, runs)), redraws=2, draws=20).loc["cv_advantage"]
    return Measured(row.value, row.population_low, row.population_high, runs=tuple(runs))


COMPLEX = ("mnist-cnn-4000", "cifar10-cnn-4000", "cinic10-cnn-4000")
SGD, SAM = "cifar10-cnn-2000-sgd", "cifar10-cnn-2000-sam-0.1"
SHALLOW, DEEPER, BASE = "cifar10-cnn-4000", "cifar10-wrn-28-2-4000", "cifar10-baseline"
# at the paper's pool: the shallow CNN, and the paper's own network
MNIST, CIFAR, WIDE = "mnist-cnn-50000", "cifar10_jpeg-cnn-50000", "cifar10_jpeg-wrn-28-2-50000"


def _claims() -> list[Claim]:
    def value(run: str, metric: str) -> Callable[[Released], Measured]:
        return lambda released: released.figure(run, metric)

    def over(above: str, below: str, metric: str) -> Callable[[Released], Measured]:
        return lambda released: released.over(above, below, metric)

    def steps(metric: str) -> Callable[[Released], Measured]:
        return lambda released: released.steps(COMPLEX, metric)

    def related(measure: str, samples: str, models: str) -> Callable[[Released], Measured]:
        return lambda released: released.hardness("cifar10-cnn-2000", measure, samples, models, "pearson")

    key, mechanism, experiment = "key result", "mechanism", "experiment"
    mnist, cifar, cinic = COMPLEX
    data, pool, architecture = "02-data-complexity", "03-pool-size", "04-architecture"
    optimiser, hard, early = "05-optimiser", "06-hardness", "07-early-window"
    milli, percent, deep = "/1000", "% a checkpoint", "cifar10/cifar10-shallow"
    return [
        Claim(key, "membership of CIFAR-10 samples is encoded in training: they turn vulnerable at a peak rate",
              architecture, ("cifar10", "transition_peak"), percent, value(WIDE, "transition_peak"), setting=SCALE),
        Claim(key, "so it is for MNIST", pool, ("mnist", "transition_peak"), percent, value(MNIST, "transition_peak"),
              setting=SCALE),
        Claim(key, "CIFAR-10 samples turn vulnerable at a higher peak rate than MNIST samples", data,
              ("cifar10/mnist", "transition_peak"), "ratio", over(cifar, mnist, "transition_peak"), neutral=1),
        Claim(key, "so they do at the paper's pool", pool, ("cifar10/mnist", "transition_peak"), "ratio",
              over(CIFAR, MNIST, "transition_peak"), neutral=1),
        Claim(key, "the centre of mass moves, MNIST", pool, ("mnist", "displacement"), milli,
              value(MNIST, "displacement"), setting=SCALE),
        Claim(key, "the centre of mass moves, CIFAR-10", architecture, ("cifar10", "displacement"), milli,
              value(WIDE, "displacement"), setting=SCALE),
        Claim(key, "CIFAR-10 moves it further than MNIST, both at the paper's pool", pool,
              ("cifar10/mnist", "displacement"), "ratio", over(CIFAR, MNIST, "displacement"), neutral=1),
        Claim(key, "the centre of mass moves, CINIC-10", data, ("cinic10", "displacement"), milli,
              value(cinic, "displacement"), setting=SCALE),
        Claim(key, "more complex data move it further: MNIST, CIFAR-10, CINIC-10 in this order (smallest step)", data,
              None, "ratio", steps("displacement"), neutral=1),
        Claim(key, "the cloud hardly spreads on MNIST: its spatial entropy falls", pool, ("mnist", "entropy_change"),
              "bits", value(MNIST, "entropy_change"), sense=-1, setting=SCALE),
        Claim(key, "the cloud spreads on CIFAR-10", architecture, ("cifar10", "entropy_change"), "bits",
              value(WIDE, "entropy_change"), setting=SCALE),
        Claim(key, "the cloud spreads on CINIC-10", data, ("cinic10", "entropy_change"), "bits",
              value(cinic, "entropy_change"), setting=SCALE),
        Claim(key, "more complex data spread it more, in the same order (smallest step)", data, None,
              "ratio", steps("entropy_change"), neutral=1),
        Claim(mechanism, "membership is encoded nearly three times faster on CINIC-10 than on MNIST", data,
              ("cinic10/mnist", "speed_mean"), "ratio", over(cinic, mnist, "speed_mean"), neutral=1),
        Claim(experiment, "the shallow CNN moves the centre of mass, CIFAR-10", pool,
              ("cifar10-shallow", "displacement"), milli, value(CIFAR, "displacement"), setting=SHALLOW_SCALE),
        Claim(experiment, "the shallow CNN spreads the cloud, CIFAR-10", pool,
              ("cifar10-shallow", "entropy_change"), "bits", value(CIFAR, "entropy_change"), setting=SHALLOW_SCALE),
        Claim(experiment, "a deeper residual network moves it further than the shallow CNN", architecture,
              (deep, "displacement"), "ratio", over(WIDE, CIFAR, "displacement"), neutral=1),
        Claim(experiment, "it moves it further at a small pool", architecture, (deep, "displacement"), "ratio",
              over(DEEPER, SHALLOW, "displacement"), neutral=1),
        Claim(experiment, "a deeper residual network spreads it more than the shallow CNN", architecture,
              (deep, "entropy_change"), "ratio", over(WIDE, CIFAR, "entropy_change"), neutral=1),
        Claim(experiment, "it spreads it more at a small pool", architecture, (deep, "entropy_change"), "ratio",
              over(DEEPER, SHALLOW, "entropy_change"), neutral=1),
        Claim(experiment, "the deeper CNN moves it further than the shallow CNN", architecture, None, "ratio",
              over(BASE, SHALLOW, "displacement"), neutral=1),
        Claim(experiment, "SGD turns samples vulnerable at a higher peak rate than SAM", optimiser,
              ("cifar10-sgd/cifar10-sam", "transition_peak"), "ratio", over(SGD, SAM, "transition_peak"), neutral=1),
        Claim(experiment, "SGD turns samples vulnerable", optimiser, ("cifar10-sgd", "transition_peak"), percent,
              value(SGD, "transition_peak"), setting=SHORTER),
        Claim(experiment, "SAM turns samples vulnerable", optimiser, ("cifar10-sam", "transition_peak"),
              percent, value(SAM, "transition_peak"), setting=SHORTER),
        Claim(mechanism, "epistemic uncertainty goes with dynamic vulnerability among the vulnerable samples", hard,
              ("cifar10", "epistemic_correlation"), "Pearson r", related("epistemic_all", "vulnerable", "all models")),
        Claim(mechanism, "so it does when the two come from disjoint halves of the population", hard,
              ("cifar10", "epistemic_correlation"), "Pearson r", related("epistemic_all", "vulnerable", "other half")),
        Claim(mechanism, "so it does for the disagreement of the models that never saw the sample", hard,
              ("cifar10", "epistemic_correlation"), "Pearson r", related("epistemic_out", "vulnerable", "all models")),
        Claim(key, "over 70 % of the finally vulnerable samples are so at 3/8 of training", early,
              ("cifar10", "early_recall"), "%", value(BASE, "early_recall"), bound=True),
        Claim(key, "the same under the rule bayes, where the no-signal level rests on more samples", early,
              ("cifar10", "early_recall"), "%", lambda r: r.figure(BASE, "early_recall", "bayes"), bound=True),
        Claim(experiment, "five populations agree: the coefficient of variation of the advantage is below 0.15",
              "14-how-many-models", ("cifar10", "advantage_variation"), "", _advantage_spread, neutral=np.inf, sense=-1,
              bound=True),
    ]  # fmt: skip


CLAIMS = _claims()


def judge(claim: Claim, ours: Measured | None, paper: float, at_scale: bool = False) -> str:
    """The verdict by the rules at the top of this module; ``paper`` is NaN where the paper prints no number."""
    if ours is None:
        return VERDICTS[3]
    side = claim.sense
    near, far = (ours.low, ours.null_high) if side > 0 else (ours.high, ours.null_low)
    clear = side * near > side * claim.neutral and not side * near <= side * far
    if claim.bound:
        return VERDICTS[0] if clear and side * near >= side * paper else VERDICTS[2]
    if not clear:
        return VERDICTS[2]
    if np.isnan(paper):
        return VERDICTS[0]
    return VERDICTS[0] if ours.low <= paper <= ours.high and (at_scale or not claim.setting) else VERDICTS[1]


def scorecard(released: Released, paper: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """Judge every claim.

    Args:
        released: the runs.
        paper: (dataset, metric) to the paper's value.

    Returns:
        A row a claim; columns kind, claim, chapter, unit, paper, value, low, high, null_low, null_high, scale, verdict.
    """
    rows = []
    for claim in CLAIMS:
        try:
            ours = claim.measure(released)
        except UserError:
            ours = None
        told = printed_value(paper, *claim.paper) if claim.paper else np.nan
        studies = [study_of(released.run(run)) for run in ours.runs] if ours else []
        at_scale = bool(studies) and all((s.model, s.pool_size, s.epochs) == claim.setting for s in studies)
        numbers = [ours.value, ours.low, ours.high, ours.null_low, ours.null_high] if ours else [np.nan] * 5
        scale = _scale(released, ours.runs) if ours else ""
        rows.append([claim.kind, claim.text, claim.chapter, claim.unit, told, *numbers, scale,
                     judge(claim, ours, told, at_scale)])  # fmt: skip
    columns = ["kind", "claim", "chapter", "unit", "paper", "value", "low", "high", "null_low", "null_high", "scale",
               "verdict"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).rename_axis("row")


def printed_value(paper: Mapping[tuple[str, str], float], dataset: str, metric: str) -> float:
    """The paper's value; of ``a/b``, where it does not print the ratio itself, that of a over that of b."""
    if (dataset, metric) in paper:
        return float(paper[dataset, metric])
    above, below = dataset.split("/")
    return float(paper[above, metric] / paper[below, metric])


def _scale(released: Released, runs: tuple[str, ...]) -> str:
    """Data, model, pool, epochs, N and hardware of the runs, each said once."""
    studies = [study_of(released.run(run)) for run in runs]
    pools = sorted({study.pool_size or 0 for study in studies})
    words = [
        "/".join(dict.fromkeys(study.dataset for study in studies)),
        "/".join(dict.fromkeys(study.model for study in studies)),
        "pool " + " to ".join(f"{pool:,}" for pool in dict.fromkeys((pools[0], pools[-1]))),
        "/".join(dict.fromkeys(str(study.epochs) for study in studies)) + " epochs",
        "N = " + "/".join(dict.fromkeys(str(study.shadow_models) for study in studies)),
        "; ".join(dict.fromkeys(released.run(run).attrs["hardware"] for run in runs)),
    ]
    return ", ".join(words)


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """The scorecard as a page shows it: claim, paper, ``ours [interval]``, no signal, verdict."""

    def numbers(row: pd.Series) -> tuple[str, str]:
        if np.isnan(row.value):
            return "not measured", ""
        least = int(row.unit == "ratio")  # 1 is no effect, so whole numbers would not tell
        digits = max(least, resolved(row.low, row.high, 3))
        noise = "" if np.isnan(row.null_low) else band(row.null_low, row.null_high, digits=digits)
        return cell(row.value, row.low, row.high, 3, least), noise

    cells = [numbers(row) for _, row in table.iterrows()]
    return pd.DataFrame({
        "claim": table.claim, "unit": table.unit, "paper": [f"{v:.3g}" if np.isfinite(v) else "" for v in table.paper],
        "ours [95 %]": [ours for ours, _ in cells], "no signal": [noise for _, noise in cells],
        "verdict": table.verdict, "chapter": table.chapter,
    })  # fmt: skip

"""Every claim of claims.yml, measured on the released runs and judged: what our 95 % interval makes of it.

A claim asserts more (less) than *no effect*: 0 of a change or a correlation, 1 of a ratio. Or it asserts presence, and
that is no direction. An interval is *clear* if all of it lies on the claim's side of no effect and beyond the no-signal
level (of presence: this alone; of a ratio: there is none).

    agrees             holds the paper's number, in the paper's data, network, optimiser, pool and epochs
    agrees elsewhere   holds it in another setting, which stands beside it
    same direction     clear; the number is excluded, or not printed, or the interval is too wide to agree
    present            the same, of a claim of presence
    opposite           clear on the other side
    undecided          holds both
    not measured       no run that can speak is released, or the figure is undefined

Too wide is as wide as the number lies beyond no effect and the no-signal level: what agrees holds neither no effect nor
twice the effect, so width earns nothing. The first run of a list speaks, not one that agrees. A bound agrees
(elsewhere) if all of the interval keeps to it and is beyond the no-signal level; if none keeps to it, it is opposite.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer

from dynmia.attack.plane import vulnerability_plane
from dynmia.attack.scoring import Scoring
from dynmia.book.makers import table_place, two_processes, write_table
from dynmia.book.tables import READINGS, entries, figures, member, named, read_list, read_table
from dynmia.chapters.retest import POPULATION, retest
from dynmia.cli import Folder
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import UserError, choose, shown
from dynmia.stats import hardness, intervals
from dynmia.store.run import open_run, project_root, resolve, study_of

VERDICTS = ("agrees", "agrees elsewhere", "same direction", "present", "opposite", "undecided", "not measured")
KINDS = ("key result", "mechanism", "experiment", "other paper", "own")  # the first three are the paper's
ASSERTS = {"more_than": 1, "less_than": -1, "over": 1, "under": -1, "presence": 1}  # and the side of the claim
BOUNDS = ("over", "under")
MEASURES = {  # what each is of, and of how many runs; 0: two or more
    "figure": ("metric", 1), "ratio": ("metric", 2), "smallest_step": ("metric", 0), "spread": ("metric", 0),
    "correlation": ("measure samples models", 1), "difference": ("measure over samples models", 1),
}  # fmt: skip
WORDS: dict[str, Any] = {
    "metric": METRICS, "measure": hardness.MEASURES, "over": hardness.MEASURES, "samples": ("all", "vulnerable"),
    "models": ("all models", "same half", "other half"),
}  # fmt: skip
SETTING = ("dataset", "model", "optimizer", "pool_size", "epochs")
PARTS = ("id", "page", "sentence", "measure", "asserts", "paper", "source", "runs")
ENDS = ("auc", "advantage", "displacement", "entropy_change", "vulnerable")  # read the first and last checkpoint alone
NULLS = 200  # draws of the no-signal level of a correlation, as in figures.csv
RATIOS = ("ratio", "smallest_step")
LENSES = (*READINGS, "lira:fpr@0.01")  # readings of the attack of the study, and that of its first pages
UNITS = dict.fromkeys(RATIOS, "ratio") | dict.fromkeys(("correlation", "difference"), "Pearson r")
Readings = Annotated[list[str] | None, typer.Option("--reading", help="posterior, bayes, fpr@a; may be repeated")]


class Measured(NamedTuple):
    """A figure with its 95 % interval, its no-signal level (NaN where there is none), and what marks the interval."""

    value: float
    low: float
    high: float
    null_low: float = math.nan
    null_high: float = math.nan
    clipped: str = ""
    carrier: float = math.nan


class Claim(NamedTuple):
    """One claim of ``data/claims.yml``, where its parts are explained; settings: what the number belongs to, by run."""

    kind: str
    id: str
    page: str
    sentence: str
    measure: str
    of: dict[str, str]
    asserts: str
    than: float  # NaN of presence
    paper: float  # NaN if no number is printed
    source: str
    settings: tuple[dict[str, Any], ...]
    runs: tuple[tuple[str, ...], ...]


def claims(path: str | os.PathLike[str] = "data/claims.yml") -> list[Claim]:
    """All claims, in the order of the list.

    Raises:
        UserError: an unknown part, measure, metric, page, run, setting or row of paper.csv, in one line.
    """
    path = resolve(path)
    content = read_list(path, ("settings", *KINDS))
    settings = member(content, "settings", dict, path)
    for name in settings:
        for part in member(settings, name, dict, f"{path}: settings"):
            choose(str(part), SETTING, f"part of {path}: setting {name}:")
    pages = sorted(page.stem for page in (project_root() / "notebooks").glob("*.ipynb"))
    runs, paper = [entry.name for entry in entries()], read_table("data/paper.csv").value
    ids: list[str] = []
    listed = []
    for kind in KINDS:
        for entry in member(content, kind, list, path):
            ids.append(named(entry, "id", ids, path))
            where = f"{path}: claim {ids[-1]}"
            claim = _claim(entry, kind, settings, paper, where)
            choose(claim.page, pages, f"page of {where}:")
            for run in (run for names in claim.runs for run in names):
                choose(str(run), runs, f"run of {where}:")
            listed.append(claim)
    return listed


def _claim(entry: dict[str, Any], kind: str, settings: dict[str, Any], paper: pd.Series, where: str) -> Claim:
    for part in entry:
        choose(str(part), PARTS, f"part of {where}:")
    page, sentence = (member(entry, part, str, where) for part in ("page", "sentence"))
    measure, of = _single(entry, "measure", MEASURES, where)
    keys, count = MEASURES[measure][0].split(), MEASURES[measure][1]
    for key in (*member({measure: of}, measure, dict, where), *keys):
        word = member(of, choose(str(key), keys, f"part of {where}: {measure}:"), str, where)
        choose(word, WORDS[key], f"{key} of {where}:")
    asserts, than = _single(entry, "asserts", ASSERTS, where)
    if isinstance(than, bool) or not isinstance(than, type(None) if asserts == "presence" else (int, float)):
        raise UserError(f"{where}: asserts {asserts} {shown(than)}: presence stands alone, all others need a number.")
    runs = [[names] if isinstance(names, str) else names for names in member(entry, "runs", list, where)]
    if not runs or any(not isinstance(n, list) or (len(n) != count if count else len(n) < 2) for n in runs):
        raise UserError(f"{where}: a {measure} is of {count or 'two or more'} runs: list such, the nearest first.")
    number, source, sets = math.nan, "", []
    if "paper" in entry:
        row, source = member(entry, "paper", list, where), member(entry, "source", str, where)
        number, sets = printed_value(paper, row, where), row[0].split("/")
    belongs = tuple(settings[choose(name, settings, f"setting of {where}:")] for name in sets)
    than = math.nan if than is None else float(than)
    return Claim(kind, entry["id"], page, sentence, measure, of, asserts, than, number, source, belongs,
                 tuple(map(tuple, runs)))  # fmt: skip


def _single(entry: dict[str, Any], key: str, allowed: Any, where: str) -> tuple[str, Any]:
    """Name and value of the mapping of one name that ``entry`` has under ``key``; of a word alone, it and None."""
    value = entry.get(key)
    [(name, inner)] = value.items() if isinstance(value, dict) and len(value) == 1 else [(value, None)]
    return choose(str(name), allowed, f"{key} of {where}:"), inner


def printed_value(paper: pd.Series, row: list[Any], where: str = "paper.csv") -> float:
    """The paper's number in ``row``, (data set, metric); of ``a/b``, where it has none, that of a over that of b."""
    sets, metric = map(str, row) if len(row) == 2 else ("", "")
    keys = [(name, metric) for name in ([sets] if (sets, metric) in paper.index else sets.split("/"))]
    if len(keys) > 2 or any(key not in paper.index for key in keys):
        raise UserError(f"{where}: paper.csv has no row {shown(row)}: name its data set and metric, or a/b of two.")
    return float(paper[keys[0]] / (paper[keys[1]] if keys[1:] else 1))


def judge(asserts: str, than: float, paper: float, ours: Measured, in_setting: bool = False) -> str:
    """The verdict by the rules at the top of this module; arguments as the parts of a :class:`Claim`."""
    side = ASSERTS[choose(asserts, ASSERTS, "assertion")]
    if math.isnan(ours.value):
        return "not measured"
    if math.isnan(ours.low) or math.isnan(ours.high):
        return "undecided"
    near, far = sorted((side * ours.low, side * ours.high))
    weak, strong = sorted((side * ours.null_low, side * ours.null_high))
    agrees = "agrees" if in_setting else "agrees elsewhere"
    if asserts in BOUNDS:
        if near > side * than and not near <= strong:
            return agrees
        return "opposite" if far < side * than else "undecided"
    floor, ceiling = np.fmax(side * than, strong), np.fmin(side * than, weak)
    if near <= side * paper <= far and far - near < side * paper - floor:
        return agrees
    if near > floor:
        return "present" if asserts == "presence" else "same direction"
    return "opposite" if far < ceiling else "undecided"


class Released:
    """The runs of a folder under one reading, and what the claims ask of them, each computed once."""

    def __init__(self, folder: Path, reading: str, asked: Iterable[Claim] = ()) -> None:
        self.folder, self.reading = folder, str(Scoring.of(reading))
        self.run = functools.cache(lambda name: open_run(folder / f"{name}.nc"))
        self.related = functools.cache(self._relate)
        self.scored = functools.cache(self._score)
        self.figures = functools.cache(lambda: figures(folder, reading))
        self.wanted: dict[tuple[str, int], set[str]] = {}  # what ratios ask of a run up to an epoch
        for claim in asked:
            if claim.measure in RATIOS:
                for pair in pairs(claim.measure, self.speaking(claim)):
                    for name in pair:
                        self.wanted.setdefault((name, self.common(pair)), set()).add(claim.of["metric"])

    def speaking(self, claim: Claim) -> tuple[str, ...]:
        """The first runs of the claim's list that are all released, with their hardness if it asks for it; or none."""
        also = ["", ".hardness"] if "samples" in claim.of else [""]
        return next(
            (n for n in claim.runs if all((self.folder / f"{run}{part}.nc").exists() for run in n for part in also)), ()
        )

    def common(self, pair: Sequence[str]) -> int:
        """The last epoch that both runs have."""
        return min(int(self.run(name).epoch[-1]) for name in pair)

    def _score(self, name: str, last: int) -> intervals.Scored:
        run, only = self.run(name).sel(epoch=slice(None, last)), sorted(self.wanted[name, last])
        return intervals.score_halves(
            run.isel(epoch=[0, -1]) if set(only) <= set(ENDS) else run, self.reading, only=only
        )

    def _relate(self, name: str) -> pd.DataFrame:
        recorded = hardness.load(self.folder / f"{name}.hardness.nc")
        return hardness.relate(recorded, self.run(name), self.reading, NULLS).xs("pearson", level="kind")

    def measured(self, measure: str, of: Mapping[str, str], runs: Sequence[str]) -> Measured:
        """What a claim measures, of the runs that speak for it: the one place that takes intervals from ``stats``."""
        if measure == "figure":
            if (key := (runs[0], of["metric"])) not in self.figures().index:
                raise UserError(f"{self.folder / 'figures.csv'} has no row {', '.join(key)}: dynmia make figures.")
            return Measured(**self.figures().loc[[key], list(Measured._fields)].fillna({"clipped": ""}).iloc[0])
        if measure == "spread":
            choose(of["metric"], POPULATION, "metric of a spread:")
            populations = [self.run(name) for name in runs]
            planes = [vulnerability_plane(run, self.reading) for run in populations]
            row = retest(populations, planes, redraws=2, draws=20).loc[f"cv_{of['metric']}"]
            return Measured(row.value, row.population_low, row.population_high)
        if measure in RATIOS:
            ends = [[self.scored(name, self.common(pair)) for name in pair] for pair in pairs(measure, runs)]
            return least_ratio(ends, of["metric"])
        rows = self.related(runs[0])
        for name in (of["measure"], of.get("over", of["measure"])):
            choose(name, rows.index.unique("measure"), f"measure in {runs[0]}.hardness.nc:")
        first, noise = (rows.loc[of["measure"], of["samples"], models] for models in (of["models"], "no signal"))
        if measure == "correlation":
            return Measured(first.value, first.low, first.high, noise.low, noise.high)
        return difference(first, rows.loc[of["over"], of["samples"], of["models"]])


def least_ratio(steps: Iterable[Sequence[intervals.Scored]], metric: str) -> Measured:
    """The least of the ratios of the first to the second of each pair; NaN if one is undefined."""
    ratios = [intervals.ratio(above, below, metric) for above, below in steps]
    # the least of the upper ends, since the least ratio is below them all
    value, low, high = np.min([ratio[["value", "low", "high"]].astype(float) for ratio in ratios], axis=0)
    clipped = {ratio.clipped for ratio in ratios} - {""}
    return Measured(float(value), float(low), float(high), clipped="both" if len(clipped) > 1 else "".join(clipped))


def pairs(measure: str, runs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The runs (above, below) of which ratios are taken."""
    if measure == "ratio" and runs:
        yield runs[0], runs[1]
    elif measure == "smallest_step":
        yield from ((above, below) for below, above in itertools.pairwise(runs))


def difference(first: Any, second: Any) -> Measured:
    """Of two correlations on the same samples, from their intervals (Zou 2007), as if they were independent.

    Correlations of two measures with one target mostly err alike, so that the interval is rather too wide.
    """
    value = first.value - second.value
    below = np.hypot(first.value - first.low, second.high - second.value)
    above = np.hypot(first.high - first.value, second.value - second.low)
    return Measured(value, value - below, value + above)


def in_words(settings: Sequence[Mapping[str, Any]]) -> str:
    """Data, network, optimiser, pool and epochs, each said once."""
    values = [[setting.get(part, "not known") for setting in settings] for part in SETTING]
    said = ["/".join(dict.fromkeys(f"{v:,}" if isinstance(v, int) else v for v in each)) for each in values]
    return "{}, network {}, {}, pool {}, {} epochs".format(*said) if settings else ""


def row_of(claim: Claim, released: Released) -> dict[str, Any]:
    """The row of a claim; ``paper_setting`` is what the paper's number belongs to."""
    runs = released.speaking(claim)
    ours = released.measured(claim.measure, claim.of, runs) if runs else Measured(np.nan, np.nan, np.nan)
    studies = [study_of(released.run(name)).to_dict() for name in runs]
    settings = [{part: study[part] for part in SETTING} for study in studies]
    in_setting = not claim.settings or settings == list(claim.settings)
    unit = METRICS[claim.of["metric"]].unit if claim.measure == "figure" else UNITS.get(claim.measure, "")
    return {
        "id": claim.id, "page": claim.page, "kind": claim.kind, "sentence": claim.sentence, "source": claim.source,
        "paper": claim.paper, "unit": unit, "reading": released.reading, "runs": " ".join(runs),
        "setting": in_words(settings), "paper_setting": in_words(claim.settings), **ours._asdict(),
        "verdict": judge(claim.asserts, claim.than, claim.paper, ours, in_setting),
    }  # fmt: skip


def compute(folder: Path, reading: str) -> pd.DataFrame:
    """A row a claim, under one reading."""
    released = Released(folder, reading, claims())
    return pd.DataFrame([row_of(claim, released) for claim in claims()])


def main(folder: Folder = "data", reading: Readings = None) -> None:
    """Measure and judge every claim on the runs in FOLDER under every reading, two processes at once; minutes."""
    place = table_place(folder, "claims.csv")
    readings = [str(Scoring.of(name)) for name in reading or LENSES]
    with two_processes() as pool:
        tables = list(pool.map(compute, [place.parent] * len(readings), readings))
    write_table(pd.concat(tables), place, " ".join(f"--reading {name}" for name in reading or ()))

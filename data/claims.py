"""Every claim of claims.yml, measured on the released runs and judged by the rules of dynmia.book.claims."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from dynmia.attack.plane import vulnerability_plane
from dynmia.attack.scoring import Scoring
from dynmia.book.claims import SETTING, Claim, Measured, claims, judge
from dynmia.book.makers import table_place, write_table
from dynmia.book.tables import figures
from dynmia.chapters.retest import POPULATION, retest
from dynmia.cli import Folder
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import UserError, choose
from dynmia.stats import hardness, intervals
from dynmia.store.run import open_run, study_of

ENDS = ("auc", "advantage", "displacement", "entropy_change", "vulnerable")  # read the first and last checkpoint alone
NULLS = 200  # draws of the no-signal level of a correlation, as in figures.csv
RATIOS = ("ratio", "smallest_step")
UNITS = dict.fromkeys(RATIOS, "ratio") | dict.fromkeys(("correlation", "difference"), "Pearson r")
Readings = Annotated[list[str] | None, typer.Option(
    "--reading", help="fpr@a or bayes, for all claims, whatever their own; may be repeated"
)]  # fmt: skip


class Released:
    """The runs of a folder under one reading, and what the claims ask of them, each computed once."""

    def __init__(self, folder: Path, reading: str, asked: Iterable[Claim] = ()) -> None:
        self.folder, self.reading = folder, Scoring.of(reading).reading
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


def compute(folder: Path, readings: Sequence[str] = ()) -> pd.DataFrame:
    """A row a claim under its own reading, or a row a claim and each of ``readings``."""
    listed = claims()
    own = [claim.of.get("reading", "fpr@0.01") for claim in listed]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for reading in dict.fromkeys(readings or own):
        asked = [claim for claim, mine in zip(listed, own) if readings or mine == reading]
        released = Released(folder, reading, asked)
        rows |= {(reading, claim.id): row_of(claim, released) for claim in asked}
    order = [(reading, c.id) for reading in readings for c in listed] or [(r, c.id) for c, r in zip(listed, own)]
    return pd.DataFrame([rows[key] for key in order])


def main(folder: Folder = "data", reading: Readings = None) -> None:
    """Measure and judge every claim on the runs in FOLDER; a minute or two."""
    place = table_place(folder, "claims.csv")
    readings = [Scoring.of(name).reading for name in reading or ()]
    write_table(compute(place.parent, readings), place, " ".join(f"--reading {name}" for name in readings), digits=6)

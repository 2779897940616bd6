"""Every claim of claims.yml, measured on the released runs and judged: one row a claim."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
import xarray as xr

from dynmia.attack.plane import vulnerability_plane
from dynmia.book.claims import Claim, claims, judge
from dynmia.book.makers import table_place, write_table
from dynmia.book.tables import figures
from dynmia.chapters.retest import retest
from dynmia.cli import Folder
from dynmia.errors import UserError
from dynmia.stats import hardness, intervals
from dynmia.store.run import open_run, study_of
from dynmia.study import Study

ENDS = ("auc", "displacement", "entropy_change")  # metrics of contrasts that need the first and last checkpoint alone
PATHS = ("speed_mean", "transition_peak")  # and those of all checkpoints
COLUMNS = ["group", "page", "sentence", "asserts", "than", "paper", "value", "low", "high", "clipped", "carrier",
           "null_low", "null_high", "reading", "runs", "setting", "paper_setting", "verdict"]  # fmt: skip
Reading = Annotated[str, typer.Option(help="of the scores: fpr@a or bayes")]


@dataclass
class Released:
    """The runs of a folder and what claims need of them, each computed once."""

    folder: Path
    reading: str
    nulls: int = 200
    runs: dict[str, xr.Dataset] = field(default_factory=dict)
    related: dict[str, pd.DataFrame] = field(default_factory=dict)
    scored: dict[tuple[str, bool, int], intervals.Scored] = field(default_factory=dict)

    def run(self, name: str) -> xr.Dataset:
        """A released run."""
        if name not in self.runs:
            self.runs[name] = open_run(self.folder / f"{name}.nc")
        return self.runs[name]

    def first(self, choices: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        """The first of ``choices`` whose runs are all released; nothing if there is none."""
        return next((names for names in choices if all((self.folder / f"{n}.nc").exists() for n in names)), ())

    @functools.cached_property
    def figures(self) -> pd.DataFrame:
        """The table of released figures under this reading."""
        return figures(self.folder, self.reading)

    def halves(self, name: str, metric: str, last: int) -> intervals.Scored:
        """Metrics of a run up to epoch ``last``, and of its halves."""
        key = name, metric in ENDS, last
        if key not in self.scored:
            run = self.run(name).sel(epoch=slice(None, last))
            run, only = (run.isel(epoch=[0, -1]), ENDS) if metric in ENDS else (run, PATHS)
            self.scored[key] = intervals.score_halves(run, self.reading, only=only)
        return self.scored[key]

    def ratio(self, above: str, below: str, metric: str) -> pd.Series:
        """A metric of one run over that of another, up to the last epoch of both."""
        last = min(int(self.run(name).epoch[-1]) for name in (above, below))
        return intervals.ratio(self.halves(above, metric, last), self.halves(below, metric, last), metric)

    def measure(self, kind: str, what: Any, names: tuple[str, ...]) -> dict[str, Any]:
        """Value, low, high and, where there are such, clipped, carrier, null_low and null_high."""
        if kind == "figure":
            row = self.figures.loc[(names[0], what)]
            return dict(row[["value", "low", "high", "clipped", "carrier", "null_low", "null_high"]])
        if kind == "ratio":
            return dict(self.ratio(names[0], names[1], what)[["value", "low", "high", "clipped"]])
        if kind == "step":
            steps = [self.ratio(above, below, what) for below, above in itertools.pairwise(names)]
            return dict(min(steps, key=lambda step: step.low)[["value", "low", "high", "clipped"]])
        if kind == "correlation":
            return self.correlation(names[0], *what)
        planes = [vulnerability_plane(self.run(name), self.reading) for name in names]
        row = retest([self.run(name) for name in names], planes, redraws=2, draws=20).loc[f"cv_{what}"]
        return {"value": row.value, "low": row.population_low, "high": row.population_high}

    def correlation(self, name: str, measure: str, samples: str, models: str) -> dict[str, Any]:
        """Pearson's correlation of a measure of hardness with dynamic vulnerability, and its no-signal range."""
        if name not in self.related:
            recorded = hardness.load(self.folder / f"{name}.hardness.nc")
            self.related[name] = hardness.relate(recorded, self.run(name), self.reading, self.nulls)
        row, noise = (self.related[name].loc[measure, samples, m, "pearson"] for m in (models, "no signal"))
        return {"value": row.value, "low": row.low, "high": row.high, "null_low": noise.low, "null_high": noise.high}


def setting_of(studies: Sequence[Study]) -> str:
    """Data, model, optimiser, pool, epochs and number of models, each said once."""
    words = [
        "/".join(dict.fromkeys(str(getattr(study, name)) for study in studies))
        for name in ("dataset", "model", "optimizer", "pool_size", "epochs", "shadow_models")
    ]
    return "{}, {}, {}, pool {}, {} epochs, N = {}".format(*words)


def row_of(claim: Claim, released: Released) -> dict[str, Any]:
    """The row of a claim."""
    names, ours = released.first(claim.runs), {}
    if names:
        try:
            ours = released.measure(claim.kind, claim.what, names)
        except (UserError, KeyError):
            names = ()
    studies = [study_of(released.run(name)) for name in names]
    fits = bool(studies) and all(getattr(s, part) == value for s in studies for part, value in claim.setting.items())
    numbers = {name: float(ours.get(name, np.nan)) for name in ("value", "low", "high", "null_low", "null_high")}
    return numbers | {
        "group": claim.group, "page": claim.page, "sentence": claim.sentence, "asserts": claim.asserts,
        "than": claim.than, "paper": claim.paper, "clipped": ours.get("clipped", ""), "carrier": ours.get("carrier"),
        "reading": released.reading, "runs": " ".join(names), "setting": setting_of(studies) if studies else "",
        "paper_setting": ", ".join(map(str, claim.setting.values())),
        "verdict": judge(claim.asserts, claim.than, claim.paper, **numbers, in_setting=fits and bool(claim.setting)),
    }  # fmt: skip


def measured(folder: Path, reading: str = "fpr@0.01", nulls: int = 200) -> pd.DataFrame:
    """All claims, by id; columns ``COLUMNS``."""
    released = Released(folder, reading, nulls)
    rows = {claim.id: row_of(claim, released) for claim in claims()}
    return pd.DataFrame.from_dict(rows, "index", columns=COLUMNS).rename_axis("id")


def main(folder: Folder = "data", reading: Reading = "fpr@0.01") -> None:
    """Measure and judge every claim on the runs in FOLDER."""
    place = table_place(folder, "claims.csv")
    write_table(measured(place.parent, reading), place, digits=5)

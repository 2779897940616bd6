"""Every metric of every released run under every reading: intervals, no-signal levels, p-values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
import xarray as xr

from dynmia.attack.plane import LEAST, vulnerability_planes
from dynmia.book.makers import table_place, two_processes, write_table
from dynmia.book.tables import SCORINGS, entries, read_table
from dynmia.cli import Folder
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import bounded
from dynmia.stats.intervals import ends, score_readings
from dynmia.stats.resample import null_masks, null_table, p_values, quantiles
from dynmia.store.run import open_run

COLUMNS = [
    "value", "low", "high", "error", "clipped", "carrier", "null_value", "null_low", "null_high", "p", "null_defined",
    "null_draws", "run_sha256",
]  # fmt: skip
Null = Annotated[int, typer.Option(help="draws of the permutation null")]


def figures_of(run: xr.Dataset, scorings: Sequence[str], null: int) -> dict[str, pd.DataFrame]:
    """The rows of ``run`` under each scoring, with ``null`` draws of the permutation null."""
    noise = [
        {name: null_table([plane]) for name, plane in vulnerability_planes(run, scorings, keep=keep).items()}
        for keep in null_masks(run, null)
    ]
    over = "both" if run.sizes["model"] >= LEAST else "samples"  # as intervals.summarise
    scored, found = score_readings(run, scorings, over, only=METRICS), {}
    for name in scorings:
        table, drawn = ends(scored[name]), pd.concat([tables[name] for tables in noise], ignore_index=True)
        level = quantiles(drawn).rename(columns={"draws": "defined"}).add_prefix("null_")
        found[name] = table.join(level).assign(
            p=p_values(table.value, drawn).astype(float), null_draws=null, run_sha256=run.attrs["sha256"][:12]
        )[COLUMNS]
    return found


def out_of_date(path: Path, name: str, run: xr.Dataset, null: int) -> list[str]:
    """The scorings whose rows of ``run`` are not in the table at ``path``, or of another file or fewer draws."""
    if not path.exists():
        return list(SCORINGS)
    table = read_table(path)
    mine = table[table.index.get_level_values("run") == name].reset_index()
    fresh = mine[(mine.run_sha256 == run.attrs["sha256"][:12]) & (mine.null_draws >= null)]
    count = fresh.rule.value_counts()
    return [scoring for scoring in SCORINGS if count.get(scoring, 0) != len(METRICS)]


def write_figures(folder: Path, name: str, run: xr.Dataset, *, null: int) -> bool:
    """Bring the rows of ``run`` in ``folder/figures.csv`` up to date; returns whether anything was to be done."""
    if not (scorings := out_of_date(folder / "figures.csv", name, run, null)):
        return False
    _insert(folder / "figures.csv", name, figures_of(run, scorings, null))
    return True


def _insert(path: Path, name: str, tables: dict[str, pd.DataFrame]) -> None:
    """Put the rows of a run in the place of those that it had, in the order of the list of runs and of scorings."""
    old = read_table(path)[COLUMNS] if path.exists() else pd.DataFrame(columns=COLUMNS, index=_index([]))
    run, rule = (old.index.get_level_values(level) for level in ("run", "rule"))
    parts = [old[~((run == name) & rule.isin([*tables]))]]
    for scoring, table in tables.items():
        parts.append(table.set_axis(_index([(name, scoring, metric) for metric in table.index])))
    whole = pd.concat([part for part in parts if len(part)])
    runs, scorings = [entry.name for entry in entries()], list(SCORINGS)

    def rank(key: tuple[str, str, str]) -> tuple[int, ...]:
        return tuple(names.index(part) if part in names else -1 for names, part in zip((runs, scorings), key))

    whole = whole.iloc[sorted(range(len(whole)), key=lambda k: rank(whole.index[k]))]  # stable: metrics stay in order
    write_table(whole, path)


def _index(rows: list[tuple[str, str, str]]) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples(rows, names=["run", "rule", "metric"])


def main(folder: Folder = "data", null: Null = 200) -> None:
    """Bring the rows of all runs in FOLDER up to date, two processes at once: those as sure as asked for are kept."""
    bounded("null", null, 1)
    path, jobs = table_place(folder, "figures.csv"), {}
    for entry in entries():
        place = path.parent / f"{entry.name}.nc"
        if place.exists() and entry.study.design != "all":
            run = open_run(place)
            if scorings := out_of_date(path, entry.name, run, null):
                jobs[entry.name] = (run, scorings, null)
    with two_processes() as pool:
        for name, tables in zip(jobs, pool.map(figures_of, *zip(*jobs.values())) if jobs else ()):
            _insert(path, name, tables)
            typer.echo(f"{name}: figures written to {path}")

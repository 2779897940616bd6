"""Every metric of every released run under both rules: intervals, no-signal levels, p-values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
import xarray as xr

from dynmia.attack.plane import vulnerability_planes
from dynmia.book.makers import table_place, write_table
from dynmia.book.tables import RULES, entries, read_table
from dynmia.cli import Folder
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import bounded
from dynmia.stats.intervals import summarise
from dynmia.stats.resample import null_masks, null_table, p_values, quantiles
from dynmia.store.run import open_run

COLUMNS = [
    "value", "low", "high", "error", "clipped", "carrier", "null_value", "null_low", "null_high", "p", "null_defined",
    "null_draws", "run_sha256",
]  # fmt: skip
Null = Annotated[int, typer.Option(help="draws of the permutation null")]


def write_figures(folder: Path, name: str, run: xr.Dataset, *, null: int) -> bool:
    """Bring the rows of ``run`` in ``folder/figures.csv`` up to date; returns whether anything was to be done."""
    path = folder / "figures.csv"
    old = read_table(path)[COLUMNS] if path.exists() else pd.DataFrame(columns=COLUMNS, index=_index([]))
    mine = old[old.index.get_level_values("run") == name]
    if (
        len(mine) == len(RULES) * len(METRICS)
        and ((mine.run_sha256 == run.attrs["sha256"][:12]) & (mine.null_draws >= null)).all()
    ):
        return False
    parts = [old.drop(index=mine.index)]
    noise = [
        {rule: null_table([plane]) for rule, plane in vulnerability_planes(run, RULES, keep=keep).items()}
        for keep in null_masks(run, null)
    ]
    for rule in RULES:
        table = summarise(run, rule)
        drawn = pd.concat([tables[rule] for tables in noise], ignore_index=True)
        level = quantiles(drawn).rename(columns={"draws": "defined"}).add_prefix("null_")
        table = table.join(level).assign(
            p=p_values(table.value, drawn).astype(float), null_draws=null, run_sha256=run.attrs["sha256"][:12]
        )
        table.index = _index([(name, rule, metric) for metric in table.index])
        parts.append(table[COLUMNS])
    whole = pd.concat([part for part in parts if len(part)])
    order = [entry.name for entry in entries()]
    rank = {run: order.index(run) if run in order else -1 for run in whole.index.get_level_values("run")}
    whole = whole.iloc[sorted(range(len(whole)), key=lambda k: rank[whole.index[k][0]])]  # stable: rows stay in order
    write_table(whole, path)
    return True


def _index(rows: list[tuple[str, str, str]]) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples(rows, names=["run", "rule", "metric"])


def main(folder: Folder = "data", null: Null = 200) -> None:
    """Bring the rows of all runs in FOLDER up to date: those that are there and as sure as asked for are kept."""
    bounded("null", null, 1)
    place = table_place(folder, "figures.csv").parent
    for entry in entries():
        path = place / f"{entry.name}.nc"
        if (
            path.exists()
            and entry.study.design != "all"
            and write_figures(place, entry.name, open_run(path), null=null)
        ):
            typer.echo(f"{entry.name}: figures written to {place / 'figures.csv'}")

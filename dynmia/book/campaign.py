"""The released runs: one list (``data/campaign.yml``), trained in order of value, and one table of all their figures.

dynmia campaign --plan                 # what there is, what is missing, what it costs here
dynmia campaign --time-budget 2h       # train what is missing; resumable, finished runs are skipped
dynmia campaign --scale quick --only 02
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from ..attack.plane import vulnerability_planes
from ..dynamics.metrics import METRICS
from ..errors import UserError, choose, shown
from ..pool.datasets import SIZES
from ..stats.intervals import summarise
from ..stats.resample import null_masks, null_table, p_values, quantiles
from ..store.folder import differing, read_manifest, write_atomic
from ..store.run import open_run, project_root, resolve, save_run, study_of
from ..study import Study
from .tables import member, named, read_list, read_table, scalars

RULES = ("fpr@0.01", "bayes")
COLUMNS = [
    "value", "low", "high", "error", "clipped", "carrier", "null_value", "null_low", "null_high", "p", "null_defined",
    "null_draws", "run_sha256",
]  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One run of the list: its name, the chapters that show it, and its study."""

    name: str
    chapters: tuple[str, ...]
    study: Study


def entries(scale: str = "cpu", only: str = "", changes: dict[str, Any] | None = None) -> list[Entry]:
    """The list in ``data/campaign.yml``, in order of value.

    Args:
        scale: a name under ``scales``: fields that replace those of every run, and ``pool_share``, by which the
            pool size is multiplied, up to the whole training split.
        only: a chapter (``02``), or a part of a run's name; empty takes all.
        changes: fields of the study, or ``pool_share``, that replace all others.
    """
    path = resolve("data/campaign.yml")
    content = read_list(path, ("defaults", "scales", "runs"))
    defaults, scales = (member(content, part, dict, path) for part in ("defaults", "scales"))
    listed: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {}
    for run in member(content, "runs", list, path):
        name = named(run, "name", list(listed), path)
        chapters = member(run, "chapters", list, f"{path}: run {name}")
        if not all(isinstance(chapter, str) for chapter in chapters):
            raise UserError(f'{path}: run {name}: chapters must be texts in quotes, for example ["02", "03"].')
        listed[name] = tuple(chapters), defaults | {k: v for k, v in run.items() if k not in ("name", "chapters")}
        for other in scales:  # all, so that a fault shows before anything is trained
            _study(listed[name][1], member(scales, other, dict, f"{path}: scales"), f"{path}: run {name}, {other}")
    fields = scales[choose(scale, map(str, scales), "scale")]
    names = [name for name, (chapters, _) in listed.items() if only in ("", *chapters)]
    names = names or [name for name in listed if only in name]
    if not names:
        raise UserError(f"no run matches {only!r}: name a chapter, like 02, or a part of a name, like mnist.")
    return [
        Entry(name, listed[name][0], _study(listed[name][1], fields | (changes or {}), f"run {name} as changed"))
        for name in names
    ]


def _study(run: dict[str, Any], fields: dict[str, Any], where: str) -> Study:
    """The study of a run of the list, with ``fields`` changed; ``pool_share`` stops at the whole training split."""
    fields = dict(fields)
    share = fields.pop("pool_share", 1)
    with contextlib.suppress(ValueError):
        share = float(share) if isinstance(share, str) else share  # YAML 1.1 reads 1e-1 as a text
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < math.inf:
        raise UserError(f"{where}: pool_share is {shown(share)}: it must be a number above 0.")
    try:
        study = Study.from_dict(scalars(run | fields))
        if share != 1 and study.pool_size and "pool_size" not in fields:
            size, largest = study.pool_size * share, SIZES[study.dataset][1] if study.dataset in SIZES else math.inf
            study = study.replace(pool_size=int(min(size, largest)))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return study


def released(chapter: str, folder: str | os.PathLike[str] = "data") -> dict[str, xr.Dataset]:
    """The runs of ``chapter`` that lie in ``folder``, by name, in the order of the list."""
    paths = {entry.name: resolve(folder) / f"{entry.name}.nc" for entry in entries(only=chapter)}
    found = {name: open_run(path) for name, path in paths.items() if path.exists()}
    if not found:
        raise UserError(f"{folder} holds no run of chapter {chapter}: train them by dynmia campaign --only {chapter}.")
    return found


def missing(chapter: str, folder: str | os.PathLike[str] = "data") -> list[str]:
    """Names of the runs of ``chapter`` that are not in ``folder``."""
    return [e.name for e in entries(only=chapter) if not (resolve(folder) / f"{e.name}.nc").exists()]


def run_campaign(
    scale: str = "cpu",
    *,
    only: str = "",
    changes: dict[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    time_budget: float | None = None,
    null: int = 200,
    progress: bool = True,
    **options: Any,
) -> Iterator[str]:
    """Train the runs that are missing, write each to ``folder``, and its figures to ``figures.csv``; yields lines.

    A run that fails (no data, a diverged model) does not stop the others.

    Args:
        folder: default ``data`` for the released scale, ``cpu``, else ``runs/<scale>``. A run is trained in a folder
            beside its file, ``<name>-<8 digits of its identity>``; for ``data`` in ``runs/<scale>``.
        time_budget: seconds, above 0; training stops cleanly before they are over.
        null: draws of the permutation null in the table of figures; 0 leaves the table as it is.
        options: data_dir, device, workers, for :func:`dynmia.shadow.engine.train_part`.

    Raises:
        UserError: at the end, if any run failed.
    """
    from ..shadow import engine
    from ..stats import hardness

    if time_budget is not None and not time_budget > 0:
        raise UserError(f"time_budget is {time_budget} s: it must be above 0.")
    if isinstance(null, bool) or not isinstance(null, int) or null < 0:
        raise UserError(f"null is {shown(null)}: it must be a whole number of draws, 0 for no figures.")
    folder, device = _folder(scale, folder), engine.pick_device(options.get("device"))
    deadline = time.monotonic() + (math.inf if time_budget is None else time_budget)
    failed = []
    for entry in entries(scale, only, changes):
        path = folder / f"{entry.name}.nc"
        try:
            if not path.exists():
                if (left := deadline - time.monotonic()) <= 0:
                    yield f"{entry.name}: not begun, the time is over"
                    continue
                pool, store = engine.train_part(
                    entry.study, out=_working(entry, scale, folder, device), progress=progress,
                    time_budget=None if time_budget is None else left, **options,
                )  # fmt: skip
                if missing := store.missing():
                    yield f"{entry.name}: {len(missing)} models are left; the same command continues"
                    continue
                run = engine.finish(pool, store)
                if entry.study.record == "hardness":
                    measured = hardness.measure(store, run, pool.test_labels)
                    hardness.save(measured, folder / f"{entry.name}.hardness.nc")
                save_run(run, path)
                yield f"{entry.name}: trained in {float(run.attrs['wall_time_s']) / 60:.1f} min, wrote {path}"
            run = open_run(path)
            if what := _differs(study_of(run), entry.study):
                raise UserError(
                    f"{path} is a run of another study; it differs in {what}: move it away, or take another --out."
                )
            if null and entry.study.design != "all" and write_figures(folder, entry.name, run, null=null):
                yield f"{entry.name}: figures written to {folder / 'figures.csv'}"
        except UserError as error:
            failed.append(entry.name)
            yield f"{entry.name}: {error}"
    if failed:
        raise UserError(f"{len(failed)} runs failed: {', '.join(failed)}; the others are finished.")


def plan_campaign(
    scale: str = "cpu",
    *,
    only: str = "",
    changes: dict[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Iterator[tuple[str, str, float]]:
    """Name, ``finished`` or ``missing``, and the seconds that are left on this machine, for each run of the list."""
    from ..shadow.cost import plan

    for entry in entries(scale, only, changes):
        there = (_folder(scale, folder) / f"{entry.name}.nc").exists()
        try:
            yield entry.name, *(("finished", 0.0) if there else ("missing", plan(entry.study, **options)["seconds"]))
        except UserError as error:
            raise UserError(f"{entry.name}: {error}") from error


def _folder(scale: str, folder: str | os.PathLike[str] | None) -> Path:
    return Path(folder or (project_root() / "data" if scale == "cpu" else f"runs/{scale}"))


def _working(entry: Entry, scale: str, folder: Path, device: str) -> Path:
    """Where ``entry`` is trained: a folder that no other study shares, or one that was begun under its name alone."""
    study, begun = entry.study.resolve(device), Path("runs") / scale / entry.name
    if (begun / "manifest.json").exists() and Study.from_dict(read_manifest(begun)["study"]) == study:
        return begun
    beside = Path("runs") / scale if os.path.realpath(folder) == os.path.realpath(project_root() / "data") else folder
    return beside / f"{entry.name}-{study.identity('')[:8]}"


def _differs(there: Study, here: Study) -> str:
    """The fields in which a finished run is not what the list asks for; precision 'auto' is whatever it became."""
    here = here.replace(precision=there.precision) if here.precision == "auto" else here
    return "" if there == here else differing(there.to_dict(), here.to_dict())


def write_figures(folder: Path, name: str, run: xr.Dataset, *, null: int) -> bool:
    """Bring the rows of ``run`` in ``folder/figures.csv`` up to date; returns whether anything was to be done."""
    path = folder / "figures.csv"
    old = _read(path) if path.exists() else pd.DataFrame(columns=COLUMNS, index=_index([]))
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
    text = io.StringIO()
    whole.to_csv(text, float_format="%.7g")
    write_atomic(path, text.getvalue().encode())
    return True


def figures(folder: str | os.PathLike[str] = "data", rule: str = "fpr@0.01") -> pd.DataFrame:
    """Every metric of every run in ``folder`` under ``rule``, from ``figures.csv``.

    Returns:
        Index (run, metric); columns label, unit; value, low, high, error from :func:`dynmia.stats.intervals.summarise`;
        null_value, null_low, null_high (the no-signal level) and p, from :func:`dynmia.stats.resample.p_values`.
    """
    path = resolve(folder) / "figures.csv"
    table = _read(path)
    choose(rule, sorted(set(table.index.get_level_values("rule"))), "decision rule in figures.csv")
    table = table.xs(rule, level="rule").drop(columns=["null_draws", "null_defined", "run_sha256"])
    metrics = [choose(name, METRICS, f"metric in {path}:") for name in table.index.get_level_values("metric")]
    table.insert(0, "label", [METRICS[name].label for name in metrics])
    table.insert(1, "unit", [METRICS[name].unit for name in metrics])
    return table


def no_signal(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of the no-signal level of :func:`figures`, named as by :func:`dynmia.stats.resample.null_summary`."""
    names = {"null_value": "value", "null_low": "low", "null_high": "high", "p": "p"}
    return table[list(names)].rename(columns=names)


def _index(rows: list[tuple[str, str, str]]) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples(rows, names=["run", "rule", "metric"])


def _read(path: Path) -> pd.DataFrame:
    return read_table(path, "dynmia campaign", "figures.csv")[COLUMNS]

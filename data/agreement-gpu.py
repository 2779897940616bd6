"""Accuracies and the attack's AUC of one study by each engine of a GPU, and by other seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
import xarray as xr

from dynmia.attack.plane import vulnerability_plane
from dynmia.book.makers import maker
from dynmia.book.tables import entries
from dynmia.cli import DataDir, parse_duration, parse_pairs
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import choose, reason, writable
from dynmia.shadow import open_store
from dynmia.shadow.gpu import train_lanes
from dynmia.shadow.shard import Job, train_here
from dynmia.shadow.step import arithmetic
from dynmia.store.folder import write_atomic
from dynmia.store.run import assemble
from dynmia.study import PRESETS, Study

DEVICE = "cuda"
ENGINES = ("graph", "compiled graph", "eager")
# study -> other seeds to train, so that the noise of the seed is known; of the first, populations of five are released
AGREEMENTS = {"cifar10-cnn-1000": (), "cifar10-cnn-1000,model=wrn-10-1,epochs=24,shadow_models=12": (1, 2, 3)}


def listed_study(text: str) -> Study:
    """A preset or a run of ``campaign.yml``, with changes: ``cifar10-cnn-1000,model=wrn-10-1,epochs=24``."""
    name, *changes = text.split(",")
    known = {entry.name: entry.study for entry in entries()} | {preset: Study.preset(preset) for preset in PRESETS}
    return Study.from_dict(known[choose(name, known, "preset or run")].to_dict() | parse_pairs(changes, "study"))


def agree(text: str, seeds: Iterable[int], out: Path, data_dir: str | None, deadline: float) -> dict[str, Any]:
    """Train one study by each engine, and other ``seeds`` of it by the first: accuracies and LiRA's AUC at the end."""
    differences: dict[str, Any] = {}
    variants = {name: (name, listed_study(text)) for name in ENGINES}
    variants |= {f"seed {seed}": (ENGINES[0], listed_study(f"{text},seed={seed}")) for seed in seeds}
    for number, (name, (kind, wanted)) in enumerate(variants.items()):
        folder, models = out / f"agreement-{wanted.model}-{number}", range(wanted.shadow_models)
        study, pool, store = open_store(wanted, out=folder, data_dir=data_dir, device=DEVICE)
        began, left = time.time(), time.monotonic() + deadline - time.time()
        job = Job(study, pool, store, DEVICE, deadline=left)
        with arithmetic("fast"):
            if kind == "eager":
                train_here(job, models)
            else:
                train_lanes(job, models, "compiled" in kind)
        if left := len(store.missing()):
            differences[name] = f"{left} models are left: the time was over"
            continue
        last = assemble(store, pool).isel(epoch=[-1])
        auc = METRICS["auc"].of(vulnerability_plane(last, "lira:bayes"), None)
        differences[name] = {"engine": store.load_shard(0)[1]["engine"], "auc": round(float(auc), 4)} | {
            part: round(float(last[part].mean()), 4) for part in ("train_accuracy", "test_accuracy")
        } | {"seconds": round(time.time() - began, 1)}  # fmt: skip
    return differences


def agreement(measured: dict[str, Any], study: str, runs: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Accuracies and attack AUC at the end of one study: each GPU engine, and populations that differ by the seed.

    Args:
        measured: what ``dynmia make agreement-gpu`` wrote.
        study: of the studies in it, the one to show.
        runs: CPU populations of that study.

    Returns:
        Index what trained it; columns train_accuracy, test_accuracy, auc.
    """
    rows = {}
    for name, run in runs.items():
        last = run.isel(epoch=[-1])
        rows[f"CPU, {name}"] = {
            part: float(last[part].mean()) for part in ("train_accuracy", "test_accuracy")
        } | {"auc": float(METRICS["auc"].of(vulnerability_plane(last, "lira:bayes"), None))}  # fmt: skip
    parts = {name: part for name, part in measured[f"agreement {study}"].items() if isinstance(part, dict)}
    table = pd.DataFrame(rows | {f"{measured['hardware']}, {name}": part for name, part in parts.items()}).T
    return table[["train_accuracy", "test_accuracy", "auc"]].astype(float)


def apart(table: pd.DataFrame) -> list[str]:
    """How far the engines of a table of :func:`agreement` lie from the graph, beside what a seed changes."""
    seeds, engines = table[table.index.str.contains("seed")], table[~table.index.str.contains("seed")]
    graph = engines.iloc[0]
    seeds = seeds if seeds.index.str.startswith("CPU").all() else pd.concat([seeds, engines.iloc[:1]])
    return [
        f"{name.split(', ')[-1]}: {abs(row.auc - graph.auc):.4f} from the graph's AUC and "
        f"{abs(row.test_accuracy - graph.test_accuracy):.4f} from its held-out accuracy; the standard deviation over "
        f"{len(seeds)} seeds is {seeds.auc.std():.4f} and {seeds.test_accuracy.std():.4f}."
        for name, row in engines.iloc[1:].iterrows()
    ]


def main(
    out: Annotated[str, typer.Option(help="where the result goes; written after every study")] = "agreement-gpu.json",
    runs: Annotated[str, typer.Option(help="folder of the run folders, made if missing")] = "runs/agreement",
    time_budget: Annotated[str, typer.Option(help="stop after this, for example 9m or 1h30m")] = "9m",
    data_dir: DataDir = None,
) -> None:
    """Train each study by each engine of this machine's GPU, and by one of them with other seeds."""
    deadline, file = time.time() + parse_duration(time_budget), writable(out, ".json")
    writable(Path(runs) / "manifest.json")
    result = maker("bench-gpu").about(f"dynmia make agreement-gpu --time-budget {time_budget}")
    for text, seeds in AGREEMENTS.items():
        try:
            result[f"agreement {text}"] = agree(text, seeds, Path(runs), data_dir, deadline)
        except Exception as error:  # one study's failure is no other's
            result[f"agreement {text}"] = f"error: {type(error).__name__}: {reason(error)}"
        typer.echo(f"{text}: {json.dumps(result[f'agreement {text}'])}", err=True)
        write_atomic(file, json.dumps(result, indent=1).encode())

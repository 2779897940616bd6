"""What a study costs before it starts, and what the committed measurements say: samples, FLOPs, disk, time, targets."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch.utils.data import Dataset

from ..attack.plane import vulnerability_plane
from ..dynamics.metrics import METRICS
from ..errors import StoreError, UserError, choose, reason
from ..pool.datasets import SIZES, load_dataset
from ..pool.pool import Pool
from ..store.run import cores
from ..study import Study
from .models import build_model, forward_flops, parameters
from .run import Folder, check_workers, pick_device
from .step import EVALUATION_BATCH, DeviceData, evaluate, new_state, train_step

# name of a measured entry -> what it is, and the target for its median
TARGETS: dict[str, tuple[str, str, float]] = {
    "pool_of_processes / sequential_two_threads": ("training, against the tuned loop of two threads", ">=", 1.2),
    "pool_of_processes / dataloader_loop": ("training, against a plain DataLoader loop", ">=", 2.2),
    "pool_of_processes / sgemm": ("training, share of the measured sgemm rate", ">=", 0.6),
    "busy_share": ("share of CPU time kept busy while a population trains", ">=", 0.95),
    "lira_slowest_variant": ("LiRA, 41 x 20 x 50,000, slowest of 12 variants", "<=", 5.0),
    "memory": ("LiRA, memory above the input", "<=", 0.5),
    "lira_scipy_loop / lira_online_mean": ("LiRA, against the per-sample scipy loop", ">=", 1000.0),
    "lira_nan_loop / lira_online_mean": ("LiRA, against the NaN-masked loop", ">=", 15.0),
    "plane + summarise_1000_draws": ("plane and all metrics with 1,000 bootstrap draws", "<=", 20.0),
    "lira_per_million_at_1000000 / at_10000": ("LiRA, cost a sample at 1,000,000 against 10,000", "<=", 1.25),
    "best / ceiling, high": ("training, share of the ceiling (least memory traffic)", ">=", 0.35),
    "best / eager_256": ("training, against our own eager loop", ">=", 2.5),
    "best / dataloader_loop_256": ("training, against a DataLoader loop", ">=", 5.0),
    "sam step / sgd step": ("SAM step, in SGD steps", "<=", 2.05),
    "compiled_evaluation / training": ("evaluation at 41 checkpoints, share of the training time", "<=", 0.08),
}  # fmt: skip


def plan(
    study: Study, *, data_dir: Folder = None, device: str | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Estimate the cost of ``study`` on this machine.

    A named data set is taken at its full size if no data folder is named, so that planning never downloads. The time
    comes from training and evaluating random images of the right shape for about three seconds in one process.

    Returns:
        Mapping with parameters, training_samples, evaluations, flops, disk_bytes, train_rate and evaluation_rate
        (samples per second of one process), workers, seconds.
    """
    check_workers(workers)
    device = pick_device(device)
    study = study.resolve(device)
    if study.dataset in SIZES and not (data_dir or os.environ.get("DYNMIA_DATA")):
        shape, train, test, classes = SIZES[study.dataset]
    else:
        data = load_dataset(study.dataset, data_dir)
        _, height, width, channels = data.train_images.shape
        shape, classes = (channels, height, width), data.classes
        train, test = len(data.train_labels), len(data.test_labels)
    for name, wanted, split, most in (
        ("pool_size", study.pool_size, "training", train), ("test_size", study.test_size, "test", test)
    ):  # fmt: skip
        if (wanted or 0) > most:
            raise UserError(f"{name} {wanted} is larger than the {split} split of {study.dataset} ({most}).")
    samples, test = study.pool_size or train, study.test_size or test
    model = build_model(study.model, shape, classes)
    passes = 2 if study.optimizer.startswith("sam") else 1
    trained, evaluated = (study.shadow_models * count for count in work(study, samples, test))
    size = parameters(model)
    workers = workers or (cores() if device == "cpu" else 1)
    train_rate, evaluation_rate = calibrate(study, shape, classes, device)
    state = 4 * size * (3 if study.optimizer.endswith("adamw") else 2)
    return {
        "study": study.title, "parameters": size, "training_samples": trained, "evaluations": evaluated,
        "flops": forward_flops(model, shape) * (3 * passes * trained + evaluated),
        "disk_bytes": study.shadow_models * samples * (4 * len(study.checkpoints) + 1) + workers * state,
        "device": device, "workers": workers, "train_rate": train_rate, "evaluation_rate": evaluation_rate,
        "seconds": (trained / train_rate + evaluated / evaluation_rate) / workers,
    }  # fmt: skip


def calibrate(study: Study, shape: tuple[int, int, int], classes: int, device: str) -> tuple[float, float]:
    """Training and evaluation samples per second of one process (one thread on a CPU) on random images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pool = random_pool(shape, classes, max(EVALUATION_BATCH, 2 * study.batch_size))
        data, state = DeviceData.of(pool, device), new_state(study, pool, 0, device)
        generator = torch.Generator().manual_seed(0)
        index = torch.arange(study.batch_size, device=device)

        def step() -> None:
            state.model.train()
            float(train_step(study, state, data, index, generator, 0.0))

        images, labels = data.images[:EVALUATION_BATCH], data.labels[:EVALUATION_BATCH]
        trained = study.batch_size * rate(step, 2.0)
        return trained, EVALUATION_BATCH * rate(lambda: evaluate(state, data, images, labels), 1.0)
    finally:
        torch.set_num_threads(threads)


def rate(work: Callable[[], object], seconds: float) -> float:
    """Calls of ``work`` per second, over about ``seconds``, after one to warm up."""
    work()
    start, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or calls < 2:
        work()
        calls += 1
    return calls / spent


def random_pool(shape: tuple[int, int, int], classes: int, samples: int) -> Pool:
    """Random images: what training costs does not depend on what they show."""
    rng = np.random.default_rng(0)
    channels, height, width = shape
    images = rng.integers(0, 256, (samples, height, width, channels), dtype=np.uint8)
    labels = rng.integers(0, classes, samples)
    half, one = np.full(channels, 127.5, np.float32), np.full(channels, 64, np.float32)
    keep = np.ones((1, samples), bool)
    return Pool(images, labels, np.arange(samples), images[:1], labels[:1], keep, half, one, classes)


@dataclass
class SingleImages(Dataset):
    """A data set of single images, as a plain ``DataLoader`` reads it."""

    pool: Pool
    transform: Callable[[np.ndarray], torch.Tensor]

    def __len__(self) -> int:
        return len(self.pool.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pool.images[i]), int(self.pool.labels[i])


def spread(values: list[float], unit: str) -> dict[str, Any]:
    """An entry of a benchmark: median and range of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "unit": unit}


def work(study: Study, samples: int, test: int) -> tuple[int, int]:
    """Samples that one model of ``study`` trains on and is queried on, over all epochs and checkpoints."""
    return (samples // 2) * study.epochs, len(study.checkpoints) * (samples + test)


def measurements(folder: str | os.PathLike[str] = "data") -> dict[str, dict[str, Any]]:
    """The committed benchmarks ``bench-*.json`` of a folder by name: ``entries`` of a CPU, ``measures`` of a GPU."""
    found = {}
    for path in sorted(Path(folder).glob("bench-*.json"), key=lambda path: path.stem):  # bench-cpu before bench-cpu-2
        try:
            found[path.stem] = json.loads(path.read_text())
            texts = [found[path.stem]["hardware"], *map(spread_text, entries(found[path.stem]).values())]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("hardware is no text")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            maker = (
                "python -m dynmia.shadow.gpu_session --part measures" if "gpu" in path.stem else "dynmia bench --out"
            )
            what = f"{type(error).__name__}: {reason(error)}"
            raise StoreError(f"{path} is no benchmark ({what}): make it again by `{maker}`.") from error
    return found


def entries(measured: dict[str, Any]) -> dict[str, Any]:
    """The entries of a benchmark that were measured; on a GPU one may hold the text of an error instead."""
    found = measured.get("entries", measured.get("measures", {}))
    return {name: value for name, value in found.items() if isinstance(value, dict) and "median" in value}


def target(name: str, median: float) -> tuple[str, bool] | None:
    """The target of an entry and whether ``median`` meets it, or None if it has none."""
    if name not in TARGETS:
        return None
    _, sign, value = TARGETS[name]
    return f"{sign} {value:,g}", median >= value if sign == ">=" else median <= value


def targets(measured: dict[str, Any]) -> pd.DataFrame:
    """Every ratio that has a target: measured as median [range], target, met or not."""
    rows = {}
    for name, entry in entries(measured).items():
        if goal := target(name, entry["median"]):
            rows[TARGETS[name][0]] = (spread_text(entry), goal[0], "yes" if goal[1] else "no")
    return pd.DataFrame.from_dict(rows, orient="index", columns=["measured [range]", "target", "met"])


def target_table(files: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """Every target that is measured in a file: what it is, then a column a file; misses are marked."""
    tables = {name: targets(file) for name, file in files.items()}
    goals = pd.concat([table.target for table in tables.values()])
    columns = {name: table.iloc[:, 0] + table.met.map({"yes": "", "no": " – missed"}) for name, table in tables.items()}
    whole = pd.DataFrame({"target": goals[~goals.index.duplicated()]} | columns).fillna("")
    return whole.loc[[label for label, *_ in TARGETS.values() if label in whole.index]]


def rates(measured: dict[str, Any]) -> pd.DataFrame:
    """Every entry that has no target: what the ratios were made of."""
    rows = {name: spread_text(entry) for name, entry in entries(measured).items() if name not in TARGETS}
    return pd.DataFrame({"measured [range]": rows})


def spread_text(entry: dict[str, Any]) -> str:
    """An entry of a benchmark in three digits: ``1.59 [1.46, 1.66] x``."""
    numbers = (entry[part] for part in ("median", "min", "max"))
    median, low, high = (f"{number:.3g}" if number < 1000 else f"{number:,.0f}" for number in numbers)
    return f"{median} [{low}, {high}] {entry['unit']}"


def met(table: pd.DataFrame) -> str:
    """One sentence on a table of :func:`targets`."""
    missed = [f"{name} ({row.iloc[0]}; target {row.target})" for name, row in table.iterrows() if row.met == "no"]
    rest = f"; not met: {', '.join(missed)}" if missed else ""
    return f"{len(table) - len(missed)} of {len(table)} targets are met{rest}."


def batch_sizes(measured: dict[str, Any]) -> pd.DataFrame:
    """Thousand training images a second of a GPU by batch size and engine; the best over eager, and of the ceiling."""
    found, rows = entries(measured), {}
    for batch in (128, 256, 512):
        names = {"eager": f"eager_{batch}", "graph": f"graph_{batch}", "compiled graph": f"compiled_graph_{batch}"}
        names |= {f"{count} in flight": f"compiled_graph_{batch}_{count}_in_flight" for count in (2, 3, 4)}
        here = {name: found[key]["median"] for name, key in names.items() if key in found}
        if {"eager", "copy"} <= {*here, *found}:
            best, low, high = max(here.values()), *(found["copy"]["median"] / traffic for traffic in (21e6, 15e6))
            rows[batch] = {name: f"{rate / 1000:.1f}" for name, rate in here.items()} | {
                "best / eager": f"{best / here['eager']:.1f}",
                "share of the ceiling": f"{best / high:.2f} to {best / low:.2f}",
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, "index").rename_axis("batch size")


def at_512(measured: dict[str, Any]) -> str:
    """The best training rate of a GPU with batches of 512 beside what the targets set the rate with 256 against."""
    found = {name: entry["median"] for name, entry in entries(measured).items()}
    best = max((rate for name, rate in found.items() if "graph_512" in name), default=0.0)
    if not best or not {"copy", "dataloader_loop_256", "eager_512"} <= set(found):
        return "batches of 512: not yet measured."
    return (
        f"batches of 512: {best / (found['copy'] / 15e6):.2f} of the ceiling, "
        f"{best / found['dataloader_loop_256']:.1f} times the `DataLoader` loop (taken with batches of 256; it waits "
        f"for its workers), {best / found['eager_512']:.1f} times the eager loop."
    )


def bandwidth(files: Iterable[dict[str, Any]]) -> str:
    """What the GPU with the most memory bandwidth gains by it over the one with the least; empty for fewer than two."""
    found = [(file["hardware"], entries(file), file["measures"]["best"]) for file in files]
    rows = [(rates["copy"]["median"], rates[best]["median"], name) for name, rates, best in found if "copy" in rates]
    if len({name for _, _, name in rows}) < 2:
        return ""
    (low, slower, slow), (high, faster, fast) = min(rows), max(rows)
    gains = f"{high / low:.2f} times as fast as the {slow} and trains {faster / slower:.2f} times as fast"
    return f"The {fast} copies {gains}."


def agreement(measured: dict[str, Any], study: str, runs: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Accuracies and attack AUC at the end of one study: each GPU engine, and populations that differ by the seed.

    Args:
        measured: what ``python -m dynmia.shadow.gpu_session --part agreement`` wrote.
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
        } | {"auc": float(METRICS["auc"].of(vulnerability_plane(last), None))}  # fmt: skip
    found = {name: one for name, one in measured[f"agreement {study}"].items() if isinstance(one, dict)}
    table = pd.DataFrame(rows | {f"{measured['hardware']}, {name}": one for name, one in found.items()}).T
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


def study_hours(study: Study, measured: dict[str, Any]) -> dict[str, float]:
    """Hours of ``study`` at its data set's full size from committed rates, by where it is trained; empty if the rates
    are not in the file.

    One machine trains as many models at once as it has workers; a Ray cluster is ten such machines; a task of the
    SLURM array trains one model on one core, or on one GPU, all at the same time.
    """
    found, graphs = entries(measured), measured.get("measures", {}).get("best", "")
    names = (graphs, "compiled_evaluation") if "measures" in measured else ("paper_train_rate", "paper_evaluation_rate")
    if not all(name in found for name in names):
        return {}
    _, train, test, _ = SIZES[choose(study.dataset, SIZES, "data set")]
    counts = work(study, study.pool_size or train, test)
    model = sum(count / found[name]["median"] for count, name in zip(counts, names))
    workers = 1 if "measures" in measured else measured["workers"]
    places = {"one machine": workers, "Ray cluster of 10": 10 * workers, "SLURM array": study.shadow_models}
    return {place: math.ceil(study.shadow_models / at_once) * model / 3600 for place, at_once in places.items()}

"""Speed of training and scoring on this machine, as ratios against named baselines.

Also what pages read of these files, of CPUs and GPUs: :func:`measurements`, targets, the time of the paper's study.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
import xarray as xr
from torch.utils.data import DataLoader, Dataset

from dynmia.attack.lira import lira_scores
from dynmia.attack.moderated import moderated_scores
from dynmia.attack.plane import vulnerability_plane
from dynmia.attack.scoring import LIRA
from dynmia.cli import AsJson
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import StoreError, UserError, choose, reason, writable
from dynmia.pool.pool import Pool, draw_keep
from dynmia.registry import DATASETS
from dynmia.shadow.models import build_model, forward_flops
from dynmia.shadow.plan import calibrate, random_pool, rate, work
from dynmia.shadow.shard import Job, keep_freed_memory
from dynmia.shadow.step import DeviceData, learning_rate, new_state, update
from dynmia.shadow.workers import train_pool
from dynmia.stats.resample import bootstrap_weights
from dynmia.store.folder import RunStore, write_atomic
from dynmia.store.run import cores, provenance
from dynmia.study import Study

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
    "moderated / lira_online_mean_pooled": ("moderated LiRA, 41 x 20 x 50,000, against LiRA", "<=", 3.0),
    "moderated_memory": ("moderated LiRA, memory above the input", "<=", 0.5),
    "moderated_per_million_at_1000000 / moderated_per_million_at_10000": (
        "moderated LiRA, cost a sample at 1,000,000 against 10,000", "<=", 1.25
    ),
    "best / ceiling, high": ("training, share of the ceiling (least memory traffic)", ">=", 0.35),
    "best / eager_256": ("training, against our own eager loop", ">=", 2.5),
    "best / dataloader_loop_256": ("training, against a DataLoader loop", ">=", 5.0),
    "sam step / sgd step": ("SAM step, in SGD steps", "<=", 2.05),
    "compiled_evaluation / training": ("evaluation at 41 checkpoints, share of the training time", "<=", 0.08),
}  # fmt: skip
SHAPE, CLASSES, SAMPLES = (3, 32, 32), 10, 2000
STUDY = Study(model="cnn", optimizer="adamw", precision="float32")
PAPER = Study.preset("paper-baseline")
UNITS = {  # of what is not measured in seconds
    "sgemm": "GFLOP/s", "busy_share": "of the cores",
    **dict.fromkeys(("memory", "moderated_memory"), "GB above the input"),
    **dict.fromkeys(("paper_train_rate", "paper_evaluation_rate"), "samples/s of one process"),
    **dict.fromkeys(
        ("pool_of_processes", "sequential_two_threads", "sequential_kept_memory", "dataloader_loop"), "samples/s"
    ),
}  # fmt: skip


def bench(
    seconds: float = 4.0, repeats: int = 3, report: Callable[[str], None] = lambda line: None, command: str = ""
) -> dict[str, Any]:
    """Measure training and scoring: where and by what, and under ``entries`` medians, ranges and ratios.

    Training: samples per second of the 3-layer CNN at 3 x 32 x 32, batch 64, AdamW, float32. Baselines: our own step in
    one process with two threads, with the allocator's usual settings (a tuned sequential loop) and with ours; a plain
    ``DataLoader`` loop (per-sample transform, batch 64) with two threads. ``sgemm`` is the rate of 1024 x 1024 matrix
    products in as many processes; the share of it is counted in FLOPs of the convolutions and the linear layer.
    ``busy_share``: see :func:`busy_share`. ``paper_...``: what :func:`dynmia.shadow.plan.plan` measures for the
    paper's study. Scoring: leave-one-out LiRA for the paper's 41 checkpoints x 20 models x 50,000 samples on one
    core, against a per-sample scipy loop (timed on 100 samples of one checkpoint and scaled) and a NaN-masked
    vectorised loop over targets (timed on one checkpoint and scaled); the plane and ``summarise`` with 1,000 draws of
    the same size; and the seconds a checkpoint and million samples as samples grow, which are constant if the cost is
    linear.
    """
    if not 0 < seconds < math.inf:
        raise UserError(f"seconds is {seconds}: it must be a finite number above 0.")
    if repeats < 1:
        raise UserError(f"repeats is {repeats}: it must be at least 1.")
    count = cores()
    measures: dict[str, tuple[str, int, int]] = {
        "pool_of_processes": ("tuned", 1, count),
        "sequential_two_threads": ("sequential", 2, 1),
        "sequential_kept_memory": ("tuned", 2, 1),
        "dataloader_loop": ("dataloader", 2, 1),
        "sgemm": ("sgemm", 1, count),
    }
    values: defaultdict[str, list[float]] = defaultdict(list)

    def add(name: str, value: float) -> None:
        values[name].append(value)
        report(f"{name}: {value:,.2f} {UNITS.get(name, 's')}")

    for _ in range(repeats):  # interleaved, so that a drifting machine is no difference
        for name, (kind, threads, processes) in measures.items():
            add(name, _processes(kind, threads, processes, seconds))
        add("busy_share", busy_share(10 * seconds * values["pool_of_processes"][-1]))
        for part, value in zip(("train", "evaluation"), calibrate(PAPER, SHAPE, CLASSES, "cpu")):
            add(f"paper_{part}_rate", value)
        for name, value in json.loads(_python("scoring", 1).communicate()[0]).items():
            add(name, value)
    entries = {name: spread(seconds, UNITS.get(name, "s")) for name, seconds in values.items()}

    def ratio(above: str, below: str, name: str = "", factor: float = 1.0, unit: str = "x") -> None:
        pairs = [factor * a / b for a, b in zip(values[above], values[below])]
        entries[name or f"{above} / {below}"] = spread(pairs, unit)

    for name in list(measures)[1:-1]:
        ratio("pool_of_processes", name)
    ratio("pool_of_processes", "sgemm", factor=flops_a_sample() / 1e9, unit="of the sgemm rate")
    ratio("lira_scipy_loop", "lira_online_mean")
    ratio("lira_nan_loop", "lira_online_mean")
    at = "lira_per_million_at_{}".format
    ratio(at(1000000), at(10000), f"{at(1000000)} / at_10000")
    ratio("moderated", "lira_online_mean_pooled")
    ratio("moderated_per_million_at_1000000", "moderated_per_million_at_10000")
    whole = [a + b for a, b in zip(values["plane"], values["summarise_1000_draws"])]
    entries["plane + summarise_1000_draws"] = spread(whole, "s")
    variants = [values[name] for name in values if re.fullmatch(r"lira_.*_(mean|median)(_pooled)?", name)]
    entries["lira_slowest_variant"] = spread([max(times) for times in zip(*variants)], "s")
    about = provenance(command, "cpu", count)
    return about | {"model": STUDY.model, "batch_size": STUDY.batch_size, "repeats": repeats, "entries": entries}


def busy_share(samples: float, models: int | None = None) -> float:
    """CPU time over wall time x cores while a population trains in the pool of processes.

    The population is of the 3-layer CNN on random images, about ``samples`` training samples in all, four models a
    core, with 11 checkpoints. The start of the processes, evaluation, saving and the last model's end are included.
    """
    import resource

    models = models or 4 * cores()
    epochs = 10 * max(1, round(samples / (models * SAMPLES / 2) / 10))
    study = STUDY.replace(epochs=epochs, checkpoint_every=epochs // 10, shadow_models=models, pool_size=SAMPLES)
    pool = replace(random_pool(SHAPE, CLASSES, SAMPLES), keep=draw_keep(models, SAMPLES))
    with tempfile.TemporaryDirectory(prefix="dynmia-") as folder:
        store = RunStore(folder, study, pool.fingerprint, provenance("dynmia make bench-cpu", "cpu", cores()))
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        train_pool(Job(study, pool, store), list(range(models)))
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return used / (wall * cores())


def _processes(kind: str, threads: int, processes: int, seconds: float) -> float:
    """Samples per second of ``processes`` measuring processes that run at the same time, added up."""
    started = [_python(kind, threads, seconds) for _ in range(processes)]
    for process in started:  # all have imported and warmed up before any starts to count
        assert process.stdout is not None
        process.stdout.readline()
    with ThreadPoolExecutor(processes) as pool:
        return sum(pool.map(lambda process: float(process.communicate("go\n")[0]), started))


def _python(kind: str, threads: int, seconds: float = 0) -> subprocess.Popen[str]:
    """Start a measuring process."""
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    code = f"from dynmia.book import maker; maker('bench-cpu').measuring({kind!r}, {threads}, {seconds})"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def flops_a_sample() -> float:
    """FLOPs of one training sample: forward, and twice as much backward but for the images' own gradient."""
    model = build_model("cnn", SHAPE, CLASSES)
    first = forward_flops(model[:1], SHAPE)  # type: ignore[index]
    return 3 * forward_flops(model, SHAPE) - first


def sgemm_step() -> Callable[[], object]:
    """One float32 product of two 1024 x 1024 matrices: 2 x 1024^3 FLOPs."""
    a, b, out = torch.randn(3, 1024, 1024)
    return partial(torch.mm, a, b, out=out)


def own_step(keep_memory: bool) -> Callable[[], object]:
    """One step of dynmia's own loop on random images, with the memory settings of its workers if ``keep_memory``."""
    if keep_memory:
        keep_freed_memory()
    pool = random_pool(SHAPE, CLASSES, SAMPLES)
    data, state = DeviceData.of(pool, "cpu"), new_state(STUDY, pool, 0, "cpu")
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        index = torch.randint(0, SAMPLES, (STUDY.batch_size,), generator=generator)
        update(STUDY, state, data, index, None, learning_rate(STUDY, 0.0))

    state.model.train()
    return step


def dataloader_step() -> Callable[[], object]:
    """One step of the loop that public LiRA code writes: a data set of single images, ToTensor, DataLoader."""
    from torchvision.transforms import v2

    transform = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    images = SingleImages(random_pool(SHAPE, CLASSES, SAMPLES), v2.Compose(transform))
    loader = DataLoader(images, batch_size=STUDY.batch_size, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # one epoch after another
    model = build_model("cnn", SHAPE, CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=STUDY.weight_decay)

    def step() -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def scoring() -> dict[str, float]:
    """Seconds of scoring at the paper's size in this process, and of the baselines for as much."""
    checkpoints, models, samples, few = 41, 20, 50_000, 100
    rng, result = np.random.default_rng(0), {}
    phi, keep = rng.standard_normal((checkpoints, models, samples), np.float32), draw_keep(models, samples)
    phi += np.linspace(0, 2, checkpoints, dtype=np.float32)[:, None, None] * keep

    def timed(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def score(attack: str, centre: str, variance: str) -> None:
        for part in phi:
            lira_scores(part, keep, attack=attack, centre=centre, variance=variance)

    for centre, attack, variance in itertools.product(("mean", "median"), LIRA, ("pooled", "per-sample")):
        name = f"lira_{attack.replace('lira', 'online')}_{centre}" + ("_pooled" if variance == "pooled" else "")
        result[name] = timed(partial(score, attack, centre, variance))
    result["moderated"] = timed(lambda: [moderated_scores(part, keep) for part in phi])
    for name, score_all in (
        ("memory", partial(lira_scores, variance="per-sample")),
        ("moderated_memory", moderated_scores),
    ):
        tracemalloc.start()
        score_all(phi[-1], keep)
        result[name] = tracemalloc.get_traced_memory()[1] / 1e9
        tracemalloc.stop()
    scale = checkpoints * samples / few
    result["lira_scipy_loop"] = scale * timed(lambda: scipy_loop(phi[-1, :, :few], keep[:, :few]))
    result["lira_nan_loop"] = checkpoints * timed(lambda: nan_loop(phi[-1], keep))
    run = xr.Dataset(
        {
            "phi": (("epoch", "model", "sample"), phi), "keep": (("model", "sample"), keep),
            "label": ("sample", np.zeros(samples, np.int64)),
            **{f"{part}_accuracy": (("epoch", "model"), np.ones((checkpoints, models))) for part in ("train", "test")},
        },
        coords={"epoch": 10 * np.arange(checkpoints)},
    )  # fmt: skip
    start = time.perf_counter()
    plane = vulnerability_plane(run)
    result["plane"] = time.perf_counter() - start
    result["summarise_1000_draws"] = timed(lambda: all_metrics(plane, 1000))
    for million in (0.01, 0.1, 1.0):
        count = int(1e6 * million)
        phi, keep = rng.standard_normal((1, models, count), np.float32), draw_keep(models, count)
        for name, of_all in (("lira", partial(lira_scores, variance="pooled")), ("moderated", moderated_scores)):
            seconds = [timed(partial(of_all, phi[0], keep)) for _ in range(3)]
            result[f"{name}_per_million_at_{count}"] = statistics.median(seconds) / million
    return result


def all_metrics(plane: xr.Dataset, draws: int) -> None:
    """Every metric in ``draws`` bootstrap draws over samples, in blocks of 100; k-means in the first two alone."""
    for block in range(0, draws, 100):
        weights = bootstrap_weights(plane, 100, 0, block)
        for name, metric in METRICS.items():
            if name != "silhouette" or block < 200:
                metric.of(plane, weights)


def nan_loop(phi: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Online LiRA, per-sample variance, one target at a time with NaN where a model is of the other class."""
    scores = np.empty(phi.shape)
    for target in range(len(phi)):
        others = (np.arange(len(phi)) != target)[:, None]
        inside, outside = np.where(keep & others, phi, np.nan), np.where(~keep & others, phi, np.nan)
        x = phi[target]
        scores[target] = _log_density(x, np.nanmean(inside, 0), np.nanvar(inside, 0, ddof=1)) - _log_density(
            x, np.nanmean(outside, 0), np.nanvar(outside, 0, ddof=1)
        )
    return scores


def _log_density(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    return -0.5 * (np.log(2 * np.pi * var) + (x - mean) ** 2 / var)


def scipy_loop(phi: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Online LiRA, per-sample variance, one (target, sample) pair at a time, as public code does."""
    from scipy.stats import norm

    scores = np.empty(phi.shape)
    for target, sample in np.ndindex(*phi.shape):
        others = np.arange(len(phi)) != target
        inside, outside = phi[others & keep[:, sample], sample], phi[others & ~keep[:, sample], sample]
        x = phi[target, sample]
        scores[target, sample] = norm.logpdf(x, inside.mean(), inside.std(ddof=1)) - norm.logpdf(
            x, outside.mean(), outside.std(ddof=1)
        )
    return scores


STEPS: dict[str, Callable[[], Callable[[], object]]] = {
    "tuned": partial(own_step, True), "sequential": partial(own_step, False), "dataloader": dataloader_step,
    "sgemm": sgemm_step,
}  # fmt: skip


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


def measuring(kind: str, threads: int, seconds: float) -> None:
    """A measuring process: warm up, say so, wait for the word, and print the samples per second."""
    torch.set_num_threads(threads)
    if kind == "scoring":
        print(json.dumps(scoring()))
        return
    step = STEPS[kind]()
    for _ in range(3):
        step()
    print("ready", flush=True)
    sys.stdin.readline()
    unit = 2 * 1024**3 / 1e9 if kind == "sgemm" else STUDY.batch_size
    print(json.dumps(unit * rate(step, seconds)))


def measurements(folder: str | os.PathLike[str] = "data") -> dict[str, dict[str, Any]]:
    """The committed benchmarks ``bench-*.json`` of a folder by name: ``entries`` of a CPU, ``measures`` of a GPU."""
    chosen = {}
    for path in sorted(Path(folder).glob("bench-*.json"), key=lambda path: path.stem):  # bench-cpu before bench-cpu-2
        try:
            chosen[path.stem] = json.loads(path.read_text())
            texts = [chosen[path.stem]["hardware"], *map(spread_text, entries(chosen[path.stem]).values())]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("hardware is no text")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            script = "bench-gpu" if "gpu" in path.stem else "bench-cpu"
            what, again = f"{type(error).__name__}: {reason(error)}", f"dynmia make {script} --out {path}"
            raise StoreError(f"{path} is no benchmark ({what}): make it again by `{again}`.") from error
    return chosen


def entries(measured: dict[str, Any]) -> dict[str, Any]:
    """The entries of a benchmark that were measured; on a GPU one may hold the text of an error instead."""
    timed = measured.get("entries", measured.get("measures", {}))
    return {name: value for name, value in timed.items() if isinstance(value, dict) and "median" in value}


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


def study_hours(study: Study, measured: dict[str, Any]) -> dict[str, float]:
    """Hours of ``study`` at its data set's full size from committed rates, by where it is trained; empty if the rates
    are not in the file.

    One machine trains as many models at once as it has workers; a Ray cluster is ten such machines; a task of the
    SLURM array trains one model on one core, or on one GPU, all at the same time.
    """
    timed, graphs = entries(measured), measured.get("measures", {}).get("best", "")
    names = (graphs, "compiled_evaluation") if "measures" in measured else ("paper_train_rate", "paper_evaluation_rate")
    if not all(name in timed for name in names):
        return {}
    known = DATASETS[choose(study.dataset, DATASETS, "data set")]
    counts = work(study, study.pool_size or known.train, known.test)
    model = sum(count / timed[name]["median"] for count, name in zip(counts, names))
    workers = 1 if "measures" in measured else measured["workers"]
    places = {"one machine": workers, "Ray cluster of 10": 10 * workers, "SLURM array": study.shadow_models}
    return {place: math.ceil(study.shadow_models / at_once) * model / 3600 for place, at_once in places.items()}


def main(
    seconds: Annotated[float, typer.Option(help="length of one measurement")] = 4.0,
    repeats: Annotated[int, typer.Option(help="measurements of each")] = 3,
    out: Annotated[str | None, typer.Option(help="also write the JSON to this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure training and scoring on this machine, as ratios against named baselines, beside their targets."""
    file = out and writable(out, ".json")
    show = (lambda line: None) if as_json else (lambda line: typer.echo(line, err=True))
    result = bench(seconds, repeats, show, f"dynmia make bench-cpu --seconds {seconds:g} --repeats {repeats}")
    text = json.dumps(result, indent=1)
    if file:
        write_atomic(file, text.encode())
    if as_json:
        typer.echo(text)
        return
    typer.echo(f"{result['hardware']}, {result['created']}")
    for name, entry in entries(result).items():
        goal = target(name, entry["median"])
        verdict = f"  target {goal[0]}: {'met' if goal[1] else 'NOT met'}" if goal else ""
        typer.echo(f"{name:45} {spread_text(entry)}{verdict}")

"""Measured speed, as ratios against named baselines on the machine at hand.

python -m dynmia.bench RATE THREADS SECONDS     # one measuring process, used by `dynmia bench`
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .runs import cores, hardware
from .study import Study

SHAPE, CLASSES, SAMPLES = (3, 32, 32), 10, 2000
STUDY = Study(model="cnn", optimizer="adamw", precision="float32")
UNITS = {"sgemm": "GFLOP/s"}


def bench(seconds: float = 4.0, repeats: int = 3, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure training and scoring and return medians, ranges and ratios.

    Training: samples per second of the 3-layer CNN at 3 x 32 x 32, batch 64, AdamW, float32. Baselines: our own step in
    one process with two threads, with the allocator's usual settings (a tuned sequential loop) and with ours; a plain
    ``DataLoader`` loop (per-sample transform, batch 64) with two threads. ``sgemm`` is the rate of 1024 x 1024 matrix
    products in as many processes; the share of it is counted in FLOPs of the convolutions and the linear layer.
    Scoring: leave-one-out LiRA for the paper's 41 checkpoints x 20 models x 50,000 samples on one core, against a
    per-sample scipy loop (timed on 100 samples of one checkpoint and scaled) and a NaN-masked vectorised loop over
    targets (timed on one checkpoint and scaled); the plane and ``summarise`` with 1,000 draws of the same size; and the
    seconds a checkpoint and million samples as samples grow, which are constant if the cost is linear.
    """
    count = cores()
    result: dict[str, Any] = {"hardware": hardware("cpu"), "model": "cnn", "batch_size": STUDY.batch_size}
    measures: dict[str, tuple[str, int, int]] = {
        "pool_of_processes": ("tuned", 1, count),
        "sequential_two_threads": ("sequential", 2, 1),
        "sequential_kept_memory": ("tuned", 2, 1),
        "dataloader_loop": ("dataloader", 2, 1),
        "sgemm": ("sgemm", 1, count),
    }
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):  # interleaved, so that a drifting machine is no difference
        for name, (kind, threads, processes) in measures.items():
            rates[name].append(_processes(kind, threads, processes, seconds))
            report(f"{name}: {rates[name][-1]:,.0f} {UNITS.get(name, 'samples/s')}")
    result |= {name: spread(values, UNITS.get(name, "samples/s")) for name, values in rates.items()}
    for name in ("sequential_two_threads", "sequential_kept_memory", "dataloader_loop"):
        pairs = [a / b for a, b in zip(rates["pool_of_processes"], rates[name])]
        result[f"pool_of_processes / {name}"] = spread(pairs, "x")
    work = flops_a_sample() / 1e9
    share = [work * a / b for a, b in zip(rates["pool_of_processes"], rates["sgemm"])]
    result["pool_of_processes / sgemm"] = spread(share, "of the sgemm rate")
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        scored = json.loads(_python("scoring", 1).communicate()[0])
        for name, value in scored.items():
            times.setdefault(name, []).append(value)
            report(f"{name}: {value:,.2f} {_unit(name)}")
    for name, values in times.items():
        result[name] = spread(values, _unit(name))
    for name in ("lira_scipy_loop", "lira_nan_loop"):
        result[f"{name} / lira_online_mean"] = spread(
            [b / a for a, b in zip(times["lira_online_mean"], times[name])], "x"
        )
    return result


def _unit(name: str) -> str:
    return {"memory": "GB above the input"}.get(name.split("_")[0], "s")


def spread(values: list[float], unit: str) -> dict[str, Any]:
    """An entry of a benchmark: median and range of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "unit": unit}


def _processes(kind: str, threads: int, processes: int, seconds: float) -> float:
    """Samples per second of ``processes`` measuring processes that run at the same time, added up."""
    started = [_python(kind, threads, seconds) for _ in range(processes)]
    for process in started:  # all have imported and warmed up before any starts to count
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(json.loads(process.communicate()[0])) for process in started)


def _python(kind: str, threads: int, seconds: float = 0) -> subprocess.Popen[str]:
    """Start a measuring process."""
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-m", "dynmia.bench", kind, str(threads), str(seconds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def flops_a_sample() -> float:
    """FLOPs of one training sample: forward, and twice as much backward but for the images' own gradient."""
    from .models import build_model, forward_flops

    model = build_model("cnn", SHAPE, CLASSES)
    first = forward_flops(model[:1], SHAPE)  # type: ignore[index]
    return 3 * forward_flops(model, SHAPE) - first


def sgemm_step() -> Callable[[], None]:
    """One float32 product of two 1024 x 1024 matrices: 2 x 1024^3 FLOPs."""
    import torch

    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    out = torch.empty(1024, 1024)
    return lambda: (torch.mm(a, b, out=out), None)[1]


def tuned_step() -> Callable[[], None]:
    """One step of dynmia's worker processes, which keep the memory that they free."""
    from .training import keep_freed_memory

    keep_freed_memory()
    return sequential_step()


def sequential_step() -> Callable[[], None]:
    """One step of dynmia's own loop on random images."""
    import torch

    from .cost import random_pool
    from .step import DeviceData, new_state, train_step

    pool = random_pool(SHAPE, CLASSES, SAMPLES)
    data, state = DeviceData.of(pool, "cpu"), new_state(STUDY, pool, 0, "cpu")
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        index = torch.randint(0, SAMPLES, (STUDY.batch_size,), generator=generator)
        train_step(STUDY, state, data, index, generator, 0.0)

    state.model.train()
    return step


def dataloader_step() -> Callable[[], None]:
    """One step of the loop that public LiRA code writes: a data set of single images, ToTensor, DataLoader."""
    import torch
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2

    from .cost import random_pool
    from .models import build_model

    pool = random_pool(SHAPE, CLASSES, SAMPLES)
    transform = v2.Compose([
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)
    ])  # fmt: skip

    class Images(Dataset):
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, i: int):  # type: ignore[no-untyped-def]
            return transform(pool.images[i]), int(pool.labels[i])

    loader = DataLoader(Images(), batch_size=STUDY.batch_size, shuffle=True, drop_last=True)
    model = build_model("cnn", SHAPE, CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=STUDY.weight_decay)
    batches = iter(loader)

    def step() -> None:
        nonlocal batches
        try:
            images, labels = next(batches)
        except StopIteration:
            batches = iter(loader)
            images, labels = next(batches)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def scoring() -> dict[str, float]:
    """Seconds of scoring at the paper's size in this process, and of the baselines for as much."""
    import tracemalloc

    import xarray as xr

    from .lira import ATTACKS, lira_scores
    from .plane import vulnerability_plane
    from .pool import draw_keep
    from .summary import summarise

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

    for centre in ("mean", "median"):
        for attack in ATTACKS:
            for variance in ("pooled", "per-sample"):
                name = f"lira_{attack}_{centre}" + ("_pooled" if variance == "pooled" else "")
                result[name] = timed(lambda a=attack, c=centre, v=variance: score(a, c, v))  # type: ignore[misc]
    tracemalloc.start()
    lira_scores(phi[-1], keep, variance="per-sample")
    result["memory"] = tracemalloc.get_traced_memory()[1] / 1e9
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
    result["summarise_1000_draws"] = timed(lambda: summarise(plane, draws=1000))
    for million in (0.01, 0.1, 1.0):
        count = int(1e6 * million)
        phi, keep = rng.standard_normal((1, models, count), np.float32), draw_keep(models, count)
        seconds = [timed(lambda: score("online", "mean", "pooled")) for _ in range(3)]
        result[f"lira_per_million_at_{count}"] = statistics.median(seconds) / million
    return result


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


def main(kind: str, threads: str, seconds: str) -> None:
    """Warm up, say so, wait for the word, and print the samples per second."""
    import torch

    from .cost import rate

    torch.set_num_threads(int(threads))
    if kind == "scoring":
        print(json.dumps(scoring()))
        return
    steps = {
        "tuned": tuned_step, "sequential": sequential_step, "dataloader": dataloader_step, "sgemm": sgemm_step
    }  # fmt: skip
    step = steps[kind]()
    for _ in range(3):
        step()
    print("ready", flush=True)
    sys.stdin.readline()
    unit = 2 * 1024**3 / 1e9 if kind == "sgemm" else STUDY.batch_size
    print(json.dumps(unit * rate(step, float(seconds))))


if __name__ == "__main__":
    main(*sys.argv[1:])

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
    Scoring: leave-one-out LiRA for 21 checkpoints x 20 models x 4,000 samples against a per-sample scipy loop, which is
    timed on 100 samples of one checkpoint and scaled.
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
    result |= {name: _spread(values, UNITS.get(name, "samples/s")) for name, values in rates.items()}
    for name in ("sequential_two_threads", "sequential_kept_memory", "dataloader_loop"):
        pairs = [a / b for a, b in zip(rates["pool_of_processes"], rates[name])]
        result[f"pool_of_processes / {name}"] = _spread(pairs, "x")
    work = flops_a_sample() / 1e9
    share = [work * a / b for a, b in zip(rates["pool_of_processes"], rates["sgemm"])]
    result["pool_of_processes / sgemm"] = _spread(share, "of the sgemm rate")
    ours, theirs = [], []
    for _ in range(repeats):
        a, b = lira_times()
        ours.append(a)
        theirs.append(b)
    result["lira_21x20x4000"] = _spread(ours, "s")
    result["lira_scipy_loop"] = _spread(theirs, "s (scaled from 100 samples of one checkpoint)")
    result["lira_scipy_loop / lira_21x20x4000"] = _spread([b / a for a, b in zip(ours, theirs)], "x")
    return result


def _spread(values: list[float], unit: str) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "unit": unit}


def _processes(kind: str, threads: int, processes: int, seconds: float) -> float:
    """Samples per second of ``processes`` measuring processes that run at the same time, added up."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "dynmia.bench", kind, str(threads), str(seconds)]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) for _ in range(processes)]
    for process in started:  # all have imported and warmed up before any starts to count
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(json.loads(process.communicate()[0])) for process in started)


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
    from .training import DeviceData, new_state, train_step

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


def lira_times() -> tuple[float, float]:
    """Seconds of our scoring of 21 x 20 x 4,000, and of the per-sample scipy loop for as much."""
    from .lira import lira_scores
    from .pool import draw_keep

    checkpoints, models, samples, few = 21, 20, 4000, 100
    phi, keep = np.random.default_rng(0).normal(size=(checkpoints, models, samples)), draw_keep(models, samples)
    start = time.perf_counter()
    for t in range(checkpoints):
        lira_scores(phi[t], keep, variance="per-sample")
    ours = time.perf_counter() - start
    start = time.perf_counter()
    naive = scipy_loop(phi[0, :, :few], keep[:, :few])
    theirs = (time.perf_counter() - start) * checkpoints * samples / few
    np.testing.assert_allclose(naive, lira_scores(phi[0, :, :few], keep[:, :few], variance="per-sample"), rtol=1e-8)
    return ours, theirs


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

"""What a study costs before it starts: samples, FLOPs, disk, and the time on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..pool.datasets import load_dataset
from ..pool.pool import Pool, check_sizes
from ..registry import named_set
from ..store.run import cores
from ..study import Study
from .models import build_model, forward_flops, parameters
from .run import Folder, check_workers, pick_device
from .step import EVALUATION_BATCH, DeviceData, evaluate, new_state, train_step


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
    study = study.resolve(device := pick_device(device))
    if (known := named_set(study.dataset)) and not (data_dir or os.environ.get("DYNMIA_DATA")):
        shape, train, test, classes = known.shape, known.train, known.test, known.classes
    else:
        data = load_dataset(study.dataset, data_dir)
        _, height, width, channels = data.train_images.shape
        shape, classes = (channels, height, width), data.classes
        train, test = len(data.train_labels), len(data.test_labels)
    check_sizes(study, train, test)
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


def work(study: Study, samples: int, test: int) -> tuple[int, int]:
    """Samples that one model of ``study`` trains on and is queried on, over all epochs and checkpoints."""
    return (samples // 2) * study.epochs, len(study.checkpoints) * (samples + test)


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

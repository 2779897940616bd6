"""What is asked of a study before it starts: what it costs on this machine, and whether its model can be trained."""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import UserError
from ..pool.datasets import load_dataset
from ..pool.pool import Pool, check_sizes
from ..registry import named_set
from ..store.folder import digest
from ..store.run import cores
from ..study import Study
from .models import blamed, build_model, check_logits, forward_flops, parameters
from .run import Folder, check_workers, pick_device
from .shard import hardness_signals, train_epoch
from .step import EVALUATION_BATCH, DeviceData, TrainState, evaluate, flatten, new_state, unflatten


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
        batch = torch.arange(study.batch_size)
        images, labels = data.images[:EVALUATION_BATCH], data.labels[:EVALUATION_BATCH]
        with torch.random.fork_rng(devices=[]):
            steps = rate(lambda: train_epoch(study, state, data, batch, 0, 0), 2.0)  # a second
        return len(batch) * steps, EVALUATION_BATCH * rate(lambda: evaluate(state, data, images, labels), 1.0)
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


def check_model(study: Study, pool: Pool, device: str) -> None:
    """Build the model of ``study``; train, query, save and load it once if it is a user's own.

    A built-in model is tried only on batches of one sample, which batch norm may not take. Warns of what may be meant.

    Raises:
        UserError: the model cannot do this, trains another shadow model too, or returns probabilities.
    """
    name = study.model
    with torch.random.fork_rng(devices=[]):
        module = build_model(name, pool.shape, pool.classes)
    smallest = pool.keep[pool.keep.sum(1).argmin()]
    index = torch.as_tensor(np.flatnonzero(smallest)[: study.batch_size])
    if ":" not in name and len(index) > 1:
        return
    if not parameters(module):
        raise UserError(f"model {name!r} has no parameters to train: return one with requires_grad.")
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"model {name!r} keeps {key!r}, a {type(value).__name__}, in its state_dict: only tensors can be "
                "saved; leave get_extra_state out."
            )
    data, queried = DeviceData.of(pool, device), list[Tensor]()

    def new(model: int) -> TrainState:
        with blamed(name, "be made ready for training"):
            return new_state(study, pool, model, device)

    def saved(state: TrainState) -> str:
        with blamed(name, "be saved"):
            return digest(flatten(state), {})

    def check(module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        when = " in training" if module.training else ""
        check_logits(name, output, len(inputs[0]), pool.shape, pool.classes, when)
        queried.extend([] if module.training else [output.detach().float()])

    def mind(what: str) -> None:
        warnings.warn(f"model {name!r} {what}", stacklevel=4)

    with torch.random.fork_rng(devices=[]):
        starts = [saved(new(model)) for model in (0, 1)]
        state = new(0)
        handle = state.model.register_forward_hook(check)
        with blamed(name, f"be trained on a batch of {len(index)} by {study.optimizer} in {study.precision}"):
            train_epoch(study, state, data, index, 0, 0)
        other = new(1)
        start = saved(other)
        if start != starts[1] and _memory(state.model) & _memory(other.model):
            raise UserError(
                f"model {name!r} is one and the same for all shadow models, so that each would train on the last: "
                "make a new module, and new parameters, at every call of the factory."
            )
        if start != starts[1]:
            mind("starts otherwise at every call: draw its weights by torch alone, or no run repeats.")
        elif starts[0] == starts[1]:
            mind("starts from the same weights in all shadow models: unless that is meant, leave torch.manual_seed and "
                 "fixed weights out of the factory.")  # fmt: skip
        with blamed(name, "be queried"):
            phi = _last_batches(state, data)
            handle.remove()
            if study.record == "hardness":
                few = dict(images=data.images[:2], labels=data.labels[:2], test_images=data.test_images[:2])
                list(hardness_signals(state.model, dataclasses.replace(data, **few), 0, True))
        if what := _probabilities(state.model, data, torch.cat(queried)):
            raise UserError(f"model {name!r} returns probabilities ({what}): phi wants logits, leave that layer out.")
        loaded = new(0)
        with blamed(name, "be saved and loaded"):
            unflatten(loaded, safetensors.numpy.load(safetensors.numpy.save(flatten(state))))
            same = np.allclose(_last_batches(loaded, data), phi, rtol=1e-3, atol=1e-3, equal_nan=True)
        if saved(loaded) != saved(state) or not same:
            mind("answers otherwise after it is saved and loaded, so an interrupted run would not go on as it was: "
                 "keep what changes in training in parameters and persistent buffers.")  # fmt: skip


def _last_batches(state: TrainState, data: DeviceData) -> np.ndarray:
    """phi of the last batch of each half, which may hold a single sample."""
    torch.manual_seed(0)  # of a model that draws in evaluation too
    halves = (data.images, data.labels), (data.test_images, data.test_labels)
    first = [(len(labels) - 1) // EVALUATION_BATCH * EVALUATION_BATCH for _, labels in halves]
    return np.concatenate([evaluate(state, data, x[k:], y[k:])[0] for k, (x, y) in zip(first, halves)])


def _memory(model: nn.Module) -> set[int]:
    """Where the parameters and buffers of ``model`` lie."""
    return {value.untyped_storage().data_ptr() for value in model.state_dict().values() if value.numel()}


@torch.no_grad()
def _probabilities(model: nn.Module, data: DeviceData, logits: Tensor) -> str:
    """How ``logits`` (n, K) give themselves away as probabilities, or ''."""
    if not ((logits >= 0) & (logits <= 1)).all():
        return ""
    if torch.allclose(logits.sum(1), torch.ones(len(logits), device=logits.device), atol=1e-3):
        return "they add up to 1, as after Softmax"
    large = {name: 1000 * value for name, value in model.named_parameters()}
    output = functional_call(model.eval(), large, (data.normalise(data.images[:100]),))
    bounded = ((output >= 0) & (output <= 1)).all() and output.any()
    return "all lie between 0 and 1 whatever the weights, as after Sigmoid" if bounded else ""

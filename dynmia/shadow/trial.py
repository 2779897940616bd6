"""The trial of a model before its run is made: a training step, a checkpoint and a saved state, as in the run."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import UserError
from ..pool.pool import Pool
from ..store.folder import digest
from ..study import Study
from .models import blamed, build_model, check_logits, parameters
from .shard import hardness_signals
from .step import EVALUATION_BATCH, DeviceData, TrainState, evaluate, flatten, new_state, train_step, unflatten


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

    def new(model: int) -> tuple[TrainState, str]:
        with blamed(name, "be made ready for training"):
            state = new_state(study, pool, model, device)
        return state, saved(state)

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
        starts = [new(model)[1] for model in (0, 1)]
        state, _ = new(0)
        handle = state.model.register_forward_hook(check)
        with blamed(name, f"be trained on a batch of {len(index)} by {study.optimizer} in {study.precision}"):
            state.model.train()
            train_step(study, state, data, index.to(device), torch.Generator().manual_seed(0), 0.0)
        other, start = new(1)
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
        loaded, _ = new(0)
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

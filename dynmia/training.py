"""Train one shadow model, resumable after any epoch: one pure step, one epoch, one shard.

Weights, data order and augmentation derive from (seed, model, epoch), never from what ran before, so a model that is
interrupted and resumed equals the uninterrupted one bit for bit on the same machine. (A user's model with dropout keeps
to this too: torch's own generator is seeded at the start of every epoch.)
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import Diverged
from .models import build_model
from .optim import frozen_statistics, learning_rate, make_optimizer, sam_ascend, sam_return
from .pool import Pool
from .record import hardness_signals
from .signals import logit_scaled_confidence
from .store import RunStore
from .study import Study

EVALUATION_BATCH = 500
SAVING = 0.02  # the largest share of the time that goes into saving states
MARGIN = 2.0  # epochs of the longest kind that must fit before a deadline: one, its evaluation and a slow moment
SELDOM = 4  # gradients and dropout passes are recorded at every fourth checkpoint and the last: they are dear
WEIGHTS, ORDER, LAYERS, DROPOUT = 10, 11, 12, 13  # streams of random numbers; 1, 2 belong to pool and keep mask


@dataclass
class TrainState:
    """Everything that a step changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class DeviceData:
    """The pool on the training device: uint8 images (n, H, W, C), labels (n,), and the normalisation."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor  # (C,)
    scale: Tensor  # (C,), 1 / std

    @classmethod
    def of(cls, pool: Pool, device: str) -> DeviceData:
        """Copy ``pool`` to ``device``; on a CPU nothing is copied, so that processes share one memory map."""

        def put(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array).to(device)

        return cls(
            put(pool.images),
            put(pool.labels),
            put(pool.test_images),
            put(pool.test_labels),
            put(pool.mean),
            put(1 / pool.std),
        )

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> float32 (B, C, H, W), which is channels-last in memory without a copy."""
        return ((images.float() - self.mean) * self.scale).permute(0, 3, 1, 2)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks: activations of some MB a layer would go back to the system after every step.

    Fetching and zeroing those pages anew took a fifth of a step of the 3-layer CNN. Without glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-2, 2**28)  # M_TOP_PAD


def seed_of(seed: int, *path: int) -> int:
    """A 63-bit seed for a named stream, statistically independent of all others (numpy's SeedSequence)."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop after zero padding (4 pixels at 32 x 32) and random horizontal flip of a batch (B, H, W, C)."""
    batch, height, width, _ = images.shape
    pad = max(1, height // 8)
    draws = torch.stack([
        torch.randint(0, 2 * pad + 1, (batch,), generator=generator),
        torch.randint(0, 2 * pad + 1, (batch,), generator=generator),
        torch.randint(0, 2, (batch,), generator=generator),
    ]).to(images.device)  # fmt: skip
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    rows = draws[0][:, None] + torch.arange(height, device=images.device)  # (B, H)
    columns = torch.arange(width, device=images.device)
    columns = draws[1][:, None] + torch.where(draws[2][:, None] == 1, columns.flip(0), columns)  # (B, W)
    return padded[torch.arange(batch, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def train_step(
    study: Study, state: TrainState, data: DeviceData, index: Tensor, generator: torch.Generator, progress: float
) -> Tensor:
    """One optimiser step on the pool samples ``index`` (B,); returns the mean loss before it, on the device.

    The step is a function of its arguments alone: no clock, no global generator, no host round trip.
    """
    images = data.images[index]
    if study.augment:
        images = crop_and_flip(images, generator)
    inputs, labels = data.normalise(images), data.labels[index]
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(study, progress)

    def backward() -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=study.precision == "bf16"):
            logits = state.model(inputs)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        return loss.detach()

    state.optimizer.zero_grad(set_to_none=True)
    loss = backward()
    if study.optimizer.startswith("sam") and study.rho > 0:
        before = sam_ascend(state.model, study.rho)
        with frozen_statistics(state.model):
            backward()
        sam_return(before)
    state.optimizer.step()
    return loss


def train_epoch(study: Study, state: TrainState, data: DeviceData, members: Tensor, model: int, epoch: int) -> float:
    """Train epoch ``epoch`` (from 0) of shadow model ``model`` on its ``members``; returns the mean loss.

    The order is new each epoch; the ragged last batch is left out, so every step has the same shape.
    """
    generator = torch.Generator().manual_seed(seed_of(study.seed, ORDER, model, epoch))
    torch.manual_seed(seed_of(study.seed, LAYERS, model, epoch))
    batch = min(study.batch_size, len(members))
    steps = len(members) // batch
    order = members[torch.randperm(len(members), generator=generator).to(members.device)]
    state.model.train()
    total = torch.zeros((), device=members.device)
    for step in range(steps):
        progress = (epoch + step / steps) / study.epochs
        total += train_step(study, state, data, order[step * batch : (step + 1) * batch], generator, progress)
    return float(total) / steps


@torch.no_grad()
def evaluate(state: TrainState, data: DeviceData, images: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Query in evaluation mode and float32; returns phi float64 (n,) and whether the top class is right, bool (n,)."""
    state.model.eval()
    phi, right = [], []
    for part in range(0, len(images), EVALUATION_BATCH):
        target = labels[part : part + EVALUATION_BATCH]
        logits = state.model(data.normalise(images[part : part + EVALUATION_BATCH]))
        phi.append(logit_scaled_confidence(logits, target))
        right.append(logits.argmax(1) == target)
    return torch.cat(phi).cpu().numpy(), torch.cat(right).cpu().numpy()


def new_state(study: Study, pool: Pool, model: int, device: str) -> TrainState:
    """Shadow model ``model`` before its first step, channels-last, on ``device``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(study.seed, WEIGHTS, model))
        module = build_model(study.model, pool.shape, pool.classes)
    module = module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainState(module, make_optimizer(study, module))


def train_shard(
    study: Study,
    pool: Pool,
    data: DeviceData,
    model: int,
    store: RunStore,
    report: Callable[[dict], None] = lambda event: None,
    deadline: float = math.inf,
) -> bool:
    """Train shadow model ``model`` from its saved state (or from scratch) to the end and write its shard.

    Idempotent: a finished shard is left as it is. The whole state is saved after an epoch, unless saving would take
    more than 2 % of the time since the last: an interruption loses one epoch, or 50 times as long as a save takes if
    epochs are shorter. ``report`` gets a mapping with model, epoch, loss and accuracies after every epoch.

    Args:
        deadline: in seconds since 1970; training stops, its state saved, before an epoch that would end later.

    Returns:
        Whether the shard is finished.

    Raises:
        Diverged: the loss is NaN or infinite; nothing of other shards is touched.
        UserError: the disk is full or cannot be written, or another process trains this model.
    """
    if store.finished(model):
        return True
    with store.locked(model):
        return store.finished(model) or _train_shard(study, pool, data, model, store, report, deadline)


def _train_shard(
    study: Study,
    pool: Pool,
    data: DeviceData,
    model: int,
    store: RunStore,
    report: Callable[[dict], None],
    deadline: float,
) -> bool:
    started = time.perf_counter()
    device = str(data.images.device)
    state = new_state(study, pool, model, device)
    keep = pool.keep[model]
    members = torch.as_tensor(np.flatnonzero(keep)).to(device)
    record: dict[str, np.ndarray] = {}

    def append(name: str, value: np.ndarray | float) -> None:
        new = np.asarray(value)[None]
        record[name] = np.concatenate([record[name], new]) if name in record else new

    first, spent = 0, 0.0
    if saved := store.load_state(model):
        arrays, meta = saved
        first, spent = int(meta["epoch"]), float(meta["seconds"])
        record |= {name: array for name, array in arrays.items() if not name.startswith(("model.", "optimizer."))}
        unflatten(state, arrays)
    longest = cost = saved_at = 0.0
    for epoch in range(first, study.epochs + 1):  # `epoch` epochs have been trained at the top of the loop
        began = time.perf_counter()
        if epoch > first or not saved:
            if epoch % study.checkpoint_every == 0:
                phi, right = evaluate(state, data, data.images, data.labels)
                _must_be_finite(phi, study, model, epoch)
                _, test_right = evaluate(state, data, data.test_images, data.test_labels)
                append("phi", phi.astype(np.float32))
                append("train_accuracy", right[keep].mean())
                append("test_accuracy", test_right.mean())
                if study.record == "hardness":
                    seed = seed_of(study.seed, DROPOUT, model, epoch)
                    dear = epoch // study.checkpoint_every % SELDOM == 0 or epoch == study.epochs
                    for name, value in hardness_signals(
                        state.model, data.normalise, data.images, data.labels, seed, dear
                    ):
                        append(name, value)
            seconds = spent + time.perf_counter() - started
            if epoch == study.epochs:
                break
            stop = time.time() + MARGIN * longest > deadline
            if stop or began - saved_at > cost / SAVING:
                saving = time.perf_counter()
                store.save_state(model, record | flatten(state), dict(epoch=epoch, seconds=seconds))
                saved_at = time.perf_counter()
                cost = saved_at - saving
            report(
                dict(model=model, epoch=epoch) | {k: float(v[-1]) for k, v in record.items() if v.ndim == 1 and len(v)}
            )
            if stop:
                return False
        elif time.time() > deadline:
            return False
        loss = train_epoch(study, state, data, members, model, epoch)
        _must_be_finite(loss, study, model, epoch + 1)
        append("loss", loss)
        longest = max(longest, time.perf_counter() - began)
    store.save_shard(model, record | {"keep": keep}, dict(seconds=seconds))
    report(
        dict(model=model, epoch=study.epochs, done=True) | {k: float(v[-1]) for k, v in record.items() if v.ndim == 1}
    )
    return True


def _must_be_finite(values: float | np.ndarray, study: Study, model: int, epoch: int) -> None:
    if not np.isfinite(values).all():
        raise Diverged(
            f"model {model} diverged in epoch {epoch} ({study.optimizer}, lr {study.lr}, momentum {study.momentum}, "
            f"batch size {study.batch_size}): lower lr; finished shards are kept."
        )


def flatten(state: TrainState) -> dict[str, np.ndarray]:
    """The model's and the optimiser's tensors as named arrays."""
    arrays = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    for number, values in state.optimizer.state_dict()["state"].items():
        arrays |= {f"optimizer.{number}.{name}": value for name, value in values.items() if value is not None}
    return {name: value.detach().cpu().contiguous().numpy() for name, value in arrays.items()}


def unflatten(state: TrainState, arrays: dict[str, np.ndarray]) -> None:
    """Load what :func:`flatten` returned, in place."""
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    state.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    for number, parameter in enumerate(state.optimizer.param_groups[0]["params"]):
        prefix = f"optimizer.{number}."
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                # like the parameter in device and memory format, or fused kernels would fall back to slow copies
                value = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
                state.optimizer.state[parameter][name.removeprefix(prefix)] = value.to(parameter.device)

"""One training step of a shadow model: what it reads and changes, its optimisers, the signal that is recorded."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pool.datasets import Texts
from ..pool.pool import Pool
from ..study import Study
from .models import build_model, memory_layout

EVALUATION_BATCH = 500
WEIGHTS, ORDER, LAYERS, DROPOUT = 10, 11, 12, 13  # streams of random numbers; 1, 2 belong to pool and keep mask


@dataclass
class TrainState:
    """Everything that a step changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    kept: list[Tensor] | None = None  # where SAM keeps the weights during its ascent; None makes room at every step


@dataclass(frozen=True)
class DeviceData:
    """The pool on the training device: images (n, H, W, C), labels (n,), and the normalisation.

    On a CPU texts stay :class:`dynmia.pool.datasets.Texts`, which a step or a query makes dense batch by batch.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor  # (C,)
    scale: Tensor  # (C,), 1 / std

    @classmethod
    def of(cls, pool: Pool, device: str) -> DeviceData:
        """Copy ``pool`` to ``device``; on a CPU nothing is copied, so that processes share one memory map."""

        def put(array: np.ndarray | Texts) -> Any:
            if isinstance(array, Texts) and device == "cpu":
                return array
            return torch.as_tensor(array[:]).to(device)

        arrays = pool.images, pool.labels, pool.test_images, pool.test_labels, pool.mean, 1 / pool.std
        return cls(*map(put, arrays))

    def normalise(self, images: Tensor | np.ndarray) -> Tensor:
        """(B, H, W, C) -> float32 (B, C, H, W), which is channels-last in memory without a copy."""
        return ((torch.as_tensor(images).float() - self.mean) * self.scale).permute(0, 3, 1, 2)


@contextlib.contextmanager
def arithmetic(mode: str) -> Iterator[None]:
    """Set torch to ``fast`` (autotuned kernels) or ``deterministic`` (repeats and resumes to the bit), then back."""
    exact, cudnn = mode == "deterministic", torch.backends.cudnn
    filled: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    fill = filled.fill_uninitialized_memory
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by torch at its first matrix product
    try:
        torch.use_deterministic_algorithms(exact)
        cudnn.deterministic, cudnn.benchmark = exact, not exact
        filled.fill_uninitialized_memory = False  # a debugging aid, which would cost time
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
        filled.fill_uninitialized_memory = fill


def seed_of(seed: int, *path: int) -> int:
    """A 63-bit seed for a named stream, statistically independent of all others (numpy's SeedSequence)."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


def draw_crops(images: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Draw top, left and flip, int64 (3, B), for a batch of ``images`` (n, H, W, C); on the CPU."""
    pad = max(1, images.shape[1] // 8)
    ends = 2 * pad + 1, 2 * pad + 1, 2
    return torch.stack([torch.randint(0, end, (batch,), generator=generator) for end in ends])


def crop(images: Tensor, draws: Tensor) -> Tensor:
    """Crop and flip (B, H, W, C), zero-padded by H / 8 pixels (4 at 32 x 32), as ``draws`` (3, B) say."""
    batch, height, width, _ = images.shape
    pad = max(1, height // 8)
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    rows = draws[0][:, None] + torch.arange(height, device=images.device)  # (B, H)
    columns = torch.arange(width, device=images.device)
    columns = draws[1][:, None] + torch.where(draws[2][:, None] == 1, columns.flip(0), columns)  # (B, W)
    return padded[torch.arange(batch, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def make_optimizer(study: Study, model: nn.Module) -> torch.optim.Optimizer:
    """Return the (base) optimiser of ``study`` over all parameters of ``model``."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert study.lr is not None
    options: dict[str, Any] = dict(lr=study.lr, weight_decay=study.weight_decay, fused=True)
    if study.optimizer.endswith("adamw"):
        capturable = any(p.is_cuda for p in parameters)
        return torch.optim.AdamW(parameters, betas=(study.momentum, study.beta2), capturable=capturable, **options)
    return torch.optim.SGD(parameters, momentum=study.momentum, nesterov=study.nesterov, **options)


def learning_rate(study: Study, progress: float) -> float:
    """Learning rate at ``progress``, the share of all steps already taken, in [0, 1)."""
    assert study.lr is not None
    if study.schedule == "cosine":
        return study.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return study.lr


@torch.no_grad()
def sam_ascend(model: nn.Module, rho: float, kept: list[Tensor] | None = None) -> list[tuple[nn.Parameter, Tensor]]:
    """Move the weights to w + rho g / ||g|| in place (Foret et al. 2021, eq. 2) and clear the gradients.

    Returns the weights as they were, for :func:`sam_return`: subtracting the step again would leave rounding behind.
    They are copied into ``kept``, one tensor like each parameter, or into new memory.
    """
    pairs = zip(model.parameters(), kept or itertools.repeat(None))
    before = [(p, torch.empty_like(p) if room is None else room) for p, room in pairs if p.grad is not None]
    weights: list[Tensor] = [p for p, _ in before]
    steps = [p.grad for p in weights if p.grad is not None]  # scaled in place: they are not needed again
    torch._foreach_copy_([w for _, w in before], weights)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(steps)))
    torch._foreach_mul_(steps, rho / (norm + 1e-12))
    torch._foreach_add_(weights, steps)
    for p in weights:
        p.grad = None
    return before


@torch.no_grad()
def sam_return(before: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Put the weights back, keeping the gradients taken at the ascended point."""
    torch._foreach_copy_([p for p, _ in before], [w for _, w in before])


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Leave batch-norm running statistics untouched; the normalisation itself still uses the batch."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def update(
    study: Study, state: TrainState, data: DeviceData, index: Tensor, crops: Tensor | None, lr: float | Tensor
) -> Tensor:
    """One optimiser step on the pool samples ``index`` (B,), cropped by ``crops`` (3, B), at learning rate ``lr``.

    Returns the mean loss before the step, on the device. The step is a function of its arguments alone: no clock, no
    global generator, no host round trip. With ``lr`` a tensor it can be captured as a CUDA graph
    (:mod:`dynmia.shadow.gpu`).
    """
    images = data.images[index]
    if crops is not None:
        images = crop(images, crops)
    inputs, labels = data.normalise(images), data.labels[index]
    for group in state.optimizer.param_groups:
        group["lr"] = lr

    def backward() -> Tensor:
        half, device = study.precision == "bf16", inputs.device.type
        with torch.autocast(device, torch.bfloat16, enabled=half, cache_enabled=device == "cpu"):
            logits = state.model(inputs)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        return loss.detach()

    state.optimizer.zero_grad(set_to_none=True)
    loss = backward()
    if study.optimizer.startswith("sam") and study.rho > 0:
        before = sam_ascend(state.model, study.rho, state.kept)
        with frozen_statistics(state.model):
            backward()
        sam_return(before)
    state.optimizer.step()
    return loss


def plan_epoch(
    study: Study, data: DeviceData, members: Tensor, model: int, epoch: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the S steps of epoch ``epoch`` (from 0) read: samples (S, B), crops (S, 3, B) and learning rates (S,).

    The order of the ``members`` is new each epoch; the ragged last batch is left out, so every step has the same shape.
    """
    generator = torch.Generator().manual_seed(seed_of(study.seed, ORDER, model, epoch))
    torch.manual_seed(seed_of(study.seed, LAYERS, model, epoch))
    batch = min(study.batch_size, len(members))
    steps = len(members) // batch
    order = members[torch.randperm(len(members), generator=generator)][: steps * batch].view(steps, batch)
    crops = [draw_crops(data.images, batch, generator) for _ in range(steps)] if study.augment else None
    rates = [learning_rate(study, (epoch + step / steps) / study.epochs) for step in range(steps)]
    return order, torch.stack(crops) if crops else None, torch.tensor(rates, dtype=torch.float64)


def logit_scaled_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """phi = logit_y - logsumexp(the other logits), computed in float64.

    This equals log(p_y / (1 - p_y)) of the softmax without forming p: from probabilities a gap of 17 already rounds to
    infinity in float32, here a gap of 700 is exact to the last digits of float64.

    Args:
        logits: (B, K) float32 logits.
        labels: (B,) int64 true classes.

    Returns:
        (B,) float64.
    """
    logits = logits.double()
    true = logits.gather(1, labels[:, None])  # (B, 1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true[:, 0] - torch.logsumexp(others, dim=1)


@torch.no_grad()
def evaluate(
    state: TrainState, data: DeviceData, images: Tensor, labels: Tensor, batch: int = EVALUATION_BATCH,
    whole: bool = False, half: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Query in evaluation mode and float32; returns phi float64 (n,) and whether the top class is right, bool (n,).

    On a GPU convolutions take float32 in TF32 (10 bits of mantissa), as torch does by default. ``half`` keeps these ten
    bits and moves half the bytes: all layers but the last, whose logits stay float32, in float16. If a value does not
    fit into float16, all is queried again without it. ``whole`` fills the last batch up with black images, so that all
    have one shape: a compiler would make a program for each.
    """
    state.model.eval()
    phi, right = [], []
    for part in range(0, len(images), batch):
        target, some = labels[part : part + batch], images[part : part + batch]
        if whole and len(some) < batch:
            some = F.pad(some, (0, 0, 0, 0, 0, 0, 0, batch - len(some)))
        with torch.autocast(labels.device.type, torch.float16, enabled=half):
            logits = state.model(data.normalise(some))[: len(target)].float()
        phi.append(logit_scaled_confidence(logits, target))
        right.append(logits.argmax(1) == target)
    values = torch.cat(phi).cpu().numpy()
    if half and not np.isfinite(values).all():
        return evaluate(state, data, images, labels, batch, whole)
    return values, torch.cat(right).cpu().numpy()


def new_state(study: Study, pool: Pool, model: int, device: str) -> TrainState:
    """Shadow model ``model`` before its first step, on ``device``, channels-last if it can be."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(study.seed, WEIGHTS, model))
        module = build_model(study.model, pool.shape, pool.classes)
        layout = memory_layout(module, pool.shape) if ":" in study.model else torch.channels_last
    module = module.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    return TrainState(module, make_optimizer(study, module))


def flatten(state: TrainState) -> dict[str, np.ndarray]:
    """The model's and the optimiser's tensors as named arrays."""
    arrays = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    for number, values in state.optimizer.state_dict()["state"].items():
        arrays |= {f"optimizer.{number}.{name}": value for name, value in values.items() if value is not None}
    return {name: value.detach().cpu().contiguous().numpy() for name, value in arrays.items()}


@torch.no_grad()
def unflatten(state: TrainState, arrays: dict[str, np.ndarray]) -> None:
    """Load what :func:`flatten` returned, in place."""
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    state.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    for key in [key for key in tensors if key.startswith("optimizer.")]:
        _, number, name = key.split(".")
        parameter, tensor = state.optimizer.param_groups[0]["params"][int(number)], tensors[key]
        values = state.optimizer.state[parameter]
        if name not in values:
            # like the parameter in device and memory format, or fused kernels would fall back to slow copies
            like = tensor.shape == parameter.shape
            values[name] = torch.empty_like(parameter if like else tensor, device=parameter.device)
        values[name].copy_(tensor)

"""Optimisers and learning-rate schedules: SGD, AdamW, and sharpness-aware minimisation around either."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..study import Study


def make_optimizer(study: Study, model: nn.Module) -> torch.optim.Optimizer:
    """Return the (base) optimiser of ``study`` over all parameters of ``model``."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert study.lr is not None
    if study.optimizer.endswith("adamw"):
        betas = (study.momentum, study.beta2)
        capturable = any(p.is_cuda for p in parameters)
        return torch.optim.AdamW(
            parameters, study.lr, betas, weight_decay=study.weight_decay, fused=True, capturable=capturable
        )
    return torch.optim.SGD(
        parameters, study.lr, study.momentum, weight_decay=study.weight_decay, nesterov=study.nesterov, fused=True
    )


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
    room = kept or itertools.repeat(None)
    found = [(p, p.grad, k) for p, k in zip(model.parameters(), room) if p.grad is not None]
    weights: list[Tensor] = [p for p, _, _ in found]
    steps = [g for _, g, _ in found]  # the gradients, scaled in place: they are not needed again
    before = [(p, torch.empty_like(p) if k is None else k) for p, _, k in found]
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


@contextmanager
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

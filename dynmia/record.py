"""What is recorded beside phi, so that the hardness of samples can be measured afterwards (:mod:`dynmia.hardness`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

BATCH = 200
PASSES = 10  # of MC dropout


def hardness_signals(
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    seed: int,
    dear: bool,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield named signals of one checkpoint, one value (or row) a sample.

    prob: softmax (n, K), float16. If ``dear``, also grad_norm: ||d loss / d w|| of each sample, float32 (n,), in
    evaluation mode; and, if the model has dropout layers, mc_information: the mutual information (nats) of the
    predictions of ``PASSES`` passes with dropout drawn anew (Gal and Ghahramani 2016), float32 (n,).
    """
    parts = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    model.eval()
    with torch.no_grad():
        yield "prob", _join([model(normalise(images[part])).softmax(1).half() for part in parts])
    if not dear:
        return
    yield "grad_norm", _join([gradient_norm(model, normalise(images[part]), labels[part]) for part in parts])
    layers = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    if layers:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []), torch.no_grad():
            torch.manual_seed(seed)
            for layer in layers:
                layer.train()
            found = []
            for part in parts:
                inputs = normalise(images[part])
                found.append(mutual_information(torch.stack([model(inputs).softmax(1) for _ in range(PASSES)])))
        model.eval()
        yield "mc_information", _join(found)


def gradient_norm(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Norm of the gradient of each sample's cross-entropy with respect to all trainable weights, (B,)."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (weights, fixed), (x[None],)), y[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, labels)
    return torch.sqrt(sum(g.flatten(1).square().sum(1) for g in gradients.values()))


def mutual_information(prob: Tensor) -> Tensor:
    """H(mean over passes) - mean over passes of H, in nats: (S, B, K) -> (B,)."""
    return torch.special.entr(prob.mean(0)).sum(-1) - torch.special.entr(prob).sum(-1).mean(0)


def _join(parts: list[Tensor]) -> np.ndarray:
    return torch.cat(parts).cpu().numpy()

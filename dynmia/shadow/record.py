"""What is recorded beside phi, so that the hardness of samples can be measured (:mod:`dynmia.stats.hardness`)."""

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
    test_images: Tensor,
    seed: int,
    dear: bool,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield named signals of one checkpoint, one value (or row) a sample.

    prob: softmax (n, K), float16. If ``dear``, also test_prob (m, K), the same on the held-out images; grad_norm:
    ||d loss / d w|| of each sample, float32 (n,), in evaluation mode; and, if the model has dropout layers, from
    ``PASSES`` passes with dropout drawn anew (Gal and Ghahramani 2016), mc_information: the mutual information (nats)
    of their predictions, float32 (n,), and mc_test_prob: the mean of their predictions, float16 (m, K).
    """
    model.eval()

    def batches(images: Tensor) -> list[slice]:
        return [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]

    def plain(images: Tensor) -> np.ndarray:
        with torch.no_grad():
            return _join([model(normalise(images[part])).softmax(1).half() for part in batches(images)])

    yield "prob", plain(images)
    if not dear:
        return
    yield "test_prob", plain(test_images)
    yield (
        "grad_norm",
        _join([gradient_norm(model, normalise(images[part]), labels[part]) for part in batches(images)]),
    )
    layers = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    if layers:

        def passes(images: Tensor, part: slice) -> Tensor:
            inputs = normalise(images[part])
            return torch.stack([model(inputs).softmax(1) for _ in range(PASSES)])

        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []), torch.no_grad():
            torch.manual_seed(seed)
            for layer in layers:
                layer.train()
            information = [mutual_information(passes(images, part)) for part in batches(images)]
            mean = [passes(test_images, part).mean(0).half() for part in batches(test_images)]
        model.eval()
        yield "mc_information", _join(information)
        yield "mc_test_prob", _join(mean)


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

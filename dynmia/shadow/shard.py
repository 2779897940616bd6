"""Train one shadow model, resumable after any epoch: one epoch, one shard.

Weights, data order and augmentation derive from (seed, model, epoch), never from what ran before, so a model that is
interrupted and resumed equals the uninterrupted one bit for bit on the same machine. (A user's model with dropout keeps
to this too: torch's own generator is seeded at the start of every epoch.)
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..errors import Diverged
from ..pool.pool import Pool
from ..store.folder import RunStore
from ..study import Study
from .step import DROPOUT, DeviceData, TrainState, evaluate, flatten, new_state, plan_epoch, seed_of, unflatten, update

SAVING = 0.02  # the largest share of the time that goes into saving states
MARGIN = 2.0  # epochs of the longest kind that must fit before a deadline: one, its evaluation and a slow moment
SELDOM = 4  # gradients and dropout passes are recorded at every fourth checkpoint and the last: they are dear
RECORDING_BATCH = 200
PASSES = 10  # of MC dropout


@dataclass(frozen=True)
class Job:
    """A population in training: what is trained, where it is kept, and how."""

    study: Study  # with definite precision, as ``store`` has it
    pool: Pool
    store: RunStore
    device: str = "cpu"  # or ``cuda``
    mode: str = "fast"  # or ``deterministic``, on a GPU
    workers: int | None = None  # processes on a CPU (None: one a core), or models in flight on a GPU (None: 4)
    deadline: float = math.inf  # of ``time.monotonic``; training stops, states saved, before an epoch that ends later
    report: Callable[[dict[str, Any]], None] = lambda event: None  # gets model, epoch, loss, accuracies at every epoch

    @cached_property
    def data(self) -> DeviceData:
        """The pool on the device."""
        return DeviceData.of(self.pool, self.device)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks: activations of some MB a layer would go back to the system after every step.

    Fetching and zeroing those pages anew took a fifth of a step of the 3-layer CNN. Without glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-2, 2**28)  # M_TOP_PAD


def train_epoch(study: Study, state: TrainState, data: DeviceData, members: Tensor, model: int, epoch: int) -> float:
    """Train epoch ``epoch`` (from 0) of shadow model ``model`` on its ``members``; returns the mean loss."""
    device = data.labels.device
    order, crops, rates = plan_epoch(study, data, members, model, epoch)
    crops = None if crops is None else crops.to(device)
    state.model.train()
    total = torch.zeros((), device=device)
    for step, (index, rate) in enumerate(zip(order.to(device), rates.tolist())):
        total += update(study, state, data, index, None if crops is None else crops[step], rate)
    return float(total) / len(order)


def train_shard(job: Job, model: int) -> bool:
    """Train shadow model ``model`` from its saved state (or from scratch) to the end and write its shard.

    Idempotent: a finished shard is left as it is. The whole state is saved after an epoch, unless saving would take
    more than 2 % of the time since the last: an interruption loses one epoch, or 50 times as long as a save takes if
    epochs are shorter. Returns whether the shard is finished: the deadline may have come before.

    Raises:
        Diverged: the loss is NaN or infinite; nothing of other shards is touched.
        UserError: the disk is full or cannot be written, or another process trains this model.
    """
    with job.store.locked(model):
        if job.store.finished(model):
            return True
        state = new_state(job.study, job.pool, model, job.device)
        engine = "cpu" if job.device == "cpu" else "cuda-eager"
        shard = Shard(job, model, state, partial(evaluate, state, job.data), engine)
        while shard.goes_on():
            shard.trained(train_epoch(job.study, state, job.data, shard.members, model, shard.epoch))
        return shard.epoch == job.study.epochs


def train_here(job: Job, models: Iterable[int]) -> None:
    """Train ``models`` one after another in this process, until the deadline."""
    for model in models:
        if not train_shard(job, model):
            break


class Shard:
    """A model in flight: its state, what it has given so far, and when that is saved. Its lock must be held.

    Args:
        state: as new; the saved state is loaded into it.
        query: maps images and labels to what :func:`dynmia.shadow.step.evaluate` returns.
        engine: what trains it, kept in the shard with the mode: ``deterministic`` (always, on a CPU) or ``fast``.
    """

    def __init__(
        self, job: Job, model: int, state: TrainState,
        query: Callable[[Tensor, Tensor], tuple[np.ndarray, np.ndarray]], engine: str,
    ) -> None:  # fmt: skip
        self.job, self.study, self.model, self.state, self.query = job, job.study, model, state, query
        self.keep = job.pool.keep[model]
        self.members = torch.as_tensor(np.flatnonzero(self.keep))
        self.record: dict[str, np.ndarray] = {}
        self.epoch, self.seconds, self.resumed = 0, 0.0, False
        self.longest = self.saving = self.saved_at = 0.0
        self.mark = time.perf_counter()
        exact = job.device == "cpu" or torch.are_deterministic_algorithms_enabled()
        self.how = {"engine": engine, "mode": "deterministic" if exact else "fast"}
        if saved := job.store.load_state(model):
            arrays, meta = saved
            self.resumed, self.epoch, self.seconds = True, int(meta["epoch"]), float(meta["seconds"])
            self.record = {n: array for n, array in arrays.items() if not n.startswith(("model.", "optimizer."))}
            unflatten(state, arrays)
            parts = meta.get("engine", engine).split(" and ")
            self.how["engine"] = " and ".join(dict.fromkeys([*parts, engine]))
            if meta.get("mode") == "fast":
                self.how["mode"] = "fast"

    def goes_on(self, in_flight: int = 1) -> bool:
        """Query, save and report as is due after ``epoch`` epochs; whether the next is to be trained now.

        The time since the last call counts as this model's, divided by the models ``in_flight`` on the device.
        """
        self.began = time.perf_counter()
        if self.resumed:  # all that was done before its state was saved
            self.resumed = False
            return time.monotonic() <= self.job.deadline
        if self.epoch % self.study.checkpoint_every == 0:
            self._checkpoint()
        now = time.perf_counter()
        self.seconds, self.mark = self.seconds + (now - self.mark) / in_flight, now
        meta = dict(seconds=self.seconds, **self.how)
        event: dict[str, Any] = dict(model=self.model, epoch=self.epoch)
        event |= {name: float(values[-1]) for name, values in self.record.items() if values.ndim == 1 and len(values)}
        if self.epoch == self.study.epochs:
            self.job.store.save_shard(self.model, self.record | {"keep": self.keep}, meta)
            self.job.report(event | dict(done=True))
            return False
        stop = time.monotonic() + MARGIN * self.longest > self.job.deadline
        if stop or self.began - self.saved_at > in_flight * self.saving / SAVING:  # all wait for a save
            before = time.perf_counter()
            self.job.store.save_state(self.model, self.record | flatten(self.state), meta | dict(epoch=self.epoch))
            self.saved_at = time.perf_counter()
            self.saving = self.saved_at - before
        self.job.report(event)
        return not stop

    def trained(self, loss: float) -> None:
        """Count an epoch of mean ``loss`` as trained."""
        self.epoch += 1
        self._must_be_finite(loss)
        self._append("loss", loss)
        self.longest = max(self.longest, time.perf_counter() - self.began)

    def _checkpoint(self) -> None:
        study, data = self.study, self.job.data
        phi, right = self.query(data.images, data.labels)
        self._must_be_finite(phi)
        _, test_right = self.query(data.test_images, data.test_labels)
        self._append("phi", phi.astype(np.float32))
        self._append("train_accuracy", right[self.keep].mean())
        self._append("test_accuracy", test_right.mean())
        if study.record == "hardness":
            seed = seed_of(study.seed, DROPOUT, self.model, self.epoch)
            dear = self.epoch // study.checkpoint_every % SELDOM == 0 or self.epoch == study.epochs
            for name, value in hardness_signals(self.state.model, data, seed, dear):
                self._append(name, value)

    def _must_be_finite(self, values: float | np.ndarray) -> None:
        study = self.study
        if not np.isfinite(values).all():
            raise Diverged(
                f"model {self.model} diverged in epoch {self.epoch} ({study.optimizer}, lr {study.lr}, momentum "
                f"{study.momentum}, batch size {study.batch_size}): lower lr; finished shards are kept."
            )

    def _append(self, name: str, value: np.ndarray | float) -> None:
        new = np.asarray(value)[None]
        self.record[name] = np.concatenate([self.record[name], new]) if name in self.record else new


def hardness_signals(model: nn.Module, data: DeviceData, seed: int, dear: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what the hardness of samples is measured from (:mod:`dynmia.stats.hardness`) at one checkpoint.

    prob: softmax (n, K), float16. If ``dear``, also test_prob (m, K), the same on the held-out images; grad_norm:
    ||d loss / d w|| of each sample, float32 (n,), in evaluation mode; and, if the model has dropout layers, from
    ``PASSES`` passes with dropout drawn anew (Gal and Ghahramani 2016), mc_information: the mutual information (nats)
    of their predictions, float32 (n,), and mc_test_prob: the mean of their predictions, float16 (m, K).
    """
    model.eval()

    def joined(signal: Callable[..., Tensor], images: Tensor, *labels: Tensor) -> np.ndarray:
        parts = [slice(start, start + RECORDING_BATCH) for start in range(0, len(images), RECORDING_BATCH)]
        values = [signal(data.normalise(images[part]), *[those[part] for those in labels]) for part in parts]
        return torch.cat(values).cpu().numpy()

    @torch.no_grad()
    def predictions(inputs: Tensor, passes: int = 1) -> Tensor:  # (B, C, H, W) -> (passes, B, K)
        return torch.stack([model(inputs).softmax(1) for _ in range(passes)])

    def prob(inputs: Tensor, passes: int = 1) -> Tensor:
        return predictions(inputs, passes).mean(0).half()

    yield "prob", joined(prob, data.images)
    if not dear:
        return
    yield "test_prob", joined(prob, data.test_images)
    yield "grad_norm", joined(partial(gradient_norm, model), data.images, data.labels)
    layers = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    if layers:
        with torch.random.fork_rng(devices=[data.labels.device] if data.labels.is_cuda else []):
            torch.manual_seed(seed)
            for layer in layers:
                layer.train()
            information = joined(lambda inputs: mutual_information(predictions(inputs, PASSES)), data.images)
            mean = joined(partial(prob, passes=PASSES), data.test_images)
        model.eval()
        yield "mc_information", information
        yield "mc_test_prob", mean


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

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
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..errors import Diverged
from ..pool.pool import Pool
from ..store.folder import RunStore
from ..study import Study
from .record import hardness_signals
from .step import (
    DROPOUT,
    LAYERS,
    ORDER,
    DeviceData,
    TrainState,
    evaluate,
    flatten,
    new_state,
    seed_of,
    train_step,
    unflatten,
)

SAVING = 0.02  # the largest share of the time that goes into saving states
MARGIN = 2.0  # epochs of the longest kind that must fit before a deadline: one, its evaluation and a slow moment
SELDOM = 4  # gradients and dropout passes are recorded at every fourth checkpoint and the last: they are dear


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
        deadline: of ``time.monotonic``; training stops, its state saved, before an epoch that would end later.

    Returns:
        Whether the shard is finished.

    Raises:
        Diverged: the loss is NaN or infinite; nothing of other shards is touched.
        UserError: the disk is full or cannot be written, or another process trains this model.
    """
    if store.finished(model):
        return True
    device = str(data.images.device)
    with store.locked(model):
        if store.finished(model):
            return True
        state = new_state(study, pool, model, device)
        engine = "cpu" if device == "cpu" else "cuda-eager"
        shard = Shard(study, pool, data, model, store, state, partial(evaluate, state, data), report, engine)
        members = shard.members.to(device)
        while shard.goes_on(deadline):
            shard.trained(train_epoch(study, state, data, members, model, shard.epoch))
        return shard.finished


class Shard:
    """A model in flight: its state, what it has given so far, and when that is saved. Its lock must be held.

    Args:
        state: as new; the saved state is loaded into it.
        query: maps images and labels to what :func:`dynmia.shadow.step.evaluate` returns.
        engine: what trains it, kept in the shard with the mode: ``deterministic`` (always, on a CPU) or ``fast``.
    """

    def __init__(
        self,
        study: Study,
        pool: Pool,
        data: DeviceData,
        model: int,
        store: RunStore,
        state: TrainState,
        query: Callable[[Tensor, Tensor], tuple[np.ndarray, np.ndarray]],
        report: Callable[[dict], None],
        engine: str,
    ) -> None:
        self.study, self.data, self.model, self.store, self.state = study, data, model, store, state
        self.query, self.report = query, report
        self.keep = pool.keep[model]
        self.members = torch.as_tensor(np.flatnonzero(self.keep))
        self.record: dict[str, np.ndarray] = {}
        self.epoch, self.seconds, self.finished = 0, 0.0, False
        self.longest = self.saving = self.saved_at = 0.0
        self.mark = time.perf_counter()
        exact = data.images.device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
        self.how = {"engine": engine, "mode": "deterministic" if exact else "fast"}
        self.resumed = False
        if saved := store.load_state(model):
            arrays, meta = saved
            self.resumed, self.epoch, self.seconds = True, int(meta["epoch"]), float(meta["seconds"])
            self.record = {n: array for n, array in arrays.items() if not n.startswith(("model.", "optimizer."))}
            unflatten(state, arrays)
            parts = meta.get("engine", engine).split(" and ")
            self.how["engine"] = " and ".join(dict.fromkeys([*parts, engine]))
            if meta.get("mode") == "fast":
                self.how["mode"] = "fast"

    def goes_on(self, deadline: float = math.inf, in_flight: int = 1) -> bool:
        """Query, save and report as is due after ``epoch`` epochs; whether the next is to be trained now.

        The time since the last call counts as this model's, divided by the models ``in_flight`` on the device.
        """
        self.began = time.perf_counter()
        if self.resumed:  # all that was done before its state was saved
            self.resumed = False
            return time.monotonic() <= deadline
        if self.epoch % self.study.checkpoint_every == 0:
            self._checkpoint()
        now = time.perf_counter()
        self.seconds, self.mark = self.seconds + (now - self.mark) / in_flight, now
        event: dict[str, float] = dict(model=self.model, epoch=self.epoch)
        event |= {name: float(values[-1]) for name, values in self.record.items() if values.ndim == 1 and len(values)}
        if self.epoch == self.study.epochs:
            self.store.save_shard(self.model, self.record | {"keep": self.keep}, dict(seconds=self.seconds, **self.how))
            self.finished = True
            self.report(event | dict(done=True))
            return False
        stop = time.monotonic() + MARGIN * self.longest > deadline
        if stop or self.began - self.saved_at > in_flight * self.saving / SAVING:  # all wait for a save
            before = time.perf_counter()
            meta = dict(epoch=self.epoch, seconds=self.seconds, **self.how)
            self.store.save_state(self.model, self.record | flatten(self.state), meta)
            self.saved_at = time.perf_counter()
            self.saving = self.saved_at - before
        self.report(event)
        return not stop

    def trained(self, loss: float) -> None:
        """Count an epoch of mean ``loss`` as trained."""
        self.epoch += 1
        _must_be_finite(loss, self.study, self.model, self.epoch)
        self._append("loss", loss)
        self.longest = max(self.longest, time.perf_counter() - self.began)

    def _checkpoint(self) -> None:
        study = self.study
        phi, right = self.query(self.data.images, self.data.labels)
        _must_be_finite(phi, study, self.model, self.epoch)
        _, test_right = self.query(self.data.test_images, self.data.test_labels)
        self._append("phi", phi.astype(np.float32))
        self._append("train_accuracy", right[self.keep].mean())
        self._append("test_accuracy", test_right.mean())
        if study.record == "hardness":
            seed = seed_of(study.seed, DROPOUT, self.model, self.epoch)
            dear = self.epoch // study.checkpoint_every % SELDOM == 0 or self.epoch == study.epochs
            data = self.data
            for name, value in hardness_signals(
                self.state.model, data.normalise, data.images, data.labels, data.test_images, seed, dear
            ):
                self._append(name, value)

    def _append(self, name: str, value: np.ndarray | float) -> None:
        new = np.asarray(value)[None]
        self.record[name] = np.concatenate([self.record[name], new]) if name in self.record else new


def _must_be_finite(values: float | np.ndarray, study: Study, model: int, epoch: int) -> None:
    if not np.isfinite(values).all():
        raise Diverged(
            f"model {model} diverged in epoch {epoch} ({study.optimizer}, lr {study.lr}, momentum {study.momentum}, "
            f"batch size {study.batch_size}): lower lr; finished shards are kept."
        )

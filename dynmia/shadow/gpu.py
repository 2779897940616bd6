"""Train shards on a GPU: the step of :mod:`dynmia.shadow.step` captured once as a CUDA graph and replayed.

Data, order and augmentation lie on the device, whole epochs run without a host round trip, and the learning rate and
all counters are tensors. A lane is one model's static memory with the step captured over it; the next model is copied
into it, so that compilation and capture are paid once a population. Several lanes run side by side on their own
streams. On a CPU the same lanes run uncaptured, with the bits of :func:`dynmia.shadow.shard.train_shard`.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Collection, Generator, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import UserError, reason
from ..pool.pool import Pool
from ..study import Study
from .models import build_model, forward_flops
from .shard import Job, Shard, train_here
from .step import DeviceData, arithmetic, evaluate, new_state, plan_epoch, update

COMPILE_FROM = 1e16  # FLOPs of training from which compiling, about a minute, pays
LANES = 4
EVALUATION_BATCH = 5000
WARM_UP = 3  # steps before a capture: libraries load, compilers and autotuners run, the optimiser makes its state


class NotCaptured(UserError):
    """The study's step cannot be captured as a CUDA graph."""


class Lane:
    """The static memory of one model at a time, and the training step captured over it.

    Args:
        compiled: run the model through ``torch.compile`` (default mode, static shapes) before the capture.

    Raises:
        NotCaptured: the models' batches differ in size, or a step needs the host.
    """

    def __init__(self, study: Study, pool: Pool, data: DeviceData, compiled: bool = False) -> None:
        members = pool.keep.sum(1)
        batch = min(study.batch_size, int(members.max()))
        if members.min() < batch:
            raise NotCaptured(f"batch_size {study.batch_size} is larger than a model's {members.min()} samples")
        self.study, self.pool, self.data = study, pool, data
        device = data.images.device
        self.cuda = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self.cuda else None
        self.steps = steps = int(members.max()) // batch

        static = partial(torch.zeros, device=device)
        # fused optimisers read a float32 rate on CUDA; on a CPU they take the float64 that a Python float would be
        real = torch.float32 if self.cuda else torch.float64
        self.order, self.rates = static(steps, batch, dtype=torch.int64), static(steps, dtype=real)
        self.crops = static(steps, 3, batch, dtype=torch.int64) if study.augment else None
        self.position, self.rate, self.total = static(1, dtype=torch.int64), static((), dtype=real), static(())
        self.state = new_state(study, pool, 0, str(device))
        if study.optimizer.startswith("sam"):
            self.state.kept = [torch.empty_like(p) for p in self.state.model.parameters()]
        self.compiled, self.half = compiled, study.precision == "bf16" and ":" not in study.model
        if compiled:
            compile_forward(self.state.model)
        self.graph: torch.cuda.CUDAGraph | None = None
        with self.here(), warnings.catch_warnings(action="ignore" if compiled else "default"):  # a compiler's advice
            self._prepare()

    def here(self) -> contextlib.AbstractContextManager[object]:
        """Make the lane's stream the current one."""
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def _prepare(self) -> None:
        """Warm up on one sample at learning rate 0, and capture; :meth:`load` clears what this leaves in the state."""
        self.state.model.train()
        for _ in range(WARM_UP if self.cuda else 1):
            self._step()
            self.position.zero_()
        if self.cuda:
            torch.cuda.synchronize()
            with warnings.catch_warnings(action="ignore"):  # "a prototype feature"
                torch.cuda.set_sync_debug_mode("error")  # waiting would break the capture and disorder the device
                try:
                    self._step()
                    self.position.zero_()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            images = self.data.images[:EVALUATION_BATCH]
            self.query(images, self.data.labels[: len(images)])
            self.state.model.train()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self._step()

    def _step(self) -> None:
        """The step at the lane's position in the epoch; reads and writes static tensors only."""
        index = self.order.index_select(0, self.position)[0]
        crops = None if self.crops is None else self.crops.index_select(0, self.position)[0]
        self.rate.copy_(self.rates.index_select(0, self.position)[0])
        self.total += update(self.study, self.state, self.data, index, crops, self.rate)
        self.position += 1

    @torch.no_grad()
    def load(self, model: int) -> None:
        """Copy shadow model ``model`` before its first step into the lane; nothing of the last model stays."""
        ours, fresh = self.state.model, new_state(self.study, self.pool, model, "cpu").model
        for get in ("parameters", "buffers"):
            for value, start in zip(getattr(ours, get)(), getattr(fresh, get)(), strict=True):
                value.copy_(start)
        for values in self.state.optimizer.state.values():
            for value in values.values():
                if value is not None:
                    value.zero_()

    @torch.no_grad()
    def begin(self, members: Tensor, model: int, epoch: int) -> int:
        """Copy the plan of an epoch (:func:`dynmia.shadow.step.plan_epoch`) to the device; returns its steps."""
        order, crops, rates = plan_epoch(self.study, self.data, members, model, epoch)
        self.steps = len(order)
        self.order[: self.steps].copy_(order)
        self.rates[: self.steps].copy_(rates)
        if crops is not None and self.crops is not None:
            self.crops[: self.steps].copy_(crops)
        self.position.zero_()
        self.total.zero_()
        self.state.model.train()
        return self.steps

    def step(self) -> None:
        """Queue the next step of the epoch."""
        self.graph.replay() if self.graph else self._step()

    def mean_loss(self) -> float:
        """The mean loss of the epoch, after waiting for its end: the one round trip."""
        return float(self.total) / self.steps

    def query(self, images: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """:func:`dynmia.shadow.step.evaluate` in batches that fill a GPU; in float16 if the study trains in bf16."""
        fill = dict(batch=EVALUATION_BATCH, whole=self.compiled, half=self.half) if self.cuda else {}
        return evaluate(self.state, self.data, images, labels, **fill)  # type: ignore[arg-type]


def compile_forward(model: nn.Module) -> None:
    """Compile in place for static shapes; ``model.compile()`` passes over an ``nn.Sequential`` in torch before 2.14."""
    model.forward = torch.compile(model.forward, dynamic=False)  # type: ignore[method-assign]


def open_lanes(study: Study, pool: Pool, data: DeviceData, lanes: int, compiled: bool = False) -> list[Lane]:
    """Prepare ``lanes`` lanes; what does not compile is left uncompiled, with a line that says so.

    Raises:
        NotCaptured: the step cannot be captured.
        UserError: the mode is deterministic and an operation of the model cannot be.
    """
    try:
        return [Lane(study, pool, data, compiled) for _ in range(lanes)]
    except NotCaptured:
        raise
    except Exception as error:  # whatever a compiler, a driver or a user's model raises
        if "deterministic implementation" in str(error):
            raise UserError(f"{reason(error)}: use --mode fast for model {study.model}.") from error
        if not compiled:
            raise NotCaptured(reason(error)) from error
        tqdm.write(f"dynmia: torch.compile failed ({reason(error)}): training goes on without it", file=sys.stderr)
        return open_lanes(study, pool, data, lanes)


def run_epoch(lanes: Collection[Lane]) -> None:
    """Queue the epoch that each of ``lanes`` has begun, step by step in turn, so that they share the device evenly."""
    for step in range(max((lane.steps for lane in lanes), default=0)):
        for lane in lanes:
            if step < lane.steps:
                with lane.here():
                    lane.step()


def train_cuda(job: Job, models: list[int]) -> None:
    """Train ``models`` in lanes, compiled if it pays, or else step by step."""
    work = 3 * forward_flops(build_model(job.study.model, job.pool.shape, job.pool.classes), job.pool.shape)
    work *= int(job.pool.keep[models].sum()) * job.study.epochs
    compiled = job.mode == "fast" and job.study.record == "phi" and work > COMPILE_FROM  # vmap takes no compiled model
    with arithmetic(job.mode):
        try:
            train_lanes(job, models, compiled)
        except NotCaptured as error:
            tqdm.write(f"dynmia: no CUDA graph for this study ({error}): it trains step by step", file=sys.stderr)
            train_here(job, models)


def train_lanes(job: Job, models: Iterable[int], compiled: bool = False) -> None:
    """Train ``models``, ``job.workers`` at a time (default 4), as :func:`dynmia.shadow.shard.train_shard` does.

    Raises:
        NotCaptured: before anything is trained.
    """
    waiting = [model for model in models if not job.store.finished(model)]
    draws = ":" in job.study.model or "dropout" in job.study.model  # from one generator for all lanes
    count = min(1 if draws else job.workers or LANES, len(waiting))
    lanes = open_lanes(job.study, job.pool, job.data, count, compiled)
    in_flight = count  # during the epoch that is queued

    def fly(lane: Lane) -> Generator[int, None, None]:
        """Train one model after another on ``lane``; yields the steps of each epoch, to be run by the caller."""
        how = f"cuda-graph, {count} in flight{', compiled' * lane.compiled}{', queried in float16' * lane.half}"
        longest = 0.0
        while waiting:
            model = waiting.pop(0)
            with job.store.locked(model):
                if job.store.finished(model):
                    continue
                lane.load(model)
                shard = Shard(job, model, lane.state, lane.query, how if lane.cuda else "cpu")
                shard.longest = longest
                while shard.goes_on(in_flight):
                    yield lane.begin(shard.members, model, shard.epoch)
                    shard.trained(lane.mean_loss())
                longest = shard.longest
            if shard.epoch < job.study.epochs:  # the time is over
                return

    with contextlib.ExitStack() as held:  # a flight that is closed lets its lock go
        flights = {lane: held.enter_context(contextlib.closing(fly(lane))) for lane in lanes}
        while flights:
            in_flight = len(flights)
            for lane in lanes:
                with lane.here():
                    if lane in flights and not next(flights[lane], 0):
                        del flights[lane]
            run_epoch(flights)

"""Train the shards of a study that are missing: a pool of processes on CPUs, captured and side by side on a GPU.

Measured on two cores with the 3-layer CNN at 3 x 32 x 32: two processes of one thread beat one process of two threads;
``dynmia make bench-cpu`` prints both rates on the machine at hand.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm.auto import tqdm

from .. import errors
from ..errors import UserError
from ..pool.datasets import load_dataset
from ..pool.pool import Pool, make_pool
from ..store.folder import RunStore, read_manifest
from ..store.run import assemble, cores, open_run, provenance, save_run
from ..study import Study

Folder = str | os.PathLike[str] | None
MOST_WORKERS = 1024


def train(study: Study, **options: Any) -> xr.Dataset:
    """Train the population of ``study``, or what is missing of it, and return the run (see :mod:`dynmia.store.run`).

    Ctrl-C or a killed process loses about one epoch of each model in flight; the same call continues.

    Args:
        options: those of :func:`train_part`: out, data_dir, device, workers, mode, progress, command, engine, address.
    """
    return finish(*train_part(study, **options))


def train_part(
    study: Study, *, models: list[int] | None = None, time_budget: float | None = None, out: Folder = None,
    data_dir: Folder = None, device: str | None = None, workers: int | None = None, mode: str = "fast",
    progress: bool = True, command: str | None = None, engine: str = "local", address: str | None = None,
) -> tuple[Pool, RunStore]:  # fmt: skip
    """Train what is missing of ``models`` as far as ``time_budget`` allows.

    Args:
        models: numbers of shadow models, 0 ... N - 1; None takes all.
        time_budget: seconds from now; training stops cleanly before they are over and goes on by the next call, here or
            elsewhere (:func:`dynmia.store.folder.merge`).
        out: the run's folder; default ``runs/<title>-<first 8 digits of the identity>``.
        data_dir: see :func:`dynmia.pool.datasets.load_dataset`.
        device: ``cpu`` or ``cuda``; None takes CUDA if there is one.
        workers: processes on a CPU (None takes one a core), or models in flight on a GPU (None takes 4).
        mode: on a GPU ``fast``, or ``deterministic``: repeats and resumes to the bit, as a CPU always does.
        progress: show a bar with time left, train and test accuracy.
        command: kept in the run as what reproduces it; None derives the ``dynmia train`` line.
        engine: ``local``, or ``ray`` (:mod:`dynmia.shadow.workers`, the extra ``dynmia[ray]``).
        address: of a running Ray cluster.

    Returns:
        The pool and the run's folder; ``store.missing()`` says what is left.

    Raises:
        UserError: also if the time was over before any epoch ended.
    """
    from .gpu import train_cuda
    from .shard import Job
    from .workers import reach, train_pool, train_ray

    errors.choose(engine, ("local", "ray"), "engine")
    if address and engine != "ray":
        raise UserError("address is that of a Ray cluster: give it with --engine ray.")
    if engine == "ray":
        reach(address or os.environ.get("RAY_ADDRESS"))
    deadline = math.inf if time_budget is None else time.monotonic() + time_budget
    if time_budget is not None and not time_budget > 0:
        raise UserError(f"time_budget is {time_budget} s: it must be above 0.")
    if bad := [model for model in models or [] if not 0 <= model < study.shadow_models]:
        raise UserError(f"model {bad[0]} does not exist: this study has models 0 to {study.shadow_models - 1}.")
    errors.choose(mode, ["fast", "deterministic"], "mode")
    device = pick_device(device)
    study, pool, store = open_store(
        study, out=out, data_dir=data_dir, device=device, workers=workers, command=command, mode=mode
    )
    missing = [model for model in store.missing() if models is None or model in models]
    with ended_cleanly(), contextlib.closing(Progress(study, missing, store, progress)) as bar:
        job = Job(study, pool, store, device, mode, workers, deadline, bar.report)
        if engine == "ray" and missing:
            train_ray(job, missing, address)
        elif device.startswith("cuda") and missing:  # where it goes on, which need not be where it began
            train_cuda(job, missing)
        elif missing:
            train_pool(job, missing)
    store.tidy()
    if missing and not bar.moved:
        raise UserError(f"the time budget of {time_budget:g} s was over before an epoch ended: use a longer one.")
    return pool, store


class Progress:
    """One bar over all epochs of the missing models, from where their states stand."""

    def __init__(self, study: Study, missing: list[int], store: RunStore, show: bool) -> None:
        self.done: dict[int, int] = {}
        self.moved = False  # whether any epoch has ended
        for model in missing:
            with store.locked(model):  # a damaged state, or another process, stops here: before any process starts
                saved = store.load_state(model)
            self.done[model] = int(saved[1]["epoch"]) if saved else 0
        whole, left = study.shadow_models * study.epochs, sum(study.epochs - epoch for epoch in self.done.values())
        self.bar = tqdm(
            total=whole, initial=whole - left, unit="epoch", desc=study.title, disable=not show or not missing,
            dynamic_ncols=True, smoothing=0.05,
        )  # fmt: skip
        self.close = self.bar.close

    def report(self, event: dict[str, Any]) -> None:
        """Move the bar to an event of :class:`dynmia.shadow.shard.Job`."""
        model, epoch = event["model"], event["epoch"]
        self.moved |= epoch > self.done[model]
        self.bar.update(epoch - self.done[model])
        self.done[model] = epoch
        accuracies = f"train {event['train_accuracy']:.2f}, test {event['test_accuracy']:.2f}"
        self.bar.set_postfix_str(f"model {model}, {accuracies}", refresh=False)


def finish(pool: Pool, store: RunStore) -> xr.Dataset:
    """Assemble the run of a folder in which no model is missing, and keep it there as ``run.nc``.

    A ``run.nc`` that is damaged, of another study or of other shards is written anew.
    """
    store.manifest = read_manifest(store.folder)  # another process may have merged models into it
    run = assemble(store, pool)
    with contextlib.suppress(errors.StoreError):
        if open_run(store.folder).equals(run):
            return run
    with store.locked():
        save_run(run, store.folder / "run.nc", pack=False)
    return run


def open_store(
    study: Study, *, out: Folder = None, data_dir: Folder = None, device: str | None = None,
    workers: int | None = None, command: str | None = None, mode: str = "fast",
) -> tuple[Study, Pool, RunStore]:  # fmt: skip
    """Load the data, check that the model fits them, and open (or make) the run's folder; see :func:`train_part`."""
    from .models import model_fingerprint
    from .plan import check_model
    from .step import arithmetic

    check_workers(workers)
    device = pick_device(device)
    study = study.resolve(device)
    dataset = load_dataset(study.dataset, data_dir)
    whole = len(dataset.train_labels)
    count, size = study.shadow_models, min(study.pool_size or whole, whole)
    try:
        if 16 * count * size > memory():  # the numbers from which the mask is drawn, and room beside them
            raise MemoryError
        pool = make_pool(study, dataset)
    except MemoryError as error:
        raise UserError(
            f"shadow_models {count} x pool_size {size} is more than the memory holds: reduce one of them."
        ) from error
    with arithmetic(mode) if device.startswith("cuda") else contextlib.nullcontext():
        check_model(study, pool, device)  # a bad model is an error before any work is lost
    fingerprint = pool.fingerprint + model_fingerprint(study.model)
    folder = Path(out) if out else Path("runs") / f"{study.title}-{study.identity(fingerprint)[:8]}"
    about = provenance(command or command_of(study), device, workers or cores() if device == "cpu" else 1)
    return study, pool, RunStore(folder, study, fingerprint, about)


def check_workers(workers: int | None) -> None:
    """Raise a ``UserError`` if no machine has so many."""
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise UserError(f"workers is {workers}: it must be at least 1 and at most {MOST_WORKERS}.")


def memory() -> float:
    """Bytes of memory that this process may use; infinite where the system does not say."""
    limits = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container or a job
        with contextlib.suppress(ValueError, OSError):
            limits.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    return min(limits)


@contextlib.contextmanager
def ended_cleanly() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a closed terminal, end training as Ctrl-C does: no process, lock or scratch stays."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        numbers = []
    with contextlib.ExitStack() as handled:
        for number in numbers:
            if signal.getsignal(number) is signal.SIG_DFL:  # not what others handle
                signal.signal(number, signal.default_int_handler)
                handled.callback(signal.signal, number, signal.SIG_DFL)
        yield


def pick_device(device: str | None) -> str:
    """Check ``device``, or choose one."""
    import torch

    if device not in (None, "cpu") and not str(device).startswith("cuda"):
        raise UserError(f"unknown device {device!r}: use cpu or cuda.")
    if device and device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("device cuda: torch finds no GPU here; use --device cpu.")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def command_of(study: Study) -> str:
    """The ``dynmia train`` line that makes the run of ``study``."""
    default = Study.from_dict({"optimizer": study.optimizer}).to_dict()
    words = ["dynmia train"]
    for name, value in study.to_dict().items():
        if value is not None and (name in ("dataset", "model", "optimizer") or value != default[name]):
            words.append(f"--{name.replace('_', '-')} {shlex.quote(str(value))}".removesuffix(" True"))
    return " ".join(words)

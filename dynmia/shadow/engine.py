"""Train the shards of a study that are missing: a pool of processes on CPUs, captured and side by side on a GPU.

Measured on two cores with the 3-layer CNN at 3 x 32 x 32: two processes of one thread beat one process of two threads;
``dynmia make bench-cpu`` prints both rates on the machine at hand.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm.auto import tqdm

from .. import errors
from ..errors import UserError
from ..pool.datasets import load_dataset
from ..pool.pool import Pool, make_pool
from ..store.folder import RunStore, continued_by, read_manifest
from ..store.run import assemble, cores, open_run, provenance, save_run
from ..study import Study
from . import gpu
from .models import build_model, forward_flops, model_fingerprint
from .progress import Progress, Report
from .shard import DeviceData, train_shard
from .step import arithmetic
from .trial import check_model

Folder = str | os.PathLike[str] | None
MOST_WORKERS = 1024
COMPILE_FROM = 1e16  # FLOPs of training from which compiling, about a minute, pays


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
            elsewhere (:func:`dynmia.store.merge.merge`).
        out: the run's folder; default ``runs/<title>-<first 8 digits of the identity>``.
        data_dir: see :func:`dynmia.pool.datasets.load_dataset`.
        device: ``cpu`` or ``cuda``; None takes CUDA if there is one.
        workers: processes on a CPU (None takes one a core), or models in flight on a GPU (None takes 4).
        mode: on a GPU ``fast``, or ``deterministic``: repeats and resumes to the bit, as a CPU always does.
        progress: show a bar with time left, train and test accuracy.
        command: kept in the run as what reproduces it; None derives the ``dynmia train`` line.
        engine: ``local``, or ``ray`` (:mod:`dynmia.shadow.cluster`, the extra ``dynmia[ray]``).
        address: of a running Ray cluster.

    Returns:
        The pool and the run's folder; ``store.missing()`` says what is left.

    Raises:
        UserError: also if the time was over before any epoch ended.
    """
    errors.choose(engine, ("local", "ray"), "engine")
    if address and engine != "ray":
        raise UserError("address is that of a Ray cluster: give it with --engine ray.")
    if engine == "ray":
        from .cluster import reach, train_ray

        reach(address or os.environ.get("RAY_ADDRESS"))
    deadline = math.inf if time_budget is None else time.monotonic() + time_budget
    if time_budget is not None and not time_budget > 0:
        raise UserError(f"time_budget is {time_budget} s: it must be above 0.")
    bad = [model for model in models or [] if not 0 <= model < study.shadow_models]
    if bad:
        raise UserError(f"model {bad[0]} does not exist: this study has models 0 to {study.shadow_models - 1}.")
    errors.choose(mode, ["fast", "deterministic"], "mode")
    device = pick_device(device)
    study, pool, store = open_store(
        study, out=out, data_dir=data_dir, device=device, workers=workers, command=command, mode=mode
    )
    missing = [model for model in store.missing() if models is None or model in models]
    with ended_cleanly(), (bar := Progress(study, missing, store, progress)) as report:
        if engine == "ray" and missing:
            train_ray(study, pool, store, missing, report, device, deadline, address, workers)
        elif device.startswith("cuda"):  # where it goes on, which need not be where it began
            with arithmetic(mode):
                train_cuda(study, pool, store, missing, report, device, deadline, workers, mode)
        else:
            train_pool(study, pool, store, missing, min(workers or cores(), max(1, len(missing))), report, deadline)
    store.tidy()
    if missing and not bar.moved:
        raise UserError(f"the time budget of {time_budget:g} s was over before an epoch ended: use a longer one.")
    return pool, store


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

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        numbers = []
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # not what others handle
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


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


def train_here(
    study: Study, pool: Pool, store: RunStore, models: Iterable[int], report: Report, device: str = "cpu",
    deadline: float = math.inf,
) -> None:  # fmt: skip
    """Train ``models`` one after another in this process, on ``device``, until ``deadline``."""
    data = DeviceData.of(pool, device)
    for model in models:
        if not train_shard(study, pool, data, model, store, report, deadline):
            break


def train_cuda(
    study: Study, pool: Pool, store: RunStore, models: list[int], report: Report, device: str, deadline: float,
    lanes: int | None, mode: str,
) -> None:  # fmt: skip
    """Train ``models`` by captured steps (:mod:`dynmia.shadow.gpu`), compiled if it pays, or else eagerly."""
    work = 3 * forward_flops(build_model(study.model, pool.shape, pool.classes), pool.shape)
    work *= int(pool.keep[models].sum()) * study.epochs
    try:
        compiled = mode == "fast" and study.record == "phi" and work > COMPILE_FROM  # vmap takes no compiled model
        gpu.train_lanes(study, pool, store, models, report, device, deadline, lanes, compiled)
    except gpu.NotCaptured as error:
        tqdm.write(f"dynmia: no CUDA graph for this study ({error}): it trains step by step", file=sys.stderr)
        train_here(study, pool, store, models, report, device, deadline)


def train_pool(
    study: Study, pool: Pool, store: RunStore, models: list[int], workers: int, report: Report,
    deadline: float = math.inf,
) -> None:  # fmt: skip
    """Train ``models`` in ``workers`` processes; a free process starts the next model at once.

    Raises:
        UserError: what stopped a worker; the others are ended and keep their last epoch.
    """
    if not models:
        return
    with scratch() as job:
        try:
            pool.save(job)
        except OSError as error:
            raise errors.disk_error(error, job) from error
        about = dict(study=study.to_dict(), folder=str(store.folder.resolve()), classes=pool.classes,
                     fingerprint=store.manifest["fingerprint"], deadline=deadline)  # fmt: skip
        (job / "job.json").write_text(json.dumps(about))
        events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        started: list[tuple[subprocess.Popen[str], threading.Thread]] = []
        try:
            try:
                for number in range(workers):
                    started.append(_start(number, job, events))
            except OSError as error:
                raise UserError(
                    f"only {len(started)} of {workers} workers start ({error.strerror}): use fewer --workers."
                ) from error
            waiting, flying = list(models), {}

            def next_model(number: int) -> None:
                stdin = started[number][0].stdin
                assert stdin is not None
                if waiting and time.monotonic() < deadline:
                    flying[number] = waiting.pop(0)
                    with contextlib.suppress(BrokenPipeError):  # it has ended: its last event says why
                        stdin.write(f"{flying[number]}\n")
                        stdin.flush()
                else:
                    flying.pop(number, None)

            for number in range(workers):
                next_model(number)
            while flying:
                number, event = events.get()
                if event is None:
                    if number in flying:
                        _failed(started[number][0], flying[number], continued_by(store.manifest, store.folder))
                elif "error" in event:
                    raise getattr(errors, event["kind"])(event["error"])
                elif "free" in event:
                    if not event["free"]:
                        waiting.clear()  # the time is over
                    next_model(number)
                else:
                    report(event)
        finally:
            for process, _ in started:
                process.terminate()
            for _, forwarder in started:  # it ends with its process, and reads the log: before the folder goes
                forwarder.join()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder that is locked while this process lives; those of processes that were killed are removed."""
    with tempfile.TemporaryDirectory(prefix="dynmia-") as folder, (Path(folder) / "owner").open("w") as owner:
        with contextlib.suppress(ImportError, OSError):  # Windows; a file system without locks
            import fcntl

            for lock in Path(folder).parent.glob("dynmia-*/owner.lock"):
                with contextlib.suppress(OSError), lock.open("r+") as left:
                    fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.parent)
            fcntl.flock(owner, fcntl.LOCK_EX)
            os.rename(owner.name, f"{owner.name}.lock")  # seen by others once it is locked
        yield Path(folder)


def _start(number: int, job: Path, events: queue.Queue) -> tuple[subprocess.Popen[str], threading.Thread]:
    """Start a worker and a thread that forwards what it reports; None marks its end."""
    here = str(Path(__file__).parents[2])
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([here, *[path or os.getcwd() for path in sys.path]]),  # a user's own model too
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "dynmia.shadow.worker", str(job)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(job / f"{number}.log").open("w"), text=True,
        env=environment,
    )  # fmt: skip

    def forward() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):  # a killed process may leave half a line
                events.put((number, json.loads(line)))
        process.wait()
        process.log = (job / f"{number}.log").read_text()  # type: ignore[attr-defined]
        events.put((number, None))

    forwarder = threading.Thread(target=forward, daemon=True)
    forwarder.start()
    return process, forwarder


def _failed(process: subprocess.Popen[str], model: int, command: str) -> None:
    """Raise the clear line for a worker that ended without a word."""
    if process.returncode and process.returncode < 0:
        why = f"was ended by signal {-process.returncode}"
    else:
        last = [line for line in process.log.splitlines() if line.strip()][-1:]  # type: ignore[attr-defined]
        why = f"failed ({last[0].strip() if last else f'exit code {process.returncode}'})"
    raise UserError(f"the process that trained model {model} {why}: continue from its last epoch by {command}")

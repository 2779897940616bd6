"""The processes that train on CPUs, and the same work as Ray tasks.

A process of the pool is ``python -m dynmia.shadow.workers FOLDER``: it reads model numbers from its input and reports
JSON lines. FOLDER holds the study and the pool as plain arrays; the images are memory-mapped, so that all processes
share one copy of them.

Of a Ray cluster only the driver reads and writes the run's folder, so the machines need no common file system. The pool
goes to each machine once, through Ray's object store, where the tasks read it without a copy. A task starts from the
model's saved state, sends what it saves to the driver through a queue, and returns the shard. If its worker is lost,
the driver starts the model again from the last state that came.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .. import errors
from ..errors import UserError, reason
from ..pool.pool import Pool
from ..store.folder import RunStore, continued_by, credit
from ..store.run import cores, hardware
from ..study import Study
from .shard import Job, keep_freed_memory, train_shard

ROOT = str(Path(__file__).parents[2])
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
AGAIN = 5.0  # seconds after which a worker is told again to end: code that catches every exception swallows that too
LOST = 5  # times that the worker of one model may be lost
MEND = "start one by `ray start --head` and give its HOST:PORT, or leave --address out for one on this machine"
PROBE = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address"]


def train_pool(job: Job, models: list[int]) -> None:
    """Train ``models`` in ``job.workers`` processes; a free process starts the next model at once.

    Raises:
        UserError: what stopped a worker; the others are ended and keep their last epoch.
    """
    workers = min(job.workers or cores(), len(models))
    events: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()  # no stop leaves it locked
    started: list[tuple[subprocess.Popen[str], threading.Thread]] = []
    waiting, flying = list(models), dict[int, int]()

    def next_model(number: int) -> None:
        flying.pop(number, None)
        if waiting and time.monotonic() < job.deadline:
            flying[number] = waiting.pop(0)
            with contextlib.suppress(BrokenPipeError):  # it has ended: its last event says why
                print(flying[number], file=started[number][0].stdin, flush=True)

    with scratch() as folder:
        try:
            job.pool.save(folder)
        except OSError as error:
            raise errors.disk_error(error, folder) from error
        about = dict(study=job.study.to_dict(), folder=str(job.store.folder.resolve()), classes=job.pool.classes,
                     fingerprint=job.store.manifest["fingerprint"], deadline=job.deadline)  # fmt: skip
        (folder / "job.json").write_text(json.dumps(about))
        try:
            try:
                for number in range(workers):
                    started.append(_start(number, folder, events))
                    started[-1][1].start()
            except OSError as error:
                raise UserError(
                    f"only {len(started)} of {workers} workers start ({error.strerror}): use fewer --workers."
                ) from error
            for number in range(workers):
                next_model(number)
            while flying:
                number, event = events.get()
                if "error" in event:
                    raise getattr(errors, event["kind"])(event["error"])
                elif "ended" in event:
                    if number in flying:
                        again = continued_by(job.store.manifest, job.store.folder)
                        what = f"the process that trained model {flying[number]} {event['ended']}"
                        raise UserError(f"{what}: continue from its last epoch by {again}")
                elif "free" in event:
                    if not event["free"]:
                        waiting.clear()  # the time is over
                    next_model(number)
                else:
                    job.report(event)
        finally:
            for process, _ in started:
                process.terminate()
            for process, forwarder in started:  # it ends with its process, and reads the log: before the folder goes
                while forwarder.is_alive():
                    forwarder.join(AGAIN)
                    process.terminate()


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


def _start(number: int, folder: Path, events: queue.SimpleQueue) -> tuple[subprocess.Popen[str], threading.Thread]:
    """Start a worker; the thread, to be started too, forwards what it reports, and how it ended."""
    path = os.pathsep.join([ROOT, *[path or os.getcwd() for path in sys.path]])  # a user's own model too
    log = folder / f"{number}.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "dynmia.shadow.workers", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=log.open("w"), text=True, env=os.environ | ONE_THREAD | {"PYTHONPATH": path},
    )  # fmt: skip

    def forward() -> None:
        for line in process.stdout or ():
            with contextlib.suppress(ValueError):  # a killed process may leave half a line
                events.put((number, json.loads(line)))
        code = process.wait()
        *_, last = [f"exit code {code}", *log.read_text().strip().splitlines()]
        events.put((number, {"ended": f"was ended by signal {-code}" if code < 0 else f"failed ({last.strip()})"}))

    return process, threading.Thread(target=forward, daemon=True)


def serve(folder: Path) -> None:
    """Be a worker: train what the input asks for, until it ends."""
    import torch._dynamo

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up: no lock, no half-written file stays
    torch.set_num_threads(1)
    keep_freed_memory()
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a user's own model prints goes to the log, not between the reports

    def report(event: dict) -> None:
        print(json.dumps(event), file=reports, flush=True)  # a dead parent ends the worker here, by a broken pipe

    about = json.loads((folder / "job.json").read_text())
    study = Study.from_dict(about["study"])
    store = RunStore(about["folder"], study, about["fingerprint"], {})
    job = Job(study, Pool.load(folder, about["classes"]), store, deadline=about["deadline"], report=report)
    models: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def listen() -> None:
        """Pass on what the parent asks for; where it has ended, end: the input is read between models only."""
        for line in os.fdopen(os.dup(0)):  # sys.stdin is closed at the end, which aborts where it is being read
            models.put(int(line))
        models.put(None)
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(AGAIN)

    threading.Thread(target=listen, daemon=True).start()
    for model in iter(models.get, None):
        try:
            report({"model": model, "free": train_shard(job, model)})
        except UserError as error:
            report({"model": model, "error": str(error), "kind": type(error).__name__})
            return


def train_model(
    study: Study, pool: Pool, model: int, device: str, seconds: float, saved: tuple | None, queue: Any
) -> tuple[tuple | None, str]:
    """The task: the shard, or None if the ``seconds`` were over before, and what machine it ran on."""
    deadline = time.monotonic() + seconds  # of this machine's clock
    torch.set_num_threads(1)
    keep_freed_memory()
    shards: list[tuple] = []
    store: Any = SimpleNamespace(  # what a task has in place of the run's folder
        finished=lambda model: False,
        locked=lambda model: contextlib.nullcontext(),  # the driver holds the lock
        load_state=lambda model: saved,
        save_state=lambda model, *state: queue.put((model, None, state)),  # waits for its arrival: part of saving
        save_shard=lambda model, *shard: shards.append(shard),
    )
    report = lambda event: queue.put((model, event, None))  # noqa: E731
    train_shard(Job(study, pool, store, device, deadline=deadline, report=report), model)
    return (shards[0] if shards else None), hardware(device)


def train_ray(job: Job, models: list[int], address: str | None = None) -> None:
    """Train ``models`` as tasks of one core each, and one GPU each if the device is cuda, until the deadline.

    ``address`` is HOST:PORT of a cluster or ``auto``; None takes RAY_ADDRESS, else starts one on this machine, of
    ``job.workers`` cores, that listens on the loopback address only and ends with the training. A UserError says that
    there is no Ray, cluster or such device, or that a worker was lost again and again; what has come is kept.
    """
    store = job.store
    with contextlib.ExitStack() as held:
        for model in models:
            held.enter_context(store.locked(model))
        mode = os.environ.get("RAY_AUTH_MODE", "")
        held.callback(os.environ.pop if not mode else os.environ.__setitem__, "RAY_AUTH_MODE", mode)  # of the next
        ray = connect(address or os.environ.get("RAY_ADDRESS"), job.workers or cores())
        held.callback(ray.shutdown)
        kind = "GPU" if job.device.startswith("cuda") else "CPU"
        capacity = lambda: int(ray.cluster_resources().get(kind, 0))  # noqa: E731
        if not (slots := capacity()):
            raise UserError(f"no machine of the Ray cluster has a {kind}: choose another --device.")
        queue = ray.util.queue.Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1})
        gpus = int(kind == "GPU")
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(train_model)  # Ray would retry with the old state
        shared, waiting, lost = ray.put(job.pool), list(models), Counter[int]()
        flying: dict[Any, int] = {}
        while (waiting or flying) and time.monotonic() < job.deadline:
            while waiting and len(flying) < max(1, capacity()):  # what can start now, when its seconds begin
                model, left = waiting.pop(0), job.deadline - time.monotonic()
                start = job.study, shared, model, job.device, left, store.load_state(model), queue
                flying[task.remote(*start)] = model
            ended, _ = ray.wait(list(flying), timeout=0.2)
            for model, event, state in queue.get_nowait_batch(queue.qsize()):
                if event:
                    job.report(event)
                elif not store.finished(model):
                    store.save_state(model, *state)
            for ref in ended:
                model = flying.pop(ref)
                try:
                    shard, machine = ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    lost[model] += 1
                    if lost[model] > LOST:
                        raise UserError(f"model {model} lost its worker {LOST + 1} times: {reason(error)}.") from error
                    waiting.append(model)
                    continue
                if shard:
                    credit(store, model, store.manifest | {"merged": [], "hardware": machine, "workers": slots})
                    store.save_shard(model, *shard)


def reach(address: str | None) -> None:
    """Raise a ``UserError`` if nothing listens at ``address``: where no cluster is, Ray itself waits for minutes."""
    if address and address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), 5).close()
        except (OSError, ValueError, OverflowError) as error:
            what = reason(error) if host and port.isdecimal() else "it is not of the form HOST:PORT"
            raise UserError(f"no Ray cluster answers at {address} ({what}): {MEND}.") from error


def connect(address: str | None, cpus: int) -> Any:
    """Connect to the cluster at ``address``, or start one if that is None; returns the module ``ray``."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # the latter: no warning
    if not address:
        # the loopback address only, on any system; the priority of this process, where Ray takes the lowest
        os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
    try:
        import ray.util.queue
    except ImportError as error:
        raise UserError("engine ray needs an extra: pip install 'dynmia[ray]', or leave --engine out.") from error
    path = [ROOT, os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    variables = ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    options: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR)
    options |= {} if address else dict(num_cpus=cpus, include_dashboard=False)
    try:
        if address and address != "auto":
            probe = subprocess.run([*PROBE, address], check=False, capture_output=True, timeout=30)
            if b"InvalidAuthToken" in probe.stderr:  # Ray by itself shows its token to no cluster that is named to it
                os.environ.setdefault("RAY_AUTH_MODE", "token")
                probe = subprocess.run([*PROBE, address], check=False, capture_output=True, timeout=30)
            probe.check_returncode()
            with contextlib.suppress(ImportError, AttributeError):  # it read the mode when it was imported
                ray._raylet.Config.initialize("")  # type: ignore[attr-defined]
                ray._raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]
        ray.init(address or "local", runtime_env={"env_vars": variables}, **options)
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        log = (getattr(error, "stderr", None) or b"").decode().strip().splitlines()  # of the probe: why it failed
        what = log[-1][:300] if log else reason(error)
        raise UserError(f"no Ray cluster answers at {address or 'this machine'} ({what}): {MEND}.") from error
    return ray


if __name__ == "__main__":
    try:
        serve(Path(sys.argv[1]))
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)

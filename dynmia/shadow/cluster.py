"""The same shards as Ray tasks, on this machine or on a cluster: ``dynmia train --engine ray --address HOST:PORT``.

Only the driver reads and writes the run's folder, so the machines need no common file system. The pool goes to each
machine once, through Ray's object store, where the tasks read it without a copy. A task starts from the model's saved
state, sends what it saves to the driver through a queue, and returns the shard. If its worker is lost, the driver
starts the model again from the last state that came.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..errors import UserError, reason
from ..pool.pool import Pool
from ..store.folder import RunStore
from ..store.merge import credit
from ..store.run import cores, hardware
from ..study import Study
from .shard import DeviceData, keep_freed_memory, train_shard

LOST = 5  # times that the worker of one model may be lost
MEND = "start one by `ray start --head` and give its HOST:PORT, or leave --address out for one on this machine"
PROBE = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address"]


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
    train_shard(study, pool, DeviceData.of(pool, device), model, store, report, deadline)
    return (shards[0] if shards else None), hardware(device)


def train_ray(
    study: Study, pool: Pool, store: RunStore, models: list[int], report: Any, device: str, deadline: float,
    address: str | None = None, workers: int | None = None,
) -> None:  # fmt: skip
    """Train ``models`` as tasks of one core each, and one GPU each if ``device`` is cuda, until ``deadline``.

    ``address`` is HOST:PORT of a cluster or ``auto``; None takes RAY_ADDRESS, else starts one on this machine, of
    ``workers`` cores, that listens on the loopback address only and ends with the training. A UserError says that there
    is no Ray, cluster or such device, or that a worker was lost again and again; what has come is kept.
    """
    with contextlib.ExitStack() as held:
        for model in models:
            held.enter_context(store.locked(model))
        mode = os.environ.get("RAY_AUTH_MODE", "")
        held.callback(os.environ.pop if not mode else os.environ.__setitem__, "RAY_AUTH_MODE", mode)  # of the next
        ray = connect(address or os.environ.get("RAY_ADDRESS"), workers or cores())
        held.callback(ray.shutdown)
        gpus = int(device.startswith("cuda"))
        capacity = lambda: int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0))  # noqa: E731
        if not (slots := capacity()):
            raise UserError(f"no machine of the Ray cluster has a {'GPU' if gpus else 'CPU'}: choose another --device.")
        queue = ray.util.queue.Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1})
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(train_model)  # Ray would retry with the old state
        shared, waiting, lost = ray.put(pool), list(models), Counter[int]()
        flying: dict[Any, int] = {}
        while (waiting or flying) and time.monotonic() < deadline:
            while waiting and len(flying) < max(1, capacity()):  # what can start now, when its seconds begin
                model, left = waiting.pop(0), deadline - time.monotonic()
                job = (study, shared, model, device, left, store.load_state(model), queue)
                flying[task.remote(*job)] = model
            ended, _ = ray.wait(list(flying), timeout=0.2)
            for model, event, state in queue.get_nowait_batch(queue.qsize()):
                if event:
                    report(event)
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
    reach(address)
    try:
        import ray.util.queue
    except ImportError as error:
        raise UserError("engine ray needs an extra: pip install 'dynmia[ray]', or leave --engine out.") from error
    path = [str(Path(__file__).parents[2]), os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
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

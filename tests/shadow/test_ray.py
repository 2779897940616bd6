"""Training as Ray tasks on a real cluster of two worker processes, one of which is killed in the middle."""

import builtins
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import LIMIT, assert_same_shards, train_quietly

from dynmia.cli import main
from dynmia.errors import UserError
from dynmia.shadow import run as engine
from dynmia.store.folder import read_manifest

# listen on, and connect to, the loopback address only; how a cluster asks its drivers for a token is left to Ray
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
CLUSTER = """
import os, sys
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
import ray
cluster = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(cluster.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


def words(study):
    """The study as options of the command line."""
    names = ("epochs", "checkpoint_every", "shadow_models", "pool_size", "batch_size")
    return [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(study, name)))]


def ray_train(study, folder, *more):
    """Start `dynmia train --engine ray` in a process of its own, in the folder above ``folder``."""
    command = [sys.executable, "-m", "dynmia.cli", "train", *words(study), "--device", "cpu", "--out", folder.name]
    return subprocess.Popen(
        [*command, "--engine", "ray", *more], cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=os.environ | LOOPBACK,
    )  # fmt: skip


def tasks_below(pid):
    """Process ids of the Ray workers that run a task, below the process ``pid``: pid -> start time."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue

    def below(child):
        return child == pid or (child in parents and below(parents[child]))

    return [child for child, name in names.items() if name.startswith("ray::train_model") and below(child)]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A home folder of these tests' own: Ray keeps the token there that a cluster asks for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def cluster():
    """(address, process) of a cluster of two cores on the loopback address."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | LOOPBACK,
    )  # fmt: skip
    yield process.stdout.readline().strip(), process
    process.communicate(timeout=LIMIT)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker by /proc")
@pytest.mark.slow("a Ray cluster that loses a worker")
def test_a_worker_is_killed_in_the_middle_and_the_run_equals_the_local_one(tiny, cluster, tmp_path):
    study = tiny.replace(epochs=80)
    driver = ray_train(study, tmp_path / "run", "--address", cluster[0])
    deadline = time.monotonic() + LIMIT
    while not list((tmp_path / "run").glob("*.state.safetensors")):  # a task has trained and sent its state
        assert driver.poll() is None, driver.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = tasks_below(cluster[1].pid)
    os.kill(workers[0], signal.SIGKILL)
    assert len(list((tmp_path / "run").glob("model-???.safetensors"))) < 4  # in the middle
    output, _ = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 0, output
    assert 1 <= len(workers) <= 2
    assert workers[0] not in tasks_below(cluster[1].pid)
    train_quietly(study, tmp_path / "local")
    assert_same_shards(tmp_path / "run", tmp_path / "local")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        path.name for path in (tmp_path / "local").iterdir()
    }
    merged = read_manifest(tmp_path / "run")["merged"]
    assert [(sorted(part["models"]), part["workers"]) for part in merged] == [([0, 1, 2, 3], 2)]


@pytest.mark.slow("starts a Ray cluster")
def test_parts_of_a_run_on_a_cluster_of_its_own(tiny, tiny_run, tmp_path):
    driver = ray_train(tiny, tmp_path / "run", "--workers", "2", "--models", "1,3", "--time-budget", "100s")
    output, _ = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 0, output
    assert "2 of 4 models finished" in output
    assert_same_shards(tmp_path / "run", tiny_run[0], [1, 3])


def test_a_budget_that_ends_before_the_workers_start_is_said_to_be_too_short(tiny, cluster, tmp_path):
    driver = ray_train(tiny, tmp_path / "run", "--address", cluster[0], "--time-budget", "0.1s", "--quiet")
    output, _ = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 2
    assert "time budget of 0.1 s was over before an epoch ended" in output


def test_without_the_extra_one_line_names_it(tiny, tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def no_ray(name, *rest):
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_ray)
    with pytest.raises(SystemExit) as stop:
        main(["train", *words(tiny), "--out", str(tmp_path), "--device", "cpu", "--engine", "ray", "--quiet"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "dynmia: engine ray needs an extra: pip install 'dynmia[ray]', or leave --engine out."
    ]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_a_bad_address_is_one_line_and_does_not_hang(tiny, tmp_path, address):
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"no Ray cluster answers at {address} \(.*`ray start --head`"):
        engine.train_part(tiny, out=tmp_path / "run", device="cpu", progress=False, engine="ray", address=address)
    assert time.monotonic() - started < 30


def test_what_listens_but_is_no_ray_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("dynmia.shadow.workers.PROBE", [sys.executable, "-c", "raise SystemExit('no token')"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"answers at {address} \(no token\)"):
            engine.train_part(tiny, out=tmp_path, device="cpu", progress=False, engine="ray", address=address)


def test_options_that_do_not_go_together_are_named(tiny, tmp_path):
    with pytest.raises(UserError, match="give it with --engine ray"):
        engine.train_part(tiny, out=tmp_path, address="auto")
    with pytest.raises(UserError, match="did you mean 'ray'"):
        engine.train_part(tiny, out=tmp_path, engine="rya")

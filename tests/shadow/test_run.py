import errno
import json
import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import numpy as np
import pytest
import torch
from helpers import LIMIT, Child, Stopped, assert_same_shards, stop_after, train_in_process, train_quietly

import dynmia
from dynmia.cli import main
from dynmia.errors import Diverged, StoreError, UserError
from dynmia.shadow import open_store, workers
from dynmia.shadow import run as engine
from dynmia.shadow.shard import Job, train_shard
from dynmia.store.folder import continued_by, read_sealed


@pytest.fixture
def no_process(monkeypatch):
    """Starting a training process is a failure."""

    def fail(*args):
        raise AssertionError("a training process was started")

    monkeypatch.setattr(workers, "_start", fail)


# --- interruption


@pytest.fixture(scope="module")
def slow(tiny, tmp_path_factory):
    """(study, folder, run) of a study that takes seconds, so that a signal comes before its end."""
    study, folder = tiny.replace(epochs=80), tmp_path_factory.mktemp("slow") / "run"
    return study, folder, train_quietly(study, folder)


@pytest.mark.slow("kills and continues training several times")
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(slow, tmp_path):
    moments = random.Random(1)
    for kill in range(3):
        child = Child(slow[0], tmp_path / "run", tmp_path / "scratch")
        child.wait_until_it_trains()
        time.sleep(moments.uniform(0, 0.1))
        child.end_by(signal.SIGKILL)
        if kill == 0:
            assert not (tmp_path / "run" / "run.nc").exists()  # the first kill came in time
    run = train_quietly(slow[0], tmp_path / "run")
    assert_same_shards(tmp_path / "run", slow[1])
    assert (run.phi.values == slow[2].phi.values).all()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.slow("a process that loads torch, is stopped while it trains, and goes on")
def test_a_stop_leaves_no_process_and_no_scratch_and_the_run_ends_with_the_same_bits(slow, tmp_path, name):
    child = Child(slow[0], tmp_path / "run", tmp_path / "scratch")
    child.wait_until_it_trains()
    if name != "SIGINT":  # Ctrl-C is sent to the whole group, the others to the parent
        child.process.send_signal(getattr(signal, name))
    output = child.end_by(signal.SIGINT) if name == "SIGINT" else child.process.communicate(timeout=LIMIT)[0]
    assert child.process.returncode != 0
    assert "KeyboardInterrupt" in output
    child.wait_until_the_group_is_empty()
    assert list((tmp_path / "scratch").glob("dynmia-*")) == []
    assert not (tmp_path / "run" / "run.nc").exists()
    train_quietly(slow[0], tmp_path / "run")
    assert_same_shards(tmp_path / "run", slow[1])


@pytest.mark.slow("a process that loads torch, is killed while it trains, and a run after it")
def test_processes_end_at_once_when_their_parent_is_killed_and_the_next_run_clears_its_scratch(
    tiny, tmp_path, own_model, monkeypatch
):
    body = "import time; time.sleep(1e4 * ('worker' in sys.argv[0]))"  # an epoch without end
    study = tiny.replace(model=own_model("own_endless", body), shadow_models=4)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=os.pathsep)
    child = Child(study, tmp_path / "run", tmp_path / "scratch")
    child.wait_until_it_trains()
    deadline = time.monotonic() + LIMIT
    while len(list((tmp_path / "run").glob("model-*.lock"))) < 2 and time.monotonic() < deadline:  # of both workers
        time.sleep(0.01)
    child.process.kill()
    child.process.communicate(timeout=LIMIT)
    child.wait_until_the_group_is_empty()
    (left,) = (tmp_path / "scratch").glob("dynmia-*")
    others = tmp_path / "scratch" / "dynmia-of-another-kind"
    others.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with workers.scratch() as mine, workers.scratch() as second:
        assert not left.exists()
        assert sorted((tmp_path / "scratch").glob("dynmia-*")) == sorted([mine, second, others])
    assert list((tmp_path / "scratch").glob("dynmia-*")) == [others]


SWALLOW = """import time
            if 'worker' in sys.argv[0]:
                open(f'ASLEEP-{os.getpid()}', 'w').close()
                try:
                    time.sleep(1e4)
                except SystemExit:
                    time.sleep(1e4)"""


@pytest.mark.slow("waits until a process is told twice")
def test_a_process_that_swallows_its_exit_is_told_again(tiny, tmp_path, own_model, monkeypatch):
    study = tiny.replace(model=own_model("own_swallowing", SWALLOW.replace("ASLEEP", str(tmp_path / "asleep"))))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=os.pathsep)
    child = Child(study, tmp_path / "run", tmp_path / "scratch")
    deadline = time.monotonic() + LIMIT
    while len(list(tmp_path.glob("asleep-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.process.send_signal(signal.SIGTERM)
    assert "KeyboardInterrupt" in child.process.communicate(timeout=LIMIT)[0]
    child.wait_until_the_group_is_empty()


def test_a_handler_of_the_caller_is_left_in_place():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with engine.ended_cleanly():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), engine.ended_cleanly():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_a_model_resumes_from_every_epoch_to_the_same_bits(tiny, tiny_run, tmp_path, epoch, monkeypatch):
    monkeypatch.setattr("dynmia.shadow.shard.SAVING", 1e9)  # saved after every epoch, however short
    with pytest.raises(Stopped):
        train_in_process(tiny, tmp_path, report=stop_after(epoch))
    assert not (tmp_path / "model-000.safetensors").exists()
    store = train_in_process(tiny, tmp_path)
    assert_same_shards(store.folder, tiny_run[0], [0])
    assert store.load_state(0) is None


def test_a_model_stopped_at_every_epoch_ends_with_the_same_bits(tiny, tiny_run, tmp_path):
    for epoch in (0, 1, 2, 3):
        with pytest.raises(Stopped):
            train_in_process(tiny, tmp_path, [2], stop_after(epoch))
    train_in_process(tiny, tmp_path, [2])
    assert_same_shards(tmp_path, tiny_run[0], [2])


SETTINGS = {
    "sgd": dict(optimizer="sgd", lr=0.05),
    "nesterov": dict(optimizer="sgd", lr=0.05, nesterov=True),
    "sgd-without-momentum": dict(optimizer="sgd", lr=0.05, momentum=0),
    "sam-sgd-cosine": dict(optimizer="sam-sgd", lr=0.05, schedule="cosine"),
    "sam-adamw": dict(optimizer="sam-adamw"),
    "augment": dict(augment=True),
    "bf16": dict(precision="bf16"),
    "batch-norm": dict(model="deep-cnn", optimizer="sam-sgd", lr=0.05),
    "wide-resnet": dict(model="wrn-10-1"),
    "balanced": dict(design="balanced"),
    "one-batch": dict(batch_size=1000),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_resuming_is_exact_with(tiny, tmp_path, setting):
    study = tiny.replace(**SETTINGS[setting])
    with pytest.raises(Stopped):
        train_in_process(study, tmp_path / "stopped", report=stop_after(2))
    train_in_process(study, tmp_path / "stopped")
    store = train_in_process(study, tmp_path / "whole")
    assert_same_shards(tmp_path / "stopped", tmp_path / "whole", [0])
    arrays, _ = store.load_shard(0)
    assert np.isfinite(arrays["phi"]).all()
    assert arrays["loss"][-1] < arrays["loss"][0]  # it learns


@pytest.mark.parametrize(
    "changes",
    [
        dict(seed=1), dict(pool_seed=1), dict(model="mlp"), dict(optimizer="sgd", lr=0.05), dict(lr=0.002),
        dict(schedule="cosine"), dict(momentum=0.8), dict(beta2=0.9), dict(weight_decay=0.5), dict(batch_size=8),
        dict(augment=True), dict(precision="bf16"), dict(optimizer="sam-adamw"), dict(design="balanced"),
    ],
    ids=lambda changes: "-".join(changes),
)  # fmt: skip
def test_phi_changes_with(tiny, tiny_run, tmp_path, changes):
    arrays, _ = train_in_process(tiny.replace(**changes), tmp_path).load_shard(0)
    assert (arrays["phi"][-1] != tiny_run[1].phi.values[-1, 0]).any()


def test_bf16_is_close_to_float32(tiny, tiny_run, tmp_path):
    phi = train_in_process(tiny.replace(precision="bf16"), tmp_path).load_shard(0)[0]["phi"]
    full = tiny_run[1].phi.values[:, 0]
    assert (phi[0] == full[0]).all()  # evaluation is in float32, and nothing is trained yet
    assert 0 < np.abs(phi - full).max() < 0.1 * np.ptp(full)


def test_rho_zero_is_the_base_optimizer(tiny, tiny_run, tmp_path):
    arrays, _ = train_in_process(tiny.replace(optimizer="sam-adamw", rho=0.0), tmp_path).load_shard(0)
    assert (arrays["phi"] == tiny_run[1].phi.values[:, 0]).all()


def test_models_of_a_population_differ_before_training(tiny_run):
    start = tiny_run[1].phi.sel(epoch=0)
    assert len({model.values.tobytes() for model in start}) == 4


# --- processes


def test_one_process_gives_the_same_bits_as_two(tiny, tiny_run, tmp_path):
    run = train_quietly(tiny, tmp_path / "run", workers=1)
    assert_same_shards(tmp_path / "run", tiny_run[0])
    assert run.attrs["workers"] == 1


def test_training_in_this_process_gives_the_same_bits(tiny, tiny_run, tmp_path):
    train_in_process(tiny, tmp_path, range(4))
    assert_same_shards(tmp_path, tiny_run[0])


@pytest.mark.slow("training processes, one of which is killed, and the run continued")
def test_a_killed_process_is_named_and_the_run_continues_to_the_same_bits(tiny, tiny_run, tmp_path, monkeypatch):
    started, start = [], workers._start
    monkeypatch.setattr(workers, "_start", lambda *args: started.append(start(*args)) or started[-1])

    def kill_the_first():
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline and not (tmp_path / "run" / "model-000.state.safetensors").exists():
            time.sleep(0.001)
        os.kill(started[0][0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    with pytest.raises(UserError, match=r"signal 9: continue from its last epoch by dynmia train .* --out /"):
        train_quietly(tiny, tmp_path / "run")
    killer.join()
    assert [process.poll() is None for process, _ in started] == [False, False]
    train_quietly(tiny, tmp_path / "run")
    assert_same_shards(tmp_path / "run", tiny_run[0])


OWN = """
import os, sys, torch
def net(shape, classes):
    return Net(shape[0] * shape[1] * shape[2], classes)
class Net(torch.nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.drop, self.linear = torch.nn.Dropout(0.2), torch.nn.Linear(inputs, classes)
    def forward(self, x):
        if self.training:
            BODY
        return self.linear(self.drop(x.flatten(1)))
"""


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """own_model(name, what to do in a training step) -> the study's name for a model in a module of the user."""

    def make(name, body="pass"):
        (tmp_path / "modules").mkdir(exist_ok=True)
        (tmp_path / "modules" / f"{name}.py").write_text(OWN.replace("BODY", body))
        monkeypatch.syspath_prepend(tmp_path / "modules")
        return f"{name}:net"

    return make


@pytest.mark.heavy("trains in two processes that load torch")
def test_own_data_and_own_model_train_in_processes(tiny, tmp_path, make_npz, own_model):
    study = tiny.replace(dataset=str(make_npz()), model=own_model("own_model"), pool_size=None)
    run = train_quietly(study, tmp_path / "run")
    assert dict(run.sizes) == {"epoch": 3, "model": 4, "sample": 60}
    assert float(run.train_accuracy.sel(epoch=4).mean()) > float(run.train_accuracy.sel(epoch=0).mean())
    assert_same_shards(train_in_process(study, tmp_path / "here", range(4)).folder, tmp_path / "run")


def test_own_model_with_dropout_resumes_to_the_same_bits(tiny, tmp_path, own_model):
    study = tiny.replace(model=own_model("own_dropout"))
    train_in_process(study, tmp_path / "whole")
    with pytest.raises(Stopped):
        train_in_process(study, tmp_path / "stopped", report=stop_after(2))
    train_in_process(study, tmp_path / "stopped")
    assert_same_shards(tmp_path / "stopped", tmp_path / "whole", [0])


def test_another_code_of_an_own_model_is_another_study(tiny, tmp_path, own_model):
    study = tiny.replace(model=own_model("own_edited"))
    open_store(study, out=tmp_path / "run", device="cpu")
    own_model("own_edited", "x = 2 * x")
    with pytest.raises(StoreError, match="differs in the data or the model's code"):
        open_store(study, out=tmp_path / "run", device="cpu")


def test_an_exception_in_a_process_is_shown_in_one_line(tiny, tmp_path, own_model):
    body = "if 'worker' in sys.argv[0]: raise RuntimeError('no more')"  # where the trial does not see it
    study = tiny.replace(model=own_model("own_failing", body))
    with pytest.raises(UserError, match=r"trained model \d failed \(RuntimeError: no more\)"):
        train_quietly(study, tmp_path / "run", workers=1)


@pytest.mark.slow("trains in two processes that load torch")
def test_an_own_model_may_print(tiny, tmp_path, own_model, monkeypatch):
    study = tiny.replace(model=own_model("own_printing", "print('hello')"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=os.pathsep)
    child = Child(study, tmp_path / "run", tmp_path / "scratch")  # a child, because a hang must end
    try:
        output, _ = child.process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        child.end_by(signal.SIGKILL)
        pytest.fail("training hangs")
    assert child.process.returncode == 0, output


@pytest.mark.parametrize("workers", [0, -2, 1025, 10**9])
def test_a_number_of_workers_that_no_machine_has_is_refused(tiny, tmp_path, no_process, workers):
    with pytest.raises(UserError, match=rf"workers is {workers}: it must be at least 1 and at most 1024"):
        train_quietly(tiny, tmp_path / "run", workers=workers)
    assert not (tmp_path / "run").exists()


def test_a_system_that_starts_no_more_processes_is_named(tiny, tmp_path, monkeypatch):
    def full(*args):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(workers, "_start", full)
    with pytest.raises(UserError, match=r"only 0 of 2 workers start \(Resource .*: use fewer --workers"):
        train_quietly(tiny, tmp_path / "run")


def test_a_mask_larger_than_the_memory_is_refused(tiny, tmp_path, monkeypatch):
    message = "shadow_models 99998 x pool_size 120 is more than the memory holds: reduce one of them"

    def full(*args):
        raise MemoryError

    for memory in (1e8, math.inf):  # where the system does not say, numpy does
        monkeypatch.setattr(engine, "memory", lambda memory=memory: memory)
        if memory == math.inf:
            monkeypatch.setattr(engine, "make_pool", full)
        with pytest.raises(UserError, match=message):
            open_store(tiny.replace(shadow_models=99998), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_command_that_continues_works_when_pasted(tiny, tmp_path, make_npz, monkeypatch):
    (tmp_path / "my data").mkdir()
    dataset = make_npz("it's own.npz").rename(tmp_path / "my data" / "it's own.npz")
    study = tiny.replace(dataset=str(dataset), pool_size=None)
    store = open_store(study, out=tmp_path / "o'ne run", device="cpu")[2]
    words = shlex.split(continued_by(store.manifest, store.folder))
    assert words[:2] == ["dynmia", "train"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*words[1:], "--models", "2", "--device", "cpu", "--workers", "1", "--quiet"])
    assert store.missing() == [0, 1, 3]


# --- divergence


def test_a_diverging_model_is_named_with_its_settings(tiny, tmp_path):
    study = tiny.replace(optimizer="sgd", lr=1e6)
    with pytest.raises(Diverged, match=r"model 0 diverged in epoch \d \(sgd, lr 1000000\.0, momentum"):
        train_in_process(study, tmp_path)


def test_divergence_in_the_very_last_step_is_noticed(tiny, tmp_path):
    study = tiny.replace(optimizer="sgd", lr=1e30, epochs=1, checkpoint_every=1, batch_size=1000)
    with pytest.raises(Diverged, match="model 0 diverged"):
        train_in_process(study, tmp_path)


def test_divergence_in_a_process_keeps_the_finished_shards(tiny, tmp_path, own_model):
    poison = tmp_path / "poison"
    study = tiny.replace(
        model=own_model("own_poisoned", f"x = x * (float('nan') if os.path.exists('{poison}') else 1)")
    )
    train_in_process(study, tmp_path / "run", [0, 1])
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    poison.touch()
    with pytest.raises(Diverged, match=r"model [23] diverged in epoch 1 .*lower lr; finished shards are kept"):
        train_quietly(study, tmp_path / "run")
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert {name: after[name] for name in before} == before
    assert not (tmp_path / "run" / "model-002.safetensors").exists()


def test_a_model_without_any_sample_is_refused(tiny, tmp_path):
    study = tiny.replace(pool_size=4, seed=3)  # draws no sample for model 3
    with pytest.raises(UserError, match="pool_size"):
        train_in_process(study, tmp_path, [3])


# --- the disk


def damage_flip(path, folder):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": (damage_flip, "was altered"),
    "truncated": (lambda path, folder: path.write_bytes(path.read_bytes()[:-100]), "is truncated"),
    "empty": (lambda path, folder: path.write_bytes(b""), "is truncated"),
    "of-another-model": (lambda path, folder: shutil.copy(path, folder / path.name.replace("1", "3")), "belongs to"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_stops_before_any_work(tiny, tmp_path, no_process, damage):
    with pytest.raises(Stopped):
        train_in_process(tiny, tmp_path, [1], stop_after(2))
    change, words = DAMAGES[damage]
    change(tmp_path / "model-001.state.safetensors", tmp_path)
    with pytest.raises(StoreError, match=rf"model-00[13]\.state\.safetensors {words}.*same command"):
        train_quietly(tiny, tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(tiny, tiny_run, tmp_path, no_process, damage):
    shutil.copytree(tiny_run[0], tmp_path / "run")
    change, words = DAMAGES[damage]
    change(tmp_path / "run" / "model-001.safetensors", tmp_path / "run")
    with pytest.raises(StoreError, match=rf"model-00[13]\.safetensors {words}.*same command"):
        train_quietly(tiny, tmp_path / "run")


def test_a_deleted_shard_is_made_anew_with_the_same_bits(tiny, tiny_run, tmp_path):
    shutil.copytree(tiny_run[0], tmp_path / "run")
    (tmp_path / "run" / "model-001.safetensors").unlink()
    train_quietly(tiny, tmp_path / "run")
    assert_same_shards(tmp_path / "run", tiny_run[0])


def test_a_finished_run_is_not_trained_again(tiny, tiny_run, no_process):
    folder, run = tiny_run
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert train_quietly(tiny, folder).identical(run)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_finished_run_holds_nothing_but_shards_manifest_and_result(tiny_run):
    shards = [f"model-{model:03d}.safetensors" for model in range(4)]
    assert sorted(os.listdir(tiny_run[0])) == ["manifest.json", *shards, "run.nc"]


def test_the_folder_of_another_study_is_refused_before_any_work(tiny, tiny_run, no_process):
    with pytest.raises(StoreError, match=r"differs in seed \(0 there, 1 here\)"):
        train_quietly(tiny.replace(seed=1), tiny_run[0])


def test_a_folder_below_a_file_is_refused(tiny, tmp_path, no_process):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a part of the path is a file"):
        train_quietly(tiny, tmp_path / "file" / "run")


def test_the_default_folder_is_named_after_the_study(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, store = open_store(tiny, device="cpu")
    assert str(store.folder) == os.path.join("runs", f"digits-cnn-adamw-{store.identity[:8]}")
    assert (tmp_path / store.folder / "manifest.json").exists()


# --- the run


def test_dimensions_types_and_coordinates(tiny, tiny_run):
    run = tiny_run[1]
    expected = {
        "phi": (("epoch", "model", "sample"), "float32"),
        "keep": (("model", "sample"), "bool"),
        "label": (("sample",), "int64"),
        "train_accuracy": (("epoch", "model"), "float64"),
        "test_accuracy": (("epoch", "model"), "float64"),
        "seconds": (("model",), "float64"),
    }
    assert {name: (run[name].dims, str(run[name].dtype)) for name in run} == expected
    assert dict(run.sizes) == {"epoch": 3, "model": 4, "sample": 120}
    assert run.epoch.values.tolist() == tiny.checkpoints
    assert run.model.values.tolist() == [0, 1, 2, 3]


def test_mask_labels_and_samples_are_those_of_the_pool(tiny, tiny_run, tmp_path):
    _, pool, _ = open_store(tiny, out=tmp_path, device="cpu")
    run = tiny_run[1]
    assert (run.keep.values == pool.keep).all()
    assert (run.label.values == pool.labels).all()
    assert (run.sample.values == pool.sample_id).all()


def test_train_accuracy_is_that_of_the_members(tiny_run):
    run = tiny_run[1]
    # phi > 0 means p > 1/2, so the top class is right; on the members alone this is a lower bound
    right = ((run.phi > 0) & run.keep).sum("sample") / run.keep.sum("sample")
    assert (right <= run.train_accuracy + 1e-12).all()
    members = run.keep.sum("sample") * run.train_accuracy
    np.testing.assert_allclose(members, members.round(), atol=1e-9)


def test_attributes_say_what_was_run_where_and_with_what(tiny, tiny_run):
    folder, run = tiny_run
    manifest = json.loads((folder / "manifest.json").read_text())
    assert dynmia.study_of(run) == tiny.resolve("cpu")
    assert run.attrs["identity"] == tiny.resolve("cpu").identity(run.attrs["fingerprint"]) == manifest["identity"]
    assert {"python", "dynmia", "torch", "numpy", "xarray"} <= set(json.loads(run.attrs["versions"]))
    assert run.attrs["device"] == "cpu"
    assert run.attrs["workers"] == 2
    assert "cores" in run.attrs["hardware"]
    assert 0 < run.attrs["wall_time_s"] == pytest.approx(float(run.seconds.sum()) / 2, abs=0.06)
    assert time.strptime(run.attrs["created"], "%Y-%m-%d %H:%M UTC")
    assert run.attrs["title"] == "digits-cnn-adamw"


def test_the_command_names_what_differs_from_the_default(tiny_run):
    words = tiny_run[1].attrs["command"].split()
    assert words[:2] == ["dynmia", "train"]
    options = dict(zip(words[2::2], words[3::2]))
    assert options == {
        "--dataset": "digits", "--model": "cnn", "--optimizer": "adamw", "--epochs": "4", "--shadow-models": "4",
        "--pool-size": "120", "--batch-size": "16", "--precision": "float32",
    }  # fmt: skip


def test_seconds_add_up_over_interruptions(tiny, tmp_path):
    with pytest.raises(Stopped):
        train_in_process(tiny, tmp_path, report=stop_after(3))
    stopped = read_sealed(tmp_path / "model-000.state.safetensors")[1]["seconds"]
    _, meta = train_in_process(tiny, tmp_path).load_shard(0)
    assert meta["seconds"] > stopped > 0


@pytest.mark.heavy("trains in two processes that load torch")
def test_progress_counts_every_epoch_once(tiny, tmp_path, capsys):
    with pytest.raises(Stopped):
        train_in_process(tiny, tmp_path, [1], stop_after(2))
    train_quietly(tiny, tmp_path, progress=True)
    assert "16/16" in capsys.readouterr().err  # 4 models, 4 epochs


# --- CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_cuda_gives_the_attack_results_of_the_cpu(tiny, tiny_run, tmp_path, precision):
    run = dynmia.train(tiny.replace(precision=precision), out=tmp_path / "run", device="cuda", progress=False)
    assert run.attrs["device"].startswith("cuda")
    for epoch in tiny.checkpoints:
        pair = run.phi.sel(epoch=epoch).values.ravel(), tiny_run[1].phi.sel(epoch=epoch).values.ravel()
        assert np.corrcoef(*pair)[0, 1] > 0.98
    planes = [dynmia.vulnerability_plane(each, "bayes") for each in (run, tiny_run[1])]
    advantages = [float((plane.tpr - plane.fpr).sel(epoch=4).mean()) for plane in planes]
    assert advantages[0] == pytest.approx(advantages[1], abs=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_cuda_resumes_close_to_the_uninterrupted_run(tiny, tmp_path):
    def shard(folder):
        study, pool, store = open_store(tiny, out=folder, device="cuda")
        if folder.name == "stopped":
            with pytest.raises(Stopped):
                train_shard(Job(study, pool, store, "cuda", report=stop_after(2)), 0)
        train_shard(Job(study, pool, store, "cuda"), 0)
        return store.load_shard(0)[0]["phi"]

    # some CUDA kernels add in no fixed order
    np.testing.assert_allclose(shard(tmp_path / "stopped"), shard(tmp_path / "whole"), atol=0.05)

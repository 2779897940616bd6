"""What test files share: small planes and runs, one clear line, the command line, trainings that are stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import dynmia
from dynmia import Study, UserError
from dynmia.cli import main
from dynmia.pool.pool import draw_keep
from dynmia.shadow import open_store
from dynmia.shadow.shard import Job, train_here
from dynmia.store.folder import read_sealed

ROOT = Path(__file__).resolve().parents[1]
LOW, MID, HIGH = 0, 5, 10  # flagged of 10 models


def plane_of(tp, fp, every=2, models=10):
    """A plane from counts (epoch, sample) of `models` in- and out-models a sample."""
    tp, fp = np.asarray(tp), np.asarray(fp)
    dims = ("epoch", "sample")
    plane = xr.Dataset(
        {"tp": (dims, tp), "fp": (dims, fp), "tpr": (dims, tp / models), "fpr": (dims, fp / models)},
        coords={"epoch": every * np.arange(len(tp)), "sample": np.arange(tp.shape[1])},
    )
    size = "sample", np.full(tp.shape[1], models)
    return plane.assign(advantage=plane.tpr - plane.fpr, n_in=size, n_out=size)


def path_of(text, every=2):
    """A plane from paths, one row a checkpoint: V is vulnerable, anything else is not."""
    tp = [[HIGH if letter == "V" else LOW for letter in row] for row in text.split()]
    return plane_of(tp, np.zeros_like(tp), every)


def random_plane(seed, samples=30, epochs=4):
    rng = np.random.default_rng(seed)
    return plane_of(rng.integers(0, 11, (epochs, samples)), rng.integers(0, 11, (epochs, samples)))


def as_run(phi, keep):
    epochs, models, samples = phi.shape
    study = Study(shadow_models=models, epochs=max(1, epochs - 1), checkpoint_every=1)
    accuracy = ("epoch", "model"), np.full((epochs, models), 0.5)
    return xr.Dataset(
        {
            "phi": (("epoch", "model", "sample"), phi),
            "keep": (("model", "sample"), keep),
            "label": ("sample", np.arange(samples) % 10),
            "train_accuracy": accuracy,
            "test_accuracy": accuracy,
        },
        coords={"epoch": np.arange(epochs), "model": np.arange(models), "sample": np.arange(samples)},
        attrs={"study": json.dumps(study.to_dict())},
    )


def run_of_four_checkpoints(samples=60, design="bernoulli"):
    rng = np.random.default_rng(0)
    keep = draw_keep(20, samples, design)
    phi = np.stack([rng.normal(0, 1, keep.shape) + strength * keep for strength in (0, 3, 2, 4)])
    accuracy = ("epoch", "model"), rng.random((4, 20))
    run = as_run(phi, keep).assign(train_accuracy=accuracy, test_accuracy=accuracy)
    study = Study(shadow_models=20, epochs=6)
    return run.assign_coords(epoch=[0, 2, 4, 6]).assign_attrs(study=json.dumps(study.to_dict()))


def signal_run(models=20, samples=70, strengths=(0.0, 1.0, 2.0), design="bernoulli", seed=0):
    rng = np.random.default_rng(seed)
    keep = draw_keep(models, samples, design, seed)
    phi = np.stack([rng.normal(0, 1, keep.shape) + strength * keep for strength in strengths])
    return as_run(phi, keep)


def run_with(strengths, samples=150, seed=0):
    """Gaussian phi whose members lie `strength` higher, one strength a checkpoint."""
    rng = np.random.default_rng(seed)
    keep = draw_keep(20, samples, "bernoulli", seed)
    susceptible = rng.uniform(0, 2, samples)
    phi = np.stack([rng.normal(0, 1, keep.shape) + strength * susceptible * keep for strength in strengths])
    epochs = 2 * np.arange(len(strengths))
    accuracy = ("epoch", "model"), rng.random((len(strengths), 20))
    study = Study(shadow_models=20, epochs=int(epochs[-1]), seed=seed)
    return xr.Dataset(
        {
            "phi": (("epoch", "model", "sample"), phi.astype(np.float32), {"long_name": "logit-scaled confidence"}),
            "keep": (("model", "sample"), keep, {"long_name": "sample is in the model's training set"}),
            "label": ("sample", np.arange(samples) % 10),
            "train_accuracy": accuracy,
            "test_accuracy": accuracy,
            "seconds": ("model", np.ones(20)),
        },
        coords={"epoch": epochs, "model": np.arange(20), "sample": np.arange(samples)},
        attrs={"study": json.dumps(study.to_dict()), "format": 1},
    )


STRENGTHS = (0, 0.5, 1, 2, 3, 4)


ACCURACY = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def run_that_fits(strengths=STRENGTHS, accuracy=ACCURACY, held_out=None, every=2, samples=200, seed=0, fresh=0):
    """Members' phi lies `strength` times the sample's susceptibility higher; `fresh` seeds the noise only."""
    keep = draw_keep(20, samples, "bernoulli", seed)
    susceptible = np.random.default_rng(seed).uniform(0, 2, samples)
    noise = np.random.default_rng([seed, fresh, 1]).normal(0, 1, keep.shape)  # the same at every checkpoint
    phi = np.stack([noise + strength * susceptible * keep for strength in strengths])
    train = np.repeat(np.array(accuracy)[:, None], 20, 1)
    held_out = train / 2 if held_out is None else np.repeat(np.array(held_out)[:, None], 20, 1)
    epochs = every * np.arange(len(strengths))
    return xr.Dataset(
        {
            "phi": (("epoch", "model", "sample"), phi), "keep": (("model", "sample"), keep),
            "label": ("sample", np.arange(samples) % 10),
            "train_accuracy": (("epoch", "model"), train), "test_accuracy": (("epoch", "model"), held_out),
        },
        coords={"epoch": epochs, "model": np.arange(20), "sample": np.arange(samples)},
        attrs={"study": json.dumps(Study(epochs=int(epochs[-1])).to_dict()), "title": "digits-cnn-adamw"},
    )  # fmt: skip


def assert_one_clear_line(call, parts):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert [part for part in parts if part not in message] == [], message


TINY_WORDS = ["--epochs", "2", "--checkpoint-every", "1", "--shadow-models", "4", "--pool-size", "100"]


def run_cli(capsys, *words):
    """Exit code, output and errors of one command line."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def bad(capsys, *words):
    """The one line of a command that fails by bad input."""
    code, out, err = run_cli(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


LIMIT = 120  # seconds after which a child counts as hung


TRAIN = """
import json, sys, dynmia
dynmia.train(dynmia.Study.from_dict(json.loads(sys.argv[1])), out=sys.argv[2], device="cpu", workers=2, progress=False)
"""


class Stopped(Exception):
    pass


def stop_after(epoch):
    """A report that ends training as a crash would, right after the state of `epoch` was saved."""

    def report(event):
        if event["epoch"] == epoch:
            raise Stopped

    return report


def train_in_process(study, folder, models=(0,), report=lambda event: None):
    study, pool, store = open_store(study, out=folder, device="cpu")
    train_here(Job(study, pool, store, report=report), models)
    return store


def train_quietly(study, folder, workers=2, progress=False):
    return dynmia.train(study, out=folder, device="cpu", workers=workers, progress=progress)


def assert_same_shards(folder, other, models=range(4)):
    for model in models:
        first, second = (read_sealed(root / f"model-{model:03d}.safetensors")[0] for root in (folder, other))
        assert first.keys() == second.keys()
        for name in first:
            assert first[name].tobytes() == second[name].tobytes(), (model, name)


STOPS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP  # a job in the background ignores the first, nohup the last


class Child:
    """A training in a process group of its own."""

    def __init__(self, study, folder, scratch):
        scratch.mkdir(exist_ok=True)
        self.folder, self.scratch, self.seen = folder, scratch, self.files(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, json.dumps(study.to_dict()), str(folder)],
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"TMPDIR": str(scratch)},
            preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in STOPS],
        )  # fmt: skip

    @staticmethod
    def files(folder):
        return {(path.name, path.stat().st_ino) for path in folder.glob("model-*")} if folder.exists() else set()

    def wait_until_it_trains(self):
        deadline = time.monotonic() + LIMIT
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if self.files(self.folder) - self.seen:
                    return
            except FileNotFoundError:  # a state was replaced or dropped between listing and looking
                return
            time.sleep(0.002)
        raise AssertionError(f"no model was trained: {self.process.communicate(timeout=LIMIT)[0]}")

    def end_by(self, number):
        os.killpg(self.process.pid, number)
        output, _ = self.process.communicate(timeout=LIMIT)
        if number == signal.SIGKILL:  # on busy cores a process that is killed holds its lock for a moment
            self.wait_until_the_group_is_empty()
        return output

    def wait_until_the_group_is_empty(self):
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.01)
        raise AssertionError("training processes were left behind")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def states_saved(monkeypatch):
    """Save the state after every epoch, however short."""
    monkeypatch.setattr("dynmia.shadow.shard.SAVING", 1e9)

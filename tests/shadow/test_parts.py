"""Runs in parts at their edges: the command line, damaged states, a full disk, two processes on one run."""

import resource
import subprocess
import sys

import pytest
from helpers import (
    LIMIT,
    TINY_WORDS,
    Stopped,
    assert_same_shards,
    bad,
    contents,
    run_cli,
    states_saved,
    stop_after,
    train_in_process,
)

from dynmia import Study
from dynmia.errors import StoreError
from dynmia.shadow import run as engine
from dynmia.store import folder as store
from dynmia.store.folder import read_sealed, write_sealed

TRAIN = ["train", *TINY_WORDS, "--quiet", "--device", "cpu"]


@pytest.fixture
def in_flight(tiny, tmp_path, monkeypatch):
    """The folder of a run whose model 0 has stopped after epoch 2."""
    states_saved(monkeypatch)
    with pytest.raises(Stopped):
        train_in_process(tiny, tmp_path / "run", report=stop_after(2))
    return tmp_path / "run"


# --- command line


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--models", ""], "the value after '--models' is empty"),
        (["--models", "4"], "model 4 does not exist: this study has models 0 to 3"),
        (["--models", "0-99999999999"], "does not exist"),
        (["--models", "1,,2"], "write numbers and ranges"),
        (["--models", "two"], "for example 0-4 or 0,3,7-9"),
        (["--time-budget", ""], "is empty"),
        (["--time-budget", "soon"], "for example 9m, 1h30m or 90s"),
        (["--time-budget", "0"], "more than 0"),
        (["--time-budget", "1m1h"], "for example 9m"),
        (["--time-budget", "0.001s"], "was over before an epoch ended: use a longer one"),
    ],
)
def test_a_bad_part_is_one_line(capsys, tmp_path, options, hint):
    assert hint in bad(capsys, *TRAIN, "--out", tmp_path / "run", *options)


@pytest.mark.slow("several commands, each of which loads torch")
def test_parts_of_a_run_by_the_command_line(capsys, tmp_path):
    command = [*TRAIN, "--out", tmp_path / "run", "--workers", "1"]
    code, out, _ = run_cli(capsys, *command, "--models", "2,0", "--save", tmp_path / "run.nc")
    assert code == 0
    assert "2 of 4 models finished" in out
    assert "all of --models 2,0 are" in out
    assert "nothing written to" in out
    assert not (tmp_path / "run.nc").exists()
    code, out, _ = run_cli(capsys, "status", tmp_path / "run")
    assert [line.split()[2] for line in out.splitlines()[:4]] == ["finished", "not", "finished", "not"]
    code, out, _ = run_cli(capsys, *command, "--models", "0-3", "--time-budget", "1h", "--save", tmp_path / "run.nc")
    assert "4 models, 3 checkpoints" in out
    assert (tmp_path / "run.nc").exists()


def test_merging_by_the_command_line(capsys, tmp_path):
    study = Study(epochs=2, checkpoint_every=1, shadow_models=4, pool_size=100)
    for name, models in (("a", [0, 1]), ("b", [2, 3])):
        train_in_process(study, tmp_path / name, models)
    code, out, _ = run_cli(capsys, "merge", tmp_path / "whole", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'whole'}: 4 of 4 models finished; dynmia train")
    assert "is not a run folder" in bad(capsys, "merge", tmp_path / "whole", tmp_path / "nowhere")


# --- states that are damaged, of an older form, or dropped while they are read


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_state_stops_before_training_and_nothing_else_changes(tiny, in_flight, damage):
    state = in_flight / "model-000.state.safetensors"
    content = bytearray(state.read_bytes())
    content[-5] ^= 1
    state.write_bytes(content if damage == "flip" else content[:-50])
    before = contents(in_flight)
    with pytest.raises(StoreError, match=r"model-000\.state.*(was altered|is truncated)"):
        engine.train_part(tiny, out=in_flight, device="cpu", workers=1, progress=False)
    after = contents(in_flight)
    assert {name: after[name] for name in before} == before


def test_a_state_in_parts_as_an_older_version_wrote_it_is_named(tmp_path):
    write_sealed(tmp_path / "model-000.state.safetensors", {}, {"parts": 3, "tag": "0123456789ab"})
    with pytest.raises(StoreError, match="lies in several parts, a form that this dynmia does not read: delete it"):
        read_sealed(tmp_path / "model-000.state.safetensors")


def test_a_state_that_is_dropped_while_it_is_read_is_none(tiny, in_flight, monkeypatch):
    _, _, ours = engine.open_store(tiny, out=in_flight, device="cpu")
    assert ours.load_state(0)[1]["epoch"] == 2

    def ended(path):
        ours.state(0).unlink()  # the model ends between our two looks
        return read_sealed(path)

    monkeypatch.setattr(store, "read_sealed", ended)
    assert ours.load_state(0) is None


# --- a full disk, and two processes at once


@pytest.mark.slow("a process on a file system that fills, then the run from there")
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_to_the_same_bits(tiny, tiny_run, tmp_path):
    """A limit on the size of files answers as a full disk does: a short write, then an error."""
    words = ["train", "--epochs", "4", "--checkpoint-every", "2", "--shadow-models", "4", "--pool-size", "120"]
    words += ["--batch-size", "16", "--out", str(tmp_path / "run"), "--device", "cpu", "--workers", "1", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "dynmia.cli", *words], capture_output=True, text=True, timeout=LIMIT, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("dynmia: cannot write ")
    assert "the file-size limit is reached: raise it (ulimit -f); the same command continues" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "run").glob(".*"))  # no half-written file
    engine.train(tiny, out=tmp_path / "run", device="cpu", workers=1, progress=False)
    assert_same_shards(tmp_path / "run", tiny_run[0])


@pytest.mark.slow("two processes that load torch and train")
def test_of_two_processes_on_one_run_one_trains_and_the_other_says_why_it_does_not(tiny, tmp_path):
    study = tiny.replace(epochs=20)
    words = ["train", "--epochs", "20", "--checkpoint-every", "2", "--shadow-models", "4", "--pool-size", "120"]
    words += ["--batch-size", "16", "--out", str(tmp_path / "run"), "--device", "cpu", "--workers", "1", "--quiet"]
    processes = [
        subprocess.Popen([sys.executable, "-m", "dynmia.cli", *words], stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    errors = [process.communicate(timeout=LIMIT)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert set(codes) <= {0, 2}
    assert 0 in codes or all("is being trained by another process" in error for error in errors)
    for code, error in zip(codes, errors):
        assert code == 0 or (error.count("\n") == 1 and "is being trained by another process: wait for it" in error)
    engine.train(study, out=tmp_path / "run", device="cpu", workers=2, progress=False)
    train_in_process(study, tmp_path / "alone", range(4))
    assert_same_shards(tmp_path / "run", tmp_path / "alone")
    assert not list((tmp_path / "run").glob("*.lock"))

"""Training in parts: time budgets, some models only, merging, locks, kill -9 at any moment.

The full form of the last: DYNMIA_KILLS=30 python -m pytest tests/shadow/test_resume.py -k killed
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import Child, Stopped, assert_same_shards, contents, states_saved, stop_after, train_in_process

from dynmia import cli
from dynmia.errors import StoreError, UserError
from dynmia.shadow import run as engine
from dynmia.shadow.shard import Job, train_shard
from dynmia.store import folder as store
from dynmia.store.folder import TEMPORARY, RunStore, merge, read_manifest

# --- time budget and models


@pytest.mark.heavy("trains until budgets end, several times")
def test_a_time_budget_stops_cleanly_and_later_calls_end_the_run(tiny, tiny_run, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"0\.01 s was over before an epoch ended: use a longer one"):
        engine.train_part(tiny, out=folder, device="cpu", workers=2, time_budget=0.01, progress=False)
    assert not list(folder.glob("model-*.safetensors"))
    pool, whole = engine.train_part(tiny, out=folder, device="cpu", workers=2, time_budget=100, progress=False)
    assert whole.missing() == []
    engine.finish(pool, whole)
    assert_same_shards(folder, tiny_run[0])


def test_a_shard_stops_before_its_deadline_with_its_state_saved(tiny, tiny_run, tmp_path, monkeypatch):
    study, pool, run = engine.open_store(tiny, out=tmp_path / "run", device="cpu")
    monkeypatch.setattr("time.time", lambda: 0.0)  # a clock that was set back
    assert not train_shard(Job(study, pool, run, deadline=time.monotonic() - 1), 0)
    assert run.load_state(0)[1]["epoch"] == 0
    clock = iter([0.0, 0.0, 1e9])  # the third epoch would end too late
    monkeypatch.setattr("dynmia.shadow.shard.time.monotonic", lambda: next(clock))
    assert not train_shard(Job(study, pool, run, deadline=1e6), 0)
    assert 0 < run.load_state(0)[1]["epoch"] < tiny.epochs
    monkeypatch.undo()
    assert train_shard(Job(study, pool, run), 0)
    assert_same_shards(run.folder, tiny_run[0], [0])


@pytest.mark.parametrize("budget", [0, -1.0, float("nan")])
def test_a_bad_budget_is_named(tiny, tmp_path, budget):
    with pytest.raises(UserError, match=r"time_budget is .* it must be above 0"):
        engine.train_part(tiny, out=tmp_path, time_budget=budget)


def test_a_model_that_does_not_exist_is_named(tiny, tmp_path):
    with pytest.raises(UserError, match="model 4 does not exist: this study has models 0 to 3"):
        engine.train_part(tiny, out=tmp_path, models=[1, 4])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("9m", 540), ("1h30m", 5400), ("0.5h", 1800), ("1m5s", 65)]
)
def test_durations(text, seconds):
    assert cli.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "9 minutes", "m", "1.2.3s", "-5m", "0", "0h0s"])
def test_a_bad_duration_is_named(text):
    with pytest.raises(UserError, match="write hours, minutes and seconds"):
        cli.parse_duration(text)


def test_model_numbers():
    assert cli.parse_models("0,3, 7-9,8", 10) == [0, 3, 7, 8, 9]
    for text in ("", "a", "3-1", "1-", "-2"):
        with pytest.raises(UserError, match="write numbers and ranges"):
            cli.parse_models(text, 10)


# --- merging


@pytest.fixture
def halves(tiny, tmp_path):
    """Two folders of the same study: models 0 and 1 finished in one, 2 and 3 in the other."""
    for name, models in (("a", (0, 1)), ("b", (2, 3))):
        train_in_process(tiny, tmp_path / name, models)
    return tmp_path / "a", tmp_path / "b"


def test_merged_parts_equal_a_run_of_one_machine(tiny, tiny_run, halves, tmp_path):
    lines = list(merge(tmp_path / "whole", list(halves)))
    assert len(lines) == 5
    assert "4 of 4 models finished" in lines[-1]
    assert_same_shards(tmp_path / "whole", tiny_run[0])
    before = contents(tmp_path / "whole")
    assert len(list(merge(tmp_path / "whole", list(halves)))) == 1
    assert contents(tmp_path / "whole") == before
    pool, run = engine.train_part(tiny, out=tmp_path / "whole", progress=False, device="cpu")
    np.testing.assert_array_equal(engine.finish(pool, run).phi, tiny_run[1].phi)
    merged = read_manifest(tmp_path / "whole")["merged"]  # one entry if both began in the same minute, else two
    assert sorted(model for part in merged for model in part["models"]) == [0, 1, 2, 3]


def test_another_study_is_refused_by_its_field(tiny, halves, tmp_path):
    engine.open_store(tiny.replace(seed=7), out=tmp_path / "other", device="cpu")
    before = contents(halves[0])
    with pytest.raises(StoreError, match=r"differs in seed \(7 there, 0 here\): nothing was merged"):
        list(merge(halves[0], [halves[1], tmp_path / "other"]))
    assert contents(halves[0]) == before


def test_merging_keeps_what_is_further_on(tiny, tmp_path, monkeypatch):
    states_saved(monkeypatch)
    for name, epoch in (("early", 1), ("late", 3)):
        with pytest.raises(Stopped):
            train_in_process(tiny, tmp_path / name, report=stop_after(epoch))
    done = train_in_process(tiny, tmp_path / "done")
    list(merge(tmp_path / "late", [tmp_path / "early"]))
    list(merge(tmp_path / "early", [tmp_path / "late"]))
    for name in ("early", "late"):
        run = RunStore(tmp_path / name, done.study, done.manifest["fingerprint"], {})
        assert run.load_state(0)[1]["epoch"] == 3
    before = contents(done.folder)
    list(merge(done.folder, [tmp_path / "late"]))
    assert contents(done.folder) == before
    list(merge(tmp_path / "late", [done.folder]))
    assert_same_shards(tmp_path / "late", done.folder, [0])
    assert not (tmp_path / "late" / "model-000.state.safetensors").exists()


def test_a_damaged_source_leaves_the_target_intact(halves):
    shard = halves[1] / "model-002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    before = contents(halves[0])
    with pytest.raises(StoreError, match="was altered"):
        list(merge(halves[0], [halves[1]]))
    assert contents(halves[0]) == before


# --- locks and kills


@pytest.mark.heavy("a process that holds a lock while it trains")
def test_a_model_in_training_is_left_to_its_process(tiny, tiny_run, tmp_path):
    _, _, run = engine.open_store(tiny, out=tmp_path, device="cpu")
    with run.locked(1), pytest.raises(UserError, match=r"model 1 in .* is being trained by another process"):
        engine.train(tiny, out=tmp_path, device="cpu", workers=1, progress=False)
    engine.train(tiny, out=tmp_path, device="cpu", workers=2, progress=False)
    assert_same_shards(tmp_path, tiny_run[0])
    assert not list(tmp_path.glob("*.lock"))


def test_what_a_killed_process_leaves_is_cleared(tiny, tiny_run, tmp_path):
    code = (
        "import sys, os; from dynmia.store.folder import RunStore, read_manifest; from dynmia import Study\n"
        "about = read_manifest(sys.argv[1])\n"
        "run = RunStore(sys.argv[1], Study.from_dict(about['study']), about['fingerprint'], {})\n"
        "lock = run.locked(0); lock.__enter__(); open(sys.argv[1] + '/.dynmia-tmp-model-000.state.x', 'w')\n"
        "os.kill(os.getpid(), 9)"
    )
    engine.open_store(tiny, out=tmp_path, device="cpu")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "model-000.lock").exists()
    train_in_process(tiny, tmp_path)
    assert_same_shards(tmp_path, tiny_run[0], [0])
    assert contents(tmp_path).keys() == {"manifest.json", "model-000.safetensors"}


def test_what_a_process_killed_while_it_wrote_the_run_leaves_is_cleared(tiny, tmp_path):
    left = [tmp_path / name for name in (f"{TEMPORARY}run.nc-x", f"{TEMPORARY}manifest.json-x", "run.lock")]
    train_in_process(tiny, tmp_path, range(4))
    for path in left:
        path.write_bytes(b"left")
    engine.finish(*engine.train_part(tiny, out=tmp_path, device="cpu", progress=False))
    assert not any(path.exists() for path in left)


@pytest.mark.slow("kills and continues training several times")
def test_killed_at_random_moments_the_run_ends_in_the_same_bits(tiny, tmp_path):
    kills, rng = int(os.environ.get("DYNMIA_KILLS", "4")), np.random.default_rng(0)
    study = tiny.replace(epochs=60)
    started = time.monotonic()
    whole = Child(study, tmp_path / "whole", tmp_path / "scratch")
    assert whole.process.wait(120) == 0
    duration, done, folder, tries = time.monotonic() - started, 0, tmp_path / "run-0", 0
    while done < kills:
        child = Child(study, folder, tmp_path / "scratch")
        try:
            child.process.wait(rng.uniform(0.3, 1) * duration)
            tries += 1  # it ended before the kill: begin another run
            assert_same_shards(folder, tmp_path / "whole")
            folder = tmp_path / f"run-{tries}"
        except subprocess.TimeoutExpired:
            os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
            done += 1
    assert Child(study, folder, tmp_path / "scratch").process.wait(120) == 0
    assert_same_shards(folder, tmp_path / "whole")
    assert contents(folder).keys() == contents(tmp_path / "whole").keys()


def test_a_kill_right_after_the_shard_leaves_nothing_in_the_end(tiny, tmp_path):
    run = train_in_process(tiny, tmp_path, range(4))
    left = [run.state(2), tmp_path / "model-002.lock"]
    for path in left:
        path.write_bytes(b"left")
    engine.train_part(tiny, out=tmp_path, device="cpu", progress=False)
    assert not any(path.exists() for path in left)


def test_merging_twice_and_after_a_failure_keeps_who_trained_what(tiny, tmp_path):
    for name, models in (("a", [0]), ("b", [1]), ("c", [2, 3])):
        run = train_in_process(tiny, tmp_path / name, models)
        run.manifest["hardware"] = name
        store.write_atomic(run.folder / "manifest.json", store.json.dumps(run.manifest).encode())
    shard = tmp_path / "c" / "model-003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    list(merge(tmp_path / "ab", [tmp_path / "a", tmp_path / "b"]))
    with pytest.raises(StoreError, match="is truncated"):
        list(merge(tmp_path / "abc", [tmp_path / "ab", tmp_path / "c"]))
    shard.write_bytes(whole)
    list(merge(tmp_path / "abc", [tmp_path / "ab", tmp_path / "c"]))
    merged = read_manifest(tmp_path / "abc")["merged"]
    assert {part["hardware"]: part["models"] for part in merged} == {"a": [0], "b": [1], "c": [2, 3]}
    pool, run = engine.train_part(tiny, out=tmp_path / "abc", device="cpu", progress=False)
    assert engine.finish(pool, run).attrs["hardware"] == "a and b and c"

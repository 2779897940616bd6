import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dynmia
from dynmia import open_run, save_run
from dynmia.errors import StoreError, UserError
from dynmia.shadow import finish, open_store, train_part
from dynmia.shadow.shard import Job, train_shard
from dynmia.stats import hardness
from dynmia.store import folder as store
from dynmia.store import run as runs
from dynmia.store.folder import RunStore, merge, read_manifest, read_sealed, write_atomic, write_sealed

ARRAYS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "keep": np.array([True, False]), "none": np.empty((0, 3))}
TYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_])


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


# --- sealed files


@given(
    arrays=st.dictionaries(
        st.text("abc.0", min_size=1, max_size=5),
        hnp.arrays(TYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
        max_size=4,
    ),
    meta=st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(), st.none()), max_size=3),
)
def test_a_sealed_file_comes_back_to_the_bit(tmp_path_factory, arrays, meta):
    path = tmp_path_factory.mktemp("sealed") / "file"
    write_sealed(path, arrays, meta)
    found, about = read_sealed(path)
    assert same(found, arrays)
    assert about == meta | {"format": store.FORMAT}


def test_a_transposed_array_comes_back_in_its_own_shape(tmp_path):
    write_sealed(tmp_path / "file", {"x": ARRAYS["x"].T}, {})
    assert (read_sealed(tmp_path / "file")[0]["x"] == ARRAYS["x"].T).all()


@pytest.fixture
def sealed(tmp_path):
    write_sealed(tmp_path / "file", ARRAYS, {"epoch": 3})
    return tmp_path / "file"


@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 50, 0.5, 0.9, -8, -1])
def test_a_truncated_file_is_refused(sealed, left):
    content = sealed.read_bytes()
    sealed.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    with pytest.raises(StoreError, match="file is truncated or not a dynmia file"):
        read_sealed(sealed)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_no_flipped_byte_gives_wrong_data(sealed, flip):
    content, messages = sealed.read_bytes(), []
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= flip
        sealed.write_bytes(damaged)
        try:
            found, about = read_sealed(sealed)
        except StoreError as error:
            messages.append(str(error))
        else:  # only blanks of the header may change unnoticed
            assert chr(content[position]).isspace()
            assert same(found, ARRAYS)
            assert about == {"epoch": 3, "format": store.FORMAT}
    assert len(messages) > 0.9 * len(content)
    assert all(str(sealed) in message for message in messages)


def test_appended_bytes_are_refused(sealed):
    sealed.write_bytes(sealed.read_bytes() + b"\0")
    with pytest.raises(StoreError):
        read_sealed(sealed)


def test_another_format_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    write_sealed(tmp_path / "file", ARRAYS, {})
    monkeypatch.undo()
    with pytest.raises(StoreError, match=f"has format {store.FORMAT + 1}, this dynmia reads format {store.FORMAT}"):
        read_sealed(tmp_path / "file")


def test_a_missing_file_or_a_folder_is_a_store_error(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StoreError, match="cannot be read"):
            read_sealed(path)


# --- failed writes


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "pathlib.Path.open"])
@pytest.mark.parametrize("code", ["ENOSPC", "EACCES"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(sealed, monkeypatch, step, code):
    def fail(*args):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(step, fail)
    with pytest.raises(UserError, match=f"cannot write {sealed}: "):
        write_sealed(sealed, {"x": np.zeros(3)}, {})
    monkeypatch.undo()
    assert same(read_sealed(sealed)[0], ARRAYS)
    assert os.listdir(sealed.parent) == [sealed.name]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(sealed, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_sealed(sealed, {"x": np.zeros(3)}, {})
    assert same(read_sealed(sealed)[0], ARRAYS)
    assert os.listdir(sealed.parent) == [sealed.name]


def test_a_folder_below_a_file_is_refused(sealed):
    with pytest.raises(UserError, match="a part of the path is a file: choose another folder with --out"):
        write_atomic(sealed / "sub" / "file", b"content")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="no write permission: choose another folder with --out"):
        write_atomic(tmp_path / "file", b"content")


TRAIN = """
import json, sys, dynmia
study, folder = dynmia.Study.from_dict(json.loads(sys.argv[1])), sys.argv[2]
try:
    dynmia.train(study, out=folder, device="cpu", workers=2, progress=False)
except dynmia.UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow("a process on a file system that fills, then the run from there")
def test_a_full_disk_ends_training_in_one_line_and_the_run_continues_to_the_same_bits(tiny, tiny_run, tmp_path):
    folder = tmp_path / "run"
    study, pool, run = open_store(tiny, out=folder, device="cpu")
    train_shard(Job(study, pool, run), 0)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    # 100 kB hold the job and the shards but no state; the limit answers as a full disk does: a short write, then EFBIG
    child = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(tiny.to_dict()), str(folder)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert child.returncode == 1
    assert len(child.stderr.strip().splitlines()) == 1, child.stderr
    assert "cannot write" in child.stderr
    assert "the same command continues" in child.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    run = dynmia.train(tiny, out=folder, device="cpu", workers=2, progress=False)
    assert (run.phi.values == tiny_run[1].phi.values).all()


# --- run folders

ABOUT = {
    "versions": {}, "hardware": "a machine", "device": "cpu", "workers": 2, "command": "dynmia train",
    "created": "2026-01-01 00:00 UTC",
}  # fmt: skip


@pytest.fixture
def folder(tiny, tmp_path):
    RunStore(tmp_path / "run", tiny, "data", ABOUT)
    return tmp_path / "run"


@pytest.mark.parametrize(("field", "value"), [("seed", 5), ("lr", 0.25), ("pool_size", 60), ("model", "mlp")])
def test_the_folder_of_another_study_names_the_field(tiny, folder, field, value):
    with pytest.raises(StoreError, match=rf"differs in {field} \({getattr(tiny, field)} there, {value} here\): choose"):
        RunStore(folder, tiny.replace(**{field: value}), "data", {})


def test_the_folder_of_the_same_study_on_other_data_says_so(tiny, folder):
    with pytest.raises(StoreError, match="differs in the data or the model's code"):
        RunStore(folder, tiny, "other data", {})


def test_the_same_study_opens_its_folder_again(tiny, folder):
    before = (folder / "manifest.json").read_bytes()
    assert RunStore(folder, tiny, "data", {"hardware": "another machine"}).missing() == [0, 1, 2, 3]
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"identity": "x"}', "\xff"])
def test_a_damaged_manifest_is_named(tiny, folder, content):
    (folder / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        RunStore(folder, tiny, "data", {})


def test_a_manifest_of_another_format_is_named(folder):
    manifest = read_manifest(folder) | {"format": 99}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=f"has format 99, this dynmia reads format {store.FORMAT}"):
        read_manifest(folder)


def test_a_folder_without_a_manifest_is_no_run(tmp_path):
    with pytest.raises(StoreError, match=r"is not a run folder: it has no manifest\.json"):
        read_manifest(tmp_path)


def test_a_shard_is_saved_once_and_its_state_dropped(tiny, folder):
    run = RunStore(folder, tiny, "data", {})
    run.save_state(2, ARRAYS, {"epoch": 1})
    assert same(run.load_state(2)[0], ARRAYS)
    run.save_shard(2, ARRAYS, {"seconds": 1.0})
    assert run.load_state(2) is None
    assert run.missing() == [0, 1, 3]
    assert same(run.load_shard(2)[0], ARRAYS)


@pytest.mark.parametrize("other", ["study", "model"])
def test_the_shard_of_another_is_refused(tiny, folder, tmp_path, other):
    theirs = RunStore(tmp_path / "other", tiny.replace(seed=1) if other == "study" else tiny, "data", ABOUT)
    theirs.save_shard(1, ARRAYS, {"seconds": 1.0})
    run = RunStore(folder, tiny, "data", {})
    model = 1 if other == "study" else 2
    shutil.copy(theirs.shard(1), run.shard(model))
    with pytest.raises(StoreError, match=rf"model-00{model}\.safetensors belongs to another study or model"):
        run.load_shard(model)


# --- released runs


@pytest.fixture
def released(tiny_run, tmp_path):
    return save_run(tiny_run[1], tmp_path / "run.nc")


def test_a_released_run_comes_back_within_half_a_step(tiny_run, released):
    run, found = tiny_run[1], open_run(released)
    steps = (run.phi.max(("model", "sample")) - run.phi.min(("model", "sample"))) / (2**16 - 2)
    assert (abs(found.phi - run.phi) <= 0.5 * steps + 1e-6).all()  # 1e-6: float32 of values near 10
    assert found.phi.dtype == np.float32
    assert found.drop_vars("phi").equals(run.drop_vars("phi"))
    assert {name: dtype for name, dtype in found.dtypes.items() if name != "phi"} == {
        name: dtype for name, dtype in run.dtypes.items() if name != "phi"
    }


def test_a_released_run_keeps_the_dimensions_and_attributes(tiny_run, released):
    run, found = tiny_run[1], open_run(released)
    assert {name: found[name].dims for name in found} == {name: run[name].dims for name in run}
    assert {name: found.attrs[name] for name in run.attrs} == run.attrs
    assert found.phi.attrs == run.phi.attrs


def test_without_packing_a_run_comes_back_to_the_bit(tiny_run, tmp_path):
    save_run(tiny_run[1], tmp_path / "run.nc", pack=False)
    assert open_run(tmp_path / "run.nc").equals(tiny_run[1])


def test_saving_does_not_change_the_run(tiny_run, tmp_path):
    before = tiny_run[1].copy(deep=True)
    save_run(tiny_run[1], tmp_path / "run.nc")
    assert before.identical(tiny_run[1])


def test_a_released_run_saves_again_to_the_same_values(released, tmp_path):
    first = open_run(released)
    save_run(first, tmp_path / "again.nc")
    np.testing.assert_allclose(open_run(tmp_path / "again.nc").phi, first.phi, atol=1e-5)


def test_packing_makes_the_file_smaller(tiny_run, tmp_path):
    run = tiny_run[1].isel(sample=np.arange(6000) % 120)
    run["phi"] = run.phi.dims, np.random.default_rng(0).normal(size=run.phi.shape).astype(np.float32)
    packed, whole = (save_run(run, tmp_path / f"{pack}.nc", pack=pack).stat().st_size for pack in (True, False))
    assert packed < 0.8 * whole  # 2 instead of 4 bytes a value of phi; the rest is the same


def test_epochs_beyond_9999_stay_in_order(tiny_run, tmp_path):
    run = tiny_run[1].assign_coords(epoch=[0, 9999, 10000])
    found = open_run(save_run(run, tmp_path / "run.nc"))
    np.testing.assert_allclose(found.phi, run.phi, atol=1e-3)


def test_a_run_folder_opens_as_the_run(tiny_run):
    assert open_run(tiny_run[0]).equals(tiny_run[1])


def test_the_folder_of_an_unfinished_run_names_the_command(tiny, tmp_path):
    open_store(tiny, out=tmp_path / "run", device="cpu", command="the command")
    with pytest.raises(StoreError, match=f"not finished: continue it by: the command --out {tmp_path / 'run'}$"):
        open_run(tmp_path / "run")


def change_value(name):
    def change(file):
        file[name][(0,) * file[name].ndim] = file[name][(0,) * file[name].ndim] + 1

    return change


def change_attribute(name, variable=None):
    def change(file):
        attributes = (file[variable] if variable else file).attrs
        old = attributes[name]
        attributes.modify(name, old + "x" if isinstance(old, str) else old + 1)

    return change


CHANGES = {
    **{name: change_value(name) for name in ("phi_0000", "phi_0004", "keep", "label", "epoch", "sample", "seconds")},
    **{name: change_attribute(name) for name in ("study", "fingerprint", "hardware", "wall_time_s", "sha256")},
    "new attribute": lambda file: file.attrs.create("note", "x"),
    "no checksum": lambda file: file.attrs.__delitem__("sha256"),
    "no variable": lambda file: file.__delitem__("phi_0002"),
    "scale": change_attribute("scale_factor", "phi_0004"),
    "offset": change_attribute("add_offset", "phi_0004"),
    "units": change_attribute("units", "seconds"),
    "attribute of a coordinate": change_attribute("long_name", "sample"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tampering_is_noticed_in(released, name):
    with h5py.File(released, "r+") as file:
        CHANGES[name](file)
    with pytest.raises(StoreError, match=r"run\.nc (was altered|is truncated)"):
        open_run(released)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_release_is_refused_without_further_noise(released, share):
    content = released.read_bytes()
    released.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StoreError, match=r"run\.nc is truncated or not a released run: fetch it again"):
        open_run(released)


# h5netcdf complains when it closes a file that it could not open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_byte_of_a_release_never_gives_wrong_data(released):
    content, expected, refused = released.read_bytes(), open_run(released), 0
    positions = np.linspace(0, len(content) - 1, 60).astype(int)
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        released.write_bytes(damaged)
        try:
            assert open_run(released).identical(expected)
        except StoreError:
            refused += 1
    assert refused > 0


def test_a_release_of_another_format_is_named(tiny_run, tmp_path):
    path = save_run(tiny_run[1].assign_attrs(format=99), tmp_path / "run.nc")
    with pytest.raises(StoreError, match="has format 99, this dynmia reads format"):
        open_run(path)


def test_a_missing_release_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere\.nc does not exist"):
        open_run(tmp_path / "nowhere.nc")


@pytest.mark.parametrize("below", ["x.nc", "sub/x.nc"])
def test_saving_below_a_file_is_refused(tiny_run, released, below):
    with pytest.raises(UserError, match="a part of the path is a file"):
        save_run(tiny_run[1], released / below)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tiny_run, released, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = released.read_bytes()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="the disk is full"):
        save_run(tiny_run[1], released)
    assert released.read_bytes() == before
    assert os.listdir(released.parent) == [released.name]


# --- what else lies in a folder, and who may read it


def test_the_lock_clears_what_is_ours_and_nothing_else(tiny, folder):
    run = RunStore(folder, tiny, "data", {})
    users = [".run.conf", ".run.nc.1234", ".manifest.bak", ".model-001.swp", ".model-001.state.safetensors.swp"]
    folders = [".run.d", ".manifest.d", f"{store.TEMPORARY}run.nc-folder"]
    ours = [f"{store.TEMPORARY}{name}-x" for name in ("run.nc", "manifest.json", "model-001.safetensors")]
    others = f"{store.TEMPORARY}model-002.safetensors-x"  # its process may be writing it
    for name in (*users, *ours, others):
        (folder / name).write_text("kept")
    for name in folders:
        (folder / name).mkdir()
    (folder / f"{store.TEMPORARY}run.nc-link").symlink_to(folder / ".run.conf")
    with run.locked(), run.locked(1):
        pass
    left = {"manifest.json", *users, *folders, others, f"{store.TEMPORARY}run.nc-link"}
    assert {path.name for path in folder.iterdir()} == left


def test_a_write_clears_what_a_killed_one_of_the_same_file_left(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    kill = "import os, sys; from dynmia.store import folder; os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
    kill += "folder.write_atomic(folder.Path(sys.argv[1]), b'half')"
    for name in ("x.nc", "other.nc"):
        subprocess.run([sys.executable, "-c", kill, str(tmp_path / name)], check=False, timeout=60)
    assert len(os.listdir(tmp_path)) == 2
    begins = next(path.name for path in tmp_path.iterdir() if "x.nc" in path.name).rpartition("-")[0].rpartition("-")[0]
    living = f"{begins}-{os.getpid()}-00"
    for name in (living, ".x.nc.4711", f"{begins}-{dead.pid}-00"):
        (tmp_path / name).write_text("")
    write_atomic(tmp_path / "x.nc", b"whole")
    rest = {path.name for path in tmp_path.iterdir() if "other.nc" not in path.name}
    assert rest == {"x.nc", living, ".x.nc.4711"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_says(tiny_run, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_sealed(tmp_path / "model-000.safetensors", ARRAYS, {})
        save_run(tiny_run[1], tmp_path / "run.nc")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_replaced(tiny_run, tmp_path, make):
    make(tmp_path / "target")
    with pytest.raises(UserError, match="it is a folder or a device and no file; choose another name"):
        save_run(tiny_run[1], tmp_path / "target")
    assert not (tmp_path / "target").is_file()


# --- several processes at once


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_without_locks_work_goes_on_with_a_warning_and_clears_nothing(tiny, tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.warns(UserWarning, match="on a file system without locks .*: let no second process work on this run"):
        run = RunStore(tmp_path, tiny, "data", ABOUT)
    left = tmp_path / f"{store.TEMPORARY}model-001.safetensors-x"
    left.write_text("another process writes it")
    with pytest.warns(UserWarning, match="without locks"), run.locked(1):
        run.save_shard(1, ARRAYS, {"seconds": 1.0})
    assert same(run.load_shard(1)[0], ARRAYS)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "model-001.safetensors", left.name}


def test_a_lock_that_fails_otherwise_is_one_line(tiny, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(UserError, match=r"cannot write .*run\.lock: Input/output error"):
        RunStore(tmp_path, tiny, "data", ABOUT)


def at_once(*calls):
    """The results, or errors, of ``calls``, each in a thread of its own."""
    results = [None] * len(calls)

    def call(number):
        try:
            results[number] = calls[number]()
        except UserError as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_two_studies_begun_at_once_on_a_new_folder_one_is_refused(tiny, tmp_path, monkeypatch):
    both, locked = threading.Barrier(2, timeout=30), RunStore.locked

    def meet(run, model=None):
        both.wait()  # neither has seen a manifest
        return locked(run, model)

    monkeypatch.setattr(RunStore, "locked", meet)
    studies = [tiny, tiny.replace(seed=1)]
    results = at_once(*[lambda s=s: RunStore(tmp_path / "run", s, "data", ABOUT) for s in studies])
    refused = [result for result in results if isinstance(result, StoreError)]
    assert len(refused) == 1
    assert "differs in seed (" in str(refused[0])
    winner = next(result for result in results if isinstance(result, RunStore))
    assert read_manifest(tmp_path / "run")["identity"] == winner.identity


def test_merges_at_once_keep_who_trained_what(tiny, tmp_path):
    for model in range(4):
        source = RunStore(tmp_path / str(model), tiny, "data", ABOUT | {"hardware": f"machine {model}"})
        source.save_shard(model, ARRAYS, {"seconds": 1.0})
    for trial in range(5):
        into = tmp_path / f"whole-{trial}"
        results = at_once(*[lambda m=m, i=into: list(merge(i, [str(tmp_path / str(m))])) for m in range(4)])
        assert all(isinstance(result, list) for result in results), results
        merged = {part["hardware"]: part["models"] for part in read_manifest(into)["merged"]}
        assert merged == {f"machine {model}": [model] for model in range(4)}
    assert results[0][-1].endswith(f"dynmia train --out {into}")


# --- manifests that were edited by hand


MANIFESTS = {
    "no identity": (lambda m: m.pop("identity"), "identity is missing: it must be of type str"),
    "no study": (lambda m: m.pop("study"), "study is missing: it must be of type dict"),
    "no command": (lambda m: m.pop("command"), "command is missing: it must be of type str"),
    "no format": (lambda m: m.pop("format"), "format is missing: it must be of type int"),
    "a list": (lambda m: m.update(study=[1, 2]), r"study is \[1, 2\]: it must be of type dict"),
    "null": (lambda m: m.update(fingerprint=None), "fingerprint is None: it must be of type str"),
    "workers": (lambda m: m.update(workers="two"), "workers is 'two': it must be of type int"),
    "no workers": (lambda m: m.update(workers=0), "workers is 0: it must be at least 1"),
    "a field's type": (lambda m: m["study"].update(epochs="many"), "study: epochs is 'many': it must be of type int"),
    "an unknown field": (lambda m: m["study"].update(epoch=3), "study: unknown study field 'epoch'; did you mean 'epo"),
    "another value": (lambda m: m["study"].update(seed=5), "identity is not that of its study and fingerprint"),
    "merged no list": (lambda m: m.update(merged={}), r"merged is \{\}: it must be a list"),
    "merged of text": (lambda m: m.update(merged=["x"]), r"merged\[0\]: 'x' is no mapping"),
    "merged without": (lambda m: m.update(merged=[{"models": [1]}]), r"merged\[0\]: hardware is missing"),
    "models no list": (lambda m: m.update(merged=[ABOUT | {"models": 1}]), r"merged\[0\]: models is 1: it must be of"),
    "no such model": (lambda m: m.update(merged=[ABOUT | {"models": [9]}]), r"merged\[0\]: models has 9: they"),
    "model by name": (lambda m: m.update(merged=[ABOUT | {"models": ["0"]}]), r"merged\[0\]: models has '0'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_edited_by_hand_is_named_by_its_field_in_every_command(tiny, folder, tmp_path, name):
    change, line = MANIFESTS[name]
    manifest = read_manifest(folder)
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    RunStore(tmp_path / "other", tiny, "data", ABOUT)
    for command in (
        lambda: RunStore(folder, tiny, "data", ABOUT),
        lambda: open_run(folder),
        lambda: list(merge(folder, [str(tmp_path / "other")])),
        lambda: list(merge(tmp_path / "other", [str(folder)])),
    ):
        with pytest.raises(StoreError, match=rf"json is damaged \({line}.*: choose another --out, or restore"):
            command()


# --- run.nc in a run folder


@pytest.fixture
def finished(tiny_run, tmp_path):
    shutil.copytree(tiny_run[0], tmp_path / "a run")
    return tmp_path / "a run"


DAMAGE = {
    "cut": (lambda path, run: path.write_bytes(path.read_bytes()[:-500]), "is truncated|was altered"),
    "flipped": (lambda path, run: path.write_bytes(path.read_bytes()[:-300] + bytes(300)), "is truncated|was altered"),
    "empty": (lambda path, run: path.write_bytes(b""), "is truncated"),
    "another study": (
        lambda path, run: save_run(run.assign_attrs(identity="0" * 64), path, pack=False),
        "is of another study than its folder",
    ),
    "other shards": (lambda path, run: save_run(run.assign(phi=run.phi + 1), path, pack=False), ""),
    "missing": (lambda path, run: path.unlink(), "is not finished: continue it by"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_training_again_mends_the_run_in_its_folder(tiny, tiny_run, finished, name):
    damage, line = DAMAGE[name]
    damage(finished / "run.nc", tiny_run[1])
    if line:
        with pytest.raises(StoreError, match=rf"({line}).*: dynmia train --dataset digits .* --out '{finished}'"):
            open_run(finished)
    run = finish(*train_part(tiny, out=finished, device="cpu", progress=False))
    assert run.equals(tiny_run[1])
    assert open_run(finished).equals(tiny_run[1])


def test_a_run_that_is_well_is_not_written_again(tiny, finished):
    before = (finished / "run.nc").stat()
    finish(*train_part(tiny, out=finished, device="cpu", progress=False))
    after = (finished / "run.nc").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


# --- what is saved can be opened


VARIANTS = {
    "no long_name": lambda run: run.assign(phi=run.phi.drop_attrs()),
    "attributes of phi": lambda run: run.assign(phi=run.phi.assign_attrs(units="nat")),
    "bare": lambda run: run.drop_attrs(),
    "no coordinates": lambda run: run.drop_vars(["sample", "model"]),
    "int32 epochs": lambda run: run.assign_coords(epoch=run.epoch.astype(np.int32)),
    "float epochs": lambda run: run.assign_coords(epoch=run.epoch.astype(float)),
    "float keep": lambda run: run.assign(keep=run.keep.astype(np.float32)),
    "uint8 keep": lambda run: run.assign(keep=run.keep.astype(np.uint8)),
    "turned": lambda run: run.transpose("sample", "model", "epoch"),
    "names of samples": lambda run: run.assign_coords(sample=[f"s{k}" for k in range(120)]),
    "one checkpoint": lambda run: run.isel(epoch=[1]),
    "more variables": lambda run: run.assign(flag=("sample", np.ones(120, bool))),
}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_of_any_make_is_saved_and_opened(tiny_run, tmp_path, name, pack):
    run = VARIANTS[name](tiny_run[1])
    found = open_run(save_run(run, tmp_path / "run.nc", pack=pack))
    expected = tiny_run[1] if name != "one checkpoint" else run
    np.testing.assert_allclose(found.phi, expected.phi, atol=0 if not pack else 1e-3)
    assert (found.keep.dtype, found.epoch.dtype) == (bool, np.int64)
    np.testing.assert_array_equal(found.keep, expected.keep)
    np.testing.assert_array_equal(found.epoch, expected.epoch)
    assert found.phi.attrs == run.phi.attrs


def test_a_run_goes_from_float32_to_16_bits_and_back_without_noise(tiny_run, tmp_path):
    run = tiny_run[1]
    for pack in (False, True, False):
        run = open_run(save_run(run, tmp_path / "run.nc", pack=pack))
        assert run.phi.attrs == tiny_run[1].phi.attrs
    np.testing.assert_allclose(run.phi, tiny_run[1].phi, atol=1e-3)


UNSAVEABLE = {
    "a hole": (lambda run: run.assign(phi=run.phi.where(run.phi != run.phi[1, 2, 3])), "1440 values of phi, 1 are"),
    "half epochs": (lambda run: run.assign_coords(epoch=[0, 0.5, 1]), "the epochs are 0.0, 0.5, 1.0: .* whole numbers"),
    "out of order": (lambda run: run.isel(epoch=[0, 2, 1]), "the epochs are 0, 4, 2: they must increase"),
    "keep of 2": (lambda run: run.assign(keep=run.keep + 1), "neither 0 nor 1"),
    "no label": (lambda run: run.drop_vars("label"), "the run has no label"),
    "a mapping": (lambda run: run.assign_attrs(note={}), "what it is to hold does not fit into netCDF"),
    "a list": (lambda run: run.assign_attrs(note=[1, 2]), "what it is to hold would come back changed"),
    "objects": (lambda run: run.assign(note=("sample", np.array([None] * 120))), "does not fit|would come back"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAVEABLE)
def test_a_run_that_would_not_come_back_is_refused_when_it_is_saved(tiny_run, tmp_path, name):
    change, line = UNSAVEABLE[name]
    with pytest.raises(UserError, match=line):
        save_run(change(tiny_run[1]), tmp_path / "run.nc")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_a_save_in_one_line_and_leaves_the_old_file(tmp_path):
    code = (
        "import sys, resource; from dynmia import save_run, UserError; from dynmia.stats.simulate import Simulator\n"
        "run = Simulator(samples=400, checkpoints=3).run(20); save_run(run.isel(sample=slice(40)), sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: save_run(run, sys.argv[1])\nexcept UserError as error: sys.exit(str(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.nc")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "x.nc: the file-size limit is reached" in done.stderr
    assert os.listdir(tmp_path) == ["x.nc"]
    assert open_run(tmp_path / "x.nc").sizes["sample"] == 40


# --- the seal of a release


def test_damage_is_seen_before_hdf5_opens_the_file(released, monkeypatch):
    content, opened = released.read_bytes(), []
    monkeypatch.setattr(runs, "_read", lambda content: opened.append(content))
    for position in np.linspace(0, len(content) - 81, 200).astype(int):
        released.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with pytest.raises(StoreError, match=r"run\.nc was altered \(its checksum differs\)"):
            open_run(released)
    assert not opened


@pytest.mark.parametrize("left", [-1, -2, -65, -66, -79, -80, -81, -200])
def test_a_release_without_the_whole_of_its_seal_is_refused(released, left):
    released.write_bytes(released.read_bytes()[:left])
    with pytest.raises(StoreError, match=r"run\.nc (is truncated|was altered)"):
        open_run(released)


def test_a_byte_after_the_seal_or_a_changed_mark_of_it_is_refused(released):
    content = released.read_bytes()
    for damaged in (content + b"\0", content.replace(runs.SEAL, b"\ndynmia-seal-2 ")):
        released.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"run\.nc (is truncated|was altered)"):
            open_run(released)


def test_readers_of_hdf5_and_netcdf_do_not_mind_the_seal(tiny_run, released):
    with h5py.File(released) as file:
        assert "phi_0002" in file
    with xr.open_dataset(released, engine="h5netcdf") as file:
        np.testing.assert_allclose(file.phi_0002, tiny_run[1].phi.sel(epoch=2), atol=1e-3)


def test_a_release_without_a_seal_as_an_older_version_wrote_it_is_read():
    path = runs.project_root() / "data" / "quick.nc"
    assert runs.SEAL not in path.read_bytes()
    assert open_run(path).sizes == {"epoch": 16, "model": 20, "sample": 1200}


def test_what_is_no_run_is_one_line(tiny_run, tmp_path):
    measures = xr.Dataset({"loss_in": (("part", "sample"), np.zeros((3, 5)))}, {"part": list("xab")})
    hardness.save(measures, tmp_path / "x.hardness.nc")
    assert hardness.load(tmp_path / "x.hardness.nc").part.values.tolist() == ["all", "a", "b"]
    save_run(tiny_run[1], tmp_path / "x.nc")
    with pytest.raises(
        StoreError, match=r"x\.hardness\.nc is no run .* but measures of hardness, .* give the file of a"
    ):
        open_run(tmp_path / "x.hardness.nc")
    with pytest.raises(StoreError, match=r"x\.nc holds no measures of hardness: give a file NAME\.hardness\.nc"):
        hardness.load(tmp_path / "x.nc")
    with pytest.raises(StoreError, match="File name too long"):
        open_run(tmp_path / ("x" * 300))


@pytest.mark.parametrize("study", [None, "{", "[]", 3])
def test_a_run_that_does_not_say_its_study_is_named(tiny_run, study):
    run = tiny_run[1].assign_attrs(study=study)
    with pytest.raises(UserError, match=r"the run does not say its study: set run\.attrs\['study'\]"):
        dynmia.study_of(run)

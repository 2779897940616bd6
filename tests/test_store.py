import errno
import json
import os
import resource
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dynmia
from dynmia import open_run, save_run, store
from dynmia.engine import open_store
from dynmia.errors import StoreError, UserError
from dynmia.store import RunStore, read_manifest, read_sealed, write_atomic, write_sealed
from dynmia.training import DeviceData, train_shard

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


@pytest.mark.parametrize("step", ["fsync", "replace", "fdopen"])
@pytest.mark.parametrize("code", ["ENOSPC", "EACCES"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(sealed, monkeypatch, step, code):
    def fail(*args):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(os, step, fail)
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


def test_a_full_disk_ends_training_in_one_line_and_the_run_continues_to_the_same_bits(tiny, tiny_run, tmp_path):
    folder = tmp_path / "run"
    study, pool, run = open_store(tiny, out=folder, device="cpu")
    train_shard(study, pool, DeviceData.of(pool, "cpu"), 0, run)
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

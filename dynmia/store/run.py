"""A run in memory: one labelled data set, assembled from shards or read from a released netCDF file.

Variables of a run (dims epoch, model, sample):
    phi (epoch, model, sample) float32; keep (model, sample) bool; label (sample) int64;
    train_accuracy, test_accuracy (epoch, model); seconds (model).
Attributes: title, study (JSON), identity, fingerprint, versions (JSON), hardware, device, wall_time_s,
    workers, command, created, engine (what trained the models), mode (``deterministic``, or ``fast`` if any model
    was trained so).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import StoreError, UserError, reason
from ..pool.pool import Pool
from ..study import FORMAT, Study
from .folder import RunStore, continued_by, digest, read_manifest, write_atomic

PACKAGES = ("dynmia", "torch", "torchvision", "numpy", "scipy", "xarray")
VARIABLES = {  # of a run that is scored, with their dimensions
    "phi": ("epoch", "model", "sample"), "keep": ("model", "sample"), "label": ("sample",),
    "train_accuracy": ("epoch", "model"), "test_accuracy": ("epoch", "model"),
}  # fmt: skip
STEPS = 2**16 - 2  # levels of an int16, -32767 ... 32767
SEAL = b"\ndynmia-seal-1 "  # then the sha256 of all bytes before it: the end of a file; readers of HDF5 ignore it


def project_root() -> Path:
    """The folder that holds ``notebooks`` and ``data``: of the source tree, else the current folder."""
    here = Path(__file__).resolve().parents[2]
    return here if (here / "notebooks").is_dir() else Path.cwd()


def resolve(path: str | os.PathLike[str]) -> Path:
    """A path as given if it exists, else seen from the project's root: notebooks run in several folders."""
    return Path(path) if Path(path).exists() else project_root() / path


def assemble(store: RunStore, pool: Pool) -> xr.Dataset:
    """Join the verified shards of a finished run into one data set."""
    study, manifest = store.study, store.manifest
    shards = [store.load_shard(model) for model in range(study.shadow_models)]
    merged = manifest.get("merged", [])
    workers = np.full(len(shards), manifest["workers"])
    for part in merged:
        workers[part["models"]] = part["workers"]
    seconds = np.array([meta["seconds"] for _, meta in shards])
    engines = [part for _, meta in shards for part in meta.get("engine", manifest["device"]).split(" and ")]
    fast = any(meta.get("mode") == "fast" for _, meta in shards)

    def stack(name: str) -> np.ndarray:
        return np.stack([arrays[name] for arrays, _ in shards])

    return xr.Dataset(
        {
            "phi": (VARIABLES["phi"], stack("phi").swapaxes(0, 1), {"long_name": "logit-scaled confidence"}),
            "keep": (VARIABLES["keep"], stack("keep"), {"long_name": "sample is in the model's training set"}),
            "label": ("sample", pool.labels),
            "train_accuracy": (VARIABLES["train_accuracy"], stack("train_accuracy").T),
            "test_accuracy": (VARIABLES["test_accuracy"], stack("test_accuracy").T),
            "seconds": ("model", seconds, {"units": "s"}),
        },
        coords={
            "epoch": study.checkpoints,
            "model": np.arange(study.shadow_models),
            "sample": ("sample", pool.sample_id, {"long_name": "index in the training split"}),
        },
        attrs={
            "title": study.title, "study": json.dumps(study.to_dict()), "identity": store.identity, "format": FORMAT,
            "fingerprint": manifest["fingerprint"], "versions": json.dumps(manifest["versions"]),
            "hardware": " and ".join(dict.fromkeys(part["hardware"] for part in [manifest, *merged])),
            "device": manifest["device"], "command": manifest["command"], "created": manifest["created"],
            "wall_time_s": round(float((seconds / workers).sum()), 1), "workers": manifest["workers"],
            "engine": " and ".join(dict.fromkeys(engines)), "mode": "fast" if fast else "deterministic",
        },
    )  # fmt: skip


def provenance(command: str, device: str, workers: int) -> dict[str, Any]:
    """Versions, hardware, command and date for a manifest."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "source tree"
    return {
        "versions": versions, "hardware": hardware(device), "device": device, "workers": workers, "command": command,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }  # fmt: skip


def hardware(device: str) -> str:
    """One line: processor model and cores, or the GPU's name."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":")[1].strip() if lines else name
    return f"{name}, {cores()} cores"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def study_of(run: xr.Dataset) -> Study:
    """The study that a run (or a plane made from it) belongs to."""
    try:
        return Study.from_dict(json.loads(run.attrs["study"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(
            "the run does not say its study: set run.attrs['study'] to json.dumps(study.to_dict())."
        ) from error


def checked_run(run: xr.Dataset) -> xr.Dataset:
    """``run`` as whatever scores or stores it assumes: the dimensions of every variable in order, ``keep`` as bool.

    Raises:
        UserError: a variable or dimension is missing, phi is not finite, or the epochs do not increase.
    """
    for name, dims in VARIABLES.items():
        if name not in run.variables:
            raise UserError(f"the run has no {name}: a run has {', '.join(VARIABLES)} (see dynmia.store.run).")
        if sorted(map(str, run[name].dims)) != sorted(dims):
            raise UserError(f"{name} has the dimensions {run[name].dims}: they must be {dims}.")
    run = run.transpose(*VARIABLES["phi"], ...)
    must_be_finite(run.phi.values, VARIABLES["phi"])
    return ordered(run.assign(keep=(VARIABLES["keep"], boolean(run.keep.values), run.keep.attrs)))


def ordered(data: xr.Dataset) -> xr.Dataset:
    """``data`` if its checkpoints are whole epochs that increase, as whatever compares them assumes, else an error."""
    epochs = data["epoch"].values
    if epochs.dtype.kind not in "iuf" or not (epochs == np.rint(epochs)).all():
        raise UserError(f"the epochs are {listed(epochs)}: they must be whole numbers.")
    if (np.diff(epochs) <= 0).any():
        raise UserError(f"the epochs are {listed(epochs)}: they must increase; sort and thin by run.sortby('epoch').")
    return data


def listed(epochs: np.ndarray) -> str:
    """Epochs as a message quotes them: the first eight."""
    return ", ".join(map(str, epochs[:8])) + ", ..." * (len(epochs) > 8)


def boolean(keep: np.ndarray) -> np.ndarray:
    """A keep mask of 0 and 1 of any type as bool; everything else is a ``UserError``."""
    keep = np.asarray(keep)
    inside = np.asarray(keep == 1, bool)
    wrong = ~(inside | np.asarray(keep == 0, bool))
    if wrong.any():
        raise UserError(
            f"of {wrong.size} values of keep ({keep.dtype}), {wrong.sum()} are neither 0 nor 1, the first "
            f"{keep[wrong][0]!s:.20}: write True or 1 where the model trained on the sample, else False or 0."
        )
    return inside


def must_be_finite(phi: np.ndarray, dims: Sequence[str]) -> None:
    """Raise a ``UserError`` with count and first place, by ``dims``, if phi is not of finite numbers."""
    if phi.dtype.kind not in "fiu":
        raise UserError(f"phi is of type {phi.dtype}: it must be of numbers, as float32.")
    if not (finite := np.isfinite(phi)).all():
        places = np.argwhere(~finite)
        place = ", ".join(f"{dim} {index}" for dim, index in zip(dims, places[0]))
        raise UserError(
            f"of {phi.size} values of phi, {len(places)} are not finite, the first ({phi[tuple(places[0])]}) at {place}"
            " (counted from 0): leave that model or sample out, or train it again with a lower lr."
        )


def save_run(run: xr.Dataset, path: str | os.PathLike[str], *, pack: bool = True) -> Path:
    """Write a run as one compressed netCDF file with a checksum, ``attrs["sha256"]``, that :func:`open_run` verifies.

    Args:
        pack: store phi in 16 bits by the CF convention (netCDF has no float16): one variable a checkpoint, phi_0000
            and on, each with its own scale and offset, because phi spans tenths at the start and tens at the end.
            False keeps float32 to the bit.

    Raises:
        UserError: the run cannot be scored (:func:`dynmia.store.run.checked_run`), or the file cannot be written.
    """
    path = Path(path)
    run = checked_run(run)
    run = run.assign_coords(epoch=run["epoch"].astype(np.int64, copy=False))
    stored = run.assign(keep=(run.keep.dims, run.keep.values.astype(np.int8), run.keep.attrs))
    if pack:
        stored = stored.drop_vars("phi")
        for epoch, phi in zip(run.epoch.values, run.phi.values.astype(np.float64)):
            low, high = phi.min(), phi.max()
            scale, offset = float(max((high - low) / STEPS, 1e-9)), float((high + low) / 2)
            attrs = run.phi.attrs | {"scale_factor": scale, "add_offset": offset}
            stored[f"phi_{epoch:04d}"] = run.phi.dims[1:], np.rint((phi - offset) / scale).astype(np.int16), attrs
    return write_dataset(stored, path)


def write_dataset(data: xr.Dataset, path: Path) -> Path:
    """Write ``data`` as one compressed netCDF file, atomically, with a checksum, ``attrs["sha256"]``, and a seal."""
    data = data.assign_attrs({"format": FORMAT} | data.attrs | {"seal": "sha256 of the file, at its end"})
    data = data.assign_attrs(sha256=_checksum(data))
    encoding = {name: {"zlib": True, "complevel": 9, "shuffle": True} for name in data.data_vars}
    try:  # in memory: HDF5 crashes on a full disk
        content = bytes(data.to_netcdf(engine="h5netcdf", encoding=encoding))
        same = _checksum(_read(content)) == data.attrs["sha256"]
    except Exception as error:  # of xarray, h5netcdf or h5py, each with errors of its own
        raise UserError(
            f"cannot write {path}: what it is to hold does not fit into netCDF ({reason(error)})."
        ) from error
    if not same:
        raise UserError(
            f"cannot write {path}: what it is to hold would come back changed; let all variables and attributes be of "
            "numbers, or attributes of text."
        )
    write_atomic(path, content + SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n")
    return path


def open_run(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a stored run (a file, or the folder of a finished run) and verify it; phi is float32, keep is bool.

    Raises:
        StoreError: missing, damaged, altered, of another version, no run, or of another study than its folder.
    """
    if not os.path.isdir(path):
        return _as_run(stored_dataset(Path(path)), path)
    manifest = read_manifest(path)
    again, path = continued_by(manifest, path), Path(path) / "run.nc"
    if not path.exists():
        raise StoreError(f"the run in {path.parent} is not finished: continue it by: {again}")
    run = _as_run(stored_dataset(path, f"make it anew by: {again}"), path)
    if run.attrs.get("identity") != manifest["identity"]:
        raise StoreError(f"{path} is of another study than its folder: make it anew by: {again}")
    return run


def _as_run(stored: xr.Dataset, path: str | os.PathLike[str]) -> xr.Dataset:
    """The run that :func:`save_run` stored."""
    run = stored
    epochs = stored["epoch"].values if "epoch" in stored.coords else ()
    if packed := [stored[name] for epoch in epochs if (name := f"phi_{epoch:04d}") in stored]:
        values = np.stack([part.values * part.scale_factor + part.add_offset for part in packed])
        attrs = {k: v for k, v in packed[0].attrs.items() if k not in ("scale_factor", "add_offset")}
        run = stored.drop_vars([part.name for part in packed])
        run["phi"] = ("epoch", *packed[0].dims), values.astype(np.float32), attrs
    if missing := [name for name in VARIABLES if name not in run]:
        kind = "measures of hardness, made from the run beside it" if "part" in run.dims else "something else"
        raise StoreError(f"{path} is no run (it has no {', '.join(missing)}) but {kind}: give the file of a run.")
    return run.assign(keep=(run.keep.dims, run.keep.values.astype(bool), run.keep.attrs))


def stored_dataset(path: Path, mend: str = "fetch it again, or make it again by its command.") -> xr.Dataset:
    """Read what :func:`write_dataset` wrote, verified; its errors are those of :func:`open_run`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"{path} is no file, but a folder, a pipe or a device: name a run file or a run folder.")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"run file {path} does not exist.") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from error
    body, sealed, end = content.rpartition(SEAL)
    total = hashlib.sha256(body if sealed else content).hexdigest().encode() + b"\n"
    if (end if sealed else _listed_sum(path) or total) != total:  # before HDF5 sees damage, some of which hangs it
        raise StoreError(f"{path} was altered (its checksum differs): {mend}")
    try:
        stored = _read(content)
        expected, version = stored.attrs["sha256"], stored.attrs["format"]
    except Exception as error:  # of xarray, h5netcdf or h5py, each with errors of its own
        raise StoreError(f"{path} is truncated or not a released run: {mend} ({type(error).__name__})") from error
    if version != FORMAT:
        raise StoreError(
            f"{path} has format {version}, this dynmia reads format {FORMAT}: use the version that wrote it."
        )
    if "seal" in stored.attrs and not sealed:
        raise StoreError(f"{path} is truncated or not a released run: {mend}")
    if _checksum(stored) != expected:
        raise StoreError(f"{path} was altered (its checksum differs): {mend}")
    stored.attrs.pop("seal", None)  # of the file, not of what it holds, as the fill values of its variables are
    for variable in stored.variables.values():
        variable.attrs.pop("_FillValue", None)
    return stored


def _listed_sum(path: Path) -> bytes:
    """The sha256 of ``path`` in SHA256SUMS beside it, where released files stand that were written before the seal."""
    sums = path.with_name("SHA256SUMS")
    rows = (line.split() for line in sums.read_bytes().splitlines()) if sums.is_file() else ()
    return next((row[0] + b"\n" for row in rows if row[1:] == [path.name.encode()]), b"")


def _read(content: bytes) -> xr.Dataset:
    with xr.open_dataset(io.BytesIO(content), engine="h5netcdf", mask_and_scale=False) as file:
        return file.load()


def _checksum(stored: xr.Dataset) -> str:
    """sha256 over the stored values and every attribute of them, but the checksum and the mark of the seal."""
    attrs = {name: str(value) for name, value in stored.attrs.items() if name not in ("sha256", "seal")}
    for name in map(str, stored.data_vars):
        attrs |= {f"{name}.{key}": str(value) for key, value in stored[name].attrs.items() if key != "_FillValue"}
    return digest({str(name): stored[name].values for name in stored.variables}, attrs)

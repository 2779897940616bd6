"""A run on disk: one sealed file a shadow model, a manifest, and nothing that needs pickle.

    RUN/manifest.json                       study, identity, data fingerprint, where and with what it was trained
    RUN/model-003.state.safetensors         weights, optimiser and results so far of a model in flight
    RUN/model-003.safetensors               the results of a finished model: its shard
    RUN/model-003.lock                      held by the process that trains the model

Every file is written under a temporary name, flushed and renamed, and carries a sha256 that is verified on reading.
What would exceed 16 MB (a large model's state) lies in parts, NAME.TAG-0.safetensors and on; the file itself, written
last, names them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from .errors import StoreError, UserError, disk_error
from .study import FORMAT, Study

PART_BYTES = 15_000_000  # of arrays in one file: with its header it stays below 16 MB


def write_atomic(path: Path, content: bytes, flush: bool = True) -> None:
    """Write ``content`` to a temporary file beside ``path`` and rename it; on failure nothing of it stays."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too leaves no temporary file behind
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise disk_error(error, path) from error
        raise


def digest(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> str:
    """sha256 over names, types, shapes and bytes of ``arrays``, and over ``meta``."""
    sha = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        sha.update(f"{name}{array.dtype.str}{array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def write_sealed(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any], flush: bool = True) -> None:
    """Write arrays and a JSON mapping as a safetensors file with its checksum, in parts if they are large."""
    meta = {k: v for k, v in meta.items() if k not in ("parts", "tag", "shapes")} | {"format": FORMAT}
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    parts = _parts(arrays)
    if len(parts) > 1:
        meta["parts"] = len(parts)
        meta["tag"] = digest(arrays, meta)[:12]  # a part never replaces one of other content that is still in use
        meta["shapes"] = {name: array.shape for name, array in arrays.items() if array.nbytes > PART_BYTES}
    text = json.dumps(meta, sort_keys=True)
    sealed = {"meta": text, "sha256": digest(arrays, meta)}
    before = set(path.parent.glob(f"{path.stem}.*-*.safetensors"))
    if len(parts) > 1:
        for file, part in zip(_part_files(path, meta), parts):
            write_atomic(file, safetensors.numpy.save(part), flush)
            before.discard(file)
    write_atomic(path, safetensors.numpy.save(parts[0] if len(parts) == 1 else {}, sealed), flush)
    for file in before:  # of what this file replaced
        file.unlink(missing_ok=True)


def _parts(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Distribute arrays over parts of at most PART_BYTES; a larger array is cut, flat, into NAME@0, NAME@1 and on."""
    parts: list[dict[str, np.ndarray]] = [{}]
    room = PART_BYTES
    for name, array in arrays.items():
        step = max(1, PART_BYTES // array.itemsize)
        cuts = range(0, array.size, step)
        flat = array.reshape(-1)
        whole = array.nbytes <= PART_BYTES
        pieces = {name: array} if whole else {f"{name}@{k}": flat[a : a + step] for k, a in enumerate(cuts)}
        for key, piece in pieces.items():
            if piece.nbytes > room and parts[-1]:
                parts.append({})
                room = PART_BYTES
            parts[-1][key] = piece
            room -= piece.nbytes
    return parts


def _part_files(path: Path, meta: dict[str, Any]) -> list[Path]:
    """The parts that ``meta`` names."""
    return [path.with_name(f"{path.stem}.{meta['tag']}-{k}.safetensors") for k in range(meta.get("parts", 0))]


def read_sealed(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`write_sealed` wrote.

    Raises:
        StoreError: the file is truncated or altered, or another version of dynmia wrote it.
    """
    mend = "delete it and run the same command again to make it anew."
    try:
        with safe_open(path, "np") as file:
            sealed = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        meta = json.loads(sealed["meta"])
        for part in _part_files(path, meta):
            arrays |= safetensors.numpy.load_file(part)
        for name, shape in meta.get("shapes", {}).items():
            keys = list(itertools.takewhile(arrays.__contains__, (f"{name}@{k}" for k in itertools.count())))
            arrays[name] = np.concatenate([arrays.pop(key) for key in keys]).reshape(shape)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is truncated or not a dynmia file: {mend}") from error
    if digest(arrays, meta) != sealed.get("sha256"):
        raise StoreError(f"{path} was altered (its checksum differs): {mend}")
    if meta["format"] != FORMAT:
        raise StoreError(f"{path} has format {meta['format']}, this dynmia reads format {FORMAT}: {mend}")
    return arrays, meta


class RunStore:
    """The folder of one run.

    Args:
        folder: made if missing.
        study: with definite precision (:meth:`dynmia.study.Study.resolve`).
        fingerprint: of the pool's data and of a user's own model code.
        about: versions, hardware and command, kept in the manifest.

    Raises:
        StoreError: the folder holds another study; the message names the fields that differ.
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], study: Study, fingerprint: str, about: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.study = study
        self.identity = study.identity(fingerprint)
        path = self.folder / "manifest.json"
        if path.exists():
            self.manifest = read_manifest(self.folder)
            if self.manifest["identity"] != self.identity:
                what = differing(self.manifest["study"], study.to_dict())
                raise StoreError(
                    f"{self.folder} holds a run of another study; it differs in {what}: choose another --out."
                )
        else:
            self.manifest = {
                "format": FORMAT, "identity": self.identity, "fingerprint": fingerprint, "study": study.to_dict()
            } | about  # fmt: skip
            self.write_manifest()

    def write_manifest(self) -> None:
        """Write what ``manifest`` holds."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        with self.locked():
            write_atomic(self.folder / "manifest.json", json.dumps(self.manifest, indent=1).encode())

    def shard(self, model: int) -> Path:
        """Path of the finished shard of ``model``."""
        return self.folder / f"model-{model:03d}.safetensors"

    def state(self, model: int) -> Path:
        """Path of the saved state of ``model`` while in flight."""
        return self.folder / f"model-{model:03d}.state.safetensors"

    def finished(self, model: int) -> bool:
        """Whether the shard of ``model`` is there (it is verified when read)."""
        return self.shard(model).exists()

    @contextlib.contextmanager
    def locked(self, model: int | None = None) -> Iterator[None]:
        """Hold the lock of ``model``, or of the run's own files, and clear what a killed process left half written.

        The system drops the lock when its process ends, however it ends. Where there is no ``fcntl`` nothing is locked.

        Raises:
            UserError: another process holds that of ``model``; for that of the run, which takes seconds, we wait.
        """
        stem = "run" if model is None else f"model-{model:03d}"
        path = self.folder / f"{stem}.lock"
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        while True:
            try:
                file = path.open("a+")
            except OSError as error:
                raise disk_error(error, path) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if model is not None else 0))
                if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    break  # the very file that others see: the last holder removed its own
            except BlockingIOError as error:
                file.close()
                raise UserError(
                    f"model {model} in {self.folder} is being trained by another process: wait for it, or choose "
                    "other --models or another --out."
                ) from error
            except FileNotFoundError:
                pass
            file.close()
        try:
            for name in (stem,) if model is not None else (stem, "manifest"):
                for left in self.folder.glob(f".{name}.*"):
                    left.unlink(missing_ok=True)
            yield
        finally:
            path.unlink(missing_ok=True)
            file.close()

    def models(self) -> list[int]:
        """The models of which there is a shard or a state."""
        return [m for m in range(self.study.shadow_models) if self.finished(m) or self.state(m).exists()]

    def missing(self) -> list[int]:
        """The models that are not finished."""
        return [model for model in range(self.study.shadow_models) if not self.finished(model)]

    def save_state(self, model: int, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Save the state of a model in flight; not flushed to the platter, a power cut may cost more than an epoch."""
        write_sealed(self.state(model), arrays, meta | {"model": model, "identity": self.identity}, flush=False)

    def load_state(self, model: int) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Load the state of a model in flight, verified, or None."""
        for ignored in ((StoreError,), (StoreError,), ()):  # its process may replace or drop it while we read
            with contextlib.suppress(*ignored):
                return self._read(self.state(model), model) if self.state(model).exists() else None
        return None

    def save_shard(self, model: int, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Write the finished shard of ``model`` and drop its state."""
        write_sealed(self.shard(model), arrays, meta | {"model": model, "identity": self.identity})
        self.drop_state(model)

    def drop_state(self, model: int) -> None:
        """Remove the saved state of ``model``, parts and all."""
        self.state(model).unlink(missing_ok=True)
        for part in self.folder.glob(f"{self.state(model).stem}.*-*.safetensors"):
            part.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Clear what a process that was killed right after writing a shard left beside it."""
        for model in range(self.study.shadow_models):
            left = self.state(model).exists() or (self.folder / f"model-{model:03d}.lock").exists()
            if left and self.finished(model):
                with contextlib.suppress(UserError), self.locked(model):
                    self.drop_state(model)

    def load_shard(self, model: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Load a finished shard, verified."""
        return self._read(self.shard(model), model)

    def _read(self, path: Path, model: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, meta = read_sealed(path)
        if meta["identity"] != self.identity or meta["model"] != model:
            raise StoreError(f"{path} belongs to another study or model: delete it and run the same command again.")
        return arrays, meta


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Name the fields in which two studies differ, with both values."""
    fields = [f"{k} ({theirs.get(k)} there, {ours[k]} here)" for k in ours if theirs.get(k) != ours[k]]
    return ", ".join(fields) or "the data or the model's code"


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the manifest of a run folder."""
    path = Path(folder) / "manifest.json"
    if not path.exists():
        raise StoreError(f"{folder} is not a run folder: it has no manifest.json.")
    try:
        manifest = json.loads(path.read_text())
        manifest["identity"], manifest["study"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: choose another --out, or restore it.") from error
    if manifest.get("format") != FORMAT:
        raise StoreError(
            f"{path} has format {manifest.get('format')}, this dynmia reads format {FORMAT}: choose another --out."
        )
    return manifest

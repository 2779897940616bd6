"""A run on disk: one sealed file a shadow model, a manifest, and nothing that needs pickle.

    RUN/manifest.json                       study, identity, data fingerprint, where and with what it was trained
    RUN/model-003.state.safetensors         weights, optimiser and results so far of a model in flight
    RUN/model-003.safetensors               the results of a finished model: its shard

Every file is written under a temporary name, flushed and renamed, and carries a sha256 that is verified on reading.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from .errors import StoreError, disk_error
from .study import FORMAT, Study


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
    """Write arrays and a JSON mapping as one safetensors file with its checksum."""
    meta = meta | {"format": FORMAT}
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    sealed = {"meta": json.dumps(meta, sort_keys=True), "sha256": digest(arrays, meta)}
    write_atomic(path, safetensors.numpy.save(arrays, sealed), flush)


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
                theirs, ours = self.manifest["study"], study.to_dict()
                fields = [f"{k} ({theirs.get(k)} there, {ours[k]} here)" for k in ours if theirs.get(k) != ours[k]]
                what = ", ".join(fields) or "the data or the model's code"
                raise StoreError(
                    f"{self.folder} holds a run of another study; it differs in {what}: choose another --out."
                )
        else:
            self.manifest = {
                "format": FORMAT, "identity": self.identity, "fingerprint": fingerprint, "study": study.to_dict()
            } | about  # fmt: skip
            write_atomic(path, json.dumps(self.manifest, indent=1).encode())

    def shard(self, model: int) -> Path:
        """Path of the finished shard of ``model``."""
        return self.folder / f"model-{model:03d}.safetensors"

    def state(self, model: int) -> Path:
        """Path of the saved state of ``model`` while in flight."""
        return self.folder / f"model-{model:03d}.state.safetensors"

    def finished(self, model: int) -> bool:
        """Whether the shard of ``model`` is there (it is verified when read)."""
        return self.shard(model).exists()

    def missing(self) -> list[int]:
        """The models that are not finished."""
        return [model for model in range(self.study.shadow_models) if not self.finished(model)]

    def save_state(self, model: int, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Save the state of a model in flight; not flushed to the platter, a power cut may cost more than an epoch."""
        write_sealed(self.state(model), arrays, meta | {"model": model, "identity": self.identity}, flush=False)

    def load_state(self, model: int) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Load the state of a model in flight, verified, or None."""
        return self._read(self.state(model), model) if self.state(model).exists() else None

    def save_shard(self, model: int, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Write the finished shard of ``model`` and drop its state."""
        write_sealed(self.shard(model), arrays, meta | {"model": model, "identity": self.identity})
        self.state(model).unlink(missing_ok=True)

    def load_shard(self, model: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Load a finished shard, verified."""
        return self._read(self.shard(model), model)

    def _read(self, path: Path, model: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, meta = read_sealed(path)
        if meta["identity"] != self.identity or meta["model"] != model:
            raise StoreError(f"{path} belongs to another study or model: delete it and run the same command again.")
        return arrays, meta


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

"""A run on disk: one sealed file a shadow model, a manifest, and nothing that needs pickle.

    RUN/manifest.json                       study, identity, data fingerprint, where and with what it was trained
    RUN/model-003.state.safetensors         weights, optimiser and results so far of a model in flight
    RUN/model-003.safetensors               the results of a finished model: its shard
    RUN/model-003.lock                      held by the process that trains the model

Every file is written under a temporary name (``TEMPORARY``), flushed and renamed, and carries a sha256 that is verified
on reading. Where the file system has no locks, training goes on without them, with a warning.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import secrets
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from ..errors import StoreError, UserError, disk_error, reason
from ..study import FORMAT, Study

Sealed = tuple[dict[str, np.ndarray], dict[str, Any]]  # arrays, and what is said of them
TEMPORARY = ".dynmia-tmp-"  # begins the name of every file that is being written, and of no other
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # of a file system without flock
ORIGIN = {"hardware": str, "device": str, "workers": int, "command": str, "created": str, "versions": dict}
FIELDS = {"format": int, "identity": str, "fingerprint": str, "study": dict} | ORIGIN  # of a manifest, with their types


def write_atomic(path: Path, content: bytes, flush: bool = True) -> None:
    """Write ``content`` to a temporary file beside ``path`` and rename it; on failure nothing of it stays.

    What a killed process of this machine left of its own writing of ``path`` is removed.
    """
    begins = f"{TEMPORARY}{path.name[:50]}-{platform.node()[:50]}-"
    temporary = path.with_name(f"{begins}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: it is a folder or a device and no file; choose another name.")
        path.parent.mkdir(parents=True, exist_ok=True)
        clear(path.parent, begins, dead=True)
        with temporary.open("xb") as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:  # after Ctrl-C too; a file that was renamed is gone
        with contextlib.suppress(OSError):
            temporary.unlink()


def clear(folder: Path, begins: str, dead: bool = False) -> None:
    """Remove the temporary files of ``folder`` whose names begin so; ``dead``: those of processes that have ended."""
    with contextlib.suppress(OSError):  # of another user, or gone by now
        for left in [path for path in folder.iterdir() if path.name.startswith(begins)]:
            ended = not dead or not _lives(left.name.removeprefix(begins).partition("-")[0])
            if ended and left.is_file() and not left.is_symlink():
                left.unlink()


def _lives(process: str) -> bool:
    """Whether a process of that number may be running here."""
    with contextlib.suppress(OSError, OverflowError):
        try:
            if os.name == "posix" and process.isdecimal():
                os.kill(int(process), 0)
        except ProcessLookupError:
            return False
    return True


def lock(path: Path, wait: bool) -> TextIO | None:
    """Open and lock ``path`` and return it; None, with a warning, where the file system has no locks.

    Raises:
        BlockingIOError: another process holds it, and we do not ``wait``.
        UserError: it cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        with contextlib.ExitStack() as opened:
            while True:
                file = opened.enter_context(path.open("a+"))
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                        opened.pop_all()
                        return file  # the very file that others see: the last holder removed its own
                opened.close()
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise disk_error(error, path) from error
        path.unlink(missing_ok=True)
        warnings.warn(
            f"{path.parent} is on a file system without locks ({error.strerror}): let no second process work on this "
            "run.", stacklevel=2,
        )  # fmt: skip
        return None


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
    """Write arrays and a JSON mapping as a safetensors file with its checksum."""
    meta = meta | {"format": FORMAT}
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    sealed = {"meta": json.dumps(meta, sort_keys=True), "sha256": digest(arrays, meta)}
    write_atomic(path, safetensors.numpy.save(arrays, sealed), flush)


def read_sealed(path: Path) -> Sealed:
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
    if "parts" in meta:
        raise StoreError(f"{path} lies in several parts, a form that this dynmia does not read: {mend}")
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
        try:
            new = not (self.folder / "manifest.json").exists()
            if new:
                self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        if new:
            core = dict(format=FORMAT, identity=self.identity, fingerprint=fingerprint, study=study.to_dict())
            with self.locked():
                if not (self.folder / "manifest.json").exists():  # of two that begin at once the first decides
                    self.write_manifest(core | about)
        self.manifest = read_manifest(self.folder)
        if self.manifest["identity"] != self.identity:
            what = differing(self.manifest["study"], study.to_dict())
            raise StoreError(f"{self.folder} holds a run of another study; it differs in {what}: choose another --out.")

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write ``manifest`` as this folder's, whose lock must be held."""
        write_atomic(self.folder / "manifest.json", json.dumps(manifest, indent=1).encode())
        self.manifest = manifest

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

        The system drops the lock when its process ends, however it ends. Where there are no locks, nothing is cleared.

        Raises:
            UserError: another process holds that of ``model``; for that of the run, which takes seconds, we wait.
        """
        stem = "run" if model is None else f"model-{model:03d}"
        path = self.folder / f"{stem}.lock"
        try:
            file = lock(path, wait=model is None)
        except BlockingIOError as error:
            raise UserError(
                f"model {model} in {self.folder} is being trained by another process: wait for it, or choose "
                "other --models or another --out."
            ) from error
        if file is None:
            yield
            return
        try:
            for name in (stem,) if model is not None else (stem, "manifest"):
                clear(self.folder, f"{TEMPORARY}{name}.")
            yield
        finally:
            path.unlink(missing_ok=True)
            file.close()

    def missing(self) -> list[int]:
        """The models that are not finished."""
        return [model for model in range(self.study.shadow_models) if not self.finished(model)]

    def save_state(self, model: int, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Save the state of a model in flight; not flushed to the platter, a power cut may cost more than an epoch."""
        write_sealed(self.state(model), arrays, meta | {"model": model, "identity": self.identity}, flush=False)

    def load_state(self, model: int) -> Sealed | None:
        """Load the state of a model in flight, verified, or None."""
        try:
            return self._read(self.state(model), model) if self.state(model).exists() else None
        except StoreError:
            if not self.state(model).exists():  # its process has ended the model while we looked
                return None
            raise

    def save_shard(self, model: int, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Write the finished shard of ``model`` and drop its state."""
        write_sealed(self.shard(model), arrays, meta | {"model": model, "identity": self.identity})
        self.state(model).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Clear what a process that was killed right after writing a shard left beside it."""
        for model in range(self.study.shadow_models):
            left = self.state(model).exists() or (self.folder / f"model-{model:03d}.lock").exists()
            if left and self.finished(model):
                with contextlib.suppress(UserError), self.locked(model):
                    self.state(model).unlink(missing_ok=True)

    def load_shard(self, model: int) -> Sealed:
        """Load a finished shard, verified."""
        return self._read(self.shard(model), model)

    def _read(self, path: Path, model: int) -> Sealed:
        arrays, meta = read_sealed(path)
        if (meta.get("identity"), meta.get("model")) != (self.identity, model):
            raise StoreError(f"{path} belongs to another study or model: delete it and run the same command again.")
        return arrays, meta


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Name the fields in which two studies differ, with both values."""
    fields = [f"{k} ({theirs.get(k)} there, {ours[k]} here)" for k in ours if theirs.get(k) != ours[k]]
    return ", ".join(fields) or "the data or the model's code"


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the manifest of a run folder; a ``StoreError`` names the first field that is missing or wrong."""
    path = Path(folder) / "manifest.json"
    mend = "choose another --out, or restore it."
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{folder} is not a run folder: it has no manifest.json.") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({reason(error)}): {mend}") from error
    version = manifest.get("format", FORMAT) if isinstance(manifest, dict) else FORMAT
    if version != FORMAT:
        raise StoreError(f"{path} has format {version}, this dynmia reads format {FORMAT}: choose another --out.")
    if fault := next(_faults(manifest), ""):
        raise StoreError(f"{path} is damaged ({fault}): {mend}")
    return manifest


def _faults(manifest: Any) -> Iterator[str]:
    """The first field of a manifest that is missing or not what it must be; read no further."""
    yield from _untyped(manifest, FIELDS)
    try:
        study = Study.from_dict(manifest["study"])
    except UserError as error:
        yield f"study: {reason(error)}"
    if study.identity(manifest["fingerprint"]) != manifest["identity"]:
        yield "identity is not that of its study and fingerprint"
    merged = manifest.get("merged", [])
    if not isinstance(merged, list):
        yield f"merged is {merged!r:.40}: it must be a list"
    for number, entry in enumerate(merged):
        yield from (f"merged[{number}]: {fault}" for fault in _untyped(entry, ORIGIN | {"models": list}))
        for model in entry["models"]:
            if type(model) is not int or not 0 <= model < study.shadow_models:
                yield f"merged[{number}]: models has {model!r:.40}: they are 0 to {study.shadow_models - 1}"


def _untyped(mapping: Any, fields: dict[str, type]) -> Iterator[str]:
    """What is wrong with a mapping that must have ``fields`` of these types."""
    if not isinstance(mapping, dict):
        yield f"{mapping!r:.40} is no mapping"
    for name, kind in fields.items():
        if type(mapping.get(name)) is not kind:
            value = f"is {mapping[name]!r:.40}" if name in mapping else "is missing"
            yield f"{name} {value}: it must be of type {kind.__name__}"
        if name == "workers" and mapping[name] < 1:
            yield f"workers is {mapping[name]}: it must be at least 1"


def continued_by(manifest: dict[str, Any], folder: str | os.PathLike[str]) -> str:
    """The line that continues the run in ``folder``, as one types it."""
    return f"{manifest['command']} --out {shlex.quote(str(folder))}"


def merge(into: str | os.PathLike[str], sources: list[str]) -> Iterator[str]:
    """Join the shards and states of run folders of the same study into one; yields a line for each model
    taken and one for the whole.

    A finished shard is never replaced, and of two unfinished models the one that is further on is kept. Each file is
    verified before anything of ours goes. Nothing is removed from the sources; merging again changes nothing.

    Raises:
        StoreError: a folder holds another study (the differing fields are named), or a file is damaged.
    """
    folders = [Path(source) for source in sources if os.path.realpath(source) != os.path.realpath(into)]
    manifests = [read_manifest(folder) for folder in folders]
    first = manifests[0] if manifests and not (Path(into) / "manifest.json").exists() else read_manifest(into)
    for folder, manifest in zip(folders, manifests):  # all, before anything is copied
        if manifest["identity"] != first["identity"]:
            what = differing(manifest["study"], first["study"])
            raise StoreError(f"{folder} holds a run of another study; it differs in {what}: nothing was merged.")
    study = Study.from_dict(first["study"])
    store = RunStore(into, study, first["fingerprint"], {k: v for k, v in first.items() if k in ORIGIN})
    for folder, manifest in zip(folders, manifests):
        source = RunStore(folder, study, manifest["fingerprint"], {})
        for model in range(study.shadow_models):
            if store.finished(model) or not (source.finished(model) or source.state(model).exists()):
                continue
            with store.locked(model):
                whole = source.finished(model)
                theirs = source.load_shard(model) if whole else source.load_state(model)
                ours = None if whole else store.load_state(model)
                if theirs and (ours is None or ours[1]["epoch"] < theirs[1]["epoch"]):
                    credit(store, model, manifest)
                    (store.save_shard if whole else store.save_state)(model, *theirs)
                    stage = "finished" if whole else f"epoch {theirs[1]['epoch']} of {study.epochs}"
                    yield f"model {model:3d}  {stage}, from {folder}"
    done = study.shadow_models - len(store.missing())
    yield f"{into}: {done} of {study.shadow_models} models finished; {continued_by(first, into)}"


def credit(store: RunStore, model: int, source: dict[str, Any]) -> None:
    """Note in the manifest of ``store`` where ``model`` was trained: as the manifest of its source says."""
    from_part = [part for part in source.get("merged", []) if model in part["models"]]
    about = {name: (from_part or [source])[0][name] for name in ORIGIN}
    with store.locked():
        manifest = read_manifest(store.folder)  # as others that merge at the same time have left it
        parts = [part | {"models": [m for m in part["models"] if m != model]} for part in manifest.get("merged", [])]
        same = [part for part in parts if all(part[name] == about[name] for name in ORIGIN)]
        if not same:
            parts.append(about | {"models": [model]})
        else:
            same[0]["models"].append(model)
        store.write_manifest(manifest | {"merged": [part for part in parts if part["models"]]})

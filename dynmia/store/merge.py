"""Joining the folders of one study that several machines trained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..study import Study
from .folder import ORIGIN, RunStore, continued_by, differing, read_manifest

CORE = ("format", "identity", "fingerprint", "study", "merged")  # of a manifest; the rest says where it was trained


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
    store = RunStore(into, study, first["fingerprint"], {k: v for k, v in first.items() if k not in CORE})
    for folder, manifest in zip(folders, manifests):
        source = RunStore(folder, study, manifest["fingerprint"], {})
        for model in source.models():
            if store.finished(model):
                continue
            with store.locked(model):
                if source.finished(model):
                    shard = source.load_shard(model)
                    credit(store, model, manifest)
                    store.save_shard(model, *shard)
                    yield f"model {model:3d}  finished, from {folder}"
                    continue
                theirs, ours = source.load_state(model), store.load_state(model)
                if theirs and (ours is None or ours[1]["epoch"] < theirs[1]["epoch"]):
                    credit(store, model, manifest)
                    store.save_state(model, *theirs)
                    yield f"model {model:3d}  epoch {theirs[1]['epoch']} of {study.epochs}, from {folder}"
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

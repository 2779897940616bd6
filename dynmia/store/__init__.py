"""What is kept: the folder of a run in training, and the run, one labelled data set in a sealed file."""

from .folder import RunStore, merge, read_manifest, write_atomic
from .run import checked_run, open_run, project_root, resolve, save_run, study_of

__all__ = [
    "RunStore", "checked_run", "merge", "open_run", "project_root", "read_manifest", "resolve", "save_run", "study_of",
    "write_atomic",
]  # fmt: skip

"""dynmia: how membership privacy leaks while a model trains.

>>> study = dynmia.Study(dataset="digits", model="cnn", optimizer="adamw", epochs=30)
>>> run = dynmia.train(study)
>>> plane = dynmia.vulnerability_plane(run, rule="fpr@0.01")
>>> dynmia.intervals.every(run)
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .study import PRESETS, Study

if TYPE_CHECKING:
    from .engine import train
    from .lira import lira_scores
    from .plane import rate_interval, vulnerability_plane
    from .runs import open_run, save_run, study_of
    from .summary import null_planes, null_summary, rounded, summarise

_WHERE = {
    "train": "engine", "lira_scores": "lira", "vulnerability_plane": "plane", "rate_interval": "plane",
    "open_run": "runs", "save_run": "runs", "study_of": "runs", "summarise": "summary", "rounded": "summary",
    "null_summary": "summary", "null_planes": "summary",
}  # fmt: skip
__all__ = [
    "PRESETS", "Study", "UserError", "lira_scores", "null_planes", "null_summary", "open_run", "rate_interval",
    "rounded", "save_run", "study_of", "summarise", "train", "vulnerability_plane",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use, so that reading a released run does not load torch."""
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError:
        raise AttributeError(f"module 'dynmia' has no attribute {name!r}") from None

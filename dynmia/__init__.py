"""dynmia: how membership privacy leaks while a model trains.

>>> study = dynmia.Study(dataset="digits", model="cnn", optimizer="adamw", epochs=30)
>>> run = dynmia.train(study)
>>> plane = dynmia.vulnerability_plane(run)
>>> dynmia.summarise(run)
"""

from . import attack, book, dynamics, pool, shadow, stats, store
from .attack import Scoring, lira_scores, rate_interval, vulnerability_plane
from .book import rounded
from .errors import UserError
from .shadow import train
from .stats import null_planes, null_summary, summarise
from .store import open_run, save_run, study_of
from .study import PRESETS, Study

__all__ = [
    "PRESETS", "Scoring", "Study", "UserError", "attack", "book", "dynamics", "lira_scores", "null_planes",
    "null_summary", "open_run", "pool", "rate_interval", "rounded", "save_run", "shadow", "stats", "store", "study_of",
    "summarise", "train", "vulnerability_plane",
]  # fmt: skip

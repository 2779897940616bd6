"""Membership inference on the stored signal, and the FPR-TPR plane that it places every sample on."""

from .lira import lira_scores
from .moderated import moderated_scores
from .others import attack_scores
from .plane import part_of, rate_interval, vulnerability_plane, vulnerability_planes
from .scoring import Scoring

__all__ = [
    "Scoring", "attack_scores", "lira_scores", "moderated_scores", "part_of", "rate_interval", "vulnerability_plane",
    "vulnerability_planes",
]  # fmt: skip

"""How sure: intervals over models and samples, the permutation null, agreement, correlations, trends, simulation."""

from .intervals import every, interval, ratio
from .resample import bootstrap_weights, null_planes, null_summary, p_values, summarise

__all__ = [
    "bootstrap_weights", "every", "interval", "null_planes", "null_summary", "p_values", "ratio", "summarise",
]  # fmt: skip

"""How sure: intervals over models and samples, the permutation null, agreement, correlations, trends, simulation."""

from .intervals import difference, interval, ratio, summarise
from .resample import bootstrap_weights, null_planes, null_summary, p_values

__all__ = [
    "bootstrap_weights", "difference", "interval", "null_planes", "null_summary", "p_values", "ratio", "summarise",
]  # fmt: skip

"""How the cloud of samples moves over the plane, its metrics, and its states as a Markov chain."""

from .cloud import (
    CUTS,
    STATES,
    VULNERABLE,
    auc,
    centre_of_mass,
    displacement,
    dynamic_vulnerability,
    early_identification,
    encoding_speed,
    population_mean,
    share_of,
    signed_speed,
    silhouette,
    spatial_entropy,
    states,
    tpr_at_fpr,
    transition_counts,
    transition_matrix,
    transition_to_vulnerable,
    vulnerable,
)  # fmt: skip
from .metrics import METRICS, Metric

__all__ = [
    "CUTS", "METRICS", "STATES", "VULNERABLE", "Metric", "auc", "centre_of_mass", "displacement",
    "dynamic_vulnerability", "early_identification", "encoding_speed", "population_mean", "share_of", "signed_speed",
    "silhouette", "spatial_entropy", "states", "tpr_at_fpr", "transition_counts", "transition_matrix",
    "transition_to_vulnerable", "vulnerable",
]  # fmt: skip

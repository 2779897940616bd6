"""Membership inference attacks on the stored signal phi, all models as targets at once: LiRA's by name, and others.

What is stored is phi = log(p / (1 - p)) of the true class's probability p, from which p = 1 / (1 + exp(-phi)) and the
cross-entropy loss log(1 + exp(-phi)) follow exactly; the probabilities of the other classes are not stored. Each attack
takes phi (N, n), keep (N, n) and the labels (n) of one checkpoint and returns scores (N, n), larger for members. The
target's own model is never among its reference models.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import expit, log_expit

from ..errors import UserError, bounded
from . import lira
from .moderated import bavaria_scores, moderated_offline_scores, moderated_scores
from .scoring import LIRA, STUDY, Scoring

TIE = 1e-12  # of a log ratio, far below a step of the share
OFFLINE_A = 0.3  # p_in = a p_out + 1 - a: the default of the authors' code


def attack_scores(phi: np.ndarray, keep: np.ndarray, labels: np.ndarray, scoring: Scoring = STUDY) -> np.ndarray:
    """Score every (target model, sample) pair of one checkpoint by the attack of ``scoring``.

    Args:
        phi: (N, n) logit-scaled confidences; keep: (N, n), True or 1 where the model trained on the sample.
        labels: (n,) true classes.
        scoring: its reading plays no part.

    Returns:
        float64 (N, n), larger for members.

    Raises:
        UserError: too few models, or arrays that cannot be scored.
    """
    if scoring.attack in OTHERS:
        return OTHERS[scoring.attack](phi, keep, labels)
    if scoring.attack in LIRA:
        return lira.lira_scores(phi, keep, attack=scoring.attack, centre=scoring.centre, variance=scoring.variance)
    return FORMS[scoring.attack](phi, keep)


def _checked(phi: np.ndarray, keep: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """phi as float64, keep as bool, and labels that fit them."""
    phi, keep = lira.checked(phi, keep)
    labels = np.asarray(labels)
    if labels.shape != phi.shape[1:]:
        raise UserError(f"labels have shape {labels.shape}: they must be one a sample, {phi.shape[1:]}.")
    return np.asarray(phi, np.float64), keep, labels


def loss_threshold(phi: np.ndarray, keep: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Minus the cross-entropy loss, log p: one threshold for all samples and models (Yeom et al. 2018, adversary 2).

    The decision rule sets the threshold (they take the mean training loss). No reference models, no calibration.
    """
    return log_expit(_checked(phi, keep, labels)[0])


def shadow_classifier(phi: np.ndarray, keep: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-odds of an attack classifier a class, trained on the records of other shadow models (Shokri et al. 2017).

    Shokri et al. train a network a class on whole confidence vectors; only the true class's confidence is stored, so it
    is a logistic regression on log p and log(1 - p), which is the best classifier if p is Beta distributed for members
    and for others. Two-fold over models: each half of the models is attacked by a classifier that saw the other half.
    """
    from sklearn.linear_model import LogisticRegression

    phi, keep, labels = _checked(phi, keep, labels)
    features = np.stack([log_expit(phi), log_expit(-phi)], -1)  # (N, n, 2)
    scores = np.empty(phi.shape)
    fold = np.arange(len(phi)) < len(phi) // 2
    for target in (fold, ~fold):
        for label in np.unique(labels):
            others, own = np.ix_(~target, labels == label), np.ix_(target, labels == label)
            member = keep[others].ravel()
            if member.all() or not member.any():
                raise UserError(
                    f"attack 'shokri' finds only one side of class {label} in the half of {len(phi)} shadow models, "
                    f"{int((~target).sum())}, that one of its two classifiers learns from: use more models or samples."
                )
            known = features[others].reshape(-1, 2)
            middle, spread = known.mean(0), known.std(0) + 1e-12
            model = LogisticRegression(solver="newton-cholesky", tol=1e-6).fit((known - middle) / spread, member)
            log_odds = model.decision_function((features[own].reshape(-1, 2) - middle) / spread)
            scores[own] = log_odds.reshape(scores[own].shape)
    return scores


def rmia(phi: np.ndarray, keep: np.ndarray, labels: np.ndarray, *, gamma: float = 1.0, ties: bool = True) -> np.ndarray:
    """Robust attack, online (Zarifzadeh et al. 2024): share of the population that x dominates at ``gamma``.

    LR(x, z) = (p_target(x) / p(x)) / (p_target(z) / p(z)), and the score is the share of z with LR >= gamma. Half of
    p(x) is the mean probability under the other models that trained on x, half that under the others. A target's
    population is all samples of the pool that it did not train on, without x: under either design a random subset.
    Without ``ties``, of samples with the same share, as the many that dominate all of a small population, the larger
    ratio is first.
    """
    bounded("gamma", gamma, 1e-9, whole=False)
    phi, keep, _ = _checked(phi, keep, labels)
    p = expit(phi)
    return _dominated(log_expit(phi) - np.log((_others(p, keep) + _others(p, ~keep)) / 2), keep, gamma, ties)


def rmia_offline(
    phi: np.ndarray, keep: np.ndarray, labels: np.ndarray, *, gamma: float = 1.0, a: float = OFFLINE_A
) -> np.ndarray:
    """:func:`rmia` from out-models only, with the members' mean probability taken to be a p_out + 1 - a."""
    bounded("gamma", gamma, 1e-9, whole=False)
    bounded("a", a, 0, 1, whole=False)
    phi, keep, _ = _checked(phi, keep, labels)
    out = _others(expit(phi), ~keep)
    return _dominated(log_expit(phi) - np.log(((1 + a) * out + 1 - a) / 2), keep, gamma, True)


def _others(p: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean of p over the models in ``mask`` but the target, (N, n): a sum of positive terms, so nothing cancels."""
    rest = 1.0 - np.eye(len(p))
    count = np.einsum("ij,jz->iz", rest, mask)
    if count.min() < 1:
        raise UserError("a sample has no reference model on one side of the keep mask: use more shadow models.")
    return np.maximum(np.einsum("ij,jz->iz", rest, p * mask) / count, np.finfo(float).tiny)


def _dominated(log_ratio: np.ndarray, keep: np.ndarray, gamma: float, ties: bool) -> np.ndarray:
    """Share of each target's population z whose log ratio is at most that of x less log gamma, by sorting."""
    scores = np.empty(log_ratio.shape)
    for row, ratio, inside in zip(scores, log_ratio, keep):
        population = np.sort(ratio[~inside])
        own = ~inside & (gamma <= 1)  # x is no population sample of its own
        row[:] = np.searchsorted(population, ratio - np.log(gamma), "right") - own
        row /= np.maximum(len(population) - ~inside, 1)
        if not ties:
            row += TIE * ratio
    return scores


OTHERS: dict[str, Callable[..., np.ndarray]] = {
    "loss": loss_threshold, "shokri": shadow_classifier, "rmia": rmia, "rmia-offline": rmia_offline
}  # fmt: skip
FORMS: dict[str, Callable[..., np.ndarray]] = {
    "moderated": moderated_scores, "moderated-offline": moderated_offline_scores, "bavaria": bavaria_scores
}  # fmt: skip

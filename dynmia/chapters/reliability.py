"""Is a predictor as often right as it is confident: reliability diagram and expected calibration error.

Confidence is the largest predicted probability of a held-out image, right whether its class is the true one, as
``data/campaign.py`` keeps them. Of several models (model, image) each is judged by itself and the mean taken.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..errors import UserError


def expected_calibration_error(
    confidence: np.ndarray, right: np.ndarray, bins: int = 15, *, adaptive: bool = False
) -> float:
    """Mean over images of the gap between confidence and accuracy in their bin (Guo et al. 2017, eq. 3).

    It is never negative, so that noise alone makes it larger than zero: see :func:`calibrated_level`.

    Args:
        confidence, right: (image,) or (model, image); confidence in [0, 1].
        bins: of equal width on [0, 1].
        adaptive: bins of equal mass instead, as in Nixon et al. (2019) but of the largest probability alone; images of
            equal confidence may fall into two bins, in the order given.

    Raises:
        UserError: shapes differ, nothing is given, or a confidence is no probability.
    """
    return float(np.abs(_gaps(*_checked(confidence, right), bins, adaptive).sum(1)).sum(-1).mean())


def calibration(
    confidence: np.ndarray,
    right: np.ndarray,
    bins: int = 15,
    *,
    adaptive: bool = False,
    draws: int = 300,
    seed: int = 0,
    level: float = 0.95,
) -> pd.Series:
    """Expected calibration error with its bootstrap interval over held-out images, the same ones for all models.

    The interval is the spread of the resampled values about their mean, set about the estimate and cut at zero. Bins
    stay those of the sample. It speaks of other images, not of other models. The upward bias of the error stays in:
    far from calibration there is next to none, a well calibrated predictor is told by ``calibrated``.

    Returns:
        value, low, high, and ``calibrated``, the value that noise alone would give (:func:`calibrated_level`).
    """
    confidence, right = _checked(confidence, right)
    gaps = _gaps(confidence, right, bins, adaptive)  # (model, image, bin)
    images = gaps.shape[1]
    value = np.abs(gaps.sum(1)).sum(-1).mean()
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), draws).astype(np.float32)
    drawn = np.stack([np.abs(weights @ gap).sum(-1) for gap in gaps]).mean(0)  # (draw,)
    low, high = value - drawn.mean() + np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    calibrated = calibrated_level(confidence, bins, adaptive=adaptive)
    return pd.Series({"value": value, "low": max(low, 0.0), "high": high, "calibrated": calibrated})


def calibrated_level(confidence: np.ndarray, bins: int = 15, *, adaptive: bool = False) -> float:
    """What the expected calibration error comes out as for a perfectly calibrated predictor of this confidence.

    The gap of a bin is then a sum of independent centred Bernoulli variables, taken as normal: mean absolute value
    sqrt(2 / pi) times its standard deviation.
    """
    p = np.atleast_2d(np.asarray(confidence, float))
    spread = [np.bincount(number, one * (1 - one), bins) for one, number in zip(p, _bins(p, bins, adaptive))]
    return float(np.sqrt(2 / np.pi * np.stack(spread)).sum(-1).mean() / p.shape[1])


def reliability_diagram(
    confidence: np.ndarray, right: np.ndarray, bins: int = 15, *, adaptive: bool = False
) -> pd.DataFrame:
    """Mean confidence, accuracy and number of images of each bin that is not empty; several models are pooled."""
    confidence, right = _checked(confidence, right)
    table = pd.DataFrame({
        "bin": _bins(confidence, bins, adaptive).ravel(), "confidence": confidence.ravel(), "accuracy": right.ravel(),
    })  # fmt: skip
    grouped = table.groupby("bin")
    return grouped.mean().assign(count=grouped.size())


def _checked(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float (model, image)."""
    p, hit = (np.atleast_2d(np.asarray(values, float)) for values in (confidence, right))
    if p.shape != hit.shape or not p.size:
        raise UserError(f"confidence {p.shape} and right {hit.shape} must have one shape and hold at least one image.")
    if not ((p >= 0) & (p <= 1 + 1e-6)).all():  # sums of float32 exceed 1 by rounding
        raise UserError("confidence holds values that are no probabilities: they must lie in [0, 1].")
    return p, hit


def _bins(confidence: np.ndarray, bins: int, adaptive: bool) -> np.ndarray:
    """Number of the bin of each image, (model, image): ((b / bins, (b + 1) / bins], or of equal mass."""
    if bins < 1:
        raise UserError(f"bins is {bins}: at least 1 is needed.")
    if adaptive:
        rank = confidence.argsort(1, kind="stable").argsort(1)
        return rank * bins // confidence.shape[1]
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def _gaps(confidence: np.ndarray, right: np.ndarray, bins: int, adaptive: bool) -> np.ndarray:
    """(right - confidence) / images, each image in the column of its bin: (model, image, bin), float32."""
    gaps = np.zeros((*confidence.shape, bins), np.float32)
    number = _bins(confidence, bins, adaptive)
    np.put_along_axis(gaps, number[..., None], ((right - confidence) / confidence.shape[1])[..., None], 2)
    return gaps

"""Leave-one-out likelihood-ratio attack (LiRA, Carlini et al. 2022) on all models at once, in closed form.

Every model is the target in turn; its in- and out-distributions come from the other models. The group statistics
(count c, mean, M2) are formed once a sample and downdated by the target's own value x with d = x - mean:

    mean' = mean - d / (c - 1),    M2' = M2 - d^2 c / (c - 1),

which touches only the class the target belongs to. Nothing is truncated to a common count, in and out keep their own
variance, and the pooled variance comes from within-sample residuals, so the spread between samples never enters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy.stats import norm

from ..errors import UserError, choose
from ..store.run import boolean, must_be_finite
from .scoring import ALIASES, LIRA, Scoring

FLOOR = 1e-12  # of a variance
BLOCK = 2048  # samples at once: their arrays stay in the cache, and memory does not grow with the pool


def lira_scores(
    phi: np.ndarray, keep: np.ndarray, *, attack: str = "lira", centre: str = "mean", variance: str = "auto"
) -> np.ndarray:
    """Score every (target model, sample) pair of one checkpoint; a larger score means a member.

    Args:
        phi: (N, n) logit-scaled confidences, finite.
        keep: (N, n), True or 1 where the model trained on the sample.
        attack: one of ``LIRA``.
        centre, variance: see :class:`dynmia.attack.scoring.Scoring`.

    Returns:
        float64 (N, n).

    Raises:
        UserError: an option is unknown, a sample has too few in- or out-models, or the arrays cannot be scored.
    """
    phi, keep = checked(phi, keep)
    attack = choose(ALIASES.get(attack, attack), LIRA, "attack")
    variance = Scoring(attack, "fpr@0.01", centre, variance=variance).for_models(len(phi)).variance
    must_have(keep, 3 if variance == "per-sample" else 2, (True, False) if attack == "lira" else (False,))
    scores = np.empty(phi.shape)
    blocks = [slice(start, start + BLOCK) for start in range(0, phi.shape[1], BLOCK)]
    pooled = {side: None if variance == "per-sample" else _pooled_variance(phi, keep == side, blocks)
              for side in ((False, True) if attack == "lira" else (False,))}  # fmt: skip
    for block in blocks:
        x, inside = np.asarray(phi[:, block], np.float64), keep[:, block]
        mu_out, var_out = leave_one_out(x, ~inside, centre, pooled[False])
        if attack == "offline-cdf":
            scores[:, block] = norm.logcdf((x - mu_out) / np.sqrt(var_out))
            continue
        scores[:, block] = 0.5 * (np.log(2 * np.pi * var_out) + (x - mu_out) ** 2 / var_out)
        if attack == "lira":
            mu_in, var_in = leave_one_out(x, inside, centre, pooled[True])
            scores[:, block] -= 0.5 * (np.log(2 * np.pi * var_in) + (x - mu_in) ** 2 / var_in)
    return scores


def checked(phi: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``phi`` and ``keep`` as arrays that can be scored; a ``UserError`` names the first thing that is wrong."""
    phi, keep = np.asarray(phi), boolean(keep)
    if phi.ndim != 2 or not phi.size or phi.shape != keep.shape:
        raise UserError(
            f"phi has shape {phi.shape} and keep {keep.shape}: both must be (models, samples), with the same numbers."
        )
    must_be_finite(phi, ("model", "sample"))
    return phi, keep


def must_have(keep: np.ndarray, least: int, sides: Iterable[bool] = (True, False)) -> None:
    """Raise a ``UserError`` that counts the samples with fewer than ``least`` models on a side, if there are any."""
    for side in sides:
        few = np.flatnonzero((keep == side).sum(0) < least)
        if few.size:
            raise UserError(
                f"{few.size} of {keep.shape[1]} samples have fewer than {least} models that "
                f"{'trained' if side else 'did not train'} on them, the first is number {few[0]} (counted from 0): "
                "leave them out by dynmia.attack.part_of(run), use more shadow models, or design 'balanced'."
            )


def leave_one_out(
    phi: np.ndarray, mask: np.ndarray, centre: str, variance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Centre and variance of the models in ``mask``, for each target without the target itself.

    ``variance`` (N, 1) is given if it is pooled over more samples than these; None takes that of each sample. Returns
    the centre (N, n), and the variance (N, n) or, as given, (N, 1).
    """
    count, mean, d = centred(phi, mask)
    if variance is None:
        square = d * d
        left = square.sum(0) - square * (count / (count - 1))  # M2 without what the target takes out of it
        variance = np.maximum(left, 0) / (count - 1 - mask)
    mu = mean - d / (count - 1) if centre == "mean" else _leave_one_out_median(phi, mask, count)
    return mu, np.maximum(variance, FLOOR)


def flagged_share(
    mu_in: np.ndarray,
    sd_in: np.ndarray | float,
    mu_out: np.ndarray,
    sd_out: np.ndarray | float,
    *survival: Callable[[np.ndarray], np.ndarray],
) -> Callable[[float | np.ndarray], list[np.ndarray]]:
    """Shares of phi whose score log N(phi; in) - log N(phi; out) exceeds a threshold, by each survival function.

    The score is a quadratic in phi, so what is flagged is an interval, its complement, or a half-line.

    Args:
        mu_in, sd_in, mu_out, sd_out: of the normal densities of the score, of one broadcastable shape.
        survival: functions x -> P(phi > x) of that shape.

    Returns:
        A function of the threshold, with one array for each survival function.
    """
    a = 0.5 * (1 / sd_out**2 - 1 / sd_in**2)
    b = mu_in / sd_in**2 - mu_out / sd_out**2
    c = 0.5 * (mu_out**2 / sd_out**2 - mu_in**2 / sd_in**2) + np.log(sd_out / sd_in)
    a, b, c = np.broadcast_arrays(np.asarray(a, float), b, c)
    line = np.abs(a) < 1e-9  # equal spreads: the score is a straight line

    def shares(threshold: float | np.ndarray) -> list[np.ndarray]:
        inner = b**2 - 4 * a * (c - threshold)
        root = np.sqrt(np.maximum(inner, 0))
        safe = np.where(line, 1.0, a)
        ends = np.sort(np.stack([(-b - root) / (2 * safe), (-b + root) / (2 * safe)]), axis=0)
        cut = (threshold - c) / np.where(line & (b != 0), b, 1.0)
        of_each = []
        for sf in survival:
            between = sf(ends[0]) - sf(ends[1])
            curved = np.where(a < 0, np.where(inner > 0, between, 0.0), np.where(inner > 0, 1 - between, 1.0))
            straight = np.where(b > 0, sf(cut), 1 - sf(cut))
            straight = np.where(b == 0, (c > threshold).astype(float), straight)
            of_each.append(np.where(line, straight, curved))
        return of_each

    return shares


def centred(phi: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count (n,), mean (n,) and deviations (N, n) of the models in ``mask``; deviations are zero elsewhere."""
    count = mask.sum(0)
    inside = mask.astype(float)  # products and sums with it take a fifth of the time of np.where, for the same bits
    mean = np.einsum("ij,ij->j", phi, inside) / count
    return count, mean, (phi - mean) * inside


def _pooled_variance(phi: np.ndarray, mask: np.ndarray, blocks: list[slice]) -> np.ndarray:
    """Within-sample variance of the models in ``mask`` over all samples, for each target without it, (N, 1)."""
    total, freedom = np.zeros(len(phi)), np.zeros(len(phi))
    for block in blocks:
        count, _, d = centred(np.asarray(phi[:, block], np.float64), mask[:, block])
        square = d * d
        total += square.sum() - square @ (count / (count - 1))  # M2 less what the target takes out of it
        freedom += (count - 1).sum() - mask[:, block].sum(1)
    if freedom.min() <= 0:
        raise UserError("too few models a sample for a leave-one-out variance: use more shadow models.")
    return (total / freedom)[:, None]


def _leave_one_out_median(phi: np.ndarray, mask: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Median over the models in ``mask`` without the target, from the order statistics of the whole group.

    Without a target at or below position k of the sorted group, position k holds what was at k + 1.
    """
    ranked = np.sort(np.where(mask, phi, np.inf).T, axis=1)  # (n, N): sorting along contiguous rows is faster

    def at(position: np.ndarray) -> np.ndarray:
        return np.take_along_axis(ranked, position[:, None], 1)[:, 0]  # (n,)

    def without_target(position: np.ndarray) -> np.ndarray:
        low = at(position)
        return np.where(phi <= low, at(position + 1), low)  # (N, n)

    rest = 0.5 * (without_target((count - 2) // 2) + without_target((count - 1) // 2))
    return np.where(mask, rest, 0.5 * (at((count - 1) // 2) + at(count // 2)))

"""Moderated LiRA: the likelihood-ratio attack with every per-sample estimate moderated by what the other samples say.

With 20 shadow models the in- and out-distribution of a sample rest on about ten values each. Their variances and means
are therefore moderated by empirical Bayes, for every target model i from the other models alone. On one side (in or
out) of one sample let c models have mean m and sum of squares S about it, f = c - 1.

1. *Variance* (Smyth 2004, limma; for this attack Brännvall 2026, BaVarIA, with a constant prior). If the values are
   normal and the precision of a sample is drawn from a gamma prior with d0 degrees of freedom and scale s0^2,
   log(S / f) has the mean log s0^2 - psi(d0 / 2) + log(d0 / 2) + psi(f / 2) - log(f / 2) and the variance
   psi'(d0 / 2) + psi'(f / 2). So e = log(S / f) - psi(f / 2) + log(f / 2) is regressed on a cubic in the mean of the
   out-models (the trend of limma), and what scatters about it beyond the mean of psi'(f / 2) is psi'(d0 / 2), which
   gives d0 (infinite if nothing does). The moderated variance is s^2 = (d0 s0^2 + S) / (d0 + f).
2. *Mean* (the step that is new here). Given the true means, the two sides err independently. So what the mean of the
   out-models says of the true mean of the in-models is the regression of m_in on m_out, a cubic h, by weights
   c_in / s_in^2; what scatters about it beyond the error of m_in is tau^2 (DerSimonian and Laird 1986, for a
   regression). The normal posterior of the true in-mean is then h + B (m_in - h) with B = tau^2 / (tau^2 + s_in^2 /
   c_in) and the variance B s_in^2 / c_in, and of the out-mean the same with the sides exchanged. Without a signal each
   side predicts the other as well as it can be known, both means become the mean of all models, and the score goes to 0.
3. *Score.* log t(phi; in) - log t(phi; out), each a Student t with d0 + f degrees of freedom about the moderated mean,
   whose squared scale is s^2 plus the posterior variance of that mean: the predictive density, so that the score is a
   log-odds of membership if inclusion is as likely as not.

A side that has a single model left has f = 0: its variance is the trend's, and its mean is moderated the more.
"""

from __future__ import annotations

import numpy as np
from scipy.special import digamma, gammaln, polygamma

from ..errors import UserError
from .lira import BLOCK, FLOOR, checked

DEGREE, CLIP = 3, 4.0  # of the trends; standard deviations beyond which they are flat
FEW = 50  # samples, below which the trends are straight lines
MOST = 1e6  # degrees of freedom of a prior that is certain
FITTED = 2**14  # samples, evenly spaced in the pool, that the trends of a larger pool are fitted to, for speed


class Side:
    """The statistics of the in- or out-models of all samples, downdated by each target."""

    def __init__(self, phi: np.ndarray, mask: np.ndarray) -> None:
        self.count = mask.sum(0)
        if self.count.min() < 2:
            raise UserError(
                f"a sample has {self.count.min()} models on one side of the keep mask; 'moderated' needs 2: use more "
                "shadow models or design 'balanced'."
            )
        self.mean, self.square = np.empty(phi.shape[1]), np.empty(phi.shape[1])
        for block in blocks(phi):
            x, inside = np.asarray(phi[:, block], np.float64), mask[:, block].astype(float)
            self.mean[block] = np.einsum("ij,ij->j", x, inside) / self.count[block]
            self.square[block] = np.einsum("ij,ij->j", (x - self.mean[block]) ** 2, inside)

    def without(self, x: np.ndarray, inside: np.ndarray, block: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count, mean and sum of squares (N, b) of the models inside, for each target without the target itself."""
        count, rest = self.count[block], np.maximum(self.count[block] - 1, 1)
        d = (x - self.mean[block]) * inside
        left = self.square[block] - d * d * (count / rest)
        return count - inside, self.mean[block] - d / rest, np.maximum(left, 0.0)


def blocks(phi: np.ndarray) -> list[slice]:
    """Of samples."""
    return [slice(start, start + BLOCK) for start in range(0, phi.shape[1], BLOCK)]


def moderated_scores(phi: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Score every (target model, sample) pair of one checkpoint; the score is a log-odds of membership.

    Args:
        phi: (N, n) logit-scaled confidences, finite.
        keep: (N, n), True or 1 where the model trained on the sample.

    Returns:
        float64 (N, n).

    Raises:
        UserError: a sample has fewer than two in- or out-models, no variance can be estimated, or the arrays cannot be
            scored.
    """
    phi, keep = checked(phi, keep)
    model = _Moderated(phi, keep)
    scores = np.empty(phi.shape)
    for block in blocks(phi):
        scores[:, block] = model.scores(block)
    return scores


class _Moderated:
    """What each target learns from all samples: trends of variances and means, (N, degree + 1), and their scatter."""

    def __init__(self, phi: np.ndarray, keep: np.ndarray) -> None:
        self.phi, self.keep = phi, keep
        self.sides = {side: Side(phi, keep == side) for side in (True, False)}
        self.degree = DEGREE if phi.shape[1] >= FEW else 1
        half = np.arange(1, len(phi) + 1) / 2  # of f = 1, 2, ...
        self.bias = np.concatenate([[0.0], digamma(half) - np.log(half)])  # of log(S / f), by f
        self.error = np.concatenate([[0.0], polygamma(1, half)])  # its variance, by f
        self.middle = {side: float(of.mean.mean()) for side, of in self.sides.items()}
        self.spread = {side: float(of.mean.std()) or 1.0 for side, of in self.sides.items()}
        step = max(1, phi.shape[1] // FITTED)
        self.fitted = [np.arange(phi.shape[1])[::step][block] for block in blocks(phi[:, ::step])]
        self._variances()
        self._means()

    def powers(self, mean: np.ndarray, side: bool, count: int) -> np.ndarray:
        """1, z, z^2, ... of standardised means, (N, count, b)."""
        z = ((mean - self.middle[side]) / self.spread[side]).clip(-CLIP, CLIP)
        stack = np.empty((len(z), count, z.shape[1]))
        stack[:, 0] = 1.0
        for power in range(1, count):
            np.multiply(stack[:, power - 1], z, out=stack[:, power])
        return stack

    def block(self, block: slice | np.ndarray) -> tuple[np.ndarray, dict[bool, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """phi (N, b); for each side count, mean and sum of squares without the target."""
        x, keep = np.asarray(self.phi[:, block], np.float64), self.keep[:, block]
        return x, {side: of.without(x, keep == side, block) for side, of in self.sides.items()}

    def _variances(self) -> None:
        """Step 1: ``log_prior`` (N, degree + 1), the trend of log s0^2, and ``freedom`` (N, 1), d0, of each side."""
        fits = {side: _Fit(len(self.phi), self.degree) for side in self.sides}
        error = {side: np.zeros(len(self.phi)) for side in self.sides}
        squares = dict.fromkeys(self.sides, 0.0)
        for block in self.fitted:
            _, sides = self.block(block)
            z = self.powers(sides[False][1], False, 2 * self.degree + 1)
            for side, (count, _, square) in sides.items():
                f = count - 1
                known = (square > 0) & (f > 0)
                e = np.log(np.where(known, square, 1.0) / np.maximum(f, 1)) - self.bias[f]
                fits[side].add(z, known.astype(float), e * known, e)
                error[side] += (self.error[f] * known).sum(1)
                squares[side] += square.sum()
        self.log_prior, self.freedom = {}, {}
        for side, fit in fits.items():
            if fit.total.min() <= self.degree + 1:
                if squares[side]:
                    raise UserError("too few models a sample for a leave-one-out variance: use more shadow models.")
                self.log_prior[side] = np.eye(1, self.degree + 1) * np.log(FLOOR) * np.ones((len(self.phi), 1))
                self.freedom[side] = np.full((len(self.phi), 1), MOST)
                continue
            excess = fit.scatter() / (fit.total - self.degree - 1) - error[side] / fit.total
            d0 = freedom_of(excess)
            self.log_prior[side] = fit.trend()
            self.log_prior[side][:, 0] += digamma(d0 / 2) - np.log(d0 / 2)
            self.freedom[side] = d0[:, None]

    def _spread(self, side: bool, z: np.ndarray, f: np.ndarray, square: np.ndarray) -> np.ndarray:
        """The moderated variance s^2 (N, b)."""
        prior = np.exp(curve(self.log_prior[side], z))
        d0 = self.freedom[side]
        return np.maximum((d0 * prior + square) / (d0 + f), FLOOR)

    def _means(self) -> None:
        """Step 2: ``trend`` (N, degree + 1), the regression on the other side's mean, and ``tau2`` (N, 1)."""
        fits = {side: _Fit(len(self.phi), self.degree) for side in self.sides}
        for block in self.fitted:
            _, sides = self.block(block)
            z = {side: self.powers(mean, side, 2 * self.degree + 1) for side, (_, mean, _) in sides.items()}
            for side, (count, mean, square) in sides.items():
                weight = count / self._spread(side, z[False], count - 1, square)
                y = mean - self.middle[side]
                fits[side].add(z[not side], weight, weight * y, y, twice=True)
        self.trend, self.tau2 = {}, {}
        for side, fit in fits.items():
            self.trend[side] = fit.trend()
            chance = sum(map(len, self.fitted)) - self.degree - 1  # what the scatter is without a tau^2
            self.tau2[side] = np.maximum((fit.scatter() - chance) / fit.slack(), 0.0)[:, None]

    def scores(self, block: slice) -> np.ndarray:
        """Step 3: of the samples of a block, (N, b)."""
        x, sides = self.block(block)
        z = {side: self.powers(mean, side, self.degree + 1) for side, (_, mean, _) in sides.items()}
        density = {}
        for side, (count, mean, square) in sides.items():
            f = count - 1
            spread = self._spread(side, z[False], f, square)
            noise = spread / count
            h = self.middle[side] + curve(self.trend[side], z[not side])
            kept = self.tau2[side] / (self.tau2[side] + noise)
            density[side] = log_t(x - h - kept * (mean - h), spread + kept * noise, self.freedom[side], f)
        return density[True] - density[False]


def curve(coefficients: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The polynomials with ``coefficients`` (N, terms) of powers z (N, terms or more, b), (N, b)."""
    return (coefficients[:, None] @ z[:, : coefficients.shape[1]])[:, 0]


class _Fit:
    """Sums of a weighted polynomial regression for each target, (N, ...): of z^j, z^j y, y^2, and of weights squared."""

    def __init__(self, models: int, degree: int) -> None:
        self.terms = degree + 1
        self.gram, self.cross = np.zeros((models, 2 * degree + 1)), np.zeros((models, degree + 1))
        self.squared, self.y2 = np.zeros((models, 2 * degree + 1)), np.zeros(models)

    def add(self, z: np.ndarray, w: np.ndarray, wy: np.ndarray, y: np.ndarray, twice: bool = False) -> None:
        """The samples of a block, (N, b), with powers z (N, 2 degree + 1, b); ``twice`` if :meth:`slack` is wanted."""
        columns = [w, wy, *([w * w] if twice else [])]
        sums = z @ np.stack(columns, axis=2)  # (N, 2 degree + 1, columns)
        self.gram += sums[:, :, 0]
        self.cross += sums[:, : self.terms, 1]
        self.y2 += np.einsum("ib,ib->i", wy, y)
        if twice:
            self.squared += sums[:, :, 2]

    @property
    def total(self) -> np.ndarray:
        """The sum of the weights (N,)."""
        return self.gram[:, 0]

    def _matrix(self, moments: np.ndarray) -> np.ndarray:
        return moments[:, np.add.outer(np.arange(self.terms), np.arange(self.terms))]  # (N, terms, terms)

    def _inverse(self) -> np.ndarray:
        return np.linalg.pinv(self._matrix(self.gram), hermitian=True)

    def trend(self) -> np.ndarray:
        """Coefficients (N, terms)."""
        return np.einsum("ijk,ik->ij", self._inverse(), self.cross)

    def scatter(self) -> np.ndarray:
        """The weighted sum of squares about the trend (N,)."""
        return np.maximum(self.y2 - np.einsum("ij,ij->i", self.trend(), self.cross), 0.0)

    def slack(self) -> np.ndarray:
        """What a variance of 1 beside the errors adds to the expected :meth:`scatter` (N,)."""
        return self.total - np.einsum("ijk,ikj->i", self._inverse(), self._matrix(self.squared))


def freedom_of(excess: np.ndarray) -> np.ndarray:
    """d0 with trigamma(d0 / 2) = excess, by Newton's method (Smyth 2004, appendix); ``MOST`` if that is not positive."""
    y = np.maximum(excess, 1e-12)
    x = 0.5 + 1 / y
    for _ in range(30):
        third = polygamma(1, x)
        x = x + third * (1 - third / y) / polygamma(2, x)
    return np.where(excess > 0, np.minimum(2 * x, MOST), MOST)


def log_t(r: np.ndarray, scale2: np.ndarray, d0: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Log-density of Student's t with d0 + f degrees of freedom at ``r`` from its centre; d0 (N, 1), the others (N, b)."""
    whole = d0 + np.arange(f.max() + 1)  # (N, f)
    constant = gammaln((whole + 1) / 2) - gammaln(whole / 2) - 0.5 * np.log(np.pi * whole)
    freedom = d0 + f
    tail = np.log1p(r * r / (freedom * scale2))
    return np.take_along_axis(constant, f, 1) - 0.5 * (np.log(scale2) + (freedom + 1) * tail)

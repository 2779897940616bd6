"""Moderated LiRA: the likelihood-ratio attack with every per-sample estimate moderated by what the other samples say.

With 20 shadow models the in- and out-distribution of a sample rest on about ten values each. Their means and variances
are therefore moderated by empirical Bayes, for every target model i from the other models alone. The target's own phi
is used without labels, as an attacker has it. On one side (in or out) of a sample let c models have the mean m and the
sum of squares S about it, f = c - 1; all of them without the target.

0. *Level and spread of a model.* Models differ in how confident they are; one that has just collapsed differs most.
   phi_i is regressed on o_i, the mean of all other models at the same sample, by a line a_i + b_i o_i over the samples,
   and replaced by o_i + g_i (phi_i - a_i - b_i o_i), where g_i takes the standard deviation of the residuals to the
   median of the models. No inclusion is looked at.
1. *Variance* (Smyth 2004, limma; for this attack Brännvall 2026, BaVarIA, with one prior for all samples). If the
   values are normal and the precision of a sample is drawn from a gamma prior with d0 degrees of freedom and the scale
   1 / s0^2, then log(S / f) has the mean log s0^2 - psi(d0 / 2) + log(d0 / 2) + psi(f / 2) - log(f / 2) and the
   variance psi'(d0 / 2) + psi'(f / 2). So e = log(S / f) - psi(f / 2) + log(f / 2) is regressed on a cubic in the mean
   of the out-models (limma's trend), and what scatters about it beyond the mean of psi'(f / 2) is psi'(d0 / 2), which
   gives the prior degrees of freedom d0 (no end of them if nothing does). The moderated variance is
   s^2 = (d0 s0^2 + S) / (d0 + f).
2. *Mean* (new here). Given the true means the two sides err independently. So what the out-models say of the true mean
   of the in-models is the regression of m_in on m_out, a cubic h with the weights c_in / s_in^2; what scatters about it
   beyond the error of m_in is tau^2 (DerSimonian and Laird 1986, for a regression). The normal posterior of the true
   in-mean has the mean h + B (m_in - h) and the variance B s_in^2 / c_in with the shrinkage B = tau^2 / (tau^2 +
   s_in^2 / c_in); that of the out-mean is the same with the sides exchanged. Without a signal each side predicts the
   other as well as it can be known, both means become that of all models, and the score goes to 0.
3. *Predictive density.* Student's t with d0 + f degrees of freedom about the moderated mean, whose squared scale is s^2
   and the posterior variance of that mean together, times the target's own k of step 4.
4. *Noise of the target.* A model that is noisier than its peers is judged with too much certainty, and one beside noisy
   peers with too little. k is the maximum-likelihood factor of both squared scales if each sample is a member with
   probability 1/2 (EM for a mixture of two t densities, Liu and Rubin 1995), again without labels.
5. *Score.* log t(phi; in) - log t(phi; out), a log-odds of membership: inclusion is as likely as not.

A side with a single model left has f = 0: its variance is the trend's, and its mean is moderated the more. Below 50
samples the trends are straight lines, and steps 0 and 4 are left out. The trends of a pool beyond 2^12 samples are
fitted to evenly spaced ones, 2^11 or more, and k to 2^10 or more of these, to keep the cost near that of LiRA.
"""

from __future__ import annotations

import numpy as np
from scipy.special import digamma, gammaln, polygamma, stdtr

from ..errors import UserError
from .lira import BLOCK, FLOOR, checked

DEGREE, CLIP = 3, 4.0  # of the trends; standard deviations beyond which they are flat
FEW = 50  # samples, below which a trend is a straight line and a model has no level of its own
MOST = 1e6  # degrees of freedom of a prior that is certain
FITTED, PROBED = 2**11, 2**10  # samples at least, of a larger pool, that the trends and the noise are fitted to
ROUNDS = 8  # of EM, after which k moves by less than a percent

Sides = dict[bool, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


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
    return _scored(_Moderated(*_enough(phi, keep)))


def bavaria_scores(phi: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The variances alone are moderated, by one prior for all samples of a side: step 1 without its trend.

    The Student-t form of Brännvall (2026, arXiv 2603.11799): a normal-inverse-gamma prior, here with a flat mean and
    the degrees of freedom and scale that fit all samples (Smyth 2004). Arguments and result as of
    :func:`moderated_scores`.
    """
    return _scored(_Moderated(*_enough(phi, keep), degree=0, means=False, own=False))


def moderated_offline_scores(phi: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """log P(T <= phi) for the predictive t of the out-models with moderated variance: step 1, without in-models.

    The one-sided test of Carlini et al. (2022, section VI-C), for a moderated variance. Arguments and result as of
    :func:`moderated_scores`.
    """
    model = _Moderated(*_enough(phi, keep), means=False, own=False)
    scores = np.empty(model.phi.shape)
    for block in model.blocks:
        r, w, freedom = model.predictive(block)[False]
        t = r * np.sqrt(freedom / w)
        tail = stdtr(freedom, -np.abs(t))
        scores[:, block] = np.where(t > 0, np.log1p(-tail), np.log(np.maximum(tail, np.finfo(float).tiny)))
    return scores


def _enough(phi: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    phi, keep = checked(phi, keep)
    inside = keep.sum(0)
    least = int(np.minimum(inside, len(keep) - inside).min())
    if least < 2:
        raise UserError(
            f"a sample has {least} models on one side of the keep mask; a moderated variance needs 2: use more shadow "
            "models or design 'balanced'."
        )
    return phi, keep


def _scored(model: _Moderated) -> np.ndarray:
    scores = np.empty(model.phi.shape)
    for block in model.blocks:
        scores[:, block] = model.scores(block)
    return scores


class _Moderated:
    """What each target learns from all samples; steps 0, 2 and 4 can be left out."""

    def __init__(
        self, phi: np.ndarray, keep: np.ndarray, degree: int = DEGREE, means: bool = True, own: bool = True
    ) -> None:
        self.phi, self.keep, (models, samples) = phi, keep, phi.shape
        self.degree = degree if samples >= FEW else min(degree, 1, samples // 4)
        own = own and samples >= FEW
        self.blocks = [slice(start, start + BLOCK) for start in range(0, samples, BLOCK)]
        fitted = np.arange(samples)[:: max(1, samples // FITTED)]
        self.level = _levels(phi[:, fitted].astype(np.float64)) if own else None
        half = np.arange(1, models + 1) / 2  # of f = 1, 2, ...
        self.bias = np.concatenate([[0.0], digamma(half) - np.log(half)])  # of log(S / f), by f
        self.error = np.concatenate([[0.0], polygamma(1, half)])  # its variance, by f
        parts = [self.sides(fitted[start : start + BLOCK])[1] for start in range(0, len(fitted), BLOCK)]
        self.standards = {}  # the middle and the spread of the means of a side
        for side in (True, False):
            of_all = np.concatenate([part[side][2].mean(0) for part in parts])
            self.standards[side] = float(of_all.mean()), float(of_all.std()) or 1.0
        self._variances(parts)
        self.trend: dict[bool, np.ndarray] | None = None
        if means:
            self._means(parts)
        self.constants = self._constants()
        self.noise = np.ones((models, 1))
        if own:
            self._noise(fitted[:: max(1, len(fitted) // PROBED)])

    def sides(self, block: slice | np.ndarray) -> tuple[np.ndarray, Sides]:
        """phi (N, b) after step 0; for each side whether a model is on it, and count, mean and square without it."""
        x, keep = np.asarray(self.phi[:, block], np.float64), self.keep[:, block]
        if self.level is not None:
            own, common, offset = self.level
            total = x.sum(0)
            x = own * x
            x += common * total
            x += offset
        sides, inside = {}, keep.astype(float)  # products with it take a fifth of the time of np.where
        for side in (True, False):
            if not side:
                inside = 1.0 - inside
            count = inside.sum(0)
            mean = np.einsum("ij,ij->j", x, inside) / count
            d = x - mean
            d *= inside
            left = d * d
            square = left.sum(0)
            left *= -count / (count - 1)
            left += square
            left.clip(0.0, np.inf, out=left)
            d *= -1 / (count - 1)
            d += mean
            sides[side] = inside, count, d, left
        return x, sides

    def standard(self, mean: np.ndarray, side: bool) -> np.ndarray:
        """Means of a side in standard deviations about their middle, at most ``CLIP``."""
        middle, spread = self.standards[side]
        z = mean - middle
        z *= 1 / spread
        return z.clip(-CLIP, CLIP, out=z)

    def _variances(self, parts: list[Sides]) -> None:
        """Step 1: ``log_prior`` (N, degree + 1), the trend of log s0^2, and ``freedom`` (N, 1), d0, of each side."""
        fits = {side: _Fit(len(self.phi), self.degree) for side in (True, False)}
        error = {side: np.zeros(len(self.phi)) for side in fits}
        for sides in parts:
            z = self.standard(sides[False][2], False)
            for side, (inside, count, _, square) in sides.items():
                f = (count - inside).astype(int) - 1
                known = (square > 0) & (f > 0)
                e = (np.log(np.where(known, square, 1.0) / np.maximum(f, 1)) - self.bias[f]) * known
                fits[side].add(z, known.astype(float), e)
                error[side] += (self.error[f] * known).sum(1)
        self.log_prior, self.freedom = {}, {}
        for side, fit in fits.items():
            if (fit.total > self.degree + 1).all():
                fit.solve()
                excess = fit.scatter / (fit.total - self.degree - 1) - error[side] / fit.total
                self.freedom[side] = d0 = freedom_of(excess)[:, None]
                self.log_prior[side] = fit.trend
                self.log_prior[side][:, :1] += digamma(d0 / 2) - np.log(d0 / 2)
            elif fit.total.any():
                raise UserError("too few models or samples for a leave-one-out variance: use more of them.")
            else:  # nothing varies
                self.log_prior[side] = np.full((len(self.phi), self.degree + 1), np.log(FLOOR)) * np.eye(
                    1, self.degree + 1
                )
                self.freedom[side] = np.full((len(self.phi), 1), MOST)

    def pooled(self, side: bool, z: np.ndarray, square: np.ndarray) -> np.ndarray:
        """d0 s0^2 + S (N, b), the moderated variance times its degrees of freedom."""
        log_prior = curve(self.log_prior[side], z)
        prior = np.exp(log_prior.clip(np.log(FLOOR), np.inf, out=log_prior), out=log_prior)
        prior *= self.freedom[side]
        prior += square
        return prior

    def _means(self, parts: list[Sides]) -> None:
        """Step 2: ``trend`` (N, degree + 1), the regression on the other side's mean, and ``tau2`` (N, 1)."""
        fits = {side: _Fit(len(self.phi), self.degree) for side in (True, False)}
        for sides in parts:
            z = {side: self.standard(mean, side) for side, (_, _, mean, _) in sides.items()}
            for side, (inside, count, mean, square) in sides.items():
                c = count - inside
                weight = c * (self.freedom[side] + c - 1) / self.pooled(side, z[False], square)
                y = mean - self.standards[side][0]
                fits[side].add(z[not side], weight, y, slack=True)
        self.trend, self.tau2 = {}, {}
        chance = sum(len(part[True][1]) for part in parts) - self.degree - 1  # what the scatter is without a tau^2
        for side, fit in fits.items():
            fit.solve()
            self.trend[side] = fit.trend
            slack = fit.slack()
            tau2 = (fit.scatter - chance) / np.where(slack > 0, slack, np.inf)
            self.tau2[side] = np.maximum(tau2, 0.0)[:, None]
            self.trend[side][:, 0] += self.standards[side][0]

    def predictive(self, block: slice | np.ndarray) -> dict[bool, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each side r, w and the degrees of freedom v, (N, b): the t density at phi is, but for k, proportional to
        (1 + r^2 / w)^(-(v + 1) / 2) / sqrt(w).
        """
        x, sides = self.sides(block)
        z = {side: self.standard(mean, side) for side, (_, _, mean, _) in sides.items()}
        found = {}
        for side, (inside, count, mean, square) in sides.items():
            c = count - inside
            v = self.freedom[side] + (c - 1)
            w = self.pooled(side, z[False], square)
            if self.trend is None:
                found[side] = x - mean, w + w / c, v
                continue
            error = w / (v * c)
            error += self.tau2[side] + np.finfo(float).tiny
            kept = self.tau2[side] / error
            h = curve(self.trend[side], z[not side])
            mean -= h
            mean *= kept
            h += mean  # the moderated mean
            kept /= c
            kept += 1
            kept *= w
            found[side] = np.subtract(x, h, out=h), kept, v
        return found

    def scores(self, block: slice) -> np.ndarray:
        """Steps 3 and 5, of the samples of a block, (N, b)."""
        found = self.predictive(block)
        scores = self._constant(block)
        ratio = found[False][1] / found[True][1]
        scores += np.log(ratio, out=ratio)
        for side, (r, w, v) in found.items():
            r *= r
            r /= w
            r /= self.noise
            np.log1p(r, out=r)
            v += 1
            r *= v
            scores += -r if side else r
        scores *= 0.5
        return scores

    def _constants(self) -> dict[bool, np.ndarray]:
        """Twice the logarithm of the ratio of the two densities' constants, (N, N + 1) by the number of in-models, for
        targets that are in (True) and out.
        """
        models = len(self.phi)
        table = {side: 2 * _log_constant(self.freedom[side] + np.arange(models)) for side in (True, False)}  # by f
        count = np.arange(models + 1)
        found = {}
        for member in (True, False):
            f_in, f_out = count - member - 1, models - count - (not member) - 1
            found[member] = table[True][:, f_in.clip(0)] - table[False][:, f_out.clip(0)]
        return found

    def _constant(self, block: slice | np.ndarray) -> np.ndarray:
        """The constant of each pair of the block, (N, b)."""
        inside = self.keep[:, block]
        count = inside.sum(0)
        of_others = self.constants[False].take(count, 1)
        constant = self.constants[True].take(count, 1)
        constant -= of_others
        constant *= inside
        constant += of_others
        return constant

    def _noise(self, block: np.ndarray) -> None:
        """Step 4: ``noise`` (N, 1), k."""
        constant = self._constant(block)
        found = self.predictive(block)
        constant += np.log(found[False][1] / found[True][1])
        found = {side: (r * r / w, v + 1) for side, (r, w, v) in found.items()}
        for _ in range(ROUNDS):
            log_odds, weights = constant.copy(), {}
            for side, (square, power) in found.items():
                ratio = square / self.noise
                tail = np.log1p(ratio)
                tail *= power
                log_odds += -tail if side else tail
                weights[side] = power * ratio / (1 + ratio)  # E[u] r^2 / (k scale^2), u of a t as a scale mixture
            member = 0.5 + 0.5 * np.tanh(log_odds / 4)  # expit(log_odds / 2), which takes longer
            self.noise = self.noise * (member * weights[True] + (1 - member) * weights[False]).mean(1, keepdims=True)
            self.noise = self.noise.clip(FLOOR)


def _levels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step 0, from phi (N, n): (N, 1) factors of a model's phi, of the sum over all models, and what is added."""
    other = (x.sum(0) - x) / (len(x) - 1)
    level, middle = x.mean(1, keepdims=True), other.mean(1, keepdims=True)
    x, other = x - level, other - middle
    varied = (other * other).sum(1, keepdims=True)
    slope = np.divide((x * other).sum(1, keepdims=True), varied, out=np.ones_like(varied), where=varied > 0)
    sd = (x - slope * other).std(1, keepdims=True)
    real = sd > 1e-9 * (np.abs(level) + x.std(1, keepdims=True))  # beyond rounding
    gain = np.ones_like(sd)
    if real.any():
        gain[real] = np.median(sd[real]) / sd[real]
    common = (1 - gain * slope) / (len(x) - 1)
    return gain - common, common, -gain * (level - slope * middle)


def curve(coefficients: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The polynomials with ``coefficients`` (N, terms) at z (N, b), by Horner's rule."""
    terms = coefficients.shape[1]
    if terms == 1:
        return np.broadcast_to(coefficients, z.shape).copy()
    value = coefficients[:, -1:] * z
    value += coefficients[:, -2:-1]
    for power in range(terms - 3, -1, -1):
        value *= z
        value += coefficients[:, power : power + 1]
    return value


class _Fit:
    """A weighted polynomial regression for each target, from sums over samples that come in blocks."""

    def __init__(self, models: int, degree: int) -> None:
        self.terms = degree + 1
        self.gram = np.zeros((models, self.terms, self.terms))  # X' W X
        self.squared = np.zeros_like(self.gram)  # X' W^2 X
        self.cross = np.zeros((models, self.terms, 1))  # X' W y
        self.y2, self.total = np.zeros(models), np.zeros(models)  # y' W y, and the sum of the weights

    def add(self, z: np.ndarray, w: np.ndarray, y: np.ndarray, slack: bool = False) -> None:
        """The samples of a block, (N, b), with abscissa z and weights w; ``slack`` if :meth:`slack` is wanted."""
        x = np.empty((len(z), self.terms, z.shape[1]))
        x[:, 0] = 1.0
        for power in range(1, self.terms):
            np.multiply(x[:, power - 1], z, out=x[:, power])
        weighted = x * w[:, None]
        turned = weighted.transpose(0, 2, 1)
        self.gram += x @ turned
        self.cross += weighted @ y[..., None]
        self.y2 += np.einsum("ib,ib,ib->i", w, y, y)
        self.total += w.sum(1)
        if slack:
            self.squared += weighted @ turned

    def solve(self) -> None:
        """Find ``trend`` (N, terms) and ``scatter`` (N,), the weighted sum of squares about it."""
        self.inverse = np.linalg.pinv(self.gram, hermitian=True)
        self.trend = (self.inverse @ self.cross)[..., 0]
        self.scatter = np.maximum(self.y2 - np.einsum("ij,ijk->i", self.trend, self.cross), 0.0)

    def slack(self) -> np.ndarray:
        """What a variance of 1 beside the errors adds to the expected scatter (N,): tr(W - W X (X' W X)^-1 X' W)."""
        return self.total - np.einsum("ijk,ikj->i", self.inverse, self.squared)


def freedom_of(excess: np.ndarray) -> np.ndarray:
    """d0 with trigamma(d0 / 2) = excess, by Newton's method (Smyth 2004, appendix); ``MOST`` if it is not positive."""
    y = np.maximum(excess, 1e-12)
    x = 0.5 + 1 / y
    for _ in range(50):
        third = polygamma(1, x)
        step = third * (1 - third / y) / polygamma(2, x)
        x = x + step
        if (np.abs(step) <= 1e-10 * x).all():
            break
    return np.where(excess > 0, np.minimum(2 * x, MOST), MOST)


def _log_constant(freedom: np.ndarray) -> np.ndarray:
    """Of Student's t times the root of its degrees of freedom, but for pi."""
    return gammaln((freedom + 1) / 2) - gammaln(freedom / 2)

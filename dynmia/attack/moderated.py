"""Moderated LiRA: the likelihood-ratio attack with every per-sample estimate moderated by what the other samples say.

With 20 shadow models the in- and out-distribution of a sample rest on about ten values each. Their means and variances
are therefore moderated by empirical Bayes. Every model is the target in turn and is judged by the others; of the target
itself phi is used, on the whole pool and without labels, as an attacker has it. On one side (in or out) of a sample let
the c models other than the target have the mean m and the sum of squares S about it, f = c - 1.

0. *Level and spread of a model.* Models differ in how confident they are; one that has just collapsed differs most.
   phi_i is regressed on the mean of all other models at the same sample by a line over the samples, and replaced by the
   mean of all models plus g_i times the residual, where g_i takes the standard deviation of the residuals to the median
   of the models. No inclusion is looked at.
1. *Variance* (Smyth 2004; for this attack Brännvall 2026, BaVarIA, without a trend). If the values are normal and the
   precision of a sample is drawn from chi^2 / (d0 s0^2) with d0 degrees of freedom, then log(S / f) has the mean
   log s0^2 - psi(d0 / 2) + log(d0 / 2) + psi(f / 2) - log(f / 2) and the variance psi'(d0 / 2) + psi'(f / 2). So
   e = log(S / f) - psi(f / 2) + log(f / 2) is regressed on a cubic in the mean of the out-models (a trend, as limma has
   it since), and its residual variance in excess of the mean of psi'(f / 2) is psi'(d0 / 2), which gives the prior
   degrees of freedom d0 (infinitely many if nothing is left over). The moderated variance is
   s^2 = (d0 s0^2 + S) / (d0 + f), and that of the error of m is nu = s^2 / c.
2. *Mean* (new here). What the out-models say of the true mean of the in-models is the regression of m_in on m_out, a
   cubic h with the weights 1 / nu_in. About it m_in scatters by its own error, by that of the regressor, h'^2 nu_out,
   and by tau^2, what samples differ in beyond that (the moment estimator of DerSimonian and Laird 1986, for a
   regression; the fit keeps its weights). With V = tau^2 + h'^2 nu_out the posterior of the true in-mean has the mean
   h + B (m_in - h) and the variance B nu_in, where the shrinkage B is V / (V + nu_in); that of the out-mean is the same
   with the sides exchanged. Without a signal both means become one mean of all models, and the score goes to 0.
3. *Predictive density*, taken to be Student's t with d0 + f degrees of freedom about the moderated mean, of the squared
   scale s^2 + B nu, times the target's own k of step 4.
4. *Noise of the target.* A model that is noisier than its peers is judged with too much certainty, and one beside noisy
   peers with too little. k is the factor of both squared scales that makes the target's phi most likely if each sample
   is a member with probability 1/2 (EM for a mixture of two t densities, Liu and Rubin 1995), again without labels.
5. *Score.* log t(phi; in) - log t(phi; out), a log-odds of membership: inclusion is as likely as not.

A side with a single model left has f = 0: its variance is the trend's, and its mean is shrunk more. Below 50 samples
the trends are straight lines, and steps 0 and 4 are left out. The trends of a pool of 2^12 samples and more are fitted
to evenly spaced ones, 2^11 or more, and k to 2^10 or more of these, to keep the cost near that of LiRA.
"""

from __future__ import annotations

import numpy as np
from scipy.special import digamma, gammaln, polygamma, stdtr

from ..errors import UserError
from .lira import BLOCK, FLOOR, checked, must_have

DEGREE, CLIP = 3, 4.0  # of the trends; standard deviations beyond which they are flat
FEW = 50  # samples, below which a trend is a straight line and a model has no level of its own
MOST = 1e6  # degrees of freedom of a prior that is certain
FITTED, PROBED = 2**11, 2**10  # samples at least, of a larger pool, that the trends and the noise are fitted to
ROUNDS = 8  # of EM, after which k moves by a percent at most at 20 models, and by a few at 5

Values = dict[bool, np.ndarray]  # of the in-side (True) and the out-side, (N, b)


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
    return _Moderated(phi, keep).scores()


def bavaria_scores(phi: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The variances alone are moderated, by one prior for all samples of a side: step 1 without its trend.

    The Student-t form of Brännvall (2026, arXiv 2603.11799): a normal-inverse-gamma prior, here with a flat mean and
    the degrees of freedom and scale that fit all samples (Smyth 2004). Arguments and result as of
    :func:`moderated_scores`.
    """
    return _Moderated(phi, keep, degree=0, means=False, own=False).scores()


def moderated_offline_scores(phi: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """log P(T <= phi) for the predictive t of the out-models with moderated variance: step 1, of in-models nothing.

    The one-sided test of Carlini et al. (2022, section VI-C), for a moderated variance. Arguments and result as of
    :func:`moderated_scores`.
    """
    model = _Moderated(phi, keep, means=False, own=False)
    scores = np.empty(model.phi.shape)
    for block in model.blocks:
        r, w, freedom = (values[False] for values in model.predictive(block))
        t = r * np.sqrt(freedom / w)
        tail = stdtr(freedom, -np.abs(t))
        scores[:, block] = np.where(t > 0, np.log1p(-tail), np.log(np.maximum(tail, np.finfo(float).tiny)))
    return scores


class _Moderated:
    """What each target learns from all samples; steps 0, 2 and 4 can be left out."""

    def __init__(
        self, phi: np.ndarray, keep: np.ndarray, degree: int = DEGREE, means: bool = True, own: bool = True
    ) -> None:
        self.phi, self.keep = checked(phi, keep)
        models, samples = self.phi.shape
        must_have(self.keep, 2)
        self.degree = degree if samples >= FEW else min(degree, 1, samples // 4)
        own = own and samples >= FEW
        self.blocks = [slice(start, start + BLOCK) for start in range(0, samples, BLOCK)]
        fitted = np.arange(samples)[:: max(1, samples // FITTED)]
        self.level = _levels(self.phi[:, fitted].astype(np.float64)) if own else None
        parts = [self.sides(fitted[start : start + BLOCK]) for start in range(0, len(fitted), BLOCK)]
        levels = np.concatenate([x.mean(0) for x, *_ in parts])  # of samples, in all models
        self.middle, self.spread = float(levels.mean()), float(levels.std()) or 1.0
        self._variances(parts)
        self.trend: Values | None = None
        if means:
            self._means(parts)
        self.constants = self._constants()
        self.noise = np.ones((models, 1))
        if own:
            self._noise(fitted[:: max(1, len(fitted) // PROBED)])

    def sides(self, block: slice | np.ndarray) -> tuple[np.ndarray, Values, Values, Values]:
        """phi (N, b) after step 0; of each side the models but the target: how many, their mean and sum of squares."""
        x, keep = np.asarray(self.phi[:, block], np.float64), self.keep[:, block]
        if self.level is not None:
            own, common, offset = self.level
            total = x.sum(0)
            x = own * x
            x += common * total
            x += offset
        counts, means, squares = {}, {}, {}
        inside = keep.astype(float)  # products with it take a fifth of the time of np.where
        count, total = inside.sum(0), np.einsum("ij,ij->j", x, inside)
        for side in (True, False):
            if not side:
                inside = 1.0 - inside
                count, total = len(x) - count, x.sum(0) - total
            mean = total / count
            d = x - mean
            d *= inside
            left = d * d
            square = left.sum(0)
            left *= -count / (count - 1)
            left += square
            left.clip(0.0, np.inf, out=left)
            d *= -1 / (count - 1)
            d += mean
            counts[side], means[side], squares[side] = count - inside, d, left
        return x, counts, means, squares

    def powers(self, means: Values) -> Values:
        """1, z, z^2, ... (N, degree + 1, b) of the means of each side in standard deviations of the samples about their
        middle, at most ``CLIP``.
        """
        found = {}
        for side, mean in means.items():
            found[side] = stack = np.empty((len(mean), self.degree + 1, mean.shape[1]))
            stack[:, 0] = 1.0
            if self.degree:
                z = np.subtract(mean, self.middle, out=stack[:, 1])
                z *= 1 / self.spread
                z.clip(-CLIP, CLIP, out=z)
            for power in range(2, self.degree + 1):
                np.multiply(stack[:, power - 1], stack[:, 1], out=stack[:, power])
        return found

    def _variances(self, parts: list[tuple[np.ndarray, Values, Values, Values]]) -> None:
        """Step 1: ``log_prior`` (N, degree + 1), the trend of log s0^2, and ``freedom`` (N, 1), d0, of each side."""
        models = len(self.phi)
        half = np.arange(1, models + 1) / 2  # of f = 1, 2, ...
        bias = np.concatenate([[0.0], digamma(half) - np.log(half)])  # of log(S / f), by f
        error = np.concatenate([[0.0], polygamma(1, half)])  # its variance, by f
        fits, errors = {side: _Fit(models, self.degree) for side in (True, False)}, {True: 0.0, False: 0.0}
        for _, counts, means, squares in parts:
            z = self.powers(means)[False]
            for side, fit in fits.items():
                f, square = counts[side].astype(int) - 1, squares[side]
                known = (square > (1e-12 * means[side]) ** 2) & (f > 0)  # beyond rounding
                e = (np.log(np.where(known, square, 1.0) / np.maximum(f, 1)) - bias[f]) * known
                fit.add(z, known.astype(float), e)
                errors[side] = errors[side] + (error[f] * known).sum(1)
        self.log_prior, self.freedom = {}, {}
        for side, fit in fits.items():
            if (fit.total > self.degree + 1).all():
                fit.solve()
                excess = fit.scatter / (fit.total - self.degree - 1) - errors[side] / fit.total
                self.freedom[side] = d0 = freedom_of(excess)[:, None]
                self.log_prior[side] = fit.trend
                self.log_prior[side][:, :1] += digamma(d0 / 2) - np.log(d0 / 2)
            elif fit.total.any():
                raise UserError(
                    "too few models or samples for a leave-one-out variance, or phi hardly varies: use more of them."
                )
            else:  # nothing varies
                self.log_prior[side] = np.zeros((models, self.degree + 1))
                self.log_prior[side][:, 0] = np.log(FLOOR)
                self.freedom[side] = np.full((models, 1), MOST)

    def pooled(self, side: bool, z: np.ndarray, square: np.ndarray) -> np.ndarray:
        """d0 s0^2 + S (N, b), the moderated variance times its degrees of freedom."""
        log_prior = curve(self.log_prior[side], z)
        prior = np.exp(log_prior.clip(np.log(FLOOR), np.inf, out=log_prior), out=log_prior)
        prior *= self.freedom[side]
        prior += square
        return prior

    def variances(self, z: Values, counts: Values, squares: Values) -> tuple[Values, Values, Values]:
        """Of each side v = d0 + f, w = v s^2, and nu = s^2 / c."""
        v, w, nu = {}, {}, {}
        for side, c in counts.items():
            v[side] = self.freedom[side] - 1 + c
            w[side] = self.pooled(side, z[False], squares[side])
            nu[side] = w[side] / v[side]
            nu[side] /= c
        return v, w, nu

    def _means(self, parts: list[tuple[np.ndarray, Values, Values, Values]]) -> None:
        """Step 2: ``trend`` (N, degree + 1), the regression on the other side's mean, and ``tau2`` (N, 1)."""
        fits = {side: _Fit(len(self.phi), self.degree) for side in (True, False)}
        found = []
        for _, counts, means, squares in parts:
            z = self.powers(means)
            nu = self.variances(z, counts, squares)[2]
            found.append((z, nu))
            for side, fit in fits.items():
                fit.add(z[not side], 1 / nu[side], means[side] - self.middle)
        self.trend, self.tau2 = {}, {}
        for side, fit in fits.items():
            fit.solve()
            self.trend[side] = fit.trend
            expected = sum(z[side].shape[2] for z, _ in found) - self.degree - 1.0  # of the scatter, without a tau^2
            for z, nu in found:
                slope = curve(self.slopes(side), z[not side])
                expected = expected + (slope * slope * nu[not side] / nu[side]).sum(1)
            slack = np.where(fit.slack > 0, fit.slack, np.inf)
            self.tau2[side] = np.maximum((fit.scatter - expected) / slack, 0.0)[:, None]
        for trend in self.trend.values():
            trend[:, 0] += self.middle

    def slopes(self, side: bool) -> np.ndarray:
        """Coefficients of h' (N, degree)."""
        assert self.trend is not None
        powers = np.arange(1, self.degree + 1)
        return self.trend[side][:, 1:] * powers / self.spread

    def predictive(self, block: slice | np.ndarray) -> tuple[Values, Values, Values]:
        """Of each side r, w and the degrees of freedom v: but for k, the density at phi is proportional to
        (1 + r^2 / w)^(-(v + 1) / 2) / sqrt(w).
        """
        x, counts, means, squares = self.sides(block)
        z = self.powers(means)
        v, w, nu = self.variances(z, counts, squares)
        r = {}
        for side, mean in means.items():
            if self.trend is None:
                r[side] = x - mean
                w[side] += w[side] / counts[side]
                continue
            h, kept = curve(self.trend[side], z[not side]), curve(self.slopes(side), z[not side])
            kept *= kept
            kept *= nu[not side]
            kept += self.tau2[side]
            nu_and_v = kept + nu[side]
            kept /= nu_and_v  # B
            mean -= h
            mean *= kept
            h += mean  # the moderated mean
            kept /= counts[side]
            kept += 1
            w[side] *= kept
            r[side] = np.subtract(x, h, out=h)
        return r, w, v

    def scores(self) -> np.ndarray:
        """Steps 3 and 5, of all pairs (N, n)."""
        scores = np.empty(self.phi.shape)
        for block in self.blocks:
            odds, ratios, powers = self._terms(block)
            scores[:, block] = 0.5 * self._log_odds(odds, ratios, powers)
        return scores

    def _terms(self, block: slice | np.ndarray) -> tuple[np.ndarray, Values, Values]:
        """Twice the log ratio of what does not depend on k; of each side r^2 / w and v + 1."""
        r, w, v = self.predictive(block)
        inside = self.keep[:, block]
        count = inside.sum(0)
        of_others, odds = (self.constants[member].take(count, 1) for member in (False, True))
        odds -= of_others
        odds *= inside
        odds += of_others
        for side in r:
            r[side] *= r[side]
            r[side] /= w[side]
            v[side] += 1
        ratio = np.divide(w[False], w[True], out=w[False])
        odds += np.log(ratio, out=ratio)
        return odds, r, v

    def _log_odds(self, odds: np.ndarray, ratios: Values, powers: Values) -> np.ndarray:
        """Twice the log-odds of membership (N, b), from :meth:`_terms` and k."""
        odds = odds.copy()
        for side, ratio in ratios.items():
            tail = ratio * (1 / self.noise)
            np.log1p(tail, out=tail)
            tail *= powers[side]
            (np.subtract if side else np.add)(odds, tail, out=odds)
        return odds

    def _constants(self) -> Values:
        """Twice the log ratio of the two densities' constants, (N, N + 1) by the number of in-models, for targets that
        are in (True) and out.
        """
        count, table = np.arange(len(self.phi) + 1), {}
        for side, d0 in self.freedom.items():
            v = d0 + count[:-1]  # by f
            table[side] = 2 * (gammaln((v + 1) / 2) - gammaln(v / 2))
        found = {}
        for member in (True, False):
            f_in, f_out = count - member - 1, len(self.phi) - count - (not member) - 1
            found[member] = table[True][:, f_in.clip(0)] - table[False][:, f_out.clip(0)]
        return found

    def _noise(self, block: np.ndarray) -> None:
        """Step 4: ``noise`` (N, 1), k."""
        odds, ratios, powers = self._terms(block)
        for _ in range(ROUNDS):
            member = 0.5 + 0.5 * np.tanh(self._log_odds(odds, ratios, powers) / 4)  # half the logistic, which is slower
            total = 0.0
            for side, ratio in ratios.items():  # E[u] r^2 / (k scale^2), with u of a t as a mixture of normals
                weight = member if side else 1 - member
                total = total + (weight * powers[side] * ratio / (self.noise + ratio)).mean(1, keepdims=True)
            self.noise = (self.noise * total).clip(FLOOR)


def _levels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step 0, from phi (N, n): (N, 1) factors of a model's phi, of the sum over all models, and what is added."""
    models = len(x)
    other = (x.sum(0) - x) / (models - 1)
    level, middle = x.mean(1, keepdims=True), other.mean(1, keepdims=True)
    x, other = x - level, other - middle
    varied = (other * other).sum(1, keepdims=True)
    slope = np.divide((x * other).sum(1, keepdims=True), varied, out=np.ones_like(varied), where=varied > 0)
    sd = (x - slope * other).std(1, keepdims=True)
    real = sd > 1e-9 * (np.abs(level) + x.std(1, keepdims=True))  # beyond rounding
    gain = np.ones_like(sd)
    if real.any():
        gain[real] = np.median(sd[real]) / sd[real]
    share = gain * slope / (models - 1)
    return gain + share, 1 / models - share, -gain * (level - slope * middle)


def curve(coefficients: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """The polynomials with ``coefficients`` (N, terms) of powers (N, terms or more, b), (N, b)."""
    return (coefficients[:, None] @ powers[:, : coefficients.shape[1]])[:, 0]


class _Fit:
    """A weighted polynomial regression for each target, from sums over samples that come in blocks."""

    def __init__(self, models: int, degree: int) -> None:
        terms = degree + 1
        self.gram = np.zeros((models, terms, terms))  # X' W X
        self.squared = np.zeros_like(self.gram)  # X' W^2 X
        self.cross = np.zeros((models, terms, 1))  # X' W y
        self.y2, self.total = np.zeros(models), np.zeros(models)  # y' W y, and the sum of the weights

    def add(self, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
        """The samples of a block, (N, b), with regressors x (N, terms, b) and weights w."""
        weighted = x * w[:, None]
        turned = weighted.transpose(0, 2, 1)
        self.gram += x @ turned
        self.squared += weighted @ turned
        self.cross += weighted @ y[..., None]
        self.y2 += np.einsum("ib,ib,ib->i", w, y, y)
        self.total += w.sum(1)

    def solve(self) -> None:
        """Find ``trend`` (N, terms); ``scatter`` (N,), the weighted sum of squares about it; and ``slack`` (N,), what a
        variance of 1 beside the errors adds to that on average, tr(W - W X (X' W X)^-1 X' W).
        """
        inverse = np.linalg.pinv(self.gram, hermitian=True)
        self.trend = (inverse @ self.cross)[..., 0]
        self.scatter = np.maximum(self.y2 - np.einsum("ij,ijk->i", self.trend, self.cross), 0.0)
        self.slack = self.total - np.einsum("ijk,ikj->i", inverse, self.squared)


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

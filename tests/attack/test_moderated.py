"""Moderated LiRA against a literal second computation, its limits, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special, stats

from dynmia.attack import moderated

FORMS = [moderated.moderated_scores, moderated.bavaria_scores, moderated.moderated_offline_scores]


def population(models: int = 20, samples: int = 300, gap: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """phi of samples that differ in level, spread and gap, and a keep mask with two models or more on each side."""
    rng = np.random.default_rng(seed)
    keep = rng.random((models, samples)) < 0.5
    for z in np.flatnonzero(np.minimum(keep.sum(0), models - keep.sum(0)) < 2):
        keep[:, z] = rng.permutation(models) < models // 2
    level, spread = 3 * rng.normal(size=samples), np.exp(0.4 * rng.normal(size=samples))
    return level + gap * spread * keep + spread * rng.normal(size=(models, samples)), keep


def literal(phi: np.ndarray, keep: np.ndarray, degree: int = 3, means: bool = True, own: bool = True) -> np.ndarray:
    """The six steps by loops over targets and samples, with the routines of numpy and scipy for each part."""
    models, samples = phi.shape
    if own:
        residuals, others = np.empty_like(phi), np.empty_like(phi)
        for i in range(models):
            others[i] = np.delete(phi, i, 0).mean(0)
            line = stats.linregress(others[i], phi[i])
            residuals[i] = phi[i] - line.intercept - line.slope * others[i]
        spreads = residuals.std(1)
        phi = others + residuals * (np.median(spreads) / spreads)[:, None]
    scores = np.empty_like(phi)
    without = {side: np.array([[np.mean(phi[(keep[:, z] == side) & (np.arange(models) != i), z]) for z in range(samples)]
                               for i in range(models)]).mean(0) for side in (True, False)}  # fmt: skip
    for i in range(models):
        rest = np.arange(models) != i
        groups = {side: [phi[rest & (keep[:, z] == side), z] for z in range(samples)] for side in (True, False)}
        c, m, s = ({side: np.array([f(g) for g in gs]) for side, gs in groups.items()}
                   for f in (len, np.mean, lambda g: ((g - g.mean()) ** 2).sum()))  # fmt: skip
        z = {side: np.clip((m[side] - without[side].mean()) / without[side].std(), -4, 4) for side in m}
        variance, freedom = {}, {}
        for side in m:
            f = c[side] - 1
            known = (f > 0) & (s[side] > 0)
            e = np.log(s[side][known] / f[known]) - special.digamma(f[known] / 2) + np.log(f[known] / 2)
            trend = np.polyfit(z[False][known], e, degree)
            excess = ((e - np.polyval(trend, z[False][known])) ** 2).sum() / (known.sum() - degree - 1)
            excess -= special.polygamma(1, f[known] / 2).mean()
            d0 = 2 * optimize.brentq(lambda x, y=excess: special.polygamma(1, x) - y, 1e-3, 1e7) if excess > 0 else 1e6
            prior = np.exp(np.polyval(trend, z[False]) + special.digamma(d0 / 2) - np.log(d0 / 2))
            variance[side], freedom[side] = (d0 * prior + s[side]) / (d0 + f), d0 + f
        centre, error = dict(m), {side: variance[side] / c[side] for side in m}
        for side in m if means else ():
            x, w = np.vander(z[not side], degree + 1), c[side] / variance[side]
            fit = stats_wls(x, m[side], w)
            q = (w * (m[side] - x @ fit) ** 2).sum()
            hat = x @ np.linalg.inv(x.T @ (x * w[:, None])) @ (x * w[:, None]).T
            tau2 = max(0.0, (q - (samples - degree - 1)) / (w.sum() - (w * np.diag(hat)).sum()))
            kept = tau2 / (tau2 + variance[side] / c[side])
            centre[side], error[side] = x @ fit + kept * (m[side] - x @ fit), kept * variance[side] / c[side]
        scale = {side: np.sqrt(variance[side] + error[side]) for side in m}
        k = 1.0
        for _ in range(moderated.ROUNDS if own else 0):
            density = {side: stats.t.pdf(phi[i], freedom[side], centre[side], scale[side] * np.sqrt(k)) for side in m}
            member = density[True] / (density[True] + density[False])
            total = 0.0
            for side, p in ((True, member), (False, 1 - member)):
                r2 = ((phi[i] - centre[side]) / scale[side]) ** 2
                total = total + p * (freedom[side] + 1) / (freedom[side] + r2 / k) * r2
            k = total.mean()
        scores[i] = np.subtract(*(stats.t.logpdf(phi[i], freedom[side], centre[side], scale[side] * np.sqrt(k))
                                  for side in (True, False)))  # fmt: skip
    return scores


def stats_wls(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(x * np.sqrt(w)[:, None], y * np.sqrt(w), rcond=None)[0]


@pytest.mark.parametrize(("models", "samples", "gap"), [(20, 300, 1.0), (20, 200, 0.0), (6, 150, 2.0), (9, 49, 1.0)])
def test_the_closed_form_equals_the_literal_steps(models, samples, gap):
    phi, keep = population(models, samples, gap)
    own = samples >= moderated.FEW
    expected = literal(phi, keep, 3 if own else 1, own=own)
    np.testing.assert_allclose(moderated.moderated_scores(phi, keep), expected, rtol=1e-6, atol=1e-6)


def test_the_variances_alone_equal_the_literal_steps():
    phi, keep = population()
    expected = literal(phi, keep, 0, means=False, own=False)
    np.testing.assert_allclose(moderated.bavaria_scores(phi, keep), expected, rtol=1e-6, atol=1e-6)

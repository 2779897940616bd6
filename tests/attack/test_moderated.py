"""Moderated LiRA against a literal second computation, its limits, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special, stats

from dynmia.attack import moderated
from dynmia.attack.lira import lira_scores
from dynmia.errors import UserError

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
        residuals, common = np.empty_like(phi), np.empty_like(phi)
        for i in range(models):
            common[i] = np.delete(phi, i, 0).mean(0)
            line = stats.linregress(common[i], phi[i])
            residuals[i] = phi[i] - line.intercept - line.slope * common[i]
        spreads = residuals.std(1)
        phi = phi.mean(0) + residuals * (np.median(spreads) / spreads)[:, None]
    scores = np.empty_like(phi)
    for i in range(models):
        rest = np.arange(models) != i
        groups = {side: [phi[rest & (keep[:, z] == side), z] for z in range(samples)] for side in (True, False)}
        c, m, s = ({side: np.array([f(g) for g in gs]) for side, gs in groups.items()}
                   for f in (len, np.mean, lambda g: ((g - g.mean()) ** 2).sum()))  # fmt: skip
        z = {side: np.clip((m[side] - phi.mean()) / phi.mean(0).std(), -4, 4) for side in m}
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
        nu = dict(error)
        for side in m if means else ():
            x, w = np.vander(z[not side], degree + 1), 1 / nu[side]
            fit = stats_wls(x, m[side], w)
            h, slope = x @ fit, np.polyval(np.polyder(fit), z[not side]) / phi.mean(0).std()
            q = (w * (m[side] - h) ** 2).sum()
            hat = x @ np.linalg.inv(x.T @ (x * w[:, None])) @ (x * w[:, None]).T
            expected = samples - degree - 1 + (w * slope**2 * nu[not side]).sum()
            tau2 = max(0.0, (q - expected) / (w.sum() - (w * np.diag(hat)).sum()))
            known = tau2 + slope**2 * nu[not side]
            kept = known / (known + nu[side])
            centre[side], error[side] = h + kept * (m[side] - h), kept * nu[side]
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


def test_the_offline_form_is_the_tail_of_the_predictive_density():
    phi, keep = population()
    scores = moderated.moderated_offline_scores(phi, keep)
    model = moderated._Moderated(phi, keep, means=False, own=False)
    r, w, v = (values[False] for values in model.predictive(slice(0, 300)))
    expected = stats.t.logcdf(r, v, scale=np.sqrt(w / v))
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-12)
    assert (np.argsort(scores[0, keep[0]]) == np.argsort(expected[0, keep[0]])).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_target_s_own_mask_never_helps_to_judge_it(form):
    """Whether a model trained on a sample changes what others are told of it, not what its own score is."""
    phi, keep = population(12, 200)
    phi = phi + np.random.default_rng(2).standard_t(2, size=200) * 5  # levels so far out that the trends are flat there
    other = keep.copy()
    fits = np.minimum(keep.sum(0), 12 - keep.sum(0)) > 3
    other[0, fits] ^= True
    np.testing.assert_allclose(form(phi, other)[0, fits], form(phi, keep)[0, fits], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_scores_follow_a_permutation_of_models_and_do_not_change_with_the_scale(form):
    phi, keep = population(10, 120)
    order = np.random.default_rng(1).permutation(10)
    np.testing.assert_allclose(form(phi[order], keep[order]), form(phi, keep)[order], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(form(3.0 * phi + 7, keep), form(phi, keep), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("models", "samples"), [(4, 40), (5, 200), (6, 60), (20, 3), (20, 10), (8, 49), (8, 51)])
def test_few_models_or_samples_give_finite_scores(form, models, samples):
    scores = form(*population(models, samples))
    assert np.isfinite(scores).all()


def test_phi_that_does_not_vary_says_nothing():
    _, keep = population(8, 100)
    assert np.abs(moderated.moderated_scores(np.full((8, 100), 3.0), keep)).max() < 1e-4
    same = np.tile(np.random.default_rng(0).normal(-7.7, 3, 100), (8, 1))
    assert np.abs(moderated.moderated_scores(same, keep)).max() < 1e-3
    phi, keep = population(20, 300)
    phi[3] = 5.0  # a model that answers the same to everything
    scores = moderated.moderated_scores(phi, keep)
    assert np.isfinite(scores).all()
    rest = np.arange(20) != 3
    assert (scores[rest][keep[rest]] > scores[rest][~keep[rest]].mean()).mean() > 0.6


def test_a_collapsed_model_is_not_believed():
    """Its level is taken out and its noise found, so that its scores are a little wrong instead of very much so."""
    phi, keep = population(20, 600, gap=3.0)
    rng = np.random.default_rng(5)
    phi[4] = -6 + 4 * rng.normal(size=600)
    moderate, plain = moderated.moderated_scores(phi, keep), lira_scores(phi, keep)

    def loss(scores: np.ndarray) -> float:  # in bits: 1 is what knows nothing
        return float(np.logaddexp(0, np.where(keep[4], -scores[4], scores[4])).mean() / np.log(2))

    assert loss(moderate) < 1.6
    assert loss(plain) > 5


@pytest.mark.parametrize("scatter", [0.0, 0.4, 0.8])
def test_without_a_signal_the_means_become_one_however_much_the_noise_of_samples_differs(scatter):
    rng = np.random.default_rng(7)
    _, keep = population(20, 3000)
    spread = np.exp(scatter * rng.normal(size=3000))
    phi = 3 * rng.normal(size=3000) + spread * rng.normal(size=(20, 3000))
    model = moderated._Moderated(phi, keep)
    means = model.sides(slice(0, 2048))[2]
    r = model.predictive(slice(0, 2048))[0]
    gap, raw = r[False] - r[True], means[True] - means[False]  # x less the means: their difference is the gap
    for part in np.array_split(np.argsort(spread[:2048]), 3):
        slope = (gap[:, part] * raw[:, part]).sum() / (raw[:, part] ** 2).sum()
        assert abs(slope) < 0.25  # a quarter of the raw gap at most is left


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.5])
def test_the_score_is_a_log_odds_more_than_that_of_lira(gap):
    """Of pairs that are given a probability p, a share of p are members, to a few percent; by log loss in bits too."""
    phi, keep = population(20, 2000, gap=gap, seed=3)
    error, loss = {}, {}
    for form in (lira_scores, moderated.moderated_scores):
        scores = form(phi, keep)
        p, member = special.expit(scores).ravel(), keep.ravel()
        bins = np.digitize(p, np.linspace(0, 1, 11))
        off = [abs(p[bins == b].mean() - member[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
        error[form], loss[form] = sum(off), np.logaddexp(0, np.where(keep, -scores, scores)).mean() / np.log(2)
    assert error[moderated.moderated_scores] < min(0.06, error[lira_scores])
    assert loss[moderated.moderated_scores] < min(1.03, loss[lira_scores])


def test_a_larger_pool_is_fitted_to_a_part_and_scored_in_blocks():
    phi, keep = population(8, 9000, gap=1.0)
    scores = moderated.moderated_scores(phi, keep)
    part = moderated.moderated_scores(phi[:, ::4], keep[:, ::4])  # the samples that the trends of the whole rest on
    assert np.corrcoef(scores[:, ::4].ravel(), part.ravel())[0, 1] > 0.999


def test_one_closed_line_for_what_cannot_be_scored():
    phi, keep = population(8, 60)
    lonely = keep.copy()
    lonely[:, 5] = np.arange(8) == 0
    for form in FORMS:
        with pytest.raises(
            UserError, match=r"1 of 60 samples have fewer than 2 models that trained on them, the first is number 5"
        ):
            form(phi, lonely)
        with pytest.raises(UserError, match="not finite, the first"):
            form(np.where(np.eye(8, 60) > 0, np.nan, phi), keep)
        with pytest.raises(UserError, match="too few models or samples"):
            form(phi[:, :1], keep[:, :1])
        for kind in (np.uint8, np.int8, float):
            np.testing.assert_array_equal(form(phi, keep.astype(kind)), form(phi, keep))


@pytest.mark.parametrize("excess", [1e-6, 0.01, 0.3, 2.0, 50.0])
def test_degrees_of_freedom_solve_their_equation(excess):
    d0 = float(moderated.freedom_of(np.array([excess]))[0])
    assert d0 == moderated.MOST or special.polygamma(1, d0 / 2) == pytest.approx(excess, rel=1e-8)
    assert moderated.freedom_of(np.array([-0.1]))[0] == moderated.MOST


def test_the_prior_s_degrees_of_freedom_are_those_that_the_variances_were_drawn_with():
    rng = np.random.default_rng(0)
    _, keep = population(30, 6000)
    variance = 2.0 * 8 / rng.chisquare(8, 6000)  # scaled inverse chi-squared: d0 = 8, s0^2 = 2
    phi = np.sqrt(variance) * rng.normal(size=(30, 6000))
    model = moderated._Moderated(phi, keep, degree=0, means=False, own=False)
    for side in (True, False):
        assert np.median(model.freedom[side]) == pytest.approx(8, rel=0.1)
        assert np.exp(np.median(model.log_prior[side])) == pytest.approx(2, rel=0.05)

"""Test and retest: intraclass correlation against its source and a second computation, sampling noise against truth."""

import numpy as np
import pytest
import xarray as xr
from helpers import path_of, random_plane
from scipy.stats import chi2
from sklearn.metrics import cohen_kappa_score

from dynmia import UserError, vulnerability_plane
from dynmia import dynamics as dyn
from dynmia.chapters.retest import LABELS, icc, kappa, redrawn, retest, statistics
from dynmia.stats.simulate import Simulator

# Shrout and Fleiss (1979), table 2: six targets, four judges
RATINGS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7.0]])


@pytest.fixture(scope="module")
def populations():
    simulator = Simulator(samples=150, checkpoints=2, separation=2.0)
    runs = [simulator.run(20, seed) for seed in range(3)]
    return runs, [vulnerability_plane(run, "lira:fpr@0.05") for run in runs]


def anova(values):
    """ICC(2,1) from the residuals of least-squares fits."""
    n, k = values.shape
    target, judge = np.eye(n).repeat(k, 0), np.tile(np.eye(k), (n, 1))

    def rest(design):
        return ((values.ravel() - design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]) ** 2).sum()

    both = rest(np.hstack([target, judge]))
    bms, jms = (rest(judge) - both) / (n - 1), (rest(target) - both) / (k - 1)
    ems = both / ((n - 1) * (k - 1))
    return (bms - ems) / (bms + (k - 1) * ems + k * (jms - ems) / n)


def test_icc_is_that_of_its_source():
    assert icc(RATINGS).item() == pytest.approx(0.29, abs=0.005)


def test_icc_equals_a_second_implementation_with_weights():
    values = np.random.default_rng(0).normal(size=(30, 5)) + np.arange(5)
    weights = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), 4).astype(float)
    assert icc(values).item() == pytest.approx(anova(values), abs=1e-12)
    expected = [anova(np.repeat(values, row.astype(int), axis=0)) for row in weights]
    np.testing.assert_allclose(icc(values, weights), expected, atol=1e-12)


def test_icc_finds_the_true_share_of_variance():
    rng = np.random.default_rng(3)
    values = rng.normal(0, 2, (4000, 1)) + rng.normal(0, 1, (1, 40)) + rng.normal(0, 1, (4000, 40))
    assert icc(values).item() == pytest.approx(4 / 6, abs=0.05)


def test_icc_of_constants_is_undefined_and_of_one_rater_an_error():
    assert np.isnan(icc(np.ones((5, 3)))).all()
    with pytest.raises(UserError, match="2 raters"):
        icc(np.ones((5, 1)))


def test_kappa_equals_scikit_learn_with_weights():
    a, b = random_plane(1, 300), random_plane(2, 300)
    flags = [dyn.vulnerable(plane).values[-1] for plane in (a, b)]
    assert kappa(a, b).item() == pytest.approx(cohen_kappa_score(*flags), abs=1e-12)
    times = np.random.default_rng(0).integers(0, 4, 300).astype(float)
    got = kappa(a, b, xr.DataArray(times[None], dims=("draw", "sample")))
    assert got.item() == pytest.approx(cohen_kappa_score(*flags, sample_weight=times), abs=1e-12)
    assert np.isnan(kappa(path_of("---- ----"), path_of("---- ----")))


def test_redrawn_counts_are_binomial_at_the_pooled_rates(populations):
    runs, planes = populations
    drawn = [found[1] for found in redrawn(runs, planes, 80)]
    for name, trials in (("tp", "n_in"), ("fp", "n_out")):
        pooled = sum(plane[name] for plane in planes) / sum(plane[trials] for plane in planes)
        counts = np.stack([plane[name].values for plane in drawn])
        n = planes[1][trials].values
        assert (counts <= n).all()
        np.testing.assert_allclose(counts.mean(0).mean(1), (pooled.values * n).mean(1), rtol=0.03, atol=0.01)
        expected = (n * pooled.values * (1 - pooled.values)).mean(1)
        np.testing.assert_allclose(counts.var(0, ddof=1).mean(1), expected, rtol=0.08)


def test_redrawn_models_keep_their_path():
    simulator = Simulator(samples=50, checkpoints=2)
    runs = [simulator.run(20, seed) for seed in range(2)]
    for run in runs:
        run.phi.values[2] = run.phi.values[1]  # nothing happens between the last two checkpoints
    planes = [vulnerability_plane(run, "lira:fpr@0.01") for run in runs]
    for plane in next(redrawn(runs, planes, 1)):
        np.testing.assert_array_equal(plane.tp[1], plane.tp[2])


def test_weights_equal_repeating_samples(populations):
    _, planes = populations
    times = np.random.default_rng(0).integers(0, 3, 150)
    got = statistics(planes, xr.DataArray(times[None].astype(float), dims=("draw", "sample"))).iloc[0]
    expected = statistics([plane.isel(sample=np.repeat(np.arange(150), times)) for plane in planes]).iloc[0]
    # which samples leak follows from their mean, so it is the same
    np.testing.assert_allclose(got[list(LABELS)], expected[list(LABELS)], rtol=1e-9)


def test_statistics_by_hand(populations):
    _, planes = populations
    row = statistics(planes).iloc[0]
    means = [float(plane.advantage[-1].mean()) for plane in planes]
    assert row.cv_advantage == pytest.approx(np.std(means, ddof=1) / np.mean(means))
    final = np.stack([plane.advantage.values[-1] for plane in planes], 1)
    assert row.icc_advantage == pytest.approx(anova(final))
    leaking = final[final.mean(1) >= 1 / 3]
    single = leaking.std(1, ddof=1) / leaking.mean(1)
    assert row.cv_sample == pytest.approx(np.quantile(single, 0.5, method="inverted_cdf"))


def test_populations_with_the_same_rates_are_told_as_such(populations):
    runs, planes = populations
    same = next(redrawn(runs, planes, 1, seed=9))  # truth: nothing but sampling noise
    noise = statistics(same).iloc[0]
    table = retest(runs, planes, draws=20, redraws=5)
    for name in ("icc_advantage", "kappa", "jaccard"):
        assert noise[name] == pytest.approx(table.noise[name], abs=0.06)
        assert table.low[name] <= table.value[name] <= table.high[name]
    assert table.value.icc_advantage < table.noise_low.icc_advantage  # fitted means differ between the populations
    spread = table.value.cv_advantage * np.sqrt(2 / chi2.ppf([0.975, 0.025], 2))
    np.testing.assert_allclose(table.loc["cv_advantage", ["population_low", "population_high"]].astype(float), spread)


def test_a_single_population_or_other_samples_are_an_error(populations):
    runs, planes = populations
    with pytest.raises(UserError, match="at least two"):
        retest(runs[:1], planes[:1])
    with pytest.raises(UserError, match="same samples"):
        retest(runs, [planes[0].isel(sample=slice(1, None)), *planes[1:]])

"""The simulator: moments as stated, and its closed-form truth against brute force and against a large population."""

import numpy as np
import pytest
from scipy.special import expit

from dynmia.attack.plane import vulnerability_plane
from dynmia.errors import UserError
from dynmia.stats.simulate import NOISE, Simulator


@pytest.mark.parametrize("noise", NOISE)
def test_noise_has_mean_zero_and_variance_one(noise):
    mean, variance = NOISE[noise].stats("mv")
    assert float(mean) == pytest.approx(0, abs=1e-12)
    assert float(variance) == pytest.approx(1)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("rule", ["lira:fpr@0.05", "lira:bayes", "posterior"])
def test_truth_equals_brute_force(noise, rule):
    simulator = Simulator(samples=40, checkpoints=2, noise=noise, spread_in=0.7)
    rng = np.random.default_rng(3)
    (out, inside, spread), truth = simulator.centres, simulator.truth(rule)
    draws = NOISE[noise].rvs((40_000, 1), random_state=rng)
    for t in (1, 2):
        sides = [(inside[t], spread[t]), (out[t], 1.0)]
        phis = [centre + spread * draws for centre, spread in sides]

        def score(phi, sides=sides):
            logs = [-0.5 * ((phi - centre) / spread) ** 2 - np.log(spread) for centre, spread in sides]
            return logs[0] - logs[1]

        scores = [score(phi) for phi in phis]
        threshold = 0 if rule == "lira:bayes" else np.quantile(scores[1], 0.95)
        for name, drawn in zip(("tpr", "fpr"), scores):
            decision = expit(drawn) if rule == "posterior" else drawn > threshold
            np.testing.assert_allclose(truth[name][t], decision.mean(0), atol=0.015)


def test_a_large_population_comes_close_to_the_truth():
    simulator = Simulator(samples=60, checkpoints=2)
    plane, truth = vulnerability_plane(simulator.run(1500, 1), "lira:fpr@0.05"), simulator.truth("lira:fpr@0.05")
    for name in ("tpr", "fpr"):
        error = (plane[name] - truth[name]).isel(epoch=slice(1, None))
        assert float((error**2).mean()) ** 0.5 < 0.04  # binomial 0.018; samples that hardly leak have unsure scores
        assert abs(float(error.mean())) < 0.01


def test_equal_spreads_have_a_straight_score():
    curved = Simulator(samples=30, checkpoints=2, spread_in=1 - 1e-6).truth("lira:fpr@0.1")
    straight = Simulator(samples=30, checkpoints=2, spread_in=1.0).truth("lira:fpr@0.1")
    np.testing.assert_allclose(curved.tpr[1:], straight.tpr[1:], atol=1e-3)


@pytest.mark.parametrize(("rule", "rate"), [("lira:fpr@0.1", 0.1), ("lira:bayes", 0.5), ("posterior", 0.5)])
def test_without_a_signal_the_ideal_attack_flags_at_random(rule, rate):
    truth = Simulator(samples=30, checkpoints=2, separation=0, spread_in=1).truth(rule)
    np.testing.assert_allclose(truth.tpr, rate, rtol=1e-12)
    np.testing.assert_allclose(truth.fpr, rate, rtol=1e-12)
    spread = Simulator(samples=30, checkpoints=2, separation=0, spread_in=0.5).truth(rule)  # told by the spread alone
    assert float(spread.advantage[-1].mean()) > 0.05
    if rule == "lira:fpr@0.1":
        np.testing.assert_allclose(spread.fpr.mean("sample"), rate, atol=1e-6)


@pytest.mark.parametrize("reading", ["posterior", "fpr@0.05"])
def test_moderated_lira_comes_closer_to_the_ideal_attack_than_lira(reading):
    simulator = Simulator(samples=400, checkpoints=2)
    truth, error = simulator.truth(reading).advantage[-1], {}
    for attack in ("moderated", "lira"):
        planes = [vulnerability_plane(simulator.run(20, seed), f"{attack}:{reading}") for seed in range(6)]
        mean = np.mean([plane.advantage.values[-1] for plane in planes], axis=0)
        error[attack] = np.sqrt(np.mean((mean - truth.values) ** 2))
    assert error["moderated"] < error["lira"]


def test_a_model_that_collapses_does_so_at_the_end_and_leaves_the_others_as_they_were():
    healthy, ill = (Simulator(samples=200, checkpoints=3, collapse=share) for share in (0.0, 0.2))
    before, after = healthy.run(20, 1), ill.run(20, 1)
    np.testing.assert_array_equal(after.phi[:-1], before.phi[:-1])
    lost = (after.phi[-1] != before.phi[-1]).all("sample").values
    assert 0 < lost.sum() < 20
    np.testing.assert_array_equal(after.phi[-1, ~lost], before.phi[-1, ~lost])
    fall = (before.phi[-1, lost] - after.phi[-1, lost]).mean()
    assert 2 < float(fall) < 6  # three spreads, and what members had gained
    inside = after.keep.values[lost]
    gap = after.phi.values[-1, lost][inside].mean() - after.phi.values[-1, lost][~inside].mean()
    assert abs(gap) < 0.5  # it has forgotten whom it saw
    with pytest.raises(UserError, match=r"collapse is 1\.5"):
        Simulator(collapse=1.5)


def test_populations_share_samples_and_differ_in_models():
    simulator = Simulator(samples=300, checkpoints=2, effect=0.5)
    runs = [simulator.run(8, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0].phi, runs[1].phi)
    assert not np.array_equal(runs[0].keep, runs[2].keep)
    between = runs[0].phi.isel(epoch=0).mean("sample").values
    assert between.std() > 0.2  # the model effect; without it 1 / sqrt(300)


def test_bad_input_is_named():
    with pytest.raises(UserError, match="unknown noise 'cauchy'"):
        Simulator(noise="cauchy")
    with pytest.raises(UserError, match="above 0"):
        Simulator(spread_in=0)

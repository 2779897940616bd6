"""The model-based plane: against simulation given the means, against a large population, and its options' errors."""

import numpy as np
import pytest
import xarray as xr

from dynmia import dynamics as dyn
from dynmia.attack.plane import vulnerability_plane
from dynmia.attack.scoring import Scoring
from dynmia.book import maker
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import UserError
from dynmia.stats.simulate import Simulator

made = maker("plane-error")
ESTIMATES, smooth, _expected, _rates = made.ESTIMATES, made.smooth, made._expected, made._smoothed_rates


@pytest.mark.parametrize("threshold", [0.0, 1.5, -0.7])
@pytest.mark.parametrize("spreads", [(0.8, 1.0), (1.0, 1.0), (1.3, 0.9)])
def test_given_the_means_it_is_the_expected_leave_one_out_count(threshold, spreads):
    rng, models = np.random.default_rng(1), np.array([9, 12])
    means, draws = np.array([[1.4], [0.2]]), 20_000
    groups = []  # groups of models whose mean is exactly the one given
    for count, mean, spread in zip(models, means, spreads):
        group = spread * rng.standard_normal((count, draws))
        groups.append(group - group.mean(0) + mean)
    flagged = []
    for own in (0, 1):
        x = groups[own][0]
        mu = [groups[side][1:].mean(0) if side == own else groups[side].mean(0) for side in (0, 1)]
        logs = [-0.5 * ((x - m) / s) ** 2 - np.log(s) for m, s in zip(mu, spreads)]
        flagged.append((logs[0] - logs[1] > threshold).mean())
    sides = [(np.array([c]), m, np.array([s])) for c, m, s in zip(models, means, spreads)]
    np.testing.assert_allclose(np.ravel(_rates(*sides, threshold, "rao-blackwell")), flagged, atol=0.015)


@pytest.mark.parametrize("threshold", [0.0, 1.5])
@pytest.mark.parametrize("count", [3, 9])
def test_given_means_and_variances_it_is_the_expected_leave_one_out_count(threshold, count):
    rng, (mean, spread), other = np.random.default_rng(2), (1.4, 0.8), (0.2, 1.1)
    group = rng.standard_normal((count, 40_000))
    group = mean + spread * (group - group.mean(0)) / group.std(0, ddof=1)  # all with just this mean and variance
    x, rest = group[0], group[1:]
    logs = [
        -0.5 * ((x - m) ** 2 / v + np.log(v))
        for m, v in ((rest.mean(0), rest.var(0, ddof=1)), (other[0], other[1] ** 2))
    ]
    sides = [(np.array([c]), np.array([m]), np.array([s])) for c, m, s in ((count, mean, spread), (12, *other))]
    for sign in (1, -1):
        flagged = (sign * (logs[0] - logs[1]) > threshold).mean()
        assert _expected(*sides, sign, threshold) == pytest.approx(flagged, abs=0.012)


@pytest.mark.parametrize("variance", ["pooled", "per-sample"])
@pytest.mark.parametrize("rule", ["lira:fpr@0.05", "lira:bayes"])
def test_it_has_the_mean_of_the_counts_and_less_variance(rule, variance):
    simulator = Simulator(samples=60, checkpoints=2)
    counted, smoothed = [], []
    for seed in range(150):
        run = simulator.run(12, seed)
        plane = vulnerability_plane(run, Scoring.of(rule, variance=variance))
        counted.append(plane.advantage)
        smoothed.append(smooth(plane, run).advantage)
    counted, smoothed = (np.stack(part)[:, 1:] for part in (counted, smoothed))
    difference = (smoothed - counted).mean(0)
    assert abs(difference.mean()) < 0.008
    assert np.abs(difference / (smoothed - counted).std(0) * np.sqrt(150)).mean() < 1.1  # E|N(0, 1)| = 0.8
    assert smoothed.var(0).mean() < 0.85 * counted.var(0).mean()


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("variance", ["pooled", "per-sample"])
def test_a_large_population_comes_close_to_the_truth(estimate, variance):
    simulator = Simulator(samples=60, checkpoints=1)
    run, truth = simulator.run(1500, 1), simulator.truth("lira:fpr@0.05")
    plane = smooth(vulnerability_plane(run, Scoring("lira", "fpr@0.05", variance=variance)), run, estimate)
    for name in ("tpr", "fpr"):
        assert np.sqrt(((plane[name] - truth[name])[1] ** 2).mean()) < 0.04


def test_plug_in_is_optimistic_without_a_signal_and_shrinking_is_not():
    run = Simulator(samples=400, checkpoints=1, separation=0, spread_in=1.0).run(20, 3)
    plane = vulnerability_plane(run, "lira:bayes")
    level = {name: float(smooth(plane, run, name).advantage.mean()) for name in ESTIMATES}
    assert level["plug-in"] > 0.1
    assert abs(level["shrunken"]) < 0.02
    assert level["rao-blackwell"] == pytest.approx(float(plane.advantage.mean()), abs=0.02)


def test_the_dynamics_take_it_and_it_follows_another_mask():
    run = Simulator(samples=80, checkpoints=3).run(20, 0)
    plane = smooth(vulnerability_plane(run, "lira:fpr@0.01"), run)
    assert plane.attrs["estimate"] == "rao-blackwell"
    assert "tp" not in plane
    assert ((plane.tpr >= 0) & (plane.tpr <= 1) & (plane.fpr >= 0) & (plane.fpr <= 1)).all()
    for name in ("displacement", "entropy_change", "speed_mean", "auc"):
        assert np.isfinite(METRICS[name].of(plane, None))
    assert dyn.transition_counts(plane).sum() == 3 * 80
    keep = ~run.keep.values
    other = smooth(vulnerability_plane(run, "lira:fpr@0.01", keep=keep), run, keep=keep)
    swapped = run.assign(keep=~run.keep)
    xr.testing.assert_allclose(other.tpr, smooth(vulnerability_plane(swapped, "lira:fpr@0.01"), swapped).tpr)


def test_bad_input_is_named():
    run = Simulator(samples=30, checkpoints=1).run(10, 0)
    plane = vulnerability_plane(run, "lira:fpr@0.01")
    with pytest.raises(UserError, match="unknown estimate 'smooth'"):
        smooth(plane, run, "smooth")
    with pytest.raises(UserError, match="centre 'mean'"):
        smooth(vulnerability_plane(run, Scoring("lira", "fpr@0.01", "median")), run)
    with pytest.raises(UserError, match="another keep mask"):
        smooth(plane, run, keep=~run.keep.values)

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers import path_of, plane_of, random_plane, signal_run
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from dynmia import UserError, vulnerability_plane
from dynmia import dynamics as dyn
from dynmia.chapters.early import SCORES, average_precision, by_then, disjoint_halves, prediction, recalls, stay


def hard_run(samples=400, seed=0, models=20):
    """Every second sample leaks, ever more; the rest never."""
    run = signal_run(models=models, samples=samples, strengths=(0.0, 1.0, 2.0, 6.0), seed=seed)
    leaks = np.arange(samples) % 2 == 0
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=run.phi.shape)
    strength = np.array([0.0, 1.0, 2.0, 6.0])[:, None, None]
    return run.assign(phi=(run.phi.dims, noise + strength * leaks * run.keep.values))


def test_stay_by_hand():
    # sample 0 stays, 1 leaves and returns, 2 leaves, 3 enters last
    value = stay(path_of("VVV- V--- VV-V"))
    np.testing.assert_allclose(value, [1 / 3, 1 / 3, 2 / 4])


def test_stay_is_nan_before_anybody_enters():
    np.testing.assert_array_equal(stay(path_of("-- V- V-")), [np.nan, 1, 1])


def test_stay_weights_equal_repeating_samples():
    plane = path_of("VVV- V--- VV-V")
    times = np.array([3, 0, 2, 1])
    got = stay(plane, xr.DataArray(times[None].astype(float), dims=("draw", "sample")))
    np.testing.assert_allclose(got.isel(draw=0), stay(plane.isel(sample=np.repeat(np.arange(4), times))))


@pytest.mark.parametrize("levels", [3, 10**6])
def test_average_precision_equals_scikit_learn_with_ties_and_weights(levels):
    rng = np.random.default_rng(0)
    truth, score = rng.random(300) < 0.3, rng.integers(0, levels, 300)
    weights = rng.integers(0, 4, (5, 300)).astype(float)
    got = average_precision(truth, score, weights)
    expected = [average_precision_score(truth, score, sample_weight=row) for row in weights]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_recall_at_the_checkpoints_between_the_ends():
    plane = random_plane(5, 200, 3)
    table = recalls(plane)
    np.testing.assert_allclose(table.value, 100 * dyn.early_identification(plane).recall[1:-1])
    np.testing.assert_allclose(table.index, plane.epoch[1:-1] / plane.epoch[-1])
    assert (table.low < table.value).all()
    assert (table.value < table.high).all()
    assert (recalls(random_plane(5, 3200, 3)).eval("high - low").mean() < (table.high - table.low).mean() / 2).all()


def test_a_recall_by_a_share_of_training_is_judged_from_both_sides():
    def told(low, high, shares=(0.2, 0.4)):
        table = pd.DataFrame({"low": low, "high": high}, index=list(shares))
        return by_then(table, 70, 0.375)

    assert told([71, 80], [75, 90]) == "reached"
    assert told([60, 71], [69, 80]) == "open"  # it may be reached between the two
    assert told([69, 71], [72, 80]) == "open"
    assert told([60, 65], [64, 69]) == "not reached"
    assert told([60], [64], [0.2]) == told([80], [90], [0.5]) == "open"
    assert told([60], [64], [0.375]) == "not reached"


def test_average_precision_without_a_positive_is_nan():
    assert np.isnan(average_precision(np.zeros(3, bool), np.arange(3.0), np.ones((1, 3)))).all()


def test_halves_share_no_model_and_have_enough_on_both_sides():
    run = signal_run(samples=300)
    first, second = disjoint_halves(run)
    assert not set(first.model.values) & set(second.model.values)
    assert first.sample.equals(second.sample)
    kept = set(first.sample.values)
    for part, models in ((first, slice(0, 10)), (second, slice(10, 20))):
        count = part.keep.sum("model")
        assert count.min() >= 2
        assert count.max() <= 8
        assert part.keep.equals(run.keep.isel(model=models).sel(sample=part.sample))
    inside = run.keep.values.reshape(2, 10, 300).sum(1)
    assert kept == set(np.flatnonzero(((inside >= 2) & (inside <= 8)).all(0)))


def test_halves_of_too_few_models_is_a_clear_error():
    with pytest.raises(UserError, match="in both halves"):
        disjoint_halves(signal_run(models=4, design="balanced"))


def test_prediction_of_now_and_average_equals_scikit_learn():
    plane = vulnerability_plane(hard_run(), "lira:fpr@0.01")
    truth = dyn.vulnerable(plane).values[-1]
    fold = np.random.default_rng([0, 1]).permutation(400) < 200
    got = prediction(plane, scores=["now", "average"])
    for t in range(4):
        for name, score in (("now", plane.advantage[t]), ("average", plane.advantage[: t + 1].mean("epoch"))):
            expected = np.mean([average_precision_score(truth[part], score.values[part]) for part in (fold, ~fold)])
            assert got.value.sel(score=name)[t].item() == pytest.approx(expected, abs=1e-12)
    assert got.chance == truth.mean()


def test_the_fitted_score_is_judged_on_samples_it_has_not_seen():
    plane = vulnerability_plane(hard_run(), "lira:fpr@0.01")
    truth = dyn.vulnerable(plane).values[-1]
    fold = np.random.default_rng([0, 1]).permutation(400) < 200
    path = np.hstack([plane.tpr.values[:3].T, plane.fpr.values[:3].T])
    path = (path - path.mean(0)) / (path.std(0) + 1e-12)
    expected = []
    for part in (fold, ~fold):
        model = LogisticRegression(solver="newton-cholesky").fit(path[~part], truth[~part])
        expected.append(average_precision_score(truth[part], model.decision_function(path[part])))
    got = prediction(plane, scores=["trajectory"], epochs=[int(plane.epoch[2])])
    assert got.value.item() == pytest.approx(np.mean(expected), abs=1e-12)


def test_noise_predicts_at_the_chance_level_even_when_fitted():
    plane = random_plane(0, samples=600, epochs=12)  # many features that say nothing
    outcome = xr.DataArray(np.random.default_rng(1).random(600) < 0.2, dims="sample")
    got = prediction(plane, outcome, epochs=[22])
    assert (got.low < got.chance_high).all()
    assert (got.value < got.chance + 0.08).all()


def test_prediction_grows_with_the_signal_and_is_certain_at_the_end():
    got = prediction(vulnerability_plane(hard_run(), "lira:fpr@0.01")).value
    assert (got[:, 0] < 0.65).all()
    assert (got[:, -1] > 0.99).all()
    assert (got.sel(score="now").diff("epoch") > 0).all()


def test_the_past_is_all_that_is_seen():
    plane = vulnerability_plane(hard_run(), "lira:fpr@0.01")
    outcome = dyn.vulnerable(plane).isel(epoch=-1)
    other = plane.copy(deep=True)
    for name in ("tpr", "fpr", "advantage"):
        other[name][2:] = 0.0
    epochs = [int(plane.epoch[1])]
    xr.testing.assert_equal(prediction(plane, outcome, epochs=epochs), prediction(other, outcome, epochs=epochs))


def test_disjoint_halves_do_not_share_noise():
    # no signal: the same models predict their own noise above chance, other models' noise they do not
    run = signal_run(samples=1500, strengths=(0.0, 0.0))
    run.phi.values[1] = run.phi.values[0]  # the noise stays
    first, second = (vulnerability_plane(part, "lira:bayes") for part in disjoint_halves(run))
    outcomes = [dyn.vulnerable(plane).isel(epoch=-1) for plane in (first, second)]
    shared, disjoint = (prediction(first, outcome, epochs=[0], scores=["now"]) for outcome in outcomes)
    assert shared.low.item() > 0.8  # the advantage does not quite say which cell
    assert disjoint.low.item() < disjoint.chance_high


@pytest.mark.parametrize("score", SCORES)
def test_prediction_without_finally_vulnerable_samples_is_nan(score):
    got = prediction(path_of("VV-- ----"), scores=[score])
    assert np.isnan(got.value).all()
    assert np.isnan(got.low).all()
    assert got.chance == 0


def test_intervals_hold_the_estimate():
    plane = vulnerability_plane(hard_run(), "lira:fpr@0.01")
    got = prediction(plane)
    assert (got.low <= got.value + 1e-9).all()
    assert (got.value <= got.high + 1e-9).all()


def test_prediction_takes_a_collapsed_plane():
    plane = plane_of([[5] * 40, [10] * 20 + [0] * 20], np.zeros((2, 40)))
    assert prediction(plane, epochs=[0]).value.values == pytest.approx(0.5, abs=0.2)

"""Calibration against a hand-worked case, a second implementation, and simulated predictors of known calibration."""

from itertools import pairwise

import numpy as np
import pytest

from dynmia.chapters import reliability as rel
from dynmia.errors import UserError


def second(confidence, right, edges):
    """Guo et al. (2017), eq. 3, bin by bin: (low, high]."""
    total = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def predictor(images, shift=0.0, seed=0):
    """Confidence, and hits that are right ``shift`` less often than it says."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1, images)
    return confidence, rng.random(images) < confidence - shift


def test_by_hand():
    # (0, 0.5] holds 0.4, right, and 0.5, wrong: 0.45 against 1/2; (0.5, 1] holds 0.9 and 0.8, both wrong
    confidence, right = np.array([0.4, 0.9, 0.5, 0.8]), np.array([1, 0, 0, 0])
    assert rel.expected_calibration_error(confidence, right, 2) == pytest.approx(0.5 * 0.05 + 0.5 * 0.85)
    table = rel.reliability_diagram(confidence, right, 2)
    np.testing.assert_allclose(table, [[0.45, 0.5, 2], [0.85, 0, 2]])
    assert table.columns.tolist() == ["confidence", "accuracy", "count"]
    assert rel.expected_calibration_error([1.0, 1.0, 0.0], [1, 1, 0]) == 0
    assert rel.expected_calibration_error([1.0, 1.0], [0, 0]) == 1


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_against_a_second_implementation(shift):
    confidence, right = predictor(1001, shift)
    for bins in (1, 7, 15):
        expected = second(confidence, right, np.linspace(0, 1, bins + 1))
        assert rel.expected_calibration_error(confidence, right, bins) == pytest.approx(expected, abs=1e-6)
    confidence, right = confidence[:990], right[:990]  # 15 bins of 66
    edges = np.r_[0, np.sort(confidence)[65::66]]
    mine = rel.expected_calibration_error(confidence, right, adaptive=True)
    assert mine == pytest.approx(second(confidence, right, edges), abs=1e-6)
    assert rel.reliability_diagram(confidence, right, adaptive=True)["count"].tolist() == [66] * 15


def test_several_models_are_judged_one_by_one():
    one, other = predictor(500), predictor(500, 0.3, 1)
    both = [np.stack(part) for part in zip(one, other)]
    mean = (rel.expected_calibration_error(*one) + rel.expected_calibration_error(*other)) / 2
    assert rel.expected_calibration_error(*both) == pytest.approx(mean, abs=1e-6)
    assert rel.calibration(*both).value == pytest.approx(mean, abs=1e-6)
    assert rel.reliability_diagram(*both)["count"].sum() == 1000
    sided = np.array([one[0], one[0]]), np.array([np.ones(500), 2 * one[0] - 1])  # errors that would cancel if pooled
    assert rel.expected_calibration_error(*sided) > 0.2


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_calibrated_predictor_gives_the_level_of_its_finite_sample(adaptive):
    drawn = [rel.expected_calibration_error(*predictor(2000, seed=s), adaptive=adaptive) for s in range(200)]
    level = rel.calibrated_level(predictor(2000)[0], adaptive=adaptive)
    assert level == pytest.approx(np.mean(drawn), rel=0.05)
    assert 0.01 < level < 0.05
    # a hundred times the images, a tenth of the level
    assert rel.calibrated_level(predictor(200_000)[0], adaptive=adaptive) == pytest.approx(level / 10, rel=0.05)


def test_the_interval_holds_the_known_error_as_often_as_it_says():
    # confidence is 0.2 too high everywhere: every bin has that gap, so the true error is 0.2 whatever the bins
    rows = [rel.calibration(*predictor(600, 0.2, seed=s), bins=5, draws=200) for s in range(150)]
    held = np.mean([row.low <= 0.2 <= row.high for row in rows])
    assert 0.9 <= held <= 0.99
    assert all(row.low <= row.value <= row.high and row.calibrated < 0.05 for row in rows)


def test_a_calibrated_predictor_is_told_by_its_level():
    rows = [rel.calibration(*predictor(1000, seed=s), draws=100) for s in range(20)]
    assert np.mean([row.low < row.calibrated for row in rows]) > 0.9
    row = rel.calibration(*predictor(1000, 0.1), draws=100)
    assert row.low > row.calibrated


def test_what_is_no_probability_is_named():
    for confidence, right, word in (
        ([0.5, 1.2], [1, 0], "no probabilities"), ([0.5], [1, 0], "one shape"), ([], [], "at least one image"),
        ([np.nan], [1], "no probabilities"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            rel.expected_calibration_error(np.array(confidence), np.array(right))
    with pytest.raises(UserError, match="at least 1"):
        rel.expected_calibration_error([0.5], [1], 0)

"""Errors of planes: against errors by hand, the subtraction of the reference's noise, and the words of the rule."""

import numpy as np
import pandas as pd
import pytest

from dynmia import book
from dynmia.attack.plane import vulnerability_plane
from dynmia.chapters import smoothing
from dynmia.stats.simulate import Simulator

plane_error = book.maker("plane-error")


@pytest.fixture(scope="module")
def few():
    return plane_error.simulated("normal", 10, 12)


def test_counts_err_by_their_variance_alone_against_their_own_mean(few):
    simulator = plane_error.SCENARIOS["normal"]
    counts = np.stack([vulnerability_plane(simulator.run(10, seed), "lira:bayes").tpr[1:] for seed in range(12)])
    row = few.loc["normal", 10, "lira:bayes", "sample", "tpr", "attack", "counts"]
    assert row.bias == pytest.approx(0, abs=1e-12)
    assert row.mse == pytest.approx(counts.var(0, ddof=1).mean())
    assert row.ratio == pytest.approx(1)


def test_bias_against_the_ideal_attack_is_the_mean_difference(few):
    simulator = plane_error.SCENARIOS["normal"]
    planes = [
        plane_error.estimates(simulator.run(10, seed), ["lira:bayes"])["lira:bayes"]["plug-in"] for seed in range(12)
    ]
    advantage = np.stack([plane.advantage[1:] for plane in planes])
    truth = simulator.truth("lira:bayes").advantage[1:].values
    row = few.loc["normal", 10, "lira:bayes", "sample", "advantage", "ideal", "plug-in"]
    assert row.bias == pytest.approx((advantage - truth).mean())
    assert row.mse == pytest.approx(((advantage - truth) ** 2).mean(), rel=1e-6)


def test_the_noise_of_the_reference_is_subtracted():
    # counts of a group against other groups' counts: what is left is the counts' own variance
    run = Simulator(samples=400, checkpoints=1).run(120, 0)
    errors = plane_error.measured("mine", run, ["lira:bayes"]).loc[
        "mine", plane_error.GROUP, "lira:bayes", "sample", "tpr", "others"
    ]
    assert errors.mse["counts"] == pytest.approx(errors.sd["counts"] ** 2, rel=0.02)
    assert errors.ratio["rao-blackwell"] < 0.7
    assert errors.low["rao-blackwell"] < errors.ratio["rao-blackwell"] < errors.high["rao-blackwell"]


def made_up(ratios, shift):
    """Errors with the given ratio of every case of an estimate, and its shift without a signal."""
    rows = {}
    for name in ("normal", plane_error.NOTHING):
        for rule in plane_error.RULES:
            for estimate in (plane_error.COUNTS, *plane_error.ESTIMATES):
                ratio = ratios.get(estimate, 2.0)
                values = [shift.get(estimate, 0.0), 0.1, 0.1, ratio, 0.9 * ratio, 1.1 * ratio]
                rows[name, 20, rule, "sample", "advantage", "attack", estimate] = values
                rows[name, 20, rule, "population", "vulnerable", "attack", estimate] = values
    frame = pd.DataFrame.from_dict(rows, "index", columns=plane_error.COLUMNS)
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=plane_error.INDEX)
    return frame.sort_index()


@pytest.mark.parametrize(
    ("ratios", "shift", "best"),
    [
        ({"rao-blackwell": 0.7}, {}, "rao-blackwell"),
        ({"rao-blackwell": 0.7, "shrunken": 0.5}, {}, "shrunken"),
        ({"rao-blackwell": 0.7, "shrunken": 0.5}, {"shrunken": -0.03}, "rao-blackwell"),
        ({"rao-blackwell": 0.95}, {}, "counts"),  # its interval holds 1
    ],
)
def test_the_recommendation_follows_its_rule(ratios, shift, best):
    errors = made_up(ratios, shift)
    assert smoothing.recommended(smoothing.judge(errors)) == {20: best}
    assert best in smoothing.verdict(errors)[0]


def test_figures_take_the_errors(few):
    figure = smoothing.ratios(few)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["normal, N = 10"]
    planes = plane_error.estimates(plane_error.SCENARIOS["skewed"].run(10, 0), ["lira:bayes"])["lira:bayes"]
    assert len(smoothing.clouds({"simulated": planes}).axes) == 4


def test_the_released_errors_are_complete():
    errors = book.read_table("data/plane-error.csv").sort_index()
    assert not errors.index.has_duplicates
    cases = {(name, n) for name in plane_error.SCENARIOS for n in plane_error.POPULATIONS}
    assert set(errors.index.droplevel([2, 3, 4, 5, 6])) == cases | {
        (name, n) for name in plane_error.REAL for n in plane_error.GROUPS
    }
    assert list(errors.columns) == plane_error.COLUMNS

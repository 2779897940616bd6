import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dynmia import UserError, dynamics, vulnerability_plane
from dynmia.book import maker, read_table
from dynmia.chapters import markov as chapter
from dynmia.chapters import markov_verdict
from dynmia.dynamics import markov
from dynmia.stats.simulate import Simulator

made = maker("markov")
RULE = "lira:fpr@0.01"


@pytest.fixture(scope="module")
def run():
    return Simulator(samples=200, checkpoints=8, separation=3.0).run(20)


@pytest.fixture(scope="module")
def table(run):
    rows = [made.measure(run, [RULE], draws=49).reset_index().assign(run=name) for name in ("mnist-a", "cifar10-b")]
    return pd.concat(rows, ignore_index=True)


def test_measure_agrees_with_the_parts_it_is_made_of(run, table):
    plane, row = vulnerability_plane(run, RULE), table.iloc[0]
    states = chapter.paths(plane)
    test = markov.order_test(states, draws=49)
    np.testing.assert_allclose([row.bits, row.p_lr], [test.bits, test.p_lr])
    np.testing.assert_allclose(row.share, 100 * test.bits / test.entropy)
    ever = (states == 6).any(0).mean()
    np.testing.assert_allclose(row.observed_ever, 100 * ever)
    np.testing.assert_allclose(row.off, 100 * (row.chain_ever / row.observed_ever - 1))
    assert row.observed_ever_low < row.observed_ever < row.observed_ever_high
    assert row.off_low < row.off < row.off_high


def test_paths_of_the_fitted_chain_have_its_first_passage_and_pass_the_test(run):
    plane = vulnerability_plane(run.isel(epoch=slice(0, 6)), RULE)
    ever = np.mean([(chapter.chain_paths(plane, seed) == 6).any(0).mean() for seed in range(100)])
    np.testing.assert_allclose(ever, markov.passage(dynamics.states(plane)).ever.sel(source="chain"), atol=0.01)
    p = [markov.order_test(chapter.chain_paths(plane, seed), draws=39).p_lr for seed in range(40)]
    assert 0.3 < np.mean(p) < 0.75


def test_noise_leaves_states_alone_with_many_models_and_moves_them_with_few():
    states = np.arange(9)[None].repeat(5, 0).repeat(50, 1)
    np.testing.assert_array_equal(chapter.through_noise(states, 3000), states)
    assert 0.2 < (chapter.through_noise(states, 10) != states).mean() < 0.7


def test_p_values_of_the_calibration_reject_what_has_memory():
    states = np.array([[0, 1, 0]] * 30 + [[2, 1, 2]] * 30).T
    found = maker("markov-calibration")._p_values(markov.step_counts(states, 3), 49, np.random.default_rng(0))
    assert max(found.values()) <= 0.05
    assert set(maker("markov-calibration").TESTS) == {test for _, test in found}


def test_truth_starts_where_it_should():
    tables = maker("markov-calibration").truth(np.eye(9)[2], np.stack([np.eye(9)] * 3), 50, 4, np.random.default_rng(0))
    assert tables.shape == (4, 2, 9, 9, 9)
    assert (tables[:, :, 2, 2, 2] == 50).all()


def test_intervals_of_checkpoints_stop_before_too_few_are_left(run):
    found = chapter.by_interval(vulnerability_plane(run, RULE), (1, 2, 8), draws=19)
    np.testing.assert_array_equal(found.epochs, [10, 20])


def test_a_table_that_is_missing_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"dynmia make markov"):
        read_table(tmp_path / "markov.csv")


@pytest.mark.parametrize(
    ("low", "off", "expected"), [(6, 12, "description"), (6, 2, "costly"), (1, 12, "costly"), (1, -2, "whole")]
)
def test_reading_follows_from_memory_and_cost(low, off, expected):
    assert markov_verdict.reading(pd.DataFrame({"share_low": [low, low, 0], "off": [off, off, 0.0]})) == expected


def test_a_rate_holds_within_two_standard_errors():
    rates, chains = pd.Series([0.05, 0.074, 0.08, 0.0]), pd.Series([300] * 4)
    assert markov_verdict.holds(rates, chains).tolist() == [True, True, False, False]


def test_infinite_times_print_as_a_dash():
    row = pd.Series({"hitting": 10.0, "hitting_low": 8.0, "hitting_high": np.inf})
    assert markov_verdict.interval(row, "hitting") == markov_verdict.DASH
    assert markov_verdict.interval(row.replace(np.inf, 13.0), "hitting", 0) == "10 [8, 13]"


def test_page_parts_come_from_the_tables(table):
    assert markov_verdict.printed(table).index.tolist() == ["mnist-a", "cifar10-b"]
    lines = markov_verdict.verdict({RULE: table})
    assert len(lines) == 5
    assert f"in {int((table.p_lr <= 0.05).sum())} of 2 runs by the likelihood ratio" in lines[0]
    assert lines[-1] == f"`{RULE}`: hence {markov_verdict.READINGS[markov_verdict.reading(table)]}."
    calibration = pd.DataFrame(
        [
            ["a", RULE, 500, "lr", test, rate, 300]
            for test, rate in (("chi2", 0.0), ("bootstrap", 0.3), ("exact", 0.05))
        ],
        columns=["run", "rule", "samples", "statistic", "test", "rate", "chains"],
    )
    assert markov_verdict.rates(calibration).shape == (1, 3)
    assert "chi-square limit 0.0 to 0.0 % (0 of 1" in markov_verdict.calibration_verdict(calibration)


def test_noise_curves_and_their_sentences(run, table):
    plane = vulnerability_plane(run, RULE)
    curves = chapter.noise_curves(plane, {"part": run}, RULE, [10, 20], draws=19)
    assert curves.groupby("curve", sort=False).size().to_dict() == {chapter.HIDDEN: 3, "simulator": 3, "part": 2}
    assert curves[(curves.curve == chapter.HIDDEN) & np.isinf(curves.models)].p.item() > 0.05
    intervals = {"mnist-a": chapter.by_interval(plane, (1, 2), draws=19)}
    first, second, third = markov_verdict.curve_verdict(curves, intervals, table)
    assert "A true chain without noise passes" in first
    assert "part" in second
    assert "mnist-a" in third
    overview = markov_verdict.overview({RULE: table, "lira:bayes": table})
    for figure in (markov_verdict.curve_panels(curves, intervals), overview):
        figure.canvas.draw()
        plt.close(figure)

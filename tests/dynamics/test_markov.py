import numpy as np
import pytest
import xarray as xr
from scipy.stats import chi2_contingency, random_table

from dynmia import UserError
from dynmia.book import maker
from dynmia.dynamics import markov
from dynmia.dynamics.cloud import VULNERABLE as V

made = maker("markov")


def paths(*rows):
    """(T, n) from one row of states a sample."""
    return np.array(rows).T


def walk(chain, samples, seed=0, first=0):
    """A sample-by-sample simulation of a chain with matrices (T - 1, k, k), k <= 9."""
    rng, states = np.random.default_rng(seed), [np.full(samples, first)]
    for matrix in chain:
        states.append((rng.random(samples)[:, None] > np.cumsum(matrix[states[-1]], 1)).sum(1))
    return np.stack(states)


def padded(matrix):
    full = np.eye(9)
    full[: len(matrix), : len(matrix)] = matrix
    return full


MIX = padded([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.3, 0.6]])


def labelled(states, every=1):
    return xr.DataArray(states, {"epoch": every * np.arange(len(states))}, ("epoch", "sample"))


def test_step_counts_by_hand():
    states = paths([0, 1, 6], [0, 1, 1], [0, 0, 6])
    pairs, triples = markov.step_counts(states), markov.step_counts(states, 3)
    assert pairs.shape == (2, 9, 9)
    assert (pairs[0, 0, 1], pairs[0, 0, 0], pairs[1, 1, 6], pairs[1, 1, 1], pairs[1, 0, 6]) == (2, 1, 1, 1, 1)
    assert triples[0, 0, 1, 6] == triples[0, 0, 1, 1] == triples[0, 0, 0, 6] == 1
    assert pairs.sum() == 6
    assert triples.sum() == 3


def test_weights_equal_repeating_samples():
    states, times = walk([MIX] * 4, 30, seed=1), np.arange(30) % 4
    for length in (2, 3):
        got = markov.step_counts(states, length, times[None].astype(float))[0]
        np.testing.assert_array_equal(got, markov.step_counts(np.repeat(states, times, 1), length))


def test_too_few_checkpoints_is_one_clear_line():
    with pytest.raises(UserError, match="2 checkpoints are too few for paths of 3"):
        markov.order_test(paths([0, 1]))


def test_likelihood_ratio_is_that_of_scipy_on_each_table():
    triples = markov.step_counts(walk([MIX] * 3, 400, first=1), 3)
    by_hand = 0.0
    for t, b in np.ndindex(2, 9):
        table = triples[t, :, b, :]
        table = table[table.sum(1) > 0][:, table.sum(0) > 0]
        if table.size > 1:
            by_hand += chi2_contingency(table, correction=False, lambda_="log-likelihood")[0]
    np.testing.assert_allclose(markov.statistics(triples)[0], by_hand)


def test_statistics_of_a_second_order_walk_by_hand():
    # half of the samples go 0 1 0, half go 2 1 2: the state before tells the next one wholly, which is one bit
    states = paths(*[[0, 1, 0]] * 10, *[[2, 1, 2]] * 10)
    ratio, pooled, distance = markov.statistics(markov.step_counts(states, 3))
    np.testing.assert_allclose([ratio, pooled], 20 * 2 * np.log(2))
    np.testing.assert_allclose(distance, 0.5)  # the product sends half of each to the wrong end
    found = markov.order_test(states, draws=999)
    np.testing.assert_allclose(found.entropy, 1)
    assert found.p_lr < 0.01
    assert 0.9 < found.bits <= 1


def test_statistics_are_zero_where_past_and_future_are_matched_evenly():
    states = paths([0, 1, 0], [0, 1, 2], [2, 1, 0], [2, 1, 2])
    np.testing.assert_allclose(markov.statistics(markov.step_counts(states, 3)), 0, atol=1e-12)


def test_pooled_order_two_is_seen_in_the_counts_over_all_checkpoints():
    states = walk([MIX] * 6, 200)
    triples = markov.step_counts(states, 3)
    np.testing.assert_allclose(markov.statistics(triples)[1], markov.statistics(triples.sum(0)[None])[0])


def test_rewiring_keeps_all_single_steps_and_has_the_law_of_fixed_margins():
    triples = markov.step_counts(walk([MIX] * 4, 60, first=1), 3)
    drawn = markov.rewired(triples, 4000, np.random.default_rng(0))
    assert (drawn.sum(-1) == triples.sum(-1)).all()
    assert (drawn.sum(-3) == triples.sum(-3)).all()
    table = triples[2, :3, 1, :3]  # 3 x 3: mean and variance of each cell against scipy's random_table
    law = random_table(table.sum(1), table.sum(0))
    other = law.rvs(4000, random_state=1)
    np.testing.assert_allclose(drawn[:, 2, :3, 1, :3].mean(0), law.mean(), atol=0.1)
    np.testing.assert_allclose(drawn[:, 2, :3, 1, :3].var(0), other.var(0), rtol=0.15)


def test_simulation_of_counts_equals_that_of_samples():
    chain = np.stack([MIX, MIX @ MIX, MIX])
    first = np.bincount([1], minlength=9) * 50
    drawn = made.simulated(first, chain, 2000, np.random.default_rng(0))
    walks = np.stack([markov.step_counts(walk(chain, 50, seed, first=1), 3) for seed in range(1000)])
    assert drawn.shape[1:] == walks.shape[1:]
    np.testing.assert_allclose(drawn.mean(0), walks.mean(0), atol=0.35)
    np.testing.assert_allclose(drawn.var(0).sum(), walks.var(0).sum(), rtol=0.1)


def test_p_value_counts_the_observation():
    drawn = np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose([markov.p_value(np.array(v), drawn) for v in (5, 4, 0)], [1 / 5, 2 / 5, 1])


def test_exact_test_holds_its_level_on_sparse_chains_where_chi_square_does_not():
    rates = np.array([
        (markov.order_test(walk([MIX] * 5, 40, seed, first=1), draws=99, seed=seed)[["p_lr", "p_ck", "p_chi2"]] <= 0.05)
        for seed in range(200)
    ]).mean(0)  # fmt: skip
    assert 0.015 < rates[0] < 0.095
    assert 0.015 < rates[1] < 0.095
    assert abs(rates[2] - 0.05) > 0.04


def test_order_test_rejects_a_second_order_chain():
    states = walk([MIX] * 5, 300, first=1)
    states[3:] = np.where(np.random.default_rng(0).random(states[3:].shape) < 0.5, states[1:-2], states[3:])
    found = markov.order_test(states, draws=199)
    assert found[["p_lr", "p_pooled", "p_ck"]].max() <= 0.005
    assert found.bits_low > 0.02


def test_extra_bits_of_a_true_chain_are_about_none():
    found = markov.order_test(walk([MIX] * 10, 2000, first=1), draws=199)
    assert abs(found.bits) < 0.003
    assert found.bits_low < 0 < found.bits_high
    np.testing.assert_allclose(found.ck, found.ck_null, rtol=0.15)


def test_homogeneity_of_one_matrix_and_of_two():
    p = [made.homogeneity_test(walk([MIX] * 8, 300, seed, first=1), draws=99) for seed in range(40)]
    assert 0.3 < np.mean(p) < 0.7
    assert made.homogeneity_test(walk([MIX, MIX, np.eye(9)], 300, first=1)) < 0.01


def test_passage_by_hand():
    # enters at epoch 10 and leaves; enters at 20, stays to the end; leaves at 10 from epoch 0; never
    states = paths([0, V, 0, V], [0, 0, V, V], [V, 0, 0, 0], [0, 0, 0, 0])
    seen = markov.passage(labelled(states, 10)).sel(source="observed")
    np.testing.assert_allclose(seen.ever, 3 / 4)
    np.testing.assert_allclose(seen.entry, (10 + 20 + 0) / 3)
    np.testing.assert_allclose(seen.stay, (10 + 20 + 10) / 3)
    # the chain: P(0 -> V) = 1/3, then 1/3 of those in 0, then 1/3; leaves V by 1, 1, 0
    chain = markov.passage(labelled(states, 10)).sel(source="chain")
    flow = [1 / 4, 3 / 4 / 3, 3 / 4 * 2 / 3 / 3, 3 / 4 * 4 / 9 / 3]
    np.testing.assert_allclose(chain.ever, sum(flow))
    np.testing.assert_allclose(chain.entry, np.dot(flow, [0, 10, 20, 30]) / sum(flow))
    np.testing.assert_allclose(chain.stay, np.dot(flow, [10, 10, 20, 10]) / sum(flow))


def test_passage_of_a_pooled_chain_is_geometric():
    p, q = 0.2, 0.5
    chain = np.eye(9)
    chain[0, [0, V]], chain[V, [0, V]] = [1 - p, p], [q, 1 - q]
    states = walk([chain] * 40, 4000)
    found = markov.passage(labelled(states))
    np.testing.assert_allclose(found.ever, 1 - 0.8**40, atol=2e-3)
    np.testing.assert_allclose(found.entry, 1 / p, rtol=0.05)
    np.testing.assert_allclose(found.stay, 1 / q, rtol=0.05)
    np.testing.assert_allclose(made.hitting_time(chain, np.eye(9)[0]), 1 / p)


def test_mean_stay_over_all_visits_is_that_of_the_chain_by_construction():
    states = walk([MIX[::-1, ::-1]] * 6, 300, first=8)
    share = np.bincount(states[0], minlength=9) / 300
    for t, matrix in enumerate(markov.matrices(markov.step_counts(states))):
        share = share @ matrix  # so time in V and entries into it are those of the data
        np.testing.assert_allclose(share, np.bincount(states[t + 1], minlength=9) / 300)


def test_passage_weights_equal_repeating_samples():
    states, times = walk([MIX[::-1, ::-1]] * 6, 50, first=8), np.arange(50) % 3
    got = markov.passage(labelled(states), xr.DataArray(times[None].astype(float), dims=("draw", "sample")))
    xr.testing.assert_allclose(got.isel(draw=0), markov.passage(labelled(np.repeat(states, times, 1))))
    assert float(got.ever[0, 0]) > 0


def test_passage_is_nan_where_nobody_enters():
    found = markov.passage(labelled(np.zeros((4, 5), int)))
    assert (found.ever == 0).all()
    assert found.entry.isnull().all()


def test_hitting_time_by_hand_and_out_of_reach():
    chain = np.eye(9)
    chain[0, [0, 1]], chain[1, [0, 1, V]] = [0.5, 0.5], [0.25, 0.25, 0.5]
    # h0 = 1 + h0/2 + h1/2, h1 = 1 + h0/4 + h1/4: h1 = h0 - 2, so h0 = 5 and h1 = 3
    np.testing.assert_allclose(made.hitting_time(chain, np.eye(9)[0]), 5)
    np.testing.assert_allclose(made.hitting_time(chain, np.eye(9)[V]), 0)
    assert made.hitting_time(chain, np.eye(9)[3]) == np.inf
    chain[1] = 0
    chain[1, [3, V]] = 0.5
    assert made.hitting_time(chain, np.eye(9)[0]) == np.inf  # it may be lost on the way

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dynmia import UserError
from dynmia.book import maker
from dynmia.chapters.scaling import best_law
from dynmia.stats.trends import directions, rank_trend

fit_law = maker("precision").fit_law

SIZES = np.array([500.0, 1000, 2000, 4000, 8000])


def simulated(rng, scatter, error, sizes=SIZES):
    """Values of populations on 300 (n / 500)^-0.5 with a scatter, as measured with an error."""
    law = 300 * (sizes / 500) ** -0.5 * np.exp(scatter * rng.normal(size=len(sizes)))
    return law * np.exp(error * rng.normal(size=len(sizes)))


def test_a_step_is_open_where_the_intervals_overlap():
    table = pd.DataFrame({"value": [1, 3, 3.5, 1], "low": [0, 2, 3, 0.5], "high": [1, 3.2, 4, 1.5]})
    assert directions(table) == ["rises", "open", "falls"]


def test_perfect_agreement_of_four_is_one_in_24():
    assert rank_trend(np.array([1, 5, 6, 9]), np.array([2, 3, 70, 71])) == (pytest.approx(1), pytest.approx(1 / 24))
    assert rank_trend(np.array([1, 5, 6, 9]), np.array([4, 3, 2, 1])) == (pytest.approx(-1), pytest.approx(1))


@pytest.mark.parametrize("seed", range(3))
def test_the_rank_test_agrees_with_scipy(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 4, (2, 6)).astype(float)
    other = stats.permutation_test(
        (x,), lambda x: stats.spearmanr(x, y).statistic, alternative="greater", permutation_type="pairings"
    )
    rho, p = rank_trend(x, y)
    assert rho == pytest.approx(other.statistic)
    assert p == pytest.approx(other.pvalue)


def test_the_rank_test_refuses_what_it_cannot_enumerate_and_constants():
    with pytest.raises(UserError, match="2 to 8 points, not 9"):
        rank_trend(np.arange(9), np.arange(9))
    assert rank_trend(np.arange(4), np.ones(4))[1] == 1


def test_a_power_law_is_the_weighted_line_in_log_log():
    rng = np.random.default_rng(0)
    values = simulated(rng, 0.1, 0)
    errors = values * np.array([0.01, 0.02, 0.03, 0.02, 0.01])
    law = fit_law(SIZES, values, errors)
    weights = 1 / np.sqrt((errors / values) ** 2 + law.scatter**2)
    slope, start = np.polyfit(np.log(SIZES), np.log(values), 1, w=weights)
    assert law.exponent == pytest.approx(slope, rel=1e-5)
    assert law.predict(np.array([50000]))[0, 0] == pytest.approx(np.exp(start + slope * np.log(50000)), rel=1e-4)
    residual = weights * (np.log(values) - start - slope * np.log(SIZES))
    assert (residual**2).sum() == pytest.approx(3, rel=1e-3)  # Paule and Mandel: squares = degrees of freedom


@pytest.mark.parametrize(("scatter", "error", "points"), [(0.05, 0.02, 5), (0.1, 0.03, 5), (0.1, 0.02, 4)])
def test_intervals_cover_the_truth(scatter, error, points):
    rng = np.random.default_rng(1)
    sizes, hits, slopes, draws = SIZES[:points], 0, 0, 300
    for _ in range(draws):
        values = simulated(rng, scatter, error, sizes)
        law = fit_law(sizes, values, error * values)
        _, low, high = law.predict(np.array([50000]))[:, 0]
        hits += low <= simulated(rng, scatter, 0, np.array([50000.0]))[0] <= high
        slopes += law.low <= -0.5 <= law.high
    assert 0.92 <= hits / draws <= 0.995  # 0.95 with a binomial error of 0.013
    assert 0.92 <= slopes / draws <= 0.995


def test_without_scatter_the_intervals_are_wide_not_narrow():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(100):
        values = simulated(rng, 0, 0.03)
        law = fit_law(SIZES, values, 0.03 * values)
        inside += law.low <= -0.5 <= law.high
    assert inside >= 95


def test_a_ceiling_and_a_floor_are_recovered_and_chosen():
    rng = np.random.default_rng(3)
    near = 1000 / (1 + 1 / (2e3 * SIZES**-0.8)) * np.exp(0.01 * rng.normal(size=5))
    law = best_law(SIZES, near, 0.01 * near, 1000)
    assert law.form == "with ceiling"
    assert law.low < -0.8 < law.high
    sizes = np.append(SIZES, [16000, 32000])
    far = (20 + 4000 * sizes**-0.7) * np.exp(0.01 * rng.normal(size=7))
    law = best_law(sizes, far, 0.01 * far)
    assert law.form == "with floor"
    assert law.predict(np.array([1e7]))[0, 0] == pytest.approx(20, rel=0.1)
    plain = simulated(rng, 0, 0.01)
    assert best_law(SIZES, plain, 0.01 * plain).form == "power law"


def test_a_floor_that_the_points_do_not_resolve_is_not_taken():
    values = np.array([1.8, 2.2, 2.4, 1.5, 2.3])
    assert best_law(SIZES, values, 0.02 * values).form == "power law"


@pytest.mark.parametrize(("sizes", "values"), [([1, 2], [1, 2]), ([1, 2, 2], [1, 2, 3]), ([1, 2, 3], [1, 0, 2])])
def test_too_few_sizes_or_values_that_are_not_positive_are_refused(sizes, values):
    with pytest.raises(UserError, match="needs more than 2 sizes"):
        fit_law(np.array(sizes, float), np.array(values, float), np.ones(len(sizes)))

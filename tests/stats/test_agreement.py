import numpy as np
import pytest
import xarray as xr
from helpers import HIGH, LOW, path_of, plane_of, random_plane
from scipy.stats import hypergeom, spearmanr
from sklearn.metrics import jaccard_score

from dynmia import UserError
from dynmia import dynamics as dyn
from dynmia.stats.agreement import agreement, chance_overlap, overlap, rank_agreement


def sets_of(text_a, text_b):
    """Planes whose finally vulnerable sets are the letters V."""
    return path_of(text_a), path_of(text_b)


def test_rank_agreement_equals_scipy():
    a, b = random_plane(1, 200), random_plane(2, 200)
    b = b.assign(advantage=b.advantage + a.advantage)
    expected = spearmanr(dyn.dynamic_vulnerability(a), dyn.dynamic_vulnerability(b)).statistic
    assert rank_agreement(a, b).item() == pytest.approx(expected, abs=1e-12)


def test_a_plane_agrees_with_itself_and_not_with_its_mirror():
    plane = random_plane(1, 50)
    assert rank_agreement(plane, plane).item() == pytest.approx(1)
    assert rank_agreement(plane, plane.assign(advantage=-plane.advantage)).item() == pytest.approx(-1)


def test_rank_agreement_without_any_order_is_nan():
    flat = plane_of([[LOW] * 4], [[LOW] * 4])
    assert np.isnan(rank_agreement(flat, random_plane(1, 4, 1)))


def test_overlap_by_hand():
    assert overlap(*sets_of("---- VV--", "---- -VV-")).item() == pytest.approx(1 / 3)
    assert overlap(*sets_of("---- VV--", "VVVV VV--")).item() == 1
    assert overlap(*sets_of("---- VV--", "---- --VV")).item() == 0
    assert np.isnan(overlap(*sets_of("VVVV ----", "---- ----")))


def test_overlap_equals_scikit_learn():
    rng = np.random.default_rng(0)
    a, b = (plane_of(HIGH * rng.integers(0, 2, (2, 300)), np.zeros((2, 300))) for _ in range(2))
    expected = jaccard_score(*(dyn.vulnerable(plane)[-1] for plane in (a, b)))
    assert overlap(a, b).item() == pytest.approx(expected)


def test_integer_weights_equal_repeating_samples():
    a, b = random_plane(1, 60), random_plane(2, 60)
    times = np.random.default_rng(0).integers(0, 4, 60)
    weights = xr.DataArray(times[None].astype(float), dims=("draw", "sample"))
    index = np.repeat(np.arange(60), times)
    for of in (rank_agreement, overlap):
        expected = of(a.isel(sample=index), b.isel(sample=index))
        assert of(a, b, weights).item() == pytest.approx(expected.item(), abs=1e-12)


def test_chance_overlap_equals_a_simulation():
    n, sizes = 100, (30, 50)
    a, b = (plane_of([[HIGH] * k + [LOW] * (n - k)], np.zeros((1, n))) for k in sizes)
    mean, low, high = chance_overlap(a, b)
    common = hypergeom(n, *sizes).rvs(20000, random_state=0)
    drawn = common / (sum(sizes) - common)
    assert mean == pytest.approx(drawn.mean(), abs=1e-3)
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_chance_overlap_of_empty_sets_is_nan():
    assert np.isnan(chance_overlap(*sets_of("--", "--"))).all()
    assert chance_overlap(*sets_of("V---", "----")) == (0, 0, 0)


def test_the_intervals_cover_a_known_correlation():
    # Spearman's rho of a bivariate normal: 6 / pi asin(r / 2)
    rng = np.random.default_rng(3)
    rho, n = 0.6, 800
    x, y = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n).T
    a, b = (
        plane_of(np.zeros((1, n)), np.zeros((1, n))).assign(advantage=(("epoch", "sample"), v[None])) for v in (x, y)
    )
    row = agreement(a, b).loc["spearman"]
    truth = 6 / np.pi * np.arcsin(rho / 2)
    assert row.low < truth < row.high
    assert row.low < row.value < row.high
    assert row.high - row.low == pytest.approx(4 * 0.7 / np.sqrt(n), rel=0.3)  # about 4 (1 - rho^2) / sqrt(n)
    assert [row.chance_low, row.chance_high] == pytest.approx([-1.96 / np.sqrt(n - 1), 1.96 / np.sqrt(n - 1)], rel=1e-3)


def test_unrelated_planes_agree_by_chance():
    a, b = random_plane(1, 400), random_plane(2, 400)
    table = agreement(a, b)
    assert (table.chance_low <= table.value).all()
    assert (table.value <= table.chance_high).all()


def test_other_samples_are_a_clear_error():
    plane = random_plane(1)
    with pytest.raises(UserError, match="not on the same samples"):
        agreement(plane, plane.isel(sample=slice(None, None, -1)))

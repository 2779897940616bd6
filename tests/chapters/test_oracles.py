"""Attacks and metrics against second implementations; what other files check already is listed in notebook 18."""

import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from scipy.stats import entropy

from dynmia.attack.others import OTHERS
from dynmia.attack.plane import vulnerability_plane
from dynmia.attack.scoring import LIRA, Scoring
from dynmia.chapters import checked, oracles
from dynmia.dynamics import cloud as dynamics
from dynmia.dynamics.metrics import METRICS
from dynmia.stats.simulate import Simulator


@pytest.fixture(scope="module")
def run():
    drawn = Simulator(samples=120, separation=3.0).run(20)
    return drawn.assign(label=("sample", drawn.sample.values % 3))


@pytest.fixture(scope="module")
def table(run):
    return checked.comparisons(run)


def test_every_quantity_equals_its_oracle(table):
    assert table[~(table.difference <= table.tolerance)].empty  # NaN would not pass


def test_every_attack_and_every_metric_has_an_oracle(table):
    assert set(oracles.ORACLES) == set(METRICS)
    rows = " ".join(table.quantity)
    assert all(f"LiRA {name}, 4 options" in rows for name in LIRA)
    assert all(f"attack {name}" in rows for name in OTHERS)


def test_wrong_results_are_seen(run, monkeypatch):
    def shift(owner, name):
        right = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **options: right(*args, **options) + 1e-6)

    shift(checked, "lira_scores")
    shift(dynamics, "transition_counts")
    shift(dynamics, "displacement")
    found = checked.comparisons(run.isel(sample=slice(0, 45)))
    wrong = found.quantity[found.difference > found.tolerance].tolist()
    assert wrong == [f"LiRA {name}, 4 options" for name in LIRA] + [
        "centre-of-mass displacement (/1000)",
        "transition counts",
        "transition matrix, pooled",
    ]


def test_the_pencil_case():
    table = checked.by_hand(checked.pencil())
    np.testing.assert_allclose(table.package, table["by hand"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bins", [2, 5, 11, 21, 22, 23])
def test_entropy_cells_are_those_of_exact_fractions(bins):
    cases = [(k, n) for n in (7, 10, 11, 22, 23) for k in range(n + 1)]
    for n in (7, 10, 11, 22, 23):
        counts = np.array([k for k, m in cases if m == n])
        dims = "epoch", "sample"
        plane = xr.Dataset(
            {"tpr": (dims, counts[None] / n), "fpr": (dims, 0.0 * counts[None]), "n_in": ("sample", counts)}
        )
        exact = Counter(min(int(Fraction(int(k), n) * bins), bins - 1) for k in counts)
        got = dynamics.spatial_entropy(plane.assign_coords(epoch=[0]), bins=bins).item()
        assert got == pytest.approx(entropy(list(exact.values()), base=2), abs=1e-12)


@pytest.fixture(scope="module")
def theirs():
    module = oracles.published()
    if module is None:
        pytest.skip(f"{oracles.PACKAGE} is not installed: {oracles.INSTALL}")
    return module


@pytest.fixture(scope="module")
def beside(run, theirs):
    return checked.beside_published(theirs, run.phi.values[-1, :, :30].astype(float), run.keep.values[:, :30])


def test_scores_equal_those_of_the_published_lira(beside):
    same = beside.drop(index=[("lira", "median", "pooled"), ("offline-density", "median", "pooled")])
    assert len(same) == 6
    assert same.unbiased.max() < 1e-9
    assert same["as published"].min() > 1e-3  # so the comparison sees the divisor of a variance


def test_the_published_pooled_variance_about_medians_is_another_estimate(beside):
    assert beside.xs(("median", "pooled"), level=["centre", "variance"]).unbiased.min() > 1e-3


def test_the_aucs_of_the_published_lira_are_ours_to_half_a_hundredth(beside):
    assert (beside["AUC, ours"] - beside["AUC, theirs"]).abs().max() < 0.005


def test_a_planes_hits_come_from_the_scores_of_the_published_lira_too(run, theirs):
    phi, keep = run.phi.values[-1].astype(float), run.keep.values
    scores = oracles.published_scores(theirs, phi, keep, "lira", "mean", "pooled", unbiased=True)
    cut = np.sort(scores[~keep])[::-1][int(0.01 * (~keep).sum())]  # what 1 % of the non-members exceed
    plane = vulnerability_plane(run.isel(epoch=[-1]), Scoring("lira", "fpr@0.01", variance="pooled"))
    np.testing.assert_array_equal(plane.tp[0], ((scores > cut) & keep).sum(0))
    np.testing.assert_array_equal(plane.fp[0], ((scores > cut) & ~keep).sum(0))


def test_theirs_is_imported_without_tensorflow(theirs):
    assert "tensorflow" not in sys.modules

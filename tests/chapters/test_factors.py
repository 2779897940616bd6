import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers import ACCURACY, STRENGTHS, run_that_fits
from scipy.stats import spearmanr, ttest_1samp

from dynmia import null_planes, vulnerability_plane
from dynmia.book import plots
from dynmia.chapters.factors import (
    MATCHINGS,
    STATE,
    contrasts,
    depth,
    held_out_gain,
    leaks,
    rank_correlation,
    sizes,
    written,
)  # fmt: skip
from dynmia.chapters.figures_factors import GAP, against_fit, against_size, dose_response
from dynmia.shadow.models import build_model
from dynmia.stats.matching import with_halves


def with_study(run, **changes):
    return run.assign_attrs(study=json.dumps(json.loads(run.attrs["study"]) | {"pool_size": 200} | changes))


@pytest.fixture(scope="module")
def runs():
    """A run, the same two checkpoints late, and one that leaks more for the same accuracy."""
    slow = run_that_fits(strengths=(0, 0, *STRENGTHS[:-2]), accuracy=(0.1, 0.1, *ACCURACY[:-2]))
    return {
        "sgd": with_study(run_that_fits(), optimizer="sgd"),
        "slow": with_study(slow, optimizer="sam-sgd", rho=0.1),
        "leaky": with_study(run_that_fits(strengths=(0, *STRENGTHS[2:], 8)), optimizer="sam-sgd", rho=0.2),
    }


@pytest.fixture(scope="module")
def planes(runs):
    return {name: vulnerability_plane(run, "lira:fpr@0.01") for name, run in runs.items()}


@pytest.fixture(scope="module")
def nulls(runs):
    return {name: list(null_planes(run, "lira:fpr@0.01", draws=3)) for name, run in runs.items()}


@pytest.fixture(scope="module")
def halved(runs):
    return with_halves(runs, "lira:fpr@0.01")


@pytest.fixture(scope="module")
def table(halved, nulls):
    return contrasts(halved, "sgd", nulls=nulls)


@pytest.mark.parametrize(("name", "layers"), [
    ("mlp", 3), ("cnn", 4), ("deep-cnn", 7), ("wrn-10-1", 8), ("wrn-16-1", 14), ("wrn-28-2", 26),
])  # fmt: skip
def test_depth_counts_weight_layers_on_the_longest_path(name, layers):
    model = build_model(name, (3, 32, 32), 10)
    assert depth(model, (3, 32, 32)) == layers
    assert model.training


def test_sizes_are_ordered_by_depth(runs):
    models = ("wrn-28-2", "cnn", "mlp")
    found = sizes({model: with_study(runs["sgd"], dataset="cifar10", model=model) for model in models})
    assert found.index.tolist() == ["mlp", "cnn", "wrn-28-2"]
    assert found.parameters["cnn"] == 113_738
    assert found.parameters["wrn-28-2"] == pytest.approx(1.4676e6, rel=1e-4)


def test_a_slow_run_leaks_less_at_the_end_only(table):
    side = leaks(table)
    assert side["slow", "epoch"] == side["slow", "best"] == "less"
    assert side["slow", "train"] == side["slow", "test"] == "unresolved"
    at_equal = table.loc["slow"].loc[["train", "test"]]
    np.testing.assert_allclose(at_equal[["value", "null_low", "null_high", "error"]], 0, atol=1e-9)
    np.testing.assert_allclose(at_equal.epoch - at_equal.reference_epoch, 4)


def test_a_leaky_run_leaks_more_under_every_matching(table):
    assert (leaks(table)["leaky"] == "more").all()


def test_a_side_needs_zero_and_the_null_band_cleared(halved, planes, nulls):
    wide = contrasts(halved, "sgd")
    assert wide.null_low.isna().all()
    assert (wide.side == np.select([wide.low > 0, wide.high < 0], ["more", "less"], "unresolved")).all()
    noisy = {"sgd": nulls["sgd"], "slow": nulls["slow"], "leaky": [planes["leaky"]] * 3}  # as far off as the run itself
    band = contrasts(halved, "sgd", nulls=noisy).loc["leaky"]
    assert (band.drop("entropy_change", level="metric").side == "unresolved").all()


def test_ratios_are_set_against_one(halved, planes):
    table = contrasts(halved, "sgd", how="ratio")
    end = table.xs(("epoch", "displacement"), level=("matching", "metric"))
    moved = {name: np.hypot(*[plane[a].mean("sample")[-1] - plane[a].mean("sample")[0] for a in ("tpr", "fpr")])
             for name, plane in planes.items()}  # fmt: skip
    assert end.value["leaky"] == pytest.approx(float(moved["leaky"] / moved["sgd"]), rel=1e-9)
    assert end.run_value["leaky"] == pytest.approx(1000 * float(moved["leaky"]), rel=1e-9)
    assert end.side.to_dict() == {"slow": "less", "leaky": "more"}
    assert table.value["slow", "train", "displacement"] == pytest.approx(1)


def sides(**given):
    """A table in which each run has the (auc, vulnerable) sides given, under every matching or by matching."""
    rows = {}
    for run, pair in given.items():
        for matching in MATCHINGS:
            chosen = pair[matching] if isinstance(pair, dict) else pair
            for metric, side in zip(("auc", "vulnerable"), chosen):
                rows[run, matching, metric] = {"value": 0.1, "low": 0.0, "high": 0.2, "side": side}
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["run", "matching", "metric"])


@pytest.mark.parametrize(("pair", "word"), [
    (("less", "less"), "less"), (("less", "unresolved"), "less"), (("unresolved", "more"), "more"),
    (("more", "less"), "mixed"), (("unresolved", "unresolved"), "unresolved"),
])  # fmt: skip
def test_two_measures_make_one_word(pair, word):
    assert (leaks(sides(a=pair)) == word).all()


def test_held_out_gain_is_a_paired_t_interval(planes):
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 20)) / 10
    accuracy = {name: planes["sgd"].test_accuracy.copy() for name in ("a", "b")}
    accuracy["a"][-1], accuracy["b"][2] = 0.6 + first, 0.7 + first + second  # best at different epochs
    found = held_out_gain({k: planes["sgd"].assign(test_accuracy=v) for k, v in accuracy.items()}, "a").loc["b"]
    wanted = ttest_1samp(100 * (0.1 + second), 0).confidence_interval()
    np.testing.assert_allclose(found.tolist(), [10 + 100 * second.mean(), wanted.low, wanted.high])
    same = held_out_gain({"a": planes["sgd"], "b": planes["sgd"]}, "a")
    np.testing.assert_array_equal(same, 0)


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    size = pd.Series([3, 4, 7, 7, 14], index=list("abcde"))
    drawn = xr.DataArray(rng.random((5, 6)), dims=("run", "draw"), coords={"run": list("cabed")})
    wanted = [spearmanr(size[list("cabed")], drawn[:, k])[0] for k in range(6)]
    np.testing.assert_allclose(rank_correlation(size, drawn), wanted, atol=1e-12)


def test_written_values_have_the_digits_of_their_interval():
    assert written("auc", pd.Series({"value": -0.01234, "low": -0.02, "high": -0.0031})) == "-0.012 [-0.020, -0.003]"
    assert written("auc", pd.Series({"value": -0.0, "low": -0.2, "high": 0.1}), 1) == "0.0 [-0.2, 0.1]"


def test_figures_have_a_panel_a_metric_with_units(planes, nulls, table):
    size = pd.DataFrame({"depth": [3, 4, 7], "parameters": [10, 20, 30]}, index=["sgd", "slow", "leaky"])
    metrics = ["displacement", "auc"]
    index = pd.MultiIndex.from_product([size.index, metrics], names=["run", "metric"])
    values = pd.DataFrame({"value": 1.0, "low": 0.5, "high": 2.0, "null_low": 0.0, "null_high": 0.1}, index=index)
    figure = against_size({"a": values, "b": values.drop("auc", level="metric")}, size, {k: k for k in size.index})
    assert [axis.get_ylabel() for axis in figure.axes[:2]] == ["centre-of-mass displacement\n(/1000)", "attack AUC"]
    assert figure.axes[3].get_xlabel() == "parameters"
    figure = against_fit(planes, nulls)
    assert [axis.get_xlabel() for axis in figure.axes[3:]] == ["epoch", "train accuracy (%)", "held-out accuracy (%)"]
    figure, plane = against_fit(planes, clocks=["epoch", GAP]), planes["sgd"]
    line = next(line for line in figure.axes[1].get_lines() if line.get_color() == plots.looks(planes)["sgd"]["color"])
    apart = 100 * (plane.train_accuracy - plane.test_accuracy).mean("model")
    np.testing.assert_allclose(line.get_xdata(), apart)
    figure = dose_response(table, {"slow": 0.1, "leaky": 0.2}, ("auc", "vulnerable"), "SGD")
    assert figure.axes[1].get_ylabel() == "vulnerable\n(points)\nSAM minus SGD"
    assert len(figure.axes) == 2 < len(STATE)
    plt.close("all")


def test_a_figure_without_a_value_is_said_to_be_undefined():
    row = pd.Series({"value": np.nan, "low": np.nan, "high": np.nan})
    assert written("displacement", row) == "undefined"
    assert written("displacement", pd.Series({"value": 2.0, "low": 1.4, "high": 2.6}), 1) == "2.0 [1.4, 2.6]"

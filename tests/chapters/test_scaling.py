import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr

from dynmia import Study, vulnerability_plane
from dynmia import dynamics as dyn
from dynmia.chapters.comparison import (
    above_noise,
    accuracy,
    cell,
    gaps,
    orders,
    rank_table,
    side_by_side,
)
from dynmia.chapters.figures_scale import against_complexity, equal_progress, over_pool_size
from dynmia.chapters.scaling import (
    at_equal_progress,
    by_pool_size,
    fit_all,
    pool_sentences,
    predictions,
    reached,
    steps,
    target_sentences,
    up_to,
)
from dynmia.dynamics.metrics import METRICS
from dynmia.pool.pool import draw_keep


def run_of(dataset, pool, strength, seed=0):
    """A population whose signal, and whose accuracy on its own half, grow evenly over ten epochs."""
    rng = np.random.default_rng(seed)
    keep, epochs = draw_keep(8, pool, "bernoulli", seed), np.arange(0, 11, 2)
    phi = np.stack([rng.normal(size=keep.shape) + strength * t / 10 * keep for t in epochs])
    study = Study(dataset=dataset, epochs=10, checkpoint_every=2, shadow_models=8, pool_size=pool)
    own = np.repeat(epochs[:, None] / 10, 8, 1)
    return xr.Dataset(
        {
            "phi": (("epoch", "model", "sample"), phi), "keep": (("model", "sample"), keep),
            "label": ("sample", np.arange(pool) % 10), "train_accuracy": (("epoch", "model"), own),
            "test_accuracy": (("epoch", "model"), own / 2 + np.arange(8) / 100),
        },
        coords={"epoch": epochs, "sample": np.arange(pool)},
        attrs={"study": json.dumps(study.to_dict()), "title": study.title},
    )  # fmt: skip


def test_the_gap_is_the_mean_difference_of_the_two_accuracies():
    run = run_of("mnist", 40, 1.0)
    value, low, high = gaps({"a": run}).loc[("a", "gap"), ["value", "low", "high"]]
    each = 100 * (1 - (0.5 + np.arange(8) / 100))  # of the eight models, at the end
    assert value == pytest.approx(each.mean())
    interval = scipy.stats.t.interval(0.95, 7, each.mean(), scipy.stats.sem(each))
    assert (low, high) == pytest.approx(interval)
    assert accuracy(run)[0] == pytest.approx(100 - each.mean())


def test_where_an_interval_lies_to_its_no_signal_level():
    names = ["displacement", "entropy_change", "vulnerable", "transition_peak", "early_recall"]
    values = {m: 1.0 for m in names} | {"vulnerable": 0.001, "entropy_change": -1.0}  # no signal: 0.0005 to 0.002
    found = above_noise(table_of({"a": values}), ["a"], {"a": "MNIST"}, names)["MNIST"]
    assert found["vulnerable at the end"] == "not told apart"
    assert found["spatial entropy change"] == "below"
    assert (found == "above").sum() == len(names) - 2


def table_of(values):
    """Figures as of `campaign.figures`, each interval +- 5 %: run to {metric: value}."""
    rows = {
        (run, metric): ["x", "", value, 0.95 * value, 1.05 * value, 0.05 * value / 1.96, 0.001, 0.0005, 0.002, 0.01]
        for run, metrics in values.items()
        for metric, value in metrics.items()
    }
    columns = ["label", "unit", "value", "low", "high", "error", "null_value", "null_low", "null_high", "p"]
    return pd.DataFrame(rows, columns, pd.MultiIndex.from_tuples(rows)).T.infer_objects()


@pytest.fixture(scope="module")
def runs():
    return {"m": run_of("mnist", 100, 1), "c": run_of("cifar10", 200, 3), "c2": run_of("cifar10", 400, 2)}


@pytest.fixture(scope="module")
def planes(runs):
    return {name: vulnerability_plane(run) for name, run in runs.items()}


@pytest.fixture
def sets():
    names = ["mnist", "cifar10", "cinic10"]
    keys = ["displacement", "entropy_change", "speed_mean", "transition_peak"]
    values = {name: dict.fromkeys(keys, value) for name, value in zip(names, (10.0, 100.0, 102.0))}
    values["cinic10"]["entropy_change"] = 50.0
    values["cinic10"]["speed_mean"] = 200.0
    return names, keys, table_of(values)


def test_a_cell_prints_no_digit_that_the_interval_does_not_resolve():
    assert cell(345.21, 331.4, 358.9, 1) == "345 [331, 359]"
    assert cell(0.9302, 0.9262, 0.9339, 3) == "0.930 [0.926, 0.934]"
    assert cell(15, 15, 15, 0) == "15 [15, 15]"
    assert cell(-0.001, -0.02, 0.01, 1) == "0.0 [0.0, 0.0]"


def test_accuracy_has_the_interval_of_students_t(runs):
    from scipy.stats import ttest_1samp

    value = 100 * runs["m"].test_accuracy[-1]
    known = ttest_1samp(value, 0).confidence_interval()
    assert accuracy(runs["m"]) == pytest.approx((float(value.mean()), known.low, known.high))


def test_an_order_holds_only_where_intervals_are_apart(sets):
    names, keys, figures = sets
    table = orders(figures, names, keys, {name: name for name in names})
    assert table.order.tolist() == ["not decided", "broken", "holds", "not decided"]
    assert table.loc[METRICS["displacement"].label].tolist() == ["rises", "open", "not decided"]


def test_trends_of_few_points(sets):
    names, _, figures = sets
    rows = {
        (name, m): ["measure " + m, v]
        for m, vs in {"a": (1, 2, 3), "b": (2, 1, 3)}.items()
        for name, v in zip(names, vs)
    }
    complexity = pd.DataFrame(rows, ["label", "value"], pd.MultiIndex.from_tuples(rows)).T
    table = rank_table(figures, complexity, ["displacement", "entropy_change"], ["a", "b"])
    assert table.iloc[0].tolist() == ["1.00 (p = 0.167)", "0.50 (p = 0.500)"]


def test_one_table_has_every_run_under_every_rule(runs, sets):
    figures = table_of({name: {"displacement": 10.0} for name in runs})
    table = side_by_side({"lira:fpr@0.01": figures, "lira:bayes": figures}, runs, ["displacement"])
    assert table.shape == (6, 4)
    assert table.iloc[3].tolist() == ["10 [10, 10]", "0 to 0 (p = 0.01)"] * 2


def test_progress_is_interpolated_between_checkpoints():
    progress = xr.DataArray([0.0, 50, 40, 90], coords={"epoch": [0, 2, 4, 6]}, dims="epoch")
    assert reached(progress, 25) == 1
    assert reached(progress, 50) == 2
    assert reached(progress, 65) == 5
    assert reached(progress, 0) == 0
    assert np.isnan(reached(progress, 91))


def test_steps_are_those_of_the_mean_half(planes):
    assert steps(planes["m"]).values.tolist() == (np.arange(0, 11, 2) * 1).tolist()
    assert steps(planes["c2"])[-1] == 10 * 4  # 200 of 400 in batches of 64


def test_equal_progress_compares_where_all_are_equally_far(planes):
    table = at_equal_progress(planes, "steps")
    assert table.steps.tolist() == pytest.approx([10, 10, 10])
    assert table.epoch.tolist() == pytest.approx([10, 5, 2.5])
    moved = dyn.displacement(planes["c"])
    assert table.value["c"] == pytest.approx((moved[2] + moved[3]).item() / 2)
    assert (table.low < table.high).all()
    table = at_equal_progress(planes, "accuracy")
    assert table.train_accuracy.tolist() == pytest.approx([95] * 3)
    assert table.epoch.tolist() == pytest.approx([9.5] * 3)
    table = at_equal_progress(planes, "epochs")
    assert table.value.tolist() == [dyn.displacement(plane)[-1].item() for plane in planes.values()]


@pytest.fixture(scope="module")
def pools():
    """Tables of five pool sizes whose displacement is 300 (n / 500)^-0.5 within 1 %."""
    noise = 1 + 0.01 * np.array([1, -1, 0.5, 0, -0.5])
    studies, values = {}, {}
    for data, scale in (("mnist", 1.0), ("cifar10", 2.0)):
        for size, wobble in zip((8000, 500, 2000, 1000, 4000), noise):
            base = scale * (size / 500) ** -0.5 * wobble
            name = f"{data}-{size}"
            studies[name] = SimpleNamespace(attrs={"study": json.dumps(Study(dataset=data, pool_size=size).to_dict())})
            values[name] = {
                "displacement": 300 * base,
                "entropy_change": -1,
                "vulnerable": 10 * base,
                "auc": 0.5 + 0.1 * base,
            }
    figures = table_of(values)
    return by_pool_size(figures, studies)


def test_pool_sizes_are_sorted_and_the_auc_is_counted_from_chance(pools):
    assert pools["displacement"]["mnist"].index.tolist() == [500, 1000, 2000, 4000, 8000]
    assert pools["auc_excess"]["mnist"].value[500] == pytest.approx(0.1, rel=0.02)
    assert list(pools["displacement"]) == ["mnist", "cifar10"]


def test_predictions_beside_the_paper(pools):
    laws = fit_all(pools)
    assert "entropy_change" not in laws  # not positive
    paper = {"displacement": {"mnist": 12.8, "cifar10": 60}}
    table = predictions(pools, laws, 50000, paper, pools)
    assert table.loc[("displacement", "MNIST"), "the paper's is"] == "below"
    assert table.loc[("displacement", "CIFAR-10"), "the paper's is"] == "inside"
    assert table.loc[("vulnerable", "MNIST"), "the paper's is"] == ""
    assert set(table["measured [95 %]"]) == {""}
    law = laws["displacement"]["mnist"]
    assert law.predict(np.array([50000]))[0, 0] == pytest.approx(30, rel=0.1)
    assert law.low < -0.5 < law.high


def test_a_prediction_is_held_against_the_population_at_the_target(pools):
    """MNIST goes on as it did; CIFAR-10, of which only a copy is measured at the target, falls short."""
    row = {name: 1.0 for name in pools["displacement"]["mnist"].columns}
    there = {
        "displacement": {"mnist": 30.0, "cifar10_jpeg": 20.0},
        "vulnerable": {"mnist": 1.0, "cifar10_jpeg": 2.0},
    }
    measured = {metric: dict(sets) for metric, sets in pools.items()}
    for metric, values in there.items():
        for data, value in values.items():
            new = pd.DataFrame([row | {"value": value, "low": value - 1, "high": value + 1}], [50000])
            measured[metric][data] = pd.concat([measured[metric].get(data), new])
    kept = up_to(measured, 8000)
    assert kept["displacement"].keys() == {"mnist", "cifar10"}
    pd.testing.assert_frame_equal(kept["displacement"]["mnist"], pools["displacement"]["mnist"], check_names=False)
    laws = fit_all(kept)
    table = predictions(kept, laws, 50000, {}, measured)
    assert table.loc[("displacement", "MNIST"), "measured [95 %]"] == "30 [29, 31]"
    assert table.loc[("displacement", "MNIST"), "it is"] == "inside"
    assert table.loc[("displacement", "CIFAR-10"), "it is"] == "below"
    assert table.loc[("auc_excess", "MNIST"), "measured [95 %]"] == ""
    lines = target_sentences(laws, 50000, measured, {"mnist": 100.0, "cifar10_jpeg": 98.6})
    assert lines[0].startswith("MNIST at 50,000: 2 of 2 figures lie inside the interval predicted from smaller pools.")
    assert lines[1] == (
        "CIFAR-10, JPEG copy at 50,000: 1 of 2 figures lie inside the interval predicted from smaller pools; "
        "displacement lies below. These models fit their own half to 98.6 %."
    )
    assert target_sentences(laws, 60000, measured, {}) == []


def test_sentences_tell_a_smaller_pool_from_fewer_steps(pools):
    laws, tables = fit_all(pools), pools["displacement"]
    falls = {data: table.assign(train_accuracy=100.0) for data, table in tables.items()}
    equal = {data: {by: falls[data] for by in ("epochs", "steps", "accuracy")} for data in tables}
    lines = pool_sentences(tables, laws["displacement"], equal)
    assert "falls at 4 of 4 steps" in lines[0]
    assert lines[0].endswith("more than fewer steps.")
    equal["mnist"]["steps"] = falls["mnist"].iloc[::-1]
    assert "rises at equal steps" in pool_sentences(tables, {}, equal)[0]
    assert pool_sentences({"mnist": tables["mnist"].iloc[:1]}, {}, equal) == [
        "MNIST: one pool size, nothing to compare."
    ]


def test_figures_show_every_point(pools, sets):
    names, _, figures = sets
    rows = {(name, "nn_error"): ["x", v, v - 1, v + 1] for name, v in zip(names, (8, 70, 80))}
    complexity = pd.DataFrame(
        rows, ["label", "value", "low", "high"], pd.MultiIndex.from_tuples(rows)
    ).T.infer_objects()
    figure = against_complexity(figures, complexity, ["displacement"], ["nn_error"])
    assert len(figure.axes[0].containers) == 3
    assert "p = 0.167" in figure.axes[0].get_title()
    figure = over_pool_size(pools, fit_all(pools), 50000, {"displacement": {"mnist": 12.8}})
    words = figure.axes[0].get_legend_handles_labels()[1]
    assert {"MNIST", "CIFAR-10", "paper, MNIST"} <= set(words)
    assert figure.axes[0].get_xlim()[1] > 50000
    figure = equal_progress({"mnist": {"epochs": pools["displacement"]["mnist"]}})
    assert figure.axes[0].get_xscale() == "log"
    plt.close("all")

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, run_with

from dynmia import UserError, null_summary, open_run, rounded, save_run, summarise, vulnerability_plane
from dynmia.book import maker
from dynmia.dynamics.cloud import early_identification, spatial_entropy
from dynmia.dynamics.metrics import METRICS
from dynmia.stats.intervals import interval
from dynmia.stats.resample import bootstrap_weights, null_planes, null_table, p_values
from dynmia.store.run import STEPS

DATA = ROOT / "data"


@pytest.fixture(scope="module")
def strong():
    return run_with([0, 1, 2, 2.5, 3, 3])


@pytest.fixture(scope="module")
def noise():
    return run_with([0, 0, 0, 0, 0, 0])


@pytest.fixture(scope="module")
def plane(strong):
    return vulnerability_plane(strong, "lira:fpr@0.01")


@pytest.fixture(scope="module")
def table(strong):
    return summarise(strong, "lira:fpr@0.01")


@pytest.fixture(scope="module")
def over_samples(strong):
    return interval(strong, "lira:bayes", "samples", only=["advantage", "dynamic", "vulnerable"], draws=400, seed=1)


@pytest.fixture(scope="module")
def null(strong):
    return null_summary(strong, draws=20)


def test_summary_has_one_row_a_metric_and_its_columns(table):
    assert table.index.tolist() == list(METRICS)
    assert table.columns.tolist() == ["label", "value", "low", "high", "unit", "error", "clipped", "carrier"]
    assert table.label.tolist() == [metric.label for metric in METRICS.values()]


def test_values_are_the_point_estimates(plane, table):
    for name, metric in METRICS.items():
        assert table.value[name] == pytest.approx(metric.of(plane, None).item(), rel=1e-12)


def test_intervals_of_a_strong_signal_are_finite_and_ordered(table):
    table = table.drop(index="tpr_01pct")  # too few out-scores to tell
    assert np.isfinite(table[["value", "low", "high"]].to_numpy()).all()
    assert (table.low <= table.high).all()


def test_intervals_of_means_hold_the_value(table):
    means = table.loc[["auc", "tpr_1pct", "advantage", "dynamic", "displacement", "speed_mean", "vulnerable"]]
    assert (means.low < means.value).all()
    assert (means.value < means.high).all()


@pytest.mark.parametrize("name", ["advantage", "dynamic", "vulnerable"])
def test_intervals_over_samples_of_plain_means_have_the_width_of_the_normal_one(strong, over_samples, name):
    plane = vulnerability_plane(strong, "lira:bayes")
    per_sample = {
        "advantage": 1000 * plane.advantage.isel(epoch=-1),
        "dynamic": 1000 * plane.advantage.mean("epoch"),
        "vulnerable": 100.0 * ((plane.tpr > 2 / 3) & (plane.fpr < 1 / 3)).isel(epoch=-1),
    }[name]
    width = 2 * 1.96 * per_sample.std().item() / np.sqrt(150)
    # 200 pairs of halves: a standard deviation uncertain by 5 %; the threshold is 0 in all of them
    assert over_samples.high[name] - over_samples.low[name] == pytest.approx(width, rel=0.12)


def test_the_seed_fixes_the_intervals(strong):
    first, again, other = (summarise(strong, draws=20, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert (first.low != other.low).any()
    pd.testing.assert_series_equal(first.value, other.value)


def test_a_higher_level_widens_the_interval(strong):
    narrow, wide = (summarise(strong, level=level) for level in (0.5, 0.95))
    assert wide.low.advantage < narrow.low.advantage < narrow.high.advantage < wide.high.advantage


@pytest.mark.parametrize("draws", [0, 1, 19])
def test_too_few_draws_are_an_error(strong, draws):
    with pytest.raises(UserError, match="at least 20"):
        summarise(strong, draws=draws)


def test_bootstrap_weights_are_draws_with_replacement(plane):
    weights = bootstrap_weights(plane, 400, 1)
    assert weights.sizes == {"draw": 400, "sample": 150}
    assert (weights.sum("sample") == 150).all()
    # multinomial counts: variance 1 - 1/n, its own error sqrt(2 / 60,000) x about 1.2
    assert weights.values.var() == pytest.approx(1 - 1 / 150, abs=0.03)


def test_the_bootstrap_over_samples_has_quantiles_for_ends(plane):
    table, weights = maker("coverage").bootstrap_samples(plane, 100), bootstrap_weights(plane, 100)
    for name, row in table.iterrows():
        metric = METRICS[name]
        low, high = np.quantile(metric.of(plane, weights).values, [0.025, 0.975])
        ends = (2 * row.value - high, 2 * row.value - low) if metric.biased else (low, high)
        np.testing.assert_allclose([row.low, row.high], np.maximum(ends, metric.low), rtol=1e-12)


def test_entropies_come_out_low_when_resampled_which_is_why_theirs_are_corrected(plane):
    drawn = spatial_entropy(plane, bootstrap_weights(plane, 100)).isel(epoch=-1)
    assert drawn.mean() < spatial_entropy(plane).isel(epoch=-1)


def test_peaks_have_no_negative_bound(noise):
    table = summarise(noise)
    assert (table.loc[["speed_peak", "transition_peak"], ["low", "high"]] >= 0).all(axis=None)


def test_strong_signal_lies_outside_the_null(table, null):
    names = ["auc", "tpr_1pct", "tpr_01pct", "advantage", "dynamic", "displacement", "entropy_change", "speed_mean",
             "speed_peak", "vulnerable", "transition_peak"]  # fmt: skip
    assert (table.value[names] > null.high[names]).all()


def test_null_has_one_row_a_metric_between_its_bounds(null):
    assert null.index.tolist() == list(METRICS)
    assert null.columns.tolist() == ["value", "low", "high", "draws"]
    known = null.dropna()
    assert len(known) >= 14
    assert (known.low <= known.value).all()
    assert (known.value <= known.high).all()


@pytest.mark.parametrize("rule", ["lira:fpr@0.01", "lira:bayes"])
def test_null_covers_the_figures_of_noise(rule):
    noise = run_with([0] * 6, seed=4)
    values = {name: metric.of(vulnerability_plane(noise, rule), None).item() for name, metric in METRICS.items()}
    null = null_summary(noise, rule, draws=20)
    inside = [null.low[name] <= x <= null.high[name] for name, x in values.items() if np.isfinite(x)]
    # each lies within the range of 20 draws with probability 19/21 = 0.90; the metrics are correlated
    assert np.mean(inside) >= 0.75


def test_null_of_few_draws_is_their_range(noise):
    wide, narrow = null_summary(noise, draws=6), null_summary(noise, draws=3)
    means = ["auc", "advantage", "dynamic"]
    assert (wide.low[means] <= narrow.low[means]).all()
    assert (wide.high[means] >= narrow.high[means]).all()


def test_the_seed_fixes_the_null(noise):
    pd.testing.assert_frame_equal(null_summary(noise, draws=2), null_summary(noise, draws=2))
    assert (null_summary(noise, draws=2).value != null_summary(noise, draws=2, seed=1).value).any()


def frame(name, value, low, high):
    return pd.DataFrame(
        {"label": [METRICS[name].label], "value": [value], "low": [low], "high": [high], "unit": [METRICS[name].unit]},
        index=[name],
    )


@pytest.mark.parametrize(("name", "numbers", "text"), [
    ("auc", (0.61249, 0.6093, 0.6158), "0.612 [0.609, 0.616]"),
    ("auc", (0.61249, 0.57, 0.65), "0.61 [0.57, 0.65]"),  # half the interval, 0.04, resolves two decimals
    ("auc", (0.61249, 0.6121, 0.6128), "0.612 [0.612, 0.613]"),  # never more decimals than the metric has
    ("entropy_change", (1.236, 1.19, 1.28), "1.24 [1.19, 1.28]"),
    ("entropy_change", (1.236, -0.1, 2), "1 [0, 2]"),
    ("vulnerable", (12.34, 11.96, 12.72), "12.3 [12.0, 12.7]"),
    ("displacement", (104.4, 98.7, 110.2), "104 [99, 110]"),
    ("displacement", (1044.4, 700, 1500), "1044 [700, 1500]"),
    ("recall_epoch", (4, 4, 4), "4 [4, 4]"),
    ("advantage", (-0.3, -0.4, 0.2), "0 [0, 0]"),  # no negative zero
    ("early_recall", (np.nan, np.nan, np.nan), "undefined"),
    ("early_recall", (80, np.nan, np.nan), "80 [no interval]"),
])  # fmt: skip
def test_rounded_prints_value_and_interval(name, numbers, text):
    printed = rounded(frame(name, *numbers))
    assert printed.columns.tolist() == ["unit", "value [95 % interval]"]
    assert printed.index.tolist() == [METRICS[name].label]
    assert printed.iloc[0].tolist() == [METRICS[name].unit, text]


def test_rounded_marks_clipped_ends_and_the_model_that_carries_a_figure():
    row = frame("vulnerable", 99.0, 90.0, 100.0).assign(clipped="high", carrier=7.0)
    row.attrs["over"] = "samples"
    printed = rounded(row)
    assert printed.iloc[0, 1] == "99 [90, 100*], by model 7"
    assert printed.columns[1] == "value [95 % interval over samples]"


def test_rounded_prints_the_null_with_the_decimals_of_the_value():
    null = pd.DataFrame({"value": [0.5], "low": [-0.004], "high": [0.5139]}, index=["auc"])
    printed = rounded(frame("auc", 0.61249, 0.57, 0.65), null)
    assert printed.iloc[0].to_dict() == {
        "unit": "",
        "value [95 % interval]": "0.61 [0.57, 0.65]",
        "no signal": "0.00 to 0.51",
    }


def test_rounded_prints_the_p_value_beside_the_null():
    null = pd.DataFrame({"value": [0.5], "low": [0.48], "high": [0.52], "p": [0.00498]}, index=["auc"])
    assert rounded(frame("auc", 0.61, 0.57, 0.65), null).iloc[0]["no signal"] == "0.48 to 0.52 (p = 0.005)"


def test_rounded_prints_every_metric(table, null):
    printed = rounded(table, null)
    assert printed.index.tolist() == table.label.tolist()
    assert (printed["no signal"].str.count(" to ") == 1).all()


def packing_errors(exact, packed):
    """Largest difference of phi a checkpoint, and the float32 rounding on reading, both in steps of the packing."""
    low, high = (exact.phi.reduce(extreme, ("model", "sample")).astype(float) for extreme in (np.min, np.max))
    step = (high - low) / STEPS
    error = abs(packed.phi.astype(float) - exact.phi.astype(float)).max(("model", "sample"))
    reading = 0.5 * np.spacing(np.maximum(abs(low), abs(high)).astype(np.float32))
    return (error / step).values, (reading / step).values


def test_packing_moves_phi_by_at_most_half_a_step(strong, tmp_path):
    packed = open_run(save_run(strong, tmp_path / "packed.nc"))
    error, reading = packing_errors(strong, packed)
    assert (error > 0.4).all()  # 3,000 values a checkpoint come close to half a step
    assert (error <= 0.5 + reading).all()
    np.testing.assert_array_equal(packed.keep, strong.keep)


def test_packing_of_the_released_run_moves_phi_by_at_most_half_a_step():
    packed, exact = open_run(DATA / "quick.nc"), open_run(DATA / "quick-float32.nc")
    error, reading = packing_errors(exact, packed)
    assert (error > 0).all()
    assert (error <= 0.5 + reading).all()
    np.testing.assert_array_equal(packed.keep, exact.keep)


def quick_tables(rule):
    for run in [open_run(DATA / name) for name in ("quick.nc", "quick-float32.nc")]:
        table = summarise(run, rule)
        yield table, rounded(table)


@pytest.mark.heavy("every interval and null of a run, twice")
@pytest.mark.parametrize("rule", ["lira:fpr@0.01", "lira:bayes"])
def test_every_printed_metric_is_the_same_from_the_packed_run_and_interval_ends_move_little(rule):
    # thresholds of halves lie on single scores: an end at a rounding boundary may change its last digit
    (packed, printed), (exact, printed_exact) = quick_tables(rule)
    value = printed.columns[-1]
    assert printed[value].str.split(" ").str[0].equals(printed_exact[value].str.split(" ").str[0])
    width = (exact.high - exact.low).clip(lower=1e-9)
    assert ((packed.low - exact.low).abs() / width).max() < 0.05
    assert ((packed.high - exact.high).abs() / width).max() < 0.05


@pytest.mark.heavy("a null of every metric, twice")
def test_the_no_signal_level_is_the_same_from_the_packed_run():
    packed, exact = (null_summary(open_run(DATA / name), draws=20) for name in ("quick.nc", "quick-float32.nc"))
    width = (exact.high - exact.low).clip(lower=1e-9)
    for end in ("value", "low", "high"):
        assert ((packed[end] - exact[end]).abs() / width).max() < 0.05


def test_metrics_that_are_asked_for_alone_are_the_same(strong, table):
    wanted = ["displacement", "recall_epoch"]
    alone = summarise(strong, "lira:fpr@0.01", only=wanted)
    assert alone.index.tolist() == wanted
    pd.testing.assert_frame_equal(alone, table.loc[wanted])
    nulls = list(null_planes(strong, draws=2))
    pd.testing.assert_frame_equal(null_table(nulls, wanted), null_table(nulls)[wanted])
    with pytest.raises(UserError, match="did you mean 'displacement'"):
        summarise(strong, only=["displacment"])


COMPARING = [name for name in METRICS if name.split("_")[0] in
             ("displacement", "entropy", "speed", "transition", "early", "recall")]  # fmt: skip


@pytest.mark.parametrize("checkpoint", [0, -1])
def test_of_one_checkpoint_what_compares_checkpoints_is_undefined(strong, checkpoint):
    table = summarise(strong.isel(epoch=[checkpoint]))
    assert table.index[table.value.isna()].tolist() == COMPARING
    assert table.loc[COMPARING, ["low", "high"]].isna().all(axis=None)
    assert (rounded(table).iloc[:, -1] == "undefined").tolist() == [name in COMPARING for name in METRICS]


def test_without_a_checkpoint_by_three_eighths_what_is_found_by_then_is_undefined(strong):
    table = summarise(strong.isel(epoch=[-2, -1]))
    assert table.index[table.value.isna()].tolist() == ["early_recall", "early_precision"]


BAD_OPTIONS = {
    "negative": (lambda run: null_summary(run, draws=-5), "draws of the permutation null is -5: .* at least 1"),
    "none": (lambda run: next(null_planes(run, draws=0)), "draws of the permutation null is 0: .* at least 1"),
    "half": (lambda run: summarise(run, draws=20.5), "draws is 20.5: it must be a whole number, at least 20"),
    "text": (lambda run: summarise(run, draws="many"), "draws is 'many': it must be a whole number"),
    "percent": (lambda run: summarise(run, level=95), "level is 95: it must be a number, from 0 to 1"),
    "null level": (lambda run: null_summary(run, draws=2, level=95), "level is 95: it must be a number"),
    "seed": (
        lambda run: summarise(run, draws=20, seed=-1),
        "seed is -1: it must be a whole number, at least 0",
    ),
    "null seed": (lambda run: null_summary(run, draws=2, seed=-1), "seed is -1: it must be a whole number"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_out_of_range_are_one_line(strong, name):
    call, line = BAD_OPTIONS[name]
    with pytest.raises(UserError, match=line):
        call(strong)


def test_what_never_happens_has_no_date(noise):
    still = noise.assign(phi=noise.phi.isel(epoch=[0] * 6).assign_coords(epoch=noise.epoch))
    nobody = vulnerability_plane(still, "lira:fpr@0.001")
    assert not float(METRICS["vulnerable"].of(nobody, None))
    for name in ("transition_peak_epoch", "recall_epoch", "speed_peak_epoch", "early_recall", "early_precision"):
        assert np.isnan(METRICS[name].of(nobody, None)), name
        drawn = METRICS[name].of(nobody, bootstrap_weights(nobody, 3)).values
        assert (drawn.shape, np.isnan(drawn).all()) == ((3,), True), name


def test_early_recall_is_read_at_three_eighths_between_checkpoints():
    plane = vulnerability_plane(run_with([0, 1, 2, 2.5, 3, 3]))  # epochs 0 to 10: 3.75 lies between 2 and 4
    recall = 100 * early_identification(plane).recall
    expected = float(recall.sel(epoch=2)) * 0.125 + float(recall.sel(epoch=4)) * 0.875
    assert float(METRICS["early_recall"].of(plane, None)) == pytest.approx(expected)
    exact = plane.assign_coords(epoch=[0, 3, 6, 9, 12, 16])
    assert float(METRICS["early_recall"].of(exact, None)) == float(recall[2])


def test_p_values_are_twice_the_smaller_tail():
    drawn = pd.DataFrame({"a": np.arange(1.0, 100), "b": np.nan, "c": [1.0] * 98 + [np.nan]})
    values = (0.0, 1.0, 2.5, 50.0, 99.0, 200.0)
    p = [p_values(pd.Series({"a": v, "b": v, "c": v}), drawn) for v in values]
    assert [row.a for row in p] == pytest.approx([0.02, 0.04, 0.06, 1, 0.04, 0.02])
    assert all(np.isnan(row.b) for row in p)  # no draw is defined
    assert [row.c for row in p[:2]] == pytest.approx([2 / 99, 1])
    assert np.isnan(p_values(pd.Series({"a": np.nan}), drawn[["a"]]).a)

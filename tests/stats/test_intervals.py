"""Intervals over samples, models and both: known answers, a second implementation, and their study of coverage."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from dynmia.attack.plane import halves, part_of, rate_interval, vulnerability_plane
from dynmia.attack.scoring import Scoring
from dynmia.book import maker
from dynmia.chapters import holding
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import UserError
from dynmia.stats import intervals
from dynmia.stats.simulate import Simulator

coverage = maker("coverage")


@pytest.fixture(scope="module")
def run():
    return Simulator(samples=120, checkpoints=3, separation=1.5, effect=0.5).run(20)


def test_figures_of_many_planes_are_those_of_each(run):
    planes = [vulnerability_plane(part, "lira:fpr@0.05") for part in halves(run, "model", 4)]
    wanted = [name for name in METRICS if not name.startswith("tpr_")]
    table = intervals.figures(planes, [*wanted, "tpr_1pct"])
    for row, plane in zip(table.itertuples(), planes):
        for name in [*wanted, "tpr_1pct"]:
            np.testing.assert_allclose(getattr(row, name), float(METRICS[name].of(plane, None)), err_msg=name)


def test_halves_are_complements_and_can_be_scored(run):
    for dim in ("model", "sample"):
        parts = list(halves(run, dim, 20))
        assert len(parts) == 20
        for a, b in zip(parts[::2], parts[1::2]):
            assert sorted([*a[dim].values, *b[dim].values]) == list(range(run.sizes[dim]))
    for part in halves(run, "model", 20):
        assert min(int(part.keep.sum("model").min()), int((~part.keep).sum("model").min())) >= 2


def test_variance_of_a_mean_is_exact_on_average():
    """Of a mean of x, delete-half over all halves gives s^2 / n with s^2 of divisor n - 1 (Shao and Wu 1989)."""
    x = np.random.default_rng(0).normal(size=8)
    run = xr.Dataset({"keep": (("model", "sample"), np.ones((2, 8), bool)), "x": ("sample", x)})
    means = [float(part.x.mean()) for part in halves(run, "sample", 1500)]
    assert np.var(means) == pytest.approx(x.var(ddof=1) / 8, rel=0.08)


def test_interval_by_hand(run):
    table = intervals.interval(run, "lira:fpr@0.05", "models", only=["advantage"], draws=20)
    planes = [vulnerability_plane(part, "lira:fpr@0.05") for part in halves(run, "model", 20)]
    error = np.std([1000 * float(plane.advantage[-1].mean()) for plane in planes])
    row = table.loc["advantage"]
    value = 1000 * float(vulnerability_plane(run, "lira:fpr@0.05").advantage[-1].mean())
    np.testing.assert_allclose(row.value, value)
    np.testing.assert_allclose([row.low, row.high], value + np.array([-1, 1]) * stats.t.ppf(0.975, 10) * error)


def test_both_adds_the_variances(run):
    parts = {over: intervals.interval(run, over=over) for over in intervals.OVER}
    total = parts["samples"].error ** 2 + parts["models"].error ** 2
    np.testing.assert_allclose(parts["both"].error ** 2, total)
    for name in ("entropy_change", "transition_peak"):  # biased by few samples: the interval is not about the value
        row = parts["samples"].loc[name]
        assert abs((row.low + row.high) / 2 - row.value) > 1e-6


def test_every_metric_has_its_interval(run):
    table = intervals.summarise(run, "lira:fpr@0.05")
    assert (table.index.tolist(), table.attrs["over"]) == (list(METRICS), "both")
    both = intervals.interval(run, "lira:fpr@0.05", "both", only=["displacement", "entropy_change"])
    pd.testing.assert_frame_equal(table.loc[both.index], both)
    few = part_of(run, np.arange(8))  # too few to halve
    alone = intervals.interval(few, "lira:bayes", "samples", only=["auc"])
    every = intervals.summarise(few, "lira:bayes")
    assert (every.error["auc"], every.attrs["over"]) == (alone.error["auc"], "samples")


@pytest.mark.heavy("every interval of several small runs under two readings")
def test_no_interval_has_zero_width_and_none_goes_beyond_what_is_possible(run):
    for part in (run, run.isel(epoch=[0, -1]), run.isel(sample=slice(30))):
        for rule in ("lira:bayes", "lira:fpr@0.01", "lira:fpr@0.2"):
            table = intervals.summarise(part, rule)
            defined = table[table.low.notna()]
            assert (defined.high > defined.low).all()
            for name, row in table.iterrows():
                low, high = METRICS[name].low, METRICS[name].high
                low, high = part.epoch.values[[0, -1]] if row.unit == "epoch" else (low, high)
                assert not row.low < low
                assert not row.high > high
                assert row.low == low or row.clipped in ("", "high")
                assert row.high == high or row.clipped in ("", "low")


def halves_of(*values, dim="model"):
    return {dim: np.array(values, float)}


def test_ends_by_hand():
    drawn = halves_of(1, 3, 2, 4)  # variance 1.25, four halves: two degrees of freedom
    row = intervals.estimate(2.0, drawn, {"model": 20})
    half = stats.t.ppf(0.975, 2) * np.sqrt(1.25)
    assert (row["low"], row["high"], row["error"]) == pytest.approx((2 - half, 2 + half, np.sqrt(1.25)))
    both = drawn | halves_of(1, 2, 1, 2, dim="sample")  # variance 0.25
    freedom = 1.5**2 / (1.25**2 / 2 + 0.25**2 / 2)
    row = intervals.estimate(2.0, both, {"model": 20, "sample": 50})
    assert row["high"] == pytest.approx(2 + stats.t.ppf(0.975, freedom) * np.sqrt(1.5))
    row = intervals.estimate(2.0, drawn, {"model": 2})  # one degree of freedom: two models
    assert row["high"] == pytest.approx(2 + stats.t.ppf(0.975, 1) * np.sqrt(1.25))


def test_ends_are_clipped_and_say_so():
    wide = halves_of(0, 90, 10, 100)
    rows = {name: intervals.estimate(50.0, wide, {}, name) for name in ("vulnerable", "displacement", "advantage")}
    assert (rows["vulnerable"]["low"], rows["vulnerable"]["high"], rows["vulnerable"]["clipped"]) == (0, 100, "both")
    assert (rows["displacement"]["low"], rows["displacement"]["clipped"]) == (0, "low")
    assert (rows["advantage"]["low"] < 0, rows["advantage"]["clipped"]) == (True, "")
    share = intervals.contrast(
        np.array([50.0, 40.0]), {"model": np.stack([wide["model"]] * 2)}, {}, "vulnerable", "ratio", ()
    )
    assert (share["low"], share["clipped"], share["high"]) == (0, "low", np.inf)


def test_shares_of_nothing_and_of_all_have_the_exact_binomial_limit():
    row = intervals.estimate(0.0, halves_of(0, 0, 0, 0), {}, "vulnerable")
    assert np.isnan(row["high"])
    row = intervals._binomial(row, 30, 0.95)
    assert (row["low"], row["high"]) == (0, pytest.approx(100 * (1 - 0.025 ** (1 / 30))))
    assert stats.binom.cdf(0, 30, row["high"] / 100) == pytest.approx(0.025)
    row = intervals._binomial(intervals.estimate(100.0, halves_of(100, 100, 90, 100), {}, "early_recall"), 10, 0.95)
    assert (row["high"], row["low"]) == (100, pytest.approx(100 * 0.025**0.1))
    wide = intervals._binomial(intervals.estimate(0.0, halves_of(0, 0, 90, 0), {}, "vulnerable"), 1000, 0.95)
    assert wide["high"] > 50


def test_dates_reach_one_checkpoint_each_way():
    epochs = np.array([0, 2, 6, 12])
    for date, ends in ((0, (0, 2)), (2, (0, 6)), (6, (2, 12)), (12, (6, 12))):
        row = intervals._one_checkpoint_each_way(intervals.estimate(date, halves_of(*[date] * 4), {}), epochs)
        assert (row["low"], row["high"]) == ends
    row = intervals._one_checkpoint_each_way(intervals.estimate(6.0, halves_of(0, 12, 0, 12), {}), epochs)
    assert (row["low"], row["high"], row["clipped"]) == (0, 12, "both")


def test_what_is_undefined_in_most_halves_has_no_interval():
    nan = np.nan
    rows = [intervals.estimate(5.0, halves_of(*values), {}) for values in ((4, 6, nan, 5), (4, nan, nan, nan))]
    assert [np.isfinite(row["low"]) for row in rows] == [True, False]
    assert np.isnan(intervals.estimate(nan, halves_of(1, 2, 3, 4), {})["high"])


def test_one_model_that_carries_a_figure_is_named(run):
    broken = run.copy(deep=True)
    broken["phi"][-1, 7] = np.where(run.keep[7], -40.0, 40.0)  # confident where it should not be: all false positives
    tables = [intervals.interval(one, "lira:fpr@0.01", "models", only=["displacement", "auc"]) for one in (broken, run)]
    assert tables[0].carrier["displacement"] == 7
    assert tables[1].carrier.isna().all()
    noise = [
        intervals.interval(Simulator(samples=60, checkpoints=1).run(20, k), only=["auc"]).carrier for k in range(20)
    ]
    assert pd.concat(noise).isna().all()


def test_fieller_by_its_definition():
    covariance, t = np.array([[4.0, 1.0], [1.0, 2.0]]), 2.0
    for r in intervals.fieller(np.array([30.0, 20.0]), covariance, t):
        variance = covariance[0, 0] - 2 * r * covariance[0, 1] + r**2 * covariance[1, 1]
        assert (30 - 20 * r) ** 2 == pytest.approx(t**2 * variance)
    low, high = intervals.fieller(np.array([30.0, 2.0]), covariance, t)  # below: not clear of zero
    assert (low > 0, high) == (True, np.inf)
    assert intervals.fieller(np.array([1.0, 2.0]), covariance, t) == (-np.inf, np.inf)
    assert intervals.fieller(np.array([30.0, 20.0]), 0 * covariance, t) == (1.5, 1.5)


def test_the_ratio_of_paired_runs_cancels_what_they_share(run):
    louder = run.assign(phi=1.2 * run.phi)  # LiRA is invariant to scale: the same plane
    other = Simulator(samples=120, checkpoints=3, separation=1.5, effect=0.5, seed=9).run(20, 5)
    scored = [intervals.score_halves(one, "lira:fpr@0.05", only=["displacement"]) for one in (run, louder, other)]
    same, apart = intervals.ratio(*scored[:2], "displacement"), intervals.ratio(scored[0], scored[2], "displacement")
    strangers = scored[1].plane.assign_coords(sample=scored[1].plane.sample + 1)
    alone = intervals.ratio(scored[0], replace(scored[1], plane=strangers), "displacement")
    assert [scored[0].alike(one) for one in scored] == [["sample", "model"], ["sample", "model"], ["sample"]]
    assert (alone.value, alone.high - alone.low > 0.2) == (same.value, True)
    assert same.value == pytest.approx(1, abs=0.02)
    assert not same.high - same.low > 0.05
    assert apart.high - apart.low > 0.2


def test_the_ratio_covers_the_true_one():
    hits = []
    for seed in range(20):
        few, many = (Simulator(samples=300, checkpoints=1, separation=s, seed=seed) for s in (1.0, 2.0))
        truth = [float(METRICS["displacement"].of(one.truth("lira:bayes"), None)) for one in (many, few)]
        scored = [intervals.score_halves(one.run(20, seed), "lira:bayes", only=["displacement"]) for one in (many, few)]
        row = intervals.ratio(*scored, "displacement")
        hits.append(row.low <= truth[0] / truth[1] <= row.high)
    assert np.mean(hits) >= 0.8  # 20 models lean against a weak signal more than against a strong one


def test_a_model_effect_widens_only_the_interval_over_models():
    errors = {}
    for effect in (0.0, 1.5):
        runs = [Simulator(samples=150, checkpoints=1, separation=1.5, effect=effect).run(20, k) for k in range(4)]
        tables = [intervals.interval(run, "lira:fpr@0.01", over="models", only=["auc"]) for run in runs]
        errors[effect] = np.mean([float(table.error.iloc[0]) for table in tables])
    assert errors[1.5] > 1.4 * errors[0.0]


def test_bad_input_is_named(run):
    with pytest.raises(UserError, match="unknown interval 'model'"):
        intervals.interval(run, over="model")
    with pytest.raises(UserError, match=r"draws is 10: .* at least 20"):
        intervals.interval(run, draws=10)
    with pytest.raises(UserError, match="8 models are too few to halve"):
        intervals.interval(run.isel(model=slice(8)))


def test_weighted_plane_with_one_copy_each_is_the_plane(run):
    ours, other = coverage.weighted_plane(run, np.ones(20, int)), vulnerability_plane(run, coverage.RULE)
    np.testing.assert_allclose(ours.tpr, other.tpr)
    np.testing.assert_allclose(ours.fpr, other.fpr)


def test_weighted_plane_leaves_all_copies_out():
    """Against a loop: reference statistics of the resampled models without any copy of the target."""
    run = Simulator(samples=40, checkpoints=1, separation=1.5).run(20, 3)
    times = np.random.default_rng(1).multinomial(20, np.full(20, 1 / 20))
    plane = coverage.weighted_plane(run, times)
    copies = np.repeat(np.arange(20), times)
    keep, phi = run.keep.values[copies], run.phi.values[1].astype(float)[copies]
    usable = plane.sample.values
    scores = np.full(phi.shape, np.nan)
    for target in np.unique(copies):
        rest, logs = copies != target, []
        for side in (True, False):
            squares, freedom, means = 0.0, 0, {}
            for z in usable:
                x = phi[rest & (keep[:, z] == side), z]
                means[z] = x.mean()
                squares, freedom = squares + ((x - x.mean()) ** 2).sum(), freedom + len(x) - 1
            x = phi[copies == target][0, usable]
            logs.append(stats.norm.logpdf(x, [means[z] for z in usable], np.sqrt(squares / freedom)))
        scores[np.ix_(copies == target, usable)] = logs[0] - logs[1]
    scores, keep = scores[:, usable], keep[:, usable]
    outside = np.sort(scores[~keep])
    flagged = scores > outside[len(outside) - 1 - int(0.01 * len(outside))]
    np.testing.assert_allclose(plane.tpr[1], (flagged & keep).sum(0) / keep.sum(0))
    np.testing.assert_allclose(plane.fpr[1], (flagged & ~keep).sum(0) / (~keep).sum(0))


@pytest.mark.parametrize("method", ["wilson", "jeffreys"])
def test_binomial_coverage_by_simulation(method):
    rng, p = np.random.default_rng(0), np.array([0.05, 0.3, 0.5])
    trials = np.tile([[10], [7]], (1, 3))
    count = rng.binomial(trials, p, (20_000, 2, 3))
    ends = rate_interval(xr.DataArray(count), xr.DataArray(np.broadcast_to(trials, count.shape)), method=method)
    hit = ((ends.low <= p) & (p <= ends.high)).values.mean((0, 1))
    np.testing.assert_allclose(coverage.binomial_coverage(p, trials, method), hit, atol=0.01)


def test_row_of_known_coverage():
    """Normal figures about a known estimand with the right error: 95 %, and a tenth of the error: nearly none."""
    rng = np.random.default_rng(0)
    off = rng.normal(size=4000)
    part = pd.DataFrame({"value": 5 + off, "low": 5 + off - 1.96, "high": 5 + off + 1.96, "error": 1.0,
                         "estimand": 5.0, "share": 1.0, "set": np.arange(4000) // 4})  # fmt: skip
    row = coverage._row(part)
    assert row["coverage"] == pytest.approx(0.95, abs=0.01)
    assert row["ratio"] == pytest.approx(1, abs=0.03)
    assert row["error"] == pytest.approx(np.sqrt(0.95 * 0.05 / 4000), rel=0.15)
    small = part.assign(low=part.value - 0.1, high=part.value + 0.1)
    assert coverage._row(small)["coverage"] < 0.15


def test_study_has_every_interval():
    table = coverage.coverage("normal", sets=2, each=1, others=3, rivals=1).droplevel("rule").sort_index()
    methods = set(table.reset_index()[["over", "method"]].itertuples(index=False, name=None))
    assert methods == {
        ("samples", "halves"), ("models", "halves"), ("both", "halves"), ("samples", "bootstrap"),
        ("models", "delete one"), ("models", "half against half"), ("models", "bootstrap"),
        ("one sample", "wilson"), ("one sample", "jeffreys"),
    }  # fmt: skip
    assert table.coverage.between(0, 1).all()
    whole = table.xs(("normal", "one sample", "wilson"))
    parts = [name for name in whole.index if name.startswith("tpr") and name != "tpr all"]
    assert whole.loc[parts, "populations"].sum() == whole.loc["tpr all", "populations"]


def test_spread_of_populations_is_recognised():
    rng, dealt = np.random.default_rng(2), pd.Series({"auc": 1.0})

    def tables(error):
        values = rng.normal(100, 1, 200)
        return [pd.DataFrame({"value": [v], "low": [v - 1.96 * error], "high": [v + 1.96 * error], "error": [error]},
                             ["auc"]) for v in values]  # fmt: skip

    right, wrong = holding.spread(tables(1.0), dealt).loc["auc"], holding.spread(tables(0.5), dealt).loc["auc"]
    assert right.low < 1 < right.high
    assert 0.9 < right.covered / 200 < 0.99
    assert wrong.high < 1
    assert wrong.covered < 150


def test_models_dealt_anew_spread_as_populations_do():
    """Twelve populations of one superpopulation: dealt anew, their models spread as the populations themselves."""
    runs = [Simulator(samples=80, checkpoints=1, separation=1.5).run(12, k) for k in range(12)]
    dealt = holding.regrouped(runs, "lira:fpr@0.05", partitions=3)
    own = intervals.figures([vulnerability_plane(run, "lira:fpr@0.05") for run in runs]).std()
    assert 0.5 < dealt["advantage"] / own["advantage"] < 2


def test_judgement_names_what_lies_within_error():
    rows = [(0.95, 0.01), (0.92, 0.01), (0.90, 0.01), (0.98, 0.01), (0.99, 0.005)]
    words = [holding.judge(pd.Series({"coverage": c, "error": e})) for c, e in rows]
    assert words == ["holds", "narrow?", "narrow", "wide?", "wide"]


def test_recommendation_is_safe_first_then_narrow():
    rows = [("a", "x", 0.94, 1.1), ("a", "y", 0.99, 1.3), ("b", "x", 0.99, 2.0), ("c", "x", 0.90, 0.9)]
    table = pd.DataFrame(rows, columns=["method", "metric", "coverage", "ratio"]).set_index(["method", "metric"])
    assert holding.recommended(table) == "a"
    assert holding.recommended(table.loc[["c"]]) == "c"


def test_of_one_checkpoint_what_compares_checkpoints_is_undefined(run):
    table = intervals.summarise(run.isel(epoch=[-1]), "lira:bayes")
    defined = ["auc", "tpr_1pct", "tpr_01pct", "advantage", "dynamic", "vulnerable", "silhouette"]
    assert table.index[table.value.notna()].tolist() == defined
    defined.remove("tpr_01pct")  # halves have too few out-scores to tell
    assert table.loc[defined, "error"].notna().all()


def test_metrics_by_name_alone(run):
    table = intervals.summarise(run, only=["recall_epoch"])
    assert (table.index.tolist(), table.unit.tolist()) == (["recall_epoch"], ["epoch"])
    with pytest.raises(UserError, match="unknown metric 'auk'; did you mean 'auc'"):
        intervals.summarise(run, only=["auk"])
    with pytest.raises(UserError, match="no metric is named: name at least one of auc, "):
        intervals.interval(run, only=[])
    with pytest.raises(UserError, match="level is 95: it must be a number, from 0 to 1"):
        intervals.interval(run, only=["auc"], level=95)


def test_halves_keep_a_variance_of_each_sample_where_it_is_asked_for(run):
    per_sample = Scoring("lira", "fpr@0.01", variance="per-sample")
    for part in halves(run, "model", 4, scoring=per_sample):
        inside = part.keep.sum("model")
        assert min(int(inside.min()), int((10 - inside).min())) == 3
    assert intervals.interval(run, per_sample, only=["auc"]).error["auc"] > 0

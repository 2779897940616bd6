import numpy as np
import pytest
import xarray as xr
from helpers import as_run, signal_run
from scipy.stats import beta, binomtest, norm
from sklearn.metrics import roc_auc_score, roc_curve

from dynmia import UserError, lira_scores, rate_interval, vulnerability_plane
from dynmia.attack import plane as plane_module
from dynmia.attack.plane import CUTS, LEVELS
from dynmia.attack.scoring import Scoring, level_of
from dynmia.dynamics.cloud import auc, states, tpr_at_fpr, vulnerable
from dynmia.pool.pool import draw_keep


def scores_of(run):
    return [lira_scores(phi, run.keep.values) for phi in run.phi.values]


@pytest.fixture
def phi_as_score(monkeypatch):
    """Make the score of the plane phi itself, so that counts can be read off."""
    monkeypatch.setattr(plane_module, "attack_scores", lambda phi, keep, labels, scoring: phi)


KEEP = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
TINY = as_run(np.array([[[1.0, -1.0], [-2.0, 2.0], [3.0, 4.0], [-4.0, 5.0]]]), KEEP)


@pytest.mark.usefixtures("phi_as_score")
def test_counts_by_hand():
    plane = vulnerability_plane(TINY, "bayes")
    # sample 0: in 1, -2, out 3, -4; sample 1: in 4, 5, out -1, 2
    assert plane.tp.values.tolist() == [[1, 2]]
    assert plane.fp.values.tolist() == [[1, 1]]
    assert plane.tpr.values.tolist() == [[0.5, 1.0]]
    assert plane.fpr.values.tolist() == [[0.5, 0.5]]
    assert plane.advantage.values.tolist() == [[0.0, 0.5]]


@pytest.mark.usefixtures("phi_as_score")
@pytest.mark.parametrize(
    ("rule", "threshold", "tp", "fp"),
    # out-scores -4, -1, 2, 3: a quarter above 2, a half above -1
    [("fpr@0.25", 2.0, [0, 2], [1, 0]), ("fpr@0.5", -1.0, [1, 2], [1, 1]), ("fpr@0.3", 2.0, [0, 2], [1, 0])],
)
def test_thresholds_by_hand(rule, threshold, tp, fp):
    plane = vulnerability_plane(TINY, rule)
    assert plane.threshold.item() == threshold
    assert plane.tp.values.tolist() == [tp]
    assert plane.fp.values.tolist() == [fp]


@pytest.mark.usefixtures("phi_as_score")
def test_auc_by_hand():
    # of 16 pairs, in 1 beats 2 out-scores, -2 beats 1, 4 and 5 beat 4
    assert auc(vulnerability_plane(TINY, "bayes")).item() == 11 / 16


@pytest.mark.usefixtures("phi_as_score")
def test_tied_scores_count_one_half_in_the_auc():
    rng = np.random.default_rng(0)
    keep = draw_keep(10, 40, "bernoulli")
    run = as_run(rng.integers(0, 4, (1, 10, 40)) + 1.0 * keep, keep)
    expected = roc_auc_score(keep.ravel(), run.phi.values.ravel())
    assert auc(vulnerability_plane(run, "bayes")).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("phi_as_score")
def test_tied_scores_never_raise_the_pooled_rate_above_the_level():
    keep = draw_keep(10, 40, "bernoulli")
    run = as_run(np.random.default_rng(0).integers(0, 4, (3, 10, 40)).astype(float), keep)
    plane = vulnerability_plane(run, "fpr@0.1")
    assert (plane.fp.sum("sample") <= 0.1 * (~keep).sum()).all()


@pytest.mark.parametrize(("samples", "percent"), [(70, 0.2), (70, 1), (70, 5), (70, 10), (10, 29), (10, 57), (10, 58)])
def test_pooled_false_positive_rate_is_the_level_rounded_down_to_a_count(samples, percent):
    run = signal_run(samples=samples, design="balanced")
    plane = vulnerability_plane(run, f"fpr@{percent / 100}")
    # M = 700 or 100; in floats 0.29 x 100 is 28.999999999999996
    allowed = round(10 * percent) * 10 * samples // 1000
    assert plane.fp.sum("sample").values.tolist() == [allowed] * 3


def test_bernoulli_counts_add_up_and_bound_the_flags():
    run = signal_run()
    plane = vulnerability_plane(run)
    np.testing.assert_array_equal(plane.n_in, run.keep.sum("model"))
    np.testing.assert_array_equal(plane.n_in + plane.n_out, 20)
    assert (plane.tp <= plane.n_in).all()
    assert (plane.fp <= plane.n_out).all()


def test_bayes_flags_scores_above_zero():
    run = signal_run()
    plane = vulnerability_plane(run, "lira:bayes")
    assert plane.threshold.values.tolist() == [0, 0, 0]
    flags = np.stack(scores_of(run)) > 0
    np.testing.assert_array_equal(plane.tp, (flags & run.keep.values).sum(1))
    np.testing.assert_array_equal(plane.fp, (flags & ~run.keep.values).sum(1))


def test_another_keep_mask_takes_the_place_of_the_run_s():
    run = signal_run()
    other = draw_keep(20, 70, "bernoulli", seed=5)
    xr.testing.assert_identical(
        vulnerability_plane(run, keep=other).drop_vars("label"),
        vulnerability_plane(as_run(run.phi.values, other)).drop_vars("label"),
    )


@pytest.mark.parametrize("rule", ["", "bayesian", "fpr", "fpr@", "fpr@0", "fpr@0.0", "fpr@1", "fpr@1.5", "fpr@-0.1",
                                  "fpr@1%", "fpr@nan", "tpr@0.1", "fpr@0.01 ", 0.01, None])  # fmt: skip
def test_bad_rules_are_errors(rule):
    with pytest.raises(UserError, match="unknown reading"):
        vulnerability_plane(TINY, rule)


@pytest.mark.parametrize(
    ("rule", "level"),
    [("bayes", None), ("posterior", None), ("fpr@0.01", 0.01), ("fpr@.05", 0.05), ("fpr@0.1e-2", 1e-3)],
)
def test_good_rules_are_read(rule, level):
    assert level_of(rule) == level


def test_a_phi_that_is_not_a_number_is_an_error():
    run = signal_run()
    run.phi.values[1, 3, 5] = np.nan  # it would spread through the pooled variance to every score of the checkpoint
    with pytest.raises(UserError):
        vulnerability_plane(run)


@pytest.mark.parametrize("attack", ["offline-cdf", "offline-density"])
@pytest.mark.parametrize("reading", ["bayes", "posterior"])
def test_a_score_that_is_no_log_odds_needs_a_threshold(attack, reading):
    with pytest.raises(UserError, match=r"of attack 'moderated', 'bavaria', 'lira' or 'shokri', not .*: use fpr@0.01"):
        vulnerability_plane(signal_run(), Scoring(attack, reading))


def test_auc_equals_scikit_learn():
    run = signal_run()
    expected = [roc_auc_score(run.keep.values.ravel(), scores.ravel()) for scores in scores_of(run)]
    np.testing.assert_allclose(auc(vulnerability_plane(run, "lira:bayes")), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_tpr_at_fpr_equals_scikit_learn(level):
    run = signal_run(samples=200)
    got = tpr_at_fpr(vulnerability_plane(run, "lira:bayes"), level)
    for value, scores in zip(got.values, scores_of(run)):
        fpr, tpr, _ = roc_curve(run.keep.values.ravel(), scores.ravel(), drop_intermediate=False)
        assert value == pytest.approx(tpr[fpr <= level].max(), abs=1e-12)


def rates(count, trials, **options):
    interval = rate_interval(xr.DataArray(count), xr.DataArray(trials), **options)
    return interval.low.item(), interval.high.item()


CASES = [(count, trials) for trials in (1, 7, 10, 20) for count in range(trials + 1)]


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_interval_equals_scipy(level):
    for count, trials in CASES:
        expected = binomtest(count, trials).proportion_ci(level, method="wilson")
        assert rates(count, trials, level=level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_jeffreys_interval_equals_scipy(level):
    for count, trials in CASES:
        low, high = beta.interval(level, count + 0.5, trials - count + 0.5)
        expected = 0.0 if count == 0 else low, 1.0 if count == trials else high
        assert rates(count, trials, level=level, method="jeffreys") == pytest.approx(expected, abs=1e-12)


def test_five_of_ten_has_the_wilson_interval_not_the_wider_exact_one():
    assert rates(5, 10) == pytest.approx((0.237, 0.763), abs=5e-4)
    exact = binomtest(5, 10).proportion_ci(0.95, method="exact")
    assert (exact.low, exact.high) == pytest.approx((0.187, 0.813), abs=5e-4)


@pytest.mark.parametrize("method", ["wilson", "jeffreys"])
def test_intervals_of_a_whole_plane_hold_the_rates(method):
    plane = vulnerability_plane(signal_run())
    interval = rate_interval(plane.tp, plane.n_in, method=method)
    assert interval.low.dims == plane.tpr.dims
    assert (interval.low <= plane.tpr + 1e-15).all()  # rounding of the Wilson formula at 0/n and n/n
    assert (plane.tpr <= interval.high + 1e-15).all()


def test_unknown_interval_is_an_error():
    with pytest.raises(UserError, match="unknown interval 'wald'"):
        rates(5, 10, method="wald")


def share_flagged(mu, sd, member, other):
    """P(log N(x; member) > log N(x; other)) for x ~ N(mu, sd), from the roots of the quadratic."""
    (m1, s1), (m0, s0) = member, other
    a, b = 0.5 / s0**2 - 0.5 / s1**2, m1 / s1**2 - m0 / s0**2
    c = 0.5 * (m0 / s0) ** 2 - 0.5 * (m1 / s1) ** 2 + np.log(s0 / s1)
    if a == 0:
        return norm.sf(-c / b, mu, sd)
    low, high = np.sort(np.roots([a, b, c]))
    between = norm.cdf(high, mu, sd) - norm.cdf(low, mu, sd)
    return between if a < 0 else 1 - between


@pytest.mark.parametrize("sd_in", [1.0, 0.6])
@pytest.mark.parametrize("gap", [0.5, 1.5, 3.0])
def test_bayes_rates_of_known_gaussians(gap, sd_in):
    models, samples = 400, 60
    rng = np.random.default_rng(0)
    keep = draw_keep(models, samples, "balanced")
    middle = rng.normal(0, 5, samples)
    phi = middle + rng.normal(0, 1, keep.shape) * np.where(keep, sd_in, 1.0) + gap * keep
    plane = vulnerability_plane(as_run(phi[None], keep), "lira:bayes")
    for rate, mu, sd in ((plane.tpr, gap, sd_in), (plane.fpr, 0.0, 1.0)):
        expected = share_flagged(mu, sd, (gap, sd_in), (0.0, 1.0))
        error = rate.values - expected
        # binomial error of 200 models, and a boundary off by about 0.1 sd where the density is 0.4 / sd
        spread = np.hypot(np.sqrt(expected * (1 - expected) / 200), 0.04)
        assert abs(error).max() < 4 * spread
        assert abs(error.mean()) < 4 * spread / np.sqrt(samples)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.float32, object])
def test_a_keep_mask_of_any_type_gives_the_plane_of_bool(kind):
    run = signal_run()
    other, plane = run.keep.values.astype(int).astype(kind), vulnerability_plane(run)
    xr.testing.assert_identical(vulnerability_plane(run, keep=other), plane)
    xr.testing.assert_identical(vulnerability_plane(run.assign(keep=(("model", "sample"), other))), plane)


def test_dimensions_in_another_order_are_put_in_order_by_name():
    run = signal_run()
    xr.testing.assert_identical(
        vulnerability_plane(run.transpose("sample", "model", "epoch")), vulnerability_plane(run)
    )


BAD_RUNS = {
    "no phi": (lambda run: run.drop_vars("phi"), "the run has no phi: a run has phi, keep, label, train_accuracy"),
    "no accuracy": (lambda run: run.drop_vars("test_accuracy"), "the run has no test_accuracy"),
    "a renamed dimension": (lambda run: run.rename(sample="image"), r"phi has the dimensions \('epoch', 'model', 'ima"),
    "one dimension too many": (lambda run: run.assign(phi=run.phi.expand_dims("draw")), "phi has the dimensions"),
    "a hole": (
        lambda run: run.assign(phi=run.phi.where(run.phi != run.phi[1, 2, 3])),
        r"1 are not finite, the first \(nan\) at epoch 1, model 2, sample 3",
    ),
    "a mask of more": (lambda run: run.assign(keep=run.keep + 1), "neither 0 nor 1, the first 2"),
    "out of order": (lambda run: run.isel(epoch=[0, 2, 1]), "the epochs are 0, 2, 1: they must increase"),
    "the same twice": (lambda run: run.isel(epoch=[0, 1, 1]), "the epochs are 0, 1, 1: they must increase"),
    "half epochs": (lambda run: run.assign_coords(epoch=[0, 0.5, 1]), "the epochs are 0.0, 0.5, 1.0: .* whole numbers"),
    "no number": (lambda run: run.assign_coords(epoch=[0, np.nan, 2]), "0.0, nan, 2.0: they must be whole numbers"),
    "names": (lambda run: run.assign_coords(epoch=list("abc")), "the epochs are a, b, c: they must be whole numbers"),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_a_run_that_cannot_be_scored_is_one_line(name):
    change, line = BAD_RUNS[name]
    with pytest.raises(UserError, match=line):
        vulnerability_plane(change(signal_run()))


def test_a_keep_mask_of_another_shape_is_named():
    with pytest.raises(UserError, match=r"keep has shape \(70, 20\): the run has \(models, samples\) \(20, 70\)"):
        vulnerability_plane(signal_run(), keep=signal_run().keep.values.T)


def test_a_confidence_level_out_of_range_is_named():
    with pytest.raises(UserError, match="level is 95: it must be a number, from 0 to 1"):
        rates(5, 10, level=95)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ({"attack": "rima"}, "unknown attack 'rima'"),
        ({"reading": "fpr@2"}, "unknown reading 'fpr@2': use posterior, bayes, or fpr@a"),
        ({"centre": "middle"}, "unknown centre 'middle'"),
        ({"variance": "none"}, "unknown variance 'none'"),
        ({"attack": "rmia", "reading": "bayes"}, "reading 'bayes' needs a score that is a log-odds"),
    ],
)
def test_a_scoring_is_checked_when_it_is_made(names, line):
    with pytest.raises(UserError, match=line):
        Scoring(**names)


@pytest.mark.parametrize(("models", "variance", "least"), [(63, "pooled", 2), (64, "per-sample", 3)])
def test_what_auto_means_for_a_number_of_models(models, variance, least):
    chosen = Scoring("offline-cdf", "fpr@0.1", "median").for_models(models)
    assert chosen == Scoring("offline-cdf", "fpr@0.1", "median", variance)
    assert chosen.least == least
    assert chosen.for_models(5) == chosen


def test_a_name_and_a_scoring_give_the_same_plane_and_several_readings_that_of_each():
    run = signal_run()
    xr.testing.assert_identical(vulnerability_plane(run, "bayes"), vulnerability_plane(run, Scoring(reading="bayes")))
    asked = ["bayes", "lira:bayes", "fpr@0.1", Scoring("rmia"), Scoring("lira", "fpr@0.1", "median")]
    planes = plane_module.vulnerability_planes(run, asked)
    assert list(planes) == ["bayes", "lira:bayes", "fpr@0.1", "rmia:fpr@0.01", "lira:fpr@0.1"]
    for scoring, plane in zip(asked, planes.values()):
        xr.testing.assert_identical(plane, vulnerability_plane(run, scoring))


@pytest.mark.parametrize("scoring", ["posterior", "lira:fpr@0.1", "rmia:fpr@0.01"])
def test_the_text_of_a_scoring_reads_back(scoring):
    assert str(Scoring.of(scoring)) == scoring
    assert Scoring.of(str(Scoring.of(scoring))) == Scoring.of(scoring)


def test_online_is_another_name_of_lira_and_each_attack_has_a_reading_of_its_own():
    assert Scoring("online") == Scoring("lira") == Scoring("lira", "posterior")
    assert Scoring() == Scoring("moderated", "posterior")
    assert Scoring("rmia").reading == "fpr@0.01"


def test_the_posterior_plane_is_the_mean_probability_of_each_side():
    run = signal_run()
    plane = vulnerability_plane(run, "lira:posterior")
    p = 1 / (1 + np.exp(-np.stack(scores_of(run))))
    keep = run.keep.values
    inside, outside = (np.where(side, p, np.nan) for side in (keep, ~keep))
    np.testing.assert_allclose(plane.tpr, np.nanmean(inside, axis=1), rtol=1e-12)
    np.testing.assert_allclose(plane.fpr, np.nanmean(outside, axis=1), rtol=1e-12)
    assert np.isnan(plane.threshold).all()


def test_a_level_that_too_few_scores_can_tell_is_refused_and_the_rates_there_are_unknown():
    run = signal_run(samples=70, design="balanced")  # 700 out-scores
    with pytest.raises(UserError, match=r"reading 'fpr@0.001' needs 1000 out-scores.*this run has 700: use a higher"):
        vulnerability_plane(run, "fpr@0.001")
    plane = vulnerability_plane(run)
    assert np.isnan(tpr_at_fpr(plane, 0.001)).all()
    assert np.isfinite(tpr_at_fpr(plane, 0.01)).all()


def test_a_sample_that_one_side_never_saw_is_not_vulnerable():
    run = signal_run()
    keep = run.keep.values.copy()
    keep[:, 0], keep[:, 1] = True, False
    plane = vulnerability_plane(as_run(run.phi.values + 9.0, keep), Scoring("loss", "fpr@0.9"))
    assert np.isnan(plane.fpr[:, 0]).all()
    assert np.isnan(plane.tpr[:, 1]).all()
    assert not vulnerable(plane)[:, :2].any()


def test_a_plane_carries_its_states_and_other_cuts_are_never_ignored():
    plane = vulnerability_plane(signal_run(), "fpr@0.1")
    assert plane.state.attrs["cuts"] == CUTS
    bare = plane.drop_vars("state")
    xr.testing.assert_equal(states(bare), plane.state)
    cut = states(plane, (0.1, 0.9))
    xr.testing.assert_identical(cut, states(bare, (0.1, 0.9)))
    assert (cut != plane.state).any()
    assert states(plane.assign(state=cut)).identical(cut)
    xr.testing.assert_equal(states(plane.assign(state=cut), CUTS), plane.state)

import itertools

import numpy as np
import pytest
from helpers import as_run
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from dynmia import UserError, lira_scores
from dynmia.attack.lira import BLOCK, _pooled_variance, leave_one_out
from dynmia.attack.plane import part_of
from dynmia.attack.scoring import LIRA
from dynmia.chapters.oracles import lira_loop
from dynmia.pool.pool import draw_keep

VARIANTS = list(itertools.product(LIRA, ["mean", "median"], ["pooled", "per-sample"]))
every_variant = pytest.mark.parametrize(("attack", "centre", "variance"), VARIANTS)


def noise(models=12, samples=9, design="balanced", seed=0, signal=0.0):
    rng = np.random.default_rng(seed)
    keep = draw_keep(models, samples, design, seed)
    return rng.normal(3 * rng.normal(size=samples), 1, (models, samples)) + signal * keep, keep


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
@every_variant
def test_scores_equal_a_naive_leave_one_out_loop(attack, centre, variance, design):
    phi, keep = noise(design=design, signal=1.0)
    got = lira_scores(phi, keep, attack=attack, centre=centre, variance=variance)
    np.testing.assert_allclose(got, lira_loop(phi, keep, attack, centre, variance), rtol=1e-10, atol=1e-10)


def test_bernoulli_counts_differ_so_that_truncation_would_show():
    _, keep = noise(design="bernoulli")
    assert len(set(keep.sum(0))) > 1


def test_median_skips_the_target_for_odd_and_even_groups():
    phi = np.array([[1.0], [2.0], [4.0], [8.0], [10.0], [20.0], [40.0]])
    keep = np.array([[True]] * 4 + [[False]] * 3)
    mu, _ = leave_one_out(phi, keep, "median", None)
    # of 2 4 8, 1 4 8, 1 2 8, 1 2 4; the others see 1 2 4 8
    assert mu.ravel().tolist() == [4, 4, 2, 2, 3, 3, 3]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), variant=st.sampled_from(VARIANTS))
def test_scores_follow_a_permutation_of_samples(seed, variant):
    phi, keep = noise(seed=seed)
    order = np.random.default_rng(seed).permutation(phi.shape[1])
    options = dict(zip(("attack", "centre", "variance"), variant))
    got, permuted = lira_scores(phi, keep, **options), lira_scores(phi[:, order], keep[:, order], **options)
    np.testing.assert_allclose(permuted, got[:, order], rtol=1e-9, atol=1e-9)  # sums in another order


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), variant=st.sampled_from(VARIANTS))
def test_scores_follow_a_permutation_of_models(seed, variant):
    phi, keep = noise(seed=seed)
    order = np.random.default_rng(seed).permutation(len(phi))
    options = dict(zip(("attack", "centre", "variance"), variant))
    got, permuted = lira_scores(phi, keep, **options), lira_scores(phi[order], keep[order], **options)
    np.testing.assert_allclose(permuted, got[order], rtol=1e-9, atol=1e-9)


@every_variant
def test_spread_between_samples_does_not_enter(attack, centre, variance):
    phi, keep = noise()
    got = lira_scores(phi, keep, attack=attack, centre=centre, variance=variance)
    shifted = phi + 1000 * np.random.default_rng(1).normal(size=phi.shape[1])
    moved = lira_scores(shifted, keep, attack=attack, centre=centre, variance=variance)
    np.testing.assert_allclose(moved, got, rtol=1e-8, atol=1e-8)  # phi itself is rounded by 1e-13 at 1,000


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 10), centre=st.sampled_from(["mean", "median"]))
def test_online_scores_do_not_change_with_the_scale_of_phi(seed, scale, centre):
    phi, keep = noise(seed=seed)
    got, scaled = lira_scores(phi, keep, centre=centre), lira_scores(scale * phi, keep, centre=centre)
    np.testing.assert_allclose(scaled, got, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attack", ["offline-cdf", "offline-density"])
@pytest.mark.parametrize("variance", ["pooled", "per-sample"])
def test_offline_scores_of_non_members_ignore_all_members(attack, variance):
    phi, keep = noise()
    other = np.where(keep, 10 * phi + 3, phi)
    got, changed = (lira_scores(x, keep, attack=attack, variance=variance) for x in (phi, other))
    np.testing.assert_array_equal(changed[~keep], got[~keep])


@pytest.mark.parametrize("variance", ["pooled", "per-sample"])
def test_in_and_out_keep_their_own_variance(variance):
    rng = np.random.default_rng(0)
    keep = draw_keep(40, 200, "balanced")
    phi = rng.normal(0, np.where(keep, 3.0, 0.3))

    def over(mask):
        return _pooled_variance(phi, mask, [slice(0, 7), slice(7, None)]) if variance == "pooled" else None

    _, inside = leave_one_out(phi, keep, "mean", over(keep))
    _, outside = leave_one_out(phi, ~keep, "mean", over(~keep))
    # 200 samples with 19 degrees of freedom: the mean variance has a relative error of sqrt(2 / 3800) = 0.023
    assert inside.mean() == pytest.approx(9, rel=0.1)
    assert outside.mean() == pytest.approx(0.09, rel=0.1)


@every_variant
def test_every_attack_finds_a_strong_signal(attack, centre, variance):
    phi, keep = noise(20, 200, signal=3.0)
    scores = lira_scores(phi, keep, attack=attack, centre=centre, variance=variance)
    assert roc_auc_score(keep.ravel(), scores.ravel()) > 0.9  # known Gaussians 3 apart: 0.983


@pytest.mark.parametrize("attack", ["offline-cdf", "offline-density"])
def test_online_and_offline_point_the_same_way(attack):
    phi, keep = noise(20, 200, signal=3.0)
    online, offline = (lira_scores(phi, keep, attack=name) for name in ("online", attack))
    assert spearmanr(online.ravel(), offline.ravel()).statistic > 0.5


@pytest.mark.parametrize(("models", "same_as"), [(63, "pooled"), (64, "per-sample")])
def test_auto_switches_at_64_models(models, same_as):
    phi, keep = noise(models, 30, "bernoulli")
    auto = lira_scores(phi, keep, variance="auto")
    np.testing.assert_array_equal(auto, lira_scores(phi, keep, variance=same_as))
    other = {"pooled": "per-sample", "per-sample": "pooled"}[same_as]
    assert not np.allclose(auto, lira_scores(phi, keep, variance=other))


@pytest.mark.parametrize(("count", "variance"), [(1, "pooled"), (2, "per-sample")])
@pytest.mark.parametrize("flip", [False, True])
def test_too_few_models_on_one_side_is_an_error(count, variance, flip):
    phi, keep = noise()
    keep[:, 3] = np.arange(len(keep)) < count
    who = "did not train" if flip == (count > 0) else "trained"
    line = (
        rf"1 of 9 samples have fewer than {count + 1} models that {who} on them, the first is number 3 .*part_of\(run\)"
    )
    with pytest.raises(UserError, match=line):
        lira_scores(phi, keep ^ flip, variance=variance)
    scored = part_of(as_run(phi[None], keep ^ flip), least=count + 1)
    assert scored.sizes["sample"] == 8
    lira_scores(scored.phi.values[0], scored.keep.values, variance=variance)


def test_smallest_allowed_groups_give_finite_scores():
    phi, keep = noise()
    for count, variance in ((2, "pooled"), (3, "per-sample")):
        keep[:, 3] = np.arange(len(keep)) < count
        assert np.isfinite(lira_scores(phi, keep, variance=variance)).all()


def test_a_target_that_is_a_member_everywhere_beside_one_other_model_leaves_no_variance():
    phi, _ = noise(4, 4)
    keep = np.repeat([[True], [True], [False], [False]], 4, axis=1)  # one other member a sample: no residual at all
    with pytest.raises(UserError, match="more shadow models"):
        lira_scores(phi, keep, variance="pooled")


@pytest.mark.parametrize("option", ["attack", "centre", "variance"])
def test_unknown_options_are_errors(option):
    phi, keep = noise()
    with pytest.raises(UserError, match=f"unknown {option} 'nearly'"):
        lira_scores(phi, keep, **{option: "nearly"})


def test_constant_phi_gives_finite_scores():
    _, keep = noise()
    for attack in LIRA:
        assert np.isfinite(lira_scores(np.zeros(keep.shape), keep, attack=attack)).all()


def test_downdating_keeps_digits_at_large_offsets():
    phi, keep = noise(signal=1.0)
    got = lira_scores(phi + 1e6, keep, variance="per-sample")
    # phi at 1e6 is rounded by 1e-10; sum(x^2) - sum(x)^2 would lose 1e12 * 2e-16 = 2e-4 of the variance
    np.testing.assert_allclose(got, lira_scores(phi, keep, variance="per-sample"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variance", ["pooled", "per-sample"])
def test_noise_gives_no_positive_advantage(variance):
    advantage = []
    for seed in range(5):
        phi, keep = noise(20, 500, "bernoulli", seed)
        flagged = lira_scores(phi, keep, variance=variance) > 0
        advantage.append(flagged[keep].mean() - flagged[~keep].mean())
    # 5 x 10,000 pairs: the sampling error is about 0.0045; the leave-one-out bias is slightly negative
    assert -0.1 < np.mean(advantage) < 0.01


@every_variant
def test_blocks_of_samples_score_like_all_at_once(attack, centre, variance, monkeypatch):
    phi, keep = noise(12, 300, signal=1.0)
    assert phi.shape[1] < BLOCK
    whole = lira_scores(phi, keep, attack=attack, centre=centre, variance=variance)
    monkeypatch.setattr("dynmia.attack.lira.BLOCK", 7)
    np.testing.assert_allclose(
        lira_scores(phi, keep, attack=attack, centre=centre, variance=variance), whole, rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int64, np.float32, object])
def test_a_keep_mask_of_any_type_scores_as_bool(kind):
    phi, keep = noise(signal=1.0)
    np.testing.assert_array_equal(lira_scores(phi, keep.astype(int).astype(kind)), lira_scores(phi, keep))
    np.testing.assert_array_equal(lira_scores(phi.tolist(), keep.tolist()), lira_scores(phi, keep))


def put(array, value, kind=float):
    changed = array.astype(kind)
    changed[3, 4] = value
    return changed


PHI, KEEP = noise()
BAD_ARRAYS = {
    "two": (PHI, put(KEEP, 2, np.uint8), r"of 108 values of keep \(uint8\), 1 are neither 0 nor 1, the first 2: write"),
    "minus one": (PHI, put(KEEP, -1, np.int8), "the first -1: write True or 1"),
    "a half": (PHI, put(KEEP, 0.5), "the first 0.5: write"),
    "NaN in keep": (PHI, put(KEEP, np.nan), "the first nan: write"),
    "None in keep": (PHI, put(KEEP, None, object), "the first None: write"),
    "no keep": (PHI, None, "neither 0 nor 1, the first None"),
    "text": (PHI, KEEP.astype(str), r"keep \(<U5\), 108 are neither"),
    "turned": (PHI, KEEP.T, r"phi has shape \(12, 9\) and keep \(9, 12\): both must be \(models, samples\)"),
    "a line": (PHI[0], KEEP[0], r"phi has shape \(9,\)"),
    "nothing": (PHI[:, :0], KEEP[:, :0], r"phi has shape \(12, 0\)"),
    "NaN": (put(PHI, np.nan), KEEP, r"108 values of phi, 1 are not finite, the first \(nan\) at model 3, sample 4"),
    "infinite": (put(PHI, -np.inf), KEEP, r"the first \(-inf\) at model 3, sample 4"),
    "complex": (PHI + 0j, KEEP, "phi is of type complex128: it must be of numbers"),
    "objects": (PHI.astype(object), KEEP, "phi is of type object"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_cannot_be_scored_are_one_line(name):
    phi, keep, line = BAD_ARRAYS[name]
    with pytest.raises(UserError, match=line):
        lira_scores(phi, keep)

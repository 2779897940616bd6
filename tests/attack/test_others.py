import numpy as np
import pytest
from helpers import signal_run
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dynmia import UserError, vulnerability_plane
from dynmia.attack.others import OTHERS, attack_scores, rmia, rmia_offline
from dynmia.attack.scoring import ATTACKS, LOG_ODDS, Scoring
from dynmia.pool.pool import draw_keep

every_attack = pytest.mark.parametrize("attack", OTHERS)


def sample_run(models=8, samples=24, signal=1.5, seed=0, design="bernoulli"):
    """phi with hard and easy samples, keep, and three classes."""
    rng = np.random.default_rng(seed)
    keep = draw_keep(models, samples, design, seed)
    phi = rng.normal(3 * rng.normal(size=samples), 1, (models, samples)) + signal * keep
    return phi, keep, np.arange(samples) % 3


def naive_rmia(phi, keep, gamma, a=None):
    """The formula sample by sample, in 50 digits; a is None online."""
    models, samples = phi.shape
    with mp.workdps(50):
        p = [[1 / (1 + mp.exp(-mpf(value))) for value in row] for row in phi]
        scores = np.empty(phi.shape)
        for i in range(models):

            def ratio(z, i=i):
                inside = [p[j][z] for j in range(models) if j != i and keep[j, z]]
                outside = [p[j][z] for j in range(models) if j != i and not keep[j, z]]
                p_out = sum(outside) / len(outside)
                p_in = sum(inside) / len(inside) if a is None else mpf(a) * p_out + 1 - mpf(a)
                return p[i][z] / ((p_in + p_out) / 2)

            ratios = [ratio(z) for z in range(samples)]
            for x in range(samples):
                population = [z for z in range(samples) if not keep[i, z] and z != x]
                scores[i, x] = np.mean([ratios[x] / ratios[z] >= gamma for z in population])
    return scores


@pytest.mark.parametrize("gamma", [1.0, 2.0, 0.7])
def test_rmia_equals_a_loop_over_its_formula(gamma):
    phi, keep, labels = sample_run()
    np.testing.assert_allclose(rmia(phi, keep, labels, gamma=gamma), naive_rmia(phi, keep, gamma), atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("a", [0.3, 1.0])
def test_offline_rmia_equals_a_loop_over_its_formula(gamma, a):
    phi, keep, labels = sample_run(seed=1)
    got = rmia_offline(phi, keep, labels, gamma=gamma, a=a)
    np.testing.assert_allclose(got, naive_rmia(phi, keep, gamma, a), atol=1e-12)


def test_offline_rmia_with_a_of_one_ranks_by_the_ratio_to_the_out_models():
    phi, keep, labels = sample_run()
    p = 1 / (1 + np.exp(-phi))
    got = rmia_offline(phi, keep, labels, a=1.0)
    for i in range(len(phi)):
        rest = np.arange(len(phi)) != i
        ratio = [p[i, z] / p[rest & ~keep[:, z], z].mean() for z in range(phi.shape[1])]
        members = keep[i]  # all are compared with the same population, so the order is that of the ratio
        assert (np.diff(got[i, members][np.argsort(np.array(ratio)[members])]) >= 0).all()


def test_rmia_survives_confidences_that_round_to_zero_and_one():
    phi, keep, labels = sample_run()
    for scale in (30, 3000):
        scores = rmia(scale * phi, keep, labels)
        assert np.isfinite(scores).all()
        assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("attack", ["rmia", "rmia-offline"])
def test_non_members_of_one_target_score_uniformly(attack):
    # a non-member is ranked among the other non-members: each rank once
    phi, keep, labels = sample_run(samples=60)
    scores = OTHERS[attack](phi, keep, labels)
    for row, inside in zip(scores, keep):
        outside = int((~inside).sum())
        np.testing.assert_allclose(np.sort(row[~inside]), np.arange(outside) / (outside - 1), atol=1e-12)


def test_samples_that_dominate_all_are_told_apart_by_their_ratio():
    phi, keep, labels = sample_run(signal=9.0)
    scores = rmia(phi, keep, labels, ties=False)
    np.testing.assert_allclose(scores, rmia(phi, keep, labels), atol=1e-9)
    assert (np.abs(scores - 1) < 1e-9).sum() > 10
    assert len(np.unique(scores[0])) == scores.shape[1]


@pytest.mark.parametrize("attack", ["rmia-offline", "offline-cdf", "offline-density"])
def test_offline_attacks_ignore_what_members_do(attack):
    phi, keep, labels = sample_run()
    target = 0
    others = keep & (np.arange(len(phi)) != target)[:, None]
    changed = np.where(others, phi + 5, phi)
    before, after = (attack_scores(x, keep, labels, Scoring(attack))[target] for x in (phi, changed))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("attack", ["rmia", "rmia-offline", "shokri"])
def test_the_target_is_not_its_own_reference(attack):
    # raising one phi of the target moves that score alone: nothing learned from the others changes
    phi, keep, labels = sample_run(models=8, samples=40)
    target, x = 2, int(np.flatnonzero(keep[2])[0])  # a member: not in the target's population
    moved = phi.copy()
    moved[target, x] += 0.5
    before, after = (attack_scores(value, keep, labels, Scoring(attack))[target] for value in (phi, moved))
    same = np.arange(phi.shape[1]) != x
    np.testing.assert_array_equal(before[same], after[same])
    assert after[x] >= before[x]


def test_loss_is_the_cross_entropy():
    phi, keep, labels = sample_run()
    scores = attack_scores(phi, keep, labels, Scoring("loss"))
    np.testing.assert_allclose(scores, np.log(1 / (1 + np.exp(-phi))), rtol=1e-12)
    far = attack_scores(np.array([[800.0, -800.0]]), np.ones((1, 2), bool), np.zeros(2), Scoring("loss"))
    assert far.tolist() == [[0.0, -800.0]]


def test_shokri_equals_a_fit_on_the_records_of_the_other_half():
    phi, keep, labels = sample_run(models=8, samples=90, signal=2)
    got = attack_scores(phi, keep, labels, Scoring("shokri"))
    p = 1 / (1 + np.exp(-phi))
    for target in range(8):
        others = range(4, 8) if target < 4 else range(4)
        for label in range(3):
            samples = np.flatnonzero(labels == label)
            x = np.array([[np.log(p[j, z]), np.log1p(-p[j, z])] for j in others for z in samples])
            y = np.array([keep[j, z] for j in others for z in samples])
            middle, spread = x.mean(0), x.std(0)
            fitted = LogisticRegression(tol=1e-10, max_iter=10000).fit((x - middle) / spread, y)
            mine = np.stack([np.log(p[target, samples]), np.log1p(-p[target, samples])], 1)
            np.testing.assert_allclose(
                got[target, samples], fitted.decision_function((mine - middle) / spread), atol=1e-3
            )


def test_shokri_recovers_the_log_odds_of_beta_distributed_confidences():
    # log Beta(4, 2) / Beta(2, 2) is 2 log p - log(B(4, 2) / B(2, 2)): known in closed form
    rng = np.random.default_rng(0)
    keep = draw_keep(20, 2000, "balanced")
    p = np.where(keep, rng.beta(4, 2, keep.shape), rng.beta(2, 2, keep.shape))
    got = attack_scores(np.log(p / (1 - p)), keep, np.zeros(2000, int), Scoring("shokri"))
    expected = 2 * np.log(p) - np.log((1 / 20) / (1 / 6))
    np.testing.assert_allclose(got, expected, rtol=0.1, atol=0.1)  # the slope has a standard error of 2 %


def test_shokri_without_members_of_a_class_is_a_clear_error():
    phi, keep, labels = sample_run()
    keep[:, labels == 1] = False
    with pytest.raises(UserError, match="only one side of class 1"):
        attack_scores(phi, keep, labels, Scoring("shokri"))


def test_rmia_without_a_reference_model_is_a_clear_error():
    phi, keep, labels = sample_run()
    keep[:, 0] = [True] + [False] * 7
    with pytest.raises(UserError, match="no reference model"):
        rmia(phi, keep, labels)


@every_attack
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_scores_follow_a_permutation_of_samples(attack, seed):
    phi, keep, labels = sample_run(samples=45, seed=seed)
    order = np.random.default_rng(seed).permutation(45)
    got = attack_scores(phi, keep, labels, Scoring(attack))
    permuted = attack_scores(phi[:, order], keep[:, order], labels[order], Scoring(attack))
    np.testing.assert_allclose(permuted, got[:, order], rtol=1e-6, atol=1e-6)


@every_attack
def test_without_a_signal_the_attack_guesses(attack):
    phi, keep, labels = sample_run(models=20, samples=900, signal=0)
    auc = roc_auc_score(keep.ravel(), attack_scores(phi, keep, labels, Scoring(attack)).ravel())
    assert auc == pytest.approx(0.5, abs=0.02)


@every_attack
def test_a_strong_signal_is_found(attack):
    phi, keep, labels = sample_run(models=20, samples=300, signal=6)
    assert roc_auc_score(keep.ravel(), attack_scores(phi, keep, labels, Scoring(attack)).ravel()) > 0.85


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_plane_takes_every_attack_by_name(attack):
    run = signal_run(samples=200)
    plane = vulnerability_plane(run, Scoring(attack))
    assert plane.attrs["attack"] == attack
    scores = attack_scores(run.phi.values[-1], run.keep.values, run.label.values, Scoring(attack))
    decisions = expit(scores) if attack in LOG_ODDS else scores > float(plane.threshold[-1])
    np.testing.assert_allclose(plane.tp[-1], (decisions * run.keep.values).sum(0), rtol=1e-12)


def test_the_plane_names_an_unknown_attack():
    with pytest.raises(UserError, match="did you mean 'rmia'"):
        vulnerability_plane(signal_run(), Scoring("rima"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_bayes_is_for_log_odds_only(attack):
    run = signal_run(samples=200)
    if attack in LOG_ODDS:
        assert (vulnerability_plane(run, Scoring(attack, "bayes")).threshold == 0).all()
    else:
        with pytest.raises(UserError, match="needs a score that is a log-odds"):
            vulnerability_plane(run, Scoring(attack, "bayes"))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.float64, object])
@every_attack
def test_a_keep_mask_of_any_type_scores_as_bool(attack, kind):
    phi, keep, labels = sample_run()
    other = keep.astype(int).astype(kind)
    np.testing.assert_array_equal(OTHERS[attack](phi, other, labels), OTHERS[attack](phi, keep, labels))


@every_attack
def test_arrays_that_cannot_be_scored_are_one_line(attack):
    phi, keep, labels = sample_run()
    hole = np.where(np.arange(phi.size).reshape(phi.shape) == 30, np.nan, phi)
    for arrays, line in (
        ((hole, keep, labels), r"of 192 values of phi, 1 are not finite, the first \(nan\) at model 1, sample 6"),
        ((phi, keep + 1, labels), "neither 0 nor 1, the first 2"),
        ((phi, keep[:4], labels), r"phi has shape \(8, 24\) and keep \(4, 24\)"),
        ((phi, keep, labels[:3]), r"labels have shape \(3,\): they must be one a sample, \(24,\)"),
    ):
        with pytest.raises(UserError, match=line):
            OTHERS[attack](*arrays)


def test_options_of_rmia_out_of_range_are_named():
    for options, line in (({"gamma": 0}, "gamma is 0: it must be a number"), ({"a": 1.5}, "a is 1.5: .* from 0 to 1")):
        with pytest.raises(UserError, match=line):
            rmia_offline(*sample_run(), **options)


def test_shokri_says_how_many_models_there_are_and_how_many_a_fold_leaves():
    phi, keep, labels = sample_run(models=12)
    keep[6:, labels == 2] = True
    with pytest.raises(UserError, match="one side of class 2 in the half of 12 shadow models, 6, that one of"):
        attack_scores(phi, keep, labels, Scoring("shokri"))

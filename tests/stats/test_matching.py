import numpy as np
import pytest
import xarray as xr
from helpers import ACCURACY, STRENGTHS, run_that_fits

from dynmia import UserError, summarise, vulnerability_plane
from dynmia.chapters.factors import MATCHINGS, STATE, at_epochs, matched_epochs, state_curves
from dynmia.stats import intervals
from dynmia.stats.intervals import interval, score_halves
from dynmia.stats.matching import common_level, contrast, envelope, epoch_at, estimate, metrics_of, with_halves


def plane_of(**changes):
    return vulnerability_plane(run_that_fits(**changes), "lira:fpr@0.01")


def halved_of(**changes):
    return with_halves({"run": run_that_fits(**changes)}, "lira:fpr@0.01")["run"]


DELAYED = dict(strengths=(0, 0, *STRENGTHS[:-2]), accuracy=(0.1, 0.1, *ACCURACY[:-2]))


@pytest.fixture(scope="module")
def fast():
    return halved_of()


@pytest.fixture(scope="module")
def delayed():
    """The same run two checkpoints late; at the end it is where the fast one is two checkpoints before its end."""
    return halved_of(**DELAYED)


def difference(halved, matching, share=0.95):
    planes = {name: parts[0] for name, parts in halved.items()}
    found = at_epochs(state_curves(halved), matched_epochs(planes, matching, share))
    first, second = planes
    return found.sel(run=second) - found.sel(run=first)


def test_a_delayed_run_is_behind_at_equal_epoch(fast, delayed):
    behind = difference({"fast": fast, "delayed": delayed}, "epoch")
    for metric in ("auc", "advantage", "displacement", "vulnerable"):
        row = estimate(behind[metric])
        assert row.high < 0, metric
    before = vulnerability_plane(run_that_fits(), "lira:fpr@0.01").isel(epoch=-3)
    wanted = 1000 * float(before.advantage.mean() - fast[0].advantage.isel(epoch=-1).mean())
    assert float(behind.advantage[0]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("matching", ["train", "test"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.77, 0.95, 1.0])
def test_a_delayed_run_is_the_same_at_equal_accuracy(fast, delayed, matching, share):
    planes = {"fast": fast, "delayed": delayed}
    for metric, drawn in difference(planes, matching, share=share).items():
        np.testing.assert_allclose(drawn, 0, atol=1e-9, err_msg=metric)
    epochs = matched_epochs({name: parts[0] for name, parts in planes.items()}, matching, share)
    assert epochs["delayed"] - epochs["fast"] == pytest.approx(4)


def test_a_run_of_half_the_speed_on_other_checkpoints_is_the_same_at_equal_accuracy(fast):
    planes = {"fast": fast, "slow": halved_of(every=4)}
    for share in (0.3, 0.95):
        for metric, drawn in difference(planes, "train", share=share).items():
            np.testing.assert_allclose(drawn, 0, atol=1e-9, err_msg=metric)
    epochs = matched_epochs({name: parts[0] for name, parts in planes.items()}, "train")
    assert epochs["slow"] == pytest.approx(2 * epochs["fast"])
    assert estimate(difference(planes, "epoch").advantage).high < 0  # both are read at the end of the shorter one


def test_a_run_that_leaks_more_for_what_it_has_learnt_is_ahead_at_equal_accuracy(fast):
    leaky = halved_of(strengths=(0, *STRENGTHS[2:], 6))
    for matching in ("train", "test"):
        row = estimate(difference({"fast": fast, "leaky": leaky}, matching).advantage)
        assert row.low > 0


def test_epochs_by_hand_on_the_envelope():
    plane = plane_of(strengths=(0, 1, 2, 3), accuracy=(0.1, 0.5, 0.4, 0.9))
    np.testing.assert_allclose(envelope(plane, "train"), [0.1, 0.5, 0.5, 0.9])
    np.testing.assert_allclose(envelope(plane, "test"), [0.05, 0.25, 0.25, 0.45])
    for level, epoch in ((0.1, 0), (0.3, 1), (0.5, 2), (0.7, 5), (0.9, 6)):
        assert epoch_at(plane, "train", level) == pytest.approx(epoch)
    assert np.isnan(epoch_at(plane, "train", 0.95))
    assert np.isnan(epoch_at(plane, "train", 0.05))


def test_common_level_lies_in_the_rise_of_all():
    fast, delayed = plane_of(), plane_of(**DELAYED)
    # both start at 0.1; the delayed one ends at 0.7
    assert common_level({"a": fast, "b": delayed}, "train") == pytest.approx(0.1 + 0.95 * 0.6)
    assert common_level({"a": fast, "b": delayed}, "train", 0.5) == pytest.approx(0.4)
    late = plane_of(strengths=(0, 1), accuracy=(0.8, 1.0))
    early = plane_of(strengths=(0, 1), accuracy=(0.1, 0.8))
    with pytest.raises(UserError, match="no train accuracy that all runs pass through"):
        common_level({"a": late, "b": early}, "train")
    with pytest.raises(UserError, match="unknown accuracy 'own'"):
        common_level({"a": late, "b": late}, "own")


def test_best_held_out_accuracy_is_each_runs_own():
    fast = plane_of()
    peaked = plane_of(held_out=(0.1, 0.3, 0.6, 0.5, 0.6, 0.4))  # the first of two equal peaks
    assert matched_epochs({"fast": fast, "peaked": peaked}, "best") == {"fast": 10, "peaked": 4}
    with pytest.raises(UserError, match="unknown matching 'loss'"):
        matched_epochs({"fast": fast}, "loss")


def test_state_curves_end_where_the_summary_does():
    fast = plane_of()
    table = summarise(run_that_fits(), "lira:fpr@0.01")
    last = state_curves({"fast": [fast]})["fast"].isel(epoch=-1, draw=0)
    assert set(STATE) <= set(table.index)
    for metric in STATE:
        assert float(last[metric]) == pytest.approx(table.value[metric], rel=1e-12)
    peak = metrics_of({"fast": [fast]}, ["transition_peak"]).transition_peak
    assert peak.item() == table.value["transition_peak"]


def test_the_interval_is_that_of_the_package(fast):
    row = estimate(state_curves({"fast": fast})["fast"].advantage.isel(epoch=-1))
    ours = interval(run_that_fits(), "lira:fpr@0.01", over="both", only=["advantage"]).loc["advantage"]
    for column in ("value", "low", "high", "error"):
        assert row[column] == pytest.approx(ours[column], rel=1e-9)


def test_pairing_takes_out_what_runs_share(fast):
    other = halved_of(fresh=1)
    paired = estimate(difference({"a": fast, "b": other}, "epoch").advantage)
    alone = [estimate(state_curves({"a": parts})["a"].advantage.isel(epoch=-1)) for parts in (fast, other)]
    assert paired.high - paired.low < 0.9 * np.hypot(*[row.high - row.low for row in alone])
    same = estimate(difference({"a": fast, "b": fast}, "epoch").advantage)
    assert (same.value, same.error, np.isnan(same.low), np.isnan(same.high)) == (0, 0, True, True)  # no half moves it


def test_runs_on_different_pools_are_not_paired():
    run = run_that_fits()
    with pytest.raises(UserError, match="a, b are not on the same pool"):
        with_halves({"a": run, "b": run.assign_coords(sample=run.sample + 1)}, "lira:bayes")


def test_ratio_of_a_run_to_itself_is_one_and_needs_a_positive_base():
    a = xr.DataArray([20.0, 20.1, 19.9, 20.2, 19.8], dims="draw")
    same = contrast(a, a)
    assert (same.value, np.isnan(same.low), np.isnan(same.high)) == (1, True, True)  # no half moves it
    assert contrast(2 * a, a).value == 2
    b = xr.DataArray([1.0, 2.0, -1.0, 2.5, -2.0], dims="draw")
    assert contrast(a, b).high == np.inf
    assert contrast(a, -b)[["value", "low", "high"]].isna().all()


def test_contrasts_of_halves_are_those_of_intervals(fast, delayed):
    """Two runs by matching at the last epoch and by scored halves: one rule, one interval."""
    runs = run_that_fits(), run_that_fits(**DELAYED)
    scored = [score_halves(run, "lira:fpr@0.01", only=["displacement", "entropy_change"]) for run in runs]
    planes = {"fast": fast, "delayed": delayed}
    both = at_epochs(state_curves(planes), matched_epochs({k: v[0] for k, v in planes.items()}, "epoch"))
    for metric in ("displacement", "entropy_change"):
        for how, of in (("ratio", intervals.ratio), ("difference", intervals.difference)):
            row = contrast(*both[metric], metric, how)
            assert row[["value", "low", "high"]].tolist() == pytest.approx(of(*scored, metric)[:3].tolist(), rel=1e-9)


def test_every_matching_reads_each_run_at_a_moment_of_its_own():
    planes = {"fast": plane_of(), "delayed": plane_of(**DELAYED)}
    for matching in MATCHINGS:
        for run, epoch in matched_epochs(planes, matching).items():
            assert 0 < epoch <= planes[run].epoch[-1]

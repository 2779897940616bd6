from functools import partial

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers import plane_of, run_of_four_checkpoints

from dynmia import UserError, vulnerability_plane
from dynmia import dynamics as dyn
from dynmia.attack.scoring import Scoring
from dynmia.book import maker, read_table
from dynmia.chapters import definitions, sensitivity
from dynmia.chapters.definitions import BALANCED, DEPENDS, MAIN, REFERENCE, SMALL
from dynmia.chapters.sensitivity import CLAIMS, margin_name, outcomes
from dynmia.dynamics.metrics import METRICS
from dynmia.stats.resample import bootstrap_weights, null_masks
from dynmia.store.run import resolve

made = maker("sensitivity")
Choice, Claim, choices, interval, measure = made.Choice, made.Claim, made.choices, made.interval, made.measure
RUN = run_of_four_checkpoints()


def test_cuts_of_the_states_by_hand():
    # TPR and FPR of 0, 0.3, 0.4, 0.6, 0.7, 1; a cut itself lies in the middle
    tenths = [[0, 3, 4, 6, 7, 10]]
    plane = plane_of(tenths, tenths)
    for cuts, expected in (
        (dyn.CUTS, [0, 0, 4, 4, 8, 8]),
        ((0.3, 0.7), [0, 4, 4, 4, 4, 8]),
        ((0.4, 0.6), [0, 0, 4, 4, 8, 8]),
        ((0.25, 0.75), [0, 4, 4, 4, 4, 8]),
    ):
        assert dyn.states(plane, cuts).values.tolist() == [expected]


def test_every_choice_differs_from_the_reference_in_one_thing():
    among = choices(RUN)
    assert len({choice.label for choice in among}) == len(among)
    for choice in among[1:]:
        fields = ("rule", "variance", "centre", "cuts", "bins", "step", "run")
        assert sum(getattr(choice, name) != getattr(REFERENCE, name) for name in fields) == 1


@pytest.mark.parametrize(("checkpoints", "every"), [
    (21, [6, 12, 15]), (13, [6, 12]), (4, []),
])  # fmt: skip
def test_intervals_keep_the_first_and_the_last_checkpoint(checkpoints, every):
    run = xr.Dataset(coords={"epoch": 3 * np.arange(checkpoints)})
    found = [choice for choice in choices(run) if choice.kind == "interval"]
    assert [choice.label for choice in found] == [f"every {epochs} epochs" for epochs in every]
    for choice in found:
        assert run.epoch[:: choice.step][-1] == run.epoch[-1]


def test_the_reference_has_the_bootstrap_interval_over_samples():
    got, plane = measure(RUN, [REFERENCE], 50), vulnerability_plane(RUN)
    for metric in DEPENDS["reference"]:
        row, of = interval(got[REFERENCE.label, metric], metric), METRICS[metric]
        value, drawn = float(of.of(plane, None)), of.of(plane, bootstrap_weights(plane, 50)).values
        low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975]) if np.isfinite(value) else (np.nan,) * 2
        low, high = (2 * value - high, 2 * value - low) if of.biased else (low, high)
        expected = [value, max(low, of.low), max(high, of.low)]
        assert [row[key] for key in ("value", "low", "high")] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(("choice", "metric"), [
    (Choice("rule", "x", rule="bayes"), "displacement"), (Choice("centre", "x", centre="median"), "displacement"),
    (Choice("variance", "x", variance="per-sample"), "auc"), (Choice("cuts", "x", cuts=(0.05, 0.95)), "vulnerable"),
    (Choice("grid", "x", bins=4), "entropy_change"), (Choice("interval", "x", step=3), "speed_mean"),
])  # fmt: skip
def test_a_choice_changes_what_it_says(choice, metric):
    run = RUN.assign_coords(epoch=[0, 1, 3, 6])  # uneven, so that an interval shows
    plane = vulnerability_plane(run, Scoring("online", choice.rule, choice.centre, choice.variance))
    if choice.kind == "cuts":
        value = 100 * ((plane.fpr < 0.05) & (plane.tpr > 0.95)).values[-1].mean()
    elif choice.kind == "grid":
        value = float(dyn.spatial_entropy(plane, bins=4)[-1] - dyn.spatial_entropy(plane, bins=4)[0])
    elif choice.kind == "interval":
        value = 1000 * np.hypot(*(plane[axis].values[-1] - plane[axis].values[0] for axis in ("fpr", "tpr"))).mean() / 6
    else:
        value = float(METRICS[metric].of(plane, None))
    got = measure(run, [REFERENCE, choice], 0)
    assert got["x", metric].item() == pytest.approx(value, rel=1e-12)
    assert got["x", metric].item() != got[REFERENCE.label, metric].item()
    assert set(got["x"]) == set(DEPENDS[choice.kind])


def test_choices_change_only_what_they_are_said_to_change():
    got = measure(RUN, choices(RUN), 0)
    for choice in [c for c in choices(RUN) if not c.run]:
        plane = vulnerability_plane(RUN, Scoring("online", choice.rule, choice.centre, choice.variance))
        plane = plane.isel(epoch=slice(None, None, choice.step))
        plane = plane.assign(state=dyn.states(plane, choice.cuts))
        for metric in set(DEPENDS["reference"]) - set(DEPENDS[choice.kind]):
            value = float(METRICS[metric].of(plane, None))
            assert value == pytest.approx(got[REFERENCE.label, metric].item(), rel=1e-12)


def test_interval_of_a_margin_has_no_floor_and_a_stricter_upper_end():
    drawn = pd.Series([0.0, *np.linspace(-1, 1, 2001)])
    one, four = interval(drawn, "displacement", 1), interval(drawn, "displacement", 4)
    assert [one["low"], one["high"]] == pytest.approx([-0.95, 0.95], abs=1e-6)
    assert [four["low"], four["high"]] == pytest.approx([-0.95, 1 - 2 * 0.025 / 4], abs=1e-6)
    basic = interval(drawn + np.r_[0.0, np.full(2001, 0.5)], "transition_peak", 4)
    assert [basic["low"], basic["high"]] == pytest.approx([-1.45, 1 - 0.5 - 2 * 0.025 / 4], abs=1e-6)
    assert interval(drawn, "transition_peak")["low"] == 0


def test_an_undefined_estimate_has_no_interval():
    assert np.isnan(interval(pd.Series([np.nan, 1, 2]), "early_recall")["low"])
    assert np.isnan(interval(pd.Series([1.0, np.nan, np.nan]), "early_recall")["low"])


def test_a_design_stands_for_the_run_of_its_pool_or_for_the_main_one():
    alone = Claim("x", "vulnerable", ((MAIN, "", 0.0, 0.0),))
    ladder = Claim("x", "displacement", ((SMALL, MAIN, 1.0, 0.0), ("a", SMALL, 1.0, 0.0)))
    other = Claim("x", "displacement", ((MAIN, "b", 1.0, 0.0),))
    assert alone.under(BALANCED) == [(BALANCED, "", 0.0, 0.0)]
    assert ladder.under(BALANCED) == [(BALANCED, MAIN, 1.0, 0.0), ("a", BALANCED, 1.0, 0.0)]
    assert other.under(BALANCED) == []
    assert other.under("") == [(MAIN, "b", 1.0, 0.0)]


@pytest.mark.parametrize(("margins", "word"), [
    ([(1, 2), (0.1, 3)], "holds"), ([(1, 2), (-1, 1)], "not resolved"), ([(1, 2), (-2, -1)], "does not hold"),
    ([(-1, 1), (-2, -1)], "does not hold"), ([(1, 2), (np.nan, np.nan)], "not resolved"), ([(1, 2)], "does not apply"),
])  # fmt: skip
def test_outcomes_by_hand(monkeypatch, margins, word):
    claim = Claim("x", "auc", (("a", "b", 1.0, 0.0), ("b", "", 0.0, 2.0)))
    monkeypatch.setattr(sensitivity, "CLAIMS", [claim])
    names = ["a - 1 b", "b - 2"]
    rows = {(name, REFERENCE.label, "auc"): {"low": low, "high": high} for name, (low, high) in zip(names, margins)}
    table = pd.DataFrame.from_dict(rows, "index")
    assert outcomes(table, [REFERENCE]).loc["x", REFERENCE.label] == word


def test_names_of_margins():
    assert margin_name(("a", "b", 2.0, 0.0)) == "a - 2 b"
    assert margin_name(("a", "", 0.0, 70.0)) == "a - 70"
    assert margin_name(("a", "", 0.0, 0.0), noise=True) == "a - no signal"


def test_a_design_within_the_spread_of_populations():
    values = [10.0, 11.0, 12.0, 13.0, 14.0]
    rows = {
        (name, REFERENCE.label, "auc"): {"value": v, "low": v, "high": v} for name, v in zip(definitions.SEEDS, values)
    }
    rows[BALANCED, REFERENCE.label, "auc"] = {"value": 17.0, "low": 16.0, "high": 18.0}
    row = definitions.designs(pd.DataFrame.from_dict(rows, "index")).loc["auc"]
    half = 2.7764451 * np.sqrt(2.5) * np.sqrt(1.2)  # t of 4 degrees of freedom
    assert [row.bernoulli, row.expect_low, row.expect_high] == pytest.approx([12, 12 - half, 12 + half])


def test_verdict_sorts_what_is_firm_from_what_depends(monkeypatch):
    claims = [Claim("firm", "auc", ()), Claim("open", "entropy_change", ()), Claim("unasked", "auc", ())]
    monkeypatch.setattr(sensitivity, "CLAIMS", claims)
    among = [REFERENCE, Choice("rule", "bayes", rule="bayes"), Choice("centre", "median", centre="median")]
    words = pd.DataFrame(
        [["holds", "holds", "holds"], ["holds", "does not hold", "not resolved"], ["does not apply"] * 3],
        index=["firm", "open", "unasked"], columns=[c.label for c in among],
    )  # fmt: skip
    first, second = sensitivity.verdict(words, among)
    assert first.startswith("1 of 2 conclusions hold")
    assert "firm (3)" in first
    assert second.startswith("Open: holds under 1 of 3; does not hold under bayes; not resolved under median.")
    assert "rule spreads the cloud" in second


def test_every_reason_is_of_a_claim():
    assert {metric for metric, _ in sensitivity.REASONS} <= {claim.metric for claim in CLAIMS}
    assert all(metric in DEPENDS[kind] for metric, kind in sensitivity.REASONS)


def test_a_folder_without_runs_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="lacks mnist-cnn-4000"):
        made.compute(tmp_path)
    with pytest.raises(UserError, match="makes it"):
        read_table(tmp_path / "sensitivity.csv").sort_index()


def test_the_table_of_equal_runs(monkeypatch, tmp_path):
    for name in (*definitions.RUNS.values(), SMALL, BALANCED):
        (tmp_path / f"{name}.nc").touch()
    monkeypatch.setattr(made, "open_run", lambda path: RUN)
    few = [REFERENCE, Choice("rule", "bayes", rule="bayes"), Choice("design", "balanced", run=BALANCED)]
    monkeypatch.setattr(made, "choices", lambda run: few)
    monkeypatch.setattr(made, "compute", partial(made.compute, null=10))
    made.main(str(tmp_path))
    table = read_table(tmp_path / "sensitivity.csv").sort_index()
    drawn, noise = measure(RUN, few, 400), [measure(RUN, few, 0, keep=keep) for keep in null_masks(RUN, 10)]
    for label, run in ((REFERENCE.label, MAIN), ("bayes", MAIN), ("balanced", BALANCED)):
        key = (few[label == "bayes"].label, "entropy_change")
        value = table.value[f"{run} - no signal", label, "entropy_change"]
        bound = max(0.0, *(one[key].item() for one in noise))
        assert value == pytest.approx(drawn[key].iloc[0] - bound, rel=1e-5)
    words = outcomes(table, few)
    assert set(words.loc[f"displacement: {made._ORDER}"]) == {"not resolved", "does not apply"}  # ties
    assert words.loc["mean speed: CINIC-10 above twice MNIST", "bayes"] == "does not hold"
    assert words.loc["displacement: deeper CNN above shallow", "bayes"] == "does not apply"  # no run of it


def test_the_released_table_is_complete_and_says_how_it_was_made():
    made_by = resolve("data/sensitivity.csv").read_text().partition("\n")[0]
    assert made_by.startswith("# made by: ")
    assert "sensitivity" in made_by
    table = read_table("data/sensitivity.csv").sort_index()
    assert table.index.is_unique
    assert (table.low <= table.high).where(table.low.notna(), True).all()
    margins = {(margin_name(m, claim.noise), claim.metric) for claim in CLAIMS for m in claim.margins}
    assert margins <= set(zip(table.index.get_level_values("run"), table.index.get_level_values("metric")))

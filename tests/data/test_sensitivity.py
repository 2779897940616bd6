from functools import partial

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers import plane_of, run_of_four_checkpoints

from dynmia import UserError, vulnerability_plane
from dynmia import dynamics as dyn
from dynmia.attack.plane import halves, numbers_of_halves
from dynmia.attack.scoring import Scoring
from dynmia.book import figures, maker, read_table
from dynmia.chapters import definitions
from dynmia.chapters.definitions import BALANCED, DEPENDS, MAIN, REFERENCE, SMALL
from dynmia.chapters.sensitivity import outcomes
from dynmia.dynamics.metrics import METRICS
from dynmia.stats.intervals import ends, score_halves
from dynmia.stats.resample import null_summary
from dynmia.stats.simulate import Simulator
from dynmia.store.run import resolve

made = maker("sensitivity")
Measured, claims, judge = made.verdicts.Measured, made.verdicts.claims, made.verdicts.judge
Choice, choices, measure = made.Choice, made.choices, made.measure
RUN = run_of_four_checkpoints()
SIMULATED = Simulator(samples=80, separation=2, seed=1).run(20, seed=1)


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


def test_the_reference_has_the_interval_of_the_study():
    got = ends(measure(SIMULATED, [REFERENCE])[REFERENCE.label])
    expected = ends(score_halves(SIMULATED, "lira:fpr@0.01", only=DEPENDS["reference"]))
    pd.testing.assert_frame_equal(got, expected)


@pytest.mark.parametrize(("choice", "metric"), [
    (Choice("rule", "x", rule="lira:bayes"), "displacement"), (Choice("centre", "x", centre="median"), "displacement"),
    (Choice("variance", "x", variance="per-sample"), "auc"), (Choice("cuts", "x", cuts=(0.05, 0.95)), "vulnerable"),
    (Choice("grid", "x", bins=4), "entropy_change"), (Choice("interval", "x", step=3), "speed_mean"),
])  # fmt: skip
def test_a_choice_changes_what_it_says(choice, metric):
    run = RUN.assign_coords(epoch=[0, 1, 3, 6])  # uneven, so that an interval shows
    plane = vulnerability_plane(run, Scoring.of(choice.rule, centre=choice.centre, variance=choice.variance))
    if choice.kind == "cuts":
        value = 100 * ((plane.fpr < 0.05) & (plane.tpr > 0.95)).values[-1].mean()
    elif choice.kind == "grid":
        value = float(dyn.spatial_entropy(plane, bins=4)[-1] - dyn.spatial_entropy(plane, bins=4)[0])
    elif choice.kind == "interval":
        value = 1000 * np.hypot(*(plane[axis].values[-1] - plane[axis].values[0] for axis in ("fpr", "tpr"))).mean() / 6
    else:
        value = float(METRICS[metric].of(plane, None))
    got = measure(run, [REFERENCE, choice], 0)
    assert got["x"].value[metric] == pytest.approx(value, rel=1e-12)
    assert got["x"].value[metric] != got[REFERENCE.label].value[metric]
    assert set(got["x"].value.index) == set(DEPENDS[choice.kind])


def test_choices_change_only_what_they_are_said_to_change():
    got = measure(RUN, choices(RUN), 0)
    for choice in [c for c in choices(RUN) if not c.run]:
        plane = vulnerability_plane(RUN, Scoring.of(choice.rule, centre=choice.centre, variance=choice.variance))
        plane = plane.isel(epoch=slice(None, None, choice.step))
        plane = plane.assign(state=dyn.states(plane, choice.cuts))
        for metric in set(DEPENDS["reference"]) - set(DEPENDS[choice.kind]):
            value = float(METRICS[metric].of(plane, None))
            assert value == pytest.approx(got[REFERENCE.label].value[metric], rel=1e-12)


@pytest.mark.parametrize("choice", [
    Choice("grid", "x", bins=4), Choice("cuts", "x", cuts=(0.05, 0.95)), Choice("interval", "x", step=2),
    Choice("centre", "x", centre="median"),
])  # fmt: skip
def test_halves_are_measured_as_the_whole_is(choice):
    scored = measure(SIMULATED, [choice])["x"]
    scoring = Scoring.of(choice.rule, centre=choice.centre, variance=choice.variance)
    for dim, part in (("sample", SIMULATED.isel(sample=next(numbers_of_halves(SIMULATED.sizes["sample"], 20)))),
                      ("model", next(halves(SIMULATED, "model", 20, 0, scoring)))):  # fmt: skip
        expected = measure(part, [choice], 0)["x"].value
        pd.testing.assert_series_equal(scored.halves[dim].iloc[0], expected, check_names=False)


def test_a_design_stands_for_the_run_of_its_pool_or_for_the_main_one():
    assert made.under([MAIN], BALANCED) == [BALANCED]
    assert made.under([MAIN, SMALL, "a"], BALANCED) == [MAIN, BALANCED, "a"]
    assert made.under([MAIN, "b"], BALANCED) == []
    assert made.under([MAIN, "b"], "") == [MAIN, "b"]


@pytest.mark.parametrize(("verdict", "word"), [
    ("agrees", "holds"), ("agrees elsewhere", "holds"), ("same direction", "holds"), ("present", "holds"),
    ("opposite", "opposite"), ("undecided", "undecided"), ("not measured", "undecided"),
])  # fmt: skip
def test_outcomes_by_hand(verdict, word):
    rows = {("order-auc", REFERENCE.label, "auc"): {"value": 1.0, "verdict": verdict},
            (MAIN, REFERENCE.label, "auc"): {"value": 1.0, "verdict": None}}  # fmt: skip
    table = pd.DataFrame.from_dict(rows, "index").rename_axis(["subject", "choice", "metric"])
    words = outcomes(table, [REFERENCE, Choice("rule", "bayes", rule="lira:bayes")])
    assert words.to_numpy().tolist() == [[word, "does not apply"]]


def test_what_is_asked_is_in_the_list_and_of_one_set_of_small_runs():
    listed = {claim.id: claim for claim in claims()}
    assert set(made.ASKED) <= set(listed)
    for name in made.ASKED:
        assert listed[name].measure in ("figure", "ratio", "smallest_step")
        assert len(listed[name].runs) == 1
        assert listed[name].of["metric"] in DEPENDS["reference"]


def test_a_design_within_the_spread_of_populations():
    values = [10.0, 11.0, 12.0, 13.0, 14.0]
    rows = {
        (name, REFERENCE.label, "auc"): {"value": v, "low": v, "high": v} for name, v in zip(definitions.SEEDS, values)
    }
    rows[BALANCED, REFERENCE.label, "auc"] = {"value": 17.0, "low": 16.0, "high": 18.0}
    row = definitions.designs(pd.DataFrame.from_dict(rows, "index")).loc["auc"]
    half = 2.7764451 * np.sqrt(2.5) * np.sqrt(1.2)  # t of 4 degrees of freedom
    assert [row.bernoulli, row.expect_low, row.expect_high] == pytest.approx([12, 12 - half, 12 + half])


def test_a_folder_without_runs_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="lacks mnist-cnn-4000"):
        made.compute(tmp_path)
    with pytest.raises(UserError, match="makes it"):
        read_table(tmp_path / "sensitivity.csv").sort_index()


def test_the_table_of_equal_runs(monkeypatch, tmp_path):
    for name in (*definitions.RUNS.values(), SMALL, BALANCED):
        (tmp_path / f"{name}.nc").touch()
    monkeypatch.setattr(made, "open_run", lambda path: SIMULATED)
    few = [REFERENCE, Choice("rule", "bayes", rule="lira:bayes"), Choice("design", "balanced", run=BALANCED)]
    monkeypatch.setattr(made, "choices", lambda run: few)
    monkeypatch.setattr(made, "compute", partial(made.compute, null=10))
    made.main(str(tmp_path))
    table = read_table(tmp_path / "sensitivity.csv")
    for reading, label in (("lira:fpr@0.01", REFERENCE.label), ("lira:bayes", "bayes")):
        noise = null_summary(SIMULATED, reading, draws=10).loc["vulnerable"]
        row = table.loc["vulnerable-cifar10", label, "vulnerable"]
        assert [row.null_low, row.null_high] == pytest.approx([noise.low, noise.high], rel=1e-5)
        assert row.verdict == judge("presence", np.nan, np.nan, Measured(*row.iloc[:5].astype(float)), True)
        assert table.loc["order-displacement", label, "displacement"].value == 1  # of runs that are one
    assert ("vulnerable-cifar10", "balanced", "vulnerable") in table.index
    assert ("displacement-deeper-cnn", "bayes", "displacement") not in table.index  # no run of it


def test_under_the_study_s_own_choice_the_table_is_that_of_figures_and_claims():
    table = read_table("data/sensitivity.csv").xs(REFERENCE.label, level="choice")
    judged = read_table("data/claims.csv").xs("lira:fpr@0.01", level="reading")
    assert len(table) > 80
    assert set(made.ASKED) <= set(table.index.get_level_values("subject"))
    for (subject, metric), row in table.iterrows():
        expected = (
            judged.loc[subject] if subject in judged.index else figures("data", "lira:fpr@0.01").loc[subject, metric]
        )
        numbers = ["value", "low", "high"]
        np.testing.assert_allclose(row[numbers].astype(float), expected[numbers].astype(float), rtol=1e-4, atol=1e-4)
        if subject in judged.index:
            assert row.verdict == expected.verdict


def test_the_released_table_is_complete_and_says_how_it_was_made():
    made_by = resolve("data/sensitivity.csv").read_text().partition("\n")[0]
    assert made_by.startswith("# made by: ")
    assert "sensitivity" in made_by
    table = read_table("data/sensitivity.csv")
    assert (table.low <= table.high).where(table.low.notna(), True).all()
    listed = {claim.id: claim for claim in claims()}
    for row in table[table.verdict.notna()].itertuples():
        claim = listed[row.Index[0]]
        ours = Measured(row.value, row.low, row.high, row.null_low, row.null_high)
        assert row.verdict == judge(claim.asserts, claim.than, np.nan, ours, not claim.settings)

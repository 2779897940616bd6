import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers import run_with

from dynmia import dynamics, study_of, vulnerability_plane
from dynmia.attack.scoring import ATTACKS, MODERATED, Scoring
from dynmia.book import maker
from dynmia.chapters import early, figures_attacks, figures_early, robustness
from dynmia.chapters.robustness import NAMES, order, survival, verdict
from dynmia.dynamics.metrics import EARLY
from dynmia.stats import intervals
from dynmia.stats.agreement import agreement, overlap, rank_agreement
from dynmia.stats.intervals import summarise
from dynmia.stats.resample import null_planes
from dynmia.stats.simulate import Simulator

script = maker("attacks")
ALONG_THE_WAY, AT_THE_ENDS, ends, final, measure = (
    script.ALONG_THE_WAY, script.AT_THE_ENDS, script.ends, script.final, script.measure
)  # fmt: skip


@pytest.fixture(scope="module")
def run():
    run = run_with([0, 0.5, 1, 2, 3, 4, 5, 5, 5], samples=200)
    study = study_of(run).replace(pool_size=200)
    return run.assign_attrs(study=json.dumps(study.to_dict()))


def test_every_attack_has_a_name():
    assert set(NAMES) == set(ATTACKS) - set(MODERATED)


def test_the_ends_are_all_that_the_metrics_there_need(run):
    part = ends(run)
    assert part.epoch.values.tolist() == [0, 6, 16]  # 3/8 of 16
    got, whole = (summarise(r, only=AT_THE_ENDS) for r in (part, run))
    pd.testing.assert_frame_equal(got, whole)


def test_measure_sets_the_null_of_the_same_attack_beside(run):
    table = measure(run, "rmia", null=2)
    planes = list(null_planes(run, Scoring("rmia"), draws=2))
    assert planes[0].attrs["attack"] == "rmia"
    pd.testing.assert_frame_equal(table, measure(run, "rmia", null=planes))
    ours = intervals.interval(run, Scoring("rmia"), "both", only=["displacement"]).loc["displacement"]
    assert table.loc["displacement", ["value", "low", "high"]].tolist() == ours[["value", "low", "high"]].tolist()
    values = [float(dynamics.displacement(p)[-1]) for p in planes]
    assert table.null_low["displacement"] == min(values)
    assert table.null_high["displacement"] == max(values)


def test_what_is_kept_of_a_plane_is_all_that_agreement_reads():
    run = Simulator(samples=80, checkpoints=3, separation=3).run()
    planes = [vulnerability_plane(run, Scoring(attack)) for attack in ("lira", "offline-density")]
    assert 0 < float(rank_agreement(*planes)) == float(rank_agreement(*map(final, planes))) < 1
    assert 0 < float(overlap(*planes)) == float(overlap(*map(final, planes))) < 1


def test_the_released_table_is_made_of_measure(run, monkeypatch):
    other = run.isel(sample=slice(100))
    monkeypatch.setattr(script, "released", lambda *_: {"one": run, "two": other})
    for module in (script, robustness):
        monkeypatch.setattr(module, "NAMES", {"lira": "LiRA", "loss": "loss threshold"})
    table = script.compute(rule="fpr@0.01", null=3).droplevel("rule")
    nulls = [list(null_planes(run, Scoring(attack, "fpr@0.01"), draws=3)) for attack in ("lira", "loss")]
    table, whole = table.sort_index(), measure(run, "loss", only=ALONG_THE_WAY, null=nulls[1])
    found = table.loc["one", "loss"].loc[list(ALONG_THE_WAY)]
    pd.testing.assert_frame_equal(found, whole.astype(float), check_names=False)
    ranks = [float(rank_agreement(*pair)) for pair in zip(*nulls)]
    assert table.loc[("one", "loss", "spearman"), "null_high"] == max(ranks)
    found = robustness.tables_of(table)
    assert list(found) == ["lira", "loss"]
    alone = measure(ends(other), "lira", "fpr@0.01", null=3).astype(float)
    pd.testing.assert_frame_equal(found["lira"]["two"].loc[alone.index, whole.columns], alone, check_names=False)
    assert found["loss"]["one"].unit["vulnerable"] == "%"


def row(value, width=1.0, null=(0.0, 1.0)):
    return {"value": value, "low": value - width, "high": value + width, "null_low": null[0], "null_high": null[1]}


def table_of(displacement, entropy=10.0, vulnerable=10.0, peak=12.0, recall=80.0):
    rows = {
        "displacement": row(displacement), "entropy_change": row(entropy), "vulnerable": row(vulnerable),
        "transition_peak_epoch": row(peak, 0), "early_recall": row(recall, 5),
    }  # fmt: skip
    return pd.DataFrame.from_dict(rows, "index").assign(null_value=0.5)


def test_order_is_sure_only_if_neighbours_are_apart():
    rows = {name: pd.Series(row(value)) for name, value in {"b": 20, "a": 10, "c": 30}.items()}
    assert order(rows) == (["a", "b", "c"], True)
    assert order(rows | {"d": pd.Series(row(31))}) == (["a", "b", "c", "d"], False)


def test_survival_by_hand():
    tables = {
        "lira": {"a": table_of(10), "b": table_of(20)},
        "rmia": {"a": table_of(20, entropy=-9, peak=15, recall=72), "b": table_of(21)},
        "shokri": {"a": table_of(30, peak=16, recall=60), "b": table_of(20, vulnerable=1.5)},
        "loss": {"a": table_of(1, vulnerable=0.5), "b": table_of(2, entropy=0.5)},
    }
    got = survival(tables, "a", ["a", "b"], step=3).values.tolist()
    assert got == [
        ["same, sure", "2 of 2", "2 of 2", "same, epoch 12", "yes, 80 %"],
        ["same", "1 of 2, 1 below", "2 of 2", "same, epoch 15", "undecided, 72 %"],
        ["other", "2 of 2", "1 of 2", "other, epoch 16", "no, 60 %"],
        ["same", "1 of 2", "1 of 2", "no one leaks", "no one leaks"],
    ]


def test_the_verdict_names_what_survives(run):
    names = ["lira", "rmia", "loss"]
    planes = {a: vulnerability_plane(run, Scoring(a)) for a in names}
    nulls = {a: list(null_planes(run, Scoring(a), draws=2)) for a in names}
    tables = {a: {"x": measure(run, a, only=ALONG_THE_WAY, null=nulls[a])} for a in names}
    agree = pd.concat({("lira", a): agreement(planes["lira"], planes[a], draws=20) for a in names[1:]})
    noise = pd.Series({a: max(float(rank_agreement(*p)) for p in zip(nulls["lira"], nulls[a])) for a in names[1:]})
    sentences = verdict(tables, agree, noise, "x", ["x"], 2)
    assert len(sentences) == 7
    assert "order of the data sets by displacement is LiRA's under 3 of 3 attacks" in sentences[0]
    assert sentences[2].endswith("under 2 of 3 attacks (LiRA; loss threshold).")  # on this run, whose samples are alike
    assert sentences[5].startswith("Samples rank alike")
    assert "nan" not in " ".join(sentences)


def test_first_reach_and_the_verdict_on_the_early_window(run):
    plane = vulnerability_plane(run, "lira:fpr@0.01")
    recall = dynamics.early_identification(plane).recall.values
    assert float(early.first_reach(plane)) == plane.epoch.values[np.argmax(recall >= 0.7)] / 16
    words, at = {"x": "X"}, {"x": 6}
    found = {"lira:fpr@0.01": {"x": early.prediction(plane, draws=20)}}
    control = {"lira:fpr@0.01": {"x": early.control(run, draws=20)}}
    for share, said in ((0.2, "earlier than 3/8"), (0.9, "later than 3/8"), (EARLY, "not told apart from 3/8")):
        when = pd.DataFrame({"value": share, "low": share - 0.05, "high": share + 0.05, "null_high": 0.5}, index=[0, 1])
        when.index = pd.MultiIndex.from_tuples([(m, "lira:fpr@0.01", "x") for m in ("recall_epoch", "early_recall")])
        sentences = early.verdict(when, found, control, at, words)
        assert len(sentences) == 4
        assert f"{said} of training: X ({share:.2f}" in sentences[0]
        assert f"level in {int(share - 0.05 > 0.5)} of 1 runs" in sentences[1]
        assert "above chance in 1 of 1 runs" in sentences[2]
        assert re.search(r"above chance in [01] of 1 runs, and keeps", sentences[3])


def test_control_is_the_mean_of_both_ways(run):
    got = early.control(run, "lira:bayes", score="now", draws=20)
    planes = [vulnerability_plane(part, "lira:bayes") for part in early.disjoint_halves(run)]
    finals = [dynamics.vulnerable(plane).isel(epoch=-1) for plane in planes]
    for kind, outcomes in zip(early.KINDS, (finals, finals[::-1])):
        ways = [early.prediction(p, o, scores=["now"], draws=20).value[0] for p, o in zip(planes, outcomes)]
        np.testing.assert_allclose(got.value.sel(kind=kind), (ways[0] + ways[1]) / 2)
    assert float(got.chance) == pytest.approx(float(xr.concat(finals, "half").mean()))


def test_figures_show_every_run_and_attack(run):
    planes = {a: vulnerability_plane(run, Scoring(a)) for a in ("lira", "rmia", "loss")}
    runs = {"one": run, "two": run.assign_attrs(study=run.attrs["study"].replace('"cnn"', '"mlp"'))}
    looks = figures_early.styles(runs)
    assert looks["one"]["color"] == looks["two"]["color"]
    assert looks["one"]["ls"] != looks["two"]["ls"]
    both = {name: vulnerability_plane(part, "lira:fpr@0.01") for name, part in runs.items()}
    drawn = [
        figures_early.early_panels(both, list(null_planes(run, draws=2)), draws=20),
        figures_early.prediction_panels({"one": {"now": early.prediction(both["one"], draws=20).sel(score="now")}}),
        figures_attacks.clouds(planes),
        figures_attacks.shares_over_epochs(
            planes, {"vulnerable (%)": lambda p, w: dynamics.population_mean(dynamics.vulnerable(p), w)}
        ),
    ]
    table = pd.concat({("LiRA", name): table_of(3.0 + k) for k, name in enumerate(runs)}, names=["group", "run"])
    table = table.rename_axis(["group", "run", "metric"]).reorder_levels(["metric", "group", "run"])
    drawn.append(figures_attacks.intervals(table, looks, {"displacement": "displacement (thousandths)"}))
    agree = pd.DataFrame({"value": [0.5], "low": [0.4], "high": [0.6]}, index=pd.MultiIndex.from_tuples([("a", "b")]))
    drawn.append(figures_attacks.matrices({"ranks": agree}, {"a": "A", "b": "B"}))
    texts = []
    for figure in drawn:
        figure.canvas.draw()
        texts.append([text.get_text() for text in figure.findobj(plt.Text)])
        plt.close(figure)
    assert {look["label"] for look in looks.values()} <= set(texts[0])
    assert {"now", "chance"} <= set(texts[1])
    assert set(planes) <= set(texts[2])
    assert set(planes) <= set(texts[3])
    assert {"LiRA", "no signal"} <= set(texts[4])
    assert "0.50\n±0.10" in texts[5]

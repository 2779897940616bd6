"""The list of runs, its command, and the table of their figures."""

import numpy as np
import pandas as pd
import pytest
import yaml

import dynmia
from dynmia import campaign, cli, hardness, intervals
from dynmia.errors import UserError
from dynmia.summary import METRICS, p_values, quantiles

LIST = {
    "defaults": {"dataset": "digits", "epochs": 2, "checkpoint_every": 1, "shadow_models": 6, "pool_size": 240},
    "scales": {"cpu": {}, "quick": {"pool_share": 0.5, "epochs": 1}},
    "runs": [
        {"name": "first", "chapters": ["02", "03"]},
        {"name": "second", "chapters": ["03"], "record": "hardness"},
        {"name": "lost", "chapters": ["04"], "dataset": "mnist"},
        {"name": "whole", "chapters": ["06"], "design": "all"},
    ],
}


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A small list of runs in a project of its own; the current folder is its root."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "campaign.yml").write_text(yaml.safe_dump(LIST))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(campaign, "project_root", lambda: tmp_path)
    monkeypatch.setattr(campaign, "resolve", lambda path: tmp_path / path)
    monkeypatch.setenv("DYNMIA_DATA", str(tmp_path))
    return tmp_path


def test_a_scale_and_changes_replace_fields(listed):
    assert [entry.name for entry in campaign.entries(only="03")] == ["first", "second"]
    entry = campaign.entries("quick", "02", {"optimizer": "sgd"})[0]
    assert (entry.study.pool_size, entry.study.epochs, entry.study.optimizer) == (120, 1, "sgd")
    assert campaign.entries("quick", "lost")[0].study.pool_size == 120


@pytest.mark.parametrize(
    ("scale", "only", "message"),
    [("qick", "", "did you mean 'quick'"), ("cpu", "05", "no run matches '05'")],
)
def test_bad_requests_are_named(listed, scale, only, message):
    with pytest.raises(UserError, match=message):
        campaign.entries(scale, only)


def test_a_bad_list_is_named(listed):
    (listed / "data" / "campaign.yml").write_text("runs: 3")
    with pytest.raises(UserError, match="is not a list of runs"):
        campaign.entries()


def test_a_campaign_trains_what_is_missing_skips_what_is_there_and_reports_what_failed(listed):
    lines = []
    with pytest.raises(UserError, match="1 runs failed: lost; the others are finished"):
        lines.extend(campaign.run_campaign(null=3, progress=False, device="cpu"))
    assert [line.split(":")[0] for line in lines] == ["first", "first", "second", "second", "lost", "whole"]
    assert "has no mnist.npz" in lines[4]
    assert set(campaign.released("03")) == {"first", "second"}
    assert campaign.missing("03") == []
    assert campaign.missing("04") == ["lost"]
    table = campaign.figures("data", "bayes")
    assert set(table.index) == {(run, metric) for run in ("first", "second") for metric in METRICS}
    assert ((table.p.dropna() > 0) & (table.p.dropna() <= 1)).all()
    mine = intervals.every(campaign.released("02")["first"], "bayes")
    np.testing.assert_allclose(table.loc["first"].value, mine.value, rtol=1e-6)
    assert dynmia.rounded(table.loc["first"]).iloc[:, -1].tolist() == dynmia.rounded(mine).iloc[:, -1].tolist()
    before = (listed / "data" / "figures.csv").read_bytes()
    assert list(campaign.run_campaign(only="03", null=3, progress=False)) == []
    assert (listed / "data" / "figures.csv").read_bytes() == before
    recorded = hardness.load(listed / "data" / "second.hardness.nc")
    assert {"part": 3, "epoch": 3, "sample": 240}.items() <= recorded.sizes.items()


def test_a_run_of_another_study_is_not_taken_for_the_listed_one(listed):
    list(campaign.run_campaign(only="02", null=0, progress=False, device="cpu"))
    assert not (listed / "data" / "figures.csv").exists()
    text = (listed / "data" / "campaign.yml").read_text().replace("pool_size: 240", "pool_size: 200")
    (listed / "data" / "campaign.yml").write_text(text)
    lines = []
    with pytest.raises(UserError, match="1 runs failed: first"):
        lines.extend(campaign.run_campaign(only="02", progress=False))
    assert campaign.missing("02") == []


def command(*words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["campaign", *words])
    assert stop.value.code in (0, None)


def test_the_command_plans_and_stops_at_its_budget(listed, capsys):
    command("--plan", "--only", "03", "--device", "cpu")
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out[:2]] == [["first", "missing"], ["second", "missing"]]
    command("--only", "03", "--time-budget", "0.001s", "--quiet")
    assert capsys.readouterr().out.count("the time is over") == 2
    command("--only", "02", "--set", "epochs=1", "--set", "seed=3", "--out", "x", "--null", "0", "--quiet")
    assert dynmia.study_of(dynmia.open_run("x/first.nc")).seed == 3


def test_the_released_list_and_the_released_runs_agree():
    for entry in campaign.entries():
        path = campaign.resolve(f"data/{entry.name}.nc")
        if path.exists():
            assert campaign._differs(dynmia.study_of(dynmia.open_run(path)), entry.study) == ""


def test_p_values_by_hand():
    five = [0.0, 1.0, 2.0, 3.0, 4.0]
    drawn = pd.DataFrame({"a": five, "b": [np.nan, 1.0, 1.0, 2.0, 0.0], "c": five, "d": five})
    p = p_values(pd.Series({"a": 4.0, "b": 9.0, "c": 5.0, "d": np.nan}), drawn)
    assert p["a"] == pytest.approx(3 / 6)  # from 7/3, 0 is further than 4, and the other 4 as far
    assert p["b"] == pytest.approx(1 / 5)
    assert p["c"] == pytest.approx(2 / 6)  # the mean of all is 2.5: 0 is as far as 5
    assert np.isnan(p["d"])
    table = quantiles(drawn)
    assert (table.low["a"], table.high["a"], table.value["a"]) == (0, 4, 2)


def test_p_values_are_exact():
    # whichever of 40 skewed values is the measured one: without a signal each p is as likely as any other
    values = np.random.default_rng(0).exponential(size=40)
    one = [p_values(pd.Series({"a": values[k]}), pd.DataFrame({"a": np.delete(values, k)}))["a"] for k in range(40)]
    np.testing.assert_allclose(sorted(one), np.arange(1, 41) / 40)

"""The list of runs, its command, and the table of their figures."""

import copy
import datetime
import functools
import operator
import os
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import assert_one_clear_line

import dynmia
from dynmia import cli, shadow
from dynmia.book import maker, makers, tables
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import UserError
from dynmia.stats import hardness, intervals
from dynmia.stats.resample import p_values, quantiles

campaign = maker("campaign")
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
    for module in (tables, makers, campaign):
        monkeypatch.setattr(module, "resolve", lambda path: tmp_path / path)
    monkeypatch.setenv("DYNMIA_DATA", str(tmp_path))
    return tmp_path


def test_a_scale_and_changes_replace_fields(listed):
    assert [entry.name for entry in tables.entries(only="03")] == ["first", "second"]
    entry = campaign.scaled("quick", "02", {"optimizer": "sgd"})[0]
    assert (entry.study.pool_size, entry.study.epochs, entry.study.optimizer) == (120, 1, "sgd")
    assert campaign.scaled("quick", "lost")[0].study.pool_size == 120


@pytest.mark.parametrize(
    ("scale", "only", "message"),
    [("qick", "", "did you mean 'quick'"), ("cpu", "05", "no run matches '05'")],
)
def test_bad_requests_are_named(listed, scale, only, message):
    with pytest.raises(UserError, match=message):
        campaign.scaled(scale, only)


FIRST = ("runs", 0)
DEEP = "a: &a0 [x, x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join(9 * [f'*a{k - 1}'])}]\n" for k in range(1, 30))
# what is wrong -> (place, value, or the whole text), parts of the one line
LISTS = {
    "empty": ("", ["campaign.yml is None", "defaults, scales, runs"]),
    "list": ("[1, 2]", ["is [", "mapping"]),
    "unclosed": ("runs: [1", ["no YAML", "line 1"]),
    "tab": ("runs:\n\t- a", ["no YAML", "line 2"]),
    "tag": ("runs: !!python/object:os.system {}", ["no YAML", "constructor"]),
    "not-utf8": (b"runs: \xe9", ["cannot be read", "utf-8"]),
    "nested": ("runs: " + 5000 * "[", ["cannot be read", "recursion"]),
    "digits": ("runs: " + 5000 * "9", ["cannot be read", "4300 digits"]),
    "large": ("# " + 10**6 * "x", ["1,000,000 characters"]),
    "aliases": (DEEP + "runs: *a29", ["no YAML", "alias", "line 2"]),
    "twice": (yaml.safe_dump(LIST) + "runs: []\n", ["runs is given twice"]),
    "no-defaults": (("defaults",), KeyError, ["defaults is missing", "mapping"]),
    "defaults-list": (("defaults",), [1], ["defaults is [", "mapping"]),
    "no-scales": (("scales",), KeyError, ["scales is missing"]),
    "scales-null": (("scales",), None, ["scales is None", "mapping"]),
    "scales-list": (("scales",), ["cpu"], ["scales is ["]),
    "scale-text": (("scales", "cpu"), "a", ["cpu is 'a'", "mapping"]),
    "scale-not-asked-for": (("scales", "quick", "epoch"), 3, ["run first, quick", "'epoch'", "'epochs'"]),
    **{
        f"share-{value!r}": (("scales", "cpu", "pool_share"), value, ["run first, cpu", "pool_share", "above 0"])
        for value in ("half", None, -1, 0, float("nan"), float("inf"), [2], True, "nan")
    },
    "no-runs": (("runs",), KeyError, ["runs is missing", "a list"]),
    "run-text": (FIRST, "first", ["entry 1 is 'first'", "mapping", "name"]),
    "no-name": ((*FIRST, "name"), KeyError, ["entry 1", "name is missing"]),
    **{
        f"name-{value!r:.12}": ((*FIRST, "name"), value, ["name", "100 letters, digits"])
        for value in ("", "../../first", "a/b", "/tmp/x", "a\\b", "..", ".hidden", "a\0b", "a\nb", "a" * 300)
    },
    "name-number": ((*FIRST, "name"), 3, ["entry 1", "name is 3", "in quotes"]),
    "duplicate": ((*FIRST, "name"), "second", ["'second' is there twice"]),
    "duplicate-case": ((*FIRST, "name"), "Second", ["'second' is there twice"]),
    "no-chapters": ((*FIRST, "chapters"), KeyError, ["run first", "chapters is missing", "a list"]),
    "chapters-text": ((*FIRST, "chapters"), "02", ["run first", "chapters is '02'", "a list"]),
    "chapters-numbers": ((*FIRST, "chapters"), [2], ["run first", "chapters", '["02", "03"]']),
    "dataset": ((*FIRST, "dataset"), "mnits", ["run first", "'mnits'", "did you mean 'mnist'"]),
    "dataset-list": ((*FIRST, "dataset"), ["mnist"], ["run first", "dataset is [", "of type str"]),
    "field": ((*FIRST, "epoch"), 3, ["run first", "'epoch'", "did you mean 'epochs'"]),
    "date": ((*FIRST, "epochs"), datetime.date(2020, 1, 1), ["run first", "epochs is datetime.date"]),
    "pool": ((*FIRST, "pool_size"), "many", ["run first", "pool_size", "'many'"]),
    "pool-fraction": ((*FIRST, "pool_size"), 10.5, ["run first", "pool_size", "10.5"]),
    "other-run": (("runs", 2, "model"), "wrn-1-1", ["run lost", "'wrn-1-1'", "depth"]),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS)
def test_a_bad_list_is_one_clear_line(listed, case):
    *change, parts = LISTS[case]
    content = change[0]
    if len(change) == 2:
        (*places, last), value = change
        tree = copy.deepcopy(LIST)
        holder = functools.reduce(operator.getitem, places, tree)
        holder[last] = value
        if value is KeyError:
            del holder[last]
        content = yaml.safe_dump(tree)
    (listed / "data" / "campaign.yml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_one_clear_line(lambda: campaign.scaled(only="first"), ["campaign.yml", *parts])


def test_a_list_that_is_no_file_says_where_it_comes_from(listed):
    (listed / "data" / "campaign.yml").unlink()
    assert_one_clear_line(tables.entries, ["campaign.yml is no file", "git checkout"])
    (listed / "data" / "campaign.yml").mkdir()
    assert_one_clear_line(tables.entries, ["campaign.yml is no file"])


def test_a_number_in_words_is_a_number_and_a_plan_names_its_run(listed):
    tree = LIST | {"scales": {"cpu": {"pool_share": "5e-1"}}}
    (listed / "data" / "campaign.yml").write_text(yaml.safe_dump(tree))
    assert campaign.scaled(only="first")[0].study.pool_size == 120
    with pytest.raises(UserError, match=r"^first: workers is -2: it must be at least 1"):
        list(campaign.plan_campaign(only="first", folder="x", device="cpu", workers=-2))


def test_bad_changes_are_not_the_lists_fault(listed):
    with pytest.raises(UserError, match=r"^run first as changed: epochs is 'ten'"):
        campaign.scaled(changes={"epochs": "ten"})
    with pytest.raises(UserError, match=r"^run first as changed: epochs is \["):
        campaign.scaled(changes={"epochs": [3]})


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        *[({"time_budget": value}, ["time_budget", str(value), "above 0"]) for value in (0, -1.0, float("nan"))],
        *[({"null": value}, ["null", str(value), "whole number"]) for value in (-5, 1.5, True, None)],
    ],
)  # fmt: skip
def test_impossible_options_stop_before_anything_is_trained(listed, options, parts):
    options = {"null": 0, "device": "cpu", "progress": False} | options
    if options["null"] is None:
        parts = ["null is None"]
    assert_one_clear_line(lambda: list(campaign.run_campaign(only="02", **options)), parts)
    assert not (listed / "runs").exists()


@pytest.fixture
def placed(listed, monkeypatch):
    """placed(scale, ...) -> the folder in which a campaign would train its run ``first``; nothing is trained."""

    def stop(study, *, out, **_):
        raise UserError(f"here {out}")

    def place(scale, **options):
        lines = []
        with pytest.raises(UserError, match="1 runs failed"):
            lines.extend(campaign.run_campaign(scale, only="02", null=0, progress=False, device="cpu", **options))
        return os.path.relpath(lines[0].removeprefix("first: here "))

    monkeypatch.setattr(shadow, "train_part", stop)
    return place


def test_changed_studies_are_trained_in_folders_of_their_own(listed, placed):
    found = [
        placed("quick"), placed("quick", changes={"seed": 1}), placed("quick", changes={"seed": 1}, folder="x"),
        placed("quick", changes={"seed": 2}, folder=listed / "y"), placed("cpu"), placed("cpu", folder="data"),
    ]  # fmt: skip
    assert [re.sub("[0-9a-f]{8}$", "", name) for name in found] == [
        "runs/quick/first-", "runs/quick/first-", "x/first-", "y/first-", "runs/cpu/first-", "runs/cpu/first-"
    ]  # fmt: skip
    assert found[4] == found[5]
    assert [name[-8:] for name in found[1:2]] == [found[2][-8:]]
    assert len({name[-8:] for name in found}) == 4


def test_a_run_begun_under_its_name_alone_goes_on(placed):
    study = campaign.scaled("quick", "first")[0].study
    shadow.open_store(study, out="runs/quick/first", device="cpu")
    assert placed("quick") == "runs/quick/first"
    assert placed("quick", changes={"seed": 1}).startswith("runs/quick/first-")


@pytest.mark.slow("trains three small populations in processes of their own")
def test_a_campaign_trains_what_is_missing_skips_what_is_there_and_reports_what_failed(listed):
    lines = []
    with pytest.raises(UserError, match="1 runs failed: lost; the others are finished"):
        lines.extend(campaign.run_campaign(null=3, progress=False, device="cpu"))
    assert [line.split(":")[0] for line in lines] == ["first", "first", "second", "second", "lost", "whole"]
    assert "has no mnist.npz" in lines[4]
    assert set(tables.released("03")) == {"first", "second"}
    assert tables.missing("03") == []
    assert tables.missing("04") == ["lost"]
    table = tables.figures("data", "lira:bayes")
    assert set(table.index) == {(run, metric) for run in ("first", "second") for metric in METRICS}
    assert ((table.p.dropna() > 0) & (table.p.dropna() <= 1)).all()
    mine = intervals.summarise(tables.released("02")["first"], "lira:bayes")
    np.testing.assert_allclose(table.loc["first"].value, mine.value, rtol=1e-6)
    assert dynmia.rounded(table.loc["first"]).iloc[:, -1].tolist() == dynmia.rounded(mine).iloc[:, -1].tolist()
    before = (listed / "data" / "figures.csv").read_bytes()
    assert list(campaign.run_campaign(only="03", null=3, progress=False)) == []
    assert (listed / "data" / "figures.csv").read_bytes() == before
    recorded = hardness.load(listed / "data" / "second.hardness.nc")
    assert {"part": 3, "epoch": 3, "sample": 240}.items() <= recorded.sizes.items()


@pytest.mark.slow("trains two small populations in processes of their own")
def test_a_run_of_another_study_is_not_taken_for_the_listed_one(listed):
    list(campaign.run_campaign(only="02", null=0, progress=False, device="cpu"))
    assert not (listed / "data" / "figures.csv").exists()
    text = (listed / "data" / "campaign.yml").read_text().replace("pool_size: 240", "pool_size: 200")
    (listed / "data" / "campaign.yml").write_text(text)
    lines = []
    with pytest.raises(UserError, match="1 runs failed: first"):
        lines.extend(campaign.run_campaign(only="02", progress=False))
    assert tables.missing("02") == []


def command(*words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["make", "campaign", *words])
    assert stop.value.code in (0, None)


@pytest.mark.slow("measures training rates and trains until a budget ends")
def test_the_command_plans_and_stops_at_its_budget(listed, capsys):
    command("--plan", "--only", "03", "--device", "cpu")
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out[:2]] == [["first", "missing"], ["second", "missing"]]
    command("--only", "03", "--time-budget", "0.001s", "--quiet")
    assert capsys.readouterr().out.count("the time is over") == 2
    command("--only", "02", "--set", "epochs=1", "--set", "seed=3", "--out", "x", "--null", "0", "--quiet")
    assert dynmia.study_of(dynmia.open_run("x/first.nc")).seed == 3


@pytest.mark.heavy("opens and verifies all released runs")
def test_the_released_list_and_the_released_runs_agree():
    for entry in tables.entries():
        path = tables.resolve(f"data/{entry.name}.nc")
        if path.exists():
            assert campaign._differs(dynmia.study_of(dynmia.open_run(path)), entry.study) == ""


def test_p_values_by_hand():
    five = [0.0, 1.0, 2.0, 3.0, 4.0]
    drawn = pd.DataFrame({"a": five, "b": [np.nan, 1.0, 1.0, 2.0, 0.0], "c": five, "d": five})
    p = p_values(pd.Series({"a": 4.0, "b": 9.0, "c": 5.0, "d": np.nan}), drawn)
    assert p["a"] == pytest.approx(2 * 2 / 6)  # one draw is as high
    assert p["b"] == pytest.approx(2 * 1 / 5)  # of four that are defined none is
    assert p["c"] == pytest.approx(2 * 1 / 6)
    assert np.isnan(p["d"])
    table = quantiles(drawn)
    assert (table.low["a"], table.high["a"], table.value["a"]) == (0, 4, 2)


def test_p_values_are_exact():
    # whichever of 40 skewed values is the measured one: without a signal each p is as likely as any other
    values = np.random.default_rng(0).exponential(size=40)
    one = [p_values(pd.Series({"a": values[k]}), pd.DataFrame({"a": np.delete(values, k)}))["a"] for k in range(40)]
    np.testing.assert_allclose(sorted(one), np.repeat(np.arange(1, 21), 2) / 20)

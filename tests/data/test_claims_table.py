"""The table of claims: who speaks, what is measured, and that the released table is what the released runs give."""

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, assert_one_clear_line

from dynmia import book
from dynmia.attack.plane import vulnerability_plane
from dynmia.book import maker
from dynmia.dynamics.metrics import METRICS
from dynmia.stats.simulate import Simulator
from dynmia.store.run import study_of

made = maker("claims")
Claim, Measured, claims, judge = made.Claim, made.Measured, made.claims, made.judge
DATA = ROOT / "data"
BY_ID = {claim.id: claim for claim in claims()}
NUMBERS = ["value", "low", "high", "null_low", "null_high"]


def claim(measure="ratio", metric="displacement", runs=(("a", "b"),), **changes):
    given = Claim("own", "x", "p", "s", measure, {"metric": metric}, "more_than", 1.0, np.nan, "", (), runs)
    return given._replace(**changes)


@pytest.fixture(scope="module")
def table():
    return book.read_table(DATA / "claims.csv").reset_index().set_index("id")


def test_the_released_table_has_every_claim_and_judges_as_its_own_numbers_do(table):
    for reading, part in table.groupby("reading"):
        assert list(part.index) == list(BY_ID), reading
    assert set(table.reading) == set(made.LENSES)
    for row in table.itertuples():
        one = BY_ID[row.Index]
        names = row.runs.split() if isinstance(row.runs, str) else []
        studies = [study_of(dataset(name)).to_dict() for name in names]
        there = not one.settings or [{k: s[k] for k in made.SETTING} for s in studies] == list(one.settings)
        ours = Measured(*(getattr(row, number) for number in NUMBERS))
        assert row.verdict == judge(one.asserts, one.than, one.paper, ours, there), row.Index
        assert (row.verdict == "not measured") == np.isnan(row.value)
        assert tuple(names) == made.Released(DATA, row.reading).speaking(one)
        assert row.paper == pytest.approx(one.paper, rel=1e-5, nan_ok=True)
        for text in ("page", "kind", "sentence"):
            assert getattr(row, text) == getattr(one, text)


def dataset(name, opened={}):  # noqa: B006
    if name not in opened:
        opened[name] = book.tables.open_run(DATA / f"{name}.nc")
    return opened[name]


def test_a_ratio_has_no_no_signal_level(table):
    ratios = table[table.unit == "ratio"]
    assert len(ratios) >= 10
    assert ratios[["null_low", "null_high"]].isna().all(None)


def test_figures_are_those_of_the_table_of_figures(table):
    rows = [row for row in table.itertuples() if BY_ID[row.Index].measure == "figure"]
    assert len(rows) >= 20
    for row in rows:
        expected = book.figures(DATA, row.reading).loc[[(row.runs, BY_ID[row.Index].of["metric"])], NUMBERS].iloc[0]
        np.testing.assert_allclose([getattr(row, number) for number in NUMBERS], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow("scores halves of released runs anew")
def test_the_released_table_is_what_the_runs_give(table):
    some = [
        "rate-sgd-over-sam",
        "speed-cinic10-over-mnist",
        "epistemic",
        "gradient-out",
        "spread-advantage",
        "entropy-order",
    ]
    asked = [BY_ID[name] for name in some]
    released, table = made.Released(DATA, "lira:fpr@0.01", asked), table[table.reading == "lira:fpr@0.01"]
    for one in asked:
        row = made.row_of(one, released)
        np.testing.assert_allclose(
            table.loc[one.id, NUMBERS].astype(float), [row[number] for number in NUMBERS], rtol=1e-5, atol=1e-6
        )
        assert row["verdict"] == table.verdict[one.id]


def test_the_first_runs_that_are_all_released_speak_whatever_they_say(tmp_path):
    one = claim(runs=(("a", "b"), ("c", "d"), ("e", "f")))
    asked = claim(
        "correlation", runs=(("a",), ("c",)), of={"measure": "loss_in", "samples": "all", "models": "all models"}
    )

    def speaking(*names):
        for name in names:
            (tmp_path / name).touch()
        released = made.Released(tmp_path, "lira:bayes")
        return released.speaking(one), released.speaking(asked)

    assert speaking() == ((), ())
    assert speaking("a.nc") == ((), ())
    assert speaking("c.nc", "e.nc", "f.nc", "c.hardness.nc") == (("e", "f"), ("c",))
    assert speaking("d.nc") == (("c", "d"), ("c",))
    assert speaking("b.nc", "a.hardness.nc") == (("a", "b"), ("a",))


def test_a_claim_without_a_run_is_not_measured_and_a_run_without_figures_is_one_clear_line(tmp_path):
    row = made.row_of(claim("figure", runs=(("quick",),)), made.Released(tmp_path, "lira:bayes"))
    assert (row["verdict"], row["runs"], row["setting"]) == ("not measured", "", "")
    for name in ("figures.csv", "quick-float32.nc"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    lost = claim("figure", runs=(("quick-float32",),))
    assert_one_clear_line(
        lambda: made.row_of(lost, made.Released(tmp_path, "lira:bayes")),
        ["has no row quick-float32", "dynmia make figures"],
    )
    assert_one_clear_line(
        lambda: made.row_of(lost, made.Released(tmp_path, "lira:fpr@0.3")),
        ["lira:fpr@0.3", "figures.csv", "Allowed: bayes"],
    )


def test_what_a_run_does_not_have_is_one_clear_line(monkeypatch):
    released = made.Released(DATA, "lira:bayes")
    index = pd.MultiIndex.from_tuples([("loss_in", "all", "all models")], names=["measure", "samples", "models"])
    monkeypatch.setattr(released, "related", lambda name: pd.DataFrame({"value": [1.0]}, index))
    of = {"measure": "loss_in", "over": "loss_iqr", "samples": "all", "models": "all models"}
    line = ["loss_iqr", "measure in quick.hardness.nc", "Allowed: loss_in"]
    assert_one_clear_line(lambda: released.measured("difference", of, ["quick"]), line)
    names = ["quick", "quick-float32"]
    assert_one_clear_line(lambda: released.measured("spread", {"metric": "auc"}, names), ["metric of a spread"])


@pytest.fixture
def two(monkeypatch):
    long, short = (Simulator(samples=80, separation=2 + seed, seed=seed).run(20, seed=seed) for seed in (0, 1))
    runs = {"long": long, "short": short.isel(epoch=slice(4)), "short2": short.isel(epoch=slice(4))}
    monkeypatch.setattr(made, "open_run", lambda path: runs[path.stem])
    monkeypatch.setattr(made.Released, "speaking", lambda self, claim: claim.runs[0])
    return runs


def test_a_ratio_is_of_the_last_epoch_that_both_runs_have(two, tmp_path):
    asked = [claim(metric=metric, runs=(("long", "short"),)) for metric in ("displacement", "entropy_change")]
    asked.append(claim(metric="speed_mean", runs=(("long", "short"),)))  # not of the first and last checkpoint alone
    released = made.Released(tmp_path, "lira:fpr@0.01", asked)
    last = int(two["short"].epoch[-1])
    assert last < int(two["long"].epoch[-1])
    for one in asked:
        ours = released.measured(one.measure, one.of, one.runs[0])
        planes = [vulnerability_plane(two[name].sel(epoch=slice(None, last)), "lira:fpr@0.01") for name in one.runs[0]]
        ends = [float(METRICS[one.of["metric"]].of(plane, None)) for plane in planes]
        assert ours.value == pytest.approx(ends[0] / ends[1])
        assert ours.low < ours.value < ours.high
        assert np.isnan([ours.null_low, ours.null_high]).all()


def test_the_smallest_step_is_below_the_upper_ends_of_all(monkeypatch):
    steps = {("b", "a"): (1.4, 0.8, 2.4, "low"), ("c", "b"): (0.9, 0.85, 0.95, ""), ("d", "c"): (3.0, 2.0, 4.0, "")}
    parts = ["value", "low", "high", "clipped"]
    monkeypatch.setattr(made.intervals, "ratio", lambda *ends: pd.Series(steps[ends[:2]], parts))
    pairs = list(made.pairs("smallest_step", "abcd"))
    least = made.least_ratio(pairs, "auc")
    assert least[:3] == (0.9, 0.8, 0.95)
    assert least.clipped == "low"
    steps["d", "c"] = (np.nan, -np.inf, np.inf, "high")
    undefined = made.least_ratio(pairs, "auc")
    assert np.isnan(undefined.value)
    assert undefined.clipped == "both"


def test_a_difference_of_correlations_by_hand():
    first, second = Measured(0.6, 0.3, 0.7), Measured(0.2, 0.1, 0.6)
    assert made.difference(first, second)[:3] == pytest.approx((0.4, 0.4 - 0.5, 0.4 + np.hypot(0.1, 0.1)))
    backward = made.difference(second, first)
    assert backward[:3] == pytest.approx((-0.4, -0.4 - np.hypot(0.1, 0.1), -0.4 + 0.5))


def test_a_difference_covers_a_known_one():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        estimates = []
        for r in (0.8, 0.3):
            z, width = np.arctanh(r) + rng.normal(0, 0.1), 1.96 * 0.1
            estimates.append(Measured(*np.tanh([z, z - width, z + width])))
        ours = made.difference(*estimates)
        inside += ours.low <= 0.5 <= ours.high
    assert 0.92 * 300 <= inside <= 300


def test_a_setting_in_words():
    parts = dict(dataset="mnist", model="cnn", optimizer="sgd", pool_size=4000, epochs=60)
    assert made.in_words([parts]) == "mnist, network cnn, sgd, pool 4,000, 60 epochs"
    other = parts | {"pool_size": 500, "epochs": 36}
    assert made.in_words([parts, other]) == "mnist, network cnn, sgd, pool 4,000/500, 60/36 epochs"
    del other["model"]
    assert made.in_words([other]) == "mnist, network not known, sgd, pool 500, 36 epochs"
    assert made.in_words([]) == ""


def test_a_setting_of_which_a_part_is_not_known_is_nobody_s(tmp_path):
    (tmp_path / "figures.csv").write_bytes((DATA / "figures.csv").read_bytes())
    (tmp_path / "quick.nc").write_bytes((DATA / "quick.nc").read_bytes())
    value = book.figures(DATA, "lira:fpr@0.01").value["quick", "displacement"]
    whole = dict(dataset="digits", model="cnn", optimizer="adamw", pool_size=1200, epochs=30)
    one = claim("figure", runs=(("quick",),), asserts="presence", than=np.nan, paper=value)
    released = made.Released(tmp_path, "lira:fpr@0.01")
    settings = [whole, *({k: v for k, v in whole.items() if k != part} for part in whole), whole | {"epochs": 400}]
    verdicts = [made.row_of(one._replace(settings=(setting,)), released)["verdict"] for setting in settings]
    assert verdicts == ["agrees"] + ["agrees elsewhere"] * 6


def test_every_claim_is_asked_under_the_reading(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        made, "row_of", lambda one, released: asked.append((released.reading, one.id)) or {"id": one.id}
    )
    rows = made.compute(tmp_path, "lira:bayes")
    assert asked == [("lira:bayes", name) for name in BY_ID]
    assert rows.id.tolist() == list(BY_ID)

"""The scorecard's rules, and that the released one follows them."""

import inspect

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT

from dynmia.chapters import scorecard
from dynmia.chapters.scorecard import VERDICTS, Claim, Measured, judge
from dynmia.errors import UserError
from dynmia.stats.matching import STATE
from dynmia.stats.simulate import Simulator

PAPER = pd.read_csv(ROOT / "data" / "paper.csv", comment="#").set_index(["dataset", "metric"]).value.to_dict()


def claim(**changes) -> Claim:
    given = dict(kind="key result", text="", chapter="", paper=("a", "b"), unit="", measure=lambda released: None)
    return Claim(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "ours", "paper", "verdict"),
    [
        ({}, None, 5, 3),
        ({}, (6, 4, 8, 0, 1), 5, 0),  # clear, and the paper's number is inside
        ({}, (6, 5.5, 8, 0, 1), 5, 1),  # clear, outside
        ({}, (6, 4, 8, 0, 4.5), 5, 2),  # not beyond the no-signal level
        ({}, (6, -1, 8, -2, -1.5), 5, 2),  # the interval holds "no effect"
        ({}, (6, 4, 8), 5, 0),  # no no-signal level applies
        ({}, (-6, -8, -4, -1, 1), 5, 2),  # the other direction
        ({}, (6, 4, 8, 0, 1), np.nan, 0),  # the paper prints no number: the direction is the claim
        ({"setting": ("cnn", 4000)}, (6, 4, 8, 0, 1), 5, 1),  # a number of another setting
        ({"sense": -1}, (-6, -8, -4, -1, 1), -5, 0),
        ({"sense": -1}, (6, 4, 8, -1, 1), -5, 2),
        ({"neutral": 1}, (1.2, 1.1, 1.3, 1, 1), 3, 1),
        ({"neutral": 1}, (1.2, 0.9, 1.3, 1, 1), 3, 2),
        ({"bound": True}, (80, 75, 85, 10, 20), 70, 0),
        ({"bound": True}, (80, 65, 85, 10, 20), 70, 2),
        ({"bound": True, "sense": -1, "neutral": 1}, (0.1, 0.05, 0.12), 0.15, 0),
    ],
)
def test_every_verdict_follows_from_the_stated_rules(changes, ours, paper, verdict):
    assert judge(claim(**changes), None if ours is None else Measured(*ours), paper) == VERDICTS[verdict]


def test_a_setting_is_met_at_the_scale_of_the_paper():
    assert judge(claim(setting=("cnn", 4000)), Measured(6, 4, 8, 0, 1), 5, at_scale=True) == VERDICTS[0]


def test_the_paper_s_value_or_the_quotient_of_two():
    paper = {("a", "m"): 6.0, ("b", "m"): 2.0, ("a/b", "n"): 4.0}
    assert scorecard.printed_value(paper, "a", "m") == 6
    assert scorecard.printed_value(paper, "a/b", "m") == 3
    assert scorecard.printed_value(paper, "a/b", "n") == 4


def test_every_claim_has_a_chapter_and_its_number_is_in_the_table_of_the_paper():
    assert len(scorecard.CLAIMS) >= 14
    assert {one.kind for one in scorecard.CLAIMS} == {"key result", "mechanism", "experiment"}
    for one in scorecard.CLAIMS:
        assert (ROOT / "notebooks" / f"{one.chapter}.ipynb").exists()
        assert one.paper is None or np.isfinite(scorecard.printed_value(PAPER, *one.paper))


def test_the_released_scorecard_judges_as_its_own_figures_do():
    table = pd.read_csv(ROOT / "data" / "scorecard.csv", index_col="row")
    assert table.claim.tolist() == [one.text for one in scorecard.CLAIMS]
    for one, (_, row) in zip(scorecard.CLAIMS, table.iterrows()):
        numbers = row[["value", "low", "high", "null_low", "null_high"]].astype(float)
        ours = None if np.isnan(numbers.value) else Measured(*numbers)
        assert row.verdict == judge(one, ours, float(row.paper)), one.text
    shown = scorecard.printed(table)
    assert (shown["ours [95 %]"] == "not measured").sum() == (table.verdict == VERDICTS[3]).sum()


def test_a_missing_run_is_an_error_that_the_scorecard_takes_for_not_measured(tmp_path):
    (tmp_path / "figures.csv").write_bytes((ROOT / "data" / "figures.csv").read_bytes())
    released = scorecard.Released(tmp_path)
    with pytest.raises(UserError, match=r"nothing\.nc does not exist"):
        released.run("nothing")
    with pytest.raises(UserError, match=r"no row for nothing"):
        released.figure("nothing", "auc")


def test_the_rules_that_the_page_prints_name_every_verdict():
    text = inspect.getdoc(scorecard)
    assert all(verdict in text for verdict in VERDICTS)


def test_a_ratio_is_of_the_last_epoch_that_both_runs_have():
    long, short = (Simulator(samples=80, separation=2 + seed, seed=seed).run(20, seed=seed) for seed in (0, 1))
    released = scorecard.Released()
    released._runs |= {"long": long, "short": short.isel(epoch=slice(4))}
    for metric in ("displacement", "entropy_change"):
        found = released.over("long", "short", metric)
        ends = [float(STATE[metric](released.plane(name)).sel(epoch=30)) for name in ("long", "short")]
        assert found.value == pytest.approx(ends[0] / ends[1])
        assert found.low < found.value < found.high

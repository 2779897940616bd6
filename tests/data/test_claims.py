"""Claims as data: the list that a person wrote is whole and valid, and every verdict follows from the stated rules."""

import inspect
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import ROOT, assert_one_clear_line

from dynmia import book
from dynmia.book import maker, printed

module = maker("claims")
claims, judge, printed_value = module.claims, module.judge, module.printed_value
Measured, VERDICTS = module.Measured, module.VERDICTS
LIST = (ROOT / "data" / "claims.yml").read_text()
PAPER = book.read_table("data/paper.csv").value
NAN, INF = math.nan, math.inf
AGREES, ELSEWHERE, SAME, PRESENT, OPPOSITE, UNDECIDED, MISSING = VERDICTS


@pytest.mark.parametrize(
    ("asserts", "than", "paper", "ours", "verdict"),
    [
        # more than no effect
        ("more_than", 0, 6, (6, 4, 8, 0, 1), AGREES),
        ("more_than", 0, 9, (6, 4, 8, 0, 1), SAME),  # the number is excluded, above
        ("more_than", 0, 2, (6, 4, 8, 0, 1), SAME),  # below
        ("more_than", 0, NAN, (6, 4, 8, 0, 1), SAME),  # no number is printed
        ("more_than", 0, -5, (6, 4, 8, 0, 1), SAME),  # a number on the other side is never met
        ("more_than", 0, 5, (6, 4, 8, 0, 4.5), UNDECIDED),  # not beyond the no-signal level
        ("more_than", 0, 5, (6, -1, 8, -2, -1.5), UNDECIDED),  # holds no effect
        ("more_than", 0, 5, (6, 0, 8), UNDECIDED),  # touches it
        ("more_than", 0, 5, (-6, -8, -4, -1, 1), OPPOSITE),
        ("more_than", 0, 5, (-6, -8, -4, -5, 1), UNDECIDED),  # the other side, but within the no-signal level
        ("more_than", 1, 3, (2.9, 2.5, 3.4), AGREES),  # a ratio has no such level
        ("more_than", 1, 3, (1.2, 1.1, 1.3), SAME),
        ("more_than", 1, 3, (1.2, 0.9, 1.5), UNDECIDED),
        ("more_than", 1, 3, (0.5, 0.3, 0.8), OPPOSITE),
        # too wide to agree: 2 lie between no effect and the number, as many between the no-signal level and it
        ("more_than", 1, 3, (3, 2.1, 4.0), AGREES),
        ("more_than", 1, 3, (3, 2.0, 4.0), SAME),
        ("more_than", 1, 3, (9, 1.1, 20.0), SAME),
        ("more_than", 1, 3, (9, 1.1, INF), SAME),  # a ratio without an upper end
        ("more_than", 1, 3, (9, 0.9, INF), UNDECIDED),
        ("more_than", 1, 3, (9, -INF, INF), UNDECIDED),
        ("more_than", 0, 5, (5, 3.5, 6.5, 0, 3), SAME),
        ("more_than", 0, 5, (5, 4.5, 6.0, 0, 3), AGREES),
        # less than no effect
        ("less_than", 0, -6, (-6, -8, -4, -1, 1), AGREES),
        ("less_than", 0, -9, (-6, -8, -4, -1, 1), SAME),
        ("less_than", 0, NAN, (-6, -8, -4, -1, 1), SAME),
        ("less_than", 0, -5, (6, 4, 8, -1, 1), OPPOSITE),
        ("less_than", 0, -5, (6, 4, 8, -1, 4), UNDECIDED),
        ("less_than", 0, -5, (-6, -8, -4, -5, 1), UNDECIDED),
        ("less_than", 0, -5, (-1, -8, 1), UNDECIDED),
        ("less_than", 1, 0.5, (0.6, 0.4, 0.8), AGREES),
        # presence: beyond the no-signal level, which is no direction
        ("presence", NAN, 6, (6, 4, 8, 0, 1), AGREES),
        ("presence", NAN, 9, (6, 4, 8, 0, 1), PRESENT),
        ("presence", NAN, NAN, (6, 4, 8, 0, 1), PRESENT),
        ("presence", NAN, 5, (6, 2, 8, 0, 1), PRESENT),  # too wide to agree
        ("presence", NAN, 5, (6, 4, 8, 0, 4), UNDECIDED),
        ("presence", NAN, 5, (6, 4, 8, 9, 10), OPPOSITE),
        ("presence", NAN, 5, (6, 4, 8), UNDECIDED),  # no level, so nothing to be beyond
        # bounds
        ("over", 70, 70, (80, 75, 85, 10, 20), AGREES),
        ("over", 70, 70, (80, 65, 85, 10, 20), UNDECIDED),
        ("over", 70, 70, (80, 70, 85, 10, 20), UNDECIDED),  # over is not at
        ("over", 70, 70, (80, 75, 85, 10, 90), UNDECIDED),  # no signal gives as much
        ("over", 70, 70, (40, 30, 60, 10, 20), OPPOSITE),
        ("over", 70, 70, (40, 30, 60, 10, 90), OPPOSITE),  # whatever no signal gives
        ("over", 70, NAN, (80, 75, INF), AGREES),
        ("under", 0.15, NAN, (0.1, 0.05, 0.12), AGREES),
        ("under", 0.15, NAN, (0.1, 0.05, 0.2), UNDECIDED),
        ("under", 0.15, NAN, (0.3, 0.2, 0.4), OPPOSITE),
        # undefined
        ("more_than", 0, 5, (NAN, NAN, NAN), MISSING),
        ("over", 70, 70, (NAN, 75, 85, 10, 20), MISSING),
        ("more_than", 0, 5, (6, NAN, 8, 0, 1), UNDECIDED),
        ("presence", NAN, 5, (6, 4, NAN, 0, 1), UNDECIDED),
        ("under", 0.15, NAN, (0.1, NAN, NAN), UNDECIDED),
    ],
)
def test_every_verdict_follows_from_the_stated_rules(asserts, than, paper, ours, verdict):
    assert judge(asserts, than, paper, Measured(*ours), in_setting=True) == verdict
    elsewhere = judge(asserts, than, paper, Measured(*ours), in_setting=False)
    assert elsewhere == (ELSEWHERE if verdict == AGREES else verdict)


@pytest.mark.parametrize(("asserts", "than"), [("more_than", 0), ("presence", NAN), ("over", 2)])
@pytest.mark.parametrize("paper", [2, 3, 5, 9, NAN])
def test_a_wider_interval_about_the_same_value_never_earns_more(asserts, than, paper):
    worth = {AGREES: 2, SAME: 1, PRESENT: 1, UNDECIDED: 0}
    for value in (3, 4, 5):
        if asserts != "over" and value != paper:  # a number that a narrow interval excludes: agreement is none of width
            paper = NAN
        earned = [
            worth[judge(asserts, than, paper, Measured(value, value - half, value + half, 0, 1), in_setting=True)]
            for half in (0.1, 0.5, 0.9, 1.5, 1.9, 2.5, 4, 100)
        ]
        assert earned == sorted(earned, reverse=True)
        assert earned[-1] == 0


def test_what_agrees_holds_neither_no_effect_nor_twice_the_effect():
    ends = np.linspace(-1, 8, 37)
    for low, high in itertools.combinations(ends, 2):
        if judge("more_than", 1, 3, Measured((low + high) / 2, low, high), in_setting=True) == AGREES:
            assert 1 < low <= 3 <= high < 5


def test_the_rules_that_the_page_prints_name_every_verdict():
    text = inspect.getdoc(module)
    assert all(f"\n    {verdict} " in text for verdict in VERDICTS)


def test_the_list_is_whole():
    listed = claims()
    assert len({claim.id for claim in listed}) == len(listed) >= 30
    assert {claim.page for claim in listed} <= {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    of_papers = [claim for claim in listed if claim.kind != "own"]
    asked = [row for part in yaml.safe_load(LIST).values() if isinstance(part, list) for row in part if "paper" in row]
    rows = {(part, row["paper"][1]) for row in asked for part in [row["paper"][0], *row["paper"][0].split("/")]}
    assert set(PAPER.index) - rows == {("cifar10", "advantage_variation")}  # which is no result of the paper
    for claim in of_papers:
        assert math.isnan(claim.paper) or claim.source
        assert len(claim.settings) in (0, 1, len(claim.runs[0]))
    assert not any(claim.settings for claim in listed if claim.kind == "own")


def test_no_number_of_mnist_s_is_set_against_a_ratio_of_two_networks():
    for claim in claims():
        if claim.measure == "ratio" and claim.settings and claim.of["metric"] == "displacement":
            assert all("model" in setting for setting in claim.settings), claim.id


def test_the_paper_s_number_or_the_quotient_of_two():
    paper = pd.Series({("a", "m"): 6.0, ("b", "m"): 2.0, ("a/b", "n"): 4.0})
    assert [printed_value(paper, row) for row in (["a", "m"], ["a/b", "m"], ["a/b", "n"])] == [6, 3, 4]
    for row in (["a", "n"], ["a/b/a", "m"], ["a/c", "m"], ["a"], [], ["a", "m", "n"], [1, 2]):
        assert_one_clear_line(lambda row=row: printed_value(paper, row), ["paper.csv has no row"])


ENTRY = LIST[LIST.index("  - id: rate-cifar10\n") : LIST.index("  - id: rate-mnist\n")]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("key result:", "key results:", ["unknown part of", "did you mean 'key result'"]),
        ("  mnist: {dataset: mnist,", "  mnist: {data: mnist,", ["setting mnist", "unknown part", "'data'"]),
        ("  - id: rate-mnist\n", "  - id: rate-cifar10\n", ["'rate-cifar10' is there twice"]),
        ("  - id: rate-mnist\n", "  - id: rate mnist\n", ["id 'rate mnist' names a file"]),
        ("page: 04-architecture", "page: 04-architektur", ["claim rate-cifar10", "did you mean '04-architecture'"]),
        ("    page: 04-architecture\n", "", ["claim rate-cifar10", "page is missing"]),
        ("{metric: transition_peak}", "{metric: transition_peek}", ["rate-cifar10", "did you mean 'transition_peak'"]),
        ("{metric: transition_peak}", "{metrik: transition_peak}", ["rate-cifar10", "did you mean 'metric'"]),
        ("{metric: transition_peak}", "{}", ["rate-cifar10", "metric is missing"]),
        ("{metric: transition_peak}", "transition_peak", ["rate-cifar10", "figure is 'transition_peak'", "mapping"]),
        ("{metric: transition_peak}", "{metric: 3}", ["rate-cifar10", "metric is 3"]),
        ("{metric: transition_peak}", "{metric: auc, reading: bayes}", ["rate-cifar10", "unknown part", "'reading'"]),
        ("{figure: {metric: transition_peak}}", "{figur: {metric: auc}}", ["rate-cifar10", "did you mean 'figure'"]),
        ("{figure: {metric: transition_peak}}", "{figure: {metric: auc}, ratio: {metric: auc}}", ["unknown measure"]),
        ("{figure: {metric: transition_peak}}", "7", ["unknown measure", "'7'"]),
        ("{figure: {metric: transition_peak}}", "{ratio: {metric: auc}}", ["a ratio is of 2 runs"]),
        ("{figure: {metric: transition_peak}}", "{spread: {metric: auc}}", ["a spread is of two or more runs"]),
        ("asserts: presence", "asserts: presents", ["rate-cifar10", "did you mean 'presence'"]),
        ("asserts: presence", "asserts: {presence: 3}", ["rate-cifar10", "presence stands alone"]),
        ("asserts: presence", "asserts: more_than", ["rate-cifar10", "all others need a number"]),
        ("asserts: presence", "asserts: {more_than: yes}", ["rate-cifar10", "all others need a number"]),
        ("asserts: presence", "asserts: {more_than: [1]}", ["rate-cifar10", "all others need a number"]),
        ("[cifar10, transition_peak]", "[cifar10, auc]", ["rate-cifar10", "paper.csv has no row ['cifar10', 'auc']"]),
        ("[cifar10, transition_peak]", "13", ["rate-cifar10", "paper is 13", "a list"]),
        ("    source: a summary\n", "", ["rate-cifar10", "source is missing"]),
        ("  cifar10: {", "  cifar: {", ["rate-cifar10", "unknown setting", "did you mean 'cifar"]),
        ("runs: [cifar10_jpeg-wrn", "runs: [cifar10_jpg-wrn", ["rate-cifar10", "did you mean 'cifar10_jpeg-wrn"]),
        ("runs: [cifar10_jpeg-wrn-28-2-50000, cifar10-wrn-28-2-4000, cifar10_jpeg-cnn-50000, cifar10-cnn-4000]",
         "runs: []", ["rate-cifar10", "a figure is of 1 runs"]),
        ("sentence: CIFAR-10 samples turn", "sentences: CIFAR-10 samples turn", ["rate-cifar10", "did you mean 'sent"]),
    ],
)  # fmt: skip
def test_a_fault_of_the_list_is_one_clear_line(old, new, parts, tmp_path):
    assert old in LIST
    (tmp_path / "claims.yml").write_text(LIST.replace(old, new, 1))
    assert_one_clear_line(lambda: claims(tmp_path / "claims.yml"), parts)


def test_rows_as_a_page_prints_them():
    rows = pd.DataFrame({
        "id": ["a", "b", "c"], "reading": "bayes", "sentence": "x", "unit": ["ratio", "%", np.nan],
        "paper": [3, NAN, 0.15], "value": [2.9412, 12.3456, NAN], "low": [2.1, 12, NAN], "high": [3.9, 12.7, NAN],
        "null_low": [NAN, 0, NAN], "null_high": [NAN, 1, NAN], "verdict": "v", "setting": "s",
        "clipped": [NAN, "high", NAN], "carrier": [7, NAN, NAN],
    }).set_index(["id", "reading"])  # fmt: skip
    shown = printed(rows)
    assert shown["ours [95 %]"].tolist() == ["2.9 [2.1, 3.9], by model 7", "12.3 [12.0, 12.7*]", "not measured"]
    assert shown["no signal"].tolist() == ["", "0.0 to 1.0", ""]
    assert shown.paper.tolist() == ["3", "", "0.15"]
    assert shown.unit.tolist() == ["ratio", "%", ""]

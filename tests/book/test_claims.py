import math

import pandas as pd
import pytest
import yaml
from helpers import ROOT, assert_one_clear_line

from dynmia.book import claims as module
from dynmia.book import maker
from dynmia.book.claims import VERDICTS, claims, judge

NAN = math.nan
CASES = {  # asserts, than, paper, value, low, high, null_low, null_high, in_setting
    "in its setting": (("more", 0, 3, 3, 2, 4, -1, 1, True), "agrees"),
    "in another": (("more", 0, 3, 3, 2, 4, -1, 1, False), "agrees elsewhere"),
    "number left out": (("more", 0, 9, 3, 2, 4, -1, 1, True), "same direction"),
    "no number": (("more", 1, NAN, 3, 2, 4, NAN, NAN, True), "same direction"),
    "wider than the way from no effect to the number": (("more", 0, 3, 3, 0.5, 6, NAN, NAN, True), "same direction"),
    "no wider": (("more", 0, 3, 3, 1.5, 4.5, NAN, NAN, True), "agrees"),
    "holds no effect and the number": (("more", 0, 3, 3, -1, 7, NAN, NAN, True), "undecided"),
    "not beyond noise": (("more", 0, 3, 3, 2, 4, -1, 2.5, True), "undecided"),
    "the other way": (("more", 1, 3, 0.5, 0.2, 0.8, NAN, NAN, True), "opposite"),
    "less": (("less", 0, -2, -2, -3, -1.5, -1, 1, True), "agrees"),
    "less, but it is more": (("less", 0, -2, 2, 1.5, 3, -1, 1, True), "opposite"),
    "less, within noise": (("less", 0, -2, -2, -3, -0.5, -1, 1, True), "undecided"),
    "there is something": (("level", 0, 9, 3, 2, 4, -1, 1, True), "present"),
    "that something, and its number": (("level", 0, 3, 3, 2, 4, -1, 1, False), "agrees elsewhere"),
    "nothing to tell from noise": (("level", 0, 3, 3, 2, 4, 0, 5, True), "undecided"),
    "above a bound": (("at least", 70, 70, 80, 75, 85, 0, 20, False), "agrees elsewhere"),
    "above a bound as noise is": (("at least", 70, 70, 80, 75, 85, 0, 100, True), "undecided"),
    "on both sides of a bound": (("at least", 70, 70, 72, 65, 80, 0, 20, True), "undecided"),
    "below a bound that should be reached": (("at least", 70, 70, 50, 40, 60, 0, 20, True), "opposite"),
    "below, as it should be": (("below", 0.15, NAN, 0.1, 0.05, 0.12, NAN, NAN, True), "agrees"),
    "above, as it should not be": (("below", 0.15, NAN, 0.3, 0.2, 0.5, NAN, NAN, True), "opposite"),
    "undefined": (("more", 1, 3, NAN, NAN, NAN, NAN, NAN, True), "not measured"),
    "without an interval": (("more", 1, 3, 2, NAN, NAN, NAN, NAN, True), "undecided"),
    "a ratio without an upper end": (("more", 1, 3, 4, 1.5, math.inf, NAN, NAN, True), "same direction"),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case):
    given, verdict = CASES[case]
    assert judge(*given) == verdict
    assert verdict in VERDICTS


@pytest.mark.parametrize("paper", [3.0, 9.0, NAN])
def test_a_wider_interval_about_the_same_value_never_earns_more(paper):
    halves = (0.5, 1, 1.5, 2, 2.9, 3.1, 8)
    verdicts = [judge("more", 0, paper, 3, 3 - half, 3 + half, in_setting=True) for half in halves]
    ranks = [["agrees", "same direction", "undecided"].index(verdict) for verdict in verdicts]
    assert ranks == sorted(ranks)


def test_the_list_is_complete_and_each_number_of_the_paper_is_in_it():
    listed = claims()
    assert len({claim.id for claim in listed}) == len(listed) >= 28
    printed = pd.read_csv(ROOT / "data" / "paper.csv", comment="#")
    rows = {tuple(row) for entry in yaml.safe_load((ROOT / "data" / "claims.yml").read_text())["paper"]
            for row in entry.get("paper", [])}  # fmt: skip
    assert set(printed[["dataset", "metric"]].itertuples(index=False, name=None)) - rows == {
        ("cifar10", "advantage_variation")  # a check that a summary proposes, no claim
    }


BAD = {
    "part": ("page:", "pages:", ["part of", "claim", "pages"]),
    "page": ("04-architecture", "04-architectur", ["04-architectur.ipynb"]),
    "metric": ("figure: displacement", "figure: displacment", ["displacment", "did you mean"]),
    "measure": ("{figure: displacement}", "{figures: displacement}", ["measure", "figures"]),
    "assertion": ("asserts: level", "asserts: much", ["assertion", "much"]),
    "row": ("[cifar10, displacement]", "[cifar11, displacement]", ["paper.csv has no row cifar11"]),
    "setting": ("setting: wide", "setting: wider", ["setting", "wider"]),
    "runs": ("[cinic10-cnn-4000, mnist-cnn-4000]", "[cinic10-cnn-4000]", ["lists of 2 names"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_list_is_one_clear_line(case, tmp_path, monkeypatch):
    old, new, parts = BAD[case]
    text = (ROOT / "data" / "claims.yml").read_text()
    assert old in text
    (tmp_path / "claims.yml").write_text(text.replace(old, new, 1))
    real = module.resolve
    monkeypatch.setattr(module, "resolve", lambda path: tmp_path / "claims.yml" if "claims" in path else real(path))
    assert_one_clear_line(claims, parts)


def test_the_first_released_runs_speak(tmp_path):
    made = maker("claims")
    released = made.Released(tmp_path, "bayes")
    choices = (("far",), ("near", "other"), ("near",))
    assert released.first(choices) == ()
    (tmp_path / "near.nc").touch()
    assert released.first(choices) == ("near",)
    (tmp_path / "other.nc").touch()
    assert released.first(choices) == ("near", "other")

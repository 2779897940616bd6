"""Claims as data: ``data/claims.yml`` says what is claimed, :func:`judge` what our interval makes of it.

A claim is *clear* if the whole 95 % interval lies on its side of no effect and beyond the no-signal level. Verdicts:

    agrees             clear; the interval holds the paper's number, in the paper's setting
    agrees elsewhere   the same in another setting, which stands beside it
    same direction     clear; the paper prints no number, our interval leaves it out, or is too wide to tell
    present            the claim is only that there is something, and it is clear; its number is not ours
    opposite           clear on the other side
    undecided          the interval holds both sides
    not measured       no run that could speak is released, or the figure is undefined

An interval that is wider than the way from no effect to the paper's number tells a direction, no number: a wide one
never earns more than a narrow one. A bound agrees if the whole interval lies on its side, and is opposite if it lies on
the other. The first released runs of a claim's list speak for it, whatever they say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..dynamics.metrics import METRICS
from ..errors import UserError, choose, shown
from ..store.run import resolve
from .tables import member, named, read_list, read_table

VERDICTS = (
    "agrees", "agrees elsewhere", "same direction", "present", "opposite", "undecided", "not measured"
)  # fmt: skip
ASSERTS = ("level", "more", "less", "at least", "below")
MEASURES = {"figure": 1, "ratio": 2, "step": 0, "correlation": 1, "variation": 0}  # and how many runs; 0: two or more
PARTS = ("id", "page", "sentence", "measure", "runs", "asserts", "than", "paper", "setting")


@dataclass(frozen=True)
class Claim:
    """One claim of ``data/claims.yml``; see there. ``group`` is ``paper`` or ``ours``, ``paper`` a number or NaN."""

    group: str
    id: str
    page: str
    sentence: str
    kind: str
    what: Any
    runs: tuple[tuple[str, ...], ...]
    asserts: str
    than: float
    paper: float
    setting: dict[str, Any]


def claims() -> list[Claim]:
    """All claims, checked.

    Raises:
        UserError: an unknown part, measure, metric, page, setting or row of paper.csv, or a wrong number of runs.
    """
    path = resolve("data/claims.yml")
    content = read_list(path, ("settings", "paper", "ours"))
    settings = member(content, "settings", dict, path)
    printed = read_table(resolve("data/paper.csv")).value
    ids: list[str] = []
    listed = []
    for group in ("paper", "ours"):
        for entry in member(content, group, list, path):
            ids.append(named(entry, "id", ids, path))
            listed.append(_claim(entry, group, settings, printed, f"{path}: claim {ids[-1]}"))
    return listed


def _claim(entry: dict[str, Any], group: str, settings: dict[str, Any], printed: pd.Series, where: str) -> Claim:
    for part in entry:
        choose(str(part), PARTS, f"part of {where}:")
    page, sentence = (member(entry, part, str, where) for part in ("page", "sentence"))
    if not resolve(f"notebooks/{page}.ipynb").exists():
        raise UserError(f"{where}: there is no page notebooks/{page}.ipynb: name one without .ipynb.")
    measure = member(entry, "measure", dict, where)
    if len(measure) != 1:
        raise UserError(f"{where}: measure is {shown(measure)}: it must be one of {', '.join(MEASURES)}, with a value.")
    (kind, what), *_ = measure.items()
    count = MEASURES[choose(str(kind), MEASURES, f"measure of {where}:")]
    if kind != "correlation":
        choose(str(what), METRICS, f"metric of {where}:")
    runs = tuple(tuple(names) for names in member(entry, "runs", list, where))
    if not runs or any(len(names) != count if count else len(names) < 2 for names in runs):
        raise UserError(f"{where}: runs must be lists of {count or 'two or more'} names, nearest to the paper first.")
    asserts = choose(member(entry, "asserts", str, where), ASSERTS, f"assertion of {where}:")
    than = entry.get("than", 1 if kind in ("ratio", "step") else 0)
    rows = [tuple(row) for row in entry.get("paper", [])]
    for row in rows:
        if row not in printed.index:
            raise UserError(f"{where}: paper.csv has no row {', '.join(map(str, row))}.")
    paper = math.nan if not rows else float(printed[rows[0]]) / (float(printed[rows[1]]) if rows[1:] else 1)
    setting = settings[choose(entry["setting"], settings, f"setting of {where}:")] if "setting" in entry else {}
    return Claim(group, entry["id"], page, sentence, kind, what, runs, asserts, float(than), paper, setting)


def judge(
    asserts: str, than: float, paper: float, value: float, low: float, high: float, null_low: float = math.nan,
    null_high: float = math.nan, in_setting: bool = False,
) -> str:  # fmt: skip
    """The verdict by the rules at the top of this module.

    Args:
        asserts, than: of the claim.
        paper: the paper's number, NaN if it prints none.
        value, low, high: ours.
        null_low, null_high: the no-signal level; NaN where there is none, as of a ratio.
        in_setting: our runs are of the setting that the paper's number belongs to.
    """
    choose(asserts, ASSERTS, "assertion")
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        return "undecided" if not math.isnan(value) else "not measured"
    above = low > than and not low <= null_high
    below = high < than and not high >= null_low
    if asserts in ("at least", "below"):
        holds, fails = (above, high < than) if asserts == "at least" else (high < than, low >= than)
        return ("agrees" if in_setting else "agrees elsewhere") if holds else "opposite" if fails else "undecided"
    clear, other = (below, above) if asserts == "less" else (above, below)
    if not clear:
        return "opposite" if other else "undecided"
    if low <= paper <= high and high - low <= abs(paper - than):
        return "agrees" if in_setting else "agrees elsewhere"
    return "present" if asserts == "level" else "same direction"

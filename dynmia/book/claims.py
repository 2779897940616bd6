"""Claims as data: ``data/claims.yml`` says what is claimed, the rules below what our 95 % interval makes of it.

A claim asserts more (less) than *no effect*: 0 of a change or a correlation, 1 of a ratio. Or it asserts presence, and
that is no direction. An interval is *clear* if all of it lies on the claim's side of no effect and beyond the no-signal
level (of presence: this alone; of a ratio: there is none).

    agrees             holds the paper's number, in the paper's data, network, optimiser, pool and epochs
    agrees elsewhere   holds it in another setting, which stands beside it
    same direction     clear; the number is excluded, or not printed, or the interval is too wide to agree
    present            the same, of a claim of presence
    opposite           clear on the other side
    undecided          holds both
    not measured       no run that can speak is released, or the figure is undefined

Too wide is as wide as the number lies beyond no effect and the no-signal level: what agrees holds neither no effect nor
twice the effect, so width earns nothing. The first run of a list speaks, not one that agrees. A bound agrees
(elsewhere) if all of the interval keeps to it and is beyond the no-signal level; if none keeps to it, it is opposite.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..attack.scoring import Scoring
from ..dynamics.metrics import METRICS
from ..errors import UserError, choose, shown
from ..stats.hardness import MEASURES as HARDNESS
from ..store.run import project_root, resolve
from .cells import band, carried, cell, resolved
from .tables import entries, member, named, read_list, read_table

VERDICTS = ("agrees", "agrees elsewhere", "same direction", "present", "opposite", "undecided", "not measured")
KINDS = ("key result", "mechanism", "experiment", "other paper", "own")  # the first three are the paper's
ASSERTS = {"more_than": 1, "less_than": -1, "over": 1, "under": -1, "presence": 1}  # and the side of the claim
BOUNDS = ("over", "under")
MEASURES = {  # what each is of, and of how many runs; 0: two or more
    "figure": ("metric", 1), "ratio": ("metric", 2), "smallest_step": ("metric", 0), "spread": ("metric", 0),
    "correlation": ("measure samples models", 1), "difference": ("measure over samples models", 1),
}  # fmt: skip
WORDS: dict[str, Any] = {
    "metric": METRICS, "measure": HARDNESS, "over": HARDNESS, "samples": ("all", "vulnerable"),
    "models": ("all models", "same half", "other half"),
}  # fmt: skip
SETTING = ("dataset", "model", "optimizer", "pool_size", "epochs")
PARTS = ("id", "page", "sentence", "measure", "asserts", "paper", "source", "runs")


class Measured(NamedTuple):
    """A figure with its 95 % interval, its no-signal level (NaN where there is none), and what marks the interval."""

    value: float
    low: float
    high: float
    null_low: float = math.nan
    null_high: float = math.nan
    clipped: str = ""
    carrier: float = math.nan


class Claim(NamedTuple):
    """One claim of ``data/claims.yml``, where its parts are explained; settings: what the number belongs to, by run."""

    kind: str
    id: str
    page: str
    sentence: str
    measure: str
    of: dict[str, str]
    asserts: str
    than: float  # NaN of presence
    paper: float  # NaN if no number is printed
    source: str
    settings: tuple[dict[str, Any], ...]
    runs: tuple[tuple[str, ...], ...]


def claims(path: str | os.PathLike[str] = "data/claims.yml") -> list[Claim]:
    """All claims, in the order of the list.

    Raises:
        UserError: an unknown part, measure, metric, reading, page, run, setting or row of paper.csv, in one line.
    """
    path = resolve(path)
    content = read_list(path, ("settings", *KINDS))
    settings = member(content, "settings", dict, path)
    for name in settings:
        for part in member(settings, name, dict, f"{path}: settings"):
            choose(str(part), SETTING, f"part of {path}: setting {name}:")
    pages = sorted(page.stem for page in (project_root() / "notebooks").glob("*.ipynb"))
    runs, paper = [entry.name for entry in entries()], read_table("data/paper.csv").value
    ids: list[str] = []
    listed = []
    for kind in KINDS:
        for entry in member(content, kind, list, path):
            ids.append(named(entry, "id", ids, path))
            where = f"{path}: claim {ids[-1]}"
            claim = _claim(entry, kind, settings, paper, where)
            choose(claim.page, pages, f"page of {where}:")
            for run in (run for names in claim.runs for run in names):
                choose(str(run), runs, f"run of {where}:")
            listed.append(claim)
    return listed


def _claim(entry: dict[str, Any], kind: str, settings: dict[str, Any], paper: pd.Series, where: str) -> Claim:
    for part in entry:
        choose(str(part), PARTS, f"part of {where}:")
    page, sentence = (member(entry, part, str, where) for part in ("page", "sentence"))
    measure, of = _single(entry, "measure", MEASURES, where)
    keys, count = MEASURES[measure][0].split(), MEASURES[measure][1]
    for key in (*member({measure: of}, measure, dict, where), *keys):
        word = member(of, choose(str(key), (*keys, "reading"), f"part of {where}: {measure}:"), str, where)
        choose(word, WORDS[key], f"{key} of {where}:") if key in WORDS else Scoring.of(word)
    asserts, than = _single(entry, "asserts", ASSERTS, where)
    if isinstance(than, bool) or not isinstance(than, type(None) if asserts == "presence" else (int, float)):
        raise UserError(f"{where}: asserts {asserts} {shown(than)}: presence stands alone, all others need a number.")
    runs = [[names] if isinstance(names, str) else names for names in member(entry, "runs", list, where)]
    if not runs or any(not isinstance(n, list) or (len(n) != count if count else len(n) < 2) for n in runs):
        raise UserError(f"{where}: a {measure} is of {count or 'two or more'} runs: list such, the nearest first.")
    number, source, sets = math.nan, "", []
    if "paper" in entry:
        row, source = member(entry, "paper", list, where), member(entry, "source", str, where)
        number, sets = printed_value(paper, row, where), row[0].split("/")
    belongs = tuple(settings[choose(name, settings, f"setting of {where}:")] for name in sets)
    than = math.nan if than is None else float(than)
    return Claim(kind, entry["id"], page, sentence, measure, of, asserts, than, number, source, belongs,
                 tuple(map(tuple, runs)))  # fmt: skip


def _single(entry: dict[str, Any], key: str, allowed: Any, where: str) -> tuple[str, Any]:
    """Name and value of the mapping of one name that ``entry`` has under ``key``; of a word alone, it and None."""
    value = entry.get(key)
    [(name, inner)] = value.items() if isinstance(value, dict) and len(value) == 1 else [(value, None)]
    return choose(str(name), allowed, f"{key} of {where}:"), inner


def printed_value(paper: pd.Series, row: list[Any], where: str = "paper.csv") -> float:
    """The paper's number in ``row``, (data set, metric); of ``a/b``, where it has none, that of a over that of b."""
    sets, metric = map(str, row) if len(row) == 2 else ("", "")
    keys = [(name, metric) for name in ([sets] if (sets, metric) in paper.index else sets.split("/"))]
    if len(keys) > 2 or any(key not in paper.index for key in keys):
        raise UserError(f"{where}: paper.csv has no row {shown(row)}: name its data set and metric, or a/b of two.")
    return float(paper[keys[0]] / (paper[keys[1]] if keys[1:] else 1))


def judge(asserts: str, than: float, paper: float, ours: Measured, in_setting: bool = False) -> str:
    """The verdict by the rules at the top of this module; arguments as the parts of a :class:`Claim`."""
    side = ASSERTS[choose(asserts, ASSERTS, "assertion")]
    if math.isnan(ours.value):
        return "not measured"
    if math.isnan(ours.low) or math.isnan(ours.high):
        return "undecided"
    near, far = sorted((side * ours.low, side * ours.high))
    weak, strong = sorted((side * ours.null_low, side * ours.null_high))
    agrees = "agrees" if in_setting else "agrees elsewhere"
    if asserts in BOUNDS:
        if near > side * than and not near <= strong:
            return agrees
        return "opposite" if far < side * than else "undecided"
    floor, ceiling = np.fmax(side * than, strong), np.fmin(side * than, weak)
    if near <= side * paper <= far and far - near < side * paper - floor:
        return agrees
    if near > floor:
        return "present" if asserts == "presence" else "same direction"
    return "opposite" if far < ceiling else "undecided"


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of claims.csv, as :func:`dynmia.book.tables.read_table` reads them, as a page shows them."""

    def numbers(row: Any) -> tuple[str, str]:
        if np.isnan(row.value):
            return "not measured", ""
        least = int(row.unit == "ratio")  # 1 is no effect, so whole numbers would not tell
        digits = max(least, resolved(row.low, row.high, 3))
        noise = "" if np.isnan(row.null_low) else band(row.null_low, row.null_high, digits=digits)
        return carried(cell(row.value, row.low, row.high, 3, least, row.clipped), row.carrier), noise

    table = table.reset_index()
    cells = [numbers(row) for row in table.itertuples()]
    return pd.DataFrame({
        "claim": table.sentence, "unit": table.unit.fillna(""),
        "paper": [f"{value:.3g}" if np.isfinite(value) else "" for value in table.paper],
        "ours [95 %]": [ours for ours, _ in cells], "no signal": [noise for _, noise in cells],
        "verdict": table.verdict, "setting": table.setting, "reading": table.reading,
    })  # fmt: skip

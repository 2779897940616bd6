"""Released runs, tables (CSV) and lists (YAML): each read whole, or refused in one line that says the mend."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import xarray as xr
import yaml

from ..dynamics.metrics import METRICS
from ..errors import UserError, choose, reason, shown
from ..store.run import open_run, resolve
from ..study import Study
from .makers import made_by

READINGS = ("posterior", "bayes", "fpr@0.01")  # of the study's attack, under which figures.csv holds every run
RULES = ("lira:fpr@0.01", "lira:bayes")  # as well
SCORINGS = (*READINGS, *RULES)
RANGE = "value low high"
# name of a released table -> the columns that tell its rows apart, further columns of text, and what must be there of
# numbers; every other column holds numbers too
TABLES = {
    "figures.csv": (
        "run rule metric", "run_sha256 clipped",
        f"{RANGE} error carrier null_value null_low null_high p null_defined null_draws",
    ),
    "attacks.csv": ("run attack rule metric", "", f"{RANGE} null_value null_low null_high p"),
    "claims.csv": (
        "id reading", "page kind sentence source unit runs setting paper_setting verdict clipped",
        f"paper {RANGE} null_low null_high carrier",
    ),
    "complexity.csv": ("dataset measure", "label unit fingerprint", f"{RANGE} null_low null_high samples"),
    "coverage.csv": (
        "scenario rule over method metric", "", "value estimand truth coverage error ratio binomial populations"
    ),
    "markov.csv": ("run rule", "sha256", "p_lr p_pooled p_ck bits entropy share share_low share_high models samples"),
    "markov-calibration.csv": ("run rule samples statistic test", "", "rate chains"),
    "null-bias.csv": ("variance design models rule metric", "", RANGE),
    "null-calibration.csv": ("batch rule metric", "", "rejected defined attainable"),
    "paper.csv": ("dataset metric", "setting", "value"),
    "peers.csv": ("run epoch attack metric", "", f"{RANGE} gain gain_low gain_high null_value null_low null_high"),
    "peers-models.csv": ("run models attack partition subset", "", "samples auc tpr_01pct tpr_1pct tpr_10pct ece"),
    "plane-error.csv": ("population models rule of quantity truth estimate", "", "bias sd mse ratio low high"),
    "precision.csv": ("run rule models partition subset", "", "samples advantage auc displacement noise_binomial"),
    "rarity.csv": ("run sample", "", "rarest features"),
    "sensitivity.csv": ("subject choice metric", "verdict", f"{RANGE} null_low null_high"),
}  # fmt: skip
COUNTS = ("models", "partition", "subset", "samples", "sample", "batch", "epoch")  # numbers among what tells rows apart
NAME = re.compile(r"\w[\w.+-]{0,99}", re.ASCII)
LARGEST = 10**6  # characters of a list that a person writes
KINDS: dict[type, str] = {dict: "a mapping of names to values", list: "a list", str: "a text in quotes"}


def read_table(path: str | os.PathLike[str], name: str = "") -> pd.DataFrame:
    """The released table in ``path``, indexed by what tells its rows apart, in the file's order.

    Args:
        path: of a CSV file; lines that are empty or begin with # are left out.
        name: in ``TABLES``; default that of the file.

    Raises:
        UserError: it is missing, cut off, of other columns, or holds a row twice or text for a number.
    """
    maker = made_by(path := resolve(path), name)
    if not path.exists():
        raise UserError(f"{path} does not exist: {maker} makes it.")
    keys, words, numbers = (part.split() for part in TABLES[name or path.name])
    words += [key for key in keys if key not in COUNTS]
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        lines = path.read_text("utf-8-sig").splitlines(keepends=True)
        text = "".join(line for line in lines if line.strip() and not line.startswith("#"))
        rows = list(csv.reader(io.StringIO(text), strict=True))
        if len(rows) < 2:
            raise ValueError("it has no rows")
        if not text.endswith("\n") and not maker.startswith("git"):  # a person's table may end so
            raise ValueError("its last line is cut off")
        if absent := [column for column in keys + words + numbers if column not in rows[0]]:
            raise ValueError(f"it lacks the column {absent[0]}")
        if ragged := [number for number, row in enumerate(rows) if len(row) != len(rows[0])]:
            raise ValueError(f"row {ragged[0]} has {len(rows[ragged[0]])} cells, not {len(rows[0])}")
        table = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(words, str))
        for column in table.columns.difference(words):
            wrong = table[column][pd.to_numeric(table[column], "coerce").isna() & table[column].notna()]
            if len(wrong):
                raise ValueError(f"{column} is {wrong.iloc[0]!r} in row {wrong.index[0] + 1}, which is no number")
        if (again := table.duplicated(keys)).any():
            raise ValueError(f"it has {', '.join(map(str, table.loc[again, keys].iloc[0]))} twice")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({reason(error)}): delete it, and {maker} makes it again.") from error
    return table.set_index(keys)


class _Loader(yaml.SafeLoader):
    """YAML without aliases, of which a few can hold billions of values, and without a key that is given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            problem = "an alias (*name) stands where a value is wanted"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for name, times in Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)).items():
            if times > 1:
                raise yaml.MarkedYAMLError(problem=f"{name} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_list(path: Path, allowed: tuple[str, ...]) -> dict[str, Any]:
    """The mapping in a YAML file, whose keys are among ``allowed``.

    Raises:
        UserError: it is missing, no YAML, no mapping, or far larger than a person writes.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: restore it from the source tree, for example by git checkout {path}.")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} characters")
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path} is no YAML: {error.problem}{line}.") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is {shown(content)}: it must be a mapping of {', '.join(allowed)}.")
    for key in content:
        choose(str(key), allowed, f"part of {path}:")
    return content


def member(holder: dict[str, Any], key: str, kind: type, where: object) -> Any:
    """``holder[key]``, which must be a ``dict``, ``list`` or ``str``."""
    if not isinstance(value := holder.get(key), kind):
        was = f"is {shown(value)}" if key in holder else "is missing"
        raise UserError(f"{where}: {key} {was}: it must be {KINDS[kind]}.")
    return value


def named(holder: object, key: str, before: list[str], where: object) -> str:
    """The name that ``holder`` has under ``key``: fit for a file in any folder, and none of those ``before`` it."""
    entry = f"{where}: entry {len(before) + 1}"
    if not isinstance(holder, dict):
        raise UserError(f"{entry} is {shown(holder)}: it must be {KINDS[dict]}, {key} among them.")
    name = member(holder, key, str, entry)
    if not NAME.fullmatch(name):
        raise UserError(f"{where}: {key} {name[:120]!r} names a file: use up to 100 letters, digits and _ . + - only.")
    if name.casefold() in map(str.casefold, before):
        raise UserError(f"{where}: {key} {name!r} is there twice: each needs one of its own.")
    return name


@contextlib.contextmanager
def located(where: object) -> Iterator[None]:
    """Let what a ``UserError`` says begin with ``where`` the fault is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


class Entry(NamedTuple):
    """One run of the list: its name, the chapters that show it, its fields as they are listed, and their study."""

    name: str
    chapters: tuple[str, ...]
    fields: dict[str, Any]
    study: Study


def entries(only: str = "") -> list[Entry]:
    """The list in ``data/campaign.yml``, in order of value: ``only`` a chapter (``02``), or a part of a run's name."""
    path = resolve("data/campaign.yml")
    content = read_list(path, ("defaults", "scales", "runs"))
    defaults = member(content, "defaults", dict, path)
    listed: list[Entry] = []
    for run in member(content, "runs", list, path):
        name = named(run, "name", [entry.name for entry in listed], path)
        chapters = member(run, "chapters", list, f"{path}: run {name}")
        fields = defaults | {key: value for key, value in run.items() if key not in ("name", "chapters")}
        with located(f"{path}: run {name}"):
            if not all(isinstance(chapter, str) for chapter in chapters):
                raise UserError('chapters must be texts in quotes, for example ["02", "03"].')
            listed.append(Entry(name, tuple(chapters), fields, Study.from_dict(fields)))
    chosen = [entry for entry in listed if only in ("", *entry.chapters)]
    if not (chosen := chosen or [entry for entry in listed if only in entry.name]):
        raise UserError(f"no run matches {only!r}: name a chapter, like 02, or a part of a name, like mnist.")
    return chosen


def released(chapter: str, folder: str | os.PathLike[str] = "data") -> dict[str, xr.Dataset]:
    """The runs of ``chapter`` that lie in ``folder``, by name, in the order of the list."""
    paths = {entry.name: resolve(folder) / f"{entry.name}.nc" for entry in entries(only=chapter)}
    runs = {name: open_run(path) for name, path in paths.items() if path.exists()}
    if not runs:
        raise UserError(
            f"{folder} holds no run of chapter {chapter}: train them by dynmia make campaign --only {chapter}."
        )
    return runs


def missing(chapter: str, folder: str | os.PathLike[str] = "data") -> list[str]:
    """Names of the runs of ``chapter`` that are not in ``folder``."""
    return [e.name for e in entries(only=chapter) if not (resolve(folder) / f"{e.name}.nc").exists()]


def figures(folder: str | os.PathLike[str] = "data", rule: str = "posterior") -> pd.DataFrame:
    """Every metric of every run in ``folder`` under ``rule``, from ``figures.csv``.

    Returns:
        Index (run, metric); columns label, unit; value, low, high, error, clipped, carrier from
        :func:`dynmia.stats.intervals.summarise`; null_value, null_low, null_high (the no-signal level) and p, from
        :func:`dynmia.stats.resample.p_values`.
    """
    path = resolve(folder) / "figures.csv"
    table = read_table(path)
    choose(rule, sorted(set(table.index.get_level_values("rule"))), "decision rule in figures.csv")
    table = table.xs(rule, level="rule").drop(columns=["null_draws", "null_defined", "run_sha256"])
    metrics = [METRICS[choose(name, METRICS, f"metric in {path}:")] for name in table.index.get_level_values("metric")]
    table.insert(0, "label", [metric.label for metric in metrics])
    table.insert(1, "unit", [metric.unit for metric in metrics])
    return table


def no_signal(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of the no-signal level of :func:`figures`, named as by :func:`dynmia.stats.resample.null_summary`."""
    return table[["null_value", "null_low", "null_high", "p"]].rename(columns=lambda name: name.removeprefix("null_"))

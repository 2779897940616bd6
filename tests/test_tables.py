"""Released tables are read whole, or refused in one line; what makes them checks its words and its place first."""

import sys

import pytest
import torch
from test_errors import assert_one_clear_line

from dynmia.book import campaign, tables
from dynmia.chapters import comparison, holding, markov, robustness, sensitivity, smoothing
from dynmia.chapters._shared import released
from dynmia.errors import UserError
from dynmia.shadow import gpu_session
from dynmia.stats import precision
from dynmia.store.run import project_root

READERS = {  # what reads a table, given its path
    "figures.csv": (lambda path: campaign.figures(path.parent), "dynmia campaign"),
    "attacks.csv": (
        lambda path: released(path.name, "robustness", path.parent, robustness.INDEX), "dynmia.chapters.robustness"
    ),
    "coverage.csv": (lambda path: holding.load(path.parent), "dynmia.stats.coverage"),
    "markov.csv": (lambda path: markov.read(path.name, path.parent), "dynmia.chapters.markov"),
    "markov-calibration.csv": (lambda path: markov.read(path.name, path.parent), "dynmia.chapters.markov"),
    "paper.csv": (lambda path: comparison.paper_table({}, {}, path), "git checkout data/paper.csv"),
    "plane-error.csv": (lambda path: smoothing.table(path.parent), "dynmia.chapters.smoothing"),
    "precision.csv": (precision.load, "dynmia.stats.precision"),
    "rarity.csv": (lambda path: released(path.name, "rarity", path.parent), "dynmia.chapters.rarity"),
    "sensitivity.csv": (lambda path: sensitivity.read(path.parent), "dynmia.chapters.sensitivity"),
}  # fmt: skip
DAMAGES = {  # what happened to the header and three lines of the table -> the file's content, a part of the line
    "empty": (lambda lines: b"", "has no rows"),
    "only-header": (lambda lines: lines[0], "has no rows"),
    "cut": (lambda lines: b"".join(lines)[:-3], None),
    "other-columns": (lambda lines: b"a,b\n1,2\n", "lacks the column"),
    "column-lost": (lambda lines: b"".join(line.partition(b",")[2] for line in lines), "lacks the column"),
    "text-for-a-number": (lambda lines: b"".join([*lines[:2], lines[2].replace(b"7.25", b"seven")]), "is 'seven'"),
    "row-twice": (lambda lines: b"".join([*lines, lines[1]]), "twice"),
    "more-cells": (lambda lines: b"".join([*lines[:2], b"1,", lines[2]]), "cells, not"),
    "fewer-cells": (lambda lines: b"".join([*lines[:2], b"1\n"]), "has 1 cells, not"),
    "open-quote": (lambda lines: b"".join([*lines, b'"abc\n']), "unexpected end"),
    "utf-16": (lambda lines: b"".join(lines).decode().encode("utf-16"), "utf-8"),
    "binary": (lambda lines: bytes(range(256)), "utf-8"),
}


def small(name):
    """The header and three lines of a released table, with 7.25 in the last column of numbers of the second line."""
    keys, words, _ = (part.split() for part in tables.TABLES[name])
    lines = (project_root() / "data" / name).read_text().splitlines()
    header, *rows = [line for line in lines if not line.startswith("#")][:4]
    names, cells = header.split(","), rows[1].split(",", header.count(","))
    numbers = [column for column in names if column not in [*keys, *words]]
    cells[names.index(numbers[-1])] = "7.25"
    return [f"{line}\n".encode() for line in (header, rows[0], ",".join(cells), rows[2])]


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_table_is_one_clear_line(name, tmp_path):
    (read, maker), path = READERS[name], tmp_path / name
    lines = small(name)
    assert_one_clear_line(lambda: read(path), [str(path), "does not exist", maker])
    for case, (damage, part) in DAMAGES.items():
        if case == "cut" and name == "paper.csv":
            continue  # a person writes it, and may end it without a line's end
        path.write_bytes(damage(lines))
        assert_one_clear_line(lambda: read(path), [str(path), "is damaged", part or "cut off", maker])
    path.unlink()
    path.mkdir()
    assert_one_clear_line(lambda: read(path), [str(path), "is no file", maker])


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_and_comments_change_nothing(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"".join(small(name)))
    plain = tables.read_table(path, "x")
    path.write_bytes(b"\xef\xbb\xbf# made by a person\n# twice\n" + b"\n# more\n".join(small(name)))
    assert tables.read_table(path, "x").equals(plain)
    assert len(plain) == 3


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_released_table_is_as_listed(name):
    keys, words, numbers = (part.split() for part in tables.TABLES[name])
    table = tables.read_table(project_root() / "data" / name, "x")
    assert list(table.index.names) == keys
    assert {*words, *numbers} <= set(table.columns)


def one_line(capsys, work, *words):
    """What a script prints when it ends with 2: the last line is the one that counts."""
    with pytest.raises(SystemExit) as stop:
        work()
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [word for word in words if word not in err.splitlines()[-1]] == []
    return err


def test_a_script_checks_its_place_before_it_works(tmp_path, monkeypatch, capsys):
    def work(folder="data"):
        """Write ``x.csv``."""
        done.append(folder)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, words)])
        tables.script(work, "x.csv", "y.csv")

    done = []
    (tmp_path / "y.csv").mkdir()
    for words, parts in {
        ("--bad",): ["unrecognized arguments: --bad"], ("a", "b"): ["unrecognized arguments: b"],
        (tmp_path / "none",): ["none is no folder"], (tmp_path,): ["cannot write", "y.csv", "a folder has that name"],
    }.items():  # fmt: skip
        one_line(capsys, lambda words=words: run(*words), *parts)
    assert not (tmp_path / "none").exists()
    assert done == []
    (tmp_path / "y.csv").rmdir()
    run(tmp_path)
    assert done == [str(tmp_path)]


def test_a_script_that_fails_says_why_in_one_line(monkeypatch, capsys):
    def work():
        raise UserError("no\nruns")

    monkeypatch.setattr(sys, "argv", ["script"])
    assert one_line(capsys, lambda: tables.script(work)) == "dynmia: no runs\n"


def test_a_script_that_is_interrupted_ends_without_a_traceback(monkeypatch):
    def work():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as stop:
        tables.script(work)
    assert stop.value.code == 130


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--part", "training2"], "'training2'"), (["--study", "paper-bad"], "'paper-bad'"),
        (["--budget", "0"], "more than 0"),
        (["--lanes", "0"], "lanes is 0"), (["--mode", "slow"], "'slow'"), (["--out", "file/x"], "is no folder"),
        (["--json", "folder"], "a folder has that name"),
    ],
)  # fmt: skip
def test_a_bad_gpu_session_stops_before_it_starts(tmp_path, monkeypatch, capsys, words, part):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(sys, "argv", ["session", *([] if "--json" in words else ["--json", "x.json"]), *words])
    assert one_line(capsys, gpu_session.main, part).count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_metric_that_this_version_has_not_is_named(tmp_path):
    lines = small("figures.csv")
    (tmp_path / "figures.csv").write_bytes(b"".join(lines).replace(b",tpr_1pct,", b",tpr_2pct,"))
    assert_one_clear_line(lambda: campaign.figures(tmp_path), ["metric in", "figures.csv", "'tpr_2pct'", "tpr_1pct"])

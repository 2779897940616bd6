"""Released tables are read whole, or refused in one line; what makes them checks its words and its place first."""

import csv
import io

import pytest
import torch
from helpers import assert_one_clear_line

from dynmia import cli
from dynmia.book import makers, tables
from dynmia.chapters import holding
from dynmia.store.run import project_root

READERS = {  # what reads a table, given its path
    **{
        name: (tables.read_table, f"dynmia make {name.removesuffix('.csv')} ")
        for name in tables.TABLES if name != "paper.csv"
    },
    "figures.csv": (lambda path: tables.figures(path.parent), "dynmia make figures "),
    "coverage.csv": (lambda path: holding.load(path.parent), "dynmia make coverage "),
    "paper.csv": (tables.read_table, "git checkout data/paper.csv"),
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
    names, cells = csv.reader([header, rows[1]])
    numbers = [column for column in names if column not in [*keys, *words]]
    cells[names.index(numbers[-1])] = "7.25"
    csv.writer(changed := io.StringIO(), lineterminator="").writerow(cells)
    return [f"{line}\n".encode() for line in (header, rows[0], changed.getvalue(), rows[2])]


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
    plain = tables.read_table(path)
    path.write_bytes(b"\xef\xbb\xbf# made by a person\n# twice\n" + b"\n# more\n".join(small(name)))
    assert tables.read_table(path).equals(plain)
    assert len(plain) == 3


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_released_table_is_as_listed(name):
    keys, words, numbers = (part.split() for part in tables.TABLES[name])
    table = tables.read_table(project_root() / "data" / name)
    assert list(table.index.names) == keys
    assert {*words, *numbers} <= set(table.columns)


def refused(capsys, *words):
    """The one line of a command that ends with 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["make", *map(str, words)])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


TABLES = [name for name in makers.scripts() if f"{name}.csv" in tables.TABLES]


@pytest.mark.parametrize("name", [name for name in TABLES if name != "complexity"])
def test_a_maker_checks_its_place_before_it_works(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(makers, "write_table", None)
    (tmp_path / f"{name}.csv").mkdir()
    for words, parts in {
        ("--bad",): ["No such option: --bad"], ("a", "b"): ["unexpected extra argument"],
        (tmp_path / "none",): ["none is no folder"], (tmp_path,): ["cannot write", f"{name}.csv", "a folder has that"],
    }.items():  # fmt: skip
        line = refused(capsys, name, *words)
        assert [part for part in parts if part not in line] == [], line
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.csv"]


def test_every_table_has_a_maker_and_every_maker_a_word_of_itself():
    released = {path.stem for path in (project_root() / "data").glob("*.csv")} - {"paper"}
    assert released <= set(makers.scripts())
    assert all(1 < len(line) <= 120 for line in makers.scripts().values())


def test_the_list_of_makers_and_their_names(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["make"])
    assert stop.value.code in (0, None)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(makers.scripts())
    assert makers.maker("null_bias") is makers.maker("null-bias")
    assert "did you mean 'null-bias'" in refused(capsys, "null-bais")


def test_a_made_table_says_how_and_is_read_again(tmp_path):
    whole = tables.read_table("data/rarity.csv").head(9)
    makers.write_table(whole, makers.table_place(tmp_path, "rarity.csv"), "seed 0")
    first, header, *_ = (tmp_path / "rarity.csv").read_text().splitlines()
    assert first == f"# made by: dynmia make rarity {tmp_path}; seed 0"
    assert header == "run,sample,rarest,features"
    assert tables.read_table(tmp_path / "rarity.csv").equals(whole)


def test_a_maker_that_is_interrupted_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(makers.maker("rarity"), "compute", lambda *_: interrupted())
    with pytest.raises(SystemExit) as stop:
        cli.main(["make", "rarity"])
    assert stop.value.code == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["bench-gpu", "--repeats", "0"], "repeats is 0"), (["bench-gpu", "--measurement", "graph_255"], "'graph_255'"),
        (["bench-gpu", "--time-budget", "0"], "more than 0"), (["bench-gpu", "--out", "file/x.json"], "is no folder"),
        (["agreement-gpu", "--time-budget", "0"], "more than 0"),
        (["agreement-gpu", "--runs", "file/x"], "is no folder"),
        (["agreement-gpu", "--out", "folder.json"], "a folder has that name"),
    ],
)  # fmt: skip
def test_a_bad_measurement_of_a_gpu_stops_before_it_starts(tmp_path, monkeypatch, capsys, words, part):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    assert part in refused(capsys, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.json"]


def test_a_metric_that_this_version_has_not_is_named(tmp_path):
    lines = small("figures.csv")
    (tmp_path / "figures.csv").write_bytes(b"".join(lines).replace(b",tpr_1pct,", b",tpr_2pct,"))
    assert_one_clear_line(lambda: tables.figures(tmp_path), ["metric in", "figures.csv", "'tpr_2pct'", "tpr_1pct"])

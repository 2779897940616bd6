"""Notebooks: what their parameters may be, where they may be written, and what happens when they fail."""

import nbformat
import papermill
import pytest
import xarray as xr
import yaml
from helpers import assert_one_clear_line

from dynmia.book import execute as notebooks
from dynmia.errors import UserError

TYPED = """from collections.abc import Sequence
from typing import Annotated, Literal, Optional
title: str = "a = b"  # heading of the page
whole: int = 2**4
maybe: int | None = None  # a number, or none
words: list[str] = ["a"]
text: Optional[str] = None
pair: tuple[int, float] = (1, 2.0)
named: dict[str, int] = {}
kind: Literal["a", "b"] = (
    "a"
)  # which
share: float = 0.5
flag: bool = False
rows: list[list[int]] = []
noted: Annotated[int, "a count"] = 1
quoted: "int" = 1
level: Literal[1, 2] = 1
names: Sequence[str] = ()
other: "pd.DataFrame" = None
plain = 3
"""
GOOD = {  # as given on the command line -> as the notebook gets it
    "title": ("3", "3"), "whole": ("3", 3), "maybe": ("None", None), "words": ("['x', 'y']", ["x", "y"]),
    "text": ("abc", "abc"), "pair": ("(2, 3)", (2, 3)), "named": ("{'a': 1}", {"a": 1}), "kind": ("b", "b"),
    "share": ("1e-3", 0.001), "flag": ("true", True), "rows": ("[[1], []]", [[1], []]), "noted": ("2", 2),
    "quoted": ("2", 2), "level": ("2", 2), "names": ("('x',)", ("x",)), "other": ("x", "x"), "plain": ("[1]", [1]),
}  # fmt: skip
BAD = {
    "whole": ["3.5", "x", True, None, [1], 1.0], "maybe": ["x", 1.5, False], "words": ["[1]", "x", ["a", 1], None],
    "text": [3, ["a"]], "pair": ["(1,)", "(1, 'a')", [1, 2.0], "x"], "named": ["{1: 1}", {"a": "b"}, "[]"],
    "kind": ["c", "1", None], "share": ["x", True, "9" * 400], "flag": ["yes", 1, None], "rows": ["[[1], [True]]", [1]],
    "noted": [True, "x"], "quoted": [True, "x", 1.5], "level": [True, 3, "x"], "names": ["x", [1]],
    "title": [3, None, ["a"]],
}  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """project(name, *code, parameters=...) writes a template of a project of its own, whose folder it returns."""
    monkeypatch.setattr(notebooks, "project_root", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()

    def write(name, *code, parameters=None):
        cells = [nbformat.v4.new_markdown_cell("# {{title}}: {{plain}}, {{whole}}, {{absent}}")]
        if parameters is not None:
            cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
        cells += [nbformat.v4.new_code_cell(text) for text in code]
        kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
        return tmp_path

    return write


def test_parameters_are_read_as_they_are_written(project):
    project("typed", parameters=TYPED)
    found = notebooks.parameters("typed")
    assert list(found) == list(GOOD)
    assert (found["title"].annotation, found["title"].value, found["title"].help) == (
        "str", "a = b", "heading of the page"
    )  # fmt: skip
    assert (found["maybe"].annotation, found["kind"].help) == ("int | None", "which")
    assert (found["whole"].default, found["whole"].value) == ("2**4", "2**4")


@pytest.mark.parametrize("name", GOOD)
def test_what_an_annotation_allows_is_accepted(project, name):
    project("typed", parameters=TYPED)
    text, value = GOOD[name]
    for given in (text, value):
        checked = notebooks.check_parameters("typed", {name: given})[name]
        assert (checked, type(checked)) == (value, type(value))


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_what_an_annotation_does_not_allow_is_one_clear_line(project, name, value):
    project("typed", parameters=TYPED)
    kind = notebooks.parameters("typed")[name].annotation
    assert_one_clear_line(
        lambda: notebooks.check_parameters("typed", {name: value}), [f"parameter {name} is", f"must be of type {kind}."]
    )


def test_an_annotation_is_not_executed(project):
    project("typed", parameters="import os\nx: os.mkdir('made') = 1\ny: (lambda: 1)() = 1\nz: [][5] = 1\n")
    assert notebooks.check_parameters("typed", dict.fromkeys("xyz", "a")) == dict.fromkeys("xyz", "a")


def test_a_notebook_that_is_none_or_takes_no_parameters(project):
    folder = project("none", "1")
    (folder / "notebooks" / "cut.ipynb").write_text('{"cells": [')
    (folder / "notebooks" / "list.ipynb").write_text("[]")
    project("syntax", parameters="n: int = ")
    assert_one_clear_line(lambda: notebooks.check_parameters("none", {"n": 1}), ["none", "takes no parameters"])
    assert notebooks.check_parameters("none", {}) == {}
    for name in ("cut", "list", "syntax"):
        assert_one_clear_line(lambda name=name: notebooks.check_parameters(name, {}), [name, "cannot be read"])


def test_the_place_is_checked_before_the_notebook_takes_its_time(project, monkeypatch):
    folder = project("one", "1")
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("executed"))
    template = folder / "notebooks" / "one.ipynb"
    content = template.read_bytes()
    (folder / "folder.ipynb").mkdir()
    (folder / "file").touch()
    (folder / "link.ipynb").symlink_to(template)
    for out, part in {
        folder / "x": "end in .ipynb", folder: "end in .ipynb", folder / "folder.ipynb": "a folder has that name",
        template: "template", folder / "link.ipynb": "template", folder / "file" / "x.ipynb": "is no folder",
        folder / ("a" * 300) / "x.ipynb": "too long", f"{folder}/a\0b/x.ipynb": "null",
    }.items():  # fmt: skip
        words = "is to be written as a .ipynb file" if part == "end in .ipynb" else "cannot write"
        assert_one_clear_line(lambda out=out: notebooks.run_notebook("one", {}, out), [words, part])
    assert template.read_bytes() == content


def test_values_reach_the_notebook_and_its_text_escaped(project):
    folder = project("typed", "print(repr((pair, words, text)))", parameters=TYPED)
    given = {"title": "<script>|`x`\n{{plain}}", "pair": "(2, 3)", "words": ["y"], "text": 'say "no"'}
    path = notebooks.run_notebook("typed", given, folder / "new" / "x.ipynb", progress=False)
    cells = nbformat.read(path, nbformat.NO_CONVERT).cells
    head = "# &#60;script&#62;&#124;&#96;x&#96; &#123;&#123;plain&#125;&#125;: 3, 2&#42;&#42;4, {{absent}}"
    assert cells[0].source == head
    assert cells[-1].outputs[0].text == "((2, 3), ['y'], 'say \"no\"')\n"
    assert path.read_bytes().endswith(b"}\n")
    assert [file.name for file in path.parent.iterdir()] == ["x.ipynb"]


def test_a_kernel_that_dies_and_an_interrupt_leave_the_old_result(project, monkeypatch):
    folder = project("dead", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    (folder / "x.ipynb").write_text("old")
    assert_one_clear_line(
        lambda: notebooks.run_notebook("dead", {}, folder / "x.ipynb", progress=False), ["dead", "Kernel died"]
    )

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", interrupt)
    with pytest.raises(KeyboardInterrupt):
        notebooks.run_notebook("dead", {}, folder / "x.ipynb", progress=False)
    assert (folder / "x.ipynb").read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == ["notebooks", "x.ipynb"]


ENTRY = {"notebook": "one", "output": "first", "parameters": {"n": 3}}
LISTS = {  # what notebooks/experiments.yml holds -> parts of the one line
    "nothing": (None, ["experiments.yml is None"]),
    "list": ([ENTRY], ["is [", "mapping"]),
    "no-list": ({"experiments": None}, ["experiments is None", "a list"]),
    "global-list": ({"global_params": [1], "experiments": [ENTRY]}, ["global_params is [", "mapping"]),
    "entry-text": ({"experiments": ["one"]}, ["entry 1 is 'one'", "mapping"]),
    "no-notebook": ({"experiments": [{"output": "first"}]}, ["experiment first", "notebook is missing"]),
    "no-output": ({"experiments": [{"notebook": "one"}]}, ["entry 1", "output is missing"]),
    "parameters": ({"experiments": [ENTRY | {"parameters": [1]}]}, ["experiment first", "parameters is ["]),
    "unknown-part": ({"experiments": [ENTRY | {"paramters": {}}]}, ["first", "'paramters'", "'parameters'"]),
    "unknown-notebook": ({"experiments": [ENTRY | {"notebook": "ono"}]}, ["experiment first", "'ono'", "'one'"]),
    "unknown-parameter": ({"experiments": [ENTRY | {"parameters": {"m": 1}}]}, ["experiment first", "'m'"]),
    "type": ({"experiments": [ENTRY | {"parameters": {"n": "x"}}]}, ["experiment first", "n is 'x'", "int"]),
    "twice": ({"experiments": [ENTRY, {"notebook": "one", "output": "First"}]}, ["'First' is there twice"]),
    **{
        f"output-{value!r}": ({"experiments": [ENTRY | {"output": value}]}, ["output", "100 letters"])
        for value in ("", "../x", "a/b", "/tmp/x", "..", "a\nb", ".x")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS)
def test_a_bad_list_of_experiments_is_one_clear_line(project, monkeypatch, case):
    content, parts = LISTS[case]
    folder = project("one", parameters="n: int = 3")
    (folder / "notebooks" / "experiments.yml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("executed"))
    assert_one_clear_line(lambda: list(notebooks.run_experiments()), parts)


@pytest.mark.parametrize("jobs", [0, -1])
def test_no_jobs_at_all_is_one_clear_line(jobs):
    assert_one_clear_line(lambda: list(notebooks.run_experiments(jobs=jobs)), ["jobs", str(jobs), "at least 1"])


def test_one_failing_experiment_does_not_hide_the_others(project, monkeypatch):
    folder = project("one", parameters="n: int = 3")
    entries = [{"notebook": "one", "output": name, "parameters": {"n": k}} for k, name in enumerate("abc")]
    (folder / "notebooks" / "experiments.yml").write_text(yaml.safe_dump({"experiments": entries}))

    def execute(name, given, out, progress):
        if given["n"] == 1:
            raise UserError("notebook one: cell 3 failed")
        return out

    monkeypatch.setattr(notebooks, "run_notebook", execute)
    written = []
    with pytest.raises(UserError, match=r"^1 of 3 experiments failed: b \(notebook one: cell 3 failed\)"):
        written.extend(notebooks.run_experiments())
    assert [path.name for path in written] == ["a.ipynb", "c.ipynb"]


def test_attributes_of_a_run_are_escaped_in_the_source_line():
    attrs = {"created": "a|b", "hardware": "<script>x</script>\n# head", "command": "`rm`", "wall_time_s": 60}
    line = notebooks.source_line(xr.Dataset(attrs=attrs), "01", "[a](b)")
    assert line.count("\n") == line.count("<script>") == line.count("|") == line.count("[") == 0
    assert line.count("`") == 6
    plain = {"created": "2026", "hardware": "Intel(R) Xeon(R) @ 2 GHz, 2 cores", "command": "dynmia train --lr 0.1"}
    assert notebooks.source_line(xr.Dataset(attrs=plain | {"wall_time_s": 90}), "01", "data/a_b.nc") == (
        "<small>Source: notebook `01`, run `data/a_b.nc` (2026, Intel(R) Xeon(R) @ 2 GHz, 2 cores, 1.5 min), made by "
        "`dynmia train --lr 0.1`</small>"
    )

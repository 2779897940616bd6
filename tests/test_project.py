"""The project as a whole: its files agree with each other."""

import ast
import hashlib
import re
import subprocess
import tomllib
from collections import Counter

import nbformat
import pytest
import yaml
from helpers import ROOT

import dynmia
from dynmia import book, open_run, rounded, study_of
from dynmia.book import execute as notebooks
from dynmia.dynamics.metrics import METRICS
from dynmia.store.run import SEAL

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RELEASED = sorted(path for path in (ROOT / "data").glob("*.nc") if ".hardness" not in path.name)
RESULTS = sorted((ROOT / "book" / "results").glob("*.ipynb"))


def test_environment_and_pyproject_agree():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda, pip = environment["dependencies"][:-1], environment["dependencies"][-1]["pip"]
    extras = PROJECT["optional-dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert pip == [*PROJECT["dependencies"], *extras["book"], *extras["test"], "--editable ."]


def test_nothing_but_the_project_is_tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    assert {name.split("/")[0] for name in listed.stdout.splitlines()} == {
        ".ci", ".gitignore", "CITATION.cff", "LICENSE", "Makefile", "README.md", "_config.yml", "book", "data",
        "dynmia", "environment.yml", "notebooks", "pyproject.toml", "requirements.lock", "tests",
    }  # fmt: skip


def test_citation_has_the_version_of_the_package():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.name)
def test_released_runs_are_complete_and_small(path):
    run = open_run(path)
    assert path.stat().st_size <= 16e6
    assert study_of(run).checkpoints == run.epoch.values.tolist()
    assert run.sizes["model"] == study_of(run).shadow_models >= 10
    for name in ("identity", "fingerprint", "versions", "hardware", "wall_time_s", "command", "created", "device"):
        assert str(run.attrs[name])


def test_the_baseline_is_the_one_that_the_book_promises():
    run = open_run(ROOT / "data" / "cifar10-baseline-cosine.nc")
    study = study_of(run)
    assert (study.dataset, study.model, study.optimizer, study.schedule) == ("cifar10", "deep-cnn", "adamw", "cosine")
    assert run.sizes == {"epoch": 21, "model": 20, "sample": 4000}
    assert (study.epochs, study.pool_size) == (60, 4000)


def test_the_readme_table_is_what_the_released_figures_say():
    readme = (ROOT / "README.md").read_text()
    names = {"cifar10-baseline-cosine": 1, "quick": 2}
    for name, column in names.items():
        table = book.figures(ROOT / "data").loc[name]
        printed = rounded(table).iloc[:, -1]
        shown = 0
        for line in readme.splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            for metric in METRICS.values():
                if cells and cells[0] == f"{metric.label} ({metric.unit})".replace(" ()", ""):
                    assert cells[column] == printed[metric.label]
                    shown += 1
        assert shown >= 6


@pytest.mark.heavy("a process that loads torch and trains the example of the README")
def test_the_readme_example_runs(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert 8 <= len(code.strip().splitlines()) <= 14
    small = code.replace("epochs=30", "epochs=2, shadow_models=4, pool_size=150")
    assert small != code
    monkeypatch.chdir(tmp_path)
    exec(compile(small, "README.md", "exec"), {})
    assert (tmp_path / "trajectories.png").exists()


def test_experiments_are_valid_and_executed():
    found = notebooks.experiments()
    for entry in found:
        notebooks.check_parameters(entry["notebook"], entry["parameters"])
    outputs = {entry["output"].name for entry in found}
    assert {path.name for path in RESULTS} <= outputs
    assert outputs - {path.name for path in RESULTS} <= {"trained-here.ipynb"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_executed_notebooks_hold_results_only(path):
    text = path.read_text()
    notebook = nbformat.reads(text, nbformat.NO_CONVERT)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert [cell["id"] for cell in notebook.cells] == [f"cell-{n:02d}" for n in range(len(notebook.cells))]
    assert "/home/" not in text
    assert "/root/" not in text
    assert "{{" not in "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert any("assert_allclose" in cell.source for cell in notebook.cells)


def test_a_notebook_failure_is_one_clear_line(tmp_path):
    with pytest.raises(dynmia.UserError, match=r"missing\.nc does not exist"):
        notebooks.run_notebook("01-population", {"run_file": "data/missing.nc"}, tmp_path / "x.ipynb", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow("executes a notebook")
def test_text_cells_are_filled_with_the_defaults_of_parameters_that_are_not_given(tmp_path):
    path = notebooks.run_notebook("01-population", {"null_draws": 2}, tmp_path / "x.ipynb", progress=False)
    text = nbformat.read(path, nbformat.NO_CONVERT).cells[0].source
    assert text.startswith("# One population on the plane\n")


WINGS = {  # in the order in which they may import, with the most lines that each may have
    "errors": 112, "registry": 49, "study": 228, "pool": 603, "store": 726, "attack": 1100, "dynamics": 610,
    "stats": 1055, "shadow": 1790, "book": 905, "cli": 372, "chapters": 4215,
}  # fmt: skip


def test_wings_import_one_way():
    order = list(WINGS)
    for path in (ROOT / "dynmia").rglob("*.py"):
        wing, *inside = path.relative_to(ROOT / "dynmia").with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())) if wing != "__init__" else ():
            if isinstance(node, ast.ImportFrom) and node.level == 1 + bool(inside):
                for name in [(node.module or "").split(".")[0]] if node.module else [a.name for a in node.names]:
                    assert order.index(name) <= order.index(wing), f"{path} imports {name}"


def test_no_wing_grows():
    lines = Counter()
    for path in (ROOT / "dynmia").rglob("*.py"):
        wing = path.relative_to(ROOT / "dynmia").with_suffix("").parts[0]
        lines[wing] += len(path.read_text().splitlines())
    assert lines.keys() == WINGS.keys() | {"__init__"}
    assert [(wing, lines[wing]) for wing, most in WINGS.items() if lines[wing] > most] == []


def test_damage_of_a_released_file_without_a_seal_is_seen_before_hdf5_reads_it(tmp_path, monkeypatch):
    listed = dict(line.split()[::-1] for line in (ROOT / "data" / "SHA256SUMS").read_text().splitlines())
    files = {path.name: path for path in (ROOT / "data").glob("*.nc")}
    for name, path in files.items():
        assert SEAL in path.read_bytes()[-100:] or hashlib.sha256(path.read_bytes()).hexdigest() == listed[name]
    (tmp_path / "SHA256SUMS").write_text((ROOT / "data" / "SHA256SUMS").read_text())
    (tmp_path / "quick.nc").write_bytes(files["quick.nc"].read_bytes().replace(b"phi", b"psi", 1))
    monkeypatch.setattr("dynmia.store.run._read", None)
    with pytest.raises(dynmia.UserError, match=r"quick\.nc was altered"):
        open_run(tmp_path / "quick.nc")

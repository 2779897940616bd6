"""Run the parameterised notebooks: check names and types, execute by papermill, drop what changes between runs."""

from __future__ import annotations

import ast
import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import papermill
import xarray as xr
import yaml
from papermill.exceptions import PapermillExecutionError

from .errors import UserError, choose, disk_error
from .runs import project_root
from .runs import resolve as resolve  # for the notebooks


def available() -> dict[str, Path]:
    """The notebook templates by name."""
    return {path.stem: path for path in sorted((project_root() / "notebooks").glob("*.ipynb"))}


def check_parameters(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Check ``given`` against the annotated parameters of notebook ``name`` and return them with their right types.

    Raises:
        UserError: the notebook or a parameter is unknown (the nearest is named), or a value has a wrong type.
    """
    notebooks = available()
    known = papermill.inspect_notebook(notebooks[choose(name, notebooks, "notebook")])
    for key in given:
        choose(key, known, f"parameter of {name}:")
    return {key: _typed(key, value, known[key]["inferred_type_name"]) for key, value in given.items()}


def _typed(key: str, value: Any, kind: str) -> Any:
    """``value`` as ``kind``; strings from the command line are read as Python literals where that is meant."""
    if isinstance(value, str) and kind != "str":
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval({"true": "True", "false": "False"}.get(value.lower(), value))
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value).__name__ != kind:
        raise UserError(f"notebook parameter {key} is {value!r}; it must be of type {kind}.")
    return value


def run_notebook(name: str, parameters: dict[str, Any], out: str | os.PathLike[str], progress: bool = True) -> Path:
    """Execute notebook ``name`` with ``parameters`` (checked first) and write it to ``out``, cleaned.

    Raises:
        UserError: bad parameters, or a cell failed; the message holds the cell's error.
    """
    checked, source, out = check_parameters(name, parameters), available()[name], Path(out)
    part = out.with_name(f".{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(source, part, checked, cwd=project_root(), progress_bar=progress, log_output=False)
    except PapermillExecutionError as error:
        part.unlink(missing_ok=True)
        what = f"cell {error.cell_index} failed with {error.ename}: {error.evalue}"
        raise UserError(f"notebook {name}: {what}") from error
    except OSError as error:
        raise disk_error(error, out) from error
    notebook = nbformat.read(part, nbformat.NO_CONVERT)
    known = papermill.inspect_notebook(source)
    clean(notebook, {key: ast.literal_eval(entry["default"]) for key, entry in known.items()} | checked)
    nbformat.write(notebook, part)
    os.replace(part, out)
    return out


def clean(notebook: nbformat.NotebookNode, parameters: dict[str, Any]) -> None:
    """Drop times, versions and random ids, and fill ``{{name}}`` in text cells, so that diffs show results only."""
    for key in set(notebook.metadata) - {"kernelspec", "language_info"}:
        del notebook.metadata[key]
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "markdown":
            for name, value in parameters.items():
                cell.source = cell.source.replace("{{" + name + "}}", str(value))
        else:
            widget = "application/vnd.jupyter.widget-view+json"  # progress bars
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and widget not in o.get("data", {})]
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = ["injected-parameters", "hide-input"]


def experiments() -> list[dict[str, Any]]:
    """The list in ``notebooks/experiments.yml``: notebook, output and parameters of each, the global ones filled in."""
    path = project_root() / "notebooks" / "experiments.yml"
    try:
        content = yaml.safe_load(path.read_text())
        return [
            {
                "notebook": entry["notebook"],
                "output": project_root() / "book" / "results" / f"{entry['output']}.ipynb",
                "parameters": content.get("global_params", {}) | entry.get("parameters", {}),
            }
            for entry in content["experiments"]
        ]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a list of experiments ({error}): each needs notebook and output.") from error


def run_experiments(jobs: int = 2, only: str = "") -> Iterator[Path]:
    """Check all experiments, then execute them, ``jobs`` at once; yields each output as it is written.

    Args:
        only: just those whose output name contains this.
    """
    todo = [entry for entry in experiments() if only in entry["output"].stem]
    if not todo:
        raise UserError(f"no experiment matches {only!r}: see notebooks/experiments.yml.")
    for entry in todo:
        check_parameters(entry["notebook"], entry["parameters"])
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda e: run_notebook(e["notebook"], e["parameters"], e["output"], False), todo)


def show(figure: Any) -> None:
    """Display a figure once, at its full resolution."""
    import matplotlib.pyplot as plt
    from IPython.display import display

    display(figure)
    plt.close(figure)


def source_line(run: xr.Dataset, notebook: str, run_file: str) -> str:
    """The Markdown line under a figure: notebook, run file, command and hardware that made it."""
    return (
        f"<small>Source: notebook `{notebook}`, run `{run_file}` ({run.attrs['created']}, {run.attrs['hardware']}, "
        f"{float(run.attrs['wall_time_s']) / 60:.1f} min), made by `{run.attrs['command']}`</small>"
    )

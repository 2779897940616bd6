"""Run the parameterised notebooks: check names and types, execute by papermill, drop what changes between runs."""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import logging
import os
import re
import tokenize
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import papermill
import xarray as xr
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator, papermill_translators
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import UserError, bounded, choose, reason, shown, writable
from ..store.folder import write_atomic
from ..store.run import project_root
from ..store.run import resolve as resolve  # for the notebooks
from .tables import located, member, named, read_list

logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of parameters that it cannot read and we can


class _Translator(PythonTranslator):
    """Writes values into the notebook; papermill's own makes texts of tuples and sets."""

    @classmethod
    def translate(cls, val: Any) -> str:
        return super().translate(val) if isinstance(val, (str, int, float, list, dict, type(None))) else repr(val)


papermill_translators.register("python", _Translator)
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


class Parameter(typing.NamedTuple):
    """A parameter of a notebook as its cell has it: annotation ('' without one), default, and the comment beside."""

    annotation: str
    default: str
    help: str

    @property
    def value(self) -> Any:
        """The default, or its text if it is an expression."""
        with contextlib.suppress(ValueError):
            return ast.literal_eval(self.default)
        return self.default


def available() -> dict[str, Path]:
    """The notebook templates by name."""
    return {path.stem: path for path in sorted((project_root() / "notebooks").glob("*.ipynb"))}


def parameters(name: str) -> dict[str, Parameter]:
    """The parameters in the cell tagged so of notebook ``name``; a ``UserError`` if it is none or cannot be read."""
    path = available()[choose(name, available(), "notebook")]
    try:
        cells = nbformat.read(path, nbformat.NO_CONVERT).cells
        source = next((cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])), "")
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.end[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        body = ast.parse(source).body
    except Exception as error:  # nbformat raises errors of many kinds
        what = f"{type(error).__name__}: {reason(error)}"
        raise UserError(f"notebook {path}, or its parameters, cannot be read ({what}): restore it.") from error
    known = {}
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(target, ast.Name) and node.value:
            annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            default = ast.get_source_segment(source, node.value) or ""
            known[target.id] = Parameter(annotation, default, comments.get(node.end_lineno or 0, ""))
    return known


def check_parameters(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Check ``given`` against the annotated parameters of notebook ``name`` and return them with their right types.

    Strings from the command line are read as Python literals where the annotation wants that.

    Raises:
        UserError: the notebook or a parameter is unknown (the nearest is named), or a value has a wrong type.
    """
    known = parameters(name)
    if given and not known:
        raise UserError(f"notebook {name} takes no parameters: none of its cells is tagged parameters.")
    for key in given:
        choose(key, known, f"parameter of {name}:")
    return {key: _typed(key, value, known[key].annotation) for key, value in given.items()}


def _typed(key: str, value: Any, annotation: str) -> Any:
    kind, values = _kind(annotation), [value]
    if isinstance(value, str) and kind is not str:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            values = [ast.literal_eval({"true": "True", "false": "False"}.get(value.lower(), value)), value]
    for read in values:
        with contextlib.suppress(ValidationError):
            checked = TypeAdapter(kind, config=STRICT).validate_python(read)
            if isinstance(checked, bool) == isinstance(read, bool):  # Literal[1] takes True
                return checked if isinstance(read, (int, float)) else read
    raise UserError(f"notebook parameter {key} is {shown(value)}; it must be of type {annotation}.")


def _kind(annotation: str) -> Any:
    """The type that an annotation names, nothing in it called; ``Any`` if none of Python's own or of ``typing``."""
    allowed = (
        ast.Expression, ast.Name, ast.Subscript, ast.Attribute, ast.Tuple, ast.List, ast.Constant, ast.BinOp, ast.BitOr,
        ast.UnaryOp, ast.USub, ast.Load,
    )  # fmt: skip
    with contextlib.suppress(Exception):  # an annotation that is not understood allows anything
        tree = ast.parse(annotation, mode="eval")
        if all(isinstance(node, allowed) for node in ast.walk(tree)):
            names = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)} | vars(typing)
            kind = eval(compile(tree, "annotation", "eval"), {"__builtins__": {}}, names | {"typing": typing})
            if isinstance(kind, str):
                return _kind(kind)
            with contextlib.suppress(ValidationError):
                TypeAdapter(kind, config=STRICT).validate_python(None)
            return kind
    return Any


def run_notebook(name: str, given: dict[str, Any], out: str | os.PathLike[str], progress: bool = True) -> Path:
    """Execute notebook ``name`` with the parameters ``given`` (checked first) and write it to ``out``, cleaned.

    Raises:
        UserError: bad parameters, a place that cannot be written, or a cell failed; the message holds the cell's error.
    """
    known, checked, templates = parameters(name), check_parameters(name, given), available()
    file = writable(out, ".ipynb").absolute()
    if os.path.realpath(file) in map(os.path.realpath, templates.values()):
        raise UserError(f"cannot write {out}: it is a notebook's template, choose another name with --out.")
    try:
        notebook = papermill.execute_notebook(
            templates[name], None, checked, cwd=project_root(), progress_bar=progress, log_output=False,
            iopub_timeout=120,  # a busy machine may take more than the 4 s of nbclient to hand out a figure
        )  # fmt: skip
    except PapermillExecutionError as error:
        what = f"cell {error.cell_index} failed with {error.ename}: {error.evalue}"
        raise UserError(f"notebook {name}: {' '.join(what.split())}") from error
    except Exception as error:  # a kernel that is not there, or was killed
        raise UserError(f"notebook {name} was not executed: {type(error).__name__}: {reason(error)}.") from error
    clean(notebook, {key: parameter.value for key, parameter in known.items()} | checked)
    write_atomic(file, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())
    return file


def clean(notebook: nbformat.NotebookNode, values: dict[str, Any]) -> None:
    """Drop times, versions and random ids, and fill ``{{name}}`` in text cells, so that diffs show results only."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata = {k: value for k, value in cell.metadata.items() if k not in ("papermill", "execution")}
        if cell.cell_type == "markdown":
            for name, value in values.items():
                cell.source = cell.source.replace("{{" + name + "}}", escaped(value))
        else:
            widget = "application/vnd.jupyter.widget-view+json"  # progress bars
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and widget not in o.get("data", {})]
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = ["injected-parameters", "hide-input"]


def experiments() -> list[dict[str, Any]]:
    """The list in ``notebooks/experiments.yml``: notebook, output and parameters of each, the global ones filled in."""
    path = project_root() / "notebooks" / "experiments.yml"
    content = {"global_params": {}} | read_list(path, ("global_params", "experiments"))
    common, listed = member(content, "global_params", dict, path), []
    outputs: list[str] = []
    for entry in member(content, "experiments", list, path):
        outputs.append(named(entry, "output", outputs, path))
        where = f"{path}: experiment {outputs[-1]}"
        for key in entry:
            choose(str(key), ("notebook", "output", "parameters"), f"part of {where}:")
        own = member({"parameters": {}} | entry, "parameters", dict, where)
        output = project_root() / "book" / "results" / f"{outputs[-1]}.ipynb"
        listed.append({"notebook": member(entry, "notebook", str, where), "output": output, "parameters": common | own})
    return listed


def run_experiments(jobs: int = 2, only: str = "") -> Iterator[Path]:
    """Check all experiments whose output's name contains ``only``, then execute them, ``jobs`` at once; yields outputs.

    One that fails does not stop the others; after Ctrl-C those that run end, and no other begins.

    Raises:
        UserError: before anything is executed, if the list is bad; at the end, if an experiment failed.
    """
    bounded("jobs", jobs, 1)
    todo = [entry for entry in experiments() if only in entry["output"].stem]
    if not todo:
        raise UserError(f"no experiment matches {only!r}: see notebooks/experiments.yml.")
    for entry in todo:
        with located(f"experiment {entry['output'].stem}"):
            check_parameters(entry["notebook"], entry["parameters"])
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(run_notebook, e["notebook"], e["parameters"], e["output"], False) for e in todo]
        try:
            for entry, run in zip(todo, runs):
                try:
                    yield run.result()
                except UserError as error:
                    failed.append(f"{entry['output'].stem} ({error})")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(todo)} experiments failed: {'; '.join(failed)}.")


def show(figure: Any) -> None:
    """Display a figure once, at its full resolution."""
    import matplotlib.pyplot as plt
    from IPython.display import display

    display(figure)
    plt.close(figure)


def escaped(text: object) -> str:
    """``text`` in one line, and nothing of it Markdown or HTML: for what a run file or a parameter brings to a page."""
    return re.sub(r"[&<>`*\[\]|${}]", lambda match: f"&#{ord(match[0])};", " ".join(str(text).split()))


def source_line(run: xr.Dataset, notebook: str, run_file: str) -> str:
    """The Markdown line under a figure: notebook, run file, command and hardware that made it."""
    created, hardware, command = (escaped(run.attrs[name]) for name in ("created", "hardware", "command"))
    return (
        f"<small>Source: notebook `{notebook}`, run `{escaped(run_file)}` ({created}, {hardware}, "
        f"{float(run.attrs['wall_time_s']) / 60:.1f} min), made by `{command}`</small>"
    )

"""What makes the released tables: one script a table in ``data``, run by ``dynmia make NAME``, used by pages too."""

from __future__ import annotations

import ast
import importlib
import os
import shlex
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType

import pandas as pd

from ..errors import UserError, choose, writable
from ..store.folder import write_atomic
from ..store.run import project_root, resolve

__path__ = [str(project_root() / "data")]  # the scripts are modules of this one, so that other processes find them too


def scripts() -> dict[str, str]:
    """Each script's name and the first line of what it says of itself; none is run."""
    paths = sorted(Path(__path__[0]).glob("*.py"))
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for path in paths}


def maker(name: str) -> ModuleType:
    """The script ``data/NAME.py`` as a module; in ``name`` - and _ are the same."""
    names = [path.stem for path in Path(__path__[0]).glob("*.py")]
    if not names:
        raise UserError(f"{__path__[0]} holds no scripts: run this in the source tree, which has them.")
    return importlib.import_module(f"{__name__}.{choose(name.replace('_', '-'), sorted(names), 'script')}")


def two_processes() -> ProcessPoolExecutor:
    """For makers of many parts; Ctrl-C ends both without a word, so that the command line's own is the only one."""
    return ProcessPoolExecutor(2, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL))


def table_place(folder: str | os.PathLike[str], name: str) -> Path:
    """Where the table ``name`` goes: into a folder that is there, and takes it; asked before long work."""
    place = resolve(folder)
    if not place.is_dir():
        raise UserError(f"{folder} is no folder: name the one that holds the runs.")
    return writable(place / name, ".csv")


def made_by(path: Path, name: str = "") -> str:
    """The command that makes the table in ``path``, which is called ``name`` in ``data``."""
    if (table := Path(name or path.name)).name == "paper.csv":
        return "git checkout data/paper.csv"
    elsewhere = path.parent.resolve() != Path(__path__[0]).resolve()
    return f"dynmia make {table.stem}" + f" {shlex.quote(str(path.parent))}" * elsewhere


def write_table(table: pd.DataFrame, path: Path, about: str = "", digits: int = 7) -> None:
    """Write ``table`` under a first line that says how it was made; its index only if that is named."""
    made = "; ".join(filter(None, [f"# made by: {made_by(path)}", about]))
    text = table.to_csv(index=any(table.index.names), float_format=f"%.{digits}g")
    write_atomic(path, f"{made}\n{text}".encode())

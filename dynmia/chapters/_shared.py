"""The released tables, as chapters read and write them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pandas as pd

from ..book.tables import read_table
from ..store.folder import write_atomic
from ..store.run import resolve


def released(
    name: str, maker: str, folder: str | os.PathLike[str] = "data", index: Sequence[str] | None = None
) -> pd.DataFrame:
    """The table ``name`` in ``folder``, sorted by ``index`` if that is given.

    Raises:
        UserError: it is missing or damaged; the message names the command, ``python -m dynmia.chapters.MAKER``.
    """
    path = resolve(folder) / name
    table = read_table(path, f"python -m dynmia.chapters.{maker}", name).reset_index()
    return table.set_index(list(index)).sort_index() if index else table


def release(
    table: pd.DataFrame, name: str, made: str, folder: str | os.PathLike[str] = "data", digits: int = 7
) -> None:
    """Write ``table`` into ``folder`` under a first line that says how it was made; its index only if that is named."""
    text = table.to_csv(index=any(table.index.names), float_format=f"%.{digits}g")
    write_atomic(resolve(folder) / name, f"# made by: python -m dynmia.chapters.{made}\n{text}".encode())

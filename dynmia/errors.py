"""Errors that a user can mend: one line that says what is wrong, what was allowed and how to mend it."""

from __future__ import annotations

import difflib
import errno
import math
import numbers
import os
import stat
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Bad input or a state of the disk that the user can mend; the command line prints it and exits with 2."""


class StoreError(UserError):
    """A stored file that is missing, damaged, of another version or of another study."""


class Diverged(UserError):
    """A model whose loss became NaN or infinite."""


def choose(value: str, allowed: Iterable[str], what: str, also: str = "") -> str:
    """Return ``value`` if it is ``allowed``, else raise a ``UserError`` that names the nearest and the allowed ones.

    ``what`` kind of thing it is, and what is accepted ``also``, are for the message.
    """
    names = list(allowed)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    raise UserError(f"unknown {what} {shown(value)}{hint} Allowed: {', '.join(names)}{also}.")


def shown(value: object, width: int = 60) -> str:
    """``value`` as a message quotes it: on one line, the middle of what is long left out."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return "a number of more than 4,300 digits"
    return text if len(text) <= width else f"{text[: width - 20]}...{text[-17:]}"


def bounded(name: str, value: float, low: float, high: float = math.inf, *, whole: bool = True) -> None:
    """Raise a ``UserError`` unless option ``name`` is a (whole) number from ``low`` to ``high``."""
    if not isinstance(value, numbers.Integral if whole else numbers.Real) or not low <= value <= high:
        ends = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise UserError(f"{name} is {shown(value)}: it must be a {'whole ' * whole}number, {ends}.")


def reason(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException) -> tuple[str, int]:
    """What a person is told of ``error``, on one line, and the exit code: 2 if it can be mended, else 1."""
    text, code = reason(error), 2
    if hasattr(error, "format_message"):  # of the command line's parser
        context = getattr(error, "ctx", None)
        text = error.format_message() + (f" See {context.command_path} --help." if context else "")
    elif isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, MemoryError) or "allocate memory" in text:
        text = f"not enough memory ({text}): use fewer models, a smaller pool, batch or network."
    elif isinstance(error, OSError):
        text = f"{shown(str(error.filename))}: {error.strerror}." if error.filename else f"{text}."
    else:
        text, code = f"{type(error).__name__}: {text}. Show where by `dynmia --debug ...`, and report it.", 1
    words = (word if len(word) < 300 else f"{word[:200]}...{word[-60:]}" for word in text.split())
    return " ".join(words), code


def writable(path: str | os.PathLike[str], suffix: str = "") -> Path:
    """``path`` if a file can be written there: asked before long work, whose result would be lost.

    A result has the ``suffix`` of its kind, so that none is ever written over an input.
    """
    file = Path(path)
    if not file.name.endswith(suffix):
        raise UserError(f"{shown(str(path))} is to be written as a {suffix} file: let its name end in {suffix}.")
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except (OSError, ValueError) as error:  # a loop of links, a character that no name has
        raise disk_error(error if isinstance(error, OSError) else OSError(str(error)), path) from error
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot write {file}: a {'folder' if file.is_dir() else 'device'} has that name.")
    folder = next(folder for folder in file.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {file}: {folder} is no folder, or one without write permission.")
    return file


def disk_error(error: OSError, path: object) -> UserError:
    """Turn an operating-system error on ``path`` into one line with the mend."""
    permission = "no write permission: choose another folder with --out or change its permissions"
    no_folder = "a part of the path is a file: choose another folder with --out"
    mends = {
        errno.ENOSPC: "the disk is full: free some space; finished shards are intact and the same command continues",
        errno.EDQUOT: "the disk quota is used up: free some space; the same command continues",
        errno.EFBIG: "the file-size limit is reached: raise it (ulimit -f); the same command continues",
        errno.EROFS: "the file system is read-only: choose another folder with --out",
        errno.EACCES: permission, errno.EPERM: permission, errno.ENOTDIR: no_folder, errno.EEXIST: no_folder,
    }  # fmt: skip
    return UserError(f"cannot write {path}: {mends.get(error.errno or 0, error.strerror or error)}.")

"""What the command line reads and prints: study fields as options, model numbers, durations, parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from itertools import islice
from typing import Annotated, Any, get_type_hints

import typer

from .errors import UserError, shown
from .study import PRESETS, Study


def study_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command(study, ...)`` one option for each field of :class:`dynmia.study.Study`, and ``--preset``."""
    helps = {field.name: field.metadata["help"].replace("``", "") for field in dataclasses.fields(Study)}
    kinds = get_type_hints(Study) | {"preset": str}
    options = {
        name: Annotated[kinds[name] | None, typer.Option(help=text, show_default=False)]
        for name, text in ({"preset": f"start from a preset: {', '.join(PRESETS)}"} | helps).items()
    }

    def wrapped(**values: Any) -> None:
        changes = {name: value for name in options if (value := values.pop(name)) is not None}
        preset = changes.pop("preset", None)
        command(study=Study(**changes) if preset is None else Study.preset(preset, **changes), **values)

    only = inspect.Parameter.KEYWORD_ONLY
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "study"]
    wrapped.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        *(inspect.Parameter(name, only, default=None, annotation=kind) for name, kind in options.items()),
        *(parameter.replace(kind=only) for parameter in own),
    ])  # fmt: skip
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    return wrapped


def parse_models(text: str, count: int) -> list[int]:
    """Read ``0-4`` or ``0,3,7-9``: numbers of shadow models, of which there are ``count``."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,999})(?:-(\d{1,999}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UserError(f"models {shown(text)}: write numbers and ranges, for example 0-4 or 0,3,7-9.")
        if last >= count:
            raise UserError(f"model {shown(last)} does not exist: this study has models 0 to {count - 1}.")
        numbers |= set(range(first, last + 1))
    return sorted(numbers)


def parse_duration(text: str) -> float:
    """Read ``90``, ``90s``, ``9m`` or ``1h30m``."""
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text.strip())
    with contextlib.suppress(ValueError):
        parts = match.groups() if match else ()
        if 0 < (seconds := sum(float(value or 0) * unit for value, unit in zip(parts, (3600, 60, 1)))) < math.inf:
            return seconds
    raise UserError(
        f"time budget {shown(text)}: write hours, minutes and seconds, more than 0, for example 9m, 1h30m or 90s."
    )


def parse_pairs(items: list[str] | None, option: str) -> dict[str, str]:
    """Read ``NAME=VALUE`` as often as it was given."""
    for item in items or []:
        if "=" not in item.strip("="):
            raise UserError(f"{option} {shown(item)}: it needs a name and a value, for example {option} rule=bayes.")
    return dict(item.split("=", 1) for item in items or [])


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def pair_parameters(arguments: list[str]) -> list[str]:
    """Turn ``-p KEY VALUE``, as papermill writes it, into the ``-p KEY=VALUE`` that the parser reads."""
    words, rest = [], iter(arguments)
    for word in rest:
        words.append(word)
        if word in ("-p", "--parameter"):
            pair = [*islice(rest, 2)]
            if len(pair) < 2:
                raise UserError("-p needs a name and a value, for example -p rule bayes.")
            words.append("=".join(pair))
    return words

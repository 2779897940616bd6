"""The command line: every command ends in a line that a person can act on; bad input exits with 2, no traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from .book.makers import maker, scripts
from .errors import UserError, bounded, one_line, shown, writable
from .registry import DATASETS
from .study import MODELS, PRESETS, Study

PLAIN: dict[str, Any] = dict(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app = typer.Typer(**PLAIN)
DataDir = Annotated[str | None, typer.Option(help="folder of <name>.npz files (default: DYNMIA_DATA)")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda if there is one)")]
Workers = Annotated[int | None, typer.Option(help="processes on a CPU (default: one a core), models at once on a GPU")]
TimeBudget = Annotated[str | None, typer.Option(help="stop cleanly before this, for example 9m or 1h30m")]
Quiet = Annotated[bool, typer.Option(help="no progress bar")]
Attack = Annotated[str, typer.Option(help="moderated, bavaria, lira, rmia, shokri, loss, or an offline form")]
Mode = Annotated[str, typer.Option(help="on a GPU: fast, or deterministic to the bit as a CPU always is")]
Folder = Annotated[str, typer.Argument(help="where the runs are and the table goes")]
INTERRUPTED = 130
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def study_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command(study, ...)`` one option for each field of :class:`dynmia.study.Study`, and ``--preset``."""
    helps = {"preset": f"start from a preset: {', '.join(PRESETS)}"}
    helps |= {field.name: field.metadata["help"].replace("``", "") for field in dataclasses.fields(Study)}
    kinds, only = get_type_hints(Study) | {"preset": str}, inspect.Parameter.KEYWORD_ONLY

    def wrapped(**values: Any) -> None:
        changes = {name: value for name in helps if (value := values.pop(name)) is not None}
        preset = changes.pop("preset", None)
        command(study=Study(**changes) if preset is None else Study.preset(preset, **changes), **values)

    options = []
    for name, text in helps.items():
        kind: Any = Annotated[kinds[name] | None, typer.Option(help=text, show_default=False)]
        options.append(inspect.Parameter(name, only, default=None, annotation=kind))
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    options += [parameter.replace(kind=only) for parameter in own]
    wrapped.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
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
    words = list(arguments)
    for place, word in enumerate(words, 1):
        if word in ("-p", "--parameter"):
            pair = words[place : place + 2]
            if len(pair) < 2:
                raise UserError("-p needs a name and a value, for example -p rule bayes.")
            words[place : place + 2] = ["=".join(pair)]
    return words


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context, debug: Annotated[bool, typer.Option("--debug", help="show the traceback of errors")] = False
) -> None:
    """How membership privacy leaks while a model trains."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def listed(rows: dict[str, str], width: int) -> None:
    """Print one line a row, its name in ``width`` columns."""
    for name, text in rows.items():
        typer.echo(f"{name:{width}}{text}")


@app.command()
def datasets() -> None:
    """List the data sets by name."""
    own = "your own: a .npz file with train_images (or train_features, train_texts), train_labels and the same for"
    rows = {name: known.text for name, known in DATASETS.items()} | {"PATH": own}
    listed(rows | {"": "test, or an image folder with train/CLASS/*.png and test/CLASS/*.png"}, 15)


@app.command()
def models() -> None:
    """List the architectures by name."""
    own = "your own: factory(shape=(C, H, W), classes=K) returns a torch.nn.Module"
    listed(MODELS | {"MODULE:FACTORY": own}, 15)


@app.command()
@study_options
def plan(
    study: Study, data_dir: DataDir = None, device: Device = None, workers: Workers = None, as_json: AsJson = False
) -> None:
    """Say what a study costs before it starts, with the time on this machine from a short calibration."""
    from .shadow.plan import plan as cost

    result = cost(study, data_dir=data_dir, device=device, workers=workers)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    typer.echo(f"{result['study']}: {study.shadow_models} models of {result['parameters']:,} parameters")
    rows = {
        "training samples": f"{result['training_samples']:,}", "evaluations": f"{result['evaluations']:,}",
        "FLOPs": f"{result['flops']:.3g}", "disk": f"{result['disk_bytes'] / 1e6:,.1f} MB",
        "rate": f"{result['train_rate']:,.0f} training and {result['evaluation_rate']:,.0f} evaluation samples/s a "
        f"process on {result['device']}, {result['workers']} at once",
        "time": duration(result["seconds"]),
    }  # fmt: skip
    listed(rows, 19)


@app.command()
@study_options
def train(
    study: Study,
    out: Annotated[str | None, typer.Option(help="run folder (default: runs/<title>-<identity>)")] = None,
    data_dir: DataDir = None,
    device: Device = None,
    workers: Workers = None,
    mode: Mode = "fast",
    save: Annotated[str | None, typer.Option(help="also write the run as one released netCDF file")] = None,
    full_precision: Annotated[bool, typer.Option(help="keep float32 in --save instead of 16 bits")] = False,
    models: Annotated[str | None, typer.Option(help="just these shadow models, for example 0-4 or 0,3,7-9")] = None,
    time_budget: TimeBudget = None,
    engine: Annotated[str, typer.Option(help="local, or ray: the extra dynmia[ray]")] = "local",
    address: Annotated[str | None, typer.Option(help="of a Ray cluster (default: one on this machine)")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a population of shadow models, or what is missing of it; Ctrl-C stops it and the same command continues."""
    from .shadow import finish, train_part
    from .store import run as runs
    from .store.folder import continued_by

    part = None if models is None else parse_models(models, study.shadow_models)
    budget = None if time_budget is None else parse_duration(time_budget)
    file = save and writable(save, ".nc")
    pool, store = train_part(
        study, models=part, time_budget=budget, out=out, data_dir=data_dir, device=device, workers=workers,
        mode=mode, progress=not quiet, engine=engine, address=address,
    )  # fmt: skip
    if missing := store.missing():
        count, done = study.shadow_models, f"all of --models {models} are: the others are left to others"
        again = f"continue by {continued_by(store.manifest, store.folder)}"
        rest = done if part and not set(missing) & set(part) else again
        unwritten = f" (nothing written to {file} yet)" if file else ""
        typer.echo(
            f"{study.title}: {count - len(missing)} of {count} models finished in {store.folder}; {rest}{unwritten}"
        )
        return
    run = finish(pool, store)
    typer.echo(
        f"{run.attrs['title']}: {run.sizes['model']} models, {run.sizes['epoch']} checkpoints, train accuracy "
        f"{float(run.train_accuracy[-1].mean()):.3f}, held-out accuracy {float(run.test_accuracy[-1].mean()):.3f}, "
        f"{duration(float(run.attrs['wall_time_s']))} of training"
    )
    if file:
        path = runs.save_run(run, file, pack=not full_precision)
        typer.echo(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command()
def status(folder: Annotated[str, typer.Argument(help="a run folder")]) -> None:
    """Show how far each model of a run is."""
    from .store.folder import RunStore, continued_by, read_manifest

    manifest = read_manifest(folder)
    study = Study.from_dict(manifest["study"])
    store = RunStore(folder, study, manifest["fingerprint"], {})
    done = 0
    for model in range(study.shadow_models):
        saved = None if store.finished(model) else store.load_state(model)
        text = f"epoch {saved[1]['epoch']} of {study.epochs}" if saved else "not started"
        if store.finished(model):  # it may have ended since
            saved, text, done = store.load_shard(model), "finished", done + 1
        rates = [f"{half} {saved[0][f'{half}_accuracy'][-1]:.3f}" for half in ("train", "test")] if saved else []
        typer.echo(f"model {model:3d}  {text:18} {'  '.join(rates)}".rstrip())
    typer.echo(f"{study.title}: {done} of {study.shadow_models} models finished; {continued_by(manifest, folder)}")


@app.command()
def merge(
    into: Annotated[str, typer.Argument(help="the run folder that takes the shards; made if missing")],
    sources: Annotated[list[str], typer.Argument(help="run folders of the same study, from other machines")],
) -> None:
    """Join the shards of one study that several machines have trained; `dynmia train --out INTO` then ends it."""
    from .store.folder import merge as join

    for line in join(into, sources):
        typer.echo(line)


@app.command()
def summarise(
    run: Annotated[str, typer.Argument(help="a run file (.nc) or the folder of a finished run")],
    rule: Annotated[str, typer.Option(help="posterior, bayes or fpr@a")] = "",
    attack: Attack = "moderated",
    centre: Annotated[str, typer.Option(help="mean or median")] = "mean",
    variance: Annotated[str, typer.Option(help="auto, pooled or per-sample")] = "auto",
    draws: Annotated[int, typer.Option(help="halves of models, and of samples, behind the intervals")] = 20,
    null: Annotated[int, typer.Option(help="draws of the permutation null; 0 leaves it out")] = 20,
    csv: Annotated[str | None, typer.Option(help="also write the figures, not rounded, to this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Print every metric of a run with its interval over models and samples and its no-signal level."""
    from .attack import Scoring
    from .book.cells import rounded
    from .stats.intervals import summarise as summary
    from .stats.resample import null_summary
    from .store.folder import write_atomic
    from .store.run import open_run

    bounded("null", null, 0)
    scoring, file, data = Scoring(attack, rule, centre, variance), csv and writable(csv, ".csv"), open_run(run)
    table = summary(data, scoring, draws=draws)
    noise = null_summary(data, scoring, draws=null, value=table.value) if null else None
    whole = table if noise is None else table.join(noise.add_prefix("null_"))
    if file:
        write_atomic(file, whole.to_csv(float_format="%.9g").encode())
    if as_json:
        typer.echo(whole.to_json(orient="index", indent=1))
    else:
        typer.echo(rounded(table, noise).to_string())


@app.command()
def notebook(
    name: Annotated[str, typer.Argument(help="name of a notebook in notebooks/, without .ipynb")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="KEY VALUE", help="set a parameter; may be repeated"),
    ] = None,
    out: Annotated[str | None, typer.Option(help="executed notebook (default: runs/<name>.ipynb)")] = None,
    describe: Annotated[bool, typer.Option(help="list the notebook's parameters and stop")] = False,
) -> None:
    """Execute one parameterised notebook; names and types are checked first."""
    from .book.execute import check_parameters, parameters, run_notebook

    checked = check_parameters(name, parse_pairs(parameter, "-p"))
    if describe:
        for key, entry in parameters(name).items():
            typer.echo(f"{key:12} {entry.annotation:6} {entry.default:28} {entry.help}")
        return
    typer.echo(f"wrote {run_notebook(name, checked, out or f'runs/{name}.ipynb')}")


@app.command()
def notebooks(
    jobs: Annotated[int, typer.Option(help="how many at once")] = 2,
    only: Annotated[str, typer.Option(help="just those whose output name contains this")] = "",
) -> None:
    """Execute all of notebooks/experiments.yml into book/results."""
    from .book.execute import run_experiments

    for path in run_experiments(jobs=jobs, only=only):
        typer.echo(f"executed {path.name}")


class Scripts(typer.core.TyperGroup):
    """The scripts of ``data`` as commands, each loaded when it is asked for: ``main`` of one is its command."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: D102
        return list(scripts())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: D102
        program = typer.Typer(**PLAIN)
        program.command(cmd_name)(maker(cmd_name).main)
        return typer.main.get_command(program)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: D102
        with formatter.section("Scripts"):
            formatter.write_dl(list(scripts().items()))


def make(context: typer.Context) -> None:
    """Make a released table again: run a script of the folder data; without a name, list them."""
    if context.invoked_subcommand is None:
        listed(scripts(), 20)


app.add_typer(typer.Typer(callback=make, cls=Scripts, invoke_without_command=True), name="make")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the console script. What fails ends in one line, and with 2 if a person can mend it."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if "" in words:
            raise UserError(f"the value after {words[words.index('') - 1]!r} is empty: write one, or leave both out.")
        if "notebook" in words[:2]:
            words = pair_parameters(words)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: typer.echo(f"dynmia: {message}", err=True)
            code = app(args=words, prog_name="dynmia", standalone_mode=False)
        if code == INTERRUPTED:  # the parser's own word for Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except BrokenPipeError:
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        again = shlex.join(["dynmia", *words])
        typer.echo(f"dynmia: stopped; finished work is kept and the same command continues: {again}", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if "--debug" in words[:1]:
            raise
        line, code = one_line(error)
        typer.echo(f"dynmia: {line}", err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()

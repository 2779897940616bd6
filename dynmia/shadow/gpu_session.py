"""One session on a machine with a GPU: run the GPU tests, measure, and train as many shards as the time allows.

    python -m dynmia.shadow.gpu_session --data-dir DATA --json session.json --budget 9m --out runs/gpu --study
    paper-baseline

It runs from the source tree, without installation and without a network. The same command goes on where it stopped. The
folders of --out are run folders: elsewhere ``dynmia merge`` joins them and ``dynmia train --out`` ends the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..book import campaign
from ..cli import parse_duration
from ..errors import UserError, choose, reason, writable
from ..study import PRESETS, Study

DEVICE = "cuda"
PARTS = ("tests", "measures", "agreement", "training")
STUDIES = ("paper-baseline", "paper-sgd", "paper-sam")
ENGINES = ("graph", "compiled graph", "eager")
# study -> other seeds to train, so that the noise of the seed is known; of the first, populations of five are released
AGREEMENTS = {"cifar10-cnn-1000": (), "cifar10-cnn-1000,model=wrn-10-1,epochs=24,shadow_models=12": (1, 2, 3)}
TESTS_UNTIL, MEASURES_UNTIL = 0.35, 0.6  # shares of the budget; what tests and measures leave over goes to training


def parse_study(text: str) -> Study:
    """Read a preset or a run of ``data/campaign.yml``, with changes: ``paper-baseline,pool_size=10000,epochs=100``."""
    name, *changes = text.split(",")
    fields: dict[str, Any] = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"study {text!r}: write PRESET,field=value,field=value.")
        try:
            fields[field] = json.loads(value)
        except ValueError:
            fields[field] = value
    released = {entry.name: entry.study for entry in campaign.entries()} if name not in PRESETS else {}
    return released[name].replace(**fields) if name in released else Study.preset(name, **fields)


def run_tests(seconds: float) -> dict[str, Any]:
    """Run the GPU tests in a process of its own; its last line, and what failed."""
    root = Path(__file__).parents[2]
    words = "-m pytest -q -m gpu -p no:cacheprovider --tb=short --show-capture=no tests/test_gpu.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *words.split()]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=seconds)
    lines = (done.stdout + done.stderr).strip().splitlines()
    typer.echo("\n".join(lines[-60:]), err=True)
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"returncode": done.returncode, "summary": lines[-1] if lines else "", "failed": failed}


def agree(text: str, seeds: Iterable[int], out: Path, data_dir: str | None, deadline: float) -> dict[str, Any]:
    """Train one study by each engine, and other ``seeds`` of it by the first: accuracies and LiRA's AUC at the end."""
    from ..attack.plane import vulnerability_plane
    from ..dynamics.metrics import METRICS
    from ..store.run import assemble
    from .gpu import train_lanes
    from .run import open_store
    from .shard import Job, train_here
    from .step import arithmetic

    found: dict[str, Any] = {}
    variants = {name: (name, parse_study(text)) for name in ENGINES}
    variants |= {f"seed {seed}": (ENGINES[0], parse_study(f"{text},seed={seed}")) for seed in seeds}
    for number, (name, (kind, wanted)) in enumerate(variants.items()):
        folder, models = out / f"agreement-{wanted.model}-{number}", range(wanted.shadow_models)
        study, pool, store = open_store(wanted, out=folder, data_dir=data_dir, device=DEVICE)
        began, left = time.time(), time.monotonic() + deadline - time.time()
        job = Job(study, pool, store, DEVICE, deadline=left)
        with arithmetic("fast"):
            if kind == "eager":
                train_here(job, models)
            else:
                train_lanes(job, models, "compiled" in kind)
        if left := len(store.missing()):
            found[name] = f"{left} models are left: the time was over"
            continue
        last = assemble(store, pool).isel(epoch=[-1])
        auc = METRICS["auc"].of(vulnerability_plane(last), None)
        found[name] = {"engine": store.load_shard(0)[1]["engine"], "auc": round(float(auc), 4)} | {
            part: round(float(last[part].mean()), 4) for part in ("train_accuracy", "test_accuracy")
        } | {"seconds": round(time.time() - began, 1)}  # fmt: skip
    return found


def train(text: str, out: Path, data_dir: str | None, deadline: float, lanes: int | None, mode: str) -> dict[str, Any]:
    """Train what is missing of a study until ``deadline``."""
    from .run import command_of, train_part

    began, study = time.time(), parse_study(text)
    command = f"{command_of(study)} --device cuda --mode {mode}" + (f" --workers {lanes}" if lanes else "")
    if deadline <= began:
        return {"skipped": "the time was over"}
    folder = out / text.replace(",", "-").replace("=", "-")
    pool, store = train_part(
        study, out=folder, data_dir=data_dir, device="cuda", workers=lanes, mode=mode, progress=False,
        time_budget=deadline - began, command=command,
    )  # fmt: skip
    begun = [m for m in range(study.shadow_models) if store.finished(m) or store.state(m).exists()]
    states = {model: None if store.finished(model) else store.load_state(model) for model in begun}
    epochs = {model: state[1]["epoch"] if state else study.epochs for model, state in states.items()}
    return {
        "folder": str(folder), "finished": study.shadow_models - len(store.missing()), "models": study.shadow_models,
        "epochs": epochs, "seconds": round(time.time() - began, 1), "samples": len(pool.labels),
    }  # fmt: skip


def session(
    json_file: Annotated[Path, typer.Option("--json", help="where the result goes; written after every part")],
    data_dir: Annotated[str | None, typer.Option(help="folder of <name>.npz files (default: DYNMIA_DATA)")] = None,
    out: Annotated[Path, typer.Option(help="folder of the run folders")] = Path("runs/gpu"),
    budget: Annotated[str, typer.Option(help="time for all, for example 9m")] = "9m",
    study: Annotated[
        list[str] | None, typer.Option(help="PRESET or released run, with ,field=value, to train; may be repeated")
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="tests, measures, agreement or training; may be repeated")
    ] = None,
    lanes: Annotated[int | None, typer.Option(help="models in flight (default: 4)")] = None,
    mode: Annotated[str, typer.Option(help="fast or deterministic, of the training")] = "fast",
    measurement: Annotated[
        list[str] | None, typer.Option(help="take only this one, for example graph_256; may be repeated")
    ] = None,
) -> None:
    """Run the GPU tests, measure, and train as many shards as the time allows."""
    import torch

    began, seconds = time.time(), parse_duration(budget)
    parts, studies = [choose(name, PARTS, "part") for name in part or PARTS], list(study or STUDIES)
    for text in studies:
        parse_study(text)  # a bad one is an error before anything starts
    if seconds <= 0:
        raise UserError(f"budget is {budget}: it must be above 0.")
    if lanes is not None and lanes < 1:
        raise UserError(f"lanes is {lanes}: it must be at least 1.")
    choose(mode, ("fast", "deterministic"), "mode")
    if not torch.cuda.is_available():
        raise UserError("torch finds no GPU here, and this session is for one; `dynmia bench` measures CPUs.")
    for file in (json_file, out / "manifest.json"):
        writable(file)
    from ..store.folder import write_atomic
    from ..store.run import provenance
    from .gpubench import measure

    words = [str(json_file.name) if word == str(json_file) else word for word in sys.argv[1:]]
    about = provenance(" ".join(["python -m dynmia.shadow.gpu_session", *words]), "cuda", lanes or 1)
    result: dict[str, Any] = {name: about[name] for name in ("hardware", "versions", "created", "command")}
    result["versions"] |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}

    def enter(name: str, work: Any) -> None:
        try:
            result[name] = work()
        except Exception as error:  # one part's failure is no other's
            result[name] = f"error: {type(error).__name__}: {reason(error)}"
        typer.echo(f"{time.time() - began:6.0f} s  {name}: {json.dumps(result[name])[:300]}", err=True)
        write_atomic(json_file, json.dumps(result, indent=1).encode())

    if "tests" in parts:
        enter("tests", lambda: run_tests(seconds * TESTS_UNTIL))
    if "measures" in parts:
        until = began + seconds * (MEASURES_UNTIL if "training" in parts else 0.95)
        report = lambda name, value: typer.echo(f"{time.time() - began:6.0f} s  {name}: {value}", err=True)  # noqa: E731
        enter("measures", lambda: measure(until, report, only=measurement))
    for text, seeds in AGREEMENTS.items() if "agreement" in parts else []:
        enter(f"agreement {text}", lambda t=text, s=seeds: agree(t, s, out, data_dir, began + seconds))
    for text in studies if "training" in parts else []:
        enter(f"training {text}", lambda t=text: train(t, out, data_dir, began + seconds, lanes, mode))


def main() -> None:
    """The script: bad input exits with 2 and one line."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    program.command()(session)
    try:
        program()
    except UserError as error:
        typer.echo(f"dynmia: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

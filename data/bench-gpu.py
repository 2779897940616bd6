"""Speed of training on one GPU, as ratios against named baselines and the ceiling of its memory.

Also what pages read of these files: :func:`batch_sizes`, :func:`at_512`, :func:`bandwidth`.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer

from dynmia.book.makers import maker
from dynmia.cli import AsJson, parse_duration
from dynmia.errors import UserError, bounded, choose, reason, writable
from dynmia.pool.pool import Pool
from dynmia.shadow.gpu import EVALUATION_BATCH, compile_forward, open_lanes, run_epoch
from dynmia.shadow.models import build_model, forward_flops
from dynmia.shadow.plan import random_pool, rate
from dynmia.shadow.shard import train_epoch
from dynmia.shadow.step import DeviceData, arithmetic, new_state
from dynmia.store.folder import write_atomic
from dynmia.store.run import provenance
from dynmia.study import Study

bench_cpu = maker("bench-cpu")
DEVICE, MODEL, SHAPE, CLASSES = "cuda", "wrn-28-2", (3, 32, 32), 10
STEPS = 60  # of an epoch, as long as a third of a second
# the shallow CNN: a step takes a third of a millisecond
SMALL: dict[str, Any] = dict(optimizer="adamw", model="cnn", steps=600)
TRAFFIC = (15e6, 21e6)  # bytes of memory traffic an image, forward and backward in bf16: fully fused, or less
SECONDS = 0.7  # of one measurement
CHECKPOINTS, EPOCHS, TRAINED, QUERIED = 41, 400, 25_000, 60_000  # of one model of the paper's baseline
WORKERS = 8
BASELINES = {
    "eager": "our own loop in bf16: channels-last, data on the device, fused optimiser, no graph",
    "dataloader_loop": f"torch DataLoader of single images, ToTensor and normalise, {WORKERS} worker processes, pinned "
    "memory, bf16 autocast, channels-last, loss.item() at every step",
    "plain_dataloader_loop": "the same as public LiRA code writes it: float32 (TF32 in convolutions), default layout",
    "ceiling": "copy bandwidth of this device / 15 MB (high) or 21 MB (low) of memory traffic an image",
}


def setting(batch: int, optimizer: str = "sgd", model: str = "", steps: int = 0) -> tuple[Study, Pool, DeviceData]:
    """A study in bf16 with eight models, and its random images on the GPU; an epoch has ``steps`` batches."""
    study = Study(model=model or MODEL, optimizer=optimizer, batch_size=batch, precision="bf16", shadow_models=8)
    pool = random_pool(SHAPE, CLASSES, (steps or STEPS) * batch)
    pool = dataclasses.replace(pool, keep=np.ones((8, len(pool.labels)), bool))
    return study, pool, DeviceData.of(pool, DEVICE)


def captured(batch: int, lanes: int = 1, compiled: bool = False, **options: Any) -> Callable[[], float]:
    """Training images per second of ``lanes`` captured models at a time, all taken together."""
    study, pool, data = setting(batch, **options)
    opened = open_lanes(study, pool, data, lanes, compiled)
    if opened[0].compiled != compiled:
        raise RuntimeError("torch.compile failed")
    members = torch.arange(len(pool.labels))

    def epoch() -> None:
        for number, lane in enumerate(opened):
            with lane.here():
                lane.begin(members, number, 0)
        run_epoch(opened)
        for lane in opened:
            with lane.here():
                lane.mean_loss()

    for number, lane in enumerate(opened):
        with lane.here():
            lane.load(number)
    return lambda: lanes * len(pool.labels) * rate(epoch, SECONDS)


def eager(batch: int, compiled: bool = False, **options: Any) -> Callable[[], float]:
    """Training images per second of the loop that a GPU runs without graphs."""
    study, pool, data = setting(batch, **options)
    state = new_state(study, pool, 0, DEVICE)
    if compiled:
        compile_forward(state.model)
    members = torch.arange(len(pool.labels), device=DEVICE)
    return lambda: len(members) * rate(lambda: train_epoch(study, state, data, members, 0, 0), SECONDS)


def querying(compiled: bool) -> Callable[[], float]:
    """Queried images per second in evaluation mode, float16 but for the logits."""
    study, pool, data = setting(256)
    lane = open_lanes(study, pool, data, 1, compiled)[0]
    count = len(data.images) // EVALUATION_BATCH * EVALUATION_BATCH or len(data.images)

    def query() -> None:
        with lane.here():
            lane.query(data.images[:count], data.labels[:count])

    return lambda: count * rate(query, SECONDS)


def dataloader(batch: int, plain: bool = False) -> Callable[[], float]:
    """Training images per second of the loop that public code writes, in bf16 and channels-last unless ``plain``."""
    from torch.utils.data import DataLoader

    def normal(image: np.ndarray) -> torch.Tensor:
        return (torch.from_numpy(image).permute(2, 0, 1).float().div(255) - 0.5) / 0.25

    images = bench_cpu.SingleImages(random_pool(SHAPE, CLASSES, STEPS * batch), normal)
    options = dict(num_workers=WORKERS, persistent_workers=WORKERS > 0, pin_memory=torch.cuda.is_available())
    loader = DataLoader(images, batch, shuffle=True, drop_last=True, **options)  # type: ignore[arg-type]
    layout = torch.contiguous_format if plain else torch.channels_last
    model = build_model(MODEL, SHAPE, CLASSES).to(DEVICE, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=5e-4)

    def epoch() -> None:
        for images, labels in loader:
            images = images.to(DEVICE, non_blocking=True, memory_format=layout)
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16, enabled=not plain):
                loss = F.cross_entropy(model(images), labels.to(DEVICE, non_blocking=True))
            loss.backward()
            optimizer.step()
            loss.item()

    return lambda: STEPS * batch * rate(epoch, 2.0)


def copying() -> Callable[[], float]:
    """Bytes read and written per second by a copy of 1 GB on the device."""
    source = torch.ones(2**28, device=DEVICE)
    target = torch.empty_like(source)

    def copy() -> None:
        for _ in range(20):
            target.copy_(source)
        torch.cuda.synchronize()

    return lambda: 20 * 2 * 4 * 2**28 * rate(copy, 0.5)


def measures() -> dict[str, tuple[str, Callable[[], Callable[[], float]]]]:
    """Name -> (mode, what prepares the measurement); the most telling first."""
    makers: dict[str, tuple[str, Callable[[], Callable[[], float]]]] = {"copy": ("fast", copying)}
    for batch in (256, 512, 128):
        makers[f"eager_{batch}"] = "fast", partial(eager, batch)
        makers[f"graph_{batch}"] = "fast", partial(captured, batch)
        makers[f"compiled_graph_{batch}"] = "fast", partial(captured, batch, compiled=True)
        for lanes in (2, 3, 4, 6, 8) if batch == 256 else (2, 3, 4):
            makers[f"compiled_graph_{batch}_{lanes}_in_flight"] = "fast", partial(captured, batch, lanes, True)
        makers[f"compiled_{batch}"] = "fast", partial(eager, batch, compiled=True)
        if batch == 256:
            makers["dataloader_loop_256"] = "fast", partial(dataloader, 256)
            makers["plain_dataloader_loop_256"] = "fast", partial(dataloader, 256, plain=True)
            for name, compiled in (("", False), ("compiled_", True)):
                makers[f"sam_{name}graph_256"] = "fast", partial(captured, batch, 1, compiled, optimizer="sam-sgd")
                makers[f"{name}evaluation"] = "fast", partial(querying, compiled)
            makers["deterministic_graph_256"] = "deterministic", partial(captured, 256)
            makers["cnn_eager_64"] = "fast", partial(eager, 64, **SMALL)
            for lanes in (1, 2, 4, 8):
                makers[f"cnn_graph_64_{lanes}_in_flight"] = "fast", partial(captured, 64, lanes, **SMALL)
            makers["cnn_deterministic_graph_64_8_in_flight"] = "deterministic", partial(captured, 64, 8, **SMALL)
    return makers


def measure(
    deadline: float, report: Callable[[str, Any], None], repeats: int = 3, only: Iterable[str] | None = None
) -> dict[str, Any]:
    """Take all measurements, or ``only`` some, until ``deadline`` (seconds since 1970); each fails alone, as a text.

    Training in images per second of WRN-28-2 at 3 x 32 x 32 with SGD; evaluation in queried images per second.
    """
    rates: dict[str, list[float]] = {}
    result: dict[str, Any] = {"model": MODEL, "baselines": BASELINES}

    def enter(name: str, unit: str, work: Callable[[], list[float]]) -> None:
        try:
            rates[name] = work()
            result[name] = bench_cpu.spread(rates[name], unit)
        except Exception as error:  # whatever a driver or a compiler raises
            result[name] = f"error: {type(error).__name__}: {reason(error)}"
        report(name, result[name])

    def take(prepare: Callable[[], Callable[[], float]]) -> list[float]:
        work = prepare()
        return [work() for _ in range(repeats)]

    known = measures()
    chosen = [choose(name, known, "measurement") for name in only or known]
    for name in chosen:
        mode, prepare = known[name]
        if time.time() > deadline:
            result[name] = "not measured: the time was over"
            continue
        with arithmetic(mode):
            enter(name, "bytes/s" if name == "copy" else "images/s", partial(take, prepare))
        gc.collect()
        torch.cuda.empty_cache()
    ours = [name for name in rates if "graph_256" in name and not name.startswith(("sam", "deterministic"))]
    best = result["best"] = max(ours, key=lambda name: result[name]["median"], default="graph_256")
    work = 3 * forward_flops(build_model(MODEL, SHAPE, CLASSES), SHAPE)

    def ratio(name: str, above: str, below: str, scale: float = 1.0, unit: str = "x") -> None:
        if {above, below} <= set(chosen):
            enter(name, unit, lambda: [scale * a / b for a, b in zip(rates[above], rates[below], strict=True)])

    ratio("best / eager_256", best, "eager_256")
    for kind in ("dataloader_loop_256", "plain_dataloader_loop_256"):
        ratio(f"best / {kind}", best, kind)
    ratio("deterministic step / fast step", "graph_256", "deterministic_graph_256")
    ratio("sam step / sgd step", "graph_256", "sam_graph_256")
    ratio("sam step / sgd step, compiled", "compiled_graph_256", "sam_compiled_graph_256")
    ratio("best / ceiling, high", best, "copy", TRAFFIC[0], "of the ceiling")
    ratio("best / ceiling, low", best, "copy", TRAFFIC[1], "of the ceiling")
    queries = CHECKPOINTS * QUERIED / (EPOCHS * TRAINED)
    ratio("evaluation / training", best, "evaluation", queries, "of the training time")
    ratio("compiled_evaluation / training", best, "compiled_evaluation", queries, "of the training time")
    enter("arithmetic", "TFLOP/s", lambda: [work * value / 1e12 for value in rates[best]])
    return result


def batch_sizes(measured: dict[str, Any]) -> pd.DataFrame:
    """Thousand training images a second of a GPU by batch size and engine; the best over eager, and of the ceiling."""
    timed, rows = bench_cpu.entries(measured), {}
    for batch in (128, 256, 512):
        names = {"eager": f"eager_{batch}", "graph": f"graph_{batch}", "compiled graph": f"compiled_graph_{batch}"}
        names |= {f"{count} in flight": f"compiled_graph_{batch}_{count}_in_flight" for count in (2, 3, 4)}
        medians = {name: timed[key]["median"] for name, key in names.items() if key in timed}
        if {"eager", "copy"} <= {*medians, *timed}:
            best, low, high = max(medians.values()), *(timed["copy"]["median"] / traffic for traffic in (21e6, 15e6))
            rows[batch] = {name: f"{rate / 1000:.1f}" for name, rate in medians.items()} | {
                "best / eager": f"{best / medians['eager']:.1f}",
                "share of the ceiling": f"{best / high:.2f} to {best / low:.2f}",
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, "index").rename_axis("batch size")


def at_512(measured: dict[str, Any]) -> str:
    """The best training rate of a GPU with batches of 512 beside what the targets set the rate with 256 against."""
    medians = {name: entry["median"] for name, entry in bench_cpu.entries(measured).items()}
    best = max((rate for name, rate in medians.items() if "graph_512" in name), default=0.0)
    if not best or not {"copy", "dataloader_loop_256", "eager_512"} <= set(medians):
        return "batches of 512: not yet measured."
    return (
        f"batches of 512: {best / (medians['copy'] / 15e6):.2f} of the ceiling, "
        f"{best / medians['dataloader_loop_256']:.1f} times the `DataLoader` loop (taken with batches of 256; it waits "
        f"for its workers), {best / medians['eager_512']:.1f} times the eager loop."
    )


def bandwidth(files: Iterable[dict[str, Any]]) -> str:
    """What the GPU with the most memory bandwidth gains by it over the one with the least; empty for fewer than two."""
    fastest = [(file["hardware"], bench_cpu.entries(file), file["measures"]["best"]) for file in files]
    rows = [(rates["copy"]["median"], rates[best]["median"], name) for name, rates, best in fastest if "copy" in rates]
    if len({name for _, _, name in rows}) < 2:
        return ""
    (low, slower, slow), (high, faster, fast) = min(rows), max(rows)
    gains = f"{high / low:.2f} times as fast as the {slow} and trains {faster / slower:.2f} times as fast"
    return f"The {fast} copies {gains}."


def about(command: str) -> dict[str, Any]:
    """Where a file of a GPU was measured, by what versions and which command; an error where there is no GPU."""
    if not torch.cuda.is_available():
        raise UserError("torch finds no GPU here, and this is for one; `dynmia make bench-cpu` measures CPUs.")
    made = provenance(command, "cuda", 1)
    made["versions"] |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {name: made[name] for name in ("hardware", "versions", "created", "command")}


def main(
    repeats: Annotated[int, typer.Option(help="measurements of each")] = 3,
    measurement: Annotated[
        list[str] | None, typer.Option(help="take only this one, for example graph_256; may be repeated")
    ] = None,
    time_budget: Annotated[str, typer.Option(help="stop after this, for example 9m or 1h30m")] = "9m",
    out: Annotated[str | None, typer.Option(help="also write the JSON to this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure training on this machine's GPU, the most telling first, as far as the time allows."""
    bounded("repeats", repeats, 1)
    deadline, file = time.time() + parse_duration(time_budget), out and writable(out, ".json")
    chosen = [choose(name, measures(), "measurement") for name in measurement or ()]
    words = [f"--time-budget {time_budget}", f"--repeats {repeats}", *(f"--measurement {name}" for name in chosen)]
    result = about(" ".join(["dynmia make bench-gpu", *words]))

    def report(name: str, value: Any) -> None:
        typer.echo(f"{name}: {bench_cpu.spread_text(value) if isinstance(value, dict) else value}", err=True)

    result["measures"] = measure(deadline, report, repeats, chosen or None)
    text = json.dumps(result, indent=1)
    if file:
        write_atomic(file, text.encode())
    if as_json:
        typer.echo(text)

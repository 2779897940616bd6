"""The released runs of campaign.yml: trained where they are missing, in order of value."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr

from dynmia.attack.plane import LEAST, numbers_of_halves
from dynmia.book.makers import maker
from dynmia.book.tables import Entry, entries, located, member, read_list
from dynmia.cli import DataDir, Device, Mode, Quiet, TimeBudget, Workers, duration, parse_duration, parse_pairs
from dynmia.errors import StoreError, UserError, choose, shown
from dynmia.registry import named_set
from dynmia.stats.hardness import HALVES, MEASURES, numbers_of_parts, save
from dynmia.store.folder import RunStore, differing, read_manifest
from dynmia.store.run import open_run, project_root, resolve, save_run, study_of
from dynmia.study import Study

ENSEMBLES = {"single": "ensemble", "mc": "mc_ensemble"}  # of the predictions of one model, or of its MC dropout


def scaled(scale: str = "cpu", only: str = "", changes: dict[str, Any] | None = None) -> list[Entry]:
    """The list of runs, each of its study at a scale.

    Args:
        scale: a name under ``scales``: fields that replace those of every run, and ``pool_share``, by which the
            pool size is multiplied, up to the whole training split.
        only: as of :func:`dynmia.book.tables.entries`.
        changes: fields of the study, or ``pool_share``, that replace all others.
    """
    path = resolve("data/campaign.yml")
    scales = member(read_list(path, ("defaults", "scales", "runs")), "scales", dict, path)
    for entry in entries():  # all at every scale, so that a fault shows before anything is trained
        for other in scales:
            _study(entry, member(scales, other, dict, f"{path}: scales"), f"{path}: run {entry.name}, {other}")
    fields = scales[choose(scale, map(str, scales), "scale")] | (changes or {})
    return [entry._replace(study=_study(entry, fields, f"run {entry.name} as changed")) for entry in entries(only)]


def _study(entry: Entry, fields: dict[str, Any], where: str) -> Study:
    """The study of ``entry`` with ``fields`` changed; ``pool_share`` stops at the whole training split."""
    values, share = entry.fields | fields, math.nan
    given = values.pop("pool_share", 1)
    with contextlib.suppress(TypeError, ValueError):  # a text too: YAML 1.1 reads 1e-1 as one
        share = math.nan if isinstance(given, bool) else float(given)
    with located(where):
        if not 0 < share < math.inf:
            raise UserError(f"pool_share is {shown(given)}: it must be a number above 0.")
        study = Study.from_dict(values)
        if share != 1 and study.pool_size and "pool_size" not in fields:
            known = named_set(study.dataset)
            study = study.replace(pool_size=int(min(study.pool_size * share, known.train if known else math.inf)))
    return study


def run_campaign(
    scale: str = "cpu",
    *,
    only: str = "",
    changes: dict[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    time_budget: float | None = None,
    null: int = 200,
    progress: bool = True,
    **options: Any,
) -> Iterator[str]:
    """Train the runs that are missing, write each to ``folder``, and its figures to ``figures.csv``; yields lines.

    A run that fails (no data, a diverged model) does not stop the others.

    Args:
        folder: default ``data`` for the released scale, ``cpu``, else ``runs/<scale>``. A run is trained in a folder
            beside its file, ``<name>-<8 digits of its identity>``; for ``data`` in ``runs/<scale>``.
        time_budget: seconds, above 0; training stops cleanly before they are over.
        null: draws of the permutation null in the table of figures; 0 leaves the table as it is.
        options: data_dir, device, workers, mode, for :func:`dynmia.shadow.run.train_part`.

    Raises:
        UserError: at the end, if any run failed.
    """
    from dynmia import shadow

    if time_budget is not None and not time_budget > 0:
        raise UserError(f"time_budget is {time_budget} s: it must be above 0.")
    if isinstance(null, bool) or not isinstance(null, int) or null < 0:
        raise UserError(f"null is {shown(null)}: it must be a whole number of draws, 0 for no figures.")
    write_figures = maker("figures").write_figures
    folder, device = _folder(scale, folder), shadow.run.pick_device(options.get("device"))
    deadline = time.monotonic() + (math.inf if time_budget is None else time_budget)
    failed = []
    for entry in scaled(scale, only, changes):
        path = folder / f"{entry.name}.nc"
        try:
            if not path.exists():
                if (left := deadline - time.monotonic()) <= 0:
                    yield f"{entry.name}: not begun, the time is over"
                    continue
                pool, store = shadow.train_part(
                    entry.study, out=_working(entry, scale, folder, device), progress=progress,
                    time_budget=None if time_budget is None else left, **options,
                )  # fmt: skip
                if unfinished := store.missing():
                    yield f"{entry.name}: {len(unfinished)} models are left; the same command continues"
                    continue
                run = shadow.finish(pool, store)
                if entry.study.record == "hardness":
                    measured = measure_hardness(store, run, pool.test_labels)
                    save(measured, folder / f"{entry.name}.hardness.nc")
                save_run(run, path)
                yield f"{entry.name}: trained in {float(run.attrs['wall_time_s']) / 60:.1f} min, wrote {path}"
            run = open_run(path)
            if what := _differs(study_of(run), entry.study):
                raise UserError(
                    f"{path} is a run of another study; it differs in {what}: move it away, or take another --out."
                )
            if null and entry.study.design != "all" and write_figures(folder, entry.name, run, null=null):
                yield f"{entry.name}: figures written to {folder / 'figures.csv'}"
        except UserError as error:
            failed.append(entry.name)
            yield f"{entry.name}: {error}"
    if failed:
        raise UserError(f"{len(failed)} runs failed: {', '.join(failed)}; the others are finished.")


def measure_hardness(store: RunStore, run: xr.Dataset, test_labels: np.ndarray) -> xr.Dataset:
    """Reduce the recorded signals of a finished run to one value a sample and checkpoint.

    Args:
        store, run: of a study with ``record="hardness"``; test_labels: of the held-out images (m,).

    Returns:
        Dims part (``all``, ``a``, ``b``), epoch, sample; a float32 variable for each of ``MEASURES`` that was recorded.
        Uncertainties are in nats. What counts over time (self_influence, forgetting, learned, loss_iqr) uses the
        checkpoints up to that epoch. Values are NaN where nothing is recorded (gradients: every fourth checkpoint) or a
        part has no model of that side. half_M (half, sample) is measure M at the end from each half of the models
        that intervals over models are taken from (:func:`dynmia.attack.plane.halves`).

        On dims (seldom, test), of one model also model: confidence_E, the largest predicted probability of a held-out
        image, and right_E, whether its class is the true one, for the estimators E in single, ensemble (mean over
        models), mc and mc_ensemble.

    Raises:
        StoreError: the run was not recorded for this.
    """
    shards = [store.load_shard(model)[0] for model in range(store.study.shadow_models)]
    if "prob" not in shards[0]:
        raise StoreError(f"{store.folder} holds no predictions: train it with record 'hardness'.")
    epochs = run.epoch.values
    dear = [t for t in range(len(epochs)) if t % 4 == 0 or t == len(epochs) - 1]
    prob = np.stack([shard["prob"] for shard in shards])  # (N, T, n, K) float16
    right = prob.argmax(-1) == run.label.values  # (N, T, n)
    loss = np.logaddexp(0, -run.phi.transpose("model", "epoch", "sample").values.astype(np.float64))  # -log p_y

    def placed(name: str) -> np.ndarray:
        values = np.full((len(shards), len(epochs), len(run.label)), np.nan, np.float32)
        if name in shards[0]:
            values[:, dear] = np.stack([shard[name] for shard in shards])
        return values

    gradient, dropout = placed("grad_norm"), placed("mc_information")

    def reduced(models: np.ndarray, t: int) -> dict[str, np.ndarray]:
        keep = run.keep.values[models]
        p = prob[models, t].astype(np.float64)
        true = np.exp(-loss[models, t])
        epistemic, aleatoric = _information(p, ~keep)
        high, low = np.quantile(loss[models, : t + 1], [0.75, 0.25], axis=1)
        stays = np.cumprod(right[models, t::-1], 1).sum(1)  # checkpoints up to t that are all right
        first = epochs[np.minimum(t + 1 - stays, t)] + np.where(stays == 0, run.epoch.diff("epoch").values[0], 0)
        lost = right[models, :t] & ~right[models, 1 : t + 1]
        return {
            "epistemic_out": epistemic,
            "epistemic_all": _information(p, np.ones_like(keep))[0],
            "aleatoric_out": aleatoric,
            "variance_out": _mean(true**2, ~keep) - _mean(true, ~keep) ** 2,
            "mc_information": dropout[models, t].mean(0),
            "memorisation": _mean(right[models, t], keep) - _mean(right[models, t], ~keep),
            # TracIn's sum over checkpoints, without the learning rate: it is constant and does not rank samples
            "self_influence": _mean(np.nansum(gradient[models, : t + 1] ** 2, 1), keep),
            "gradient_in": _mean(gradient[models, t], keep),
            "gradient_out": _mean(gradient[models, t], ~keep),
            "loss_in": _mean(loss[models, t], keep),
            "loss_out": _mean(loss[models, t], ~keep),
            "loss_iqr": _mean(high - low, keep),
            "learned": _mean(first, keep),
            "forgetting": _mean(lost.sum(1), keep),
        }

    parts = numbers_of_parts(len(shards))
    rows = [[reduced(models, t) for t in range(len(epochs))] for models in parts.values()]
    numbers = numbers_of_halves(len(shards), HALVES) if len(shards) >= LEAST else []
    last = [reduced(models, len(epochs) - 1) for models in numbers]
    of_parts: dict[str, Any] = {}
    of_halves: dict[str, Any] = {}
    for name in MEASURES:
        values = np.array([[each[name] for each in row] for row in rows], np.float32)
        if np.isfinite(values[0, -1]).any():
            of_parts[name] = ("part", "epoch", "sample"), values
            if last:
                drawn = np.array([each[name] for each in last], np.float32)
                of_halves[f"half_{name}"] = ("half", "sample"), _rounded(drawn)
    coords = {"part": list(parts), "epoch": epochs, "sample": run.sample.values, "seldom": epochs[dear]}
    return xr.Dataset(of_parts | of_halves | _held_out(shards, test_labels), coords, run.attrs)


def _rounded(values: np.ndarray) -> np.ndarray:
    """``values`` to 10 bits, which compress to half the size and rank samples as well."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 1024) / 1024, exponent).astype(np.float32)


def _held_out(shards: list[dict[str, np.ndarray]], labels: np.ndarray) -> dict[str, Any]:
    """Largest probability and whether it is on the true class, for each held-out image and estimator."""
    variables: dict[str, Any] = {}
    for single, name in (("single", "test_prob"), ("mc", "mc_test_prob")):
        if name not in shards[0]:
            continue
        prob = np.stack([shard[name] for shard in shards], 1).astype(np.float32)  # (seldom, N, m, K)
        for estimator, p in ((single, prob), (ENSEMBLES[single], prob.mean(1))):
            dims = ("seldom", "model", "test") if estimator == single else ("seldom", "test")
            variables[f"confidence_{estimator}"] = dims, p.max(-1)
            variables[f"right_{estimator}"] = dims, (p.argmax(-1) == labels).astype(np.int8)
    return variables


def _mean(values: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Mean over the models of ``side``, (N, n) -> (n,); NaN where there is none."""
    count = side.sum(0)
    return np.where(side, values, 0).sum(0) / np.where(count > 0, count, np.nan)


def _information(prob: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mutual information and expected entropy (nats) of the models of ``side``: (N, n, K) -> (n,), (n,)."""

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)

    mean = np.stack([_mean(prob[..., k], side) for k in range(prob.shape[-1])], -1)
    expected = _mean(entropy(prob), side)
    return entropy(mean) - expected, expected


def plan_campaign(
    scale: str = "cpu",
    *,
    only: str = "",
    changes: dict[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Iterator[tuple[str, str, float]]:
    """Name, ``finished`` or ``missing``, and the seconds that are left on this machine, for each run of the list."""
    from dynmia.shadow.plan import plan

    for entry in scaled(scale, only, changes):
        trained = (_folder(scale, folder) / f"{entry.name}.nc").exists()
        with located(entry.name):
            left = 0.0 if trained else plan(entry.study, **options)["seconds"]
        yield entry.name, "finished" if trained else "missing", left


def _folder(scale: str, folder: str | os.PathLike[str] | None) -> Path:
    return Path(folder or (project_root() / "data" if scale == "cpu" else f"runs/{scale}"))


def _working(entry: Entry, scale: str, folder: Path, device: str) -> Path:
    """Where ``entry`` is trained: a folder that no other study shares, or one that was begun under its name alone."""
    study, begun = entry.study.resolve(device), Path("runs") / scale / entry.name
    if (begun / "manifest.json").exists() and Study.from_dict(read_manifest(begun)["study"]) == study:
        return begun
    beside = Path("runs") / scale if os.path.realpath(folder) == os.path.realpath(project_root() / "data") else folder
    return beside / f"{entry.name}-{study.identity('')[:8]}"


def _differs(released: Study, listed: Study) -> str:
    """The fields in which a finished run is not what the list asks for; precision 'auto' is whatever it became."""
    listed = listed.replace(precision=released.precision) if listed.precision == "auto" else listed
    return "" if released == listed else differing(released.to_dict(), listed.to_dict())


def main(
    scale: Annotated[str, typer.Option(help="cpu (the released runs), quick or paper: see data/campaign.yml")] = "cpu",
    only: Annotated[str, typer.Option(help="just the runs of a chapter (02), or whose name contains this")] = "",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="a study field, for all runs; may be repeated"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="folder, for unfinished runs too (default: data, or runs/SCALE)"),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="list the runs and what they cost here, and stop")] = False,
    null: Annotated[int, typer.Option(help="draws of the permutation null in figures.csv; 0: no figures")] = 200,
    time_budget: TimeBudget = None,
    data_dir: DataDir = None,
    device: Device = None,
    workers: Workers = None,
    mode: Mode = "fast",
    quiet: Quiet = False,
) -> None:
    """Train the runs of data/campaign.yml that are missing, in order of value, and write the figures of all."""
    budget = None if time_budget is None else parse_duration(time_budget)
    common: dict[str, Any] = dict(
        only=only, changes=parse_pairs(change, "--set"), folder=out, data_dir=data_dir, device=device, workers=workers
    )
    if plan:
        total = 0.0
        for name, state, seconds in plan_campaign(scale, **common):
            total += seconds
            typer.echo(f"{name:32} {state:10} {duration(seconds)}")
        typer.echo(f"{'what is missing':32} {'':10} {duration(total)}")
        return
    for line in run_campaign(scale, time_budget=budget, null=null, progress=not quiet, mode=mode, **common):
        typer.echo(line)

"""Pool sizes side by side: the fitted curves, what they predict, and populations compared at equal progress."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import optimize

from ..book import maker
from ..book.cells import cell
from ..book.plots import DATASETS
from ..dynamics import cloud as dyn
from ..stats.resample import bootstrap_weights
from ..stats.trends import directions
from ..store.run import study_of

fit_law = maker("precision").fit_law
CEILINGS = {"displacement": 1000.0, "vulnerable": 100.0, "auc_excess": 0.5}  # what no population can exceed
Tables = dict[str, dict[str, pd.DataFrame]]  # metric, data set


def best_law(sizes: np.ndarray, values: np.ndarray, errors: np.ndarray, ceiling: float | None = None) -> Any:
    """The form with the lowest AICc: a power law, one with a ceiling if there is one, one with a floor from 5 sizes.

    A floor counts only if the points resolve the fall towards it: its exponent's interval lies below 0.
    """
    forms = ["power law"] + ["with ceiling"] * (ceiling is not None) + ["with floor"] * (len(sizes) > 4)
    laws = []
    for form in forms:
        with contextlib.suppress(RuntimeError, optimize.OptimizeWarning), warnings.catch_warnings():
            warnings.simplefilter("error", optimize.OptimizeWarning)  # the covariance could not be found
            laws.append(fit_law(sizes, values, errors, form, ceiling or 1.0))
    return min((law for law in laws if law.form != "with floor" or law.high < 0), key=lambda law: law.aicc)


def by_pool_size(figures: pd.DataFrame, runs: Mapping[str, xr.Dataset]) -> Tables:
    """Displacement, entropy change, vulnerable share and AUC - 0.5 of the runs: index pool size, columns of figures."""
    tables: Tables = {}
    studies = sorted(((study_of(run), name) for name, run in runs.items()), key=lambda pair: pair[0].pool_size or 0)
    for metric in ("displacement", "entropy_change", "vulnerable", "auc_excess"):
        for data in sorted({study.dataset for study, _ in studies}, key=list(DATASETS).index):
            rows = {
                s.pool_size: figures.loc[(n, metric.replace("_excess", ""))] for s, n in studies if s.dataset == data
            }
            table = pd.DataFrame(rows).T.drop(columns=["label", "unit", "clipped", "carrier"], errors="ignore")
            table = table.astype(float).rename_axis("pool size")
            chance = 0.5 * (metric == "auc_excess") * ~table.columns.isin(["error", "p"])
            tables.setdefault(metric, {})[data] = table - chance
    return tables


def up_to(tables: Tables, size: int) -> Tables:
    """The rows of pools of at most ``size`` samples; data sets of which none is left go."""
    kept = {
        metric: {data: table[table.index <= size] for data, table in sets.items()} for metric, sets in tables.items()
    }
    return {metric: {data: table for data, table in sets.items() if len(table)} for metric, sets in kept.items()}


def fit_all(tables: Tables) -> dict[str, dict[str, Any]]:
    """The best curve through each table that has at least three pool sizes and only positive values."""
    laws: dict[str, dict[str, Any]] = {}
    for metric, sets in tables.items():
        for data, table in sets.items():
            if len(table) > 2 and (table.value > 0).all():
                numbers = (table.index.to_numpy(float), table.value.to_numpy(), table.error.to_numpy())
                law = best_law(*numbers, CEILINGS.get(metric))
                laws.setdefault(metric, {})[data] = law
    return laws


def predictions(
    tables: Tables, laws: Mapping[str, Mapping[str, Any]], target: int, paper: Mapping[str, Mapping[str, float]],
    measured: Tables,
) -> pd.DataFrame:  # fmt: skip
    """What each curve says of a pool of ``target`` samples, beside the population there and the paper's value.

    Args:
        tables, laws: that the curves were fitted to, and they.
        measured: tables that may hold a population of ``target`` samples, of the data set or a copy of it.
    """
    rows = {}
    for metric, sets in laws.items():
        for data, law in sets.items():
            value, low, high = law.predict(np.array([target]))[:, 0]
            told, digits = paper.get(metric, {}).get(data), 3 if metric == "auc_excess" else 2
            there = at_target(measured[metric], data, target)
            rows[metric, DATASETS[data]] = [
                len(tables[metric][data]), law.form, f"{law.exponent:.2f} [{law.low:.2f}, {law.high:.2f}]",
                f"{law.scatter:.2f}", cell(value, low, high, digits),
                "" if there is None else cell(there.value, there.low, there.high, digits),
                "" if there is None else side(there.value, low, high), "" if told is None else f"{told:g}",
                "" if told is None else side(told, low, high),
            ]  # fmt: skip
    columns = ["sizes", "form", "exponent [95 %]", "scatter (log)", f"predicted at {target:,} [95 %]",
               "measured [95 %]", "it is", "paper", "the paper's is"]  # fmt: skip
    index = pd.MultiIndex.from_tuples(list(rows), names=["metric", "data set"]) if rows else None
    return pd.DataFrame(list(rows.values()), index, columns)


def at_target(tables: Mapping[str, pd.DataFrame], data: str, target: int) -> pd.Series | None:
    """The row of ``target`` samples of a data set, or of its copy; None if there is none."""
    found = (tables[name] for name in (data, f"{data}_jpeg") if name in tables)
    return next((table.loc[target] for table in found if target in table.index), None)


def side(value: float, low: float, high: float) -> str:
    """Where a value lies from an interval."""
    return "inside" if low <= value <= high else "below" if value < low else "above"


def target_sentences(
    laws: Mapping[str, Mapping[str, Any]], target: int, measured: Tables, accuracy: Mapping[str, float]
) -> list[str]:
    """Which predictions at ``target`` the population there bears out, for each data set.

    Args:
        accuracy: data set (or copy) to the accuracy (%) of the models of ``target`` samples on their own half.
    """
    lines = []
    for data in dict.fromkeys(data for sets in laws.values() for data in sets):
        sides = {}
        for metric, sets in laws.items():
            there = at_target(measured[metric], data, target)
            if data in sets and there is not None:
                low, high = sets[data].predict(np.array([target]))[1:, 0]
                sides[metric.replace("_", " ")] = side(there.value, low, high)
        if sides:
            wrong = [f"; {metric} lies {where}" for metric, where in sides.items() if where != "inside"]
            copy = next(name for name in (data, f"{data}_jpeg") if name in accuracy)
            lines.append(
                f"{DATASETS[copy]} at {target:,}: {len(sides) - len(wrong)} of {len(sides)} figures lie inside the "
                f"interval predicted from smaller pools{''.join(wrong)}. These models fit their own half to "
                f"{accuracy[copy]:.1f} %."
            )
    return lines


def steps(plane: xr.Dataset) -> xr.DataArray:
    """Optimiser steps that a model has taken at each checkpoint, from the mean size of its training half."""
    study = study_of(plane)
    return plane.epoch * int(np.ceil(plane.sizes["sample"] / 2 / study.batch_size))


def reached(progress: xr.DataArray, level: float) -> float:
    """The epoch at which ``progress`` (epoch) first reaches ``level``, linear between checkpoints; NaN if never."""
    value, epoch = progress.values, progress.epoch.values
    if value.max() < level:
        return np.nan
    after = int((value >= level).argmax())
    pair = slice(max(after - 1, 0), after + 1)
    return float(np.interp(level, value[pair], epoch[pair]))


def at_equal_progress(planes: Mapping[str, xr.Dataset], by: str) -> pd.DataFrame:
    """Displacement of each population where all are equally far.

    Args:
        planes: by name.
        by: ``epochs``, the last; ``steps``, as many as the smallest pool takes in all; ``accuracy``, the first time
            that the mean accuracy on the own half reaches 95 %, or the lowest that any population ends with.

    Returns:
        Index name; columns epoch, steps, train_accuracy (%) there, value, low, high (95 %, bootstrap over samples).
    """
    fitted = {name: 100 * plane.train_accuracy.mean("model") for name, plane in planes.items()}
    if by == "steps":
        level = min(float(steps(plane)[-1]) for plane in planes.values())
        where = {name: reached(steps(plane), level) for name, plane in planes.items()}
    elif by == "accuracy":
        level = min(95.0, *(float(value.max()) for value in fitted.values()))
        where = {name: reached(value, level) for name, value in fitted.items()}
    else:
        where = {name: float(plane.epoch[-1]) for name, plane in planes.items()}
    rows = {}
    for name, plane in planes.items():
        moved, drawn = dyn.displacement(plane), dyn.displacement(plane, bootstrap_weights(plane))
        low, high = np.quantile(drawn.interp(epoch=where[name]), [0.025, 0.975])
        others = [float(values.interp(epoch=where[name])) for values in (steps(plane), fitted[name], moved)]
        rows[name] = [where[name], *others, low, high]
    columns = ["epoch", "steps", "train_accuracy", "value", "low", "high"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("run")


def pool_sentences(
    tables: Mapping[str, pd.DataFrame],
    laws: Mapping[str, Any],
    equal: Mapping[str, Mapping[str, pd.DataFrame]],
) -> list[str]:
    """What the displacement does as the pool grows, for each data set, and whether that is more than fewer steps.

    Args:
        tables, laws: of the displacement, by data set (:func:`by_pool_size`, :func:`fit_all`).
        equal: data set, ``epochs``, ``steps`` and ``accuracy`` to the table of :func:`at_equal_progress`, by pool size.
    """
    sentences = []
    for data, table in tables.items():
        if len(table) < 2:
            sentences.append(f"{DATASETS[data]}: one pool size, nothing to compare.")
            continue
        steps = directions(table)
        falls = steps.count("falls")
        text = f"{DATASETS[data]}: the displacement falls at {falls} of {len(steps)} steps between pool sizes"
        if data in laws:
            law = laws[data]
            side = "below" if law.high < 0 else "above" if law.low > 0 else "not distinguishable from"
            text += (
                f"; exponent {law.exponent:.2f} (95 % interval {law.low:.2f} to {law.high:.2f}, {law.form}), {side} 0"
            )
        ends = {by: directions(one.iloc[[0, -1]])[0] for by, one in equal[data].items()}
        fitted = equal[data]["epochs"].train_accuracy
        words = {"falls": "falls", "rises": "rises", "open": "is not decided"}
        sentences.append(
            text
            + f". Accuracy on the own half at the end is {fitted.min():.1f} to {fitted.max():.1f} %. From the smallest "
            "pool to the largest the displacement "
            + ", ".join(f"{words[end]} at equal {by}" for by, end in ends.items())
            + (
                ": more than fewer steps."
                if set(ends.values()) == {"falls"}
                else ": how far models are trained matters."
            )
        )
    return sentences

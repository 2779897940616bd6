"""Are the states of a sample a Markov chain? Tests and times of every released run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import typer
import xarray as xr
from scipy.special import xlogy

from dynmia.attack.plane import vulnerability_planes
from dynmia.book.makers import table_place, two_processes, write_table
from dynmia.book.tables import SCORINGS, entries
from dynmia.cli import Folder
from dynmia.dynamics import cloud as dyn
from dynmia.dynamics import markov
from dynmia.stats.resample import bootstrap_weights, null_masks
from dynmia.store.run import open_run, study_of

NULLS = 3  # populations without a signal for each run
DRAWS = 200


def simulated(first: np.ndarray, chain: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Two steps of a chain with matrices (T - 1, 9, 9) from initial counts ``first`` (9,): (draws, T - 2, 9, 9, 9)."""
    pairs = rng.multinomial(np.broadcast_to(first, (draws, markov.SIZE)), chain[0])
    steps = []
    for matrix in chain[1:]:
        steps.append(rng.multinomial(pairs, matrix))  # every path a, b goes on by row b
        pairs = steps[-1].sum(1)
    return np.stack(steps, axis=1)


def homogeneity_test(states: np.ndarray, *, draws: int = 499, seed: int = 0) -> float:
    """p-value of one matrix for all checkpoints against one for each, by simulation of the chain with one matrix."""

    def entropy(n: np.ndarray) -> np.ndarray:
        return (xlogy(n, n).sum(-1) - xlogy(n.sum(-1), n.sum(-1))).sum(-1)

    def gain(pairs: np.ndarray) -> np.ndarray:  # (..., T - 1, 9, 9)
        return entropy(pairs).sum(-1) - entropy(pairs.sum(-3))

    pairs = markov.step_counts(states)
    chain = np.broadcast_to(markov.matrices(pairs.sum(0)), pairs.shape)
    first = np.bincount(states[0], minlength=markov.SIZE)
    triples = simulated(first, chain, draws, np.random.default_rng([seed, 16]))
    drawn = np.concatenate([triples.sum(-1), triples[:, -1:].sum(-3)], axis=1)
    return float(markov.p_value(gain(pairs), gain(drawn)))


def hitting_time(matrix: np.ndarray, first: np.ndarray) -> float:
    """Expected steps to the vulnerable state if one ``matrix`` (9, 9) holds for ever, from shares ``first`` (9,).

    The absorbing chain of Kemeny and Snell (1960): (I - Q) h = 1. Infinite if it may never be reached.
    """
    chain = matrix.copy()
    chain[dyn.VULNERABLE] = np.eye(markov.SIZE)[dyn.VULNERABLE]
    reach = np.linalg.matrix_power((chain > 0) + np.eye(markov.SIZE), markov.SIZE) > 0  # in 9 steps or fewer
    lost = reach @ ~reach[:, dyn.VULNERABLE]
    use = ~lost
    use[dyn.VULNERABLE] = False
    if lost[first > 0].any():
        return np.inf
    time = np.zeros(markov.SIZE)
    time[use] = np.linalg.solve(np.eye(use.sum()) - chain[np.ix_(use, use)], np.ones(use.sum()))
    return float(first @ time)


def paths(plane: xr.Dataset) -> np.ndarray:
    """The states of the samples of ``plane``, (T, n)."""
    return dyn.states(plane).transpose("epoch", "sample").values


def share(test: pd.Series, name: str = "bits") -> float:
    """Extra bits of :func:`dynmia.dynamics.markov.order_test` in percent of the uncertainty about the next state."""
    return 100 * float(test[name] / test.entropy) if test.entropy > 0 else np.nan


def measure(run: xr.Dataset, rules: Iterable[str] = SCORINGS, *, draws: int = DRAWS) -> pd.DataFrame:
    """All tests and times of ``run``: one row a decision rule.

    Columns: those of :func:`dynmia.dynamics.markov.order_test`; share, share_low, share_high (:func:`share`);
    p_homogeneous; noise_bits, noise_p (mean and least over ``NULLS`` populations without a signal), noise_share;
    ever, entry and stay, each as ``observed_``, ``chain_`` and ``pooled_`` with low and high (95 % bootstrap interval
    over samples), the share in percent, times in epochs; off, off_low, off_high, by how many percent the chain's
    share of samples ever vulnerable is off; hitting, the expected epochs to the vulnerable state if the pooled matrix
    held for ever.
    """
    rules = list(rules)
    noise = [vulnerability_planes(run, rules, keep=keep) for keep in null_masks(run, NULLS)]
    rows = {}
    for rule, plane in vulnerability_planes(run, rules).items():
        states = paths(plane)
        test = markov.order_test(states, draws=draws)
        blank = pd.DataFrame([markov.order_test(paths(planes[rule]), draws=draws) for planes in noise])
        rows[rule] = {
            **test, **{f"share{end}": share(test, f"bits{end}") for end in ("", "_low", "_high")},
            "p_homogeneous": homogeneity_test(states, draws=draws),
            "noise_bits": blank.bits.mean(), "noise_p": blank.p_lr.min(), "noise_share": share(blank.mean()),
            **times(plane),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, "index").rename_axis("rule")


def times(plane: xr.Dataset) -> dict[str, float]:
    """The times of :func:`measure`, with intervals from ``DRAWS`` bootstrap draws over samples."""
    states, weights = dyn.states(plane), bootstrap_weights(plane, DRAWS)
    point, drawn = markov.passage(states), markov.passage(states, weights)
    values: dict[str, tuple[Any, ...]] = {
        f"{source}_{name}": tuple(scale * found[name].sel(source=source) for found in (point, drawn))
        for source in point.source.values
        for name, scale in (("ever", 100), ("entry", 1), ("stay", 1))
    }
    values["off"] = tuple(100 * (x / y - 1) for x, y in zip(values["chain_ever"], values["observed_ever"]))
    every, grid = float(plane.epoch[1] - plane.epoch[0]), paths(plane)
    counts = markov.step_counts(grid, 2, np.vstack([np.ones(grid.shape[1]), weights.values])).sum(1)
    first = np.equal.outer(grid[0], np.arange(markov.SIZE)).mean(0)
    hitting = np.array([every * hitting_time(matrix, first) for matrix in markov.matrices(counts)])
    values["hitting"] = hitting[0], hitting[1:]
    ends: dict[str, float] = {}
    for name, (value, spread) in values.items():
        known = np.asarray(spread)[~np.isnan(spread)]
        low, high = np.quantile(known, [0.025, 0.975], method="nearest") if len(known) else (np.nan, np.nan)
        ends |= {name: float(value), f"{name}_low": low, f"{name}_high": high}
    return ends


def main(folder: Folder = "data") -> None:
    """Test every run in FOLDER, two processes at once; a quarter of an hour."""
    place, runs = table_place(folder, "markov.csv"), {}
    for entry in entries():
        path = place.parent / f"{entry.name}.nc"
        if path.exists() and entry.study.design != "all":
            runs[entry.name] = open_run(path)
    tables = []
    with two_processes() as pool:
        for (name, run), table in zip(runs.items(), pool.map(measure, runs.values())):
            about = {"models": study_of(run).shadow_models, "samples": run.sizes["sample"]}
            table = table.reset_index().assign(**about, sha256=run.attrs["sha256"])
            table.insert(0, "run", name)
            tables.append(table)
            typer.echo(name)
    write_table(pd.concat(tables), place, f"seed 0, numpy {np.__version__}")

"""Chapter 15: the tests of :mod:`dynmia.dynamics.markov` on every released run, on noise, and on chains that are known.

python -m dynmia.chapters.markov            # writes data/markov.csv and data/markov-calibration.csv
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..attack.parts import part_of
from ..attack.plane import vulnerability_plane, vulnerability_planes
from ..attack.scoring import Scoring
from ..book.campaign import RULES, entries
from ..book.tables import script
from ..dynamics import cloud as dyn
from ..dynamics import markov
from ..stats.resample import bootstrap_weights, null_masks
from ..stats.simulate import Simulator
from ..store.run import open_run, resolve, study_of
from ._shared import release, released

LEVEL = 0.05  # of every test
MATTERS = 5.0  # percent of the uncertainty about the next state, from which memory is said to matter
COSTLY = 10.0  # percent by which a chain's share of samples ever vulnerable may be off
NULLS = 3  # populations without a signal for each run
DRAWS = 200
CALIBRATION = {"cifar10-cnn-4000": 4000, "mnist-cnn-4000": 500}  # chains fitted to these, and with how many samples
HIDDEN = "a true chain, hidden"
TESTS = {"chi2": "chi-square limit", "bootstrap": "parametric bootstrap", "exact": "exact, by matching at random"}


def paths(plane: xr.Dataset) -> np.ndarray:
    """The states of the samples of ``plane``, (T, n)."""
    return dyn.states(plane).transpose("epoch", "sample").values


def share(test: pd.Series, name: str = "bits") -> float:
    """Extra bits of :func:`dynmia.dynamics.markov.order_test` in percent of the uncertainty about the next state."""
    return 100 * float(test[name] / test.entropy) if test.entropy > 0 else np.nan


def measure(run: xr.Dataset, rules: Iterable[str] = RULES, *, draws: int = DRAWS) -> pd.DataFrame:
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
            "p_homogeneous": markov.homogeneity_test(states, draws=draws),
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
    hitting = np.array([every * markov.hitting_time(matrix, first) for matrix in markov.matrices(counts)])
    values["hitting"] = hitting[0], hitting[1:]
    ends: dict[str, float] = {}
    for name, (value, spread) in values.items():
        known = np.asarray(spread)[~np.isnan(spread)]
        low, high = np.quantile(known, [0.025, 0.975], method="nearest") if len(known) else (np.nan, np.nan)
        ends |= {name: float(value), f"{name}_low": low, f"{name}_high": high}
    return ends


def calibrate(chains: int = 300, draws: int = 99) -> pd.DataFrame:
    """How often each test rejects true Markov chains: those fitted to released runs, with n samples each.

    Returns:
        Columns run, rule, samples, statistic (lr, pooled, ck), test (``TESTS``; chi2 for lr only), rate, chains.
    """
    rows = []
    for number, (name, samples) in enumerate(CALIBRATION.items()):
        plane = vulnerability_plane(open_run(resolve(f"data/{name}.nc")))
        states = paths(plane)
        chain = markov.matrices(markov.step_counts(states))
        shares = np.bincount(states[0], minlength=markov.SIZE) / states.shape[1]
        rng = np.random.default_rng([number, samples, 15])
        p = [_p_values(triples, draws, rng) for triples in truth(shares, chain, samples, chains, rng)]
        for (statistic, test), rate in (pd.DataFrame(p) <= LEVEL).mean().items():
            rows.append([name, plane.rule, samples, statistic, test, rate, chains])
    return pd.DataFrame(rows, columns=["run", "rule", "samples", "statistic", "test", "rate", "chains"])


def truth(shares: np.ndarray, chain: np.ndarray, samples: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Two-step tables of true chains whose samples start by ``shares``, (draws, T - 2, 9, 9, 9)."""
    starts = rng.multinomial(samples, shares, draws)
    return np.concatenate([markov.simulated(start, chain, 1, rng) for start in starts])


def _p_values(triples: np.ndarray, draws: int, rng: np.random.Generator) -> dict[tuple[str, str], float]:
    value = markov.statistics(triples)
    pairs = np.concatenate([triples.sum(-1), triples[-1:].sum(-3)])
    fitted = markov.simulated(pairs[0].sum(-1), markov.matrices(pairs), draws, rng)
    found = {("lr", "chi2"): markov.chi_square(triples, value[0])}
    for test, drawn in (("bootstrap", fitted), ("exact", markov.rewired(triples, draws, rng))):
        p = markov.p_value(value, markov.statistics(drawn))
        found |= {(name, test): float(one) for name, one in zip(("lr", "pooled", "ck"), p)}
    return found


def through_noise(states: np.ndarray, models: int) -> np.ndarray:
    """The states seen if the true ones are ``states``: each rate at its cell's middle, drawn anew at each checkpoint.

    Args:
        states: (T, n), the truth; models: a side, trials of each binomial draw.
    """
    rng = np.random.default_rng([0, models])
    tpr, fpr = (rng.binomial(models, (2 * part + 1) / 6) / models for part in (states // 3, states % 3))
    thirds = [(rate >= 1 / 3).astype(int) + (rate > 2 / 3) for rate in (tpr, fpr)]
    return 3 * thirds[0] + thirds[1]


def chain_paths(plane: xr.Dataset, seed: int = 0) -> np.ndarray:
    """Paths (T, n) of a true Markov chain: the one fitted to ``plane``, from its initial states."""
    rng, grid = np.random.default_rng([seed, 17]), paths(plane)
    states = [grid[0]]
    for matrix in markov.matrices(markov.step_counts(grid)):
        ladder = matrix.cumsum(1)[states[-1]][:, :-1]
        states.append((rng.random(len(ladder))[:, None] > ladder).sum(1))
    return np.stack(states)


def noise_curves(
    plane: xr.Dataset, large: Mapping[str, xr.Dataset], rule: str, models: Iterable[int], *, draws: int = 99
) -> pd.DataFrame:
    """Extra bits against the number of models: a hidden true chain, the simulator, parts of large populations.

    Args:
        plane: the chain fitted to it is the hidden truth; large: runs with many models, by label.

    Returns:
        Columns curve, models (in all), share, low, high, p; models is infinite for what no noise hides.
    """
    pooled = Scoring(reading=rule, variance="pooled")
    hidden, simulator, rows = chain_paths(plane), Simulator(samples=500, checkpoints=20, separation=2.0), []

    def add(curve: str, count: float, states: np.ndarray) -> None:
        rows.append({"curve": curve, "models": count, **_memory(states, draws)})

    for count in models:
        add(HIDDEN, count, through_noise(hidden, count // 2))
        add("simulator", count, paths(vulnerability_plane(simulator.run(count), pooled)))
        for name, run in large.items():
            if count <= run.sizes["model"]:
                part = part_of(run, np.arange(count))
                add(name, count, paths(vulnerability_plane(part, pooled)))
    add(HIDDEN, np.inf, hidden)
    add("simulator", np.inf, paths(simulator.truth(rule)))
    return pd.DataFrame(rows)


def by_interval(plane: xr.Dataset, every: Iterable[int] = (1, 2, 3, 5), *, draws: int = 99) -> pd.DataFrame:
    """Extra bits if only each ``every``-th checkpoint is looked at: columns epochs, share, low, high, p."""
    rows = []
    for step in every:
        states = paths(plane)[::step]
        if len(states) > 2:
            rows.append({"epochs": float(plane.epoch[step] - plane.epoch[0]), **_memory(states, draws)})
    return pd.DataFrame(rows)


def _memory(states: np.ndarray, draws: int) -> dict[str, float]:
    """Extra bits as a :func:`share` with its interval, and the p-value of the likelihood ratio."""
    test = markov.order_test(states, draws=draws)
    return {"share": share(test), "low": share(test, "bits_low"), "high": share(test, "bits_high"), "p": test.p_lr}


def read(name: str, folder: str | os.PathLike[str] = "data") -> pd.DataFrame:
    """A table that :func:`main` wrote."""
    return released(name, "markov", folder)


def main() -> None:
    """Write both tables of the chapter."""
    made = f"markov; seed 0, numpy {np.__version__}"
    release(calibrate(), "markov-calibration.csv", made)
    tables = []
    for entry in entries():
        path = resolve("data") / f"{entry.name}.nc"
        if path.exists() and entry.study.design != "all":
            run = open_run(path)
            about = {"models": study_of(run).shadow_models, "samples": run.sizes["sample"]}
            table = measure(run).reset_index().assign(**about, sha256=run.attrs["sha256"])
            table.insert(0, "run", entry.name)
            tables.append(table)
            print(entry.name, flush=True)
    release(pd.concat(tables), "markov.csv", made)


if __name__ == "__main__":
    script(main, "markov.csv", "markov-calibration.csv")

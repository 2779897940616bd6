"""Chapter 15: what memory the states keep if noise hides them, the populations are larger, or checkpoints fewer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from ..attack.plane import part_of, vulnerability_plane
from ..attack.scoring import Scoring
from ..book import maker
from ..dynamics import markov
from ..stats.simulate import Simulator

paths, share = maker("markov").paths, maker("markov").share
MATTERS = 5.0  # percent of the uncertainty about the next state, from which memory is said to matter
COSTLY = 10.0  # percent by which a chain's share of samples ever vulnerable may be off
HIDDEN = "a true chain, hidden"


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
    hidden, simulator, rows = chain_paths(plane), Simulator(samples=500, checkpoints=20, separation=2.0), []

    def add(curve: str, count: float, states: np.ndarray) -> None:
        rows.append({"curve": curve, "models": count, **_memory(states, draws)})

    pooled = Scoring.of(rule, variance="pooled")
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

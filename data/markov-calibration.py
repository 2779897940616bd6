"""How often the tests of a chain's order reject true chains, those fitted to released runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dynmia.attack.plane import vulnerability_plane
from dynmia.book.makers import maker, table_place, write_table
from dynmia.cli import Folder
from dynmia.dynamics import markov
from dynmia.store.run import open_run, resolve

made = maker("markov")
paths, simulated = made.paths, made.simulated
LEVEL = 0.05  # of every test
CALIBRATION = {"cifar10-cnn-4000": 4000, "mnist-cnn-4000": 500}  # chains fitted to these, and with how many samples
TESTS = {"chi2": "chi-square limit", "bootstrap": "parametric bootstrap", "exact": "exact, by matching at random"}


def calibrate(folder: str = "data", chains: int = 300, draws: int = 99) -> pd.DataFrame:
    """How often each test rejects true Markov chains: those fitted to released runs, with n samples each.

    Returns:
        Columns run, rule, samples, statistic (lr, pooled, ck), test (``TESTS``; chi2 for lr only), rate, chains.
    """
    rows = []
    for number, (name, samples) in enumerate(CALIBRATION.items()):
        plane = vulnerability_plane(open_run(resolve(folder) / f"{name}.nc"))
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
    return np.concatenate([simulated(start, chain, 1, rng) for start in starts])


def _p_values(triples: np.ndarray, draws: int, rng: np.random.Generator) -> dict[tuple[str, str], float]:
    value = markov.statistics(triples)
    pairs = np.concatenate([triples.sum(-1), triples[-1:].sum(-3)])
    fitted = simulated(pairs[0].sum(-1), markov.matrices(pairs), draws, rng)
    p_values = {("lr", "chi2"): markov.chi_square(triples, value[0])}
    for test, drawn in (("bootstrap", fitted), ("exact", markov.rewired(triples, draws, rng))):
        p = markov.p_value(value, markov.statistics(drawn))
        p_values |= {(name, test): float(number) for name, number in zip(("lr", "pooled", "ck"), p)}
    return p_values


def main(folder: Folder = "data") -> None:
    """Test chains fitted to runs in FOLDER; a minute or two of one core."""
    place = table_place(folder, "markov-calibration.csv")
    write_table(calibrate(folder), place, f"seed 0, numpy {np.__version__}")

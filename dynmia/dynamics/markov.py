"""Whether the walk of samples over the nine states is a Markov chain, and what it costs to read it as one.

The chain may change from checkpoint to checkpoint: its matrices P(t) are free. Under it the past and the future of the
samples that share a state at t are matched at random, so given the counts of all single steps the tables of two steps,
n_abc(t), have a known law without parameters (fixed margins). Tests that draw from it are exact however sparse the
cells are (Besag and Mondal 2013); the chi-square limit of Anderson and Goodman (1957) is not.

Assumed throughout: samples are independent given the chain. Samples of one population share models, so this is not
quite so; the tests on populations without a signal show how much that matters.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import xlogy
from scipy.stats import chi2

from ..errors import UserError
from .cloud import STATES, VULNERABLE, Weights

SIZE = len(STATES)
BITS = 2 * np.log(2)  # likelihood ratio of one bit


def step_counts(states: np.ndarray, length: int = 2, weights: np.ndarray | None = None) -> np.ndarray:
    """How many samples take each path of ``length`` states from each checkpoint on, (T - length + 1, 9, ..., 9).

    Args:
        states: 0 ... 8, (T, n), from :func:`dynmia.dynamics.cloud.states`.
        length: 2 counts single steps, 3 two in a row.
        weights: how often each sample counts, (draw, n); the result then has a first dim draw.

    Raises:
        UserError: fewer checkpoints than ``length``.
    """
    windows = len(states) - length + 1
    if windows < 1:
        raise UserError(f"{len(states)} checkpoints are too few for paths of {length} states: use more checkpoints.")
    paths = [sum(states[t + k] * SIZE ** (length - 1 - k) for k in range(length)) for t in range(windows)]
    shape = (SIZE,) * length
    if weights is None:
        return np.stack([np.bincount(path, minlength=SIZE**length).reshape(shape) for path in paths])
    member = [np.equal.outer(np.arange(SIZE**length), path).astype(float) for path in paths]
    return np.stack([(weights @ one.T).reshape(-1, *shape) for one in member], axis=1)


def matrices(counts: np.ndarray) -> np.ndarray:
    """Row-normalised step counts (..., 9, 9); a state that nothing was in keeps what enters it."""
    total = counts.sum(-1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1e-300), np.eye(SIZE))


def statistics(triples: np.ndarray) -> np.ndarray:
    """Likelihood ratio per checkpoint, likelihood ratio pooled, Chapman-Kolmogorov distance, each of order 1: (..., 3).

    The likelihood ratios test order 1 against order 2 (Anderson and Goodman 1957): 2 n ln 2 times the information, in
    bits, that the state before adds to the present one about the next; summed over checkpoints, or on the counts
    pooled over them. The distance is the total variation between P(t, t + 2) and P(t, t + 1) P(t + 1, t + 2), averaged
    over samples and t: the share of samples that the product puts into a wrong state. Of ``triples``
    (..., T - 2, 9, 9, 9) from :func:`step_counts`.
    """

    def likelihood_ratio(n: np.ndarray) -> np.ndarray:  # (..., 9, 9, 9)
        parts = [(n, 1), (n.sum((-3, -1)), 1), (n.sum(-1), -1), (n.sum(-3), -1)]
        return 2 * sum(sign * xlogy(part, part).reshape(*n.shape[:-3], -1).sum(-1) for part, sign in parts)

    before, after, now = triples.sum(-1), triples.sum(-3), triples.sum((-3, -1))
    expected = before @ (after / np.maximum(now, 1)[..., None])  # n_a. times the product of the two matrices
    distance = 0.5 * np.abs(triples.sum(-2) - expected).sum((-3, -2, -1)) / triples.sum((-4, -3, -2, -1))
    return np.stack([likelihood_ratio(triples).sum(-1), likelihood_ratio(triples.sum(-4)), distance], axis=-1)


def rewired(triples: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Tables of two steps after pasts and futures are matched at random within each state and checkpoint.

    This is their exact law under order 1, given all counts of single steps. Returns (draws, T - 2, 9, 9, 9).
    """
    full = triples.sum((-3, -1)) > 0  # (T - 2, 9): tables with anybody in them
    rows, columns = triples.sum(-1).swapaxes(-1, -2)[full], triples.sum(-3)[full]  # (table, before), (table, after)
    left = np.broadcast_to(columns, (draws, *columns.shape)).copy()
    tables = np.zeros((draws, len(rows), SIZE, SIZE), int)
    for a in range(SIZE):
        need = np.broadcast_to(rows[:, a], left.shape[:2]).copy()
        rest = left.sum(-1)
        for c in range(SIZE):
            rest = rest - left[..., c]
            tables[..., a, c] = rng.hypergeometric(left[..., c], rest, need)
            need -= tables[..., a, c]
        left -= tables[..., a, :]
    drawn = np.zeros((draws, *triples.shape), int)
    drawn.swapaxes(-3, -2)[:, full] = tables
    return drawn


def p_value(value: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Share of draws at least as large as ``value``, which counts as one of them (Phipson and Smyth 2010)."""
    return (1 + (drawn >= value - 1e-9 * np.abs(value)).sum(0)) / (1 + len(drawn))


def chi_square(triples: np.ndarray, ratio: float) -> float:
    """p-value of a likelihood ratio by its limit; degrees of freedom are those of the margins that are not empty."""
    before, after = (np.maximum((triples.sum(axis) > 0).sum(other) - 1, 0) for axis, other in ((-1, -2), (-3, -1)))
    freedom = (before * after).sum()
    return float(chi2.sf(ratio, freedom)) if freedom else 1.0


def order_test(states: np.ndarray, *, draws: int = 499, seed: int = 0) -> pd.Series:
    """Order 1 against order 2, and Chapman-Kolmogorov, for paths ``states`` (T, n), T at least 3.

    Returns:
        Exact Monte Carlo p-values p_lr, p_pooled, p_ck of :func:`statistics`; p_chi2, of the first by its limit;
        bits, bits_low, bits_high: what the state before adds to the present one about the next, in bits a transition,
        less its mean under order 1, with a 95 % interval over samples (delta method); entropy: of the next state given
        the present one, the most that anything could add; ck, ck_null: the distance, and its mean under order 1.
    """
    triples = step_counts(states, 3)
    value, drawn = statistics(triples), statistics(rewired(triples, draws, np.random.default_rng([seed, 15])))
    before, after, now = triples.sum(-1), triples.sum(-3), triples.sum((-3, -1))
    a, b, c = states[:-2], states[1:-1], states[2:]
    t = np.arange(len(a))[:, None]
    gain = np.log2(triples[t, a, b, c] * now[t, b] / (before[t, a, b] * after[t, b, c])).mean(0)  # of each sample
    bits = (value[0] - drawn[:, 0].mean()) / BITS / a.size
    half = 1.96 * gain.std() / np.sqrt(len(gain))
    p_lr, p_pooled, p_ck = p_value(value, drawn)
    return pd.Series({
        "p_lr": p_lr, "p_pooled": p_pooled, "p_ck": p_ck, "p_chi2": chi_square(triples, value[0]),
        "bits": bits, "bits_low": bits - half, "bits_high": bits + half,
        "entropy": (xlogy(now, now).sum() - xlogy(after, after).sum()) / np.log(2) / a.size,
        "ck": value[2], "ck_null": drawn[:, 2].mean(),
    })  # fmt: skip


def passage(states: xr.DataArray, weights: Weights = None) -> xr.Dataset:
    """First passage to the vulnerable state and the first stay in it: observed, and by the fitted chains.

    The chains start from the observed initial states. A stay that the end of training cuts short counts as far as it
    is seen, and each checkpoint counts as the interval that follows it. (Over *all* visits the mean stay of the chain
    with a matrix a checkpoint equals the observed one by construction; over first visits it need not.)

    Args:
        states: (epoch, sample); weights: (draw, sample), for intervals.

    Returns:
        Dim source is observed; chain, with a matrix a checkpoint; pooled, with one matrix. Variables ever, the share of
        samples that are vulnerable at least once; entry, the mean epoch of first entry of those; stay, the mean length
        of their first visit in epochs. NaN where nobody enters.
    """
    paths, epochs = states.transpose("epoch", "sample").values, states.epoch.values.astype(float)
    times = np.ones((1, paths.shape[1])) if weights is None else weights.transpose("draw", "sample").values
    interval = np.diff(epochs, append=2 * epochs[-1] - epochs[-2])
    pairs = step_counts(paths, 2, times)
    pooled = np.broadcast_to(matrices(pairs.sum(1, keepdims=True)), pairs.shape)
    first = times @ np.equal.outer(paths[0], np.arange(SIZE)) / times.sum(1, keepdims=True)
    now = paths == VULNERABLE
    length = np.zeros((len(now) + 1, now.shape[1]))  # of the visit from each checkpoint on
    for t in reversed(range(len(now))):
        length[t] = now[t] * (interval[t] + length[t + 1])
    enters = (now & (now.cumsum(0) == 1)).astype(float)  # (T, n): at the first entry
    seen = times @ enters.T, times @ (enters * length[:-1]).T  # (draw, T)
    flows = {"observed": [part / times.sum(1, keepdims=True) for part in seen]}
    for source, chain in (("chain", matrices(pairs)), ("pooled", pooled)):
        flows[source] = _first_visits(first, chain, interval)
    values = {name: [] for name in ("ever", "entry", "stay")}  # type: ignore[var-annotated]
    for entry, stay in flows.values():
        ever = entry.sum(1)
        some = np.where(ever > 0, ever, np.nan)
        for name, value in zip(values, (ever, entry @ epochs / some, stay.sum(1) / some)):
            values[name].append(value)
    passages = xr.Dataset({name: (("source", "draw"), value) for name, value in values.items()}, {"source": [*flows]})
    return passages.isel(draw=0) if weights is None else passages


def _first_visits(first: np.ndarray, chain: np.ndarray, interval: np.ndarray) -> list[np.ndarray]:
    """Probability of first entry at each checkpoint, and that times the expected length of the visit, (draw, T)."""
    stays = chain[:, :, VULNERABLE, VULNERABLE]
    length = np.broadcast_to(interval, (len(chain), len(interval))).copy()
    for t in reversed(range(len(interval) - 1)):
        length[:, t] += stays[:, t] * length[:, t + 1]
    entry, alive = np.zeros(length.shape), first.copy()
    for t in range(len(interval)):
        if t:
            alive = (alive[:, None] @ chain[:, t - 1])[:, 0]
        entry[:, t] = alive[:, VULNERABLE]
        alive[:, VULNERABLE] = 0
    return [entry, entry * length]

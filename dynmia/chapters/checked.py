"""Every attack and metric of the package beside its oracle (:mod:`.oracles`), and one case to do with a pencil."""

from __future__ import annotations

from itertools import pairwise, product
from types import ModuleType

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats
from sklearn import metrics as sk

from ..attack.lira import lira_scores
from ..attack.others import attack_scores
from ..attack.plane import LEVELS, halves, rate_interval, vulnerability_plane
from ..attack.scoring import LIRA, Scoring
from ..book.plots import titled
from ..dynamics import cloud as dyn
from ..dynamics.markov import passage
from ..dynamics.metrics import METRICS
from ..stats.agreement import overlap, rank_agreement
from ..stats.intervals import interval
from ..stats.resample import p_values
from . import oracles

TOLERANCE = 1e-9  # of a difference that is rounding only; fits by another solver get FITTED
FITTED = 1e-4
OPTIONS = list(product(oracles.CENTRES, ("pooled", "per-sample")))


def comparisons(run: xr.Dataset) -> pd.DataFrame:
    """Every attack, metric and interval of the package on ``run`` beside its oracle, with the largest difference.

    Returns:
        Columns quantity, ours, oracle, difference, tolerance.
    """
    keep, labels = run.keep.values, run.label.values
    paths = run.phi.values.astype(float)
    phi, rows = paths[-1], []

    def row(quantity: str, ours: str, oracle: str, got: object, expected: object, tolerance: float = TOLERANCE) -> None:
        difference = float(np.max(np.abs(np.asarray(got, float) - np.asarray(expected, float))))
        rows.append([quantity, ours, oracle, difference, tolerance])

    for attack in LIRA:
        row(f"LiRA {attack}, {len(OPTIONS)} options", "lira_scores", "loop, scipy.stats.norm",
            [lira_scores(phi, keep, attack=attack, centre=c, variance=v) for c, v in OPTIONS],
            [oracles.lira_loop(phi, keep, attack, c, v) for c, v in OPTIONS])  # fmt: skip
    for attack, oracle, expected, tolerance in (
        ("loss", "torch cross_entropy", oracles.loss_torch(phi), TOLERANCE),
        ("shokri", "likelihood by scipy minimize", oracles.shokri_loop(phi, keep, labels), FITTED),
        ("rmia", "loop over pairs", oracles.rmia_loop(phi, keep), TOLERANCE),
        ("rmia-offline", "loop over pairs", oracles.rmia_loop(phi, keep, 0.3), TOLERANCE),
    ):
        got = attack_scores(phi, keep, labels, Scoring(attack))
        row(f"attack {attack}", f'Scoring("{attack}")', oracle, got, expected, tolerance)
    plane, second = (
        vulnerability_plane(run, Scoring("lira", "fpr@0.01", variance="pooled")),
        oracles.Second(paths, keep, run.epoch.values),
    )
    row("FPR and TPR of each sample", "vulnerability_plane", "sklearn roc_curve, fractions",
        np.stack([plane.fpr, plane.tpr], -1), second.place)  # fmt: skip
    for name, (oracle, of) in oracles.ORACLES.items():
        row(titled(name), f'METRICS["{name}"]', oracle, METRICS[name].of(plane, None), of(second))
    flat = [["TPR {}, FPR {}".format(*state) for state in states] for states in second.state]
    tables = [pd.crosstab(pd.Series(a), pd.Series(b)).reindex(index=dyn.STATES, columns=dyn.STATES, fill_value=0)
              for a, b in pairwise(flat)]  # fmt: skip
    counts = dyn.transition_counts(plane)
    row("transition counts", "transition_counts", "pandas crosstab", counts, np.stack(tables))
    share = pd.crosstab(np.concatenate(flat[:-1]), np.concatenate(flat[1:]), normalize="index")
    matrix = dyn.transition_matrix(counts.sum("epoch")).to_pandas().reindex(index=share.index, columns=share.columns)
    row("transition matrix, pooled", "transition_matrix", "pandas crosstab", matrix, share)
    row("entropy at each checkpoint (bits)", "spatial_entropy", "histogram2d, scipy entropy",
        dyn.spatial_entropy(plane), [oracles.entropy(place) for place in second.place])  # fmt: skip

    coarse = run.assign(phi=run.phi.isel(epoch=[-1]).round())  # whole numbers: many ties
    tied, values = vulnerability_plane(coarse.isel(epoch=[-1]), Scoring("loss")), np.round(phi).ravel()
    fpr, tpr, _ = sk.roc_curve(keep.ravel(), values)
    row("AUC, tied scores", "dynamics.auc", "sklearn roc_auc_score", dyn.auc(tied),
        sk.roc_auc_score(keep.ravel(), values))  # fmt: skip
    row("TPR at 0.1, 1 and 10 % FPR, tied scores", "tpr_at_fpr", "sklearn roc_curve",
        [dyn.tpr_at_fpr(tied, a)[0] for a in LEVELS], [tpr[fpr <= a].max() for a in LEVELS])  # fmt: skip

    drawn = []
    for part in halves(run, "sample", 20):
        half = oracles.Second(part.phi.values[-1:].astype(float), part.keep.values, part.epoch.values[-1:])
        drawn.append(1000 * np.diff(half.place[-1]).mean())
    row("interval over samples (mean advantage)", "interval", "loops over halves, scipy.stats.t",
        interval(run, "lira:fpr@0.01", "samples", only=["advantage"]).loc["advantage", ["low", "high"]],
        stats.t.interval(0.95, 10, 1000 * np.diff(second.place[-1]).mean(), np.std(drawn)))  # fmt: skip
    noise, value = np.random.default_rng(0).normal(0, 1, 199), 1.7
    test = stats.monte_carlo_test([value], lambda size: noise.reshape(size), np.mean, n_resamples=199)
    row("permutation p-value", "p_values", "scipy.stats.monte_carlo_test",
        p_values(pd.Series({"x": value}), pd.DataFrame({"x": noise})), test.pvalue)  # fmt: skip
    hits = xr.DataArray(np.arange(11), dims="count")
    exact = [stats.binomtest(k, 10).proportion_ci(method="wilson") for k in range(11)]
    row("Wilson interval, 0 to 10 of 10", "rate_interval", "scipy binomtest",
        rate_interval(hits, xr.DataArray(10)).to_array().T, [[ci.low, ci.high] for ci in exact])  # fmt: skip

    other = vulnerability_plane(run, Scoring("offline-cdf"))
    average = [p.advantage.values.mean(0) for p in (plane, other)]
    row("Spearman's correlation of two planes", "rank_agreement", "scipy spearmanr", rank_agreement(plane, other),
        stats.spearmanr(*average).statistic)  # fmt: skip
    sets = [(p.fpr.values[-1] < 1 / 3) & (p.tpr.values[-1] > 2 / 3) for p in (plane, other)]
    row("Jaccard index of two vulnerable sets", "overlap", "sklearn jaccard_score", overlap(plane, other),
        sk.jaccard_score(*sets))  # fmt: skip
    return pd.DataFrame(rows, columns=["quantity", "ours", "oracle", "difference", "tolerance"])


def beside_published(theirs: ModuleType, phi: np.ndarray, keep: np.ndarray) -> pd.DataFrame:
    """Our LiRA beside the published one (:func:`.oracles.published_scores`), by attack, centre and variance.

    Columns: largest difference with their variance made unbiased, and as published; AUC of ours, and of theirs.
    """
    rows = {}
    for attack, (centre, variance) in product(("lira", "offline-density"), OPTIONS):
        ours = lira_scores(phi, keep, attack=attack, centre=centre, variance=variance)
        raw, unbiased = (
            oracles.published_scores(theirs, phi, keep, attack, centre, variance, stretch) for stretch in (False, True)
        )
        aucs = [sk.roc_auc_score(keep.ravel(), score.ravel()) for score in (ours, raw)]
        rows[attack, centre, variance] = [np.abs(unbiased - ours).max(), np.abs(raw - ours).max(), *aucs]
    table = pd.DataFrame(rows, index=["unbiased", "as published", "AUC, ours", "AUC, theirs"]).T
    return table.rename_axis(["attack", "centre", "variance"])


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`comparisons` for a page: a difference within its tolerance is rounding, and prints as that bound."""
    pairs = zip(table.difference, table.tolerance)
    shown = [f"< {limit:.0e}" if d <= limit else f"{d:.2g}" for d, limit in pairs]
    return table.assign(**{"largest difference": shown}).drop(columns=["difference", "tolerance"]).set_index("quantity")


def verdict(table: pd.DataFrame, beside: pd.DataFrame | None) -> list[str]:
    """What the comparisons say, in sentences; ``beside`` is None where the published package is not installed."""
    wrong = table.quantity[~(table.difference <= table.tolerance)].tolist()
    lines = [
        f"{len(table) - len(wrong)} of {len(table)} quantities equal their oracle to rounding, or to the tolerance of "
        "a fit by another solver" + (f"; {', '.join(wrong)} do not." if wrong else ".")
    ]
    if beside is not None:
        same = beside.unbiased <= TOLERANCE
        others = "; ".join("{} with {} and {} variance".format(*key) for key in beside.index[~same])
        gap = (beside["AUC, ours"] - beside["AUC, theirs"]).abs().max()
        lines.append(
            f"The published LiRA gives our scores to rounding in {same.sum()} of {len(beside)} variants once its "
            f"variances divide by m - 1{f' (not in {others})' if others else ''}. Taken as it is published, its AUC "
            f"differs from ours by at most {gap:.4f}."
        )
    return lines


def pencil() -> xr.Dataset:
    """A plane made up for a pencil: four samples A to D at epochs 0, 10 and 20, ten in- and ten out-models each."""
    tp, fp = [[0, 0, 0, 0], [4, 8, 8, 0], [7, 7, 2, 0]], [[0, 0, 0, 0], [3, 0, 0, 0], [3, 0, 8, 1]]
    plane = xr.Dataset(
        {name: (("epoch", "sample"), np.array(count)) for name, count in (("tp", tp), ("fp", fp))},
        {"epoch": [0, 10, 20], "sample": list("ABCD")},
    )
    plane = plane.assign(tpr=plane.tp / 10, fpr=plane.fp / 10, n_in=("sample", [10] * 4), n_out=("sample", [10] * 4))
    return plane.assign(advantage=plane.tpr - plane.fpr)


def written_out(plane: xr.Dataset) -> pd.DataFrame:
    """TPR, FPR and state of each sample, one column a checkpoint."""
    state, columns = dyn.states(plane).values, {}
    for t, epoch in enumerate(plane.epoch.values):
        counts = zip(plane.tp.values[t], plane.fp.values[t], state[t])
        columns[f"epoch {epoch}"] = [f"{tp}/10, {fp}/10: {dyn.STATES[s]}" for tp, fp, s in counts]
    return pd.DataFrame(columns, pd.Index(plane.sample.values, name="TPR, FPR: state"))


def by_hand(plane: xr.Dataset) -> pd.DataFrame:
    """The case of :func:`pencil` worked on paper beside the package: columns quantity, on paper, by hand, package."""
    low, mid, high, lost = "TPR low, FPR low", "TPR mid, FPR low", dyn.STATES[dyn.VULNERABLE], "TPR low, FPR high"
    pooled = dyn.transition_matrix(dyn.transition_counts(plane).sum("epoch"))
    moved, bits, turned = dyn.displacement(plane), dyn.spatial_entropy(plane), dyn.transition_to_vulnerable(plane)
    early, speed = dyn.early_identification(plane), 1000 * dyn.population_mean(dyn.encoding_speed(plane))
    rest = pooled.sel(source=[low, mid], target=[low, mid]).values
    steps = np.linalg.solve(np.eye(2) - rest, [1, 1])
    seen = passage(dyn.states(plane)).sel(source="observed")
    rows = [
        ["displacement (/1000)", "C(20) = (12/40, 16/40): 1000 sqrt(0.3² + 0.4²)", 500, moved[-1]],
        ["speed to epoch 10 (/1000 per epoch)", "(0.5 + 0.8 + 0.8 + 0) / 4 / 10", 52.5, speed[0]],
        ["speed to epoch 20", "(0.3 + 0.1 + 1.0 + 0.1) / 4 / 10", 37.5, speed[1]],
        ["entropy at epoch 0 (bits)", "all in one cell", 0, bits[0]],
        ["entropy at epoch 10", "cells of 1, 2 and 1: 2 × 1/4 × 2 + 1/2 × 1", 1.5, bits[1]],
        ["entropy at epoch 20", "four cells of 1: log2 4", 2, bits[2]],
        [f"{low} → {high}", "5 depart: A, B, C, D and D again; 2 arrive (B, C)", 2 / 5, pooled.loc[low, high]],
        [f"{low} → {mid}", "1 of 5 (A)", 1 / 5, pooled.loc[low, mid]],
        [f"{low} → {low}", "2 of 5 (D twice)", 2 / 5, pooled.loc[low, low]],
        [f"{mid} → {high}", "1 of 1 (A)", 1, pooled.loc[mid, high]],
        [f"{high} → {lost}", "1 of 2 (C goes, B stays)", 1 / 2, pooled.loc[high, lost]],
        ["first passage from TPR low, FPR low, steps", "h = 1 + 2/5 h + 1/5 × 1, so 3/5 h = 6/5", 2, steps[0]],
        ["ever vulnerable", "3 of 4 (D never)", 3 / 4, seen.ever],
        ["first passage, mean epoch", "(20 + 10 + 10) / 3, A to C", 40 / 3, seen.entry],
        ["turned vulnerable by epoch 10", "2 of 4 not so before (B, C)", 1 / 2, turned[0]],
        ["turned vulnerable by epoch 20", "1 of 2 not so before (A)", 1 / 2, turned[1]],
        ["recall at epoch 10", "finally A and B; of them B is", 1 / 2, early.recall[1]],
        ["precision at epoch 10", "vulnerable B and C; of them B stays", 1 / 2, early.precision[1]],
        ["dynamic vulnerability of A", "(0 + 0.1 + 0.4) / 3", 1 / 6, dyn.dynamic_vulnerability(plane)[0]],
        ["dynamic vulnerability of C", "(0 + 0.8 - 0.6) / 3", 1 / 15, dyn.dynamic_vulnerability(plane)[2]],
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["quantity", "on paper", "by hand", "package"])
    return table.astype({"by hand": float, "package": float})

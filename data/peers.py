"""The attacks on populations that nobody looked at while `moderated` was made: how well, and how calibrated.

The populations are the runs of campaign.yml whose names begin with ``fresh-``, trained after the code of the attack was
frozen. Every checkpoint is scored; differences are taken half by half.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import expit
from scipy.stats import rankdata

from dynmia.attack.others import attack_scores, rmia
from dynmia.attack.plane import halves
from dynmia.attack.scoring import LOG_ODDS, Scoring
from dynmia.book.makers import table_place, two_processes, write_table
from dynmia.book.tables import entries
from dynmia.cli import Folder
from dynmia.stats.intervals import contrast, estimate
from dynmia.stats.resample import null_masks, quantiles
from dynmia.store.run import open_run

ATTACKS = ("moderated", "bavaria", "lira", "rmia", "shokri", "loss")
LEVELS = {"tpr_01pct": 0.001, "tpr_1pct": 0.01, "tpr_10pct": 0.1}
BOUNDS = {"auc": (0.0, 1.0), "ece": (0.0, 1.0)} | dict.fromkeys(LEVELS, (0.0, 100.0))
BINS = 15  # of equal width, of the probability of membership
DRAWS = 20  # halves along each dimension
MODELS = 20  # of a population; its halves are scored as it is
INDEX = ["run", "epoch", "attack", "metric"]


def measures(scores: np.ndarray, keep: np.ndarray, log_odds: bool) -> dict[str, float]:
    """AUC, TPR (%) at each pooled FPR of ``LEVELS``, and the expected calibration error of scores (N, n).

    The AUC counts ties one half. A TPR is NaN where the out-scores are too few to tell the level; ECE (Naeini et al.
    2015) is the mean distance of predicted and true shares of members over bins of the predicted one, by their size.
    """
    inside, outside = scores[keep], np.sort(scores[~keep])
    ranks = rankdata(scores)  # of the raveled scores
    u = ranks.reshape(scores.shape)[keep].sum() - len(inside) * (len(inside) + 1) / 2
    found = {"auc": u / (len(inside) * len(outside))}
    for name, level in LEVELS.items():
        allowed = int(level * len(outside) + 1e-9)
        found[name] = 100 * (inside > outside[-1 - allowed]).mean() if allowed else np.nan
    found["ece"] = calibration(scores, keep).eval("share * abs(predicted - actual)").sum() if log_odds else np.nan
    return found


def calibration(scores: np.ndarray, keep: np.ndarray) -> pd.DataFrame:
    """By bin of the probability that a score means: its mean (predicted), share of members (actual), share of pairs."""
    p, member = expit(scores).ravel(), keep.ravel().astype(float)
    bins = np.minimum((BINS * p).astype(int), BINS - 1)
    count, *sums = (np.bincount(bins, weights, BINS) for weights in (None, p, member))
    used = count > 0
    predicted, actual = (total[used] / count[used] for total in sums)
    return pd.DataFrame({"predicted": predicted, "actual": actual, "share": count[used] / len(p)})


def score(phi: np.ndarray, keep: np.ndarray, label: np.ndarray, scoring: Scoring) -> np.ndarray:
    """Scores (N, n) of one checkpoint; ties of RMIA are broken, which small populations have many of."""
    if scoring.attack == "rmia":
        return rmia(phi, keep, label, ties=False)
    return attack_scores(phi, keep, label, scoring)


def scored(run: xr.Dataset, attack: str, keep: np.ndarray | None = None) -> pd.DataFrame:
    """:func:`measures` of every checkpoint: index epoch, a column a measure."""
    keep, scoring = run.keep.values if keep is None else keep, Scoring(attack).for_models(MODELS)
    rows = {
        int(epoch): measures(score(phi, keep, run.label.values, scoring), keep, attack in LOG_ODDS)
        for epoch, phi in zip(run.epoch.values, run.phi.values)
    }
    return pd.DataFrame.from_dict(rows, "index").rename_axis("epoch")


def measure(run: xr.Dataset, attacks: tuple[str, ...] = ATTACKS, draws: int = DRAWS, null: int = 20) -> pd.DataFrame:
    """Every attack at every checkpoint of a run.

    Args:
        run: a run.
        attacks: names; the first is set against each of the others.
        draws: halves of the models, and of the samples.
        null: redrawn keep masks, at the last checkpoint.

    Returns:
        Index (epoch, attack, metric); columns value, low, high, by the rule of :mod:`dynmia.stats.intervals`; gain,
        gain_low, gain_high, the first attack less this one; null_value, null_low, null_high.
    """
    whole = {attack: scored(run, attack) for attack in attacks}
    parts = {
        attack: {dim: [scored(part, attack) for part in halves(run, dim, draws)] for dim in ("model", "sample")}
        for attack in attacks
    }
    last = run.isel(epoch=[-1])
    masks = list(null_masks(run, null)) if null else []
    noise = {attack: pd.concat([scored(last, attack, keep) for keep in masks]) for attack in attacks if masks}
    rows = {}
    for epoch, attack, metric in product(whole[attacks[0]].index, attacks, BOUNDS):
        value = whole[attack].loc[epoch, metric]
        if np.isnan(value):
            continue
        drawn, first = (
            {dim: np.array([table.loc[epoch, metric] for table in tables]) for dim, tables in parts[name].items()}
            for name in (attack, attacks[0])
        )
        row = estimate(value, drawn, run.sizes, bounds=BOUNDS[metric])
        if attack != attacks[0]:
            pair = {dim: np.stack([first[dim], drawn[dim]]) for dim in drawn}
            both = np.array([whole[attacks[0]].loc[epoch, metric], value])
            gain = contrast(both, pair, run.sizes, how="difference")
            row |= {"gain": gain["value"], "gain_low": gain["low"], "gain_high": gain["high"]}
        if epoch == whole[attack].index[-1] and masks:
            row |= (
                quantiles(noise[attack][[metric]]).loc[metric, ["value", "low", "high"]].add_prefix("null_").to_dict()
            )
        rows[epoch, attack, metric] = row
    columns = ["value", "low", "high", "gain", "gain_low", "gain_high", "null_value", "null_low", "null_high"]
    return pd.DataFrame.from_dict(rows, "index").reindex(columns=columns).rename_axis(INDEX[1:])


def main(folder: Folder = "data") -> None:
    """Score every run of FOLDER whose name begins with fresh- by every attack, two processes at once."""
    place = table_place(folder, "peers.csv")
    paths = {entry.name: place.parent / f"{entry.name}.nc" for entry in entries(only="fresh-")}
    runs = {name: open_run(path) for name, path in paths.items() if path.exists()}
    with two_processes() as pool:
        tables = dict(zip(runs, pool.map(measure, runs.values())))
    about = ", ".join(f"{name} {run.attrs['sha256'][:12]}" for name, run in runs.items())
    write_table(pd.concat(tables, names=INDEX), place, f"{DRAWS} halves, 20 redrawn masks, seed 0; {about}")

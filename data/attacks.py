"""Every attack's figures of the runs of chapter 08, beside its own no-signal level."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from dynmia.attack.scoring import LOG_ODDS, Scoring
from dynmia.book.makers import table_place, two_processes, write_table
from dynmia.book.tables import READINGS, released
from dynmia.cli import Folder
from dynmia.dynamics.cloud import dynamic_vulnerability, states
from dynmia.dynamics.metrics import EARLY
from dynmia.stats.agreement import overlap, rank_agreement
from dynmia.stats.intervals import summarise
from dynmia.stats.resample import null_planes, null_table, p_values, quantiles

NAMES = {  # in the order of what the attacker knows about each sample
    "lira": "LiRA",
    "moderated": "moderated LiRA",
    "bavaria": "moderated variances alone",
    "moderated-offline": "offline, moderated",
    "offline-cdf": "offline LiRA, one-sided",
    "offline-density": "offline LiRA, two-sided",
    "rmia": "RMIA",
    "rmia-offline": "offline RMIA",
    "shokri": "shadow classifier",
    "loss": "loss threshold",
}
LEVEL = "fpr@0.01"  # the reading that all attacks have
AT_THE_ENDS = ("auc", "tpr_1pct", "tpr_01pct", "displacement", "entropy_change", "vulnerable", "early_recall")
ALONG_THE_WAY = (*AT_THE_ENDS, "transition_peak", "transition_peak_epoch", "dynamic")


def ends(run: xr.Dataset) -> xr.Dataset:
    """The run at its first and last checkpoint and at 3/8 of training: all that ``AT_THE_ENDS`` needs."""
    early = run.epoch.sel(epoch=EARLY * float(run.epoch[-1]), method="pad")
    return run.sel(epoch=np.unique([int(run.epoch[0]), int(early), int(run.epoch[-1])]))


def measure(
    run: xr.Dataset, attack: str, rule: str = "fpr@0.01", *, only: Sequence[str] = AT_THE_ENDS,
    null: int | Iterable[xr.Dataset] = 5,
) -> pd.DataFrame:  # fmt: skip
    """The figures of one run under one attack.

    Args:
        run, rule: as for :func:`dynmia.attack.plane.vulnerability_plane`.
        attack: its name.
        only: metrics.
        null: draws of the permutation null, or its planes.

    Returns:
        Index metric; columns value, low, high (:func:`dynmia.stats.intervals.summarise`), null_value, null_low,
        null_high, p.
    """
    scoring = Scoring(attack, rule)
    planes = null_planes(run, scoring, draws=null) if isinstance(null, int) else null
    drawn, table = null_table(planes, only), summarise(run, scoring, only=only)[["value", "low", "high"]]
    return table.join(quantiles(drawn).add_prefix("null_")).assign(p=p_values(table.value, drawn))


def final(plane: xr.Dataset) -> xr.Dataset:
    """All that :mod:`dynmia.stats.agreement` reads of a plane: dynamic vulnerability, and the states at the end."""
    advantage = dynamic_vulnerability(plane).expand_dims("epoch")
    return xr.Dataset({"advantage": advantage, "state": states(plane).isel(epoch=[-1]).drop_vars("epoch")})


def _job(job: tuple[xr.Dataset, str, str, int, bool]) -> tuple[pd.DataFrame, list[xr.Dataset]]:
    """One run under one attack; of the main run with metrics along the way and the end of every redrawn plane."""
    run, attack, rule, null, main = job
    finals = []

    def planes() -> Iterator[xr.Dataset]:  # one at a time: two hundred would fill the memory
        for plane in null_planes(run, Scoring(attack, rule), draws=null):
            if main:
                finals.append(final(plane))
            yield plane

    only = ALONG_THE_WAY if main else AT_THE_ENDS
    return measure(run, attack, rule, only=only, null=planes()), finals


def compute(folder: str | os.PathLike[str] = "data", rule: str = "", null: int = 200) -> pd.DataFrame:
    """:func:`measure` of every run of chapter 08 in ``folder`` under every attack, two processes at once.

    Every attack is read by ``rule``; without one by fpr@0.01, and those whose score is a log-odds by the other
    ``READINGS`` too. The first run is followed over all checkpoints. For it the redrawn populations also tell how far
    two attacks on the same models agree without a signal: rows ``spearman`` and ``jaccard`` of each attack with LiRA.

    Returns:
        Index (run, attack, rule, metric).
    """
    runs = released("08", folder)
    main, rows, noise = next(iter(runs)), {}, {}
    asked = [(attack, reading) for reading in ([rule] if rule else [LEVEL]) for attack in NAMES]
    if not rule:
        asked += [(a, reading) for reading in READINGS if reading != LEVEL for a in NAMES if a in LOG_ODDS[:-1]]
    keys = [(name, *one) for name in runs for one in asked]
    jobs = [
        (run if name == main else ends(run), *one, null, name == main) for name, run in runs.items() for one in asked
    ]
    with two_processes() as pool:
        for key, (table, planes) in zip(keys, pool.map(_job, jobs)):
            rows[key] = table
            if key[0] == main:
                noise[key[1:]] = planes
    for (attack, reading), drawn in noise.items():
        if attack != "lira" and ("lira", reading) in noise:
            pairs = list(zip(noise["lira", reading], drawn))
            same = {"spearman": [float(rank_agreement(*pair)) for pair in pairs]}
            same["jaccard"] = [float(overlap(*pair)) for pair in pairs]
            key = main, attack, reading
            rows[key] = pd.concat([rows[key], quantiles(pd.DataFrame(same)).add_prefix("null_")])
    return pd.concat(rows, names=["run", "attack", "rule", "metric"]).astype(float)


def main(folder: Folder = "data") -> None:
    """Score the runs of chapter 08 in FOLDER under every attack, two processes at once; half an hour."""
    place = table_place(folder, "attacks.csv")
    write_table(compute(folder), place, "200 redrawn masks, seed 0")

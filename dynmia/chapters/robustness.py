"""Which conclusions of the study survive another attack: every attack's figures, beside its own no-signal level.

``python -m dynmia.chapters.robustness [folder]`` makes ``attacks.csv`` from the runs in ``folder``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise, product

import numpy as np
import pandas as pd
import xarray as xr

from ..book import campaign
from ..book.tables import script
from ..dynamics.cloud import dynamic_vulnerability, states
from ..dynamics.metrics import EARLY, METRICS
from ..stats.agreement import overlap, rank_agreement
from ..stats.intervals import every
from ..stats.resample import null_planes, null_table, p_values, quantiles
from ._shared import release
from .population import compare

Tables = Mapping[str, Mapping[str, pd.DataFrame]]
NAMES = {  # in the order of what the attacker knows about each sample
    "online": "LiRA",
    "offline-cdf": "offline LiRA, one-sided",
    "offline-density": "offline LiRA, two-sided",
    "rmia": "RMIA",
    "rmia-offline": "offline RMIA",
    "shokri": "shadow classifier",
    "loss": "loss threshold",
}
PATH, INDEX = "attacks.csv", ["run", "attack", "metric"]
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
        Index metric; columns value, low, high (:func:`dynmia.stats.intervals.every`), null_value, null_low,
        null_high, p.
    """
    planes = null_planes(run, rule, draws=null, attack=attack) if isinstance(null, int) else null
    drawn, table = null_table(planes, only), every(run, rule, only=only, attack=attack)[["value", "low", "high"]]
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
        for plane in null_planes(run, rule, draws=null, attack=attack):
            if main:
                finals.append(final(plane))
            yield plane

    only = ALONG_THE_WAY if main else AT_THE_ENDS
    return measure(run, attack, rule, only=only, null=planes()), finals


def compute(folder: str | os.PathLike[str] = "data", rule: str = "fpr@0.01", null: int = 200) -> pd.DataFrame:
    """:func:`measure` of every run of chapter 08 in ``folder`` under every attack, two processes at once.

    The first run is followed over all checkpoints. For it the redrawn populations also tell how far two attacks on the
    same models agree without a signal: rows ``spearman`` and ``jaccard`` of each attack with the first one.

    Returns:
        Index (run, attack, metric).
    """
    runs = campaign.released("08", folder)
    main, rows, noise = next(iter(runs)), {}, {}
    jobs = [
        (run if name == main else ends(run), a, rule, null, name == main) for name, run in runs.items() for a in NAMES
    ]
    with ProcessPoolExecutor(2) as pool:
        for (name, attack), (table, planes) in zip(product(runs, NAMES), pool.map(_job, jobs)):
            rows[name, attack] = table
            if name == main:
                noise[attack] = planes
    first, *others = NAMES
    for attack in others:
        pairs = list(zip(noise[first], noise[attack]))
        drawn = {"spearman": [float(rank_agreement(*pair)) for pair in pairs]}
        drawn["jaccard"] = [float(overlap(*pair)) for pair in pairs]
        rows[main, attack] = pd.concat([rows[main, attack], quantiles(pd.DataFrame(drawn)).add_prefix("null_")])
    return pd.concat(rows, names=INDEX).astype(float)


def tables_of(table: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """What :func:`compute` found, by attack and run, without the rows of agreement and with labels and units."""
    found: dict[str, dict[str, pd.DataFrame]] = {attack: {} for attack in NAMES}
    for (run, attack), part in table.groupby(level=["run", "attack"], sort=False):
        part = part.droplevel(["run", "attack"])
        part = part[part.index.isin(list(METRICS))]
        label, unit = ([getattr(METRICS[str(name)], what) for name in part.index] for what in ("label", "unit"))
        found[str(attack)][str(run)] = part.assign(label=label, unit=unit)
    return found


def order(displacements: Mapping[str, pd.Series]) -> tuple[list[str], bool]:
    """Runs by rising displacement, and whether all neighbours' intervals are apart (so that the order is sure)."""
    ranked = sorted(displacements, key=lambda name: float(displacements[name].value))
    sure = all(displacements[a].high < displacements[b].low for a, b in pairwise(ranked))
    return ranked, sure


def survival(tables: Tables, main: str, alike: Sequence[str], step: float) -> pd.DataFrame:
    """For each attack, whether what the reference (the first attack) shows is shown by it too.

    Rules, each on 95 % intervals. *Order*: the data sets rank by displacement as under the reference (``sure`` if the
    intervals of neighbours are apart). *Cloud spreads*, *some end vulnerable*: in how many runs the whole interval lies
    above (below) the no-signal level. *Peak*: the transition to vulnerable peaks within one checkpoint of the interval
    of the reference. *70 % early*: recall at 3/8 of training lies above (below) 70 % with its whole interval. Where no
    more samples end vulnerable than by chance, peak and recall are not asked for.

    Args:
        tables: for each attack, for each run, the table of :func:`measure`; ``main`` is the run with ``ALONG_THE_WAY``.
        main: name of that run.
        alike: runs that differ in the data set only.
        step: epochs between its checkpoints.

    Returns:
        Index attack (in words); one column a conclusion, in words.
    """
    reference = next(iter(tables.values()))
    expected, _ = order({name: reference[name].loc["displacement"] for name in alike})
    rows = {}
    at = reference[main].loc["transition_peak_epoch"]
    for attack, runs in tables.items():
        ranked, sure = order({name: runs[name].loc["displacement"] for name in alike})
        row = ["same" + (", sure" if sure else "") if ranked == expected else "other"]
        for metric in ("entropy_change", "vulnerable"):
            sides = [_side(table.loc[metric]) for table in runs.values()]
            below = f", {sides.count('below')} below" if "below" in sides else ""
            row.append(f"{sides.count('above')} of {len(sides)}{below}")
        table = runs[main]
        leaks = _side(table.loc["vulnerable"]) == "above"
        peak, early = table.loc["transition_peak_epoch"], table.loc["early_recall"]
        near = peak.low <= at.high + step and peak.high >= at.low - step
        row.append(("same" if near else "other") + f", epoch {peak.value:.0f}" if leaks else "no one leaks")
        side = "yes" if early.low > 70 else "no" if early.high < 70 else "undecided"
        row.append(f"{side}, {early.value:.0f} %" if leaks else "no one leaks")
        rows[NAMES.get(attack, attack)] = row
    columns = ["order of data sets", "cloud spreads", "some end vulnerable", "peak", "70 % early"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("attack")


def verdict(
    tables: Tables, agree: pd.DataFrame, noise: pd.Series, main: str, alike: Sequence[str], step: float
) -> list[str]:
    """Sentences, computed: what survives under which attacks, and how far they name the same samples.

    Args:
        tables, main, alike, step: as for :func:`survival`.
        agree: index (a, b, measure), from :func:`dynmia.stats.agreement.agreement`.
        noise: by attack, the highest rank agreement with the first one that ``main`` has without a signal.
    """
    survived = survival(tables, main, alike, step)

    def those(column: str, *starts: str) -> str:
        named = [str(attack) for attack, text in survived[column].items() if str(text).startswith(starts)]
        return f"{len(named)} of {len(survived)} attacks ({'; '.join(named)})" if named else "no attack"

    every = f"{len(next(iter(tables.values())))} of"
    sentences = [
        f"The order of the data sets by displacement is LiRA's under {those('order of data sets', 'same')}; with the "
        f"intervals of neighbours apart under {those('order of data sets', 'same, sure')}.",
        f"The cloud spreads, more than without a signal, in every run under {those('cloud spreads', every)}.",
        f"More end vulnerable than without a signal, in every run, under {those('some end vulnerable', every)}.",
        f"The transition to vulnerable peaks when it does under LiRA under {those('peak', 'same')}.",
        f"More than 70 % of the finally vulnerable are so at 3/8 of training under {those('70 % early', 'yes')}; fewer "
        f"under {those('70 % early', 'no,')}; undecided under {those('70 % early', 'undecided')}.",
    ]
    first = next(iter(tables))
    ranks, sets = (agree.xs(measure, level="measure").loc[first] for measure in ("spearman", "jaccard"))
    closer = [NAMES.get(a, a) for a, largest in noise.items() if ranks.low[a] > largest]
    above = [NAMES.get(str(a), a) for a, row in sets.iterrows() if row.low > row.chance_high]
    return [
        *sentences,
        "Samples rank alike, more than the noise that two attacks on the same models share explains, under LiRA and "
        f"{'; '.join(closer) or 'no other attack'}.",
        "The finally vulnerable of LiRA overlap, above chance for sets of their sizes, with those of "
        f"{'; '.join(above) or 'no other attack'}.",
    ]


def _side(row: pd.Series) -> str:
    """:func:`dynmia.chapters.population.compare` with the no-signal level of the same row."""
    return compare(row, pd.Series({"low": row.null_low, "high": row.null_high}))


def main(folder: str = "data") -> None:
    """Write ``attacks.csv`` into ``folder``."""
    release(compute(folder), PATH, f"robustness {folder}; 200 redrawn masks, seed 0", folder)


if __name__ == "__main__":
    script(main, PATH)

"""Which conclusions of the study survive another attack: every attack's figures, beside its own no-signal level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import xarray as xr

from ..agreement import rank_agreement
from ..matching import Nulls
from ..plane import vulnerability_plane
from ..summary import EARLY, null_planes, null_table, quantiles, summarise
from ..verdict import compare

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
AT_THE_ENDS = ("auc", "tpr_1pct", "tpr_01pct", "displacement", "entropy_change", "vulnerable", "early_recall")
ALONG_THE_WAY = (*AT_THE_ENDS, "transition_peak", "transition_peak_epoch", "dynamic")


def ends(run: xr.Dataset) -> xr.Dataset:
    """The run at its first and last checkpoint and at 3/8 of training: all that ``AT_THE_ENDS`` needs."""
    early = run.epoch.sel(epoch=EARLY * float(run.epoch[-1]), method="pad")
    return run.sel(epoch=np.unique([int(run.epoch[0]), int(early), int(run.epoch[-1])]))


def measure(
    run: xr.Dataset, attack: str, rule: str = "fpr@0.01", *, only: Sequence[str] = AT_THE_ENDS, draws: int = 200,
    null: int | Sequence[xr.Dataset] = 5,
) -> pd.DataFrame:  # fmt: skip
    """The figures of one run under one attack.

    Args:
        run, rule: as for :func:`dynmia.plane.vulnerability_plane`.
        attack: its name.
        only: metrics.
        draws: of the bootstrap.
        null: draws of the permutation null, or its planes.

    Returns:
        Index metric; columns label, value, low, high, unit, null_value, null_low, null_high.
    """
    planes = null_planes(run, rule, draws=null, attack=attack) if isinstance(null, int) else null
    table = summarise(vulnerability_plane(run, rule, attack=attack), draws=draws, only=only)
    return table.join(quantiles(null_table(planes, only)).add_prefix("null_"))


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
    tables: Tables, agree: pd.DataFrame, nulls: Nulls, main: str, alike: Sequence[str], step: float
) -> list[str]:
    """Sentences, computed: what survives under which attacks, and how far they name the same samples.

    Args:
        tables, main, alike, step: as for :func:`survival`.
        agree: index (a, b, measure), from :func:`dynmia.agreement.agreement`; nulls: planes of the permuted ``main``.
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
    noise = {a: max(map(float, map(rank_agreement, nulls[first], nulls[a]))) for a in list(tables)[1:]}
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
    """:func:`dynmia.verdict.compare` with the no-signal level of the same row."""
    return compare(row, pd.Series({"low": row.null_low, "high": row.null_high}))

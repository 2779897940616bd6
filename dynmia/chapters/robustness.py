"""Which conclusions of the study survive another attack: every attack's figures, beside its own no-signal level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pandas as pd

from ..attack.scoring import MODERATED
from ..book import maker
from ..dynamics.metrics import METRICS
from .population import compare

Tables = Mapping[str, Mapping[str, pd.DataFrame]]
NAMES: dict[str, str] = {a: words for a, words in maker("attacks").NAMES.items() if a not in MODERATED}


def tables_of(table: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """The table ``attacks.csv``, by attack and run, without the rows of agreement and with labels and units."""
    found: dict[str, dict[str, pd.DataFrame]] = {attack: {} for attack in NAMES}
    table = table[table.index.get_level_values("attack").isin(NAMES)]
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
        tables: for each attack, for each run, the table of :func:`tables_of`; ``main`` is the run that has all metrics.
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

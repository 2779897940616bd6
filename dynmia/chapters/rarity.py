"""Rare features: are those feature vectors and texts memorised that have one, such as a word, that few others have.

The rarest feature of a sample is told from the pool alone, so it shares no noise with the models.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import rankdata

from ..book.cells import cell, said
from ..book.plots import STYLE, limits, shaded
from ..book.tables import read_table
from ..dynamics import cloud as dyn
from ..stats.hardness import correlation, halved_targets, null_correlations, null_vulnerability, over_both
from ..stats.matching import Planes
from ..stats.resample import bootstrap_weights, p_values, quantiles
from ..store.run import resolve

PATH = "rarity.csv"
GROUPS = {"no other": (1, 1), "one other": (2, 2), "2 to 4": (3, 5), "5 to 9": (6, 10), "10 or more": (11, np.inf)}
SHADES = ("#440154", "#3b528b", "#21918c", "#5ec962", "#bddf26")  # viridis, dark: rare


def of_runs(planes: Planes, folder: str = "data", column: str = "rarest") -> dict[str, xr.DataArray]:
    """A ``column`` of ``rarity.csv`` for the runs in ``planes`` that have one; empty without a table."""
    if not (resolve(folder) / PATH).exists():
        return {}
    table = read_table(resolve(folder) / PATH)[column].sort_index()
    there = [run for run in planes if run in table.index.unique("run")]
    return {run: table.loc[run].to_xarray().reindex(sample=planes[run].sample) for run in there}


def relate(
    plane: xr.Dataset,
    run: xr.Dataset,
    rare: xr.DataArray,
    rule: str,
    draws: int = 50,
    given: xr.DataArray | None = None,
) -> pd.Series:
    """Spearman correlation of dynamic vulnerability with a value a sample: value, low, high, null_low, null_high, p, n.

    The interval is over models and samples; the no-signal level over ``draws`` redrawn keep masks. With ``given``, a
    value a sample, it is the partial rank correlation, where ``given`` is held fixed.
    """
    fixed = given is not None

    def rest(values: xr.DataArray) -> xr.DataArray:
        return beyond(values, given) if given is not None else values

    kind = "pearson" if fixed else "spearman"
    halved = [(rest(y), final) for y, final in halved_targets(run, rule)]
    x = [rest(rare.sel(sample=y.sample)) for y, _ in halved]
    row = over_both(correlation(rest(rare), rest(dyn.dynamic_vulnerability(plane))), x, halved).loc[kind]
    noise = null_vulnerability(run, rule, draws)
    noise = xr.concat([rest(one) for one in noise], "draw") if fixed else noise
    drawn = null_correlations(rest(rare), noise)[[kind]]
    level = quantiles(drawn).loc[kind]
    p = p_values(pd.Series({kind: row.value}), drawn)[kind]
    return pd.concat([row, pd.Series({"null_low": level.low, "null_high": level.high, "p": p})])


def beyond(values: xr.DataArray, given: xr.DataArray) -> xr.DataArray:
    """Ranks of a value a sample, less what a straight line on the ranks of ``given`` tells of them; NaN stays NaN."""
    known = np.isfinite(values.values)
    y, x = (rankdata(one.values[known]) for one in (values, given.sel(sample=values.sample)))
    x, left = x - x.mean(), np.full(values.shape, np.nan)
    left[known] = y - y.mean() - x * (x @ y) / (x @ x)
    return values.copy(data=left)


def shares(plane: xr.Dataset, rare: xr.DataArray) -> dict[str, tuple[int, xr.DataArray, np.ndarray]]:
    """For each of ``GROUPS`` with 20 samples or more: samples, vulnerable (%) over epochs, its 95 % band over them."""
    found = {}
    for name, (low, high) in GROUPS.items():
        some = plane.isel(sample=np.flatnonzero((rare >= low) & (rare <= high)))
        if some.sizes["sample"] >= 20:
            now = dyn.vulnerable(some)
            drawn = 100 * dyn.population_mean(now, bootstrap_weights(some))
            found[name] = some.sizes["sample"], 100 * dyn.population_mean(now), limits(drawn)
    return found


def final(groups: dict[str, tuple[int, xr.DataArray, np.ndarray]]) -> dict[str, str]:
    """The vulnerable share at the end of each group of :func:`shares`, with its interval, as it is printed."""
    ends = {name: (float(share[-1]), *interval[:, -1].tolist()) for name, (_, share, interval) in groups.items()}
    return {name: cell(value, low, high, 0) for name, (value, low, high) in ends.items()}


def sentence(
    word: str, row: pd.Series, groups: dict[str, tuple[int, xr.DataArray, np.ndarray]], fixed: pd.Series | None = None
) -> str:
    """What the correlation and the groups of one run say; ``fixed``: at an equal number of features."""
    value = f"Spearman correlation {cell(row.value, row.low, row.high, 2)}"
    if not (row.high < row.null_low or row.low > row.null_high):
        text = f"not clear of the no-signal range of {row.null_low:.2f} to {row.null_high:.2f}: no conclusion"
    elif row.value < 0:
        text = "the rarer its rarest feature, the more vulnerable is a sample"
    else:
        text = "the rarer its rarest feature, the less vulnerable is a sample"
    ends = [
        f"{text} % of the {groups[name][0]:,} samples whose rarest {name} {'has' if 'other' in name else 'others have'}"
        for name, text in final(groups).items()
    ]
    last = f" Finally vulnerable are {ends[0]}, and {ends[-1]}." if len(ends) > 1 else ""
    if fixed is not None:
        beside = f"the no-signal range is {fixed.null_low:.2f} to {fixed.null_high:.2f}"
        last += f" At an equal number of features the rank correlation is {said(fixed, 2)} ({beside})."
    return f"{word}: {value}; {text}.{last}"


@rc_context(STYLE)
def panels(found: dict[str, dict[str, tuple[int, xr.DataArray, np.ndarray]]]) -> Figure:
    """Vulnerable share over epochs by how many others have the sample's rarest feature, one panel a run."""
    figure, axes = plt.subplots(1, len(found), figsize=(5.2 * len(found), 3.5), sharey=True, squeeze=False)
    for axis, (name, groups) in zip(axes.flat, found.items()):
        for label, (count, share, interval) in groups.items():
            shade = SHADES[list(GROUPS).index(label)]
            shaded(axis, share.epoch, share, interval, color=shade, marker="o", ms=3, label=f"{label} ({count:,})")
        axis.set(xlabel="epoch", title=name)
        axis.legend(
            title="others that have\nits rarest feature", loc="upper left", bbox_to_anchor=(1, 1), title_fontsize=8
        )
    axes[0, 0].set(ylabel="vulnerable (%)", ylim=(0, None))
    return figure

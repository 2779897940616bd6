"""Every metric under every choice that the study's definitions leave open: in print, by design, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t

from ..book import maker
from ..book.cells import said
from ..dynamics import cloud as dyn
from ..dynamics.metrics import EARLY, METRICS
from ..registry import DATASETS

made = maker("sensitivity")
SETS = {name: DATASETS[name].title for name in ("mnist", "fashion_mnist", "cifar10", "cinic10")}
RUNS, MAIN, SMALL, BALANCED, SEEDS = made.RUNS, made.MAIN, made.SMALL, made.BALANCED, made.SEEDS
REFERENCE, DEPENDS = made.REFERENCE, made.DEPENDS


def shown(metric: str, table: pd.DataFrame, among: Sequence[Any], words: Mapping[str, str]) -> pd.DataFrame:
    """One metric as it is printed: rows the choices that can change it, columns the runs in ``words`` and no signal."""
    digits, rows = METRICS[metric].digits, {}
    for choice in among:
        if (MAIN, choice.label, metric) in table.index:
            found = {word: table.loc[(run, choice.label, metric)] for run, word in words.items()}
            rows[choice.label] = {word: said(row, digits) for word, row in found.items()} | {
                f"no signal, {word}": f"{row.null_low + 0.0:.{digits}f} to {row.null_high + 0.0:.{digits}f}"
                for word, row in found.items()
                if np.isfinite(row.null_low)
            }
    return pd.DataFrame.from_dict(rows, "index").fillna("–").rename_axis("choice")


def designs(table: pd.DataFrame) -> pd.DataFrame:
    """Balanced inclusion beside Bernoulli, and what another Bernoulli population would give.

    Returns:
        Index metric; columns value, low, high of the balanced run, bernoulli (mean of the Bernoulli populations), and
        expect_low, expect_high, the 95 % prediction interval of one more of them (Student's t, normal populations).
    """
    rows = {}
    for metric in DEPENDS["design"]:
        values = np.array([table.value.get((name, REFERENCE.label, metric), np.nan) for name in SEEDS])
        known, balanced = values[np.isfinite(values)], (BALANCED, REFERENCE.label, metric)
        if balanced in table.index and len(known) >= 3:
            half = t.ppf(0.975, len(known) - 1) * known.std(ddof=1) * np.sqrt(1 + 1 / len(known))
            expected = {"expect_low": known.mean() - half, "expect_high": known.mean() + half}
            rows[metric] = {**table.loc[balanced, ["value", "low", "high"]], "bernoulli": known.mean(), **expected}
    return pd.DataFrame.from_dict(rows, "index").rename_axis("metric")


def evidence(table: pd.DataFrame, planes: Mapping[str, xr.Dataset], among: Sequence[Any]) -> list[str]:
    """Sentences, computed: what the rule, the interval, the grid and the design do to one run.

    Args:
        table: ``sensitivity.csv``.
        planes: of the main run, by rule.
        among: the choices.
    """
    entropies = {rule: dyn.spatial_entropy(plane).values for rule, plane in planes.items()}
    starts = [f"{bits[0]:.2f} to {bits[-1]:.2f} bits under `{rule}`" for rule, bits in entropies.items()]
    shares, ends, epochs = [], [], next(iter(planes.values())).epoch
    for choice in among:
        key = (RUNS["mnist"], choice.label, "speed_mean")
        if choice.kind in ("reference", "rule", "interval") and key in table.index:
            row = table.loc[key]
            shares.append(f"{100 * (row.null_low + row.null_high) / 2 / row.value:.0f} % ({choice.label})")
        if choice.kind in ("reference", "interval"):
            at = epochs[:: choice.step].sel(epoch=EARLY * float(epochs[-1]), method="pad")
            ends.append(f"{int(at)} ({choice.label})")
    lines = [
        f"Rule and entropy: {SETS['cifar10']} goes from {', '.join(starts)}.",
        f"Rule and speed: without a signal the mean speed of {SETS['mnist']} is this share of the measured one: "
        f"{', '.join(shares)}. The nearer to 100 % and above, the less of it is the data set's.",
        f"Interval and recall: the checkpoint that stands for 3/8 of training is epoch {', '.join(ends)}.",
    ]
    fine = [choice.label for choice in among if choice.kind == "grid" and choice.bins > REFERENCE.bins]
    entropy = table.value.xs("entropy_change", level="metric").unstack("choice")
    if {BALANCED, SMALL} <= set(entropy.index):
        apart = entropy[fine].sub(entropy[REFERENCE.label], axis=0).abs().max(axis=1)
        lines.append(
            f"Grid: beyond B = {REFERENCE.bins} the entropy change moves by at most {apart[BALANCED]:.2f} bits with "
            f"balanced inclusion, where all rates are tenths, and by up to {apart[SMALL]:.2f} bits with Bernoulli, "
            "where each number of in-models has a lattice of its own: a fine grid then counts lattices too."
        )
    one = designs(table)
    if len(one):
        out = [METRICS[name].label for name in one.index[~one.value.between(one.expect_low, one.expect_high)]]
        lines.append(
            f"Design: {len(one) - len(out)} of {len(one)} metrics of the balanced population lie within what one more "
            f"Bernoulli population would give{'; not so: ' + ', '.join(out) if out else ''}. By chance alone about "
            f"{0.05 * len(one):.1f} would not."
        )
    return lines

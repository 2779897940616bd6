"""Figures of the chapter on the plane with less noise, in the style of :mod:`dynmia.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from ..plots import INK, STYLE
from .smoothing import COUNTS, ESTIMATES, POPULATIONS, REAL, RULES, SCENARIOS

SHADES = {"plug-in": "#D55E00", "shrunken": "#E69F00", "rao-blackwell": "#0072B2", COUNTS: "#9A9A9A"}


def ratios(errors: pd.DataFrame, rules: Sequence[str] = RULES) -> Figure:
    """Mean squared error of a sample's advantage as a share of the counts', one row a population and N."""
    own = errors[errors.index.get_level_values("truth") != "ideal"]
    own = own.xs(("sample", "advantage"), level=["of", "quantity"])
    wanted = [
        (name, n)
        for name in (*SCENARIOS, *REAL)
        for n in (*POPULATIONS,)
        if (name, n) in own.index.droplevel([2, 3, 4])
    ]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(rules), figsize=(9.6, 0.26 * len(wanted) + 1.4), sharey=True, squeeze=False)
        for axis, rule in zip(axes.flat, rules):
            for number, (name, marker) in enumerate(zip(ESTIMATES, "osD")):
                part = own.xs((rule, name), level=["rule", "estimate"]).droplevel("truth").loc[wanted]
                y = np.arange(len(wanted)) + 0.22 * (number - 1)
                low, high = (part.ratio - part.low).clip(lower=0), (part.high - part.ratio).clip(lower=0)
                axis.errorbar(
                    part.ratio, y, xerr=[low, high], fmt=marker, ms=4, lw=1, color=SHADES[name], label=name
                )  # fmt: skip
            axis.axvline(1, color=INK, lw=0.9, ls=":")
            axis.set(title=f"rule {rule}", xlabel="mean squared error / that of counts", xlim=(-0.03, None))
        axes[0, 0].set_yticks(range(len(wanted)), [f"{name}, N = {n}" for name, n in wanted])
        axes[0, 0].invert_yaxis()
        axes[0, -1].legend()
    return figure


def clouds(planes: Mapping[str, Mapping[str, xr.Dataset]], seed: int = 0) -> Figure:
    """The cloud at the last checkpoint: one row a population, one column a plane; counts are jittered a little."""
    with plt.rc_context(STYLE):
        rows, columns = len(planes), max(len(part) for part in planes.values())
        size = 2.9 * columns, 2.8 * rows + 0.2
        figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
        rng = np.random.default_rng(seed)
        for line, (population, part) in zip(axes, planes.items()):
            for axis, (name, plane) in zip(line, part.items()):
                now = plane.isel(epoch=-1)
                jitter = rng.uniform(-0.015, 0.015, (2, now.sizes["sample"])) * (name == COUNTS)
                shade = SHADES.get(name, INK)
                axis.scatter(now.fpr + jitter[0], now.tpr + jitter[1], s=6, alpha=0.5, lw=0, color=shade)
                axis.axline((0, 0), slope=1, color=INK, lw=0.7, ls=":")
                axis.set(title=f"{population}: {name}", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
            line[0].set_ylabel("TPR")
        for axis in axes[-1]:
            axis.set_xlabel("FPR")
    return figure

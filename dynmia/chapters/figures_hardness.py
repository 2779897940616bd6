"""Figures of the hardness chapter: correlations beside their controls, over training, and a gallery of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from ..book.plots import INK, NULL, bars, colour_of, frame, legend_outside, panels, shaded
from ..dynamics.cloud import dynamic_vulnerability, vulnerable
from ..stats.hardness import MEASURES, over_time

SHORT = {name: text.split(" (")[0] for name, text in MEASURES.items()}
LINES = {
    "epistemic_all": "#E69F00", "epistemic_out": "#D55E00", "loss_out": "#0072B2", "gradient_in": "#009E73",
    "memorisation": "#CC79A7",
}  # fmt: skip


def correlations(table: pd.DataFrame, kind: str = "spearman", words: Mapping[str, str] = SHORT) -> Figure:
    """Correlation of each measure with dynamic vulnerability: all models, across halves, and the no-signal range.

    Args:
        table: from :func:`dynmia.stats.hardness.relate`.
        kind: ``spearman`` or ``pearson``.
        words: what to call each measure.
    """
    table = table.xs(kind, level="kind")
    names = table.value.xs(("all", "all models"), level=("samples", "models")).sort_values().index
    marks = {
        "all models": ("o", "#D55E00", 0.2), "same half": ("s", "#E69F00", 0.0), "other half": ("D", "#0072B2", -0.2)
    }  # fmt: skip
    with panels(1, 2, (10, 0.34 * len(names) + 1.2), sharey=True) as (figure, [axes]):
        for axis, subset in zip(axes, ("all", "vulnerable")):
            rows = table.xs(subset, level="samples")
            noise = rows.xs("no signal", level="models").loc[names]
            y = np.arange(len(names))
            axis.barh(y, noise.high - noise.low, left=noise.low, height=0.8, color=NULL, alpha=0.5, label="no signal")
            for models, (mark, colour, shift) in marks.items():
                part = rows.xs(models, level="models").loc[names]
                axis.errorbar(part.value, y + shift, xerr=bars(part), fmt=mark, color=colour, ms=4, lw=1, label=models)
            axis.axvline(0, color=INK, lw=0.8, ls=":")
            title = "all samples" if subset == "all" else "finally vulnerable samples"
            axis.set(xlim=(-1, 1), xticks=np.linspace(-1, 1, 5), xlabel=f"{kind.capitalize()} correlation", title=title)
        axes[0].set_yticks(y, [words[name] for name in names])
        axes[0].legend(loc="lower right")
    return figure


def predictive_when(
    hardness: xr.Dataset, plane: xr.Dataset, kind: str = "spearman", colours: Mapping[str, str] = LINES,
    words: Mapping[str, str] = SHORT,
) -> Figure:  # fmt: skip
    """Correlation of a measure at each checkpoint with the dynamic vulnerability of the whole training."""
    vulnerability = dynamic_vulnerability(plane)
    final = vulnerable(plane).isel(epoch=-1, drop=True)
    groups = {"all": vulnerability, "vulnerable": vulnerability.where(final)}
    with panels(1, 2, (9, 3.4), sharey=True) as (figure, [axes]):
        for axis, (title, chosen) in zip(axes, groups.items()):
            for name in (name for name in colours if name in hardness):
                rows = over_time(hardness[name].sel(part="all"), chosen, kind)
                look = dict[str, Any](color=colours[name], marker="o", ms=3, label=words[name])
                shaded(axis, rows.index, rows.value, (rows.low, rows.high), **look)
            axis.axhline(0, color=INK, lw=0.8, ls=":")
            axis.set(xlabel="epoch of the measure", title=f"{title} samples")
        axes[0].set(ylabel=f"{kind.capitalize()} correlation", ylim=(-1, 1))
        legend_outside(figure, axes[0], "lower center", 3)
    return figure


def against_vulnerability(hardness: xr.Dataset, plane: xr.Dataset, names: Sequence[str]) -> Figure:
    """Dynamic vulnerability against some measures at the end of training, one point a sample."""
    vulnerability, final = dynamic_vulnerability(plane), vulnerable(plane).isel(epoch=-1).values
    with panels(1, len(names), (len(names) * 3.3, 3.2), sharey=True) as (figure, axes):
        for axis, name in zip(axes.flat, names):
            x = hardness[name].sel(part="all").isel(epoch=-1).values
            for chosen, colour, word in ((~final, NULL, "other"), (final, colour_of(plane), "vulnerable at the end")):
                axis.scatter(x[chosen], vulnerability.values[chosen], s=5, color=colour, alpha=0.5, lw=0, label=word)
            axis.set(xlabel=SHORT[name])
        axes[0, 0].set(ylabel="dynamic vulnerability")
        axes[0, 0].legend(markerscale=3)
    return figure


def gallery(plane: xr.Dataset, images: np.ndarray, count: int = 6) -> Figure:
    """The most (upper rows) and least (lower rows) dynamically vulnerable samples and their paths over the plane.

    Args:
        images: the training split that ``plane.sample`` indexes, uint8 (n, H, W, C).
        count: samples of each kind.
    """
    order = np.argsort(-dynamic_vulnerability(plane).values, kind="stable")
    with panels(4, count, (1.75 * count, 7.0), grid=False) as (figure, axes):
        for rows, samples in ((axes[:2], order[:count]), (axes[2:], order[::-1][:count])):
            for column, sample in enumerate(samples):
                path = plane.isel(sample=sample)
                picture, axis = rows[:, column]
                picture.imshow(images[int(path.sample)].squeeze(), cmap="gray")
                picture.set_axis_off()
                picture.set_title(f"class {int(path.label)}", fontsize=8)
                frame(axis)
                axis.plot(path.fpr, path.tpr, color=NULL, lw=0.8, zorder=1)
                axis.scatter(path.fpr, path.tpr, c=plane.epoch.values, cmap="viridis", s=12, zorder=2)
                axis.set(xlabel="FPR", ylabel="TPR" if column == 0 else "")
                axis.tick_params(labelsize=7)
    return figure


def hardness_sentences(table: pd.DataFrame) -> list[str]:
    """Sentences on a table of relations: the strongest measure, the paper's two claims, what the control leaves."""
    rows = table.xs("spearman", level="kind")
    strongest = rows.xs(("all", "other half"), level=("samples", "models")).value.abs().idxmax()

    def said(measure: str, subset: str, models: str, kind: str = "spearman") -> str:
        row, noise = table.loc[measure, subset, models, kind], table.loc[measure, subset, "no signal", kind]
        if not np.isfinite(row.value):
            return "not to be had from so few samples"
        side = "outside" if row.low > noise.high or row.high < noise.low else "not clear of"
        return (
            f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}], {side} the no-signal range of "
            f"{noise.low:.2f} to {noise.high:.2f}" + (f" (p = {row.p:.2g})" if np.isfinite(row.p) else "")
        )

    sentences = [
        f"Across disjoint halves the strongest measure on all samples is {MEASURES[str(strongest)].split(' (')[0]}: "
        f"Spearman correlation {said(str(strongest), 'all', 'other half')}."
    ]
    for name in ("epistemic_all", "epistemic_out", "gradient_in"):
        if name in rows.index.get_level_values("measure"):
            word = MEASURES[name].split(" (")[0].capitalize()
            same, other = (said(name, "vulnerable", models, "pearson") for models in ("all models", "other half"))
            sentences.append(f"{word} among the vulnerable samples: Pearson correlation {same}; across halves {other}.")
    weak = rows.loc["gradient_in", "vulnerable", "all models"].value if "gradient_in" in rows.index else np.nan
    strong = rows.loc["epistemic_all", "vulnerable", "all models"].value
    if np.isfinite(weak):
        better = "epistemic uncertainty" if abs(strong) > abs(weak) else "the gradient norm"
        sentences.append(
            f"{better[0].upper()}{better[1:]} ranks the vulnerable samples better: Spearman correlation {strong:.2f} "
            f"for epistemic uncertainty of all models, {weak:.2f} for the gradient norm of the in-models."
        )
    return sentences

"""Tables and sentences of the chapter on the number of shadow models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from .. import dynamics as dyn
from ..compare import DATASETS
from ..plots import COLOURS
from ..precision import AGREEMENT, WANTED, design_effects, required_shadow_models, spread_law
from ..retest import LEAK
from ..summary import METRICS, cell

Z = 1.96
CHECK = 0.15  # the paper's: coefficient of variation of advantage over populations


def looks(names: list[str]) -> dict[str, dict]:
    """Colour and label of each run, by its data set."""
    sets = {name: name.split("-")[0] for name in names}
    return {name: {"color": COLOURS[data], "label": DATASETS[data]} for name, data in sets.items()}


def effect(measured: pd.DataFrame, run: str, rule: str) -> tuple[int, float]:
    """The largest number of models with a measured design effect, and the effect (at least 1)."""
    found = design_effects(measured.loc[run])[rule]
    return int(found.index[-1]), max(1.0, float(found.iloc[-1]))


def metric_table(tables: Mapping[str, pd.DataFrame], rule: str) -> pd.DataFrame:
    """Bias with its 95 % interval and spread, by number of models; one row a run and metric."""
    rows = {}
    for run, table in tables.items():
        for name in WANTED:
            part, metric = table.loc[rule, name, :], METRICS[name]
            digits = metric.digits + 1
            key = looks([run])[run]["label"], f"{metric.label} ({metric.unit})".replace(" ()", "")
            rows[key] = {"all models": f"{part.full.iloc[0]:.{digits}f}"}
            for models, row in part.iterrows():
                rows[key][f"N = {models}"] = f"{cell(row.bias, row.low, row.high, digits)}; {row.spread:.{digits}f}"
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["run", "metric"])


def agreement_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Means over subsets: scored share, agreement with the whole and between disjoint subsets, design effect."""
    rows = {}
    for run, here in measured.groupby(level="run", sort=False):
        effects, label = design_effects(here.droplevel("run")), looks([run])[run]["label"]
        for (rule, models), part in here.groupby(level=["rule", "models"], sort=False):
            mean = part.mean()
            if np.isnan(mean.rank_full):
                total = mean.samples
                continue
            both = {  # a dash: no two disjoint subsets
                name: f"{mean[name + '_full']:.{digits}f}; "
                + ("–" if np.isnan(mean[name + "_disjoint"]) else f"{mean[name + '_disjoint']:.{digits}f}")
                for name, digits in zip(AGREEMENT, (2, 1, 0))
            }
            rows[label, rule, models] = {"left out (%)": f"{100 * (1 - mean.samples / total):.1f}"}
            rows[label, rule, models] |= {AGREEMENT[name]: text for name, text in both.items()}
            known = (rule, models) in effects.index
            rows[label, rule, models]["design effect"] = f"{effects[rule, models]:.2f}" if known else "–"
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["run", "rule", "N"])


def required_table(
    measured: pd.DataFrame, planes: Mapping[str, Mapping[str, xr.Dataset]], widths: tuple[float, ...] = (0.3, 0.2, 0.1)
) -> pd.DataFrame:
    """Models for a half-width of a sample's advantage: at the rates of all, and of the leaking, samples.

    Args:
        measured: of :func:`dynmia.precision.load`.
        planes: by rule, then run, with all models.
        widths: wanted half-widths.
    """
    rows = {}
    for rule, several in planes.items():
        for run, plane in several.items():
            deff = effect(measured, run, rule)[1]
            leaking = plane.isel(sample=np.flatnonzero(plane.advantage[-1] >= LEAK))
            for width in widths:
                rows[rule, looks([run])[run]["label"], f"{width:g}"] = {
                    "worst case": required_shadow_models(width),
                    "all samples": required_shadow_models(width, plane=plane),
                    "all samples, design effect": required_shadow_models(width, plane=plane, design_effect=deff),
                    "leaking samples, design effect": required_shadow_models(width, plane=leaking, design_effect=deff),
                    "worst case, design effect": required_shadow_models(width, design_effect=deff),
                }
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["rule", "run", "half-width"])


def held_back(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Spread at a size over that of the law fitted without it; whether it lies in the prediction interval.

    Index (run, rule, metric, models); columns ratio, inside. Metrics that do not vary at some size are left out.
    """
    rows = {}
    for run, table in tables.items():
        for (rule, metric), part in table.groupby(level=["rule", "metric"], sort=False):
            for (_, _, models), row in part.iterrows():
                if (part.spread > 0).all():
                    value, low, high = spread_law(table, rule, metric, leave_out=models).predict(models)[:, 0]
                    rows[run, rule, metric, models] = {"ratio": row.spread / value, "inside": low <= row.spread <= high}
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["run", "rule", "metric", "models"])


def verdict(
    measured: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    planes: Mapping[str, Mapping[str, xr.Dataset]],
    at: int = 20,
    width: float = 0.1,
) -> list[str]:
    """Sentences on bias, ranks and labels at ``at`` models, on what is needed, and on the law that was held back.

    A bias counts as large if it is more than ``Z`` spreads: an interval over populations would miss the value of all
    models. Ranks are kept well from 0.8, in part from 0.5, poorly below.
    """
    sentences, laws, measured = [], held_back(tables), measured.sort_index()
    for rule, several in planes.items():
        for run, plane in several.items():
            name, table = f"{looks([run])[run]['label']}, `{rule}`", tables[run].loc[rule].xs(at, level="models")
            large = [METRICS[m].label for m, row in table.iterrows() if abs(row.bias) > Z * row.spread]
            sentences.append(
                f"{name}: at N = {at} the bias is larger than {Z} spreads for "
                + (f"{len(large)} of {len(table)} metrics ({'; '.join(large)})." if large else "no metric.")
            )
            mean, whole = measured.loc[run, rule, at].mean(), measured.loc[run, rule]
            rank = mean.rank_disjoint
            word = "well" if rank >= 0.8 else "in part" if rank >= 0.5 else "poorly"
            last = max(whole.dropna(subset="rank_disjoint").index.get_level_values("models"))
            sentences.append(
                f"{name}: two disjoint sets of {at} models rank samples alike {word} (Spearman correlation {rank:.2f}; "
                f"{whole.loc[last].rank_disjoint.mean():.2f} at N = {last}), and {mean.lost_disjoint:.0f} % of their "
                f"'vulnerable' labels are not shared; labels at random would lose {100 - 100 * _share(plane):.0f} %."
            )
            size, deff = effect(measured, run, rule)
            alone, needed = (required_shadow_models(width, plane=plane, design_effect=d) for d in (1.0, deff))
            sentences.append(
                f"{name}: a sample's advantage varies {deff:.1f} times as much between disjoint sets as independent "
                f"trials would (N = {size}), so a half-width of {width:g} takes {needed} models instead of {alone}."
            )
    ends = laws.xs(size := max(laws.index.get_level_values("models")), level="models")
    least = np.sqrt(1 - size / max(measured.index.get_level_values("models")))
    sentences.append(
        f"The power laws, fitted on smaller subsets alone, hold the spread at N = {size} within their prediction "
        f"interval for {int(ends.inside.sum())} of {len(ends)} metrics; the median ratio of measured to foretold is "
        f"{ends.ratio.median():.2f} with the finite-population correction, which can be too large, and "
        f"{least * ends.ratio.median():.2f} without, which is too small."
    )
    return sentences


def _share(plane: xr.Dataset) -> float:
    return float((dyn.states(plane).isel(epoch=-1) == dyn.VULNERABLE).mean())


def retest_verdict(found: Mapping[str, pd.DataFrame]) -> list[str]:
    """The paper's check, and agreement against sampling noise, from each rule's :func:`dynmia.retest.retest`.

    The check holds if the whole interval over populations lies below ``CHECK``, fails if it lies above, else is open.
    """
    sentences = []
    for rule, table in found.items():
        row, one = table.loc["cv_advantage"], table.loc["cv_sample"]
        below, above = row.population_high < CHECK, row.population_low > CHECK
        sentences.append(
            f"`{rule}`: the coefficient of variation of the mean advantage is "
            f"{cell(row.value, row.population_low, row.population_high, 3)} over populations; below {CHECK}: "
            f"{'yes' if below else 'no' if above else 'open'}. That of a single leaking sample is "
            f"{cell(one.value, one.low, one.high, 3)} at the median."
        )
        for name, word in (("icc_advantage", "final advantage"), ("icc_dynamic", "dynamic vulnerability")):
            row = table.loc[name]
            side = (
                "less agreement than sampling noise alone leaves" if row.high < row.noise_low
                else "more agreement than sampling noise alone leaves" if row.low > row.noise_high
                else "what sampling noise alone leaves"
            )  # fmt: skip
            sentences.append(
                f"`{rule}`: the intraclass correlation of {word} is {cell(row.value, row.low, row.high, 2)}, {side} "
                f"({row.noise_low:.2f} to {row.noise_high:.2f})."
            )
        row, kappa = table.loc["jaccard"], table.loc["kappa"]
        sentences.append(
            f"`{rule}`: two populations share {cell(row.value, row.low, row.high, 2)} of their vulnerable sets "
            f"(Jaccard index; chance {row.chance:.2f}, sampling noise alone {row.noise:.2f}); kappa "
            f"{cell(kappa.value, kappa.low, kappa.high, 2)}."
        )
    return sentences

"""Tables and sentences of the chapter on the number of shadow models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from ..book import maker
from ..book.cells import cell, said
from ..book.plots import COLOURS, DATASETS, titled
from ..dynamics import cloud as dyn
from ..dynamics.metrics import METRICS
from .retest import LEAK

precision = maker("precision")
required = precision.required_shadow_models
AGREEMENT, WANTED = precision.AGREEMENT, precision.WANTED
Z = 1.96
CHECK = 0.15  # the paper's: coefficient of variation of advantage over populations


def label(run: str) -> str:
    """The name of a run's data set."""
    return DATASETS[run.split("-")[0]]


def set_looks(names: Iterable[str]) -> dict[str, dict]:
    """Colour and label of each run, by its data set."""
    return {name: {"color": COLOURS[name.split("-")[0]], "label": label(name)} for name in names}


def effect(measured: pd.DataFrame, run: str, rule: str) -> tuple[int, float]:
    """The largest number of models with a measured design effect, and the effect (at least 1)."""
    found = precision.design_effects(measured.loc[run])[rule]
    return int(found.index[-1]), max(1.0, float(found.iloc[-1]))


def metric_table(tables: Mapping[str, pd.DataFrame], rule: str) -> pd.DataFrame:
    """Bias with its 95 % interval and spread, by number of models; one row a run and metric."""
    rows = {}
    for run, table in tables.items():
        for name in WANTED:
            part, digits = table.loc[rule, name, :], METRICS[name].digits + 1
            rows[label(run), titled(name)] = {"all models": f"{part.full.iloc[0]:.{digits}f}"} | {
                f"N = {models}": f"{cell(row.bias, row.low, row.high, digits)}; {row.spread:.{digits}f}"
                for models, row in part.iterrows()
            }
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["run", "metric"])


def agreement_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Means over subsets: scored share, agreement with the whole and between disjoint subsets, design effect."""
    rows = {}
    for run, here in measured.groupby(level="run", sort=False):
        effects = precision.design_effects(here.droplevel("run"))
        for (rule, models), part in here.groupby(level=["rule", "models"], sort=False):
            mean = part.mean()
            if np.isnan(mean.rank_full):  # the whole itself, which comes first
                total = mean.samples
                continue
            row = {"left out (%)": f"{100 * (1 - mean.samples / total):.1f}"}
            for (name, words), digits in zip(AGREEMENT.items(), (2, 1, 0)):
                row[words] = "; ".join(_number(mean[f"{name}_{other}"], digits) for other in ("full", "disjoint"))
            rows[label(str(run)), rule, models] = row | {
                "design effect": _number(effects.get((rule, models), np.nan), 2)
            }
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["run", "rule", "N"])


def _number(value: float, digits: int) -> str:
    """The number, or a dash: no two disjoint subsets."""
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def required_table(measured: pd.DataFrame, planes: Mapping[str, Mapping[str, xr.Dataset]]) -> pd.DataFrame:
    """Models for a half-width of a sample's advantage: at the rates of all, and of the leaking, samples.

    Args:
        measured: ``precision.csv``.
        planes: by rule, then run, with all models.
    """
    rows = {}
    for rule, several in planes.items():
        for run, plane in several.items():
            deff = effect(measured, run, rule)[1]
            leaking = plane.isel(sample=np.flatnonzero(plane.advantage[-1] >= LEAK))
            for width in (0.3, 0.2, 0.1):
                rows[rule, label(run), f"{width:g}"] = {
                    "worst case": required(width),
                    "all samples": required(width, plane=plane),
                    "all samples, design effect": required(width, plane=plane, design_effect=deff),
                    "leaking samples, design effect": required(width, plane=leaking, design_effect=deff),
                    "worst case, design effect": required(width, design_effect=deff),
                }
    return pd.DataFrame.from_dict(rows, "index").rename_axis(["rule", "run", "half-width"])


def held_back(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Spread at a size over that of the law fitted without it; whether it lies in the prediction interval.

    Index (run, rule, metric, models); columns ratio, inside. Metrics that do not vary at some size are left out.
    """
    rows = {}
    for run, table in tables.items():
        for (rule, metric), part in table.groupby(level=["rule", "metric"], sort=False):
            for (_, _, models), row in (part if (part.spread > 0).all() else part.iloc[:0]).iterrows():
                value, low, high = precision.spread_law(table, rule, metric, leave_out=models).predict(models)[:, 0]
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
            name, table = f"{label(run)}, `{rule}`", tables[run].loc[rule].xs(at, level="models")
            large = [METRICS[m].label for m in table.index[table.bias.abs() > Z * table.spread]]
            which = f"{len(large)} of {len(table)} metrics ({'; '.join(large)})" if large else "no metric"
            sentences.append(f"{name}: at N = {at} the bias is larger than {Z} spreads for {which}.")
            whole = measured.loc[run, rule].dropna(subset="rank_disjoint").groupby("models").mean()
            rank, last = whole.rank_disjoint[at], whole.index[-1]
            word = "well" if rank >= 0.8 else "in part" if rank >= 0.5 else "poorly"
            share = float((dyn.states(plane).isel(epoch=-1) == dyn.VULNERABLE).mean())
            sentences.append(
                f"{name}: two disjoint sets of {at} models rank samples alike {word} (Spearman correlation {rank:.2f}; "
                f"{whole.rank_disjoint[last]:.2f} at N = {last}), and {whole.lost_disjoint[at]:.0f} % of their "
                f"'vulnerable' labels are not shared; labels at random would lose {100 - 100 * share:.0f} %."
            )
            size, deff = effect(measured, run, rule)
            alone, needed = (required(width, plane=plane, design_effect=d) for d in (1.0, deff))
            sentences.append(
                f"{name}: a sample's advantage varies {deff:.1f} times as much between disjoint sets as independent "
                f"trials would (N = {size}), so a half-width of {width:g} takes {needed} models instead of {alone}."
            )
    size, most = (max(table.index.get_level_values("models")) for table in (laws, measured))
    ends = laws.xs(size, level="models")
    ratio = ends.ratio.median()
    sentences.append(
        f"The power laws, fitted on smaller subsets alone, hold the spread at N = {size} within their prediction "
        f"interval for {ends.inside.sum()} of {len(ends)} metrics; the median ratio of measured to foretold is "
        f"{ratio:.2f} with the finite-population correction, which can be too large, and "
        f"{np.sqrt(1 - size / most) * ratio:.2f} without, which is too small."
    )
    return sentences


def retest_verdict(found: Mapping[str, pd.DataFrame]) -> list[str]:
    """The paper's check, and agreement against sampling noise, from each rule's :func:`dynmia.chapters.retest.retest`.

    The check holds if the whole interval over populations lies below ``CHECK``, fails if it lies above, else is open.
    """
    sentences = []
    for rule, table in found.items():
        row = table.loc["cv_advantage"]
        low, high = row.population_low, row.population_high
        sentences.append(
            f"`{rule}`: the coefficient of variation of the mean advantage is {cell(row.value, low, high, 3)} over "
            f"populations; below {CHECK}: {'yes' if high < CHECK else 'no' if low > CHECK else 'open'}. That of a "
            f"single leaking sample is {said(table.loc['cv_sample'], 3)} at the median."
        )
        for name, word in (("icc_advantage", "final advantage"), ("icc_dynamic", "dynamic vulnerability")):
            row = table.loc[name]
            less, more = row.high < row.noise_low, row.low > row.noise_high
            side = "less agreement than" if less else "more agreement than" if more else "what"
            sentences.append(
                f"`{rule}`: the intraclass correlation of {word} is {said(row, 2)}, "
                f"{side} sampling noise alone leaves ({row.noise_low:.2f} to {row.noise_high:.2f})."
            )
        row = table.loc["jaccard"]
        sentences.append(
            f"`{rule}`: two populations share {said(row, 2)} of their vulnerable sets (Jaccard index; chance "
            f"{row.chance:.2f}, sampling noise alone {row.noise:.2f}); kappa {said(table.loc['kappa'], 2)}."
        )
    return sentences

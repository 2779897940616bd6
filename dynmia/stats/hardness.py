"""How hard a sample is to learn, by the standard measures, and how well each goes with dynamic vulnerability.

A study trained with ``record="hardness"`` keeps each model's predictions and gradient norms; ``data/campaign.py``
reduces them over the models, for the whole population and for its two halves: a measure and a vulnerability from the
same models share their noise, across disjoint halves they share the sample alone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from ..attack.plane import part_of, planes_of_halves, vulnerability_plane
from ..attack.scoring import STUDY, Scoring
from ..dynamics.cloud import dynamic_vulnerability, vulnerable
from ..errors import StoreError
from ..store.run import stored_dataset, write_dataset
from .matching import estimate
from .resample import null_planes, p_values, quantiles

MEASURES = {  # name: what it is, and where it comes from
    "epistemic_out": "epistemic uncertainty, out-models (mutual information; Depeweg et al. 2018)",
    "epistemic_all": "epistemic uncertainty, all models",
    "aleatoric_out": "aleatoric uncertainty, out-models (expected entropy)",
    "variance_out": "variance of the true-class probability, out-models",
    "mc_information": "MC-dropout mutual information (Gal and Ghahramani 2016)",
    "memorisation": "memorisation (Feldman and Zhang 2020)",
    "self_influence": "self-influence (TracIn; Pruthi et al. 2020)",
    "gradient_in": "gradient norm, in-models",
    "gradient_out": "gradient norm, out-models",
    "loss_in": "mean loss, in-models",
    "loss_out": "mean loss, out-models",
    "loss_iqr": "IQR of the loss trace, in-models (Pollock et al. 2024)",
    "learned": "epoch learned, in-models (Jiang et al. 2021)",
    "forgetting": "forgetting events, in-models (Toneva et al. 2019)",
}
PARTS = ("all", "a", "b")
HALVES = 20  # of the models, and of the samples, from which intervals are taken

Target = tuple[xr.DataArray, xr.DataArray]  # dynamic vulnerability of each sample; whether it is vulnerable at the end


def numbers_of_parts(models: int) -> dict[str, np.ndarray]:
    """The numbers of the models of the whole population and of its two halves, ``a`` and ``b``."""
    numbers = np.arange(models)
    return dict(zip(PARTS, (numbers, numbers[: models // 2], numbers[models // 2 :])))


def save(hardness: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write measures of hardness, of dims part, epoch and sample, as one compressed netCDF file with a checksum."""
    return write_dataset(hardness.assign_coords(part=range(len(PARTS))), Path(path))


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read and verify what :func:`save` wrote."""
    stored = stored_dataset(Path(path))
    if stored.sizes.get("part") != len(PARTS):
        raise StoreError(f"{path} holds no measures of hardness: give a file NAME.hardness.nc.")
    return stored.assign_coords(part=list(PARTS))


def relate(
    hardness: xr.Dataset, run: xr.Dataset, scoring: Scoring | str = STUDY, null: int | xr.DataArray = 20
) -> pd.DataFrame:
    """Correlation of every measure at the end of training with dynamic vulnerability.

    Rows are (measure, samples, models, kind). samples: ``all``, or the finally ``vulnerable`` ones. models: ``all
    models`` on both sides, with the interval over models and samples if the measure of halves is recorded, else over
    samples; ``same half`` and ``other half``, the mean over the two halves of the population with the measure from one
    and the vulnerability from the same or the other (ends of the intervals, over samples, are averaged too); ``no
    signal``, mean and 95 % range of ``null`` redraws of the keep mask (or of what
    :func:`dynmia.stats.hardness.null_vulnerability` returned). kind: ``pearson`` or ``spearman``.

    The p-value (:func:`dynmia.stats.resample.p_values`) is exact for measures that do not look at the keep mask, as
    the one of all models. A measure of in- or out-models keeps the true mask: how far off it is,
    ``data/null-calibration.py`` measures.

    Returns:
        Columns value, low, high, n, and p for ``all models``.
    """
    last = hardness.isel(epoch=-1)
    numbers = numbers_of_parts(run.sizes["model"])
    parts = {"all": run} | {half: part_of(run, numbers[half]) for half in ("a", "b")}
    sides = {part: target(side, scoring) for part, side in parts.items()}
    noise = null_vulnerability(run, scoring, null) if isinstance(null, int) else null
    halved = halved_targets(run, scoring) if "half" in hardness.dims else []
    rows: dict[tuple[str, str, str], pd.DataFrame] = {}
    for name in (name for name in hardness.data_vars if "part" in hardness[name].dims):
        measured = last[name]

        def pair(part: str, side: str, subset: str, x: xr.DataArray = measured) -> pd.DataFrame:
            vulnerability, final = sides[side]
            chosen = vulnerability.where(final) if subset == "vulnerable" else vulnerability
            return correlation(x.sel(part=part), chosen)

        for subset in ("all", "vulnerable"):
            key, whole = (str(name), subset), pair("all", "all", subset)
            drawn = null_correlations(measured.sel(part="all").where((subset == "all") | sides["all"][1]), noise)
            if f"half_{name}" in hardness and np.isfinite(whole.value).all():
                x = [*last[f"half_{name}"], *[measured.sel(part="all")] * HALVES]
                whole = over_both(whole, x, halved, subset)
            rows[*key, "all models"] = whole.assign(p=p_values(whole.value, drawn))
            rows[*key, "same half"] = (pair("a", "a", subset) + pair("b", "b", subset)) / 2
            rows[*key, "other half"] = (pair("a", "b", subset) + pair("b", "a", subset)) / 2
            rows[*key, "no signal"] = quantiles(drawn).assign(n=whole.n)
    return pd.concat(rows, names=["measure", "samples", "models", "kind"])


def target(run: xr.Dataset, scoring: Scoring | str) -> Target:
    """Dynamic vulnerability of each sample, and whether it is vulnerable at the end."""
    return _target(vulnerability_plane(run, scoring, roc=False))


def _target(plane: xr.Dataset) -> Target:
    return dynamic_vulnerability(plane), vulnerable(plane).isel(epoch=-1, drop=True)


def correlation(
    x: xr.DataArray, y: xr.DataArray, *, draws: int = 500, seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """Pearson and Spearman correlation of two values a sample, with bootstrap intervals over samples.

    Only samples that both have, with finite values, count. Ranks stay those of the whole sample in every draw.

    Returns:
        Index ``pearson``, ``spearman``; columns value, low, high, n.
    """
    x, y = xr.align(x, y, join="inner")
    good = np.isfinite(x.values) & np.isfinite(y.values)
    a, b = x.values[good].astype(float), y.values[good].astype(float)
    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return pd.DataFrame(np.nan, ["pearson", "spearman"], ["value", "low", "high"]).assign(n=len(a))
    weights, rows = _weights(len(a), draws, seed), {}
    for name, (u, v) in {"pearson": (a, b), "spearman": (rankdata(a), rankdata(b))}.items():
        u, v = (u - u.mean()) / u.std(), (v - v.mean()) / v.std()
        moments = weights @ np.stack([u, v, u * u, v * v, u * v], 1)  # (draw + 1, 5)
        mu, mv, uu, vv, uv = moments.T
        spread = (uu - mu**2) * (vv - mv**2)
        drawn = (uv - mu * mv) / np.sqrt(np.where(spread > 1e-12, spread, np.nan))  # NaN if one value fills a draw
        low, high = np.nanquantile(drawn[1:], [(1 - level) / 2, (1 + level) / 2]) if draws else (np.nan, np.nan)
        rows[name] = [drawn[0], low, high, len(a)]
    return pd.DataFrame.from_dict(rows, "index", columns=["value", "low", "high", "n"])


@functools.lru_cache(4)  # drawing them takes longer than all that is done with them
def _weights(samples: int, draws: int, seed: int) -> np.ndarray:
    """Weights of bootstrap draws, (draw + 1, sample); the first row is the sample itself."""
    drawn = np.random.default_rng(seed).multinomial(samples, np.full(samples, 1 / samples), draws) / samples
    return np.vstack([np.full(samples, 1 / samples), drawn])


def over_time(measured: xr.DataArray, vulnerability: xr.DataArray, kind: str = "spearman") -> pd.DataFrame:
    """Correlation of a measure at each checkpoint, (epoch, sample), with one value a sample, by epoch."""
    rows = {
        int(epoch): correlation(measured.sel(epoch=epoch), vulnerability, draws=200).loc[kind]
        for epoch in measured.epoch.values
        if np.isfinite(measured.sel(epoch=epoch)).any()
    }
    return pd.DataFrame(rows).T.rename_axis("epoch")


def halved_targets(run: xr.Dataset, scoring: Scoring | str) -> list[Target]:
    """The :func:`target` of ``HALVES`` halves of the models and then of the samples."""
    dims = "model", "sample"
    return [_target(plane) for dim in dims for [plane] in planes_of_halves(run, [scoring], dim, HALVES, roc=False)]


def over_both(
    whole: pd.DataFrame, measured: Sequence[xr.DataArray], halved: Sequence[Target], subset: str = "all"
) -> pd.DataFrame:
    """``whole``, from :func:`correlation`, with the interval over models and samples instead.

    It is formed on Fisher's scale (artanh), where its width does not depend on the value.

    Args:
        measured: what the halves give: one value a sample for each of them.
        halved: from :func:`halved_targets`.
        subset: ``all``, or the samples that are ``vulnerable`` at the end of the half.
    """
    drawn = [
        correlation(x, y.where(final) if subset == "vulnerable" else y, draws=0).value
        for x, (y, final) in zip(measured, halved, strict=True)
    ]
    table = np.arctanh(pd.DataFrame([whole.value, *drawn]).clip(-0.9999, 0.9999))
    rows = {kind: estimate(xr.DataArray(table[kind], dims="draw")) for kind in table}
    ends = {end: pd.Series({kind: np.tanh(row[end]) for kind, row in rows.items()}) for end in ("low", "high")}
    return whole.assign(**ends)


def null_vulnerability(run: xr.Dataset, scoring: Scoring | str = STUDY, draws: int = 200) -> xr.DataArray:
    """Dynamic vulnerability (draw, sample) of the same phi under keep masks that no model was trained with."""
    planes = null_planes(run, scoring, draws=draws, roc=False)
    return xr.concat([dynamic_vulnerability(plane) for plane in planes], "draw")


def null_correlations(x: xr.DataArray, noise: xr.DataArray) -> pd.DataFrame:
    """Correlations of a value a sample with each draw of :func:`null_vulnerability`: columns pearson, spearman."""
    x, noise = xr.align(x, noise, join="inner")
    good = np.isfinite(x.values) & np.isfinite(noise.values).all(0)
    if good.sum() < 4:
        return pd.DataFrame(np.nan, range(len(noise)), ["pearson", "spearman"])
    a, b, rows = x.values[good].astype(float), noise.values[:, good], {}
    for name, (u, v) in {"pearson": (a, b), "spearman": (rankdata(a), rankdata(b, axis=1))}.items():
        u, v = u - u.mean(), v - v.mean(1, keepdims=True)
        length = np.sqrt((u**2).sum() * (v**2).sum(1))
        rows[name] = (v @ u) / np.where(length > 0, length, np.nan)
    return pd.DataFrame(rows)

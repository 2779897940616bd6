"""One quantity, epistemic uncertainty, by several estimators: which of them goes with vulnerability, and why.

Estimators come from three populations on the same samples: the base population, whose vulnerability is explained, one
with dropout, and a deep ensemble trained on the whole pool.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import expit

from ..attack.plane import part_of
from ..book.cells import cell
from ..errors import UserError
from ..stats import hardness
from ..stats.hardness import correlation, target
from ..store.run import study_of

ESTIMATORS = {
    "mi_all": "ensemble: MI, all models",
    "mi_out": "ensemble: MI, out-models",
    "variance_all": "ensemble: variance, all models",
    "variance_out": "ensemble: variance, out-models",
    "mc_mi": "MC dropout: MI",
    "dropout_all": "dropout population: MI, all models",
    "dropout_out": "dropout population: MI, out-models",
    "deep_mi": "deep ensemble: MI",
    "deep_variance": "deep ensemble: variance",
}
MIXED = ("mi_all", "variance_all", "dropout_all")  # over models that did and did not train on the sample


def roles(runs: Mapping[str, xr.Dataset]) -> dict[str, str]:
    """Which run is ``base``, ``dropout`` and ``deep`` (design ``all``): role to name.

    Raises:
        UserError: the base is absent, or the pools are not the same.
    """
    found: dict[str, str] = {}
    for name, run in runs.items():
        study = study_of(run)
        found.setdefault("deep" if study.design == "all" else "dropout" if "dropout" in study.model else "base", name)
    if "base" not in found:
        raise UserError("no population without dropout among the runs: there is no vulnerability to explain.")
    if len({runs[name].attrs["fingerprint"] for name in found.values()}) > 1:
        raise UserError(f"the pools of {', '.join(found.values())} differ: their samples are not the same.")
    return found


def variance_split(run: xr.Dataset) -> xr.Dataset:
    """Variance over models of the true-class probability: ``total``, and the part ``between`` in- and out-models.

    Law of total variance: between = w (1 - w) (mean of the in-models - mean of the out-models)^2 with w the share of
    in-models; what is left is within. Dims part, epoch, sample; between is NaN where a part has one side alone.
    """
    prob = xr.apply_ufunc(expit, run.phi.astype(float))
    rows = []
    for models in hardness.numbers_of_parts(run.sizes["model"]).values():
        p, keep = prob.isel(model=models), run.keep.isel(model=models)
        share = keep.mean("model")
        gap = p.where(keep).mean("model") - p.where(~keep).mean("model")
        rows.append(xr.Dataset({"total": p.var("model"), "between": share * (1 - share) * gap**2}))
    return xr.concat(rows, pd.Index(hardness.PARTS, name="part")).transpose("part", "epoch", "sample")


def estimators(runs: Mapping[str, xr.Dataset], recorded: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Every estimator of ``ESTIMATORS`` that was recorded, on dims part, epoch, sample.

    Args:
        runs, recorded: by role, the run and what ``data/campaign.py`` measured of it.
    """
    wanted = {
        "mi_all": ("base", "epistemic_all"), "mi_out": ("base", "epistemic_out"),
        "variance_out": ("base", "variance_out"), "mc_mi": ("dropout", "mc_information"),
        "dropout_all": ("dropout", "epistemic_all"), "dropout_out": ("dropout", "epistemic_out"),
        "deep_mi": ("deep", "epistemic_all"),
    }  # fmt: skip
    found = {name: recorded[role][source] for name, (role, source) in wanted.items() if role in runs}
    spread = {"variance_all": "base", "deep_variance": "deep"}
    found |= {name: variance_split(runs[role]).total for name, role in spread.items() if role in runs}
    return xr.Dataset({name: found[name] for name in ESTIMATORS if name in found})


def relate(
    estimated: xr.Dataset, run: xr.Dataset, rule: str = "lira:fpr@0.01", null: int | xr.DataArray = 20
) -> pd.DataFrame:
    """:func:`dynmia.stats.hardness.relate`, with halves that suit the deep ensemble.

    Its members have the seeds of the first models of ``run``. All of them are set against the first half of the models
    (``same half``, which has these seeds), and against the second (``other half``, which shares no seed with them).
    """
    table = hardness.relate(estimated, run, rule, null)
    for part, models in (("a", "same half"), ("b", "other half")):
        vulnerability, final = target(part_of(run, hardness.numbers_of_parts(run.sizes["model"])[part]), rule)
        for name in (name for name in estimated.data_vars if str(name).startswith("deep")):
            for subset, y in (("all", vulnerability), ("vulnerable", vulnerability.where(final))):
                rows = correlation(estimated[name].sel(part="all").isel(epoch=-1), y)
                for kind, row in rows.iterrows():
                    table.loc[(name, subset, models, kind), :] = row
    return table


def ceiling(run: xr.Dataset, rule: str = "lira:fpr@0.01") -> pd.DataFrame:
    """The largest Pearson correlation that a noise-free measure can have with the dynamic vulnerability of ``run``.

    From the correlation r of the vulnerabilities of the two halves: sqrt(2 r / (1 + r)) (Spearman and Brown). Assumes
    halves whose errors are independent and alike. A measure from the same models can exceed it: it shares the noise.

    Returns:
        Index ``all``, ``vulnerable`` (those of the whole population); columns value, low, high.
    """
    models = hardness.numbers_of_parts(run.sizes["model"])
    first, second = (target(part_of(run, models[part]), rule)[0] for part in ("a", "b"))
    final = target(run, rule)[1]
    rows = {}
    for subset, x in (("all", first), ("vulnerable", first.where(final))):
        r = correlation(x, second).loc["pearson", ["value", "low", "high"]].clip(lower=0)
        rows[subset] = np.sqrt(2 * r / (1 + r))
    return pd.DataFrame(rows).T


def shared(base: xr.Dataset, other: xr.Dataset) -> dict[str, bool]:
    """Whether models of the same number have the same initial weights (equal phi before training) and training set."""
    models = min(base.sizes["model"], other.sizes["model"])
    one, two = base.isel(model=slice(models)), other.isel(model=slice(models))
    return {
        "initial weights": bool(np.allclose(one.phi[0], two.phi[0], atol=1e-3)),
        "training sets": bool((one.keep.values == two.keep.values).all()),
    }


def said(row: pd.Series) -> str:
    """A correlation as it is printed."""
    return cell(row.value, row.low, row.high, 2) if np.isfinite(row.value) else "not enough"


def robustness(table: pd.DataFrame, paper: float, subset: str = "vulnerable") -> tuple[str, str]:
    """Verdict and sentence on Pearson correlations at the end of training.

    ``robust``: every estimator's interval holds the paper's value. ``robust in sign only``: every interval lies above
    its no-signal range. ``not robust``: neither.
    """
    rows, noise = (table.xs((subset, models, "pearson"), level=(1, 2, 3)) for models in ("all models", "no signal"))
    rows, noise = rows[rows.value.notna()], noise[rows.value.notna()]
    holds, above, below = (rows.low <= paper) & (rows.high >= paper), rows.low > noise.high, rows.high < noise.low
    if not len(rows):
        return "not to be judged", "Too few samples are finally vulnerable for a correlation"
    word = "robust" if holds.all() else "robust in sign only" if above.all() else "not robust"
    words = "finally vulnerable samples" if subset == "vulnerable" else "all samples"
    ends = [f"{said(rows.loc[end])} ({ESTIMATORS[end]})" for end in (rows.value.idxmin(), rows.value.idxmax())]
    return word, (
        f"On {words} the Pearson correlations of the {len(rows)} estimators run from {ends[0]} to {ends[1]}; "
        f"{holds.sum()} of their intervals hold the paper's {paper:g}, {above.sum()} lie above the no-signal range and "
        f"{below.sum()} below it"
    )


def verdict(
    table: pd.DataFrame,
    split: pd.DataFrame,
    share: float,
    share_null: float,
    over: Mapping[str, pd.DataFrame],
    top: pd.DataFrame,
    paper: float,
) -> list[str]:
    """Sentences by stated rules.

    Args:
        table: from :func:`relate`; ``split`` the same of total, between and within of :func:`variance_split`.
        share: of the total variance that lies between, mean over the finally vulnerable samples; ``share_null`` the
            same with a keep mask drawn anew.
        over: by estimator, Pearson correlation among the vulnerable samples by epoch.
        top: from :func:`ceiling`.
        paper: its correlation.
    """
    word, text = robustness(table, paper)
    sentences = [
        f"Is the paper's correlation robust to the estimator: **{word}**. {text}.",
        robustness(table, paper, "all")[1] + ".",
    ]
    known = pd.concat(over, names=["estimator", "epoch"]).dropna()
    if not len(known):
        return sentences
    name, epoch = known.value.idxmax()
    best = known.loc[(name, epoch)]
    sentences.append(
        f"At the checkpoint that suits it best, epoch {epoch}, the highest correlation of any estimator among the "
        f"finally vulnerable is {said(best)} ({ESTIMATORS[name]}): it "
        f"{'reaches' if best.high >= paper else 'does not reach'} the paper's value. A measure without noise could "
        f"reach at most {said(top.loc['vulnerable'])} there, and {said(top.loc['all'])} on all samples, because the "
        "vulnerability itself is known from twenty models only."
    )
    parts = split.xs(("all", "all models", "pearson"), level=[1, 2, 3])
    carried = parts.low["between"] > max(parts.value["total"], parts.value["within"])
    told = (
        "the difference between the sides carries it. That difference is what the attack itself sees: such an "
        "estimator measures vulnerability a second time, rather than a cause of it"
    )
    sentences.append(
        f"Over all models, {100 * share:.0f} % of the variance of the finally vulnerable samples lies between in- and "
        f"out-models ({100 * share_null:.0f} % if the keep mask is redrawn). On all samples the whole variance "
        f"correlates with vulnerability at {said(parts.loc['total'])}, the part between the sides at "
        f"{said(parts.loc['between'])}, the part within them at {said(parts.loc['within'])}: "
        f"{told if carried else 'the spread within the sides counts too'}."
    )
    pure = table.xs(("all", "other half", "pearson"), level=[1, 2, 3]).drop(list(MIXED), errors="ignore")
    lines = "; ".join(f"{ESTIMATORS[str(name)]} {said(row)}" for name, row in pure.iterrows())
    return [
        *sentences,
        f"Across disjoint models, estimators without that difference correlate, on all samples, at: {lines}.",
    ]

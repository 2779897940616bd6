"""What architecture and optimiser change: runs set against a reference run, and the sentences that follow.

The rules of the sentences are stated here and in the chapters: a difference counts if its 95 % interval lies wholly on
one side of zero and outside the no-signal band of the same difference, a ratio if its interval lies on one side of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata, sem, t

from ..book.cells import cell
from ..dynamics import cloud as dyn
from ..dynamics.metrics import METRICS
from ..errors import choose
from ..registry import DATASETS
from ..stats.matching import Halved, Nulls, Planes, common_level, contrast, epoch_at
from ..store.run import study_of

STATE: dict[str, Callable[..., xr.DataArray]] = {  # metrics that a moment has, over epoch
    "auc": dyn.auc,
    "advantage": lambda plane, weights=None: 1000 * dyn.population_mean(plane.advantage, weights),
    "displacement": dyn.displacement,
    "entropy_change": lambda plane, weights=None: (h := dyn.spatial_entropy(plane, weights)) - h.isel(epoch=0),
    "vulnerable": lambda plane, weights=None: 100 * dyn.population_mean(dyn.vulnerable(plane), weights),
}
MATCHINGS = {
    "epoch": "at the last epoch",
    "train": "at equal train accuracy",
    "test": "at equal held-out accuracy",
    "best": "each at its best held-out accuracy",
}


def sizes(runs: Planes) -> pd.DataFrame:
    """Depth (weight layers on the longest path) and parameters of each run's model, shallowest first."""
    from ..shadow.models import build_model, parameters

    rows = {}
    for name, run in runs.items():
        study = study_of(run)
        known = DATASETS[study.dataset]
        model = build_model(study.model, known.shape, known.classes)
        rows[name] = {"depth": depth(model, known.shape), "parameters": parameters(model)}
    return pd.DataFrame.from_dict(rows, "index").sort_values(["depth", "parameters"])


def depth(model: Any, shape: tuple[int, int, int]) -> int:
    """Weight layers (convolutions and linear layers) on the longest path from input to logits.

    WRN-28-2 has 26: its name also counts the three convolutions of the shortcuts, which run beside the path.
    """
    import torch

    last = model.eval()(torch.zeros(1, *shape)).grad_fn
    model.train()
    longest: dict[Any, int] = {}
    stack = [last]
    while stack:  # without recursion: deep networks have thousands of nodes
        node = stack[-1]
        before = [parent for parent, _ in node.next_functions if parent is not None]
        if unseen := [parent for parent in before if parent not in longest]:
            stack += unseen
            continue
        weights = node.name().startswith(("Convolution", "MkldnnConvolution", "Addmm", "Mm"))
        longest[stack.pop()] = weights + max((longest[parent] for parent in before), default=0)
    return longest[last]


def state_curves(planes: Halved) -> dict[str, xr.Dataset]:
    """The metrics of ``STATE`` had training stopped at each checkpoint: for each run a data set (draw, epoch)."""
    return {
        run: xr.concat([xr.Dataset({name: of(part) for name, of in STATE.items()}) for part in parts], "draw")
        for run, parts in planes.items()
    }


def at_epochs(curves: Planes, epochs: Mapping[str, float]) -> xr.Dataset:
    """The curves of the runs in ``epochs``, each at its own epoch, linear between checkpoints: dims (run, draw)."""
    rows = [curves[run].interp(epoch=epoch).drop_vars("epoch") for run, epoch in epochs.items()]
    return xr.concat(rows, pd.Index(list(epochs), name="run"))


def matched_epochs(planes: Planes, matching: str, share: float = 0.95) -> dict[str, float]:
    """The epoch at which each run is read under a matching of ``MATCHINGS``."""
    if choose(matching, MATCHINGS, "matching") == "epoch":
        return dict.fromkeys(planes, float(min(plane.epoch[-1] for plane in planes.values())))
    if matching == "best":
        return {run: float(plane.test_accuracy.mean("model").idxmax("epoch")) for run, plane in planes.items()}
    level = common_level(planes, matching, share)
    return {run: epoch_at(plane, matching, level) for run, plane in planes.items()}


def contrasts(
    halved: Halved, reference: str, *, how: str = "difference", nulls: Nulls | None = None, share: float = 0.95
) -> pd.DataFrame:
    """Every run minus (or over) the reference under every matching; accuracies are matched pair by pair.

    Args:
        halved: by name, from :func:`dynmia.stats.matching.with_halves`; moments are those of the whole runs.
        reference: the run that the others are set against.
        how: ``difference`` or ``ratio``.
        nulls: of differences only: for each run the planes of its permutation null
            (:func:`dynmia.stats.resample.null_planes`), the same redrawn masks for all.
        share: of the common rise of accuracy at which runs are matched (:func:`dynmia.stats.matching.common_level`).

    Returns:
        Index (run, matching, metric); columns value, low, high, null_low, null_high, the epochs at which the two are
        read (epoch, reference_epoch), what they are there (run_value, reference_value), and side: more, less or
        unresolved.
    """
    planes = {name: parts[0] for name, parts in halved.items()}
    curves, rows = state_curves(halved), {}
    nulls = nulls or {}
    noise = [state_curves({run: [plane] for run, plane in zip(nulls, one)}) for one in zip(*nulls.values())]
    for run in [name for name in planes if name != reference]:
        pair = {reference: planes[reference], run: planes[run]}
        for matching in MATCHINGS:
            epochs = matched_epochs(pair, matching, share)
            both = at_epochs(curves, epochs)
            chance = [at_epochs(one, epochs).isel(draw=0) for one in noise]
            for metric in STATE:
                first, second = both[metric]
                values = [float(one[metric][1] - one[metric][0]) for one in chance] or [np.nan]
                rows[run, matching, metric] = {
                    **contrast(second, first, metric, how), "null_low": min(values), "null_high": max(values),
                    "epoch": epochs[run], "reference_epoch": epochs[reference],
                    "run_value": float(both[metric][1, 0]), "reference_value": float(both[metric][0, 0]),
                }  # fmt: skip
    table = pd.DataFrame.from_dict(rows, "index").rename_axis(["run", "matching", "metric"]).sort_index()
    neutral = 0.0 if how == "difference" else 1.0
    above = table.low > table.null_high.fillna(neutral).clip(lower=neutral)
    below = table.high < table.null_low.fillna(neutral).clip(upper=neutral)
    return table.assign(side=np.select([above, below], ["more", "less"], "unresolved"))


def written(metric: str, row: pd.Series, digits: int | None = None) -> str:
    """:func:`dynmia.book.cells.cell` of a metric; ``digits`` if it is a ratio."""
    ratio = digits is not None
    return cell(row["value"], row["low"], row["high"], METRICS[metric].digits if digits is None else digits, int(ratio))


def leaks(table: pd.DataFrame, metrics: Sequence[str] = ("auc", "vulnerable")) -> pd.Series:
    """Whether a run leaks more or less than the reference, by (run, matching).

    ``more`` if one of ``metrics`` says more and none less, ``less`` likewise, ``mixed`` if they contradict each other,
    else ``unresolved``.
    """
    sides = table.side.unstack("metric")[list(metrics)]
    more, less = (sides == "more").any(axis=1), (sides == "less").any(axis=1)
    words = np.select([more & less, more, less], ["mixed", "more", "less"], "unresolved")
    return pd.Series(words, sides.index)


def held_out_gain(planes: Planes, reference: str) -> pd.DataFrame:
    """Best held-out accuracy of each run minus the reference's, in points: mean over models, paired t interval.

    Each run is read where its own mean over models is best; models of the same number share seed and half of the pool.
    """
    best = {
        run: 100 * plane.test_accuracy.sel(epoch=plane.test_accuracy.mean("model").idxmax("epoch")).values
        for run, plane in planes.items()
    }
    rows = {}
    for run in [name for name in planes if name != reference]:
        apart = best[run] - best[reference]
        low, high = t.interval(0.95, len(apart) - 1, apart.mean(), sem(apart)) if apart.std() else (apart.mean(),) * 2
        rows[run] = {"value": apart.mean(), "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, "index")


def rank_correlation(size: pd.Series, drawn: xr.DataArray) -> xr.DataArray:
    """Spearman correlation over the runs between a size and a metric (run, draw), draw by draw."""
    ranks = xr.apply_ufunc(rankdata, drawn, input_core_dims=[["run"]], output_core_dims=[["run"]], vectorize=True)
    return xr.corr(xr.DataArray(rankdata(size[drawn.run.values]), dims="run"), ranks, dim="run")

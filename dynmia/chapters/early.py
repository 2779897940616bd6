"""Early warning: who will be vulnerable at the end, told from the plane up to a checkpoint, by honest prediction.

Scores that need fitting are fitted on one half of the samples and judged on the other. "Now" and "at the end" come
from the same models, so part of what looks like foresight is shared noise: :func:`disjoint_halves` takes it away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from ..attack.plane import part_of, vulnerability_plane
from ..dynamics import cloud as dyn
from ..dynamics.cloud import Weights
from ..dynamics.metrics import EARLY
from ..errors import UserError
from ..stats import hardness
from ..stats.matching import Planes
from ..stats.resample import bootstrap_weights

SCORES = {
    "now": "advantage at t",
    "average": "mean advantage up to t",
    "trajectory": "logistic regression on TPR and FPR up to t",
}


KINDS = ("outcome of the same models", "outcome of the other models")


def stay(plane: xr.Dataset, weights: Weights = None) -> xr.DataArray:
    """Of the samples that have been vulnerable at least once by t, the share that stays so from first entry to the end.

    Over epoch; NaN while none has entered. Finally vulnerable or not: a sample that leaves counts against it.
    """
    now = dyn.vulnerable(plane)
    entered = xr.apply_ufunc(np.maximum.accumulate, now, kwargs={"axis": now.get_axis_num("epoch")})
    stays = (now == entered).all("epoch") & entered.isel(epoch=-1, drop=True)
    return dyn.share_of(entered & stays, entered, weights)


def first_reach(plane: xr.Dataset, weights: Weights = None, share: float = 0.7) -> xr.DataArray:
    """The first checkpoint at which the recall of the finally vulnerable is ``share`` or more, as a share of training.

    :func:`dynmia.dynamics.metrics.epoch_of_recall` asks that it also stays there.
    """
    reached = dyn.early_identification(plane, weights).recall >= share - 1e-9
    return plane.epoch[reached.argmax("epoch")].drop_vars("epoch") / plane.epoch[-1].drop_vars("epoch")


def recalls(plane: xr.Dataset, draws: int = 100) -> pd.DataFrame:
    """Recall (%) of the finally vulnerable at each checkpoint but the ends, by share of training: value, low, high."""
    sides = [dyn.early_identification(plane, weights).recall for weights in (None, bootstrap_weights(plane, draws))]
    value, drawn = (100 * recall.isel(epoch=slice(1, -1)) for recall in sides)
    low, high = drawn.quantile([0.025, 0.975], "draw").values
    share = plane.epoch.values[1:-1] / float(plane.epoch[-1])
    return pd.DataFrame({"value": value.values, "low": low, "high": high}, pd.Index(share, name="share of training"))


def by_then(table: pd.DataFrame, wanted: float, share: float = EARLY) -> str:
    """Whether ``wanted`` is reached by ``share`` of training, from the checkpoints of :func:`recalls` beside it."""
    before, after = table[table.index <= share], table[table.index >= share]
    if len(before) and before.low.iloc[-1] > wanted:
        return "reached"
    return "not reached" if len(after) and after.high.iloc[0] < wanted else "open"


def disjoint_halves(run: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Runs of disjoint halves of the models, on the samples that :func:`~dynmia.attack.plane.part_of` keeps in both.

    Raises:
        UserError: it keeps none.
    """
    models = hardness.numbers_of_parts(run.sizes["model"])
    parts = [part_of(run, models[name]) for name in ("a", "b")]
    common = parts[0].sample[parts[0].sample.isin(parts[1].sample)]
    if not common.size:
        raise UserError("no sample has in- and out-models enough in both halves: use more shadow models.")
    first, second = (part.sel(sample=common) for part in parts)
    return first, second


def prediction(
    plane: xr.Dataset, outcome: xr.DataArray | None = None, *, scores: Sequence[str] = tuple(SCORES),
    epochs: Sequence[int] | None = None, draws: int = 200,
) -> xr.Dataset:  # fmt: skip
    """Average precision of predicting the finally vulnerable from the plane up to each checkpoint.

    The samples are split at random into two halves. A fitted score is fitted on one and judged on the other, both ways;
    every average precision is the mean over the two halves. The chance level is the prevalence.

    Args:
        plane: what the prediction may look at.
        outcome: bool (sample); default vulnerable at the plane's own end.
        scores: names of ``SCORES``.
        epochs: at which to predict; default all.
        draws: of the bootstrap over samples (the fits stay as they are).

    Returns:
        value, low, high (score, epoch), and chance, chance_low, chance_high. NaN if nobody is finally vulnerable.
    """
    truth = (dyn.vulnerable(plane).isel(epoch=-1) if outcome is None else outcome).values
    fold = np.random.default_rng([0, 1]).permutation(len(truth)) < len(truth) // 2
    weights = np.vstack([np.ones(len(truth)), bootstrap_weights(plane, draws).values])
    at = plane.epoch.values if epochs is None else np.asarray(epochs)
    found = np.empty((len(scores), len(at), len(weights)))
    for t, epoch in enumerate(at):
        seen = plane.sel(epoch=slice(None, int(epoch)))
        for number, name in enumerate(scores):
            score = _score(name, seen, truth, fold)
            found[number, t] = np.mean(
                [average_precision(truth[part], score[part], weights[:, part]) for part in (fold, ~fold)], 0
            )
    share = weights @ truth / weights.sum(1)
    tails = [0.025, 0.975]
    low, high = np.full((2, *found.shape[:2]), np.nan)
    if np.isfinite(found).any():  # else nobody is finally vulnerable
        low, high = np.nanquantile(found, tails, -1)
    dims, coords = ("score", "epoch"), {"score": list(scores), "epoch": at}
    chance = dict(zip(("chance", "chance_low", "chance_high"), (share[0], *np.quantile(share, tails))))
    return xr.Dataset({"value": (dims, found[..., 0]), "low": (dims, low), "high": (dims, high), **chance}, coords)


def control(run: xr.Dataset, rule: str = "lira:fpr@0.01", *, score: str = "average", draws: int = 200) -> xr.Dataset:
    """:func:`prediction` from one half of the models, of the end in the same half and in the other half of them.

    Returns:
        As :func:`prediction`, with dim kind (``KINDS``) instead of score. Values, bounds and chance are means over both
        ways to choose the half that predicts, so the interval is, if anything, wide.
    """
    planes = [vulnerability_plane(part, rule) for part in disjoint_halves(run)]
    outcomes = [dyn.vulnerable(plane).isel(epoch=-1, drop=True) for plane in planes]
    kinds = []
    for ends in (outcomes, outcomes[::-1]):
        ways = [prediction(p, end, scores=[score], draws=draws) for p, end in zip(planes, ends)]
        kinds.append(((ways[0] + ways[1]) / 2).isel(score=0, drop=True))
    both = xr.concat(kinds, "kind").assign_coords(kind=list(KINDS))
    return both.assign({name: kinds[0][name] for name in ("chance", "chance_low", "chance_high")})


def against(row: pd.Series, share: float) -> str:
    """``earlier than``, ``later than`` (the whole interval on one side of ``share``), or ``not told apart from``."""
    return "earlier than" if row.high < share else "later than" if row.low > share else "not told apart from"


def verdict(
    when: pd.DataFrame, found: Mapping[str, Planes], control: Mapping[str, Planes], at: Mapping[str, int],
    words: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """Sentences, computed: when 70 % is reached, what predicts best early, how much of it is shared noise.

    Args:
        when: index (metric, group, run), columns value, low, high, null_high; recall_epoch as a share of training.
        found, control: for each rule and run, from :func:`prediction` and :func:`control`.
        at: for each run, the epoch to speak of; words: its label.
    """
    sentences = []
    for rule, runs in found.items():
        sides: dict[str, list[str]] = {"earlier than": [], "later than": [], "not told apart from": []}
        rows = []
        for name, part in runs.items():
            row = when.loc[("recall_epoch", rule, name)]
            sides[against(row, EARLY)].append(f"{words[name]} ({row.value:.2f} [{row.low:.2f}, {row.high:.2f}])")
            recall = when.loc[("early_recall", rule, name)]
            now, both = part.sel(epoch=at[name]), control[rule][name].sel(epoch=at[name])
            same, other = (both.value - both.chance).values
            rows.append({
                "seen": recall.low > recall.null_high, "best": SCORES[str(now.value.idxmax("score").values)],
                "gains": float(now.low.max()) > float(now.chance_high),
                "lasts": float(both.low[1]) > float(both.chance_high),
                "kept": 100 * other / same if same > 0 else np.nan,
            })  # fmt: skip
        table = pd.DataFrame(rows)
        count, least, most = table[["seen", "gains", "lasts"]].sum(), table.kept.min(), table.kept.max()
        told = "; ".join(f"{side} 3/8 of training: {', '.join(names)}" for side, names in sides.items() if names)
        share = "no measurable part" if np.isnan(least) else f"{least:.0f} to {most:.0f} %"
        sentences += [
            f"`{rule}`: recall stays above 70 % {told}.",
            f"`{rule}`: recall at 3/8 of training lies above its no-signal level in {count.seen} of {len(table)} runs; "
            "noise that freezes early is recalled too, so elsewhere recall alone is no sign of leakage.",
            f"`{rule}`: at 3/8 of training the best score predicts the finally vulnerable above chance in "
            f"{count.gains} of {len(table)} runs; most often the best is the {table.best.mode().max()}.",
            f"`{rule}`: for the outcome of models that it has not seen the prediction is above chance in {count.lasts} "
            f"of {len(table)} runs, and keeps {share} of its gain over chance: that part belongs to the samples, the "
            "rest to these models.",
        ]
    return sentences


def average_precision(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision, sum of (R_k - R_(k-1)) P_k over distinct thresholds, in each row of weights (draw, sample).

    NaN where nothing is true.
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # of each group of ties
    drawn = weights[:, order]
    hit, taken = (np.cumsum(part, 1)[:, last] for part in (drawn * truth[order], drawn))
    total = hit[:, -1]
    gain = np.diff(hit, axis=1, prepend=0)
    value = (gain * hit / np.maximum(taken, 1e-300)).sum(1)
    return np.where(total > 0, value / np.maximum(total, 1e-300), np.nan)


def _score(name: str, seen: xr.Dataset, truth: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """The score of every sample from the checkpoints seen so far; fitted on the half that it is not judged on."""
    from sklearn.linear_model import LogisticRegression

    advantage = seen.advantage.transpose("epoch", "sample").values
    if name != "trajectory":
        return advantage[-1] if name == "now" else advantage.mean(0)
    path = np.vstack([seen[axis].transpose("epoch", "sample").values for axis in ("tpr", "fpr")]).T
    path = (path - path.mean(0)) / (path.std(0) + 1e-12)
    score = np.zeros(len(truth))
    for part in (fold, ~fold):
        if truth[~part].any() and not truth[~part].all():
            model = LogisticRegression(solver="newton-cholesky").fit(path[~part], truth[~part])
            score[part] = model.decision_function(path[part])
    return score

"""Every attack and metric computed a second time, by loops or by other people's libraries, from their definitions.

Nothing here calls what it checks; :mod:`.checked` puts both side by side. The last part calls the LiRA of a published
package, where that is installed.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise, product
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from scipy import optimize, stats
from scipy.spatial.distance import cdist
from sklearn import metrics as sk
from sklearn.cluster import KMeans

PACKAGE = "tensorflow-privacy==0.8.12"
INSTALL = f"pip install --no-deps --ignore-requires-python {PACKAGE}"  # 400 kB; what it asks for is not needed here
CENTRES: dict[str, Callable] = {"mean": np.mean, "median": np.median}
HIGH_LOW = ("high", "low")  # TPR, FPR of the vulnerable


def _others(values: np.ndarray, keep: np.ndarray, i: int, side: bool) -> list[np.ndarray]:
    """For each sample the values of all models but ``i`` that did (``side`` True) or did not train on it."""
    return [np.delete(values[:, z], i)[np.delete(keep[:, z], i) == side] for z in range(values.shape[1])]


def lira_loop(phi: np.ndarray, keep: np.ndarray, attack: str, centre: str, variance: str) -> np.ndarray:
    """Leave-one-out LiRA (Carlini et al. 2022), one target after the other, by ``scipy.stats.norm``, (N, n)."""
    scores = np.empty(phi.shape)
    for i, x in enumerate(phi):
        log = {}
        for side in (True, False):
            groups = _others(phi, keep, i, side)
            mu, var = [CENTRES[centre](g) for g in groups], np.array([g.var(ddof=1) for g in groups])
            if variance == "pooled":
                var = np.average(var, weights=[len(g) - 1 for g in groups])
            log[side] = stats.norm.logpdf(x, mu, np.sqrt(var))
            below = stats.norm.logcdf(x, mu, np.sqrt(var))  # of the out-models in the end
        scores[i] = {"lira": log[True] - log[False], "offline-density": -log[False], "offline-cdf": below}[attack]
    return scores


def rmia_loop(phi: np.ndarray, keep: np.ndarray, a: float | None = None) -> np.ndarray:
    """RMIA (Zarifzadeh et al. 2024, eq. 2, 9 and 10) pair by pair, gamma = 1; offline where ``a`` is given, (N, n)."""
    p, scores = 1 / (1 + np.exp(-phi)), np.empty(phi.shape)
    for i in range(len(phi)):
        p_in, p_out = (np.array([group.mean() for group in _others(p, keep, i, side)]) for side in (True, False))
        relative = p[i] / (0.5 * (p_out + (p_in if a is None else a * p_out + 1 - a)))
        for x, ratio in enumerate(relative):
            rivals = np.delete(relative, x)[~np.delete(keep[i], x)]
            scores[i, x] = np.mean([ratio / other >= 1 for other in rivals])
    return scores


def shokri_loop(phi: np.ndarray, keep: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Shadow classifier (Shokri et al. 2017): the penalised likelihood of each class and half maximised by scipy."""
    p, scores, half = 1 / (1 + np.exp(-phi)), np.empty(phi.shape), len(phi) // 2
    for targets, others in ((range(half), range(half, len(phi))), (range(half, len(phi)), range(half))):
        for label in set(labels):
            where = np.flatnonzero(labels == label)
            x = np.array([[np.log(p[j, z]), np.log(1 - p[j, z])] for j in others for z in where])
            sign = np.array([1 if keep[j, z] else -1 for j in others for z in where])
            middle, spread = x.mean(0), x.std(0)

            def objective(w: np.ndarray, x: np.ndarray = (x - middle) / spread, sign: np.ndarray = sign) -> float:
                return np.logaddexp(0, -sign * (x @ w[:2] + w[2])).sum() + 0.5 * (w[:2] ** 2).sum()

            w = optimize.minimize(objective, np.zeros(3), method="Powell", options={"xtol": 1e-10, "ftol": 1e-15}).x
            for i, z in product(targets, where):
                scores[i, z] = ((np.log([p[i, z], 1 - p[i, z]]) - middle) / spread) @ w[:2] + w[2]
    return scores


def loss_torch(phi: np.ndarray) -> np.ndarray:
    """Minus torch's cross-entropy of two classes whose logits differ by phi (Yeom et al. 2018)."""
    logits = torch.tensor(np.stack([phi, np.zeros_like(phi)], -1).reshape(-1, 2), dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="none")
    return -loss.numpy().reshape(phi.shape)


class Second:
    """A population's plane built a second time: scores by loops, thresholds by scikit-learn, exact fractions as rates.

    From phi (T, N, n) under the rule ``fpr@0.01``. place is (epoch, sample, 2), FPR and TPR; state holds (TPR, FPR)
    thirds by name, epoch by epoch.
    """

    def __init__(self, phi: np.ndarray, keep: np.ndarray, epochs: np.ndarray) -> None:
        self.epochs, self.member = epochs, keep.ravel()
        self.scores = [lira_loop(x, keep, "lira", "mean", "pooled").ravel() for x in phi]
        place, self.state = [], []
        for score in self.scores:
            fpr, _, cuts = sk.roc_curve(self.member, score, drop_intermediate=False)
            flag = (score >= cuts[fpr <= 0.01][-1]).reshape(keep.shape)
            counts = [[(int(f[k == s].sum()), int((k == s).sum())) for s in (0, 1)] for f, k in zip(flag.T, keep.T)]
            rates = [[Fraction(hits, size) for hits, size in sides] for sides in counts]
            place.append(np.array(rates, float))
            self.state.append([(_third(tpr), _third(fpr)) for fpr, tpr in rates])
        self.place = np.array(place)

    def early(self, score: Callable) -> float:
        """A score of scikit-learn of who is vulnerable at 3/8 of training, for who is at the end, linear in between."""
        scores = [score(self.flags(-1), self.flags(t), zero_division=np.nan) for t in range(len(self.epochs))]
        return 100 * float(np.interp(150 / 400 * self.epochs[-1], self.epochs, scores))

    def flags(self, t: int) -> np.ndarray:
        """Who is vulnerable at checkpoint t, (n,)."""
        return np.array([state == HIGH_LOW for state in self.state[t]])

    def speeds(self) -> list[float]:
        """Mean distance moved between consecutive checkpoints, in thousandths per epoch."""
        moved = [np.diag(cdist(a, b)).mean() for a, b in pairwise(self.place)]
        return [1000 * d / (b - a) for d, (a, b) in zip(moved, pairwise(self.epochs))]

    def to_vulnerable(self) -> list[float]:
        """Share of the not yet vulnerable that turn, in per cent, from cross-tabulations."""
        tables = [pd.crosstab(self.flags(t), self.flags(t + 1), normalize="index") for t in range(len(self.state) - 1)]
        return [100 * table.loc[False].get(True, 0.0) for table in tables]

    def recall_epoch(self) -> float:
        """The first checkpoint from which recall stays at or above 70 %."""
        recall = [sk.recall_score(self.flags(-1), self.flags(t)) for t in range(len(self.epochs))]
        return float(self.epochs[next(t for t in range(len(recall)) if min(recall[t:]) >= 0.7)])

    def tpr(self, level: float) -> float:
        """The highest TPR of the last checkpoint's ROC at an FPR of at most ``level``, in per cent."""
        fpr, tpr, _ = sk.roc_curve(self.member, self.scores[-1])
        return 100 * tpr[fpr <= level].max()

    def silhouette(self) -> float:
        """scikit-learn's silhouette, sample by sample, of the same 3-means: another start may find other clusters."""
        points, times = np.unique(self.place[-1], axis=0, return_counts=True)
        labels = KMeans(3, n_init=4, random_state=0).fit(points, None, times).labels_
        apart = cdist(points, points)[np.repeat(np.arange(len(points)), times)]
        return sk.silhouette_score(np.repeat(apart, times, axis=1), np.repeat(labels, times), metric="precomputed")


def _third(rate: Fraction) -> str:
    return "low" if rate < Fraction(1, 3) else "high" if rate > Fraction(2, 3) else "mid"


def entropy(place: np.ndarray, bins: int = 11) -> float:
    """Bits of ``numpy.histogram2d`` by ``scipy.stats.entropy``; a rate of k / bins is in the bin that begins there.

    numpy's own edges are rounded, so that 5/11 falls below the sixth of 11; these lie 1e-9 lower.
    """
    edges = np.append(np.arange(bins) / bins - 1e-9, 1)
    return stats.entropy(np.histogram2d(place[:, 0], place[:, 1], [edges, edges])[0].ravel(), base=2)


ORACLES: dict[str, tuple[str, Callable[[Second], float | np.floating]]] = {
    "auc": ("sklearn roc_auc_score", lambda s: sk.roc_auc_score(s.member, s.scores[-1])),
    "tpr_1pct": ("sklearn roc_curve", lambda s: s.tpr(0.01)),
    "tpr_01pct": ("sklearn roc_curve", lambda s: s.tpr(0.001)),
    "advantage": ("exact fractions", lambda s: 1000 * np.mean([tpr - fpr for fpr, tpr in s.place[-1]])),
    "dynamic": ("exact fractions", lambda s: 1000 * np.mean([tpr - fpr for fpr, tpr in np.concatenate(s.place)])),
    "displacement": ("math.dist", lambda s: 1000 * math.dist(s.place[-1].mean(0), s.place[0].mean(0))),
    "entropy_change": ("histogram2d, scipy entropy", lambda s: entropy(s.place[-1]) - entropy(s.place[0])),
    "speed_mean": ("scipy cdist", lambda s: np.mean(s.speeds())),
    "speed_peak": ("scipy cdist", lambda s: max(s.speeds())),
    "speed_peak_epoch": ("scipy cdist", lambda s: s.epochs[1 + int(np.argmax(s.speeds()))]),
    "vulnerable": ("exact fractions", lambda s: 100 * s.flags(-1).mean()),
    "transition_peak": ("pandas crosstab", lambda s: max(s.to_vulnerable())),
    "transition_peak_epoch": ("pandas crosstab", lambda s: s.epochs[1 + int(np.argmax(s.to_vulnerable()))]),
    "early_recall": ("sklearn recall_score", lambda s: s.early(sk.recall_score)),
    "early_precision": ("sklearn precision_score", lambda s: s.early(sk.precision_score)),
    "recall_epoch": ("sklearn recall_score", lambda s: s.recall_epoch()),
    "silhouette": ("sklearn silhouette_score", lambda s: s.silhouette()),
}


def published() -> ModuleType | None:
    """``advanced_mia`` of tensorflow-privacy, which needs numpy and scipy only; None where it is not installed.

    Releases 0.8.4 to 0.8.12 have it, 0.9.0 does not.
    """
    sys.skip_tf_privacy_import = True  # type: ignore[attr-defined]  # their own switch: TensorFlow is not imported
    name = "tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.advanced_mia"
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def published_scores(
    theirs: ModuleType,
    phi: np.ndarray,
    keep: np.ndarray,
    attack: str,
    centre: str,
    variance: str,
    unbiased: bool = False,
) -> np.ndarray:
    """Their ``compute_score_lira`` for each target from the other models, larger for members as ours, (N, n).

    Their variances divide by the number m of models (or the pooled number), not by m - 1 (or the sum of m - 1). With
    ``unbiased`` what they are given is stretched about its centre by the root of the ratio, which undoes just that.
    """
    scores = np.empty(phi.shape)
    for i, x in enumerate(phi):
        sides = []
        for side in (True, False):
            groups = _others(phi, keep, i, side)
            m = np.array([len(g) for g in groups], float)
            factor = m / (m - 1) if variance == "per-sample" else np.full(len(m), m.sum() / (m - 1).sum())
            if unbiased:
                middles = [CENTRES[centre](g) for g in groups]
                groups = [c + np.sqrt(f) * (g - c) for g, c, f in zip(groups, middles, factor)]
            sides.append([g[:, None] for g in groups])
        scores[i] = -theirs.compute_score_lira(
            x[:, None], *sides, option="both" if attack == "lira" else "out", fix_variance=variance == "pooled",
            median_or_mean=centre,
        )  # fmt: skip
    return scores

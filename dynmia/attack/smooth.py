"""The plane with less noise: TPR and FPR as probabilities under the fitted normal distributions, instead of counts.

At a checkpoint a sample's c in-models have mean m and within-sample variance v. Leave-one-out LiRA scores target
x = m + d against the mean of the others, m - d / (c - 1), so x lies d c / (c - 1) from it, and the score is a quadratic
in d. For a v pooled over many samples, d given m is N(0, v (1 - 1/c)), and the probability that the target is flagged,
given the sample's means, has a closed form. If v is of the sample alone, with sum of squares M2, the share
d^2 c / ((c - 1) M2) is Beta(1/2, (c - 2)/2) given m and M2, and a quadrature over it does. By Rao and Blackwell either
has the expectation of the count and never more variance, if phi is normal.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import xarray as xr
from scipy.stats import beta, norm

from ..errors import UserError, choose
from ..store.run import boolean
from .lira import FLOOR, centred, flagged_share
from .plane import CUTS, state_of
from .scoring import Scoring

ESTIMATES = {
    "rao-blackwell": "expectation of the leave-one-out count, given the sample's means (and variances)",
    "plug-in": "both distributions as fitted to all models, taken to be the truth",
    "shrunken": "plug-in, with the separation of the means shrunk towards its mean over samples",
}


def smooth(
    plane: xr.Dataset, run: xr.Dataset, estimate: str = "rao-blackwell", *, keep: np.ndarray | None = None
) -> xr.Dataset:
    """``plane`` with tpr, fpr and advantage computed from fitted normal distributions instead of counts.

    Assumes that phi is normal over models, with one variance a side if the attack pools it (its error is neglected) or
    one for each sample if the attack does so; and takes the plane's own thresholds as given. What rests on pairs of
    models and samples, AUC and TPR at a pooled FPR, stays as it is. The silhouette takes memory n^2: no rates tie.

    Args:
        plane: of the online attack with centre ``mean`` (:func:`dynmia.attack.plane.vulnerability_plane`).
        run: what the plane was computed from.
        estimate: a name of ``ESTIMATES``. ``rao-blackwell``: Lehmann and Casella (1998), theorem 1.7.8. ``plug-in``
            forgets that region and density rest on the same means: it is too optimistic. ``shrunken``: normal prior
            over samples, moments by checkpoint (Efron and Morris 1973).
        keep: the mask (N, n) if the plane was computed for another than the run's.

    Returns:
        The plane without tp and fp, attribute ``estimate`` added.

    Raises:
        UserError: another attack or centre, or a plane of another mask.
    """
    choose(estimate, ESTIMATES, "estimate")
    if (plane.attrs["attack"], plane.attrs["centre"]) != ("online", "mean"):
        raise UserError("only the plane of attack 'online' with centre 'mean' has a model behind it to smooth with.")
    mask = boolean(run.keep.values if keep is None else keep)
    if not np.array_equal(mask.sum(0), plane.n_in):
        raise UserError("the plane was computed for another keep mask than this one: give smooth() the same.")
    per_sample = Scoring(variance=plane.attrs["variance"]).for_models(len(mask)).variance == "per-sample"
    rates = np.empty((2, *plane.tpr.shape))
    for t, threshold in enumerate(plane.threshold.values):
        phi = np.asarray(run.phi.values[t], np.float64)
        inside, outside = (_moments(phi, side, per_sample) for side in (mask, ~mask))
        if estimate == "rao-blackwell" and per_sample:
            rates[:, t] = _expected(inside, outside, 1, threshold), _expected(outside, inside, -1, threshold)
        else:
            rates[:, t] = _rates(inside, outside, float(threshold), estimate)
    variables = {"tpr": rates[0], "fpr": rates[1], "advantage": rates[0] - rates[1], "state": state_of(*rates)}
    smoothed = plane.drop_vars(["tp", "fp"]).assign(
        {name: (("epoch", "sample"), value) for name, value in variables.items()}
    )
    smoothed.state.attrs["cuts"] = CUTS
    return smoothed.assign_attrs(estimate=estimate)


def _moments(phi: np.ndarray, mask: np.ndarray, per_sample: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean and standard deviation, pooled over samples or of each, of the models in ``mask``, (n,)."""
    count, mean, d = centred(phi, mask, 2)
    square = (d * d).sum(0)
    variance = square / (count - 1) if per_sample else np.full(len(count), square.sum() / (count - 1).sum())
    return count, mean, np.sqrt(np.maximum(variance, FLOOR))


def _rates(inside: tuple, outside: tuple, threshold: float, estimate: str) -> list[np.ndarray]:
    """TPR and FPR of each sample, from count, mean and standard deviation of both sides."""
    (c_in, mu_in, sd_in), (c_out, mu_out, sd_out) = inside, outside
    if estimate == "rao-blackwell":
        # (d c / (c - 1))^2 / v is the square of d over a spread smaller by (c - 1) / c; log v stays what it was
        less_in, less_out = (c_in - 1) / c_in, (c_out - 1) / c_out
        tails = norm(mu_in, sd_in * np.sqrt(less_in)).sf, norm(mu_out, sd_out * np.sqrt(less_out)).sf
        of_members = flagged_share(mu_in, sd_in * less_in, mu_out, sd_out, tails[0])
        of_others = flagged_share(mu_in, sd_in, mu_out, sd_out * less_out, tails[1])
        return [*of_members(threshold - np.log(less_in)), *of_others(threshold + np.log(less_out))]
    if estimate == "shrunken":
        apart, error = mu_in - mu_out, sd_in**2 / c_in + sd_out**2 / c_out
        between = max(apart.var(ddof=1) - error.mean(), 0.0)
        middle = np.average(apart, weights=1 / (between + error))
        mu_in = mu_out + middle + between / (between + error) * (apart - middle)
    tails = norm(mu_in, sd_in).sf, norm(mu_out, sd_out).sf
    return flagged_share(mu_in, sd_in, mu_out, sd_out, *tails)(threshold)


def _expected(own: tuple, other: tuple, sign: int, threshold: float) -> np.ndarray:
    """Rate of the ``own`` side of each sample given both means and variances of its own; ``sign`` is 1 for members."""
    (count, mu, sd), (_, mu_other, sd_other) = own, other
    counts, where = np.unique(count, return_inverse=True)
    share = np.stack([_quantiles(int(c)) for c in counts], 1)[
        :, where
    ]  # of the sum of squares, taken out by the target
    variance = np.maximum(sd**2 * (count - 1) * (1 - share) / (count - 2), FLOOR)
    size = sd * (count - 1) * np.sqrt(share / count)
    rate = np.zeros(len(mu))
    for d in (-size, size):
        away = (d * count / (count - 1)) ** 2 / variance + np.log(variance)
        score = 0.5 * sign * (((mu + d - mu_other) / sd_other) ** 2 + 2 * np.log(sd_other) - away)
        rate += (score > threshold).mean(0) / 2
    return rate


@cache  # every sample with that count needs them, at every checkpoint
def _quantiles(count: int, nodes: int = 200) -> np.ndarray:
    """Of Beta(1/2, (count - 2)/2): midpoints of equal probability."""
    return beta.ppf((np.arange(nodes) + 0.5) / nodes, 0.5, (count - 2) / 2)

"""Trends over data sets and pool sizes: ordered intervals, exact rank tests, fitted curves and what they predict."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

from ..errors import UserError


def directions(table: pd.DataFrame) -> list[str]:
    """From each row (value, low, high) to the next: ``rises``, ``falls``, or ``open`` where the intervals overlap."""
    pairs = itertools.pairwise(table.itertuples())
    return ["rises" if a.high < b.low else "falls" if b.high < a.low else "open" for a, b in pairs]


def rank_trend(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Spearman's rank correlation and the exact one-sided p-value that y rises with x, over all n! orders (n <= 8)."""
    if not 2 <= len(x) <= 8:
        raise UserError(f"an exact rank test takes 2 to 8 points, not {len(x)}.")
    rank = stats.rankdata(x)
    orders = np.array(list(itertools.permutations(stats.rankdata(y))))
    scale = len(x) * rank.std() * orders[0].std()
    if scale == 0:
        return np.nan, 1.0
    rho = (orders - orders.mean()) @ (rank - rank.mean()) / scale
    return float(rho[0]), float((rho >= rho[0] - 1e-9).mean())


@dataclass(frozen=True)
class Law:
    """A curve fitted to values over pool sizes.

    Attributes:
        form: ``power law`` a n^b; ``with ceiling`` M / (1 + 1 / (a n^b)); ``with floor`` c + a n^b.
        exponent, low, high: b, the slope in log-log where neither bound is felt, and its 95 % interval.
        aicc: Akaike's information criterion for small samples, with the standard errors of the values as errors.
        scatter: standard deviation of log value about the curve beyond their standard errors.
        predict: sizes to (3, sizes): the curve and the prediction interval of one population there.
    """

    form: str
    exponent: float
    low: float
    high: float
    aicc: float
    scatter: float
    predict: Callable[[np.ndarray], np.ndarray]


def fit_law(
    sizes: np.ndarray, values: np.ndarray, errors: np.ndarray, form: str = "power law", ceiling: float = 1.0
) -> Law:
    """Fit a curve to positive ``values`` at ``sizes`` by weighted least squares in log-log.

    The variance of a point is that of its standard error (``errors``, (n,)) plus a scatter about the curve, estimated
    so that the weighted squares sum to their degrees of freedom (Paule and Mandel 1982). Intervals take Student's t
    with n minus the number of parameters; that of a prediction includes the scatter. ``ceiling`` is M of that form.
    """
    forms: dict[str, tuple[Callable[..., np.ndarray], int]] = {
        "power law": (lambda x, a, b: a + b * x, 2),
        "with ceiling": (lambda x, a, b: np.log(ceiling) - np.logaddexp(0, -(a + b * x)), 2),
        "with floor": (lambda x, a, b, c: np.logaddexp(a + b * x, c), 3),
    }
    of, parameters = forms[form]
    if len(sizes) <= parameters or len(set(sizes)) < len(sizes) or not (values > 0).all():
        raise UserError(f"the form {form!r} needs more than {parameters} sizes, each once, and positive values.")
    x, y, s = np.log(sizes), np.log(values), errors / values
    start = [*np.polyfit(x, y, 1)[::-1], y.min() - 2][:parameters]

    def fit(scatter: float) -> tuple[np.ndarray, np.ndarray, float]:
        sigma = np.sqrt(s**2 + scatter**2)
        best, covariance = optimize.curve_fit(of, x, y, start, sigma, absolute_sigma=True, maxfev=20000)
        return best, covariance, float((((y - of(x, *best)) / sigma) ** 2).sum())

    free = len(x) - parameters
    _, _, squares = fit(0.0)
    scatter = 0.0 if squares <= free else optimize.brentq(lambda tau: fit(tau)[2] - free, 0, 10 * np.ptp(y) + 1)
    best, covariance, _ = fit(scatter)
    t = stats.t.ppf(0.975, free)
    half = t * np.sqrt(covariance[1, 1])

    def predict(at: np.ndarray) -> np.ndarray:
        at = np.log(np.atleast_1d(at).astype(float))
        step = np.sqrt(np.diag(covariance)) * 1e-4
        slopes = np.stack([(of(at, *(best + d)) - of(at, *(best - d))) for d in np.diag(step)]) / (2 * step[:, None])
        middle = of(at, *best)
        error = t * np.sqrt(np.einsum("in,ij,jn->n", slopes, covariance, slopes) + scatter**2)
        bound = ceiling if form == "with ceiling" else np.inf
        return np.minimum(np.exp([middle, middle - error, middle + error]), bound)

    small = len(x) - parameters - 1
    aicc = squares + 2 * parameters + (2 * parameters * (parameters + 1) / small if small > 0 else np.inf)
    return Law(form, best[1], best[1] - half, best[1] + half, aicc, scatter, predict)

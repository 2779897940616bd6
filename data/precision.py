"""What is left of a figure when a large population is cut into small ones; how many models it needs.

The leave-one-out variance is pooled at every size, so that only the number of models changes, not the attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from scipy import optimize, stats

from dynmia.attack.plane import part_of, vulnerability_planes
from dynmia.attack.scoring import Scoring
from dynmia.book.makers import table_place, write_table
from dynmia.book.tables import SCORINGS, released
from dynmia.cli import Folder
from dynmia.dynamics import cloud as dyn
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import UserError, choose
from dynmia.stats.agreement import overlap, rank_agreement

SIZES = (5, 10, 20, 40, 80)
WANTED = (
    "advantage", "auc", "displacement", "entropy_change", "speed_mean", "vulnerable", "transition_peak", "early_recall",
)  # fmt: skip
AGREEMENT = {  # of one subset with another
    "rank": "Spearman correlation of dynamic vulnerability",
    "flip": "samples whose label 'vulnerable' differs (%)",
    "lost": "vulnerable labels that the other lacks (%)",
}
LEAST = 4  # models: two on each side of the keep mask
MOST = 100_000  # models, beyond which no answer is given
INDEX = ["run", "rule", "models", "partition", "subset"]


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


def measure(
    run: xr.Dataset, sizes: Iterable[int] = SIZES, partitions: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """Score random subsets of the models of ``run`` anew and compare each with the whole and with its neighbour.

    Each partition cuts the models, in random order, into as many disjoint subsets as there are. Samples with fewer than
    two in- or out-models in a subset cannot be scored and are left out of it; who that is depends on the keep mask
    alone. The whole is compared on the samples that are left.

    Args:
        run: a population, large against ``sizes``.
        sizes: models of a subset.
        partitions: of each size; default as many as give 48 subsets, but at least 8.
        seed: of the partitions; each size and partition has a stream of its own.

    Returns:
        Index (rule, models, partition, subset); columns samples (scored), the metrics in ``WANTED`` as errors, subset
        less whole; the measures in ``AGREEMENT`` with suffix ``_full`` and, against the next subset of the partition,
        which shares no model, ``_disjoint``; noise_disjoint, the standard deviation of a sample's final advantage
        between the two (root mean square over samples), and noise_binomial, what independent trials would give. The
        row with all models has the metrics themselves.
    """
    total, sizes = run.sizes["model"], sorted(sizes)
    if not sizes or sizes[0] < LEAST or sizes[-1] >= total:
        raise UserError(f"sizes of subsets must lie from {LEAST} to below the {total} models of the run.")
    whole = _planes(run)
    rows = {(rule, total, 0, 0): {"samples": p.sizes["sample"]} | _metrics(p) for rule, p in whole.items()}
    for models in sizes:
        for partition in range(partitions or max(8, -(-48 // (total // models)))):
            before: dict[str, xr.Dataset] = {}
            for subset, part in enumerate(disjoint_parts(run, models, partition, seed)):
                planes = _planes(part)
                for rule, plane in planes.items():
                    same = whole[rule].sel(sample=plane.sample)
                    error = pd.Series(_metrics(plane)) - pd.Series(_metrics(same))
                    row = {"samples": plane.sizes["sample"], **error} | _agreement(plane, same, "full")
                    if before:
                        row |= _agreement(*_common(before[rule], plane), "disjoint")
                    rows[rule, models, partition, subset] = row
                before = planes
    return pd.DataFrame.from_dict(rows, "index").rename_axis(INDEX[1:])


def disjoint_parts(run: xr.Dataset, models: int, partition: int, seed: int = 0) -> Iterator[xr.Dataset]:
    """The runs of disjoint subsets of ``models`` models each, in an order drawn by seed, size and partition."""
    order = np.random.default_rng([seed, models, partition]).permutation(run.sizes["model"])
    for start in range(0, len(order) - models + 1, models):
        yield part_of(run, np.sort(order[start : start + models]))


def _planes(run: xr.Dataset) -> dict[str, xr.Dataset]:
    return vulnerability_planes(run, [Scoring.of(rule, variance="pooled") for rule in SCORINGS])


def _metrics(plane: xr.Dataset) -> dict[str, float]:
    return {name: float(METRICS[name].of(plane, None)) for name in WANTED}


def _common(a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    both = np.intersect1d(a.sample, b.sample)
    return a.sel(sample=both), b.sel(sample=both)


def _agreement(a: xr.Dataset, b: xr.Dataset, other: str) -> dict[str, float]:
    first, second = (dyn.vulnerable(plane).isel(epoch=-1) for plane in (a, b))
    jaccard = float(overlap(a, b))
    found = {
        f"rank_{other}": float(rank_agreement(a, b)),
        f"flip_{other}": 100 * float((first != second).mean()),
        f"lost_{other}": 100 * (1 - 2 * jaccard / (1 + jaccard)),  # 1 - Dice's index
    }
    if other == "disjoint":
        apart = (a.advantage - b.advantage).isel(epoch=-1)
        expected = [(v / n).mean() for plane in (a, b) for v, n in _trials(plane)]
        found |= {"noise_disjoint": float(((apart**2).mean() / 2) ** 0.5), "noise_binomial": (sum(expected) / 2) ** 0.5}
    return found


def _trials(plane: xr.Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Unbiased p (1 - p) and number of trials of each sample at the last checkpoint, in and out."""
    last = plane.isel(epoch=-1)
    sides = [(last.tpr.values, last.n_in.values), (last.fpr.values, last.n_out.values)]
    return [(p * (1 - p) * n / (n - 1), n) for p, n in sides]


def precision_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Bias and spread of every metric at every number of models, from the rows of one run in :func:`measure`.

    The spread is the standard deviation over independent populations: that between the disjoint subsets of a partition
    (root mean square over partitions), which share no model. Where only one subset fits, it is that over subsets
    divided by sqrt(1 - N / M), the finite-population correction, which is exact for a mean over models and too large
    for what is not additive over them. Errors are over partitions: how sure the figure is for these M models.

    Returns:
        Index (rule, metric, models); columns full (the value with all models), bias, low, high (95 %, of the bias),
        spread, error (standard error of the spread), corrected (whether only one subset fits), subsets.
    """
    rows = {}
    for rule, here in measured.groupby(level="rule", sort=False):
        whole = here.xs(total := max(here.index.get_level_values("models")), level="models").iloc[0]
        for models, part in here.drop(index=total, level="models").groupby(level="models"):
            for name in WANTED:
                errors = part[name].dropna()  # early recall is undefined where nobody ends vulnerable
                groups = errors.groupby(level="partition")
                means, corrected = groups.mean(), 2 * models > total
                squares = (means - means.mean()) ** 2 / (1 - models / total) if corrected else groups.var().dropna()
                middle, half = means.mean(), 1.96 * means.sem()
                spread = np.sqrt(squares.mean())
                error = spread * squares.sem() / (2 * squares.mean() or np.nan)
                rows[rule, name, models] = [
                    whole[name], middle, middle - half, middle + half, spread, error, corrected, len(errors)
                ]  # fmt: skip
    columns = ["full", "bias", "low", "high", "spread", "error", "corrected", "subsets"]
    return pd.DataFrame(
        list(rows.values()), pd.MultiIndex.from_tuples(rows, names=["rule", "metric", "models"]), columns
    )


def spread_law(table: pd.DataFrame, rule: str, metric: str, leave_out: int | None = None) -> Law:
    """The power law a N^b fitted to the uncorrected spreads of a :func:`precision_table`, less one size if wanted."""
    rows = table.loc[choose(rule, table.index.unique("rule"), "rule"), choose(metric, WANTED, "metric"), :]
    rows = rows[~rows.corrected & (rows.index.get_level_values("models") != leave_out)]
    return fit_law(rows.index.get_level_values("models").to_numpy(), rows.spread.to_numpy(), rows.error.to_numpy())


def design_effects(measured: pd.DataFrame) -> pd.Series:
    """Variance of a sample's advantage between disjoint subsets over that of independent trials, by rule and models."""
    squares = measured[["noise_disjoint", "noise_binomial"]].dropna() ** 2
    means = squares.groupby(level=["rule", "models"], sort=False).mean()
    return means.noise_disjoint / means.noise_binomial


def required_shadow_models(
    precision: float,
    *,
    plane: xr.Dataset | None = None,
    design_effect: float = 1.0,
    law: Law | None = None,
    limit: str = "value",
    level: float = 0.95,
) -> int:
    """The number of shadow models for a half-width of ``precision`` of an interval at ``level``.

    Of a sample's advantage (no ``law``), under the assumptions that half of the models are in, that TPR - FPR is normal
    and that its variance is ``design_effect`` times that of independent trials: N = 2 z^2 (v_in + v_out) design_effect
    / precision^2, even. Without ``plane`` v = 1/4, the worst case for one sample; with it the mean of the unbiased
    p (1 - p) over its samples at its last checkpoint, so that the root mean square of the half-widths is met. Select
    samples of the plane to ask for those alone. Trials are not independent: all targets share the errors of the fitted
    in- and out-means, and :func:`design_effects` measures by how much (the design effect of Kish 1965).

    Of a population metric (``law`` from :func:`spread_law`), under the assumption that the spread over populations goes
    on to follow the power law: the smallest N with z a N^b <= precision, in the metric's unit. This is spread alone: a
    bias at that N comes on top.

    Args:
        precision: half-width, of an advantage a number between 0 and 1.
        plane, law: at most one of them.
        design_effect: of a sample's advantage, at least 1.
        limit: ``value`` of the law, or the ``low`` or ``high`` end of its 95 % prediction interval.
        level: confidence.

    Raises:
        UserError: impossible input, or more than ``MOST`` models.
    """
    if not 0 < level < 1 or not 0 < precision < np.inf or (law is None and precision >= 1):
        raise UserError(
            f"precision {precision} at level {level}: the half-width must be above 0, that of an advantage below 1, "
            "and the level between 0 and 1."
        )
    if not 1 <= design_effect < np.inf:
        raise UserError(f"design_effect is {design_effect}: it is at least 1, that of independent trials.")
    if plane is not None and law is not None:
        raise UserError("give a plane (a sample's advantage) or a law (a population metric), not both.")
    z = stats.norm.ppf((1 + level) / 2)
    if law is not None:
        row = ["value", "low", "high"].index(choose(limit, ["value", "low", "high"], "limit"))
        sizes = np.arange(LEAST, MOST + 1)
        enough = z * law.predict(sizes)[row] <= precision
        found = int(sizes[enough.argmax()]) if enough.any() else MOST + 1
    else:
        variance = 0.5 if plane is None else sum(float(v.mean()) for v, _ in _trials(plane))
        found = max(LEAST, 2 * int(min(np.ceil(z**2 * variance * design_effect / precision**2 - 1e-9), MOST)))
    if found > MOST:
        raise UserError(f"a half-width of {precision:g} needs more than {MOST:,} shadow models: ask for less.")
    return found


def main(folder: Folder = "data") -> None:
    """Measure the released populations of chapter 14; two minutes of one core."""
    place, runs = table_place(folder, "precision.csv"), released("14", folder)
    table = pd.concat({name: measure(run) for name, run in runs.items()}, names=INDEX[:1])
    hashes = ", ".join(f"{name} {run.attrs['sha256'][:12]}" for name, run in runs.items())
    versions = f"numpy {np.__version__}, xarray {xr.__version__}"
    write_table(table, place, f"seed 0; {hashes}; {versions}", digits=5)

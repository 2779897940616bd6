"""How wrong are counts, and how wrong the smoothed planes? Bias, variance, mean squared error.

The plane with less noise: TPR and FPR as probabilities under the fitted normal distributions, instead of counts.

At a checkpoint a sample's c in-models have mean m and within-sample variance v. Leave-one-out LiRA scores target
x = m + d against the mean of the others, m - d / (c - 1), so x lies d c / (c - 1) from it, and the score is a quadratic
in d. For a v pooled over many samples, d given m is N(0, v (1 - 1/c)), and the probability that the target is flagged,
given the sample's means, has a closed form. If v is of the sample alone, with sum of squares M2, the share
d^2 c / ((c - 1) M2) is Beta(1/2, (c - 2)/2) given m and M2, and a quadrature over it does. By Rao and Blackwell either
has the expectation of the count and never more variance, if phi is normal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from platform import python_version
from typing import Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr
from scipy.stats import beta, norm

from dynmia.attack.lira import FLOOR, centred, flagged_share
from dynmia.attack.plane import CUTS, state_of, vulnerability_planes
from dynmia.attack.scoring import Scoring
from dynmia.book.makers import table_place, write_table
from dynmia.book.tables import READINGS, RULES
from dynmia.cli import Folder
from dynmia.dynamics.metrics import METRICS
from dynmia.errors import UserError, choose
from dynmia.stats.simulate import Simulator
from dynmia.store.run import boolean, open_run

ESTIMATES = {
    "rao-blackwell": "expectation of the leave-one-out count, given the sample's means (and variances)",
    "plug-in": "both distributions as fitted to all models, taken to be the truth",
    "shrunken": "plug-in, with the separation of the means shrunk towards its mean over samples",
}
COUNTS = "counts"
NOTHING = "no signal"
SCENARIOS = {noise: Simulator(samples=200, checkpoints=2, noise=noise) for noise in ("normal", "heavy", "skewed")} | {
    NOTHING: Simulator(samples=200, checkpoints=2, separation=0.0, spread_in=1.0)
}
POPULATIONS = {10: 100, 20: 100, 40: 100, 128: 24}  # how many are drawn, by their size N
REAL = ("digits-cnn-600-n128", "mnist-cnn-500-n128")
GROUPS = (10, 20, 40)  # models a group of a real population; the variance is pooled
GROUP = 20  # the N that the tables show
ALL = (*READINGS, *RULES)
RATES = ("tpr", "fpr", "advantage")  # of a sample
FIGURES = ("advantage", "displacement", "entropy_change", "vulnerable")  # of METRICS, of a population
INDEX = ["population", "models", "rule", "of", "quantity", "truth", "estimate"]
COLUMNS = ["bias", "sd", "mse", "ratio", "low", "high"]  # and spread


def smooth(
    plane: xr.Dataset, run: xr.Dataset, estimate: str = "rao-blackwell", *, keep: np.ndarray | None = None
) -> xr.Dataset:
    """``plane`` with tpr, fpr and advantage computed from fitted normal distributions instead of counts.

    Assumes that phi is normal over models, with one variance a side if the attack pools it (its error is neglected) or
    one for each sample if the attack does so; and takes the plane's own thresholds as given. What rests on pairs of
    models and samples, AUC and TPR at a pooled FPR, stays as it is. The silhouette takes memory n^2: no rates tie.

    Args:
        plane: of the attack ``lira`` with centre ``mean`` (:func:`dynmia.attack.plane.vulnerability_plane`).
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
    if (plane.attrs["attack"], plane.attrs["centre"]) != ("lira", "mean"):
        raise UserError("only the plane of attack 'lira' with centre 'mean' has a model behind it to smooth with.")
    mask = boolean(run.keep.values if keep is None else keep)
    if not np.array_equal(mask.sum(0), plane.n_in):
        raise UserError("the plane was computed for another keep mask than this one: give smooth() the same.")
    per_sample = Scoring("lira", variance=plane.attrs["variance"]).for_models(len(mask)).variance == "per-sample"
    rates = np.empty((2, *plane.tpr.shape))
    for t, threshold in enumerate(plane.threshold.values):
        phi = np.asarray(run.phi.values[t], np.float64)
        inside, outside = (_moments(phi, side, per_sample) for side in (mask, ~mask))
        if estimate == "rao-blackwell" and per_sample:
            rates[:, t] = _expected(inside, outside, 1, threshold), _expected(outside, inside, -1, threshold)
        else:
            rates[:, t] = _smoothed_rates(inside, outside, float(threshold), estimate)
    variables = {"tpr": rates[0], "fpr": rates[1], "advantage": rates[0] - rates[1], "state": state_of(*rates)}
    smoothed = plane.drop_vars(["tp", "fp"]).assign(
        {name: (("epoch", "sample"), value) for name, value in variables.items()}
    )
    smoothed.state.attrs["cuts"] = CUTS
    return smoothed.assign_attrs(estimate=estimate)


def _moments(phi: np.ndarray, mask: np.ndarray, per_sample: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean and standard deviation, pooled over samples or of each, of the models in ``mask``, (n,)."""
    count, mean, d = centred(phi, mask)
    square = (d * d).sum(0)
    variance = square / (count - 1) if per_sample else np.full(len(count), square.sum() / (count - 1).sum())
    return count, mean, np.sqrt(np.maximum(variance, FLOOR))


def _smoothed_rates(inside: tuple, outside: tuple, threshold: float, estimate: str) -> list[np.ndarray]:
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


def estimates(run: xr.Dataset, rules: Sequence[str] = ALL) -> dict[str, dict[str, xr.Dataset]]:
    """For each rule the plane of counts, and every smoothed plane if the rule reads LiRA."""
    return {
        rule: {COUNTS: plane}
        | {name: smooth(plane, run, name) for name in ESTIMATES if plane.attrs["attack"] == "lira"}
        for rule, plane in vulnerability_planes(run, rules).items()
    }


def simulated(name: str, models: int, populations: int, rules: Sequence[str] = ALL) -> pd.DataFrame:
    """Errors in populations of ``SCENARIOS[name]``, against two truths.

    ``attack``: what the leave-one-out attack with N models attains in expectation, that is the mean of the counts over
    the R populations. An estimate's bias is its mean difference to them, and the square of it is freed from its own
    sampling variance s^2(estimate - counts) / R. ``ideal``: :meth:`dynmia.stats.simulate.Simulator.truth`, likewise
    with s^2(estimate) / R; without a signal no attack is ideal. Rates of a sample are averaged over samples and trained
    checkpoints; figures of a population are compared with those of the true plane.

    Returns:
        Index ``INDEX``; columns ``COLUMNS``: ratio is that of the mean squared error to the one of the counts, with its
        95 % bootstrap interval over samples (rates) or populations (figures); and spread, of rates, the standard
        deviation of the truth over samples, by which errors under different readings can be compared.
    """
    simulator = SCENARIOS[name]
    drawn = [estimates(simulator.run(models, seed), rules) for seed in range(populations)]
    parts = {}
    for rule in rules:
        planes = _together(drawn, rule)
        rates, figures = _rates(planes), _figures(planes)
        counts = planes.sel(estimate=COUNTS, drop=True)
        truths = {"attack": counts.mean("population")}
        if name != NOTHING:
            truths["ideal"] = simulator.truth(rule)
        for truth, exact in truths.items():
            noisy = rates - _rates(counts) if truth == "attack" else rates
            bias, variance = (rates - _rates(exact)).mean("population"), rates.var("population", ddof=1)
            square = bias**2 + variance - noisy.var("population", ddof=1) / populations
            spread = _rates(exact).std("sample").mean("epoch")
            parts[name, models, rule, "sample", truth] = _compared(bias, variance, square, spread)
            bias = figures - _figures(exact.assign(n_in=counts.n_in.isel(population=0)))
            variance = (figures - figures.mean("population")) ** 2
            parts[name, models, rule, "population", truth] = _compared(bias, variance, bias**2)
    return _table(parts)


def measured(name: str, run: xr.Dataset, rules: Sequence[str] = ALL, size: int = GROUP) -> pd.DataFrame:
    """Errors in disjoint groups of ``size`` models of one large real population, against the other groups' counts.

    With r_h the rate that group h counts, and s^2 its variance over the G - 1 groups other than g, the mean squared
    error of estimate e is the mean over g of (e_g - mean r_h)^2 - s^2 / (G - 1): the sampling variance of the reference
    is subtracted. Samples with fewer than 2 in- or out-models in any group are left out.

    Returns:
        As :func:`simulated`, with truth ``others``; rates of a sample only.
    """
    order = np.random.default_rng(0).permutation(run.sizes["model"])
    groups = order[: len(order) // size * size].reshape(-1, size)
    inside = np.stack([run.keep.values[group].sum(0) for group in groups])
    enough = ((inside >= 2) & (size - inside >= 2)).all(0)
    drawn = [estimates(run.isel(model=group, sample=enough), rules) for group in groups]
    parts, many = {}, len(groups)
    for rule in rules:
        rates, squares = _rates(_together(drawn, rule)), []
        counts = rates.sel(estimate=COUNTS, drop=True)
        for g in range(many):
            others = counts.isel(population=[h for h in range(many) if h != g])
            error = rates.isel(population=g) - others.mean("population")
            squares.append(error**2 - others.var("population", ddof=1) / (many - 1))
        bias, variance = (rates - counts).mean("population"), rates.var("population", ddof=1)
        square = xr.concat(squares, "population").mean("population")
        spread = counts.mean("population").std("sample").mean("epoch")
        parts[name, size, rule, "sample", "others"] = _compared(bias, variance, square, spread)
    return _table(parts)


def _together(drawn: Sequence[Mapping[str, Mapping[str, xr.Dataset]]], rule: str) -> xr.Dataset:
    """Planes of all populations under one rule: rates on dims estimate, population, epoch, sample."""
    same: Any = {"coords": "minimal", "compat": "override", "join": "override", "combine_attrs": "drop"}
    names = list(drawn[0][rule])
    each = [xr.concat([planes[rule][e][[*RATES, "n_in"]] for planes in drawn], "population", **same) for e in names]
    return xr.concat(each, pd.Index(names, name="estimate"), **same)


def _rates(plane: xr.Dataset) -> xr.DataArray:
    """``RATES`` at the trained checkpoints, on a dim quantity."""
    return plane[[*RATES]].isel(epoch=slice(1, None)).to_array("quantity")


def _figures(plane: xr.Dataset) -> xr.DataArray:
    """``FIGURES`` of one plane, or of all planes along estimate and population, on a dim quantity."""
    found = {name: METRICS[name].of(plane, None) for name in FIGURES if name != "entropy_change"}
    entropy = METRICS["entropy_change"].of
    if "population" in plane.dims:  # an entropy is of one plane at a time
        each = [
            [float(entropy(plane.isel(estimate=e, population=k), None)) for k in range(plane.sizes["population"])]
            for e in range(plane.sizes["estimate"])
        ]
        found["entropy_change"] = xr.DataArray(each, dims=("estimate", "population"))
    else:
        found["entropy_change"] = entropy(plane, None)
    return xr.Dataset(found).to_array("quantity")


def _compared(
    bias: xr.DataArray, variance: xr.DataArray, square: xr.DataArray, spread: xr.DataArray | None = None
) -> pd.DataFrame:
    """``COLUMNS`` by quantity and estimate: means over samples or populations, and ratios to the counts' square."""
    unit = "sample" if "sample" in square.dims else "population"

    def mean(values: xr.DataArray, *but: str) -> xr.DataArray:
        return values.mean([dim for dim in values.dims if dim not in ("quantity", "estimate", *but)])

    square, size = mean(square, unit), square.sizes[unit]
    times = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), 500)
    mse, drawn = mean(square), xr.dot(square, xr.DataArray(times, dims=("draw", unit)), dim=unit) / size
    below, drawn_below = (x.sel(estimate=COUNTS, drop=True) for x in (mse, drawn))
    known = (below > 0) & (drawn_below.min("draw") > 0)
    low, high = (drawn / drawn_below.where(known)).quantile([0.025, 0.975], "draw", skipna=False)
    columns = mean(bias), mean(variance) ** 0.5, mse, mse / below.where(known), low, high
    table = pd.DataFrame({name: x.to_series() for name, x in zip(COLUMNS, columns)})
    if spread is None:
        return table.assign(spread=np.nan)
    return table.join(spread.to_series().rename("spread"), on="quantity")


def _table(parts: Mapping[tuple, pd.DataFrame]) -> pd.DataFrame:
    keys = ["population", "models", "rule", "of", "truth"]
    return pd.concat(parts, names=keys).reorder_levels(INDEX).sort_index()


def main(folder: Folder = "data") -> None:
    """Measure all populations, simulated and in FOLDER; five minutes of one core."""
    place = table_place(folder, "plane-error.csv")
    parts = [simulated(name, n, many) for name in SCENARIOS for n, many in POPULATIONS.items()]
    parts += [measured(name, open_run(place.parent / f"{name}.nc"), size=size) for name in REAL for size in GROUPS]
    seeds = f"seeds 0 to {max(POPULATIONS.values()) - 1} (populations), 0 (groups, bootstrap)"
    versions = f"Python {python_version()}, numpy {np.__version__}, scipy {scipy.__version__}"
    write_table(pd.concat(parts), place, f"{seeds}; {versions}", digits=5)

"""How wrong are counts, and how wrong the smoothed planes? Bias, variance and mean squared error, and a recommendation.

``python -m dynmia.chapters.smoothing`` measures all populations again and writes ``data/plane-error.csv``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from platform import python_version

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from ..plane import vulnerability_planes
from ..runs import open_run, resolve
from ..simulate import Simulator
from ..smooth import ESTIMATES, smooth
from ..store import write_atomic
from ..summary import METRICS

RULES = ("fpr@0.01", "bayes")
COUNTS = "counts"
NOTHING = "no signal"
SCENARIOS = {noise: Simulator(samples=200, checkpoints=2, noise=noise) for noise in ("normal", "heavy", "skewed")} | {
    NOTHING: Simulator(samples=200, checkpoints=2, separation=0.0, spread_in=1.0)
}
POPULATIONS = {10: 100, 20: 100, 40: 100, 128: 24}  # how many are drawn, by their size N
REAL = ("digits-cnn-600-n128", "mnist-cnn-500-n128")
GROUPS = (10, 20, 40)  # models a group of a real population; the variance is pooled
GROUP = 20  # the N that the tables show
RATES = ("tpr", "fpr", "advantage")  # of a sample
FIGURES = ("advantage", "displacement", "entropy_change", "vulnerable")  # of METRICS, of a population
INDEX = ["population", "models", "rule", "of", "quantity", "truth", "estimate"]
COLUMNS = ["bias", "sd", "mse", "ratio", "low", "high"]
SAFE = 0.01  # the most by which an estimate may shift the mean advantage where there is no signal


def estimates(run: xr.Dataset, rules: Sequence[str] = RULES) -> dict[str, dict[str, xr.Dataset]]:
    """For each rule the plane of counts and every smoothed plane."""
    planes = vulnerability_planes(run, rules)
    return {
        rule: {COUNTS: plane} | {name: smooth(plane, run, name) for name in ESTIMATES} for rule, plane in planes.items()
    }


def simulated(name: str, models: int, populations: int, rules: Sequence[str] = RULES) -> pd.DataFrame:
    """Errors in populations of ``SCENARIOS[name]``, against two truths.

    ``attack``: what the leave-one-out attack with N models attains in expectation, that is the mean of the counts over
    the R populations. An estimate's bias is its mean difference to them, and the square of it is freed from its own
    sampling variance s^2(estimate - counts) / R. ``ideal``: :meth:`dynmia.simulate.Simulator.truth`, likewise with
    s^2(estimate) / R; without a signal no attack is ideal. Rates of a sample are averaged over samples and trained
    checkpoints; figures of a population are compared with those of the true plane.

    Returns:
        Index ``INDEX``; columns ``COLUMNS``: ratio is that of the mean squared error to the one of the counts, with its
        95 % bootstrap interval over samples (rates) or populations (figures).
    """
    simulator = SCENARIOS[name]
    drawn = [estimates(simulator.run(models, seed), rules) for seed in range(populations)]
    rows: dict[tuple, list[float]] = {}
    for rule in rules:
        planes = {e: _together([d[rule][e] for d in drawn]) for e in (COUNTS, *ESTIMATES)}
        found = {quantity: {e: _figure(plane, quantity) for e, plane in planes.items()} for quantity in FIGURES}
        truths = {"attack": planes[COUNTS].mean("population")}
        if name != NOTHING:
            truths["ideal"] = simulator.truth(rule)
        for truth, exact in truths.items():
            exact = exact.assign(n_in=planes[COUNTS].n_in.isel(population=0))
            for quantity in RATES:
                errors: dict[str, Sequence] = {}
                for e, plane in planes.items():
                    noisy = plane[quantity] - (planes[COUNTS][quantity] if truth == "attack" else 0.0)
                    bias = (plane[quantity] - exact[quantity]).mean("population")
                    variance = plane[quantity].var("population", ddof=1)
                    square = bias**2 + variance - noisy.var("population", ddof=1) / populations
                    errors[e] = [part.isel(epoch=slice(1, None)).mean("epoch") for part in (bias, variance, square)]
                rows |= _compared(errors, (name, models, rule, "sample", quantity, truth))
            for quantity in FIGURES:
                value = float(METRICS[quantity].of(exact, None))
                errors = {
                    e: [drew - value, (drew - drew.mean()) ** 2, (drew - value) ** 2]
                    for e, drew in found[quantity].items()
                }
                rows |= _compared(errors, (name, models, rule, "population", quantity, truth))
    return _table(rows)


def measured(name: str, run: xr.Dataset, rules: Sequence[str] = RULES, size: int = GROUP) -> pd.DataFrame:
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
    rows: dict[tuple, list[float]] = {}
    many = len(groups)
    for rule in rules:
        planes = {e: _together([d[rule][e] for d in drawn]).isel(epoch=slice(1, None)) for e in (COUNTS, *ESTIMATES)}
        for quantity in RATES:
            counted = planes[COUNTS][quantity]
            errors: dict[str, Sequence] = {}
            for e, plane in planes.items():
                squares = []
                for g in range(many):
                    others = counted.isel(population=[h for h in range(many) if h != g])
                    mean, spread = others.mean("population"), others.var("population", ddof=1)
                    squares.append((plane[quantity].isel(population=g) - mean) ** 2 - spread / (many - 1))
                shift, variance = (
                    (plane[quantity] - counted).mean("population"),
                    plane[quantity].var("population", ddof=1),
                )
                parts = shift, variance, xr.concat(squares, "population").mean("population")
                errors[e] = [part.mean("epoch") for part in parts]
            rows |= _compared(errors, (name, size, rule, "sample", quantity, "others"))
    return _table(rows)


def table() -> pd.DataFrame:
    """The released errors, ``data/plane-error.csv``."""
    return pd.read_csv(resolve("data/plane-error.csv"), comment="#", index_col=INDEX).sort_index()


def judge(errors: pd.DataFrame) -> pd.DataFrame:
    """Whether each estimate is, at each N and under each rule, better than counts and safe where there is no signal.

    Better: the whole interval of the MSE ratio of a sample's advantage lies below 1, against the attack's own rates in
    every simulated population and against the other groups in the real ones. Safe: without a signal the mean advantage
    is within ``SAFE`` of that of the counts.

    Returns:
        Index (models, rule, estimate); columns lower, cases, best, worst (the extreme ratios), shift (without a
        signal), mean (of the ratios), passes.
    """
    own = errors[errors.index.get_level_values("truth") != "ideal"].xs(
        ("sample", "advantage"), level=["of", "quantity"]
    )
    rows: dict[tuple, list[float]] = {}
    for key, of in own.drop(COUNTS, level="estimate").groupby(["models", "rule", "estimate"]):
        shift, lower = of.xs(NOTHING, level="population").bias.iloc[0], (of.high < 1).sum()
        good = lower == len(of) and abs(shift) <= SAFE
        rows[key] = [lower, len(of), of.ratio.min(), of.ratio.max(), shift, of.ratio.mean(), good]
    columns = ["lower", "cases", "best", "worst", "shift", "mean", "passes"]
    frame = pd.DataFrame.from_dict(rows, "index", columns=columns)
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["models", "rule", "estimate"])
    return frame


def recommended(judged: pd.DataFrame) -> dict[int, str]:
    """For each N the estimate that passes under every rule, of several that with the lowest mean; else ``counts``."""
    found = {}
    for models, part in judged.groupby("models"):
        good = part["passes"].groupby("estimate").all()
        mean = part["mean"].groupby("estimate").mean()[good[good].index]
        found[models] = COUNTS if mean.empty else str(mean.idxmin())
    return found


def verdict(errors: pd.DataFrame) -> list[str]:
    """Sentences, computed from :func:`judge` and the errors themselves."""
    judged = judge(errors)
    best = recommended(judged)
    told = "; ".join(
        f"**{name}** for N = {', '.join(str(n) for n, other in best.items() if other == name)}"
        for name in dict.fromkeys(best.values())
    )
    sentences = [f"For the advantage of a sample the rule below recommends {told}."]
    for name, part in judged.groupby("estimate", sort=False):
        won = [f"{of.lower.sum()} of {of.cases.sum()} cases under `{rule}`" for rule, of in part.groupby("rule")]
        far = part["shift"].abs().idxmax()
        sentences.append(
            f"{name}: a lower error than counts in {' and '.join(won)}; its largest shift without a signal is "
            f"{1000 * part['shift'][far]:.0f} thousandths of advantage (N = {far[0]}, `{far[1]}`)."
        )
    if (name := best.get(GROUP, COUNTS)) != COUNTS:
        part = errors.xs(("population", GROUP, name), level=["of", "models", "estimate"])
        parts = [
            f"{METRICS[quantity].label} lower in {(of.high < 1).sum()}, higher in {(of.low > 1).sum()} of {len(of)}"
            for quantity, of in part.drop(NOTHING, level="population").groupby("quantity")
        ]
        sentences.append(
            f"Figures of a population on the {name} plane at N = {GROUP}, squared error against that on counts "
            f"(populations, rules and truths together): {'; '.join(parts)}."
        )
    return sentences


def _together(planes: Sequence[xr.Dataset]) -> xr.Dataset:
    return xr.concat(
        [plane[[*RATES, "n_in"]] for plane in planes],
        "population",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="drop",
    )


def _figure(planes: xr.Dataset, name: str) -> np.ndarray:
    """A figure of ``METRICS`` of each population."""
    if name == "entropy_change":
        count = planes.sizes["population"]
        return np.array([float(METRICS[name].of(planes.isel(population=k), None)) for k in range(count)])
    return METRICS[name].of(planes, None).values


def _compared(errors: Mapping[str, Sequence], key: tuple) -> dict[tuple, list[float]]:
    """Means of bias, variance and squared error of each estimate, and the ratio of the last to that of the counts."""
    squares = {name: np.asarray(part[2], float) for name, part in errors.items()}
    size, rng, rows = len(squares[COUNTS]), np.random.default_rng(0), {}
    times = rng.multinomial(size, np.full(size, 1 / size), 500)
    below, drawn_below = squares[COUNTS].mean(), times @ squares[COUNTS] / size
    for name, (bias, variance, _) in errors.items():
        ratio, low, high = [np.nan] * 3
        if below > 0 and drawn_below.min() > 0:
            ratio = squares[name].mean() / below
            low, high = np.quantile(times @ squares[name] / size / drawn_below, [0.025, 0.975])
        spread = np.sqrt(float(np.mean(variance)))
        rows[(*key, name)] = [float(np.mean(bias)), spread, squares[name].mean(), ratio, low, high]
    return rows


def _table(rows: Mapping[tuple, list[float]]) -> pd.DataFrame:
    frame = pd.DataFrame.from_dict(rows, "index", columns=COLUMNS)
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=INDEX)
    return frame.sort_index()


if __name__ == "__main__":  # two minutes on one core
    parts = [simulated(name, n, many) for name in SCENARIOS for n, many in POPULATIONS.items()]
    parts += [measured(name, open_run(resolve(f"data/{name}.nc")), size=size) for name in REAL for size in GROUPS]
    made = (
        f"# made by: python -m dynmia.chapters.smoothing; seeds 0 to {max(POPULATIONS.values()) - 1} (populations), 0 "
    )
    made += f"(groups, bootstrap); Python {python_version()}, numpy {np.__version__}, scipy {scipy.__version__}\n"
    write_atomic(resolve("data/plane-error.csv"), (made + pd.concat(parts).to_csv(float_format="%.5g")).encode())

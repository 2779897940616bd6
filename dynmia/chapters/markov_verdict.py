"""What chapter 15 prints and draws: the table over all runs, sentences chosen by stated rules, and its figures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..book import maker
from ..book.cells import cell
from ..book.plots import COLOURS, INK, NULL, log_axis, panels
from .markov import COSTLY, HIDDEN, MATTERS

NULLS = maker("markov").NULLS
LEVEL, TESTS = maker("markov-calibration").LEVEL, maker("markov-calibration").TESTS
DASH = "–"
TIMES = {"ever": "ever vulnerable (%)", "entry": "first entry (epoch)", "stay": "first stay (epochs)"}
READINGS = {
    "whole": "the matrices may be multiplied: what order 1 misses is small",
    "costly": "a matrix describes its own step; products of them serve as a rough guide, with the error stated above",
    "description": "a matrix describes its own step and no more: times, stays and forecasts are to be counted, not "
    "computed from it",
}
SHADES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]


def interval(row: pd.Series, name: str, digits: int = 1) -> str:
    """``value [low, high]`` of a column of the table, or a dash where it is not defined or infinite."""
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    return cell(value, low, high, digits) if np.isfinite([value, low, high]).all() else DASH


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """One row a run of ``table`` (one decision rule of :func:`dynmia.chapters.markov.measure`), as it is printed."""
    rows = {}
    for _, row in table.iterrows():
        times = {
            f"{words}: {source}": interval(row, f"{source}_{name}")
            for name, words in TIMES.items()
            for source in ("observed", "chain")
        }
        rows[row.run] = {
            "order 1: p": f"{row.p_lr:.3f}",
            "extra bits": interval(row, "bits", 3),
            "in % of what is open": interval(row, "share"),
            "no signal (%)": f"{row.noise_share:.1f}",
            "CK distance (%), by chance, p": f"{100 * row.ck:.1f}, {100 * row.ck_null:.1f}, {row.p_ck:.3f}",
            "one matrix: p": f"{row.p_homogeneous:.3f}",
            **times,
            "one matrix for ever: epochs to V": interval(row, "hitting", 0),
        }
    return pd.DataFrame.from_dict(rows, "index").rename_axis("run")


def rates(calibration: pd.DataFrame) -> pd.DataFrame:
    """How often the tests reject true chains, in percent with a 95 % interval (normal limit of the binomial)."""

    def text(row: pd.Series) -> str:
        half = 1.96 * np.sqrt(row.rate * (1 - row.rate) / row.chains)
        return cell(100 * row.rate, 100 * max(row.rate - half, 0), 100 * min(row.rate + half, 1))

    words = {"lr": "likelihood ratio", "pooled": "likelihood ratio, pooled", "ck": "Chapman-Kolmogorov"}
    shown = calibration.assign(
        chain=[f"{row.run}, n = {row.samples:,}" for row in calibration.itertuples()],
        statistic=calibration.statistic.map(words), test=calibration.test.map(TESTS),
        rate=calibration.apply(text, axis=1),
    )  # fmt: skip
    wide = shown.pivot(index=["chain", "statistic"], columns="test", values="rate")
    return wide[[name for name in TESTS.values() if name in wide]].fillna(DASH)


def holds(rate: pd.Series, chains: pd.Series) -> pd.Series:
    """Whether a rejection rate lies within two standard errors of ``LEVEL``."""
    return (rate - LEVEL).abs() <= 2 * np.sqrt(LEVEL * (1 - LEVEL) / chains)


def reading(table: pd.DataFrame) -> str:
    """``whole``, ``costly`` or ``description``: what the matrices of these runs may be used for.

    ``whole`` if memory matters (``matters``) and chains are off by ``COSTLY`` percent each in fewer than half of the
    runs; ``description`` if both are so in half of them or more; ``costly`` in between.
    """
    many = [share >= 0.5 for share in (matters(table).mean(), (table.off.dropna().abs() >= COSTLY).mean())]
    return "description" if all(many) else "costly" if any(many) else "whole"


def matters(table: pd.DataFrame) -> pd.Series:
    """Whether the whole interval of what the state before adds lies above ``MATTERS`` percent."""
    return table.share_low > MATTERS


def calibration_verdict(calibration: pd.DataFrame) -> str:
    """Which tests hold their level on true chains."""
    parts = []
    for test, words in TESTS.items():
        part = calibration[calibration.test == test]
        good = int(holds(part.rate, part.chains).sum())
        low, high = 100 * part.rate.min(), 100 * part.rate.max()
        parts.append(f"{words} {low:.1f} to {high:.1f} % ({good} of {len(part)} within two standard errors of 5 %)")
    exact = calibration[calibration.test == "exact"]
    return (
        f"At the 5 % level true Markov chains are rejected by: {'; '.join(parts)}. The exact test rejects "
        f"{100 * exact.rate.mean():.1f} % over all cases; its p-values are the ones used here."
    )


def run_verdict(table: pd.DataFrame, rule: str) -> list[str]:
    """Sentences on all runs under one decision rule."""
    table = table[table.entropy > 0]
    n, many = len(table), int(matters(table).sum())
    rejected = {name: int((table[name] <= LEVEL).sum()) for name in ("p_lr", "p_ck", "p_homogeneous")}
    noisy, known = int((table.noise_p <= LEVEL).sum()), table[table.noise_share.notna()]
    alike = int((known.noise_share >= known.share_low).sum())
    off = table[table.off.notna()]
    apart = int(((off.off_low > 0) | (off.off_high < 0)).sum())
    gaps = {name: (off[f"chain_{name}"] - off[f"observed_{name}"]).median() for name in ("entry", "stay")}
    pooled = (100 * (off.pooled_ever / off.observed_ever - 1)).median()
    lines = [
        f"order 1 is rejected in {rejected['p_lr']} of {n} runs by the likelihood ratio and in "
        f"{rejected['p_ck']} by Chapman-Kolmogorov; one matrix for all checkpoints in {rejected['p_homogeneous']}.",
        f"the state before the present one takes away {table.share.min():.1f} to {table.share.max():.1f} % "
        f"of what is open about the next (median {table.share.median():.1f} %). By our rule (whole interval above "
        f"{MATTERS:g} %) that matters in {many} of {n} runs.",
        f"without any signal order 1 is rejected too, in {noisy} of {n} runs (in at least one of {NULLS} "
        f"redraws). Noise adds {table.noise_bits.median():.3f} bits a transition, the runs {table.bits.median():.3f} "
        f"(medians), and in {alike} of the {len(known)} runs where the noise moves samples at all, its share is at "
        "least the lower bound of the run's own: "
        + (
            "per unit of movement, memory is as much a property of asking the same models again as of membership."
            if alike >= len(known) / 2
            else "per unit of movement, there is more memory where membership is encoded."
        ),
        f"read as a chain with a matrix a checkpoint, the share of samples ever vulnerable is off by "
        f"{off.off.min():+.1f} to {off.off.max():+.1f} % (median {off.off.median():+.1f} %; zero is outside the "
        f"interval in {apart} of {len(off)} runs), the first entry by {gaps['entry']:+.1f} epochs and the first stay "
        f"by {gaps['stay']:+.1f} epochs (medians); with one matrix for all checkpoints, the share by {pooled:+.1f} %.",
        f"hence {READINGS[reading(table)]}.",
    ]
    return [f"`{rule}`: {line}" for line in lines]


def curve_verdict(curves: pd.DataFrame, intervals: Mapping[str, pd.DataFrame], table: pd.DataFrame) -> list[str]:
    """Sentences on what noise alone does, beside the runs of ``table``, and on the distance of checkpoints."""
    hidden = curves[curves.curve == HIDDEN].set_index("models")
    seen = hidden[np.isfinite(hidden.index)]
    bare, above = hidden.loc[np.inf], int((table.share_low > seen.high.max()).sum())
    parts = [
        f"A true chain without noise {'is rejected' if bare.p <= LEVEL else 'passes'} (p = {bare.p:.2f}, "
        f"{bare.share:.1f} %). Seen through {seen.index[0]:g} to {seen.index[-1]:g} models it is rejected in "
        f"{int((seen.p <= LEVEL).sum())} of {len(seen)} cases, with up to {seen.share.max():.1f} % of what is open. "
        f"The whole interval lies above that in {above} of {len(table)} runs: "
        + (
            "noise drawn anew at each checkpoint, on a chain like this one, is not enough to explain them."
            if above >= len(table) / 2
            else "a rejection does not show that the truth has memory."
        )
    ]
    words: dict[str, list[str]] = {"falls": [], "rises": [], "does not change measurably": []}
    for name, part in curves[np.isfinite(curves.models)].groupby("curve", sort=False):
        first, last = part.iloc[0], part.iloc[-1]
        key = "falls" if last.high < first.low else "rises" if last.low > first.high else "does not change measurably"
        words[key].append(f"{name} ({first.share:.1f} to {last.share:.1f} %)")
    told = "; ".join(f"{key}: {', '.join(names)}" for key, names in words.items() if names)
    parts.append(f"From the fewest to the most models, what the state before adds {told}.")
    ends = {name: (part.iloc[0], part.iloc[-1]) for name, part in intervals.items()}
    falls = sum(last.high < first.low for first, last in ends.values())
    told = ", ".join(
        f"{name} {a.share:.1f} % at {a.epochs:g} and {b.share:.1f} % at {b.epochs:g}" for name, (a, b) in ends.items()
    )
    parts.append(f"With checkpoints further apart (epochs) memory falls in {falls} of {len(ends)} runs: {told}.")
    return parts


def verdict(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """All sentences of :func:`run_verdict`, rule by rule."""
    return [line for rule, table in tables.items() for line in run_verdict(table, rule)]


def _colour(run: str) -> str:
    return next((shade for name, shade in COLOURS.items() if run.startswith(name)), COLOURS["digits"])


def overview(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What the state before adds, run by run under the first rule; observed against chain for all rules."""
    rule, table = next(iter(tables.items()))
    table = table[table.share.notna()].sort_values("share")
    with panels(1, 2, (10.5, 0.19 * len(table) + 1.3), width_ratios=[1.2, 1]) as (figure, [[left, right]]):
        at, colours = np.arange(len(table)), [_colour(run) for run in table.run]
        left.hlines(at, table.share_low, table.share_high, color=colours, lw=1.4)
        left.scatter(table.share, at, s=16, color=colours, zorder=2.5)
        left.plot(table.noise_share, at, "|", color=NULL, ms=9, mew=2, label="no signal")
        left.axvline(MATTERS, color=INK, lw=0.9, ls=":", label="from here on it matters")
        left.axvline(0, color=INK, lw=0.6)
        left.set_yticks(at, table.run, fontsize=7)
        left.set(xlabel="taken away by the state before (% of what is open)", title=f"memory, {rule}")
        left.set_ylim(-3.5, len(table))
        left.legend(loc="lower right")
        for (name, part), mark in zip(tables.items(), "os"):
            hollow = {"mfc": "none"} if mark == "s" else {}
            for row in part.itertuples():
                right.plot(row.observed_ever, row.chain_ever, mark, color=_colour(row.run), ms=5, **hollow)
            right.plot([], [], mark, color=INK, label=name, **hollow)
        right.plot([0, 100], [0, 100], color=INK, lw=0.9, ls=":")
        right.set(xlabel="ever vulnerable, observed (%)", ylabel="ever vulnerable, by the chain (%)", title="its cost")
        right.legend()
    return figure


def curve_panels(noise: pd.DataFrame, intervals: Mapping[str, pd.DataFrame]) -> Figure:
    """What the state before adds against the number of models, and against the distance of checkpoints."""
    with panels(1, 2, (10, 3.6), sharey=True) as (figure, [[left, right]]):
        ticks = sorted(noise.models[np.isfinite(noise.models)].unique())
        last = 2 * ticks[-1]  # where the truth is drawn
        for (name, part), shade, mark in zip(noise.groupby("curve", sort=False), SHADES, "osD^"):
            seen, at = np.isfinite(part.models), part.models.replace(np.inf, last)
            left.plot(at[seen], part.share[seen], color=shade, lw=1.2)
            left.vlines(at, part.low, part.high, color=shade, lw=1.2)
            left.plot(at, part.share, mark, color=shade, ms=4.5, label=name)
        log_axis(left, [*ticks, last], [*(f"{tick:g}" for tick in ticks), "no noise"])
        left.set(
            xlabel="models", ylabel="taken away by the state before\n(% of what is open)", title="measurement noise"
        )
        for (name, part), mark in zip(intervals.items(), "osD^"):
            right.vlines(part.epochs, part.low, part.high, color=_colour(name), lw=1.2)
            right.plot(part.epochs, part.share, mark + "-", color=_colour(name), ms=4.5, lw=1.2, label=name)
        right.set(xlabel="distance of checkpoints (epochs)", title="checkpoint interval")
        left.set_ylim(top=1.35 * max(part.high.max() for part in (noise, *intervals.values())))
        for axis in (left, right):
            axis.axhline(MATTERS, color=INK, lw=0.9, ls=":")
            axis.axhline(0, color=INK, lw=0.6)
            axis.legend(loc="upper right")
    return figure

"""What the definitions decide: which conclusions of the study hold under every choice of its definitions.

A conclusion is a list of margins that must all be positive: a value less a multiple of another run's, less a bound. It
*holds* if the 95 % interval of every margin lies above zero, *does not hold* if that of one lies below (at the level of
Bonferroni over the margins), and is *not resolved* otherwise or where a margin is undefined.

``python -m dynmia.chapters.sensitivity [folder]`` makes ``sensitivity.csv`` from the runs in ``folder``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import pandas as pd

from ..book.tables import script
from ..errors import UserError
from ..stats.resample import null_masks
from ..store.run import open_run, resolve
from ._shared import release, released
from .definitions import BALANCED, DEPENDS, MAIN, REFERENCE, RUNS, SEEDS, SMALL, Choice, choices, interval, measure


@dataclass(frozen=True)
class Claim:
    """A conclusion: every margin, value of ``a`` - ``factor`` x value of ``b`` - ``bound``, is positive.

    Attributes:
        text: what it says.
        metric: that it is about.
        margins: (a, b, factor, bound); b is empty where there is no second run.
        noise: the bound is the largest no-signal value of ``a``, if that is above ``bound``.
    """

    text: str
    metric: str
    margins: tuple[tuple[str, str, float, float], ...]
    noise: bool = False

    @property
    def runs(self) -> list[str]:
        """Names of the runs, each once."""
        return list(dict.fromkeys(run for margin in self.margins for run in margin[:2] if run))

    def under(self, design: str) -> list[tuple[str, str, float, float]]:
        """The margins, with the run ``design`` for a claim of CIFAR-10 alone, or in place of the run of that pool."""
        old = MAIN if self.runs == [MAIN] else SMALL
        if not design:
            return list(self.margins)
        swapped = [(*(design if run == old else run for run in m[:2]), *m[2:]) for m in self.margins]
        return swapped if old in self.runs else []  # type: ignore[return-value]


def _rising(*runs: str) -> tuple[tuple[str, str, float, float], ...]:
    return tuple((b, a, 1.0, 0.0) for a, b in pairwise(runs))


def _above(bound: float, *runs: str) -> tuple[tuple[str, str, float, float], ...]:
    return tuple((run, "", 0.0, bound) for run in runs)


DEEP, SGD, SAM = "cifar10-baseline", "cifar10-cnn-2000-sgd", "cifar10-cnn-2000-sam-0.1"
_POOLS = {data: [f"{data}-cnn-{size}" for size in (4000, 2000, 1000, 500)] for data in ("mnist", "cifar10")}
_ORDER = "MNIST < Fashion-MNIST < CIFAR-10 < CINIC-10"
CLAIMS = [
    Claim(f"AUC: {_ORDER}", "auc", _rising(*RUNS.values())),
    Claim(f"displacement: {_ORDER}", "displacement", _rising(*RUNS.values())),
    Claim(f"entropy change: {_ORDER}", "entropy_change", _rising(*RUNS.values())),
    Claim(f"vulnerable: {_ORDER}", "vulnerable", _rising(*RUNS.values())),
    Claim("entropy rises more than without a signal: MNIST", "entropy_change", _above(0.0, RUNS["mnist"]), noise=True),
    Claim("entropy rises more than without a signal: CIFAR-10", "entropy_change", _above(0.0, MAIN), noise=True),
    Claim("more vulnerable than without a signal: MNIST", "vulnerable", _above(0.0, RUNS["mnist"]), noise=True),
    Claim("more vulnerable than without a signal: CIFAR-10", "vulnerable", _above(0.0, MAIN), noise=True),
    Claim("mean speed: CINIC-10 above twice MNIST", "speed_mean", ((RUNS["cinic10"], RUNS["mnist"], 2.0, 0.0),)),
    Claim("peak transition: CIFAR-10 above MNIST", "transition_peak", _rising(RUNS["mnist"], MAIN)),
    Claim("displacement: deeper CNN above shallow", "displacement", _rising(MAIN, DEEP)),
    Claim("displacement falls with the pool: MNIST", "displacement", _rising(*_POOLS["mnist"])),
    Claim("displacement falls with the pool: CIFAR-10", "displacement", _rising(*_POOLS["cifar10"])),
    Claim("the paper's: peak transition of SAM (rho 0.1) below SGD", "transition_peak", _rising(SAM, SGD)),
    Claim("over 70 % recall at 3/8: CIFAR-10", "early_recall", _above(70.0, MAIN)),
    Claim("over 70 % recall at 3/8: deeper CNN", "early_recall", _above(70.0, DEEP)),
]
OUTCOMES = ["does not apply", "does not hold", "not resolved", "holds"]
PATH = "sensitivity.csv"
INDEX = ["run", "choice", "metric"]


def compute(folder: str | os.PathLike[str] = "data", draws: int = 400, null: int = 200) -> pd.DataFrame:
    """Every metric and every margin under every choice, from the runs in ``folder``; minutes.

    Returns:
        Index (run, choice, metric), where a margin has its name (:func:`margin_name`) as run; columns value, low, high,
        and null_low, null_high, the range over ``null`` redrawn keep masks where they were drawn.

    Raises:
        UserError: one of the four data sets has no run there.
    """
    claimed: dict[str, set[str]] = {}
    for claim in CLAIMS:
        for name in claim.runs:
            claimed.setdefault(name, set()).add(claim.metric)
    names = dict.fromkeys([*claimed, *SEEDS, BALANCED])
    paths = {name: resolve(folder) / f"{name}.nc" for name in names}
    if absent := [name for name in RUNS.values() if not paths[name].exists()]:
        raise UserError(f"{folder} lacks {', '.join(absent)}: train them by dynmia campaign --only 02.")
    found, noise, rows = {}, {}, {}
    among = choices(open_run(paths[MAIN]))
    for name, path in paths.items():
        if not path.exists():
            continue
        run = open_run(path)
        whole = name in RUNS.values() or name in (*SEEDS, BALANCED)
        wanted = [REFERENCE] if name in SEEDS[1:] else among
        found[name] = measure(run, wanted, draws, only=DEPENDS["reference"] if whole else claimed[name])
        if name in (RUNS["mnist"], MAIN, SMALL, BALANCED):
            masks = null_masks(run, null)
            noise[name] = pd.concat([measure(run, among, 0, keep=keep) for keep in masks])
        for label, metric in found[name].columns:
            rows[name, label, metric] = interval(found[name][label, metric], metric)
            if name in noise:
                chance = noise[name][label, metric]
                rows[name, label, metric] |= {"null_low": chance.min(), "null_high": chance.max()}
    for claim, choice in product(CLAIMS, among):
        key = (REFERENCE.label if choice.run else choice.label, claim.metric)
        for a, b, factor, bound in claim.under(choice.run):
            if all(name in found and key in found[name] for name in (a, b) if name):
                least = max(bound, noise[a][key].max()) if claim.noise else bound
                drawn = found[a][key] - (factor * found[b][key] if b else 0) - least
                name = margin_name((a, b, factor, bound), claim.noise)
                rows[name, choice.label, claim.metric] = interval(drawn, claim.metric, len(claim.margins))
    return pd.DataFrame.from_dict(rows, "index").rename_axis(INDEX)


def margin_name(margin: tuple[str, str, float, float], noise: bool = False) -> str:
    """``a - 2 b``, ``a - 70`` or ``a - no signal``."""
    a, b, factor, bound = margin
    return f"{a} - " + ("no signal" if noise else f"{factor:g} {b}" if b else f"{bound:g}")


def outcomes(table: pd.DataFrame, among: Sequence[Choice]) -> pd.DataFrame:
    """One of ``OUTCOMES`` for every claim (rows, by text) under every choice (columns, by label)."""
    words = {}
    for claim, choice in product(CLAIMS, among):
        keys = [(margin_name(m, claim.noise), choice.label, claim.metric) for m in claim.under(choice.run)]
        outcome = 0
        if keys and all(key in table.index for key in keys):
            margins = table.loc[keys]
            outcome = 1 if (margins.high < 0).any() else 3 if (margins.low > 0).all() else 2
        words[claim.text, choice.label] = OUTCOMES[outcome]
    return pd.Series(words).unstack(sort=False).rename_axis("conclusion")


REASONS = {  # (metric, kind of choice): why it decides
    ("entropy_change", "rule"): "a looser rule spreads the cloud before training begins, and gathers it in the corner",
    ("entropy_change", "grid"): "a coarse grid leaves few cells to spread to, so the hard sets come close",
    ("speed_mean", "rule"): "speed counts the jitter of a rate as movement, and a looser rule lets more of it through",
    ("transition_peak", "interval"): "the peak is that of one step, and longer steps cut training elsewhere",
    ("early_recall", "rule"): "a looser rule flags a member as soon as it is a little more likely in than out",
    ("early_recall", "variance"): "a variance from about ten values adds jitter, and jitter leaves the corner",
    ("early_recall", "centre"): "a median of about ten values is less sure than their mean",
    ("early_recall", "cuts"): "a smaller corner is entered later",
    ("early_recall", "interval"): "the last checkpoint before 3/8 of training is an earlier one",
    ("early_recall", "design"): "the pool is smaller too, so the two designs are to be set beside each other",
}  # fmt: skip


def verdict(words: pd.DataFrame, among: Sequence[Choice]) -> list[str]:
    """Sentences, computed: what survives all choices, what none of ours shows, and what each other one depends on.

    Args:
        words: from :func:`outcomes`.
    """
    kind, metric = {choice.label: choice.kind for choice in among}, {claim.text: claim.metric for claim in CLAIMS}
    asked = {str(text): row[row != OUTCOMES[0]] for text, row in words.iterrows() if (row != OUTCOMES[0]).any()}
    firm = {text: row for text, row in asked.items() if (row == "holds").all()}
    lines = [
        f"{len(firm)} of {len(asked)} conclusions hold under every choice that applies to them: "
        f"{'; '.join(f'{text} ({len(row)})' for text, row in firm.items()) or 'none'}. In brackets: how many choices "
        "apply."
    ]
    for text in (text for text in asked if text not in firm):
        row = asked[text]
        under = {word: ", ".join(row.index[row == word]) for word in ("does not hold", "not resolved")}
        kinds = dict.fromkeys(kind[str(label)] for label in row.index[row != row.get(REFERENCE.label)])
        reasons = [REASONS[metric[text], k] for k in kinds if (metric[text], k) in REASONS]
        lines.append(
            f"{text[0].upper()}{text[1:]}: holds under {(row == 'holds').sum()} of {len(row)}; "
            f"{'; '.join(f'{word} under {labels}' for word, labels in under.items() if labels)}."
            + (f" Why, as we read it: {'; '.join(reasons)}." if reasons else "")
        )
    return lines


def main(folder: str = "data") -> None:
    """Write ``sensitivity.csv`` into ``folder``."""
    release(compute(folder), PATH, f"sensitivity {folder}; bootstrap and permutation seed 0", folder)


def read(folder: str | os.PathLike[str] = "data") -> pd.DataFrame:
    """The table that :func:`main` wrote."""
    return released(PATH, f"sensitivity {folder}", folder, INDEX)


if __name__ == "__main__":
    script(main, PATH)

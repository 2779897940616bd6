"""What the definitions decide: which conclusions of the study hold under every choice of its definitions.

A conclusion is a list of margins that must all be positive. It *holds* if the 95 % interval of every margin lies above
zero, *does not hold* if that of one lies below (at the level of Bonferroni over the margins), and is *not resolved*
otherwise or where a margin is undefined.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pandas as pd

from ..book import maker

made = maker("sensitivity")
CLAIMS, REFERENCE, margin_name = made.CLAIMS, made.REFERENCE, made.margin_name
OUTCOMES = ["does not apply", "does not hold", "not resolved", "holds"]


def outcomes(table: pd.DataFrame, among: Sequence[Any]) -> pd.DataFrame:
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


def verdict(words: pd.DataFrame, among: Sequence[Any]) -> list[str]:
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

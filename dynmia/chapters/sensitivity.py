"""What the definitions decide: which conclusions of the study hold under every choice of its definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..book import maker

OUTCOMES = ["does not apply", "opposite", "undecided", "holds"]
HOLDS = ("agrees", "agrees elsewhere", "same direction", "present")  # of the verdicts of data/claims.py


def outcomes(table: pd.DataFrame, among: Sequence[Any]) -> pd.DataFrame:
    """One of ``OUTCOMES`` for every conclusion (rows, by sentence) under every choice (columns, by label).

    Args:
        table: ``sensitivity.csv``, whose verdicts these are; one that is undefined is undecided.
        among: the choices.
    """
    verdicts = table.verdict.dropna().droplevel("metric").unstack("choice")
    sentences = {claim.id: claim.sentence for claim in maker("claims").claims() if claim.id in verdicts.index}
    words = verdicts.reindex(index=list(sentences), columns=[choice.label for choice in among])
    words = words.replace(dict.fromkeys(HOLDS, "holds")).replace("not measured", "undecided").fillna("does not apply")
    return words.rename(index=sentences).rename_axis("conclusion").rename_axis(columns=None)

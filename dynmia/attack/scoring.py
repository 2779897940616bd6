"""How a population is scored: the attack, the reading of its scores as decisions, and the options of LiRA.

The names of all of them are here, so that a wrong one is refused before anything is read or computed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..errors import UserError, choose

LIRA = {
    "online": "log N(phi; in) - log N(phi; out)",
    "offline-cdf": "log P(Z <= phi), Z ~ out: the one-sided test of the paper by Carlini et al.",
    "offline-density": "-log N(phi; out): the two-sided density of their code",
}
ATTACKS = LIRA | {
    "loss": "minus the cross-entropy loss (Yeom et al. 2018)",
    "shokri": "log-odds of an attack classifier a class (Shokri et al. 2017)",
    "rmia": "share of the population that the sample dominates (Zarifzadeh et al. 2024)",
    "rmia-offline": "the same from out-models only",
}
LOG_ODDS = ("online", "shokri")  # attacks whose score is a log-odds, so that 0 is a threshold
MANY = 64  # models, from which each sample has a variance of its own


@dataclass(frozen=True)
class Scoring:
    """An attack and how its scores are read; checked when it is made.

    Attributes:
        attack: one of ``ATTACKS``.
        reading: ``fpr@a``, one threshold a checkpoint so that the false-positive rate pooled over all models and
            samples is a; or ``bayes``, score > 0, for attacks whose score is a log-odds.
        centre: of LiRA: ``mean`` or ``median`` of the other models.
        variance: of LiRA: ``pooled`` over samples (in and out separately), ``per-sample`` (unbiased, c' - 1 degrees of
            freedom), or ``auto`` (:meth:`for_models`).

    Raises:
        UserError: an unknown name, or a reading that the attack does not have.
    """

    attack: str = "online"
    reading: str = "fpr@0.01"
    centre: str = "mean"
    variance: str = "auto"

    def __post_init__(self) -> None:
        choose(self.attack, ATTACKS, "attack")
        choose(self.centre, ["mean", "median"], "centre")
        choose(self.variance, ["auto", "pooled", "per-sample"], "variance")
        if level_of(self.reading) is None and self.attack not in LOG_ODDS:
            raise UserError(
                f"rule 'bayes' needs attack {' or '.join(map(repr, LOG_ODDS))}, not {self.attack!r}: use fpr@0.01."
            )

    @classmethod
    def of(cls, scoring: Scoring | str) -> Scoring:
        """``scoring`` itself, or that of the study with the reading of this name."""
        return scoring if isinstance(scoring, cls) else cls(reading=str(scoring))

    def for_models(self, models: int) -> Scoring:
        """The scoring with what ``auto`` means for so many models: pooled below 64. Parts keep that of the whole."""
        if self.variance != "auto":
            return self
        return replace(self, variance="pooled" if models < MANY else "per-sample")

    @property
    def least(self) -> int:
        """Models on each side that a sample needs, its target among them, to be scored."""
        return 3 if self.variance == "per-sample" else 2


def level_of(reading: str) -> float | None:
    """The level a of ``fpr@a``; None for ``bayes``."""
    if reading == "bayes":
        return None
    match = re.fullmatch(r"fpr@(\d*\.?\d+(?:e-?\d+)?)", str(reading))
    level = float(match[1]) if match else 0.0
    if not 0 < level < 1:
        raise UserError(
            f"unknown decision rule {reading!r}: use bayes, or fpr@a with a between 0 and 1, like fpr@0.01."
        )
    return level


STUDY = Scoring()  # what the study uses unless a page says otherwise

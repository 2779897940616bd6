"""How a population is scored: the attack, the reading of its scores as decisions, and the options of LiRA.

The names of all of them are here, so that a wrong one is refused before anything is read or computed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..errors import UserError, choose

MODERATED = {
    "moderated": "LiRA with moderated means and variances, the study's attack (dynmia.attack.moderated)",
    "moderated-offline": "log P(T <= phi), T ~ out with a moderated variance: from out-models only",
    "bavaria": "LiRA with moderated variances and Student's t (Brännvall 2026)",
}
LIRA = {
    "lira": "log N(phi; in) - log N(phi; out) (Carlini et al. 2022)",
    "offline-cdf": "log P(Z <= phi), Z ~ out: the one-sided test of the paper by Carlini et al.",
    "offline-density": "-log N(phi; out): the two-sided density of their code",
}
ATTACKS = MODERATED | LIRA | {
    "loss": "minus the cross-entropy loss (Yeom et al. 2018)",
    "shokri": "log-odds of an attack classifier a class (Shokri et al. 2017)",
    "rmia": "share of the population that the sample dominates (Zarifzadeh et al. 2024)",
    "rmia-offline": "the same from out-models only",
}  # fmt: skip
ALIASES = {"online": "lira"}
LOG_ODDS = ("moderated", "bavaria", "lira", "shokri")  # attacks whose score is a log-odds: 0 is a threshold
MANY = 64  # models, from which LiRA gives each sample a variance of its own


@dataclass(frozen=True)
class Scoring:
    """An attack and how its scores are read; checked when it is made.

    Attributes:
        attack: one of ``ATTACKS``; ``online`` is another name of ``lira``.
        reading: how a score becomes a decision "member".
            ``posterior``: with the probability p = 1 / (1 + exp(-score)), what an attacker believes who takes inclusion
            for as likely as not; no threshold, and a score without information is read as 1/2.
            ``bayes``: if p > 1/2. ``fpr@a``: above the threshold of the checkpoint at which the false-positive rate
            pooled over all models and samples is a. The first two are for attacks whose score is a log-odds; without
            a name it is ``posterior`` for them, and ``fpr@0.01`` for the others.
        centre: of LiRA: ``mean`` or ``median`` of the other models.
        variance: of LiRA: ``pooled`` over samples (in and out separately), ``per-sample`` (unbiased, c' - 1 degrees of
            freedom), or ``auto`` (:meth:`for_models`).

    Raises:
        UserError: an unknown name, or a reading that the attack does not have.
    """

    attack: str = "moderated"
    reading: str = ""
    centre: str = "mean"
    variance: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "attack", ALIASES.get(self.attack, self.attack))
        choose(self.attack, ATTACKS, "attack")
        if not self.reading:
            object.__setattr__(self, "reading", "posterior" if self.attack in LOG_ODDS else "fpr@0.01")
        choose(self.centre, ["mean", "median"], "centre")
        choose(self.variance, ["auto", "pooled", "per-sample"], "variance")
        if level_of(self.reading) is None and self.attack not in LOG_ODDS:
            raise UserError(
                f"reading {self.reading!r} needs a score that is a log-odds, of attack "
                f"{', '.join(map(repr, LOG_ODDS[:-1]))} or {LOG_ODDS[-1]!r}, not {self.attack!r}: use fpr@0.01."
            )

    @classmethod
    def of(cls, scoring: Scoring | str, **options: str) -> Scoring:
        """What a text names: a reading of the study's attack, of another, ``lira:bayes``, or that attack, ``lira``."""
        if isinstance(scoring, cls):
            return replace(scoring, **options) if options else scoring
        attack, _, reading = str(scoring).rpartition(":")
        if not attack and reading in (*ATTACKS, *ALIASES):
            return cls(reading, **options)
        level_of(reading)
        return cls(attack or STUDY.attack, reading, **options)

    def __str__(self) -> str:
        """The text that :meth:`of` reads; LiRA's options are not in it."""
        return self.reading if self.attack == STUDY.attack else f"{self.attack}:{self.reading}"

    def for_models(self, models: int) -> Scoring:
        """The scoring with what ``auto`` means for so many models: pooled below 64. Parts keep that of the whole."""
        if self.variance != "auto":
            return self
        return replace(self, variance="pooled" if models < MANY else "per-sample")

    @classmethod
    def named(cls, scorings: Iterable[Scoring | str]) -> dict[str, Scoring]:
        """Scorings by their text; a ``UserError`` if two that differ have the same."""
        found: dict[str, Scoring] = {}
        for scoring in map(cls.of, scorings):
            if found.setdefault(str(scoring), scoring) != scoring:
                raise UserError(f"two scorings are both called {scoring}: ask for those that differ in options apart.")
        return found

    @property
    def least(self) -> int:
        """Models on each side that a sample needs, its target among them, to be scored."""
        return 3 if self.variance == "per-sample" and self.attack in LIRA else 2


def level_of(reading: str) -> float | None:
    """The level a of ``fpr@a``; None for ``posterior`` and ``bayes``."""
    if reading in ("posterior", "bayes"):
        return None
    match = re.fullmatch(r"fpr@(\d*\.?\d+(?:e-?\d+)?)", str(reading))
    level = float(match[1]) if match else 0.0
    if not 0 < level < 1:
        raise UserError(
            f"unknown reading {reading!r}: use posterior, bayes, or fpr@a with a between 0 and 1, like fpr@0.01."
        )
    return level


STUDY = Scoring()  # what the study uses unless a page says otherwise

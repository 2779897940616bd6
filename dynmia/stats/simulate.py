"""Populations that never were trained: phi drawn from known in- and out-distributions, so that the truth is known.

For sample z at epoch t, with the share g_z(t) = 1 - exp(-t / tau_z) of its encoding done,

    phi = m_z g_z + keep d_z g_z + spread * noise + effect * b_model(t),

where the spread goes from ``spread_out`` to ``spread_in`` with g for members, so that nothing tells them at epoch 0,
with m_z ~ N(1, 2^2), separation d_z ~ separation * Gamma(1, 1) (most samples hardly leak, a few strongly) and tau_z
log-uniform between a tenth and all of training. The noise has mean 0 and variance 1 and may be normal, heavy-tailed
(Student's t, 5 degrees of freedom) or skewed (a centred Gamma(4)). ``effect`` is shared by all samples of a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from scipy import optimize, stats
from scipy.special import expit

from ..attack.lira import flagged_share
from ..attack.plane import state_of
from ..attack.scoring import STUDY, Scoring, level_of
from ..errors import UserError, bounded, choose
from ..pool.pool import draw_keep
from ..study import FORMAT, Study

NOISE = {
    "normal": stats.norm(), "heavy": stats.t(5, scale=np.sqrt(3 / 5)), "skewed": stats.gamma(4, loc=-2, scale=0.5)
}  # fmt: skip
NODES = 400  # of the quadrature over the noise


@dataclass(frozen=True)
class Simulator:
    """A superpopulation of samples and models.

    Args:
        samples: n, drawn once by ``seed``; the truth is known for each.
        checkpoints: evaluations after epoch 0, ten epochs apart.
        separation: mean of d_z in units of the out-models' spread; 0 is pure noise.
        spread_in, spread_out: standard deviation of phi over in- and out-models, once encoding is done.
        noise: a name of ``NOISE``.
        effect: standard deviation of what a model adds to all its phi at a checkpoint.
        collapse: chance that a model is lost at the last checkpoint: it forgets what it trained on, and all its phi
            fall by three spreads of the out-models and scatter twice as much as theirs. The truth leaves it out.
        seed: of the samples' parameters.
    """

    samples: int = 500
    checkpoints: int = 5
    separation: float = 1.0
    spread_in: float = 0.8
    spread_out: float = 1.0
    noise: str = "normal"
    effect: float = 0.0
    collapse: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        choose(self.noise, NOISE, "noise")
        if min(self.samples, self.checkpoints) < 1 or min(self.spread_in, self.spread_out) <= 0:
            raise UserError("samples and checkpoints must be at least 1, spread_in and spread_out above 0.")
        bounded("collapse", self.collapse, 0, 1, whole=False)

    @property
    def epochs(self) -> np.ndarray:
        """The checkpoints, 0 included, (T,)."""
        return 10 * np.arange(self.checkpoints + 1)

    @cached_property
    def centres(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean phi of out-models and of in-models, and the spread of in-models, each (T, n)."""
        rng = np.random.default_rng([self.seed, 0])
        middle, apart = rng.normal(1, 2, self.samples), self.separation * rng.gamma(1, 1, self.samples)
        tau = self.epochs[-1] * 10 ** rng.uniform(-1, 0, self.samples)
        done = 1 - np.exp(-self.epochs[:, None] / tau)
        return middle * done, (middle + apart) * done, self.spread_out + (self.spread_in - self.spread_out) * done

    def run(self, models: int = 20, seed: int = 0, design: str = "bernoulli") -> xr.Dataset:
        """Draw a population of ``models`` as a run (:mod:`dynmia.store.run`); ``seed`` draws keep mask and phi."""
        rng = np.random.default_rng([self.seed, 1, seed])
        keep = draw_keep(models, self.samples, design, int(rng.integers(2**62)))
        out, inside, spread = self.centres
        shape = len(self.epochs), models, self.samples
        drawn = NOISE[self.noise].ppf(rng.random(shape)) if self.noise != "normal" else rng.standard_normal(shape)
        common = self.effect * rng.standard_normal((*shape[:2], 1))
        centre = np.where(keep, inside[:, None], out[:, None])
        scatter = np.where(keep, spread[:, None], self.spread_out)
        if self.collapse:
            lost = rng.random(models) < self.collapse
            centre[-1, lost], scatter[-1, lost] = out[-1] - 3 * self.spread_out, 2 * self.spread_out
        phi = centre + common + scatter * drawn
        right = phi > 0
        accuracy = {
            name: (("epoch", "model"), (right & side).sum(-1) / side.sum(-1))
            for name, side in (("train_accuracy", keep), ("test_accuracy", ~keep))
        }
        study = Study(shadow_models=models, design=design, epochs=int(self.epochs[-1]), checkpoint_every=10)
        variables = {
            "phi": (("epoch", "model", "sample"), phi.astype(np.float32)),
            "keep": (("model", "sample"), keep),
            "label": ("sample", np.zeros(self.samples, np.int64)),
        }
        coords = {"epoch": self.epochs, "model": range(models), "sample": range(self.samples)}
        attrs = {"title": "simulated", "study": json.dumps(study.to_dict()), "format": FORMAT}
        return xr.Dataset(variables | accuracy, coords, attrs)

    def truth(self, scoring: Scoring | str = STUDY) -> xr.Dataset:
        """The plane of the ideal attack: normal densities with the true centres and spreads, infinitely many models.

        Of ``scoring`` the reading counts: with the truth known, nothing is left to an attack.

        It is what a population tends to as N grows, if the noise is normal and no model has an effect of its own; an
        effect counts as part of the noise. Variables tpr, fpr, advantage, state.
        """
        scoring = Scoring.of(scoring)
        level, noise = level_of(scoring.reading), NOISE[self.noise]
        out, inside, spread = self.centres
        rates = np.full((2, *out.shape), 0.5 if level is None else level)  # epoch 0: chance
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        drawn = noise.ppf((nodes + 1) / 2)
        for t in range(1, len(self.epochs)):
            sides = [
                (inside[t], np.hypot(spread[t], self.effect)),
                (out[t], np.full(self.samples, np.hypot(self.spread_out, self.effect))),
            ]
            if scoring.reading == "posterior":
                for rate, (centre, sd) in zip(rates, sides):
                    phi = centre[:, None] + sd[:, None] * drawn
                    inner, outer = (stats.norm.logpdf(phi, c[:, None], s[:, None]) for c, s in sides)
                    rate[t] = expit(inner - outer) @ weights / 2
                continue
            tails = [lambda x, side=side: noise.sf((x - side[0]) / side[1]) for side in sides]
            both = flagged_share(*sides[0], *sides[1], *tails)
            threshold = 0.0
            if self.separation == 0 and self.spread_in == self.spread_out:
                break  # nothing tells the sides: every score is 0, and an attack that flags a share at random is ideal
            if level is not None:
                threshold = optimize.brentq(lambda x, both=both: both(x)[1].mean() - level, -60, 60, xtol=1e-9)
            rates[:, t] = both(threshold)
        variables = {"tpr": rates[0], "fpr": rates[1], "advantage": rates[0] - rates[1], "state": state_of(*rates)}
        return xr.Dataset(
            {name: (("epoch", "sample"), value) for name, value in variables.items()},
            {"epoch": self.epochs, "sample": range(self.samples)},
            {"title": "simulated", "rule": str(scoring)},
        )

"""Parts of a population, each scored as if it were all there is: chosen models, and random halves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from ..errors import UserError, bounded
from .plane import vulnerability_plane
from .scoring import Scoring

LEAST = 12  # models: below, too many samples of a half have no two models on each side


def part_of(run: xr.Dataset, models: np.ndarray, least: int = 2) -> xr.Dataset:
    """The run of the models at ``models``, without the samples that fewer than ``least`` of them did or did not see.

    Who that is depends on the keep mask alone, so no kind of sample is preferred; at 10 models it is 2 % of them.
    """
    inside = run.keep.values[models].sum(0)
    return run.isel(model=models, sample=np.flatnonzero(np.minimum(inside, len(models) - inside) >= least))


def halves(
    run: xr.Dataset, dim: str, draws: int, seed: int = 0, scoring: Scoring | str = "fpr@0.01"
) -> Iterator[xr.Dataset]:
    """Random halves of the models or samples of ``run``, each followed by its complement; an odd one is left over.

    Halves of the models have the samples that ``scoring`` of the whole run can score there (:func:`part_of`).
    """
    size, least = run.sizes[dim], Scoring.of(scoring).for_models(run.sizes["model"]).least
    if dim == "model" and size < LEAST:
        raise UserError(f"{size} models are too few to halve: an interval over models needs {LEAST}.")
    for numbers in numbers_of_halves(size, draws, seed):
        yield run.isel(sample=numbers) if dim == "sample" else part_of(run, numbers, least)


def planes_of_halves(
    run: xr.Dataset, scoring: Scoring | str, dim: str, draws: int, seed: int = 0, *, roc: bool = True
) -> Iterator[xr.Dataset]:
    """The planes of :func:`halves`, scored with the variance that ``auto`` means for the whole run."""
    scoring = Scoring.of(scoring).for_models(run.sizes["model"])
    return (vulnerability_plane(part, scoring, roc=roc) for part in halves(run, dim, draws, seed, scoring))


def numbers_of_halves(size: int, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The numbers that :func:`halves` takes of ``size``."""
    bounded("draws", draws, 1)
    bounded("seed", seed, 0)
    rng = np.random.default_rng([seed, 4])
    for _ in range((draws + 1) // 2):
        order = rng.permutation(size)
        yield from (np.sort(order[: size // 2]), np.sort(order[-(size // 2) :]))

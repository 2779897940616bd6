"""Training shadow models; torch is loaded when training starts, not before."""

from typing import Any

import xarray as xr

from ..study import Study

__all__ = ["train"]


def train(study: Study, **options: Any) -> xr.Dataset:
    """Train the population of ``study``, or what is missing of it: :func:`dynmia.shadow.engine.train`."""
    from .engine import train as train_population

    return train_population(study, **options)

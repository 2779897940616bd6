"""How many samples have the rarest feature of a sample, in the pools that hold no images."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dynmia.book.makers import table_place, write_table
from dynmia.book.tables import entries
from dynmia.cli import DataDir, Folder
from dynmia.pool.datasets import load_dataset
from dynmia.pool.pool import make_pool


def rarest(features: np.ndarray) -> np.ndarray:
    """How many samples have the rarest of a sample's features, itself included, (n,); NaN for a sample without any.

    Args:
        features: (n, D); a feature is there if it is not 0.
    """
    present = features != 0
    least = np.where(present, present.sum(0), np.inf).min(1)
    return np.where(present.any(1), least, np.nan)


def compute(data_dir: DataDir = None) -> pd.DataFrame:
    """Of every sample in the pools of chapter 19 that hold no images: columns run, sample, rarest, features.

    :func:`rarest`, and how many features a sample has (of a text: how many different words).
    """
    tables = []
    for entry in entries(only="19"):
        pool = make_pool(entry.study, load_dataset(entry.study.dataset, data_dir))
        if pool.shape[1:] == (1, 1):
            values = pool.images[:, 0, 0]
            of_sample = {"rarest": rarest(values), "features": (values != 0).sum(1)}
            tables.append(pd.DataFrame({"run": entry.name, "sample": pool.sample_id} | of_sample))
    return pd.concat(tables).reset_index(drop=True)


def main(folder: Folder = "data", data_dir: DataDir = None) -> None:
    """Count in the pools of chapter 19 that hold no images; seconds, from the data sets."""
    place = table_place(folder, "rarity.csv")
    write_table(compute(data_dir), place)

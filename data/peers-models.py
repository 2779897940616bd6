"""How well each attack does with few shadow models: large populations cut into disjoint small ones.

What is scored is the last checkpoint, on the samples that have two models of the subset on each side. LiRA is given
both of its variances: pooled over samples, which Carlini et al. take below 64 models, and of each sample alone, which
they take from there on, and which needs three models on each side.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from dynmia.attack.plane import part_of
from dynmia.attack.scoring import LOG_ODDS, Scoring
from dynmia.book.makers import maker, table_place, two_processes, write_table
from dynmia.cli import Folder
from dynmia.store.run import open_run

RUNS = ("digits-cnn-600-n128", "mnist-cnn-500-n128", "cifar10-cnn-1000-n64")
SIZES = (4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128)
PARTITIONS = 4  # orders of the models that are cut into subsets
MOST = 48  # subsets a size
ATTACKS = {
    "moderated": Scoring("moderated"), "bavaria": Scoring("bavaria"),
    "lira, pooled": Scoring("lira", variance="pooled"), "lira, per sample": Scoring("lira", variance="per-sample"),
    "rmia": Scoring("rmia"),
}  # fmt: skip
INDEX = ["run", "models", "attack", "partition", "subset"]


def subsets(run: xr.Dataset, models: int) -> list[tuple[int, int, xr.Dataset]]:
    """Disjoint subsets of ``models`` models in each of a few orders: numbers of order and subset, and the run."""
    total, found = run.sizes["model"], []
    for partition in range(PARTITIONS if models < total else 1):
        order = np.random.default_rng([models, partition]).permutation(total)
        starts = range(0, total - models + 1, models)
        found += [(partition, k, part_of(run, np.sort(order[s : s + models]))) for k, s in enumerate(starts)]
    return found[:MOST]


def measure(run: xr.Dataset) -> pd.DataFrame:
    """The measures of :mod:`data.peers` of every subset; index (models, attack, partition, subset)."""
    peers, last, rows = maker("peers"), run.isel(epoch=[-1]), {}
    for models in (size for size in SIZES if size <= run.sizes["model"]):
        for partition, number, part in subsets(last, models):
            keep = part.keep.values
            for name, scoring in ATTACKS.items():
                enough = np.minimum(keep.sum(0), models - keep.sum(0)) >= scoring.least
                if enough.mean() < 0.5:
                    continue
                phi, mask = part.phi.values[0][:, enough], keep[:, enough]
                scores = peers.score(phi, mask, part.label.values[enough], scoring)
                row = peers.measures(scores, mask, scoring.attack in LOG_ODDS)
                rows[models, name, partition, number] = {"samples": int(enough.sum())} | row
    return pd.DataFrame.from_dict(rows, "index").rename_axis(INDEX[1:])


def main(folder: Folder = "data") -> None:
    """Score subsets of the large populations in FOLDER by every attack, two processes at once; two minutes."""
    place = table_place(folder, "peers-models.csv")
    runs = {name: open_run(path) for name in RUNS if (path := place.parent / f"{name}.nc").exists()}
    with two_processes() as pool:
        tables = dict(zip(runs, pool.map(measure, runs.values())))
    about = ", ".join(f"{name} {run.attrs['sha256'][:12]}" for name, run in runs.items())
    write_table(pd.concat(tables, names=INDEX), place, about)

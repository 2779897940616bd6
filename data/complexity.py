"""How complex the pools of images are, measured without a network.

Every measure is larger for harder data; its no-signal level redraws the labels, so measures that read none have none.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer

from dynmia.book.makers import write_table
from dynmia.cli import DataDir
from dynmia.errors import UserError, writable
from dynmia.pool.datasets import load_dataset
from dynmia.pool.pool import make_pool
from dynmia.registry import DATASETS
from dynmia.store.run import project_root
from dynmia.study import PRESETS, Study

DIGITS = {"nn_error": 1, "dimension": 1, "overlap": 3, "png": 0, "png_value": 2}  # decimals to print
IMAGES = [name for name, known in DATASETS.items() if known.shape[1:] != (1, 1) and known.source]  # but for copies
POOL_SIZE = 4000
COLUMNS = ["label", "unit", "value", "low", "high", "null_low", "null_high"]


class Images(NamedTuple):
    """n labelled images: pixels (n, values) from 0 to 1, distance (n, n), PNG size (n,) in bytes, labels (n,)."""

    pixels: np.ndarray
    distance: np.ndarray
    png: np.ndarray
    labels: np.ndarray

    def take(self, index: np.ndarray) -> Images:
        """The images at ``index``, as if there were no others."""
        return Images(self.pixels[index], self.distance[np.ix_(index, index)], self.png[index], self.labels[index])


def prepare(images: np.ndarray, labels: np.ndarray) -> Images:
    """Compute Euclidean distances (infinite to itself) and compressed sizes of uint8 images (n, H, W, C)."""
    from PIL import Image
    from sklearn.metrics import euclidean_distances

    def png(image: np.ndarray) -> int:
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG", optimize=True)
        return file.tell()

    pixels = images.reshape(len(images), -1) / 255.0
    distance = euclidean_distances(pixels)
    np.fill_diagonal(distance, np.inf)
    return Images(pixels, distance, np.array([png(image) for image in images]), labels)


def nearest_neighbour_error(images: Images) -> float:
    """Share (%) of images whose nearest other image has another label: N3 of Ho and Basu (2002)."""
    return 100 * float((images.labels[images.distance.argmin(1)] != images.labels).mean())


def intrinsic_dimension(images: Images) -> float:
    """TwoNN (Facco et al. 2017): r2 / r1 follows a Pareto law of index d, here estimated by (m - 1) / sum log(r2 / r1).

    Images that have an identical twin (r1 = 0) are left out.
    """
    first, second = np.partition(images.distance, 1, axis=1)[:, :2].T
    single = first > 1e-3  # a step of one grey level is four times that
    return float((single.sum() - 1) / np.log(second[single] / first[single]).sum())


def class_overlap(images: Images) -> float:
    """1 / (1 + F1), with F1 the largest Fisher discriminant ratio of any pixel value; 1: no pixel tells the classes.

    F1 of Ho and Basu (2002) for many classes (Lorena et al. 2019): sum of squares between classes over that within.
    """
    whole, within = images.pixels.var(0), np.zeros(images.pixels.shape[1])
    for label in np.unique(images.labels):
        members = images.labels == label
        within += members.mean() * images.pixels[members].var(0)
    varies = within > 1e-9  # a black margin does not
    return float((within[varies] / whole[varies]).min(initial=1.0))


MEASURES: dict[str, tuple[str, str, Callable[[Images], float]]] = {
    "nn_error": ("leave-one-out 1-NN error", "%", nearest_neighbour_error),
    "dimension": ("intrinsic dimension (TwoNN)", "", intrinsic_dimension),
    "overlap": ("class overlap, 1 / (1 + F1)", "", class_overlap),
    "png": ("compressed size", "bytes per image", lambda images: float(images.png.mean())),
    "png_value": ("compressed size per pixel value", "bits", lambda i: 8 * float(i.png.mean()) / i.pixels.shape[1]),
}


def complexity(images: np.ndarray, labels: np.ndarray, *, halves: int = 100, seed: int = 0) -> pd.DataFrame:
    """Every measure of ``MEASURES`` with its 95 % interval over samples and its no-signal level.

    The standard error is the standard deviation over random halves of the images (delete-half jackknife, Shao and Wu
    1989): in simulations up to a quarter too wide for measures that look at neighbours, where a bootstrap with fixed
    neighbours is a quarter too narrow.

    Args:
        images: uint8 (n, H, W, C); labels: int (n,).
        halves: random halves; the labels are redrawn a fifth as often.
        seed: of both.

    Returns:
        Index measure; columns label, unit, value, low, high, null_low, null_high (extremes over the redraws).
    """
    rng, n, rows = np.random.default_rng(seed), len(images), {}
    whole = prepare(images, labels)

    parts = (whole.take(rng.permutation(n)[: n // 2]) for _ in range(halves))
    error = 1.96 * np.std([[of(part) for _, _, of in MEASURES.values()] for part in parts], axis=0, ddof=1)
    redrawn = [whole._replace(labels=rng.permutation(labels)) for _ in range(halves // 5)]
    for (name, (label, unit, of)), half in zip(MEASURES.items(), error):
        value = of(whole)
        noise = [of(other) for other in redrawn] if of in (nearest_neighbour_error, class_overlap) else [np.nan]
        rows[name] = [label, unit, value, value - half, value + half, min(noise), max(noise)]
    return pd.DataFrame.from_dict(rows, "index", columns=COLUMNS).rename_axis("measure")


def pool_complexity(
    datasets: Iterable[str], pool_size: int = POOL_SIZE, data_dir: str | os.PathLike[str] | None = None
) -> pd.DataFrame:
    """:func:`complexity` of the pool that a study of each data set trains on.

    Digits, which have no 4,000, take the pool of ``quick`` unless another ``pool_size`` is named.

    Index (dataset, measure); columns as there, and samples and fingerprint, by which a run knows its pool.
    """
    pools = {}
    for name in datasets:
        size = PRESETS["quick"]["pool_size"] if (name, pool_size) == ("digits", POOL_SIZE) else pool_size
        pools[name] = pool = make_pool(Study(dataset=name, pool_size=size), load_dataset(name, data_dir))
        if pool.shape[1:] == (1, 1):
            raise UserError(f"{name} has no images to measure: name sets of images, such as {', '.join(IMAGES)}.")
    tables = {
        name: complexity(np.asarray(pool.images), pool.labels).assign(
            samples=len(pool.labels), fingerprint=pool.fingerprint
        )
        for name, pool in pools.items()
    }
    return pd.concat(tables, names=["dataset"])


def main(
    dataset: Annotated[
        list[str] | None, typer.Argument(help="data sets of images (default: all of them but copies)")
    ] = None,
    pool_size: Annotated[
        int, typer.Option(help="samples of each (digits: by default as in the quick preset)")
    ] = POOL_SIZE,
    data_dir: DataDir = None,
    csv: Annotated[
        str | None, typer.Option(help="the table's file (default: data/complexity.csv if nothing else is named)")
    ] = None,
) -> None:
    """Measure how complex the pools are, without a network: 1-NN error, intrinsic dimension, overlap, compression."""
    whole = not dataset and pool_size == POOL_SIZE
    file = writable(csv or project_root() / "data" / "complexity.csv", ".csv") if csv or whole else None
    table = pool_complexity(dataset or IMAGES, pool_size, data_dir)
    typer.echo(table.drop(columns="fingerprint").to_string(float_format="%.3f", na_rep=""))
    if file:
        write_table(table, file)

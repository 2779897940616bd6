"""The pool of target samples and which shadow model trains on which of them."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import UserError
from ..registry import WORDS
from ..study import Study
from .datasets import Dataset, Texts

CSR = ("data", "indices", "indptr")  # arrays of a sparse matrix


@dataclass(frozen=True)
class Pool:
    """The target samples of a study, its held-out test set and the inclusion mask."""

    images: np.ndarray | Texts  # (n, H, W, C), uint8, or float32 if they are feature vectors
    labels: np.ndarray  # int64 (n,)
    sample_id: np.ndarray  # int64 (n,), index in the training split
    test_images: np.ndarray | Texts  # held out, used for accuracy only
    test_labels: np.ndarray
    keep: np.ndarray  # bool (N, n), True where model i trains on sample z
    mean: np.ndarray  # float32 (C,), of the pool's pixels on the 0 to 255 scale
    std: np.ndarray  # the same; at least 1 on that scale
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), the shape that a model sees."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that training reads from the data."""
        sha = hashlib.sha256()
        for array in (self.images, self.labels, self.sample_id, self.test_images, self.test_labels):
            sha.update(f"{array.shape}{array.dtype}".encode())
            for start in range(0, len(array), 1000):  # texts are dense here
                sha.update(np.ascontiguousarray(array[start : start + 1000]).tobytes())
        return sha.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the arrays as ``.npy`` files, of texts those of a CSR matrix, for :meth:`load`."""
        for name, array in vars(self).items():
            if isinstance(array, Texts):
                for part in CSR:
                    np.save(folder / f"{name}.{part}.npy", getattr(array.counts, part))
            elif name != "classes":
                np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path, classes: int) -> Pool:
        """Map the files of :meth:`save` into memory, of which all processes share one copy."""
        arrays: dict[str, Any] = {path.stem: np.load(path, mmap_mode="c") for path in folder.glob("*.npy")}
        for name in {"images", "test_images"} - set(arrays):
            counts = tuple(arrays.pop(f"{name}.{part}") for part in CSR)
            arrays[name] = Texts(csr_matrix(counts, shape=(len(counts[-1]) - 1, WORDS)))
        return cls(**arrays, classes=classes)


def make_pool(study: Study, dataset: Dataset) -> Pool:
    """Draw the class-balanced pool and the keep mask of ``study``.

    Samples are taken in rounds, one of each class a round in a seeded order, so that with one ``pool_seed`` a smaller
    pool is part of a larger one; classes that run out are skipped.
    """
    train_labels, test_labels = dataset.train_labels, dataset.test_labels[: study.test_size]
    check_sizes(study, len(train_labels), len(dataset.test_labels))
    if len(lost := np.setdiff1d(dataset.test_labels, test_labels)):
        warnings.warn(
            f"classes {', '.join(map(str, lost))} are not among the first {study.test_size} held-out images, so the "
            "test accuracy leaves them out: use a larger test_size.", stacklevel=2,
        )  # fmt: skip
    if study.augment and dataset.train_images.shape[1:3] == (1, 1):
        raise UserError(f"augment crops and flips images, and {study.dataset} has none: leave augment out.")
    order = np.random.default_rng(np.random.SeedSequence([study.pool_seed, 1])).permutation(len(train_labels))
    turn = np.empty(len(order), dtype=np.int64)  # how many of the same class come before, in the drawn order
    for label in range(dataset.classes):
        members = order[train_labels[order] == label]
        turn[members] = np.arange(len(members))
    ids = np.sort(np.lexsort((train_labels, turn))[: study.pool_size])
    keep = draw_keep(study.shadow_models, len(ids), study.design, study.seed)
    if not keep.any(1).all():
        raise UserError(f"pool_size {len(ids)} leaves a shadow model nothing to train on: use a larger pool_size.")
    images, test_images = dataset.train_images.take(ids, axis=0), dataset.test_images
    if study.test_size is not None:
        test_images = test_images.take(np.arange(study.test_size), axis=0)
    if isinstance(images, Texts):
        from sklearn.utils.sparsefuncs import mean_variance_axis

        mean, variance = mean_variance_axis(images.counts.astype(np.float64), axis=0)
        std = np.sqrt(variance)
    else:
        flat = images.reshape(-1, images.shape[-1]).astype(np.float32)
        mean, std = flat.mean(0, dtype=np.float64), flat.std(0, dtype=np.float64)
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    std = np.maximum(std, 1) if images.dtype == np.uint8 else np.where(std > 0, std, 1)
    return Pool(images, train_labels[ids], ids, test_images, test_labels, keep, mean, std, dataset.classes)


def check_sizes(study: Study, train: int, test: int) -> None:
    """Refuse a pool or a held-out set that is larger than its split, of ``train`` and ``test`` samples."""
    for name, size, split, least, most in (
        ("pool_size", study.pool_size, "training", 4, train), ("test_size", study.test_size, "test", 1, test)
    ):  # fmt: skip
        if (size or 0) > most:
            where = f"the {split} split of {study.dataset} ({most})"
            raise UserError(f"{name} {size} is larger than {where}: use {least} to {most}.")


def draw_keep(models: int, samples: int, design: str = "bernoulli", seed: int = 0) -> np.ndarray:
    """Draw the inclusion mask, bool (models, samples) (METHOD, section 1).

    ``bernoulli``: each entry is 1 with probability 1/2. A sample that is in (or out of) fewer than 3 models leaves
    leave-one-out statistics nothing to work with, so such a column is drawn again (fewer than 2 when ``models`` < 6);
    at N = 20 this touches 0.04 % of the samples. ``balanced``: each sample is in exactly N/2 models, as Carlini et
    al. (2022) do. ``all``: every model has every sample.
    """
    if design == "all":
        return np.ones((models, samples), bool)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    if design == "balanced":
        return rng.permuted(np.arange(models)[:, None].repeat(samples, 1), axis=0) < models // 2
    need = 3 if models >= 6 else 2
    keep = rng.random((models, samples)) < 0.5
    while len(bad := np.flatnonzero((keep.sum(0) < need) | ((~keep).sum(0) < need))):
        keep[:, bad] = rng.random((models, len(bad))) < 0.5
    return keep

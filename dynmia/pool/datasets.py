"""Data sets as arrays: embedded digits, the canonical sets, a user's ``.npz`` file or image folder.

A feature vector is an image of one pixel with a channel a feature, and a text is the vector of its word counts, so that
everything after this module knows images alone.

A named set is looked for as ``<name>.npz`` in the data folder (``--data-dir`` or ``DYNMIA_DATA``). Without one it is
downloaded once: MNIST, Fashion-MNIST and CIFAR-10 by torchvision, CINIC-10 from its official archive, checked by hash.
"""

from __future__ import annotations

import os
import re
import tarfile
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import UserError, disk_error, reason
from ..registry import WORDS, named_set
from .images import read_folder

SPLITS = ("train", "test")
KINDS = {  # of samples in a file: what they are, their kinds of numpy types and their dimensions
    "images": ("uint8 (0 to 255), (n, H, W) or (n, H, W, C)", "u", (3, 4)),
    "features": ("numbers (n, D)", "buif", (2,)),
    "texts": ("unicode strings (n,)", "U", (1,)),
    "vectors": ("numbers (n, 1, 1, D)", "buif", (4,)),  # under the name of images
}
KERAS = {f"{old}_{split}": f"{split}_{new}" for split in SPLITS for old, new in (("x", "images"), ("y", "labels"))}
CINIC10_URL = "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz"
CINIC10_MD5 = "6ee4d0c996905fe93221de577967a372"


class Texts:
    """Word counts of n texts, uint8 (n, 1, 1, WORDS): sparse as long as they lie in memory, dense once indexed.

    It has of an array what reads samples: ``len``, ``shape``, ``dtype`` and ``[index]``, which returns an array.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, counts: csr_matrix) -> None:
        self.counts = counts  # uint8 (n, WORDS)
        self.shape = (counts.shape[0], 1, 1, counts.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: object) -> np.ndarray:
        rows, *rest = index if isinstance(index, tuple) else (index,)
        chosen = np.arange(len(self))[rows]
        dense = self.counts[np.atleast_1d(chosen)].toarray().reshape(*chosen.shape, *self.shape[1:])
        return dense[(slice(None), *rest)] if rest else dense

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.uint8)  # type: ignore[call-overload]

    def take(self, index: np.ndarray, axis: int = 0) -> Texts:
        """The texts at ``index``, sparse, as ``numpy.take`` along the first axis."""
        return Texts(self.counts[index])


@dataclass(frozen=True)
class Dataset:
    """Images (n, H, W, C) and int64 labels (n,) in 0 ... classes - 1, for a training and a test split.

    Images are uint8; feature vectors, images (n, 1, 1, D), may be float32 too; texts are :class:`Texts`.
    """

    train_images: np.ndarray | Texts
    train_labels: np.ndarray
    test_images: np.ndarray | Texts
    test_labels: np.ndarray

    @property
    def classes(self) -> int:
        """Number of classes in the training split."""
        return int(self.train_labels.max()) + 1


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set by name, ``.npz`` path or image-folder path, and check it.

    Args:
        name: as in :class:`dynmia.study.Study`.
        data_dir: folder of ``<name>.npz`` files; None reads ``DYNMIA_DATA``, and downloads if that is not set.

    Raises:
        UserError: something is missing or malformed; the message says what and how to mend it.
    """
    known = named_set(name)
    if known is None:
        path = Path(os.path.expanduser(name))
        if not os.path.exists(path):  # unlike Path.exists, no error for a name that is too long
            raise UserError(f"data set {name}: no such file or folder.")
        return check(path, read_folder(path, SPLITS)) if path.is_dir() else _from_npz(path)
    if known.source == "scikit-learn":
        return _digits()
    folder = data_dir or os.environ.get("DYNMIA_DATA")
    if folder is None:
        return _download(name, known.source, Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dynmia")
    if not os.path.isdir(folder):
        raise UserError(f"data folder {folder} does not exist: name it by --data-dir or DYNMIA_DATA.")
    path = Path(folder) / f"{name}.npz"
    if not path.exists():
        raise UserError(f"data folder {folder} has no {path.name}: put it there, or unset DYNMIA_DATA to download it.")
    return _from_npz(path)


def check(where: object, arrays: dict[str, np.ndarray], kind: str = "images") -> Dataset:
    """Bring ``train_KIND``, ``train_labels`` and the same of ``test`` into the shapes of :class:`Dataset`, or refuse.

    ``where`` they come from is for messages. Images (n, 1, 1, D) are feature vectors.
    """
    samples, labels = {}, {}
    for split in SPLITS:
        name, given = f"{split}_{kind}", arrays[f"{split}_labels"]
        samples[name] = _samples(f"{where}: {name}", arrays[name], kind)
        count = len(samples[name])
        with np.errstate(invalid="ignore"):  # NaN and infinity are no int64
            whole = given.dtype.kind in "biuf" and (given.astype(np.int64) == given).all()
        if given.shape not in ((count,), (count, 1)) or not whole:
            what = f"{where}: {split}_labels is {given.dtype} {given.shape}"
            raise UserError(f"{what}; it must be integers ({count},), 0 ... K - 1.")
        labels[split] = given.reshape(count).astype(np.int64)
    train, test = samples.values()
    if train.shape[1:] != test.shape[1:]:
        shapes = [arrays[name].shape[1:] for name in samples]
        raise UserError(f"{where}: train images are {shapes[0]} but test images {shapes[1]}; they must agree.")
    present = np.unique(labels["train"])
    classes = len(present)
    if classes < 2 or present[0] != 0 or present[-1] != classes - 1:
        raise UserError(f"{where}: training labels must cover 0 ... K - 1 with K >= 2; found {present[:12].tolist()}.")
    if labels["test"].min() < 0 or labels["test"].max() >= classes:
        raise UserError(f"{where}: test labels must lie in 0 ... {classes - 1}, the classes of the training split.")
    if kind != "texts":
        vectors = train.shape[1:3] == (1, 1)
        train, test = map(np.ascontiguousarray, _vectors(where, samples) if vectors else samples.values())
    return Dataset(train, labels["train"], test, labels["test"])


def _samples(where: str, samples: np.ndarray, kind: str) -> Any:
    """One split as (n, H, W, C)."""
    if kind == "images" and samples.ndim == 4 and samples.shape[1:3] == (1, 1):
        kind = "vectors"
    wanted, types, dimensions = KINDS[kind]
    fits = samples.dtype.kind in types and (kind != "images" or samples.dtype == np.uint8)
    if not fits or samples.ndim not in dimensions or 0 in samples.shape:
        is_flat = kind == "images" and samples.ndim == 2
        mend = "; name feature vectors train_features and test_features" if is_flat else ""
        raise UserError(f"{where} is {samples.dtype} {samples.shape}; it must be {wanted}{mend}.")
    if kind == "texts":
        return _count_words(where, samples)
    if kind != "images":
        return samples.reshape(len(samples), 1, 1, -1)
    images = samples.reshape(*samples.shape[:3], -1)
    if images.shape[-1] not in (1, 3):
        raise UserError(f"{where} has {images.shape[-1]} channels; it must have 1 or 3.")
    return images


def _from_npz(path: Path) -> Dataset:
    if not path.is_file():
        raise UserError(f"{path} is no regular file (but a pipe, a device or a folder): give a .npz file.")
    part = ""  # which array is being read
    try:
        with np.load(path, allow_pickle=False) as file:
            names = {KERAS[name]: name for name in file if name in KERAS} | {name: name for name in file}
            if "train_jpeg" in names:
                raise UserError(
                    f"{path} holds JPEG files: make a plain file of it by `dynmia make cifar10_jpeg {path}`, and put "
                    "that in its place."
                )
            kind = next((kind for kind in KINDS if f"train_{kind}" in names), "images")
            keys = [f"{split}_{array}" for split in SPLITS for array in (kind, "labels")]
            if lacks := [key for key in keys if key not in names]:
                holds = ", ".join(file) or "no key"
                raise UserError(f"{path} has no key {lacks[0]!r}; it needs {', '.join(keys)}, and has {holds}.")
            arrays = {}
            for key in keys:
                part = f"{names[key]}: "
                arrays[key] = file[names[key]]
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on a damaged or pickled file
        mend = "save plain arrays" if part else "replace it"
        raise UserError(f"{path} cannot be read as .npz: {part}{reason(error)}: {mend}.") from error
    return check(path, arrays, kind)


def _vectors(where: object, splits: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Feature vectors (n, 1, 1, D) as float32, or as uint8 what is uint8 or bool.

    Where float32 does not hold a column well, as with a large offset (seconds since 1970), the column's median is
    subtracted first. A column that is not held well even so is refused. Held well: rounding moves no value by more than
    a ten-thousandth of the column's standard deviation, and more than half of the distinct values stay distinct.
    """
    given, held = list(splits.values()), list[np.ndarray]()
    for name, x in splits.items():
        with np.errstate(over="ignore"):
            held.append(x.astype(np.uint8 if x.dtype in (bool, np.uint8) else np.float32))
        if not np.isfinite(held[-1]).all():
            raise UserError(f"{where}: {name} holds NaN, infinite or too large numbers: drop or fill them.")
    with np.errstate(invalid="ignore"):  # beyond int64
        exact = [(kept.astype(x.dtype) == x).all((0, 1, 2)) for kept, x in zip(held, given)]
    for column in np.flatnonzero(~np.logical_and(*exact)):
        values = np.sort(np.concatenate([x[..., column].ravel() for x in given]))
        wide, distinct = values.astype(np.float64), len(np.unique(values))
        for offset in (0.0, wide[len(wide) // 2]):  # one of the values: the same on every machine
            kept = (wide - offset).astype(np.float32)
            error, left = np.abs(kept - (wide - offset)).max(), len(np.unique(kept))
            if distinct == 1 or (error <= wide.std() / 1e4 and 2 * left > distinct):
                break
        else:
            what = f"{where}: {next(iter(splits))}: column {column} (from 0)"
            raise UserError(
                f"{what} has {distinct} distinct values, of which float32 keeps {left} (from {values[0]} to "
                f"{values[-1]}): rescale it, split it, or leave it out."
            )
        if offset:
            held = [kept.astype(np.float32, copy=False) for kept in held]
            for kept, x in zip(held, given):
                kept[..., column] = x[..., column].astype(np.float64) - offset
    return held


def _count_words(where: str, texts: np.ndarray) -> Texts:
    """Texts (n,) as counts of their words of two characters or more, in Unicode's form NFC, lower case, hashed.

    A word is what stands between spaces and punctuation, which is no word in scripts that write no spaces.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    given = [unicodedata.normalize("NFC", text) for text in texts.tolist()]
    counts = HashingVectorizer(n_features=WORDS, norm=None, alternate_sign=False).transform(given)
    counts.data = counts.data.clip(0, 255).astype(np.uint8)
    words = [word for text in given for word in re.findall(r"\w+", text)]
    solid = sum(len(text) >= 12 * max(1, len(text.split())) for text in given)
    single = sum(len(word) == 1 for word in words)
    empty = int((np.diff(counts.indptr) == 0).sum())
    longer = "write longer words (such as pairs of characters)"
    faults = {
        f"{solid} of {len(given)} texts have less than one space in 12 characters, and what is between spaces and "
        "punctuation counts as one word: separate the words by spaces": solid,
        f"{single} of {len(words)} words are single characters, which do not count: {longer}":
            4 * single > len(words),  # far more than the a and I of English
        f"{empty} of {len(given)} texts have no word of two characters or more, so that they look alike: leave them "
        f"out, or {longer}": empty,
    }  # fmt: skip
    for fault in filter(faults.get, faults):
        warnings.warn(f"{where}: {fault}.", stacklevel=2)
    return Texts(counts)


def _digits() -> Dataset:
    """scikit-learn's digits: 1,497 for the pool, 300 held out, split once and for all in the order of the file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = (digits.images * 15.9375).astype(np.uint8), digits.target  # 0..16 to 0..255
    return check("digits", dict(train_images=images[:1497], train_labels=labels[:1497],
                                test_images=images[1497:], test_labels=labels[1497:]))  # fmt: skip


def _download(name: str, source: str, cache: Path) -> Dataset:
    mend = f"put {name}.npz into a folder and name it by --data-dir or DYNMIA_DATA"
    if not source:
        raise UserError(f"{name} is not downloaded: {mend}.")
    try:
        if source == "archive":
            return _cinic10(cache)
        from torchvision import datasets

        splits = {split: getattr(datasets, source)(str(cache), split == "train", download=True) for split in SPLITS}
    except UserError:
        raise
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name} could not be downloaded, or not with its hash ({reason(error)}): {mend}.") from error
    except Exception as error:  # torchvision checks some files by hash, and stumbles over others
        empty = (file for file in (cache / source).rglob("*") if file.is_file() and not file.stat().st_size)
        raise UserError(
            f"{name}: a damaged file of the download ({reason(error)}): delete {next(empty, cache / source)}, and it "
            "is fetched again."
        ) from error
    return check(name, {f"{split}_{new}": np.asarray(getattr(part, old)) for split, part in splits.items()
                        for new, old in (("images", "data"), ("labels", "targets"))})  # fmt: skip


def _cinic10(cache: Path) -> Dataset:
    """Fetch the official archive (Darlow et al. 2018), check its md5, and keep the decoded arrays beside it."""
    from torchvision.datasets.utils import download_url

    arrays_file = cache / "cinic10.npz"
    if not arrays_file.exists():
        download_url(CINIC10_URL, str(cache), "CINIC-10.tar.gz", CINIC10_MD5)
        part = arrays_file.with_suffix(f".{os.getpid()}.npz")
        arrays = read_cinic10(cache / "CINIC-10.tar.gz")
        try:
            np.savez(part, **arrays)  # type: ignore[arg-type]
            os.replace(part, arrays_file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise disk_error(error, arrays_file) from error
    try:
        return _from_npz(arrays_file)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}: delete {arrays_file}, and it is made again.") from error


def read_cinic10(archive: Path) -> dict[str, np.ndarray]:
    """Decode ``train`` and ``test`` of a CINIC-10 archive (members ``split/class/name.png``), in order of file name."""
    from PIL import Image

    images = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            key = Path(member.name).parts[-3:]  # split, class, name
            if member.isfile() and len(key) == 3 and key[0] in SPLITS and key[2].endswith(".png"):
                image = Image.open(tar.extractfile(member)).convert("RGB")  # type: ignore[arg-type]
                images[key] = np.asarray(image)
    classes = sorted({label for split, label, _ in images if split == "train"})
    arrays = {}
    for split in SPLITS:
        keys = sorted(key for key in images if key[0] == split)
        arrays[f"{split}_images"] = np.stack([images[key] for key in keys])
        arrays[f"{split}_labels"] = np.array([classes.index(label) for _, label, _ in keys])
    return arrays

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError, disk_error, reason
from ..study import is_path
from .images import read_folder

if TYPE_CHECKING:
    import torch
    from scipy.sparse import csr_matrix

SPLITS = ("train", "test")
KINDS = {"images": (), "features": (), "texts": (), "jpeg": ("offsets",)}  # of samples in a file; what they come with
KERAS = {f"{old}_{split}": f"{split}_{new}" for split in SPLITS for old, new in (("x", "images"), ("y", "labels"))}
CSR = ("data", "indices", "indptr")  # arrays of a sparse matrix
WORDS = 4096  # entries of a text's vector, into which words are hashed
SIZES = {  # shape (C, H, W), training split, test split, classes
    "digits": ((1, 8, 8), 1497, 300, 10),
    "mnist": ((1, 28, 28), 60000, 10000, 10),
    "fashion_mnist": ((1, 28, 28), 60000, 10000, 10),
    "cifar10": ((3, 32, 32), 50000, 10000, 10),
    "cinic10": ((3, 32, 32), 90000, 90000, 10),
    "cifar10_jpeg": ((3, 32, 32), 50000, 10000, 10),
    "location30": ((446, 1, 1), 4010, 1000, 30),
    "trec": ((WORDS, 1, 1), 5452, 500, 6),
}
CINIC10_URL = "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz"
CINIC10_MD5 = "6ee4d0c996905fe93221de577967a372"


class Texts:
    """Word counts of n texts, uint8 (n, 1, 1, WORDS): sparse as long as they lie in memory, dense once indexed.

    It has of an array what reads samples: ``len``, ``shape``, ``dtype``, ``[index]``, which returns an array; and of a
    tensor the ``device``, always the CPU.
    """

    dtype = np.dtype(np.uint8)
    is_cuda = False

    def __init__(self, counts: csr_matrix) -> None:
        self.counts = counts  # uint8 (n, WORDS)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, 1, 1, WORDS)."""
        samples, words = self.counts.shape
        return samples, 1, 1, words

    @property
    def device(self) -> torch.device:
        """Where a batch comes from."""
        import torch

        return torch.device("cpu")

    def __len__(self) -> int:
        return self.counts.shape[0]

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

    def arrays(self) -> dict[str, np.ndarray]:
        """The three arrays of the matrix, for :meth:`of`."""
        return {f".{part}": getattr(self.counts, part) for part in CSR}

    @classmethod
    def of(cls, name: str, arrays: dict[str, np.ndarray]) -> Texts:
        """Texts from the arrays that are called ``name`` and a part of the matrix."""
        from scipy.sparse import csr_matrix

        parts = tuple(arrays[f"{name}.{part}"] for part in CSR)
        return cls(csr_matrix(parts, shape=(len(parts[2]) - 1, WORDS)))

    def columns(self, width: int = 256) -> Iterator[np.ndarray]:
        """The counts of ``width`` words after another, dense (n, width)."""
        by_word = self.counts.tocsc()
        return (by_word[:, start : start + width].toarray() for start in range(0, by_word.shape[1], width))


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
    if is_path(name):
        path = Path(os.path.expanduser(name))
        if not os.path.exists(path):  # unlike Path.exists, no error for a name that is too long
            raise UserError(f"data set {name}: no such file or folder.")
        return check(path, read_folder(path, SPLITS)) if path.is_dir() else _from_npz(path)
    if name == "digits":
        return _digits()
    folder = data_dir or os.environ.get("DYNMIA_DATA")
    if folder is None:
        return _download(name, Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dynmia")
    if not os.path.isdir(folder):
        raise UserError(f"data folder {folder} does not exist: name it by --data-dir or DYNMIA_DATA.")
    path = Path(folder) / f"{name}.npz"
    if not path.exists():
        raise UserError(f"data folder {folder} has no {path.name}: put it there, or unset DYNMIA_DATA to download it.")
    return _from_npz(path)


def check(where: object, arrays: dict[str, np.ndarray], kind: str = "images") -> Dataset:
    """Check the four arrays of a data set and bring them into the shapes of :class:`Dataset`.

    Args:
        where: the file, for messages.
        arrays: ``train_KIND``, ``train_labels``, ``test_KIND``, ``test_labels``.
        kind: of ``KINDS`` (JPEG files decoded, as images). Images (n, 1, 1, D) are feature vectors whatever it is.
    """
    names = [f"{split}_{kind}" for split in SPLITS]
    train, test = (_samples(f"{where}: {name}", arrays[name], kind) for name in names)
    labels = [_labels(f"{where}: {split}_labels", arrays[f"{split}_labels"], len(arrays[f"{split}_{kind}"]))
              for split in SPLITS]  # fmt: skip
    if train.shape[1:] != test.shape[1:] or type(train) is not type(test):
        raise UserError(
            f"{where}: train images are {arrays[names[0]].shape[1:]} but test images {arrays[names[1]].shape[1:]}; "
            "they must agree."
        )
    present = np.unique(labels[0])
    classes = len(present)
    if classes < 2 or present[0] != 0 or present[-1] != classes - 1:
        raise UserError(f"{where}: training labels must cover 0 ... K - 1 with K >= 2; found {present[:12].tolist()}.")
    if labels[1].min() < 0 or labels[1].max() >= classes:
        raise UserError(f"{where}: test labels must lie in 0 ... {classes - 1}, the classes of the training split.")
    if isinstance(train, np.ndarray) and isinstance(test, np.ndarray):
        if train.shape[1:3] == (1, 1):
            train, test = _vectors([f"{where}: {name}" for name in names], [train, test])
        train, test = np.ascontiguousarray(train), np.ascontiguousarray(test)
    return Dataset(train, labels[0], test, labels[1])


def _samples(where: str, samples: np.ndarray, kind: str) -> np.ndarray | Texts:
    """One split as (n, H, W, C)."""
    what = f"{where} is {samples.dtype} {samples.shape}; it must be"
    if kind == "texts" and samples.dtype.kind == "U" and samples.ndim == 1 and len(samples):
        return _count_words(where, samples)
    if kind == "texts" and samples.dtype.kind in "OSU":
        raise UserError(f"{what} unicode strings (n,).")
    if kind in ("features", "texts") or (samples.ndim == 4 and samples.shape[1:3] == (1, 1)):
        if 0 in samples.shape or samples.dtype.kind not in "buif" or samples.ndim != (4 if kind == "images" else 2):
            wanted = {"texts": "unicode strings (n,)", "features": "numbers (n, D)"}.get(kind, "numbers (n, 1, 1, D)")
            raise UserError(f"{what} {wanted}.")
        return samples.reshape(len(samples), 1, 1, -1)
    if samples.ndim not in (3, 4) or 0 in samples.shape:
        mend = "; name feature vectors train_features and test_features" if samples.ndim == 2 else ""
        raise UserError(f"{where} has shape {samples.shape}; it must be (n, H, W) or (n, H, W, C){mend}.")
    if samples.dtype != np.uint8:
        raise UserError(f"{where} has dtype {samples.dtype}; it must be uint8 (0 to 255).")
    if samples.ndim == 4 and samples.shape[-1] not in (1, 3):
        raise UserError(f"{where} has {samples.shape[-1]} channels; it must have 1 or 3.")
    return samples if samples.ndim == 4 else samples[..., None]


def _labels(where: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Labels as int64 (count,), from whole numbers of any type (floats such as 2.0 too), (count,) or (count, 1)."""
    whole = labels.dtype.kind in "biu"
    if labels.dtype.kind == "f":
        whole = bool(
            np.isfinite(labels).all() and (labels % 1 == 0).all() and float(np.abs(labels).max(initial=0)) < 1e15
        )
    if labels.shape not in ((count,), (count, 1)) or not whole:
        raise UserError(f"{where} is {labels.dtype} {labels.shape}; it must be integers ({count},), 0 ... K - 1.")
    return labels.reshape(count).astype(np.int64)


def _from_npz(path: Path) -> Dataset:
    if not path.is_file():
        raise UserError(f"{path} is no regular file (but a pipe, a device or a folder): give a .npz file.")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = {KERAS[name]: name for name in file if name in KERAS} | {name: name for name in file}
            kind = next((kind for kind in KINDS if f"train_{kind}" in names), "images")
            keys = [f"{split}_{part}" for split in SPLITS for part in (kind, *KINDS[kind], "labels")]
            for key in keys:
                if key not in names:
                    raise UserError(
                        f"{path} has no key {key!r}; it needs {', '.join(keys)}, and has {', '.join(file) or 'no key'}."
                    )
            arrays = {}
            for key in keys:
                try:
                    arrays[key] = file[names[key]]
                except Exception as error:
                    what = f"{names[key]}: {reason(error)}: save plain arrays"
                    raise UserError(f"{path} cannot be read as .npz: {what}.") from error
        if kind == "jpeg":
            for split in SPLITS:
                arrays[f"{split}_images"] = _decode(arrays[f"{split}_jpeg"].tobytes(), arrays[f"{split}_offsets"])
            kind = "images"
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on a damaged or pickled file
        raise UserError(f"{path} cannot be read as .npz: {reason(error)}: replace it.") from error
    return check(path, arrays, kind)


def _decode(joined: bytes, offsets: np.ndarray) -> np.ndarray:
    """Images, uint8 (n, H, W, C), from JPEG files one after another, which begin and end at ``offsets`` (n + 1,)."""
    from PIL import Image

    files = (joined[start:end] for start, end in pairwise(offsets))
    return np.stack([np.asarray(Image.open(BytesIO(file)).convert("RGB")) for file in files])


def _vectors(where: list[str], splits: list[np.ndarray]) -> list[np.ndarray]:
    """Feature vectors (n, 1, 1, D) as float32, or as uint8 what is uint8 or bool.

    Where float32 does not hold a column well, as with a large offset (seconds since 1970), the column's median is
    subtracted first. A column that is not held well even so is refused. Held well: rounding moves no value by more than
    a ten-thousandth of the column's standard deviation, and more than half of the distinct values stay distinct.
    """
    with np.errstate(over="ignore"):
        held: list[np.ndarray] = [x.astype(np.uint8 if x.dtype in (bool, np.uint8) else np.float32) for x in splits]
    for name, values in zip(where, held):
        if not np.isfinite(values).all():
            raise UserError(f"{name} holds NaN, infinite or too large numbers: drop or fill them.")
    with np.errstate(invalid="ignore"):  # beyond int64
        exact = [(kept.astype(x.dtype) == x).all((0, 1, 2)) for kept, x in zip(held, splits)]
    for column in np.flatnonzero(~np.logical_and(*exact)):
        values = np.sort(np.concatenate([x[..., column].ravel() for x in splits]))
        wide, distinct = values.astype(np.float64), _distinct(values)
        centre = wide[len(wide) // 2]  # one of the values: the same on every machine
        for offset in (0.0, centre):
            kept = (wide - offset).astype(np.float32)
            error = np.abs(kept - (wide - offset)).max()
            if distinct == 1 or (error <= wide.std() / 1e4 and 2 * _distinct(kept) > distinct):
                break
        else:
            raise UserError(
                f"{where[0]}: column {column} (from 0) has {distinct} distinct values, of which float32 keeps "
                f"{_distinct(kept)} (from {values[0]} to {values[-1]}): rescale it, split it, or leave it out."
            )
        if offset:
            held = [kept.astype(np.float32, copy=False) for kept in held]
            for kept, x in zip(held, splits):
                kept[..., column] = x[..., column].astype(np.float64) - offset
    return held


def _distinct(values: np.ndarray) -> int:
    """How many different values a sorted array has."""
    return 1 + int((values[1:] != values[:-1]).sum())


def _count_words(where: str, texts: np.ndarray) -> Texts:
    """Texts (n,) as counts of their words of two characters or more, in Unicode's form NFC, lower case, hashed.

    A word is what stands between spaces and punctuation, which is no word in scripts that write no spaces.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    given = [unicodedata.normalize("NFC", text) for text in texts.tolist()]
    counts = HashingVectorizer(n_features=WORDS, norm=None, alternate_sign=False).transform(given)
    counts.data = counts.data.clip(0, 255).astype(np.uint8)
    solid = sum(len(text) >= 12 * max(1, len(text.split())) for text in given)
    if solid:
        warnings.warn(
            f"{where}: {solid} of {len(given)} texts have less than one space in 12 characters, and what is between "
            "spaces and punctuation counts as one word: separate the words by spaces.", stacklevel=2,
        )  # fmt: skip
    words = [word for text in given for word in re.findall(r"\w+", text)]
    if 4 * (single := sum(len(word) == 1 for word in words)) > len(words):  # far more than the a and I of English
        warnings.warn(
            f"{where}: {single} of {len(words)} words are single characters, which do not count: write longer words "
            "(such as pairs of characters).", stacklevel=2,
        )  # fmt: skip
    if empty := int((np.diff(counts.indptr) == 0).sum()):
        warnings.warn(
            f"{where}: {empty} of {len(given)} texts have no word of two characters or more, so that they look alike: "
            "leave them out, or write longer words (such as pairs of characters).", stacklevel=2,
        )  # fmt: skip
    return Texts(counts)


def _digits() -> Dataset:
    """scikit-learn's digits: 1,497 for the pool, 300 held out, split once and for all in the order of the file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = (digits.images * 15.9375).astype(np.uint8), digits.target.astype(np.int64)  # 0..16 to 0..255
    return check(
        "digits", dict(train_images=images[:1497], train_labels=labels[:1497], test_images=images[1497:],
                       test_labels=labels[1497:])
    )  # fmt: skip


def _download(name: str, cache: Path) -> Dataset:
    if name == "cinic10":
        return _cinic10(cache)
    from torchvision import datasets

    classes: dict[str, Callable[..., object]] = {
        "mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10
    }  # fmt: skip
    if name not in classes:
        raise UserError(f"{name} is not downloaded: put {name}.npz into a folder, named by --data-dir or DYNMIA_DATA.")
    arrays = {}
    for split in SPLITS:
        try:
            part = classes[name](str(cache), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{name} could not be downloaded ({reason(error)}): "
                f"put {name}.npz into a folder and name it by --data-dir or DYNMIA_DATA."
            ) from error
        except Exception as error:  # torchvision checks some files by hash, and stumbles over others
            folder = cache / classes[name].__name__
            empty = (file for file in folder.rglob("*") if file.is_file() and not file.stat().st_size)
            raise UserError(
                f"{name}: a damaged file of the download ({reason(error)}): delete {next(empty, folder)}, and it is "
                "fetched again."
            ) from error
        arrays[f"{split}_images"] = np.asarray(part.data)  # type: ignore[attr-defined]
        arrays[f"{split}_labels"] = np.asarray(part.targets)  # type: ignore[attr-defined]
    return check(name, arrays)


def _cinic10(cache: Path) -> Dataset:
    """Fetch the official archive (Darlow et al. 2018), check its md5, and keep the decoded arrays beside it."""
    from torchvision.datasets.utils import download_url

    arrays_file = cache / "cinic10.npz"
    if not arrays_file.exists():
        try:
            download_url(CINIC10_URL, str(cache), "CINIC-10.tar.gz", CINIC10_MD5)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CINIC-10 could not be downloaded or its hash differs ({reason(error)}): "
                "put cinic10.npz into a folder and name it by --data-dir or DYNMIA_DATA."
            ) from error
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

    found: dict[str, list[tuple[str, str, np.ndarray]]] = {"train": [], "test": []}
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts[-3:]
            if member.isfile() and len(parts) == 3 and parts[0] in found and parts[2].endswith(".png"):
                image = Image.open(tar.extractfile(member)).convert("RGB")  # type: ignore[arg-type]
                found[parts[0]].append((parts[1], parts[2], np.asarray(image)))
    classes = sorted({label for label, _, _ in found["train"]})
    arrays = {}
    for split, rows in found.items():
        rows.sort(key=lambda row: row[:2])
        arrays[f"{split}_images"] = np.stack([image for _, _, image in rows])
        arrays[f"{split}_labels"] = np.array([classes.index(label) for label, _, _ in rows])
    return arrays

"""Data sets as arrays: embedded digits, the canonical sets, a user's ``.npz`` file or image folder.

A feature vector is an image of one pixel with a channel a feature, and a text is the vector of its word counts, so that
everything after this module knows images alone.

A named set is looked for as ``<name>.npz`` in the data folder (``--data-dir`` or ``DYNMIA_DATA``). Without one it is
downloaded once: MNIST, Fashion-MNIST and CIFAR-10 by torchvision, CINIC-10 from its official archive, checked by hash.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np

from .errors import UserError, disk_error, reason
from .study import is_path

SPLITS = ("train", "test")
KINDS = {"images": (), "features": (), "texts": (), "jpeg": ("offsets",)}  # of samples in a file; what they come with
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


@dataclass(frozen=True)
class Dataset:
    """Images (n, H, W, C) and int64 labels (n,) in 0 ... classes - 1, for a training and a test split.

    Images are uint8; feature vectors, images (n, 1, 1, D), may be float32 too.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
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
        path = Path(name).expanduser()
        if not path.exists():
            raise UserError(f"data set {name}: no such file or folder.")
        return _from_folder(path) if path.is_dir() else _from_npz(path)
    if name == "digits":
        return _digits()
    folder = data_dir or os.environ.get("DYNMIA_DATA")
    if folder is None:
        return _download(name, Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dynmia")
    if not Path(folder).is_dir():
        raise UserError(f"data folder {folder} does not exist: name it by --data-dir or DYNMIA_DATA.")
    path = Path(folder) / f"{name}.npz"
    if not path.exists():
        raise UserError(f"data folder {folder} has no {path.name}: put it there, or unset DYNMIA_DATA to download it.")
    return _from_npz(path)


def check(where: object, arrays: dict[str, np.ndarray]) -> Dataset:
    """Check the four arrays of a data set and bring them into the shapes of :class:`Dataset`."""
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        vectors = images.ndim == 4 and images.shape[1:3] == (1, 1)
        if images.dtype != np.uint8 and not vectors:
            raise UserError(f"{where}: {split}_images has dtype {images.dtype}; it must be uint8 (0 to 255).")
        if images.ndim not in (3, 4) or 0 in images.shape:
            raise UserError(f"{where}: {split}_images has shape {images.shape}; it must be (n, H, W) or (n, H, W, C).")
        if images.ndim == 4 and images.shape[-1] not in (1, 3) and not vectors:
            raise UserError(f"{where}: {split}_images has {images.shape[-1]} channels; it must have 1 or 3.")
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{where}: {split}_labels is {labels.dtype} {labels.shape}; it must be integers ({len(images)},)."
            )
    train, test = arrays["train_images"], arrays["test_images"]
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{where}: train images are {train.shape[1:]} but test images {test.shape[1:]}; they must agree."
        )
    present = np.unique(arrays["train_labels"])
    classes = len(present)
    if classes < 2 or present[0] != 0 or present[-1] != classes - 1:
        raise UserError(f"{where}: training labels must cover 0 ... K - 1 with K >= 2; found {present[:12].tolist()}.")
    if arrays["test_labels"].min() < 0 or arrays["test_labels"].max() >= classes:
        raise UserError(f"{where}: test labels must lie in 0 ... {classes - 1}, the classes of the training split.")

    def whole(images: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(images if images.ndim == 4 else images[..., None])

    return Dataset(
        whole(train), arrays["train_labels"].astype(np.int64), whole(test), arrays["test_labels"].astype(np.int64)
    )


def _from_npz(path: Path) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as file:
            kind = next((kind for kind in KINDS if f"train_{kind}" in file), "images")
            keys = [f"{split}_{part}" for split in SPLITS for part in (kind, *KINDS[kind], "labels")]
            for key in keys:
                if key not in file:
                    raise UserError(f"{path} has no key {key!r}; it needs {', '.join(keys)}.")
            arrays = {key: file[key] for key in keys}
        for split in SPLITS:
            given = arrays[f"{split}_{kind}"]
            if kind == "jpeg":
                given = _decode(given.tobytes(), arrays[f"{split}_offsets"])
            elif kind != "images":
                read = _count_words if kind == "texts" and given.dtype.kind == "U" else np.asarray
                given = _vectors(f"{path}: {split}_{kind}", read(given), kind)
            arrays[f"{split}_images"] = given
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on a damaged or pickled file
        raise UserError(f"{path} cannot be read as .npz: {reason(error)}.") from error
    return check(path, arrays)


def _decode(joined: bytes, offsets: np.ndarray) -> np.ndarray:
    """Images, uint8 (n, H, W, C), from JPEG files one after another, which begin and end at ``offsets`` (n + 1,)."""
    from PIL import Image

    files = (joined[start:end] for start, end in pairwise(offsets))
    return np.stack([np.asarray(Image.open(BytesIO(file)).convert("RGB")) for file in files])


def _vectors(where: str, features: np.ndarray, kind: str) -> np.ndarray:
    """Feature vectors (n, D) as images (n, 1, 1, D): uint8 and bool as uint8, other numbers as float32."""
    numeric = features.dtype == bool or np.issubdtype(features.dtype, np.number)
    if features.ndim != 2 or 0 in features.shape or not numeric:
        wanted = {"features": "numbers (n, D)", "texts": "strings (n,)"}[kind]
        raise UserError(f"{where} is {features.dtype} {features.shape}; it must be {wanted}.")
    with np.errstate(over="ignore"):
        kept = features.astype(np.uint8 if features.dtype in (bool, np.uint8) else np.float32)
    if not np.isfinite(kept).all():
        raise UserError(f"{where} holds NaN, infinite or too large numbers: drop or fill them.")
    return kept[:, None, None, :]


def _count_words(texts: np.ndarray) -> np.ndarray:
    """Texts (n,) as counts, uint8 (n, WORDS), of their words of two letters or more, lower case, hashed."""
    from sklearn.feature_extraction.text import HashingVectorizer

    counts = HashingVectorizer(n_features=WORDS, norm=None, alternate_sign=False).transform(texts.tolist())
    return counts.toarray().clip(0, 255).astype(np.uint8)


def _from_folder(path: Path) -> Dataset:
    """Read ``train/CLASS/*`` and ``test/CLASS/*`` with torchvision's class order (alphabetical)."""
    from PIL import Image
    from torchvision.datasets import ImageFolder

    arrays: dict[str, np.ndarray] = {}
    classes: list[str] = []
    for split in SPLITS:
        try:
            folder = ImageFolder(str(path / split))
        except (OSError, RuntimeError) as error:
            raise UserError(f"image folder {path} needs {split}/CLASS/*.png: {reason(error)}.") from error
        classes = classes or folder.classes
        if unknown := set(folder.classes) - set(classes):
            raise UserError(f"{path}: {split} has classes {sorted(unknown)} that train lacks; it has {classes}.")
        images: list[np.ndarray] = []
        for file, _ in folder.samples:
            try:
                image = Image.open(file)
                images.append(np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")))
            except (OSError, ValueError, SyntaxError) as error:
                raise UserError(f"{file} cannot be read as an image: {reason(error)}.") from error
            if images[-1].shape != images[0].shape:
                raise UserError(
                    f"{file} has shape {images[-1].shape}, others {images[0].shape}: all must have one size."
                )
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = np.array([classes.index(folder.classes[label]) for _, label in folder.samples])
    return check(path, arrays)


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
    return _from_npz(arrays_file)


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

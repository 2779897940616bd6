"""Image files and folders of a user as arrays, whatever their mode; what cannot be read as meant is refused by name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError, reason

GREY = ("1", "L")  # modes; and 16 bits
UNKNOWN = {"I": "32-bit integers", "F": "floating-point numbers"}
LITTER = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")  # of other programs, as is what begins with a dot


def decode(file: Path) -> np.ndarray:
    """An image as uint8, (H, W) if it is grey or (H, W, 3), or as uint16 (H, W) if it has 16 bits.

    What is transparent is laid over white.

    Raises:
        UserError: it cannot be read, its numbers have no known range, or over white nothing is left of its shapes.
    """
    from PIL import Image

    if not file.is_file():
        raise UserError(f"{file} is no regular file (but a pipe, a device or a link to nowhere): remove it.")
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(file) as image,
        ):
            if image.mode in UNKNOWN:
                raise UserError(
                    f"{file} holds {UNKNOWN[image.mode]} of unknown range: save it with 8 or 16 bits a value."
                )
            if image.mode.startswith("I;16"):
                return np.asarray(image).astype(np.uint16)
            grey = image.mode in GREY
            if not image.has_transparency_data:
                return np.asarray(image.convert("L" if grey else "RGB"))
            colour = image.convert("RGBA")
            laid = np.asarray(Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour))[..., :3]
            if np.ptp(np.asarray(colour)[..., 3]) and not np.ptp(laid, axis=(0, 1)).any():
                raise UserError(f"{file} is blank once laid over white, its shapes are in alpha: lay it over black.")
            return laid[..., 0] if grey else laid
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds on a damaged file
        raise UserError(f"{file} cannot be read as an image: {reason(error)}.") from error


def read_folder(path: Path, splits: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Images and labels of ``SPLIT/CLASS/**``, classes and files in alphabetical order, as torchvision's ImageFolder.

    Images are grey if all files of all splits are (of modes 1, L or 16 bits), else RGB; 16 bits are scaled to 8. Hidden
    files and folders are ignored, and so are links that lead back to a folder that they lie in.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    images: dict[Path, np.ndarray] = {}
    labels: dict[str, list[int]] = {}
    classes: list[str] = []
    ignored: list[Path] = []
    for split in splits:
        try:
            up = os.path.realpath(path / split)
            entries = [entry for entry in _visible(path / split) if not (entry.is_dir() and _leads_up(entry, [up]))]
            files = {entry.name: list(_walk(entry, [up])) for entry in entries if entry.is_dir()}
        except OSError as error:
            raise UserError(f"image folder {path} needs {split}/CLASS/*.png: {reason(error)}.") from error
        ignored += [entry for entry in entries if entry.name not in files]
        if not files:
            raise UserError(f"image folder {path} needs {split}/CLASS/*.png: {path / split} holds no folder.")
        classes = classes or list(files)
        if unknown := set(files) - set(classes):
            raise UserError(f"{path}: {split} has classes {sorted(unknown)} that train lacks; it has {classes}.")
        labels[split] = []
        for name, members in files.items():
            kept = [file for file in members if file.name.lower().endswith(IMG_EXTENSIONS)]
            ignored += [file for file in members if not file.name.lower().endswith(IMG_EXTENSIONS)]
            if not kept:
                raise UserError(f"{path / split / name} holds no image: put {', '.join(IMG_EXTENSIONS)} there.")
            for file in sorted(kept, key=lambda file: (str(file.parent), file.name)):
                images[file] = decode(file)
                labels[split].append(classes.index(name))
    if ignored:
        warnings.warn(
            f"{len(ignored)} files that are no images in a class folder are left out, such as {ignored[0]}: "
            f"images are CLASS/*{', *'.join(IMG_EXTENSIONS)}.", stacklevel=4,
        )  # fmt: skip
    _must_have_one_size(images)
    bright = max((int(image.max()) for image in images.values() if image.dtype == np.uint16), default=65535)
    if bright < 4096:
        warnings.warn(
            f"{path}: its 16-bit images reach {bright} of 65535, so that {bright // 257 + 1} of 256 grey levels are "
            "left: scale them to the full range.", stacklevel=4,
        )  # fmt: skip
    grey, all_images = all(image.ndim == 2 for image in images.values()), iter(images.values())
    arrays = {}
    for split, numbers in labels.items():
        arrays[f"{split}_images"] = np.stack([_as_bytes(next(all_images), grey) for _ in numbers])
        arrays[f"{split}_labels"] = np.array(numbers)
    return arrays


def _visible(folder: Path) -> list[Path]:
    """What lies in ``folder`` but for what is hidden, by name."""
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in LITTER]


def _leads_up(folder: Path, above: list[str]) -> bool:
    """Whether ``folder`` is a link to one of the folders ``above`` it, or to what these lie in."""
    real = os.path.realpath(folder)
    return any(os.path.commonpath([real, other]) == real for other in above)


def _walk(folder: Path, above: list[str]) -> Iterator[Path]:
    """The files below ``folder``."""
    above = [*above, os.path.realpath(folder)]
    for entry in _visible(folder):
        if not entry.is_dir():
            yield entry
        elif not _leads_up(entry, above):
            yield from _walk(entry, above)


def _must_have_one_size(images: dict[Path, np.ndarray]) -> None:
    first, *others = images
    for file in others:
        (height, width), (rows, columns) = images[file].shape[:2], images[first].shape[:2]
        if (height, width) != (rows, columns):
            raise UserError(
                f"{file} is {width} x {height} pixels and {first} {columns} x {rows}: all must have one size."
            )


def _as_bytes(image: np.ndarray, grey: bool) -> np.ndarray:
    """A decoded image as uint8, (H, W) if ``grey`` or (H, W, 3)."""
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return image if grey or image.ndim == 3 else image[..., None].repeat(3, axis=-1)

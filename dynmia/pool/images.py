"""Image files and folders of a user as arrays, whatever their mode; what cannot be read as meant is refused by name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError, reason

UNKNOWN = {"I": "32-bit integers", "F": "floating-point numbers"}  # modes without a known range
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
            kind = "L" if image.mode in ("1", "L") else "RGB"
            if not image.has_transparency_data:
                return np.asarray(image.convert(kind))
            colour = image.convert("RGBA")
            laid = np.asarray(Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour))[..., :3]
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds on a damaged file
        raise UserError(f"{file} cannot be read as an image: {reason(error)}.") from error
    if np.ptp(np.asarray(colour)[..., 3]) and not np.ptp(laid, axis=(0, 1)).any():
        raise UserError(f"{file} is blank once laid over white, its shapes are in alpha: lay it over black.")
    return laid if kind == "RGB" else laid[..., 0]


def read_folder(path: Path, splits: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Images and labels of ``SPLIT/CLASS/**``, classes and files in alphabetical order, as torchvision's ImageFolder.

    Images are grey if all files of all splits are (of modes 1, L or 16 bits), else RGB; 16 bits are scaled to 8. Hidden
    files and folders are ignored, and so are links that lead back to a folder that they lie in.
    """
    images: dict[Path, np.ndarray] = {}
    labels: dict[str, list[int]] = {}
    classes: list[str] = []
    ignored: list[Path] = []
    for split in splits:
        try:
            entries = _visible(path / split)
            files = {entry.name: [*_files(entry)] for entry in entries if entry.is_dir()}
        except OSError as error:
            raise UserError(f"image folder {path} needs {split}/CLASS/*.png: {reason(error)}.") from error
        if not files:
            raise UserError(f"image folder {path} needs {split}/CLASS/*.png: {path / split} holds no folder.")
        from torchvision.datasets.folder import IMG_EXTENSIONS  # slow: not before the first refusal

        classes = classes or list(files)
        if unknown := set(files) - set(classes):
            raise UserError(f"{path}: {split} has classes {sorted(unknown)} that train lacks; it has {classes}.")
        ignored += [entry for entry in entries if entry.name not in files]
        labels[split] = []
        for name, members in files.items():
            kept = [file for file in members if file.name.lower().endswith(IMG_EXTENSIONS)]
            ignored += sorted(set(members) - set(kept))
            if not kept:
                raise UserError(f"{path / split / name} holds no image: put {', '.join(IMG_EXTENSIONS)} there.")
            images |= {file: decode(file) for file in sorted(kept, key=lambda file: (str(file.parent), file.name))}
            labels[split] += [classes.index(name)] * len(kept)
    if ignored:
        warnings.warn(
            f"{len(ignored)} files that are no images in a class folder are left out, such as {ignored[0]}: "
            f"images are CLASS/*{', *'.join(IMG_EXTENSIONS)}.", stacklevel=4,
        )  # fmt: skip
    sizes = {file: "{1} x {0}".format(*image.shape) for file, image in images.items()}
    first = next(iter(sizes))
    if other := next((file for file in sizes if sizes[file] != sizes[first]), None):
        raise UserError(f"{other} is {sizes[other]} pixels and {first} {sizes[first]}: all must have one size.")
    bright = max((int(image.max()) for image in images.values() if image.dtype == np.uint16), default=65535)
    if bright < 4096:
        warnings.warn(
            f"{path}: its 16-bit images reach {bright} of 65535, so that {bright // 257 + 1} of 256 grey levels are "
            "left: scale them to the full range.", stacklevel=4,
        )  # fmt: skip
    coloured = any(image.ndim == 3 for image in images.values())
    for file, image in images.items():
        if image.dtype == np.uint16:
            image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
        images[file] = image[..., None].repeat(3, axis=-1) if coloured and image.ndim == 2 else image
    pixels = np.stack(list(images.values()))
    ends = np.cumsum([len(labels[split]) for split in splits])
    return {f"{split}_images": part for split, part in zip(splits, np.split(pixels, ends[:-1]))} | {
        f"{split}_labels": np.array(labels[split]) for split in splits
    }


def _visible(folder: Path) -> list[Path]:
    """What lies in ``folder``, by name: not what is hidden or of other programs, nor a link to what it lies in."""
    above = [Path(os.path.realpath(parent)) for parent in (folder, *folder.parents)]
    entries = [folder / name for name in sorted(os.listdir(folder)) if name[0] != "." and name.lower() not in LITTER]
    real = {entry: os.path.realpath(entry) for entry in entries if entry.is_dir()}
    back = {entry for entry, folder in real.items() if any(parent.is_relative_to(folder) for parent in above)}
    return [entry for entry in entries if entry not in back]


def _files(folder: Path) -> Iterator[Path]:
    """The files below ``folder``."""
    for entry in _visible(folder):
        yield from _files(entry) if entry.is_dir() else (entry,)

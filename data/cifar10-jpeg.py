"""The plain ``cifar10_jpeg.npz`` that studies read, made once from a copy of CIFAR-10 that is kept as JPEG files.

    dynmia make cifar10_jpeg path/to/coded.npz

For where the exact images are not at hand. JPEG is lossy, so every result of it says "CIFAR-10, JPEG copy".
"""

import io
import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from dynmia.errors import UserError, reason, shown, writable
from dynmia.store.folder import write_atomic

PARTS = ("jpeg", "offsets", "labels")
KEYS = "train_jpeg (the files one after another, uint8), train_offsets (where each begins and ends), train_labels"


def main(
    coded: Annotated[str, typer.Argument(help=f"a .npz file of JPEG files, with {KEYS}, and the same of test")],
    out: Annotated[str, typer.Option(help="the file to write, for the data folder")] = "cifar10_jpeg.npz",
) -> None:
    """Decode a copy of CIFAR-10 that is kept as JPEG files, and write the plain file that studies read."""
    source, target = Path(coded), writable(out, ".npz")
    if not os.path.isfile(coded):  # unlike Path.is_file, no error for a name that is too long
        raise UserError(f"{shown(coded)} is no file: give the .npz file that holds the JPEG files.")
    if target.exists() and target.samefile(source):
        raise UserError(f"{target} would be written over its own source: name another file by --out, then move it.")
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(source, allow_pickle=False) as file:
            needs = [f"{split}_{part}" for split in ("train", "test") for part in PARTS]
            if lacks := [key for key in needs if key not in file]:
                raise UserError(f"{source} has no key {lacks[0]!r}; it needs {', '.join(needs)}.")
            for split in ("train", "test"):
                joined, offsets, labels = (file[f"{split}_{part}"] for part in PARTS)
                if len(offsets) != len(labels) + 1 or offsets[-1] != len(joined):
                    raise UserError(
                        f"{source}: {split}_offsets are {len(offsets)} and end at {offsets[-1]}: they must be one more "
                        f"than the {len(labels)} labels and end at the {len(joined)} bytes of {split}_jpeg."
                    )
                files = (io.BytesIO(joined[start:end].tobytes()) for start, end in pairwise(offsets))
                images = [np.asarray(Image.open(image).convert("RGB")) for image in files]
                arrays |= {f"{split}_images": np.stack(images), f"{split}_labels": labels}
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and Pillow raise a dozen kinds on a damaged file
        raise UserError(f"{source} cannot be read as .npz of JPEG files: {reason(error)}: replace it.") from error
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomic(target, content.getvalue())
    counts = [f"{len(arrays[f'{split}_labels']):,}" for split in ("train", "test")]
    typer.echo(f"wrote {target} ({' training and '.join(counts)} test images)")

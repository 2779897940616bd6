"""The plain ``cifar10_jpeg.npz`` that studies read, from a copy of CIFAR-10 that is kept as JPEG files.

    dynmia make cifar10_jpeg path/to/coded.npz

For where the exact images are not at hand: JPEG is lossy, so every result of it says "CIFAR-10, JPEG copy".
"""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from dynmia.errors import UserError, reason, writable
from dynmia.store.folder import write_atomic

PARTS = ("jpeg", "offsets", "labels")


def main(coded: str, out: str = "cifar10_jpeg.npz") -> None:
    """Decode the images of ``coded`` and write them as ``train_images``, ``train_labels`` and the same of ``test``.

    Args:
        coded: a ``.npz`` file with ``train_jpeg``, the JPEG files one after another (uint8), ``train_offsets``, where
            each begins and ends (n + 1,), ``train_labels`` (n,), and the same of ``test``.
        out: the file to write, which may lie in the data folder, but not in the place of ``coded``.
    """
    source, target = Path(coded), writable(out, ".npz")
    if not source.is_file():
        raise UserError(f"{source} is no file: give the .npz file that holds the JPEG files.")
    if target.exists() and target.samefile(source):
        raise UserError(f"{target} would be written over its own source: name another file by --out, then move it.")
    try:
        with np.load(source, allow_pickle=False) as file:
            needs = [f"{split}_{part}" for split in ("train", "test") for part in PARTS]
            if lacks := [key for key in needs if key not in file]:
                raise UserError(f"{source} has no key {lacks[0]!r}; it needs {', '.join(needs)}.")
            arrays = {}
            for split in ("train", "test"):
                joined, offsets, labels = (file[f"{split}_{part}"] for part in PARTS)
                if len(offsets) - 1 != len(labels) or offsets[-1] != len(joined):
                    raise UserError(
                        f"{source}: {split}_offsets are {len(offsets)} and end at {offsets[-1]}: they must be one more "
                        f"than the {len(labels)} labels and end at the {len(joined)} bytes of {split}_jpeg."
                    )
                files = (joined[start:end].tobytes() for start, end in pairwise(offsets))
                images = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in files]
                arrays |= {f"{split}_images": np.stack(images), f"{split}_labels": labels}
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and Pillow raise a dozen kinds on a damaged file
        raise UserError(f"{source} cannot be read as .npz of JPEG files: {reason(error)}: replace it.") from error
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomic(target, content.getvalue())
    print(f"wrote {target} ({len(arrays['train_labels']):,} training and {len(arrays['test_labels']):,} test images)")

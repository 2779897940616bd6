"""Fixtures that several files share: a tiny study, its run (trained once), small data files, the real data sets."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

import dynmia

ROOT = str(Path(__file__).resolve().parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
settings.register_profile("dynmia", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("dynmia")
torch.set_num_threads(1)  # as in the training processes: sums over two threads round differently


def pytest_collection_modifyitems(items):
    """A slow or heavy test says why it is."""
    for item in items:
        for mark in (*item.iter_markers("slow"), *item.iter_markers("heavy")):
            if not mark.args:
                raise pytest.UsageError(f"{item.nodeid}: write pytest.mark.{mark.name}('why it takes more than 5 s').")


@pytest.fixture(scope="session")
def tiny() -> dynmia.Study:
    return dynmia.Study(
        dataset="digits", model="cnn", epochs=4, checkpoint_every=2, shadow_models=4, pool_size=120, batch_size=16
    )


@pytest.fixture(scope="session")
def tiny_run(tiny, tmp_path_factory):
    """(folder, run) of `tiny`, never interrupted; do not write into the folder."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, dynmia.train(tiny, out=folder, device="cpu", workers=2, progress=False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not os.environ.get("DYNMIA_DATA"):
        pytest.skip("DYNMIA_DATA names no folder of real data sets")
    return Path(os.environ["DYNMIA_DATA"])


@pytest.fixture
def make_npz(tmp_path):
    """make_npz(name, key=array, or None to leave it out) -> path; 3 classes, 9 x 9 grey, 60 + 30 images."""

    def make(name: str = "own.npz", **changes) -> Path:
        rng = np.random.default_rng(0)
        arrays = {}
        for split, size in (("train", 60), ("test", 30)):
            labels = np.arange(size) % 3
            images = rng.integers(0, 100, (size, 9, 9)) + 70 * labels[:, None, None]
            arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
        arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return make

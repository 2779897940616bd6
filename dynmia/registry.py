"""The data sets that a study can name, each described once: what it holds, where it comes from, how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import choose

WORDS = 4096  # entries of a text's vector, into which its words are hashed


@dataclass(frozen=True)
class NamedSet:
    """A data set that has a name."""

    name: str  # in studies, and of its file <name>.npz
    title: str  # in text and figures
    shape: tuple[int, int, int]  # (C, H, W), as a model sees it; feature vectors and texts are images of one pixel
    train: int  # samples in each split
    test: int
    classes: int
    colour: str  # in every figure (Okabe and Ito 2008)
    source: str  # a class of torchvision.datasets, scikit-learn or archive; empty: not downloaded, a copy of one's own
    text: str  # what `dynmia datasets` says of it


DATASETS = {known.name: known for known in (
    NamedSet("digits", "digits", (1, 8, 8), 1497, 300, 10, "#56B4E9", "scikit-learn",
             "scikit-learn digits, 8 x 8 grey, 1,797 images, embedded: needs no download"),
    NamedSet("mnist", "MNIST", (1, 28, 28), 60000, 10000, 10, "#0072B2", "MNIST", "MNIST, 28 x 28 grey"),
    NamedSet("fashion_mnist", "Fashion-MNIST", (1, 28, 28), 60000, 10000, 10, "#009E73", "FashionMNIST",
             "Fashion-MNIST, 28 x 28 grey"),
    NamedSet("cifar10", "CIFAR-10", (3, 32, 32), 50000, 10000, 10, "#D55E00", "CIFAR10", "CIFAR-10, 32 x 32 colour"),
    NamedSet("cinic10", "CINIC-10", (3, 32, 32), 90000, 90000, 10, "#CC79A7", "archive",
             "CINIC-10, 32 x 32 colour (CIFAR-10 classes, most images from ImageNet)"),
    NamedSet("cifar10_jpeg", "CIFAR-10, JPEG copy", (3, 32, 32), 50000, 10000, 10, "#8C510A", "",
             "CIFAR-10 in a JPEG-coded (lossy) copy of your own: for where the exact images are not at hand"),
    NamedSet("location30", "Location-30", (446, 1, 1), 4010, 1000, 30, "#E69F00", "",
             "Location-30, 446 binary features of who was where, 30 classes; a copy of your own"),
    NamedSet("trec", "TREC", (WORDS, 1, 1), 5452, 500, 6, "#000000", "",
             "TREC questions by the words in them, 6 classes; a copy of your own"),
)}  # fmt: skip


def named_set(dataset: str) -> NamedSet | None:
    """The data set of that name, None for the path of a user's own; another name is an error that says the nearest."""
    if dataset.endswith(".npz") or "/" in dataset or "\\" in dataset:
        return None
    return DATASETS[choose(dataset, DATASETS, "data set", ", a .npz file or an image folder (a path with a slash)")]

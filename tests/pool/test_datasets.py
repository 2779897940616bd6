import hashlib
import http.server
import io
import os
import runpy
import struct
import tarfile
import threading
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

import dynmia
from dynmia import Study, UserError
from dynmia.dynamics.metrics import METRICS
from dynmia.pool import datasets as data
from dynmia.pool.datasets import Texts, load_dataset, read_cinic10
from dynmia.pool.pool import make_pool
from dynmia.registry import DATASETS

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No data folder, an empty cache."""
    monkeypatch.delenv("DYNMIA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dynmia"


def assert_refused(name, *words, **keywords):
    with pytest.raises(UserError) as caught:
        load_dataset(str(name), **keywords)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert [word for word in words if word not in message] == [], message


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pixels(seed, size=(6, 5, 3)):
    return np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)


# --- digits and .npz files


def test_digits_need_no_download_and_use_the_whole_range():
    digits = load_dataset("digits")
    assert digits.train_images.shape == (1497, 8, 8, 1)
    assert digits.test_images.shape == (300, 8, 8, 1)
    assert digits.classes == 10
    assert (digits.train_images.min(), digits.train_images.max()) == (0, 255)


def test_no_digit_is_in_both_splits():
    digits = load_dataset("digits")
    train = {image.tobytes() for image in digits.train_images}
    assert not [1 for image in digits.test_images if image.tobytes() in train]


def test_an_own_file_loads_as_written(make_npz):
    path = make_npz()
    loaded = load_dataset(str(path))
    with np.load(path) as file:
        assert (loaded.train_images[..., 0] == file["train_images"]).all()
        assert (loaded.test_labels == file["test_labels"]).all()
    assert loaded.train_images.shape == (60, 9, 9, 1)
    assert loaded.classes == 3


def test_a_named_set_is_read_from_the_data_folder(make_npz, monkeypatch):
    path = make_npz("mnist.npz")
    assert len(load_dataset("mnist", path.parent).train_labels) == 60
    monkeypatch.setenv("DYNMIA_DATA", str(path.parent))
    assert len(load_dataset("mnist").train_labels) == 60


IMAGES = np.zeros((60, 9, 9), np.uint8)
LABELS = np.arange(60) % 3
MALFORMED = {
    "missing-key": (dict(test_labels=None), ["'test_labels'", "train_images"]),
    "float-images": (dict(train_images=IMAGES.astype(np.float32)), ["float32", "uint8"]),
    "flat-images": (dict(train_images=IMAGES.reshape(60, 81)), ["(60, 81)", "(n, H, W)"]),
    "no-images": (dict(test_images=IMAGES[:0], test_labels=LABELS[:0]), ["(0, 9, 9)"]),
    "two-channels": (dict(train_images=np.stack([IMAGES, IMAGES], -1)), ["2 channels", "1 or 3"]),
    "channels-first": (dict(train_images=IMAGES.reshape(60, 1, 9, 9)), ["9 channels"]),
    "float-labels": (dict(train_labels=LABELS + 0.5), ["float64", "integers"]),
    "few-labels": (dict(train_labels=LABELS[:59]), ["(59,)", "(60,)"]),
    "test-label-beyond": (dict(test_labels=np.full(30, 3)), ["test labels", "0 ... 2"]),
    "test-label-negative": (dict(test_labels=np.full(30, -1)), ["test labels", "0 ... 2"]),
    "labels-with-gaps": (dict(train_labels=LABELS * 2), ["training labels", "[0, 2, 4]"]),
    "labels-from-one": (dict(train_labels=LABELS + 1), ["training labels", "[1, 2, 3]"]),
    "one-class": (dict(train_labels=LABELS * 0), ["training labels", "K >= 2"]),
    "other-test-shape": (dict(test_images=IMAGES[:30, :8]), ["(9, 9)", "(8, 9)", "agree"]),
    "objects": (dict(train_labels=LABELS.astype(object)), ["train_labels", "allow_pickle"]),
    "nan-labels": (dict(train_labels=LABELS * np.nan), ["float64", "integers"]),
    "text-labels": (dict(train_labels=LABELS.astype(str)), ["<U21", "integers"]),
    "one-hot-labels": (dict(train_labels=np.eye(3)[LABELS]), ["(60, 3)", "integers (60,)"]),
    "complex-images": (dict(train_images=IMAGES + 0j), ["train_images", "complex128", "uint8"]),
    "complex-labels": (dict(train_labels=LABELS + 0j), ["train_labels", "complex128"]),
    "structured-images": (dict(train_images=np.zeros((60, 9, 9), [("a", "u1")])), ["[('a', 'u1')]", "uint8"]),
    "vectors-of-nan": (
        dict(train_images=np.full((60, 1, 1, 5), np.nan), test_images=np.zeros((30, 1, 1, 5))),
        ["train_images", "NaN"],
    ),
    "vectors-of-complex": (dict(train_images=np.zeros((60, 1, 1, 5), complex)), ["complex128", "numbers (n, 1, 1, D)"]),
    "vectors-of-text": (dict(train_images=np.full((60, 1, 1, 5), "x")), ["<U1", "numbers (n, 1, 1, D)"]),
    "other-keys": (
        dict(zip(("train_images", "train_labels", "a", "b"), (None, None, IMAGES, LABELS))),
        ["no key 'train_images'", "has test_images, test_labels, a, b."],
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused(make_npz, case):
    changes, words = MALFORMED[case]
    assert_refused(make_npz(**changes), "own.npz", *words)


@pytest.mark.parametrize("labels", [LABELS[:, None], LABELS / 1, LABELS.astype(np.uint8)[:, None], np.float16(LABELS)])
def test_labels_may_be_whole_numbers_of_any_type_and_a_column(make_npz, labels):
    loaded = load_dataset(str(make_npz(train_labels=labels)))
    assert loaded.train_labels.dtype == np.int64
    assert loaded.train_labels.tolist() == LABELS.tolist()


def test_the_keys_of_keras_are_read(make_npz):
    first = load_dataset(str(make_npz()))
    images, labels = first.train_images[..., 0], first.train_labels
    keras = dict(x_train=images, y_train=labels[:, None], x_test=images[:9], y_test=labels[:9, None])
    none = dict.fromkeys(("train_images", "train_labels", "test_images", "test_labels"))
    second = load_dataset(str(make_npz("keras.npz", **none, **keras)))
    assert (second.train_images == first.train_images).all()
    assert (second.test_labels == labels[:9]).all()


@pytest.mark.parametrize("shape", [(10**12, 9), (2**62, 2**62), (-1, 9, 9), (10**9,)])
def test_a_header_that_promises_too_much_is_refused(tmp_path, make_npz, shape):
    header = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode()
    with zipfile.ZipFile(make_npz(train_images=None), "a") as file:
        file.writestr("train_images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n")
    assert_refused(tmp_path / "own.npz", "own.npz cannot be read as .npz: train_images")


def test_a_pipe_in_place_of_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "mnist.npz")
    assert_refused(tmp_path / "mnist.npz", "mnist.npz is no regular file")
    assert_refused("mnist", "mnist.npz is no regular file", data_dir=tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 but no more", b"\x93NUMPY\x01\x00"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "own.npz").write_bytes(content)
    assert_refused(tmp_path / "own.npz", "own.npz", "cannot be read as .npz")


def test_a_single_array_under_the_name_of_an_archive_is_refused(tmp_path):
    with (tmp_path / "own.npz").open("wb") as file:
        np.save(file, IMAGES)
    assert_refused(tmp_path / "own.npz", "own.npz", "cannot be read as .npz")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(make_npz, share):
    path = make_npz()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path, "own.npz", "cannot be read as .npz")


def decode(*words):
    """Run the script that makes a plain file of a coded one."""
    runpy.run_path(str(ROOT / "data" / "cifar10-jpeg.py"))["main"](*map(str, words))


def coded_set(folder, **changes):
    """A file coded.npz with 6 training and 3 test images, and what each decodes to."""
    arrays, decoded = {}, {}
    for split, count in (("train", 6), ("test", 3)):
        files = []
        for seed in range(count):
            file = io.BytesIO()
            Image.fromarray(pixels(seed, (32, 32, 3))).save(file, "JPEG", quality=75)
            files.append(file.getvalue())
        decoded[split] = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
        arrays |= {
            f"{split}_jpeg": np.frombuffer(b"".join(files), np.uint8), f"{split}_labels": np.arange(count) % 3,
            f"{split}_offsets": np.cumsum([0, *map(len, files)]),
        }  # fmt: skip
    np.savez(folder / "coded.npz", **{k: v for k, v in (arrays | changes).items() if v is not None})
    return decoded


def test_jpeg_coded_images_are_decoded(tmp_path, capsys):
    decoded = coded_set(tmp_path)
    decode(tmp_path / "coded.npz", tmp_path / "cifar10_jpeg.npz")
    loaded = load_dataset("cifar10_jpeg", tmp_path)
    assert (loaded.train_images == decoded["train"]).all()
    assert (loaded.test_images == decoded["test"]).all()
    assert "6 training and 3 test images" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar10_jpeg.npz", "coded.npz"]


def test_a_coded_file_in_the_place_of_the_plain_one_names_the_command(tmp_path):
    coded_set(tmp_path)
    (tmp_path / "coded.npz").rename(tmp_path / "cifar10_jpeg.npz")
    command = f"dynmia make cifar10_jpeg {tmp_path / 'cifar10_jpeg.npz'}"
    assert_refused("cifar10_jpeg", "holds JPEG files", command, data_dir=tmp_path)


def test_a_coded_file_is_not_written_over(tmp_path):
    coded_set(tmp_path)
    content = (tmp_path / "coded.npz").read_bytes()
    with pytest.raises(UserError, match="over its own source"):
        decode(tmp_path / "coded.npz", tmp_path / "coded.npz")
    assert (tmp_path / "coded.npz").read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(test_offsets=None), ["no key 'test_offsets'", "train_jpeg, train_offsets, train_labels"]),
        (dict(train_jpeg=np.zeros(6, np.uint8), train_offsets=np.arange(7)), ["cannot be read", "cannot identify"]),
        (dict(train_offsets=np.arange(3)), ["train_offsets", "one more than the 6 labels"]),
        (dict(train_jpeg=np.zeros(9999, np.uint8)), ["train_offsets", "end at the 9999 bytes"]),
        (dict(train_labels=np.arange(5) % 3), ["train_offsets", "one more than the 5 labels"]),
    ],
)
def test_a_malformed_coded_file_is_refused(tmp_path, changes, words):
    coded_set(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        decode(tmp_path / "coded.npz", tmp_path / "plain.npz")
    assert [word for word in ("coded.npz", *words) if word not in str(caught.value)] == [], str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "plain.npz").exists()


@pytest.mark.parametrize("name", ["cifar10_jpeg", "location30", "trec"])
def test_a_set_that_is_not_downloaded_says_where_to_put_it(offline, name):
    assert_refused(name, f"{name} is not downloaded", f"{name}.npz", "DYNMIA_DATA")


# --- feature vectors and texts

FEATURES = np.random.default_rng(0).normal(size=(60, 5))
TEXTS = np.array(["Who is who ?", "what is a WHO", "so be it"] * 20)


@pytest.mark.parametrize(
    ("features", "dtype"),
    [(FEATURES > 0, np.uint8), (np.arange(300, dtype=np.uint8).reshape(60, 5), np.uint8), (FEATURES, np.float32),
     (np.arange(300).reshape(60, 5) - 9, np.float32)],
)  # fmt: skip
def test_feature_vectors_are_images_of_one_pixel(make_npz, features, dtype):
    loaded = load_dataset(str(make_npz(train_images=None, train_features=features, test_features=features[:30])))
    assert loaded.train_images.shape == (60, 1, 1, 5)
    assert loaded.train_images.dtype == dtype
    np.testing.assert_allclose(loaded.train_images[:, 0, 0], features, rtol=1e-6)
    np.testing.assert_array_equal(loaded.test_images, loaded.train_images[:30])


def test_texts_are_counts_of_their_words(make_npz):
    loaded = load_dataset(str(make_npz(train_images=None, train_texts=TEXTS, test_texts=TEXTS[:30])))
    first, second, _ = loaded.train_images[:3, 0, 0].astype(int)
    assert loaded.train_images.shape == (60, 1, 1, data.WORDS)
    assert (first.sum(), second.sum()) == (3, 3)  # "a" and "?" are no words
    assert first.max() == 2
    assert second[first.argmax()] == 1  # who
    assert ((first > 0) & (second > 0)).sum() == 2  # who, is


def test_a_word_that_is_too_frequent_counts_as_255(make_npz):
    texts = np.array(["so " * 300, "so it"] * 30)
    loaded = load_dataset(str(make_npz(train_images=None, train_texts=texts, test_texts=texts[:30])))
    assert loaded.train_images[0].max() == 255


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(train_features=FEATURES), ["no key 'test_features'", "it needs train_features, train_labels"]),
        (dict(train_features=FEATURES, test_features=FEATURES[:30, :4]), ["(5,)", "(4,)", "agree"]),
        (dict(train_features=FEATURES[0], test_features=FEATURES), ["train_features", "(5,)", "numbers (n, D)"]),
        (
            dict(train_features=FEATURES, test_features=TEXTS[:, None]),
            ["test_features is <U13 (60, 1)", "numbers (n, D)"],
        ),
        (dict(train_features=np.full((60, 5), np.nan), test_features=FEATURES[:30]), ["train_features", "NaN"]),
        (dict(train_features=FEATURES, test_features=FEATURES[:30] * 1e300), ["test_features", "too large"]),
        (dict(train_features=FEATURES[:9], test_features=FEATURES[:30]), ["integers (9,)"]),
        (dict(train_texts=TEXTS, test_texts=np.arange(30)), ["test_texts is int64 (30,)", "strings (n,)"]),
        (dict(train_texts=TEXTS.astype(object), test_texts=TEXTS[:30]), ["allow_pickle"]),
    ],
)
def test_malformed_vectors_and_texts_are_refused(make_npz, changes, words):
    assert_refused(make_npz(train_images=None, test_images=None, **changes), "own.npz", *words)


def test_float_features_are_standardised_each_by_itself(make_npz):
    features = np.column_stack([FEATURES[:, 0] * 1e-4, 1e3 + FEATURES[:, 1], np.full(60, 7.0)])
    path = make_npz(train_images=None, train_features=features, test_features=features[:30])
    pool = make_pool(Study(dataset=str(path)), load_dataset(str(path)))
    scaled = (pool.images[:, 0, 0] - pool.mean) / pool.std
    np.testing.assert_allclose(scaled.std(0), [1, 1, 0], atol=1e-3)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-3)


STEPS = np.arange(60)


@pytest.mark.parametrize(
    "column",
    [1.7e9 + STEPS, 1.7e9 + FEATURES[:, 0], 1.7e9 + 86400 * FEATURES[:, 0], 1.7e18 + 1e9 * STEPS, 1e9 + LABELS % 2,
     np.where(LABELS == 0, 0, 1.7e9 + STEPS), 2**24 + STEPS, -(2**40) - STEPS],
)  # fmt: skip
def test_a_column_with_a_large_offset_keeps_its_values(make_npz, column):
    features = np.column_stack([LABELS, column])
    path = make_npz(train_images=None, train_features=features, test_features=features[:30])
    loaded = load_dataset(str(path))
    assert loaded.train_images.dtype == loaded.test_images.dtype == np.float32
    first, second = loaded.train_images[:, 0, 0].T.astype(np.float64)
    assert (first == LABELS).all()
    np.testing.assert_allclose(second - second[0], column - column[0], rtol=1e-6, atol=1e-4 * column.std())
    np.testing.assert_array_equal(loaded.test_images, loaded.train_images[:30])


@pytest.mark.parametrize(
    "column",
    [FEATURES[:, 0], 1e3 + FEATURES[:, 0], 1e12 * FEATURES[:, 0], 1e-30 * FEATURES[:, 0], np.full(60, 0.1),
     np.where(STEPS == 5, 1e30, FEATURES[:, 0]), 2**24 - STEPS, 1.7e9 + 3e7 * FEATURES[:, 0]],
)  # fmt: skip
def test_a_column_that_float32_holds_well_is_only_rounded(make_npz, column):
    features = np.column_stack([column, LABELS])
    loaded = load_dataset(str(make_npz(train_images=None, train_features=features, test_features=features[:30])))
    np.testing.assert_array_equal(loaded.train_images[:, 0, 0], features.astype(np.float32))


@pytest.mark.parametrize(
    "column",
    [1e-60 * FEATURES[:, 0], 2**60 + STEPS, np.uint64(2**63) + STEPS.astype(np.uint64), 1e12 * (STEPS % 3) + STEPS],
)
def test_a_column_that_loses_its_values_is_refused(make_npz, column):
    features = np.column_stack([np.zeros_like(column), column])
    path = make_npz(train_images=None, train_features=features, test_features=features[:30])
    assert_refused(path, "train_features: column 1 (from 0) has 60 distinct values", "rescale")


def test_composed_and_decomposed_letters_are_the_same_word(make_npz):
    composed = np.array(["né ici", "là bas"] * 30)
    decomposed = np.array([unicodedata.normalize("NFD", text) for text in composed])
    assert (composed != decomposed).all()
    loaded = load_dataset(str(make_npz(train_images=None, train_texts=composed, test_texts=decomposed[:30])))
    np.testing.assert_array_equal(loaded.train_images[:30], loaded.test_images)


@pytest.mark.parametrize(
    ("text", "words"),
    [("今天天气怎么样我想去公园散步", "20 of 60 texts have less than one space in 12 characters"),
     (f"{0:064x}", "separate the words by spaces"), ("a ?", "20 of 60 texts have no word of two characters or more"),
     ("", "leave them out"), ("who a b c d e f g h", "160 of 300 words are single characters")],
)  # fmt: skip
def test_texts_without_words_are_said(make_npz, text, words):
    texts = np.array([text, "who is it", "what is that"] * 20)
    path = make_npz(train_images=None, train_texts=texts, test_texts=texts[1:3].repeat(15))
    with pytest.warns(UserWarning, match=words):
        load_dataset(str(path))


def test_texts_are_sparse_and_indexed_as_the_dense_array_that_they_stand_for(make_npz):
    texts = np.array([" ".join(f"w{k}" for k in range(i, 2 * i + 2)) for i in range(60)])
    sparse = load_dataset(str(make_npz(train_images=None, train_texts=texts, test_texts=texts[:30]))).train_images
    dense = np.asarray(sparse)
    assert isinstance(sparse, Texts)
    counts = sparse.counts
    assert counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes < dense.nbytes / 20
    assert (sparse.shape, sparse.dtype, len(sparse)) == (dense.shape, dense.dtype, len(dense))
    for index in (3, -1, slice(2, 9), slice(50, 99), [5, 5, 0], STEPS % 7 == 0, torch.tensor([4, 2]),
                  (slice(None), 0, 0), (slice(3, 5), 0)):  # fmt: skip
        expected = dense[np.asarray(index) if isinstance(index, torch.Tensor) else index]
        assert sparse[index].shape == expected.shape
        assert (sparse[index] == expected).all()
    assert (np.asarray(sparse.take(np.array([9, 1]))) == dense[[9, 1]]).all()


def test_augmentation_of_feature_vectors_is_refused(make_npz):
    path = make_npz(train_images=None, train_features=FEATURES, test_features=FEATURES[:30])
    study = Study(dataset=str(path), augment=True)
    with pytest.raises(UserError, match=r"augment crops and flips images, and .*own.npz has none"):
        make_pool(study, load_dataset(str(path)))


@pytest.mark.parametrize(("kind", "model"), [("features", "mlp"), ("features", "cnn"), ("texts", "mlp")])
def test_a_population_trains_on_vectors_and_its_members_show(make_npz, tmp_path, kind, model):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(60, 20)) if kind == "features" else np.array(
        [" ".join(rng.choice([f"w{k}" for k in range(400)], 8)) for _ in range(60)]
    )  # fmt: skip
    path = make_npz(train_images=None, **{f"train_{kind}": samples, f"test_{kind}": samples[:30]})
    study = Study(dataset=str(path), model=model, epochs=40, checkpoint_every=20, shadow_models=6, batch_size=8)
    run = dynmia.train(study, out=tmp_path / "run", device="cpu", workers=1, progress=False)
    auc = METRICS["auc"].of(dynmia.vulnerability_plane(run, "lira:posterior"), None)
    assert float(run.train_accuracy.isel(epoch=-1).mean()) > 0.95  # labels of noise, learned by heart
    assert float(auc) > 0.9


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_loads_the_same_or_is_refused(tmp_path, save):
    path, labels = tmp_path / "own.npz", np.arange(12) % 3
    arrays = dict(train_images=pixels(0, (12, 4, 4)), test_images=pixels(1, (12, 4, 4)))
    save(path, **arrays, train_labels=labels, test_labels=labels)
    content, refused = path.read_bytes(), 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            loaded = load_dataset(str(path))
        except UserError:
            refused += 1
        else:
            assert (loaded.train_images[..., 0] == arrays["train_images"]).all()
    assert refused > len(content) // 7 // 2


@pytest.mark.parametrize("name", ["no/such/folder/", "no/such.npz", "no-such.npz", "x" * 999 + ".npz", "~nobody/x.npz"])
def test_a_missing_own_file_or_folder_is_named(name):
    assert_refused(name, name, "no such file or folder")


def test_a_missing_data_folder_names_the_option(tmp_path):
    assert_refused("mnist", str(tmp_path / "nowhere"), "--data-dir", data_dir=tmp_path / "nowhere")


def test_a_data_folder_without_the_set_names_the_file(tmp_path):
    assert_refused("cifar10", str(tmp_path), "cifar10.npz", data_dir=tmp_path)


# --- image folders


def write_folder(root, sizes=((6, 5, 3),), test_classes=("a cat", "dog")):
    """Two images a class and split; returns them in order of split, class and file name."""
    written = {"train": [], "test": []}
    for split, classes in (("train", ("a cat", "dog")), ("test", test_classes)):
        for label in classes:
            for number in range(2):
                image = pixels(len(written["train"]), sizes[number % len(sizes)])
                write_png(root / split / label / f"{number}.png", image)
                written[split].append(image)
    return written


@pytest.mark.parametrize("size", [(6, 5, 3), (6, 5)])
def test_an_image_folder_loads_as_written(tmp_path, size):
    written = write_folder(tmp_path, [size])
    loaded = load_dataset(f"{tmp_path}/")
    assert (loaded.train_images.reshape(4, *size) == np.stack(written["train"])).all()
    assert (loaded.test_images.reshape(4, *size) == np.stack(written["test"])).all()
    assert loaded.train_labels.tolist() == loaded.test_labels.tolist() == [0, 0, 1, 1]


def test_images_of_different_sizes_are_refused(tmp_path):
    write_folder(tmp_path, [(6, 5, 3), (5, 6, 3)])
    assert_refused(tmp_path, "1.png is 6 x 5", "0.png 5 x 6", "one size")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_folder_without_a_split_is_refused(tmp_path, split):
    write_folder(tmp_path)
    (tmp_path / split).rename(tmp_path / "elsewhere")
    assert_refused(tmp_path, f"{split}/CLASS/*.png")


def test_a_test_split_without_a_class_keeps_the_labels_of_the_training_split(tmp_path):
    write_folder(tmp_path, test_classes=["dog"])
    assert load_dataset(str(tmp_path)).test_labels.tolist() == [1, 1]


def test_a_test_class_that_training_lacks_is_refused(tmp_path):
    write_folder(tmp_path, test_classes=["bird", "dog"])
    assert_refused(tmp_path, "bird")


@pytest.mark.parametrize("content", [b"", b"no image", b"half"])
def test_a_damaged_image_is_named(tmp_path, content):
    write_folder(tmp_path)
    path = tmp_path / "train" / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:60] if content == b"half" else content)
    assert_refused(tmp_path, "0.png")


def write_images(root, **files):
    """The same images for each class and split: a file name (with _ for the dot) and what it shows."""
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (root / folder).mkdir(parents=True)
        for name, image in files.items():
            image.save(root / folder / name.replace("_", "."))


SIXTEEN = np.array([[0, 128, 129, 255, 257], [5000, 30000, 60000, 65407, 65535]], np.uint16)
GREY, COLOUR = Image.fromarray(pixels(1, (2, 5))), Image.fromarray(pixels(2, (2, 5, 3)))
ALPHA = Image.fromarray(pixels(3, (2, 5)))
BLACK, WHITE = Image.new("L", (5, 2), 0), Image.new("L", (5, 2), 255)


def big_endian():
    image = Image.new("I;16B", (5, 2))
    image.frombytes(SIXTEEN.astype(">u2").tobytes())
    return image


def over_white(image, alpha):
    """(H, W, 3) of ``image`` where ``alpha`` is 255, of white where it is 0."""
    share = np.asarray(alpha)[..., None] / 255
    return share * np.asarray(image.convert("RGB")) + (1 - share) * 255


MODES = {
    "1": ("png", WHITE.convert("1"), np.asarray(WHITE)),
    "L": ("png", GREY, np.asarray(GREY)),
    "I;16": ("png", Image.fromarray(SIXTEEN), SIXTEEN / 257),
    "I;16B": ("tif", big_endian(), SIXTEEN / 257),
    "P": ("png", COLOUR.convert("P"), np.asarray(COLOUR.convert("P").convert("RGB"))),
    "CMYK": ("tif", COLOUR.convert("CMYK"), np.asarray(COLOUR)),
    "RGBA": ("png", Image.merge("RGBA", [*COLOUR.split(), ALPHA]), over_white(COLOUR, ALPHA)),
    "RGBA, opaque": ("png", Image.merge("RGBA", [*COLOUR.split(), WHITE]), np.asarray(COLOUR)),
    "LA": ("png", Image.merge("LA", [BLACK, ALPHA]), over_white(BLACK, ALPHA)),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_shows_what_it_shows(tmp_path, mode):
    kind, image, shown = MODES[mode]
    write_images(tmp_path, **{f"x_{kind}": image})
    with Image.open(tmp_path / f"train/a/x.{kind}") as written:
        assert written.mode == mode.split(",")[0]
    loaded = load_dataset(str(tmp_path)).train_images[0].squeeze()
    assert loaded.shape == shown.shape
    assert np.abs(loaded - shown).max() <= (1 if "A" in mode else 0.5)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_colour_that_stands_for_transparent_becomes_white(tmp_path, mode):
    image = COLOUR.convert(mode)
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            image.save(tmp_path / split / label / "x.png", transparency=image.getpixel((1, 0)))
    loaded = load_dataset(str(tmp_path)).train_images[0]
    assert (loaded[0, 1] == 255).all()
    assert (loaded[1, 1] == np.asarray(image.convert("L" if mode == "L" else "RGB"))[1, 1]).all()


REFUSED = {
    "I": ("tif", Image.fromarray(SIXTEEN.astype(np.int32)), "32-bit integers of unknown range"),
    "F": ("tif", Image.fromarray(SIXTEEN.astype(np.float32)), "floating-point numbers of unknown range"),
    "LA, white": ("png", Image.merge("LA", [WHITE, ALPHA]), "blank once laid over white"),
}


@pytest.mark.parametrize("mode", REFUSED)
def test_an_image_that_would_be_lost_is_refused_by_name(tmp_path, mode):
    kind, image, words = REFUSED[mode]
    write_images(tmp_path, **{f"x_{kind}": image})
    assert_refused(tmp_path, f"train/a/x.{kind}", words)


def test_sixteen_bits_of_which_few_are_used_are_said(tmp_path):
    write_images(tmp_path, x_png=Image.fromarray(SIXTEEN // 16))
    with pytest.warns(UserWarning, match="16-bit images reach 4095 of 65535, so that 16 of 256 grey levels are left"):
        load_dataset(str(tmp_path))


def test_a_grey_image_among_colours_becomes_colour_in_both_splits(tmp_path):
    write_images(tmp_path, x_png=GREY, y_png=Image.fromarray(SIXTEEN))
    COLOUR.save(tmp_path / "test/b/z.png")
    loaded = load_dataset(str(tmp_path))
    assert loaded.train_images.shape == (4, 2, 5, 3)
    assert (loaded.train_images[0] == np.asarray(GREY)[..., None]).all()
    assert (loaded.test_images[-1] == np.asarray(COLOUR)).all()


def test_sizes_that_differ_between_the_splits_are_both_named(tmp_path):
    write_images(tmp_path, x_png=GREY)
    GREY.resize((4, 4)).save(tmp_path / "test/b/x.png")
    assert_refused(tmp_path, "test/b/x.png is 4 x 4 pixels", "train/a/x.png 5 x 2")


def test_litter_of_other_programs_is_ignored(tmp_path):
    write_images(tmp_path, x_png=GREY)
    for name in ("train/.ipynb_checkpoints/x.png", "train/__MACOSX/x.png", "test/.new/x.png", "train/a/.cache/x.png",
                 "train/a/._x.png", "test/b/._x.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    for name in ("train/.DS_Store", "train/a/.DS_Store", "test/b/Thumbs.db", "train/desktop.ini"):
        (tmp_path / name).write_bytes(b"no image")
    loaded = load_dataset(str(tmp_path))
    assert (loaded.classes, len(loaded.train_images), len(loaded.test_images)) == (2, 2, 2)


@pytest.mark.parametrize("name", ["train/a/notes.txt", "train/a/x.gif", "test/x.png"])
def test_files_that_are_left_out_are_named(tmp_path, name):
    write_images(tmp_path, x_png=GREY)
    GREY.save(tmp_path / name, "PNG")
    with pytest.warns(UserWarning, match=rf"1 files that are no images.*{name}"):
        assert len(load_dataset(str(tmp_path)).train_images) == 2


def test_links_that_lead_back_count_nothing_twice(tmp_path):
    write_images(tmp_path / "set", x_png=GREY)
    (tmp_path / "elsewhere").mkdir()
    GREY.save(tmp_path / "elsewhere" / "y.png")
    for name, target in [("train/a/loop", "set/train/a"), ("train/a/up", "set"), ("train/b/split", "set/train"),
                         ("train/class", "set/train"), ("train/a/far", "elsewhere"), ("test/b/home", "")]:  # fmt: skip
        (tmp_path / "set" / name).symlink_to(tmp_path / target)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    loaded = load_dataset(str(tmp_path / "set"))
    assert (loaded.classes, loaded.train_labels.tolist(), loaded.test_labels.tolist()) == (2, [0, 0, 1], [0, 1])


@pytest.mark.parametrize("kind", ["pipe", "link to nowhere", "link to itself"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    write_images(tmp_path, x_png=GREY)
    path = tmp_path / "train/b/y.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "link to itself" else tmp_path / "nowhere")
    assert_refused(tmp_path, "train/b/y.png is no regular file")


@pytest.mark.parametrize("side", [10_000, 60_000, 2**31 - 1])
def test_an_image_that_promises_too_much_is_refused(tmp_path, side):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    write_images(tmp_path, x_png=GREY)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    content = header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    (tmp_path / "train/b/x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert_refused(tmp_path, "train/b/x.png cannot be read as an image", "decompression bomb")


# --- downloads, without a network


def write_cinic10(path):
    """An archive in the official layout, with the members out of order and a split that is not read."""
    images = {}
    with tarfile.open(path, "w:gz") as tar:
        for split in ("valid", "train", "test"):
            for label in reversed(CIFAR_CLASSES):
                name = f"CINIC-10/{split}/{label}/n{len(images):03d}.png"
                images[name] = pixels(len(images), (32, 32, 3))
                file = io.BytesIO()
                Image.fromarray(images[name]).save(file, "PNG")
                info = tarfile.TarInfo(name)
                info.size = file.tell()
                file.seek(0)
                tar.addfile(info, file)
    return images


def test_cinic10_archive_is_decoded_in_order_of_class_and_name(tmp_path):
    images = write_cinic10(tmp_path / "cinic.tar.gz")
    arrays = read_cinic10(tmp_path / "cinic.tar.gz")
    for split in ("train", "test"):
        assert arrays[f"{split}_labels"].tolist() == list(range(10))
        expected = [images[name] for name in sorted(images) if f"/{split}/" in name]
        assert (arrays[f"{split}_images"] == np.stack(expected)).all()


def test_grey_images_of_cinic10_become_colour(tmp_path):
    with tarfile.open(tmp_path / "cinic.tar.gz", "w:gz") as tar:
        for split in ("train", "test"):
            write_png(tmp_path / "x.png", pixels(0, (32, 32)))
            tar.add(tmp_path / "x.png", f"CINIC-10/{split}/airplane/x.png")
    assert read_cinic10(tmp_path / "cinic.tar.gz")["train_images"].shape == (1, 32, 32, 3)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """serve(md5) -> an archive, at the address and with the hash that the package will use; served on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()

    def make(md5=None):
        archive = tmp_path / "source.tar.gz"
        write_cinic10(archive)
        monkeypatch.setattr(data, "CINIC10_URL", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        monkeypatch.setattr(data, "CINIC10_MD5", md5 or hashlib.md5(archive.read_bytes()).hexdigest())
        return archive

    yield make
    server.shutdown()
    server.server_close()


def test_cinic10_is_fetched_once_and_kept(serve, offline):
    archive = serve()
    first = load_dataset("cinic10")
    assert first.train_images.shape == (10, 32, 32, 3)
    archive.unlink()
    (offline / "CINIC-10.tar.gz").unlink()
    assert (load_dataset("cinic10").train_images == first.train_images).all()


def test_cinic10_with_another_hash_is_refused_and_not_kept(serve, offline):
    serve(md5="0" * 32)
    assert_refused("cinic10", "hash", "cinic10.npz", "--data-dir")
    assert not (offline / "cinic10.npz").exists()


def test_cinic10_that_cannot_be_fetched_names_the_mend(serve, offline):
    serve().unlink()
    assert_refused("cinic10", "could not be downloaded", "cinic10.npz", "DYNMIA_DATA")


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_copy_of_cinic10_in_the_cache_is_named(serve, offline, share):
    serve()
    load_dataset("cinic10")
    path = offline / "cinic10.npz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert_refused("cinic10", f"delete {path}")
    path.unlink()
    assert len(load_dataset("cinic10").train_labels) == 10


def test_an_empty_file_of_torchvision_in_the_cache_is_named(offline):
    raw = offline / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").touch()
    assert_refused("mnist", "mnist: a damaged file", f"delete {raw}/t")


@pytest.mark.parametrize("error", [RuntimeError("Error downloading\nsecond line"), OSError("no network"), OSError()])
@pytest.mark.parametrize(("name", "class_name"), [("mnist", "MNIST"), ("cifar10", "CIFAR10")])
def test_a_failed_download_names_the_mend(monkeypatch, offline, name, class_name, error):
    def fail(*args, **keywords):
        raise error

    monkeypatch.setattr(f"torchvision.datasets.{class_name}", fail)
    assert_refused(name, f"{name} could not be downloaded", f"{name}.npz", "--data-dir", "DYNMIA_DATA")


def test_a_download_goes_to_the_cache(monkeypatch, offline):
    class Fake:
        def __init__(self, root, train, download):
            assert (root, download) == (str(offline), True)
            self.data, self.targets = pixels(train, (20, 32, 32, 3)), [0, 1] * 10  # as torchvision's CIFAR10

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    loaded = load_dataset("cifar10")
    assert (loaded.train_images == pixels(1, (20, 32, 32, 3))).all()
    assert (loaded.test_images == pixels(0, (20, 32, 32, 3))).all()


# --- real data, where there are any


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),  # the complete set, or the pixel-exact part of it that the released runs use
    [
        ("mnist", {60000}, (28, 28, 1)),
        ("fashion_mnist", {5699, 60000}, (28, 28, 1)),
        ("cifar10", {13711, 50000}, (32, 32, 3)),
        ("cinic10", {5837, 90000}, (32, 32, 3)),
        ("location30", {4010}, (1, 1, 446)),
        ("trec", {5452}, (1, 1, data.WORDS)),
    ],
)
def test_real_data_have_the_documented_shape(real_data, name, sizes, shape):
    if not (real_data / f"{name}.npz").exists():
        pytest.skip(f"the data folder has no {name}.npz")
    loaded = load_dataset(name, real_data)
    assert len(loaded.train_images) in sizes
    assert loaded.train_images.shape[1:] == loaded.test_images.shape[1:] == shape
    known = DATASETS[name]
    channels, height, width = known.shape
    assert (shape, loaded.classes) == ((height, width, channels), known.classes)
    counts = np.bincount(make_pool(Study(dataset=name, pool_size=min(sizes) // 10), loaded).labels)
    assert counts.max() - counts.min() <= 1 or counts.min() == (loaded.train_labels == counts.argmin()).sum()

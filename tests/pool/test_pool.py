import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynmia import Study, UserError
from dynmia.pool.datasets import Dataset, load_dataset
from dynmia.pool.pool import Pool, draw_keep, make_pool


def blank(labels, size=4) -> Dataset:
    """Images whose first pixel is their own index modulo 256."""
    images = np.zeros((len(labels), size, size, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return Dataset(images, np.asarray(labels), images[:3], np.asarray(labels)[:3])


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.mark.parametrize("size", [4, 95, 120, 1000])
def test_classes_differ_by_at_most_one_sample(digits, size):
    counts = np.bincount(make_pool(Study(pool_size=size), digits).labels, minlength=10)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1


def test_a_class_that_runs_out_is_filled_from_the_others():
    labels = np.repeat([0, 1, 2], [5, 50, 50])
    pool = make_pool(Study(pool_size=45), blank(labels))
    assert np.bincount(pool.labels).tolist() == [5, 20, 20]


@given(sizes=st.tuples(st.integers(4, 60), st.integers(4, 60)), seed=st.integers(0, 99))
def test_a_smaller_pool_is_part_of_a_larger_one(sizes, seed):
    data = blank(np.arange(60) % 7)
    small, large = (make_pool(Study(pool_size=n, pool_seed=seed), data).sample_id for n in sorted(sizes))
    assert set(small) <= set(large)


def test_sample_ids_are_sorted_and_point_into_the_training_split(digits):
    pool = make_pool(Study(pool_size=120), digits)
    assert (np.diff(pool.sample_id) > 0).all()
    assert (pool.images == digits.train_images[pool.sample_id]).all()
    assert (pool.labels == digits.train_labels[pool.sample_id]).all()


def test_sample_ids_are_the_same_on_every_machine(digits):
    # drawn once: another value here means that populations trained before no longer share their pool
    assert make_pool(Study(pool_size=120), digits).sample_id[:5].tolist() == [4, 7, 12, 27, 35]


def test_the_population_seed_leaves_the_pool_alone_and_the_pool_seed_leaves_the_mask_alone(digits):
    first = make_pool(Study(pool_size=120), digits)
    other_seed = make_pool(Study(pool_size=120, seed=1), digits)
    other_pool = make_pool(Study(pool_size=120, pool_seed=1), digits)
    assert (other_seed.sample_id == first.sample_id).all()
    assert (other_seed.keep != first.keep).any()
    assert (other_pool.keep == first.keep).all()
    assert (other_pool.sample_id != first.sample_id).any()


def test_without_a_size_the_pool_is_the_whole_training_split(digits):
    assert (make_pool(Study(), digits).sample_id == np.arange(1497)).all()


def test_a_pool_larger_than_the_split_is_refused(digits):
    with pytest.raises(
        UserError, match=r"pool_size 1498 is larger than the training split of digits \(1497\): use 4 to 1497"
    ):
        make_pool(Study(pool_size=1498), digits)


def test_a_test_set_larger_than_the_split_is_refused(digits):
    with pytest.raises(UserError, match=r"test_size 301 is larger .* digits \(300\): use 1 to 300"):
        make_pool(Study(test_size=301), digits)


def test_held_out_images_that_lack_a_class_are_said(digits):
    order = np.argsort(digits.test_labels, kind="stable")
    sorted_set = dataclasses.replace(digits, test_labels=digits.test_labels[order])
    with pytest.warns(UserWarning, match=r"classes 1, 2, .*, 9 are not among the first 20 held-out images"):
        make_pool(Study(test_size=20), sorted_set)
    make_pool(Study(), sorted_set)


def test_mean_and_std_are_those_of_the_pool(digits):
    pool = make_pool(Study(pool_size=120), digits)
    np.testing.assert_allclose([pool.mean[0], pool.std[0]], [pool.images.mean(), pool.images.std()], rtol=1e-5)
    assert pool.mean.dtype == pool.std.dtype == np.float32


def test_std_of_blank_images_is_not_zero():
    data = Dataset(np.zeros((9, 4, 4, 3), np.uint8), np.arange(9) % 3, np.zeros((3, 4, 4, 3), np.uint8), np.arange(3))
    assert make_pool(Study(pool_size=6), data).std.tolist() == [1, 1, 1]


def test_shape_is_channels_height_width():
    data = Dataset(np.zeros((9, 4, 5, 3), np.uint8), np.arange(9) % 3, np.zeros((3, 4, 5, 3), np.uint8), np.arange(3))
    assert make_pool(Study(pool_size=6), data).shape == (3, 4, 5)


@pytest.fixture
def text_pool(make_npz):
    rng = np.random.default_rng(0)
    texts = np.array([" ".join(rng.choice([f"w{k}" for k in range(400)], 8)) for _ in range(60)])
    path = str(make_npz(train_images=None, train_texts=texts, test_texts=texts[:30]))
    return make_pool(Study(dataset=path, pool_size=40, test_size=20), load_dataset(path))


def test_a_pool_of_sparse_texts_is_that_of_the_dense_counts(text_pool):
    images, test_images = np.asarray(text_pool.images), np.asarray(text_pool.test_images)
    dense = dataclasses.replace(text_pool, images=images, test_images=test_images)
    flat = images.reshape(40, -1).astype(np.float32)
    assert images.any()
    assert (text_pool.shape, text_pool.fingerprint) == (dense.shape, dense.fingerprint)
    np.testing.assert_array_equal(text_pool.mean, flat.mean(0, dtype=np.float64).astype(np.float32))
    np.testing.assert_array_equal(text_pool.std, np.maximum(flat.std(0, dtype=np.float64).astype(np.float32), 1))


def test_a_pool_of_texts_comes_back_from_files_sparse(text_pool, tmp_path):
    (tmp_path / "job").mkdir()
    text_pool.save(tmp_path / "job")
    loaded = Pool.load(tmp_path / "job", text_pool.classes)
    assert loaded.fingerprint == text_pool.fingerprint
    assert not loaded.images.counts.data.flags.owndata  # but the memory map's
    assert (loaded.keep == text_pool.keep).all()


def test_the_fingerprint_of_the_released_texts(real_data):
    if not (real_data / "trec.npz").exists():
        pytest.skip("the data folder has no trec.npz")
    pool = make_pool(Study(dataset="trec", pool_size=4000), load_dataset("trec", real_data))
    assert pool.fingerprint == "9a08d866bbe32efc41981cb51d439b198b0969de46af3b4d89b5649338095847"


@pytest.mark.parametrize("name", ["images", "labels", "sample_id", "test_images", "test_labels"])
def test_the_fingerprint_covers(digits, name):
    first, second = (make_pool(Study(pool_size=20), digits) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    array = getattr(second, name).copy()
    array.flat[0] ^= 1
    object.__setattr__(second, name, array)
    assert first.fingerprint != second.fingerprint


def test_bernoulli_mean_is_one_half():
    models, samples = 20, 20_000
    error = 0.5 / np.sqrt(models * samples)  # of a mean of independent fair coins
    assert abs(draw_keep(models, samples).mean() - 0.5) < 5 * error


def test_bernoulli_counts_follow_the_binomial():
    inside = draw_keep(20, 20_000).sum(0)
    # variance N/4 = 5; its standard error is about 5 sqrt(2 / samples) = 0.05; redraws narrow it by less than 0.01
    assert abs(inside.var() - 5) < 0.25


def test_models_are_drawn_independently():
    keep = draw_keep(20, 20_000).astype(float)
    correlation = np.corrcoef(keep)[np.triu_indices(20, 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


@given(models=st.integers(4, 24), samples=st.integers(1, 300), seed=st.integers(0, 2**63 - 1))
def test_every_sample_has_enough_in_and_out_models(models, samples, seed):
    keep = draw_keep(models, samples, seed=seed)
    inside = keep.sum(0)
    need = 3 if models >= 6 else 2
    assert keep.shape == (models, samples)
    assert keep.dtype == bool
    assert inside.min() >= need
    assert inside.max() <= models - need


@given(half=st.integers(2, 12), samples=st.integers(1, 300), seed=st.integers(0, 2**63 - 1))
def test_balanced_puts_every_sample_in_exactly_half_of_the_models(half, samples, seed):
    keep = draw_keep(2 * half, samples, "balanced", seed)
    assert keep.dtype == bool
    assert (keep.sum(0) == half).all()


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
def test_the_mask_depends_on_the_seed_alone(design):
    assert (draw_keep(20, 500, design, 3) == draw_keep(20, 500, design, 3)).all()
    assert (draw_keep(20, 500, design, 3) != draw_keep(20, 500, design, 4)).any()


def test_balanced_models_have_about_half_of_the_pool():
    share = draw_keep(20, 20_000, "balanced").mean(1)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)

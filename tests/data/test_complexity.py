import numpy as np
import pytest
from helpers import ROOT
from sklearn.feature_selection import f_classif
from sklearn.metrics import euclidean_distances
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from dynmia import UserError, open_run, study_of
from dynmia.book import maker, read_table
from dynmia.cli import main
from dynmia.pool.datasets import load_dataset

script = maker("complexity")
Images, complexity, intrinsic_dimension = script.Images, script.complexity, script.intrinsic_dimension
pool_complexity = script.pool_complexity
DATA = ROOT / "data"


def blobs(rng, samples=200, apart=1.2):
    """Images of 5 x 5 that are a linear view of Gaussians in 4 dimensions, three classes."""
    fixed = np.random.default_rng(5)
    centres, view = apart * fixed.normal(size=(3, 4)), fixed.normal(size=(4, 25)) / 1.5
    labels = np.arange(samples) % 3
    hidden = rng.normal(size=(samples, 4)) + centres[labels]
    return np.clip(128 + 20 * hidden @ view, 0, 255).astype(np.uint8).reshape(-1, 5, 5, 1), labels


def points(values):
    distance = euclidean_distances(values)
    np.fill_diagonal(distance, np.inf)
    return Images(values, distance, np.zeros(len(values)), np.zeros(len(values), int))


@pytest.fixture(scope="module")
def digits():
    data = load_dataset("digits")
    return data.train_images[:300], data.train_labels[:300]


@pytest.fixture(scope="module")
def table(digits):
    return complexity(*digits, halves=20)


def test_the_error_is_that_of_leave_one_out_by_scikit_learn(digits, table):
    images, labels = digits
    right = cross_val_score(KNeighborsClassifier(1), images.reshape(300, -1) / 255, labels, cv=LeaveOneOut())
    assert table.value["nn_error"] == pytest.approx(100 * (1 - right.mean()))


def test_the_overlap_follows_from_the_f_statistic_of_an_analysis_of_variance(digits, table):
    images, labels = digits
    flat = images.reshape(300, -1).astype(float)
    statistic = f_classif(flat[:, flat.std(0) > 0], labels)[0]
    ratio = np.nanmax(statistic) * 9 / (300 - 10)
    assert table.value["overlap"] == pytest.approx(1 / (1 + ratio))


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_dimension_of_a_uniform_cube_is_found_in_a_larger_space(dimension):
    rng = np.random.default_rng(dimension)
    turn, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    values = rng.random((2000, dimension)) @ turn[:dimension] * 1000
    assert intrinsic_dimension(points(values)) == pytest.approx(dimension, rel=0.1)  # edges lower it a little


def test_twins_do_not_count_for_the_dimension():
    values = np.random.default_rng(0).random((1000, 3)) * 10
    twice = np.concatenate([values, values[:50]])
    assert intrinsic_dimension(points(twice)) == pytest.approx(intrinsic_dimension(points(values)), rel=0.1)


def test_noise_cannot_be_compressed_and_a_blank_can():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    noise = complexity(rng.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8), labels, halves=5).value
    grey = rng.integers(0, 256, (40, 1, 1, 1)).astype(np.uint8)
    blank = complexity(grey.repeat(32, 1).repeat(32, 2), labels, halves=5)
    assert 8 <= noise["png_value"] < 8.4
    assert blank.value["png"] < 90
    assert noise["png_value"] == pytest.approx(8 * noise["png"] / (32 * 32 * 3))


def test_random_labels_lie_at_the_no_signal_level_and_true_ones_below(digits, table):
    images, labels = digits
    lost = complexity(images, np.random.default_rng(1).permutation(labels), halves=100)
    for measure in ("nn_error", "overlap"):
        width = lost.null_high[measure] - lost.null_low[measure]
        assert lost.null_low[measure] - width < lost.value[measure] < lost.null_high[measure] + width
        assert table.high[measure] < table.null_low[measure]
    assert table.null_low[["dimension", "png"]].isna().all()


def test_intervals_have_the_width_of_the_sampling_distribution():
    rng = np.random.default_rng(2)
    tables = [complexity(*blobs(rng), halves=30) for _ in range(60)]
    true = np.std([table.value for table in tables], axis=0)
    claimed = np.mean([(table.high - table.low) / 3.92 for table in tables], axis=0)
    ratio = dict(zip(tables[0].index, claimed / true))
    assert 0.8 < ratio["png"] < 1.25
    for measure in ("nn_error", "dimension", "overlap"):  # a bootstrap with fixed neighbours gives 0.75
        assert 0.85 < ratio[measure] < 1.7


def test_the_command_writes_what_is_committed(tmp_path, capsys):
    main_args = ["make", "complexity", "digits", "--csv", str(tmp_path / "x.csv")]
    with pytest.raises(SystemExit) as stop:
        main(main_args)
    assert stop.value.code == 0
    assert "leave-one-out 1-NN error" in capsys.readouterr().out
    files = tmp_path / "x.csv", DATA / "complexity.csv"
    mine, released = (read_table(file, "complexity.csv") for file in files)
    numbers = ["value", "low", "high"]
    # PNG sizes depend a little on the version of zlib
    np.testing.assert_allclose(mine[numbers], released.loc[["digits"], numbers], rtol=0.02)
    assert (mine.fingerprint == released.loc["digits"].fingerprint.iloc[0]).all()


@pytest.mark.parametrize(
    ("size", "words"), [(-1, "pool_size is -1"), (3, "at least 4"), (1498, r"digits \(1497\): use 4 to 1497")]
)
def test_a_pool_that_cannot_be_is_refused(size, words):
    with pytest.raises(UserError, match=words):
        pool_complexity(["digits"], size)


def test_digits_take_the_size_that_is_named():
    assert (pool_complexity(["digits"], 40).samples == 40).all()


@pytest.mark.parametrize("name", ["cifar10-cnn-4000", "cinic10-cnn-4000", "fashion_mnist-cnn-4000"])
def test_the_released_measures_are_of_the_pools_of_the_released_runs(name):
    run = open_run(DATA / f"{name}.nc")
    released = read_table(DATA / "complexity.csv").loc[study_of(run).dataset]
    assert (released.fingerprint == run.attrs["fingerprint"]).all()
    assert (released.samples == run.sizes["sample"]).all()

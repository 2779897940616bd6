"""Rare features: how rare is told from the data alone, and what it says of who is memorised."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import rankdata, spearmanr

import dynmia
from dynmia import book
from dynmia import dynamics as dyn
from dynmia.chapters import rarity
from dynmia.pool.datasets import WORDS
from dynmia.pool.pool import draw_keep


def test_the_rarest_feature_of_a_sample_is_the_one_that_the_fewest_have():
    features = np.array([[1, 0, 2], [1, 0, 0], [0, 3, 1], [0, 0, 0]])
    np.testing.assert_array_equal(book.maker("rarity").rarest(features), [2, 2, 1, np.nan])


@pytest.fixture(scope="module")
def released():
    runs = book.released("19")
    planes = {name: dynmia.vulnerability_plane(run) for name, run in runs.items()}
    return runs, planes, rarity.of_runs(planes)


def test_the_released_table_covers_every_sample_of_the_runs_that_hold_no_images(released):
    runs, planes, rare = released
    assert set(rare) == {name for name, run in runs.items() if dynmia.study_of(run).dataset in ("location30", "trec")}
    for name, counts in rare.items():
        assert (counts.sample.values == planes[name].sample.values).all()
        assert counts.min() >= 1
        assert counts.max() <= len(counts)
        alone = int((counts == 1).sum())
        assert alone <= (WORDS if name.startswith("trec") else 446)


def test_the_released_table_is_made_of_the_data(real_data, monkeypatch):
    for name in ("trec", "location30"):
        if not (real_data / f"{name}.npz").exists():
            pytest.skip(f"the data folder has no {name}.npz")
    made = book.maker("rarity").compute().set_index(["run", "sample"])
    table = book.read_table("data/rarity.csv").sort_index()
    pd.testing.assert_frame_equal(made.sort_index(), table, check_dtype=False)


def test_a_folder_without_the_table_has_none(released, tmp_path):
    assert rarity.of_runs(released[1], tmp_path) == {}


def planted(strength, samples=400):
    """Two checkpoints of a population in which the samples with low counts are told from the second on."""
    rng = np.random.default_rng(0)
    keep, counts = draw_keep(20, samples), xr.DataArray(np.arange(samples) % 20 + 1.0, dims="sample")
    phi = rng.normal(size=(2, 20, samples))
    phi[1] += strength * keep * (20 - counts.values)
    run = xr.Dataset(
        {
            "phi": (("epoch", "model", "sample"), phi), "keep": (("model", "sample"), keep),
            "label": ("sample", np.zeros(samples, int)), "train_accuracy": (("epoch", "model"), np.ones((2, 20))),
            "test_accuracy": (("epoch", "model"), np.ones((2, 20))),
        },
        coords={"epoch": [0, 1], "sample": np.arange(samples)}, attrs=book.released("19")["trec-mlp-4000"].attrs,
    )  # fmt: skip
    return run, counts.assign_coords(sample=run.sample)


@pytest.mark.parametrize("strength", [0.4, 0.0, -0.4])
def test_planted_memory_of_rare_features_is_found(strength):
    run, counts = planted(abs(strength))
    counts = counts if strength >= 0 else 21 - counts
    plane = dynmia.vulnerability_plane(run)
    row = rarity.relate(plane, run, counts, "lira:fpr@0.01", draws=40)
    assert row.value == pytest.approx(spearmanr(counts, dyn.dynamic_vulnerability(plane)).statistic)
    assert (row.p < 0.05) == (strength != 0)
    groups = rarity.shares(plane, counts)
    assert [count for count, _, _ in groups.values()] == [20, 20, 60, 100, 200]
    some = plane.isel(sample=np.flatnonzero(counts == 1))
    assert float(groups["no other"][1][-1]) == 100 * float(dyn.vulnerable(some)[-1].mean())
    words = {0.4: "more vulnerable", 0.0: "no conclusion", -0.4: "less vulnerable"}
    line = rarity.sentence("Planted", row, groups)
    assert words[strength] in line
    assert "of the 20 samples whose rarest no other has, and" in line
    assert line.endswith("of the 200 samples whose rarest 10 or more others have.")


def test_what_another_value_explains_is_taken_out():
    rng = np.random.default_rng(0)
    length, own, noise = (
        xr.DataArray(v, dims="sample", coords={"sample": range(500)}) for v in rng.normal(size=(3, 500))
    )
    rare, score = length + own, length + 0.5 * noise
    x, y = rarity.beyond(rare, length), rarity.beyond(score, length)
    ranks = np.array([rankdata(v) for v in (rare, score, length)])
    (xy, xz), yz = np.corrcoef(ranks)[0, 1:], np.corrcoef(ranks)[1, 2]
    partial = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert np.corrcoef(x, y)[0, 1] == pytest.approx(partial, abs=1e-12)
    assert xy > 0.4
    assert abs(partial) < 0.15
    gap = rarity.beyond(rare.where(rare > 0), length)
    assert np.isnan(gap.values).sum() == int((rare <= 0).sum())


@pytest.mark.parametrize("explained", [True, False])
def test_rarity_at_an_equal_number_of_features(explained):
    run, counts = planted(0.4)
    plane = dynmia.vulnerability_plane(run)
    other = counts.copy(data=np.random.default_rng(1).normal(0, 5, counts.size))
    rare, given = (counts + other, counts) if explained else (counts, other)
    plain, fixed = (rarity.relate(plane, run, rare, "lira:fpr@0.01", draws=40, given=one) for one in (None, given))
    assert plain.p < 0.05
    assert (fixed.p > 0.05) == explained
    assert fixed.low < fixed.value < fixed.high
    if not explained:
        assert fixed.value == pytest.approx(plain.value, abs=0.05)
    groups = rarity.shares(plane, counts)
    line = rarity.sentence("Planted", plain, groups, fixed)
    assert line.startswith(rarity.sentence("Planted", plain, groups))
    assert "At an equal number of features the rank correlation is" in line


def test_panels_name_the_groups_and_how_many_samples_they_hold(released):
    _, planes, rare = released
    groups = {name: rarity.shares(planes[name], rare[name]) for name in rare}
    figure = rarity.panels(groups)
    for axis, (name, found) in zip(figure.axes, groups.items(), strict=True):
        texts = [text.get_text() for text in axis.get_legend().get_texts()]
        assert texts == [f"{label} ({count:,})" for label, (count, _, _) in found.items()]
        assert axis.get_title() == name
    assert sum(count for count, _, _ in groups["trec-mlp-4000"].values()) <= 4000
    plt.close("all")

"""The attacks beside each other: the measures by second computations, and what the pages say of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, signal_run
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from dynmia import book
from dynmia.attack.others import attack_scores
from dynmia.attack.plane import vulnerability_plane
from dynmia.attack.scoring import Scoring
from dynmia.dynamics.metrics import METRICS

peers, few = book.maker("peers"), book.maker("peers-models")
FRESH = (
    book.read_table(ROOT / "data" / "peers.csv").reset_index("epoch").groupby(level=["run", "attack", "metric"]).last()
)
MANY = book.read_table(ROOT / "data" / "peers-models.csv")
MEAN = MANY.groupby(level=["run", "models", "attack"]).mean()


def test_measures_are_those_of_the_plane_and_of_scikit_learn():
    run = signal_run(samples=200)
    keep, label = run.keep.values, run.label.values
    for attack in ("moderated", "rmia"):
        scores = attack_scores(run.phi.values[-1], keep, label, Scoring(attack))
        found, plane = peers.measures(scores, keep, attack == "moderated"), vulnerability_plane(run, Scoring(attack))
        np.testing.assert_allclose(peers.score(run.phi.values[-1], keep, label, Scoring(attack)), scores, atol=1e-9)
        assert found["auc"] == pytest.approx(roc_auc_score(keep.ravel(), scores.ravel()), abs=1e-12)
        assert found["tpr_1pct"] == pytest.approx(float(METRICS["tpr_1pct"].of(plane, None)), abs=1e-9)
        assert np.isnan(found["ece"]) == (attack == "rmia")
    few_scores = peers.measures(scores[:, :40], keep[:, :40], False)
    assert np.isnan(few_scores["tpr_01pct"])  # 400 out-scores cannot tell one in a thousand


def test_calibration_by_hand():
    scores = np.log([[0.9 / 0.1, 0.1 / 0.9], [0.9 / 0.1, 0.1 / 0.9]])
    keep = np.array([[True, False], [False, False]])
    table = peers.calibration(scores, keep)
    assert table.predicted.tolist() == pytest.approx([0.1, 0.9])
    assert table.actual.tolist() == [0, 0.5]
    assert table.share.tolist() == [0.5, 0.5]
    assert peers.measures(scores, keep, True)["ece"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.4)


def test_calibration_has_a_known_limit():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (20, 5000))
    honest = rng.random(scores.shape) < expit(scores)
    assert peers.measures(scores, honest, True)["ece"] < 0.01
    assert peers.measures(3 * scores, honest, True)["ece"] > 0.1


def test_a_gain_is_the_first_attack_less_the_other():
    run = signal_run(samples=120, design="balanced").isel(epoch=[0, -1])
    table = peers.measure(run, ("moderated", "lira"), draws=20, null=3)
    for metric in ("auc", "tpr_1pct", "ece"):
        ours, theirs = (table.loc[(int(run.epoch[-1]), attack, metric)] for attack in ("moderated", "lira"))
        assert theirs.gain == pytest.approx(ours.value - theirs.value, abs=1e-12)
        assert theirs.gain_low < theirs.gain < theirs.gain_high
        assert ours.low <= ours.value <= ours.high
        assert np.isnan(ours.gain)
        assert theirs.null_low <= theirs.null_high


def test_subsets_are_disjoint_and_of_the_size_asked_for():
    run = signal_run(samples=60)
    for models in (4, 6):
        parts = few.subsets(run, models)
        assert {part.sizes["model"] for _, _, part in parts} == {models}
        first = np.concatenate([part.model.values for order, _, part in parts if order == 0])
        assert len(set(first)) == len(first) == 20 // models * models
    assert len(few.subsets(run, 20)) == 1


def test_the_released_tables_hold_every_attack_and_every_fresh_population():
    names = [entry.name for entry in book.entries("fresh-")]
    assert len(names) == 8
    assert set(FRESH.index.unique("run")) == set(names)
    assert set(FRESH.index.unique("attack")) == set(peers.ATTACKS)
    assert set(MANY.index.unique("run")) == set(few.RUNS)
    assert FRESH.null_value.notna().all()


@pytest.mark.parametrize("name", ["fresh-digits-cnn-800", "fresh-location30-mlp-1000"])
def test_the_released_values_are_those_of_the_runs(name):
    run = book.tables.open_run(ROOT / "data" / f"{name}.nc")
    for attack in ("moderated", "bavaria", "lira", "rmia"):
        again = peers.scored(run.isel(epoch=[-1]), attack).iloc[0]
        for metric in again.index[again.notna()]:
            assert FRESH.value[name, attack, metric] == pytest.approx(again[metric], rel=1e-5, abs=1e-6)


def test_what_the_page_on_the_attack_says():
    def gains(attack: str, metric: str) -> pd.DataFrame:
        return FRESH.xs(attack, level="attack").xs(metric, level="metric")

    for metric in ("auc", "tpr_01pct", "tpr_1pct"):
        assert not (gains("lira", metric).gain_high < 0).any(), metric  # LiRA is clearly ahead nowhere
    calibrated = FRESH.xs("ece", level="metric").value.unstack("attack")
    little = FRESH.xs("auc", level="metric").value.unstack("attack").lira < 0.85  # where little leaks
    assert (calibrated.moderated < calibrated.lira)[little].all()
    tpr = MEAN.tpr_01pct.unstack("attack")
    for run in ("mnist-cnn-500-n128", "cifar10-cnn-1000-n64"):
        ratio = (tpr.bavaria / tpr.moderated).loc[run]
        assert (ratio[ratio.index >= 12] > 0.94).all()  # the variances alone, from twelve models on
        assert ratio[6] < 0.9  # but not with six
    assert (MEAN.ece.unstack("attack").moderated < MEAN.ece.unstack("attack")["lira, pooled"]).loc[:, :20].all()
    lira = tpr[["lira, pooled", "lira, per sample"]].max(axis=1)
    for run in few.RUNS:
        assert lira[run, 32] < tpr.moderated[run, 20] < lira[run, 64]  # so twenty do the work of forty or so

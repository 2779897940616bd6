"""The estimators of one uncertainty, against hand-worked and simulated cases, and the rules of the verdict."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.special import expit

import dynmia
from dynmia.attack.plane import part_of
from dynmia.chapters import calibrated, reliability, uncertainty
from dynmia.errors import UserError
from dynmia.pool.pool import draw_keep
from dynmia.stats import hardness
from dynmia.stats.simulate import Simulator


def population(model="cnn", design="bernoulli", models=8, samples=120, images=300):
    """A run and the measures of it that the chapter reads, drawn; epoch 0 depends on the model's number alone."""
    rng = np.random.default_rng(len(model) + len(design))
    start = np.random.default_rng(0).normal(0, 0.1, (8, samples))[:models]
    keep = draw_keep(models, samples, design)
    phi = np.stack([start + t * (keep + rng.normal(0, 1, keep.shape)) for t in range(3)])
    study = dynmia.Study(model=model, design=design, shadow_models=models, epochs=2, checkpoint_every=1)
    coords = {"epoch": range(3), "model": range(models), "sample": range(samples)}
    attrs = {"title": "drawn", "study": json.dumps(study.to_dict()), "fingerprint": "one pool"}
    accuracy = dict.fromkeys(["train_accuracy", "test_accuracy"], (("epoch", "model"), np.ones((3, models))))
    variables = {"phi": (("epoch", "model", "sample"), phi), "keep": (("model", "sample"), keep)} | accuracy
    run = xr.Dataset(variables | {"label": ("sample", np.zeros(samples, int))}, coords, attrs)
    dims = ("part", "epoch", "sample")
    names = ["epistemic_all"] + ["epistemic_out", "variance_out"] * (design != "all")
    names += ["mc_information"] * (model == "cnn-dropout")
    found = {name: (dims, rng.random((3, 3, samples))) for name in names}
    for name in ["single", "ensemble"] + ["mc", "mc_ensemble"] * (model == "cnn-dropout"):
        shape = (2, images) if "ensemble" in name else (2, models, images)
        dims = ("seldom", "test") if "ensemble" in name else ("seldom", "model", "test")
        p = rng.uniform(0.3, 1, shape)
        found |= {f"confidence_{name}": (dims, p), f"right_{name}": (dims, (rng.random(shape) < p).astype(np.int8))}
    return run, xr.Dataset(found, {"part": list(hardness.PARTS), "epoch": range(3), "seldom": [0, 2]})


@pytest.fixture(scope="module")
def populations():
    """Runs and their measures by name: base, dropout, deep, of 8, 8 and 4 models."""
    drawn = {
        "base": population(), "dropout": population("cnn-dropout"), "deep": population(design="all", models=4)
    }  # fmt: skip
    return tuple({name: pair[number] for name, pair in drawn.items()} for number in (0, 1))


def test_roles_and_what_the_populations_share(populations):
    runs, _ = populations
    assert uncertainty.roles(runs) == {"base": "base", "dropout": "dropout", "deep": "deep"}
    assert uncertainty.shared(runs["base"], runs["dropout"]) == {"initial weights": True, "training sets": True}
    assert uncertainty.shared(runs["base"], runs["deep"]) == {"initial weights": True, "training sets": False}
    swapped = runs["base"].isel(model=slice(None, None, -1))
    assert not any(uncertainty.shared(runs["base"], swapped).values())
    with pytest.raises(UserError, match="no population without dropout"):
        uncertainty.roles({"dropout": runs["dropout"]})
    with pytest.raises(UserError, match="not the same"):
        uncertainty.roles(runs | {"deep": runs["deep"].assign_attrs(fingerprint="another")})


def test_variance_split_is_the_law_of_total_variance(populations):
    run = populations[0]["base"]
    split = uncertainty.variance_split(run)
    p, keep = expit(run.phi.values.astype(float)), run.keep.values
    np.testing.assert_allclose(split.total.sel(part="b"), p[:, 4:].var(1), atol=1e-12)
    for z in range(0, 120, 17):
        inside, outside = p[:, keep[:, z], z], p[:, ~keep[:, z], z]
        within = (inside.var(1) * inside.shape[1] + outside.var(1) * outside.shape[1]) / 8
        mine = (split.total - split.between).sel(part="all").values[:, z]
        np.testing.assert_allclose(mine, within, atol=1e-12)


def test_variance_lies_between_the_sides_where_only_they_differ():
    # in-models say 0.9, out-models 0.1, half of the models each: variance 0.4^2, all of it between
    keep = np.tile([True, False], 4)[:, None].repeat(3, 1)
    prob = np.where(keep, 0.9, 0.1)[None]
    coords = {"epoch": [0], "model": range(8), "sample": range(3)}
    run = xr.Dataset(
        {"phi": (("epoch", "model", "sample"), np.log(prob / (1 - prob))), "keep": (("model", "sample"), keep)}, coords
    )
    split = uncertainty.variance_split(run)
    np.testing.assert_allclose(split.total, 0.16)
    np.testing.assert_allclose(split.between, 0.16)
    assert np.isnan(uncertainty.variance_split(run.assign(keep=run.keep | True)).between).all()


def test_estimators_and_their_correlations(populations):
    runs, recorded = populations
    found = uncertainty.estimators(runs, recorded)
    assert list(found.data_vars) == list(uncertainty.ESTIMATORS)
    assert found.deep_mi.dims == ("part", "epoch", "sample")
    np.testing.assert_array_equal(found.mc_mi, recorded["dropout"].mc_information)
    np.testing.assert_allclose(found.deep_variance.sel(part="all"), expit(runs["deep"].phi.values).var(1), atol=1e-12)
    table = uncertainty.relate(found[["mi_all", "deep_mi"]], runs["base"], "lira:bayes", null=2)
    vulnerability = hardness.target(part_of(runs["base"], np.arange(4, 8)), "lira:bayes")[0]
    by_hand = hardness.correlation(found.deep_mi.sel(part="all")[-1], vulnerability).loc["pearson"]
    row = table.loc["deep_mi", "all", "other half", "pearson"]
    pd.testing.assert_series_equal(row.drop(["p", "draws"]), by_hand, check_names=False, check_dtype=False)
    straight = hardness.relate(found[["mi_all"]], runs["base"], "lira:bayes", null=2)
    pd.testing.assert_frame_equal(table.loc[["mi_all"]], straight, check_dtype=False)


def test_ceiling_is_the_correlation_with_the_truth():
    """Of a simulated population, the correlation of its dynamic vulnerability with the true one nears the ceiling."""
    simulator = Simulator(samples=1500, seed=1)
    run = simulator.run()
    top = uncertainty.ceiling(run).loc["all"]
    truth = simulator.truth().advantage.mean("epoch")
    mine = hardness.correlation(truth, hardness.target(run, "lira:fpr@0.01")[0]).value["pearson"]
    assert mine == pytest.approx(top.value, abs=0.05)
    assert 0.5 < top.low < top.value < 1


def related(value, width=0.05):
    """A table as of `relate`, the same value everywhere, or one an estimator; no signal is 0 +/- 0.1."""
    rows = {}
    for name in uncertainty.ESTIMATORS:
        here = value[name] if isinstance(value, dict) else value
        for subset in ("all", "vulnerable"):
            for kind in ("pearson", "spearman"):
                for models in ("all models", "same half", "other half"):
                    rows[name, subset, models, kind] = [here, here - width, here + width, 100]
                rows[name, subset, "no signal", kind] = [0, -0.1, 0.1, 100]
    table = pd.DataFrame(rows, ["value", "low", "high", "n"]).T
    return table.rename_axis(["measure", "samples", "models", "kind"])


def test_the_rule_of_robustness():
    assert uncertainty.robustness(related(0.9), 0.916)[0] == "robust"
    assert uncertainty.robustness(related(0.5), 0.916)[0] == "robust in sign only"
    spread = dict.fromkeys(uncertainty.ESTIMATORS, 0.9) | {"deep_mi": -0.4, "mc_mi": 0.0}
    word, text = uncertainty.robustness(related(spread), 0.916)
    assert word == "not robust"
    assert "run from -0.40 [-0.45, -0.35] (deep ensemble: MI) to 0.90 [0.85, 0.95]" in text
    assert "7 of their intervals hold the paper's 0.916, 7 lie above the no-signal range and 1 below it" in text
    assert uncertainty.robustness(related(np.nan), 0.916)[0] == "not to be judged"


def test_verdict_says_what_the_difference_between_the_sides_does():
    table = related(0.5)
    split = pd.concat({n: related(v).loc["mi_all"] for n, v in (("total", 0.6), ("between", 0.8), ("within", 0.1))})
    over = {"mi_all": pd.DataFrame({"value": [0.2, 0.7], "low": 0.1, "high": 0.8}, [0, 8]).rename_axis("epoch")}
    top = pd.DataFrame({"value": 0.9, "low": 0.8, "high": 0.95}, ["all", "vulnerable"])
    lines = uncertainty.verdict(table, split, 0.7, 0.05, over, top, 0.75)
    assert "epoch 8, the highest" in lines[2]
    assert "it reaches the paper's value" in lines[2]
    assert "70 % of the variance" in lines[3]
    assert "measures vulnerability a second time" in lines[3]
    assert lines[4].count(";") == 5  # six estimators do not mix the sides
    split.loc["between"] = split.loc["within"].values
    assert "the spread within the sides counts too" in uncertainty.verdict(table, split, 0.1, 0.05, over, top, 0.9)[3]
    assert "does not reach" in uncertainty.verdict(table, split, 0.1, 0.05, over, top, 0.9)[2]


def test_calibrations_pairs_and_figures(populations):
    _, recorded = populations
    errors = calibrated.calibrations(recorded, bins=10, draws=20)
    assert errors.index.unique("predictor").tolist() == list(calibrated.PREDICTORS)
    p, right = (recorded["deep"][f"{kind}_ensemble"].values[-1] for kind in ("confidence", "right"))
    assert errors.loc["deep ensemble"].accuracy.iloc[-1] == pytest.approx(right.mean())
    found = calibrated.pairs(errors, related(0.3))
    assert found.index[found.mixed].tolist() == ["mi_all", "dropout_all"]
    assert found.loc["deep_mi", "ece"] == pytest.approx(reliability.expected_calibration_error(p, right, 10))
    assert len(calibrated.diagrams(recorded, 10).axes) == len(calibrated.PREDICTORS)
    assert len(calibrated.calibration_and_correlation(errors, found).axes) == 2


def test_calibration_verdict_counts_clear_pairs():
    def table(*rows):
        columns = ["predictor", "mixed", "ece", "ece_low", "ece_high", "r", "r_low", "r_high"]
        return pd.DataFrame([["p", m, e, e - 0.01, e + 0.01, r, r - 0.1, r + 0.1] for m, e, r in rows], columns=columns)

    better = calibrated.verdict(table((False, 0.1, 0.8), (False, 0.2, 0.5), (True, 0.3, 0.9)))
    assert better.startswith("1 of the 1 pairs")
    assert "better calibration goes along with a higher correlation" in better
    assert "correlates less" in calibrated.verdict(table((False, 0.1, 0.2), (False, 0.2, 0.5)))
    assert "no order" in calibrated.verdict(table((False, 0.1, 0.2), (False, 0.2, 0.5), (False, 0.3, 0.1)))
    assert calibrated.verdict(table((False, 0.1, 0.2), (False, 0.2, 0.3))).startswith("0 of the 1 pairs")

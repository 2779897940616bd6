"""Recorded signals and the measures made of them, against definitions written a second way."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats
from scipy.stats import entropy, pearsonr, spearmanr
from torch import nn

from dynmia import vulnerability_plane
from dynmia.attack.plane import halves, numbers_of_halves, part_of
from dynmia.attack.scoring import Scoring
from dynmia.book import maker
from dynmia.chapters.figures_hardness import hardness_sentences
from dynmia.dynamics.cloud import dynamic_vulnerability
from dynmia.errors import StoreError
from dynmia.shadow import run as engine
from dynmia.shadow.models import build_model
from dynmia.shadow.shard import gradient_norm, hardness_signals, mutual_information
from dynmia.shadow.step import DeviceData
from dynmia.stats import hardness
from dynmia.stats.resample import p_values
from dynmia.stats.simulate import Simulator

campaign = maker("campaign")


@pytest.fixture(scope="module")
def recorded(tiny, tmp_path_factory):
    """(run, shards, measures) of `tiny` with more models, recorded for hardness."""
    study = tiny.replace(shadow_models=8, record="hardness", checkpoint_every=1, model="cnn-dropout")
    pool, store = engine.train_part(study, out=tmp_path_factory.mktemp("hard"), device="cpu", progress=False)
    run = engine.finish(pool, store)
    return run, [store.load_shard(m)[0] for m in range(8)], campaign.measure_hardness(store, run, pool.test_labels)


@pytest.mark.heavy("trains the same models with and without a record")
def test_recording_changes_no_phi(tiny, tiny_run, tmp_path):
    pool, store = engine.train_part(tiny.replace(record="hardness"), out=tmp_path, device="cpu", progress=False)
    np.testing.assert_array_equal(engine.finish(pool, store).phi, tiny_run[1].phi)
    assert store.identity != tiny.resolve("cpu").identity(store.manifest["fingerprint"])


def test_phi_is_in_line_with_the_recorded_probabilities(recorded):
    run, shards, _ = recorded
    prob = np.stack([shard["prob"] for shard in shards]).astype(float)  # (N, T, n, K)
    true = np.take_along_axis(prob, run.label.values[None, None, :, None], 3)[..., 0]
    mine = 1 / (1 + np.exp(-run.phi.transpose("model", "epoch", "sample").values))
    np.testing.assert_allclose(true, mine, atol=1e-3)


def test_gradient_norms_equal_one_backward_pass_a_sample():
    torch.manual_seed(0)
    for name in ("cnn", "mlp", "wrn-10-1"):
        model = build_model(name, (1, 8, 8), 10).eval()
        inputs, labels = torch.randn(5, 1, 8, 8), torch.arange(5)
        expected = []
        for k in range(5):
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs[k : k + 1]), labels[k : k + 1]).backward()
            expected.append(sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5)
        np.testing.assert_allclose(gradient_norm(model, inputs, labels), expected, rtol=1e-4)


def test_mutual_information_of_known_predictions():
    certain = torch.eye(2)[:, None]  # two passes, one sample: each sure of another class
    assert float(mutual_information(certain)) == pytest.approx(np.log(2))
    assert float(mutual_information(certain[:1].repeat(3, 1, 1))) == pytest.approx(0)
    undecided = torch.full((4, 1, 2), 0.5)
    assert float(mutual_information(undecided)) == pytest.approx(0)


def test_dropout_passes_leave_no_trace(recorded):
    _, shards, _ = recorded
    assert {name: shards[0][name].shape for name in ("prob", "grad_norm", "mc_information")} == {
        "prob": (5, 120, 10), "grad_norm": (2, 120), "mc_information": (2, 120)
    }  # fmt: skip
    assert (shards[0]["mc_information"] > 0).mean() > 0.9


def test_confidence_on_held_out_images_against_its_definition(recorded):
    _, shards, found = recorded
    labels = np.array([shard["test_prob"].shape for shard in shards])[0]
    for one, many, name in (("single", "ensemble", "test_prob"), ("mc", "mc_ensemble", "mc_test_prob")):
        prob = np.stack([shard[name] for shard in shards]).astype(np.float32)  # (N, seldom, m, K)
        assert tuple(labels) == (2, *prob.shape[2:])
        np.testing.assert_allclose(found[f"confidence_{one}"], prob.max(-1).swapaxes(0, 1))
        np.testing.assert_allclose(found[f"confidence_{many}"], prob.mean(0).max(-1), atol=1e-6)
        assert 0.05 < found[f"right_{many}"].values.mean() < 1


def test_measures_against_their_definitions(recorded):
    run, shards, found = recorded
    prob = np.stack([shard["prob"] for shard in shards]).astype(float)
    keep, last = run.keep.values, found.sel(part="all").isel(epoch=-1)
    right = prob.argmax(-1) == run.label.values
    for z in (0, 7, 63):
        out, inside = ~keep[:, z], keep[:, z]
        p = prob[out, -1, z]
        information = entropy(p.mean(0)) - entropy(p, axis=1).mean()
        np.testing.assert_allclose(last.epistemic_out[z], information, atol=2e-3)
        np.testing.assert_allclose(last.aleatoric_out[z], entropy(p, axis=1).mean(), atol=2e-3)
        np.testing.assert_allclose(last.variance_out[z], p[:, run.label.values[z]].var(), atol=1e-3)
        np.testing.assert_allclose(
            last.memorisation[z], right[inside, -1, z].mean() - right[out, -1, z].mean(), atol=1e-6
        )
        squares = [sum(float(g[z]) ** 2 for g in shards[i]["grad_norm"]) for i in np.flatnonzero(inside)]
        np.testing.assert_allclose(last.self_influence[z], np.mean(squares), rtol=1e-4)
        traces = right[inside, :, z]
        events = [sum(a and not b for a, b in pairwise(row)) for row in traces]
        np.testing.assert_allclose(last.forgetting[z], np.mean(events), atol=1e-6)
        learned = []
        for row in traces:
            first = 5  # never: one checkpoint after the last
            for t in range(5):
                if row[t:].all():
                    first = t
                    break
            learned.append(first)
        np.testing.assert_allclose(last.learned[z], np.mean(learned), atol=1e-6)
        loss = np.log1p(np.exp(-run.phi.values[:, inside, z].astype(float)))
        np.testing.assert_allclose(
            last.loss_iqr[z], np.mean(np.quantile(loss, 0.75, 0) - np.quantile(loss, 0.25, 0)), rtol=1e-4
        )


def test_halves_use_their_own_models_only(recorded):
    run, _, found = recorded
    loss = np.log1p(np.exp(-run.phi.values[-1].astype(float)))
    for part, models in (("a", slice(0, 4)), ("b", slice(4, 8))):
        mine = np.where(run.keep.values[models], np.nan, loss[models])
        some = ~np.isnan(mine).all(0)
        np.testing.assert_allclose(
            found.loss_out.sel(part=part).values[-1][some], np.nanmean(mine[:, some], 0), rtol=1e-4, atol=1e-6
        )
    half = part_of(run, hardness.numbers_of_parts(8)["b"])
    assert set(half.keep.sum("model").values) == {2}
    assert half.model.values.tolist() == [4, 5, 6, 7]


def test_correlation_has_a_known_answer_and_a_valid_interval():
    rng = np.random.default_rng(0)
    covered = 0
    for number in range(200):
        x = rng.standard_normal(300)
        y = 0.6 * x + 0.8 * rng.standard_normal(300)
        row = hardness.correlation(xr.DataArray(x, dims="sample"), xr.DataArray(y, dims="sample"), seed=number)
        covered += row.low["pearson"] <= 0.6 <= row.high["pearson"]
        if number == 0:
            np.testing.assert_allclose(row.value, [pearsonr(x, y)[0], spearmanr(x, y)[0]], atol=1e-12)
    assert 0.90 <= covered / 200 <= 0.99


def test_correlation_leaves_out_what_is_not_known():
    x = xr.DataArray([1.0, 2, 3, 4, np.nan, 6], {"sample": [1, 2, 3, 4, 5, 6]}, "sample")
    y = xr.DataArray([9.0, 2, 4, 6, 8, 12], {"sample": [0, 1, 2, 3, 4, 6]}, "sample")
    assert hardness.correlation(x, y).loc["pearson", ["value", "n"]].tolist() == pytest.approx([1, 5])
    assert np.isnan(hardness.correlation(x, 0 * y).value["pearson"])


def test_relate_and_verdict(recorded):
    run, _, found = recorded
    table = hardness.relate(found[["epistemic_all", "epistemic_out", "gradient_in", "confidence_single"]], run, null=3)
    assert "confidence_single" not in table.index.get_level_values("measure")  # of held-out images, not of samples
    assert table.index.get_level_values("models").unique().tolist() == [
        "all models",
        "same half",
        "other half",
        "no signal",
    ]
    noise = hardness.null_vulnerability(run, draws=3)
    drawn = hardness.null_correlations(found.epistemic_all.sel(part="all").isel(epoch=-1), noise)
    x = found.epistemic_all.sel(part="all").isel(epoch=-1)
    again = [hardness.correlation(x, one, draws=1).value for one in noise]
    np.testing.assert_allclose(drawn, again, atol=1e-9)
    whole = table.sort_index().loc["epistemic_all", "all", "all models"]
    np.testing.assert_array_equal(whole.p, p_values(whole.value, drawn))
    sentences = hardness_sentences(table)
    assert len(sentences) == 4  # nothing is vulnerable after four epochs: no comparison of the two
    assert "not to be had from so few samples" in sentences[1]
    for name in ("epistemic_all", "epistemic_out"):
        table.loc[name, ["value", "low", "high"]] = [0.7, 0.6, 0.8]
    table.loc["gradient_in", ["value", "low", "high"]] = [0.1, 0.0, 0.2]
    table.loc[pd.IndexSlice[:, :, "no signal"], ["value", "low", "high"]] = [0.0, -0.1, 0.1]
    sentences = hardness_sentences(table)
    assert "0.70 [0.60, 0.80], outside the no-signal range of -0.10 to 0.10" in sentences[2]
    assert "0.10 [0.00, 0.20], not clear of the no-signal range" in sentences[3]
    assert sentences[4].startswith(
        "Epistemic uncertainty ranks the vulnerable samples better: Spearman correlation 0.70"
    )


def loss_recorded(run):
    """What ``data/campaign.py`` keeps of the mean loss of out-models, from phi alone, at the end."""

    def reduced(models):
        loss, out = np.logaddexp(0, -run.phi.values[-1, models].astype(float)), ~run.keep.values[models]
        return np.where(out, loss, 0).sum(0) / np.where(out.any(0), out.sum(0), np.nan)

    parts, sizes = hardness.numbers_of_parts(run.sizes["model"]), (run.sizes["epoch"], run.sizes["sample"])
    values = np.full((len(parts), *sizes), np.nan)
    values[:, -1] = [reduced(models) for models in parts.values()]
    half = [reduced(models) for models in numbers_of_halves(run.sizes["model"], hardness.HALVES)]
    return xr.Dataset(
        {"loss_out": (("part", "epoch", "sample"), values), "half_loss_out": (("half", "sample"), np.array(half))},
        {"part": list(parts), "epoch": run.epoch.values, "sample": run.sample.values},
    )


@pytest.mark.heavy("records and reduces the signals of twelve models")
def test_measures_of_halves_of_the_models(tiny, tmp_path):
    study = tiny.replace(shadow_models=12, record="hardness", epochs=2, checkpoint_every=1)
    pool, store = engine.train_part(study, out=tmp_path, device="cpu", progress=False)
    run = engine.finish(pool, store)
    found = campaign.measure_hardness(store, run, pool.test_labels)
    np.testing.assert_allclose(found.half_loss_out, loss_recorded(run).half_loss_out, rtol=2.0**-10)
    prob = np.stack([store.load_shard(model)[0]["prob"][-1] for model in range(12)]).astype(float)
    for number, models in enumerate(numbers_of_halves(12, hardness.HALVES)):
        mean = entropy(prob[models].mean(0), axis=-1) - entropy(prob[models], axis=-1).mean(0)
        np.testing.assert_allclose(found.half_epistemic_all[number], mean, atol=2e-3)
    path = hardness.save(found, tmp_path / "x.hardness.nc")
    np.testing.assert_array_equal(hardness.load(path).half_learned, found.half_learned)


def test_the_interval_over_models_and_samples_is_that_of_the_halves():
    run = Simulator(samples=200, separation=1.5, seed=1).run(16)
    found, noise = loss_recorded(run), hardness.null_vulnerability(run, draws=2)
    table, plain = (
        hardness.relate(one, run, "lira:fpr@0.01", null=noise) for one in (found, found.drop_vars("half_loss_out"))
    )
    key = ("loss_out", "all", "all models", "pearson")
    assert table.value.equals(plain.value)
    rest = [name for name in table.index if name[2] != "all models"]
    pd.testing.assert_frame_equal(table.loc[rest], plain.loc[rest])
    drawn = {}
    for dim in ("model", "sample"):
        drawn[dim] = []
        for number, part in enumerate(halves(run, dim, hardness.HALVES)):
            x = found.half_loss_out[number] if dim == "model" else found.loss_out.sel(part="all").isel(epoch=-1)
            y = dynamic_vulnerability(vulnerability_plane(part, Scoring("lira", "fpr@0.01", variance="pooled")))
            drawn[dim].append(np.arctanh(pearsonr(x.sel(sample=y.sample), y)[0]))
    parts, free = [np.var(values) for values in drawn.values()], hardness.HALVES // 2
    freedom = free * sum(parts) ** 2 / sum(part**2 for part in parts)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts))
    middle = np.arctanh(plain.value[key])
    np.testing.assert_allclose(table.loc[key, ["low", "high"]].tolist(), np.tanh([middle - half, middle + half]))


@pytest.mark.slow("many simulated populations")
def test_the_interval_over_models_and_samples_is_as_wide_as_populations_differ():
    found = []
    for seed in range(25):
        run = Simulator(samples=300, separation=1.5, effect=0.5, seed=seed).run(20, seed=seed)
        noise = hardness.null_vulnerability(run, draws=2)
        found.append(
            hardness.relate(loss_recorded(run), run, null=noise).loc["loss_out", "all", "all models", "pearson"]
        )
    found = pd.DataFrame(found)
    assert 0.7 < (found.high - found.low).mean() / (2 * 1.96 * found.value.std()) < 1.6
    assert found.eval(f"low < {found.value.mean()} < high").mean() >= 0.8


def test_a_run_without_predictions_is_named(tiny, tiny_run):
    folder, run = tiny_run
    _, _, store = engine.open_store(tiny, out=folder, device="cpu")
    with pytest.raises(StoreError, match="train it with record 'hardness'"):
        campaign.measure_hardness(store, run, np.zeros(0, int))


def test_signals_of_a_model_without_dropout_and_of_cheap_checkpoints(tiny):
    model = build_model("cnn", (1, 8, 8), 10)
    images, labels = torch.zeros(3, 8, 8, 1, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    data = DeviceData(images, labels, images, labels, torch.zeros(1), torch.ones(1))
    cheap = dict(hardness_signals(model, data, 0, dear=False))
    dear = dict(hardness_signals(model, data, 0, dear=True))
    assert set(cheap) == {"prob"}
    assert set(dear) == {"prob", "test_prob", "grad_norm"}
    np.testing.assert_allclose(cheap["prob"].sum(1), 1, atol=2e-3)

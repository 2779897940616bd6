"""Training on a GPU, by the same lanes uncaptured on a CPU, and on CUDA where there is a GPU."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import ROOT

from dynmia import Study
from dynmia.book import maker
from dynmia.errors import Diverged, UserError
from dynmia.shadow import gpu, open_store
from dynmia.shadow import run as engine
from dynmia.shadow.models import build_model
from dynmia.shadow.plan import random_pool
from dynmia.shadow.shard import Job, train_epoch, train_here
from dynmia.shadow.step import (
    DeviceData,
    arithmetic,
    evaluate,
    new_state,
    sam_ascend,
    sam_return,
    unflatten,
)
from dynmia.store.folder import merge
from dynmia.store.run import assemble

bench_gpu, agreement_gpu = maker("bench-gpu"), maker("agreement-gpu")


def cuda(test):
    """Mark a test that needs a GPU: skipped without one, and chosen by ``-m gpu``."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")(test))


SETTINGS = {
    "adamw": dict(),
    "sgd-cosine": dict(optimizer="sgd", schedule="cosine", nesterov=True),
    "sgd-without-momentum": dict(optimizer="sgd", momentum=0),
    "sam-sgd-augment": dict(optimizer="sam-sgd", augment=True, schedule="cosine"),
    "sam-adamw-batch-norm": dict(model="deep-cnn", optimizer="sam-adamw"),
    "dropout-hardness": dict(model="cnn-dropout", record="hardness"),
    "wide-resnet": dict(model="wrn-10-1", augment=True),
    "wide-resnet-bf16-sam": dict(model="wrn-10-1", optimizer="sam-sgd", precision="bf16"),
}


@pytest.fixture
def study(make_npz):
    """A study of 60 grey images of 9 x 9 pixels, 3 classes."""
    return Study(
        dataset=str(make_npz()), model="cnn", epochs=4, checkpoint_every=2, shadow_models=4, batch_size=8,
        precision="float32",
    )  # fmt: skip


def lanes(study, folder, models=(0, 1, 2), device="cpu", lanes=None, compiled=False, **options):
    study, pool, store = open_store(study, out=folder, device=device)
    gpu.train_lanes(Job(study, pool, store, device, workers=lanes, **options), models, compiled)
    return store


def eager(study, folder, models=(0, 1, 2), device="cpu"):
    study, pool, store = open_store(study, out=folder, device=device)
    train_here(Job(study, pool, store, device), models)
    return store


def assert_same(first, second, models=(0, 1, 2)):
    for model in models:
        ours, theirs = first.load_shard(model)[0], second.load_shard(model)[0]
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].tobytes() == theirs[name].tobytes(), (model, name)


class Stopped(Exception):
    pass


def stop_at(model, epoch):
    def report(event):
        if (event["model"], event["epoch"]) == (model, epoch):
            raise Stopped

    return report


# --- on a CPU


@pytest.mark.parametrize("setting", SETTINGS)
def test_lanes_give_the_bits_of_train_shard(study, tmp_path, setting):
    study = study.replace(**SETTINGS[setting])
    assert_same(lanes(study, tmp_path / "lanes", lanes=2), eager(study, tmp_path / "eager"))


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_lanes_gives_the_same_bits(study, tmp_path, count):
    assert_same(lanes(study, tmp_path / "a", lanes=count), lanes(study, tmp_path / "b", lanes=2))


def test_another_model_in_a_lane_leaves_no_trace(study, tmp_path):
    study, pool, _ = open_store(study.replace(model="deep-cnn", optimizer="sam-sgd"), out=tmp_path, device="cpu")
    lane = gpu.Lane(study, pool, DeviceData.of(pool, "cpu"))

    def losses():
        lane.load(1)
        members = torch.as_tensor(np.flatnonzero(pool.keep[1]))
        for _ in range(lane.begin(members, 1, 0)):
            lane.step()
        return lane.mean_loss(), [value.clone() for value in lane.state.model.state_dict().values()]

    first, weights = losses()
    lane.load(2)
    for _ in range(lane.begin(torch.as_tensor(np.flatnonzero(pool.keep[2])), 2, 3)):
        lane.step()
    assert lane.mean_loss() != first
    again, same = losses()
    assert again == first
    assert all(torch.equal(*pair) for pair in zip(weights, same))


def test_the_static_memory_stays_where_it_is(study, tmp_path):
    study, pool, store = open_store(study.replace(optimizer="sam-adamw"), out=tmp_path, device="cpu")
    lane = gpu.Lane(study, pool, DeviceData.of(pool, "cpu"))

    def addresses():
        optimizer = [value for values in lane.state.optimizer.state.values() for value in values.values()]
        return [value.data_ptr() for value in [*lane.state.model.state_dict().values(), *optimizer, *lane.state.kept]]

    before = addresses()
    lane.load(3)
    with pytest.raises(Stopped):
        lanes(study, tmp_path, [3], lanes=1, report=stop_at(3, 2))
    unflatten(lane.state, store.load_state(3)[0])
    for _ in range(lane.begin(torch.arange(16), 3, 2)):
        lane.step()
    assert addresses() == before


def test_an_epoch_is_planned_as_train_epoch_draws_it(study, tmp_path):
    study, pool, _ = open_store(study.replace(augment=True, schedule="cosine"), out=tmp_path, device="cpu")
    data = DeviceData.of(pool, "cpu")
    lane, state = gpu.Lane(study, pool, data), new_state(study, pool, 2, "cpu")
    lane.load(2)
    members = torch.as_tensor(np.flatnonzero(pool.keep[2]))
    steps = lane.begin(members, 2, 0)
    assert steps == len(members) // study.batch_size
    assert set(lane.order[:steps].flatten().tolist()) <= set(members.tolist())
    assert len(set(lane.order[:steps].flatten().tolist())) == steps * study.batch_size
    for _ in range(steps):
        lane.step()
    assert lane.mean_loss() == train_epoch(study, state, data, members, 2, 0)
    assert float(lane.rate) == state.optimizer.param_groups[0]["lr"]


def test_the_ascent_in_given_memory_is_the_ascent():
    def ascended(kept):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        model[0].bias.requires_grad_(False)  # without a gradient: its room is not used
        start = [p.detach().clone() for p in model.parameters()]
        model(torch.randn(5, 4)).square().sum().backward()
        before = sam_ascend(model, 0.3, kept and [torch.full_like(p, 7.0) for p in model.parameters()])
        up = [p.detach().clone() for p in model.parameters()]
        sam_return(before)
        assert all(torch.equal(*pair) for pair in zip(start, model.parameters()))
        return up

    assert all(torch.equal(*pair) for pair in zip(ascended(False), ascended(True)))


def test_lanes_and_train_shard_resume_each_other(study, tmp_path, monkeypatch):
    monkeypatch.setattr("dynmia.shadow.shard.SAVING", 1e9)
    study = study.replace(optimizer="sam-sgd", augment=True)
    whole = eager(study, tmp_path / "whole")
    with pytest.raises(Stopped):
        lanes(study, tmp_path / "a", lanes=2, report=stop_at(1, 2))
    store = store_of(study, tmp_path / "a")
    assert [store.load_state(model)[1]["epoch"] for model in (0, 1)] == [2, 2]
    assert_same(eager(study, tmp_path / "a"), whole)
    study, pool, store = open_store(study, out=tmp_path / "b", device="cpu")
    for epoch in (0, 1, 3):
        with pytest.raises(Stopped):
            train_here(Job(study, pool, store, report=stop_at(0, epoch)), [0])
    assert_same(lanes(study, tmp_path / "b"), whole)


def store_of(study, folder):
    return open_store(study, out=folder, device="cpu")[2]


def test_a_deadline_stops_all_lanes_with_their_states_saved(study, tmp_path):
    store = lanes(study, tmp_path / "run", lanes=2, deadline=time.monotonic() - 1)
    assert [store.load_state(model) is not None for model in range(4)] == [True, True, False, False]
    assert not list(tmp_path.glob("run/*.lock"))
    assert_same(lanes(study, tmp_path / "run"), eager(study, tmp_path / "eager"))


def test_a_model_that_another_process_trains_is_named_and_the_other_lane_lets_go(study, tmp_path):
    store = store_of(study, tmp_path)
    with store.locked(1), pytest.raises(UserError, match=r"model 1 .* another process"):
        lanes(study, tmp_path, lanes=2)
    with store.locked(0):
        assert not store.finished(1)


def test_every_epoch_is_reported_once(study, tmp_path):
    events = []
    lanes(study, tmp_path, [0, 1], lanes=2, report=events.append)
    assert sorted((event["model"], event["epoch"]) for event in events) == [(m, e) for m in (0, 1) for e in range(5)]


def test_the_time_is_shared_by_the_models_in_flight(study, tmp_path):
    began = time.perf_counter()
    store = lanes(study, tmp_path, range(4), lanes=4)
    spent = time.perf_counter() - began
    assert 0 < sum(store.load_shard(model)[1]["seconds"] for model in range(4)) < spent


def test_a_diverging_model_is_named(study, tmp_path):
    with pytest.raises(Diverged, match=r"model \d diverged in epoch \d"):
        lanes(study.replace(optimizer="sgd", lr=1e9), tmp_path, lanes=2)


def test_batches_that_differ_in_size_are_refused(study, tmp_path):
    with pytest.raises(gpu.NotCaptured, match=r"batch_size 1000 is larger than a model's \d+ samples"):
        lanes(study.replace(batch_size=1000), tmp_path)


def test_the_run_says_what_trained_it(study, tmp_path):
    store = lanes(study, tmp_path / "a", range(3))
    _, pool, _ = open_store(study, out=tmp_path / "a", device="cpu")
    arrays, meta = lanes(study, tmp_path / "a", [3]).load_shard(3)
    store.shard(3).unlink()
    store.save_shard(3, arrays, meta | {"engine": "cuda-graph, 2 in flight and cpu", "mode": "fast"})
    list(merge(tmp_path / "b", [tmp_path / "a"]))
    for folder in "ab":
        run = assemble(store_of(study, tmp_path / folder), pool)
        assert (run.attrs["engine"], run.attrs["mode"]) == ("cpu and cuda-graph, 2 in flight", "fast")


def test_a_state_that_went_on_elsewhere_keeps_both_names(study, tmp_path):
    with pytest.raises(Stopped):
        lanes(study, tmp_path, [0], report=stop_at(0, 2))
    store = store_of(study, tmp_path)
    arrays, meta = store.load_state(0)
    store.save_state(0, arrays, meta | {"engine": "cuda-eager", "mode": "fast"})
    _, meta = lanes(study, tmp_path, [0]).load_shard(0)
    assert (meta["engine"], meta["mode"]) == ("cuda-eager and cpu", "fast")


@pytest.mark.parametrize("mode", ["fast", "deterministic"])
def test_a_mode_ends_with_its_block(mode, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with arithmetic(mode):
        assert torch.are_deterministic_algorithms_enabled() == (mode == "deterministic")
        assert torch.backends.cudnn.benchmark == (mode == "fast")
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == (mode == "deterministic")
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before


def test_a_wrong_mode_is_named(study, tmp_path):
    with pytest.raises(UserError, match=r"unknown mode 'quick'.*fast, deterministic"):
        engine.train_part(study, out=tmp_path, mode="quick", device="cpu")


def test_what_cannot_be_captured_trains_step_by_step_and_says_so(study, tmp_path, capsys):
    study, pool, store = open_store(study.replace(batch_size=1000), out=tmp_path / "a", device="cpu")
    gpu.train_cuda(Job(study, pool, store), [0])
    line = capsys.readouterr().err
    assert line.startswith("dynmia: no CUDA graph for this study (batch_size 1000")
    assert line.count("\n") == 1
    assert_same(store, eager(study, tmp_path / "b", [0]), [0])


def test_what_does_not_compile_goes_on_uncompiled_and_says_so(study, tmp_path, capsys, monkeypatch):
    def broken(self, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    store = lanes(study, tmp_path / "a", compiled=True)
    assert capsys.readouterr().err == "dynmia: torch.compile failed (no compiler): training goes on without it\n"
    assert_same(store, eager(study, tmp_path / "b"))


@pytest.mark.parametrize("name", ["cnn", "cnn-dropout", "deep-cnn", "mlp", "wrn-10-1"])
def test_every_model_is_compiled_as_a_whole_and_keeps_its_names(name, monkeypatch):
    graphs, compiler = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda forward, **options: compiler(forward, backend=backend, **options))
    torch.manual_seed(0)
    model = build_model(name, (3, 16, 16), 10).eval()
    images, names = torch.randn(4, 3, 16, 16), list(model.state_dict())
    plain = model(images)
    gpu.compile_forward(model)
    torch.testing.assert_close(model(images), plain)
    assert len(graphs) == 1
    assert list(model.state_dict()) == names


def test_a_traced_step_is_the_plain_one(study, tmp_path, monkeypatch):
    """Statistics frozen for SAM, evaluation in between, another model in the lane: a tracer must see all of them."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **options: compiler(forward, backend="aot_eager", **options))
    study = study.replace(model="wrn-10-1", optimizer="sam-sgd", epochs=2, checkpoint_every=1)
    plain, traced = (
        lanes(study, tmp_path / name, [0, 1], lanes=1, compiled=name == "traced") for name in ("plain", "traced")
    )
    for model in (0, 1):
        ours, theirs = traced.load_shard(model)[0], plain.load_shard(model)[0]
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)
        np.testing.assert_allclose(ours["phi"], theirs["phi"], atol=1e-3 * np.ptp(theirs["phi"]))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["cnn", "cnn-dropout", "deep-cnn", "mlp", "wrn-10-1"])
def test_queries_in_float16_are_close_and_their_logits_float32(name, compiled, monkeypatch):
    pool = random_pool((3, 16, 16), 10, 40)
    study = Study(model=name, batch_size=16, precision="bf16")
    data, state = DeviceData.of(pool, "cpu"), new_state(study, pool, 0, "cpu")
    whole = evaluate(state, data, data.images, data.labels)
    seen, last = [], [module for module in state.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_hook(lambda module, inputs, logits: seen.append((inputs[0].dtype, logits.dtype)))
    if compiled:
        compiler = torch.compile
        monkeypatch.setattr(torch, "compile", lambda forward, **options: compiler(forward, backend="eager", **options))
        gpu.compile_forward(state.model)
    half = evaluate(state, data, data.images, data.labels, batch=16, whole=True, half=True)
    np.testing.assert_allclose(half[0], whole[0], atol=2e-3)  # of logits of order 1
    assert not np.array_equal(half[0], whole[0])
    assert set(seen) == {(torch.float16, torch.float32)}


def test_what_overflows_float16_is_queried_in_float32():
    pool = random_pool((3, 16, 16), 10, 40)
    data, state = DeviceData.of(pool, "cpu"), new_state(Study(model="cnn"), pool, 0, "cpu")
    with torch.no_grad():
        state.model[0].weight *= 1e6
    whole, half = (evaluate(state, data, data.images, data.labels, half=half) for half in (False, True))
    assert np.abs(whole[0]).max() > 65504
    assert np.array_equal(half[0], whole[0])


def test_models_of_a_user_and_studies_in_float32_are_queried_in_float32(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(WAITING)
    monkeypatch.syspath_prepend(tmp_path)
    pool = random_pool((3, 16, 16), 10, 40)
    for model, precision, half in (
        ("cnn", "bf16", True),
        ("cnn", "float32", False),
        ("own_net:net", "bf16", False),
    ):
        study = Study(model=model, batch_size=16, precision=precision)
        assert gpu.Lane(study, pool, DeviceData.of(pool, "cpu")).half == half


def test_an_operation_without_a_deterministic_form_is_named(study, tmp_path, monkeypatch):
    def refused(*arguments):
        raise RuntimeError("unpool does not have a deterministic implementation, but you asked for one")

    monkeypatch.setattr(gpu, "update", refused)
    with pytest.raises(UserError, match=r"unpool does not .*: use --mode fast for model cnn"):
        lanes(study, tmp_path)


@pytest.fixture
def measured(monkeypatch):
    """The benchmark's figures, taken on a CPU, in miniature and uncompiled; one of its measures cannot be taken."""
    small = dict(
        DEVICE="cpu", MODEL="wrn-10-1", SHAPE=(3, 8, 8), STEPS=1, WORKERS=0, rate=lambda work, seconds: (work(), 2.0)[1]
    )
    for name, value in small.items():
        monkeypatch.setattr(bench_gpu, name, value)
    monkeypatch.setattr(torch, "compile", lambda forward, **options: forward)
    keep = ("copy", "dataloader_loop_256", "plain_dataloader_loop_256", "deterministic_graph_256", "eager_256",
            "graph_256", "sam_graph_256", "evaluation", "compiled_graph_256_2_in_flight")  # fmt: skip
    measures = {name: entry for name, entry in bench_gpu.measures().items() if name in keep}
    monkeypatch.setattr(bench_gpu, "measures", lambda: measures)
    return bench_gpu.measure(time.time() + 600, lambda name, value: None, repeats=2)


def test_the_benchmark_names_rates_and_ratios_and_what_failed(measured):
    entry = {"median": 512.0, "min": 512.0, "max": 512.0, "unit": "images/s"}
    graphs = ("graph_256", "sam_graph_256", "deterministic_graph_256")
    for name in ("dataloader_loop_256", "plain_dataloader_loop_256", "eager_256", *graphs):
        assert measured[name] == entry
    assert measured["best"] == "compiled_graph_256_2_in_flight"
    assert measured["best / eager_256"] == {"median": 2.0, "min": 2.0, "max": 2.0, "unit": "x"}
    assert measured["evaluation / training"]["median"] == pytest.approx(41 * 60_000 / 1e7 * 1024 / 512)
    assert measured["copy"].startswith("error: ")  # it waits for a GPU
    assert measured["best / ceiling, high"] == "error: KeyError: 'copy'"
    assert {name for name in maker("bench-cpu").TARGETS if name.startswith(("best", "sam", "evaluation"))} <= set(
        measured
    )
    json.dumps(measured)


def test_of_some_measurements_no_ratio_with_the_others(monkeypatch):
    entry = "fast", lambda: lambda: 2.0
    monkeypatch.setattr(bench_gpu, "measures", lambda: dict.fromkeys(("copy", "eager_256", "graph_256"), entry))
    some = bench_gpu.measure(time.time() + 60, lambda name, value: None, 1, only=["graph_256", "eager_256"])
    assert set(some) == {"model", "baselines", "best", "graph_256", "eager_256", "best / eager_256", "arithmetic"}


def test_the_whole_list_of_measures():
    names = set(bench_gpu.measures())
    for batch in (128, 256, 512):
        assert {f"{kind}_{batch}" for kind in ("eager", "compiled", "graph", "compiled_graph")} <= names
        assert {f"compiled_graph_{batch}_{lanes}_in_flight" for lanes in (2, 3, 4)} <= names
    assert {f"cnn_graph_64_{lanes}_in_flight" for lanes in (1, 2, 4, 8)} <= names


def test_studies_with_changes():
    assert agreement_gpu.listed_study("paper-sam") == Study.preset("paper-sam")
    changed = agreement_gpu.listed_study("paper-sgd,pool_size=1000,model=cnn,augment=true")
    assert changed == Study.preset("paper-sgd", pool_size=1000, model="cnn", augment=True)
    with pytest.raises(UserError, match="needs a name and a value"):
        agreement_gpu.listed_study("paper-sgd,epochs")
    released = agreement_gpu.listed_study("cifar10-cnn-1000-seed1,epochs=3")
    assert (released.pool_size, released.seed, released.epochs) == (1000, 1, 3)
    with pytest.raises(UserError, match=r"unknown preset or run 'mnist-cnn'"):
        agreement_gpu.listed_study("mnist-cnn")


def test_the_engines_are_compared_on_one_study(tmp_path, monkeypatch, make_npz):
    text = f"quick,dataset={make_npz()},model=wrn-10-1,epochs=2,pool_size=60,shadow_models=6,batch_size=8"
    monkeypatch.setattr(engine, "pick_device", lambda device: "cpu")
    monkeypatch.setattr(torch, "compile", lambda forward, **options: forward)
    monkeypatch.setattr(agreement_gpu, "DEVICE", "cpu")
    found = agreement_gpu.agree(text, [1], tmp_path, None, time.time() + 60)
    assert list(found) == ["graph", "compiled graph", "eager", "seed 1"]
    for name in agreement_gpu.ENGINES:  # on a CPU, all of them are the same
        assert found[name] | {"seconds": 0} == found["graph"] | {"seconds": 0}
        assert 0 <= found[name]["auc"] <= 1
        assert found[name]["seconds"] > 0
    assert found["seed 1"] | {"seconds": 0} != found["graph"] | {"seconds": 0}
    over = agreement_gpu.agree(text, [], tmp_path / "late", None, time.time() - 1)
    assert over["eager"] == "6 models are left: the time was over"


@pytest.mark.parametrize("script", ["bench-gpu", "agreement-gpu"])
def test_what_needs_a_gpu_is_refused_in_one_line_without(tmp_path, script):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "dynmia.cli", "make", script, "--out", str(tmp_path / "x.json")],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "dynmia: torch finds no GPU here, and this is for one; `dynmia make bench-cpu` measures CPUs.\n"
    )
    assert not list(tmp_path.iterdir())


# --- on CUDA


def phi(store, model=0):
    return store.load_shard(model)[0]["phi"]


@cuda
@pytest.mark.parametrize("setting", [name for name in SETTINGS if "dropout" not in name])  # other random numbers
def test_the_graph_gives_what_eager_steps_give(study, tmp_path, setting):
    study = study.replace(**SETTINGS[setting])
    with arithmetic("deterministic"):
        graph = lanes(study, tmp_path / "graph", device="cuda", lanes=2)
        plain = eager(study, tmp_path / "eager", device="cuda")
    for model in range(3):
        assert graph.load_shard(model)[1]["engine"].startswith("cuda-graph")
        spread = np.ptp(phi(plain, model))
        # the same kernels in the same order; the rate is a float32 tensor instead of a float64 number
        np.testing.assert_allclose(phi(graph, model), phi(plain, model), atol=0.02 * spread)
        np.testing.assert_allclose(graph.load_shard(model)[0]["loss"], plain.load_shard(model)[0]["loss"], rtol=0.02)


@cuda
@pytest.mark.parametrize("setting", ["adamw", "sam-sgd-augment", "wide-resnet"])
def test_cuda_is_close_to_the_cpu(study, tmp_path, setting):
    study = study.replace(**SETTINGS[setting])
    first, second = phi(lanes(study, tmp_path / "cuda", device="cuda")), phi(lanes(study, tmp_path / "cpu"))
    assert np.corrcoef(first[-1], second[-1])[0, 1] > 0.98
    np.testing.assert_allclose(first[0], second[0], atol=0.02)  # the same weights, before training


@cuda
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_deterministic_mode_repeats_and_resumes_to_the_bit(study, tmp_path, setting, monkeypatch):
    monkeypatch.setattr("dynmia.shadow.shard.SAVING", 1e9)
    study = study.replace(**SETTINGS[setting])
    with arithmetic("deterministic"):
        whole = lanes(study, tmp_path / "whole", device="cuda", lanes=3)
        assert_same(lanes(study, tmp_path / "one", device="cuda", lanes=1), whole)
        with pytest.raises(Stopped):
            lanes(study, tmp_path / "stopped", device="cuda", lanes=3, report=stop_at(0, 2))
        assert_same(lanes(study, tmp_path / "stopped", device="cuda", lanes=3), whole)
    assert whole.load_shard(0)[1]["mode"] == "deterministic"


@cuda
@pytest.mark.parametrize("setting", ["adamw", "wide-resnet-bf16-sam"])
def test_the_fast_mode_resumes_close_to_the_uninterrupted_run(study, tmp_path, setting, monkeypatch):
    monkeypatch.setattr("dynmia.shadow.shard.SAVING", 1e9)
    study = study.replace(**SETTINGS[setting])
    with arithmetic("fast"):
        whole = lanes(study, tmp_path / "whole", device="cuda", lanes=3)
        with pytest.raises(Stopped):
            lanes(study, tmp_path / "stopped", device="cuda", lanes=3, report=stop_at(0, 2))
        stopped = lanes(study, tmp_path / "stopped", device="cuda", lanes=3)
    for model in range(3):
        assert stopped.load_shard(model)[1]["mode"] == "fast"
        pair = phi(stopped, model)[-1], phi(whole, model)[-1]
        assert np.corrcoef(*pair)[0, 1] > 0.95
        assert np.corrcoef(phi(stopped, model)[0], pair[1])[0, 1] < 0.95  # nor is it what was there before training


@cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_queries_in_float16_are_close_to_float32_on_a_gpu(compiled):
    study = Study(model="wrn-10-1", batch_size=16, precision="bf16")
    pool = dataclasses.replace(random_pool((3, 16, 16), 10, 200), keep=np.ones((1, 200), bool))
    lane = gpu.Lane(study, pool, DeviceData.of(pool, "cuda"), compiled)
    with lane.here():
        lane.load(0)
        half = lane.query(lane.data.images, lane.data.labels)[0]
        lane.half = False
        whole = lane.query(lane.data.images, lane.data.labels)[0]
    np.testing.assert_allclose(half, whole, atol=0.01 * np.ptp(whole))
    assert not np.array_equal(half, whole)


@cuda
def test_another_model_in_a_captured_lane_leaves_no_trace(study, tmp_path):
    with arithmetic("deterministic"):
        after = lanes(study.replace(model="deep-cnn"), tmp_path / "after", [0, 1], device="cuda", lanes=1)
        alone = lanes(study.replace(model="deep-cnn"), tmp_path / "alone", [1], device="cuda", lanes=1)
    assert_same(after, alone, [1])


@cuda
def test_a_compiled_step_is_close_to_the_plain_one(study, tmp_path):
    study = study.replace(model="wrn-10-1", optimizer="sam-sgd")
    exact = dict(enabled=True, benchmark=False, deterministic=False, allow_tf32=False)
    with torch.backends.cudnn.flags(**exact):  # TF32's rounding, amplified by training, would hide a mistake
        plain, compiled = (
            lanes(study, tmp_path / name, [0], device="cuda", compiled=name == "compiled")
            for name in ("plain", "compiled")
        )
    assert compiled.load_shard(0)[1]["engine"] == "cuda-graph, 1 in flight, compiled"
    assert np.corrcoef(phi(plain)[-1], phi(compiled)[-1])[0, 1] > 0.98


WAITING = """
import torch
def net(shape, classes):
    return Net(shape[0] * shape[1] * shape[2], classes)
class Net(torch.nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.linear = torch.nn.Linear(inputs, classes)
    def forward(self, x):
        y = self.linear(x.flatten(1))
        return y if y.sum().item() < 1e30 else 0 * y
"""


@cuda
def test_a_model_that_waits_for_the_host_trains_eagerly(study, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_waiting.py").write_text(WAITING)
    monkeypatch.syspath_prepend(tmp_path)
    study = study.replace(model="own_waiting:net")
    _, store = engine.train_part(study, models=[0], out=tmp_path / "run", device="cuda", progress=False)
    assert "no CUDA graph for this study" in capsys.readouterr().err
    assert store.load_shard(0)[1]["engine"] == "cuda-eager"


@cuda
def test_train_part_captures_by_itself(study, tmp_path):
    for mode in ("fast", "deterministic"):
        _, store = engine.train_part(
            study, models=[0, 1], out=tmp_path / mode, device="cuda", mode=mode, progress=False
        )
        assert store.load_shard(1)[1] | dict(engine="cuda-graph, 2 in flight", mode=mode) == store.load_shard(1)[1]


@cuda
def test_a_pool_larger_than_one_query_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "EVALUATION_BATCH", 70)
    study = Study(model="cnn", batch_size=16, precision="float32")
    pool = dataclasses.replace(random_pool((3, 16, 16), 10, 200), keep=np.ones((1, 200), bool))
    lane = gpu.Lane(study, pool, DeviceData.of(pool, "cuda"))
    with lane.here():
        lane.load(0)
        parts = lane.query(lane.data.images, lane.data.labels)[0]
    monkeypatch.setattr(gpu, "EVALUATION_BATCH", 200)
    with lane.here():
        whole = lane.query(lane.data.images, lane.data.labels)[0]
    np.testing.assert_allclose(parts, whole, atol=0.01)

"""Cost: measurements against their targets, the paper's study from measured rates, the benchmark itself."""

import json

import pandas as pd
import pytest
from helpers import assert_one_clear_line, run_cli

from dynmia import study
from dynmia.book import maker
from dynmia.errors import StoreError
from dynmia.pool.datasets import load_dataset
from dynmia.pool.pool import make_pool
from dynmia.shadow import plan

bench, bench_gpu, agreement_gpu = maker("bench-cpu"), maker("bench-gpu"), maker("agreement-gpu")
entries, measurements, met, rates = bench.entries, bench.measurements, bench.met, bench.rates
study_hours, target, targets = bench.study_hours, bench.target, bench.targets
PAPER = study.Study.preset("paper-baseline")


def entry(median, unit="x"):
    return {"median": median, "min": median - 0.1, "max": median + 0.1, "unit": unit}


@pytest.fixture
def cpu():
    names = {
        "busy_share": 0.96,
        "pool_of_processes / sgemm": 0.5,
        "paper_train_rate": 100,
        "paper_evaluation_rate": 400,
    }
    return {"hardware": "a machine", "workers": 2, "entries": {name: entry(value) for name, value in names.items()}}


@pytest.fixture
def gpu():
    names = {"compiled_graph_256": 50_000, "compiled_evaluation": 100_000, "sam step / sgd step": 2.05}
    return {
        "hardware": "a GPU",
        "measures": {"best": "compiled_graph_256", "graph_512": "error: out of memory", "model": "wrn-28-2"}
        | {name: entry(value) for name, value in names.items()},
    }


@pytest.mark.parametrize(
    ("name", "median", "is_met"),
    [
        ("busy_share", 0.95, True), ("busy_share", 0.9499, False), ("memory", 0.5, True), ("memory", 0.51, False),
        ("lira_slowest_variant", 5.01, False), ("lira_nan_loop / lira_online_mean", 15, True),
    ],
)  # fmt: skip
def test_a_target_is_met_at_its_value(name, median, is_met):
    assert target(name, median) == (f"{bench.TARGETS[name][1]} {bench.TARGETS[name][2]:,g}", is_met)
    assert target("sgemm", median) is None


def test_tables_show_what_was_measured_and_nothing_else(cpu, gpu):
    table = targets(cpu)
    assert table.met.tolist() == ["yes", "no"]
    assert table.target.tolist() == [">= 0.95", ">= 0.6"]
    assert table.iloc[1, 0] == "0.5 [0.4, 0.6] x"
    assert met(table) == (
        "1 of 2 targets are met; not met: training, share of the measured sgemm rate (0.5 [0.4, 0.6] x; target >= 0.6)."
    )
    assert rates(cpu).index.tolist() == ["paper_train_rate", "paper_evaluation_rate"]
    assert "graph_512" not in entries(gpu)
    assert met(targets(gpu)) == "1 of 1 targets are met."
    assert len(targets({"hardware": "nothing"})) == 0


def test_targets_of_several_machines_in_one_table(cpu, gpu):
    slow = {"entries": {"busy_share": entry(0.9)}}
    table = bench.target_table({"fast": cpu, "slow": slow, "gpu": gpu})
    assert table.columns.tolist() == ["target", "fast", "slow", "gpu"]
    assert table.index.tolist() == [bench.TARGETS[name][0] for name in bench.TARGETS if name in (
        "pool_of_processes / sgemm", "busy_share", "sam step / sgd step"
    )]  # fmt: skip
    busy = table.loc[bench.TARGETS["busy_share"][0]]
    assert busy.target == ">= 0.95"
    assert not busy.fast.endswith("missed")
    assert busy.slow.endswith("x – missed")
    assert busy.gpu == ""


def test_batch_sizes_side_by_side(gpu):
    assert len(bench_gpu.batch_sizes(gpu)) == 0
    rates_of = {"copy": 4.2e12, "eager_256": 30_000, "graph_256": 50_000, "compiled_graph_256_2_in_flight": 90_000}
    gpu["measures"] |= {name: entry(value) for name, value in rates_of.items()}
    table = bench_gpu.batch_sizes(gpu)
    assert bench_gpu.at_512(gpu) == "batches of 512: not yet measured."
    more = {"graph_512": 84_000, "dataloader_loop_256": 21_000, "eager_512": 42_000}
    gpu["measures"] |= {name: entry(value) for name, value in more.items()}
    assert bench_gpu.at_512(gpu).startswith("batches of 512: 0.30 of the ceiling, 4.0 times the `DataLoader` loop")
    assert bench_gpu.at_512(gpu).endswith("2.0 times the eager loop.")
    assert table.index.tolist() == [256]
    assert table.loc[256].to_dict() == {
        "eager": "30.0", "graph": "50.0", "compiled graph": "50.0", "2 in flight": "90.0", "best / eager": "3.0",
        "share of the ceiling": "0.32 to 0.45",
    }  # fmt: skip


def test_what_bandwidth_gains(gpu):
    gpu["measures"]["copy"] = entry(2e12)
    assert bench_gpu.bandwidth([]) == bench_gpu.bandwidth([gpu, gpu]) == ""
    other = {"hardware": "a wider GPU", "measures": {"best": "x", "x": entry(60_000), "copy": entry(3e12)}}
    line = "The a wider GPU copies 1.50 times as fast as the a GPU and trains 1.20 times as fast."
    assert bench_gpu.bandwidth([other, gpu]) == line
    del other["measures"]["copy"]
    assert bench_gpu.bandwidth([other, gpu]) == ""


def test_engines_beside_populations_of_other_seeds(tiny_run):
    found = {"auc": 0.6, "train_accuracy": 0.9, "test_accuracy": 0.5, "seconds": 2}
    measured = {"hardware": "a GPU", "agreement x": {"graph": found, "eager": "4 models are left"}}
    table = agreement_gpu.agreement(measured, "x", {"seed 0": tiny_run[1]})
    assert table.index.tolist() == ["CPU, seed 0", "a GPU, graph"]
    assert table.loc["a GPU, graph"].tolist() == [0.9, 0.5, 0.6]
    assert table.loc["CPU, seed 0", "test_accuracy"] == pytest.approx(float(tiny_run[1].test_accuracy[-1].mean()))
    assert 0.3 < table.loc["CPU, seed 0", "auc"] < 1


def test_how_far_engines_lie_apart_beside_what_a_seed_changes():
    def row(auc):
        return {"train_accuracy": 1, "test_accuracy": auc - 0.1, "auc": auc}

    rows = {"a GPU, graph": row(0.6), "a GPU, eager": row(0.61), "a GPU, seed 1": row(0.5), "a GPU, seed 2": row(0.7)}
    line = (
        "eager: 0.0100 from the graph's AUC and 0.0100 from its held-out accuracy; the standard deviation over 3 seeds "
        "is 0.1000 and 0.1000."
    )
    assert agreement_gpu.apart(pd.DataFrame(rows).T) == [line]
    rows |= {"CPU, seed 0": row(0.6), "CPU, seed 1": row(0.6)}  # then the GPU's graph is of one of their seeds
    rows = {name: one for name, one in rows.items() if not name.startswith("a GPU, seed")}
    assert agreement_gpu.apart(pd.DataFrame(rows).T) == [line.replace("0.1000", "0.0000").replace("3 seeds", "2 seeds")]


def test_the_papers_study_from_committed_rates(cpu, gpu):
    trained, queried = 25_000 * 400, 41 * 60_000  # of one model
    model = (trained / 100 + queried / 400) / 3600
    hours = study_hours(PAPER, cpu)
    assert hours["one machine"] == pytest.approx(10 * model, rel=1e-12)  # 20 models, two at once
    assert hours["Ray cluster of 10"] == hours["SLURM array"] == pytest.approx(model, rel=1e-12)
    model = (trained / 50_000 + queried / 100_000) / 3600
    hours = study_hours(PAPER, gpu)
    assert list(hours.values()) == pytest.approx([20 * model, 2 * model, model], rel=1e-12)
    del cpu["entries"]["paper_train_rate"]
    assert study_hours(PAPER, cpu) == {}


@pytest.mark.parametrize(
    ("changes", "workers", "parts"),
    [
        ({}, 0, ["workers is 0", "at least 1"]),
        ({}, -2, ["workers is -2", "at least 1"]),
        ({"pool_size": 1498}, None, ["pool_size 1498 is larger than the training split of digits (1497)"]),
        ({"test_size": 301}, None, ["test_size 301 is larger than the test split of digits (300)"]),
    ],
)
def test_an_impossible_plan_is_the_line_of_training(monkeypatch, changes, workers, parts):
    monkeypatch.setattr(plan, "calibrate", lambda *_: pytest.fail("calibrated"))
    planned = study.Study.preset("quick", **changes)
    assert_one_clear_line(lambda: plan.plan(planned, device="cpu", workers=workers), parts)
    if changes:  # the same line
        assert_one_clear_line(lambda: make_pool(planned, load_dataset("digits")), parts)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        *[({"seconds": value}, f"seconds is {value}") for value in (0, -1.0, float("nan"), float("inf"))],
        *[({"repeats": value}, f"repeats is {value}") for value in (0, -1)],
    ],
)
def test_an_impossible_measurement_is_one_clear_line(monkeypatch, options, part):
    monkeypatch.setattr(bench, "_processes", lambda *_: pytest.fail("measured"))
    assert_one_clear_line(lambda: bench.bench(**options), [part])


def test_planning_and_the_committed_rates_count_the_same_work():
    planned = plan.plan(study.Study.preset("quick"), device="cpu")
    trained, queried = plan.work(study.Study.preset("quick"), 1200, 300)
    assert (planned["training_samples"], planned["evaluations"]) == (20 * trained, 20 * queried)


def test_measurements_are_found_by_name(tmp_path, cpu):
    assert measurements(tmp_path) == {}
    (tmp_path / "bench-cpu.json").write_text(json.dumps(cpu))
    assert measurements(tmp_path) == {"bench-cpu": cpu}
    (tmp_path / "bench-cpu-2.json").write_text(json.dumps(cpu))
    assert list(measurements(tmp_path)) == ["bench-cpu", "bench-cpu-2"]
    path = tmp_path / "bench-gpu.json"
    for content in ("", "{", "[]", "3", '{"hardware": 3}', "[" * 10**5, '{"hardware": "a", "entries": [1]}',
                    '{"hardware": "a", "entries": {"x": {"median": "fast"}}}'):  # fmt: skip
        path.write_text(content)
        assert_one_clear_line(
            lambda: measurements(tmp_path), [str(path), "no benchmark", "make it again", "dynmia make bench-gpu --out"]
        )
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="make it again"):
        measurements(tmp_path)


@pytest.mark.heavy("a benchmark with its waits")
def test_the_busy_share_is_a_share(monkeypatch):
    monkeypatch.setattr(bench, "SAMPLES", 64)
    assert 0.02 < bench.busy_share(1000, models=4) <= 1.02  # short: mostly the start of the processes


def test_the_benchmark_has_every_cpu_target_and_what_it_ran_on(monkeypatch, capsys, tmp_path):
    variants = {
        f"lira_{a}_{c}{v}": 1.5 for a in ("online", "offline") for c in ("mean", "median") for v in ("", "_pooled")
    }
    scored = variants | {"lira_scipy_loop": 3000.0, "lira_nan_loop": 30.0, "memory": 0.1, "plane": 8.0}
    scored |= {"summarise_1000_draws": 9.0, "lira_per_million_at_10000": 1.0, "lira_per_million_at_1000000": 1.0}
    scored |= {"moderated": 4.0, "moderated_memory": 0.1, "moderated_per_million_at_10000": 3.0}
    scored["moderated_per_million_at_1000000"] = 3.0
    monkeypatch.setattr(bench, "_processes", lambda kind, *_: {"tuned": 400.0, "sgemm": 70.0}.get(kind, 100.0))
    monkeypatch.setattr(bench, "busy_share", lambda samples: 0.9)
    monkeypatch.setattr(bench, "calibrate", lambda *_: (10.0, 40.0))
    process = type("Process", (), {"communicate": lambda self: (json.dumps(scored), None)})
    monkeypatch.setattr(bench, "_python", lambda *_: process())
    words = ["make", "bench-cpu", "--seconds", "0.1", "--repeats"]
    _, out, _ = run_cli(capsys, *words, "2", "--json", "--out", tmp_path / "bench-cpu.json")
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "bench-cpu.json").read_text())
    assert set(printed) >= {"hardware", "versions", "created", "command", "workers", "entries"}
    assert printed["command"] == "dynmia make bench-cpu --seconds 0.1 --repeats 2"
    for value in printed["entries"].values():
        assert set(value) == {"median", "min", "max", "unit"}
    table = targets(printed)
    assert len(table) == 13
    share = "training, share of the measured sgemm rate"
    assert printed["entries"]["pool_of_processes / sgemm"]["median"] == pytest.approx(
        400 / 70 * bench.flops_a_sample() / 1e9
    )
    assert table.met.drop(share).value_counts().to_dict() == {"yes": 11, "no": 1}
    assert study_hours(PAPER, printed)
    _, out, _ = run_cli(capsys, *words, "1")
    assert "target >= 0.95: NOT met" in out
    assert "target >= 1,000: met" in out

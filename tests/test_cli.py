import json
import subprocess
import sys

import pytest
from helpers import ROOT, TINY_WORDS, bad, run_cli

import dynmia
from dynmia.cli import duration, main, pair_parameters


@pytest.mark.parametrize(("command", "word"), [("datasets", "cinic10"), ("models", "wrn-D-K")])
def test_lists_name_what_there_is(capsys, command, word):
    code, out, _ = run_cli(capsys, command)
    assert code == 0
    assert word in out


@pytest.mark.heavy("three commands, one of which trains")
def test_train_status_summarise_follow_one_another(capsys, tmp_path):
    folder, file = tmp_path / "run", tmp_path / "run.nc"
    code, out, _ = run_cli(capsys, "train", *TINY_WORDS, "--out", folder, "--save", file, "--quiet", "--device", "cpu")
    assert code == 0
    assert "4 models, 3 checkpoints" in out
    code, out, _ = run_cli(capsys, "status", folder)
    assert "4 of 4 models finished" in out
    for source in (file, folder):
        code, out, _ = run_cli(capsys, "summarise", source, "--draws", 40, "--null", 2, "--json")
        assert code == 0
        assert set(json.loads(out)["displacement"]) >= {"value", "low", "high", "null_low", "null_high"}


@pytest.mark.slow("two commands that load torch and train")
def test_the_command_kept_in_a_run_makes_it_again(capsys, tmp_path):
    import numpy as np

    from dynmia import open_run

    words = ["train", *TINY_WORDS, "--optimizer", "sgd", "--augment", "--quiet", "--device", "cpu"]
    run_cli(capsys, *words, "--out", tmp_path / "a")
    first = open_run(tmp_path / "a")
    again = first.attrs["command"].split()[1:]
    code, _, err = run_cli(capsys, *again, "--out", tmp_path / "b", "--quiet", "--device", "cpu")
    assert code == 0, err
    second = open_run(tmp_path / "b")
    assert second.attrs["identity"] == first.attrs["identity"]
    np.testing.assert_array_equal(first.phi, second.phi)


def test_plan_states_the_cost_before_anything_starts(capsys):
    code, out, _ = run_cli(capsys, "plan", "--preset", "quick", "--json", "--device", "cpu")
    cost = json.loads(out)
    assert code == 0
    assert cost["training_samples"] == 20 * 600 * 30
    assert cost["evaluations"] == 20 * 16 * (1200 + 300)
    assert cost["seconds"] > 0


@pytest.mark.slow("measures training rates twice")
def test_plan_of_sam_costs_twice_the_training_flops():
    from dynmia.shadow.plan import plan
    from dynmia.study import Study

    study = Study.preset("quick")
    sgd, sam = (plan(study.replace(optimizer=name), device="cpu") for name in ("sgd", "sam-sgd"))
    evaluation = sgd["flops"] * sgd["evaluations"] / (3 * sgd["training_samples"] + sgd["evaluations"])
    assert sam["flops"] - evaluation == pytest.approx(2 * (sgd["flops"] - evaluation))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "--dataset", "mnits"], "did you mean 'mnist'"),
        (["train", "--model", "wrn-28"], "wrn-28-2"),
        (["train", "--optimizer", "adam"], "'adamw'"),
        (["train", "--preset", "quik"], "'quick'"),
        (["train", "--pool-size", "5000"], "larger than the training split"),
        (["train", "--shadow-models", "3"], "at least 4"),
        (["train", "--epochs", "10", "--checkpoint-every", "3"], "1, 2, 5, 10"),
        (["train", "--lr", "nan"], "finite"),
        (["train", "--dataset", "mnist", "--data-dir", "nowhere"], "does not exist"),
        (["train", "--dataset", "nowhere/mine.npz"], "no such file"),
        (["train", "--device", "tpu"], "cpu or cuda"),
        (["status", "nowhere"], "not a run folder"),
        (["summarise", "nowhere.nc"], "does not exist"),
        (["summarise", "data/quick.nc", "--rule", "fpr"], "fpr@0.01"),
        (["summarise", "data/quick.nc", "--draws", "3"], "at least 20"),
        (["notebook", "01-populatoin"], "'01-population'"),
        (["notebook", "01-population", "-p", "datset", "mnist"], "'dataset'"),
        (["notebook", "01-population", "-p", "retrain", "maybe"], "of type bool"),
        (["notebook", "01-population", "-p", "null_draws", "2.5"], "of type int"),
        (["notebook", "01-population", "-p", "rule"], "a name and a value"),
        (["notebooks", "--only", "nothing-like-it"], "no experiment"),
    ],
)
def test_bad_input_is_one_line_with_the_mend(capsys, monkeypatch, words, hint):
    monkeypatch.chdir(ROOT)
    assert hint in bad(capsys, *words)


@pytest.mark.heavy("commands on a folder that is trained first")
def test_a_run_folder_of_another_study_names_the_field(capsys, tmp_path):
    run_cli(capsys, "train", *TINY_WORDS, "--out", tmp_path, "--quiet", "--device", "cpu")
    line = bad(capsys, "train", *TINY_WORDS, "--lr", "0.002", "--out", tmp_path, "--quiet", "--device", "cpu")
    assert "lr (0.001 there, 0.002 here)" in line


def test_a_value_of_the_wrong_type_is_a_usage_error(capsys):
    code, _, err = run_cli(capsys, "train", "--epochs", "ten")
    assert code == 2
    assert "--epochs" in err
    assert "Traceback" not in err


def test_the_console_command_exits_with_2_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "dynmia.cli", "train", "--model", "cn"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("dynmia: unknown model 'cn'")


def test_ctrl_c_says_how_to_continue(capsys, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dynmia.shadow.train_part", interrupted)
    code, _, err = run_cli(capsys, "train", *TINY_WORDS, "--out", tmp_path / "a folder")
    assert code == 130
    assert (
        err.strip()
        .splitlines()[-1]
        .endswith(f"continues: dynmia train {' '.join(TINY_WORDS)} --out '{tmp_path}/a folder'")
    )


def test_a_warning_is_one_line():
    code = "import warnings; from dynmia import cli, shadow\n"
    code += "shadow.train_part = lambda *_, **__: warnings.warn('mind this') or 1 / 0\n"
    command = [sys.executable, "-c", f"{code}cli.main(['train'])"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    assert lines[0] == "dynmia: mind this"
    assert len(lines) == 2


def test_debug_shows_the_traceback():
    with pytest.raises(dynmia.UserError):
        main(["--debug", "train", "--model", "cn"])


def test_a_fault_of_ours_is_one_line_and_exits_with_1(capsys, monkeypatch):
    monkeypatch.setattr("dynmia.shadow.train_part", lambda *_, **__: 1 / 0)
    code, _, err = run_cli(capsys, "train", *TINY_WORDS)
    assert code == 1
    assert err == "dynmia: ZeroDivisionError: division by zero. Show where by `dynmia --debug ...`, and report it.\n"


def test_without_a_command_the_help_is_shown(capsys):
    code, out, _ = run_cli(capsys)
    assert code == 0
    assert "summarise" in out


def test_a_table_is_written_into_a_new_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    file = tmp_path / "new" / "table.csv"
    code, _, err = run_cli(capsys, "summarise", "data/quick.nc", "--null", "0", "--csv", file)
    assert code == 0, err
    assert file.read_text().startswith("metric,")


def test_help_of_options_does_not_need_docstrings():
    command = [sys.executable, "-OO", "-m", "dynmia.cli", "train", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "radius of SAM's neighbourhood" in " ".join(text.split())


def test_parameters_may_hold_an_equals_sign():
    assert pair_parameters(["-p", "rule", "a=b"]) == ["-p", "rule=a=b"]


@pytest.mark.parametrize(("seconds", "text"), [(30, "30 s"), (600, "10.0 min"), (8640, "2.4 h"), (432000, "5.0 days")])
def test_durations_are_in_the_unit_a_person_would_use(seconds, text):
    assert duration(seconds) == text

"""Every option of every command with bad values: exit code 2, one line, nothing written or changed, in seconds."""

import contextlib
import os
import shutil
import signal

import numpy as np
import pytest
import typer
from helpers import ROOT

from dynmia import cli
from dynmia.book import makers

DIGITS, LONG = "9" * 5000, "x" * 300
TINY = ["--epochs", "2", "--checkpoint-every", "1", "--shadow-models", "4", "--pool-size", "100", "--device", "cpu"]
BASE = {  # words that would be right, to which one bad value is added
    "plan": TINY,
    "train": [*TINY, "--quiet"],
    "status": [],
    "merge": ["{tmp}/into", "{run}"],
    "summarise": ["data/quick.nc", "--null", "0"],
    "notebook": ["01-population"],
    "notebooks": ["--only", "digits"],
    "make complexity": ["digits"],
    "make campaign": ["--scale", "quick", "--only", "quick"],
    "make bench-cpu": [],
    **{f"make {name}": [] for name in makers.scripts() if name not in ("complexity", "campaign", "bench-cpu")},
    # where a value is not read otherwise
    "plan data_dir": [*TINY, "--dataset", "mnist"],
    "train data_dir": [*TINY, "--dataset", "mnist"],
    "train address": [*TINY, "--engine", "ray"],
    "make complexity data_dir": ["mnist"],
    "make campaign data_dir": ["--scale", "quick", "--only", "mnist-cnn-500", "--null", "0"],
}
NAME = ["", " ", "zzz", "é", LONG * 20, "../x", "1", "None", "a\nb", "--", "*"]
WHOLE = ["", "ten", "1.5", "-1", "nan", "inf", DIGITS, "-" + DIGITS, "1,000", "0x10", "²", "[1]"]
REAL = ["", "ten", "-1", "nan", "inf", "-inf", "1e999", DIGITS, "1,5", "0x1", "[1]", "1e"]
FOLDER = ["", "{tmp}/file.txt", "/dev/null", "/dev/null/x", LONG, "{tmp}/file.txt/x", "{tmp}/loop"]
OUTPUT = ["", "{tmp}/own.npz", "{tmp}/file.txt", "{tmp}", "/dev/full", "/dev/null/x", "x.nc.gz", "{tmp}/folder{suffix}",
          "{tmp}/pipe{suffix}", LONG + "{suffix}", "{tmp}/file.txt/x{suffix}", "/dev/null/x{suffix}"]  # fmt: skip
RUN = ["", "missing.nc", "{tmp}/empty.nc", "{tmp}/noise.nc", "{tmp}/cut.nc", "{tmp}", "{tmp}/own.npz", "{tmp}/pipe.nc",
       "{tmp}/folder.nc", "/dev/zero", "/dev/null", LONG + ".nc", "{tmp}/loop", "data/cifar10-cnn-2000.hardness.nc",
       "data/figures.csv", *(f"{{tmp}}/manifest-{k}" for k in range(6))]  # fmt: skip
DATASET = [*NAME, "missing.npz", "{tmp}/empty.npz", "{tmp}/noise.npz", "{tmp}/pipe.npz", "{tmp}/folder", "{tmp}/loop/",
           "{tmp}/keys.npz", "/dev/zero/", "/dev/null/x.npz", LONG + ".npz", "{tmp}/file.txt/"]  # fmt: skip
BAD = {  # by option or argument; `command option` goes before `option`
    "epochs": [*WHOLE, "0", "1e9", "2000000"],
    "checkpoint_every": [*WHOLE, "0", "3"],
    "shadow_models": [*WHOLE, "0", "3", "10000000"],
    "pool_size": [*WHOLE, "0", "3", "100000"],
    "test_size": [*WHOLE, "0", "100000"],
    "batch_size": [*WHOLE, "0"],
    "seed": WHOLE,
    "pool_seed": WHOLE,
    "draws": [*WHOLE, "0", "3"],
    "jobs": [*WHOLE, "0"],
    "repeats": [*WHOLE, "0"],
    "workers": [*WHOLE, "0"],
    "null": WHOLE,
    "lr": REAL,
    "weight_decay": REAL,
    "rho": REAL,
    "momentum": [*REAL, "1"],
    "beta2": [*REAL, "1"],
    "seconds": [*REAL, "0"],
    "dataset": DATASET,
    "make complexity dataset": [*DATASET, "trec"],
    "model": [*NAME, "wrn-28", "wrn-11-1", "wrn-28-0", "wrn-6000004-1", "wrn-10-100000", f"wrn-{DIGITS}-1", "wrn-D-K",
              "no_such:net", "json:dumps", "json:no_such", ":", "a:", ":b", "a:b:c", "os:getcwd", "leaves:net",
              "broken:net"],
    "data_dir": [*FOLDER, "missing", "{tmp}"],
    "only": [*(name for name in NAME if name != "1"), "zzz"],
    "models": [*NAME[:3], "a", "3-1", "-1", "0-99", "0-999999999", DIGITS, "0,,1", "1.5", "0-", "4"],
    "time_budget": ["", "x", "0", "-1", "nan", "inf", "1d", "1h-5m", ".", "0s", DIGITS, "1m1h"],
    "device": [*NAME, "cuda:99", "gpu"],
    "address": [*NAME[1:], "localhost:1"],
    "out": FOLDER,
    "notebook out": OUTPUT,
    "make bench-cpu out": OUTPUT,
    "make bench-gpu out": OUTPUT,
    "make agreement-gpu out": OUTPUT,
    "save": OUTPUT,
    "csv": OUTPUT,
    "rule": [*NAME, "fpr", "fpr@", "fpr@0", "fpr@1", "fpr@nan", "fpr@-1", "fpr@0.1x"],
    "change": ["", "lr", "=1", "zzz=1", "lr=ten", "epochs=1.5", "lr=[1", "dataset=!!python/object:x", "lr=\t", "lr=nan",
               "epochs=2020-01-01", "epochs=", "epochs=" + DIGITS],
    "parameter": ["", "rule", "=x", "zzz=1", "null_draws=2.5", "null_draws=", "rule=zzz", "retrain=maybe",
                  "run_file=missing.nc", "rule=[1"],
    "run": RUN,
    "folder": [*RUN, "{tmp}/into"],
    **{f"make {name} folder": FOLDER for name in makers.scripts()},  # a folder that is none
    "into": [*FOLDER, *(f"{{tmp}}/manifest-{k}" for k in range(6))],
    "sources": RUN,
    "name": [*NAME, "01-populatoin", "01-population.ipynb", LONG],
}  # fmt: skip
SUFFIX = {
    "save": ".nc",
    "csv": ".csv",
    "notebook out": ".ipynb",
    "make bench-cpu out": ".json",
    "make bench-gpu out": ".json",
    "make agreement-gpu out": ".json",
}
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
COMMANDS |= {f"make {name}": COMMANDS["make"].get_command(None, name) for name in makers.scripts()}
del COMMANDS["make"]
OPTIONS = [
    (command, parameter.name, next((name for name in parameter.opts if name.startswith("--")), None))
    for command, entry in COMMANDS.items()
    for parameter in entry.params
    if parameter.name != "help" and not getattr(parameter, "is_flag", False)
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_run):
    """A folder of things that are not what they seem, and the words that stand for it in the tables."""
    tmp = tmp_path_factory.mktemp("walk")
    run = tmp / "run"
    shutil.copytree(tiny_run[0], run)
    (tmp / "file.txt").write_text("not a run")
    (tmp / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (tmp / "broken.py").write_text("def net(:\n")
    for suffix in (".nc", ".npz", ".csv", ".json", ".ipynb"):
        (tmp / f"folder{suffix}").mkdir()
        (tmp / f"empty{suffix}").touch()
        (tmp / f"noise{suffix}").write_bytes(np.random.default_rng(0).bytes(5000))
        os.mkfifo(tmp / f"pipe{suffix}")
    (tmp / "cut.nc").write_bytes((ROOT / "data" / "quick.nc").read_bytes()[:100_000])
    np.savez(tmp / "own.npz", **{f"{a}_{b}": np.zeros((4, 5, 5), np.uint8) for a in ("train", "test") for b in ("x",)})
    np.savez(tmp / "keys.npz", a=np.zeros(3))
    (tmp / "folder").mkdir()
    (tmp / "loop").symlink_to(tmp / "loop")
    manifest = (run / "manifest.json").read_text()
    for number, text in enumerate(["", "[]", "{}", '{"format": 1, "study": 3, "identity": 3}',
                                   manifest.replace('"epochs": 4', '"epochs": "many"'),
                                   manifest.replace('"command": ', '"kommand": ')]):  # fmt: skip
        (tmp / f"manifest-{number}").mkdir()
        (tmp / f"manifest-{number}" / "manifest.json").write_text(text)
    return tmp, {"tmp": str(tmp), "run": str(run)}


def tree(folder):
    """What lies in a folder, with sizes and times of change."""
    return {(str(file), file.lstat().st_size, file.lstat().st_mtime_ns) for file in folder.rglob("*")
            if "__pycache__" not in str(file)}  # fmt: skip


@contextlib.contextmanager
def limited(seconds):
    """Raise in the main thread when the time is over."""

    def ring(*_):
        raise AssertionError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def complaint(capsys, words):
    """What is wrong with how the command line takes ``words``; '' if nothing is."""
    code = 0
    try:
        with limited(10):
            cli.main(words)
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]
    out, err = capsys.readouterr()
    if code != 2:
        return f"exit code {code}: {(out + err)[:200]!r}"
    err = "\n".join(line for line in err.split("\n") if "\r" not in line)  # without progress bars
    if err.count("\n") != 1 or not err.startswith("dynmia: ") or len(err) > 1000:
        return f"not one line: {err[:300]!r}"
    return ""


@pytest.mark.parametrize(("command", "name", "option"), OPTIONS, ids=lambda value: str(value))
def test_walk(command, name, option, inputs, capsys, monkeypatch, tmp_path):
    tmp, places = inputs
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(tmp)
    monkeypatch.delenv("DYNMIA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = f"{command} {name}"
    base = [word.format(**places) for word in BASE.get(key, BASE[command])]
    before = tree(tmp), tree(ROOT / "data"), set(ROOT.iterdir())
    bad = {}
    values = BAD.get(key) or BAD.get(name) or NAME
    for template in values:
        value = template.format(**places, suffix=SUFFIX.get(key, SUFFIX.get(name, "")))
        if option:
            words = [*command.split(), *base, f"{option}={value}"] if value else [*command.split(), *base, option, ""]
        elif name == "into":
            words = [*command.split(), "--", value, base[1]]
        else:  # the last argument
            words = [*command.split(), *base[: 1 if name == "sources" else 0], "--", value]
        if line := complaint(capsys, words):
            bad[value[:60]] = line
    assert not bad, f"{len(bad)} of {len(values)}: {bad}"
    assert (tree(tmp), tree(ROOT / "data"), set(ROOT.iterdir())) == before

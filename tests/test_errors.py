"""Every bad input ends in one line that names the value and what is allowed, or the mend."""

import errno

import numpy as np
import pytest
import torch
from helpers import assert_one_clear_line

import dynmia
from dynmia import Study
from dynmia.errors import choose, disk_error
from dynmia.pool.datasets import load_dataset
from dynmia.pool.pool import make_pool
from dynmia.shadow.models import build_model
from dynmia.shadow.run import open_store, pick_device

SHAPE = (1, 8, 8)
WHOLE = ["epochs", "checkpoint_every", "shadow_models", "pool_size", "batch_size", "seed", "pool_seed"]
REAL = ["lr", "momentum", "beta2", "weight_decay", "rho"]

NAMES = {
    "dataset": (lambda: Study(dataset="mnits"), ["'mnits'", "did you mean 'mnist'", "cinic10", ".npz"]),
    "model": (lambda: Study(model="wrn-28"), ["'wrn-28'", "'wrn-28-2'", "deep-cnn", "package.module:factory"]),
    "optimizer": (lambda: Study(optimizer="adamm"), ["'adamm'", "'adamw'", "sam-sgd"]),
    "preset": (lambda: Study.preset("quik"), ["'quik'", "did you mean 'quick'", "paper-sam"]),
    "preset-change": (lambda: Study.preset("quick", epoch=3), ["'epoch'", "'epochs'"]),
    "field": (lambda: Study.from_dict({"optim": "sgd"}), ["'optim'", "'optimizer'"]),
    "replaced-field": (lambda: Study().replace(seeds=1), ["'seeds'", "'seed'"]),
    "design": (lambda: Study(design="balance"), ["'balance'", "'balanced'", "bernoulli"]),
    "schedule": (lambda: Study(schedule="cos"), ["'cos'", "'cosine'", "constant"]),
    "precision": (lambda: Study(precision="fp16"), ["'fp16'", "bf16", "float32"]),
    "nothing-near": (lambda: Study(dataset="zzzzzz"), ["'zzzzzz'", "Allowed: digits"]),
    "device": (lambda: pick_device("gpu"), ["'gpu'", "cpu or cuda"]),
}
MODELS = {
    "depth": (lambda: Study(model="wrn-27-2"), ["'wrn-27-2'", "10, 16, 22, 28", "6 m + 4"]),
    "small-depth": (lambda: Study(model="wrn-4-2"), ["'wrn-4-2'", "10, 16"]),
    "width": (lambda: Study(model="wrn-28-0"), ["'wrn-28-0'", "width at least 1"]),
    "depth-of-millions": (lambda: Study(model="wrn-6000004-1"), ["'wrn-6000004-1'", "wrn-D-K"]),
    "width-of-many-digits": (lambda: Study(model=f"wrn-10-{10**200}"), ["'wrn-10-1000", "wrn-D-K"]),
    "pattern": (lambda: Study(model="wrn-D-K"), ["'wrn-D-K'", "wrn-28-2"]),
    "factory-name": (lambda: Study(model="a b:c"), ["'a b:c'", "package.module:factory"]),
    "no-module": (lambda: build_model("no_such:net", SHAPE, 3), ["'no_such:net'", "No module named 'no_such'"]),
    "no-factory": (lambda: build_model("json:net", SHAPE, 3), ["'json:net'", "net"]),
    "wrong-call": (lambda: build_model("json:dumps", SHAPE, 3), ["'json:dumps'", "shape=(C, H, W)", "classes=K"]),
}
NUMBERS = {
    "few-models": (lambda: Study(shadow_models=3), ["shadow_models", "3", "at least 4"]),
    "no-epochs": (lambda: Study(epochs=0), ["epochs", "0", "at least 1"]),
    "interval": (lambda: Study(epochs=30, checkpoint_every=7), ["7", "30", "1, 2, 3, 5, 6, 10, 15, 30"]),
    "interval-beyond": (lambda: Study(epochs=2, checkpoint_every=4), ["4", "1, 2"]),
    "momentum-one": (lambda: Study(momentum=1.0), ["momentum", "1.0", "below 1"]),
    "beta2-one": (lambda: Study(beta2=1), ["beta2", "1.0", "below 1"]),
    "large-seed": (lambda: Study(seed=2**63), ["seed", str(2**63)]),
    "odd-balanced": (lambda: Study(design="balanced", shadow_models=5), ["'balanced'", "even number", "5"]),
    "pool-size": (lambda: make_pool(Study(pool_size=2000), load_dataset("digits")), ["2000", "digits", "1497"]),
    "too-large": (lambda: Study(epochs=10**400), ["epochs"]),
    "too-large-lr": (lambda: Study(lr=10**400), ["lr"]),
}
TYPES = {
    f"{name}-{value!r}": (lambda name=name, value=value: Study(**{name: value}), [name, repr(value), kind])
    for names, kind in ((WHOLE, "int"), (REAL, "float"))
    for name in names
    for value in ("ten", True, [1], *([1.5] if kind == "int" else []))
} | {
    "dataset-number": (lambda: Study(dataset=3), ["dataset", "3", "str"]),
    "dataset-nothing": (lambda: Study(dataset=None), ["dataset", "None", "str"]),
    "epochs-nothing": (lambda: Study(epochs=None), ["epochs", "None", "int"]),
    "augment-word": (lambda: Study(augment="yes"), ["augment", "'yes'", "bool"]),
    "nesterov-number": (lambda: Study(nesterov=1), ["nesterov", "1", "bool"]),
    "epochs-numpy-bool": (lambda: Study(epochs=np.True_), ["epochs", "int"]),
}
RANGES = {
    f"{name}-{value}": (lambda name=name, value=value: Study(**{name: value}), [name, str(value)])
    for name in [*WHOLE, *REAL]
    for value in (-1 if name in WHOLE else -1.0, float("nan"), float("inf"), -float("inf"))
}
TABLE = NAMES | MODELS | NUMBERS | TYPES | RANGES


@pytest.mark.parametrize("case", TABLE)
def test_one_clear_line_for(case):
    assert_one_clear_line(*TABLE[case])


def test_a_negative_number_of_processes_is_refused(tiny, tmp_path):
    assert_one_clear_line(
        lambda: dynmia.train(tiny, out=tmp_path / "run", device="cpu", workers=-1, progress=False), ["workers", "-1"]
    )


def test_nesterov_without_momentum_is_refused_before_training():
    assert_one_clear_line(lambda: Study(optimizer="sgd", nesterov=True, momentum=0.0), ["nesterov", "momentum"])


def test_an_unknown_decision_rule_names_the_allowed_ones(tiny_run):
    assert_one_clear_line(lambda: dynmia.vulnerability_plane(tiny_run[1], "bays"), ["'bays'", "bayes", "fpr@"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_a_gpu_names_the_mend(tiny, tmp_path, device):
    assert_one_clear_line(
        lambda: dynmia.train(tiny, out=tmp_path / "run", device=device, progress=False), ["cuda", "no GPU", "cpu"]
    )


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("misfit_type", "3", ["returned int", "torch.nn.Module"]),
        ("misfit_output", "torch.nn.Flatten()", ["(2, 64)", "(2, 10)"]),
        ("misfit_input", "torch.nn.Linear(5, classes)", ["misfit_input:net"]),
    ],
)
def test_an_own_model_that_does_not_fit_stops_before_the_folder_is_made(
    tiny, tmp_path, monkeypatch, name, value, parts
):
    (tmp_path / f"{name}.py").write_text(f"import torch\ndef net(shape, classes):\n    return {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    study = tiny.replace(model=f"{name}:net")
    assert_one_clear_line(lambda: open_store(study, out=tmp_path / "run", device="cpu"), parts)
    assert not (tmp_path / "run").exists()


def test_numpy_scalars_are_accepted_as_plain_values():
    study = Study(epochs=np.int64(4), lr=np.float64(0.1), augment=np.True_)
    assert study.identity("data") == Study(epochs=4, lr=0.1, augment=True).identity("data")


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EEXIST", "EIO"])
def test_a_disk_error_is_one_line_with_the_path(code):
    number = getattr(errno, code)
    message = str(disk_error(OSError(number, f"system text of {code}"), "some/path"))
    assert message.startswith("cannot write some/path: ")
    assert len(message.splitlines()) == 1
    assert ("system text" in message) == (code == "EIO")


def test_choose_returns_an_allowed_name():
    assert choose("b", ["a", "b"], "letter") == "b"

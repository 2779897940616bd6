import dataclasses
import json

import pytest

from dynmia import PRESETS, Study, UserError

OTHER = dict(
    dataset="mnist", model="mlp", optimizer="sgd", epochs=60, checkpoint_every=3, shadow_models=8, pool_size=100,
    test_size=50, design="balanced", batch_size=32, lr=0.01, schedule="cosine", momentum=0.5, beta2=0.9, nesterov=True,
    weight_decay=0.0, rho=0.1, augment=True, precision="bf16", record="hardness", pool_seed=1, seed=1,
)  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(Study)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper-baseline", dict(optimizer="adamw", epochs=400)),
        ("paper-sgd", dict(optimizer="sgd", epochs=160)),
        ("paper-sam", dict(optimizer="sam-sgd", epochs=160)),
    ],
)
def test_paper_presets_hold_what_the_paper_fixes(name, expected):
    study = Study.preset(name).to_dict()
    fixed = dict(dataset="cifar10", model="wrn-28-2", checkpoint_every=10, shadow_models=20, pool_size=None) | expected
    assert {field: study[field] for field in fixed} == fixed


def test_sam_preset_differs_from_the_sgd_preset_in_the_optimizer_only():
    sgd, sam = Study.preset("paper-sgd").to_dict(), Study.preset("paper-sam").to_dict()
    assert [field for field in FIELDS if sgd[field] != sam[field]] == ["optimizer"]


def test_small_presets_run_on_a_cpu():
    assert Study.preset("quick").dataset == "digits"
    assert Study.preset("cpu").pool_size == 4000
    assert not any(Study.preset(name).model.startswith("wrn") for name in ("quick", "cpu"))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_takes_changes(name):
    changed = Study.preset(name, seed=7)
    assert changed == Study.preset(name).replace(seed=7) != Study.preset(name)


def test_a_study_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Study().epochs = 2


def test_the_table_of_other_values_has_every_field():
    assert list(OTHER) == FIELDS


@pytest.mark.parametrize("field", FIELDS)
def test_identity_changes_with(field):
    changed = Study().replace(**{field: OTHER[field]})
    assert getattr(changed, field) != getattr(Study(), field)
    assert changed.identity("data") != Study().identity("data")


def test_identity_changes_with_the_fingerprint():
    assert Study().identity("data") != Study().identity("other data")


def test_identity_is_64_hex_digits_and_repeats():
    assert Study().identity("data") == Study().identity("data")
    assert len(bytes.fromhex(Study().identity("data"))) == 32


def test_identity_is_the_same_in_every_version():
    # computed once for format 1: a new value here means that stored runs no longer open
    assert Study().identity("data").startswith("789409f8036721ea")


@pytest.mark.parametrize("path", ["b/own.npz", "own.npz", "/c/other.npz", "c/folder/", "c\\own.npz"])
def test_identity_does_not_depend_on_where_an_own_file_lies(path):
    assert Study(dataset=path).identity("data") == Study(dataset="a/own.npz").identity("data")


def test_identity_of_an_own_file_is_not_that_of_a_named_set():
    assert Study(dataset="a/digits.npz").identity("data") != Study(dataset="digits").identity("data")


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("sam-sgd", 0.05), ("adamw", 1e-3), ("sam-adamw", 1e-3)])
def test_default_learning_rate_of(optimizer, lr):
    assert Study(optimizer=optimizer).lr == lr
    assert Study(optimizer=optimizer, lr=0.3).lr == 0.3


@pytest.mark.parametrize(
    ("field", "near"),
    [("epoch", "epochs"), ("shadow_model", "shadow_models"), ("optimiser", "optimizer"), ("batchsize", "batch_size")],
)
def test_an_unknown_field_names_the_nearest(field, near):
    with pytest.raises(UserError, match=rf"unknown study field '{field}'; did you mean '{near}'"):
        Study.from_dict({field: 1})


def test_from_dict_of_to_dict_through_json_is_the_same_study():
    study = Study(**OTHER)
    assert Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study


@pytest.mark.parametrize(("device", "precision"), [("cpu", "float32"), ("cuda", "bf16"), ("cuda:1", "bf16")])
def test_resolve_makes_auto_precision_definite(device, precision):
    assert Study().resolve(device) == Study(precision=precision)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_resolve_keeps_a_definite_precision(device, precision):
    assert Study(precision=precision).resolve(device).precision == precision


def test_checkpoints_begin_untrained_and_end_with_the_last_epoch():
    assert Study(epochs=12, checkpoint_every=4).checkpoints == [0, 4, 8, 12]
    assert len(Study.preset("paper-baseline").checkpoints) == 41


def test_whole_floats_become_ints_and_ints_become_floats():
    study = Study(epochs=10.0, lr=1)
    assert (type(study.epochs), type(study.lr)) == (int, float)
    assert study == Study(epochs=10, lr=1.0)


def test_numbers_and_switches_may_be_text():
    study = Study(lr="1e-3", epochs="10", augment="true", pool_size="null")
    assert study == Study(lr=1e-3, epochs=10, augment=True)


def test_every_field_has_a_help_text_and_the_documentation_holds_it():
    for field in dataclasses.fields(Study):
        assert f"    {field.name}: {field.metadata['help']}" in Study.__doc__


@pytest.mark.parametrize(
    ("study", "title"),
    [
        (Study(), "digits-cnn-adamw"),
        (Study(dataset="some/where/own.npz", optimizer="sgd"), "own-cnn-sgd"),
        (Study(dataset="some/folder/", model="package.module:factory"), "folder-factory-adamw"),
    ],
)
def test_title_is_short(study, title):
    assert study.title == title

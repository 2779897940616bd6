import sys

import pytest
import torch
from torch import nn

from dynmia import Study, UserError
from dynmia.models import build_model, forward_flops, model_fingerprint, parameters

NAMES = ["cnn", "deep-cnn", "mlp", "wrn-10-1", "wrn-16-2"]
COLOUR = (3, 32, 32)


def wrn_parameters(depth, width, channels, classes):
    """Weights of a Wide ResNet, counted layer by layer (Zagoruyko and Komodakis 2016, table 1)."""
    total, before = channels * 16 * 9, 16
    for out in (16 * width, 32 * width, 64 * width):
        for block in range((depth - 4) // 6):
            total += 2 * before + 9 * before * out + 2 * out + 9 * out * out
            if block == 0 and (before, out) != (16, 16):
                total += before * out  # 1x1 shortcut
            before = out
    return total + 2 * before + before * classes + classes


def test_wrn_28_2_has_1_4676_million_parameters():
    count = parameters(build_model("wrn-28-2", COLOUR, 10))
    assert count == 1_467_610
    assert round(count / 1e6, 4) == 1.4676


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (10, 4), (16, 1), (16, 8), (22, 2), (28, 2), (40, 2)])
def test_wrn_parameters_equal_the_formula(depth, width):
    got = parameters(build_model(f"wrn-{depth}-{width}", (1, 28, 28), 7))
    assert got == wrn_parameters(depth, width, 1, 7)


@pytest.mark.parametrize(("depth", "width"), [(10, 2), (16, 4), (28, 2)])
def test_wrn_has_as_many_convolutions_as_its_depth(depth, width):
    # stem, 6 m in the blocks and 3 shortcuts: 6 m + 4
    model = build_model(f"wrn-{depth}-{width}", COLOUR, 10)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == depth


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cnn", 9 * (3 * 32 + 32 * 64 + 64 * 128) + 32 + 64 + 128 + 128 * 16 * 10 + 10),
        (
            "deep-cnn",
            9 * (3 * 24 + 24 * 48 + 48 * 48 + 48 * 96 + 2 * 96 * 96) + 2 * (24 + 2 * 48 + 3 * 96) + 96 * 10 + 10,
        ),
        ("mlp", 3072 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
    ],
)
def test_parameters_of_the_plain_models_by_hand(name, count):
    assert parameters(build_model(name, COLOUR, 10)) == count


def test_frozen_parameters_do_not_count():
    model = nn.Linear(3, 2)
    model.bias.requires_grad = False
    assert parameters(model) == 6


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), COLOUR, (2, 1, 1), (1, 9, 13)])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_maps_every_shape_to_logits(name, shape):
    model = build_model(name, shape, 7).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_of_every_model_is_trained(name):
    torch.manual_seed(0)
    model = build_model(name, (1, 8, 8), 3)
    nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8) % 3).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_the_random_state(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in build_model(name, (1, 8, 8), 3).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_flops_of_a_linear_layer():
    assert forward_flops(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2)) == 2 * 12 * 5


def test_flops_of_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1, stride=2))
    assert forward_flops(model, (3, 10, 10)) == 2 * 9 * 3 * 8 * 100 + 2 * 8 * 4 * 25


def test_flops_of_the_cnn():
    convolutions = 9 * (3 * 32 * 32**2 + 32 * 64 * 16**2 + 64 * 128 * 8**2)
    assert forward_flops(build_model("cnn", COLOUR, 10), COLOUR) == 2 * (convolutions + 128 * 4 * 4 * 10)


@pytest.mark.parametrize("training", [True, False])
def test_counting_flops_leaves_the_model_as_it_was(training):
    model = build_model("wrn-10-1", (1, 8, 8), 3).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    forward_flops(model, (1, 8, 8))
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


OWN = """
from torch import nn

def factory(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(shape[0] * shape[1] * shape[2]), nn.LazyLinear(classes))

def one_too_many(shape, classes):
    return factory(shape, classes + 1)

def list_of_layers(shape, classes):
    return [nn.Flatten()]

def without_shape(classes):
    return nn.Flatten()

def for_another_shape(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(999, classes))

class Pair(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.net = factory(shape, classes)

    def forward(self, x):
        return self.net(x), x
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    sys.modules.pop("own_model", None)  # another test's module of that name
    (tmp_path / "own_model.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "own_model.py"
    sys.modules.pop("own_model", None)


@pytest.mark.usefixtures("own")
def test_own_model_is_built_in_training_mode():
    name = Study(model="own_model:factory").model
    model = build_model(name, (1, 8, 8), 3)
    assert model.training
    assert model(torch.randn(4, 1, 8, 8)).shape == (4, 3)


@pytest.mark.usefixtures("own")
def test_checking_an_own_model_leaves_its_batch_norm_fresh():
    norm = build_model("own_model:factory", (1, 8, 8), 3)[1]
    assert norm.num_batches_tracked == 0
    assert (norm.running_mean == 0).all()


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("one_too_many", r"maps \(2, 1, 8, 8\) to \(2, 4\); it must map it to \(2, 3\)"),
        ("list_of_layers", "returned list; it must return a torch.nn.Module"),
        ("without_shape", r"must accept shape=\(C, H, W\) and classes=K"),
        ("for_another_shape", r"own_model:for_another_shape"),
        ("Pair", r"own_model:Pair"),
        ("missing", r"cannot be imported.*missing"),
    ],
)
def test_bad_own_models_are_errors(factory, message):
    with pytest.raises(UserError, match=message):
        build_model(f"own_model:{factory}", (1, 8, 8), 3)


def test_own_model_of_a_missing_module_is_an_error():
    with pytest.raises(UserError, match=r"cannot be imported.*no_such_module"):
        build_model("no_such_module:factory", (1, 8, 8), 3)


def test_fingerprint_changes_with_the_source_of_an_own_model(own):
    before = model_fingerprint("own_model:factory")
    own.write_text(OWN + "# edited\n")
    assert len(before) == 64
    assert model_fingerprint("own_model:factory") != before


def test_built_in_models_have_no_fingerprint():
    assert model_fingerprint("wrn-28-2") == ""

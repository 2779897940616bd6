import sys

import numpy as np
import pytest
import torch
from torch import nn

from dynmia import Study, UserError
from dynmia.shadow import open_store
from dynmia.shadow.models import build_model, forward_flops, model_fingerprint, parameters
from dynmia.shadow.shard import Job, train_here

NAMES = ["cnn", "deep-cnn", "mlp", "wrn-10-1", "wrn-16-2"]
COLOUR = (3, 32, 32)
COLOURED = {  # 9 x 9, 3 classes
    f"{split}_images": np.random.default_rng(0).integers(0, 255, (size, 9, 9, 3)).astype(np.uint8)
    for split, size in (("train", 60), ("test", 30))
}


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


def test_a_wide_resnet_that_no_machine_can_hold_is_refused_before_it_is_built():
    for name in ("wrn-9994-9", "wrn-10-9999"):
        with pytest.raises(UserError, match=r"has more than 1,000,000,000 parameters.*smaller depth or width"):
            build_model(name, COLOUR, 10)


# --- factories of all kinds

KINDS = """
import functools
from torch import nn

def factory(shape, classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.Linear(width, classes))

class Factory:
    def __init__(self, width):
        self.width = width

    def __call__(self, shape, classes):
        return factory(shape, classes, self.width)

    def method(self, shape, classes):
        return factory(shape, classes, self.width)

wide = functools.partial(factory, width=8)
wider = functools.partial(functools.partial(factory), width=8)
cached = functools.lru_cache(factory)
instance = Factory(8)
method = Factory(8).method
number = 3

def raises_type_error(shape, classes):
    return len(classes)

def raises_nothing_said(shape, classes):
    raise ValueError

def leaves(shape, classes):
    raise SystemExit(0)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(source, name) -> the path of a module of the user that can be imported."""
    names = []

    def write(source, name="users_module"):
        names.append(name)
        sys.modules.pop(name, None)
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        return path

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ["wide", "wider", "cached", "instance", "method"])
def test_factories_of_all_kinds_are_called_and_their_source_counts(module, kind):
    path = module(KINDS)
    assert build_model(f"users_module:{kind}", (1, 8, 8), 3)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    before = model_fingerprint(f"users_module:{kind}")
    path.write_text(KINDS.replace("width=8", "width=9").replace("Factory(8)", "Factory(9)"))
    assert len(before) == 64
    assert model_fingerprint(f"users_module:{kind}") != before


def test_the_arguments_of_a_partial_count_wherever_its_function_is(module):
    module(KINDS)
    path = module("import functools, users_module\nnet = functools.partial(users_module.factory, width=5)", "second")
    before = model_fingerprint("second:net")
    path.write_text(path.read_text().replace("5", "6"))
    assert model_fingerprint("second:net") != before


@pytest.mark.parametrize(
    ("source", "factory", "message"),
    [
        (KINDS, "number", r"must accept shape=\(C, H, W\) and classes=K: 3 is not a callable object"),
        (KINDS, "raises_type_error", r"cannot be built for shape=\(1, 8, 8\) and classes=3: TypeError: object of type"),
        (KINDS, "raises_nothing_said", r"classes=3: ValueError\.$"),
        (KINDS, "leaves", r"classes=3: SystemExit: 0\.$"),
        ("import sys; sys.exit(4)", "net", r"cannot be imported: SystemExit: 4\.$"),
        ("def net(:", "net", r"cannot be imported: SyntaxError: invalid syntax \(users_module.py, line 1\)"),
        ("1 / 0", "net", r"cannot be imported: ZeroDivisionError: division by zero"),
        ("x = '\0'", "net", "cannot be imported: "),
    ],
)
def test_factories_that_fail_are_one_line(module, source, factory, message):
    module(source)
    with pytest.raises(UserError, match=message) as raised:
        build_model(f"users_module:{factory}", (1, 8, 8), 3)
    assert len(str(raised.value).splitlines()) == 1
    assert "users_module" in str(raised.value)


# --- the trial before a run is made

TRIAL = """
import copy, functools, os
import torch
from torch import nn

INIT = {}

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.conv = nn.Conv2d(shape[0], 4, 3, padding=1)
        self.linear = nn.Linear(4 * shape[1] * shape[2], classes)
        self.more(classes)
    def more(self, classes):
        pass
    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).flatten(1))
"""
NETS = {
    "view": "def forward(self, x):\n        return self.linear(self.conv(x).view(len(x), -1))",
    "conv3d": "def more(self, classes):\n        self.deep = nn.Conv3d(1, 1, 3, padding=1)\n"
    "    def forward(self, x):\n        return self.linear(self.deep(self.conv(x)[:, None]).flatten(1))",
    "tuple": "def forward(self, x):\n        y = super().forward(x)\n        return (y, y) if self.training else y",
    "dict": "def get_extra_state(self):\n        return {'epoch': 0}\n    def set_extra_state(self, state):\n"
    "        pass",
    "frozen": "def more(self, classes):\n        self.requires_grad_(False)",
    "half": "def more(self, classes):\n        self.unused = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))",
    "double": "def more(self, classes):\n        self.double()",
    "detached": "def forward(self, x):\n        return super().forward(x).detach()",
    "norm": "def more(self, classes):\n        self.norm = nn.BatchNorm1d(classes)\n    def forward(self, x):\n"
    "        return self.norm(super().forward(x))",
    "softmax": "def forward(self, x):\n        return super().forward(x).softmax(1)",
    "sigmoid": "def forward(self, x):\n        return super().forward(x).sigmoid()",
    "log-softmax": "def forward(self, x):\n        return super().forward(x).log_softmax(1)",
    "relu": "def forward(self, x):\n        return 1e-3 * super().forward(x).relu()",
    "counter": "steps = 0\n    def forward(self, x):\n        self.steps += self.training\n"
    "        return super().forward(x) + self.steps * torch.arange(10)",
    "buffer": "def more(self, classes):\n        self.register_buffer('seen', torch.zeros(10), persistent=False)\n"
    "    def forward(self, x):\n        self.seen += self.training * torch.arange(10)\n"
    "        return super().forward(x) + self.seen",
    "squeezed": "def forward(self, x):\n        return super().forward(x).squeeze()",
    "seeded": "def more(self, classes):\n        torch.manual_seed(0); self.apply(lambda m: "
    "hasattr(m, 'reset_parameters') and m.reset_parameters())",
    "clock": "def more(self, classes):\n        nn.init.constant_(self.conv.bias, INIT.setdefault('calls', 0))\n"
    "        INIT['calls'] += 1",
    "frozen-backbone": "def more(self, classes):\n        self.conv = INIT.setdefault('conv', self.conv)"
    ".requires_grad_(False)",
    "shared-layer": "def more(self, classes):\n        self.conv = INIT.setdefault('conv', self.conv)",
}


@pytest.fixture
def opened(module, tmp_path, make_npz):
    """opened(net, study's fields) opens the run of a study of this net; the folder that it would make."""

    def open_run(net, **changes):
        body = f"    {NETS[net]}\n" if net in NETS else "    pass\n"
        module(f"{TRIAL}\nclass net(Net):\n{body}\ncached = functools.lru_cache(net)\n"
               "def copied(shape, classes):\n    INIT.setdefault('net', net(shape, classes))\n"
               "    return copy.deepcopy(INIT['net'])\n", "users_net")  # fmt: skip
        factory = net if net in ("cached", "copied") else "net"
        study = Study(
            model=f"users_net:{factory}", epochs=2, checkpoint_every=1, shadow_models=4, pool_size=60, test_size=100,
            batch_size=16,
        ).replace(**changes)  # fmt: skip
        return open_store(study, out=tmp_path / "run", device="cpu")

    open_run.folder = tmp_path / "run"
    return open_run


@pytest.mark.parametrize(
    ("net", "changes", "message"),
    [
        ("tuple", {}, r"maps \(16, 1, 8, 8\) to tuple in training; it must map it to \(16, 10\)"),
        ("dict", {}, "keeps '_extra_state', a dict, in its state_dict: only tensors can be saved"),
        ("frozen", {}, "has no parameters to train"),
        ("half", {}, "cannot be saved: TypeError: .*BFloat16"),
        ("double", {}, r"cannot map a batch \(2, 1, 8, 8\) to logits: RuntimeError: "),
        ("detached", {}, "cannot be trained on a batch of 16 by adamw in float32: RuntimeError: .*require grad"),
        ("norm", dict(batch_size=1), "cannot be trained on a batch of 1 .*: ValueError: Expected more than 1 value"),
        ("softmax", {}, r"returns probabilities .*add up to 1, as after Softmax\): phi wants logits"),
        ("sigmoid", {}, "returns probabilities .*between 0 and 1 whatever the weights, as after Sigmoid"),
        ("squeezed", dict(pool_size=501), r"maps \(1, 1, 8, 8\) to \(10,\); it must map it to \(1, 10\)"),
        ("cached", {}, "one and the same for all shadow models.*at every call of the factory"),
        ("shared-layer", {}, "one and the same for all shadow models"),
    ],
)
def test_own_models_that_cannot_be_trained_are_refused_before_the_folder_is_made(opened, net, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        opened(net, **changes)
    assert str(raised.value).startswith("model 'users_net:")
    assert not opened.folder.exists()


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("seeded", "starts from the same weights in all shadow models"),
        ("copied", "starts from the same weights in all shadow models"),
        ("clock", "starts otherwise at every call: draw its weights by torch alone"),
        ("counter", "answers otherwise after it is saved and loaded"),
        ("buffer", "answers otherwise after it is saved and loaded"),
    ],
)
def test_what_may_be_meant_in_an_own_model_is_warned_of(opened, net, message):
    with pytest.warns(UserWarning, match=message):
        opened(net)


@pytest.mark.parametrize("net", ["view", "conv3d", "log-softmax", "relu", "frozen-backbone"])
@pytest.mark.parametrize("changes", [{}, dict(optimizer="sam-sgd", lr=0.05, precision="bf16"), dict(record="hardness")])
def test_ordinary_own_models_train(opened, make_npz, net, changes):
    study, pool, store = opened(net, dataset=str(make_npz("colour.npz", **COLOURED)), test_size=None, **changes)
    train_here(Job(study, pool, store), [0])
    assert np.isfinite(store.load_shard(0)[0]["phi"]).all()


def test_batch_norm_of_a_built_in_model_needs_more_than_one_sample(tmp_path):
    study = Study(model="deep-cnn", epochs=1, checkpoint_every=1, shadow_models=4, pool_size=60, batch_size=1)
    with pytest.raises(
        UserError, match=r"'deep-cnn' cannot be trained on a batch of 1 .*more than 1 value per channel"
    ):
        open_store(study, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    open_store(study.replace(model="cnn"), out=tmp_path / "run", device="cpu")


def test_the_trial_leaves_the_random_state_as_it_was(opened):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    opened("view")
    assert torch.equal(torch.get_rng_state(), before)

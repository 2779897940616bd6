"""Architectures: two plain CNNs, Wide ResNets of any valid depth and width (Zagoruyko and Komodakis 2016), an MLP.

Every builder takes ``shape`` = (C, H, W) and ``classes`` and returns a module from (B, C, H, W) to logits (B, classes).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError, reason
from ..study import WRN

Shape = tuple[int, int, int]
LARGEST = 10**9  # parameters of a Wide ResNet: 16 GB with their gradients and AdamW's moments


def build_model(name: str, shape: Shape, classes: int) -> nn.Module:
    """Build the model called ``name`` (see :class:`dynmia.study.Study`) with torch's current random state."""
    if ":" in name:
        return _own(name, shape, classes)
    if match := WRN.fullmatch(name):
        depth, width = int(match[1]), int(match[2])
        if wrn_parameters(depth, width, shape[0], classes) > LARGEST:
            raise UserError(
                f"model {name!r} has more than {LARGEST:,} parameters, the most that is built: "
                "use a smaller depth or width."
            )
        return WideResNet(depth, width, shape, classes)
    if name.startswith("cnn"):
        return cnn(shape, classes, dropout=name == "cnn-dropout")
    return {"deep-cnn": deep_cnn, "mlp": mlp}[name](shape, classes)


class Head(nn.Linear):
    """The last layer: queries get float32 logits from it, whatever arithmetic the layers before it were run in."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        if self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def cnn(shape: Shape, classes: int, dropout: bool = False) -> nn.Module:
    """Shallow CNN: 3 x (conv 3x3, ReLU, max-pool 2), one linear layer; 113,738 parameters at 3 x 32 x 32.

    ``dropout`` (p = 0.25) goes before its linear layer.
    """
    layers, size = _convolutions(shape, [(32, True), (64, True), (128, True)], norm=False)
    return nn.Sequential(*layers, nn.Flatten(), *[nn.Dropout(0.25)] * dropout, Head(size, classes))


def deep_cnn(shape: Shape, classes: int) -> nn.Module:
    """Deeper CNN: 6 x (conv 3x3, batch norm, ReLU) with 3 max-pools and average pooling; 240,898 parameters."""
    plan = [(24, True), (48, False), (48, True), (96, False), (96, True), (96, False)]
    layers, _ = _convolutions(shape, plan, norm=True)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head(96, classes))


def _convolutions(shape: Shape, plan: list[tuple[int, bool]], norm: bool) -> tuple[list[nn.Module], int]:
    """Layers of (channels, whether max-pooled), and the values of a sample that leave them.

    ReLU and max-pool commute, in their gradients too: after the pool it has a quarter of the work.
    """
    channels, height, width = shape
    layers: list[nn.Module] = []
    for out, pool in plan:
        layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(out)] if norm else []
        if pool and min(height, width) >= 2:
            layers, height, width = [*layers, nn.MaxPool2d(2)], height // 2, width // 2
        layers.append(nn.ReLU(inplace=True))
        channels = out
    return layers, channels * height * width


def mlp(shape: Shape, classes: int) -> nn.Module:
    """Two hidden layers of 256 units with ReLU."""
    inputs = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), Head(256, classes)
    )


class WideResNet(nn.Module):
    """WRN-depth-width with pre-activation blocks, no dropout; WRN-28-2 with 10 classes has 1.4676 M parameters."""

    def __init__(self, depth: int, width: int, shape: Shape, classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        channels = 16
        self.stem = nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)
        self.blocks = nn.Sequential()
        for group, (out, stride) in enumerate([(16 * width, 1), (32 * width, 2), (64 * width, 2)]):
            for block in range(blocks):
                self.blocks.add_module(f"group{group}_block{block}", _Block(channels, out, 1 if block else stride))
                channels = out
        self.norm = nn.BatchNorm2d(channels)
        self.head = Head(channels, classes)
        for module in self.modules():  # He et al. (2015), as in the reference implementation
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, classes)
        """Return the logits."""
        x = torch.relu_(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean((2, 3)))


class _Block(nn.Module):
    """Pre-activation block; where the shape changes, the shortcut is a 1x1 convolution of the activated input."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu_(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        return skip + self.conv2(torch.relu_(self.norm2(self.conv1(active))))


def wrn_parameters(depth: int, width: int, channels: int, classes: int) -> int:
    """Number of weights of a Wide ResNet, without building it."""
    total, before = 9 * channels * 16, 16
    for out in (16 * width, 32 * width, 64 * width):
        first = 2 * before + 9 * before * out + 2 * out + 9 * out * out + before * out * (before != out)
        total += first + ((depth - 4) // 6 - 1) * (4 * out + 18 * out * out)
        before = out
    return total + 2 * before + before * classes + classes


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def forward_flops(model: nn.Module, shape: Shape) -> int:
    """FLOPs (2 a multiply-add) of one sample's forward pass, counted by torch; backward costs twice as much again."""
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *shape))
    model.train(training)
    return counter.get_total_flops()


def model_fingerprint(name: str) -> str:
    """sha256 of the source of a user's own model, so that its edits change the study; '' for built-in models.

    Of what has no source of its own (a ``functools.partial``, a callable instance), of its module and of what it calls.
    """
    if ":" not in name:
        return ""
    factory = _factory(name)
    try:
        files = [inspect.getsourcefile(factory)]
    except TypeError:
        while isinstance(factory, functools.partial):
            factory = factory.func
        factory = inspect.unwrap(factory)  # type: ignore[arg-type]
        source = factory if inspect.isroutine(factory) or inspect.isclass(factory) else type(factory)
        modules = importlib.import_module(name.split(":")[0]), inspect.getmodule(source)
        files = [getattr(module, "__file__", None) for module in modules]
    with blamed(name, "be read"):
        contents = [Path(file).read_bytes() for file in dict.fromkeys(files) if file and Path(file).exists()]
    return hashlib.sha256(b"".join(contents)).hexdigest() if contents else ""


@contextlib.contextmanager
def blamed(name: str, what: str) -> Iterator[None]:
    """Turn whatever a user's code raises, even an exit, into one line: the model ``name`` cannot do ``what``."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        kind, text = type(error).__name__, reason(error)
        raise UserError(f"model {name!r} cannot {what}: {kind if text == kind else f'{kind}: {text}'}.") from error


def check_logits(name: str, output: object, batch: int, shape: Shape, classes: int, when: str = "") -> None:
    """Raise a ``UserError`` if ``output`` is not the logits of a batch."""
    size = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if size != (batch, classes):
        raise UserError(f"model {name!r} maps {(batch, *shape)} to {size}{when}; it must map it to {(batch, classes)}.")


def _factory(name: str) -> Callable[..., object]:
    module, attribute = name.split(":")
    with blamed(name, "be imported"):
        return getattr(importlib.import_module(module), attribute)


def _own(name: str, shape: Shape, classes: int) -> nn.Module:
    """Call a user's factory and check that its model returns logits of the right shape."""
    factory = _factory(name)
    try:
        inspect.signature(factory).bind(shape=shape, classes=classes)
    except TypeError as error:
        raise UserError(f"model {name!r} must accept shape=(C, H, W) and classes=K: {reason(error)}.") from error
    except ValueError:  # it does not say what it accepts
        pass
    with blamed(name, f"be built for shape={shape} and classes={classes}"):
        model = factory(shape=shape, classes=classes)
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} returned {type(model).__name__}; it must return a torch.nn.Module.")
    with blamed(name, f"map a batch {(2, *shape)} to logits"), torch.no_grad():
        output = model.eval()(torch.zeros(2, *shape))
    check_logits(name, output, 2, shape, classes)
    return model.train()


def memory_layout(model: nn.Module, shape: Shape) -> torch.memory_format:
    """Channels-last, or contiguous, inputs too, for a user's ``model`` that cannot run otherwise (``view``, Conv3d)."""
    _, height, width = shape
    try:
        with torch.no_grad():
            model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            model(torch.zeros(2, height, width, shape[0]).permute(0, 3, 1, 2))
        return torch.channels_last
    except Exception:  # whatever a user's code raises; what fails contiguous too is the user's to see
        model.register_forward_pre_hook(lambda _, x: x[0].clone(memory_format=torch.contiguous_format))
        return torch.contiguous_format
    finally:
        model.train()

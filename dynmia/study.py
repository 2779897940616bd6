"""A study: the complete, validated, immutable description of one population of shadow models.

    >>> study = Study(dataset="digits", model="cnn", optimizer="adamw", epochs=30)
    >>> Study.preset("paper-baseline").epochs
    400

What arXiv 2507.23291 fixes is in the presets; what it leaves open is a field with a default that is stated below.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from .errors import UserError, choose, shown
from .registry import named_set

MODELS = {
    "cnn": "shallow CNN: 3 convolutions (32, 64, 128), ReLU, max-pooling, one linear layer",
    "cnn-dropout": "the shallow CNN with dropout (p = 0.25) before its linear layer, for MC dropout",
    "deep-cnn": "deeper CNN: 6 convolutions (24, 48, 48, 96, 96, 96) with batch norm, average pooling",
    "mlp": "two hidden layers of 256, ReLU",
    "wrn-D-K": "Wide ResNet of depth D = 6 m + 4 and width K, for example wrn-28-2",
}
DEFAULT_LR = {"sgd": 0.05, "adamw": 1e-3, "sam-sgd": 0.05, "sam-adamw": 1e-3}  # of each optimiser
WRN = re.compile(r"wrn-(\d{1,4})-(\d{1,4})")
FORMAT = 1  # of studies and stored runs: raised when the same fields would give another result


def _field(default: Any, text: str, low: float | None = None, high: float = math.inf, choices: Any = None) -> Any:
    """A field with its help ``text`` and its limits: ``low`` <= value < ``high``, or ``choices``."""
    limits = {"low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": text, **limits})


@dataclass(frozen=True, kw_only=True)
class Study:
    """Every choice that changes the result of training a population of shadow models.

    Numbers may be given as text too, as YAML reads ``1e-3``.

    Raises:
        UserError: a field is unknown, of a wrong type, or out of range.
    """

    dataset: str = _field(
        "digits",
        "a name of ``dynmia datasets``, a ``.npz`` file, or an image folder (``train/CLASS/*.png``, ``test``).",
    )
    model: str = _field(
        "cnn",
        "a name of ``dynmia models``, ``wrn-D-K``, or ``package.module:factory`` for "
        "``factory(shape=(C, H, W), classes=K) -> torch.nn.Module``.",
    )
    optimizer: str = _field("adamw", "``sgd``, ``adamw``, ``sam-sgd`` or ``sam-adamw``.", choices=DEFAULT_LR)
    epochs: int = _field(30, "passes over a model's own training half.", 1, 10**6)
    checkpoint_every: int = _field(2, "epochs between checkpoints (0 is one), a divisor of ``epochs``.", 1, 10**6)
    shadow_models: int = _field(20, "N, at least 4 (the paper: 20).", 4, 10**5)
    pool_size: int | None = _field(None, "target samples n, class-balanced; None: the training split.", 4, 2**31)
    test_size: int | None = _field(None, "held-out samples for the accuracy, the first ones; None: all.", 1, 2**31)
    design: str = _field(
        "bernoulli",
        "``bernoulli`` (each sample in each model with probability 1/2), ``balanced`` (in exactly N/2), or ``all`` "
        "(every model trains on the whole pool: a deep ensemble, which no attack can be run on).",
        choices=("bernoulli", "balanced", "all"),
    )
    batch_size: int = _field(64, "the paper leaves it open; 64 is fastest on CPUs.", 1, 2**31)
    lr: float | None = _field(None, "learning rate; None: 1e-3 for AdamW, 0.05 for SGD (the paper leaves it open).", 0)
    schedule: str = _field("constant", "``constant``, or ``cosine`` to zero, per step.", choices=("constant", "cosine"))
    momentum: float = _field(0.9, "of SGD; also the first beta of AdamW.", 0, 1)
    beta2: float = _field(0.999, "the second beta of AdamW.", 0, 1)
    nesterov: bool = _field(False, "Nesterov momentum for SGD.")
    weight_decay: float = _field(5e-4, "decoupled for AdamW, L2 for SGD.", 0)
    rho: float = _field(0.05, "radius of SAM's neighbourhood (Foret et al. 2021); ignored by other optimisers.", 0)
    augment: bool = _field(False, "random crop (4 pixels of zero padding at 32 x 32, in proportion else) and flip.")
    precision: str = _field(
        "auto",
        "``float32`` (on a GPU with TF32 in convolutions), ``bf16`` (autocast; evaluation in float32, on a GPU in "
        "float16 but for the logits) or ``auto`` (bf16 on CUDA only).",
        choices=("auto", "float32", "bf16"),
    )
    record: str = _field(
        "phi",
        "``phi``, or ``hardness``, which keeps what :mod:`dynmia.stats.hardness` needs too (twice the disk, about 1.5 "
        "times the time; phi is the same).",
        choices=("phi", "hardness"),
    )
    pool_seed: int = _field(0, "draws the pool, so that populations with other seeds can share it.", 0, 2**63)
    seed: int = _field(0, "draws keep mask, weights, data order and augmentation.", 0, 2**63)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _typed(field.name, str(field.type), getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            low, high, choices = (field.metadata[limit] for limit in ("low", "high", "choices"))
            if choices:
                choose(value, choices, field.name)
            if low is not None and value is not None and not low <= value < high:  # NaN too
                bound = f"at least {low}" + (f" and below {high}" if high < math.inf else "")
                raise UserError(f"{field.name} is {shown(value)}: it must be a finite number, {bound}.")
        named_set(self.dataset)
        _check_model(self.model)
        if self.lr is None:
            object.__setattr__(self, "lr", DEFAULT_LR[self.optimizer])
        if self.epochs % self.checkpoint_every:
            divisors = ", ".join(str(k) for k in range(1, self.epochs + 1) if self.epochs % k == 0)
            what = f"checkpoint_every {self.checkpoint_every} does not divide epochs {self.epochs}"
            raise UserError(f"{what}: use one of {divisors}.")
        if self.nesterov and self.momentum == 0 and self.optimizer.endswith("sgd"):
            raise UserError("nesterov needs momentum above 0: set momentum, or leave nesterov out.")
        if self.design == "balanced" and self.shadow_models % 2:
            raise UserError(f"design 'balanced' needs an even number of shadow models, not {self.shadow_models}.")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Study:
        """Return the preset ``name`` (see ``PRESETS``) with ``changes`` to its fields."""
        return cls.from_dict({**PRESETS[choose(name, PRESETS, "preset")], **changes})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Study:
        """Build a study from a mapping; an unknown field is an error that names the nearest."""
        for name in fields:
            choose(name, cls.__dataclass_fields__, "study field")
        return cls(**fields)

    def replace(self, **changes: Any) -> Study:
        """Return a copy with some fields changed; a default learning rate follows a changed optimizer."""
        fields = self.to_dict()
        if "optimizer" in changes and self.lr == DEFAULT_LR[self.optimizer]:
            fields["lr"] = None
        return self.from_dict({**fields, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return dataclasses.asdict(self)

    @property
    def checkpoints(self) -> list[int]:
        """The epochs at which every model is queried, epoch 0 included."""
        return list(range(0, self.epochs + 1, self.checkpoint_every))

    def resolve(self, device: str) -> Study:
        """Return the study with ``precision`` made definite for ``device`` ('cpu' or 'cuda')."""
        if self.precision != "auto":
            return self
        return self.replace(precision="bf16" if device.startswith("cuda") else "float32")

    def identity(self, fingerprint: str) -> str:
        """Hash every field that changes the result, and the fingerprint of data and model code (64 hex digits)."""
        fields = self.to_dict() | {"format": FORMAT, "fingerprint": fingerprint}
        for name in ("record", "test_size"):  # as in studies that knew no other value
            if fields[name] == getattr(Study, name):
                del fields[name]
        if named_set(self.dataset) is None:
            fields["dataset"] = "file"  # where the file lies does not change the result; its content does
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    @property
    def title(self) -> str:
        """A short name for folders and figures."""
        data = re.split(r"[\\/]", self.dataset.rstrip("/\\"))[-1].removesuffix(".npz")
        return f"{data}-{self.model.split(':')[-1]}-{self.optimizer}"


if Study.__doc__:  # not under -OO
    rows = [f"    {field.name}: {field.metadata['help']}" for field in dataclasses.fields(Study)]
    Study.__doc__ = "\n".join([inspect.cleandoc(Study.__doc__), "", "Args:", *rows])

_PAPER: dict[str, Any] = dict(dataset="cifar10", model="wrn-28-2", checkpoint_every=10, batch_size=256)
PRESETS: dict[str, dict[str, Any]] = {
    "quick": dict(dataset="digits", model="cnn", optimizer="adamw", epochs=30, checkpoint_every=2, pool_size=1200),
    "cpu": dict(
        dataset="cifar10",
        model="deep-cnn",
        optimizer="adamw",
        schedule="cosine",
        epochs=60,
        checkpoint_every=3,
        pool_size=4000,
    ),
    "paper-baseline": _PAPER | dict(optimizer="adamw", epochs=400),
    "paper-sgd": _PAPER | dict(optimizer="sgd", epochs=160, lr=0.1),
    "paper-sam": _PAPER | dict(optimizer="sam-sgd", epochs=160, lr=0.1),
}


def _typed(name: str, kind: str, value: Any) -> Any:
    """Check one field against its annotation; whole floats become ints, ints floats, and text numbers or switches."""
    want = kind.split(" ")[0]
    if isinstance(value, str):
        value = str(value) if want == "str" else _read(value)
    elif getattr(value, "ndim", None) == 0:  # a scalar of NumPy
        value = value.item()
    if want == "int" and isinstance(value, float) and value.is_integer():
        value = int(value)
    elif want == "float" and type(value) is int:
        value = float(value) if abs(value) < 2**63 else math.inf
    if type(value).__name__ != want and not (value is None and "None" in kind):
        raise UserError(f"{name} is {shown(value)}: it must be of type {kind}.")
    return value


def _read(text: str) -> Any:
    """``text`` as the number, switch or nothing that it spells, or as it is."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False, "null": None, "none": None}.get(text.lower(), text)


def _check_model(name: str) -> None:
    if match := WRN.fullmatch(name):
        depth, width = map(int, match.groups())
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise UserError(f"model {name!r}: the depth must be 10, 16, 22, 28, ... (6 m + 4), the width at least 1.")
    elif name == "wrn-D-K":
        raise UserError("model 'wrn-D-K' is a pattern: write depth and width, for example wrn-28-2.")
    elif ":" not in name:
        choose(name, [*MODELS, "wrn-28-2"], "model", also=", or your own as package.module:factory")
    elif not re.fullmatch(r"[\w.]+:\w+", name):
        raise UserError(f"model {name!r}: write your own model as package.module:factory.")

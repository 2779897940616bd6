"""A study: the complete, validated, immutable description of one population of shadow models.

    >>> study = Study(dataset="digits", model="cnn", optimizer="adamw", epochs=30)
    >>> Study.preset("paper-baseline").epochs
    400

What arXiv 2507.23291 fixes is in the presets; what it leaves open is a field with a default that is stated below.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from .errors import UserError, choose

DATASETS = {
    "digits": "scikit-learn digits, 8 x 8 grey, 1,797 images, embedded: needs no download",
    "mnist": "MNIST, 28 x 28 grey",
    "fashion_mnist": "Fashion-MNIST, 28 x 28 grey",
    "cifar10": "CIFAR-10, 32 x 32 colour",
    "cinic10": "CINIC-10, 32 x 32 colour (CIFAR-10 classes, most images from ImageNet)",
    "cifar10_jpeg": "CIFAR-10 in a JPEG-coded (lossy) copy of your own: for where the exact images are not at hand",
    "location30": "Location-30, 446 binary features of who was where, 30 classes; a copy of your own",
    "trec": "TREC questions by the words in them, 6 classes; a copy of your own",
}
MODELS = {
    "cnn": "shallow CNN: 3 convolutions (32, 64, 128), ReLU, max-pooling, one linear layer",
    "cnn-dropout": "the shallow CNN with dropout (p = 0.25) before its linear layer, for MC dropout",
    "deep-cnn": "deeper CNN: 6 convolutions (24, 48, 48, 96, 96, 96) with batch norm, average pooling",
    "mlp": "two hidden layers of 256, ReLU",
    "wrn-D-K": "Wide ResNet of depth D = 6 m + 4 and width K, for example wrn-28-2",
}
OPTIMIZERS = {
    "sgd": "SGD with momentum (and Nesterov if asked)",
    "adamw": "AdamW",
    "sam-sgd": "sharpness-aware minimisation around SGD",
    "sam-adamw": "sharpness-aware minimisation around AdamW",
}
DEFAULT_LR = {"sgd": 0.05, "sam-sgd": 0.05, "adamw": 1e-3, "sam-adamw": 1e-3}
WRN = re.compile(r"wrn-(\d+)-(\d+)")
FORMAT = 1  # of studies and stored runs: raised when the same fields would give another result


@dataclass(frozen=True, kw_only=True)
class Study:
    """Every choice that changes the result of training a population of shadow models.

    Args:
        dataset: a name of ``dynmia datasets``, a ``.npz`` file, or an image folder (``train/CLASS/*.png``, ``test``).
        model: a name of ``dynmia models``, ``wrn-D-K``, or ``package.module:factory`` for
            ``factory(shape=(C, H, W), classes=K) -> torch.nn.Module``.
        optimizer: ``sgd``, ``adamw``, ``sam-sgd`` or ``sam-adamw``.
        epochs: passes over a model's own training half.
        checkpoint_every: epochs between checkpoints; must divide ``epochs``. Epoch 0 (untrained) is always one.
        shadow_models: N, at least 4 (the paper: 20).
        pool_size: target samples n, class-balanced; None takes the whole training split.
        test_size: held-out samples that accuracy is measured on, the first ones; None takes all.
        design: ``bernoulli`` (each sample in each model with probability 1/2), ``balanced`` (in exactly N/2), or
            ``all`` (every model trains on the whole pool: a deep ensemble, which no attack can be run on).
        batch_size: the paper leaves it open; 64 is fastest on CPUs.
        lr: learning rate; None takes 1e-3 for AdamW and 0.05 for SGD (the paper leaves it open).
        schedule: ``constant`` or ``cosine`` (to zero, per step).
        momentum: of SGD; also the first beta of AdamW.
        beta2: the second beta of AdamW.
        nesterov: Nesterov momentum for SGD.
        weight_decay: decoupled for AdamW, L2 for SGD.
        rho: radius of SAM's neighbourhood (Foret et al. 2021); ignored by other optimisers.
        augment: random crop (4 pixels of zero padding at 32 x 32, in proportion else) and horizontal flip, of images.
        precision: ``float32`` (on a GPU with TF32 in convolutions), ``bf16`` (autocast; evaluation in float32, on a GPU
            in float16 but for the logits) or ``auto`` (bf16 on CUDA only).
        record: ``phi``, or ``hardness``, which keeps what :mod:`dynmia.hardness` needs too (twice the disk, about 1.5
            times the time; phi is the same).
        pool_seed: draws the pool, so that populations with other seeds can share it.
        seed: draws keep mask, weights, data order and augmentation.

    Raises:
        UserError: a field is unknown, of a wrong type, or out of range.
    """

    dataset: str = "digits"
    model: str = "cnn"
    optimizer: str = "adamw"
    epochs: int = 30
    checkpoint_every: int = 2
    shadow_models: int = 20
    pool_size: int | None = None
    test_size: int | None = None
    design: str = "bernoulli"
    batch_size: int = 64
    lr: float | None = None
    schedule: str = "constant"
    momentum: float = 0.9
    beta2: float = 0.999
    nesterov: bool = False
    weight_decay: float = 5e-4
    rho: float = 0.05
    augment: bool = False
    precision: str = "auto"
    record: str = "phi"
    pool_seed: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field.name, str(field.type), getattr(self, field.name)))
        if not is_path(self.dataset):
            choose(self.dataset, DATASETS, "data set", also=", a .npz file or an image folder (a path with a slash)")
        _check_model(self.model)
        choose(self.optimizer, OPTIMIZERS, "optimizer")
        choose(self.design, ["bernoulli", "balanced", "all"], "design")
        choose(self.record, ["phi", "hardness"], "record")
        choose(self.schedule, ["constant", "cosine"], "schedule")
        choose(self.precision, ["auto", "float32", "bf16"], "precision")
        if self.lr is None:
            object.__setattr__(self, "lr", DEFAULT_LR[self.optimizer])
        for name, low, high in [
            ("epochs", 1, 2**31), ("checkpoint_every", 1, 2**31), ("shadow_models", 4, 2**31),
            ("batch_size", 1, 2**31), ("lr", 0, math.inf), ("momentum", 0, 1), ("beta2", 0, 1),
            ("weight_decay", 0, math.inf), ("rho", 0, math.inf), ("pool_size", 4, 2**31),
            ("test_size", 1, 2**31),
            ("seed", 0, 2**63), ("pool_seed", 0, 2**63),
        ]:  # fmt: skip
            value = getattr(self, name)
            if value is None:
                continue
            if not low <= value < high:  # NaN too
                bound = f"at least {low}" + (f" and below {high}" if high < math.inf else "")
                raise UserError(f"{name} is {value!s:.20}: it must be a finite number, {bound}.")
        if self.epochs % self.checkpoint_every:
            small = [k for k in range(1, math.isqrt(self.epochs) + 1) if self.epochs % k == 0]
            divisors = sorted({*small, *(self.epochs // k for k in small)})
            raise UserError(
                f"checkpoint_every {self.checkpoint_every} does not divide epochs {self.epochs}: "
                f"use one of {', '.join(map(str, divisors))}."
            )
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
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            choose(name, known, "study field")
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
        if is_path(self.dataset):
            fields["dataset"] = "file"  # where the file lies does not change the result; its content does
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    @property
    def title(self) -> str:
        """A short name for folders and figures."""
        data = re.split(r"[\\/]", self.dataset.rstrip("/\\"))[-1].removesuffix(".npz")
        return f"{data}-{self.model.split(':')[-1]}-{self.optimizer}"


PRESETS: dict[str, dict[str, Any]] = {
    "quick": dict(dataset="digits", model="cnn", optimizer="adamw", epochs=30, checkpoint_every=2, pool_size=1200),
    "cpu": dict(
        dataset="cifar10", model="deep-cnn", optimizer="adamw", epochs=60, checkpoint_every=3, pool_size=4000
    ),
    "paper-baseline": dict(
        dataset="cifar10", model="wrn-28-2", optimizer="adamw", epochs=400, checkpoint_every=10, batch_size=256
    ),
    "paper-sgd": dict(
        dataset="cifar10", model="wrn-28-2", optimizer="sgd", epochs=160, checkpoint_every=10, batch_size=256, lr=0.1
    ),
    "paper-sam": dict(
        dataset="cifar10", model="wrn-28-2", optimizer="sam-sgd", epochs=160, checkpoint_every=10, batch_size=256,
        lr=0.1,
    ),
}  # fmt: skip


def is_path(dataset: str) -> bool:
    """Whether a data set name is a user's own file or folder."""
    return dataset.endswith(".npz") or "/" in dataset or "\\" in dataset


def _typed(name: str, kind: str, value: Any) -> Any:
    """Check one field against its annotation; whole floats become ints and ints become floats."""
    if value is None and "None" in kind:
        return None
    want = kind.split(" ")[0]
    if want == "bool" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    if want == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if isinstance(value, float) or abs(value) < 2**63 else math.inf
    if want == "int" and not isinstance(value, bool):
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if hasattr(value, "__index__"):
            return int(value)
    if want == "str" and isinstance(value, str):
        return str(value)
    raise UserError(f"{name} is {value!r}: it must be of type {kind}.")


def _check_model(name: str) -> None:
    match = WRN.fullmatch(name)
    if match:
        depth, width = int(match[1]), int(match[2])
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise UserError(
                f"model {name!r}: the depth must be 10, 16, 22, 28, ... (6 m + 4) and the width at least 1."
            )
    elif ":" in name:
        if not re.fullmatch(r"[\w.]+:\w+", name):
            raise UserError(f"model {name!r}: write your own model as package.module:factory.")
    else:
        choose(name, [*MODELS, "wrn-28-2"], "model", also=", or your own as package.module:factory")
        if name == "wrn-D-K":
            raise UserError("model 'wrn-D-K' is a pattern: write depth and width, for example wrn-28-2.")

"""RunConfig: everything that decides what a run computes, composed of the dataclasses that each package owns."""

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from dap import PruneConfig
from pipeline.train import TrainConfig
from targets import TARGETS


@dataclass(frozen=True)
class Method:
    """One way to choose what goes."""

    allocation: Literal["bpi", "uniform"]
    """what decides how much each block keeps"""
    summary: str
    """for --help"""


METHODS = {
    "dap": Method("bpi", "Depth Aware Pruning: a block keeps what its measured benefit earns"),
    "uniform": Method("uniform", "the control: DAP's machinery, but every block keeps the same share"),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, from pretrained weights to a fine-tuned small model."""

    dataset: str
    """digits, or folder:PATH"""
    subset: str | None = None
    """CLASSESxIMAGES: so many classes, spread evenly, and so many training images of each; None: everything"""
    model: str
    """a timm DeiT or ViT name"""
    model_path: str | None = None
    """weights file to begin from; None: the model's own pretrained weights"""
    from_scratch: bool = False
    """begin from random weights"""
    method: str = "dap"
    """a key of METHODS"""
    seed: int = 0
    """of the new head, the order of images, augmentation and stochastic depth"""
    target: str = "host"
    """a key of TARGETS: the device whose rule for widths pruning keeps to"""
    pruning: PruneConfig
    """how much goes, and how it is chosen"""
    dense: TrainConfig | None
    """training of the dense reference that accuracy and latency are compared with; None: no reference"""
    prune: TrainConfig
    """training while pruning"""
    finetune: TrainConfig
    """training of the small model"""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"METHOD={self.method} is unknown. Known: {', '.join(METHODS)}")
        if self.target not in TARGETS:
            raise ValueError(f"TARGET={self.target} is unknown. Known: {', '.join(TARGETS)}")
        if self.seed < 0:
            raise ValueError(f"SEED={self.seed} must be 0 or more")
        if self.model_path and self.from_scratch:
            raise ValueError("MODEL_PATH and --from-scratch exclude each other")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """JSON-able form of a config."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> RunConfig:
    """The config that `to_dict` made. Raises ValueError for an unknown or missing key, naming it."""
    return _build(RunConfig, values, "config")


def _build(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, not {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}. Known: {', '.join(fields)}")
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        nested = [t for t in _members(hints[name]) if dataclasses.is_dataclass(t)]
        arguments[name] = _build(nested[0], value, f"{where}.{name}") if nested and value is not None else value
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def differences(one: RunConfig, other: RunConfig) -> list[str]:
    """Lines `key: value of one, value of other` for every setting in which two configs differ."""
    return [f"{key}: {a}, {b}" for key, a, b in _walk("", to_dict(one), to_dict(other))]


def _walk(prefix: str, one: Any, other: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [found for key in one for found in _walk(f"{prefix}.{key}".lstrip("."), one[key], other.get(key))]
    return [] if one == other else [(prefix, one, other)]

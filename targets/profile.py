"""What a block costs on a device, measured at a grid of widths: targets/profiles/<target>.json.

Key: D width, H heads, K head width, F hidden units, N tokens.

A model's time is taken to be a sum: base_ms and one entry of a curve per living block. Behind the last attention
exports compute the class token alone (targets/rewrite.py), so blocks there, and that attention itself, have curves of
their own. pipeline/profiling.py measures them, and some whole models to see how far the sum is off.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from targets import strict
from targets.devices.job import Description

VERSION = 1
FOLDER = Path(__file__).parent / "profiles"

Kind = Literal["attn", "mlp", "attn_last", "mlp_last"]
"""attn_last: the last living attention;  mlp_last: an MLP behind it"""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Dense sizes that decide what a block costs; the number of layers does not."""

    dim: int
    """D, width of the residual stream"""
    heads: int
    """H"""
    head_width: int
    """K"""
    hidden: int
    """F"""
    tokens: int
    """N, with the prefix tokens"""
    image_size: int
    """height and width, pixels"""
    pool: str = "token"
    """what the head reads, as timm calls it: behind the last attention that decides how many tokens go on"""
    gated: bool = False
    """whether hidden units are multiplied by a gate"""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if type(value) is int and value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value}")

    def dense_width(self, kind: Kind) -> int:
        """Head width or hidden units of the dense block."""
        return self.head_width if kind.startswith("attn") else self.hidden


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Milliseconds that a block of one kind adds, by its inner width; a block of width 0 adds nothing."""

    widths: tuple[int, ...]
    """head width or hidden units, rising, the last one dense"""
    ms: tuple[float, ...]
    """never falling with the width: the running maximum of raw_ms, above 0"""
    raw_ms: tuple[float, ...]
    """as measured"""
    spread_ms: tuple[float, ...]
    """largest minus smallest of the estimates from equal parts of the measurement"""

    def __post_init__(self) -> None:
        count = len(self.widths)
        if not count or any(len(values) != count for values in (self.ms, self.raw_ms, self.spread_ms)):
            raise ValueError("a curve needs at least one width, and ms, raw_ms and spread_ms for each")
        if self.widths[0] < 1:
            raise ValueError(f"widths must be whole numbers of at least 1, not {list(self.widths)}")
        if any(b <= a for a, b in zip(self.widths, self.widths[1:], strict=False)):
            raise ValueError(f"widths must rise, unlike {list(self.widths)}")
        if self.ms[0] <= 0 or any(b < a for a, b in zip(self.ms, self.ms[1:], strict=False)):
            raise ValueError(f"ms must be above 0 and never fall, unlike {list(self.ms)}")

    @staticmethod
    def measured(widths: Sequence[int], raw_ms: Sequence[float], spread_ms: Sequence[float]) -> "Curve":
        """The curve of a measurement, in which noise may let a wider block seem faster, or a small one free.

        Raises ValueError if even the dense block seems to cost nothing: then noise is all that was measured.
        """
        most = max(raw_ms)
        if most <= 0:
            raise ValueError("a whole block seems to cost no time: the machine was too busy to measure it")
        # at least a thousandth of the most expensive width: a block that is there is never free
        floor = np.maximum(np.asarray(raw_ms, np.float64), most / 1000)
        return Curve(
            widths=tuple(widths),
            ms=tuple(np.maximum.accumulate(floor).tolist()),
            raw_ms=tuple(map(float, raw_ms)),
            spread_ms=tuple(map(float, spread_ms)),
        )

    def at(self, width: int) -> float:
        """Milliseconds at a width: 0 at 0, in between by interpolation, below the smallest measured width as there."""
        return 0.0 if width == 0 else float(np.interp(width, self.widths, self.ms))


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A whole model that was measured."""

    layers: tuple[tuple[int, int], ...]
    """head width and hidden units of each layer, 0 for a block that is gone"""
    ms: float
    """median, timed beside the dense model as a deployment's gate does it"""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The curves of one model shape in one format and precision on one device."""

    target: str
    """a key of TARGETS"""
    device: Description
    """what measured"""
    format: str
    precision: str
    threads: int
    runtime: str
    """name and version"""
    model: str
    """the model that was asked for; others of its shape have the same profile"""
    shape: Shape
    measured: str
    """date, ISO 8601"""
    base_ms: float
    """everything outside the blocks, and what an attention costs whose width goes to 0: a model without any attention
    cannot be exported"""
    base_spread_ms: float
    curves: dict[Kind, Curve]
    whole: tuple[Whole, ...] = ()
    """base and curves were scaled so that these come out as well as they can"""

    def __post_init__(self) -> None:
        if self.base_ms <= 0:
            raise ValueError(f"base_ms must be above 0, not {self.base_ms}")
        if set(self.curves) != set(KINDS):
            raise ValueError(
                f"curves must be those of {', '.join(KINDS)}, not of {', '.join(self.curves) or 'nothing'}"
            )
        for kind, curve in self.curves.items():
            if curve.widths[-1] != self.shape.dense_width(kind):
                raise ValueError(
                    f"the curve of {kind} ends at width {curve.widths[-1]}, the dense one is "
                    f"{self.shape.dense_width(kind)}"
                )

    @property
    def key(self) -> tuple[Any, ...]:
        """What a file holds one profile of."""
        return self.shape, self.format, self.precision

    def predict_ms(self, layers: Sequence[tuple[int, int]]) -> float:
        """Milliseconds of a model. layers: head width and hidden units of each layer, 0 for a block that is gone.

        Raises ValueError if no attention is left.
        """
        last = max((i for i, (head_width, _) in enumerate(layers) if head_width), default=None)
        if last is None:
            raise ValueError("a model without attention has no latency: it cannot be exported")
        ms = self.base_ms
        for i, (head_width, hidden) in enumerate(layers):
            ms += self.curves["attn_last" if i == last else "attn"].at(head_width)
            ms += self.curves["mlp_last" if i >= last else "mlp"].at(hidden)
        return ms

    def dense_ms(self, layers: int) -> float:
        """Milliseconds of the dense model."""
        return self.predict_ms([(self.shape.head_width, self.shape.hidden)] * layers)

    def off(self) -> float:
        """The largest error of the prediction for the whole models that were measured, as a share of their time."""
        return max((abs(self.predict_ms(whole.layers) / whole.ms - 1) for whole in self.whole), default=0.0)

    def least_ms(self) -> float:
        """Milliseconds of the smallest model that is one: nothing but its last attention, at the smallest width."""
        return self.base_ms + self.curves["attn_last"].ms[0]


@dataclass(frozen=True, kw_only=True)
class _File:
    """All profiles of a target, beside the version."""

    profiles: tuple[Profile, ...]


def path_of(target: str) -> Path:
    """Where a target's profiles are."""
    return FOLDER / f"{target}.json"


def read(path: Path) -> list[Profile]:
    """The profiles in a file; none if there is no file. Raises ValueError, with what to do, if it is damaged."""
    if not path.exists():
        return []
    fix = "delete it and measure anew with `make profile`"
    return list(strict.read_json(path, _File, version=("version", VERSION), fix=fix).profiles)


def write(profiles: Sequence[Profile], path: Path) -> Path:
    """Write a file of profiles in one step; returns its path."""
    content = {"version": VERSION, "profiles": [dataclasses.asdict(profile) for profile in profiles]}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def add(profile: Profile, path: Path) -> Path:
    """Put a profile into a file, in the place of an older one of the same shape, format and precision."""
    others = [other for other in read(path) if other.key != profile.key]
    return write([*others, profile], path)

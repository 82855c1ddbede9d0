"""From an nn.Module to an artifact that has earned its place on a device.

To add a target: an entry in TARGETS, a budget in budgets/, and for a new format one file that exports and loads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def xnnpack_width(kind: str, n: int) -> bool:
    """Whether XNNPACK runs a linear layer of n outputs at full speed: not if n mod 16 is 1 to 8.

    There it falls back to a kernel eight columns wide, which with AVX2 costs up to 1.7 times in ExecuTorch and 1.17 in
    TFLite, more than the next good width does. With AVX-512 nothing of it was seen; Arm has not been measured.
    """
    return n % 16 == 0 or n % 16 > 8


@dataclass(frozen=True, kw_only=True)
class Target:
    """What artifacts are made for, and what they must keep to there."""

    name: str
    format: str
    precisions: tuple[str, ...]
    """those that may be shipped, smallest first"""
    budget: Path
    """a TOML file as targets.validate.load_budget takes it"""
    threads: int
    allowed_width: Callable[[str, int], bool] | None
    """whether a linear layer of n outputs runs well: "qkv" (n = heads x head width) or "hidden"; None: all widths do"""


TARGETS: dict[str, Target] = {
    "host": Target(
        name="host",
        format="tflite",
        precisions=("fp32",),
        budget=Path(__file__).parent / "budgets" / "host.toml",
        # A second thread gains nothing for a model of a few milliseconds, and waits when another process has its core.
        threads=1,
        allowed_width=xnnpack_width,
    )
}

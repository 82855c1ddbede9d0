"""From an nn.Module to an artifact that has earned its place on a device.

To add a target: an entry in TARGETS, a budget in budgets/, and for a new format one file that exports and loads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LayerKind = Literal["attn", "mlp"]


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
    allowed_width: Callable[[LayerKind, int], bool] | None
    """whether a linear layer of n outputs (heads x head width, or hidden units) runs well; None: every width does"""


TARGETS: dict[str, Target] = {
    "host": Target(
        name="host",
        format="tflite",
        precisions=("fp32",),
        budget=Path(__file__).parent / "budgets" / "host.toml",
        # A second thread gains nothing for a model of a few milliseconds, and waits when another process has its core.
        threads=1,
        # Measured with AVX-512: widths 385, 388 and 392 cost 1-2 % more per unit than 384, 400 and 416. That is noise,
        # so no width is refused. With AVX2 the same widths cost up to 17 %.
        allowed_width=None,
    )
}

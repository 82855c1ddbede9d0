"""From an nn.Module to an artifact that has earned its place on a device.

To add a target: an entry in TARGETS and a budget in budgets/; for a new format see formats.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from targets.budget import FormatBudget, load_budget
from targets.formats import FORMATS
from targets.tflite import WRONG_IN_TFLITE_RUNTIME_2_14


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
    formats: tuple[str, ...]
    """keys of FORMATS that it can run"""
    threads: int
    allowed_width: Callable[[str, int], bool] | None = xnnpack_width
    """whether a linear layer of n outputs runs well: "qkv" (n = heads x head width) or "hidden"; None: all widths do"""
    is_this_machine: bool = False
    """whether latency and memory that are measured here are the target's"""
    old_tflite: bool = False
    """whether tflite-runtime 2.14 may be what runs its TFLite files"""

    @property
    def offered(self) -> dict[str, tuple[str, ...]]:
        """Precisions that each format may be shipped in, smallest file first."""
        wrong = WRONG_IN_TFLITE_RUNTIME_2_14 if self.old_tflite else ()
        return {
            name: tuple(p for p in FORMATS[name].precisions if name != "tflite" or p not in wrong)
            for name in self.formats
        }

    @property
    def budget_file(self) -> Path:
        """The budget unless the user names another."""
        return Path(__file__).parent / "budgets" / f"{self.name}.toml"

    def budget(self, path: Path | None = None) -> dict[str, FormatBudget]:
        """Precisions and limits by format, from `path` or the target's own file. Raises ValueError as load_budget."""
        return load_budget(path or self.budget_file, self.offered)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        # A second thread gains nothing for a model of a few milliseconds, and waits when another process has its core.
        Target(name="host", formats=("tflite", "executorch", "coreml"), threads=1, is_this_machine=True),
        Target(name="ios", formats=("coreml", "executorch-coreml"), threads=2, allowed_width=None),
        Target(name="android", formats=("tflite", "executorch"), threads=2),
        Target(name="rpi4", formats=("tflite", "executorch"), threads=4, old_tflite=True),
        Target(name="rpi5", formats=("tflite", "executorch"), threads=4, old_tflite=True),
        Target(name="web", formats=("tflite",), threads=1),
    )
}

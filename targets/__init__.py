"""From an nn.Module to an artifact that has earned its place on a device.

To add a target: an entry in TARGETS and a budget in budgets/; for a new format see formats.py.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from targets.budget import FormatBudget, load_budget
from targets.formats import FORMATS, TFLITE_RUNTIME_2_14, Precision

# Else torch would say that Triton is missing: that is for GPUs, other machines are set up without it (docs/setup.md).
logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)


def xnnpack_width(kind: str, n: int) -> bool:
    """Whether XNNPACK runs a linear layer of n outputs at full speed: not if n mod 16 is 1 to 8.

    There it falls back to a kernel eight columns wide, which with AVX2 costs up to 1.7 times in ExecuTorch and 1.17 in
    TFLite, more than the next good width does. Arm has not been measured.
    """
    return n % 16 == 0 or n % 16 > 8


def x86_width(kind: str, n: int) -> bool:
    """xnnpack_width, and above 32 also not if n mod 32 is 1 to 16.

    With AVX-512 a kernel takes 32 columns, and what is left over goes through one of 16, which is no faster. From 192
    inputs, 33 to 48 outputs take the 16 us that 64 take too; 161 to 176 take 55 us, 177 to 192 take 49 and 160 take 45
    (ExecuTorch, two threads; TFLite alike). Up to 32 small models need the choice.
    """
    return xnnpack_width(kind, n) and (n <= 32 or n % 32 == 0 or n % 32 > 16)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What artifacts are made for, and what they must keep to there."""

    name: str
    formats: tuple[str, ...]
    """keys of FORMATS that it can run"""
    threads: int
    allowed_width: Callable[[str, int], bool] | None = xnnpack_width
    """whether a linear layer of n outputs runs well: "qkv" (n = heads x head width) or "hidden"; None: all widths do"""
    driver: Literal["local", "ssh", "browser", "adb", "xcode", "mac"]
    """what reaches a device of it"""
    board: str | None = None
    """what the name begins with that such a device has of itself; on another one latency does not count"""
    machines: tuple[str, ...] = ()
    """what `uname -m` says there; no other is taken; none: any"""
    app: str | None = None
    """folder below apps/ whose app runs its artifacts"""
    old_runtimes: tuple[str, ...] = ()
    """what may run its files there, and computes some precisions wrongly"""
    float16: bool = False
    """whether its processors compute in float16, or may: Arm's do from Cortex-A55 and A75 on"""

    @property
    def offered(self) -> dict[str, tuple[str, ...]]:
        """Precisions that each format may be shipped in, smallest file first.

        Of two that store the same, the one that is computed with in float16 comes first: it is there to be faster.
        """
        return {name: self._offered(FORMATS[name].precisions) for name in self.formats}

    def _offered(self, precisions: Mapping[str, Precision]) -> tuple[str, ...]:
        fit = {
            name: known
            for name, known in precisions.items()
            if not {*known.wrong_in} & {*self.old_runtimes} and (self.float16 or not known.float16_of)
        }
        places = {name: place for place, name in enumerate(precisions)}
        return tuple(sorted(fit, key=lambda name: (places[fit[name].float16_of or name], not fit[name].float16_of)))

    @property
    def is_here(self) -> bool:
        """Whether its device is this machine."""
        return self.driver == "local"

    def why_untimed(self, device: Mapping[str, Any]) -> str | None:
        """Why the time on a device (as DeviceResult.device has it) is not the target's; None if it is."""
        if device.get("emulated"):
            return f"{device['emulated']} emulates this device: its time says nothing of a real one"
        if self.board and not f"{device['device']} ".startswith(f"{self.board} "):  # a Raspberry Pi 400 is no 4
            return f"{device['device']} is not {'an' if self.board[0] in 'AEIOi' else 'a'} {self.board}"
        return None

    @property
    def budget_file(self) -> Path:
        """The budget unless the user names another."""
        return Path(__file__).parent / "budgets" / f"{self.name}.toml"

    def budget(self, path: Path | None = None) -> dict[str, FormatBudget]:
        """Precisions and limits by format, from `path` or the target's own file. Raises ValueError as load_budget."""
        return load_budget(path or self.budget_file, self.offered)


def _raspberry_pi(name: str, board: str, *, float16: bool) -> Target:
    return Target(
        name=name,
        formats=("tflite", "executorch"),
        threads=4,
        old_runtimes=(TFLITE_RUNTIME_2_14,),
        driver="ssh",
        board=board,
        float16=float16,
        machines=("aarch64",),
        app="raspberry-pi",
    )


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        # A second thread gains nothing for a model of a few milliseconds, and waits when another process has its core.
        Target(
            name="host",
            formats=("tflite", "executorch", "coreml"),
            threads=1,
            allowed_width=x86_width,
            driver="local",
        ),
        Target(
            name="ios",
            formats=("coreml", "executorch-coreml"),
            threads=2,
            allowed_width=None,
            driver="xcode",
            board="iPhone",
            app="ios",
        ),
        Target(name="mac", formats=("coreml",), threads=1, allowed_width=None, driver="mac", board="Mac"),
        # The app that is built without Google's own repository carries TFLite 2.14.
        Target(
            name="android",
            formats=("tflite", "executorch"),
            threads=2,
            old_runtimes=(TFLITE_RUNTIME_2_14,),
            float16=True,
            driver="adb",
            app="android",
        ),
        _raspberry_pi("rpi4", "Raspberry Pi 4", float16=False),
        _raspberry_pi("rpi5", "Raspberry Pi 5", float16=True),
        Target(name="web", formats=("tflite",), threads=1, driver="browser", app="web"),
    )
}

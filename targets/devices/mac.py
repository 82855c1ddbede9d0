"""This Mac as a device: Core ML's own time here, and where it plans to run what. It says nothing of a phone's time."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from targets.artifact import RuntimeUnavailable
from targets.devices.job import Description, DeviceError, DeviceResult, FormatUnavailable, Job, Progress
from targets.devices.local import Local

FORMATS = ("coreml",)


def on_a_mac() -> bool:
    """Whether Core ML is here."""
    return sys.platform == "darwin"


class Mac:
    """This machine, if it is a Mac."""

    name = "this Mac"

    def __init__(self) -> None:
        """Raises DeviceError elsewhere."""
        if not on_a_mac():
            raise DeviceError("this machine is no Mac: Core ML runs on Apple's systems only. Repeat the command on one")
        self._local: Local = Local()
        self.description: Description = {**self._local.description, "device": f"Mac {_model()}".strip()}

    def run(self, job: Job, folder: Path, progress: Progress) -> DeviceResult:
        """Do the job here. Raises DeviceError."""
        if job.format not in FORMATS:
            raise FormatUnavailable(f"{self.name} is asked about {FORMATS[0]} only, not {job.format}")
        result = replace(self._local.run(job, folder, progress), device=self.description)
        if result.refused:
            return result
        from targets import coreml  # with PyTorch, which only this needs

        try:
            planned = coreml.compute_units(folder / job.files[0])
        except (RuntimeUnavailable, ValueError):
            return result
        where = ", ".join(f"{count} on {name.replace('_', ' ')}" for name, count in planned.items() if count)
        return replace(result, runtime_version=f"{result.runtime_version}; operations: {where}")


def _model() -> str:
    """As "MacBookPro18,1"; "" if the system does not tell."""
    try:
        return subprocess.run(["sysctl", "-n", "hw.model"], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""

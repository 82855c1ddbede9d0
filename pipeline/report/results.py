"""docs/results/*.json: what README's numbers are made from. One row per measured thing."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pipeline import files
from targets.formats import FORMATS

PACKAGES = ("torch", "timm", "accelerate", "albumentations")


def versions() -> dict[str, str]:
    """Package -> version of what a run depends on; what is not installed is left out."""
    found = {}
    for package in (*PACKAGES, *(name for format in FORMATS.values() for name in format.packages)):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write_results(path: Path, command: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write a results file: {command, date, commit, machine, versions, rows}.

    command: what prints the same numbers again
    """
    contents = {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": versions(),
        "rows": list(rows),
    }
    files.write_json(path, contents)


def _commit() -> str | None:
    """The commit that was checked out, with + if files differed from it; None outside a checkout."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())

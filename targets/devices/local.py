"""This machine as a device."""

import contextlib
import multiprocessing
import os
import platform
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from targets.artifact import Program, peak_memory_mb, reset_peak_memory
from targets.formats import FORMATS
from targets.latency import LatencyResult, Protocol, conditions, measure

MEMORY_INFERENCES = 3


def describe() -> dict[str, Any]:
    """What runs the artifacts here: device, os, cpu, cores (usable ones), arch, governor, temperature_c."""
    return {
        "device": _board() or "this machine",
        "os": _os(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "arch": platform.machine(),
        **conditions(),
    }


def logits(program: Program, images: Iterable[np.ndarray]) -> np.ndarray:
    """(N, C) float32 of RGB images (1, H, W, 3) uint8, one by one. Raises ValueError without images."""
    rows = [program(image)[0] for image in images]
    if not rows:
        raise ValueError("nothing to run: at least one image is needed")
    return np.stack(rows)


def time(programs: Mapping[str, Program], image: np.ndarray, protocol: Protocol) -> dict[str, LatencyResult]:
    """Latency of the programs side by side on one RGB image (1, H, W, 3) uint8; its preparation is not counted."""
    return measure({name: partial(program.run, program.prepare(image)) for name, program in programs.items()}, protocol)


def memory_mb(format: str, path: Path, threads: int, image: np.ndarray) -> float | None:
    """What loading an artifact and some inferences add to a process's peak memory, MB of 1e6 bytes.

    In a process of its own; the runtime's code does not count. None where the system does not tell.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_memory_mb, (format, path, threads, image))


def _memory_mb(format: str, path: Path, threads: int, image: np.ndarray) -> float | None:
    load = FORMATS[format].load
    with contextlib.suppress(ValueError):  # the runtime's own code is loaded at the first use, if only to refuse a file
        load(path.with_name("no such file"), threads)
    reset_peak_memory()
    before = peak_memory_mb()
    program = load(path, threads)
    for _ in range(MEMORY_INFERENCES):
        program(image)
    after = peak_memory_mb()
    return None if before is None or after is None else after - before


def _board() -> str | None:
    """The name that an Arm board's device tree gives it."""
    path = Path("/proc/device-tree/model")
    return path.read_text().rstrip("\0\n") if path.is_file() else None


def _os() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # not Linux, or one without os-release
        return platform.platform(terse=True)


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

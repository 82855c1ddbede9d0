"""This machine as a device."""

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from targets import tflite
from targets.devices import DeviceRun
from targets.latency import measure


def describe() -> dict[str, Any]:
    """What runs the artifacts here: device, os, cpu, cores (usable ones), arch, runtime, runtime_version.

    Raises RuntimeUnavailable without an interpreter.
    """
    runtime, runtime_version = tflite.runtime()
    return {
        "device": _board() or "this machine",
        "os": _os(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "arch": platform.machine(),
        "runtime": runtime,
        "runtime_version": runtime_version,
    }


def run(
    artifacts: Mapping[str, Path],
    images: Iterable[tuple[np.ndarray, int]],
    *,
    threads: int,
    seconds: float,
    min_samples: int,
    warmup: int,
    progress: Callable[[Iterable[tuple[np.ndarray, int]]], Iterable[tuple[np.ndarray, int]]] = iter,
) -> DeviceRun:
    """Logits of every artifact for every image, then their latency side by side on the first image.

    artifacts: name -> .tflite file
    images:    pairs of RGB (1, H, W, 3) uint8 and label; walked once
    seconds, min_samples, warmup: of targets.latency.measure
    progress:  wraps the images, for a progress bar
    Raises ValueError without artifacts or images or for a damaged file, RuntimeUnavailable without an interpreter.
    """
    programs = {name: tflite.load(path, threads) for name, path in artifacts.items()}
    logits: dict[str, list[np.ndarray]] = {name: [] for name in programs}
    own_labels: list[int] = []
    first: np.ndarray | None = None
    for image, label in progress(images):
        first = image if first is None else first
        own_labels.append(int(label))
        for name, program in programs.items():
            logits[name].append(program(image)[0])
    if first is None or not programs:
        raise ValueError("nothing to run: at least one artifact and one image are needed")
    latency = measure(
        {name: partial(program.run, program.prepare(first)) for name, program in programs.items()},
        seconds=seconds,
        min_samples=min_samples,
        warmup=warmup,
    )
    return DeviceRun(
        device=describe(),
        threads=threads,
        labels=np.array(own_labels, dtype=np.int64),
        logits={name: np.stack(rows) for name, rows in logits.items()},
        latency=latency,
    )


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

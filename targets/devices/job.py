"""What a device is asked to do and what it answers: one folder there, one result back, whatever carries them.

Needs the standard library and numpy only, so that a board can run this very file.

A job's folder holds job.json, the artifacts that it names, and golden.u8 and images.u8: RGB pictures (N, H, W, 3) uint8
one after the other, without a header. Key: N images, C classes, G golden images.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from targets.artifact import sha256_of
from targets.latency import LatencyResult
from targets.latency import Protocol as TimingProtocol

JOB, RESULT, GOLDEN, IMAGES = "job.json", "result.json", "golden.u8", "images.u8"
VERSION = 1
MEMORY = "memory"
"""where DeviceResult.unmeasured has no file"""

Progress = Callable[[str, int, int], None]
"""(what, done, total)"""


class DeviceError(Exception):
    """The device cannot be reached, lacks something, or broke off: nothing is known of the artifact."""


class FormatUnavailable(DeviceError):
    """The device is well, but cannot be given what runs this format; it may run others."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One artifact to check on a device, and what is to be timed."""

    id: str
    """random; the result repeats it"""
    format: str
    """a key of targets.formats.FORMATS"""
    files: tuple[str, ...]
    """artifacts in the folder, timed side by side; the first one is what is checked"""
    sha256: dict[str, str]
    """of every file in the folder but job.json"""
    threads: int
    height: int
    width: int
    classes: int
    golden: tuple[tuple[float, ...], ...] = ()
    """(G, C) the first artifact's logits where it was made"""
    labels: tuple[int, ...] = ()
    """(N,) class of every picture in images.u8"""
    protocol: TimingProtocol | None = None
    """None: nothing is timed"""
    memory: bool = False
    """whether to measure the peak memory of the first artifact"""

    def pictures(self, folder: Path, name: str) -> Iterator[np.ndarray]:
        """The RGB pictures (1, H, W, 3) uint8 of golden.u8 or images.u8, one by one."""
        count = len(self.golden if name == GOLDEN else self.labels)
        if count:
            shape = (count, 1, self.height, self.width, 3)
            yield from np.memmap(folder / name, np.uint8, "r", shape=shape)


@dataclass(frozen=True, kw_only=True)
class DeviceResult:
    """What one device found of one artifact. None, or nothing in it: not measured."""

    job: str
    """id of the job"""
    file: str
    sha256: str
    """of the artifact, as the device has read it"""
    device: dict[str, Any]
    """device (its name), os, cpu (the SoC), cores, arch; "emulated": by what, where the processor is not real"""
    threads: int
    runtime: str
    runtime_version: str
    refused: str | None = None
    """why the runtime does not take the artifact, or does not run it; nothing is measured then"""
    before: dict[str, Any] = dataclasses.field(default_factory=dict)
    """conditions before the measurement, where the system tells: governor, temperature_c, throttled, battery"""
    after: dict[str, Any] = dataclasses.field(default_factory=dict)
    golden: tuple[tuple[float, ...], ...] = ()
    """(G, C) logits"""
    golden_error: float | None = None
    """largest absolute difference from the job's golden logits; None too if one is not a number"""
    logits: tuple[tuple[float, ...], ...] = ()
    """(N, C)"""
    top1: float | None = None
    """share of the images classified right, 0..1"""
    latency: dict[str, LatencyResult] = dataclasses.field(default_factory=dict)
    """by artifact"""
    peak_mb: float | None = None
    """growth of a process's peak memory by the artifact, MB of 1e6 bytes"""
    unmeasured: dict[str, str] = dataclasses.field(default_factory=dict)
    """why an artifact that the first one was to be compared with, or MEMORY, could not be measured"""


class Device(Protocol):
    """Something that runs artifacts. To add a kind: a file like ssh.py and a line in drivers.py."""

    name: str
    """as the user calls it"""
    description: dict[str, Any]
    """device, os, cpu, cores, arch, emulated, as DeviceResult.device has it; known once it is connected"""

    def run(self, job: Job, folder: Path, progress: Progress) -> DeviceResult:
        """Do the job whose files are in `folder` (on this machine). Raises DeviceError."""


def write_job(job: Job, folder: Path) -> Path:
    """Write job.json; returns its path."""
    path = folder / JOB
    path.write_text(json.dumps({"version": VERSION, **dataclasses.asdict(job)}, allow_nan=False), encoding="utf-8")
    return path


def read_job(folder: Path) -> Job:
    """The job, once every file of it is there and unchanged. Raises DeviceError naming the file that is not."""
    content = _content(folder / JOB)
    protocol = content.pop("protocol")
    job = Job(
        **{
            **content,
            "files": tuple(content["files"]),
            "golden": tuple(tuple(row) for row in content["golden"]),
            "labels": tuple(content["labels"]),
            "protocol": protocol and TimingProtocol(**protocol),
        }
    )
    for name, sha256 in job.sha256.items():
        path = folder / name
        if not path.exists() or sha256_of(path) != sha256:
            raise DeviceError(f"{name} did not arrive whole; repeat the command")
    return job


def write_result(result: DeviceResult, path: Path) -> Path:
    """Write the result in one step; returns its path."""
    content = dataclasses.asdict(result)
    for name in ("golden", "logits"):  # JSON has no NaN
        content[name] = [[value if math.isfinite(value) else None for value in row] for row in content[name]]
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps({"version": VERSION, **content}, allow_nan=False), encoding="utf-8")
    os.replace(partial, path)
    return path


def read_result(path: Path, job: Job) -> DeviceResult:
    """The result of `job`. Raises DeviceError if it is truncated, of another version, or of another job or artifact."""
    content = _content(path)
    try:
        found = content.pop("latency")
        result = DeviceResult(
            **{
                **content,
                "golden": _rows(content["golden"]),
                "logits": _rows(content["logits"]),
                "latency": {
                    name: LatencyResult(**{**entry, "samples_ms": tuple(entry["samples_ms"])})
                    for name, entry in found.items()
                },
            }
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DeviceError(f"the device's result is not whole ({error}); repeat the command") from error
    file = job.files[0]
    if (result.job, result.file, result.sha256) != (job.id, file, job.sha256[file]):
        raise DeviceError(f"the device's result belongs to another artifact than {file}; repeat the command")
    shapes = {
        "golden": (result.golden, len(job.golden)),
        "logits": (result.logits, len(job.labels)),
    }
    for name, (rows, count) in shapes.items():
        if not result.refused and (len(rows) != count or any(len(row) != job.classes for row in rows)):
            raise DeviceError(f"the device's result is not whole ({name}: {len(rows)} rows); repeat the command")
    timed = set(result.latency) | set(result.unmeasured) - {MEMORY, file}  # the first one is there or refused
    if not result.refused and job.protocol and timed != set(job.files):
        raise DeviceError("the device's result is not whole (latency); repeat the command")
    return result


def rows_of(logits: np.ndarray | Sequence[np.ndarray]) -> tuple[tuple[float, ...], ...]:
    """(N, C) as plain numbers."""
    return tuple(tuple(float(value) for value in row) for row in logits)


def _rows(rows: list[list[float | None]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(math.nan if value is None else value for value in row) for row in rows)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeviceError(f"{path.name} is missing or not whole ({error}); repeat the command") from error
    version = content.pop("version", None) if isinstance(content, dict) else None
    if version != VERSION:
        raise DeviceError(f"{path.name} is of version {version!r}, this program's is {VERSION}")
    return content

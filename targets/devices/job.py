"""What a device is asked to do and what it answers: one folder there, one result back, whatever carries them.

Needs the standard library and numpy only, so that a board can run this very file.

A job's folder holds job.json, the artifacts that it names, golden.u8 and images.u8: RGB pictures (N, H, W, 3) uint8
one after the other, without a header, and photo.jpg if it is to be timed from end to end. Key: N images, C classes, G
golden images.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np

from targets import strict
from targets.artifact import sha256_of
from targets.latency import Conditions, EndToEnd, LatencyResult, Loading, restated
from targets.latency import Protocol as TimingProtocol
from targets.resize import Resize

JOB, RESULT, GOLDEN, IMAGES, PHOTO = "job.json", "result.json", "golden.u8", "images.u8", "photo.jpg"
VERSION = 1
MEMORY, LOADING, END_TO_END = "memory", "loading", "end to end"
"""where DeviceResult.unmeasured has no file"""
THROTTLED = re.compile("0x[0-9a-fA-F]{1,8}")
MOST_MB = 1e6
"""of memory that a device may say it has"""

Rows = tuple[tuple[float | None, ...], ...]
"""logits; None for one that is not a number, which JSON has not"""
Progress = Callable[[str, int, int], None]
"""(what, done, total)"""


class DeviceError(Exception):
    """The device cannot be reached, lacks something, or broke off: nothing is known of the artifact."""

    def __init__(self, text: str) -> None:
        """text: may hold what a device, a browser or ssh says; a terminal gets it without control characters"""
        super().__init__(strict.printable(text))


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
    loads: int = 0
    """in so many new processes its loading is timed"""
    resize: Resize | None = None
    """how photo.jpg becomes its picture, with which it is timed from end to end; None: it is not"""

    def __post_init__(self) -> None:
        for name in (*self.files, *self.sha256):
            if name in ("", ".", "..", JOB, RESULT) or "/" in name or "\\" in name or not name.isprintable():
                raise ValueError(f"{name!r} is no name of a job's file")
        if not self.files or len(set(self.files)) < len(self.files) or not self.sha256.keys() >= set(self.files):
            raise ValueError("a job needs at least one artifact, each named once and with its checksum")
        if min(self.threads, self.height, self.width, self.classes) < 1:
            raise ValueError("threads, height, width and classes must be at least 1")
        if any(len(row) != self.classes for row in self.golden):
            raise ValueError(f"golden must have {self.classes} logits a row")
        if not all(0 <= label < self.classes for label in self.labels):
            raise ValueError(f"labels must be from 0 to {self.classes - 1}")
        if self.loads < 0:
            raise ValueError(f"loads must be 0 or more, not {self.loads}")
        if self.resize is not None and not (
            self.resize.centre_crop == self.height == self.width and PHOTO in self.sha256
        ):
            raise ValueError(f"resize makes pictures of {self.height} x {self.width} of {PHOTO}, which is in the job")

    def without_photo(self) -> "Job":
        """What runners that time inferences alone are asked: those of the apps and the browser."""
        sha256 = {name: value for name, value in self.sha256.items() if name != PHOTO}
        return replace(self, loads=0, resize=None, sha256=sha256)

    def pictures(self, folder: Path, name: str) -> Iterator[np.ndarray]:
        """The RGB pictures (1, H, W, 3) uint8 of golden.u8 or images.u8, one by one."""
        count = len(self.golden if name == GOLDEN else self.labels)
        if count:
            shape = (count, 1, self.height, self.width, 3)
            yield from np.memmap(folder / name, np.uint8, "r", shape=shape)


class Description(TypedDict):
    """What a device is; None: it does not tell."""

    device: str
    """its name"""
    os: str
    cpu: str | None
    """or the system on a chip"""
    cores: int | None
    arch: str | None
    emulated: str | None
    """by what, where the processor is not real"""


@dataclass(frozen=True, kw_only=True)
class DeviceResult:
    """What one device found of one artifact. None, or nothing in it: not measured."""

    job: str
    """id of the job"""
    file: str
    sha256: str
    """of the artifact, as the device has read it"""
    device: Description
    threads: int
    runtime: str
    runtime_version: str
    refused: str | None = None
    """why the runtime does not take the artifact, or does not run it; nothing is measured then"""
    float16: bool | None = None
    """whether the processor computes in float16, for artifacts that let it; None: it does not tell"""
    before: Conditions = dataclasses.field(default_factory=Conditions)
    """before the measurement"""
    after: Conditions = dataclasses.field(default_factory=Conditions)
    golden: Rows = ()
    """(G, C) logits"""
    golden_error: float | None = None
    """largest absolute difference from the job's golden logits; None too if one is not a number"""
    logits: Rows = ()
    """(N, C)"""
    top1: float | None = None
    """share of the images classified right, 0..1"""
    latency: dict[str, LatencyResult] = dataclasses.field(default_factory=dict)
    """by artifact"""
    peak_mb: float | None = None
    """growth of a process's peak memory by the artifact, MB of 1e6 bytes"""
    loading: Loading | None = None
    """of the artifact"""
    end_to_end: EndToEnd | None = None
    """likewise"""
    unmeasured: dict[str, str] = dataclasses.field(default_factory=dict)
    """why an artifact that the first one was to be compared with, MEMORY, LOADING or END_TO_END was not measured"""


class Device(Protocol):
    """Something that runs artifacts. To add a kind: a file like ssh.py and a line in drivers.py."""

    name: str
    """as the user calls it"""
    description: Description
    """known once it is connected"""

    def run(self, job: Job, folder: Path, progress: Progress) -> DeviceResult:
        """Do the job whose files are in `folder` (on this machine). Raises DeviceError."""


def write_job(job: Job, folder: Path) -> Path:
    """Write job.json; returns its path."""
    path, content = folder / JOB, dataclasses.asdict(job)
    for name in ("loads", "resize"):
        if not content[name]:
            del content[name]  # the apps' own runners do not know them
    path.write_bytes(json.dumps({"version": VERSION, **content}, allow_nan=False).encode())
    return path


def read_job(folder: Path) -> Job:
    """The job, once every file of it is there and unchanged. Raises DeviceError naming the file that is not."""
    try:
        job: Job = strict.read_json(folder / JOB, Job, version=("version", VERSION))
    except ValueError as error:
        raise DeviceError(f"{JOB} is missing or not whole ({error}); repeat the command") from error
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
    partial.write_bytes(json.dumps({"version": VERSION, **content}, allow_nan=False).encode())
    os.replace(partial, path)
    return path


def read_result(path: Path, job: Job) -> DeviceResult:
    """The result of `job` in a file, as `result_of`."""
    try:
        content = strict.read_bytes(path)
    except ValueError as error:
        raise DeviceError(f"{path.name} is missing or not whole ({error}); repeat the command") from error
    return result_of(content, job)


def result_of(content: bytes, job: Job) -> DeviceResult:
    """What a device answers to `job`. Nothing in it is believed that can be computed from the raw samples and logits.

    Raises DeviceError if it is truncated, of another version, of another job or artifact, or cannot be true.
    """
    try:
        result: DeviceResult = strict.parse_json(
            content, DeviceResult, RESULT, version=("version", VERSION), source="device"
        )
    except ValueError as error:
        raise DeviceError(f"{RESULT} is missing or not whole ({error}); repeat the command") from error
    file = job.files[0]
    if (result.job, result.file, result.sha256) != (job.id, file, job.sha256[file]):
        raise DeviceError(f"the device's result belongs to another artifact than {file}; repeat the command")
    try:
        return _refused(result) if result.refused is not None else _recomputed(result, job)
    except ValueError as error:
        raise DeviceError(f"the device's result is not whole ({error}); repeat the command") from error


def _refused(result: DeviceResult) -> DeviceResult:
    """The result of an artifact that does not run. Raises ValueError if something of it was measured all the same."""
    numbers = (result.golden_error, result.top1, result.peak_mb, result.loading, result.end_to_end)
    measured = result.golden or result.logits or result.latency or result.unmeasured
    if not result.refused or measured or any(number is not None for number in numbers):
        raise ValueError("an artifact that is refused has a reason and no measurements")
    return result


def _recomputed(result: DeviceResult, job: Job) -> DeviceResult:
    """The result with its statistics from its raw numbers. Raises ValueError for those that are not what was asked."""
    if not result.runtime:
        raise ValueError("runtime: what has run the artifact must have a name")
    if not 1 <= result.threads <= job.threads:
        raise ValueError(f"threads: must be from 1 to {job.threads}, not {result.threads}")
    for flags in (result.before.get("throttled"), result.after.get("throttled")):
        if flags is not None and not THROTTLED.fullmatch(flags):
            raise ValueError(f"throttled: {strict.shown(flags)} are no flags")
    golden = _logits("golden", result.golden, len(job.golden), job.classes)
    logits = _logits("logits", result.logits, len(job.labels), job.classes)
    if result.peak_mb is not None and not (job.memory and 0 <= result.peak_mb < MOST_MB):
        raise ValueError(f"peak_mb: {result.peak_mb} is no memory that was asked for")
    if result.loading is not None and len(result.loading.cold_ms) > job.loads:
        raise ValueError(f"loading: {len(result.loading.cold_ms)} times, {job.loads} were asked for")
    if result.end_to_end is not None and job.resize is None:
        raise ValueError("end_to_end: was not asked for")
    others = {MEMORY: result.peak_mb, LOADING: result.loading, END_TO_END: result.end_to_end}
    if unknown := result.unmeasured.keys() - {*job.files[1:], *others}:
        raise ValueError(f"unmeasured: {strict.shown(sorted(unknown)[0])} may not be missing")
    if both := [name for name, found in others.items() if found is not None and name in result.unmeasured]:
        raise ValueError(f"unmeasured: {both[0]} is measured all the same")
    timed = set(job.files) - result.unmeasured.keys() if job.protocol else set()
    if result.latency.keys() != timed:
        raise ValueError(f"latency: of {len(result.latency)} artifacts instead of {len(timed)}")
    taken = list(result.latency.values())
    if len({(time.seconds, len(time.samples_ms)) for time in taken}) > 1:
        raise ValueError("latency: artifacts that were timed side by side have as many samples each, in the same time")
    if taken and sum(sum(time.samples_ms) for time in taken) / 1000 > 1.01 * taken[0].seconds + 0.01:
        raise ValueError(f"latency: the samples take longer than the {taken[0].seconds:g} s that were measured")
    return replace(
        result,
        golden=rows_of(golden),
        golden_error=_golden_error(golden, job),
        logits=rows_of(logits),
        top1=_top1(logits, job),
        latency={
            name: restated(time, job.protocol.min_samples) for name, time in result.latency.items() if job.protocol
        },
    )


def _logits(name: str, rows: Rows, count: int, classes: int) -> np.ndarray:
    """(N, C), NaN where the device has no number."""
    if len(rows) != count or any(len(row) != classes for row in rows):
        raise ValueError(f"{name}: {len(rows)} rows instead of {count} of {classes} numbers each")
    return np.array(rows, np.float64).reshape(count, classes)


def _golden_error(golden_GC: np.ndarray, job: Job) -> float | None:
    if not job.golden or not np.isfinite(golden_GC).all():
        return None
    return float(np.abs(golden_GC - np.array(job.golden)).max())


def _top1(logits_NC: np.ndarray, job: Job) -> float | None:
    if not job.labels:
        return None
    right = np.isfinite(logits_NC).all(1) & (logits_NC.argmax(1) == np.array(job.labels))
    return float(right.mean())


def rows_of(logits: np.ndarray | Sequence[np.ndarray]) -> tuple[tuple[float, ...], ...]:
    """(N, C) as plain numbers."""
    return tuple(tuple(float(value) for value in row) for row in logits)

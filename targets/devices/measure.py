"""Doing a job where the artifact runs: golden images, accuracy, latency, loading, memory, and what the machine is.

Needs the standard library and numpy only, so that a board can run this very file; Pillow for photographs alone.
"""

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from targets.artifact import Load, Program, RuntimeUnavailable, peak_memory_mb, reset_peak_memory, sha256_of
from targets.devices.job import (
    END_TO_END,
    GOLDEN,
    IMAGES,
    LOADING,
    MEMORY,
    PHOTO,
    Description,
    DeviceResult,
    Job,
    Progress,
    rows_of,
)
from targets.latency import EndToEnd, LatencyResult, Loading, Protocol, conditions, invalid, measure
from targets.resize import Resize, fit

MEMORY_INFERENCES = 3
FRESH_S = 120
"""a new process that takes longer for what `fresh` asks has hung; the slowest inference takes seconds"""
PHOTOGRAPHS, PHOTOGRAPHS_S, PHOTOGRAPHS_WARMUP = 32, 10.0, 2
"""that many from end to end, as long as they don't take longer all in all; before them some that aren't counted"""
AT_HWCAP, HWCAP_ASIMDHP = 16, 1 << 10
"""Linux's names for the processor's features, and for half precision among them"""
# Emulated inferences take seconds each and their time says nothing: a few show that it runs.
EMULATED = Protocol(name="emulated", seconds=0.0, min_samples=1, warmup=0, cooldown_s=0.0)


class Refused(Exception):
    """The runtime does not load an artifact, or does not run it."""


def run(job: Job, folder: Path, load: Load, progress: Progress = lambda *_: None) -> DeviceResult:
    """Do the job. Raises RuntimeUnavailable without a runtime.

    An artifact that the runtime does not load, or does not run, is a result; one that it was to be compared with, if it
    is that which does not run, is left out.
    """
    name, device = job.files[0], describe()
    sha256 = sha256_of(folder / name)
    found = partial(
        DeviceResult,
        job=job.id,
        file=name,
        sha256=sha256,
        device=device,
        threads=job.threads,
        float16=computes_float16(),
    )
    try:
        return found(**_measured(job, folder, load, device["emulated"], progress))
    except Refused as error:
        return found(runtime="", runtime_version="", refused=str(error))


def _measured(job: Job, folder: Path, load: Load, emulated: str | None, progress: Progress) -> dict[str, Any]:
    """What DeviceResult has of an artifact that runs. Raises Refused."""
    before = conditions()
    found = _in_this_process(job, folder, load, emulated, progress)
    # with the programs gone: what somebody has mapped does not leave the page cache
    if not emulated and (job.memory or job.loads):
        peak_mb, loading, ended = _in_new_processes(job, folder, load, progress)
        found |= {"peak_mb": peak_mb, "loading": loading, "unmeasured": {**found["unmeasured"], **ended}}
    return {**found, "before": before, "after": conditions()}


def _in_this_process(job: Job, folder: Path, load: Load, emulated: str | None, progress: Progress) -> dict[str, Any]:
    """The artifact's logits and times, and the times of those that it is compared with. Raises Refused."""
    name = job.files[0]
    programs: dict[str, Program] = {}
    unmeasured: dict[str, str] = {}
    image = next(job.pictures(folder, GOLDEN), None)
    for file in job.files:
        try:
            programs[file] = _started(load, folder / file, job.threads, image)
        except Refused as error:
            if file == name:
                raise
            unmeasured[file] = str(error)
    program = programs[name]
    golden, rows, taken, whole = None, None, {}, None
    with _refusing(program):
        if job.golden:
            golden = logits(program, job.pictures(folder, GOLDEN))
        if job.labels:
            rows = logits(program, _counted(job.pictures(folder, IMAGES), len(job.labels), progress))
        if job.protocol:
            assert image is not None, "what is timed has a golden picture"
            progress("latency", 0, 1)
            taken = time(programs, image, EMULATED if emulated else job.protocol)
            progress("latency", 1, 1)
        if job.resize and not emulated:
            try:
                whole = end_to_end(program, folder / PHOTO, job.resize)
            except NoPhotograph as error:
                unmeasured[END_TO_END] = str(error)
    if emulated:
        taken = {file: invalid(result, f"{emulated} emulates this processor") for file, result in taken.items()}
    return {
        "runtime": program.runtime,
        "runtime_version": program.runtime_version,
        "golden": () if golden is None else rows_of(golden),
        "golden_error": None if golden is None else _largest(golden, np.array(job.golden)),
        "logits": () if rows is None else rows_of(rows),
        "top1": None
        if rows is None
        else float((np.isfinite(rows).all(1) & (rows.argmax(1) == np.array(job.labels))).mean()),
        "latency": taken,
        "end_to_end": whole,
        "unmeasured": unmeasured,
    }


def _in_new_processes(
    job: Job, folder: Path, load: Load, progress: Progress
) -> tuple[float | None, Loading | None, dict[str, str]]:
    """Peak memory and loading, as far as they are asked for, and why they are missing if a process ended early."""
    image = next(job.pictures(folder, GOLDEN), None)
    assert image is not None, "what is measured has a golden picture"
    taken: list[Fresh] = []
    total = max(job.loads, 1)
    for number in range(total):
        progress("loading", number, total)
        if (one := fresh(load, folder / job.files[0], job.threads, image)) is None:
            break
        taken.append(one)
    progress("loading", total, total)
    if not taken:
        asked = [name for name, wanted in ((MEMORY, job.memory), (LOADING, job.loads)) if wanted]
        ended = "the process that measures {} ended early: has the memory run out?"
        return None, None, {name: ended.format(name) for name in asked}
    loading = Loading(
        cold_ms=tuple(one.cold_ms for one in taken),
        warm_ms=tuple(one.warm_ms for one in taken),
        from_storage=all(one.from_storage for one in taken),
    )
    return taken[0].peak_mb if job.memory else None, loading if job.loads else None, {}


def _started(load: Load, path: Path, threads: int, image: np.ndarray | None) -> Program:
    """The loaded artifact, once it has done one inference. Raises Refused if it cannot."""
    with _refusing(None):
        program = load(path, threads)
    with _refusing(program):
        if image is not None:
            program(image)
    return program


@contextlib.contextmanager
def _refusing(program: Program | None) -> Iterator[None]:
    """Whatever a runtime raises over an artifact becomes Refused; what is this machine's fault stays what it is.

    program: that runs; None: one is being loaded
    """
    try:
        yield
    except (RuntimeUnavailable, OSError, MemoryError):
        raise
    except Exception as error:  # which one depends on the runtime
        text = str(error) if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: {error}"
        runs = f"{program.runtime} {program.runtime_version} does not run it: " if program else ""
        raise Refused(runs + text) from error


def logits(program: Callable[[np.ndarray], np.ndarray], images: Iterable[np.ndarray]) -> np.ndarray:
    """(N, C) float32 of RGB images (1, H, W, 3) uint8, one by one. Raises ValueError without images."""
    rows = [program(image)[0] for image in images]
    if not rows:
        raise ValueError("nothing to run: at least one image is needed")
    return np.stack(rows)


def time(programs: dict[str, Program], image: np.ndarray, protocol: Protocol) -> dict[str, LatencyResult]:
    """Latency of the programs side by side on one RGB image (1, H, W, 3) uint8; its preparation is not counted."""
    return measure({name: partial(program.run, program.prepare(image)) for name, program in programs.items()}, protocol)


class NoPhotograph(Exception):
    """The photograph cannot be decoded here; that is nothing against the artifact."""


def end_to_end(program: Program, photo: Path, rule: Resize) -> EndToEnd:
    """From a JPEG to logits as an app does it: decoded upright, resized and cut, made the runtime's input, computed.

    Raises NoPhotograph without Pillow, or if that cannot read the file.
    """
    try:
        from PIL import Image

        from targets.picture import FORMATS, upright
    except ImportError as error:
        raise NoPhotograph(f"photographs need Pillow ({error}): pip install pillow") from error

    def decoded() -> np.ndarray:
        with Image.open(photo, formats=FORMATS) as image:
            return upright(image)

    try:
        fit(decoded(), rule)
    except Exception as error:  # decoders fail in any way
        raise NoPhotograph(f"its Pillow does not read {photo.name}: {error or type(error).__name__}") from error
    steps: list[tuple[float, float, float]] = []
    begin = perf_counter()
    total = PHOTOGRAPHS + PHOTOGRAPHS_WARMUP
    while not steps or (len(steps) < total and perf_counter() - begin < PHOTOGRAPHS_S):
        start = perf_counter()
        pixels = decoded()
        read = perf_counter()
        prepared = program.prepare(fit(pixels, rule)[None])
        ready = perf_counter()
        program.run(prepared)
        steps.append((1000 * (read - start), 1000 * (ready - read), 1000 * (perf_counter() - ready)))
    decode, resize, inference = zip(*(steps[PHOTOGRAPHS_WARMUP:] or steps), strict=True)
    return EndToEnd(decode_ms=decode, resize_ms=resize, inference_ms=inference)


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """What a new process finds of an artifact. The runtime's own code is loaded before, and does not count."""

    peak_mb: float | None
    """what loading it and some inferences add to the process's peak memory, MB of 1e6 bytes; None: it is not told"""
    cold_ms: float
    """from the file to the first logits"""
    warm_ms: float
    """the same once more"""
    from_storage: bool
    """whether the file was out of the page cache before"""


def fresh(load: Load, path: Path, threads: int, image: np.ndarray) -> Fresh | None:
    """Load an artifact in a process of its own. None if that was killed, failed or hung.

    image: RGB (1, H, W, 3) uint8
    """
    context = multiprocessing.get_context("spawn")
    answer, given = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(given, FRESH_S, load, path, threads, image), daemon=True)
    with answer:
        process.start()
        given.close()  # the other process alone has it: when that ends, so does the wait
        try:
            return answer.recv()
        except EOFError:
            return None
        finally:
            process.kill()
            process.join()


def memory_mb(load: Load, path: Path, threads: int, image: np.ndarray) -> float | None:
    """As Fresh.peak_mb; None too if that process was killed, failed or hung."""
    found = fresh(load, path, threads, image)
    return None if found is None else found.peak_mb


def _tell(answer: Connection, limit_s: int, *arguments: Any) -> None:
    signal.alarm(limit_s)  # ends this process, also if nobody waits for it any more
    answer.send(_fresh(*arguments))


def _fresh(load: Load, path: Path, threads: int, image: np.ndarray) -> Fresh:
    with contextlib.suppress(Exception):  # the runtime's own code is loaded at the first use, if only to refuse a file
        load(path.with_name("no such file"), threads)
    from_storage = forget(path)
    reset_peak_memory()
    before = peak_memory_mb()
    program, cold_ms = _loaded(load, path, threads, image)
    for _ in range(MEMORY_INFERENCES - 1):
        program(image)
    after = peak_memory_mb()
    del program
    _, warm_ms = _loaded(load, path, threads, image)
    peak_mb = None if before is None or after is None else after - before
    return Fresh(peak_mb=peak_mb, cold_ms=cold_ms, warm_ms=warm_ms, from_storage=from_storage)


def _loaded(load: Load, path: Path, threads: int, image: np.ndarray) -> tuple[Program, float]:
    """An artifact that has answered once, and the milliseconds until then."""
    start = perf_counter()
    program = load(path, threads)
    program(image)
    return program, 1000 * (perf_counter() - start)


def forget(path: Path) -> bool:
    """Let the system drop a file's content, or that of all files in a folder, from its page cache; whether it has.

    It need not: a file in memory (tmpfs), or one that some program has mapped, stays. No rights are needed for one's
    own files.
    """
    files = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    try:
        for file in files:
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())  # what is not written yet cannot be dropped
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return bool(files) and not any(_cached(file) for file in files if file.stat().st_size)
    except (OSError, AttributeError):  # not on this system
        return False


def _cached(file: Path) -> bool:
    """Whether any of a file's pages is in the page cache. Raises OSError, AttributeError where that is not told."""
    mapped = np.memmap(file, np.uint8, "r")
    pages = np.zeros(-(-mapped.size // mmap.PAGESIZE), np.uint8)
    start, found = (ctypes.c_void_p(array.ctypes.data) for array in (mapped, pages))
    if ctypes.CDLL(None).mincore(start, ctypes.c_size_t(mapped.size), found):
        raise OSError("the system does not tell")
    return bool((pages & 1).any())


def describe() -> Description:
    """What runs the artifacts here: device, os, cpu, cores (usable ones), arch, emulated."""
    return {
        "device": _board() or "this machine",
        "os": _os(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "arch": platform.machine(),
        "emulated": emulator(),
    }


def computes_float16() -> bool:
    """Whether this processor has Arm's arithmetic in float16, which XNNPACK computes with where a file lets it.

    Of x86 nothing is claimed: without AVX512-FP16 XNNPACK stays in float32 there.
    """
    if platform.machine() not in ("aarch64", "arm64"):
        return False
    if sys.platform == "darwin":  # every Mac with such a processor
        return True
    # Asked of the kernel, as XNNPACK does: /proc/cpuinfo may be another machine's, under qemu.
    return bool(ctypes.CDLL(None).getauxval(AT_HWCAP) & HWCAP_ASIMDHP)


def emulator() -> str | None:
    """What emulates this processor, None if nothing is known to.

    qemu-user shows itself as the process's name in /proc/self/status, which it passes through from the host, unless the
    host's kernel has started it (binfmt_misc); then the host's own files still name a processor of another kind. So
    does what Rosetta shows of itself. A whole emulated machine is "virt".
    """
    name = _read("/proc/self/status").split("\n", 1)[0].removeprefix("Name:").strip()
    if name.startswith("qemu-"):
        return name
    cpuinfo, machine = _read("/proc/cpuinfo"), platform.machine()
    if "VirtualApple" in cpuinfo:
        return "Rosetta"
    if machine.startswith(("aarch64", "arm")) and "vendor_id" in cpuinfo:
        return "an x86 machine"
    # "cpu:type:x86,ven0000..." or "cpu:type:aarch64:feature..."
    kind = re.match(r"cpu:type:(\w+)", _read("/sys/devices/system/cpu/modalias"))
    if kind and (kind[1] == "x86") != ("86" in machine):
        return f"an {kind[1]} machine"
    maker = _read("/sys/class/dmi/id/sys_vendor") + _read("/proc/device-tree/compatible")
    return "QEMU" if "QEMU" in maker or "linux,dummy-virt" in maker else None


def _counted(images: Iterable[np.ndarray], total: int, progress: Progress) -> Iterable[np.ndarray]:
    for done, image in enumerate(images, start=1):
        yield image
        progress("images", done, total)


def _largest(found: np.ndarray, expected: np.ndarray) -> float | None:
    """Largest absolute difference; None for logits that are no numbers, or of another shape."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return None
    return float(np.abs(found.astype(np.float64) - expected).max())


def _board() -> str | None:
    """The name that an Arm board's device tree gives it."""
    return _read("/proc/device-tree/model").rstrip("\0\n") or None


def _os() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # not Linux, or one without os-release
        return platform.platform(terse=True)


def _cpu() -> str:
    """The processor's name, or a board's system on a chip, such as brcm,bcm2712."""
    lines = _read("/proc/cpuinfo").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    chips = [name for name in _read("/proc/device-tree/compatible").split("\0") if name]
    return (names or chips[-1:] or [platform.processor() or platform.machine()])[0]


def _read(path: str) -> str:
    """A system file's text; empty where it is not there."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""

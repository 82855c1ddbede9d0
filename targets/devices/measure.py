"""Doing a job where the artifact runs: golden images, accuracy, latency, memory, and what the machine is.

Needs the standard library and numpy only, so that a board can run this very file.
"""

import contextlib
import ctypes
import multiprocessing
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from targets.artifact import Load, Program, RuntimeUnavailable, peak_memory_mb, reset_peak_memory, sha256_of
from targets.devices.job import GOLDEN, IMAGES, MEMORY, Description, DeviceResult, Job, Progress, rows_of
from targets.latency import LatencyResult, Protocol, conditions, invalid, measure

MEMORY_INFERENCES = 3
MEMORY_S = 120
"""a process that measures memory for longer has hung; the slowest inference takes seconds"""
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
    golden, rows, taken = None, None, {}
    peak_mb = None
    with _refusing(program):
        if job.golden:
            golden = logits(program, job.pictures(folder, GOLDEN))
        if job.labels:
            rows = logits(program, _counted(job.pictures(folder, IMAGES), len(job.labels), progress))
        before = conditions()
        if job.protocol:
            assert image is not None, "what is timed has a golden picture"
            progress("latency", 0, 1)
            taken = time(programs, image, EMULATED if emulated else job.protocol)
            progress("latency", 1, 1)
        after = conditions()
    if emulated:
        taken = {file: invalid(result, f"{emulated} emulates this processor") for file, result in taken.items()}
    elif job.memory:
        assert image is not None, "likewise"
        peak_mb = memory_mb(load, folder / name, job.threads, image)
        if peak_mb is None and peak_memory_mb() is not None:
            unmeasured[MEMORY] = "the process that measures memory ended early: has the memory run out?"
    return {
        "runtime": program.runtime,
        "runtime_version": program.runtime_version,
        "before": before,
        "after": after,
        "golden": () if golden is None else rows_of(golden),
        "golden_error": None if golden is None else _largest(golden, np.array(job.golden)),
        "logits": () if rows is None else rows_of(rows),
        "top1": None
        if rows is None
        else float((np.isfinite(rows).all(1) & (rows.argmax(1) == np.array(job.labels))).mean()),
        "latency": taken,
        "peak_mb": peak_mb,
        "unmeasured": unmeasured,
    }


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


def memory_mb(load: Load, path: Path, threads: int, image: np.ndarray) -> float | None:
    """What loading an artifact and some inferences add to a process's peak memory, MB of 1e6 bytes.

    In a process of its own; the runtime's code does not count. None where the system does not tell, or if that process
    was killed, failed or hung.
    """
    context = multiprocessing.get_context("spawn")
    answer, given = context.Pipe(duplex=False)
    process = context.Process(target=_tell_memory_mb, args=(given, MEMORY_S, load, path, threads, image), daemon=True)
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


def _tell_memory_mb(answer: Connection, limit_s: int, *arguments: Any) -> None:
    signal.alarm(limit_s)  # ends this process, also if nobody waits for it any more
    answer.send(_memory_mb(*arguments))


def _memory_mb(load: Load, path: Path, threads: int, image: np.ndarray) -> float | None:
    with contextlib.suppress(Exception):  # the runtime's own code is loaded at the first use, if only to refuse a file
        load(path.with_name("no such file"), threads)
    reset_peak_memory()
    before = peak_memory_mb()
    program = load(path, threads)
    for _ in range(MEMORY_INFERENCES):
        program(image)
    after = peak_memory_mb()
    return None if before is None or after is None else after - before


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

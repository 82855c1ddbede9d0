"""What the formats have in common: what an export leaves, what runs it, and the process that converters live in."""

import gc
import hashlib
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

CONVERTER_MB = 1500.0
"""memory of a converter that converts a small model, MB of 1e6 bytes"""
COLLECTIONS = (50_000, 20, 100)
"""Python's garbage collector in a converter, as gc.set_threshold takes it: converters make objects by the million, and
with the usual 700, 10, 10 a seventh of their time goes into looking through them, for 3 % less memory"""
LOW_PRIORITY = 15
"""niceness of what gets ready beside work that is waited for"""


class RuntimeUnavailable(Exception):
    """The converter or the interpreter is not installed here: what would have used it is not measured."""


@dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """What an export left on disk, and what it took."""

    path: Path
    size_bytes: int
    sha256: str
    seconds: float
    """from the model to the file in place; the first export of a format also loads its converter"""
    peak_mb: float | None
    """peak memory of the converter's process, MB of 1e6 bytes; None where it cannot be read"""
    delegates: int | None = None
    """calls of a delegate in the graph; None for formats without such"""
    ops_outside: tuple[str, ...] = ()
    """operations that no delegate takes"""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A loaded artifact."""

    prepare: Callable[[np.ndarray], Any]
    """RGB (1, H, W, 3) uint8 -> the input as this runtime takes it; not part of an inference"""
    run: Callable[[Any], np.ndarray]
    """such an input -> logits (1, C) float32: one inference"""
    runtime: str
    runtime_version: str
    timed: bool = True
    """whether the time of an inference says anything: not where one runtime stands in for another"""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Logits (1, C) float32 of one RGB image (1, H, W, 3) uint8."""
        return self.run(self.prepare(image))


Load = Callable[[Path, int], Program]
"""(path, threads); of a module's top level, so that another process can be given it"""


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; of a folder, that of its sorted `SHA-256 name` lines, one per file in it."""
    if path.is_dir():
        files = sorted(inner for inner in path.rglob("*") if inner.is_file())
        lines = "".join(f"{sha256_of(inner)} {inner.relative_to(path).as_posix()}\n" for inner in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what the body puts there, file or folder, takes its place once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # of the same ending: some writers look at it
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        partial_path = Path(folder) / path.name
        yield partial_path
        for file in partial_path.rglob("*") if partial_path.is_dir() else [partial_path]:
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
        if path.is_dir():  # a folder cannot be replaced in one step
            os.replace(path, Path(folder) / "old")
        os.replace(partial_path, path)


def convert(
    function: Callable[..., tuple[int | None, Sequence[str]]], path: Path, *arguments: Any, noise: str
) -> ExportInfo:
    """Let function(temporary path, *arguments) write the artifact, in a process of its own; then put it in place.

    function: of a module's top level; returns the number of delegates and the operations outside them
    noise:    pattern of the lines that the converter writes to stderr whatever happens; anything else goes through
    A converter brings much along (JAX, its threads, compilers): they make it unsafe for the caller to fork data loaders
    afterwards, and hold half a gigabyte that is given back this way. Exports of one format share their process; those
    of several may be made at the same time, each from a thread of its own. What a converter writes to stderr is given
    on with the artifact's name.
    Raises ValueError as `function` does, RuntimeUnavailable if the process was killed.
    """
    path = Path(path).absolute()  # the process may have been started in another folder
    begin = time.perf_counter()
    with replacing(path) as partial_path:
        process = _process(function.__module__)
        try:
            delegates, outside, peak_mb = process.submit(_call, function, partial_path, arguments, noise).result()
        except BrokenProcessPool as error:
            _process.cache_clear()
            raise RuntimeUnavailable(f"the converter to {path.name} was killed; has the memory run out?") from error
        except Exception:
            raise
        except BaseException:  # Ctrl-C: without this it would go on, and the interpreter's end would wait for it
            end_converters()
            raise
        if not partial_path.exists():
            raise RuntimeUnavailable(f"the converter left no {path.name}; is the disk full?")
        digest, size_bytes = sha256_of(partial_path), size_of(partial_path)
    return ExportInfo(
        path=path,
        size_bytes=size_bytes,
        sha256=digest,
        seconds=time.perf_counter() - begin,
        peak_mb=peak_mb,
        delegates=delegates,
        ops_outside=tuple(outside),
    )


def begin(module: str) -> None:
    """Let the converter of a module of targets get ready: its process starts, and runs the module's `warm_up`.

    Returns at once. What goes wrong there goes wrong in the first export as well, and is told then.
    """
    _process(module).submit(_get_ready, module)


@cache
def _process(module: str) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    process = ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    _processes.add(process)
    return process


_processes: WeakSet[ProcessPoolExecutor] = WeakSet()
"""those that may be at work"""


def end_converters() -> None:
    """End all converters' processes at once: what they are doing is worth nothing half done.

    To let an idle one go by itself takes seconds, all that it has loaded being put away.
    """
    for process in list(_processes):
        for worker in list((process._processes or {}).values()):  # Python 3.14 has kill_workers
            worker.kill()
    _process.cache_clear()


def _get_ready(module: str) -> None:
    """Runs in the converter's process."""

    def warm_up() -> None:
        if sys.platform == "linux":  # where this is of the thread alone
            os.nice(LOW_PRIORITY)
        import_module(module).warm_up()
        gc.freeze()  # what is loaded stays

    with ThreadPoolExecutor(1) as thread:
        thread.submit(warm_up).result()


def _begin(parent: int) -> None:
    """What a converter's process does first. parent: its process number"""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and silently
    gc.set_threshold(*COLLECTIONS)
    # The system's default again: locks that packages make so leave no names behind when the process is killed.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, however that was: it would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _call(
    function: Callable[..., tuple[int | None, Sequence[str]]], path: Path, arguments: tuple[Any, ...], noise: str
) -> tuple[int | None, tuple[str, ...], float | None]:
    reset_peak_memory()
    with without_noise(noise, f"{path.name}: "):
        delegates, outside = function(path, *arguments)
    return delegates, tuple(outside), peak_memory_mb()


def reset_peak_memory() -> None:
    """Let `peak_memory_mb` count from now on, where the system can."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process, MB of 1e6 bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), None)


def available_memory_mb() -> float | None:
    """Memory that new processes may take without others' being put aside, MB of 1e6 bytes; None as above."""
    system = Path("/proc/meminfo")
    lines = system.read_text().splitlines() if system.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("MemAvailable")), None)


@contextmanager
def without_noise(pattern: str, prefix: str = "") -> Iterator[None]:
    """Hold back what is written to file descriptor 2, and give on all lines but those that match the pattern.

    prefix: of every such line
    """
    noise = re.compile(pattern)
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            lines = held.read().splitlines(keepends=True)
            kept = [line for line in lines if not noise.search(line.decode(errors="replace"))]
            os.write(2, b"".join(prefix.encode() + line for line in kept))

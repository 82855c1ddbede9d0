"""What every operation of an artifact takes, told by the runtimes' own profilers; both ask XNNPACK, which they run on.

XNNPACK notes the time when each operation ends, so that operations and their threads' waiting for each other add up to
the whole; each is told in whole microseconds, rounded down.
"""

import ctypes
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from targets.artifact import RuntimeUnavailable, without_noise


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One inference."""

    ops: tuple[tuple[str, float], ...]
    """XNNPACK's name of each operation, and its milliseconds, in the order they ran"""
    ms: float
    """of the whole inference, by the same profiler"""


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """A loaded artifact that is profiled; its input is zeros."""

    run: Callable[[], None]
    """one inference"""
    traces: Callable[[], list[Trace]]
    """of all inferences since it was loaded"""


# LiteRT


class _Event(ctypes.Structure):
    """ProfiledEventData of litert/c/litert_profiler_event.h, with MemoryUsage of tflite/profiling/memory_info.h."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("metadata", ctypes.c_uint64 * 2),
        ("source", ctypes.c_int),
    )


_WHOLE, _OF_DELEGATE = 1, 8
"""kinds of events: the interpreter's own, an operation inside a delegate"""
_CPU = 1
"""the set of accelerators"""


def litert(path: Path, threads: int) -> Profiled:
    """A .tflite file. The wheel's Python has no door to the profiler; its C library has, the one that the web runs too.

    Raises RuntimeUnavailable without it, ValueError if it refuses.
    """
    library = _litert_library()
    zero = ctypes.c_size_t(0)
    one = ctypes.c_size_t(1)

    def made(function: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function of the library returns through its last argument."""
        result = ctypes.c_void_p()
        called(function, *arguments, ctypes.byref(result))
        return result

    def called(function: str, *arguments: Any) -> None:
        if status := getattr(library, function)(*arguments):
            raise ValueError(f"{path.name} can't be profiled: LiteRT's {function} failed with status {status}")

    with without_noise(r"^(INFO|WARNING): "):
        environment = made("LiteRtCreateEnvironment", 0, None)
        options = made("LiteRtCreateOptions")
        called("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        texts = [b"num_threads = %d\n" % threads, b"enable_profiling = true\n"]
        for name, text in zip((b"xnnpack", b"runtime_options_string"), texts, strict=True):
            called("LiteRtAddOpaqueOptions", options, made("LiteRtCreateOpaqueOptions", name, text, _nothing()))
        model = made("LiteRtCreateModelFromFile", environment, str(path).encode())
        compiled = made("LiteRtCreateCompiledModel", environment, model, options)
        library.LiteRtDestroyOptions(options)
    signature = made("LiteRtGetModelSignature", model, zero)
    buffers = []
    for side in ("Input", "Output"):
        tensor = made(f"LiteRtGetSignature{side}TensorByIndex", signature, zero)
        needs = made(f"LiteRtGetCompiledModel{side}BufferRequirements", compiled, zero, zero)
        kind = ctypes.create_string_buffer(1024)  # a LiteRtRankedTensorType, which is smaller
        called("LiteRtGetRankedTensorType", tensor, kind)
        buffers.append(made("LiteRtCreateManagedTensorBufferFromRequirements", environment, kind, needs))
    profiler = made("LiteRtCompiledModelGetProfiler", compiled)
    found: list[Trace] = []

    def run() -> None:
        called("LiteRtResetProfiler", profiler)
        called("LiteRtStartProfiler", profiler)
        source, result = map(ctypes.byref, buffers)
        called("LiteRtRunCompiledModel", compiled, zero, one, source, one, result)
        called("LiteRtStopProfiler", profiler)
        count = ctypes.c_int()
        called("LiteRtGetNumProfilerEvents", profiler, ctypes.byref(count))
        events = (_Event * count.value)()
        called("LiteRtGetProfilerEvents", profiler, count, events)
        ops = tuple((e.tag.decode(), e.elapsed_us / 1000) for e in events if e.kind == _OF_DELEGATE)
        (whole,) = (e.elapsed_us / 1000 for e in events if e.kind == _WHOLE and e.tag == b"Invoke")
        found.append(Trace(ops=ops, ms=whole))

    return Profiled(run=run, traces=lambda: found)


@cache
def _litert_library() -> ctypes.CDLL:
    spec = find_spec("ai_edge_litert")
    path = Path(spec.origin).parent / "libLiteRt.so" if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise RuntimeUnavailable("no LiteRT library to profile with: pip install ai-edge-litert, on Linux")
    return ctypes.CDLL(str(path))


@cache
def _nothing() -> Any:
    """What frees the text of an option: nothing, Python does."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)


# ExecuTorch


def executorch(path: Path, threads: int, example: torch.Tensor) -> Profiled:
    """A .pte file. example: an input. No other ExecuTorch program may be in use: the pool of threads is made anew.

    Raises RuntimeUnavailable without the runtime.
    """
    from targets.executorch import NOISE

    try:
        with without_noise(NOISE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it is experimental
            from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime, Verification
    except ImportError as error:
        raise RuntimeUnavailable(f"no ExecuTorch runtime ({error}): pip install executorch") from error
    with without_noise(NOISE):
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(path, verification=Verification.Minimal, enable_etdump=True)
        method = program.load_method("forward")

    def traces() -> list[Trace]:
        with tempfile.TemporaryDirectory() as folder:
            dump, values = Path(folder) / "trace", Path(folder) / "values"
            program.write_etdump_result_to_file(str(dump), str(values))
            runs = deserialize_from_etdump_flatcc(dump.read_bytes()).run_data
        return [_trace(run.events) for run in runs if run.name == "Execute"]

    return Profiled(run=lambda: method.execute([example]), traces=traces)


def _trace(events: list[Any]) -> Trace:
    """Of an inference's events: the operations, which the delegate gives a name and a number, and the whole method."""
    timed = [event.profile_event for event in events if event.profile_event]
    named = [(event.delegate_debug_id_str, event) for event in timed if event.delegate_debug_id_str]
    ops = tuple((name.rpartition(" #")[0], _ms(event)) for name, event in named)
    (whole,) = (_ms(event) for event in timed if event.name == "Method::execute")
    return Trace(ops=ops, ms=whole)


def _ms(event: Any) -> float:
    """ExecuTorch notes nanoseconds."""
    return (event.end_time - event.start_time) / 1e6

"""A .pte file to a callable, without torch. Needs the standard library and numpy, so that a board can run this file.

ExecuTorch's own Python runtime needs torch: on a board, half a gigabyte to run a model of a few megabytes. The
package's libraries do not. executorch_program.cpp is compiled against them by the machine's own compiler, once, and
kept in CACHE.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Collection
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from weakref import WeakSet

import numpy as np

from targets.artifact import Program, RuntimeUnavailable, without_noise

RELEASE = "1.5.1"
"""version of the package that boards are given (requirements-board-executorch.txt); the C++ of another may not fit"""
CHECK = f"""
import importlib.metadata, importlib.util, numpy, os
folders = importlib.util.find_spec("executorch").submodule_search_locations
assert any(os.path.isfile(os.path.join(folder, "lib", "libexecutorch.so")) for folder in folders)
assert importlib.metadata.version("executorch") == {RELEASE!r}
"""
"""Python that raises where an interpreter lacks a package, has half of it, or one that the C++ may not fit"""
INSTALL = f"pip install --no-deps executorch=={RELEASE}"
SOURCE = Path(__file__).with_suffix(".cpp")
CACHE = Path("~/.dap/executorch")
# What the package's own CMake files ask of those who build against it.
DEFINITIONS = ("C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED", "ET_USE_THREADPOOL")
LIBRARIES = ("executorch", "executorch_kernels_optimized", "executorch_backend_xnnpack", "executorch_threadpool")
# Lines that the runtime writes to stderr whatever happens.
NOISE = r"executorch:(cpuinfo_utils|threadpool)\.cpp:\d+\]"

_MESSAGE_BYTES = 1024
_loaded: "WeakSet[_Native]" = WeakSet()
"""programs in use; they run on the process's one pool of threads"""


def load(path: Path, threads: int) -> Program:
    """The file, ready to run on `threads` threads; all programs in use in a process have the same number.

    Raises ValueError for a file that is missing, damaged or not ours, that the runtime does not take, or if other
    programs in use have another number of threads; RuntimeUnavailable without the package, or a compiler for the first
    time.
    """
    name, installed = runtime()
    library, path = _library(), Path(path)
    sealed_content(path)
    with without_noise(NOISE):
        if other_threads(library.dap_threads(), threads, _loaded, path):
            library.dap_set_threads(threads)
        try:
            native = _Native(library, path)
        except ValueError as error:
            raise ValueError(f"{path} does not load in {name} {installed} ({error}); export the model again") from error
    _loaded.add(native)
    return Program(prepare=partial(_pixels, native), run=native.run, runtime=name, runtime_version=installed)


def other_threads(now: int, wanted: int, loaded: Collection[object], path: Path) -> bool:
    """Whether the process's pool, of `now` threads, must be replaced before `path` is loaded.

    loaded: the programs that run on it: it would be pulled away from under them. Raises ValueError if there are some
    """
    if now != wanted and loaded:
        raise ValueError(
            f"ExecuTorch programs with {now} threads are in use, and all of a process have the same number; let go of "
            f"them before loading {path} with {wanted}"
        )
    return now != wanted


def seal(content: bytes | memoryview) -> bytes:
    """What targets.executorch.lower puts after a program: its SHA-256, 32 bytes that no runtime reads.

    XNNPACK's delegate ends the process over some damaged bytes and computes nonsense over others; ExecuTorch's own
    verification does not look into delegates. A file that is as it was written is safe to hand over.
    """
    return hashlib.sha256(content).digest()


def sealed_content(path: Path) -> bytes:
    """What is in a file that is as targets.executorch.lower wrote it. Raises ValueError for any other."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; export the model again")
    content = path.read_bytes()
    size = len(seal(b""))
    if seal(memoryview(content)[:-size]) != content[-size:]:
        raise ValueError(f"{path} is damaged or of another origin (its checksum is wrong); export the model again")
    return content


def runtime() -> tuple[str, str]:
    """Name and version of the runtime that `load` uses. Raises RuntimeUnavailable."""
    _package()
    try:
        return "executorch", version("executorch")
    except PackageNotFoundError as error:
        raise RuntimeUnavailable("the executorch package has no metadata; install it with pip") from error


class _Native:
    """A program in the C++ runtime."""

    def __init__(self, library: ctypes.CDLL, path: Path) -> None:
        self.library, self.handle = library, None
        self.error = ctypes.create_string_buffer(_MESSAGE_BYTES)
        inputs, outputs = ctypes.c_size_t(), ctypes.c_size_t()
        self.handle = library.dap_load(
            os.fsencode(path), ctypes.byref(inputs), ctypes.byref(outputs), self.error, _MESSAGE_BYTES
        )
        if not self.handle:
            raise ValueError(self.error.value.decode(errors="replace"))
        self.inputs, self.outputs = inputs.value, outputs.value

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Logits (1, C) float32 of contiguous float32 pixels (1, 3, H, W). Raises ValueError if the runtime fails."""
        logits = np.empty((1, self.outputs), np.float32)
        error = self.error
        if self.library.dap_run(self.handle, pixels.ctypes.data, logits.ctypes.data, error, _MESSAGE_BYTES):
            raise ValueError(error.value.decode(errors="replace"))
        return logits

    def __del__(self) -> None:
        if self.handle:
            self.library.dap_free(self.handle)


def _pixels(native: _Native, image: np.ndarray) -> np.ndarray:
    """RGB (1, H, W, 3) uint8 -> (1, 3, H, W) float32, 0..255. Raises ValueError for another size than the program's."""
    if image.size != native.inputs:
        raise ValueError(f"the program takes {native.inputs} numbers, not an image {image.shape}")
    return np.ascontiguousarray(image.transpose(0, 3, 1, 2), np.float32)


def _package() -> Path:
    """Folder of the installed package, found without importing it. Raises RuntimeUnavailable."""
    spec = find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeUnavailable(f"no ExecuTorch runtime: {INSTALL}")
    for folder in map(Path, spec.submodule_search_locations):
        if (folder / "lib" / "libexecutorch.so").is_file():
            return folder
    raise RuntimeUnavailable(f"the executorch package here has no C++ libraries: {INSTALL}, on 64-bit Linux")


@cache
def _library() -> ctypes.CDLL:
    """The compiled functions, compiled if this is the first time. Raises RuntimeUnavailable."""
    path = _compiled(_package())
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # the file is damaged, or made for a system library that an upgrade has replaced
        path.unlink(missing_ok=True)
        try:
            library = ctypes.CDLL(str(_compiled(_package())))
        except OSError as error:
            raise RuntimeUnavailable(f"ExecuTorch's libraries do not load: {error}") from error
    size, text, program = ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p
    sizes = ctypes.POINTER(ctypes.c_size_t)
    library.dap_threads.restype, library.dap_threads.argtypes = size, []
    library.dap_set_threads.restype, library.dap_set_threads.argtypes = ctypes.c_int, [ctypes.c_uint32]
    library.dap_load.restype, library.dap_load.argtypes = program, [text, sizes, sizes, text, size]
    library.dap_run.restype = ctypes.c_int
    library.dap_run.argtypes = [program, ctypes.c_void_p, ctypes.c_void_p, text, size]
    library.dap_free.restype, library.dap_free.argtypes = None, [program]
    return library


def _compiled(package: Path) -> Path:
    """The shared library of SOURCE for this package and processor, from CACHE or made now. Raises RuntimeUnavailable.

    One for each package, version and source: another one is another file, and nothing half-made has the name.
    """
    made_of = (SOURCE.read_bytes(), str(package).encode(), version("executorch").encode(), platform.machine().encode())
    key = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]
    folder = CACHE.expanduser()
    path = folder / f"program-{key}.so"
    if path.exists():
        return path
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeUnavailable("no C++ compiler, which ExecuTorch needs once without torch: sudo apt install g++")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as temporary:
        result = Path(temporary) / path.name
        command = [compiler, "-std=c++17", "-O1", "-w", "-fPIC", "-shared", *(f"-D{name}" for name in DEFINITIONS)]
        include = package / "include"
        command += [f"-I{include}", f"-I{include / 'executorch/runtime/core/portable_type/c10'}", str(SOURCE)]
        # kernels and delegate announce themselves when they are loaded; nothing refers to them
        command += ["-o", str(result), f"-L{package / 'lib'}", "-Wl,--no-as-needed"]
        command += [*(f"-l{name}" for name in LIBRARIES), f"-Wl,-rpath,{package / 'lib'}"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
            raise RuntimeUnavailable(f"{compiler} does not compile {SOURCE.name}: {'; '.join(errors[:3])}")
        with open(result, "rb") as made:  # after a power cut the name must not stand for an empty file
            os.fsync(made.fileno())
        os.replace(result, path)
    return path

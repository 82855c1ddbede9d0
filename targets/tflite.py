"""TFLite: an nn.Module to a .tflite file, and such a file to a callable."""

import hashlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from targets.graph import rewrite

# Lines that converter and runtime write to the process's stderr whatever happens. Anything else goes through.
NOISE = re.compile(
    r"All log messages before absl::InitializeLog"
    r"|oneDNN custom operations are on"
    r"|flatbuffer_export\.cc.*Estimated count of arithmetic ops"
    r"|Created TensorFlow Lite XNNPACK delegate for CPU"
)

Predict = Callable[[np.ndarray], np.ndarray]


class RuntimeUnavailable(Exception):
    """The converter or the interpreter is not installed here: what would have used it is not measured."""


@dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """What an export left on disk."""

    path: Path
    size_bytes: int
    sha256: str
    seconds: float
    """from the model to the file in place"""


def export(model: nn.Module, *, image_size: int, mean: Sequence[float], std: Sequence[float], path: Path) -> ExportInfo:
    """Write `model` as a float32 .tflite that maps float32 RGB 0..255 (1, image_size, image_size, 3) to logits (1, C).

    model:     as targets.graph.rewrite takes it
    mean, std: per channel, for pixels in 0..1
    path:      replaced in one step once the file is complete; its folder is made
    Raises ValueError for a model without exact export form or of another image size, RuntimeUnavailable without the
    converter.
    """
    begin = time.perf_counter()
    graph = rewrite(model, mean, std)
    if graph.image_size != (image_size, image_size):
        raise ValueError(f"image_size is {image_size}, but the model takes {graph.image_size[0]}x{graph.image_size[1]}")
    content = _convert(graph, (torch.zeros(1, image_size, image_size, 3),))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    digest = hashlib.sha256(content).hexdigest()
    return ExportInfo(path=path, size_bytes=len(content), sha256=digest, seconds=time.perf_counter() - begin)


def load(path: Path, threads: int) -> Predict:
    """A callable: images (1, H, W, 3) float32 RGB 0..255 -> logits (1, C) float32.

    Raises ValueError for a file that is missing or is no sound TFLite model, RuntimeUnavailable without an interpreter.
    """
    interpreter_class = _interpreter_class()
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file; export the model again")
    try:
        with _without_noise():
            interpreter = interpreter_class(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:  # which of them depends on where the file is damaged
        raise ValueError(f"{path} is not a sound TFLite model ({error}); export the model again") from error
    source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def predict(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source, images)
        interpreter.invoke()
        return interpreter.get_tensor(result)

    return predict


def runtime() -> tuple[str, str]:
    """Name and version of the interpreter that `load` uses. Raises RuntimeUnavailable."""
    _interpreter_class()
    for package in ("ai-edge-litert", "tflite-runtime"):
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    raise RuntimeUnavailable("the TFLite interpreter's package has no metadata; install ai-edge-litert with pip")


def _interpreter_class() -> Any:
    # Imported here: what never runs a TFLite file needs no interpreter. Boards may only have the older of the two.
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError as error:
            raise RuntimeUnavailable(f"no TFLite interpreter ({error}): pip install ai-edge-litert") from error
    return Interpreter


def _convert(graph: nn.Module, example: tuple[torch.Tensor, ...]) -> bytes:
    """The bytes of the .tflite file.

    Made in a process of its own, the same for all exports: the converter brings JAX along, whose threads make it unsafe
    for the caller to fork data loaders afterwards, and half a gigabyte that is given back this way.
    """
    if find_spec("litert_torch") is None:
        raise RuntimeUnavailable("no TFLite converter: pip install litert-torch")
    try:
        return _converter().submit(_convert_here, graph, example).result()
    except BrokenProcessPool as error:
        _converter.cache_clear()
        raise RuntimeUnavailable("the TFLite converter was killed; has the memory run out?") from error


@cache
def _converter() -> ProcessPoolExecutor:
    # Ctrl-C ends the converter at once and silently; what it was doing is worth nothing half done.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=default)


def _convert_here(graph: nn.Module, example: tuple[torch.Tensor, ...]) -> bytes:
    # litert-torch reads this when it prints; its progress goes to stdout, where the caller's results belong.
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao registers an enum in a deprecated way
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with _without_noise(), tempfile.TemporaryDirectory() as folder:
        # Imported here: it takes seconds, half a gigabyte and installs compilers, and only an export needs it.
        import litert_torch

        file = Path(folder) / "model.tflite"
        litert_torch.convert(graph, example).export(str(file))
        return file.read_bytes()


@contextmanager
def _without_noise() -> Iterator[None]:
    """Hold back what native code writes to file descriptor 2, and give on all but the lines known as NOISE."""
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
            kept = [
                line
                for line in held.read().splitlines(keepends=True)
                if not NOISE.search(line.decode(errors="replace"))
            ]
            os.write(2, b"".join(kept))

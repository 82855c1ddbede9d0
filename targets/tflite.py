"""TFLite: an nn.Module to a .tflite file, and such a file to a callable."""

import logging
import os
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from targets.artifact import ExportInfo, Program, RuntimeUnavailable, convert, without_noise
from targets.graph import TFLITE, rewrite

SUFFIX = ".tflite"
PRECISIONS = ("fp32",)
"""what `export` makes, smallest file first"""

# Lines that converter and runtime write to the process's stderr whatever happens.
NOISE = (
    r"All log messages before absl::InitializeLog"
    r"|oneDNN custom operations are on"
    r"|flatbuffer_export\.cc.*Estimated count of arithmetic ops"
    r"|Created TensorFlow Lite XNNPACK delegate for CPU"
)


def export(
    model: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
    precision: str = "fp32",
    calibration: np.ndarray | None = None,
) -> ExportInfo:
    """Write `model` as a .tflite that maps float32 RGB 0..255 (1, H, W, 3) to float32 logits (1, C).

    model:       as targets.graph.rewrite takes it
    mean, std:   per channel, for pixels in 0..1
    path:        replaced in one step once the file is complete; its folder is made
    precision:   one of PRECISIONS
    calibration: (N, H, W, 3) uint8 training images, for the static precisions
    Raises ValueError for a model without exact export form or an unknown precision, RuntimeUnavailable without the
    converter.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"tflite has no precision {precision!r}; it has {', '.join(PRECISIONS)}")
    if find_spec("litert_torch") is None:
        raise RuntimeUnavailable("no TFLite converter: pip install litert-torch")
    graph = rewrite(model, mean, std, TFLITE)
    return convert(_convert, path, graph, graph.example(), noise=NOISE)


def load(path: Path, threads: int) -> Program:
    """The file, ready to run on `threads` threads.

    Raises ValueError for a file that is missing or is no sound TFLite model, RuntimeUnavailable without an interpreter.
    """
    interpreter_class = _interpreter_class()
    name, installed = runtime()
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file; export the model again")
    try:
        with without_noise(NOISE):
            interpreter = interpreter_class(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:  # which of them depends on where the file is damaged
        raise ValueError(f"{path} is not a sound TFLite model ({error}); export the model again") from error
    source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(pixels: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source, pixels)
        interpreter.invoke()
        return interpreter.get_tensor(result)

    return Program(prepare=lambda image: image.astype(np.float32), run=run, runtime=name, runtime_version=installed)


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


def _convert(path: Path, graph: nn.Module, example: torch.Tensor) -> tuple[None, tuple[str, ...]]:
    """Runs in the converter's process."""
    # litert-torch reads this when it prints; its progress goes to stdout, where the caller's results belong.
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao registers an enum in a deprecated way
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Imported here: it takes seconds, half a gigabyte and installs compilers, and only an export needs it.
    import litert_torch

    litert_torch.convert(graph, (example,)).export(str(path))
    return None, ()

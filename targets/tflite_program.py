"""A .tflite file to a callable. Needs the standard library and numpy, so that a board can run this very file."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from targets.artifact import Program, RuntimeUnavailable, without_noise

# Lines that converter and runtime write to the process's stderr whatever happens.
NOISE = (
    r"All log messages before absl::InitializeLog"
    r"|oneDNN custom operations are on"
    r"|flatbuffer_export\.cc.*Estimated count of arithmetic ops"
    r"|Created TensorFlow Lite XNNPACK delegate for CPU"
)


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

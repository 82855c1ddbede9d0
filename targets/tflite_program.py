"""A .tflite file to a callable. Needs the standard library and numpy, so that a board can run this very file."""

from importlib import import_module
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


INTERPRETERS = {"ai-edge-litert": "ai_edge_litert.interpreter", "tflite-runtime": "tflite_runtime.interpreter"}
"""package -> module, the better one first; boards may only have the older of the two"""
CHECK = """
import numpy
try:
    import ai_edge_litert.interpreter
except Exception:
    import tflite_runtime.interpreter
"""
"""Python that raises where an interpreter lacks a package"""


def load(path: Path, threads: int, package: str | None = None) -> Program:
    """The file, ready to run on `threads` threads.

    package: a key of INTERPRETERS; None: the first that is installed
    Raises ValueError for a file that is missing or is no sound TFLite model, RuntimeUnavailable without an interpreter.
    """
    interpreter_class, name, installed = find_interpreter(package)
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


def load_on_board(path: Path, threads: int) -> Program:
    """As `load`. The file has arrived whole: if it is refused, the interpreter may be too old for it."""
    try:
        return load(path, threads)
    except ValueError as error:
        _, name, installed = find_interpreter()
        raise ValueError(
            f"{name} {installed} does not take it ({error.__cause__ or error}). A newer one may, in an environment of "
            "its own there: python3 -m venv ~/.dap/env && ~/.dap/env/bin/pip install --upgrade numpy ai-edge-litert"
        ) from error


def find_interpreter(package: str | None = None) -> tuple[Any, str, str]:
    """Class, package and version of the interpreter. Raises RuntimeUnavailable."""
    missing = ""
    for name in [package] if package else INTERPRETERS:
        try:
            return import_module(INTERPRETERS[name]).Interpreter, name, version(name)
        except (ImportError, PackageNotFoundError) as error:
            missing = missing or str(error)
    raise RuntimeUnavailable(f"no TFLite interpreter ({missing}): pip install {package or 'ai-edge-litert'}")

"""What LiteRT's GPU delegates ask of a file, and one of them at work on a graphics processor of software.

There are two. That for WebGPU, which the wheel for Linux has too, runs here on SwiftShader, a Vulkan device that
computes on the processor, if Chromium has brought it. The one of TensorFlow Lite, for OpenCL, needs hardware: what it
asks is read off, not tried. No file has run on a real GPU.

Sources: the delegate's own check of operations and their options, which ai_edge_litert's analyser runs
(tflite/tools/versioning/gpu_compatibility.cc); what it reads behind that, with the versions below
(tflite/delegates/gpu/common/model_builder.cc and model_builder_helper.cc), github.com/google-ai-edge/LiteRT, 2026. The
list in the documentation, ai.google.dev/edge/litert/performance/gpu, is older and shorter: it lacks BATCH_MATMUL, GELU,
MEAN, RSQRT, SLICE, GATHER and TRANSPOSE, which both of these have.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import _pywrap_analyzer_wrapper as analyser
from ai_edge_litert import schema_py_generated as schema

NAMES = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
VERSIONS = {
    "ADD": 2, "BATCH_MATMUL": 1, "CONCATENATION": 2, "CONV_2D": 6, "FULLY_CONNECTED": 9, "GATHER": 1, "GELU": 2,
    "LOGISTIC": 2, "MEAN": 1, "MUL": 3, "RELU": 2, "RESHAPE": 1, "RSQRT": 2, "SLICE": 2, "SOFTMAX": 2, "SUB": 2,
    "TRANSPOSE": 4,
}  # fmt: skip
"""operations that our files have, and the highest version that the delegate takes; it names none for products, means"""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """An operation's input or output."""

    shape: Shape
    constant: bool
    """in the file, or made from what is in the file alone, as float32 weights are from those of half precision"""


@dataclass(frozen=True)
class Operation:
    name: str
    version: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    options: Any


def operations(path: Path) -> list[Operation]:
    """What a file computes, without what it computes from constants alone."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    (graph,) = model.subgraphs
    # a variable has an empty buffer; one behind the tables, as large files have them, has a size instead of data
    filled = [(buffer.data is not None and len(buffer.data) > 0) or buffer.size > 0 for buffer in model.buffers]
    constant = [filled[tensor.buffer] for tensor in graph.tensors]
    found = []
    for op in graph.operators:
        ours, theirs = [i for i in op.inputs if i >= 0], list(op.outputs)
        if all(constant[i] for i in ours):
            for i in theirs:
                constant[i] = True
            continue
        values = [
            tuple(Value(tuple(int(n) for n in graph.tensors[i].shape), constant[i]) for i in indices)
            for indices in (ours, theirs)
        ]
        code = model.operatorCodes[op.opcodeIndex]
        found.append(Operation(NAMES[code.builtinCode], code.version, *values, op.builtinOptions))
    return found


def other_batches(path: Path) -> list[tuple[str, Shape]]:
    """Tensors whose leading dimension, the delegate's batch, is not 1."""
    return [
        (op.name, value.shape)
        for op in operations(path)
        for value in (*op.inputs, *op.outputs)
        if not value.constant and value.shape[:1] != (1,)
    ]


def refused(path: Path) -> list[str]:
    """What of a file the delegate would leave to the CPU, or refuse the whole file for."""
    report = analyser.ModelAnalyzer(str(path), True, True)
    told = (
        []
        if "looks compatible with GPU delegate" in report
        else [line for line in report.splitlines() if "GPU" in line]
    )
    return told + [f"{op.name} {op.version} {reason}" for op in operations(path) if (reason := _refused(op))]


def _refused(op: Operation) -> str | None:
    if op.version > VERSIONS.get(op.name, 0):
        return "is none of its operations, or newer than it knows"
    if any(len(value.shape) > 4 for value in op.inputs + op.outputs):
        return "has more than four dimensions"
    constants = [value for value in op.inputs if value.constant]
    if op.name == "BATCH_MATMUL" and (constants or op.options.adjX or op.options.adjY):
        return "has a constant factor or a transposed one, which are read as if they weren't"
    if op.name == "CONCATENATION" and any(len(value.shape) != 4 for value in constants):
        return "has a constant of other than four dimensions"
    if op.name == "MEAN" and not op.options.keepDims:
        return "drops the dimension, which makes the rest of (1, N) its channels"
    if op.name == "FULLY_CONNECTED" and op.inputs[0].shape[-1] != op.inputs[1].shape[-1]:
        return "goes through another number of channels"
    if op.name in ("ADD", "MUL", "SUB") and not constants and len({len(value.shape) for value in op.inputs}) > 1:
        return "has inputs of different ranks"
    if op.name == "MUL" and not constants and op.inputs[0].shape != op.outputs[0].shape:
        return "has the smaller factor first"
    return None


SWIFTSHADER = Path("/usr/lib/chromium")
"""where Debian's chromium has its Vulkan loader and SwiftShader"""
PROGRAM = """
import sys
import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator

model = CompiledModel.from_file(sys.argv[1], hardware_accel=HardwareAccelerator.GPU)
assert model.is_fully_accelerated()
inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
inputs[0].write(np.load(sys.argv[2]))
model.run_by_index(0, inputs, outputs)
np.save(sys.argv[3], outputs[0].read(int(sys.argv[4]), np.float32))
"""


def on_webgpu(path: Path, image: np.ndarray, count: int, folder: Path) -> np.ndarray:
    """Logits (count,) of an image (1, H, W, 3) from the delegate for WebGPU, all operations on SwiftShader.

    Raises AssertionError if the file is not computed there as a whole. A process of its own, since where Vulkan lies is
    read at its start.
    """
    np.save(folder / "image.npy", image.astype(np.float32))
    driver = SWIFTSHADER / "vk_swiftshader_icd.json"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(SWIFTSHADER), "VK_ICD_FILENAMES": str(driver)}
    arguments = [str(path), str(folder / "image.npy"), str(folder / "logits.npy"), str(count)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SwiftShader" in done.stderr
    return np.load(folder / "logits.npy")

"""TFLite: an nn.Module to a .tflite file; tflite_program.py runs such a file."""

import io
import logging
import os
import struct
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from targets.artifact import ExportInfo, RuntimeUnavailable, convert, without_noise
from targets.formats import FORMATS
from targets.graph import TFLITE, TFLITE_FLOAT16
from targets.rewrite import rewrite
from targets.tflite_batch import keep_batch
from targets.tflite_program import NOISE

FORMAT = FORMATS["tflite"]
# Dynamic layers with a scale per channel came with version 12 of the operator, in TFLite 2.17 (measured: 2.16.2 doesn't
# know that version, 2.17.1 does). tflite-runtime 2.14 runs one as if it had a single scale.
PER_CHANNEL_DYNAMIC = (12, "2.17.0")
"""version of the operator FULLY_CONNECTED, oldest runtime that has it"""
FLOAT16 = "reduced_precision_support", b"fp16accfp16"
"""a file's metadata that lets the runtime compute and sum in float16 where the processor can; with "fp16accfp32" LiteRT
2.3.0 stays in float32 (measured)"""
OPERATOR_CODE_VERSION = 8
"""where a flatbuffer's table OperatorCode lists the place of its third field, `version`"""


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

    Arguments and errors as targets.formats.Export has them. The float32 files of the latest models are kept by the
    converter's process: another precision of the same model takes a fraction of the first one's seconds.
    """
    known = FORMAT.precision(precision)
    if find_spec("litert_torch") is None:
        raise RuntimeUnavailable("no TFLite converter: pip install litert-torch")
    graph = rewrite(model, mean, std, TFLITE_FLOAT16 if known.float16_of else TFLITE)
    calibration = known.images(calibration, graph.image_size)
    pickled = io.BytesIO()
    torch.save(graph, pickled)
    stored, float16 = known.float16_of or precision, known.float16_of is not None
    return convert(_convert, path, pickled.getvalue(), stored, float16, calibration, noise=NOISE)


class _Least(nn.Linear):
    """The smallest module that can be converted."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def example(self) -> torch.Tensor:
        return torch.zeros(1, 1)


def warm_up() -> None:
    """Load the converter and what it loads at its first use. Runs in the converter's process."""
    pickled = io.BytesIO()
    torch.save(_Least().eval(), pickled)
    with without_noise(NOISE):
        _float_model(pickled.getvalue())


def minimum_runtime(path: Path) -> str | None:
    """Oldest version of the TFLite runtime that runs the file, as "2.9.0"; None if the file does not say.

    Raises ValueError for a file that is missing or is no sound TFLite model.
    """
    # Imported here: only a machine that exports needs to read the file's tables.
    from ai_edge_litert import schema_py_generated as schema

    content = Path(path).read_bytes() if Path(path).is_file() else b""
    if content[4:8] != b"TFL3":
        raise ValueError(f"{path} is missing or no TFLite model; export the model again")
    try:
        written = _runtime_field(schema.Model.GetRootAs(content))
    except (struct.error, ValueError) as error:  # a place that the file names lies beyond its end
        raise ValueError(f"{path} is no sound TFLite model ({error}); export the model again") from error
    return None if written is None else written.tobytes().rstrip(b"\0").decode()


def _convert(
    path: Path, graph: bytes, precision: str, float16: bool, calibration: np.ndarray | None
) -> tuple[None, tuple[str, ...]]:
    """Runs in the converter's process.

    graph: an ExportViT as torch.save writes it;  float16: whether processors that compute in float16 are to do so
    """
    model = _float_model(graph)
    content = model if precision == "fp32" else _quantised(model, precision, calibration)
    path.write_bytes(_in_float16(content) if float16 else content)
    return None, ()


# The key is the whole model, so that no two models can be taken for each other. Of a DeiT-tiny the conversion takes
# 13 s, and 0.2 s each of the precisions made from it. Two, since the form for float16 is another one.
@lru_cache(maxsize=2)
def _float_model(graph: bytes) -> bytes:
    """The float32 file's content."""
    # litert-torch reads this when it prints; its progress goes to stdout, where the caller's results belong.
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao registers an enum in a deprecated way
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Imported here: it takes seconds, half a gigabyte and installs compilers, and only an export needs it.
    import litert_torch

    keep_batch()
    module = torch.load(io.BytesIO(graph), weights_only=False)  # whole modules are code; these bytes are our own
    return litert_torch.convert(module, (module.example(),)).model_content()


def _quantised(model: bytes, precision: str, calibration: np.ndarray | None) -> bytes | bytearray:
    """The file's content in another precision. calibration: (N, H, W, 3) uint8."""
    # Imported here as the converter is.
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    every, layer = ".*", qtyping.TFLOperationName
    half = algorithm_manager.AlgorithmName.FLOAT_CASTING
    recipe = recipe_manager.RecipeManager()
    # The patch embedding in half precision: in 8 bits it alone costs 2 dB (its input, pixels, is far from zero mean).
    recipe.add_weight_only_config(every, layer.CONV_2D, 16, algorithm_key=half)
    if precision == "fp16":
        recipe.add_weight_only_config(every, layer.FULLY_CONNECTED, 16, algorithm_key=half)
    elif precision == "int8-weights":
        recipe.add_weight_only_config(every, layer.FULLY_CONNECTED, 8)
    elif precision == "int8-static":
        recipe.add_static_config(every, layer.FULLY_CONNECTED, 8, 8)
    elif precision == "int8-dynamic":
        recipe.add_dynamic_config(every, layer.FULLY_CONNECTED, 8)
    else:
        recipe.add_dynamic_config(every, layer.FULLY_CONNECTED, 8, qtyping.QuantGranularity.TENSORWISE)
    ranges = None
    # The quantiser's progress bars cannot be switched off; what matters it raises.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        if calibration is not None:
            name, signature = next(iter(Interpreter(model_content=model).get_signature_list().items()))
            images = [{signature["inputs"][0]: image[None].astype(np.float32)} for image in calibration]
            # The default, a moving average of each image's range, cuts off the largest values of every second image:
            # 22 dB instead of 30 for a small model.
            observer = calibrator.Calibrator(model, torch.get_num_threads(), qsv_update_func=min_max_update)
            observer.calibrate({name: images}, recipe)
            ranges = observer.get_model_qsvs()
        work = quantizer.Quantizer(model, recipe.get_quantization_recipe())
        content = work.quantize(ranges, enable_progress_report=False).quantized_model
    assert content is not None
    return _require(content, *PER_CHANNEL_DYNAMIC) if precision == "int8-dynamic" else content


def _require(content: bytes | bytearray, version: int, runtime_version: str) -> bytearray:
    """The file with its fully connected layers marked as of `version`, and `runtime_version` as the oldest to run it.

    The quantiser leaves the float32 operator's version, which lets an older runtime load the file and compute nonsense;
    a version that it does not know makes it refuse. TensorFlow's converter does so too (op_version.cc).
    """
    from ai_edge_litert import schema_py_generated as schema

    content = bytearray(content)
    model = schema.Model.GetRootAs(content)
    for code in (model.OperatorCodes(i) for i in range(model.OperatorCodesLength())):
        if code.BuiltinCode() == schema.BuiltinOperator.FULLY_CONNECTED:
            table = code._tab  # the generated classes only read
            struct.pack_into("<i", content, table.Pos + table.Offset(OPERATOR_CODE_VERSION), version)
    written = _runtime_field(model)
    assert written is not None
    written[:] = np.frombuffer(runtime_version.encode().ljust(len(written), b"\0"), np.uint8)
    return content


def _in_float16(content: bytes | bytearray) -> bytes | bytearray:
    """The file with a note that lets the runtime compute in float16: XNNPACK does where the processor has it."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    note, buffer = schema.MetadataT(), schema.BufferT()
    name, value = FLOAT16
    note.name, note.buffer, buffer.data = name, len(model.buffers), np.frombuffer(value, np.uint8)
    model.buffers.append(buffer)
    model.metadata.append(note)
    return flatbuffer_utils.convert_object_to_bytearray(model)


def _runtime_field(model: Any) -> np.ndarray | None:
    """The bytes, zero-padded, where the converter has written the oldest runtime for the file: a view, if it has."""
    for entry in (model.Metadata(i) for i in range(model.MetadataLength())):
        if entry.Name() == b"min_runtime_version":
            return model.Buffers(entry.Buffer()).DataAsNumpy()
    return None

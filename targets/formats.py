"""The file formats: how each is made, loaded and fed. To add one: a file like tflite.py and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from targets import coreml, executorch, tflite
from targets.artifact import ExportInfo, Program


@dataclass(frozen=True, kw_only=True)
class Format:
    """One file format."""

    suffix: str
    precisions: tuple[str, ...]
    """smallest file first"""
    export: Callable[..., ExportInfo]
    """(model, *, mean, std, path, precision, calibration)"""
    load: Callable[[Path, int], Program]
    """(path, threads)"""
    minimum_runtime: Callable[[Path], str | None]
    """oldest version of the runtime that runs a file; None if it is not known"""
    layout: str
    """of the input: NHWC, NCHW, or image where the platform's own image type goes in"""
    dtype: str
    """of the input"""


def _coreml_delegate(model: nn.Module, *, precision: str, calibration: Any, **options: Any) -> ExportInfo:
    return executorch.export_coreml_delegate(model, **options)


FORMATS: dict[str, Format] = {
    "tflite": Format(
        suffix=tflite.SUFFIX,
        precisions=tflite.PRECISIONS,
        export=tflite.export,
        load=tflite.load,
        minimum_runtime=tflite.minimum_runtime,
        layout="NHWC",
        dtype="float32",
    ),
    "executorch": Format(
        suffix=executorch.SUFFIX,
        precisions=executorch.PRECISIONS,
        export=executorch.export,
        load=executorch.load,
        minimum_runtime=executorch.minimum_runtime,
        layout="NCHW",
        dtype="float32",
    ),
    "executorch-coreml": Format(
        suffix=f".coreml{executorch.SUFFIX}",
        precisions=("fp16",),
        export=_coreml_delegate,
        load=executorch.load,
        minimum_runtime=executorch.minimum_runtime,
        layout="NCHW",
        dtype="float32",
    ),
    "coreml": Format(
        suffix=coreml.SUFFIX,
        precisions=coreml.PRECISIONS,
        export=coreml.export,
        load=coreml.load,
        minimum_runtime=coreml.minimum_runtime,
        layout="image",
        dtype="uint8",
    ),
}

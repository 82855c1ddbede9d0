"""The file formats: how each is made, loaded and fed. To add one: a file like tflite.py and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from targets import coreml, executorch, tflite, tflite_program
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


def _of(module: Any, load: Callable[[Path, int], Program], *, layout: str, dtype: str) -> Format:
    """The format that a module of this package makes."""
    return Format(
        suffix=module.SUFFIX,
        precisions=module.PRECISIONS,
        export=module.export,
        load=load,
        minimum_runtime=module.minimum_runtime,
        layout=layout,
        dtype=dtype,
    )


def _coreml_delegate(model: nn.Module, *, precision: str, calibration: Any, **options: Any) -> ExportInfo:
    return executorch.export_coreml_delegate(model, **options)


_EXECUTORCH = _of(executorch, executorch.load, layout="NCHW", dtype="float32")
FORMATS: dict[str, Format] = {
    "tflite": _of(tflite, tflite_program.load, layout="NHWC", dtype="float32"),
    "executorch": _EXECUTORCH,
    "executorch-coreml": replace(
        _EXECUTORCH, suffix=f".coreml{executorch.SUFFIX}", precisions=("fp16",), export=_coreml_delegate
    ),
    "coreml": _of(coreml, coreml.load, layout="image", dtype="uint8"),
}

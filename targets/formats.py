"""The file formats: all that is known of each. To add one: a file like tflite.py and an entry here.

Needs the standard library and numpy only: a board reads this very file, and who asks for a name does not wait for
torch. What needs more is imported when it is called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from targets import executorch_program, tflite_program
from targets.artifact import ExportInfo, Load

TFLITE_RUNTIME_2_14 = "tflite-runtime 2.14"
"""a runtime that systems bring along and that nobody updates any more"""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What an artifact stores and computes with, and what follows from it."""

    reduced: bool
    """whether that is less than float32"""
    golden_share: float
    """share of the largest golden logit by which an artifact's may differ from its model's"""
    same_share: float
    """likewise from its own on another machine"""
    calibrated: bool = False
    """whether an export needs images to find ranges with"""
    wrong_in: tuple[str, ...] = ()
    """runtimes that compute it wrongly; they refuse the files that `export` makes"""
    float16_of: str | None = None
    """the precision that its files store as; processors that compute in float16 are to do so. What others compute of it
    says nothing of those"""

    def images(self, calibration: np.ndarray | None, image_size: tuple[int, int]) -> np.ndarray | None:
        """The images to calibrate with; None for a precision that needs none: a converter is not sent them for nothing.

        calibration: (N, H, W, 3) uint8;  image_size: (height, width), the model's
        Raises ValueError unless they fit, at least one.
        """
        if not self.calibrated:
            return None
        wanted = f"(N, {image_size[0]}, {image_size[1]}, 3) uint8"
        if calibration is None or len(calibration) == 0:
            raise ValueError(f"this precision needs calibration images: pass some of the training set, {wanted}")
        if calibration.dtype != np.uint8 or calibration.shape[1:] != (*image_size, 3):
            raise ValueError(
                f"calibration images are {calibration.shape} {calibration.dtype}; resize and crop them to {wanted}"
            )
        return calibration


FULL = Precision(reduced=False, golden_share=1e-3, same_share=1e-3)
REDUCED = Precision(reduced=True, golden_share=0.25, same_share=0.05)
CALIBRATED = replace(REDUCED, calibrated=True)


@dataclass(frozen=True, kw_only=True)
class Board:
    """How a board is given what runs a format, and runs it: with Python and numpy, without torch."""

    load: Load
    runtimes: dict[str, Load]
    """package -> loader that takes that very runtime; the better one first"""
    files: tuple[str, ...]
    """of targets/, what this file imports for it"""
    check: str
    """Python that raises where an interpreter lacks a package"""
    requirements: dict[str, tuple[str, ...]]
    """files in devices/ to install, each with options of pip"""
    by_hand: str
    """shell commands that install the same"""


class Export(Protocol):
    """How the formats' `export` is called."""

    def __call__(
        self,
        model: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        path: Path,
        precision: str,
        calibration: np.ndarray | None,
        **labels: Any,
    ) -> ExportInfo:
        """Write a model's artifact, in a process of its own.

        model:       an nn.Module as targets.rewrite.rewrite takes it
        mean, std:   per channel, for pixels in 0..1
        path:        replaced in one step once the artifact is complete; its folder is made
        precision:   one of the format's
        calibration: (N, H, W, 3) uint8 training images of the model's image size, for the precisions that need some
        labels:      labels and about, of the formats that are labelled (see coreml.export)
        Raises ValueError for a model without exact export form, an unknown precision or no fitting calibration images,
        RuntimeUnavailable without the converter.
        """


@dataclass(frozen=True, kw_only=True)
class Format:
    """One file format."""

    name: str
    suffix: str
    precisions: dict[str, Precision]
    """what `export` makes, smallest file first; the last one is what a model comes in without compression"""
    converter: str
    """module whose process `export` works in (see artifact.begin)"""
    converter_s: tuple[float, float]
    """for an estimate: what loading it takes, and each file of a model of 12 blocks (x86-64)"""
    export: Export
    load: Load
    """what runs a file on the machine that exports"""
    minimum_runtime: Callable[[Path], str | None]
    """oldest version of the runtime that runs a file; None if it is not known"""
    layout: str
    """of the input: NHWC, NCHW, or image where the platform's own image type goes in"""
    dtype: str
    """of the input"""
    packages: tuple[str, ...]
    """whose versions decide what `export` makes and `load` computes"""
    board: Board | None = None
    """None: boards do not run it"""
    labelled: bool = False
    """whether `export` also takes labels and about, which its files carry for others than our apps"""

    @property
    def largest(self) -> str:
        """The precision of the dense model that others are compared with."""
        return list(self.precisions)[-1]

    def precision(self, name: str) -> Precision:
        """Raises ValueError for one that the format is not made in."""
        if name not in self.precisions:
            raise ValueError(f"{self.name} has no precision {name!r}; it has {', '.join(self.precisions)}")
        return self.precisions[name]


def _later(module: str, function: str) -> Callable[..., Any]:
    """A function of a module that is imported at the first call. It can be sent to another process."""
    return partial(_call, module, function)


def _call(module: str, function: str, *arguments: Any, **options: Any) -> Any:
    return getattr(import_module(module), function)(*arguments, **options)


def _coreml_delegate(model: Any, *, precision: str, calibration: Any, **options: Any) -> ExportInfo:
    return _call("targets.executorch", "export_coreml_delegate", model, **options)


_BY_HAND = "rm -rf ~/.dap/env* && python3 -m venv ~/.dap/env && ~/.dap/env/bin/pip install numpy pillow ai-edge-litert"

# int8 concerns the weights of the linear layers, one scale per output channel, but for those that are a norm's mean;
# attention's products, norms and the model's input and output stay float32. With weights alone, the layers compute in
# float32; a dynamic layer finds its input's range at each inference, a static one has it from calibration. -tensor: one
# scale per layer. In Core ML int8 weights and palettes are computed with in fp16. TFLite's fp16 is stored so and
# computed with in float32; fp16-compute is computed with in float16 as well, and so is what -fp16 behind an int8 leaves
# in float, where the processor can.
_TFLITE = Format(
    name="tflite",
    suffix=".tflite",
    precisions={
        "int8-dynamic-tensor": REDUCED,
        "int8-dynamic-tensor-fp16": replace(REDUCED, float16_of="int8-dynamic-tensor"),
        # Dynamic layers with a scale per channel came with version 12 of the operator (see tflite.py); as if they had
        # a single scale, 0.2 dB are left of a DeiT-tiny's logits.
        "int8-dynamic": replace(REDUCED, wrong_in=(TFLITE_RUNTIME_2_14,)),
        "int8-weights": REDUCED,
        "int8-static": CALIBRATED,
        "fp16": REDUCED,
        "fp16-compute": replace(REDUCED, float16_of="fp16"),
        "fp32": FULL,
    },
    converter="targets.tflite",
    converter_s=(5, 5),
    export=_later("targets.tflite", "export"),
    load=tflite_program.load,
    minimum_runtime=_later("targets.tflite", "minimum_runtime"),
    layout="NHWC",
    dtype="float32",
    packages=("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
    board=Board(
        load=tflite_program.load_on_board,
        runtimes={name: partial(tflite_program.load, package=name) for name in tflite_program.INTERPRETERS},
        files=("tflite_program.py",),
        check=tflite_program.CHECK,
        requirements={"requirements-board.txt": ()},
        by_hand=_BY_HAND,
    ),
)
_EXECUTORCH = Format(
    name="executorch",
    suffix=".pte",
    # Not fp16: XNNPACK's partitioner takes neither GELU nor a change of dtype there. DeiT-tiny falls apart into 13
    # delegates with 14 operations outside, and an inference takes twice as long as in fp32 (x86-64, one thread).
    precisions={"int8-dynamic": REDUCED, "int8-static": CALIBRATED, "fp32": FULL},
    converter="targets.executorch",
    converter_s=(7, 12),
    export=_later("targets.executorch", "export"),
    load=_later("targets.executorch", "load"),
    minimum_runtime=_later("targets.executorch", "minimum_runtime"),
    layout="NCHW",
    dtype="float32",
    packages=("executorch", "torchao"),
    board=Board(
        load=executorch_program.load,
        runtimes={"executorch": executorch_program.load},
        files=("executorch_program.py", "executorch_program.cpp"),
        check=executorch_program.CHECK,
        requirements={"requirements-board.txt": (), "requirements-board-executorch.txt": ("--no-deps",)},
        by_hand=f"{_BY_HAND} && ~/.dap/env/bin/pip install --no-deps executorch=={executorch_program.RELEASE}",
    ),
)
_EXECUTORCH_COREML = replace(
    _EXECUTORCH,
    name="executorch-coreml",
    suffix=".coreml.pte",
    precisions={"fp16": REDUCED},
    converter_s=(12, 6),
    export=_coreml_delegate,
    packages=("executorch", "coremltools"),
    board=None,
)
_COREML = Format(
    name="coreml",
    suffix=".mlpackage",
    precisions={"palette6": REDUCED, "int8-weights": REDUCED, "fp16": REDUCED, "fp32": FULL},
    converter="targets.coreml",
    converter_s=(7, 4),
    export=_later("targets.coreml", "export"),
    load=_later("targets.coreml", "load"),
    minimum_runtime=_later("targets.coreml", "minimum_runtime"),
    layout="image",
    dtype="uint8",
    packages=("coremltools",),
    labelled=True,
)

FORMATS: dict[str, Format] = {format.name: format for format in (_TFLITE, _EXECUTORCH, _EXECUTORCH_COREML, _COREML)}


def boards() -> dict[str, Board]:
    """What boards run, by format."""
    return {name: format.board for name, format in FORMATS.items() if format.board}

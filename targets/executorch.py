"""ExecuTorch: an nn.Module to a .pte file, and such a file to a callable."""

import operator
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from targets import coreml, executorch_program, mil
from targets.artifact import ExportInfo, Program, RuntimeUnavailable, convert, without_noise
from targets.formats import FORMATS
from targets.graph import COREML, EXECUTORCH, ExportViT
from targets.rewrite import rewrite

FORMAT = FORMATS["executorch"]
MAX_OPS_OUTSIDE = 0
"""operations that the delegate may leave to the portable kernels, which are slow: none, as measured for every precision
(fp32 and int8-static are one delegate each, int8-dynamic about one per block)"""

# Lines that converter and runtime write to the process's stderr whatever happens.
NOISE = (
    r"^\[cpuinfo_utils\.cpp:\d+\]"
    r"|^\[threadpool\.cpp:\d+\] Resetting threadpool"
    r"|register_constant\(\) on Enum subclasses"
    # progress, line by line after a carriage return; no switch turns it off
    r"|^Converting PyTorch Frontend|^Running MIL \w+ pipeline|^\r$"
)
COREML_BACKEND = "CoreMLBackend"
"""name of the delegate in a file's program"""

_loaded: WeakSet[Any] = WeakSet()
"""programs in use; they run on the process's one pool of threads"""


def export(
    model: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
    precision: str = "fp32",
    calibration: np.ndarray | None = None,
) -> ExportInfo:
    """Write `model` as a .pte that maps float32 RGB 0..255 (1, 3, H, W) to float32 logits (1, C), through XNNPACK.

    Arguments and errors as targets.formats.Export has them; ValueError also for a model of which more than
    MAX_OPS_OUTSIDE operations stay outside the delegate.
    """
    known = FORMAT.precision(precision)
    if find_spec("executorch") is None:
        raise RuntimeUnavailable("no ExecuTorch converter: pip install executorch")
    graph = rewrite(model, mean, std, EXECUTORCH)
    calibration = known.images(calibration, graph.image_size)
    return convert(_convert, path, graph, precision, calibration, noise=NOISE)


def export_coreml_delegate(model: nn.Module, *, mean: Sequence[float], std: Sequence[float], path: Path) -> ExportInfo:
    """As `export`, but for Apple's Neural Engine: the whole model in a Core ML delegate that computes in float16.

    The file takes and gives float32 as others do. It runs on Apple's systems only, from iOS coreml.MINIMUM_IOS on:
    the oldest that ExecuTorch's libraries are built for, too (its CMakePresets.json). It is not byte-for-byte
    reproducible: the delegate's identifier is random.
    Raises ValueError as `export` does, RuntimeUnavailable without the converter (it runs on Linux, x86-64, and macOS).
    """
    for package in ("executorch", "coremltools"):
        if find_spec(package) is None:
            raise RuntimeUnavailable(f"no converter to ExecuTorch's Core ML delegate: pip install {package}")
    return convert(_convert_coreml, path, rewrite(model, mean, std, COREML), noise=NOISE)


def lower(module: nn.Module, example: torch.Tensor, path: Path, partitioner: Any = None) -> tuple[int, tuple[str, ...]]:
    """Write any module, as it is, as a .pte that `load` takes.

    example:     an input of the module
    partitioner: of the delegate; XNNPACK's by default
    Returns the number of delegates, and the name of each operation left outside them, once per call of it.
    Imports the converter, half a gigabyte, into this process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the packages
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.backends.xnnpack.utils.configs import get_xnnpack_edge_compile_config
        from executorch.exir import to_edge_transform_and_lower
        from executorch.exir.delegate import executorch_call_delegate
        from torch.fx.traceback import NodeSource

        # Hundreds of passes copy of every node what it came from, all the way back: an eighth of the time. Nothing
        # changes these records, so a copy may be the same one.
        NodeSource.__deepcopy__ = lambda self, _: self  # type: ignore[attr-defined]

        lowered = to_edge_transform_and_lower(
            torch.export.export(module, (example,)),
            partitioner=[partitioner or XnnpackPartitioner()],
            compile_config=get_xnnpack_edge_compile_config(),
        )
        called = [node.target for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
        content = lowered.to_executorch().buffer
    with open(path, "wb") as file:
        file.write(content)
        file.write(executorch_program.seal(content))
    outside = (target for target in called if target not in (executorch_call_delegate, operator.getitem))
    return called.count(executorch_call_delegate), tuple(target.__name__ for target in outside)


def warm_up() -> None:
    """Load the converter and what it loads at its first use. Runs in the converter's process."""
    _quiet()
    with without_noise(NOISE), tempfile.TemporaryDirectory() as folder:
        lower(nn.Linear(1, 1), torch.zeros(1, 1), Path(folder) / "warm_up.pte")


def load(path: Path, threads: int) -> Program:
    """The file, ready to run on `threads` threads.

    ExecuTorch has one pool of threads per process, and replacing it pulls it away from under the programs that run on
    it. So all programs in use have the same number of threads; to change it, let go of them first.
    Raises ValueError for a file that is missing or damaged, or that `export`, `export_coreml_delegate` or `lower` did
    not write, and if other programs in use have another number of threads; RuntimeUnavailable without the runtime, or
    for a file with a Core ML delegate where there is no Core ML.
    """
    runtime_module, pool = _runtime_modules()
    name, installed = runtime()
    path = Path(path)
    needs_coreml = COREML_BACKEND.encode() in executorch_program.sealed_content(path)
    with without_noise(NOISE):
        native = runtime_module.Runtime.get()
        if needs_coreml and not native.backend_registry.is_available(COREML_BACKEND):
            raise RuntimeUnavailable(f"{path.name} needs Core ML, which ExecuTorch has on Apple's systems only")
        if executorch_program.other_threads(pool._threadpool_get_thread_count(), threads, _loaded, path):
            pool._unsafe_reset_threadpool(threads)
        try:
            program = native.load_program(path)
            program.load_method("forward")
        except RuntimeError as error:  # sound, but from an ExecuTorch that this one does not understand
            raise ValueError(f"{path} does not load in {name} {installed} ({error}); export the model again") from error
    _loaded.add(program)

    def run(pixels: torch.Tensor) -> np.ndarray:
        return program.load_method("forward").execute([pixels])[0].numpy()  # loaded once, then remembered

    return Program(prepare=_pixels, run=run, runtime=name, runtime_version=installed)


def runtime() -> tuple[str, str]:
    """Name and version of the runtime that `load` uses. Raises RuntimeUnavailable."""
    _runtime_modules()
    return "executorch", version("executorch")


def minimum_runtime(path: Path) -> str:
    """Version of the converter here, which has just made the file: ExecuTorch promises that no older runtime is needed.

    A .pte itself does not say.
    """
    return version("executorch")


def _runtime_modules() -> tuple[Any, Any]:
    """ExecuTorch's runtime and its native part."""
    try:
        with without_noise(NOISE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it is experimental
            import executorch.runtime
            from executorch.extension.pybindings import portable_lib
    except ImportError as error:
        raise RuntimeUnavailable(f"no ExecuTorch runtime ({error}): pip install executorch") from error
    return executorch.runtime, portable_lib


def _pixels(image: np.ndarray) -> torch.Tensor:
    """RGB (1, H, W, 3) uint8 -> (1, 3, H, W) float32, 0..255."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2), np.float32))


def _convert(path: Path, graph: ExportViT, precision: str, calibration: np.ndarray | None) -> tuple[int, Sequence[str]]:
    """Runs in the converter's process."""
    _quiet()
    module = graph if precision == "fp32" else _quantised(graph, calibration)
    return _within_limit(*lower(module, graph.example(), path))


def _convert_coreml(path: Path, graph: ExportViT) -> tuple[int, Sequence[str]]:
    """Runs in the converter's process."""
    _quiet()
    tools = mil.coremltools()
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    specs = CoreMLBackend.generate_compile_specs(
        compute_unit=tools.ComputeUnit.CPU_AND_NE,  # the GPU is for what the app draws
        minimum_deployment_target=getattr(tools.target, f"iOS{coreml.MINIMUM_IOS}"),
        compute_precision=tools.precision.FLOAT16,  # the only one that the Neural Engine has
    )
    # coremltools leaves files behind in the temporary folder; path's own is removed with all that is in it.
    before, tempfile.tempdir = tempfile.tempdir, str(path.parent)
    try:
        return _within_limit(*lower(graph, graph.example(), path, CoreMLPartitioner(compile_specs=specs)))
    finally:
        tempfile.tempdir = before


def _quiet() -> None:
    """Silence what the packages say at each export, before they are imported."""
    os.environ.setdefault("ET_COREML_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _quantised(graph: ExportViT, calibration: np.ndarray | None) -> nn.Module:
    """The graph with int8 linear layers: static ones with calibration images (N, H, W, 3), dynamic ones without."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def is_no_norm(node: torch.fx.Node) -> bool:
        # The mean of squares of a norm, or a mean that is taken away, decides about everything after it; int8 is too
        # coarse for it.
        module_path, _ = list(node.meta["nn_module_stack"].values())[-1]
        return not module_path.endswith((".mean_square", ".mean"))

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=calibration is None)
    quantizer = XNNPACKQuantizer().set_operator_type(torch.ops.aten.linear.default, config)
    observed = prepare_pt2e(
        torch.export.export(graph, (graph.example(),)).module(), quantizer.set_filter_function(is_no_norm)
    )
    with torch.no_grad():
        # Weights are observed when the model runs, whatever it runs on.
        for pixels in [graph.example()] if calibration is None else (_pixels(image[None]) for image in calibration):
            observed(pixels)
    return convert_pt2e(observed)


def _within_limit(delegates: int, outside: Sequence[str]) -> tuple[int, Sequence[str]]:
    if len(outside) > MAX_OPS_OUTSIDE:
        names = ", ".join(f"{count} x {name}" for name, count in Counter(outside).most_common())
        raise ValueError(
            f"{len(outside)} operations would run outside the delegate, slowly ({names}; {MAX_OPS_OUTSIDE} may): build "
            "the model of layers that it takes, such as GELU, ReLU or SiLU, or use another format"
        )
    return delegates, outside

"""Core ML: an nn.Module to an .mlpackage, and such a package to a callable.

Core ML itself runs on Apple's systems only. Elsewhere a package is evaluated by targets.mil, which says nothing about
time.
"""

import json
import platform
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partialmethod
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from targets import coreml_labels, mil
from targets.artifact import ExportInfo, Program, RuntimeUnavailable, convert, without_noise
from targets.formats import FORMATS
from targets.graph import COREML
from targets.rewrite import rewrite

FORMAT = FORMATS["coreml"]
INPUT, OUTPUT = "image", "logits"

# The oldest system with all that the packages use: palettes and int8 weights exist since iOS 16, and since 17 they are
# decoded while the model runs, not all at once when it is loaded (Core ML Tools guide, "What's New" in optimization).
# iOS 18 would add a fused attention, which coremltools does not emit where the scale is folded into the weights
# (apple/coremltools pull request 2864), and palettes per group of channels: of 16, they take three times as long to
# export and gain 1 dB (DeiT-tiny, random weights), and leave out every layer whose width they do not divide.
MINIMUM_IOS = 17
IOS_OF_SPECIFICATION = {6: 15, 7: 16, 8: 17, 9: 18, 10: 26}

PALETTE_BITS = 6
CODED_OPERATIONS = ("linear", "conv")
"""whose weights are stored as int8 or palettes; the position embedding is not worth the error"""

COMPUTE_DEVICES = {
    "MLNeuralEngineComputeDevice": "neural_engine",
    "MLGPUComputeDevice": "gpu",
    "MLCPUComputeDevice": "cpu",
}


def export(
    model: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
    precision: str = "fp16",
    calibration: np.ndarray | None = None,
    labels: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
) -> ExportInfo:
    """Write `model` as an .mlpackage that maps an RGB image (`image`, H x W) to float32 logits (`logits`, (1, C)).

    labels: names of the C classes: with them the package is a classifier for Xcode and Vision too; () for none
    about:  what its metadata says beside that; "license" goes where Xcode shows it

    Arguments and errors as targets.formats.Export has them; path must end in .mlpackage. No precision here depends on
    activations, whose quantisation needs macOS: calibration is not used.
    The same model gives the same bytes with the same versions of coremltools and PyTorch.
    """
    FORMAT.precision(precision)
    if Path(path).suffix != FORMAT.suffix:
        raise ValueError(f"{path}: a Core ML package's name ends in {FORMAT.suffix}")
    if find_spec("coremltools") is None:
        raise RuntimeUnavailable("no Core ML converter: pip install coremltools")
    graph = rewrite(model, mean, std, COREML)
    noise = mil.NOISE + mil.NOISE_WITHOUT_CORE_ML
    return convert(_convert, path, graph, graph.example(), precision, tuple(labels), dict(about or {}), noise=noise)


def warm_up() -> None:
    """Load the converter. Runs in its process."""
    with without_noise(mil.NOISE + mil.NOISE_WITHOUT_CORE_ML):
        mil.coremltools()


def load(path: Path, threads: int) -> Program:
    """The package, ready to run: by Core ML on macOS, elsewhere by targets.mil's evaluator, which is not timed.

    threads: of no effect; Core ML chooses among its devices, the evaluator runs on PyTorch's threads
    Raises ValueError for a package that is missing, unsound or takes no RGB image, RuntimeUnavailable without
    coremltools.
    """
    name, installed = runtime()
    _check_interface(path)
    if sys.platform == "darwin":
        model = _compiled(path)

        def predict(image: Any) -> np.ndarray:
            return np.asarray(model.predict({INPUT: image})[OUTPUT], dtype=np.float32)

        return Program(prepare=_picture, run=predict, runtime=name, runtime_version=installed)
    evaluator = mil.load(path)
    return Program(
        prepare=lambda image: torch.from_numpy(image).permute(0, 3, 1, 2).float(),
        run=lambda pixels: evaluator(pixels).numpy(),
        runtime=name,
        runtime_version=installed,
        timed=False,
    )


def runtime() -> tuple[str, str]:
    """Name and version of what `load` uses: Core ML's version is that of macOS. Raises RuntimeUnavailable."""
    mil.coremltools()
    if sys.platform == "darwin":
        return "Core ML", platform.mac_ver()[0]
    return "MIL evaluator (torch)", version("coremltools")


def minimum_runtime(path: Path) -> str | None:
    """Oldest system that runs a package, as "iOS 17"; None for a version of the format that is not known here.

    Raises ValueError for what is no sound package, RuntimeUnavailable without coremltools.
    """
    spec, _ = mil.read(path)
    ios = IOS_OF_SPECIFICATION.get(spec.specificationVersion)
    return None if ios is None else f"iOS {ios}"


def compute_units(path: Path) -> dict[str, int]:
    """Operations that Core ML plans on each of neural_engine, gpu and cpu; constants are not counted.

    It counts operations, not their cost, on this Mac: a phone may plan otherwise.
    Raises RuntimeUnavailable elsewhere than on macOS 14.4 or later, ValueError for what is no sound package.
    """
    if sys.platform != "darwin":
        raise RuntimeUnavailable("where operations run is planned by Core ML, which needs macOS")
    tools = mil.coremltools()
    from coremltools.models.compute_plan import MLComputePlan

    _check_interface(path)
    model = _compiled(path)  # the compiled model on disk lives as long as this object
    try:
        plan = MLComputePlan.load_from_path(model.get_compiled_model_path(), tools.ComputeUnit.ALL)
    except (RuntimeError, ValueError) as error:
        raise RuntimeUnavailable(f"Core ML gives no plan here, macOS 14.4 or later does ({error})") from error
    counts = dict.fromkeys(COMPUTE_DEVICES.values(), 0)
    for operation in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            counts[COMPUTE_DEVICES[type(usage.preferred_compute_device).__name__]] += 1
    return counts


def _check_interface(path: Path) -> None:
    """Raises ValueError unless the package has the interface that `export` gives it."""
    description = mil.read(path)[0].description
    inputs, outputs = (
        {feature.name: feature.type for feature in side} for side in (description.input, description.output)
    )
    if set(inputs) != {INPUT} or set(outputs) - {coreml_labels.LABEL, coreml_labels.SHARES} != {OUTPUT}:
        raise ValueError(f"{path} maps {sorted(inputs)} to {sorted(outputs)}; export the model again")
    kind = inputs[INPUT]
    if kind.WhichOneof("Type") != "imageType" or kind.imageType.colorSpace != kind.imageType.RGB:
        raise ValueError(f"{path} takes no RGB image; export the model again")


def _compiled(path: Path) -> Any:
    """An MLModel that Core ML has compiled for this Mac. Raises ValueError."""
    tools = mil.coremltools()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # coremltools only warns if Core ML refuses a package
            model = tools.models.MLModel(str(path), compute_units=tools.ComputeUnit.ALL)
        model.get_compiled_model_path()
    except Exception as error:  # coremltools raises plain Exceptions where Core ML is too old for the package
        raise ValueError(f"Core ML does not load {path} ({error}); export the model again") from error
    return model


def _picture(image: np.ndarray) -> Any:
    """(1, H, W, 3) uint8 -> an image of Pillow."""
    from PIL import Image

    return Image.fromarray(image[0])


def _convert(
    path: Path,
    graph: nn.Module,
    example: torch.Tensor,
    precision: str,
    labels: tuple[str, ...],
    about: dict[str, str],
) -> tuple[None, tuple[str, ...]]:
    """Runs in the converter's process."""
    _hide_progress_bars()
    tools = mil.coremltools()
    target = getattr(tools.target, f"iOS{MINIMUM_IOS}")
    compute = tools.precision.FLOAT32 if precision == "fp32" else tools.precision.FLOAT16
    exported = torch.export.export(graph, (example,)).run_decompositions({})
    with _scratch(path.parent):
        package = tools.convert(
            exported,
            convert_to="mlprogram",
            inputs=[tools.ImageType(name=INPUT, shape=example.shape, color_layout=tools.colorlayout.RGB)],
            outputs=[tools.TensorType(name=OUTPUT, dtype=np.float32)],
            minimum_deployment_target=target,
            compute_precision=compute,
            skip_model_load=True,
        )
        package = _coded(tools.optimize.coreml, package, precision)
        package.save(str(path))
    height, width = example.shape[2:]
    spec = package.get_spec()
    if labels:
        coreml_labels.add(spec, OUTPUT, labels)
    metadata = spec.description.metadata
    metadata.license = about.get("license", "")
    for name in sorted(about.keys() - {"license"}):
        metadata.userDefined[name] = about[name]
    _finish(path, spec, f"Image classifier, weights in {precision}", f"{width} x {height} pixels, RGB")
    return None, ()


@cache
def _hide_progress_bars() -> None:
    """For the rest of this process: coremltools has no switch for them, tqdm's is read when timm imports it."""
    from tqdm import tqdm

    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)


def _coded(optimize: Any, package: Any, precision: str) -> Any:
    """The package with its weights stored as palettes or as int8 with a scale per output channel."""
    if precision == "palette6":
        code, how = optimize.palettize_weights, optimize.OpPalettizerConfig(mode="kmeans", nbits=PALETTE_BITS)
    elif precision == "int8-weights":
        code, how = optimize.linear_quantize_weights, optimize.OpLinearQuantizerConfig(mode="linear_symmetric")
    else:
        return package
    return code(package, optimize.OptimizationConfig(op_type_configs=dict.fromkeys(CODED_OPERATIONS, how)))


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Temporary files go to `folder`.

    coremltools leaves some the size of the model behind for the interpreter's end, which in a process of a pool never
    runs; this folder is removed with all that is in it.
    """
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _finish(path: Path, spec: Any, summary: str, size: str) -> None:
    """Descriptions for Xcode and a byte-for-byte reproducible package, without coremltools' notes for debuggers."""
    metadata = spec.description.metadata
    metadata.shortDescription = f"{summary}. Mean and standard deviation of the pixels are in the graph."
    spec.description.input[0].shortDescription = size
    spec.description.output[0].shortDescription = "one logit per class, before softmax"
    metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    manifest = json.loads((path / "Manifest.json").read_text())
    items = {item["path"]: key for key, item in manifest["itemInfoEntries"].items()}
    # random in coremltools; only their being distinct matters
    names = {key: str(uuid.uuid5(uuid.NAMESPACE_URL, inner)) for inner, key in items.items()}
    manifest["itemInfoEntries"] = {names[key]: item for key, item in manifest["itemInfoEntries"].items()}
    root = manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")
    model = path / "Data" / manifest["itemInfoEntries"][root]["path"]
    model.write_bytes(spec.SerializeToString(deterministic=True))
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)

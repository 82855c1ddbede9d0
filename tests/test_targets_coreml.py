"""The package on disk, evaluated operation by operation; Core ML's own part with a stand-in for Core ML."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_targets_graph import MEAN, STD, WIDTH, Removed, Scatter, Select, randomise, vit
from timm.layers import Attention, Mlp
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torch.nn import functional

from targets import artifact, coreml, mil
from targets.artifact import ExportInfo, RuntimeUnavailable
from targets.formats import FORMATS

SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def pruned() -> Any:
    """Branches that differ in width, and two that are gone."""
    model = vit()
    model.blocks[0].attn = Attention(WIDTH, num_heads=1, attn_head_dim=5, qkv_bias=True)
    model.blocks[0].mlp = Mlp(WIDTH, 9)
    model.blocks[1].attn = Attention(WIDTH, num_heads=3, attn_head_dim=7, qkv_bias=True)
    model.blocks[1].mlp = Removed()
    model.blocks[2].attn = Removed()
    model.blocks[2].mlp = Mlp(WIDTH, 70)
    return randomise(model)


def gated() -> Any:
    """Two head tokens; branches that read and write some channels only."""
    model = vit(VisionTransformerDistilled, depth=2)
    block = model.blocks[0]
    block.norm1 = nn.Sequential(block.norm1, Select([0, 5, 9]))
    block.ls1 = nn.Sequential(nn.Identity(), Scatter([2, 31]))
    block.attn = Attention(3, 1, attn_head_dim=5, dim_out=2, qkv_bias=True)
    return randomise(model)


def wide() -> Any:
    """Its matrices are large enough to be stored as palettes (over 2048 numbers, and quickly so from 10 000 on)."""
    return vit(depth=1, embed_dim=104)


MODELS: dict[str, Callable[[], Any]] = {"dense": lambda: vit(depth=2), "pruned": pruned, "gated": gated, "wide": wide}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ExportInfo]:
    """(model, precision) -> what the export left; each is made once."""
    folder = tmp_path_factory.mktemp("artifacts") / "made" / "by export"
    done: dict[tuple[str, str], ExportInfo] = {}

    def make(name: str, precision: str) -> ExportInfo:
        if (name, precision) not in done:
            path = folder / f"{name} {precision}.mlpackage"
            done[name, precision] = coreml.export(MODELS[name](), mean=MEAN, std=STD, path=path, precision=precision)
        return done[name, precision]

    return make


@pytest.fixture
def package(exported: Callable[[str, str], ExportInfo], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(exported("dense", "fp32").path, tmp_path / "model.mlpackage")


def photos(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 24, 24, 3), dtype=np.uint8)


def snr_db(model: nn.Module, path: Path) -> float:
    images = photos(5)
    pixels = (torch.from_numpy(images[:, 0]).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        want = model(pixels.permute(0, 3, 1, 2)).double().numpy()
    program = coreml.load(path, 1)
    assert not program.timed
    found = np.concatenate([program(image) for image in images])
    assert found.dtype == np.float32
    return 10 * np.log10(np.square(want).sum() / np.square(want - found).sum())


# ---- what is exported


@pytest.mark.parametrize("name", ["dense", "pruned", "gated"])
def test_a_package_computes_what_the_model_computes(exported: Any, name: str) -> None:
    assert snr_db(MODELS[name](), exported(name, "fp32").path) >= 100


@pytest.mark.parametrize(("precision", "floor_db"), [("fp16", 45), ("int8-weights", 28), ("palette6", 18)])
def test_smaller_weights_cost_little(exported: Any, precision: str, floor_db: float) -> None:
    assert floor_db <= snr_db(wide(), exported("wide", precision).path) < 100


def test_precisions_are_listed_by_size(exported: Any) -> None:
    sizes = [exported("wide", precision).size_bytes for precision in FORMATS["coreml"].precisions]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.55 * sizes[2] and sizes[1] < 0.65 * sizes[2] and sizes[2] < 0.55 * sizes[3]


def test_export_says_what_it_wrote(exported: Any) -> None:
    info = exported("dense", "fp32")
    assert info.size_bytes == sum(file.stat().st_size for file in info.path.rglob("*") if file.is_file())
    assert info.sha256 == artifact.sha256_of(info.path)
    assert info.seconds > 0
    inner = sorted(file.relative_to(info.path).as_posix() for file in info.path.rglob("*") if file.is_file())
    assert inner == [SPEC, WEIGHTS, "Manifest.json"]
    assert not [file for file in info.path.parent.iterdir() if file.suffix != ".mlpackage"]


def test_the_package_takes_an_rgb_image(exported: Any) -> None:
    spec, _ = mil.read(exported("dense", "fp16").path)
    (source,), (result,) = spec.description.input, spec.description.output
    image = source.type.imageType
    assert (source.name, image.height, image.width) == ("image", 24, 24)
    assert image.colorSpace == image.RGB
    assert (result.name, list(result.type.multiArrayType.shape)) == ("logits", [1, 5])
    assert result.type.multiArrayType.dataType == result.type.multiArrayType.FLOAT32
    assert "fp16" in spec.description.metadata.shortDescription
    assert source.shortDescription == "24 x 24 pixels, RGB"
    assert coreml.minimum_runtime(exported("dense", "fp16").path) == f"iOS {coreml.MINIMUM_IOS}"


def test_the_same_model_gives_the_same_bytes(exported: Any, tmp_path: Path) -> None:
    again = coreml.export(MODELS["dense"](), mean=MEAN, std=STD, path=tmp_path / "a.mlpackage", precision="fp32")
    assert again.sha256 == exported("dense", "fp32").sha256


def test_a_failed_export_leaves_the_old_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.mlpackage"
    path.mkdir()
    (path / "content").write_bytes(b"old")

    class Here:
        """The converter's process, in this one."""

        def submit(self, function: Any, *arguments: Any) -> Any:
            arguments[1].mkdir()
            (arguments[1] / "content").write_bytes(b"new")
            return SimpleNamespace(result=lambda: (None, (), 1.0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact, "_process", lambda module: Here())
    with monkeypatch.context() as patch:
        patch.setattr(artifact.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            coreml.export(vit(depth=1), mean=MEAN, std=STD, path=path)
    assert (path / "content").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    coreml.export(vit(depth=1), mean=MEAN, std=STD, path=path)
    assert (path / "content").read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_files_go_where_they_are_removed(tmp_path: Path) -> None:
    before = tempfile.gettempdir()
    with coreml._scratch(tmp_path):
        assert Path(tempfile.mkdtemp()).parent == tmp_path
    assert tempfile.gettempdir() == before


@pytest.mark.parametrize(("path", "precision"), [("a.mlpackage", "int4"), ("a.mlmodel", "fp16")])
def test_what_cannot_be_exported_is_refused(tmp_path: Path, path: str, precision: str) -> None:
    with pytest.raises(ValueError, match=r"int4.*fp16|\.mlpackage"):
        coreml.export(vit(depth=1), mean=MEAN, std=STD, path=tmp_path / path, precision=precision)
    assert not list(tmp_path.iterdir())


# ---- what is loaded


@pytest.mark.parametrize("file", [SPEC, WEIGHTS, "Manifest.json"])
@pytest.mark.parametrize(
    "damage",
    [lambda c: b"", lambda c: b"not a model", lambda c: c[: len(c) // 2], lambda c: b"\0" * len(c), None],
    ids=["empty", "text", "truncated", "zeros", "missing"],
)
def test_a_damaged_package_is_refused(package: Path, file: str, damage: Callable[[bytes], bytes] | None) -> None:
    target = package / file
    if damage is None:
        target.unlink()
    else:
        target.write_bytes(damage(target.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.mlpackage.*export the model again"):
        coreml.load(package, 1)


def test_a_flipped_manifest_is_refused_or_means_the_same(package: Path) -> None:
    want = coreml.load(package, 1)(photos(1)[0])
    manifest = package / "Manifest.json"
    content = manifest.read_bytes()
    refused = []
    for position in range(0, len(content), 23):
        manifest.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        try:
            found = coreml.load(package, 1)(photos(1)[0])
        except ValueError as error:
            refused.append(str(error))
        else:
            np.testing.assert_array_equal(found, want)
    assert len(refused) > 5
    assert all("export the model again" in message for message in refused)


@pytest.mark.parametrize("folder", [WEIGHTS.rpartition("/")[0], "Data", "."])
def test_a_missing_folder_is_refused(package: Path, folder: str) -> None:
    shutil.rmtree(package / folder)
    with pytest.raises(ValueError, match=r"model\.mlpackage.*export the model again"):
        coreml.load(package, 1)


def change(package: Path, edit: Callable[[Any], Any]) -> None:
    spec, _ = mil.read(package)
    edit(spec)
    (package / SPEC).write_bytes(spec.SerializeToString())


def test_another_interface_is_refused(package: Path) -> None:
    def bgr(spec: Any) -> None:
        spec.description.input[0].type.imageType.colorSpace = 30

    change(package, bgr)
    with pytest.raises(ValueError, match="no RGB image"):
        coreml.load(package, 1)
    change(package, lambda spec: setattr(spec.description.output[0], "name", "classLabel"))
    with pytest.raises(ValueError, match="classLabel"):
        coreml.load(package, 1)


def test_another_kind_of_model_is_refused(package: Path) -> None:
    change(package, lambda spec: spec.identity.SetInParent())
    with pytest.raises(ValueError, match=r"no ML program.*export the model again"):
        mil.load(package)


def test_another_image_size_is_refused(exported: Any) -> None:
    program = coreml.load(exported("dense", "fp32").path, 1)
    with pytest.raises(ValueError, match=r"\(1, 3, 24, 24\), not \(1, 3, 32, 24\)"):
        program(np.zeros((1, 32, 24, 3), np.uint8))


def test_without_coremltools(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported("dense", "fp32").path
    monkeypatch.setitem(sys.modules, "coremltools", None)
    for call in (lambda: coreml.load(path, 1), coreml.runtime, lambda: coreml.minimum_runtime(path)):
        with pytest.raises(RuntimeUnavailable, match="pip install coremltools"):
            call()
    with pytest.raises(RuntimeUnavailable, match="pip install coremltools"):
        coreml.export(vit(depth=1), mean=MEAN, std=STD, path=tmp_path / "model.mlpackage")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_nothing_is_printed(tmp_path: Path) -> None:
    """In a process of its own: most of the lines come when coremltools is imported."""
    code = f"""
import numpy as np
from test_targets_graph import MEAN, STD, vit
from targets import coreml
info = coreml.export(vit(depth=1), mean=MEAN, std=STD, path={str(tmp_path / "a.mlpackage")!r}, precision="int8-weights")
assert coreml.load(info.path, 1)(np.zeros((1, 24, 24, 3), np.uint8)).shape == (1, 5)
"""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root / "tests", env=environment, capture_output=True)
    assert (done.stdout.decode(), done.stderr.decode(), done.returncode) == ("", "", 0)


def test_real_warnings_go_through(caplog: pytest.LogCaptureFixture) -> None:
    mil.coremltools()
    logger = logging.getLogger("coremltools")
    logger.warning("Torch version 2.14.1+cu130 has not been tested with coremltools. You may run into errors.")
    logger.warning("Failed to load _MLModelProxy: No module named 'coremltools.libcoremlpython'")
    logger.warning("Cannot perform palettization on a as block_sizes is None. Skipped this op.")
    assert [record.message[:27] for record in caplog.records] == ["Cannot perform palettizatio"]


# ---- Core ML, played by a stand-in


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    tools = mil.coremltools()

    class Model:
        """Its logits are the first pixel's channels, and the image's size."""

        def __init__(self, path: str, compute_units: Any) -> None:
            assert compute_units is tools.ComputeUnit.ALL
            self.path = path

        def get_compiled_model_path(self) -> str:
            return f"{self.path}/compiled"

        def predict(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
            image = inputs["image"]
            return {"logits": np.array([[*image.getpixel((0, 0)), *image.size]], np.float64)}

    monkeypatch.setattr(tools.models, "MLModel", Model)
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    monkeypatch.setattr(sys, "platform", "darwin")
    return Model


def test_core_ml_is_used_where_it_is(exported: Any, mac: type) -> None:
    program = coreml.load(exported("dense", "fp16").path, 1)
    assert (program.runtime, program.runtime_version, program.timed) == ("Core ML", "15.5", True)
    image = photos(1)[0]
    logits = program(image)
    assert logits.dtype == np.float32
    assert logits.tolist() == [[*image[0, 0, 0].tolist(), 24, 24]]


def test_what_core_ml_refuses_is_refused(exported: Any, mac: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def warns(*_: Any) -> None:
        warnings.warn("You will not be able to run predict() on this Core ML model.", RuntimeWarning, stacklevel=2)

    def too_old(*_: Any) -> None:
        raise Exception("This model was not loaded or compiled with the Core ML Framework.")

    for method, failing in (("get_compiled_model_path", too_old), ("__init__", lambda self, *_, **__: warns())):
        monkeypatch.setattr(mac, method, failing)
        with pytest.raises(ValueError, match=r"Core ML does not load.*export the model again"):
            coreml.load(exported("dense", "fp16").path, 1)


def test_compute_units(exported: Any, mac: type, monkeypatch: pytest.MonkeyPatch) -> None:
    from coremltools.models import compute_plan

    planned = ["NeuralEngine", "NeuralEngine", "GPU", None, "CPU"]
    block = SimpleNamespace(operations=planned)
    structure = SimpleNamespace(program=SimpleNamespace(functions={"main": SimpleNamespace(block=block)}))

    def usage(operation: str | None) -> Any:
        device = type(f"ML{operation}ComputeDevice", (), {})()
        return None if operation is None else SimpleNamespace(preferred_compute_device=device)

    plan = SimpleNamespace(model_structure=structure, get_compute_device_usage_for_mlprogram_operation=usage)
    asked = []
    loader = SimpleNamespace(load_from_path=lambda path, units: asked.append((path, units.name)) or plan)
    monkeypatch.setattr(compute_plan, "MLComputePlan", loader)
    path = exported("dense", "fp16").path
    assert coreml.compute_units(path) == {"neural_engine": 2, "gpu": 1, "cpu": 1}
    assert asked == [(f"{path}/compiled", "ALL")]


def test_compute_units_need_core_ml(exported: Any) -> None:
    with pytest.raises(RuntimeUnavailable, match="macOS"):
        coreml.compute_units(exported("dense", "fp16").path)


# ---- the evaluator, operation by operation


def evaluator(build: Callable[..., Any], shape: tuple[int, ...], ios: int = 17) -> mil.Evaluator:
    """Of a program of one input; build(mb, x) -> its output."""
    tools = mil.coremltools()
    from coremltools.converters.mil import Builder

    target = getattr(tools.target, f"iOS{ios}")
    program = Builder.program(input_specs=[Builder.TensorSpec(shape=shape)], opset_version=target)(
        lambda x: build(Builder, x)
    )
    return mil.Evaluator(program.functions["main"])


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def tensor(*shape: int) -> Tensor:
    return torch.from_numpy(numbers(*shape))


OPERATIONS: list[tuple[tuple[int, ...], Callable[..., Any], Callable[[Tensor], Tensor]]] = [
    (
        (1, 4, 9, 8),
        lambda mb, x: mb.conv(
            x=x,
            weight=numbers(6, 2, 3, 2),
            strides=[2, 1],
            pad_type="custom",
            pad=[1, 0, 2, 3],
            dilations=[1, 2],
            groups=2,
        ),
        lambda x: functional.conv2d(
            functional.pad(x, (2, 3, 1, 0)), tensor(6, 2, 3, 2), None, (2, 1), 0, (1, 2), groups=2
        ),
    ),
    ((2, 3, 4), lambda mb, x: mb.linear(x=x, weight=numbers(5, 4)), lambda x: x @ tensor(5, 4).T),
    (
        (2, 3, 4),
        lambda mb, x: mb.matmul(x=x, y=numbers(3, 5), transpose_x=True),
        lambda x: x.transpose(1, 2) @ tensor(3, 5),
    ),
    ((2, 3, 4), lambda mb, x: mb.matmul(x=x, y=numbers(5, 4), transpose_y=True), lambda x: x @ tensor(5, 4).T),
    (
        (2, 3, 4),
        lambda mb, x: mb.layer_norm(x=x, axes=[2, 1], gamma=numbers(3, 4), beta=numbers(3, 4) + 1, epsilon=0.3),
        lambda x: functional.layer_norm(x, (3, 4), tensor(3, 4), tensor(3, 4) + 1, 0.3),
    ),
    ((2, 3, 4), lambda mb, x: mb.layer_norm(x=x, axes=[-1]), lambda x: functional.layer_norm(x, (4,), eps=1e-5)),
    ((2, 3, 4), lambda mb, x: mb.softmax(x=x), lambda x: x.softmax(2)),
    ((2, 3, 4), lambda mb, x: mb.softmax(x=x, axis=1), lambda x: x.softmax(1)),
    ((9,), lambda mb, x: mb.gelu(x=x, mode="EXACT"), functional.gelu),
    (
        (9,),
        lambda mb, x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
    ((9,), lambda mb, x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), lambda x: x / (1 + torch.exp(-1.702 * x))),
    ((9,), lambda mb, x: mb.relu(x=x), lambda x: x.clamp(min=0)),
    ((9,), lambda mb, x: mb.silu(x=x), lambda x: x / (1 + torch.exp(-x))),
    ((9,), lambda mb, x: mb.sigmoid(x=x), lambda x: 1 / (1 + torch.exp(-x))),
    ((9,), lambda mb, x: mb.tanh(x=x), lambda x: 2 / (1 + torch.exp(-2 * x)) - 1),
    ((3, 4), lambda mb, x: mb.add(x=numbers(3, 1), y=x), lambda x: tensor(3, 1) + x),
    ((3, 4), lambda mb, x: mb.sub(x=numbers(3, 1), y=x), lambda x: tensor(3, 1) - x),
    ((3, 4), lambda mb, x: mb.mul(x=x, y=2.5), lambda x: 2.5 * x),
    ((3, 4), lambda mb, x: mb.real_div(x=numbers(3, 1), y=x), lambda x: tensor(3, 1) / x),
    ((2, 3, 4), lambda mb, x: mb.reduce_mean(x=x), lambda x: x.sum() / 24),
    ((2, 3, 4), lambda mb, x: mb.reduce_mean(x=x, axes=[0, -1]), lambda x: x.sum((0, 2)) / 8),
    ((2, 3, 4), lambda mb, x: mb.reduce_mean(x=x, axes=[1], keep_dims=True), lambda x: x.sum(1, True) / 3),
    ((9,), lambda mb, x: mb.rsqrt(x=mb.mul(x=x, y=x), epsilon=0.5), lambda x: (x * x + 0.5) ** -0.5),
    ((9,), lambda mb, x: mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"), lambda x: x),
    ((9,), lambda mb, x: mb.identity(x=x), lambda x: x),
    ((2, 3, 4), lambda mb, x: mb.reshape(x=x, shape=[6, -1]), lambda x: x.reshape(6, 4)),
    ((2, 3, 4), lambda mb, x: mb.transpose(x=x, perm=[-1, 0, 1]), lambda x: x.permute(2, 0, 1)),
    ((2, 3), lambda mb, x: mb.expand_dims(x=x, axes=[-1, 1]), lambda x: x[:, None, :, None]),
    ((2, 1, 3, 1), lambda mb, x: mb.squeeze(x=x), lambda x: x[:, 0, :, 0]),
    ((2, 1, 3, 1), lambda mb, x: mb.squeeze(x=x, axes=[-1]), lambda x: x[..., 0]),
    (
        (2, 3),
        lambda mb, x: mb.concat(values=[x, numbers(2, 2), x], axis=-1),
        lambda x: torch.hstack([x, tensor(2, 2), x]),
    ),
    ((2, 6), lambda mb, x: mb.split(x=x, num_splits=3, axis=1)[1], lambda x: x[:, 2:4]),
    ((2, 6), lambda mb, x: mb.split(x=x, split_sizes=[1, 3, 2], axis=-1)[2], lambda x: x[:, 4:]),
    ((4, 7), lambda mb, x: mb.slice_by_index(x=x, begin=[1, -6], end=[3, -1]), lambda x: x[1:3, 1:6]),
    (
        (4, 7),
        lambda mb, x: mb.slice_by_index(
            x=x, begin=[2, 3], end=[3, 5], stride=[1, 2], begin_mask=[True, False], end_mask=[False, True]
        ),
        lambda x: x[:3, 3::2],
    ),
    (
        (4, 7),
        lambda mb, x: mb.slice_by_index(x=x, begin=[2, 3], end=[0, 5], squeeze_mask=[True, False]),
        lambda x: x[2, 3:5],
    ),
    ((4, 7), lambda mb, x: mb.slice_by_size(x=x, begin=[1, 2], size=[2, -1]), lambda x: x[1:3, 2:]),
]


@pytest.mark.parametrize(("shape", "build", "want"), OPERATIONS)
def test_an_operation_is_what_it_is_in_torch(shape: Any, build: Any, want: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(evaluator(build, shape)(x), want(x))


def test_every_operation_is_tested() -> None:
    tested = set().union(*(evaluator(build, shape).kinds for shape, build, _ in OPERATIONS))
    assert set(mil.OPERATIONS) == tested | {"scaled_dot_product_attention"}


@pytest.mark.parametrize("mask", [None, np.array([[True, False, True]]), numbers(2, 3)], ids=["none", "bool", "float"])
def test_attention(mask: np.ndarray | None) -> None:
    arguments = {} if mask is None else {"attn_mask": mask}
    key, value = numbers(1, 3, 4), numbers(1, 3, 5)
    found = evaluator(
        lambda mb, x: mb.scaled_dot_product_attention(query=x, key=key, value=value, **arguments), (1, 2, 4), ios=18
    )(tensor(1, 2, 4))
    scores = tensor(1, 2, 4) @ tensor(1, 3, 4).mT / 2
    if mask is not None:
        scores = scores + torch.tensor(np.where(mask, 0, -np.inf) if mask.dtype == bool else mask).float()
    torch.testing.assert_close(found, scores.softmax(-1) @ tensor(1, 3, 5))


def test_stored_weights_are_decoded() -> None:
    data, scale = np.array([[-3, 5], [127, -128]], np.int8), np.array([[0.5], [0.25]], np.float32)

    def build(mb: Any, x: Any) -> Any:
        return mb.linear(x=x, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale))

    found = evaluator(build, (2, 2), ios=18)
    assert found.kinds == {"linear", "constexpr_blockwise_shift_scale"}
    torch.testing.assert_close(found(torch.eye(2)), torch.tensor([[-1.5, 31.75], [2.5, -32.0]]))


def computed(mb: Any, x: Any) -> Any:
    """Four whole numbers that depend on the input."""
    row = mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 1, 1, 4])
    return mb.cast(x=mb.reshape(x=row, shape=[4]), dtype="int32")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda mb, x: mb.erf(x=x), r"operation erf .* not known"),
        (lambda mb, x: mb.conv(x=x, weight=numbers(4, 2, 3, 3), pad_type="same"), "padding same"),
        (lambda mb, x: mb.conv(x=mb.squeeze(x=x, axes=[0]), weight=numbers(4, 5, 3), pad_type="valid"), "1 dimensions"),
        (lambda mb, x: mb.layer_norm(x=x, axes=[1]), r"layer_norm over axes \[1\]"),
        (lambda mb, x: mb.cast(x=x, dtype="int32"), "cast from torch.float32 to int32"),
        (lambda mb, x: mb.reshape(x=x, shape=[0, -1]), r"reshape to \[0, -1\]"),
        (lambda mb, x: mb.concat(values=[x, x], axis=1, interleave=True), "interleave"),
        (
            lambda mb, x: mb.slice_by_index(x=x, begin=[0, 0, 0, 3], end=[1, 2, 5, 0], stride=[1, 1, 1, -1]),
            r"stride \[1, 1, 1, -1\]",
        ),
        (lambda mb, x: mb.slice_by_size(x=x, begin=computed(mb, x), size=[1, 1, 1, 1]), "begin is not a constant"),
        (lambda mb, x: mb.split(x=x, num_splits=2, axis=1), "2 outputs"),
    ],
)
def test_what_is_not_known_is_refused(build: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluator(build, (1, 2, 5, 6))


def test_an_unknown_argument_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mil.OPERATIONS, "softmax", lambda x: x)
    with pytest.raises(ValueError, match=r"operation softmax .* argument axis"):
        evaluator(lambda mb, x: mb.softmax(x=x, axis=1), (2, 3))
    monkeypatch.setitem(mil.OPERATIONS, "softmax", lambda x, weight: x)
    with pytest.raises(ValueError, match=r"operation softmax .* no argument weight"):
        evaluator(lambda mb, x: mb.softmax(x=x, axis=1), (2, 3))


def test_a_shape_that_is_not_the_programs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mil.OPERATIONS, "transpose", lambda x, *, perm: x)
    with pytest.raises(
        ValueError, match=r"operation transpose .* gives \[\(2, 3\)\] where the program says \[\(3, 2\)\]"
    ):
        evaluator(lambda mb, x: mb.transpose(x=x, perm=[1, 0]), (2, 3))


def test_weights_coded_twice_are_refused() -> None:
    def build(mb: Any, x: Any) -> Any:
        lut = np.array([1, 2], np.float32).reshape(1, 1, 2, 1)
        from coremltools.converters.mil.mil import types

        indices = np.zeros((2, 2), types.nptype_from_builtin(types.uint1))
        palette = mb.constexpr_lut_to_dense(indices=indices, lut=lut)
        return mb.linear(x=x, weight=mb.constexpr_blockwise_shift_scale(data=palette, scale=numbers(2, 1)))

    with pytest.raises(ValueError, match="two steps"):
        evaluator(build, (2, 2), ios=18)


def test_the_manifest_names_what_is_in_the_package(package: Path) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    entries = manifest["itemInfoEntries"]
    assert {f"Data/{entry['path']}" for entry in entries.values()} == {SPEC, WEIGHTS.rpartition("/")[0]}
    assert f"Data/{entries[manifest['rootModelIdentifier']]['path']}" == SPEC


# ---- class labels


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "model.mlpackage"
    about = {"license": "mine", "budget": "{}"}
    labels = [f"class {n}" for n in range(5)]
    coreml.export(MODELS["dense"](), mean=MEAN, std=STD, path=path, precision="fp32", labels=labels, about=about)
    return path


def test_a_labelled_package_is_a_classifier_beside_its_logits(labelled: Path) -> None:
    spec, weights = mil.read(labelled)
    described = spec.description
    assert (described.predictedFeatureName, described.predictedProbabilitiesName) == ("label", "shares")
    assert [one.name for one in described.output] == ["logits", "label", "shares"]
    assert (described.metadata.license, described.metadata.userDefined["budget"]) == ("mine", "{}")
    from coremltools.converters.mil.frontend import milproto

    function = milproto.load.load(spec, spec.specificationVersion, str(weights)).functions["main"]
    classify = function.operations[-1]
    assert classify.op_type == "classify" and classify.probabilities.op.op_type == "softmax"
    assert classify.classes.val == [f"class {n}" for n in range(5)]
    assert [one.name for one in function.outputs] == ["logits", "label", "shares"]


def test_a_labelled_package_computes_what_the_model_computes(labelled: Path) -> None:
    assert snr_db(MODELS["dense"](), labelled) >= 100


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "a", "b", "c", "d"]])
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="5 logits need as many labels, all different"):
        coreml.export(vit(depth=1), mean=MEAN, std=STD, path=tmp_path / "m.mlpackage", labels=labels)

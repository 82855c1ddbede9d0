"""The file on disk, through the real interpreter."""

import hashlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_delegate
import numpy as np
import pytest
import torch
from test_targets_graph import MEAN, STD, WIDTH, Scatter, Select, randomise, vit
from timm.layers import Attention, Mlp
from torch import nn

from pipeline.experiments import bench_batch
from targets import artifact, tflite, tflite_program
from targets.artifact import ExportInfo, RuntimeUnavailable, without_noise
from targets.formats import FORMATS
from targets.graph import TFLITE
from targets.rewrite import rewrite
from targets.validate import parity

# Least dB between the logits of a file and of its model; some below the worse of the two models that are tested.
SNR_DB = {"int8-dynamic-tensor": 26, "int8-dynamic": 31, "int8-weights": 33, "int8-static": 25, "fp16": 59, "fp32": 100}
# This machine computes in float32 what others do in float16: test_targets_float16.py has one that does.
SNR_DB |= {name: SNR_DB[known.float16_of] for name, known in FORMATS["tflite"].precisions.items() if known.float16_of}


@pytest.fixture(scope="module")
def dense() -> Any:
    return vit(depth=2)


@pytest.fixture(scope="module")
def pruned() -> Any:
    model = vit(depth=2)
    block = model.blocks[0]
    block.norm1, block.ls1 = (
        nn.Sequential(block.norm1, Select([0, 5, 9])),
        nn.Sequential(nn.Identity(), Scatter([2, 31])),
    )
    block.attn = Attention(3, 1, attn_head_dim=5, dim_out=2, qkv_bias=True)
    block.mlp = Mlp(WIDTH, 9)
    return randomise(model)


@pytest.fixture(scope="module")
def artifacts(dense: Any, pruned: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportInfo]:
    folder = tmp_path_factory.mktemp("artifacts") / "made" / "by export"
    return {
        name: tflite.export(model, mean=MEAN, std=STD, path=folder / f"{name}.tflite")
        for name, model in (("dense", dense), ("pruned", pruned))
    }


@pytest.fixture(scope="module")
def wide() -> Any:
    """Weights are most of its file."""
    return vit(depth=2, embed_dim=128, num_heads=4, num_classes=50)


@pytest.fixture(scope="module")
def precisions(wide: Any, pruned: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, ExportInfo]]:
    """Every precision's file of two models."""
    folder = tmp_path_factory.mktemp("precisions")
    return {
        name: {
            precision: export(model, folder / f"{name}-{precision}.tflite", precision)
            for precision in FORMATS["tflite"].precisions
        }
        for name, model in (("wide", wide), ("pruned", pruned))
    }


def export(model: nn.Module, path: Path, precision: str, calibration: np.ndarray | None = None) -> ExportInfo:
    if calibration is None:
        calibration = np.random.default_rng(1).integers(0, 256, (64, 24, 24, 3), dtype=np.uint8)
    return tflite.export(model, mean=MEAN, std=STD, path=path, precision=precision, calibration=calibration)


def snr_db(want: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(want).sum() / np.square(want.astype(np.float64) - found).sum()))


def run(path: Path, count: int = 32) -> np.ndarray:
    predict = tflite_program.load(path, 1)
    return np.concatenate([predict(image) for image in photos(count)])


def conversions() -> int:
    """Runs in the converter's process: how many models it has converted."""
    return tflite._float_model.cache_info().misses


def torch_logits(model: nn.Module, images: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        return model(((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)).numpy()


def photos(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 24, 24, 3), dtype=np.uint8)


def test_the_runtime_computes_what_torch_computes(artifacts: Any, dense: Any, pruned: Any) -> None:
    for name, model in (("dense", dense), ("pruned", pruned)):
        found = run(artifacts[name].path, 8)
        want = torch_logits(model, photos(8)[:, 0])
        assert snr_db(want, found) >= 100
        assert parity(want, found).top1_agreement == 1


@pytest.mark.parametrize("model", ["wide", "pruned"])
@pytest.mark.parametrize("precision", FORMATS["tflite"].precisions)
def test_every_tensor_has_the_batch_that_gpu_delegates_take(precision: str, model: str, precisions: Any) -> None:
    assert not gpu_delegate.other_batches(precisions[model][precision].path)


@pytest.mark.parametrize("model", ["wide", "pruned"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_gpu_delegates_know_every_operation(precision: str, model: str, precisions: Any) -> None:
    """Of int8 files they don't: layers with a scale per channel are of a newer version, integers are no textures."""
    assert not gpu_delegate.refused(precisions[model][precision].path)


def test_the_converters_own_ways_are_not_for_gpu_delegates(dense: Any, tmp_path: Path) -> None:
    """So that the two tests above can fail."""
    graph = io.BytesIO()
    torch.save(rewrite(dense, MEAN, STD, replace(TFLITE, attention="HNK")), graph)
    path = tmp_path / "before.tflite"
    artifact.convert(bench_batch._before, path, graph.getvalue(), "fp32", noise=tflite.NOISE)
    assert {name for name, _ in gpu_delegate.other_batches(path)} >= {"BATCH_MATMUL", "FULLY_CONNECTED", "ADD"}
    assert any("MEAN" in reason for reason in gpu_delegate.refused(path))


def test_export_says_what_it_wrote(artifacts: Any) -> None:
    info = artifacts["dense"]
    content = info.path.read_bytes()
    assert content[4:8] == b"TFL3"
    assert info.size_bytes == len(content)
    assert info.sha256 == hashlib.sha256(content).hexdigest()
    assert info.seconds > 0
    assert sorted(p.name for p in info.path.parent.iterdir()) == ["dense.tflite", "pruned.tflite"]
    assert artifacts["pruned"].size_bytes < info.size_bytes


def test_a_failed_export_leaves_the_old_file(tmp_path: Path, dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    class Here:
        """The converter's process, in this one."""

        def submit(self, function: Any, *arguments: Any) -> Any:
            arguments[1].write_bytes(b"new")
            return type("Done", (), {"result": lambda _: (None, (), 1.0)})()

    monkeypatch.setattr(artifact, "_process", lambda module: Here())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifact.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            tflite.export(dense, mean=MEAN, std=STD, path=path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    tflite.export(dense, mean=MEAN, std=STD, path=path)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    "damage",
    [lambda c: b"", lambda c: b"not a model", lambda c: c[: len(c) // 2], lambda c: c[:100], lambda c: b"\0" * len(c)],
)
def test_a_damaged_file_is_refused(artifacts: Any, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(damage(artifacts["dense"].path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.tflite.*export the model again"):
        tflite_program.load(path, 1)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        tflite_program.load(tmp_path / "model.tflite", 1)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        for module in (package, f"{package}.interpreter"):
            monkeypatch.setitem(sys.modules, module, None)


def test_missing_runtime_and_converter_say_so(
    artifacts: Any, dense: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "ai_edge_litert", "tflite_runtime", "litert_torch")
    with pytest.raises(RuntimeUnavailable, match="ai-edge-litert"):
        tflite_program.load(artifacts["dense"].path, 1)
    with pytest.raises(RuntimeUnavailable, match="litert-torch"):
        tflite.export(dense, mean=MEAN, std=STD, path=tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_only_known_noise_is_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with without_noise(tflite.NOISE):
            os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: out of cheese\n")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert capfd.readouterr().err == "ERROR: out of cheese\n"


@pytest.mark.parametrize("model", ["wide", "pruned"])
@pytest.mark.parametrize("precision", FORMATS["tflite"].precisions)
def test_every_precision_is_near_the_model(
    precision: str, model: str, precisions: Any, request: pytest.FixtureRequest
) -> None:
    want = torch_logits(request.getfixturevalue(model), photos(32)[:, 0])
    assert snr_db(want, run(precisions[model][precision].path)) >= SNR_DB[precision]


@pytest.mark.parametrize("precision", FORMATS["tflite"].precisions)
def test_input_and_output_are_float32(precision: str, precisions: Any) -> None:
    interpreter = tflite_program.find_interpreter()[0](model_path=str(precisions["wide"][precision].path))
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert source["dtype"] == result["dtype"] == np.float32
    assert [source["shape"].tolist(), result["shape"].tolist()] == [[1, 24, 24, 3], [1, 50]]


def test_the_smallest_file_comes_first(precisions: Any) -> None:
    sizes = [precisions["wide"][precision].size_bytes for precision in FORMATS["tflite"].precisions]
    assert sizes == sorted(sizes)
    shares = {precision: size / sizes[-1] for precision, size in zip(FORMATS["tflite"].precisions, sizes, strict=True)}
    assert 0.5 < shares.pop("fp16") <= shares.pop("fp16-compute") < 0.6
    assert shares.pop("fp32") == 1
    assert max(shares.values()) < 0.4


def test_calibration_sets_the_ranges(wide: Any, precisions: Any, tmp_path: Path) -> None:
    want = torch_logits(wide, photos(32)[:, 0])
    black = export(wide, tmp_path / "black.tflite", "int8-static", np.zeros((4, 24, 24, 3), np.uint8))
    assert snr_db(want, run(black.path)) < snr_db(want, run(precisions["wide"]["int8-static"].path)) - 3


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, r"training set, \(N, 24, 24, 3\) uint8"),
        (np.zeros((0, 24, 24, 3), np.uint8), r"training set, \(N, 24, 24, 3\) uint8"),
        (np.zeros((2, 32, 32, 3), np.uint8), r"\(2, 32, 32, 3\) uint8; resize .* \(N, 24, 24, 3\) uint8"),
        (np.zeros((24, 24, 3), np.uint8), r"\(24, 24, 3\) uint8; resize"),
        (np.zeros((2, 24, 24, 3), np.float32), r"\(2, 24, 24, 3\) float32; resize"),
    ],
)
def test_static_needs_fitting_calibration_images(
    calibration: np.ndarray | None, message: str, dense: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tflite.export(
            dense, mean=MEAN, std=STD, path=tmp_path / "m.tflite", precision="int8-static", calibration=calibration
        )
    assert not list(tmp_path.iterdir())


def test_an_unknown_precision_is_refused(dense: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no precision 'int4'; it has .*int8-weights"):
        tflite.export(dense, mean=MEAN, std=STD, path=tmp_path / "m.tflite", precision="int4")


def test_a_model_is_converted_once(tmp_path: Path) -> None:
    process = artifact._process(tflite.__name__)
    before = process.submit(conversions).result()
    # They differ in nothing that a file of weights would show.
    models = {name: vit(depth=1, act_layer=act) for name, act in (("gelu", nn.GELU), ("relu", nn.ReLU))}
    for count, (name, model) in enumerate(models.items(), 1):
        for precision in ("fp32", "int8-weights"):
            info = export(model, tmp_path / f"{name}-{precision}.tflite", precision)
            assert snr_db(torch_logits(model, photos(32)[:, 0]), run(info.path)) >= SNR_DB[precision]
        assert process.submit(conversions).result() == before + count


@pytest.mark.slow
def test_the_quantiser_is_silent(dense: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    artifact._process(tflite.__name__).shutdown()
    artifact._process.cache_clear()  # the next one writes to what is captured here
    for precision in ("int8-static", "int8-dynamic", "fp16"):
        export(dense, tmp_path / "model.tflite", precision)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("precision", FORMATS["tflite"].precisions)
def test_the_file_says_which_runtime_it_needs(precision: str, precisions: Any) -> None:
    wanted = "2.17.0" if FORMATS["tflite"].precisions[precision].wrong_in else "2.9.0"
    assert tflite.minimum_runtime(precisions["wide"][precision].path) == wanted


@pytest.mark.parametrize("precision", FORMATS["tflite"].precisions)
def test_a_file_lets_float16_be_computed_with_if_its_precision_says_so(precision: str, precisions: Any) -> None:
    path, known = precisions["wide"][precision].path, FORMATS["tflite"].precisions[precision]
    content = path.read_bytes()
    assert content.count(b"reduced_precision_support") == content.count(b"fp16accfp16") == bool(known.float16_of)
    if known.float16_of:  # and stores what the other one does, but for the pixels' scale
        assert 0 <= path.stat().st_size - precisions["wide"][known.float16_of].path.stat().st_size < 4000
        assert snr_db(run(precisions["wide"][known.float16_of].path), run(path)) >= SNR_DB[precision]


def test_a_file_that_does_not_say_needs_an_unknown_runtime(precisions: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    content = precisions["wide"]["fp32"].path.read_bytes()
    path.write_bytes(content.replace(b"min_runtime_version", b"max_runtime_version"))
    assert tflite.minimum_runtime(path) is None


@pytest.mark.parametrize("content", [None, b"not a model", b"\x1c\0\0\0TFL3", 100], ids=str)
def test_no_runtime_is_read_from_a_damaged_file(content: bytes | int | None, precisions: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    if isinstance(content, int):
        content = precisions["wide"]["fp32"].path.read_bytes()[:content]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.tflite is .*export the model again"):
        tflite.minimum_runtime(path)

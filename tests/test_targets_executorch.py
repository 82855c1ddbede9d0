"""The file on disk, through the real runtime, on this machine as a device."""

import gc
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_targets_graph import MEAN, STD, Removed, Scatter, Select, randomise, vit
from test_targets_tflite import photos, torch_logits
from timm.layers import Attention, Mlp
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from targets import executorch, executorch_program, mil
from targets.artifact import ExportInfo, Program, RuntimeUnavailable
from targets.formats import FORMATS
from targets.graph import EXECUTORCH
from targets.rewrite import rewrite

WIDTH = 64
"""enough that weights, not the graph, are most of a file"""


@pytest.fixture(scope="module")
def dense() -> Any:
    return vit(depth=1, embed_dim=WIDTH)


@pytest.fixture(scope="module")
def pruned() -> Any:
    """Two heads at the end; channels selected and scattered; other widths; branches gone, one in each way."""
    model = vit(VisionTransformerDistilled, depth=3)
    gated, narrow, last = model.blocks
    gated.norm1, gated.ls1 = nn.Sequential(gated.norm1, Select([0, 5, 9])), nn.Sequential(gated.ls1, Scatter([2, 31]))
    gated.attn = Attention(3, 1, attn_head_dim=5, dim_out=2, qkv_bias=True)
    gated.mlp = Removed()
    narrow.attn = Attention(32, 3, attn_head_dim=7, qkv_bias=True)
    narrow.mlp = Mlp(32, 9)
    last.attn = Removed()
    return randomise(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts") / "made" / "by export"


@pytest.fixture(scope="module")
def artifacts(dense: Any, pruned: Any, folder: Path) -> dict[str, ExportInfo]:
    return {
        name: executorch.export(model, mean=MEAN, std=STD, path=folder / f"{name}.pte")
        for name, model in (("dense", dense), ("pruned", pruned))
    }


@pytest.fixture(scope="module")
def small(dense: Any, folder: Path) -> dict[str, ExportInfo]:
    """The int8 precisions of the dense model."""
    return {
        precision: executorch.export(
            dense,
            mean=MEAN,
            std=STD,
            path=folder / f"{precision}.pte",
            precision=precision,
            calibration=photos(8)[:, 0] if "static" in precision else None,
        )
        for precision in FORMATS["executorch"].precisions
        if precision != "fp32"
    }


@pytest.fixture(scope="module")
def coreml_delegate(dense: Any, folder: Path) -> ExportInfo:
    return executorch.export_coreml_delegate(dense, mean=MEAN, std=STD, path=folder / "apple.pte")


def snr_db(program: Program, model: nn.Module) -> float:
    want = torch_logits(model, photos(8)[:, 0])
    found = np.concatenate([program(image) for image in photos(8)])
    return float(10 * np.log10(np.square(want).sum() / np.square(want - found).sum()))


@pytest.mark.parametrize("name", ["dense", "pruned"])
def test_the_runtime_computes_what_torch_computes(artifacts: Any, request: pytest.FixtureRequest, name: str) -> None:
    info = artifacts[name]
    assert snr_db(executorch.load(info.path, 1), request.getfixturevalue(name)) >= 100
    assert (info.delegates, info.ops_outside) == (1, ())


def test_export_says_what_it_wrote(artifacts: Any) -> None:
    info = artifacts["dense"]
    content = info.path.read_bytes()
    assert content[4:6] == b"ET"
    assert info.size_bytes == len(content)
    assert info.sha256 == hashlib.sha256(content).hexdigest()
    assert info.seconds > 0
    assert {p.suffix for p in info.path.parent.iterdir()} == {FORMATS["executorch"].suffix}


def test_input_and_output_of_all_precisions_are_the_same(artifacts: Any, small: Any) -> None:
    for info in (artifacts["dense"], *small.values()):
        program = executorch.load(info.path, 1)
        pixels = program.prepare(photos(1)[0])
        assert (pixels.shape, pixels.dtype) == ((1, 3, 24, 24), torch.float32)
        assert torch.equal(pixels[0, :, 5, 7], torch.from_numpy(photos(1)[0, 0, 5, 7]).float())
        logits = program.run(pixels)
        assert (logits.shape, logits.dtype) == ((1, 5), np.float32)


def test_int8_is_smaller_and_close(artifacts: Any, small: Any, dense: Any) -> None:
    for info in small.values():
        assert snr_db(executorch.load(info.path, 1), dense) >= 25
        assert info.size_bytes < 0.5 * artifacts["dense"].size_bytes
        assert info.ops_outside == ()
    assert small["int8-static"].delegates == 1
    assert small["int8-dynamic"].delegates >= 1
    sizes = [info.size_bytes for info in (*small.values(), artifacts["dense"])]
    assert sizes == sorted(sizes), "precisions must be in order of size"


def test_all_linear_layers_but_the_norms_are_quantised(dense: Any) -> None:
    graph = rewrite(dense, MEAN, STD, EXECUTORCH)
    quantised: Any = executorch._quantised(graph, None)
    int8 = {}
    for node in quantised.graph.nodes:
        if node.target == torch.ops.aten.linear.default:
            layer, _ = list(node.meta["nn_module_stack"].values())[-1]
            int8[layer] = "dequantize_per_channel" in str(node.args[1].target)
    assert int8 == {
        name: not name.endswith("mean_square")
        for name, module in graph.named_modules()
        if isinstance(module, nn.Linear)
    }


@pytest.mark.parametrize(
    "images",
    [
        None,
        np.zeros((0, 24, 24, 3), np.uint8),
        np.zeros((2, 32, 24, 3), np.uint8),
        np.zeros((2, 3, 24, 24), np.uint8),
        np.zeros((24, 24, 3), np.uint8),
        np.zeros((2, 24, 24, 3), np.float32),
    ],
    ids=["missing", "empty", "size", "layout", "single", "dtype"],
)
def test_calibration_images_that_do_not_fit_are_refused(dense: Any, tmp_path: Path, images: Any) -> None:
    with pytest.raises(ValueError, match=r"calibration images.* \(N, 24, 24, 3\) uint8"):
        executorch.export(
            dense, mean=MEAN, std=STD, path=tmp_path / "m.pte", precision="int8-static", calibration=images
        )
    assert not list(tmp_path.iterdir())


def test_an_unknown_precision_is_refused(dense: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"int4.*int8-dynamic"):
        executorch.export(dense, mean=MEAN, std=STD, path=tmp_path / "m.pte", precision="int4")


def test_a_model_as_it_is_falls_apart(dense: Any, tmp_path: Path) -> None:
    delegates, outside = executorch.lower(dense, torch.zeros(1, 3, 24, 24), tmp_path / "stock.pte")
    assert delegates > 1
    assert outside.count("aten.native_layer_norm.default") == 3
    program = executorch.load(tmp_path / "stock.pte", 1)
    image = photos(1)[0]
    normalised = (torch.from_numpy(image).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    found = program.run(normalised.permute(0, 3, 1, 2).contiguous())
    np.testing.assert_allclose(found, torch_logits(dense, image), atol=1e-4)


def test_operations_outside_the_delegate_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"old")
    model = vit(depth=2, act_layer=nn.Softplus)
    with pytest.raises(ValueError, match=r"2 x aten\.(\w+)\.default.*another format"):
        executorch.export(model, mean=MEAN, std=STD, path=path)
    assert path.read_bytes() == b"old"


def flip(content: bytes, at: float) -> bytes:
    index = int(at * (len(content) - 1))
    return content[:index] + bytes([content[index] ^ 0x10]) + content[index + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda c: b"",
    "text": lambda c: b"not a model",
    "half": lambda c: c[: len(c) // 2],
    "start": lambda c: c[:100],
    "last byte missing": lambda c: c[:-1],
    "zeros": lambda c: b"\0" * len(c),
    "noise": lambda c: np.random.default_rng(0).bytes(len(c)),
    "noise after the header": lambda c: c[:64] + np.random.default_rng(0).bytes(len(c) - 64),
    "more": lambda c: c + b"\0",
    "other kind": lambda c: b"\x1c\0\0\0TFL3" + c[8:],
    **{f"bit at {at}": lambda c, at=at: flip(c, at) for at in (0, 0.0005, 0.02, 0.05, 0.3, 0.9, 1)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused(artifacts: Any, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(damage(artifacts["dense"].path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.pte.*export the model again"):
        executorch.load(path, 1)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        executorch.load(tmp_path / "model.pte", 1)


def test_what_the_runtime_refuses_is_told(artifacts: Any, tmp_path: Path) -> None:
    content = artifacts["dense"].path.read_bytes()
    cut = content[: len(content) // 2]
    path = tmp_path / "model.pte"
    path.write_bytes(cut + executorch_program.seal(cut))
    with pytest.raises(ValueError, match=r"model\.pte does not load in executorch \d.*export the model again"):
        executorch.load(path, 1)


def test_threads_are_those_of_the_process(artifacts: Any, dense: Any) -> None:
    from executorch.extension.pybindings import portable_lib

    path = artifacts["dense"].path
    for threads in (2, 1, 3):
        program = executorch.load(path, threads)
        assert portable_lib._threadpool_get_thread_count() == threads
        assert snr_db(program, dense) >= 100
        with pytest.raises(ValueError, match=f"{threads} threads are in use.*with 4"):
            executorch.load(path, 4)
        assert snr_db(program, dense) >= 100, "the one in use must go on working"
        del program


def test_programs_side_by_side(artifacts: Any, dense: Any, pruned: Any) -> None:
    first, second = executorch.load(artifacts["dense"].path, 2), executorch.load(artifacts["pruned"].path, 2)
    gc.collect()
    before = first(photos(1)[0])
    second(photos(1)[0])
    np.testing.assert_array_equal(before, first(photos(1)[0]))
    kept = before.copy()
    first(photos(2)[1])
    np.testing.assert_array_equal(before, kept, "the logits of one inference must outlive the next")
    assert snr_db(first, dense) >= 100 and snr_db(second, pruned) >= 100


def test_missing_runtime_and_converter_say_so(
    artifacts: Any, dense: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "coremltools", None)
        with pytest.raises(RuntimeUnavailable, match="pip install coremltools"):
            executorch.export_coreml_delegate(dense, mean=MEAN, std=STD, path=tmp_path / "m.pte")
    for module in ("executorch", "executorch.runtime"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (executorch.runtime, lambda: executorch.load(artifacts["dense"].path, 1)):
        with pytest.raises(RuntimeUnavailable, match=r"no ExecuTorch runtime.*pip install executorch"):
            call()
    with pytest.raises(RuntimeUnavailable, match=r"no ExecuTorch converter.*pip install executorch"):
        executorch.export(dense, mean=MEAN, std=STD, path=tmp_path / "m.pte")
    assert not list(tmp_path.iterdir())


def test_the_runtime_has_a_version() -> None:
    name, installed = executorch.runtime()
    assert name == "executorch"
    assert installed[0].isdigit()


@pytest.mark.slow
def test_export_and_load_are_silent(tmp_path: Path) -> None:
    """In a process of its own: most lines come at the first use only."""
    script = f"""
if __name__ == "__main__":
    from pathlib import Path
    from test_targets_graph import MEAN, STD, vit
    from targets import executorch
    model, path = vit(depth=1), Path({str(tmp_path / "silent.pte")!r})
    executorch.export_coreml_delegate(model, mean=MEAN, std=STD, path=path)
    executorch.export(model, mean=MEAN, std=STD, path=path, precision="int8-dynamic")
    executorch.load(path, 1)
"""
    (tmp_path / "silent.py").write_text(script)
    result = subprocess.run(
        [sys.executable, tmp_path / "silent.py"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(str(Path(__file__).parents[up]) for up in (0, 1))},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_coreml_delegate_takes_the_whole_model(coreml_delegate: ExportInfo) -> None:
    assert (coreml_delegate.delegates, coreml_delegate.ops_outside) == (1, ())
    with pytest.raises(RuntimeUnavailable, match=r"apple\.pte needs Core ML"):
        executorch.load(coreml_delegate.path, 1)


def test_the_coreml_delegate_computes_what_torch_computes(
    coreml_delegate: ExportInfo, dense: Any, tmp_path: Path
) -> None:
    """By evaluating the Core ML package that the delegate's data holds."""
    from executorch.backends.apple.coreml import executorchcoreml
    from executorch.exir._serialize._program import deserialize_pte_binary

    content = coreml_delegate.path.read_bytes()
    (data,) = deserialize_pte_binary(content).program.backend_delegate_data
    assert executorchcoreml.unflatten_directory_contents(bytes(data.data), str(tmp_path))
    (package,) = tmp_path.rglob("*.mlpackage")
    assert "FLOAT16" in str(mil.read(package)[0])
    evaluator = mil.load(package)
    program = Program(
        prepare=executorch._pixels,
        run=lambda pixels: evaluator(pixels).numpy(),
        runtime="MIL evaluator",
        runtime_version="",
    )
    assert snr_db(program, dense) >= 50

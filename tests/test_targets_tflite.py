"""The file on disk, through the real interpreter, on this machine as a device."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_targets_graph import MEAN, STD, WIDTH, Scatter, Select, randomise, vit
from timm.layers import Attention, Mlp
from torch import nn

from targets import artifact, tflite
from targets.artifact import ExportInfo, RuntimeUnavailable, without_noise
from targets.devices import DeviceRun, local
from targets.validate import parity


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


def torch_logits(model: nn.Module, images: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        return model(((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)).numpy()


def photos(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 24, 24, 3), dtype=np.uint8)


def test_the_runtime_computes_what_torch_computes(artifacts: Any, dense: Any, pruned: Any) -> None:
    for name, model in (("dense", dense), ("pruned", pruned)):
        predict = tflite.load(artifacts[name].path, 1)
        found = np.concatenate([predict(image) for image in photos(8)])
        want = torch_logits(model, photos(8)[:, 0])
        signal, error = np.square(want).sum(), np.square(want - found).sum()
        assert 10 * np.log10(signal / error) >= 100
        assert parity(want, found).top1_agreement == 1


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
        tflite.load(path, 1)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        tflite.load(tmp_path / "model.tflite", 1)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        for module in (package, f"{package}.interpreter"):
            monkeypatch.setitem(sys.modules, module, None)


def test_missing_runtime_and_converter_say_so(
    artifacts: Any, dense: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "ai_edge_litert", "tflite_runtime", "litert_torch")
    with pytest.raises(RuntimeUnavailable, match="ai-edge-litert"):
        tflite.load(artifacts["dense"].path, 1)
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


def test_run_on_this_machine(artifacts: Any, dense: Any, pruned: Any) -> None:
    images = photos(5)
    own = torch_logits(dense, images[:, 0]).argmax(1)
    labels = [int(own[0]), int(own[1]), int(own[2]), (int(own[3]) + 1) % 5, int(own[4])]
    result = local.run(
        {name: info.path for name, info in artifacts.items()},
        zip(images, labels, strict=True),
        threads=1,
        seconds=0.01,
        min_samples=4,
        warmup=1,
    )
    np.testing.assert_allclose(result.logits["pruned"], torch_logits(pruned, images[:, 0]), atol=1e-4)
    assert result.top1("dense") == pytest.approx(4 / 5)
    sent = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert sent["labels"] == labels
    assert len(sent["artifacts"]["dense"]["samples_ms"]) == sent["artifacts"]["dense"]["latency_ms"]["samples"] >= 4
    assert set(sent["device"]) == {"device", "os", "cpu", "cores", "arch", "runtime", "runtime_version"}
    assert all(sent["device"].values())


def test_logits_that_are_not_finite_are_wrong(artifacts: Any) -> None:
    result = local.run(
        {"dense": artifacts["dense"].path}, [(photos(1)[0], 0)], threads=1, seconds=0, min_samples=1, warmup=0
    )
    broken = {"dense": np.full((1, 5), np.nan, np.float32)}
    run = DeviceRun(device={}, threads=1, labels=result.labels, logits=broken, latency=result.latency)
    assert run.top1("dense") == 0


def test_nothing_to_run_is_refused(artifacts: Any) -> None:
    with pytest.raises(ValueError, match="at least one"):
        local.run({"dense": artifacts["dense"].path}, [], threads=1, seconds=0, min_samples=1, warmup=0)

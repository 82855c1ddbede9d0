"""TFLite files on LiteRT's GPU delegate for WebGPU, on a graphics processor of software; no real one has been tried."""

from pathlib import Path
from typing import Any

import gpu_delegate
import numpy as np
import pytest
from test_targets_graph import MEAN, STD, pruned, vit
from test_targets_tflite import photos, snr_db, torch_logits

from targets import tflite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not gpu_delegate.SWIFTSHADER.joinpath("libvk_swiftshader.so").exists(),
                       reason="no chromium with SwiftShader"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        (vit(depth=2), "fp32"),
        (vit(depth=2), "fp16"),
        (pruned("CLIP"), "fp32"),
        (pruned("mean, norm in front"), "fp32"),
        (pruned("attention pooling with a prefix"), "fp32"),
        (pruned("SwiGLU"), "fp32"),
    ],
    ids=["plain", "plain-fp16", "CLIP", "mean", "pool", "SwiGLU"],
)
def test_the_delegate_computes_what_torch_computes(model: Any, precision: str, tmp_path: Path) -> None:
    path, image = tmp_path / "model.tflite", photos(1)[0]
    tflite.export(model, mean=MEAN, std=STD, path=path, precision=precision)
    found = gpu_delegate.on_webgpu(path, image, 5, tmp_path)
    assert snr_db(torch_logits(model, image)[0], found) >= (100 if precision == "fp32" else 55)
    assert np.isfinite(found).all()

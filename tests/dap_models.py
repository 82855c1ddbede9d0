"""Tiny seeded ViTs and a short pruning run, for the tests of dap."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.activations import GELUTanh, QuickGELU
from timm.layers.mlp import GluMlp
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dap import MaskUpdate, Method, architecture_of, load_compact, save_compact

CLASSES = 5
torch.set_num_threads(1)  # tensors this small take longer to share out than to compute


# What timm has besides DeiT, as changes to tiny_vit; the heads of most read no class token.
OTHERS: dict[str, dict[str, Any]] = {
    "mean": {"class_token": False, "global_pool": "avg"},
    "mean, norm in front": {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True, "reg_tokens": 1},
    "mean beside a class token": {"global_pool": "avg"},
    "registers only": {"class_token": False, "global_pool": "avg", "reg_tokens": 2, "no_embed_class": True},
    "SigLIP": {"class_token": False, "global_pool": "map", "act_layer": GELUTanh},
    "attention pooling with a prefix": {"global_pool": "map", "reg_tokens": 1, "mlp_ratio": 3.55},
    "CLIP": {"pre_norm": True, "act_layer": QuickGELU},
    "any size": {"dynamic_img_size": True},
    "SwiGLU": {"mlp_layer": partial(GluMlp, gate_last=False), "act_layer": torch.nn.SiLU, "init_values": 0.1},
    "GLU, gate last": {"mlp_layer": GluMlp, "act_layer": torch.nn.SiLU},
}


def tiny_vit(*, distilled: bool = False, seed: int = 0, **changes: Any) -> VisionTransformer:
    """A two-layer ViT of width 24 with 2 heads on 16 x 16 images in 4 x 4 patches; all weights and biases random."""
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": CLASSES}
    generator = torch.Generator().manual_seed(seed)
    model = (VisionTransformerDistilled if distilled else VisionTransformer)(**{**args, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            # biases are 0 and LayerScales equal after timm's initialisation, which would hide mistakes
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def batches(count: int, size: int = 8, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Random images and class indices."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 16, 16, generator=generator), torch.randint(0, CLASSES, (size,), generator=generator))
        for _ in range(count)
    ]


def train(
    model: VisionTransformer, pruner: Method, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]
) -> list[MaskUpdate]:
    """The loop of dap.Method. Returns the updates."""
    updates = []
    model.train()
    for images, targets in data:
        loss = F.cross_entropy(model(images), targets)
        extra = pruner.loss(targets)
        (loss if extra is None else loss + extra).backward()
        update = pruner.step(targets)
        if update is not None:
            updates.append(update)
        optimizer.step()
        optimizer.zero_grad()
    return updates


def logits(model: VisionTransformer, seed: int = 2) -> Tensor:
    """Logits in eval mode for a few random images; the mode is put back."""
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    training = model.training
    model.eval()
    with torch.no_grad():
        out = model(images)
    model.train(training)
    return out


def check_survives(small: VisionTransformer, folder: Path) -> None:
    """A small model is saved, loaded, exported and trained on like any other."""
    save_compact(small, folder)
    loaded = load_compact(folder)
    assert torch.equal(logits(loaded), logits(small))
    assert architecture_of(loaded) == architecture_of(small)
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(torch.export.export(loaded, (images,)).module()(images), loaded(images))
    small.train()(batches(1)[0][0]).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())

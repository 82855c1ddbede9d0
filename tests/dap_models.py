"""Tiny seeded ViTs and a short pruning run, for the tests of dap."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dap.pruner import MaskUpdate, Pruner

CLASSES = 5
torch.set_num_threads(1)  # tensors this small take longer to share out than to compute


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
    model: VisionTransformer, pruner: Pruner, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]
) -> list[MaskUpdate]:
    """The loop of the README. Returns the updates."""
    updates = []
    model.train()
    for images, targets in data:
        F.cross_entropy(model(images), targets).backward()
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

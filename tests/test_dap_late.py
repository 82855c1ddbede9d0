"""The central claim on a real training run: a block that becomes useful late gets its budget and its units back."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dap import PruneConfig, Pruner

torch.set_num_threads(1)  # tensors this small take longer to share out than to compute
STEPS, SPEAKS_AT = 960, 500  # the cut is complete at step 480


def run(images: Tensor, labels: Tensor, smoothing: float) -> tuple[list[float], set[int], set[int], list[float]]:
    """Prune while attn 1 says nothing until SPEAKS_AT. Its keep ratios, its units then and at the end, its benefits."""
    torch.manual_seed(0)
    model: Any = VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=10)

    def train(steps: int, pruner: Pruner | None = None) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        model.train()
        for step in range(steps):
            if pruner is not None and step == SPEAKS_AT:
                gain[0] = 1.0
                before.update(units(pruner))
            rows = torch.randint(0, len(images), (32,))
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            update = pruner.step(labels[rows]) if pruner is not None else None
            optimizer.step()
            optimizer.zero_grad()
            if update is not None:
                kept.append(update["blocks"][2]["keep_ratio"])
                benefits.append(update["blocks"][2]["bpi_class"] or 0.0)

    def units(pruner: Pruner) -> set[int]:
        return set(pruner._kept_indices()[2]["width"].tolist())

    kept: list[float] = []
    benefits: list[float] = []
    before: set[int] = set()
    train(300)  # a pretrained model: attn 1 knows something, but is not heard for a while
    gain = [0.0]
    model.blocks[1].attn.register_forward_hook(lambda module, args, output: output * gain[0])
    config = PruneConfig(sparsity=0.6, smoothing=smoothing, probe_images=1)
    pruner = Pruner(model, config, steps_per_epoch=STEPS // 24, epochs=24)
    train(STEPS, pruner)
    return kept, before, units(pruner), benefits


@pytest.mark.slow
def test_a_block_that_becomes_useful_late_gets_its_budget_back_in_a_real_run() -> None:
    digits = load_digits()
    grey = torch.tensor(digits.images / 16 - 0.5).float()[:, None]
    images, labels = F.interpolate(grey, scale_factor=2).repeat(1, 3, 1, 1), torch.tensor(digits.target)
    kept, before, after, benefits = run(images, labels, smoothing=PruneConfig().smoothing)
    middle = len(kept) * SPEAKS_AT // STEPS
    assert max(abs(benefit) for benefit in benefits[: middle - 1]) < 0.005 < 0.05 < benefits[-1]
    assert kept[-1] >= kept[middle - 1] + 0.1
    assert after - before
    # the control: importance is measured once, at the first update, and never again
    held, before, after, _ = run(images, labels, smoothing=0.0)
    assert held[-1] == held[middle - 1]
    assert len(after) == len(before)
    assert kept[-1] > held[-1]

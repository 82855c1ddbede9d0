"""Block Performance Indicator: how much a block helps small probes that read its input and its output.

Key: L layers, B blocks (= 2 L, attention and MLP alternating), S sides (0 before the block, 1 after it), I images,
N tokens, P patches (h x w), D width, C classes.
Probes see detached copies of the tokens: they learn along with the model and never send it a gradient.
"""

from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dap.method import average_over_ranks

# Blocks whose probes are read in one call. They share nothing, so the number changes no result: more blocks need more
# memory at a time, fewer mean more and smaller calls.
GROUP = 4
PROBE_WEIGHT_DECAY = 0.05  # as the model's; none on biases and norms


class ReferenceProbes(nn.Module):
    """The paper's probes: per block a linear layer on the class token, and two full 3 x 3 convolutions on the patches.

    Source: arXiv 2506.23675, section 3; design note §1.
    """

    def __init__(self, *, blocks: int, dim: int, classes: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.on_class = nn.ModuleList(nn.Linear(dim, classes) for _ in range(blocks))
        self.on_patches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim, dim, 3, padding=1, bias=False),
                nn.BatchNorm2d(dim),
                nn.ReLU(),
                nn.Conv2d(dim, dim, 3, padding=1, bias=False),
                nn.BatchNorm2d(dim),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(dim, classes),
            )
            for _ in range(blocks)
        )

    def forward(self, tokens: list[Tensor], prefix: int) -> tuple[Tensor, Tensor]:
        """tokens: B + 1 of (I, N, D). Returns the class-token and the patch logits, (B, S, I, C) each."""
        class_logits, patch_logits = [], []
        for b, (on_class, on_patches) in enumerate(zip(self.on_class, self.on_patches, strict=True)):
            for x_IND in tokens[b : b + 2]:  # before and after are separate batches to the batch norm, as in the paper
                class_logits.append(on_class(x_IND[:, 0]))
                patch_logits.append(on_patches(x_IND[:, prefix:].transpose(1, 2).reshape(len(x_IND), -1, *self.grid)))
        shape = (len(self.on_class), 2, *class_logits[0].shape)
        return torch.stack(class_logits).view(shape), torch.stack(patch_logits).view(shape)


class BatchedProbes(nn.Module):
    """Cheap probes: depthwise-separable patch probes, and several blocks and both sides in one call.

    Differences from the paper's: each 3 x 3 convolution is a depthwise one and a 1 x 1 one; the first has stride 2 (the
    features are averaged over the grid in the end anyway); before and after share their batch statistics, so that both
    are read by exactly the same function.
    """

    def __init__(self, *, blocks: int, dim: int, classes: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.spatial1, self.spatial2 = (_uniform((blocks * dim, 1, 3, 3), 9) for _ in range(2))
        self.mix1, self.mix2 = (_uniform((blocks, dim, dim), dim) for _ in range(2))
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(blocks * dim)) for _ in range(2))
        self.bias1, self.bias2 = (nn.Parameter(torch.zeros(blocks * dim)) for _ in range(2))
        self.class_head, self.patch_head = (_uniform((blocks, dim, classes), dim) for _ in range(2))
        self.class_bias, self.patch_bias = (_uniform((blocks, 1, classes), dim) for _ in range(2))

    def forward(self, tokens: list[Tensor], prefix: int) -> tuple[Tensor, Tensor]:
        """tokens: B + 1 of (I, N, D). Returns the class-token and the patch logits, (B, S, I, C) each."""
        blocks, dim, _ = self.mix1.shape
        images = len(tokens[0])
        class_ = torch.stack([x[:, 0] for x in tokens])
        class_BsD = torch.cat([class_[:-1], class_[1:]], dim=1)
        class_logits = torch.baddbmm(self.class_bias, class_BsD, self.class_head)

        patches = torch.stack([x[:, prefix:].transpose(1, 2) for x in tokens], dim=1)
        x = torch.cat([patches[:, :-1], patches[:, 1:]]).reshape(2 * images, blocks * dim, *self.grid)
        stages = (
            (self.spatial1, self.mix1, self.scale1, self.bias1, 2),
            (self.spatial2, self.mix2, self.scale2, self.bias2, 1),
        )
        for spatial, mix, scale, bias, stride in stages:
            x = F.conv2d(x, spatial, stride=stride, padding=1, groups=blocks * dim)
            grid = x.shape[2:]
            x = torch.matmul(mix, x.reshape(2 * images, blocks, dim, -1))
            x = F.batch_norm(x.reshape(2 * images, blocks * dim, *grid), None, None, scale, bias, training=True)
            x = F.relu(x, inplace=True)
        pooled_BsD = x.mean((2, 3)).reshape(2 * images, blocks, dim).transpose(0, 1)
        patch_logits = torch.baddbmm(self.patch_bias, pooled_BsD, self.patch_head)
        shape = (blocks, 2, images, -1)
        return class_logits.view(shape), patch_logits.view(shape)


PROBES: dict[str, Callable[..., nn.Module]] = {"default": BatchedProbes, "reference": ReferenceProbes}


class Indicator:
    """Probes, their optimizer, and one training step of them."""

    def __init__(
        self,
        *,
        probe: Literal["default", "reference"],
        layers: int,
        dim: int,
        classes: int,
        grid: tuple[int, int],
        prefix: int,
        lr: float,
        seed: int,
        device: torch.device,
    ) -> None:
        """prefix: tokens before the patches. The class-token probe reads the first of them, the class token, and of a
        distilled model not the distillation token: both would need probes of their own, and the paper has one.
        """
        self.prefix = prefix
        # A stream of random numbers of its own: attaching a pruner must not change the training that follows.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            sizes = [min(GROUP, 2 * layers - first) for first in range(0, 2 * layers, GROUP)]
            groups: list[nn.Module] = [
                PROBES[probe](blocks=size, dim=dim, classes=classes, grid=grid) for size in sizes
            ]
        self.group_sizes = sizes
        self.probes = nn.ModuleList(groups).to(device)
        plain = [p for name, p in self.probes.named_parameters() if p.ndim < 2 or "bias" in name]
        decayed = [p for name, p in self.probes.named_parameters() if p.ndim >= 2 and "bias" not in name]
        kinds = [{"params": decayed, "weight_decay": PROBE_WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(kinds, lr=lr, fused=device.type in ("cpu", "cuda"))

    def learn(self, tokens: list[Tensor], targets: Tensor) -> Tensor:
        """One training step of all probes.

        tokens:  B + 1 detached (I, N, D) float32: the residual stream before every block and after the last
        targets: (I,) class indices or (I, C) probabilities
        Returns (2, B) float32, detached: the loss before minus the loss after each block, of the class-token probe and
        the patch probe, in nats. Positive: the block helps.
        """
        with torch.enable_grad(), torch.autocast(tokens[0].device.type, enabled=False):
            parts, first = [], 0
            for probes, size in zip(self.probes, self.group_sizes, strict=True):
                logits = probes(tokens[first : first + size + 1], self.prefix)
                loss = torch.stack([_cross_entropy(part, targets) for part in logits])
                torch.autograd.backward(loss.sum())
                parts.append(loss.detach())
                first += size
            losses = torch.cat(parts, dim=1)
        # the probes start equal on all ranks (same seed) and so stay equal
        average_over_ranks([cast(Tensor, p.grad) for p in self.probes.parameters()])
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses[..., 0] - losses[..., 1]


def _uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """torch's own initialisation of linear and convolution layers."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))


def _cross_entropy(logits_BSIC: Tensor, targets: Tensor) -> Tensor:
    """(B, S) mean cross entropy over the images; targets (I,) class indices or (I, C) probabilities."""
    log_BSIC = F.log_softmax(logits_BSIC, dim=-1)
    if targets.ndim == 2:
        return -(log_BSIC * targets).sum(-1).mean(-1)
    index = targets.expand(*log_BSIC.shape[:3])[..., None]
    return -log_BSIC.gather(-1, index)[..., 0].mean(-1)

"""Block Performance Indicator: how much a block helps small probes that read its input and its output.

Key: L layers, B blocks (= 2 L, attention and MLP alternating), S sides (0 before the block, 1 after it), I images,
J images whose patches are looked at, P patches (h x w), D width, C classes.
Probes see detached copies of the tokens: they learn along with the model and never send it a gradient.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

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

    def forward(self, class_: Sequence[Tensor], patches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """class_: B + 1 of (I, D);  patches: B + 1 of (J, P, D). Returns the logits, (B, S, I, C) and (B, S, J, C)."""
        class_logits, patch_logits = [], []
        for b, (on_class, on_patches) in enumerate(zip(self.on_class, self.on_patches, strict=True)):
            for side in (b, b + 1):  # before and after are separate batches to the batch norm, as in the paper
                class_logits.append(on_class(class_[side]))
                x_JDP = patches[side].transpose(1, 2)
                patch_logits.append(on_patches(x_JDP.reshape(*x_JDP.shape[:2], *self.grid)))
        pairs = (len(self.on_class), 2)
        return torch.stack(class_logits).unflatten(0, pairs), torch.stack(patch_logits).unflatten(0, pairs)


class BatchedProbes(nn.Module):
    """Cheap probes: depthwise-separable patch probes, and several blocks and both sides in one call.

    Differences from the paper's: each 3 x 3 convolution is a depthwise one and a 1 x 1 one; the first has stride 2 (the
    features are averaged over the grid in the end anyway); the class-token probe begins at zero, where torch would draw
    it at random. A random start outweighs all that this probe learns in some hundred steps, and until then it decides
    which block seems to help: two sets of the paper's probes that differ in nothing but their start disagree.

    Of many classes, the heads would hold most of all parameters: they are two factors then, of `rank` columns each.
    """

    def __init__(self, *, blocks: int, dim: int, classes: int, grid: tuple[int, int], rank: int) -> None:
        super().__init__()
        self.grid = grid
        self.spatial1, self.spatial2 = (_uniform((blocks * dim, 1, 3, 3), 9) for _ in range(2))
        self.mix1, self.mix2 = (_uniform((blocks, dim, dim), dim) for _ in range(2))
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(blocks * dim)) for _ in range(2))
        self.bias1, self.bias2 = (nn.Parameter(torch.zeros(blocks * dim)) for _ in range(2))
        self.class_reduce = self.patch_reduce = None
        width = dim
        if rank * (dim + classes) < dim * classes:
            # a random projection that keeps a token's length
            self.class_reduce, self.patch_reduce = (
                nn.Parameter(torch.randn(blocks, dim, rank) / rank**0.5) for _ in range(2)
            )
            width = rank
        self.class_head = nn.Parameter(torch.zeros(blocks, width, classes))
        self.class_bias = nn.Parameter(torch.zeros(blocks, 1, classes))
        self.patch_head = _uniform((blocks, width, classes), dim)
        self.patch_bias = _uniform((blocks, 1, classes), dim)

    def forward(self, class_: Sequence[Tensor], patches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """class_: B + 1 of (I, D);  patches: B + 1 of (J, P, D). Returns the logits, (B, S, I, C) and (B, S, J, C)."""
        blocks, dim, _ = self.mix1.shape
        class_BsD = torch.cat([torch.stack(list(class_[:-1])), torch.stack(list(class_[1:]))], dim=1)
        if self.class_reduce is not None:
            class_BsD = class_BsD @ self.class_reduce
        class_logits = torch.baddbmm(self.class_bias, class_BsD, self.class_head)

        images = len(patches[0])
        stacked = torch.stack([x.transpose(1, 2) for x in patches], dim=1)
        # both sides are channels of their own, so that before and after are separate batches to the batch norm
        x = torch.stack([stacked[:, :-1], stacked[:, 1:]], dim=1).reshape(images, 2 * blocks * dim, *self.grid)
        stages = (
            (self.spatial1, self.mix1, self.scale1, self.bias1, 2),
            (self.spatial2, self.mix2, self.scale2, self.bias2, 1),
        )
        for spatial, mix, scale, bias, stride in stages:
            x = F.conv2d(x, spatial.repeat(2, 1, 1, 1), stride=stride, padding=1, groups=2 * blocks * dim)
            h, w = x.shape[2:]
            # one large product per block instead of one for every image
            mixed = mix @ x.reshape(images, 2, blocks, dim, h * w).permute(2, 3, 0, 1, 4).reshape(blocks, dim, -1)
            x = mixed.view(blocks, dim, images, 2, h * w).permute(2, 3, 0, 1, 4).reshape(images, -1, h, w)
            x = _batch_norm(x, scale.repeat(2), bias.repeat(2))
            x = F.relu(x, inplace=True)
        pooled_BsD = x.mean((2, 3)).reshape(images, 2, blocks, dim).permute(2, 1, 0, 3).reshape(blocks, -1, dim)
        if self.patch_reduce is not None:
            pooled_BsD = pooled_BsD @ self.patch_reduce
        patch_logits = torch.baddbmm(self.patch_bias, pooled_BsD, self.patch_head)
        return class_logits.unflatten(1, (2, -1)), patch_logits.unflatten(1, (2, -1))


# The paper's rate is 5e-4. A class-token probe that learns faster finds ever more in the first blocks, and next to that
# the others' benefit vanishes. The cheap patch probes see fewer images, and learn faster to make up for it.
CLASS_LEARNING_RATE = 5e-4
PATCH_LEARNING_RATE = {"default": 2e-3, "reference": 5e-4}


class Tokens(NamedTuple):
    """What the probes see of one training step: the residual stream before every block and after the last one."""

    class_: list[Tensor]
    """B + 1 of (I, D) float32, detached: the class token of all images, or their mean token (see dap.tap)"""
    patches: list[Tensor]
    """B + 1 of (J, P, D) float32, detached: the patch tokens of some of them"""
    targets: Tensor
    """(I,) class indices or (I, C) probabilities"""
    patch_targets: Tensor
    """(J, ...), those of the images whose patches are here"""


class Indicator:
    """Probes, their optimizer, and one training step of them."""

    def __init__(
        self,
        *,
        probe: Literal["default", "reference"],
        rank: int,
        layers: int,
        dim: int,
        classes: int,
        grid: tuple[int, int],
        lr: float | None,
        seed: int,
        device: torch.device,
    ) -> None:
        """rank: of the default probes' heads, where that makes them smaller.

        lr: of the probes' AdamW; None: CLASS_LEARNING_RATE and PATCH_LEARNING_RATE
        """
        # A stream of random numbers of its own: attaching a pruner must not change the training that follows.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            sizes = [min(GROUP, 2 * layers - first) for first in range(0, 2 * layers, GROUP)]
            make = partial(BatchedProbes, rank=rank) if probe == "default" else ReferenceProbes
            groups = [make(blocks=size, dim=dim, classes=classes, grid=grid) for size in sizes]
        self.group_sizes = sizes
        self.probes = nn.ModuleList(groups).to(device)
        groups_of: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.probes.named_parameters():
            on_class = "class_" in name or "on_class" in name
            usual = CLASS_LEARNING_RATE if on_class else PATCH_LEARNING_RATE[probe]
            rate = usual if lr is None else lr
            decay = 0.0 if parameter.ndim < 2 or "bias" in name else PROBE_WEIGHT_DECAY
            groups_of.setdefault((rate, decay), []).append(parameter)
        kinds = [{"params": mine, "lr": rate, "weight_decay": decay} for (rate, decay), mine in groups_of.items()]
        self.optimizer = torch.optim.AdamW(kinds, fused=device.type in ("cpu", "cuda"))

    def learn(self, tokens: Tokens) -> Tensor:
        """One training step of all probes, the same in all processes.

        Returns (2, B) float32, detached: the loss before minus the loss after each block, of the class-token probe and
        the patch probe, in nats, mean over processes. Positive: the block helps. A step whose losses are not finite
        teaches nothing.
        """
        with torch.enable_grad(), torch.autocast(tokens.targets.device.type, enabled=False):
            parts, first = [], 0
            for probes, size in zip(self.probes, self.group_sizes, strict=True):
                mine = slice(first, first + size + 1)
                on_class, on_patches = probes(tokens.class_[mine], tokens.patches[mine])
                losses = _cross_entropy(on_class, tokens.targets), _cross_entropy(on_patches, tokens.patch_targets)
                loss = torch.stack(losses)
                torch.autograd.backward(loss.sum())
                parts.append(loss.detach())
                first += size
            loss_2BS = torch.cat(parts, dim=1)
        bpi_2B = loss_2BS[..., 0] - loss_2BS[..., 1]
        # the probes start equal on all ranks (same seed) and so stay equal
        grads = [cast(Tensor, p.grad) for p in self.probes.parameters()]
        average_over_ranks([*grads, bpi_2B])
        # A step with tokens that are not finite is one that the model's optimizer skips under a GradScaler. AdamW's
        # fused kernels leave such a step out by themselves, so that a GPU need not be waited for.
        overflow = ~get_total_norm(grads).isfinite()
        if self.optimizer.defaults["fused"]:
            self.optimizer.found_inf = overflow.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not overflow:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return bpi_2B


class _Sum(torch.autograd.Function):
    """Sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient


def _batch_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Batch norm over the images of all processes, of which each has as many; torch's SyncBatchNorm has no CPU.

    x: (J, channels, h, w);  scale, bias: (channels,)
    """
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes == 1:
        return F.batch_norm(x, None, None, scale, bias, training=True)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    # in double: the difference of two large numbers may be small
    moments = _Sum.apply(torch.stack([mean.double(), var.double() + mean.double().square()])) / processes
    factor = scale * (moments[1] - moments[0].square() + 1e-5).rsqrt().float()
    shift = bias - moments[0].float() * factor
    return x * factor[:, None, None] + shift[:, None, None]


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

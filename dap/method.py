"""What every way to prune has in common: what a training loop calls, and what it reports.

The methods are dap.pruner.Pruner (DAP and its controls uniform, taylor and magnitude) and those in dap.baselines.
"""

from collections.abc import Iterable
from typing import Any, Protocol, TypedDict, runtime_checkable

import torch
import torch.distributed as dist
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


class BlockReport(TypedDict):
    """One block as it stands after the last update; plain types, ready for JSON."""

    name: str
    """ "attn 0", "mlp 0", "attn 1", ..."""
    bpi_class: float | None
    """Mean class-token indicator over the last interval, nats; None before the first update or if not measured."""
    bpi_patch: float | None
    """Mean patch-token indicator, likewise."""
    keep_ratio: float
    """Share of the block's dense cost (parameters, MACs, time) that it holds, counting elements with a mask >= 0.5."""
    heads: int
    """Kept heads of an attention block, 1 for an MLP; 0 if it is gone."""
    width: int
    """Kept head width of an attention block or hidden units of an MLP; 0 if it is gone."""


class MaskUpdate(TypedDict):
    """What an update of the masks did; plain types, ready for JSON."""

    step: int
    """Optimizer steps taken, this one included."""
    progress: float
    """Share of the cut in force, 0 to 1."""
    temperature: float
    """Mask width as a share of a block's elements; 0 means hard."""
    sparsity: float
    """Share of the model's cost (parameters, MACs or time) whose mask is < 0.5."""
    blocks: list[BlockReport]
    """All blocks, in the order they act on the residual stream."""


class Decided(Protocol):
    """What both kinds of methods end with."""

    def harden(self) -> MaskUpdate:
        """Make masks, where there are some, 0 or 1 at the final sparsity; the model keeps its dense shape."""

    def blocks(self) -> list[BlockReport]:
        """The blocks as they stand."""

    def finalize(self) -> VisionTransformer:
        """The small dense model; exactly what the hardened one computes, where there are masks."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit: tensors and plain types."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from state_dict() of a method with the same config on the same kind of model."""


class Method(Decided, Protocol):
    """One way to prune while the model trains. A loop that follows this contract needs no rule of any method:

        for images, targets in loader:
            loss = criterion(model(images), targets)
            extra = method.loss(targets)
            (loss if extra is None else loss + extra).backward()
            method.step(targets)
            optimizer.step(); optimizer.zero_grad()
        small = method.finalize()                       # then fine-tuned, except for WD-Prune

    Parameters that only the method has (probes, scores, auxiliary classifiers) are trained inside it.
    """

    def loss(self, targets: Tensor) -> Tensor | None:
        """What the method adds to the main loss of the last training forward, or None."""

    def step(self, targets: Tensor, *, grad_scale: float | Tensor = 1.0) -> MaskUpdate | None:
        """Learn from one training step, after backward; returns what an update of the masks did, or None.

        targets: of all forwards of the step, one after another
        grad_scale: what gradients are still multiplied by: GradScaler.get_scale(), unless unscale_() came before
        """


@runtime_checkable
class OneShot(Decided, Protocol):
    """One way to prune in one shot, decided on the network as it is:

        method.calibrate(first calibration_steps batches)
        small = method.finalize()                       # then fine-tuned

    It has no masks: harden() leaves the model whole, and the small model computes something else.
    """

    @property
    def calibration_steps(self) -> int:
        """Batches that calibrate() needs."""

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Decide from normalised (B, 3, H, W) images and their targets what goes; changes no weight."""


def average_over_ranks(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, if there are several."""
    if dist.is_available() and dist.is_initialized():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

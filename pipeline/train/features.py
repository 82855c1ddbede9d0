"""Learning from what a teacher computes inside: the residual streams after some blocks, where both have one width."""

from typing import Any

import torch
from torch import nn

from dap.method import average_over_ranks
from pipeline.train import runtime

EVERY = 3  # layers from one taught block to the next, counted back from the last one


def correspond(student: nn.Module, teacher: nn.Module) -> bool:
    """Whether two ViTs have as many layers and channels; a method that cuts those leaves logits alone to learn from."""
    one: Any = student
    other: Any = teacher
    return (len(one.blocks), one.embed_dim) == (len(other.blocks), other.embed_dim)


class Features:
    """Residual streams of a student and its teacher after the taught blocks, caught in their last training forward.

    Pruning inside the branches leaves the stream's width as it is, so that channels correspond and no projector is
    needed. Source: arXiv 2511.15572, which has to project, and lift, a student of another width.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, parts: int = 1) -> None:
        """student, teacher: models that correspond();  parts: forwards of a step"""
        one: Any = student
        other: Any = teacher
        assert correspond(student, teacher), "streams of other sizes"
        self._layers = range(len(one.blocks) - 1, -1, -EVERY)
        self._caught: dict[int, torch.Tensor] = {}  # the student's last
        self._parts = parts
        self._taught: dict[int, list[torch.Tensor]] = {layer: [] for layer in self._layers}  # still to be learned from
        self._variances: list[torch.Tensor] = []  # of all parts of the step
        self._hooks = [one.blocks[layer].register_forward_hook(self._catch(layer)) for layer in self._layers]
        self._hooks += [other.blocks[layer].register_forward_hook(self._teach(layer)) for layer in self._layers]

    def _catch(self, layer: int) -> Any:
        def hook(module: nn.Module, _: Any, stream_BND: torch.Tensor) -> None:
            if module.training:
                self._caught[layer] = stream_BND

        return hook

    def _teach(self, layer: int) -> Any:
        def hook(module: nn.Module, _: Any, stream_BND: torch.Tensor) -> None:
            self._taught[layer] = [*self._taught[layer], stream_BND.float()][-self._parts :]

        return hook

    def loss(self) -> torch.Tensor:
        """Mean squared difference of the streams over the teacher's variance, mean over the taught blocks.

        The teacher has seen all parts of a step before the student's first; each call is for one, in the same order.
        """
        if not self._variances:
            self._variances = _variances([self._taught[layer] for layer in self._layers])
        losses = []
        for layer, variance in zip(self._layers, self._variances, strict=True):
            student, teacher = self._caught.pop(layer).float(), self._taught[layer].pop(0)
            losses.append((student - teacher).square().mean() / variance)
        if not any(self._taught.values()):
            self._variances = []
        return torch.stack(losses).mean()

    def remove(self) -> None:
        """Take the hooks off both models."""
        for hook in self._hooks:
            hook.remove()


def _variances(streams: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """() mean over channels of their variance over tokens and images of a step, in all processes; for every layer.

    streams: for every layer (B, N, D) of every part of a step; all parts have as many images
    """
    processes = runtime.share().processes
    if processes == 1 and len(streams[0]) == 1:
        return [x_BND.var((0, 1)).mean() for (x_BND,) in streams]
    moments = []
    for parts in streams:
        x_PBND = torch.stack(parts).double()
        moments.append(torch.stack([x_PBND.mean((0, 1, 2)), x_PBND.square().mean((0, 1, 2))]))
    moments_L2D = torch.stack(moments)
    average_over_ranks([moments_L2D])
    count = processes * sum(part[..., 0].numel() for part in streams[0])
    variance_L = (moments_L2D[:, 1] - moments_L2D[:, 0].square()).mean(1) * count / (count - 1)
    return list(variance_L.float())

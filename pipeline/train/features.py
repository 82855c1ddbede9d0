"""Learning from what a teacher computes inside: the residual streams after some blocks, where both have one width."""

from typing import Any

import torch
from torch import nn

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

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        """student, teacher: models that correspond()."""
        one: Any = student
        other: Any = teacher
        assert correspond(student, teacher), "streams of other sizes"
        self._layers = range(len(one.blocks) - 1, -1, -EVERY)
        self._caught: dict[tuple[str, int], torch.Tensor] = {}
        self._hooks = [
            model.blocks[layer].register_forward_hook(self._keep(name, layer))
            for name, model in (("student", one), ("teacher", other))
            for layer in self._layers
        ]

    def _keep(self, name: str, layer: int) -> Any:
        def hook(module: nn.Module, _: Any, stream_BND: torch.Tensor) -> None:
            if name == "teacher" or module.training:
                self._caught[name, layer] = stream_BND

        return hook

    def loss(self) -> torch.Tensor:
        """Mean squared difference of the streams over the teacher's variance, mean over the taught blocks."""
        losses = []
        for layer in self._layers:
            student, teacher = (self._caught.pop((name, layer)).float() for name in ("student", "teacher"))
            variance = teacher.var((0, 1)).mean()
            losses.append((student - teacher).square().mean() / variance)
        return torch.stack(losses).mean()

    def remove(self) -> None:
        """Take the hooks off both models."""
        for hook in self._hooks:
            hook.remove()

"""Stochastic depth whose draws belong to the images of a step, not to the forward or the process that they are in."""

from typing import Any

import numpy as np
import torch
from timm.layers import DropPath
from torch import nn

from pipeline.data.batch_augment import send


class DropPaths:
    """Draws for timm's DropPath modules of a model, in their place: they themselves do nothing meanwhile."""

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        """batch_size: images of a step"""
        modules = [module for module in model.modules() if isinstance(module, DropPath) and module.drop_prob > 0]
        self._rates = {module: module.drop_prob for module in modules}
        self._batch_size = batch_size
        self._kept: list[torch.Tensor] = []
        self._hooks = [module.register_forward_hook(self._drop(place)) for place, module in enumerate(modules)]
        for module in modules:
            module.drop_prob = 0.0

    def _drop(self, place: int) -> Any:
        def hook(module: nn.Module, _: Any, x_BND: torch.Tensor) -> torch.Tensor:
            return x_BND * self._kept[place] if module.training else x_BND

        return hook

    def draw(self, seed: int, rows: np.ndarray, device: torch.device) -> None:
        """Draw for the next forward.

        seed: of the step;  rows: (B,) which of the step's images are in the forward
        """
        if not self._rates:
            return
        rates_L = np.array(list(self._rates.values()))[:, None]
        kept_LB = (np.random.default_rng(seed).random((len(rates_L), self._batch_size)) >= rates_L)[:, rows]
        self._kept = list(send((kept_LB / (1 - rates_L)).astype(np.float32), device)[:, :, None, None])

    def remove(self) -> None:
        """The modules draw for themselves again."""
        for hook in self._hooks:
            hook.remove()
        for module, rate in self._rates.items():
            module.drop_prob = rate

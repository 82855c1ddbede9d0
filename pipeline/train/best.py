"""Which epoch of a training is kept: the last one, unless an earlier one was better beyond what chance makes of it.

The rule: the best epoch is kept if its accuracy on the validation split is above the last one's by more than its
standard error. So a split that is too small to tell them apart, or a schedule whose end is its best, keep the last, and
nothing is gained by choosing among epochs that differ by chance. What EARLY_STOP ends keeps its best in any case.
"""

from typing import Any

import torch
from torch import nn

from pipeline.config import TrainConfig
from pipeline.train.evaluate import Predictions


class Best:
    """The best epoch so far, with its weights, and the last one."""

    def __init__(self, config: TrainConfig) -> None:
        self.early_stop, self.balanced = config.early_stop, config.balanced
        self.epoch = self.last_epoch = 0
        self.accuracy = self.last_accuracy = -1.0
        """percent; over classes of equal weight if the training is balanced, else top-1"""
        self.error = 0.0
        """standard error of the best epoch's accuracy, points"""
        self.weights: dict[str, torch.Tensor] = {}

    def note(self, epoch: int, found: Predictions, model: nn.Module) -> None:
        """An epoch has ended with this accuracy; of equals the first is the best."""
        accuracy = found.balanced if self.balanced else found.top1
        self.last_epoch, self.last_accuracy = epoch, accuracy
        if accuracy > self.accuracy:
            self.epoch, self.accuracy = epoch, accuracy
            self.error = found.balanced_error if self.balanced else found.top1_error
            self.weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def exhausted(self) -> bool:
        """Whether as many epochs have passed without a better one as EARLY_STOP allows."""
        return self.early_stop is not None and self.last_epoch - self.epoch >= self.early_stop

    def is_kept(self) -> bool:
        """Whether the best epoch is to be kept instead of the last."""
        return self.epoch != self.last_epoch and (self.exhausted() or self.accuracy - self.last_accuracy > self.error)

    def described(self) -> str:
        """What was chosen, in words."""
        kept = f"epoch {self.epoch} is kept, {self.accuracy:.1f} % of the validation images right"
        if self.exhausted():
            return f"ended after epoch {self.last_epoch}, {self.early_stop} without a better one; {kept}"
        return f"{kept}; after epoch {self.last_epoch} {self.last_accuracy:.1f} % were, by more than chance fewer"

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        keys = ("epoch", "last_epoch", "accuracy", "last_accuracy", "error", "weights")
        return {key: getattr(self, key) for key in keys}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for key in self.state_dict():
            setattr(self, key, state[key])

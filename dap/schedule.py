"""When masks move, how far the cut has come, and how soft a mask is. Pure functions of the step; no model here."""

from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np
from numpy.typing import NDArray

MIN_UPDATES = 24  # a short run still moves its masks this often: the allocation is a feedback loop and needs turns
AT_ONE_WIDTH = log(9.0)  # sigmoid(log 9) = 0.9, the mask's value one width above the threshold


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Three phases of a pruning run: plain fine-tuning until start, cutting until sparse, sharpening until the end."""

    total_steps: int
    """Optimizer steps of the whole run."""
    epochs: int
    """Epochs of the whole run."""
    start: float
    """Share of the run at which cutting begins."""
    sparse: float
    """Share of the run at which the final sparsity is reached."""
    updates_per_epoch: int
    """Mask updates per epoch (short runs get more, see update_steps)."""
    temperature: float
    """Mask width before sharpening, as a share of the block's elements."""

    @cached_property
    def update_steps(self) -> frozenset[int]:
        """Steps (counted from 1) after which masks move: evenly spread, the last one exactly at the end.

        updates_per_epoch x epochs of them, but at least MIN_UPDATES and at most one per step.
        """
        count = min(self.total_steps, max(self.updates_per_epoch * self.epochs, MIN_UPDATES))
        return frozenset(round(self.total_steps * (i + 1) / count) for i in range(count))

    def progress(self, step: int) -> float:
        """Share of the cut that is in force after this step, 0 (dense) to 1 (final sparsity), linear in between."""
        done = step / self.total_steps
        return min(1.0, max(0.0, (done - self.start) / (self.sparse - self.start)))

    def temperature_at(self, step: int) -> float:
        """Mask width after this step, as a share of the block's elements: constant, then linearly to exactly 0."""
        done = step / self.total_steps
        if done <= self.sparse:
            return self.temperature if step < self.total_steps else 0.0
        return self.temperature * (1.0 - done) / (1.0 - self.sparse)


def rank_mask(ranks: NDArray[np.int64], cut: int, temperature: float) -> NDArray[np.float64]:
    """Mask of each element from its rank: a sigmoid over the rank axis, centred on the edge between cut and kept.

    ranks:       (E,) int, 0 is the least important of the block's E elements
    cut:         elements below the threshold; the mask is < 0.5 exactly for ranks < cut
    temperature: width as a share of E, 0 for a hard mask; 0.9 is reached one width above the edge
    Returns (E,) float in [0, 1]; exactly 1 everywhere when nothing is cut.
    Source: design note §5.
    """
    if cut == 0:
        return np.ones(len(ranks))
    if temperature == 0.0:
        return (ranks >= cut).astype(np.float64)
    widths_above = (ranks + 0.5 - cut) / (temperature * len(ranks))
    # clipped only so that exp stays finite; at 300 the mask is 0 or 1 to the last bit of a float32 anyway
    mask: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(AT_ONE_WIDTH * widths_above, -300.0, 300.0)))
    return mask

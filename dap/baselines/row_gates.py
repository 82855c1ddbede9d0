"""WD-Prune's gates: whole heads and the output rows of proj, fc1 and fc2, with the gradient of every mask.

Key: E elements of one block's gates; R rows (outputs) and C columns (inputs) of a linear layer.
"""

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dap.gates import Branch, Gate, attach, detach, fill, head_gate, mask_of, masked


class RowGates:
    """The masks of a model, like dap.gates.Gates. Autograd fills slopes(), at some cost in every step."""

    def __init__(self, branches: list[Branch]) -> None:
        """The model must be on the device that trains it already."""
        self.gates = [_gates_of(branch) for branch in branches]
        self._flat = [gate for block in self.gates for gate in block]
        attach(self._flat)
        # Zeros that are added to the masks: their gradient is the masks' own.
        self._slopes: dict[nn.Linear, dict[str, Tensor]] = {gate.linear: {} for gate in self._flat}
        for gate in self._flat:
            mask = mask_of(gate.linear, gate.side)
            self._slopes[gate.linear][gate.side] = torch.zeros_like(mask, requires_grad=True)  # type: ignore[arg-type]
        for linear, slopes in self._slopes.items():
            linear.forward = partial(_forward, linear, slopes)  # type: ignore[method-assign]

    def slopes(self) -> list[Tensor]:
        """dL/dmask of the last backward, (length,) per gate in order, also where the mask is 0; cleared by reading.

        Raises ValueError if there was no backward.
        """
        leaves = [self._slopes[gate.linear][gate.side] for gate in self._flat]
        if any(leaf.grad is None for leaf in leaves):
            raise ValueError("the masks have no gradient: call step() after loss.backward()")
        slopes = [gate.gather(cast(Tensor, leaf.grad)).float() for gate, leaf in zip(self._flat, leaves, strict=True)]
        for leaf in leaves:
            leaf.grad = None
        return slopes

    def set(self, masks: list[Tensor]) -> None:
        """masks: one (E,) per block, the block's gates one after another."""
        for block, mask_E in zip(self.gates, masks, strict=True):
            fill(block, mask_E)

    def remove(self) -> None:
        """Leave a plain model behind, the masks multiplied into its weights."""
        detach(self._flat)


def _gates_of(branch: Branch) -> list[Gate]:
    shape, out_of = branch.shape, branch.out_of
    leave = Gate(name="out", length=shape.dim, linear=out_of, side="rows")
    if shape.kind == "attn":
        return [head_gate(branch), leave]
    return [Gate(name="width", length=shape.width, linear=branch.into, side="rows"), leave]


def _forward(linear: nn.Linear, slopes: dict[str, Tensor], x: Tensor) -> Tensor:
    """x: (..., C)."""
    rows, cols = mask_of(linear, "rows"), mask_of(linear, "cols")
    return F.linear(
        x,
        *masked(
            linear,
            None if rows is None else rows + slopes["rows"],
            None if cols is None else cols + slopes["cols"],
        ),
    )

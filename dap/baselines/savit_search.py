"""How much of each component SAViT cuts, and which units. Pure functions on NumPy arrays but for what a model costs.

Key: L layers, U units of a layer, D width of the residual stream. Components: heads, hidden units, channels of the
residual stream.
"""

from math import ceil
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer

from dap.cost import count
from dap.gates import Branch

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

NEVER_CUT = 0.05  # of the units of a layer, the best ones; at least one
POPULATION, CHILDREN, GENERATIONS = 100, 50, 100


class Costs:
    """What the model costs at given numbers of heads, hidden units (of all layers together) and channels."""

    def __init__(self, model: VisionTransformer, branches: list[Branch], cost: Literal["params", "macs"]) -> None:
        attn, mlp = branches[0].shape, branches[1].shape
        layers = len(branches) // 2
        self.most = np.array([layers * attn.heads, layers * mlp.width, attn.dim])
        self.fewest = np.array([layers * protected(attn.heads), layers * protected(mlp.width), protected(attn.dim)])
        # of the joint importance: channels that a component has in a layer, or the shared gate in the whole network
        self.scale = np.array([attn.dim, mlp.width, 6 * layers * attn.dim])
        # per unit: a part that is there at any width of the stream, and one per channel
        self.total = count(model, cost)
        if cost == "params":
            self._head = (3 * attn.width if attn.qkv_bias else 0, 4 * attn.width)
            self._hidden = (1, 2)
            fixed = sum(p.numel() for name, p in model.named_parameters() if name in ("head.bias", "head_dist.bias"))
        else:
            self._head = (2 * attn.tokens**2 * attn.width, 4 * attn.tokens * attn.width)
            self._hidden = (0, 2 * mlp.tokens)
            fixed = 0
        self._rest = (0, 0)
        self._rest = (fixed, int(self.total - fixed - self.at(*self.most)) // attn.dim)
        self.least = int(self.at(*self.fewest))

    def at(self, heads: Any, hidden: Any, channels: Any) -> Any:
        """Cost at these numbers, integers or arrays of them."""
        parts = ((1, self._rest), (heads, self._head), (hidden, self._hidden))
        return sum(n * (one + per * channels) for n, (one, per) in parts)

    def hidden_for(self, heads: Any, channels: Any, budget: int) -> Any:
        """Hidden units that then fill the budget. The paper bisects; the cost is linear in them."""
        return (budget - self.at(heads, 0, channels)) // (self._hidden[0] + self._hidden[1] * channels)


def protected(units: int) -> int:
    """How many of a layer's units are never cut."""
    return max(1, ceil(NEVER_CUT * units))


def evolve(curvature: Array, costs: Costs, budget: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Heads, hidden units and channels to keep: the cut fractions p that minimise p' H p and fill the budget.

    curvature: (3, 3) joint importance H of heads, hidden units and channels
    Fractions of heads and channels evolve (population 100, 50 children, 100 generations); the hidden units follow from
    the budget, so that it is met within one of them.
    """
    most, fewest = costs.most[[0, 2]], costs.fewest[[0, 2]]

    def alive(cut: Array) -> tuple[Array, Ints, Array]:
        """Of (n, 2) fractions those that the budget allows, the kept numbers (n, 3), and what is minimised (n,)."""
        keep = np.clip(np.rint((1.0 - cut) * most), fewest, most).astype(np.int64)
        hidden = costs.hidden_for(keep[:, 0], keep[:, 1], budget)
        numbers = np.stack([keep[:, 0], hidden, keep[:, 1]], axis=1)
        possible = (hidden >= costs.fewest[1]) & (hidden <= costs.most[1])
        numbers, cut = numbers[possible], cut[possible]
        p = 1.0 - numbers / costs.most
        return cut, numbers, np.einsum("ni,ij,nj->n", p, curvature, p)

    # the same fraction of both, somewhere between none and most, always has a solution; and points all over
    line = np.linspace(0.0, 1.0, 2001)
    cut, numbers, energy = alive(np.concatenate([np.stack([line, line], axis=1), rng.random((100 * POPULATION, 2))]))
    assert len(cut), "somewhere between the smallest and the dense model the budget is met"
    start = rng.permutation(len(cut))[:POPULATION]
    cut, numbers, energy = cut[start], numbers[start], energy[start]
    for _ in range(GENERATIONS):
        parents = cut[rng.integers(len(cut), size=(CHILDREN, 2))]
        child = np.where(rng.random((CHILDREN, 2)) < 0.5, parents[:, 0], parents[:, 1])
        born = alive(np.clip(child + rng.normal(0.0, 0.05, child.shape), 0.0, 1.0))
        cut, numbers, energy = (np.concatenate(pair) for pair in zip((cut, numbers, energy), born, strict=True))
        best = np.argsort(energy, kind="stable")[:POPULATION]
        cut, numbers, energy = cut[best], numbers[best], energy[best]
    heads, hidden, channels = numbers[0].tolist()
    return heads, hidden, channels


def select(score_LU: Array, keep: int, released: bool) -> list[Ints]:
    """Sorted units that stay in each layer, `keep` in all: one threshold, but the best of each layer are never cut.

    score_LU: (layers, units) float >= 0;  released: see SavitConfig
    """
    layers, units = score_LU.shape
    order_LU = np.argsort(-score_LU, axis=1, kind="stable")
    guarded = score_LU.copy()
    np.put_along_axis(guarded, order_LU[:, : protected(units)], np.inf, axis=1)
    stays = np.zeros(layers * units, dtype=bool)
    stays[np.argsort(-guarded, axis=None, kind="stable")[:keep]] = True
    if released:
        return [np.arange(int(row.sum())) for row in stays.reshape(layers, units)]
    return [np.flatnonzero(row) for row in stays.reshape(layers, units)]

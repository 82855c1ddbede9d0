"""Which elements of a block go first, and how many of each block fit the budget. Pure functions on NumPy arrays.

A block's gates (in, width, heads, out) are ranked together; element 0 of the joint ranking is cut first. Cutting is
described by one number per block, the elements kept from the top, and a curve: the block's cost at 0, 1, ... E of them.
Scores hold the square of the element's own mask (see dap.gates), so that what has been masked keeps low ranks: blocks
win their budget back at any update, single elements hardly change places with those that stayed.
Shape suffix: E elements of all gates of one block.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

# Design note §4; every other gate weighs 1. "width" is the head width of attention and the hidden units of an MLP.
GATE_WEIGHTS = {("attn", "out"): 1.5, ("mlp", "width"): 0.75, ("mlp", "out"): 1.5}


def joint_ranks(kind: str, scores: dict[str, Array], previous_E: Ints) -> Ints:
    """Ranks of all elements of a block from the scores inside each gate.

    kind:       "attn" or "mlp"
    scores:     gate name -> (length,) float >= 0, accumulated squared Taylor scores; gates in a fixed order
    previous_E: (E,) int, the ranks so far, over the gates in the same order. They decide between equal scores: elements
                whose mask has underflowed to 0 all score 0 and would otherwise come back in an arbitrary order
    Returns (E,) int, a permutation of 0 .. E-1; 0 is cut first.
    Source: design note §4.
    """
    values: list[Array] = []
    offset = 0
    for gate, score in scores.items():
        length = len(score)
        order = np.lexsort((previous_E[offset : offset + length], score))
        place = np.empty(length)
        place[order] = np.arange(1, length + 1) / length
        values.append(place * GATE_WEIGHTS.get((kind, gate), 1.0))
        offset += length
    return ranks_of(np.concatenate(values), previous_E)


def ranks_of(values_E: Array, tie_E: Ints) -> Ints:
    """(E,) rank of each value, 0 the smallest; equal values in the order of tie_E."""
    ranks_E = np.empty(len(values_E), dtype=np.int64)
    ranks_E[np.lexsort((tie_E, values_E))] = np.arange(len(values_E))
    return ranks_E


def global_ranks(scores: Sequence[Array], previous: Sequence[Ints]) -> tuple[Ints, list[Ints]]:
    """One ranking over the units of all blocks, for the controls that give blocks no budget.

    scores:   one (E,) float >= 0 each, comparable between blocks
    previous: one (E,) int each, the ranks so far; they decide between equal scores of a block
    Returns the block of every unit, the best unit first, and the ranks inside each block, 0 cut first.
    """
    ranks = [ranks_of(score_E, previous_E) for score_E, previous_E in zip(scores, previous, strict=True)]
    block = np.repeat(np.arange(len(scores)), [len(score_E) for score_E in scores])
    return block[np.lexsort((np.concatenate(ranks), np.concatenate(scores)))[::-1]], ranks


def global_targets(curves: Sequence[Ints], order: Ints, budget: int) -> Array:
    """(B,) cost of each block when the best units of all blocks stay, as many as the budget covers.

    curves: one (E + 1,) int each, non-decreasing: cost of the block at m kept elements
    order:  block of every unit, the best unit first
    """
    steps = np.zeros(len(order), dtype=np.int64)
    for b, curve in enumerate(curves):
        steps[order == b] = np.diff(curve)
    units = int(np.searchsorted(np.cumsum(steps), budget, side="right"))
    kept_B = np.bincount(order[:units], minlength=len(curves))
    return np.array([float(curve[m]) for curve, m in zip(curves, kept_B, strict=True)])


def kept_per_gate(ranks_E: Ints, gate_of_E: Ints, gates: int) -> Ints:
    """(E + 1, gates) int: how many elements of each gate are among the m kept ones, for m = 0 .. E."""
    from_top_E = gate_of_E[np.argsort(-ranks_E)]
    kept = np.zeros((len(ranks_E) + 1, gates), dtype=np.int64)
    kept[1:] = np.cumsum(from_top_E[:, None] == np.arange(gates), axis=0)
    return kept


def select_counts(
    curves: Sequence[Ints],
    targets: Sequence[float],
    budget: int,
    choices: Sequence[Ints],
) -> list[int]:
    """Elements to keep of every block so that all together fill the budget and never exceed it.

    curves:  one (E + 1,) int each, non-decreasing: cost of the block at m kept elements, 0 for a block that is gone
    targets: cost that the allocation gives to each block; they add up to the budget, or less
    budget:  cost of all blocks that must not be exceeded
    choices: one sorted int array each, the m that may be chosen; contains 0, or the target covers the first one
    Returns one m per block. Every block first takes the most that its target covers; what is left of the budget then
    goes step by step to the block furthest below its target. What remains unused is less than the cheapest next step.
    Source: ours; the paper rounds every block by itself and misses the target by the sum of the roundings.
    """
    # A block whose every kept element costs nothing (one of its gates is still empty) is gone: call that m = 0.
    steps = [m[(m == 0) | (curve[m] > 0)] for curve, m in zip(curves, choices, strict=True)]
    costs = [curve[m] for curve, m in zip(curves, steps, strict=True)]
    # 1e-6: a target that is meant to equal a cost may lie a rounding error below it
    at = [int(np.searchsorted(c, t + 1e-6, side="right")) - 1 for c, t in zip(costs, targets, strict=True)]
    left = budget - sum(int(c[i]) for c, i in zip(costs, at, strict=True))
    assert left >= 0, "the targets add up to more than the budget"
    while True:
        fitting = [
            b for b in range(len(at)) if at[b] + 1 < len(costs[b]) and costs[b][at[b] + 1] - costs[b][at[b]] <= left
        ]
        if not fitting:
            return [int(m[i]) for m, i in zip(steps, at, strict=True)]

        def urgency(b: int) -> tuple[bool, float]:
            # bringing a block to life that was given nothing comes last
            return targets[b] > 0.0 or at[b] > 0, targets[b] - float(costs[b][at[b]])

        block = max(fitting, key=urgency)
        left -= int(costs[block][at[block] + 1] - costs[block][at[block]])
        at[block] += 1


def width_choices(kind: str, heads: int, width: int, allowed: Callable[[str, int], bool] | None) -> Ints:
    """Inner widths of a block that may be chosen: 0 and those whose layer the hardware likes.

    heads: heads of an attention block, 1 for an MLP;  width: dense head width or hidden units
    allowed: (layer kind, n) -> bool with layer kind "qkv" (n = heads x head width) or "hidden" (n = hidden units)
    Raises ValueError if the rule leaves no width at all.
    """
    fitting = inner_choices(kind, heads * np.arange(width + 1), allowed)
    if len(fitting) == 1:
        layer = _layer(kind)
        raise ValueError(f"allowed_width permits no width of a {layer!r} layer up to {heads * width}: loosen the rule")
    return fitting


def inner_choices(kind: str, inner_M: Ints, allowed: Callable[[str, int], bool] | None) -> Ints:
    """Numbers m of kept elements that may be chosen: 0 and those whose layer the hardware likes.

    inner_M: (M,) hidden units, or channels of all heads together, at m = 0 .. M - 1 kept elements
    allowed: as for width_choices
    """
    layer = _layer(kind)
    fits = [m == 0 or (n > 0 and (allowed is None or allowed(layer, n))) for m, n in enumerate(inner_M.tolist())]
    return np.flatnonzero(fits)


def _layer(kind: str) -> str:
    """What a rule calls the layer that a block's inner width is the output of."""
    return "qkv" if kind == "attn" else "hidden"

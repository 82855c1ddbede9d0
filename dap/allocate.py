"""From a block's measured benefit to the share of it that stays. Pure functions on NumPy arrays; they know no model.

Shape suffix: B blocks = 2 x layers, attention and MLP alternating.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Amounts = Array | NDArray[np.int64]

SLOPE = 1.4  # of the smooth clamp, arXiv 2506.23675
HELD_FLOOR = 0.1  # see bpi_to_importance


def bpi_to_importance(bpi_B: Array, held_B: Amounts, dense_B: Amounts, scale: float = 10.0) -> Array:
    """Importance of each block from one indicator (class token or patch tokens).

    bpi_B:   (B,) float, mean loss that the block saves its probe, any unit; scaling all of them changes nothing
    held_B:  (B,) cost of what each block still holds, in the budget's own unit: parameters, MACs or nanoseconds
    dense_B: (B,) cost of each dense block, likewise
    scale:   s, the value that the best block's benefit is stretched to
    Returns (B,) float >= 0 with mean 1.

    z = s bpi / max(bpi);  i = softplus(1.4 z) - softplus(1.4 z - s);  i / held;  i / mean(i).
    Without the division by the maximum all bpi shrink as the probes converge and the result decays to 1 / held.

    When no block has a benefit (max <= 0) there is no evidence for any order: all get importance 1, the same share.
    A block that holds less than a tenth of itself counts as holding a tenth. i / held rewards what has been cut,
    which is wanted, but unbounded it would hand the whole budget to a block that is at 0, whatever its benefit.
    The floor is ours; the paper leaves this case open.

    The paper counts parameters. With another budget the benefit is divided by that budget's cost: what is shared out is
    then benefit per millisecond, and a block that is cheap in it earns more of it. Parameters here would give a block
    that is slow for its size, such as attention over many tokens, more of the time than its benefit is worth. Both
    costs are then without the block's entry, see ratios_with_entry.
    Source: arXiv 2506.23675, section 3; design note §2.
    """
    if not np.isfinite(bpi_B).all():
        raise ValueError(
            "a block's benefit is not finite: the training, or its probes, have diverged. Try a lower learning rate"
        )
    best = float(bpi_B.max())
    if best <= 0.0:
        return np.ones(len(bpi_B))
    # A block far more harmful than the best one is useful underflows to importance 0, as it should.
    z_B = scale * (bpi_B / best)
    i_B = np.logaddexp(0.0, SLOPE * z_B) - np.logaddexp(0.0, SLOPE * z_B - scale)
    i_B = np.maximum(i_B, 0.0) / np.maximum(held_B, HELD_FLOOR * dense_B)
    importance_B: Array = i_B / i_B.mean()
    return importance_B


def smooth(previous_B: Array | None, new_B: Array, gamma: float) -> Array:
    """Running importance gamma x new + (1 - gamma) x previous; the first one is taken as it is."""
    return new_B if previous_B is None else gamma * new_B + (1.0 - gamma) * previous_B


def blend(class_B: Array, patch_B: Array, alpha: float) -> Array:
    """Importance from both indicators: alpha x class token + (1 - alpha) x patch tokens."""
    return alpha * class_B + (1.0 - alpha) * patch_B


def keep_ratios(importance_B: Array, dense_B: Amounts, budget: float) -> Array:
    """Share of each block to keep so that the sum meets the budget: clip(c x importance, 0, 1) by water-filling.

    importance_B: (B,) float >= 0, unitless
    dense_B:      (B,) cost of each dense block: parameters, MACs or nanoseconds
    budget:       cost to keep over all blocks
    Returns (B,) float in [0, 1] with sum(ratio x dense) = budget. Blocks of importance 0 get something only when all
    others are whole. Raises ValueError if the budget is negative or exceeds dense_B.sum().
    Source: design note §3.
    """
    if not 0.0 <= budget <= dense_B.sum():
        raise ValueError(f"a budget of {budget:g} lies outside what the blocks hold, 0 to {dense_B.sum():g}")
    ratio_B = np.zeros(len(dense_B))
    free_B = np.ones(len(dense_B), dtype=bool)
    left = float(budget)
    while free_B.any():
        weight_B = np.where(free_B, importance_B, 0.0)
        most = weight_B.max()
        # relative to the largest one, so that what is left after the whole blocks may be as small as a float can be
        weight_B = weight_B / most if most > 0.0 else free_B.astype(np.float64)
        level = left / float((weight_B * dense_B).sum())
        full_B = free_B & (level * weight_B >= 1.0)
        if not full_B.any():
            ratio_B[free_B] = level * weight_B[free_B]
            break
        ratio_B[full_B] = 1.0
        free_B &= ~full_B
        left = max(0.0, left - float(dense_B[full_B].sum()))
    return ratio_B


def narrowable(dense_B: Amounts, entry_B: Amounts) -> Array:
    """(B,) cost that narrowing each block can give back, its entry left out; at least a hundredth of the block.

    That least keeps the importance of a block finite whose cost does not depend on its width at all.
    """
    return np.maximum(dense_B - entry_B, 0.01 * dense_B)


def ratios_with_entry(
    importance_B: Array,
    benefit_B: Array,
    dense_B: Amounts,
    entry_B: Amounts,
    stays_B: NDArray[np.bool_],
    budget: float,
) -> Array:
    """keep_ratios() where a block that is there at all costs an entry, which narrowing it does not give back.

    importance_B: (B,) float >= 0, unitless: benefit for what width costs, see narrowable()
    benefit_B:    (B,) float >= 0, any unit: of each block as a whole
    dense_B:      (B,) cost of each dense block
    entry_B:      (B,) cost of each block at its smallest width, above 0
    stays_B:      (B,) blocks that must not go, whatever their benefit
    budget:       cost to keep over all blocks
    Returns (B,) float in [0, 1], each 0 or at least entry / dense. sum(ratio x dense) is the budget, or less by what is
    too little for the entry of a block that is gone. Raises ValueError if the budget does not cover the entries of the
    blocks that stay, or exceeds dense_B.sum().

    Time is like that: an attention of a tenth of its width still takes seven tenths of the dense one's time. As long as
    the budget covers all entries, they are paid, and what is left is shared out as keep_ratios does it. Otherwise they
    are paid in the order of benefit per entry, as far as they can be, and the other blocks go whole.
    Source: ours; the paper's cost, parameters, has no entry.
    """
    left = budget - entry_B[stays_B].sum()
    if left < 0:
        raise ValueError(f"a budget of {budget:g} does not cover what always stays, {entry_B[stays_B].sum():g}")
    living_B = stays_B.copy()
    for b in np.argsort(-benefit_B / entry_B, kind="stable"):
        if not stays_B[b] and entry_B[b] <= left:
            living_B[b] = True
            left -= entry_B[b]
    free_B = np.where(living_B, dense_B - entry_B, 0)
    paid_B = np.where(living_B, entry_B, 0)
    ratio_B = _ratios_of(free_B > 0, importance_B, free_B, float(left))
    kept_B: Array = (paid_B + free_B * ratio_B) / dense_B
    return kept_B


def _ratios_of(some_B: NDArray[np.bool_], importance_B: Array, dense_B: Amounts, budget: float) -> Array:
    """keep_ratios() among some blocks, 0 for the others; what they cannot hold of the budget stays unused."""
    ratio_B = np.zeros(len(dense_B))
    if some_B.any():
        mine = dense_B[some_B]
        ratio_B[some_B] = keep_ratios(importance_B[some_B], mine, min(budget, float(mine.sum())))
    return ratio_B


def model_budget(total: int, least: int, sparsity: float) -> int:
    """What the model may keep so that `sparsity` of everything is gone.

    total: cost of the dense model;  least: the part that always stays
    Raises ValueError naming the highest reachable sparsity when `least` alone exceeds the budget.
    """
    budget = math.floor((1.0 - sparsity) * total + 1e-6)
    if budget < least:
        # rounded down, so that the named value is itself reachable
        reachable = math.floor((1.0 - least / total) * 1e4) / 1e4
        raise ValueError(
            f"sparsity {sparsity:g} can't be reached: {least} of {total} always stay; "
            f"the highest reachable sparsity of this model is {reachable:g}"
        )
    return budget


def block_budget(total: int, other: int, sparsity: float) -> int:
    """What the blocks may keep so that `sparsity` of everything is gone; `other` is the part outside the blocks.

    Raises ValueError like model_budget.
    """
    return model_budget(total, other, sparsity) - other

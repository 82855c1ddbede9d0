"""Ranks inside a block, cost curves, and integer widths that fill the budget."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dap import allocate
from dap.cost import BranchShape
from dap.importance import (
    GATE_WEIGHTS,
    global_ranks,
    global_targets,
    joint_ranks,
    kept_per_gate,
    select_counts,
    width_choices,
)

DEIT = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def deit_shapes(dim: int, heads: int, layers: int = 12) -> list[BranchShape]:
    common: dict[str, Any] = {"dim": dim, "tokens": 197, "qkv_bias": True, "layer_scale": False}
    attn = BranchShape(kind="attn", heads=heads, width=dim // heads, **common)
    return [attn, BranchShape(kind="mlp", heads=1, width=4 * dim, **common)] * layers


def inner_curve(shape: BranchShape) -> np.ndarray:
    return shape.params(shape.dim, np.arange(shape.width + 1), shape.dim)


def test_one_gate_is_ranked_by_score() -> None:
    ranks = joint_ranks("mlp", {"width": np.array([3.0, 1.0, 2.0])}, np.arange(3))
    assert ranks.tolist() == [2, 0, 1]


def test_equal_scores_keep_their_order() -> None:
    previous = np.array([2, 0, 1])
    assert joint_ranks("mlp", {"width": np.zeros(3)}, previous).tolist() == previous.tolist()


def test_gates_are_ranked_together_by_weighted_place() -> None:
    scores = {"in": np.array([1.0, 2.0]), "width": np.array([1.0, 2.0]), "out": np.array([1.0, 2.0])}
    # places are 1/2 and 1; width of an MLP weighs 0.75, out 1.5
    values = [0.5, 1.0, 0.375, 0.75, 0.75, 1.5]
    assert [GATE_WEIGHTS["mlp", g] for g in ("width", "out")] == [0.75, 1.5]
    ranks = joint_ranks("mlp", scores, np.arange(6))
    assert ranks.tolist() == np.argsort(np.argsort(values, kind="stable")).tolist()


@given(st.permutations(list(range(9))))
def test_counts_per_gate_follow_the_ranks(order: list[int]) -> None:
    ranks, gate = np.array(order), np.repeat([0, 1, 2], [2, 3, 4])
    kept = kept_per_gate(ranks, gate, 3)
    assert kept[0].tolist() == [0, 0, 0]
    assert kept[9].tolist() == [2, 3, 4]
    for m in range(10):
        assert kept[m].tolist() == [int(((ranks >= 9 - m) & (gate == g)).sum()) for g in range(3)]


@pytest.mark.parametrize("size", DEIT)
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("rule", [None, "mod16"])
def test_kept_parameters_meet_the_target_within_one_unit(size: str, sparsity: float, rule: str | None) -> None:
    dim, heads = DEIT[size]
    shapes = deit_shapes(dim, heads)
    dense = np.array([float(s.params(dim, s.width, dim)) for s in shapes])
    other = (
        3 * 256 * dim + dim + 198 * dim + 2 * dim + 100 * (dim + 1)
    )  # patches, tokens, norm and a head of 100 classes
    total = int(dense.sum()) + other
    budget = allocate.block_budget(total, other, sparsity)
    bpi = np.random.default_rng(0).normal(0.02, 0.02, len(shapes))
    ratios = allocate.keep_ratios(allocate.bpi_to_importance(bpi, dense, dense), dense, budget)

    def friendly(kind: str, n: int) -> bool:
        return n % 16 == 0 or n % 16 > 8

    allowed = friendly if rule else None
    choices = [width_choices(s.kind, s.heads, s.width, allowed) for s in shapes]
    curves = [inner_curve(s) for s in shapes]
    kept = select_counts(curves, (ratios * dense).tolist(), budget, choices)
    unused = budget - sum(int(c[m]) for c, m in zip(curves, kept, strict=True))
    one_unit = max(int(np.diff(c[m][1:]).max()) for c, m in zip(curves, choices, strict=True))
    assert 0 <= unused <= one_unit
    assert all(m in choice for m, choice in zip(kept, choices, strict=True))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_selection_never_exceeds_and_always_fills_the_budget(data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, 6))
    steps = st.lists(st.integers(1, 50), min_size=1, max_size=12)
    curves = [np.cumsum([0, *data.draw(steps)]) for _ in range(blocks)]
    dense = np.array([float(c[-1]) for c in curves])
    budget = data.draw(st.integers(0, int(dense.sum())))
    importance = np.array([data.draw(st.floats(0.0, 10.0)) for _ in range(blocks)])
    targets = allocate.keep_ratios(importance, dense, budget) * dense
    kept = select_counts(curves, targets.tolist(), budget, [np.arange(len(c)) for c in curves])
    unused = budget - sum(int(c[m]) for c, m in zip(curves, kept, strict=True))
    assert unused >= 0
    assert all(m + 1 == len(c) or c[m + 1] - c[m] > unused for c, m in zip(curves, kept, strict=True))


def test_a_block_with_an_empty_gate_is_gone() -> None:
    curve = np.array([0, 0, 0, 30, 40])
    assert select_counts([curve], [29.0], 29, [np.arange(5)]) == [0]
    assert select_counts([curve], [30.0], 30, [np.arange(5)]) == [3]


def test_what_is_left_goes_to_living_blocks_first() -> None:
    curves = [np.array([0, 10, 20]), np.array([0, 10, 20])]
    assert select_counts(curves, [0.0, 9.0], 10, [np.arange(3)] * 2) == [0, 1]
    assert select_counts(curves, [0.0, 11.0], 20, [np.arange(3)] * 2) == [0, 2]


def test_width_rule_gets_layer_kind_and_layer_width() -> None:
    seen: list[tuple[str, int]] = []

    def rule(kind: str, n: int) -> bool:
        seen.append((kind, n))
        return n in (6, 3)

    assert width_choices("attn", 3, 3, rule).tolist() == [0, 1, 2]
    assert width_choices("mlp", 1, 4, rule).tolist() == [0, 3]
    assert seen == [("qkv", 3), ("qkv", 6), ("qkv", 9), *(("hidden", n) for n in (1, 2, 3, 4))]
    with pytest.raises(ValueError, match="loosen"):
        width_choices("mlp", 1, 4, lambda kind, n: False)


def test_global_ranking_keeps_the_best_units_of_all_blocks() -> None:
    scores = [np.array([5.0, 1.0, 3.0]), np.array([4.0, 0.0])]
    order, ranks = global_ranks(scores, [np.arange(3), np.arange(2)])
    assert order.tolist() == [0, 1, 0, 0, 1]
    assert [r.tolist() for r in ranks] == [[2, 0, 1], [1, 0]]
    curves = [np.array([0, 10, 20, 30]), np.array([0, 7, 14])]
    for budget, targets in ((9, [0, 0]), (10, [10, 0]), (26, [10, 7]), (27, [20, 7]), (44, [30, 14])):
        assert global_targets(curves, order, budget).tolist() == targets


@given(st.integers(0, 2**31), st.integers(0, 60))
def test_global_targets_fit_the_budget_and_leave_less_than_the_next_unit(seed: int, budget: int) -> None:
    rng = np.random.default_rng(seed)
    curves = [np.cumsum([0, *rng.integers(0, 6, size=n)]) for n in (4, 7, 1)]
    order, _ = global_ranks([rng.random(len(c) - 1) for c in curves], [np.arange(len(c) - 1) for c in curves])
    total = global_targets(curves, order, budget).sum()
    assert total <= budget
    assert total == sum(c[-1] for c in curves) or budget - total < 6

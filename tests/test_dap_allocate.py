"""From benefit to keep ratios: the transform, its degenerate cases, water-filling, unreachable targets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dap.allocate import (
    HELD_FLOOR,
    blend,
    block_budget,
    bpi_to_importance,
    keep_ratios,
    model_budget,
    narrowable,
    ratios_with_entry,
    smooth,
)

BPI = st.lists(st.floats(-5.0, 5.0).map(lambda x: round(x, 6)), min_size=1, max_size=24).map(np.array)


def ones(n: int) -> np.ndarray:
    return np.ones(n)


def test_transform_is_the_formula() -> None:
    bpi, held, dense = np.array([0.4, 0.1, -0.2]), np.array([100.0, 50.0, 80.0]), np.array([100.0, 100.0, 100.0])
    z = 10.0 * bpi / 0.4
    i = (np.log1p(np.exp(1.4 * z)) - np.log1p(np.exp(1.4 * z - 10.0))) / held
    np.testing.assert_allclose(bpi_to_importance(bpi, held, dense), i / i.mean())


@given(BPI, st.floats(1e-6, 1e6))
def test_scaling_all_benefits_changes_nothing(bpi: np.ndarray, factor: float) -> None:
    n = len(bpi)
    first = bpi_to_importance(bpi, ones(n), ones(n))
    np.testing.assert_allclose(bpi_to_importance(bpi * factor, ones(n), ones(n)), first, rtol=1e-6, atol=1e-9)


@given(BPI)
def test_importance_is_ordered_by_benefit_and_has_mean_one(bpi: np.ndarray) -> None:
    n = len(bpi)
    importance = bpi_to_importance(bpi, ones(n), ones(n))
    assert (importance >= 0.0).all()
    assert importance.mean() == pytest.approx(1.0)
    assert (np.diff(importance[np.argsort(bpi)]) >= -1e-9).all()


@pytest.mark.parametrize("bpi", [[0.0, 0.0], [-1.0, -2.0], [-1e-9, 0.0]])
def test_without_any_benefit_all_blocks_are_equal(bpi: list[float]) -> None:
    assert (bpi_to_importance(np.array(bpi), np.array([1.0, 7.0]), np.array([9.0, 9.0])) == 1.0).all()


def test_one_block_only() -> None:
    assert bpi_to_importance(np.array([0.3]), np.array([5.0]), np.array([9.0])) == pytest.approx([1.0])


def test_a_block_at_zero_counts_as_a_tenth_of_itself() -> None:
    bpi, dense = np.array([1.0, 1.0]), np.array([100.0, 100.0])
    importance = bpi_to_importance(bpi, np.array([0.0, 100.0]), dense)
    assert importance[0] / importance[1] == pytest.approx(1.0 / HELD_FLOOR)


def test_a_harmful_block_gets_nothing() -> None:
    assert bpi_to_importance(np.array([1.0, -1e9]), ones(2), ones(2))[1] == 0.0


def test_diverged_probes_are_reported() -> None:
    with pytest.raises(ValueError, match="diverged"):
        bpi_to_importance(np.array([1.0, np.nan]), ones(2), ones(2))


def test_smooth_and_blend() -> None:
    assert smooth(None, np.array([3.0]), 0.2) == [3.0]
    assert smooth(np.array([1.0]), np.array([3.0]), 0.2) == pytest.approx([1.4])
    assert blend(np.array([1.0]), np.array([3.0]), 0.25) == pytest.approx([2.5])


@given(
    st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(1, 100_000)), min_size=1, max_size=24),
    st.floats(0.0, 1.0),
)
@settings(max_examples=200)
def test_water_filling_meets_the_budget(blocks: list[tuple[float, int]], share: float) -> None:
    importance, dense = np.array([i for i, _ in blocks]), np.array([float(p) for _, p in blocks])
    budget = share * dense.sum()
    ratios = keep_ratios(importance, dense, budget)
    assert ((ratios >= 0.0) & (ratios <= 1.0)).all()
    assert (ratios * dense).sum() == pytest.approx(budget, rel=1e-9, abs=1e-6)
    between = (ratios < 1.0) & (importance > 1e-6)  # those that were not clipped are proportional to importance
    if between.sum() > 1 and ratios[between].min() > 0.0:
        levels = ratios[between] / importance[between]
        assert levels.max() == pytest.approx(levels.min(), rel=1e-6)


def test_blocks_without_importance_wait_until_all_others_are_whole() -> None:
    assert keep_ratios(np.array([1.0, 0.0]), np.array([10.0, 10.0]), 10.0) == pytest.approx([1.0, 0.0])
    assert keep_ratios(np.array([1.0, 0.0]), np.array([10.0, 10.0]), 15.0) == pytest.approx([1.0, 0.5])
    assert keep_ratios(np.zeros(2), np.array([10.0, 10.0]), 10.0) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("budget", [-1.0, 21.0])
def test_budget_outside_the_blocks_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        keep_ratios(np.ones(2), np.array([10.0, 10.0]), budget)


@given(st.integers(1_000, 10_000_000), st.floats(0.01, 0.99))
def test_unreachable_sparsity_names_one_that_is_reachable(total: int, share: float) -> None:
    other = int(total * share)
    with pytest.raises(ValueError, match="highest reachable") as error:
        block_budget(total, other + 1, 1.0 - share / 2.0)
    named = float(str(error.value).rsplit(" ", 1)[1])
    assert block_budget(total, other + 1, named) >= 0
    with pytest.raises(ValueError):
        block_budget(total, other + 1, named + 2e-4 + 2.0 / total)


@pytest.mark.parametrize(
    ("total", "least", "sparsity", "kept"),
    [(1000, 0, 0.5, 500), (1000, 500, 0.5, 500), (1000, 0, 0.3333, 666), (10, 0, 0.9, 1), (10, 10, 0.0, 10)],
)
def test_the_budget_is_what_is_left_rounded_down(total: int, least: int, sparsity: float, kept: int) -> None:
    """1 - 0.9 is 0.09999999999999998: of ten, one is kept all the same."""
    assert model_budget(total, least, sparsity) == kept
    assert block_budget(total, least, sparsity) == kept - least


def test_among_equals_the_first_blocks_stay_and_a_budget_may_be_used_up() -> None:
    """On every machine: without being told, NumPy sorts equals as the processor likes it."""
    benefit_B = np.arange(24) % 2.0
    dense_B, entry_B, none_B = np.full(24, 100), np.full(24, 60), np.zeros(24, dtype=bool)
    ratio_B = ratios_with_entry(ones(24), benefit_B, dense_B, entry_B, none_B, 60.0 * 18)
    np.testing.assert_array_equal(ratio_B[1::2], np.full(12, 0.6))
    np.testing.assert_array_equal(ratio_B[::2], [0.6] * 6 + [0.0] * 6)


def test_running_and_blended_importance_are_the_formulas() -> None:
    one, other = np.array([1.0, 4.0]), np.array([3.0, 0.5])
    np.testing.assert_allclose(smooth(one, other, 0.2), [1.4, 3.3])
    np.testing.assert_allclose(smooth(None, other, 0.2), other)
    np.testing.assert_allclose(blend(one, other, 0.25), [2.5, 1.375])


def test_what_narrowing_gives_back_is_at_least_a_hundredth() -> None:
    np.testing.assert_allclose(narrowable(np.array([100.0, 100.0, 50.0]), np.array([30.0, 100.0, 49.9])), [70, 1, 0.5])


def test_the_whole_model_is_a_budget_too() -> None:
    dense = np.array([30.0, 70.0])
    np.testing.assert_array_equal(keep_ratios(np.array([1.0, 0.0]), dense, 100.0), ones(2))
    np.testing.assert_array_equal(keep_ratios(np.array([1.0, 5.0]), dense, 0.0), np.zeros(2))

"""When masks move and how soft they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dap.schedule import MIN_UPDATES, Schedule, rank_mask


def schedule(total: int, epochs: int = 1) -> Schedule:
    return Schedule(total_steps=total, epochs=epochs, start=0.1, sparse=0.5, updates_per_epoch=3, temperature=0.1)


@given(st.integers(1, 5000), st.integers(1, 50))
def test_updates_are_enough_and_the_last_is_at_the_end(total: int, epochs: int) -> None:
    steps = sorted(schedule(total, epochs).update_steps)
    assert steps[-1] == total and steps[0] >= 1
    assert len(steps) == min(total, max(3 * epochs, MIN_UPDATES))
    gaps = np.diff([0, *steps])
    assert gaps.max() - gaps.min() <= 1


def test_phases() -> None:
    plan = schedule(1000)
    assert [plan.progress(s) for s in (0, 100, 300, 500, 1000)] == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])
    assert [plan.temperature_at(s) for s in (0, 500, 750, 1000)] == pytest.approx([0.1, 0.1, 0.05, 0.0])
    assert plan.temperature_at(1000) == 0.0 and plan.progress(1000) == 1.0


def test_a_run_without_sharpening_still_ends_hard() -> None:
    plan = Schedule(total_steps=10, epochs=1, start=0.0, sparse=1.0, updates_per_epoch=3, temperature=0.1)
    assert plan.temperature_at(9) == 0.1 and plan.temperature_at(10) == 0.0


@given(st.integers(1, 200), st.floats(0.0, 1.0), st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_mask_is_at_least_half_exactly_for_the_kept(length: int, share: float, temperature: float) -> None:
    ranks, cut = np.random.default_rng(length).permutation(length), int(share * length)
    mask = rank_mask(ranks, cut, temperature)
    assert ((mask >= 0.5) == (ranks >= cut)).all()
    assert ((mask >= 0.0) & (mask <= 1.0)).all()
    assert (np.diff(mask[np.argsort(ranks)]) >= 0.0).all()


def test_mask_is_0_9_one_width_above_the_threshold_and_1_when_nothing_is_cut() -> None:
    mask = rank_mask(np.arange(1000), 500, 0.1)
    assert mask[600] == pytest.approx(0.9, abs=2e-3) and mask[400] == pytest.approx(0.1, abs=2e-3)
    assert (rank_mask(np.arange(10), 0, 0.1) == 1.0).all()
    assert set(rank_mask(np.arange(10), 4, 0.0)) == {0.0, 1.0}

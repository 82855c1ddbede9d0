"""Pruning under measured time: the table, the budget it makes, and what keeps to it."""

from typing import Any

import numpy as np
import pytest
import torch
from dap_models import batches, logits, tiny_vit, train
from hypothesis import given, settings
from hypothesis import strategies as st

from dap.allocate import keep_ratios, ratios_with_entry
from dap.config import PruneConfig
from dap.cost import BlockLatency, LatencyTable
from dap.pruner import Pruner

K, F = 12, 96
STEPS = 24


def table(layers: int = 2, fixed: float = 0.6) -> LatencyTable:
    """Attention is mostly fixed cost, as on real devices; what lies behind the last attention is cheap."""
    blocks = []
    for layer in range(layers):
        for kind, width in (("attn", K), ("mlp", F)):
            last = layer == layers - 1
            dense = (80_000 if kind == "attn" else 40_000) / (20 if last else 1)
            widths = (2, width // 2, width)
            share = fixed if kind == "attn" else 0.1
            ns = tuple(round(dense * (share + (1 - share) * w / width)) for w in widths)
            blocks.append(BlockLatency(widths=widths, ns=ns, stays=last and kind == "attn"))
    return LatencyTable(outside_ns=50_000, blocks=tuple(blocks))


def spent(pruner: Pruner, latency: LatencyTable) -> int:
    kept = [block["width"] for block in pruner.blocks()]
    costs = [int(block.cost(0, width, 0)) for block, width in zip(latency.blocks, kept, strict=True)]
    return latency.outside_ns + sum(costs)


def make(sparsity: float = 0.5, latency: LatencyTable | None = None, **changes: Any) -> tuple[Any, Pruner, Any]:
    model = tiny_vit()
    config = PruneConfig(sparsity=sparsity, cost="latency", **changes)
    latency = table() if latency is None else latency
    pruner = Pruner(model, config, steps_per_epoch=STEPS, epochs=1, latency=latency)
    return model, pruner, torch.optim.AdamW(model.parameters(), lr=1e-3)


def test_a_block_costs_nothing_only_when_it_is_gone() -> None:
    block = BlockLatency(widths=(4, 8, 16), ns=(100, 120, 200))
    found = block.cost(0, np.array([0, 1, 4, 6, 8, 12, 16]), 0)
    assert found.tolist() == [0, 100, 100, 110, 120, 160, 200]
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("widths", "ns"),
    [((), ()), ((4, 4), (1, 2)), ((0, 4), (1, 2)), ((4, 8), (2, 1)), ((4, 8), (0, 1)), ((4, 8), (1,))],
)
def test_a_table_that_makes_no_sense_is_refused(widths: tuple[int, ...], ns: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"widths must rise|times must be above 0"):
        BlockLatency(widths=widths, ns=ns)


def test_a_table_belongs_to_its_cost_and_its_model() -> None:
    model = tiny_vit()
    with pytest.raises(ValueError, match="belong together"):
        Pruner(model, PruneConfig(cost="latency"), steps_per_epoch=1, epochs=1)
    with pytest.raises(ValueError, match="belong together"):
        Pruner(model, PruneConfig(), steps_per_epoch=1, epochs=1, latency=table())
    with pytest.raises(ValueError, match="inner widths"):
        Pruner(model, PruneConfig(cost="latency", gates="all"), steps_per_epoch=1, epochs=1, latency=table())
    with pytest.raises(ValueError, match="6 blocks, the model has 4"):
        make(latency=table(3))
    wrong = LatencyTable(outside_ns=1, blocks=(BlockLatency(widths=(3,), ns=(1,)),) * 4)
    with pytest.raises(ValueError, match="attn 0 end at width 3, the block has 12"):
        make(latency=wrong)


@settings(deadline=None, max_examples=25)
@given(
    keep=st.floats(0.0, 0.98),
    allocation=st.sampled_from(["bpi", "uniform", "global"]),
    fixed=st.floats(0.0, 0.95),
    importance=st.lists(st.floats(0.0, 5.0), min_size=4, max_size=4),
)
def test_every_reachable_budget_is_kept_and_used(
    keep: float, allocation: Any, fixed: float, importance: list[float]
) -> None:
    latency = table(fixed=fixed)
    budget = latency.least_ns + keep * (latency.dense_ns - latency.least_ns)
    _, pruner, _ = make(1 - (budget + 1) / latency.dense_ns, latency, allocation=allocation)
    pruner._importance = [np.array(importance), np.array(importance)]
    pruner._order = np.random.default_rng(0).permutation(pruner._order)
    for progress in (0.3, 0.7, 1.0):
        pruner._move_masks(progress, 0.0)
        limit = latency.dense_ns - progress * (latency.dense_ns - budget)
        assert spent(pruner, latency) <= limit + 2
    assert pruner.blocks()[2]["width"] > 0  # the last attention stays
    # no block could take its next step with what is left
    left = budget + 1 - spent(pruner, latency)
    for block, report in zip(latency.blocks, pruner.blocks(), strict=True):
        if report["width"] < block.widths[-1]:
            more, now = (int(block.cost(0, width, 0)) for width in (report["width"] + 1, report["width"]))
            assert more - now > left - 2


def test_sparsity_is_the_share_of_time_and_the_small_model_is_exact() -> None:
    model, pruner, optimizer = make(0.6)
    updates = train(model, pruner, optimizer, batches(STEPS))
    hard = pruner.harden()
    expected = logits(model)
    assert hard["sparsity"] == pytest.approx(1 - spent(pruner, table()) / table().dense_ns)
    assert 0.6 <= hard["sparsity"] < 0.65
    assert updates
    torch.testing.assert_close(logits(pruner.finalize()), expected)


def test_a_budget_below_what_always_stays_is_refused() -> None:
    latency = table()
    reachable = 1 - latency.least_ns / latency.dense_ns
    with pytest.raises(ValueError, match=f"highest reachable sparsity of this model is {reachable - 5e-5:.4f}"):
        make(reachable + 0.01)


def test_a_rule_for_widths_is_kept_for_the_block_that_stays_too() -> None:
    latency = table()
    model = tiny_vit()
    pruner = Pruner(
        model,
        PruneConfig(sparsity=0.69, cost="latency"),
        steps_per_epoch=STEPS,
        epochs=1,
        allowed_width=lambda kind, n: n % 8 == 0,
        latency=latency,
    )
    pruner.harden()
    assert all(block["width"] * block["heads"] % 8 == 0 for block in pruner.blocks())
    assert pruner.blocks()[2]["width"] >= 4


def test_time_decides_otherwise_than_parameters() -> None:
    """With equal benefits, attention that takes twice an MLP's time for half its parameters gets a smaller share."""

    def ratios(cost: str, latency: LatencyTable | None) -> list[float]:
        config = PruneConfig(sparsity=0.5, cost=cost)  # type: ignore[arg-type]
        pruner = Pruner(tiny_vit(), config, steps_per_epoch=STEPS, epochs=1, latency=latency)
        pruner._bpi_sum += 1.0
        pruner._scored_steps = 1
        pruner._learn_from_interval()
        return pruner._final_ratios().tolist()

    by_time, by_size = ratios("latency", table()), ratios("params", None)
    assert by_time[0] < by_time[1]
    assert by_size[0] > by_size[1]
    assert by_time[2] > by_time[0]  # next to nothing is gained by cutting what costs next to nothing


def test_the_price_of_being_there_is_no_price_of_width() -> None:
    def importance(extra: int) -> list[float]:
        blocks = [
            BlockLatency(widths=b.widths, ns=tuple(ns + extra * (i % 2 == 0) for ns in b.ns), stays=b.stays)
            for i, b in enumerate(table().blocks)
        ]
        _, pruner, _ = make(latency=LatencyTable(outside_ns=50_000, blocks=tuple(blocks)))
        pruner._kept = [6, 48, 6, 48]
        pruner._bpi_sum += torch.tensor([1.0, 2.0, 1.5, 0.5])
        pruner._scored_steps = 1
        pruner._learn_from_interval()
        return np.asarray(pruner._importance[0]).tolist()

    assert importance(50_000) == pytest.approx(importance(0))


def test_a_block_whose_time_does_not_depend_on_its_width_goes_by_its_benefit() -> None:
    """The budget pays the entry of one of the two attentions."""
    flat = BlockLatency(widths=(2, K), ns=(80_000, 80_000), stays=False)
    latency = LatencyTable(outside_ns=50_000, blocks=(flat, *table(layers=3).blocks[1:]))
    config = PruneConfig(sparsity=0.49, cost="latency")
    for benefit in (0.01, 1.0):
        pruner = Pruner(tiny_vit(depth=3), config, steps_per_epoch=STEPS, epochs=1, latency=latency)
        for _ in range(4):  # also once one of the two is gone, and its importance large because it holds nothing
            pruner._bpi_sum += torch.tensor([benefit, 0.1, 0.2, 0.1, 0.2, 0.1])
            pruner._scored_steps = 1
            pruner._learn_from_interval()
            first, _, second, *_ = pruner._final_ratios()
            assert (first > 0, second > 0) == (benefit > 0.2, benefit < 0.2)
            pruner._move_masks(1.0, 0.0)


def test_a_resumed_run_needs_its_table() -> None:
    model, pruner, optimizer = make(0.5)
    train(model, pruner, optimizer, batches(STEPS // 2))
    state = pruner.state_dict()
    _, again, _ = make(0.5)
    again.load_state_dict(state)
    assert again.blocks() == pruner.blocks()
    with pytest.raises(ValueError, match="other latencies"):
        make(0.5, table(fixed=0.5))[1].load_state_dict(state)
    before = {key: value for key, value in make(0.5)[1].state_dict().items() if key != "latency"}
    with pytest.raises(ValueError, match="other latencies"):
        again.load_state_dict(before)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 9.0), st.integers(2, 10_000), st.floats(0.001, 1.0)), min_size=1, max_size=12),
    st.floats(0.0, 1.0),
)
def test_what_is_kept_pays_its_entry_and_no_budget_is_exceeded(
    blocks: list[tuple[float, int, float]], share: float
) -> None:
    importance_B, dense_B, part_B = (np.array(column) for column in zip(*blocks, strict=True))
    entry_B = np.maximum(1, (part_B * dense_B).astype(np.int64))
    stays_B = np.arange(len(blocks)) == len(blocks) - 1
    budget = float(entry_B[-1] + share * (dense_B.sum() - entry_B[-1]))
    ratio_B = ratios_with_entry(importance_B, importance_B[::-1], dense_B, entry_B, stays_B, budget)
    kept_B = ratio_B * dense_B
    living_B = ratio_B > 0
    assert kept_B.sum() <= budget * (1 + 1e-9)
    assert (kept_B[living_B] >= entry_B[living_B] * (1 - 1e-9)).all()
    assert (ratio_B <= 1 + 1e-9).all()
    assert living_B[-1]
    # what is unused could not pay for a block that is gone, or there is nothing left to widen
    unused = budget - kept_B.sum()
    if (kept_B[living_B] < dense_B[living_B] * (1 - 1e-6)).any():
        assert unused <= 1e-6 * budget


def test_without_entries_it_is_the_papers_rule() -> None:
    importance_B, dense_B = np.array([0.5, 2.0, 1.0]), np.array([100_000, 200_000, 300_000])
    entry_B, stays_B = np.ones(3, dtype=np.int64), np.zeros(3, dtype=bool)
    free = ratios_with_entry(importance_B, importance_B, dense_B, entry_B, stays_B, 250_000.0)
    np.testing.assert_allclose(free, keep_ratios(importance_B, dense_B, 250_000.0), atol=1e-4)


def test_entries_are_paid_first_and_blocks_go_only_when_they_cannot_be() -> None:
    dense_B, entry_B, stays_B = np.array([100] * 4), np.array([60] * 4), np.zeros(4, dtype=bool)
    importance_B, benefit_B = np.array([1.0, 3.0, 2.0, 2.0]), np.array([2.0, 1.0, 3.0, 3.0])

    def ratios(budget: float) -> list[float]:
        return ratios_with_entry(importance_B, benefit_B, dense_B, entry_B, stays_B, budget).tolist()

    assert ratios(260.0) == pytest.approx([0.625, 0.675, 0.65, 0.65])
    assert ratios(230.0) == pytest.approx([0.7, 0.0, 0.8, 0.8])
    stays_B[1] = True
    assert ratios(230.0) == pytest.approx([0.0, 0.6 + 0.5 * 3 / 7, 0.6 + 0.5 * 2 / 7, 0.6 + 0.5 * 2 / 7])
    with pytest.raises(ValueError, match="does not cover what always stays, 60"):
        ratios(59.0)
    # one that is too dear leaves room for another
    entry_B[:] = 10, 30, 60, 60
    assert ratios(45.0)[2:] == [0.0, 0.0]
    assert ratios(45.0)[0] >= 0.1


def test_attention_goes_whole_rather_than_to_its_smallest_width() -> None:
    latency = table(layers=4)
    pruner = Pruner(
        tiny_vit(depth=4), PruneConfig(sparsity=0.6, cost="latency"), steps_per_epoch=STEPS, epochs=1, latency=latency
    )
    pruner._importance = pruner._benefit = [np.array([1.0, 2.0, 3.0, 2.0, 0.5, 2.0, 1.0, 1.0])] * 2
    pruner._move_masks(1.0, 0.0)
    widths = [block["width"] for block in pruner.blocks()]
    assert widths[4] == 0
    assert widths[2] >= K // 2

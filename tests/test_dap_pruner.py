"""The pruner in a training loop: harmless, on target, reversible until the end, resumable, the same on all ranks."""

import io
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from dap_models import CLASSES, batches, logits, tiny_vit, train
from torch import Tensor

from dap import allocate, importance
from dap.config import PruneConfig
from dap.cost import count_macs, count_params
from dap.gates import branches_of
from dap.indicator import Tokens
from dap.pruner import Pruner

STEPS = 30


def make(config: PruneConfig, model: Any = None, steps: int = STEPS, **changes: Any) -> tuple[Any, Pruner, Any]:
    model = tiny_vit() if model is None else model
    pruner = Pruner(model, config, steps_per_epoch=steps, epochs=1, **changes)
    return model, pruner, torch.optim.AdamW(model.parameters(), lr=1e-3)


@pytest.mark.parametrize("sparsity", [0, 1, 1.5, -0.1, float("nan"), float("inf"), "0.5", None, True])
def test_bad_sparsity_is_refused(sparsity: Any) -> None:
    with pytest.raises(ValueError, match="sparsity must be a number strictly between 0 and 1"):
        PruneConfig(sparsity=sparsity)


@pytest.mark.parametrize(
    "changes",
    [
        {"start": 0.5, "sparse": 0.5},
        {"start": -0.1},
        {"sparse": 1.1},
        {"cost": "flops"},
        {"gates": "outer"},
        {"allocation": "random"},
        {"score": "hessian"},
        {"probe": None},
        {"probe_lr": -0.1},
        {"probe_images": 1.5},
        {"updates_per_epoch": True},
        {"seed": -1},
        {"temperature": float("nan")},
        {"smoothing": "0.2"},
        {"benefit_scale": 0.0},
    ],
)
def test_bad_settings_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        PruneConfig(**changes)


def test_unreachable_sparsity_names_one_that_works() -> None:
    with pytest.raises(ValueError, match="highest reachable sparsity") as error:
        make(PruneConfig(sparsity=0.99))
    named = float(str(error.value).rsplit(" ", 1)[1])
    _, pruner, _ = make(PruneConfig(sparsity=named))
    assert all(block["width"] == 0 for block in pruner.harden()["blocks"])


@pytest.mark.parametrize("probe", ["default", "reference"])
def test_before_start_training_is_untouched(probe: Any) -> None:
    """Same weights, bit for bit, as without a pruner; dropout's random stream included."""
    data, plain = batches(6), tiny_vit(drop_path_rate=0.2, proj_drop_rate=0.1)
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    for images, targets in data:
        F.cross_entropy(plain.train()(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    pruned = tiny_vit(drop_path_rate=0.2, proj_drop_rate=0.1)
    torch.manual_seed(5)
    _, pruner, optimizer = make(PruneConfig(sparsity=0.5, start=0.3, probe=probe), pruned)
    updates = train(pruned, pruner, optimizer, data)
    assert updates and all(u["sparsity"] == 0.0 and u["progress"] == 0.0 for u in updates)
    expected = dict(plain.named_parameters())
    for name, parameter in pruned.named_parameters():
        plain_name = name.replace("parametrizations.", "").replace(".original", "")
        assert torch.equal(parameter, expected.pop(plain_name))
    assert not expected


@pytest.mark.parametrize("gates", ["inner", "all"])
@pytest.mark.parametrize("cost", ["params", "macs"])
@pytest.mark.parametrize("allocation", ["bpi", "uniform", "global"])
def test_a_run_ends_within_one_unit_of_its_target(gates: Any, cost: Any, allocation: Any) -> None:
    config = PruneConfig(sparsity=0.6, gates=gates, cost=cost, allocation=allocation)
    model, pruner, optimizer = make(config)
    count: Callable[[Any], int] = count_params if cost == "params" else count_macs
    dense = count(model)
    shape = pruner._branches[0].shape
    cost_of = shape.params if cost == "params" else shape.macs
    one_unit = int(cost_of(24, 2, 24) - cost_of(24, 1, 24))  # a head channel, the largest step there is
    updates = train(model, pruner, optimizer, batches(STEPS))
    assert np.diff([u["sparsity"] for u in updates]).min() >= -one_unit / dense
    last, hard = updates[-1], pruner.harden()
    assert last["step"] == STEPS and last["progress"] == 1.0 and last["temperature"] == 0.0
    assert hard == last
    small = pruner.finalize()
    assert 1 - count(small) / dense == pytest.approx(last["sparsity"], abs=1e-9)
    assert 0 <= 0.4 * dense - count(small) <= one_unit + 1
    assert not [name for name, buffer in small.named_buffers() if buffer.is_floating_point()]  # nothing uncounted
    assert json.loads(json.dumps(updates)) == updates
    assert [block["name"] for block in pruner.blocks()] == ["attn 0", "mlp 0", "attn 1", "mlp 1"]
    if allocation == "uniform" and gates == "inner" and cost == "params":
        ratios = [block["keep_ratio"] for block in last["blocks"]]
        assert max(ratios) - min(ratios) < 0.2  # one head channel is a twelfth of its block


@pytest.mark.parametrize("cost", ["params", "macs"])
@pytest.mark.parametrize("allocation", ["bpi", "uniform", "global"])
def test_whole_heads_go(cost: Any, allocation: Any) -> None:
    """On target, at widths that the device likes for all heads together, and the small model is the masked one."""
    config = PruneConfig(sparsity=0.7, gates="heads", cost=cost, allocation=allocation)
    asked: list[tuple[str, int]] = []

    def allowed(layer: str, n: int) -> bool:
        asked.append((layer, n))
        return n % 2 == 0

    model, pruner, optimizer = make(config, tiny_vit(num_heads=4), allowed_width=allowed)
    updates = train(model, pruner, optimizer, batches(STEPS))
    hard = pruner.harden()
    assert hard == updates[-1]
    expected, dense = logits(model), (count_params if cost == "params" else count_macs)(tiny_vit(num_heads=4))
    small: Any = pruner.finalize()
    held = (count_params if cost == "params" else count_macs)(small)
    assert 0.25 * dense < held <= 0.3 * dense
    assert 1 - held / dense == pytest.approx(hard["sparsity"], abs=1e-9)
    torch.testing.assert_close(logits(small), expected, atol=1e-5, rtol=1e-5)
    attentions = [block for block in hard["blocks"] if block["name"].startswith("attn") and block["width"]]
    assert attentions and min(block["heads"] for block in attentions) < 4
    assert [(block.attn.num_heads, block.attn.head_dim) for block in small.blocks if block.attn is not None] == [
        (block["heads"], block["width"]) for block in attentions
    ]
    assert all(("qkv", block["heads"] * block["width"]) in asked for block in attentions)
    assert all(block["heads"] * block["width"] % 2 == 0 for block in hard["blocks"])


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
def test_stock_deits_meet_the_target(size: str, sparsity: float) -> None:
    """The whole allocation of the real architectures, without weights or a training step."""
    with torch.device("meta"):
        model: Any = timm.create_model(f"deit_{size}_patch16_224", num_classes=37)
    shapes = [branch.shape for branch in branches_of(model)]
    dense_B = np.array([float(s.params(s.dim, s.width, s.dim)) for s in shapes])
    total = count_params(model)
    other = total - int(dense_B.sum())
    # what the formula calls the blocks is exactly what the modules hold
    assert other == sum(p.numel() for name, p in model.named_parameters() if not name.startswith("blocks."))
    budget = allocate.block_budget(total, other, sparsity)
    target_B = dense_B * allocate.keep_ratios(np.random.default_rng(1).random(len(shapes)), dense_B, budget)
    curves = [s.params(s.dim, np.arange(s.width + 1), s.dim) for s in shapes]
    kept = importance.select_counts(curves, target_B.tolist(), budget, [np.arange(len(c)) for c in curves])
    held = other + sum(int(c[m]) for c, m in zip(curves, kept, strict=True))
    assert 0 <= (1 - sparsity) * total - held <= 2 * shapes[1].dim + 2


def test_widths_obey_the_rule_of_the_device() -> None:
    def even(kind: str, n: int) -> bool:
        return n % (4 if kind == "qkv" else 8) == 0

    model, pruner, optimizer = make(PruneConfig(sparsity=0.6), allowed_width=even)
    dense = count_params(model)
    train(model, pruner, optimizer, batches(STEPS))
    small: Any = pruner.finalize()
    assert count_params(small) <= 0.4 * dense
    for block in small.blocks:
        assert block.attn is None or block.attn.attn_dim % 4 == 0
        assert block.mlp is None or block.mlp.fc1.out_features % 8 == 0
    with pytest.raises(ValueError, match="inner"):
        make(PruneConfig(gates="all"), allowed_width=even)


class Script:
    """Stands in for the probes: block benefits that follow a script."""

    def __init__(self, pruner: Pruner, bpi_of: Callable[[int], list[float]]) -> None:
        self.step, self.bpi_of = 0, bpi_of
        pruner._indicator.learn = self.learn  # type: ignore[method-assign]

    def learn(self, tokens: Tokens) -> Tensor:
        self.step += 1
        return torch.tensor([self.bpi_of(self.step)] * 2)


@pytest.mark.parametrize("gates", ["inner", "all"])
def test_a_block_whose_benefit_rises_late_gets_its_budget_and_its_units_back(gates: Any) -> None:
    def late(step: int) -> list[float]:
        return [1.0, 1.0, 1.0, -1.0 if step < 25 else 10.0]

    kept: dict[str, list[float]] = {}
    for allocation in ("bpi", "uniform"):
        config = PruneConfig(sparsity=0.6, gates=gates, allocation=allocation, start=0.05, sparse=0.3, smoothing=0.4)
        model, pruner, optimizer = make(config, steps=50)
        Script(pruner, late)
        data, low, low_masks = batches(50), 1.0, set[int]()
        history: list[float] = []
        for chunk in range(5):
            updates = train(model, pruner, optimizer, data[10 * chunk : 10 * chunk + 10])
            history += [u["blocks"][3]["keep_ratio"] for u in updates]
            if chunk == 1:
                low, low_masks = history[-1], set(pruner._kept_indices()[3]["width"].tolist())
        kept[allocation] = history
        end_masks = set(pruner._kept_indices()[3]["width"].tolist())
        if allocation == "bpi":
            assert history[-1] > low + 0.3 and len(end_masks - low_masks) >= 10
            small: Any = pruner.finalize()
            assert small.blocks[1].mlp.fc1.out_features == len(end_masks)
        else:
            assert abs(history[-1] - low) < 0.05
    assert kept["bpi"][-1] > kept["uniform"][-1] + 0.1


def test_a_zeroed_branch_is_worth_about_nothing() -> None:
    model: Any = tiny_vit()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight.zero_()
        model.blocks[1].mlp.fc2.bias.zero_()
    pruner = Pruner(model, PruneConfig(start=0.9, sparse=1.0), steps_per_epoch=24, epochs=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    update = train(model, pruner, optimizer, batches(2))[-1]
    assert update["blocks"][3]["bpi_class"] == pytest.approx(0.0, abs=1e-6)
    assert update["blocks"][3]["bpi_patch"] == pytest.approx(0.0, abs=1e-6)
    assert all(abs(block["bpi_class"] or 0.0) > 1e-5 for block in update["blocks"][:3])


@pytest.mark.parametrize("at", [7, 20, STEPS])
@pytest.mark.parametrize("changes", [{}, {"gates": "all"}, {"allocation": "global"}], ids=["inner", "all", "global"])
def test_a_resumed_run_equals_one_that_was_not_interrupted(at: int, changes: dict[str, Any]) -> None:
    config, data = PruneConfig(sparsity=0.6, **changes), batches(STEPS)
    model, pruner, optimizer = make(config)
    updates = train(model, pruner, optimizer, data)

    first_model, first, first_optimizer = make(config)
    train(first_model, first, first_optimizer, data[:at])
    file = io.BytesIO()
    torch.save({"m": first_model.state_dict(), "p": first.state_dict(), "o": first_optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second_model, second, second_optimizer = make(config, tiny_vit(seed=9))
    second_model.load_state_dict(state["m"])
    second.load_state_dict(state["p"])
    second_optimizer.load_state_dict(state["o"])
    assert second.blocks() == first.blocks()
    assert torch.equal(logits(second_model), logits(first_model))
    resumed = train(second_model, second, second_optimizer, data[at:])
    assert resumed == [u for u in updates if u["step"] > at]
    assert torch.equal(logits(second.finalize()), logits(pruner.finalize()))


def test_state_of_another_run_is_refused() -> None:
    state = make(PruneConfig(sparsity=0.5))[1].state_dict()
    with pytest.raises(ValueError, match="config"):
        make(PruneConfig(sparsity=0.6))[1].load_state_dict(state)
    with pytest.raises(ValueError, match="total_steps"):
        make(PruneConfig(sparsity=0.5), steps=STEPS + 1)[1].load_state_dict(state)
    with pytest.raises(ValueError, match="other sizes"):
        make(PruneConfig(sparsity=0.5), tiny_vit(num_heads=4))[1].load_state_dict(state)


def test_misuse_is_explained() -> None:
    model, pruner, _ = make(PruneConfig(sparsity=0.5), steps=1)
    images, targets = batches(1)[0]
    with pytest.raises(ValueError, match=r"after loss\.backward"):
        pruner.step(targets)
    F.cross_entropy(model.eval()(images), targets).backward()
    with pytest.raises(ValueError, match="train mode"):
        pruner.step(targets)
    F.cross_entropy(model.train()(images), targets).backward()
    with pytest.raises(ValueError, match="4 classes"):
        pruner.step(torch.ones(8, CLASSES - 1))
    pruner.step(targets)
    with pytest.raises(ValueError, match="is over"):
        pruner.step(targets)
    small = pruner.finalize()
    with pytest.raises(ValueError, match="already"):
        pruner.finalize()
    with pytest.raises(ValueError, match="at least one step"):
        Pruner(tiny_vit(), PruneConfig(), steps_per_epoch=0, epochs=1)
    assert small.training


def test_a_step_with_overflowed_gradients_does_not_count() -> None:
    model, pruner, _ = make(PruneConfig(sparsity=0.5))
    images, targets = batches(1)[0]
    F.cross_entropy(model.train()(images), targets).backward()
    model.blocks[0].attn.qkv.weight.grad[0, 0] = float("inf")
    pruner.step(targets)
    assert torch.equal(pruner._score_sum, torch.zeros_like(pruner._score_sum))


def test_gradient_accumulation_sees_the_whole_gradient() -> None:
    images, targets = batches(1, size=16)[0]
    sums = []
    for parts in (1, 2):
        model, pruner, _ = make(PruneConfig(sparsity=0.5), steps=48)
        for x, y in zip(images.chunk(parts), targets.chunk(parts), strict=True):
            (F.cross_entropy(model.train()(x), y) / parts).backward()
        pruner.step(y)
        sums.append(pruner._score_sum.clone())
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-3, atol=1e-9)


def test_mixed_targets_run() -> None:
    model, pruner, optimizer = make(PruneConfig(sparsity=0.5))
    data = [(x, F.one_hot(y, CLASSES) * 0.9 + 0.1 / CLASSES) for x, y in batches(4)]
    assert train(model, pruner, optimizer, data)


def _rank(rank: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = tiny_vit()
    pruner = Pruner(model, PruneConfig(sparsity=0.6), steps_per_epoch=12, epochs=1)
    parallel: Any = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    updates = train(parallel, pruner, optimizer, batches(12, seed=rank))
    probes = torch.cat([p.detach().flatten() for p in pruner._indicator.probes.parameters()])
    queue.put((rank, updates, probes.tolist()))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_take_the_same_decisions() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context("spawn").Queue()
    context = mp.spawn(_rank, args=(port, queue), nprocs=2, join=False)
    results = {rank: (updates, probes) for rank, updates, probes in (queue.get(timeout=120) for _ in range(2))}
    while not context.join():  # true once both have ended; raises if one has failed
        pass
    assert results[0] == results[1]
    single, pruner, optimizer = make(PruneConfig(sparsity=0.6), steps=12)
    assert train(single, pruner, optimizer, batches(12, seed=0)) != results[0][0]  # both ranks' images counted


def test_presets_may_vary_a_config() -> None:
    assert replace(PruneConfig(sparsity=0.5), sparsity=0.75).sparsity == 0.75

"""WD-Prune: budget met, exact, masks learn where they are 0, penalties ascend, the depth cut, the released flag."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dap_models import batches, check_survives, logits, tiny_vit, train

from dap import block_params, count_params
from dap.baselines.wdpruning import WDPrune, WDPruneConfig

STEPS = 30
DEEP = {"depth": 6, "embed_dim": 32, "num_heads": 4}


def make(model: Any = None, steps: int = STEPS, **changes: Any) -> tuple[Any, WDPrune, Any]:
    model = tiny_vit(**DEEP) if model is None else model
    pruner = WDPrune(model, WDPruneConfig(**changes), steps_per_epoch=steps, epochs=1)
    return model, pruner, torch.optim.AdamW(model.parameters(), lr=1e-3)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("changes", [{}, {"init_values": 0.5, "reg_tokens": 2}, {"qkv_bias": False, "embed_dim": 36}])
def test_budget_met_and_exact(sparsity: float, changes: dict[str, Any], tmp_path: Path) -> None:
    model, pruner, optimizer = make(tiny_vit(**{**DEEP, **changes}), sparsity=sparsity)
    dense = count_params(model)
    updates = train(model, pruner, optimizer, batches(STEPS))
    assert updates[0]["sparsity"] < 0.1 * sparsity and updates[-1]["step"] == STEPS
    update = pruner.harden()
    assert pruner.harden() == update
    masked = logits(model)
    small: Any = pruner.finalize()
    torch.testing.assert_close(logits(small), masked, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(model), masked, atol=1e-5, rtol=1e-5)
    assert 1 - count_params(small) / dense == pytest.approx(update["sparsity"], abs=1e-9)
    step = 16 * (2 * model.embed_dim + 1)  # of fc1's rows, the largest there is
    assert 0 <= (1 - sparsity) * dense - count_params(small) <= step
    assert [b["keep_ratio"] for b in pruner.blocks()] == [b["keep_ratio"] for b in update["blocks"]]
    for block, report in zip(small.blocks, update["blocks"][::2], strict=False):
        assert block.attn.num_heads == report["heads"] and block.attn.head_dim == report["width"]
        assert block.mlp.fc1.out_features % 16 == 0 and block.mlp.fc2.out_features % (16 if not changes else 1) == 0
    check_survives(small, tmp_path)


def test_depth_is_cut_when_that_is_at_most_half_of_what_must_go() -> None:
    dense = tiny_vit(**DEEP)
    behind = sum(list(block_params(dense).values())[10:]) / count_params(dense)
    for sparsity, depth in ((1.9 * behind, 6), (2.1 * behind, 5), (0.8, 5)):
        model, pruner, optimizer = make(sparsity=sparsity)
        train(model, pruner, optimizer, batches(4))
        assert all(block["keep_ratio"] > 0.0 for block in pruner.blocks())  # all blocks learn until the end
        blocks = pruner.harden()["blocks"]
        assert [block["keep_ratio"] > 0.0 for block in blocks] == [True] * 2 * depth + [False] * (12 - 2 * depth)
        classifier = pruner._classifier[1].weight if depth == 5 else model.head.weight
        small: Any = pruner.finalize()
        assert len(small.blocks) == len(small.feature_info) == depth
        assert torch.equal(small.head.weight, classifier)


def test_penalties_ascend_while_too_much_is_kept_and_then_the_budget_is_held() -> None:
    model, pruner, optimizer = make(steps=60, sparsity=0.5)
    data, weights, excess = batches(8), [pruner._penalties.clone()], [float(pruner._excess().detach())]
    for step in range(59):
        train(model, pruner, optimizer, [data[step % 8]])
        weights.append(pruner._penalties.clone())
        excess.append(float(pruner._excess().detach()))
    assert weights[0].tolist() == [0.0, 0.0] and min(excess) == 0.0 < excess[0]
    for before, after, above in zip(weights, weights[1:], excess, strict=False):
        assert (after > before).all() if above > 1e-3 else (after >= before).all()
    assert torch.equal(weights[-1], weights[excess.index(0.0)])
    half = count_params(tiny_vit(**DEEP)) // 2
    assert 0 <= half - pruner._cost(pruner._kept) <= 16 * (2 * 32 + 1)


def test_thresholds_and_scores_follow_straight_through_gradients() -> None:
    model, pruner, _ = make(sparsity=0.5)
    images, targets = batches(1)[0]
    seen: dict[str, Any] = {}
    pruner._optimizers[0].step = lambda: seen.update(  # type: ignore[method-assign, assignment]
        t=pruner._thresholds.grad.clone(), s=[score.grad.clone() for score in pruner._scores]
    )
    slopes = pruner._gates.slopes
    pruner._gates.slopes = lambda: seen.setdefault("slopes", slopes())  # type: ignore[method-assign]
    (F.cross_entropy(model.train()(images), targets) + pruner.loss(targets)).backward()
    pruner.step(targets)
    for score, slope in zip(seen["s"], seen["slopes"], strict=True):
        assert torch.equal(score, slope) and slope.abs().max() > 0
    # penalties are still 0, so a threshold sees its masks alone, which are all 1
    torch.testing.assert_close(seen["t"], torch.stack([slope.sum() for slope in seen["slopes"]]))


def test_a_unit_that_does_nothing_keeps_its_score() -> None:
    model = tiny_vit(**DEEP)
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[:, 8:16] = 0.0  # head 1
        model.blocks[2].mlp.fc1.weight[5], model.blocks[2].mlp.fc1.bias[5] = 0.0, 0.0
    model, pruner, _ = make(model, sparsity=0.5)
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.0), batches(5))
    assert pruner._scores[0][1] == 0.0 and pruner._scores[0][0] != 0.0
    assert pruner._scores[10][5] == 0.0 and (pruner._scores[10] != 0.0).sum() == 127


def test_masks_keep_the_best_scores_and_the_count_that_the_threshold_says() -> None:
    _, pruner, _ = make(sparsity=0.3)
    with torch.no_grad():
        pruner._scores[2].copy_(torch.arange(128.0))
        pruner._thresholds.fill_(10.0)[2] = 0.0
    model, data = pruner.model, batches(1)
    pruner._optimizers = []
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.0), data)
    assert pruner._masks()[2].tolist() == [0.0] * 64 + [1.0] * 64
    assert [mask.mean() for mask in pruner._masks()[:2]] == [1.0, 1.0]


@pytest.mark.parametrize("released", [False, True])
def test_the_released_flag_leaves_scores_and_embeddings_untrained(released: bool) -> None:
    model, pruner, optimizer = make(sparsity=0.5, released=released)
    before = {name: model.get_parameter(name).clone() for name in ("cls_token", "pos_embed", "norm.weight")}
    train(model, pruner, optimizer, batches(6))
    assert all(bool((score == 0).all()) == released for score in pruner._scores)
    assert not torch.equal(model.norm.weight, before["norm.weight"])
    for name in ("cls_token", "pos_embed"):
        assert torch.equal(model.get_parameter(name), before[name]) == released
    small = pruner.finalize()
    assert all(p.requires_grad for p in [*small.parameters(), *model.parameters()])


@pytest.mark.parametrize("at", [5, 20, STEPS])
def test_a_resumed_run_equals_one_that_was_not_interrupted(at: int) -> None:
    data = batches(STEPS)
    model, pruner, optimizer = make(sparsity=0.6)
    updates = train(model, pruner, optimizer, data)
    first_model, first, first_optimizer = make(sparsity=0.6)
    train(first_model, first, first_optimizer, data[:at])
    if at == STEPS:
        first.harden()
    file = io.BytesIO()
    torch.save({"m": first_model.state_dict(), "p": first.state_dict(), "o": first_optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second_model, second, second_optimizer = make(tiny_vit(**DEEP, seed=9), sparsity=0.6)
    second_model.load_state_dict(state["m"])
    second.load_state_dict(state["p"])
    second_optimizer.load_state_dict(state["o"])
    assert second.blocks() == first.blocks()
    assert torch.equal(logits(second_model), logits(first_model))
    assert train(second_model, second, second_optimizer, data[at:]) == [u for u in updates if u["step"] > at]
    assert torch.equal(logits(second.finalize()), logits(pruner.finalize()))


def test_before_the_first_width_goes_training_is_as_without_masks() -> None:
    plain, masked = tiny_vit(**DEEP), tiny_vit(**DEEP)
    _, _, _ = make(masked, sparsity=0.5)
    torch.testing.assert_close(logits(masked), logits(plain))


def test_mixed_targets_run() -> None:
    model, pruner, optimizer = make(sparsity=0.5)
    train(model, pruner, optimizer, [(x, F.one_hot(y, 5) * 0.9 + 0.02) for x, y in batches(2)])
    assert np.isfinite(pruner._thresholds.detach().numpy()).all()


def test_misuse_is_explained() -> None:
    with pytest.raises(ValueError, match="sparsity"):
        WDPruneConfig(sparsity=0.0)
    with pytest.raises(ValueError, match="without distillation"):
        make(tiny_vit(distilled=True))
    with pytest.raises(ValueError, match="at least one step"):
        make(steps=0)
    with pytest.raises(ValueError, match="highest reachable") as error:
        make(sparsity=0.99)
    named = float(str(error.value).rsplit(" ", 1)[1])
    model, pruner, _ = make(sparsity=named, steps=1)
    dense = count_params(model)
    images, targets = batches(1)[0]
    with pytest.raises(ValueError, match="train mode"):
        pruner.loss(targets)
    F.cross_entropy(model.train()(images), targets).backward()
    with pytest.raises(ValueError, match=r"add loss\(targets\)"):
        pruner.step(targets)
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.01), [(images, targets)])
    with pytest.raises(ValueError, match="is over"):
        pruner.step(targets)
    assert count_params(pruner.finalize()) <= (1 - named) * dense
    state = make(sparsity=0.5)[1].state_dict()
    with pytest.raises(ValueError, match="config"):
        make(sparsity=0.6)[1].load_state_dict(state)
    with pytest.raises(ValueError, match="total_steps"):
        make(sparsity=0.5, steps=STEPS + 1)[1].load_state_dict(state)
    with pytest.raises(ValueError, match="other sizes"):
        make(tiny_vit(**{**DEEP, "num_heads": 2}), sparsity=0.5)[1].load_state_dict(state)

"""Isomorphic pruning through torch-pruning: budget met, ordinary small models, the model itself untouched."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dap_models import batches, check_survives, logits, tiny_vit

from dap import architecture_of, count_params
from dap.baselines.isomorphic import Isomorphic, IsomorphicConfig
from dap.compact import build


def make(model: Any = None, sparsity: float = 0.5) -> Isomorphic:
    pytest.importorskip("torch_pruning", reason="torch-pruning is optional: pip install torch-pruning==1.6.1")
    return Isomorphic(tiny_vit() if model is None else model, IsomorphicConfig(sparsity=sparsity), steps_per_epoch=3)


@pytest.mark.parametrize(
    ("sparsity", "changes"),
    [
        (0.2, {}),
        (0.5, {"distilled": True, "init_values": 0.5}),
        (0.5, {"pre_norm": True, "qkv_bias": False, "reg_tokens": 2}),
        (0.8, {"no_embed_class": True}),
    ],
)
def test_budget_met_by_an_ordinary_small_model(sparsity: float, changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_vit(**changes).train()
    before = logits(model)
    method = make(model, sparsity)
    assert all(block["keep_ratio"] == 1.0 for block in method.blocks())
    method.calibrate(batches(method.calibration_steps))
    update = method.harden()
    assert torch.equal(logits(model), before) and all(p.grad is None for p in model.parameters())
    small: Any = method.finalize()
    assert small.training
    sizes = [count_params(model), count_params(small)]
    assert update["sparsity"] == 1 - sizes[1] / sizes[0]
    assert 0 <= (1 - sparsity) * sizes[0] - sizes[1] < 0.06 * sizes[0]  # one channel of the stream is a 24th
    for block, attn, mlp in zip(small.blocks, update["blocks"][::2], update["blocks"][1::2], strict=True):
        assert (block.attn.num_heads, block.attn.head_dim) == (attn["heads"], attn["width"])
        assert block.mlp.fc1.out_features == mlp["width"] and block.norm1.weight.shape == (small.embed_dim,)
    check_survives(small, tmp_path)


def test_the_small_model_computes_what_the_library_left() -> None:
    model = tiny_vit(distilled=True, init_values=0.5)
    generator = torch.Generator().manual_seed(0)
    left = make(model)._pruned([torch.randn(p.shape, generator=generator) for p in model.parameters()], 0.4)
    assert count_params(left) < count_params(model)
    assert torch.equal(logits(build(architecture_of(left), left.state_dict())), logits(left))


def test_units_that_do_nothing_go_first() -> None:
    model: Any = tiny_vit()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[::3], model.blocks[0].mlp.fc1.bias[::3] = 0.0, 0.0
        model.blocks[0].mlp.fc2.weight[:, ::3] = 0.0
    method = make(model, 0.3)
    method.calibrate(batches(3))
    kept = method.finalize().blocks[0].mlp.fc1.weight  # type: ignore[union-attr]
    assert len(kept) <= 64 and bool((kept.abs().sum(1) > 0).all())


def test_state_round_trip(tmp_path: Path) -> None:
    method = make()
    method.calibrate(batches(2))
    torch.save(method.state_dict(), tmp_path / "state.pt")
    resumed = make()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.harden() == method.harden()
    assert torch.equal(logits(resumed.finalize()), logits(method.finalize()))
    with pytest.raises(ValueError, match="config"):
        make(sparsity=0.6).load_state_dict(method.state_dict())


def test_bad_input_is_explained() -> None:
    method = make()
    with pytest.raises(ValueError, match="call calibrate"):
        method.finalize()
    with pytest.raises(ValueError, match="got none"):
        method.calibrate([])
    with pytest.raises(ValueError, match="highest reachable"):
        make(sparsity=0.999).calibrate(batches(1))


def test_without_the_library_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError, match="pip install torch-pruning"):
        Isomorphic(tiny_vit(), IsomorphicConfig(), steps_per_epoch=1)

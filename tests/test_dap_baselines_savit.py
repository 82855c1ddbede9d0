"""SAViT: scores and curvature are what they claim, the budget is filled, the best stay, the result is small."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from dap_models import batches, check_survives, logits, tiny_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from dap.baselines.narrow import narrow
from dap.baselines.savit import COMPONENTS, Savit, SavitConfig, _Gates
from dap.baselines.savit_search import Costs, evolve, protected, select
from dap.cost import count_macs, count_params
from dap.gates import branches_of


def make(model: Any = None, **changes: Any) -> Savit:
    model = tiny_vit() if model is None else model
    savit = Savit(model, SavitConfig(**changes), steps_per_epoch=30)
    savit.calibrate(batches(savit.calibration_steps))
    return savit


@pytest.mark.parametrize("cost", ["params", "macs"])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(
    "changes", [{}, {"distilled": True, "init_values": 0.5}, {"pre_norm": True, "qkv_bias": False}]
)
def test_the_small_model_fills_the_budget_within_a_hidden_unit(
    cost: Any, sparsity: float, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_vit(**changes)
    before, count = logits(model), count_params if cost == "params" else count_macs
    savit = make(model, sparsity=sparsity, cost=cost)
    update = savit.harden()
    assert torch.equal(logits(model), before)  # one shot: there is no masked model
    small: Any = savit.finalize()
    tokens = small.patch_embed.num_patches + small.num_prefix_tokens
    one_unit = 2 * small.embed_dim + 1 if cost == "params" else 2 * tokens * small.embed_dim
    assert 0 <= (1 - sparsity) * count(model) - count(small) < one_unit + 1
    assert update["sparsity"] == pytest.approx(1 - count(small) / count(model))
    assert [b["heads"] for b in update["blocks"][::2]] == [block.attn.num_heads for block in small.blocks]
    assert [b["width"] for b in update["blocks"][1::2]] == [block.mlp.fc1.out_features for block in small.blocks]
    check_survives(small, tmp_path)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_small_distilled_patch16_224"])
@pytest.mark.parametrize("cost", ["params", "macs"])
def test_real_models_reach_the_target_in_the_search(name: str, cost: Any) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=37)
    costs = Costs(model, branches_of(model), cost)
    assert costs.at(*costs.most) == costs.total == (count_params if cost == "params" else count_macs)(model)
    curvature = np.array([[2.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 3.0]])
    for sparsity in (0.1, 0.5, 0.9):
        budget = int((1 - sparsity) * costs.total)
        kept = evolve(curvature, costs, budget, np.random.default_rng(0))
        assert (costs.fewest <= kept).all() and (kept <= costs.most).all()
        assert 0 <= 1 - costs.at(*kept) / budget < 1e-3
        again = evolve(curvature, costs, budget, np.random.default_rng(0))
        assert kept == again


def test_the_search_spares_what_the_curvature_says_hurts() -> None:
    model = tiny_vit(num_heads=8)
    costs = Costs(model, branches_of(model), "params")
    cut = []
    for hurts in range(3):
        curvature = np.diag([1.0, 1.0, 1.0])
        curvature[hurts, hurts] = 1000.0
        kept = evolve(curvature, costs, costs.total // 2, np.random.default_rng(0))
        cut.append(1.0 - np.array(kept) / costs.most)
    for component in range(3):
        assert cut[component][component] == min(fractions[component] for fractions in cut) < 0.1


def test_scores_are_squared_slopes_and_a_unit_that_does_nothing_scores_0() -> None:
    model: Any = tiny_vit()
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[:, :12] = 0.0  # head 0 is not heard
        model.blocks[1].mlp.fc2.weight[:, 7] = 0.0
        # channel 5 is always 0 and read by nobody
        for block in model.blocks:
            for layer in (block.attn.qkv, block.mlp.fc1):
                layer.weight[:, 5] = 0.0
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight[5], layer.bias[5] = 0.0, 0.0
        model.patch_embed.proj.weight[5], model.patch_embed.proj.bias[5] = 0.0, 0.0
        model.cls_token[..., 5], model.pos_embed[..., 5] = 0.0, 0.0
    gates = _Gates(model.eval(), branches_of(model))
    scores = {name: [torch.zeros_like(gate) for gate in gates.of[name]] for name in COMPONENTS}
    images, targets = batches(1)[0]

    def loss() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.cross_entropy(model(images), targets)

    curvature = gates.accumulate(loss(), scores, np.array([0, 1]))
    assert scores["heads"][0][0] == scores["hidden"][1][7] == scores["channels"][0][5] == 0.0
    assert scores["heads"][0][1] > 0.0 and (scores["hidden"][1] > 0.0).sum() == 95
    assert (scores["channels"][0] > 0.0).sum() == 23

    def moved(moves: dict[str, tuple[int, float]]) -> float:
        """The loss with all gates of a component in a layer moved by so much."""
        with torch.no_grad():
            for name, (layer, by) in moves.items():
                gates.of[name][layer] += by
            value = float(loss())
            for name, (layer, by) in moves.items():
                gates.of[name][layer] -= by
        return value

    step = 0.03
    mixed = sum(s * r * moved({"heads": (0, s * step), "hidden": (1, r * step)}) for s in (1, -1) for r in (1, -1))
    assert float(curvature[0, 1]) == pytest.approx(mixed / (4 * step**2), rel=0.1, abs=0.02)
    twice = moved({"channels": (0, step)}) - 2 * moved({}) + moved({"channels": (0, -step)})
    assert float(curvature[2, 2]) == pytest.approx(twice / step**2, rel=0.1, abs=0.05)
    gates.remove()


def test_gates_of_1_change_nothing_and_leave_nothing_behind() -> None:
    model = tiny_vit(init_values=0.5)
    before = logits(model)
    gates = _Gates(model, branches_of(model))
    torch.testing.assert_close(logits(model), before)
    gates.remove()
    with torch.no_grad():
        gates.of["channels"][0].zero_()
    assert torch.equal(logits(model), before)
    model.train()
    Savit(model, SavitConfig(), steps_per_epoch=10).calibrate(batches(1))
    assert model.training and torch.equal(logits(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 50), st.floats(0, 1), st.booleans())
@settings(deadline=None)
def test_the_best_units_of_every_layer_stay(seed: int, layers: int, units: int, share: float, released: bool) -> None:
    scores = np.random.default_rng(seed).random((layers, units))
    safe = protected(units)
    keep = layers * safe + round(share * layers * (units - safe))
    kept = select(scores, keep, released)
    assert sum(map(len, kept)) == keep
    assert [len(index) for index in kept] == [len(index) for index in select(scores, keep, released=False)]
    for layer, index in zip(scores, kept, strict=True):
        assert len(index) >= safe and (np.diff(index) > 0).all()
        if released:
            assert index.tolist() == list(range(len(index)))
        else:
            assert set(np.argsort(-layer)[:safe]) <= set(index)
    if not released:
        cut = [layer[sorted(set(range(units)) - set(i))].max(initial=0) for layer, i in zip(scores, kept, strict=True)]
        spared = [np.sort(layer[i])[:-safe] for layer, i in zip(scores, kept, strict=True)]
        assert np.concatenate(spared).min(initial=1) >= max(cut)  # one threshold for all layers


def test_the_released_flag_changes_which_units_go_and_not_how_many() -> None:
    ours, theirs = make(sparsity=0.6), make(sparsity=0.6, released=True)
    assert ours.blocks() == theirs.blocks()
    small, other = ours.finalize(), theirs.finalize()
    assert count_params(small) == count_params(other)
    assert not torch.equal(logits(small), logits(other))


def test_narrowing_takes_the_channels_of_every_weight() -> None:
    """A model whose other channels are 0 and whose norms are undone computes the same when they are cut."""
    model: Any = tiny_vit(distilled=True, init_values=0.5)
    channels = torch.tensor([0, 3, 4, 10, 23])
    for block in model.blocks:
        block.norm1, block.norm2 = torch.nn.Identity(), torch.nn.Identity()
    model.norm = torch.nn.Identity()
    whole = tiny_vit(distilled=True, init_values=0.5)
    small: Any = narrow(whole, channels)
    gone = torch.ones(24, dtype=torch.bool)
    gone[channels] = False
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight[gone], layer.bias[gone] = 0.0, 0.0
        model.patch_embed.proj.weight[gone], model.patch_embed.proj.bias[gone] = 0.0, 0.0
        for token in (model.cls_token, model.dist_token, model.pos_embed):
            token[..., gone] = 0.0
    for block in small.blocks:
        block.norm1, block.norm2 = torch.nn.Identity(), torch.nn.Identity()
    small.norm = torch.nn.Identity()
    torch.testing.assert_close(logits(small), logits(model), atol=1e-5, rtol=1e-5)


def test_state_round_trip(tmp_path: Path) -> None:
    model = tiny_vit()
    savit = make(model, sparsity=0.6)
    torch.save(savit.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = Savit(model, SavitConfig(sparsity=0.6), steps_per_epoch=30)
    resumed.load_state_dict(state)
    assert resumed.harden() == savit.harden()
    assert torch.equal(logits(resumed.finalize()), logits(savit.finalize()))
    with pytest.raises(ValueError, match="config"):
        Savit(model, SavitConfig(sparsity=0.5), steps_per_epoch=30).load_state_dict(state)


def test_bad_input_is_explained() -> None:
    for changes in ({"sparsity": 1.0}, {"sparsity": float("nan")}, {"cost": "flops"}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            SavitConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="highest reachable") as error:
        Savit(tiny_vit(), SavitConfig(sparsity=0.999), steps_per_epoch=1)
    named = float(str(error.value).rsplit(" ", 1)[1])
    assert count_params(make(sparsity=named).finalize()) <= (1 - named) * count_params(tiny_vit())
    savit = Savit(tiny_vit(), SavitConfig(), steps_per_epoch=41)
    assert savit.calibration_steps == 5
    assert all(block["keep_ratio"] == 1.0 for block in savit.blocks())
    for call in (savit.harden, savit.finalize):
        with pytest.raises(ValueError, match="call calibrate"):
            call()
    with pytest.raises(ValueError, match="got none"):
        savit.calibrate([])
    with pytest.raises(ValueError, match="calibration batch 1 is nan"):
        savit.calibrate([(torch.full((2, 3, 16, 16), float("nan")), torch.tensor([0, 1]))])
    assert not savit.model.pos_drop._forward_hooks


def test_the_small_model_is_trained_as_the_dense_one_was() -> None:
    model: Any = tiny_vit()
    model.pos_embed.requires_grad_(False)
    model.set_grad_checkpointing()
    small = make(model, sparsity=0.5).finalize()
    assert [name for name, parameter in small.named_parameters() if not parameter.requires_grad] == ["pos_embed"]
    assert small.grad_checkpointing

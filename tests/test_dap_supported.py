"""What a small model could not repeat is refused before anything is trained, or carried along."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from dap_models import OTHERS, batches, logits, tiny_vit, train
from torch import nn

from dap.baselines.savit import Savit, SavitConfig
from dap.baselines.wdpruning import WDPrune, WDPruneConfig
from dap.compact import load_compact, save_compact
from dap.config import PruneConfig
from dap.gates import check_prunable
from dap.pruner import Pruner


def head_of_others(model: Any) -> None:
    model.head = nn.Linear(24, 7)


def head_without_bias(model: Any) -> None:
    model.head = nn.Linear(24, 5, bias=False)


def head_of_two_layers(model: Any) -> None:
    model.head = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 5))


def second_head(model: Any) -> None:
    model.head_dist = nn.Linear(24, 7)


def tied_layers(model: Any) -> None:
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight


def tied_memory(model: Any) -> None:
    model.blocks[1].mlp.fc2.weight.data = model.blocks[0].mlp.fc2.weight.data


def tied_blocks(model: Any) -> None:
    model.blocks[1] = model.blocks[0]


def tied_heads(model: Any) -> None:
    model.head_dist = model.head


def other_scale(model: Any) -> None:
    model.blocks[1].attn.scale = 1.0


def norm_without_bias(model: Any) -> None:
    model.blocks[0].norm2.bias = None


def last_norm_without_bias(model: Any) -> None:
    model.norm.bias = None


def other_linear(model: Any) -> None:
    class Adapted(nn.Linear):
        pass

    model.blocks[0].attn.qkv = Adapted(24, 72)


def norm_behind_the_pooling(model: Any) -> None:
    model.fc_norm = nn.LayerNorm(24)


def two_dropouts(model: Any) -> None:
    model.blocks[0].mlp.drop2 = nn.Dropout(0.5)


def norm_behind_a_bias(model: Any) -> None:
    model.norm_pre = nn.LayerNorm(24)


def no_bias_and_no_norm(model: Any) -> None:
    model.patch_embed.proj.bias = None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (norm_behind_a_bias, "its patch embedding has a bias in front of a first norm"),
        (no_bias_and_no_norm, "or none without such a norm"),
        (head_of_others, "head has 7 outputs, but model.num_classes is 5"),
        (head_without_bias, "head has no bias"),
        (head_of_two_layers, "head is a Sequential"),
        (second_head, "head_dist has 7 outputs"),
        (tied_layers, r"blocks\.0\.mlp\.fc1\.weight and blocks\.1\.mlp\.fc1\.weight are tied"),
        (tied_memory, r"blocks\.0\.mlp\.fc2\.weight and blocks\.1\.mlp\.fc2\.weight are tied"),
        (tied_blocks, r"blocks\.0\.norm1\.weight and blocks\.1\.norm1\.weight are tied"),
        (tied_heads, r"head\.weight and head_dist\.weight are tied"),
        (other_scale, r"block 1 scales attention by 1, not by 12\^-0\.5"),
        (norm_without_bias, "block 0 normalises by LayerNorm without weight or bias"),
        (last_norm_without_bias, "last norm is no plain LayerNorm"),
        (other_linear, "block 0 has a Adapted in place of a linear layer"),
        (norm_behind_the_pooling, "norm behind the pooling"),
        (two_dropouts, "block 0 drops out differently"),
    ],
)
def test_what_could_not_be_repeated_is_refused_at_the_start(
    change: Callable[[Any], None], reason: str, tmp_path: Path
) -> None:
    model = tiny_vit(distilled=change in (second_head, tied_heads))
    change(model)
    methods: list[Callable[[], Any]] = [
        lambda: Pruner(model, PruneConfig(), steps_per_epoch=2, epochs=1),
        lambda: Savit(model, SavitConfig(), steps_per_epoch=2),
        lambda: WDPrune(model, WDPruneConfig(), steps_per_epoch=2, epochs=1),
        lambda: save_compact(model, tmp_path),
    ]
    for method in methods:
        with pytest.raises(ValueError, match=reason):
            method()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", timm.list_models("vit_*_r*_s*") + timm.list_models("vit_*_r26*"))
def test_hybrids_are_refused_by_name(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
    with pytest.raises(ValueError, match="patch embedding is a HybridEmbed"):
        check_prunable(model)


def other_norm_pre(model: Any) -> None:
    model.norm_pre.eps = 0.1


def mixed_gelus(model: Any) -> None:
    model.blocks[1].mlp.act = nn.GELU("tanh")


@pytest.mark.parametrize("change", [other_norm_pre, mixed_gelus])
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_what_can_be_carried_is(change: Callable[[Any], None], sparsity: float, tmp_path: Path) -> None:
    model: Any = tiny_vit(pre_norm=True)
    with torch.no_grad():  # large enough for the two GELUs to differ
        model.blocks[1].mlp.fc1.weight.mul_(4)
    before = logits(model)
    change(model)
    dense = logits(model)
    assert (dense - before).abs().max() > 1e-4
    save_compact(model, tmp_path)
    assert torch.equal(logits(load_compact(tmp_path)), dense)
    pruner = Pruner(model, PruneConfig(sparsity=sparsity), steps_per_epoch=4, epochs=1)
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.01), batches(4))
    pruner.harden()
    masked = logits(model)
    small = pruner.finalize()
    torch.testing.assert_close(logits(small), masked, atol=1e-5, rtol=1e-5)
    save_compact(small, tmp_path)
    assert torch.equal(logits(load_compact(tmp_path)), logits(small))


def test_a_model_without_a_head_is_stored_but_not_pruned(tmp_path: Path) -> None:
    for changes in ({}, {"distilled": True}):
        model = tiny_vit(num_classes=0, **changes)
        save_compact(model, tmp_path)
        assert torch.equal(logits(load_compact(tmp_path)), logits(model))
        with pytest.raises(ValueError, match="num_classes > 0"):
            Pruner(model, PruneConfig(), steps_per_epoch=2, epochs=1)
    assert math.prod(logits(model).shape) == 4 * 24


@pytest.mark.parametrize("kind", [{"class_token": False, "global_pool": "avg"}, OTHERS["SwiGLU"]])
def test_rivals_take_what_their_papers_speak_of(kind: dict[str, Any]) -> None:
    methods: list[Callable[[], Any]] = [
        lambda: Savit(tiny_vit(**kind), SavitConfig(), steps_per_epoch=2),
        lambda: WDPrune(tiny_vit(**kind), WDPruneConfig(), steps_per_epoch=2, epochs=1),
    ]
    for method in methods:
        with pytest.raises(ValueError, match="works on models"):
            method()


def pool_of_two_queries(model: Any) -> None:
    model.attn_pool.latent = nn.Parameter(torch.zeros(1, 2, 24))


def pool_with_norms(model: Any) -> None:
    model.attn_pool.q_norm = nn.LayerNorm(12)


def pool_without_mlp(model: Any) -> None:
    model.attn_pool.mlp = None


@pytest.mark.parametrize("change", [pool_of_two_queries, pool_with_norms, pool_without_mlp])
def test_other_attention_pooling_is_refused(change: Callable[[Any], None]) -> None:
    model = tiny_vit(**OTHERS["SigLIP"])
    change(model)
    with pytest.raises(ValueError, match="its attention pooling"):
        check_prunable(model)

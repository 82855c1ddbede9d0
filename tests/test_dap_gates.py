"""Masks on weights are masks on activations, their Taylor scores are right, and unsupported models are refused."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from dap_models import batches, logits, tiny_vit
from timm.layers.mlp import GluMlp, SwiGLU
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from torch import Tensor, nn

from dap.baselines.row_gates import RowGates
from dap.gates import Gates, branches_of, check_prunable
from dap.tap import TokenTap


def random_masks(gates: Gates, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(sum(g.length for g in block), generator=generator) for block in gates.gates]


def mask_activations(model: Any, masks: list[Tensor]) -> None:
    """The paper's gates as hooks on activations: attn in, head channels of q, k, v, attn out; mlp in, hidden, out."""
    dim = model.embed_dim
    for i, block in enumerate(model.blocks):
        attn, mlp = masks[2 * i], masks[2 * i + 1]
        heads, width = block.attn.num_heads, block.attn.head_dim
        a_in, a_width, a_out = attn[:dim], attn[dim : dim + width], attn[dim + width :]
        m_in, m_width, m_out = mlp[:dim], mlp[dim:-dim], mlp[-dim:]
        for module, mask in (
            (block.norm1, a_in),
            (block.attn.proj, a_out),
            (block.norm2, m_in),
            (block.mlp.fc2, m_out),
        ):
            module.register_forward_hook(lambda m, x, out, mask=mask: out * mask)
        block.attn.qkv.register_forward_hook(
            lambda m, x, out, mask=a_width, n=3 * heads: (out.unflatten(-1, (n, -1)) * mask).flatten(-2)
        )
        block.mlp.act.register_forward_hook(lambda m, x, out, mask=m_width: out * mask)


@pytest.mark.parametrize("distilled", [False, True])
def test_masked_weights_compute_what_masked_activations_compute(distilled: bool) -> None:
    ours, theirs = tiny_vit(distilled=distilled, init_values=1.0), tiny_vit(distilled=distilled, init_values=1.0)
    gates = Gates(branches_of(ours), "all")
    masks = random_masks(gates)
    gates.set(masks)
    mask_activations(theirs, masks)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-6, rtol=1e-5)
    gates.remove()
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_score_is_mask_times_gradient_of_the_mask(qkv_bias: bool) -> None:
    ours, theirs = tiny_vit(qkv_bias=qkv_bias), tiny_vit(qkv_bias=qkv_bias)
    gates = Gates(branches_of(ours), "all")
    masks = random_masks(gates)
    gates.set(masks)
    leaves = [mask.clone().requires_grad_() for mask in masks]
    mask_activations(theirs, leaves)
    images, targets = batches(1)[0]
    for model in (ours, theirs):
        F.cross_entropy(model(images), targets).backward()
    expected = torch.cat([mask.detach() * mask.grad for mask in leaves if mask.grad is not None])
    torch.testing.assert_close(gates.scores(), expected, atol=1e-6, rtol=1e-4)


def test_inner_scores_are_those_of_the_inner_gates() -> None:
    images, targets = batches(1)[0]
    scores = {}
    for which in ("inner", "all"):
        model = tiny_vit()
        gates = Gates(branches_of(model), which)
        F.cross_entropy(model(images), targets).backward()
        parts = gates.scores().split([g.length for block in gates.gates for g in block])
        names = [(b, g.name) for b, block in enumerate(gates.gates) for g in block]
        scores[which] = {name: part for name, part in zip(names, parts, strict=True) if name[1] == "width"}
    assert scores["inner"].keys() == scores["all"].keys()
    for name, score in scores["inner"].items():
        torch.testing.assert_close(score, scores["all"][name])


def test_attaching_leaves_model_and_parameters_alone() -> None:
    model = tiny_vit()
    before, parameters = logits(model), {id(p) for p in model.parameters()}
    keys = list(model.state_dict())
    gates = Gates(branches_of(model), "all")
    assert torch.equal(logits(model), before)
    assert {id(p) for p in model.parameters()} == parameters
    gates.remove()
    assert torch.equal(logits(model), before)
    assert {id(p) for p in model.parameters()} == parameters
    assert sorted(model.state_dict()) == sorted(keys)


def test_scores_need_gradients() -> None:
    gates = Gates(branches_of(tiny_vit()), "inner")
    with pytest.raises(ValueError, match=r"after loss\.backward"):
        gates.scores()


def test_tap_copies_the_residual_stream_of_training_forwards_only() -> None:
    model: Any = tiny_vit()
    tap = TokenTap(model, every=1)
    (images, targets) = batches(1)[0]
    model.train()(images)
    with pytest.raises(ValueError, match="train mode"):
        tap.take(targets)
    tap.open = True
    model.eval()(images)
    with pytest.raises(ValueError, match="train mode"):
        tap.take(targets)
    model.train()(images)
    with pytest.raises(ValueError, match="3 targets"):
        tap.take(targets[:3])
    taken = tap.take(targets)
    assert [tuple(x.shape) for x in taken.class_] == [(8, 24)] * 5
    assert [tuple(x.shape) for x in taken.patches] == [(8, 16, 24)] * 5
    assert torch.equal(taken.targets, targets) and torch.equal(taken.patch_targets, targets)
    assert not any(x.requires_grad for x in (*taken.class_, *taken.patches))
    first = model.blocks[0]
    tokens = [torch.cat([one[:, None], rest], 1) for one, rest in zip(taken.class_, taken.patches, strict=True)]
    torch.testing.assert_close(tokens[1], tokens[0] + first.attn(first.norm1(tokens[0])))
    torch.testing.assert_close(tokens[2], first(tokens[0]))
    with pytest.raises(ValueError, match="train mode"):
        tap.take(targets)
    tap.remove()


def test_tap_thins_large_batches_only() -> None:
    model = tiny_vit().train()
    tap = TokenTap(model, every=4)
    tap.open = True
    for size, copied in ((8, 8), (16, 8), (32, 8), (64, 16)):
        model(torch.randn(size, 3, 16, 16))
        taken = tap.take(torch.arange(size))
        assert len(taken.patches[0]) == len(taken.patch_targets) == copied
        assert len(taken.class_[0]) == len(taken.targets) == size


def test_tap_reads_distilled_models_at_the_class_token_and_behind_both_prefix_tokens() -> None:
    model: Any = tiny_vit(distilled=True).train()
    tap = TokenTap(model, every=1)
    tap.open = True
    model(torch.randn(8, 3, 16, 16))
    taken = tap.take(torch.arange(8))
    assert taken.patches[0].shape == (8, 16, 24)
    torch.testing.assert_close(taken.class_[0], (model.cls_token + model.pos_embed[:, :1])[0].expand(8, -1))


@pytest.mark.parametrize("pooled", ["class and registers", "patches"])
def test_tap_gives_the_class_probe_what_the_head_pools(pooled: str) -> None:
    model: Any = tiny_vit(global_pool="avg", pool_include_prefix=pooled != "patches", reg_tokens=1).train()
    tap = TokenTap(model, every=1)
    tap.open = True
    streams: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda module, args, out: streams.append(out))
    images, targets = batches(1)[0]
    model(images)
    taken = tap.take(targets)
    first = 0 if pooled != "patches" else 2
    torch.testing.assert_close(taken.class_[-1], streams[0][:, first:].mean(1))
    assert torch.equal(taken.patches[-1], streams[0][:, 2:])


def test_images_of_another_size_than_the_models_are_named() -> None:
    model = tiny_vit(dynamic_img_size=True).train()
    tap = TokenTap(model, every=1)
    tap.open = True
    model(torch.randn(8, 3, 24, 24))
    with pytest.raises(ValueError, match="36 patches, where the model is made for 16"):
        tap.take(torch.arange(8))


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "deit_small_distilled_patch16_224",
        "vit_tiny_patch16_224",
        "deit_base_patch16_224",
        "vit_base_patch16_siglip_224",
        "vit_so400m_patch14_siglip_gap_224",
        "vit_base_patch16_clip_quickgelu_224",
        "vit_giant_patch14_dinov2",
        "vit_betwixt_patch16_reg4_gap_256",
        "eva_large_patch14_196",
        "test_vit",
    ],
)
def test_stock_models_are_supported(name: str) -> None:
    with torch.device("meta"):
        assert check_prunable(timm.create_model(name, num_classes=7)) is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"qk_norm": True}, "qk_norm"),
        ({"global_pool": "max"}, "pools by 'max'"),
        ({"class_token": False, "global_pool": "prr"}, "pools by 'prr'"),
        ({"global_pool": "avg", "final_norm": False}, "last norm is no plain LayerNorm"),
        ({"mlp_layer": GluMlp}, "gates by GELU"),
        ({"global_pool": "map", "fc_norm": True}, "reads tokens that no norm has seen"),
        ({"class_token": False, "global_pool": "map", "norm_layer": "rmsnorm"}, "norm"),
        ({"mlp_layer": SwiGLU}, "SwiGLU"),
        ({"block_fn": ParallelScalingBlock}, "ParallelScalingBlock"),
        ({"block_fn": DiffParallelScalingBlock}, "DiffParallelScalingBlock"),
        ({"attn_layer": "diff"}, "DiffAttention"),
        ({"scale_attn_norm": True}, "normalises the attention's output"),
        ({"scale_mlp_norm": True}, "normalises inside the MLP"),
        ({"proj_bias": False}, "without bias"),
        ({"act_layer": nn.ReLU}, "ReLU"),
        ({"norm_layer": "rmsnorm"}, "norm"),
        ({"dynamic_img_size": True, "dynamic_img_pad": True}, "pads images"),
        ({"patch_drop_rate": 0.1}, "drops patches"),
        ({"num_classes": 0}, "num_classes"),
        ({"pos_embed": "none"}, "position embedding"),
    ],
)
def test_other_vits_are_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_prunable(tiny_vit(**changes))


def test_gated_attention_and_other_families_are_refused_by_name() -> None:
    model: Any = tiny_vit()
    model.blocks[1].attn.gate = nn.Linear(24, 24)
    with pytest.raises(ValueError, match="block 1 has gated attention"):
        check_prunable(model)
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224")
    with pytest.raises(ValueError, match="SwinTransformer is not supported"):
        check_prunable(swin)
    with pytest.raises(ValueError, match=r"model\.module"):
        check_prunable(nn.DataParallel(tiny_vit()))


def test_relative_norms_compare_layers_of_any_scale() -> None:
    model: Any = tiny_vit()
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight.mul_(100.0)
        model.blocks[0].mlp.fc2.weight[:, 3] = 0.0
    norms = torch.split(Gates(branches_of(model), "inner").norms(), [12, 96, 12, 96])
    for part in norms:
        assert part.square().mean() == pytest.approx(1.0, rel=1e-5)
    assert norms[1][3] == 0.0
    expected = model.blocks[1].attn.qkv.weight.detach().view(6, 12, 24).square().sum((0, 2)).sqrt()
    torch.testing.assert_close(norms[2] / norms[2][0], expected / expected[0])


def test_learnt_masks_have_slopes_even_where_they_are_0() -> None:
    model = tiny_vit()
    gates = RowGates(branches_of(model))
    assert [[(g.name, g.length) for g in block] for block in gates.gates[:2]] == [
        [("heads", 2), ("out", 24)],
        [("width", 96), ("out", 24)],
    ]
    masks = [mask.round() for mask in random_masks(gates)]
    gates.set(masks)
    images, targets = batches(1)[0]

    def loss() -> Tensor:
        return F.cross_entropy(model(images), targets)

    loss().backward()
    slopes = torch.cat(gates.slopes())
    flat, step = torch.cat(masks), 1e-2
    for element in (0, 1, 5, 40, 130, 150):
        values = []
        for sign in (1.0, -1.0):
            moved = flat.clone()
            moved[element] += sign * step
            gates.set(list(torch.split(moved, [len(mask) for mask in masks])))
            values.append(float(loss().detach()))
        assert slopes[element] == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.05, abs=2e-4)
    with pytest.raises(ValueError, match=r"after loss\.backward"):
        gates.slopes()

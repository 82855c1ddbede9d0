"""The export graph computes what the model computes, for every shape that pruning leaves behind."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from dap_models import OTHERS
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Attention, Mlp, RmsNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dap.baselines.narrow import narrow
from dap.compact import compact
from dap.gates import branches_of
from targets.graph import COREML, EXECUTORCH, TFLITE, TFLITE_FLOAT16, Channels
from targets.rewrite import rewrite

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTH, HEADS = 32, 2


class Removed(nn.Module):
    removed = True

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return torch.zeros_like(x)


class Select(nn.Module):
    def __init__(self, index: list[int]) -> None:
        super().__init__()
        self.index = nn.Buffer(torch.tensor(index))

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.index]


class Scatter(nn.Module):
    def __init__(self, index: list[int]) -> None:
        super().__init__()
        self.index = nn.Buffer(torch.tensor(index))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(*x.shape[:-1], WIDTH)
        y[..., self.index] = x
        return y


def randomise(model: nn.Module) -> Any:
    """Nothing at 0 or 1, so that a part left out of the folding shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3)
    return model.eval()


def vit(cls: type[VisionTransformer] = VisionTransformer, depth: int = 3, **options: Any) -> Any:
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": WIDTH, "num_heads": HEADS, "num_classes": 5}
    return randomise(cls(depth=depth, **{**sizes, **options}))


def snr_db(model: nn.Module) -> float:
    """The worst of all forms."""
    images = torch.rand(1, 24, 24, 3, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        want = model(((images / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)).double()
        errors = [
            rewrite(model, MEAN, STD, form)(images if form.layout == "NHWC" else images.permute(0, 3, 1, 2)) - want
            for form in (TFLITE, TFLITE_FLOAT16, EXECUTORCH, COREML)
        ]
    return min(float(10 * torch.log10(want.square().sum() / error.square().sum())) for error in errors)


@pytest.mark.parametrize(
    "model",
    [
        vit(),
        vit(depth=1),
        vit(VisionTransformerDistilled),
        vit(init_values=0.1),
        vit(qkv_bias=False),
        vit(no_embed_class=True),
        vit(reg_tokens=2),
        vit(act_layer=nn.ReLU),
        vit(norm_layer=nn.LayerNorm),
    ],
    ids=["plain", "one-block", "distilled", "layer-scale", "no-qkv-bias", "no-embed-class", "registers", "relu", "eps"],
)
def test_export_is_exact(model: nn.Module) -> None:
    assert snr_db(model) >= 100


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("init_values", [None, 0.1])
def test_other_vits_are_exact(kind: str, init_values: float | None) -> None:
    assert snr_db(vit(**{"init_values": init_values, **OTHERS[kind]})) >= 100


def pruned(kind: str) -> Any:
    """Widths of all gates, and a branch that is gone."""
    model = vit(**OTHERS[kind])
    branches = branches_of(model)
    kept: list[dict[str, Any]] = [
        {"in": range(0, WIDTH, 2), "width": range(3), "out": range(1, WIDTH, 3)},
        {"in": range(1, WIDTH, 2), "width": range(4, 21), "out": range(WIDTH)},
        {"width": range(5)},
        {"width": []},
        {"width": range(1, 9)},
        {"width": range(0, 11, 2)},
    ]
    indices = [{gate: torch.tensor(list(index), dtype=torch.long) for gate, index in gates.items()} for gates in kept]
    return compact(model, branches, indices)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_vits_are_exact_when_pruned(kind: str) -> None:
    assert snr_db(pruned(kind)) >= 100


@pytest.mark.parametrize("form", [TFLITE, EXECUTORCH, COREML])
def test_attention_pooling_needs_no_keys(form: Any) -> None:
    pool: Any = rewrite(vit(**OTHERS["SigLIP"]), MEAN, STD, form).pool[1]
    assert (pool.scores.in_features, pool.scores.out_features) == (WIDTH, HEADS)


def test_weights_for_arithmetic_in_float16_are_not_subnormal() -> None:
    model = vit()
    with torch.no_grad():
        model.patch_embed.proj.weight.mul_(0.02 / model.patch_embed.proj.weight.std())  # as trained ones are
    shares = {
        name: float(
            (rewrite(model, MEAN, STD, form).patches.weight.abs() < torch.finfo(torch.float16).tiny).float().mean()
        )
        for name, form in (
            ("tflite", replace(TFLITE, half_norms=False)),
            ("coreml", COREML),
            ("tflite in float16", TFLITE_FLOAT16),
        )
    }
    assert max(shares["coreml"], shares["tflite in float16"]) < 0.002 < 0.05 < shares["tflite"]


@settings(max_examples=15, deadline=None)
@given(
    blocks=st.lists(
        st.tuples(
            st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 17))),
            st.one_of(st.none(), st.integers(1, 70)),
        ),
        min_size=1,
        max_size=3,
    ).filter(lambda blocks: any(attn is not None for attn, _ in blocks))
)
def test_pruned_widths_and_removed_branches(blocks: list[tuple[tuple[int, int] | None, int | None]]) -> None:
    model = vit(depth=len(blocks))
    for block, (attn, hidden) in zip(model.blocks, blocks, strict=True):
        if attn is None:
            block.attn = Removed()
        else:
            block.attn = Attention(WIDTH, num_heads=attn[0], attn_head_dim=attn[1], qkv_bias=True)
        block.mlp = Removed() if hidden is None else Mlp(WIDTH, hidden)
    assert snr_db(randomise(model)) >= 100


def test_removed_branch_may_be_none() -> None:
    class Pruned(Block):
        def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            return x + self.mlp(self.norm2(x))

    model = vit()
    model.blocks[2] = randomise(Pruned(WIDTH, HEADS))
    model.blocks[2].norm1 = model.blocks[2].attn = None
    assert snr_db(model) >= 100


@pytest.mark.parametrize("init_values", [None, 0.1])
def test_selected_and_scattered_channels(init_values: float | None) -> None:
    model = vit(VisionTransformerDistilled, init_values=init_values)
    inputs, outputs = [0, 3, 4, 9, 31], [1, 2, 8, 30]
    for block in model.blocks[1:]:
        block.norm1, block.norm2 = (nn.Sequential(norm, Select(inputs)) for norm in (block.norm1, block.norm2))
        block.attn = Attention(len(inputs), HEADS, attn_head_dim=7, dim_out=len(outputs), qkv_bias=True)
        block.mlp = Mlp(len(inputs), 11, len(outputs))
        for scale in ("ls1", "ls2"):
            old = getattr(block, scale)
            if init_values is not None:
                old.gamma = nn.Parameter(torch.empty(len(outputs)))
            setattr(block, scale, nn.Sequential(old, Scatter(outputs)))
    exported: Any = rewrite(randomise(model), MEAN, STD)
    assert snr_db(model) >= 100
    written = exported.blocks[1].attn.out[0].out_features
    assert written == len(outputs) + 1, "the products must stay as small as pruning made them"
    for form in (EXECUTORCH, COREML):
        assert not [m for m in rewrite(model, MEAN, STD, form).modules() if isinstance(m, Channels)]


@pytest.mark.parametrize("init_values", [None, 0.1])
@pytest.mark.parametrize("channels", [WIDTH, 19])
def test_what_the_rival_methods_leave_behind(channels: int, init_values: float | None) -> None:
    """Heads that differ between layers; layers cut at the end; rows of proj and fc2 gone, or a narrower stream."""
    outputs = [0, 3, 4, 9, 31] if channels == WIDTH else range(WIDTH)
    kept = [
        {"heads": [1], "width": [0, 2, 5], "out": outputs},
        {"width": list(range(7)), "out": outputs},
        {"heads": [0, 3], "out": outputs},
        {"width": [5, 60], "out": outputs},
        {"heads": [], "out": []},
        {"width": [], "out": []},
    ]
    model = vit(num_heads=4, init_values=init_values)
    branches = branches_of(model)
    with torch.no_grad():  # compact() takes a model whose masks are in its weights
        for branch in branches[4:]:
            branch.out_of.weight.zero_()
            branch.out_of.bias.zero_()
    indices = [{gate: torch.tensor(list(index), dtype=torch.long) for gate, index in gates.items()} for gates in kept]
    small: Any = compact(model, branches, indices)
    if channels < WIDTH:
        small = narrow(small, torch.arange(channels))
    small.blocks = small.blocks[:2]
    exported: Any = rewrite(small, MEAN, STD)
    assert snr_db(small) >= 100
    assert [block.attn.heads for block in exported.blocks] == [1, 2]
    assert exported.head.in_features == channels


def test_unfused_attention_keeps_its_own_scale() -> None:
    model = vit()
    for block in model.blocks:
        block.attn.fused_attn, block.attn.scale = False, 0.11
    assert snr_db(model) >= 100


def test_only_the_head_tokens_pass_the_last_attention() -> None:
    sizes = []
    for model, leading in ((vit(), 1), (vit(VisionTransformerDistilled), 2), (vit(reg_tokens=2), 1)):
        model.blocks[-1].attn = Removed()  # so the one before it is the last attention
        exported: Any = rewrite(model, MEAN, STD)
        exported.blocks[1].mlp.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
        exported(torch.zeros(1, 24, 24, 3))
        assert sizes.pop() == leading


def test_the_model_is_left_as_it_was() -> None:
    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rewrite(model, MEAN, STD)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def replaced(**parts: nn.Module) -> Any:
    model = vit()
    for path, part in parts.items():
        setattr(model.blocks[1], path, part)
    return model.eval()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "Linear"),
        (vit().train(), "training mode"),
        (vit(global_pool="max"), "global_pool"),
        (vit(global_pool="map", fc_norm=True), "fc_norm"),
        (vit(pre_norm=True, norm_layer=RmsNorm), "norm.*RmsNorm"),
        (vit(dynamic_img_size=True, dynamic_img_pad=True), "patch_embed"),
        (vit(qk_norm=True), r"blocks\.0\.attn"),
        (vit(scale_mlp_norm=True), r"blocks\.0\.mlp"),
        (vit(num_classes=0), "head"),
        (vit(in_chans=4), "RGB"),
        (replaced(norm1=nn.BatchNorm1d(WIDTH)), r"blocks\.1\.norm1.*BatchNorm1d"),
        (replaced(mlp=nn.Linear(WIDTH, WIDTH)), r"blocks\.1\.mlp"),
        (replaced(ls2=nn.Tanh()), r"blocks\.1\.ls2.*Tanh"),
        (replaced(ls1=nn.Sequential(nn.Identity(), nn.ReLU())), r"blocks\.1\.ls1.*ReLU"),
    ],
)
def test_what_has_no_export_form_is_refused_by_name(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewrite(model, MEAN, STD)


def test_no_attention_at_all_is_refused() -> None:
    model = vit(depth=1)
    model.blocks[0].attn = Removed()
    with pytest.raises(ValueError, match="without attention"):
        rewrite(model, MEAN, STD)


def test_a_scale_that_fused_attention_ignores_is_refused() -> None:
    model = vit()
    model.blocks[1].attn.scale *= 2
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.scale"):
        rewrite(model, MEAN, STD)


def test_a_mask_still_attached_by_a_hook_is_refused() -> None:
    model = vit()
    model.blocks[0].mlp.register_forward_hook(lambda module, args, output: output * 0.5)
    with pytest.raises(ValueError, match="hook"):
        rewrite(model, MEAN, STD)

"""A small model without its weights: from Architecture to timm modules.

Key: D width, H heads, K head width, F hidden units, I kept inputs, O kept outputs.

The small model is timm's VisionTransformer with timm's own blocks at per-block sizes. Where that is not enough:
- a block that has lost a branch is a PrunedBlock, timm's Block with that branch left out;
- where a branch reads or writes some channels only, `norm1` / `norm2` end in a Select and `ls1` / `ls2` in a Scatter:
  norms see all channels, as in training.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers.activations import QuickGELU
from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import GluMlp, Mlp
from timm.layers.norm import LayerNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dap.architecture import Architecture, AttentionPool, AttentionSizes, Gelu, Layer, MlpSizes

CLASSES: dict[str, type[VisionTransformer]] = {
    "VisionTransformer": VisionTransformer,
    "VisionTransformerDistilled": VisionTransformerDistilled,
}
GELUS: dict[Gelu, Callable[[], nn.Module]] = {
    "none": nn.GELU,
    "tanh": partial(nn.GELU, approximate="tanh"),
    "quick": QuickGELU,
}


class Select(nn.Module):
    """Read a fixed set of channels: (..., D) -> (..., I)."""

    index: Tensor

    def __init__(self, index: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(index, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D)."""
        return x.index_select(-1, self.index)


class Scatter(nn.Module):
    """Write a fixed set of channels: (..., O) -> (..., D); the others are 0."""

    index: Tensor

    def __init__(self, index: Sequence[int], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", torch.tensor(index, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., O)."""
        return x.new_zeros((*x.shape[:-1], self.dim)).index_copy(-1, self.index, x)


class PrunedBlock(Block):
    """timm's Block with a branch left out: its norm, body, scale and drop path are None."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x: (B, N, D)."""
        if self.attn is not None:
            x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        if self.mlp is not None:
            x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x


def skeleton(architecture: Architecture) -> VisionTransformer:
    """The model without memory for weights (device meta), in training mode; no random numbers are drawn."""
    args = architecture.args
    norm = partial(LayerNorm, eps=architecture.norm_eps)
    act = GELUS[architecture.gelu]
    # blocks of the right sizes are put in afterwards
    model = CLASSES[architecture.kind](
        **vars(args), depth=0, num_heads=1, norm_layer=norm, act_layer=act, weight_init="skip", device="meta"
    )
    if architecture.norm_pre_eps is not None:
        cast(Any, model.norm_pre).eps = architecture.norm_pre_eps
    model.blocks = nn.Sequential(*(_block(args.embed_dim, layer, norm, act) for layer in architecture.blocks))
    if architecture.pool is not None:
        model.attn_pool = _pool(args.embed_dim, architecture.pool, norm, act)
    view = {name: value for name, value in vars(architecture.pretrained_cfg).items() if value is not None}
    if view:
        model.pretrained_cfg = model.default_cfg = {  # type: ignore[assignment]
            "input_size": (args.in_chans, *args.img_size),
            **view,
            "num_classes": args.num_classes,
        }
    model.feature_info = [
        {"module": f"blocks.{i}", "num_chs": args.embed_dim, "reduction": model.patch_embed.feat_ratio()}
        for i in range(len(model.blocks))
    ]
    return model


def _block(dim: int, layer: Layer, norm_layer: Any, act_layer: Any) -> Block:
    whole = layer.attn is not None and layer.mlp is not None
    block: Any = (Block if whole else PrunedBlock)(
        dim, num_heads=1, norm_layer=norm_layer, act_layer=act_layer, device="meta"
    )
    for side, kind, sizes in (("1", "attn", layer.attn), ("2", "mlp", layer.mlp)):
        parts: tuple[nn.Module | None, ...] = (None,) * 4
        if sizes is not None:
            parts = _branch(dim, sizes, norm_layer, act_layer)
        for name, part in zip((f"norm{side}", kind, f"ls{side}", f"drop_path{side}"), parts, strict=True):
            setattr(block, name, part)
    return cast(Block, block)


def _branch(dim: int, sizes: AttentionSizes | MlpSizes, norm_layer: Any, act_layer: Any) -> tuple[nn.Module, ...]:
    """Norm, body, scale and drop path."""
    inputs = dim if sizes.reads is None else len(sizes.reads)
    outputs = dim if sizes.writes is None else len(sizes.writes)
    norm: nn.Module = norm_layer(dim, device="meta")
    if sizes.reads is not None:
        norm = nn.Sequential(OrderedDict(norm=norm, select=Select(sizes.reads)))
    scale: nn.Module = LayerScale(outputs, device="meta") if sizes.layer_scale else nn.Identity()
    if sizes.writes is not None:
        scale = nn.Sequential(OrderedDict(scale=scale, scatter=Scatter(sizes.writes, dim)))
    if isinstance(sizes, AttentionSizes):
        body: nn.Module = Attention(
            inputs,
            num_heads=sizes.heads,
            attn_head_dim=sizes.width,
            dim_out=outputs,
            qkv_bias=sizes.qkv_bias,
            attn_drop=sizes.attn_drop,
            proj_drop=sizes.drop,
            device="meta",
        )
    elif sizes.gate is not None:
        last = sizes.gate == "last"
        body = GluMlp(
            inputs, 2 * sizes.width, outputs, act_layer=nn.SiLU, drop=sizes.drop, gate_last=last, device="meta"
        )
    else:
        act: Any = act_layer if sizes.gelu is None else GELUS[sizes.gelu]
        body = Mlp(inputs, sizes.width, outputs, act_layer=act, drop=sizes.drop, device="meta")
    return norm, body, scale, DropPath(sizes.drop_path) if sizes.drop_path > 0.0 else nn.Identity()


def _pool(dim: int, sizes: AttentionPool, norm_layer: Any, act_layer: Any) -> AttentionPoolLatent:
    act: Any = act_layer if sizes.gelu is None else GELUS[sizes.gelu]
    pool = AttentionPoolLatent(
        dim, num_heads=sizes.heads, qkv_bias=sizes.qkv_bias, norm_layer=norm_layer, act_layer=act, device="meta"
    )
    pool.mlp = Mlp(dim, sizes.width, dim, act_layer=act, device="meta")  # timm takes a ratio, which rounds
    return pool

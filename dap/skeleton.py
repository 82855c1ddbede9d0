"""A small model without its weights: from Architecture to timm modules and back, and what cannot be stored.

Key: D width, H heads, K head width, F hidden units, I kept inputs, O kept outputs.

The small model is timm's VisionTransformer with timm's own blocks at per-block sizes. Where that is not enough:
- a block that has lost a branch is a PrunedBlock, timm's Block with that branch left out;
- where a branch reads or writes some channels only, `norm1` / `norm2` end in a Select and `ls1` / `ls2` in a Scatter:
  norms see all channels, as in training.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dap.architecture import Architecture, Arguments, AttentionSizes, Gelu, Layer, MlpSizes, Preprocessing

CLASSES: dict[str, type[VisionTransformer]] = {
    "VisionTransformer": VisionTransformer,
    "VisionTransformerDistilled": VisionTransformerDistilled,
}
NORMS = (nn.LayerNorm, LayerNorm)
MASKS = {"rows": "mask_rows", "cols": "mask_cols"}  # buffers of a layer that is being pruned, see dap.gates


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


# from Architecture to modules


def skeleton(architecture: Architecture) -> VisionTransformer:
    """The model without memory for weights (device meta), in training mode; no random numbers are drawn."""
    args = architecture.args
    norm = partial(LayerNorm, eps=architecture.norm_eps)
    act = partial(nn.GELU, approximate=architecture.gelu)
    # blocks of the right sizes are put in afterwards
    model = CLASSES[architecture.kind](
        **vars(args), depth=0, num_heads=1, norm_layer=norm, act_layer=act, weight_init="skip", device="meta"
    )
    if architecture.norm_pre_eps is not None:
        cast(Any, model.norm_pre).eps = architecture.norm_pre_eps
    model.blocks = nn.Sequential(*(_block(args.embed_dim, layer, norm, act) for layer in architecture.blocks))
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
    else:
        act: Any = act_layer if sizes.gelu is None else partial(nn.GELU, approximate=sizes.gelu)
        body = Mlp(inputs, sizes.width, outputs, act_layer=act, drop=sizes.drop, device="meta")
    return norm, body, scale, DropPath(sizes.drop_path) if sizes.drop_path > 0.0 else nn.Identity()


# from modules to Architecture


def architecture_of(model: nn.Module) -> Architecture:
    """Everything but the weights of a dense or small model. Raises ValueError if skeleton() could not give it back."""
    vit: Any = check_storable(model)
    gelu: Gelu = next((block.mlp.act.approximate for block in vit.blocks if block.mlp is not None), "none")
    pre_norm = not isinstance(vit.norm_pre, nn.Identity)
    return Architecture(
        kind=type(vit).__name__,  # type: ignore[arg-type]  # check_storable lets only these two pass
        args=Arguments(
            img_size=tuple(vit.patch_embed.img_size),
            patch_size=tuple(vit.patch_embed.patch_size),
            in_chans=vit.patch_embed.proj.in_channels,
            num_classes=vit.num_classes,
            embed_dim=vit.embed_dim,
            no_embed_class=vit.no_embed_class,
            reg_tokens=vit.num_reg_tokens,
            pre_norm=pre_norm,
            drop_rate=float(vit.head_drop.p),
            pos_drop_rate=float(vit.pos_drop.p),
        ),
        norm_eps=vit.norm.eps,
        gelu=gelu,
        blocks=tuple(
            Layer(
                attn=None if block.attn is None else _attention(block),
                mlp=None if block.mlp is None else _mlp(block, gelu),
            )
            for block in vit.blocks
        ),
        pretrained_cfg=_preprocessing(vit),
        norm_pre_eps=vit.norm_pre.eps if pre_norm and vit.norm_pre.eps != vit.norm.eps else None,
    )


def _preprocessing(vit: Any) -> Preprocessing:
    """What timm notes of the images that the weights were trained on; nothing if it was built by its class."""
    noted: Any = getattr(vit, "pretrained_cfg", None) or {}
    noted = noted if isinstance(noted, dict) else noted.to_dict()
    view = {item.name: noted.get(item.name) for item in fields(Preprocessing)}
    for name in ("mean", "std"):
        if view[name] is not None:
            view[name] = tuple(view[name])
    return Preprocessing(**view)


def _attention(block: Any) -> AttentionSizes:
    attn = block.attn
    return AttentionSizes(
        **_around(block.norm1, block.ls1, block.drop_path1),
        width=attn.head_dim,
        heads=attn.num_heads,
        qkv_bias=attn.qkv.bias is not None,
        attn_drop=float(attn.attn_drop.p),
        drop=float(attn.proj_drop.p),
    )


def _mlp(block: Any, gelu: Gelu) -> MlpSizes:
    """gelu: the model's."""
    mlp, own = block.mlp, block.mlp.act.approximate
    return MlpSizes(
        **_around(block.norm2, block.ls2, block.drop_path2),
        width=mlp.fc1.out_features,
        drop=float(mlp.drop1.p),
        gelu=None if own == gelu else own,
    )


def _around(norm: Any, scale: Any, drop_path: Any) -> dict[str, Any]:
    """What attention and MLP have in common."""
    selecting, scattering = isinstance(norm, nn.Sequential), isinstance(scale, nn.Sequential)
    return {
        "reads": tuple(norm.select.index.tolist()) if selecting else None,
        "writes": tuple(scale.scatter.index.tolist()) if scattering else None,
        "layer_scale": isinstance(scale.scale if scattering else scale, LayerScale),
        "drop_path": float(getattr(drop_path, "drop_prob", 0.0)),
    }


def check_storable(model: nn.Module) -> VisionTransformer:
    """The model itself if skeleton() can give it back, dense or small, else ValueError with the reason."""
    refuse(model, next(_unstorable(model), None))
    return cast(VisionTransformer, model)


def refuse(model: nn.Module, reason: str | None) -> None:
    """Raise ValueError if there is a reason."""
    if reason is not None:
        raise ValueError(
            f"{type(model).__name__} is not supported: {reason}. "
            "DAP works on timm's VisionTransformer and VisionTransformerDistilled as built for deit_* and plain vit_*"
        )


def _unstorable(model: nn.Module) -> Iterator[str]:
    """Why a model is more than an Architecture says. What follows a reason may rely on it not being there."""
    if hasattr(model, "module"):
        yield "it is a wrapper; pass the model inside (model.module) before it is wrapped"
    if type(model) not in CLASSES.values():
        yield "it is another architecture (DAP needs one attention and one MLP branch per block on one residual stream)"
    vit: Any = model
    if vit.global_pool != "token":
        yield f"it pools by {vit.global_pool!r}, and DAP's probes follow the class token"
    if vit.attn_pool is not None:
        yield "it has an attention pool"
    if not _plain_norm(vit.norm):
        yield "its last norm is no plain LayerNorm in front of the pooling"
    if not isinstance(vit.fc_norm, nn.Identity):
        yield "it has a norm behind the pooling"
    if vit.pos_embed is None:
        yield "it has no learned position embedding"
    if type(vit.patch_embed) is not PatchEmbed:
        yield f"its patch embedding is a {type(vit.patch_embed).__name__}, not a single convolution"
    if not isinstance(vit.patch_embed.norm, nn.Identity):
        yield "its patch embedding has a norm"
    if vit.dynamic_img_size:
        yield "its image size is dynamic"
    if not isinstance(vit.patch_drop, nn.Identity):
        yield "it drops patches, and the patch probe needs the whole grid"
    if not isinstance(vit.norm_pre, nn.Identity) and not _plain_norm(vit.norm_pre):
        yield "its first norm is no plain LayerNorm"
    if any(name.endswith(tuple(MASKS.values())) for name, _ in vit.named_buffers()):
        yield "it is being pruned; call finalize() or remove() of its pruner first"
    yield from _unstorable_heads(vit)
    for i, block in enumerate(vit.blocks):
        if type(block) not in (Block, PrunedBlock):
            yield f"block {i} is a {type(block).__name__}"
        for reason in chain(_unstorable_norms(block, vit.norm.eps), _unstorable_bodies(block)):
            yield f"block {i} {reason}"
    yield from _tied(model)


def _unstorable_heads(vit: Any) -> Iterator[str]:
    for name in ("head", "head_dist"):
        head = getattr(vit, name, None)
        if head is None or (isinstance(head, nn.Identity) and vit.num_classes == 0):
            continue
        if type(head) is not nn.Linear:
            yield f"its {name} is a {type(head).__name__}, no linear classification head"
        elif head.out_features != vit.num_classes:
            yield (
                f"its {name} has {head.out_features} outputs, but model.num_classes is {vit.num_classes}; "
                "exchange heads by model.reset_classifier(num_classes)"
            )
        elif head.in_features != vit.embed_dim:
            yield f"its {name} reads {head.in_features} channels of {vit.embed_dim}"
        elif head.bias is None:
            yield f"its {name} has no bias"


def _unstorable_norms(block: Any, eps: float) -> Iterator[str]:
    for norm in (block.norm1, block.norm2):
        plain = norm[0] if isinstance(norm, nn.Sequential) else norm
        if plain is None:
            continue
        if not _plain_norm(plain):
            yield f"normalises by {type(plain).__name__}" + (" without weight or bias" if type(plain) in NORMS else "")
        elif plain.eps != eps:
            yield "has another norm epsilon than the last norm"


def _plain_norm(norm: Any) -> bool:
    return type(norm) in NORMS and norm.weight is not None and norm.bias is not None


def _unstorable_bodies(block: Any) -> Iterator[str]:
    attn, mlp = block.attn, block.mlp
    if attn is not None:
        if type(attn) is not Attention:
            yield f"attends by {type(attn).__name__}"
        if attn.gate is not None:
            yield "has gated attention, whose gate reads the head channels a second time"
        if not isinstance(attn.q_norm, nn.Identity):
            yield "normalises q and k (qk_norm), so head channels can't be cut one by one"
        if not isinstance(attn.norm, nn.Identity):
            yield "normalises the attention's output"
        yield from _unstorable_linears(attn.qkv, attn.proj)
        if not math.isclose(attn.scale, attn.head_dim**-0.5, rel_tol=1e-6):
            yield (
                f"scales attention by {attn.scale:g}, not by {attn.head_dim}^-0.5, which fused attention always does; "
                "multiply the difference into q's weights"
            )
    if mlp is not None:
        if type(mlp) is not Mlp:
            yield f"has a {type(mlp).__name__} of another kind than fc1, activation, fc2"
        if not isinstance(mlp.norm, nn.Identity):
            yield "normalises inside the MLP"
        if type(mlp.act) is not nn.GELU:
            yield f"activates by {type(mlp.act).__name__}; only GELU is stored"
        yield from _unstorable_linears(mlp.fc1, mlp.fc2)
        if mlp.fc1.bias is None:
            yield "has linear layers without bias"
        if mlp.drop1.p != mlp.drop2.p:
            yield "drops out differently behind its two layers"


def _unstorable_linears(*layers: Any) -> Iterator[str]:
    """The last one needs a bias."""
    for layer in layers:
        if type(layer) is not nn.Linear:
            yield f"has a {type(layer).__name__} in place of a linear layer"
    if layers[-1].bias is None:
        yield "has linear layers without bias"


def _tied(model: nn.Module) -> Iterator[str]:
    """Parameters that share memory: a cut in one place would be one in the other, and counts would be wrong."""
    names: dict[Any, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # without memory the object itself; where one block of memory holds them all, its beginning tells them apart
        key = (parameter.device, parameter.data_ptr()) if parameter.data_ptr() else id(parameter)
        if key in names:
            yield f"{names[key]} and {name} are tied, they share their memory; untie them by a copy of one"
        names[key] = name

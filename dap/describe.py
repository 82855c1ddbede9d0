"""From a timm model, dense or small, to its Architecture: what skeleton() needs to build it again."""

from dataclasses import fields
from typing import Any

from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import GluMlp
from torch import nn

from dap.architecture import (
    Architecture,
    Arguments,
    AttentionPool,
    AttentionSizes,
    Gelu,
    Layer,
    MlpSizes,
    Preprocessing,
)
from dap.supported import check_storable, gelu_of, last_norm


def architecture_of(model: nn.Module) -> Architecture:
    """Everything but the weights of a dense or small model. Raises ValueError if skeleton() could not give it back."""
    vit: Any = check_storable(model)
    gelus = (gelu_of(block.mlp.act) for block in vit.blocks if block.mlp is not None)
    gelu: Gelu = next((found for found in gelus if found is not None), "none")
    pre_norm = not isinstance(vit.norm_pre, nn.Identity)
    norm = last_norm(vit)
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
            class_token=vit.cls_token is not None,
            global_pool=vit.global_pool,
            fc_norm=norm is vit.fc_norm,
            pool_include_prefix=vit.pool_include_prefix,
        ),
        norm_eps=norm.eps,
        gelu=gelu,
        blocks=tuple(
            Layer(
                attn=None if block.attn is None else _attention(block),
                mlp=None if block.mlp is None else _mlp(block, gelu),
            )
            for block in vit.blocks
        ),
        pretrained_cfg=_preprocessing(vit),
        norm_pre_eps=vit.norm_pre.eps if pre_norm and vit.norm_pre.eps != norm.eps else None,
        pool=None if vit.attn_pool is None else _pool(vit.attn_pool, gelu),
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
    mlp = block.mlp
    gated = isinstance(mlp, GluMlp)
    return MlpSizes(
        **_around(block.norm2, block.ls2, block.drop_path2),
        width=mlp.fc2.in_features,
        drop=float(mlp.drop1.p),
        gelu=None if gated else _own_gelu(mlp, gelu),
        gate=("last" if mlp.gate_last else "first") if gated else None,
    )


def _own_gelu(mlp: Any, gelu: Gelu) -> Gelu | None:
    own = gelu_of(mlp.act)
    return None if own == gelu else own


def _pool(pool: Any, gelu: Gelu) -> AttentionPool:
    """gelu: the model's."""
    return AttentionPool(
        heads=pool.num_heads,
        width=pool.mlp.fc1.out_features,
        qkv_bias=pool.kv.bias is not None,
        gelu=_own_gelu(pool.mlp, gelu),
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

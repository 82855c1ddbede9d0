"""Which models can be stored, and so pruned: those of which an Architecture says everything. Of others, the reason."""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any, cast

from timm.layers.activations import GELU, GELUTanh, QuickGELU
from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.mlp import GluMlp, Mlp
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from dap.architecture import Gelu
from dap.skeleton import CLASSES, PrunedBlock

NORMS = (nn.LayerNorm, LayerNorm)
MASKS = {"rows": "mask_rows", "cols": "mask_cols"}  # buffers of a layer that is being pruned, see dap.gates
_GELUS: dict[type, Gelu] = {GELU: "none", GELUTanh: "tanh", QuickGELU: "quick"}


def gelu_of(act: Any) -> Gelu | None:
    """How an activation approximates GELU; None: it is something else."""
    return cast(Gelu, act.approximate) if type(act) is nn.GELU else _GELUS.get(type(act))


def last_norm(vit: Any) -> Any:
    """The norm in front of the head: before the pooling or behind it. Of a storable model one of them is there."""
    return vit.norm if isinstance(vit.fc_norm, nn.Identity) else vit.fc_norm


def check_storable(model: nn.Module) -> VisionTransformer:
    """The model itself if skeleton() can give it back, dense or small, else ValueError with the reason."""
    refuse(model, next(_unstorable(model), None))
    return cast(VisionTransformer, model)


def refuse(model: nn.Module, reason: str | None) -> None:
    """Raise ValueError if there is a reason."""
    if reason is not None:
        raise ValueError(
            f"{type(model).__name__} is not supported: {reason}. "
            "DAP works on timm's VisionTransformer and VisionTransformerDistilled; docs/models.md lists the models"
        )


def _unstorable(model: nn.Module) -> Iterator[str]:
    """Why a model is more than an Architecture says. What follows a reason may rely on it not being there."""
    if hasattr(model, "module"):
        yield "it is a wrapper; pass the model inside (model.module) before it is wrapped"
    if type(model) not in CLASSES.values():
        yield "it is another architecture (DAP needs one attention and one MLP branch per block on one residual stream)"
    vit: Any = model
    if vit.global_pool not in ("token", "avg", "map"):
        yield f"it pools by {vit.global_pool!r}; only the class token, the mean and attention pooling are known"
    if not isinstance(vit.norm, nn.Identity) and not isinstance(vit.fc_norm, nn.Identity):
        yield "it has a norm behind the pooling and one in front of it"
    if not _plain_norm(last_norm(vit)):
        yield "its last norm is no plain LayerNorm"
    eps = last_norm(vit).eps
    if vit.pos_embed is None:
        yield "it has no learned position embedding"
    if type(vit.patch_embed) is not PatchEmbed:
        yield f"its patch embedding is a {type(vit.patch_embed).__name__}, not a single convolution"
    if not isinstance(vit.patch_embed.norm, nn.Identity):
        yield "its patch embedding has a norm"
    if (vit.patch_embed.proj.bias is None) == isinstance(vit.norm_pre, nn.Identity):
        yield "its patch embedding has a bias in front of a first norm, or none without such a norm"
    if vit.patch_embed.dynamic_img_pad:
        yield "it pads images to whole patches"
    if not isinstance(vit.patch_drop, nn.Identity):
        yield "it drops patches, and the patch probe needs the whole grid"
    if not isinstance(vit.norm_pre, nn.Identity) and not _plain_norm(vit.norm_pre):
        yield "its first norm is no plain LayerNorm"
    if any(name.endswith(tuple(MASKS.values())) for name, _ in vit.named_buffers()):
        yield "it is being pruned; call finalize() or remove() of its pruner first"
    yield from _unstorable_heads(vit)
    if vit.attn_pool is not None:
        if last_norm(vit) is vit.fc_norm:
            yield "its attention pooling reads tokens that no norm has seen"
        for reason in _unstorable_pool(vit.attn_pool, vit.embed_dim, eps):
            yield f"its attention pooling {reason}"
    for i, block in enumerate(vit.blocks):
        if type(block) not in (Block, PrunedBlock):
            yield f"block {i} is a {type(block).__name__}"
        for reason in chain(_unstorable_norms(block, eps), _unstorable_bodies(block)):
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
        yield from _unstorable_mlp(mlp)


def _unstorable_mlp(mlp: Any) -> Iterator[str]:
    if type(mlp) not in (Mlp, GluMlp):
        yield f"has a {type(mlp).__name__} of another kind than fc1, activation, fc2"
    if not isinstance(mlp.norm, nn.Identity):
        yield "normalises inside the MLP"
    if type(mlp) is GluMlp and type(mlp.act) is not nn.SiLU:
        yield f"gates by {type(mlp.act).__name__}; only SiLU is stored"
    if type(mlp) is Mlp and gelu_of(mlp.act) is None:
        yield f"activates by {type(mlp.act).__name__}; only GELU is stored"
    yield from _unstorable_linears(mlp.fc1, mlp.fc2)
    if mlp.fc1.bias is None:
        yield "has linear layers without bias"
    if mlp.drop1.p != mlp.drop2.p:
        yield "drops out differently behind its two layers"


def _unstorable_pool(pool: Any, dim: int, eps: float) -> Iterator[str]:
    if type(pool) is not AttentionPoolLatent:
        yield f"is a {type(pool).__name__}"
    if pool.mlp is None or type(pool.mlp) is not Mlp:
        yield "has no MLP, or a gated one"
    if pool.pos_embed is not None or pool.latent.shape != (1, 1, dim) or pool.pool != "token" or pool.proj_drop.p > 0:
        yield "has a position embedding, a dropout, or more than one query of the stream's width"
    if not isinstance(pool.q_norm, nn.Identity):
        yield "normalises q and k (qk_norm)"
    if not _plain_norm(pool.norm) or pool.norm.eps != eps:
        yield "normalises in another way than the model"
    yield from _unstorable_linears(pool.q, pool.kv, pool.proj)
    yield from _unstorable_mlp(pool.mlp)
    if (pool.q.bias is None) != (pool.kv.bias is None) or pool.mlp.drop1.p > 0:
        yield "has a bias in one of q and kv only, or a dropout"
    if not math.isclose(pool.scale, pool.head_dim**-0.5, rel_tol=1e-6):
        yield f"scales by {pool.scale:g}, not by {pool.head_dim}^-0.5"


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

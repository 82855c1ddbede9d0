"""Exact rewrite of a timm ViT into the form of graph.py, which mobile runtimes run fastest. Knows no file format.

B batch (always 1 here), N tokens, M query tokens, D width, H heads, K head width, F hidden units, C classes,
T leading tokens (class, register, distillation), E = H K; the heads read the class and the distillation token, or what
is pooled.

What changes, and why it stays exact:
- pixels come in as RGB 0..255; mean and std go into the patch embedding (without padding);
- everything that writes to the residual stream is multiplied by P = I - 11^T / D. LayerNorm ignores the mean over D, so
  nothing else changes, and with a zero-mean stream LayerNorm is x * rsqrt(mean(x^2) + eps): one reduction, not two;
- LayerNorm's gain and bias, LayerScale and 1/sqrt(head width) go into the neighbouring linear layers;
- attention is two batched matrix products, which XNNPACK takes; it refuses scaled_dot_product_attention;
- after the last attention only the head's tokens matter, so its queries and what follows are computed for those;
- a norm that begins the stream keeps its gain and offset, and the mean is taken away again behind it;
- the stream may be a multiple of what it was, for the range of float16: a norm of s x with s^2 eps is that of x.
Folding is done in float64 and stored in float32.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import Attention, AttentionPoolLatent, GluMlp, Mlp, PatchEmbed, QuickGELU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from targets.folding import Reader, double, norm_reader, parameters, scaled, writer
from targets.graph import (
    TFLITE,
    AttentionPool,
    ExportAttention,
    ExportBlock,
    ExportGlu,
    ExportViT,
    FirstNorm,
    Form,
    MeanPool,
    ProductMeanPool,
    linear,
    store,
)

# A sound rewrite lies above 100 dB, a module with hooks or a forward of its own far below. The gap leaves room for the
# reduced-precision matrix products of a GPU.
PROOF_SNR_DB = 60.0
# In float16, whose largest number is 65,504 and whose smallest normal one 0.00006, x^2 is infinite from |x| = 256 on, a
# norm's result 0, and x^2 loses digits below 0.008. The largest |x| of one image is brought to between half of this and
# this: other images may have four times as much, and what is a thousandth of it has a square with all its digits.
STREAM_PEAK = 64.0


def rewrite(model: nn.Module, mean: Sequence[float], std: Sequence[float], form: Form = TFLITE) -> ExportViT:
    """The export form of `model`, on the CPU, in float32; `model` is left as it was.

    model: VisionTransformer or VisionTransformerDistilled of timm, float32, eval mode; its head reads the class token,
           the mean of the tokens, or what attention pools of them. Per block, heads, head width and hidden width may
           differ; a branch (attn, mlp) may be None or have the attribute `removed`; norm1 / norm2 may be
           Sequential(norm, m), m.index selecting the channels that enter the branch; ls1 / ls2 may be
           Sequential(scale, m), m.index naming the channels that the branch writes
    mean, std: per channel, for pixels in 0..1, as in timm's data configuration
    form:  what the format that it is for takes best
    Raises ValueError naming the part that has no exact export form.
    Source of the zero-mean stream: arXiv 2305.14858.
    """
    vit: Any = model
    blocks = _checked(vit)
    exported = _graph(vit, blocks, mean, std, form)
    image, want, peak = _reference(vit, mean, std)
    if form.half_norms and 0 < peak < math.inf:
        scale = 2.0 ** math.floor(math.log2(STREAM_PEAK / peak))
        exported = _graph(vit, blocks, mean, std, replace(form, stream_scale=scale))
    _prove(exported, image, want)
    return exported


def _graph(vit: Any, blocks: list[Any], mean: Sequence[float], std: Sequence[float], form: Form) -> ExportViT:
    # behind the last attention the head's tokens alone go on, where it does not read all of them
    tokens = len(_heads(vit)) if vit.global_pool == "token" else None
    last = max(i for i, block in enumerate(blocks) if not _removed(block.attn))
    patches, prefix, positions = _embedding(vit, mean, std, form)
    pool, head = _head(vit, form)
    exported = ExportViT(
        vit.patch_embed.img_size,
        form,
        patches,
        prefix,
        positions,
        _first(vit, form),
        [_block(b, f"blocks.{i}", vit.embed_dim, tokens if i == last else None, form) for i, b in enumerate(blocks)],
        pool,
        head,
    )
    return exported.eval().requires_grad_(False)


def _checked(model: nn.Module) -> list[Any]:
    """The model's blocks, once all that surrounds them is known to have an exact export form."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"a {type(model).__name__} has no exact export form; timm's VisionTransformer (DeiT, ViT) has")
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before exporting it")
    vit: Any = model
    embed, proj, pooling = vit.patch_embed, vit.patch_embed.proj, vit.global_pool
    for name, fits, reason in (
        ("patch_embed", isinstance(embed, PatchEmbed), "only timm's PatchEmbed is known"),
        ("patch_embed.norm", isinstance(embed.norm, nn.Identity), "a norm there is not supported"),
        ("patch_embed.proj", proj.kernel_size == proj.stride, "its stride must equal its kernel size"),
        ("patch_embed.proj", proj.in_channels == 3, "only RGB input is supported"),
        ("patch_embed", not embed.dynamic_img_pad, "it must not pad images"),
        ("global_pool", pooling in ("token", "avg", "map"), "only class token, mean and attention pooling are known"),
        ("pos_embed", vit.pos_embed is not None, "only a learned position embedding is known"),
        ("fc_norm", isinstance(vit.fc_norm, nn.Identity) or pooling == "avg", "only a mean may go before a norm"),
        ("fc_norm", isinstance(vit.fc_norm, nn.Identity) or isinstance(vit.norm, nn.Identity), "one norm is enough"),
        ("head", isinstance(vit.head, nn.Linear), "only a linear head is known"),
        ("blocks", any(not _removed(b.attn) for b in vit.blocks), "without attention the head never sees the image"),
    ):
        if not fits:
            raise ValueError(f"{name} has no exact export form: {reason}")
    return list(vit.blocks)


def _removed(branch: nn.Module | None) -> bool:
    return branch is None or getattr(branch, "removed", False) is True


def _embedding(vit: Any, mean: Sequence[float], std: Sequence[float], form: Form) -> tuple[nn.Conv2d, Tensor, Tensor]:
    """Patch embedding for the form's pixels, leading tokens (1, T, D), patch positions (1, N - T, D).

    All of zero mean over D, and times stream_scale.
    """
    to_one = 255 * form.pixel_scale  # pixels of the form over pixels in 0..1
    weight, bias = parameters(vit.patch_embed.proj)
    mean_t, std_t = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    bias = bias - torch.einsum("dchw,c->d", weight, (mean_t + form.pixel_shift / to_one) / std_t)
    weight = weight / (to_one * std_t).view(1, 3, 1, 1)
    patches = nn.Conv2d(3, len(bias), vit.patch_embed.proj.kernel_size, vit.patch_embed.proj.stride)
    store(patches, form.stream_scale * (weight - weight.mean(0)), form.stream_scale * (bias - bias.mean()))
    tokens = (vit.cls_token, vit.reg_token, getattr(vit, "dist_token", None))
    positions = double(vit.pos_embed)
    leading = torch.cat([positions[:, :0], *(double(token) for token in tokens if token is not None)], 1)
    if not vit.no_embed_class:
        count = leading.shape[1]
        leading, positions = leading + positions[:, :count], positions[:, count:]
    leading, positions = ((form.stream_scale * (t - t.mean(-1, keepdim=True))).float() for t in (leading, positions))
    return patches, leading, positions


def _block(block: Any, name: str, width: int, keep_tokens: int | None, form: Form) -> ExportBlock:
    if not isinstance(block, Block):
        raise ValueError(f"{name} is a {type(block).__name__}; only timm's pre-norm Block has an exact export form")
    norm: nn.Module = nn.Identity()
    attn: ExportAttention | None = None
    mlp: nn.Module | None = None
    if not _removed(block.attn):
        reader = norm_reader(block.norm1, f"{name}.norm1", form)
        norm, attn = reader.module, _attention(block.attn, f"{name}.attn", reader, form)
        weight, bias = scaled(*parameters(block.attn.proj), block.ls1, f"{name}.ls1")
        attn.out = writer(weight, bias, block.ls1, f"{name}.ls1", width, form)
    if not _removed(block.mlp):
        reader = norm_reader(block.norm2, f"{name}.norm2", form)
        weight, bias = scaled(*parameters(_hidden(block.mlp, f"{name}.mlp").fc2), block.ls2, f"{name}.ls2")
        to_stream = writer(weight / _act_scale(block.mlp), bias, block.ls2, f"{name}.ls2", width, form)
        mlp = _mlp(block.mlp, reader, to_stream)
    return ExportBlock(norm, attn, mlp, keep_tokens)


QUICK = 1.702


def _hidden(mlp: Any, name: str) -> Any:
    """The MLP itself if it has an export form."""
    if not (isinstance(mlp, Mlp | GluMlp) and isinstance(mlp.fc1, nn.Linear) and isinstance(mlp.norm, nn.Identity)):
        raise ValueError(f"{name} has no exact export form: only timm's Mlp and GluMlp without a norm of its own")
    if isinstance(mlp, GluMlp) and not isinstance(mlp.act, nn.SiLU):
        raise ValueError(f"{name} has no exact export form: only SiLU is known as a gate")
    return mlp


def _act_scale(mlp: Any) -> float:
    """What the hidden units in the export form are a multiple of: x * sigmoid(1.702 x) becomes SiLU(1.702 x) / 1.702.

    Runtimes have SiLU as one operation.
    """
    return QUICK if isinstance(mlp.act, QuickGELU) else 1.0


def _mlp(mlp: Any, reader: Reader, last: nn.Module) -> nn.Module:
    """Norm and MLP. last: its last layer, whose weights are divided by _act_scale already."""
    weight, bias = reader.fold(*parameters(mlp.fc1))
    if isinstance(mlp, GluMlp):
        (one, other), (one_bias, other_bias) = weight.chunk(2), bias.chunk(2)
        halves = [linear(one, one_bias), linear(other, other_bias)]
        value, gate = halves if mlp.gate_last else halves[::-1]
        return nn.Sequential(reader.module, ExportGlu(gate, value, last))
    scale = _act_scale(mlp)
    act = nn.SiLU() if isinstance(mlp.act, QuickGELU) else mlp.act
    return nn.Sequential(reader.module, linear(scale * weight, scale * bias), act, last)


def _attention(attn: Any, name: str, reader: Reader, form: Form) -> ExportAttention:
    """Attention up to its output layer."""
    plain = isinstance(attn, Attention) and attn.gate is None
    if not plain or not all(isinstance(norm, nn.Identity) for norm in (attn.q_norm, attn.k_norm, attn.norm)):
        raise ValueError(f"{name} has no exact export form: only timm's Attention without norms or gates of its own")
    if attn.fused_attn and not math.isclose(attn.scale, attn.head_dim**-0.5, rel_tol=1e-6):
        raise ValueError(f"{name}.scale is {attn.scale}, but fused attention ignores it and uses {attn.head_dim}**-0.5")
    weight, bias = parameters(attn.qkv)
    weight, bias = reader.fold(weight, bias)
    q, k, v = (
        linear(w * scale, b * scale)
        for w, b, scale in zip(weight.chunk(3), bias.chunk(3), (attn.scale, 1.0, 1.0), strict=True)
    )
    return ExportAttention(q, k, v, attn.num_heads, form)


def _first(vit: Any, form: Form) -> nn.Module:
    """The norm before the blocks."""
    if isinstance(vit.norm_pre, nn.Identity):
        return nn.Identity()
    reader = norm_reader(vit.norm_pre, "norm_pre", form)
    gain, offset = form.stream_scale * reader.gain, form.stream_scale * (reader.offset - reader.offset.mean())
    return FirstNorm(reader.module, gain, offset, by_linear=form.norm == "linear")


def _heads(vit: Any) -> list[nn.Module]:
    """One linear head per head token; timm averages two of them in eval mode."""
    return [vit.head, vit.head_dist] if isinstance(vit, VisionTransformerDistilled) else [vit.head]


def _head(vit: Any, form: Form) -> tuple[nn.Module, nn.Linear]:
    """Last norm and pooling, and the classifier behind them."""
    first = 0 if vit.pool_include_prefix else vit.num_prefix_tokens
    behind = not isinstance(vit.fc_norm, nn.Identity)
    reader = norm_reader(vit.fc_norm if behind else vit.norm, "fc_norm" if behind else "norm", form)
    if vit.global_pool == "token":
        return reader.module, _classifier(reader, _heads(vit))
    if vit.global_pool == "map":
        pool = _attention_pool(vit.attn_pool, first, reader, form)
        weight, bias = parameters(vit.head)
        return nn.Sequential(reader.module, pool), linear(weight / form.stream_scale, bias)
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    mean = MeanPool(first) if form.norm == "mean" else ProductMeanPool(tokens, first)
    steps = (mean, reader.module) if behind else (reader.module, mean)
    return nn.Sequential(*steps), _classifier(reader, [vit.head])


def _classifier(reader: Reader, heads: list[Any]) -> nn.Linear:
    """Last norm's affine part and the average of the heads, on the head tokens side by side: (1, 2 x D) -> (1, C)."""
    folded = [reader.fold(*parameters(head)) for head in heads]
    weights = [weight / len(folded) for weight, _ in folded]
    return linear(torch.cat(weights, 1), torch.stack([bias for _, bias in folded]).mean(0))


def _attention_pool(pool: Any, first: int, reader: Reader, form: Form) -> AttentionPool:
    """timm's AttentionPoolLatent behind the norm `reader`, times stream_scale.

    The query is fixed, so that it and the keys' weights are one row per head. Softmax does not see what all tokens have
    in common. Shares add up to 1, so that the values' bias goes straight into the output's.
    """
    if not (isinstance(pool, AttentionPoolLatent) and pool.mlp is not None and pool.latent.shape[1] == 1):
        raise ValueError("attn_pool has no exact export form: only timm's AttentionPoolLatent of one query is known")
    if not all(isinstance(norm, nn.Identity) for norm in (pool.q_norm, pool.k_norm)) or pool.pos_embed is not None:
        raise ValueError("attn_pool has no exact export form: norms of q and k, and positions, are not supported")
    heads, width = pool.num_heads, pool.head_dim
    weight, bias = parameters(pool.q)
    query_HK = (weight @ double(pool.latent)[0, 0] + bias).reshape(heads, width) * pool.scale
    weight, bias = reader.fold(*parameters(pool.kv))
    key_HKD, value_ED = weight[: len(weight) // 2].reshape(heads, width, -1), weight[len(weight) // 2 :]
    scores_HD = torch.einsum("hk,hkd->hd", query_HK, key_HKD)
    out_DE, out_bias = parameters(pool.proj)
    out_DE, out_bias = form.stream_scale * out_DE, form.stream_scale * (out_bias + out_DE @ bias[len(bias) // 2 :])
    mean_E, mean_bias = out_DE.mean(0, keepdim=True), out_bias.mean(0, keepdim=True)
    inner = norm_reader(pool.norm, "attn_pool.norm", form)
    weight, bias = (form.stream_scale * part for part in parameters(_hidden(pool.mlp, "attn_pool.mlp").fc2))
    return AttentionPool(
        first,
        linear(scores_HD, torch.zeros(heads)),
        linear(value_ED, torch.zeros(len(value_ED))),
        linear(out_DE - mean_E, out_bias - mean_bias),
        linear(mean_E, mean_bias),
        _mlp(pool.mlp, inner, linear(weight / _act_scale(pool.mlp), bias)),
        form,
    )


def _reference(vit: Any, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor, float]:
    """A noise image (1, H, W, 3) 0..255, the model's logits for it, and the largest number that a norm takes in.

    That number without the mean over D, which the export form's stream has not.
    """
    height, width = vit.patch_embed.img_size
    image = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0)) * 255
    normalised = (image / 255 - torch.tensor(mean)) / torch.tensor(std)
    peaks = [0.0]

    def see(_: nn.Module, given: tuple[Tensor]) -> None:
        peaks.append(float((given[0] - given[0].mean(-1, keepdim=True)).abs().max()))

    hooks = [m.register_forward_pre_hook(see) for m in vit.modules() if isinstance(m, nn.LayerNorm)]
    try:
        with torch.no_grad():
            logits = vit(normalised.permute(0, 3, 1, 2).to(vit.pos_embed)).cpu().double()
    finally:
        for hook in hooks:
            hook.remove()
    return image, logits, max(peaks)


def _prove(exported: ExportViT, image: Tensor, want: Tensor) -> None:
    """Compare both on one noise image: a hook or an overridden forward that the rewrite cannot see shows here.

    Raises ValueError below PROOF_SNR_DB.
    """
    with torch.no_grad():
        error = exported(image if exported.layout == "NHWC" else image.permute(0, 3, 1, 2)).double() - want
    snr_db = 10 * math.log10(float(want.square().sum()) / max(float(error.square().sum()), 1e-300))
    if not snr_db >= PROOF_SNR_DB:
        raise ValueError(
            f"the exported graph differs from the model ({snr_db:.0f} dB, {PROOF_SNR_DB:.0f} needed): a hook or a "
            "forward of its own changes what the model computes. Compact a masked model before exporting it"
        )

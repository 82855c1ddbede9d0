"""Exact rewrite of a timm ViT into the form that mobile runtimes run fastest. Knows timm, no file format.

B batch (always 1 here), N tokens, M query tokens, D width, H heads, K head width, F hidden units, C classes,
T leading tokens (class, register, distillation); the heads read the class and the distillation token.

What changes, and why it stays exact:
- pixels come in as RGB 0..255; mean and std go into the patch embedding (without padding);
- everything that writes to the residual stream is multiplied by P = I - 11^T / D. LayerNorm ignores the mean over D, so
  nothing else changes, and with a zero-mean stream LayerNorm is x * rsqrt(mean(x^2) + eps): one reduction, not two;
- LayerNorm's gain and bias, LayerScale and 1/sqrt(head width) go into the neighbouring linear layers;
- attention is two 3D batched matrix products, which XNNPACK takes; it refuses scaled_dot_product_attention;
- after the last attention only the head's tokens matter, so its queries and what follows are computed for those.
Folding is done in float64 and stored in float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers import Attention, LayerScale, Mlp, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

# A sound rewrite lies above 100 dB, a module with hooks or a forward of its own far below. The gap leaves room for the
# reduced-precision matrix products of a GPU.
PROOF_SNR_DB = 60.0


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a file format takes best; all forms compute the same."""

    layout: Literal["NHWC", "NCHW"]
    """of the images"""
    norm: Literal["mean", "linear", "layer_norm"]
    """the mean of squares as a reduction or as a linear layer to one channel, or LayerNorm itself"""
    fused_attention: bool
    """scaled_dot_product_attention instead of two products"""
    pixel_scale: float
    """what pixels are multiplied by before the patch embedding, which takes over the rest of their normalisation"""
    gather: bool
    """channels that a branch does not read or write are left out by index; otherwise they are zeros in its weights"""


# XNNPACK's partitioner in ExecuTorch takes neither a mean over the last dimension nor index_select. A gather there
# costs more than the multiplications that it saves: dense 8.1 ms, with gathers 9.6 (four blocks, 144 of 192 channels).
TFLITE = Form(layout="NHWC", norm="mean", fused_attention=False, pixel_scale=1.0, gather=True)
EXECUTORCH = Form(layout="NCHW", norm="linear", fused_attention=False, pixel_scale=1.0, gather=False)
# Core ML knows both operations and picks their kernels. A gather may take the model off the Neural Engine, which
# computes in float16: there, weights for pixels up to 255 would be subnormal, and hardware may take those for zero.
COREML = Form(layout="NCHW", norm="layer_norm", fused_attention=True, pixel_scale=1 / 255, gather=False)


class RootMeanSquareNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps): LayerNorm without gain and bias, for input of zero mean. (B, N, D) -> (B, N, D)."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND * torch.rsqrt((x_BND * x_BND).mean(-1, keepdim=True) + self.eps)


class LinearRootMeanSquareNorm(nn.Module):
    """The same with the mean as a linear layer to one channel, which delegates take; quantisation must leave it out."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.mean_square = _linear(torch.full((1, width), 1 / width), torch.full((1,), eps))

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND * torch.rsqrt(self.mean_square(x_BND * x_BND))


class Channels(nn.Module):
    """Channels picked (and repeated) by index: (B, N, D) -> (B, N, len(index))."""

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.index = nn.Buffer(index)

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND.index_select(-1, self.index)


class ExportAttention(nn.Module):
    """Multi-head attention from M query tokens to N tokens; the scale is already in q."""

    out: nn.Module

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear, heads: int, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.heads, self.fused = q, k, v, heads, fused

    def forward(self, x_BND: Tensor, queries_BMD: Tensor) -> Tensor:
        heads, width = self.heads, self.q.out_features // self.heads
        tokens, queries = x_BND.shape[1], queries_BMD.shape[1]
        if self.fused:
            q_BHMK = self.q(queries_BMD).reshape(1, queries, heads, width).transpose(1, 2)
            k_BHNK = self.k(x_BND).reshape(1, tokens, heads, width).transpose(1, 2)
            v_BHNK = self.v(x_BND).reshape(1, tokens, heads, width).transpose(1, 2)
            y_BHMK = nn.functional.scaled_dot_product_attention(q_BHMK, k_BHNK, v_BHNK, scale=1.0)
            return self.out(y_BHMK.transpose(1, 2).reshape(1, queries, heads * width))
        q_HMK = self.q(queries_BMD).reshape(queries, heads, width).permute(1, 0, 2)
        k_HKN = self.k(x_BND).reshape(tokens, heads, width).permute(1, 2, 0)
        v_HNK = self.v(x_BND).reshape(tokens, heads, width).permute(1, 0, 2)
        y_HMK = torch.bmm(torch.softmax(torch.bmm(q_HMK, k_HKN), -1), v_HNK)
        return self.out(y_HMK.permute(1, 0, 2).reshape(1, queries, heads * width))


class ExportBlock(nn.Module):
    """One transformer layer; a removed branch is None.

    keep_tokens: after this block's attention only that many leading tokens go on; None: all
    """

    def __init__(
        self, norm: nn.Module, attn: ExportAttention | None, mlp: nn.Module | None, keep_tokens: int | None
    ) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp, self.keep_tokens = norm, attn, mlp, keep_tokens

    def forward(self, x_BND: Tensor) -> Tensor:
        if self.attn is not None:
            y = queries = self.norm(x_BND)
            # a slice that takes everything is an alias, which delegates refuse
            if self.keep_tokens is not None and self.keep_tokens < x_BND.shape[1]:
                x_BND, queries = x_BND[:, : self.keep_tokens], y[:, : self.keep_tokens]
            x_BND = x_BND + self.attn(y, queries)
        return x_BND if self.mlp is None else x_BND + self.mlp(x_BND)


class ExportViT(nn.Module):
    """float32 RGB 0..255 -> logits (1, C).

    image_size: (height, width) in pixels, of the images it takes
    form:       what it was made for; its layout is NHWC: (1, height, width, 3), or NCHW: (1, 3, height, width)
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        form: Form,
        patches: nn.Conv2d,
        prefix: Tensor,
        positions: Tensor,
        blocks: list[ExportBlock],
        norm: nn.Module,
        head: nn.Linear,
    ) -> None:
        super().__init__()
        self.image_size, self.layout, self.pixel_scale = image_size, form.layout, form.pixel_scale
        self.patches, self.blocks, self.norm, self.head = patches, nn.ModuleList(blocks), norm, head
        self.prefix, self.positions = nn.Buffer(prefix), nn.Buffer(positions)

    def example(self) -> Tensor:
        """An image of zeros, of the shape that forward takes."""
        height, width = self.image_size
        return torch.zeros(1, height, width, 3) if self.layout == "NHWC" else torch.zeros(1, 3, height, width)

    def forward(self, images: Tensor) -> Tensor:
        images_BCHW = images.permute(0, 3, 1, 2) if self.layout == "NHWC" else images
        if self.pixel_scale != 1.0:
            images_BCHW = images_BCHW * self.pixel_scale
        x = self.patches(images_BCHW).permute(0, 2, 3, 1)
        x = torch.cat([self.prefix, x.reshape(self.positions.shape) + self.positions], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).reshape(1, -1))


def rewrite(model: nn.Module, mean: Sequence[float], std: Sequence[float], form: Form = TFLITE) -> ExportViT:
    """The export form of `model`, on the CPU, in float32; `model` is left as it was.

    model: VisionTransformer or VisionTransformerDistilled of timm, float32, eval mode. Per block, heads, head width
           and hidden width may differ; a branch (attn, mlp) may be None or have the attribute `removed`; norm1 / norm2
           may be Sequential(norm, m), m.index selecting the channels that enter the branch; ls1 / ls2 may be
           Sequential(scale, m), m.index naming the channels that the branch writes
    mean, std: per channel, for pixels in 0..1, as in timm's data configuration
    form:  what the format that it is for takes best
    Raises ValueError naming the part that has no exact export form.
    Source of the zero-mean stream: arXiv 2305.14858.
    """
    blocks = _checked(model)
    vit: Any = model
    tokens = len(_heads(vit))
    last = max(i for i, block in enumerate(blocks) if not _removed(block.attn))
    patches, prefix, positions = _embedding(vit, mean, std, form.pixel_scale)
    exported = ExportViT(
        vit.patch_embed.img_size,
        form,
        patches,
        prefix,
        positions,
        [_block(b, f"blocks.{i}", vit.embed_dim, tokens if i == last else None, form) for i, b in enumerate(blocks)],
        _norm(vit.norm, "norm", form).module,
        _classifier(vit),
    )
    exported = exported.eval().requires_grad_(False)
    _prove(vit, exported, mean, std)
    return exported


def _checked(model: nn.Module) -> list[Any]:
    """The model's blocks, once all that surrounds them is known to have an exact export form."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"a {type(model).__name__} has no exact export form; timm's VisionTransformer (DeiT, ViT) has")
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before exporting it")
    vit: Any = model
    embed, proj = vit.patch_embed, vit.patch_embed.proj
    for name, fits, reason in (
        ("patch_embed", isinstance(embed, PatchEmbed), "only timm's PatchEmbed is known"),
        ("patch_embed.norm", isinstance(embed.norm, nn.Identity), "a norm there is not supported"),
        ("patch_embed.proj", proj.kernel_size == proj.stride, "its stride must equal its kernel size"),
        ("patch_embed.proj", proj.in_channels == 3, "only RGB input is supported"),
        ("global_pool", vit.global_pool == "token", "only a class token may feed the head"),
        ("pos_embed", vit.pos_embed is not None, "only a learned position embedding is known"),
        ("norm_pre", isinstance(vit.norm_pre, nn.Identity), "a norm before the blocks is not supported"),
        ("fc_norm", isinstance(vit.fc_norm, nn.Identity), "a norm after pooling is not supported"),
        ("head", isinstance(vit.head, nn.Linear), "only a linear head is known"),
        ("blocks", any(not _removed(b.attn) for b in vit.blocks), "without attention the head never sees the image"),
    ):
        if not fits:
            raise ValueError(f"{name} has no exact export form: {reason}")
    return list(vit.blocks)


def _removed(branch: nn.Module | None) -> bool:
    return branch is None or getattr(branch, "removed", False) is True


def _embedding(
    vit: Any, mean: Sequence[float], std: Sequence[float], pixel_scale: float
) -> tuple[nn.Conv2d, Tensor, Tensor]:
    """Patch embedding for pixels 0..255 times pixel_scale, leading tokens (1, T, D), patch positions (1, N - T, D).

    All of zero mean over D.
    """
    weight, bias = _parameters(vit.patch_embed.proj)
    mean_t, std_t = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    bias = bias - torch.einsum("dchw,c->d", weight, mean_t / std_t)
    weight = weight / (255 * pixel_scale * std_t).view(1, 3, 1, 1)
    patches = nn.Conv2d(3, len(bias), vit.patch_embed.proj.kernel_size, vit.patch_embed.proj.stride)
    _store(patches, weight - weight.mean(0), bias - bias.mean())
    tokens = (vit.cls_token, vit.reg_token, getattr(vit, "dist_token", None))
    leading = torch.cat([_double(token) for token in tokens if token is not None], 1)
    positions = _double(vit.pos_embed)
    if not vit.no_embed_class:
        count = leading.shape[1]
        leading, positions = leading + positions[:, :count], positions[:, count:]
    leading, positions = ((t - t.mean(-1, keepdim=True)).float() for t in (leading, positions))
    return patches, leading, positions


def _block(block: Any, name: str, width: int, keep_tokens: int | None, form: Form) -> ExportBlock:
    if not isinstance(block, Block):
        raise ValueError(f"{name} is a {type(block).__name__}; only timm's pre-norm Block has an exact export form")
    norm: nn.Module = nn.Identity()
    attn: ExportAttention | None = None
    mlp: nn.Module | None = None
    if not _removed(block.attn):
        reader = _norm(block.norm1, f"{name}.norm1", form)
        norm, attn = reader.module, _attention(block.attn, f"{name}.attn", reader, form)
        attn.out = _writer(block.attn.proj, block.ls1, f"{name}.ls1", width, form)
    if not _removed(block.mlp):
        body = block.mlp
        if not (isinstance(body, Mlp) and isinstance(body.fc1, nn.Linear) and isinstance(body.norm, nn.Identity)):
            raise ValueError(f"{name}.mlp has no exact export form: only timm's Mlp without a norm of its own")
        reader = _norm(block.norm2, f"{name}.norm2", form)
        fc1 = _linear(*reader.fold(*_parameters(body.fc1)))
        mlp = nn.Sequential(reader.module, fc1, body.act, _writer(body.fc2, block.ls2, f"{name}.ls2", width, form))
    return ExportBlock(norm, attn, mlp, keep_tokens)


def _attention(attn: Any, name: str, reader: "_Reader", form: Form) -> ExportAttention:
    """Attention up to its output layer."""
    plain = isinstance(attn, Attention) and attn.gate is None
    if not plain or not all(isinstance(norm, nn.Identity) for norm in (attn.q_norm, attn.k_norm, attn.norm)):
        raise ValueError(f"{name} has no exact export form: only timm's Attention without norms or gates of its own")
    if attn.fused_attn and not math.isclose(attn.scale, attn.head_dim**-0.5, rel_tol=1e-6):
        raise ValueError(f"{name}.scale is {attn.scale}, but fused attention ignores it and uses {attn.head_dim}**-0.5")
    weight, bias = _parameters(attn.qkv)
    weight, bias = reader.fold(weight, bias)
    q, k, v = (
        _linear(w * scale, b * scale)
        for w, b, scale in zip(weight.chunk(3), bias.chunk(3), (attn.scale, 1.0, 1.0), strict=True)
    )
    return ExportAttention(q, k, v, attn.num_heads, form.fused_attention)


@dataclass(frozen=True)
class _Reader:
    """How a branch reads the residual stream."""

    module: nn.Module
    """the norm without its affine part, then the selection if there is one"""
    gain: Tensor
    offset: Tensor
    """of the norm, for the channels that it lets through"""
    width: int
    """channels of the stream"""
    spread: Tensor | None
    """without a gather: the channels of the stream that the branch's weights are for"""

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the linear layer that reads the module's output instead of the norm's."""
        bias, weight = bias + weight @ self.offset, weight * self.gain
        if self.spread is None:
            return weight, bias
        return weight.new_zeros(len(weight), self.width).index_copy(1, self.spread, weight), bias


def _norm(module: nn.Module, name: str, form: Form) -> _Reader:
    """The norm that a branch begins with, and what the branch's first linear layer has to take over from it."""
    norm, select = _two_parts(module)
    if not isinstance(norm, nn.LayerNorm):
        raise ValueError(f"{name} has no exact export form: it is a {type(module).__name__}, only LayerNorm is known")
    gain = torch.ones(norm.normalized_shape).double() if norm.weight is None else _double(norm.weight)
    offset = torch.zeros_like(gain) if norm.bias is None else _double(norm.bias)
    width = len(gain)
    plain: nn.Module
    if form.norm == "mean":
        plain = RootMeanSquareNorm(norm.eps)
    elif form.norm == "linear":
        plain = LinearRootMeanSquareNorm(width, norm.eps)
    else:
        plain = nn.LayerNorm(width, norm.eps, elementwise_affine=False)
    if select is None:
        return _Reader(plain, gain, offset, width, None)
    index = _index(select, name)
    if form.gather:
        return _Reader(nn.Sequential(plain, Channels(index)), gain[index], offset[index], width, None)
    return _Reader(plain, gain[index], offset[index], width, index)


def _writer(linear: Any, scaling: Any, name: str, width: int, form: Form) -> nn.Module:
    """What writes a branch's result to the residual stream: LayerScale folded in, zero mean over the stream's width.

    Centring would make a scattered output dense. With a gather the linear layer instead gets one row more, minus the
    mean that the kept rows give to the whole stream; each channel that the branch doesn't write reads that row.
    """
    weight, bias = _parameters(linear)
    scale, scatter = _two_parts(scaling)
    if isinstance(scale, LayerScale):
        gamma = _double(scale.gamma)
        weight, bias = weight * gamma[:, None], bias * gamma
    elif not isinstance(scale, nn.Identity):
        raise ValueError(f"{name} has no exact export form: it is a {type(scale).__name__}, only LayerScale is known")
    mean_weight, mean_bias = weight.sum(0, keepdim=True) / width, bias.sum(0, keepdim=True) / width
    if scatter is None:
        return _linear(weight - mean_weight, bias - mean_bias)
    index = _index(scatter, name)
    rows = torch.full((width,), len(index))
    rows[index] = torch.arange(len(index))
    weight = torch.cat([weight - mean_weight, -mean_weight])
    bias = torch.cat([bias - mean_bias, -mean_bias])
    return nn.Sequential(_linear(weight, bias), Channels(rows)) if form.gather else _linear(weight[rows], bias[rows])


def _two_parts(module: Any) -> tuple[nn.Module, Any]:
    """A layer and the channel selection that follows it, or None."""
    return (module[0], module[1]) if isinstance(module, nn.Sequential) and len(module) == 2 else (module, None)


def _index(module: Any, name: str) -> Tensor:
    if not isinstance(getattr(module, "index", None), Tensor):
        raise ValueError(f"{name} has no exact export form: {type(module).__name__} has no channel index")
    return module.index.detach().cpu().long()


def _heads(vit: Any) -> list[nn.Module]:
    """One linear head per head token; timm averages two of them in eval mode."""
    return [vit.head, vit.head_dist] if isinstance(vit, VisionTransformerDistilled) else [vit.head]


def _classifier(vit: Any) -> nn.Linear:
    """Final norm's affine part and the average of the heads, on the head tokens side by side: (1, 2 x D) -> (1, C)."""
    reader = _norm(vit.norm, "norm", TFLITE)
    heads = [reader.fold(*_parameters(head)) for head in _heads(vit)]
    weights = [weight / len(heads) for weight, _ in heads]
    return _linear(torch.cat(weights, 1), torch.stack([bias for _, bias in heads]).mean(0))


def _prove(vit: Any, exported: ExportViT, mean: Sequence[float], std: Sequence[float]) -> None:
    """Compare both on one noise image: a hook or an overridden forward that the rewrite cannot see shows here.

    Raises ValueError below PROOF_SNR_DB.
    """
    height, width = vit.patch_embed.img_size
    image = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0)) * 255
    normalised = (image / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        want = vit(normalised.permute(0, 3, 1, 2).to(vit.cls_token)).cpu().double()
        error = exported(image if exported.layout == "NHWC" else image.permute(0, 3, 1, 2)).double() - want
    snr_db = 10 * math.log10(float(want.square().sum()) / max(float(error.square().sum()), 1e-300))
    if not snr_db >= PROOF_SNR_DB:
        raise ValueError(
            f"the exported graph differs from the model ({snr_db:.0f} dB, {PROOF_SNR_DB:.0f} needed): a hook or a "
            "forward of its own changes what the model computes. Compact a masked model before exporting it"
        )


def _parameters(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias (zeros where there is none) in float64 on the CPU."""
    weight = _double(layer.weight)
    return weight, torch.zeros(weight.shape[0], dtype=torch.float64) if layer.bias is None else _double(layer.bias)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    _store(layer, weight, bias)
    return layer


def _store(layer: Any, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)

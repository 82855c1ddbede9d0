"""The form of a ViT that mobile runtimes run fastest: its modules. rewrite.py makes it. Knows torch alone.

B batch (always 1 here), N tokens, M query tokens, D width, H heads, K head width, F hidden units, C classes,
T leading tokens (class, register, distillation), P patches.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a file format takes best; all forms compute the same."""

    layout: Literal["NHWC", "NCHW"]
    """of the images"""
    norm: Literal["mean", "linear", "layer_norm"]
    """the mean of squares as a reduction or as a linear layer to one channel, or LayerNorm itself"""
    attention: Literal["BHNK", "HNK", "fused"]
    """two products with or without a leading dimension of 1, or scaled_dot_product_attention"""
    pixel_scale: float
    """what pixels are multiplied by before the patch embedding, which takes over the rest of their normalisation"""
    gather: bool
    """channels that a branch does not read or write are left out by index; otherwise they are zeros in its weights"""
    half_norms: bool
    """whether norms may be computed in float16: stream_scale is then found for each model"""
    stream_scale: float = 1.0
    """what everything that is added to the residual stream is multiplied by; a power of two, so that nothing is lost"""
    pixel_shift: float = 0.0
    """what is added to pixels behind pixel_scale, which are clamped to -1..1 then"""


# LiteRT's GPU delegate takes dimension 0 as the batch, and computes in float16 where it may.
TFLITE = Form(layout="NHWC", norm="mean", attention="BHNK", pixel_scale=1.0, gather=True, half_norms=True)
# In float16 the weights for pixels up to 255 would be subnormal. LiteRT's converter folds a scale and a sum into the
# layer behind them, and both would be for nothing. It does not fold through a clamp, which changes no pixel here.
TFLITE_FLOAT16 = replace(TFLITE, pixel_scale=2 / 255, pixel_shift=-1.0)
# XNNPACK's partitioner in ExecuTorch takes neither a mean over the last dimension nor index_select, nor the expand that
# four-dimensional products come with. A gather there costs more than the multiplications that it saves: dense 8.1 ms,
# with gathers 9.6 (four blocks, 144 of 192 channels).
EXECUTORCH = Form(layout="NCHW", norm="linear", attention="HNK", pixel_scale=1.0, gather=False, half_norms=False)
# Core ML knows both operations and picks their kernels. A gather may take the model off the Neural Engine, which
# computes in float16: there, weights for pixels up to 255 would be subnormal, and hardware may take those for zero.
COREML = Form(layout="NCHW", norm="layer_norm", attention="fused", pixel_scale=1 / 255, gather=False, half_norms=False)


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
        self.mean_square = linear(torch.full((1, width), 1 / width), torch.full((1,), eps))

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND * torch.rsqrt(self.mean_square(x_BND * x_BND))


class FirstNorm(nn.Module):
    """A norm that begins the residual stream: gain and offset stay, and the mean goes again. (B, N, D) -> (B, N, D).

    norm: without gain and offset;  gain, offset: (D,), the offset of zero mean
    by_linear: the mean as a linear layer to one channel, which quantisation must leave out
    """

    def __init__(self, norm: nn.Module, gain: Tensor, offset: Tensor, by_linear: bool) -> None:
        super().__init__()
        self.norm, self.gain, self.offset = norm, nn.Buffer(gain.float()), nn.Buffer(offset.float())
        self.mean = linear(gain[None] / len(gain), torch.zeros(1)) if by_linear else None

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = self.norm(x_BND)
        scaled = x_BND * self.gain
        mean = scaled.mean(-1, keepdim=True) if self.mean is None else self.mean(x_BND)
        return scaled + self.offset - mean


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

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear, heads: int, form: Form) -> None:
        super().__init__()
        self.q, self.k, self.v, self.heads, self.kind = q, k, v, heads, form.attention

    def forward(self, x_BND: Tensor, queries_BMD: Tensor) -> Tensor:
        heads, width = self.heads, self.q.out_features // self.heads
        tokens, queries = x_BND.shape[1], queries_BMD.shape[1]
        if self.kind == "HNK":
            q_HMK = self.q(queries_BMD).reshape(queries, heads, width).permute(1, 0, 2)
            k_HKN = self.k(x_BND).reshape(tokens, heads, width).permute(1, 2, 0)
            v_HNK = self.v(x_BND).reshape(tokens, heads, width).permute(1, 0, 2)
            y_HMK = torch.bmm(torch.softmax(torch.bmm(q_HMK, k_HKN), -1), v_HNK)
            return self.out(y_HMK.permute(1, 0, 2).reshape(1, queries, heads * width))
        q_BHMK = self.q(queries_BMD).reshape(1, queries, heads, width).permute(0, 2, 1, 3)
        k_BNHK = self.k(x_BND).reshape(1, tokens, heads, width)
        v_BHNK = self.v(x_BND).reshape(1, tokens, heads, width).permute(0, 2, 1, 3)
        if self.kind == "fused":
            y_BHMK = nn.functional.scaled_dot_product_attention(q_BHMK, k_BNHK.permute(0, 2, 1, 3), v_BHNK, scale=1.0)
        else:
            y_BHMK = torch.softmax(q_BHMK @ k_BNHK.permute(0, 2, 3, 1), -1) @ v_BHNK
        return self.out(y_BHMK.permute(0, 2, 1, 3).reshape(1, queries, heads * width))


class ExportGlu(nn.Module):
    """An MLP whose hidden units are multiplied by a gate."""

    def __init__(self, gate: nn.Linear, value: nn.Linear, out: nn.Module) -> None:
        super().__init__()
        self.gate, self.value, self.act, self.out = gate, value, nn.SiLU(), out

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.out(self.act(self.gate(x_BND)) * self.value(x_BND))


class MeanPool(nn.Module):
    """The mean of the tokens from `first` on: (B, N, D) -> (B, 1, D)."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, x_BND: Tensor) -> Tensor:
        return (x_BND[:, self.first :] if self.first else x_BND).mean(1, keepdim=True)


class ProductMeanPool(nn.Module):
    """The same as a product, which XNNPACK and Core ML take, where they differ about a mean over tokens."""

    def __init__(self, tokens: int, first: int) -> None:
        super().__init__()
        share_11N = torch.zeros(1, 1, tokens)
        share_11N[..., first:] = 1 / (tokens - first)
        self.share = nn.Buffer(share_11N)

    def forward(self, x_BND: Tensor) -> Tensor:
        return torch.bmm(self.share, x_BND)


class AttentionPool(nn.Module):
    """What a fixed query per head finds in the tokens from `first` on: (B, N, D) -> (B, 1, D).

    scores: D -> H, query and keys in one;  value: D -> H K;  out: H K -> D, of zero mean, for the MLP's norm
    mean:   H K -> 1, what `out` leaves out
    """

    def __init__(
        self, first: int, scores: nn.Linear, value: nn.Linear, out: nn.Linear, mean: nn.Linear, mlp: nn.Module,
        form: Form,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first, self.scores, self.value, self.out, self.mean, self.mlp = first, scores, value, out, mean, mlp
        self.kind = form.attention

    def forward(self, x_BND: Tensor) -> Tensor:
        if self.first:
            x_BND = x_BND[:, self.first :]
        tokens, heads = x_BND.shape[1], self.scores.out_features
        scores_BNH, value_BNE = self.scores(x_BND), self.value(x_BND)
        if self.kind == "BHNK":
            share_BH1N = torch.softmax(scores_BNH.permute(0, 2, 1).reshape(1, heads, 1, tokens), -1)
            found_BH1K = share_BH1N @ value_BNE.reshape(1, tokens, heads, -1).permute(0, 2, 1, 3)
            found_B1E = found_BH1K.reshape(1, 1, -1)
        else:
            share_H1N = torch.softmax(scores_BNH.permute(2, 0, 1), -1)
            v_HNK = value_BNE.reshape(tokens, heads, -1).permute(1, 0, 2)
            found_B1E = torch.bmm(share_H1N, v_HNK).permute(1, 0, 2).reshape(1, 1, -1)
        y_B1D = self.out(found_B1E)
        return y_B1D + self.mean(found_B1E) + self.mlp(y_B1D)


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
    prefix:     (1, T, D), T may be 0;  positions: (1, P, D)
    first:      norm before the blocks, if there is one
    pool:       from the blocks' result to what the head reads: the last norm, and pooling in front of it or behind it
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        form: Form,
        patches: nn.Conv2d,
        prefix: Tensor,
        positions: Tensor,
        first: nn.Module,
        blocks: list[ExportBlock],
        pool: nn.Module,
        head: nn.Linear,
    ) -> None:
        super().__init__()
        self.image_size, self.layout = image_size, form.layout
        self.pixel_scale, self.pixel_shift = form.pixel_scale, form.pixel_shift
        self.patches, self.first, self.blocks = patches, first, nn.ModuleList(blocks)
        self.pool, self.head = pool, head
        # LiteRT's GPU delegate reads a constant that is concatenated only if it has four dimensions
        self.prefix, self.positions = nn.Buffer(prefix[None]), nn.Buffer(positions[None])

    def example(self) -> Tensor:
        """An image of zeros, of the shape that forward takes."""
        height, width = self.image_size
        return torch.zeros(1, height, width, 3) if self.layout == "NHWC" else torch.zeros(1, 3, height, width)

    def forward(self, images: Tensor) -> Tensor:
        images_BCHW = images.permute(0, 3, 1, 2) if self.layout == "NHWC" else images
        if self.pixel_scale != 1.0:
            images_BCHW = images_BCHW * self.pixel_scale
        if self.pixel_shift:
            images_BCHW = nn.functional.hardtanh(images_BCHW + self.pixel_shift)
        x_B1PD = self.patches(images_BCHW).permute(0, 2, 3, 1).reshape(self.positions.shape) + self.positions
        x_B1ND = torch.cat([self.prefix, x_B1PD], 2) if self.prefix.shape[2] else x_B1PD
        x = self.first(x_B1ND.reshape(1, x_B1ND.shape[2], -1))
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x).reshape(1, -1))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of these weights, in float32."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    store(layer, weight, bias)
    return layer


def store(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Put weights into a layer that has a bias."""
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)  # type: ignore[union-attr]

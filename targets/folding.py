"""What the linear layers around a branch take over: gains of norms, LayerScale, zero mean, channel selections.

Computed in float64. D width; a branch may read and write some of the D channels only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import LayerScale
from torch import Tensor, nn

from targets.graph import Channels, Form, LinearRootMeanSquareNorm, RootMeanSquareNorm, linear


@dataclass(frozen=True)
class Reader:
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


def norm_reader(module: nn.Module, name: str, form: Form) -> Reader:
    """The norm that a branch begins with, and what the branch's first linear layer has to take over from it."""
    norm, select = _two_parts(module)
    if not isinstance(norm, nn.LayerNorm):
        raise ValueError(f"{name} has no exact export form: it is a {type(module).__name__}, only LayerNorm is known")
    gain = torch.ones(norm.normalized_shape).double() if norm.weight is None else double(norm.weight)
    offset = torch.zeros_like(gain) if norm.bias is None else double(norm.bias)
    width = len(gain)
    plain = _plain_norm(width, norm.eps, form)
    if select is None:
        return Reader(plain, gain, offset, width, None)
    index = _index(select, name)
    if form.gather:
        return Reader(nn.Sequential(plain, Channels(index)), gain[index], offset[index], width, None)
    return Reader(plain, gain[index], offset[index], width, index)


def _plain_norm(width: int, eps: float, form: Form) -> nn.Module:
    """LayerNorm without gain and offset, of a stream that is a multiple of what it was."""
    eps = eps * form.stream_scale**2
    if form.norm == "mean":
        return RootMeanSquareNorm(eps)
    if form.norm == "linear":
        return LinearRootMeanSquareNorm(width, eps)
    return nn.LayerNorm(width, eps, elementwise_affine=False)


def scaled(weight: Tensor, bias: Tensor, scaling: Any, name: str) -> tuple[Tensor, Tensor]:
    """A branch's last layer with its LayerScale folded in."""
    scale, _ = _two_parts(scaling)
    if isinstance(scale, LayerScale):
        gamma = double(scale.gamma)
        return weight * gamma[:, None], bias * gamma
    if not isinstance(scale, nn.Identity):
        raise ValueError(f"{name} has no exact export form: it is a {type(scale).__name__}, only LayerScale is known")
    return weight, bias


def writer(weight: Tensor, bias: Tensor, scaling: Any, name: str, width: int, form: Form) -> nn.Module:
    """What writes a branch's result to the residual stream: zero mean over the stream's width, times stream_scale.

    Centring would make a scattered output dense. With a gather the linear layer instead gets one row more, minus the
    mean that the kept rows give to the whole stream; each channel that the branch doesn't write reads that row.
    """
    _, scatter = _two_parts(scaling)
    weight, bias = form.stream_scale * weight, form.stream_scale * bias
    mean_weight, mean_bias = weight.sum(0, keepdim=True) / width, bias.sum(0, keepdim=True) / width
    if scatter is None:
        return linear(weight - mean_weight, bias - mean_bias)
    index = _index(scatter, name)
    rows = torch.full((width,), len(index))
    rows[index] = torch.arange(len(index))
    weight = torch.cat([weight - mean_weight, -mean_weight])
    bias = torch.cat([bias - mean_bias, -mean_bias])
    return nn.Sequential(linear(weight, bias), Channels(rows)) if form.gather else linear(weight[rows], bias[rows])


def _two_parts(module: Any) -> tuple[nn.Module, Any]:
    """A layer and the channel selection that follows it, or None."""
    return (module[0], module[1]) if isinstance(module, nn.Sequential) and len(module) == 2 else (module, None)


def _index(module: Any, name: str) -> Tensor:
    if not isinstance(getattr(module, "index", None), Tensor):
        raise ValueError(f"{name} has no exact export form: {type(module).__name__} has no channel index")
    return module.index.detach().cpu().long()


def parameters(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias (zeros where there is none) in float64 on the CPU."""
    weight = double(layer.weight)
    return weight, torch.zeros(weight.shape[0], dtype=torch.float64) if layer.bias is None else double(layer.bias)


def double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()

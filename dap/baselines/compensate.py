"""What a cut took away, put back as far as the remaining units can say it: least squares, no training.

Branch by branch, in the order they act, the last layer of the small model (proj or fc2) and its bias are moved so that
the residual stream behind it comes as close as it can to that of the whole model, on a few images. A ridge holds the
weights where they were, for what the images do not determine. The means go into the bias.

Source: in the manner of CORP, arXiv 2602.05243, and VBP, arXiv 2507.12988. Theirs regress what the removed units wrote
upon what the kept ones compute; ours takes the difference of the streams, which holds that and what has gone wrong in
the blocks before, and needs no units that correspond: it works for any two models.

Key: B batch, N tokens, D width of the small model, W of the whole one, U units that the last layer reads.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from timm.layers.layer_scale import LayerScale
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

RIDGE = 1e-2  # of the units' mean variance


@torch.no_grad()
def compensate(
    small: VisionTransformer, whole: VisionTransformer, batches: Iterable[Tensor], *, ridge: float = RIDGE
) -> None:
    """Fit the last layer of every branch of `small`, in place, to the residual stream of `whole`.

    batches: normalised images (B, 3, H, W), on the device of both models; all their streams are held in memory
    Raises ValueError if the models differ in depth, if the small one reads or writes channels of its own choice, or if
    it has a narrower stream that was not cut out of the whole one's.
    """
    if len(small.blocks) != len(whole.blocks):
        raise ValueError(f"a model of {len(small.blocks)} layers cannot be fitted to one of {len(whole.blocks)}")
    channels = _channels(small, whole)
    modes = small.training, whole.training
    small.eval(), whole.eval()
    streams = [(_entering(small, images), _entering(whole, images)) for images in batches]
    if not streams:
        raise ValueError("there are no images to fit the small model to")
    mine: Any
    other: Any
    for mine, other in zip(small.blocks, whole.blocks, strict=True):
        for side, kind, last in (("1", "attn", "proj"), ("2", "mlp", "fc2")):
            parts = [getattr(mine, name) for name in (f"norm{side}", kind, f"ls{side}")]
            theirs = [getattr(other, name) for name in (f"norm{side}", kind, f"ls{side}")]
            if any(isinstance(part, nn.Sequential) for part in parts):
                raise ValueError("a branch that reads or writes some channels only cannot be fitted")
            streams = [(x_BND, _after(theirs, y_BNW)) for x_BND, y_BNW in streams]
            if parts[1] is not None:
                _fit(parts, getattr(parts[1], last), streams, channels, ridge)
                streams = [(_after(parts, x_BND), y_BNW) for x_BND, y_BNW in streams]
    small.train(modes[0]), whole.train(modes[1])


def _fit(
    parts: list[Any], last: nn.Linear, streams: list[tuple[Tensor, Tensor]], channels: Tensor, ridge: float
) -> None:
    """Move one last layer.

    streams: what enters the branch in the small model, and what leaves it in the whole one
    """
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    scale = parts[2].gamma.double() if isinstance(parts[2], LayerScale) else None
    units, dim = last.in_features, last.out_features
    device = last.weight.device
    gram_UU = torch.zeros(units, units, dtype=torch.float64, device=device)
    cross_UD = torch.zeros(units, dim, dtype=torch.float64, device=device)
    unit_U, lack_D, count = torch.zeros_like(gram_UU[0]), torch.zeros_like(cross_UD[0]), 0
    for x_BND, y_BNW in streams:
        lack = (y_BNW[..., channels] - _after(parts, x_BND)).flatten(0, 1).double()
        h = seen.pop().flatten(0, 1).double()
        gram_UU += h.mT @ h
        cross_UD += h.mT @ lack
        unit_U += h.sum(0)
        lack_D += lack.sum(0)
        count += len(h)
    hook.remove()
    unit_U, lack_D = unit_U / count, lack_D / count
    gram_UU = gram_UU / count - torch.outer(unit_U, unit_U)
    cross_UD = cross_UD / count - torch.outer(unit_U, lack_D)
    gram_UU.diagonal().add_(ridge * gram_UU.diagonal().mean() + torch.finfo(torch.float32).tiny)
    step_DU = torch.linalg.solve(gram_UU, cross_UD).mT
    bias_D = lack_D - step_DU @ unit_U
    if scale is not None:  # a channel whose scale is 0 writes nothing, whatever its weights
        inverse_D = torch.where(scale == 0, 0.0, 1 / scale)
        step_DU, bias_D = step_DU * inverse_D[:, None], bias_D * inverse_D
    last.weight += step_DU.to(last.weight.dtype)
    last.bias.add_(bias_D.to(last.bias.dtype))


def _after(parts: list[Any], x: Tensor) -> Tensor:
    """The stream behind a branch, in evaluation: timm's Block without drop path. parts: norm, body, scale, or None."""
    norm, body, scale = parts
    return x if body is None else x + scale(body(norm(x)))


def _entering(model: VisionTransformer, images: Tensor) -> Tensor:
    """(B, N, D) float32: the stream in front of the first block."""
    seen: list[Tensor] = []
    hook = cast(nn.Module, model.blocks[0]).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(images)
    hook.remove()
    return seen[0]


def _channels(small: VisionTransformer, whole: VisionTransformer) -> Tensor:
    """(D,) the channels of the whole stream that the small one has: a one-shot cut leaves their embeddings alone."""
    if small.embed_dim == whole.embed_dim:
        return torch.arange(small.embed_dim, device=cast(Tensor, small.pos_embed).device)
    ours, theirs = cast(Tensor, small.pos_embed)[0].mT, cast(Tensor, whole.pos_embed)[0].mT
    equal = (ours[:, None] == theirs[None]).all(-1)
    if not equal.any(1).all():
        raise ValueError("the small model's channels are not some of the whole one's: nothing can be fitted to it")
    return equal.int().argmax(1)

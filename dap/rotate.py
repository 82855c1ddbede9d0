"""Another basis for the channels of every attention head, in which the ones that matter least are the last. Exact.

A head's scores depend on q and k through q . k alone, and its output on v and proj through their product alone. So any
invertible M may be put in between: q -> M q with k -> M^-T k, and v -> M v with proj -> proj M^-1. Of all of them
balance() takes the one in which both sides are uncorrelated and equally large, channel by channel. With the second
moments of what q and k are for some images, that is the singular value decomposition of W_Q^T W_K, weighted by the
tokens that really come; likewise for W_O W_V with what each head puts out. Unweighted, it is of little use: on DINOv2's
ViT-S, a quarter of all channels cut, the last tokens are off by 61 %, unweighted or by the weights' magnitude in the
basis as it is by 67 %, and weighted by 18 %.

One gate cuts channel k of q, k, v in all heads at once. In the basis that a model comes with, channel k of one head has
nothing to do with that of another one, nor that of q with that of v. Afterwards channel k is the k-th best everywhere,
so that gates apart from each other would choose much the same: the shared gate stays.

Key: D width, H heads, K head width, T tokens of all images, G of q, k or the output.
"""

from collections.abc import Iterable

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dap.gates import Branch, branches_of
from dap.method import average_over_ranks

SMALLEST = 1e-6  # singular values below this share of the first one count as that: M must stay invertible


@torch.no_grad()
def rotate_heads(model: VisionTransformer, batches: Iterable[Tensor]) -> None:
    """Rotate all heads of a supported dense model, in place, before a pruner is built on it.

    batches: normalised images (B, 3, H, W) on the model's device, some hundred in all
    In eval mode the model computes the same; in training too, unless it drops attention weights out.
    Raises ValueError if there are no images.
    """
    branches = [branch for branch in branches_of(model) if branch.shape.kind == "attn"]
    moments = [_Moments(branch) for branch in branches]
    training = model.training
    model.eval()
    for images in batches:
        model(images)
    model.train(training)
    for branch, seen in zip(branches, moments, strict=True):
        seen.remove()
        average_over_ranks([seen.sum_3HK, seen.square_3HKK])
        if not seen.count:
            raise ValueError("rotate_heads() needs images to see what heads compute, and got none")
        _rotate(branch, seen)


class _Moments:
    """First and second moments of what the heads of one attention compute: q, k, and what goes into proj."""

    def __init__(self, branch: Branch) -> None:
        heads, width, device = branch.shape.heads, branch.shape.width, branch.into.weight.device
        self.count = 0
        self.sum_3HK = torch.zeros(3, heads, width, dtype=torch.float64, device=device)
        self.square_3HKK = torch.zeros(3, heads, width, width, dtype=torch.float64, device=device)
        self._hooks = [
            branch.into.register_forward_hook(
                lambda module, args, x: self._add(slice(0, 2), x.reshape(-1, 3, heads, width)[:, :2])
            ),
            branch.out_of.register_forward_pre_hook(
                lambda module, args: self._add(slice(2, 3), args[0].reshape(-1, 1, heads, width))
            ),
        ]

    def _add(self, which: slice, x_TGHK: Tensor) -> None:
        x = x_TGHK.double()
        self.count += len(x)
        self.sum_3HK[which] += x.sum(0)
        self.square_3HKK[which] += torch.einsum("tghk,tghl->ghkl", x, x)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.count //= 2  # each token has been seen at both ends


def _rotate(branch: Branch, seen: _Moments) -> None:
    """Biases: k's adds the same to all scores of a query, which softmax does not see, so that it is free; v's adds the
    same to every output, whatever is attended to, so that proj's bias can take it over. Both are set such that keys and
    outputs have mean 0 for these images: a channel that is cut then takes no constant along. q's bias turns with q. In
    a model without these biases the means stay where they are.
    """
    shape, qkv, proj = branch.shape, branch.into, branch.out_of
    heads, width, dim = shape.heads, shape.width, shape.dim
    mean_3HK, gram_3HKK = seen.sum_3HK / seen.count, seen.square_3HKK / seen.count
    weight = qkv.weight.double().view(3, heads, width, dim)
    out_DHK = proj.weight.double().view(dim, heads, width)
    bias = torch.zeros_like(mean_3HK)
    if qkv.bias is not None:
        mean_3HK[0] = 0.0
        bias = qkv.bias.double().view(3, heads, width) - mean_3HK
        proj.bias.add_(torch.einsum("dhk,hk->d", out_DHK, mean_3HK[2]).to(proj.bias.dtype))
        gram_3HKK = gram_3HKK - mean_3HK[..., None] * mean_3HK[..., None, :]
    written_DHK = out_DHK if branch.gamma is None else out_DHK * branch.gamma.double()[:, None, None]
    to_q, from_q = balance(gram_3HKK[0], gram_3HKK[1])
    to_v, from_v = balance(gram_3HKK[2], torch.einsum("dhk,dhl->hkl", written_DHK, written_DHK))
    turn = torch.stack([to_q, from_q.mT, to_v])
    qkv.weight.copy_((turn @ weight).reshape(-1, dim))
    if qkv.bias is not None:
        qkv.bias.copy_((turn @ bias[..., None]).flatten())
    proj.weight.copy_(torch.einsum("dhk,hkl->dhl", out_DHK, from_v).reshape(dim, -1))


def balance(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """M and its inverse, such that M one M^T = M^-T other M^-1 = a diagonal, largest first.

    one, other: (..., K, K) second moments, symmetric, not negative, float64
    Source: balanced realisation of a linear system, Moore 1981.
    """
    eye = torch.eye(one.shape[-1], dtype=one.dtype, device=one.device)
    size = one.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    root = torch.linalg.cholesky(one + (1e-9 * size + torch.finfo(one.dtype).tiny) * eye)
    squares, turn = torch.linalg.eigh(root.mT @ other @ root)
    squares, turn = squares.flip(-1), turn.flip(-1)
    first = squares[..., :1].clamp(min=torch.finfo(one.dtype).tiny)
    quarter = squares.clamp(min=SMALLEST**2 * first).pow(0.25)[..., None, :]  # the root of a singular value
    return (turn * quarter).mT @ torch.linalg.inv(root), root @ (turn / quarter)

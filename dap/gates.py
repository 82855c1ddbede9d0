"""Soft masks on a timm ViT: what may be pruned, attaching and removing the masks, and their Taylor scores.

Key: B batch, N tokens, D width, H heads, K head width, F hidden units, E elements of one block's gates;
R rows (outputs) and C columns (inputs) of a linear layer.

A gate does not multiply activations but the weights next to them, which is the same function: a mask on what enters a
linear layer scales its columns, a mask on what leaves it scales its rows and its bias. Two things come free. Nothing
of batch size is stored, and the gradient of the mask follows from the gradient that the weight gets anyway:

    W_eff = rows * W * cols   =>   m_j dL/dm_j = sum_i W_ij dL/dW_ij                   for a mask on columns
                                   m_i dL/dm_i = sum_j W_ij dL/dW_ij + b_i dL/db_i     for a mask on rows

with W and dL/dW those of the raw parameter. They are already averaged over ranks and accumulated over micro-batches.

The score holds the mask itself, and its square the mask's square: an element at 0.1 scores a hundredth of what it would
unmasked, one at 0 scores 0. Once masks are apart, the order inside a block therefore hardly changes; what comes back
later comes back because its block is given more, in the order of the ranks.

A masked layer is the same nn.Linear with the same parameters, a forward of its own, and its masks as buffers beside the
weights: a copy of the model has them, and its state dict too. They are stored as the bits of float32 in an integer
tensor, since averages of a model (timm's ModelEmaV3, torch's AveragedModel) average what is floating and copy the rest:
a mask that lags behind its weights would be no mask.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import GluMlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dap.config import Gating
from dap.cost import BranchShape
from dap.supported import MASKS, check_storable, refuse

Side = Literal["rows", "cols"]


def check_prunable(model: nn.Module) -> VisionTransformer:
    """The model itself if gates can be put on it, dense and not compacted, else ValueError with the reason.

    The small model must be storable, and so the dense one must be; and there must be all that gates and probes act on.
    """
    vit: Any = check_storable(model)
    if not isinstance(vit.head, nn.Linear):
        refuse(model, "it has no linear classification head; build it with num_classes > 0")
    for i, block in enumerate(vit.blocks):
        if type(block) is not Block or isinstance(block.norm1, nn.Sequential) or isinstance(block.norm2, nn.Sequential):
            raise ValueError(f"block {i} has been compacted already; prune the dense model it came from")
    return cast(VisionTransformer, model)


def check_rivals(model: nn.Module, method: str) -> VisionTransformer:
    """check_prunable() for the methods DAP is compared with, which are kept as published: for a DeiT.

    Raises ValueError also for a model whose head reads no class token, or with gated MLPs.
    """
    vit: Any = check_prunable(model)
    if vit.global_pool != "token":
        raise ValueError(f"{method} works on models whose head reads the class token; this one pools the tokens")
    if any(isinstance(block.mlp, GluMlp) for block in vit.blocks):
        raise ValueError(f"{method} works on models with plain MLPs; this one's are gated")
    return cast(VisionTransformer, model)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One residual branch of a dense model: what the method calls a block."""

    name: str
    """ "attn 0", "mlp 0", "attn 1", ..."""
    shape: BranchShape
    """Dense sizes."""
    norm: nn.LayerNorm
    """LayerNorm in front."""
    body: Any
    """timm's Attention, Mlp or GluMlp."""
    gamma: Tensor | None
    """(D,) LayerScale behind, if there is one."""

    @property
    def into(self) -> nn.Linear:
        """First linear layer: qkv or fc1."""
        return cast(nn.Linear, self.body.qkv if self.shape.kind == "attn" else self.body.fc1)

    @property
    def out_of(self) -> nn.Linear:
        """Last linear layer: proj or fc2."""
        return cast(nn.Linear, self.body.proj if self.shape.kind == "attn" else self.body.fc2)


def branches_of(model: VisionTransformer) -> list[Branch]:
    """All branches of a prunable model, in the order they act on the residual stream."""
    found: list[Branch] = []
    tokens = model.patch_embed.num_patches + model.num_prefix_tokens
    block: Any
    for i, block in enumerate(model.blocks):
        attn: Any = block.attn
        mlp: Any = block.mlp
        kinds: list[tuple[Literal["attn", "mlp"], Any, Any, nn.Module, int, int]] = [
            ("attn", attn, block.norm1, block.ls1, attn.num_heads, attn.head_dim),
            ("mlp", mlp, block.norm2, block.ls2, 1, mlp.fc2.in_features),
        ]
        for kind, body, norm, scale, heads, width in kinds:
            gamma = scale.gamma if isinstance(scale, LayerScale) else None
            shape = BranchShape(
                kind=kind,
                dim=model.embed_dim,
                heads=heads,
                width=width,
                tokens=tokens,
                qkv_bias=kind == "attn" and body.qkv.bias is not None,
                layer_scale=gamma is not None,
                gated=isinstance(body, GluMlp),
            )
            found.append(Branch(name=f"{kind} {i}", shape=shape, norm=norm, body=body, gamma=gamma))
    return found


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One shared mask and the linear layer it acts on."""

    name: str
    """ "in", "width", "heads" or "out"."""
    length: int
    """Elements of the gate."""
    linear: nn.Linear
    """The layer that is masked."""
    side: Side
    """Whether the gate masks what leaves the layer or what enters it."""
    copies: int = 1
    """How often the gate repeats along that side: 3 H for head channels, which q, k, v and all heads share."""

    def spread(self, mask: Tensor) -> Tensor:
        """(length,) -> the mask of all rows or columns."""
        return mask.repeat(self.copies)

    def gather(self, values: Tensor) -> Tensor:
        """One value per row or column -> (length,), the sum over those that share an element."""
        return values.view(self.copies, self.length).sum(0)


@dataclass(frozen=True, kw_only=True)
class HeadGate(Gate):
    """A gate over whole heads."""

    each: int
    """Neighbours that share one element: K."""

    def spread(self, mask: Tensor) -> Tensor:
        """(length,) -> the mask of all columns."""
        return mask.repeat_interleave(self.each)

    def gather(self, values: Tensor) -> Tensor:
        """One value per column -> (length,), the sum over a head."""
        return values.view(self.length, self.each).sum(1)


def head_gate(branch: Branch) -> HeadGate:
    """What an attention's heads put out, before they are mixed."""
    shape = branch.shape
    return HeadGate(name="heads", length=shape.heads, linear=branch.out_of, side="cols", each=shape.width)


class Gates:
    """The masks of a model. The parameters stay the same objects, so an optimizer may be built before or after."""

    def __init__(self, branches: list[Branch], which: Gating) -> None:
        """which: of PruneConfig."""
        self.gates = [_gates_of(branch, which) for branch in branches]
        self._flat = [gate for block in self.gates for gate in block]
        attach(self._flat)

    def scores(self) -> Tensor:
        """(sum of gate lengths,) float32: mask x dL/dmask of every element, gates in order."""
        return torch.cat([_taylor(gate) for gate in self._flat])

    def norms(self) -> Tensor:
        """(sum of gate lengths,) float32: norm of the raw weights that each element masks, gates in order.

        The root mean square over an element's weights, divided by that of the whole gate: all gates have mean square 1,
        so that layers of different scale and fan-in compare.
        """
        return torch.cat([_relative_norm(gate) for gate in self._flat])

    def set(self, masks: list[Tensor]) -> None:
        """masks: one (E,) per block, the block's gates one after another."""
        for block, mask_E in zip(self.gates, masks, strict=True):
            fill(block, mask_E)

    def remove(self) -> None:
        """Leave a plain model behind, the masks multiplied into its weights."""
        detach(self._flat)


def _gates_of(branch: Branch, which: Gating) -> list[Gate]:
    shape = branch.shape
    into, out_of = branch.into, branch.out_of
    if shape.kind == "attn":
        width = Gate(name="width", length=shape.width, linear=into, side="rows", copies=3 * shape.heads)
    else:  # behind the activation, and a GluMlp's product; for a hard mask no different from before them
        width = Gate(name="width", length=shape.width, linear=out_of, side="cols")
    if which == "heads" and shape.kind == "attn":
        return [width, head_gate(branch)]
    if which != "all":
        return [width]
    enter = Gate(name="in", length=shape.dim, linear=into, side="cols")
    return [enter, width, Gate(name="out", length=shape.dim, linear=out_of, side="rows")]


# masks on layers


def attach(gates: list[Gate]) -> None:
    """Put a mask of ones on every gate's layer."""
    for gate in gates:
        side = gate.linear.out_features if gate.side == "rows" else gate.linear.in_features
        gate.linear.register_buffer(MASKS[gate.side], _bits(torch.ones(side, device=gate.linear.weight.device)))
        gate.linear.forward = partial(_forward, gate.linear)  # type: ignore[method-assign]


def fill(gates: list[Gate], mask_E: Tensor) -> None:
    """Set the masks of one block's gates, one after another, (E,) in all."""
    parts = torch.split(mask_E.detach(), [gate.length for gate in gates])
    for gate, part in zip(gates, parts, strict=True):
        gate.linear.get_buffer(MASKS[gate.side]).copy_(_bits(gate.spread(part)))


@torch.no_grad()
def detach(gates: list[Gate]) -> None:
    """Multiply the masks into the weights and take them off."""
    for linear in dict.fromkeys(gate.linear for gate in gates):
        weight, bias = masked(linear, mask_of(linear, "rows"), mask_of(linear, "cols"))
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
        del linear.forward
        for name in MASKS.values():
            if hasattr(linear, name):
                delattr(linear, name)


def mask_of(linear: nn.Linear, side: Side) -> Tensor | None:
    """(R,) or (C,) mask of a layer in its weights' type, if that side has one."""
    bits = getattr(linear, MASKS[side], None)
    return None if bits is None else bits.view(torch.float32).to(linear.weight.dtype)


def masked(linear: nn.Linear, rows: Tensor | None, cols: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight (R, C) and bias (R,) of a layer under these masks, (R,) and (C,)."""
    weight, bias = linear.weight, cast(Tensor | None, linear.bias)
    if rows is not None:
        weight = weight * rows[:, None]
        bias = None if bias is None else bias * rows
    return (weight if cols is None else weight * cols), bias


def _forward(linear: nn.Linear, x: Tensor) -> Tensor:
    """x: (..., C). A masked layer's forward."""
    return F.linear(x, *masked(linear, mask_of(linear, "rows"), mask_of(linear, "cols")))


def _bits(mask: Tensor) -> Tensor:
    return mask.float().view(torch.int32)


# scores


@torch.no_grad()
def _taylor(gate: Gate) -> Tensor:
    """(length,) mask x dL/dmask of one gate, from its layer's raw weight (R, C) and the gradient of it."""
    weight, bias = gate.linear.weight, cast(Tensor | None, gate.linear.bias)
    if weight.grad is None or (bias is not None and bias.grad is None):
        raise ValueError(
            "a block's weights have no gradient: call step() after loss.backward() and before zero_grad(), "
            "and leave requires_grad of the blocks' linear layers on"
        )
    if gate.side == "cols":
        return gate.gather(torch.einsum("rc,rc->c", weight, weight.grad)).float()
    score_R = torch.einsum("rc,rc->r", weight, weight.grad)
    if bias is not None and bias.grad is not None:
        score_R = score_R + bias * bias.grad
    return gate.gather(score_R).float()


@torch.no_grad()
def _relative_norm(gate: Gate) -> Tensor:
    """(length,) norm of each element's raw weights, without bias, relative to the gate's mean square."""
    squares = gate.gather(gate.linear.weight.float().square().sum(1 if gate.side == "rows" else 0))
    return (squares / squares.mean()).sqrt()

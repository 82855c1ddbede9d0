"""Soft masks on a timm ViT: what may be pruned, attaching and removing the masks, and their Taylor scores.

Key: B batch, N tokens, D width, H heads, K head width, F hidden units, E elements of one block's gates;
R rows (outputs) and C columns (inputs) of a linear layer.

A gate does not multiply activations but the weights next to them, which is the same function: a mask on what enters a
linear layer scales its columns, a mask on what leaves it scales its rows and its bias. Two things come free. Nothing
of batch size is stored, and the gradient of the mask follows from the gradient that the weight gets anyway:

    W_eff = rows * W * cols   =>   m_j dL/dm_j = sum_i W_ij dL/dW_ij                   for a mask on columns
                                   m_i dL/dm_i = sum_j W_ij dL/dW_ij + b_i dL/db_i     for a mask on rows

with W and dL/dW those of the raw parameter. They are already averaged over ranks and accumulated over micro-batches.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from timm.layers.layer_scale import LayerScale
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dap.cost import BranchShape
from dap.skeleton import check_storable, refuse


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
    """timm's Attention or Mlp."""
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
            ("mlp", mlp, block.norm2, block.ls2, 1, mlp.fc1.out_features),
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
            )
            found.append(Branch(name=f"{kind} {i}", shape=shape, norm=norm, body=body, gamma=gamma))
    return found


class _Mask(nn.Module):
    """Parametrization W -> rows * W * cols. The masks are not in the state dict: they belong to the pruner's state."""

    rows: Tensor | None
    cols: Tensor | None

    def __init__(self, rows: Tensor | None, cols: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("cols", cols, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """weight: (R, C), or a bias (R,)."""
        if self.rows is not None:
            weight = weight * (self.rows[:, None] if weight.ndim == 2 else self.rows)
        return weight if self.cols is None else weight * self.cols


@dataclass(frozen=True, kw_only=True)
class _Gate:
    """One shared mask and the linear layer it acts on."""

    name: str
    """ "in", "width" or "out"."""
    length: int
    """Elements of the gate."""
    linear: nn.Linear
    """The layer that is masked."""
    side: Literal["rows", "cols"]
    """Whether the gate masks what leaves the layer or what enters it."""
    copies: int
    """How often the gate repeats along that side: 3 H for head channels, which q, k, v and all heads share."""
    each: int = 1
    """Neighbours that share one element: K for whole heads."""

    def spread(self, mask: Tensor) -> Tensor:
        """(length,) -> the mask of all rows or columns."""
        return mask.repeat_interleave(self.each).repeat(self.copies)

    def gather(self, values: Tensor) -> Tensor:
        """One value per row or column -> (length,), the sum over those that share an element."""
        return values.view(self.copies, self.length, self.each).sum((0, 2))


class Gates:
    """The masks of a model. The raw parameters stay the same objects, so an optimizer may be built before or after."""

    def __init__(self, branches: list[Branch], which: Literal["inner", "all", "rows"], learnt: bool = False) -> None:
        """which: see _gates_of;  learnt: let autograd fill slopes(), at some cost in every step. The model must then be
        on the device that trains it already.
        """
        self.gates = [_gates_of(branch, which) for branch in branches]
        self._flat = [gate for block in self.gates for gate in block]
        for linear in dict.fromkeys(gate.linear for gate in self._flat):
            mine = [gate for gate in self._flat if gate.linear is linear]
            rows = next((_ones(linear.out_features, linear, learnt) for g in mine if g.side == "rows"), None)
            cols = next((_ones(linear.in_features, linear, learnt) for g in mine if g.side == "cols"), None)
            parametrize.register_parametrization(linear, "weight", _Mask(rows, cols), unsafe=True)
            if rows is not None and linear.bias is not None:
                parametrize.register_parametrization(linear, "bias", _Mask(rows, None), unsafe=True)

    def scores(self) -> Tensor:
        """(sum of gate lengths,) float32: mask x dL/dmask of every element, gates in order."""
        return torch.cat([_taylor(gate) for gate in self._flat])

    def norms(self) -> Tensor:
        """(sum of gate lengths,) float32: norm of the raw weights that each element masks, gates in order.

        The root mean square over an element's weights, divided by that of the whole gate: all gates have mean square 1,
        so that layers of different scale and fan-in compare.
        """
        return torch.cat([_relative_norm(gate) for gate in self._flat])

    def slopes(self) -> list[Tensor]:
        """dL/dmask of the last backward, (length,) per gate in order, also where the mask is 0; cleared by reading.

        Raises ValueError if there was no backward.
        """
        slopes = []
        for gate in self._flat:
            mask = cast(Any, gate.linear).parametrizations["weight"][0].get_buffer(gate.side)
            if mask.grad is None:
                raise ValueError("the masks have no gradient: call step() after loss.backward()")
            slopes.append(gate.gather(mask.grad).float())
            mask.grad = None
        return slopes

    @torch.no_grad()
    def set(self, masks: list[Tensor]) -> None:
        """masks: one (E,) per block, the block's gates one after another."""
        for block, mask_E in zip(self.gates, masks, strict=True):
            parts = torch.split(mask_E, [gate.length for gate in block])
            for gate, part in zip(block, parts, strict=True):
                for name in ("weight", "bias") if parametrize.is_parametrized(gate.linear, "bias") else ("weight",):
                    buffer = getattr(cast(Any, gate.linear).parametrizations[name][0], gate.side)
                    if buffer is not None:
                        buffer.copy_(gate.spread(part))

    def remove(self) -> None:
        """Leave a plain model behind, the masks multiplied into its weights."""
        for linear in dict.fromkeys(gate.linear for gate in self._flat):
            for name in list(cast(Any, linear).parametrizations):
                parametrize.remove_parametrizations(linear, name, leave_parametrized=True)


def _gates_of(branch: Branch, which: Literal["inner", "all", "rows"]) -> list[_Gate]:
    """which: "inner": head channels, hidden units; "all": also inputs, outputs; "rows": whole heads, layer outputs."""
    shape = branch.shape
    into, out_of = branch.into, branch.out_of
    leave = _Gate(name="out", length=shape.dim, linear=out_of, side="rows", copies=1)
    if which == "rows":
        if shape.kind == "attn":
            heads = _Gate(name="heads", length=shape.heads, linear=out_of, side="cols", copies=1, each=shape.width)
            return [heads, leave]
        return [_Gate(name="width", length=shape.width, linear=into, side="rows", copies=1), leave]
    if shape.kind == "attn":
        width = _Gate(name="width", length=shape.width, linear=into, side="rows", copies=3 * shape.heads)
    else:  # behind the activation; for a hard mask no different from before it
        width = _Gate(name="width", length=shape.width, linear=out_of, side="cols", copies=1)
    if which == "inner":
        return [width]
    enter = _Gate(name="in", length=shape.dim, linear=into, side="cols", copies=1)
    return [enter, width, leave]


def _ones(length: int, linear: nn.Linear, learnt: bool) -> Tensor:
    return torch.ones(length, dtype=linear.weight.dtype, device=linear.weight.device, requires_grad=learnt)


def _raw(linear: nn.Linear, name: str) -> Tensor | None:
    """The raw parameter, masked or not."""
    if parametrize.is_parametrized(linear, name):
        return cast(Tensor, cast(Any, linear).parametrizations[name].original)
    return cast(Tensor | None, getattr(linear, name))


@torch.no_grad()
def _taylor(gate: _Gate) -> Tensor:
    """(length,) mask x dL/dmask of one gate, from its layer's raw weight (R, C) and the gradient of it."""
    weight, bias = _raw(gate.linear, "weight"), _raw(gate.linear, "bias")
    assert weight is not None
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
def _relative_norm(gate: _Gate) -> Tensor:
    """(length,) norm of each element's raw weights, without bias, relative to the gate's mean square."""
    weight = _raw(gate.linear, "weight")
    assert weight is not None
    squares = gate.gather(weight.float().square().sum(1 if gate.side == "rows" else 0))
    return (squares / squares.mean()).sqrt()

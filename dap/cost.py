"""What a model and its blocks cost: parameters, multiply-accumulates (MACs), or time as a device has measured it.

Key: B blocks (= 2 x layers, attention and MLP alternating), D width, H heads, K head width, F hidden units, N tokens.
Widths may be integers or integer arrays.
MACs are those of linear layers, the patch convolution and both attention products, for one image; norms, activations
and additions are left out, as in the usual tables.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dap.allocate import block_budget

Ints = NDArray[np.int64]
CostOf = Callable[..., Ints]
"""(kept inputs, inner width, outputs), and kept heads where they are not all; each a number or an array"""


@dataclass(frozen=True, kw_only=True)
class BranchShape:
    """Dense sizes of one residual branch, and its cost at any widths."""

    kind: Literal["attn", "mlp"]
    """Attention or MLP."""
    dim: int
    """D, width of the residual stream."""
    heads: int
    """H; 1 for an MLP."""
    width: int
    """K, the head width, or F, the hidden units."""
    tokens: int
    """N, with the prefix tokens."""
    qkv_bias: bool
    """Whether qkv has a bias; unused for an MLP, whose layers always have one."""
    layer_scale: bool
    """Whether the branch ends in a LayerScale."""
    gated: bool = False
    """Whether an MLP's first layer computes a gate beside every hidden unit."""

    def params(
        self, inputs: int | Ints, width: int | Ints, outputs: int | Ints, heads: int | Ints | None = None
    ) -> Ints:
        """Parameters at these kept widths: kept inputs x kept outputs + kept outputs per linear layer, 2 D of the norm.

        heads: how many are kept; None: all
        0 as soon as one of the widths is 0: the branch then is a constant, which is folded into what precedes it.
        """
        inner = (self.heads if heads is None else heads) * np.asarray(width)
        inputs, outputs = np.asarray(inputs), np.asarray(outputs)
        return np.where((inputs > 0) & (inner > 0) & (outputs > 0), self.params_alive(inputs, inner, outputs), 0)

    def params_alive(self, inputs: Any, inner: Any, outputs: Any) -> Any:
        """params() while no width is 0, for integers, arrays and tensors; inner: all kept heads' channels together."""
        into = self._into(inner)
        bias = into if self.kind == "mlp" or self.qkv_bias else 0
        cost = inputs * into + bias + inner * outputs + outputs + 2 * self.dim
        return cost + outputs if self.layer_scale else cost

    def macs(self, inputs: int | Ints, width: int | Ints, outputs: int | Ints, heads: int | Ints | None = None) -> Ints:
        """MACs for one image at these kept widths, the attention products (2 N^2 H K) included; heads as for params."""
        inner = (self.heads if heads is None else heads) * np.asarray(width)
        inputs, outputs = np.asarray(inputs), np.asarray(outputs)
        into = self._into(inner)
        cost = self.tokens * (inputs * into + inner * outputs)
        cost = cost + 2 * self.tokens**2 * inner if self.kind == "attn" else cost
        return np.where((inputs > 0) & (inner > 0) & (outputs > 0), cost, 0)

    def _into(self, inner: Any) -> Any:
        """Outputs of the branch's first layer."""
        return 3 * inner if self.kind == "attn" else 2 * inner if self.gated else inner

    def counting(self, what: Literal["params", "macs"]) -> CostOf:
        """params or macs."""
        return self.params if what == "params" else self.macs


@dataclass(frozen=True, kw_only=True)
class BlockLatency:
    """What one block costs on a device, measured at some inner widths, in nanoseconds."""

    widths: tuple[int, ...]
    """Rising head widths or hidden units, the last one dense."""
    ns: tuple[int, ...]
    """Cost at each of them: above 0, never falling."""
    stays: bool = False
    """Whether the block must keep at least its smallest width."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.widths, self.widths[1:], strict=False))
        monotone = all(a <= b for a, b in zip(self.ns, self.ns[1:], strict=False))
        if not (self.widths and len(self.widths) == len(self.ns) and self.widths[0] > 0 and rising):
            raise ValueError(f"widths must rise from above 0, with a time for each, unlike {self.widths}")
        if not (self.ns[0] > 0 and monotone):
            raise ValueError(f"times must be above 0 and never fall, unlike {self.ns}")

    def cost(self, inputs: int | Ints, width: int | Ints, outputs: int | Ints) -> Ints:
        """Nanoseconds at these widths, called like BranchShape.params; the block reads and writes all channels.

        0 at width 0, between measured widths by interpolation, below the smallest one what that costs.
        """
        width = np.asarray(width)
        ns = np.rint(np.interp(width, self.widths, self.ns)).astype(np.int64)
        return np.where(width > 0, ns, 0)


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """What a model costs on a device: its blocks, in the order they act, and everything outside them."""

    outside_ns: int
    """Nanoseconds of embedding, head and whatever else does not depend on widths."""
    blocks: tuple[BlockLatency, ...]
    """Attention and MLP alternating, 2 x layers."""

    @property
    def dense_ns(self) -> int:
        """Nanoseconds of the dense model."""
        return self.outside_ns + sum(block.ns[-1] for block in self.blocks)

    @property
    def least_ns(self) -> int:
        """Nanoseconds of what always stays."""
        return self.outside_ns + sum(block.ns[0] for block in self.blocks if block.stays)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """A model under a budget, block by block, all in one unit: parameters, MACs, or a device's nanoseconds."""

    total: int
    """Of the dense model."""
    dense: Ints
    """(B,) of each dense block."""
    entry: Ints
    """(B,) of each block at its smallest width, which narrowing it does not give back; 0 unless time was measured."""
    stays: NDArray[np.bool_]
    """(B,) blocks that must keep at least their smallest width."""
    budget: int
    """What the blocks may keep."""
    of: tuple[CostOf, ...]
    """Cost of each block at any widths."""

    @property
    def other(self) -> int:
        """Everything outside the blocks."""
        return self.total - int(self.dense.sum())

    @property
    def least(self) -> Ints:
        """(B,) what always stays of each block."""
        least_B: Ints = np.where(self.stays, self.entry, 0)
        return least_B

    @property
    def timed(self) -> bool:
        """Whether these are times; they have an entry, which parameters and MACs have not."""
        return bool(self.entry.any())

    def budget_at(self, progress: float) -> int:
        """What the blocks may keep when this share of the cut, 0 to 1, is in force."""
        whole = self.dense.sum()
        return int(whole - progress * (whole - self.budget) + 1e-3)

    def sparsity(self, held: float) -> float:
        """Share of the model that is gone when its blocks hold this much."""
        return 1.0 - (self.other + held) / self.total


def costs_of(
    model: nn.Module,
    shapes: Sequence[BranchShape],
    *,
    cost: Literal["params", "macs", "latency"],
    latency: LatencyTable | None,
    smallest: Sequence[int],
    sparsity: float,
) -> Costs:
    """The costs of a dense model that is to lose `sparsity` of all.

    shapes: of its branches, in order;  latency: its table, for cost="latency" alone
    smallest: width above 0 that each block can be narrowed to
    Raises ValueError naming the highest reachable sparsity, or if the table is that of another model.
    """
    entry_B, stays_B = np.zeros(len(shapes), dtype=np.int64), np.zeros(len(shapes), dtype=bool)
    if latency is None:
        assert cost != "latency", "checked where both come in"
        of = tuple(shape.counting(cost) for shape in shapes)
        total = count(model, cost)
    else:
        _check_table(latency, shapes)
        of = tuple(block.cost for block in latency.blocks)
        total = latency.dense_ns
        entry_B[:] = [cost_at(0, width, 0) for cost_at, width in zip(of, smallest, strict=True)]
        stays_B[:] = [block.stays for block in latency.blocks]
    dense_B = np.array([at(s.dim, s.width, s.dim) for at, s in zip(of, shapes, strict=True)])
    least = int(entry_B[stays_B].sum())
    budget = block_budget(total, total - int(dense_B.sum()) + least, sparsity) + least
    return Costs(total=total, dense=dense_B, entry=entry_B, stays=stays_B, budget=budget, of=of)


def _check_table(latency: LatencyTable, shapes: Sequence[BranchShape]) -> None:
    """Raises ValueError unless the table has a cost for each block up to its dense width."""
    if len(latency.blocks) != len(shapes):
        raise ValueError(f"the table has latencies of {len(latency.blocks)} blocks, the model has {len(shapes)}")
    for b, (shape, block) in enumerate(zip(shapes, latency.blocks, strict=True)):
        if block.widths[-1] != shape.width:
            name = f"{shape.kind} {b // 2}"
            raise ValueError(
                f"the table's latencies of {name} end at width {block.widths[-1]}, the block has {shape.width}"
            )


def count(model: nn.Module, what: Literal["params", "macs"]) -> int:
    """count_params or count_macs."""
    return count_params(model) if what == "params" else count_macs(model)


def count_params(model: nn.Module) -> int:
    """All parameters of a model, embeddings and head included."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module) -> int:
    """MACs of one forward pass of a dense or compact timm ViT on one image, the attention products included."""
    vit: Any = model
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    heads = (vit.head, vit.head_dist) if hasattr(vit, "head_dist") else (vit.head,)
    macs = vit.patch_embed.num_patches * vit.patch_embed.proj.weight.numel()
    macs += sum(head.weight.numel() for head in heads if isinstance(head, nn.Linear))
    for block in vit.blocks:
        if block.attn is not None:
            macs += tokens * (_size(block.attn.qkv) + _size(block.attn.proj)) + 2 * tokens**2 * block.attn.attn_dim
        if block.mlp is not None:
            macs += tokens * (_size(block.mlp.fc1) + _size(block.mlp.fc2))
    if vit.attn_pool is not None:
        pool, pooled = vit.attn_pool, tokens if vit.pool_include_prefix else vit.patch_embed.num_patches
        macs += pooled * (_size(pool.kv) + 2 * vit.embed_dim) + _size(pool.q) + _size(pool.proj)
        macs += _size(pool.mlp.fc1) + _size(pool.mlp.fc2)
    return int(macs)


def block_params(model: nn.Module) -> dict[str, int]:
    """Parameters of each block of a dense or compact model: "attn 0", "mlp 0", "attn 1", ...; 0 if it is gone."""
    vit: Any = model
    sizes: dict[str, int] = {}
    for i, block in enumerate(vit.blocks):
        for name, parts in (
            ("attn", (block.norm1, block.attn, block.ls1)),
            ("mlp", (block.norm2, block.mlp, block.ls2)),
        ):
            sizes[f"{name} {i}"] = sum(count_params(part) for part in parts if part is not None)
    return sizes


def _size(linear: nn.Linear) -> int:
    return linear.in_features * linear.out_features

"""SAViT, structure-aware pruning: whole heads, hidden units and channels of the residual stream, in one shot.

Key: L layers, H heads, K head width, F hidden units, D width of the residual stream.

On the network as it is, gates (all 1) are laid over three components: heads, hidden units, and one gate over the
channels of the residual stream that all layers share. Their scores say which units go; the curvature between the
components says how much of each goes. The small model is sliced: its LayerNorms run over the kept channels alone, as in
the released code, so that it has no exact masked counterpart and needs the recovery training that follows.
Source: "SAViT: Structure-Aware Vision Transformer Pruning via Collaborative Optimization", NeurIPS 2022.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dap.allocate import model_budget
from dap.baselines.narrow import narrow
from dap.baselines.savit_search import Costs, evolve, select
from dap.compact import compact
from dap.config import check_number
from dap.gates import Branch, branches_of, check_rivals
from dap.method import BlockReport, MaskUpdate, average_over_ranks

Ints = NDArray[np.int64]

COMPONENTS = ("heads", "hidden", "channels")


@dataclass(frozen=True, kw_only=True)
class SavitConfig:
    """What to prune away with SAViT."""

    sparsity: float = 0.5
    """Share of the model's parameters (or MACs) to remove, strictly between 0 and 1."""
    cost: Literal["params", "macs"] = "params"
    """What sparsity counts: "params", as in the comparison, or "macs", as in the paper."""
    released: bool = False
    """Choose units as the released code does: it sorts the scores of a layer to protect the best, and then takes places
    in that order for numbers of units. A layer loses as many units as it should, but not those of the lowest scores."""
    seed: int = 0
    """Seed of the layer pairs and of the evolution."""

    def __post_init__(self) -> None:
        check_number(self, "sparsity", 0.0, 1.0, open_ends=True)
        if self.cost not in ("params", "macs"):
            raise ValueError(f"cost must be params or macs, got {self.cost!r}")


class Savit:
    """Prunes a timm ViT in one shot; see dap.method.OneShot. A tenth of an epoch decides."""

    def __init__(self, model: nn.Module, config: SavitConfig, *, steps_per_epoch: int) -> None:
        self.model: VisionTransformer = check_rivals(model, "SAViT")
        self.config = config
        self.calibration_steps = max(1, ceil(steps_per_epoch / 10))
        self._branches = branches_of(self.model)
        self._costs = Costs(self.model, self._branches, config.cost)
        self._budget = model_budget(self._costs.total, self._costs.least, config.sparsity)
        self._kept: dict[str, list[Tensor]] | None = None  # sorted indices per component and layer; channels: one

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Score every unit and decide which go. In eval mode; the model is left as it was.

        batches: normalised images (B, 3, H, W) and their targets, (B,) class indices or (B, C) probabilities
        Raises ValueError if there is no batch or a loss is not finite.
        """
        rng = np.random.default_rng(self.config.seed)
        training = self.model.training
        gates = _Gates(self.model, self._branches)
        scores = {name: [torch.zeros_like(gate) for gate in gates.of[name]] for name in COMPONENTS}
        curvature = torch.zeros(3, 3, device=gates.of["channels"][0].device)
        count = 0
        try:
            self.model.eval()
            for images, targets in batches:
                with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                    loss = F.cross_entropy(self.model(images), targets)
                    if not loss.isfinite():
                        raise ValueError(
                            f"the loss of calibration batch {count + 1} is {loss.item()}: check the weights"
                        )
                    curvature += gates.accumulate(loss, scores, rng.integers(len(self.model.blocks), size=2))
                count += 1
        finally:
            gates.remove()
            self.model.train(training)
        if count == 0:
            raise ValueError(f"calibrate() needs batches, {self.calibration_steps} of them, and got none")
        flat = [score for name in COMPONENTS for score in scores[name]]
        average_over_ranks([*flat, curvature])
        matrix = curvature.cpu().numpy().astype(np.float64) / count / np.outer(self._costs.scale, self._costs.scale)
        kept = evolve(matrix, self._costs, self._budget, rng)
        self._kept = {}
        for name, keep in zip(COMPONENTS, kept, strict=True):
            score_LU = torch.stack(scores[name]).cpu().numpy().astype(np.float64)
            self._kept[name] = [torch.from_numpy(index) for index in select(score_LU, keep, self.config.released)]

    def harden(self) -> MaskUpdate:
        """What will be cut. The model stays whole. Raises ValueError before calibrate()."""
        kept = self._decided()
        held = self._costs.at(*(sum(len(index) for index in kept[name]) for name in COMPONENTS))
        return MaskUpdate(
            step=0, progress=1.0, temperature=0.0, sparsity=1.0 - held / self._costs.total, blocks=self.blocks()
        )

    def finalize(self) -> VisionTransformer:
        """The small model, sliced from the model's weights as they are now. Raises ValueError before calibrate()."""
        kept = self._decided()
        indices = []
        for heads, hidden in zip(kept["heads"], kept["hidden"], strict=True):
            indices += [{"heads": heads}, {"width": hidden}]
        return narrow(compact(self.model, self._branches, indices), kept["channels"][0])

    def blocks(self) -> list[BlockReport]:
        """The blocks as they will be; whole before calibrate()."""
        reports = []
        for b, branch in enumerate(self._branches):
            shape, dim, heads, width = branch.shape, branch.shape.dim, branch.shape.heads, branch.shape.width
            if self._kept is not None:
                dim = len(self._kept["channels"][0])
                heads = len(self._kept["heads"][b // 2]) if shape.kind == "attn" else 1
                width = len(self._kept["hidden"][b // 2]) if shape.kind == "mlp" else width
            small = replace(shape, dim=dim, heads=heads)
            cost, dense = (one.counting(self.config.cost) for one in (small, shape))
            ratio = float(cost(dim, width, dim)) / float(dense(shape.dim, shape.width, shape.dim))
            reports.append(
                BlockReport(
                    name=branch.name, bpi_class=None, bpi_patch=None, keep_ratio=ratio, heads=heads, width=width
                )
            )
        return reports

    def _decided(self) -> dict[str, list[Tensor]]:
        if self._kept is None:
            raise ValueError("nothing has been decided yet: call calibrate() with some batches first")
        return self._kept

    def state_dict(self) -> dict[str, Any]:
        """The config and, after calibrate(), the kept units."""
        return {"config": asdict(self.config), "kept": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from state_dict() of the same config on the same kind of model."""
        if state["config"] != asdict(self.config):
            raise ValueError(f"resume with the config of the saved run, {state['config']}, not {asdict(self.config)}")
        kept = state["kept"]  # maybe on a GPU, by torch.load(map_location=)
        self._kept = kept and {name: [index.cpu() for index in layers] for name, layers in kept.items()}


class _Gates:
    """Gates of value 1 over a model, which autograd can differentiate twice."""

    def __init__(self, model: VisionTransformer, branches: list[Branch]) -> None:
        attn, mlp = branches[0].shape, branches[1].shape
        device = next(model.parameters()).device

        def ones(length: int) -> Tensor:
            return torch.ones(length, device=device, requires_grad=True)

        layers = range(len(model.blocks))
        self.of = {
            "heads": [ones(attn.heads) for _ in layers],
            "hidden": [ones(mlp.width) for _ in layers],
            "channels": [ones(attn.dim)],
        }
        self._hooks = [model.pos_drop.register_forward_hook(lambda module, args, x: x * self.of["channels"][0])]
        block: Any
        for block, head, hidden in zip(model.blocks, self.of["heads"], self.of["hidden"], strict=True):
            self._hooks += [
                block.attn.proj.register_forward_pre_hook(self._head_gate(head, attn.width)),
                block.mlp.fc1.register_forward_hook(self._hidden_gate(hidden)),
                *self._residual_gate(block.norm1, block.drop_path1),
                *self._residual_gate(block.norm2, block.drop_path2),
            ]

    def _head_gate(self, gate: Tensor, width: int) -> Any:
        return lambda module, args: (args[0] * gate.repeat_interleave(width),)

    def _hidden_gate(self, gate: Tensor) -> Any:
        return lambda module, args, x: x * gate

    def _residual_gate(self, norm: nn.Module, last: nn.Module) -> list[Any]:
        """Gate the sum g (x + y) by making the branch return g y + (g - 1) x, which timm then adds to x."""
        stream: list[Tensor] = []
        gate = self.of["channels"][0]
        return [
            norm.register_forward_pre_hook(lambda module, args: stream.append(args[0])),
            last.register_forward_hook(lambda module, args, y: gate * y + (gate - 1.0) * stream.pop()),
        ]

    def accumulate(self, loss: Tensor, scores: dict[str, list[Tensor]], pair: Ints) -> Tensor:
        """Add (g dL/dg)^2 of one batch to the scores; the curvature between the layers of a pair.

        Returns (3, 3): the sum of d2L / dg_i dg_j over the units i of a component in the pair's first layer and the
        units j of a component in its second.
        """
        flat = [gate for name in COMPONENTS for gate in self.of[name]]
        slopes = iter(torch.autograd.grad(loss, flat, create_graph=True))
        by_name = {name: [next(slopes) for _ in self.of[name]] for name in COMPONENTS}
        for name in COMPONENTS:
            for score, slope in zip(scores[name], by_name[name], strict=True):
                score += slope.detach().square()
        first, second = (int(layer) for layer in pair)
        rows = [self.of["heads"][first], self.of["hidden"][first], self.of["channels"][0]]
        columns = [by_name["heads"][second], by_name["hidden"][second], by_name["channels"][0]]
        products = [torch.autograd.grad(slope.sum(), rows, retain_graph=True) for slope in columns]
        return torch.stack([torch.stack([part.sum() for part in product]) for product in products], dim=1)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

"""Isomorphic pruning by torch-pruning: what a user would pick today, through that library itself.

Structures of one shape (head channels, hidden units, channels of the residual stream) are ranked across all layers by
their group's Taylor score, and the same share of each kind goes, in one shot. The settings are those of the library's
example for timm ViTs; the share is the one that meets the budget. As there, LayerNorms run over the kept channels and
attention is scaled by the width that its heads have left, so that there is no exact masked counterpart.
Source: "Isomorphic Pruning for Vision Models", ECCV 2024, arXiv 2407.04616.
"""

import copy
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dap.allocate import model_budget
from dap.architecture import from_json
from dap.compact import build, train_like
from dap.config import check_number
from dap.cost import block_params, count_params
from dap.describe import architecture_of
from dap.gates import check_rivals
from dap.method import BlockReport, MaskUpdate, average_over_ranks
from dap.supported import check_storable

BATCHES = 50  # for the Taylor scores, as in the paper's runs
MOST = 0.95  # the highest share of a layer that may go
HALVINGS = 12  # of the interval of shares: 1 / 4096 is finer than a single channel


@dataclass(frozen=True, kw_only=True)
class IsomorphicConfig:
    """What to prune away with torch-pruning."""

    sparsity: float = 0.5
    """Share of the model's parameters to remove, strictly between 0 and 1."""

    def __post_init__(self) -> None:
        check_number(self, "sparsity", 0.0, 1.0, open_ends=True)


class Isomorphic:
    """Prunes a timm ViT in one shot with torch-pruning; see dap.method.OneShot."""

    def __init__(self, model: nn.Module, config: IsomorphicConfig, *, steps_per_epoch: int) -> None:
        """Raises ValueError if torch-pruning is not installed."""
        _torch_pruning()
        self.model: VisionTransformer = check_rivals(model, "Isomorphic pruning")
        self.config = config
        self.calibration_steps = min(BATCHES, steps_per_epoch)
        self._small: VisionTransformer | None = None

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Score all structures and prune to the budget. The model itself is left as it was.

        batches: normalised images (B, 3, H, W) and their targets, (B,) class indices or (B, C) probabilities
        Raises ValueError if there is no batch, or naming the highest reachable sparsity.
        """
        scored = copy.deepcopy(self.model).eval()
        count = 0
        for images, targets in batches:
            F.cross_entropy(scored(images), targets).backward()
            count += 1
        if count == 0:
            raise ValueError(f"calibrate() needs batches, {self.calibration_steps} of them, and got none")
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in scored.parameters()]
        average_over_ranks(gradients)

        dense = count_params(self.model)
        low, high = 0.0, MOST  # too large, small enough
        small = self._pruned(gradients, high)
        budget = model_budget(dense, count_params(small), self.config.sparsity)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            candidate = self._pruned(gradients, middle)
            if count_params(candidate) <= budget:
                small, high = candidate, middle
            else:
                low = middle
        self._small = build(architecture_of(small), small.state_dict())

    def _pruned(self, gradients: list[Tensor], share: float) -> VisionTransformer:
        """A copy of the model from which torch-pruning has cut this share of every kind of structure."""
        model: Any = copy.deepcopy(self.model).eval()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        tp = _torch_pruning()
        heads = [head for head in (model.head, getattr(model, "head_dist", None)) if head is not None]
        example = torch.zeros(1, 3, *model.patch_embed.img_size, device=model.pos_embed.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that tokens and position embedding are found to be plain parameters
            pruner = tp.pruner.BasePruner(
                model,
                example,
                importance=tp.importance.GroupTaylorImportance(),
                global_pruning=True,
                isomorphic=True,
                pruning_ratio=share,
                max_pruning_ratio=MOST,
                ignored_layers=heads,
                num_heads={block.attn.qkv: block.attn.num_heads for block in model.blocks},
                prune_num_heads=False,
                prune_head_dims=True,
            )
            pruner.step()
        for block in model.blocks:  # torch-pruning changes layers, not what timm notes beside them
            attn = block.attn
            attn.attn_dim = attn.proj.in_features
            attn.head_dim = attn.attn_dim // attn.num_heads
            attn.scale = attn.head_dim**-0.5
        model.embed_dim = model.pos_embed.shape[-1]
        return check_storable(model)

    def harden(self) -> MaskUpdate:
        """What has been cut. The model stays whole. Raises ValueError before calibrate()."""
        sparsity = 1.0 - count_params(self._decided()) / count_params(self.model)
        return MaskUpdate(step=0, progress=1.0, temperature=0.0, sparsity=sparsity, blocks=self.blocks())

    def finalize(self) -> VisionTransformer:
        """The small model, in the model's mode. Raises ValueError before calibrate()."""
        small = self._decided().train(self.model.training)
        train_like(small, self.model)
        return small

    def blocks(self) -> list[BlockReport]:
        """The blocks as they will be; whole before calibrate()."""
        vit: Any = self.model if self._small is None else self._small
        dense = block_params(self.model)
        reports = []
        for name, params in block_params(vit).items():
            kind, layer = name.split()
            block = vit.blocks[int(layer)]
            heads, width = (
                (block.attn.num_heads, block.attn.head_dim) if kind == "attn" else (1, block.mlp.fc1.out_features)
            )
            report = BlockReport(
                name=name, bpi_class=None, bpi_patch=None, keep_ratio=params / dense[name], heads=heads, width=width
            )
            reports.append(report)
        return reports

    def _decided(self) -> VisionTransformer:
        if self._small is None:
            raise ValueError("nothing has been decided yet: call calibrate() with some batches first")
        return self._small

    def state_dict(self) -> dict[str, Any]:
        """The config and, after calibrate(), the small model."""
        small = None
        if self._small is not None:
            small = {"architecture": architecture_of(self._small).to_json(), "weights": self._small.state_dict()}
        return {"config": asdict(self.config), "small": small}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from state_dict() of the same config on the same kind of model."""
        if state["config"] != asdict(self.config):
            raise ValueError(f"resume with the config of the saved run, {state['config']}, not {asdict(self.config)}")
        small = state["small"]
        if small is not None:
            small = build(from_json(small["architecture"], "the saved small model"), small["weights"])
            small.to(next(self.model.parameters()).device)
        self._small = small


def _torch_pruning() -> Any:
    # an optional requirement, and heavy: it builds operator tables when it is imported
    try:
        import torch_pruning
    except ImportError as error:
        raise ValueError("isomorphic pruning needs torch-pruning: pip install torch-pruning==1.6.1") from error
    return torch_pruning

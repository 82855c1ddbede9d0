"""Depth Aware Pruning: the one object that a training loop calls.

    pruner = Pruner(model, PruneConfig(sparsity=0.75), steps_per_epoch=len(loader), epochs=50)
    for images, targets in loader:
        loss = criterion(model(images), targets)
        loss.backward()
        update = pruner.step(targets)
        optimizer.step(); optimizer.zero_grad()
    small = pruner.finalize()

Key: B blocks (= 2 x layers), E elements of one block's gates.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dap import allocate, importance
from dap.compact import compact
from dap.config import PruneConfig
from dap.cost import BranchShape, LatencyTable, costs_of
from dap.gates import Gates, branches_of, check_prunable
from dap.indicator import Indicator
from dap.method import BlockReport, MaskUpdate
from dap.schedule import Schedule, rank_mask
from dap.tap import TokenTap

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class Pruner:
    """Prunes a timm ViT while it is being fine-tuned.

    It masks the model's own weights and watches its residual stream through hooks. Parameters stay the same objects of
    the same names, so the optimizer may come before or after. Call step() once per optimizer step, after backward and
    before gradients are clipped or cleared; with gradient accumulation the targets are those of all micro-batches, one
    after another (then `images_per_step` is needed), or of the last one, which the probes then see alone.
    With several processes build it on every rank before the model is wrapped in DistributedDataParallel: what probes
    learn is averaged over ranks in every step, and all ranks decide the same.

    Masks are integer buffers beside the weights: the model's state dict fits a model with a pruner of the same gates,
    and a copy of the model computes what it computes. So does timm's ModelEmaV3 (ModelEmaV2 averages integers too and
    is of no use here): update it once more after harden(), and load its state dict before finalize() for a small model
    of its weights. Follows dap.method.Method.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PruneConfig,
        *,
        steps_per_epoch: int,
        epochs: int,
        allowed_width: Callable[[str, int], bool] | None = None,
        latency: LatencyTable | None = None,
        images_per_step: int | None = None,
    ) -> None:
        """allowed_width: rule of the target device, (layer kind, n) -> bool with layer kind "qkv" (n = heads x head
        width, kept ones) or "hidden" (n = hidden units); not for gates="all". A block may also go wholly.
        latency: what the model's blocks cost on the device, for cost="latency" alone; needs gates="inner"
        images_per_step: of an optimizer step, in all its forwards and processes; None: a step is one forward in one
        process
        """
        if steps_per_epoch < 1 or epochs < 1:
            raise ValueError(f"a run needs at least one step and one epoch, got {steps_per_epoch} and {epochs}")
        _check_inner(config, allowed_width, latency)
        self.model: VisionTransformer = check_prunable(model)
        self.config = config
        self.schedule = Schedule(
            total_steps=steps_per_epoch * epochs,
            epochs=epochs,
            start=config.start,
            sparse=config.sparse,
            updates_per_epoch=config.updates_per_epoch,
            temperature=config.temperature,
        )
        self._branches = branches_of(self.model)
        shapes = [branch.shape for branch in self._branches]
        self._choices = [_choices(config, shape, allowed_width) for shape in shapes]
        self._latency = latency
        self._costs = costs_of(
            self.model,
            shapes,
            cost=config.cost,
            latency=latency,
            smallest=[int(choices[choices > 0][0]) for choices in self._choices],
            sparsity=config.sparsity,
        )
        for b in np.flatnonzero(self._costs.stays):
            self._choices[b] = self._choices[b][self._choices[b] > 0]
        self._allowed_width = allowed_width

        device = next(self.model.parameters()).device
        self._indicator = Indicator(
            probe=config.probe,
            rank=config.probe_rank,
            layers=len(self.model.blocks),
            dim=self.model.embed_dim,
            classes=self.model.num_classes,
            grid=self.model.patch_embed.grid_size,
            lr=config.probe_lr,
            seed=config.seed,
            device=device,
        )
        self._gates = Gates(self._branches, config.gates)
        every = 1 if config.probe == "reference" else config.probe_images
        self._tap = TokenTap(self.model, every, images_per_step)
        self._tap.open = config.allocation != "global"
        self._begin(device)

    def _begin(self, device: torch.device) -> None:
        """The state of a run before its first step."""
        self._lengths = [[gate.length for gate in block] for block in self._gates.gates]
        nothing = [np.zeros(sum(lengths)) for lengths in self._lengths]
        self._ranks = [self._joint_ranks(b, score_E, np.arange(len(score_E))) for b, score_E in enumerate(nothing)]
        # block of every unit, the best unit first; only allocation="global" looks at it
        self._order = np.repeat(np.arange(len(self._ranks)), [len(ranks) for ranks in self._ranks])
        self._kept = [len(ranks) for ranks in self._ranks]
        self._bpi: Array | None = None  # (2, B) mean over the last interval
        self._importance: list[Array | None] = [None, None]  # running, class token and patch tokens
        # the same of blocks as a whole, whatever their width costs; with a table of latencies alone
        self._benefit: list[Array | None] = [None, None]
        self._step = 0
        self._hard = False
        self._done = False
        self._score_sum = torch.zeros(sum(map(sum, self._lengths)), device=device)
        self._bpi_sum = torch.zeros(2, len(self._ranks), device=device)
        self._bpi_skipped = torch.zeros(1, device=device)  # steps whose losses were not finite
        self._scored_steps = 0
        self._temperature = self.config.temperature

    # the loop's side

    def loss(self, targets: Tensor) -> None:
        """Nothing is added to the main loss."""

    def step(self, targets: Tensor, *, grad_scale: float | Tensor = 1.0) -> MaskUpdate | None:
        """Learn from one training step; move the masks when an update is due.

        targets: (B,) class indices or (B, C) probabilities of the last forward passes, the main loss's own
        grad_scale: what gradients are still multiplied by: GradScaler.get_scale(), unless unscale_() came before
        Returns what an update did, or None between updates. A step whose loss or gradients are not finite counts, but
        teaches nothing. Raises ValueError, and then nothing has changed, if no training forward or no backward went
        before, if targets don't fit the images, or if the run is over.
        """
        if self._done or self._hard or self._step >= self.schedule.total_steps:
            raise ValueError(f"the pruning run of {self.schedule.total_steps} steps is over: call finalize()")
        scores = self._gates.scores() / grad_scale if self.config.score == "taylor" else self._gates.norms()
        bpi = None
        if self._tap.open:
            self._check_targets(targets)
            bpi = self._indicator.learn(self._tap.take(targets))
        self._score_sum += torch.where(scores.sum().isfinite(), scores.square(), 0.0)
        self._scored_steps += 1
        if bpi is not None:
            finite = bpi.isfinite().all()
            self._bpi_sum += torch.where(finite, bpi, 0.0)
            self._bpi_skipped += ~finite
        self._step += 1
        if self._step not in self.schedule.update_steps:
            return None
        self._learn_from_interval()
        return self._move_masks(self.schedule.progress(self._step), self.schedule.temperature_at(self._step))

    def _check_targets(self, targets: Tensor) -> None:
        classes = self.model.num_classes
        if targets.ndim == 2 and targets.shape[1] != classes:
            raise ValueError(f"targets have {targets.shape[1]} classes, the model {classes}")
        if targets.ndim not in (1, 2) or targets.is_floating_point() != (targets.ndim == 2):
            raise ValueError(
                f"targets must be (B,) class indices or (B, {classes}) probabilities, "
                f"unlike {tuple(targets.shape)} of {targets.dtype}"
            )

    def harden(self) -> MaskUpdate:
        """Make the masks 0 or 1 at the final sparsity, now. The model keeps its dense shape."""
        if self._done:
            raise ValueError("finalize() or remove() has been called already; use the model it returned")
        if not self._hard:
            if self._scored_steps:
                self._learn_from_interval()
            self._hard = True
            self._tap.open = False
        return self._move_masks(1.0, 0.0)

    def finalize(self) -> VisionTransformer:
        """The small model: hard masks cut out for good, exact, in the model's mode. Gates, probes and hooks are gone.

        The model that was pruned stays usable, dense in shape, with the hard masks multiplied into its weights.
        """
        self.harden()
        return compact(self.remove(), self._branches, self._kept_indices())

    def remove(self) -> VisionTransformer:
        """The model itself, plain again and computing what it computes now; the run is over.

        The masks, soft or hard, are multiplied into its weights. Gates, probes and hooks are gone.
        """
        if not self._done:
            self._done = True
            self._gates.remove()
            self._tap.remove()
        return self.model

    def blocks(self) -> list[BlockReport]:
        """The blocks as they stand after the last update."""
        reports = []
        for b, branch in enumerate(self._branches):
            kept = self._kept_counts(b, self._kept[b])
            reports.append(
                BlockReport(
                    name=branch.name,
                    bpi_class=None if self._bpi is None else float(self._bpi[0, b]),
                    bpi_patch=None if self._bpi is None else float(self._bpi[1, b]),
                    keep_ratio=float(self._costs.of[b](*kept)) / float(self._costs.dense[b]),
                    heads=(kept[3] if len(kept) > 3 else branch.shape.heads) if min(kept) > 0 else 0,
                    width=int(kept[1]) if min(kept) > 0 else 0,
                )
            )
        return reports

    # the method's side

    def _learn_from_interval(self) -> None:
        """Turn the interval's sums into new ranks and a new running importance, and clear them.

        All processes have the same sums: of gradients that DistributedDataParallel has averaged, and of the probes'.
        """
        seen = self._scored_steps - float(self._bpi_skipped)
        ends = np.cumsum([sum(lengths) for lengths in self._lengths])[:-1]
        scores = np.split(self._score_sum.cpu().numpy().astype(np.float64), ends)
        if self.config.allocation == "global":
            self._order, self._ranks = importance.global_ranks(scores, self._ranks)
        else:
            self._ranks = [self._joint_ranks(b, scores[b], ranks) for b, ranks in enumerate(self._ranks)]
        if self.config.allocation != "global" and seen > 0:
            self._bpi = self._bpi_sum.cpu().numpy().astype(np.float64) / seen
            costs = self._costs
            held_B = np.array([float(costs.of[b](*self._kept_counts(b, m))) for b, m in enumerate(self._kept)])
            # An entry is no price of width: with it, an attention that is narrow already would look as dear as a wide
            # one, and get nothing of what there is to share out.
            held_B = np.maximum(held_B - costs.entry, 0)
            cost_B, ones_B = allocate.narrowable(costs.dense, costs.entry), np.ones(len(costs.dense))
            for i in range(2):
                new_B = allocate.bpi_to_importance(self._bpi[i], held_B, cost_B, self.config.benefit_scale)
                if costs.timed:
                    whole_B = allocate.bpi_to_importance(self._bpi[i], ones_B, ones_B, self.config.benefit_scale)
                    self._benefit[i] = allocate.smooth(self._benefit[i], whole_B, self.config.smoothing)
                    # Blocks behind the last attention cost so little that their importance would be most of the mean,
                    # and the share of the class token or of the patches in the blend a matter of whose benefit it is.
                    new_B = new_B / np.average(new_B, weights=cost_B)
                self._importance[i] = allocate.smooth(self._importance[i], new_B, self.config.smoothing)
        self._score_sum.zero_()
        self._bpi_sum.zero_()
        self._bpi_skipped.zero_()
        self._scored_steps = 0

    def _joint_ranks(self, b: int, score_E: Array, previous_E: Ints) -> Ints:
        """Ranks of block b's elements, the gates ranked together."""
        names = [gate.name for gate in self._gates.gates[b]]
        parts = np.split(score_E, np.cumsum(self._lengths[b])[:-1])
        by_gate = dict(zip(names, parts, strict=True))
        return importance.joint_ranks(self._branches[b].shape.kind, by_gate, previous_E)

    def _final_ratios(self) -> Array:
        """(B,) kappa, the share of each block to keep at the final sparsity; all equal before the first measurement."""
        importance_B, costs = self._blended(self._importance), self._costs
        if not costs.timed:
            return allocate.keep_ratios(importance_B, costs.dense, costs.budget)
        benefit_B = self._blended(self._benefit)
        return allocate.ratios_with_entry(importance_B, benefit_B, costs.dense, costs.entry, costs.stays, costs.budget)

    def _blended(self, running: list[Array | None]) -> Array:
        class_B, patch_B = running
        if self.config.allocation == "uniform" or class_B is None or patch_B is None:
            return np.ones(len(self._costs.dense))
        return allocate.blend(class_B, patch_B, self.config.class_weight)

    def _move_masks(self, progress: float, temperature: float) -> MaskUpdate:
        """Choose how much of every block stays at this progress and set the masks to it."""
        if progress == 0.0:
            self._kept = [len(ranks) for ranks in self._ranks]
        else:
            costs, budget = self._costs, self._costs.budget_at(progress)
            curves = [cost(*self._all_counts(b).T) for b, cost in enumerate(costs.of)]
            if self.config.allocation == "global":
                target_B = importance.global_targets(curves, self._order, budget - int(costs.least.sum()))
                target_B = np.maximum(target_B, costs.least)
            else:
                target_B = costs.dense * (1.0 - progress * (1.0 - self._final_ratios()))
            choices = [self._choices_now(b) for b in range(len(curves))]
            self._kept = importance.select_counts(curves, target_B.tolist(), budget, choices)
        self._set_masks(temperature)
        blocks = self.blocks()
        kept = [block["keep_ratio"] * dense for block, dense in zip(blocks, self._costs.dense.tolist(), strict=True)]
        return MaskUpdate(
            step=self._step,
            progress=progress,
            temperature=temperature,
            sparsity=self._costs.sparsity(sum(kept)),
            blocks=blocks,
        )

    def _set_masks(self, temperature: float) -> None:
        self._temperature = temperature
        masks = [rank_mask(r, len(r) - kept, temperature) for r, kept in zip(self._ranks, self._kept, strict=True)]
        self._gates.set([torch.from_numpy(mask).to(self._score_sum) for mask in masks])

    def _choices_now(self, b: int) -> Ints:
        """Numbers of block b's elements that may stay; which heads and channels those are decides about the layer."""
        shape = self._branches[b].shape
        if self.config.gates != "heads" or shape.kind != "attn":
            return self._choices[b]
        counts = self._all_counts(b)
        return importance.inner_choices(shape.kind, counts[:, 1] * counts[:, 3], self._allowed_width)

    def _all_counts(self, b: int) -> Ints:
        """(E + 1, 3) kept inputs, inner width and outputs of block b at 0 .. E kept elements.

        With gates="heads" there are four columns, the last one of kept heads.
        """
        gate_of_E = np.repeat(np.arange(len(self._lengths[b])), self._lengths[b])
        counts = importance.kept_per_gate(self._ranks[b], gate_of_E, len(self._lengths[b]))
        if self.config.gates == "all":
            return counts
        shape = self._branches[b].shape
        dim = np.full((len(counts), 1), shape.dim)
        columns = [dim, counts[:, :1], dim]
        if self.config.gates == "heads":
            columns.append(counts[:, 1:] if shape.kind == "attn" else np.ones_like(dim))
        return np.concatenate(columns, axis=1)

    def _kept_counts(self, b: int, kept: int) -> tuple[int, ...]:
        return tuple(self._all_counts(b)[kept].tolist())

    def _kept_indices(self) -> list[dict[str, Tensor]]:
        """Per block and gate, the sorted indices of the kept elements; channels that are not gated are all there."""
        indices = []
        for ranks, kept, lengths, gates in zip(self._ranks, self._kept, self._lengths, self._gates.gates, strict=True):
            parts = np.split(ranks >= len(ranks) - kept, np.cumsum(lengths)[:-1])
            mine = {gate.name: torch.from_numpy(np.flatnonzero(part)) for gate, part in zip(gates, parts, strict=True)}
            indices.append(mine)
        return indices

    # saving and resuming

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit: tensors and plain types (torch.load(weights_only=True))."""
        return {
            "config": asdict(self.config),
            "total_steps": self.schedule.total_steps,
            "step": self._step,
            "hard": self._hard,
            "temperature": self._temperature,
            "probes": self._indicator.probes.state_dict(),
            "probe_optimizer": self._indicator.optimizer.state_dict(),
            "ranks": [torch.from_numpy(ranks.copy()) for ranks in self._ranks],
            "kept": list(self._kept),
            "order": torch.from_numpy(self._order.copy()),
            "bpi": None if self._bpi is None else torch.from_numpy(self._bpi.copy()),
            "importance": [None if i is None else torch.from_numpy(i.copy()) for i in self._importance],
            "benefit": [None if i is None else torch.from_numpy(i.copy()) for i in self._benefit],
            "score_sum": self._score_sum.clone(),
            "bpi_sum": self._bpi_sum.clone(),
            "bpi_skipped": self._bpi_skipped.clone(),
            "scored_steps": self._scored_steps,
            "latency": None if self._latency is None else asdict(self._latency),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from state_dict() of a pruner with the same config and run length on the same kind of model."""
        if self._done:
            raise ValueError("finalize() or remove() has been called already: there is nothing to continue")
        mine = {"config": asdict(self.config), "total_steps": self.schedule.total_steps}
        for key, value in mine.items():
            if state.get(key) != value:
                raise ValueError(f"resume with the {key} of the saved run, {state.get(key)}, not with {value}")
        if state.get("latency") != (None if self._latency is None else asdict(self._latency)):
            raise ValueError("the saved pruner had other latencies: resume with the table of the saved run")
        if [len(ranks) for ranks in state["ranks"]] != [len(ranks) for ranks in self._ranks]:
            raise ValueError("the saved pruner belongs to a model of other sizes: resume with that model")
        self._indicator.probes.load_state_dict(state["probes"])
        self._indicator.optimizer.load_state_dict(state["probe_optimizer"])
        self._step, self._hard = state["step"], state["hard"]
        self._ranks = [_array(ranks) for ranks in state["ranks"]]
        self._kept = list(state["kept"])
        self._order = _array(state["order"])
        self._bpi = None if state["bpi"] is None else _array(state["bpi"])
        self._importance = [None if i is None else _array(i) for i in state["importance"]]
        self._benefit = [None if i is None else _array(i) for i in state["benefit"]]
        self._score_sum.copy_(state["score_sum"])
        self._bpi_sum.copy_(state["bpi_sum"])
        self._bpi_skipped.copy_(state["bpi_skipped"])
        self._scored_steps = state["scored_steps"]
        self._set_masks(state["temperature"])
        self._tap.open = self._tap.open and not self._hard


def _array(tensor: Tensor) -> Any:
    """A saved tensor as an array; torch.load(map_location=) may have put it on a GPU."""
    return tensor.cpu().numpy().copy()


def _check_inner(config: PruneConfig, rule: Any, latency: LatencyTable | None) -> None:
    """Raises ValueError for what does not go with these gates, or a table without its cost."""
    if rule is not None and config.gates == "all":
        raise ValueError('allowed_width works with gates="inner" or "heads": with "all" every width changes the others')
    if (latency is None) == (config.cost == "latency"):
        raise ValueError('cost="latency" and a table of latencies belong together: give both or neither')
    if latency is not None and config.gates != "inner":
        raise ValueError('cost="latency" works with gates="inner" only: a table knows inner widths of all heads')


def _choices(config: PruneConfig, shape: BranchShape, rule: Callable[[str, int], bool] | None) -> Ints:
    """Numbers of a block's elements that may stay."""
    if config.gates == "all":
        return np.arange(2 * shape.dim + shape.width + 1)
    return importance.width_choices(shape.kind, shape.heads, shape.width, rule)

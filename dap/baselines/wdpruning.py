"""WD-Prune, width and depth pruning: learnt masks over heads and layer outputs, learnt widths, and an early exit.

Key: G gates, L layers, H heads, D width of the residual stream, F hidden units, C classes.

Units are whole heads and the output rows of proj, fc1 and fc2. Every unit has a learnt score and every layer a learnt
threshold t: the ceil(sigmoid(t) n) units of the highest scores stay, rounded down to a multiple of 16 where 16 divides
n. Masks are hard all the time and gradients go straight through. A penalty with ascending weights drives the share of
parameters kept to the target. A LayerNorm and a linear classifier after block 10 of 12 learn along; when the model is
made small they may become its head, and the blocks behind them go.
Source: "Width & Depth Pruning for Vision Transformers", AAAI 2022.
"""

from dataclasses import asdict, dataclass, replace
from math import cos, pi
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dap.allocate import model_budget
from dap.baselines.row_gates import RowGates
from dap.compact import compact
from dap.config import check_number
from dap.cost import count_params
from dap.gates import branches_of, check_rivals
from dap.method import BlockReport, MaskUpdate, average_over_ranks

OPEN = 10.0  # first value of every threshold: sigmoid(10) keeps everything
SCORE_LR, PENALTY_LR = 0.0025, 10.0
# At the published rates a threshold needs 4,000 steps from 10 to 0 even when all gradients agree. A run shorter than
# this raises both rates, so that it too gets there in its first quarter.
FULL_STEPS = 16_000
CLASSIFIER_LR = 5e-4
EXIT = 10 / 12  # depth of the auxiliary classifier
REPORTS = 48  # updates that step() returns over a run; the masks themselves move at every step


@dataclass(frozen=True, kw_only=True)
class WDPruneConfig:
    """What to prune away with WD-Prune."""

    sparsity: float = 0.5
    """Share of the model's parameters to remove, strictly between 0 and 1."""
    released: bool = False
    """Train as the released code does: scores, class token and position embedding are left out of the optimiser."""
    seed: int = 0
    """Seed of the auxiliary classifier's weights."""

    def __post_init__(self) -> None:
        check_number(self, "sparsity", 0.0, 1.0, open_ends=True)


class WDPrune:
    """Prunes a timm ViT while it trains; see dap.method.Method. There is no fine-tuning afterwards.

    Depth: the classifier after block 10 of 12 becomes the head if the blocks behind it are at most half of what has to
    go; otherwise widths alone are cut. That is settled before training, so that the widths are learnt for what stays.
    The paper leaves the choice to its user.
    Budget: the penalty ends at the target, but nothing holds the widths there, and nothing is trained afterwards. Where
    they would keep too little, masks are those of thresholds that are all moved up by the same amount, until the budget
    is filled; harden() moves them down by the same rule if too much is left.
    """

    def __init__(self, model: nn.Module, config: WDPruneConfig, *, steps_per_epoch: int, epochs: int) -> None:
        self.model: VisionTransformer = check_rivals(model, "WD-Prune")
        if isinstance(model, VisionTransformerDistilled):
            raise ValueError("WD-Prune's auxiliary classifier stands for one head: use a model without distillation")
        if steps_per_epoch < 1 or epochs < 1:
            raise ValueError(f"a run needs at least one step and one epoch, got {steps_per_epoch} and {epochs}")
        self.config = config
        self._total_steps = steps_per_epoch * epochs
        self._branches = branches_of(self.model)
        self._gates = RowGates(self._branches)
        self._flat = [gate for block in self._gates.gates for gate in block]
        self._choices = [_choices(gate.length) for gate in self._flat]

        self._total = count_params(self.model)
        dense_B = [int(b.shape.params(b.shape.dim, b.shape.width, b.shape.dim)) for b in self._branches]
        self._other = self._total - sum(dense_B)
        layers, exit_at = len(dense_B) // 2, max(1, int(len(dense_B) // 2 * EXIT))
        self._exit = exit_at if 2 * sum(dense_B[2 * exit_at :]) <= config.sparsity * self._total else layers
        self._budget = model_budget(self._total, self._cost([int(c[0]) for c in self._choices]), config.sparsity)

        device = next(self.model.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            norm = nn.LayerNorm(self.model.embed_dim, eps=cast(Any, self.model.norm).eps)
            self._classifier = nn.Sequential(norm, nn.Linear(self.model.embed_dim, self.model.num_classes)).to(device)
        self._tokens: Tensor | None = None  # (B, N, D) at the exit, of the last training forward
        self._watched = self.model.blocks[exit_at - 1]
        # not the bound method: a copy of the model would copy this pruner along with it
        self._hook = self._watched.register_forward_hook(lambda *args: self._keep_tokens(*args))
        self._thresholds = torch.full((len(self._flat),), OPEN, device=device, requires_grad=True)
        self._scores = [torch.zeros(gate.length, device=device, requires_grad=True) for gate in self._flat]
        self._penalties = torch.zeros(2, device=device)
        self._hurry = max(1.0, FULL_STEPS / self._total_steps)
        learnt = [self._thresholds] if config.released else [self._thresholds, *self._scores]
        self._optimizers = [
            torch.optim.AdamW(learnt, lr=SCORE_LR * self._hurry, weight_decay=0.0),
            torch.optim.AdamW(self._classifier.parameters(), lr=CLASSIFIER_LR, weight_decay=0.05),
        ]
        self._untrained = [self.model.cls_token, self.model.pos_embed] if config.released else []
        for parameter in self._untrained:
            cast(Tensor, parameter).requires_grad_(False)
        self._step = 0
        self._hard = False
        self._done = False
        self._kept = [gate.length for gate in self._flat]

    def loss(self, targets: Tensor) -> Tensor:
        """Cross entropy of the auxiliary classifier, and the penalty on the parameters kept beyond the target.

        targets: (B,) class indices or (B, C) probabilities of the last training forward
        Raises ValueError if there was none.
        """
        if self._tokens is None:
            raise ValueError("no training forward has been seen: call model(images) in train mode before loss(targets)")
        logits = self._classifier(self._tokens[:, 0].float())
        self._tokens = None
        excess = self._excess()
        return F.cross_entropy(logits, targets) + self._penalties[0] * excess + self._penalties[1] * excess.square()

    def step(self, targets: Tensor, *, grad_scale: float | Tensor = 1.0) -> MaskUpdate | None:
        """Learn scores, thresholds, penalties and the auxiliary classifier from one backward, and move the masks.

        grad_scale: what gradients are still multiplied by, see dap.method.Method
        Returns a report now and then, else None. Raises ValueError if no loss() and backward went before, or if the
        run is over.
        """
        if self._done or self._hard or self._step >= self._total_steps:
            raise ValueError(f"the pruning run of {self._total_steps} steps is over: call finalize()")
        if self._thresholds.grad is None:
            raise ValueError("the thresholds have no gradient: add loss(targets) to the main loss before backward")
        with torch.no_grad():
            slopes = self._gates.slopes()
            for g, (score, slope, mask) in enumerate(zip(self._scores, slopes, self._masks(), strict=True)):
                score.grad = slope
                self._thresholds.grad[g] += (slope * mask).sum()
            learnt = [self._thresholds, *self._scores, *self._classifier.parameters()]
            grads = [cast(Tensor, tensor.grad) for tensor in learnt]
            average_over_ranks(grads)
            for grad in grads:
                grad /= grad_scale
            # A step with overflowed gradients (mixed precision) is one that the model's optimizer skips as well.
            if all(bool(grad.isfinite().all()) for grad in grads):
                excess = self._excess()
                rate = PENALTY_LR * self._hurry * 0.5 * (1.0 + cos(pi * self._step / self._total_steps))
                self._penalties += rate * torch.stack([excess, excess.square()])
                for optimizer in self._optimizers:
                    optimizer.step()
            for tensor in learnt:
                tensor.grad = None
        self._step += 1
        shares = torch.sigmoid(self._thresholds.detach()).cpu().double().numpy()
        self._kept = [
            _at_most(choices, int(np.ceil(share * gate.length)))
            for choices, share, gate in zip(self._choices, shares, self._flat, strict=True)
        ]
        if self._cost(self._kept) < self._budget:
            self._kept = self._fitting()
        self._set_masks()
        every = max(1, self._total_steps // REPORTS)
        return self._update() if self._step % every == 0 or self._step == self._total_steps else None

    def harden(self) -> MaskUpdate:
        """Fit the widths to the budget; with an early exit, silence the blocks behind it and put its classifier in."""
        if self._done:
            raise ValueError("finalize() or remove() has been called already: masks are gone")
        if not self._hard:
            self._hard = True
            self._kept = self._fitting()
        self._set_masks()
        if self._exit < len(self.model.blocks):
            self.model.norm.load_state_dict(self._classifier[0].state_dict())
            self.model.head.load_state_dict(self._classifier[1].state_dict())
        return self._update()

    def finalize(self) -> VisionTransformer:
        """The small model, exact, in the model's mode; masks and hooks are gone.

        The model that was pruned stays usable, dense in shape, with the hard masks multiplied into its weights.
        """
        self.harden()
        parts = iter(mask.nonzero()[:, 0].cpu() for mask in self._masks())
        kept = [{gate.name: next(parts) for gate in block} for block in self._gates.gates]
        small = compact(self.remove(), self._branches, kept)
        small.blocks = small.blocks[: self._exit]
        small.feature_info = small.feature_info[: self._exit]
        return small

    def remove(self) -> VisionTransformer:
        """The model itself, plain again and computing what it computes now; masks and hooks are gone."""
        if not self._done:
            self._done = True
            self._gates.remove()
            self._hook.remove()
            for parameter in self._untrained:
                cast(Tensor, parameter).requires_grad_(True)
        return self.model

    def blocks(self) -> list[BlockReport]:
        """The blocks as they stand."""
        reports = []
        for b, branch in enumerate(self._branches):
            (inner, out), shape = self._kept[2 * b : 2 * b + 2], branch.shape
            heads, width = (inner, shape.width) if shape.kind == "attn" else (1, inner)
            held = replace(shape, heads=heads).params(shape.dim, width, out)
            dense = shape.params(shape.dim, shape.width, shape.dim)
            gone = self._hard and b >= 2 * self._exit
            report = BlockReport(
                name=branch.name,
                bpi_class=None,
                bpi_patch=None,
                keep_ratio=0.0 if gone else float(held) / float(dense),
                heads=0 if gone else heads,
                width=0 if gone else width,
            )
            reports.append(report)
        return reports

    def _keep_tokens(self, module: nn.Module, args: Any, tokens: Tensor) -> None:
        if module is self._watched and module.training:  # a copy of the model calls this hook, too
            self._tokens = tokens

    def _cost(self, kept: Any) -> Any:
        """Parameters of what is to stay, up to the exit, with so many units of every gate: integers or tensors."""
        cost: Any = self._other
        for b, branch in enumerate(self._branches[: 2 * self._exit]):
            inner = kept[2 * b] * (branch.shape.width if branch.shape.kind == "attn" else 1)
            cost = cost + branch.shape.params_alive(branch.shape.dim, inner, kept[2 * b + 1])
        return cost

    def _excess(self) -> Tensor:
        """() share of parameters above the target, as the thresholds have it."""
        lengths = self._thresholds.new_tensor([gate.length for gate in self._flat])
        share = self._cost(torch.sigmoid(self._thresholds) * lengths) / self._total
        return (share - self._budget / self._total).clamp(min=0.0)

    def _fitting(self) -> list[int]:
        """Units to keep of every gate that fill the budget when all thresholds are moved by the same amount."""
        t = self._thresholds.detach().cpu().double().numpy()
        gate_of, due = [], []
        for g, (gate, choices) in enumerate(zip(self._flat, self._choices, strict=True)):
            share = (choices[1:] - 1) / gate.length  # a width is due as soon as sigmoid(t + shift) is above this
            due.append(np.log(share) - np.log1p(-share) - t[g])
            gate_of.append(np.full(len(choices) - 1, g))
        order = np.concatenate(gate_of)[np.argsort(np.concatenate(due), kind="stable")]

        def kept(steps: int) -> list[int]:
            taken = np.bincount(order[:steps], minlength=len(self._flat))
            return [int(choices[n]) for choices, n in zip(self._choices, taken, strict=True)]

        low, high = 0, len(order) + 1  # low fits
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._cost(kept(middle)) <= self._budget else (low, middle)
        numbers, full = kept(low), set()
        for g in order[low:].tolist():  # what is left is less than the next width, but may do for one further on
            if g in full:
                continue
            wider = [*numbers[:g], _next(self._choices[g], numbers[g]), *numbers[g + 1 :]]
            if self._cost(wider) <= self._budget:
                numbers = wider
            else:
                full.add(g)
        return numbers

    def _masks(self) -> list[Tensor]:
        """(length,) of every gate: 1 for the kept units of the highest scores; equal scores in order."""
        masks = []
        for g, (score, kept) in enumerate(zip(self._scores, self._kept, strict=True)):
            mask = torch.zeros_like(score, requires_grad=False)
            if not (self._hard and g >= 4 * self._exit):
                mask[score.detach().argsort(descending=True, stable=True)[:kept]] = 1.0
            masks.append(mask)
        return masks

    def _set_masks(self) -> None:
        parts = iter(self._masks())
        self._gates.set([torch.cat([next(parts) for _ in block]) for block in self._gates.gates])

    def _update(self) -> MaskUpdate:
        blocks = self.blocks()
        dense = [b.shape.params(b.shape.dim, b.shape.width, b.shape.dim) for b in self._branches]
        held = sum(block["keep_ratio"] * float(params) for block, params in zip(blocks, dense, strict=True))
        sparsity = 1.0 - (self._other + held) / self._total
        progress = min(1.0, sparsity / self.config.sparsity)
        return MaskUpdate(step=self._step, progress=progress, temperature=0.0, sparsity=sparsity, blocks=blocks)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit: tensors and plain types."""
        return {
            "config": asdict(self.config),
            "total_steps": self._total_steps,
            "step": self._step,
            "hard": self._hard,
            "kept": list(self._kept),
            "thresholds": self._thresholds.detach().clone(),
            "scores": [score.detach().clone() for score in self._scores],
            "penalties": self._penalties.clone(),
            "classifier": self._classifier.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from state_dict() of a run with the same config and length on the same kind of model."""
        for key, value in {"config": asdict(self.config), "total_steps": self._total_steps}.items():
            if state.get(key) != value:
                raise ValueError(f"resume with the {key} of the saved run, {state.get(key)}, not with {value}")
        if [len(score) for score in state["scores"]] != [gate.length for gate in self._flat]:
            raise ValueError("the saved pruner belongs to a model of other sizes: resume with that model")
        self._step, self._hard, self._kept = state["step"], state["hard"], list(state["kept"])
        self._thresholds.copy_(state["thresholds"])
        for score, saved in zip(self._scores, state["scores"], strict=True):
            score.copy_(saved)
        self._penalties.copy_(state["penalties"])
        self._classifier.load_state_dict(state["classifier"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._set_masks()


def _choices(units: int) -> Any:
    """Sorted numbers of units that may stay: multiples of 16 where 16 divides all, otherwise any; at least one."""
    step = 16 if units % 16 == 0 else 1
    return np.arange(step, units + 1, step)


def _next(choices: Any, kept: int) -> int:
    """The smallest choice above `kept`."""
    return int(choices[np.searchsorted(choices, kept, side="right")])


def _at_most(choices: Any, wanted: int) -> int:
    """The largest choice up to `wanted`, or the smallest there is."""
    return int(choices[max(0, np.searchsorted(choices, wanted, side="right") - 1)])

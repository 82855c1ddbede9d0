"""PruneConfig: what to prune away, and how. Imports neither torch, timm nor NumPy: a wrong setting is found at once."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

Gating = Literal["inner", "heads", "all"]
Probe = Literal["default", "reference"]
Allocation = Literal["bpi", "uniform", "global"]
Score = Literal["taylor", "magnitude"]
Cost = Literal["params", "macs", "latency"]


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """What to prune away, and how. The defaults are those of the published runs where the paper has them."""

    sparsity: float = 0.5
    """Share of the model's cost to remove, embeddings and head counted, strictly between 0 and 1."""
    cost: Cost = "params"
    """What sparsity counts: "params", "macs", or "latency", the time that a device has measured for every block."""
    gates: Gating = "inner"
    """Units that may go: "inner" (head width, hidden units), "heads" (also whole heads) or "all" (head width, hidden
    units, and channels that a branch reads and writes)."""
    allocation: Allocation = "bpi"
    """How blocks share the budget: "bpi" (their measured benefit), "uniform" (a control: the same share each) or
    "global" (a control: no shares, the best units of all blocks stay; nothing is probed)."""
    score: Score = "taylor"
    """What ranks units: "taylor" (accumulated second-order Taylor score) or "magnitude" (the norm of their weights)."""
    probe: Probe = "default"
    """Probes behind the benefit: "default" (cheap) or "reference" (the paper's: all images, full convolutions)."""
    probe_images: int = 4
    """The default patch probes look at every n-th image of the batch (8 at least); the reference ones at all."""
    probe_lr: float | None = None
    """Learning rate of the probes' AdamW; None: the paper's 5e-4, but 2e-3 for the default patch probes."""
    probe_rank: int = 32
    """Rank of the default probes' heads where it makes them smaller: of many classes they are most of the probes."""
    start: float = 0.1
    """Share of the run after which cutting begins."""
    sparse: float = 0.5
    """Share of the run after which the final sparsity is in force and masks begin to sharpen."""
    updates_per_epoch: int = 3
    """Mask updates per epoch; a short run gets at least 24 in all."""
    temperature: float = 0.1
    """Mask width until sharpening, as a share of a block's elements."""
    smoothing: float = 0.2
    """Gamma: weight of the newest importance in the running one."""
    class_weight: float = 0.5
    """Alpha: weight of the class-token indicator against the patch indicator."""
    benefit_scale: float = 10.0
    """s: the value that the best block's benefit is stretched to before it is clamped."""
    seed: int = 0
    """Seed of the probes' weights, the only random numbers drawn."""

    def __post_init__(self) -> None:
        check_number(self, "sparsity", 0.0, 1.0, open_ends=True)
        check_number(self, "start", 0.0, 1.0)
        check_number(self, "sparse", 0.0, 1.0)
        for name in ("probe_lr", "temperature", "smoothing", "class_weight"):
            if getattr(self, name) is not None or name != "probe_lr":
                check_number(self, name, 0.0, 1.0)
        check_number(self, "benefit_scale", 0.0, float("inf"), open_ends=True)
        if self.start >= self.sparse:
            raise ValueError(f"start must lie before sparse, got start={self.start} and sparse={self.sparse}")
        kinds = {"cost": Cost, "gates": Gating, "allocation": Allocation, "score": Score, "probe": Probe}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        for name in ("probe_images", "probe_rank", "updates_per_epoch", "seed"):
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_number(config: object, name: str, low: float, high: float, open_ends: bool = False) -> None:
    """Raise ValueError unless the setting `name` is a number between low and high, without them if open_ends."""
    value = getattr(config, name)
    valid = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not valid or not low <= value <= high or (open_ends and value in (low, high)):
        ends = "strictly between" if open_ends else "between"
        raise ValueError(f"{name} must be a number {ends} {low:g} and {high:g}, got {value!r}")

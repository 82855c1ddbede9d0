"""The ways to choose what goes, by name: what METHOD= takes. Loads neither torch nor timm until one is built."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from dap import PruneConfig

if TYPE_CHECKING:
    from timm.models import VisionTransformer

    import dap
    from dap.cost import LatencyTable


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to prune, and which of the stages it trains in."""

    summary: str
    """what it is, in a line"""
    pruning: dict[str, Any] = field(default_factory=dict)
    """settings of PruneConfig that make the method"""
    one_shot: bool = False
    """it decides on the pretrained network; all epochs go to the small model"""
    finetunes: bool = True
    """the small model is trained on; without that all epochs go to pruning"""


METHODS = {
    "dense": Method(summary="nothing goes: the reference alone"),
    "dap": Method(summary="Depth Aware Pruning: a block keeps what its measured benefit earns"),
    "uniform": Method(
        summary="control: DAP's machinery, but every block keeps the same share", pruning={"allocation": "uniform"}
    ),
    "taylor": Method(
        summary="control: DAP's units and scores in one ranking over all blocks", pruning={"allocation": "global"}
    ),
    "magnitude": Method(
        summary="control: the same with the weights' magnitude as score",
        pruning={"allocation": "global", "score": "magnitude"},
    ),
    "savit": Method(summary="SAViT: joint importance of heads, hidden units and width, one shot", one_shot=True),
    "wdpruning": Method(summary="WD-Prune: learned widths and depth", finetunes=False),
    "isomorphic": Method(summary="torch-pruning's isomorphic Taylor pruning, one shot (optional)", one_shot=True),
}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "dap": {"reference": {"probe": "reference"}, "heads": {"gates": "heads"}, "all-gates": {"gates": "all"}},
    "uniform": {"heads": {"gates": "heads"}, "all-gates": {"gates": "all"}},
}
"""method -> variant -> settings of PruneConfig in which it differs; `released` variants are in RELEASED"""

RELEASED = ("savit", "wdpruning")
"""methods whose released code is known to be wrong somewhere: `released` repeats its mistakes"""


GATED = ("dap", "uniform", "taylor", "magnitude")
"""DAP and its controls: methods that mask units while the model trains"""
ON_LATENCY = GATED
"""methods that can prune under a budget of milliseconds"""


def variant_settings(method: str, variant: str) -> dict[str, Any] | None:
    """Settings of PruneConfig in which a variant differs: one of VARIANTS, or `KEY=NUMBER`; None if it is neither.

    Methods that do not read PruneConfig's settings (SAViT, WD-Prune, isomorphic) have no `KEY=NUMBER`.
    """
    if variant in VARIANTS.get(method, {}):
        return VARIANTS[method][variant]
    key, _, number = variant.partition("=")
    kinds: dict[str, Any] = {item.name: type(item.default) for item in fields(PruneConfig)} | {"probe_lr": float}
    del kinds["sparsity"], kinds["seed"]  # a cell has its own
    if method not in GATED or kinds.get(key) not in (int, float):
        return None
    try:
        settings = {key: kinds[key](number)}
        PruneConfig(**settings)
    except ValueError as error:
        raise ValueError(f"{method}:{variant}: {error}") from error
    return settings


def build(
    method: str,
    model: "VisionTransformer",
    config: PruneConfig,
    *,
    released: bool,
    steps_per_epoch: int,
    epochs: int,
    seed: int,
    allowed_width: Callable[[str, int], bool] | None,
    latency: "LatencyTable | None" = None,
    images_per_step: int | None = None,
) -> "dap.Method | dap.OneShot":
    """The pruner of a method, on `model`. The rule for widths is kept by DAP and its controls only.

    latency: what the model's blocks cost, for config.cost = "latency"
    images_per_step: of all forwards and processes; None: of one forward
    Raises ValueError for a sparsity that the method cannot reach, a model or a cost that it does not know.
    """
    # each imported where it is used: torch-pruning is optional, and a run needs one method only
    if config.cost == "latency" and method not in ON_LATENCY:
        raise ValueError(f"METHOD={method} knows no budget of milliseconds: take {', '.join(ON_LATENCY)}")
    if method == "savit":
        from dap.baselines.savit import Savit, SavitConfig

        cost: Any = config.cost
        savit = SavitConfig(sparsity=config.sparsity, cost=cost, released=released, seed=seed)
        return Savit(model, savit, steps_per_epoch=steps_per_epoch)
    if method in ("wdpruning", "isomorphic") and config.cost != "params":
        raise ValueError(f"METHOD={method} counts parameters only: leave cost at params")
    if method == "wdpruning":
        from dap.baselines.wdpruning import WDPrune, WDPruneConfig

        wdprune = WDPruneConfig(sparsity=config.sparsity, released=released, seed=seed)
        return WDPrune(model, wdprune, steps_per_epoch=steps_per_epoch, epochs=epochs)
    if method == "isomorphic":
        from dap.baselines.isomorphic import Isomorphic, IsomorphicConfig

        return Isomorphic(model, IsomorphicConfig(sparsity=config.sparsity), steps_per_epoch=steps_per_epoch)
    from dap import Pruner

    pruning = replace(config, seed=seed, **METHODS[method].pruning)
    return Pruner(
        model,
        pruning,
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        allowed_width=allowed_width,
        latency=latency,
        images_per_step=images_per_step,
    )

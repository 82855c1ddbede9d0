"""`make bench-probes`: what the probes hold, and what every process sends at a step, from ten classes to iNaturalist's.

Counted on models without weights: no machine matters.
"""

from typing import Any

import torch
from torch import nn

from dap import PruneConfig
from dap.gates import Gates, branches_of, check_prunable
from dap.indicator import Indicator
from pipeline.models import shell_of

MODELS = ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224")
CLASSES = (10, 251, 1010)
"""objects, iFood, iNaturalist 2019"""
BYTES_HELD = 16
"""of a parameter in float32: itself, its gradient, and AdamW's two means"""
BYTES_SENT = 4


def probe_sizes() -> list[dict[str, Any]]:
    """One row per model, number of classes and kind of probes.

    params: the probes' own; params_whole_heads: if heads were no factors; model_params; memory_mb: weights, gradients
    and the optimizer's state of the probes; probes_mb_per_step and model_mb_per_step: gradients that every process
    gives to an all-reduce; statistics_mb_per_update: scores and benefit, at updates alone.
    """
    rows = []
    for name in MODELS:
        for classes in CLASSES:
            model = weightless(name, classes)
            elements = sum(gate.length for block in Gates(branches_of(model), "inner").gates for gate in block)
            for probe in ("default", "reference"):
                params = count_probes(model, probe, PruneConfig().probe_rank)
                rows.append(
                    {
                        "model": name,
                        "classes": classes,
                        "probe": probe,
                        "model_params": _count(model),
                        "params": params,
                        "params_whole_heads": count_probes(model, probe, 10**9),
                        "memory_mb": params * BYTES_HELD / 1e6,
                        "probes_mb_per_step": params * BYTES_SENT / 1e6,
                        "model_mb_per_step": _count(model) * BYTES_SENT / 1e6,
                        "statistics_mb_per_update": (elements + 4 * len(model.blocks) + 1) * BYTES_SENT / 1e6,
                    }
                )
    return rows


def weightless(model: str, classes: int) -> Any:
    """A model to count on. Raises ValueError for one that is not pruned here."""
    with torch.device("meta"):
        return check_prunable(shell_of(model, classes))


def count_probes(model: Any, probe: Any, rank: int) -> int:
    """Parameters of the probes of a model, which may have no weights."""
    with torch.device("meta"):
        return _count(
            Indicator(
                probe=probe,
                layers=len(model.blocks),
                dim=model.embed_dim,
                classes=model.num_classes,
                grid=model.patch_embed.grid_size,
                rank=rank,
                lr=None,
                seed=0,
                device=torch.device("meta"),
            ).probes
        )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

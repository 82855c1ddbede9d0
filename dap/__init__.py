"""Depth Aware Pruning of timm ViTs: prune a pretrained DeiT while it is fine-tuned, end with a small dense model.

    from dap import PruneConfig, Pruner, load_compact, save_compact

Names are imported on first use, so that a config needs no torch, and a small model neither the pruner nor its probes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dap.compact import load_compact, save_compact
    from dap.config import PruneConfig
    from dap.cost import block_params, count_macs, count_params
    from dap.describe import architecture_of
    from dap.hub import save_for_hub
    from dap.method import BlockReport, MaskUpdate, Method, OneShot
    from dap.pruner import Pruner
    from dap.rotate import rotate_heads

__all__ = [
    "BlockReport",
    "MaskUpdate",
    "Method",
    "OneShot",
    "PruneConfig",
    "Pruner",
    "architecture_of",
    "block_params",
    "count_macs",
    "count_params",
    "load_compact",
    "rotate_heads",
    "save_compact",
    "save_for_hub",
]

_HOME = {
    "dap.compact": ("load_compact", "save_compact"),
    "dap.config": ("PruneConfig",),
    "dap.cost": ("block_params", "count_macs", "count_params"),
    "dap.method": ("BlockReport", "MaskUpdate", "Method", "OneShot"),
    "dap.pruner": ("Pruner",),
    "dap.rotate": ("rotate_heads",),
    "dap.describe": ("architecture_of",),
    "dap.hub": ("save_for_hub",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'dap' has no attribute {name!r}")

"""What MODEL= may be. Loads neither torch nor timm: a mistyped name should be refused at once."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

MICRO = "deit_micro_patch8_64"
SMALL_112 = "vit_small_patch14_112_dinov2"
PRUNABLE = ("VisionTransformer", "VisionTransformerDistilled")
"""timm's classes that DAP may be able to prune"""

_ENTRY = re.compile(r"@register_model\s+def (\w+)\([^)]*\)(?: *-> *([\w.]+))?:")


@cache
def registered() -> dict[str, str]:
    """Model name -> class that its function says it returns, of every model that timm registers, ours included.

    Read from timm's sources, in a twentieth of a second; importing it takes four, with torch.
    """
    spec = find_spec("timm")
    assert spec is not None, "a dependency"
    found = {MICRO: PRUNABLE[0], SMALL_112: PRUNABLE[0]}
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).glob("models/*.py")):
            found |= dict(_ENTRY.findall(path.read_text(encoding="utf-8")))
    return found


def known() -> list[str]:
    """Names to choose MODEL from: timm's DeiTs, ours included, and ViTs. What does not fit is refused with a reason."""
    of_interest = ("deit_", "deit3_", "vit_tiny_patch", "vit_small_patch", "vit_base_patch")
    return sorted(name for name, kind in registered().items() if name.startswith(of_interest) and kind in PRUNABLE)


def check_name(name: str) -> None:
    """Raises ValueError for a name that timm does not know, with the names to choose from, or of another kind."""
    kind = registered().get(name.split(".")[0])
    if kind is None:
        raise ValueError(f"MODEL={name} is unknown. Known: {', '.join(known())}")
    if kind not in PRUNABLE:
        raise ValueError(f"MODEL={name} is a {kind or 'model of another kind'}; only DeiT and plain ViT can be pruned")

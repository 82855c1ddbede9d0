"""What MODEL= may be. Loads neither torch nor timm: a mistyped name should be refused at once."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

MICRO = "deit_micro_patch8_64"
DINO_SMALL = "vit_small_patch14_dinov2"
WIDTHS = {96: "micro", 192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
"""width of the residual stream -> the word for it in names"""
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
    found = {MICRO: PRUNABLE[0]}
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


def patch_of(name: str) -> int:
    """Height and width of a patch in pixels, as a model's name says it; 1 if it says none."""
    found = re.search(r"_patch(\d+)", name)
    return int(found[1]) if found else 1


def check_size(img_size: int, patch: int) -> None:
    """Raises ValueError, with the nearest sizes that will do, for an image that is no whole number of patches."""
    if img_size > 0 and img_size % patch == 0:
        return
    below = max(0, img_size // patch * patch)
    near = f"{below} or {below + patch}" if below else f"{patch}"
    raise ValueError(f"IMG_SIZE={img_size} is no multiple of the model's patch of {patch} pixels: take {near}")

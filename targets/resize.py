"""A picture of any size to the model's own. A board reads this very file; the function alone needs Pillow."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LARGEST_RESIZED = 100_000_000
"""pixels of a resized strip above which only the part that is kept is made"""


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How a picture is brought to size: what of a manifest's input.resize is a parameter."""

    shorter_side: int
    """of the whole resized picture"""
    square: bool
    """whether its longer side is as long, whatever the picture's proportions"""
    interpolation: Literal["bicubic", "bilinear"]
    centre_crop: int
    """height and width of the part that is kept"""

    def __post_init__(self) -> None:
        if not 1 <= self.centre_crop <= self.shorter_side:
            raise ValueError(f"{self.centre_crop} pixels cannot be cut out of {self.shorter_side}")

    @staticmethod
    def of(rule: dict[str, Any]) -> "Resize":
        """The parameters of a manifest's input.resize."""
        return Resize(
            shorter_side=rule["shorter_side"],
            square=rule["longer_side"] == "shorter_side",
            interpolation=rule["interpolation"],
            centre_crop=rule["centre_crop"],
        )


def fit(pixels: np.ndarray, rule: Resize) -> np.ndarray:
    """RGB (H, W, 3) uint8 of any size -> (rule.centre_crop, rule.centre_crop, 3) uint8.

    To the bit what the pipeline's evaluation makes of it (pipeline/data/augment.py); both use Pillow.
    """
    from PIL import Image  # here: a board without Pillow can do all the rest

    shorter, size = rule.shorter_side, rule.centre_crop
    height, width = pixels.shape[:2]
    tall = shorter if rule.square or height <= width else int(shorter * height / width)
    wide = shorter if rule.square or width <= height else int(shorter * width / height)
    method = Image.Resampling[rule.interpolation.upper()]
    top, left = round((tall - size) / 2), round((wide - size) / 2)  # halves to even
    if tall * wide > LARGEST_RESIZED:
        y, x = height / tall, width / wide
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        return np.asarray(Image.fromarray(pixels).resize((size, size), method, box))
    if (tall, wide) != (height, width):
        pixels = np.asarray(Image.fromarray(pixels).resize((wide, tall), method))
    return pixels[top : top + size, left : left + size]

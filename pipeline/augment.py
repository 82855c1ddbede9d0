"""Augmentation and evaluation transforms. With data.py the only place that knows crop, mean and std."""

from dataclasses import dataclass
from typing import Any, Literal

import albumentations as A
import cv2
import numpy as np

# Workers are processes already; OpenCV's own threads would only fight with torch's.
cv2.setNumThreads(0)

Recipe = Literal["digits", "light"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a training image goes through. Belongs to the dataset: a mirrored digit is not a digit."""

    recipe: Recipe
    """digits: half of them turned, shifted and scaled a little; no flip. light: random resized crop and flip."""

    def __post_init__(self) -> None:
        if self.recipe not in ("digits", "light"):
            raise ValueError(f"recipe={self.recipe!r} is unknown. Known: digits, light")


def train_transform(config: Augmentation, size: int) -> A.Compose:
    """uint8 HWC RGB of any size -> uint8 (size, size, 3). Its randomness is set per image by the loader."""
    steps: list[A.BasicTransform]
    if config.recipe == "digits":
        steps = [
            A.Resize(size, size, interpolation=cv2.INTER_CUBIC),
            A.Affine(rotate=(-6, 6), translate_percent=(-0.03, 0.03), scale=(0.95, 1.05), p=0.5),
        ]
    else:
        steps = [
            A.RandomResizedCrop((size, size), scale=(0.4, 1.0), ratio=(3 / 4, 4 / 3), interpolation=cv2.INTER_CUBIC),
            A.HorizontalFlip(p=0.5),
        ]
    return A.Compose(steps)


def eval_transform(size: int, crop_ratio: float) -> A.Compose:
    """uint8 HWC RGB -> uint8 (size, size, 3): shorter side to size / crop_ratio, then the centre."""
    return A.Compose(
        [
            A.SmallestMaxSize(round(size / crop_ratio), interpolation=cv2.INTER_CUBIC),
            A.CenterCrop(size, size),
        ]
    )


def resize_rule(size: int, crop_ratio: float) -> dict[str, Any]:
    """What eval_transform does, in words that apps can follow."""
    return {"shorter_side": round(size / crop_ratio), "interpolation": "bicubic", "centre_crop": size}


def apply(transform: A.Compose, image: np.ndarray, seed: int | None = None) -> np.ndarray:
    """Run a transform on one image; with a seed, the same image comes out whatever ran before."""
    if seed is not None:
        transform.set_random_seed(seed)
    return transform(image=image)["image"]

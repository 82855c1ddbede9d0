"""How a model wants to see its images."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import timm
import torch

from targets import strict


@dataclass(frozen=True, kw_only=True)
class View:
    """How a model wants its images; written to preprocess.json so that apps can repeat it."""

    size: int
    """height and width, pixels"""
    crop_ratio: float
    """share of the shorter side that the centre crop keeps"""
    mean: tuple[float, ...]
    """per channel, of images scaled to 0..1"""
    std: tuple[float, ...]
    """per channel, of images scaled to 0..1"""
    interpolation: str = "bicubic"
    """of the resize in evaluation: bicubic or bilinear, antialiased"""
    crop_mode: str = "center"
    """center: proportions are kept; squash: they are not, the resized image is square"""

    def __post_init__(self) -> None:
        if self.interpolation not in ("bicubic", "bilinear") or self.crop_mode not in ("center", "squash"):
            raise ValueError(
                f"the model wants its images resized by interpolation={self.interpolation}, crop_mode={self.crop_mode};"
                " only bicubic and bilinear, center and squash are supported. Take another MODEL"
            )

        if self.size < 1 or not 0 < self.crop_ratio <= 1 or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(
                f"size={self.size}, crop_ratio={self.crop_ratio}, mean={self.mean}, std={self.std}: no image is made "
                "like that"
            )

    @staticmethod
    def read(path: Path) -> "View":
        """The view in preprocess.json; "resize" there says the same for apps. Raises ValueError if it is damaged."""
        return View.from_json(strict.read_json(path, dict[str, Any]), str(path))

    @staticmethod
    def from_json(values: dict[str, Any], where: str = "preprocess.json") -> "View":
        """The view in what preprocess.json holds."""
        return strict.parse(View, {key: value for key, value in values.items() if key != "resize"}, where)

    @staticmethod
    def of(model: torch.nn.Module) -> "View":
        """What timm's own configuration of this model says, at the image size that it was built for.

        The crop is that of the pretrained weights at any size, as in timm's own scripts.
        """
        config = timm.data.resolve_model_data_config(model)
        return View(
            size=cast(Any, model).patch_embed.img_size[-1],  # timm's configuration is that of the weights
            crop_ratio=config["crop_pct"],
            mean=config["mean"],
            std=config["std"],
            interpolation=config["interpolation"],
            crop_mode=config["crop_mode"],
        )


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 (B, 3, H, W) 0..255 -> float32 (B, 3, H, W), zero mean and unit deviation per channel."""
    if images.device.type != "cpu" or not len(images):
        return _arithmetic(images, mean, std)
    # Looked up by one thread. Those of torch share the cores with the processes that load, and wait for one another in
    # each of the four operations: with two workers on two cores that took 1.1 ms an image instead of 0.1.
    normalised = torch.empty(images.shape)
    for channel, table in enumerate(_tables(mean, std)):
        values = images[:, channel].flatten(1).numpy()
        cv2.LUT(values, table, normalised[:, channel].flatten(1).numpy())
    return normalised


def _arithmetic(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (images.float() / 255 - _per_channel(mean, images.device)) / _per_channel(std, images.device)


@functools.cache
def _tables(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """float32 (3, 1, 256): what each value of a channel becomes."""
    every = torch.arange(256, dtype=torch.uint8).expand(1, len(mean), 1, 256)
    return _arithmetic(every, mean, std)[0].numpy()


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # kept: copying them to a GPU anew would make it wait at every step
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(-1, 1, 1)

"""What images go through on their way to the model: augmentation in training, timm's own transform in evaluation."""

import functools
import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

# albumentations asks the network for newer versions of itself when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pipeline.data import rand_augment
from pipeline.data.images import Picture
from pipeline.data.view import View

# Workers are processes already; OpenCV's own threads would only fight with torch's.
cv2.setNumThreads(0)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a training image goes through. Belongs to the dataset: a mirrored digit is not a digit."""

    crop_scale: tuple[float, float] | None = None
    """share of the area that a random crop keeps; None: all of the image, resized without regard to its proportions"""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """width / height of the random crop"""
    flip: float = 0.0
    """share of images that are mirrored"""
    affine: float = 0.0
    """share of images turned by up to 6 degrees, shifted by up to 3 % and scaled by up to 5 %"""
    rand_augment: str | None = None
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1"""
    colour_jitter: float = 0.0
    """brightness, contrast and saturation are multiplied by 1 - this to 1 + this"""
    erasing: float = 0.0
    """share of images in which a rectangle of 2 % to 33 % of the area becomes noise"""
    repeats: int = 1
    """how often an image occurs in an epoch, each time differently; an epoch has as many images in all"""

    def __post_init__(self) -> None:
        for name in ("flip", "affine", "colour_jitter", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale={self.crop_scale} must be two shares of the area, the smaller one first")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio={self.crop_ratio} must be two ratios, the smaller one first")
        if self.repeats < 1:
            raise ValueError(f"repeats={self.repeats} must be at least 1")
        if self.rand_augment is not None:
            rand_augment.parse(self.rand_augment)


DIGITS = Augmentation(affine=0.5)
LIGHT = Augmentation(crop_scale=(0.4, 1.0), flip=0.5)  # for a pretrained model on some thousand images
CIFAR = Augmentation(crop_scale=(0.4, 1.0), flip=0.5, rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25)
# DeiT's published settings. They also name a colour jitter (0.3), which timm leaves out where there is RandAugment.
DEIT = Augmentation(crop_scale=(0.08, 1.0), flip=0.5, rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25, repeats=3)


def train_transform(config: Augmentation, size: int) -> "_TrainTransform":
    """(picture, seed) -> uint8 (size, size, 3) RGB; the same for the same picture and seed, whatever ran before.

    The crop is drawn first, so that a JPEG is decoded at the smallest scale that still holds `size` pixels of the crop.
    """
    return _TrainTransform(config, size)


class Draw(random.Random):
    """The random numbers of one image."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.origin = seed

    @functools.cached_property
    def numpys(self) -> np.random.Generator:
        """For albumentations' steps; making it takes longer than most steps."""
        return np.random.default_rng(self.origin)


class _TrainTransform:
    def __init__(self, config: Augmentation, size: int) -> None:
        self.config, self.size = config, size
        self.steps: list[Callable[[np.ndarray, Draw], np.ndarray]] = []
        if config.flip:
            self.steps.append(Flip(config.flip))
        if config.affine:
            self.steps.append(
                _Step(A.Affine(rotate=(-6, 6), translate_percent=(-0.03, 0.03), scale=(0.95, 1.05), p=config.affine))
            )
        if config.rand_augment is not None:
            self.steps.append(RandAugment(config.rand_augment))
        if config.colour_jitter:
            factors = (1 - config.colour_jitter, 1 + config.colour_jitter)
            self.steps.append(
                _Step(A.ColorJitter(brightness=factors, contrast=factors, saturation=factors, hue=(0, 0), p=1))
            )
        if config.erasing:
            self.steps.append(RandomErasing(config.erasing))

    def __call__(self, picture: Picture, seed: int) -> np.ndarray:
        draw = Draw(seed)
        if self.config.crop_scale is None:
            image = picture.pixels()
        else:
            box = random_box(picture.height, picture.width, self.config.crop_scale, self.config.crop_ratio, draw)
            image = _cropped(picture, box, self.size)
        image = _resized(image, self.size)
        for step in self.steps:
            image = step(image, draw)
        return image


class _Step:
    """A step of albumentations. Its own call is 50 us; what needs no more than a line has one here instead."""

    def __init__(self, step: A.BasicTransform) -> None:
        self.step = step

    def __call__(self, image: np.ndarray, draw: Draw) -> np.ndarray:
        # not in A.Compose: given a seed, it gives every step the same random numbers, so that flips decide on the rest
        self.step.set_random_state(draw.numpys, draw)
        return self.step(image=image)["image"]


def random_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draw: random.Random
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random resized crop, as albumentations 2.0.8 draws it, and torchvision.

    height, width: of the image; scale: share of its area; ratio: width by height
    """
    area, log_ratio = height * width, (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        target, aspect = draw.uniform(scale[0] * area, scale[1] * area), math.exp(draw.uniform(*log_ratio))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            down, across = draw.random(), draw.random()
            left, top = int((width - w + 1) * across), int((height - h + 1) * down)
            return left, top, left + w, top + h
    # the largest box of an allowed ratio, in the middle
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class Flip:
    """Some images are mirrored."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: np.ndarray, draw: random.Random) -> np.ndarray:
        return cv2.flip(image, 1) if draw.random() < self.p else image


def _cropped(picture: Picture, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """What lies in the box (left, top, right, bottom), at the smallest scale with `size` pixels in both directions."""
    left, top, right, bottom = box
    reduction = next((r for r in (8, 4, 2) if min(right - left, bottom - top) >= r * size), 1)
    pixels = picture.pixels(reduction)
    if pixels.shape[0] < picture.height:
        left, top, right, bottom = (round(edge / reduction) for edge in box)
    return pixels[top:bottom, left:right]


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """Bicubic, after some smoothing in a direction in which the image shrinks; from a half on, the mean over the area.

    On photos that comes to 42 dB and more of timm's antialiased bicubic, and to about 10 % of its sharpness, in a
    fifth of the time. Bilinear would take half of that, but its images are up to a third sharper than evaluation's.
    """
    y, x = image.shape[0] / size, image.shape[1] / size
    if max(y, x) >= 2:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    if max(y, x) > 1:  # 0.36 comes closest to timm's
        image = cv2.GaussianBlur(image, (3 if x > 1 else 1, 3 if y > 1 else 1), sigmaX=0.36 * x, sigmaY=0.36 * y)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)


class RandAugment:
    """timm's RandAugment; `recipe` as `rand_augment.parse` takes it. Operations are drawn with replacement."""

    def __init__(self, recipe: str) -> None:
        self.magnitude, self.deviation, self.count, self.probability = rand_augment.parse(recipe)

    def __call__(self, image: np.ndarray, draw: random.Random) -> np.ndarray:
        for name, level in self.chosen(draw):
            image = rand_augment.OPERATIONS[name](image, level)
        return image

    def chosen(self, draw: random.Random) -> list[tuple[str, float]]:
        """Names and levels of the operations for one image."""
        chosen = []
        for name in draw.choices(tuple(rand_augment.OPERATIONS), k=self.count):
            if draw.random() < self.probability:
                level = min(max(draw.gauss(self.magnitude, self.deviation), 0.0), 10.0) / 10
                chosen.append((name, level if draw.random() < 0.5 else -level))
        return chosen


class RandomErasing:
    """A rectangle becomes noise with the mean and deviation of natural images.

    That is timm's `pixel` mode, but timm erases after normalising: with the mean and deviation that the model expects,
    and without cutting anything off (here 3 % of the noise is, at 0 or 255).
    Source: timm 1.0.31, data/random_erasing.py.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: np.ndarray, draw: random.Random) -> np.ndarray:
        if draw.random() >= self.p:
            return image
        height, width = image.shape[:2]
        for _ in range(10):
            area = draw.uniform(0.02, 1 / 3) * height * width
            aspect = math.exp(draw.uniform(math.log(0.3), -math.log(0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                noise = np.frombuffer(draw.randbytes(3 * h * w), np.uint8).reshape(h, w, 3)
                top, left = draw.randint(0, height - h), draw.randint(0, width - w)
                image = image.copy()
                image[top : top + h, left : left + w] = cv2.LUT(noise, _NORMAL)
                return image
        return image


# From uniform bytes to normal noise: the (byte + 0.5) / 256 quantile, for each channel.
_QUANTILES = [[NormalDist().inv_cdf((byte + 0.5) / 256)] for byte in range(256)]
_VALUES = 255 * (np.array(_QUANTILES) * IMAGENET_DEFAULT_STD + IMAGENET_DEFAULT_MEAN)
_NORMAL = _VALUES.clip(0, 255).round().astype(np.uint8)[None]


LARGEST_RESIZED = 100_000_000
"""pixels: the resized form of a narrow strip can be far larger, and would not fit into memory"""


def eval_transform(view: View) -> "_EvalTransform":
    """picture -> uint8 (size, size, 3) RGB: what timm's create_transform makes of it for this model, to the bit.

    Of strips whose resized form has more than LARGEST_RESIZED pixels only the part that the crop keeps is made, which
    may differ from timm's by some grey levels. What comes out may be the picture's own memory: not to be written to.
    """
    return _EvalTransform(view)


class _EvalTransform:
    def __init__(self, view: View) -> None:
        self.view = view
        self.method = Image.Resampling[view.interpolation.upper()]

    def __call__(self, picture: Picture) -> np.ndarray:
        size, pixels = self.view.size, picture.pixels()
        height, width = self._resized_shape(picture)
        top, left = round((height - size) / 2), round((width - size) / 2)  # Python rounds halves to even, as timm does
        if height * width > LARGEST_RESIZED:
            y, x = picture.height / height, picture.width / width
            box = (left * x, top * y, (left + size) * x, (top + size) * y)
            return np.asarray(Image.fromarray(pixels).resize((size, size), self.method, box))
        if (height, width) != pixels.shape[:2]:
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), self.method))
        return pixels[top : top + size, left : left + size]

    def _resized_shape(self, picture: Picture) -> tuple[int, int]:
        """Height and width before the crop."""
        side = _side(self.view)
        if self.view.crop_mode == "squash":
            return side, side
        if picture.width <= picture.height:
            return int(side * picture.height / picture.width), side
        return side, int(side * picture.width / picture.height)


def resize_rule(view: View) -> dict[str, Any]:
    """What eval_transform does, for apps that repeat it in another language.

    It is enough to repeat it to the bit (`tests/test_augment.py` does, in numpy alone), in float32 to a grey level.
    """
    square = view.crop_mode == "squash"
    kernels = {
        "bicubic": "a = -0.5; |x| < 1: (a + 2) |x|^3 - (a + 3) |x|^2 + 1; |x| < 2: a (|x|^3 - 5 |x|^2 + 8 |x| - 4)",
        "bilinear": "|x| < 1: 1 - |x|",
    }
    return {
        "shorter_side": _side(view),
        "longer_side": "shorter_side" if square else "shorter_side * longer / shorter of the input, rounded down",
        "interpolation": view.interpolation,
        "kernel": f"{kernels[view.interpolation]}; else 0",
        "antialias": True,
        "scale": "inputs / outputs along an axis",
        "weight": "of input j for output i: kernel((j + 0.5 - (i + 0.5) * scale) / max(scale, 1)) / the sum of these",
        "weight_precision": "rounded to multiples of 2^-22",
        "passes": "along x, then along y, each rounded (halves up) and cut off to 0..255",
        "passes_swapped": "if the number of rows shrinks, and by more than twice as much as the number of columns",
        "centre_crop": view.size,
        "crop_offset": "(side - centre_crop) / 2, halves rounded to the even number",
    }


def _side(view: View) -> int:
    """Shorter side of the resized image."""
    return math.floor(view.size / view.crop_ratio)

"""RandAugment's operations, with timm's names and magnitudes, for uint8 (H, W, 3) RGB.

Every operation takes a level in -1..1: magnitude / 10, and a sign for those with two directions, which others ignore.
Photometric operations give the values that timm's give, but for a grey level where Pillow and OpenCV round differently.
Geometric ones take their samples where timm's do, but with OpenCV's bicubic kernel, less steep than Pillow's, and at
the edge of the image they blend into the fill colour instead of changing to it.
Source: timm 1.0.31, data/auto_augment.py; Pillow's ImageOps and ImageEnhance.
"""

import math
import re
from collections.abc import Callable

import cv2
import numpy as np
from timm.data.constants import IMAGENET_DEFAULT_MEAN

FILL = tuple(round(255 * channel) for channel in IMAGENET_DEFAULT_MEAN)
"""colour of what comes into view from outside the image"""
Operation = Callable[[np.ndarray, float], np.ndarray]


def parse(recipe: str) -> tuple[float, float, int, float]:
    """Magnitude, its standard deviation, number of operations for an image, the probability of each.

    recipe: timm's notation, as in `rand-m9-mstd0.5-inc1`: m magnitude 0..10, mstd its standard deviation (default 0),
            inc1 operations that grow stronger with it (there are no others), n how many (2), p their probability (0.5)
    Raises ValueError for what is not understood, or is out of range.
    """
    name, *settings = recipe.split("-")
    matches = (re.fullmatch(r"(m|mstd|n|p|inc)(\d+(?:\.\d+)?)", setting) for setting in settings)
    found = {match[1]: match[2] for match in matches if match}
    if name != "rand" or len(found) != len(settings) or "m" not in found or found.get("inc") != "1":
        raise ValueError(f"rand_augment={recipe!r} must be like rand-m9-mstd0.5-inc1 (and may set n and p)")
    magnitude, p, count = float(found["m"]), float(found.get("p", 0.5)), float(found.get("n", 2))
    deviation = float(found.get("mstd", 0))
    if magnitude > 10 or deviation > 10 or p > 1 or count != int(count):
        raise ValueError(f"rand_augment={recipe!r}: m and mstd go up to 10, p up to 1, n is a whole number")
    return magnitude, deviation, int(count), p


def auto_contrast(image: np.ndarray, level: float) -> np.ndarray:
    """Each channel stretched to 0..255."""
    table = np.arange(256.0).repeat(3).reshape(256, 3)
    for channel, values in enumerate(cv2.split(image)):
        lowest, highest, _, _ = cv2.minMaxLoc(values)
        if highest > lowest:
            scale = 255 / (highest - lowest)
            table[:, channel] = table[:, channel] * scale - lowest * scale
    return _look_up(image, table)


def equalize(image: np.ndarray, level: float) -> np.ndarray:
    """Each channel's values spread so that they occur about equally often."""
    table = np.arange(256.0).repeat(3).reshape(256, 3)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        if step:
            table[:, channel] = (step // 2 + np.cumsum(counts) - counts) // step
    return _look_up(image, table)


def invert(image: np.ndarray, level: float) -> np.ndarray:
    return cv2.bitwise_not(image)


def rotate(image: np.ndarray, level: float) -> np.ndarray:
    """By up to 30 degrees about the centre."""
    height, width = image.shape[:2]
    cosine, sine = math.cos(math.radians(30 * level)), math.sin(math.radians(30 * level))
    x, y = width / 2, height / 2
    return _warp(image, (cosine, -sine, x - cosine * x + sine * y), (sine, cosine, y - sine * x - cosine * y))


def posterize(image: np.ndarray, level: float) -> np.ndarray:
    """4 to 1 bits kept. (timm goes on to 0 bits, a black image: Pillow 13 refuses that.)"""
    return _look_up(image, np.arange(256) & -(2 ** (4 + min(int(abs(level) * 4), 3))))


def solarize(image: np.ndarray, level: float) -> np.ndarray:
    """Values from a threshold of 256 to 0 on inverted."""
    values = np.arange(256)
    return _look_up(image, np.where(values < 256 - int(abs(level) * 256), values, 255 - values))


def solarize_add(image: np.ndarray, level: float) -> np.ndarray:
    """Up to 110 added to the dark half of the values."""
    values = np.arange(256)
    return _look_up(image, np.where(values < 128, values + int(abs(level) * 110), values))


def color(image: np.ndarray, level: float) -> np.ndarray:
    """Saturation times 0.1 to 1.9."""
    return _blend(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), image, level)


def contrast(image: np.ndarray, level: float) -> np.ndarray:
    """Distance from the image's mean grey times 0.1 to 1.9."""
    grey = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _look_up(image, grey + _factor(level) * (np.arange(256, dtype=np.float32) - grey))


def brightness(image: np.ndarray, level: float) -> np.ndarray:
    """Values times 0.1 to 1.9."""
    return _look_up(image, _factor(level) * np.arange(256, dtype=np.float32))


def sharpness(image: np.ndarray, level: float) -> np.ndarray:
    """Distance from the smoothed image times 0.1 to 1.9."""
    smooth = image.copy()  # its outermost pixels stay as they are
    if min(image.shape[:2]) > 2:
        smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
    return _blend(smooth, image, level)


_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def shear_x(image: np.ndarray, level: float) -> np.ndarray:
    """By up to 0.3 of the height."""
    return _warp(image, (1, 0.3 * level, 0), (0, 1, 0))


def shear_y(image: np.ndarray, level: float) -> np.ndarray:
    """By up to 0.3 of the width."""
    return _warp(image, (1, 0, 0), (0.3 * level, 1, 0))


def translate_x(image: np.ndarray, level: float) -> np.ndarray:
    """By up to 0.45 of the width."""
    return _warp(image, (1, 0, 0.45 * level * image.shape[1]), (0, 1, 0))


def translate_y(image: np.ndarray, level: float) -> np.ndarray:
    """By up to 0.45 of the height."""
    return _warp(image, (1, 0, 0), (0, 1, 0.45 * level * image.shape[0]))


OPERATIONS: dict[str, Operation] = {  # timm's names and order
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Rotate": rotate,
    "PosterizeIncreasing": posterize,
    "SolarizeIncreasing": solarize,
    "SolarizeAdd": solarize_add,
    "ColorIncreasing": color,
    "ContrastIncreasing": contrast,
    "BrightnessIncreasing": brightness,
    "SharpnessIncreasing": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateXRel": translate_x,
    "TranslateYRel": translate_y,
}


def _factor(level: float) -> np.float32:
    """1 is no change."""
    return np.float32(max(0.1, 1 + 0.9 * level))


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Every value replaced by its entry, cut off to 0..255 and rounded down as Pillow does.

    table: (256,), or (256, 3) with one column for each channel
    """
    entries = table.clip(0, 255).astype(np.uint8)
    return cv2.LUT(image, np.ascontiguousarray(entries.reshape(1, 256, -1)))


def _blend(plain: np.ndarray, image: np.ndarray, level: float) -> np.ndarray:
    """plain + factor * (image - plain), rounded down as Pillow does."""
    factor = float(_factor(level))
    return cv2.addWeighted(image, factor, plain, 1 - factor, -0.499)  # as OpenCV rounds to the nearest


def _warp(image: np.ndarray, x: tuple[float, float, float], y: tuple[float, float, float]) -> np.ndarray:
    """The pixel whose centre is (u, v) is taken from (x . (u, v, 1), y . (u, v, 1)), Pillow's way to describe it.

    Pillow has pixel centres at halves, OpenCV at whole numbers.
    """
    matrix = np.array([x, y], np.float64)
    matrix[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
    return cv2.warpAffine(
        image,
        matrix,
        image.shape[1::-1],
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=FILL,
    )

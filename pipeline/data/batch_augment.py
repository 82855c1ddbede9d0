"""The recipes of augment.py for a whole batch at a time, on the device that the images are on.

What happens to which image is drawn on the CPU, for all images at once; nothing waits for the device. The recipes are
augment.py's, the pixels are not: torch interpolates, and the random numbers are others.
B batch, b the images of it that one operation is for, S output height and width
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms.v2.functional import autocontrast, equalize

from pipeline.data import rand_augment
from pipeline.data.augment import Augmentation

Array = np.ndarray
Range = tuple[float, float]
Fill = tuple[int, ...]
"""RGB of what comes into view from outside the image"""

ENHANCEMENT = 0.9
"""how far the strongest enhancement of an image goes from 1, which is none"""


def augment_batch(config: Augmentation, images: Tensor, size: int, draw: np.random.Generator) -> Tensor:
    """A recipe on a batch: uint8 (B, 3, H, W) -> uint8 (B, 3, size, size) on the same device.

    Images are to be no larger than `size`, where a crop would have to shrink; without a crop they have that size.
    """
    count, (height, width) = len(images), images.shape[2:]
    boxes = np.tile([0, 0, width, height], (count, 1))
    if config.crop_scale is not None:
        boxes = random_boxes(count, height, width, config.crop_scale, config.crop_ratio, draw)
    if config.crop_scale is not None or config.flip:
        images = crop_and_flip(images, boxes, draw.random(count) < config.flip, size)
    else:
        images = images.clone()  # some of what follows overwrites its images
    if config.affine:
        images = small_affine(images, draw.random(count) < config.affine, draw)
    if config.rand_augment is not None:
        images = random_operations(config.rand_augment, images, draw)
    if config.colour_jitter:
        # in one order for the whole batch, where the other mode has one for every image
        for name in draw.permutation(["BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing"]):
            change = draw.uniform(-config.colour_jitter, config.colour_jitter, count)
            images = OPERATIONS[name](images, change / ENHANCEMENT)
    if config.erasing:
        images = erase(images, draw.random(count) < config.erasing, draw)
    return images


def crop_and_flip(images: Tensor, boxes_B4: Array, flip_B: Array, size: int) -> Tensor:
    """Boxes of images, some of them mirrored, resized to size x size with bicubic interpolation.

    images:   uint8 (B, 3, H, W)
    boxes_B4: left, top, width, height in pixels
    flip_B:   bool
    """
    height, width = images.shape[2:]
    left, top, w, h = boxes_B4.T
    theta = np.zeros((len(images), 2, 3))
    theta[:, 0, 0], theta[:, 0, 2] = np.where(flip_B, -w, w) / width, (2 * left + w) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = h / height, (2 * top + h) / height - 1
    return _rounded(_sample(images.float(), theta, size, "bicubic", "border"))


def random_boxes(count: int, height: int, width: int, scale: Range, ratio: Range, draw: np.random.Generator) -> Array:
    """(count, 4) left, top, width, height in whole pixels of random resized crops, as torchvision draws them.

    height, width: of the images; scale: share of their area; ratio: width by height
    """
    area = height * width * draw.uniform(*scale, (count, 10))
    aspect = np.exp(draw.uniform(math.log(ratio[0]), math.log(ratio[1]), (count, 10)))
    w, h = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    rows, first, missed = np.arange(count), fits.argmax(1), ~fits.any(1)
    # ten misses: the largest box of an allowed ratio, in the middle
    w = np.where(missed, min(width, round(height * ratio[1])), w[rows, first])
    h = np.where(missed, min(height, round(width / ratio[0])), h[rows, first])
    left, top = (np.where(missed, 0.5, draw.random(count)) * (room + 1) // 1 for room in (width - w, height - h))
    return np.stack([left, top, w, h], 1)


def move(images: Tensor, x: tuple, y: tuple, mode: str, fill: Fill) -> Tensor:
    """Images turned, sheared, scaled and shifted; uint8 (B, 3, S, S) both.

    x, y: the output pixel (u, v) is taken from (x . (u, v, 1), y . (u, v, 1)), counted from the centre; numbers or (B,)
    """
    half = images.shape[3] / 2
    theta = np.stack([np.broadcast_to(value, len(images)) for value in (*x, *y)], 1).reshape(-1, 2, 3)
    theta = theta / [1, 1, half]  # affine_grid counts from -1 to 1
    colour = send(np.array(fill, np.float32).reshape(3, 1, 1), images.device)
    return _rounded(_sample(images.float() - colour, theta, images.shape[3], mode, "zeros") + colour)


def small_affine(images: Tensor, applied_B: Array, draw: np.random.Generator) -> Tensor:
    """Up to 6 degrees, 3 % of the size in whole pixels and 5 % larger or smaller, in both directions; black outside."""
    count, size = len(images), images.shape[3]
    angle_B = np.deg2rad(draw.uniform(-6, 6, count)) * applied_B
    right_B, down_B = np.trunc(draw.uniform(-0.03, 0.03, (2, count)) * size) * applied_B
    wider_B, higher_B = np.where(applied_B, draw.uniform(0.95, 1.05, (2, count)), 1)
    cos, sin = np.cos(angle_B), np.sin(angle_B)
    x = (cos / wider_B, sin / wider_B, -(cos * right_B + sin * down_B) / wider_B)
    y = (-sin / higher_B, cos / higher_B, (sin * right_B - cos * down_B) / higher_B)
    return move(images, x, y, "bilinear", (0, 0, 0))


def erase(images: Tensor, applied_B: Array, draw: np.random.Generator) -> Tensor:
    """Some images get a rectangle of noise, of augment.RandomErasing's sizes and colours; in place."""
    rows, size = np.flatnonzero(applied_B), images.shape[3]
    if not len(rows):
        return images
    left, top, w, h = random_boxes(len(rows), size, size, (0.02, 1 / 3), (0.3, 1 / 0.3), draw).T.astype(np.float32)
    place = torch.arange(size, device=images.device)
    across = (place >= _column(left, images)) & (place < _column(left + w, images))
    down = (place >= _column(top, images)) & (place < _column(top + h, images))
    generator = torch.Generator(images.device).manual_seed(int(draw.integers(2**62)))
    noise = torch.randn((len(rows), 3, size, size), generator=generator, device=images.device)
    for channel, (mean, std) in enumerate(zip(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True)):
        noise[:, channel].mul_(255 * std).add_(255 * mean)
    index = send(rows, images.device)
    images[index] = torch.where(across & down.mT, _rounded(noise), images[index])
    return images


def _sample(images: Tensor, theta: Array, size: int, mode: str, padding: str) -> Tensor:
    theta_B23 = send(theta.astype(np.float32), images.device)
    grid = F.affine_grid(theta_B23, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=False)


def _rounded(images: Tensor) -> Tensor:
    return images.round_().clamp_(0, 255).byte()


def send(values: Array, device: torch.device) -> Tensor:
    """An array on a device, without waiting for what that is doing."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def random_operations(recipe: str, images: Tensor, draw: np.random.Generator) -> Tensor:
    """RandAugment: rand_augment.py's operations, each for those images of the batch that drew it, in place.

    recipe: as rand_augment.parse takes it
    images: uint8 (B, 3, S, S)
    """
    magnitude, deviation, count, p = rand_augment.parse(recipe)
    for _ in range(count):
        chosen_B = np.where(draw.random(len(images)) < p, draw.integers(0, len(OPERATIONS), len(images)), -1)
        level_B = draw.normal(magnitude, deviation, len(images)).clip(0, 10) / 10
        level_B *= draw.choice([-1, 1], len(images))
        for number, operation in enumerate(OPERATIONS.values()):
            if len(rows := np.flatnonzero(chosen_B == number)):
                index = send(rows, images.device)
                images[index] = operation(images[index], level_B[rows])
    return images


def _column(values: Array, images: Tensor) -> Tensor:
    return send(values.astype(np.float32).reshape(-1, 1, 1, 1), images.device)


def _moved(images: Tensor, x: tuple = (1, 0, 0), y: tuple = (0, 1, 0)) -> Tensor:
    return move(images, x, y, "bicubic", rand_augment.FILL)


def _rotate(images: Tensor, level_b: Array) -> Tensor:
    cos, sin = np.cos(np.deg2rad(30 * level_b)), np.sin(np.deg2rad(30 * level_b))
    return _moved(images, (cos, -sin, 0), (sin, cos, 0))


def _shear_x(images: Tensor, level_b: Array) -> Tensor:
    factor_b = 0.3 * level_b
    return _moved(images, x=(1, factor_b, factor_b * images.shape[2] / 2))  # the top row stays


def _shear_y(images: Tensor, level_b: Array) -> Tensor:
    factor_b = 0.3 * level_b
    return _moved(images, y=(factor_b, 1, factor_b * images.shape[3] / 2))  # the left column stays


def _translate_x(images: Tensor, level_b: Array) -> Tensor:
    return _moved(images, x=(1, 0, 0.45 * level_b * images.shape[3]))


def _translate_y(images: Tensor, level_b: Array) -> Tensor:
    return _moved(images, y=(0, 1, 0.45 * level_b * images.shape[2]))


def _posterize(images: Tensor, level_b: Array) -> Tensor:
    dropped_b = 4 + np.minimum((4 * abs(level_b)).astype(int), 3)
    return images & send((256 - 2**dropped_b).astype(np.uint8).reshape(-1, 1, 1, 1), images.device)


def _solarize(images: Tensor, level_b: Array) -> Tensor:
    return torch.where(images < _column(256 - (256 * abs(level_b)).astype(int), images), images, 255 - images)


def _solarize_add(images: Tensor, level_b: Array) -> Tensor:
    brighter = images + _column((110 * abs(level_b)).astype(int), images)
    return torch.where(images < 128, brighter.clamp_(max=255).byte(), images)


def _blend(plain: Tensor, images: Tensor, level_b: Array) -> Tensor:
    """plain + factor * (images - plain), factor 0.1 to 1.9, rounded down as Pillow does."""
    factor = _column(np.maximum(0.1, 1 + ENHANCEMENT * level_b), images)
    return torch.lerp(plain, images.float(), factor).clamp_(0, 255).byte()


def _grey(images: Tensor) -> Tensor:
    """float (b, 1, S, S) of whole numbers, Pillow's."""
    red, green, blue = images.int().split(1, 1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).float()


def _sharpness(images: Tensor, level_b: Array) -> Tensor:
    smooth = images.float()  # its outermost pixels stay as they are
    smooth[..., 1:-1, 1:-1] = ((9 * F.avg_pool2d(smooth, 3, 1) + 4 * smooth[..., 1:-1, 1:-1]) / 13).round_()
    return _blend(smooth, images, level_b)


OPERATIONS: dict[str, Callable[[Tensor, Array], Tensor]] = {
    "AutoContrast": lambda images, _: autocontrast(images),
    "Equalize": lambda images, _: equalize(images),
    "Invert": lambda images, _: 255 - images,
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": lambda images, level_b: _blend(_grey(images), images, level_b),
    "ContrastIncreasing": lambda images, level_b: _blend(_grey(images).mean((2, 3), True).round(), images, level_b),
    "BrightnessIncreasing": lambda images, level_b: _blend(images.new_zeros((), dtype=torch.float), images, level_b),
    "SharpnessIncreasing": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
}
"""rand_augment.py's, by the same names: (uint8 (b, 3, S, S), level_b of -1..1) -> uint8 (b, 3, S, S)"""

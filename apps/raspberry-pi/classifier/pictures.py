"""Pictures as the model wants them: upright, RGB, resized and cut by the manifest's rule, the pipeline's own."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from targets.manifest import InputSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
LARGEST_RESIZED = 100_000_000
"""pixels of a resized strip above which only the part that is kept is made"""


def read(source: Path | bytes, where: str) -> np.ndarray:
    """RGB (H, W, 3) uint8 of an image file, turned as its EXIF says. Raises ValueError that names it."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):  # 16 bits: the upper 8, where Pillow would cut off all above 255
                values = np.asarray(upright)
                if upright.mode == "F" or values.min() < 0 or values.max() >= 2**16:
                    raise ValueError("it holds 32-bit values of an unknown range")
                return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1)
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError as error:
        raise ValueError(f"{where}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{where} is no image that can be read here") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} cannot be read as an image: {error}") from error


def fit(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """RGB (H, W, 3) uint8 of any size -> (spec.height, spec.width, 3) uint8.

    To the bit what the pipeline's evaluation makes of it (pipeline/augment.py); both use Pillow.
    """
    rule, size = spec.resize, spec.resize["centre_crop"]
    shorter = rule["shorter_side"]
    height, width = pixels.shape[:2]
    if rule["longer_side"] == "shorter_side":
        tall, wide = shorter, shorter
    else:
        tall = shorter if height <= width else int(shorter * height / width)
        wide = shorter if width <= height else int(shorter * width / height)
    method = Image.Resampling[rule["interpolation"].upper()]
    top, left = round((tall - size) / 2), round((wide - size) / 2)  # halves to even
    if tall * wide > LARGEST_RESIZED:
        y, x = height / tall, width / wide
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        return np.asarray(Image.fromarray(pixels).resize((size, size), method, box))
    if (tall, wide) != (height, width):
        pixels = np.asarray(Image.fromarray(pixels).resize((wide, tall), method))
    return pixels[top : top + size, left : left + size]


def preview(pixels: np.ndarray, longest: int = 640) -> bytes:
    """A JPEG of the picture, its longer side at most `longest` pixels."""
    image = Image.fromarray(pixels)
    scale = min(1.0, longest / max(image.size))
    if scale < 1:
        image = image.resize((math.ceil(image.width * scale), math.ceil(image.height * scale)), reducing_gap=2.0)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return stream.getvalue()

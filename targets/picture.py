"""What an image file holds, by Pillow: what the pipeline and the apps on boards read alike, to the bit."""

import warnings

import numpy as np
from PIL import ExifTags, Image, features

AVIF = "avif" in features.get_supported_modules()
"""a board's own Pillow may be too old for it"""
# PostScript is left out: it is a program
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", *(["AVIF"] if AVIF else []), "PPM")
# Pillow refuses more than twice its limit (179 million pixels), which no photo has and a decompression bomb does. Above
# the limit itself (89 million) it only warns: phones take such photos, and there is nothing to be done about it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def rgb(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3) RGB as stored, not turned yet; of 16 bits the upper 8. Raises ValueError for 32-bit values."""
    if not image.mode.startswith(("I", "F")):
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image)  # Pillow itself would cut off all above 255
    if image.mode == "F" or values.min() < 0 or values.max() >= 2**16:
        raise ValueError("it holds 32-bit values of an unknown range: save it with 8 or 16 bits")
    return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1)


def orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF has it. Of a loaded image: in a PNG it may follow the pixels, and Pillow itself turns a TIFF."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF data that is damaged says nothing about the pixels: they are shown as stored
        return 1

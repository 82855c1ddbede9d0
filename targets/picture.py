"""Which files are images, and what those hold, by Pillow: what the pipeline and the apps on boards read alike."""

import re
import warnings
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, features

AVIF = "avif" in features.get_supported_modules()
"""a board's own Pillow may be too old for it"""
# PostScript is left out: it is a program
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", *(["AVIF"] if AVIF else []), "PPM")
# HEIC is here although nothing reads it: such a file must be named as unreadable, not left out in silence.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif"),
)
"""of files that are taken for images whatever they hold, in lower case"""
# What macOS, Windows and network disks leave beside the files; so do names that begin with a dot.
JUNK = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
HEAD = 64
"""bytes at the beginning of a file that `is_image` looks at"""
# Many a data set has as many of them as images: it is not worth opening those.
_TEXTS = (".txt", ".xml", ".json", ".csv")
# TIFFs by their first bytes, of which only a small preview could be read.
_RAW = (".dng", ".nef", ".nrw", ".arw", ".sr2", ".cr2", ".pef", ".srw", ".orf", ".rw2", ".3fr", ".erf")
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s|....ftyp(avif|avis|heic|heix|mif1)",
    re.DOTALL,
)
# Pillow refuses more than twice its limit (179 million pixels), which no photo has and a decompression bomb does. Above
# the limit itself (89 million) it only warns: phones take such photos, and there is nothing to be done about it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by EXIF orientation
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: np.rot90(pixels),
}


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is nobody's picture."""
    return name.startswith(".") or name.lower() in JUNK


def may_be_image(name: str) -> bool:
    """Whether a file whose suffix is none of SUFFIXES should be opened, for `is_image` to decide."""
    return not name.lower().endswith(_TEXTS + _RAW)


def is_image(head: bytes) -> bool:
    """Whether a file with these first HEAD bytes is an image, of a kind that is read here or HEIC."""
    return _MAGIC.match(head) is not None


def why_unreadable(head: bytes) -> str | None:
    """What is known of a file with these first bytes that no decoder here takes; None: nothing."""
    if not head:
        return "it is empty"
    if head[4:8] != b"ftyp":
        return None
    if head[8:12] in (b"heic", b"heix", b"mif1"):
        return "it is HEIC, which is not supported: convert it to JPEG"
    if head[8:12] in (b"avif", b"avis") and not AVIF:
        return "it is AVIF, for which the installed Pillow is too old: convert it to JPEG"
    return None


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


def upright(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3) RGB, decoded and turned as its EXIF says: to the bit what the pipeline reads (data/images.py).

    Raises ValueError as `rgb` does, and whatever Pillow does.
    """
    image.load()
    return np.ascontiguousarray(_UPRIGHT.get(orientation(image), np.asarray)(rgb(image)))

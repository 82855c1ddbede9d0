"""Pictures as the model wants them: upright, RGB, resized and cut by the manifest's rule, the pipeline's own."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from targets import resize
from targets.manifest import InputSpec
from targets.picture import (
    FORMATS,
    HEAD,
    SUFFIXES,
    is_image,
    is_junk,
    may_be_image,
    upright,
    why_unreadable,
)


def inside(folder: Path) -> list[Path]:
    """The pictures at any depth below a folder, without junk: what the pipeline would find, but for linked folders.

    Raises ValueError if there is none, or the folder may not be read.
    """
    found: list[Path] = []
    try:
        pending = [folder]
        while pending:
            for path in pending.pop().iterdir():
                if is_junk(path.name):
                    continue
                if path.is_dir():
                    if not path.is_symlink():  # it may lead upwards
                        pending.append(path)
                elif path.suffix.lower() in SUFFIXES or (may_be_image(path.name) and is_image(_head(path))):
                    found.append(path)
    except OSError as error:
        raise ValueError(f"{error.filename or folder} cannot be listed: {error.strerror}") from error
    if not found:
        raise ValueError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    return sorted(found)


def _head(path: Path) -> bytes:
    """The first bytes of an ordinary file; nothing of any other, or of one that cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def read(path: Path) -> np.ndarray:
    """RGB (H, W, 3) uint8 of an image file, turned as its EXIF says. Raises ValueError that says why it cannot be.

    To the bit what the pipeline reads (pipeline/data/images.py).
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return upright(image)
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except UnidentifiedImageError as error:
        raise ValueError(why_unreadable(_head(path)) or "this is no image that can be read here") from error
    except Exception as error:  # hostile bytes make decoders fail in any way
        raise ValueError(f"this cannot be read as an image: {str(error) or type(error).__name__}") from error


def fit(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """RGB (H, W, 3) uint8 of any size -> (spec.height, spec.width, 3) uint8, by the manifest's rule."""
    return resize.fit(pixels, resize.Resize.of(spec.resize))


def preview(pixels: np.ndarray, longest: int = 640) -> bytes:
    """A JPEG of the picture, its longer side at most `longest` pixels."""
    image = Image.fromarray(pixels)
    scale = min(1.0, longest / max(image.size))
    if scale < 1:
        image = image.resize((math.ceil(image.width * scale), math.ceil(image.height * scale)), reducing_gap=2.0)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return stream.getvalue()

"""Image files to pixels: any common format, upright, 8-bit RGB, equal to what Pillow makes of them.

Grey and palette images become RGB. Transparency is dropped, as timm drops it, and leaves the colours that lie under it.
CMYK goes through Pillow's plain formula; colour profiles are not applied. Of 16 bits the upper 8 remain (of one channel
of 16, Pillow itself would cut off all above 255). Of an animation, or of a file with pages, the first image counts.
"""

import io
import mmap
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from targets.picture import FORMATS, HEAD, orientation, rgb, why_unreadable

# By EXIF orientation. Apps on boards have their own in NumPy: they do without OpenCV.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_SIDEWAYS = (5, 6, 7, 8)
_REDUCED = {  # OpenCV's name for the bit; whether grey or colour comes out is another bit's matter
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class Picture:
    """An image, decoded or about to be."""

    height: int
    """pixels, as shown"""
    width: int
    """pixels, as shown"""

    def __init__(self, pixels: np.ndarray) -> None:
        self.height, self.width = pixels.shape[:2]
        self._pixels = pixels

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """uint8 (H, W, 3) RGB, as shown; not to be written to.

        reduction: 1, 2, 4 or 8: a JPEG is decoded faster to ceil(height / reduction) rows and ceil(width / reduction)
                   columns; other formats give all their pixels
        Raises ValueError that names the file if it cannot be decoded.
        """
        return self._pixels


class _Jpeg(Picture):
    """A JPEG file: its size is read from its header, its pixels are decoded when they are asked for."""

    def __init__(self, data: bytes, where: str, image: Image.Image) -> None:
        self.data, self.where, self.orientation = data, where, orientation(image)
        self.width, self.height = image.size[::-1] if self.orientation in _SIDEWAYS else image.size
        self.cmyk = image.mode == "CMYK"

    def pixels(self, reduction: int = 1) -> np.ndarray:
        # OpenCV decodes to Pillow's very pixels in half the time, but for CMYK it has another formula.
        if not self.cmyk:
            flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | _REDUCED[reduction]
            with _libjpeg_named(self.where):
                pixels = cv2.imdecode(np.frombuffer(self.data, np.uint8), flags)
            if pixels is not None:
                return _upright(pixels, self.orientation)
        # Pillow also says what is wrong with a file that OpenCV cannot decode
        with _opened(self.data, self.where) as image:
            self._draft(image, reduction)
            return _decoded(image)

    def check(self) -> None:
        """Raises ValueError if Pillow finds any damage; it does so at an eighth of the size, too."""
        with _opened(self.data, self.where) as image:
            self._draft(image, 8)
            image.load()

    @staticmethod
    def _draft(image: Image.Image, reduction: int) -> None:
        image.draft(None, (max(1, image.width // reduction), max(1, image.height // reduction)))


def of_array(array: np.ndarray) -> Picture:
    """A picture of pixels in memory, uint8 (H, W, 3) RGB."""
    return Picture(array)


def open_picture(data: bytes, where: str) -> Picture:
    """The image in the bytes of a file. A JPEG is decoded when its pixels are asked for, other formats are now.

    where: names the file in errors
    Raises ValueError for what is no image, is damaged, or has more than 179 million pixels.
    """
    with _opened(data, where) as image:
        if image.format in ("JPEG", "MPO"):  # MPO: several JPEGs in one file, as some phones write it
            return _Jpeg(data, where, image)
        return Picture(_decoded(image))


def check(data: bytes, where: str) -> Picture:
    """Open an image and go through all of its data; raises ValueError as `open_picture` and `Picture.pixels` do."""
    picture = open_picture(data, where)
    if isinstance(picture, _Jpeg):
        picture.check()
    return picture


# Loader processes are forked: this memory is theirs too, so that each file is told of once by all of them together.
_told = mmap.mmap(-1, 2**16)
"""a byte for every file, by its name's checksum"""
_turn = threading.Lock()
_said: tuple[int, IO[bytes]] | None = None
"""of which process; where the error output goes during a decoding"""


@contextmanager
def _libjpeg_named(where: str) -> Iterator[None]:
    """What OpenCV's libjpeg says of damage goes to the error output past Python, and without a name: it gets one here.

    Once for each file. What others write there meanwhile comes through, after the block.
    """
    global _said
    with _turn:
        if _said is None or _said[0] != os.getpid():
            _said = (os.getpid(), tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 (as long as the process lives)
        said, errors = _said[1].fileno(), os.dup(2)
        os.dup2(said, 2)
        try:
            yield
        finally:
            os.dup2(errors, 2)
            os.close(errors)
            if size := os.fstat(said).st_size:
                _tell(where, os.pread(said, size, 0))
                os.ftruncate(said, 0)
                os.lseek(said, 0, os.SEEK_SET)


def _tell(where: str, said: bytes) -> None:
    lines = said.splitlines(keepends=True)
    damage = [line for line in lines if b"JPEG" in line or line.startswith((b"Warning", b"Invalid", b"Inconsistent"))]
    if others := b"".join(line for line in lines if line not in damage):
        os.write(2, others)
    place = zlib.crc32(where.encode(errors="surrogateescape")) % len(_told)
    if damage and not _told[place]:
        _told[place] = 1
        os.write(2, f"  {where}: {damage[0].decode(errors='replace').strip()}\n".encode(errors="surrogateescape"))


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[Image.Image]:
    """The file as Pillow sees it; whatever goes wrong with it inside is a ValueError that names the file."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except Exception as error:  # hostile bytes make decoders fail in any way
        reason = _reason(data, error)
        raise ValueError(f"{where} cannot be read as an image ({reason}). Remove or replace it") from error


def _reason(data: bytes, error: Exception) -> str:
    if known := why_unreadable(data[:HEAD]):
        return known
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}, or its first bytes are damaged"
    return str(error) or type(error).__name__


def _decoded(image: Image.Image) -> np.ndarray:
    image.load()
    return _upright(rgb(image), orientation(image))


def _upright(pixels: np.ndarray, turned: int) -> np.ndarray:
    return _UPRIGHT[turned](pixels) if turned in _UPRIGHT else pixels

"""The photograph that artifacts are timed with from end to end."""

import contextlib
from importlib.resources import files

from pipeline.data.index import Files

JPEG = b"\xff\xd8\xff"
LOOKED_AT = 64
"""images among which a JPEG is looked for"""


def photograph(images: object) -> bytes:
    """A JPEG file: the first one of a split's images; of a data set without such, one that scikit-learn brings along.

    That is a photograph of 640 x 427 pixels.
    """
    if isinstance(images, Files):
        for member in images.members[:LOOKED_AT]:
            with contextlib.suppress(Exception):  # a file that has changed since is told of where it is needed
                if (content := images.read(member)).startswith(JPEG):
                    return content
    return (files("sklearn") / "datasets" / "images" / "china.jpg").read_bytes()

"""Folders of generated photographs, no two of them alike."""

import io
from pathlib import Path

from PIL import Image

TEXTS = (".xml", ".txt", ".md")


def jpeg(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (shade % 256, 100, 200)).save(buffer, "JPEG", comment=f"{shade}")
    return buffer.getvalue()


def put(folder: Path, *names: str) -> Path:
    """Images of different shades below `folder`; a name that ends with / is an empty folder."""
    for shade, name in enumerate(names):
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"text" if path.suffix in TEXTS else jpeg(shade))
    return folder


def members(split) -> list[str]:
    return [split.images.members[i] for i in range(len(split.labels))]

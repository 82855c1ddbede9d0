"""Checkpoints: everything that a training needs to go on bit for bit. The one before the last is kept as well.

A file is a line that names the form, the SHA-256 of what follows, and what torch.save writes.
"""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import files

FORM = b"dap checkpoint 1\n"


def save(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values only, so that reading it never runs code."""
    content = io.BytesIO()  # torch.save itself hides a full disk behind an error of its own
    torch.save(state, content)
    with files.atomic(path) as temporary:
        with temporary.open("wb") as file:
            file.write(FORM + hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())
        if path.exists():
            os.replace(path, before(path))


def load(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, or None if there is none. Raises ValueError if the file is damaged."""
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        if content.startswith(FORM):  # those of earlier versions have no digest
            start = len(FORM) + hashlib.sha256().digest_size
            content, expected = content[start:], content[len(FORM) : start]
            if hashlib.sha256(content).digest() != expected:
                raise ValueError("its checksum is wrong")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler meets damage with whatever its next step stumbles over
        raise ValueError(f"checkpoint {path} is damaged. Delete it to begin this stage anew") from error


def load_latest(path: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The state saved last, or the one before it if that is damaged, or missing since a crash; None without either."""
    problem = "is missing"
    try:
        if state := load(path):
            return state
    except ValueError:
        problem = "is damaged"
        if not before(path).exists():
            raise
    state = load(before(path))
    if state is not None:
        say(f"checkpoint {path} {problem}: going on from the one before it")
    return state


def before(path: Path) -> Path:
    """Where the checkpoint before the last is."""
    return path.with_name(f"{path.name}.before")


def set_aside(path: Path) -> Path | None:
    """Move what was saved at `path` to where no training finds it; returns the folder, None if there was nothing."""
    aside = path.parent / "aside"
    found = [file for file in (path, before(path)) if file.exists()]
    for file in found:
        aside.mkdir(exist_ok=True)
        os.replace(file, aside / file.name)
    return aside if found else None

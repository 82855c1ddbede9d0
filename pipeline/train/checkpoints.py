"""Checkpoints: everything that a training needs to go on bit for bit."""

import io
from pathlib import Path
from typing import Any

import torch

from pipeline import files


def save(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values only, so that reading it never runs code."""
    content = io.BytesIO()  # torch.save itself hides a full disk behind an error of its own
    torch.save(state, content)
    with files.atomic(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, or None if there is none. Raises ValueError if the file is damaged."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # the unpickler meets damage with whatever its next step stumbles over
        raise ValueError(f"checkpoint {path} is damaged. Delete it to begin this stage anew") from error

"""What a model made of a split, kept in the run's folder with a few pictures: a report needs neither model nor images.

One file per split and model, `predictions/<split>-<model>.npz`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import files

FOLDER = "predictions"
MODELS = ("dense", "small")
PICTURE = 112
"""pixels, the largest height and width of a picture that is kept"""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a model made of a split."""

    labels: np.ndarray
    """(N,) int64, the true classes"""
    predicted: np.ndarray
    """(N,) int64"""
    confidence: np.ndarray
    """(N,) float32, probability that the model gives to the class that it predicts"""
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(P,) int64, the images of the split whose pictures are kept"""
    pictures: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))
    """(P, S, S, 3) uint8 RGB, as the model sees them, but no larger than PICTURE"""
    names: tuple[str, ...] = ()
    """P file names below the data set's folder; empty texts where images are no files"""


def path_of(folder: Path, split: str, model: str) -> Path:
    """Where a run keeps what `model`, one of MODELS, made of a split."""
    return folder / FOLDER / f"{split}-{model}.npz"


def write(path: Path, evidence: Evidence) -> None:
    """Write it atomically; the same bytes for the same content."""
    with files.atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            labels=evidence.labels,
            predicted=evidence.predicted,
            confidence=evidence.confidence,
            rows=evidence.rows,
            pictures=evidence.pictures,
            names=np.array(evidence.names, dtype=np.str_),
        )


def read(path: Path, classes: int) -> Evidence:
    """What `write` wrote, of a split with so many classes. Raises ValueError for anything else; code is never run."""
    try:
        with np.load(path, allow_pickle=False) as parts:
            arrays = {name: parts[name] for name in parts.files}
        labels, predicted, confidence = (arrays.pop(name) for name in ("labels", "predicted", "confidence"))
        rows, pictures, names = (arrays.pop(name) for name in ("rows", "pictures", "names"))
        for array in (labels, predicted):
            _demand(array.dtype == np.int64 and array.shape == (len(labels),) and len(labels) > 0, "no list of classes")
            _demand(array.min() >= 0 and array.max() < classes, f"a class that is none of {classes}")
        _demand(confidence.dtype == np.float32 and confidence.shape == labels.shape, "other confidences than images")
        _demand(rows.dtype == np.int64 and rows.shape == (len(pictures),) == names.shape, "other pictures than rows")
        _demand(not len(rows) or 0 <= rows.min() <= rows.max() < len(labels), "pictures of other images")
        _demand(pictures.dtype == np.uint8 and pictures.ndim == 4 and pictures.shape[3] == 3, "no pictures")
        _demand(names.dtype.kind == "U" and not arrays, "unknown parts")
    except Exception as error:  # a damaged zip fails with whatever its reader stumbles over
        raise ValueError(
            f"{path} is damaged ({error}). Delete it, and repeat `make prune` to have it made anew"
        ) from error
    return Evidence(
        labels=labels,
        predicted=predicted,
        confidence=confidence,
        rows=rows,
        pictures=pictures,
        names=tuple(names.tolist()),
    )


def _demand(holds: bool | np.bool_, problem: str) -> None:
    if not holds:
        raise ValueError(f"it holds {problem}")

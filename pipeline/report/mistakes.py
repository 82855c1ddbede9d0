"""What the small model gets wrong on a split, and what pruning broke and mended beside the dense model."""

import base64
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.report import evidence
from pipeline.report.evidence import Evidence

SHOWN = 12
"""pictures of a kind"""
PAIRS = 50
"""of classes that are confused most"""
QUALITY = 85
"""of the JPEGs in the page"""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is known of one split: at least one of the models was evaluated on it."""

    split: str
    """val or test"""
    classes: tuple[str, ...]
    dense: Evidence | None
    small: Evidence | None

    @property
    def shown(self) -> Evidence:
        """The model that the page speaks of: the small one, if there is one."""
        found = self.small or self.dense
        assert found is not None, "one of them is there"
        return found


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture, ready to show."""

    uri: str
    """of its JPEG, with all of its data"""
    true: str
    predicted: str
    """by the model that is wrong"""
    confidence: float | None
    """percent, of that prediction; None if it is no number"""
    file: str
    """empty if the image is no file"""


def read(folder: Path, split: str, classes: tuple[str, ...], models: Collection[str]) -> Judged | None:
    """What a run's folder holds of a split, by so many of evidence.MODELS; None if there are none.

    Raises ValueError for a damaged file.
    """
    found = {model: evidence.read(evidence.path_of(folder, split, model), len(classes)) for model in models}
    if not found:
        return None
    judged = Judged(split=split, classes=classes, dense=found.get("dense"), small=found.get("small"))
    if judged.dense and judged.small and not _same_images(judged.dense, judged.small):
        raise ValueError(
            f"{folder / evidence.FOLDER}: the models were evaluated on different images. Delete the folder"
        )
    return judged


def _same_images(one: Evidence, other: Evidence) -> bool:
    return np.array_equal(one.labels, other.labels)


def worst(found: Evidence) -> np.ndarray:
    """Images that are predicted wrong, the most confident first."""
    return _by_confidence(found, found.predicted != found.labels)


def broken(dense: Evidence, small: Evidence) -> np.ndarray:
    """Images that the dense model has right and the small one wrong, the most confident first."""
    return _by_confidence(small, (dense.predicted == dense.labels) & (small.predicted != small.labels))


def mended(dense: Evidence, small: Evidence) -> np.ndarray:
    """Images that the small model has right and the dense one wrong, those that the dense is most sure of first."""
    return _by_confidence(dense, (dense.predicted != dense.labels) & (small.predicted == small.labels))


def _by_confidence(found: Evidence, chosen: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(-found.confidence[rows], kind="stable")]


def to_show(found: Evidence, dense: Evidence | None = None) -> np.ndarray:
    """The images whose pictures a report shows, in the split's order."""
    kinds = [worst(found)[:SHOWN]]
    if dense is not None:
        kinds += [broken(dense, found)[:SHOWN], mended(dense, found)[:SHOWN]]
    return np.unique(np.concatenate(kinds))


def confusion(found: Evidence, classes: int) -> np.ndarray:
    """(C, C) images by true class and predicted class."""
    pairs = found.labels * classes + found.predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def top1_by_class(found: Evidence, classes: int) -> np.ndarray:
    """(C,) percent of a class's images that are right; NaN for a class without any."""
    images = np.bincount(found.labels, minlength=classes)
    right = np.bincount(found.labels[found.predicted == found.labels], minlength=classes)
    return np.divide(100.0 * right, images, out=np.full(classes, np.nan), where=images > 0)


def summary(judged: Judged | None) -> dict[str, Any] | None:
    """What report.json says of a split: counts, every class, and the pairs that are confused most."""
    if judged is None:
        return None
    dense, small = judged.dense, judged.small
    shown, count = judged.shown, len(judged.classes)
    by_class = {name: None if found is None else top1_by_class(found, count) for name, found in
                (("top1_dense", dense), ("top1", small))}  # fmt: skip
    images = np.bincount(shown.labels, minlength=count)
    both = None if dense is None or small is None else (dense, small)
    return {
        "split": judged.split,
        "images": len(shown.labels),
        "broken": len(broken(*both)) if both else None,
        "mended": len(mended(*both)) if both else None,
        "classes": [
            {"name": name, "images": int(images[row]), **{key: _share(of, row) for key, of in by_class.items()}}
            for row, name in enumerate(judged.classes)
        ],
        "confused": _confused(shown, judged.classes),
    }


def _share(of: np.ndarray | None, row: int) -> float | None:
    return None if of is None or np.isnan(of[row]) else float(of[row])


def _confused(found: Evidence, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """The pairs of a true and another predicted class with most images, most first."""
    counts = confusion(found, len(classes))
    np.fill_diagonal(counts, 0)
    most = np.argsort(-counts, axis=None, kind="stable")[:PAIRS]
    pairs = zip(*np.unravel_index(most, counts.shape), strict=True)
    return [
        {"true": classes[true], "predicted": classes[predicted], "images": int(counts[true, predicted])}
        for true, predicted in pairs
        if counts[true, predicted]
    ]


def galleries(judged: Judged) -> dict[str, list[Tile]]:
    """Pictures by kind: "worst", and beside the dense model "broken" and "mended"; a kind without any is left out."""
    small, dense = judged.shown, judged.dense if judged.small else None
    kinds = {"worst": _tiles(judged, small, worst(small))}
    if dense is not None:
        pair = dense, small
        kinds["broken"] = _tiles(judged, small, broken(*pair))
        kinds["mended"] = _tiles(judged, dense, mended(*pair))
    return {kind: tiles for kind, tiles in kinds.items() if tiles}


def _tiles(judged: Judged, wrong: Evidence, rows: np.ndarray) -> list[Tile]:
    kept = {int(row): place for place, row in enumerate(judged.shown.rows)}
    tiles = []
    for row in rows[:SHOWN].tolist():
        if row not in kept:
            continue
        confidence = 100 * float(wrong.confidence[row])
        tiles.append(
            Tile(
                uri=_data_uri(judged.shown.pictures[kept[row]]),
                true=judged.classes[wrong.labels[row]],
                predicted=judged.classes[wrong.predicted[row]],
                confidence=confidence if np.isfinite(confidence) else None,
                file=judged.shown.names[kept[row]],
            )
        )
    return tiles


def _data_uri(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"

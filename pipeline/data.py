"""Datasets: images with their classes, and how a model wants to see them."""

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import timm
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.augment import Augmentation

DATASETS = ("digits", "folder:PATH")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class View:
    """How a model wants its images; written to preprocess.json so that apps can repeat it."""

    size: int
    """height and width, pixels"""
    crop_ratio: float
    """share of the shorter side that the centre crop keeps"""
    mean: tuple[float, ...]
    """per channel, of images scaled to 0..1"""
    std: tuple[float, ...]
    """per channel, of images scaled to 0..1"""

    @staticmethod
    def from_json(values: dict[str, Any]) -> "View":
        """The view in preprocess.json."""
        return View(
            size=values["size"], crop_ratio=values["crop_ratio"], mean=tuple(values["mean"]), std=tuple(values["std"])
        )

    @staticmethod
    def of(model: torch.nn.Module) -> "View":
        """What timm's own configuration of this model says."""
        config = timm.data.resolve_model_data_config(model)
        return View(
            size=config["input_size"][-1], crop_ratio=config["crop_pct"], mean=config["mean"], std=config["std"]
        )


class Images(Protocol):
    """Random access to decoded images."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images with their classes."""

    images: Images
    """uint8 (H, W, 3) RGB each"""
    labels: np.ndarray
    """(n,) int64"""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset, ready to be loaded."""

    name: str
    """as the user gave it"""
    classes: tuple[str, ...]
    """class names, in label order"""
    train: Split
    val: Split
    augmentation: Augmentation
    """what suits these images"""
    fingerprint: str
    """changes when the images do"""


def load_dataset(name: str, subset: str | None = None) -> Dataset:
    """The dataset called `name`: `digits`, or `folder:PATH` of a directory or zip of {train,val}/<class>/<image>.

    subset: `CLASSESxIMAGES`, for experiments that must be small: so many classes, spread evenly over all, with so many
    training images of each (their first) and all their validation images
    Raises ValueError for an unknown name, a missing path, a layout that holds no images, or a subset that is not there.
    """
    check_name(name)
    dataset = _digits() if name == "digits" else _class_folders(name, _path(name))
    return _subset(dataset, subset) if subset else dataset


def _subset(dataset: Dataset, subset: str) -> Dataset:
    parts = subset.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"SUBSET={subset} must be CLASSESxIMAGES, such as 12x200")
    classes, images = map(int, parts)
    if not 2 <= classes <= len(dataset.classes):
        raise ValueError(f"SUBSET={subset}: {dataset.name} has {len(dataset.classes)} classes; take 2 or more of them")
    chosen = [i * len(dataset.classes) // classes for i in range(classes)]
    fewest = min(int((dataset.train.labels == label).sum()) for label in chosen)
    if fewest < images:
        raise ValueError(f"SUBSET={subset}: a class of {dataset.name} has only {fewest} training images")
    return replace(
        dataset,
        classes=tuple(dataset.classes[label] for label in chosen),
        train=_part(dataset.train, chosen, images),
        val=_part(dataset.val, chosen, None),
        fingerprint=f"{dataset.fingerprint} {subset}",
    )


def _part(split: Split, classes: list[int], per_class: int | None) -> Split:
    """The first `per_class` images of each of `classes`, which become labels 0, 1, ..."""
    rows = np.concatenate([np.flatnonzero(split.labels == label)[:per_class] for label in classes])
    images = split.images[rows] if isinstance(split.images, np.ndarray) else _Chosen(split.images, rows)
    return Split(images=images, labels=np.searchsorted(classes, split.labels[rows]))


class _Chosen:
    """Some of the images."""

    def __init__(self, images: Images, rows: np.ndarray) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[int(self.rows[index])]


def check_name(name: str) -> None:
    """Raises ValueError for a name that `load_dataset` does not know, or a path that does not exist."""
    if name != "digits" and not name.startswith("folder:"):
        raise ValueError(f"DATASET={name} is unknown. Known: {', '.join(DATASETS)}")
    if name != "digits" and not _path(name).exists():
        raise ValueError(f"DATASET={name}: {_path(name)} does not exist")


def _path(name: str) -> Path:
    return Path(name.removeprefix("folder:")).expanduser()


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels); a fixed 70/30 split, classes in equal shares."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int64)
    train, val = train_test_split(np.arange(len(labels)), test_size=0.3, random_state=0, stratify=labels)
    return Dataset(
        name="digits",
        classes=tuple(str(c) for c in digits.target_names),
        train=Split(images=images[train], labels=labels[train]),
        val=Split(images=images[val], labels=labels[val]),
        augmentation=Augmentation(recipe="digits"),
        fingerprint=hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16],
    )


def _class_folders(name: str, path: Path) -> Dataset:
    if path.is_dir():
        members = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        sizes = [(path / member).stat().st_size for member in members]
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                infos = [i for i in archive.infolist() if Path(i.filename).suffix.lower() in IMAGE_SUFFIXES]
        except zipfile.BadZipFile as error:
            raise ValueError(f"DATASET={name}: {path} is neither a directory nor a zip file") from error
        infos.sort(key=lambda info: info.filename)
        members, sizes = [i.filename for i in infos], [i.file_size for i in infos]
    parts = [Path(member).parts for member in members]
    classes = tuple(sorted({p[1] for p in parts if len(p) > 2 and p[0] == "train"}))
    if len(classes) < 2:
        raise ValueError(f"DATASET={name}: {path} must hold train/<class>/<image> for at least two classes")
    label_of = {label: index for index, label in enumerate(classes)}

    def split(folder: str) -> Split:
        chosen = [(m, p[1]) for m, p in zip(members, parts, strict=True) if len(p) > 2 and p[0] == folder]
        if not chosen:
            raise ValueError(f"DATASET={name}: {path} must hold {folder}/<class>/<image>")
        unknown = sorted({label for _, label in chosen} - set(classes))
        if unknown:
            raise ValueError(f"DATASET={name}: class {unknown[0]} is in {folder}/ but not in train/")
        labels = np.array([label_of[label] for _, label in chosen], dtype=np.int64)
        return Split(images=_Files(path, [m for m, _ in chosen]), labels=labels)

    return Dataset(
        name=name,
        classes=classes,
        train=split("train"),
        val=split("val"),
        augmentation=Augmentation(recipe="light"),
        fingerprint=hashlib.sha256(repr((members, sizes)).encode()).hexdigest()[:16],
    )


class _Files:
    """Images below a directory or inside a zip, decoded when asked for."""

    def __init__(self, path: Path, members: list[str]) -> None:
        self.path, self.members = path, members
        self._archive: tuple[int, zipfile.ZipFile] | None = None  # of which process: handles do not survive a fork

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> np.ndarray:
        member = self.members[index]
        try:
            with Image.open(self._open(member)) as image:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise ValueError(
                f"{self.path}: {member} cannot be read as an image ({error}). Remove or replace it"
            ) from error

    def _open(self, member: str) -> io.BytesIO | Path:
        if self.path.is_dir():
            return self.path / member
        if self._archive is None or self._archive[0] != os.getpid():
            self._archive = (os.getpid(), zipfile.ZipFile(self.path))
        return io.BytesIO(self._archive[1].read(member))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_archive": None}

"""Datasets and loaders. With augment.py the only place that knows crop, mean and std.

Every training image is augmented under a seed made of (run seed, epoch, image), so the stream of batches is the same
with any number of workers and after any interruption.
"""

import hashlib
import io
import os
import signal
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import timm
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader

from pipeline import augment
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


def load_dataset(name: str) -> Dataset:
    """The dataset called `name`: `digits`, or `folder:PATH` of a directory or zip of {train,val}/<class>/<image>.

    Raises ValueError for an unknown name, a missing path or a layout that holds no images.
    """
    check_name(name)
    return _digits() if name == "digits" else _class_folders(name, _path(name))


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


class _Augmented(torch.utils.data.Dataset):
    """(index, seed) -> uint8 (3, size, size) and label; seed None means the evaluation transform's data."""

    def __init__(self, split: Split, transform) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[torch.Tensor, int]:
        index, seed = key
        image = augment.apply(self.transform, self.split.images[index], seed)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), int(self.split.labels[index])


class TrainBatches:
    """Batch sampler of (index, seed) that can begin at any step; shuffled by (seed, epoch), no short last batch."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < 1:
            raise ValueError("the training split holds no images")
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self.drop_last = True
        self.step = 0
        """the step at which the next iteration begins; set it before iterating"""

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, skipped = divmod(self.step, len(self))
        draw = np.random.default_rng([self.seed, epoch])
        order, seeds = draw.permutation(self.count), draw.integers(0, 2**31, self.count)
        for batch in range(skipped, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(int(i), int(seeds[i])) for i in chosen]


def train_loader(dataset: Dataset, size: int, batch_size: int, seed: int, workers: int) -> DataLoader:
    """Endless determinism in finite epochs: uint8 (B, 3, size, size), int64 (B,). Its sampler is a TrainBatches."""
    images = _Augmented(dataset.train, augment.train_transform(dataset.augmentation, size))
    return DataLoader(
        images,
        batch_sampler=TrainBatches(len(images), batch_size, seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),  # a stream of its own: the loader must not consume the training's random numbers
    )


def eval_loader(split: Split, view: View, batch_size: int, workers: int) -> DataLoader:
    """The whole split in order: uint8 (B, 3, size, size), int64 (B,)."""
    images = _Augmented(split, augment.eval_transform(view.size, view.crop_ratio))
    keys: list = [(index, None) for index in range(len(images))]
    return DataLoader(
        images,
        batch_sampler=[keys[i : i + batch_size] for i in range(0, len(keys), batch_size)],
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),
    )


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; workers must live until the parent has written its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def default_workers(dataset: Dataset) -> int:
    """Loader processes: none for images that are in memory already, else one per core up to eight."""
    return 0 if isinstance(dataset.train.images, np.ndarray) else min(8, os.cpu_count() or 1)


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 (B, 3, H, W) 0..255 -> float32 (B, 3, H, W), zero mean and unit deviation per channel."""
    mean_3 = torch.tensor(mean, device=images.device).view(3, 1, 1)
    std_3 = torch.tensor(std, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean_3) / std_3

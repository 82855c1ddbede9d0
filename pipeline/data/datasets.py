"""Datasets: images with their classes."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.data import augment, cifar, images, layouts
from pipeline.data.augment import Augmentation
from pipeline.data.duplicates import Duplicates
from pipeline.data.folders import class_folders
from pipeline.data.images import Picture
from pipeline.data.index import LeftOut, Listing, Progress, Skipped, list_images
from pipeline.data.layouts import Rows
from pipeline.data.names import TARS, check_name, missing, parse_subset, path_of
from pipeline.data.shards import list_shards
from pipeline.data.vetting import vet

LAYOUTS = {"ifood": layouts.ifood, "inat19": layouts.inat19, "imagenet": layouts.imagenet}
AUGMENTATIONS = {
    "digits": augment.DIGITS,
    "cifar10": augment.CIFAR,
    "cifar100": augment.CIFAR,
    "ifood": augment.DEIT,
    "inat19": augment.DEIT,
    "imagenet": augment.DEIT,
}


class Images(Protocol):
    """Random access to pictures."""

    sizes: np.ndarray
    """(n, 2) height and width as shown, pixels"""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Picture: ...
    def chosen(self, rows: np.ndarray) -> "Images": ...


class Arrays:
    """Pictures that are in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        """uint8 (n, H, W, 3) RGB"""
        self.sizes = np.broadcast_to(array.shape[1:3], (len(array), 2))

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Picture:
        return images.of_array(self.array[index])

    def chosen(self, rows: np.ndarray) -> "Arrays":
        """Only the pictures of these rows."""
        return Arrays(self.array[rows])


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images with their classes."""

    images: Images
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
    """changes when an image or a label does, or their order"""
    test: Split | None = None
    """what accuracy is reported on; None: val serves for that too"""
    skipped: tuple[Skipped, ...] = ()
    """files that cannot be used, and why"""
    left_out: tuple[LeftOut, ...] = ()
    """what else lies there and is in no split"""
    duplicates: tuple[Duplicates, ...] = ()
    """images that are there twice"""
    sources: dict[str, str] = field(default_factory=dict)
    """train, val or test -> where it comes from, in words; nothing for a data set with splits of its own"""
    spare: Split | None = None
    """training images of the same classes that a subset leaves out: nobody trains on them"""

    @property
    def top1_split(self) -> str:
        """Which split reported accuracy is of: test where there is one, else val."""
        return "val" if self.test is None else "test"

    @property
    def splits(self) -> dict[str, Split]:
        """train, val and, where there is one, test."""
        return {"train": self.train, "val": self.val, **({} if self.test is None else {"test": self.test})}


def load_dataset(
    name: str,
    subset: str | None = None,
    *,
    folder: Path | None = None,
    max_bad_share: float = 0.001,
    keep_duplicates: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """The dataset called `name`, one of DATASETS; `folder:PATH` is a directory or zip as in `folders.class_folders`,
    `wds:PATTERN` tars as in `shards.list_shards`.

    subset: `CLASSESxIMAGES`, for experiments that must be small: so many classes, spread evenly over all, with so many
    training images of each (their first) and all their validation and test images
    folder: where a named dataset is unpacked; `data/<name>` if not given
    max_bad_share: of all images; so many may be unusable, and are left out
    keep_duplicates: whether a folder's train keeps images that are in its val or test too; a named set always does
    progress: told while images are decoded for the first time
    Raises ValueError for an unknown name, missing or damaged data, a class without images in one of the splits, more
    unusable images than allowed, or a subset that is not there.
    """
    check_name(name, folder)
    path = path_of(name, folder)
    try:
        if name == "digits":
            dataset = _in_memory(name, *_digits())
        elif name in cifar.FILES:
            dataset = _in_memory(name, *cifar.load(name, path))
        else:
            dataset = _of_files(name, path, max_bad_share, keep_duplicates, progress)
    except FileNotFoundError as error:
        raise ValueError(missing(name, path, f"{error.filename or error} is missing")) from error
    return _subset(dataset, subset) if subset else dataset


def _digits() -> tuple[tuple[str, ...], cifar.Arrays, cifar.Arrays]:
    """scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels); a fixed 70/30 split, classes in equal shares."""
    from sklearn.datasets import load_digits  # slow to import
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int64)
    train, val = train_test_split(np.arange(len(labels)), test_size=0.3, random_state=0, stratify=labels)
    classes = tuple(str(c) for c in digits.target_names)
    return classes, (pixels[train], labels[train]), (pixels[val], labels[val])


def _in_memory(name: str, classes: tuple[str, ...], train: cifar.Arrays, val: cifar.Arrays) -> Dataset:
    return Dataset(
        name=name,
        classes=classes,
        train=Split(images=Arrays(train[0]), labels=train[1]),
        val=Split(images=Arrays(val[0]), labels=val[1]),
        augmentation=AUGMENTATIONS[name],
        fingerprint=_digest(classes, *train, *val),
    )


def _of_files(name: str, path: Path, max_bad_share: float, keep_duplicates: bool, progress: Progress | None) -> Dataset:
    if name.startswith(TARS):
        listing, layout = list_shards(name.removeprefix(TARS))
    else:
        listing = list_images(path)
        layout = LAYOUTS.get(name, class_folders)(listing)
    try:
        # a published set is measured as its owner split it
        vetted = vet(listing, layout, max_bad_share, progress, keep_duplicates=keep_duplicates or name in LAYOUTS)
    except ValueError as error:
        raise ValueError(f"DATASET={name}: {error}") from error

    def split(rows: Rows) -> Split:
        members, labels = [member for member, _ in rows], np.array([label for _, label in rows], dtype=np.int64)
        sizes = np.array([(vetted.checked[member].height, vetted.checked[member].width) for member in members])
        return Split(images=listing.images(members, sizes), labels=labels)

    train = split(vetted.train)
    parts = [vetted.train, vetted.val, *([] if vetted.test is None else [vetted.test])]
    checksums = [np.array([(vetted.checked[m].crc, label) for m, label in rows]) for rows in parts]
    return Dataset(
        name=name,
        classes=layout.classes,
        train=train,
        val=split(vetted.val),
        test=None if vetted.test is None else split(vetted.test),
        augmentation=AUGMENTATIONS.get(name, augment.LIGHT),
        fingerprint=_digest(layout.classes, *checksums),
        skipped=tuple(vetted.skipped),
        left_out=() if name in LAYOUTS else (*layout.left_out, *listing.notes, *_by_suffix(listing)),
        duplicates=tuple(vetted.duplicates),
        sources={} if name in LAYOUTS else _sources(layout),
    )


def _by_suffix(listing: Listing) -> list[LeftOut]:
    """The files that are no images, most frequent suffix first."""
    counts: Counter[str] = Counter()
    for (_, suffix), count in listing.others.items():
        counts[suffix] += count
    return [
        LeftOut(what=f"{suffix} files" if suffix else "files without suffix", count=count, reason="no images")
        for suffix, count in counts.most_common()
    ]


def _sources(layout: layouts.Layout) -> dict[str, str]:
    train = layout.sources.get("train", "all class folders")
    split_off = {} if layout.val is not None else {"val": f"a fifth of {train}"}
    return {"train": train, **split_off, **layout.sources}


def _digest(classes: tuple[str, ...], *arrays: np.ndarray) -> str:
    return hashlib.sha256(repr(classes).encode() + b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def _subset(dataset: Dataset, subset: str) -> Dataset:
    classes, count = parse_subset(subset)
    if not 2 <= classes <= len(dataset.classes):
        raise ValueError(f"SUBSET={subset}: {dataset.name} has {len(dataset.classes)} classes; take 2 or more of them")
    chosen = [i * len(dataset.classes) // classes for i in range(classes)]
    fewest = min(int((dataset.train.labels == label).sum()) for label in chosen)
    if fewest < count:
        raise ValueError(f"SUBSET={subset}: a class of {dataset.name} has only {fewest} training images")
    return replace(
        dataset,
        classes=tuple(dataset.classes[label] for label in chosen),
        train=_part(dataset.train, chosen, last=count),
        val=_part(dataset.val, chosen),
        test=None if dataset.test is None else _part(dataset.test, chosen),
        spare=_part(dataset.train, chosen, first=count),
        fingerprint=f"{dataset.fingerprint} {subset}",
    )


def _part(split: Split, classes: list[int], first: int = 0, last: int | None = None) -> Split:
    """Images `first` to `last` of each of `classes`, which become labels 0, 1, ..."""
    rows = np.concatenate([np.flatnonzero(split.labels == label)[first:last] for label in classes])
    return Split(images=split.images.chosen(rows), labels=np.searchsorted(classes, split.labels[rows]))

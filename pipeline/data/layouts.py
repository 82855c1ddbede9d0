"""Which image has which class and split, in each layout as its owner publishes it and as the archives unpack.

A layout is a function of what `index.list_images` found. Label files only choose among the files that were found, so no
entry of theirs can lead out of the directory. A missing label file raises FileNotFoundError, a damaged one ValueError.
(CIFAR is no layout of image files: see cifar.py.)
"""

import contextlib
import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.index import LeftOut, Listing, Skipped
from targets import strict

Rows = list[tuple[str, int]]
"""name of an image file and its label, each"""

LARGEST_TABLE = 2**30  # bytes, of annotations


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Image files with their labels."""

    classes: tuple[str, ...]
    """class names, in label order"""
    train: Rows
    val: Rows | None
    """None: a part of train is to be split off"""
    test: Rows | None = None
    """None: accuracy is reported on val"""
    stray: list[Skipped]
    """files that are listed but missing, and such as lie in no class folder"""
    sources: dict[str, str] = field(default_factory=dict)
    """train, val or test -> the folder that it comes from"""
    left_out: tuple[LeftOut, ...] = ()
    """what else is there"""


@dataclass(frozen=True)
class _Category:
    id: int
    name: str


@dataclass(frozen=True)
class _Image:
    id: int
    file_name: str


@dataclass(frozen=True)
class _Annotation:
    image_id: int
    category_id: int


@dataclass(frozen=True)
class _Annotations:
    """What is needed of a file of COCO's form."""

    images: tuple[_Image, ...]
    annotations: tuple[_Annotation, ...]


@dataclass(frozen=True)
class _Train(_Annotations):
    categories: tuple[_Category, ...]


def inat19(listing: Listing) -> Layout:
    """iNaturalist 2019: `train_val2019/<group>/<category>/<image>.jpg`; labels in `{train,val}2019.json`, COCO's form.

    Labels follow the category ids. Those files hide the species' names; the owner's `categories.json`, published later,
    has them, and is used where it is there.
    Source: github.com/visipedia/inat_comp/tree/master/2019
    """
    train_file, val_file = _find(listing.path, "train2019.json"), _find(listing.path, "val2019.json")
    with _understood(train_file):
        train: _Train = strict.read_json(train_file, _Train, source="foreign", limit=LARGEST_TABLE)
        label_of = {key: i for i, key in enumerate(sorted(category.id for category in train.categories))}
        train_rows = _annotated(train, label_of)
    with _understood(val_file):
        val: _Annotations = strict.read_json(val_file, _Annotations, source="foreign", limit=LARGEST_TABLE)
        val_rows = _annotated(val, label_of)
    names_file = listing.path / "categories.json"
    with _understood(names_file):
        categories: tuple[_Category, ...] = train.categories
        if names_file.exists():
            categories = strict.read_json(names_file, tuple[_Category, ...], source="foreign")
        names = {category.id: category.name for category in categories}
        classes = _distinct([names[key] for key in label_of], list(map(str, label_of)))
    return _listed(listing, classes, train_rows, val_rows)


def _annotated(part: _Annotations, label_of: dict[int, int]) -> Rows:
    category_of = {annotation.image_id: annotation.category_id for annotation in part.annotations}
    return [(image.file_name, label_of[category_of[image.id]]) for image in part.images]


def ifood(listing: Listing) -> Layout:
    """iFood 2019 (FoodX-251): `train_set/`, `val_set/`, `class_list.txt` ("0 macaron") and a table of labels for each.

    The tables are `{train,val}_info.csv` without a header in the owners' archive, `{train,val}_labels.csv` with one on
    Kaggle; they may lie in `annot/`.
    Source: github.com/karansikka1/iFood_2019
    """
    names_file = _find(listing.path, "class_list.txt", "annot/class_list.txt")
    with _understood(names_file):
        lines = [line.split(maxsplit=1) for line in names_file.read_text().splitlines() if line.strip()]
        names = {int(key): name.strip() for key, name in lines}
        label_of = {key: i for i, key in enumerate(sorted(names))}

    def rows(part: str) -> Rows:
        tables = [f"{folder}{part}_{kind}.csv" for folder in ("", "annot/") for kind in ("info", "labels")]
        table = _find(listing.path, *tables)
        with _understood(table), table.open(newline="") as lines:
            return [
                (f"{part}_set/{image}", label_of[int(label)])
                for image, label in csv.reader(lines)
                if label != "label"  # the header
            ]

    return _listed(listing, tuple(names[key] for key in label_of), rows("train"), rows("val"))


def imagenet(listing: Listing) -> Layout:
    """ImageNet (ILSVRC 2012): `train/<wnid>/`; `val/<wnid>/`, or `val/` flat with its ground truth beside it.

    Also as Kaggle packs it, with train/ and val/ in `ILSVRC/Data/CLS-LOC`. See `_imagenet_truth` for the ground truth.
    Labels follow the order of the wnids, which is that of timm's pretrained models. timm knows their readable names.
    """
    from timm.data import ImageNetInfo

    prefix = "ILSVRC/Data/CLS-LOC/" if "ILSVRC/Data/CLS-LOC/train" in listing.folders else ""
    inside = {name: name.removeprefix(prefix).split("/") for name in listing.files if name.startswith(prefix)}
    train = [(name, path[1]) for name, path in inside.items() if path[0] == "train" and len(path) == 3]
    val = {name: path[1] for name, path in inside.items() if path[0] == "val" and len(path) == 3}
    flat = {name: Path(name).stem for name, path in inside.items() if path[0] == "val" and len(path) == 2}
    for part, there in (("train", train), ("val", val or flat)):
        if not there:
            raise FileNotFoundError(f"{listing.path / prefix / part}")
    if flat:
        truth = _imagenet_truth(listing.path)
        if missing := sorted(set(flat.values()) - truth.keys()):
            raise ValueError(f"{listing.path}: the ground truth of the validation images does not name {missing[0]}")
        val |= {name: truth[stem] for name, stem in flat.items()}
    wnids = sorted({wnid for _, wnid in train})
    if unknown := sorted(set(val.values()) - set(wnids)):
        raise ValueError(f"{listing.path}: class {unknown[0]} is in val/ but not in train/")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    info = ImageNetInfo("imagenet-22k")
    readable = set(info.label_names())
    return Layout(
        classes=_distinct([info.label_name_to_description(w) if w in readable else w for w in wnids], wnids),
        train=[(name, label_of[wnid]) for name, wnid in train],
        val=[(name, label_of[val[name]]) for name in inside if name in val],
        stray=[],
    )


def _imagenet_truth(folder: Path) -> dict[str, str]:
    """The wnid of each validation image, by the file's name without suffix.

    From Kaggle's `LOC_val_solution.csv`; or `val.txt` (lines "<file> <wnid>", or "<file> <label>" as Caffe has it); or
    the development kit's `meta.mat` and `ILSVRC2012_validation_ground_truth.txt`, unpacked in this directory.
    """
    kit = "ILSVRC2012_devkit_t12/data/"
    truth = "ILSVRC2012_validation_ground_truth.txt"
    file = _find(folder, "LOC_val_solution.csv", "val.txt", kit + truth, truth)
    with _understood(file):
        lines = file.read_text().splitlines()
        if file.suffix == ".csv":
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
        if file.name == "val.txt":
            from timm.data import ImageNetInfo

            wnids = ImageNetInfo().label_names()
            pairs = [line.split() for line in lines if line]
            return {Path(image).stem: wnids[int(x)] if x.isdecimal() else x for image, x in pairs}
    wnid_of = _devkit_wnids(_find(file.parent, "meta.mat"))
    with _understood(file):
        return {f"ILSVRC2012_val_{n:08d}": wnid_of[int(line)] for n, line in enumerate(lines, 1) if line}


def _devkit_wnids(file: Path) -> dict[int, str]:
    """The development kit numbers the classes in an order of its own."""
    from scipy.io import loadmat  # slow to import

    try:
        synsets = loadmat(file, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # the reader meets damage with whatever its next step stumbles over
        raise ValueError(f"{file} is damaged ({error}). Unpack it again") from error


def _find(folder: Path, *names: str) -> Path:
    """The first of several files that exists."""
    if found := [folder / name for name in names if (folder / name).exists()]:
        return found[0]
    raise FileNotFoundError(f"{folder / names[0]}{' or ' if names[1:] else ''}{', '.join(names[1:])}")


@contextlib.contextmanager
def _understood(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged, or not what its owner publishes ({error!r}). Get it again") from error


def _distinct(names: Iterable[str], keys: list[str]) -> tuple[str, ...]:
    """Class names; where several share one, with their key. ImageNet has two kinds of crane."""
    count = Counter(names := list(names))
    return tuple(f"{name} ({key})" if count[name] > 1 else name for name, key in zip(names, keys, strict=True))


def _listed(listing: Listing, classes: tuple[str, ...], train: Rows, val: Rows) -> Layout:
    """The rows whose file is there."""
    for rows in (train, val):
        if not any(name in listing.files for name, _ in rows):
            raise FileNotFoundError(f"{listing.path}/{rows[0][0] if rows else '*.jpg'}, like all of its kind,")
    return Layout(
        classes=classes,
        train=[row for row in train if row[0] in listing.files],
        val=[row for row in val if row[0] in listing.files],
        stray=[Skipped(name, "has a label but is missing") for name, _ in train + val if name not in listing.files],
    )

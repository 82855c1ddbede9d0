"""Which image has which class and split, in each layout as its owner publishes it and as the archives unpack.

A layout is a function of what `index.list_images` found. Label files only choose among the files that were found, so no
entry of theirs can lead out of the directory. A missing label file raises FileNotFoundError, a damaged one ValueError.
(CIFAR is no layout of image files: see cifar.py.)
"""

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.index import LeftOut, Listing, Skipped, composed
from targets import strict

Rows = list[tuple[str, int]]
"""name of an image file and its label, each"""

_SPLIT = re.compile(
    r"((seg|data|dataset|images?|imgs?|split)[\W_]*)?"
    r"((?P<train>train(ing)?)|(?P<val>val(id(ation)?)?|dev|eval(uation)?)|(?P<test>test(ing)?))"
    r"([\W_]*(sets?|data|dataset|images?|imgs?|split|seg))?([\W_]*(19|20)\d\d)?"
)
_PLAIN = {"image", "images", "img", "imgs", "jpg", "jpeg", "jpegs", "jpegimages", "photos", "pictures", "data"}
"""folders that say nothing about what is in them"""
_NO_CLASSES = {*_PLAIN, "labels", "annotations", "masks", "bbox", "boxes", "xml", "json"}
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


def class_folders(listing: Listing) -> Layout:
    """`train/<class>/…`, and `val/<class>/…` and `test/<class>/…` where they are; or plain `<class>/…`.

    Images lie at any depth below a class. A single folder around all of it is seen through, and one around a split; the
    splits are found by any of their usual names (see `split_of`). A `test/` whose folders are no classes has no labels,
    and is left out.
    Raises ValueError for fewer than two classes, a class in val/ or test/ only, classes that differ in case only, and
    where the folders may mean more than one thing.
    """
    seen, ignored = _unwrapped(_Tree.of(listing))
    splits = _splits(listing.path, seen)
    ignored += _beside(seen, splits) if splits else []
    parts = {kind: _inside(seen.below(top), kind) for kind, top in splits.items()} or {"train": seen}
    _refuse_alike(listing.path, parts["train"])
    sources = {kind: f"{top}/" for kind, top in splits.items()}
    if "test" in parts and not _shares_a_class(parts["test"], parts["train"]):
        reason = "no labels: none of its folders is a class of train, so it is neither val nor test"
        ignored.append(LeftOut(what=sources.pop("test"), count=len(parts.pop("test").paths), reason=reason))
    if "val" in parts and not _shares_a_class(parts["val"], parts["train"]) and parts["train"].tops():
        raise ValueError(
            f"{listing.path}: {sources['val']} holds none of the class folders of {sources['train']}. Sort its images "
            f"into folders of those names, or move it elsewhere to have a part of {sources['train']} split off"
        )
    classes = _class_names(listing.path, {kind: part.tops() for kind, part in parts.items()})
    label_of = {label: index for index, label in enumerate(classes)}
    rows = {
        kind: [(name, label_of[path[0]]) for name, path in part.paths.items() if len(path) > 1]
        for kind, part in parts.items()
    }
    stray = [name for part in parts.values() for name, path in part.paths.items() if len(path) == 1]
    return Layout(
        classes=classes,
        train=rows["train"],
        val=rows.get("val"),
        test=rows.get("test"),
        stray=[Skipped(name, "lies in no class folder") for name in stray],
        sources=sources,
        left_out=tuple(ignored),
    )


def split_of(folder: str) -> str | None:
    """train, val or test, as people call it: Training, train_set, seg_train, valid, dev, eval, Testing, test2017."""
    found = _SPLIT.fullmatch(folder.casefold())
    return None if found is None else next(kind for kind, name in found.groupdict().items() if name)


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """Image files and folders, as seen from one of those."""

    paths: dict[str, tuple[str, ...]]
    """name of an image file -> the folders that lead there, and its own name"""
    folders: set[tuple[str, ...]]
    """the empty ones too"""
    others: set[tuple[str, ...]]
    """folders in which files lie that are no images"""

    @staticmethod
    def of(listing: Listing) -> "_Tree":
        def steps(name: str) -> tuple[str, ...]:
            return tuple(composed(name).split("/"))

        return _Tree(
            paths={name: steps(name) for name in listing.files},
            folders={steps(name) for name in listing.folders},
            others={steps(folder) for folder, _ in listing.others if folder},
        )

    def below(self, top: str) -> "_Tree":
        """What is in one top folder, as seen from there."""
        return _Tree(
            paths={name: path[1:] for name, path in self.paths.items() if path[0] == top and len(path) > 1},
            folders={path[1:] for path in self.folders if path[0] == top and len(path) > 1},
            others={path[1:] for path in self.others if path[0] == top and len(path) > 1},
        )

    def tops(self) -> set[str]:
        """The folders in here."""
        return {path[0] for path in self.folders}

    def pictured(self) -> dict[str, int]:
        """Of those the ones that hold images, at any depth, and how many."""
        return Counter(path[0] for path in self.paths.values() if len(path) > 1)

    def holds_pictures(self, top: str) -> bool:
        """Whether images lie in a folder itself, not in others inside."""
        return any(len(path) == 2 and path[0] == top for path in self.paths.values())

    def wrapper(self) -> str | None:
        """The one folder in here that holds images, all of them, and in folders; None: there is no such one.

        Beside it there may be folders of other files, such as annotations/.
        """
        pictured = self.pictured()
        if len(pictured) != 1 or any(len(path) == 1 for path in self.paths.values()):
            return None
        [top] = pictured
        files_only = {path[0] for path in self.others}
        fits = self.tops() - {top} <= files_only and any(len(path) > 1 and path[0] == top for path in self.folders)
        return top if fits else None


def _unwrapped(tree: _Tree) -> tuple[_Tree, list[LeftOut]]:
    """What is inside the folders around everything that are no split, and what lies beside those."""
    ignored = []
    while (top := tree.wrapper()) and not split_of(top):
        reason = f"holds no images; {top}/ beside it does"
        ignored += [LeftOut(what=f"{other}/", count=0, reason=reason) for other in sorted(tree.tops() - {top})]
        tree = tree.below(top)
    return tree, ignored


def _inside(tree: _Tree, kind: str) -> _Tree:
    """A split without a folder around all of it, called like the split (seg_train/seg_train/) or images."""
    while (top := tree.wrapper()) and (split_of(top) == kind or top.casefold() in _PLAIN):
        tree = tree.below(top)
    return tree


def _splits(where: Path, tree: _Tree) -> dict[str, str]:
    """train, val and test -> the folder that is it; nothing if the folders in here are classes, one of them train, say.

    Raises ValueError where that is unclear, and for splits without train.
    """
    named: dict[str, list[str]] = {}
    for top in sorted(tree.tops()):
        if kind := split_of(top):
            named.setdefault(kind, []).append(top)
    if not named:
        return {}
    folders_in = {top: tree.below(top).tops() for tops in named.values() for top in tops}
    beside = [top for top in sorted(tree.pictured()) if not split_of(top)]
    one = next(iter(named.values()))[0]  # the first by name
    if len(named) == 1 and beside and tree.holds_pictures(one):
        return {}  # a class of that name beside others
    if twice := next((tops for tops in named.values() if len(tops) > 1), None):
        raise ValueError(f"{where}: {_listed_names(twice)} may each be the same split. Keep one, or merge them")
    splits: dict[str, str] = {kind: named[kind][0] for kind in ("train", "val", "test") if kind in named}
    if "train" not in splits:
        raise ValueError(
            f"{where} has {one}/ but no train/: call the folder of training images train, or, if {one} is a class, put "
            "its images directly into it"
        )
    train = splits["train"]
    if not folders_in[train] and tree.holds_pictures(train):
        raise ValueError(f"{where}: images lie directly in {train}/. Sort them into {train}/<class>/, two or more")
    if len(splits) == 1 and beside:
        raise ValueError(
            f"{where}: {train}/ holds folders ({_listed_names(sorted(folders_in[train]))}), and images lie in "
            f"{_listed_names(beside)} beside it. If {train} is a class like those, put its images directly into it; if "
            "it is the training split, move the others elsewhere"
        )
    return splits


def _beside(tree: _Tree, splits: dict[str, str]) -> list[LeftOut]:
    """What lies beside the splits."""
    reason = f"lies beside {_listed_names(list(splits.values()))}, and is called like no split"
    pictured = tree.pictured()
    found = [
        LeftOut(what=f"{top}/", count=pictured.get(top, 0), reason=reason)
        for top in sorted(tree.tops() - set(splits.values()))
    ]
    loose = sorted(path[0] for path in tree.paths.values() if len(path) == 1)
    return found + [LeftOut(what=_listed_names(loose), count=len(loose), reason=reason)] * bool(loose)


def _refuse_alike(where: Path, tree: _Tree) -> None:
    """Folders that hold the same folders are no classes: Training/ and Testing/, images/ and masks/, fold1/ to fold3/.

    If the one thing that they share is called images, or the like, they are.
    """
    pictured = sorted(tree.pictured())
    if len(pictured) < 2 or any(tree.holds_pictures(top) for top in pictured):
        return
    inside = [{*tree.below(top).pictured()} for top in pictured]
    shared = set.intersection(*inside)
    if len(shared) > 1 or (all(names == shared for names in inside) and not {s.casefold() for s in shared} <= _PLAIN):
        raise ValueError(
            f"{where}: {_listed_names(pictured)} hold the same folders, {_listed_names(sorted(shared))}. If those are "
            "the classes, keep one of the folders around them, or call them train, val and test; if not, put the "
            "images of each class directly into its folder"
        )


def _shares_a_class(part: _Tree, train: _Tree) -> bool:
    """Whether one of a split's folders is a class of train, in whatever case."""
    return bool({top.casefold() for top in part.tops()} & {top.casefold() for top in train.tops()})


def _listed_names(names: list[str]) -> str:
    """A few names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _class_names(where: Path, parts: dict[str, set[str]]) -> tuple[str, ...]:
    classes = sorted(set().union(*parts.values()))
    for one, other in zip(named := sorted(classes, key=str.casefold), named[1:], strict=False):
        if one.casefold() == other.casefold():
            raise ValueError(f"{where}: classes {one} and {other} differ only in case. Rename one, or merge them")
    for kind, inside in parts.items():
        if unknown := sorted(inside - parts["train"]):
            raise ValueError(f"{where}: class {unknown[0]} is in {kind}/ but not in train/")
    if classes and {name.casefold() for name in classes} <= _NO_CLASSES:
        raise ValueError(
            f"{where} holds {_listed_names(classes)}: a data set for detection or segmentation. For classification, "
            "sort the images into a folder for each class"
        )
    if len(classes) < 2:
        raise ValueError(
            f"{where} must hold train/<class>/<image> (and val/<class>/<image>), or <class>/<image>, "
            f"for at least two classes; found {' '.join(classes) or 'none'}"
        )
    return tuple(classes)


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

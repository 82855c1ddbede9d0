"""A user's own folders: which of them are splits and which are classes, by what people call them and where images lie.

Where that is unclear nothing is guessed: the user is asked, by an error that says what would make it clear.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.index import LeftOut, Listing, Skipped, composed
from pipeline.data.layouts import Layout

_SPLIT = re.compile(
    r"((seg|data|dataset|images?|imgs?|split)[\W_]*)?"
    r"((?P<train>train(ing)?)|(?P<val>val(id(ation)?)?|dev|eval(uation)?)|(?P<test>test(ing)?))"
    r"([\W_]*(sets?|data|dataset|images?|imgs?|split|seg))?([\W_]*(19|20)\d\d)?"
)
_PLAIN = {"image", "images", "img", "imgs", "jpg", "jpeg", "jpegs", "jpegimages", "photos", "pictures", "data"}
"""folders that say nothing about what is in them"""
_NO_CLASSES = {*_PLAIN, "labels", "annotations", "masks", "bbox", "boxes", "xml", "json"}


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

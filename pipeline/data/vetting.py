"""What of a layout can be trained on: unusable files are left out and named, and what would spoil a run is refused."""

import math
from dataclasses import dataclass, replace

import numpy as np

from pipeline.data.duplicates import Duplicates, find
from pipeline.data.index import Checked, Listing, Progress, Skipped, check
from pipeline.data.layouts import Layout, Rows


@dataclass(frozen=True, kw_only=True)
class Vetted:
    """Images that can be decoded, in all splits."""

    train: Rows
    val: Rows
    test: Rows | None
    checked: dict[str, Checked]
    """of every file, the unusable ones too"""
    skipped: list[Skipped]
    duplicates: list[Duplicates]


def vet(
    listing: Listing,
    layout: Layout,
    max_bad_share: float,
    progress: Progress | None,
    *,
    keep_duplicates: bool,
) -> Vetted:
    """Decode every image once (see index.py), leave out what cannot be, split off a validation part if there is none.

    max_bad_share: of all images; the threshold is strict, so that a single bad file of a small set has to be looked at
    keep_duplicates: whether train keeps the images that are in val or test, too
    Raises ValueError for more unusable images than that, and for a class that has none left in train or val.
    """
    members = [member for member, _ in layout.train + (layout.val or []) + (layout.test or [])]
    total = len(members) + len(layout.stray)
    _refuse_too_many(layout.stray, total, max_bad_share)  # what is known already, before minutes go into decoding
    _refuse_empty_classes(layout)
    checked = check(listing, members, progress)
    faults = {member: fault for member in members if (fault := checked[member].fault)}
    skipped = layout.stray + [Skipped(member, fault) for member, fault in faults.items()]
    _refuse_too_many(skipped, total, max_bad_share)

    train = [row for row in layout.train if row[0] not in faults]
    val = None if layout.val is None else [row for row in layout.val if row[0] not in faults]
    _refuse_empty_classes(replace(layout, train=train, val=val))
    if val is None:
        train, val = _split_off(train)
    test = None if layout.test is None else [row for row in layout.test if row[0] not in faults]
    splits = {"train": train, "val": val, **({} if test is None else {"test": test})}
    read = listing.images((), np.zeros((0, 2), int)).read
    twice, duplicates = find(splits, checked, read, keep_duplicates)
    if twice:
        train = [row for row in train if row[0] not in twice]
        try:
            _refuse_empty_classes(replace(layout, train=train, val=val))
        except ValueError as error:
            raise ValueError(
                f"{len(twice)} images of train are in val or test too, and left out of train; then {error}. "
                "KEEP_DUPLICATES=1 keeps them"
            ) from error
    return Vetted(train=train, val=val, test=test, checked=checked, skipped=skipped, duplicates=duplicates)


def _refuse_empty_classes(layout: Layout) -> None:
    """Every class needs an image in train and val, or two if val is to be split off; test needs one of any class."""
    if layout.test == []:
        raise ValueError("test has no usable images. Add some, or remove the folder")
    if layout.val is None:
        parts = [(layout.train, 2, "to share between training and validation")]
    else:
        parts = [(layout.train, 1, "in train"), (layout.val, 1, "in val")]
    for rows, needed, where in parts:
        count = np.bincount(np.array([label for _, label in rows], dtype=int), minlength=len(layout.classes))
        if count.min() < needed:
            raise ValueError(
                f"class {layout.classes[count.argmin()]} has {count.min() or 'no'} usable images {where} and needs "
                f"{needed} or more. Add some, or remove the class"
            )


def _refuse_too_many(skipped: list[Skipped], total: int, max_bad_share: float) -> None:
    if len(skipped) <= max_bad_share * total:
        return
    share = len(skipped) / total
    lines = [f"  {file.path}: {file.reason}" for file in skipped[:20]]
    if len(skipped) > len(lines):
        lines.append(f"  and {len(skipped) - len(lines)} more")
    raise ValueError(
        f"{len(skipped)} of {total} images cannot be used ({share:.2%}; allowed are {max_bad_share:.2%}):\n"
        + "\n".join(lines)
        + f"\nRemove or mend them, or train without them: MAX_BAD_SHARE={math.ceil(share * 1e4) / 1e4:g}"
    )


def _split_off(rows: Rows) -> tuple[Rows, Rows]:
    """A fifth of each class, at least one image, becomes validation: the same images whatever the run's seed."""
    draw = np.random.default_rng(0)
    labels = np.array([label for _, label in rows])
    chosen = set()
    for label in np.unique(labels):
        own = draw.permutation(np.flatnonzero(labels == label))
        chosen.update(own[: max(1, round(len(own) / 5))].tolist())
    return [row for i, row in enumerate(rows) if i not in chosen], [row for i, row in enumerate(rows) if i in chosen]

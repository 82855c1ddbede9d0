"""The same image twice: in train and where accuracy is measured, it makes a model look better than it is."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.data.index import Checked
from pipeline.data.layouts import Rows


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Images that are in two splits, or in two classes, byte for byte."""

    where: str
    """train and val, train and test, val and test, or two classes"""
    count: int
    """images; of train, if that is one of the splits"""
    pairs: tuple[tuple[str, str], ...]
    """the first of them"""
    left_out: bool
    """whether train does without them"""


PAIRS = 20
"""that are named"""


def find(
    splits: dict[str, Rows], checked: dict[str, Checked], read: Callable[[str], bytes], keep: bool
) -> tuple[set[str], list[Duplicates]]:
    """Images of train that another split has too, and a summary of all that are there twice.

    splits:  train, val and, where there is one, test
    checked: size and checksum of every file. Only those that agree in both are read
    keep:    whether they stay in train
    """
    places = defaultdict(list)
    for split, rows in splits.items():
        for member, label in rows:
            places[checked[member].size, checked[member].crc].append((split, member, label))
    same = defaultdict(list)
    for group in places.values():
        if len({(split, label) for split, _, label in group}) > 1:
            for split, member, label in group:
                same[hashlib.sha256(read(member)).digest()].append((split, member, label))

    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    in_train = set()
    for group in same.values():
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            first = next((member for split, member, _ in group if split == other), None)
            twice = [(member, first) for split, member, _ in group if split == one and first is not None]
            pairs[f"{one} and {other}"] += twice
            in_train |= {member for member, _ in twice if one == "train"}
        _, first, label = group[0]
        pairs["two classes"] += [(first, member) for _, member, other in group if other != label]
    found = [
        Duplicates(
            where=where, count=len(two), pairs=tuple(two[:PAIRS]), left_out=not keep and where.startswith("train")
        )
        for where, two in pairs.items()
        if two
    ]
    return (set() if keep else in_train), found

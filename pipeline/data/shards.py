"""Images in tar files as the webdataset library has them: `KEY.jpg` and beside it `KEY.cls`, the label as a number.

The split is a word of a tar's name (`train-000003.tar`; none: train). Names of the classes are the lines of
`classnames.txt` beside the first tar; where there is none, the labels are their names. Nothing else in a tar is read.
Images keep the order of the tars, so that a set trains as the folder does that it was made from (write_shards.py).
"""

import contextlib
import http.client
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline import files
from pipeline.data import tars
from pipeline.data.folders import split_of
from pipeline.data.index import Listing, Skipped, index_path
from pipeline.data.layouts import Layout, Rows
from pipeline.data.tars import Entry
from targets import picture, strict

NAMES = "classnames.txt"
FORMAT = 1  # of what is remembered of a tar; another number makes every tar be gone through again
LARGEST_NAMES = 2**24  # bytes
_SAMPLE = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")  # webdataset's rule: a key ends at the first dot of the file's name


@dataclass(frozen=True)
class _Scanned:
    """What is remembered of a tar."""

    format: int
    of: str
    stamp: int
    images: tuple[tuple[str, int, int, int | None], ...]
    """name, offset, bytes, and label if there is one"""


def list_shards(pattern: str) -> tuple[Listing, Layout]:
    """The images of the tars that a pattern means (see `tars.expand`), and their labels and splits.

    Raises ValueError for tars that are not there or cannot be read, and for labels without a name.
    """
    found = tars.expand(pattern)
    names = _class_names(found[0])
    rows: dict[str, list[tuple[str, int]]] = {}
    sources: dict[str, str] = {}
    stamps: dict[str, tuple[int, int]] = {}
    entries: dict[str, Entry] = {}
    stray = []
    for where in found:
        short = where.rsplit("/", 1)[-1]
        split = next(filter(None, map(split_of, re.split(r"[\W\d_]+", short))), "train")
        sources.setdefault(split, f"tars from {short} on")
        stamp = tars.stamp(where)
        for name, offset, size, label in _scanned(where, stamp).images:
            member = f"{short}/{name}"
            if member in entries:
                raise ValueError(f"{where}: {member} is there twice. Give the tars names of their own")
            entries[member], stamps[member] = Entry(where, offset, size), (size, stamp)
            if label is None:
                stray.append(Skipped(member, "has no label: a .cls with a whole number beside it"))
            else:
                rows.setdefault(split, []).append((member, label))
    labels = sorted({label for part in rows.values() for _, label in part})
    if not labels:
        raise ValueError(f"{pattern} holds no image with a label: KEY.jpg and KEY.cls beside each other")
    if names is None:
        names, label_of = tuple(map(str, labels)), {label: index for index, label in enumerate(labels)}
    elif not 0 <= labels[0] <= labels[-1] < len(names):
        wrong = labels[0] if labels[0] < 0 else labels[-1]
        raise ValueError(f"{pattern}: label {wrong} has no name: {NAMES} beside {found[0]} has {len(names)} lines")
    else:
        label_of = {label: label for label in labels}
    parts: dict[str, Rows] = {split: [(m, label_of[label]) for m, label in part] for split, part in rows.items()}
    layout = Layout(
        classes=names,
        train=parts.get("train", []),
        val=parts.get("val"),
        test=parts.get("test"),
        stray=stray,
        sources=sources,
    )
    return Listing(Path(pattern), stamps, set(), entries=entries), layout


def _class_names(first: str) -> tuple[str, ...] | None:
    """The lines of the file beside the first tar; None if there is none."""
    where = first[: first.rindex("/") + 1] + NAMES if "/" in first else NAMES
    try:
        text = tars.whole(where, LARGEST_NAMES).decode()
    except FileNotFoundError:
        return None
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        raise ValueError(f"{where} cannot be read ({error}). Write a class a line, in UTF-8") from error
    names = tuple(line.strip() for line in text.splitlines())
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"{where}: a line is empty, or there twice. Write a class a line")
    return names


def _scanned(where: str, stamp: int) -> _Scanned:
    """What is in a tar: remembered beside the index of images, as going through one behind http takes long."""
    path = index_path(Path(where)).with_suffix(".tar.json")
    with contextlib.suppress(ValueError):  # missing or damaged: gone through anew
        known: _Scanned = strict.read_json(path, _Scanned, limit=2**30)
        if (known.format, known.of, known.stamp) == (FORMAT, _identity(where), stamp):
            return known
    images: list[tuple[str, str, Entry]] = []
    labels: dict[str, int] = {}
    for name, entry, head in tars.entries(where, ".cls"):
        if not (sample := _SAMPLE.fullmatch(name)) or any(picture.is_junk(part) for part in name.split("/")):
            continue
        key, kind = sample.groups()
        if kind == "cls":
            with contextlib.suppress(ValueError):
                labels[key] = int(head)
        elif f".{kind.lower()}".endswith(picture.SUFFIXES):
            images.append((key, name, entry))
    found = tuple((name, entry.offset, entry.size, labels.get(key)) for key, name, entry in images)
    scanned = _Scanned(FORMAT, _identity(where), stamp, found)
    with contextlib.suppress(OSError):  # a slow start next time, no more
        files.write_text(path, json.dumps(scanned.__dict__))
    return scanned


def _identity(where: str) -> str:
    return where if tars.is_remote(where) else os.path.abspath(where)

"""`make data`: a dataset's archives, downloaded, checked, unpacked and counted. Stopped, it goes on when repeated.

In the dataset's folder an archive is `NAME.part` while it comes, NAME when it is whole, and `NAME.damaged` when it
turns out to be another file. What it unpacks to gets its own name last, so whatever has that name is whole.
"""

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.filesize import decimal

from pipeline.data import cifar
from pipeline.data.catalog import Archive, Known
from pipeline.data.datasets import LAYOUTS
from pipeline.data.index import list_images
from pipeline.data.transfer import TransferFailed, download, part_of, size_of
from pipeline.data.unpack import UNPACKING, unpack
from pipeline.errors import EnvironmentLacks
from pipeline.files import locked

Progress = Callable[[str, int, int], None]
"""told (what is done to which archive, bytes done, bytes in all)"""


def fetch(known: Known, folder: Path, progress: Progress) -> None:
    """Make `folder` hold the dataset. Does nothing if it does already, in whichever layout layouts.py reads.

    Archives that the user has put there are used instead of the network's if their checksum matches. Archives stay.
    Raises EnvironmentLacks, with the steps for doing it by hand, where the network or an account is missing; ValueError
    for damaged or hostile archives, a disk that is too small, a folder in use, and fewer images than the catalogue's.
    """
    if not hasattr(tarfile, "data_filter"):  # PEP 706
        raise EnvironmentLacks(
            "Python 3.11.4 or newer is needed to unpack archives safely. Remove .venv and name one: "
            "make env PYTHON=/path/to/python3.11"
        )
    with locked(folder):
        if lacks(known, folder) is None:
            return
        shutil.rmtree(folder / UNPACKING, ignore_errors=True)  # what a crash left must not count as used space
        missing = [archive for archive in known.archives if not (folder / archive.gives).exists()]
        if any(archive.url is None and not (folder / archive.name).exists() for archive in missing):
            raise EnvironmentLacks(f"{known.title} is given only to people who register.\n{steps(known, folder)}")
        _check_space(known, folder, missing)
        for archive in missing:
            path = folder / archive.name
            if not path.exists():
                _download(known, archive, folder, progress)
            try:
                _check(archive, path, progress)
                told = partial(progress, f"unpack {archive.name}")
                unpack(path, folder / archive.gives, _limit(archive.unpacked_bytes), told)
            except ValueError as error:
                aside = path.replace(path.with_name(f"{path.name}.damaged"))
                raise ValueError(
                    f"{path} is not the file that its owner publishes: {error}. It is called {aside.name} now: "
                    "delete it, and repeat the command to get the right one"
                ) from error
        if lack := lacks(known, folder):
            given = " ".join(archive.gives for archive in known.archives)
            raise ValueError(f"{folder} is not complete: {lack}. Remove there: {given}; and repeat the command")


def lacks(known: Known, folder: Path) -> str | None:
    """What `folder` has too little of, in words; None if it holds the whole dataset. No image is opened.

    Raises ValueError for damaged label files.
    """
    try:
        if known.name in LAYOUTS:
            layout = LAYOUTS[known.name](list_images(folder))
            classes, train, val = layout.classes, len(layout.train), len(layout.val or ())
        else:
            classes, (_, train_labels), (_, val_labels) = cifar.load(known.name, folder)
            train, val = len(train_labels), len(val_labels)
    except FileNotFoundError as error:
        return f"{error.filename or error} is missing"
    if len(classes) != known.classes or train < known.train_images or val < known.val_images:
        return (
            f"it has {len(classes):,} classes, {train:,} training and {val:,} validation images; "
            f"{known.title} has {known.classes:,}, {known.train_images:,} and {known.val_images:,}"
        )
    return None


def steps(known: Known, folder: Path) -> str:
    """How a person gets the dataset into `folder` without this machine's network."""
    facts = [(a.url or a.name, decimal(a.bytes), a.checksum or "no checksum published") for a in known.archives]
    return "\n".join(
        [
            f"  1. {known.manual}",
            *(f"       {what} ({size}, {checksum})" for what, size, checksum in facts),
            f"     See {known.home}; licence: {known.licence}",
            f"  2. Put them, as they are, into {folder}, where the images need {decimal(known.unpacked_bytes)} more",
            f"  3. Repeat: {known.command(folder)}",
        ]
    )


def _check_space(known: Known, folder: Path, missing: list[Archive]) -> None:
    need = 0
    for archive in missing:
        path = folder / archive.name
        need += max(0, archive.bytes - max(size_of(path), size_of(part_of(path)))) + archive.unpacked_bytes
    need += need // 20  # the owners round their sizes, and file systems round up every file
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"{known.title} needs {decimal(need)} more in {folder}, archives and images together, and {decimal(free)} "
            f"are free. Make room, or take another place: make data DATASET={known.name} DATA=dir"
        )


def _download(known: Known, archive: Archive, folder: Path, progress: Progress) -> None:
    assert archive.url
    path = folder / archive.name
    try:
        download(
            archive.url,
            path,
            _limit(archive.bytes),
            lambda done, size: progress(f"get {archive.name}", done, size or archive.bytes),
        )
    except TransferFailed as failed:
        kept = f" ({decimal(size)} are kept)" if (size := size_of(part_of(path))) else ""
        raise EnvironmentLacks(
            f"cannot download {archive.url}: {failed}{kept}. Repeat the command when the network is back, or do it by "
            f"hand:\n{steps(known, folder)}"
        ) from failed


def _check(archive: Archive, path: Path, progress: Progress) -> None:
    """Raises ValueError for another checksum. Where none is published, unpacking and the counts are the check."""
    if archive.checksum is None:
        return
    algorithm, expected = archive.checksum.split(":")
    found, size = hashlib.new(algorithm, usedforsecurity=False), size_of(path)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            found.update(chunk)
            progress(f"check {archive.name}", file.tell(), size)
    if found.hexdigest() != expected:
        raise ValueError(f"its {algorithm} is {found.hexdigest()}, not {expected}")


def _limit(expected: int) -> int:
    """More bytes than this are no rounding of the catalogue's: something is wrong, or meant to fill the disk."""
    return 2 * expected + 10_000_000

"""Image files of a directory or a zip (or in tars: shards.py): which there are and can be decoded, and access to them.

To know that every image can be decoded is to decode it once, which takes minutes for a large set. What came of it is
kept in an index in the user's cache (`$XDG_CACHE_HOME/dap/index`, else `~/.cache/dap/index`; one JSON file per
directory or zip; delete it at will), never among the user's images. Later starts list the files and decode only those
that are new, were unusable, or whose size or modification time has changed; in a zip, whose size or checksum has. So
a file that another one of the same size and modification time has replaced is taken for the old one.
"""

import contextlib
import hashlib
import json
import os
import threading
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from pipeline import files
from pipeline.data import images, tars, zip_names
from pipeline.data.images import Picture
from pipeline.data.tars import Entry
from targets import picture, strict

LARGEST_FILE = 512 * 2**20  # bytes: more than a 100-megapixel TIFF, less than what a zip bomb unpacks to
COMPRESSIONS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
FORMAT = 1  # of the index; another number makes every file be decoded again

Progress = Callable[[int, int], None]
"""told (images checked, images to check)"""


@dataclass(frozen=True)
class Skipped:
    """A file that is no training or validation image."""

    path: str
    """below the dataset's directory or zip"""
    reason: str


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Files that no split has, for a reason that they share; nothing is wrong with the files themselves."""

    what: str
    """which files"""
    count: int
    reason: str


@dataclass(frozen=True)
class Listing:
    """The image files of a directory or zip."""

    path: Path
    """the directory or the zip"""
    files: dict[str, tuple[int, int]]
    """name below `path`: bytes and nanoseconds of the last change (in a zip: checksum), in the order of the names"""
    folders: set[str]
    """every directory below `path`, the empty ones too"""
    others: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(folder, suffix) of files that are no images -> how many"""
    notes: tuple["LeftOut", ...] = ()
    """what else is left out, or was guessed"""
    entries: Mapping[str, Entry] = field(default_factory=dict)
    """where the files are that lie in tars"""

    def images(self, members: Sequence[str], sizes: np.ndarray) -> "Files":
        """Some of the images. sizes: (n, 2) height and width as shown, pixels."""
        return Files(self.path, members, sizes, self.entries)


class Checked(NamedTuple):
    """What is known of a file once it has been decoded."""

    size: int
    stamp: int
    crc: int
    """checksum of the file"""
    height: int
    width: int
    """as shown, pixels"""
    fault: str | None
    """why it cannot be used, or None"""


@dataclass(frozen=True)
class _Index:
    """What an index file holds."""

    format: int
    of: str
    """the directory or zip"""
    files: dict[str, tuple[int, int, int, int, int, str | None]]
    """name -> as Checked has it"""


def composed(name: str) -> str:
    """A name as it compares: macOS stores é as e and an accent, others as one character."""
    return unicodedata.normalize("NFC", name)


def list_images(path: Path) -> Listing:
    """The image files at any depth below a directory or in a zip, without junk; by their suffix, or their first bytes.

    Raises ValueError for a path that is neither, for a directory that may not be read, and for a zip that has to be
    unpacked by other means first.
    """
    return _sorted(_list_directory(path) if path.is_dir() else _list_zip(path))


def _sorted(listing: Listing) -> Listing:
    return replace(listing, files=dict(sorted(listing.files.items(), key=lambda item: composed(item[0]))))


def _list_directory(path: Path) -> Listing:
    found: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    others: Counter[tuple[str, str]] = Counter()
    start = path.stat()
    pending = [(path, "", {(start.st_dev, start.st_ino)})]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise ValueError(f"{folder} cannot be listed ({error.strerror}). Make it readable, or remove it") from error
        for entry in entries:
            name = prefix + entry.name
            if picture.is_junk(entry.name):
                continue
            if entry.is_dir():
                state = entry.stat()
                if any("\ud800" <= character <= "\udfff" for character in entry.name):  # no label could be written
                    raise ValueError(f"{path}: the name of a folder, {name!a}, is not in UTF-8. Rename the folder")
                if (identity := (state.st_dev, state.st_ino)) not in above:  # else a link that leads upwards
                    folders.add(name)
                    pending.append((Path(entry.path), f"{name}/", above | {identity}))
            elif name.lower().endswith(picture.SUFFIXES) or _is_image_inside(Path(entry.path)):
                try:
                    state = entry.stat()
                    found[name] = (state.st_size, state.st_mtime_ns)
                except OSError:  # a link to nowhere: as good as empty
                    found[name] = (0, 0)
            else:
                others[prefix.rstrip("/"), _suffix(name)] += 1
    return Listing(path, found, folders, others)


def _is_image_inside(path: Path) -> bool:
    """Whether a file without an image's suffix is one all the same."""
    if not picture.may_be_image(path.name):
        return False
    try:
        if not path.is_file():  # a pipe would never give anything
            return False
        with path.open("rb", buffering=0) as file:
            return picture.is_image(file.read(picture.HEAD))
    except OSError:
        return False


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _list_zip(path: Path) -> Listing:
    found: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    others: Counter[tuple[str, str]] = Counter()
    with _open_zip(path) as archive:
        entries, guessed = _entries(path, archive)
        for name, entry in entries:
            parts = name.rstrip("/").split("/")
            if any(picture.is_junk(part) for part in parts):
                continue
            folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
            if name.endswith("/"):
                folders.add("/".join(parts))
            elif name.lower().endswith(picture.SUFFIXES):
                if why := _why_sealed(entry):
                    raise ValueError(f"{path}: {name} is {why}. Unpack it yourself, and give the folder")
                found[name] = (entry.file_size, entry.CRC)
            elif picture.may_be_image(name) and not _why_sealed(entry) and _is_image_entry(archive, entry):
                found[name] = (entry.file_size, entry.CRC)
            else:
                others["/".join(parts[:-1]), _suffix(name)] += 1
    times = Counter(name for name, entry in entries if name in found)
    twice = [name for name, count in times.items() if count > 1]
    notes = [
        LeftOut(what=f"names such as {text}", count=0, reason=f"in no stated encoding: read as {encoding}")
        for encoding, text in guessed.items()
    ]
    if twice:
        count = sum(times[name] - 1 for name in twice)
        notes.append(
            LeftOut(what=f"entries such as {twice[0]}", count=count, reason="another of the same name follows")
        )
    return Listing(path, found, folders, others, tuple(notes))


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path} is neither a directory nor a zip file. Unpack it, and give the folder") from error


def _entries(path: Path, archive: zipfile.ZipFile) -> tuple[list[tuple[str, zipfile.ZipInfo]], dict[str, str]]:
    """Names and entries of an archive, and as `zip_names.names` has them the encodings that were guessed.

    Raises ValueError for a folder whose name cannot be told.
    """
    names, guessed = zip_names.names(archive.infolist())
    entries = []
    for name, entry in zip(names, archive.infolist(), strict=True):
        if isinstance(name, zip_names.Undecodable):
            raise ValueError(f"{path}: the name of a folder, {name}. Unpack it yourself, and give the folder")
        steps = [step for step in name.split("/")[:-1] if step not in ("", ".")]
        entries.append(("/".join([*steps, name.split("/")[-1]]), entry))
    return entries, guessed


def _why_sealed(entry: zipfile.ZipInfo) -> str | None:
    """Why zipfile cannot read an entry."""
    if entry.flag_bits & 1:
        return "encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        return f"packed by {COMPRESSIONS.get(entry.compress_type, f'method {entry.compress_type}')}, not by Deflate"
    return None


def _is_image_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as file:
            return picture.is_image(file.read(picture.HEAD))
    except Exception:  # damaged: whatever its decompressor stumbles over
        return False


class Files:
    """Images below a directory, inside a zip or in tars, opened when asked for."""

    def __init__(
        self, path: Path, members: Sequence[str], sizes: np.ndarray, entries: Mapping[str, Entry] | None = None
    ) -> None:
        self.path, self.members, self.entries = path, members, entries or {}
        self.sizes = sizes
        """(n, 2) height and width as shown, pixels"""
        # of which process: handles do not survive a fork; and its entries by name
        self._archive: tuple[int, zipfile.ZipFile, dict[str, zipfile.ZipInfo]] | None = None

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Picture:
        """Raises ValueError that names the file if it cannot be read or is no image (any more)."""
        member = self.members[index]
        place = self.entries[member].where if member in self.entries else self.path
        try:
            data = self.read(member)
        except Exception as error:  # a damaged zip fails with whatever its decompressor stumbles over
            raise ValueError(f"{place}: {member} cannot be read ({error}). Has it changed meanwhile?") from error
        return images.open_picture(data, f"{place}: {member}")

    def chosen(self, rows: np.ndarray) -> "Files":
        """Only the images of these rows."""
        return Files(self.path, [self.members[row] for row in rows], self.sizes[rows], self.entries)

    def read(self, member: str) -> bytes:
        """The file's bytes."""
        if member in self.entries:
            return tars.read(self.entries[member])
        if self.path.is_dir():
            return (self.path / member).read_bytes()
        if self._archive is None or self._archive[0] != os.getpid():
            archive = _open_zip(self.path)
            self._archive = (os.getpid(), archive, dict(_entries(self.path, archive)[0]))
        _, archive, entries = self._archive
        return archive.read(entries[member])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_archive": None}


def check(listing: Listing, members: Sequence[str], progress: Progress | None = None) -> dict[str, Checked]:
    """Decode the `members` of a listing that the index does not know yet, on all cores; returns what is known of each.

    What has been found out is kept even if the check is interrupted.
    """
    path = index_path(listing.path)
    known = {
        name: entry
        for name, entry in _load(path).items()
        if entry[:2] == listing.files.get(name) and not entry.fault  # a permission changes without a trace
    }
    unknown = [member for member in dict.fromkeys(members) if member not in known]
    if unknown:
        store = listing.images((), np.zeros((0, 2), int))
        # One reader at a time in a zip: its file handle is not made for threads.
        zipped = listing.path.is_file() and not listing.entries
        turn = threading.Lock() if zipped else contextlib.nullcontext()
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads: decoders run outside Python's lock
                for start in range(0, len(unknown), 256):
                    batch = unknown[start : start + 256]
                    found = pool.map(lambda member: _check(store, turn, member, *listing.files[member]), batch)
                    known.update(zip(batch, found, strict=True))
                    if progress:
                        progress(start + len(batch), len(unknown))
        finally:
            with contextlib.suppress(OSError):  # no index means a slow start next time, no more
                files.write_text(path, json.dumps({"format": FORMAT, "of": str(listing.path), "files": known}))
    return {member: known[member] for member in members}


def index_path(path: Path) -> Path:
    """Where the index of a directory or zip is."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dap" / "index" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.json"


def _load(path: Path) -> dict[str, Checked]:
    try:
        index: _Index = strict.read_json(path, _Index, limit=2**30)
        return {name: Checked(*entry) for name, entry in index.files.items()} if index.format == FORMAT else {}
    except ValueError:  # missing or damaged: built anew
        return {}


def _check(store: Files, turn: contextlib.AbstractContextManager, member: str, size: int, stamp: int) -> Checked:
    def faulty(reason: str) -> Checked:
        return Checked(size, stamp, 0, 0, 0, reason)

    if size == 0:  # as pipes and devices say of themselves, which would never stop giving
        return faulty("is empty, or no ordinary file")
    if size > LARGEST_FILE:
        return faulty(f"is larger than {LARGEST_FILE >> 20} MiB")
    try:
        with turn:
            data = store.read(member)
    except Exception as error:  # no permission, a damaged zip: whatever it is, this file cannot be used
        return faulty(f"cannot be read ({getattr(error, 'strerror', None) or error})")
    try:
        found = images.check(data, member)
    except ValueError as error:
        return faulty(str(error).removeprefix(f"{member} "))
    return Checked(size, stamp, zlib.crc32(data), found.height, found.width, None)

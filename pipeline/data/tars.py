"""Entries of tar files, on this machine or behind http: which there are, and the bytes of any of them.

A tar is not compressed, so an entry is a range of its bytes: entries can be read in any order, as files can.
"""

import glob
import http.client
import io
import os
import re
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

TIMEOUT_S = 30.0  # without a byte
AHEAD = 2**20  # bytes fetched at a time while entries are looked for
MOST = 100_000  # tars of one pattern
SHOWN = 64  # bytes


class Entry(NamedTuple):
    """Where the bytes of an entry are."""

    where: str
    """the tar: a path, or an address"""
    offset: int
    size: int


def is_remote(where: str) -> bool:
    """Whether it is an address rather than a path."""
    return where.startswith(("http://", "https://"))


def expand(pattern: str) -> list[str]:
    """The tars that a pattern means: {a,b} and {000..011}, on this machine also * and ?, or all tars of a directory.

    Raises ValueError if there is none.
    """
    found = list(dict.fromkeys(_expanded(pattern)))  # braces inside braces give the same one several times
    if missing := [where for where in found if not is_remote(where) and not os.path.isfile(where)]:
        raise ValueError(f"{missing[0]} does not exist")
    if not found:
        raise ValueError(f"there is no tar file {pattern}")
    return found


def _expanded(pattern: str) -> Iterator[str]:
    if braces := re.search(r"\{([^{}]*)\}", pattern):
        first_last = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
        options = braces[1].split(",")
        if first_last:
            first, last = first_last.groups()
            if not 0 <= int(last) - int(first) < MOST:
                raise ValueError(f"{braces[0]} must go up, to {MOST:,} tars at most")
            options = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        for option in options:
            yield from _expanded(pattern[: braces.start()] + option + pattern[braces.end() :])
    elif is_remote(pattern):
        yield pattern
    elif os.path.isdir(path := os.path.expanduser(pattern)):
        yield from sorted(glob.glob(f"{glob.escape(path)}/*.tar"))
    elif glob.has_magic(path):
        yield from sorted(glob.glob(path))
    else:
        yield path


def entries(where: str, shown: str) -> Iterator[tuple[str, Entry, bytes]]:
    """Names and places of the files in a tar, in its order, and the first bytes of those whose name ends in `shown`.

    Raises ValueError for what is no tar, or breaks off.
    """
    try:
        file = io.BufferedReader(_Remote(where) if is_remote(where) else io.FileIO(where), AHEAD)
        with file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    content = tar.extractfile(member) if member.name.endswith(shown) else None
                    head = content.read(SHOWN) if content else b""
                    yield member.name, Entry(where, member.offset_data, member.size), head
    except (tarfile.TarError, OSError, http.client.HTTPException) as error:
        raise ValueError(f"{where} cannot be read as an uncompressed tar ({error}). Get or write it again") from error


def stamp(where: str) -> int:
    """Changes when the tar does: its modification time, or a checksum of what the server says of its version."""
    if not is_remote(where):
        return os.stat(where).st_mtime_ns
    try:
        headers = _answer(where, "HEAD", {})[0]
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{where} cannot be read ({error}). Is the server up, and the address right?") from error
    told = [headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length")]
    return zlib.crc32(" ".join(told).encode())


def read(entry: Entry) -> bytes:
    """The entry's bytes. Raises OSError or HTTPException if they are not there any more."""
    if is_remote(entry.where):
        return _range(entry.where, entry.offset, entry.size)
    with Path(entry.where).open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), entry.size, entry.offset)
    if len(data) < entry.size:
        raise OSError(f"{entry.where} ends too early")
    return data


def whole(where: str, limit: int) -> bytes:
    """A file beside the tars. Raises FileNotFoundError if it is not there, else OSError or HTTPException."""
    size = _length(where) if is_remote(where) else os.path.getsize(where)
    if size > limit:
        raise OSError(f"it has {size:,} bytes, more than {limit:,}")
    return _answer(where, "GET", {})[1] if is_remote(where) else Path(where).read_bytes()


class _Remote(io.RawIOBase):
    """A file behind http, as tarfile wants it."""

    def __init__(self, where: str) -> None:
        self.where, self.at, self.size = where, 0, _length(where)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, into) -> int:
        count = max(0, min(len(into), self.size - self.at))
        if count:
            into[:count] = _range(self.where, self.at, count)
            self.at += count
        return count


def _length(where: str) -> int:
    told = _answer(where, "HEAD", {})[0].get("Content-Length", "")
    if not told.isdecimal():
        raise OSError("the server does not say how long it is")
    return int(told)


def _range(where: str, first: int, count: int) -> bytes:
    if not count:
        return b""
    headers, data = _answer(where, "GET", {"Range": f"bytes={first}-{first + count - 1}"})
    if len(data) != count or headers.get("Content-Range", "").split("/")[0] != f"bytes {first}-{first + count - 1}":
        raise OSError("the server does not answer with the range that it is asked for")
    return data


_kept = threading.local()
"""of this thread: the process that it was in, and its connections by their server"""


def _answer(where: str, method: str, asked: dict[str, str]) -> tuple[http.client.HTTPMessage, bytes]:
    """Headers and body, over a connection that is kept. Raises OSError for every status but success."""
    parts = urlsplit(where)
    if getattr(_kept, "process", None) != os.getpid():  # what a fork has left belongs to the parent
        _kept.process, _kept.connections = os.getpid(), {}
    server = parts.scheme, parts.netloc
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    while True:
        known = server in _kept.connections
        connection = _kept.connections.pop(server, None) or kinds[parts.scheme](parts.netloc, timeout=TIMEOUT_S)
        try:
            connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), headers=asked)
            answer = connection.getresponse()
            if "Range" in asked and answer.status == http.HTTPStatus.OK:  # all of it: may be more than memory holds
                raise OSError("the server knows no ranges")
            body = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            if known:  # the server may have ended a connection that was kept
                continue
            raise
        _kept.connections[server] = connection
        if answer.status == http.HTTPStatus.NOT_FOUND:
            raise FileNotFoundError(f"the server has no {where}")
        if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
            raise OSError(f"the server answers {answer.status} {answer.reason}")
        return answer.headers, body

"""One file from one URL, however often the connection breaks.

`NAME.part` holds what has come so far, `NAME.part.json` the file's version and length on the server. NAME appears when
all of it is there. Whether it is the right file is for the caller to check.
"""

import contextlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from pipeline import files
from targets import strict

TIMEOUT_S = 30.0  # without a byte
PAUSES_S = (1.0, 3.0, 10.0, 30.0, 60.0)  # before each new attempt in a row that brought nothing
CHUNK = 2**20  # bytes


class TransferFailed(Exception):
    """The server, or the way to it."""

    def __init__(self, reason: str, *, again: bool = True, reached: bool = True) -> None:
        super().__init__(reason)
        self.again, self.reached = again, reached  # is another attempt worth while; did anybody answer


@dataclass(frozen=True)
class _Notes:
    """What is known of the file on the server; None: it does not tell."""

    version: str | None = None
    bytes: int | None = None


def download(url: str, path: Path, limit: int, progress: Callable[[int, int | None], None]) -> None:
    """Complete `path` from what is there already.

    limit:    bytes; a server that sends more is refused
    progress: told bytes had, and bytes in all if the server says so
    Raises TransferFailed when there is no way to the server, when it refuses, or when several attempts brought nothing;
    what has come is kept.
    """
    part = part_of(path)
    failures, came = 0, False
    while True:
        before = size_of(part)
        try:
            _receive(url, part, limit, progress)
            break
        except TransferFailed as failed:
            gained = size_of(part) > before
            came = came or gained
            failures = 1 if gained else failures + 1
            offline = not failed.reached and not came  # no use in waiting
            if offline or not failed.again or failures > len(PAUSES_S):
                raise
            time.sleep(PAUSES_S[failures - 1])
    part.replace(path)
    _notes_of(part).unlink()


def part_of(path: Path) -> Path:
    """Where `path` is until it is complete."""
    return path.with_name(f"{path.name}.part")


def size_of(path: Path) -> int:
    """Bytes; 0 for a file that is not there."""
    return path.stat().st_size if path.exists() else 0


def _notes_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _receive(url: str, part: Path, limit: int, progress: Callable[[int, int | None], None]) -> None:
    """One attempt: the bytes that `part` lacks, or all if the server has another version by now or knows no ranges."""
    size, notes_file = size_of(part), _notes_of(part)
    fix = "delete it, and the file is fetched anew"
    notes: _Notes = strict.read_json(notes_file, _Notes, fix=fix) if size and notes_file.exists() else _Notes()
    if size and size == notes.bytes:
        return
    headers = {"Accept-Encoding": "identity"}
    if size and notes.version:
        headers |= {"Range": f"bytes={size}-", "If-Range": notes.version}
    with _network(part):
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    with response:
        going_on = response.status == 206
        if going_on:
            total = _length(response.headers["Content-Range"], size, part)
        else:
            size, total = 0, int(response.headers["Content-Length"] or 0) or None
        with part.open("ab" if going_on else "wb") as file:
            if not going_on:
                files.write_json(notes_file, {"version": _version(response.headers), "bytes": total})
            while total is None or size < total:
                if max(size, total or 0) > limit:
                    part.unlink()
                    raise TransferFailed(f"the server sends more than {decimal(limit)}", again=False)
                with _network(part):
                    chunk = response.read1(CHUNK if total is None else min(CHUNK, total - size))
                if not chunk:
                    break
                file.write(chunk)
                size += len(chunk)
                progress(size, total)
    if total and size < total:
        raise TransferFailed(f"the connection was cut after {decimal(size)} of {decimal(total)}")


@contextlib.contextmanager
def _network(part: Path) -> Iterator[None]:
    """What goes wrong on the way to the server becomes TransferFailed. A full disk does not come through here."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file on the server has become shorter than our part
            part.unlink(missing_ok=True)
        again = error.code >= 500 or error.code in (408, 416, 429)
        raise TransferFailed(f"HTTP {error.code} {error.reason}", again=again) from error
    except urllib.error.URLError as error:
        raise TransferFailed(str(error.reason), reached=False) from error
    except (OSError, http.client.HTTPException) as error:
        raise TransferFailed(str(error) or type(error).__name__) from error


def _length(content_range: str | None, asked: int, part: Path) -> int | None:
    """The length of the whole file, from `bytes 100-199/200`."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range or "")
    if not match or int(match[1]) != asked:
        part.unlink()
        raise TransferFailed(f"the server answered with {content_range} when asked for the bytes from {asked} on")
    return int(match[2]) if match[2] != "*" else None


def _version(headers: http.client.HTTPMessage) -> str | None:
    """What tells the server's file from a later one of that name. If-Range takes no weak tags (RFC 9110, 13.1.5)."""
    tag = headers["ETag"]
    return tag if tag and not tag.startswith("W/") else headers["Last-Modified"]

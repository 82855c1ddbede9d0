"""Files that matter: atomic writes, locks, digests, the log."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from targets import strict


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write to a full disk does not say where that was
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, a missing number is null."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep(folder: Path) -> None:
    """Remove what writes that were killed have left in a folder that this process holds."""
    for path in [*folder.rglob(".*.tmp"), *folder.glob("artifacts/*/.*"), *folder.glob("bench/*/.*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class InUse(ValueError):
    """Another process is at work on a run."""


_held: set[int] = set()
"""file descriptors of the locks of this process"""


def _let_go() -> None:
    """A child that was forked, such as a loader's worker, has no part in the lock: it may outlive its parent."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor in _held:
        os.dup2(nothing, descriptor)  # not closed: the child's copy of the file object believes in it
    os.close(nothing)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the lock goes with the process, however it ends.

    Raises InUse if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUse(
                f"{folder} is in use by another process. Wait for it, or choose another with RUN=, DATA= or OUT="
            ) from error
        _held.add(file.fileno())
        try:
            yield
        finally:
            _held.discard(file.fileno())


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Log:
    """log.jsonl: one JSON object per line, each with its stage and step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; a line torn by a crash is left out."""
        if not self.path.exists():
            return []
        lines = []
        for line in self.path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(strict.parse_json(line, dict[str, Any], str(self.path)))
        return lines

    def rewind(self, stage: str, step: int) -> None:
        """Forget what `stage` logged after `step`: it is about to be computed again."""
        kept = [line for line in self.read() if line["stage"] != stage or line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise

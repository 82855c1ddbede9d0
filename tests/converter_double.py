"""A converter that does what the tests of its process need. Its functions run in that process."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

LOCKS: list[Any] = []


def warm_up() -> None:
    Path(os.environ["WARMED_UP"]).write_text(f"{os.getpid()} {os.nice(0)}")


def tell(path: Path, line: str) -> tuple[None, tuple[str, ...]]:
    """Write a line where converters write theirs."""
    os.write(2, line.encode())
    path.write_text(f"{os.getpid()} {os.nice(0)}")
    return None, ()


def last(path: Path, started: Path) -> tuple[None, tuple[str, ...]]:
    """Convert for ever; `started` is told which process does."""
    started.write_text(str(os.getpid()))
    time.sleep(600)
    return None, ()


def lock(path: Path) -> tuple[None, tuple[str, ...]]:
    """Make a lock between processes and keep it, as progress bars do."""
    LOCKS.append(multiprocessing.RLock())
    path.touch()
    return None, ()

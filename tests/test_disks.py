"""Disks that are full or read-only while a run is being made, and clocks that are set back; all of it really is."""

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import context_of, tiny_config

from pipeline import files, stages
from pipeline.runs import Run

MB_MORE = 16
"""by which a disk grows when it has been full"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of 1 MB, and what mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)

    try:
        mount("size=1m")
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("mounting a small disk needs root")
    yield folder, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_full_disks_a_read_only_one_and_a_clock_set_back_change_nothing(disk, finished, image_folder):
    """The disk is full again and again, and has some room more whenever the command is repeated; in the middle of
    pruning it cannot be written to for once. Each time the clock is an hour behind the one of the start before.
    """
    (place, remount), size = disk, 1
    folder, seen = place / "run", list[int]()

    def spoil(stage: str, done: int, *_) -> None:
        if (stage, done) == ("prune", 5) and errno.EROFS not in seen:
            remount("ro")

    def attempt() -> OSError | None:
        context, said = context_of(folder, tiny_config(image_folder), spoil)
        try:
            stages.run_training(context)
            stages.report(context)
        except OSError as error:
            return error
        finally:
            assert not any("inputs have changed" in line for line in said)
        return None

    for _ in range(30):
        problem = attempt()
        if problem is None:
            break
        assert problem.errno in (errno.ENOSPC, errno.EROFS)
        assert Path(problem.filename).is_relative_to(place)
        seen.append(problem.errno)
        size += MB_MORE if problem.errno == errno.ENOSPC else 0
        remount(f"rw,size={size}m")
        assert not list(folder.rglob("*.tmp"))
        ahead = time.time() + 3600 * (30 - len(seen))
        for path in folder.rglob("*"):
            os.utime(path, (ahead, ahead))
    assert seen.count(errno.EROFS) == 1 and seen.count(errno.ENOSPC) >= 5
    whole, after = Run.open(finished[0]), Run.open(folder)
    for stage in stages.TRAINING:
        assert after.results(stage) == whole.results(stage)
    for name in ("model/weights.safetensors", "checkpoints/compact/weights.safetensors"):
        assert files.digest(folder / name) == files.digest(finished[0] / name), name
    assert after.log.read() == whole.log.read()

"""Doing a job where the artifact runs: what counts as its memory, as its loading, and as a photograph's way."""

import io
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.index import Files
from pipeline.data.photograph import photograph
from targets.artifact import Program, peak_memory_mb
from targets.devices import measure
from targets.resize import Resize, fit

IMAGE = np.zeros((1, 8, 8, 3), np.uint8)
HELD: list[np.ndarray] = []


def _load(path: Path, threads: int) -> Program:
    """A runtime whose own code takes 300 MB for a moment, once, and whose artifact takes 60."""
    if path.name == "no such file":
        np.ones(300_000_000, np.uint8).sum()
        raise ValueError("there is no such file")
    if HELD:
        time.sleep(0.05)  # the second time in a process
    HELD.append(np.ones(60_000_000, np.uint8))
    return Program(prepare=lambda image: image, run=lambda image: image, runtime="fake", runtime_version="1")


@pytest.mark.skipif(peak_memory_mb() is None, reason="this system does not tell a process's peak memory")
def test_memory_is_what_the_artifact_adds_whatever_its_runtime_took_before():
    """A start that took more than the artifact does would hide it."""
    found = measure.memory_mb(_load, Path("artifact"), 1, IMAGE)
    assert found == pytest.approx(60, abs=15)
    assert not HELD, "in a process of its own"


def test_loading_is_timed_twice_in_a_process_of_its_own():
    found = measure.fresh(_load, Path("artifact"), 1, IMAGE)
    assert found is not None
    assert found.cold_ms > 0
    assert found.warm_ms >= 50
    assert found.from_storage is False, "there is no such file, which could leave the page cache"
    assert not HELD, "in a process of its own"


def _dies(path: Path, threads: int) -> Program:
    if path.name != "no such file":
        signal.raise_signal(signal.SIGKILL)
    raise ValueError("there is no such file")


def test_a_process_that_is_killed_measures_nothing():
    assert measure.fresh(_dies, Path("artifact"), 1, IMAGE) is None
    assert measure.memory_mb(_dies, Path("artifact"), 1, IMAGE) is None


@pytest.fixture
def stored(tmp_path):
    """A file that can leave the page cache."""
    (path := tmp_path / "artifact").write_bytes(bytes(3_000_000))
    if not measure.forget(path):
        pytest.skip("this file system keeps its files in memory, or the system does not tell")
    return path


def test_a_file_is_out_of_the_page_cache_only_where_the_system_says_so(stored, monkeypatch):
    assert not measure._cached(stored)
    stored.read_bytes()
    assert measure._cached(stored)
    held = np.memmap(stored, np.uint8, "r")
    assert held.sum() == 0
    assert not measure.forget(stored), "what a program has mapped stays"
    del held
    assert measure.forget(stored)
    folder = stored.parent / "package"
    folder.mkdir()
    assert not measure.forget(folder), "nothing of it was dropped"
    shutil.copy(stored, folder / "weights")
    (folder / "empty").touch()
    assert measure.forget(folder)
    assert not measure.forget(stored.parent / "none")
    monkeypatch.delattr(measure.os, "posix_fadvise")
    assert not measure.forget(stored), "this system cannot"


RULE = Resize(shorter_side=40, square=False, interpolation="bicubic", centre_crop=32)


def _program(seen: list[np.ndarray]) -> Program:
    def run(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels)
        time.sleep(0.002)
        return np.zeros((1, 2), np.float32)

    return Program(prepare=lambda image: image.astype(np.float32), run=run, runtime="fake", runtime_version="1")


def test_a_photograph_goes_every_step_from_its_file_to_the_logits(tmp_path, monkeypatch):
    """Turned upright, too: as an app does it."""
    photo, seen = tmp_path / "photo.jpg", []
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo, exif=exif)
    found = measure.end_to_end(_program(seen), photo, RULE)
    assert len(found.decode_ms) == len(found.resize_ms) == len(found.inference_ms) == measure.PHOTOGRAPHS
    assert len(seen) == measure.PHOTOGRAPHS + measure.PHOTOGRAPHS_WARMUP
    assert min(found.inference_ms) >= 2
    assert min(found.decode_ms) > 0
    assert min(found.resize_ms) > 0
    upright = np.rot90(np.asarray(Image.open(photo)), -1)
    np.testing.assert_array_equal(seen[0][0], fit(np.ascontiguousarray(upright), RULE))
    monkeypatch.setattr(measure, "PHOTOGRAPHS_S", 0.0)
    slow = measure.end_to_end(_program([]), photo, RULE)
    assert (slow.total.samples, slow.total.valid) == (1, False)


def test_without_pillow_or_with_one_that_cannot_read_it_nothing_is_held_against_the_artifact(tmp_path, monkeypatch):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff none")
    with pytest.raises(measure.NoPhotograph, match=r"Pillow does not read photo\.jpg"):
        measure.end_to_end(_program([]), tmp_path / "photo.jpg", RULE)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(measure.NoPhotograph, match=r"photographs need Pillow .*: pip install pillow"):
        measure.end_to_end(_program([]), tmp_path / "photo.jpg", RULE)


def test_the_photograph_is_the_first_jpeg_of_the_images_or_one_that_is_there_anyway(tmp_path):
    def first(*names: str) -> tuple[int, int]:
        images = Files(tmp_path, names, np.zeros((len(names), 2), int))
        return Image.open(io.BytesIO(photograph(images))).size

    for name in ("1.png", "2.jpg"):
        Image.new("RGB", (50, 40)).save(tmp_path / name)
    assert first("gone.jpg", "1.png", "2.jpg") == (50, 40)
    assert first("gone.jpg", "1.png") == Image.open(io.BytesIO(photograph(None))).size == (640, 427)

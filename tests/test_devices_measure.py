"""Doing a job where the artifact runs: what counts as its memory."""

from pathlib import Path

import numpy as np
import pytest

from targets.artifact import Program, peak_memory_mb
from targets.devices import measure

IMAGE = np.zeros((1, 8, 8, 3), np.uint8)
HELD: list[np.ndarray] = []


def _load(path: Path, threads: int) -> Program:
    """A runtime whose own code takes 300 MB for a moment, once, and whose artifact takes 60."""
    if path.name == "no such file":
        np.ones(300_000_000, np.uint8).sum()
        raise ValueError("there is no such file")
    HELD.append(np.ones(60_000_000, np.uint8))
    return Program(prepare=lambda image: image, run=lambda image: image, runtime="fake", runtime_version="1")


@pytest.mark.skipif(peak_memory_mb() is None, reason="this system does not tell a process's peak memory")
def test_memory_is_what_the_artifact_adds_whatever_its_runtime_took_before():
    """A start that took more than the artifact does would hide it."""
    found = measure.memory_mb(_load, Path("artifact"), 1, IMAGE)
    assert found == pytest.approx(60, abs=15)
    assert not HELD, "in a process of its own"

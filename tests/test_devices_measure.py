"""Doing a job where the artifact runs: what counts as its memory."""

import gc
from pathlib import Path

import numpy as np
import pytest

from targets.artifact import Program, peak_memory_mb
from targets.devices import measure

IMAGE = np.zeros((1, 8, 8, 3), np.uint8)


@pytest.mark.skipif(peak_memory_mb() is None, reason="this system does not tell a process's peak memory")
def test_memory_is_what_the_artifact_adds_whatever_the_process_had_before():
    """A process whose own start took more than the artifact does would hide it."""
    held: list[np.ndarray] = []

    def load(path: Path, threads: int) -> Program:
        if path.name == "no such file":  # the runtime's code, loaded once: here it takes 300 MB for a moment
            np.ones(300_000_000, np.uint8).sum()
            raise ValueError("there is no such file")
        held.append(np.ones(60_000_000, np.uint8))
        return Program(prepare=lambda image: image, run=lambda image: image, runtime="fake", runtime_version="1")

    gc.collect()  # what earlier tests left and is freed just now would count as less memory
    found = measure._memory_mb(load, Path("artifact"), 1, IMAGE)
    assert found == pytest.approx(60, abs=15)

"""Small artifacts, and jobs with them, for the tests of boards."""

import atexit
import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from test_targets_graph import MEAN, STD, vit

from pipeline.data.photograph import photograph
from targets import executorch, tflite
from targets.artifact import Program, sha256_of
from targets.devices.job import GOLDEN, IMAGES, PHOTO, Job, rows_of
from targets.devices.measure import logits
from targets.devices.ssh import _package
from targets.latency import Protocol
from targets.resize import Resize

BRIEF = Protocol(name="brief", seconds=0.3, min_samples=20, warmup=2, cooldown_s=0.0)
LONG = dataclasses.replace(BRIEF, name="long", seconds=30.0)
SIZE = 24


def pictures(count: int) -> np.ndarray:
    """(N, H, W, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def make_job(
    folder: Path, artifact: Path, load: Callable[[Path, int], Program], format: str, protocol: Protocol | None = BRIEF
) -> Job:
    """Fill a folder with a job for an artifact: 2 golden images, 6 others, all of them labelled right."""
    folder.mkdir(parents=True)
    (folder / artifact.name).symlink_to(artifact)
    images = pictures(6)
    (folder / GOLDEN).write_bytes(images[:2].tobytes())
    (folder / IMAGES).write_bytes(images.tobytes())
    found = logits(load(artifact, 2), (image[None] for image in images))
    return Job(
        id=hashlib.sha256(str(folder).encode()).hexdigest()[:32],
        format=format,
        files=(artifact.name,),
        sha256={name: sha256_of(folder / name) for name in (artifact.name, GOLDEN, IMAGES)},
        threads=2,
        height=SIZE,
        width=SIZE,
        classes=found.shape[1],
        golden=rows_of(found[:2]),
        labels=tuple(found.argmax(1).tolist()),
        protocol=protocol,
    )


def with_photo(job: Job, folder: Path) -> Job:
    """The job with a photograph, and loading to be timed twice."""
    (folder / PHOTO).write_bytes(photograph(None))
    return dataclasses.replace(
        job,
        sha256={**job.sha256, PHOTO: sha256_of(folder / PHOTO)},
        memory=True,
        loads=2,
        resize=Resize(shorter_side=SIZE + 2, square=False, interpolation="bicubic", centre_crop=SIZE),
    )


@cache
def tflite_file(precision: str = "fp32") -> Path:
    """A two-layer transformer's .tflite."""
    path = _folder() / f"model-{precision}.tflite"
    tflite.export(vit(depth=2), mean=MEAN, std=STD, path=path, precision=precision)
    return path


@cache
def executorch_file() -> Path:
    """The same model's .pte."""
    path = _folder() / "model.pte"
    executorch.export(vit(depth=2), mean=MEAN, std=STD, path=path)
    return path


@cache
def _folder() -> Path:
    """For what all tests of a session share: an export takes seconds, a format's first one many."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


def runner(folder: Path) -> Path:
    """What a board has: the files that are pushed to it, and a package of nothing else."""
    _package(folder / "targets")
    return folder

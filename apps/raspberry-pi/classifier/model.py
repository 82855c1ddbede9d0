"""The artifact that the manifest names, ready to classify pictures, and whether it computes here what it should."""

import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from PIL import Image

from classifier import pictures
from targets import manifest
from targets.artifact import Load, Program, RuntimeUnavailable
from targets.formats import boards

RUNTIMES: dict[str, tuple[str, Load]] = {
    name: (format, load) for format, board in boards().items() for name, load in board.runtimes.items()
}
"""name, which is its package's too -> format of its files (as the manifest has it), loader

tflite-runtime needs numpy < 2, which install.sh does not install: it is for a system that has both of them.
"""


@dataclass(frozen=True)
class Answer:
    """What a picture shows."""

    top: list[tuple[str, float]]
    """labels with their probabilities, the likeliest first"""
    milliseconds: float
    """of the inference alone"""


@dataclass(frozen=True)
class Classifier:
    """A loaded model."""

    manifest: manifest.Manifest
    file: str
    """the artifact"""
    path: Path
    load: Load
    threads: int
    program: Program
    golden: list[np.ndarray]
    """RGB (1, H, W, 3) uint8"""
    golden_error: float | None
    """largest difference from the golden logits; None without such, or if they are no numbers here"""
    warning: str | None
    """why the model is not to be trusted here; None if it computes what it should"""

    def __call__(self, pixels: np.ndarray, count: int = 5) -> Answer:
        """The `count` likeliest labels of an RGB picture (H, W, 3) uint8 of any size.

        Raises ValueError if the model computes no finite numbers.
        """
        image = self.program.prepare(pictures.fit(pixels, self.manifest.input)[None])
        start = time.perf_counter()
        logits = self.program.run(image)[0].astype(np.float64)
        taken_ms = 1000 * (time.perf_counter() - start)
        if not np.isfinite(logits).all():
            raise ValueError(f"{self.file} computes no finite numbers; see what `classify check` says")
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-shares)[:count]
        return Answer([(self.manifest.labels[i], float(shares[i])) for i in best], taken_ms)


def load(folder: Path, runtime: str | None = None, threads: int = 4) -> Classifier:
    """The pruned model of a folder with a manifest, held against its golden pictures.

    runtime: a key of RUNTIMES; None: the first that is installed and has a file
    Raises ValueError if the manifest or a file is missing or damaged, or no file fits a runtime that is there.
    """
    described = manifest.read(folder / manifest.FILE_NAME)
    tried = []
    for name in [runtime] if runtime else RUNTIMES:
        format, loader = RUNTIMES[name]
        entry = next((f for f in described.files if f.role == "pruned" and f.format == format), None)
        if entry is None:
            tried.append(f"{name}: the manifest names no file for it")
            continue
        try:
            program = loader(folder / entry.file, threads)
        except (RuntimeUnavailable, ValueError) as error:
            tried.append(f"{name}: {error}")
            continue
        golden = [np.asarray(Image.open(folder / picture.file).convert("RGB"))[None] for picture in described.golden]
        off, warning = _check(described, entry.file, program, golden)
        path = folder / entry.file
        return Classifier(described, entry.file, path, loader, threads, program, golden, off, warning)
    raise ValueError("no runtime can run this model here. " + "; ".join(tried))


def installed() -> dict[str, str]:
    """Runtime -> version, of those that are installed."""
    found = {}
    for name in RUNTIMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _check(
    described: manifest.Manifest, file: str, program: Program, golden: list[np.ndarray]
) -> tuple[float | None, str | None]:
    """Largest difference from the golden logits, and a warning if that is too much."""
    expected = np.array([picture.artifacts[file] for picture in described.golden if file in picture.artifacts])
    if not golden or len(expected) != len(golden):
        return None, "the manifest has no golden pictures for this file: nobody knows whether it computes well"
    found = np.stack([program(image)[0] for image in golden])
    if found.shape != expected.shape or not np.isfinite(found).all():
        return None, f"the model gives {found.shape} numbers instead of {expected.shape}, all finite"
    error = float(np.abs(found - expected).max())
    limit = (described.golden_share or {}).get(file, 0.0) * float(np.abs(expected).max())
    if not error <= limit:  # a limit that is no number allows nothing
        return (
            error,
            f"the model computes something else here than where it was made: {error:.3g} off, {limit:.3g} allowed",
        )
    return error, None

"""manifest.json: all that an app or a device needs to know of the artifacts beside it. Nothing else describes them."""

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from targets import strict
from targets.artifact import sha256_of

VERSION = 2
FILE_NAME = "manifest.json"
ROLES = ("pruned", "dense")
SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The image that every artifact takes, and how to make it from a picture."""

    height: int
    width: int
    """pixels"""
    color: str
    """for example "RGB" """
    range: tuple[float, float]
    """smallest and largest pixel value; mean and std are in the artifact"""
    resize: dict[str, Any]
    """how to bring a picture to that size; plain JSON types"""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.range[0] >= self.range[1]:
            raise ValueError("height and width must be at least 1, and the second number of range the larger one")


@dataclass(frozen=True, kw_only=True)
class ArtifactFile:
    """One artifact beside the manifest."""

    file: str
    """path relative to the manifest's folder, with /; may be a folder (.mlpackage)"""
    format: str
    """a key of targets.formats.FORMATS"""
    precision: str
    role: str
    """pruned, or the dense model it is compared with"""
    size_bytes: int
    sha256: str
    """of a folder as targets.artifact.sha256_of has it"""
    layout: str
    """of the input: NHWC or NCHW with one image, or image where the platform's own image type goes in"""
    dtype: str
    """of the input's numbers"""
    minimum_runtime: str | None = None
    """oldest version of the runtime that runs it"""
    measured: dict[str, Any] | None = None
    """what the gate found: top1, parity, latency_ms, peak_mb, device, checks, verdict"""

    def __post_init__(self) -> None:
        _check_file(self.file, self.sha256)
        if self.role not in ROLES:
            raise ValueError(f"{self.file}: role is {self.role!r}, not one of {', '.join(ROLES)}")
        if self.size_bytes < 0:
            raise ValueError(f"size_bytes must be 0 or more, not {self.size_bytes}")


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One picture, of the input's size, with the logits that belong to it."""

    file: str
    """path relative to the manifest's folder, with /"""
    sha256: str
    model: tuple[float, ...]
    """logits of the float32 PyTorch model"""
    artifacts: dict[str, tuple[float, ...]]
    """logits of every pruned artifact, by file, through its own runtime where it was made"""

    def __post_init__(self) -> None:
        _check_file(self.file, self.sha256)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest_version 2."""

    model: str
    dataset: str
    target: str
    labels: tuple[str, ...]
    """in the order of the logits"""
    input: InputSpec
    files: tuple[ArtifactFile, ...]
    golden: tuple[Golden, ...] = ()
    golden_share: dict[str, float] | None = None
    """by file: share of the largest golden logit by which a device's may differ from the artifact's own"""
    params: int | None = None
    params_dense: int | None = None
    tools: dict[str, str] | None = None
    """package -> version that made the files"""

    def __post_init__(self) -> None:
        if not self.labels or not self.files:
            raise ValueError("a manifest needs at least one label and one file")
        names = [file for file, _ in self.checksums()]
        if len(set(names)) != len(names):
            raise ValueError(f"a manifest names each file once, not {', '.join(names)}")
        for golden in self.golden:
            for row in (golden.model, *golden.artifacts.values()):
                if len(row) != len(self.labels):
                    raise ValueError(f"{golden.file} has {len(row)} logits for {len(self.labels)} labels")
            if unknown := sorted(golden.artifacts.keys() - set(names)):
                raise ValueError(f"{golden.file} has logits of {unknown[0]}, which is no file of the manifest")

    def checksums(self) -> list[tuple[str, str]]:
        """Every file that belongs to the manifest, with its SHA-256."""
        return [(a.file, a.sha256) for a in self.files] + [(g.file, g.sha256) for g in self.golden]


def write(manifest: Manifest, path: Path) -> Path:
    """Write the manifest beside its files, in one step. Returns its path."""
    content = json.dumps({"manifest_version": VERSION, **dataclasses.asdict(manifest)}, indent=2, allow_nan=False)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes((content + "\n").encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(path: Path) -> Manifest:
    """A manifest, once every file that it names is there and unchanged.

    Raises ValueError saying what is wrong and what to do.
    """
    again = "export again"
    manifest: Manifest = strict.read_json(path, Manifest, version=("manifest_version", VERSION), fix=again)
    for name, sha256 in manifest.checksums():
        file = path.parent / name
        if not file.exists():
            raise ValueError(f"{path} names {name}, which is missing; copy the whole folder or {again}")
        if sha256_of(file) != sha256:
            raise ValueError(f"{file} has changed since {path} was written (its checksum differs); {again}")
    return manifest


def _check_file(file: str, sha256: str) -> None:
    """A manifest may come from elsewhere: it must not name files outside its own folder, nor itself."""
    path = PurePosixPath(file)
    plain = file.isprintable() and "\\" not in file and str(path) == file  # no "", a//b, ./a or a/
    if not plain or path.is_absolute() or not path.parts or ".." in path.parts:
        raise ValueError(f"{file!r} does not lie beside the manifest")
    if path.parts[0].casefold() == FILE_NAME:
        raise ValueError(f"{file!r} is the manifest itself")
    if not SHA256.fullmatch(sha256):
        raise ValueError(f"{file}: {sha256!r} is not a SHA-256")

"""manifest.json: all that an app or a device needs to know of the artifacts beside it. Nothing else describes them."""

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

VERSION = 1
FILE_NAME = "manifest.json"
ROLES = ("pruned", "dense")
SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The tensor that an artifact takes, and how to make it from a picture."""

    shape: tuple[int, ...]
    """for example (1, 64, 64, 3)"""
    dtype: str
    """for example "float32" """
    layout: str
    """for example "NHWC" """
    range: tuple[float, float]
    """smallest and largest pixel value; mean and std are in the artifact"""
    resize: dict[str, Any]
    """how to bring a picture to the shape; plain JSON types"""


@dataclass(frozen=True, kw_only=True)
class ArtifactFile:
    """One artifact beside the manifest."""

    file: str
    """path relative to the manifest's folder, with /"""
    format: str
    precision: str
    role: str
    """pruned, or the dense model it is compared with"""
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _check_file(self.file, self.sha256)
        if self.role not in ROLES:
            raise ValueError(f"{self.file}: role is {self.role!r}, not one of {', '.join(ROLES)}")


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One picture with the logits that the pruned artifact must give for it."""

    file: str
    """path relative to the manifest's folder, with /"""
    sha256: str
    logits: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_file(self.file, self.sha256)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest_version 1."""

    model: str
    dataset: str
    target: str
    labels: tuple[str, ...]
    """in the order of the logits"""
    input: InputSpec
    files: tuple[ArtifactFile, ...]
    golden: tuple[Golden, ...] = ()

    def __post_init__(self) -> None:
        if not self.labels or not self.files:
            raise ValueError("a manifest needs at least one label and one file")
        names = [file for file, _ in self.checksums()]
        if len(set(names)) != len(names):
            raise ValueError(f"a manifest names each file once, not {', '.join(names)}")
        for golden in self.golden:
            if len(golden.logits) != len(self.labels):
                raise ValueError(f"{golden.file} has {len(golden.logits)} logits for {len(self.labels)} labels")

    def checksums(self) -> list[tuple[str, str]]:
        """Every file that belongs to the manifest, with its SHA-256."""
        return [(a.file, a.sha256) for a in self.files] + [(g.file, g.sha256) for g in self.golden]


def describe_file(path: Path, folder: Path, *, format: str, precision: str, role: str) -> ArtifactFile:
    """The entry of a file that lies in the manifest's folder."""
    name = Path(path).relative_to(folder).as_posix()
    size_bytes, digest = Path(path).stat().st_size, file_sha256(path)
    return ArtifactFile(file=name, format=format, precision=precision, role=role, size_bytes=size_bytes, sha256=digest)


def write(manifest: Manifest, folder: Path) -> Path:
    """Write manifest.json into the folder of its files, in one step. Returns its path."""
    path = Path(folder) / FILE_NAME
    content = json.dumps({"manifest_version": VERSION, **dataclasses.asdict(manifest)}, indent=2, allow_nan=False)
    partial = path.with_name(f".{FILE_NAME}.{os.getpid()}")
    try:
        partial.write_text(content + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(folder: Path) -> Manifest:
    """The manifest of a folder, once every file that it names is there and unchanged.

    Raises ValueError saying what is wrong and what to do.
    """
    path = Path(folder) / FILE_NAME
    again = "export again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); {again}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {again}") from error
    found = content.pop("manifest_version", None) if isinstance(content, dict) else None
    if type(found) is not int or found != VERSION:
        raise ValueError(
            f"{path}: manifest_version is {found!r}, this program reads {VERSION}; {again} with this version"
        )
    try:
        manifest = _parse(content)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}; {again}") from error
    for name, sha256 in manifest.checksums():
        file = Path(folder) / name
        if not file.is_file():
            raise ValueError(f"{path} names {name}, which is missing; copy the whole folder or {again}")
        if file_sha256(file) != sha256:
            raise ValueError(f"{file} has changed since {path} was written (its checksum differs); {again}")
    return manifest


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(content: dict[str, Any]) -> Manifest:
    top = _fields(Manifest, content, "the manifest")
    spec = _fields(InputSpec, top["input"], "input")
    golden = [_fields(Golden, entry, "golden") for entry in top.get("golden", [])]
    return Manifest(
        model=top["model"],
        dataset=top["dataset"],
        target=top["target"],
        labels=tuple(top["labels"]),
        input=InputSpec(**{**spec, "shape": tuple(spec["shape"]), "range": tuple(spec["range"])}),
        files=tuple(ArtifactFile(**_fields(ArtifactFile, entry, "files")) for entry in top["files"]),
        golden=tuple(Golden(**{**entry, "logits": tuple(entry["logits"])}) for entry in golden),
    )


def _fields(kind: Any, content: Any, where: str) -> dict[str, Any]:
    """The object, once its keys are those of the dataclass."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be an object, not {type(content).__name__}")
    known = dataclasses.fields(kind)
    missing = [field.name for field in known if field.default is dataclasses.MISSING and field.name not in content]
    unknown = sorted(content.keys() - {field.name for field in known})
    if missing or unknown:
        problems = [
            f"{what} {', '.join(keys)}" for what, keys in (("lacks", missing), ("has unknown", unknown)) if keys
        ]
        raise ValueError(f"{where} {' and '.join(problems)}")
    return content


def _check_file(file: str, sha256: str) -> None:
    """A manifest may come from elsewhere: it must not name files outside its own folder."""
    path = PurePosixPath(file)
    if not file or path.is_absolute() or ".." in path.parts or "\\" in file:
        raise ValueError(f"{file!r} does not lie beside the manifest")
    if not SHA256.fullmatch(sha256):
        raise ValueError(f"{file}: {sha256!r} is not a SHA-256")

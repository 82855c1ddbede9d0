"""manifest.json: what is written is read back, and nothing else is."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from targets.artifact import sha256_of, size_of
from targets.manifest import (
    FILE_NAME,
    ArtifactFile,
    Golden,
    InputSpec,
    Manifest,
    read,
    write,
)


def entry(path: Path, role: str) -> ArtifactFile:
    return ArtifactFile(
        file=path.name,
        format="tflite",
        precision="fp32",
        role=role,
        size_bytes=size_of(path),
        sha256=sha256_of(path),
        layout="NHWC",
        dtype="float32",
        minimum_runtime="1.14.0",
        measured={"top1": 0.5, "verdict": "pass"} if role == "pruned" else None,
    )


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "0.png").write_bytes(b"picture")
    for role in ("pruned", "dense"):
        (tmp_path / f"{role}.tflite").write_bytes(role.encode() * 100)
    result = Manifest(
        model="deit",
        dataset="digits",
        target="host",
        labels=("null", "één"),
        input=InputSpec(height=8, width=8, color="RGB", range=(0.0, 255.0), resize={"size": 8, "crop": 0.9}),
        files=tuple(entry(tmp_path / f"{role}.tflite", role) for role in ("pruned", "dense")),
        golden=(
            Golden(
                file="golden/0.png",
                sha256=sha256_of(tmp_path / "golden" / "0.png"),
                model=(0.5, -1.25),
                artifacts={"pruned.tflite": (0.5, -1.0)},
            ),
        ),
        golden_share={"pruned.tflite": 0.001},
        params=10,
        params_dense=40,
        tools={"torch": "2"},
    )
    write(result, tmp_path / FILE_NAME)
    return result


def test_it_reads_what_it_wrote(manifest: Manifest, tmp_path: Path) -> None:
    assert read(tmp_path / FILE_NAME) == manifest
    assert json.loads((tmp_path / FILE_NAME).read_text())["manifest_version"] == 2
    assert (tmp_path / FILE_NAME).read_text().startswith('{\n  "manifest_version": 2,\n'), "people read it too"
    assert manifest.files[0].size_bytes == 600
    assert {path.name for path in tmp_path.iterdir()} == {FILE_NAME, "golden", "pruned.tflite", "dense.tflite"}


@pytest.mark.parametrize("name", ["pruned.tflite", "dense.tflite", "golden/0.png"])
def test_a_changed_or_missing_file_is_refused(manifest: Manifest, tmp_path: Path, name: str) -> None:
    content = bytearray((tmp_path / name).read_bytes())
    content[3] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} has changed.*export again"):
        read(tmp_path / FILE_NAME)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name}, which is missing.*export again"):
        read(tmp_path / FILE_NAME)


def tampered(change: Callable[[dict[str, Any]], object], folder: Path) -> None:
    content = json.loads((folder / FILE_NAME).read_text())
    change(content)
    (folder / FILE_NAME).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(manifest_version=1), "manifest_version is 1, this program reads 2"),
        (lambda c: c.update(manifest_version=True), "manifest_version is True"),
        (lambda c: c.pop("manifest_version"), "manifest_version is None"),
        (lambda c: c.pop("labels"), ": lacks labels"),
        (lambda c: c.update(author="x"), ": has the unknown key 'author'"),
        (lambda c: c["input"].pop("height"), ": input: lacks height"),
        (lambda c: c["files"][1].pop("sha256"), r": files\[1\]: lacks sha256"),
        (lambda c: c["golden"][0].pop("model"), r": golden\[0\]: lacks model"),
        (lambda c: c.update(input=None), ": input: must be an object"),
        (lambda c: c.update(files=[]), "at least one"),
        (lambda c: c.update(files=c["files"] * 2), "each file once, not pruned.tflite, dense.tflite, "),
        (lambda c: c["files"][0].update(role="spare"), "role is 'spare', not one of pruned, dense"),
        (lambda c: c["files"][0].update(file="../secret"), "does not lie beside"),
        *(
            (lambda c, file=file: c["files"][0].update(file=file), "does not lie beside")
            for file in ("/etc/passwd", "", ".", "..", "./a", "a//b", "a/", "a/./b", "a/../b", "a\\b", "a\0", "\x1b[2J")
        ),
        *(
            (lambda c, file=file: c["files"][0].update(file=file), "is the manifest itself")
            for file in ("manifest.json", "Manifest.json", "manifest.json/a")
        ),
        (lambda c: c["golden"][0].update(file="manifest.json"), r"golden\[0\]: .*is the manifest itself"),
        (lambda c: c["files"][0].update(size_bytes=True), r"files\[0\]\.size_bytes: must be a whole number"),
        (lambda c: c["files"][0].update(size_bytes=-1), "size_bytes must be 0 or more"),
        (lambda c: c["labels"].append(3), r"labels\[2\]: must be text"),
        (lambda c: c["input"].update(height=0), "must be at least 1"),
        (lambda c: c["input"].update(range=[1]), r"input\.range: must be a list of 2"),
        (lambda c: c.update(params="many"), "params: must be a whole number"),
        (lambda c: c["golden"][0]["model"].__setitem__(0, None), r"golden\[0\]\.model\[0\]: must be a finite number"),
        (lambda c: c["files"][0].update(sha256="0" * 63), "not a SHA-256"),
        (lambda c: c["golden"][0].update(model=[1.0]), "1 logits for 2 labels"),
        (lambda c: c["golden"][0]["artifacts"].update({"pruned.tflite": [1.0]}), "1 logits for 2 labels"),
        (lambda c: c["golden"][0]["artifacts"].update(other=[1.0, 2.0]), "logits of other, which is no file"),
        (lambda c: c["labels"].append("x"), "2 logits for 3 labels"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    manifest: Manifest, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    tampered(change, tmp_path)
    with pytest.raises(ValueError, match=rf"{FILE_NAME}.*{message}.*; export again$"):
        read(tmp_path / FILE_NAME)


def test_golden_may_be_left_out(manifest: Manifest, tmp_path: Path) -> None:
    tampered(lambda content: content.pop("golden"), tmp_path)
    assert read(tmp_path / FILE_NAME) == dataclasses.replace(manifest, golden=())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ValueError, match="export again"):
        read(tmp_path / FILE_NAME)


def test_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read.*export again"):
        read(tmp_path / FILE_NAME)


def test_a_failed_write_leaves_the_old_one(manifest: Manifest, tmp_path: Path) -> None:
    before = (tmp_path / FILE_NAME).read_bytes()
    bad = dataclasses.replace(manifest, golden=(dataclasses.replace(manifest.golden[0], model=(float("nan"), 0.0)),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(bad, tmp_path / FILE_NAME)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_folder_is_checked_file_by_file(manifest: Manifest, tmp_path: Path) -> None:
    package = tmp_path / "pruned.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weights").write_bytes(b"weights")
    (package / "Manifest.json").write_bytes(b"{}")
    written = dataclasses.replace(manifest, files=(*manifest.files, entry(package, "pruned")))
    assert written.files[2].size_bytes == 9
    write(written, tmp_path / FILE_NAME)
    assert read(tmp_path / FILE_NAME) == written
    (package / "Data" / "weights").rename(package / "weights")
    with pytest.raises(ValueError, match=r"pruned\.mlpackage has changed"):
        read(tmp_path / FILE_NAME)


def test_a_file_outside_the_folder_has_no_entry(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="does not lie beside"):
        dataclasses.replace(manifest.files[0], file="..\\a")
    assert dataclasses.replace(manifest.files[0], size_bytes=0).size_bytes == 0


@pytest.mark.parametrize(
    "change", [{"height": 0}, {"width": 0}, {"range": (1.0, 1.0)}, {"range": (2.0, 1.0)}, {"height": 0, "width": 0}]
)
def test_an_input_that_cannot_be_is_refused(change) -> None:
    values = {"height": 1, "width": 1, "color": "RGB", "range": (0.0, 1.0), "resize": {}}
    InputSpec(**values)
    with pytest.raises(ValueError, match="height and width must be at least 1, and the second number of range"):
        InputSpec(**{**values, **change})

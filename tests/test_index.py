"""Images are decoded once, changes are noticed, and files that cannot be used are named."""

import io
import json
import os
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import images, index
from pipeline.data.datasets import load_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Indexes of the tests do not belong into the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that have been decoded."""
    names = []
    check = images.check

    def recorded(data, where):
        names.append(where)
        return check(data, where)

    monkeypatch.setattr(images, "check", recorded)
    return names


def encoded(size: int = 24, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of six."""
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for n in range(6):
            (tmp_path / "photos" / label / f"{n}.jpg").write_bytes(encoded(20 + n))
    return tmp_path / "photos"


def load(path: Path, **options):
    return load_dataset(f"folder:{path}", **options)


def test_a_second_load_decodes_nothing(photos, decoded, cache):
    before = sorted(photos.rglob("*"))
    first = load(photos)
    assert len(decoded) == 12
    decoded.clear()
    second = load(photos)
    assert decoded == []
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.train.images.sizes, first.train.images.sizes)
    assert sorted(photos.rglob("*")) == before  # nothing among the user's images
    assert list(cache.rglob("*.json")) == [index.index_path(photos)]


def test_changed_added_and_removed_files_are_noticed(photos, decoded):
    prints = [load(photos).fingerprint]
    for change, expected in (
        (lambda: (photos / "a/0.jpg").write_bytes(encoded(20)), ["a/0.jpg"]),  # the same bytes at another time
        (lambda: (photos / "a/0.jpg").write_bytes(encoded(90)), ["a/0.jpg"]),
        (lambda: (photos / "b/new.jpg").write_bytes(encoded(91)), ["b/new.jpg"]),
        (lambda: (photos / "b/3.jpg").unlink(), []),
    ):
        decoded.clear()
        time.sleep(0.02)  # longer than the clock of any file system here
        change()
        prints.append(load(photos).fingerprint)
        assert decoded == expected
    assert prints[0] == prints[1]  # a file that was only touched is the same file
    assert len(set(prints)) == 4


def test_a_changed_file_in_a_zip_is_noticed_whatever_its_time(tmp_path, decoded):
    def pack(odd: bytes) -> str:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for n, name in enumerate(("a/0.bmp", "a/1.bmp", "b/0.bmp", "b/1.bmp")):
                archive.writestr(zipfile.ZipInfo(name), odd if name == "b/1.bmp" else encoded(9 + n, "BMP"))
        return load(tmp_path / "x.zip").fingerprint

    one = encoded(8, "BMP")
    other = one[:-1] + bytes([one[-1] ^ 1])
    first = pack(one)
    decoded.clear()
    assert pack(other) != first
    assert decoded == ["b/1.bmp"]


def test_moving_the_folder_keeps_the_fingerprint(photos, tmp_path):
    before = load(photos).fingerprint
    photos.rename(tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere").fingerprint == before


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 1, "files": {"a/0.jpg": [1]}}', '{"format": 0, "files": 1}']
)
def test_a_damaged_index_is_built_anew(photos, decoded, content):
    expected = load(photos).fingerprint
    decoded.clear()
    index.index_path(photos).write_text(content)
    assert load(photos).fingerprint == expected
    assert len(decoded) == 12


def test_without_a_place_for_the_index_the_data_still_load(photos, cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    assert load(photos).classes == ("a", "b")


def test_what_an_interrupted_check_has_found_is_kept(photos, decoded):
    for n in range(300):
        (photos / "a" / f"{n:03d}.png").write_bytes(encoded(4, "PNG"))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(photos, progress=interrupt)
    assert 0 < len(decoded) < 312
    load(photos)
    assert len(decoded) == len(set(decoded)) == 312


def test_progress_ends_with_all_images(photos):
    told = []
    load(photos, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (12, 12)


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD = {
    "truncated.jpg": encoded(64)[:-400],
    "header.jpg": encoded(64)[:30],
    "text.png": b"This is no image.",
    "page.webp": b"<html>404</html>",
    "phone.heic": b"\0\0\0\x18ftypheic" + bytes(200),
    "bomb.png": bomb(),
    "empty.gif": b"",
}


@pytest.mark.parametrize("packed", [False, True])
def test_unusable_files_are_refused_by_name_or_left_out_by_name(photos, tmp_path, packed):
    clean = load(photos)
    for name, content in BAD.items():
        (photos / "b" / name).write_bytes(content)
    path = photos
    if packed:
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in photos.rglob("*.*"):
                archive.write(file, file.relative_to(photos))
    with pytest.raises(ValueError, match=r"7 of 19 images cannot be used \(36\.84%; allowed are 0\.10%\)") as error:
        load(path)
    for name in BAD:
        assert f"\n  b/{name}: " in str(error.value)
    assert str(error.value).endswith("MAX_BAD_SHARE=0.3685")
    dataset = load(path, max_bad_share=0.3685)
    assert {file.path for file in dataset.skipped} == {f"b/{name}" for name in BAD}
    assert all(file.reason for file in dataset.skipped)
    assert dataset.fingerprint == clean.fingerprint  # what is left is what was there before


def test_the_allowed_share_is_a_limit_not_a_target(photos):
    (photos / "a/0.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 12"):
        load(photos, max_bad_share=1 / 12 - 1e-9)
    assert len(load(photos, max_bad_share=1 / 12).skipped) == 1


def test_many_unusable_files_are_counted_not_all_listed(photos):
    for n in range(30):
        (photos / "a" / f"x{n}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="and 10 more") as error:
        load(photos)
    assert str(error.value).count("is empty") == 20


def test_a_class_of_unusable_files_is_refused_however_many_are_allowed(photos):
    for file in (photos / "b").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="class b has no usable images"):
        load(photos, max_bad_share=1.0)


def test_links_to_nowhere_and_pipes_are_no_images(photos):
    (photos / "a/link.jpg").symlink_to(photos / "nowhere")
    os.mkfifo(photos / "a/pipe.jpg")  # to read it would be to wait forever
    skipped = load(photos, max_bad_share=0.5).skipped
    assert {file.path for file in skipped} == {"a/link.jpg", "a/pipe.jpg"}


def test_a_file_without_permission_is_named(photos, monkeypatch):
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:  # root, who may run the tests, could read anything
        if path.name == "3.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        with pytest.raises(ValueError, match=r"a/3\.jpg: cannot be read \(Permission denied\)"):
            load(photos)
    assert load(photos).skipped == ()  # once it is granted, although the file itself has not changed


def test_a_directory_without_permission_is_named(photos, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"photos/b cannot be listed \(Permission denied\)"):
        load(photos)


def test_a_file_too_large_for_any_photo_is_not_read(photos, monkeypatch):
    monkeypatch.setattr(index, "LARGEST_FILE", 2 * 2**20)
    with (photos / "a/huge.tif").open("wb") as file:
        file.truncate(3 * 2**20)
    with pytest.raises(ValueError, match=r"a/huge\.tif: is larger than 2 MiB"):
        load(photos)


def test_damage_inside_a_zip_is_named(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for n, name in enumerate(("a/0.bmp", "a/1.bmp", "a/2.bmp", "b/0.bmp", "b/1.bmp")):
            archive.writestr(name, encoded(30 + n, "BMP"))
    content = path.read_bytes()
    path.write_bytes(content.replace(encoded(31, "BMP")[-300:], bytes(300)))
    with pytest.raises(ValueError, match=r"a/1\.bmp: cannot be read \(Bad CRC-32"):
        load(path)


def test_an_encrypted_zip_says_so(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"):
            archive.writestr(name, encoded())
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flag in the local and the central headers
        start = content.find(signature)
        while start >= 0:
            content[start + offset] |= 1
            start = content.find(signature, start + 1)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="encrypted"):
        load(path)


def test_a_file_that_changes_after_the_check_is_named(photos):
    dataset = load(photos)
    name = dataset.train.images.members[0]
    (photos / name).write_bytes(b"no image any more")
    with pytest.raises(ValueError, match=name):
        dataset.train.images[0].pixels()
    (photos / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} cannot be read.*changed"):
        dataset.train.images[0]


def test_the_index_says_whose_it_is(photos):
    load(photos)
    content = json.loads(index.index_path(photos).read_text())
    assert content["of"] == str(photos)
    assert content["files"]["a/0.jpg"][3:] == [20, 20, None]

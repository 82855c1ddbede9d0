"""Zips as people's programs pack them: names in any encoding, and what cannot be read."""

import shutil
import zipfile
from pathlib import Path

import pytest
from photos import jpeg, members

from pipeline.data import zip_names
from pipeline.data.datasets import load_dataset

LATIN = ["café", "thé", "crème brûlée", "Äpfel", "Müll", "über", "Straße", "niño", "Señor", "ÜBUNG", "Größe"]
DOS = ["café", "pão", "limões", "smørrebrød", "Øl", "ÁRBOL", "maçã", "coração", "São Paulo"]
JAPANESE = ["犬", "猫", "鳥", "寿司", "ネコ", "イヌ", "ラーメン", "味噌汁", "うさぎ", "表", "能力", "カメラ1", "写真 2"]
CHINESE = ["猫", "狗", "苹果", "白菜", "西红柿", "黄瓜", "照片1", "中国菜", "香蕉", "梨"]


class Raw(zipfile.ZipInfo):
    """An entry whose name is these bytes, without a word about their encoding."""

    def __init__(self, name: bytes, extra: bytes = b"") -> None:
        super().__init__(name.decode("cp437"))
        self.filename = self.orig_filename = name.decode("cp437")
        self.extra = extra

    def _encodeFilenameFlags(self):  # noqa: N802
        return self.filename.encode("cp437"), self.flag_bits & ~0x800


def packed(path: Path, folders: list[bytes], between: bytes = b"/", count: int = 2) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for shade, folder in enumerate(folders):
            for n in range(count):
                archive.writestr(Raw(folder + between + f"{n}.jpg".encode()), jpeg(shade * count + n))
    return path


def load(path: Path, **options):
    return load_dataset(f"folder:{path}", **options)


@pytest.mark.parametrize(
    ("encoding", "names"), [("cp437", LATIN), ("cp850", DOS), ("cp932", JAPANESE), ("gbk", CHINESE), ("utf-8", LATIN)]
)
def test_names_in_the_packing_systems_own_encoding(tmp_path, encoding, names):
    dataset = load(packed(tmp_path / "x.zip", [name.encode(encoding) for name in names]))
    assert set(dataset.classes) == set(names)
    said = [one for one in dataset.left_out if "read as" in one.reason]
    assert bool(said) == (encoding != "utf-8"), "a guess is told"
    assert dataset.train.images[0].pixels().shape == (8, 12, 3)


@pytest.mark.parametrize(("encoding", "names"), [("cp932", JAPANESE), ("gbk", CHINESE[1:])])
def test_each_of_them_alone(encoding, names):
    for name in names:
        found, _ = zip_names.names([Raw(name.encode(encoding) + b"/1.jpg")])
        assert found == [f"{name}/1.jpg"]


def test_what_reads_as_utf8_by_chance():
    """猫 in GBK is è in UTF-8. Other names of the archive decide; alone it is either."""
    cat, dog, coffee = "猫".encode("gbk"), "狗".encode("gbk"), "café".encode()
    assert cat == "è".encode()
    assert zip_names.names([Raw(cat + b"/1"), Raw(dog + b"/1")])[0] == ["猫/1", "狗/1"]
    assert zip_names.names([Raw(cat + b"/1"), Raw(coffee + b"/1")])[0] == ["è/1", "café/1"]
    [alone], _ = zip_names.names([Raw(cat + b"/1")])
    assert "may be è (UTF-8) or 猫 (gbk)" in str(alone)


def test_encodings_are_guessed_entry_by_entry(tmp_path):
    """An archive to which several machines have added."""
    names = ["café".encode(), "thé".encode("cp437"), "寿司".encode("cp932"), b"plain"]
    dataset = load(packed(tmp_path / "x.zip", names))
    assert set(dataset.classes) == {"café", "thé", "寿司", "plain"}


def test_a_flag_or_an_extra_field_with_the_name_in_utf8_is_believed(tmp_path):
    import struct
    import zlib

    raw = b"caf\x82/0.jpg"
    content = struct.pack("<BI", 1, zlib.crc32(raw)) + "Ωmega/0.jpg".encode()
    found, guessed = zip_names.names([Raw(raw, struct.pack("<HH", 0x7075, len(content)) + content)])
    assert (found, guessed) == (["Ωmega/0.jpg"], {})


@pytest.mark.parametrize(
    ("name", "message"),
    [("собака".encode("cp866"), "is in none of UTF-8"), ("Mäuse".encode("cp1252"), r"may be M.use \(cp\w+\) or M.use")],
)
def test_a_folder_whose_name_cannot_be_told_is_refused_by_name(tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as error:
        load(packed(tmp_path / "x.zip", [name, b"other"]))
    assert f"{name!a}" in str(error.value) and "Unpack it yourself" in str(error.value)


def test_a_file_whose_name_cannot_be_told_is_read_all_the_same(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for shade, name in enumerate(("a/собака.jpg", "a/1.jpg", "b/1.jpg", "b/2.jpg")):
            archive.writestr(Raw(name.encode("cp866")), jpeg(shade))
    dataset = load(tmp_path / "x.zip")
    assert len(dataset.train.labels) + len(dataset.val.labels) == 4
    for split in dataset.splits.values():
        for picture in split.images:
            picture.pixels()


@pytest.mark.parametrize(("encoding", "names"), [("cp437", ["cat", "dög"]), ("cp932", ["表", "能力"])])
def test_backslashes_between_folders(tmp_path, encoding, names):
    """Half of 表 and of 能 is the byte of a backslash."""
    path = packed(tmp_path / "x.zip", [b"photos\\" + name.encode(encoding) for name in names], b"\\")
    assert set(load(path).classes) == set(names)


def test_names_that_begin_with_a_dot_and_a_slash(tmp_path):
    path = packed(tmp_path / "x.zip", [b"./train/a", b"./train/b", b"/train/c"])
    assert load(path).classes == ("a", "b", "c")


def test_two_entries_of_one_name_are_told(tmp_path):
    path = packed(tmp_path / "x.zip", [b"a", b"b"])
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a/0.jpg", jpeg(99))
    [told] = load(path).left_out
    assert (told.what, told.count) == ("entries such as a/0.jpg", 1)


def patched(path: Path, change) -> Path:
    """The zip with its headers changed: (bytes of the header, whether it is a local one) -> None."""
    content = bytearray(path.read_bytes())
    for signature, local in ((b"PK\3\4", True), (b"PK\1\2", False)):
        start = content.find(signature)
        while start >= 0:
            change(memoryview(content)[start:], local)
            start = content.find(signature, start + 1)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("method", "name"), [(9, "Deflate64"), (93, "Zstandard"), (6, "method 6")])
def test_compressions_that_python_cannot_read(tmp_path, method, name):
    def change(header, local):
        header[8 if local else 10] = method

    path = patched(packed(tmp_path / "x.zip", [b"a", b"b"]), change)
    with pytest.raises(ValueError, match=rf"x\.zip: a/0\.jpg is packed by {name}, not by Deflate. Unpack it yourself"):
        load(path)


def test_an_encrypted_zip(tmp_path):
    def change(header, local):
        header[6 if local else 8] |= 1

    path = patched(packed(tmp_path / "x.zip", [b"a", b"b"]), change)
    with pytest.raises(
        ValueError, match=r"x\.zip: a/0\.jpg is encrypted. Unpack it yourself, and give the folder"
    ) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_images_inside_are_found_by_what_they_hold(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for shade, name in enumerate(("a/1", "a/2.photo", "b/1.mpo", "b/2.jpg")):
            archive.writestr(name, jpeg(shade))
        archive.writestr("b/notes", "nothing")
        archive.writestr("b/Thumbs.db", jpeg(9))
    dataset = load(tmp_path / "x.zip")
    assert sorted(members(dataset.train) + members(dataset.val)) == ["a/1", "a/2.photo", "b/1.mpo", "b/2.jpg"]
    [other] = dataset.left_out
    assert (other.what, other.count) == ("files without suffix", 1)


def test_other_archives_are_to_be_unpacked(tmp_path):
    shutil.make_archive(str(tmp_path / "x"), "tar", tmp_path)
    with pytest.raises(ValueError, match=r"x\.tar is neither a directory nor a zip file. Unpack it"):
        load(tmp_path / "x.tar")

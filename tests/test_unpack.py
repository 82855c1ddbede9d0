"""Tar files that mean harm, or are broken."""

import io
import tarfile

import pytest
from tars import tar

from pipeline.data.unpack import unpack


def quiet(*_: object) -> None:
    """Progress that nobody sees."""


HOSTILE = {
    "up": ("../evil", tarfile.REGTYPE, ""),
    "up and down": ("a/../../evil", tarfile.REGTYPE, ""),
    "absolute": ("{outside}/evil", tarfile.REGTYPE, ""),
    "folder outside": ("../evil", tarfile.DIRTYPE, ""),
    "link out": ("a/link", tarfile.SYMTYPE, "{outside}"),
    "link inside": ("a/link", tarfile.SYMTYPE, "good"),
    "hard link out": ("a/link", tarfile.LNKTYPE, "../../secret"),
    "pipe": ("a/pipe", tarfile.FIFOTYPE, ""),
    "device": ("a/device", tarfile.CHRTYPE, ""),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_member_is_refused_and_nothing_lands_outside(kind, nested, tmp_path):
    (tmp_path / "secret").write_text("secret")
    name, form, target = (str(x).format(outside=tmp_path) if isinstance(x, str) else x for x in HOSTILE[kind])
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a/good"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = form, target
        archive.addfile(member)
        if form == tarfile.SYMTYPE:
            archive.addfile(tarfile.TarInfo(f"{name}/evil"))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/x.tar"
    path.write_bytes(tar({"inner.tar": content.getvalue()}) if nested else content.getvalue())
    with pytest.raises(ValueError, match=r"outside the folder|a link or a device"):
        unpack(path, tmp_path / "data/a", 10**6, quiet)
    assert sorted(found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*")) == [
        "data", "data/x.tar", "secret"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "bomb",
    [
        tar({"a/zeros": bytes(10**7)}, "w:gz"),
        tar({f"a/{n}": b"" for n in range(300)}, "w:gz"),
        tar({"inner.tar": tar({f"{n}": bytes(1000) for n in range(101)})}),
    ],
    ids=["one large file", "many empty files", "files inside a tar inside"],
)
def test_a_bomb_stops_at_the_limit(bomb, tmp_path):
    (tmp_path / "x.tar").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"it unpacks to more than 100\.0 kB"):
        unpack(tmp_path / "x.tar", tmp_path / "a", 100_000, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_file_and_a_folder_of_one_name_are_damage(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar({"a": b"file", "a/b": b"below it"}))
    with pytest.raises(ValueError, match="damaged"):
        unpack(tmp_path / "x.tar", tmp_path / "a", 10**6, quiet)

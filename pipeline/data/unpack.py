"""Tar files from the network, unpacked without trust."""

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from rich.filesize import decimal

UNPACKING = ".unpacking"  # folder beside the result, for what is not complete yet
DAMAGE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)
COLLISIONS = (FileExistsError, NotADirectoryError, IsADirectoryError)  # a file and a folder of one name


def unpack(archive: Path, into: Path, limit: int, progress: Callable[[int, int], None]) -> None:
    """Make `into` from a tar file: its member of that name, or a folder of all members where it has none.

    Either `into` appears whole or not at all. A `.tar` inside is unpacked too, into a folder of its own name (ImageNet
    has one for each class).
    limit:    bytes that it may unpack to
    progress: told bytes read, and bytes in all
    Raises ValueError for a damaged archive; for a member that would land outside, is a link or is a device; and for an
    archive that unpacks to more than `limit`.
    """
    temporary, size, left = into.with_name(UNPACKING), archive.stat().st_size, limit
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=file) as tar:

            def spend(amount: int) -> None:
                nonlocal left
                left -= amount
                if left < 0:
                    raise ValueError(f"it unpacks to more than {decimal(limit)}")
                progress(file.tell(), size)

            _extract(tar, temporary, spend)
            assert tar.fileobj
            tar.fileobj.read(tarfile.RECORDSIZE)  # the padding at the end: only now does gzip compare its checksum
        member = temporary / into.name
        if into.suffix and not member.exists():
            raise ValueError(f"it does not hold {into.name}")
        os.sync()  # a power cut must not leave the name without the content
        (member if member.exists() else temporary).rename(into)
    except (*DAMAGE, *COLLISIONS) as error:
        raise ValueError(f"it is damaged or no tar file ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(tar: tarfile.TarFile, into: Path, spend: Callable[[int], None]) -> None:
    """Files and folders only. No dataset here has links or devices; without links, names are all there is to check."""
    for member in tar:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"its member {member.name} would land outside the folder")
        if not (member.isreg() or member.isdir()):
            raise ValueError(f"its member {member.name} is a link or a device")
        if path.suffix == ".tar" and member.isreg():
            spend(tarfile.BLOCKSIZE)
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                _extract(inner, into / path.with_suffix(""), spend)
        else:
            spend(tarfile.BLOCKSIZE + member.size)
            tar.extract(member, into, filter="data")

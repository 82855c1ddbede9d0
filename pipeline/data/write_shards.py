"""`make shards`: a data set of files as tars that shards.py, and the webdataset library, read."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from pipeline import files
from pipeline.data.datasets import Dataset
from pipeline.data.index import Files
from pipeline.data.shards import NAMES
from targets import picture


def write(dataset: Dataset, folder: Path, shard_bytes: int, progress: Callable[[str, int, int], None]) -> list[Path]:
    """Write `train-000000.tar`, `val-000000.tar`, ... and the names of the classes into a new folder.

    The files' bytes as they are, in the set's own order, so that the tars train as the files do; `folder` appears when
    all of it is there.
    shard_bytes: after which a tar is ended
    progress:    told the split, images done and all of them
    Raises ValueError for a folder that is there or being made, and for data sets without files.
    """
    unfinished = folder.with_name(f".{folder.name}.tmp")
    with files.locked(unfinished):
        try:
            if folder.exists():
                raise ValueError(f"{folder} exists. Remove it, or name another folder with OUT=")
            for left in unfinished.glob("[!.]*"):  # by a process that was killed
                left.unlink()
            for name, split in dataset.splits.items():
                if not isinstance(split.images, Files):
                    raise ValueError(f"DATASET={dataset.name} is no set of files: it is held in memory as it is")
                _write_split(unfinished, name, split.images, split.labels.tolist(), shard_bytes, progress)
            (unfinished / NAMES).write_text("".join(f"{name}\n" for name in dataset.classes), encoding="utf-8")
            (unfinished / ".lock").unlink()
            unfinished.replace(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return sorted(folder.glob("*.tar"))


def _write_split(
    folder: Path,
    name: str,
    images: Files,
    labels: list[int],
    shard_bytes: int,
    progress: Callable[[str, int, int], None],
) -> None:
    done, shard = 0, 0
    while done < len(images):
        path = folder / f"{name}-{shard:06}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            while done < len(images) and tar.offset < shard_bytes:
                member = images.members[done]
                suffix = PurePosixPath(member).suffix.lower()
                _add(tar, f"{done:08}{suffix if suffix in picture.SUFFIXES else '.jpg'}", images.read(member))
                _add(tar, f"{done:08}.cls", str(labels[done]).encode())
                done += 1
                progress(name, done, len(images))
        shard += 1


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # of no time and nobody: the same files give the same tar
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))

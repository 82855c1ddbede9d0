"""What DATASET= may be, and where it lies. Loads nothing heavy: a mistyped name should be refused at once."""

import os
from pathlib import Path

from pipeline.data import tars
from pipeline.data.catalog import KNOWN

TARS = "wds:"
OWN = ("folder:", TARS)
"""what the names of a user's own sets begin with"""
DATASETS = ("digits", *KNOWN, "folder:PATH", "wds:PATTERN")


def resolve(name: str) -> str:
    """A name as it is kept: a directory or zip that exists needs no `folder:`, and has one name, however written."""
    given = name.removeprefix("folder:")
    if name == "digits" or name in KNOWN or name.startswith(TARS) or not given:
        return name
    path = Path(os.path.abspath(Path(given).expanduser()))
    if not (name.startswith("folder:") or path.exists()):
        return name
    return f"folder:{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"


def check_name(name: str, folder: Path | None = None) -> None:
    """Raises ValueError for a name that `load_dataset` does not know, and for data that are not there."""
    if name != "digits" and name not in KNOWN and not name.startswith(OWN):
        raise ValueError(
            f"DATASET={name} is unknown. Known: {', '.join(DATASETS)}; and there is no directory or zip of that name"
        )
    if name == "folder:":
        raise ValueError("DATASET=folder: lacks the path of a directory or zip")
    if name == TARS:
        raise ValueError(
            "DATASET=wds: lacks tars: a directory of them, or a pattern such as shards/train-{000..011}.tar"
        )
    if folder and name not in KNOWN:
        raise ValueError(f"DATA={folder} tells where one of {', '.join(KNOWN)} lies; leave it out for DATASET={name}")
    if name.startswith(TARS):
        try:
            tars.expand(name.removeprefix(TARS))
        except ValueError as error:
            raise ValueError(f"DATASET={name}: {error}") from error
        return
    path = path_of(name, folder)
    if name != "digits" and not path.exists():
        raise ValueError(missing(name, path, f"{path} does not exist"))


def path_of(name: str, folder: Path | None) -> Path:
    path = (folder or KNOWN[name].folder) if name in KNOWN else Path(name.removeprefix("folder:"))
    return path.expanduser()


def missing(name: str, path: Path, what: str) -> str:
    if name not in KNOWN:
        return f"DATASET={name}: {what}"
    known = KNOWN[name]
    return (
        f"DATASET={name}: {what}. `{known.command(path)}` gets {known.title}: {known.download_bytes / 1e9:.2g} GB to "
        f"download, {known.unpacked_bytes / 1e9:.2g} GB unpacked. If you have it elsewhere, add DATA=dir"
    )


def parse_subset(subset: str) -> tuple[int, int]:
    """Classes and images of each, from `CLASSESxIMAGES`. Raises ValueError for anything else."""
    parts = subset.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"SUBSET={subset} must be CLASSESxIMAGES, such as 12x200")
    return int(parts[0]), int(parts[1])

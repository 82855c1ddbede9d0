"""What DATASET= may be, and where it lies. Loads nothing heavy: a mistyped name should be refused at once."""

from pathlib import Path

from pipeline.data.catalog import KNOWN

DATASETS = ("digits", *KNOWN, "folder:PATH")


def check_name(name: str, folder: Path | None = None) -> None:
    """Raises ValueError for a name that `load_dataset` does not know, and for data that are not there."""
    if name != "digits" and name not in KNOWN and not name.startswith("folder:"):
        raise ValueError(f"DATASET={name} is unknown. Known: {', '.join(DATASETS)}")
    if folder and name not in KNOWN:
        raise ValueError(f"DATA={folder} tells where one of {', '.join(KNOWN)} lies; leave it out for DATASET={name}")
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

"""`make env-size`: what the environment is made of, package by package."""

import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.in"
SHOWN_MB = 10
"""packages of less are one row together"""


def environment(direct: list[str]) -> list[dict[str, Any]]:
    """One row per installed package, the largest first: package, version, mb, asked_for, named_by.

    direct:    packages that are asked for by name
    mb:        10^6 bytes of its files, compiled Python included; null for what is named and not installed
    asked_for: whether it is one of `direct`
    named_by:  those of `direct` that need it, themselves or through others
    """
    brought: dict[str, set[str]] = {}
    for root in direct:
        for name in _needed(root, stop=set(direct) - {root}):
            brought.setdefault(name, set()).add(root)
    here = distributions(path=[sysconfig.get_path("purelib")])
    found: dict[str, Distribution] = {str(canonicalize_name(one.metadata["Name"])): one for one in here}
    rows = [
        {
            "package": name,
            "version": found[name].version if name in found else None,
            "mb": _megabytes(found[name]) if name in found else None,
            "asked_for": name in direct,
            "named_by": sorted(brought.get(name, ())),
        }
        for name in sorted(found.keys() | brought.keys())
    ]
    return sorted(rows, key=lambda row: -(row["mb"] or 0))


def asked_for(requirements: Path = REQUIREMENTS) -> list[str]:
    """The packages that a requirements file names. Raises ValueError if it is not there."""
    try:
        lines = (line.split("#")[0].strip() for line in requirements.read_text().splitlines())
    except FileNotFoundError as error:
        raise ValueError(f"{requirements} is missing: the command is for a clone of the repository") from error
    return [canonicalize_name(Requirement(line).name) for line in lines if line]


def report(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown: packages of SHOWN_MB and more, the others together, and what is left out."""
    installed = [row for row in rows if row["mb"] is not None]
    large = [row for row in installed if row["mb"] >= SHOWN_MB]
    small = sum(row["mb"] for row in installed) - sum(row["mb"] for row in large)
    lines = ["| package | MB | needed by |", "| --- | --- | --- |"]
    for row in large:
        why = "asked for" if row["asked_for"] else ", ".join(row["named_by"])
        lines.append(f"| {row['package']} | {row['mb']:,.0f} | {why} |")
    lines.append(f"| {len(installed) - len(large)} others | {small:,.0f} | |")
    lines.append(f"| **{len(installed)} packages** | **{sum(row['mb'] for row in installed):,.0f}** | |")
    left_out = [row["package"] for row in rows if row["mb"] is None]
    return "\n".join([*lines, "", f"Named by packages, not installed: {', '.join(left_out) or 'none'}.", ""])


def _needed(root: str, stop: set[str]) -> set[str]:
    """What a package needs, and what that needs; not what the packages in `stop` need."""
    pending: list[tuple[str, tuple[str, ...]]] = [(root, ())]
    seen = set(pending)
    while pending:
        name, extras = pending.pop()
        if name not in stop:
            new = set(_named(name, extras)) - seen
            seen |= new
            pending += new
    return {name for name, _ in seen} - {root}


def _named(name: str, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(package, extras) that an installed package names for this machine."""
    try:
        lines = distribution(name).requires or ()
    except PackageNotFoundError:
        return
    for one in map(Requirement, lines):
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(one.name), tuple(sorted(one.extras))


def _megabytes(installed: Distribution) -> float:
    paths = (Path(str(file.locate())) for file in installed.files or ())
    return round(sum(path.stat().st_size for path in paths if path.is_file()) / 1e6, 1)

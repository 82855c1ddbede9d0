"""The budget of a target: which artifacts may be shipped, and what they must keep to. One TOML file per target.

Limits at the top hold for all formats; a table per format names the precisions allowed there, and may change a limit.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets import strict

SHARES = ("top1_min", "top1_share_min", "top1_agreement_min")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of one format; None: no limit. Values equal to a limit are within it."""

    top1_min: float | None = None
    """top-1 accuracy through the artifact's runtime, 0..1"""
    top1_share_min: float | None = None
    """that accuracy as a share of the small model's own in PyTorch, 0..1"""
    top1_drop_max_points: float | None = None
    """percentage points of top-1 lost against the dense model, both through their artifacts"""
    latency_p50_ms_max: float | None = None
    latency_p90_ms_max: float | None = None
    latency_ratio_max: float | None = None
    """p50 over the dense artifact's p50, measured side by side"""
    size_mb_max: float | None = None
    """MB of 1e6 bytes"""
    memory_mb_max: float | None = None
    """growth of the process's peak memory by the artifact, MB of 1e6 bytes"""
    parity_psnr_db_min: float | None = None
    """of float32 artifacts"""
    parity_psnr_db_min_reduced: float | None = None
    """of artifacts that store or compute with less"""
    top1_agreement_min: float | None = None
    """share of images with the model's own top-1 class, 0..1"""

    def __post_init__(self) -> None:
        limits = self.stated()
        if not limits:
            raise ValueError(f"a budget needs at least one limit: {', '.join(LIMITS)}")
        for name, value in limits.items():
            check_limit(name, value)

    def stated(self) -> dict[str, float]:
        """The limits that are not None."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


LIMITS = tuple(field.name for field in dataclasses.fields(Budget))


@dataclass(frozen=True, kw_only=True)
class FormatBudget:
    """What may be shipped of one format."""

    precisions: tuple[str, ...]
    """smallest file first"""
    limits: Budget


def check_limit(name: str, value: float) -> None:
    """Raises ValueError if no artifact could ever meet the limit, or every one would."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    if name in SHARES and not 0 <= value <= 1:
        raise ValueError(f"{name} is a share between 0 and 1, not {value}")
    if name.startswith(("latency", "size", "memory")) and value <= 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    if name == "top1_drop_max_points" and value > 100:
        raise ValueError(f"{name} is in percentage points, at most 100, not {value}")


def load_budget(path: Path, offered: Mapping[str, tuple[str, ...]]) -> dict[str, FormatBudget]:
    """The budget in a TOML file, by format, in the file's order.

    offered: the target's formats, each with the precisions that it can be made in, smallest file first
    Raises ValueError naming file, line and what is valid there.
    """

    def wrong(table: str, key: str, problem: str) -> ValueError:
        line = _line(path.read_bytes().decode(), table, key)
        return ValueError(f"the budget {path}, line {line}: {problem}")

    try:
        content = strict.read_toml(path, dict[str, Any])
    except strict.Fault as fault:  # something that JSON has not: nan, a date
        *table, key = map(str, fault.keys[:2])
        raise wrong("".join(table), key, f"{key} {fault.problem}") from fault

    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    common = {key: value for key, value in content.items() if key not in tables}
    for table, entries in (("", common), *tables.items()):
        if table and table not in offered:
            raise wrong("", table, f"[{table}] is no format of this target; it has {', '.join(offered)}")
        for key, value in entries.items():
            if key == "precisions" and table:
                for precision in value if isinstance(value, list) and value else [value]:
                    if precision not in offered[table]:
                        known = ", ".join(offered[table])
                        raise wrong(table, key, f"{precision!r} is no precision of {table} here; valid: {known}")
                if not isinstance(value, list):
                    raise wrong(table, key, f"precisions must be a list, not {value!r}")
                continue
            if key not in LIMITS:
                valid = ", ".join((*LIMITS, "precisions") if table else LIMITS)
                raise wrong(table, key, f"unknown key {key!r}; valid keys: {valid}")
            try:
                check_limit(key, strict.parse(float, value, key))
            except ValueError as error:
                raise wrong(table, key, str(error)) from error
    if not tables:
        raise ValueError(f"the budget {path} allows no format; add a table such as [{next(iter(offered))}]")
    budgets = {}
    for name, entries in tables.items():
        allowed = entries.get("precisions", offered[name])
        limits = {**common, **{key: value for key, value in entries.items() if key != "precisions"}}
        if not limits:
            raise wrong("", name, f"[{name}] has no limit: {', '.join(LIMITS)}")
        precisions = tuple(precision for precision in offered[name] if precision in allowed)
        budgets[name] = FormatBudget(precisions=precisions, limits=Budget(**limits))
    return budgets


def _line(text: str, table: str, key: str) -> int:
    """Number of the line that sets `key` in [table] ("": above all tables), or that opens [key]."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r'\s*\[\s*"?([^"\]]+?)"?\s*\]', line):
            current = header[1]
            if not table and current == key:
                return number
        elif current == table and re.match(rf'\s*["\']?{re.escape(key)}["\']?\s*[=.]', line):
            return number
    return 1  # written in a way that this does not see through; the message names the key anyway

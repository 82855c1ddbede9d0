"""The gate: what was measured of an artifact, against its target's budget.

A verdict is pass, fail or not_measured. fail wins over not_measured, and not_measured is never pass.
"""

import dataclasses
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from targets.latency import LatencyResult

Verdict = Literal["pass", "fail", "not_measured"]

# float32 resolves less; identical logits get this value, so that it stays a number that JSON and a limit can hold.
PSNR_CAP_DB = 200.0


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far an artifact's logits are from its model's."""

    psnr_db: float
    """10 log10(peak^2 / mean squared error), peak = the largest |reference logit|; within +-PSNR_CAP_DB"""
    max_abs: float
    """largest absolute difference of a logit"""
    top1_agreement: float
    """share of images with the same top-1 class, 0..1"""


def parity(reference_logits: np.ndarray, logits: np.ndarray) -> Parity:
    """Compare (N, C) logits of an artifact with those of the model it was made from, on the same images.

    Logits that aren't finite are a result, the worst there is: -PSNR_CAP_DB, the largest float32 and disagreement.
    Raises ValueError if the shapes differ, there is no image, or the reference isn't finite.
    """
    if reference_logits.ndim != 2 or reference_logits.shape != logits.shape or reference_logits.size == 0:
        raise ValueError(
            f"logits are {logits.shape}, the reference {reference_logits.shape}; both must be (images, classes)"
        )
    reference, found = reference_logits.astype(np.float64), logits.astype(np.float64)
    if not np.isfinite(reference).all():
        raise ValueError("the model's own logits are not finite; there is nothing to compare the artifact with")
    sound_N = np.asarray(np.isfinite(found).all(1))
    agreement = float((sound_N & (np.where(sound_N[:, None], found, 0).argmax(1) == reference.argmax(1))).mean())
    if not sound_N.all():
        return Parity(psnr_db=-PSNR_CAP_DB, max_abs=float(np.finfo(np.float32).max), top1_agreement=agreement)
    error = found - reference
    peak, mean_square = float(np.abs(reference).max()), float(np.square(error).mean())
    if mean_square == 0 or peak == 0:
        psnr_db = PSNR_CAP_DB if mean_square == 0 else -PSNR_CAP_DB
    else:
        psnr_db = 20 * math.log10(peak) - 10 * math.log10(mean_square)
    psnr_db = min(max(psnr_db, -PSNR_CAP_DB), PSNR_CAP_DB)
    return Parity(psnr_db=psnr_db, max_abs=float(np.abs(error).max()), top1_agreement=agreement)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of one target; None: no limit. Values equal to a limit are within it."""

    top1_min: float | None = None
    """top-1 accuracy through the artifact's runtime, 0..1"""
    top1_drop_max_points: float | None = None
    """percentage points of top-1 lost against the dense model, both through their artifacts"""
    latency_p50_ms_max: float | None = None
    latency_p90_ms_max: float | None = None
    latency_ratio_max: float | None = None
    """p50 over the dense artifact's p50, measured side by side"""
    size_mb_max: float | None = None
    """MB of 1e6 bytes"""
    parity_psnr_db_min: float | None = None
    top1_agreement_min: float | None = None
    """share of images with the model's own top-1 class, 0..1"""

    def __post_init__(self) -> None:
        limits = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if not limits:
            raise ValueError(f"a budget needs at least one limit: {', '.join(dataclasses.asdict(self))}")
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value!r}")
            if name in ("top1_min", "top1_agreement_min") and not 0 <= value <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {value}")
            if name.startswith(("latency", "size")) and value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")


def load_budget(path: Path) -> Budget:
    """The budget in a TOML file of `name = number` lines. Raises ValueError naming file, key and valid keys."""
    known = [field.name for field in dataclasses.fields(Budget)]
    try:
        with open(path, "rb") as file:
            limits = tomllib.load(file)
    except OSError as error:
        raise ValueError(f"the budget {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the budget {path} is not TOML: {error}") from error
    for key in limits:
        if key not in known:
            raise ValueError(f"the budget {path} has the unknown key {key!r}; valid keys: {', '.join(known)}")
    try:
        return Budget(**limits)
    except ValueError as error:
        raise ValueError(f"the budget {path}: {error}; valid keys: {', '.join(known)}") from error


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What is known of one artifact; None: not measured."""

    top1: float | None = None
    top1_dense: float | None = None
    """shares 0..1"""
    latency: LatencyResult | None = None
    latency_dense: LatencyResult | None = None
    """of one measure() call, side by side"""
    size_bytes: int | None = None
    parity: Parity | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit of the budget, held against one measurement."""

    name: str
    """the budget's key"""
    limit: float
    value: float | None
    """in the key's unit; None: not measured"""
    verdict: Verdict
    reason: str | None
    """why it was not measured"""


def judge(measurements: Measurements, budget: Budget) -> list[Check]:
    """One check per limit that the budget states, in the order of Budget's fields.

    A latency that is not valid counts as not measured. A value that is not finite fails.
    """
    m = measurements
    latency, latency_reason = _trusted(m.latency)
    dense, dense_reason = _trusted(m.latency_dense)
    top1_drop_points = None if m.top1 is None or m.top1_dense is None else 100 * (m.top1_dense - m.top1)
    ratio = None if latency is None or dense is None else latency.p50_ms / dense.p50_ms
    values: dict[str, tuple[float | None, str | None]] = {
        "top1_min": (m.top1, None),
        # 100 * (0.75 - 0.70) is 5.000000000000004: a limit of 5 points allows it
        "top1_drop_max_points": (None if top1_drop_points is None else round(top1_drop_points, 9), None),
        "latency_p50_ms_max": (None if latency is None else latency.p50_ms, latency_reason),
        "latency_p90_ms_max": (None if latency is None else latency.p90_ms, latency_reason),
        "latency_ratio_max": (ratio, latency_reason or dense_reason),
        "size_mb_max": (None if m.size_bytes is None else m.size_bytes / 1e6, None),
        "parity_psnr_db_min": (None if m.parity is None else m.parity.psnr_db, None),
        "top1_agreement_min": (None if m.parity is None else m.parity.top1_agreement, None),
    }
    checks = []
    for name, limit in dataclasses.asdict(budget).items():
        if limit is None:
            continue
        value, reason = values[name]
        verdict: Verdict = "not_measured"
        if value is not None:
            verdict = "pass" if (value >= limit if name.endswith("_min") else value <= limit) else "fail"
            reason = None
        elif reason is None:
            reason = "there is no measurement"
        checks.append(Check(name=name, limit=limit, value=value, verdict=verdict, reason=reason))
    return checks


def overall(checks: Sequence[Check]) -> Verdict:
    """fail if any check fails, else not_measured if any (or all there is: nothing) was not measured, else pass."""
    verdicts = {check.verdict for check in checks}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "not_measured"


def _trusted(latency: LatencyResult | None) -> tuple[LatencyResult | None, str | None]:
    """The result if it is valid; else None and the reason, if there is one."""
    if latency is None or latency.valid:
        return latency, None
    return None, f"latency was measured but is not valid: {latency.why_invalid}"

"""The gate: what was measured of an artifact, against its target's budget.

A verdict is pass, fail or not_measured. fail wins over not_measured, and not_measured is never pass.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from targets.budget import Budget
from targets.latency import LatencyResult

Verdict = Literal["pass", "fail", "not_measured"]

# float32 resolves less; identical logits get this value, so that it stays a number that JSON and a limit can hold.
PSNR_CAP_DB = 200.0
LARGEST = float(np.finfo(np.float32).max)
HELD_BACK = ("under-voltage", "its frequency capped", "throttled", "too hot")
"""what a Raspberry Pi's firmware means by bits 0 to 3 of its flags, for now; from bit 16: since it was started"""


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
    if not _finite(reference).all():
        raise ValueError("the model's own logits are not finite; there is nothing to compare the artifact with")
    sound_N = np.asarray(_finite(found).all(1))
    agreement = float((sound_N & (found.argmax(1) == reference.argmax(1))).mean())
    if not sound_N.all():
        return Parity(psnr_db=-PSNR_CAP_DB, max_abs=LARGEST, top1_agreement=agreement)
    error = found - reference
    peak, mean_square = float(np.abs(reference).max()), float(np.square(error).mean())
    if mean_square == 0 or peak == 0:
        psnr_db = PSNR_CAP_DB if mean_square == 0 else -PSNR_CAP_DB
    else:
        psnr_db = 20 * math.log10(peak) - 10 * math.log10(mean_square)
    psnr_db = min(max(psnr_db, -PSNR_CAP_DB), PSNR_CAP_DB)
    return Parity(psnr_db=psnr_db, max_abs=float(np.abs(error).max()), top1_agreement=agreement)


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What is known of one artifact; None: not measured."""

    reduced: bool
    """whether the artifact stores or computes with less than float32"""
    top1: float | None = None
    top1_model: float | None = None
    """of the float32 PyTorch model that it was made from"""
    top1_dense: float | None = None
    """of the dense artifact; shares 0..1"""
    latency: LatencyResult | None = None
    latency_dense: LatencyResult | None = None
    """of one measure() call, side by side"""
    size_bytes: int | None = None
    peak_mb: float | None = None
    """growth of a process's peak memory by the artifact, MB of 1e6 bytes"""
    parity: Parity | None = None
    unmeasured: str | None = None
    """why what is missing is missing, where that is known"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit, held against one measurement."""

    name: str
    """the budget's key, or "golden" """
    limit: float
    value: float | None
    """in the key's unit; None: not measured"""
    verdict: Verdict
    reason: str | None
    """why it was not measured, or what else there is to say"""


def judge(measurements: Measurements, budget: Budget) -> list[Check]:
    """One check per limit that the budget states for this precision, in the order of Budget's fields.

    A latency that is not valid counts as not measured. A value that is not finite fails.
    """
    m = measurements
    latency, latency_reason = _trusted(m.latency)
    dense, dense_reason = _trusted(m.latency_dense)
    drop_points = None if m.top1 is None or m.top1_dense is None else 100 * (m.top1_dense - m.top1)
    share = None if m.top1 is None or not m.top1_model else m.top1 / m.top1_model
    ratio = None if latency is None or dense is None else latency.p50_ms / dense.p50_ms
    psnr_db = None if m.parity is None else m.parity.psnr_db
    values: dict[str, tuple[float | None, str | None]] = {
        "top1_min": (m.top1, None),
        # 100 * (0.75 - 0.70) is 5.000000000000004: a limit of 5 points allows it
        "top1_share_min": (None if share is None else round(share, 9), None),
        "top1_drop_max_points": (None if drop_points is None else round(drop_points, 9), None),
        "latency_p50_ms_max": (None if latency is None else latency.p50_ms, latency_reason),
        "latency_p90_ms_max": (None if latency is None else latency.p90_bound_ms, latency_reason),
        "latency_ratio_max": (ratio, latency_reason or dense_reason),
        "size_mb_max": (None if m.size_bytes is None else m.size_bytes / 1e6, None),
        "memory_mb_max": (m.peak_mb, None),
        "parity_psnr_db_min": (psnr_db, None),
        "parity_psnr_db_min_reduced": (psnr_db, None),
        "top1_agreement_min": (None if m.parity is None else m.parity.top1_agreement, None),
    }
    other = "parity_psnr_db_min" if m.reduced else "parity_psnr_db_min_reduced"
    checks = []
    for name, limit in budget.stated().items():
        if name == other:
            continue
        value, reason = values[name]
        checks.append(_check(name, limit, value, reason or m.unmeasured))
    return checks


def check_golden(
    expected_GC: np.ndarray,
    found_GC: np.ndarray | None,
    share: float,
    unmeasured: str | None = None,
    name: str = "golden",
) -> Check:
    """Whether the logits of the golden images (G) are those expected, within a share of the largest of them.

    found_GC: None if the artifact could not be run;  unmeasured: why;  name: the check's
    Raises ValueError if nothing is expected, or no finite numbers.
    """
    if expected_GC.ndim != 2 or expected_GC.size == 0 or not _finite(expected_GC).all():
        raise ValueError(f"{name}: {expected_GC.shape} logits are expected; it takes (images, classes), all finite")
    limit = share * float(np.abs(expected_GC).max())
    if found_GC is None:
        return _check(name, limit, None, unmeasured)
    if found_GC.shape != expected_GC.shape or not _finite(found_GC).all():
        reason = f"logits are {found_GC.shape}, expected {expected_GC.shape}, all finite"
        return Check(name=name, limit=limit, value=None, verdict="fail", reason=reason)
    value = float(np.abs(found_GC.astype(np.float64) - expected_GC).max())
    return _check(name, limit, value, None)


def top1(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Share of the images, 0..1, that are classified right; logits that aren't finite are wrong.

    Raises ValueError without images or classes, or unless there is a label for each image.
    """
    if logits_NC.ndim != 2 or logits_NC.size == 0 or labels_N.shape != logits_NC.shape[:1]:
        raise ValueError(
            f"logits are {logits_NC.shape}, labels {labels_N.shape}; they must be (images, classes) and (images,)"
        )
    return float((_finite(logits_NC).all(1) & (logits_NC.argmax(1) == labels_N)).mean())


def held_back(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """What has kept a device from its full speed while it was measured; None if nothing is known to have.

    before, after: as targets.latency.conditions has them; battery_saver: whether it was on, from what can tell
    Flags that speak of the time since the start count if they were not there before.
    """
    reasons = []
    try:
        was, now = (int(conditions.get("throttled") or "0x0", 16) for conditions in (before, after))
    except (TypeError, ValueError):
        told = " and ".join(repr(conditions.get("throttled")) for conditions in (before, after))
        reasons.append(f"what its firmware says of throttling is not understood: {told}")
    else:
        came = (now & ~was) >> 16 if before.get("throttled") else 0
        if bits := (was | now | came) & 0xF:
            words = ", ".join(word for bit, word in enumerate(HELD_BACK) if bits >> bit & 1)
            reasons.append(f"the board was held back (flags {bits:#x}: {words})")
    if before.get("battery_saver") or after.get("battery_saver"):
        reasons.append("its battery saver was on")
    governors = before.get("governor"), after.get("governor")
    if None not in governors and governors[0] != governors[1]:
        reasons.append(f"its governor has changed from {governors[0]} to {governors[1]}")
    return "; ".join(reasons) or None


def _finite(logits: np.ndarray) -> np.ndarray:
    """Which of them are numbers that float32 can hold."""
    return np.abs(logits) <= LARGEST


def _check(name: str, limit: float, value: float | None, unmeasured: str | None) -> Check:
    """The value against a limit, the least one if its name has _min. unmeasured: why there is no value, if known."""
    if value is None:
        reason = unmeasured or "there is no measurement"
        return Check(name=name, limit=limit, value=None, verdict="not_measured", reason=reason)
    if not math.isfinite(value):
        return Check(name=name, limit=limit, value=None, verdict="fail", reason=f"{value} is no measurement")
    fits = value >= limit if "_min" in name else value <= limit
    return Check(name=name, limit=limit, value=value, verdict="pass" if fits else "fail", reason=None)


def overall(checks: Sequence[Check]) -> Verdict:
    """fail if any check fails, else not_measured if any (or all there is: nothing) was not measured, else pass."""
    verdicts = {check.verdict for check in checks}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "not_measured"


def _trusted(latency: LatencyResult | None) -> tuple[LatencyResult | None, str | None]:
    """The result if it is valid, else None; and why one that was measured is not."""
    if latency is None or latency.valid:
        return latency, None
    return None, f"latency was measured but is not valid: {latency.why_invalid}"

"""The measuring protocol. Needs the standard library and numpy only, so that a board can run this very file.

All callables are measured side by side in one process, one inference each in turn (a, b, a, b, ...): a slow moment of
the machine then hits all of them, and their ratio stays meaningful where their milliseconds don't. Warm-up inferences
come first and aren't counted. One sample is one inference on an input that stays the same.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# A run that hasn't got its samples after this many times the asked duration stops: the device is too slow for them.
PATIENCE = 3.0
# When one inference in ten takes this many times the median or longer, the machine did something else meanwhile.
SPREAD_MAX = 5.0


@dataclass(frozen=True, kw_only=True)
class LatencyResult:
    """The latency of one artifact, and whether to believe it."""

    p5_ms: float
    p50_ms: float
    p90_ms: float
    mean_ms: float
    samples: int
    seconds: float
    """wall-clock time of the measured window, shared with whatever was measured side by side"""
    valid: bool
    why_invalid: str | None
    """None exactly when valid"""
    samples_ms: tuple[float, ...]
    """every sample, in the order of measurement"""

    def __post_init__(self) -> None:
        if self.valid != (self.why_invalid is None):
            raise ValueError("why_invalid must give the reason exactly when the measurement is not valid")

    def to_json(self) -> dict[str, Any]:
        """The summary as reports hold it (milliseconds), without the single samples."""
        summary = {"p5": self.p5_ms, "p50": self.p50_ms, "p90": self.p90_ms, "mean": self.mean_ms}
        counts = {"samples": self.samples, "seconds": self.seconds}
        return {**summary, **counts, "valid": self.valid, "why_invalid": self.why_invalid}


def measure(
    callables: Mapping[str, Callable[[], object]], *, seconds: float, min_samples: int, warmup: int
) -> dict[str, LatencyResult]:
    """Run every callable in turn for at least `seconds` and `min_samples` rounds.

    callables:   name -> one inference; the input is the callable's own
    seconds:     wall-clock length of the measured window; at most PATIENCE times that
    min_samples: fewer make the result invalid
    warmup:      rounds that aren't counted
    Returns name -> LatencyResult. Raises ValueError for empty or negative arguments.
    """
    if not callables or min_samples < 1 or warmup < 0 or not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError("measure needs at least one callable, min_samples >= 1, warmup >= 0 and seconds >= 0")
    for _ in range(warmup):
        for inference in callables.values():
            inference()
    samples_ns: dict[str, list[int]] = {name: [] for name in callables}
    rounds, begin_ns, elapsed_s = 0, time.perf_counter_ns(), 0.0
    while rounds == 0 or elapsed_s < seconds or (rounds < min_samples and elapsed_s < PATIENCE * seconds):
        for name, inference in callables.items():
            start_ns = time.perf_counter_ns()
            inference()
            samples_ns[name].append(time.perf_counter_ns() - start_ns)
        rounds += 1
        elapsed_s = (time.perf_counter_ns() - begin_ns) / 1e9
    return {name: summarise(taken, elapsed_s, min_samples) for name, taken in samples_ns.items()}


def summarise(samples_ns: list[int], seconds: float, min_samples: int) -> LatencyResult:
    """Percentiles of the samples (at least one), and whether they can be trusted.

    Not valid: fewer than min_samples; a sample of no or negative duration (the clock is too coarse or went backwards);
    or p90 > SPREAD_MAX x p50 (the machine was busy with something else).
    """
    samples_ms = np.array(samples_ns, dtype=np.float64) / 1e6
    p5, p50, p90 = (float(value) for value in np.percentile(samples_ms, [5, 50, 90]))
    why_invalid = None
    if min(samples_ns) <= 0:
        why_invalid = f"the clock showed {min(samples_ns)} ns for an inference"
    elif len(samples_ns) < min_samples:
        why_invalid = f"{len(samples_ns)} samples in {seconds:.1f} s, {min_samples} needed"
    elif p90 > SPREAD_MAX * p50:
        why_invalid = f"p90 is {p90 / p50:.1f} times the median, at most {SPREAD_MAX:g} allowed: the machine was busy"
    return LatencyResult(
        p5_ms=p5,
        p50_ms=p50,
        p90_ms=p90,
        mean_ms=float(samples_ms.mean()),
        samples=len(samples_ns),
        seconds=seconds,
        valid=why_invalid is None,
        why_invalid=why_invalid,
        samples_ms=tuple(samples_ms.tolist()),
    )

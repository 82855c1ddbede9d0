"""The measuring protocol. Needs the standard library and numpy only, so that a board can run this very file.

After MLPerf Mobile's single-stream scenario: one inference after the other on an input that stays the same, warm-up
first, then at least 1,024 samples and 60 seconds; the figure is the 90th percentile. The rest between artifacts lets a
throttled device cool down.

Early stopping: a device that is too slow for its samples stops after PATIENCE times the seconds. From EARLY_SAMPLES on
its p90 can still be judged by an upper bound that holds with 99 % confidence, as LoadGen does it: the smallest k-th
order statistic with P(Binomial(n, 0.9) < k) >= 0.99. Budgets are held against that bound then.

All callables are measured side by side in one process, one inference each in turn (a, b, a, b, ...): a slow moment of
the machine then hits all of them, and their ratio stays meaningful where their milliseconds don't.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

# A run that hasn't got its samples after this many times the asked duration stops: the device is too slow for them.
PATIENCE = 3.0
EARLY_SAMPLES = 64
# When one inference in ten takes this many times the median or longer, the machine did something else meanwhile.
SPREAD_MAX = 5.0
LONGEST_S = 86400
"""no measurement takes longer than a day"""
LEAST_PHOTOGRAPHS = 5
"""fewer from end to end are no measurement"""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How long to measure."""

    name: str
    seconds: float
    """wall-clock length of the measured window; at most PATIENCE times that"""
    min_samples: int
    """of every callable; fewer stop early"""
    warmup: int
    """rounds that aren't counted"""
    cooldown_s: float
    """rest before each measurement"""

    def __post_init__(self) -> None:
        sound = self.min_samples >= 1 and self.warmup >= 0 and self.seconds >= 0 and self.cooldown_s >= 0
        if not sound or not math.isfinite(self.seconds + self.cooldown_s):
            raise ValueError("a protocol needs min_samples >= 1, warmup >= 0, seconds >= 0 and cooldown_s >= 0")

    @property
    def longest_s(self) -> float:
        """What `measure` takes at most, beside the warm-up and the last round."""
        return self.cooldown_s + PATIENCE * self.seconds


FULL = Protocol(name="full", seconds=60.0, min_samples=1024, warmup=32, cooldown_s=10.0)
QUICK = Protocol(name="quick", seconds=10.0, min_samples=128, warmup=10, cooldown_s=1.0)


@dataclass(frozen=True, kw_only=True)
class LatencyResult:
    """The latency of one artifact, and whether to believe it."""

    p5_ms: float
    p50_ms: float
    p90_ms: float
    mean_ms: float
    p90_bound_ms: float
    """what a limit on p90 is held against: p90, or its upper bound if there are fewer samples than asked for"""
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
        if self.samples != len(self.samples_ms) or not self.samples_ms:
            raise ValueError(
                f"samples is {self.samples}, with {len(self.samples_ms)} samples_ms; one at least is needed"
            )
        if not 0 <= self.seconds <= LONGEST_S:
            raise ValueError(f"seconds must be from 0 to {LONGEST_S}, not {self.seconds}")
        figures = (self.p5_ms, self.p50_ms, self.p90_ms, self.p90_bound_ms)
        if not all(math.isfinite(value) for value in (*figures, self.mean_ms)) or list(figures) != sorted(figures):
            raise ValueError("p5, p50, p90 and its bound must be numbers that rise in this order")
        if self.valid and self.p5_ms <= 0:
            raise ValueError(f"a valid latency is above 0, not {self.p5_ms} ms")

    def to_json(self) -> dict[str, Any]:
        """The summary as reports hold it (milliseconds), without the single samples."""
        summary = {"p5": self.p5_ms, "p50": self.p50_ms, "p90": self.p90_ms, "mean": self.mean_ms}
        summary["p90_bound"] = self.p90_bound_ms
        counts = {"samples": self.samples, "seconds": self.seconds}
        return {**summary, **counts, "valid": self.valid, "why_invalid": self.why_invalid}


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How long it takes from an artifact's file to its first answer: loading it and one inference, which is when a file
    that is mapped is read. The runtime's own code is loaded before, and does not count."""

    cold_ms: tuple[float, ...]
    """in a new process each"""
    warm_ms: tuple[float, ...]
    """once more in each of these processes"""
    from_storage: bool
    """whether the file was out of the system's page cache before each cold one; else it was read from memory"""

    def __post_init__(self) -> None:
        if not self.cold_ms or len(self.cold_ms) != len(self.warm_ms):
            raise ValueError(f"{len(self.cold_ms)} cold_ms and {len(self.warm_ms)} warm_ms are no pairs")
        if not all(0 < value <= 1000 * LONGEST_S for value in (*self.cold_ms, *self.warm_ms)):
            raise ValueError(f"loading takes longer than 0 ms, and {LONGEST_S} s at most")

    def to_json(self) -> dict[str, Any]:
        """The summary as reports hold it: medians in milliseconds."""
        medians = {"cold": float(np.median(self.cold_ms)), "warm": float(np.median(self.warm_ms))}
        return {**medians, "samples": len(self.cold_ms), "from_storage": self.from_storage}


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """From a photograph's file to its logits, again and again, step by step; the file is in the page cache."""

    decode_ms: tuple[float, ...]
    """from the file to upright RGB"""
    resize_ms: tuple[float, ...]
    """from there to the runtime's input"""
    inference_ms: tuple[float, ...]
    """and to the logits"""

    def __post_init__(self) -> None:
        counts = {len(self.decode_ms), len(self.resize_ms), len(self.inference_ms)}
        if len(counts) > 1 or not self.decode_ms:
            raise ValueError("every photograph is decoded, resized and computed, and there is one at least")
        if min(*self.decode_ms, *self.resize_ms, *self.inference_ms) < 0 or self._seconds > LONGEST_S:
            raise ValueError(f"no step takes less than 0 ms, and all together {LONGEST_S} s at most")

    @property
    def _rounds_ms(self) -> np.ndarray:
        return np.array([self.decode_ms, self.resize_ms, self.inference_ms], np.float64).sum(0)

    @property
    def _seconds(self) -> float:
        return float(self._rounds_ms.sum()) / 1000

    @property
    def total(self) -> LatencyResult:
        """The three together."""
        return _summary(self._rounds_ms, self._seconds, LEAST_PHOTOGRAPHS)

    def to_json(self) -> dict[str, Any]:
        """The summary as reports hold it: `total`, and the medians of its steps, in milliseconds."""
        steps = {"decode": self.decode_ms, "resize": self.resize_ms, "inference": self.inference_ms}
        return {**self.total.to_json(), **{name: float(np.median(taken)) for name, taken in steps.items()}}


def measure(callables: Mapping[str, Callable[[], object]], protocol: Protocol) -> dict[str, LatencyResult]:
    """Run every callable in turn as the protocol says.

    callables: name -> one inference; the input is the callable's own
    Returns name -> LatencyResult. Raises ValueError without callables.
    """
    if not callables:
        raise ValueError("measure needs at least one callable")
    time.sleep(protocol.cooldown_s)
    seconds, min_samples = protocol.seconds, protocol.min_samples
    for _ in range(protocol.warmup):
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

    Not valid: fewer than min_samples and than EARLY_SAMPLES; a sample of no or negative duration (the clock is too
    coarse or went backwards); or p90 > SPREAD_MAX x p50 (the machine was busy with something else).
    Raises ValueError without samples, or for one that is not a number.
    """
    return _summary(np.array(samples_ns, dtype=np.float64) / 1e6, seconds, min_samples)


def restated(told: LatencyResult, min_samples: int) -> LatencyResult:
    """What another machine tells of a latency, computed anew from its samples. A reason not to believe it stays."""
    found = _summary(np.array(told.samples_ms, dtype=np.float64), told.seconds, min_samples)
    return found if told.why_invalid is None else invalid(found, told.why_invalid)


def _summary(samples_ms: np.ndarray, seconds: float, min_samples: int) -> LatencyResult:
    if not len(samples_ms) or not np.isfinite(samples_ms).all():
        raise ValueError("a latency needs at least one sample, and all of them must be numbers")
    if np.abs(samples_ms).max() > 1000 * LONGEST_S:
        raise ValueError(f"no inference takes {np.abs(samples_ms).max():g} ms")
    p5, p50, p90 = (float(value) for value in np.percentile(samples_ms, [5, 50, 90]))
    count, shortest_ns = len(samples_ms), round(1e6 * float(samples_ms.min()))
    why_invalid = None
    if shortest_ns <= 0:
        why_invalid = f"the clock showed {shortest_ns} ns for an inference"
    elif count < min(min_samples, EARLY_SAMPLES):
        needed = f"{min_samples} needed" + (f", {EARLY_SAMPLES} at least" if min_samples > EARLY_SAMPLES else "")
        why_invalid = f"{count} samples in {seconds:.1f} s, {needed}"
    elif p90 > SPREAD_MAX * p50:
        why_invalid = f"p90 is {p90 / p50:.1f} times the median, at most {SPREAD_MAX:g} allowed: the machine was busy"
    return LatencyResult(
        p5_ms=p5,
        p50_ms=p50,
        p90_ms=p90,
        mean_ms=float(samples_ms.mean()),
        p90_bound_ms=p90 if count >= min_samples else max(p90, _p90_bound(samples_ms)),
        samples=count,
        seconds=seconds,
        valid=why_invalid is None,
        why_invalid=why_invalid,
        samples_ms=tuple(samples_ms.tolist()),
    )


def _p90_bound(samples_ms: np.ndarray) -> float:
    """Upper end of the one-sided 99 % confidence interval of the 90th percentile; the maximum if there are too few."""
    n, below = len(samples_ms), 0.0
    for k in range(1, n + 1):
        ways = math.lgamma(n + 1) - math.lgamma(k) - math.lgamma(n - k + 2)
        below += math.exp(ways + (k - 1) * math.log(0.9) + (n - k + 1) * math.log(0.1))  # P(Binomial(n, 0.9) = k - 1)
        if below >= 0.99:
            return float(np.sort(samples_ms)[k - 1])
    return float(samples_ms.max())


def invalid(result: LatencyResult, why: str) -> LatencyResult:
    """The same figures, not to be believed."""
    return replace(result, valid=False, why_invalid=why)


class Conditions(TypedDict, total=False):
    """What may slow a machine down; None: the system does not tell."""

    governor: str | None
    temperature_c: float | None
    """of the hottest sensor"""
    throttled: str | None
    """a Raspberry Pi firmware's flags, "0x0" if all is well (bit 0: under-voltage, 1: frequency capped, 2: throttled,
    3: soft temperature limit; from bit 16: since boot)"""
    battery: str | None
    """percent and state"""
    battery_saver: bool | None
    """whether a phone saves power, which slows it down"""


def conditions() -> Conditions:
    """What may slow this machine down, where the system tells."""
    system = Path("/sys")
    governors = {_line(path) for path in system.glob("devices/system/cpu/cpu*/cpufreq/scaling_governor")} - {None}
    temperatures = [_line(path) for path in system.glob("class/thermal/thermal_zone*/temp")]
    celsius = [int(text) / 1000 for text in temperatures if text and text.removeprefix("-").isdecimal()]
    flags = [_line(path) for path in system.glob("devices/platform/soc*/*firmware/get_throttled")]
    batteries = [
        f"{_line(path)} % {(_line(path.with_name('status')) or '').lower()}".strip()
        for path in system.glob("class/power_supply/BAT*/capacity")
    ]
    return {
        "governor": ", ".join(sorted(map(str, governors))) or None,
        "temperature_c": max(celsius, default=None),
        "throttled": f"0x{flags[0].removeprefix('0x')}" if flags and flags[0] else None,
        "battery": ", ".join(batteries) or None,
    }


def _line(path: Path) -> str | None:
    """What a file of the system says; None for a sensor that is switched off."""
    try:
        return path.read_text().strip()
    except OSError:
        return None

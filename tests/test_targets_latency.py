"""The measuring protocol, on a clock that the test winds itself."""

import ast
import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from targets import latency
from targets.latency import FULL, QUICK, LatencyResult, Protocol, measure, restated, summarise


class Clock:
    """Time that passes only in inferences; `calls` remembers who took it."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.calls: list[str] = []
        self.slept: list[float] = []

    def inference(self, name: str, durations_ms: Callable[[int], float]) -> Callable[[], None]:
        def run() -> None:
            self.now_ns += int(durations_ms(self.calls.count(name)) * 1e6)
            self.calls.append(name)

        return run


def brief(seconds: float = 0.0, min_samples: int = 1, warmup: int = 0, cooldown_s: float = 0.0) -> Protocol:
    return Protocol(name="brief", seconds=seconds, min_samples=min_samples, warmup=warmup, cooldown_s=cooldown_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    time = SimpleNamespace(perf_counter_ns=lambda: clock.now_ns, sleep=clock.slept.append)
    monkeypatch.setattr(latency, "time", time)
    return clock


def test_known_durations_give_known_figures(clock: Clock) -> None:
    callables = {"a": clock.inference("a", lambda i: 1 + i % 11), "b": clock.inference("b", lambda i: 40)}
    results = measure(callables, brief(0, 1, 0))
    assert results["a"].samples_ms == (1,)
    clock.calls.clear()
    results = measure(callables, brief(0.506, 11, 0))  # a: 1..11 ms, b: 40 ms, together 506 ms
    assert results["a"].samples_ms == tuple(range(1, 12))
    assert (results["a"].p5_ms, results["a"].p50_ms, results["a"].p90_ms, results["a"].mean_ms) == (1.5, 6, 10, 6)
    assert results["b"].p50_ms == results["b"].p90_ms == 40
    assert results["a"].seconds == pytest.approx(0.506)
    assert results["a"].valid
    assert results["b"].valid


def test_inferences_take_turns_and_warm_up_is_not_counted(clock: Clock) -> None:
    callables = {"a": clock.inference("a", lambda i: 900 if i < 3 else 1), "b": clock.inference("b", lambda i: 2)}
    results = measure(callables, brief(0.03, 10, 3))
    assert clock.calls == ["a", "b"] * 13
    assert results["a"].samples == results["b"].samples == 10
    assert results["a"].mean_ms == 1


def test_it_goes_on_until_the_time_is_over(clock: Clock) -> None:
    result = measure({"a": clock.inference("a", lambda i: 1)}, brief(0.5, 10, 0))["a"]
    assert result.samples == 500
    result = measure({"a": clock.inference("a", lambda i: 10)}, brief(0.05, 10, 0))["a"]
    assert result.samples == 10, "or until there are enough samples"


def test_a_slow_device_stops_after_its_patience_and_is_not_valid(clock: Clock) -> None:
    result = measure({"a": clock.inference("a", lambda i: 1000)}, brief(2, 100, 0))["a"]
    assert result.samples == 6, "three times the two seconds asked for"
    assert not result.valid
    assert "100 needed" in str(result.why_invalid)


def test_the_protocols_are_mlperfs_and_a_device_rests_before(clock: Clock) -> None:
    assert (FULL.seconds, FULL.min_samples) == (60, 1024)
    assert (QUICK.seconds, QUICK.min_samples) == (10, 128)
    result = measure({"a": clock.inference("a", lambda i: 20)}, FULL)["a"]
    assert (result.samples, clock.slept) == (3000, [FULL.cooldown_s])
    assert result.p90_bound_ms == result.p90_ms == 20


def test_a_device_that_stops_early_is_judged_by_an_upper_bound(clock: Clock) -> None:
    """1 s an inference: 180 of the 1,024 samples in the time allowed."""
    result = measure({"a": clock.inference("a", lambda i: 1000 + i)}, FULL)["a"]
    assert result.valid
    assert result.samples < 1024
    assert result.p90_ms < result.p90_bound_ms < max(result.samples_ms)
    assert not summarise([1000] * 63, seconds=180, min_samples=1024).valid
    assert summarise([1000] * 64, seconds=180, min_samples=1024).valid


def test_the_bound_holds_with_99_percent_confidence() -> None:
    draws = np.random.default_rng(0).exponential(1e6, (2000, 100)).astype(np.int64) + 1
    true_p90_ms = -np.log(0.1)
    held = [summarise(list(row), seconds=1, min_samples=1024).p90_bound_ms >= true_p90_ms for row in draws]
    assert 0.985 < np.mean(held) < 1  # a bound that always held would say nothing


@pytest.mark.parametrize("count", [1, 43, 44, 63, 64, 65, 99, 100, 180, 1023])
def test_the_bound_is_the_smallest_order_statistic_that_is_sure_enough(count: int) -> None:
    """In whole numbers: P(Binomial(n, 0.9) < k) = sum of C(n, i) 9^i over i < k, by 10^n."""
    below = itertools.accumulate(math.comb(count, i) * 9**i for i in range(count))
    k = next((k for k, ways in enumerate(below, start=1) if 100 * ways >= 99 * 10**count), count)
    samples_ns = [1000 * n for n in range(1, count + 1)]  # the k-th smallest is k microseconds
    assert summarise(samples_ns[::-1], seconds=1, min_samples=1024).p90_bound_ms == pytest.approx(k / 1000)


@pytest.mark.parametrize("first_ns", [0, -5, -5_000_000])
def test_a_clock_that_does_not_go_forward_is_not_valid(first_ns: int) -> None:
    result = summarise([first_ns] + [1000] * 99, seconds=1, min_samples=10)
    assert not result.valid
    assert result.why_invalid == f"the clock showed {first_ns} ns for an inference"
    assert summarise([1] * 99, seconds=1, min_samples=10).valid, "a nanosecond is a time"


def test_samples_and_spread_decide_at_their_limits() -> None:
    def spread(ratio: float) -> LatencyResult:
        return summarise([1000] * 80 + [int(1000 * ratio)] * 20, seconds=1, min_samples=100)

    assert spread(5).valid
    assert "busy" in str(spread(5.01).why_invalid)
    assert summarise([1000] * 100, seconds=1, min_samples=100).valid
    assert not summarise([1000] * 49, seconds=1, min_samples=50).valid


def test_real_time_is_close() -> None:
    import time

    result = measure({"a": lambda: time.sleep(0.005)}, brief(0, 1, 0))["a"]
    assert 5 <= result.p50_ms < 500


def test_json_has_the_report_keys() -> None:
    summary = json.loads(json.dumps(summarise([2_000_000] * 5, seconds=0.01, min_samples=5).to_json()))
    assert {summary.pop(key) for key in ("p5", "p50", "p90", "mean", "p90_bound")} == {2.0}
    assert summary == {"samples": 5, "seconds": 0.01, "valid": True, "why_invalid": None}


def test_exceptions_go_through_and_bad_arguments_are_refused() -> None:
    with pytest.raises(ZeroDivisionError):
        measure({"a": lambda: 1 / 0}, brief(0, 1, 0))
    for seconds, min_samples, warmup, cooldown_s in ((-1, 1, 1, 0), (float("nan"), 1, 1, 0), (1, 0, 1, 0),
                                                     (1, 1, -1, 0), (1, 1, 1, -1), (1e308, 1, 1, 1e308)):  # fmt: skip
        with pytest.raises(ValueError, match="a protocol needs"):
            brief(seconds, min_samples, warmup, cooldown_s)
    with pytest.raises(ValueError, match="at least one callable"):
        measure({}, brief(1, 1, 1))


def test_the_file_runs_where_only_numpy_is() -> None:
    tree = ast.parse(Path(str(latency.__file__)).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"math", "time", "collections.abc", "dataclasses", "pathlib", "typing", "numpy"}


@pytest.mark.parametrize("samples", [[], [float("nan")] * 99, [1000] * 99 + [float("inf")], [-float("inf"), 1000]])
def test_what_is_no_measurement_is_refused(samples: list[int]) -> None:
    with pytest.raises(ValueError, match="needs at least one sample, and all of them must be numbers"):
        summarise(samples, seconds=1, min_samples=1)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds must be from 0"):
        summarise([1000] * 99, seconds=seconds, min_samples=1)


def test_a_result_does_not_contradict_itself() -> None:
    result = summarise([1000 + i for i in range(99)], seconds=1, min_samples=1)
    for change in ({"samples": 98}, {"samples_ms": ()}, {"samples": 0, "samples_ms": ()}, {"p50_ms": 1.0}, {"p5_ms": 0},
                   {"p90_ms": float("nan")}, {"mean_ms": float("inf")}, {"why_invalid": "busy"}, {"valid": False},
                   {"seconds": -1.0}):  # fmt: skip
        with pytest.raises(ValueError):
            dataclasses.replace(result, **change)
    for seconds in (0.0, 86_400.0):  # from nothing to a day
        assert dataclasses.replace(result, seconds=seconds).valid


def test_what_another_machine_tells_is_computed_anew() -> None:
    result = summarise([1_000_000 + i for i in range(99)], seconds=1, min_samples=1)
    told = dataclasses.replace(result, p5_ms=0.1, p50_ms=0.2, p90_ms=0.3, p90_bound_ms=0.4, mean_ms=0.2)
    assert restated(told, 1) == result
    assert restated(latency.invalid(told, "hot"), 1) == latency.invalid(result, "hot")
    assert not restated(result, 100_000).why_invalid, "early stopping"
    few = summarise([1_000_000] * 5, seconds=1, min_samples=5)
    assert restated(few, 10).why_invalid == "5 samples in 1.0 s, 10 needed"


def test_with_enough_samples_p90_is_its_own_bound_and_with_fewer_an_upper_one() -> None:
    samples_ns = [1_000_000 + 10_000 * n for n in range(100)]
    enough, early = summarise(samples_ns, 1.0, 100), summarise(samples_ns, 1.0, 101)
    assert enough.p90_bound_ms == enough.p90_ms
    assert early.p90_bound_ms > early.p90_ms


def test_what_is_wrong_with_samples_is_told() -> None:
    busy = summarise([2_000_000] * 80 + [18_000_000] * 20, 1.0, 100)
    assert busy.why_invalid == "p90 is 9.0 times the median, at most 5 allowed: the machine was busy"
    assert summarise([1_000_000] * 3, 1.0, 1000).why_invalid == "3 samples in 1.0 s, 1000 needed, 64 at least"
    assert summarise([1_000_000] * 3, 1.0, 64).why_invalid == "3 samples in 1.0 s, 64 needed"
    with pytest.raises(ValueError, match=r"no inference takes 1e\+15 ms"):
        summarise([10**21], 1.0, 1)
    day_ns = 86_400 * 10**9
    assert summarise([day_ns], 1.0, 1).p50_ms == 86_400_000
    with pytest.raises(ValueError, match=r"no inference takes 8\.64e\+07 ms"):
        summarise([day_ns + 10**6], 1.0, 1)


# What may slow this machine down, from files as Linux has them.


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str | None]], None]:
    """Puts files into a /sys of its own, path -> what it says; None: it cannot be read."""
    monkeypatch.setattr(latency, "Path", {"/sys": tmp_path}.__getitem__)

    def put(files: dict[str, str | None]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if text is None else path.write_text(f"{text}\n")

    return put


def test_conditions_are_what_the_system_tells(system: Callable[[dict[str, str | None]], None]) -> None:
    system(
        {
            "devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
            "devices/system/cpu/cpu1/cpufreq/scaling_governor": "ondemand",
            "devices/system/cpu/cpu2/cpufreq/scaling_governor": "powersave",
            "devices/system/cpu/cpu3/cpufreq/scaling_governor": None,
            "class/thermal/thermal_zone0/temp": "41500",
            "class/thermal/thermal_zone1/temp": "63250",
            "class/thermal/thermal_zone2/temp": "-5000",
            "class/thermal/thermal_zone3/temp": "off",
            "class/thermal/thermal_zone5/temp": "--7",
            "class/thermal/thermal_zone4/temp": None,
            "devices/platform/soc/soc:firmware/get_throttled": "50005",
            "class/power_supply/BAT0/capacity": "80",
            "class/power_supply/BAT0/status": "Discharging",
            "class/power_supply/BAT1/capacity": "97",
        }
    )
    found = latency.conditions()
    assert set(str(found["battery"]).split(", ")) == {"80 % discharging", "97 %"}
    assert found == {
        "governor": "ondemand, powersave",
        "temperature_c": 63.25,
        "throttled": "0x50005",
        "battery": found["battery"],
    }


def test_conditions_of_another_board(system: Callable[[dict[str, str | None]], None]) -> None:
    """Its firmware says 0x itself, its one sensor is in the cold, its battery does not tell its state."""
    system(
        {
            "devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "0x0",
            "class/thermal/thermal_zone0/temp": "-1500",
            "class/power_supply/BAT0/capacity": "9",
        }
    )
    assert latency.conditions() == {"governor": None, "temperature_c": -1.5, "throttled": "0x0", "battery": "9 %"}


@pytest.mark.parametrize("flags", [{}, {"devices/platform/soc/soc:firmware/get_throttled": ""},
                                   {"devices/platform/soc/soc:firmware/get_throttled": None}])  # fmt: skip
def test_conditions_that_no_file_tells_are_none(system, flags) -> None:
    system(flags)
    assert latency.conditions() == dict.fromkeys(("governor", "temperature_c", "throttled", "battery"))

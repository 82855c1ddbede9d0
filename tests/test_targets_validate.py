"""The gate: its mathematics, its limits, and that it can fail."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.budget import Budget
from targets.formats import FORMATS
from targets.latency import LatencyResult, summarise
from targets.validate import (
    PSNR_CAP_DB,
    Check,
    Measurements,
    Parity,
    check_golden,
    held_back,
    judge,
    overall,
    parity,
    top1,
)

LOGITS = np.array([[1.0, 2.0, -4.0], [0.5, 0.0, 0.25]], np.float32)


def latency(p50_ms: float, p90_ms: float | None = None, min_samples: int = 1) -> LatencyResult:
    result = summarise([int(p50_ms * 1e6)] * 10, seconds=1, min_samples=min_samples)
    return dataclasses.replace(result, p90_ms=p90_ms or p50_ms, p90_bound_ms=p90_ms or p50_ms)


def measured(**changes: Any) -> Measurements:
    values: dict[str, Any] = {
        "reduced": False,
        "top1": 0.75,
        "top1_model": 0.768,
        "top1_dense": 0.78,
        "latency": latency(4, 6),
        "latency_dense": latency(8),
        "size_bytes": 2_000_000,
        "peak_mb": 3.5,
        "parity": Parity(psnr_db=80, max_abs=0.1, top1_agreement=0.995),
    }
    return Measurements(**{**values, **changes})


# Each limit with the value that the measurements above give for it.
AT_LIMIT = {
    "top1_min": 0.75,
    "top1_share_min": 0.9765625,
    "top1_drop_max_points": 3.0,
    "latency_p50_ms_max": 4.0,
    "latency_p90_ms_max": 6.0,
    "latency_ratio_max": 0.5,
    "size_mb_max": 2.0,
    "memory_mb_max": 3.5,
    "parity_psnr_db_min": 80.0,
    "parity_psnr_db_min_reduced": 80.0,
    "top1_agreement_min": 0.995,
}


def test_every_limit_is_tested_here() -> None:
    assert set(AT_LIMIT) == {field.name for field in dataclasses.fields(Budget)}


@pytest.mark.parametrize("name", AT_LIMIT)
def test_a_limit_holds_to_the_last_digit(name: str) -> None:
    stricter = 1e-6 if "_min" in name else -1e-6
    of = measured(reduced=name.endswith("reduced"))
    (check,) = judge(of, Budget(**{name: AT_LIMIT[name]}))
    assert (check.name, check.limit, check.verdict, check.reason) == (name, AT_LIMIT[name], "pass", None)
    assert check.value == pytest.approx(AT_LIMIT[name])
    (check,) = judge(of, Budget(**{name: AT_LIMIT[name] + stricter}))
    assert check.verdict == "fail"


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("top1_min", "top1"),
        ("top1_share_min", "top1"),
        ("top1_share_min", "top1_model"),
        ("memory_mb_max", "peak_mb"),
        ("top1_drop_max_points", "top1"),
        ("top1_drop_max_points", "top1_dense"),
        ("latency_p50_ms_max", "latency"),
        ("latency_p90_ms_max", "latency"),
        ("latency_ratio_max", "latency"),
        ("latency_ratio_max", "latency_dense"),
        ("size_mb_max", "size_bytes"),
        ("parity_psnr_db_min", "parity"),
        ("top1_agreement_min", "parity"),
    ],
)
def test_what_is_missing_is_not_measured(name: str, missing: str) -> None:
    checks = judge(measured(**{missing: None}), Budget(**{name: AT_LIMIT[name]}))
    assert [(check.value, check.verdict) for check in checks] == [(None, "not_measured")]
    assert checks[0].reason
    assert overall(checks) == "not_measured"


@pytest.mark.parametrize("name", ["latency_p50_ms_max", "latency_p90_ms_max", "latency_ratio_max"])
def test_a_latency_that_is_not_valid_is_not_measured(name: str) -> None:
    (check,) = judge(measured(latency=latency(4, min_samples=99)), Budget(**{name: 1000.0}))
    assert (check.value, check.verdict) == (None, "not_measured")
    assert "99 needed" in str(check.reason)


def test_the_ratio_needs_a_valid_dense_latency() -> None:
    (check,) = judge(measured(latency_dense=latency(8, min_samples=99)), Budget(latency_ratio_max=1000.0))
    assert check.verdict == "not_measured"
    assert "99 needed" in str(check.reason)


def test_a_share_has_nine_digits_and_so_has_a_drop() -> None:
    """A limit in decimals is kept to by what differs from it by less than any accuracy can."""
    of = measured(top1=1 / 3, top1_model=1.0, top1_dense=1.0)
    share, drop = judge(of, Budget(top1_share_min=0.333333333, top1_drop_max_points=66.666666667))
    assert (share.value, share.verdict) == (0.333333333, "pass")
    assert (drop.value, drop.verdict) == (66.666666667, "pass")


def test_what_was_measured_fails_for_itself_and_not_for_what_was_not() -> None:
    of = measured(latency=None, unmeasured="no rpi4 device has measured it")
    size, time = judge(of, Budget(size_mb_max=1.0, latency_p90_ms_max=9.0))[::-1]
    assert (size.verdict, size.reason) == ("fail", None)
    assert (time.verdict, time.reason) == ("not_measured", "no rpi4 device has measured it")


def test_zero_is_a_value() -> None:
    (check,) = judge(measured(top1=0.0), Budget(top1_min=0.5))
    assert (check.value, check.verdict) == (0.0, "fail")


@given(st.lists(st.sampled_from(["pass", "fail", "not_measured"])))
def test_fail_wins_and_not_measured_never_passes(verdicts: list[Any]) -> None:
    checks = [Check(name="x", limit=1, value=1, verdict=verdict, reason=None) for verdict in verdicts]
    if "fail" in verdicts:
        assert overall(checks) == "fail"
    elif "not_measured" in verdicts or not verdicts:
        assert overall(checks) == "not_measured"
    else:
        assert overall(checks) == "pass"


def test_a_check_per_limit_in_order_and_the_parity_of_the_precision() -> None:
    budget = Budget(**AT_LIMIT)
    for precision, other in (("fp32", "parity_psnr_db_min_reduced"), ("fp16", "parity_psnr_db_min"),
                             ("int8-static", "parity_psnr_db_min")):  # fmt: skip
        reduced = FORMATS["tflite"].precisions[precision].reduced
        names = [check.name for check in judge(measured(reduced=reduced), budget)]
        assert names == [name for name in AT_LIMIT if name != other]


def test_why_nothing_was_timed_is_told() -> None:
    of = measured(latency=None, latency_dense=None, peak_mb=None, unmeasured="no rpi4 device has measured it")
    for name in ("latency_p90_ms_max", "latency_ratio_max", "memory_mb_max"):
        (check,) = judge(of, Budget(**{name: 1000.0}))
        assert (check.verdict, check.reason) == ("not_measured", "no rpi4 device has measured it")


def test_a_p90_from_too_few_samples_is_judged_by_its_bound() -> None:
    early = dataclasses.replace(latency(4, 6), p90_bound_ms=7.0)
    (check,) = judge(measured(latency=early), Budget(latency_p90_ms_max=6.5))
    assert (check.value, check.verdict) == (7.0, "fail")


def test_golden_logits_hold_to_their_share() -> None:
    found = LOGITS.copy()
    found[1, 1] += 0.04  # a hundredth of the largest, 4
    check = check_golden(LOGITS, found, 0.01 + 1e-6)
    assert (check.name, check.verdict) == ("golden", "pass")
    assert check.value == pytest.approx(0.04)
    assert check_golden(LOGITS, found, 0.01 - 1e-6).verdict == "fail"
    missing = check_golden(LOGITS, None, 1.0, "no runtime")
    assert (missing.value, missing.verdict, missing.reason) == (None, "not_measured", "no runtime")
    broken = LOGITS * np.float32(np.nan)
    for wrong in (LOGITS[:1], broken):
        check = check_golden(LOGITS, wrong, 1.0)
        assert check.verdict == "fail"
        json.dumps(dataclasses.asdict(check), allow_nan=False)


def test_top1_counts_logits_that_are_not_finite_as_wrong() -> None:
    labels = np.array([1, 0])
    assert top1(LOGITS, labels) == 1
    assert top1(np.where(LOGITS == 0.5, np.nan, LOGITS), labels) == 0.5
    assert top1(LOGITS, np.array([2, 0])) == 0.5
    assert top1(np.where(LOGITS == 2, np.finfo(np.float32).max, LOGITS), labels) == 1, "the largest is a number"


def test_parity_of_known_values() -> None:
    found = LOGITS.copy()
    found[0, 0] += 0.4  # mean squared error 0.16 / 6; peak 4
    result = parity(LOGITS, found)
    assert result.psnr_db == pytest.approx(10 * math.log10(16 / (0.16 / 6)), abs=1e-4)
    assert result.max_abs == pytest.approx(0.4)
    assert result.top1_agreement == 1
    found[0, 0] = 3
    assert parity(LOGITS, found).top1_agreement == 0.5


def test_identical_logits_stay_within_json() -> None:
    assert parity(LOGITS, LOGITS) == Parity(psnr_db=PSNR_CAP_DB, max_abs=0, top1_agreement=1)
    assert parity(0 * LOGITS, LOGITS).psnr_db == -PSNR_CAP_DB


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_fail(value: float) -> None:
    broken = LOGITS.copy()
    broken[1, 2] = value
    result = parity(LOGITS, broken)
    json.dumps(dataclasses.asdict(result), allow_nan=False)
    assert result.top1_agreement == 0.5
    checks = judge(measured(parity=result), Budget(parity_psnr_db_min=-199.0, top1_agreement_min=0.6))
    assert [check.verdict for check in checks] == ["fail", "fail"]


def test_parity_refuses_what_cannot_be_compared() -> None:
    for reference, found in ((LOGITS, LOGITS[:1]), (LOGITS[0], LOGITS[0]), (LOGITS[:0], LOGITS[:0])):
        with pytest.raises(ValueError, match="images, classes"):
            parity(reference, found)
    with pytest.raises(ValueError, match="model's own logits"):
        parity(LOGITS * np.float32(np.nan), LOGITS)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), noise=st.floats(1e-6, 1))
def test_psnr_knows_no_unit_and_max_abs_bounds_it(seed: int, scale: float, noise: float) -> None:
    random = np.random.default_rng(seed)
    reference = random.normal(size=(4, 3))
    found = reference + noise * random.normal(size=(4, 3))
    small, large = parity(reference, found), parity(scale * reference, scale * found)
    assert large.psnr_db == pytest.approx(small.psnr_db, abs=1e-6)
    assert small.psnr_db >= 20 * math.log10(np.abs(reference).max() / small.max_abs) - 1e-9


@pytest.mark.parametrize(
    "expected",
    [LOGITS[:0], LOGITS[:, :0], LOGITS[0], np.where(LOGITS, LOGITS, np.nan), np.where(LOGITS, LOGITS, np.inf)],
)
def test_golden_logits_are_held_against_finite_ones_only(expected: np.ndarray) -> None:
    for found in (expected, LOGITS, None):
        with pytest.raises(ValueError, match="all finite"):
            check_golden(expected, found, 0.01)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [(LOGITS[:0], []), (LOGITS[0], [1]), (LOGITS[:, :0], [1, 0]), (LOGITS, []), (LOGITS, [1]), (LOGITS, [1, 0, 0])],
)
def test_no_accuracy_of_nothing(logits: np.ndarray, labels: list[int]) -> None:
    """A mean of nothing is NaN, and one label would be held against all images."""
    with pytest.raises(ValueError, match="labels"):
        top1(logits, np.array(labels, dtype=np.int64))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_fails_and_is_no_number_in_the_verdict(value: float) -> None:
    of = measured(peak_mb=value, top1=value, parity=Parity(psnr_db=value, max_abs=1, top1_agreement=value))
    names = {name for name in AT_LIMIT if not name.startswith(("latency", "size")) and not name.endswith("reduced")}
    checks = judge(of, Budget(**{name: AT_LIMIT[name] for name in names}))
    assert {(check.value, check.verdict) for check in checks} == {(None, "fail")}
    json.dumps([dataclasses.asdict(check) for check in checks], allow_nan=False)


@pytest.mark.parametrize("ms", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_reaches_no_gate(ms: float) -> None:
    """Ratios divide by it."""
    with pytest.raises(ValueError, match=r"rise in this order|above 0"):
        dataclasses.replace(latency(4), p5_ms=ms, p50_ms=ms, p90_ms=ms, p90_bound_ms=ms, mean_ms=ms)


def test_parity_of_numbers_that_float32_does_not_hold() -> None:
    huge = np.full((2, 3), 1e300)
    result = parity(LOGITS, huge)
    json.dumps(dataclasses.asdict(result), allow_nan=False)
    assert (result.psnr_db, result.top1_agreement) == (-PSNR_CAP_DB, 0)
    with pytest.raises(ValueError, match="model's own logits"):
        parity(huge, LOGITS)


WELL = {"governor": "ondemand", "temperature_c": 50.0, "throttled": "0x0", "battery": "80 % discharging"}


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {"throttled": "0xf000f"}, "flags 0xf: under-voltage, its frequency capped, throttled, too hot"),
        ({}, {"throttled": "0x1"}, "under-voltage"),
        ({"throttled": "0x4"}, {}, "throttled"),
        ({}, {"throttled": "0x80000"}, "flags 0x8: too hot"),  # in between
        ({"throttled": "0x10000"}, {"throttled": "0x50000"}, "flags 0x4: throttled"),
        ({}, {"throttled": "broken"}, "not understood: '0x0' and 'broken'"),
        ({"throttled": ["0x0"]}, {}, "not understood"),
        ({}, {"governor": "powersave"}, "its governor has changed from ondemand to powersave"),
        ({"battery_saver": True}, {}, "its battery saver was on"),
        ({}, {"battery_saver": True}, "its battery saver was on"),
    ],
)
def test_a_device_that_was_held_back_is_known_by_its_conditions(before: dict, after: dict, reason: str) -> None:
    assert reason in str(held_back({**WELL, **before}, {**WELL, **after}))


def test_all_that_has_held_a_device_back_is_told() -> None:
    before, after = {"battery_saver": True, "throttled": "0x4"}, {"governor": "powersave"}
    assert held_back({**WELL, **before}, {**WELL, **after}) == (
        "the board was held back (flags 0x4: throttled); its battery saver was on; "
        "its governor has changed from ondemand to powersave"
    )


@pytest.mark.parametrize("before", [{}, WELL, {**WELL, "throttled": "0x50000"}, {**WELL, "throttled": None}])
def test_what_was_before_the_measurement_or_is_not_told_holds_nothing_back(before: dict) -> None:
    assert held_back(before, before) is None
    assert held_back({}, {**before, "throttled": "0x50000"}) is None


@pytest.mark.parametrize(
    ("found", "share", "verdict", "value", "reason"),
    [
        (LOGITS, 0.5, "pass", 0.0, None),
        (LOGITS + 2, 0.5, "pass", 2.0, None),  # the limit itself is kept to
        (LOGITS + 3, 0.5, "fail", 3.0, None),
        (LOGITS[:1], 0.5, "fail", None, "logits are (1, 3), expected (2, 3), all finite"),
        (np.full_like(LOGITS, np.inf), 0.5, "fail", None, "logits are (2, 3), expected (2, 3), all finite"),
        (None, 0.5, "not_measured", None, "no device"),
    ],
)
def test_a_golden_check_says_all_of_itself(found, share, verdict, value, reason) -> None:
    expected = Check(name="there", limit=2.0, value=value, verdict=verdict, reason=reason)
    assert check_golden(LOGITS, found, share, "no device", name="there") == expected


@pytest.mark.parametrize("key", ["latency_p50_ms_max", "latency_ratio_max", "top1_min", "memory_mb_max"])
def test_a_limit_without_a_measurement_keeps_its_name_its_limit_and_the_reason(key) -> None:
    """And one that is no number fails, with what it was."""
    nothing = Measurements(reduced=False, unmeasured="no device")
    limit = AT_LIMIT[key]
    (check,) = judge(nothing, Budget(**{key: limit}))
    assert check == Check(name=key, limit=limit, value=None, verdict="not_measured", reason="no device")
    (check,) = judge(dataclasses.replace(nothing, unmeasured=None), Budget(**{key: limit}))
    assert check.reason == "there is no measurement"
    (check,) = judge(measured(peak_mb=math.nan), Budget(memory_mb_max=7.0))
    assert check == Check(name="memory_mb_max", limit=7.0, value=None, verdict="fail", reason="nan is no measurement")


def test_parity_of_what_is_no_number_is_the_worst_there_is() -> None:
    broken = parity(LOGITS, np.full_like(LOGITS, np.nan))
    assert (broken.psnr_db, broken.top1_agreement) == (-PSNR_CAP_DB, 0.0)
    assert broken.max_abs is not None
    assert math.isfinite(broken.max_abs)
    half = parity(LOGITS, np.stack([LOGITS[0], np.full(3, np.nan, np.float32)]))
    assert half.top1_agreement == 0.5

"""The gate: its mathematics, its limits, and that it can fail."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets import TARGETS
from targets.latency import LatencyResult, summarise
from targets.validate import PSNR_CAP_DB, Budget, Check, Measurements, Parity, judge, load_budget, overall, parity

LOGITS = np.array([[1.0, 2.0, -4.0], [0.5, 0.0, 0.25]], np.float32)


def latency(p50_ms: float, p90_ms: float | None = None, min_samples: int = 1) -> LatencyResult:
    result = summarise([int(p50_ms * 1e6)] * 10, seconds=1, min_samples=min_samples)
    return dataclasses.replace(result, p90_ms=p90_ms or p50_ms)


def measured(**changes: Any) -> Measurements:
    values: dict[str, Any] = {
        "top1": 0.75,
        "top1_dense": 0.78,
        "latency": latency(4, 6),
        "latency_dense": latency(8),
        "size_bytes": 2_000_000,
        "parity": Parity(psnr_db=80, max_abs=0.1, top1_agreement=0.995),
    }
    return Measurements(**{**values, **changes})


# Each limit with the value that the measurements above give for it.
AT_LIMIT = {
    "top1_min": 0.75,
    "top1_drop_max_points": 3.0,
    "latency_p50_ms_max": 4.0,
    "latency_p90_ms_max": 6.0,
    "latency_ratio_max": 0.5,
    "size_mb_max": 2.0,
    "parity_psnr_db_min": 80.0,
    "top1_agreement_min": 0.995,
}


def test_every_limit_is_tested_here() -> None:
    assert set(AT_LIMIT) == {field.name for field in dataclasses.fields(Budget)}


@pytest.mark.parametrize("name", AT_LIMIT)
def test_a_limit_holds_to_the_last_digit(name: str) -> None:
    stricter = 1e-6 if name.endswith("_min") else -1e-6
    (check,) = judge(measured(), Budget(**{name: AT_LIMIT[name]}))
    assert (check.name, check.limit, check.verdict, check.reason) == (name, AT_LIMIT[name], "pass", None)
    assert check.value == pytest.approx(AT_LIMIT[name])
    (check,) = judge(measured(), Budget(**{name: AT_LIMIT[name] + stricter}))
    assert check.verdict == "fail"


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("top1_min", "top1"),
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


def test_a_check_per_limit_in_order() -> None:
    assert [check.name for check in judge(measured(), Budget(**AT_LIMIT))] == list(AT_LIMIT)


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


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(text)
    return path


def test_a_budget_is_read(tmp_path: Path) -> None:
    budget = load_budget(write(tmp_path, "top1_min = 0.7  # a share\nsize_mb_max = 3\n"))
    assert budget == Budget(top1_min=0.7, size_mb_max=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency_p50_max = 3", r"'latency_p50_max'.*latency_p50_ms_max"),
        ("[latency]\np50_ms_max = 3", r"'latency'"),
        ('size_mb_max = "3"', r"size_mb_max.*number.*'3'"),
        ("size_mb_max = true", r"size_mb_max.*number"),
        ("size_mb_max = nan", r"size_mb_max.*finite"),
        ("size_mb_max = 0", r"size_mb_max.*above 0"),
        ("latency_ratio_max = -1", r"latency_ratio_max.*above 0"),
        ("top1_min = 75", r"top1_min.*between 0 and 1"),
        ("top1_agreement_min = -0.1", r"top1_agreement_min.*between 0 and 1"),
        ("# nothing", r"at least one limit"),
        ("top1_min 0.5", r"not TOML.*line 1"),
    ],
)
def test_a_bad_budget_is_refused_with_file_and_keys(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)my\.toml.*{message}") as error:
        load_budget(write(tmp_path, text))
    if "TOML" not in message:
        assert "parity_psnr_db_min" in str(error.value)


def test_a_missing_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml.*No such file"):
        load_budget(tmp_path / "nowhere.toml")
    with pytest.raises(ValueError, match=r"directory"):
        load_budget(tmp_path)


def test_the_host_budget_is_what_was_agreed() -> None:
    assert load_budget(TARGETS["host"].budget) == Budget(
        top1_drop_max_points=5.0,
        latency_p50_ms_max=50.0,
        latency_p90_ms_max=100.0,
        latency_ratio_max=0.9,
        size_mb_max=23.0,
        parity_psnr_db_min=60.0,
        top1_agreement_min=0.99,
    )


@pytest.mark.parametrize("name", TARGETS)
def test_the_targets_own_budgets_can_fail_and_pass(name: str) -> None:
    assert TARGETS[name].name == name
    budget = load_budget(TARGETS[name].budget)
    assert overall(judge(measured(), budget)) == "pass"
    assert overall(judge(measured(latency_dense=latency(4.2)), budget)) == "fail"
    assert overall(judge(Measurements(), budget)) == "not_measured"

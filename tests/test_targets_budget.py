"""Budgets: what is read, what is refused and where it stands, and that every target's own can fail."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
from test_targets_validate import AT_LIMIT, latency, measured

from targets import TARGETS, executorch, xnnpack_width
from targets import latency as latency_protocol
from targets.budget import LIMITS, Budget, FormatBudget, check_limit, load_budget
from targets.formats import FORMATS
from targets.latency import FULL, QUICK
from targets.validate import judge, overall

OFFERED = {"tflite": ("int8-weights", "fp16", "fp32"), "executorch": ("int8-dynamic", "fp32")}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(text)
    return path


def test_every_limit_is_tested_in_the_gate() -> None:
    assert set(AT_LIMIT) == set(LIMITS)


def test_common_limits_hold_for_every_format_and_a_table_changes_them(tmp_path: Path) -> None:
    text = """
top1_min = 0.7  # a share
size_mb_max = 3
[executorch]
size_mb_max = 4
[tflite]
precisions = ["fp32", "int8-weights"]
latency_ratio_max = 0.9
"""
    assert load_budget(write(tmp_path, text), OFFERED) == {
        "executorch": FormatBudget(precisions=("int8-dynamic", "fp32"), limits=Budget(top1_min=0.7, size_mb_max=4)),
        "tflite": FormatBudget(  # smallest file first, whatever the order in the budget
            precisions=("int8-weights", "fp32"), limits=Budget(top1_min=0.7, size_mb_max=3, latency_ratio_max=0.9)
        ),
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("\nlatency_p50_max = 3\n[tflite]", 2, r"'latency_p50_max'.*latency_p50_ms_max"),
        ("size_mb_max = 3\n[latency]\np50_ms_max = 3", 2, r"\[latency\] is no format.*tflite, executorch"),
        ("latency.p50_ms_max = 3\n[tflite]\nsize_mb_max = 3", 1, r"\[latency\] is no format.*tflite, executorch"),
        ("size_mb_max = 3\nlatency.p50_ms_max = 3\n[tflite]", 2, r"\[latency\] is no format.*tflite, executorch"),
        ("[tflite]\nsize_mb_max = 3\n[latency]\np50 = 3", 3, r"\[latency\] is no format.*tflite, executorch"),
        ("[tflite]\n\nsize = 3", 3, r"unknown key 'size'; valid keys: top1_min, .*, top1_agreement_min, precisions$"),
        ("\nsize = 3\n[tflite]", 2, r"unknown key 'size'; valid keys: top1_min, .*, top1_agreement_min$"),
        ("size_mb_max = 1\n[tflite]\nprecisions = ['fp32']\nsize = 3", 4, r"unknown key 'size'"),
        ('\n[tflite]\n"s\\u0069ze" = 3', 1, r"unknown key 'size'"),  # no line that names it so
        ("precisions = ['fp32']\n[tflite]", 1, r"unknown key 'precisions'"),
        (
            "size_mb_max = 1\n[tflite]\nprecisions = ['fp16', 'int4']",
            3,
            r"'int4' is no precision of tflite here; valid: int8-weights, fp16, fp32$",
        ),
        ("size_mb_max = 1\n[tflite]\nprecisions = 'fp16x'", 3, r"'fp16x' is no precision"),
        ("size_mb_max = 1\n[tflite]\nprecisions = []", 3, r"\[\] is no precision"),
        ('size_mb_max = "3"\n[tflite]', 1, r"size_mb_max.*number.*'3'"),
        ("size_mb_max = true\n[tflite]", 1, r"size_mb_max.*number"),
        ("size_mb_max = nan\n[tflite]", 1, r"size_mb_max.*finite"),
        ("size_mb_max = 1\n[tflite]\nsize_mb_max = inf", 3, r"size_mb_max.*finite"),
        ("size_mb_max = 1\n[tflite]\nprecisions = [nan]", 3, r"precisions must be a finite number, not nan"),
        ("size_mb_max = 2026-01-01\n[tflite]", 1, r"size_mb_max.*finite number, not datetime"),
        ("size_mb_max = 1\n[tflite]\nprecisions = 'fp16'", 3, r"precisions must be a list, not 'fp16'"),
        ("# why\nsize_mb_max = 0\n[tflite]", 2, r"size_mb_max.*above 0"),
        ("[tflite]\nlatency_ratio_max = -1", 2, r"latency_ratio_max.*above 0"),
        ("memory_mb_max = 0\n[tflite]", 1, r"memory_mb_max.*above 0"),
        ("top1_min = 75\n[tflite]", 1, r"top1_min.*between 0 and 1"),
        ("top1_share_min = 98\n[tflite]", 1, r"top1_share_min.*between 0 and 1"),
        ("top1_agreement_min = -0.1\n[tflite]", 1, r"top1_agreement_min.*between 0 and 1"),
        ("top1_drop_max_points = 101\n[tflite]", 1, r"top1_drop_max_points.*at most 100"),
        ("size_mb_max = 3\n[tflite]\n[executorch]\nsize_mb_max = 0", 4, r"size_mb_max.*above 0"),
        ("[tflite]", 1, r"\[tflite\] has no limit: top1_min, top1_share_min, "),
        ("# why\ntflite.precisions = ['fp32']", 2, r"\[tflite\] has no limit: top1_min, "),
        ("# why\n[tflite]\nprecisions = ['fp32']", 2, r"\[tflite\] has no limit: top1_min, "),
    ],
)
def test_a_bad_budget_is_refused_with_file_and_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)my\.toml, line {line}: .*{message}"):
        load_budget(write(tmp_path, text), OFFERED)


def test_what_is_no_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"my\.toml is not TOML.*line 1"):
        load_budget(write(tmp_path, "top1_min 0.5"), OFFERED)
    with pytest.raises(ValueError, match=r"my\.toml allows no format.*\[tflite\]"):
        load_budget(write(tmp_path, "top1_min = 0.5"), OFFERED)
    with pytest.raises(ValueError, match=r"nowhere\.toml.*No such file"):
        load_budget(tmp_path / "nowhere.toml", OFFERED)
    with pytest.raises(ValueError, match="directory"):
        load_budget(tmp_path, OFFERED)
    with pytest.raises(ValueError, match="at least one limit"):
        Budget()


@pytest.mark.parametrize("name", TARGETS)
def test_the_targets_own_budgets_can_pass_fail_and_stay_open(name: str) -> None:
    """Every limit that a target states makes its verdict fail when it is missed by a hair."""
    target = TARGETS[name]
    assert target.name == name
    budgets = target.budget()
    assert tuple(budgets) == target.formats
    for format, entry in budgets.items():
        precision = FORMATS[format].precisions[entry.precisions[-1]]
        limits = entry.limits.stated()
        good = measured(
            reduced=precision.reduced, latency=latency(1, 1), latency_dense=latency(2), top1_model=0.76, top1_dense=0.75
        )
        names = {check.name for check in judge(good, entry.limits)}
        assert overall(judge(good, entry.limits)) == "pass"
        for limit in names:
            missed = {check.name: check.value for check in judge(good, entry.limits)}[limit]
            assert missed is not None
            tighter = missed + 1e-6 if "_min" in limit else missed - 1e-6
            verdict = overall(judge(good, dataclasses.replace(entry.limits, **{limit: tighter})))
            assert verdict == "fail", limit
        nothing = judge(dataclasses.replace(good, latency=None, peak_mb=None, parity=None, top1=None), entry.limits)
        assert overall(nothing) == "not_measured"
        assert {"top1_share_min", "parity_psnr_db_min_reduced", "size_mb_max"} <= limits.keys()


def test_every_budget_explains_itself() -> None:
    for target in TARGETS.values():
        lines = target.budget_file.read_text().splitlines()
        assert sum(line.startswith("#") for line in lines) >= 3, target.name


def test_old_runtimes_are_never_given_what_they_compute_wrongly(tmp_path: Path) -> None:
    """Channel-wise dynamic int8 is silently wrong in tflite-runtime 2.14, which a Raspberry Pi may have."""
    assert "int8-dynamic" in FORMATS["tflite"].precisions
    for name in ("rpi4", "rpi5"):
        assert "int8-dynamic" not in TARGETS[name].offered["tflite"]
        assert "int8-dynamic" in TARGETS[name].offered["executorch"]
        own = TARGETS[name].budget_file.read_text()
        mine = write(tmp_path, re.sub(r"(\[tflite\]\nprecisions = \[)", r'\1"int8-dynamic", ', own))
        assert mine.read_text() != own
        with pytest.raises(ValueError, match="'int8-dynamic' is no precision of tflite here"):
            TARGETS[name].budget(mine)


def test_arithmetic_in_float16_is_offered_where_processors_have_it() -> None:
    """The Raspberry Pi 5 and new phones; before what stores the same and is computed with in float32."""
    of_float16 = {name: known.float16_of for name, known in FORMATS["tflite"].precisions.items() if known.float16_of}
    assert of_float16 == {"int8-dynamic-tensor-fp16": "int8-dynamic-tensor", "fp16-compute": "fp16"}
    for target in TARGETS.values():
        for format, precisions in target.offered.items():
            allowed = target.budget()[format].precisions
            if target.name not in ("rpi5", "android") or format != "tflite":
                assert not {*of_float16} & {*precisions}, (target.name, format)
                continue
            for name, plain in of_float16.items():
                assert precisions.index(name) + 1 == precisions.index(plain)
                assert allowed.index(name) + 1 == allowed.index(plain)


COMMON = {
    "top1_share_min": 0.98,
    "parity_psnr_db_min": 80.0,
    "parity_psnr_db_min_reduced": 25.0,
    "top1_agreement_min": 0.95,
}
HOST = {**COMMON, "top1_drop_max_points": 5.0, "size_mb_max": 23.0}
TIMED = {"latency_ratio_max": 0.9, "memory_mb_max": 200.0}
IOS = {**COMMON, "size_mb_max": 12.0, "memory_mb_max": 100.0, "latency_p90_ms_max": 15.0}
ANDROID = {**COMMON, "size_mb_max": 12.0, "memory_mb_max": 120.0, "latency_p90_ms_max": 25.0}
RPI4 = {**COMMON, "size_mb_max": 23.0, "memory_mb_max": 150.0, "latency_p90_ms_max": 120.0}
RPI5 = {**RPI4, "latency_p90_ms_max": 50.0}
AGREED = {
    "host": {"tflite": {**HOST, **TIMED}, "executorch": {**HOST, **TIMED}, "coreml": HOST},
    "ios": {"coreml": IOS, "executorch-coreml": IOS},
    "mac": {"coreml": {**HOST, "latency_ratio_max": 0.9}},
    "android": {"tflite": ANDROID, "executorch": ANDROID},
    "rpi4": {"tflite": RPI4, "executorch": RPI4},
    "rpi5": {"tflite": RPI5, "executorch": RPI5},
    "web": {"tflite": {**COMMON, "size_mb_max": 8.0, "latency_p90_ms_max": 100.0}},
}


def test_every_threshold_is_what_was_agreed() -> None:
    """Whoever moves one, in a budget or in the gate itself, has to say so here."""
    found = {
        name: {format: entry.limits.stated() for format, entry in target.budget().items()}
        for name, target in TARGETS.items()
    }
    assert found == AGREED
    precisions = [known for format in FORMATS.values() for known in format.precisions.values()]
    shares = {(known.reduced, known.golden_share, known.same_share) for known in precisions}
    assert shares == {(False, 1e-3, 1e-3), (True, 0.25, 0.05)}
    assert (FULL.seconds, FULL.min_samples, FULL.warmup, FULL.cooldown_s) == (60.0, 1024, 32, 10.0)
    assert (QUICK.seconds, QUICK.min_samples, QUICK.warmup, QUICK.cooldown_s) == (10.0, 128, 10, 1.0)
    assert (latency_protocol.PATIENCE, latency_protocol.EARLY_SAMPLES, latency_protocol.SPREAD_MAX) == (3.0, 64, 5.0)
    assert executorch.MAX_OPS_OUTSIDE == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top1_min", 0.0, None),
        ("top1_min", 1.0, None),
        ("top1_min", 1.5, "top1_min is a share between 0 and 1, not 1.5"),
        ("top1_min", -0.1, "is a share between 0 and 1"),
        ("top1_drop_max_points", 100.0, None),
        ("top1_drop_max_points", 101.0, "at most 100, not 101"),
        ("size_mb_max", 0.0, "size_mb_max must be above 0"),
        ("size_mb_max", math.inf, "size_mb_max must be a finite number, not inf"),
    ],
)
def test_a_limit_that_nothing_or_everything_meets_is_refused(name, value, message) -> None:
    if message is None:
        check_limit(name, value)
        return
    with pytest.raises(ValueError, match=message):
        check_limit(name, value)


def test_widths_that_x86_runs_at_full_speed() -> None:
    rule = TARGETS["host"].allowed_width
    assert rule is not None
    likes = [n for n in range(1, 193) if rule("hidden", n)]
    assert [n for n in likes if n > 96] == [*range(121, 129), *range(153, 161), *range(185, 193)]
    assert [n for n in likes if 32 < n <= 96] == [*range(57, 65), *range(89, 97)]
    assert [n for n in likes if n <= 32] == [n for n in range(1, 33) if xnnpack_width("hidden", n)]
    assert TARGETS["rpi5"].allowed_width is xnnpack_width  # not measured on Arm

"""What a device may answer: its numbers are computed anew, and what cannot be true is refused, with a sentence."""

import copy
import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets.artifact import sha256_of
from targets.devices.job import (
    END_TO_END,
    LOADING,
    MEMORY,
    DeviceError,
    DeviceResult,
    Job,
    read_job,
    read_result,
    result_of,
    write_job,
    write_result,
)
from targets.latency import EndToEnd, Loading, Protocol, summarise
from targets.resize import Resize

FILE, OTHER = "pruned.tflite", "dense.tflite"
SHA256 = {FILE: "a" * 64, OTHER: "b" * 64, "golden.u8": "c" * 64, "images.u8": "d" * 64, "photo.jpg": "e" * 64}
DEVICE = {"device": "a board", "os": "Linux", "cpu": None, "cores": 4, "arch": "aarch64", "emulated": None}
CONDITIONS = {"governor": "ondemand", "temperature_c": 51.5, "throttled": "0x0", "battery": None}

JOB = Job(
    id="7" * 32,
    format="tflite",
    files=(FILE, OTHER),
    sha256=SHA256,
    threads=4,
    height=8,
    width=8,
    classes=3,
    golden=((0.5, -1.0, 2.0), (1.0, 0.0, 0.0)),
    labels=(2, 0, 1, 1),
    protocol=Protocol(name="brief", seconds=0.5, min_samples=5, warmup=0, cooldown_s=0.0),
    memory=True,
    loads=3,
    resize=Resize(shorter_side=9, square=False, interpolation="bicubic", centre_crop=8),
)


def latency(first_ms: float) -> dict[str, Any]:
    result = summarise([int(1e6 * (first_ms + i)) for i in range(6)], seconds=0.5, min_samples=5)
    return {**dataclasses.asdict(result), "samples_ms": list(result.samples_ms)}


def sound() -> dict[str, Any]:
    """A result as a device sends it."""
    return {
        "version": 1,
        "job": JOB.id,
        "file": FILE,
        "sha256": SHA256[FILE],
        "device": dict(DEVICE),
        "threads": 4,
        "runtime": "a runtime",
        "runtime_version": "1.2",
        "refused": None,
        "before": dict(CONDITIONS),
        "after": dict(CONDITIONS),
        "golden": [[0.5, -1.0, 2.25], [1.0, 0.0, 0.0]],
        "golden_error": 0.25,
        "logits": [[0.0, 0.1, 0.2], [0.0, 3.0, 0.2], [0.0, 1.0, 0.2], [0.0, 4.0, 0.2]],
        "top1": 0.75,
        "latency": {FILE: latency(10), OTHER: latency(20)},
        "peak_mb": 12.5,
        "loading": {"cold_ms": [30.5, 40.0, 20], "warm_ms": [10.0, 12.0, 11.0], "from_storage": True},
        "end_to_end": {
            "decode_ms": [4.0, 5.0, 4.5, 4.25, 4.0, 4.0],
            "resize_ms": [2.0, 1.0, 1.5, 1.25, 1.0, 0],
            "inference_ms": [10.0, 11.0, 10.5, 10.25, 10.0, 10.0],
        },
        "unmeasured": {},
    }


def read(content: Any) -> DeviceResult:
    return result_of(json.dumps(content).encode(), JOB)


def test_a_sound_result_is_what_its_raw_numbers_say() -> None:
    result = read(sound())
    assert (result.golden_error, result.top1, result.peak_mb) == (0.25, 0.75, 12.5)
    assert result.latency[FILE] == summarise([int(1e6 * (10 + i)) for i in range(6)], seconds=0.5, min_samples=5)
    assert result.latency[FILE].p50_ms == 12.5
    assert result.device == DEVICE
    assert result.after["temperature_c"] == 51.5


def test_no_statistic_is_believed() -> None:
    told = sound()
    told |= {"top1": 1.0, "golden_error": 0.0}
    wrong = {"p5_ms": 1, "p50_ms": 1, "p90_ms": 1, "p90_bound_ms": 1, "mean_ms": 1}
    told["latency"][FILE] |= wrong
    assert read(told) == read(sound())
    told |= {"top1": None, "golden_error": None}
    assert read(told) == read(sound())


def test_what_is_too_few_or_too_uneven_is_not_valid_whatever_is_told() -> None:
    told = sound()
    for entry in told["latency"].values():
        entry |= {"samples": 2, "samples_ms": entry["samples_ms"][:2]}
    few = read(told).latency[FILE]
    assert not few.valid
    assert "2 samples" in str(few.why_invalid)
    told = sound()
    told["latency"][FILE]["samples_ms"] = [1.0] * 5 + [90.0]
    uneven = read(told).latency[FILE]
    assert not uneven.valid
    assert "busy" in str(uneven.why_invalid)
    told["latency"][FILE]["samples_ms"] = [0.0] * 6
    assert "the clock showed 0 ns" in str(read(told).latency[FILE].why_invalid)


def test_a_devices_own_doubts_stay() -> None:
    told = sound()
    told["latency"][FILE] |= {"valid": False, "why_invalid": "the page was hidden"}
    found = read(told).latency
    assert (found[FILE].valid, found[FILE].why_invalid) == (False, "the page was hidden")
    assert found[OTHER].valid


def test_logits_that_are_no_numbers_are_wrong_ones() -> None:
    told = sound()
    told["logits"][0], told["golden"][1][2] = [None, None, None], None
    result = read(told)
    assert result.top1 == 0.5
    assert result.golden_error is None
    assert math.isnan(result.golden[1][2])  # type: ignore[arg-type]
    assert math.isnan(result.logits[0][0])  # type: ignore[arg-type]


def test_a_refused_artifact_has_no_numbers() -> None:
    nothing = {"golden": [], "logits": [], "latency": {}, "golden_error": None, "top1": None, "peak_mb": None}
    nothing |= {"loading": None, "end_to_end": None}
    told = {**sound(), **nothing, "refused": "too new", "runtime": "", "before": {}, "after": {}}
    assert read(told).refused == "too new"
    measured = {name: sound()[name] for name in ("golden", "logits", "latency", "loading", "end_to_end")}
    zeros = dict.fromkeys(("golden_error", "top1", "peak_mb"), 0.0)
    for name, value in {**measured, **zeros, "unmeasured": {OTHER: "gone"}, "refused": ""}.items():
        with pytest.raises(DeviceError, match="refused has a reason and no measurements"):
            read({**told, name: value})


def set_at(*keys: Any) -> Callable[[dict[str, Any], Any], None]:
    def change(content: Any, value: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


NOTHING: dict[str, Any] = {"samples": 0, "samples_ms": [], "p50_ms": -1}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("latency", FILE), {**latency(1), **NOTHING}, "one at least is needed"),
        (("latency", FILE, "samples"), 5, "samples is 5, with 6 samples_ms"),
        (("latency", FILE, "samples"), 6.0, "samples: must be a whole number"),
        (("latency", FILE, "p50_ms"), "12", "p50_ms: must be a finite number, not '12'"),
        (("latency", FILE, "p50_ms"), -1, "rise in this order"),
        (("latency", FILE, "p50_ms"), None, "p50_ms: must be a finite number"),
        (("latency", FILE, "seconds"), -1, "seconds must be from 0"),
        (("latency", FILE, "seconds"), 1e9, "seconds must be from 0"),
        (("latency", FILE, "seconds"), 0.25, "as many samples each, in the same time"),
        (("latency", FILE, "valid"), 1, "valid: must be true or false"),
        (("latency", FILE, "valid"), False, "why_invalid must give the reason"),
        (("latency", FILE, "samples_ms", 0), None, r"samples_ms\[0\]: must be a finite number"),
        (("latency", FILE, "samples_ms", 0), [1], r"samples_ms\[0\]: must be a finite number"),
        (("latency", FILE, "samples_ms", 0), 1e300, "take longer|no inference takes"),
        (("latency", FILE, "samples_ms"), [100.0] * 6, "the samples take longer than the 0.5 s"),
        (("latency", OTHER), latency(1) | {"samples": 5, "samples_ms": [1.0] * 5}, "as many samples each"),
        (("latency",), {}, "of 0 artifacts instead of 2"),
        (("latency",), [], "latency: must be an object"),
        (("latency", "../x"), latency(1), "of 3 artifacts instead of 2"),
        (("peak_mb",), -5, "is no memory"),
        (("peak_mb",), True, "peak_mb: must be a finite number, not True"),
        (("peak_mb",), 1e12, "is no memory"),
        (("peak_mb",), 1e6, "is no memory"),
        (("threads",), 0, "threads: must be from 1 to 4"),
        (("threads",), 5, "threads: must be from 1 to 4"),
        (("threads",), True, "threads: must be a whole number"),
        (("runtime",), "", "must have a name"),
        (("device",), None, "device: must be an object"),
        (("device", "cores"), "4", "device.cores: must be a whole number"),
        (("device", "root"), True, "unknown key 'root'"),
        (("after", "throttled"), "hot", "'hot' are no flags"),
        (("before", "throttled"), "hot", "'hot' are no flags"),
        (("after", "throttled"), 0, "after.throttled: must be text"),
        (("before", "temperature_c"), "51", "before.temperature_c: must be a finite number"),
        (("golden", 0), [[0.5], -1.0, 2.0], r"golden\[0\]\[0\]: must be a finite number"),
        (("golden",), [[0.5, -1.0, 2.0]], "golden: 1 rows instead of 2 of 3"),
        (("logits", 3), [0.0, 4.0], "logits: 4 rows instead of 4 of 3"),
        (("logits",), [], "logits: 0 rows instead of 4"),
        (("logits",), "none", "logits: must be a list"),
        (("unmeasured",), {FILE: "why not"}, "'pruned.tflite' may not be missing"),
        (("unmeasured",), {"x": "why not"}, "'x' may not be missing"),
        (("unmeasured",), {OTHER: "gone"}, "of 2 artifacts instead of 1"),
        (("unmeasured",), {MEMORY: "killed"}, "unmeasured: memory is measured all the same"),
        (("unmeasured",), {LOADING: "killed"}, "unmeasured: loading is measured all the same"),
        (("unmeasured",), {END_TO_END: "no Pillow"}, "unmeasured: end to end is measured all the same"),
        (("loading",), [], "loading: must be an object"),
        (("loading", "cold_ms"), [], "0 cold_ms and 3 warm_ms are no pairs"),
        (("loading", "warm_ms"), [1.0], "3 cold_ms and 1 warm_ms are no pairs"),
        (("loading",), {"cold_ms": [], "warm_ms": [], "from_storage": True}, "0 cold_ms and 0 warm_ms are no pairs"),
        (("loading",), {"cold_ms": [1] * 4, "warm_ms": [1] * 4, "from_storage": True}, "4 times, 3 were asked for"),
        (("loading", "cold_ms", 2), 0, "loading takes longer than 0 ms"),
        (("loading", "cold_ms", 2), -1.0, "loading takes longer than 0 ms"),
        (("loading", "warm_ms", 0), 0.0, "loading takes longer than 0 ms"),
        (("loading", "warm_ms", 0), 86_400_001, "and 86400 s at most"),
        (("loading", "cold_ms", 1), None, r"loading\.cold_ms\[1\]: must be a finite number"),
        (("loading", "cold_ms", 1), True, r"loading\.cold_ms\[1\]: must be a finite number"),
        (("loading", "cold_ms"), 30.5, "loading.cold_ms: must be a list"),
        (("loading", "from_storage"), 1, "loading.from_storage: must be true or false"),
        (("loading", "cold"), 30.5, "unknown key 'cold'"),
        (("end_to_end",), 16.0, "end_to_end: must be an object"),
        (("end_to_end", "decode_ms"), [4.0], "every photograph is decoded, resized and computed"),
        (("end_to_end", "resize_ms"), [4.0], "every photograph is decoded, resized and computed"),
        (("end_to_end", "inference_ms"), [4.0] * 7, "every photograph is decoded, resized and computed"),
        (("end_to_end",), {key: [] for key in sound()["end_to_end"]}, "there is one at least"),
        (("end_to_end", "decode_ms", 0), -0.5, "no step takes less than 0 ms"),
        (("end_to_end", "resize_ms", 0), -0.5, "no step takes less than 0 ms"),
        (("end_to_end", "inference_ms", 0), 1e300, "all together 86400 s at most"),
        (("end_to_end", "inference_ms"), [15_000_000] * 6, "all together 86400 s at most"),
        (("end_to_end", "inference_ms", 0), "4", r"end_to_end\.inference_ms\[0\]: must be a finite number"),
        (("end_to_end", "total_ms"), 4, "unknown key 'total_ms'"),
        (("refused",), "no", "refused has a reason and no measurements"),
        (("version",), 2, "result.json: version is 2, this program reads 1"),
        (("verdict",), "pass", "unknown key 'verdict'"),
    ],
)
def test_what_cannot_be_true_is_refused(keys: tuple[Any, ...], value: Any, message: str) -> None:
    told = sound()
    set_at(*keys)(told, value)
    with pytest.raises(DeviceError, match=rf"not whole.*({message}).*; repeat the command"):
        read(told)


def test_the_least_that_can_be_true_is_taken() -> None:
    told = sound()
    told |= {"threads": 1, "peak_mb": 0.0}
    told["loading"] = {"cold_ms": [1e-9], "warm_ms": [86_400_000], "from_storage": False}
    told["end_to_end"] = {"decode_ms": [0], "resize_ms": [0], "inference_ms": [0]}
    assert (read(told).threads, read(told).peak_mb) == (1, 0.0)
    assert read(told).loading == Loading(cold_ms=(1e-9,), warm_ms=(86_400_000,), from_storage=False)
    assert read(told).end_to_end == EndToEnd(decode_ms=(0,), resize_ms=(0,), inference_ms=(0,))
    told["end_to_end"] = {"decode_ms": [86_400_000], "resize_ms": [0], "inference_ms": [0]}
    assert read(told).end_to_end is not None


def test_samples_fit_into_the_time_that_was_measured() -> None:
    """A hundredth and 10 ms more are allowed for: clocks differ."""

    def told(last_ms: float) -> dict[str, Any]:
        of = {**latency(1), "samples": 2, "samples_ms": [2.0, 3.0], "seconds": 0.0}
        return {**sound(), "latency": {FILE: of, OTHER: {**of, "samples_ms": [2.0, last_ms]}}}

    assert read(told(3.0)).latency[OTHER].samples_ms == (2.0, 3.0)
    with pytest.raises(DeviceError, match="the samples take longer than the 0 s that were measured"):
        read(told(3.005))
    alone = sound() | {"unmeasured": {OTHER: "gone"}, "latency": {FILE: latency(100)}}
    with pytest.raises(DeviceError, match=r"the samples take longer than the 0\.5 s that were measured"):
        read(alone)


@pytest.mark.parametrize("key", ["job", "file", "sha256"])
def test_a_result_of_anything_else_is_refused(key: str) -> None:
    told = sound()
    told[key] = {"job": "8" * 32, "file": OTHER, "sha256": SHA256[OTHER]}[key]
    with pytest.raises(DeviceError, match=r"belongs to another artifact than pruned\.tflite; repeat the command"):
        read(told)


@pytest.mark.parametrize("key", [key for key in sound() if key not in ("version", "refused")])
def test_what_is_missing_is_refused_or_computed(key: str) -> None:
    told = sound()
    del told[key]
    if key in ("golden_error", "top1"):
        assert read(told) == read(sound())
    elif key in ("peak_mb", "before", "after", "loading", "end_to_end", "unmeasured"):
        assert read(told).top1 == 0.75, "not every device tells"
    else:
        with pytest.raises(DeviceError, match="not whole"):
            read(told)


def test_numbers_that_were_not_asked_for_are_refused() -> None:
    for changes in ({"memory": False}, {"protocol": None}, {"labels": ()}, {"golden": ()}, {"loads": 2},
                    {"loads": 0}, {"resize": None}):  # fmt: skip
        with pytest.raises(DeviceError, match="not whole"):
            result_of(json.dumps(sound()).encode(), dataclasses.replace(JOB, **changes))


def test_what_could_not_be_measured_is_told() -> None:
    told = sound()
    del told["latency"][OTHER]
    reasons = {OTHER: "gone", MEMORY: "killed", LOADING: "killed", END_TO_END: "no Pillow"}
    told |= {"unmeasured": reasons, "peak_mb": None, "loading": None, "end_to_end": None}
    assert read(told).unmeasured == reasons
    assert (read(told).loading, read(told).end_to_end) == (None, None)


def test_what_is_told_of_loading_and_photographs_are_medians() -> None:
    result = read(sound())
    assert result.loading is not None
    assert result.loading.to_json() == {"cold": 30.5, "warm": 11.0, "samples": 3, "from_storage": True}
    assert result.end_to_end is not None
    found = result.end_to_end.to_json()
    assert (found["decode"], found["resize"], found["inference"]) == (4.125, 1.125, 10.125)
    assert (found["p50"], found["samples"], found["valid"]) == (15.875, 6, True)
    assert found["seconds"] == pytest.approx(0.09425)
    told = sound()
    told["end_to_end"] = {name: [0.0, *values[1:]] for name, values in told["end_to_end"].items()}
    uneven = read(told).end_to_end
    assert uneven is not None
    assert "the clock showed 0 ns" in str(uneven.total.why_invalid)
    told["end_to_end"] = {name: values[:4] for name, values in sound()["end_to_end"].items()}
    few = read(told).end_to_end
    assert few is not None
    assert "4 samples" in str(few.total.why_invalid)


def test_control_characters_of_a_device_reach_nobody() -> None:
    told = sound()
    told["device"]["device"] = "\x1b[2Ja board\x07"
    told["latency"][FILE] |= {"valid": False, "why_invalid": "\x1b]0;title\x07"}
    result = read(told)
    assert result.device["device"] == "�[2Ja board�"
    assert result.latency[FILE].why_invalid == "�]0;title�"
    assert str(DeviceError("\x1b[31mred\x1b[0m\nnext")) == "�[31mred�[0m\nnext"
    told["\x1b[31m"] = 1
    with pytest.raises(DeviceError) as raised:
        read(told)
    assert "\x1b" not in str(raised.value)


def test_it_survives_being_written_and_read(tmp_path: Path) -> None:
    result = read(sound())
    assert read_result(write_result(result, tmp_path / "result.json"), JOB) == result
    with pytest.raises(DeviceError, match=r"none\.json is missing or not whole"):
        read_result(tmp_path / "none.json", JOB)


def test_a_logit_that_is_no_number_is_written_as_none_and_no_other_number_may_be_missing(tmp_path: Path) -> None:
    result, path = read(sound()), tmp_path / "result.json"
    broken = dataclasses.replace(result, golden=((math.nan, 1.0, 2.0), result.golden[1]))
    assert json.loads(write_result(broken, path).read_text())["golden"][0] == [None, 1.0, 2.0]
    assert math.isnan(read_result(path, JOB).golden[0][0])  # type: ignore[arg-type]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(dataclasses.replace(result, peak_mb=math.nan), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Any kind of damage, 10,000 times: never a traceback, and never a result without its numbers.

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.0, -0.5, 1e-300, 1e300, math.inf, -math.inf, math.nan),
    *("", "12", "\x1b[2J", "\0", "\ud800", "é" * 3000, "../../x", FILE, [], {}, [[]], [None], {"a": 1}, [1] * 50),
)


def strange(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(STRANGE))


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every container of the content, with every key in it."""
    inside = content.items() if isinstance(content, dict) else enumerate(content)
    return [
        found
        for key, value in inside
        for found in [(content, key), *(places(value) if isinstance(value, dict | list) else [])]
    ]


def mutate(content: dict[str, Any], draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        found = places(content)
        if not found:
            return
        container, key = draw.choice(found)
        match draw.randrange(6):
            case 0 | 1 | 2:
                container[key] = strange(draw)
            case 3:
                other, name = draw.choice(found)
                container[key] = other[name] if not isinstance(other[name], dict | list) else [1.0]
            case 4:
                del container[key]
            case 5 if isinstance(container, list):
                container.insert(key, strange(draw))
            case _:
                container[f"{key}?"[: draw.randrange(9)] if isinstance(key, str) else key] = strange(draw)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The bytes with some of them changed, left out or repeated."""
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.choice((1, 1, 2, 20, 500)))
    middle = draw.choice((b"", bytes(draw.randrange(256) for _ in range(3)), content[start:end] * 2, b"[" * 3000))
    return content[:start] + middle + content[end:]


def test_ten_thousand_mutated_results_are_refused_or_whole() -> None:
    draw, accepted, count = random.Random(0), 0, 10_000
    sentences: set[str] = set()
    text = json.dumps(sound())
    for number in range(count):
        content = json.loads(text)
        mutate(content, draw)
        told = json.dumps(content).encode()
        if number % 5 == 0:
            told = damaged(told, draw)
        try:
            result = result_of(told, JOB)
        except DeviceError as error:
            sentences.add(str(error))
        else:
            accepted += 1
            check_numbers(result)
    assert all("; repeat the command" in text and text.isprintable() and len(text) < 1000 for text in sentences)
    assert 0.02 * count < accepted < 0.5 * count, "some damage hits what is computed anew, or nobody needs"


def check_numbers(result: DeviceResult) -> None:
    """Every number that a verdict needs is there, and follows from the raw ones."""
    assert (result.job, result.file, result.sha256, result.refused) == (JOB.id, FILE, SHA256[FILE], None)
    assert np.shape(result.logits) == (4, 3)
    assert np.shape(result.golden) == (2, 3)
    assert result.top1 is not None
    assert 0 <= result.top1 <= 1
    assert result.golden_error is None or 0 <= result.golden_error < math.inf
    assert (result.golden_error is None) == any(math.isnan(value or 0) for row in result.golden for value in row)
    assert result.latency.keys() | result.unmeasured.keys() >= {FILE, OTHER}
    assert FILE in result.latency
    assert result.peak_mb is None or 0 <= result.peak_mb < 1e6
    if result.loading is not None:
        assert 1 <= len(result.loading.cold_ms) == len(result.loading.warm_ms) <= 3
        assert all(0 < value <= 86_400_000 for value in (*result.loading.cold_ms, *result.loading.warm_ms))
    if result.end_to_end is not None:
        whole = result.end_to_end
        assert whole.total.samples == len(whole.decode_ms) == len(whole.resize_ms) == len(whole.inference_ms) >= 1
        assert all(map(math.isfinite, (whole.total.p50_ms, whole.total.p90_ms)))
        assert not whole.total.valid or whole.total.p5_ms > 0
    for name, found in ((MEMORY, result.peak_mb), (LOADING, result.loading), (END_TO_END, result.end_to_end)):
        assert found is None or name not in result.unmeasured
    for latency in result.latency.values():
        assert latency.samples == len(latency.samples_ms) >= 1
        assert all(map(math.isfinite, (latency.p5_ms, latency.p50_ms, latency.p90_ms, latency.mean_ms)))
        assert latency.p50_ms == np.median(latency.samples_ms)
        assert not latency.valid or (latency.samples >= 5 and min(latency.samples_ms) > 0)
    texts = (result.runtime, result.device["device"], *result.unmeasured.values())
    assert all(text.isprintable() and len(text) <= 2000 for text in texts)


# The job, as a board reads it.

RESIZE = {"shorter_side": 9, "square": False, "interpolation": "bicubic", "centre_crop": 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": []}, "at least one artifact"),
        ({"files": [FILE, FILE]}, "each named once"),
        ({"files": ["x"]}, "with its checksum"),
        *(
            ({"sha256": {**SHA256, name: "e" * 64}}, "is no name")
            for name in ("", ".", "..", "a/b", "/a", "a\\b", "\0")
        ),
        ({"sha256": {**SHA256, "job.json": "e" * 64}}, "is no name"),
        *(({name: 0}, "must be at least 1") for name in ("threads", "height", "width")),
        ({"classes": 0, "golden": [], "labels": []}, "must be at least 1"),
        ({"threads": "4"}, "threads: must be a whole number"),
        ({"golden": [[1.0]]}, "3 logits a row"),
        ({"labels": [3]}, "labels must be from 0 to 2"),
        ({"labels": [True]}, r"labels\[0\]: must be a whole number"),
        ({"protocol": {"name": "x"}}, "protocol: lacks seconds"),
        ({"loads": -1}, "loads must be 0 or more, not -1"),
        ({"loads": True}, "loads: must be a whole number"),
        ({"resize": {}}, "resize: lacks shorter_side"),
        ({"resize": {**RESIZE, "interpolation": "nearest"}}, "resize.interpolation: must be 'bicubic' or 'bilinear'"),
        ({"resize": {**RESIZE, "shorter_side": 7}}, "resize: 8 pixels cannot be cut out of 7"),
        ({"resize": {**RESIZE, "centre_crop": 0}}, "resize: 0 pixels cannot be cut out of 9"),
        ({"resize": {**RESIZE, "centre_crop": 9}}, "resize makes pictures of 8 x 8 of photo.jpg"),
        ({"height": 9}, "resize makes pictures of 9 x 8 of photo.jpg"),
        ({"sha256": {FILE: "a" * 64, OTHER: "b" * 64}}, "of photo.jpg, which is in the job"),
        ({"more": 1}, "unknown key 'more'"),
        ({"version": 2}, "version is 2"),
    ],
)
def test_a_job_that_is_none_is_not_done(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = json.loads(write_job(JOB, tmp_path).read_text())
    (tmp_path / "job.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(DeviceError, match=rf"job\.json is missing or not whole.*{message}"):
        read_job(tmp_path)


@pytest.fixture
def whole(tmp_path: Path) -> Job:
    """The smallest job, with its files: an artifact, a golden picture and two others of 2 x 3 pixels."""
    pictures = np.arange(3 * 2 * 3 * 3, dtype=np.uint8).reshape(3, 1, 2, 3, 3)
    (tmp_path / FILE).write_bytes(b"artifact")
    pictures[:1].tofile(tmp_path / "golden.u8")
    pictures[1:].tofile(tmp_path / "images.u8")
    sha256 = {path.name: sha256_of(path) for path in tmp_path.iterdir()}
    sizes = {"threads": 1, "height": 2, "width": 3, "classes": 1}
    return Job(id="1", format="tflite", files=(FILE,), sha256=sha256, **sizes, golden=((0.5,),), labels=(0, 0))


@pytest.mark.parametrize("name", [FILE, "golden.u8", "images.u8"])
def test_a_job_is_read_once_all_its_files_have_arrived_whole(whole: Job, tmp_path: Path, name: str) -> None:
    write_job(whole, tmp_path)
    assert read_job(tmp_path) == whole
    content = bytearray((tmp_path / name).read_bytes())
    content[3] ^= 1
    (tmp_path / name).write_bytes(content)
    for _ in ("changed", "missing"):
        with pytest.raises(DeviceError, match=rf"^{name} did not arrive whole; repeat the command$"):
            read_job(tmp_path)
        (tmp_path / name).unlink(missing_ok=True)


def test_a_jobs_pictures_come_one_by_one(whole: Job, tmp_path: Path) -> None:
    golden, images = (list(whole.pictures(tmp_path, name)) for name in ("golden.u8", "images.u8"))
    assert [picture.shape for picture in golden + images] == [(1, 2, 3, 3)] * 3
    assert {picture.dtype for picture in golden + images} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(np.stack(golden + images).ravel(), np.arange(54))
    with pytest.raises(ValueError, match="read-only"):
        images[0][:] = 0


def test_a_job_may_have_an_artifact_and_no_pictures(whole: Job, tmp_path: Path) -> None:
    alone = dataclasses.replace(whole, golden=(), labels=(), sha256={FILE: whole.sha256[FILE]})
    for name in ("golden.u8", "images.u8"):
        (tmp_path / name).unlink()
        assert list(alone.pictures(tmp_path, name)) == []
    write_job(alone, tmp_path)
    assert read_job(tmp_path) == alone


def test_runners_that_time_inferences_alone_are_asked_for_nothing_that_they_do_not_know(tmp_path: Path) -> None:
    """The apps refuse a job with keys that they do not have."""
    content = json.loads(write_job(JOB.without_photo(), tmp_path).read_text())
    assert not {"loads", "resize"} & content.keys()
    assert content["sha256"].keys() == SHA256.keys() - {"photo.jpg"}
    assert json.loads(write_job(JOB, tmp_path).read_text())["resize"] == RESIZE


def test_a_job_of_what_is_no_number_is_not_written(whole: Job, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_job(dataclasses.replace(whole, golden=((math.nan,),)), tmp_path)
    assert not (tmp_path / "job.json").exists()

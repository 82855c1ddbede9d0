"""What every implementation of the apps' logic must agree on: `python -m tests.vectors.make` writes the files here.

Read by tests/test_vectors.py (the pipeline's own code), apps/web (TypeScript), apps/android (Kotlin) and apps/ios
(Swift). The numbers are those of the pipeline. Pictures are not stored: `picture` says how to make them, with whole
numbers only.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import augment
from pipeline.data.images import of_array
from pipeline.data.view import View
from targets import latency

HERE = Path(__file__).parent
SIZES = ((1, 1), (3, 2), (64, 64), (80, 64), (64, 80), (100, 75), (37, 200), (200, 37), (9, 400), (400, 9), (333, 251))
"""width, height"""


def picture(width: int, height: int) -> np.ndarray:
    """uint8 (H, W, 3) that no two programs make differently: a generator's upper bits over a slope."""
    state, values = 1 + width + 1000 * height, []
    for i in range(width * height * 3):
        state = (state * 1103515245 + 12345) % 2**31
        values.append(((state >> 16) % 128 + i // 3 % width * 127 // width) % 256)
    return np.array(values, np.uint8).reshape(height, width, 3)


def resize() -> list[dict[str, Any]]:
    """Pictures by the manifest's rule: the SHA-256 of RGB (size, size, 3), and its first pixels to look at."""
    cases = []
    for interpolation, crop_mode, size, share in (
        ("bicubic", "center", 32, 0.9),
        ("bilinear", "center", 24, 1.0),
        ("bicubic", "squash", 16, 1.0),
        ("bicubic", "center", 72, 0.95),
    ):
        view = View(
            size=size,
            crop_ratio=share,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            interpolation=interpolation,
            crop_mode=crop_mode,
        )
        fit = augment.eval_transform(view)
        for width, height in SIZES:
            made = np.ascontiguousarray(fit(of_array(picture(width, height))))
            cases.append(
                {
                    "width": width,
                    "height": height,
                    "rule": augment.resize_rule(view),
                    "sha256": hashlib.sha256(made.tobytes()).hexdigest(),
                    "first": made.ravel()[:12].tolist(),
                }
            )
    return cases


def statistics() -> list[dict[str, Any]]:
    """Samples in ns -> what targets.latency makes of them."""
    draw = np.random.default_rng(0)

    def noisy(count: int, spread: int) -> list[int]:
        return [5_000_000 + int(value) ** 3 for value in draw.integers(0, spread, count)]

    cases = []
    for samples, seconds, needed in (
        ([5_000_000], 0.0, 1),
        ([5_000_000], 0.0, 128),
        ([0, 1], 0.0, 1),
        ([-5, 1_000_000], 1.0, 2),
        ([3, 1, 2], 0.0, 3),
        ([1_000_000] * 8 + [9_000_000] * 2, 1.0, 10),
        (noisy(63, 90), 30.0, 1024),
        (noisy(64, 90), 30.0, 1024),
        (noisy(65, 200), 30.0, 128),
        (noisy(127, 200), 30.0, 128),
        (noisy(128, 200), 10.0, 128),
        (noisy(300, 500), 10.0, 128),
    ):
        found = latency.summarise(samples, seconds, needed)
        cases.append(
            {
                "samples_ns": samples,
                "seconds": seconds,
                "min_samples": needed,
                "p5_ms": found.p5_ms,
                "p50_ms": found.p50_ms,
                "p90_ms": found.p90_ms,
                "mean_ms": found.mean_ms,
                "p90_bound_ms": found.p90_bound_ms,
                "why_invalid": found.why_invalid,
            }
        )
    return cases


def answers() -> list[dict[str, Any]]:
    """Logits -> the likeliest classes, the first of equal ones first. null is what is no number."""
    cases = []
    for logits in (
        [1.0],
        [0.0, 0.0, 0.0],
        [1.0, 2.0, 2.0, -1.0, 2.0, 0.5],
        [-0.0, 0.0, -0.0],
        [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0],
        [-1e30, 1e30, 0.0],
        [3.0, None, 5.0],
        [None, None],
    ):
        row = np.array([np.nan if value is None else value for value in logits], np.float32)
        order = np.argsort(np.where(np.isnan(row), np.inf, -row), kind="stable")
        case: dict[str, Any] = {"logits": logits, "argmax": int(row.argmax()), "best": order[:5].tolist()}
        if not np.isnan(row).any():
            powers = [math.exp(value - float(row.max())) for value in row.tolist()]
            case["shares"] = [power / math.fsum(powers) for power in powers]
        cases.append(case)
    return cases


def differences() -> list[dict[str, Any]]:
    """Logits and what is expected of them -> largest difference (null: none), and top-1 by labels."""
    return [
        {"found": [[1.0, 2.0]], "expected": [[1.0, 2.5]], "error": 0.5, "labels": [1], "top1": 1.0},
        {
            "found": [[1.0, 2.0], [3.0, 0.0]],
            "expected": [[1.0, 2.0], [0.0, 0.0]],
            "error": 3.0,
            "labels": [0, 0],
            "top1": 0.5,
        },
        {"found": [[None, 2.0]], "expected": [[1.0, 2.0]], "error": None, "labels": [1], "top1": 0.0},
        {"found": [[1.0, 2.0]], "expected": [[1.0]], "error": None, "labels": [0], "top1": 0.0},
        {"found": [[1.0, 1.0]], "expected": [[1.0, 1.0], [1.0, 1.0]], "error": None, "labels": [0], "top1": 1.0},
    ]


FILE = {
    "file": "model.tflite",
    "format": "tflite",
    "precision": "fp32",
    "role": "pruned",
    "size_bytes": 3,
    "sha256": "a" * 64,
    "layout": "NHWC",
    "dtype": "float32",
    "minimum_runtime": None,
    "measured": None,
}
RULE = {"shorter_side": 2, "longer_side": "rounded", "interpolation": "bicubic", "centre_crop": 2}
INPUT = {"height": 2, "width": 2, "color": "RGB", "range": [0.0, 255.0], "resize": RULE}
PICTURE = {"file": "golden/0.png", "sha256": "b" * 64, "model": [1, 2.5], "artifacts": {"model.tflite": [1.0, 2.5]}}
MANIFEST = {
    "manifest_version": 2,
    "model": "deit",
    "dataset": "digits",
    "target": "android",
    "labels": ["zero", "one"],
    "input": INPUT,
    "files": [FILE],
    "golden": [PICTURE],
    "golden_share": {"model.tflite": 0.001},
    "params": 5,
    "params_dense": 10,
    "tools": {"torch": "2"},
}


WEB_TAKES = ("version 2.0", "a key twice", "params is a float", "height is a float")
"""what JSON.parse of a browser cannot tell from something sound"""


def manifests() -> list[dict[str, Any]]:
    """Texts of manifest.json, and whether they are taken; "web" if the web app takes one all the same."""
    good, bad = [], []

    def text(**changes: Any) -> str:
        return json.dumps({key: value for key, value in {**MANIFEST, **changes}.items() if value is not ...})

    def file(**changes: Any) -> str:
        return text(files=[{key: value for key, value in {**FILE, **changes}.items() if value is not ...}])

    def given(**changes: Any) -> str:
        return text(input={**INPUT, **changes})

    def golden(**changes: Any) -> str:
        return text(golden=[{**PICTURE, **changes}])

    good += [
        ("complete", text()),
        ("least", text(golden=..., golden_share=..., params=..., params_dense=..., tools=...)),
    ]
    good += [("nulls", text(golden_share=None, params=None, params_dense=None, tools=None))]
    good += [("whole numbers for floats", given(range=[0, 255])), ("other letters", text(labels=["Ж", "𝄞"]))]
    good += [("escapes", text().replace("zero", "z\\u0065ro\\n")), ("spaces", " \n" + text() + "\t")]
    good += [("without minimum_runtime and measured", file(minimum_runtime=..., measured=...))]
    good += [("measured", file(measured={"top1": 90.1, "verdict": "pass", "checks": [], "anything": [1, {"x": None}]}))]
    good += [("a file in a folder", file(file="a/b.tflite").replace('"model.tflite": ', '"a/b.tflite": '))]
    bad += [("empty", ""), ("cut off", text()[:-1]), ("a list", "[]"), ("null", "null"), ("two values", text() + "{}")]
    bad += [("NaN", text(golden_share={"model.tflite": float("nan")})), ("infinity", golden(model=[1, float("inf")]))]
    bad += [("a number too large", text().replace('"params": 5', '"params": 99999999999999999999'))]
    bad += [("a float too large", text().replace("2.5]", "1e999]"))]
    bad += [("a key twice", text().replace('"params": 5', '"params": 5, "params": 5'))]
    bad += [("a byte order mark", "\ufeff" + text()), ("a comma too many", text()[:-1] + ",}")]
    bad += [("a control character", text().replace("zero", "ze\x01ro"))]
    bad += [("nested deeply", file(measured={"x": 0}).replace('"x": 0', '"x": ' + "[" * 200 + "]" * 200))]
    bad += [("version 1", text(manifest_version=1)), ("version text", text(manifest_version="2"))]
    bad += [("version true", text(manifest_version=True)), ("version 2.0", text(manifest_version=2.0))]
    bad += [("without a version", text(manifest_version=...)), ("an unknown key", text(more=1))]
    bad += [
        (f"without {key}", text(**{key: ...})) for key in ("model", "dataset", "target", "labels", "input", "files")
    ]
    bad += [
        (f"{key} is a number", text(**{key: 1})) for key in ("model", "labels", "input", "files", "golden", "tools")
    ]
    bad += [
        ("no labels", text(labels=[])),
        ("no files", text(files=[])),
        ("a label that is null", text(labels=["a", None])),
    ]
    bad += [("params is a float", text(params=5.0)), ("params is true", text(params=True))]
    bad += [
        ("height 0", given(height=0)),
        ("height is a float", given(height=2.0)),
        ("an unknown key of input", given(a=1)),
    ]
    bad += [("range falls", given(range=[255, 0])), ("range of three", given(range=[0, 1, 2]))]
    bad += [("resize is text", given(resize="bicubic"))]
    bad += [(f"a file without {key}", file(**{key: ...})) for key in ("file", "format", "role", "sha256", "size_bytes")]
    bad += [("an unknown role", file(role="small")), ("role in capitals", file(role="PRUNED"))]
    bad += [("a negative size", file(size_bytes=-1)), ("a size as text", file(size_bytes="3"))]
    bad += [("an unknown key of a file", file(url="x")), ("measured is a list", file(measured=[]))]
    sums = {"short": "a" * 63, "long": "a" * 65, "in capitals": "A" * 64, "with a line": "a" * 64 + "\n"}
    bad += [(f"sha256 {name}", file(sha256=value)) for name, value in sums.items()]
    for path in ("", ".", "..", "/etc/passwd", "../x", "a/../x", "a//b", "./a", "a/", "a\\b", "a\nb", "Manifest.json"):
        bad.append((f"file {path!r}", file(file=path).replace('"model.tflite": ', json.dumps(path) + ": ")))
    bad += [("a file twice", text(files=[FILE, {**FILE, "role": "dense"}]))]
    bad += [("a golden picture that is the model", golden(file="model.tflite"))]
    bad += [("golden logits too few", golden(model=[1.0])), ("golden logits as text", golden(model=["1", "2"]))]
    bad += [("an artifact's golden logits too many", golden(artifacts={"model.tflite": [1.0, 2.0, 3.0]}))]
    bad += [("golden logits of another file", golden(artifacts={"other.tflite": [1.0, 2.0]}))]
    return [{"name": name, "text": content, "good": True} for name, content in good] + [
        {"name": name, "text": content, "good": False, **({"web": True} if name in WEB_TAKES else {})}
        for name, content in bad
    ]


def results() -> list[dict[str, Any]]:
    """A job, what a device has found of it, and the result.json that it writes of that."""
    job = {
        "version": 1, "id": "0123", "format": "tflite", "files": ["model.tflite", "dense.tflite"],
        "sha256": {"model.tflite": "a" * 64, "dense.tflite": "b" * 64, "golden.u8": "c" * 64, "images.u8": "d" * 64},
        "threads": 2, "height": 2, "width": 2, "classes": 2, "golden": [[1.0, 2.5]], "labels": [1, 0],
        "protocol": {"name": "brief", "seconds": 0.5, "min_samples": 3, "warmup": 0, "cooldown_s": 0.0}, "memory": True,
    }  # fmt: skip
    device = {"device": "Pixel", "os": "Android 15", "cpu": None, "cores": 8, "arch": "arm64-v8a", "emulated": None}
    state = {"governor": None, "temperature_c": 31.5, "throttled": None, "battery": "80 % idle", "battery_saver": False}
    common = {"version": 1, "job": "0123", "file": "model.tflite", "sha256": "a" * 64, "device": device, "threads": 2}
    samples = [1_000_000, 2_000_000, 3_500_000]
    time = latency.summarise(samples, 0.5, 3)
    timed = {
        **{name: getattr(time, name) for name in ("p5_ms", "p50_ms", "p90_ms", "mean_ms", "p90_bound_ms")},
        "samples": 3,
        "seconds": 0.5,
        "valid": True,
        "why_invalid": None,
        "samples_ms": [1.0, 2.0, 3.5],
    }
    measured = {
        **common,
        "runtime": "TFLite",
        "runtime_version": "2.14.0",
        "refused": None,
        "before": state,
        "after": state,
        "golden": [[1.0, 2.25]],
        "golden_error": 0.25,
        "logits": [[0.5, 1.5], [None, 0.0]],
        "top1": 0.5,
        "latency": {"model.tflite": timed},
        "peak_mb": 12.5,
        "unmeasured": {"dense.tflite": "it does not load"},
    }
    hot = "the phone was too hot (thermal status severe) and slows down"
    refused = {
        **common,
        "runtime": "",
        "runtime_version": "",
        "refused": 'it is no model: "é"\n',
        **{name: {} for name in ("before", "after", "latency", "unmeasured")},
        **{name: [] for name in ("golden", "logits")},
        **dict.fromkeys(("golden_error", "top1", "peak_mb")),
    }
    invalid = {**measured, "latency": {"model.tflite": {**timed, "valid": False, "why_invalid": hot}}}
    return [
        {"name": "measured", "job": job, "samples_ns": samples, "result": measured},
        {"name": "too hot", "job": job, "samples_ns": samples, "result": invalid},
        {"name": "refused", "job": job, "samples_ns": [], "result": refused},
    ]


FILES = {
    "resize.json": resize, "statistics.json": statistics, "answers.json": answers, "differences.json": differences,
    "manifests.json": manifests, "results.json": results,
}  # fmt: skip


def content(name: str) -> str:
    """What a file holds: a line a case."""
    return "[\n" + ",\n".join(json.dumps(case) for case in FILES[name]()) + "\n]\n"


if __name__ == "__main__":
    for name in FILES:
        (HERE / name).write_text(content(name))

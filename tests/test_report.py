"""The report: complete, self-contained, the same every time, and honest about what was not measured."""

import copy
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.report import evidence, figures, mistakes
from pipeline.report.evidence import Evidence
from pipeline.report.mistakes import Judged
from pipeline.report.report import (
    CHECKS,
    asked_latency,
    compare_artifacts,
    describe_check,
    overall_verdict,
    show,
    summary_table,
    write_report,
)
from targets.budget import LIMITS

LAYERS = 2
NAMES = [f"{kind} {layer}" for layer in range(LAYERS) for kind in ("attn", "mlp")]
FIGURES = {
    "training_curves",
    "keep_ratio_per_block",
    "architecture",
    "keep_ratio_over_training",
    "bpi_over_training",
    "latency_distribution",
}


def block(name: str, keep: float, **changes: Any) -> dict[str, Any]:
    width = 32 if name.startswith("attn") else 384
    benefit = {"bpi_class": 0.1 * keep, "bpi_patch": -0.01}
    return {"name": name, **benefit, "keep_ratio": keep, "width": round(width * keep), **changes}


def make_log(updates: int = 3) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for stage, steps in (("dense", 6), ("prune", 6), ("finetune", 4)):
        for step in range(1, steps + 1):
            line: dict[str, Any] = {"stage": stage, "step": step, "epoch": step / 2, "loss": 2 / step, "lr": 1e-3}
            if step % 2 == 0:
                line["top1"] = 50.0 + 5 * step
            if stage == "prune" and step <= updates:
                blocks = [block(name, 1 - 0.1 * step) for name in NAMES]
                line |= {"progress": step / updates, "temperature": 0.1, "sparsity": 0.1 * step, "blocks": blocks}
            lines.append(line)
    return lines


def make_artifact(role: str = "pruned", **changes: Any) -> dict[str, Any]:
    p50 = 3.31 if role == "dense" else 1.38
    return {
        "target": "host",
        "format": "tflite",
        "precision": "fp32",
        "role": role,
        "file": f"artifacts/host/{role}.tflite",
        "size_bytes": 5_560_000 if role == "dense" else 1_584_000,
        "sha256": "ab" * 32,
        "parity": {"psnr_db": 120.0, "max_abs": 2e-6, "top1_agreement": 1.0},
        "top1": 98.6 if role == "dense" else 97.2,
        "latency_ms": {"p50": p50, "p90": 1.1 * p50, "mean": p50, "samples": 9, "seconds": 1.0, "valid": True},
        "latency_dense_ms": None if role == "dense" else {"p50": 3.31, "p90": 3.64, "valid": True},
        "peak_mb": 4.5,
        "load_ms": {"cold": 31.4, "warm": 9.81, "samples": 3, "from_storage": True},
        "end_to_end_ms": {
            "p50": 7.65,
            "valid": True,
            "decode": 4.32,
            "resize": 1.95,
            "inference": 1.41,
            "photo": {"width": 640, "height": 427, "bytes": 196_653},
        },
        "unmeasured": {},
        "runtime": "LiteRT 2.3.0",
        "reason": None,
        "shipped": role == "pruned",
        "device": {
            "device": "local",
            "os": "Linux",
            "cpu": "a CPU",
            "cores": 2,
            "arch": "x86_64",
            "emulated": None,
        },
        "conditions": {"before": {"governor": None, "temperature_c": 41.5}, "after": {"temperature_c": 63.0}},
        "threads": 2,
        "protocol": "quick",
        "budget": {"latency_p50_ms_max": 2.0},
        "verdict": "pass",
        "checks": [{"name": "latency_p50_ms_max", "limit": 2.0, "value": p50, "verdict": "pass"}],
        **changes,
    }


def make_report(**changes: Any) -> dict[str, Any]:
    return {
        "model": "deit_micro_patch8_64",
        "dataset": "digits",
        "method": "dap",
        "seed": 0,
        "sparsity_target": 0.75,
        "sparsity": 0.7501,
        "latency_ms_target": None,
        "latency_ms_predicted": None,
        "latency_profile": None,
        "params_dense": 1_372_000,
        "params": 343_000,
        "macs_dense": 91_000_000,
        "macs": 24_100_000,
        "top1_dense": 98.6,
        "top1_masked": 95.8,
        "top1_compact": 95.8,
        "top1": 97.2,
        "top1_dense_val": 98.6,
        "top1_val": 97.2,
        "seconds_per_stage": {"prune": 121.0, "export": 3.0},
        "skipped_images": [],
        "data": {},
        "top1_split": "val",
        "images_test": None,
        "blocks": [{**block(name, 0.3), "width_dense": 32 if "attn" in name else 384} for name in NAMES],
        "artifacts": [make_artifact("dense"), make_artifact()],
        "run": "first",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.14.1"},
        "next": "make deploy TARGET=raspberry-pi",
        **changes,
    }


SAMPLES = {"dense": [3.0 + 0.01 * i for i in range(50)], "pruned": [1.3 + 0.01 * i for i in range(50)]}


def printed(report: dict[str, Any]) -> str:
    file = io.StringIO()
    Console(width=140, file=file).print(summary_table(report))
    return file.getvalue()


class Page(HTMLParser):
    """Every tag closed in order, all ids, all text outside figures."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "svg"} & set(self.open):
            self.text += data


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


CONFIG = json.dumps({"pruning": {"gamma": 0.2}, "model_path": None})


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    (folder / "config.json").write_text(CONFIG)
    assert write_report(folder, make_report(), make_log(), SAMPLES) == folder / "report.html"
    return folder


def test_a_full_report_is_complete_and_self_contained(full: Path) -> None:
    path = full / "report.html"
    assert json.loads((full / "report.json").read_text()) == make_report()
    assert {file.stem for file in (full / "figures").iterdir()} == FIGURES
    html, page = path.read_text(encoding="utf-8"), page_of(path)
    assert page.tags.count("svg") == page.tags.count("figure") == page.tags.count("figcaption") == len(FIGURES)
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags
    assert not re.search(r"""(src|href|url\()=?["']?(https?:)?//""", html)
    text = " ".join(page.text.split())
    for shown in ("97.2 %", "98.6 %", "−1.4 points", "343 k", "1.58 MB", "1.38 ms", "−58 %", "✓ met", "2 min 1 s"):
        assert shown in text, shown
    for shown in ("31.4 ms from storage, 3 ×", "9.81 ms", "7.65 ms 640 × 427", "4.32 ms 1.95 ms 1.41 ms"):
        assert shown in text.split("From the file to the answer")[1], shown
    assert "pruning.gamma" in text
    assert not list(full.rglob("*.tmp"))


def test_what_a_device_does_not_tell_of_loading_and_photographs_is_not_measured(tmp_path: Path) -> None:
    why = "photographs need Pillow: pip install pillow"
    artifact = make_artifact(load_ms=None, end_to_end_ms=None, unmeasured={"end to end": why})
    text = " ".join(page_of(write_report(tmp_path, make_report(artifacts=[artifact]), [], {})).text.split())
    part = text.split("From the file to the answer")[1].split("Artifacts")[0]
    assert f"host, tflite fp32 1.38 ms{' not measured' * 6} host, tflite fp32, end to end: {why}" in part
    noisy = {**make_artifact()["end_to_end_ms"], "valid": False}
    cached = {**make_artifact()["load_ms"], "from_storage": False}
    report = make_report(artifacts=[make_artifact(load_ms=cached, end_to_end_ms=noisy)])
    text = " ".join(page_of(write_report(tmp_path, report, [], {})).text.split())
    assert "file in memory, 3 ×" in text
    assert "7.65 ms noisy 640 × 427" in text


def test_the_same_run_gives_the_same_bytes(full: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIG)
    write_report(tmp_path, make_report(), make_log(), SAMPLES)
    for path in sorted(full.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(full)).read_bytes(), path.name


def test_what_users_name_is_escaped(tmp_path: Path) -> None:
    nasty = "<script>alert('$x_{')</script>[bold]&"
    report = make_report(dataset=nasty, run=nasty, versions={nasty: nasty}, next=nasty)
    report["artifacts"][1]["file"] = report["artifacts"][1]["target"] = nasty
    path = write_report(tmp_path, report, [], {f"dense {nasty}": [1.0, 2.0], nasty: [1.0, 1.5]})
    page = page_of(path)
    assert "script" not in page.tags
    assert nasty in page.text
    assert nasty in printed(report)


def test_nan_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path, make_report(top1=float("nan")), make_log(), SAMPLES)
    assert not list(tmp_path.iterdir())


def test_nothing_measured_reads_as_not_measured(tmp_path: Path) -> None:
    measured = ("sparsity", "macs", "macs_dense", "top1_dense", "top1_masked", "top1_compact", "top1", "next")
    check = {
        "name": "latency_p50_ms_max",
        "limit": 2.0,
        "value": None,
        "verdict": "not_measured",
        "reason": "too noisy",
    }
    nothing = dict.fromkeys(
        ("parity", "top1", "latency_ms", "latency_dense_ms", "device", "threads", "budget", "conditions")
    )
    artifact = make_artifact(**nothing, verdict="not_measured", checks=[check])
    report = make_report(**dict.fromkeys(measured), artifacts=[artifact], seconds_per_stage={"prune": None})
    text = " ".join(page_of(write_report(tmp_path, report, [], {})).text.split())
    table = printed(report)
    for shown in (text, table):
        assert "– not measured" in shown
        assert "met" not in re.findall(r"\w+", shown)
        assert not re.search(r"(?<![\d.])0(\.0+)? ?(%|ms|MB|M|dB|s)(\W|$)", shown)
    assert "too noisy" in text
    assert text.count("left out: ") == 4
    assert "nan" not in text.lower()


def test_a_missed_budget_says_so_in_words(tmp_path: Path) -> None:
    check = {"name": "top1_drop_max_points", "limit": 1.0, "value": 1.4, "verdict": "fail"}
    report = make_report(artifacts=[make_artifact(verdict="fail", checks=[check])])
    text = " ".join(page_of(write_report(tmp_path, report, [], {})).text.split())
    for shown in (text, printed(report)):
        assert "✗ missed" in shown
        assert "top-1 lost" in shown
        assert "1.40 points" in shown
        assert "budget missed" in shown.lower()


def test_a_run_without_artifacts_or_blocks_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "architecture.svg").write_text("of an earlier run")
    page = page_of(write_report(tmp_path, make_report(artifacts=[], blocks=[]), make_log(updates=0), {}))
    assert page.tags.count("figure") == 1
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"training_curves"}
    assert "No artifact yet" in page.text


verdicts = st.sampled_from(["pass", "fail", "not_measured"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["pruned", "dense"]), verdicts), max_size=5))
def test_the_overall_verdict_is_the_worst_of_the_pruned_artifacts(artifacts: list[tuple[str, str]]) -> None:
    report = {
        "artifacts": [
            {"role": role, "verdict": verdict, "target": "host", "format": str(number), "shipped": False}
            for number, (role, verdict) in enumerate(artifacts)
        ]
    }
    pruned = [verdict for role, verdict in artifacts if role == "pruned"]
    got = overall_verdict(report)
    assert (got == "fail") == ("fail" in pruned)
    assert (got == "pass") == (bool(pruned) and all(verdict == "pass" for verdict in pruned))


def test_a_noisy_latency_and_another_precision_are_marked() -> None:
    artifact = make_artifact(precision="int8")
    artifact["latency_ms"]["valid"] = False
    rows = {row.name: row for row in compare_artifacts(make_report(), artifact)}
    assert rows["latency p50"].pruned == "1.38 ms (noisy)"
    assert rows["latency p50"].dense == "3.31 ms (fp32)"
    assert rows["size"].change == "−72 %"


def test_what_is_shipped_speaks_for_its_format_or_else_the_last_one_tried() -> None:
    tried = [make_artifact(precision="int8", verdict="fail", shipped=False), make_artifact(precision="fp16"),
             make_artifact(precision="fp32", verdict="not_measured", shipped=False, checks=[])]  # fmt: skip
    assert overall_verdict(make_report(artifacts=tried)) == "pass"
    shown = printed(make_report(artifacts=tried))
    assert "tflite fp16" in shown
    assert "int8" not in shown
    tried[1] = make_artifact(precision="fp16", verdict="fail", shipped=False)
    assert overall_verdict(make_report(artifacts=tried[:2])) == "fail"


def test_a_verdict_is_that_of_its_target() -> None:
    both = make_report(artifacts=[make_artifact(), make_artifact(target="ios", verdict="fail")])
    assert [overall_verdict(both, target) for target in ("host", "ios", "web", None)] == [
        "pass", "fail", "not_measured", "fail"]  # fmt: skip
    console = Console(width=200)
    with console.capture() as capture:
        console.print(summary_table(both, "host"))
    assert "host, tflite" in capture.get()
    assert "ios" not in capture.get()


def test_every_candidate_is_in_the_page_with_the_reason_why_it_is_not_shipped(tmp_path: Path) -> None:
    waits = make_artifact(precision="fp32", verdict="not_measured", shipped=False, checks=[], reason="not tried: small")
    failed = make_artifact(precision="int8", verdict="fail", shipped=False)
    report = make_report(artifacts=[make_artifact("dense"), failed, make_artifact(precision="fp16"), waits])
    text = " ".join(page_of(write_report(tmp_path, report, [], {})).text.split())
    for shown in ("tflite int8", "tflite fp16", "tflite fp32", "✓ shipped", "✗ budget missed", "not tried: small"):
        assert shown in text


def test_an_artifact_is_not_compared_across_targets() -> None:
    rows = compare_artifacts(make_report(), make_artifact(target="android", latency_dense_ms=None))
    assert {row.dense for row in rows} == {"not measured"}
    assert {row.change for row in rows} == {""}


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "ms", "not measured"),
        (0, "ms", "0 ms"),
        (1.384, "ms", "1.38 ms"),
        (18.44, "ms", "18.4 ms"),
        (1234.5, "ms", "1,234 ms"),
        (999_999, "", "1 M"),
        (5_717_416, "", "5.72 M"),
        (1_253_500_000, "", "1.25 G"),
        (512, "B", "512 B"),
        (1_584_000, "B", "1.58 MB"),
        (97.23, "%", "97.2 %"),
        (0.61, "s", "0.6 s"),
        (59.97, "s", "60.0 s"),
        (192.4, "s", "3 min 12 s"),
        (7_530, "s", "2 h 5 min"),
        ("fp16", "", "fp16"),
    ],
)
def test_values_are_shown_in_their_unit(value: Any, unit: str, shown: str) -> None:
    assert show(value, unit) == shown


def test_checks_are_described_in_words() -> None:
    def described(name: str, limit: float, value: float | None) -> tuple[str, str, str]:
        return describe_check({"name": name, "limit": limit, "value": value})

    assert described("latency_p50_ms_max", 50.0, None) == ("latency p50", "≤ 50 ms", "not measured")
    assert described("size_mb_max", 2.0, 0.52) == ("size", "≤ 2 MB", "520 kB")
    assert described("top1_agreement_min", 0.99, 1.0) == ("same top-1 as the model", "≥ 99.0 %", "100.0 %")
    assert described("of_tomorrow_max", 3.0, 2.5) == ("of tomorrow max", "≤ 3", "2.50")


def test_every_limit_that_a_budget_can_state_has_words() -> None:
    assert CHECKS.keys() == {"golden", "golden_on_device", "latency_asked_ms_max", *LIMITS}


WIDTHS = [32, 384] * LAYERS
DRAWINGS = {
    "training_curves": lambda log: figures.training_curves(log, 98.6),
    "bpi_over_training": figures.bpi_over_training,
    "keep_ratio_over_training": figures.keep_ratio_over_training,
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_figures_of_a_log_cope_with_little(name: str) -> None:
    with pytest.raises(figures.MissingDataError, match="the log holds no"):
        DRAWINGS[name]([])
    one = make_log(updates=1)
    ET.fromstring(figures.to_svg(DRAWINGS[name](one), name))
    without_top1 = [{key: value for key, value in line.items() if key != "top1"} for line in one]
    ET.fromstring(figures.to_svg(DRAWINGS[name](without_top1), name))


def test_training_curves_of_each_stage_alone() -> None:
    for stage in ("dense", "prune", "finetune"):
        figures.training_curves([line for line in make_log() if line["stage"] == stage], None)


def test_missing_benefit_leaves_gaps_and_none_at_all_leaves_the_figure_out() -> None:
    log = copy.deepcopy(make_log())
    for line in log:
        for entry in line.get("blocks", []):
            entry["bpi_class"] = None
    figures.bpi_over_training(log)
    for line in log:
        for entry in line.get("blocks", []):
            entry["bpi_patch"] = None
    with pytest.raises(figures.MissingDataError, match="no block benefit"):
        figures.bpi_over_training(log)


def test_architecture_of_a_deep_model_with_a_block_gone() -> None:
    names = [f"{kind} {layer}" for layer in range(24) for kind in ("attn", "mlp")]
    blocks = [block(name, 0.0 if name == "mlp 23" else 0.5) for name in names]
    svg = figures.to_svg(figures.architecture(blocks, [32, 384] * 24), "architecture")
    assert ">0<" in svg
    assert ">192<" in svg
    assert ">23<" in svg


def test_svgs_carry_neither_date_nor_font_outlines_nor_addresses_to_fetch() -> None:
    svg = figures.to_svg(figures.architecture([block(name, 0.5) for name in NAMES], WIDTHS), "architecture")
    assert "metadata" not in svg
    assert "Width of every block" in svg
    assert set(re.findall(r"https?://[^\"<> ]+", svg)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def asked(**changes: Any) -> dict[str, Any]:
    """A report of a run with LATENCY_MS."""
    profile = {"target": "host", "format": "tflite", "precision": "int8-dynamic"}
    budget = {"latency_ms_target": 1.4, "latency_ms_predicted": 1.392, "latency_profile": profile}
    return make_report(sparsity_target=None, **{**budget, **changes})


def test_what_was_asked_predicted_and_measured_stand_together(tmp_path: Path) -> None:
    report = asked(artifacts=[make_artifact("dense"), make_artifact(), make_artifact(format="executorch")])
    rows = [
        ("latency asked", "1.40 ms"),
        ("latency predicted, host, tflite int8-dynamic", "1.39 ms"),
        ("latency p50, host, tflite fp32", "1.38 ms"),
    ]
    assert asked_latency(report) == rows
    write_report(tmp_path, report, make_log(), {})
    page = (tmp_path / "report.html").read_text()
    assert "Latency asked: 1.40 ms, latency predicted, host, tflite int8-dynamic: 1.39 ms," in page
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(summary_table(report))
    text = console.export_text()
    for name, value in rows:
        assert any(name in line and value in line for line in text.splitlines()), name


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({}, ("latency predicted, host, tflite int8-dynamic", "1.39 ms")),
        ({"artifacts": [make_artifact(latency_ms=None)]}, ("latency p50, host, tflite fp32", "not measured")),
        ({"latency_ms_predicted": None, "latency_profile": None}, ("latency asked", "1.40 ms")),
    ],
)
def test_a_latency_that_is_not_known_yet_is_not_made_up(changes: dict[str, Any], last: tuple[str, str]) -> None:
    assert asked_latency(asked(**{"artifacts": [], **changes}))[-1] == last


def test_a_run_without_a_latency_says_nothing_of_one(tmp_path: Path) -> None:
    assert asked_latency(make_report()) == []
    write_report(tmp_path, make_report(), make_log(), {})
    assert "latency asked" not in (tmp_path / "report.html").read_text().lower()


def test_the_check_of_what_was_asked_has_a_name() -> None:
    check = {"name": "latency_asked_ms_max", "limit": 1.54, "value": 1.38}
    assert describe_check(check) == ("latency p50, LATENCY_MS + 10 %", "≤ 1.54 ms", "1.38 ms")


CLASSES = ("cat", "dog", "<script>$x_{</script>")
LABELS = [0, 0, 0, 1, 1, 2]
SAID_DENSE = [0, 0, 1, 1, 1, 2]
SAID_SMALL = [0, 1, 0, 1, 2, 0]
SURE = [0.5, 0.6, 0.5, 0.5, 0.9, 0.7]


def made(said: list[int], /, **changes: Any) -> Evidence:
    """What a model made of six images, with pictures of those in `rows`."""
    rows = np.array(changes.pop("rows", []), np.int64)
    return Evidence(
        **{
            "labels": np.array(LABELS),
            "predicted": np.array(said),
            "confidence": np.array(SURE, np.float32),
            "rows": rows,
            "pictures": np.full((len(rows), 8, 8, 3), 200, np.uint8),
            "names": tuple(f"val/<b>/{row}.jpg" for row in rows),
            **changes,
        }
    )


def judged(classes: tuple[str, ...] = CLASSES, **changes: Any) -> Judged:
    small = made(SAID_SMALL, rows=[1, 2, 4, 5])
    return Judged(**{"split": "val", "classes": classes, "dense": made(SAID_DENSE), "small": small, **changes})


def test_what_pruning_broke_and_mended_is_counted_and_the_worst_come_first() -> None:
    dense, small = made(SAID_DENSE), made(SAID_SMALL)
    assert mistakes.worst(small).tolist() == [4, 5, 1]
    assert mistakes.broken(dense, small).tolist() == [4, 5, 1]
    assert mistakes.mended(dense, small).tolist() == [2]
    assert mistakes.to_show(small, dense).tolist() == [1, 2, 4, 5]
    assert mistakes.to_show(made(LABELS)).tolist() == []
    assert mistakes.confusion(small, 3).tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]
    found = mistakes.summary(judged())
    assert found is not None
    assert (found["images"], found["broken"], found["mended"], found["split"]) == (6, 3, 1, "val")
    assert found["classes"][0] == {"name": "cat", "images": 3, "top1_dense": pytest.approx(200 / 3),
                                   "top1": pytest.approx(200 / 3)}  # fmt: skip
    assert found["confused"][0] == {"true": "cat", "predicted": "dog", "images": 1}
    assert len(found["confused"]) == 3
    json.dumps(found, allow_nan=False)


def test_what_was_not_measured_is_null() -> None:
    alone = mistakes.summary(judged(small=None, classes=(*CLASSES, "of no image")))
    assert alone is not None
    assert (
        alone["broken"] is alone["mended"] is alone["classes"][0]["top1"] is alone["classes"][3]["top1_dense"] is None
    )
    assert mistakes.summary(None) is None
    assert set(mistakes.galleries(judged(small=None, dense=made(SAID_DENSE, rows=[2])))) == {"worst"}
    unsure = made(SAID_SMALL, rows=[4], confidence=np.full(6, np.nan, np.float32))
    assert mistakes.galleries(judged(small=unsure))["worst"][0].confidence is None


def test_the_page_shows_mistakes_with_their_pictures_and_stays_self_contained(tmp_path: Path) -> None:
    report = make_report(balanced_accuracy=91.2, balanced_accuracy_dense=95.1, epoch_dense=7, epoch_finetune=3)
    path = write_report(tmp_path, report, make_log(), SAMPLES, judged())
    html, page = path.read_text(encoding="utf-8"), page_of(path)
    assert {"confusion_matrix", "top1_per_class"} <= {file.stem for file in (tmp_path / "figures").iterdir()}
    assert "script" not in page.tags
    assert "b" in page.tags and "<b>/" not in html
    assert page.tags.count("img") == 3 + 3 + 1
    assert html.count("data:image/jpeg;base64,") == 7
    assert not re.search(r"""(src|href|url\()=?["']?(https?:)?//""", html)
    text = " ".join(page.text.split())
    kept = "epoch 7 of the dense reference and epoch 3 of fine-tuning"
    told = ("Pruning broke 3", "mended 1", "taken for cat, 70 %", "The worst mistakes", "What pruning mended")
    for shown in (*told, CLASSES[2], "91.2 %", "95.1 %", kept):
        assert shown in text, shown
    again = write_report(tmp_path / "again", report, make_log(), SAMPLES, judged())
    assert again.read_bytes() == path.read_bytes()


def test_without_predictions_the_page_has_no_part_on_mistakes(full: Path) -> None:
    assert "What it gets wrong" not in (full / "report.html").read_text()


def test_many_classes_have_tables_in_place_of_a_matrix(tmp_path: Path) -> None:
    count = figures.NAMED_CLASSES + 20
    labels = np.repeat(np.arange(count), 3)
    wrong = np.where(np.arange(len(labels)) % 3 == 0, (labels + 1) % count, labels)
    sure = np.ones(len(labels), np.float32)
    dense = Evidence(labels=labels, predicted=labels, confidence=sure)
    small = Evidence(labels=labels, predicted=wrong, confidence=sure)
    names = tuple(f"species {number}" for number in range(count))
    path = write_report(tmp_path, make_report(), [], {}, judged(classes=names, dense=dense, small=small))
    text = " ".join(page_of(path).text.split())
    assert "60 classes are too many for one; the pairs that are confused most are listed" in text
    assert "species 0species 11" in text  # true, predicted, images
    assert "species 03100.0 %66.7 %" in text  # images, dense, pruned
    assert text.count("taken for") == 1  # the table's heading: no pictures were kept
    found = mistakes.summary(judged(classes=names, dense=dense, small=small))
    assert found is not None and len(found["confused"]) == mistakes.PAIRS


def test_names_that_are_no_text_do_not_break_a_figure() -> None:
    names = ("a$b$c", "\x07bell", "very " * 20, "\u732b")
    svg = figures.to_svg(figures.confusion_matrix(np.eye(4, dtype=int), names), "x")
    ET.fromstring(svg)
    assert "a$b$c" in svg and "\x07" not in svg
    ET.fromstring(figures.to_svg(figures.top1_per_class(names, [90.0, None, 0.0, 100.0], [80.0, 1.0, 0.0, 100.0]), "x"))
    with pytest.raises(figures.MissingDataError, match="only one of the two models"):
        figures.top1_per_class(names, [None] * 4, [1.0] * 4)


def test_evidence_is_what_was_written_in_the_same_bytes(tmp_path: Path) -> None:
    path = evidence.path_of(tmp_path, "val", "small")
    evidence.write(path, made(SAID_SMALL, rows=[1, 4]))
    found, first = evidence.read(path, 3), path.read_bytes()
    assert found.predicted.tolist() == SAID_SMALL
    assert (found.rows.tolist(), found.pictures.shape, found.names[0]) == ([1, 4], (2, 8, 8, 3), "val/<b>/1.jpg")
    evidence.write(path, found)
    assert path.read_bytes() == first
    evidence.write(path, made(LABELS))
    assert len(evidence.read(path, 3).rows) == 0
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "changes",
    [
        {"predicted": np.array([3] * 6)},
        {"predicted": np.array([-1] * 6)},
        {"predicted": np.array([0] * 5)},
        {"labels": np.array(LABELS, float)},
        {"labels": np.zeros(0, np.int64)},
        {"confidence": np.array(["a"] * 6, dtype=object)},
        {"rows": [6]},
        {"pictures": np.zeros((1, 8, 8, 4), np.uint8), "rows": [1]},
        {"names": (), "rows": [1]},
    ],
)
def test_evidence_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "val-small.npz"
    evidence.write(path, made(SAID_SMALL, **changes))
    with pytest.raises(ValueError, match=r"val-small\.npz is damaged .* have it made anew"):
        evidence.read(path, 3)


def test_damaged_evidence_and_that_of_other_images_is_named(tmp_path: Path) -> None:
    dense, small = (evidence.path_of(tmp_path, "val", model) for model in evidence.MODELS)
    evidence.write(dense, made(SAID_DENSE))
    evidence.write(small, made(SAID_SMALL, labels=np.array(LABELS[::-1])))
    with pytest.raises(ValueError, match="were evaluated on different images"):
        mistakes.read(tmp_path, "val", CLASSES, evidence.MODELS)
    assert mistakes.read(tmp_path, "val", CLASSES, []) is None
    for damage in (b"", dense.read_bytes()[:100]):
        dense.write_bytes(damage)
        with pytest.raises(ValueError, match=r"val-dense\.npz is damaged"):
            mistakes.read(tmp_path, "val", CLASSES, ["dense"])

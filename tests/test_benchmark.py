"""`make bench`: one table of everything; what fails stands in it, what was not measured has no number."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import BRIEF, at_ease, context_of
from rich.console import Console
from test_deploying import missing, replaced

from pipeline import benchmark
from pipeline.errors import EnvironmentLacks
from targets import TARGETS, Target, manifest
from targets.artifact import Program, sha256_of
from targets.devices.job import DeviceError
from targets.formats import FORMATS

pytestmark = pytest.mark.slow

HOST = dataclasses.replace(TARGETS["host"], formats=("tflite",))
PRECISIONS = ("int8-weights", "fp32")
MEASURED = {
    *("size_bytes", "top1", "parity_db", "top1_agreement", "p50_ms", "p90_ms", "latency_samples", "threads"),
    *("load_cold_ms", "load_warm_ms", "load_samples", "end_to_end_p50_ms", "decode_ms", "resize_ms", "peak_mb"),
}
OF_THE_DENSE = {"size_bytes", "top1", "parity_db", "top1_agreement", "p50_ms", "p90_ms", "latency_samples", "threads"}


def limit(patch: pytest.MonkeyPatch, budget: Path) -> None:
    """Two precisions of TFLite are all that there is."""
    patch.setattr(Target, "budget_file", property(lambda target: budget))
    known = FORMATS["tflite"].precisions
    replaced(patch, "tflite", precisions={name: known[name] for name in PRECISIONS})


@pytest.fixture(scope="module")
def benched(finished, shared, one_format, tmp_path_factory) -> Path:
    """A run that was deployed in fp32, with its table; nobody changes it."""
    folder = Path(shutil.copytree(finished[0], tmp_path_factory.mktemp("runs") / "benched"))
    with at_ease(shared), pytest.MonkeyPatch.context() as patch:
        limit(patch, one_format)
        bench(folder)
    return folder


@pytest.fixture
def copy(benched, shared, one_format, monkeypatch, tmp_path):
    limit(monkeypatch, one_format)
    with at_ease(shared):
        yield Path(shutil.copytree(benched, tmp_path / "benched"))


def bench(folder: Path, target=HOST, device=None) -> tuple[list[benchmark.Row], list[str]]:
    context, said = context_of(folder)
    return benchmark.bench(context, target, BRIEF, device, "make bench RUN=benched"), said


def table_of(folder: Path, target: str = "host") -> dict:
    return json.loads((folder / "bench" / target / "bench.json").read_text())


def numbers(row: benchmark.Row) -> set[str]:
    """Names of the figures that a row has."""
    return {name for name, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def exports(said: list[str]) -> list[str]:
    return [line.strip() for line in said if line.endswith(".tflite")]


def test_every_precision_is_measured_and_stands_in_the_table(benched):
    found = table_of(benched)
    assert found["command"] == "make bench RUN=benched"
    assert found.keys() == {"command", "date", "commit", "machine", "versions", "rows"}
    rows = found["rows"]
    assert [(row["precision"], row["role"]) for row in rows] == [
        ("int8-weights", "pruned"), ("fp32", "pruned"), ("fp32", "dense")]  # fmt: skip
    assert {row["status"] for row in rows} == {"measured"}
    for row in rows[:2]:
        assert numbers(row) >= MEASURED, row
        assert (row["photo_width"], row["photo_height"], row["threads"]) == (640, 427, 1)
        assert row["end_to_end_p50_ms"] > row["decode_ms"] > 0
    assert numbers(rows[2]) == OF_THE_DENSE, "its loading, say, nobody has measured"
    for row in rows:
        assert sha256_of(benched / row["file"]) == row["sha256"]
    small, large = rows[:2]
    assert small["size_bytes"] < large["size_bytes"]
    assert large["parity_db"] > 100 > small["parity_db"]


def test_the_table_is_csv_too_and_empty_where_nothing_was_measured(benched):
    with open(benched / "bench" / "host" / "bench.csv", newline="") as file:
        told = list(csv.DictReader(file))
    for row, line in zip(table_of(benched)["rows"], told, strict=True):
        assert line == {name: "" if value is None else str(value) for name, value in row.items()}


def test_the_table_on_a_terminal(benched):
    rows = table_of(benched)["rows"]
    rows[0] |= {"status": "failed", "reason": "[red] is no colour", "p50_ms": None, "p90_ms": None}
    rows[1] |= {"latency_valid": False, "p50_ms": 1.38, "p90_ms": 9.0, "load_cold_ms": 31.4, "load_from_storage": False}
    console = Console(width=benchmark.WIDTH)
    with console.capture() as capture:
        console.print(benchmark.table(rows))
    text = capture.get()
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["tflite"] == ["tflite"]
    assert lines["int8-weights"][1:4] == ["failed:", "[red]", "is"]
    assert lines["int8-weights"].count("–") == 2
    assert lines["fp32"][5:9] == ["~1.38", "~9", "1", "(31.4)"]
    assert lines["fp32,"][1:3] == ["dense", "measured"]
    assert lines["fp32,"].count("–") == 3
    assert "…" not in text, "every column has its room"


def test_what_the_deployment_has_made_is_used_and_left_alone(finished, copy):
    deployed = finished[0] / "artifacts" / "host"
    mine = copy / "bench" / "host"
    for name in ("pruned-fp32.tflite", "dense-fp32.tflite"):
        assert (mine / name).read_bytes() == (deployed / name).read_bytes()
    for path in [*deployed.rglob("*"), finished[0] / "stages.json", finished[0] / "report.json"]:
        if path.is_file():
            assert path.read_bytes() == (copy / path.relative_to(finished[0])).read_bytes(), path
    _, said = bench(copy)
    assert exports(said) == [], "all of it is there"
    (copy / "artifacts" / "host" / "pruned-fp32.tflite").write_bytes(b"damaged")
    (mine / "pruned-int8-weights.tflite").write_bytes(b"damaged")
    rows, said = bench(copy)
    assert exports(said) == ["dense-fp32.tflite", "pruned-int8-weights.tflite", "pruned-fp32.tflite"]
    assert [row["status"] for row in rows] == ["measured"] * 3


def test_artifacts_of_another_model_are_not_used(copy):
    for name in ("bench/host/exported.json", "artifacts/host/exported.json", "artifacts/host/manifest.json"):
        found = manifest.read(copy / name)
        other = [dataclasses.replace(one, model=tuple(-v for v in one.model)) for one in found.golden]
        manifest.write(dataclasses.replace(found, golden=tuple(other)), copy / name)
    _, said = bench(copy)
    assert len(exports(said)) == 3


def test_one_that_cannot_be_exported_says_why_and_the_others_go_on(copy, monkeypatch):
    shutil.rmtree(copy / "bench")
    export = FORMATS["tflite"].export

    def refuses(model, *, precision, **options):
        if precision == "int8-weights":
            raise ValueError("3 operations are outside the delegate")
        return export(model, precision=precision, **options)

    replaced(monkeypatch, "tflite", export=refuses)
    rows, _ = bench(copy)
    assert [row["status"] for row in rows] == ["failed", "measured", "measured"]
    assert rows[0]["reason"] == "3 operations are outside the delegate"
    assert (numbers(rows[0]), rows[0]["file"]) == (set(), None)
    assert benchmark.ran(rows)


def test_where_nothing_can_be_made_or_run_there_are_reasons_and_no_numbers(copy, monkeypatch):
    replaced(monkeypatch, "tflite", load=missing)
    rows, _ = bench(copy)
    assert {(row["status"], row["reason"]) for row in rows} == {
        ("not measured", "no TFLite interpreter: pip install ai-edge-litert")
    }
    assert {name for row in rows for name in numbers(row)} == {"size_bytes"}
    assert not benchmark.ran(rows)
    shutil.rmtree(copy / "bench")
    shutil.rmtree(copy / "artifacts")
    replaced(monkeypatch, "tflite", export=missing)
    rows, _ = bench(copy)
    assert [row["status"] for row in rows] == ["not measured"] * 3
    assert {name for row in rows for name in numbers(row)} == set()
    assert table_of(copy)["rows"] == rows
    assert not benchmark.ran(rows)


def test_one_that_computes_something_else_fails_and_the_others_go_on(copy, monkeypatch):
    load = FORMATS["tflite"].load

    def other(path: Path, threads: int) -> Program:
        program = load(path, threads)
        if "int8-weights" in path.name:
            return dataclasses.replace(program, run=lambda pixels: -program.run(pixels))
        return program

    replaced(monkeypatch, "tflite", load=other)
    rows, _ = bench(copy)
    assert [row["status"] for row in rows] == ["failed", "measured", "measured"]
    assert rows[0]["reason"].startswith("logits of its golden images are off by ")
    assert rows[0]["p50_ms"] is None
    assert rows[0]["top1"] is not None, "what it computes is a figure all the same"


def test_without_a_device_time_is_not_measured(copy):
    board = dataclasses.replace(TARGETS["rpi5"], formats=("tflite",))
    rows, said = bench(copy, board)
    assert len(exports(said)) == 3, "another target's artifacts are its own"
    for row in rows[:2]:
        assert (row["status"], row["reason"]) == ("in part", "no rpi5 device has measured it")
        assert numbers(row) == {"size_bytes", "top1", "parity_db", "top1_agreement"}
    assert (rows[2]["status"], rows[2]["reason"]) == ("in part", "it is timed beside a candidate, and none was timed")
    assert benchmark.ran(rows)


def test_a_device_that_cannot_be_reached_and_a_run_without_a_small_model_are_told(copy, monkeypatch):
    def lost(*_):
        raise DeviceError("pi@board does not answer")

    monkeypatch.setattr(benchmark, "connect", lost)
    with pytest.raises(EnvironmentLacks, match="pi@board does not answer"):
        bench(copy)
    records = json.loads((copy / "stages.json").read_text())
    del records["finetune"]
    (copy / "stages.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match="has no small model"):
        bench(copy)

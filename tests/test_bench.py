"""The benches measure what they say and leave the keys that scripts read."""

import pytest

from pipeline.experiments import bench_step
from pipeline.model_names import MICRO
from pipeline.report.results import write_results


@pytest.mark.slow
def test_bench_step_has_a_row_per_probe_and_ratios_to_none(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_step, "BATCH", {MICRO: {"cpu": 8, "cuda": 8}})
    rows = bench_step.bench_step(quick=True, say=lambda _: None)
    assert [row["probe"] for row in rows] == ["none", "default", "reference"]
    for row in rows:
        assert {"model", "device", "probe", "step_ms", "step_ratio", "peak_mb", "memory_ratio"} <= row.keys()
    none, default, reference = rows
    assert none["step_ratio"] == none["memory_ratio"] == 1
    assert reference["step_ms"] > default["step_ms"]
    assert reference["peak_mb"] > default["peak_mb"] > 0
    write_results(tmp_path / "docs" / "r.json", "make bench-step", rows)

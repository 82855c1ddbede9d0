"""`make bench-latency-budget`: the table of what came of it; test_commands.py runs it."""

import pytest
from conftest import tiny_config

from pipeline.experiments import bench_latency as bench
from targets import profile as profiles


def row(seed: int, budget: str, **changes) -> dict:
    values = dict(
        seed=seed, budget=budget, latency_ms_target=0.8 if budget == "latency" else None, latency_ms_predicted=0.8,
        latency_ms_p50=0.82, latency_valid=True, error_percent=-2.4, top1=49.0, params=342_000, macs=24_600_000,
        attentions=12)  # fmt: skip
    return {**values, **changes}


def test_the_table_compares_the_budgets_of_each_seed():
    rows = [
        row(0, "params"), row(0, "latency", top1=50.5, latency_ms_p50=0.78, attentions=7),
        row(1, "params", latency_valid=False), row(1, "latency", top1=48.5)]  # fmt: skip
    text = bench.report(rows)
    assert "| 0 | latency | 0.800 | 0.800 | 0.780 | -2.4 % | 50.5 | 342 k | 24.6 M | 7 |" in text
    assert "| 1 | params |  | 0.800 | 0.820 (noisy) |" in text
    assert "| top-1, points | +0.5 | +1.5, -0.5 |" in text
    assert "| p50, ratio | 0.976 | 0.951, 1.000 |" in text


def test_without_a_profile_nothing_is_trained(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "FOLDER", tmp_path / "profiles")
    with pytest.raises(ValueError, match="make profile TARGET=host"):
        bench.bench_latency(tiny_config(image_folder), tmp_path / "runs", sparsity=0.6, seeds=[0], quick=True,
                            progress=lambda *_: pytest.fail("trained"), say=lambda _: None)  # fmt: skip
    assert not (tmp_path / "runs").exists()

"""The benches measure what they say, leave the keys that scripts read, and go on after being killed."""

import dataclasses

import pytest
from conftest import tiny_config

from dap import PruneConfig
from pipeline import bench_step, models, side_by_side
from pipeline.bench_method import bench_method
from pipeline.results import write_results


@pytest.mark.slow
def test_bench_step_has_a_row_per_probe_and_ratios_to_none(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_step, "BATCH", {models.MICRO: {"cpu": 8, "cuda": 8}})
    rows = bench_step.bench_step(quick=True, say=lambda _: None)
    assert [row["probe"] for row in rows] == ["none", "default", "reference"]
    for row in rows:
        assert {"model", "device", "probe", "step_ms", "step_ratio", "peak_mb", "memory_ratio"} <= row.keys()
    none, default, reference = rows
    assert none["step_ratio"] == none["memory_ratio"] == 1
    assert reference["step_ms"] > default["step_ms"]
    assert reference["peak_mb"] > default["peak_mb"] > 0
    write_results(tmp_path / "docs" / "r.json", "make bench-step", rows)


def test_bench_method_compares_variants_on_the_same_seed(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "SECONDS", 0.2)
    recipe = dataclasses.replace(tiny_config(image_folder).finetune, epochs=1)
    base = tiny_config(
        image_folder, dense=recipe, prune=recipe, finetune=recipe, pruning=PruneConfig(sparsity=0.5, sparse=0.6)
    )
    options = {"variants": ["dap", "reference"], "seeds": [0], "say": lambda _: None}
    steps: list[str] = []
    rows = bench_method(base, tmp_path, progress=lambda stage, *_: steps.append(stage), **options)
    assert [(row["variant"], row["seed"]) for row in rows] == [("dap", 0), ("reference", 0)]
    assert rows[0]["top1_dense"] == rows[1]["top1_dense"] is not None
    assert steps.count("dense") == 3  # once for the seed, not once for every variant
    assert -1 <= rows[0]["keep_ratio_correlation"][0] <= 1
    assert rows[1]["keep_ratio_correlation"] == []  # there is no second seed of the reference
    assert all(0.5 <= row["sparsity"] < 0.52 for row in rows)
    assert all(row["latency_ms_p50"] > 0 and 0.1 < row["latency_ratio"] < 1 for row in rows)
    done = len(steps)
    again = bench_method(base, tmp_path, progress=lambda stage, *_: steps.append(stage), **options)
    assert [row["top1"] for row in again] == [row["top1"] for row in rows]
    assert len(steps) == done


def test_bench_method_names_its_variants(image_folder, tmp_path):
    with pytest.raises(ValueError, match="Known: dap, reference"):
        bench_method(
            tiny_config(image_folder), tmp_path, variants=["magic"], seeds=[0], progress=print, say=lambda _: None
        )

"""The published table: what it takes, what was reproduced, and its commands tried on miniatures."""

import itertools
from pathlib import Path

import pytest

from pipeline import files
from pipeline.data.datasets import load_dataset
from pipeline.experiments import miniature, paper_table
from pipeline.model_names import MICRO

ROOT = Path(__file__).parent.parent


def test_the_table_shows_what_was_run_and_says_what_was_not(tmp_path):
    row = {"method": "dap", "variant": None, "sparsity_target": 0.75, "top1": 70.0}
    rows = [row, {**row, "top1": 71.0}, {**row, "variant": "distill", "top1": 99.0}, {**row, "top1": None}]
    files.write_json(tmp_path / "compare-ifood-deit_tiny_patch16_224.json", {"rows": rows})
    lines = paper_table.table(tmp_path).splitlines()
    assert len(lines) == 2 + 8 and len({line.count("|") for line in lines}) == 1
    dap = next(line for line in lines if line.startswith("| deit_tiny_patch16_224 | DAP |"))
    assert "| 71.5 | not run | 68.6 | 70.5 | 69.3 | not run |" in dap
    assert sum(line.count("not run") for line in lines) == 27  # of 4 x 7 published numbers


def test_the_docs_show_the_table_as_it_is_today():
    page = (ROOT / "docs" / "method.md").read_text()
    assert paper_table.table(ROOT / "docs" / "results") in page
    cells = itertools.product(paper_table.MODELS, paper_table.DATASETS)
    hours = sum(itertools.starmap(paper_table.gpu_hours, cells))
    assert f"about {hours:.0f} A100 hours" in page


def test_a_larger_model_and_a_larger_data_set_take_more_time_and_room():
    small, tiny = paper_table.MODELS
    assert paper_table.gpu_hours(small, "ifood") > 2 * paper_table.gpu_hours(tiny, "ifood") > 1
    assert paper_table.gpu_hours(tiny, "inat19") > 2 * paper_table.gpu_hours(tiny, "ifood")
    assert paper_table.disk_bytes(tiny, "inat19") > 149e9 > 5e9 > paper_table.disk_bytes(small, "ifood") - 7e9


@pytest.mark.parametrize("dataset", paper_table.DATASETS)
def test_a_miniature_is_read_as_the_data_set_itself(dataset, tmp_path):
    loaded = load_dataset(dataset, folder=miniature.write(dataset, tmp_path / "mini"))
    assert len(loaded.classes) == miniature.CLASSES and not loaded.skipped
    assert len(loaded.train.labels) == miniature.CLASSES * miniature.TRAIN
    assert len(loaded.val.labels) == miniature.CLASSES * miniature.VAL


def test_only_the_data_sets_of_the_table_have_miniatures(tmp_path):
    with pytest.raises(ValueError, match=r"no miniature of cifar10\. Known: ifood, inat19"):
        miniature.write("cifar10", tmp_path)


@pytest.mark.slow
def test_the_dry_run_trains_every_cell_of_every_command(tmp_path):
    said: list[str] = []
    found = paper_table.dry_run(tmp_path, models=(MICRO,), progress=lambda *_: None, say=said.append)
    assert list(found) == [paper_table.command(MICRO, dataset) for dataset in paper_table.DATASETS]
    assert all(command in said for command in found)
    for rows in found.values():
        asked = [(row["method"], row["sparsity_target"]) for row in rows]
        assert sorted(asked[1:]) == sorted(itertools.product(paper_table.METHODS, paper_table.SPARSITIES))
        assert all(row["error"] is None and row["top1"] is not None for row in rows)
        assert all(row["latency_ms_p50"] is None for row in rows)

"""The comparison: its queue, what it does with a cell that fails, its table and its figures."""

import dataclasses
import json
import multiprocessing
from typing import Any

import pytest
from conftest import at_ease, tiny_config

from pipeline import stages
from pipeline.errors import Interrupted
from pipeline.experiments import compare_report, side_by_side
from pipeline.experiments.cells import Cell, cells
from pipeline.experiments.commands import _shown
from pipeline.experiments.compare import _config, compare
from pipeline.runs import Run


def row(method: str, sparsity: float, seed: int, top1: float | None, **changes: Any) -> dict[str, Any]:
    values = {"variant": None, "sparsity_target": sparsity, "sparsity": sparsity + 0.001, "off_target": False,
              "epochs": [2, 1], "params": 1e6 * (1 - sparsity), "macs": 9e7 * (1 - sparsity), "seconds": 10.0,
              "images": 600, "keep_ratios": [0.5] * 24, "error": None,
              "top1_dense": 60.0, "latency_ms_p50": None}  # fmt: skip
    return {"method": method, "seed": seed, "top1": top1, **values, **changes}


def test_the_queue_begins_with_the_dense_model_of_every_seed_and_knows_its_methods():
    queue = cells(["dap", "dap:all-gates", "dense"], [0.5, 0.75], [0, 1])
    assert queue[0] == Cell("dense", None, 0.0, 0)
    assert [cell.name for cell in queue[1:5]] == ["dap-0.5-seed0", "dap-all-gates-0.5-seed0", "dap-0.75-seed0",
                                                 "dap-all-gates-0.75-seed0"]  # fmt: skip
    assert len({cell.name for cell in queue}) == len(queue) == 10
    with pytest.raises(ValueError, match=r"'dap:magic' is unknown\. Known: dense, dap"):
        cells(["dap:magic"], [0.5], [0])


def test_some_methods_run_with_the_first_seed_alone_after_the_others():
    queue = cells(["dap"], [0.5], [3, 4], ["savit:released", "uniform:distill"])
    assert [cell.name for cell in queue] == ["dense-seed3", "dap-0.5-seed3", "dense-seed4", "dap-0.5-seed4",
                                             "savit-released-0.5-seed3", "uniform-distill-0.5-seed3"]  # fmt: skip
    with pytest.raises(ValueError, match="'dense:distill' is unknown"):
        cells([], [0.5], [0], ["dense:distill"])


def test_one_setting_of_the_method_can_be_changed_for_a_row(image_folder, tmp_path):
    queue = cells(["dap:benefit_scale=3", "uniform:updates_per_epoch=1"], [0.5], [0])
    assert [cell.name for cell in queue] == ["dense-seed0", "dap-benefit_scale=3-0.5-seed0",
                                             "uniform-updates_per_epoch=1-0.5-seed0"]  # fmt: skip
    config = _config(tiny_config(image_folder), tmp_path, queue[1])
    assert (config.method, config.pruning.benefit_scale, config.pruning.sparsity) == ("dap", 3.0, 0.5)
    for spec in ("dap:magic=3", "dap:sparsity=0.9", "dap:seed=1", "savit:benefit_scale=3", "dense:benefit_scale=3"):
        with pytest.raises(ValueError, match=f"'{spec}' is unknown"):
            cells([spec], [0.5], [0])
    for spec in ("dap:benefit_scale=-1", "dap:benefit_scale=much", "dap:updates_per_epoch=0.5"):
        with pytest.raises(ValueError, match=f"^{spec}: "):
            cells([spec], [0.5], [0])


def test_a_variant_says_what_is_learned_from_the_basis_of_heads_and_what_is_fitted(image_folder, tmp_path):
    specs = ["dap", "dap:unrotated+logits", "uniform:distill+benefit_scale=3", "savit:compensate", "isomorphic:logits"]
    queue = cells(specs, [0.5], [0])
    assert queue[2].name == "dap-unrotated+logits-0.5-seed0"
    assert [cell.is_taught for cell in queue] == [False, False, True, True, False, True]
    plain, logits, streams, fitted, _ = (_config(tiny_config(image_folder), tmp_path, cell) for cell in queue[1:])
    assert (plain.teacher, plain.rotate, plain.compensate) == (None, True, False)
    assert (logits.teacher, logits.teach, logits.rotate) == (
        str(tmp_path / "dense-seed0/checkpoints/dense"),
        "logits",
        False,
    )
    assert (streams.teach, streams.rotate, streams.pruning.benefit_scale) == ("streams", True, 3.0)
    assert fitted.compensate and fitted.prune is None
    for spec in ("savit:unrotated", "dap:compensate", "dap:distill+magic", "dap:+distill+"):
        with pytest.raises(ValueError, match="is unknown"):
            cells([spec], [0.5], [0])


def short_config(image_folder):
    recipe = dataclasses.replace(tiny_config(image_folder).finetune, epochs=1)
    return tiny_config(image_folder, dense=dataclasses.replace(recipe, epochs=2), prune=recipe, finetune=recipe)


@pytest.mark.slow
def test_two_processes_share_the_queue_and_a_student_waits_for_its_teacher(image_folder, tmp_path, monkeypatch, capfd):
    """The helper's own first cell is not this process's: each trains some, and no cell is trained twice."""
    queue = cells(["dap:distill", "dap", "dap:reference"], [0.5], [0, 1])
    said: list[str] = []
    rows = compare(
        short_config(image_folder), tmp_path, queue, jobs=2, timed=False, progress=lambda *_: None, say=said.append
    )
    assert all(row["top1"] is not None and row["error"] is None for row in rows)
    student = json.loads((tmp_path / "dap-distill-0.5-seed1" / "config.json").read_text())
    assert student["teacher"] == str(tmp_path / "dense-seed1" / "checkpoints" / "dense")
    _, distilled, plain, reference = rows[:4]
    assert -1 <= plain["keep_ratio_correlation"] <= 1
    assert reference["keep_ratio_correlation"] == rows[7]["keep_ratio_correlation"] != plain["keep_ratio_correlation"]
    assert distilled["variant"] == "distill" and plain["variant"] is None
    assert distilled["benefit"] != plain["benefit"]
    for cell in queue:
        log = (tmp_path / cell.name / "log.jsonl").read_text().splitlines()
        steps = [(line["stage"], line["step"]) for line in map(json.loads, log)]
        assert len(steps) == len(set(steps))


@pytest.mark.slow
def test_helpers_end_with_the_process_that_they_help(image_folder, tmp_path):
    def interrupt(*_) -> None:
        raise Interrupted("enough")

    long = dataclasses.replace(tiny_config(image_folder).finetune, epochs=10_000)
    base = tiny_config(image_folder, dense=long, prune=long, finetune=long)
    others = set(multiprocessing.active_children())  # the exporter keeps its converter's process
    with pytest.raises(Interrupted):
        compare(base, tmp_path, cells(["dap"], [0.5], [0]), jobs=2, progress=interrupt, say=lambda _: None)
    assert set(multiprocessing.active_children()) <= others


@pytest.mark.slow
def test_cells_share_the_epochs_run_once_and_one_that_is_refused_leaves_the_others(
    image_folder, shared, tmp_path, monkeypatch
):
    monkeypatch.setattr(side_by_side, "SECONDS", 0.2)
    base = dataclasses.replace(short_config(image_folder), subset="3x12")
    queue = cells(["dap", "uniform"], [0.5, 0.999], [0])
    steps: list[str] = []
    options: Any = {"progress": lambda stage, *_: steps.append(stage), "say": lambda _: None}
    with at_ease(shared):
        rows = compare(base, tmp_path, queue, **options)
    assert [(r["method"], r["sparsity_target"]) for r in rows] == [(c.method, c.sparsity) for c in queue]
    dense, dap, uniform, refused, _ = rows
    assert sum(dense["epochs"]) == sum(dap["epochs"]) == sum(uniform["epochs"]) == 2
    assert dap["top1_dense"] == dense["top1"] == dense["top1_dense"]
    assert dap["keep_ratios"] != uniform["keep_ratios"]
    assert set(dap["benefit"]) == {"third", "end"} and len(dap["benefit"]["end"]["patch"]) == len(dap["keep_ratios"])
    assert abs(dap["sparsity"] - 0.5) < 0.01 and not dap["off_target"]
    assert 0 < dap["latency_ms_p50"] < dense["latency_ms_p50"]
    # every image that was not trained on counts: 18 of the split, and 4 of 16 training images of 3 classes
    assert dap["images"] == dense["images"] == 30
    assert round(dap["top1"] * 30 / 100 - dap["top1_val"] * 18 / 100, 6) in range(13)
    assert refused["top1"] is None and "highest" in refused["error"]
    done = len(steps)
    with at_ease(shared):
        again = compare(base, tmp_path, queue, **options)
    assert len(steps) == done
    assert [r["top1"] for r in again] == [r["top1"] for r in rows]
    table = compare_report.write(tmp_path / "r" / "compare.json", "make compare", rows, dataset="d", model="m")
    assert "refused: " in table and "millinats" in table
    assert {p.suffix for p in (tmp_path / "r").iterdir()} == {".json", ".md", ".svg"}
    for found in json.loads((tmp_path / "r" / "compare.json").read_text())["rows"]:
        assert {"method", "variant", "sparsity_target", "sparsity", "seed", "epochs", "top1", "top1_dense", "params",
                "macs", "latency_ms_p50", "seconds"} <= found.keys()  # fmt: skip


def test_wrong_settings_and_a_folder_of_other_settings_are_told_before_anything_is_trained(image_folder, tmp_path):
    base, options = short_config(image_folder), {"progress": lambda *_: pytest.fail("trained"), "say": lambda _: None}
    with pytest.raises(ValueError, match=r"sparsity must be a number strictly between 0 and 1, got 1\.5"):
        compare(base, tmp_path, cells(["dap"], [0.5, 1.5], [0]), **options)
    run = Run.create(tmp_path / "dense-seed0", dataclasses.replace(base, method="dense", seed=7))
    run.finish("prepare", {}, [], {}, 1.0)
    with pytest.raises(ValueError, match="belongs to another configuration"):
        compare(base, tmp_path, cells(["dap"], [0.5], [0]), **options)


def test_a_student_whose_teacher_fails_is_refused_and_not_waited_for(image_folder, tmp_path, monkeypatch):
    def fail(context) -> None:
        raise ValueError("the loss became nan")

    monkeypatch.setattr(stages, "run_training", fail)
    rows = compare(short_config(image_folder), tmp_path, cells(["dap:distill"], [0.5], [0]),
                   progress=lambda *_: None, say=lambda _: None)  # fmt: skip
    assert [row["error"] for row in rows] == ["the loss became nan", "dense-seed0 has failed: the loss became nan"]


def test_the_table_shows_mean_and_deviation_and_marks_what_is_off():
    rows = [row("dense", 0.0, seed, 60.0 + seed) for seed in range(3)]
    rows += [row("dap", 0.5, seed, 50.0 + seed) for seed in range(3)]
    rows += [row("savit", 0.5, 0, 40.0, variant="released", off_target=True)]
    rows += [row("wdpruning", 0.5, 0, None, error="cannot | be reached")]
    table = compare_report.markdown(rows, "species", "micro").splitlines()
    assert "on 600 images" in table[0]
    assert "| micro | dense | 61.0 ± 1.0 |" in table
    assert "| micro | DAP | 51.0 ± 1.0 |" in table
    assert "| micro | SAViT (released) | 40.0 † |" in table
    assert "| micro | WD-Prune | refused: cannot / be reached |" in table
    assert table[-1].startswith("†")
    assert any("not measured" in line for line in table)
    assert "| dense | -10.0 ± 0.0 |" in table  # DAP's lead, seed by seed
    assert "| SAViT (released) | +10.0 |" in table and "| WD-Prune | not run |" in table
    assert "†" not in compare_report.markdown(rows[:6], "species", "micro")


def test_the_table_says_how_alike_the_probes_decide_and_where_benefit_lies():
    benefit = {"third": {"class": [0.01] * 12 + [0.02] * 12, "patch": [0.0] * 24},
               "end": {"class": [0.1, 0.0] * 12, "patch": [0.0] * 24}}  # fmt: skip
    rows = [row("dap", 0.5, seed, 50.0, keep_ratio_correlation=0.9 + seed / 100, benefit=benefit) for seed in (0, 1)]
    rows += [row("uniform", 0.5, 0, 40.0, keep_ratio_correlation=0.1), row("dap", 0.5, 0, 41.0, variant="reference")]
    table = compare_report.markdown(rows, "species", "micro").splitlines()
    assert "| DAP | 50 % | 0.90, 0.91 |" in table and "| uniform | 50 % | 0.10 |" in table
    assert "| class token | attention | 10 → 100 | 15 → 100 | 20 → 100 |" in table
    assert "| class token | MLP | 10 → 0 | 15 → 0 | 20 → 0 |" in table
    assert "Spearman" not in compare_report.markdown(rows[3:], "species", "micro")


def test_the_figures_hold_every_method(tmp_path):
    rows = [row(method, s, seed, 50.0) for method in ("dap", "uniform") for s in (0.5, 0.75) for seed in (0, 1)]
    compare_report.write(tmp_path / "compare.json", "make compare", rows, dataset="d", model="m")
    for name in ("accuracy", "keep-50", "keep-75"):
        svg = (tmp_path / f"compare-{name}.svg").read_text()
        assert "DAP" in svg and "uniform" in svg
    assert json.loads((tmp_path / "compare.json").read_text())["command"] == "make compare"


@pytest.mark.parametrize(
    ("dataset", "shown"),
    [("digits", "digits"), ("folder:own.zip", "folder:own.zip"), ("folder:/home/me/own.zip", "folder:own.zip"),
     ("wds:tars", "wds:tars"), ("wds:/home/me/tars", "wds:tars")],
)  # fmt: skip
def test_a_results_file_names_the_data_without_their_place(dataset, shown):
    assert _shown(dataset) == shown

"""Accuracy over milliseconds: which models are timed, and what is said of them."""

import json

import pytest

from pipeline.experiments import frontier, side_by_side
from pipeline.model_names import MICRO
from pipeline.report.figures import to_svg


def row(method="dap", seed=0, top1=50.0, sparsity=0.5, layers=((8, 40), (4, 24)), **changes):
    layers = None if method in ("dense", "savit") else [list(layer) for layer in layers]
    known = {"model": MICRO, "img_size": None, "variant": None, "params": 1000, "macs": 2000}
    return {
        **known,
        "method": method,
        "seed": seed,
        "top1": top1,
        "sparsity_target": sparsity,
        "layers": layers,
        **changes,
    }


def results(path, *rows):
    path.write_text(json.dumps({"command": "", "rows": rows}))
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side, "SECONDS", 0.1)
        patch.setattr(side_by_side, "SAMPLES", 5)
        folder, said = tmp_path_factory.mktemp("frontier"), []
        one = results(folder / "one.json", row("dense", top1=60.0, sparsity=0.0), row(), row(seed=1, top1=52.0))
        smaller = row("dense", top1=40.0, sparsity=0.0, img_size=32)
        two = results(folder / "two.json", row("dense", top1=61.0, sparsity=0.0), smaller, row("savit"), row(top1=None))
        return frontier.frontier([one, two], say=said.append), said


@pytest.mark.slow
def test_every_model_is_timed_in_both_precisions_with_the_accuracy_of_all_its_seeds(found):
    rows, _ = found
    assert [(r["method"], r["image"], r["precision"], r["seeds"], r["top1"]) for r in rows] == [
        ("dense", 64, "fp32", 1, 60.0), ("dense", 64, "int8-dynamic", 1, 60.0),
        ("dap", 64, "fp32", 2, 51.0), ("dap", 64, "int8-dynamic", 2, 51.0),
        ("dense", 32, "fp32", 1, 40.0), ("dense", 32, "int8-dynamic", 1, 40.0),
    ]  # fmt: skip
    assert all(r["latency_ms_p50"] > 0 for r in rows)
    dense, pruned, smaller = (rows[i]["latency_ms_p50"] for i in (0, 2, 4))
    assert pruned < smaller < dense


@pytest.mark.slow
def test_what_cannot_be_timed_is_told(found):
    assert [line for line in found[1] if "left out" in line] == [
        "  left out: SAViT at 0.5 in two.json",
        "  left out: DAP at 0.5 in two.json",
    ]


@pytest.mark.slow
def test_the_table_is_by_time_and_the_figure_has_a_line_for_each_lever(found):
    rows, _ = found
    table = frontier.report(rows)
    assert table.count(f"| {MICRO} |") == 3
    assert table.index("51.0 ± 1.4") < table.index("40.0") < table.index("60.0")
    drawn = to_svg(frontier.figure(rows), "frontier")
    assert f"{MICRO}, dense" in drawn
    assert f"{MICRO} at 64 px, DAP" in drawn


def test_methods_that_were_not_asked_for_are_not_timed(tmp_path):
    files = [results(tmp_path / "a.json", row(), row(variant="distill"), row("uniform"))]
    with pytest.raises(ValueError, match="no model that can be timed"):
        frontier.frontier(files, ["dense", "uniform:distill"], say=lambda _: None)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"method": "dap"}], "no results file of `make compare`"),
        ([], "no model that can be timed"),
        ([row("savit")], "no model that can be timed"),
    ],
)
def test_files_without_models_are_refused(tmp_path, rows, why):
    with pytest.raises(ValueError, match=why):
        frontier.frontier([results(tmp_path / "a.json", *rows)], say=lambda _: None)

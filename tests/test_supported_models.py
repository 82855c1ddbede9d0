"""The table of timm's ViTs in docs/models.md is what the command says."""

import json
from pathlib import Path

import pytest

from pipeline.experiments import supported

ROOT = Path(__file__).resolve().parents[1]
ROWS = json.loads((ROOT / "docs/results/models.json").read_text())["rows"]


def test_the_page_holds_the_table_of_the_results() -> None:
    assert supported.report(ROWS) in (ROOT / supported.PAGE).read_text()
    assert [row["model"] for row in ROWS] == supported.entries()
    assert sum(row["accepted"] for row in ROWS) >= 145


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_patch16_224", "vit_base_patch16_siglip_224", "eva02_tiny_patch14_224", "vit_base_r26_s32_224",
     "aimv2_large_patch14_224", "vit_pwee_patch16_reg1_gap_256"],
)  # fmt: skip
def test_a_row_is_what_the_gates_say(name: str) -> None:
    assert supported.row(name) == next(row for row in ROWS if row["model"] == name)


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    page.write_text(f"before\n{supported.BEGIN}\nold\n{supported.END}\nafter\n")
    supported.write(page, "new\n")
    assert page.read_text() == f"before\n{supported.BEGIN}\nnew\n{supported.END}\nafter\n"

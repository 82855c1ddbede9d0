"""Imports between the packages go one way: pipeline -> dap, pipeline -> targets, nothing else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = {"dap", "pipeline", "targets", "apps", "tests"}
ALLOWED = {"dap": {"dap"}, "targets": {"targets"}, "pipeline": {"pipeline", "dap", "targets"}}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_they_may(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) & HOUSE <= ALLOWED[package], path


def test_vendor_sdks_are_not_imported_with_the_module():
    for path in [*(ROOT / "targets").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]:
        top = {alias.name.split(".")[0] for node in ast.parse(path.read_text()).body
               if isinstance(node, ast.Import) for alias in node.names}  # fmt: skip
        top |= {(node.module or "").split(".")[0] for node in ast.parse(path.read_text()).body
                if isinstance(node, ast.ImportFrom)}  # fmt: skip
        assert not top & {"executorch", "coremltools", "litert_torch", "ai_edge_litert", "tflite_runtime"}, path

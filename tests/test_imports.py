"""Who may import whom: between the packages, and between the rooms of pipeline/."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = {"dap", "pipeline", "targets", "apps", "tests"}
ALLOWED = {"dap": {"dap"}, "targets": {"targets"}, "pipeline": {"pipeline", "dap", "targets"}}
ROOMS = {
    "data": {"data", "files", "errors"},
    "train": {"train", "data", "config", "errors", "files", "model_names", "models"},
    "report": {"report", "config", "files", "runs"},
}
"""room of pipeline/ -> what of pipeline/ it may import; experiments/ may import everything"""
SDKS = {"executorch", "coremltools", "litert_torch", "ai_edge_litert", "tflite_runtime"}


@cache
def modules(package: str) -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, *, at_top: bool = False) -> set[str]:
    """Modules that a file imports, as dotted names; at_top: not those that a function imports when it is called."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(module: str) -> str:
    """The part of pipeline/ that a module belongs to: a folder of it, or itself."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_they_may(package):
    assert modules(package)
    for path in modules(package).values():
        assert {name.split(".")[0] for name in imported(path)} & HOUSE <= ALLOWED[package], path


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_rooms_of_the_pipeline_import_only_what_they_may(name):
    mine = {module: path for module, path in modules("pipeline").items() if room(module) == name}
    assert mine
    for path in mine.values():
        found = {room(module) for module in imported(path) & modules("pipeline").keys()}
        assert found - {""} <= ROOMS[name], path


def test_only_the_command_line_imports_the_experiments():
    for module, path in modules("pipeline").items():
        if room(module) not in ("experiments", "__main__"):
            assert not [name for name in imported(path) if name.startswith("pipeline.experiments")], path
    for package in ("dap", "targets"):
        assert all("pipeline" not in name for path in modules(package).values() for name in imported(path))


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_no_modules_import_each_other_in_a_circle(package):
    graph = {
        name: {other for other in imported(path) & modules(package).keys() if other not in (name, package)}
        for name, path in modules(package).items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_vendor_sdks_are_not_imported_with_the_module():
    for package in ("targets", "pipeline"):
        for path in modules(package).values():
            assert not {name.split(".")[0] for name in imported(path, at_top=True)} & SDKS, path


def test_models_come_from_one_place():
    """timm knows ours only once pipeline.models is imported: who asks timm himself gets it by chance."""
    for module, path in modules("pipeline").items():
        if module != "pipeline.models":
            calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            asked = {ast.unparse(function) for function in calls}
            assert not {name for name in asked if name.endswith(("timm.create_model", "get_pretrained_cfg"))}, path

"""The three packages as pip installs them: what they need is declared, and what they read is inside."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.experiments import environment

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("dap", "pipeline", "targets")

DISTRIBUTION = {"PIL": "pillow", "sklearn": "scikit-learn", "torch_pruning": "torch-pruning"}
"""where a module's name is not its distribution's"""
COMES_WITH = {"scipy": "scikit-learn", "cv2": "albumentations", "markupsafe": "jinja2", "tqdm": "coremltools",
              "google": "coremltools", "huggingface_hub": "timm", "packaging": "accelerate"}  # fmt: skip
OPTIONAL = {"dap": {"torch-pruning"}, "pipeline": {"onnxruntime", "openvino"}}
"""imported where they are used, with a hint if they are missing"""


def declared(*lists: str) -> dict[str, Requirement]:
    """Requirements of the project ("": its own) and its extras by name."""
    lines = [
        line for name in lists for line in (PROJECT["optional-dependencies"][name] if name else PROJECT["dependencies"])
    ]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): one for one in found}


def test_what_is_declared_is_what_is_locked() -> None:
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.in").read_text().splitlines())
    locked = {canonicalize_name(one.name): one for one in (Requirement(line) for line in lines if line)}
    ours = declared("", "pipeline", "targets", "dev")
    assert ours.keys() == locked.keys()
    for name, one in locked.items():
        pins = [part.version for part in one.specifier if part.operator == "=="]
        assert all(ours[name].specifier.contains(pin) for pin in pins), name
        assert pins or not any(part.operator == "==" for part in ours[name].specifier), name


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_imported_is_declared(package: str) -> None:
    imported: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, *PACKAGES}
    needed = {canonicalize_name(COMES_WITH.get(name, DISTRIBUTION.get(name, name))) for name in imported}
    # a pipeline exports, so that its benchmarks may import a converter
    lists = {"dap": ("",), "targets": ("", "targets"), "pipeline": ("", "targets", "pipeline")}[package]
    assert needed - OPTIONAL.get(package, set()) <= declared(*lists).keys()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel of the tracked files unpacks to."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in names.stdout.splitlines():
        if name.split("/")[0] in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source)]
    subprocess.run(command, check=True, timeout=300)
    return site


def ran(code: str, site: Path, folder: Path) -> str:
    """What the code prints in a process that knows the installed packages and their dependencies alone."""
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_all_files_that_the_packages_read(installed: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    # sources of a lock file, for who edits it
    wanted = {name for name in tracked.splitlines() if not name.endswith(".in") and (ROOT / name).is_file()}
    assert not {name for name in wanted if not (installed / name).is_file()}
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == set(PACKAGES)
    (metadata,) = installed.glob("*.dist-info/METADATA")
    assert re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata.read_text(), re.M) == [
        Requirement(line).name for line in PROJECT["dependencies"]
    ]


@pytest.mark.slow
def test_the_installed_packages_work(installed: Path, tmp_path: Path) -> None:
    code = (
        "import dap.pruner, pipeline.models, pipeline.report.report as report, targets;"
        "print(dap.__file__); print(report.__file__); print(targets.__file__);"
        "model = pipeline.models.create_model('deit_micro_patch8_64', 5);"
        "dap.pruner.Pruner(model, dap.PruneConfig(), steps_per_epoch=1, epochs=1).finalize();"
        "print(*(target.budget() and name for name, target in targets.TARGETS.items()))"
    )
    *files, budgets = ran(code, installed, tmp_path).splitlines()
    assert all(Path(file).is_relative_to(installed) for file in files)
    assert budgets.split() == ["host", "ios", "mac", "android", "rpi4", "rpi5", "web"]
    assert "prune" in ran("import runpy, sys; sys.argv = ['pipeline', '--help']; "
                          "runpy.run_module('pipeline', run_name='__main__')", installed, tmp_path)  # fmt: skip


@pytest.mark.slow
def test_dap_works_alone(installed: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(installed / "dap", alone / "dap")
    code = (
        "import sys, timm, torch, dap.hub, dap.pruner;"
        "model = timm.create_model('test_vit', num_classes=5).eval();"
        "small = dap.pruner.Pruner(model, dap.PruneConfig(), steps_per_epoch=1, epochs=1).finalize();"
        "dap.save_for_hub(small, 'hub', card='');"
        "again = timm.create_model('local-dir:hub', pretrained=True).eval();"
        "images = torch.randn(1, 3, *small.patch_embed.img_size);"
        "assert torch.equal(again(images), small(images));"
        "assert not {'pipeline', 'targets', 'albumentations', 'executorch'} & set(sys.modules)"
    )
    ran(code, alone, tmp_path)


def pins(lock: str) -> dict[str, set[str]]:
    """Package -> its lines of a lock file (a version can depend on Python's), without hashes."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if match := re.match(r"([\w.-]+)==", line):
            found.setdefault(canonicalize_name(match[1]), set()).add(line.removesuffix(" \\"))
    return found


def test_a_gpu_gets_what_others_do_without() -> None:
    """Together both locks hold all that torch names, in one version."""
    rule = re.search(r"^LEFT_OUT := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert rule
    left_out = {canonicalize_name(name) for name in rule[1].replace("\\", " ").split()}
    lock, cuda = pins("requirements.lock"), pins("requirements-cuda.lock")
    assert not left_out & lock.keys()
    assert {"triton", "nvidia-cusolver"} <= cuda.keys() - lock.keys() <= left_out
    assert all(cuda[name] == lock[name] for name in cuda.keys() & lock.keys())
    # uv itself says what it was told to leave out: the file was made by this rule
    told = (ROOT / "requirements.lock").read_text().split("excluded from the output:")[1]
    assert set(re.findall(r"^# (\S+)$", told, re.M)) == left_out


@pytest.mark.parametrize("driver", [False, True])
def test_a_driver_is_what_brings_them(driver: bool, tmp_path: Path) -> None:
    for name in ("make", "sh", "python3"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    if driver:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    elif Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    shown = subprocess.run(
        [str(tmp_path / "make"), "-n", "env", "VENV=nowhere"], cwd=ROOT, env={"PATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "for lock in requirements.lock" in shown
    assert ("requirements-cuda.lock" in shown) == driver


def test_sizes_add_up_and_everything_large_has_a_reason() -> None:
    rows = environment.environment(environment.asked_for(ROOT / "requirements.in"))
    named = {row["package"]: row for row in rows}
    assert named["torch"]["asked_for"]
    assert named["torch"]["mb"] > 100
    assert named["sympy"]["named_by"] == ["coremltools", "executorch", "torch"]
    peers = environment.asked_for(ROOT / "requirements-bench.in")  # of make bench-export, if they are installed
    of_nobody = [row for row in rows if not row["asked_for"] and not row["named_by"] and row["package"] not in peers]
    assert [row["package"] for row in of_nobody if (row["mb"] or 0) >= environment.SHOWN_MB] in ([], ["pip"])
    table = environment.report(rows)
    cells = [re.match(r"\| (\S+).* \| \**([\d,]+)\** \|", line) for line in table.splitlines()[2:] if line[:1] == "|"]
    sizes = [int(cell[2].replace(",", "")) for cell in cells if cell]
    assert abs(sum(sizes[:-1]) - sizes[-1]) < len(sizes)  # each is rounded
    with pytest.raises(ValueError, match=r"none\.in is missing"):
        environment.asked_for(Path("none.in"))

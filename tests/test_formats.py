"""A new format is one file and an entry: by these a toy goes through export, gate, a board and the Pi's app."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import board_jobs
import pytest
from conftest import BRIEF, context_of

from pipeline import stages
from pipeline.report.results import versions
from targets import TARGETS, Target, formats
from targets.devices import board_setup, ssh
from targets.devices.job import RESULT, read_result, write_job
from targets.formats import FORMATS

ROOT = Path(__file__).parent.parent

FILE = '''
"""A .tflite behind four letters, without torch but for the export."""

import tempfile
from dataclasses import replace
from pathlib import Path
from targets import tflite_program
from targets.artifact import sha256_of

def export(model, *, path, **options):
    from targets import tflite
    info = tflite.export(model, path=path, **options)
    path.write_bytes(b"TOY!" + path.read_bytes())
    return replace(info, size_bytes=path.stat().st_size, sha256=sha256_of(path))

def load(path, threads):
    content = path.read_bytes() if path.exists() else b""
    if content[:4] != b"TOY!":
        raise ValueError(f"{path} is no toy")
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / "inner"
        inner.write_bytes(content[4:])
        return replace(tflite_program.load(inner, threads), runtime="toy")
'''
ENTRY = """
import toy
FORMATS["toy"] = Format(
    name="toy",
    suffix=".toy",
    precisions={"fp32": FULL},
    converter="targets.tflite",
    converter_s=(5, 5),
    export=toy.export,
    load=toy.load,
    minimum_runtime=lambda path: "1.0",
    layout="NHWC",
    dtype="float32",
    packages=("numpy",),
    board=Board(
        load=toy.load,
        runtimes={"toy": toy.load},
        files=(),
        check="import numpy, toy",
        requirements={"requirements-board.txt": ()},
        by_hand="pip install toy",
    ),
)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """Adds the file and the entry here, and to what a board is given; returns the board's folder."""
    board = board_jobs.runner(tmp_path / "board")
    (board / "toy.py").write_text(FILE)
    with open(board / "targets" / "formats.py", "a") as file:
        file.write(ENTRY)
    monkeypatch.syspath_prepend(str(board))
    here = {**vars(formats), "FORMATS": {}}
    exec(ENTRY, here)
    monkeypatch.setitem(FORMATS, "toy", here["FORMATS"]["toy"])
    monkeypatch.setitem(TARGETS, "toys", Target(name="toys", formats=("toy",), threads=1, driver="ssh"))
    yield board
    sys.modules.pop("toy")


class Board:
    """This machine behind the runner that is pushed to boards."""

    name = "toys@board"

    def __init__(self, folder: Path):
        self.folder, self.description = folder, {"device": "toy board", "emulated": None}

    def python(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "HOME": str(self.folder.parent)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, job, folder, progress):
        write_job(job, folder)
        self.python("-m", "targets.devices.board", str(folder), "me")
        return read_result(folder / RESULT, job)


@pytest.mark.slow
def test_one_file_and_an_entry_make_a_format(toy, run_copy, tmp_path, monkeypatch):
    board = Board(toy)
    monkeypatch.setattr(stages, "connect", lambda target, device, say, format: board)
    budget = tmp_path / "mine.toml"
    budget.write_text("top1_share_min = 0.9\nparity_psnr_db_min = 80\nsize_mb_max = 9\n[toy]\nprecisions = ['fp32']")
    context, _ = context_of(run_copy)
    assert stages.run_deploying(context, "toys", budget=budget, protocol=BRIEF, device="toys@board") == "pass"
    report = json.loads((run_copy / "report.json").read_text())
    dense, pruned = (a for a in report["artifacts"] if a["target"] == "toys")
    assert (dense["format"], pruned["file"]) == ("toy", "artifacts/toys/pruned-fp32.toy")
    assert pruned["runtime"].startswith("toy ")
    checks = {check["name"]: check["verdict"] for check in pruned["checks"]}
    assert checks["golden"] == checks["golden_on_device"] == "pass"
    assert "numpy" in versions()


def test_boards_and_the_app_on_them_know_it_by_the_same_entry(toy, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={toy} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert "toy" in board_setup._formats(str(python), ssh._checks())
    shutil.copy(ROOT / "targets" / "manifest.py", toy / "targets")
    shutil.copy(ROOT / "targets" / "picture.py", toy / "targets")
    shutil.copytree(ROOT / "apps" / "raspberry-pi" / "classifier", toy / "classifier")
    found = Board(toy).python("-c", "from classifier import model; print(*model.RUNTIMES)")
    assert found.split() == ["ai-edge-litert", "tflite-runtime", "executorch", "toy"]


def test_names_of_formats_and_targets_need_no_torch():
    """A board has none, and a wrong option should be refused at once."""
    code = "import sys, targets, targets.devices.drivers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

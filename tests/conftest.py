"""What many tests need: a small data set of generated images, and a run that takes seconds.

Several processes may share the tests (pytest -n 2): what takes long is made by one of them, in a folder of all.
"""

import fcntl
import hashlib
import io
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import bad_server
import numpy as np
import pytest
import torch
from PIL import Image

from dap import PruneConfig
from pipeline import presets, stages
from pipeline.config import RunConfig, TrainConfig
from pipeline.context import Context
from pipeline.data import transfer
from pipeline.report import figures
from pipeline.runs import Run
from targets import artifact, coreml, executorch, latency, tflite
from targets.artifact import ExportInfo
from targets.devices import measure
from targets.latency import Protocol

# Models of the tests are too small for more. Threads that wait spin: where other work has the cores, that is ten times
# the seconds. Programs that tests start have as many threads as they like, and wait quietly.
torch.set_num_threads(1)
os.environ["OMP_WAIT_POLICY"] = "passive"
# A shell starts its background jobs with Ctrl-C ignored, and programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

EMPTY_SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>\n'
BRIEF = Protocol(name="brief", seconds=0.3, min_samples=20, warmup=2, cooldown_s=0.0)


def make_image_folder(folder: Path, train: int = 16, val: int = 6) -> Path:
    """Three classes told apart by the direction of their stripes; {train,val}/<class>/<n>.png of 64x64 pixels."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for split, count in (("train", train), ("val", val)):
        for name, wave in (("across", y), ("along", x), ("slanted", x + y)):
            (folder / split / name).mkdir(parents=True)
            for n in range(count):
                stripes = 127 + 90 * np.sin(wave * draw.uniform(0.3, 0.8) + draw.uniform(0, 6))
                image = stripes[..., None] + draw.normal(0, 12, (64, 64, 3))
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / split / name / f"{n}.png")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """Indexes of the tests do not belong into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all processes of this test run have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def once(folder: Path) -> Iterator[bool]:
    """Whether a folder is still to be made; while one process makes it, others wait."""
    made = folder.with_suffix(".made")
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not made.exists()
        made.touch()


@pytest.fixture(scope="session")
def image_folder(shared: Path) -> Path:
    with once(folder := shared / "stripes") as missing:
        if missing:
            make_image_folder(folder)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    """A server on 127.0.0.1 that can misbehave; whoever downloads from it does not wait long."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(transfer, "TIMEOUT_S", 5.0)
    with bad_server.running() as server:
        yield server


def tiny_config(image_folder: Path, **changes) -> RunConfig:
    """A complete run on the generated images: 3 steps an epoch, a checkpoint after every step."""
    recipe = TrainConfig(epochs=2, batch_size=16, lr=1e-3, checkpoint_seconds=0.0)
    config = replace(
        presets.digits(0.5),
        dataset=f"folder:{image_folder}",
        pruning=PruneConfig(sparsity=0.5),
        dense=replace(recipe, epochs=1),
        prune=replace(recipe, epochs=3, schedule="constant", mixup=0.2, drop_path=0.1),
        finetune=recipe,
    )
    return replace(config, **changes)


def context_of(folder: Path, config=None, progress=lambda *_: None) -> tuple[Context, list[str]]:
    """A run to work on, and what it says."""
    said: list[str] = []
    run = Run.create(folder, config) if config else Run.open(folder)
    return Context(run, progress, said.append), said


@contextmanager
def at_ease(shared: Path) -> Iterator[None]:
    """For deployments of which neither converters nor this machine's rest is what is tested.

    A model that was converted before, with the same settings, is copied. No latency is invalid because other work
    disturbed it: test_targets_latency.py has what is. Few photographs go from end to end. And the report's figures,
    more than half of a deployment's seconds, are empty ones, and the one with the most labels is not drawn at all:
    test_report.py has full ones, and so has `finished`.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in (tflite, executorch, coreml):
            patch.setattr(module, "convert", _converted_once(shared / "exports", module.convert))
        patch.setattr(latency, "SPREAD_MAX", math.inf)
        patch.setattr(measure, "PHOTOGRAPHS", latency.LEAST_PHOTOGRAPHS)
        patch.setattr(figures, "to_svg", lambda figure, name: EMPTY_SVG)
        patch.setattr(figures, "architecture", lambda *_: None)
        yield


def _converted_once(folder: Path, convert: Callable[..., ExportInfo]) -> Callable[..., ExportInfo]:
    def copied(function: Callable[..., Any], path: Path, *arguments: Any, noise: str) -> ExportInfo:
        described = io.BytesIO()
        torch.save((f"{function.__module__}.{function.__name__}", arguments), described)
        kept = folder / hashlib.sha256(described.getvalue()).hexdigest()
        if not kept.exists():
            info = convert(function, path, *arguments, noise=noise)
            with artifact.replacing(kept) as partial:
                partial.mkdir()
                _copy(path, partial / "artifact")
                torch.save(replace(info, path=Path()), partial / "info")
        else:
            with artifact.replacing(path) as partial:
                _copy(kept / "artifact", partial)
        return replace(torch.load(kept / "info", weights_only=False), path=path)

    return copied


def _copy(source: Path, to: Path) -> None:
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, to)


@pytest.fixture(scope="session")
def one_format(shared: Path) -> Path:
    """A budget under which a deployment takes seconds."""
    path = shared / "budget.toml"
    limits = "top1_share_min = 0.5\nparity_psnr_db_min = 80\nlatency_p50_ms_max = 1000\n"
    with once(path):
        path.write_text(f"{limits}[tflite]\nprecisions = ['fp32']\n")
    return path


@pytest.fixture(scope="session")
def finished(image_folder: Path, one_format: Path, shared: Path) -> tuple[Path, str]:
    """A whole run and its verdict; nobody changes it."""
    folder, verdict = shared / "whole", shared / "verdict"
    with once(folder) as missing:
        if missing:
            context, _ = context_of(folder, tiny_config(image_folder))
            stages.run_training(context)
            with at_ease(shared):
                verdict.write_text(stages.run_deploying(context, "host", budget=one_format, protocol=BRIEF))
            stages.report(context)
    return folder, verdict.read_text()


@pytest.fixture
def run_copy(finished: tuple[Path, str], shared: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, to be deployed anew."""
    with at_ease(shared):
        yield Path(shutil.copytree(finished[0], tmp_path / "copy"))

"""What many tests need: a small data set of generated images, and a run that takes seconds."""

import shutil
from dataclasses import replace
from pathlib import Path

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
from pipeline.runs import Run
from targets.latency import Protocol

torch.set_num_threads(2)

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
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images") / "stripes")


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


@pytest.fixture(scope="session")
def one_format(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A budget under which a deployment takes seconds."""
    path = tmp_path_factory.mktemp("budgets") / "budget.toml"
    limits = "top1_share_min = 0.5\nparity_psnr_db_min = 80\nlatency_p50_ms_max = 1000\n"
    path.write_text(f"{limits}[tflite]\nprecisions = ['fp32']\n")
    return path


@pytest.fixture(scope="session")
def finished(image_folder: Path, one_format: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole run and its verdict; nobody changes it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    context, _ = context_of(folder, tiny_config(image_folder))
    stages.run_training(context)
    return folder, stages.run_deploying(context, "host", budget=one_format, protocol=BRIEF)


@pytest.fixture
def run_copy(finished: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))

"""What many tests need: a small data set of generated images, and a run that takes seconds."""

from dataclasses import replace
from pathlib import Path

import bad_server
import numpy as np
import pytest
import torch
from PIL import Image

from dap import PruneConfig
from pipeline import presets, transfer
from pipeline.config import RunConfig
from pipeline.train import TrainConfig

torch.set_num_threads(2)


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

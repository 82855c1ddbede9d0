"""A run's folder for the hub: its model, its labels, its card."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import tiny_config

from dap import load_compact
from pipeline import hub_folder
from pipeline.presets import digits
from pipeline.runs import Run

pytestmark = pytest.mark.slow


def test_the_folder_is_the_runs_small_model(run_copy: Path) -> None:
    out = hub_folder.prepare(Run.open(run_copy))
    model: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        assert torch.equal(model(images), load_compact(run_copy / "model")(images))
    report = json.loads((run_copy / "report.json").read_text())
    assert model.pretrained_cfg["label_names"] == json.loads((run_copy / "model/labels.json").read_text())
    card = (out / "README.md").read_text()
    assert card.startswith("---\ntags:")
    for value in (f"{report['params']:,}", f"{report['params_dense']:,}", f"{report['top1']:.2f}", "| host, "):
        assert value in card
    assert str(run_copy) not in card and "None" not in card


def test_a_run_without_a_small_model_is_refused(run_copy: Path, tmp_path: Path, image_folder: Path) -> None:
    with pytest.raises(ValueError, match="Finish `make prune` first"):
        hub_folder.prepare(Run.create(tmp_path / "new", tiny_config(image_folder)))


@pytest.mark.parametrize(
    ("changes", "licence", "said"),
    [
        ({}, "apache-2.0", "licence: apache-2.0"),
        ({"model": "vit_base_patch16_224.mae"}, "cc-by-nc-4.0", "licence: cc-by-nc-4.0"),
        ({"from_scratch": True}, None, "from random weights"),
        ({"model_path": "/home/me/weights.safetensors"}, None, "- **Pretrained weights:** weights.safetensors; state"),
        ({"model_path": "hf-hub:someone/vit"}, None, "`hf-hub:someone/vit`; its licence"),
        ({"model": "facebook/deit-tiny-patch16-224"}, None, "not noted; look it up"),
        ({"dataset": "imagenet"}, "apache-2.0", "non-commercial research"),
        ({"dataset": "folder:/home/me/photos"}, "apache-2.0", "- **Data:** photos; say whose it is"),
    ],
)
def test_the_card_says_what_is_known_of_licences(changes: Any, licence: str | None, said: str, run_copy: Path) -> None:
    config = replace(digits(0.75), **changes)
    assert hub_folder.licence_of(config) == licence
    card = hub_folder.card(json.loads((run_copy / "report.json").read_text()), config, licence)
    assert said in card and "/home/me" not in card
    assert f"license: {licence or 'other'}\n" in card

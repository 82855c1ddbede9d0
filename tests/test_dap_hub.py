"""The folder for the hub, through timm itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from dap_models import OTHERS, batches, logits, tiny_vit, train

import dap.hub
from dap.config import PruneConfig
from dap.describe import architecture_of
from dap.pruner import Pruner

LABELS = ["ant", "bee", "cat", "dog", "elk"]


def small(which: Any = "inner", **changes: Any) -> Any:
    model = tiny_vit(**changes)
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.75,
                            "crop_mode": "center", "interpolation": "bicubic"}  # fmt: skip
    pruner = Pruner(model, PruneConfig(sparsity=0.6, gates=which), steps_per_epoch=4, epochs=1)
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.01), batches(4))
    return pruner.finalize().eval()


def saved(model: Any, folder: Path, **options: Any) -> str:
    dap.hub.save_for_hub(model, folder, labels=LABELS, licence="apache-2.0", card="# a card\n", **options)
    return f"local-dir:{folder}"


@pytest.mark.parametrize("which", ["inner", "heads", "all"])
@pytest.mark.parametrize("changes", [{}, {"distilled": True}, *OTHERS.values()])
def test_timm_loads_the_folder(changes: dict[str, Any], which: str, tmp_path: Path) -> None:
    model = small(which, **changes)
    loaded: Any = timm.create_model(saved(model, tmp_path), pretrained=True)
    assert torch.equal(logits(loaded), logits(model))
    assert architecture_of(loaded) == architecture_of(model)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_the_config_is_as_the_hub_has_it(tmp_path: Path) -> None:
    name = saved(small(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "dap_compact"
    assert config["label_names"] == LABELS
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    model: Any = timm.create_model(name, pretrained=True)
    assert model.pretrained_cfg["label_names"] == LABELS
    view = timm.data.resolve_model_data_config(model)
    assert (view["input_size"], view["mean"], view["crop_pct"]) == ([3, 16, 16], [0.1, 0.2, 0.3], 0.75)
    assert (tmp_path / "README.md").read_text() == "# a card\n"


def test_without_pretrained_weights_it_begins_at_random(tmp_path: Path) -> None:
    model = small("all")
    fresh: Any = timm.create_model(saved(model, tmp_path))
    assert fresh.training
    out = fresh(batches(1)[0][0])
    assert out.isfinite().all()
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in fresh.parameters())
    assert not torch.equal(logits(fresh), logits(model))


def test_a_new_head_and_another_image_size(tmp_path: Path) -> None:
    name = saved(small(), tmp_path)
    other: Any = timm.create_model(name, pretrained=True, num_classes=3, img_size=24)
    assert other.eval()(torch.randn(2, 3, 24, 24)).shape == (2, 3)
    features: Any = timm.create_model(name, pretrained=True, num_classes=0)
    assert features.eval()(torch.randn(2, 3, 16, 16)).shape == (2, 24)
    maps = timm.create_model(name, pretrained=True, features_only=True, out_indices=(-1,))
    assert maps(torch.randn(2, 3, 16, 16))[0].shape == (2, 24, 4, 4)


def test_timm_writes_the_folder_again(tmp_path: Path) -> None:
    """As timm.models.push_to_hf_hub does, before it uploads."""
    model: Any = timm.create_model(saved(small(), tmp_path / "ours"), pretrained=True)
    timm.models.save_for_hf(model, str(tmp_path / "timm"), safe_serialization=True)
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert torch.equal(logits(again), logits(model))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not one model"):
        timm.create_model("dap_compact")
    with pytest.raises(ValueError, match="description"):
        timm.create_model("dap_compact", description={"format": 9})
    with pytest.raises(ValueError, match="4 labels for a model of 5 classes"):
        dap.hub.save_for_hub(tiny_vit(), tmp_path, labels=LABELS[1:], card="")
    assert not any(tmp_path.iterdir())
    name = saved(small(), tmp_path)
    for changes in ({"in_chans": 1}, {"global_pool": "avg"}, {"drop_path_rate": 0.1}):
        with pytest.raises(ValueError, match="cannot be asked of it"):
            timm.create_model(name, pretrained=True, **changes)

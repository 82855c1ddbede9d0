"""`make pretrain`: weights, their card, and going on after an interruption."""

from safetensors.torch import load_file

from pipeline import presets
from pipeline.model_names import MICRO
from pipeline.models import create_model
from pipeline.train.pretrain import pretrain


def test_pretraining_leaves_weights_that_load_and_a_card(image_folder, tmp_path):
    config = presets.pretraining(f"folder:{image_folder}", model=MICRO, init=None, epochs=2, lr=1e-3, seed=0)
    steps = []
    card = pretrain(config, tmp_path / "run", tmp_path / "w.safetensors", lambda *step: steps.append(step[1]))
    assert steps == [1, 2]
    weights = load_file(tmp_path / "w.safetensors")
    assert weights["head.weight"].shape == (3, 96)
    assert str(weights["norm.weight"].dtype) == f"torch.{card['precision']}"
    create_model(MICRO, 10, weights=tmp_path / "w.safetensors")
    text = (tmp_path / "w.md").read_text()
    assert f"top-1 {card['top1']:.2f} % on the validation images" in text
    assert "2 epochs from random weights" in text
    assert str(tmp_path) not in text  # cards are published: no paths of this machine

    again = pretrain(config, tmp_path / "run", tmp_path / "again.safetensors", lambda *step: steps.append(step[1]))
    assert steps == [1, 2]  # nothing was trained again
    assert again == card

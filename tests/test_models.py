"""Where weights come from: the repository, a file, the hub, and what is said when they cannot be had."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed

from dap import PruneConfig
from pipeline import model_names, models, presets
from pipeline.data.view import View
from pipeline.errors import EnvironmentLacks, short
from pipeline.model_names import DINO_SMALL, MICRO
from pipeline.models import MICRO_WEIGHTS, create_model, load_weights, set_drop_path

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in load_file(MICRO_WEIGHTS).items()}


def test_the_embedded_weights_are_small_and_whole(weights):
    assert MICRO_WEIGHTS.stat().st_size < 4_000_000
    model = create_model(MICRO, 123)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=0)


def test_a_new_head_keeps_the_body(weights):
    model = create_model(MICRO, 10)
    assert model.head.weight.shape == (10, 96)
    torch.testing.assert_close(model.blocks[3].mlp.fc1.weight, weights["blocks.3.mlp.fc1.weight"])


def test_random_weights_only_when_asked_for(weights):
    torch.manual_seed(0)
    model = create_model(MICRO, 10, from_scratch=True)
    assert not torch.equal(model.blocks[3].mlp.fc1.weight, weights["blocks.3.mlp.fc1.weight"])


def test_registered_as_timm_registers_its_own():
    model = timm.create_model(MICRO, pretrained=True, num_classes=7)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 64, 64)
    assert MICRO in timm.list_models("deit_micro*")


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown\. Known: .*deit_micro_patch8_64.*deit_tiny_patch16_224"):
        create_model("deit_nano", 10)


def test_other_architectures_are_refused_by_name():
    with pytest.raises(ValueError, match="is a ResNet"):
        create_model("resnet18", 10, from_scratch=True)


def test_a_file_of_weights(tmp_path, weights):
    save_file({key: value + 1 for key, value in weights.items()}, tmp_path / "w.safetensors")
    model = create_model(MICRO, 10, weights=tmp_path / "w.safetensors")
    torch.testing.assert_close(model.norm.weight, weights["norm.weight"] + 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "norm.weight"}, "lacks norm.weight"),
        (lambda w: {**w, "extra": torch.ones(1)}, "has unknown extra"),
        (lambda w: {**w, "norm.weight": torch.ones(7)}, r"norm.weight is \(7,\), the model has \(96,\)"),
        (lambda w: {**w, "norm.weight": torch.full((96,), float("nan"))}, "not finite in norm.weight"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, weights, spoil, message):
    save_file(spoil(weights), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=message):
        load_weights(create_model(MICRO, 10, from_scratch=True), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("theirs", "mine", "message"),
    [
        ("deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "has dist_token, head_dist.weight: .*a distilled"),
        ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "lacks dist_token, head_dist.weight: .*a plain"),
    ],
)
def test_distilled_and_plain_weights_are_told_apart(tmp_path, theirs, mine, message):
    save_file(timm.create_model(theirs).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=message):
        create_model(mine, 10, weights=tmp_path / "w.safetensors")


def test_weights_that_cannot_be_converted_are_refused(tmp_path, weights):
    """timm reshapes position embeddings of another size, and fails over one of another kind."""
    save_file({**weights, "pos_embed": torch.zeros(7)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not fit this MODEL"):
        load_weights(create_model(MICRO, 10, from_scratch=True), tmp_path / "w.safetensors")


def test_what_the_hub_says_is_not_cut_within_a_word():
    told = short(OSError("word " * 200))
    assert len(told) <= 300
    assert told.endswith("word ...")


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        create_model(MICRO, 10, weights=tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(MICRO_WEIGHTS.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as weights"):
        create_model(MICRO, 10, weights=tmp_path / "cut.safetensors")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_never_run(tmp_path):
    torch.save({"norm.weight": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        create_model(MICRO, 10, weights=tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_drop_path_grows_with_depth():
    model = create_model(MICRO, 10, from_scratch=True)
    set_drop_path(model, 0.1)
    assert isinstance(model.blocks[0].drop_path1, torch.nn.Identity)
    assert model.blocks[11].drop_path2.drop_prob == pytest.approx(0.1)


def test_a_download_that_breaks_off_is_no_defect(monkeypatch):
    """What the library below the hub's client raises is no OSError."""
    build = timm.create_model

    def breaks_off(name, *, pretrained, **options):
        if pretrained:
            raise HTTPError("peer closed connection")
        return build(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", breaks_off)
    with pytest.raises(EnvironmentLacks, match=r"could not be fetched \(peer closed connection\)"):
        create_model("deit_tiny_patch16_224", 10)


def test_model_names_are_models():
    assert {MICRO, "deit_small_patch16_224", "vit_tiny_patch16_224"} <= set(model_names.known())


# images of another size


def test_weights_are_resampled_to_another_size(tmp_path):
    usual = timm.create_model(DINO_SMALL, num_classes=0, img_size=28)
    save_file(usual.state_dict(), tmp_path / "weights.safetensors")
    model = create_model(DINO_SMALL, 10, img_size=112, weights=tmp_path / "weights.safetensors")
    assert View.of(model).size == 112 and model.pos_embed.shape == (1, 65, 384)
    assert torch.equal(model.blocks[3].attn.qkv.weight, usual.blocks[3].attn.qkv.weight)
    expected = resample_abs_pos_embed(usual.pos_embed.detach(), [8, 8])
    torch.testing.assert_close(model.pos_embed.detach(), expected)


@pytest.mark.parametrize("size", [8, 32, 96])
def test_the_models_own_weights_are_resampled_too(weights, size):
    model = create_model(MICRO, 10, img_size=size)
    expected = resample_abs_pos_embed(weights["pos_embed"].half(), [size // 8] * 2).float()  # as stored
    torch.testing.assert_close(model.pos_embed.detach(), expected)
    torch.testing.assert_close(model.blocks[3].mlp.fc1.weight, weights["blocks.3.mlp.fc1.weight"])
    assert model.eval()(torch.zeros(1, 3, size, size)).shape == (1, 10)
    assert View.of(model) == replace(View.of(create_model(MICRO, 10)), size=size)


def test_the_crop_stays_that_of_the_weights():
    view = View.of(models.shell_of("deit_tiny_patch16_224", 10, img_size=160))
    assert (view.size, view.crop_ratio) == (160, 0.9)


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("deit_tiny_patch16_224", 150, "144 or 160"),
        (DINO_SMALL, 224 + 1, "224 or 238"),
        (MICRO, 5, "8"),
        (MICRO, 0, "8"),
        (MICRO, -64, "8"),
    ],
)
def test_a_size_that_is_no_multiple_of_the_patch_is_refused(name, size, nearest):
    patch = model_names.patch_of(name)
    message = rf"IMG_SIZE={size} is no multiple of the model's patch of {patch} pixels: take {nearest}$"
    with pytest.raises(ValueError, match=message):
        replace(presets.digits(0.5), model=name, img_size=size)
    if size > patch:
        with pytest.raises(ValueError, match=message):
            create_model(name, 10, img_size=size, from_scratch=True)


def test_a_patch_is_what_the_name_says():
    for name in model_names.known():
        if "_patch" in name and "large" not in name and "base" not in name:
            assert timm.create_model(name, depth=1).patch_embed.patch_size == (model_names.patch_of(name),) * 2, name


def test_a_runs_name_says_the_size_if_it_was_given():
    config = presets.digits(0.5)
    assert presets.run_name(config) == f"digits-{MICRO}-dap-0.5-seed0"
    assert presets.run_name(replace(config, img_size=32)) == f"digits-{MICRO}-32px-dap-0.5-seed0"


def test_a_run_of_whole_heads_has_a_name_of_its_own_and_a_method_that_can():
    config = replace(presets.digits(0.5), pruning=PruneConfig(sparsity=0.5, gates="heads"))
    assert presets.run_name(config) == f"digits-{MICRO}-dap-heads-0.5-seed0"
    with pytest.raises(ValueError, match="HEADS=1 is for METHOD=dap, uniform, taylor, magnitude; savit decides"):
        presets.with_method(config, "savit")

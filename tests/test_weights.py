"""Checkpoints as people have them: wrapped, prefixed, under other libraries' names; and what is said of the rest."""

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from timm.models.deit import VisionTransformerDistilled

from dap.compact import compact
from dap.gates import branches_of
from pipeline import weight_files, weight_layouts
from pipeline.models import create_model, load_weights

SIZES: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5
}  # fmt: skip


def vit(seed: int = 0, kind: type[VisionTransformer] = VisionTransformer, **changes: Any) -> VisionTransformer:
    """A small ViT in which no two weights are alike, in eval mode."""
    torch.manual_seed(seed)
    model = kind(**{**SIZES, **changes}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def assert_loaded(path: Path, of: VisionTransformer, into: VisionTransformer | None = None) -> None:
    model = into or vit(seed=1)
    load_weights(model, path)
    for (name, value), expected in zip(model.state_dict().items(), of.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


# from a file to tensors


@pytest.mark.parametrize("name", weight_files.WRAPPERS)
def test_the_weights_in_a_trainings_checkpoint_are_found(tmp_path, name):
    torch.save({"epoch": 3, name: vit().state_dict(), "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
               tmp_path / "w.pth")  # fmt: skip
    assert_loaded(tmp_path / "w.pth", vit())


def test_wrapped_twice_and_averaged_weights_before_others(tmp_path):
    both = {"model": vit(2).state_dict(), "model_ema": {"state_dict": vit().state_dict()}, "state_dict_ema": None}
    torch.save(both, tmp_path / "w.pt")
    assert_loaded(tmp_path / "w.pt", vit())


@pytest.mark.parametrize(
    "prefix",
    [*weight_files.PREFIXES, "module.backbone.", "_orig_mod.module.", "model.model.", "model.backbone.module."],
)
def test_what_wrappers_put_in_front_of_every_name_goes(tmp_path, prefix):
    save_file({prefix + name: value for name, value in vit().state_dict().items()}, tmp_path / "w.safetensors")
    assert_loaded(tmp_path / "w.safetensors", vit())


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    state = {f"model.{name}": value for name, value in vit().state_dict().items()}
    save_file({**state, "criterion.weight": torch.ones(5)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"lacks blocks\.0\.attn\..*its names are like .*model\."):
        load_weights(vit(1), tmp_path / "w.safetensors")


def test_heads_of_self_supervision_beside_a_backbone_go(tmp_path):
    """As DINO and DINOv2 save what they train: DINOv2 has its layers in groups, too."""
    body = {name: value for name, value in vit().state_dict().items() if not name.startswith("head")}
    heads = {"head.mlp.0.weight": torch.ones(3), "head.last_layer.weight_v": torch.ones(3)}
    ours = {**{f"backbone.{name}": value for name, value in body.items()}, **heads}
    torch.save({"student": {}, "teacher": ours}, tmp_path / "dino.pth")
    grouped = {name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.0.1."): value
               for name, value in body.items()}  # fmt: skip
    ours = {f"backbone.{name}": value for name, value in {**grouped, "mask_token": torch.ones(1, 48)}.items()}
    torch.save({"teacher": {**ours, "dino_head.mlp.0.weight": torch.ones(3)}}, tmp_path / "dinov2.pth")
    for file in ("dino.pth", "dinov2.pth"):
        model = vit(1)
        head = model.head.weight.clone()
        load_weights(model, tmp_path / file)
        assert torch.equal(model.blocks[1].mlp.fc2.weight, vit().blocks[1].mlp.fc2.weight)
        assert torch.equal(model.head.weight, head)


def test_a_plain_head_beside_a_backbone_stays(tmp_path):
    state = {
        name if name.startswith("head") else f"backbone.{name}": value for name, value in vit().state_dict().items()
    }
    torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}}, tmp_path / "lightning.ckpt")
    assert_loaded(tmp_path / "lightning.ckpt", vit())


def test_arguments_of_a_training_do_no_harm(tmp_path):
    torch.save({"model": vit().state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    assert_loaded(tmp_path / "w.pth", vit())


class Other:
    """A class that nobody has allowed."""


@pytest.mark.parametrize(
    ("beside", "what"),
    [(Other(), r"test_weights\.Other"), (np.float64(0.5), r"numpy"), (vit(), r"timm\.models\.vision_transformer")],
    ids=["a class", "a number of NumPy's", "a whole model"],
)
def test_what_would_have_to_be_made_to_be_read_is_named(tmp_path, beside, what):
    torch.save({"model": vit().state_dict(), "best": beside}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=rf"cannot be read as weights: beside tensors it holds .*{what}.*state_dict alone"
    ):
        load_weights(vit(1), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"state": {}, "param_groups": []}, "the entries state, param_groups"),
        ({"model": {}}, "the entries ,|the entries "),
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
    ],
)
def test_a_checkpoint_without_weights_says_what_it_has(tmp_path, content, what):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"holds no weights: it has ({what})"):
        load_weights(vit(1), tmp_path / "w.pth")


def test_files_of_other_programs_are_named(tmp_path):
    for suffix, what in weight_files.FOREIGN.items():
        (tmp_path / f"w{suffix}").write_bytes(b"x")
        with pytest.raises(ValueError, match=f"is {what}; weights are read from"):
            load_weights(vit(1), tmp_path / f"w{suffix}")


@pytest.mark.parametrize("name", [*weight_files.PREFERRED, "epoch_9.pth", "last.ckpt"])
def test_the_weights_of_a_folder(tmp_path, name):
    (save_file if name.endswith(".safetensors") else torch.save)(vit().state_dict(), tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    assert_loaded(tmp_path, vit())
    if name in weight_files.PREFERRED:
        torch.save(vit(2).state_dict(), tmp_path / "optimizer.pt")
        assert_loaded(tmp_path, vit())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "is a folder with no weights file: name one, such as .*model.safetensors"),
        (["a.pth", "b.pth"], r"is a folder with several weights files \(a.pth, b.pth\)"),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], r"several parts \(model.safetensors.in"),
    ],
)
def test_a_folder_that_does_not_say_which(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        load_weights(vit(1), tmp_path)


# from other libraries' names to timm's


def of_transformers(name: str, **changes: Any) -> Any:
    """A model of the transformers package of the same sizes, in eval mode, in which no two weights are alike."""
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, name)
    config = kind.config_class(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8,
                               num_labels=5, layer_norm_eps=1e-6, **changes)  # fmt: skip
    model = kind(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


INSTALLED = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
HIDDEN = {"intermediate_size": 192}
TO_TIMM: dict[str, tuple[dict[str, Any], Callable[[], VisionTransformer]]] = {
    "ViTForImageClassification": (HIDDEN, vit),
    "ViTModel": (HIDDEN, vit),
    "DeiTForImageClassificationWithTeacher": (HIDDEN, lambda: vit(kind=VisionTransformerDistilled)),
    "DeiTForImageClassification": (HIDDEN, lambda: vit(kind=VisionTransformerDistilled)),
    "Dinov2Model": ({"mlp_ratio": 4}, lambda: vit(init_values=0.1)),
    "Dinov2ForImageClassification": ({"mlp_ratio": 4}, lambda: vit(init_values=0.1)),
    "Dinov2WithRegistersModel": ({"mlp_ratio": 4}, lambda: vit(init_values=0.1, reg_tokens=4, no_embed_class=True)),
}


@INSTALLED
@pytest.mark.parametrize("form", ["folder", "state_dict"])
@pytest.mark.parametrize("name", TO_TIMM)
def test_a_model_of_transformers_computes_the_same_in_timm(tmp_path, name, form):
    """save_pretrained writes the names of older versions; a state_dict of version 5 has others."""
    changes, build = TO_TIMM[name]
    theirs, ours = of_transformers(name, **changes), build()
    if form == "folder":
        theirs.save_pretrained(tmp_path)
        load_weights(ours, tmp_path)
    else:
        torch.save(theirs.state_dict(), tmp_path / "w.pth")
        load_weights(ours, tmp_path / "w.pth")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        if name in ("ViTForImageClassification", "DeiTForImageClassificationWithTeacher"):
            expected, found = theirs(images).logits, ours(images)
        else:
            body = getattr(theirs, theirs.base_model_prefix, theirs)
            expected, found = body(images).last_hidden_state, ours.forward_features(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names as transformers' ViT has them in its files."""
    dim, found = state["cls_token"].shape[-1], {}
    for name, value in state.items():
        for ours, theirs in (
            ("cls_token", "vit.embeddings.cls_token"), ("pos_embed", "vit.embeddings.position_embeddings"),
            ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."), ("head.", "classifier."),
            ("blocks.", "vit.encoder.layer."), (".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after."),
            (".attn.proj.", ".attention.output.dense."), (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        name = f"vit.layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        if ".attn.qkv." in name:
            for part, which in zip(value.split(dim), ("query", "key", "value"), strict=True):
                found[name.replace(".attn.qkv.", f".attention.attention.{which}.")] = part.clone()
        else:
            found[name] = value
    return found


def test_weights_under_transformers_names_are_timms(tmp_path):
    model = timm.create_model("deit_tiny_patch16_224", depth=2, img_size=32)
    state = renamed(model.state_dict())
    assert "vit.encoder.layer.1.attention.attention.key.bias" in state
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    other = timm.create_model("deit_tiny_patch16_224", depth=2, img_size=32)
    load_weights(other, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other.eval()(images), model.eval()(images), rtol=0, atol=0)


def test_q_k_and_v_have_to_be_complete(tmp_path):
    state = renamed(vit().state_dict())
    save_file({name: value for name, value in state.items() if "0.attention.attention.key" not in name},
              tmp_path / "w.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match=r"lacks blocks\.0\.attn\.qkv\.bias, blocks\.0\.attn\.qkv\.weight"):
        load_weights(vit(1), tmp_path / "w.safetensors")


def test_openais_clip_is_read_as_timm_reads_it(tmp_path):
    """Its image tower alone; what is of the text goes."""
    model = vit(pre_norm=True)
    state = {"logit_scale": torch.ones(1), "token_embedding.weight": torch.ones(3, 48),
             "transformer.resblocks.0.ln_1.weight": torch.ones(48), "visual.proj": model.head.weight.T}  # fmt: skip
    for name, value in model.state_dict().items():
        for ours, theirs in (
            ("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks."),
            ("norm1", "ln_1"), ("norm2", "ln_2"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("cls_token", "class_embedding"),
            ("pos_embed", "positional_embedding"),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        name = f"ln_post.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        value = value.flatten(0, -2) if name == "positional_embedding" else value
        if not name.startswith("head"):
            state[f"visual.{name}"] = value.flatten() if name == "class_embedding" else value
    torch.save(state, tmp_path / "w.pt")
    loaded = vit(1, pre_norm=True)
    load_weights(loaded, tmp_path / "w.pt")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.forward_features(images), model.forward_features(images), rtol=0, atol=0)


def test_deit3s_own_layer_scale(tmp_path):
    model = vit(init_values=0.1)
    state = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
             for name, value in model.state_dict().items()}  # fmt: skip
    save_file(state, tmp_path / "w.safetensors")
    assert_loaded(tmp_path / "w.safetensors", model, vit(1, init_values=0.1))


# other sizes


def test_positions_of_another_image_size_are_resampled(tmp_path):
    larger = vit(img_size=64)
    save_file(larger.state_dict(), tmp_path / "w.safetensors")
    model = vit(1)
    load_weights(model, tmp_path / "w.safetensors")
    expected = resample_abs_pos_embed(larger.pos_embed.detach(), [4, 4])
    torch.testing.assert_close(model.pos_embed.detach(), expected)


def test_images_that_were_not_square_are_refused(tmp_path):
    save_file({**vit().state_dict(), "pos_embed": torch.zeros(1, 1 + 3 * 7, 48)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="positions of 22 tokens, which is no square grid of patches"):
        load_weights(vit(1), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("theirs", "mine", "told"),
    [
        ("deit_small_patch16_224", "deit_tiny_patch16_224", "deit_small_patch16_224"),
        ("vit_small_patch16_384", "vit_tiny_patch16_224", "vit_small_patch16_384"),
        ("vit_small_patch32_224", "vit_small_patch16_224", "vit_small_patch32_224"),
        ("vit_small_patch14_dinov2", "deit_small_patch16_224", "vit_small_patch14_dinov2"),
        ("vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"),
        ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2"),
        ("deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"),
        ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"),
        ("deit3_small_patch16_224", "deit_small_patch16_224", "deit3_small_patch16_224"),
    ],
)
def test_the_model_that_fits_is_told(tmp_path, theirs, mine, told):
    save_file(timm.create_model(theirs).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=f"; MODEL={told} would fit$"):
        create_model(mine, 10, weights=tmp_path / "w.safetensors")


def test_the_model_that_fits_is_told_of_transformers_weights_too(tmp_path):
    save_file(renamed(timm.create_model("vit_small_patch16_224").state_dict()), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"is \(384,.* MODEL=deit_small_patch16_224 would fit$"):
        create_model("deit_tiny_patch16_224", 10, weights=tmp_path / "w.safetensors")


def test_positions_of_another_rank_are_told(tmp_path):
    save_file({**vit().state_dict(), "pos_embed": torch.zeros(17, 48)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        load_weights(vit(1), tmp_path / "w.safetensors")


# what is refused is named


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("resnet18", "a ResNet"),
        ("convnext_atto", "a ConvNeXt"),
        ("swin_tiny_patch4_window7_224", "a Swin Transformer"),
        ("beit_base_patch16_224", "a BEiT"),
        ("vit_small_patch16_dinov3", "a DINOv3"),
        ("mobilenetv3_small_050", "a convolutional network"),
    ],
)
def test_other_models_are_called_by_their_name(name, what):
    with torch.device("meta"):
        assert weight_layouts.seen(timm.create_model(name).state_dict()).startswith(f"it looks like {what}")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["class_token", "encoder.layers.encoder_layer_0.ln_1.weight", "heads.head.weight"], "a torchvision ViT"),
        (["visual.conv1.weight", "token_embedding.weight", "logit_scale"], "a CLIP model with a text tower"),
        (["text_model.embeddings.position_embedding.weight", "vision_model.x"], "a CLIP model with a text tower"),
        (["vision_model.embeddings.class_embedding"], "the image tower of a Hugging Face CLIP"),
        (["cls_token", "blocks.0.attn.qkv.weight", "decoder_blocks.0.attn.qkv.weight"], "a masked autoencoder"),
        (["base_model.blocks.0.attn.qkv.lora_A.default.weight"], "LoRA adapters"),
        (["layers.0.self_attn.q_proj.weight", "embed_tokens.weight"], "a language model"),
    ],
)
def test_a_refused_file_says_what_it_looks_like(tmp_path, names, what):
    save_file({name: torch.ones(1) for name in names}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=f"(does not fit:|lacks|has unknown) .*; it looks like {what}"):
        load_weights(vit(1), tmp_path / "w.safetensors")


def test_names_that_nobody_knows_are_shown(tmp_path):
    save_file({f"{letter}.weight": torch.ones(1) for letter in "abcd"}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"its names are like a\.weight, b\.weight, c\.weight \.\.\.$"):
        load_weights(vit(1), tmp_path / "w.safetensors")


def test_a_small_model_is_told_from_another_model(tmp_path):
    dense = vit()
    kept = [{"width": torch.arange(width)} for width in (16, 100, 9, 192)]
    save_file(compact(dense, branches_of(dense), kept).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="it looks like a model that was pruned already"):
        load_weights(vit(1), tmp_path / "w.safetensors")

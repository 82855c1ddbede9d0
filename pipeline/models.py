"""Where a pretrained DeiT comes from: the embedded one, the hub, or a file."""

from math import isqrt
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from timm.layers import DropPath
from timm.models import VisionTransformer, generate_default_cfgs, register_model
from timm.models.deit import _create_deit
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from pipeline import hub, weight_files, weight_layouts
from pipeline.errors import EnvironmentLacks, short
from pipeline.model_names import MICRO, PRUNABLE, WIDTHS, check_name, check_size, patch_of, registered
from pipeline.weight_files import State

MICRO_WEIGHTS = Path(__file__).parent / "weights" / f"{MICRO}.safetensors"

default_cfgs = generate_default_cfgs(
    {
        # Pretrained by `make pretrain`; model card beside the weights.
        f"{MICRO}.objects": {
            "file": str(MICRO_WEIGHTS),
            "num_classes": 123,
            "input_size": (3, 64, 64),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
    }
)


@register_model
def deit_micro_patch8_64(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """DeiT of width 96 for 64x64 images: patch 8, 12 layers, 3 heads, 1.4 M parameters.

    Registered the way timm registers its own DeiTs; small enough to prune on two CPU cores.
    """
    arguments = dict(img_size=64, patch_size=8, embed_dim=96, depth=12, num_heads=3)
    return _create_deit(MICRO, pretrained=pretrained, **dict(arguments, **kwargs))


def shell_of(name: str, num_classes: int, *, img_size: int | None = None, **options: Any) -> nn.Module:
    """The model of a name with random weights; other modules ask here, so that ours is registered.

    img_size: height and width of its images, pixels; None: the model's own
    options: of the model's function in timm, such as depth
    Raises ValueError for a name whose weights timm doesn't know, and for an image that is no whole number of patches.
    """
    base, dot, tag = name.partition(".")
    if dot and name not in (known := timm.list_pretrained(f"{base}.*")):
        raise ValueError(f"MODEL={name}: timm knows no weights {tag!r} of {base}. Known: {', '.join(known) or 'none'}")
    model = timm.create_model(name, pretrained=False, num_classes=num_classes, img_size=img_size, **options)
    if img_size is not None and isinstance(model, VisionTransformer):
        for patch in model.patch_embed.patch_size:
            check_size(img_size, patch)
    return model


def create_model(
    name: str,
    num_classes: int,
    *,
    img_size: int | None = None,
    weights: str | Path | None = None,
    from_scratch: bool = False,
) -> VisionTransformer:
    """A timm DeiT or ViT with a new head of `num_classes` outputs.

    name:         any timm DeiT/ViT model name
    img_size:     height and width of its images, pixels, to which pretrained position embeddings are resampled;
                  None: the model's own
    weights:      a file or folder, as load_weights takes it, or hub.SOURCE and a repository's name;
                  None: the model's own pretrained weights
    from_scratch: random weights, only when asked for
    Raises ValueError for an unknown name, a size or a file that does not fit, EnvironmentLacks when the weights
    would have to be downloaded and cannot be.
    """
    check_name(name)
    shell = shell_of(name, num_classes, img_size=img_size)
    if not isinstance(shell, VisionTransformer):
        raise ValueError(f"MODEL={name} is a {type(shell).__name__}; only DeiT and plain ViT can be pruned")
    if from_scratch:
        return shell
    if weights is not None:
        load_weights(shell, hub.fetched(weights, name) if hub.is_source(weights) else Path(weights))
        return shell
    try:
        model = timm.create_model(name, pretrained=True, num_classes=num_classes, img_size=img_size)
    except SafetensorError as error:
        raise ValueError(f"the pretrained weights of {name} are damaged ({error}). {_ways_out(name)}") from error
    except (OSError, RuntimeError, HTTPError) as error:  # what the hub's client raises, and timm without a source
        raise EnvironmentLacks(
            f"the pretrained weights of {name} could not be fetched ({short(error)}). {_ways_out(name)}"
        ) from error
    assert isinstance(model, VisionTransformer)
    return model


def licence_of(name: str) -> str | None:
    """Of a model's own pretrained weights, as timm notes it; None: it notes none."""
    noted = timm.models.get_pretrained_cfg(name)
    return noted.license if noted else None


def load_weights(model: VisionTransformer, path: Path) -> None:
    """Load a checkpoint into `model`; a head of another size is left out, anything else must fit.

    path: a file or folder, of which weight_files says what is read;  its names are timm's, or those that
    weight_layouts knows. The position embedding is resampled to the model's grid.
    Raises ValueError naming the file and what is wrong with it. Never unpickles arbitrary objects.
    """
    raw = weight_files.read(path)
    state, own = weight_layouts.to_timm(raw), model.state_dict()
    _check_kind(model, path, state)
    try:
        found = checkpoint_filter_fn(dict(state), model, adapt_layer_scale=True)
    except Exception as error:  # it reshapes what it finds, and fails in any way where that is not as expected
        what = f"does not fit this MODEL ({short(error)})"
        raise ValueError(f"MODEL_PATH={path} {what}; {_instead(model, state, raw)}") from error
    head = {f"{name}.{part}" for name in ("head", "head_dist") for part in ("weight", "bias")} & own.keys()
    found = {key: value for key, value in found.items() if key not in head or value.shape == own[key].shape}
    missing = sorted(own.keys() - found.keys() - head)
    unexpected = sorted(found.keys() - own.keys())
    misfits = [f"{key} is {tuple(found[key].shape)}, the model has {tuple(own[key].shape)}"
               for key in sorted(found.keys() & own.keys()) if found[key].shape != own[key].shape]  # fmt: skip
    for what, names in (("does not fit:", misfits), ("lacks", missing), ("has unknown", unexpected)):
        if names:
            raise ValueError(f"MODEL_PATH={path} {what} {weight_files.some(names)}; {_instead(model, state, raw)}")
    bad = [key for key, value in found.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"MODEL_PATH={path} holds numbers that are not finite in {bad[0]}")
    model.load_state_dict(found, strict=False)


def _check_kind(model: VisionTransformer, path: Path, state: State) -> None:
    """Raises ValueError for what timm would bend until it fits, or would only tell by the names that are left over."""
    own = model.state_dict()
    if ("dist_token" in state) != ("dist_token" in own) and "cls_token" in state:
        theirs, of = ("has", "a distilled DeiT") if "dist_token" in state else ("lacks", "a plain DeiT or ViT")
        names = ", ".join(sorted({"dist_token", "head_dist.weight"} & (state.keys() ^ own.keys())))
        raise ValueError(f"MODEL_PATH={path} {theirs} {names}: it is of {of}; {_instead(model, state, state)}")
    patch = state.get("patch_embed.proj.weight")
    size = tuple(model.patch_embed.patch_size)
    if patch is not None and patch.ndim == 4 and tuple(patch.shape[2:]) != size:
        theirs, mine = ("x".join(map(str, one)) for one in (patch.shape[2:], size))
        raise ValueError(
            f"MODEL_PATH={path} is of a model with patches of {theirs} pixels, MODEL has {mine}; "
            f"{_instead(model, state, state)}"
        )
    positions = state.get("pos_embed")
    if positions is not None and positions.ndim == 3:
        counts = [positions.shape[1] - prefix for prefix in (0, 1, 2, model.num_prefix_tokens)]
        if not any(count > 0 and isqrt(count) ** 2 == count for count in counts):
            raise ValueError(
                f"MODEL_PATH={path} has positions of {positions.shape[1]} tokens, which is no square grid of patches: "
                "it was trained on images that are not square, and those are not supported"
            )


def _instead(model: VisionTransformer, state: State, raw: State) -> str:
    """What to take for weights that do not fit, or what they look like; the rest of a sentence.

    state: the weights under timm's names;  raw: under their own
    """
    tried = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or ""
    name = _fitting(state, like=tried)
    return f"MODEL={name} would fit" if name and name != tried else weight_layouts.seen(raw)


def _fitting(state: State, like: str) -> str | None:
    """The known model that has the names and sizes of these weights; None if there is none.

    like: the name that was tried; of several, one of its family, at the weights' own image size, is told
    """
    patch = state.get("patch_embed.proj.weight")
    if patch is None or patch.ndim != 4 or (word := WIDTHS.get(patch.shape[0])) is None:
        return None
    names = [
        name
        for name, kind in registered().items()
        if kind in PRUNABLE and f"_{word}_" in name and patch_of(name) == patch.shape[-1]
    ]
    fitting = []
    for name in names:
        with torch.device("meta"):
            own = shell_of(name, 0).state_dict()
        if "pos_embed" in own and _body(own) == _body(state):
            resampled = state["pos_embed"].shape != own["pos_embed"].shape
            fitting.append((name.split("_")[0] != like.split("_")[0], resampled, len(name), name))
    return min(fitting)[-1] if fitting else None


def _body(state: State) -> dict[str, torch.Size]:
    """Sizes of what a ViT has whatever its image size and classes; DINOv2's own names become timm's."""
    body = {name.replace("register_tokens", "reg_token"): value.shape for name, value in state.items()}
    return {name: shape for name, shape in body.items() if not name.startswith(("head", "pos_embed", "mask_token"))}


def _ways_out(name: str) -> str:
    source = timm.get_pretrained_cfg(name)
    where = f" (hub repository {source.hf_hub_id}, file model.safetensors)" if source and source.hf_hub_id else ""
    return (
        f"Either go online once and repeat the command, or download the weights elsewhere{where} and pass "
        "MODEL_PATH=file.safetensors. To begin from random weights on purpose, pass --from-scratch"
    )


def set_drop_path(model: VisionTransformer, rate: float) -> None:
    """Stochastic depth, growing linearly from 0 in the first block to `rate` in the last, as timm sets it."""
    rates = torch.linspace(0, rate, len(model.blocks)).tolist()
    for block, share in zip(model.blocks, rates, strict=True):
        for name in ("drop_path1", "drop_path2"):
            if getattr(block, name) is not None:  # a branch that has been pruned away leaves None
                setattr(block, name, DropPath(share) if share else torch.nn.Identity())

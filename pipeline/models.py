"""Where a pretrained DeiT comes from: the embedded one, the hub, or a file."""

import textwrap
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.layers import DropPath
from timm.models import VisionTransformer, generate_default_cfgs, register_model
from timm.models.deit import _create_deit
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from pipeline.errors import EnvironmentLacks
from pipeline.model_names import MICRO, check_name, check_size

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
    Raises ValueError for an image that is no whole number of patches.
    """
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
    weights: Path | None = None,
    from_scratch: bool = False,
) -> VisionTransformer:
    """A timm DeiT or ViT with a new head of `num_classes` outputs.

    name:         any timm DeiT/ViT model name
    img_size:     height and width of its images, pixels, to which pretrained position embeddings are resampled;
                  None: the model's own
    weights:      a .safetensors (or weights-only .pth) file; None: the model's own pretrained weights
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
        load_weights(shell, weights)
        return shell
    try:
        model = timm.create_model(name, pretrained=True, num_classes=num_classes, img_size=img_size)
    except SafetensorError as error:
        raise ValueError(f"the pretrained weights of {name} are damaged ({error}). {_ways_out(name)}") from error
    except (OSError, RuntimeError) as error:  # what hub clients raise when offline, and timm without a source
        raise EnvironmentLacks(
            f"the pretrained weights of {name} could not be fetched ({short(error)}). {_ways_out(name)}"
        ) from error
    assert isinstance(model, VisionTransformer)
    return model


def load_weights(model: VisionTransformer, path: Path) -> None:
    """Load a state dict into `model`; a head of another size is left out, anything else must fit.

    Raises ValueError naming the file and what is wrong with it. Never unpickles arbitrary objects.
    """
    if not path.is_file():
        raise ValueError(f"MODEL_PATH={path}: there is no such file")
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for a damaged file
        raise ValueError(f"MODEL_PATH={path} cannot be read as weights: {short(error)}") from error
    own = model.state_dict()
    if distilled := sorted({"dist_token", "head_dist.weight"} & (state.keys() ^ own.keys())):
        theirs, of = ("has", "a distilled DeiT") if distilled[0] in state else ("lacks", "a plain DeiT or ViT")
        raise ValueError(f"MODEL_PATH={path} {theirs} {', '.join(distilled)}: it is of {of}. Take another MODEL")
    try:
        state = checkpoint_filter_fn(state, model)
    except Exception as error:  # it reshapes what it finds, and fails in any way where that is not as expected
        raise ValueError(
            f"MODEL_PATH={path} does not fit this MODEL ({short(error)}); it begins with {', '.join(list(state)[:3])}"
        ) from error
    head = {f"{name}.{part}" for name in ("head", "head_dist") for part in ("weight", "bias")} & own.keys()
    state = {key: value for key, value in state.items() if key not in head or value.shape == own[key].shape}
    missing = sorted(own.keys() - state.keys() - head)
    unexpected = sorted(state.keys() - own.keys())
    misfits = [f"{key} is {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
               for key in sorted(state.keys() & own.keys()) if state[key].shape != own[key].shape]  # fmt: skip
    for what, names in (("lacks", missing), ("has unknown", unexpected), ("does not fit:", misfits)):
        if names:
            raise ValueError(f"MODEL_PATH={path} {what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}. "
                             "Is it the checkpoint of another MODEL?")  # fmt: skip
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"MODEL_PATH={path} holds numbers that are not finite in {bad[0]}")
    model.load_state_dict(state, strict=False)


def _ways_out(name: str) -> str:
    source = timm.get_pretrained_cfg(name)
    where = f" (hub repository {source.hf_hub_id}, file model.safetensors)" if source and source.hf_hub_id else ""
    return (
        f"Either go online once and repeat the command, or download the weights elsewhere{where} and pass "
        "MODEL_PATH=file.safetensors. To begin from random weights on purpose, pass --from-scratch"
    )


def short(error: Exception) -> str:
    """The first line that an error has to say, cut between words if it is long."""
    return textwrap.shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 300, placeholder=" ...")


def set_drop_path(model: VisionTransformer, rate: float) -> None:
    """Stochastic depth, growing linearly from 0 in the first block to `rate` in the last, as timm sets it."""
    rates = torch.linspace(0, rate, len(model.blocks)).tolist()
    for block, share in zip(model.blocks, rates, strict=True):
        for name in ("drop_path1", "drop_path2"):
            if getattr(block, name) is not None:  # a branch that has been pruned away leaves None
                setattr(block, name, DropPath(share) if share else torch.nn.Identity())

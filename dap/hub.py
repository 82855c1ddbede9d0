"""The small model as timm has its own: a folder in the layout of Hugging Face's hub, which timm.create_model loads.

    import dap.hub  # registers dap_compact
    model = timm.create_model("local-dir:runs/demo/hub", pretrained=True)  # or "hf-hub:USER/NAME"

config.json names the model function dap_compact and gives it the model's Architecture as argument.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from dap.architecture import Architecture, from_json
from dap.compact import build, serialised, write
from dap.skeleton import skeleton

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"


@register_model
def dap_compact(pretrained: bool = False, *, description: Any = None, **options: Any) -> VisionTransformer:
    """A small (or dense) model by its description, for timm.create_model.

    description: Architecture.to_json(), which the folder's config.json has among its model_args
    options:     of timm's build_model_with_cfg; num_classes and img_size may differ from the description's
    Raises ValueError for a description that is missing or wrong, and for other changes to it.
    """
    if description is None:
        raise ValueError(
            "dap_compact is not one model: give the folder of one, timm.create_model('local-dir:PATH', pretrained=True)"
        )
    model: VisionTransformer = build_model_with_cfg(
        _built,
        "dap_compact",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,  # resamples the position embedding
        architecture=from_json(description, "model_args.description"),
        feature_cfg={"feature_cls": "getter"},
        **options,
    )
    return model


def _built(architecture: Architecture, **changes: Any) -> VisionTransformer:
    """The model with random weights, in training mode.

    changes: what the caller of timm has set, and what timm finds in pretrained_cfg, if it is the same
    """
    args = architecture.args
    if isinstance(size := changes.pop("img_size", args.img_size), int):
        size = (size, size)
    architecture = replace(
        architecture,
        args=replace(args, img_size=tuple(size), num_classes=changes.pop("num_classes", args.num_classes)),
    )
    for name, value in changes.items():
        if getattr(args, name, None) != value:
            raise ValueError(f"a compact model is what it is: {name}={value!r} cannot be asked of it")
    from_json(architecture.to_json(), "the model that was asked for")
    weights = {name: torch.empty(value.shape) for name, value in skeleton(architecture).state_dict().items()}
    model = build(architecture, weights).train()
    model.init_weights()
    return model


def save_for_hub(
    model: nn.Module, folder: str | Path, *, labels: Sequence[str] = (), licence: str | None = None, card: str
) -> None:
    """Write config.json, model.safetensors and README.md; no file is ever half written.

    labels:  names of the classes, in order
    licence: of the weights, as the hub abbreviates it ("apache-2.0")
    card:    the README's text
    Raises ValueError if the model could not be read again, or if labels don't fit its head.
    """
    folder = Path(folder)
    architecture, weights = serialised(model)
    args = architecture.args
    if labels and len(labels) != args.num_classes:
        raise ValueError(f"{len(labels)} labels for a model of {args.num_classes} classes")
    distilled = architecture.kind == "VisionTransformerDistilled"
    view = {name: value for name, value in vars(architecture.pretrained_cfg).items() if value is not None}
    pretrained_cfg = {
        "input_size": (args.in_chans, *args.img_size),
        "fixed_input_size": True,
        "num_classes": args.num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": ("head", "head_dist") if distilled else "head",
        **view,
        **({} if licence is None else {"license": licence}),
    }
    config = {
        "architecture": dap_compact.__name__,
        "num_classes": args.num_classes,
        "num_features": args.embed_dim,
        **({"label_names": list(labels)} if labels else {}),
        "model_args": {"description": architecture.to_json()},
        "pretrained_cfg": pretrained_cfg,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / WEIGHTS_FILE, weights)
    write(folder / CONFIG_FILE, (json.dumps(config, indent=1) + "\n").encode())
    write(folder / CARD_FILE, card.encode())

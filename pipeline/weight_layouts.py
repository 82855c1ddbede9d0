"""Whose names a checkpoint's tensors have: Hugging Face's become timm's, and others are told apart to be refused.

Key: D width, N patches, F hidden units.
"""

import re
from collections.abc import Iterable

import torch

from pipeline.weight_files import State, some

HUGGING_FACE = re.compile(r"^((?:vit|deit|dinov2|dinov2_with_registers)\.)?embeddings\.cls_token$")
"""the name that tells transformers' ViT, DeiT and DINOv2, and what stands in front of their names but the heads'"""

# In this order: attention's output before the MLP's. Files have the first of two names, models of transformers 5 in
# memory the second.
_RENAMED = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^embeddings\.cls_token", "cls_token"),
        (r"^embeddings\.distillation_token", "dist_token"),
        (r"^embeddings\.register_tokens", "register_tokens"),
        (r"^embeddings\.mask_token", "mask_token"),
        (r"^embeddings\.position_embeddings", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
        (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
        (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
        (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"^layernorm\.", "norm."),
        (r"^(?:cls_)?classifier\.", "head."),
        (r"^distillation_classifier\.", "head_dist."),
    )
]

ROTARY = "a DINOv3, or another ViT with rotary positions"
FOREIGN = [
    (re.compile(pattern), what)
    for pattern, what in (
        (r"lora_[AB]\.", "LoRA adapters: merge them into their model first"),
        (r"encoder\.layers\.encoder_layer_0\.", "a torchvision ViT"),
        (
            r"^(text_model|text|transformer\.resblocks|token_embedding)\b|^logit_scale$",
            "a CLIP model with a text tower",
        ),
        (r"^vision_model\.", "the image tower of a Hugging Face CLIP or SigLIP"),
        (r"^layers\.\d+\.blocks\..*relative_position", "a Swin Transformer"),
        (r"relative_position_bias|rel_pos", "a BEiT, or another ViT with relative positions"),
        (r"^decoder_(blocks|embed)|^decoder\.", "a masked autoencoder with its decoder"),
        (r"(^|[._])rope|^layer\.\d+\.attention\.", ROTARY),
        (r"^(stages|downsample_layers)\.\d+\.", "a ConvNeXt, or another model in stages"),
        (r"^layer1\.0\.conv1\.weight", "a ResNet"),
        (r"running_mean$", "a convolutional network"),
        (r"embed_tokens\.|word_embeddings\.|\bwte\.", "a language model"),
    )
]
"""what no ViT of timm has in its names -> what has; the first that is found is told"""


def to_timm(state: State) -> State:
    """The same weights under timm's names, if they are of transformers' ViT, DeiT or DINOv2; others as they are.

    q, k and v, (D, D) each, become one (3 D, D). The pooler goes. DINOv2's own training saves its layers in groups.
    """
    found = next((match for name in state if (match := HUGGING_FACE.match(name))), None)
    if found is None:
        return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in state.items()}
    named = {_renamed(name.removeprefix(found[1] or "")): value for name, value in state.items()}
    joined: State = {}
    for name, value in named.items():
        part = re.fullmatch(r"(blocks\.\d+\.attn\.)([qkv])(\.\w+)", name)
        if part is None:
            if not name.startswith("pooler."):
                joined[name] = value
            continue
        parts = [named.get(f"{part[1]}{which}{part[3]}") for which in "qkv"]
        if part[2] == "q" and all(one is not None for one in parts):
            joined[f"{part[1]}qkv{part[3]}"] = torch.cat([one for one in parts if one is not None])
    if "register_tokens" in joined:
        joined.setdefault("mask_token", joined["cls_token"])  # by which timm knows a DINOv2; it is left out
    return joined


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def seen(state: State) -> str:
    """What a checkpoint that no ViT of timm fits looks like, to end a sentence with."""
    for pattern, what in FOREIGN:
        if any(pattern.search(name) for name in state):
            return f"it looks like {what}"
    if "patch_embed.proj.weight" in state and "pos_embed" not in state:
        return f"it looks like {ROTARY}"
    if was_pruned(state):
        return "it looks like a model that was pruned already"
    return f"its names are like {some(list(state))}"


def was_pruned(state: State) -> bool:
    """Whether its layers have timm's names, and different widths."""
    return any(len(_rows(state, part)) > 1 for part in ("attn.qkv", "mlp.fc1"))


def _rows(state: State, part: str) -> set[int]:
    """Numbers of outputs that a layer's part has in the layers."""
    names: Iterable[str] = (name for name in state if re.fullmatch(rf"blocks\.\d+\.{re.escape(part)}\.weight", name))
    return {state[name].shape[0] for name in names}

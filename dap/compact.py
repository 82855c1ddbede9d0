"""From a masked model to a small dense one, and that model on disk. Exact: in eval mode it computes the same logits.

Key: D width, H heads, K head width, F hidden units, I kept inputs, O kept outputs.

The small model is timm's VisionTransformer with timm's own blocks at per-block sizes. Where that is not enough:
- a block that has lost a branch is a PrunedBlock, timm's Block with that branch left out;
- where a branch reads or writes some channels only, `norm1` / `norm2` end in a Select and `ls1` / `ls2` in a Scatter:
  norms see all channels, as in training.
A branch that is gone has been a constant; it is added to what comes before it on the residual stream. The attention
scale of the dense head, K^-0.5, is folded into the weights of q. Only narrow(), which takes channels from the whole
residual stream, changes what is computed.

On disk: architecture.json (sizes, self-sufficient) and weights.safetensors. Works for dense models too.
"""

import hashlib
import json
import os
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dap.gates import Branch, check_supported

FORMAT = 1
ARCHITECTURE_FILE = "architecture.json"
WEIGHTS_FILE = "weights.safetensors"
CLASSES: dict[str, type[VisionTransformer]] = {
    "VisionTransformer": VisionTransformer,
    "VisionTransformerDistilled": VisionTransformerDistilled,
}


class Select(nn.Module):
    """Read a fixed set of channels: (..., D) -> (..., I)."""

    index: Tensor

    def __init__(self, index: list[int]) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(index, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D)."""
        return x.index_select(-1, self.index)


class Scatter(nn.Module):
    """Write a fixed set of channels: (..., O) -> (..., D); the others are 0."""

    index: Tensor

    def __init__(self, index: list[int], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", torch.tensor(index, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., O)."""
        return x.new_zeros((*x.shape[:-1], self.dim)).index_copy(-1, self.index, x)


class PrunedBlock(Block):
    """timm's Block with a branch left out: its norm, body, scale and drop path are None."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x: (B, N, D)."""
        if self.attn is not None:
            x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        if self.mlp is not None:
            x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x


# the masked model -> sizes and weights -> the small model


def compact(model: VisionTransformer, branches: list[Branch], kept: list[dict[str, Tensor]]) -> VisionTransformer:
    """The small model of a hard-masked one, on its device and in its mode.

    branches: of the model;  kept: per branch and gate ("in", "heads", "width", "out") the sorted indices of the kept
    elements; a missing gate keeps everything. The masks must be in the model's weights already, as 0 and 1. A branch
    with an empty gate goes; where outputs are gated, they must be empty too, so that it has written nothing.
    """
    architecture = architecture_of(model)
    weights = {
        name: value.detach().clone() for name, value in model.state_dict().items() if not name.startswith("blocks.")
    }
    living: tuple[str, Branch] | None = None  # place and branch of the last one that stays
    for number, (branch, indices) in enumerate(zip(branches, kept, strict=True)):
        layer, kind = architecture["blocks"][number // 2], branch.shape.kind
        sizes: dict[str, Any] = layer[kind]
        if any(len(index) == 0 for index in indices.values()):
            layer[kind] = None
            assert "out" not in indices or len(indices["out"]) == 0, f"{branch.name} is gone but still writes"
            _fold(_constant(branch), model, weights, living)
            continue
        dim = branch.shape.dim
        for gate in {"heads", "width"} & indices.keys():
            sizes[gate] = len(indices[gate])
        for gate in ("in", "out"):
            sizes[gate] = indices[gate].tolist() if len(indices.get(gate, range(dim))) < dim else None
        place = f"blocks.{number // 2}.%s" + ("1" if kind == "attn" else "2")
        _cut(branch, indices, sizes, f"blocks.{number // 2}.", weights)
        living = (place, branch)
    return build(architecture, weights).train(model.training)


@torch.no_grad()
def _cut(
    branch: Branch, indices: dict[str, Tensor], sizes: dict[str, Any], prefix: str, weights: dict[str, Tensor]
) -> None:
    """Write the kept weights of one living branch under the names they have in the small model."""
    device = branch.into.weight.device
    shape = branch.shape
    lengths = {"in": shape.dim, "heads": shape.heads, "width": shape.width, "out": shape.dim}
    inputs, heads, width, outputs = (indices.get(gate, torch.arange(n)).to(device) for gate, n in lengths.items())
    into, out_of = branch.into, branch.out_of
    if shape.kind == "attn":
        side, body, first, last = "1", "attn", "qkv", "proj"
        columns = (heads[:, None] * shape.width + width).flatten()
        rows = (torch.arange(3, device=device)[:, None] * shape.heads * shape.width + columns).flatten()
        # softmax(q k^T scale): the small attention scales by its own width, the difference goes into q
        scale = torch.ones(len(rows), dtype=into.weight.dtype, device=device)
        scale[: len(columns)] = branch.body.scale * len(width) ** 0.5
    else:
        side, body, first, last = "2", "mlp", "fc1", "fc2"
        rows = columns = width
        scale = torch.ones(len(rows), dtype=into.weight.dtype, device=device)
    norm = f"{prefix}norm{side}" + ("" if sizes["in"] is None else ".norm")
    weights[f"{norm}.weight"] = branch.norm.weight.clone()
    weights[f"{norm}.bias"] = branch.norm.bias.clone()
    weights[f"{prefix}{body}.{first}.weight"] = into.weight[rows][:, inputs] * scale[:, None]
    if into.bias is not None:
        weights[f"{prefix}{body}.{first}.bias"] = into.bias[rows] * scale
    weights[f"{prefix}{body}.{last}.weight"] = out_of.weight[outputs][:, columns].clone()
    weights[f"{prefix}{body}.{last}.bias"] = out_of.bias[outputs].clone()
    if branch.gamma is not None:
        gamma = f"{prefix}ls{side}" + ("" if sizes["out"] is None else ".scale")
        weights[f"{gamma}.gamma"] = branch.gamma[outputs].clone()


@torch.no_grad()
def _constant(branch: Branch) -> Tensor:
    """(D,) what a branch with an empty gate adds to every token.

    Without inputs all tokens have the same value vector, so that attention returns it; without inner units or outputs
    the masked weights make the same formula come out as the last layer's (masked) bias.
    """
    inner: Tensor | None = branch.into.bias
    if branch.shape.kind == "attn":
        inner = None if inner is None else inner[2 * len(inner) // 3 :]
    else:
        inner = branch.body.act(inner)
    constant = branch.out_of.bias.clone()
    if inner is not None:
        constant += branch.out_of.weight @ inner
    return constant if branch.gamma is None else constant * branch.gamma


@torch.no_grad()
def _fold(
    constant: Tensor,
    model: VisionTransformer,
    weights: dict[str, Tensor],
    living: tuple[str, Branch] | None,
) -> None:
    """Add a (D,) constant to the residual stream: to the last living branch before it, or to the embeddings."""
    if not constant.any():
        return
    if living is None:
        if isinstance(model.norm_pre, nn.LayerNorm):
            names = ["norm_pre.bias"]
        elif model.no_embed_class:  # then the position embedding covers the patches only
            names = ["pos_embed", *(n for n in ("cls_token", "reg_token", "dist_token") if n in weights)]
        else:
            names = ["pos_embed"]
        for name in names:
            weights[name] += constant
        return
    place, branch = living
    last = place.rpartition(".")[0] + (".attn.proj" if branch.shape.kind == "attn" else ".mlp.fc2")
    if branch.gamma is not None:
        gamma = weights[place % "ls" + ".gamma"]
        # A channel whose scale is 0 writes nothing: let it write the constant alone.
        silent = gamma == 0
        weights[f"{last}.weight"][silent] = 0.0
        weights[f"{last}.bias"][silent] = 0.0
        gamma[silent] = 1.0
        constant = constant / gamma
    weights[f"{last}.bias"] += constant


def narrow(model: VisionTransformer, channels: Tensor) -> VisionTransformer:
    """The model with a narrower residual stream, on its device and in its mode.

    channels: sorted indices of the channels that stay, out of D. Norms then run over these alone, so that the result
    computes something else than the model with the other channels masked. Branches must read and write all channels.
    """
    architecture = architecture_of(model)
    architecture["args"]["embed_dim"] = len(channels)
    weights = {}
    for name, value in model.state_dict().items():
        if name.endswith(("qkv.weight", "fc1.weight", "head.weight", "head_dist.weight")):
            value = value[:, channels]  # reads the stream
        elif name.endswith(("token", "pos_embed")):
            value = value[..., channels]  # starts it
        elif not name.endswith(("qkv.bias", "fc1.bias", "head.bias", "head_dist.bias")):
            value = value[channels]  # writes to it or normalises it
        weights[name] = value.clone()
    return build(architecture, weights).train(model.training)


def build(architecture: dict[str, Any], weights: dict[str, Tensor]) -> VisionTransformer:
    """The model that architecture.json describes, with these weights, in eval mode.

    Raises ValueError if weights and architecture don't belong together.
    """
    args = architecture["args"]
    norm = partial(LayerNorm, eps=architecture["norm_eps"])
    act = partial(nn.GELU, approximate=architecture["gelu"])
    # built without memory and without drawing random numbers; blocks of the right sizes are put in afterwards
    model = CLASSES[architecture["class"]](
        **{**args, "img_size": tuple(args["img_size"]), "patch_size": tuple(args["patch_size"])},
        depth=0,
        num_heads=1,
        norm_layer=norm,
        act_layer=act,
        weight_init="skip",
        device="meta",
    )
    model.blocks = nn.Sequential(*(_block(args["embed_dim"], layer, norm, act) for layer in architecture["blocks"]))
    model.feature_info = [
        {"module": f"blocks.{i}", "num_chs": args["embed_dim"], "reduction": model.patch_embed.feat_ratio()}
        for i in range(len(model.blocks))
    ]
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f"weights and architecture differ in {len(wrong)} tensors, the first of them {wrong[0]!r}")
    model.load_state_dict(weights, assign=True)
    return model.to(weights["pos_embed"].device).eval()


def _block(dim: int, layer: dict[str, Any], norm_layer: Any, act_layer: Any) -> Block:
    whole = layer["attn"] is not None and layer["mlp"] is not None
    cls = Block if whole else PrunedBlock
    block: Any = cls(dim, num_heads=1, norm_layer=norm_layer, act_layer=act_layer, device="meta")
    for side, kind in (("1", "attn"), ("2", "mlp")):
        sizes = layer[kind]
        parts: dict[str, Any] = {f"norm{side}": None, kind: None, f"ls{side}": None, f"drop_path{side}": None}
        if sizes is not None:
            inputs = dim if sizes["in"] is None else len(sizes["in"])
            outputs = dim if sizes["out"] is None else len(sizes["out"])
            norm: nn.Module = norm_layer(dim, device="meta")
            if sizes["in"] is not None:
                norm = nn.Sequential(OrderedDict(norm=norm, select=Select(sizes["in"])))
            scale: nn.Module = LayerScale(outputs, device="meta") if sizes["layer_scale"] else nn.Identity()
            if sizes["out"] is not None:
                scale = nn.Sequential(OrderedDict(scale=scale, scatter=Scatter(sizes["out"], dim)))
            if kind == "attn":
                body: nn.Module = Attention(
                    inputs,
                    num_heads=sizes["heads"],
                    attn_head_dim=sizes["width"],
                    dim_out=outputs,
                    qkv_bias=sizes["qkv_bias"],
                    attn_drop=sizes["attn_drop"],
                    proj_drop=sizes["drop"],
                    device="meta",
                )
            else:
                body = Mlp(inputs, sizes["width"], outputs, act_layer=act_layer, drop=sizes["drop"], device="meta")
            drop_path = DropPath(sizes["drop_path"]) if sizes["drop_path"] > 0.0 else nn.Identity()
            parts = {f"norm{side}": norm, kind: body, f"ls{side}": scale, f"drop_path{side}": drop_path}
        for name, part in parts.items():
            setattr(block, name, part)
    return cast(Block, block)


def architecture_of(model: nn.Module) -> dict[str, Any]:
    """Everything but the weights of a dense or compact model, as plain JSON types. Raises ValueError if unsupported."""
    vit: Any = check_supported(model)
    return {
        "format": FORMAT,
        "class": type(vit).__name__,
        "args": {
            "img_size": list(vit.patch_embed.img_size),
            "patch_size": list(vit.patch_embed.patch_size),
            "in_chans": vit.patch_embed.proj.in_channels,
            "num_classes": vit.num_classes,
            "embed_dim": vit.embed_dim,
            "no_embed_class": vit.no_embed_class,
            "reg_tokens": vit.num_reg_tokens,
            "pre_norm": not isinstance(vit.norm_pre, nn.Identity),
            "drop_rate": vit.head_drop.p,
            "pos_drop_rate": vit.pos_drop.p,
        },
        "norm_eps": vit.norm.eps,
        "gelu": next((b.mlp.act.approximate for b in vit.blocks if b.mlp is not None), "none"),
        "blocks": [
            {
                "attn": _sizes(block.norm1, block.attn, block.ls1, block.drop_path1),
                "mlp": _sizes(block.norm2, block.mlp, block.ls2, block.drop_path2),
            }
            for block in vit.blocks
        ],
    }


def _sizes(norm: Any, body: Any, scale: Any, drop_path: Any) -> dict[str, Any] | None:
    """One branch in architecture.json; null if it is gone."""
    if body is None:
        return None
    selecting, scattering = isinstance(norm, nn.Sequential), isinstance(scale, nn.Sequential)
    inner_scale = scale.scale if scattering else scale
    sizes: dict[str, Any] = {
        "width": body.head_dim if isinstance(body, Attention) else body.fc1.out_features,
        "in": norm.select.index.tolist() if selecting else None,
        "out": scale.scatter.index.tolist() if scattering else None,
        "layer_scale": isinstance(inner_scale, LayerScale),
        "drop_path": getattr(drop_path, "drop_prob", 0.0),
    }
    if isinstance(body, Attention):
        heads = {"heads": body.num_heads, "qkv_bias": body.qkv.bias is not None, "attn_drop": body.attn_drop.p}
        return {**sizes, **heads, "drop": body.proj_drop.p}
    return {**sizes, "drop": body.drop1.p}


# on disk


def save_compact(model: nn.Module, folder: str | Path) -> None:
    """Write architecture.json and weights.safetensors of a compact or dense model; no file is ever half written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    architecture = architecture_of(model)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # safetensors notices a truncated file but not a changed one
    # one key only: safetensors writes several in random order, and equal models should give equal files
    _write(folder / WEIGHTS_FILE, save(weights, metadata={"sha256": _digest(weights)}))
    _write(folder / ARCHITECTURE_FILE, (json.dumps(architecture, indent=1) + "\n").encode())


def load_compact(folder: str | Path) -> VisionTransformer:
    """The model that save_compact wrote, on the CPU and in eval mode; needs no dense weights.

    Raises ValueError, naming the file, if one is damaged or the two don't belong together, and FileNotFoundError.
    """
    architecture_path, weights_path = Path(folder) / ARCHITECTURE_FILE, Path(folder) / WEIGHTS_FILE
    advice = "write the model again with save_compact"
    try:
        architecture = json.loads(architecture_path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{architecture_path} is damaged ({error}): {advice}") from error
    if not isinstance(architecture, dict) or architecture.get("format") != FORMAT:
        raise ValueError(f"{architecture_path} is not a format {FORMAT} architecture: {advice}")
    if not weights_path.exists():
        raise FileNotFoundError(f"{weights_path} is missing: {advice}")
    try:
        with safe_open(weights_path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is damaged ({error}): {advice}") from error
    if metadata.get("sha256") != _digest(weights):
        raise ValueError(f"{weights_path} is damaged (its checksum is wrong): {advice}")
    try:
        return build(architecture, weights)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{weights_path} does not fit {architecture_path.name} ({error}): {advice}") from error


def _digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that a killed run or a full disk leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

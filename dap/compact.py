"""From a masked model to a small dense one, and that model on disk. Exact: in eval mode it computes the same logits.

Key: D width, H heads, K head width, F hidden units, I kept inputs, O kept outputs.

A branch that is gone has been a constant; it is added to what comes before it on the residual stream. The attention
scale of the dense head, K^-0.5, is folded into the weights of q.

On disk: architecture.json (sizes, self-sufficient) and weights.safetensors. Works for dense models too.
"""

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dap.architecture import Architecture, AttentionSizes, Layer, MlpSizes, from_json, read_architecture
from dap.describe import architecture_of
from dap.gates import Branch
from dap.skeleton import skeleton

ARCHITECTURE_FILE = "architecture.json"
WEIGHTS_FILE = "weights.safetensors"


# the masked model -> sizes and weights -> the small model


def compact(model: VisionTransformer, branches: list[Branch], kept: list[dict[str, Tensor]]) -> VisionTransformer:
    """The small model of a hard-masked one, on its device and in its mode.

    What is frozen stays frozen, and gradients stay checkpointed.

    branches: of the model;  kept: per branch and gate ("in", "heads", "width", "out") the sorted indices of the kept
    elements; a missing gate keeps everything. The masks must be in the model's weights already, as 0 and 1. A branch
    with an empty gate goes; where outputs are gated, they must be empty too, so that it has written nothing.
    """
    dense = architecture_of(model)
    weights = {
        name: value.detach().clone() for name, value in model.state_dict().items() if not name.startswith("blocks.")
    }
    found: list[AttentionSizes | MlpSizes | None] = []
    living: tuple[str, Branch] | None = None  # place and branch of the last one that stays
    for number, (branch, indices) in enumerate(zip(branches, kept, strict=True)):
        if any(len(index) == 0 for index in indices.values()):
            assert "out" not in indices or len(indices["out"]) == 0, f"{branch.name} is gone but still writes"
            found.append(None)
            _fold(_constant(branch), model, weights, living)
            continue
        layer, kind = dense.blocks[number // 2], branch.shape.kind
        sizes = layer.attn if kind == "attn" else layer.mlp
        assert sizes is not None, f"{branch.name} is one of a dense model"
        sizes = _kept_sizes(sizes, indices, branch.shape.dim)
        _cut(branch, indices, sizes, f"blocks.{number // 2}.", weights)
        found.append(sizes)
        living = (f"blocks.{number // 2}.%s" + ("1" if kind == "attn" else "2"), branch)
    layers: Any = zip(found[::2], found[1::2], strict=True)
    architecture = replace(dense, blocks=tuple(Layer(attn=attn, mlp=mlp) for attn, mlp in layers))
    small = build(architecture, weights).train(model.training)
    train_like(small, model)
    return small


def train_like(small: VisionTransformer, model: VisionTransformer) -> None:
    """Give it the settings of training that are in no file: what is frozen, gradient checkpointing, distillation."""
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in small.named_parameters():
        # where channels are selected, norm and scale are a level deeper
        parameter.requires_grad_(trained[re.sub(r"(norm[12])\.norm|(ls[12])\.scale", r"\1\2", name)])
    small.set_grad_checkpointing(model.grad_checkpointing)
    if isinstance(model, VisionTransformerDistilled):
        cast(VisionTransformerDistilled, small).distilled_training = model.distilled_training


def _kept_sizes(dense: AttentionSizes | MlpSizes, indices: dict[str, Tensor], dim: int) -> AttentionSizes | MlpSizes:
    """Sizes of a living branch with these elements kept; where all D channels are, none are named."""
    changes: dict[str, Any] = {gate: len(indices[gate]) for gate in ("heads", "width") if gate in indices}
    for gate, name in (("in", "reads"), ("out", "writes")):
        if len(indices.get(gate, range(dim))) < dim:
            changes[name] = tuple(indices[gate].tolist())
    return replace(dense, **changes)


@torch.no_grad()
def _cut(
    branch: Branch,
    indices: dict[str, Tensor],
    sizes: AttentionSizes | MlpSizes,
    prefix: str,
    weights: dict[str, Tensor],
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
        if shape.gated:  # the halves of a GluMlp's first layer
            rows = torch.cat([width, shape.width + width])
        scale = torch.ones(len(rows), dtype=into.weight.dtype, device=device)
    norm = f"{prefix}norm{side}" + ("" if sizes.reads is None else ".norm")
    weights[f"{norm}.weight"] = branch.norm.weight.clone()
    weights[f"{norm}.bias"] = branch.norm.bias.clone()
    weights[f"{prefix}{body}.{first}.weight"] = into.weight[rows][:, inputs] * scale[:, None]
    if into.bias is not None:
        weights[f"{prefix}{body}.{first}.bias"] = into.bias[rows] * scale
    weights[f"{prefix}{body}.{last}.weight"] = out_of.weight[outputs][:, columns].clone()
    weights[f"{prefix}{body}.{last}.bias"] = out_of.bias[outputs].clone()
    if branch.gamma is not None:
        gamma = f"{prefix}ls{side}" + ("" if sizes.writes is None else ".scale")
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
    elif branch.shape.gated:
        one, other = branch.into.bias.chunk(2)
        inner = one * branch.body.act(other) if branch.body.gate_last else branch.body.act(one) * other
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


def build(architecture: Architecture, weights: dict[str, Tensor]) -> VisionTransformer:
    """The skeleton with these weights, on their device and in eval mode.

    Raises ValueError if weights and architecture don't belong together.
    """
    model = skeleton(architecture)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f"weights and architecture differ in {len(wrong)} tensors, the first of them {wrong[0]!r}")
    model.load_state_dict(weights, assign=True)
    return model.to(weights["pos_embed"].device).eval()


# on disk


def save_compact(model: nn.Module, folder: str | Path) -> None:
    """Write architecture.json and weights.safetensors of a compact or dense model; no file is ever half written.

    Raises ValueError if the model could not be read again.
    """
    folder = Path(folder)
    architecture, weights = serialised(model)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / WEIGHTS_FILE, weights)
    write(folder / ARCHITECTURE_FILE, (json.dumps(architecture.to_json(), indent=1) + "\n").encode())


def serialised(model: nn.Module) -> tuple[Architecture, bytes]:
    """Architecture and weights, as a safetensors file. Raises ValueError if the model could not be read again."""
    architecture = architecture_of(model)
    from_json(architecture.to_json(), "the model")
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    _check_weights(weights, "the model")
    # safetensors notices a truncated file but not a changed one
    # one key only: safetensors writes several in random order, and equal models should give equal files
    return architecture, save(weights, metadata={"sha256": f"{_digest(weights)} {_digest_of_sizes(architecture)}"})


def load_compact(folder: str | Path, device: torch.device | str = "cpu") -> VisionTransformer:
    """The model that save_compact wrote, on this device and in eval mode; needs no dense weights.

    Raises ValueError, naming the file, if one is damaged or the two don't belong together, and FileNotFoundError.
    Weights that safetensors itself has written, without our checksums, are taken as they are.
    """
    architecture_path, weights_path = Path(folder) / ARCHITECTURE_FILE, Path(folder) / WEIGHTS_FILE
    advice = "write the model again with save_compact"
    try:
        architecture = read_architecture(architecture_path)
        weights, noted = _read_weights(weights_path)
        _check_weights(weights, str(weights_path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename} is missing: {advice}") from error
    except ValueError as error:
        raise ValueError(f"{error}: {advice}") from error
    try:
        model = build(architecture, weights)
    except ValueError as error:
        raise ValueError(f"{weights_path} does not fit {architecture_path.name} ({error}): {advice}") from error
    if noted and noted != _digest_of_sizes(architecture):
        raise ValueError(f"{architecture_path} is damaged (its checksum is wrong): {advice}")
    return model.to(device)


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors in a file, and the checksum of the architecture that goes with them; "": none was noted."""
    path.stat()  # raises FileNotFoundError with the file's name, which safetensors' own one lacks
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            noted = (file.metadata() or {}).get("sha256", "")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    of_weights, _, of_architecture = noted.partition(" ")  # the first version noted the weights' alone
    if of_weights and of_weights != _digest(weights):
        raise ValueError(f"{path} is damaged (its checksum is wrong)")
    return weights, of_architecture


def _check_weights(weights: dict[str, Tensor], source: str) -> None:
    """Raise ValueError unless all are finite numbers. source: of the weights, for the message."""
    for name, value in weights.items():
        if not value.is_floating_point():
            raise ValueError(f"{source} holds {name} as {value.dtype}")
        if not value.isfinite().all():
            raise ValueError(f"{source} holds numbers that are not finite in {name}")


def _digest_of_sizes(architecture: Architecture) -> str:
    """SHA-256 of what the file says, however it is laid out."""
    return hashlib.sha256(json.dumps(architecture.to_json(), sort_keys=True).encode()).hexdigest()


def _digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that a killed run or a full disk leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write to a full disk does not say where that was
        raise
    finally:
        temporary.unlink(missing_ok=True)

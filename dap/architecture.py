"""What a small model is, apart from its weights: typed, and as it is written to architecture.json.

Standard library only. from_json is the one door by which a description comes in: what has passed it is complete, of the
right types, in range and consistent with itself. Fields are in the order of the file.

Key: D width of the residual stream, H heads, K head width, F hidden units.
"""

import json
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

FORMAT = 1
MOST_BYTES = 32 * 2**20  # of a file; the indices of a ViT-g with all gates are 1 MB
MOST_LAYERS = 1000

Size = Annotated[int, (1, 100_000)]
Count = Annotated[int, (0, 100_000)]
Share = Annotated[float, (0.0, 1.0)]
Epsilon = Annotated[float, (1e-12, 1.0)]
Crop = Annotated[float, (1e-3, 10.0)]
Level = Annotated[float, (-1000.0, 1000.0)]
Spread = Annotated[float, (1e-6, 1000.0)]
Gelu = Literal["none", "tanh", "quick"]  # exact; approximated by a tanh, as torch does; by a sigmoid, as CLIP does


@dataclass(frozen=True, kw_only=True)
class AttentionSizes:
    """One attention branch."""

    width: Size
    """K."""
    reads: tuple[Count, ...] | None = field(metadata={"key": "in"})
    """Sorted channels of the residual stream that it reads; None: all."""
    writes: tuple[Count, ...] | None = field(metadata={"key": "out"})
    """Sorted channels that it writes; None: all."""
    layer_scale: bool
    """Whether it ends in a LayerScale."""
    drop_path: Share
    """Stochastic depth."""
    heads: Size
    """H."""
    qkv_bias: bool
    """Whether qkv has a bias."""
    attn_drop: Share
    """Dropout of the attention weights."""
    drop: Share
    """Dropout of the output."""


@dataclass(frozen=True, kw_only=True)
class MlpSizes:
    """One MLP branch."""

    width: Size
    """F."""
    reads: tuple[Count, ...] | None = field(metadata={"key": "in"})
    """As of AttentionSizes."""
    writes: tuple[Count, ...] | None = field(metadata={"key": "out"})
    """As of AttentionSizes."""
    layer_scale: bool
    """As of AttentionSizes."""
    drop_path: Share
    """As of AttentionSizes."""
    drop: Share
    """Dropout behind both layers."""
    gelu: Gelu | None = None
    """Approximation of its GELU; None: the model's."""
    gate: Literal["first", "last"] | None = None
    """The half of a first layer of 2 F outputs whose SiLU multiplies the other half; None: F outputs and a GELU."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One transformer layer; a branch that is gone is None."""

    attn: AttentionSizes | None
    """Attention."""
    mlp: MlpSizes | None
    """MLP."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of timm's VisionTransformer that hold for the whole model."""

    img_size: tuple[Size, Size]
    """Height and width of the image, pixels."""
    patch_size: tuple[Size, Size]
    """Height and width of a patch, pixels."""
    in_chans: Size
    """Channels of the image."""
    num_classes: Count
    """Outputs of the head; 0: no head."""
    embed_dim: Size
    """D."""
    no_embed_class: bool
    """Whether the position embedding leaves the leading tokens out."""
    reg_tokens: Count
    """Register tokens."""
    pre_norm: bool
    """Whether there is a norm before the blocks, and no bias in the patch embedding."""
    drop_rate: Share
    """Dropout in front of the head."""
    pos_drop_rate: Share
    """Dropout of the embedded tokens."""
    class_token: bool = True
    """Whether there is a class token."""
    global_pool: Literal["token", "avg", "map"] = "token"
    """What the head reads: the class token, the mean of the tokens, or what attention pools of them."""
    fc_norm: bool = False
    """Whether the last norm is behind the pooling, not in front of it."""
    pool_include_prefix: bool = False
    """Whether class and register tokens are pooled too."""


@dataclass(frozen=True, kw_only=True)
class AttentionPool:
    """Attention pooling: a latent query looks at all tokens, an MLP branch follows. Never pruned."""

    heads: Size
    """H."""
    width: Size
    """F, hidden units of its MLP."""
    qkv_bias: bool
    """Whether q, k and v have a bias."""
    gelu: Gelu | None = None
    """Approximation of its GELU; None: the model's."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How the model wants its images, but for their size: keys of timm's pretrained_cfg, as far as it has them."""

    crop_pct: Crop | None = None
    """Share of the shorter side that the crop keeps; above 1: the image is padded."""
    crop_mode: str | None = None
    """center, squash or border."""
    interpolation: str | None = None
    """Of the resize."""
    mean: tuple[Level, ...] | None = None
    """Per channel, of images scaled to 0..1."""
    std: tuple[Spread, ...] | None = None
    """Per channel, likewise."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything of a dense or small model but its weights."""

    kind: Literal["VisionTransformer", "VisionTransformerDistilled"] = field(metadata={"key": "class"})
    """timm's class."""
    args: Arguments
    """Of the whole model."""
    norm_eps: Epsilon
    """Of the norms in the blocks and behind them."""
    gelu: Gelu
    """Approximation of all GELUs that have none of their own."""
    blocks: tuple[Layer, ...]
    """The layers in order."""
    norm_pre_eps: Epsilon | None = None
    """Of the norm before the blocks; None: the same."""
    pretrained_cfg: Preprocessing = Preprocessing()
    """How the model wants its images."""
    pool: AttentionPool | None = None
    """The attention pooling of global_pool "map"."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types. Fields that have their default are left out."""
        return {"format": FORMAT, **_written(self)}


def from_json(value: Any, source: str) -> Architecture:
    """The inverse of to_json. Raises ValueError, naming source and key, for anything that to_json does not write.

    source: of the value, for the message
    """
    if not isinstance(value, dict) or type(value.get("format")) is not int or value["format"] != FORMAT:
        raise ValueError(f"{source} is not a format {FORMAT} architecture")
    try:
        architecture: Architecture = _read(Architecture, {k: v for k, v in value.items() if k != "format"}, "")
        _check_whole(architecture)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return architecture


def read_architecture(path: Path) -> Architecture:
    """The architecture in a file. Raises ValueError, naming file and key, and FileNotFoundError."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is too long for an architecture, {path.stat().st_size} bytes")
    try:
        value = json.loads(path.read_bytes(), parse_constant=_no_number, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return from_json(value, str(path))


def _check_whole(architecture: Architecture) -> None:
    """What no field says alone."""
    args, dim = architecture.args, architecture.args.embed_dim
    if len(architecture.blocks) > MOST_LAYERS:
        raise ValueError(f"blocks: {len(architecture.blocks)} layers, no more than {MOST_LAYERS} are read")
    if any(patch > size for patch, size in zip(args.patch_size, args.img_size, strict=True)):
        raise ValueError(f"args.patch_size: {args.patch_size} is larger than the image, {args.img_size}")
    if args.global_pool == "token" and not args.class_token:
        raise ValueError("args.global_pool: there is no class token to read")
    if architecture.kind == "VisionTransformerDistilled" and (args.global_pool != "token" or args.fc_norm):
        raise ValueError("args.global_pool: a distilled model's heads read tokens behind its last norm")
    if (architecture.pool is not None) != (args.global_pool == "map"):
        raise ValueError('pool: must be there if args.global_pool is "map", and only then')
    if architecture.pool is not None and dim % architecture.pool.heads:
        raise ValueError(f"pool.heads: {architecture.pool.heads} heads don't share {dim} channels")
    for i, layer in enumerate(architecture.blocks):
        for kind, sizes in (("attn", layer.attn), ("mlp", layer.mlp)):
            for key, channels in (("in", sizes.reads), ("out", sizes.writes)) if sizes is not None else ():
                if channels is not None and not (channels and _rising(channels) and channels[-1] < dim):
                    raise ValueError(f"blocks[{i}].{kind}.{key}: must be rising channels from 0 to {dim - 1}")


def _rising(channels: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise(channels))


# from JSON to dataclasses, and back


def _written(value: Any) -> Any:
    if is_dataclass(value):
        return {
            item.metadata.get("key", item.name): _written(getattr(value, item.name))
            for item in fields(value)
            if item.default is MISSING or getattr(value, item.name) != item.default
        }
    return [_written(part) for part in value] if isinstance(value, tuple) else value


def _read(kind: Any, value: Any, key: str) -> Any:
    """The value as `kind`. Raises ValueError with the key."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # X | None
        return None if value is None else _read(parts[0], value, key)
    if origin is Annotated:
        low, high = parts[1]
        number = _read(parts[0], value, key)
        if not low <= number <= high:
            raise ValueError(f"{key}: must lie between {low:g} and {high:g}, unlike {number}")
        return number
    if origin is Literal:
        if not isinstance(value, str) or value not in parts:
            raise ValueError(f"{key}: must be one of {', '.join(parts)}, unlike {_short(value)}")
        return value
    if origin is tuple:
        return _read_list(parts, value, key)
    if is_dataclass(kind):
        return _read_object(kind, value, key)
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind or value != value:  # NaN is unlike itself
        raise ValueError(f"{key}: must be {_NAMES[kind]}, unlike {_short(value)}")
    return value


def _read_list(parts: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{key}: must be a list, unlike {_short(value)}")
    if parts[-1] is Ellipsis:
        parts = (parts[0],) * len(value)
    if len(value) != len(parts):
        raise ValueError(f"{key}: must have {len(parts)} values, not {len(value)}")
    return tuple(_read(part, one, f"{key}[{i}]") for i, (part, one) in enumerate(zip(parts, value, strict=True)))


def _read_object(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{key}: must be an object, unlike {_short(value)}")
    known = {item.metadata.get("key", item.name): item for item in fields(kind)}
    prefix = f"{key}." if key else ""
    for name in value.keys() - known.keys():
        raise ValueError(f"{prefix}{_short(name)}: is no key of format {FORMAT}")
    types, found = get_type_hints(kind, include_extras=True), {}
    for name, item in known.items():
        if name in value:
            found[item.name] = _read(types[item.name], value[name], f"{prefix}{name}")
        elif item.default is MISSING:
            raise ValueError(f"{prefix}{name}: is missing")
    return kind(**found)


_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def _short(value: Any) -> str:
    """A value from a file, for a message; not all of a long one."""
    text = repr(value) if not isinstance(value, list | dict) else type(value).__name__
    return text if len(text) < 40 else f"{text[:36]} ..."


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)

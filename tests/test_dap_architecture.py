"""What is read from an architecture.json is complete, typed, in range and consistent, or refused by file and key."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dap_models import tiny_vit

from dap.architecture import MOST_BYTES, from_json, read_architecture
from dap.compact import build, load_compact, save_compact
from dap.describe import architecture_of
from dap.skeleton import skeleton

# as written by the first version of the format
MLP = {"width": 30, "in": None, "out": [0, 5], "layer_scale": True, "drop_path": 0.1, "drop": 0}
ATTN = {"width": 5, "in": [1, 2, 9], "out": None, "layer_scale": False, "drop_path": 0.0, "heads": 2,
        "qkv_bias": True, "attn_drop": 0.0, "drop": 0.0}  # fmt: skip
FIRST: dict[str, Any] = {
    "format": 1,
    "class": "VisionTransformer",
    "args": {"img_size": [16, 16], "patch_size": [4, 4], "in_chans": 3, "num_classes": 5, "embed_dim": 24,
             "no_embed_class": False, "reg_tokens": 0, "pre_norm": False, "drop_rate": 0.0, "pos_drop_rate": 0.0},
    "norm_eps": 1e-06,
    "gelu": "none",
    "blocks": [{"attn": ATTN, "mlp": MLP}, {"attn": None, "mlp": dict(MLP)}],
}  # fmt: skip


def changed(key: str, value: Any) -> Any:
    """FIRST with another value at "a.b.0.c"; ... for a key that is missing."""
    whole = json.loads(json.dumps(FIRST))
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    place: Any = whole
    for part in path:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return whole


def test_a_file_of_the_first_version_is_read_and_written_the_same() -> None:
    architecture = from_json(FIRST, "x")
    assert architecture.to_json() == FIRST
    assert list(architecture.to_json()) == list(FIRST)
    assert architecture.blocks[0].attn is not None and architecture.blocks[0].attn.reads == (1, 2, 9)
    assert architecture.blocks[1].attn is None
    model = build(architecture, {name: torch.zeros(w.shape) for name, w in skeleton(architecture).state_dict().items()})
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 5)
    assert architecture_of(model) == architecture


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("class", "Swin", "class"),
        ("class", ["VisionTransformer"], "class"),
        ("norm_eps", float("nan"), "norm_eps"),
        ("norm_eps", float("inf"), "norm_eps"),
        ("norm_eps", 10**400, "norm_eps"),
        ("norm_eps", 0, "norm_eps"),
        ("norm_eps", "1e-6", "norm_eps"),
        ("gelu", True, "gelu"),
        ("args.surprise", 1, "args.'surprise'"),
        ("surprise", 1, "'surprise'"),
        ("args.embed_dim", ..., "args.embed_dim: is missing"),
        ("args.embed_dim", 24.0, "args.embed_dim"),
        ("args.embed_dim", True, "args.embed_dim"),
        ("args.embed_dim", 0, "args.embed_dim"),
        ("args.embed_dim", 10**9, "args.embed_dim"),
        ("args.img_size", 16, "args.img_size"),
        ("args.img_size", [16], "args.img_size"),
        ("args.img_size", [16, "16"], r"args.img_size[1]"),
        ("args.patch_size", [32, 32], "args.patch_size"),
        ("args.drop_rate", -0.1, "args.drop_rate"),
        ("args.num_classes", -1, "args.num_classes"),
        ("args.pre_norm", 0, "args.pre_norm"),
        ("args", None, "args"),
        ("blocks", {}, "blocks"),
        ("blocks", [{"attn": None, "mlp": None}] * 20_000, "blocks"),
        ("blocks.0", {"attn": None}, "blocks[0].mlp: is missing"),
        ("blocks.0.attn", [], "blocks[0].attn"),
        ("blocks.0.attn.in", [2, 1], "blocks[0].attn.in"),
        ("blocks.0.attn.in", [1, 1], "blocks[0].attn.in"),
        ("blocks.0.attn.in", [], "blocks[0].attn.in"),
        ("blocks.0.attn.in", [0, 24], "blocks[0].attn.in"),
        ("blocks.0.attn.in", [-1, 3], "blocks[0].attn.in[0]"),
        ("blocks.1.mlp.out", [0, 5.0], "blocks[1].mlp.out[1]"),
        ("blocks.1.mlp.heads", 1, "blocks[1].mlp.'heads'"),
        ("blocks.0.attn.heads", 0, "blocks[0].attn.heads"),
        ("blocks.0.attn.drop_path", 1.5, "blocks[0].attn.drop_path"),
    ],
)
def test_what_is_wrong_is_named(key: str, value: Any, named: str, tmp_path: Path) -> None:
    wrong = changed(key, value)
    with pytest.raises(ValueError, match="file x") as error:
        from_json(wrong, "file x")
    assert named in str(error.value)
    save_compact(tiny_vit(), tmp_path)
    (tmp_path / "architecture.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=r"architecture\.json"):
        load_compact(tmp_path)


@pytest.mark.parametrize(
    ("args", "pool", "named"),
    [
        ({"class_token": False}, None, "no class token"),
        ({"global_pool": "map"}, None, "pool: must be there"),
        ({}, {"heads": 2, "width": 9, "qkv_bias": True}, "pool: must be there"),
        ({"global_pool": "map"}, {"heads": 5, "width": 9, "qkv_bias": True}, "pool.heads"),
        ({"global_pool": "max"}, None, "args.global_pool"),
    ],
)
def test_pooling_that_cannot_be_is_named(args: dict[str, Any], pool: Any, named: str) -> None:
    wrong = {**FIRST, "args": {**FIRST["args"], **args}, **({} if pool is None else {"pool": pool})}
    with pytest.raises(ValueError, match=named):
        from_json(wrong, "x")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[" * 100_000, "damaged"),
        ('{"format": 1, "format": 1}', "damaged"),
        ('{"format": ' + "1" * 10_000 + "}", "damaged"),
        ('{"format": NaN}', "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        ("", "damaged"),
        ("[]", "not a format 1"),
        ('{"format": true}', "not a format 1"),
        ('{"format": 2}', "not a format 1"),
    ],
)
def test_no_json_ends_in_a_traceback(text: Any, named: str, tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"architecture\.json is .*" + named):
        read_architecture(path)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ValueError, match="too long"):
        read_architecture(path)


def test_any_value_anywhere_is_read_or_refused() -> None:
    """Every value of the file is replaced by every other kind of value; what is accepted can be built."""
    rng = random.Random(0)
    odd = [None, True, -1, 0, 1, 3, 10**6, 0.5, -0.0, 1e308, float("nan"), "", "none", "tanh", [], [0], [0, 1], {}]

    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [path, *(found for key, one in inner for found in places(one, (*path, key)))]

    accepted = 0
    for path in places(FIRST)[1:]:
        for value in rng.sample(odd, 8):
            whole: Any = json.loads(json.dumps(FIRST))
            place = whole
            for part in path[:-1]:
                place = place[part]
            place[path[-1]] = value
            try:
                architecture = from_json(whole, "x")
            except ValueError:
                continue
            skeleton(architecture)
            accepted += 1
    assert accepted > 10


def test_reading_needs_no_torch() -> None:
    code = "import sys, dap.architecture; assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1], timeout=120)

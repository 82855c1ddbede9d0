"""The small model computes what the masked one computed, survives the disk, and needs nothing of the pruner."""

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from dap_models import OTHERS, batches, check_survives, logits, tiny_vit, train
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dap.baselines.row_gates import RowGates
from dap.compact import build, compact, load_compact, save_compact
from dap.config import PruneConfig
from dap.cost import block_params, count_macs, count_params
from dap.describe import architecture_of
from dap.gates import Gates, branches_of
from dap.pruner import Pruner
from dap.skeleton import PrunedBlock


def cut(model: Any, which: Any, kept: list[dict[str, list[int]]]) -> tuple[torch.Tensor, Any]:
    """Logits of the model under hard masks that keep these elements, and the compact model."""
    branches = branches_of(model)
    gates: Any = RowGates(branches) if which == "rows" else Gates(branches, which)
    masks, indices = [], []
    for block, keep in zip(gates.gates, kept, strict=True):
        parts = []
        for gate in block:
            part = torch.zeros(gate.length)
            part[keep[gate.name]] = 1.0
            parts.append(part)
        masks.append(torch.cat(parts))
        indices.append({gate.name: torch.tensor(keep[gate.name], dtype=torch.long) for gate in block})
    gates.set(masks)
    computed = logits(model)
    gates.remove()
    return computed, compact(model, branches, indices)


def lengths(model: Any, which: str) -> list[dict[str, int]]:
    shapes = [branch.shape for branch in branches_of(model)]
    if which == "heads":
        return [{"width": s.width, "heads": s.heads} if s.kind == "attn" else {"width": s.width} for s in shapes]
    return [{"in": s.dim, "width": s.width, "out": s.dim} if which == "all" else {"width": s.width} for s in shapes]


KINDS: dict[str, dict[str, Any]] = {
    "deit": {},
    "distilled": {"distilled": True},
    "layer scale": {"init_values": 0.1},
    "no bias in qkv": {"qkv_bias": False},
    "deit 3": {"no_embed_class": True, "init_values": 1e-4},
    "registers": {"reg_tokens": 2},
    "first norm": {"pre_norm": True},
    **OTHERS,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["inner", "heads", "all"])
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_compact_equals_masked(kind: str, which: str, data: st.DataObject) -> None:
    model = tiny_vit(**KINDS[kind])
    kept = []
    for sizes in lengths(model, which):
        gates = {}
        for name, length in sizes.items():
            whole = data.draw(st.sampled_from(["some", "some", "all", "none"]))
            some = data.draw(st.sets(st.integers(0, length - 1), min_size=1))
            gates[name] = {"some": sorted(some), "all": list(range(length)), "none": []}[whole]
        # as the pruner does it: a block that is gone has lost its outputs too
        kept.append(gates if all(gates.values()) else {name: [] for name in gates})
    masked, small = cut(model, which, kept)
    torch.testing.assert_close(logits(small), masked, atol=1e-5, rtol=1e-5)


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_whole_heads_and_rows(data: st.DataObject) -> None:
    model = tiny_vit(num_heads=4, init_values=0.5)
    kept = [
        {gate.name: sorted(data.draw(st.sets(st.integers(0, gate.length - 1), min_size=1))) for gate in block}
        for block in RowGates(branches_of(tiny_vit(num_heads=4))).gates
    ]
    masked, small = cut(model, "rows", kept)
    torch.testing.assert_close(logits(small), masked, atol=1e-5, rtol=1e-5)
    assert [block.attn.num_heads for block in small.blocks] == [len(kept[0]["heads"]), len(kept[2]["heads"])]


def test_a_block_that_is_gone_may_not_write() -> None:
    with pytest.raises(AssertionError, match="attn 0 is gone but still writes"):
        cut(tiny_vit(), "all", [{"in": [0], "width": [], "out": [1]}] * 4)


def test_every_branch_has_its_kept_elements() -> None:
    model = tiny_vit()
    with pytest.raises(ValueError, match="shorter"):
        compact(model, branches_of(model), [{"width": torch.arange(2)}] * 2)


def test_every_block_keeps_its_own_drop_path() -> None:
    kept = [{"width": [0]}] * 6
    _, small = cut(tiny_vit(depth=3, drop_path_rate=0.2), "inner", kept)
    rates = [[getattr(part, "drop_prob", 0.0) for part in (b.drop_path1, b.drop_path2)] for b in small.blocks]
    assert rates == [[pytest.approx(rate)] * 2 for rate in (0.0, 0.1, 0.2)]


@pytest.mark.parametrize("which", ["inner", "heads", "all"])
@pytest.mark.parametrize("dead", list(itertools.product([0, 1], repeat=4)))
def test_every_combination_of_branches_that_are_gone(which: str, dead: tuple[int, ...]) -> None:
    model = tiny_vit(init_values=0.5, distilled=True)
    kept = [
        {name: [] if gone and name != "in" else list(range(0, length, 2)) for name, length in sizes.items()}
        for gone, sizes in zip(dead, lengths(model, which), strict=True)
    ]
    masked, small = cut(model, which, kept)
    torch.testing.assert_close(logits(small), masked, atol=1e-5, rtol=1e-5)
    assert [size == 0 for size in block_params(small).values()] == [bool(gone) for gone in dead]


def test_a_constant_goes_past_a_layer_scale_of_zero() -> None:
    model: Any = tiny_vit(init_values=0.5)
    with torch.no_grad():
        model.blocks[0].ls1.gamma[::2] = 0.0
    kept = [{"width": list(range(n["width"]))} for n in lengths(model, "inner")]
    kept[1]["width"] = []
    masked, small = cut(model, "inner", kept)
    torch.testing.assert_close(logits(small), masked, atol=1e-5, rtol=1e-5)


def test_costs_are_those_of_the_small_model() -> None:
    model = tiny_vit(init_values=0.5)
    shapes = [branch.shape for branch in branches_of(model)]
    dense = count_params(model)
    dense_macs = count_macs(model)
    assert list(block_params(model).values()) == [int(s.params(s.dim, s.width, s.dim)) for s in shapes]
    kept = [{"in": [0, 3, 5], "width": [1, 2], "out": [4, 5, 6, 7]}] * 3 + [{"in": [1], "width": [], "out": []}]
    _, small = cut(model, "all", kept)
    expected = [int(s.params(3, 2, 4)) for s in shapes[:3]] + [0]
    assert list(block_params(small).values()) == expected
    whole = sum(int(s.params(s.dim, s.width, s.dim)) for s in shapes)
    assert count_params(small) == dense - whole + sum(expected)
    whole_macs = sum(int(s.macs(s.dim, s.width, s.dim)) for s in shapes)
    assert count_macs(small) == dense_macs - whole_macs + sum(int(s.macs(3, 2, 4)) for s in shapes[:3])


def test_macs_of_deit_tiny() -> None:
    with torch.device("meta"):
        model = timm.create_model("deit_tiny_patch16_224")
    assert count_macs(model) == pytest.approx(1.2535e9, rel=2e-3)  # the design notes' figure


@pytest.mark.parametrize("which", ["inner", "heads", "all"])
@pytest.mark.parametrize("distilled", [False, True])
def test_save_load_gives_identical_logits_and_exports(which: Any, distilled: bool, tmp_path: Path) -> None:
    model = tiny_vit(distilled=distilled, init_values=0.1, drop_path_rate=0.1)
    pruner = Pruner(model, PruneConfig(sparsity=0.7, gates=which), steps_per_epoch=4, epochs=1)
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.01), batches(4))
    pruner.harden()
    masked = logits(model)
    small = pruner.finalize()
    torch.testing.assert_close(logits(small), masked, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(model), masked)  # the pruned model itself is plain again, masks multiplied in
    assert not any("parametrizations" in name for name in model.state_dict())
    save_compact(small, tmp_path)
    loaded = load_compact(tmp_path)
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(small))
    assert architecture_of(loaded) == architecture_of(small)
    assert (tmp_path / "architecture.json").read_text() == json.dumps(architecture_of(small).to_json(), indent=1) + "\n"
    images = torch.randn(1, 3, 16, 16)
    exported = torch.export.export(loaded, (images,)).module()
    torch.testing.assert_close(exported(images), loaded(images))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["architecture.json", "weights.safetensors"]


@pytest.mark.parametrize("which", ["inner", "heads", "all"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_vits_are_pruned_and_stored(kind: str, which: Any, tmp_path: Path) -> None:
    model = tiny_vit(**OTHERS[kind])
    dense = count_params(model)
    pruner = Pruner(model, PruneConfig(sparsity=0.5, gates=which), steps_per_epoch=4, epochs=1)
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.01), batches(4))
    assert all(block["bpi_class"] != 0.0 and block["bpi_patch"] != 0.0 for block in pruner.blocks())
    pruner.harden()
    masked = logits(model)
    small = pruner.finalize()
    torch.testing.assert_close(logits(small), masked, atol=1e-5, rtol=1e-5)
    assert 0.4 * dense < count_params(small) <= 0.5 * dense
    check_survives(small, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_of_all_kinds_are_those_of_the_model(kind: str) -> None:
    model = tiny_vit(**KINDS[kind])
    counted = FlopCounterMode(display=False)
    with counted, sdpa_kernel(SDPBackend.MATH):
        model.eval()(torch.zeros(1, 3, 16, 16))
    assert counted.get_total_flops() == 2 * count_macs(model)
    shapes = [branch.shape for branch in branches_of(model)]
    assert list(block_params(model).values()) == [int(s.params(s.dim, s.width, s.dim)) for s in shapes]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_model_is_saved_the_same_way(kind: str, tmp_path: Path) -> None:
    model = tiny_vit(**{"mlp_ratio": 3, **KINDS[kind]}, drop_path_rate=0.1)
    save_compact(model, tmp_path / "a" / "b")
    loaded: Any = load_compact(tmp_path / "a" / "b")
    assert torch.equal(logits(loaded), logits(model))
    assert not any(isinstance(block, PrunedBlock) for block in loaded.blocks)
    assert loaded.blocks[1].drop_path1.drop_prob == pytest.approx(0.1)
    assert count_params(loaded) == count_params(model)


def test_a_small_model_can_be_fine_tuned_and_is_not_pruned_twice() -> None:
    model = tiny_vit()
    pruner = Pruner(model, PruneConfig(sparsity=0.8), steps_per_epoch=2, epochs=1)
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.01), batches(2))
    small = pruner.finalize()
    assert all(p.requires_grad and p.is_leaf for p in small.parameters())
    small.train()(batches(1)[0][0]).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    kept: list[dict[str, list[int]]] = [{"width": []}, *[{"width": [0]}] * 3]
    _, dead = cut(tiny_vit(), "inner", kept)
    with pytest.raises(ValueError, match="compacted already"):
        Pruner(dead, PruneConfig(sparsity=0.1), steps_per_epoch=2, epochs=1)


def test_loading_imports_no_pruner_and_draws_no_random_numbers(tmp_path: Path) -> None:
    save_compact(tiny_vit(), tmp_path)
    code = (
        "import sys, torch; from dap import load_compact;"
        "torch.manual_seed(1); a = torch.rand(1); torch.manual_seed(1);"
        f"load_compact({str(tmp_path)!r}); assert torch.equal(a, torch.rand(1));"
        "assert not {'dap.pruner', 'dap.indicator', 'dap.importance'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    def refused(folder: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match) as error:
            load_compact(folder)
        assert "save_compact" in str(error.value)

    folder = tmp_path / "model"
    save_compact(tiny_vit(), folder)
    weights, architecture = folder / "weights.safetensors", folder / "architecture.json"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    refused(folder, r"weights\.safetensors is damaged")
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused(folder, r"weights\.safetensors is damaged \(its checksum")
    weights.write_bytes(b"")
    refused(folder, r"weights\.safetensors is damaged")
    save_compact(tiny_vit(depth=3), tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    refused(folder, r"weights\.safetensors does not fit architecture\.json")
    architecture.write_text("{")
    refused(folder, r"architecture\.json is damaged")
    architecture.write_text('{"format": 99}')
    refused(folder, r"architecture\.json is not a format 1")
    save_compact(tiny_vit(), folder)
    rewritten(weights, lambda found: {name: value for name, value in found.items() if name != "head.bias"})
    refused(folder, r"\(weights and architecture differ in 1 tensors, the first of them 'head\.bias'\)")
    weights.unlink()
    save_compact(tiny_vit(), folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors"):
        load_compact(folder)


@pytest.mark.parametrize("which", ["inner", "heads", "all"])
def test_the_small_model_keeps_how_it_wants_its_images_and_how_it_is_trained(which: Any, tmp_path: Path) -> None:
    model: Any = timm.create_model("deit_tiny_distilled_patch16_224", depth=2, img_size=32, init_values=0.5)
    model.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    model.pretrained_cfg["crop_pct"] = 0.75
    model.pretrained_cfg["interpolation"] = "bilinear"
    model.set_grad_checkpointing()
    model.set_distilled_training()
    frozen = ["patch_embed.proj.weight", "blocks.1.norm1.weight", "blocks.0.ls2.gamma", "head.bias"]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    pruner = Pruner(model, PruneConfig(sparsity=0.3, gates=which), steps_per_epoch=4, epochs=1)
    small: Any = pruner.finalize()
    found = [name for name, parameter in small.named_parameters() if not parameter.requires_grad]
    assert any("norm1.norm" in name or "ls2.scale" in name for name in found) == (which == "all")
    assert sorted(name.replace(".norm.", ".").replace(".scale.", ".") for name in found) == sorted(frozen)
    assert small.grad_checkpointing and small.distilled_training
    assert len(small.train()(torch.randn(2, 3, 32, 32))) == 2
    save_compact(small, tmp_path)
    for one in (small, load_compact(tmp_path)):
        view = timm.data.resolve_model_data_config(one)
        assert view["mean"] == (0.1, 0.2, 0.3) and view["std"] == (0.229, 0.224, 0.225)
        assert view["crop_pct"] == 0.75 and view["interpolation"] == "bilinear" and view["crop_mode"] == "center"
        assert view["input_size"] == (3, 32, 32)


def test_nothing_is_written_that_cannot_be_read(tmp_path: Path) -> None:
    model: Any = tiny_vit()
    model.pretrained_cfg = {"mean": (float("nan"),) * 3}
    with pytest.raises(ValueError, match=r"^the model: pretrained_cfg\.mean\[0\]"):
        save_compact(model, tmp_path)
    assert not any(tmp_path.iterdir())


def rewritten(path: Path, change: Any = lambda weights: weights, metadata: dict[str, str] | None = None) -> None:
    """The same file as safetensors would write it again."""
    save_file(change(load_file(path)), path, metadata=metadata)


def test_the_checksum_covers_the_architecture_too(tmp_path: Path) -> None:
    model: Any = tiny_vit()
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "crop_pct": 0.75}
    save_compact(model, tmp_path)
    path = tmp_path / "architecture.json"
    good = json.loads(path.read_text())
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
        noted = file.metadata()["sha256"].split()[1]
    assert noted == hashlib.sha256(json.dumps(good, sort_keys=True).encode()).hexdigest(), "as files have it for long"
    for turned in (dict, lambda pairs: dict(reversed(pairs))):  # laid out otherwise
        path.write_text(json.dumps(json.loads(json.dumps(good), object_pairs_hook=turned)))
        load_compact(tmp_path)
    for key, value in (("heads", 4), ("width", 6), ("drop", 0.5)):
        bad = json.loads(json.dumps(good))
        for layer in bad["blocks"]:
            layer["attn"][key] = value
            if key != "drop":  # 2 heads of 12 or 4 of 6: the weights have the same shapes
                layer["attn"].update(heads=4, width=6)
        path.write_text(json.dumps(bad))
        with pytest.raises(
            ValueError, match=r"architecture\.json is damaged \(its checksum is wrong\): write the model"
        ):
            load_compact(tmp_path)


def test_weights_that_others_have_written_are_read(tmp_path: Path) -> None:
    model = tiny_vit()
    save_compact(model, tmp_path)
    path = tmp_path / "weights.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    rewritten(path, metadata=metadata)
    assert torch.equal(logits(load_compact(tmp_path)), logits(model))
    rewritten(path, metadata={"sha256": metadata["sha256"].split()[0]})  # as the first version wrote it
    assert torch.equal(logits(load_compact(tmp_path)), logits(model))
    rewritten(path, metadata={"format": "pt"})
    assert torch.equal(logits(load_compact(tmp_path)), logits(model))
    rewritten(path, lambda weights: {name: 2 * value for name, value in weights.items()})
    assert torch.equal(load_compact(tmp_path).pos_embed, 2 * model.pos_embed)
    save_compact(load_compact(tmp_path), tmp_path)
    rewritten(path, lambda weights: {name: 2 * value for name, value in weights.items()}, metadata)
    with pytest.raises(ValueError, match="checksum"):
        load_compact(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_neither_read_nor_written(value: float, tmp_path: Path) -> None:
    model: Any = tiny_vit()
    save_compact(model, tmp_path)
    path = tmp_path / "weights.safetensors"
    rewritten(path, lambda weights: {name: w.fill_(value) if name == "head.bias" else w for name, w in weights.items()})
    with pytest.raises(ValueError, match=r"weights\.safetensors holds numbers that are not finite in head\.bias"):
        load_compact(tmp_path)
    rewritten(path, lambda weights: {name: w.nan_to_num().int() for name, w in weights.items()})
    with pytest.raises(ValueError, match=r"weights\.safetensors holds .* as torch\.int32"):
        load_compact(tmp_path)
    with torch.no_grad():
        model.head.bias[0] = value
    with pytest.raises(ValueError, match=r"^the model holds numbers that are not finite in head\.bias"):
        save_compact(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_model_is_loaded_onto_a_device(tmp_path: Path) -> None:
    _, small = cut(tiny_vit(), "all", [{"in": [0, 3], "width": [1, 2], "out": [4, 5]}] * 4)
    save_compact(small, tmp_path)
    loaded = load_compact(tmp_path, device="meta")
    assert {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())} == {"meta"}
    assert loaded(torch.zeros(1, 3, 16, 16, device="meta")).shape == (1, 5)
    built = build(architecture_of(small), {name: value.to("meta") for name, value in small.state_dict().items()})
    assert {tensor.device.type for tensor in (*built.parameters(), *built.buffers())} == {"meta"}

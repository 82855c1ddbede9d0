"""Copies, averages and state dicts of a model that is being pruned compute what it computes; it can be given back."""

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dap_models import batches, logits, tiny_vit, train
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel

from dap.baselines.wdpruning import WDPrune, WDPruneConfig
from dap.compact import save_compact
from dap.config import PruneConfig
from dap.pruner import Pruner

STEPS = 24
KINDS = ["inner", "all", "wdpruning"]


def make(kind: Any, seed: int = 0) -> tuple[Any, Any, Any]:
    model = tiny_vit(seed=seed)
    if kind == "wdpruning":
        pruner: Any = WDPrune(model, WDPruneConfig(sparsity=0.6), steps_per_epoch=STEPS, epochs=1)
    else:
        pruner = Pruner(model, PruneConfig(sparsity=0.6, gates=kind), steps_per_epoch=STEPS, epochs=1)
    return model, pruner, torch.optim.SGD(model.parameters(), lr=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_of_the_model_has_the_masks_of_now(kind: str) -> None:
    model, pruner, optimizer = make(kind)
    averages = [ModelEmaV3(model, decay=0.99), ModelEmaV3(model, decay=0.99, foreach=True), AveragedModel(model)]
    for batch in batches(20):
        train(model, pruner, optimizer, [batch])
        for average in averages:
            getattr(average, "update", getattr(average, "update_parameters", None))(model)
    pruner.harden()
    for average in averages:
        getattr(average, "update", getattr(average, "update_parameters", None))(model)
        # what the average computes is what the model computes with the average's weights
        plain = copy.deepcopy(model)
        plain.load_state_dict(average.module.state_dict())
        for (name, mine), (_, its) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
            assert torch.equal(mine, its), name
        assert torch.equal(logits(average.module), logits(plain))
        assert not torch.equal(logits(average.module), logits(model))
    ema = logits(averages[0].module)
    model.load_state_dict(averages[0].module.state_dict())  # the way to a small model of averaged weights
    torch.testing.assert_close(logits(pruner.finalize()), ema, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_on_its_own(kind: str) -> None:
    model, pruner, optimizer = make(kind)
    train(model, pruner, optimizer, batches(15))
    images, targets = batches(1, seed=5)[0]
    (F.cross_entropy(model.train()(images), targets) + (pruner.loss(targets) or 0.0)).backward()
    model(images)  # the step's forward; what it left must not change
    twin = copy.deepcopy(model)
    before = logits(model)
    assert torch.equal(logits(twin), before)
    twin.train()(images[:3])
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        for buffer in twin.buffers():
            buffer.zero_()
    assert torch.equal(logits(model), before)
    pruner.loss(targets)
    pruner.step(targets)  # the targets are those of the model's batch, not of its copy's


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_of_a_run_under_way_is_complete(kind: str) -> None:
    model, pruner, optimizer = make(kind)
    names = list(tiny_vit().state_dict())
    train(model, pruner, optimizer, batches(15))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert [name for name in state if "mask" not in name] == names  # no parameter has another name or place
    other, _, _ = make(kind, seed=3)
    other.load_state_dict(state)
    assert torch.equal(logits(other), logits(model))
    with pytest.raises(RuntimeError, match="mask"):  # rather than weights without their masks
        tiny_vit().load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
def test_remove_gives_the_model_back(kind: str) -> None:
    model, pruner, optimizer = make(kind)
    parameters = [id(parameter) for parameter in model.parameters()]
    train(model, pruner, optimizer, batches(15))
    before = logits(model)
    assert pruner.remove() is model is pruner.remove()
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=1e-5)
    plain = tiny_vit()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(logits(plain), logits(model))
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="over"):
        pruner.step(batches(1)[0][1])
    with pytest.raises(ValueError, match="already"):
        pruner.finalize()
    again = Pruner(model, PruneConfig(sparsity=0.6), steps_per_epoch=STEPS, epochs=1)
    assert again.finalize() is not model


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_under_way_is_neither_pruned_twice_nor_stored(kind: str, tmp_path: Any) -> None:
    model, _, _ = make(kind)
    for act in (
        lambda: Pruner(model, PruneConfig(), steps_per_epoch=1, epochs=1),
        lambda: WDPrune(model, WDPruneConfig(), steps_per_epoch=1, epochs=1),
        lambda: save_compact(model, tmp_path),
    ):
        with pytest.raises(ValueError, match=r"being pruned; call finalize\(\) or remove\(\)"):
            act()

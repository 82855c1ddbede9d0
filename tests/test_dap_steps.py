"""step() under mixed precision and misuse: nothing half done, one bad step is no end, scores are of true gradients."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dap_models import CLASSES, batches, logits, tiny_vit, train
from torch import Tensor

from dap.baselines.savit import Savit, SavitConfig
from dap.baselines.wdpruning import WDPrune, WDPruneConfig
from dap.config import PruneConfig
from dap.indicator import Tokens
from dap.pruner import Pruner

STEPS = 24


def make(steps: int = STEPS, **changes: Any) -> tuple[Any, Pruner, Any]:
    model = tiny_vit()
    pruner = Pruner(model, PruneConfig(**{"sparsity": 0.6, **changes}), steps_per_epoch=steps, epochs=1)
    return model, pruner, torch.optim.AdamW(model.parameters(), lr=1e-3)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (torch.ones(8, CLASSES - 1), "4 classes"),
        (torch.ones(8, CLASSES, 1), "unlike"),
        (torch.ones(8), "unlike"),
        (torch.ones(8, CLASSES, dtype=torch.long), "unlike"),
        (torch.zeros(3, dtype=torch.long), "3 targets for a forward of 8"),
    ],
)
def test_a_step_that_is_refused_changes_nothing(targets: Tensor, reason: str) -> None:
    model, pruner, optimizer = make()
    train(model, pruner, optimizer, batches(5))
    images, right = batches(1, seed=9)[0]
    F.cross_entropy(model(images), right).backward()
    before = copy.deepcopy(pruner.state_dict())
    with pytest.raises(ValueError, match=reason):
        pruner.step(targets)
    assert same(pruner.state_dict(), before)
    pruner.step(right)  # the forward has not been used up
    assert not same(pruner.state_dict(), before)


@pytest.mark.parametrize("changes", [{}, {"probe": "reference"}, {"score": "magnitude"}, {"allocation": "global"}])
@pytest.mark.parametrize("where", ["gradient", "forward"])
def test_one_step_that_is_not_finite_is_skipped(where: str, changes: dict[str, Any]) -> None:
    model, pruner, optimizer = make(**changes)
    data = batches(STEPS)
    images, targets = data[3]
    train(model, pruner, optimizer, data[:3])
    probes = copy.deepcopy(pruner._indicator.probes.state_dict())
    scores, bpi = pruner._score_sum.clone(), pruner._bpi_sum.clone()
    F.cross_entropy(model(images.fill_(float("inf")) if where == "forward" else images), targets).backward()
    if where == "gradient":
        model.blocks[0].attn.qkv.weight.grad[0, 0] = float("inf")
    pruner.schedule.__dict__["update_steps"] = pruner.schedule.update_steps - {4}
    pruner.step(targets)
    optimizer.zero_grad()  # the optimizer skips it too
    if changes.get("score") != "magnitude":
        assert torch.equal(pruner._score_sum, scores)
    if where == "forward":
        assert torch.equal(pruner._bpi_sum, bpi)
        for name, value in pruner._indicator.probes.named_parameters():
            assert torch.equal(value, probes[name])
    updates = train(model, pruner, optimizer, data[4:])
    assert updates[-1]["step"] == STEPS
    assert all(torch.isfinite(value).all() for _, value in pruner._indicator.probes.named_parameters())
    assert torch.isfinite(logits(pruner.finalize())).all()


def test_the_mean_benefit_is_that_of_the_finite_steps() -> None:
    model, pruner, _ = make(steps=48)  # an update after every second step
    values = iter([1.0, float("nan"), float("nan"), float("nan"), 3.0, 5.0])

    def learn(tokens: Tokens) -> Tensor:
        return torch.full((2, 4), next(values))

    pruner._indicator.learn = learn  # type: ignore[method-assign]
    updates = train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.0), batches(6))
    # of an interval without a single finite step nothing is learnt
    assert [update["blocks"][0]["bpi_class"] for update in updates] == [1.0, 1.0, 4.0]


def test_a_run_of_bad_steps_only_ends() -> None:
    model, pruner, optimizer = make()
    for images, targets in batches(STEPS):
        F.cross_entropy(model.train()(images * float("nan")), targets).backward()
        pruner.step(targets)
        optimizer.zero_grad()
    assert pruner.harden()["sparsity"] >= 0.6


@pytest.mark.parametrize("kind", ["taylor", "wdpruning"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_scores_are_those_of_unscaled_gradients(kind: str, as_tensor: bool) -> None:
    """A GradScaler changes its scale in the middle of an interval."""
    found = []
    for scales in ([1.0, 1.0, 1.0], [2.0**10, 2.0**9, 2.0**12]):
        model = tiny_vit()
        pruner: Any = Pruner(model, PruneConfig(), steps_per_epoch=120, epochs=1)
        if kind == "wdpruning":
            model = tiny_vit()
            pruner = WDPrune(model, WDPruneConfig(), steps_per_epoch=120, epochs=1)
        for scale, (images, targets) in zip(scales, batches(3), strict=True):
            extra = pruner.loss(targets) if kind == "taylor" else None
            logits_BC = model.train()(images)
            extra = pruner.loss(targets) if kind == "wdpruning" else extra
            loss = F.cross_entropy(logits_BC, targets)
            ((loss if extra is None else loss + extra) * scale).backward()
            pruner.step(targets, grad_scale=torch.tensor(scale) if as_tensor else scale)
            model.zero_grad()
        state = pruner.state_dict()
        found.append([state["score_sum"]] if kind == "taylor" else [*state["scores"], *state["classifier"].values()])
    assert any(bool(part.any()) for part in found[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-12)


class OnGpu(Tensor):
    """A tensor that cannot become an array where it is, like one on a GPU."""

    def numpy(self, *args: Any, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self, *args: Any) -> Any:  # type: ignore[override]
        return self.as_subclass(Tensor)


def on_gpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.as_subclass(OnGpu)  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {key: on_gpu(part) for key, part in value.items()}
    return [on_gpu(part) for part in value] if isinstance(value, list) else value


def test_a_state_that_was_loaded_onto_a_gpu_continues() -> None:
    model, pruner, optimizer = make()
    train(model, pruner, optimizer, batches(15))
    other, again, _ = make()
    other.load_state_dict(model.state_dict())
    again.load_state_dict(on_gpu(pruner.state_dict()))
    assert again.harden() == pruner.harden()
    savit = Savit(tiny_vit(), SavitConfig(), steps_per_epoch=10)
    savit.calibrate(batches(1))
    second = Savit(tiny_vit(), SavitConfig(), steps_per_epoch=10)
    second.load_state_dict(on_gpu(savit.state_dict()))
    assert second._kept is not None
    assert not any(isinstance(index, OnGpu) for layers in second._kept.values() for index in layers)
    assert torch.equal(logits(second.finalize()), logits(savit.finalize()))

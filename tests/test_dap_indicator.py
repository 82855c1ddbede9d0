"""Probes learn, give the model nothing, and see what a block is worth."""

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from dap_models import CLASSES, batches, tiny_vit
from torch import Tensor

from dap.gates import TokenTap
from dap.indicator import PROBES, Indicator

Probe = Literal["default", "reference"]
BOTH = pytest.mark.parametrize("probe", ["default", "reference"])


def indicator(probe: Probe, lr: float = 5e-4) -> Indicator:
    return Indicator(
        probe=probe,
        layers=2,
        dim=24,
        classes=CLASSES,
        grid=(4, 4),
        prefix=1,
        lr=lr,
        seed=0,
        device=torch.device("cpu"),
    )


def stream(seed: int = 0, count: int = 5, images: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 17, 24, generator=generator) for _ in range(count)]


@BOTH
def test_probes_give_the_model_no_gradient(probe: Probe) -> None:
    model = tiny_vit().train()
    tap = TokenTap(model, every=1)
    tap.open = True
    images, targets = batches(1)[0]
    F.cross_entropy(model(images), targets).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    indicator(probe).learn(*tap.take(targets))
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert old is not None and parameter.grad is not None and torch.equal(old, parameter.grad)


@BOTH
def test_a_block_that_does_nothing_has_no_benefit(probe: Probe) -> None:
    tokens = stream()
    tokens[2] = tokens[1].clone()
    bpi = indicator(probe).learn(tokens, torch.arange(8) % CLASSES)
    assert bpi.shape == (2, 4)
    assert bpi[:, 1].abs().max() < 1e-6
    assert bpi[:, [0, 2, 3]].abs().min() > 1e-6


@BOTH
def test_a_block_that_writes_the_class_into_its_tokens_is_found(probe: Probe) -> None:
    learner, total = indicator(probe, lr=1e-2), torch.zeros(2, 4)
    for step in range(24):
        tokens, targets = stream(seed=step, images=16), (torch.arange(16) + step) % CLASSES
        signal = 3.0 * F.one_hot(targets, 24).float()
        # block 1 teaches the class token, block 3 the patches; both stay taught further down
        tokens[2][:, 0] += signal
        tokens[3][:, 0] += signal
        tokens[4] = tokens[3].clone()
        tokens[4][:, 1:] += signal[:, None]
        bpi = learner.learn(tokens, targets)
        total += bpi if step >= 12 else 0.0
    assert total[0].argmax() == 1 and total[1].argmax() == 3


@BOTH
def test_targets_may_be_indices_or_probabilities(probe: Probe) -> None:
    targets = torch.arange(8) % CLASSES
    by_index = indicator(probe).learn(stream(), targets)
    by_probability = indicator(probe).learn(stream(), F.one_hot(targets, CLASSES).float())
    torch.testing.assert_close(by_index, by_probability)


@BOTH
def test_losses_are_those_of_the_probes_one_by_one(probe: Probe) -> None:
    """The benefit of block b comes from probe b alone, reading the tensors before and after it."""
    tokens, targets = stream(), torch.arange(8) % CLASSES
    bpi = indicator(probe).learn(tokens, targets)
    changed = [x.clone() for x in tokens]
    changed[0] += 1.0
    moved = (indicator(probe).learn(changed, targets) - bpi).abs().amax(0)
    assert moved[0] > 1e-4 and moved[1:].max() < 1e-6


def test_class_probe_is_a_linear_layer_on_the_class_token() -> None:
    probes: Any = PROBES["default"](blocks=4, dim=24, classes=CLASSES, grid=(4, 4))
    tokens = stream()
    logits = probes(tokens, 1)[0]
    torch.testing.assert_close(logits[2, 1], tokens[3][:, 0] @ probes.class_head[2] + probes.class_bias[2])


@BOTH
def test_distilled_models_are_read_at_the_class_token_and_behind_both_prefix_tokens(probe: Probe) -> None:
    probes = PROBES[probe](blocks=4, dim=24, classes=CLASSES, grid=(4, 4))
    tokens = [torch.cat([x[:, :1], x], dim=1) for x in stream()]
    reference = probes(tokens, 2)
    for x in tokens:
        x[:, 1] = 100.0  # the distillation token is nobody's input
    for logits, expected in zip(probes(tokens, 2), reference, strict=True):
        torch.testing.assert_close(logits, expected)


@BOTH
def test_construction_draws_no_random_numbers_of_the_training(probe: Probe) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = indicator(probe), indicator(probe)
    assert torch.equal(torch.rand(1), expected)
    for a, b in zip(first.probes.parameters(), second.probes.parameters(), strict=True):
        assert torch.equal(a, b)

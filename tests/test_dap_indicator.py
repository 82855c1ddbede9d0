"""Probes learn, give the model nothing, and see what a block is worth."""

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from dap_models import CLASSES, batches, tiny_vit
from torch import Tensor

from dap.indicator import Indicator, Tokens
from dap.tap import TokenTap

Probe = Literal["default", "reference"]
BOTH = pytest.mark.parametrize("probe", ["default", "reference"])


def indicator(probe: Probe, lr: float | None = None, rank: int = 32, classes: int = CLASSES) -> Indicator:
    return Indicator(
        probe=probe,
        rank=rank,
        layers=2,
        dim=24,
        classes=classes,
        grid=(4, 4),
        lr=lr,
        seed=0,
        device=torch.device("cpu"),
    )


def stream(seed: int = 0, count: int = 5, images: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 17, 24, generator=generator) for _ in range(count)]


def seen(tokens: list[Tensor], targets: Tensor) -> Tokens:
    return Tokens([x[:, 0] for x in tokens], [x[:, 1:] for x in tokens], targets, targets)


def trained(probe: Probe, steps: int = 2) -> Indicator:
    """The default class-token probe begins at zero, so that it tells blocks apart after a step only."""
    learner = indicator(probe)
    for step in range(steps):
        learner.learn(seen(stream(seed=step), torch.arange(8) % CLASSES))
    return learner


@BOTH
def test_probes_give_the_model_no_gradient(probe: Probe) -> None:
    model = tiny_vit().train()
    tap = TokenTap(model, every=1)
    tap.open = True
    images, targets = batches(1)[0]
    F.cross_entropy(model(images), targets).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    indicator(probe).learn(tap.take(targets))
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert old is not None and parameter.grad is not None and torch.equal(old, parameter.grad)


@BOTH
def test_a_block_that_does_nothing_has_no_benefit(probe: Probe) -> None:
    tokens = stream()
    tokens[2] = tokens[1].clone()
    bpi = trained(probe).learn(seen(tokens, torch.arange(8) % CLASSES))
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
        bpi = learner.learn(seen(tokens, targets))
        total += bpi if step >= 12 else 0.0
    assert total[0].argmax() == 1 and total[1].argmax() == 3


@BOTH
def test_targets_may_be_indices_or_probabilities(probe: Probe) -> None:
    targets = torch.arange(8) % CLASSES
    by_index = trained(probe).learn(seen(stream(), targets))
    by_probability = trained(probe).learn(seen(stream(), F.one_hot(targets, CLASSES).float()))
    torch.testing.assert_close(by_index, by_probability)


@BOTH
def test_losses_are_those_of_the_probes_one_by_one(probe: Probe) -> None:
    """The benefit of block b comes from probe b alone, reading the tensors before and after it."""
    tokens, targets = stream(), torch.arange(8) % CLASSES
    bpi = trained(probe).learn(seen(tokens, targets))
    changed = [x.clone() for x in tokens]
    changed[0] += 1.0
    moved = (trained(probe).learn(seen(changed, targets)) - bpi).abs().amax(0)
    assert moved[0] > 1e-4 and moved[1:].max() < 1e-6


def test_class_probe_is_a_linear_layer_on_the_class_token() -> None:
    probes: Any = trained("default").probes[0]
    tokens = seen(stream(), torch.arange(8) % CLASSES)
    logits = probes(tokens.class_, tokens.patches)[0]
    torch.testing.assert_close(logits[2, 1], tokens.class_[3] @ probes.class_head[2] + probes.class_bias[2])


def test_default_probes_normalise_before_and_after_as_separate_batches() -> None:
    """As the paper's do: a block that only shifts and scales its tokens does nothing to the patch probe."""
    tokens = stream()
    tokens[2] = 3.0 * tokens[1] + 1.0
    tokens[1][:, 1:], tokens[2][:, 1:] = 100 * tokens[1][:, 1:], 300 * tokens[1][:, 1:]  # far above the norm's epsilon
    bpi = trained("default").learn(seen(tokens, torch.arange(8) % CLASSES))
    assert bpi[1, 1].abs() < 1e-4 < bpi[0, 1].abs()


def test_the_default_class_probe_begins_without_an_opinion() -> None:
    """At zero, so that no random start decides whether a block seems to help."""
    assert indicator("default").learn(seen(stream(), torch.arange(8) % CLASSES))[0].abs().max() == 0
    assert indicator("reference").learn(seen(stream(), torch.arange(8) % CLASSES))[0].abs().max() > 1e-3


def test_the_class_probe_reads_all_images_and_the_patch_probe_some() -> None:
    tokens = seen(stream(images=32), torch.arange(32) % CLASSES)
    some = tokens._replace(patches=[x[::4] for x in tokens.patches], patch_targets=tokens.targets[::4])
    class_logits, patch_logits = trained("default").probes[0](some.class_, some.patches)
    assert class_logits.shape == (4, 2, 32, CLASSES) and patch_logits.shape == (4, 2, 8, CLASSES)
    assert indicator("default").learn(some).shape == (2, 4)


@BOTH
def test_construction_draws_no_random_numbers_of_the_training(probe: Probe) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = indicator(probe), indicator(probe)
    assert torch.equal(torch.rand(1), expected)
    for a, b in zip(first.probes.parameters(), second.probes.parameters(), strict=True):
        assert torch.equal(a, b)


def test_heads_of_many_classes_are_two_factors_that_learn_as_fast() -> None:
    """The class-token probe begins at zero: after a step of the same rate its logits are about as large."""
    whole, factored = indicator("default", rank=10**9, classes=500), indicator("default", rank=8, classes=500)
    sizes = [sum(p.numel() for p in learner.probes.parameters()) for learner in (whole, factored)]
    assert sizes[1] < 0.6 * sizes[0]
    tokens, targets = stream(images=64), torch.arange(64) % 500
    spreads = []
    for learner in (whole, factored):
        assert learner.learn(seen(tokens, targets))[0].abs().max() == 0
        logits = learner.probes[0]([x[:, 0] for x in tokens], [x[:, 1:] for x in tokens])
        spreads.append([float(part.std()) for part in logits])
    assert spreads[1] == pytest.approx(spreads[0], rel=0.5)


def test_heads_of_few_classes_are_whole() -> None:
    """Factors would hold more than they save."""
    for rank in (32, 10**9):
        assert [p.shape for p in indicator("default", rank=rank).probes.parameters()] == [
            p.shape for p in indicator("default").probes.parameters()
        ]

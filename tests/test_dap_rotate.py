"""Rotated heads compute the same, and their channels are in order."""

import pytest
import torch
from dap_models import OTHERS, batches, logits, tiny_vit

from dap.gates import branches_of
from dap.rotate import balance, rotate_heads


def images() -> list[torch.Tensor]:
    return [batch for batch, _ in batches(4, size=16)]


@pytest.mark.parametrize(
    "changes",
    [{}, {"init_values": 0.1}, {"qkv_bias": False}, {"distilled": True}, {"pre_norm": True}, *OTHERS.values()],
)
def test_a_rotated_model_computes_the_same(changes):
    model = tiny_vit(**changes)
    before = logits(model)
    weights = model.blocks[0].attn.qkv.weight.clone()
    rotate_heads(model, images())
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model.blocks[0].attn.qkv.weight, weights)


def test_twice_is_as_good_as_once():
    model = tiny_vit()
    rotate_heads(model, images())
    once = {name: value.clone() for name, value in model.state_dict().items()}
    rotate_heads(model, images())
    for name, value in model.state_dict().items():  # up to the sign of a channel
        torch.testing.assert_close(value.abs(), once[name].abs(), rtol=1e-4, atol=1e-5)


def test_both_sides_are_balanced_largest_first():
    generator = torch.Generator().manual_seed(0)
    one, other = (a @ a.mT for a in torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64))
    to, back = balance(one, other)
    torch.testing.assert_close(to @ back, torch.eye(6, dtype=torch.float64).expand(3, 6, 6))
    mine, theirs = to @ one @ to.mT, back.mT @ other @ back
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
    sizes = mine.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(mine, torch.diag_embed(sizes), rtol=1e-6, atol=1e-6)
    assert (sizes.diff() <= 0).all()


def test_a_side_that_is_flat_in_some_direction_stays_finite_and_exact():
    thin = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    to, back = balance(torch.eye(6, dtype=torch.float64), thin @ thin.mT)
    torch.testing.assert_close(to @ back, torch.eye(6, dtype=torch.float64))


@torch.no_grad()
def test_cutting_the_last_channels_of_a_low_rank_head_changes_nothing():
    """Half of each head's rank is missing, in a basis that hides it; rotated, the last half of the channels is idle."""
    model = tiny_vit()
    generator = torch.Generator().manual_seed(3)
    attn = [branch for branch in branches_of(model) if branch.shape.kind == "attn"]
    for branch in attn:
        shape = branch.shape
        flat = torch.randn(3, shape.heads, shape.width, shape.width // 2, generator=generator)
        rows = flat @ torch.randn(3, shape.heads, shape.width // 2, shape.dim, generator=generator) * 0.05
        branch.into.weight.copy_(rows.reshape(-1, shape.dim))
        branch.into.bias[: shape.heads * shape.width] = 0.0
    before = logits(model)
    rotate_heads(model, images())
    for branch in attn:
        shape = branch.shape
        branch.into.weight.view(3, shape.heads, shape.width, shape.dim)[:, :, shape.width // 2 :] = 0.0
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)


def test_without_images_nothing_can_be_rotated():
    with pytest.raises(ValueError, match="needs images"):
        rotate_heads(tiny_vit(), [])

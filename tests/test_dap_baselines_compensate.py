"""What a cut took away is put back as far as the remaining units can say it."""

import copy

import pytest
import torch
from dap_models import batches, logits, tiny_vit

from dap import PruneConfig, Pruner
from dap.baselines.compensate import compensate
from dap.baselines.narrow import narrow


def images(count: int = 8) -> list[torch.Tensor]:
    return [batch for batch, _ in batches(count, size=16)]


@torch.no_grad()
def test_units_that_say_what_the_others_say_are_made_up_for():
    """Half of the hidden units are copies of the other half: the half that stays can do the work of both."""
    whole = tiny_vit(init_values=0.3)
    for block in whole.blocks:
        block.mlp.fc1.weight[48:], block.mlp.fc1.bias[48:] = block.mlp.fc1.weight[:48], block.mlp.fc1.bias[:48]
    small = copy.deepcopy(whole)
    for block in small.blocks:
        block.mlp.fc2.weight[:, 48:] = 0.0
    cut = (logits(small) - logits(whole)).abs().max()
    compensate(small, whole, images(), ridge=1e-9)
    torch.testing.assert_close(logits(small), logits(whole), rtol=1e-4, atol=1e-4)
    assert cut > 0.05


def test_a_model_that_lacks_nothing_stays_as_it_is():
    whole = tiny_vit(init_values=0.3)
    small = copy.deepcopy(whole)
    compensate(small, whole, images(2))
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_a_pruned_model_comes_closer_also_where_a_branch_is_gone(sparsity):
    whole = tiny_vit()
    pruner = Pruner(copy.deepcopy(whole), PruneConfig(sparsity=sparsity), steps_per_epoch=1, epochs=1)
    small = pruner.finalize()
    before = (logits(small) - logits(whole)).square().mean()
    compensate(small, whole, images())
    assert (logits(small) - logits(whole)).square().mean() < 0.8 * before


def test_a_narrower_stream_is_fitted_to_the_channels_that_it_kept():
    whole = tiny_vit()
    kept = torch.arange(0, 24, 2)
    small = narrow(whole, kept)
    stream = torch.stack([whole.forward_features(batch)[..., kept] for batch in images(2)])
    before = (torch.stack([small.forward_features(batch) for batch in images(2)]) - stream).square().mean()
    compensate(small, whole, images())
    after = (torch.stack([small.forward_features(batch) for batch in images(2)]) - stream).square().mean()
    assert after < before


def test_models_that_do_not_correspond_are_refused():
    whole = tiny_vit()
    with pytest.raises(ValueError, match="a model of 1 layers cannot be fitted to one of 2"):
        compensate(tiny_vit(depth=1), whole, images(1))
    with pytest.raises(ValueError, match="no images"):
        compensate(copy.deepcopy(whole), whole, [])
    other = narrow(tiny_vit(seed=5), torch.arange(20))
    with pytest.raises(ValueError, match="not some of the whole one's"):
        compensate(other, whole, images(1))

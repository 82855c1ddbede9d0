"""The controls without block budgets: one ranking over all blocks, by Taylor score or by magnitude."""

from typing import Any

import pytest
import torch
from dap_models import batches, check_survives, logits, tiny_vit, train

from dap import PruneConfig, Pruner, count_params

STEPS = 24


def run(model: Any, **changes: Any) -> Pruner:
    config = PruneConfig(sparsity=0.5, allocation="global", **changes)
    pruner = Pruner(model, config, steps_per_epoch=STEPS, epochs=1)
    train(model, pruner, torch.optim.AdamW(model.parameters(), lr=1e-3), batches(STEPS))
    return pruner


@pytest.mark.parametrize("score", ["taylor", "magnitude"])
def test_a_block_that_does_nothing_is_starved_and_nothing_is_probed(score: Any, tmp_path: Any) -> None:
    model: Any = tiny_vit()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[:, :90].zero_()
    pruner = run(model, score=score)
    blocks = pruner.harden()["blocks"]
    assert all(block["bpi_class"] is None and block["bpi_patch"] is None for block in blocks)
    assert blocks[3]["keep_ratio"] < 0.1 < 0.4 < blocks[1]["keep_ratio"]
    dense, masked = 0.5 * count_params(model), logits(model)
    small = pruner.finalize()
    assert 0 <= dense - count_params(small) <= 7 * 24 + 3 * 24 + 1
    torch.testing.assert_close(logits(small), masked, atol=1e-5, rtol=1e-5)
    check_survives(small, tmp_path)


def test_magnitude_looks_at_weights_and_not_at_gradients() -> None:
    pruners = [run(tiny_vit(), score=score) for score in ("taylor", "magnitude")]
    kept = [[set(block["width"].tolist()) for block in pruner._kept_indices()] for pruner in pruners]
    assert kept[0] != kept[1]
    model = tiny_vit()
    pruner = run(model, score="magnitude")
    norms = torch.split(pruner._gates.norms(), [12, 96, 12, 96])
    for norm, keep in zip(norms, pruner._kept_indices(), strict=True):
        cut = torch.ones(len(norm), dtype=torch.bool)
        cut[keep["width"]] = False
        if 0 < cut.sum() < len(norm):  # weights moved a little since the last interval began
            assert norm[keep["width"]].min() > 0.97 * norm[cut].max()


def test_widths_obey_the_rule_of_the_device() -> None:
    model = tiny_vit()
    config = PruneConfig(sparsity=0.6, allocation="global")
    pruner = Pruner(model, config, steps_per_epoch=12, epochs=1, allowed_width=lambda kind, n: n % 8 == 0)
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.01), batches(12))
    blocks = pruner.harden()["blocks"]
    assert all(block["heads"] * block["width"] % 8 == 0 for block in blocks)
    assert count_params(pruner.finalize()) <= 0.4 * count_params(tiny_vit())

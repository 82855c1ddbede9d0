"""Learning from a teacher's residual stream."""

import copy

import torch
from dap_models import batches, tiny_vit

from pipeline.train.features import Features, correspond


def test_the_loss_is_the_difference_of_the_streams_and_vanishes_for_the_teacher_itself():
    teacher, images = tiny_vit(depth=6).eval(), batches(1)[0][0]
    student = copy.deepcopy(teacher).train()
    features = Features(student, teacher)
    with torch.inference_mode():
        teacher(images)
    student(images)
    assert features.loss() == 0.0
    with torch.no_grad():
        student.blocks[5].mlp.fc2.bias += 0.5  # moves the stream after the last taught block, not after the first
    with torch.inference_mode():
        teacher(images)
    student(images)
    stream = teacher.forward_intermediates(images, indices=[5], norm=False, output_fmt="NLC", return_prefix_tokens=True)
    tokens = torch.cat([stream[1][0][1], stream[1][0][0]], 1)
    loss = features.loss()
    torch.testing.assert_close(loss, 0.25 / tokens.var((0, 1)).mean() / 2)
    loss.backward()
    assert student.blocks[5].mlp.fc2.bias.grad.abs().sum() > 0
    features.remove()
    assert not student.blocks[2]._forward_hooks and not teacher.blocks[5]._forward_hooks


def test_streams_of_other_sizes_do_not_correspond():
    assert correspond(tiny_vit(), tiny_vit(seed=1))
    assert not correspond(tiny_vit(), tiny_vit(depth=3)) and not correspond(tiny_vit(), tiny_vit(embed_dim=12))

"""Accuracy of any callable from images to logits."""

from collections.abc import Callable, Iterable

import torch


def top1_percent(predict: Callable[[torch.Tensor], torch.Tensor], batches: Iterable) -> float:
    """Share of images whose largest logit is their class, in percent.

    predict: uint8 (B, 3, H, W) -> (B, C) logits
    batches: pairs of images and labels (B,)
    """
    right = total = 0
    for images, labels in batches:
        right += int((predict(images).argmax(-1).cpu() == labels.cpu()).sum())
        total += len(labels)
    return 100 * right / total

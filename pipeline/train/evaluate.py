"""Accuracy of a model, or of any callable from images to logits."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from pipeline.data.view import View, normalise
from pipeline.train import runtime

Predict = Callable[[torch.Tensor], torch.Tensor]


def top1_percent(predict: Predict, batches: Iterable) -> float:
    """Share of images whose largest logit is their class, in percent.

    predict: uint8 (B, 3, H, W) -> (B, C) logits
    batches: pairs of images and labels (B,)
    """
    right = total = 0
    for images, labels in batches:
        right += int((predict(images).argmax(-1).cpu() == labels.cpu()).sum())
        total += len(labels)
    return 100 * right / total


def predictor(model: nn.Module, view: View) -> Predict:
    """uint8 (B, 3, H, W) -> (B, C) logits of `model` in evaluation mode, on the device that the model is on."""

    @torch.inference_mode()
    def predict(images: torch.Tensor) -> torch.Tensor:
        training = model.training
        model.eval()
        try:
            device = next(model.parameters()).device
            return model(normalise(images.to(device, non_blocking=True), view.mean, view.std))
        finally:
            model.train(training)

    return predict


def model_top1(model: nn.Module, view: View, batches: Iterable) -> float:
    """Top-1 accuracy in percent, on the fastest device; the model is on the CPU afterwards."""
    model.to(runtime.accelerator().device)
    try:
        return top1_percent(predictor(model, view), batches)
    finally:
        model.cpu()

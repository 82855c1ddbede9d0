"""What a model, or any callable from images to logits, makes of a split; accuracy, and how sure that is."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn

from pipeline.data.loader import Evaluation
from pipeline.data.view import View, normalise
from pipeline.train import runtime

Predict = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The likeliest class of every image of a split, in its order."""

    labels: np.ndarray
    """(N,) int64, the true classes"""
    predicted: np.ndarray
    """(N,) int64"""
    confidence: np.ndarray
    """(N,) float32, probability that the model gives to the class that it predicts"""

    @property
    def top1(self) -> float:
        """Share of images whose class is predicted, percent."""
        return 100 * int((self.predicted == self.labels).sum()) / len(self.labels)

    @property
    def balanced(self) -> float:
        """Mean over the classes of the share of their images that is right, percent: every class counts alike."""
        right, images = self._by_class()
        return 100 * float((right / images).mean())

    @property
    def top1_error(self) -> float:
        """Standard error of `top1`, points: what chance in the choice of the images alone makes of it.

        Of the binomial share (right + 1) / (N + 2), so that it is not 0 where all images are right.
        """
        right, images = int((self.predicted == self.labels).sum()), len(self.labels)
        share = (right + 1) / (images + 2)
        return 100 * math.sqrt(share * (1 - share) / images)

    @property
    def balanced_error(self) -> float:
        """Standard error of `balanced`, points."""
        right, images = self._by_class()
        share = (right + 1) / (images + 2)
        return 100 * float(np.sqrt((share * (1 - share) / images).sum())) / len(images)

    def _by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """Images that are right, and all, of every class that has any."""
        classes, rows = np.unique(self.labels, return_inverse=True)
        right = np.bincount(rows, weights=self.predicted == self.labels, minlength=len(classes))
        return right, np.bincount(rows, minlength=len(classes))


def predictions(predict: Predict, batches: Iterable) -> Predictions:
    """What `predict` makes of a split.

    predict: uint8 (B, 3, H, W) -> (B, C) logits
    batches: pairs of images and labels (B,)
    """
    parts = []
    for images, labels_B in batches:
        logits_BC = predict(images).float()
        predicted_B = logits_BC.argmax(-1)  # of the logits: probabilities of several classes may be rounded to 1
        confidence_B = logits_BC.softmax(-1).gather(-1, predicted_B[:, None])[:, 0]
        parts.append([part.cpu().numpy() for part in (labels_B, predicted_B, confidence_B)])
    labels, predicted, confidence = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Predictions(labels=labels, predicted=predicted, confidence=confidence)


def predictions_of_all(predict: Predict, batches: Evaluation) -> Predictions:
    """What `predict` makes of a split that is shared out: each process its batches, and then all know everything."""
    mine = predictions(predict, batches) if len(batches.rows) else None
    parts = [part for part in runtime.gathered((batches.rows, mine)) if part[1] is not None]
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    found = ([getattr(part, field.name) for _, part in parts] for field in fields(Predictions))
    labels, predicted, confidence = (np.concatenate(values)[order] for values in found)
    return Predictions(labels=labels, predicted=predicted, confidence=confidence)


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


def model_predictions(model: nn.Module, view: View, batches: Evaluation) -> Predictions:
    """What a model makes of a split, on the fastest device; the model is on the CPU afterwards."""
    model.to(runtime.device())
    try:
        return predictions_of_all(predictor(model, view), batches)
    finally:
        model.cpu()

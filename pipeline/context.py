"""What every stage is given: the run, its data and loaders, and the training loop with this run filled in."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models import VisionTransformer
from torch import nn

from dap import Method, load_compact, save_compact
from pipeline import models, plan
from pipeline.config import OWN, TrainConfig
from pipeline.data import datasets, loader
from pipeline.data.datasets import Dataset, Split
from pipeline.data.index import Files
from pipeline.data.loader import Batches, Evaluation, Share, eval_loader, train_loader
from pipeline.data.view import View, normalise
from pipeline.report import evidence, mistakes
from pipeline.report.evidence import Evidence
from pipeline.runs import Run
from pipeline.train import runtime, tracking
from pipeline.train.evaluate import Predictions, model_predictions, predictions_of_all, predictor
from pipeline.train.loop import Progress, train
from targets import Target

Results = dict[str, Any]
Written = tuple[list[Path], Results]
"""what a stage returns: the files it wrote, and its results"""


@dataclass(frozen=True)
class Context:
    """One run while it is being worked on."""

    run: Run
    """the folder and its config"""
    progress: Progress
    """told after every training step"""
    say: Callable[[str], None]
    """told what is being done, a line at a time"""
    tracker: str | None = None
    """one of tracking.TRACKERS, which is told of every training step too"""

    @cached_property
    def dataset(self) -> Dataset:
        """The run's data set; which images it leaves out is told. All processes ask for it at the same time."""
        config = self.run.config
        dataset = runtime.main_first(
            lambda: datasets.load_dataset(
                config.dataset,
                config.subset,
                folder=config.data_folder,
                max_bad_share=config.max_bad_share,
                keep_duplicates=config.keep_duplicates,
                progress=lambda done, total: self.progress("checking", done, total, {}),
            )
        )
        runtime.agree("images", dataset.fingerprint)
        for file in dataset.skipped:
            self.say(f"  left out: {file.path} ({file.reason})")
        return dataset

    @cached_property
    def view(self) -> View:
        """How the run's model wants its images, as stage prepare has written it."""
        return View.read(self.model_folder / "preprocess.json")

    @property
    def checkpoints(self) -> Path:
        """Resumable state, and the models between the stages."""
        return self.run.folder / "checkpoints"

    @property
    def model_folder(self) -> Path:
        """The final small model, its labels and its preprocessing."""
        return self.run.folder / "model"

    def artifacts(self, target: Target) -> Path:
        """Where a target's artifacts and manifest go."""
        return self.run.folder / "artifacts" / target.name

    @cached_property
    def val_batches(self) -> Evaluation:
        """The validation split in order, 256 images at a time: this process's part, read once if it fits in memory."""
        return self._evaluation(self.dataset.val)

    @cached_property
    def reported_batches(self) -> Evaluation:
        """Likewise the split that accuracy is reported of: test where there is one, else val."""
        test = self.dataset.test
        return self.val_batches if test is None else self._evaluation(test)

    @cached_property
    def spare_batches(self) -> Evaluation | None:
        """The training images that a subset leaves out, likewise; None if there are none."""
        spare = self.dataset.spare
        return None if spare is None or not len(spare.labels) else self._evaluation(spare)

    def _evaluation(self, split: Split) -> Evaluation:
        return eval_loader(split, self.view, 256, loader.default_workers(self.dataset), runtime.share())

    def train_batches(self, config: TrainConfig, *, whole: bool = False) -> Batches:
        """The training split, augmented; this process's part of every step, or all of it."""
        workers = loader.default_workers(self.dataset)
        try:
            return train_loader(
                self.dataset,
                self.view.size,
                config.batch_size,
                self.run.config.seed,
                workers,
                config.in_memory,
                share=Share(0, 1, runtime.device()) if whole else runtime.share(),
                balanced=config.balanced,
            )
        except ValueError as error:
            raise runtime.of_all(error) from None

    def calibration_batches(self, count: int, *, whole: bool = False) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of the first `count` training steps, augmented and normalised, on the device that trains.

        whole: all images of a step, not only this process's part
        """
        run, device = self.run.config, runtime.device()
        config = run.prune or run.finetune
        assert config is not None, "a method prunes or fine-tunes"
        batches = self.train_batches(config, whole=whole)
        with contextlib.closing(batches.starting_at(0)) as stream:
            for images, targets in itertools.islice(stream, count * len(batches.rows)):
                yield normalise(images.to(device), self.view.mean, self.view.std), targets.to(device)

    def calibration_images(self, count: int) -> np.ndarray:
        """(count or all, H, W, 3) uint8: training images spread evenly, as evaluation sees them."""
        split = self.dataset.train
        rows = np.unique(np.linspace(0, len(split.labels) - 1, count).astype(np.int64))
        chosen = Split(images=split.images.chosen(rows), labels=split.labels[rows])
        batches = eval_loader(chosen, self.view, 256, 0)
        return torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1).contiguous().numpy()

    @property
    def stages(self) -> dict[str, TrainConfig]:
        """How each of the stages that train does, in order, with the epochs that the run's plan gives it."""
        return plan.settled(self.run)

    def train(
        self, stage: str, model: VisionTransformer, pruner: Method | None = None
    ) -> tuple[int, Predictions | None]:
        """Train `model` in place, from the stage's checkpoint if there is one; accuracy goes to the log.

        Returns the epoch that is kept, and what the model of it makes of the validation split, if that is known.
        """
        config = self.stages[stage]
        models.set_drop_path(model, config.drop_path)
        batches = self.train_batches(config)
        train_images, val_images = len(self.dataset.train.labels), len(self.dataset.val.labels)
        for line in plan.told(self.run, stage, train_images):
            self.say(line)
        stages = list(self.stages)
        ahead = [plan.work(self.run, later) for later in stages[stages.index(stage) + 1 :]]
        clock = plan.Clock(
            self.progress,
            self.say,
            epoch=len(batches),
            evaluation=plan.EVALUATING * val_images / train_images / config.evaluate_every,
            ahead=sum(ahead) / plan.work(self.run, stage),
        )
        if batches.batch_size < config.batch_size:
            count = len(self.dataset.train.labels)
            self.say(
                f"  BATCH_SIZE={config.batch_size} is too large for {count} images: {batches.batch_size} are taken"
            )
        evaluated: list[Predictions] = []

        def evaluate(current: nn.Module) -> Predictions:
            evaluated.append(predictions_of_all(predictor(current, self.view), self.val_batches))
            return evaluated[-1]

        with tracking.tracked(self.tracker, self.run.folder, stage, config, clock) as progress:
            epoch = train(
                model,
                batches,
                config,
                stage=stage,
                seed=self.run.config.seed,
                view=self.view,
                classes=len(self.dataset.classes),
                checkpoint=self.checkpoints / f"{stage}.pt",
                log=self.run.log,
                pruner=pruner,
                teacher=None if stage == "dense" else self.teacher(),
                logits_alone=self.run.config.teach == "logits",
                evaluate=evaluate,
                progress=progress,
                say=self.say,
            )
        # not known if an earlier epoch's weights are kept, or if the checkpoint of the end was all that was read
        return epoch, evaluated[-1] if evaluated and epoch == config.epochs else None

    def predictions(self, model: VisionTransformer) -> Predictions:
        """What a model makes of the split that accuracy is reported on."""
        return model_predictions(model, self.view, self.reported_batches)

    def accuracy(
        self, model: VisionTransformer, name: str, suffix: str = "", val: Predictions | None = None
    ) -> Written:
        """A trained model's accuracy; what it makes of the split that is reported on is kept for the report.

        name: one of evidence.MODELS;  suffix: of the results' names;  val: what it makes of that split, if known
        Results: top1, balanced_accuracy, and top1_val, which without a test split is top1.
        """
        val = val or model_predictions(model, self.view, self.val_batches)
        found = val if self.dataset.test is None else self.predictions(model)
        measured = {f"top1{suffix}": found.top1, f"balanced_accuracy{suffix}": found.balanced}
        kept = [self.keep(name, found)] if runtime.is_main() else []
        return kept, {**measured, f"top1{suffix}_val": val.top1}

    def keep(self, name: str, found: Predictions) -> Path:
        """Keep predictions, with the pictures that a report shows; returns the file.

        name: one of evidence.MODELS; the small model is held against what is kept of the dense one
        """
        part = self.dataset.top1_split
        folder, split = self.run.folder, self.dataset.splits[part]
        beside = evidence.path_of(folder, part, "dense")
        dense = None
        if name == "small" and beside.exists():
            dense = evidence.read(beside, len(self.dataset.classes))
        kept = Evidence(labels=found.labels, predicted=found.predicted, confidence=found.confidence)
        rows = mistakes.to_show(kept, dense)
        chosen = split.images.chosen(rows)
        batches = eval_loader(Split(images=chosen, labels=split.labels[rows]), self.view, 256, 0)
        size = min(self.view.size, evidence.PICTURE)
        pictures = np.zeros((len(rows), size, size, 3), np.uint8)
        for row, image in enumerate(image for images, _ in batches for image in images):
            whole = Image.fromarray(image.permute(1, 2, 0).numpy())
            pictures[row] = np.asarray(whole.resize((size, size), Image.Resampling.LANCZOS))
        names = tuple(chosen.members) if isinstance(chosen, Files) else ("",) * len(rows)
        path = evidence.path_of(folder, part, name)
        evidence.write(path, replace(kept, rows=rows, pictures=pictures, names=names))
        return path

    def teacher(self) -> VisionTransformer | None:
        """The model that pruning and fine-tuning learn from, if there is one."""
        name = self.run.config.teacher
        return None if name is None else load_compact(self.checkpoints / OWN if name == OWN else name)

    def dense_model(self) -> VisionTransformer:
        """The dense reference; without one the model before training, which is as fast."""
        return load_compact(self.checkpoints / ("dense" if self.run.config.dense else "prepared"))


def save_model(model: VisionTransformer, folder: Path) -> list[Path]:
    """Save a dense or compact model, in the first process; returns the files."""
    if runtime.is_main():
        save_compact(model, folder)
    return [folder / "architecture.json", folder / "weights.safetensors"]

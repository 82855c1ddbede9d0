"""What every stage is given: the run, its data and loaders, and the training loop with this run filled in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from timm.models import VisionTransformer
from torch.utils.data import DataLoader

from dap import Pruner, load_compact, save_compact
from pipeline import data, files, loader, models
from pipeline.data import Dataset, View
from pipeline.evaluate import model_top1, predictor, top1_percent
from pipeline.loader import eval_loader, train_loader
from pipeline.runs import Run
from pipeline.train import Progress, TrainConfig, train
from targets import Target


@dataclass(frozen=True)
class Context:
    """One run while it is being worked on."""

    run: Run
    """the folder and its config"""
    progress: Progress
    """told after every training step"""
    say: Callable[[str], None]
    """told what is being done, a line at a time"""

    @cached_property
    def dataset(self) -> Dataset:
        """The run's data set."""
        return data.load_dataset(self.run.config.dataset, self.run.config.subset)

    @cached_property
    def view(self) -> View:
        """How the run's model wants its images, as stage prepare has written it."""
        return View.from_json(files.read_json(self.model_folder / "preprocess.json"))

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

    def val_batches(self) -> DataLoader:
        """The whole validation split in order, 256 images at a time."""
        return eval_loader(self.dataset.val, self.view, 256, loader.default_workers(self.dataset))

    def train_batches(self, config: TrainConfig) -> DataLoader:
        """The training split, augmented."""
        workers = loader.default_workers(self.dataset)
        return train_loader(self.dataset, self.view.size, config.batch_size, self.run.config.seed, workers)

    def train(self, stage: str, model: VisionTransformer, config: TrainConfig, pruner: Pruner | None = None) -> None:
        """Train `model` in place, from the stage's checkpoint if there is one; accuracy goes to the log every epoch."""
        models.set_drop_path(model, config.drop_path)
        batches = self.val_batches()
        train(
            model,
            self.train_batches(config),
            config,
            stage=stage,
            seed=self.run.config.seed,
            view=self.view,
            classes=len(self.dataset.classes),
            checkpoint=self.checkpoints / f"{stage}.pt",
            log=self.run.log,
            pruner=pruner,
            evaluate=lambda current: top1_percent(predictor(current, self.view), batches),
            progress=self.progress,
        )

    def top1(self, model: VisionTransformer) -> float:
        """Top-1 accuracy on the validation split, percent."""
        return model_top1(model, self.view, self.val_batches())

    def dense_model(self) -> VisionTransformer:
        """The dense reference; without one the model before training, which is as fast."""
        return load_compact(self.checkpoints / ("dense" if self.run.config.dense else "prepared"))


def save_model(model: VisionTransformer, folder: Path) -> list[Path]:
    """Save a dense or compact model; returns the files."""
    save_compact(model, folder)
    return [folder / "architecture.json", folder / "weights.safetensors"]

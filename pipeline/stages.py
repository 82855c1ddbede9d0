"""The stages, in order: run folder in, run folder out. A finished stage is not redone unless its inputs changed.

prepare -> dense -> prune -> compact -> finetune        once per run
export -> validate -> report                            once per run and target
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.models import VisionTransformer

from dap import Pruner, count_macs, count_params, load_compact, save_compact
from pipeline import data, files, models
from pipeline.config import METHODS
from pipeline.data import Dataset, View, eval_loader, train_loader
from pipeline.evaluate import model_top1, predictor, top1_percent
from pipeline.runs import Run
from pipeline.train import Progress, TrainConfig, train


@dataclass(frozen=True)
class Context:
    """What every stage is given."""

    run: Run
    """the folder and its config"""
    progress: Progress
    """told after every training step"""
    say: Callable[[str], None]
    """told what is being done, a line at a time"""

    @cached_property
    def dataset(self) -> Dataset:
        return data.load_dataset(self.run.config.dataset)

    @cached_property
    def view(self) -> View:
        values = files.read_json(self.model_folder / "preprocess.json")
        return View(**{key: tuple(v) if isinstance(v, list) else v for key, v in values["view"].items()})

    @property
    def checkpoints(self) -> Path:
        return self.run.folder / "checkpoints"

    @property
    def model_folder(self) -> Path:
        return self.run.folder / "model"

    def val_batches(self) -> torch.utils.data.DataLoader:
        return eval_loader(self.dataset.val, self.view, 256, data.default_workers(self.dataset))


Results = dict[str, Any]
StageFunction = Callable[[Context], tuple[list[Path], Results]]


def prepare(context: Context) -> tuple[list[Path], Results]:
    """Data, and the pretrained model with a new head."""
    config, folder = context.run.config, context.model_folder
    set_seed(config.seed)
    model = models.create_model(
        config.model,
        len(context.dataset.classes),
        weights=Path(config.model_path) if config.model_path else None,
        from_scratch=config.from_scratch,
    )
    files.write_json(folder / "labels.json", list(context.dataset.classes))
    files.write_json(folder / "preprocess.json", {"view": asdict(View.of(model))})
    written = _save(model, context.checkpoints / "prepared")
    return [*written, folder / "labels.json", folder / "preprocess.json"], _size(model, "_dense")


def dense(context: Context) -> tuple[list[Path], Results]:
    """The reference: the same model fine-tuned without pruning."""
    if context.run.config.dense is None:
        return [], {"top1_dense": None}
    model = load_compact(context.checkpoints / "prepared")
    _train(context, "dense", model, context.run.config.dense)
    return _save(model, context.checkpoints / "dense"), {"top1_dense": _top1(context, model)}


def prune(context: Context) -> tuple[list[Path], Results]:
    """Fine-tune while the pruner allocates and masks; ends with hard masks on a model of dense shape."""
    model, pruner = _pruned_model(context)
    _train(context, "prune", model, context.run.config.prune, pruner)
    pruner.harden()
    path = context.checkpoints / "masked.pt"
    files.save_checkpoint(path, {"model": model.state_dict(), "pruner": pruner.state_dict()})
    return [path], {"top1_masked": _top1(context, model), "blocks": pruner.blocks()}


def compact(context: Context) -> tuple[list[Path], Results]:
    """The masked model made small for good; checked against the masked one on real images."""
    model, pruner = _pruned_model(context)
    state = files.load_checkpoint(context.checkpoints / "masked.pt")
    assert state is not None, "stage prune has written it"
    model.load_state_dict(state["model"])
    pruner.load_state_dict(state["pruner"])
    images = next(iter(context.val_batches()))[0][:64]
    before = predictor(model, context.view)(images)
    small = pruner.finalize()
    difference = float((predictor(small, context.view)(images) - before).abs().max() / before.abs().max())
    if difference > 1e-4:
        raise AssertionError(f"the compact model's logits differ from the masked model's by {difference:.1e}")
    return _save(small, context.checkpoints / "compact"), {
        "top1_compact": _top1(context, small),
        "compaction_error": difference,
    }


def finetune(context: Context) -> tuple[list[Path], Results]:
    """Train the small model on."""
    model = load_compact(context.checkpoints / "compact")
    _train(context, "finetune", model, context.run.config.finetune)
    return _save(model, context.model_folder), {"top1": _top1(context, model), **_size(model)}


TRAINING: dict[str, StageFunction] = {
    "prepare": prepare,
    "dense": dense,
    "prune": prune,
    "compact": compact,
    "finetune": finetune,
}


def run_training(context: Context, only: str | None = None) -> None:
    """Run the stages up to the small fine-tuned model, or the one called `only`, leaving out what is finished."""
    config = context.run.config
    before: dict[str, str] = {}
    if config.model_path and Path(config.model_path).is_file():
        before["MODEL_PATH"] = files.digest(Path(config.model_path))
    for name, stage in TRAINING.items():
        # The config cannot change within a run folder; the images, the weights and earlier stages' files can.
        inputs = {"data": context.dataset.fingerprint, "files": before}
        if only in (None, name):
            _run(context, name, inputs, partial(stage, context))
        elif not context.run.finished(name, inputs):
            raise ValueError(f"stage {only} needs stage {name}, which has not finished. Run that first")
        if only == name:
            return
        before = {**before, **context.run.files(name)}


def _run(context: Context, name: str, inputs: Any, stage: Callable[[], tuple[list[Path], Results]]) -> None:
    if context.run.finished(name, inputs):
        context.say(f"{name}: finished before")
        return
    if context.run.begin(name, inputs):
        context.say(f"{name}: its inputs have changed, so it begins anew")
        (context.checkpoints / f"{name}.pt").unlink(missing_ok=True)
    else:
        context.say(name)
    started = time.monotonic()
    written, results = stage()
    context.run.finish(name, inputs, written, results, time.monotonic() - started)


def _pruned_model(context: Context) -> tuple[VisionTransformer, Pruner]:
    config = context.run.config
    set_seed(config.seed)
    model = load_compact(context.checkpoints / "prepared")
    steps = len(_loader(context, config.prune))
    settings = replace(config.pruning, allocation=METHODS[config.method].allocation)
    return model, Pruner(model, settings, steps_per_epoch=steps, epochs=config.prune.epochs)


def _loader(context: Context, config: TrainConfig) -> torch.utils.data.DataLoader:
    workers = data.default_workers(context.dataset)
    return train_loader(context.dataset, context.view.size, config.batch_size, context.run.config.seed, workers)


def _train(
    context: Context, stage: str, model: VisionTransformer, config: TrainConfig, pruner: Pruner | None = None
) -> None:
    models.set_drop_path(model, config.drop_path)
    batches = context.val_batches()
    train(
        model,
        _loader(context, config),
        config,
        stage=stage,
        seed=context.run.config.seed,
        view=context.view,
        classes=len(context.dataset.classes),
        checkpoint=context.checkpoints / f"{stage}.pt",
        log=context.run.log,
        pruner=pruner,
        evaluate=lambda model: top1_percent(predictor(model, context.view), batches),
        progress=context.progress,
    )


def _top1(context: Context, model: VisionTransformer) -> float:
    return model_top1(model, context.view, context.val_batches())


def _save(model: VisionTransformer, folder: Path) -> list[Path]:
    save_compact(model, folder)
    return [folder / "architecture.json", folder / "weights.safetensors"]


def _size(model: VisionTransformer, suffix: str = "") -> Results:
    return {f"params{suffix}": count_params(model), f"macs{suffix}": count_macs(model)}

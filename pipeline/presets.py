"""Named configurations: each function returns one complete RunConfig. A variant is `replace(preset(), ...)`."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from dap import PruneConfig
from pipeline.config import PretrainConfig, RunConfig, TrainConfig
from pipeline.data import names
from pipeline.methods import METHODS
from pipeline.model_names import DINO_SMALL, MICRO


def digits(sparsity: float) -> RunConfig:
    """The embedded default: minutes on two CPU cores. The dense reference trains as long as pruning and fine-tuning.

    A third more epochs gain 0.4 points (three seeds, docs/demo.md).
    """
    recipe: dict[str, Any] = dict(batch_size=16, lr=1e-3, lr_batch=16, evaluate_every=2, checkpoint_seconds=15.0)
    return RunConfig(
        dataset="digits",
        model=MICRO,
        pruning=PruneConfig(sparsity=sparsity),
        dense=TrainConfig(epochs=6, warmup_epochs=1, **recipe),
        prune=TrainConfig(epochs=4, warmup_epochs=1, schedule="constant", **recipe),
        finetune=TrainConfig(epochs=2, **recipe),
    )


def micro(dataset: str, sparsity: float) -> RunConfig:
    """The embedded small model on a data set of photographs, without a GPU: few epochs, and no mixing of images, which
    pays in long runs and for large models.
    """
    recipe: dict[str, Any] = dict(batch_size=32, lr=5e-4, lr_batch=32)
    return RunConfig(
        dataset=dataset,
        model=MICRO,
        pruning=PruneConfig(sparsity=sparsity),
        dense=TrainConfig(epochs=12, warmup_epochs=1, **recipe),
        prune=TrainConfig(epochs=8, warmup_epochs=1, schedule="constant", **recipe),
        finetune=TrainConfig(epochs=4, **recipe),
    )


def few_images(dataset: str, model: str, sparsity: float) -> RunConfig:
    """A real pretrained ViT on some hundred photographs a class: the rate that its fine-tuning takes, and no mixing.

    Measured with DINOv2's ViT-S on 1,000 photographs (docs/results.md).
    """
    recipe: dict[str, Any] = dict(batch_size=64, lr=1e-4, lr_batch=64)
    return RunConfig(
        dataset=dataset,
        model=model,
        pruning=PruneConfig(sparsity=sparsity),
        dense=TrainConfig(epochs=40, warmup_epochs=1, **recipe),
        prune=TrainConfig(epochs=24, warmup_epochs=1, schedule="constant", **recipe),
        finetune=TrainConfig(epochs=16, **recipe),
    )


def paper(dataset: str, model: str, sparsity: float) -> RunConfig:
    """The settings of the published runs (method note, section 6): for a GPU, or for patience."""
    recipe: dict[str, Any] = dict(batch_size=64, lr=5e-4, lr_batch=512, mixup=0.8, cutmix=1.0, drop_path=0.1)
    return RunConfig(
        dataset=dataset,
        model=model,
        pruning=PruneConfig(sparsity=sparsity),
        dense=TrainConfig(epochs=100, warmup_epochs=5, **recipe),
        prune=TrainConfig(epochs=50, schedule="constant", **recipe),
        finetune=TrainConfig(epochs=300, warmup_epochs=5, **recipe),
    )


def of(dataset: str, model: str | None, sparsity: float) -> RunConfig:
    """The preset that suits a data set; the model is the one asked for or the preset's own.

    The named data sets have their recipes. A user's own folder has those that were measured on photographs, for as
    many epochs as its images and the machine suggest.
    """
    dataset = names.resolve(dataset)
    own = dataset.startswith(names.OWN)
    if dataset == "digits":
        return replace(digits(sparsity), model=model or MICRO)
    if model and model.split(".")[0] == MICRO:
        return _scaled(micro(dataset, sparsity), 1500) if own else micro(dataset, sparsity)
    if own:
        return _scaled(few_images(dataset, model or "deit_tiny_patch16_224", sparsity), 1000, cpu_share=0.5)
    if model and model.split(".")[0] == DINO_SMALL:
        return few_images(dataset, model, sparsity)
    return paper(dataset, model or "deit_tiny_patch16_224", sparsity)


def _scaled(config: RunConfig, images: int, cpu_share: float = 1.0) -> RunConfig:
    """The same run with epochs that are meant for so many training images, as many as they were measured with."""
    stages: dict[str, Any] = {
        stage: replace(train, epochs_for=images, cpu_share=cpu_share) for stage, train in config.stages.items()
    }
    return replace(config, **stages)


def with_method(config: RunConfig, method: str, *, released: bool = False, **pruning: Any) -> RunConfig:
    """The same run with another method, and the same number of epochs in all: they move to the stage that it trains in.

    pruning: settings of PruneConfig to change
    """
    if method not in METHODS:
        raise ValueError(f"METHOD={method} is unknown. Known: {', '.join(METHODS)}")
    assert config.prune is not None, "a preset prunes and fine-tunes"
    assert config.finetune is not None, "a preset prunes and fine-tunes"
    total = config.prune.epochs + config.finetune.epochs
    # epochs that the user has given are kept to, even if those of the other stage were to be scaled
    meant_for = config.prune.epochs_for if config.prune.epochs_for == config.finetune.epochs_for else None
    prune: TrainConfig | None = config.prune
    finetune: TrainConfig | None = config.finetune
    if method == "dense":
        prune = finetune = None
    elif METHODS[method].one_shot:
        warmup = config.prune.warmup_epochs
        prune, finetune = None, replace(config.finetune, epochs=total, epochs_for=meant_for, warmup_epochs=warmup)
    elif not METHODS[method].finetunes:
        prune, finetune = replace(config.prune, epochs=total, epochs_for=meant_for), None
    return replace(
        config,
        method=method,
        released=released,
        prune=prune,
        finetune=finetune,
        pruning=replace(config.pruning, **pruning),
    )


def with_latency(config: RunConfig, latency_ms: float) -> RunConfig:
    """The same run under a budget of milliseconds on its target, in place of a sparsity."""
    return replace(config, latency_ms=latency_ms, pruning=replace(config.pruning, cost="latency"))


def pretraining(dataset: str, *, model: str, init: str | None, epochs: int, lr: float, seed: int) -> PretrainConfig:
    """Training of the embedded model's weights."""
    recipe = TrainConfig(epochs=epochs, batch_size=128, lr=lr, warmup_epochs=min(1, epochs - 1), checkpoint_seconds=300)
    return PretrainConfig(dataset=names.resolve(dataset), model=model, init=init, seed=seed, train=recipe)


def dataset_name(config: RunConfig) -> str:
    """The data set in a word: its name or its folder's, and the subset."""
    name = config.dataset
    if name.startswith("folder:"):
        name = Path(name.removeprefix("folder:")).expanduser().resolve().stem
    elif name.startswith(names.TARS):
        path = Path(name.removeprefix(names.TARS))
        folder = path.parent if path.suffix == ".tar" else path
        name = re.sub(r"[^\w.-]+", "-", folder.expanduser().absolute().name) or "tars"
    return name + (f"-{config.subset}" if config.subset else "")


def model_name(config: RunConfig) -> str:
    """The model in a word: its name, and the size of its images if it was asked for."""
    return config.model if config.img_size is None else f"{config.model}-{config.img_size}px"


def run_name(config: RunConfig) -> str:
    """The run folder's name when the user gives none: what tells runs apart at a glance."""
    dataset = dataset_name(config)
    if config.dataset.startswith(names.OWN):  # folders of the same name in different places must not meet in one run
        own = config.dataset.removeprefix("folder:").removeprefix(names.TARS)
        path = own if "://" in own else str(Path(own).expanduser().resolve())
        dataset += f"-{hashlib.sha256(path.encode()).hexdigest()[:6]}"
    method = f"{config.method}-released" if config.released else config.method
    if config.pruning.gates == "heads":
        method += "-heads"
    if config.teacher:
        method += "-distill"
    budget = f"{config.pruning.sparsity:g}"
    if config.latency_ms is not None:
        budget = f"{config.latency_ms:g}ms-{config.target}"
    return f"{dataset}-{model_name(config)}-{method}-{budget}-seed{config.seed}".replace("/", "_")

"""`make pretrain`: the weights of the embedded default model, from any class-folder data set."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from safetensors.torch import save

from pipeline import files, models
from pipeline.config import PretrainConfig
from pipeline.data import datasets, loader
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.view import View
from pipeline.train import runtime
from pipeline.train.evaluate import model_predictions
from pipeline.train.loop import Progress, train

LOST_IMAGES = 3


def pretrain(config: PretrainConfig, folder: Path, output: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train, then write `output` (safetensors, float16 unless that costs accuracy) and its model card beside it.

    folder: checkpoints and log; repeating the command goes on from there
    Returns what the card says: {"top1", "top1_fp32"} in percent on the validation split, {"val_images", "precision"}.
    """
    dataset = datasets.load_dataset(config.dataset)
    set_seed(config.seed)
    model = models.create_model(
        config.model,
        len(dataset.classes),
        weights=Path(config.init) if config.init else None,
        from_scratch=not config.init,
    )
    models.set_drop_path(model, config.train.drop_path)
    view, workers = View.of(model), loader.default_workers(dataset)
    log = files.Log(folder / "log.jsonl")
    train(
        model,
        train_loader(
            dataset,
            view.size,
            config.train.batch_size,
            config.seed,
            workers,
            config.train.in_memory,
            share=runtime.share(),
        ),
        config.train,
        stage="pretrain",
        seed=config.seed,
        view=view,
        classes=len(dataset.classes),
        checkpoint=folder / "pretrain.pt",
        log=log,
        progress=progress,
    )

    def accuracy() -> float:
        return model_predictions(model, view, eval_loader(dataset.val, view, 256, workers)).top1

    full = {key: value.contiguous() for key, value in model.state_dict().items()}
    top1_fp32 = accuracy()
    half = {key: value.half() for key, value in full.items()}
    model.load_state_dict(half)
    top1_fp16 = accuracy()
    # Rounding moves a handful of images across a decision boundary in either direction; a loss would be more than that.
    lossless = top1_fp16 >= top1_fp32 - 100 * LOST_IMAGES / len(dataset.val.labels)
    with files.atomic(output) as temporary:
        temporary.write_bytes(save(half if lossless else full))
    card = {
        "model": config.model,
        "config": asdict(config),
        "classes": len(dataset.classes),
        "train_images": len(dataset.train.labels),
        "val_images": len(dataset.val.labels),
        "parameters": sum(value.numel() for value in full.values()),
        "precision": "float16" if lossless else "float32",
        "top1": top1_fp16 if lossless else top1_fp32,
        "top1_fp32": top1_fp32,
        "view": asdict(view),
    }
    files.write_text(output.with_suffix(".md"), _card(card))
    return card


def _card(card: dict[str, Any]) -> str:
    config, training, view = card["config"], card["config"]["train"], card["view"]
    source = Path(config["dataset"].removeprefix("folder:")).name
    init = f"the weights in `{Path(config['init']).name}`" if config["init"] else "random weights"
    command = (
        f"make pretrain DATA=folder:{source} EPOCHS={training['epochs']} LR={training['lr']:g}{_init_option(config)}"
    )
    return f"""# {card["model"]}

A DeiT for {view["size"]}x{view["size"]} images, {card["parameters"]:,} parameters stored as {card["precision"]}.
For trying the pipeline without a download: a starting point for fine-tuning, not a product.

- **Data:** `{source}`: {card["classes"]} classes, {card["train_images"]:,} training images, {card["val_images"]:,} for
  validation.
- **Training:** {training["epochs"]} epochs from {init}, batch {training["batch_size"]}, AdamW, peak learning
  rate {training["lr"]:g}, {training["schedule"]} schedule, label smoothing {training["label_smoothing"]}, random
  resized crop and flip, seed {config["seed"]}.
- **Accuracy:** top-1 {card["top1"]:.2f} % on the validation images ({card["top1_fp32"]:.2f} % in float32).
- **Input:** RGB, mean {list(view["mean"])}, deviation {list(view["std"])}, crop ratio {view["crop_ratio"]}.
- **Made by:** `{command}`
"""


def _init_option(config: dict[str, Any]) -> str:
    return f" INIT={Path(config['init']).name}" if config["init"] else ""

"""`make pretrain`: the weights of the embedded default model, from any class-folder data set."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline import data, files, models
from pipeline.data import View, eval_loader, train_loader
from pipeline.evaluate import model_top1
from pipeline.train import TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What `make pretrain` does; saved beside its checkpoints."""

    dataset: str
    """folder:PATH"""
    model: str = models.MICRO
    """a timm DeiT or ViT name"""
    init: str | None = None
    """weights to begin from; None: random"""
    seed: int = 0
    """of the weights, the order and the augmentation"""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=20, batch_size=128, lr=1e-3, warmup_epochs=1, checkpoint_seconds=300)
    )
    """the training itself"""


def pretrain(config: PretrainConfig, folder: Path, output: Path, progress=None) -> dict[str, float]:
    """Train, then write `output` (safetensors, float16 if that costs no accuracy) and its model card.

    folder: checkpoints and log; repeating the command goes on from there
    Returns {"top1_fp32", "top1_fp16"}: percent on the validation split.
    """
    dataset = data.load_dataset(config.dataset)
    torch.manual_seed(config.seed)
    model = models.create_model(
        config.model,
        len(dataset.classes),
        weights=Path(config.init) if config.init else None,
        from_scratch=not config.init,
    )
    models.set_drop_path(model, config.train.drop_path)
    view, workers = View.of(model), data.default_workers(dataset)
    train(
        model,
        train_loader(dataset, view.size, config.train.batch_size, config.seed, workers),
        config.train,
        stage="pretrain",
        seed=config.seed,
        view=view,
        classes=len(dataset.classes),
        checkpoint=folder / "pretrain.pt",
        log=files.Log(folder / "log.jsonl"),
        progress=progress,
    )

    def accuracy() -> float:
        return model_top1(model, view, eval_loader(dataset.val, view, 256, workers))

    full = {key: value.contiguous() for key, value in model.state_dict().items()}
    top1_fp32 = accuracy()
    half = {key: value.half() for key, value in full.items()}
    model.load_state_dict(half)
    top1_fp16 = accuracy()
    # One image of 2,460 is 0.04 points; more than two of them would be a loss.
    small_enough = top1_fp16 >= top1_fp32 - 200 / len(dataset.val.labels)
    with files.atomic(output) as temporary:
        save_file(half if small_enough else full, temporary)
    return {"top1_fp32": top1_fp32, "top1_fp16": top1_fp16}

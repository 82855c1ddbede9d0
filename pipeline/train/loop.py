"""One training loop. It takes a pruner and knows no rule of it.

Bit-for-bit resumable: every random number of a step comes from (seed, step), and a checkpoint is taken between steps.
A GPU is never waited for within a step: the loss of a step is read, checked and logged while the next one is computed.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from dap import Method
from pipeline import files
from pipeline.config import TrainConfig
from pipeline.data.loader import Batches
from pipeline.data.view import View, normalise
from pipeline.errors import EnvironmentLacks, Interrupted
from pipeline.train import checkpoints, runtime
from pipeline.train.best import Best
from pipeline.train.evaluate import Predictions
from pipeline.train.features import Features, correspond

# Soft distillation as in arXiv 2012.12877, section 4, with its temperature and weight.
TEACHER_TEMPERATURE, TEACHER_WEIGHT = 3.0, 0.1
FEATURE_WEIGHT = 1.0  # ours, the only one tried

_BEGIN_ANEW = "Delete it to begin this stage anew"

Progress = Callable[[str, int, int, dict[str, float]], None]


class _Loss:
    """The loss of a step, on its way from the device: asked for now, read when it has arrived."""

    def __init__(self, loss: torch.Tensor) -> None:
        # on other devices than CUDA's a copy that is not waited for may be read too early
        self._value = loss.detach().to("cpu", non_blocking=loss.is_cuda)
        self._arrived = torch.cuda.current_stream().record_event() if loss.is_cuda else None

    def read(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._value)


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    *,
    stage: str,
    seed: int,
    view: View,
    classes: int,
    checkpoint: Path,
    log: files.Log,
    pruner: Method | None = None,
    teacher: nn.Module | None = None,
    logits_alone: bool = False,
    evaluate: Callable[[nn.Module], Predictions] | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Train `model` in place, from `checkpoint` if there is one; it is on the CPU afterwards.

    batches:  uint8 (B, 3, H, W) and int64 (B,), from any step on
    stage:    name that goes into every log line
    view:     mean and std that the model expects
    teacher:  model that is learned from too: its logits, and its residual stream where it corresponds
    logits_alone: learn from the teacher's logits alone
    evaluate: what the model as it stands makes of the validation split; its accuracy is logged after epochs
    progress: called after every step with (stage, steps done, steps in all, {"loss"} and the latest {"top1"})
    say:      told, in a line, what the user should know
    Returns the epoch whose weights are kept: the best, as train.best has it, if there is no pruner; else the last.
    Raises Interrupted after Ctrl-C, and EnvironmentLacks if the processes that read images have died, both with a
    checkpoint written; ValueError if the loss stops being finite, which is noticed a step late but never saved.
    """
    accelerator = runtime.accelerator()
    device = accelerator.device
    lr = config.lr_at(batches.batch_size * accelerator.num_processes)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=config.weight_decay)
    model, optimizer = accelerator.prepare(model, optimizer)  # not the batches: they know their process themselves
    steps_per_epoch, bare = len(batches), accelerator.unwrap_model(model)
    forward = runtime.compiled(model) if config.compile else model
    total = steps_per_epoch * config.epochs
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.schedule,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]  # timm multiplies it by the steps of an epoch
        warmup_lr=lr / 100,
        min_lr=lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    if teacher is not None:
        teacher = teacher.to(device).eval()
    features = None
    if teacher is not None and not logits_alone and correspond(bare, teacher):
        features = Features(bare, teacher)
    mixup = None
    criterion: nn.Module = LabelSmoothingCrossEntropy(config.label_smoothing)
    if config.mixup or config.cutmix:
        mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes)
        criterion = SoftTargetCrossEntropy()

    best = Best(config) if evaluate is not None and pruner is None else None  # masks move: an early one is not sparse
    fields = {**dataclasses.asdict(config), "checkpoint_seconds": None}
    step = 0
    if state := checkpoints.load_latest(checkpoint, say):
        if (state["config"], state["seed"]) != (fields, seed):
            raise ValueError(f"checkpoint {checkpoint} belongs to another configuration. {_BEGIN_ANEW}")
        try:
            bare.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if pruner is not None:
                pruner.load_state_dict(state["pruner"])
            if best is not None:
                best.load_state_dict(state["best"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"checkpoint {checkpoint} does not fit this model. {_BEGIN_ANEW}") from error
        step = state["step"]
    if accelerator.is_main_process:
        log.rewind(stage, step)

    shown: dict[str, float] = {}
    waiting: list[tuple[dict[str, Any], _Loss, Any]] = []  # at most one

    def write_waiting() -> None:
        """Check, log and show the step that has been computed but not looked at."""
        while waiting:
            line, loss, update = waiting.pop()
            line["loss"] = loss.read()
            if not math.isfinite(line["loss"]):
                raise ValueError(f"{stage}: the loss became {line['loss']} at step {line['step']}. Try a lower LR")
            if accelerator.is_main_process:
                log.write(line if update is None else {**line, **update})
                shown.update((key, line[key]) for key in ("loss", "top1") if key in line)
                if progress is not None:
                    progress(stage, line["step"], total, shown)

    def save() -> None:
        state = {"config": fields, "seed": seed, "step": step, "model": bare.state_dict(),
                 "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict() if pruner else None,
                 "best": best.state_dict() if best else None}  # fmt: skip
        if accelerator.is_main_process:
            checkpoints.save(checkpoint, state)

    model.train()
    saved_at = time.monotonic()
    with runtime.StopRequest() as stop, contextlib.closing(batches.starting_at(step)) as stream:
        while step < total and not (best and best.exhausted()):
            try:
                images, labels = next(stream)
            except EnvironmentLacks:
                write_waiting()
                save()
                raise
            set_seed(_step_seed(seed, step), device_specific=True)
            scheduler.step_update(step)
            images, labels = (part.to(device, non_blocking=device.type == "cuda") for part in (images, labels))
            inputs, targets = normalise(images, view.mean, view.std), labels
            if mixup is not None:
                inputs, targets = mixup(inputs, labels)
            with accelerator.autocast():
                logits = forward(inputs)
            loss = criterion(logits.float(), targets)
            if teacher is not None:
                with torch.inference_mode(), accelerator.autocast():
                    taught = teacher(inputs).float()
                loss = (1 - TEACHER_WEIGHT) * loss + TEACHER_WEIGHT * distillation(logits.float(), taught)
                if features is not None:
                    loss = loss + FEATURE_WEIGHT * features.loss()
            extra = pruner.loss(targets) if pruner is not None else None
            accelerator.backward(loss if extra is None else loss + extra)
            update = pruner.step(targets) if pruner is not None else None
            accelerator.clip_grad_norm_(model.parameters(), config.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            write_waiting()
            now = optimizer.param_groups[0]["lr"]
            line = {"stage": stage, "step": step, "epoch": step / steps_per_epoch, "lr": now}
            waiting.append((line, _Loss(loss), update))
            if evaluate is not None and step % steps_per_epoch == 0 and config.evaluates(step // steps_per_epoch):
                found = runtime.from_main(evaluate(bare) if accelerator.is_main_process else None)
                line |= {"top1": found.top1, "balanced_accuracy": found.balanced}
                if best is not None:
                    best.note(step // steps_per_epoch, found, bare)
            over = step == total or (best is not None and best.exhausted())
            if stop.set or over or time.monotonic() - saved_at > config.checkpoint_seconds:
                write_waiting()
                save()
                saved_at = time.monotonic()
            if stop.set:
                raise Interrupted(f"{stage} stopped at step {step} of {total}")
    if features is not None:
        features.remove()
    bare.cpu()
    if best is not None and best.is_kept():
        bare.load_state_dict(best.weights)
        say(f"  {stage}: {best.described()}")
        return best.epoch
    return step // steps_per_epoch


def distillation(logits_BC: torch.Tensor, taught_BC: torch.Tensor) -> torch.Tensor:
    """Temperature^2 x KL divergence of the teacher's softened classes from the student's, mean over images, nats.

    Source: Hinton et al., arXiv 1503.02531. timm's LogitDistillationTask computes the same, but calls the student
    itself and needs its pretrained_cfg, which a compact model does not have.
    """
    soft = nn.functional.log_softmax(logits_BC / TEACHER_TEMPERATURE, -1)
    aim = nn.functional.log_softmax(taught_BC / TEACHER_TEMPERATURE, -1)
    kl = nn.functional.kl_div(soft, aim, reduction="batchmean", log_target=True)
    return kl * TEACHER_TEMPERATURE**2


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**31

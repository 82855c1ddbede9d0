"""One training loop. It takes a pruner and knows no rule of it.

Bit-for-bit resumable: every random number of a step comes from (seed, step), and a checkpoint is taken between steps.
A GPU is never waited for within a step: the loss of a step is read, checked and logged while the next one is computed.
A step is the same on any number of processes and in any number of forwards, but for rounding: losses, gradients and
what probes see are those of all its images. Processes end together: whether one is to stop comes with the loss.
"""

import contextlib
import dataclasses
import hashlib
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
from pipeline.train.drop_path import DropPaths
from pipeline.train.evaluate import Predictions
from pipeline.train.features import Features, correspond

# Soft distillation as in arXiv 2012.12877, section 4, with its temperature and weight.
TEACHER_TEMPERATURE, TEACHER_WEIGHT = 3.0, 0.1
FEATURE_WEIGHT = 1.0  # ours, the only one tried

_BEGIN_ANEW = "Delete it to begin this stage anew"

Progress = Callable[[str, int, int, dict[str, float]], None]


class _Word:
    """A step's loss, and whether any process is to stop, over all of them: asked for now, read when it has arrived."""

    def __init__(self, loss: torch.Tensor, stop: bool, processes: int) -> None:
        word = torch.stack([loss / processes, torch.full_like(loss, float(stop))])
        runtime.sum_over_processes(word)
        # on other devices than CUDA's a copy that is not waited for may be read too early
        self._value = word.to("cpu", non_blocking=word.is_cuda)
        self._arrived = torch.cuda.current_stream().record_event() if word.is_cuda else None

    def read(self) -> tuple[float, bool]:
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, stop = self._value.tolist()
        return loss, stop > 0


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

    batches:  uint8 (B, 3, H, W) and int64 (B,), from any step on: this process's part of all
    stage:    name that goes into every log line
    view:     mean and std that the model expects
    teacher:  model that is learned from too: its logits, and its residual stream where it corresponds
    logits_alone: learn from the teacher's logits alone
    evaluate: what the model as it stands makes of the validation split; its accuracy is logged after epochs
    progress: called after every step with (stage, steps done, steps in all, {"loss", "lr"} and the latest accuracies)
    say:      told, in a line, what the user should know
    Returns the epoch whose weights are kept: the best, as train.best has it, if there is no pruner; else the last.
    Raises Interrupted after Ctrl-C in any process, and EnvironmentLacks if the processes that read images or another
    one of the training have died, both with a checkpoint written; ValueError if the loss stops being finite, which is
    noticed a step late but never saved.
    """
    rounds = len(batches.rows)
    accelerator = runtime.accelerator(rounds)
    device, processes = accelerator.device, accelerator.num_processes
    lr = config.lr_at(batches.batch_size)
    if (config.mixup or config.cutmix) and len(batches.rows[0]) % 2:
        problem = f"{len(batches.rows[0])} images of a step in a process at a time: mixup and cutmix mix two each"
        multiple = 2 * rounds * processes
        raise runtime.of_all(ValueError(f"{problem}. Take a BATCH_SIZE that is a multiple of {multiple}"))
    drop_paths = DropPaths(model, batches.batch_size)
    optimizer = adamw(model, lr, config.weight_decay, device)
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
        features = Features(bare, teacher, rounds)
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
            raise runtime.of_all(ValueError(f"checkpoint {checkpoint} belongs to another configuration. {_BEGIN_ANEW}"))
        try:
            bare.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if pruner is not None:
                pruner.load_state_dict(state["pruner"])
            if best is not None:
                best.load_state_dict(state["best"])
            if accelerator.scaler is not None and state.get("scaler"):
                accelerator.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"checkpoint {checkpoint} does not fit this model. {_BEGIN_ANEW}") from error
        step = state["step"]
    runtime.agree("step to go on from (is the run's folder the same one on all machines?)", (stage, step))
    if accelerator.is_main_process:
        log.rewind(stage, step)

    shown: dict[str, float] = {}
    waiting: list[tuple[dict[str, Any], _Word, Any]] = []  # at most one
    stopping = False  # a process was to stop a step ago, as all of them know
    sound = True  # the state is that of `step` steps

    def write_waiting() -> None:
        """Check, log and show the step that has been computed but not looked at."""
        nonlocal stopping
        while waiting:
            line, word, update = waiting.pop()
            line["loss"], stopping = word.read()
            if not math.isfinite(line["loss"]):
                problem = f"{stage}: the loss became {line['loss']} at step {line['step']}. Try a lower LR"
                raise runtime.of_all(ValueError(problem))
            if accelerator.is_main_process:
                log.write(line if update is None else {**line, **update})
                shown.update((key, line[key]) for key in ("loss", "lr", "top1", "balanced_accuracy") if key in line)
                if progress is not None:
                    progress(stage, line["step"], total, shown)

    def save() -> None:
        """All processes have the same state; it is written by one."""
        if accelerator.is_main_process:
            state = {"config": fields, "seed": seed, "step": step, "model": bare.state_dict(),
                     "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict() if pruner else None,
                     "best": best.state_dict() if best else None,
                     "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None}  # fmt: skip
            checkpoints.save(checkpoint, state)

    def part() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The next inputs and targets of a step, mixed, and the teacher's logits."""
        images, labels = (one.to(device, non_blocking=device.type == "cuda") for one in next(stream))
        inputs, targets = normalise(images, view.mean, view.std), labels
        if mixup is not None:
            set_seed(_step_seed(seed, step))  # the same draws for all parts of a step
            inputs, targets = mixup(inputs, labels)
        if teacher is None:
            return inputs, targets, None
        with torch.inference_mode(), accelerator.autocast():
            return inputs, targets, teacher(inputs).float()

    def backward(inputs: torch.Tensor, targets: torch.Tensor, taught: torch.Tensor | None) -> torch.Tensor:
        """One forward and backward; returns the loss, detached."""
        with accelerator.accumulate(model):
            with accelerator.autocast():
                logits = forward(inputs)
            loss = criterion(logits.float(), targets)
            if taught is not None:
                loss = (1 - TEACHER_WEIGHT) * loss + TEACHER_WEIGHT * distillation(logits.float(), taught)
                if features is not None:
                    loss = loss + FEATURE_WEIGHT * features.loss()
            extra = pruner.loss(targets) if pruner is not None else None
            accelerator.backward(loss if extra is None else loss + extra)
        return loss.detach()

    def train_step() -> None:
        nonlocal step, sound
        scheduler.step_update(step)
        parts = [part() for _ in batches.rows]
        losses = []
        for rows, (inputs, targets, taught) in zip(batches.rows, parts, strict=True):
            set_seed(_step_seed(seed, step))
            drop_paths.draw(_step_seed(seed, step), rows, device)
            losses.append(backward(inputs, targets, taught))
        word = _Word(torch.stack(losses).mean(), stop.set, processes)
        update = None
        if pruner is not None:
            # probes learn, and all processes with them, before anything changes
            scale = {} if accelerator.scaler is None else {"grad_scale": accelerator.scaler.get_scale()}
            update = pruner.step(torch.cat([targets for _, targets, _ in parts]), **scale)
            if update is not None and processes > 1:
                sound = False
                runtime.agree("masks", (update, masks_digest(bare)))
        accelerator.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        step, sound = step + 1, True
        write_waiting()
        now = optimizer.param_groups[0]["lr"]
        waiting.append(({"stage": stage, "step": step, "epoch": step / steps_per_epoch, "lr": now}, word, update))

    model.train()
    saved_at = time.monotonic()
    with runtime.StopRequest() as stop, contextlib.closing(batches.starting_at(step)) as stream:
        while step < total and not (best and best.exhausted()):
            try:
                train_step()
            except (RuntimeError, EnvironmentLacks) as error:
                # a GPU may be any number of steps behind
                lost = runtime.has_lost_another(error) and sound and device.type == "cpu"
                if lost or isinstance(error, EnvironmentLacks):
                    write_waiting()
                    save()
                raise
            if evaluate is not None and step % steps_per_epoch == 0 and config.evaluates(step // steps_per_epoch):
                found = evaluate(bare)
                waiting[-1][0].update(top1=found.top1, balanced_accuracy=found.balanced)
                if best is not None:
                    best.note(step // steps_per_epoch, found, bare)
            over = step == total or (best is not None and best.exhausted())
            ends = runtime.of_any(stop.set) if over or processes == 1 else stopping
            if ends or over or time.monotonic() - saved_at > config.checkpoint_seconds:
                write_waiting()
                save()
                saved_at = time.monotonic()
                ends = ends or (processes == 1 and stop.set)
            if ends:
                runtime.on_main(lambda: None)  # whoever started the processes ends all when one has: not before this
                raise runtime.of_all(Interrupted(f"{stage} stopped at step {step} of {total}"))
    drop_paths.remove()
    if features is not None:
        features.remove()
    bare.cpu()
    if best is not None and best.is_kept():
        bare.load_state_dict(best.weights)
        say(f"  {stage}: {best.described()}")
        return best.epoch
    return step // steps_per_epoch


def adamw(model: nn.Module, lr: float, weight_decay: float, device: torch.device) -> torch.optim.Optimizer:
    """timm's AdamW: no decay of biases, norms, tokens and position embedding; in one kernel where there is one."""
    fused = device.type in ("cpu", "cuda")
    return create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=weight_decay, fused=fused)


def distillation(logits_BC: torch.Tensor, taught_BC: torch.Tensor) -> torch.Tensor:
    """Temperature^2 x KL divergence of the teacher's softened classes from the student's, mean over images, nats.

    Source: Hinton et al., arXiv 1503.02531. timm's LogitDistillationTask computes the same, but calls the student
    itself and needs its pretrained_cfg, which a compact model does not have.
    """
    soft = nn.functional.log_softmax(logits_BC / TEACHER_TEMPERATURE, -1)
    aim = nn.functional.log_softmax(taught_BC / TEACHER_TEMPERATURE, -1)
    kl = nn.functional.kl_div(soft, aim, reduction="batchmean", log_target=True)
    return kl * TEACHER_TEMPERATURE**2


def masks_digest(model: nn.Module) -> str:
    """SHA-256 of a model's buffers, which are its masks."""
    digest = hashlib.sha256()
    for buffer in model.buffers():
        digest.update(buffer.cpu().numpy().tobytes())
    return digest.hexdigest()


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**31

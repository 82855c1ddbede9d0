"""The stages, in order: run folder in, run folder out. A finished stage is not redone unless its inputs changed, or a
device was busy, broke off or refused an artifact.

prepare, dense, prune, compact, finetune    once per run
export, validate, report                    once per run and target
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.models import VisionTransformer

from dap import Method, OneShot, count_macs, count_params, load_compact, rotate_heads
from pipeline import files, latency_budget, models, plan, weight_files
from pipeline.config import OWN
from pipeline.context import Context, Results, Written, save_model
from pipeline.data import augment, overview
from pipeline.data.view import View
from pipeline.deploying import validate
from pipeline.errors import EnvironmentLacks
from pipeline.exporting import export
from pipeline.methods import GATED, build
from pipeline.report.report import overall_verdict, write_report
from pipeline.report.results import versions
from pipeline.report.summary import judged_of, summarise
from pipeline.runs import Run
from pipeline.train import checkpoints, runtime
from pipeline.train.evaluate import predictor
from targets import TARGETS, strict
from targets.artifact import RuntimeUnavailable
from targets.devices.drivers import connect
from targets.devices.job import DeviceError
from targets.formats import FORMATS
from targets.latency import FULL, Protocol
from targets.rewrite import rewrite

ROTATION_STEPS = 8
"""training batches that show what attention heads compute"""
COMPENSATION_STEPS = 16
"""training batches that a small model is fitted on"""


def prepare(context: Context) -> Written:
    """Data, and the pretrained model with a new head. What cannot be pruned that far, or exported, is refused here."""
    return runtime.on_main(partial(_prepare, context))


def _prepare(context: Context) -> Written:
    config, folder = context.run.config, context.model_folder
    set_seed(config.seed)
    model = models.create_model(
        config.model,
        len(context.dataset.classes),
        img_size=config.img_size,
        weights=config.model_path,
        from_scratch=config.from_scratch,
    )
    written = save_model(model, context.checkpoints / "prepared")
    view = View.of(model)
    rewrite(model.eval(), view.mean, view.std)  # a model that cannot be exported should not be trained first
    rule = augment.resize_rule(view)
    files.write_json(folder / "labels.json", list(context.dataset.classes))
    files.write_json(folder / "preprocess.json", {**asdict(view), "resize": rule})
    widths = (
        []
        if config.method == "dense"
        else [block["heads"] * block["width"] for block in _pruned_model(context)[1].blocks()]
    )
    written += [folder / "labels.json", folder / "preprocess.json"]
    skipped = [asdict(file) for file in context.dataset.skipped]
    found = overview.summary(context.dataset)
    return written, {**_size(model, "_dense"), "widths_dense": widths, "skipped_images": skipped, "data": found}


def dense(context: Context) -> Written:
    """The reference that the small model is compared with: the same model fine-tuned without pruning."""
    if context.run.config.dense is None:
        return [], {"top1_dense": None}
    model = load_compact(context.checkpoints / "prepared")
    epoch, val = context.train("dense", model)
    kept, results = context.accuracy(model, "dense", "_dense", val)
    return [*save_model(model, context.checkpoints / "dense"), *kept], {**results, "epoch_dense": epoch}


def prune(context: Context) -> Written:
    """Fine-tune while the pruner allocates and masks, or decide in one shot; ends with a model of dense shape."""
    model, pruner = _pruned_model(context, runtime.device(), rotated=context.run.config.rotate)
    if isinstance(pruner, OneShot):
        pruner.calibrate(context.calibration_batches(pruner.calibration_steps))
    else:
        context.train("prune", model, pruner)
    pruner.harden()
    path = context.checkpoints / "masked.pt"
    if runtime.is_main():
        checkpoints.save(path, {"model": model.state_dict(), "pruner": pruner.state_dict()})
    return [path], {"top1_masked": context.predictions(model).top1, "blocks": pruner.blocks()}


def compact(context: Context) -> Written:
    """The masked model made small for good; held against the masked one on real images."""
    written, results = runtime.on_main(partial(_compact, context))
    small = load_compact(context.checkpoints / "compact")
    return written, {"top1_compact": context.predictions(small).top1, **results}


def _compact(context: Context) -> Written:
    model, pruner = _pruned_model(context)
    state = checkpoints.load(context.checkpoints / "masked.pt")
    assert state is not None, "stage prune has written it"
    model.load_state_dict(state["model"])
    pruner.load_state_dict(state["pruner"])
    images = next(iter(context.val_batches))[0][:64]
    masked = predictor(model, context.view)(images)
    small = pruner.finalize()
    difference = None
    if context.run.config.prune:  # a one-shot method has no masks: its small model is meant to compute something else
        difference = float((predictor(small, context.view)(images) - masked).abs().max() / masked.abs().max())
        assert difference < 1e-4, f"compact and masked logits differ by {difference:.1e} of the largest logit"
    if context.run.config.compensate:
        _compensate(context, small, model)
    results = {"compaction_error": difference, **latency_budget.prediction(context.run, small)}
    return save_model(small, context.checkpoints / "compact"), results


def _compensate(context: Context, small: VisionTransformer, whole: VisionTransformer) -> None:
    from dap.baselines.compensate import compensate  # a method of the comparison alone

    device = runtime.device()
    images = (images for images, _ in context.calibration_batches(COMPENSATION_STEPS, whole=True))
    compensate(small.to(device), whole.to(device), images)
    small.cpu(), whole.cpu()


def finetune(context: Context) -> Written:
    """Train the small model on, if the method does that."""
    model = load_compact(context.checkpoints / "compact")
    epoch, val = context.train("finetune", model) if context.run.config.finetune else (None, None)
    kept, results = context.accuracy(model, "small", val=val)
    results |= {"epoch_finetune": epoch, **_size(model)}
    return [*save_model(model, context.model_folder), *kept], results


def report(context: Context, only: str | None = None) -> str:
    """report.json, report.html and figures from what all stages left. Returns the verdict: of one target, or all."""
    run = context.run
    judged = judged_of(run)
    contents = {**summarise(run, judged), "epochs": {name: train.epochs for name, train in context.stages.items()}}
    samples: dict[str, list[float]] = {}
    for name, target in TARGETS.items():
        if run.results(f"validate {name}"):
            found = strict.read_json(context.artifacts(target) / "latency.json", dict[str, tuple[float, ...]])
            samples |= {f"{name}, {label}": list(values) for label, values in found.items()}
    write_report(run.folder, contents, run.log.read(), samples, judged)
    return overall_verdict(contents, only)


TRAINING: dict[str, Callable[[Context], Written]] = {
    "prepare": prepare,
    "dense": dense,
    "prune": prune,
    "compact": compact,
    "finetune": finetune,
}
DEPLOYING = ("export", "validate")


def training_stages(method: str) -> tuple[str, ...]:
    """The stages that a method goes through, in order."""
    return ("prepare", "dense") if method == "dense" else tuple(TRAINING)


def run_training(context: Context, only: str | None = None) -> None:
    """Run the stages up to the small fine-tuned model, or the one called `only`, leaving out what is finished.

    All processes run them; the first alone writes.
    """
    config = context.run.config
    before = runtime.on_main(partial(_given, context.run, len(context.dataset.train.labels)))
    for name in training_stages(config.method):
        # The config cannot change within a run folder; the images, the weights and earlier stages' files can.
        inputs = {"data": context.dataset.fingerprint, "files": before}
        if only in (None, name):
            _run(context, name, inputs, partial(TRAINING[name], context))
        elif not runtime.on_main(partial(context.run.finished, name, inputs)):
            raise runtime.of_all(ValueError(f"stage {only} needs stage {name}, which has not finished. Run that first"))
        if only == name:
            return
        before = {**before, **context.run.files(name)}


def _given(run: Run, images: int) -> dict[str, str]:
    """Digests of what a run is given beside its images, by name; its plan and its latencies are settled first."""
    config = run.config
    found = latency_budget.fix(run) | plan.fix(run, images, gpu=runtime.device().type != "cpu")
    if config.model_path and Path(config.model_path).exists():
        found["MODEL_PATH"] = files.digest(weight_files.file_in(Path(config.model_path)))
    if config.teacher not in (None, OWN):
        found["teacher"] = files.digest(Path(config.teacher) / "weights.safetensors")
    return found


def check_small_model(run: Run) -> None:
    """Raises ValueError unless the run has got as far as its small model."""
    if "top1" not in run.results("finetune"):
        hint = "METHOD=dense makes none" if run.config.method == "dense" else "Finish `make prune` first"
        raise ValueError(f"{run.folder} has no small model. {hint}")


def run_deploying(
    context: Context,
    name: str,
    only: str | None = None,
    *,
    budget: Path | None = None,
    protocol: Protocol = FULL,
    device: str | None = None,
) -> str:
    """Export for the target called `name`, validate, report; or only one of them. Returns the verdict.

    budget: a file in place of the target's own;  protocol: how long latency is measured;  device: as connect takes it
    Raises ValueError for an unknown target, a budget that cannot be read, or if the run has no small model yet;
    EnvironmentLacks if nothing can be exported here, with a report in which nothing of it is measured, or if the device
    cannot be reached.
    """
    if name not in TARGETS:
        raise ValueError(f"TARGET={name} is unknown. Known: {', '.join(TARGETS)}")
    target, run = TARGETS[name], context.run
    budgets = target.budget(budget)  # one that cannot be read should not cost an export first
    check_small_model(run)
    try:
        connected = connect(target, device, context.say, next(iter(budgets))) if only in (None, "validate") else None
    except DeviceError as error:
        raise EnvironmentLacks(str(error)) from error
    stages: dict[str, Callable[[], Written]] = {
        "export": partial(export, context, target, budgets),
        "validate": partial(validate, context, target, budgets, protocol, connected),
    }
    inputs: dict[str, Any] = {
        "files": {stage: run.files(stage) for stage in TRAINING},
        "data": context.dataset.fingerprint,
        "target": target.name,
        "precisions": {format: entry.precisions for format, entry in budgets.items()},
        # labelled files carry their budget
        "carried": {name: entry.limits.stated() for name, entry in budgets.items() if FORMATS[name].labelled},
        "tools": versions(),  # what is installed later can make or measure what could not be before
    }
    for stage, function in stages.items():
        record = f"{stage} {name}"
        if only in (None, stage):
            try:
                _run(context, record, inputs, function, again=bool(run.results(record).get("unsettled")))
            except RuntimeUnavailable as error:
                report(context)
                raise EnvironmentLacks(str(error)) from error
        elif only == "validate" and not run.finished(record, inputs):
            raise ValueError(f"stage validate needs stage {stage}, which has not finished. Run that first")
        limits = {format: entry.limits.stated() for format, entry in budgets.items()}
        inputs = {**inputs, "files": run.files(record), "budget": limits, "protocol": asdict(protocol)}
        inputs["device"] = connected.description if connected else None
    return report(context, name) if only in (None, "report") else "not_measured"


def _run(context: Context, name: str, inputs: Any, stage: Callable[[], Written], *, again: bool = False) -> None:
    if not runtime.on_main(partial(_begins, context, name, inputs, again=again)):
        return
    started = time.monotonic()
    try:
        written, results = stage()
    except BaseException:
        if runtime.is_main():
            with contextlib.suppress(OSError):  # a full disk, of which the error tells
                context.run.stopped(name, time.monotonic() - started)
        raise
    seconds = time.monotonic() - started
    runtime.on_main(partial(context.run.finish, name, inputs, written, results, seconds))


def _begins(context: Context, name: str, inputs: Any, *, again: bool) -> bool:
    """Whether a stage is to be run; then it is noted that it has begun."""
    if context.run.finished(name, inputs) and not again:
        context.say(f"{name}: finished before")
        return False
    anew = context.run.changed(name, inputs)
    # what took hours is not deleted: inputs may have changed for a moment only, when an image could not be read. Before
    # the change is noted: a process that is killed in between would take it for a checkpoint of the new inputs
    aside = checkpoints.set_aside(context.checkpoints / f"{name}.pt") if anew else None
    context.run.begin(name, inputs)
    kept = f"; how far it was is kept in {aside}" if aside else ""
    context.say(f"{name}: its inputs have changed, so it begins anew{kept}" if anew else name)
    return True


def _pruned_model(
    context: Context, device: torch.device | str = "cpu", *, rotated: bool = False
) -> tuple[VisionTransformer, Method | OneShot]:
    """The prepared model with a pruner on it; the pruner stays on the device that the model has now.

    rotated: before that its heads are, if the method masks them. Who loads a masked model's weights has them already
    """
    config = context.run.config
    model = load_compact(context.checkpoints / "prepared").to(device)
    if rotated and config.method in GATED:
        rotate_heads(model, (images for images, _ in context.calibration_batches(ROTATION_STEPS)))
    training = context.stages["prune" if config.prune else "finetune"]
    batches = context.train_batches(training)
    # gates that cut a block's inputs or outputs change every width of it, so that no rule for widths can be kept
    rule = TARGETS[config.target].allowed_width if config.pruning.gates != "all" else None
    pruning, latency = latency_budget.budget_of(context.run, len(model.blocks))
    return model, build(
        config.method,
        model,
        pruning,
        released=config.released,
        steps_per_epoch=len(batches),
        epochs=training.epochs,
        seed=config.seed,
        allowed_width=rule,
        latency=latency,
        images_per_step=batches.batch_size,
    )


def _size(model: VisionTransformer, suffix: str = "") -> Results:
    return {f"params{suffix}": count_params(model), f"macs{suffix}": count_macs(model)}

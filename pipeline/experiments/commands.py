"""The commands that measure the method and the program themselves."""

import dataclasses
import itertools
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from pipeline import console, files, hub, presets, sessions
from pipeline.config import RunConfig
from pipeline.data import names
from pipeline.experiments.cells import cells
from pipeline.model_names import MICRO, check_name
from pipeline.options import (
    EXIT_CODES,
    DataOption,
    DatasetOption,
    ImgSizeOption,
    ModelOption,
    ModelPathOption,
    SeedOption,
    SubsetOption,
    configure,
)

app = typer.Typer()


@app.command(epilog=EXIT_CODES)
def pretrain(
    data: Annotated[str, typer.Option(help="folder:PATH of a directory or zip with {train,val}/CLASS/IMAGE.")],
    model: Annotated[str, typer.Option(help="A timm DeiT or plain ViT name.")] = "deit_micro_patch8_64",
    init: Annotated[Path | None, typer.Option(help="Weights to begin from.  \\[default: random]")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 60,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    out: Annotated[Path, typer.Option(help="Weights file to write; its model card goes beside it.")] = Path(
        "pipeline/weights/deit_micro_patch8_64.safetensors"
    ),
    seed: SeedOption = 0,
) -> None:
    """Train the embedded model's weights. Checkpoints in runs/pretrain; repeat the command to go on."""
    names.check_name(names.resolve(data))
    model, _ = hub.resolve(model)
    check_name(model)
    config = presets.pretraining(data, model=model, init=str(init) if init else None, epochs=epochs, lr=lr, seed=seed)
    folder = sessions.RUNS / "pretrain"
    from pipeline.train.pretrain import pretrain as train_weights

    with files.locked(folder), console.progress() as progress:
        card = train_weights(config, folder, out, progress)
    console.output.print(f"{out}: top-1 {card['top1']:.2f} % on {card['val_images']} validation images", soft_wrap=True)


@app.command(epilog=EXIT_CODES)
def compare(
    dataset: DatasetOption,
    data: DataOption = None,
    subset: SubsetOption = None,
    model: ModelOption = None,
    img_size: ImgSizeOption = None,
    model_path: ModelPathOption = None,
    sparsities: Annotated[str, typer.Option(help="Shares of all parameters to remove.")] = "0.5 0.75",
    methods: Annotated[
        str, typer.Option(help="METHOD or METHOD:VARIANT: dap:distill, savit:released, dap:benefit_scale=5 ...")
    ] = "dap uniform taylor magnitude savit wdpruning",
    once: Annotated[str, typer.Option(help="Methods that run with the first seed alone.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds, each a run of every method at every sparsity.")] = "0 1 2",
    epochs: Annotated[int | None, typer.Option(help="Epochs of pruning.")] = None,
    finetune_epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of fine-tuning. A method without one of the two trains for both in the other."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of every stage.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells trained at a time, each on its share of the cores.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Results file; table and figures go beside it.  \\[default: below docs/results]")
    ] = None,
) -> None:
    """Every method on the same data with the same loop, epochs and seeds: the table, raw results and figures.

    Cells that have finished are not run again; repeat the command to go on.
    """
    base, root = _compared(
        dataset,
        model,
        epochs,
        finetune_epochs,
        data=data,
        subset=subset,
        lr=lr,
        batch_size=batch_size,
        img_size=img_size,
        model_path=model_path,
    )
    numbers = _numbers("SPARSITIES", sparsities, float), _numbers("SEEDS", seeds, int)
    queue = cells(methods.split(), *numbers, once.split())
    name = presets.dataset_name(base)
    from pipeline.experiments.compare import compare as run_all
    from pipeline.experiments.compare_report import write

    with console.progress() as progress:
        rows = run_all(base, root, queue, jobs=jobs, progress=progress, say=console.say)
    command = console.make("compare", dataset=_shown(dataset), subset=subset, model=model or base.model,
                       img_size=img_size, model_path=model_path.name if model_path else None, sparsities=sparsities,
                       methods=methods, once=once or None, seeds=seeds, epochs=epochs,
                       finetune_epochs=finetune_epochs, lr=lr, batch_size=batch_size,
                       jobs=jobs if jobs > 1 else None)  # fmt: skip
    path = out or Path(f"docs/results/compare-{name}-{presets.model_name(base)}.json")
    console.output.print(
        write(path, command, rows, dataset=name, model=presets.model_name(base)), markup=False, soft_wrap=True
    )
    console.output.print(f"results: {path}", soft_wrap=True)


@app.command("paper-table", epilog=EXIT_CODES)
def paper_table(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run every command for a few steps on miniatures of the data sets.")
    ] = False,
) -> None:
    """The published table beside what was reproduced here, and the commands, GPU hours and disk that it takes."""
    from pipeline.experiments import paper_table as paper

    if dry_run:
        with tempfile.TemporaryDirectory() as folder, console.progress() as progress:
            rows = paper.dry_run(Path(folder), progress=progress, say=console.say)
        console.print_table(
            [row for found in rows.values() for row in found],
            ("method", "sparsity_target", "sparsity", "params", "epochs", "seconds", "error"),
        )
        if refused := [row for found in rows.values() for row in found if row["error"]]:
            raise ValueError(f"{len(refused)} cells did not run, the first one: {refused[0]['error']}")
        return
    console.output.print(paper.table(Path("docs/results")), markup=False, soft_wrap=True)
    for model, dataset in itertools.product(paper.MODELS, paper.DATASETS):
        hours, room = paper.gpu_hours(model, dataset), decimal(paper.disk_bytes(model, dataset))
        needs = f"about {hours:,.0f} hours of an A100 (expected, not measured), {room} of disk"
        console.output.print(f"{paper.command(model, dataset)}\n  {needs}, after make data DATASET={dataset}",
                     markup=False, soft_wrap=True)  # fmt: skip


@app.command("env-size", epilog=EXIT_CODES)
def env_size(
    out: Annotated[Path, typer.Option(help="Results file to write; its table goes beside it.")] = Path(
        "docs/results/env-size.json"
    ),
) -> None:
    """What the environment is made of: megabytes of every package, and what needs it."""
    from pipeline.experiments import environment

    rows = environment.environment(environment.asked_for())
    _finish(out, "make env-size", False, rows, environment.report(rows))


@app.command("bench-step", epilog=EXIT_CODES)
def bench_step(
    quick: Annotated[bool, typer.Option("--quick", help="The small model and few samples.")] = False,
    out: Annotated[Path, typer.Option(help="Results file to write.")] = Path("docs/results/bench-step.json"),
) -> None:
    """Time and memory of a training step: plain, with DAP, with DAP's reference probes."""
    from pipeline.experiments.bench_step import bench_step as measure

    rows = measure(quick=quick, say=console.say)
    shown = "model", "device", "probe", "step_ms", "step_ratio", "step_ratio_paired", "peak_mb", "memory_ratio"
    _finish(out, "make bench-step", quick, rows, shown)


@app.command("bench-probes", epilog=EXIT_CODES)
def bench_probes(
    out: Annotated[Path, typer.Option(help="Results file to write.")] = Path("docs/results/bench-probes.json"),
) -> None:
    """What DAP's probes hold, and what every process sends at a step, for 10, 251 and 1,010 classes."""
    from pipeline.experiments.probe_sizes import probe_sizes

    shown = (
        "model",
        "classes",
        "probe",
        "params",
        "params_whole_heads",
        "model_params",
        "memory_mb",
        "probes_mb_per_step",
    )
    _finish(out, "make bench-probes", False, probe_sizes(), shown)


@app.command("scale-estimate", epilog=EXIT_CODES)
def scale_estimate(
    step: Annotated[Path, typer.Option(help="Steps of a GPU: results of make compare or make bench-step.")] = Path(
        "docs/results/compare-clothing-vit_small_patch14_dinov2.json"
    ),
    loader: Annotated[Path, typer.Option(help="Results of make bench-loader.")] = Path(
        "docs/results/bench-loader.json"
    ),
    models: Annotated[str, typer.Option(help="Models, with spaces.")] = "deit_tiny_patch16_224 deit_small_patch16_224",
    datasets: Annotated[str, typer.Option(help="Named data sets, with spaces.")] = "inat19 imagenet",
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs, each an estimate.")] = "1 8 64",
    sparsity: Annotated[float, typer.Option(help="Of the pruned model.")] = 0.75,
    images_per_gpu: Annotated[int | None, typer.Option(help="Images of a step on one GPU.")] = None,
    cores_per_gpu: Annotated[int | None, typer.Option(help="Cores that load for one GPU.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of a machine.")] = None,
    within_gb_s: Annotated[float | None, typer.Option(help="GB/s, one way, between GPUs of a machine.")] = None,
    between_gb_s: Annotated[float | None, typer.Option(help="GB/s, one way, between machines.")] = None,
    collective_us: Annotated[float | None, typer.Option(help="Microseconds of an all-reduce beside its bytes.")] = None,
    price: Annotated[float | None, typer.Option(help="Of a GPU for an hour, in any currency.")] = None,
    out: Annotated[Path, typer.Option(help="Results file to write; its table goes beside it.")] = Path(
        "docs/results/scale-estimate.json"
    ),
) -> None:
    """Time and cost of whole runs on many GPUs, computed from what was measured on one.

    What is assumed has a value each, which options change and the result names.
    """
    from pipeline.experiments import scale_estimate as scale

    given: dict[str, Any] = {
        "images_per_gpu": images_per_gpu,
        "cores_per_gpu": cores_per_gpu,
        "gpus_per_node": gpus_per_node,
        "within_gb_s": within_gb_s,
        "between_gb_s": between_gb_s,
        "collective_us": collective_us,
        "price": price,
    }
    assumed = scale.Assumed(**{name: value for name, value in given.items() if value is not None})
    steps, per_core, counts = scale.measured(step, sparsity), scale.loaded_per_core(loader), _numbers("GPUS", gpus, int)
    rows = scale.estimate(models.split(), datasets.split(), counts, sparsity, steps, per_core, assumed)
    command = console.make("scale-estimate", step=step, loader=loader, models=models, datasets=datasets, gpus=gpus,
                           sparsity=sparsity, **given)  # fmt: skip
    _finish(out, command, False, rows, scale.report(rows))


@app.command("profile-train", epilog=EXIT_CODES)
def profile_train(
    model: Annotated[str, typer.Option(help="One that bench-step has.")] = MICRO,
    probe: Annotated[str, typer.Option(help="none, default or reference: what bench-step has.")] = "default",
) -> None:
    """The ten operations of a training step that take longest, by torch's profiler, and how many there are."""
    from pipeline.experiments.bench_step import BATCH, PROBES
    from pipeline.experiments.profile_train import profile_train as measure

    for name, value, known in (("MODEL", model, BATCH), ("PROBE", probe, PROBES)):
        if value not in known:
            raise ValueError(f"{name}={value} is unknown. Known: {', '.join(known)}")
    console.print_table(measure(model, probe, say=console.say), ("operation", "calls", "ms", "share"))


@app.command("bench-loader", epilog=EXIT_CODES)
def bench_loader(
    quick: Annotated[bool, typer.Option("--quick", help="Few pictures and rounds.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that load.")] = min(8, os.cpu_count() or 1),
    out: Annotated[Path, typer.Option(help="Results file to write.")] = Path("docs/results/bench-loader.json"),
) -> None:
    """Images per second: our training loader, timm's, decoding alone, and images held in memory."""
    from pipeline.experiments.bench_loader import bench_loader as measure

    rows = measure(quick=quick, workers=workers, say=console.say)
    shown = "loader", "pictures", "input", "workers", "images_per_s", "ratio", "ratio_paired", "ratio_spread"
    _finish(out, f"make bench-loader WORKERS={workers}", quick, rows, shown)


@app.command("bench-export", epilog=EXIT_CODES)
def bench_export(
    quick: Annotated[bool, typer.Option("--quick", help="DeiT-tiny, few samples.")] = False,
    out: Annotated[Path, typer.Option(help="Results file to write; its table goes beside it.")] = Path(
        "docs/results/bench-export.json"
    ),
) -> None:
    """Our exports beside stock ones and other runtimes: latency side by side, size, error, seconds of export.

    Peers are timed if they are installed: pip install --require-hashes -r requirements-bench.txt
    """
    from pipeline.experiments import bench_export as bench

    rows = bench.bench_export(quick=quick, say=console.say)
    _finish(out, "make bench-export", quick, rows, bench.report(rows))


@app.command("bench-ops", epilog=EXIT_CODES)
def bench_ops(
    quick: Annotated[bool, typer.Option("--quick", help="75 % alone, for two seconds.")] = False,
    out: Annotated[Path, typer.Option(help="Results file to write; its table goes beside it.")] = Path(
        "docs/results/bench-ops.json"
    ),
) -> None:
    """What each kind of operation takes in TFLite and ExecuTorch, dense and pruned, by the runtimes' own profilers."""
    from pipeline.experiments import bench_ops as bench

    rows = bench.bench_ops(quick=quick, say=console.say)
    _finish(out, "make bench-ops", quick, rows, bench.report(rows))


@app.command("bench-batch", epilog=EXIT_CODES)
def bench_batch(
    quick: Annotated[bool, typer.Option("--quick", help="Few samples.")] = False,
    out: Annotated[Path, typer.Option(help="Results file to write.")] = Path("docs/results/bench-batch.json"),
) -> None:
    """What a leading dimension of 1 in every tensor, for GPU delegates, costs a TFLite file on the CPU."""
    from pipeline.experiments.bench_batch import bench_batch as measure

    rows = measure(quick=quick, say=console.say)
    shown = (
        "sparsity",
        "precision",
        "variant",
        "operations",
        "other_batch",
        "ms_median",
        "ms_p5",
        "ratio",
        "ratio_median",
    )
    _finish(out, "make bench-batch", quick, rows, shown)


@app.command("bench-latency-budget", epilog=EXIT_CODES)
def bench_latency_budget(
    dataset: DatasetOption = "digits",
    subset: SubsetOption = None,
    model: Annotated[str, typer.Option(help="A timm DeiT or plain ViT name.")] = "deit_micro_patch8_64",
    sparsity: Annotated[float, typer.Option(help="Of the runs whose latency is then asked for.")] = 0.75,
    seeds: Annotated[str, typer.Option(help="Seeds, each two runs.")] = "0 1 2",
    epochs: Annotated[int | None, typer.Option(help="Epochs of pruning.")] = None,
    finetune_epochs: Annotated[int | None, typer.Option(help="Epochs of fine-tuning.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, one epoch each; latency for 10 seconds.")] = False,
    out: Annotated[Path, typer.Option(help="Results file to write; its table goes beside it.")] = Path(
        "docs/results/bench-latency-budget.json"
    ),
) -> None:
    """DAP under a budget of parameters against DAP under the milliseconds that this takes: accuracy, prediction.

    Needs a profile of MODEL on this machine (make profile). Repeat the command to go on.
    """
    from pipeline.experiments import bench_latency as bench

    if quick:
        seeds, epochs, finetune_epochs = "0", 1, 1
    base, root = _compared(dataset, model, epochs, finetune_epochs, subset=subset)  # whose runs are used
    numbers = _numbers("SEEDS", seeds, int)
    with console.progress() as progress:
        rows = bench.bench_latency(
            base, root, sparsity=sparsity, seeds=numbers, quick=quick, progress=progress, say=console.say
        )
    command = console.make(
        "bench-latency-budget",
        dataset=_shown(dataset),
        subset=subset,
        model=model,
        sparsity=sparsity,
        seeds=seeds,
        epochs=epochs,
        finetune_epochs=finetune_epochs,
    )
    _finish(out, command, quick, rows, bench.report(rows))


@app.command("bench-frontier", epilog=EXIT_CODES)
def bench_frontier(
    results: Annotated[str, typer.Option(help="Results files of make compare, with spaces between them.")],
    methods: Annotated[
        str | None, typer.Option(help="Only these: METHOD or METHOD:VARIANT.  \\[default: all]", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Results file to write; its table and figure go beside it.")] = Path(
        "docs/results/bench-frontier.json"
    ),
) -> None:
    """Accuracy over milliseconds on this machine, in float32 and int8, of the models that were compared."""
    from pipeline.experiments import frontier as bench
    from pipeline.report.figures import to_svg

    rows = bench.frontier([Path(name) for name in results.split()], (methods or "").split(), say=console.say)
    files.write_text(out.with_suffix(".svg"), to_svg(bench.figure(rows), out.stem))
    _finish(out, console.make("bench-frontier", results=results, methods=methods), False, rows, bench.report(rows))


@app.command(epilog=EXIT_CODES)
def models(
    out: Annotated[Path, typer.Option(help="Results file to write.")] = Path("docs/results/models.json"),
) -> None:
    """Which of timm's ViTs can be pruned, and why not the others; also into docs/models.md."""
    from pipeline.experiments import supported
    from pipeline.report.results import write_results

    rows = [supported.row(name) for name in supported.entries()]
    write_results(out, "make models", rows)
    text = supported.report(rows)
    if supported.PAGE.exists():
        supported.write(supported.PAGE, text)
    console.output.print(text, markup=False, soft_wrap=True)


def _finish(out: Path, command: str, quick: bool, rows: list[dict], shown: str | tuple[str, ...]) -> None:
    """Write a benchmark's results and show them. shown: columns, or a report, which also goes beside the results."""
    from pipeline.report.results import write_results

    write_results(out, command + (" QUICK=1" if quick else ""), rows)
    if isinstance(shown, str):
        files.write_text(out.with_suffix(".md"), shown)
        console.output.print(shown, markup=False, soft_wrap=True)
    else:
        console.print_table(rows, shown)
    console.output.print(f"results: {out}", soft_wrap=True)


def _compared(
    dataset: str,
    model: str | None,
    epochs: int | None,
    finetune_epochs: int | None,
    *,
    data: Path | None = None,
    subset: str | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    img_size: int | None = None,
    model_path: Path | None = None,
) -> tuple[RunConfig, Path]:
    """The run that all cells of a comparison are variations of, and the folder of their runs.

    A dense model trains for as many epochs as a method does in both of its stages.
    """
    model, weights = hub.resolve(model) if model else (None, None)
    preset = presets.of(dataset, model, 0.5)
    names.check_name(preset.dataset, data)
    assert preset.prune is not None
    assert preset.finetune is not None
    epochs, finetune_epochs = epochs or preset.prune.epochs, finetune_epochs or preset.finetune.epochs
    total = epochs + finetune_epochs
    lengths: dict[str, int | None] = {"dense": total, "prune": epochs, "finetune": finetune_epochs}  # for all cells
    base = configure(preset, epochs=lengths, lr=lr, batch_size=batch_size)
    check_name(base.model)
    base = dataclasses.replace(
        base,
        subset=subset,
        data=str(data) if data else None,
        img_size=img_size,
        model_path=str(model_path) if model_path else weights,
    )
    return base, sessions.RUNS / "compare" / f"{presets.dataset_name(base)}-{presets.model_name(base)}-{total}"


def _numbers(name: str, text: str, kind):
    try:
        if numbers := [kind(number) for number in text.split()]:
            return numbers
        raise ValueError("there is none")
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{name}={text!r} must be {what} with spaces between them") from error


def _shown(dataset: str) -> str:
    """A data set's name as results files hold it: without the folders of this machine."""
    kind = next((kind for kind in names.OWN if dataset.startswith(kind)), None)
    return f"{kind}{Path(dataset.removeprefix(kind)).name}" if kind else dataset

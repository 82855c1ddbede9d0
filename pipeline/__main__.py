"""The command line; nothing else."""

import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from pipeline.errors import (
    BUDGET_MISSED,
    DEFECT,
    DONE,
    ENVIRONMENT,
    INTERRUPTED,
    WRONG_USE,
    EnvironmentLacks,
    Interrupted,
)

RUNS = Path("runs")
EXIT_CODES = (
    "Exit codes: 0 done and within budget, 1 budget missed (the report is written), 2 wrong use or bad input, "
    "3 this machine cannot do it or could not measure a limit, 130 interrupted (repeat the command to go on), "
    "70 a defect in this program."
)

app = typer.Typer(
    help="Prune a pretrained DeiT while it is fine-tuned on your data, and ship it within a budget.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console(stderr=True, highlight=False)
output = Console(highlight=False, width=None if sys.stdout.isatty() else 120)  # a pipe has no width of its own

DatasetOption = Annotated[
    str,
    typer.Option(
        help="digits (embedded), cifar10, cifar100, ifood, inat19, imagenet, or folder:PATH of a directory or zip with "
        "{train,val}/CLASS/IMAGE or CLASS/IMAGE."
    ),
]
SubsetOption = Annotated[
    str | None, typer.Option(help="CLASSESxIMAGES, such as 12x200: a fixed small part of DATASET, for experiments.")
]
DataOption = Annotated[Path | None, typer.Option(help="Folder of a named data set.  \\[default: data/NAME]")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="A timm DeiT or plain ViT name.  \\[default: deit_micro_patch8_64 for digits, else deit_tiny_patch16_224]"
    ),
]
RunOption = Annotated[str | None, typer.Option(help="Name of the run folder below runs/.")]
BudgetOption = Annotated[
    Path | None, typer.Option(help="TOML file in place of targets/budgets/TARGET.toml.", show_default=False)
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="rpi4, rpi5: [user@]host[:port], reached with ssh. web: chromium (on this machine, the default), or lan: "
        "a page for any browser in your network. Others have none."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]


@app.command(epilog=EXIT_CODES)
def demo(
    run: RunOption = "demo",
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the report as a results file.")] = None,
) -> None:
    """The whole product on the embedded default: prune the digits model to a quarter, export, prove it."""
    from pipeline import presets
    from pipeline.files import read_json
    from pipeline.results import write_results

    config = dataclasses.replace(presets.digits(0.75), seed=seed)
    folder = _folder(run or "demo")
    _train(folder, config)
    code = _deploy(folder, "host", quick=True)
    if out:
        write_results(out, "make demo", [read_json(folder / "report.json")])
    raise typer.Exit(code)


@app.command("data", epilog=EXIT_CODES)
def get_data(
    dataset: Annotated[str, typer.Option(help="cifar10, cifar100, ifood, inat19 or imagenet.")],
    data: DataOption = None,
) -> None:
    """Download a named data set, check and unpack it. Repeat the command to go on.

    Archives that are in its folder already are used if their checksum matches.
    """
    from pipeline.catalog import KNOWN
    from pipeline.download import fetch

    if dataset not in KNOWN:
        raise ValueError(f"DATASET={dataset} cannot be downloaded. Known: {', '.join(KNOWN)}")
    known = KNOWN[dataset]
    folder = data or known.folder
    _say(f"{known.title}: {decimal(known.download_bytes)} to download, {decimal(known.unpacked_bytes)} unpacked, "
         f"into {folder}. Licence: {known.licence}. See {known.home}")  # fmt: skip
    with _progress(DownloadColumn(), TransferSpeedColumn()) as progress:
        fetch(known, folder, lambda what, done, total: progress(what, done, total, {}))
    output.print(f"{folder} holds {known.title}", soft_wrap=True)
    if archives := [archive.name for archive in known.archives if (folder / archive.name).exists()]:
        output.print(f"no longer needed there: {' '.join(archives)}", soft_wrap=True)
    shown = f" DATA={shlex.quote(str(data))}" if data else ""
    output.print(f"next: make prune DATASET={dataset}{shown} SPARSITY=0.75", soft_wrap=True)


@app.command(epilog=EXIT_CODES)
def prune(
    dataset: DatasetOption = "digits",
    data: DataOption = None,
    subset: SubsetOption = None,
    max_bad_share: Annotated[
        float,
        typer.Option(help="Share of unreadable images up to which they are left out; above it nothing is trained."),
    ] = 0.001,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of all parameters to remove, between 0 and 1.  \\[default: 0.75]")
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(help="Instead of SPARSITY: median milliseconds on TARGET, as its profile predicts them."),
    ] = None,
    model: ModelOption = None,
    model_path: Annotated[
        Path | None, typer.Option(help="Weights to begin from (.safetensors), instead of the model's own.")
    ] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Begin from random weights.")] = False,
    method: Annotated[
        str,
        typer.Option(
            help="dap, a rival (savit, wdpruning, isomorphic), a control (uniform, taylor, magnitude) or dense."
        ),
    ] = "dap",
    released: Annotated[
        bool, typer.Option("--released", help="Repeat the known mistakes of savit's or wdpruning's released code.")
    ] = False,
    distill: Annotated[
        bool, typer.Option("--distill", help="Learn from the dense reference's logits too, while pruning and after.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Epochs of pruning.")] = None,
    finetune_epochs: Annotated[int | None, typer.Option(help="Epochs of fine-tuning the small model.")] = None,
    dense_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the dense reference; 0: no reference, its accuracy is not measured.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of every stage.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step and process.")] = None,
    target: Annotated[str, typer.Option(help="The device whose rule for layer widths is kept.")] = "host",
    seed: SeedOption = 0,
    run: RunOption = None,
) -> None:
    """Fine-tune on DATASET while pruning, make the model small for good, fine-tune it on.

    Repeat the same command to go on after an interruption.
    """
    from pipeline import presets
    from pipeline.config import OWN

    if sparsity is not None and latency_ms is not None:
        raise ValueError("SPARSITY and LATENCY_MS exclude each other: LATENCY_MS decides how much goes")
    config = _configure(
        presets.of(dataset, model, 0.75 if sparsity is None else sparsity),
        epochs={"dense": dense_epochs, "prune": epochs, "finetune": finetune_epochs},
        lr=lr,
        batch_size=batch_size,
    )
    config = dataclasses.replace(
        config,
        data=str(data) if data else None,
        max_bad_share=max_bad_share,
        subset=subset,
        target=target,
        seed=seed,
        model_path=str(model_path) if model_path else None,
        from_scratch=from_scratch,
        teacher=OWN if distill else None,
    )
    if latency_ms is not None:
        config = presets.with_latency(config, latency_ms)
    config = presets.with_method(config, method, released=released)
    folder = _folder(run or presets.run_name(config))
    _train(folder, config)
    output.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    if method != "dense":
        output.print(f"next: make deploy TARGET={target} RUN={folder.name}", soft_wrap=True)


@app.command(epilog=EXIT_CODES)
def deploy(
    target: Annotated[str, typer.Option(help="host, ios, android, rpi4, rpi5 or web.")] = "host",
    run: Annotated[str | None, typer.Option(help="Name of the run folder.  \\[default: the latest]")] = None,
    budget: BudgetOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure latency for 10 seconds instead of 60.")] = False,
    require: Annotated[
        str | None, typer.Option(help="all: a limit that could not be measured counts as missed (exit code 1).")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Export the small model for TARGET, prove accuracy and latency there, write the report.

    Without a device everything is proven that this machine can prove, and the rest is not measured (exit code 3).
    """
    from pipeline.runs import latest

    if require not in (None, "all"):
        raise ValueError(f"--require takes all, not {require}")
    folder = _folder(run) if run else latest(RUNS)
    raise typer.Exit(_deploy(folder, target, budget=budget, quick=quick, require_all=require == "all", device=device))


@app.command("app", epilog=EXIT_CODES)
def open_app(
    target: Annotated[str, typer.Option(help="web, rpi4 or rpi5.")] = "web",
    run: Annotated[
        str | None, typer.Option(help="Deploy this run's model into it first.  \\[default: the model that it has]")
    ] = None,
    address: Annotated[str, typer.Option(help="web: to serve at; 0.0.0.0 lets your network in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="web: port to serve at.")] = 8080,
) -> None:
    """Build the demo app for TARGET. web: and serve it; rpi4, rpi5: into an archive for the board.

    An app without a model gets that of RUN, or of the latest run; without any run the demo's is trained first.
    """
    from pipeline import app_server, apps
    from targets import TARGETS
    from targets.devices import browser

    if target not in TARGETS or not TARGETS[target].app:
        known = ", ".join(name for name, entry in TARGETS.items() if entry.app)
        raise ValueError(f"there is no app for TARGET={target}. Known: {known}")
    name = TARGETS[target].app
    assert name is not None, "checked above"
    if run or not apps.has_model(name):
        folder = _folder(run) if run else _any_run()
        code = _deploy(folder, target, quick=True)
        if not apps.has_model(name) or code == BUDGET_MISSED:
            raise typer.Exit(code)
    if name == "raspberry-pi":
        archive = apps.bundle(RUNS / f"{apps.BUNDLE}-{target}.tar.gz")
        output.print(f"app: {archive}, {decimal(archive.stat().st_size)}", soft_wrap=True)
        output.print(
            f"next: scp {archive} pi@raspberrypi.local: and there tar xf {archive.name} && {apps.BUNDLE}/install.sh",
            soft_wrap=True,
        )
        return
    if problem := browser.build(_say):
        raise EnvironmentLacks(problem)
    server = app_server.server(apps.publish(browser.WEB), address, port)
    output.print(f"open http://{address}:{server.server_port}/  (Ctrl-C ends it)", soft_wrap=True)
    with server, contextlib.suppress(Interrupted):
        server.serve_forever()


@app.command(epilog=EXIT_CODES)
def profile(
    target: Annotated[str, typer.Option(help="host, rpi4, rpi5 or web.")] = "host",
    model: Annotated[str, typer.Option(help="A timm DeiT or plain ViT name.")] = "deit_micro_patch8_64",
    device: DeviceOption = None,
    format: Annotated[str | None, typer.Option(help="File format.  \\[default: the budget's first]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of that format.  \\[default: the first that the budget allows]")
    ] = None,
) -> None:
    """Measure what a block of MODEL costs at a grid of widths on a device of TARGET, for prune --latency-ms.

    Writes targets/profiles/TARGET.json; a model of the same sizes, format and precision in it is replaced.
    """
    from pipeline import profiling
    from targets import TARGETS

    if target not in TARGETS:
        raise ValueError(f"TARGET={target} is unknown. Known: {', '.join(TARGETS)}")
    with _progress() as progress:
        found, path = profiling.profile(
            TARGETS[target], model, device=device, format=format, precision=precision, say=_say, progress=progress
        )
    _table(profiling.rows(found), ("kind", "width", "ms", "spread_ms"))
    output.print(
        f"{path}: the dense model is predicted to take {found.dense_ms(profiling.depth_of(model)):.3g} ms, "
        f"whole models within {100 * found.off():.1f} %",
        soft_wrap=True,
    )
    output.print(f"next: make prune LATENCY_MS=... TARGET={target} MODEL={model}", soft_wrap=True)


@app.command(epilog=EXIT_CODES)
def stage(
    name: Annotated[str, typer.Argument(help="prepare, dense, prune, compact, finetune, export, validate or report.")],
    run: Annotated[str | None, typer.Option(help="Name of the run folder.  \\[default: the latest]")] = None,
    target: Annotated[str, typer.Option(help="For export, validate and report.")] = "host",
    budget: BudgetOption = None,
) -> None:
    """Run one stage of an existing run alone; the stages before it must have finished."""
    from pipeline import stages
    from pipeline.runs import latest

    with _context(_folder(run) if run else latest(RUNS)) as context:
        if name in stages.TRAINING:
            stages.run_training(context, only=name)
        elif name in (*stages.DEPLOYING, "report"):
            stages.run_deploying(context, target, only=name, budget=budget)
        else:
            known = ", ".join([*stages.TRAINING, *stages.DEPLOYING, "report"])
            raise ValueError(f"stage {name} is unknown. Known: {known}")


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
    from pipeline import presets
    from pipeline.pretrain import pretrain as train_weights
    from pipeline.runs import locked

    config = presets.pretraining(data, model=model, init=str(init) if init else None, epochs=epochs, lr=lr, seed=seed)
    folder = RUNS / "pretrain"
    with locked(folder), _progress() as progress:
        card = train_weights(config, folder, out, progress)
    output.print(f"{out}: top-1 {card['top1']:.2f} % on {card['val_images']} validation images", soft_wrap=True)


@app.command(epilog=EXIT_CODES)
def compare(
    dataset: DatasetOption,
    data: DataOption = None,
    subset: SubsetOption = None,
    model: ModelOption = None,
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
    batch_size: Annotated[int | None, typer.Option(help="Images per step and process.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells trained at a time, each on its share of the cores.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Results file; table and figures go beside it.  \\[default: below docs/results]")
    ] = None,
) -> None:
    """Every method on the same data with the same loop, epochs and seeds: the table, raw results and figures.

    Cells that have finished are not run again; repeat the command to go on.
    """
    from pipeline import presets
    from pipeline.compare import cells
    from pipeline.compare import compare as run_all
    from pipeline.compare_report import write

    preset = presets.of(dataset, model, 0.5)
    assert preset.prune is not None
    assert preset.finetune is not None
    total = (epochs or preset.prune.epochs) + (finetune_epochs or preset.finetune.epochs)
    lengths: dict[str, int | None] = {"dense": total, "prune": epochs, "finetune": finetune_epochs}
    base = _configure(preset, epochs=lengths, lr=lr, batch_size=batch_size)
    base = dataclasses.replace(base, subset=subset, data=str(data) if data else None)
    numbers = _numbers("SPARSITIES", sparsities, float), _numbers("SEEDS", seeds, int)
    queue = cells(methods.split(), *numbers, once.split())
    name = presets.dataset_name(base)
    with _progress() as progress:
        root = RUNS / "compare" / f"{name}-{base.model}-{total}"
        rows = run_all(base, root, queue, jobs=jobs, progress=progress, say=_say)
    command = _command("compare", dataset=_shown(dataset), subset=subset, model=base.model, sparsities=sparsities,
                       methods=methods, once=once or None, seeds=seeds, epochs=epochs,
                       finetune_epochs=finetune_epochs, lr=lr, batch_size=batch_size,
                       jobs=jobs if jobs > 1 else None)  # fmt: skip
    path = out or Path(f"docs/results/compare-{name}-{base.model}.json")
    output.print(write(path, command, rows, dataset=name, model=base.model), markup=False, soft_wrap=True)
    output.print(f"results: {path}", soft_wrap=True)


@app.command("paper-table", epilog=EXIT_CODES)
def paper_table(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run every command for a few steps on miniatures of the data sets.")
    ] = False,
) -> None:
    """The published table beside what was reproduced here, and the commands, GPU hours and disk that it takes."""
    from pipeline import paper_table as paper

    if dry_run:
        with tempfile.TemporaryDirectory() as folder, _progress() as progress:
            rows = paper.dry_run(Path(folder), progress=progress, say=_say)
        _table(
            [row for found in rows.values() for row in found],
            ("method", "sparsity_target", "sparsity", "params", "epochs", "seconds", "error"),
        )
        if refused := [row for found in rows.values() for row in found if row["error"]]:
            raise ValueError(f"{len(refused)} cells did not run, the first one: {refused[0]['error']}")
        return
    output.print(paper.table(Path("docs/results")), markup=False, soft_wrap=True)
    for model, dataset in itertools.product(paper.MODELS, paper.DATASETS):
        hours, room = paper.gpu_hours(model, dataset), decimal(paper.disk_bytes(model, dataset))
        needs = f"about {hours:,.0f} hours of an A100 (expected, not measured), {room} of disk"
        output.print(f"{paper.command(model, dataset)}\n  {needs}, after make data DATASET={dataset}",
                     markup=False, soft_wrap=True)  # fmt: skip


@app.command("bench-step", epilog=EXIT_CODES)
def bench_step(
    quick: Annotated[bool, typer.Option("--quick", help="The small model and few samples.")] = False,
    out: Annotated[Path, typer.Option(help="Results file to write.")] = Path("docs/results/bench-step.json"),
) -> None:
    """Time and memory of a training step: plain, with DAP, with DAP's reference probes."""
    from pipeline.bench_step import bench_step as measure
    from pipeline.results import write_results

    rows = measure(quick=quick, say=_say)
    write_results(out, "make bench-step" + (" QUICK=1" if quick else ""), rows)
    _table(rows, ("model", "device", "probe", "step_ms", "step_ratio", "step_ratio_paired", "peak_mb", "memory_ratio"))
    output.print(f"results: {out}", soft_wrap=True)


@app.command("bench-loader", epilog=EXIT_CODES)
def bench_loader(
    quick: Annotated[bool, typer.Option("--quick", help="Few pictures and rounds.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that load.")] = min(8, os.cpu_count() or 1),
    out: Annotated[Path, typer.Option(help="Results file to write.")] = Path("docs/results/bench-loader.json"),
) -> None:
    """Images per second: our training loader, timm's, decoding alone, and images held in memory."""
    from pipeline.bench_loader import bench_loader as measure
    from pipeline.results import write_results

    rows = measure(quick=quick, workers=workers, say=_say)
    write_results(out, f"make bench-loader WORKERS={workers}" + (" QUICK=1" if quick else ""), rows)
    _table(rows, ("loader", "pictures", "input", "workers", "images_per_s", "ratio", "ratio_paired", "ratio_spread"))
    output.print(f"results: {out}", soft_wrap=True)


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
    from pipeline import bench_export as bench
    from pipeline.files import write_text
    from pipeline.results import write_results

    rows = bench.bench_export(quick=quick, say=_say)
    write_results(out, "make bench-export" + (" QUICK=1" if quick else ""), rows)
    write_text(out.with_suffix(".md"), bench.report(rows))
    output.print(bench.report(rows), markup=False, soft_wrap=True)
    output.print(f"results: {out}", soft_wrap=True)


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
    from pipeline import bench_latency as bench
    from pipeline import presets
    from pipeline.files import write_text
    from pipeline.results import write_results

    if quick:
        seeds, epochs, finetune_epochs = "0", 1, 1
    preset = presets.of(dataset, model, 0.5)  # as `make compare` has it, whose runs are used
    assert preset.prune is not None
    assert preset.finetune is not None
    total = (epochs or preset.prune.epochs) + (finetune_epochs or preset.finetune.epochs)
    lengths: dict[str, int | None] = {"dense": total, "prune": epochs, "finetune": finetune_epochs}
    base = _configure(preset, epochs=lengths, lr=None, batch_size=None)
    base = dataclasses.replace(base, subset=subset)
    root = RUNS / "compare" / f"{presets.dataset_name(base)}-{base.model}-{total}"
    numbers = _numbers("SEEDS", seeds, int)
    with _progress() as progress:
        rows = bench.bench_latency(
            base, root, sparsity=sparsity, seeds=numbers, quick=quick, progress=progress, say=_say
        )
    command = _command("bench-latency-budget", dataset=_shown(dataset), subset=subset, model=model, sparsity=sparsity,
                       seeds=seeds, epochs=epochs, finetune_epochs=finetune_epochs)  # fmt: skip
    write_results(out, command + (" QUICK=1" if quick else ""), rows)
    write_text(out.with_suffix(".md"), bench.report(rows))
    output.print(bench.report(rows), markup=False, soft_wrap=True)
    output.print(f"results: {out}", soft_wrap=True)


def _numbers(name: str, text: str, kind):
    try:
        if numbers := [kind(number) for number in text.split()]:
            return numbers
        raise ValueError("there is none")
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{name}={text!r} must be {what} with spaces between them") from error


def _command(verb: str, **options: object) -> str:
    """The make command with the options that were given."""
    given = [f"{key.upper()}={shlex.quote(f'{value}')}" for key, value in options.items() if value is not None]
    return " ".join(["make", verb, *given])


def _shown(dataset: str) -> str:
    """A data set's name as results files hold it: without the folders of this machine."""
    return f"folder:{Path(dataset).name}" if dataset.startswith("folder:") else dataset


def _table(rows: list[dict], columns: tuple[str, ...]) -> None:
    table = Table()
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in columns))
    output.print(table)


def _configure(config, *, epochs: dict[str, int | None], lr: float | None, batch_size: int | None):
    """`config` with the user's epochs per stage (dense 0: no reference), learning rate and batch size."""
    shared = {key: value for key, value in (("lr", lr), ("batch_size", batch_size)) if value is not None}
    changes: dict[str, object] = {}
    for stage, count in epochs.items():
        own = {**shared, **({} if count is None else {"epochs": count})}
        leave_out = stage == "dense" and count == 0
        changes[stage] = None if leave_out else dataclasses.replace(getattr(config, stage), **own)
    return dataclasses.replace(config, **changes)


def _folder(name: str) -> Path:
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"RUN={name!r} must be a plain name; it becomes a folder below {RUNS}/")
    return RUNS / name


def _train(folder: Path, config) -> None:
    from pipeline import data, models, stages
    from pipeline.runs import Run, locked

    # before a folder is made: a mistyped name should leave nothing behind
    data.check_name(config.dataset, config.data_folder)
    models.check_name(config.model)
    with locked(folder):
        Run.create(folder, config)
    with _context(folder) as context:
        stages.run_training(context)
        stages.report(context)


def _any_run() -> Path:
    """The latest run; the demo's, trained now, if there is none."""
    from pipeline import presets
    from pipeline.runs import latest

    try:
        return latest(RUNS)
    except ValueError:
        _say("there is no run yet: the demo's model is trained first, in some minutes")
        _train(RUNS / "demo", presets.digits(0.75))
        return RUNS / "demo"


def _deploy(
    folder: Path,
    target: str,
    *,
    budget: Path | None = None,
    quick: bool = False,
    require_all: bool = False,
    device: str | None = None,
) -> int:
    from pipeline import apps, report, stages
    from pipeline.files import read_json
    from targets import TARGETS
    from targets.latency import FULL, QUICK

    protocol = QUICK if quick else FULL
    with _context(folder) as context:
        verdict = stages.run_deploying(context, target, budget=budget, protocol=protocol, device=device)
        app = TARGETS[target].app
        installed = apps.install(context.artifacts(TARGETS[target]), app) if app else None
    output.print(report.summary_table(read_json(folder / "report.json"), target))
    output.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    if installed:
        output.print(f"app: {installed}", soft_wrap=True)
        output.print(f"next: make app TARGET={target}", soft_wrap=True)
    if TARGETS[target].driver == "ssh" and not device:
        name = f"make deploy TARGET={target} RUN={folder.name} DEVICE=pi@raspberrypi.local"
        output.print(f"next, with the board in your network: {name}", soft_wrap=True)
    if require_all and verdict == "not_measured":
        _say("not everything could be measured, and --require all makes that a failure")
        return BUDGET_MISSED
    return {"pass": DONE, "fail": BUDGET_MISSED, "not_measured": ENVIRONMENT}[verdict]


@contextlib.contextmanager
def _context(folder: Path) -> Iterator:
    from pipeline.runs import Run, locked
    from pipeline.stages import Context

    if not folder.is_dir():
        raise ValueError(f"there is no run {folder}. `make prune` makes one")
    with locked(folder), _progress() as progress:
        yield Context(Run.open(folder), progress, _say)


def _say(line: str) -> None:
    console.print(escape(line), soft_wrap=True)


@contextlib.contextmanager
def _progress(*amounts: ProgressColumn) -> Iterator:
    """Bars on a terminal; elsewhere (a log file, CI) a line every ten seconds.

    amounts: columns that show how much is done, if it is not counted one by one
    """
    if not console.is_terminal:
        shown_at = 0.0

        def line(stage: str, done: int, total: int, values: dict[str, float]) -> None:
            nonlocal shown_at
            if done == total or time.monotonic() - shown_at > 10:
                shown_at = time.monotonic()
                _say(f"  {stage} {done}/{total}  {_figures(values)}")

        yield line
        return
    columns = (TextColumn("  {task.description:9}"), BarColumn(), *(amounts or [MofNCompleteColumn()]),
               TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, int] = {}

        def bar(stage: str, done: int, total: int, values: dict[str, float]) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, figures="")
            bars.update(tasks[stage], completed=done, figures=_figures(values))  # type: ignore[arg-type]

        yield bar


def _figures(values: dict[str, float]) -> str:
    names = {"loss": "loss {:.3f}", "top1": "val top-1 {:.2f} %"}
    return "  ".join(form.format(values[key]) for key, form in names.items() if key in values)


def main() -> None:
    """Run the command line; every way it can end has its exit code."""
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("timm").setLevel(logging.ERROR)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look for a newer version of itself on the network
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app(prog_name="python -m pipeline")
    except ValueError as error:
        _fail(str(error), WRONG_USE)
    except EnvironmentLacks as error:
        _fail(str(error), ENVIRONMENT)
    except Interrupted as error:
        _fail(f"{error}. What was computed is kept: repeat the command to go on", INTERRUPTED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(
            f"cannot write: {error.strerror}{where}. Make room or permissions, then repeat the command to go on",
            WRONG_USE,
        )
    except Exception:
        traceback.print_exc()
        _fail("this is a defect in this program. What was computed is kept in the run folder", DEFECT)


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted("interrupted")


def _fail(message: str, code: int) -> None:
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

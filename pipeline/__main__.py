"""The command line: the commands that make the product, and every way they can end."""

import dataclasses
import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import DownloadColumn, TransferSpeedColumn

from pipeline import console, files, hub, presets, sessions
from pipeline.config import OWN
from pipeline.data import names
from pipeline.data.catalog import KNOWN
from pipeline.errors import (
    BUDGET_MISSED,
    DEFECT,
    ENVIRONMENT,
    INTERRUPTED,
    TOLD,
    WRONG_USE,
    EnvironmentLacks,
    Interrupted,
)
from pipeline.experiments import commands
from pipeline.methods import GATED
from pipeline.model_names import check_name, check_size, patch_of
from pipeline.options import (
    EXIT_CODES,
    BadShareOption,
    DataOption,
    DatasetOption,
    ImgSizeOption,
    KeepDuplicatesOption,
    ModelOption,
    ModelPathOption,
    SeedOption,
    SubsetOption,
    configure,
    from_make,
)
from targets import TARGETS, strict

app = typer.Typer(
    help="Prune a pretrained DeiT while it is fine-tuned on your data, and ship it within a budget.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

UNWRITABLE = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)
"""what a disk that is full, or may not be written to, answers"""
STAGES = ("prepare", "dense", "prune", "compact", "finetune", "export", "validate", "report")

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


@app.command(epilog=EXIT_CODES)
def demo(
    run: RunOption = "demo",
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the report as a results file.")] = None,
) -> None:
    """The whole product on the embedded default: prune the digits model to a quarter, export, prove it."""
    config = dataclasses.replace(presets.digits(0.75), seed=seed)
    folder = sessions.folder_of(run or "demo")
    with sessions.converters_ready(folder, "host"):
        sessions.train(folder, config)
        code = sessions.deploy(folder, "host", sessions.Deployment(quick=True))
    if out:
        from pipeline.report.results import write_results

        write_results(out, "make demo", [strict.read_json(folder / "report.json", dict[str, Any])])
    raise typer.Exit(code)


@app.command("data", epilog=EXIT_CODES)
def get_data(
    dataset: Annotated[str, typer.Option(help="cifar10, cifar100, ifood, inat19 or imagenet.")],
    data: DataOption = None,
) -> None:
    """Download a named data set, check and unpack it. Repeat the command to go on.

    Archives that are in its folder already are used if their checksum matches.
    """
    if dataset not in KNOWN:
        raise ValueError(f"DATASET={dataset} cannot be downloaded. Known: {', '.join(KNOWN)}")
    from pipeline.data.download import fetch

    known = KNOWN[dataset]
    folder = data or known.folder
    console.say(
        f"{known.title}: {decimal(known.download_bytes)} to download, {decimal(known.unpacked_bytes)} unpacked, "
        f"into {folder}. Licence: {known.licence}. See {known.home}"
    )
    with console.progress(DownloadColumn(), TransferSpeedColumn()) as progress:
        fetch(known, folder, lambda what, done, total: progress(what, done, total, {}))
    console.tell(f"{folder} holds {known.title}")
    if archives := [archive.name for archive in known.archives if (folder / archive.name).exists()]:
        console.tell(f"no longer needed there: {' '.join(archives)}")
    console.tell(f"next: {console.make('prune', dataset=dataset, data=data, sparsity=0.75)}")


@app.command(epilog=EXIT_CODES)
def shards(
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    data: DataOption = None,
    subset: SubsetOption = None,
    max_bad_share: BadShareOption = 0.001,
    keep_duplicates: KeepDuplicatesOption = False,
    shard_mb: Annotated[int, typer.Option(min=1, help="Megabytes after which a tar is ended.")] = 256,
) -> None:
    """The images of a data set in tars, for DATASET=wds:OUT: few large files instead of many small ones."""
    dataset = names.resolve(dataset)
    names.check_name(dataset, data)
    from pipeline.data.datasets import load_dataset
    from pipeline.data.write_shards import write

    with console.progress() as progress:
        found = load_dataset(
            dataset,
            subset,
            folder=data,
            max_bad_share=max_bad_share,
            keep_duplicates=keep_duplicates,
            progress=lambda done, total: progress("index", done, total, {}),
        )
        paths = write(found, out, shard_mb * 10**6, lambda what, done, total: progress(what, done, total, {}))
    console.tell(f"{out}: {len(paths)} tars, {decimal(sum(path.stat().st_size for path in paths))}")
    console.tell(f"next: {console.make('prune', dataset=f'wds:{out}', sparsity=0.75)}")


@app.command(epilog=EXIT_CODES)
def prune(
    dataset: DatasetOption = "digits",
    data: DataOption = None,
    subset: SubsetOption = None,
    max_bad_share: BadShareOption = 0.001,
    keep_duplicates: KeepDuplicatesOption = False,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of all parameters to remove, between 0 and 1.  \\[default: 0.75]")
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(help="Instead of SPARSITY: median milliseconds on TARGET, as its profile predicts them."),
    ] = None,
    model: ModelOption = None,
    img_size: ImgSizeOption = None,
    model_path: ModelPathOption = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Begin from random weights.")] = False,
    method: Annotated[
        str,
        typer.Option(
            help="dap, a rival (savit, wdpruning, isomorphic), a control (uniform, taylor, magnitude) or dense."
        ),
    ] = "dap",
    heads: Annotated[
        bool, typer.Option("--heads", help="Let whole attention heads go too, for dap and its controls.")
    ] = False,
    released: Annotated[
        bool, typer.Option("--released", help="Repeat the known mistakes of savit's or wdpruning's released code.")
    ] = False,
    distill: Annotated[
        bool | None,
        typer.Option(
            "--distill/--no-distill",
            help="Learn from the dense reference too, while pruning and after.  \\[default: where there is one, for "
            "dap and its controls]",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of pruning.")] = None,
    finetune_epochs: Annotated[int | None, typer.Option(help="Epochs of fine-tuning the small model.")] = None,
    dense_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the dense reference; 0: no reference, its accuracy is not measured.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of every stage.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step, of all processes.")] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(help="Images per forward and process at most, where memory is short; a step stays what it is."),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Processes of this machine that share the work.  \\[default: one]")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16.  \\[default: bf16 where a GPU has it, else fp32]")
    ] = None,
    tracker: Annotated[
        str | None,
        typer.Option(help="tensorboard, wandb or trackio, which are to be installed: shows losses there too."),
    ] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="See every class equally often: for classes of very different sizes.")
    ] = False,
    early_stop: Annotated[
        int | None,
        typer.Option(help="End training, not pruning, after so many epochs without a better one.  \\[default: never]"),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Train what torch.compile makes of the model.")] = False,
    target: Annotated[str, typer.Option(help="The device whose rule for layer widths is kept.")] = "host",
    seed: SeedOption = 0,
    run: RunOption = None,
) -> None:
    """Fine-tune on DATASET while pruning, make the model small for good, fine-tune it on.

    Repeat the same command to go on after an interruption.
    """
    if sparsity is not None and latency_ms is not None:
        raise ValueError("SPARSITY and LATENCY_MS exclude each other: LATENCY_MS decides how much goes")
    model, weights = hub.resolve(model) if model else (None, None)
    if model_path or from_scratch:
        weights = str(model_path) if model_path else None
    config = configure(
        presets.of(dataset, model, 0.75 if sparsity is None else sparsity),
        epochs={"dense": dense_epochs, "prune": epochs, "finetune": finetune_epochs},
        lr=lr,
        batch_size=batch_size,
        balanced=balanced,
        early_stop=early_stop,
        compile=compile,
    )
    config = dataclasses.replace(
        config,
        data=str(data) if data else None,
        max_bad_share=max_bad_share,
        keep_duplicates=keep_duplicates,
        subset=subset,
        target=target,
        seed=seed,
        img_size=img_size,
        model_path=weights,
        from_scratch=from_scratch,
        precision=precision,
        teacher=OWN if distill else None,
    )
    if distill is None and config.dense is not None and method in GATED:
        config = dataclasses.replace(config, teacher=OWN)
    if latency_ms is not None:
        config = presets.with_latency(config, latency_ms)
    config = presets.with_method(config, method, released=released)
    if heads:
        config = dataclasses.replace(config, pruning=dataclasses.replace(config.pruning, gates="heads"))
    folder = sessions.folder_of(run or presets.run_name(config))
    if (code := sessions.in_processes(nproc)) is not None:
        raise typer.Exit(code)
    sessions.train(folder, config, micro_batch, tracker)
    console.tell(f"report: {folder / 'report.html'}")
    if method != "dense":
        console.tell(f"next: {console.make('deploy', target=target, run=folder.name)}")


@app.command(epilog=EXIT_CODES)
def deploy(
    target: Annotated[str, typer.Option(help="host, mac, ios, android, rpi4, rpi5 or web.")] = "host",
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
    if require not in (None, "all"):
        raise ValueError(f"--require takes all, not {require}")
    if target not in TARGETS:
        raise ValueError(f"TARGET={target} is unknown. Known: {', '.join(TARGETS)}")
    folder = sessions.existing(run)
    asked = sessions.Deployment(budget=budget, quick=quick, require_all=require == "all", device=device)
    raise typer.Exit(sessions.deploy(folder, target, asked))


@app.command(epilog=EXIT_CODES)
def bench(
    run: Annotated[str | None, typer.Option(help="Name of the run folder.  \\[default: the latest]")] = None,
    target: Annotated[str, typer.Option(help="host, mac, ios, android, rpi4, rpi5 or web.")] = "host",
    quick: Annotated[bool, typer.Option("--quick", help="Measure latency for 10 seconds instead of 60.")] = False,
    device: DeviceOption = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table as this results file.")] = None,
) -> None:
    """One table of a run: every format and precision for TARGET that this machine can make, measured as deploy does.

    No budget decides; what fails says why, and the others go on. Also as bench.csv and bench.json in the run folder.
    Exit code 3 if none of them could be run.
    """
    if target not in TARGETS:
        raise ValueError(f"TARGET={target} is unknown. Known: {', '.join(TARGETS)}")
    raise typer.Exit(sessions.bench(sessions.existing(run), target, quick=quick, device=device, out=out))


@app.command("app", epilog=EXIT_CODES)
def open_app(
    target: Annotated[str, typer.Option(help="web, android, ios, rpi4 or rpi5.")] = "web",
    run: Annotated[
        str | None, typer.Option(help="Deploy this run's model into it first.  \\[default: the model that it has]")
    ] = None,
    address: Annotated[str, typer.Option(help="web: to serve at; 0.0.0.0 lets your network in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="web: port to serve at.")] = 8080,
) -> None:
    """Build the demo app for TARGET. web: and serve it; rpi4, rpi5: into an archive for the board; android: an .apk;
    ios: the folder that Xcode builds.

    An app without a model gets that of RUN, or of the latest run; without any run the demo's is trained first.
    """
    name = TARGETS[target].app if target in TARGETS else None
    if name is None:
        known = ", ".join(name for name, entry in TARGETS.items() if entry.app)
        raise ValueError(f"there is no app for TARGET={target}. Known: {known}")
    from pipeline import apps

    if run or not apps.has_model(name):
        folder = sessions.existing(run) if run else sessions.latest_or_demo()
        code = sessions.deploy(folder, target, sessions.Deployment(quick=True))
        if not apps.has_model(name) or code == BUDGET_MISSED:
            raise typer.Exit(code)
    if name == "raspberry-pi":
        apps.pack_for_board(target, sessions.RUNS)
    elif name == "android":
        apps.build_apk()
    elif name == "ios":
        apps.ready_for_xcode()
    else:
        apps.serve(address, port)


@app.command("hub", epilog=EXIT_CODES)
def prepare_hub(
    run: Annotated[str | None, typer.Option(help="Name of the run folder.  \\[default: the latest]")] = None,
) -> None:
    """Make a folder of the small model that timm loads, with a model card, ready for Hugging Face's hub.

    Nothing is uploaded: the command that does it is printed.
    """
    folder = sessions.existing(run)
    from pipeline import hub_folder
    from pipeline.runs import Run

    with files.locked(folder):
        out = hub_folder.prepare(Run.open(folder))
    console.tell(f"{out}: timm.create_model('local-dir:{out}', pretrained=True), after `import dap.hub`")
    console.tell(f"read {out / 'README.md'} before you publish. Then: hf upload USER/{folder.name} {out}")


@app.command(epilog=EXIT_CODES)
def profile(
    target: Annotated[str, typer.Option(help="host, rpi4, rpi5 or web.")] = "host",
    model: Annotated[str, typer.Option(help="A timm DeiT or plain ViT name.")] = "deit_micro_patch8_64",
    img_size: ImgSizeOption = None,
    device: DeviceOption = None,
    format: Annotated[str | None, typer.Option(help="File format.  \\[default: the budget's first]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of that format.  \\[default: the first that the budget allows]")
    ] = None,
) -> None:
    """Measure what a block of MODEL costs at a grid of widths on a device of TARGET, for prune --latency-ms.

    Writes targets/profiles/TARGET.json; a model of the same sizes, format and precision in it is replaced.
    """
    if target not in TARGETS:
        raise ValueError(f"TARGET={target} is unknown. Known: {', '.join(TARGETS)}")
    model, _ = hub.resolve(model)
    check_name(model)
    if img_size is not None:
        check_size(img_size, patch_of(model))
    from pipeline import profiling

    with console.progress() as progress:
        found, path = profiling.profile(
            TARGETS[target],
            model,
            img_size=img_size,
            device=device,
            format=format,
            precision=precision,
            say=console.say,
            progress=progress,
        )
    console.print_table(profiling.rows(found), ("kind", "width", "ms", "spread_ms"))
    console.tell(
        f"{path}: the dense model is predicted to take {found.dense_ms(profiling.depth_of(model)):.4g} ms; "
        f"{len(found.whole)} whole models, by which the curves were scaled, come out within {100 * found.off():.1f} %"
    )
    console.tell(f"next: {console.make('prune', latency_ms='...', target=target, model=model, img_size=img_size)}")


@app.command("stage", epilog=EXIT_CODES)
def run_stage(
    stage: Annotated[str, typer.Argument(help=f"{', '.join(STAGES)}.")],
    run: Annotated[str | None, typer.Option(help="Name of the run folder.  \\[default: the latest]")] = None,
    target: Annotated[str, typer.Option(help="For export, validate and report.")] = "host",
    budget: BudgetOption = None,
) -> None:
    """Run one stage of an existing run alone; the stages before it must have finished."""
    folder = sessions.existing(run)
    if stage not in STAGES:
        raise ValueError(f"stage {stage} is unknown. Known: {', '.join(STAGES)}")
    from pipeline import stages
    from pipeline.runs import Run
    from pipeline.train import runtime

    runtime.start(Run.open(folder).config.precision)
    with sessions.at_work(folder) as context:
        if stage in stages.TRAINING:
            stages.run_training(context, only=stage)
        else:
            stages.run_deploying(context, target, only=stage, budget=budget)


app.add_typer(commands.app)  # behind the commands above, in the help


def main() -> None:
    """Run the command line; every way it can end has its exit code."""
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("timm").setLevel(logging.ERROR)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look for a newer version of itself on the network
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if rank > 0:
        console.silence()
    try:
        arguments = from_make(app, sys.argv[1:])
        if processes > 1 and "prune" not in arguments:
            raise ValueError(f"{processes} processes have been started, and prune alone can share its work. Start one")
        app(arguments, prog_name="python -m pipeline")
    except BaseException as error:
        if rank > 0 and not isinstance(error, SystemExit) and not _is_told(error):
            console.speak(f"process {rank}: ")
        _end(error)


def _is_told(error: BaseException) -> bool:
    """Whether the first of several processes prints an error: one that all have, as they do until they meet."""
    runtime = sys.modules.get("pipeline.train.runtime")
    told = isinstance(error, Interrupted) or TOLD in getattr(error, "__notes__", ())
    return told or runtime is None or not runtime.meets()


def _end(error: BaseException) -> None:
    """End with the message and the exit code of an error."""
    try:
        raise error
    except ValueError:
        _fail(str(error), WRONG_USE)
    except EnvironmentLacks:
        _fail(str(error), ENVIRONMENT)
    except Interrupted:
        _fail(f"{error}. What was computed is kept: repeat the command to go on", INTERRUPTED)
    except Exception:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            where = f" ({error.filename})" if error.filename else ""
            _fail(
                f"cannot write: {error.strerror}{where}. Make room or permissions, then repeat the command to go on",
                WRONG_USE,
            )
        if not console.messages.quiet:
            traceback.print_exc()
        _fail("this is a defect in this program. What was computed is kept in the run folder", DEFECT)


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted("interrupted" if number == signal.SIGINT else "told to end")


def _fail(message: str, code: int) -> None:
    console.messages.print(f"[bold red]error:[/] {console.speaker}{escape(message)}", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

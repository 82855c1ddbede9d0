"""The command line: the commands that make the product, and every way they can end."""

import contextlib
import dataclasses
import errno
import logging
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import DownloadColumn, TransferSpeedColumn

from pipeline import console
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
from pipeline.experiments import commands
from pipeline.options import (
    EXIT_CODES,
    RUNS,
    DataOption,
    DatasetOption,
    ModelOption,
    SeedOption,
    SubsetOption,
    configure,
)

app = typer.Typer(
    help="Prune a pretrained DeiT while it is fine-tuned on your data, and ship it within a budget.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

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
    from pipeline import presets
    from pipeline.files import read_json
    from pipeline.report.results import write_results

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
    from pipeline.data.catalog import KNOWN
    from pipeline.data.download import fetch

    if dataset not in KNOWN:
        raise ValueError(f"DATASET={dataset} cannot be downloaded. Known: {', '.join(KNOWN)}")
    known = KNOWN[dataset]
    folder = data or known.folder
    console.say(
        f"{known.title}: {decimal(known.download_bytes)} to download, {decimal(known.unpacked_bytes)} unpacked, "
        f"into {folder}. Licence: {known.licence}. See {known.home}"
    )
    with console.progress(DownloadColumn(), TransferSpeedColumn()) as progress:
        fetch(known, folder, lambda what, done, total: progress(what, done, total, {}))
    console.output.print(f"{folder} holds {known.title}", soft_wrap=True)
    if archives := [archive.name for archive in known.archives if (folder / archive.name).exists()]:
        console.output.print(f"no longer needed there: {' '.join(archives)}", soft_wrap=True)
    shown = f" DATA={shlex.quote(str(data))}" if data else ""
    console.output.print(f"next: make prune DATASET={dataset}{shown} SPARSITY=0.75", soft_wrap=True)


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
    config = configure(
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
    console.output.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    if method != "dense":
        console.output.print(f"next: make deploy TARGET={target} RUN={folder.name}", soft_wrap=True)


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
        console.output.print(f"app: {archive}, {decimal(archive.stat().st_size)}", soft_wrap=True)
        console.output.print(
            f"next: scp {archive} pi@raspberrypi.local: and there tar xf {archive.name} && {apps.BUNDLE}/install.sh",
            soft_wrap=True,
        )
        return
    if problem := browser.build(console.say):
        raise EnvironmentLacks(problem)
    server = app_server.server(apps.publish(browser.WEB), address, port)
    console.output.print(f"open http://{address}:{server.server_port}/  (Ctrl-C ends it)", soft_wrap=True)
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
    with console.progress() as progress:
        found, path = profiling.profile(
            TARGETS[target],
            model,
            device=device,
            format=format,
            precision=precision,
            say=console.say,
            progress=progress,
        )
    console.print_table(profiling.rows(found), ("kind", "width", "ms", "spread_ms"))
    console.output.print(
        f"{path}: the dense model is predicted to take {found.dense_ms(profiling.depth_of(model)):.4g} ms; "
        f"{len(found.whole)} whole models, by which the curves were scaled, come out within {100 * found.off():.1f} %",
        soft_wrap=True,
    )
    console.output.print(f"next: make prune LATENCY_MS=... TARGET={target} MODEL={model}", soft_wrap=True)


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


def _folder(name: str) -> Path:
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"RUN={name!r} must be a plain name; it becomes a folder below {RUNS}/")
    return RUNS / name


def _train(folder: Path, config) -> None:
    from pipeline import stages
    from pipeline.data import names
    from pipeline.files import locked
    from pipeline.model_names import check_name
    from pipeline.runs import Run

    # before a folder is made: a mistyped name should leave nothing behind
    names.check_name(config.dataset, config.data_folder)
    check_name(config.model)
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
        console.say("there is no run yet: the demo's model is trained first, in some minutes")
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
    from pipeline import apps, stages
    from pipeline.files import read_json
    from pipeline.report import report
    from targets import TARGETS
    from targets.latency import FULL, QUICK

    protocol = QUICK if quick else FULL
    with _context(folder) as context:
        verdict = stages.run_deploying(context, target, budget=budget, protocol=protocol, device=device)
        app = TARGETS[target].app
        installed = apps.install(context.artifacts(TARGETS[target]), app) if app else None
    console.output.print(report.summary_table(read_json(folder / "report.json"), target))
    console.output.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    if installed:
        console.output.print(f"app: {installed}", soft_wrap=True)
        console.output.print(f"next: make app TARGET={target}", soft_wrap=True)
    if TARGETS[target].driver == "ssh" and not device:
        name = f"make deploy TARGET={target} RUN={folder.name} DEVICE=pi@raspberrypi.local"
        console.output.print(f"next, with the board in your network: {name}", soft_wrap=True)
    if require_all and verdict == "not_measured":
        console.say("not everything could be measured, and --require all makes that a failure")
        return BUDGET_MISSED
    return {"pass": DONE, "fail": BUDGET_MISSED, "not_measured": ENVIRONMENT}[verdict]


@contextlib.contextmanager
def _context(folder: Path) -> Iterator:
    from pipeline.files import locked
    from pipeline.runs import Run
    from pipeline.stages import Context

    if not folder.is_dir():
        raise ValueError(f"there is no run {folder}. `make prune` makes one")
    with locked(folder), console.progress() as progress:
        yield Context(Run.open(folder), progress, console.say)


app.add_typer(commands.app)  # behind the commands above, in the help


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
    console.messages.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

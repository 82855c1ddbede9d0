"""A run at work for the command line: its folder found, locked, and shown on the console."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import console, hub, presets
from pipeline.config import RunConfig
from pipeline.data import names
from pipeline.errors import BUDGET_MISSED, DONE, ENVIRONMENT, EnvironmentLacks
from pipeline.files import locked, sweep, write_text
from pipeline.model_names import check_name
from pipeline.runs import Run, latest
from targets import TARGETS, artifact, manifest, strict
from targets.formats import FORMATS
from targets.latency import FULL, QUICK

if TYPE_CHECKING:  # PyTorch takes seconds to load: what is wrong with an option shows before
    from pipeline.context import Context

RUNS = Path("runs")
TRAINING_MB = 2000.0
"""memory of a training on small images, MB of 1e6 bytes"""
CODES = {"pass": DONE, "fail": BUDGET_MISSED, "not_measured": ENVIRONMENT}


def folder_of(name: str) -> Path:
    """The run folder of that name. Raises ValueError if it is no plain name."""
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"RUN={name!r} must be a plain name; it becomes a folder below {RUNS}/")
    return RUNS / name


def existing(name: str | None) -> Path:
    """The run folder of that name; None: the one worked on last. Raises ValueError if there is none."""
    folder = latest(RUNS) if name is None else folder_of(name)
    if not folder.is_dir():
        raise ValueError(f"there is no run {folder}. `make prune` makes one")
    return folder


@contextlib.contextmanager
def at_work(folder: Path, config: RunConfig | None = None, tracker: str | None = None) -> "Iterator[Context]":
    """The run in `folder`, held for this process or, by their first one, for all that train it; progress is shown.

    config: of the run, to make it if it is new; None: it is there;  tracker: is told of its trainings
    """
    from pipeline.context import Context
    from pipeline.train import runtime

    with contextlib.ExitStack() as stack:

        def hold() -> None:
            stack.enter_context(locked(folder))
            if config is not None:
                Run.create(folder, config)
            sweep(folder)

        try:
            runtime.on_main(hold)
            yield Context(Run.open(folder), stack.enter_context(console.progress()), console.say, tracker)
        except RuntimeError as error:
            if not runtime.has_lost_another(error):
                raise
            problem = "another process of the training has ended. Repeat the command to go on from the last checkpoint"
            raise runtime.of_all(EnvironmentLacks(problem)) from error


def train(folder: Path, config: RunConfig, micro_batch: int | None = None, tracker: str | None = None) -> None:
    """Make the run or go on with it, up to the small fine-tuned model and its report.

    micro_batch: images of a forward at most, as runtime.start takes it;  tracker: one of tracking.TRACKERS
    """
    # before a folder is made: a mistyped name should leave nothing behind
    names.check_name(config.dataset, config.data_folder)
    check_name(config.model)
    if config.model_path and not hub.is_source(config.model_path) and not Path(config.model_path).exists():
        raise ValueError(f"MODEL_PATH={config.model_path}: there is no such file")

    from pipeline import stages
    from pipeline.data import overview
    from pipeline.train import runtime, tracking

    tracking.check(tracker)
    runtime.start(config.precision, micro_batch)
    with at_work(folder, config, tracker) as context:
        for table in overview.tables(overview.summary(context.dataset), config.dataset):
            console.show(table)
        stages.run_training(context)
        runtime.on_main(partial(stages.report, context))


def in_processes(count: int | None) -> int | None:
    """Run the command that this process runs in so many; returns the exit code. None if this is one of them already.

    Raises ValueError if torchrun has started another number.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if count is None or ("LOCAL_RANK" in os.environ and count == started):
        return None
    if "LOCAL_RANK" in os.environ:
        raise ValueError(f"NPROC={count}, but {started} processes have been started. Leave one of the two out")
    if count < 1:
        raise ValueError(f"NPROC={count} must be 1 or more")
    from pipeline import launch

    return launch.run(count, sys.argv[1:])


@contextlib.contextmanager
def converters_ready(folder: Path, target: str) -> Iterator[None]:
    """Let the converters get ready meanwhile that a deployment for the target will need, unless the run has had one.

    To load them takes a processor for half a minute, which training has to spare. Then they wait, in memory: where
    there is little of it, they are loaded when they are needed.
    """
    formats, free_mb = TARGETS[target].budget(), artifact.available_memory_mb()
    deployed = (folder / "artifacts" / target / manifest.FILE_NAME).exists()
    if not deployed and (free_mb is None or free_mb > TRAINING_MB + artifact.CONVERTER_MB * len(formats)):
        for name in formats:
            artifact.begin(FORMATS[name].converter)
    try:
        yield
    finally:
        artifact.end_converters()


WITH_DEVICE = {
    "ssh": ("pi@raspberrypi.local", "board in your network"),
    "adb": ("usb", "phone plugged in"),
    "xcode": ("usb", "phone plugged into a Mac with Xcode, and this folder copied there"),
    "mac": ("mac", "Mac that this folder is copied to"),
}
"""driver -> a device that it may be given, and where that is"""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What the user asks of a deployment beside its target."""

    budget: Path | None = None
    """file in place of the target's own"""
    quick: bool = False
    """latency for 10 seconds instead of 60"""
    require_all: bool = False
    """what could not be measured counts as missed"""
    device: str | None = None
    """as targets.devices.drivers.connect takes it"""


def deploy(folder: Path, target: str, asked: Deployment) -> int:
    """Deploy the run for the target and show what came of it; returns the exit code."""
    from pipeline import apps, stages
    from pipeline.report import report

    protocol = QUICK if asked.quick else FULL
    with at_work(folder) as context:
        verdict = stages.run_deploying(context, target, budget=asked.budget, protocol=protocol, device=asked.device)
        app = TARGETS[target].app
        installed = apps.install(context.artifacts(TARGETS[target]), app) if app else None
    console.output.print(report.summary_table(strict.read_json(folder / "report.json", dict[str, Any]), target))
    console.tell(f"report: {folder / 'report.html'}")
    if installed:
        console.tell(f"app: {installed}")
        console.tell(f"next: {console.make('app', target=target)}")
    if (driver := TARGETS[target].driver) in WITH_DEVICE and not asked.device:
        device, where = WITH_DEVICE[driver]
        again = console.make("deploy", target=target, run=folder.name, device=device)
        console.tell(f"next, with the {where}: {again}")
    if asked.require_all and verdict == "not_measured":
        console.say("not everything could be measured, and --require all makes that a failure")
        return BUDGET_MISSED
    return CODES[verdict]


def bench(folder: Path, target: str, *, quick: bool, device: str | None, out: Path | None) -> int:
    """Measure all that the target can have of the run, and show the table; returns the exit code.

    out: a results file beside those in the run folder
    """
    from pipeline import benchmark

    again = console.make("bench", run=folder.name, target=target, quick=1 if quick else None, device=device)
    with at_work(folder) as context:
        rows = benchmark.bench(context, TARGETS[target], QUICK if quick else FULL, device, again)
        written = benchmark.folder_of(context, TARGETS[target])
    if out:
        write_text(out, (written / "bench.json").read_text())
    console.output.print(benchmark.table(rows), width=max(console.output.width, benchmark.WIDTH), crop=False)
    console.tell(f"table: {written / 'bench.csv'} {written / 'bench.json'}")
    return DONE if benchmark.ran(rows) else ENVIRONMENT


def latest_or_demo() -> Path:
    """The run worked on last; the demo's, trained now, if there is none."""
    try:
        return latest(RUNS)
    except ValueError:
        console.say("there is no run yet: the demo's model is trained first, in some minutes")
        train(RUNS / "demo", presets.digits(0.75))
        return RUNS / "demo"

"""`TRACKER=`: a training's losses and accuracies in TensorBoard, Weights & Biases or Trackio, through accelerate."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from pipeline.config import TrainConfig
from pipeline.errors import EnvironmentLacks
from pipeline.train import runtime

Progress = Callable[[str, int, int, dict[str, float]], None]

TRACKERS = ("tensorboard", "wandb", "trackio")
FOLDER = "tracker"
"""of a run, where TensorBoard's files go"""


def check(tracker: str | None) -> None:
    """Raises ValueError for one that is unknown, EnvironmentLacks for one that is not installed."""
    if tracker is None:
        return
    if tracker not in TRACKERS:
        raise ValueError(f"TRACKER={tracker} is unknown. Known: {', '.join(TRACKERS)}")
    if tracker not in map(str, get_available_trackers()):
        raise EnvironmentLacks(f"TRACKER={tracker} is not installed: .venv/bin/pip install {tracker}")


@contextlib.contextmanager
def tracked(tracker: str | None, run: Path, stage: str, config: TrainConfig, progress: Progress) -> Iterator[Progress]:
    """`progress`, which tells the tracker too. Every stage is a run of its own there, called like the folder and it."""
    if tracker is None or not runtime.is_main():
        yield progress
        return
    accelerator = Accelerator(log_with=tracker, project_dir=run / FOLDER)
    name = f"{run.name}-{stage}"
    settings = {key: value for key, value in asdict(config).items() if isinstance(value, int | float | str)}
    own = {"wandb": {"name": name, "group": run.name}, "trackio": {"name": name}}
    accelerator.init_trackers(stage if tracker == "tensorboard" else "dap", settings, own)

    def tell(stage: str, done: int, total: int, values: dict[str, float]) -> None:
        accelerator.log(values, step=done)
        progress(stage, done, total, values)

    try:
        yield tell
    finally:
        for one in accelerator.trackers:
            one.finish()

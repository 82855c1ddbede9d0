"""How long a run trains: epochs that follow from the images and the machine, told before, with the time they take.

Epochs that are meant for another number of images are scaled with its square root: where there are four times as many
images, twice as many are seen. That lies between a constant number of epochs and a constant number of steps. In BiT's
HyperRule (arXiv 1912.11370) steps grow slower than images, too. The rule is ours; measured is one point of it for each
preset, the number of images that its epochs are meant for.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from pipeline import console, files
from pipeline.config import TrainConfig
from pipeline.runs import Run
from pipeline.train.loop import Progress
from targets import strict

FILE = "plan.json"
"""the plan in a run's folder, by which it began and goes on, on whatever machine"""
SCALES = (1 / 8, 4.0)
"""smallest and largest factor for epochs: below, masks have no time to move; above, images are learnt by heart"""

# Time of a step, relative to the dense model's.
PROBING = 1.1  # docs/results/bench-step.json: DAP's default probes
TEACHING = 1 / 3  # a forward of three
EVALUATING = 1 / 3

SETTLING, ENOUGH = 3, 20
"""steps that are not counted, for caches to fill, and after them those that an estimate is made from"""
SOONER_S = 30.0
"""seconds after which four steps are enough"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides the epochs of a run, and the epochs of those stages that are to be scaled."""

    images: int
    """training images"""
    gpu: bool
    """whether the machine that began the run has a GPU"""
    epochs: dict[str, int]
    """stage -> passes over the training split"""


def epochs_of(config: TrainConfig, images: int, *, gpu: bool) -> int:
    """Passes over a training split of so many images."""
    if config.epochs_for is None:
        return config.epochs
    share = math.sqrt(config.epochs_for / images) * (1.0 if gpu else config.cpu_share)
    return max(1, round(config.epochs * min(max(share, SCALES[0]), SCALES[1])))


def fix(run: Run, images: int, *, gpu: bool) -> dict[str, str]:
    """Write the plan into the run's folder, once for so many images, so that a resumed run goes by the same.

    Returns its digest by name; nothing for a run whose epochs are all given.
    """
    scaled = {stage: config for stage, config in run.config.stages.items() if config.epochs_for is not None}
    if not scaled:
        return {}
    path = run.folder / FILE
    if not path.exists() or read(run).images != images:
        epochs = {stage: epochs_of(config, images, gpu=gpu) for stage, config in scaled.items()}
        files.write_json(path, asdict(Plan(images=images, gpu=gpu, epochs=epochs)))
    return {FILE: files.digest(path)}


def read(run: Run) -> Plan:
    """The plan of a run. Raises ValueError if it is damaged."""
    return strict.read_json(run.folder / FILE, Plan, fix="delete it to have it made anew")


def settled(run: Run) -> dict[str, TrainConfig]:
    """The stages that the run trains in, in order, with the epochs that they have. `fix` has come before."""
    stages = run.config.stages
    if all(config.epochs_for is None for config in stages.values()):
        return stages
    epochs = read(run).epochs
    return {
        stage: config if config.epochs_for is None else replace(config, epochs=epochs[stage], epochs_for=None)
        for stage, config in stages.items()
    }


def told(run: Run, first: str, images: int) -> list[str]:
    """Epochs, images and steps of the stage `first` and of those that follow, in lines."""
    stages = settled(run)
    parts = []
    for stage, config in list(stages.items())[list(stages).index(first) :]:
        steps = config.epochs * max(1, images // config.batch_size)
        parts.append(f"{stage} {console.count(config.epochs, 'epoch')}, {console.count(steps, 'step')}")
    lines = [f"  to train: {'; '.join(parts)}; {images:,} images an epoch, {stages[first].batch_size} a step"]
    own = run.config.stages
    if all(config.epochs_for is None for config in own.values()):
        return lines
    share = min(config.cpu_share for config in own.values() if config.epochs_for is not None)
    if not read(run).gpu and share < 1:
        lines.append(f"  no GPU: {share:g} times the epochs that it would be with one (EPOCHS= decides otherwise)")
    return lines


def work(run: Run, stage: str) -> float:
    """Epochs of a stage, counted in the time of the dense model's."""
    config = run.config
    taught = TEACHING if config.teacher is not None and stage != "dense" else 0.0
    cost = {"dense": 1.0, "prune": PROBING, "finetune": 1 - config.pruning.sparsity}[stage]
    return settled(run)[stage].epochs * (cost + taught)


class Clock:
    """A stage's progress with the seconds that are left of it; told once, in a line, how long all will take."""

    def __init__(
        self, progress: Progress, say: Callable[[str], None], *, epoch: int, evaluation: float, ahead: float
    ) -> None:
        """
        epoch:      steps of one
        evaluation: time that is spent evaluating, as a share of that of training
        ahead:      time that later stages take, as a share of this one's
        """
        self._progress, self._say, self._epoch = progress, say, epoch
        self._evaluation, self._ahead = evaluation, ahead
        self._seen = 0
        self._since: tuple[float, int] | None = None
        self._told = False

    def __call__(self, stage: str, done: int, total: int, values: dict[str, float]) -> None:
        """After every step, as training calls it."""
        now = time.monotonic()
        self._seen += 1
        if self._seen == SETTLING:
            self._since = now, done
        left = None
        if self._since is not None and done > self._since[1]:
            seconds, steps = now - self._since[0], done - self._since[1]
            if steps >= ENOUGH or (steps >= 4 and seconds > SOONER_S):
                # steps that have met no evaluation yet are to meet some
                left = seconds / steps * (total - done) * (1 + self._evaluation * (steps < self._epoch))
        if left is not None and not self._told:
            self._told = True
            whole = left * total / max(total - done, 1)
            later = f"; with the stages after it {console.about(left + whole * self._ahead)}" if self._ahead else ""
            self._say(f"  {stage}: {console.about(left)}{later}")
        self._progress(stage, done, total, values if left is None else {**values, "left_s": left})

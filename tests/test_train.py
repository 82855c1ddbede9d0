"""The training loop: its log, going on after an interruption, a loss that is not finite, several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dap_models import CLASSES, tiny_vit

from pipeline import files
from pipeline.config import TrainConfig
from pipeline.data import augment
from pipeline.data.datasets import Arrays, Dataset, Split
from pipeline.data.loader import train_loader
from pipeline.data.view import View
from pipeline.errors import EnvironmentLacks, Interrupted
from pipeline.train import checkpoints, runtime
from pipeline.train.loop import distillation, train

ROOT = Path(__file__).parent.parent
VIEW = View(size=16, crop_ratio=1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
NEVER = 1e9
STEPS = 8  # 4 an epoch


def run(
    folder: Path,
    *,
    pruner=None,
    teacher=None,
    progress=None,
    evaluate=None,
    model=None,
    count=32,
    wrap=None,
    **settings,
):
    """Train a tiny model for two epochs; returns it and its log."""
    draw = np.random.default_rng(0)
    images = Arrays(draw.integers(0, 256, (count, 16, 16, 3), np.uint8))
    split = Split(images=images, labels=np.arange(count) % CLASSES)
    dataset = Dataset(name="x", classes=("a",) * CLASSES, train=split, val=split,
                      augmentation=augment.LIGHT, fingerprint="x")  # fmt: skip
    config = TrainConfig(**{"epochs": 2, "batch_size": 8, "mixup": 0.2, "checkpoint_seconds": NEVER, **settings})
    model = model or tiny_vit()
    log = files.Log(folder / "log.jsonl")
    batches = train_loader(dataset, 16, config.batch_size, 0, 0, config.in_memory, share=runtime.share())
    train(
        model,
        (wrap or (lambda same: same))(batches),
        config,
        stage="x",
        seed=0,
        view=VIEW,
        classes=CLASSES,
        checkpoint=folder / "x.pt",
        log=log,
        pruner=pruner,
        teacher=teacher,
        evaluate=evaluate,
        progress=progress,
    )
    return model, log.read()


class Marker:
    """A pruner that does nothing but say at which step it moved masks."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0

    def loss(self, targets: torch.Tensor) -> None:
        return None

    def step(self, targets: torch.Tensor) -> dict | None:
        self.steps += 1
        return {"moved": self.steps} if self.steps == self.at else None

    def state_dict(self) -> dict:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]


def test_every_step_has_its_line_with_what_belongs_to_it(tmp_path):
    """Although the loss is looked at a step later; with a checkpoint after every step it is looked at right away."""
    shown = []
    _, late = run(
        tmp_path / "late",
        pruner=Marker(3),
        evaluate=lambda _: 50.0,
        progress=lambda stage, done, total, values: shown.append((done, total, values["loss"])),
    )
    _, at_once = run(tmp_path / "at once", pruner=Marker(3), evaluate=lambda _: 50.0, checkpoint_seconds=0.0)
    assert late == at_once
    assert [line["step"] for line in late] == list(range(1, STEPS + 1))
    assert [line["epoch"] for line in late] == [step / 4 for step in range(1, STEPS + 1)]
    assert [line["step"] for line in late if "moved" in line] == [3]
    assert [line["step"] for line in late if "top1" in line] == [4, 8]
    assert shown == [(line["step"], STEPS, line["loss"]) for line in late]
    assert len({line["loss"] for line in late}) == STEPS


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_stopped_and_repeated_it_ends_as_if_it_had_not_been(tmp_path, in_memory, stop_at):
    def interrupt(stage: str, done: int, *_) -> None:
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    whole, expected = run(tmp_path / "whole", in_memory=in_memory)
    with pytest.raises(Interrupted, match=f"stopped at step {stop_at + 1} of {STEPS}"):  # the next one is under way
        run(tmp_path / "stopped", progress=interrupt, in_memory=in_memory)
    resumed, lines = run(tmp_path / "stopped", in_memory=in_memory)
    assert lines == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    weights = [parameter.clone() for parameter in resumed.parameters()]
    again, _ = run(tmp_path / "stopped", in_memory=in_memory)
    assert all(torch.equal(a, b) for a, b in zip(weights, again.parameters(), strict=True))


@pytest.mark.parametrize("checkpoint_seconds", [0.0, NEVER])
def test_a_loss_that_is_not_finite_is_never_saved_or_logged(tmp_path, checkpoint_seconds):
    model, calls = tiny_vit(), []

    def spoil(*_) -> torch.Tensor | None:
        calls.append(1)
        return torch.full((8, CLASSES), torch.nan, requires_grad=True) if len(calls) == 5 else None

    model.register_forward_hook(spoil)
    with pytest.raises(ValueError, match=r"the loss became nan at step 5\. Try a lower LR"):
        run(tmp_path, model=model, checkpoint_seconds=checkpoint_seconds)
    assert [line["step"] for line in files.Log(tmp_path / "log.jsonl").read()] == [1, 2, 3, 4]
    saved = checkpoints.load(tmp_path / "x.pt")
    assert (saved and saved["step"]) == (4 if checkpoint_seconds == 0 else None)


class Dying:
    """Batches whose loader loses a worker at a step."""

    def __init__(self, batches, at: int, error: Exception) -> None:
        self.batches, self.at, self.error, self.batch_size = batches, at, error, batches.batch_size

    def __len__(self) -> int:
        return len(self.batches)

    def starting_at(self, step: int):
        for number, batch in enumerate(self.batches.starting_at(step), step):
            if number == self.at:
                raise self.error
            yield batch


def test_when_the_loaders_processes_die_a_checkpoint_is_written_and_training_goes_on_from_there(tmp_path):
    whole, expected = run(tmp_path / "whole")
    with pytest.raises(EnvironmentLacks, match="gone"):
        run(tmp_path / "died", wrap=lambda batches: Dying(batches, 5, EnvironmentLacks("gone")))
    assert checkpoints.load(tmp_path / "died" / "x.pt")["step"] == 5
    resumed, lines = run(tmp_path / "died")
    assert lines == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_worker_that_dies_in_the_middle_of_a_step_is_told_as_well(tmp_path):
    """torch raises that wherever the training is, from its handler of SIGCHLD."""

    def die(*_) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    with pytest.raises(EnvironmentLacks, match=r"a process that reads images has ended .*has the memory run out"):
        run(tmp_path, progress=die)


def test_distillation_is_temperature_squared_times_the_divergence_from_the_teacher():
    student, taught = torch.randn(5, CLASSES), torch.randn(5, CLASSES)
    p, q = (taught / 3).softmax(-1), (student / 3).softmax(-1)
    expected = 9 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(distillation(student, taught), expected)
    assert distillation(taught, taught).abs() < 1e-6


def test_a_teacher_is_learned_from_and_stays_as_it_is(tmp_path):
    teacher = tiny_vit(seed=5).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    _, plain = run(tmp_path / "plain")
    student, taught = run(tmp_path / "taught", teacher=teacher)
    assert [line["loss"] for line in taught] != [line["loss"] for line in plain]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not torch.equal(student.head.weight, teacher.head.weight)


def test_an_odd_batch_cannot_be_mixed():
    TrainConfig(epochs=1, batch_size=15)
    with pytest.raises(ValueError, match="batch_size=15 must be even"):
        TrainConfig(epochs=1, batch_size=15, cutmix=1.0)


SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from accelerate import PartialState
from test_train import run
folder = Path({folder!r})
model, log = run(folder, count=64)
rank = PartialState().process_index
(folder / f"{{rank}}.json").write_text(json.dumps([len(log), sum(p.double().sum().item() for p in model.parameters())]))
"""


@pytest.mark.slow
def test_two_processes_share_an_epoch_and_end_with_the_same_model(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, check=True, timeout=300, cwd=ROOT, env=environment)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one[0] == STEPS  # 64 images in batches of 8 on 2 processes are 4 steps an epoch, logged once
    assert one[1] == other[1]

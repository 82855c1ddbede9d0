"""The training loop: its log, going on after an interruption, a loss that is not finite, several processes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dap_models import CLASSES, tiny_vit

from dap import PruneConfig, Pruner
from pipeline import files, presets
from pipeline.config import TrainConfig
from pipeline.data import augment
from pipeline.data.datasets import Arrays, Dataset, Split
from pipeline.data.loader import train_loader
from pipeline.data.view import View
from pipeline.errors import EnvironmentLacks, Interrupted
from pipeline.options import configure
from pipeline.train import checkpoints, runtime
from pipeline.train.best import Best
from pipeline.train.evaluate import Predictions, predictions
from pipeline.train.loop import distillation, train

ROOT = Path(__file__).parent.parent
VIEW = View(size=16, crop_ratio=1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
NEVER = 1e9
STEPS = 8  # 4 an epoch


def right(count: int, *, of: int) -> Predictions:
    """So many images right of so many, all of class 0 in truth."""
    found = (np.arange(of) >= count).astype(np.int64)
    return Predictions(labels=np.zeros(of, np.int64), predicted=found, confidence=np.ones(of, np.float32))


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
    said=None,
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
    batches = train_loader(
        dataset, 16, config.batch_size, 0, 0, config.in_memory, share=runtime.share(), balanced=config.balanced
    )
    kept = train(
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
        say=said.append if said is not None else lambda _: None,
    )
    assert kept in range(1, config.epochs + 1)
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
        evaluate=lambda _: right(1, of=2),
        progress=lambda stage, done, total, values: shown.append((done, total, values["loss"])),
    )
    _, at_once = run(tmp_path / "at once", pruner=Marker(3), evaluate=lambda _: right(1, of=2), checkpoint_seconds=0.0)
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
        self.rows = batches.rows

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


def test_the_rate_is_that_of_the_images_a_step(tmp_path):
    """Also where the split has fewer images than a batch was to have."""
    rates = {}
    for size, count in ((8, 32), (16, 32), (64, 8)):
        _, log = run(tmp_path / str(size), batch_size=size, count=count, lr=1e-3, lr_batch=16)
        rates[size] = log[0]["lr"]
    assert rates == {8: 5e-4, 16: 1e-3, 64: 5e-4}


def test_an_odd_batch_cannot_be_mixed():
    TrainConfig(epochs=1, batch_size=15)
    with pytest.raises(ValueError, match="batch_size=15 must be even"):
        TrainConfig(epochs=1, batch_size=15, cutmix=1.0)


def test_accuracy_is_told_over_images_and_over_classes():
    labels, predicted = np.array([0] * 8 + [2] * 2), np.array([0] * 8 + [0, 2])
    found = Predictions(labels=labels, predicted=predicted, confidence=np.ones(10, np.float32))
    assert (found.top1, found.balanced) == (90.0, 75.0)  # a class without images has no part in it
    assert found.top1_error == pytest.approx(100 * (10 / 12 * 2 / 12 / 10) ** 0.5)
    assert found.balanced_error > found.top1_error
    assert 0 < right(9, of=9).top1_error < 12


def test_predictions_are_those_of_the_logits():
    logits = torch.tensor([[0.0, 3.0], [200.0, 100.0], [1.0, 1.0]])
    found = predictions(lambda images: logits[images[:, 0]], [(torch.tensor([[0], [1]]), torch.tensor([1, 1])),
                                                              (torch.tensor([[2]]), torch.tensor([0]))])  # fmt: skip
    assert found.labels.tolist() == [1, 1, 0]
    assert found.predicted.tolist() == [1, 0, 0]
    np.testing.assert_allclose(found.confidence, [1 / (1 + np.exp(-3.0)), 1.0, 0.5], rtol=1e-6)


def noted(scores: list[int], of: int, **settings) -> Best:
    best = Best(TrainConfig(epochs=9, **settings))
    for epoch, count in enumerate(scores, 1):
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(model.weight, epoch)
        best.note(epoch, right(count, of=of), model)
    return best


@pytest.mark.parametrize(
    ("scores", "of", "kept"),
    [
        ([5, 8, 9], 10, False),  # the last is the best
        ([5, 9, 8], 10, False),  # one image of ten: chance
        ([500, 900, 800], 1000, True),  # the same share, of enough images
        ([10, 10, 10], 10, False),
    ],
)
def test_the_best_epoch_is_kept_where_the_images_tell_it_from_the_last(scores, of, kept):
    best = noted(scores, of)
    assert best.is_kept() == kept
    if kept:
        assert (best.epoch, best.weights["weight"].item()) == (2, 2.0)
        assert "epoch 2 is kept, 90.0 %" in best.described()


def test_early_stop_counts_epochs_without_a_better_one():
    assert not noted([5, 6, 6], 10, early_stop=2).exhausted()
    best = noted([5, 6, 6, 6], 10, early_stop=2)
    assert best.exhausted() and best.is_kept() and best.epoch == 2
    assert "ended after epoch 4, 2 without a better one; epoch 2 is kept" in best.described()
    assert not noted([5, 6, 6, 7], 10, early_stop=2).exhausted()


def test_a_balanced_training_is_judged_by_balanced_accuracy():
    best = Best(TrainConfig(epochs=2, balanced=True))
    for predicted in ([0, 0, 0, 1], [0, 0, 0, 0]):
        labels = np.array([0, 0, 0, 1])
        found = Predictions(labels=labels, predicted=np.array(predicted), confidence=np.ones(4, np.float32))
        best.note(best.last_epoch + 1, found, torch.nn.Linear(1, 1))
    assert (best.epoch, best.accuracy, best.last_accuracy) == (1, 100.0, 50.0)


def falling(seen: list):
    """An evaluation that finds every epoch worse than the one before; it keeps their weights."""

    def evaluate(model: torch.nn.Module) -> Predictions:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return right(900 - 100 * len(seen), of=1000)

    return evaluate


@pytest.mark.parametrize("stop_at", [5, 7])  # in the second epoch, after the best one; and in the last
def test_the_best_epoch_survives_an_interruption(tmp_path, stop_at):
    seen, said = [], []
    model, _ = run(tmp_path / "whole", evaluate=falling(seen), said=said)
    assert said == ["  x: epoch 1 is kept, 80.0 % of the validation images right; "
                    "after epoch 2 70.0 % were, by more than chance fewer"]  # fmt: skip
    assert all(torch.equal(value, seen[0][name]) for name, value in model.state_dict().items())

    def interrupt(stage: str, done: int, *_) -> None:
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    again = []
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", evaluate=falling(again), progress=interrupt)
    resumed, _ = run(tmp_path / "stopped", evaluate=falling(again))
    assert len(again) == 2
    assert all(torch.equal(value, seen[0][name]) for name, value in resumed.state_dict().items())
    once_more, _ = run(tmp_path / "stopped")
    finished, _ = run(tmp_path / "stopped", evaluate=falling(again))
    assert len(again) == 2
    assert all(torch.equal(a, b) for a, b in zip(finished.parameters(), resumed.parameters(), strict=True))
    assert not torch.equal(once_more.head.weight, finished.head.weight)  # the last epoch is in the checkpoint, too


def test_pruning_keeps_its_last_epoch(tmp_path):
    seen = []
    model, _ = run(tmp_path, pruner=Marker(3), evaluate=falling(seen))
    assert all(torch.equal(value, seen[-1][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("epochs", "every", "looked_at"), [(5, 2, [2, 4, 5]), (2, 1, [1, 2]), (2, 9, [2])])
def test_the_validation_split_is_looked_at_now_and_then_and_in_the_end(tmp_path, epochs, every, looked_at):
    seen = []
    model, log = run(tmp_path, evaluate=falling(seen), epochs=epochs, evaluate_every=every)
    assert [line["epoch"] for line in log if "top1" in line] == looked_at
    kept = seen[0]  # the first of them is the best
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_early_stop_ends_a_training_for_good(tmp_path):
    said, seen = [], []
    settings = {"epochs": 9, "early_stop": 2, "said": said}
    _, log = run(tmp_path, evaluate=falling(seen), **settings)
    assert log[-1]["step"] == 3 * 4
    assert "ended after epoch 3, 2 without a better one; epoch 1 is kept" in said[0]
    run(tmp_path, evaluate=falling(seen), **settings)
    assert len(seen) == 3  # nothing was trained, or evaluated, again
    assert said[1] == said[0]


@pytest.mark.parametrize(("settings", "message"), [({"early_stop": 0}, "early_stop=0"), ({"epochs": 0}, "epochs=0"),
                                                     ({"evaluate_every": 0}, "evaluate_every=0")])  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"epochs": 1, **settings})


def test_early_stop_is_not_for_pruning_and_is_set_for_the_other_stages():
    config = presets.digits(0.5)
    nothing = {"epochs": {"dense": None, "prune": None, "finetune": None}, "lr": None, "batch_size": None}
    made = configure(config, **nothing, early_stop=3, balanced=True)
    assert [stage.early_stop for stage in (made.dense, made.prune, made.finetune)] == [3, None, 3]
    assert all(stage.balanced for stage in (made.dense, made.prune, made.finetune))
    with pytest.raises(ValueError, match="early_stop is not for pruning"):
        replace(config, prune=replace(config.prune, early_stop=1))
    with pytest.raises(ValueError, match="EARLY_STOP=0 must be a number of epochs"):
        configure(config, **nothing, early_stop=0)


def test_a_balanced_training_resumes_bit_for_bit(tmp_path):
    def interrupt(stage: str, done: int, *_) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    whole, expected = run(tmp_path / "whole", balanced=True)
    _, plain = run(tmp_path / "plain")
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", balanced=True, progress=interrupt)
    resumed, lines = run(tmp_path / "stopped", balanced=True)
    assert lines == expected != plain
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_without_a_compiler_compile_is_refused_in_a_sentence(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(EnvironmentLacks, match=r"COMPILE=1 needs a C\+\+ compiler.*no working.*or leave COMPILE out"):
        run(tmp_path, compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("pruned", [False, True])
def test_a_compiled_model_trains_as_an_eager_one(tmp_path, pruned):
    """Names of the weights are the same, so that either goes on from the other's checkpoint but for its settings."""
    found = []
    for compile in (False, True):
        model = tiny_vit()
        pruner = Pruner(model, PruneConfig(sparsity=0.5), steps_per_epoch=4, epochs=2) if pruned else None
        found.append(run(tmp_path / str(compile), compile=compile, model=model, pruner=pruner, mixup=0.0))
    (eager, log), (compiled, log_compiled) = found
    assert eager.state_dict().keys() == compiled.state_dict().keys()
    assert checkpoints.load(tmp_path / "True" / "x.pt")["model"].keys() == eager.state_dict().keys()
    for one, other in zip(log[:3], log_compiled[:3], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        for block, same in zip(one.get("blocks", []), other.get("blocks", []), strict=True):
            for key in ("bpi_class", "bpi_patch", "keep_ratio"):
                assert block[key] == pytest.approx(same[key], rel=0.02, abs=1e-4)
    assert ("blocks" in log[2]) == pruned
    changed = [not torch.equal(a, b) for a, b in zip(tiny_vit().parameters(), compiled.parameters(), strict=True)]
    assert all(changed) or pruned


SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from accelerate import PartialState
from test_train import falling, run
folder = Path({folder!r})
model, log = run(folder, count=32, evaluate=falling([]))
rank = PartialState().process_index
(folder / f"{{rank}}.json").write_text(json.dumps([len(log), sum(p.double().sum().item() for p in model.parameters())]))
"""


@pytest.mark.slow
def test_two_processes_share_an_epoch_and_end_with_the_same_model(tmp_path):
    """The best epoch's, although one of them alone evaluates."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, check=True, timeout=300, cwd=ROOT, env=environment)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one[0] == STEPS  # 32 images, 8 a step, are 4 steps an epoch on 2 processes too, logged once
    assert one[1] == other[1]

"""How long a run trains: epochs by images and machine, what is told before, the estimate, the rate by the batch."""

import math
from dataclasses import replace

import pytest
from conftest import context_of, make_image_folder, tiny_config

from pipeline import plan, presets, stages
from pipeline.config import TrainConfig, from_dict, to_dict
from pipeline.console import about
from pipeline.model_names import DINO_SMALL, MICRO
from pipeline.options import configure
from pipeline.runs import Run


def lengths(config, images: int, *, gpu: bool) -> list[int]:
    return [plan.epochs_of(stage, images, gpu=gpu) for stage in (config.dense, config.prune, config.finetune)]


def test_a_folder_has_the_recipe_that_was_measured_and_named_sets_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for dataset in ("folder:photos", "photos"):
        config = presets.of(dataset, None, 0.75)
        assert (config.model, config.dense.lr, config.dense.mixup) == ("deit_tiny_patch16_224", 1e-4, 0.0)
        assert lengths(config, 1000, gpu=True) == [40, 24, 16]
        assert lengths(config, 1000, gpu=False) == [20, 12, 8]
        assert lengths(config, 4000, gpu=True) == [20, 12, 8]
        assert lengths(config, 250, gpu=True) == [80, 48, 32]
        assert lengths(config, 10**7, gpu=False) == [5, 3, 2]
        assert lengths(config, 1, gpu=True) == [160, 96, 64]
    small = presets.of("photos", MICRO, 0.75)
    assert lengths(small, 1500, gpu=True) == lengths(small, 1500, gpu=False) == [12, 8, 4]
    for dataset in ("inat19", "ifood", "imagenet", "cifar10"):
        config = presets.of(dataset, None, 0.75)
        assert lengths(config, 10**6, gpu=False) == [100, 50, 300]
        assert config.dense.lr_at(64) == 5e-4 * 64 / 512
    assert lengths(presets.of("cifar10", DINO_SMALL, 0.75), 50_000, gpu=True) == [40, 24, 16]
    assert lengths(presets.of("digits", None, 0.75), 7, gpu=True) == [6, 4, 2]


def test_what_the_user_gives_is_taken_as_it_is():
    preset = presets.of("folder:photos", None, 0.75)
    given = configure(preset, epochs={"dense": None, "prune": 7, "finetune": None}, lr=3e-4, batch_size=16)
    assert lengths(given, 4000, gpu=True) == [20, 7, 8]
    assert given.dense.lr_at(16) == 3e-4
    for method, stage in (("savit", "finetune"), ("wdpruning", "prune")):
        assert plan.epochs_of(getattr(presets.with_method(preset, method), stage), 4000, gpu=True) == 20
        assert plan.epochs_of(getattr(presets.with_method(given, method), stage), 4000, gpu=True) == 7 + 16


def test_the_rate_follows_the_batch():
    config = TrainConfig(epochs=1, lr=1e-4, lr_batch=64)
    assert [config.lr_at(images) for images in (16, 64, 256)] == [0.25e-4, 1e-4, 2e-4]
    assert replace(config, lr_batch=None).lr_at(16) == 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"epochs_for": 0}, "epochs_for=0"), ({"lr_batch": 0}, "lr_batch=0"), ({"cpu_share": 0.0}, "cpu_share=0.0")],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(epochs=1, **settings)


def test_a_config_of_before_is_read():
    values = to_dict(presets.digits(0.5))
    for stage in ("dense", "prune", "finetune"):
        for key in ("epochs_for", "cpu_share", "lr_batch"):
            del values[stage][key]
    assert from_dict(values).dense.lr_at(1) == 1e-3


def scaled(image_folder, **changes):
    """A run of 48 images whose epochs are meant for 12: half of them are left."""
    config = tiny_config(image_folder, **changes)
    parts = {stage: replace(getattr(config, stage), epochs=4, epochs_for=12) for stage in ("dense", "prune")}
    return replace(config, **parts)


def test_a_run_goes_on_by_the_plan_that_it_began_with(image_folder, tmp_path, monkeypatch):
    context, said = context_of(tmp_path / "run", scaled(image_folder))
    stages.run_training(context, "prepare")
    assert plan.read(context.run) == plan.Plan(images=48, gpu=False, epochs={"dense": 2, "prune": 2})
    stages.run_training(context, "dense")
    assert "  to train: dense 2 epochs, 6 steps; prune 2 epochs, 6 steps; finetune 2 epochs, 6 steps; " in said[2]
    assert said[2].endswith("48 images an epoch, 16 a step")
    assert [line["epoch"] for line in context.run.log.read() if "top1" in line] == [1, 2]

    monkeypatch.setattr(plan, "SCALES", (8.0, 8.0))  # as if another program, or another machine, went on
    again, said = context_of(tmp_path / "run")
    stages.run_training(again, "dense")
    assert said == ["dense: finished before"]
    (tmp_path / "run" / plan.FILE).write_text('{"images": 48, "gpu": false, "epochs": []}')
    with pytest.raises(ValueError, match=r"plan\.json: epochs: must be an object.*delete it to have it made anew"):
        stages.run_training(again, "dense")


def test_other_images_make_another_plan(tmp_path):
    images = make_image_folder(tmp_path / "images", train=4, val=2)
    config = scaled(images)
    run = Run.create(tmp_path / "run", config)
    digests = [plan.fix(run, count, gpu=True) for count in (12, 12, 3)]
    assert digests[0] == digests[1] != digests[2]
    assert plan.read(run).epochs == {"dense": 8, "prune": 8}
    assert plan.fix(Run.create(tmp_path / "given", tiny_config(images)), 12, gpu=True) == {}
    assert not (tmp_path / "given" / plan.FILE).exists()


def test_fewer_epochs_without_a_gpu_are_told(image_folder, tmp_path):
    config = scaled(image_folder)
    run = Run.create(tmp_path / "run", replace(config, dense=replace(config.dense, cpu_share=0.5)))
    plan.fix(run, 12, gpu=False)
    assert plan.told(run, "dense", 12)[1:] == [
        "  no GPU: 0.5 times the epochs that it would be with one (EPOCHS= decides otherwise)"
    ]
    assert [line.split(": ")[1].split(" ")[0] for line in plan.told(run, "prune", 12)[:1]] == ["prune"]


def ticks(monkeypatch, clock: plan.Clock, steps: int, total: int, seconds: float, first: int = 1) -> list[dict]:
    now, seen = 0.0, []
    monkeypatch.setattr(plan.time, "monotonic", lambda: now)
    clock._progress = lambda stage, done, total, values: seen.append(values)
    for done in range(first, first + steps):
        now += 100 if done == first else seconds  # the first one is always slow
        clock("dense", done, total, {"loss": 1.0})
    return seen


def test_an_estimate_comes_from_the_first_steps(monkeypatch):
    said: list[str] = []
    clock = plan.Clock(lambda *_: None, said.append, epoch=100, evaluation=0.1, ahead=2.0)
    seen = ticks(monkeypatch, clock, 40, 640, 1.0)
    assert said == ["  dense: about 10 minutes; with the stages after it about 35 minutes"]
    assert ["left_s" in values for values in seen] == [False] * 22 + [True] * 18
    assert seen[-1]["left_s"] == pytest.approx(600 * 1.1)
    assert all(values["loss"] == 1.0 for values in seen)


def test_slow_steps_are_estimated_sooner_and_a_resumed_stage_says_what_is_left(monkeypatch):
    said: list[str] = []
    clock = plan.Clock(lambda *_: None, said.append, epoch=10, evaluation=0.0, ahead=0.0)
    ticks(monkeypatch, clock, 8, 64, 60.0, first=33)
    assert said == ["  dense: about 25 minutes"]
    short = plan.Clock(lambda *_: None, said.append, epoch=2, evaluation=0.0, ahead=1.0)
    ticks(monkeypatch, short, 8, 8, 0.1)
    assert len(said) == 1  # over before there is anything to tell


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5, "less than a minute"),
        (61, "about 1 minute"),
        (8 * 60 + 40, "about 9 minutes"),
        (12 * 60, "about 10 minutes"),
        (33 * 60, "about 35 minutes"),
        (100 * 60, "about 1.5 hours"),
        (12.4 * 3600, "about 12 hours"),
    ],
)
def test_an_estimate_has_no_more_digits_than_it_deserves(seconds, words):
    assert about(seconds) == words


def test_work_is_counted_in_epochs_of_the_dense_model(image_folder, tmp_path):
    run = Run.create(tmp_path / "run", tiny_config(image_folder))  # 1, 3 and 2 epochs, half of the model
    assert [plan.work(run, stage) for stage in ("dense", "prune", "finetune")] == [1.0, 3 * plan.PROBING, 1.0]
    assert math.isclose(plan.work(Run(run.folder, replace(run.config, teacher="dense")), "finetune"), 2 * (0.5 + 1 / 3))

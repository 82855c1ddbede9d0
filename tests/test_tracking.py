"""`TRACKER=`: what a tracker is told, through accelerate."""

from typing import ClassVar

import pytest
from accelerate import tracking as accelerates

from pipeline.config import TrainConfig
from pipeline.errors import EnvironmentLacks
from pipeline.train import tracking


class Noted(accelerates.GeneralTracker):
    """A tracker that notes what it is told."""

    name = "noted"
    requires_logging_directory = True
    told: ClassVar[list] = []

    def __init__(self, run_name, logging_dir, **_):
        super().__init__()
        self.told.append((run_name, str(logging_dir)))

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.told.append(values)

    def log(self, values, step=None, **_):
        self.told.append((step, values))

    def finish(self):
        self.told.append("finished")


def test_a_tracker_is_told_every_step_and_the_console_too(tmp_path, monkeypatch):
    monkeypatch.setitem(accelerates.LOGGER_TYPE_TO_CLASS, "noted", Noted)
    monkeypatch.setattr(Noted, "told", [])
    shown = []
    config = TrainConfig(epochs=1, lr=2e-4)
    with tracking.tracked("noted", tmp_path / "mine", "dense", config, lambda *told: shown.append(told)) as progress:
        progress("dense", 1, 2, {"loss": 0.5, "lr": 1e-4})
        progress("dense", 2, 2, {"loss": 0.25, "lr": 1e-4, "top1": 50.0})
    begun, settings, first, second, end = Noted.told
    assert begun == ("dap", str(tmp_path / "mine" / "tracker")) and end == "finished"
    assert settings["lr"] == 2e-4 and settings["schedule"] == "cosine" and "in_memory" not in settings
    assert first == (1, {"loss": 0.5, "lr": 1e-4}) and second == (2, {"loss": 0.25, "lr": 1e-4, "top1": 50.0})
    assert [done for _, done, _, _ in shown] == [1, 2]


def test_without_a_tracker_nothing_is_told(tmp_path):
    def progress(*_):
        pass

    with tracking.tracked(None, tmp_path, "dense", TrainConfig(epochs=1), progress) as same:
        assert same is progress


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    tracking.check(None)
    with pytest.raises(ValueError, match=r"TRACKER=aim is unknown. Known: tensorboard, wandb, trackio"):
        tracking.check("aim")
    with pytest.raises(EnvironmentLacks, match="TRACKER=wandb is not installed"):
        tracking.check("wandb")

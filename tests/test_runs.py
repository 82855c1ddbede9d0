"""The run folder: configuration, finished stages, files, log, lock."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from conftest import tiny_config

from pipeline import files
from pipeline.config import from_dict, to_dict
from pipeline.files import Log, atomic, locked, sweep, write_json
from pipeline.runs import Run, latest
from pipeline.train import checkpoints
from targets.strict import read_json


@pytest.fixture
def config(image_folder):
    return tiny_config(image_folder)


def test_config_survives_json(config):
    for one in (config, dataclasses.replace(config, dense=None)):
        assert from_dict(json.loads(json.dumps(to_dict(one)))) == one


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c | {"colour": 1}, "unknown key 'colour'"),
        (lambda c: c | {"prune": c["prune"] | {"speed": 1}}, r"config\.json: prune: has the unknown key 'speed'"),
        (lambda c: {k: v for k, v in c.items() if k != "dataset"}, "dataset"),
        (lambda c: c | {"prune": 3}, "must be an object"),
        (lambda c: c | {"method": "magic"}, "Known: dense, dap, uniform"),
    ],
)
def test_a_damaged_config_is_refused(config, tmp_path, spoil, message):
    Run.create(tmp_path / "r", config)
    write_json(tmp_path / "r" / "config.json", spoil(to_dict(config)))
    with pytest.raises(ValueError, match=message):
        Run.open(tmp_path / "r")


def test_another_configuration_is_refused_and_told_apart(config, tmp_path):
    run = Run.create(tmp_path / "r", config)
    Run.create(tmp_path / "r", config)
    run.finish("prepare", 1, [], {}, 0.1)
    with pytest.raises(ValueError, match=r"another configuration \(seed: 0, 7; there, here\)"):
        Run.create(tmp_path / "r", dataclasses.replace(config, seed=7))
    assert Run.open(tmp_path / "r").config == config


def test_a_folder_in_which_nothing_has_finished_may_be_taken(config, tmp_path):
    """A mistyped option must not block the name."""
    Run.create(tmp_path / "r", config)
    Run.create(tmp_path / "r", dataclasses.replace(config, seed=7))
    assert Run.open(tmp_path / "r").config.seed == 7


def test_a_foreign_folder_is_left_alone(config, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds no run"):
        Run.create(tmp_path / "r", config)


def test_a_stage_is_finished_only_with_the_same_inputs_and_its_files(config, tmp_path):
    run = Run.create(tmp_path / "r", config)
    result = run.folder / "model" / "w.bin"
    result.parent.mkdir()
    result.write_bytes(b"weights")
    assert not run.finished("prune", {"data": "a"})
    assert not run.changed("prune", {"data": "a"})
    run.begin("prune", {"data": "a"})
    assert not run.finished("prune", {"data": "a"})  # begun is not finished
    run.finish("prune", {"data": "a"}, [result], {"top1": 1.0}, 2.0)
    assert run.finished("prune", {"data": "a"})
    assert not run.finished("prune", {"data": "b"})
    assert run.results("prune") == {"top1": 1.0}
    result.write_bytes(b"weightz")
    with pytest.raises(ValueError, match="is not what stage prune wrote"):
        run.finished("prune", {"data": "a"})
    result.unlink()
    assert not run.finished("prune", {"data": "a"})
    assert not run.changed("prune", {"data": "a"})
    assert run.changed("prune", {"data": "b"})


def test_a_stages_seconds_are_those_of_all_processes_that_worked_on_it(config, tmp_path):
    run = Run.create(tmp_path / "r", config)
    for seconds in (3.0, 4.0):
        run.begin("prune", 1)
        run.stopped("prune", seconds)
    run.begin("prune", 1)
    run.finish("prune", 1, [], {}, 0.5)
    assert run.records()["prune"].seconds == 7.5
    run.begin("prune", 1)  # anew: what an earlier one took is another's
    run.stopped("prune", 2.0)
    run.begin("prune", 2)
    run.finish("prune", 2, [], {}, 0.25)
    assert run.records()["prune"].seconds == 0.25
    assert "spent" not in (run.folder / "stages.json").read_text()
    (run.folder / "stages.json").unlink()
    run.stopped("prune", 1.0)  # deleted meanwhile: what ended it is told, not this
    assert not run.records()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "stages.json: must be an object"),
        ('{"prune": []}', "stages.json: prune: must be an object"),
        ('{"prune": {"files": {}}}', "stages.json: prune: lacks inputs"),
        ('{"prune": {"inputs": "a", "files": {"w": 1}}}', "stages.json: prune.files.w: must be text"),
        ('{"prune": {"inputs": "a", "files": {}, "seconds": "1"}}', "prune.seconds: must be a finite number"),
        ('{"prune": {"inputs": "a", "files": {}, "results": [], "seconds": 1}}', "prune.results: must be an object"),
        ('{"prune": {"inputs": "a", "files": {}, "minutes": 1}}', "prune: has the unknown key 'minutes'"),
        ("[" * 99_999, "stages.json is damaged"),
        ("\xff", "stages.json is damaged"),
    ],
)
def test_damaged_records_are_refused(config, tmp_path, content, message):
    run = Run.create(tmp_path / "r", config)
    (run.folder / "stages.json").write_bytes(content.encode("latin-1"))
    for read in (run.records, lambda: run.results("prune"), lambda: run.finished("prune", 1), lambda: latest(tmp_path)):
        with pytest.raises(ValueError, match=message):
            read()


def test_records_keep_their_form_on_disk(config, tmp_path):
    run = Run.create(tmp_path / "r", config)
    run.finish("prepare", 1, [], {"params": 3}, 0.5)
    run.begin("prune", 1)
    assert json.loads((run.folder / "stages.json").read_text()) == {
        "prepare": {"inputs": run.records()["prepare"].inputs, "files": {}, "results": {"params": 3}, "seconds": 0.5},
        "prune": {"inputs": run.records()["prune"].inputs, "files": {}},
    }


def test_latest_is_the_run_that_worked_last(config, tmp_path):
    with pytest.raises(ValueError, match="no run"):
        latest(tmp_path)
    for name in ("one", "two", "one"):
        Run.create(tmp_path / name, config).finish("prepare", 1, [], {}, 0.1)
        time.sleep(0.02)
    Run.create(tmp_path / "failed", config).begin("prepare", 1)
    assert latest(tmp_path).name == "one"


def test_latest_is_the_run_that_worked_last_though_the_clock_was_set_back(config, tmp_path):
    Run.create(tmp_path / "one", config).finish("prepare", 1, [], {}, 0.1)
    ahead = time.time() + 3600  # by the clock as it was
    os.utime(tmp_path / "one" / "stages.json", (ahead, ahead))
    for name in ("two", "one", "two"):
        Run.create(tmp_path / name, config).finish("prepare", 1, [], {}, 0.1)
        assert latest(tmp_path).name == name


def test_a_folder_in_which_the_first_write_was_killed_may_be_taken(config, tmp_path):
    (tmp_path / "r").mkdir()
    for left in (".lock", ".config.json.77.tmp"):
        (tmp_path / "r" / left).touch()
    Run.create(tmp_path / "r", config)
    assert Run.open(tmp_path / "r").config == config


def hold(folder, held):
    with locked(folder):
        held.set()
        time.sleep(60)


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path):
    spawn = multiprocessing.get_context("fork")
    held = spawn.Event()
    other = spawn.Process(target=hold, args=(tmp_path, held))
    other.start()
    assert held.wait(10)
    with pytest.raises(ValueError, match="in use by another process"), locked(tmp_path):
        pass
    other.kill()
    other.join()
    with locked(tmp_path):
        pass


def test_a_worker_that_outlives_its_parent_holds_no_lock(tmp_path):
    """As those of a loader do for some seconds when the parent is killed."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        with locked(tmp_path):
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
            os.write(write, str(worker).encode())
            time.sleep(60)
    worker = int(os.read(read, 20))
    try:
        with pytest.raises(ValueError, match="in use by another process"), locked(tmp_path):
            pass
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.kill(worker, 0)  # it lives
        with locked(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_what_killed_writes_have_left_is_swept(tmp_path):
    for left in ("model/.weights.safetensors.77.tmp", "artifacts/host/.pruned.x1/pruned.tflite", ".log.jsonl.3.tmp"):
        (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / left).touch()
    for kept in ("model/weights.safetensors", "artifacts/host/pruned.tflite", ".lock"):
        (tmp_path / kept).touch()
    sweep(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"model/weights.safetensors", "artifacts/host/pruned.tflite", ".lock"}


def test_checkpoints_know_when_they_are_damaged_and_keep_the_one_before(tmp_path):
    path, said = tmp_path / "c.pt", []
    for step in (1, 2):
        checkpoints.save(path, {"step": step, "a": torch.arange(1000.0)})
    assert checkpoints.load_latest(path, said.append)["step"] == 2
    assert said == []
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"c\.pt is damaged"):
            checkpoints.load(path)
        assert checkpoints.load_latest(path, said.append)["step"] == 1
    assert "is damaged: going on from the one before it" in said[-1]
    path.unlink()  # as a crash between the two renames leaves it
    assert checkpoints.load_latest(path, said.append)["step"] == 1
    assert "is missing: going on from the one before it" in said[-1]
    assert checkpoints.set_aside(path) == tmp_path / "aside"
    assert checkpoints.load_latest(path, said.append) is None
    assert checkpoints.load(tmp_path / "aside" / "c.pt.before")["step"] == 1
    assert checkpoints.set_aside(path) is None


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    torch.save({"step": 7}, tmp_path / "c.pt")
    assert checkpoints.load(tmp_path / "c.pt") == {"step": 7}


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.json"
    write_json(path, {"a": 1})

    def fail_half_way():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path, dict[str, int]) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json", dict[str, int])
    checkpoints.save(tmp_path / "c.pt", {"a": torch.ones(1000)})
    whole = (tmp_path / "c.pt").read_bytes()
    for damage in (whole[:600], b"", b"\x80\x04no checkpoint", whole[:-100]):
        (tmp_path / "c.pt").write_bytes(damage)
        with pytest.raises(ValueError, match=r"c\.pt is damaged\. Delete it"):
            checkpoints.load(tmp_path / "c.pt")
    assert checkpoints.load(tmp_path / "none.pt") is None


def test_the_log_forgets_what_will_be_computed_again(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for stage, step in (("dense", 9), ("prune", 1), ("prune", 2), ("prune", 3)):
        log.write({"stage": stage, "step": step})
    with log.path.open("a") as file:
        file.write("[" * 99_999 + '\n{"loss": NaN}\n3\n')
        file.write('{"stage": "prune", "st')  # torn by a crash
    log.rewind("prune", 2)
    log.write({"stage": "prune", "step": 3, "again": True})
    assert [(line["stage"], line["step"]) for line in log.read()] == [
        ("dense", 9), ("prune", 1), ("prune", 2), ("prune", 3)]  # fmt: skip
    assert files.digest(log.path)

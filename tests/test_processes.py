"""Several processes: the same numbers as one, decisions that all take, and what happens when one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from dap_models import tiny_vit
from test_pipeline import wait_for_step
from test_train import ROOT, run

from dap import PruneConfig, Pruner
from pipeline import files, models
from pipeline.errors import EnvironmentLacks, Interrupted
from pipeline.runs import Run
from pipeline.train import checkpoints, loop, runtime
from pipeline.train.evaluate import Predictions

GLOO = {**os.environ, "OMP_NUM_THREADS": "1"}
SIZE, COUNT = 24, 96  # of a batch, shared out to 1, 2 or 3 processes; 4 steps an epoch


def whole(folder: Path, *, wrap=None, seed: int = 0) -> tuple[torch.nn.Module, list[dict], list[str]]:
    """A training with everything that a step can have; the model, its log, and the masks after every update."""
    model = tiny_vit(seed=seed)
    models.set_drop_path(model, 0.3)
    pruner = Pruner(model, PruneConfig(sparsity=0.5), steps_per_epoch=4, epochs=2, images_per_step=SIZE)
    masks = []
    step = pruner.step

    def noting(targets, **options):
        if update := step(targets, **options):
            masks.append(loop.masks_digest(model))
        return update

    pruner.step = noting  # type: ignore[method-assign]
    teacher = tiny_vit(seed=5)
    settings = {"batch_size": SIZE, "cutmix": 1.0, "lr": 1e-3}
    _, log = run(
        folder, model=model, pruner=pruner, teacher=teacher, count=COUNT, evaluate=accuracy, wrap=wrap, **settings
    )
    return model, log, masks


def accuracy(model: torch.nn.Module) -> Predictions:
    """Of nothing in particular: each process has as many images right as the norm of the weights says."""
    right = int(sum(p.double().square().sum().item() for p in model.parameters())) % 100
    predicted = (np.arange(100) >= right).astype(np.int64)
    return Predictions(labels=np.zeros(100, np.int64), predicted=predicted, confidence=np.ones(100, np.float32))


class Signalled:
    """Batches during which a process gets a signal."""

    def __init__(self, batches, at: int, number: int) -> None:
        self.batches, self.at, self.rows, self.batch_size = batches, at, batches.rows, batches.batch_size
        self.number = number

    def __len__(self) -> int:
        return len(self.batches)

    def starting_at(self, step: int):
        for number, batch in enumerate(self.batches.starting_at(step), step):
            if number == self.at:
                os.kill(os.getpid(), self.number)
            yield batch


def in_each(folder: Path) -> None:
    """What each of several processes does for the test below."""
    rank = runtime.share().process
    model, _, masks = whole(folder / "whole")
    checksum = loop.hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    stopped = ""
    try:
        whole(folder / "stopped", wrap=(lambda batches: Signalled(batches, 2, signal.SIGTERM)) if rank == 1 else None)
    except Interrupted as error:
        stopped = str(error)
    for number in (signal.SIGINT, signal.SIGTERM):  # a launched process that is to end does not listen any more
        signal.signal(number, signal.SIG_DFL)
    again, _, _ = whole(folder / "stopped")
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    runtime.on_main(lambda: None)  # the first one has written the last line
    log, resumed = (files.Log(folder / name / "log.jsonl").read() for name in ("whole", "stopped"))
    found = {"log": log, "masks": masks, "checksum": checksum, "stopped": stopped, "resumed": resumed, "same": same}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    runtime.on_main(lambda: None)
    whole(folder / "died", wrap=(lambda batches: Signalled(batches, 2, signal.SIGKILL)) if rank == 1 else None)


def torchrun(processes: int, *command: str, **options) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    options = {"cwd": ROOT, "env": GLOO, "timeout": 300, "text": True, **options}
    return subprocess.run([*launcher, *command], **options)


def close(one: list[dict], other: list[dict]) -> None:
    """Two logs of the same training, but for rounding."""
    assert len(one) == len(other)
    for line, same in zip(one, other, strict=True):
        assert line.keys() == same.keys()
        assert line["loss"] == pytest.approx(same["loss"], rel=1e-5)
        assert (line["step"], line["lr"]) == (same["step"], same["lr"])
        for block, twin in zip(line.get("blocks", []), same.get("blocks", []), strict=True):
            assert (block["keep_ratio"], block["width"]) == (twin["keep_ratio"], twin["width"])
            assert block["bpi_patch"] == pytest.approx(twin["bpi_patch"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_train_as_one_does(tmp_path, processes):
    """Losses, benefits, keep ratios and masks, with a teacher, mixing and drop path; and stop together when one of them
    is told to, and go on, in as many processes bit for bit, in one from the same image. If one dies, a checkpoint is
    left.
    """
    script = tmp_path / "script.py"
    folders = [str(ROOT), str(ROOT / "tests")]
    script.write_text(
        f"import sys\nsys.path[:0] = {folders!r}\nimport torch, test_processes\nfrom pathlib import Path\n"
        f"torch.set_num_threads(1)\ntest_processes.in_each(Path({str(tmp_path)!r}))\n"
    )
    assert torchrun(processes, str(script), capture_output=True).returncode == 1
    assert checkpoints.load(tmp_path / "died" / "x.pt")["step"] == 2
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    _, log, masks = whole(tmp_path / "one")
    assert len(masks) >= 2 and sum("blocks" in line for line in log) == len(masks)
    for rank, mine in enumerate(found):
        assert mine["masks"] == masks
        assert mine["checksum"] == found[0]["checksum"]
        assert mine["stopped"].startswith("x stopped at step ") and mine["same"], rank
        close(mine["log"], log)
        assert mine["resumed"] == found[0]["log"]
    os.remove(tmp_path / "stopped" / "x.pt")  # the one before is of the middle
    os.rename(tmp_path / "stopped" / "x.pt.before", tmp_path / "stopped" / "x.pt")
    assert checkpoints.load(tmp_path / "stopped" / "x.pt")["step"] < len(log)
    _, resumed, _ = whole(tmp_path / "stopped")
    close(resumed, log)


COMMAND = ["-m", "pipeline", "prune", "--sparsity", "0.5", "--epochs", "2", "--finetune-epochs", "1", "--batch-size",
           "16", "--run", "mine"]  # fmt: skip


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_and_the_same_command_goes_on(image_folder, tmp_path):
    """Then with another number of processes, up to the report; its numbers are those of one process."""
    options = ["--dataset", f"folder:{image_folder}", "--model", "deit_micro_patch8_64", "--dense-epochs", "4"]
    environment = {**GLOO, "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    several = subprocess.Popen([sys.executable, *COMMAND, *options, "--nproc", "2", "--micro-batch", "4"],
                               cwd=tmp_path, env=environment, **streams)  # fmt: skip
    folder = tmp_path / "runs" / "mine"
    wait_for_step(folder, "dense", 2)
    os.kill(_process(several.pid, rank=1), signal.SIGKILL)
    said, _ = several.communicate(timeout=120)
    assert several.returncode == 3, said
    assert "process 1 of 2 was ended by SIGKILL" in said and "repeat the command to go on" in said.lower()
    assert said.count("to train:") == 1 and "Traceback" not in said
    again = torchrun(3, *COMMAND[:2], "--", *COMMAND[2:], *options, cwd=tmp_path, env=environment, capture_output=True)
    assert again.returncode != 0
    assert again.stderr.count("error: 16 images a step cannot be shared out equally to 3 processes") == 1, again.stderr
    done = subprocess.run(
        [sys.executable, *COMMAND, *options, "--nproc", "2"], cwd=tmp_path, env=environment, **streams
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("report: ") == 1
    results = {stage: record.results for stage, record in Run.open(folder).records().items()}

    alone = tmp_path / "alone"
    alone.mkdir()
    subprocess.run([sys.executable, *COMMAND, *options], cwd=alone, env=environment, check=True, **streams)
    expected = Run.open(alone / "runs" / "mine")
    assert [line["loss"] for line in files.Log(folder / "log.jsonl").read()] == pytest.approx(
        [line["loss"] for line in expected.log.read()], rel=1e-3
    )
    for block, twin in zip(results["prune"]["blocks"], expected.results("prune")["blocks"], strict=True):
        assert (block["keep_ratio"], block["width"]) == (twin["keep_ratio"], twin["width"])
    assert results["finetune"]["top1"] == expected.results("finetune")["top1"]


def _process(launcher: int, rank: int) -> int:
    """The process of a rank that a launcher has started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_a_process_that_is_left_alone_says_so(tmp_path):
    """Long before six hours are over, and any of them: each may be the only one that knows."""
    said = []
    brief = "from datetime import timedelta; from pipeline.train import runtime; runtime.MEETING = timedelta(seconds=2)"
    code = f"{brief}; from pipeline.__main__ import main; main()"
    for rank in ("0", "1"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        environment = {**GLOO, **place, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
        said.append(
            subprocess.Popen([sys.executable, "-c", code, "prune", "--dataset", "digits"], env=environment,
                             cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        )  # fmt: skip
    for process, speaker in zip(said, ("", "process 1: "), strict=True):
        _, text = process.communicate(timeout=120)
        assert process.returncode == 3, text
        assert f"error: {speaker}the other processes of the training are not reached (" in text
        assert "docs/scale.md says what these need" in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


@pytest.fixture
def anew(monkeypatch):
    """As in a process that has not asked for anything yet; accelerate knows one precision a process."""

    def forget() -> None:
        AcceleratorState._reset_state(True)
        runtime._state.cache_clear()

    for name in (*runtime.ENGINES, *runtime.LAUNCHED, "ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield
    monkeypatch.undo()
    runtime._asked.precision = runtime._asked.micro_batch = None
    runtime._asked.meeting = False
    forget()


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "FSDP is not used here"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DeepSpeed is not used here"),
        ({"ACCELERATE_DYNAMO_BACKEND": "inductor"}, {}, "take COMPILE=1"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, {}, "fp8 is not known here"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "0"}, {}, "a number of steps, 1 or more"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, {"micro_batch": 4}, "Leave one of them out"),
        # what accelerate launch --cpu --num_processes 2 leaves of its second process
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, {}, "has started one"),
        ({}, {"micro_batch": 0}, "MICRO_BATCH=0 must be 1 or more"),
    ],
)
def test_what_accelerates_environment_asks_for_is_done_or_refused(anew, monkeypatch, environment, arguments, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        runtime.start(**arguments)


def test_rounds_are_accelerates_environments(anew, monkeypatch, tmp_path):
    _, expected, _ = whole(tmp_path / "whole")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    runtime.start()
    assert [len(rows) for rows in runtime.share().rows(SIZE)] == [8, 8, 8]
    _, log, _ = whole(tmp_path / "parts")
    close(log, expected)


def test_micro_batches_are_one_step(anew, tmp_path):
    _, expected, masks = whole(tmp_path / "whole")
    runtime.start(micro_batch=9)
    assert [len(rows) for rows in runtime.share().rows(SIZE)] == [8, 8, 8]
    _, log, same = whole(tmp_path / "parts")
    close(log, expected)
    assert same == masks


@pytest.mark.parametrize("asked", ["bf16", None])
def test_bf16_multiplies_and_leaves_weights_probes_and_masks_alone(anew, monkeypatch, tmp_path, asked):
    _, expected, _ = whole(tmp_path / "fp32")
    AcceleratorState._reset_state(True)
    runtime._state.cache_clear()
    if asked is None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    runtime.start(asked)
    assert runtime.accelerator().mixed_precision == "bf16"
    model, log, _ = whole(tmp_path / "bf16")
    assert log[0]["loss"] != expected[0]["loss"] == pytest.approx(log[0]["loss"], rel=0.01)
    assert [line["loss"] for line in log] == pytest.approx([line["loss"] for line in expected], rel=0.1)
    state = checkpoints.load(tmp_path / "bf16" / "x.pt")
    found = [*state["model"].values(), *state["pruner"]["probes"].values(), state["pruner"]["score_sum"]]
    assert {value.dtype for value in found} <= {torch.float32, torch.int32}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_fp16_on_a_cpu_is_refused(anew, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentLacks, match=r"PRECISION=fp16 needs a GPU.* take bf16"):
        runtime.start("fp16")


def test_an_odd_part_cannot_be_mixed(anew, tmp_path):
    runtime.start(micro_batch=1)
    with pytest.raises(ValueError, match="1 images of a step in a process at a time: mixup and cutmix mix two"):
        whole(tmp_path)

"""An emulated Raspberry Pi 5 behind a real ssh server: the aarch64 programs that a Pi runs, on an emulated processor.

It stands in for a Pi's results, not for its speed; the runner knows that. test_devices_ssh.py has what goes wrong.
"""

import json

import board_jobs
import emulated_board
import loopback_board
import numpy as np
import pytest
from conftest import BRIEF, context_of

from pipeline import stages
from targets import TARGETS, executorch, tflite_program
from targets.devices.ssh import Ssh

pytestmark = [pytest.mark.slow, pytest.mark.qemu, pytest.mark.ssh]

# Of the largest logit. The order of sums differs between the processors.
SAME = 1e-5


@pytest.fixture
def board(tmp_path):
    with loopback_board.running(tmp_path / "board") as board:
        yield board


def connect(board, kind: str) -> Ssh:
    """A connection to the board with packages of a kind; for a Raspberry Pi 5, aarch64 and all."""
    board.program("python3", f'{emulated_board.python(kind)} "$@"')
    return Ssh.connect(board.address, TARGETS["rpi5"], print)


def difference(found, expected) -> float:
    """Largest one, as a share of the largest expected logit."""
    return float(np.abs(np.array(found) - np.array(expected)).max() / np.abs(np.array(expected)).max())


def assert_is_an_emulated_pi(result) -> None:
    assert result.device["device"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert (result.device["arch"], result.device["cpu"]) == ("aarch64", "brcm,bcm2712")
    assert result.device["emulated"].startswith("qemu-aarch64")
    assert "emulates this device" in TARGETS["rpi5"].why_untimed(result.device), "though it names itself as a Pi does"
    for latency in result.latency.values():
        assert not latency.valid
        assert latency.why_invalid.endswith("emulates this processor")
    assert (result.peak_mb, result.loading, result.end_to_end) == (None, None, None)


def test_tflite_computes_on_aarch64_what_it_computes_here(board, tmp_path):
    job = board_jobs.make_job(tmp_path / "job", board_jobs.tflite_file(), tflite_program.load, "tflite")
    job = board_jobs.with_photo(job, tmp_path / "job")
    device = connect(board, "litert")
    result = device.run(job, tmp_path / "job", lambda *_: None)
    device._connection.close()
    assert difference(result.golden, job.golden) < SAME
    assert (result.top1, result.runtime) == (1, "ai-edge-litert")
    assert_is_an_emulated_pi(result)
    assert board.jobs == []


def test_executorch_computes_on_aarch64_what_it_computes_here(board, tmp_path):
    """Its C functions are compiled by the cross compiler, which stands in for the board's own."""
    board.program("c++", f'{emulated_board.compiler()} "$@"')
    job = board_jobs.make_job(tmp_path / "job", board_jobs.executorch_file(), executorch.load, "executorch")
    device = connect(board, "executorch")
    result = device.run(job, tmp_path / "job", lambda *_: None)
    device._connection.close()
    assert difference(result.golden, job.golden) < SAME
    assert (result.top1, result.runtime) == (1, "executorch")
    assert_is_an_emulated_pi(result)


def test_the_old_runtime_computes_the_same_and_refuses_what_it_would_compute_wrongly(board, tmp_path):
    """tflite-runtime 2.14, as some boards have it."""
    job = board_jobs.make_job(tmp_path / "job", board_jobs.tflite_file(), tflite_program.load, "tflite")
    device = connect(board, "old")
    result = device.run(job, tmp_path / "job", lambda *_: None)
    assert difference(result.golden, job.golden) < SAME
    assert (result.runtime, result.runtime_version) == ("tflite-runtime", "2.14.0")
    new = board_jobs.make_job(tmp_path / "new", board_jobs.tflite_file("int8-dynamic"), tflite_program.load, "tflite")
    result = device.run(new, tmp_path / "new", lambda *_: None)
    device._connection.close()
    assert result.refused.startswith("tflite-runtime 2.14.0 does not take it (")
    assert result.latency == {}


def test_a_deployment_to_the_board_proves_correctness_and_measures_no_time(board, run_copy, tmp_path):
    budget = tmp_path / "budget.toml"
    limits = "top1_share_min = 0.5\nparity_psnr_db_min = 80\nlatency_p90_ms_max = 50\nmemory_mb_max = 150\n"
    budget.write_text(f"{limits}[tflite]\nprecisions = ['fp32']\n")
    board.program("python3", f'{emulated_board.python("litert")} "$@"')
    context, _ = context_of(run_copy)
    verdict = stages.run_deploying(context, "rpi5", budget=budget, protocol=BRIEF, device=board.address)
    assert verdict == "not_measured"
    report = json.loads((run_copy / "report.json").read_text())
    found = next(a for a in report["artifacts"] if a["role"] == "pruned" and a["target"] == "rpi5")
    checks = {check["name"]: check for check in found["checks"]}
    for name in ("golden", "golden_on_device", "top1_share_min", "parity_psnr_db_min"):
        assert checks[name]["verdict"] == "pass", checks[name]
    for name in ("latency_p90_ms_max", "memory_mb_max"):
        assert (checks[name]["verdict"], checks[name]["value"]) == ("not_measured", None)
    assert checks["latency_p90_ms_max"]["reason"].endswith("its time says nothing of a real one")
    assert (found["latency_ms"], found["latency_dense_ms"]) == (None, None), "not even one that is told not to count"
    assert found["device"]["device"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert json.loads((run_copy / "artifacts" / "rpi5" / "latency.json").read_text()) == {}
    assert board.jobs == []


def test_another_pi_than_the_targets_is_no_board_of_it():
    """The board is emulated as a Raspberry Pi 5; for rpi4 its results count, and its time would not."""
    device = {"device": emulated_board.FILES["proc/device-tree/model"].rstrip("\0")}
    assert TARGETS["rpi5"].why_untimed(device) is None, "were it not emulated"
    assert TARGETS["rpi4"].why_untimed(device) == "Raspberry Pi 5 Model B Rev 1.0 is not a Raspberry Pi 4"

"""What a device answers decides; a device that breaks off, refuses or is another one never makes a pass.

The device here is this machine behind the interface of a distant one: the drivers' own tests go over the wire.
"""

import json
import shutil
from dataclasses import replace

import pytest
from conftest import BRIEF, at_ease, context_of

from pipeline import apps, stages
from pipeline.errors import EnvironmentLacks
from targets import TARGETS, manifest
from targets.devices.job import DeviceError, FormatUnavailable, read_job, read_result, write_job
from targets.devices.measure import describe, run
from targets.formats import FORMATS
from targets.latency import invalid

pytestmark = pytest.mark.slow
BUDGET = "top1_share_min = 0.5\nlatency_p90_ms_max = 1000\nmemory_mb_max = 500\n[tflite]\nprecisions = ['fp32']"
PI_5 = {**describe(), "device": "Raspberry Pi 5 Model B Rev 1.0", "arch": "aarch64"}


class Board:
    """A Raspberry Pi 5 that is this machine."""

    name = "pi@board"

    def __init__(self, change=lambda result: result, description=PI_5):
        self.description, self.change, self.jobs = description, change, []

    def run(self, job, folder, progress):
        write_job(job, folder)
        assert read_job(folder) == job, "the job survives being written and read"
        self.jobs.append(job)
        result = run(job, folder, FORMATS[job.format].load, progress)
        # whether other work disturbs this machine just now is not the board's
        quiet = {file: replace(found, valid=True, why_invalid=None) for file, found in result.latency.items()}
        return self.change(replace(result, device=self.description, latency=quiet))


WITHOUT_TIME = "top1_share_min = 0.5\nsize_mb_max = 9\n[tflite]\nprecisions = ['fp32']"


class Broken(Board):
    def run(self, job, folder, progress):
        raise DeviceError("pi@board has not answered for 30 s")


@pytest.fixture(scope="module")
def exported(finished, shared, tmp_path_factory):
    """A run that is exported for the board, so that each test begins with that."""
    folder = shutil.copytree(finished[0], tmp_path_factory.mktemp("runs") / "exported")
    path = folder.parent / "mine.toml"
    path.write_text(BUDGET)
    context, _ = context_of(folder)
    with at_ease(shared):
        assert stages.run_deploying(context, "rpi5", budget=path, protocol=BRIEF) == "not_measured"
    return folder


@pytest.fixture
def deploy(exported, shared, tmp_path, monkeypatch):
    """Deploys a copy to a board for rpi5; returns the verdict and the candidate as the report has it."""
    folder = shutil.copytree(exported, tmp_path / "copy")

    def deployed(board, text=BUDGET):
        """board: None: there is no device"""
        monkeypatch.setattr(stages, "connect", lambda target, device, say, format: board)
        path = tmp_path / "mine.toml"
        path.write_text(text)
        context, said = context_of(folder)
        verdict = stages.run_deploying(context, "rpi5", budget=path, protocol=BRIEF, device="pi@board")
        report = json.loads((folder / "report.json").read_text())
        deployed.said = said
        return verdict, next(a for a in report["artifacts"] if a["role"] == "pruned" and a["target"] == "rpi5")

    deployed.folder = folder
    with at_ease(shared):
        yield deployed


def measured_of(deploy):
    """What the manifest says of the artifact that is shipped."""
    shipped = manifest.read(deploy.folder / "artifacts" / "rpi5" / manifest.FILE_NAME)
    return next(entry.measured for entry in shipped.files if entry.role == "pruned")


def verdicts(artifact):
    return {check["name"]: check["verdict"] for check in artifact["checks"]}


def test_a_board_that_measures_everything_gives_a_verdict(deploy):
    board = Board()
    verdict, artifact = deploy(board)
    assert verdict == "pass"
    assert set(verdicts(artifact).values()) == {"pass"}
    assert "golden_on_device" in verdicts(artifact)
    assert artifact["device"]["device"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert artifact["latency_ms"]["samples"] >= 20
    assert artifact["latency_dense_ms"]["p50"] > artifact["latency_ms"]["p50"] / 5
    assert artifact["load_ms"]["cold"] > 0
    assert artifact["load_ms"]["samples"] == 1, "a short protocol has one"
    assert artifact["end_to_end_ms"]["p50"] >= artifact["end_to_end_ms"]["decode"] > 0
    photo = artifact["end_to_end_ms"]["photo"]
    assert (photo["width"], photo["height"]) == (640, 427), "these images are no JPEGs"
    assert artifact["images"] == len(board.jobs[0].labels) > 0
    assert artifact["conditions"].keys() == {"before", "after"}
    assert "Raspberry Pi 5" in (deploy.folder / "report.html").read_text()
    kept = deploy.folder / "artifacts" / "rpi5" / "device" / "pruned-fp32.tflite.json"
    assert read_result(kept, board.jobs[0]).latency["pruned-fp32.tflite"].samples >= 20


def test_another_board_proves_correctness_and_no_time(deploy):
    verdict, artifact = deploy(Board(description={**PI_5, "device": "Raspberry Pi 4 Model B Rev 1.4"}))
    assert verdict == "not_measured"
    assert artifact["latency_ms"] is None
    found = {check["name"]: check for check in artifact["checks"]}
    assert found["latency_p90_ms_max"]["reason"] == "Raspberry Pi 4 Model B Rev 1.4 is not a Raspberry Pi 5"
    assert found["golden_on_device"]["verdict"] == found["top1_share_min"]["verdict"] == "pass"


@pytest.mark.parametrize(
    ("target", "name"), [("rpi4", "Raspberry Pi 400 Rev 1.0"), ("rpi5", "Raspberry Pi 500 Rev 1.0")]
)
def test_a_keyboard_with_a_board_in_it_is_another_board(target, name):
    assert TARGETS[target].why_untimed({"device": name}) == f"{name} is not a {TARGETS[target].board}"


def test_emulated_time_is_no_time(deploy):
    def emulated(result):
        return replace(result, latency={k: invalid(v, "qemu emulates it") for k, v in result.latency.items()})

    verdict, artifact = deploy(Board(emulated, {**PI_5, "emulated": "qemu-aarch64"}))
    assert verdict == "not_measured"
    assert verdicts(artifact)["latency_p90_ms_max"] == "not_measured"
    assert (artifact["latency_ms"], artifact["latency_dense_ms"], artifact["peak_mb"]) == (None, None, None)
    assert (artifact["load_ms"], artifact["end_to_end_ms"]) == (None, None)
    assert measured_of(deploy)["latency_ms"] is None
    assert "qemu-aarch64 emulates this device" in artifact["reason"]
    deploy(Board(emulated, {**PI_5, "emulated": "qemu-aarch64"}))
    assert "validate rpi5: finished before" in deploy.said, "a repeat would find the same"
    assert json.loads((deploy.folder / "artifacts" / "rpi5" / "latency.json").read_text()) == {}


def test_wrong_logits_on_the_board_fail(deploy):
    def wrong(result):
        rows = tuple(tuple(-value for value in row) for row in result.golden)
        return replace(result, golden=rows, logits=tuple(tuple(-v for v in row) for row in result.logits))

    verdict, artifact = deploy(Board(wrong))
    assert verdict == "fail"
    assert verdicts(artifact)["golden"] == "pass", "here it computes what it should"
    assert verdicts(artifact)["golden_on_device"] == "fail"
    assert not (deploy.folder / "artifacts" / "rpi5" / "manifest.json").exists()


def test_what_the_board_refuses_fails_with_its_reason(deploy):
    verdict, artifact = deploy(Board(lambda result: replace(result, refused="tflite-runtime 2.14.0 is too old")))
    assert (verdict, artifact["reason"]) == ("fail", "tflite-runtime 2.14.0 is too old")
    assert deploy(Board())[0] == "pass", "the board has been given another runtime, which nothing here can see"


def busy(result):
    return replace(result, latency={file: invalid(found, "it was busy") for file, found in result.latency.items()})


def without(*files):
    """A device on which a process was killed, or the dense artifact does not run."""

    def change(result):
        kept = {file: found for file, found in result.latency.items() if file not in files}
        peak_mb = None if "memory" in files else result.peak_mb
        return replace(result, latency=kept, peak_mb=peak_mb, unmeasured=dict.fromkeys(files, "killed"))

    return change


@pytest.mark.parametrize(
    ("change", "check", "reason"),
    [
        (busy, "latency_p90_ms_max", "latency was measured but is not valid: it was busy"),
        (without("memory"), "memory_mb_max", "killed"),
        (without("dense-fp32.tflite"), "latency_ratio_max", "killed"),
    ],
)
def test_what_could_not_be_measured_this_time_is_tried_again(deploy, change, check, reason):
    budget = f"latency_ratio_max = 1000\n{BUDGET}"
    verdict, artifact = deploy(Board(change), budget)
    assert verdict == "not_measured"
    assert {name for name, verdict in verdicts(artifact).items() if verdict != "pass"} <= {check, "latency_ratio_max"}
    assert next(found["reason"] for found in artifact["checks"] if found["name"] == check) == reason
    assert deploy(Board(), budget)[0] == "pass", "repeating the command is enough"
    deploy(Board(), budget)
    assert "validate rpi5: finished before" in deploy.said


def test_what_nobody_asked_about_is_not_tried_again(deploy):
    budget = "top1_share_min = 0.5\n[tflite]\nprecisions = ['fp32']"
    assert deploy(Board(busy), budget)[0] == "pass"
    deploy(Board(), budget)
    assert "validate rpi5: finished before" in deploy.said


def test_a_board_that_breaks_off_is_told_and_tried_again(deploy):
    verdict, artifact = deploy(Broken())
    assert verdict == "not_measured"
    assert artifact["reason"] == "pi@board has not answered for 30 s"
    assert verdicts(artifact)["top1_share_min"] == "pass", "what this machine has shown stays"
    assert artifact["device"] is measured_of(deploy)["device"] is None, "which is not the device's"
    assert "Raspberry Pi 5 Model B" not in (deploy.folder / "report.html").read_text()
    verdict, artifact = deploy(Board())
    assert verdict == "pass", "repeating the command is enough"
    assert artifact["device"] == measured_of(deploy)["device"] == PI_5
    verdict, _ = deploy(Board())
    assert "validate rpi5: finished before" in deploy.said


@pytest.mark.parametrize(
    ("board", "reason"),
    [(None, "no rpi5 device has measured it"), (Broken(), "pi@board has not answered for 30 s")],
    ids=["none", "broken"],
)
def test_no_board_no_pass_though_nothing_of_it_is_asked(deploy, tmp_path, board, reason):
    """A budget of accuracy and size: that the board computes what this machine does is measured there, or not."""
    verdict, artifact = deploy(board, WITHOUT_TIME)
    assert (verdict, artifact["verdict"], artifact["shipped"]) == ("not_measured", "not_measured", True)
    found = {check["name"]: check for check in artifact["checks"]}
    assert {name: check["verdict"] for name, check in found.items()} == {
        "golden": "pass", "golden_on_device": "not_measured", "top1_share_min": "pass", "size_mb_max": "pass",
    }  # fmt: skip
    assert (found["golden_on_device"]["value"], found["golden_on_device"]["reason"]) == (None, reason)
    assert measured_of(deploy)["verdict"] == "not_measured"
    (tmp_path / "apps" / "raspberry-pi").mkdir(parents=True)
    assert apps.install(deploy.folder / "artifacts" / "rpi5", "raspberry-pi", tmp_path / "apps")
    assert deploy(Board(), WITHOUT_TIME)[0] == "pass"


FLOAT16 = "top1_share_min = 0.5\nparity_psnr_db_min_reduced = 30\n[tflite]\nprecisions = "
BOTH = f"{FLOAT16}['fp16-compute', 'fp16']"


def candidates_of(deploy):
    """What the report has of the pruned candidates, by precision, in the order in which they were tried."""
    artifacts = json.loads((deploy.folder / "report.json").read_text())["artifacts"]
    return {a["precision"]: a for a in artifacts if (a["target"], a["role"]) == ("rpi5", "pruned")}


def test_arithmetic_in_float16_is_judged_by_the_board_that_has_it(deploy):
    board = Board(lambda result: replace(result, float16=True))
    assert deploy(board, BOTH)[0] == "pass"
    found = candidates_of(deploy)
    half = found["fp16-compute"]
    assert (half["verdict"], half["shipped"], half["images"]) == ("pass", True, len(board.jobs[0].labels))
    assert set(verdicts(half)) == {"golden", "golden_on_device", "top1_share_min", "parity_psnr_db_min_reduced"}
    assert found["fp16"]["reason"] == "not tried: fp16-compute is computed in float16 and passes"
    assert list(found) == ["fp16-compute", "fp16"]


@pytest.mark.parametrize("board", [None, Board()], ids=["none", "without float16"])
def test_float32_proves_nothing_of_float16(deploy, board):
    """Neither this machine's nor that of a board that has no other."""
    verdict, half = deploy(board, BOTH)
    has_not = "fp16-compute is computed in float16, which Raspberry Pi 5 Model B Rev 1.0 has not"
    reason = has_not if board else "no rpi5 device has measured it"
    assert (half["verdict"], half["reason"], half["shipped"]) == ("not_measured", reason, False)
    assert (half["top1"], half["parity"], half["latency_ms"], half["runtime"], half["images"]) == (None,) * 5
    assert verdicts(half) == {
        "golden": "pass", "golden_on_device": "pass" if board else "not_measured",
        "top1_share_min": "not_measured", "parity_psnr_db_min_reduced": "not_measured",
    }  # fmt: skip
    plain = candidates_of(deploy)["fp16"]
    assert (plain["shipped"], plain["verdict"]) == (True, verdict)
    assert verdict == ("pass" if board else "not_measured")


def test_float16_alone_is_shipped_unproven(deploy):
    verdict, half = deploy(None, f"{FLOAT16}['fp16-compute']")
    assert (verdict, half["shipped"], half["top1"]) == ("not_measured", True, None)
    assert measured_of(deploy)["parity"] is None


def test_what_fails_here_asks_nothing_of_the_board(deploy):
    board = Board()
    verdict, artifact = deploy(board, "size_mb_max = 0.001\n[tflite]\nprecisions = ['fp32']")
    found = {check["name"]: check for check in artifact["checks"]}
    assert (verdict, board.jobs) == ("fail", [])
    assert found["golden_on_device"]["reason"] == "it has failed already"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("0x0", "0xf000f", "throttled"),
        ("0x1", "0x0", "under-voltage"),
        ("0x0", "0x40000", "throttled"),
    ],
)
def test_the_time_of_a_board_that_was_held_back_is_not_valid(deploy, before, after, reason):
    def held(result):
        return replace(result, before={"throttled": before}, after={"throttled": after})

    verdict, artifact = deploy(Board(held))
    assert (artifact["load_ms"], artifact["end_to_end_ms"]) == (None, None)
    assert reason in artifact["unmeasured"]["loading"] == artifact["unmeasured"]["end to end"]
    assert verdict == "not_measured"
    check = next(check for check in artifact["checks"] if check["name"] == "latency_p90_ms_max")
    assert (check["value"], check["verdict"]) == (None, "not_measured")
    assert reason in check["reason"]
    assert artifact["latency_ms"]["valid"] is False
    assert json.loads((deploy.folder / "artifacts" / "rpi5" / "latency.json").read_text()) == {}
    assert deploy(Board())[0] == "pass", "when it has cooled down, repeating the command is enough"


def test_a_format_that_the_board_cannot_run_is_tried_again(deploy):
    class Lacking(Board):
        def run(self, job, folder, progress):
            raise FormatUnavailable("no compiler: sudo apt install g++")

    verdict, artifact = deploy(Lacking())
    assert (verdict, artifact["reason"]) == ("not_measured", "no compiler: sudo apt install g++")
    assert deploy(Board())[0] == "pass"


def test_a_device_that_cannot_be_reached_costs_no_export(run_copy, monkeypatch):
    def unreachable(target, device, say, format):
        raise DeviceError("pi@board cannot be reached")

    monkeypatch.setattr(stages, "connect", unreachable)
    context, said = context_of(run_copy)
    with pytest.raises(EnvironmentLacks, match="pi@board cannot be reached"):
        stages.run_deploying(context, "rpi5", protocol=BRIEF, device="pi@board")
    assert not any("export" in line for line in said)


@pytest.mark.parametrize(
    ("target", "message"), [("host", "is this machine"), ("mac", "is this Mac"), ("web", "chromium")]
)
def test_a_device_that_a_target_cannot_have_is_refused(run_copy, target, message):
    context, _ = context_of(run_copy)
    with pytest.raises(ValueError, match=message):
        stages.run_deploying(context, target, protocol=BRIEF, device="pi@board")

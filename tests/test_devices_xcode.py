"""iPhones and simulators by xcrun, which fake_xcrun.py stands in for. No real one, and no Mac, has been tried."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from board_jobs import BRIEF, SIZE, pictures
from conftest import context_of
from fake_xcrun import FakeXcrun

from pipeline import apps, console, stages
from targets import TARGETS, coreml
from targets.artifact import Program, RuntimeUnavailable, sha256_of
from targets.devices import drivers, mac, measure, xcode
from targets.devices.job import GOLDEN, IMAGES, DeviceError, FormatUnavailable, Job, write_result
from targets.devices.xcode import Xcode

TARGET = TARGETS["ios"]
PACKAGE = "model.mlpackage"


def silent(*_):
    pass


def load(path: Path, threads: int) -> Program:
    """Gives every picture its colours' sums as logits."""
    return Program(
        prepare=lambda image: image,
        run=lambda image: image.reshape(1, -1, 3).sum(1).astype(np.float32) / 1000,
        runtime="Core ML",
        runtime_version="iOS 18.1",
    )


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeXcrun:
    fake = FakeXcrun(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{fake.folder}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(xcode, "POLL_S", 0.01)
    monkeypatch.setattr(xcode, "BUILT", tmp_path / "built")
    return fake


@pytest.fixture
def job(fake, tmp_path) -> tuple[Job, Path]:
    """A job with a package that is a folder, and what the app would answer to it."""
    folder = tmp_path / "job"
    kept = tmp_path / "kept" / PACKAGE / "Data"
    kept.mkdir(parents=True)
    (kept / "model").write_bytes(b"weights")
    folder.mkdir()
    (folder / PACKAGE).symlink_to(kept.parent)
    images = pictures(6)
    (folder / GOLDEN).write_bytes(images[:2].tobytes())
    (folder / IMAGES).write_bytes(images.tobytes())
    found = measure.logits(load(folder, 1), (image[None] for image in images))
    made = Job(
        id="ab12",
        format="coreml",
        files=(PACKAGE,),
        sha256={name: sha256_of(folder / name) for name in (PACKAGE, GOLDEN, IMAGES)},
        threads=2,
        height=SIZE,
        width=SIZE,
        classes=3,
        golden=tuple(map(tuple, found[:2].tolist())),
        labels=tuple(found.argmax(1).tolist()),
        protocol=dataclasses.replace(BRIEF, seconds=0.05),
    )
    result = measure.run(made, folder, load)
    device = {**result.device, "device": "iPhone iPhone16,1", "emulated": None}
    fake.answers(write_result(dataclasses.replace(result, device=device), tmp_path / "answer.json").read_bytes())
    return made, folder


# which phone


@pytest.mark.parametrize("device", ["usb", "My phone", "AAAA-1", "0000-1"])
def test_a_phone_is_found_by_whatever_it_is_called(fake, device):
    found = drivers.connect(TARGET, device, silent)
    assert found.name == "My phone"
    assert found.description["device"] == "iPhone 15 Pro (iPhone16,1)"
    assert TARGET.why_untimed(found.description) is None


@pytest.mark.parametrize(
    ("state", "device", "message"),
    [
        ({"devices": []}, "usb", "no phone fits DEVICE=usb .none is known.: plug it in, unlock it"),
        ({}, "Other", r"no phone fits DEVICE=Other \(known: My phone\)"),
        ({"mode": "not json"}, "usb", "answers something else than JSON"),
        ({"mode": "nested"}, "usb", "answers something else than JSON"),
        ({"devices": [7, {"identifier": 1}, {"identifier": "B"}]}, "Other", "known: B"),
        ({"installed": False}, "usb", "the app is not installed there, and not built here: xcodebuild -project apps"),
        ({"simulators": []}, "sim", "0 booted simulators: boot one"),
        ({"simulators": []}, "sim:iPad", "0 booted simulators are called iPad"),
        ({"installed": False}, "sim", "not built here: xcodebuild .* -sdk iphonesimulator"),
    ],
)
def test_a_phone_that_cannot_be_had_says_what_to_do(fake, state, device, message):
    fake.set(**state)
    with pytest.raises(DeviceError, match=message):
        Xcode.connect(device, silent)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("deviceProperties", {"developerModeStatus": "disabled"}, "switch Developer Mode on there"),
        ("connectionProperties", {"pairingState": "unpaired"}, "has not been paired with this Mac"),
        ("connectionProperties", {"tunnelState": "unavailable"}, "known, but not connected: plug it in"),
    ],
)
def test_a_phone_that_is_not_ready_says_what_to_do(fake, part, changes, message):
    fake.phone(**{part: changes})
    with pytest.raises(DeviceError, match=message):
        Xcode.connect("My phone", silent)


def test_two_phones_are_told_apart_by_name(fake):
    from fake_xcrun import PHONE

    fake.set(devices=[PHONE, {**PHONE, "identifier": "AAAA-2"}])
    with pytest.raises(DeviceError, match="2 phones fit DEVICE=usb: name one"):
        Xcode.connect("usb", silent)
    assert Xcode.connect("AAAA-2", silent).name == "My phone"


@pytest.mark.parametrize("device", ["-x", "a\nb"])
def test_what_is_no_name_is_refused(fake, device):
    with pytest.raises(ValueError, match="is no name of a phone"):
        Xcode.connect(device, silent)


def test_without_xcode_a_mac_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="there is no xcrun here: a phone is reached from a Mac"):
        Xcode.connect("usb", silent)
    assert drivers.connect(TARGET, None, silent) is None


def test_an_app_that_was_built_is_installed(fake, tmp_path):
    fake.set(installed=False)
    for sdk in ("iphoneos", "iphonesimulator"):
        (tmp_path / "built" / f"Release-{sdk}" / "Classifier.app").mkdir(parents=True)
    said: list[str] = []
    Xcode.connect("usb", said.append)
    assert said == ["  My phone: installing the app"]
    assert any("device install app" in line for line in fake.log)
    Xcode.connect("sim", said.append)
    assert any("simctl install SIM-1" in line for line in fake.log)


# a job


def test_a_job_comes_back(fake, job):
    told: list[tuple] = []
    result = Xcode.connect("usb", silent).run(*job, lambda *words: told.append(words))
    assert (result.top1, result.golden_error) == (1.0, 0.0)
    assert result.latency[PACKAGE].samples > 0
    assert result.device["device"] == "iPhone iPhone16,1"
    assert TARGET.why_untimed(result.device) is None
    there = fake.container / "Documents" / "jobs" / "ab12"
    assert (there / PACKAGE / "Data" / "model").read_bytes() == b"weights"
    assert json.loads((there / "job.json").read_text())["id"] == "ab12"
    (launched,) = (line for line in fake.log if "process launch" in line)
    assert launched.endswith("-- org.dap.classifier --job ab12")
    assert all("--device AAAA-1" in line for line in fake.log if " device " in line)


def test_a_simulators_job_comes_back_and_its_time_does_not_count(fake, job):
    device = Xcode.connect("sim:iPhone 16", silent)
    assert device.run(*job, silent).top1 == 1.0
    assert TARGET.why_untimed(device.description) == (
        "the iOS simulator emulates this device: its time says nothing of a real one"
    )


@pytest.mark.parametrize(
    ("mode", "device", "message"),
    [
        ("locked", "usb", "My phone: unlock it, leave it unlocked"),
        ("untrusted", "usb", "it does not trust the app's developer yet: Settings"),
        ("full", "usb", "its storage is full"),
        ("gone", "usb", "My phone: ERROR: The device disconnected"),
        ("error", "usb", "the app says: model.mlpackage did not arrive whole"),
        ("ends", "usb", "the app has ended by itself: has its memory run out"),
        ("truncated", "usb", "result.json is missing or not whole"),
        ("error", "sim", "the app says: model.mlpackage did not arrive whole"),
        ("ends", "sim", "the app has ended by itself"),
        ("no start", "sim", "the app does not start"),
    ],
)
def test_whatever_goes_wrong_is_said_in_plain_words(fake, job, mode, device, message):
    connected = Xcode.connect(device, silent)
    fake.set(mode=mode)
    with pytest.raises(DeviceError, match=message):
        connected.run(*job, silent)


def test_half_a_word_of_the_apps_is_waited_out(fake, job):
    fake.set(mode="half a word")
    assert Xcode.connect("usb", silent).run(*job, silent).top1 == 1.0


def test_a_phone_that_does_not_answer_is_not_waited_for(fake, job, monkeypatch):
    connected = Xcode.connect("usb", silent)
    fake.set(mode="hangs")
    run = xcode.subprocess.run
    monkeypatch.setattr(xcode.subprocess, "run", lambda *given, timeout, **more: run(*given, timeout=0.7, **more))
    with pytest.raises(DeviceError, match="My phone does not answer for"):
        connected.run(*job, silent)


@pytest.mark.parametrize(
    ("mode", "name", "message"),
    [("not a word", "START_S", "the app does not begin"), ("silent", "STALLED_S", "the app gets no further")],
)
def test_an_app_that_hangs_is_not_waited_for(fake, job, monkeypatch, mode, name, message):
    monkeypatch.setattr(xcode, name, 0.2)
    fake.set(mode=mode)
    asked, folder = job
    with pytest.raises(DeviceError, match=message):
        Xcode.connect("usb", silent).run(dataclasses.replace(asked, protocol=None), folder, silent)


def test_another_jobs_result_is_not_taken(fake, job):
    asked, folder = job
    with pytest.raises(DeviceError, match="belongs to another artifact"):
        Xcode.connect("usb", silent).run(dataclasses.replace(asked, id="ff"), folder, silent)


def test_a_format_that_the_app_has_not_is_refused_alone(fake, job):
    asked, folder = job
    with pytest.raises(FormatUnavailable, match="has no executorch-coreml, only coreml"):
        Xcode.connect("usb", silent).run(dataclasses.replace(asked, format="executorch-coreml"), folder, silent)


# a Mac


def test_elsewhere_there_is_no_mac(monkeypatch):
    monkeypatch.setattr(mac, "on_a_mac", lambda: False)
    for target in ("mac", "ios"):
        with pytest.raises(DeviceError, match="this machine is no Mac"):
            drivers.connect(TARGETS[target], "mac", silent)
    assert drivers.connect(TARGETS["mac"], None, silent) is None
    with pytest.raises(ValueError, match="TARGET=mac is this Mac"):
        drivers.connect(TARGETS["mac"], "My phone", silent)


def test_a_macs_time_counts_for_macs_alone(job, monkeypatch):
    monkeypatch.setattr(mac, "on_a_mac", lambda: True)
    monkeypatch.setattr(mac, "_model", lambda: "Mac14,2")
    monkeypatch.setattr(coreml, "compute_units", lambda path: {"neural_engine": 40, "gpu": 0, "cpu": 2})
    device = drivers.connect(TARGETS["mac"], "mac", silent)
    monkeypatch.setattr(device._local, "run", lambda asked, folder, progress: measure.run(asked, folder, load))
    result = device.run(*job, silent)
    assert result.device["device"] == "Mac Mac14,2"
    assert result.runtime_version == "iOS 18.1; operations: 40 on neural engine, 2 on cpu"
    described = {**result.device, "emulated": None}
    assert TARGETS["mac"].why_untimed(described) is None
    assert TARGETS["ios"].why_untimed(described) == "Mac Mac14,2 is not an iPhone"
    with pytest.raises(FormatUnavailable, match="not tflite"):
        device.run(dataclasses.replace(job[0], format="tflite"), job[1], silent)

    def planless(path: Path) -> dict[str, int]:
        raise RuntimeUnavailable("macOS 14.4")

    monkeypatch.setattr(coreml, "compute_units", planless)
    assert device.run(*job, silent).runtime_version == "iOS 18.1"


# the whole way


@pytest.mark.slow
def test_without_a_mac_the_app_is_made_whole_and_nothing_of_its_time_is_claimed(run_copy, tmp_path, monkeypatch):
    budget = tmp_path / "mine.toml"
    budget.write_text("top1_share_min = 0.5\nlatency_p90_ms_max = 15\n[coreml]\nprecisions = ['fp16']\n")
    context, said = context_of(run_copy)
    assert stages.run_deploying(context, "ios", budget=budget, protocol=BRIEF) == "not_measured", said
    report = json.loads((run_copy / "report.json").read_text())
    artifact = next(a for a in report["artifacts"] if a["role"] == "pruned" and a["target"] == "ios")
    checks = {check["name"]: check["verdict"] for check in artifact["checks"]}
    assert checks["top1_share_min"] == "pass" and checks["latency_p90_ms_max"] == "not_measured"
    folder = tmp_path / "apps"
    (folder / "ios").mkdir(parents=True)
    installed = apps.install(run_copy / "artifacts" / "ios", "ios", folder)
    assert (installed / Path(artifact["file"]).name / "Manifest.json").exists()
    told: list[str] = []
    monkeypatch.setattr(console, "tell", told.append)
    assert apps.ready_for_xcode(folder) == folder / "ios"
    assert told[-1].startswith("next, on the Mac: copy this folder, open ")


def test_an_app_without_a_package_is_not_ready(finished, tmp_path):
    (tmp_path / "ios").mkdir()
    assert apps.install(finished[0] / "artifacts" / "host", "ios", tmp_path)
    with pytest.raises(ValueError, match="holds no Core ML package: make deploy TARGET=ios puts one there"):
        apps.ready_for_xcode(tmp_path)

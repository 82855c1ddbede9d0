"""Android phones over adb: what stands in for the phone is said in android_phone.py. No real phone has been tried."""

import contextlib
import json
import os
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import android_phone
import board_jobs
import numpy as np
import pytest
from android_phone import APP, PROPERTIES, SERIAL, FakeAdb, properties_script
from conftest import BRIEF, context_of

from pipeline import stages
from targets import TARGETS
from targets.devices import adb, adb_connection, browser, drivers
from targets.devices.adb import Adb, AdbBrowser
from targets.devices.adb_connection import AdbConnection
from targets.devices.job import DeviceError, DeviceResult, FormatUnavailable
from targets.formats import FORMATS

TARGET = TARGETS["android"]


def silent(*_):
    pass


def nothing(*_):
    """Loads what gives every picture the same logits."""
    return lambda image: np.zeros((1, 5), np.float32)


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeAdb:
    fake = FakeAdb(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    monkeypatch.setattr(Adb, "_runner", lambda self, say: None)
    return fake


def connect(device: str = "P1") -> Adb:
    return Adb.connect(device, TARGET, silent)


def listing(*rows: str) -> str:
    return "echo 'List of devices attached'; " + "; ".join(f"echo '{row}'" for row in rows)


# which phone


@pytest.mark.parametrize(
    ("device", "rows", "message"),
    [
        ("P1", ["P1 unauthorized usb:1-1"], "P1: it has not allowed this computer yet: unlock it and confirm"),
        ("P1", ["P1 offline usb:1-1"], "P1: it is connected, but does not answer: unplug it"),
        ("P1", ["P1 recovery usb:1-1"], "in recovery: start Android"),
        ("P1", ["P1 no permissions (missing udev rules?)"], "may not use its USB device"),
        ("P1", ["P1 something"], "adb calls it 'something'"),
        ("P1", ["P2 device usb:1-1"], r"P1 is not connected to this machine \(connected: P2\)"),
        ("P1", [], "P1 is not connected to this machine .no phone is connected"),
        ("usb", ["P1 device usb:1-1", "P2 device usb:1-2"], "2 phones on USB: name one, DEVICE=P1 or DEVICE=P2"),
        ("usb", ["emulator-5554 device", "10.0.0.2:5555 device"], "no phone on USB: plug it in"),
        ("usb", [], "no phone on USB"),
        ("usb", ["P1 unauthorized"], "P1: it has not allowed"),
    ],
)
def test_a_phone_that_is_not_ready_says_what_to_do(fake, device, rows, message):
    fake.answer("devices -l", listing(*rows))
    with pytest.raises(DeviceError, match=message):
        connect(device)


def test_the_serial_number_goes_with_every_command(fake):
    fake.answer("devices -l", listing("emulator-5554 device", "P1 device usb:1-1"))
    assert connect("usb").name == "P1"
    rest = [line for line in fake.log if not line.startswith("devices")]
    assert rest
    assert all(line.startswith("-s P1 ") for line in rest)


@pytest.mark.parametrize("device", ["", "a b", "-s", "$(x)", "a;b", "host:port:", "é"])
def test_what_is_no_device_never_reaches_adb(fake, device):
    with pytest.raises(ValueError, match="is no serial number"):
        connect(device)
    assert fake.log == []


def test_a_phone_in_the_network_is_connected_to(fake):
    fake.answer("connect 10.0.0.2:5555", "echo connected to 10.0.0.2:5555")
    fake.answer("devices -l", listing("10.0.0.2:5555 device", "P1 device usb:1-1"))
    assert connect("10.0.0.2:5555").name == "10.0.0.2:5555"
    fake.answer("connect 10.0.0.3:5555", "echo 'failed to connect to 10.0.0.3:5555: Connection refused'")
    with pytest.raises(DeviceError, match=r"cannot connect to it: .*Connection refused.*wireless debugging"):
        connect("10.0.0.3:5555")


def test_without_adb_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="sudo apt install adb"):
        connect()


def test_an_adb_that_hangs_is_given_up(fake, monkeypatch):
    monkeypatch.setattr(adb_connection, "CONNECT_S", 0.3)
    fake.answer("devices -l", "exec sleep 60")
    with pytest.raises(DeviceError, match="has not answered for 0 s"):
        connect()


# what it is


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ro.build.version.sdk": "25", "ro.build.version.release": "7.1"}, r"Android 7\.1 \(API 25\), and 8\.0"),
        ({"ro.build.version.sdk": ""}, "is it an Android device"),
        (
            {"ro.product.cpu.abilist": "armeabi-v7a,armeabi"},
            "armeabi-v7a,armeabi, and the app needs arm64-v8a or x86_64",
        ),
    ],
)
def test_a_phone_that_cannot_do_it_says_why(fake, changes, message):
    fake.properties(**changes)
    with pytest.raises(DeviceError, match=message):
        connect()


def test_a_phone_describes_itself(fake):
    fake.properties(**{"ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a"})
    phone = connect()
    assert phone.description == {
        "device": "Acme One", "os": "Android 15", "cpu": None, "cores": 8, "arch": "arm64-v8a", "emulated": None,
    }  # fmt: skip
    fake.properties(**{"ro.hardware": "ranchu"})
    assert connect().description["emulated"] == "the Android emulator"


@pytest.mark.parametrize(("told", "float16"), [("", False), ("1", True)])
def test_a_phones_results_say_whether_it_computes_in_float16(fake, monkeypatch, tmp_path, told, float16):
    fake.answer("shell -T echo maker", f"{properties_script(PROPERTIES)}; echo float16={told}")
    phone = connect()
    runtime = {"runtime": "TFLite", "runtime_version": "2.14.0"}
    found = DeviceResult(job="", file="", sha256="", device=phone.description, threads=1, **runtime)
    monkeypatch.setattr(Adb, "_by_runner", lambda *_: found)
    monkeypatch.setattr(Adb, "_folder", lambda _: contextlib.nullcontext("there"))
    job = board_jobs.make_job(tmp_path / "job", board_jobs.tflite_file(), FORMATS["tflite"].load, "tflite")
    assert phone.run(job, tmp_path / "job", silent).float16 is float16


def test_an_app_that_hides_its_files_is_told(fake):
    fake.answer(f"shell -T pm list packages {APP}", f"echo package:{APP}")
    fake.answer(f"shell -T run-as {APP}", "echo 'run-as: package not debuggable'")
    with pytest.raises(DeviceError, match=r"lets nobody at its files .*not debuggable"):
        connect()


# a job


@pytest.fixture
def job(tmp_path):
    """A job and its folder, without an artifact that would run."""
    (tmp_path / "model.tflite").write_bytes(b"no model")
    folder = tmp_path / "job"
    return board_jobs.make_job(folder, tmp_path / "model.tflite", nothing, "tflite"), folder


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Something in place of the runner."""
    for name in ("runner.jar", "x86_64/libtensorflowlite_jni.so"):
        (tmp_path / "runner" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "runner" / name).touch()
    monkeypatch.setattr(adb, "RUNNER", tmp_path / "runner")


@pytest.mark.parametrize(
    ("arguments", "script", "message"),
    [
        (
            "push",
            "echo 'adb: error: failed to copy: No space left on device' >&2; exit 1",
            "storage is full: make room",
        ),
        ("push", "echo \"adb: error: device 'P1' not found\" >&2; exit 1", "the connection broke off"),
        ("push", "echo 'adb: error: device unauthorized.' >&2; exit 1", "unlock it and confirm"),
        ("shell -T mkdir", "echo 'mkdir: Permission denied'; exit 1", "lets nobody write or run there"),
        ("shell -T cd", "exit 0", "broke off"),
        ("shell -T cd", 'echo \'{"error": "it is ill", "runtime": false}\'; exit 1', "P1: it is ill"),
        ("shell -T cd", "echo '/system/bin/app_process: No such file'; exit 127", "ended with status 127"),
        ("shell -T cd", "echo \"error: device 'P1' not found\" >&2; exit 1", "the connection broke off"),
        ("shell -T cd", "echo '{\"progress\": 5}'", "answers something else than was asked"),
    ],
)
def test_a_job_that_breaks_off_is_no_result_and_leaves_nothing(fake, job, library, arguments, script, message):
    phone = connect()
    fake.answer("pull", "echo 'adb: error: the connection broke off' >&2; echo closed; exit 1")
    fake.answer(arguments, script)
    with pytest.raises(DeviceError, match=message):
        phone.run(*job, silent)
    made = [line.split()[-1] for line in fake.log if " mkdir " in line]
    removed = [line.split()[-1] for line in fake.log if "rm -rf" in line]
    if arguments != "shell -T mkdir":
        assert made
        assert removed == made


def test_a_runner_without_a_runtime_says_that_it_is_only_this_format(fake, job, library):
    phone = connect()
    fake.answer("shell -T cd", 'echo \'{"error": "LiteRT does not load", "runtime": true}\'; exit 3')
    with pytest.raises(FormatUnavailable, match="LiteRT does not load"):
        phone.run(*job, silent)
    with pytest.raises(FormatUnavailable, match="neither the app nor the runner has executorch"):
        phone.run(replace(job[0], format="executorch"), job[1], silent)


def test_a_runner_that_hangs_is_given_up(fake, job, library, monkeypatch):
    monkeypatch.setattr(adb, "SILENCE_S", 0.3)
    phone = connect()
    fake.answer("shell -T cd", "exec sleep 60")
    with pytest.raises(DeviceError, match="no sign of life"):
        phone.run(*job, silent)


def test_a_runner_that_gets_no_further_is_given_up(fake, job, library, monkeypatch):
    monkeypatch.setattr(adb, "STALLED_S", 0.5 - BRIEF.longest_s)
    phone = connect()
    fake.answer("shell -T cd", "while :; do echo '{\"alive\": true}'; sleep 0.1; done")
    with pytest.raises(DeviceError, match="gets no further"):
        phone.run(*job, silent)


def test_two_deployments_do_not_measure_on_one_phone(fake, job, library):
    phone = connect()
    with adb._alone("P1"), pytest.raises(DeviceError, match="in use by another deployment"):
        phone.run(*job, silent)


# the app


@pytest.fixture
def with_app(fake, monkeypatch):
    fake.answer(f"shell -T pm list packages {APP}", f"echo package:{APP}")
    fake.answer(f"shell -T run-as {APP} echo yes", "echo yes")
    fake.answer("shell -T pidof", "echo 77")
    fake.answer("shell -T dumpsys power", "echo mWakefulness=Awake")
    monkeypatch.setattr(adb, "POLL_S", 0.05)
    return fake


LOOK = f"shell -T run-as {APP} sh -c 'cd files"


@pytest.mark.parametrize(
    ("arguments", "script", "message"),
    [
        ("shell -T dumpsys power", "echo mWakefulness=Asleep", r"screen is off \(Asleep\).*unlock it"),
        ("shell -T am start", "echo 'Error: Activity class does not exist.'", "does no jobs .*install this one's .apk"),
        ("shell -T pidof", "exit 0", "ended by itself: has the phone's memory run out"),
        (LOOK, 'echo \'{"error": "it is ill", "runtime": false}\'', "the app says: it is ill"),
        (LOOK, "echo nothing", "does not begin. Is the phone unlocked"),
        (LOOK, 'echo \'{"progress": ["golden", 1, 8], "at": 1}\'', "the app gets no further"),
        (LOOK, "echo done", "result.json is missing or not whole"),
    ],
)
def test_an_app_that_does_not_do_it_is_told(with_app, job, monkeypatch, arguments, script, message):
    monkeypatch.setattr(adb, "START_S", 0.3)
    monkeypatch.setattr(adb, "STALLED_S", 0.6 - BRIEF.longest_s)
    phone = connect()
    with_app.answer(arguments, script)
    with pytest.raises(DeviceError, match=message):
        phone.run(*job, silent)
    assert any("rm -rf /data/local/tmp/dap-" in line for line in with_app.log)


# the phone's browser


def test_the_phones_browser_is_no_more_than_a_cable_away(fake, monkeypatch):
    monkeypatch.setattr(adb.browser, "build", lambda say: None)
    monkeypatch.setattr(adb, "PAGE_S", 0.3)
    with pytest.raises(DeviceError, match="has not opened the page"):
        drivers.connect(TARGETS["web"], "adb:P1", silent)
    started = next(line for line in fake.log if "am start" in line)
    port = re.search(r"-d http://127\.0\.0\.1:(\d+)/[\w-]+/runner\.html \|\| true$", started)[1]
    assert f"-s P1 reverse tcp:{port} tcp:{port}" in fake.log
    assert f"-s P1 reverse --remove tcp:{port}" in fake.log
    fake.answer("shell -T am start", "echo 'Error: Activity not started, unable to resolve Intent'")
    with pytest.raises(DeviceError, match=r"opens no page .*has it a browser"):
        AdbBrowser.connect("P1", silent)


@pytest.mark.slow
@pytest.mark.browser
def test_a_job_is_done_in_the_browser_that_am_opens(fake, tmp_path):
    """The phone's browser is this machine's here; what the cable carries, adb's own, is the real one's matter."""
    program = browser._find_chromium()
    if not program or not shutil.which("npm"):
        pytest.skip("no Chromium, or no Node.js")
    flags = [flag for flag in browser._flags() if "pipe" not in flag]
    opened = f"setsid {program} {' '.join(flags)} --user-data-dir={tmp_path}/profile"
    url = 'said="$*"; url=${said#*-d }; url=${url%% *}'
    fake.answer("shell -T am start", f'{url}; {opened} "$url" >/dev/null 2>&1 </dev/null & echo $! > {tmp_path}/pid')
    try:
        device = drivers.connect(TARGETS["web"], "adb:P1", silent)
        assert "Chrom" in device.name
        folder = tmp_path / "job"
        job = board_jobs.make_job(folder, board_jobs.tflite_file(), FORMATS["tflite"].load, "tflite")
        result = device.run(job, folder, silent)
        device.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int((tmp_path / "pid").read_text()), 9)
    assert result.golden_error < 1e-4
    assert result.top1 == 1


@pytest.mark.slow
@pytest.mark.android
def test_a_port_is_reached_from_the_phone_as_long_as_it_is_wanted(phone):
    connection = AdbConnection(SERIAL)

    def listed():
        return connection._adb(["-s", SERIAL, "reverse", "--list"], 10)

    connection.reverse(8899)
    assert "tcp:8899 tcp:8899" in listed()
    connection.unreverse(8899)
    assert "8899" not in listed()


def test_without_a_device_nothing_is_measured():
    assert drivers.connect(TARGET, None, silent) is None


# the real adbd


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    with android_phone.running(tmp_path_factory.mktemp("phone") / "of") as phone:
        yield phone


@pytest.fixture
def real_job(tmp_path):
    folder = tmp_path / "job"
    return board_jobs.make_job(folder, board_jobs.tflite_file(), FORMATS["tflite"].load, "tflite"), folder


@pytest.mark.slow
@pytest.mark.android
def test_a_job_is_done_without_an_app_and_leaves_nothing_behind(phone, real_job):
    said: list[str] = []
    device = Adb.connect(SERIAL, TARGET, said.append)
    assert device.description["device"] == "Acme One"
    assert "the app is not installed" in said[0]
    told: list[tuple] = []
    result = device.run(*real_job, lambda *progress: told.append(progress))
    assert result.golden_error < 1e-5
    assert result.top1 == 1
    assert (result.runtime, result.runtime_version) == ("TFLite", "2.14.0")
    assert "OpenJDK" in result.device["emulated"]
    assert TARGET.why_untimed(result.device)
    (latency,) = result.latency.values()
    assert not latency.valid
    assert result.before["battery"] == "80 % discharging"
    assert result.before["temperature_c"] == 31.5
    assert ("images", 6, 6) in told
    assert phone.left == []


@pytest.mark.slow
@pytest.mark.android
def test_a_job_is_done_with_the_app_in_front(phone, real_job):
    phone.install()
    try:
        result = Adb.connect(SERIAL, TARGET, silent).run(*real_job, silent)
    finally:
        (phone.folder / "installed").unlink()
    assert result.golden_error < 1e-5
    assert phone.left == []


@pytest.mark.slow
@pytest.mark.android
def test_an_artifact_that_is_none_is_refused_there(phone, tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"no model" * 100)
    job = board_jobs.make_job(tmp_path / "job", tmp_path / "model.tflite", nothing, "tflite")
    result = Adb.connect(SERIAL, TARGET, silent).run(job, tmp_path / "job", silent)
    assert "does not take it" in result.refused
    assert phone.left == []


@pytest.mark.slow
@pytest.mark.android
def test_a_file_that_came_in_part_is_not_used(phone, real_job):
    job, folder = real_job
    wrong = replace(job, sha256={**job.sha256, "golden.u8": "0" * 64})
    with pytest.raises(DeviceError, match=r"golden\.u8 did not arrive whole"):
        Adb.connect(SERIAL, TARGET, silent).run(wrong, folder, silent)
    assert phone.left == []


@pytest.mark.slow
@pytest.mark.android
def test_a_phone_that_is_unplugged_meanwhile_is_told(phone, real_job):
    device = Adb.connect(SERIAL, TARGET, silent)
    phone.program("dumpsys", "sleep 30")  # the runner waits for it, before it measures
    try:
        timer = threading.Timer(4, lambda: device._phone._adb(["disconnect", SERIAL], 10))
        timer.start()
        with pytest.raises(DeviceError, match=r"broke off|not connected|ended with status"):
            device.run(*real_job, silent)
        timer.join()
    finally:
        phone.program("dumpsys", f"cat {phone.folder}/dumpsys.$1")
        shutil.rmtree(phone.data / "local/tmp", ignore_errors=True)
        (phone.data / "local/tmp").mkdir()


@pytest.mark.slow
@pytest.mark.android
def test_the_whole_gate_runs_against_it_with_no_time_measured(phone, run_copy, tmp_path):
    budget = tmp_path / "mine.toml"
    budget.write_text("top1_share_min = 0.5\nlatency_p90_ms_max = 1000\n[tflite]\nprecisions = ['fp32']\n")
    context, said = context_of(run_copy)
    verdict = stages.run_deploying(context, "android", budget=budget, protocol=BRIEF, device=SERIAL)
    assert verdict == "not_measured", said
    report = json.loads((run_copy / "report.json").read_text())
    artifact = next(a for a in report["artifacts"] if a["role"] == "pruned" and a["target"] == "android")
    checks = {check["name"]: check for check in artifact["checks"]}
    assert checks["golden_on_device"]["verdict"] == checks["top1_share_min"]["verdict"] == "pass"
    assert checks["latency_p90_ms_max"]["verdict"] == "not_measured"
    assert "OpenJDK" in checks["latency_p90_ms_max"]["reason"]
    assert artifact["latency_ms"] is None
    assert Path(run_copy / "artifacts/android/manifest.json").exists()

"""An Android phone over adb: by its app where that is installed, else by a runner without one; or its own browser.

Without the app a folder of its own below /data/local/tmp takes the runner, the library and the job; `app_process` does
it. With the app (apps/android) the job goes into the app's own files, and its JobActivity does it in front: the time
there is the one that a user has. Whatever has happened, what was pushed is removed. A job that came only in part does
not run: every file's checksum stands in it.
"""

import contextlib
import fcntl
import hashlib
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from targets import Target, strict
from targets.devices import browser
from targets.devices.adb_connection import AdbConnection, quoted
from targets.devices.browser_server import Server
from targets.devices.job import (
    RESULT,
    Description,
    DeviceError,
    DeviceResult,
    FormatUnavailable,
    Job,
    Progress,
    read_result,
    result_of,
    write_job,
)

ANDROID = Path(__file__).parents[2] / "apps" / "android"
RUNNER = ANDROID / "build" / "runner"
BUILD = ANDROID / "build.py"
APP = "org.dap.classifier"
ACTIVITY = f"{APP}/{APP}.JobActivity"
PROGRAM = "org.dap.runner.MainKt"
FORMATS = ("tflite",)
"""what the app and the runner have an engine for"""
OLDEST_SDK = 26
ABIS = ("arm64-v8a", "x86_64")
THERE = "/data/local/tmp"
SILENCE_S = 60.0
"""a runner that has shown no sign of life for that long, of one every other second, has hung"""
STALLED_S = 300.0
"""likewise one that gets no further, beside the time that it measures for"""
START_S = 60.0
"""for the app to begin"""
POLL_S = 1.0
PAGE_S = 120.0
"""for the phone's browser to open the page"""
PROPERTIES = {
    "maker": "ro.product.manufacturer",
    "model": "ro.product.model",
    "release": "ro.build.version.release",
    "sdk": "ro.build.version.sdk",
    "abis": "ro.product.cpu.abilist",
    "chip": "ro.soc.model",
    "board": "ro.board.platform",
    "hardware": "ro.hardware",
}
EMULATORS = ("ranchu", "goldfish")

Say = Callable[[str], None]


class Adb:
    """A phone that does jobs."""

    def __init__(self, phone: AdbConnection, found: dict[str, str], app: bool) -> None:
        """found: as _properties has it;  app: whether the app does its jobs"""
        self.name = phone.name
        self.description = _description(found)
        self._float16 = found["float16"] == "1"
        self._phone, self._abi, self._app = phone, _abi(phone.name, found), app

    @staticmethod
    def connect(device: str, target: Target, say: Say, format: str | None = None) -> "Adb":
        """Look for the phone, and at what it can do.

        device: as AdbConnection takes it;  format: that it is to run first; None: the target's first one
        Raises ValueError for what is no device, DeviceError saying what is wrong and what to do.
        """
        phone = AdbConnection(device)
        found = _properties(phone)
        _vetted(phone.name, found)
        app = _has_app(phone)
        if not app:
            say(f"  {phone.name}: the app is not installed there, so a runner without it does the jobs. The time that")
            say(f"  counts is the app's: make app TARGET={target.name}, then adb -s {phone.serial} install its .apk")
        adb = Adb(phone, found, app)
        if not app and (format or target.formats[0]) in FORMATS:
            adb._runner(say)
        return adb

    def run(self, job: Job, folder: Path, progress: Progress) -> DeviceResult:
        """Do the job there. Raises DeviceError; FormatUnavailable if it is only this format that it cannot run."""
        if job.format not in FORMATS:
            raise FormatUnavailable(f"{self.name}: neither the app nor the runner has {job.format}, only {FORMATS[0]}")
        job = job.without_photo()
        with _alone(self._phone.serial), tempfile.TemporaryDirectory() as name, self._folder() as there:
            files = [write_job(job, Path(name)), *(folder / file for file in job.sha256)]
            longest_s = STALLED_S + (job.protocol.longest_s if job.protocol else 0)
            by = self._by_app if self._app else self._by_runner
            return replace(by(job, files, there, longest_s, progress), float16=self._float16)

    # without the app

    def _by_runner(self, job: Job, files: list[Path], there: str, longest_s: float, progress: Progress) -> DeviceResult:
        library = RUNNER / self._abi / "libtensorflowlite_jni.so"
        self._phone.push([*files, RUNNER / "runner.jar", library], there)
        # Android 14 refuses code that could be written to
        variables = f"CLASSPATH={there}/runner.jar LD_LIBRARY_PATH={there}"
        command = f"cd {there} && chmod 444 runner.jar && {variables} app_process {there} {PROGRAM} {there}"
        moved_at = time.monotonic()
        failed: DeviceError | None = None
        try:
            for line in self._phone.lines(command, SILENCE_S):
                if "progress" in line:
                    progress(*self._known(tuple[str, int, int], line["progress"]))
                    moved_at = time.monotonic()
                elif "error" in line:
                    kind = FormatUnavailable if line.get("runtime") is True else DeviceError
                    failed = kind(f"{self.name}: {line['error']}")
                elif time.monotonic() - moved_at > longest_s:
                    raise DeviceError(f"{self.name} is alive, but its runner gets no further; repeat the command")
        except DeviceError as error:
            raise failed or error from error
        if failed:
            raise failed
        with tempfile.TemporaryDirectory() as name:
            self._phone.pull(f"{there}/{RESULT}", Path(name) / RESULT)
            return read_result(Path(name) / RESULT, job)

    def _runner(self, say: Say) -> None:
        """Build the runner. Raises DeviceError if it cannot be built here."""
        if not (BUILD.parent / ".toolchain").exists():
            say("  fetching what builds the runner for Android, some 250 MB; once")
        done = subprocess.run(
            [sys.executable, str(BUILD), "runner", str(RUNNER)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise DeviceError("\n".join(line.removeprefix("error: ") for line in lines[-5:]) or "no runner was built")

    # with the app

    def _by_app(self, job: Job, files: list[Path], there: str, longest_s: float, progress: Progress) -> DeviceResult:
        self._awake()
        mine = f"files/jobs/{job.id}"
        try:
            self._phone.push(files, there)
            self._phone.shell(f"am force-stop {APP}")
            self._as_app(f"mkdir -p {mine}")
            for file in files:  # the app cannot read what the shell owns, and may own what it writes itself
                source = quoted(f"{there}/{file.name}")
                self._phone.shell(
                    f"cat {source} | run-as {APP} sh -c {quoted('cat > ' + quoted(f'{mine}/{file.name}'))}"
                )
            said = self._phone.says(f"am start -n {ACTIVITY} --es job {job.id}")
            if "Error" in said or "Exception" in said:
                why = _line(said, "Error|Exception")
                raise DeviceError(f"{self.name}: the app there does no jobs ({why}); install this one's .apk")
            self._wait_for_app(mine, longest_s, progress)
            content = self._phone.shell(f"run-as {APP} cat {mine}/{RESULT}")
        finally:
            with contextlib.suppress(DeviceError):
                self._phone.shell(f"am force-stop {APP}; run-as {APP} rm -rf {mine}", SILENCE_S)
        return result_of(content.encode(), job)

    def _awake(self) -> None:
        """Raises DeviceError if the screen is off."""
        said = self._phone.says("dumpsys power")
        if (found := re.search(r"mWakefulness=(\w+)", said)) and found[1] != "Awake":
            raise DeviceError(
                f"{self.name}: its screen is off ({found[1]}), and phones slow down then: unlock it, switch Stay awake "
                "on in the developer options, and repeat the command"
            )

    def _wait_for_app(self, mine: str, longest_s: float, progress: Progress) -> None:
        """Poll until the result is there. Raises DeviceError if the app fails, ends, or gets no further."""
        look = (
            f"cd {mine} && if [ -f {RESULT} ]; then echo done; elif [ -f error.json ]; then cat error.json; "
            "elif [ -f progress.json ]; then cat progress.json; else echo nothing; fi"
        )
        begun_at = moved_at = time.monotonic()
        last = "nothing"
        while True:
            said = self._as_app(look).strip()
            if said == "done":
                return
            now = time.monotonic()
            if said != last:
                last, moved_at = said, now
                self._tell(said, progress)
            if last == "nothing" and now - begun_at > START_S:
                raise DeviceError(f"{self.name}: the app does not begin. Is the phone unlocked, and the app in front?")
            if now - moved_at > longest_s:
                raise DeviceError(f"{self.name}: the app gets no further for {longest_s:.0f} s; repeat the command")
            if not self._phone.says(f"pidof {APP}").strip() and self._as_app(look).strip() != "done":
                raise DeviceError(f"{self.name}: the app has ended by itself: has the phone's memory run out?")
            time.sleep(POLL_S)

    def _tell(self, said: str, progress: Progress) -> None:
        try:
            line = strict.parse_json(said.encode(), dict[str, Any], self.name, source="device")
        except ValueError:  # half a line
            return
        if "error" in line:
            kind = FormatUnavailable if line.get("runtime") is True else DeviceError
            raise kind(f"{self.name}: the app says: {line['error']}")
        if "progress" in line:
            progress(*self._known(tuple[str, int, int], line["progress"]))

    def _as_app(self, command: str) -> str:
        return self._phone.shell(f"run-as {APP} sh -c {quoted(command)}")

    # both

    @contextmanager
    def _folder(self) -> Iterator[str]:
        """A folder there; removed afterwards."""
        there = f"{THERE}/dap-{uuid.uuid4().hex}"
        self._phone.shell(f"mkdir {there}")
        try:
            yield there
        finally:
            with contextlib.suppress(DeviceError):
                self._phone.shell(f"rm -rf {there}", SILENCE_S)

    def _known(self, kind: Any, answer: Any) -> Any:
        try:
            return strict.parse(kind, answer, self.name, source="device")
        except ValueError as error:
            raise DeviceError(f"{error}: it answers something else than was asked; repeat the command") from error


class AdbBrowser:
    """The phone's own browser, which reaches this machine's page through the cable."""

    def __init__(self, phone: AdbConnection, server: Server, description: Description) -> None:
        self.name, self.description = description["device"], description
        self._phone, self._server = phone, server

    @staticmethod
    def connect(device: str, say: Say) -> "AdbBrowser | None":
        """Open the page on the phone; None, and `say` is told why, if this machine cannot build it.

        device: as AdbConnection takes it
        Raises ValueError for what is no device, DeviceError if the phone does not open the page.
        """
        phone = AdbConnection(device)
        if problem := browser.build(say):
            say(problem)
            return None
        server = Server(browser.WEB / "dist", "127.0.0.1")
        try:
            phone.reverse(server.port)
            url = server.url("127.0.0.1")
            said = phone.says(f"am start -a android.intent.action.VIEW -d {quoted(url)}")
            if "Error" in said or "Exception" in said:
                raise DeviceError(
                    f"{phone.name}: it opens no page ({_line(said, 'Error|Exception')}): has it a browser?"
                )
            description = server.wait_for_page(PAGE_S)
            if description is None:
                raise DeviceError(
                    f"{phone.name}: its browser has not opened the page within {PAGE_S:.0f} s: is the phone unlocked?"
                )
        except BaseException:
            _let_go(phone, server)
            raise
        say(f"connected: {description['device']}, {description['os']}; leave the page in front")
        return AdbBrowser(phone, server, description)

    def run(self, job: Job, folder: Path, progress: Progress) -> DeviceResult:
        """Do the job there. Raises DeviceError."""
        job = job.without_photo()
        write_job(job, folder)
        return result_of(self._server.answer_to(job, folder, progress, lambda: None), job)

    def close(self) -> None:
        """Let the page go."""
        _let_go(self._phone, self._server)


def _let_go(phone: AdbConnection, server: Server) -> None:
    with contextlib.suppress(DeviceError):
        phone.unreverse(server.port)
    server.close()


def _properties(phone: AdbConnection) -> dict[str, str]:
    """PROPERTIES, "" for what the phone does not tell, and "cores"."""
    command = "; ".join(f"echo {name}=$(getprop {key})" for name, key in PROPERTIES.items())
    command += "; echo cores=$(cat /sys/devices/system/cpu/possible)"
    said = phone.says(f"{command}; echo float16=$(grep -q asimdhp /proc/cpuinfo && echo 1)")
    found = dict(line.strip().split("=", 1) for line in said.splitlines() if "=" in line)
    return {name: strict.printable(found.get(name, ""))[:200] for name in (*PROPERTIES, "cores", "float16")}


def _vetted(name: str, found: dict[str, str]) -> None:
    """Raises DeviceError for a phone that is too old, or of another kind."""
    if not found["sdk"].isdecimal():
        raise DeviceError(f"{name}: it does not say what Android it has; is it an Android device?")
    if int(found["sdk"]) < OLDEST_SDK:
        raise DeviceError(f"{name} has Android {found['release']} (API {found['sdk']}), and 8.0 (API 26) is needed")
    _abi(name, found)


def _abi(name: str, found: dict[str, str]) -> str:
    """The first of its ABIs that there is a library for. Raises DeviceError."""
    for abi in found["abis"].split(","):
        if abi in ABIS:
            return abi
    raise DeviceError(
        f"{name} runs {found['abis'] or 'nothing known'}, and the app needs {' or '.join(ABIS)}: take another phone"
    )


def _description(found: dict[str, str]) -> Description:
    last = re.search(r"(\d+)$", found["cores"])
    return {
        "device": f"{found['maker']} {found['model']}".strip() or "an Android device",
        "os": f"Android {found['release']}",
        "cpu": found["chip"] or found["board"] or None,
        "cores": int(last[1]) + 1 if last and len(last[1]) < 5 else None,
        "arch": found["abis"].split(",")[0] or None,
        "emulated": "the Android emulator" if found["hardware"] in EMULATORS else None,
    }


def _has_app(phone: AdbConnection) -> bool:
    """Whether the app is there, and such a one as lets the shell at its files."""
    if f"package:{APP}" not in phone.says(f"pm list packages {APP}").split():
        return False
    if (said := phone.says(f"run-as {APP} echo yes").strip()) != "yes":
        raise DeviceError(
            f"{phone.name}: the app there lets nobody at its files ({said[:100]}): install a debuggable one, or none"
        )
    return True


@contextmanager
def _alone(serial: str) -> Iterator[None]:
    """Two deployments from this machine never measure on one phone at a time. Raises DeviceError."""
    name = hashlib.sha256(serial.encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir()) / f"dap-adb-{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DeviceError(f"{serial} is in use by another deployment from this machine") from error
        yield


def _line(text: str, pattern: str) -> str:
    """The first line in which something stands."""
    return next((line.strip() for line in text.splitlines() if re.search(pattern, line)), "")[:200]

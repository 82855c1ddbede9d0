"""An iPhone, or its simulator, by the app in apps/ios: `xcrun devicectl` and `simctl` carry the job there and back.

The job goes into the app's Documents, the app is launched with the job's id and does it in front: the time there is the
one that a user has. It leaves result.json, or error.json, and removes what other jobs have left. A job that came only
in part does not run: every file's checksum stands in it. A simulator computes on the Mac: its time never counts.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from targets import strict
from targets.devices.job import (
    RESULT,
    Description,
    DeviceError,
    DeviceResult,
    FormatUnavailable,
    Job,
    Progress,
    result_of,
    write_job,
)

APP = "org.dap.classifier"
EXECUTABLE = "Classifier.app/Classifier"
JOBS, PROGRESS, ERROR = "Documents/jobs", "progress.json", "error.json"
FORMATS = ("coreml",)
"""what the app has an engine for"""
USB, SIMULATOR = "usb", "sim"
IOS = Path(__file__).parents[2] / "apps" / "ios"
BUILT = IOS / "build" / "xcode" / "Build" / "Products"
ANSWER_S = 120.0
"""for a command; the first one to a phone makes a tunnel"""
SLOWEST_BYTES_PER_S = 100_000
START_S = 90.0
"""for the app to begin"""
STALLED_S = 300.0
"""an app that gets no further for that long, beside the time that it measures for, has hung"""
POLL_S = 2.0
_TROUBLE = (
    (r"locked|unlock", "unlock it, leave it unlocked, and repeat the command"),
    (
        r"explicitly trusted|untrusted|invalid code signature",
        "it does not trust the app's developer yet: Settings > General > VPN & Device Management there",
    ),
    (r"developer mode", "switch Developer Mode on there: Settings > Privacy & Security"),
    (r"pair|trust this computer", "it has not been paired with this Mac: unlock it and press Trust"),
    (r"disk image|ddi", "Xcode cannot prepare it: open Xcode > Window > Devices and wait until it is ready"),
    (r"no space|not enough space", "its storage is full"),
)
"""what devicectl says -> what to do"""

Say = Callable[[str], None]


class Carrier(Protocol):
    """What takes jobs to a phone or a simulator. Every method raises DeviceError."""

    name: str
    description: Description

    def has_app(self) -> bool:
        """Whether the app is installed there."""

    def install(self, app: Path) -> None:
        """Install a built one."""

    def put(self, folder: Path, there: str) -> None:
        """Copy a folder into the app's own."""

    def launch(self, arguments: Sequence[str]) -> None:
        """Start the app anew."""

    def get(self, there: str) -> bytes | None:
        """A file of the app's; None if there is none."""

    def is_running(self) -> bool:
        """Whether the app still is."""


class Xcode:
    """A phone or a simulator that does jobs by the app."""

    def __init__(self, carrier: Carrier) -> None:
        self.name, self.description = carrier.name, carrier.description
        self._carrier = carrier

    @staticmethod
    def connect(device: str, say: Say) -> "Xcode":
        """Look for the phone or the simulator, and for the app on it.

        device: "usb" for the only phone that is connected, a phone's name, identifier or UDID; "sim" for the simulator
        that is booted, or "sim:" and its name or UDID
        Raises ValueError for what is no device, DeviceError saying what is wrong and what to do.
        """
        if not device.isprintable() or device.startswith("-"):
            raise ValueError(f"DEVICE={device} is no name of a phone (xcrun devicectl list devices)")
        if not shutil.which("xcrun"):
            raise DeviceError("there is no xcrun here: a phone is reached from a Mac with Xcode 16 or newer")
        kind, _, name = device.partition(":")
        carrier: Carrier = Simulator(name) if kind == SIMULATOR else Phone(device)
        if not carrier.has_app():
            sdk = "iphonesimulator" if kind == SIMULATOR else "iphoneos"
            app = BUILT / f"Release-{sdk}" / "Classifier.app"
            if not app.exists():
                raise DeviceError(f"{carrier.name}: the app is not installed there, and not built here: {_build(sdk)}")
            say(f"  {carrier.name}: installing the app")
            carrier.install(app)
        return Xcode(carrier)

    def run(self, job: Job, folder: Path, progress: Progress) -> DeviceResult:
        """Do the job there. Raises DeviceError; FormatUnavailable if it is only this format that it cannot run."""
        if job.format not in FORMATS:
            raise FormatUnavailable(f"{self.name}: the app has no {job.format}, only {FORMATS[0]}")
        job = job.without_photo()
        there = f"{JOBS}/{job.id}"
        with tempfile.TemporaryDirectory() as name:
            staged = Path(name) / job.id
            staged.mkdir()
            write_job(job, staged)
            for file in job.sha256:  # links of the gate's
                copy = shutil.copytree if (folder / file).is_dir() else shutil.copy
                copy(folder / file, staged / file)
            self._carrier.put(staged, there)
        self._carrier.launch(["--job", job.id])
        longest_s = STALLED_S + (job.protocol.longest_s if job.protocol else 0)
        return result_of(self._answer(there, longest_s, progress), job)

    def _answer(self, there: str, longest_s: float, progress: Progress) -> bytes:
        """result.json, once it is there. Raises DeviceError if the app fails, ends, or gets no further."""
        begun_at = moved_at = time.monotonic()
        last: bytes | None = None
        while True:
            if (content := self._carrier.get(f"{there}/{RESULT}")) is not None:
                return content
            if (failed := self._carrier.get(f"{there}/{ERROR}")) is not None:
                raise DeviceError(f"{self.name}: the app says: {self._read(failed).get('error', 'nothing')}")
            now, said = time.monotonic(), self._carrier.get(f"{there}/{PROGRESS}")
            if said != last:
                last, moved_at = said, now
                self._tell(said or b"{}", progress)
            if last is None and now - begun_at > START_S:
                raise DeviceError(f"{self.name}: the app does not begin. Is it unlocked, and the app in front?")
            if now - moved_at > longest_s:
                raise DeviceError(f"{self.name}: the app gets no further for {longest_s:.0f} s; repeat the command")
            if not self._carrier.is_running() and self._carrier.get(f"{there}/{RESULT}") is None:
                failed = self._carrier.get(f"{there}/{ERROR}")
                if failed is None:
                    raise DeviceError(f"{self.name}: the app has ended by itself: has its memory run out?")
                continue
            time.sleep(POLL_S)

    def _tell(self, said: bytes, progress: Progress) -> None:
        told = self._read(said).get("progress")
        with contextlib.suppress(ValueError):
            progress(*strict.parse(tuple[str, int, int], told, self.name, source="device"))

    def _read(self, content: bytes) -> dict[str, Any]:
        """An object that the app has written; an empty one for what is none: its last words may be cut off."""
        try:
            return strict.parse_json(content, dict[str, Any], self.name, source="device")
        except ValueError:
            return {}


class Phone:
    """A phone on a cable, or in the network, by devicectl."""

    def __init__(self, device: str) -> None:
        """Raises DeviceError saying which phones there are, or what is wrong with this one."""
        found = _chosen(device, _phones())
        kept = found["deviceProperties"], found["hardwareProperties"]
        self.name = str(kept[0].get("name") or found["identifier"])
        self._id = str(found["identifier"])
        marketing, product = kept[1].get("marketingName"), kept[1].get("productType")
        self.description: Description = {
            "device": f"{marketing or 'iPhone'} ({product})" if product else str(marketing or "iPhone"),
            "os": f"iOS {kept[0].get('osVersionNumber') or 'unknown'}",
            "cpu": None,
            "cores": None,
            "arch": "arm64",
            "emulated": None,
        }
        if kept[0].get("developerModeStatus") == "disabled":
            raise DeviceError(f"{self.name}: switch Developer Mode on there: Settings > Privacy & Security")
        if found["connectionProperties"].get("pairingState") not in (None, "paired"):
            raise DeviceError(f"{self.name}: it has not been paired with this Mac: unlock it and press Trust")
        if found["connectionProperties"].get("tunnelState") == "unavailable":
            raise DeviceError(f"{self.name} is known, but not connected: plug it in and unlock it")

    def has_app(self) -> bool:
        """See Carrier."""
        found = self._json(["device", "info", "apps", "--device", self._id, "--bundle-id", APP])
        return any(isinstance(one, dict) and one.get("bundleIdentifier") == APP for one in found.get("apps") or [])

    def install(self, app: Path) -> None:
        """See Carrier."""
        self._json(["device", "install", "app", "--device", self._id, str(app)])

    def put(self, folder: Path, there: str) -> None:
        """See Carrier."""
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        command = ["device", "copy", "to", *self._container, "--source", str(folder), "--destination", there]
        self._json(command, ANSWER_S + size / SLOWEST_BYTES_PER_S)

    def launch(self, arguments: Sequence[str]) -> None:
        """See Carrier."""
        # without the -- devicectl takes the app's arguments for its own (getsentry/XcodeBuildMCP issue 434)
        options = ["--device", self._id, "--terminate-existing"]
        self._json(["device", "process", "launch", *options, "--", APP, *arguments])

    def get(self, there: str) -> bytes | None:
        """See Carrier. That there is no such file yet is not told apart from other trouble but by the words."""
        with tempfile.TemporaryDirectory() as name:
            to = Path(name) / "file"
            try:
                self._json(["device", "copy", "from", *self._container, "--source", there, "--destination", str(to)])
            except DeviceError as error:
                if re.search(r"no such file|does not exist|not found|couldn.t be opened", str(error), re.I):
                    return None
                raise
            return to.read_bytes() if to.is_file() else None

    def is_running(self) -> bool:
        """See Carrier."""
        found = self._json(["device", "info", "processes", "--device", self._id]).get("runningProcesses") or []
        return any(isinstance(one, dict) and EXECUTABLE in str(one.get("executable")) for one in found)

    @property
    def _container(self) -> list[str]:
        return ["--device", self._id, "--domain-type", "appDataContainer", "--domain-identifier", APP]

    def _json(self, command: list[str], limit_s: float = ANSWER_S) -> dict[str, Any]:
        return _devicectl(command, self.name, limit_s)


class Simulator:
    """A simulator that is booted, by simctl; its files lie on this Mac."""

    def __init__(self, name: str) -> None:
        """name: its name or UDID, "" for the only one that is booted. Raises DeviceError."""
        said = _xcrun(["simctl", "list", "devices", "booted", "--json"], "simctl", ANSWER_S)
        found = [
            (one, str(runtime).rsplit(".", 1)[-1])
            for runtime, some in _parsed(said, "simctl").get("devices", {}).items()
            for one in some
            if isinstance(one, dict) and (not name or name in (one.get("name"), one.get("udid")))
        ]
        if len(found) != 1:
            raise DeviceError(
                f"{len(found)} booted simulators{f' are called {name}' if name else ''}: boot one "
                "(xcrun simctl boot 'iPhone 16') and name it, DEVICE=sim:NAME"
            )
        ((simulator, runtime),) = found
        self.name, self._id = f"simulator {simulator.get('name')}", str(simulator.get("udid"))
        self.description: Description = {
            "device": f"{simulator.get('name')} (simulator)",
            "os": runtime,
            "cpu": None,
            "cores": None,
            "arch": None,
            "emulated": "the iOS simulator",
        }
        self._pid: int | None = None

    def has_app(self) -> bool:
        """See Carrier."""
        try:
            return self._data().is_dir()
        except DeviceError:
            return False

    def install(self, app: Path) -> None:
        """See Carrier."""
        self._simctl(["install", self._id, str(app)])

    def put(self, folder: Path, there: str) -> None:
        """See Carrier."""
        shutil.copytree(folder, self._data() / there)

    def launch(self, arguments: Sequence[str]) -> None:
        """See Carrier."""
        said = self._simctl(["launch", "--terminate-running-process", self._id, APP, *arguments])
        pid = re.search(rf"{re.escape(APP)}: (\d{{1,9}})\b", said)
        if not pid:
            raise DeviceError(f"{self.name}: the app does not start ({_last(said)})")
        self._pid = int(pid[1])

    def get(self, there: str) -> bytes | None:
        """See Carrier."""
        path = self._data() / there
        return path.read_bytes() if path.is_file() else None

    def is_running(self) -> bool:
        """See Carrier. A simulator's processes are this Mac's."""
        assert self._pid is not None, "it has been launched"
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def _data(self) -> Path:
        path = self._simctl(["get_app_container", self._id, APP, "data"]).strip()
        if not path.startswith("/"):
            raise DeviceError(f"{self.name}: simctl does not say where the app's files are ({_last(path)})")
        return Path(path)

    def _simctl(self, command: list[str]) -> str:
        return _xcrun(["simctl", *command], self.name, ANSWER_S)


def _phones() -> list[dict[str, Any]]:
    """The iPhones and iPads that devicectl knows, with the members that are read of them."""
    listed = _devicectl(["list", "devices"], "devicectl", ANSWER_S).get("devices") or []
    phones = []
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, dict) or not isinstance(one.get("identifier"), str):
            continue
        parts = ("deviceProperties", "hardwareProperties", "connectionProperties")
        kept: dict[str, Any] = {part: one[part] if isinstance(one.get(part), dict) else {} for part in parts}
        if kept["hardwareProperties"].get("platform", "iOS") in ("iOS", "iPadOS"):
            phones.append({**kept, "identifier": one["identifier"]})
    return phones


def _chosen(device: str, phones: list[dict[str, Any]]) -> dict[str, Any]:
    def names(phone: dict[str, Any]) -> set[Any]:
        return {phone["identifier"], phone["deviceProperties"].get("name"), phone["hardwareProperties"].get("udid")}

    if device == USB:
        found = [one for one in phones if one["connectionProperties"].get("tunnelState") != "unavailable"]
    else:
        found = [one for one in phones if device in names(one)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(str(one["deviceProperties"].get("name") or one["identifier"]) for one in phones)
    if len(found) > 1:
        raise DeviceError(f"{len(found)} phones fit DEVICE={device}: name one by its identifier (known: {known})")
    raise DeviceError(
        f"no phone fits DEVICE={device} ({f'known: {known}' if known else 'none is known'}): plug it in, unlock it, "
        "and press Trust on it"
    )


def _devicectl(command: list[str], name: str, limit_s: float) -> dict[str, Any]:
    """What devicectl puts into "result". Raises DeviceError in plain words."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        # before the command's own arguments, of which the app's are the last
        place = next((i for i, word in enumerate(command) if word.startswith("--")), len(command))
        options = ["--quiet", "--timeout", str(int(limit_s)), "--json-output", str(answer)]
        _xcrun(["devicectl", *command[:place], *options, *command[place:]], name, limit_s + 10)
        content = answer.read_bytes() if answer.is_file() else b""
    found = _parsed(content, name).get("result")
    return found if isinstance(found, dict) else {}


def _parsed(content: str | bytes, name: str) -> dict[str, Any]:
    data = content.encode() if isinstance(content, str) else content
    try:
        found: dict[str, Any] = strict.parse_json(data, dict[str, Any], name, source="foreign")
    except ValueError as error:
        raise DeviceError(f"{name}: xcrun answers something else than JSON; is this Xcode 16 or newer?") from error
    return found


def _xcrun(command: list[str], name: str, limit_s: float) -> str:
    """What it prints. Raises DeviceError saying what is wrong with the phone, and what to do."""
    try:
        done = subprocess.run(
            ["xcrun", *command], capture_output=True, text=True, errors="replace", timeout=limit_s,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"{name} does not answer for {limit_s:.0f} s: unplug it, plug it in again and unlock it"
        ) from error
    except OSError as error:
        raise DeviceError(
            f"xcrun does not start ({error.strerror}): a phone is reached from a Mac with Xcode"
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip() or done.stdout.strip() or f"it ended with status {done.returncode}"
    for pattern, advice in _TROUBLE:
        if re.search(pattern, said, re.I):
            raise DeviceError(f"{name}: {advice} ({_last(said)})")
    raise DeviceError(f"{name}: {_last(said)}")


def _last(said: str) -> str:
    """Of what a program says, the line that tells what is wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.upper().startswith("ERROR")]
    return (errors or lines or ["nothing"])[-1][:300]


def _build(sdk: str) -> str:
    signed = " -allowProvisioningUpdates DEVELOPMENT_TEAM=YOURS" if sdk == "iphoneos" else ""
    return (
        f"xcodebuild -project apps/ios/Classifier.xcodeproj -scheme Classifier -configuration Release -sdk {sdk} "
        f"-derivedDataPath apps/ios/build/xcode{signed} build, then repeat the command"
    )

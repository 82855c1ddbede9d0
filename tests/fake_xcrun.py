"""In place of xcrun: a Mac's devicectl and simctl with one phone and one simulator, which misbehave as `mode` says.

Run as a program by the script that `install` writes; its state is a folder. Written after the documentation of
devicectl (Xcode 16); no real one has been asked.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

APP = "org.dap.classifier"
PHONE = {
    "identifier": "AAAA-1",
    "connectionProperties": {"pairingState": "paired", "tunnelState": "connected", "transportType": "wired"},
    "deviceProperties": {"name": "My phone", "osVersionNumber": "18.1", "developerModeStatus": "enabled"},
    "hardwareProperties": {
        "udid": "0000-1", "platform": "iOS", "productType": "iPhone16,1", "marketingName": "iPhone 15 Pro",
    },
}  # fmt: skip
WATCH = {"identifier": "W", "hardwareProperties": {"platform": "watchOS"}, "deviceProperties": {"name": "Watch"}}
SIMULATOR = {"name": "iPhone 16", "udid": "SIM-1", "state": "Booted"}


class FakeXcrun:
    """What a test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        self.set(devices=[PHONE, WATCH], simulators=[SIMULATOR], mode="ok", installed=True)
        program = folder / "bin" / "xcrun"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {folder} "$@"\n')
        program.chmod(0o755)

    def set(self, **changes) -> None:
        """devices, simulators: what is listed; mode: what goes wrong; installed: whether the app is there."""
        path = self.folder / "state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**state, **changes}))

    def phone(self, **changes) -> None:
        """Change members of the phone's parts."""
        self.set(devices=[{**PHONE, **{part: {**PHONE[part], **new} for part, new in changes.items()}}])

    def answers(self, content: bytes) -> None:
        """What the app is to leave as result.json."""
        (self.folder / "answer").write_bytes(content)

    @property
    def container(self) -> Path:
        return self.folder / "container"

    @property
    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []


def fail(words: str) -> None:
    print(f"ERROR: {words}", file=sys.stderr)
    sys.exit(1)


def launch(folder: Path, state: dict, arguments: list[str]) -> None:
    """What the app does."""
    job = folder / "container" / "Documents" / "jobs" / arguments[arguments.index("--job") + 1]
    mode = state["mode"]
    (job / "progress.json").write_text('{"progress": ["images", 1, 6]}' if mode != "half a word" else '{"pro')
    if mode == "error":
        (job / "error.json").write_text('{"error": "model.mlpackage did not arrive whole"}')
    elif mode in ("ok", "half a word"):
        shutil.copy(folder / "answer", job / "result.json")
    elif mode == "truncated":
        (job / "result.json").write_bytes((folder / "answer").read_bytes()[:-40])
    elif mode == "not a word":
        (job / "progress.json").unlink()


def devicectl(folder: Path, state: dict, words: list[str]) -> None:
    mode = state["mode"]
    answer = Path(words[words.index("--json-output") + 1])
    options = dict(itertools.pairwise(words))
    result: dict = {}
    if words[:2] == ["list", "devices"]:
        if mode in ("not json", "nested"):
            answer.write_text("<html>" if mode == "not json" else "[" * 100_000)
            return
        result = {"devices": state["devices"]}
    elif words[:3] == ["device", "info", "apps"]:
        result = {"apps": [{"bundleIdentifier": APP}] if state["installed"] else []}
    elif words[:3] == ["device", "install", "app"]:
        result = {}
    elif words[:3] == ["device", "copy", "to"]:
        if mode == "full":
            fail("The operation couldn't be completed. No space left on device")
        if mode == "hangs":
            time.sleep(60)
        shutil.copytree(options["--source"], folder / "container" / options["--destination"])
    elif words[:3] == ["device", "copy", "from"]:
        source = folder / "container" / options["--source"]
        if mode == "gone":
            fail("The device disconnected during the operation.")
        if not source.exists():
            fail("The file couldn't be opened because there is no such file. (NSPOSIXErrorDomain error 2)")
        shutil.copy(source, options["--destination"])
    elif words[:3] == ["device", "process", "launch"]:
        if mode == "locked":
            fail("Unable to launch because the device was not, or could not be, unlocked.")
        if mode == "untrusted":
            fail("invalid code signature, or its profile has not been explicitly trusted by the user.")
        if "--" not in words[: words.index("--job")]:
            fail("Missing value for '-j <path>'")
        launch(folder, state, words)
    elif words[:3] == ["device", "info", "processes"]:
        running = mode not in ("ok", "half a word", "ends", "error", "truncated")
        path = "file:///private/var/containers/Bundle/Application/X/Classifier.app/Classifier"
        result = {
            "runningProcesses": [{"executable": path}] if running else [{"executable": "file:///sbin/launchd"}, 7]
        }
    else:
        fail(f"unknown: {words}")
    answer.write_text(json.dumps({"info": {"outcome": "success"}, "result": result}))


def simctl(folder: Path, state: dict, words: list[str]) -> None:
    if words[0] == "list":
        print(json.dumps({"devices": {"com.apple.CoreSimulator.SimRuntime.iOS-18-1": state["simulators"]}}))
    elif words[0] == "get_app_container":
        if not state["installed"]:
            fail("No such file or directory")
        (folder / "container").mkdir(exist_ok=True)
        print(folder / "container")
    elif words[0] == "install":
        state["installed"] = True
        (folder / "state.json").write_text(json.dumps(state))
    elif words[0] == "launch":
        if state["mode"] == "no start":
            print("nothing")
            return
        launch(folder, state, words)
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(["true" if state["mode"] == "ends" else "sleep", "5"], **quiet)
        if state["mode"] == "ends":
            process.wait()
        print(f"{APP}: {process.pid}")
    else:
        fail(f"unknown: {words}")


if __name__ == "__main__":
    there = Path(sys.argv[1])
    with open(there / "log", "a") as log:
        log.write(" ".join(sys.argv[2:]) + "\n")
    known = json.loads((there / "state.json").read_text())
    {"devicectl": devicectl, "simctl": simctl}[sys.argv[2]](there, known, sys.argv[3:])
    os._exit(0)

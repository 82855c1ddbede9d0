"""The Android SDK's own adb: one phone, and what is wrong with it in plain words."""

import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from targets.devices.connection import json_lines, last_line
from targets.devices.job import DeviceError

CONNECT_S = 30.0
ANSWER_S = 60.0
"""for a short command"""
SLOWEST_BYTES_PER_S = 100_000
"""what is slower than that is no cable"""
USB = "usb"
_NETWORK = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.%\w]+\]):\d{1,5}", re.ASCII)
_SERIAL = re.compile(r"\w(?:[\w.:-]*\w)?", re.ASCII)
_OFFLINE = "it is connected, but does not answer: unplug it, plug it in again and unlock it (or: adb reconnect offline)"
_STATES = {
    "unauthorized": "it has not allowed this computer yet: unlock it and confirm USB debugging on its screen",
    "authorizing": "it has not allowed this computer yet: unlock it and confirm USB debugging on its screen",
    "offline": _OFFLINE,
    "connecting": _OFFLINE,
    "recovery": "it is in recovery: start Android",
    "sideload": "it is in recovery: start Android",
    "bootloader": "it is in its boot loader: start Android",
    "no permissions": "this user may not use its USB device: install android-sdk-platform-tools-common",
}


class AdbConnection:
    """One phone that is ready. Its serial number is given with every command: an emulator may be there too."""

    def __init__(self, device: str) -> None:
        """device: a serial number, "usb" for the only one on USB, or host:port, which is connected to

        Raises ValueError for what is none of these, DeviceError saying what is wrong and what to do.
        """
        if not _SERIAL.fullmatch(device) and not _NETWORK.fullmatch(device):
            raise ValueError(f"DEVICE={device} is no serial number (adb devices), {USB}, or host:port")
        if _NETWORK.fullmatch(device):
            said = self._adb(["connect", device], CONNECT_S)
            if "connected to" not in said:  # adb's exit status tells nothing
                raise DeviceError(
                    f"{device}: adb cannot connect to it: {last_line(said)}. Is wireless debugging on there?"
                )
        self.serial = self.name = _chosen(device, self._adb(["devices", "-l"], CONNECT_S))

    def shell(self, command: str, limit_s: float = ANSWER_S) -> str:
        """What a command prints there. Raises DeviceError if it fails, with what it says."""
        return self._adb(["-s", self.serial, "shell", "-T", command], limit_s)

    def says(self, command: str, limit_s: float = ANSWER_S) -> str:
        """What a command prints there, whether or not it fails. Raises DeviceError if the phone is gone."""
        return self.shell(f"{command} || true", limit_s)

    def lines(self, command: str, silence_s: float) -> Iterator[dict[str, Any]]:
        """The objects that a command prints, a line of JSON each, as they come; other lines are passed over.

        Raises DeviceError if it fails, or is silent for so long.
        """
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = _started(["-s", self.serial, "shell", "-T", command], errors)
            yield from json_lines(process, self.name, silence_s)
            if process.returncode:
                errors.seek(0)
                raise DeviceError(self._explained(errors.read() or f"it ended with status {process.returncode}"))

    def push(self, paths: Sequence[Path], folder: str) -> None:
        """Copy files into a folder there. Raises DeviceError; the folder may hold part of them then."""
        size = sum(path.stat().st_size for path in paths)
        names = {path.name: str(path.resolve()) for path in paths}
        limit_s = ANSWER_S + size / SLOWEST_BYTES_PER_S
        if all(Path(real).name == name for name, real in names.items()):
            self._adb(["-s", self.serial, "push", *names.values(), f"{folder}/"], limit_s)
            return
        for name, real in names.items():  # links here have their own names there
            self._adb(["-s", self.serial, "push", real, f"{folder}/{name}"], limit_s)

    def pull(self, path: str, to: Path) -> None:
        """Copy a file from there. Raises DeviceError."""
        self._adb(["-s", self.serial, "pull", path, str(to)], ANSWER_S)

    def reverse(self, port: int) -> None:
        """Let the phone reach this machine's port as its own. Raises DeviceError."""
        self._adb(["-s", self.serial, "reverse", f"tcp:{port}", f"tcp:{port}"], ANSWER_S)

    def unreverse(self, port: int) -> None:
        """Take that back. Raises DeviceError."""
        self._adb(["-s", self.serial, "reverse", "--remove", f"tcp:{port}"], ANSWER_S)

    def _adb(self, arguments: Sequence[str], limit_s: float) -> str:
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = _started(arguments, errors)
            try:
                out, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired as error:
                process.kill()
                process.communicate()
                what = " ".join(arguments[-2:])
                raise DeviceError(
                    f"{self._who()} has not answered for {limit_s:.0f} s ({what[:60]}): is it still plugged in?"
                ) from error
            errors.seek(0)
            # what adb itself says, and a command there, may come by either way
            text, said = out.decode(errors="replace"), errors.read()
        if process.returncode:
            raise DeviceError(self._explained(f"{text}\n{said}"))
        return text

    def _who(self) -> str:
        return getattr(self, "name", "adb")

    def _explained(self, errors: str) -> str:
        """What adb or a command said, and what to do about it."""
        for pattern, meaning in (
            ("No space left|ENOSPC|not enough space", "its storage is full: make room there and repeat the command"),
            ("unauthorized", _STATES["unauthorized"]),
            ("device offline", _OFFLINE),
            (
                r"device '[^']*' not found|no devices/emulators|closed|connection reset|Broken pipe|protocol fault",
                "the connection broke off: is it still plugged in? Repeat the command",
            ),
            ("more than one device", "there is more than one: name its serial number as DEVICE"),
            ("Permission denied|EACCES", "it lets nobody write or run there"),
            ("cannot connect to daemon|failed to start daemon", "adb's own server does not start: adb kill-server"),
        ):
            if re.search(pattern, errors, re.IGNORECASE):
                return f"{self._who()}: {meaning} ({last_line(errors)})"
        return f"{self._who()}: {last_line(errors) or 'adb failed and says nothing'}"


def _started(arguments: Sequence[str], errors: Any) -> subprocess.Popen:
    """adb at work. Raises DeviceError without it."""
    try:
        return subprocess.Popen(["adb", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
    except OSError as error:
        raise DeviceError("there is no adb on this machine: sudo apt install adb") from error


def _chosen(device: str, listed: str) -> str:
    """The serial number of the phone that is meant, once it is ready. Raises DeviceError."""
    rows = [line.split(None, 1) for line in listed.splitlines()[1:] if line.strip() and not line.startswith("*")]
    states = {row[0]: row[1] if len(row) > 1 else "" for row in rows}
    if device == USB:
        found = [serial for serial, state in states.items() if _is_usb(serial, state)]
        if len(found) > 1:
            raise DeviceError(f"there are {len(found)} phones on USB: name one, DEVICE={' or DEVICE='.join(found)}")
        if not found:
            raise DeviceError("there is no phone on USB: plug it in, switch USB debugging on and unlock it")
        device = found[0]
    if device not in states:
        known = f"connected: {', '.join(states)}" if states else "no phone is connected"
        raise DeviceError(f"{device} is not connected to this machine ({known})")
    for state, meaning in _STATES.items():
        if states[device].startswith(state):
            raise DeviceError(f"{device}: {meaning}")
    if not states[device].startswith("device"):
        raise DeviceError(f"{device}: adb calls it {states[device][:60]!r}; unplug it and plug it in again")
    return device


def _is_usb(serial: str, state: str) -> bool:
    if serial.startswith("emulator-") or _NETWORK.fullmatch(serial):
        return False
    return "usb:" in state or not state.startswith("device")  # of one that is not ready adb says no more


def quoted(*words: str) -> str:
    """Words for the shell there."""
    return shlex.join(words)

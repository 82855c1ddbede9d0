"""The system's own ssh and scp: one connection to one machine, and what is wrong with it in plain words."""

import contextlib
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from targets import strict
from targets.devices.job import DeviceError

CONNECT_S = 10
"""for the connection and the greeting together"""
ALIVE_S, ALIVE_COUNT = 5, 3
"""a machine that leaves that many questions in a row unanswered, one every ALIVE_S, is gone"""
ANSWER_S = 60.0
"""for a short command"""
MAX_LINE = 1_000_000
"""bytes"""
PERSIST = "10m"
"""how long the connection outlives a process that could not close it"""

_ADDRESS = re.compile(
    r"(?:(?P<user>\w[\w.-]*)@)?(?:\[(?P<ip6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>\w[\w.-]*))(?::(?P<port>\d{1,5}))?",
    re.ASCII,
)
_KILLED = (128 + 9, 128 + 15)
_NOT_FOUND = 127
_SSH_FAILED = 255
"""ssh's own failures, and commands that a signal has ended"""


class Connection:
    """One machine. Host keys are checked as the user's own configuration says; nothing here turns that off."""

    def __init__(self, address: str) -> None:
        """Nothing is connected yet. Raises ValueError for what is not [user@]host[:port], or a name that ssh knows."""
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise ValueError(f"DEVICE={address} is not [user@]host[:port]; an IPv6 address stands in brackets")
        self.name, self.port = address, match["port"]
        before = f"{match['user']}@" if match["user"] else ""
        self.destination = before + (match["ip6"] or match["host"])
        # scp ends the host at the first colon that is not in brackets
        self._remote = f"{before}[{match['ip6']}]" if match["ip6"] else self.destination
        # Without a terminal nobody can be asked for a password, or about a host key that is not known yet.
        self._asks = sys.stdin is not None and sys.stdin.isatty()
        # of a short path: that of a socket may have some 100 characters
        folder = Path(tempfile.mkdtemp(prefix="dap-", dir="/tmp"))
        self._options = [f"-oControlPath={folder / 'c'}", f"-oConnectTimeout={CONNECT_S}"]
        # whatever the user's own configuration forwards, a board has no use for, and its root could use
        self._options += ["-oClearAllForwardings=yes", "-oForwardAgent=no", "-oForwardX11=no"]
        self._options += [f"-oServerAliveInterval={ALIVE_S}", f"-oServerAliveCountMax={ALIVE_COUNT}"]
        self._options += ([f"-oPort={self.port}"] if self.port else []) + ([] if self._asks else ["-oBatchMode=yes"])
        self.close = weakref.finalize(self, _close, ["ssh", *self._options, "-Oexit", self.destination], folder)

    def open(self) -> None:
        """Make the connection that everything else goes through, if it is not there. Raises DeviceError."""
        if self.is_open():
            return
        command = ["ssh", *self._options, "-oControlMaster=yes", f"-oControlPersist={PERSIST}", "-fNT"]
        # stderr is no pipe: the process that stays in the background would hold it open
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            try:
                done = subprocess.run(
                    [*command, self.destination],
                    stdin=None if self._asks else subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    timeout=None if self._asks else 2 * CONNECT_S + 5,
                )
            except FileNotFoundError as error:
                raise DeviceError("there is no ssh on this machine: sudo apt install openssh-client") from error
            except subprocess.TimeoutExpired as error:
                raise DeviceError(self._explained("timed out")) from error
            errors.seek(0)
            if done.returncode:
                raise DeviceError(self._explained(errors.read()))

    def is_open(self) -> bool:
        """Whether the connection is there, as far as this side knows."""
        command = ["ssh", *self._options, "-Ocheck", self.destination]
        try:
            return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
        except FileNotFoundError:
            return False

    def answer(self, command: str, source: str = "", silence_s: float = ANSWER_S) -> dict[str, Any]:
        """The last line that `lines` gives, signs of life aside, for a command with one answer. Raises DeviceError."""
        found = [line for line in self.lines(command, source, silence_s) if "alive" not in line]
        if not found:
            raise DeviceError(f"{self.name} ran a command and answered nothing; does its shell start as it should?")
        return found[-1]

    def lines(self, command: str, source: str = "", silence_s: float = ANSWER_S) -> Iterator[dict[str, Any]]:
        """The objects that a command prints, a line of JSON each, as they come; other lines are passed over.

        command: for the shell there;  source: its standard input;  silence_s: longest time between two lines
        When the caller stops listening, the command loses its connection. Raises DeviceError if it fails or is silent.
        """
        with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+", errors="replace") as errors:
            given.write(source)
            given.seek(0)
            process = subprocess.Popen(
                ["ssh", *self._options, "-T", self.destination, command],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            yield from json_lines(process, self.name, silence_s)
            if process.returncode:
                errors.seek(0)
                raise DeviceError(self._failed(process.returncode, errors.read()))

    def push(self, paths: Sequence[Path], folder: str, limit_s: float) -> None:
        """Copy files and folders into a folder there. Raises DeviceError."""
        self._scp(["-r", *map(str, paths), f"{self._remote}:{folder}/"], limit_s)

    def fetch(self, path: str, folder: Path, limit_s: float) -> None:
        """Copy a file from there into a folder here. Raises DeviceError."""
        self._scp([f"{self._remote}:{path}", str(folder)], limit_s)

    def _scp(self, arguments: list[str], limit_s: float) -> None:
        try:
            done = subprocess.run(
                ["scp", "-q", *self._options, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{self.name}: copying took longer than {limit_s:.0f} s; is the network slow?") from error
        if done.returncode:
            raise DeviceError(self._failed(done.returncode, done.stderr))

    def _failed(self, code: int, errors: str) -> str:
        """What a command that ended with `code` died of."""
        if code == _SSH_FAILED and not self.is_open():
            return self._explained(errors or "the connection broke off")
        if code in (_SSH_FAILED, *_KILLED):
            return f"{self.name}: what ran there was killed; has its memory run out? Repeat the command"
        if code == _NOT_FOUND:
            return f"{self.name} has no python3: sudo apt install python3"
        return f"{self.name}: {last_line(errors) or f'the command ended with status {code}'}"

    def _explained(self, errors: str) -> str:
        """ssh's complaint, and what to do about it."""
        port = f" -p {self.port}" if self.port else ""
        host = self.destination.rpartition("@")[2]
        known_as = f"[{host}]:{self.port}" if self.port else host
        for pattern, meaning in (
            (
                "HOST IDENTIFICATION HAS CHANGED",
                "the host key is not the one that is known. If you have installed its system anew: "
                f"ssh-keygen -R '{known_as}'. If not, somebody may be in between: do not connect",
            ),
            (
                "Host key verification failed|host key is known",
                f"the host key is not known here yet: ssh{port} {self.destination} once, and compare what it shows",
            ),
            ("Permission denied|Too many authentication", f"it lets nobody in: ssh-copy-id{port} {self.destination}"),
            (
                "Could not resolve|Name or service not known",
                "there is no machine of that name: is it spelt right, switched on and in this network? Try its address",
            ),
            (
                "Connection refused",
                "it is there, but no ssh answers: switch ssh on there (raspi-config, Interface Options)",
            ),
            (
                "timed out|No route to host|Network is unreachable|not responding",
                "it does not answer: is it switched on and in this network?",
            ),
            (
                "broke off|Broken pipe|closed by|Connection reset|Connection closed|disconnect",
                "the connection broke off: is it still switched on and in this network? Repeat the command",
            ),
        ):
            if re.search(pattern, errors):
                return f"{self.name}: {meaning} ({last_line(errors)})"
        return f"{self.name}: {last_line(errors) or 'ssh failed and says nothing'}"


def json_lines(process: subprocess.Popen, name: str, silence_s: float) -> Iterator[dict[str, Any]]:
    """The objects that a process prints, a line of JSON each, as they come; other lines are passed over.

    The process has ended afterwards: by itself, or because nobody listens any more.
    name: of the machine that it runs on;  silence_s: longest time between two lines
    Raises DeviceError if it is silent for longer, or prints a line without an end.
    """
    assert process.stdout is not None, "it was asked for"
    try:
        for line in _lines(process, name, silence_s):
            with contextlib.suppress(ValueError):  # something that a library or the shell's start-up prints
                yield strict.parse_json(line, dict[str, Any], "a line", source="device")
        process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _lines(process: subprocess.Popen, name: str, silence_s: float) -> Iterator[bytes]:
    assert process.stdout is not None, "it was asked for"
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(silence_s):
            chunk = process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
            if len(rest) > MAX_LINE:
                raise DeviceError(f"{name} prints a line without an end: {rest[:100].decode(errors='replace')}")
    raise DeviceError(f"{name} has shown no sign of life for {silence_s:g} s; repeat the command")


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _close(command: list[str], folder: Path) -> None:
    if (folder / "c").exists():
        subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    shutil.rmtree(folder, ignore_errors=True)

"""A Raspberry Pi or any other Linux board over the system's own ssh and scp.

Nothing there runs as root, and all of it lies in ~/.dap (see board_setup.py). A job is pushed into a folder that gets
its name once it is whole, run by `python3 -m targets.devices.board`, fetched, and removed whatever has happened. A
deployment that is cut off, at either end, leaves nothing that the next one would use.
"""

import contextlib
import getpass
import json
import math
import shlex
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from targets import Target, strict
from targets.devices.board_setup import OLDEST_PYTHON
from targets.devices.connection import ANSWER_S, Connection
from targets.devices.job import (
    RESULT,
    Description,
    DeviceError,
    DeviceResult,
    FormatUnavailable,
    Job,
    Progress,
    read_result,
    write_job,
)
from targets.formats import boards

SILENCE_S = 60.0
"""a runner that has shown no sign of life for that long, of one every other second, has hung"""
STALLED_S = 300.0
"""likewise one that shows life and gets no further, beside the time that it measures for: the slowest step is to
compile ExecuTorch's functions, or to warm up"""
LEAVE_S = 8.0
"""for clearing up: somebody who has pressed Ctrl-C does not wait longer"""
SLOWEST_BYTES_PER_S = 100_000
"""what is slower than that is no network"""
FULL_BYTES = 1_000_000
"""a disk with less than that is why a copy has failed"""
UNNAMED = "this machine"
"""what measure.describe calls a machine without a device tree"""

HERE = Path(__file__).parent
SETUP = HERE / "board_setup.py"
PACKAGE = (
    "artifact.py",
    "formats.py",
    "strict.py",
    "latency.py",
    "picture.py",
    "resize.py",
    *(file for board in boards().values() for file in board.files),
    "devices/__init__.py",
    "devices/job.py",
    "devices/measure.py",
    "devices/board.py",
    "devices/board_setup.py",
)
"""what a board runs, of targets/; its targets/__init__.py is empty"""


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """What board_setup.py finds on a board; likewise the answers below."""

    python: tuple[int, int]
    machine: str
    bits: int
    folder: str
    pythons: dict[str, tuple[str, ...]]
    """formats that each interpreter there has the packages for"""


@dataclass(frozen=True, kw_only=True)
class _Room:
    folder: str = ""
    full: int | None = None
    """bytes that are free, if these are too few"""


@dataclass(frozen=True, kw_only=True)
class _Folder:
    folder: str


@dataclass(frozen=True, kw_only=True)
class _Ended:
    free: int
    """bytes, before the job was removed"""


@dataclass(frozen=True, kw_only=True)
class _Installed:
    pythons: dict[str, tuple[str, ...]] = field(default_factory=dict)
    error: str | None = None


class Ssh:
    """A board that answers over ssh."""

    def __init__(self, connection: Connection, say: Callable[[str], None]) -> None:
        self.name = connection.name
        self.description: Description
        self._connection, self._say = connection, say
        self._pythons: dict[str, tuple[str, ...]] = {}
        """formats that each interpreter there has the packages for"""

    @staticmethod
    def connect(device: str, target: Target, say: Callable[[str], None], format: str | None = None) -> "Ssh":
        """Connect, look at the board, and give it what runs a format if it has nothing that does.

        device: [user@]host[:port], or a name from ssh's configuration;  format: None: the target's first one
        Raises ValueError for what is no address, DeviceError saying what is wrong and what to do.
        """
        board = Ssh(Connection(device), say)
        try:
            board._connection.open()
            board._look(target)
            python = board._python_for(format or target.formats[0])
            with board._pushed([]) as there:
                answer = board._connection.answer(f"cd {there} && {python} -m targets.devices.board")
                found: Description = board._known(Description, answer)
            # what has no name of its own is called what the user calls it; "this machine" is another one
            board.description = found if found["device"] != UNNAMED else {**found, "device": device}
        except BaseException:
            board._connection.close()
            raise
        return board

    def run(self, job: Job, folder: Path, progress: Progress) -> DeviceResult:
        """Do the job there. Raises DeviceError; FormatUnavailable if it is only this format that it cannot run."""
        self._connection.open()
        python = self._python_for(job.format)
        with tempfile.TemporaryDirectory() as name:
            local = Path(name)
            with self._pushed([write_job(job, local), *(folder / file for file in job.sha256)]) as there:
                command = f"cd {there} && {python} -m targets.devices.board . {shlex.quote(_who())}"
                self._follow(command, progress, STALLED_S + (job.protocol.longest_s if job.protocol else 0))
                (path,) = shlex.split(there)
                self._connection.fetch(f"{path}/{RESULT}", local, ANSWER_S)
            result = read_result(local / RESULT, job)
        return replace(result, device={**result.device, "device": self.description["device"]})

    def _look(self, target: Target) -> None:
        """Whether it can do jobs for the target at all. Raises DeviceError."""
        found: _Probe = self._setup("probe", _Probe, checks=_checks())
        if found.bits != 64:
            raise DeviceError(
                f"{self.name} has a 32-bit system ({found.machine}): install the 64-bit Raspberry Pi OS on it"
            )
        if target.machines and found.machine not in target.machines:
            raise DeviceError(
                f"{self.name} is {found.machine}, but TARGET={target.name} is {' or '.join(target.machines)}: "
                "name another DEVICE or TARGET"
            )
        if found.python < OLDEST_PYTHON:
            there, oldest = (".".join(map(str, version)) for version in (found.python, OLDEST_PYTHON))
            raise DeviceError(
                f"{self.name} has Python {there}, and {oldest} is needed: install Raspberry Pi OS bookworm or newer"
            )
        self._pythons = found.pythons

    def _python_for(self, format: str) -> str:
        """The interpreter there that has the format's packages, as its shell takes it; they are installed if need be.

        Raises FormatUnavailable.
        """
        if not (python := self._capable(format)):
            if (known := boards().get(format)) is None:
                raise FormatUnavailable(f"{self.name}: boards do not run {format}")
            self._say(f"  {self.name}: installing what runs {format} into its ~/.dap/env; once, for minutes")
            steps = [
                [(HERE / name).read_text(encoding="utf-8"), options] for name, options in known.requirements.items()
            ]
            found: _Installed = self._setup(
                "install", _Installed, silence_s=SILENCE_S, steps=steps, who=_who(), format=format, checks=_checks()
            )
            self._pythons = found.pythons or self._pythons
            python = self._capable(format)
            if not python:
                raise FormatUnavailable(
                    f"{self.name}: what runs {format} could not be installed ({found.error or 'it does not load'})"
                    f". By hand, there: {known.by_hand}"
                )
        return shlex.quote(python)

    def _capable(self, format: str) -> str | None:
        return next((python for python, formats in self._pythons.items() if format in formats), None)

    @contextmanager
    def _pushed(self, files: Sequence[Path]) -> Iterator[str]:
        """A folder there, as its shell takes it, with the files and the runner; removed afterwards."""
        number = uuid.uuid4().hex
        try:
            with tempfile.TemporaryDirectory() as name:
                package = _package(Path(name) / "targets")
                self._push(number, [package, *files])
            yield shlex.quote(self._setup("commit", _Folder, job=number).folder)
        finally:
            with contextlib.suppress(DeviceError):  # what is left there then, a later deployment removes
                self._setup("end", _Ended, silence_s=LEAVE_S, job=number)

    def _push(self, number: str, paths: Sequence[Path]) -> None:
        files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
        size = sum(file.stat().st_size for file in files)
        room: _Room = self._setup("begin", _Room, job=number, size=size)
        if room.full is not None:
            raise DeviceError(self._full(room.full, size))
        try:
            self._connection.push(paths, room.folder, ANSWER_S + size / SLOWEST_BYTES_PER_S)
        except DeviceError as error:
            # sftp, which scp uses, says no more than "Failure" of a full disk
            if self._free_at_end(number) < FULL_BYTES:
                raise DeviceError(self._full(0, size)) from error
            raise

    def _free_at_end(self, number: str) -> float:
        """Bytes that were free before a job was removed there; infinite if it does not answer."""
        try:
            return self._setup("end", _Ended, silence_s=LEAVE_S, job=number).free
        except DeviceError:
            return math.inf

    def _full(self, free: int, size: int) -> str:
        return (
            f"{self.name}: its disk is full. {size / 1e6:.1f} MB are to be pushed, {free / 1e6:.1f} MB are free; "
            "make room there and repeat the command"
        )

    def _follow(self, command: str, progress: Progress, stalled_s: float) -> None:
        """Run the runner there to its end. Raises DeviceError if it has nothing to show for it, or gets no further."""
        moved_at = time.monotonic()
        for line in self._connection.lines(command, silence_s=SILENCE_S):
            if "progress" in line:
                progress(*self._known(tuple[str, int, int], line["progress"]))
                moved_at = time.monotonic()
            elif "error" in line:
                kind = FormatUnavailable if line.get("runtime") is True else DeviceError
                raise kind(f"{self.name}: {line['error']}")
            elif time.monotonic() - moved_at > stalled_s:
                raise DeviceError(
                    f"{self.name} is alive, but its runner gets no further for {stalled_s:g} s: the runtime hangs, or "
                    "the board is far too slow for this model; repeat the command"
                )

    def _setup(self, command: str, kind: Any, silence_s: float = ANSWER_S, **arguments: Any) -> Any:
        """What board_setup.py answers there. Raises DeviceError, also if another deployment has the board."""
        shell = f"python3 - {command} {shlex.quote(json.dumps(arguments))}"
        answer = self._connection.answer(shell, SETUP.read_text(encoding="utf-8"), silence_s)
        if "busy" in answer:
            raise DeviceError(f"{self.name} is in use by {answer['busy']}; repeat the command when it is free")
        if "error" in answer and command != "install":
            raise DeviceError(f"{self.name}: {answer['error']}")
        return self._known(kind, answer)

    def _known(self, kind: Any, answer: Any) -> Any:
        try:
            return strict.parse(kind, answer, self.name, source="device")
        except ValueError as error:
            raise DeviceError(f"{error}: it answers something else than was asked; repeat the command") from error


def _package(folder: Path) -> Path:
    """Put together what a board runs."""
    for name in PACKAGE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE.parent / name, folder / name)
    (folder / "__init__.py").touch()
    return folder


def _checks() -> dict[str, str]:
    """What board_setup.py asks an interpreter there, by format."""
    return {name: board.check for name, board in boards().items()}


def _who() -> str:
    """Who deploys, for others who want the board meanwhile."""
    return f"{getpass.getuser()} on {socket.gethostname()}"

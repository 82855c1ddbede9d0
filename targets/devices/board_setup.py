"""What a board is asked before its job, and what is cleared up after it.

ssh.py feeds this very file to the board's python3: `python3 - COMMAND ARGUMENTS`, ARGUMENTS an object in JSON; the
answer is a line of JSON with "error" in it if the command failed. Needs the standard library only, and is written so
that Python 3.7 can still read it and tell how old it is.

Everything of ours lies in ~/.dap: jobs/ (a folder each, .partial until it is whole), env/ (an environment with the
pinned runtimes, if the system's Python has none), executorch/ (what executorch_program.py compiled), lock, and
env.unfinished.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path("~/.dap").expanduser()
JOBS, ENV, LOCK = FOLDER / "jobs", FOLDER / "env", FOLDER / "lock"
UNFINISHED = FOLDER / "env.unfinished"
"""there while packages are being installed, or removed: an environment beside it is made anew"""
PYTHON = str(ENV / "bin" / "python")

OLDEST_PYTHON = (3, 11)
LEFTOVER_S = 24 * 3600.0
SPARE_BYTES = 8_000_000
"""to be left on the disk beside what is pushed: results, and what the system needs"""
LOCK_WAIT_S = 3.0
"""a runner whose deployment has ended takes a moment to notice"""
HEARTBEAT_S = 2.0

CAPABLE = """
import json, sys
able = []
for format, check in json.loads(sys.argv[1]).items():
    try:
        exec(check, {})
        able.append(format)
    except Exception:
        pass
print(json.dumps(able))
"""
"""what an interpreter is asked; sys.argv: `checks` as `probe` has them"""

_printing = threading.Lock()


class Busy(Exception):
    """Another deployment uses the board; the text says whose it is, and since when."""


@contextlib.contextmanager
def exclusive(who: str, folder: str) -> Iterator[None]:
    """Hold the board for one deployment; the system lets go of it when the process ends, however it does.

    who: told to others;  folder: the job's, by which `end` knows its own runner. Raises Busy.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(LOCK, "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(holder()) from None
                time.sleep(0.1)
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        file.write(json.dumps({"who": who, "since": since, "pid": os.getpid(), "folder": folder}))
        file.flush()
        yield


def holder() -> str:
    """Who has the lock, since when by the board's clock."""
    content = _lock_content()
    return f"{content.get('who', 'another deployment')}, since {content.get('since', 'a moment ago')}"


def busy() -> str | None:
    """The holder of the lock, None if it is free."""
    with contextlib.suppress(FileNotFoundError), open(LOCK, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder()
    return None


@contextlib.contextmanager
def alive() -> Iterator[None]:
    """Show a sign of life now and then: much says nothing for minutes. Costs a measurement some 50 µs every 2 s."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_S):
            say(alive=True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def say(**line: Any) -> None:
    """Print a line. If nobody listens any more, nobody waits for what comes of it: the process ends, and its lock."""
    with _printing:
        try:
            print(json.dumps(line), flush=True)
        except OSError:
            if os.getpgrp() == os.getpid():  # what it has started is its own, and ends with it
                os.killpg(0, signal.SIGKILL)
            os._exit(1)


def probe(checks: dict[str, str]) -> dict[str, Any]:
    """What this board is and has; pythons: as `_pythons` has them.

    checks: by format, Python that raises where an interpreter lacks what runs it
    """
    found: dict[str, Any] = {
        "python": list(sys.version_info[:2]),
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 2**32 else 32,  # a 32-bit system may have a 64-bit kernel
        "folder": str(FOLDER),
        "pythons": {},
    }
    if sys.version_info >= OLDEST_PYTHON and found["bits"] == 64:
        JOBS.mkdir(parents=True, exist_ok=True)
        found["pythons"] = _pythons(checks)
    return found


def begin(job: str, size: int) -> dict[str, Any]:
    """Make room for a job of `size` bytes: the folder that it is to be pushed to, unless the board is busy or full."""
    who = _wait_until_free()
    if who:
        return {"busy": who}
    JOBS.mkdir(parents=True, exist_ok=True)
    for left in JOBS.iterdir():
        with contextlib.suppress(OSError):  # another deployment may clear up, too
            if time.time() - left.stat().st_mtime > LEFTOVER_S:
                shutil.rmtree(left)
    free = _free()
    if free < size + SPARE_BYTES:
        return {"full": free}
    partial = JOBS / f"{job}.partial"
    partial.mkdir()
    return {"folder": str(partial)}


def commit(job: str) -> dict[str, Any]:
    """Everything has been pushed: give the folder its name."""
    os.rename(JOBS / f"{job}.partial", JOBS / job)
    return {"folder": str(JOBS / job)}


def end(job: str) -> dict[str, Any]:
    """Remove the job, whatever state it is in, and end its runner if that still runs. free: bytes before that."""
    free = _free()
    content = _lock_content()
    if busy() and content.get("folder") == str((JOBS / job).resolve()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(content["pid"], signal.SIGKILL)
    for path in (JOBS / job, JOBS / f"{job}.partial"):
        shutil.rmtree(path, ignore_errors=True)
    return {"free": free}


def install(steps: list[list[Any]], who: str, format: str, checks: dict[str, str]) -> dict[str, Any]:
    """Make the environment, or what it lacks to run `format`.

    steps: of each requirements file its text and options of pip for it;  checks: as `probe` has them
    Nothing is compiled. An environment that could not be made is not left behind. One in which nothing works (after a
    power cut, or with another Python since the system was upgraded) is made anew; if it is the format alone that does
    not work although it is installed, its packages are installed over themselves.
    """
    if os.getpgrp() != os.getpid():
        os.setpgrp()  # venv and pip end with this process, see `say`
    with exclusive(who, str(ENV)), alive():
        anew = UNFINISHED.exists() or not _formats(PYTHON, checks)
        UNFINISHED.touch()
        try:
            if anew:
                shutil.rmtree(ENV, ignore_errors=True)
                _run(["python3", "-m", "venv", str(ENV)])
            for again in ([], ["--force-reinstall"]):
                for text, options in steps:
                    _pip(text, [*options, *again])
                    anew = False
                if format in _formats(PYTHON, checks):
                    break
        finally:
            if anew:
                shutil.rmtree(ENV, ignore_errors=True)
            os.sync()  # the mark must not be gone from the disk before the packages are on it
            UNFINISHED.unlink(missing_ok=True)
    return {"pythons": _pythons(checks)}


def _pip(requirements: str, options: list[str]) -> None:
    file = ENV / "requirements.txt"
    file.write_text(requirements, encoding="utf-8")
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--require-hashes"]
    _run([*command, "--only-binary", ":all:", *options, "-r", str(file)])


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        if "ensurepip is not available" in done.stdout or "No module named venv" in done.stdout:
            raise OSError("its Python makes no environments: sudo apt install python3-venv")
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR", "error"))] or lines[-1:]
        raise OSError("; ".join(errors[:2]) or f"{command[0]} ended with {done.returncode}")


def _pythons(checks: dict[str, str]) -> dict[str, list[str]]:
    """The formats that each interpreter can run; the environment comes first: what is in it is known."""
    candidates = ["python3"] if UNFINISHED.exists() else [PYTHON, "python3"]
    return {name: _formats(name, checks) for name in candidates}


def _formats(python: str, checks: dict[str, str]) -> list[str]:
    """Formats that an interpreter has the packages for; none if there is no such interpreter."""
    try:
        command = [python, "-c", CAPABLE, json.dumps(checks)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return []


def _wait_until_free() -> str | None:
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        who = busy()
        if who is None or time.monotonic() >= deadline:
            return who
        time.sleep(0.1)


def _lock_content() -> dict[str, Any]:
    try:
        return dict(json.loads(LOCK.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # nobody has it, or whoever takes it has not written yet
        return {}


def _free() -> int:
    """Bytes that this user may still write."""
    return shutil.disk_usage(FOLDER).free


def main(command: str, arguments: str) -> None:
    """Do one command of this file and print its answer."""
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "probe": probe,
        "begin": begin,
        "commit": commit,
        "end": end,
        "install": install,
    }
    try:
        say(**commands[command](**json.loads(arguments)))
    except Busy as error:
        say(busy=str(error))
    except OSError as error:
        say(error=str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])

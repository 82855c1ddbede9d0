"""The runner on a board: does the job in a folder and leaves the result there.

    python3 -m targets.devices.board FOLDER [WHO]    do the job;  WHO is told to others who want the board meanwhile
    python3 -m targets.devices.board                 say what this board is

Needs the standard library, numpy and the format's runtime. Prints lines of JSON: {"progress": [what, done, total]}
about once a second, {"alive": true} meanwhile, and {"error": text, "runtime": whether it is the runtime that is
missing} if nothing came of it. Exit status: 0 with a result, 1 without, 3 without a runtime, 4 if the board is in use.
"""

import sys
import time
from pathlib import Path

from targets import executorch_program, tflite_program
from targets.artifact import Program, RuntimeUnavailable
from targets.devices.board_setup import Busy, alive, exclusive, say
from targets.devices.job import RESULT, DeviceError, read_job, write_result
from targets.devices.measure import Load, describe, run

PROGRESS_S = 1.0
FAILED, NO_RUNTIME, IN_USE = 1, 3, 4


def load_tflite(path: Path, threads: int) -> Program:
    """As tflite_program.load. The file has arrived whole: if it is refused, the interpreter may be too old for it."""
    try:
        return tflite_program.load(path, threads)
    except ValueError as error:
        _, name, installed = tflite_program.find_interpreter()
        raise ValueError(
            f"{name} {installed} does not take it ({error.__cause__ or error}). A newer one may, in an environment of "
            "its own there: python3 -m venv ~/.dap/env && ~/.dap/env/bin/pip install --upgrade numpy ai-edge-litert"
        ) from error


LOADERS: dict[str, Load] = {"tflite": load_tflite, "executorch": executorch_program.load}
"""of top-level functions: peak memory is measured in another process"""


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    if not arguments:
        say(**describe())
        return 0
    folder, who = Path(arguments[0]).resolve(), (arguments[1:] or ["somebody at the board"])[0]
    try:
        with exclusive(who, str(folder)), alive():
            job = read_job(folder)
            if job.format not in LOADERS:
                raise DeviceError(f"this runner has no {job.format}; it has {', '.join(LOADERS)}")
            write_result(run(job, folder, LOADERS[job.format], Reporter()), folder / RESULT)
    except Busy as error:
        say(error=f"it is in use by {error}", runtime=False)
        return IN_USE
    except RuntimeUnavailable as error:
        say(error=str(error), runtime=True)
        return NO_RUNTIME
    except (DeviceError, OSError, MemoryError) as error:
        say(error=str(error) or type(error).__name__, runtime=False)
        return FAILED
    return 0


class Reporter:
    """Tells of progress, but not more often than somebody can read."""

    def __init__(self) -> None:
        self.last: tuple[str, float] = ("", 0.0)

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or what != self.last[0] or now - self.last[1] >= PROGRESS_S:
            self.last = (what, now)
            say(progress=[what, done, total])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

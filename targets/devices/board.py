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

from targets.artifact import RuntimeUnavailable
from targets.devices.board_setup import Busy, alive, exclusive, say
from targets.devices.job import RESULT, DeviceError, read_job, write_result
from targets.devices.measure import describe, run
from targets.formats import boards

PROGRESS_S = 1.0
FAILED, NO_RUNTIME, IN_USE = 1, 3, 4


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    if not arguments:
        say(**describe())
        return 0
    folder, who = Path(arguments[0]).resolve(), (arguments[1:] or ["somebody at the board"])[0]
    try:
        with exclusive(who, str(folder)), alive():
            job = read_job(folder)
            known = boards()
            if job.format not in known:
                raise DeviceError(f"this runner has no {job.format}; it has {', '.join(known)}")
            write_result(run(job, folder, known[job.format].load, Reporter()), folder / RESULT)
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

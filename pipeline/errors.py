"""What can go wrong for a user, and the exit code that goes with it."""

import textwrap

TOLD = "the first process tells"
"""note on an error that all processes of a training have, and one is to print"""
DONE, BUDGET_MISSED, WRONG_USE, ENVIRONMENT, DEFECT, INTERRUPTED = 0, 1, 2, 3, 70, 130


class EnvironmentLacks(Exception):
    """The command is right but this machine cannot do it: no network, no runtime, no device. Exit code 3."""


class Interrupted(BaseException):
    """Ctrl-C. Everything computed up to a checkpoint is on disk. Exit code 130, as shells expect.

    Takes the place of KeyboardInterrupt, which the command line's library would turn into exit code 1. Like that, it is
    no Exception, so that no library swallows it.
    """


def short(error: Exception) -> str:
    """The first line that an error has to say, cut between words if it is long."""
    return textwrap.shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 300, placeholder=" ...")

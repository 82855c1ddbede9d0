"""What the command line shows: results on standard output, everything else on standard error."""

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

WIDE = 120
"""characters in a line where it goes to a pipe, which has no width of its own"""
messages = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDE)
output = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


speaker = ""
"""what errors begin with, where one of several processes tells its own"""


def silence() -> None:
    """For all but the first of several processes: nothing is shown."""
    messages.quiet = output.quiet = True


def speak(name: str) -> None:
    """What follows is to be shown, and errors as those of a process of this name."""
    global speaker
    speaker, messages.quiet = name, False


def tell(line: str) -> None:
    """One line of the result; paths in it are not broken."""
    output.print(escape(line), soft_wrap=True)


def make(verb: str, **options: object) -> str:
    """The make command with the options that were given (not None), ready to be pasted into a shell."""
    given = [f"{key.upper()}={shlex.quote(f'{value}')}" for key, value in options.items() if value is not None]
    return " ".join(["make", verb, *given])


def say(line: str) -> None:
    """One line about what is being done."""
    messages.print(escape(line), soft_wrap=True)


@contextlib.contextmanager
def progress(*amounts: ProgressColumn) -> Iterator:
    """Bars on a terminal; elsewhere (a log file, CI) a line every ten seconds.

    amounts: columns that show how much is done, if it is not counted one by one
    """
    if not messages.is_terminal:
        shown_at = 0.0

        def line(stage: str, done: int, total: int, values: dict[str, float]) -> None:
            nonlocal shown_at
            if done == total or time.monotonic() - shown_at > 10:
                shown_at = time.monotonic()
                left = f"  {about(values['left_s'])} left" if values.get("left_s") else ""
                say(f"  {stage} {done}/{total}  {_figures(values)}{left}")

        yield line
        return
    columns = (TextColumn("  {task.description:9}"), BarColumn(), *(amounts or [MofNCompleteColumn()]),
               TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))  # fmt: skip
    with Progress(*columns, console=messages) as bars:
        tasks: dict[str, int] = {}

        def bar(stage: str, done: int, total: int, values: dict[str, float]) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, figures="")
            bars.update(tasks[stage], completed=done, figures=_figures(values))  # type: ignore[arg-type]

        yield bar


def _figures(values: dict[str, float]) -> str:
    names = {"loss": "loss {:.3f}", "top1": "val top-1 {:.2f} %"}
    return "  ".join(form.format(values[key]) for key, form in names.items() if key in values)


def show(table: Table) -> None:
    """A table about what is being done."""
    messages.print(table)


def print_table(rows: list[dict], columns: tuple[str, ...]) -> None:
    """Some columns of rows; every row has them all."""
    table = Table()
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in columns))
    output.print(table)


def count(number: int, what: str) -> str:
    """A number and what is counted: 1 epoch, 1,200 steps."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def about(seconds: float) -> str:
    """A duration as an estimate may say it, in words: no more digits than it has."""
    if seconds < 60:
        return "less than a minute"
    minutes = seconds / 60
    if minutes < 90:
        step = 1 if minutes < 10 else 5
        rounded = max(1, step * round(minutes / step))
        return f"about {count(rounded, 'minute')}"
    hours = minutes / 60
    rounded_h = round(2 * hours) / 2 if hours < 10 else float(round(hours))
    return f"about {rounded_h:g} hours"

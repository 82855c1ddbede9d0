"""What training runs on, and when it stops: the only place that knows processes, device, precision and signals."""

import signal
from typing import Any

import torch
from accelerate import Accelerator

from pipeline.data.loader import Share, explain
from pipeline.errors import Interrupted


def accelerator() -> Accelerator:
    """The device and precision of everything that runs a model: bfloat16 where a GPU has it, else float32.

    Made in one place because the library allows a process one precision only.
    """
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return Accelerator(mixed_precision="bf16" if bf16 else "no")


def share() -> Share:
    """What this process has of the training."""
    mine = accelerator()
    return Share(mine.process_index, mine.num_processes, mine.device)


class StopRequest:
    """Turns the first Ctrl-C (or TERM) into a flag that is read between steps; a second one stops at once."""

    def __enter__(self) -> "StopRequest":
        self.set = False
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.set:
            raise Interrupted("stopped at once, without a new checkpoint")
        self.set = True

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # a loader's process that has died makes itself known in the middle of whatever is being done
        if isinstance(error, RuntimeError):
            explain(error)

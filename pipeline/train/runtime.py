"""What training runs on, and when it stops: the only place that knows processes, device, precision and signals."""

import signal
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from pipeline.data.loader import Share, explain
from pipeline.errors import EnvironmentLacks, Interrupted


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


def from_main(value: Any) -> Any:
    """What the main process has, in every process."""
    return broadcast_object_list([value])[0]


def compiled(model: nn.Module) -> nn.Module:
    """The model compiled by PyTorch: the same weights, called `model`'s names there still.

    Raises EnvironmentLacks where nothing can be compiled: it is tried.
    """
    device = accelerator().device
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # each backend misses its compiler in a way of its own
        what = "Triton (see docs/setup.md)" if device.type == "cuda" else "a C++ compiler, such as g++"
        raise EnvironmentLacks(
            f"COMPILE=1 needs {what}; PyTorch could not compile here ({type(error).__name__}: "
            f"{(str(error).strip().splitlines() or [''])[0][:200]}). Install it, or leave COMPILE out"
        ) from error
    return torch.compile(model)  # type: ignore[return-value]


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

"""What training runs on, and when it stops: the only place that knows processes, device, precision and signals.

The processes are those that torchrun, accelerate or MPI has started; without one of these there is one. All of them do
the same; the first alone reads what has to be searched for, writes and prints.
"""

import functools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import nn

from pipeline.data.loader import Share, explain
from pipeline.errors import TOLD, EnvironmentLacks, Interrupted, short

T = TypeVar("T")
Problem = TypeVar("Problem", bound=BaseException)

MEETING, WAITING = timedelta(minutes=10), timedelta(hours=6)
"""how long processes wait for each other: to come at all, and then: the first may have a million images to find and
decode"""

MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""PRECISION -> what accelerate calls it"""
ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""what accelerate would do as well; every process here has the whole model"""
LAUNCHED = ("LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""what torchrun, accelerate or MPI sets"""


@dataclass
class _Asked:
    """What the user asked for, from `start` on."""

    precision: str | None = None
    micro_batch: int | None = None
    meeting: bool = False
    """whether other processes are met, or have been"""


_asked = _Asked()


def start(precision: str | None = None, micro_batch: int | None = None) -> None:
    """Meet the other processes; comes before anything is written.

    precision:   a key of MIXED; None: accelerate's environment's, else bf16 where a GPU has it, else fp32
    micro_batch: images of a forward at most; None: all that a process has of a step
    Raises ValueError for what accelerate's environment asks for and is not done here, EnvironmentLacks for a precision
    that this machine cannot train with, and if the other processes are not reached.
    """
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"MICRO_BATCH={micro_batch} must be 1 or more")
    _asked.precision, _asked.micro_batch = precision, micro_batch
    _check_environment()
    if _mixed_precision() == "fp16" and not torch.cuda.is_available():
        raise EnvironmentLacks("PRECISION=fp16 needs a GPU: its small range needs a scaled loss. On a CPU take bf16")
    _asked.meeting = True
    try:
        if share().processes > 1:
            gathered(True)  # what connects on first use does so now
            dist.set_timeout(WAITING)
    except RuntimeError as error:
        if not _of_connections(error):
            raise
        raise EnvironmentLacks(
            f"the other processes of the training are not reached ({short(error)}). If they are on other machines, "
            "docs/scale.md says what these need"
        ) from error


def _check_environment() -> None:
    for name, engine in ENGINES.items():
        if os.environ.get(name, "false").lower() in ("true", "1", "yes"):
            raise ValueError(f"{name}: {engine} is not used here, every process has the whole model. Unset it")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise ValueError("ACCELERATE_DYNAMO_BACKEND is not used here. Unset it, and take COMPILE=1")
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in MIXED.values():
        raise ValueError(f"ACCELERATE_MIXED_PRECISION={mixed} is not known here. Known: {', '.join(MIXED.values())}")
    if _rounds() is not None and _asked.micro_batch is not None:
        raise ValueError("MICRO_BATCH and ACCELERATE_GRADIENT_ACCUMULATION_STEPS say the same. Leave one of them out")
    alone = not any(name in os.environ for name in LAUNCHED)
    if alone and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        raise ValueError(
            "accelerate launch was asked for several processes and has started one: it does so with --cpu. "
            "Take NPROC= or torchrun, or leave --num_processes out"
        )


def _rounds() -> int | None:
    """Forwards of a step that accelerate's environment asks for."""
    given = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={given} must be a number of steps, 1 or more")
    return None if given == "1" else int(given)


def _mixed_precision() -> str:
    if _asked.precision is not None:
        return MIXED[_asked.precision]
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "bf16" if bf16 else "no")


def accelerator(rounds: int = 1) -> Accelerator:
    """What trains a model: device, precision and processes of everything that runs one.

    rounds: forwards of a step; those of the accelerator that was made last are in force
    """
    cpu = any(name in os.environ for name in LAUNCHED) and not torch.cuda.is_available()
    return Accelerator(
        mixed_precision=_mixed_precision(),
        cpu=cpu,
        # a plugin: a mere number would give way to the environment's
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=rounds, sync_with_dataloader=False),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=MEETING),
            # Masks are the only buffers; all processes compute the same ones, and `agree` says so if not.
            # After a first step gradients are packed anew, and three or more are then added in another order: a run
            # that goes on would differ in the last bit from one that does not. Looking for unused parameters, of which
            # there are none, leaves them as they are. On a GPU speed is worth more: there a bit is not promised.
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=cpu),
        ],
    )


@functools.cache
def _state() -> AcceleratorState:
    return accelerator().state


def meets() -> bool:
    """Whether the processes have begun to meet: until then all have the same errors, afterwards each its own."""
    return _asked.meeting


def device() -> torch.device:
    """What everything runs on."""
    return _state().device


def share() -> Share:
    """What this process has of the training."""
    state = _state()
    return Share(state.process_index, state.num_processes, state.device, _asked.micro_batch, _rounds())


def is_main() -> bool:
    """Whether this is the first process: the one that writes and prints."""
    return _state().is_main_process


# words between processes


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, in all of them, which wait for it; an error there is one in all.

    What it returns must be small and can be pickled.
    """
    if share().processes == 1:
        return work()
    word: list[Any] = [None, None]
    if is_main():
        try:
            word[0] = work()
        except BaseException as error:
            known = next((kind for kind in (ValueError, Interrupted) if isinstance(error, kind)), EnvironmentLacks)
            word[1] = known(str(error))
            broadcast_object_list(word)
            raise
    broadcast_object_list(word)
    if word[1] is not None:
        raise of_all(word[1])
    return word[0]


def main_first(work: Callable[[], T]) -> T:
    """`work` in the first process, then in all others, which find on the disk what it has left there."""
    mine: list[T] = []
    on_main(lambda: mine.append(work()))
    return mine[0] if mine else work()


def gathered(value: T) -> list[T]:
    """What every process has, in their order, in all of them."""
    return gather_object([value])


def agree(what: str, value: Any) -> None:
    """Raises RuntimeError in all processes if they have not the same."""
    if share().processes > 1 and len(set(found := gathered(repr(value)))) > 1:
        told = ", ".join(one if len(one) < 100 else "..." for one in found)
        raise of_all(RuntimeError(f"the processes do not have the same {what}: {told}"))


def sum_over_processes(tensor: torch.Tensor) -> None:
    """Replace a tensor by its sum over all processes; a GPU is not waited for."""
    if share().processes > 1:
        dist.all_reduce(tensor)


def of_any(flag: bool) -> bool:
    """Whether it is so in any process."""
    return any(gathered(flag))


def of_all(error: Problem) -> Problem:
    """An error that all processes raise: marked, but in the first one, as told."""
    if not is_main():
        error.add_note(TOLD)
    return error


def has_lost_another(error: BaseException) -> bool:
    """Whether torch says that another process of the training has gone."""
    return share().processes > 1 and _of_connections(error)


def _of_connections(error: BaseException) -> bool:
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    found = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return found or isinstance(error, dist.DistError)


# the model, and the end


def compiled(model: nn.Module) -> nn.Module:
    """The model compiled by PyTorch: the same weights, called `model`'s names there still.

    Raises EnvironmentLacks where nothing can be compiled: it is tried.
    """
    on = device()
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=on))
    except Exception as error:  # each backend misses its compiler in a way of its own
        what = "Triton (see docs/setup.md)" if on.type == "cuda" else "a C++ compiler, such as g++"
        raise EnvironmentLacks(
            f"COMPILE=1 needs {what}; PyTorch could not compile here ({type(error).__name__}: "
            f"{(str(error).strip().splitlines() or [''])[0][:200]}). Install it, or leave COMPILE out"
        ) from error
    return torch.compile(model)  # type: ignore[return-value]


class StopRequest:
    """Turns the first Ctrl-C (or TERM) into a flag that is read between steps; a second one stops at once.

    Where there are other processes it does not: what has started them repeats the signal for those that are slower.
    """

    def __enter__(self) -> "StopRequest":
        self.set = False
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.set and share().processes == 1:
            raise Interrupted("stopped at once, without a new checkpoint")
        self.set = True

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            ends = self.set and share().processes > 1
            signal.signal(number, signal.SIG_IGN if ends else handler)
        # a loader's process that has died makes itself known in the middle of whatever is being done
        if isinstance(error, RuntimeError):
            explain(error)

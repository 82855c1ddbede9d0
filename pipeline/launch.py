"""`NPROC=`: a command in several processes of this machine, started and watched by torchrun's engine."""

import logging
import os
import signal
import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline import console
from pipeline.errors import DONE, ENVIRONMENT, INTERRUPTED

GRACE_S = 120
"""seconds that processes have to finish a step and write a checkpoint, once they are told to end"""


def run(processes: int, arguments: list[str]) -> int:
    """`python -m pipeline ARGUMENTS` in so many processes; returns the exit code, once all have ended.

    If one dies, the others are told to end; a signal goes on to all of them. What happens they tell themselves.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable(logging.CRITICAL)  # the engine's own log repeats what is told here
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=GRACE_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "pipeline", *arguments)
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        killed = {rank: signal.Signals(-code).name for rank, code in codes.items() if code < 0}
        if killed:
            rank, name = next(iter(killed.items()))
            console.say(
                f"error: process {rank} of {processes} was ended by {name}. "
                "Repeat the command to go on from the last checkpoint"
            )
            return ENVIRONMENT
        return error.get_first_failure()[1].exitcode
    return DONE

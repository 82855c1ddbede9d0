"""Latency of several models on this machine, measured in turn so that their ratios hold on a noisy machine."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from timm.models import VisionTransformer

from pipeline.data.view import View
from targets import TARGETS, tflite, tflite_program
from targets.latency import LatencyResult, Protocol, measure

SECONDS, SAMPLES, WARMUP = 5.0, 100, 10


@dataclass(frozen=True)
class Timed:
    """A model that is timed."""

    model: VisionTransformer
    """dense or compact"""
    view: View
    precision: str = "fp32"
    """of the TFLite export"""


def latencies(models: Mapping[str, Timed], say: Callable[[str], None]) -> dict[str, LatencyResult]:
    """Latency of one image through each model's TFLite export, one inference of each in turn.

    models: by name
    The window is 5 s for every model, with 100 samples of each at least. Raises RuntimeUnavailable without an
    interpreter.
    """
    threads, draw = TARGETS["host"].threads, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        calls = {}
        for number, (name, timed) in enumerate(models.items()):
            say(f"  exporting {name}")
            path, view = Path(folder) / f"{number}.tflite", timed.view
            tflite.export(timed.model.eval(), mean=view.mean, std=view.std, path=path, precision=timed.precision)
            program = tflite_program.load(path, threads)
            image = draw.integers(0, 256, (1, view.size, view.size, 3), dtype=np.uint8)
            calls[name] = partial(program.run, program.prepare(image))
        say(f"  timing {len(calls)} models side by side")
        protocol = Protocol(name="", seconds=SECONDS * len(calls), min_samples=SAMPLES, warmup=WARMUP, cooldown_s=0.0)
        return measure(calls, protocol)

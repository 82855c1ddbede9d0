"""Latency of several models on this machine, measured in turn so that their ratios hold on a noisy machine."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from timm.models import VisionTransformer

from pipeline.data.view import View
from targets import TARGETS, tflite, tflite_program
from targets.latency import LatencyResult, Protocol, measure

SECONDS, SAMPLES, WARMUP = 5.0, 100, 10


def latencies(
    models: Mapping[str, VisionTransformer], view: View, say: Callable[[str], None]
) -> dict[str, LatencyResult]:
    """Latency of one image through each model's float32 TFLite export, one inference of each in turn.

    models: name -> dense or compact model; all take images of view.size
    The window is 5 s for every model, with 100 samples of each at least. Raises RuntimeUnavailable without an
    interpreter.
    """
    threads = TARGETS["host"].threads
    with tempfile.TemporaryDirectory() as folder:
        programs = {}
        for number, (name, model) in enumerate(models.items()):
            say(f"  exporting {name}")
            path = Path(folder) / f"{number}.tflite"
            tflite.export(model.eval(), mean=view.mean, std=view.std, path=path)
            programs[name] = tflite_program.load(path, threads)
        image = np.random.default_rng(0).integers(0, 256, (1, view.size, view.size, 3), dtype=np.uint8)
        calls = {name: partial(program.run, program.prepare(image)) for name, program in programs.items()}
        say(f"  timing {len(calls)} models side by side")
        protocol = Protocol(name="", seconds=SECONDS * len(calls), min_samples=SAMPLES, warmup=WARMUP, cooldown_s=0.0)
        return measure(calls, protocol)

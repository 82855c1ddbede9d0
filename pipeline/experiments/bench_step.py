"""`make bench-step`: what pruning adds to a fine-tuning step, in time and memory.

Time: plain, default probes and reference probes in turn in one process, so that a slow moment of the machine hits all
of them; the ratio is that of medians.
Memory: each in a process of its own, as the growth of the peak from before the model was made.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch

from dap import PruneConfig, Pruner
from pipeline.errors import EnvironmentLacks
from pipeline.model_names import MICRO
from pipeline.models import shell_of
from pipeline.train import runtime
from pipeline.train.loop import adamw
from targets.artifact import peak_memory_mb

PROBES = ("none", "default", "reference")
BATCH = {MICRO: {"cpu": 64, "cuda": 512}, "deit_tiny_patch16_224": {"cpu": 32, "cuda": 128}}
CLASSES = 60
EPOCH_STEPS, EPOCHS = 100, 10  # masks move three times an epoch: the rarer, the longer an epoch
STEPS = 2  # per sample


def bench_step(*, quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per model and kind of probe: step_ms, step_ratio, peak_mb, memory_ratio (ratios to no probe) and more.

    quick: the small model and few samples, for a look rather than a result
    """
    device = runtime.accelerator().device.type
    rows = []
    for model in list(BATCH)[: 1 if quick else None]:
        batch, samples = BATCH[model][device], 3 if quick else 8
        times = _times(model, batch, samples, say)
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, maxtasksperchild=1) as pool:
            peaks = {probe: pool.apply(_peak_mb, (model, batch, probe)) for probe in PROBES}
        plain_ms = statistics.median(times["none"])
        for probe in PROBES:
            step_ms = statistics.median(times[probe])
            paired = [other / plain for other, plain in zip(times[probe], times["none"], strict=True)]
            rows.append(
                {
                    "model": model,
                    "device": device,
                    "probe": probe,
                    "batch": batch,
                    "step_ms": step_ms,
                    "step_ratio": step_ms / plain_ms,
                    "step_ratio_paired": statistics.median(paired),
                    "step_ratio_spread": [min(paired), max(paired)],
                    "samples": samples,
                    "peak_mb": peaks[probe],
                    "memory_ratio": peaks[probe] / peaks["none"],
                }
            )
    return rows


def _times(model: str, batch: int, samples: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    steps = {probe: stepper(model, batch, probe) for probe in PROBES}
    taken: dict[str, list[float]] = {probe: [] for probe in PROBES}
    for sample in range(samples + 1):
        for probe, step in steps.items():
            begin = time.perf_counter()
            for _ in range(STEPS):
                step()
            if sample:  # the first one warms up
                taken[probe].append((time.perf_counter() - begin) * 1e3 / STEPS)
        say(f"  {model}: {sample}/{samples}")
    return taken


def stepper(name: str, batch: int, probe: str) -> Callable[[], None]:
    """A training step on images that stay the same, with everything that the training loop does."""
    device = runtime.accelerator().device
    torch.manual_seed(0)
    model = shell_of(name, CLASSES).to(device).train()
    size = timm.data.resolve_model_data_config(model)["input_size"][-1]
    images, targets = torch.randn(batch, 3, size, size, device=device), torch.arange(batch, device=device) % CLASSES
    optimizer = adamw(model, 1e-4, 0.05, device)
    pruner = None
    if probe != "none":
        config = PruneConfig(sparsity=0.5, probe="reference" if probe == "reference" else "default")
        pruner = Pruner(model, config, steps_per_epoch=EPOCH_STEPS, epochs=EPOCHS)
    accelerator = runtime.accelerator()

    def step() -> None:
        with accelerator.autocast():
            loss = torch.nn.functional.cross_entropy(model(images).float(), targets)
        loss.backward()
        if pruner is not None:
            pruner.step(targets)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _peak_mb(name: str, batch: int, probe: str) -> float:
    """Growth of the peak memory over four steps, MB of 1e6 bytes; runs in a fresh process."""
    if torch.cuda.is_available():
        step = stepper(name, batch, probe)
        for _ in range(4):
            step()
        return torch.cuda.max_memory_allocated() / 1e6
    before = _peak_resident_mb()
    step = stepper(name, batch, probe)
    for _ in range(4):
        step()
    return _peak_resident_mb() - before


def _peak_resident_mb() -> float:
    """Peak resident memory of this process. Not getrusage's: a process inherits that from the one that started it."""
    peak_mb = peak_memory_mb()
    if peak_mb is None:
        raise EnvironmentLacks("peak memory is read from /proc/self/status, which this system does not have")
    return peak_mb

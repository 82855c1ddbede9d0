"""`make profile-train`: where a pruning step spends its time, by torch's profiler."""

from collections.abc import Callable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pipeline.experiments import bench_step
from pipeline.train import runtime

WARMUP, STEPS = 3, 5
MOST = 10
"""operations that are shown"""
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def profile_train(model: str, probe: str, *, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The operations of a step of bench-step that take longest by themselves, the dearest first.

    probe: "none", "default" or "reference", as bench-step has them
    One row each: operation, calls a step, ms a step, share of all. On a GPU the time is its own.
    """
    device = runtime.device().type
    batch = bench_step.BATCH[model][device]
    step = bench_step.stepper(model, batch, probe)
    for _ in range(WARMUP):
        step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as taken:
        for _ in range(STEPS):
            step()
    events = taken.key_averages()
    times = {event.key: _self_us(event, device) for event in events}
    whole = sum(times.values())
    launches = sum(event.count for event in events if event.key in LAUNCHES) / STEPS
    calls = sum(event.count for event in events if event.device_type == DeviceType.CPU) / STEPS
    told = f"{launches:,.0f} kernels launched" if device == "cuda" else f"{calls:,.0f} operations called"
    say(f"  {model}, probes: {probe}, {batch} images: {whole / STEPS / 1e3:.1f} ms and {told} a step")
    dearest = sorted(events, key=lambda event: -times[event.key])[:MOST]
    return [
        {
            "operation": event.key,
            "calls": event.count / STEPS,
            "ms": times[event.key] / STEPS / 1e3,
            "share": times[event.key] / whole,
        }
        for event in dearest
    ]


def _self_us(event: Any, device: str) -> float:
    """Microseconds of an operation without those that it calls."""
    if device == "cuda":
        return float(event.self_device_time_total) if event.device_type == DeviceType.CUDA else 0.0
    return float(event.self_cpu_time_total)

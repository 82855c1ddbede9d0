"""Where artifacts run. Every driver takes the same things and gives the same DeviceRun, whatever wire lies between."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from targets.latency import LatencyResult


@dataclass(frozen=True, kw_only=True)
class DeviceRun:
    """What a device made of some artifacts and N images. `logits` and `latency` have one entry per artifact."""

    device: dict[str, Any]
    """device, os, cpu, cores, arch, runtime, runtime_version"""
    threads: int
    labels: np.ndarray
    """(N,) int64, the images' own"""
    logits: dict[str, np.ndarray]
    """(N, C) float32"""
    latency: dict[str, LatencyResult]

    def __post_init__(self) -> None:
        for name, logits_NC in self.logits.items():
            if logits_NC.ndim != 2 or len(logits_NC) != len(self.labels):
                raise ValueError(f"{name} has logits {logits_NC.shape} for {len(self.labels)} images")
        if self.logits.keys() != self.latency.keys():
            raise ValueError(f"logits of {', '.join(self.logits)}, but latency of {', '.join(self.latency)}")

    def top1(self, name: str) -> float:
        """Share of the images, 0..1, that an artifact gets right; logits that aren't finite are wrong."""
        logits_NC = self.logits[name]
        right_N = np.isfinite(logits_NC).all(1) & (logits_NC.argmax(1) == self.labels)
        return float(right_N.mean())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, as a device sends them."""
        return {
            "device": self.device,
            "threads": self.threads,
            "labels": self.labels.tolist(),
            "artifacts": {
                name: {
                    "logits": self.logits[name].tolist(),
                    "latency_ms": self.latency[name].to_json(),
                    "samples_ms": list(self.latency[name].samples_ms),
                }
                for name in self.logits
            },
        }

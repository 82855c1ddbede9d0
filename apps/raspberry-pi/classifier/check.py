"""The model on this very board: golden pictures, and latency by the protocol that the pipeline measures with."""

from typing import Any

import numpy as np

from classifier.model import Classifier
from targets.devices.measure import describe, memory_mb, time
from targets.latency import FULL, QUICK, conditions, invalid


def check(classifier: Classifier, *, quick: bool) -> dict[str, Any]:
    """What the board is, whether the model computes what it should, milliseconds, memory. JSON types.

    quick: 10 s instead of 60 of latency
    """
    device = describe()
    before = conditions()
    size = classifier.manifest.input
    image = classifier.golden[0] if classifier.golden else np.zeros((1, size.height, size.width, 3), np.uint8)
    latency = time({"": classifier.program}, image, QUICK if quick else FULL)[""]
    if device["emulated"]:
        latency = invalid(latency, f"{device['emulated']} emulates this processor")
    return {
        "device": device,
        "file": classifier.file,
        "runtime": f"{classifier.program.runtime} {classifier.program.runtime_version}",
        "threads": classifier.threads,
        "golden_error": classifier.golden_error,
        "warning": classifier.warning,
        "latency_ms": latency.to_json(),
        "peak_mb": memory_mb(classifier.load, classifier.path, classifier.threads, image),
        "before": before,
        "after": conditions(),
    }

"""Files of what timm has besides DeiT, pruned, in every format, computed by what runs them here."""

from pathlib import Path
from typing import Any

import gpu_delegate
import numpy as np
import pytest
from test_targets_graph import MEAN, STD, pruned
from test_targets_tflite import photos, torch_logits

from targets.formats import FORMATS

pytestmark = pytest.mark.slow

KINDS = ["mean", "mean, norm in front", "SigLIP", "attention pooling with a prefix", "CLIP", "SwiGLU"]
# XNNPACK and coremltools leave out which GELU is meant and compute the exact one, where SigLIP has its tanh.
LEAST_DB = {("SigLIP", "executorch"): 65, ("SigLIP", "coreml"): 65}


@pytest.mark.parametrize("format", ["tflite", "executorch", "coreml"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_computes_what_torch_computes(kind: str, format: str, tmp_path: Path) -> None:
    model, known = pruned(kind), FORMATS[format]
    want = torch_logits(model, photos(8)[:, 0])

    def snr_db(precision: str) -> float:
        path = tmp_path / f"{precision}{known.suffix}"
        info: Any = known.export(model, mean=MEAN, std=STD, path=path, precision=precision)
        assert info.ops_outside == ()
        if format == "tflite":
            assert not gpu_delegate.other_batches(path)
            assert precision != "fp32" or not gpu_delegate.refused(path)
        program = known.load(path, 1)
        found = np.concatenate([program(image) for image in photos(8)])
        return float(10 * np.log10(np.square(want).sum() / np.square(want - found).sum()))

    assert snr_db("fp32") >= LEAST_DB.get((kind, format), 100)
    assert snr_db("int8-weights" if format == "coreml" else "int8-dynamic") >= 25

"""`make bench-batch`: what a leading dimension of 1 in every tensor, for GPU delegates, costs a TFLite file on the CPU.

Our files beside those of the form before it: attention in three dimensions, and the converter's own ways with linear
layers, means and gathers. Both are timed in turn in one process. Weights are random: time does not depend on them.
"""

import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.experiments import bench_export
from pipeline.experiments.bench_export import THREADS
from targets import tflite
from targets.artifact import Program, convert
from targets.formats import FORMATS
from targets.graph import TFLITE
from targets.latency import measure
from targets.rewrite import rewrite

SPARSITIES = (0.0, 0.75)
PRECISIONS = ("fp32", "int8-dynamic")
BEFORE = replace(TFLITE, attention="HNK", half_norms=False)

Row = dict[str, Any]


def bench_batch(*, quick: bool, say: Callable[[str], None]) -> list[Row]:
    """Two rows for each sparsity and precision, variant "before" and "ours".

    ratio:        5th percentile over that of "before";  ratio_median: the same of the medians
    operations:   in the file;  other_batch: tensors among them whose leading dimension is not 1
    """
    rows: list[Row] = []
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for sparsity in SPARSITIES:
            model, view = bench_export.model_at(bench_export.TINY, sparsity)
            image = np.random.default_rng(0).integers(0, 256, (1, view.size, view.size, 3), dtype=np.uint8)
            for precision in PRECISIONS:
                before, ours = (Path(folder) / f"{variant}-{sparsity:g}-{precision}.tflite" for variant in ("b", "o"))
                say(f"  {precision}, sparsity {sparsity:g}")
                graph = io.BytesIO()
                torch.save(rewrite(model, view.mean, view.std, BEFORE), graph)
                convert(_before, before, graph.getvalue(), precision, noise=tflite.NOISE)
                tflite.export(model, mean=view.mean, std=view.std, path=ours, precision=precision)
                for variant, path in (("before", before), ("ours", ours)):
                    operations, other = _counted(path.read_bytes())
                    rows.append(
                        {
                            "model": bench_export.TINY,
                            "sparsity": sparsity,
                            "precision": precision,
                            "variant": variant,
                            "threads": THREADS,
                            "operations": operations,
                            "other_batch": other,
                        }
                    )
                    calls[str(len(rows) - 1)] = _call(FORMATS["tflite"].load(path, THREADS), image)
        say(f"  timing {len(calls)} side by side")
        found = measure(calls, bench_export.QUICK if quick else bench_export.FULL)
    for number, row in enumerate(rows):
        mine, before_it = found[str(number)], found[str(number - number % 2)]
        row |= {
            "ms_median": mine.p50_ms,
            "ms_p5": mine.p5_ms,
            "samples": mine.samples,
            "ratio": mine.p5_ms / before_it.p5_ms,
            "ratio_median": mine.p50_ms / before_it.p50_ms,
        }
    return rows


def _before(path: Path, graph: bytes, precision: str) -> tuple[None, tuple[str, ...]]:
    """Runs in a converter's process, one that does not convert our own files. graph: as torch.save writes it."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    import litert_torch

    module = torch.load(io.BytesIO(graph), weights_only=False)  # whole modules are code; these bytes are our own
    model = litert_torch.convert(module, (module.example(),)).model_content()
    path.write_bytes(model if precision == "fp32" else tflite._quantised(model, precision, None))
    return None, ()


def _counted(content: bytes) -> tuple[int, int]:
    """Operations in a file, and the tensors they make whose leading dimension is not 1.

    Of int8-dynamic that counts the patch embedding's weights, a constant that is unpacked where it is used.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAs(content).Subgraphs(0)
    made = [int(i) for n in range(graph.OperatorsLength()) for i in graph.Operators(n).OutputsAsNumpy()]
    other = [i for i in made if graph.Tensors(i).ShapeLength() and graph.Tensors(i).Shape(0) != 1]
    return graph.OperatorsLength(), len(other)


def _call(program: Program, image: np.ndarray) -> Callable[[], object]:
    prepared = program.prepare(image)
    return lambda: program.run(prepared)

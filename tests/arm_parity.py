"""How near TFLite files come to their models on emulated Arm processors, by precision: logits, top-1, no time.

    PYTHONPATH=. .venv/bin/python tests/arm_parity.py [RUN ...] [--images N] [--out FILE.json]    # some 15 minutes

RUN: folders of runs whose small model is measured, on their own validation images; beside them a DeiT-tiny of random
weights on noise. The Cortex-A76 (a Raspberry Pi 5's) computes in float16 where a file lets it; the Cortex-A72 (a
Raspberry Pi 4's) has no such arithmetic, and stays in float32: only what lets it is tried there. qemu computes what
such processors do, at a speed that says nothing of theirs.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import board_jobs
import emulated_board
import numpy as np
import pytest
import torch
from timm.models import VisionTransformer

from dap import load_compact
from pipeline.context import Context
from pipeline.data.view import View
from pipeline.experiments.bench_export import TINY, model_at
from pipeline.report.results import write_results
from pipeline.runs import Run
from pipeline.train.evaluate import predictor
from targets import tflite, tflite_program
from targets.artifact import sha256_of
from targets.devices.job import GOLDEN, IMAGES, RESULT, DeviceResult, Job, read_result, rows_of, write_job
from targets.devices.measure import logits
from targets.formats import FORMATS
from targets.validate import parity, top1

CPUS = (emulated_board.PI_5, emulated_board.PI_4)
PRECISIONS = ("fp32", "fp16", "fp16-compute", "int8-dynamic-tensor", "int8-dynamic-tensor-fp16")
RANDOM_IMAGES = 2
"""a DeiT-tiny takes a quarter of a minute an image there"""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model and what it is measured on."""

    name: str
    model: VisionTransformer
    view: View
    images: np.ndarray
    """RGB (N, H, W, 3) uint8"""
    labels: np.ndarray | None = None
    """(N,); None: the weights are random"""


def of_run(folder: Path, count: int) -> Case:
    """The small model of a run on `count` of its validation images, evenly spread."""
    context = Context(Run.open(folder), lambda *_: None, lambda _: None)
    images = torch.cat([images for images, _ in context.val_batches]).permute(0, 2, 3, 1).numpy()
    labels = context.dataset.val.labels
    chosen = np.unique(np.linspace(0, len(labels) - 1, count).astype(np.int64))
    model, config = load_compact(context.model_folder).eval(), context.run.config
    name = f"{config.model}, {config.dataset}, {100 * config.pruning.sparsity:.0f} % pruned"
    return Case(name=name, model=model, view=context.view, images=images[chosen], labels=labels[chosen])


def of_random_weights() -> Case:
    """A dense DeiT-tiny of random weights on noise."""
    model, view = model_at(TINY, 0.0)
    images = np.random.default_rng(0).integers(0, 256, (RANDOM_IMAGES, view.size, view.size, 3), dtype=np.uint8)
    return Case(name=f"{TINY}, random weights", model=model, view=view, images=images)


def measure(case: Case, precision: str, folder: Path) -> list[Row]:
    """A row for this machine and for each processor: how near one file's logits come to the model's."""
    cpus = CPUS if FORMATS["tflite"].precisions[precision].float16_of else CPUS[:1]
    path = folder / f"{precision}.tflite"
    view = case.view
    info = tflite.export(case.model, mean=view.mean, std=view.std, path=path, precision=precision)
    want_NC = predictor(case.model, view)(torch.from_numpy(case.images).permute(0, 3, 1, 2)).numpy()
    here = tflite_program.load(path, 2)
    found = [("this machine", False, here.runtime_version, logits(here, (image[None] for image in case.images)))]
    for cpu in cpus:
        result = on_board(path, case.images, want_NC, cpu, folder / f"{precision}-{cpu}")
        found.append((cpu, result.float16, result.runtime_version, np.array(result.logits, np.float32)))
    return [
        {
            "model": case.name,
            "precision": precision,
            "cpu": cpu,
            "float16": float16,
            "runtime": f"ai-edge-litert {version}",
            "images": len(case.images),
            **dataclasses.asdict(parity(want_NC, found_NC)),
            "snr_db": float(10 * np.log10(np.square(want_NC).sum() / max(np.square(found_NC - want_NC).sum(), 1e-30))),
            "top1_model": None if case.labels is None else 100 * top1(want_NC, case.labels),
            "top1": None if case.labels is None else 100 * top1(found_NC, case.labels),
            "size_bytes": info.size_bytes,
        }
        for cpu, float16, version, found_NC in found
    ]


def on_board(
    path: Path, images: np.ndarray, model_NC: np.ndarray, cpu: str, folder: Path, kind: str = "litert"
) -> DeviceResult:
    """What the Raspberry Pis' runner makes of a file and of images (N, H, W, 3) on an emulated processor.

    model_NC: the model's logits, whose classes stand in for labels;  folder: for the job
    """
    folder.mkdir()
    (folder / path.name).symlink_to(path)
    (folder / GOLDEN).write_bytes(images[:1].tobytes())
    (folder / IMAGES).write_bytes(images.tobytes())
    job = Job(
        id="0" * 32,
        format="tflite",
        files=(path.name,),
        sha256={name: sha256_of(folder / name) for name in (path.name, GOLDEN, IMAGES)},
        threads=1,
        height=images.shape[1],
        width=images.shape[2],
        classes=model_NC.shape[1],
        golden=rows_of(model_NC[:1]),
        labels=tuple(model_NC.argmax(1).tolist()),
    )
    write_job(job, folder)
    with tempfile.TemporaryDirectory() as name:
        runner = board_jobs.runner(Path(name))
        command = f"{emulated_board.python(kind, cpu)} -m targets.devices.board {folder}"
        environment = {**os.environ, "HOME": name, "PYTHONPATH": name}
        done = subprocess.run(["sh", "-c", command], cwd=runner, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_result(folder / RESULT, job)


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line a model and precision, the processors side by side."""
    cpus = list(dict.fromkeys(row["cpu"] for row in rows))
    heads = ["model", "images", "precision", "MB", *(f"{cpu}: SNR, dB / same top-1 / top-1" for cpu in cpus)]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    for model, precision in dict.fromkeys((row["model"], row["precision"]) for row in rows):
        mine = {row["cpu"]: row for row in rows if (row["model"], row["precision"]) == (model, precision)}
        first = next(iter(mine.values()))
        cells = [model, str(first["images"]), precision, f"{first['size_bytes'] / 1e6:.2f}"]
        for row in (mine.get(cpu) for cpu in cpus):
            shown = f"{row['snr_db']:.1f} / {100 * row['top1_agreement']:.0f} %" if row else ""
            cells.append(shown if not row or row["top1"] is None else f"{shown} / {row['top1']:.1f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--images", type=int, default=60, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("docs/results/arm-parity.json"), metavar="FILE.json")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    try:
        for case in (*(of_run(run, given.images) for run in given.runs), of_random_weights()):
            with tempfile.TemporaryDirectory() as name:
                for precision in PRECISIONS:
                    print(f"{case.name}: {precision}", flush=True)
                    rows += measure(case, precision, Path(name))
    except pytest.skip.Exception as lacking:
        print(f"error: {lacking}", file=sys.stderr)
        return 3
    command = ["PYTHONPATH=. .venv/bin/python tests/arm_parity.py", *map(str, given.runs), f"--images {given.images}"]
    write_results(given.out, " ".join(command), rows)
    given.out.with_suffix(".md").write_text(f"{table(rows)}\n")
    print(f"\n{table(rows)}\nresults: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

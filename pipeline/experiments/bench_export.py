"""`make bench-export`: our exports beside stock ones and other runtimes, all timed in turn in one process.

Weights are random: time and size do not depend on them. Small models are those that DAP's machinery leaves when every
block keeps the same share, at widths that the host target allows.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import VisionTransformer

from dap import PruneConfig, Pruner, count_macs
from dap.config import Gating
from pipeline.data.view import View
from pipeline.models import shell_of
from pipeline.train.evaluate import predictor
from targets import TARGETS, executorch, tflite
from targets.artifact import ExportInfo, Program, convert
from targets.formats import FORMATS
from targets.latency import Protocol, measure

THREADS = 2
CLASSES = 100
TINY, SMALL = "deit_tiny_patch16_224", "deit_small_patch16_224"
REDUCED = (TINY,)
"""models whose dense form is exported in less than float32 too"""
DENSE: tuple[float, Gating] = (0.0, "inner")
PRUNED: tuple[tuple[float, Gating], ...] = ((0.5, "inner"), (0.5, "heads"), (0.75, "inner"), (0.75, "heads"))
"""sparsity, and what may go"""
MAIN = {("tflite", "fp32"), ("executorch", "fp32"), ("coreml", "fp16")}
PEERS = ("onnxruntime", "openvino")
FULL = Protocol(name="bench", seconds=60.0, min_samples=100, warmup=5, cooldown_s=5.0)
QUICK = Protocol(name="quick", seconds=2.0, min_samples=10, warmup=2, cooldown_s=0.0)

Row = dict[str, Any]


@dataclass
class Candidate:
    """One thing to time: its row so far, and how to run it (None: it cannot be run here)."""

    row: Row
    program: Program | None


def bench_export(*, quick: bool, say: Callable[[str], None]) -> list[Row]:
    """Rows with the keys that docs/results/bench-export.json promises, gates, export_seconds, export_peak_mb, speedup.

    ratio:   5th percentile over that of the stock TFLite file of the same model in the same run
    speedup: 5th percentile of the same runtime and precision for the dense model over this one's
    A peer that is not installed is left out, and told.
    """
    rows = []
    for name, made in ((TINY, (DENSE, *PRUNED)), (SMALL, (DENSE,)))[: 1 if quick else None]:
        with tempfile.TemporaryDirectory() as folder:
            candidates: list[Candidate] = []
            for sparsity, gates in made[:2] if quick else made:
                model, view = model_at(name, sparsity, gates)
                image = np.random.default_rng(0).integers(0, 256, (1, view.size, view.size, 3), dtype=np.uint8)
                want = predictor(model, view)(torch.from_numpy(image).permute(0, 3, 1, 2)).numpy().astype(np.float64)
                for candidate in _candidates(
                    model,
                    view,
                    Path(folder) / f"{sparsity:g}-{gates}",
                    sparsity,
                    reduced=name in REDUCED,
                    quick=quick,
                    say=say,
                ):
                    candidate.row |= {"model": name, "sparsity": sparsity, "gates": gates, "macs": count_macs(model)}
                    if candidate.program is not None:
                        error = candidate.program(image).astype(np.float64).reshape(want.shape) - want
                        noise = max(float(np.square(error).sum()), 1e-30)
                        candidate.row["snr_db"] = 10 * np.log10(float(np.square(want).sum()) / noise)
                    candidates.append(candidate)
            rows += _timed(candidates, image, QUICK if quick else FULL, say)
    return rows


def model_at(name: str, sparsity: float, gates: Gating = "inner") -> tuple[VisionTransformer, View]:
    """A model of random weights, pruned by the same share of every block at widths that the host target allows."""
    torch.manual_seed(0)
    model: Any = shell_of(name, CLASSES)
    view = View.of(model)
    with torch.no_grad():
        for parameter in model.parameters():  # norms, biases and embeddings of a fresh model would hide a wrong fold
            parameter.add_(0.02 * torch.randn_like(parameter))
    if sparsity:
        config = PruneConfig(sparsity=sparsity, allocation="uniform", gates=gates)
        rule = TARGETS["host"].allowed_width
        model = Pruner(model, config, steps_per_epoch=1, epochs=1, allowed_width=rule).finalize()
    return model.eval(), view


def _candidates(
    model: VisionTransformer,
    view: View,
    folder: Path,
    sparsity: float,
    *,
    reduced: bool,
    quick: bool,
    say: Callable[[str], None],
) -> Iterator[Candidate]:
    """reduced: whether to export the dense model in less than float32 too."""
    reduced = reduced and sparsity == 0
    stock = torch.zeros(1, 3, view.size, view.size)  # normalised: what timm's model takes
    normalise = _normaliser(view)

    def row(runtime: str, variant: str, precision: str, info: ExportInfo | None) -> Row:
        say(f"  {runtime} {variant} {precision}, sparsity {sparsity:g}")
        keys = ("delegates", "size_bytes", "seconds", "peak_mb")
        known = {key: getattr(info, key) if info else None for key in keys}
        return {
            "runtime": runtime,
            "variant": variant,
            "precision": precision,
            "threads": THREADS,
            "delegates": known["delegates"],
            "ops_outside": len(info.ops_outside) if info and info.delegates is not None else None,
            "size_bytes": known["size_bytes"],
            "export_seconds": known["seconds"],
            "export_peak_mb": known["peak_mb"],
            "snr_db": None,
        }

    for format, module, lower in (("tflite", tflite, _stock_tflite), ("executorch", executorch, _stock_executorch)):
        path = folder / f"stock{FORMATS[format].suffix}"
        info = convert(lower, path, model, stock, noise=module.NOISE)
        loaded = FORMATS[format].load(path, THREADS)  # takes other input than ours
        program = Program(
            prepare=normalise if format == "tflite" else lambda image: torch.from_numpy(normalise(image)),
            run=loaded.run,
            runtime=loaded.runtime,
            runtime_version=loaded.runtime_version,
        )
        yield Candidate(row(format, "stock", "fp32", info), program)
        for precision in _here(format) if reduced else ("fp32",):
            path = folder / f"{precision}{FORMATS[format].suffix}"
            info = _export(format, model, view, path, precision)
            yield Candidate(row(format, "ours", precision, info), FORMATS[format].load(path, THREADS))
    for precision in FORMATS["coreml"].precisions if reduced else ("fp16",):
        path = folder / f"{precision}{FORMATS['coreml'].suffix}"
        info = _export("coreml", model, view, path, precision)
        yield Candidate(row("coreml", "ours", precision, info), FORMATS["coreml"].load(path, THREADS))
    if sparsity == 0:
        for name, make in (("torch eager", _eager), ("torch inductor", _inductor), ("onnxruntime", _onnxruntime),
                           ("openvino", _openvino)):  # fmt: skip
            if name in PEERS and find_spec(name) is None:
                say(f"  {name} is not installed: left out (pip install -r requirements-bench.txt)")
            elif not (quick and name == "torch inductor"):
                run = make(model, stock, folder)
                program = Program(prepare=normalise, run=run, runtime=name, runtime_version="")
                yield Candidate(row(name, "stock", "fp32", None), program)


def _here(format: str) -> list[str]:
    """The precisions that this machine computes as they are meant: float16's arithmetic is other processors'."""
    return [name for name, known in FORMATS[format].precisions.items() if not known.float16_of]


def _stock_tflite(path: Path, model: VisionTransformer, stock: torch.Tensor) -> tuple[None, tuple[str, ...]]:
    """Runs in a converter's process."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao registers an enum in a deprecated way
    import litert_torch

    litert_torch.convert(model, (stock,)).export(str(path))
    return None, ()


def _stock_executorch(path: Path, model: VisionTransformer, stock: torch.Tensor) -> tuple[int, tuple[str, ...]]:
    """Runs in a converter's process."""
    return executorch.lower(model, stock, path)


def _export(format: str, model: VisionTransformer, view: View, path: Path, precision: str) -> ExportInfo:
    images = np.random.default_rng(1).integers(0, 256, (8, view.size, view.size, 3), dtype=np.uint8)
    return FORMATS[format].export(
        model, mean=view.mean, std=view.std, path=path, precision=precision, calibration=images
    )


def _timed(candidates: list[Candidate], image: np.ndarray, protocol: Protocol, say: Callable[[str], None]) -> list[Row]:
    timed = {
        str(number): candidate.program
        for number, candidate in enumerate(candidates)
        if candidate.program is not None and candidate.program.timed
    }
    say(f"  timing {len(timed)} side by side")
    calls = {name: _call(program, image) for name, program in timed.items()}
    found = measure(calls, protocol)
    rows = []
    for number, candidate in enumerate(candidates):
        latency = found.get(str(number))
        rows.append(
            candidate.row
            | {
                "ms_median": latency.p50_ms if latency else None,
                "ms_p5": latency.p5_ms if latency else None,
                "samples": latency.samples if latency else None,
            }
        )
    for row in rows:
        stock = next(r for r in rows if (r["sparsity"], r["gates"]) == (row["sparsity"], row["gates"]) and
                     (r["runtime"], r["variant"]) == ("tflite", "stock"))  # fmt: skip
        same = ("runtime", "variant", "precision")
        dense = next((r for r in rows if r["sparsity"] == 0 and all(r[k] == row[k] for k in same)), None)
        timed_row = row["ms_p5"] is not None
        row["ratio"] = row["ms_p5"] / stock["ms_p5"] if timed_row else None
        row["speedup"] = dense["ms_p5"] / row["ms_p5"] if timed_row and dense else None
        row["realised"] = row["speedup"] * row["macs"] / dense["macs"] if row["speedup"] and dense else None
    return rows


def _call(program: Program, image: np.ndarray) -> Callable[[], object]:
    prepared = program.prepare(image)
    return lambda: program.run(prepared)


def _normaliser(view: View) -> Callable[[np.ndarray], np.ndarray]:
    """RGB (1, H, W, 3) uint8 -> (1, 3, H, W) float32 as timm's model takes it."""
    mean, std = np.array(view.mean, np.float32), np.array(view.std, np.float32)
    return lambda image: np.ascontiguousarray(((image.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2))


def _eager(model: VisionTransformer, stock: torch.Tensor, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    torch.set_num_threads(THREADS)

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(pixels)).numpy()

    return run


def _inductor(model: VisionTransformer, stock: torch.Tensor, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    compiled = torch.compile(model)

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        return compiled(torch.from_numpy(pixels)).numpy()

    return run


def _onnx(model: VisionTransformer, stock: torch.Tensor, folder: Path) -> str:
    path = folder / "model.onnx"
    if not path.exists():
        torch.onnx.export(model, (stock,), str(path), dynamo=True, external_data=False, verbose=False)
    return str(path)


def _onnxruntime(model: VisionTransformer, stock: torch.Tensor, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    # threads that spin while others are timed would take the cores from them
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(_onnx(model, stock, folder), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


def _openvino(model: VisionTransformer, stock: torch.Tensor, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    import openvino

    # its default on some processors is bfloat16; the comparison is in float32
    options = {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(_onnx(model, stock, folder), "CPU", options)
    return lambda pixels: compiled([pixels])[0]


def table(rows: list[Row]) -> str:
    """Markdown: one line per timed thing, model by model."""
    heads = ("model", "sparsity", "runtime", "precision", "ms (median / p5)", "against stock TFLite", "realised",
             "delegates + outside", "MB", "SNR, dB")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    for row in rows:
        timed = row["ms_p5"] is not None
        cells = [
            row["model"].removesuffix("_patch16_224"),
            f"{100 * row['sparsity']:.0f} %" + (", heads" if row["gates"] == "heads" else ""),
            f"{row['runtime']}, {row['variant']}" if row["runtime"] in FORMATS else row["runtime"],
            row["precision"],
            f"{row['ms_median']:.1f} / {row['ms_p5']:.1f}" if timed else "not measured",
            f"{row['ratio']:.2f}" if timed else "",
            f"{row['realised']:.2f}" if row["realised"] and row["sparsity"] else "",
            "" if row["delegates"] is None else f"{row['delegates']} + {row['ops_outside']}",
            "" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.1f}",
            "" if row["snr_db"] is None else f"{row['snr_db']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(rows: list[Row]) -> str:
    """The table, and what exporting the dense DeiT-tiny to all three formats took."""
    ours = [row for row in rows if row["model"] == TINY and row["sparsity"] == 0 and row["variant"] == "ours"]
    chosen = [row for row in ours if (row["runtime"], row["precision"]) in MAIN]
    seconds, peak_mb = sum(row["export_seconds"] for row in chosen), max(row["export_peak_mb"] or 0 for row in chosen)
    return (
        f"{table(rows)}\n\nExport of {TINY} to all three formats (float32; float16 for Core ML), loading the "
        f"converters included: {seconds:.0f} s, {peak_mb / 1000:.1f} GB at the peak.\n"
    )

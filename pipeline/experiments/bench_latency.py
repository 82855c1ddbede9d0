"""`make bench-latency-budget`: DAP under a budget of parameters, and under the milliseconds that its result takes.

Per seed: a run at a sparsity, and one with LATENCY_MS set to what the host's profile predicts of the first one's small
model. So both are predicted to be equally fast; what differs is how they came to be. Both are then exported as the
profile's format and timed in turn, beside the dense model in float32, as a deployment's gate times them.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dap import count_macs, count_params, load_compact
from pipeline import latency_budget, profiling, stages
from pipeline.config import RunConfig
from pipeline.context import Context
from pipeline.experiments.cells import Cell, cells
from pipeline.experiments.compare import compare, unseen
from pipeline.files import locked
from pipeline.presets import with_latency, with_method
from pipeline.runs import Run
from pipeline.train.loop import Progress
from targets import TARGETS
from targets.formats import FORMATS
from targets.latency import FULL, QUICK, Protocol, measure
from targets.profile import Profile

BUDGETS = {"params": None, "latency": "latency"}
"""what the budget counts, and the variant of DAP that its run's folder is called after"""

Row = dict[str, Any]


def bench_latency(
    base: RunConfig,
    root: Path,
    *,
    sparsity: float,
    seeds: Sequence[int],
    quick: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> list[Row]:
    """Two rows per seed, budget "params" and "latency".

    base: the run that all are variations of;  root: the folder of the runs; what `make compare` has left is used
    Raises ValueError without a profile of the model on this machine.
    """
    host = TARGETS["host"]
    shape = profiling.shape_of(profiling.dense_of(base.model, img_size=base.img_size))
    found = latency_budget.find(host, shape, base.model, base.img_size)  # before anything is trained
    by_params = compare(base, root, cells(["dap"], [sparsity], seeds), timed=False, progress=progress, say=say)
    dense_top1 = {row["seed"]: row["top1"] for row in by_params if row["method"] == "dense"}
    pairs: dict[int, dict[str, Cell]] = {}
    targets_ms = {}
    for seed in seeds:
        pair = pairs[seed] = {budget: Cell("dap", variant, sparsity, seed) for budget, variant in BUDGETS.items()}
        first = load_compact(root / pair["params"].name / "model")
        targets_ms[seed] = found.predict_ms(latency_budget.layers_of(first))
        _train(base, root / pair["latency"].name, seed, targets_ms[seed], progress, say)
    rows: list[Row] = []
    for seed, pair in pairs.items():  # once nothing trains any more
        contexts = {
            budget: Context(Run.open(root / cell.name), progress, lambda _: None) for budget, cell in pair.items()
        }
        times = _times(found, contexts, QUICK if quick else FULL, say)
        for budget, context in contexts.items():
            small = load_compact(context.model_folder)
            layers = latency_budget.layers_of(small)
            predicted_ms, measured = found.predict_ms(layers), times[budget]
            top1, images = unseen(context, pair[budget])
            rows.append(
                {
                    "seed": seed,
                    "budget": budget,
                    "dataset": Path(base.dataset.removeprefix("folder:")).name,
                    "model": base.model,
                    "format": found.format,
                    "precision": found.precision,
                    "latency_ms_target": targets_ms[seed] if budget == "latency" else None,
                    "latency_ms_predicted": predicted_ms,
                    "latency_ms_p50": measured.p50_ms,
                    "latency_ms_p90": measured.p90_ms,
                    "latency_valid": measured.valid,
                    "error_percent": 100 * (predicted_ms / measured.p50_ms - 1),
                    "latency_ms_dense_fp32_p50": times["dense"].p50_ms,
                    "load": os.getloadavg()[0],
                    "top1": top1,
                    "images": images,
                    "top1_val": context.run.results("finetune")["top1_val"],
                    "top1_dense": dense_top1[seed],
                    "params": count_params(small),
                    "macs": count_macs(small),
                    "attentions": sum(head_width > 0 for head_width, _ in layers),
                    "layers": [list(layer) for layer in layers],
                }
            )
    return rows


def report(rows: Sequence[Row]) -> str:
    """Two tables in Markdown: every run, and what the budget of milliseconds gains at equal latency."""
    lines = [
        "| seed | budget | asked, ms | predicted, ms | p50, ms | prediction off by | top-1 | parameters | MACs "
        "| attentions |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        asked = "" if row["latency_ms_target"] is None else f"{row['latency_ms_target']:.3f}"
        noisy = "" if row["latency_valid"] else " (noisy)"
        lines.append(
            f"| {row['seed']} | {row['budget']} | {asked} | {row['latency_ms_predicted']:.3f} "
            f"| {row['latency_ms_p50']:.3f}{noisy} | {row['error_percent']:+.1f} % | {row['top1']:.1f} "
            f"| {row['params'] / 1e3:,.0f} k | {row['macs'] / 1e6:.1f} M | {row['attentions']} |"
        )
    by_seed = {(row["seed"], row["budget"]): row for row in rows}
    pairs = [(by_seed[seed, "latency"], by_seed[seed, "params"]) for seed in dict.fromkeys(row["seed"] for row in rows)]
    points = [timed["top1"] - sized["top1"] for timed, sized in pairs]
    ratios = [timed["latency_ms_p50"] / sized["latency_ms_p50"] for timed, sized in pairs]
    lines += [
        "",
        "| latency budget against parameter budget | mean | per seed |",
        "| --- | --- | --- |",
        f"| top-1, points | {statistics.mean(points):+.1f} | {', '.join(f'{value:+.1f}' for value in points)} |",
        f"| p50, ratio | {statistics.mean(ratios):.3f} | {', '.join(f'{value:.3f}' for value in ratios)} |",
    ]
    return "\n".join(lines) + "\n"


def _train(
    base: RunConfig, folder: Path, seed: int, latency_ms: float, progress: Progress, say: Callable[[str], None]
) -> None:
    config = replace(with_method(base, "dap"), seed=seed, dense=None)
    with locked(folder):
        run = Run.create(folder, with_latency(config, latency_ms))
        if not run.results("finetune"):
            say(f"{folder.name}: {latency_ms:.4g} ms")
        stages.run_training(Context(run, progress, lambda _: None))


def _times(found: Profile, contexts: dict[str, Context], protocol: Protocol, say: Callable[[str], None]):
    """Latency of the runs' small models as the profile's format, and of the dense one in float32, timed in turn."""
    one = next(iter(contexts.values()))
    format = FORMATS[found.format]
    models = {budget: (load_compact(c.model_folder), found.precision) for budget, c in contexts.items()}
    models["dense"] = one.dense_model(), format.largest
    with tempfile.TemporaryDirectory() as name:
        programs = {}
        for label, (model, precision) in models.items():
            path = Path(name) / f"{label}{format.suffix}"
            format.export(
                model.eval(),
                mean=one.view.mean,
                std=one.view.std,
                path=path,
                precision=precision,
                calibration=one.calibration_images(16) if format.precisions[precision].calibrated else None,
            )
            programs[label] = format.load(path, TARGETS["host"].threads)
        size = one.view.size
        image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        say(f"  timing {len(programs)} models in turn")
        return measure({n: partial(program.run, program.prepare(image)) for n, program in programs.items()}, protocol)

"""`make bench-method`: whether the cheap probes decide as the reference ones do, and which gates earn their place.

Every variant and seed is an ordinary run below runs/bench-method/, so the bench can be killed and goes on where it was.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from dap import load_compact
from pipeline import methods, stages
from pipeline.config import RunConfig
from pipeline.context import Context
from pipeline.runs import Run, locked
from pipeline.side_by_side import latencies
from pipeline.train import Progress

VARIANTS: dict[str, dict[str, Any]] = {"dap": {}, **methods.VARIANTS["dap"], "uniform": {}}
"""settings of the pruner in which a variant differs from the default; uniform is a method of its own"""


def bench_method(
    base: RunConfig,
    root: Path,
    *,
    variants: Sequence[str],
    seeds: Sequence[int],
    progress: Progress,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row per variant and seed: accuracy, parameters, MACs, latency, seconds of pruning, keep ratio of every block.

    base: the run that all variants are variations of
    latency_ratio: to the dense model of the last seed, all of them timed in turn
    keep_ratio_correlation is Spearman's, with the reference probes' run of the same seed; for the reference itself with
    its runs of the other seeds, which shows what a seed's noise alone does.
    Raises ValueError for an unknown variant.
    """
    if unknown := set(variants) - set(VARIANTS):
        raise ValueError(f"variant {sorted(unknown)[0]!r} is unknown. Known: {', '.join(VARIANTS)}")
    rows, models = [], {}
    for seed, variant in itertools.product(seeds, variants):
        method = variant if variant in methods.METHODS else "dap"
        # all variants of a seed share one dense reference, which the first of them trains
        dense = base.dense if variant == variants[0] else None
        pruning = replace(base.pruning, **VARIANTS[variant])
        config = replace(base, method=method, seed=seed, dense=dense, pruning=pruning)
        folder = root / f"{variant}-seed{seed}"
        say(folder.name)
        with locked(folder):
            run = Run.create(folder, config)
            context = Context(run, progress, lambda _: None)
            stages.run_training(context)
        rows.append(_row(run, variant))
        models[folder.name] = load_compact(context.model_folder)
        if dense:
            models["dense"] = context.dense_model()
    timed = latencies(models, context.view, say)
    for row in rows:
        row["latency_ms_p50"] = timed[f"{row['variant']}-seed{row['seed']}"].p50_ms
        row["latency_ratio"] = row["latency_ms_p50"] / timed["dense"].p50_ms
    for row in rows:
        itself = row["variant"] == "reference"
        compared = [r for r in rows if r["variant"] == "reference" and (r["seed"] != row["seed"]) == itself]
        row["top1_dense"] = next(r["top1_dense"] for r in rows if r["seed"] == row["seed"])
        row["keep_ratio_correlation"] = [_correlation(row, other) for other in compared]
    return rows


def _row(run: Run, variant: str) -> dict[str, Any]:
    pruned, small, records = run.results("prune"), run.results("finetune"), run.records()
    return {
        "variant": variant,
        "seed": run.config.seed,
        "sparsity_target": run.config.pruning.sparsity,
        "sparsity": 1 - small["params"] / run.results("prepare")["params_dense"],
        "epochs": [stage.epochs if stage else 0 for stage in (run.config.prune, run.config.finetune)],
        "top1_dense": run.results("dense")["top1_dense"],
        "top1_masked": pruned["top1_masked"],
        "top1": small["top1"],
        "params": small["params"],
        "macs": small["macs"],
        "prune_seconds": records["prune"]["seconds"],
        "keep_ratios": [block["keep_ratio"] for block in pruned["blocks"]],
    }


def _correlation(one: dict[str, Any], other: dict[str, Any]) -> float:
    return float(spearmanr(one["keep_ratios"], other["keep_ratios"]).statistic)

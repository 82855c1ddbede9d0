"""`make compare`: every method on the same data, with the same loop, seeds and number of epochs; so many rows.

Every cell is an ordinary run below one folder, so the queue can be killed and goes on where it was.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dap import load_compact
from pipeline import stages
from pipeline.config import RunConfig
from pipeline.context import Context
from pipeline.methods import METHODS, RELEASED, VARIANTS
from pipeline.presets import with_method
from pipeline.runs import Run, locked
from pipeline.side_by_side import latencies
from pipeline.train import Progress

KNOWN = (
    *METHODS,
    *(f"{method}:{variant}" for method, variants in VARIANTS.items() for variant in variants),
    *(f"{method}:released" for method in RELEASED),
)
OFF_TARGET = 0.01
"""a reached sparsity that is further than this from the one asked for is not comparable, and marked"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    method: str
    variant: str | None
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        variant = f"-{self.variant}" if self.variant else ""
        sparsity = "" if self.method == "dense" else f"-{self.sparsity:g}"
        return f"{self.method}{variant}{sparsity}-seed{self.seed}"


def cells(methods: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int]) -> list[Cell]:
    """The queue: seed by seed, in each first the dense model that the others are held against.

    methods: METHOD or METHOD:VARIANT. Raises ValueError for one that is not known.
    """
    queue = []
    for seed in seeds:
        queue.append(Cell("dense", None, 0.0, seed))
        for sparsity, spec in itertools.product(sparsities, methods):
            method, _, variant = spec.partition(":")
            if spec not in KNOWN:
                raise ValueError(f"METHODS: {spec!r} is unknown. Known: {', '.join(KNOWN)}")
            if method != "dense":
                queue.append(Cell(method, variant or None, sparsity, seed))
    return queue


def compare(
    base: RunConfig, root: Path, queue: Sequence[Cell], *, progress: Progress, say: Callable[[str], None]
) -> list[Row]:
    """Run every cell that has not finished; one row per cell, with the keys that docs/results/compare-*.json promises.

    base: the run that all cells are variations of
    root: the folder that holds the runs
    A cell that its method refuses (a sparsity out of reach) becomes a row with `error`; the others go on.
    Latency is that of the first seed of each method and sparsity, all timed in turn.
    """
    rows, models, view = [], {}, None
    for cell in queue:
        say(cell.name)
        folder, config = root / cell.name, _config(base, cell)
        with locked(folder):
            context = Context(Run.create(folder, config), progress, lambda _: None)
            try:
                stages.run_training(context)
            except ValueError as error:
                say(f"  {error}")
                rows.append(_row(cell, context.run, str(error)))
                continue
        rows.append(_row(cell, context.run, None))
        if cell.seed == queue[0].seed:
            view = context.view
            models[cell.name] = context.dense_model() if cell.method == "dense" else load_compact(context.model_folder)
    timed = latencies(models, view, say) if view else {}
    dense_top1 = {row["seed"]: row["top1"] for row in rows if row["method"] == "dense"}
    for cell, row in zip(queue, rows, strict=True):
        latency = timed.get(cell.name)
        row["top1_dense"] = dense_top1.get(cell.seed)
        row["latency_ms_p50"] = latency.p50_ms if latency else None
        row["latency_valid"] = latency.valid if latency else None
    return rows


def _config(base: RunConfig, cell: Cell) -> RunConfig:
    if cell.method == "dense":
        return replace(with_method(base, "dense"), seed=cell.seed)
    released = cell.variant == "released"
    settings = {} if released or cell.variant is None else VARIANTS[cell.method][cell.variant]
    config = with_method(base, cell.method, released=released, sparsity=cell.sparsity, **settings)
    return replace(config, seed=cell.seed, dense=None)


def _row(cell: Cell, run: Run, error: str | None) -> Row:
    config, records = run.config, run.records()
    dense = cell.method == "dense"
    start, small = run.results("prepare"), run.results("finetune")
    sparsity = 1 - small["params"] / start["params_dense"] if "params" in small else None
    trained = [config.dense] if dense else [config.prune, config.finetune]
    return {
        "method": cell.method,
        "variant": cell.variant,
        "sparsity_target": cell.sparsity,
        "sparsity": 0.0 if dense else sparsity,
        "off_target": sparsity is not None and abs(sparsity - cell.sparsity) > OFF_TARGET,
        "seed": cell.seed,
        "epochs": [stage.epochs if stage else 0 for stage in trained],
        "top1": run.results("dense").get("top1_dense") if dense else small.get("top1"),
        "params": start.get("params_dense") if dense else small.get("params"),
        "macs": start.get("macs_dense") if dense else small.get("macs"),
        "seconds": sum(record.get("seconds", 0.0) for record in records.values()),
        "keep_ratios": [block["keep_ratio"] for block in run.results("prune").get("blocks", [])] or None,
        "error": error,
    }

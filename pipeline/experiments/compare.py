"""`make compare`: every method on the same data, with the same loop, seeds and number of epochs; so many rows.

Every cell is an ordinary run below one folder, so the queue can be killed and goes on where it was, and several
processes can work on it: each takes the first cell that nobody is at.
"""

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from timm.models import VisionTransformer

from dap import load_compact
from pipeline import files, stages
from pipeline.config import RunConfig
from pipeline.context import Context
from pipeline.errors import Interrupted
from pipeline.experiments.cells import COMPENSATE, REFERENCE, UNROTATED, Cell
from pipeline.experiments.side_by_side import Timed, latencies
from pipeline.files import InUse, locked
from pipeline.methods import GATED, variant_settings
from pipeline.presets import with_method
from pipeline.runs import Run
from pipeline.train.evaluate import model_predictions
from pipeline.train.loop import Progress
from targets import strict

OFF_TARGET = 0.01
"""a reached sparsity that is further than this from the one asked for is not comparable, and marked"""

Row = dict[str, Any]


def compare(
    base: RunConfig,
    root: Path,
    queue: Sequence[Cell],
    *,
    jobs: int = 1,
    timed: bool = True,
    progress: Progress,
    say: Callable[[str], None],
) -> list[Row]:
    """Run every cell that has not finished; one row per cell, with the keys that docs/results/compare-*.json promises.

    base: the run that all cells are variations of
    root: the folder that holds the runs
    jobs: cells trained at a time, each on its share of the cores
    timed: whether to measure latency
    A cell that its method refuses (a sparsity out of reach) becomes a row with `error`; the others go on.
    Latency is that of the first seed of each method and sparsity, all timed in turn once nothing trains any more.
    keep_ratio_correlation: see _agreement.
    """
    for cell in queue:
        _config(base, root, cell)  # what is wrong with the settings should show before anything is trained
    with _helpers(base, root, queue, jobs):
        errors = _work(base, root, queue, progress, say)
    rows, models = [], {}
    for cell in queue:
        context = Context(Run.open(root / cell.name), progress, say)
        row = _row(cell, context.run, errors.get(cell.name))
        rows.append(row)
        if row["error"] is None:
            row["top1"], row["images"] = unseen(context, cell)
            if cell.seed == queue[0].seed:
                models[cell.name] = Timed(_model(context, cell), context.view)
    latency_of = latencies(models, say) if timed and models else {}
    dense_top1 = {row["seed"]: row["top1"] for row in rows if row["method"] == "dense"}
    for cell, row in zip(queue, rows, strict=True):
        latency = latency_of.get(cell.name)
        row["top1_dense"] = dense_top1.get(cell.seed)
        row["latency_ms_p50"] = latency.p50_ms if latency else None
        row["latency_valid"] = latency.valid if latency else None
        row["keep_ratio_correlation"] = _agreement(row, [other for other in rows if other["variant"] == REFERENCE])
    return rows


def _agreement(row: Row, references: Sequence[Row]) -> float | None:
    """Mean rank correlation of a row's keep ratios with those under the paper's probes; None if there are none.

    At the same seed and sparsity. For the paper's probes themselves at the other seeds, which shows what a seed alone
    does to them.
    """
    itself = row["variant"] == REFERENCE
    others = [
        other["keep_ratios"]
        for other in references
        if other["sparsity_target"] == row["sparsity_target"] and (other["seed"] == row["seed"]) != itself
    ]
    if not row["keep_ratios"] or not others or None in others:
        return None
    # each pair in one order, whoever asks: the last digit depends on it
    pairs = (sorted((row["keep_ratios"], other)) for other in others)
    return statistics.mean(float(spearmanr(*pair).statistic) for pair in pairs)


def _work(
    base: RunConfig, root: Path, queue: Sequence[Cell], progress: Progress, say: Callable[[str], None]
) -> dict[str, str]:
    """Train the cells that no other process is at, until all have finished; why cells were refused, by name."""
    errors: dict[str, str] = {}
    waiting = list(queue)
    while waiting:
        later = []
        for cell in waiting:
            waits = cell.is_taught and cell.teacher not in errors
            if waits and not Run(root / cell.teacher, base).results("dense"):
                later.append(cell)
                continue
            try:
                with locked(root / cell.name):
                    run = Run.create(root / cell.name, _config(base, root, cell))
                    if not run.results(_last_stage(cell)):
                        say(cell.name)
                    context = Context(run, progress, lambda _: None)
                    try:
                        if cell.is_taught and cell.teacher in errors:
                            raise ValueError(f"{cell.teacher} has failed: {errors[cell.teacher]}")
                        stages.run_training(context)
                        unseen(context, cell)
                    except ValueError as error:
                        say(f"  {error}")
                        errors[cell.name] = str(error)
            except InUse:
                later.append(cell)
        if len(later) == len(waiting):
            time.sleep(2)
        waiting = later
    return errors


@contextlib.contextmanager
def _helpers(base: RunConfig, root: Path, queue: Sequence[Cell], jobs: int) -> Iterator[None]:
    """Processes that work on the queue beside this one; they end with it."""
    threads = torch.get_num_threads()
    if jobs > 1:
        torch.set_num_threads(max(1, threads // jobs))
    context = multiprocessing.get_context("spawn")
    helpers = [
        context.Process(target=_help, args=(base, root, queue, torch.get_num_threads(), os.getpid()))
        for _ in range(jobs - 1)
    ]
    try:
        for helper in helpers:
            helper.start()
        yield
    finally:
        for helper in helpers:
            helper.terminate()  # one that trains takes a checkpoint first
        for helper in helpers:
            helper.join()
        torch.set_num_threads(threads)


def _help(base: RunConfig, root: Path, queue: Sequence[Cell], threads: int, parent: int) -> None:
    os.setsid()  # Ctrl-C is for the process that was started; it ends this one
    torch.set_num_threads(threads)

    def say(line: str) -> None:
        if os.getppid() != parent:
            raise Interrupted("the process that this one helps is gone")
        print(line, flush=True)

    # what is wrong with a cell's folder, the other process meets and tells as well
    with contextlib.suppress(Interrupted, ValueError):
        _work(base, root, queue, lambda *_: None, say)


def _model(context: Context, cell: Cell) -> VisionTransformer:
    return context.dense_model() if cell.method == "dense" else load_compact(context.model_folder)


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """What unseen.json holds."""

    model: dict[str, str]
    """files of the model that was measured -> their digests"""
    top1: float
    """percent"""
    images: int


def unseen(context: Context, cell: Cell) -> tuple[float, int]:
    """Top-1 in percent on every image that was not trained on, and how many those are; measured once.

    They are the split that accuracy is reported of and the training images that SUBSET leaves out: with few images,
    chance would hide the differences between methods.
    """
    path, model = context.run.folder / "unseen.json", context.run.files(_last_stage(cell))
    known: Unseen | None = strict.read_json(path, Unseen) if path.exists() else None
    if known is None or known.model != model:
        count = len(context.dataset.splits[context.dataset.top1_split].labels)
        top1, images = context.run.results(_last_stage(cell))["top1_dense" if cell.method == "dense" else "top1"], count
        if context.spare_batches is not None and context.dataset.spare is not None:
            images += len(context.dataset.spare.labels)
            spare = model_predictions(_model(context, cell), context.view, context.spare_batches).top1
            top1 = (top1 * count + spare * (images - count)) / images
        known = Unseen(model=model, top1=top1, images=images)
        files.write_json(path, asdict(known))
    return known.top1, known.images


def _last_stage(cell: Cell) -> str:
    return "dense" if cell.method == "dense" else "finetune"


def _config(base: RunConfig, root: Path, cell: Cell) -> RunConfig:
    if cell.method == "dense":
        return replace(with_method(base, "dense"), seed=cell.seed)
    settings: dict[str, Any] = {}
    for part in cell.parts:
        settings |= variant_settings(cell.method, part) or {}
    config = with_method(base, cell.method, released="released" in cell.parts, sparsity=cell.sparsity, **settings)
    return replace(
        config,
        seed=cell.seed,
        dense=None,
        teacher=str(root / cell.teacher / "checkpoints" / "dense") if cell.is_taught else None,
        teach="logits" if "logits" in cell.parts else "streams",
        rotate=UNROTATED not in cell.parts,
        compensate=COMPENSATE in cell.parts,
    )


def _row(cell: Cell, run: Run, error: str | None) -> Row:
    config, records = run.config, run.records()
    dense = cell.method == "dense"
    start, small = run.results("prepare"), run.results("finetune")
    sparsity = 1 - small["params"] / start["params_dense"] if "params" in small else None
    trained = [config.dense] if dense else [config.prune, config.finetune]
    blocks = run.results("prune").get("blocks", [])
    whole_stream = cell.method in GATED and config.pruning.gates == "inner"  # its widths say all of the small model
    return {
        "model": config.model,
        "img_size": config.img_size,
        "method": cell.method,
        "variant": cell.variant,
        "sparsity_target": cell.sparsity,
        "sparsity": 0.0 if dense else sparsity,
        "off_target": sparsity is not None and abs(sparsity - cell.sparsity) > OFF_TARGET,
        "seed": cell.seed,
        "epochs": [stage.epochs if stage else 0 for stage in trained],
        "top1": None,
        "top1_val": run.results("dense").get("top1_dense_val") if dense else small.get("top1_val"),
        "images": None,
        "params": start.get("params_dense") if dense else small.get("params"),
        "macs": start.get("macs_dense") if dense else small.get("macs"),
        "seconds": sum(record.seconds or 0.0 for record in records.values()),
        "benefit": _benefit(run),
        "keep_ratios": [block["keep_ratio"] for block in blocks] or None,
        "layers": [[attn["width"], mlp["width"]] for attn, mlp in zip(blocks[::2], blocks[1::2], strict=True)]
        if whole_stream and blocks
        else None,
        "error": error,
    }


def _benefit(run: Run) -> dict[str, dict[str, list[float]]] | None:
    """Measured benefit of every block, in nats, a third into pruning and at its end; None if it is not measured."""
    updates = [line for line in run.log.read() if "blocks" in line and line["blocks"][0]["bpi_class"] is not None]
    if not updates:
        return None
    third = min(updates, key=lambda line: abs(line["epoch"] - updates[-1]["epoch"] / 3))
    return {
        name: {tokens: [block[f"bpi_{tokens}"] for block in line["blocks"]] for tokens in ("class", "patch")}
        for name, line in (("third", third), ("end", updates[-1]))
    }

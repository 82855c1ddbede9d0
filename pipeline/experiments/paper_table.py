"""`make paper-table`: the published table, what it takes to make it again, and how much of it has been made here."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dap import count_macs, count_params
from pipeline import presets
from pipeline.data.catalog import KNOWN
from pipeline.experiments import miniature
from pipeline.experiments.cells import cells
from pipeline.experiments.compare import Row, compare
from pipeline.experiments.compare_report import NAMES
from pipeline.models import shell_of
from pipeline.train.loop import Progress
from targets import strict

MODELS = ("deit_small_patch16_224", "deit_tiny_patch16_224")
DATASETS = ("ifood", "inat19")
SPARSITIES = (0.5, 0.75)
METHODS = ("wdpruning", "savit", "dap")

PUBLISHED: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("deit_small_patch16_224", "ifood"): {
        "dense": (73.9,), "wdpruning": (50.7, 49.2), "savit": (72.4, 64.4), "dap": (74.3, 73.4)},
    ("deit_small_patch16_224", "inat19"): {
        "dense": (74.7,), "wdpruning": (55.6, 54.0), "savit": (71.3, 68.0), "dap": (75.5, 73.1)},
    ("deit_tiny_patch16_224", "ifood"): {
        "dense": (72.7,), "wdpruning": (50.2, 44.7), "savit": (65.7, 59.5), "dap": (71.5, 68.6)},
    ("deit_tiny_patch16_224", "inat19"): {
        "dense": (72.6,), "wdpruning": (54.8, 46.7), "savit": (64.1, 45.3), "dap": (69.3, 61.4)},
}  # fmt: skip
"""top-1 in percent at SPARSITIES, from the published comparison"""

# An assumption, not a measurement: an A100's bfloat16 peak, and the share of it that training a ViT commonly reaches.
PEAK_FLOPS, UTILISATION = 312e12, 0.3
PROBE_RATIO = 1.2  # the most that a pruning step may cost against a plain one


def commands() -> list[str]:
    """What makes the published table again."""
    return [command(model, dataset) for model in MODELS for dataset in DATASETS]


def command(model: str, dataset: str) -> str:
    """What makes its cells of one model and data set."""
    sparsities = " ".join(f"{sparsity:g}" for sparsity in SPARSITIES)
    return (
        f'make compare DATASET={dataset} MODEL={model} SPARSITIES="{sparsities}" METHODS="{" ".join(METHODS)}" SEEDS=0'
    )


def gpu_hours(model: str, dataset: str) -> float:
    """Expected hours of one GPU for `command`, from the multiply-accumulates of training alone (see UTILISATION)."""
    base = presets.paper(dataset, model, 0.5)
    assert base.prune is not None
    assert base.finetune is not None
    total = base.prune.epochs + base.finetune.epochs
    # the dense model; WD-Prune, which masks a whole one to the end; DAP while it prunes
    dense_epochs = total + len(SPARSITIES) * (total + base.prune.epochs * PROBE_RATIO)
    small_epochs = sum((1 - s) * (total + base.finetune.epochs) for s in SPARSITIES)  # SAViT, DAP's fine-tuning
    macs = count_macs(shell_of(model, KNOWN[dataset].classes))
    operations = 3 * 2 * macs * KNOWN[dataset].train_images * (dense_epochs + small_epochs)  # backward is two forwards
    return operations / (PEAK_FLOPS * UTILISATION) / 3600


def disk_bytes(model: str, dataset: str) -> int:
    """Room for the images, their archives while they are unpacked, and the runs (weights and AdamW's two moments)."""
    known = KNOWN[dataset]
    runs = 1 + len(METHODS) * len(SPARSITIES)
    params = count_params(shell_of(model, known.classes))
    return known.download_bytes + known.unpacked_bytes + runs * 10 * 4 * params


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What the table needs of a comparison's row."""

    method: str
    variant: str | None
    sparsity_target: float | None
    top1: float | None
    """percent"""


@dataclass(frozen=True, kw_only=True)
class _Results:
    rows: tuple[_Row, ...]


def table(results: Path) -> str:
    """The published numbers, each beside the one in `results`/compare-<dataset>-<model>.json, or `not run`."""
    head = [
        f"{dataset} {100 * s:g} %, {what}" for dataset in DATASETS for s in SPARSITIES for what in ("paper", "here")
    ]
    lines = [f"| model | method | {' | '.join(head)} |", f"| --- | --- |{' --- |' * len(head)}"]
    for model in MODELS:
        for method in ("dense", *METHODS):
            shown = []
            for dataset in DATASETS:
                file = results / f"compare-{dataset}-{model}.json"
                rows = strict.read_json(file, _Results, source="foreign").rows if file.exists() else ()
                for number, sparsity in enumerate(SPARSITIES):
                    published = PUBLISHED[model, dataset][method]
                    if number >= len(published):
                        shown += ["", ""]
                        continue
                    shown += [f"{published[number]}", _reproduced(rows, method, sparsity)]
            lines.append(f"| {model} | {NAMES[method]} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _reproduced(rows: Sequence[_Row], method: str, sparsity: float) -> str:
    mine = [
        row.top1
        for row in rows
        if row.method == method and row.variant is None and row.top1 is not None
        if method == "dense" or row.sparsity_target == sparsity
    ]
    return f"{statistics.mean(mine):.1f}" if mine else "not run"


def dry_run(
    folder: Path,
    *,
    models: tuple[str, ...] = MODELS,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, list[Row]]:
    """Every command for an epoch of a few steps per stage, from random weights, on miniatures in the true layout.

    folder: where the miniatures and the runs go
    Returns the rows of each command. Their accuracies mean nothing: the pictures are noise.
    """
    rows = {}
    for dataset in DATASETS:
        data = miniature.write(dataset, folder / dataset)
        for model in models:
            say(command(model, dataset))
            preset = presets.paper(dataset, model, 0.5)
            short = {
                stage: replace(getattr(preset, stage), epochs=epochs, batch_size=8, warmup_epochs=0)
                for stage, epochs in (("dense", 2), ("prune", 1), ("finetune", 1))
            }
            base = replace(preset, data=str(data), from_scratch=True, **short)
            queue = cells(METHODS, SPARSITIES, [0])
            rows[command(model, dataset)] = compare(
                base, folder / "runs" / f"{dataset}-{model}", queue, timed=False, progress=progress, say=say
            )
    return rows

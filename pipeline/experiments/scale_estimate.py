"""`make scale-estimate`: time and cost of a whole run on one GPU and on many, from steps that were measured on one.

A step takes what its arithmetic and its all-reduces take together (nothing that is sent is hidden behind computing), or
as long as its images take to be loaded, if that is more (they are loaded meanwhile). Arithmetic is that of a measured
step, by multiply-accumulates. Where several processes shared the GPU that was measured there are two answers, low and
high: that one process gets out of a GPU what all of them did; and that its step is never faster than one of theirs.
Gradients go round a ring: each process sends 2 (N - 1) / N of them, over the slowest connection.
"""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dap import PruneConfig, count_macs, count_params
from dap.indicator import GROUP
from pipeline import presets
from pipeline.data.catalog import KNOWN
from pipeline.experiments.bench_step import CLASSES
from pipeline.experiments.probe_sizes import BYTES_SENT, count_probes, weightless
from targets import strict

STAGES = ("dense", "prune", "finetune")
LOADER, INPUT = "ours", 224
"""the row of bench-loader: photographs, each decoded once: of DeiT's three copies in a row several processes share"""
BUCKET_BYTES = 25 * 2**20
"""gradients that DistributedDataParallel sends at a time"""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What was not measured."""

    images_per_gpu: int = 64
    """of a step"""
    cores_per_gpu: int = 8
    """that load images"""
    gpus_per_node: int = 8
    within_gb_s: float = 100.0
    """GB a second, one way, between two GPUs of a node"""
    between_gb_s: float = 12.5
    """between two nodes: 100 Gbit/s"""
    collective_us: float = 50.0
    """microseconds that an all-reduce takes beside its bytes"""
    price: float = 3.0
    """of one GPU for an hour, in any currency"""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < (value := getattr(self, field.name)) < math.inf:
                raise ValueError(f"{field.name.upper()}={value} must be a number above 0")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Steps of one model on one GPU."""

    gpu: str
    model: str
    macs: int
    """of one image forward, dense"""
    batch: int
    processes: int
    """that shared the GPU, each with such a step"""
    step_ms: dict[str, float]
    """stage -> milliseconds of a step of one of them"""


def measured(path: Path, sparsity: float) -> list[Measured]:
    """The steps of each model in a results file of `make bench-step` or `make compare`, made on a GPU.

    Of `make compare`: medians of the dense model, and of DAP at this sparsity. `make bench-step` has no small model,
    whose step counts as a dense one's. Raises ValueError if there are none.
    """
    found = strict.read_json(path, Row)
    try:
        gpu, rows = found["machine"]["gpu"], found["rows"]
        if found["command"].startswith("make bench-step"):
            ms = {(r["model"], r["batch"], r["probe"]): r["step_ms"] for r in rows if r["device"] == "cuda"}
            cards = [
                Measured(gpu=gpu, model=model, macs=count_macs(weightless(model, CLASSES)), batch=batch, processes=1,
                         step_ms={"dense": plain, "prune": ms[model, batch, "default"], "finetune": plain})
                for (model, batch, probe), plain in ms.items() if probe == "none"
            ]  # fmt: skip
        else:
            dense = [row for row in rows if row["method"] == "dense" and gpu]
            dap = [r for r in rows if (r["method"], r["variant"], r["sparsity_target"]) == ("dap", None, sparsity)]
            said = {name: int(number) for name, number in re.findall(r"\b(JOBS|BATCH_SIZE)=(\d+)", found["command"])}
            batch = said.get("BATCH_SIZE", presets.few_images("", "", sparsity).stages["dense"].batch_size)
            cards = [
                Measured(gpu=gpu, model=row["model"], macs=row["macs"], batch=batch, processes=said.get("JOBS", 1),
                         step_ms={stage: statistics.median(r["ms_per_step"][stage] for r in of)
                                  for stage, of in zip(STAGES, (dense, dap, dap), strict=True)})
                for row in dense[:1]
            ]  # fmt: skip
    except (KeyError, TypeError, statistics.StatisticsError) as error:
        wanted = f"steps of make bench-step, or of make compare, dense and dap at {sparsity:g}"
        raise ValueError(f"STEP={path} lacks {error}: {wanted}, are needed") from error
    if not cards:
        raise ValueError(f"STEP={path} was measured without a GPU. Run make bench-step on one, or take another file")
    return cards


def loaded_per_core(path: Path) -> float:
    """Images a second of one core, by `make bench-loader`."""
    for row in strict.read_json(path, Row).get("rows", []):
        if (row.get("loader"), row.get("input")) == (LOADER, INPUT):
            return row["images_per_s"] / row["workers"]
    raise ValueError(f"LOADER={path} has no row of {LOADER!r} at {INPUT} pixels. Run make bench-loader")


def all_reduce_ms(sent_bytes: float, calls: int, gpus: int, assumed: Assumed) -> float:
    """Milliseconds in which so many calls add up so many bytes over all GPUs."""
    if gpus == 1:
        return 0.0
    gb_s = assumed.within_gb_s if gpus <= assumed.gpus_per_node else assumed.between_gb_s
    return 2 * (gpus - 1) / gpus * sent_bytes / (gb_s * 1e6) + calls * assumed.collective_us / 1e3


def step(measured_ms: float, processes: int, work: float, reduce_ms: float, per_core: float, assumed: Assumed) -> Row:
    """What one step takes, low and high, and what limits it.

    measured_ms, processes: a step of one of the processes that shared a GPU
    work: multiply-accumulates of a GPU's step here, over those of the measured one
    """
    low = measured_ms / processes * work
    busy_ms = [ms + reduce_ms for ms in (low, max(low, measured_ms))]
    loader_ms = 1e3 * assumed.images_per_gpu / (per_core * assumed.cores_per_gpu)
    return {
        "compute_ms": [low, max(low, measured_ms)],
        "all_reduce_ms": reduce_ms,
        "loader_ms": loader_ms,
        "step_ms": [max(ms, loader_ms) for ms in busy_ms],
        "images_per_s_wanted": [1e3 * assumed.images_per_gpu / ms for ms in busy_ms],
        "cores_wanted": [1e3 * assumed.images_per_gpu / ms / per_core for ms in busy_ms],
        "limit": [
            "loading" if ms < loader_ms else "all-reduce" if reduce_ms > ms - reduce_ms else "computing"
            for ms in busy_ms
        ],
    }


def estimate(
    models: Sequence[str],
    datasets: Sequence[str],
    gpus: Sequence[int],
    sparsity: float,
    cards: Sequence[Measured],
    per_core: float,
    assumed: Assumed,
) -> list[Row]:
    """One row per data set, model and number of GPUs: every stage of its preset, hours, hours of GPUs, cost.

    cards: what was measured; that of the model itself, if it is among them, else the largest one, scaled
    """
    if unknown := [name for name in datasets if name not in KNOWN]:
        raise ValueError(f"DATASETS: {unknown[0]} is unknown. Known: {', '.join(KNOWN)}")
    if wrong := [count for count in gpus if count < 1]:
        raise ValueError(f"GPUS: {wrong[0]} must be 1 or more")
    rows = []
    for dataset, model, count in ((d, m, n) for d in datasets for m in models for n in gpus):
        config, known = presets.of(dataset, model, sparsity), KNOWN[dataset]
        shell, images = weightless(model, known.classes), count * assumed.images_per_gpu
        card = max(cards, key=lambda card: (card.model == model, card.macs))
        work = count_macs(shell) * assumed.images_per_gpu / (card.macs * card.batch)
        stages = {}
        for stage, train in config.stages.items():
            sent, calls = _sent(shell, stage, sparsity)
            reduce_ms = all_reduce_ms(sent, calls, count, assumed)
            one = step(card.step_ms[stage], card.processes, work, reduce_ms, per_core, assumed)
            steps = max(1, known.train_images // images) * train.epochs
            hours = [ms * steps / 3.6e6 for ms in one["step_ms"]]
            stages[stage] = {"epochs": train.epochs, "steps": steps, "sent_mb": sent / 1e6, **one, "hours": hours}
        total = [sum(one["hours"][end] for one in stages.values()) for end in (0, 1)]
        rows.append({"dataset": dataset, "model": model, "gpus": count, "images_per_step": images, "work": work,
                     "stages": stages, "hours": total, "gpu_hours": [count * hours for hours in total],
                     "cost": [count * hours * assumed.price for hours in total], "measured": asdict(card),
                     "images_per_s_per_core": per_core, "assumed": asdict(assumed)})  # fmt: skip
    return rows


def _sent(shell: Any, stage: str, sparsity: float) -> tuple[float, int]:
    """Bytes of gradients that are added up at a step, and in how many calls."""
    sent = BYTES_SENT * count_params(shell) * (1 - sparsity if stage == "finetune" else 1)
    calls = math.ceil(sent / BUCKET_BYTES) + 1  # and one with the loss
    if stage != "prune":
        return sent, calls
    norms = 4 * math.ceil(2 * len(shell.blocks) / GROUP)  # two of every group of probes, forward and backward
    return sent + BYTES_SENT * count_probes(shell, "default", PruneConfig().probe_rank), calls + 1 + norms


def report(rows: Sequence[Row]) -> str:
    """What was measured, what was assumed, the runs and their steps, as Markdown."""
    card, assumed, per_core = (rows[0][name] for name in ("measured", "assumed", "images_per_s_per_core"))
    times = ", ".join(f"{stage} {ms:.0f} ms" for stage, ms in card["step_ms"].items())
    runs, steps = [], []
    for row in rows:
        name = [row["dataset"], row["model"], row["gpus"]]
        totals = [_span(row[what]) for what in ("hours", "gpu_hours", "cost")]
        runs.append(
            [*name, f"{row['images_per_step']:,}", *(_span(row["stages"][s]["hours"]) for s in STAGES), *totals]
        )
        for stage, one in row["stages"].items() if row["dataset"] == rows[0]["dataset"] else ():
            steps.append([*name[1:], stage, _span(one["compute_ms"]), f"{one['sent_mb']:.0f}",
                          f"{one['all_reduce_ms']:.1f}", f"{one['loader_ms']:.0f}", _span(one["cores_wanted"]),
                          " to ".join(dict.fromkeys(one["limit"]))])  # fmt: skip
    return "\n".join([
        f"Measured: a step of {card['batch']} images of {card['model']} ({card['macs'] / 1e9:.2f} GMAC) on an "
        f"{card['gpu']} that {card['processes']} processes shared: {times}; {per_core:.0f} images/s loaded by a core.",
        "", f"Assumed: {', '.join(f'{name.upper()}={value:g}' for name, value in assumed.items())}.", "",
        *_table("data set|model|GPUs|images a step|dense, h|prune, h|fine-tune, h|all, h|GPU hours|cost", runs), "",
        *_table("model|GPUs|stage|computing, ms|sent, MB|all-reduce, ms|loading, ms|cores wanted a GPU|limit", steps),
    ]) + "\n"  # fmt: skip


def _table(head: str, rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head.split("|"), ["---"] * len(rows[0]), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def _span(ends: Sequence[float]) -> str:
    """Both ends with two digits: 0.31 to 2.4; once if they are the same."""
    return " to ".join(dict.fromkeys(f"{end:,.0f}" if end >= 10 else f"{end:.2g}" for end in ends))

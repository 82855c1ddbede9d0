"""report.json: what all stages of a run left, in the shape that scripts rely on. A missing measurement is null."""

from datetime import UTC, datetime
from typing import Any

from pipeline.config import to_dict
from pipeline.report import evidence, mistakes
from pipeline.report.mistakes import Judged
from pipeline.report.results import versions
from pipeline.runs import Run
from targets import TARGETS, strict

MEASURED = (
    *("params_dense", "params", "macs_dense", "macs", "top1_dense", "top1_masked", "top1_compact", "top1"),
    *("top1_dense_val", "top1_val"),
    *("balanced_accuracy_dense", "balanced_accuracy", "epoch_dense", "epoch_finetune"),
)


def judged_of(run: Run) -> Judged | None:
    """What the run's models made of the split that is reported on; None if no stage that tells has finished."""
    split = _top1_split(run)
    models = [
        model
        for model, stage in (("dense", "dense"), ("small", "finetune"))
        if str(evidence.path_of(run.folder, split, model).relative_to(run.folder)) in run.files(stage)
    ]
    if not models:
        return None
    classes = strict.read_json(run.folder / "model" / "labels.json", tuple[str, ...])
    return mistakes.read(run.folder, split, classes, models)


def _top1_split(run: Run) -> str:
    return str((run.results("prepare").get("data") or {}).get("top1_split", "val"))


def summarise(run: Run, judged: Judged | None = None) -> dict[str, Any]:
    """The contents of report.json. judged: what the models made of the split that is reported on"""
    config, records = run.config, run.records()
    found: dict[str, Any] = {}
    for record in records.values():
        found |= record.results
    artifacts = [artifact for target in TARGETS for artifact in _artifacts(run, target)]
    widths = found.get("widths_dense", [])
    data = found.get("data") or {}
    pruned = found.get("blocks", [])  # none before stage prune, or for METHOD=dense
    # one width per block: heads x head width, or hidden units
    blocks = [
        {**block, "width": block["heads"] * block["width"], "width_dense": width}
        for block, width in zip(pruned, widths, strict=bool(pruned))
    ]
    return {
        "run": run.folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": config.model,
        "dataset": config.dataset,
        "method": config.method,
        "seed": config.seed,
        "sparsity_target": config.pruning.sparsity if config.latency_ms is None else None,
        "sparsity": 1 - found["params"] / found["params_dense"] if "params" in found else None,
        **{key: found.get(key) for key in MEASURED},
        "mistakes": mistakes.summary(judged),
        "latency_ms_target": config.latency_ms,
        "latency_ms_predicted": found.get("latency_ms_predicted"),
        "latency_profile": found.get("latency_profile"),
        "seconds_per_stage": {name: record.seconds for name, record in records.items() if record.seconds is not None},
        "skipped_images": found.get("skipped_images", []),
        "data": data,
        "top1_split": _top1_split(run),
        "images_test": data["splits"].get("test", {}).get("images") if data else None,
        "blocks": blocks,
        "artifacts": artifacts,
        "versions": versions(),
        "next": None
        if artifacts or config.method == "dense"
        else f"make deploy TARGET={config.target} RUN={run.folder.name}",
        "config": to_dict(config),
    }


def _artifacts(run: Run, target: str) -> list[dict[str, Any]]:
    validated = run.results(f"validate {target}")
    exported = {**run.results(f"export {target}"), **validated.get("exported", {})}
    keys = (
        "parity",
        "top1",
        "top1_val",
        "latency_ms",
        "latency_dense_ms",
        "peak_mb",
        "load_ms",
        "end_to_end_ms",
        "unmeasured",
        "runtime",
        "budget",
        "reason",
        "images",
        "conditions",
        "device",
    )
    artifacts = []
    for file, entry in exported.items():
        measured = validated.get("artifacts", {}).get(file, {})
        artifacts.append(
            {
                "target": target,
                **{key: entry[key] for key in ("format", "precision", "role")},
                **{key: entry.get(key) for key in ("size_bytes", "sha256", "delegates", "ops_outside")},
                "export_seconds": entry.get("seconds"),
                "export_peak_mb": entry.get("peak_mb"),
                "file": f"artifacts/{target}/{file}" if "sha256" in entry else None,
                **{key: measured.get(key) for key in keys},
                "reason": measured.get("reason") or entry["error"],
                "threads": validated.get("threads"),
                "protocol": validated.get("protocol"),
                "shipped": measured.get("shipped", False),
                "verdict": measured.get("verdict", "not_measured"),
                "checks": measured.get("checks", []),
            }
        )
    return artifacts

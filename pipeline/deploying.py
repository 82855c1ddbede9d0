"""The stages of one target: export each precision that its budget allows, then ship the smallest that keeps to it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image
from timm.models import VisionTransformer

from dap import count_params, load_compact
from pipeline import files
from pipeline.context import Context, Results, Written
from pipeline.data import augment
from pipeline.gate import EXPORTED, Dense, Gate, nothing, precision_of
from pipeline.report.results import versions
from pipeline.train.evaluate import predictor
from targets import Target, manifest
from targets.artifact import ExportInfo, RuntimeUnavailable
from targets.budget import FormatBudget
from targets.devices.job import Device
from targets.formats import FORMATS
from targets.latency import Protocol
from targets.manifest import ArtifactFile, Golden, InputSpec, Manifest

GOLDEN_IMAGES = 8
CALIBRATION_IMAGES = 64

Budgets = dict[str, FormatBudget]


def export(context: Context, target: Target, budgets: Budgets) -> Written:
    """Every candidate: the small model in each format and precision allowed, and the dense one to compare with.

    What a converter refuses, or where it is missing, is a result of that candidate; the others go on.
    """
    folder = context.artifacts(target)
    small, dense = load_compact(context.model_folder).eval(), context.dense_model().eval()
    golden = _golden(context, folder, small)
    calibration = _calibration(context, budgets)
    described, results = [], {}
    for role, format, precision in _wanted(budgets):
        path = folder / f"{role}-{precision}{FORMATS[format].suffix}"
        context.say(f"  {path.name}")
        info, results[path.name] = _exported(
            context, small if role == "pruned" else dense, role, format, precision, path, calibration, budgets
        )
        if info:
            described.append(_described(info, role, format, precision))
    if not described:
        first = next(iter(results.values()))
        kind = RuntimeUnavailable if first["unavailable"] else ValueError
        raise kind(f"nothing could be exported: {first['error']}")
    contents = Manifest(
        model=context.run.config.model,
        dataset=context.run.config.dataset,
        target=target.name,
        labels=context.dataset.classes,
        input=_input(context),
        files=tuple(described),
        golden=tuple(golden),
        params=count_params(small),
        params_dense=count_params(dense),
        tools=versions(),
    )
    written = [manifest.write(contents, folder / EXPORTED)]
    for name, _ in contents.checksums():
        path = folder / name
        written += [inner for inner in path.rglob("*") if inner.is_file()] if path.is_dir() else [path]
    return written, results


def validate(context: Context, target: Target, budgets: Budgets, protocol: Protocol, device: Device | None) -> Written:
    """Try the candidates of each format, smallest file first, until one keeps to the budget; that one is shipped.

    All of this is judged on val. Where there is a test split, accuracy on it is reported, and decides nothing.
    If none passes, but one could not be measured and does not fail, that one is; its verdict is not_measured. What
    does not fail on this machine goes to the device. If that breaks off, what it would have measured is not measured.
    The result "unsettled" says what the same command might find otherwise, so that it tries again: a device that broke
    off or was busy, an artifact that its runtime, which can be replaced, refuses.
    """
    gate = Gate.of(context, target, protocol, device)
    exported = context.run.results(f"export {target.name}")
    results: Results = {}
    for format, budget in budgets.items():
        names = [name for name, entry in exported.items() if entry["format"] == format]
        dense_name, candidates = names[0], names[1:]  # in the order of export
        dense, found = gate.dense(dense_name)
        tried = _try(gate, candidates, exported, budget, dense)
        for timed in (one for one in tried.values() if one["latency_dense_ms"]):
            found |= {"latency_ms": timed["latency_dense_ms"], "device": timed["device"]}
        results |= {dense_name: found, **tried}
    written = _ship(gate, results)
    return written, {
        "unsettled": "; ".join([*gate.broke_off.values(), *gate.unsettled]) or None,
        "threads": target.threads,
        "protocol": protocol.name,
        "artifacts": results,
    }


# export


def _wanted(budgets: Budgets) -> Iterator[tuple[str, str, str]]:
    """Role, format and precision of every artifact: of each format the dense one first, as it comes uncompressed."""
    for format, budget in budgets.items():
        yield "dense", format, FORMATS[format].largest
        for precision in budget.precisions:
            yield "pruned", format, precision


def _calibration(context: Context, budgets: Budgets) -> np.ndarray | None:
    """(N, H, W, 3) uint8 for the precisions that need some; None if none does."""
    wanted = (FORMATS[format].precisions[precision] for _, format, precision in _wanted(budgets))
    return context.calibration_images(CALIBRATION_IMAGES) if any(one.calibrated for one in wanted) else None


def _exported(
    context: Context,
    model: VisionTransformer,
    role: str,
    format: str,
    precision: str,
    path: Path,
    calibration: np.ndarray | None,
    budgets: Budgets,
) -> tuple[ExportInfo | None, Results]:
    """Write one artifact. Returns what that left and its results; None, and the reason in those, if it cannot be."""
    entry: Results = {"role": role, "format": format, "precision": precision, "error": None}
    try:
        info = FORMATS[format].export(
            model,
            mean=context.view.mean,
            std=context.view.std,
            path=path,
            precision=precision,
            calibration=calibration,
            **(_labels(context, budgets[format]) if FORMATS[format].labelled else {}),
        )
    except (OSError, MemoryError):  # of this machine: the next candidate would not fare better
        raise
    except Exception as error:  # converters raise whatever is in them
        known = isinstance(error, ValueError | RuntimeUnavailable)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        context.say(f"    {text}")
        return None, {**entry, "error": text, "unavailable": isinstance(error, RuntimeUnavailable)}
    return info, {**entry, **{key: value for key, value in asdict(info).items() if key != "path"}}


def _labels(context: Context, budget: FormatBudget) -> Results:
    """What a file says of itself to others than our apps."""
    config = context.run.config
    return {
        "labels": context.dataset.classes,
        "about": {
            "license": f"that of the pretrained weights ({config.model}) and of the images ({config.dataset})",
            "model": config.model,
            "dataset": config.dataset,
            "budget": json.dumps(budget.limits.stated(), sort_keys=True),
        },
    }


def _described(info: ExportInfo, role: str, format: str, precision: str) -> ArtifactFile:
    known = FORMATS[format]
    return ArtifactFile(
        file=info.path.name,
        format=format,
        precision=precision,
        role=role,
        size_bytes=info.size_bytes,
        sha256=info.sha256,
        layout=known.layout,
        dtype=known.dtype,
        minimum_runtime=known.minimum_runtime(info.path),
    )


def _input(context: Context) -> InputSpec:
    view = context.view
    return InputSpec(
        height=view.size, width=view.size, color="RGB", range=(0.0, 255.0), resize=augment.resize_rule(view)
    )


def _golden(context: Context, folder: Path, model: VisionTransformer) -> list[Golden]:
    """A few validation images, cut to size, with the logits of the small model.

    Raises ValueError if those are no finite numbers: nothing could be held against them.
    """
    images, _ = next(iter(context.val_batches))
    chosen = images[:: max(1, len(images) // GOLDEN_IMAGES)][:GOLDEN_IMAGES]
    logits = predictor(model, context.view)(chosen)
    if not logits.isfinite().all():
        raise ValueError(
            f"the small model of {context.run.folder} computes no finite numbers: its training has diverged. Train it "
            "anew in another folder (RUN=name), with a lower learning rate (LR=)"
        )
    golden = []
    for number, (image, row) in enumerate(zip(chosen, logits, strict=True)):
        path = folder / "golden" / f"{number}.png"
        with files.atomic(path) as temporary:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, "PNG")
        golden.append(
            Golden(file=f"golden/{path.name}", sha256=files.digest(path), model=tuple(row.tolist()), artifacts={})
        )
    return golden


# validate


def _try(gate: Gate, names: list[str], exported: Results, budget: FormatBudget, dense: Dense) -> Results:
    """The results of a format's candidates by name, one of them marked as shipped, if there is one to ship.

    One that is missing, or does not run here, stops nobody: a larger one may be there, and run. Only if none of those
    passes or fails nothing, the smallest that does not run here is shipped: nothing speaks against it. What is to be
    computed in float16 and was not yet comes last of all.
    """
    results: Results = {}
    shipped, unproven = None, None

    def float16_of(name: str) -> str | None:
        entry = exported[name]
        return FORMATS[entry["format"]].precisions[entry["precision"]].float16_of

    for name in names:
        error = exported[name]["error"]
        if shipped:
            how = "passes" if results[shipped]["verdict"] == "pass" else "fails nothing that could be measured"
            better = "is computed in float16" if float16_of(shipped) == exported[name]["precision"] else "is smaller"
            reason = f"not tried: {exported[shipped]['precision']} {better} and {how}"
            results[name] = nothing("not_measured", reason)
        elif error:
            results[name] = nothing("not_measured" if exported[name]["unavailable"] else "fail", error)
        else:
            results[name] = gate.candidate(name, budget, dense)
            if results[name]["verdict"] != "fail":
                if results[name]["runtime"]:
                    shipped = name
                elif unproven is None or (float16_of(unproven) and not float16_of(name)):
                    unproven = name
    if best := shipped or unproven:
        results[best]["shipped"] = True
    return results


def _ship(gate: Gate, results: Results) -> list[Path]:
    """Write manifest.json of what is shipped, with its figures, and the single latencies; returns the files."""
    shipped = [entry for entry in gate.exported.files if results[entry.file]["shipped"]]
    formats = {entry.format for entry in shipped}
    beside = [entry for entry in gate.exported.files if entry.role == "dense" and entry.format in formats]
    samples, path = gate.folder / "latency.json", gate.folder / manifest.FILE_NAME
    files.write_json(samples, gate.samples)
    path.unlink(missing_ok=True)  # what does not pass is not left for an app to find
    if not shipped:
        return [samples, *gate.written]
    keys = ("device", "top1", "parity", "latency_ms", "peak_mb", "runtime", "checks", "verdict")
    measured = [
        replace(entry, measured={key: results[entry.file][key] for key in keys}) for entry in (*shipped, *beside)
    ]
    golden = [
        replace(
            golden,
            artifacts={
                entry.file: tuple(gate.golden_logits[entry.file][number].tolist())
                for entry in shipped
                if entry.file in gate.golden_logits
            },
        )
        for number, golden in enumerate(gate.exported.golden)
    ]
    shares = {entry.file: precision_of(entry).same_share for entry in shipped}
    contents = replace(gate.exported, files=tuple(measured), golden=tuple(golden), golden_share=shares)
    return [samples, *gate.written, manifest.write(contents, path)]

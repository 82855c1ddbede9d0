"""The stages of one target: export each precision that its budget allows, then ship the smallest that keeps to it."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models import VisionTransformer

from dap import count_params, load_compact
from pipeline import augment, files
from pipeline.context import Context, Results, Written
from pipeline.evaluate import predictor
from pipeline.results import versions
from targets import Target, manifest
from targets.artifact import Program, RuntimeUnavailable
from targets.budget import FormatBudget
from targets.devices import local
from targets.formats import FORMATS
from targets.latency import LatencyResult, Protocol
from targets.manifest import ArtifactFile, Golden, InputSpec, Manifest
from targets.validate import (
    GOLDEN_SHARE,
    GOLDEN_SHARE_REDUCED,
    SAME_SHARE,
    SAME_SHARE_REDUCED,
    Measurements,
    check_golden,
    judge,
    overall,
    parity,
    top1,
)

GOLDEN_IMAGES = 8
CALIBRATION_IMAGES = 64
EXPORTED = "exported.json"
"""manifest of everything that was exported; manifest.json names what is shipped"""

Budgets = dict[str, FormatBudget]


def export(context: Context, target: Target, budgets: Budgets) -> Written:
    """Every candidate: the small model in each format and precision allowed, and the dense one to compare with.

    What a converter refuses, or where it is missing, is a result of that candidate; the others go on.
    """
    folder, view = context.artifacts(target), context.view
    small, dense = load_compact(context.model_folder).eval(), context.dense_model().eval()
    calibration = None
    if any("static" in precision for budget in budgets.values() for precision in budget.precisions):
        calibration = context.calibration_images(CALIBRATION_IMAGES)
    described, results = [], {}
    for format, budget in budgets.items():
        # the dense model as it comes without compression
        wanted = [
            ("dense", dense, FORMATS[format].precisions[-1]),
            *(("pruned", small, precision) for precision in budget.precisions),
        ]
        for role, model, precision in wanted:
            path = folder / f"{role}-{precision}{FORMATS[format].suffix}"
            context.say(f"  {path.name}")
            entry: Results = {"role": role, "format": format, "precision": precision, "error": None}
            results[path.name] = entry
            try:
                info = FORMATS[format].export(
                    model, mean=view.mean, std=view.std, path=path, precision=precision, calibration=calibration
                )
            except (ValueError, RuntimeUnavailable) as error:
                context.say(f"    {error}")
                entry |= {"error": str(error), "unavailable": isinstance(error, RuntimeUnavailable)}
                continue
            entry |= {key: value for key, value in asdict(info).items() if key != "path"}
            described.append(
                ArtifactFile(
                    file=path.name,
                    format=format,
                    precision=precision,
                    role=role,
                    size_bytes=info.size_bytes,
                    sha256=info.sha256,
                    layout=FORMATS[format].layout,
                    dtype=FORMATS[format].dtype,
                    minimum_runtime=FORMATS[format].minimum_runtime(path),
                )
            )
    errors = [entry for entry in results.values() if entry["error"]]
    if not described:
        kind = RuntimeUnavailable if errors[0]["unavailable"] else ValueError
        raise kind(f"nothing could be exported: {errors[0]['error']}")
    contents = Manifest(
        model=context.run.config.model,
        dataset=context.run.config.dataset,
        target=target.name,
        labels=context.dataset.classes,
        input=InputSpec(
            height=view.size, width=view.size, color="RGB", range=(0.0, 255.0), resize=augment.resize_rule(view)
        ),
        files=tuple(described),
        golden=tuple(_golden(context, folder, small)),
        params=count_params(small),
        params_dense=count_params(dense),
        tools=versions(),
    )
    written = [manifest.write(contents, folder / EXPORTED)]
    for name, _ in contents.checksums():
        path = folder / name
        written += [inner for inner in path.rglob("*") if inner.is_file()] if path.is_dir() else [path]
    return written, results


def validate(context: Context, target: Target, budgets: Budgets, protocol: Protocol) -> Written:
    """Try the candidates of each format, smallest file first, until one keeps to the budget; that one is shipped.

    If none passes, but one could not be measured and does not fail, that one is; its verdict is not_measured.
    """
    gate = _Gate.of(context, target, protocol)
    exported = context.run.results(f"export {target.name}")
    results: Results = {}
    for format, budget in budgets.items():
        names = [name for name, entry in exported.items() if entry["format"] == format]
        dense_name, candidates = names[0], names[1:]  # in the order of export
        dense, results[dense_name] = gate.dense(dense_name)
        shipped = None
        for name in candidates:
            if shipped is not None:
                how = "passes" if results[shipped]["verdict"] == "pass" else "fails nothing that could be measured"
                reason = f"not tried: {exported[shipped]['precision']} is smaller and {how}"
                results[name] = _nothing("not_measured", reason)
                continue
            if exported[name]["error"]:
                verdict = "not_measured" if exported[name]["unavailable"] else "fail"
                results[name] = _nothing(verdict, exported[name]["error"])
            else:
                results[name] = gate.candidate(name, budget, dense)
                if results[name]["latency_dense_ms"]:
                    results[dense_name]["latency_ms"] = results[name]["latency_dense_ms"]
            if results[name]["verdict"] != "fail":
                shipped = name
                results[name]["shipped"] = not exported[name]["error"]
    written = gate.write(results)
    return written, {"device": gate.device, "threads": target.threads, "protocol": protocol.name, "artifacts": results}


@dataclass
class _Dense:
    """The dense artifact of a format, which candidates are held against."""

    program: Program | None
    top1: float | None


@dataclass
class _Gate:
    """What all candidates of a target are measured with."""

    context: Context
    target: Target
    protocol: Protocol
    folder: Path
    exported: Manifest
    device: dict[str, Any]
    small_logits: np.ndarray
    """(N, C) for the validation images, in PyTorch"""
    dense_logits: np.ndarray
    golden: list[np.ndarray]
    """RGB (1, H, W, 3) uint8"""
    samples: dict[str, list[float]]
    golden_logits: dict[str, np.ndarray]

    @staticmethod
    def of(context: Context, target: Target, protocol: Protocol) -> "_Gate":
        folder = context.artifacts(target)
        exported = manifest.read(folder / EXPORTED)
        if exported.labels != context.dataset.classes:
            raise ValueError(f"{folder / EXPORTED} has other labels than the data set. Export again")
        return _Gate(
            context=context,
            target=target,
            protocol=protocol,
            folder=folder,
            exported=exported,
            device=local.describe(),
            small_logits=_logits(context, load_compact(context.model_folder)),
            dense_logits=_logits(context, context.dense_model()),
            golden=[np.asarray(Image.open(folder / entry.file).convert("RGB"))[None] for entry in exported.golden],
            samples={},
            golden_logits={},
        )

    def dense(self, name: str) -> tuple[_Dense, Results]:
        """The dense artifact through its runtime. It is compared with, not shipped as a product: no budget."""
        entry = next((entry for entry in self.exported.files if entry.file == name), None)
        if entry is None:
            return _Dense(None, None), _nothing("not_measured", "it could not be exported")
        try:
            program = FORMATS[entry.format].load(self.folder / name, self.target.threads)
        except RuntimeUnavailable as error:
            return _Dense(None, None), _nothing("not_measured", str(error))
        found_NC = self._run(program, name)
        trained = self.context.run.config.dense is not None
        accuracy = top1(found_NC, self.context.dataset.val.labels) if trained else None
        found = _nothing("not_measured", None)
        found |= {
            "parity": asdict(parity(self.dense_logits, found_NC)),
            "top1": None if accuracy is None else 100 * accuracy,
            "runtime": f"{program.runtime} {program.runtime_version}",
        }
        return _Dense(program, accuracy), found

    def candidate(self, name: str, budget: FormatBudget, dense: _Dense) -> Results:
        """All checks of one pruned artifact. Latency and memory are not taken of one that has failed already."""
        entry = next(entry for entry in self.exported.files if entry.file == name)
        path, threads = self.folder / name, self.target.threads
        promised_GC = np.array([golden.model for golden in self.exported.golden], np.float32)
        share = GOLDEN_SHARE if entry.precision == "fp32" else GOLDEN_SHARE_REDUCED
        try:
            program = FORMATS[entry.format].load(path, threads)
        except RuntimeUnavailable as error:
            self.context.say(f"  {name}: {error}")
            known = Measurements(precision=entry.precision, size_bytes=entry.size_bytes, unmeasured=str(error))
            checks = [check_golden(promised_GC, None, share, str(error)), *judge(known, budget.limits)]
            return {**_nothing(overall(checks), str(error)), "checks": [asdict(check) for check in checks]}
        golden_GC = local.logits(program, self.golden)
        golden = check_golden(promised_GC, golden_GC, share)
        found_NC = self._run(program, name)
        labels_N = self.context.dataset.val.labels
        known = Measurements(
            precision=entry.precision,
            top1=top1(found_NC, labels_N),
            top1_model=top1(self.small_logits, labels_N),
            top1_dense=dense.top1,
            size_bytes=entry.size_bytes,
            parity=parity(self.small_logits, found_NC),
            unmeasured=self._why_untimed(program),
        )
        latencies: dict[str, LatencyResult] = {}
        if known.unmeasured is None and overall([golden, *judge(known, budget.limits)]) == "fail":
            known = replace(known, unmeasured="it has failed already")
        elif known.unmeasured is None:
            self.context.say(f"  {name}: {self.protocol.seconds:g} s of latency")
            programs = {"pruned": program} | ({"dense": dense.program} if dense.program else {})
            latencies = local.time(programs, self.golden[0], self.protocol)
            peak_mb = local.memory_mb(entry.format, path, threads, self.golden[0])
            known = replace(known, latency=latencies["pruned"], latency_dense=latencies.get("dense"), peak_mb=peak_mb)
            for role, latency in latencies.items():
                label = f"pruned {entry.format} {entry.precision}" if role == "pruned" else f"dense {entry.format}"
                self.samples[label] = list(latency.samples_ms)
        self.golden_logits[name] = golden_GC
        checks = [golden, *judge(known, budget.limits)]
        return {
            **_nothing(overall(checks), known.unmeasured),
            "parity": asdict(known.parity) if known.parity else None,
            "top1": None if known.top1 is None else 100 * known.top1,
            "latency_ms": latencies["pruned"].to_json() if latencies else None,
            "latency_dense_ms": latencies["dense"].to_json() if "dense" in latencies else None,
            "peak_mb": known.peak_mb,
            "runtime": f"{program.runtime} {program.runtime_version}",
            "budget": budget.limits.stated(),
            "checks": [asdict(check) for check in checks],
        }

    def write(self, results: Results) -> list[Path]:
        """manifest.json of what is shipped, with its figures, and the single latencies."""
        shipped = [entry for entry in self.exported.files if results[entry.file]["shipped"]]
        formats = {entry.format for entry in shipped}
        beside = [entry for entry in self.exported.files if entry.role == "dense" and entry.format in formats]
        samples = self.folder / "latency.json"
        files.write_json(samples, self.samples)
        path = self.folder / manifest.FILE_NAME
        path.unlink(missing_ok=True)  # what does not pass is not left for an app to find
        if not shipped:
            return [samples]
        keys = ("top1", "parity", "latency_ms", "peak_mb", "runtime", "checks", "verdict")
        measured = [
            replace(entry, measured={"device": self.device, **{key: results[entry.file][key] for key in keys}})
            for entry in (*shipped, *beside)
        ]
        golden = tuple(
            replace(
                golden,
                artifacts={
                    entry.file: tuple(self.golden_logits[entry.file][number].tolist())
                    for entry in shipped
                    if entry.file in self.golden_logits
                },
            )
            for number, golden in enumerate(self.exported.golden)
        )
        shares = {entry.file: SAME_SHARE if entry.precision == "fp32" else SAME_SHARE_REDUCED for entry in shipped}
        contents = replace(self.exported, files=tuple(measured), golden=golden, golden_share=shares)
        return [samples, manifest.write(contents, path)]

    def _why_untimed(self, program: Program) -> str | None:
        if not self.target.is_this_machine:
            return f"no {self.target.name} device has measured it"
        return None if program.timed else f"no time or memory: {program.runtime} stands in for the real runtime"

    def _run(self, program: Program, name: str) -> np.ndarray:
        total = len(self.context.dataset.val.labels)
        counted = partial(_counted, self.context, name, total)
        return local.logits(program, counted(_one_by_one(self.context.val_batches)))


def _nothing(verdict: str, reason: str | None) -> Results:
    """The results of an artifact of which nothing is measured."""
    keys = ("parity", "top1", "latency_ms", "latency_dense_ms", "peak_mb", "runtime", "budget")
    return {**dict.fromkeys(keys), "checks": [], "verdict": verdict, "reason": reason, "shipped": False}


def _golden(context: Context, folder: Path, model: VisionTransformer) -> list[Golden]:
    """A few validation images, cut to size, with the logits of the small model."""
    images, _ = next(iter(context.val_batches))
    chosen = images[:: max(1, len(images) // GOLDEN_IMAGES)][:GOLDEN_IMAGES]
    logits = predictor(model, context.view)(chosen)
    golden = []
    for number, (image, row) in enumerate(zip(chosen, logits, strict=True)):
        path = folder / "golden" / f"{number}.png"
        with files.atomic(path) as temporary:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, "PNG")
        golden.append(
            Golden(file=f"golden/{path.name}", sha256=files.digest(path), model=tuple(row.tolist()), artifacts={})
        )
    return golden


def _logits(context: Context, model: VisionTransformer) -> np.ndarray:
    """(N, C) of the whole validation split."""
    predict = predictor(model, context.view)
    return torch.cat([predict(images) for images, _ in context.val_batches]).numpy()


def _one_by_one(batches: Iterable) -> Iterator[np.ndarray]:
    for images, _ in batches:
        for image in images:
            yield image[None].permute(0, 2, 3, 1).numpy()


def _counted(context: Context, name: str, total: int, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for done, image in enumerate(images, start=1):
        yield image
        context.progress(name, done, total, {})

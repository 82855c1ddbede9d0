"""The stages of one target: export each precision that its budget allows, then ship the smallest that keeps to it."""

import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models import VisionTransformer

from dap import count_params, load_compact
from pipeline import files
from pipeline.context import Context, Results, Written
from pipeline.data import augment
from pipeline.latency_budget import check_asked
from pipeline.report.results import versions
from pipeline.train.evaluate import predictor
from targets import Target, manifest
from targets.artifact import Program, RuntimeUnavailable, sha256_of
from targets.budget import FormatBudget
from targets.devices.job import (
    GOLDEN,
    IMAGES,
    MEMORY,
    Device,
    DeviceError,
    DeviceResult,
    FormatUnavailable,
    Job,
    rows_of,
    write_result,
)
from targets.devices.measure import logits
from targets.formats import FORMATS, Precision
from targets.latency import Protocol
from targets.manifest import ArtifactFile, Golden, InputSpec, Manifest
from targets.validate import (
    Measurements,
    check_golden,
    judge,
    overall,
    parity,
    top1,
)

GOLDEN_IMAGES = 8
CALIBRATION_IMAGES = 64
DEVICE_IMAGES = 256
"""validation images that go to a device, evenly spread"""
EVERY = ""
RESULTS = "device"
"""folder of what devices answered, one file an artifact"""
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
    if any(FORMATS[name].precisions[one].calibrated for name, budget in budgets.items() for one in budget.precisions):
        calibration = context.calibration_images(CALIBRATION_IMAGES)
    described, results = [], {}
    for format, budget in budgets.items():
        # the dense model as it comes without compression
        wanted = [
            ("dense", dense, FORMATS[format].largest),
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


def validate(context: Context, target: Target, budgets: Budgets, protocol: Protocol, device: Device | None) -> Written:
    """Try the candidates of each format, smallest file first, until one keeps to the budget; that one is shipped.

    If none passes, but one could not be measured and does not fail, that one is; its verdict is not_measured. What
    does not fail on this machine goes to the device. If that breaks off, what it would have measured is not measured.
    The result "unsettled" says what the same command might find otherwise, so that it tries again: a device that broke
    off or was busy, an artifact that its runtime, which can be replaced, refuses.
    """
    gate = _Gate.of(context, target, protocol, device)
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
                    timed = results[name]
                    results[dense_name] |= {"latency_ms": timed["latency_dense_ms"], "device": timed["device"]}
            if results[name]["verdict"] != "fail":
                shipped = name
                results[name]["shipped"] = not exported[name]["error"]
    written = gate.write(results)
    return written, {
        "unsettled": "; ".join([*gate.broke_off.values(), *gate.unsettled]) or None,
        "threads": target.threads,
        "protocol": protocol.name,
        "artifacts": results,
    }


@dataclass
class _Dense:
    """The dense artifact of a format, which candidates are held against."""

    program: Program | None = None
    file: str | None = None
    logits: np.ndarray | None = None
    """(N, C)"""


@dataclass
class _Gate:
    """What all candidates of a target are measured with."""

    context: Context
    target: Target
    protocol: Protocol
    device: Device | None
    folder: Path
    exported: Manifest
    small_logits: np.ndarray
    """(N, C) for the validation images, in PyTorch"""
    dense_logits: np.ndarray
    golden: list[np.ndarray]
    """RGB (1, H, W, 3) uint8"""
    on_device: np.ndarray
    """rows of the validation images that go to the device"""
    samples: dict[str, list[float]] = field(default_factory=dict)
    golden_logits: dict[str, np.ndarray] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    broke_off: dict[str, str] = field(default_factory=dict)
    """why the device is of no use any more: by format, or under EVERY"""
    unsettled: list[str] = field(default_factory=list)
    """what else a repeat might find otherwise"""

    @staticmethod
    def of(context: Context, target: Target, protocol: Protocol, device: Device | None) -> "_Gate":
        folder = context.artifacts(target)
        exported = manifest.read(folder / EXPORTED)
        if exported.labels != context.dataset.classes:
            raise ValueError(f"{folder / EXPORTED} has other labels than the data set. Export again")
        shutil.rmtree(folder / RESULTS, ignore_errors=True)
        count = len(context.dataset.val.labels)
        return _Gate(
            context=context,
            target=target,
            protocol=protocol,
            device=device,
            folder=folder,
            exported=exported,
            small_logits=_logits(context, load_compact(context.model_folder)),
            dense_logits=_logits(context, context.dense_model()),
            golden=[np.asarray(Image.open(folder / entry.file).convert("RGB"))[None] for entry in exported.golden],
            on_device=np.unique(np.linspace(0, count - 1, DEVICE_IMAGES).astype(np.int64)),
        )

    def dense(self, name: str) -> tuple[_Dense, Results]:
        """The dense artifact through its runtime. It is compared with, not shipped as a product: no budget."""
        entry = next((entry for entry in self.exported.files if entry.file == name), None)
        if entry is None:
            return _Dense(), _nothing("not_measured", "it could not be exported")
        try:
            program = FORMATS[entry.format].load(self.folder / name, self.target.threads)
        except RuntimeUnavailable as error:
            return _Dense(), _nothing("not_measured", str(error))
        found_NC = self._run(program, name)
        trained = self.context.run.config.dense is not None
        found = _nothing("not_measured", None)
        found |= {
            "parity": asdict(parity(self.dense_logits, found_NC)),
            "top1": 100 * top1(found_NC, self.context.dataset.val.labels) if trained else None,
            "runtime": f"{program.runtime} {program.runtime_version}",
        }
        return _Dense(program, name, found_NC if trained else None), found

    def candidate(self, name: str, budget: FormatBudget, dense: _Dense) -> Results:
        """All checks of one pruned artifact: on this machine, then, unless it has failed, on the device."""
        entry = next(entry for entry in self.exported.files if entry.file == name)
        promised_GC = np.array([golden.model for golden in self.exported.golden], np.float32)
        share = _precision(entry).golden_share
        try:
            program = FORMATS[entry.format].load(self.folder / name, self.target.threads)
        except RuntimeUnavailable as error:
            self.context.say(f"  {name}: {error}")
            known = Measurements(reduced=_precision(entry).reduced, size_bytes=entry.size_bytes, unmeasured=str(error))
            checks = [check_golden(promised_GC, None, share, str(error)), *judge(known, budget.limits)]
            return {**_nothing(overall(checks), str(error)), "checks": [asdict(check) for check in checks]}
        self.golden_logits[name] = golden_GC = logits(program, self.golden)
        goldens = [check_golden(promised_GC, golden_GC, share)]
        found_NC = self._run(program, name)
        everything = np.arange(len(found_NC))
        known = self._accuracy(entry, found_NC, dense, everything)
        runtime, result = f"{program.runtime} {program.runtime_version}", None
        if overall([*goldens, *judge(known, budget.limits)]) == "fail":
            known = replace(known, unmeasured="it has failed already")
        elif reason := self._why_untried(program, entry.format):
            known = replace(known, unmeasured=reason)
        else:
            try:
                result = self._on_device(entry, dense, golden_GC)
            except DeviceError as error:
                self.broke_off[entry.format if isinstance(error, FormatUnavailable) else EVERY] = str(error)
                self.context.say(f"  {error}")
                known = replace(known, unmeasured=str(error))
        if result is not None and result.refused:
            self.unsettled.append(result.refused)
            return {**_nothing("fail", result.refused), "size_bytes": entry.size_bytes, "device": result.device}
        if result is not None:
            runtime = f"{result.runtime} {result.runtime_version}"
            if self.target.driver != "local":  # what this machine computed says less than what the device did
                same = _precision(entry).same_share
                there_GC = np.array(result.golden, np.float32)
                goldens.append(replace(check_golden(golden_GC, there_GC, same), name="golden_on_device"))
                there_NC = np.array(result.logits, np.float32)
                known = self._accuracy(entry, there_NC, dense, self.on_device)
            known = replace(
                known,
                latency=result.latency.get(name),
                latency_dense=result.latency.get(dense.file or ""),
                peak_mb=result.peak_mb,
                unmeasured=self.target.why_untimed(result.device),
            )
            if known.unmeasured:
                known = replace(known, latency=None, latency_dense=None, peak_mb=None)
        asked = check_asked(self.context.run, self.target.name, entry.format, known)  # none without LATENCY_MS
        checks = [*goldens, *judge(known, budget.limits), *asked]
        if result is not None and not known.unmeasured:
            lacking = {"latency_ratio_max": dense.file or "", "memory_mb_max": MEMORY}
            reasons = {name: result.unmeasured.get(what) for name, what in lacking.items()}
            checks = [replace(check, reason=reasons.get(check.name) or check.reason) for check in checks]
            if overall(checks) == "not_measured":
                noisy = [latency.why_invalid for latency in result.latency.values() if latency.why_invalid]
                self.unsettled += [*result.unmeasured.values(), *noisy]
        return {
            **_nothing(overall(checks), known.unmeasured),
            "parity": asdict(known.parity) if known.parity else None,
            "top1": None if known.top1 is None else 100 * known.top1,
            "images": len(found_NC) if self.target.driver == "local" or result is None else len(self.on_device),
            "latency_ms": known.latency.to_json() if known.latency else None,
            "latency_dense_ms": known.latency_dense.to_json() if known.latency_dense else None,
            "peak_mb": known.peak_mb,
            "runtime": runtime,
            "conditions": {"before": result.before, "after": result.after} if result else None,
            "device": result.device if result else None,
            "budget": budget.limits.stated(),
            "checks": [asdict(check) for check in checks],
        }

    def _accuracy(self, entry: ArtifactFile, found_NC: np.ndarray, dense: _Dense, rows_N: np.ndarray) -> Measurements:
        """Top-1 and parity of logits of these rows of the validation images; the other models' are those of the same.

        found_NC: (len(rows_N), C)
        """
        labels_N = self.context.dataset.val.labels[rows_N]
        return Measurements(
            reduced=_precision(entry).reduced,
            top1=top1(found_NC, labels_N),
            top1_model=top1(self.small_logits[rows_N], labels_N),
            top1_dense=None if dense.logits is None else top1(dense.logits[rows_N], labels_N),
            size_bytes=entry.size_bytes,
            parity=parity(self.small_logits[rows_N], found_NC),
        )

    def _on_device(self, entry: ArtifactFile, dense: _Dense, golden_GC: np.ndarray) -> DeviceResult:
        """What the device finds of a candidate, timed beside the dense artifact. Raises DeviceError."""
        assert self.device is not None, "a candidate is tried on a device that there is"
        names = [entry.file, dense.file] if dense.file else [entry.file]
        self.context.say(f"  {entry.file}: {self.protocol.seconds:g} s of latency on {self.device.name}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in names:
                (folder / file).symlink_to((self.folder / file).resolve())
            _write_pictures(folder / GOLDEN, self.golden)
            _write_pictures(folder / IMAGES, _chosen(_one_by_one(self.context.val_batches), self.on_device))
            job = Job(
                id=uuid.uuid4().hex,
                format=entry.format,
                files=tuple(names),
                sha256={file: sha256_of(folder / file) for file in (*names, GOLDEN, IMAGES)},
                threads=self.target.threads,
                height=self.exported.input.height,
                width=self.exported.input.width,
                classes=len(self.exported.labels),
                golden=rows_of(golden_GC),
                labels=tuple(self.context.dataset.val.labels[self.on_device].tolist()),
                protocol=self.protocol,
                memory=True,
            )
            result = self.device.run(job, folder, lambda what, done, total: self._tell(what, done, total))
        kept = self.folder / RESULTS / f"{entry.file}.json"
        kept.parent.mkdir(exist_ok=True)
        self.written.append(write_result(result, kept))
        for file, latency in result.latency.items():
            role = f"pruned {entry.format} {entry.precision}" if file == entry.file else f"dense {entry.format}"
            if latency.valid and not self.target.why_untimed(result.device):
                self.samples[role] = list(latency.samples_ms)
        return result

    def _tell(self, what: str, done: int, total: int) -> None:
        self.context.progress(f"{what} on {self.target.name}", done, total, {})

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
            return [samples, *self.written]
        keys = ("device", "top1", "parity", "latency_ms", "peak_mb", "runtime", "checks", "verdict")
        measured = [
            replace(entry, measured={key: results[entry.file][key] for key in keys}) for entry in (*shipped, *beside)
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
        shares = {entry.file: _precision(entry).same_share for entry in shipped}
        contents = replace(self.exported, files=tuple(measured), golden=golden, golden_share=shares)
        return [samples, *self.written, manifest.write(contents, path)]

    def _why_untried(self, program: Program, format: str) -> str | None:
        if self.device is None:
            return f"no {self.target.name} device has measured it"
        if not program.timed and self.target.driver == "local":
            return f"no time or memory: {program.runtime} stands in for the real runtime"
        return self.broke_off.get(EVERY) or self.broke_off.get(format)

    def _run(self, program: Program, name: str) -> np.ndarray:
        total = len(self.context.dataset.val.labels)
        counted = partial(_counted, self.context, name, total)
        return logits(program, counted(_one_by_one(self.context.val_batches)))


def _precision(entry: ArtifactFile) -> Precision:
    return FORMATS[entry.format].precisions[entry.precision]


def _nothing(verdict: str, reason: str | None) -> Results:
    """The results of an artifact of which nothing is measured."""
    keys = ("parity", "top1", "images", "latency_ms", "latency_dense_ms", "peak_mb", "runtime", "conditions", "budget")
    return {**dict.fromkeys((*keys, "device")), "checks": [], "verdict": verdict, "reason": reason, "shipped": False}


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


def _chosen(images: Iterable[np.ndarray], rows: np.ndarray) -> Iterator[np.ndarray]:
    wanted = set(rows.tolist())
    return (image for row, image in enumerate(images) if row in wanted)


def _write_pictures(path: Path, images: Iterable[np.ndarray]) -> None:
    """RGB (1, H, W, 3) uint8 one after the other, as a job has them."""
    with open(path, "wb") as file:
        for image in images:
            file.write(np.ascontiguousarray(image, np.uint8).tobytes())


def _counted(context: Context, name: str, total: int, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for done, image in enumerate(images, start=1):
        yield image
        context.progress(name, done, total, {})

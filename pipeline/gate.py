"""The gate of a target: each candidate is measured on this machine, then on the target's device, then judged."""

import io
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models import VisionTransformer

from dap import load_compact
from pipeline.context import Context, Results
from pipeline.data.photograph import photograph
from pipeline.exporting import EXPORTED
from pipeline.latency_budget import check_asked
from pipeline.train.evaluate import predictor
from targets import Target, manifest
from targets.artifact import Program, RuntimeUnavailable, sha256_of
from targets.budget import FormatBudget
from targets.devices.job import (
    END_TO_END,
    GOLDEN,
    IMAGES,
    LOADING,
    MEMORY,
    PHOTO,
    Device,
    DeviceError,
    DeviceResult,
    FormatUnavailable,
    Job,
    rows_of,
    write_result,
)
from targets.devices.measure import computes_float16, logits
from targets.formats import FORMATS, Precision
from targets.latency import FULL, Protocol, invalid
from targets.manifest import ArtifactFile, Manifest
from targets.resize import Resize
from targets.validate import Check, Measurements, check_golden, held_back, judge, overall, parity, top1

DEVICE_IMAGES = 256
"""validation images that go to a device, evenly spread"""
EVERY = ""
LOADS = 3
"""new processes in which a candidate's loading is timed; a single one where latency is measured for less than FULL"""
RESULTS = "device"
"""folder of what devices answered, one file an artifact"""


class Broken(Exception):
    """An artifact does not load or run on this machine, though its runtime is there; the text says how it ended."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The dense artifact of a format, which candidates are held against."""

    file: str | None = None
    """None: it does not run here"""
    logits: np.ndarray | None = None
    """(N, C); None too if the dense model is not trained"""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known of a candidate so far: the steps add to it."""

    entry: ArtifactFile
    golden: Check
    """on this machine, against the model"""
    known: Measurements
    top1_test: float | None = None
    """share of the test split, on this machine: reported, and no part in any choice; None: there is no such split"""
    golden_logits: np.ndarray | None = None
    """(G, C) on this machine"""
    images: int | None = None
    """how many of val its top-1 and parity are of"""
    runtime: str | None = None
    """what measured it; None: nothing has run it in its own arithmetic"""
    untimed: str | None = None
    """why time and memory on this machine say nothing"""
    result: DeviceResult | None = None
    golden_on_device: Check | None = None
    """on the device, against this machine; None: it has not answered, or is this machine"""


@dataclass
class Gate:
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
    promised: np.ndarray
    """(G, C) logits of the golden images, in PyTorch"""
    on_device: np.ndarray
    """rows of the validation images that go to the device"""
    photo: bytes
    """a JPEG file"""
    torch_s: float
    """seconds that PyTorch took for the logits of both models"""
    samples: dict[str, list[float]] = field(default_factory=dict)
    golden_logits: dict[str, np.ndarray] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    broke_off: dict[str, str] = field(default_factory=dict)
    """why the device is of no use any more: by format, or under EVERY"""
    unsettled: list[str] = field(default_factory=list)
    """what else a repeat might find otherwise"""

    @staticmethod
    def of(
        context: Context, target: Target, protocol: Protocol, device: Device | None, folder: Path | None = None
    ) -> "Gate":
        """The gate of what was exported into a folder, else of what stage export has left.

        Raises ValueError if that does not fit the run.
        """
        folder = folder or context.artifacts(target)
        exported = manifest.read(folder / EXPORTED)
        if exported.labels != context.dataset.classes:
            raise ValueError(f"{folder / EXPORTED} has other labels than the data set. Export again")
        shutil.rmtree(folder / RESULTS, ignore_errors=True)
        count = len(context.dataset.val.labels)
        started = time.monotonic()
        small_logits = _model_logits(context, load_compact(context.model_folder))
        dense_logits = _model_logits(context, context.dense_model())
        return Gate(
            context=context,
            target=target,
            protocol=protocol,
            device=device,
            folder=folder,
            exported=exported,
            small_logits=small_logits,
            dense_logits=dense_logits,
            torch_s=time.monotonic() - started,
            golden=[np.asarray(Image.open(folder / entry.file).convert("RGB"))[None] for entry in exported.golden],
            promised=np.array([golden.model for golden in exported.golden], np.float32),
            on_device=np.unique(np.linspace(0, count - 1, DEVICE_IMAGES).astype(np.int64)),
            photo=photograph(context.dataset.val.images),
        )

    def dense(self, name: str) -> tuple[Dense, Results]:
        """The dense artifact through its runtime. It is compared with, not shipped as a product: no budget."""
        entry = next((entry for entry in self.exported.files if entry.file == name), None)
        if entry is None:
            return Dense(), nothing("not_measured", "it could not be exported")
        try:
            program = self._loaded(entry)
            found_NC = self._validation_logits(program, name)
            top1_test = self._top1_test(program, name)
        except (RuntimeUnavailable, Broken) as error:
            self.context.say(f"  {name}: {error}")
            return Dense(), nothing("not_measured", str(error))
        trained = self.context.run.config.dense is not None
        found = {
            **nothing("not_measured", None),
            "parity": asdict(parity(self.dense_logits, found_NC)),
            **(self._top1s(top1(found_NC, self.context.dataset.val.labels), top1_test) if trained else {}),
            "runtime": _name(program),
        }
        return Dense(file=name, logits=found_NC if trained else None), found

    def candidate(self, name: str, budget: FormatBudget, dense: Dense) -> Results:
        """All checks of one pruned artifact: on this machine, then, unless it has failed, on the device."""
        entry = next(entry for entry in self.exported.files if entry.file == name)
        found = self._measure_here(entry, dense)
        reason = self._why_not_there(found, budget)
        if reason is None:
            found = self._measure_there(found, dense)
        else:
            found = replace(found, known=replace(found.known, unmeasured=reason))
        return self._judged(found, budget, dense)

    # the steps

    def _measure_here(self, entry: ArtifactFile, dense: Dense) -> Found:
        """Golden images, accuracy and parity through its runtime on this machine. That it does not run is a result.

        What a processor is to compute in float16 shows by the golden images that its file is whole, where this one
        cannot: in float32 accuracy and parity would be those of another arithmetic.
        """
        precision = precision_of(entry)
        try:
            program = self._loaded(entry)
            golden_GC = self._logits(program, self.golden)
            if precision.float16_of and not computes_float16():
                return self._in_float32(entry, golden_GC)
            found_NC = self._validation_logits(program, entry.file)
            top1_test = self._top1_test(program, entry.file)
        except (RuntimeUnavailable, Broken) as error:
            self.context.say(f"  {entry.file}: {error}")
            golden = check_golden(self.promised, None, precision.golden_share, str(error))
            if isinstance(error, Broken):
                golden = replace(golden, verdict="fail")
            known = Measurements(reduced=precision.reduced, size_bytes=entry.size_bytes, unmeasured=str(error))
            return Found(entry=entry, golden=golden, known=known)
        self.golden_logits[entry.file] = golden_GC
        return Found(
            entry=entry,
            golden=check_golden(self.promised, golden_GC, precision.golden_share),
            known=self._accuracy(entry, found_NC, dense, np.arange(len(found_NC))),
            top1_test=top1_test,
            golden_logits=golden_GC,
            images=len(found_NC),
            runtime=_name(program),
            untimed=None if program.timed else f"no time or memory: {program.runtime} stands in for the real runtime",
        )

    def _in_float32(self, entry: ArtifactFile, golden_GC: np.ndarray) -> Found:
        """What is known of a candidate for float16 from a machine without: nothing but its golden images and size."""
        self.golden_logits[entry.file] = golden_GC
        unmeasured = f"{entry.precision} is computed in float16, which this machine has not"
        return Found(
            entry=entry,
            golden=check_golden(self.promised, golden_GC, precision_of(entry).golden_share),
            known=Measurements(reduced=True, size_bytes=entry.size_bytes, unmeasured=unmeasured),
            golden_logits=golden_GC,
        )

    def _why_not_there(self, found: Found, budget: FormatBudget) -> str | None:
        """Why the device is not asked about a candidate."""
        if found.golden_logits is None:
            return found.known.unmeasured
        if overall([found.golden, *judge(found.known, budget.limits)]) == "fail":
            return "it has failed already"
        if self.device is None:
            return f"no {self.target.name} device has measured it"
        if found.untimed and self.target.is_here:
            return found.untimed
        return self.broke_off.get(EVERY) or self.broke_off.get(found.entry.format)

    def _measure_there(self, found: Found, dense: Dense) -> Found:
        """The same and time and memory on the device; what this machine computed says less than what that did."""
        entry, known, images = found.entry, found.known, found.images
        try:
            result = self._answer(found, dense)
        except DeviceError as error:
            self.broke_off[entry.format if isinstance(error, FormatUnavailable) else EVERY] = str(error)
            self.context.say(f"  {error}")
            return replace(found, known=replace(known, unmeasured=str(error)))
        if result.refused:
            self.unsettled.append(result.refused)
            return replace(found, result=result)
        golden: Check | None = None
        if not self.target.is_here:
            golden = self._golden_on_device(found, np.array(result.golden, np.float32), None)
            if precision_of(entry).float16_of and not result.float16:
                unmeasured = f"{entry.precision} is computed in float16, which {result.device['device']} has not"
                known = replace(known, unmeasured=unmeasured)
                return replace(found, known=known, golden_on_device=golden, result=result)
            known = self._accuracy(entry, np.array(result.logits, np.float32), dense, self.on_device)
            images = len(self.on_device)
        if untimed := self.target.why_untimed(result.device):
            known = replace(known, unmeasured=untimed)
        else:
            latency, latency_dense = result.latency.get(entry.file), result.latency.get(dense.file or "")
            known = replace(known, latency=latency, latency_dense=latency_dense, peak_mb=result.peak_mb)
        return replace(
            found,
            known=known,
            golden_on_device=golden,
            images=images,
            runtime=f"{result.runtime} {result.runtime_version}",
            result=result,
        )

    def _judged(self, found: Found, budget: FormatBudget, dense: Dense) -> Results:
        """Every check of a candidate, its verdict, and what was measured for it."""
        entry, known, result = found.entry, found.known, found.result
        if result is not None and result.refused:
            return {**nothing("fail", result.refused), "size_bytes": entry.size_bytes, "device": result.device}
        goldens = [found.golden]
        if not self.target.is_here:
            goldens.append(found.golden_on_device or self._golden_on_device(found, None, known.unmeasured))
        asked = check_asked(self.context.run, self.target.name, entry.format, known)  # none without LATENCY_MS
        checks = [*goldens, *judge(known, budget.limits), *asked]
        if result is not None and not known.unmeasured:
            lacking = {"latency_ratio_max": dense.file or "", "memory_mb_max": MEMORY}
            reasons = {name: result.unmeasured.get(what) for name, what in lacking.items()}
            checks = [replace(check, reason=reasons.get(check.name) or check.reason) for check in checks]
            if overall(checks) == "not_measured":
                doubts = {latency.why_invalid for latency in result.latency.values() if latency.why_invalid}
                limited = [why for what, why in result.unmeasured.items() if what not in (LOADING, END_TO_END)]
                self.unsettled += [*limited, *sorted(doubts)]
        return {
            **nothing(overall(checks), known.unmeasured),
            "parity": asdict(known.parity) if known.parity else None,
            **self._top1s(known.top1, found.top1_test),
            "images": found.images,
            "latency_ms": known.latency.to_json() if known.latency else None,
            "latency_dense_ms": known.latency_dense.to_json() if known.latency_dense else None,
            "peak_mb": known.peak_mb,
            **(self._from_file_to_answer(result) if result is not None and not known.unmeasured else {}),
            "runtime": found.runtime,
            "conditions": {"before": result.before, "after": result.after} if result else None,
            "device": result.device if result else None,
            "budget": budget.limits.stated(),
            "checks": [asdict(check) for check in checks],
        }

    def _from_file_to_answer(self, result: DeviceResult) -> Results:
        """What loading takes, and a photograph from end to end, as far as the device tells."""
        load, whole = result.loading, result.end_to_end
        with Image.open(io.BytesIO(self.photo)) as image:
            photo = {"width": image.width, "height": image.height, "bytes": len(self.photo)}
        return {
            "load_ms": load.to_json() if load else None,
            "end_to_end_ms": {**whole.to_json(), "photo": photo} if whole else None,
            "unmeasured": result.unmeasured,
            "threads": result.threads,
        }

    # what they are made of

    def _loaded(self, entry: ArtifactFile) -> Program:
        """Raises RuntimeUnavailable, Broken."""
        return _tried(FORMATS[entry.format].load, self.folder / entry.file, self.target.threads)

    def _logits(self, program: Program, images: Iterable[np.ndarray]) -> np.ndarray:
        """(N, C) of RGB images (1, H, W, 3) uint8. Raises RuntimeUnavailable, Broken."""
        expected = (1, len(self.exported.labels))

        def inference(image: np.ndarray) -> np.ndarray:
            row = np.asarray(program(image), np.float32)
            if row.shape != expected:
                raise ValueError(f"it computes {row.shape} numbers, not {expected}")
            return row

        return logits(lambda image: _tried(inference, image), images)

    def _validation_logits(self, program: Program, name: str) -> np.ndarray:
        """(N, C) of the whole validation split. Raises RuntimeUnavailable, Broken."""
        total = len(self.context.dataset.val.labels)
        return self._logits(program, _counted(self.context, name, total, _one_by_one(self.context.val_batches)))

    def _top1_test(self, program: Program, name: str) -> float | None:
        """Top-1 of the test split, if there is one. Raises RuntimeUnavailable, Broken."""
        test = self.context.dataset.test
        if test is None:
            return None
        images = _one_by_one(self.context.reported_batches)
        images = _counted(self.context, f"{name}, test", len(test.labels), images)
        return top1(self._logits(program, images), test.labels)

    def _top1s(self, val: float | None, test: float | None) -> Results:
        """Percent, of two shares: top-1 as it is reported, of test where there is one; and val's, which is judged by.

        A device that is not this machine measures val's, and test's is this machine's.
        """
        reported = val if self.context.dataset.test is None else test
        percent = [None if share is None else 100 * share for share in (reported, val)]
        return dict(zip(("top1", "top1_val"), percent, strict=True))

    def _accuracy(self, entry: ArtifactFile, found_NC: np.ndarray, dense: Dense, rows_N: np.ndarray) -> Measurements:
        """Top-1 and parity of logits of these rows of the validation images; the other models' are those of the same.

        found_NC: (len(rows_N), C)
        """
        labels_N = self.context.dataset.val.labels[rows_N]
        return Measurements(
            reduced=precision_of(entry).reduced,
            top1=top1(found_NC, labels_N),
            top1_model=top1(self.small_logits[rows_N], labels_N),
            top1_dense=None if dense.logits is None else top1(dense.logits[rows_N], labels_N),
            size_bytes=entry.size_bytes,
            parity=parity(self.small_logits[rows_N], found_NC),
        )

    def _golden_on_device(self, found: Found, there_GC: np.ndarray | None, unmeasured: str | None) -> Check:
        """Whether the device computes what this machine does: not measured until it has answered."""
        expected_GC = self.promised  # for the limit, if there is nothing sound to compare with
        if found.golden_logits is not None and found.golden.verdict == "pass":
            expected_GC = found.golden_logits
        share = precision_of(found.entry).same_share
        return check_golden(expected_GC, there_GC, share, unmeasured, name="golden_on_device")

    def _answer(self, found: Found, dense: Dense) -> DeviceResult:
        """What the device finds of a candidate, timed beside the dense artifact. Raises DeviceError.

        Its answer is kept as it is; a time at which the device was held back is not valid in what is returned.
        """
        assert self.device is not None, "a candidate is tried on a device that there is"
        entry = found.entry
        self.context.say(f"  {entry.file}: {self.protocol.seconds:g} s of latency on {self.device.name}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            job = self._job(found, dense, folder)
            result = self.device.run(job, folder, lambda what, done, total: self._tell(what, done, total))
        kept = self.folder / RESULTS / f"{entry.file}.json"
        kept.parent.mkdir(exist_ok=True)
        self.written.append(write_result(result, kept))
        if why := held_back(result.before, result.after):
            timed = {file: invalid(one, why) if one.valid else one for file, one in result.latency.items()}
            lacking = {LOADING: why, END_TO_END: why}
            result = replace(
                result, latency=timed, loading=None, end_to_end=None, unmeasured={**result.unmeasured, **lacking}
            )
        for file, latency in result.latency.items():
            role = f"pruned {entry.format} {entry.precision}" if file == entry.file else f"dense {entry.format}"
            if latency.valid and not self.target.why_untimed(result.device):
                self.samples[role] = list(latency.samples_ms)
        return result

    def _job(self, found: Found, dense: Dense, folder: Path) -> Job:
        """What a device is asked about a candidate, its files in `folder`."""
        assert found.golden_logits is not None, "what does not run here is not sent to a device"
        names = [found.entry.file, dense.file] if dense.file else [found.entry.file]
        for file in names:
            (folder / file).symlink_to((self.folder / file).resolve())
        _write_pictures(folder / GOLDEN, self.golden)
        _write_pictures(folder / IMAGES, _chosen(_one_by_one(self.context.val_batches), self.on_device))
        (folder / PHOTO).write_bytes(self.photo)
        return Job(
            id=uuid.uuid4().hex,
            format=found.entry.format,
            files=tuple(names),
            sha256={file: sha256_of(folder / file) for file in (*names, GOLDEN, IMAGES, PHOTO)},
            threads=self.target.threads,
            height=self.exported.input.height,
            width=self.exported.input.width,
            classes=len(self.exported.labels),
            golden=rows_of(found.golden_logits),
            labels=tuple(self.context.dataset.val.labels[self.on_device].tolist()),
            protocol=self.protocol,
            memory=True,
            loads=LOADS if self.protocol.seconds >= FULL.seconds else 1,
            resize=Resize.of(self.exported.input.resize),
        )

    def _tell(self, what: str, done: int, total: int) -> None:
        self.context.progress(f"{what} on {self.target.name}", done, total, {})


def nothing(verdict: str, reason: str | None) -> Results:
    """The results of an artifact of which nothing is measured."""
    keys = (
        "parity",
        "top1",
        "top1_val",
        "images",
        "latency_ms",
        "latency_dense_ms",
        "peak_mb",
        "load_ms",
        "end_to_end_ms",
        "unmeasured",
        "threads",
        "runtime",
        "conditions",
        "budget",
    )
    return {**dict.fromkeys((*keys, "device")), "checks": [], "verdict": verdict, "reason": reason, "shipped": False}


def _tried(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a runtime or an artifact answers, whatever it may raise. Raises RuntimeUnavailable, Broken."""
    try:
        return function(*arguments)
    except (OSError, MemoryError) as error:  # of this machine, not of the artifact
        raise RuntimeUnavailable(f"{type(error).__name__}: {error}") from error
    except RuntimeUnavailable:
        raise
    except ValueError as error:
        raise Broken(str(error)) from error
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {error}") from error


def precision_of(entry: ArtifactFile) -> Precision:
    """What is known of an artifact's precision."""
    return FORMATS[entry.format].precisions[entry.precision]


def _name(program: Program) -> str:
    return f"{program.runtime} {program.runtime_version}"


def _model_logits(context: Context, model: VisionTransformer) -> np.ndarray:
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

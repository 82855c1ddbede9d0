"""`make profile`: what a block costs on a device, from the times of small ViTs that differ in one kind of block.

Their weights are random, their exports those that a deployment would ship, and whatever reaches the target's devices
times them. With T(...) the median time of a model and n equal blocks of width w, in front of one dense attention:

    attn_last(w) = T(one attention of width w) - base      base = that T's line over w, continued to w = 0
    attn(w)      = (T(n attentions, one attention) - T(one attention)) / n
    mlp(w)       = (T(n MLPs, one attention) - T(one attention)) / n
    mlp_last(w)  = (T(one attention, n MLPs) - T(one attention)) / n

Each line is a job of its own, timed side by side, with T(one attention) in it to hold the jobs against each other.

A whole model is slower than its parts, which stay in a processor's caches. So a few whole models are timed as well,
each beside the dense one, as a deployment's gate times it; offset and factor that fit them best are applied to base and
curves. What remains as error is told.

latency_budget.py has what a run makes of it.
"""

import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import VisionTransformer

from dap.compact import compact
from dap.gates import branches_of, check_prunable
from pipeline.data.view import View
from pipeline.errors import EnvironmentLacks
from pipeline.model_names import check_name
from pipeline.models import shell_of
from pipeline.train.loop import Progress
from targets import Target
from targets import profile as profiles
from targets.artifact import RuntimeUnavailable, sha256_of
from targets.devices.drivers import connect
from targets.devices.job import GOLDEN, Device, DeviceError, DeviceResult, Job
from targets.formats import FORMATS
from targets.latency import Protocol
from targets.profile import Curve, Kind, Profile, Shape, Whole
from targets.validate import held_back

BLOCKS = 4
"""n: equal blocks in a row, so that noise counts a quarter"""
ATTN_WIDTHS, MLP_WIDTHS, MLP_LAST_WIDTHS = 7, 9, 3
"""points of the grid; what lies behind the last attention is a few per cent of a model"""
PARTS = 5
"""the spread is that of the estimates from so many parts of the measurement"""
CLASSES = 100
PROFILE = Protocol(name="profile", seconds=12.0, min_samples=100, warmup=10, cooldown_s=1.0)
FEW_SAMPLES = 4 * PARTS
NOISY = 0.1
"""error of the prediction for whole models above which the user is warned"""

WHOLE = ((1.0, 1, 1.0), (0.5, 1, 0.5), (1.0, 2, 0.5), (0.5, 3, 0.25))
"""the whole models: share of head width, every n-th layer that keeps its attention, share of hidden units"""

Layers = tuple[tuple[int, int], ...]
"""head width and hidden units of each layer, 0 for a block that is gone"""


def profile(
    target: Target,
    model: str,
    *,
    img_size: int | None = None,
    device: str | None = None,
    format: str | None = None,
    precision: str | None = None,
    protocol: Protocol = PROFILE,
    path: Path | None = None,
    say: Callable[[str], None],
    progress: Progress,
) -> tuple[Profile, Path]:
    """Measure the blocks of `model` on a device of the target, and add the profile to the target's file.

    img_size: pixels; None: the model's own
    device: as connect takes it;  format, precision: None: the first that the target's budget names
    protocol: of each job;  path: None: targets/profiles/<target>.json
    Returns the profile and its file. Raises ValueError for a model, format or precision that the target does not have,
    EnvironmentLacks without a device whose time counts, or if it breaks off.
    """
    format, precision = _chosen(target, format, precision)
    path = path or profiles.path_of(target.name)
    profiles.read(path)  # a damaged file should show before minutes are spent
    dense = dense_of(model, depth=1, img_size=img_size)
    shape, view = shape_of(dense), View.of(dense)
    try:
        connected = connect(target, device, say, format)
        if connected is None:
            raise EnvironmentLacks(f"a profile is measured on a device of TARGET={target.name}: name it with DEVICE=")
        if why := target.why_untimed(connected.description):  # before minutes are spent
            raise DeviceError(why)
        with tempfile.TemporaryDirectory() as folder:
            timing = _Timing(model, view, target, format, precision, connected, protocol, say, progress, Path(folder))
            kinds = timing.kinds(shape)
            curves, (base_ms, base_spread_ms) = _curves(kinds)
            whole, described = timing.whole(shape)
    except (DeviceError, RuntimeUnavailable) as error:
        raise EnvironmentLacks(str(error)) from error
    found = _fitted(
        Profile(
            target=target.name,
            device=described.device,
            format=format,
            precision=precision,
            threads=target.threads,
            runtime=f"{described.runtime} {described.runtime_version}",
            model=model,
            shape=shape,
            measured=datetime.now(UTC).date().isoformat(),
            base_ms=base_ms,
            base_spread_ms=base_spread_ms,
            curves=curves,
            whole=whole,
        )
    )
    if found.off() > NOISY:
        say(f"the prediction is off by up to {100 * found.off():.0f} % for whole models: was the device busy? "
            "Repeat the command when it is not")  # fmt: skip
    return found, profiles.add(found, path)


def shape_of(model: VisionTransformer) -> Shape:
    """The shape that a dense model's profile belongs to. Raises ValueError if its blocks differ or are unsupported."""
    attn, mlp = (branch.shape for branch in branches_of(check_prunable(model))[:2])
    return Shape(
        dim=attn.dim,
        heads=attn.heads,
        head_width=attn.width,
        hidden=mlp.width,
        tokens=attn.tokens,
        image_size=View.of(model).size,
        pool=str(model.global_pool),
        gated=mlp.gated,
    )


def grid(target: Target, shape: Shape, kind: Kind) -> list[int]:
    """Widths to measure: the smallest and the dense one, and some evenly between them, all allowed on the target.

    Raises ValueError if the target allows none.
    """
    attn, dense = kind.startswith("attn"), shape.dense_width(kind)
    count = ATTN_WIDTHS if attn else MLP_LAST_WIDTHS if kind == "mlp_last" else MLP_WIDTHS
    rule, factor = target.allowed_width, shape.heads if attn else 1
    allowed = [w for w in range(1, dense) if rule is None or rule("qkv" if attn else "hidden", factor * w)]
    allowed.append(dense)  # the dense model is what everything is compared with, whether its width is allowed or not
    wanted = np.linspace(allowed[0], dense, count)
    return sorted({min(allowed, key=lambda w: abs(w - aim)) for aim in wanted})


# timing


class _Timing:
    """What all jobs of a profile have in common."""

    def __init__(
        self,
        model: str,
        view: View,
        target: Target,
        format: str,
        precision: str,
        device: Device,
        protocol: Protocol,
        say: Callable[[str], None],
        progress: Progress,
        folder: Path,
    ) -> None:
        """folder: for the exports, of this profile alone."""
        self.model, self.view, self.target, self.format, self.precision = model, view, target, format, precision
        self.device, self.protocol, self.say, self.progress = device, protocol, say, progress
        self.folder = folder
        self.exported: dict[tuple[Layers, str], Path] = {}
        draw = np.random.default_rng(0)
        self.image = draw.integers(0, 256, (1, view.size, view.size, 3), dtype=np.uint8)

    def kinds(self, shape: Shape) -> dict[Kind, dict[int, np.ndarray]]:
        """Time of the models of every kind and width, (PARTS,) milliseconds each, width 0 being the reference."""
        K = shape.head_width
        layers: dict[Kind, Callable[[int], Layers]] = {
            "attn_last": lambda w: ((w, 0),),
            "attn": lambda w: (*[(w, 0)] * BLOCKS, (K, 0)),
            "mlp": lambda w: (*[(0, w)] * BLOCKS, (K, 0)),
            "mlp_last": lambda w: ((K, w), *[(0, w)] * (BLOCKS - 1)),
        }
        found: dict[Kind, dict[int, np.ndarray]] = {}
        for kind, of in layers.items():
            wanted = {0: ((K, 0),), **{w: of(w) for w in grid(self.target, shape, kind)}}
            asked = {f"{kind}-{width}": (some, self.precision) for width, some in wanted.items()}
            times, _ = self._job(kind, asked)
            found[kind] = {width: times[f"{kind}-{width}"] for width in wanted}
        # a machine that has become faster or slower from one job to the next shows it in the reference
        common = float(np.median([times[0] for times in found.values()]))
        return {k: {w: t * common / times[0] for w, t in times.items()} for k, times in found.items()}

    def whole(self, shape: Shape) -> tuple[tuple[Whole, ...], DeviceResult]:
        """The whole models of WHOLE, each timed beside the dense one in the format's largest precision.

        Also returns what the device has said of itself.
        """
        depth = depth_of(self.model)
        dense = ((shape.head_width, shape.hidden),) * depth, FORMATS[self.format].largest
        K, F = (grid(self.target, shape, kind) for kind in ("attn", "mlp"))
        found = []
        for number, (head_share, every, hidden_share) in enumerate(WHOLE, start=1):
            head_width = min(K, key=lambda w: abs(w - head_share * shape.head_width))
            hidden = min(F, key=lambda w: abs(w - hidden_share * shape.hidden))
            some = tuple((head_width if (depth - 1 - i) % every == 0 else 0, hidden) for i in range(depth))
            times, result = self._job(f"whole {number}/{len(WHOLE)}", {"some": (some, self.precision), "dense": dense})
            found.append((some, times))
        common = float(np.median([times["dense"] for _, times in found]))
        return tuple(
            Whole(layers=some, ms=float(np.median(times["some"] * common / times["dense"]))) for some, times in found
        ), result

    def _job(self, what: str, asked: Mapping[str, tuple[Layers, str]]) -> tuple[dict[str, np.ndarray], DeviceResult]:
        """(PARTS,) median milliseconds of each model, timed in turn on the device. asked: name -> layers, precision."""
        suffix = FORMATS[self.format].suffix
        names = {name: f"{name}{suffix}" for name in asked}
        with tempfile.TemporaryDirectory() as folder_name:
            folder = Path(folder_name)
            for done, (name, (layers, precision)) in enumerate(asked.items()):
                self.progress(f"{what}: exporting", done, len(asked), {})
                (folder / names[name]).symlink_to(self._exported(layers, precision))
            self.progress(f"{what}: exporting", len(asked), len(asked), {})
            (folder / GOLDEN).write_bytes(self.image.tobytes())
            job = Job(
                id=uuid.uuid4().hex,
                format=self.format,
                files=tuple(names.values()),
                sha256={name: sha256_of(folder / name) for name in (*names.values(), GOLDEN)},
                threads=self.target.threads,
                height=self.view.size,
                width=self.view.size,
                classes=CLASSES,
                golden=(
                    (0.0,) * CLASSES,
                ),  # a job has a picture to time only if it has logits of one; none are checked
                protocol=self.protocol,
            )
            self.say(f"  {what}: {len(names)} models in turn on {self.device.name}, {self.protocol.seconds:g} s")
            result = self.device.run(job, folder, lambda what, done, total: None)
        self._check(result)
        taken = {name: np.array_split(result.latency[file].samples_ms, PARTS) for name, file in names.items()}
        return {name: np.array([np.median(part) for part in parts]) for name, parts in taken.items()}, result

    def _exported(self, layers: Layers, precision: str) -> Path:
        """The file of a model of random weights, exported once."""
        known = (layers, precision)
        if known not in self.exported:
            path = self.folder / f"{len(self.exported)}{FORMATS[self.format].suffix}"
            FORMATS[self.format].export(
                stack(self.model, layers, self.view.size),
                mean=self.view.mean,
                std=self.view.std,
                path=path,
                precision=precision,
                calibration=self.image,
            )
            if self.target.driver == "local" and not FORMATS[self.format].load(path, self.target.threads).timed:
                raise RuntimeUnavailable(f"{self.format} has no runtime here whose time counts: take another FORMAT")
            self.exported[known] = path
        return self.exported[known]

    def _check(self, result: DeviceResult) -> None:
        """Raises DeviceError unless the times are a device's of this target."""
        if result.refused:
            raise DeviceError(f"the device refuses {result.file}: {result.refused}")
        if why := self.target.why_untimed(result.device):
            raise DeviceError(why)
        if result.unmeasured:
            raise DeviceError("; ".join(f"{what}: {why}" for what, why in result.unmeasured.items()))
        fewest = min(latency.samples for latency in result.latency.values())
        if fewest < FEW_SAMPLES:
            raise DeviceError(f"the device is too slow: {fewest} samples, {FEW_SAMPLES} needed")
        doubts = {latency.why_invalid for latency in result.latency.values() if latency.why_invalid}
        if why := held_back(result.before, result.after):
            doubts.add(why)
        for doubt in sorted(doubts):
            self.say(f"  doubtful: {doubt}. A profile that is measured anew may be better")


def dense_of(model: str, *, depth: int | None = None, img_size: int | None = None) -> VisionTransformer:
    """The dense model of a name with random weights, so many layers and an image size; None: its own."""
    check_name(model)
    options: dict[str, Any] = {} if depth is None else {"depth": depth}
    return check_prunable(shell_of(model, CLASSES, img_size=img_size, **options)).eval()


def stack(model: str, layers: Layers, img_size: int | None = None) -> VisionTransformer:
    """A model of that name's shape with random weights and these layers, compact, in eval mode."""
    dense = dense_of(model, depth=len(layers), img_size=img_size)
    widths = [width for layer in layers for width in layer]
    return compact(dense, branches_of(dense), [{"width": torch.arange(width)} for width in widths])


def _curves(kinds: Mapping[Kind, Mapping[int, np.ndarray]]) -> tuple[dict[Kind, Curve], tuple[float, float]]:
    """The curves, and the base's milliseconds and spread, from the time of every model."""
    first = kinds["attn_last"]
    widths = [width for width in first if width]
    _, base_P = np.polyfit(widths, np.stack([first[width] for width in widths]), 1)
    # one width alone has no line; and noise must not leave the smallest attention without a cost
    base_P = np.minimum(base_P, 0.99 * first[widths[0]]) if len(widths) > 1 else 0.5 * first[widths[0]]
    curves = {}
    for kind, times in kinds.items():
        alone_P, count = (base_P, 1) if kind == "attn_last" else (times[0], BLOCKS)
        added = {width: (time_P - alone_P) / count for width, time_P in times.items() if width}
        medians, spreads = ([float(of(ms_P)) for ms_P in added.values()] for of in (np.median, np.ptp))
        try:
            curves[kind] = Curve.measured(list(added), medians, spreads)
        except ValueError as error:
            raise DeviceError(f"{kind}: {error}. Repeat the command when it is not") from error
    return curves, (float(np.median(base_P)), float(np.ptp(base_P)))


def _fitted(found: Profile) -> Profile:
    """The profile with base and curves scaled so that its whole models are predicted best, in relative terms."""
    # measured = offset + factor x predicted, both sides divided by measured
    measured = np.array([whole.ms for whole in found.whole])
    predicted = np.array([found.predict_ms(whole.layers) for whole in found.whole])
    rows = np.stack([1 / measured, predicted / measured], 1)
    offset, factor = np.linalg.lstsq(rows, np.ones(len(measured)), rcond=None)[0]
    if factor <= 0 or offset + factor * found.base_ms <= 0:  # noise has the upper hand
        offset, factor = 0.0, float(np.median(measured / predicted))
    curves = {
        kind: Curve.measured(curve.widths, factor * np.array(curve.raw_ms), factor * np.array(curve.spread_ms))
        for kind, curve in found.curves.items()
    }
    return replace(
        found,
        base_ms=float(offset + factor * found.base_ms),
        base_spread_ms=float(factor * found.base_spread_ms),
        curves=curves,
    )


def _chosen(target: Target, format: str | None, precision: str | None) -> tuple[str, str]:
    """Format and precision of a profile. Raises ValueError for one that the target does not have."""
    budget = target.budget()
    format = format or next(iter(budget))
    if format not in target.offered:
        raise ValueError(f"FORMAT={format} is no format of TARGET={target.name}; it has {', '.join(target.offered)}")
    allowed = budget[format].precisions if format in budget else target.offered[format]
    precision = precision or allowed[0]
    if precision not in target.offered[format]:
        known = ", ".join(target.offered[format])
        raise ValueError(f"PRECISION={precision} is no precision of {format} on TARGET={target.name}; it has {known}")
    return format, precision


def depth_of(model: str) -> int:
    """Layers of the model of a name."""
    return len(dense_of(model).blocks)


def rows(found: Profile) -> list[dict[str, Any]]:
    """One row per kind and width, ready to show."""
    base = {"kind": "outside the blocks", "width": "", "ms": found.base_ms, "spread_ms": found.base_spread_ms}
    return [base] + [
        {"kind": kind, "width": width, "ms": ms, "spread_ms": spread_ms}
        for kind, curve in found.curves.items()
        for width, ms, spread_ms in zip(curve.widths, curve.ms, curve.spread_ms, strict=True)
    ]

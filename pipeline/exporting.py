"""The stage that exports for a target: of each format the dense model and the smallest candidate. Larger candidates are
made when the gate comes to them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models import VisionTransformer

from dap import count_params, load_compact
from pipeline import console, files
from pipeline.context import Context, Results, Written
from pipeline.data import augment
from pipeline.report.results import versions
from pipeline.train.evaluate import predictor
from targets import Target, manifest
from targets.artifact import CONVERTER_MB, RuntimeUnavailable, available_memory_mb, end_converters
from targets.budget import FormatBudget
from targets.formats import FORMATS
from targets.manifest import ArtifactFile, Golden, InputSpec, Manifest

GOLDEN_IMAGES = 8
CALIBRATION_IMAGES = 64
EXPORTED = "exported.json"
"""manifest of what stage export has made; manifest.json names what is shipped"""

SIDE_BY_SIDE = 2
"""converters at work at the same time, at most: each of them takes one processor, and memory"""
COPIES = 10
"""of a model's weights, that a converter holds at its peak"""
BLOCKS = 12
"""of the model that Format.converter_s is of"""

Budgets = dict[str, FormatBudget]


def export(context: Context, target: Target, budgets: Budgets) -> Written:
    """Of each format the dense model, to compare with, and the smallest candidate of the small one that can be made.

    What a converter refuses, or where it is missing, is a result of that candidate; the others go on. The results name
    every candidate: those without a sha256 are not made.
    """
    folder = context.artifacts(target)
    contents, results = export_into(context, target, budgets, folder, smallest=True)
    if contents is None:
        first = next(iter(results.values()))
        kind = RuntimeUnavailable if first["unavailable"] else ValueError
        raise kind(f"nothing could be exported: {first['error']}")
    made = [name for name, _ in contents.checksums()]
    for name in results.keys() - {*made}:
        _remove(folder / name)  # it would be another model's
    written = [manifest.write(contents, folder / EXPORTED)]
    for name in made:
        written += files_of(folder / name)
    return written, results


def export_into(
    context: Context,
    target: Target,
    budgets: Budgets,
    folder: Path,
    kept: Mapping[str, ArtifactFile] | None = None,
    *,
    smallest: bool = False,
) -> tuple[Manifest | None, Results]:
    """The candidates and golden images of a target in a folder; what describes them, None if nothing could be made.

    Several formats are converted side by side.
    kept:     artifacts that lie there already, by name; they are not made again
    smallest: leave out all candidates but the smallest of each format that can be made
    """
    maker = Maker.of(context, folder, budgets)
    golden = _golden(context, folder, maker.small)
    described = dict(kept or {})
    results = _side_by_side(maker, described, smallest)
    made = [described[name] for name, entry in results.items() if "sha256" in entry]
    if not made:
        return None, results
    contents = Manifest(
        model=context.run.config.model,
        dataset=context.run.config.dataset,
        target=target.name,
        labels=context.dataset.classes,
        input=_input(context),
        files=tuple(made),
        golden=tuple(golden),
        params=count_params(maker.small),
        params_dense=count_params(maker.dense),
        tools=versions(),
    )
    return contents, results


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes artifacts of a run's models, one at a time."""

    context: Context
    folder: Path
    budgets: Budgets
    small: VisionTransformer
    dense: VisionTransformer
    calibration: np.ndarray | None
    """(N, H, W, 3) uint8 for the precisions that need some; None if none does"""

    @staticmethod
    def of(context: Context, folder: Path, budgets: Budgets) -> "Maker":
        """For a folder, with the models of a run that has been trained."""
        wanted = (FORMATS[name].precisions[one] for name, budget in budgets.items() for one in budget.precisions)
        calibrated = any(one.calibrated for one in wanted)
        return Maker(
            context=context,
            folder=folder,
            budgets=budgets,
            small=load_compact(context.model_folder).eval(),
            dense=context.dense_model().eval(),
            calibration=context.calibration_images(CALIBRATION_IMAGES) if calibrated else None,
        )

    def make(self, name: str, entry: Results) -> Results:
        """Write one artifact. Returns its results: `entry` with what that left, or with the reason if it cannot be.

        entry: role, format and precision
        """
        format = FORMATS[entry["format"]]
        self.context.say(f"  {name}")
        try:
            info = format.export(
                self.small if entry["role"] == "pruned" else self.dense,
                mean=self.context.view.mean,
                std=self.context.view.std,
                path=self.folder / name,
                precision=entry["precision"],
                calibration=self.calibration,
                **(self._labels(self.budgets[format.name]) if format.labelled else {}),
            )
        except (OSError, MemoryError):  # of this machine: the next candidate would not fare better
            raise
        except Exception as error:  # converters raise whatever is in them
            known = isinstance(error, ValueError | RuntimeUnavailable)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            return {**entry, "error": text, "unavailable": isinstance(error, RuntimeUnavailable)}
        return {**entry, **{key: value for key, value in asdict(info).items() if key != "path"}}

    def described(self, name: str, entry: Results) -> ArtifactFile:
        """An artifact that is made, as a manifest has it. entry: its results"""
        known = FORMATS[entry["format"]]
        return ArtifactFile(
            file=name,
            format=known.name,
            precision=entry["precision"],
            role=entry["role"],
            size_bytes=entry["size_bytes"],
            sha256=entry["sha256"],
            layout=known.layout,
            dtype=known.dtype,
            minimum_runtime=known.minimum_runtime(self.folder / name),
        )

    def _labels(self, budget: FormatBudget) -> Results:
        """What a file says of itself to others than our apps."""
        config = self.context.run.config
        return {
            "labels": self.context.dataset.classes,
            "about": {
                "license": f"that of the pretrained weights ({config.model}) and of the images ({config.dataset})",
                "model": config.model,
                "dataset": config.dataset,
                "budget": json.dumps(budget.limits.stated(), sort_keys=True),
            },
        }


def _side_by_side(maker: Maker, described: dict[str, ArtifactFile], smallest: bool) -> Results:
    """The results of every candidate by name, format by format; several formats are converted at the same time.

    described: what is there already, by name; what is made is added
    """
    at_once = min(len(maker.budgets), _at_once(maker.dense))
    if smallest:
        maker.context.say(f"  {_estimate(maker, at_once)}")
    ended = False
    with ThreadPoolExecutor(at_once) as threads:
        waiting = [
            threads.submit(_one_format, maker, name, dict(described), smallest, lambda: ended) for name in maker.budgets
        ]
        try:
            for one in as_completed(waiting):
                # while others are still at work: to read a file back may load much
                of = ((name, entry) for name, entry in one.result().items() if "sha256" in entry)
                described |= {name: maker.described(name, entry) for name, entry in of if name not in described}
        except BaseException:  # Ctrl-C, or a full disk: nobody waits for the others
            ended = True
            while wait(waiting, timeout=0.1).not_done:
                end_converters()
            raise
    return {name: entry for one in waiting for name, entry in one.result().items()}


def _one_format(
    maker: Maker, format: str, kept: Mapping[str, ArtifactFile], smallest: bool, ended: Callable[[], bool]
) -> Results:
    """The dense artifact, as it comes uncompressed, and candidates, smallest first, if need be until one is made."""
    results: Results = {}
    enough = False
    wanted = [("dense", FORMATS[format].largest), *(("pruned", one) for one in maker.budgets[format].precisions)]
    for role, precision in wanted:
        name = f"{role}-{precision}{FORMATS[format].suffix}"
        entry: Results = {"role": role, "format": format, "precision": precision, "error": None}
        if name in kept:
            entry |= {key: getattr(kept[name], key) for key in ("size_bytes", "sha256")}
        elif not enough and not ended():
            entry = maker.make(name, entry)
            if entry["error"] and not ended():
                maker.context.say(f"  {name}: {entry['error']}")
        enough = enough or (smallest and role == "pruned" and "sha256" in entry)
        results[name] = entry
    return results


def _at_once(model: VisionTransformer) -> int:
    """How many converters work at the same time: as many as processors and memory are free for, two at most."""
    each_mb = CONVERTER_MB + COPIES * 4 * count_params(model) / 1e6
    fit = SIDE_BY_SIDE if (free_mb := available_memory_mb()) is None else int(free_mb / each_mb)
    return max(1, min(SIDE_BY_SIDE, torch.get_num_threads(), fit))


def _estimate(maker: Maker, at_once: int) -> str:
    """What is converted, and how long that will take, in words."""
    share = len(maker.dense.blocks) / BLOCKS
    seconds = [loading + 2 * share * each for loading, each in (FORMATS[name].converter_s for name in maker.budgets)]
    formats = console.count(len(maker.budgets), "format")
    beside = f", {at_once} at a time" if at_once > 1 else ""
    return f"to export: 2 files of {formats}{beside}; {console.about(max(max(seconds), sum(seconds) / at_once))}"


def files_of(artifact: Path) -> list[Path]:
    """The file, or those in the folder."""
    return [inner for inner in artifact.rglob("*") if inner.is_file()] if artifact.is_dir() else [artifact]


def _remove(artifact: Path) -> None:
    if artifact.is_dir():
        shutil.rmtree(artifact)
    else:
        artifact.unlink(missing_ok=True)


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

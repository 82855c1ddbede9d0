"""`make bench`: every format and precision that a target can have and this machine can make, measured, in one table.

It leaves alone what `make deploy` has made, and uses it: runs/<name>/bench/<target>/ has bench.csv, bench.json and the
artifacts, those of the deployment as links. No budget decides: what is wrong, or slow, stands in the table.
"""

import csv
import io
import os
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.table import Table
from rich.text import Text

from dap import load_compact
from pipeline import exporting, files, stages
from pipeline.context import Context, Results
from pipeline.errors import EnvironmentLacks
from pipeline.exporting import EXPORTED
from pipeline.gate import Gate
from pipeline.report.report import NOT_MEASURED, show
from pipeline.report.results import versions, write_results
from pipeline.train.evaluate import predictor
from targets import Target, manifest
from targets.artifact import replacing
from targets.budget import Budget, FormatBudget
from targets.devices.drivers import connect
from targets.devices.job import DeviceError
from targets.formats import FULL
from targets.latency import Protocol
from targets.manifest import ArtifactFile, Manifest

EVERYTHING = Budget(top1_min=0.0)
"""a limit that nothing misses"""
MEASURED, IN_PART, FAILED = "measured", "in part", "failed"
"""statuses, beside NOT_MEASURED"""
WIDTH = 112
"""characters that the table needs"""
STYLES = {MEASURED: "green", IN_PART: "yellow", FAILED: "bold red", NOT_MEASURED: "yellow"}

Row = dict[str, Any]
"""as `_row` makes it; None: not measured"""


def bench(context: Context, target: Target, protocol: Protocol, device: str | None, command: str) -> list[Row]:
    """One row per artifact, in order of format and size; the table's files are written anew after each of them.

    command: what makes the same table again
    Raises ValueError as stages.run_deploying does, EnvironmentLacks if the device cannot be reached.
    """
    stages.check_small_model(context.run)
    try:
        connected = connect(target, device, context.say)
    except DeviceError as error:
        raise EnvironmentLacks(str(error)) from error
    folder = folder_of(context, target)
    found, results = _artifacts(context, target, folder)
    if found is None:
        return _written(context, target, command, [_row(target, protocol, of, {}) for of in results.values()])
    gate = Gate.of(context, target, protocol, connected, folder)
    rows: list[Row] = []
    for format in target.offered:
        (dense_name, *names) = [name for name, of in results.items() if of["format"] == format]
        dense, dense_found = gate.dense(dense_name)
        taken = []
        for name in names:
            of = results[name]
            measured: Results = {} if of["error"] else gate.candidate(name, _limits(target, format), dense)
            if times := measured.get("latency_dense_ms"):
                dense_found |= {"latency_ms": times, "device": measured["device"], "threads": measured["threads"]}
            taken.append(_row(target, protocol, of, measured, name))
            _written(context, target, command, [*rows, *taken])
        if dense_found["latency_ms"] is None:
            dense_found["reason"] = dense_found["reason"] or "it is timed beside a candidate, and none was timed"
        rows += [*taken, _row(target, protocol, results[dense_name], dense_found, dense_name)]
    return _written(context, target, command, rows)


def folder_of(context: Context, target: Target) -> Path:
    """Where the table and its artifacts are."""
    return context.run.folder / "bench" / target.name


def ran(rows: list[Row]) -> bool:
    """Whether any artifact of the small model has computed something."""
    return any(row["top1"] is not None for row in rows if row["role"] == "pruned")


def table(rows: list[Row]) -> Table:
    """The table for a terminal, WIDTH characters wide; reasons are short there."""
    notes = "–: not measured   ~: noisy   (...): the file was still in memory"
    found = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), caption=notes, caption_justify="left")
    found.add_column("", no_wrap=True)
    found.add_column("status", min_width=20)
    for heading in (
        *("size\nMB", "top-1\n%", "parity\ndB", "p50\nms", "p90\nms", "threads"),
        *("cold\nload\nms", "photo\nms", "memory\nMB"),
    ):
        found.add_column(heading, justify="right", no_wrap=True)
    for format, group in groupby(rows, lambda row: row["format"]):
        found.add_section()
        found.add_row(Text(format, style="bold"))
        for row in group:
            told = row["status"] + (f": {shorten(row['reason'], 80, placeholder=' ...')}" if row["reason"] else "")
            noisy = "" if row["latency_valid"] else "~"
            cells = [
                _shown(None if row["size_bytes"] is None else row["size_bytes"] / 1e6),
                _shown(row["top1"]),
                _shown(row["parity_db"]),
                _shown(row["p50_ms"], noisy + "{}"),
                _shown(row["p90_ms"], noisy + "{}"),
                _shown(row["threads"]),
                _shown(row["load_cold_ms"], "{}" if row["load_from_storage"] else "({})"),
                _shown(row["end_to_end_p50_ms"], "{}" if row["end_to_end_valid"] else "~{}"),
                _shown(row["peak_mb"]),
            ]
            name = row["precision"] + (", dense" if row["role"] == "dense" else "")
            found.add_row(Text(name), Text(told, style=STYLES[row["status"]]), *map(Text, cells))
    return found


def _shown(value: float | None, form: str = "{}") -> str:
    """About three digits, as reports show them."""
    return "–" if value is None else form.format(show(value, "ms").removesuffix(" ms"))


def _written(context: Context, target: Target, command: str, rows: list[Row]) -> list[Row]:
    folder = folder_of(context, target)
    write_results(folder / "bench.json", command, rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(folder / "bench.csv", text.getvalue())
    return rows


def _limits(target: Target, format: str) -> FormatBudget:
    return FormatBudget(precisions=target.offered[format], limits=EVERYTHING)


# the artifacts


def _artifacts(context: Context, target: Target, folder: Path) -> tuple[Manifest | None, Results]:
    """Every artifact, made unless it is there: what describes them, None if there is none, and the results by name."""
    stated, kept = target.budget(), _kept(context, target, folder)
    made: Manifest | None = None
    results: Results = {}
    for format in target.offered:
        # files that are labelled carry the budget that a deployment would hold them against
        limits = stated[format].limits if format in stated else EVERYTHING
        budgets = {format: replace(_limits(target, format), limits=limits)}
        contents, of = exporting.export_into(context, target, budgets, folder, kept)
        results |= of
        if contents:
            made = replace(contents, files=(*(made.files if made else ()), *contents.files))
            manifest.write(made, folder / EXPORTED)
    return made, results


def _kept(context: Context, target: Target, folder: Path) -> dict[str, ArtifactFile]:
    """What an earlier table, or the deployment, has made of this very model with these very tools, in the folder."""
    kept: dict[str, ArtifactFile] = {}
    deployed = context.artifacts(target)
    for path in (folder / EXPORTED, deployed / EXPORTED, deployed / manifest.FILE_NAME):
        for entry in _fitting(context, path):
            if entry.file not in kept:
                if path.parent != folder:
                    _link(path.parent / entry.file, folder / entry.file)
                kept[entry.file] = entry
    return kept


def _fitting(context: Context, path: Path) -> tuple[ArtifactFile, ...]:
    """What a manifest names, if it is whole and of this model: the logits of its golden images tell."""
    if not path.exists():
        return ()
    try:
        found = manifest.read(path)
    except ValueError as error:  # damaged, or half of it deleted: made anew
        context.say(f"  {error}")
        return ()
    if found.labels != context.dataset.classes or found.tools != versions():
        return ()
    pictures = [np.asarray(Image.open(path.parent / golden.file).convert("RGB")) for golden in found.golden]
    model = load_compact(context.model_folder).eval()
    logits_GC = predictor(model, context.view)(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)).numpy()
    promised_GC = np.array([golden.model for golden in found.golden], np.float32)
    same = bool(np.abs(logits_GC - promised_GC).max() <= FULL.golden_share * np.abs(promised_GC).max())
    return found.files if same else ()


def _link(source: Path, to: Path) -> None:
    """The same content, without room of its own where the file system can do that."""

    def linked(source: str | Path, to: str | Path) -> None:
        try:
            os.link(source, to)
        except OSError:
            shutil.copyfile(source, to)

    with replacing(to) as partial:
        if source.is_dir():
            shutil.copytree(source, partial, copy_function=linked)
        else:
            linked(source, partial)


# a row


def _row(target: Target, protocol: Protocol, of: Results, measured: Results, name: str | None = None) -> Row:
    """of: the export's results;  measured: the gate's, none if there was nothing to measure."""
    status, reason = _status(of, measured)
    found: dict[str, Results] = {
        key: measured.get(key) or {} for key in ("parity", "latency_ms", "load_ms", "end_to_end_ms", "device")
    }
    latency, load, whole = found["latency_ms"], found["load_ms"], found["end_to_end_ms"]
    photo = whole.get("photo") or {}
    return {
        "target": target.name,
        **{key: of[key] for key in ("format", "precision", "role")},
        "status": status,
        "reason": reason,
        "size_bytes": of.get("size_bytes"),
        "top1": measured.get("top1"),
        "parity_db": found["parity"].get("psnr_db"),
        "top1_agreement": found["parity"].get("top1_agreement"),
        "p50_ms": latency.get("p50"),
        "p90_ms": latency.get("p90"),
        "latency_valid": latency.get("valid"),
        "latency_samples": latency.get("samples"),
        "threads": measured.get("threads") if latency else None,
        "load_cold_ms": load.get("cold"),
        "load_warm_ms": load.get("warm"),
        "load_from_storage": load.get("from_storage"),
        "load_samples": load.get("samples"),
        "end_to_end_p50_ms": whole.get("p50"),
        "end_to_end_valid": whole.get("valid"),
        "decode_ms": whole.get("decode"),
        "resize_ms": whole.get("resize"),
        "photo_width": photo.get("width"),
        "photo_height": photo.get("height"),
        "peak_mb": measured.get("peak_mb"),
        "runtime": measured.get("runtime"),
        "device": found["device"].get("device"),
        "protocol": protocol.name if latency else None,
        "file": None if of["error"] else f"bench/{target.name}/{name}",
        "sha256": of.get("sha256"),
    }


def _status(of: Results, measured: Results) -> tuple[str, str | None]:
    """How far an artifact has come, and why not further."""
    if of["error"]:
        return NOT_MEASURED if of["unavailable"] else FAILED, of["error"]
    wrong = [check for check in measured["checks"] if check["verdict"] == "fail" and check["name"].startswith("golden")]
    if wrong:
        off = "no numbers" if wrong[0]["value"] is None else f"{wrong[0]['value']:.3g}, {wrong[0]['limit']:.3g} allowed"
        return FAILED, wrong[0]["reason"] or f"logits of its golden images are off by {off}"
    if measured["verdict"] == "fail" and not measured["checks"]:
        return FAILED, measured["reason"]  # the device's runtime refuses it
    if measured["latency_ms"] is None:
        return IN_PART if measured["runtime"] else NOT_MEASURED, measured["reason"]
    return MEASURED, measured["latency_ms"].get("why_invalid")

"""What a run has shown: report.json, figures/*.svg, report.html and the closing table.

A measurement that was not made is null in the report and "not measured" wherever it is shown.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.files import write_json, write_text
from pipeline.report import figures, mistakes
from pipeline.report.mistakes import Judged
from targets import strict

Report = dict[str, Any]

NOT_MEASURED = "not measured"
VERDICTS = {  # sign, words, rich style: a verdict is never told by colour alone
    "pass": ("✓", "budget met", "green"),
    "fail": ("✗", "budget missed", "bold red"),
    "not_measured": ("–", NOT_MEASURED, "yellow"),
}
CHECKS = {  # a budget's key: how it is called, unit and the factor that leads to it
    "golden": ("largest golden logit error", "", 1),
    "golden_on_device": ("the same between machines", "", 1),
    "top1_min": ("top-1", "%", 100),
    "top1_share_min": ("top-1 kept by the export", "%", 100),
    "top1_drop_max_points": ("top-1 lost against dense", "points", 1),
    "latency_p50_ms_max": ("latency p50", "ms", 1),
    "latency_p90_ms_max": ("latency p90", "ms", 1),
    "latency_asked_ms_max": ("latency p50, LATENCY_MS + 10 %", "ms", 1),
    "latency_ratio_max": ("latency p50 against dense", "×", 1),
    "size_mb_max": ("size", "B", 1e6),
    "memory_mb_max": ("peak memory", "B", 1e6),
    "parity_psnr_db_min": ("parity PSNR", "dB", 1),
    "parity_psnr_db_min_reduced": ("parity PSNR", "dB", 1),
    "top1_agreement_min": ("same top-1 as the model", "%", 100),
}
MOST_LOST = 20
"""classes in a table, if they are too many to name them all"""
CHECK_WORDS = {"pass": "met", "fail": "missed", "not_measured": NOT_MEASURED}


@dataclass(frozen=True)
class Comparison:
    """One measured thing, dense beside pruned, ready to show."""

    name: str
    """with its unit where the values carry none"""
    dense: str
    """value of the dense model"""
    pruned: str
    """value of the pruned model"""
    change: str
    """from dense to pruned; empty if one of them was not measured"""
    share: float | None
    """pruned as a share of dense, None if one of them was not measured"""


def write_report(
    folder: Path,
    report: Report,
    log: list[dict[str, Any]],
    samples: dict[str, list[float]],
    judged: Judged | None = None,
) -> Path:
    """Write report.json, figures/*.svg and report.html into a run folder; returns the path of report.html.

    log:     the lines of log.jsonl
    samples: artifact -> milliseconds of every timed inference; names that hold "dense" are drawn as the reference
    judged:  what the models made of the validation images; None: the page has no part on their mistakes
    Raises ValueError, with nothing written, if the report holds NaN or infinity.
    """
    write_json(folder / "report.json", report)
    drawn, missing = {}, {}
    for name, draw in _figures(report, log, samples, judged).items():
        path = folder / "figures" / f"{name}.svg"
        try:
            svg = figures.to_svg(draw(), name)
        except figures.MissingDataError as error:
            missing[name] = str(error)
            path.unlink(missing_ok=True)
        else:
            drawn[name] = _inline(svg)
            write_text(path, svg)
    headline, config = _headline(report), folder / "config.json"
    page = _template().render(
        report=report,
        verdict=overall_verdict(report),
        models=compare_models(report),
        asked=asked_latency(report),
        headline=headline,
        artifact=compare_artifacts(report, headline) if headline else [],
        judged=_judged(report),
        answered=[artifact for artifact in _pruned(report) if artifact["latency_ms"]],
        devices=_devices(report),
        runtimes=sorted({(a["format"], a["runtime"]) for a in report["artifacts"] if a["runtime"]}),
        pruned=_pruned(report),
        accuracies=(accuracies := _accuracies(report)),
        balanced=any(balanced is not None for _, _, balanced in accuracies),
        kept=[
            f"epoch {report[key]} of {what}"
            for key, what in (("epoch_dense", "the dense reference"), ("epoch_finetune", "fine-tuning"))
            if report.get(key) is not None
        ],
        mistakes=mistakes.summary(judged),
        most_lost=_most_lost(judged),
        many_classes=judged is not None and len(judged.classes) > figures.MATRIX_CLASSES,
        galleries=mistakes.galleries(judged) if judged else {},
        drawn=drawn,
        missing=missing,
        extremes=_extremes(report["blocks"]),
        benefit=_benefit(log),
        config=_flat(strict.read_json(config, dict[str, Any])) if config.exists() else [],
        verdicts=VERDICTS,
        check_words=CHECK_WORDS,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def summary_table(report: Report, target: str | None = None) -> Table:
    """The closing table of a run: dense beside what is shipped, then every check of the budget and the verdict.

    target: only its artifacts; None: those of all targets
    """
    table = Table(title=Text(f"{report['run']}: {report['model']} on {report['dataset']}"), box=box.ROUNDED)
    table.add_column("")
    for heading in ("dense", "pruned", "change"):
        table.add_column(heading, justify="right")
    for name, value in asked_latency(report):
        table.add_row(name, "", value, "")
    if asked_latency(report):
        table.add_section()
    groups: list[tuple[str, list[Comparison]]] = [("", compare_models(report))]
    groups += [(_label(artifact), compare_artifacts(report, artifact)) for artifact in _judged(report, target)]
    for label, rows in groups:
        if label:
            table.add_row(Text(label, style="bold"))
        for row in rows:
            table.add_row(row.name, row.dense, row.pruned, row.change)
        table.add_section()
    budget = "budget (on val), " if report["top1_split"] == "test" else "budget, "
    for artifact in _judged(report, target):
        if artifact["reason"]:
            table.add_row(Text(_label(artifact), style="bold"), "", "", Text(artifact["reason"], style="italic"))
        if artifact["checks"]:
            table.add_row(*(Text(cell, style="bold") for cell in (budget + _label(artifact), "limit", "measured")))
        for check in artifact["checks"]:
            name, limit, value = describe_check(check)
            sign, _, style = VERDICTS[check["verdict"]]
            told = Text(f"{sign} {CHECK_WORDS[check['verdict']]}", style=style)
            table.add_row(Text(name), Text(limit), Text(value), told)
        table.add_section()
    sign, words, style = VERDICTS[overall_verdict(report, target)]
    table.add_row(Text("verdict", style="bold"), "", "", Text(f"{sign} {words}", style=style))
    return table


def overall_verdict(report: Report, target: str | None = None) -> str:
    """The worst verdict of the formats: fail, else not_measured (also if there is none), else pass.

    target: only its artifacts; None: those of all targets
    """
    verdicts = {artifact["verdict"] for artifact in _judged(report, target)}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "not_measured"


def compare_models(report: Report) -> list[Comparison]:
    """Top-1 in PyTorch, parameters and MACs."""
    return [
        _compare(f"top-1 on {report['top1_split']}", report["top1_dense"], report["top1"], "%"),
        _compare("parameters", report["params_dense"], report["params"]),
        _compare("MACs", report["macs_dense"], report["macs"]),
    ]


def asked_latency(report: Report) -> list[tuple[str, str]]:
    """Milliseconds asked for, predicted and measured, in words; nothing if the run had no LATENCY_MS."""
    if report["latency_ms_target"] is None:
        return []
    holds_for = report["latency_profile"]
    rows = [("latency asked", show(report["latency_ms_target"], "ms"))]
    if holds_for:
        where = f"{holds_for['target']}, {holds_for['format']} {holds_for['precision']}"
        rows.append((f"latency predicted, {where}", show(report["latency_ms_predicted"], "ms")))
        for artifact in _judged(report, holds_for["target"]):
            if artifact["format"] == holds_for["format"]:
                times = artifact["latency_ms"] or {}
                noisy = " (noisy)" if times.get("valid") is False else ""
                rows.append((f"latency p50, {_label(artifact)}", show(times.get("p50"), "ms") + noisy))
    return rows


def compare_artifacts(report: Report, artifact: Report) -> list[Comparison]:
    """A pruned artifact beside the dense one of the same target and format, timed with it."""
    same = ("target", "format")
    found = [a for a in report["artifacts"] if a["role"] == "dense" and all(a[key] == artifact[key] for key in same)]
    dense: Report = found[0] if found else {}
    rows = [
        _compare(f"top-1 on {report['top1_split']}, in its runtime", dense.get("top1"), artifact["top1"], "%"),
        _compare("size", dense.get("size_bytes"), artifact["size_bytes"], "B"),
    ]
    times, times_dense = artifact["latency_ms"] or {}, artifact["latency_dense_ms"] or {}
    for key in ("p50", "p90"):
        row = _compare(f"latency {key}", times_dense.get(key), times.get(key), "ms")
        noisy, noisy_dense = (" (noisy)" if of.get("valid") is False else "" for of in (times, times_dense))
        rows.append(replace(row, pruned=row.pruned + noisy, dense=row.dense + noisy_dense))
    other = f" ({dense['precision']})" if dense and dense["precision"] != artifact["precision"] else ""
    return [row if row.dense == NOT_MEASURED else replace(row, dense=row.dense + other) for row in rows]


def show(value: Any, unit: str = "") -> str:
    """A value in its unit, about three digits: 97.2 %, 5.72 M, 1.58 MB, 3.14 ms, 3 min 12 s; None: not measured."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return NOT_MEASURED if value is None else str(value)
    if unit in ("%", "points"):
        return f"{value:.{1 if unit == '%' else 2}f} {unit}"
    if unit == "s":
        if value < 60:
            return f"{value:.1f} s"
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    prefix = ""
    if unit in ("", "B"):
        power = min(max(math.floor(math.log10(float(f"{abs(value):.3g}") or 1)) // 3, 0), 4)
        value, prefix = value / 1000**power, ("", "k", "M", "G", "T")[power]
    return f"{_digits(value)} {prefix}{unit}".strip()


def describe_check(check: Report) -> tuple[str, str, str]:
    """Name, limit and value of a budget's check, ready to show: ("latency p50", "≤ 50 ms", "1.38 ms")."""
    name, unit, factor = CHECKS.get(check["name"], (check["name"].replace("_", " "), "", 1))
    limit, value = (None if check[key] is None else check[key] * factor for key in ("limit", "value"))
    return name, f"{'≥' if '_min' in check['name'] else '≤'} {show(limit, unit)}", show(value, unit)


def _compare(name: str, dense: float | None, pruned: float | None, unit: str = "") -> Comparison:
    change, share = "", None
    if dense and pruned is not None:
        share = pruned / dense
        percent = 100 * (share - 1)
        change = f"{pruned - dense:+.1f} points" if unit == "%" else f"{percent:+.{0 if abs(percent) >= 10 else 1}f} %"
    return Comparison(name, show(dense, unit), show(pruned, unit), change.replace("-", "\N{MINUS SIGN}"), share)


def _digits(value: float) -> str:
    """Three significant digits, more from a thousand on; no exponent unless below 0.001."""
    value = float(f"{value:.3g}") if abs(value) < 1000 else round(value)
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.001 else f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"


def _pruned(report: Report) -> list[Report]:
    return [artifact for artifact in report["artifacts"] if artifact["role"] == "pruned"]


def _judged(report: Report, target: str | None = None) -> list[Report]:
    """One pruned artifact per target and format, which speaks for it: the one shipped, else the last one tried."""
    chosen: dict[tuple[str, str], Report] = {}
    for artifact in _pruned(report):
        key = artifact["target"], artifact["format"]
        if target not in (None, artifact["target"]):
            continue
        if key not in chosen or not chosen[key]["shipped"]:
            chosen[key] = artifact
    return list(chosen.values())


def _label(artifact: Report) -> str:
    return f"{artifact['target']}, {artifact['format']} {artifact['precision']}"


def _devices(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """What measured each target's artifacts, in words; a target that no device has measured is left out."""
    found = {}
    for artifact in _judged(report):
        device, conditions = artifact["device"], artifact["conditions"] or {"before": {}, "after": {}}
        if not device or (artifact["target"] in found and not artifact["conditions"]):  # one refused has none
            continue
        facts = [
            ("device", device["device"]),
            ("processor", device["cpu"]),
            ("cores", str(device["cores"])),
            ("threads", str(artifact["threads"])),
            ("system", f"{device['os']}, {device['arch']}"),
            ("protocol", artifact["protocol"]),
        ]
        if device.get("emulated"):
            facts.append(("emulated by", device["emulated"]))
        units = {"governor": "", "temperature_c": "°C", "throttled": "", "battery": ""}
        for key, unit in units.items():
            values = [conditions[when].get(key) for when in ("before", "after")]
            if values[0] is not None and values[1] is not None:
                shown = [show(value, unit) for value in values]
                changed = shown[0] if shown[0] == shown[1] else f"{shown[0]} before, {shown[1]} after"
                facts.append((key.removesuffix("_c"), changed))
        found[artifact["target"]] = facts
    return list(found.items())


def _headline(report: Report) -> Report | None:
    """The pruned artifact that the summary speaks of: the first with a latency, else the first."""
    pruned = _judged(report)
    return next((artifact for artifact in pruned if artifact["latency_ms"]), pruned[0] if pruned else None)


def _accuracies(report: Report) -> list[tuple[str, float | None, float | None]]:
    """Name, top-1 and balanced accuracy of the model after every stage."""
    return [
        ("dense, fine-tuned", report["top1_dense"], report.get("balanced_accuracy_dense")),
        ("pruned, masked", report["top1_masked"], None),
        ("made compact", report["top1_compact"], None),
        ("compact, fine-tuned", report["top1"], report.get("balanced_accuracy")),
    ]


def _most_lost(judged: Judged | None) -> list[Report]:
    """The classes that pruning has cost most, if they are too many for the figure to name them."""
    found = mistakes.summary(judged)
    if found is None or len(found["classes"]) <= figures.NAMED_CLASSES:
        return []
    both = [row for row in found["classes"] if None not in (row["top1_dense"], row["top1"])]
    lost = sorted(both, key=lambda row: row["top1"] - row["top1_dense"])
    return [row for row in lost[:MOST_LOST] if row["top1"] < row["top1_dense"]]


def _figures(
    report: Report,
    log: Sequence[Mapping[str, Any]],
    samples: Mapping[str, Sequence[float]],
    judged: Judged | None,
) -> dict[str, Callable[[], Figure]]:
    """How every figure is drawn; the keys are the file names."""
    blocks = report["blocks"]
    drawings: dict[str, Callable[[], Figure]] = {
        "training_curves": lambda: figures.training_curves(log, report["top1_dense_val"]),  # as the curves are
        "keep_ratio_per_block": lambda: figures.keep_ratio_per_block(blocks),
        "architecture": lambda: figures.architecture(blocks, [block["width_dense"] for block in blocks]),
        "keep_ratio_over_training": lambda: figures.keep_ratio_over_training(log),
        "bpi_over_training": lambda: figures.bpi_over_training(log),
        "latency_distribution": lambda: figures.latency_distribution(samples),
    }
    if judged is not None:
        counts = mistakes.confusion(judged.shown, len(judged.classes))
        drawings["confusion_matrix"] = lambda: figures.confusion_matrix(counts, judged.classes)
        drawings["top1_per_class"] = lambda: _top1_per_class(judged)
    return drawings


def _top1_per_class(judged: Judged) -> Figure:
    found = mistakes.summary(judged)
    assert found is not None
    columns = ([row[key] for row in found["classes"]] for key in ("top1_dense", "top1"))
    return figures.top1_per_class(judged.classes, *columns)


def _extremes(blocks: Sequence[Report]) -> str:
    """The blocks that kept most and least, in words."""
    kept = sorted((block["keep_ratio"], block["name"]) for block in blocks if block["keep_ratio"] is not None)
    if not kept:
        return ""
    (least, least_name), (most, most_name) = kept[0], kept[-1]
    return f"Most: {most_name}, {100 * most:.0f} %. Least: {least_name}, {100 * least:.0f} %."


def _benefit(log: Sequence[Mapping[str, Any]]) -> str:
    """Mean ΔΨ per kind of block over the last quarter of the updates, in words."""
    updates = [line["blocks"] for line in log if line.get("blocks")]
    late = [block for blocks in updates[-max(len(updates) // 4, 1) :] for block in blocks]
    said = []
    for tokens, key in (("class token", "bpi_class"), ("patch tokens", "bpi_patch")):
        for kind, name in figures.KINDS.items():
            known = [block[key] for block in late if block["name"].startswith(kind) and block[key] is not None]
            said += [f"{tokens}, {name} {sum(known) / len(known):+.3f}"] if known else []
    return f"Mean over the last quarter of the updates: {'; '.join(said)}." if said else ""


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Leaves of a JSON object as ("a.b", "value")."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _flat(inner, f"{prefix}.{key}".lstrip("."))]
    return [(prefix, "none" if value is None else str(value))]


def _inline(svg: str) -> Markup:
    """The SVG for the page: it scales with its column, and its text takes the page's colours, which fit the theme."""
    opening, body = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL).split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    for kind, colour in figures.COLOURS.items():
        body = re.sub(f'(<text style="[^"]*fill: ){colour}', rf"\1var(--{kind})", body)
    return Markup(f"{opening}>{body}".replace(figures.INK, "currentColor"))


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(show=show, describe_check=describe_check, label=_label)
    return environment.from_string(Path(__file__).with_suffix(".html.j2").read_text(encoding="utf-8"))

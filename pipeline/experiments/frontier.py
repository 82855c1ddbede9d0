"""`make bench-frontier`: accuracy over milliseconds, of the models that `make compare` has trained.

What a model computes with does not change its time: each is built anew from the widths in the results, with random
weights, exported as a deployment would, and timed in turn with all others.
"""

import statistics
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipeline import profiling
from pipeline.data.view import View
from pipeline.experiments.compare_report import MARKS, PALETTE, label
from pipeline.experiments.side_by_side import Timed, latencies
from pipeline.report.figures import INK, new_figure, style_axes
from targets import strict

PRECISIONS = ("fp32", "int8-dynamic")
"""of TFLite"""

Row = dict[str, Any]


def frontier(results: Sequence[Path], methods: Collection[str] = (), *, say: Callable[[str], None]) -> list[Row]:
    """One row per model and precision: its top-1 over all seeds, and the time of the first seed's on this machine.

    methods: METHOD or METHOD:VARIANT that are wanted; none: all
    results: files of `make compare`; their rows tell model, image size and widths. One-shot methods' models, whose
    streams are narrower too, are left out, and told
    Raises ValueError for a file that is none of `make compare`, or holds nothing that can be timed.
    """
    groups: dict[tuple[Any, ...], dict[int, Row]] = {}
    for path in results:
        for row in strict.read_json(path, dict[str, Any]).get("rows", []):
            if (
                not {"model", "img_size", "layers", "method", "variant", "sparsity_target", "top1", "seed"}
                <= row.keys()
            ):
                raise ValueError(f"{path} is no results file of `make compare`, or of an older one: repeat its command")
            if methods and ":".join(filter(None, (row["method"], row["variant"]))) not in methods:
                continue
            if row["top1"] is None or (row["layers"] is None and row["method"] != "dense"):
                say(f"  left out: {label(row)} at {row['sparsity_target']:g} in {path.name}")
                continue
            key = row["model"], row["img_size"], row["method"], row["variant"], row["sparsity_target"]
            groups.setdefault(key, {}).setdefault(row["seed"], row)  # several files may have the same dense model
    if not groups:
        raise ValueError(f"{' '.join(map(str, results))} hold no model that can be timed")
    timed: dict[str, Timed] = {}
    for number, seeds in enumerate(groups.values()):
        model = _rebuilt(next(iter(seeds.values())))
        for precision in PRECISIONS:
            timed[f"{number} {precision}"] = Timed(model, View.of(model), precision)
    found = latencies(timed, say)
    return [
        {
            **{key: rows[0][key] for key in ("model", "img_size", "method", "variant", "sparsity_target", "params")},
            "macs": rows[0]["macs"],
            "image": timed[f"{number} {precision}"].view.size,
            "precision": precision,
            "seeds": len(rows),
            "top1": statistics.mean(row["top1"] for row in rows),
            "top1_spread": statistics.stdev(row["top1"] for row in rows) if len(rows) > 1 else None,
            "latency_ms_p50": found[f"{number} {precision}"].p50_ms,
            "latency_valid": found[f"{number} {precision}"].valid,
        }
        for number, rows in enumerate([list(seeds.values()) for seeds in groups.values()])
        for precision in PRECISIONS
    ]


def _rebuilt(row: Row) -> Any:
    if row["method"] == "dense":
        return profiling.dense_of(row["model"], img_size=row["img_size"])
    return profiling.stack(row["model"], tuple(map(tuple, row["layers"])), row["img_size"])


def series_of(row: Row) -> str:
    """Which line of the figure a row is on: dense models of all image sizes are one, a pruned one's sparsities are."""
    model = str(row["model"])
    return f"{model}, dense" if row["method"] == "dense" else f"{model} at {row['image']} px, {label(row)}"


def report(rows: Sequence[Row]) -> str:
    """The table, fastest first in float32."""
    lines = ["| model | image | method | sparsity | top-1, % | fp32, ms | int8-dynamic, ms |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    by_model: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = row["model"], row["image"], row["method"], row["variant"], row["sparsity_target"]
        by_model.setdefault(key, {})[row["precision"]] = row
    for found in sorted(by_model.values(), key=lambda found: found[PRECISIONS[0]]["latency_ms_p50"]):
        row = found[PRECISIONS[0]]
        spread = "" if row["top1_spread"] is None else f" ± {row['top1_spread']:.1f}"
        times = [f"{one['latency_ms_p50']:.2f}{'' if one['latency_valid'] else ' (not valid)'}"
                 for one in (found[precision] for precision in PRECISIONS)]  # fmt: skip
        lines.append(
            f"| {row['model']} | {row['image']} px | {label(row)} | {100 * row['sparsity_target']:g} % "
            f"| {row['top1']:.1f}{spread} | {' | '.join(times)} |"
        )
    return "\n".join(lines) + "\n"


def figure(rows: Sequence[Row]) -> Figure:
    """Top-1 over median milliseconds, a panel for each precision, a line for each series."""
    found = new_figure(4.2)
    panels = found.subplots(1, len(PRECISIONS), sharey=True)
    names = list(dict.fromkeys(series_of(row) for row in rows))
    for axes, precision in zip(panels, PRECISIONS, strict=True):
        style_axes(axes, f"Top-1, %, over ms: TFLite {precision}")
        for number, name in enumerate(names):
            mine = sorted(
                (row["latency_ms_p50"], row["top1"], row["top1_spread"] or 0.0)
                for row in rows
                if (series_of(row), row["precision"]) == (name, precision)
            )
            ms, top1, spread = zip(*mine, strict=True)
            axes.errorbar(
                ms, top1, spread, color=PALETTE[number % len(PALETTE)], marker=MARKS[number % len(MARKS)],
                markersize=6, linewidth=1.5, elinewidth=1, label=name,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="x", which="minor", labelsize=7)
        axes.set_xlabel("milliseconds")
    handles, labels = panels[0].get_legend_handles_labels()
    found.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8, labelcolor=INK, ncols=2)
    return found

"""What `make compare` shows: the table in the layout of the published one, and two figures."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from pipeline import files
from pipeline.report.figures import COLOURS, DENSE, INK, KINDS, MARKERS, new_figure, style_axes, to_svg
from pipeline.report.results import write_results

Row = dict[str, Any]

NAMES = {"dense": "dense", "dap": "DAP", "savit": "SAViT", "wdpruning": "WD-Prune", "isomorphic": "isomorphic Taylor"}
PALETTE = ("#12966f", "#2f7fd0", "#d9731a", "#c23a78", "#7a4fd0", "#ab8c0c", "#129aa3", "#8c564b")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def write(path: Path, command: str, rows: Sequence[Row], *, dataset: str, model: str) -> str:
    """Write the results file, and beside it the table (.md) and the figures (.svg). Returns the table.

    path:    of the results file; the others are named after it
    command: what makes the same again
    """
    write_results(path, command, rows)
    table = markdown(rows, dataset, model)
    files.write_text(path.with_suffix(".md"), table)
    figures = {"accuracy": accuracy_over_parameters(rows)}
    for sparsity in sorted({row["sparsity_target"] for row in rows if row["keep_ratios"]}):
        figures[f"keep-{100 * sparsity:g}"] = keep_ratios_side_by_side(rows, sparsity)
    for name, figure in figures.items():
        files.write_text(path.with_name(f"{path.stem}-{name}.svg"), to_svg(figure, name))
    return table


def label(row: Row) -> str:
    """A method as the table calls it: SAViT, or SAViT (released)."""
    name = NAMES.get(row["method"]) or str(row["method"])
    return f"{name} ({row['variant']})" if row["variant"] else name


def markdown(rows: Sequence[Row], dataset: str, model: str) -> str:
    """Two tables: top-1 by method and sparsity, and what each cell cost and reached.

    Values are means over seeds with the standard deviation of the seeds (n - 1). A cell whose reached sparsity is off
    by more than a point is marked with a dagger; one without a result says why.
    """
    sparsities = sorted({row["sparsity_target"] for row in rows if row["method"] != "dense"})
    labels = list(dict.fromkeys(label(row) for row in rows))
    images = max((row["images"] or 0 for row in rows), default=0)
    lines = [
        f"Top-1 in percent on {images:,} images that nothing was trained on; mean ± standard deviation over seeds.",
        "",
        f"| model | method | {' | '.join(f'{dataset} {100 * s:g} %' for s in sparsities)} |",
        f"| --- | --- | {' | '.join('---' for _ in sparsities)} |",
    ]
    for name in labels:
        mine = [row for row in rows if label(row) == name]
        if mine[0]["method"] == "dense":
            cells = [_top1(mine)] + [""] * (len(sparsities) - 1)
        else:
            cells = [_top1([row for row in mine if row["sparsity_target"] == s]) for s in sparsities]
        lines.append(f"| {model} | {name} | {' | '.join(cells)} |")
    lines += ["", "| method | sparsity asked | reached | parameters | MACs | p50, ms | seconds | seeds |",
              "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name in labels:
        for sparsity in sorted({row["sparsity_target"] for row in rows if label(row) == name}):
            done = [r for r in rows if label(r) == name and r["sparsity_target"] == sparsity and r["top1"] is not None]
            if not done:
                continue
            timed = [row["latency_ms_p50"] for row in done if row["latency_ms_p50"] is not None]
            lines.append(
                f"| {name} | {100 * sparsity:g} % | {100 * _mean(done, 'sparsity'):.1f} % "
                f"| {_mean(done, 'params') / 1e3:,.0f} k | {_mean(done, 'macs') / 1e6:,.1f} M "
                f"| {f'{timed[0]:.2f}' if timed else 'not measured'} | {_mean(done, 'seconds'):,.0f} | {len(done)} |"
            )
    lines += _lead_of_dap(rows, sparsities)
    lines += _probe_agreement(rows) + _benefit_over_depth(rows)
    if any(row["off_target"] for row in rows):
        lines += ["", "† the sparsity reached is off by more than one point: not comparable with its column."]
    return "\n".join(lines) + "\n"


def _lead_of_dap(rows: Sequence[Row], sparsities: Sequence[float]) -> list[str]:
    """A table of DAP's top-1 minus each method's at the same seed, if DAP has run."""
    top1 = {(label(r), r["sparsity_target"], r["seed"]): r["top1"] for r in rows if r["top1"] is not None}
    dense = {seed: value for (name, _, seed), value in top1.items() if name == NAMES["dense"]}
    top1 |= {(NAMES["dense"], s, seed): value for s in sparsities for seed, value in dense.items()}
    names = [name for name in dict.fromkeys(label(row) for row in rows) if name != NAMES["dap"]]
    lines = []
    for name in names:
        cells = []
        for sparsity in sparsities:
            seeds = sorted(seed for other, s, seed in top1 if (other, s) == (name, sparsity))
            leads = [
                top1[NAMES["dap"], sparsity, seed] - top1[name, sparsity, seed]
                for seed in seeds
                if (NAMES["dap"], sparsity, seed) in top1
            ]
            cells.append(_mean_and_deviation(leads, "+.1f") if leads else "not run")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if not any(name == NAMES["dap"] for name, *_ in top1) or not lines:
        return []
    return [
        "",
        "DAP's top-1 minus the method's at the same seed, in points:",
        "",
        f"| DAP against | {' | '.join(f'{100 * s:g} %' for s in sparsities)} |",
        f"| --- | {' | '.join('---' for _ in sparsities)} |",
        *lines,
    ]


def _mean_and_deviation(values: Sequence[float], form: str = ".1f") -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def _probe_agreement(rows: Sequence[Row]) -> list[str]:
    """A table of how alike the keep ratios are to those of the paper's probes at the same seeds, if those have run."""
    lines = [
        "",
        "Keep ratios' rank correlation with those under the paper's probes at the same seed, seed by seed; the paper's "
        "probes are compared with their own other seeds, which shows what a seed alone does:",
        "",
        "| method | sparsity asked | Spearman |",
        "| --- | --- | --- |",
    ]
    head = len(lines)
    groups: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        if row.get("keep_ratio_correlation") is not None:
            groups.setdefault((label(row), row["sparsity_target"]), []).append(row["keep_ratio_correlation"])
    for (name, sparsity), values in sorted(groups.items(), key=lambda item: (item[0][1], -statistics.mean(item[1]))):
        lines.append(f"| {name} | {100 * sparsity:g} % | {', '.join(f'{value:.2f}' for value in values)} |")
    return lines if len(lines) > head else []


def _benefit_over_depth(rows: Sequence[Row]) -> list[str]:
    """A table of DAP's measured benefit by kind of block and third of the depth, if DAP has run: mean over its runs."""
    mine = [row["benefit"] for row in rows if row["method"] == "dap" and not row["variant"] and row.get("benefit")]
    if not mine:
        return []
    lines = [
        "",
        f"Benefit that DAP measured, in millinats per block ({len(mine)} runs; a third into pruning → its end):",
        "",
        "| tokens | blocks | first third of the layers | second | last |",
        "| --- | --- | --- | --- | --- |",
    ]
    for tokens, title in (("class", "class token"), ("patch", "patch tokens")):
        for offset, kind in enumerate(KINDS.values()):
            cells = []
            for part in range(3):
                values = [
                    [float(np.array_split(np.array(run[moment][tokens])[offset::2], 3)[part].mean()) for run in mine]
                    for moment in ("third", "end")
                ]
                cells.append(" → ".join(f"{round(1e3 * statistics.mean(value))}" for value in values))
            lines.append(f"| {title} | {kind} | {' | '.join(cells)} |")
    return lines


def _top1(rows: Sequence[Row]) -> str:
    values = [row["top1"] for row in rows if row["top1"] is not None]
    if not values:
        errors = [row["error"] for row in rows if row["error"]]
        return f"refused: {errors[0].splitlines()[0]}".replace("|", "/") if errors else "not run"
    return f"{_mean_and_deviation(values)}{' †' if any(row['off_target'] for row in rows) else ''}"


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def accuracy_over_parameters(rows: Sequence[Row]) -> Figure:
    """Top-1 against parameters: a point for every run, a line through the means of each method."""
    figure = new_figure(3.6)
    axes = figure.subplots()
    style_axes(axes, "Top-1 on images that were not trained on, %")
    done = [row for row in rows if row["top1"] is not None]
    dense = [row["top1"] for row in done if row["method"] == "dense"]
    if dense:
        axes.axhline(statistics.mean(dense), color=DENSE, linewidth=1.2, linestyle=(0, (5, 3)), label="dense")
        axes.axhspan(min(dense), max(dense), color=DENSE, alpha=0.12, linewidth=0)
    pruned = [row for row in done if row["method"] != "dense"]
    methods = list(dict.fromkeys(row["method"] for row in pruned))
    for name in sorted({label(row) for row in pruned}):
        mine = [row for row in pruned if label(row) == name]
        number = methods.index(mine[0]["method"])
        colour, mark = PALETTE[number % len(PALETTE)], MARKS[number % len(MARKS)]
        by_sparsity = [[r for r in mine if r["sparsity_target"] == s] for s in {r["sparsity_target"] for r in mine}]
        means = sorted((_mean(group, "params"), _mean(group, "top1")) for group in by_sparsity)
        (line,) = axes.plot(
            *zip(*means, strict=True), color=colour, marker=mark, markersize=7, linewidth=1.6, label=name
        )
        if mine[0]["variant"]:  # looks like its method, but hollow
            line.set(linestyle=(0, (4, 2)), markerfacecolor="white")
        axes.scatter([r["params"] for r in mine], [r["top1"] for r in mine], color=colour, s=9, alpha=0.45, linewidth=0)
    axes.set_xlabel("parameters")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e3:,.0f} k"))
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def keep_ratios_side_by_side(rows: Sequence[Row], sparsity: float) -> Figure:
    """Share of its parameters that every block kept, by depth, one panel per method; mean and range over seeds."""
    chosen = [row for row in rows if row["sparsity_target"] == sparsity and row["keep_ratios"]]
    names = list(dict.fromkeys(label(row) for row in chosen))
    columns = min(3, max(1, len(names)))
    figure = new_figure(0.5 + 1.9 * -(-max(1, len(names)) // columns))
    panels = figure.subplots(-(-max(1, len(names)) // columns), columns, squeeze=False, sharex=True, sharey=True)
    grid = list(panels.flat)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid, names, strict=False):
        style_axes(axes, name)
        ratios = np.array([row["keep_ratios"] for row in chosen if label(row) == name])
        for offset, kind in enumerate(COLOURS):
            mine = ratios[:, offset::2]
            layers = np.arange(mine.shape[1])
            axes.plot(layers, mine.mean(0), color=COLOURS[kind], marker=MARKERS[kind], markersize=3.5, linewidth=1.4,
                      label=KINDS[kind])  # fmt: skip
            axes.fill_between(layers, mine.min(0), mine.max(0), color=COLOURS[kind], alpha=0.15, linewidth=0)
        axes.set_ylim(0, 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    for axes in grid[max(0, len(names) - columns) : len(names)]:  # the lowest panel of each column
        axes.set_xlabel("layer")
        axes.tick_params(labelbottom=True)
    if names:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", frameon=False, fontsize=9, labelcolor=INK, ncols=2)
    return figure

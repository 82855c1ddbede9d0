"""The report's figures: pure functions from log lines and report entries to matplotlib figures.

Every colour is legible on white and on near-black, and told apart with any colour vision. Attention is blue, MLP
orange, the pruned model green and the dense one grey, everywhere. A figure that has no data raises MissingDataError,
whose message is the reason.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from targets import strict

Line = Mapping[str, Any]

INK = "#6f7782"  # text and axes; the page replaces it by its own text colour
DENSE, PRUNED = "#8b929c", "#12966f"
KINDS = {"attn": "attention", "mlp": "MLP"}
COLOURS = {"attn": "#2f7fd0", "mlp": "#d9731a"}
RAMPS = {  # first to last layer, around the kind's own colour
    "attn": LinearSegmentedColormap.from_list("attn", ["#7a4fd0", "#2f7fd0", "#129aa3"]),
    "mlp": LinearSegmentedColormap.from_list("mlp", ["#c23a78", "#d9731a", "#ab8c0c"]),
}
MARKERS = {"attn": "o", "mlp": "s"}
WRONG = "#c23a78"
WIDTH_IN = 8.0
MATRIX_CLASSES, NAMED_CLASSES = 25, 40
"""classes up to which a confusion matrix, and the names of classes, can be read"""
NAME_LENGTH = 22
LAYERS_PER_ROW = 12
DASHED = (0, (5, 3))


class MissingDataError(ValueError):
    """The data that a figure needs is not there; the message says what is missing."""


def training_curves(log: Sequence[Line], top1_dense: float | None) -> Figure:
    """Validation top-1 and training loss over epochs: fine-tuning follows pruning, the dense run starts beside them."""
    stages = {stage: [line for line in log if line["stage"] == stage] for stage in ("dense", "prune", "finetune")}
    if not any(stages.values()):
        raise MissingDataError("the log holds no training steps")
    figure = new_figure(3.1)
    accuracy, loss = figure.subplots(1, 2)
    style_axes(accuracy, "Validation top-1, %")
    style_axes(loss, "Training loss")
    compacted = stages["prune"][-1]["epoch"] if stages["prune"] and stages["finetune"] else None
    for stage, lines in stages.items():
        colour = DENSE if stage == "dense" else PRUNED
        offset = compacted or 0.0 if stage == "finetune" else 0.0
        label = {"dense": "dense", "prune": "pruned", "finetune": None if stages["prune"] else "fine-tuned"}[stage]
        points = [(line["epoch"] + offset, line["top1"]) for line in lines if line.get("top1") is not None]
        if points:
            style: dict[str, Any] = {"marker": "o", "markersize": 3.2 if len(points) <= 40 else 0}
            accuracy.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, label=label, **style)
        if lines:
            losses = np.array([(line["epoch"] + offset, line["loss"]) for line in lines], float)
            loss.plot(*_binned(losses).T, color=colour, linewidth=1.3, label=label)
    if not accuracy.lines:
        accuracy.text(0.5, 0.5, "not measured", transform=accuracy.transAxes, ha="center", fontsize=9, color=INK)
    if top1_dense is not None:
        style = {"linewidth": 1.2, "linestyle": DASHED, "label": f"dense, final: {top1_dense:.1f} %"}
        reference = accuracy.axhline(top1_dense, color=DENSE, **style)
        legend_beside_title(accuracy, [reference])
    for axes in (accuracy, loss):
        _epochs(axes)
        axes.set_xlim(left=0)
        if compacted is not None:
            axes.axvline(compacted, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    if compacted is not None:
        side = "right" if compacted > 0.7 * loss.get_xlim()[1] else "left"
        beside: dict[str, Any] = {
            "xytext": (-4 if side == "right" else 4, 0),
            "textcoords": "offset points",
            "va": "top",
            "ha": side,
        }
        top = (compacted, 0.99)
        loss.annotate("made compact", top, xycoords=loss.get_xaxis_transform(), fontsize=8.5, color=INK, **beside)
    legend_beside_title(loss)
    return figure


def bpi_over_training(log: Sequence[Line]) -> Figure:
    """ΔΨ at every mask update: rows attention and MLP, columns class and patch tokens, a line per layer."""
    updates = _updates(log)
    epoch = np.array([line["epoch"] for line in updates], float)
    values = {key: _per_block(updates, key) for key in ("bpi_class", "bpi_patch")}
    if all(np.isnan(value).all() for value in values.values()):
        raise MissingDataError("this method measures no block benefit")
    kinds, depths = _kinds_and_depths(updates[-1]["blocks"])
    figure = new_figure(4.9)
    grid = figure.subplots(2, 2, sharex=True, sharey="col")
    for row, (kind, kind_name) in enumerate(KINDS.items()):
        for column, (key, tokens) in enumerate((("bpi_class", "class token"), ("bpi_patch", "patch tokens"))):
            axes = grid[row, column]
            style_axes(axes, f"{kind_name[0].upper()}{kind_name[1:]}, {tokens}", colour=COLOURS[kind])
            axes.axhline(0, color=INK, linewidth=0.8)
            for block in np.flatnonzero(kinds == kind):
                colour = RAMPS[kind](depths[block] / max(depths.max(), 1))
                marker = MARKERS[kind] if len(epoch) == 1 else None
                axes.plot(epoch, values[key][:, block], color=colour, linewidth=1.2, marker=marker, markersize=4)
            if row:
                _epochs(axes)
                axes.set_xlim(left=0)
            if not column:
                axes.set_ylabel("ΔΨ, nats", color=INK)
        _colour_bar(figure, grid[row, :].tolist(), RAMPS[kind], (0, int(depths.max())), "layer")
    return figure


def keep_ratio_over_training(log: Sequence[Line]) -> Figure:
    """The model's sparsity, and heat maps of the share kept by layer and mask update, attention above MLP."""
    updates = _updates(log)
    epoch = np.array([line["epoch"] for line in updates], float)
    kinds, _ = _kinds_and_depths(updates[-1]["blocks"])
    keep = _per_block(updates, "keep_ratio")
    half = (epoch[-1] - epoch[0]) / max(len(epoch) - 1, 1) / 2 or 0.5
    figure = new_figure(5.4)
    top, *maps = figure.subplots(3, 1, sharex=True, height_ratios=[0.45, 1, 1])
    style_axes(top, "Parameters removed, whole model")
    sparsity = np.array([line["sparsity"] for line in updates], float)
    top.fill_between(epoch, sparsity, step="mid", color=PRUNED, alpha=0.25, linewidth=0)
    top.plot(epoch, sparsity, color=PRUNED, linewidth=1.6, drawstyle="steps-mid")
    top.set_ylim(0, max(1.15 * sparsity.max(), 0.05))
    top.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    top.yaxis.set_major_locator(MaxNLocator(2))
    for axes, (kind, kind_name) in zip(maps, KINDS.items(), strict=True):
        style_axes(axes, f"Kept in {kind_name} blocks", colour=COLOURS[kind], grid=False)
        rows = keep[:, kinds == kind].T
        red, green, blue = to_rgb(COLOURS[kind])
        shades = LinearSegmentedColormap.from_list(kind, [(red, green, blue, 0.04), (red, green, blue, 1)])
        extent = (epoch[0] - half, epoch[-1] + half, len(rows) - 0.5, -0.5)
        if rows.size:
            axes.imshow(rows, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="none", extent=extent)
        axes.set_ylabel("layer", color=INK)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        bar = _colour_bar(figure, [axes], shades, (0, 1), "")
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    _epochs(maps[-1])
    top.set_xlim(epoch[0] - half, epoch[-1] + half)
    return figure


def keep_ratio_per_block(blocks: Sequence[Line]) -> Figure:
    """Share of its parameters that every block kept in the end, by depth."""
    if not blocks:
        raise MissingDataError("the report lists no blocks")
    kinds, depths = _kinds_and_depths(blocks)
    keep = np.array([_number(block["keep_ratio"]) for block in blocks])
    if np.isnan(keep).all():
        raise MissingDataError("this method records no keep ratios")
    figure = new_figure(2.9)
    axes = figure.subplots()
    style_axes(axes, "Parameters kept")
    axes.axhline(1, color=DENSE, linewidth=1.2, linestyle=DASHED, label="dense")
    for kind, kind_name in KINDS.items():
        chosen = kinds == kind
        style: dict[str, Any] = {"color": COLOURS[kind], "marker": MARKERS[kind], "markersize": 5.5}
        axes.plot(depths[chosen], keep[chosen], linewidth=1.6, label=kind_name, **style)
    axes.set_ylim(0, max(1.08, 1.08 * np.nanmax(keep)))
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(24, integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    legend_beside_title(axes)
    return figure


def architecture(blocks: Sequence[Line], widths_dense: Sequence[int]) -> Figure:
    """The final network as blocks along its residual stream: the coloured height is the share of the dense width."""
    if not blocks:
        raise MissingDataError("the report lists no blocks")
    kinds, depths = _kinds_and_depths(blocks)
    rows = int(depths.max()) // LAYERS_PER_ROW + 1
    figure = new_figure(0.3 + 1.6 * rows)
    grid = figure.subplots(rows, 1, squeeze=False)[:, 0]
    style_axes(grid[0], "Width of every block", grid=False)
    for row, axes in enumerate(grid):
        axes.set_axis_off()
        axes.set(xlim=(-0.75, 2 * LAYERS_PER_ROW + 0.15), ylim=(-0.95, 0.8))
        inside = [int(index) for index in np.flatnonzero(depths // LAYERS_PER_ROW == row)]
        end = 2 * (depths[inside[-1]] % LAYERS_PER_ROW + 1)
        arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (end + 0.1, 0), (-0.7, 0), arrowprops=arrow, zorder=0)
        for index in inside:
            x = 2 * (depths[index] % LAYERS_PER_ROW) + (0.93 if kinds[index] == "mlp" else 0)
            _draw_block(axes, x, COLOURS[kinds[index]], blocks[index]["width"], widths_dense[index])
        for layer in sorted(set(depths[inside])):
            label, x = f"layer {layer}" if layer == 0 else str(layer), 2 * (layer % LAYERS_PER_ROW) + 0.85
            axes.text(x, -0.6, label, ha="center", va="top", fontsize=8, color=INK)
    named = {kind: f"{name}{_dense_note(kinds == kind, widths_dense)}" for kind, name in KINDS.items()}
    handles = [Patch(color=COLOURS[kind], label=label) for kind, label in named.items()]
    legend_beside_title(grid[0], [*handles, Patch(facecolor=DENSE, alpha=0.22, linewidth=0, label="removed")])
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Images by true class (rows) and predicted class (columns): right ones green, wrong ones red, darker for more.

    counts: (C, C) images. The colour is the share of the true class's images, the number the images themselves.
    """
    count = len(classes)
    if count > MATRIX_CLASSES:
        raise MissingDataError(f"{count:,} classes are too many for one; the pairs that are confused most are listed")
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shades = np.zeros((count, count, 4))
    shades[..., :3] = to_rgb(WRONG)
    shades[np.arange(count), np.arange(count), :3] = to_rgb(PRUNED)
    # the square root makes a few images visible; numbers must stay legible upon the fullest colour
    shades[..., 3] = 0.62 * np.sqrt(share)
    figure = new_figure(min(1.3 + 0.32 * count, WIDTH_IN))
    axes = figure.subplots()
    style_axes(axes, "Images by true class (rows) and predicted class (columns)", grid=False)
    axes.imshow(shades, aspect="auto", interpolation="none")
    for row, column in zip(*np.nonzero(counts), strict=True):
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8, color=INK)
    names = [_short(name) for name in classes]
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    _as_they_are(axes)
    return figure


def top1_per_class(names: Sequence[str], dense: Sequence[float | None], pruned: Sequence[float | None]) -> Figure:
    """Top-1 of every class in percent, dense beside pruned: named, those that lost most first; of many classes, points.

    None where a model was not measured on a class.
    """
    before, after = (np.array([_number(value) for value in values]) for values in (dense, pruned))
    known = ~np.isnan(before) & ~np.isnan(after)
    if not known.any():
        raise MissingDataError("only one of the two models was measured")
    before, after, chosen = before[known], after[known], np.flatnonzero(known)
    count = len(chosen)
    if count > NAMED_CLASSES:
        return _top1_points(before, after)
    order = np.lexsort((chosen, after - before))
    figure = new_figure(0.75 + 0.24 * count)
    axes = figure.subplots()
    style_axes(axes, "Top-1 by class, %", grid=False)
    places = np.arange(count)
    axes.hlines(places, before[order], after[order], color=INK, alpha=0.5, linewidth=1.4, zorder=1)
    axes.scatter(before[order], places, s=34, color=DENSE, label="dense", zorder=2)
    axes.scatter(after[order], places, s=34, color=PRUNED, marker="D", label="pruned", zorder=3)
    axes.set_yticks(places, [_short(names[chosen[place]]) for place in order])
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlim(max(-2.0, min(before.min(), after.min()) - 6), 102)
    axes.grid(axis="x", color=INK, alpha=0.22, linewidth=0.7)
    axes.set_axisbelow(True)
    _as_they_are(axes)
    legend_beside_title(axes)
    return figure


def _top1_points(before: np.ndarray, after: np.ndarray) -> Figure:
    figure = new_figure(5.0)
    axes = figure.subplots()
    style_axes(axes, "Top-1 of every class, %: a point above the line has gained")
    axes.plot([0, 100], [0, 100], color=DENSE, linewidth=1.2, linestyle=DASHED)
    axes.scatter(before, after, s=16, color=PRUNED, alpha=0.45, linewidth=0)
    axes.set(xlim=(-2, 102), ylim=(-2, 102), xlabel="dense")
    axes.set_ylabel("pruned", color=INK, fontsize=9)
    return figure


def _short(name: str) -> str:
    """A class's name as an axis has room for it, without what no text shows."""
    name = strict.printable(name).replace("\n", " ")
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _as_they_are(axes: Axes) -> None:
    """Tick labels are names: a dollar in them begins no formula."""
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    axes.tick_params(length=0)


def latency_distribution(samples: Mapping[str, Sequence[float]]) -> Figure:
    """Histograms of single-inference times in ms, dense first, with p50 and p90; the slowest 1 % may lie outside."""
    measured = {name: np.array(values, float) for name, values in samples.items() if len(values) > 1}
    if not measured:
        raise MissingDataError("latency was not measured")
    ordered = sorted(measured.items(), key=lambda item: "dense" not in item[0])
    low = min(values.min() for values in measured.values())
    high = max(float(np.percentile(values, 99)) for values in measured.values())
    margin = 0.04 * (high - low or 1)
    edges = np.linspace(low - margin, high + margin, 91)
    figure = new_figure(0.6 + 1.15 * len(ordered))
    grid = figure.subplots(len(ordered), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(grid, ordered, strict=True):
        style_axes(axes, name, grid=False)
        colour = DENSE if "dense" in name else PRUNED
        axes.stairs(np.histogram(values, edges)[0], edges, fill=True, color=colour, alpha=0.55)
        p50, p90 = np.percentile(values, [50, 90])
        axes.axvline(p50, color=INK, linewidth=1.1)
        axes.axvline(p90, color=INK, linewidth=1.1, linestyle=(0, (3, 2)))
        axes.set_xlim(edges[0], edges[-1])
        summary = f"p50 (line) {p50:.3g} ms,  p90 (dashes) {p90:.3g} ms,  {len(values):,} runs"
        axes.set_title(summary, loc="right", fontsize=9, color=INK)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    grid[-1].set_xlabel("ms per image")
    return figure


def to_svg(figure: Figure, name: str) -> str:
    """The figure as compact SVG, the same bytes every time: text stays text, no date, no ids that nothing refers to."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "image.composite_image": False}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<!DOCTYPE.*?>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip() + "\n"


def new_figure(height_in: float) -> Figure:
    """An empty figure of the report's width."""
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def style_axes(axes: Axes, title: str, *, colour: str = INK, grid: bool = True) -> None:
    """Title, spines, ticks and grid as all figures have them."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=colour, parse_math=False)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=INK, linewidth=0.8, alpha=0.6)
    axes.tick_params(colors=INK, labelsize=9, length=3, width=0.8)
    axes.xaxis.label.set(color=INK, fontsize=9)
    if grid:
        axes.grid(axis="y", color=INK, alpha=0.22, linewidth=0.7)
        axes.set_axisbelow(True)


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def legend_beside_title(axes: Axes, handles: Sequence[Artist] | None = None) -> None:
    """A frameless legend on the title's line, at the right."""
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    above: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 0.98), "ncols": 3, "borderpad": 0.2}
    axes.legend(handles=handles, frameon=False, fontsize=9, labelcolor=INK, **above)


def _draw_block(axes: Axes, x: float, colour: str, width: int | None, width_dense: int) -> None:
    share = min(width / width_dense, 1.0) if width and width_dense else 0.0
    axes.add_patch(Rectangle((x, -0.5), 0.76, 1, facecolor=DENSE, alpha=0.22, linewidth=0))
    if share:
        rounding = f"round,pad=0,rounding_size={min(0.05, share / 2)}"
        box = FancyBboxPatch((x, -share / 2), 0.76, share, boxstyle=rounding, facecolor=colour, linewidth=0)
        axes.add_patch(box)
    label = "?" if width is None else f"{width:,}"
    axes.text(x + 0.38, 0.56, label, ha="center", fontsize=7.5, color=colour, fontweight="bold")


def _colour_bar(figure: Figure, axes: list[Axes], ramp: Colormap, limits: tuple[float, float], title: str) -> Any:
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), ramp), ax=axes, fraction=0.02, pad=0.015, aspect=22)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8.5, length=0)
    bar.ax.set_title(title, fontsize=8.5, color=INK)
    bar.locator = MaxNLocator(5, integer=limits[1] > 1)
    return bar


def _updates(log: Sequence[Line]) -> list[Line]:
    """The log lines at which masks moved."""
    updates = [line for line in log if line.get("blocks")]
    if not updates:
        raise MissingDataError("the log holds no mask updates")
    return updates


def _per_block(updates: Sequence[Line], key: str) -> np.ndarray:
    """(updates, blocks) values, NaN where not measured."""
    return np.array([[_number(block.get(key)) for block in line["blocks"]] for line in updates])


def _kinds_and_depths(blocks: Sequence[Line]) -> tuple[np.ndarray, np.ndarray]:
    """("attn" or "mlp", layer) of every block, from names such as "attn 0"."""
    names = [block["name"].split() for block in blocks]
    return np.array([kind for kind, _ in names]), np.array([int(depth) for _, depth in names])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _binned(points: np.ndarray, bins: int = 150) -> np.ndarray:
    """(n, 2) -> (at most `bins`, 2): means of runs of points, so that a long log stays a small picture."""
    return np.array([run.mean(axis=0) for run in np.array_split(points, min(bins, len(points)))])


def _dense_note(chosen: np.ndarray, widths_dense: Sequence[int]) -> str:
    widths = {width for width, is_in in zip(widths_dense, chosen, strict=True) if is_in}
    return f" (dense {widths.pop():,})" if len(widths) == 1 else ""

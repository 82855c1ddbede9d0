"""`make prune LATENCY_MS=`: a run under a budget of milliseconds. It keeps a copy of the profile, and goes by that."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from timm.models import VisionTransformer

from dap import PruneConfig
from dap.cost import BlockLatency, LatencyTable
from pipeline import files
from pipeline.profiling import Layers, dense_of, shape_of
from pipeline.runs import Run
from targets import TARGETS, Target
from targets import profile as profiles
from targets.budget import Budget
from targets.devices.measure import describe
from targets.profile import Kind, Profile, Shape
from targets.validate import Check, Measurements, judge

SLACK = 1.1
"""what a measured median may exceed LATENCY_MS by: predictions are meant to hold within a tenth"""
FILE = "profile.json"
"""the profile in a run's folder, by which it began and goes on"""


def fix(run: Run) -> dict[str, str]:
    """Copy the profile that a run is to be pruned by into its folder, once, so that a resumed run goes by the same.

    Returns the copy's digest by name; nothing for a run without LATENCY_MS. Raises ValueError, with what to do, if
    there is no profile of the run's target and model, or LATENCY_MS is out of its reach.
    """
    config, path = run.config, run.folder / FILE
    if config.latency_ms is None:
        return {}
    dense = dense_of(config.model, img_size=config.img_size)
    shape = shape_of(dense)
    known = [found for found in profiles.read(path) if (found.target, found.shape) == (config.target, shape)]
    found = known[0] if known else find(TARGETS[config.target], shape, config.model, config.img_size)
    sparsity_of(config.latency_ms, table_of(found, len(dense.blocks)), config.target)
    if not known:
        profiles.write([found], path)
    return {FILE: files.digest(path)}


def find(target: Target, shape: Shape, model: str, img_size: int | None = None) -> Profile:
    """The profile of a model's shape in the target's file, of the first format and precision in the target's budget.

    model, img_size: as they were asked for, for the message
    Raises ValueError, with what to do, if there is none, or if it was measured on another machine than this one where
    this one is the target.
    """
    path = profiles.path_of(target.name)
    at = "" if img_size is None else f" IMG_SIZE={img_size}"
    again = f"make profile TARGET={target.name} MODEL={model}{at}"
    fitting = [found for found in profiles.read(path) if found.shape == shape]
    if not fitting:
        raise ValueError(f"there is no profile of {model}{at} on TARGET={target.name} in {path}. `{again}` makes one")
    order = [(format, precision) for format, budget in target.budget().items() for precision in budget.precisions]
    ranks = {pair: rank for rank, pair in enumerate(order)}
    found = min(fitting, key=lambda one: ranks.get((one.format, one.precision), len(ranks)))
    here = describe()
    other = [key for key in ("cpu", "cores", "arch") if found.device.get(key) != here[key]]
    if target.driver == "local" and other:
        seen = ", ".join(str(found.device.get(key)) for key in ("cpu", "cores", "arch"))
        raise ValueError(f"{path} was measured on another machine ({seen}). `{again}` measures this one")
    return found


def table_of(found: Profile, layers: int) -> LatencyTable:
    """What the allocator needs of a profile, for a model of so many layers.

    The last attention stays, so that which blocks lie behind it does not change with the allocation.
    """
    blocks = []
    for layer in range(layers):
        for kind in ("attn", "mlp"):
            last = layer == layers - 1
            curve = found.curves[_kind(kind, last)]
            blocks.append(BlockLatency(widths=curve.widths, ns=_ns(*curve.ms), stays=last and kind == "attn"))
    return LatencyTable(outside_ns=_ns(found.base_ms)[0], blocks=tuple(blocks))


def sparsity_of(latency_ms: float, table: LatencyTable, target: str) -> float:
    """Share of the dense model's time that must go. Raises ValueError for a time that is out of reach, or needs none.

    target: for the message
    """
    least_ms, dense_ms = table.least_ns / 1e6, table.dense_ns / 1e6
    if latency_ms < least_ms:
        lowest = _rounded(least_ms, math.ceil)  # up, so that it is itself reachable
        raise ValueError(
            f"LATENCY_MS={latency_ms:g} can't be reached on TARGET={target}: the lowest reachable is {lowest:g}, "
            "with nothing left but the last attention at its smallest width"
        )
    if latency_ms >= dense_ms:
        raise ValueError(
            f"LATENCY_MS={latency_ms:g} leaves nothing to prune: the dense model is predicted to take "
            f"{_rounded(dense_ms, math.floor):g} ms on TARGET={target}"
        )
    return 1 - latency_ms / dense_ms


def _rounded(ms: float, to_integer: Callable[[float], int]) -> float:
    """To three digits."""
    digits = 2 - math.floor(math.log10(ms))
    return to_integer(ms * 10.0**digits) / 10.0**digits


def budget_of(run: Run, layers: int) -> tuple[PruneConfig, LatencyTable | None]:
    """The run's settings of pruning, with the sparsity that follows from LATENCY_MS, and the table for the allocator.

    Without LATENCY_MS the settings as they are, and None. Stage prepare has fixed the profile.
    """
    config = run.config
    if config.latency_ms is None:
        return config.pruning, None
    table = table_of(_fixed(run), layers)
    return replace(config.pruning, sparsity=sparsity_of(config.latency_ms, table, config.target)), table


def prediction(run: Run, small: VisionTransformer) -> dict[str, Any]:
    """What the run's profile says of its compact model: latency_ms_predicted, and latency_profile, what it holds for.

    Both None without LATENCY_MS.
    """
    if run.config.latency_ms is None:
        return {"latency_ms_predicted": None, "latency_profile": None}
    found = _fixed(run)
    holds_for = {"target": found.target, "format": found.format, "precision": found.precision}
    return {"latency_ms_predicted": found.predict_ms(layers_of(small)), "latency_profile": holds_for}


def check_asked(run: Run, target: str, format: str, known: Measurements) -> list[Check]:
    """Whether an artifact keeps to LATENCY_MS, with SLACK, where it is one that the run's profile speaks of; else none.

    Of the profile's format in any precision: who asked for milliseconds wants them of what is shipped.
    """
    holds_for = run.results("compact").get("latency_profile")
    if not holds_for or (holds_for["target"], holds_for["format"]) != (target, format):
        return []
    assert run.config.latency_ms is not None, "a run with a profile has been asked for milliseconds"
    limit = Budget(latency_p50_ms_max=SLACK * run.config.latency_ms)
    return [replace(check, name="latency_asked_ms_max") for check in judge(known, limit)]


def layers_of(small: VisionTransformer) -> Layers:
    """Head width and hidden units of each layer of a dense or compact model."""
    layers = []
    for block in small.blocks:
        attn: Any = block.attn
        mlp: Any = block.mlp
        layers.append((attn.head_dim if attn is not None else 0, mlp.fc2.in_features if mlp is not None else 0))
    return tuple(layers)


def _fixed(run: Run) -> Profile:
    found = profiles.read(run.folder / FILE)
    if not found:
        raise ValueError(f"{run.folder / FILE} is missing. Repeat the run in another folder (RUN=name)")
    return found[0]


def _kind(kind: str, last: bool) -> Kind:
    if kind == "attn":
        return "attn_last" if last else "attn"
    return "mlp_last" if last else "mlp"


def _ns(*ms: float) -> tuple[int, ...]:
    """Whole nanoseconds, at least 1."""
    return tuple(max(1, round(value * 1e6)) for value in ms)

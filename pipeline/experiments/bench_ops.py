"""`make bench-ops`: what each kind of operation takes, dense and pruned, and why less than all saved work becomes time.

The models are those of bench-export, random weights and the same share of every block. Times are the runtimes' own (see
op_profilers.py), dense and pruned in turn in one process; the quicker half of the rounds is averaged, so that slow
moments of the machine are left out for all models alike, and operations still add up to the whole.
"""

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dap import count_macs
from dap.config import Gating
from pipeline.experiments import bench_export, op_profilers
from pipeline.experiments.bench_export import DENSE, PRUNED, THREADS
from pipeline.experiments.op_profilers import Profiled, Trace
from targets.formats import FORMATS
from targets.graph import EXECUTORCH, TFLITE, ExportViT
from targets.rewrite import rewrite

SECONDS, QUICK_SECONDS = 40.0, 2.0
MOST = 1000  # inferences of a model: ExecuTorch keeps every event until it is asked
WARMUP = 5
REST = "between operations"
ALL = "all"
NONE = (0, 0.0)
# XNNPACK's names begin like this. Behind a square, a fully connected layer is the mean of a norm (targets/graph.py).
KINDS = {
    "Convolution": "patch embedding",
    "Fully Connected": "linear layers",
    "Batch Matrix Multiply": "attention products",
    "Softmax": "softmax",
    "GELU": "GELU",
    **dict.fromkeys(
        ("Add", "Multiply", "Square", "Mean", "Reciprocal Square Root", "Subtract"), "norms and residual sums"
    ),
    **dict.fromkeys(
        ("Transpose", "Copy", "Slice", "Static Reshape", "Concatenate", "Even Split"), "transposes, copies"
    ),
}
COUNTED = {
    "convolution": "patch embedding",
    "addmm": "linear layers",
    "mm": "linear layers",
    "bmm": "attention products",
    "_softmax": "softmax",
    "gelu": "GELU",
    **dict.fromkeys(("add", "mul", "mean", "rsqrt"), "norms and residual sums"),
    **dict.fromkeys(("permute", "cat"), "transposes, copies"),
}
"""the same kinds by torch's operations"""

Row = dict[str, Any]
Key = tuple[str, float, Gating]
"""runtime, sparsity, what may go; the dense models are of gates "inner" """


def bench_ops(*, quick: bool, say: Callable[[str], None]) -> list[Row]:
    """A row for each model and kind of operation, for REST and for ALL.

    calls, ms, share of the whole; ratios are to the dense model.
    work:      multiply-accumulates of layers and products, elements of all else; None for REST and ALL
    beyond_ms: milliseconds beyond those that were left if everything shrank as the model's MACs do
    realised:  of ALL, speed-up over MAC reduction
    limit:     of ALL, the same if each kind's time shrank exactly as its own work does, and REST not at all
    """
    with tempfile.TemporaryDirectory() as folder:
        loaded: dict[Key, Profiled] = {}
        work: dict[Key, Counter[str]] = {}
        macs: dict[tuple[float, Gating], int] = {}
        for sparsity, gates in (DENSE, *PRUNED[2 if quick else 0 :]):
            model, view = bench_export.model_at(bench_export.TINY, sparsity, gates)
            macs[sparsity, gates] = count_macs(model)
            for runtime, form in (("tflite", TFLITE), ("executorch", EXECUTORCH)):
                say(f"  {runtime}, sparsity {sparsity:g}, gates {gates}")
                path = Path(folder) / f"{sparsity:g}-{gates}{FORMATS[runtime].suffix}"
                FORMATS[runtime].export(
                    model, mean=view.mean, std=view.std, path=path, precision="fp32", calibration=None
                )
                graph = rewrite(model, view.mean, view.std, form)
                work[runtime, sparsity, gates] = _work(graph)
                loaded[runtime, sparsity, gates] = (
                    op_profilers.litert(path, THREADS)
                    if runtime == "tflite"
                    else op_profilers.executorch(path, THREADS, graph.example())
                )
        say(f"  profiling {len(loaded)} side by side")
        _in_turn([profiled.run for profiled in loaded.values()], QUICK_SECONDS if quick else SECONDS)
        traces = {key: profiled.traces() for key, profiled in loaded.items()}
    rounds = _quicker(list(traces.values()))
    kinds = {key: _kinds([mine[n] for n in rounds]) for key, mine in traces.items()}
    rows: list[Row] = []
    for key in sorted(kinds, key=lambda key: (key[0] != "tflite", key[1], key[2] != "inner")):
        dense = (key[0], *DENSE)
        rows += [
            {"model": bench_export.TINY, "runtime": key[0], "sparsity": key[1], "gates": key[2], **row}
            for row in _compared(kinds[dense], kinds[key], work[dense], work[key], macs[key[1:]] / macs[DENSE])
        ]
    return rows


def _in_turn(runs: list[Callable[[], None]], seconds: float) -> None:
    begin, rounds = time.perf_counter(), 0
    while rounds < WARMUP + 2 or (time.perf_counter() - begin < seconds and rounds < MOST):
        for run in runs:
            run()
        rounds += 1


def _quicker(traces: list[list[Trace]]) -> list[int]:
    """The rounds, of all models in turn, that took least time together: the quicker half without the first ones."""
    total_ms = [sum(trace.ms for trace in one) for one in zip(*traces, strict=True)]
    warm = sorted(range(WARMUP, len(total_ms)), key=lambda n: total_ms[n])
    return warm[: (len(warm) + 1) // 2]


def _kinds(traces: list[Trace]) -> dict[str, tuple[int, float]]:
    """Calls and milliseconds of each kind, REST and ALL, on average over these inferences of one model."""
    names = [name for name, _ in traces[0].ops]
    kinds = [_kind(name, before) for name, before in zip(names, ["", *names], strict=False)]
    ms = np.mean([[ms for _, ms in trace.ops] for trace in traces], axis=0)
    whole = float(np.mean([trace.ms for trace in traces]))
    found: dict[str, tuple[int, float]] = defaultdict(lambda: NONE)
    for kind, one in zip(kinds, ms.tolist(), strict=True):
        calls, total = found[kind]
        found[kind] = calls + 1, total + one
    return {**found, REST: (0, whole - float(ms.sum())), ALL: (len(names), whole)}


def _kind(name: str, before: str) -> str:
    """Kind of one of XNNPACK's operations; before: the name of the one that ran before it."""
    if name.startswith("Fully Connected") and before.startswith("Square"):
        return KINDS["Square"]
    return next((kind for start, kind in KINDS.items() if name.startswith(start)), name)


def _compared(
    dense: Mapping[str, tuple[int, float]],
    pruned: Mapping[str, tuple[int, float]],
    dense_work: Counter[str],
    work: Counter[str],
    macs_ratio: float,
) -> list[Row]:
    """A row for each kind of operation. dense, pruned: as _kinds gives them."""
    ms_if_by_work = dense[REST][1]
    rows, kinds = [], dense.keys() | pruned.keys()
    for kind in sorted(kinds, key=lambda kind: (kind == ALL, kind == REST, -dense.get(kind, NONE)[1])):
        before_ms, (calls, ms) = dense.get(kind, NONE)[1], pruned.get(kind, NONE)
        work_ratio = work[kind] / dense_work[kind] if dense_work[kind] else None
        ms_if_by_work += before_ms * (work_ratio or 0.0)
        rows.append(
            {
                "kind": kind,
                "calls": calls,
                "ms": ms,
                "share": ms / pruned[ALL][1],
                "work": work[kind] or None,
                "ms_ratio": ms / before_ms if before_ms else None,
                "work_ratio": work_ratio,
                "macs_ratio": macs_ratio,
                "beyond_ms": ms - before_ms * macs_ratio,
                "realised": before_ms / ms * macs_ratio if kind == ALL else None,
                "limit": before_ms / ms_if_by_work * macs_ratio if kind == ALL else None,
            }
        )
    return rows


class _Counting(TorchDispatchMode):
    """Adds up the work of what runs below it."""

    def __init__(self) -> None:
        super().__init__()
        self.work: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in COUNTED:
            kind, amount = COUNTED[name], result.numel()
            if name == "convolution":
                amount *= args[1][0].numel()
            elif name in ("addmm", "mm", "bmm"):
                left = args[1] if name == "addmm" else args[0]
                amount *= left.shape[-1]
                if name == "addmm" and result.shape[-1] == 1:
                    kind = COUNTED["mean"]
            elif name == "mean":
                amount = args[0].numel()
            self.work[kind] += amount
        return result


def _work(graph: ExportViT) -> Counter[str]:
    """Multiply-accumulates of layers and products, elements of all else, by kind, for one image."""
    with torch.no_grad(), _Counting() as counting:  # inference mode keeps linear and softmax whole
        graph(graph.example())
    return counting.work


def report(rows: list[Row]) -> str:
    """Markdown: a table for each runtime and small model, dense and pruned side by side."""
    dense = {(row["runtime"], row["kind"]): row for row in rows if row["sparsity"] == 0}
    parts = []
    for key in dict.fromkeys((row["runtime"], row["sparsity"], row["gates"]) for row in rows if row["sparsity"]):
        runtime, sparsity, gates = key
        mine = [row for row in rows if (row["runtime"], row["sparsity"], row["gates"]) == key]
        whole = mine[-1]
        parts.append(
            f"{runtime}, {100 * sparsity:.0f} % pruned, gates {gates}: {whole['macs_ratio']:.3f} of the MACs, "
            f"{whole['ms_ratio']:.3f} of the time, realised {whole['realised']:.2f}; {whole['limit']:.2f} if each kind "
            "shrank as its work.\n"
        )
        heads = ("operations", "calls", "dense, ms", "pruned, ms", "share", "time left", "work left", "beyond MACs, ms")
        lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
        for row in mine:
            before = dense.get((runtime, row["kind"]), {"ms": 0.0})
            cells = [
                row["kind"],
                str(row["calls"] or ""),
                f"{before['ms']:.2f}",
                f"{row['ms']:.2f}",
                f"{100 * row['share']:.0f} %",
                f"{row['ms_ratio']:.2f}" if row["ms_ratio"] else "",
                f"{row['work_ratio']:.2f}" if row["work_ratio"] else "",
                f"{row['beyond_ms']:+.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)

"""`make bench-ops`: what becomes of the runtimes' traces; test_commands.py runs it with both runtimes."""

from collections import Counter

import pytest
from dap_models import tiny_vit

from dap import count_macs
from pipeline.experiments import bench_ops as bench
from pipeline.experiments.op_profilers import Trace
from targets.graph import EXECUTORCH, TFLITE
from targets.rewrite import rewrite

OPS = ("Square (NC)", "Fully Connected (NC, F32) GEMM", "Fully Connected (NC, F32) GEMM", "Softmax (NC, F32)")


def traces(*wholes: float, scale: float = 1.0) -> list[Trace]:
    """Inferences of these milliseconds: each operation takes a tenth of one, the last one two tenths."""
    shares = [0.1, 0.1, 0.1, 0.2]
    return [
        Trace(ops=tuple((name, scale * ms * share) for name, share in zip(OPS, shares, strict=True)), ms=scale * ms)
        for ms in wholes
    ]


def test_rounds_that_were_slow_for_any_model_are_left_out_for_all():
    warm = [0.1] * bench.WARMUP
    rounds = bench._quicker([traces(*warm, 3.0, 50.0, 1.0, 2.0), traces(*warm, 3.0, 1.0, 1.0, 40.0)])
    assert sorted(rounds) == [bench.WARMUP, bench.WARMUP + 2]


def test_operations_are_averaged_by_kind_and_add_up():
    kinds = bench._kinds(traces(3.0, 1.0))
    assert kinds[bench.ALL] == (4, pytest.approx(2.0))
    assert kinds["norms and residual sums"] == (2, pytest.approx(0.4))  # the layer behind a square is a norm's mean
    assert kinds["linear layers"] == (1, pytest.approx(0.2))
    assert kinds["softmax"] == (1, pytest.approx(0.4))
    assert kinds[bench.REST] == (0, pytest.approx(1.0))


def test_an_unknown_operation_keeps_its_name():
    assert bench._kind("Convert (NC, F32, QD8)", "") == "Convert (NC, F32, QD8)"


def test_the_limit_is_what_each_kind_would_take_by_its_own_work():
    dense, pruned = bench._kinds(traces(10.0)), bench._kinds(traces(10.0, scale=0.5))
    work = {"linear layers": 100, "norms and residual sums": 10, "softmax": 10}
    rows = bench._compared(dense, pruned, Counter(work), Counter(work | {"linear layers": 20}), 0.25)
    found = {row["kind"]: row for row in rows}
    assert [row["kind"] for row in rows][-2:] == [bench.REST, bench.ALL]
    assert found["softmax"]["beyond_ms"] == pytest.approx(0.5 * 2 - 0.25 * 2)
    assert found["linear layers"]["work_ratio"] == pytest.approx(0.2)
    assert found[bench.ALL]["realised"] == pytest.approx(2 * 0.25)
    assert found[bench.ALL]["limit"] == pytest.approx(10 / (5 + 2 + 2 + 0.2) * 0.25)
    head = {"model": "deit_tiny", "runtime": "tflite", "gates": "inner"}
    told = [head | {"sparsity": s} | row for s in (0.0, 0.75) for row in rows]
    assert "| softmax | 1 | 1.00 | 1.00 | 20 % | 0.50 | 1.00 | +0.50 |" in bench.report(told)


@pytest.mark.parametrize("form", [TFLITE, EXECUTORCH], ids=["tflite", "executorch"])
def test_work_is_that_of_the_exported_graph(form):
    model = tiny_vit(num_heads=2).eval()
    tokens, dim, hidden = 17, 24, 96
    work = bench._work(rewrite(model, (0.5,) * 3, (0.5,) * 3, form))
    # behind the last attention the class token is alone
    saved = (tokens - 1) * (2 * dim * dim + 2 * dim * hidden + 2 * tokens * dim)
    counted = sum(work[kind] for kind in ("patch embedding", "linear layers", "attention products"))
    assert counted == count_macs(model) - saved
    assert work["softmax"] == 2 * tokens * tokens + 2 * tokens
    assert work["GELU"] == hidden * (tokens + 1)

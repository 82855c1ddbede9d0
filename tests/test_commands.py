"""Every verb, end to end on its smallest input, through the command line as make calls it."""

import json
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import BRIEF, at_ease, tiny_config
from profiles import synthetic

from pipeline import __main__ as cli
from pipeline import benchmark, models, presets, profiling, sessions
from pipeline.experiments import (
    bench_export,
    bench_latency,
    bench_loader,
    bench_ops,
    bench_step,
    side_by_side,
    supported,
)
from pipeline.model_names import MICRO
from targets import Target
from targets import profile as profiles

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "data": "test_cli.py",  # and test_download.py, against a server
    "app": "test_app_web.py",  # in a browser
}
"""verbs whose command line is tried in another file"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_folder, one_format, shared):
    """A folder to work in, where everything is small: a run and a deployment take seconds."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(ROOT / "docs" / "results", folder / "docs" / "results")
    with at_ease(shared), pytest.MonkeyPatch.context() as patch:
        config, entries = tiny_config(image_folder), supported.entries()
        patch.chdir(folder)
        patch.setattr(presets, "digits", lambda sparsity: config)
        patch.setattr(presets, "of", lambda dataset, model, sparsity: config)
        patch.setattr(Target, "budget_file", property(lambda target: one_format))
        patch.setattr(profiles, "FOLDER", folder / "profiles")
        patch.setattr(sessions, "QUICK", BRIEF)
        patch.setattr(sessions, "FULL", BRIEF)
        patch.setattr(supported, "entries", lambda: entries[::12])
        patch.setattr(bench_export, "TINY", MICRO)
        patch.setattr(bench_export, "REDUCED", ())
        patch.setattr(bench_export, "QUICK", BRIEF)
        patch.setattr(bench_export, "shell_of", partial(models.shell_of, depth=2))
        patch.setattr(bench_ops, "QUICK_SECONDS", 0.5)
        patch.setattr(bench_latency, "QUICK", BRIEF)
        patch.setattr(side_by_side, "SECONDS", 0.5)
        patch.setattr(bench_loader, "BATCH", 4)
        patch.setattr(bench_step, "BATCH", {MICRO: {"cpu": 8, "cuda": 8}})
        for name, few in (
            ("ATTN_WIDTHS", 2),
            ("MLP_WIDTHS", 2),
            ("MLP_LAST_WIDTHS", 2),
            ("WHOLE", profiling.WHOLE[:2]),
        ):
            patch.setattr(profiling, name, few)
        patch.setattr(profiling, "depth_of", lambda model: 2)
        patch.setattr(profiling.profile, "__kwdefaults__", profiling.profile.__kwdefaults__ | {"protocol": BRIEF})
        yield folder


def ended_with(line: str) -> int:
    """Exit code of `make LINE`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pipeline", *line.split()])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        threads = torch.get_num_threads()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            torch.set_num_threads(threads)  # bench-export times with others
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def deployed(place):
    """The demo: a run and its deployment to this machine."""
    return ended_with("demo OUT=demo.json")


@pytest.mark.slow
def test_demo(place, deployed):
    assert deployed in (0, 3), "its time may be noisy here"
    (row,) = json.loads((place / "demo.json").read_text())["rows"]
    assert row["params"] < row["params_dense"]
    assert list(row["seconds_per_stage"]) == [
        "prepare", "dense", "prune", "compact", "finetune", "export host", "validate host"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prune RUN=demo DATASET=digits DISTILL=0", "next: make deploy TARGET=host RUN=demo"),
        ("deploy TARGET=host RUN=demo QUICK=1", "report: runs/demo/report.html"),
        ("stage STAGE=report RUN=demo", ""),
        ("stage STAGE=compact RUN=demo", "compact: finished before"),
        ("pretrain DATA=folder:{images} EPOCHS=1 OUT=w.safetensors", "w.safetensors: top-1"),
        ("profile TARGET=host", "next: make prune LATENCY_MS=... TARGET=host"),
        ("hub RUN=demo", "hf upload USER/demo runs/demo/hub"),
        ("models OUT=models.json", "| not: Eva is another architecture |"),
        ("shards DATASET=folder:{images} OUT=tars", "next: make prune DATASET=wds:tars SPARSITY=0.75"),
        ("env-size OUT=env.json", "results: env.json"),
        ("paper-table", "| deit_tiny_patch16_224 | DAP |"),
        (
            "compare DATASET=digits SPARSITIES=0.5 METHODS=dap SEEDS=0 EPOCHS=1 FINETUNE_EPOCHS=1 OUT=compare.json",
            "results: compare.json",
        ),
        ("bench-frontier RESULTS=compare.json METHODS=dap OUT=frontier.json", "results: frontier.json"),
        ("bench-probes OUT=probes.json", "results: probes.json"),
        ("scale-estimate OUT=scale.json", "results: scale.json"),
        ("profile-train", "operations called a step"),
        ("bench-loader QUICK=1 WORKERS=1 OUT=loader.json", "results: loader.json"),
        ("bench-export QUICK=1 OUT=export.json", "results: export.json"),
        ("bench-batch QUICK=1 OUT=batch.json", "results: batch.json"),
        ("bench-ops QUICK=1 OUT=ops.json", "results: ops.json"),
    ],
)
def test_a_verb(place, deployed, capsys, image_folder, line, expected):
    code = ended_with(line.format(images=image_folder))
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    assert expected in text
    assert code in ((0, 3) if line.startswith("deploy") else (0,)), text


@pytest.mark.slow
def test_bench(place, deployed, capsys, monkeypatch):
    monkeypatch.setattr(Target, "offered", property(lambda target: {"tflite": ("fp32",)}))
    code = ended_with("bench RUN=demo QUICK=1 OUT=bench.json")
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "table: runs/demo/bench/host/bench.csv runs/demo/bench/host/bench.json" in captured.out
    assert "fp32, dense" in captured.out
    rows = json.loads((place / "bench.json").read_text())["rows"]
    assert rows == json.loads((place / "runs" / "demo" / "bench" / "host" / "bench.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["measured"] * 2
    monkeypatch.setattr(benchmark, "ran", lambda rows: False)
    assert ended_with("bench RUN=demo QUICK=1") == 3, "nothing has run"
    assert ended_with("bench RUN=demo TARGET=moon") == 2


@pytest.mark.slow
def test_bench_step_has_a_row_per_probe_and_ratios_to_none(place):
    assert ended_with("bench-step QUICK=1 OUT=step.json") == 0
    rows = json.loads((place / "step.json").read_text())["rows"]
    assert [row["probe"] for row in rows] == ["none", "default", "reference"]
    for row in rows:
        assert {"model", "device", "probe", "step_ms", "step_ratio", "peak_mb", "memory_ratio"} <= row.keys()
    none, default, reference = rows
    assert none["step_ratio"] == none["memory_ratio"] == 1
    assert reference["step_ms"] > default["step_ms"]
    assert reference["peak_mb"] > default["peak_mb"] > 0


@pytest.mark.slow
def test_both_budgets_are_predicted_to_be_equally_fast(place):
    profiles.write([synthetic()], profiles.FOLDER / "host.json")
    assert ended_with("bench-latency-budget QUICK=1 SPARSITY=0.6 OUT=latency.json") == 0
    rows = json.loads((place / "latency.json").read_text())["rows"]
    params, latency = rows
    assert (params["budget"], latency["budget"]) == ("params", "latency")
    assert latency["latency_ms_target"] == params["latency_ms_predicted"]
    of_asked = latency["latency_ms_predicted"] / latency["latency_ms_target"]
    assert 0.97 < of_asked < 1 + 1e-4  # the allocator's table holds whole nanoseconds
    assert all(row["latency_ms_p50"] > 0 and row["images"] == 18 for row in rows)
    assert bench_latency.report(rows).count("\n") == 9


def test_every_verb_is_tried():
    tried = set(re.findall(r'\(\s*"([a-z-]+)[ "]', Path(__file__).read_text())) | {"demo", *ELSEWHERE}
    verbs = re.search(r"^VERBS := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert verbs
    assert set(verbs[1].replace("\\", " ").split()) <= tried
    for verb, file in ELSEWHERE.items():
        assert f'"{verb}"' in (ROOT / "tests" / file).read_text(), verb

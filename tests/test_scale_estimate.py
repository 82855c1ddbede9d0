"""Hours and cost on many GPUs, against numbers that were worked out by hand."""

from pathlib import Path

import pytest

from pipeline import files
from pipeline.experiments import scale_estimate as scale
from pipeline.experiments.scale_estimate import Assumed, Measured

ROOT = Path(__file__).parent.parent
TINY = "deit_tiny_patch16_224"
ROUND = Assumed(within_gb_s=100, between_gb_s=10, collective_us=100, cores_per_gpu=4, images_per_gpu=64, price=2)


def compared(**changes):
    dense = [("dense", None, 0.0, {"dense": ms}) for ms in (30.0, 20.0, 70.0)]
    dap = [
        ("dap", None, 0.75, {"prune": 60.0, "finetune": 40.0}),
        ("dap", None, 0.5, {"prune": 1.0, "finetune": 1.0}),
        ("dap", "distill", 0.75, {"prune": 1.0, "finetune": 1.0}),
    ]
    keys = "method", "variant", "sparsity_target", "ms_per_step"
    rows = [{**dict(zip(keys, row, strict=True)), "model": "m", "macs": 10**9} for row in dense + dap]
    machine = {"cpu": None, "cores": 16, "gpu": "a GPU"}
    return {"command": "make compare BATCH_SIZE=32 JOBS=5", "machine": machine, "rows": rows, **changes}


def test_steps_of_a_comparison_are_the_medians_of_its_dense_model_and_of_dap(tmp_path):
    files.write_json(tmp_path / "x.json", compared())
    (card,) = scale.measured(tmp_path / "x.json", 0.75)
    times = {"dense": 30.0, "prune": 60.0, "finetune": 40.0}
    assert card == Measured(gpu="a GPU", model="m", macs=10**9, batch=32, processes=5, step_ms=times)
    files.write_json(tmp_path / "x.json", compared(command="make compare"))
    (card,) = scale.measured(tmp_path / "x.json", 0.75)
    assert (card.batch, card.processes) == (64, 1)


def test_steps_of_the_benchmark_count_where_it_ran_on_a_gpu(tmp_path):
    rows = [
        {"model": TINY, "device": device, "probe": probe, "batch": 128, "step_ms": ms}
        for device, ms in (("cpu", 9e9), ("cuda", 10.0))
        for probe, ms in (("none", ms), ("default", 2 * ms), ("reference", 9 * ms))
    ]
    files.write_json(tmp_path / "x.json", compared(command="make bench-step", rows=rows))
    (card,) = scale.measured(tmp_path / "x.json", 0.75)
    assert (card.model, card.batch, card.processes) == (TINY, 128, 1)
    assert card.macs == pytest.approx(1.25e9, rel=0.01)
    assert card.step_ms == {"dense": 10.0, "prune": 20.0, "finetune": 10.0}


def test_gradients_go_round_a_ring_of_the_slowest_connection():
    assert scale.all_reduce_ms(1e9, 5, 1, ROUND) == 0
    assert scale.all_reduce_ms(1e9, 0, 2, ROUND) == pytest.approx(10)  # 2 x 1/2 of 1 GB, at 100 GB/s
    assert scale.all_reduce_ms(1e9, 5, 8, ROUND) == pytest.approx(17.5 + 0.5)  # 2 x 7/8, and 5 calls of 0.1 ms
    assert scale.all_reduce_ms(1e9, 0, 64, ROUND) == pytest.approx(196.875)  # 2 x 63/64, at 10 GB/s


@pytest.mark.parametrize(
    ("work", "reduce_ms", "per_core", "compute_ms", "step_ms", "limit"),
    [
        (
            2.0,
            0.0,
            1e6,
            [12, 30],
            [12, 30],
            ["computing", "computing"],
        ),  # 5 in 30 ms: 6 ms each, twice
        (10.0, 0.0, 1e6, [60, 60], [60, 60], ["computing", "computing"]),
        (2.0, 20.0, 1e6, [12, 30], [32, 50], ["all-reduce", "computing"]),
        (2.0, 0.0, 640.0, [12, 30], [25, 30], ["loading", "computing"]),  # 4 cores load 64 images in 25 ms
    ],
)
def test_a_step_is_as_long_as_what_limits_it(work, reduce_ms, per_core, compute_ms, step_ms, limit):
    one = scale.step(30.0, 5, work, reduce_ms, per_core, ROUND)
    assert one["compute_ms"] == pytest.approx(compute_ms) and one["step_ms"] == pytest.approx(step_ms)
    assert one["limit"] == limit
    busy = [ms + reduce_ms for ms in compute_ms]
    assert one["cores_wanted"] == pytest.approx([64 / ms * 1e3 / per_core for ms in busy])


def test_hours_of_the_preset_and_their_cost():
    """iNat19's 265,213 images, 64 at a step of each of 8 GPUs: 517 steps an epoch, of which there are 100, 50, 300."""
    times = {"dense": 36.0, "prune": 72.0, "finetune": 36.0}
    card = Measured(gpu="a GPU", model=TINY, macs=1, batch=64, processes=1, step_ms=times)
    other = Measured(gpu="a GPU", model="other", macs=10**15, batch=64, processes=1, step_ms=times)
    card = Measured(**{**vars(card), "macs": scale.count_macs(scale.weightless(TINY, 1010))})
    free = Assumed(within_gb_s=1e9, collective_us=1e-9, cores_per_gpu=1000, price=2)
    (row,) = scale.estimate([TINY], ["inat19"], [8], 0.75, [other, card], 500.0, free)
    assert (row["work"], row["images_per_step"], row["measured"]["model"]) == (1, 512, TINY)
    assert [stage["steps"] for stage in row["stages"].values()] == [51_700, 25_850, 155_100]
    assert row["hours"] == pytest.approx([0.517 + 0.517 + 1.551] * 2)
    assert row["gpu_hours"] == pytest.approx([8 * 2.585] * 2) and row["cost"] == pytest.approx([16 * 2.585] * 2)
    sent = {name: stage["sent_mb"] for name, stage in row["stages"].items()}
    assert sent["dense"] == pytest.approx(22.877384)  # as bench-probes has them
    assert sent["prune"] == pytest.approx(22.877384 + 15.0624)
    assert sent["finetune"] == pytest.approx(22.877384 / 4)


def test_the_docs_show_what_the_command_prints_today():
    results = ROOT / "docs" / "results"
    step, loader = results / "compare-clothing-vit_small_patch14_dinov2.json", results / "bench-loader.json"
    models, datasets = [TINY, "deit_small_patch16_224"], ["inat19", "imagenet"]
    card, per_core = scale.measured(step, 0.75), scale.loaded_per_core(loader)
    rows = scale.estimate(models, datasets, [1, 8, 64], 0.75, card, per_core, Assumed())
    assert scale.report(rows) == (results / "scale-estimate.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine": {"gpu": None}}, "measured without a GPU"),
        ({"rows": []}, "measured without a GPU"),
        ({"rows": compared()["rows"][:3]}, r"lacks .*dense and dap at 0\.75"),
        ({"rows": [{"method": "dense", "variant": None, "sparsity_target": 0.0, "model": "m", "macs": 1}]}, "lacks"),
        ({"rows": [1]}, "lacks"),
        ({"command": "make bench-step", "rows": [{"model": TINY}]}, "lacks 'device'"),
    ],
)
def test_a_file_without_steps_of_a_gpu_is_refused(tmp_path, changes, message):
    files.write_json(tmp_path / "x.json", compared(**changes))
    with pytest.raises(ValueError, match=message):
        scale.measured(tmp_path / "x.json", 0.75)


def test_wrong_questions_are_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"rows": [{"loader": "timm"}]}')
    with pytest.raises(ValueError, match="no row of 'ours' at 224 pixels"):
        scale.loaded_per_core(tmp_path / "x.json")
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"BETWEEN_GB_S={wrong} must be a number above 0"):
            Assumed(between_gb_s=wrong)
    with pytest.raises(ValueError, match="DATASETS: moon is unknown"):
        scale.estimate([TINY], ["moon"], [1], 0.75, [], 1.0, Assumed())
    with pytest.raises(ValueError, match="GPUS: 0 must be 1 or more"):
        scale.estimate([TINY], ["inat19"], [0], 0.75, [], 1.0, Assumed())

"""What the probes hold, counted without weights."""

from pipeline.experiments.probe_sizes import probe_sizes


def test_probes_of_a_thousand_classes_hold_less_than_the_model() -> None:
    rows = {(row["model"], row["classes"], row["probe"]): row for row in probe_sizes()}
    assert len(rows) == 18
    for (_, classes, probe), row in rows.items():
        if probe == "default":
            assert row["params"] < 0.7 * row["model_params"]
            assert row["params"] <= row["params_whole_heads"]
            assert (row["params"] < row["params_whole_heads"]) == (classes > 10)
    tiny = rows["deit_tiny_patch16_224", 1010, "default"]
    assert tiny["params_whole_heads"] == 11_227_488  # counted by hand: 24 blocks x 2 x 192 x 1,010 of them in the heads
    assert tiny["memory_mb"] == tiny["params"] * 16 / 1e6

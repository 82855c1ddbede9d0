"""The stages on a configuration of seconds: what they leave, what they redo, how they go on after being killed."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import BRIEF, at_ease, context_of, tiny_config
from PIL import Image

from dap import count_params, load_compact
from pipeline import context as context_module
from pipeline import files, models, presets, stages
from pipeline.errors import Interrupted
from pipeline.report import evidence
from pipeline.runs import Run
from pipeline.train import checkpoints
from pipeline.train.evaluate import Predictions, predictor

ROOT = Path(__file__).parent.parent


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_the_run_folder_holds_what_the_contract_says(finished):
    folder, _ = finished
    for name in ("config.json", "log.jsonl", "model/architecture.json", "model/weights.safetensors",
                 "model/labels.json", "model/preprocess.json", "artifacts/host/manifest.json", "report.json",
                 "report.html"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".svg"}
    assert json.loads((folder / "model" / "labels.json").read_text()) == ["across", "along", "slanted"]


def test_the_report_has_every_field_of_the_contract(finished):
    report = report_of(finished[0])
    for key in ("model", "dataset", "method", "seed", "sparsity_target", "sparsity", "params_dense", "params",
                "macs_dense", "macs", "top1_dense", "top1_masked", "top1_compact", "top1"):  # fmt: skip
        assert report[key] is not None, key
    assert report["params"] / report["params_dense"] == pytest.approx(1 - report["sparsity"])
    assert 0.5 <= report["sparsity"] < 0.52
    assert report["macs"] < report["macs_dense"]
    assert set(report["seconds_per_stage"]) == {*stages.TRAINING, "export host", "validate host"}
    assert [block["name"] for block in report["blocks"]][:3] == ["attn 0", "mlp 0", "attn 1"]
    for block in report["blocks"]:
        assert {"name", "bpi_class", "bpi_patch", "keep_ratio", "width"} <= block.keys()
    assert [artifact["role"] for artifact in report["artifacts"]] == ["dense", "pruned"]
    for artifact in report["artifacts"]:
        assert {"target", "format", "precision", "file", "size_bytes", "sha256", "parity", "top1", "latency_ms",
                "device", "threads", "budget", "verdict"} <= artifact.keys()  # fmt: skip
        assert files.digest(finished[0] / artifact["file"]) == artifact["sha256"]
        assert artifact["parity"]["psnr_db"] > 60
        assert {"p50", "p90", "mean", "samples", "seconds", "valid"} <= artifact["latency_ms"].keys()
        assert artifact["top1"] > 50


def test_what_the_last_epoch_has_found_is_not_computed_again(image_folder, tmp_path, monkeypatch):
    """Unless it is not known: what was interrupted between its last step and its end has the same accuracy."""
    context, _ = context_of(tmp_path / "run", tiny_config(image_folder))
    stages.run_training(context, only="prepare")
    counted = []
    for name in ("predictions_of_all", "model_predictions"):
        function = getattr(context_module, name)
        monkeypatch.setattr(
            context_module, name, lambda *given, name=name, function=function: counted.append(name) or function(*given)
        )
    stages.run_training(context, only="dense")
    assert counted == ["predictions_of_all"]
    found = context.run.results("dense")
    assert [line["top1"] for line in context.run.log.read() if "top1" in line] == [found["top1_dense"]]
    (kept,) = (name for name in context.run.files("dense") if name.startswith("predictions/"))
    digest = files.digest(tmp_path / "run" / kept)
    (tmp_path / "run" / kept).unlink()
    stages.run_training(context, only="dense")
    assert counted == ["predictions_of_all", "model_predictions"]
    assert (context.run.results("dense"), files.digest(tmp_path / "run" / kept)) == (found, digest)


def test_compact_equals_masked_and_top1_agrees(finished):
    report = report_of(finished[0])
    assert report["top1_compact"] == report["top1_masked"]
    assert Run.open(finished[0]).results("compact")["compaction_error"] < 1e-5


def test_the_widths_are_those_that_the_target_likes(finished):
    model = load_compact(finished[0] / "model")
    widths = [block.attn.attn_dim for block in model.blocks if block.attn is not None]
    widths += [block.mlp.fc1.out_features for block in model.blocks if block.mlp is not None]
    assert any(width % 16 for width in widths)  # the rule leaves more than multiples of 16
    assert all(width % 16 == 0 or width % 16 > 8 for width in widths)


def test_the_log_has_a_line_per_step_and_blocks_at_updates(finished):
    lines = Run.open(finished[0]).log.read()
    steps = [(line["stage"], line["step"]) for line in lines]
    assert steps == [*(("dense", n) for n in range(1, 4)), *(("prune", n) for n in range(1, 10)),
                     *(("finetune", n) for n in range(1, 7))]  # fmt: skip
    updates = [line for line in lines if "blocks" in line]
    assert len(updates) >= 3
    assert all(len(line["blocks"]) == 24 for line in updates)
    assert [line["epoch"] for line in lines if "top1" in line] == [1, 1, 2, 3, 1, 2]


def test_the_small_model_loads_with_one_call_and_without_the_dense_weights(finished, tmp_path):
    shutil.copytree(finished[0] / "model", tmp_path / "model")
    model = load_compact(tmp_path / "model")
    assert isinstance(model, timm.models.VisionTransformer)
    assert count_params(model) == report_of(finished[0])["params"]
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.slow
def test_images_of_another_size_from_end_to_end(image_folder, one_format, shared, tmp_path):
    """The dense reference, the small model, its exports, what apps are told, and the golden pictures."""
    config = tiny_config(image_folder, img_size=32)
    recipe = dataclasses.replace(config.finetune, epochs=1)
    context, _ = context_of(tmp_path, dataclasses.replace(config, prune=recipe, finetune=recipe))
    stages.run_training(context)
    with at_ease(shared):
        assert stages.run_deploying(context, "host", budget=one_format, protocol=BRIEF) != "not_measured"
    assert json.loads((tmp_path / "model/preprocess.json").read_text())["size"] == 32
    for model in (load_compact(tmp_path / "model"), context.dense_model()):
        assert model.patch_embed.grid_size == (4, 4)
    manifest = json.loads((tmp_path / "artifacts/host/exported.json").read_text())
    assert (manifest["input"]["height"], manifest["input"]["resize"]["centre_crop"]) == (32, 32)
    for golden in manifest["golden"]:
        assert Image.open(tmp_path / "artifacts/host" / golden["file"]).size == (32, 32)
    for artifact in report_of(tmp_path)["artifacts"]:
        assert artifact["parity"]["psnr_db"] > 60


def test_the_report_tells_mistakes_from_what_the_stages_have_kept(run_copy, image_folder):
    """Models and images may be gone by then; a run of before, which has kept nothing, still has its report."""
    report = report_of(run_copy)
    assert {"split": "val", "images": 18}.items() <= report["mistakes"].items()
    assert [row["name"] for row in report["mistakes"]["classes"]] == ["across", "along", "slanted"]
    for model, key in (("dense", "top1_dense"), ("small", "top1")):
        found = evidence.read(evidence.path_of(run_copy, "val", model), 3)
        assert 100 * (found.predicted == found.labels).mean() == pytest.approx(report[key])
        assert (found.predicted != found.labels).sum() <= 12 or len(found.rows) >= 12
        assert all((image_folder / name).is_file() for name in found.names)
        assert found.pictures.shape[1:] == (64, 64, 3)
    assert report["balanced_accuracy"] == pytest.approx(report["top1"])  # the classes have the same number of images
    assert report["balanced_accuracy_dense"] == pytest.approx(report["top1_dense"])
    assert (report["epoch_dense"], report["epoch_finetune"]) == (1, 2)
    assert report["epochs"] == {"dense": 1, "prune": 3, "finetune": 2}
    shutil.rmtree(run_copy / "checkpoints")
    context, _ = context_of(run_copy)
    stages.report(context)
    assert report_of(run_copy)["mistakes"] == report["mistakes"]
    assert "What it gets wrong" in (run_copy / "report.html").read_text()
    records = json.loads((run_copy / "stages.json").read_text())
    for record in records.values():
        record["files"] = {name: seen for name, seen in record["files"].items() if "predictions" not in name}
    files.write_json(run_copy / "stages.json", records)
    stages.report(context)
    assert report_of(run_copy)["mistakes"] is None


def test_a_model_without_mistakes_leaves_no_pictures(run_copy):
    context, _ = context_of(run_copy)
    labels = context.dataset.val.labels
    sure = Predictions(labels=labels, predicted=labels, confidence=np.ones(len(labels), np.float32))
    for model in evidence.MODELS:
        found = evidence.read(context.keep(model, sure), 3)
        assert (found.predicted.tolist(), len(found.pictures)) == (labels.tolist(), 0)


def test_nothing_is_done_twice(run_copy, one_format):
    context, said = context_of(run_copy)
    before = (run_copy / "stages.json").read_text()
    stages.run_training(context)
    stages.run_deploying(context, "host", budget=one_format, protocol=BRIEF)
    assert said == [f"{name}: finished before" for name in (*stages.TRAINING, "export host", "validate host")]
    assert (run_copy / "stages.json").read_text() == before


def test_a_lost_file_is_made_anew_and_a_damaged_one_named(run_copy):
    weights = run_copy / "model" / "weights.safetensors"
    expected = files.digest(weights)
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    context, _ = context_of(run_copy)
    with pytest.raises(ValueError, match=r"weights\.safetensors is not what stage finetune wrote"):
        stages.run_training(context)
    weights.unlink()
    stages.run_training(context)
    assert files.digest(weights) == expected


def test_new_images_make_every_stage_begin_anew(image_folder, tmp_path):
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    context, _ = context_of(tmp_path / "run", tiny_config(images))
    stages.run_training(context, only="prepare")
    shutil.copy(images / "train/along/0.png", images / "train/along/new.png")
    context, said = context_of(tmp_path / "run")
    stages.run_training(context, only="prepare")
    assert said == ["prepare: its inputs have changed, so it begins anew"]


@pytest.mark.parametrize("moved", [0, 1])
def test_killed_while_what_other_inputs_have_left_is_set_aside(image_folder, tmp_path, monkeypatch, moved):
    """The same command goes on from none of it, however many of the two checkpoints had been moved."""
    context, said = context_of(tmp_path / "run", tiny_config(image_folder))
    context.run.begin("dense", "before")
    for step in (1, 2):
        checkpoints.save(context.checkpoints / "dense.pt", {"step": step})
    move, left, found = os.replace, moved, []

    def killed(source: Path, to: Path) -> None:
        nonlocal left
        if Path(to).parent.name == "aside":
            if left == 0:
                raise Interrupted("killed")
            left -= 1
        move(source, to)

    def dense() -> tuple[list, dict]:
        found.append(checkpoints.load_latest(context.checkpoints / "dense.pt", said.append))
        return [], {}

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Interrupted):
            stages._run(context, "dense", "after", dense)
    stages._run(context, "dense", "after", dense)
    assert found == [None]


def test_a_stage_alone_needs_those_before_it(image_folder, tmp_path):
    context, _ = context_of(tmp_path / "run", tiny_config(image_folder))
    with pytest.raises(ValueError, match="stage compact needs stage prepare"):
        stages.run_training(context, only="compact")
    with pytest.raises(ValueError, match="has no small model"):
        stages.run_deploying(context, "host")


def test_going_on_after_a_deploy_keeps_its_figures(run_copy):
    context, _ = context_of(run_copy)
    assert stages.report(context) == "pass"
    assert (run_copy / "figures" / "latency_distribution.svg").exists()


def test_an_unreachable_sparsity_shows_before_any_training(image_folder, tmp_path):
    config = tiny_config(image_folder)
    config = dataclasses.replace(config, pruning=dataclasses.replace(config.pruning, sparsity=0.999))
    context, _ = context_of(tmp_path / "run", config)
    with pytest.raises(ValueError, match=r"0\.9\d"):
        stages.run_training(context)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_model_that_cannot_be_exported_shows_before_any_training(image_folder, tmp_path, monkeypatch):
    """Images of four channels can be pruned on, but exports take RGB."""
    config = tiny_config(image_folder, model="vit_small_patch16_224", from_scratch=True)
    context, _ = context_of(tmp_path / "run", config)
    build = models.create_model

    def of_four_channels(*arguments, **options):
        model = build(*arguments, **options)
        model.patch_embed.proj = torch.nn.Conv2d(4, model.embed_dim, 16, 16)
        return model

    monkeypatch.setattr(models, "create_model", of_four_channels)
    with pytest.raises(ValueError, match=r"patch_embed\.proj has no exact export form: only RGB"):
        stages.run_training(context)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_damaged_checkpoint_is_named(image_folder, tmp_path):
    context, _ = context_of(tmp_path / "run", tiny_config(image_folder))
    stages.run_training(context, only="prepare")
    (tmp_path / "run" / "checkpoints" / "dense.pt").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"dense\.pt is damaged\. Delete it"):
        stages.run_training(context)


SCRIPT = """
import os, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import conftest
from pipeline import stages
from pipeline.context import Context
from pipeline.runs import Run
run = Run.create(Path({folder!r}), conftest.tiny_config(Path({images!r})))
stages.run_training(Context(run, lambda *_: None, lambda _: None))
"""


def start(folder: Path, images: Path) -> subprocess.Popen:
    script = SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(folder), images=str(images))
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)


def wait_for_step(folder: Path, stage: str, step: int) -> None:
    log = files.Log(folder / "log.jsonl")
    deadline = time.monotonic() + 300
    while not any(line["stage"] == stage and line["step"] >= step for line in log.read()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_while_pruning_ends_as_if_it_had_not_been(image_folder, tmp_path):
    """kill -9 in the prune stage, then the same command: the same files and accuracy, bit for bit.

    All in processes of their own: sums come out the same only with the same number of threads.
    """
    whole_folder = tmp_path / "whole"
    assert start(whole_folder, image_folder).wait() == 0
    folder = tmp_path / "killed"
    process = start(folder, image_folder)
    wait_for_step(folder, "prune", 4)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (folder / "checkpoints" / "prune.pt").exists()
    assert Run.open(folder).records()["prune"].seconds is None
    assert start(folder, image_folder).wait() == 0
    whole, resumed = Run.open(whole_folder), Run.open(folder)
    for stage in stages.TRAINING:
        assert resumed.results(stage) == whole.results(stage)
    for name in ("model/weights.safetensors", "model/architecture.json", "checkpoints/compact/weights.safetensors"):
        assert files.digest(folder / name) == files.digest(whole_folder / name), name
    assert resumed.log.read() == whole.log.read()


def test_ctrl_c_saves_and_says_so(image_folder, tmp_path):
    """The signal comes while a step is being computed; the step is finished and saved."""

    def interrupt(stage: str, done: int, *_) -> None:
        if (stage, done) == ("prune", 5):
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "run"
    context, _ = context_of(folder, tiny_config(image_folder), interrupt)
    before = signal.getsignal(signal.SIGINT)  # a shell starts its background jobs with the signal ignored
    with pytest.raises(Interrupted, match="prune stopped at step 5 of 9"):
        stages.run_training(context)
    assert checkpoints.load(folder / "checkpoints" / "prune.pt")["step"] == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert (spent := Run.open(folder).records()["prune"].spent) > 0
    context, _ = context_of(folder)
    stages.run_training(context)
    assert Run.open(folder).records()["prune"].seconds > spent


COMMAND = """
import dataclasses, sys
sys.path[:0] = [{root!r}, {tests!r}]
import conftest
from pipeline import __main__ as cli, presets
config = conftest.tiny_config({images!r})
presets.of = lambda *_: dataclasses.replace(config, dense=dataclasses.replace(config.dense, epochs=100))
sys.argv = ["pipeline", "prune", "--dataset", "folder:{images}", "--run", "mine"]
cli.main()
"""


def command(folder: Path, images: Path, before: Sequence[str] = (), **options) -> subprocess.Popen:
    """`make prune` on the generated images, in a session of its own, with processes that read them.

    before: what runs the command, if anything does
    """
    code = COMMAND.format(root=str(ROOT), tests=str(ROOT / "tests"), images=str(images))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        [*before, sys.executable, "-c", code], cwd=folder, start_new_session=True, **streams, **options
    )


@pytest.mark.slow
def test_a_term_for_the_whole_group_ends_with_a_checkpoint(image_folder, tmp_path):
    """As services, clusters and `timeout` send it."""
    process = command(tmp_path, image_folder)
    wait_for_step(tmp_path / "runs" / "mine", "dense", 2)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "repeat the command to go on" in said
    assert checkpoints.load(tmp_path / "runs" / "mine" / "checkpoints" / "dense.pt")["step"] >= 2


@pytest.mark.slow
def test_of_two_same_commands_at_the_same_moment_one_says_so_and_ends(image_folder, tmp_path):
    both = [command(tmp_path, image_folder) for _ in range(2)]
    deadline = time.monotonic() + 120
    while all(process.poll() is None for process in both):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first, second = sorted(both, key=lambda process: process.poll() is not None)
    said, _ = second.communicate()
    assert (second.returncode, "in use by another process. Wait for it" in said) == (2, True), said
    wait_for_step(tmp_path / "runs" / "mine", "dense", 2)
    os.killpg(first.pid, signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 130, said


@pytest.mark.slow
def test_a_loaders_process_that_is_killed_ends_the_run_with_advice(image_folder, tmp_path):
    """As the kernel does when the memory runs out."""
    process = command(tmp_path, image_folder)
    wait_for_step(tmp_path / "runs" / "mine", "dense", 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"-c" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert "has the memory run out?" in said
    assert "Traceback" not in said


IN_LITTLE_SHARED_MEMORY = ["unshare", "--mount", "--map-root-user", "sh", "-c",
                           'mount -t tmpfs -o size=100k tmpfs /dev/shm && exec "$@"', "sh"]  # fmt: skip
"""before a command: it has a /dev/shm of its own, too small for one batch"""


@pytest.mark.slow
def test_shared_memory_that_is_too_small_ends_the_run_with_advice(image_folder, tmp_path):
    """As containers have it. Without a word of its own, torch drops the batches and waits for them without end."""
    try:
        subprocess.run([*IN_LITTLE_SHARED_MEMORY, "true"], check=True, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"/dev/shm cannot be mounted here: {error.stderr.strip()}")
    process = command(tmp_path, image_folder, before=IN_LITTLE_SHARED_MEMORY)
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 3, said
    assert "shared memory (/dev/shm, 0 MiB free) is too small" in said
    assert "--shm-size" in said and "repeat the command to go on" in said
    assert "Traceback" not in said
    assert Run.open(tmp_path / "runs" / "mine").records()["prepare"].seconds is not None


def test_heads_are_rotated_before_they_are_masked(image_folder, tmp_path):
    context, _ = context_of(tmp_path / "run", tiny_config(image_folder, dense=None))
    stages.run_training(context, "prepare")
    (plain, _), (rotated, _) = stages._pruned_model(context), stages._pruned_model(context, rotated=True)
    qkv, turned = (model.state_dict()["blocks.0.attn.qkv.weight"] for model in (plain, rotated))
    assert (qkv - turned).abs().max() > 0.01
    images = next(iter(context.val_batches))[0]
    before, after = (predictor(model.eval(), context.view)(images) for model in (plain, rotated))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_what_a_method_cuts_in_one_shot_is_fitted_to_the_whole_model(image_folder, tmp_path):
    config = presets.with_method(tiny_config(image_folder, dense=None), "savit")
    context, _ = context_of(tmp_path / "run", dataclasses.replace(config, compensate=True))
    for stage in ("prepare", "dense", "prune", "compact"):
        stages.run_training(context, stage)
    _, pruner = stages._pruned_model(context)
    state = checkpoints.load(context.checkpoints / "masked.pt")
    assert state is not None
    pruner.load_state_dict(state["pruner"])
    fitted = load_compact(context.checkpoints / "compact").state_dict()
    changed = {name for name, value in pruner.finalize().state_dict().items() if not torch.equal(value, fitted[name])}
    assert changed and all(name.split(".")[-2] in ("proj", "fc2") for name in changed)
    with pytest.raises(ValueError, match="compensate is for methods that cut in one shot"):
        dataclasses.replace(tiny_config(image_folder), compensate=True)

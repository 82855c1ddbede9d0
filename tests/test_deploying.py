"""One target: the smallest artifact that keeps to the budget is shipped, and broken things are caught."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BRIEF, at_ease, context_of, tiny_config
from PIL import Image

from pipeline import apps, exporting, files, stages
from pipeline.data import datasets
from pipeline.errors import EnvironmentLacks
from targets import TARGETS, manifest
from targets.artifact import RuntimeUnavailable, sha256_of
from targets.devices import measure
from targets.formats import FORMATS

pytestmark = pytest.mark.slow

TOPK = "3 operations are outside the delegate: gather, gather, topk"
LIMITS = "top1_share_min = 0.5\n"
SEVERAL = LIMITS + "[tflite]\nprecisions = ['int8-weights', 'fp16', 'fp32']"


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def pruned_of(folder: Path) -> dict[str, dict]:
    """Candidates by precision, of a report on one format."""
    return {a["precision"]: a for a in report_of(folder)["artifacts"] if a["role"] == "pruned"}


def deployer(folder: Path):
    """Deploys a run under a budget given as text; returns verdict and what was said."""

    def run(text: str, target: str = "host", change=lambda context: None, only=None):
        path = folder.parent / "mine.toml"
        path.write_text(text)
        context, said = context_of(folder)
        change(context)
        return stages.run_deploying(context, target, only, budget=path, protocol=BRIEF), said

    run.folder = folder
    return run


@pytest.fixture
def deploy(run_copy):
    return deployer(run_copy)


@pytest.fixture(scope="module")
def several(finished, shared, tmp_path_factory) -> Path:
    """A run that is exported for SEVERAL, so that each test begins with that."""
    folder = Path(shutil.copytree(finished[0], tmp_path_factory.mktemp("runs") / "several"))
    with at_ease(shared):
        assert deployer(folder)(SEVERAL)[0] == "pass"
    return folder


@pytest.fixture
def deploy_several(several, shared, tmp_path):
    with at_ease(shared):
        yield deployer(Path(shutil.copytree(several, tmp_path / "several")))


def replaced(monkeypatch, name: str, **changes) -> None:
    monkeypatch.setitem(FORMATS, name, dataclasses.replace(FORMATS[name], **changes))
    if "load" in changes:  # another process, which measures memory and loading, could not be sent it
        found = measure.Fresh(peak_mb=1.0, cold_ms=1.0, warm_ms=1.0, from_storage=False)
        monkeypatch.setattr(measure, "fresh", lambda *_: found)


def missing(*_, **__):
    raise RuntimeUnavailable("no TFLite interpreter: pip install ai-edge-litert")


def test_the_smallest_that_passes_is_shipped_and_the_others_say_why_not(deploy):
    verdict, _ = deploy(LIMITS + "[tflite]\nprecisions = ['int8-weights', 'fp16', 'fp32']")
    assert verdict == "pass"
    found = pruned_of(deploy.folder)
    assert [(p, a["shipped"], a["verdict"]) for p, a in found.items()] == [
        ("int8-weights", True, "pass"), ("fp16", False, "not_measured"), ("fp32", False, "not_measured")]  # fmt: skip
    assert found["fp32"]["reason"] == "not tried: int8-weights is smaller and passes"
    assert [a["file"] is None for a in found.values()] == [False, True, True]
    assert [a["size_bytes"] is None for a in found.values()] == [False, True, True]
    assert sorted(path.name for path in (deploy.folder / "artifacts" / "host").glob("*.tflite")) == [
        "dense-fp32.tflite", "pruned-int8-weights.tflite"], "what nobody looks at is not made"  # fmt: skip
    shipped = manifest.read(deploy.folder / "artifacts" / "host" / manifest.FILE_NAME)
    assert [(f.precision, f.role) for f in shipped.files] == [("int8-weights", "pruned"), ("fp32", "dense")]
    assert shipped.files[0].measured["verdict"] == "pass"
    assert shipped.files[0].measured["latency_ms"]["p90"] > 0
    assert shipped.tools["ai-edge-litert"]
    assert shipped.params < shipped.params_dense


def test_one_that_fails_gives_way_to_the_next_and_keeps_its_figures(deploy):
    verdict, _ = deploy("parity_psnr_db_min_reduced = 72\n[tflite]\nprecisions = ['int8-weights', 'fp16', 'fp32']")
    assert verdict == "pass"
    found = pruned_of(deploy.folder)
    assert [(p, a["shipped"], a["verdict"]) for p, a in found.items()] == [
        ("int8-weights", False, "fail"), ("fp16", True, "pass"), ("fp32", False, "not_measured")]  # fmt: skip
    failed = found["int8-weights"]
    assert 40 < failed["parity"]["psnr_db"] < 72
    assert failed["top1"] is not None
    assert failed["latency_ms"] is None, "one that has failed already is not timed"
    assert failed["reason"] == "it has failed already"
    made = found["fp16"]
    assert (made["size_bytes"], made["export_seconds"] > 0) == ((deploy.folder / made["file"]).stat().st_size, True)
    assert files.digest(deploy.folder / made["file"]) == made["sha256"]
    verdict, said = deploy("parity_psnr_db_min_reduced = 72\n[tflite]\nprecisions = ['int8-weights', 'fp16', 'fp32']")
    assert (verdict, said) == ("pass", ["export host: finished before", "validate host: finished before"])


def test_an_artifact_of_another_model_is_not_left_beside_the_new_ones(deploy):
    stale = deploy.folder / "artifacts" / "host" / "pruned-fp16.tflite"
    stale.write_bytes(b"of another model")
    assert deploy("size_mb_max = 9\n[tflite]\nprecisions = ['int8-weights', 'fp16']")[0] == "pass"
    assert not stale.exists()


def test_nothing_is_shipped_if_nothing_passes(deploy):
    deploy(LIMITS + "[tflite]\nprecisions = ['fp32']")
    assert (deploy.folder / "artifacts" / "host" / "manifest.json").exists()
    verdict, _ = deploy("size_mb_max = 0.001\n[tflite]\nprecisions = ['fp32']")
    assert verdict == "fail"
    assert not (deploy.folder / "artifacts" / "host" / "manifest.json").exists()


def test_all_three_formats_on_this_machine_under_its_own_budget(run_copy):
    context, _ = context_of(run_copy)
    stages.run_deploying(context, "host", protocol=BRIEF)
    artifacts = report_of(run_copy)["artifacts"]
    assert {a["format"] for a in artifacts} == {"tflite", "executorch", "coreml"}
    untried = [a for a in artifacts if (a["reason"] or "").startswith("not tried: ")]
    assert {a["precision"] for a in untried} == {"int8-weights", "fp16", "fp32"}
    assert all((a["file"], a["size_bytes"], a["sha256"]) == (None, None, None) for a in untried)
    for a in (a for a in artifacts if a not in untried):
        assert a["size_bytes"] > 0, a["file"]
        assert a["export_seconds"] > 0, a["file"]
        path = run_copy / a["file"]
        assert sha256_of(path) == a["sha256"]
        if a["format"] == "executorch":
            assert a["ops_outside"] == [], a["file"]
            assert a["precision"] != "fp32" or a["delegates"] == 1
        if a["format"] == "coreml":
            assert a["latency_ms"] is None, "the evaluator's time is not Core ML's"
    shipped = [a for a in artifacts if a["shipped"]]
    assert {a["format"] for a in shipped} == {"tflite", "executorch", "coreml"}
    for a in shipped:
        assert a["parity"]["top1_agreement"] > 0.9
        timed = a["format"] != "coreml"
        assert (a["latency_ms"] is not None) == timed
        assert (a["peak_mb"] is not None) == timed
        assert {check["name"] for check in a["checks"]} >= {"golden", "top1_share_min", "size_mb_max"}


@pytest.mark.parametrize("target", ["ios", "rpi4"])  # the others have no format or rule of their own
def test_other_targets_are_proven_as_far_as_this_machine_can(run_copy, target):
    context, _ = context_of(run_copy)
    assert stages.run_deploying(context, target, protocol=BRIEF) == "not_measured"
    shipped = [a for a in report_of(run_copy)["artifacts"] if a["shipped"] and a["target"] == target]
    assert {a["format"] for a in shipped} == set(TARGETS[target].formats)
    for a in shipped:
        checks = {check["name"]: check for check in a["checks"]}
        assert (a["latency_ms"], a["peak_mb"], a["verdict"]) == (None, None, "not_measured")
        assert checks["latency_p90_ms_max"]["verdict"] == "not_measured"
        assert checks["size_mb_max"]["verdict"] == "pass"
        if a["format"] == "executorch-coreml":  # nothing but an Apple device runs it
            assert checks["top1_share_min"]["verdict"] == checks["golden"]["verdict"] == "not_measured"
            assert "Core ML" in checks["golden"]["reason"]
        else:
            assert checks["latency_p90_ms_max"]["reason"] == f"no {target} device has measured it"
            assert checks["top1_share_min"]["verdict"] == checks["golden"]["verdict"] == "pass"


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [("size_mb_max = 0.001", "fail"), ("size_mb_max = 100", "pass"), ("top1_min = 1.0", "fail"),
     ("latency_p90_ms_max = 0.0001", "fail"), ("memory_mb_max = 0.01", "fail"), ("top1_agreement_min = 1.0", "pass"),
     ("parity_psnr_db_min = 199", "fail"), ("latency_ratio_max = 0.001", "fail")],
)  # fmt: skip
def test_the_budget_decides(deploy, limit, verdict):
    """An accuracy of 100 % on these images would let one case pass, so two labels are exchanged for it."""

    def exchange(context):
        if "top1_min" in limit:
            context.dataset.val.labels[:2] = 2

    found, said = deploy(f"{limit}\n[tflite]\nprecisions = ['fp32']", change=exchange)
    assert found == verdict
    assert "export host: finished before" in said
    assert "validate host: its inputs have changed, so it begins anew" in said
    pruned = pruned_of(deploy.folder)["fp32"]
    assert pruned["verdict"] == verdict
    assert [c["verdict"] for c in pruned["checks"]] == ["pass", verdict]  # the golden images and this limit


@pytest.mark.parametrize(("val_wrong", "verdict"), [(False, "pass"), (True, "fail")])
def test_val_decides_and_accuracy_is_reported_of_test(deploy, val_wrong, verdict):
    """The model knows all of these images: every wrong label is one point of accuracy less."""

    def add_test(context):
        val = context.dataset.val
        labels = val.labels.copy()
        labels[:9] = (labels[:9] + 1) % 3
        wrong, right = datasets.Split(images=val.images, labels=labels), val
        val, test = (wrong, right) if val_wrong else (right, wrong)
        context.__dict__["dataset"] = dataclasses.replace(context.dataset, val=val, test=test)

    found, _ = deploy("top1_min = 0.8\n[tflite]\nprecisions = ['fp32']", change=add_test)
    assert found == verdict
    dense, pruned = report_of(deploy.folder)["artifacts"]
    good = pruned["top1" if val_wrong else "top1_val"]
    assert good > 80 > 60 > pruned["top1_val" if val_wrong else "top1"]
    [judged] = [check for check in pruned["checks"] if check["name"] == "top1_min"]
    assert judged["value"] == pytest.approx(pruned["top1_val"] / 100)
    assert (dense["top1"] < dense["top1_val"]) != val_wrong


def test_a_budget_that_cannot_be_read_costs_no_export(deploy):
    shutil.rmtree(deploy.folder / "artifacts")
    with pytest.raises(ValueError, match=r"mine\.toml, line 1: unknown key 'speed'"):
        deploy("speed = 3\n[tflite]")
    assert not (deploy.folder / "artifacts").exists()


def test_without_a_dense_reference_its_accuracy_is_not_measured(image_folder, tmp_path):
    recipe = dataclasses.replace(tiny_config(image_folder).finetune, epochs=1)
    context, _ = context_of(tmp_path / "run", tiny_config(image_folder, dense=None, prune=recipe, finetune=recipe))
    stages.run_training(context)
    budget = tmp_path / "mine.toml"
    budget.write_text("top1_drop_max_points = 50\n[tflite]\nprecisions = ['fp32']")
    assert stages.run_deploying(context, "host", budget=budget, protocol=BRIEF) == "not_measured"
    report = report_of(tmp_path / "run")
    assert report["top1_dense"] is None
    dense, pruned = report["artifacts"]
    assert dense["top1"] is None
    assert dense["latency_ms"]["p50"] > 0
    drop = next(check for check in pruned["checks"] if check["name"] == "top1_drop_max_points")
    assert (drop["value"], drop["verdict"]) == (None, "not_measured")
    assert "not measured" in (tmp_path / "run" / "report.html").read_text()


def test_a_missing_runtime_is_not_measured_and_never_pass(deploy, monkeypatch):
    """The verdict of an earlier validation does not outlive it."""
    replaced(monkeypatch, "tflite", load=missing)
    verdict, said = deploy("size_mb_max = 100\n[tflite]\nprecisions = ['fp32']")
    assert verdict == "not_measured"
    assert any("pip install ai-edge-litert" in line for line in said)
    pruned = pruned_of(deploy.folder)["fp32"]
    assert (pruned["verdict"], pruned["latency_ms"], pruned["top1"]) == ("not_measured", None, None)
    assert "ai-edge-litert" in pruned["reason"]


def test_a_missing_converter_is_told_and_other_formats_go_on(deploy, monkeypatch):
    shutil.rmtree(deploy.folder / "artifacts")
    replaced(monkeypatch, "executorch", export=missing)
    verdict, _ = deploy(LIMITS + "[tflite]\nprecisions = ['fp32']\n[executorch]\nprecisions = ['fp32']")
    assert verdict == "not_measured"
    by_format = {a["format"]: a for a in report_of(deploy.folder)["artifacts"] if a["role"] == "pruned"}
    assert by_format["tflite"]["verdict"] == "pass"
    assert (by_format["executorch"]["verdict"], by_format["executorch"]["shipped"]) == ("not_measured", False)
    replaced(monkeypatch, "tflite", export=missing)
    with pytest.raises(EnvironmentLacks, match="nothing could be exported: no TFLite interpreter"):
        deploy(LIMITS + "[tflite]\nprecisions = ['fp16']")


def test_a_model_that_a_format_cannot_take_fails_there_with_the_reason(deploy, monkeypatch):
    def refuses(*_, **__):
        raise ValueError(TOPK)

    replaced(monkeypatch, "executorch", export=refuses)
    verdict, _ = deploy(LIMITS + "[tflite]\nprecisions = ['fp32']\n[executorch]\nprecisions = ['fp32']")
    assert verdict == "fail"
    failed = next(a for a in report_of(deploy.folder)["artifacts"] if a["format"] == "executorch" and
                  a["role"] == "pruned")  # fmt: skip
    assert (failed["verdict"], failed["reason"]) == ("fail", TOPK)
    assert "topk" in (deploy.folder / "report.html").read_text()


LOAD = FORMATS["tflite"].load


def of(precision: str, role: str = "pruned"):
    """Whether a path is that of an artifact."""
    return lambda path: Path(path).name.startswith(f"{role}-{precision}.")


def raising(chosen, error, at: str = "load"):
    """The loader, but for one artifact that ends in an error when it is loaded, or run."""

    def fails(*_):
        raise error

    def load(path, threads):
        if not chosen(path):
            return LOAD(path, threads)
        return fails() if at == "load" else dataclasses.replace(LOAD(path, threads), run=fails)

    return load


@pytest.mark.parametrize(
    ("error", "at"),
    [(ValueError("it is strange"), "load"), (KeyError("serving"), "load"), (RuntimeError("node 3 failed"), "run"),
     (AssertionError(), "run")],
)  # fmt: skip
def test_whatever_an_artifact_raises_is_its_own_result_and_the_next_is_tried(deploy_several, monkeypatch, error, at):
    replaced(monkeypatch, "tflite", load=raising(of("int8-weights"), error, at))
    verdict, _ = deploy_several(f"size_mb_max = 9\n{SEVERAL}")
    found = pruned_of(deploy_several.folder)
    assert [(a["shipped"], a["verdict"]) for a in found.values()] == [
        (False, "fail"), (True, "pass"), (False, "not_measured")]  # fmt: skip
    assert verdict == "pass"
    assert str(error) in found["int8-weights"]["reason"]
    assert isinstance(error, ValueError) or type(error).__name__ in found["int8-weights"]["reason"]
    golden = found["int8-weights"]["checks"][0]
    assert (golden["name"], golden["value"], golden["verdict"]) == ("golden", None, "fail")


@pytest.mark.parametrize("at", ["load", "run"])
def test_a_dense_artifact_that_raises_is_not_compared_with(deploy, monkeypatch, at):
    replaced(monkeypatch, "tflite", load=raising(of("fp32", "dense"), RuntimeError("node 3 failed"), at))
    verdict, _ = deploy("top1_share_min = 0.5\nlatency_ratio_max = 9\n[tflite]\nprecisions = ['fp32']")
    assert verdict == "not_measured"
    checks = {check["name"]: check["verdict"] for check in pruned_of(deploy.folder)["fp32"]["checks"]}
    assert checks == {"golden": "pass", "top1_share_min": "pass", "latency_ratio_max": "not_measured"}
    dense = next(a for a in report_of(deploy.folder)["artifacts"] if a["role"] == "dense")
    assert dense["top1"] is None


def test_an_artifact_with_other_classes_fails(deploy, monkeypatch):
    def load(path, threads):
        program = LOAD(path, threads)
        return dataclasses.replace(program, run=lambda pixels: program.run(pixels)[:, :2])

    replaced(monkeypatch, "tflite", load=load)
    verdict, _ = deploy(LIMITS + "[tflite]\nprecisions = ['fp32']")
    assert verdict == "fail"
    assert "it computes (1, 2) numbers, not (1, 3)" in pruned_of(deploy.folder)["fp32"]["reason"]


@pytest.mark.parametrize(("error", "verdict"), [(RuntimeUnavailable("no runtime"), "not_measured"),
                                                (MemoryError(), "not_measured")])  # fmt: skip
def test_what_cannot_be_run_here_stops_nobody(deploy_several, monkeypatch, error, verdict):
    replaced(monkeypatch, "tflite", load=raising(of("int8-weights"), error))
    assert deploy_several(f"size_mb_max = 9\n{SEVERAL}")[0] == "pass"
    found = pruned_of(deploy_several.folder)
    assert [(a["shipped"], a["verdict"]) for a in found.values()] == [
        (False, verdict), (True, "pass"), (False, "not_measured")]  # fmt: skip
    assert found["fp32"]["reason"] == "not tried: fp16 is smaller and passes"


def test_the_smallest_that_cannot_be_run_is_shipped_only_if_no_other_holds(deploy_several, monkeypatch):
    replaced(monkeypatch, "tflite", load=missing)
    assert deploy_several(f"size_mb_max = 9\n{SEVERAL}")[0] == "not_measured"
    found = pruned_of(deploy_several.folder)
    assert [a["shipped"] for a in found.values()] == [True, False, False]
    assert all("ai-edge-litert" in a["reason"] for a in found.values()), "each has been tried"


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(RuntimeUnavailable("its converter was killed"), "not_measured"), (KeyError("aten.x"), "fail")],
)
def test_one_that_cannot_be_exported_stops_nobody(deploy, monkeypatch, error, verdict):
    shutil.rmtree(deploy.folder / "artifacts")
    export = FORMATS["tflite"].export

    def refuses(*arguments, precision, **options):
        if precision == "int8-weights":
            raise error
        return export(*arguments, precision=precision, **options)

    replaced(monkeypatch, "tflite", export=refuses)
    assert deploy(SEVERAL)[0] == "pass"
    found = pruned_of(deploy.folder)
    assert [(a["shipped"], a["verdict"]) for a in found.values()] == [
        (False, verdict), (True, "pass"), (False, "not_measured")]  # fmt: skip
    assert str(error) in found["int8-weights"]["reason"]


def test_a_full_disk_is_no_result_of_a_candidate(deploy, monkeypatch):
    """It would be remembered as one after there is room again."""
    shutil.rmtree(deploy.folder / "artifacts")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    replaced(monkeypatch, "tflite", export=full)
    with pytest.raises(OSError, match="No space left"):
        deploy(SEVERAL)


def test_a_model_without_finite_logits_is_refused_before_anything_is_exported(deploy, monkeypatch):
    shutil.rmtree(deploy.folder / "artifacts")
    monkeypatch.setattr(
        exporting, "predictor", lambda model, view: lambda images: torch.full((len(images), 3), torch.nan)
    )
    replaced(monkeypatch, "tflite", export=missing)
    with pytest.raises(ValueError, match="computes no finite numbers: its training has diverged"):
        deploy(SEVERAL)


def exported(folder: Path) -> tuple[Path, dict]:
    path = folder / "artifacts" / "host" / "exported.json"
    return path, json.loads(path.read_text())


ONE = "size_mb_max = 100\n[tflite]\nprecisions = ['fp32']"
PARITY = "top1_share_min = 0.98\nparity_psnr_db_min = 60\n[tflite]\nprecisions = ['fp32']"


def accept(folder: Path, *changed: Path) -> None:
    """Let the run take changed files for what stage export wrote: what is tested is the gate behind that."""
    path = folder / "stages.json"
    records = json.loads(path.read_text())
    for file in changed:
        records["export host"]["files"][file.relative_to(folder).as_posix()] = files.digest(file)
    path.write_text(json.dumps(records))


def test_a_flipped_byte_in_an_artifact_is_caught(deploy):
    artifact = deploy.folder / "artifacts" / "host" / "pruned-fp32.tflite"
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    artifact.write_bytes(content)
    with pytest.raises(ValueError, match=r"pruned-fp32\.tflite is not what stage export host wrote"):
        deploy(ONE)
    accept(deploy.folder, artifact)
    with pytest.raises(ValueError, match=r"pruned-fp32\.tflite has changed.*export again"):
        deploy(ONE)


def test_swapped_labels_are_caught(deploy):
    path, content = exported(deploy.folder)
    content["labels"] = content["labels"][::-1]
    path.write_text(json.dumps(content))
    accept(deploy.folder, path)
    with pytest.raises(ValueError, match="other labels than the data set"):
        deploy(ONE)


def test_an_artifact_of_another_model_is_caught_even_with_its_checksum_right(deploy):
    path, content = exported(deploy.folder)
    entry = next(entry for entry in content["files"] if entry["role"] == "pruned")
    other = path.parent / "dense-fp32.tflite"
    artifact = path.parent / entry["file"]
    shutil.copy(other, artifact)
    entry["sha256"] = sha256_of(artifact)
    path.write_text(json.dumps(content))
    accept(deploy.folder, path, artifact)
    assert deploy(PARITY)[0] == "fail"
    checks = {check["name"]: check["verdict"] for check in pruned_of(deploy.folder)["fp32"]["checks"]}
    assert checks["parity_psnr_db_min"] == checks["golden"] == "fail"


def test_a_wrong_golden_file_is_caught_even_with_its_checksum_right(deploy):
    path, content = exported(deploy.folder)
    picture = path.parent / content["golden"][3]["file"]
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    accept(deploy.folder, picture)
    with pytest.raises(ValueError, match=r"golden/3\.png has changed"):
        deploy(ONE)
    content["golden"][3]["sha256"] = sha256_of(picture)
    path.write_text(json.dumps(content))
    accept(deploy.folder, path, picture)
    assert deploy(ONE)[0] == "fail"
    (golden, size) = pruned_of(deploy.folder)["fp32"]["checks"]
    assert (golden["name"], golden["verdict"], size["verdict"]) == ("golden", "fail", "pass")


def test_the_golden_logits_are_those_of_the_artifact_in_its_runtime(finished):
    folder = finished[0] / "artifacts" / "host"
    shipped = manifest.read(folder / manifest.FILE_NAME)
    entry = next(entry for entry in shipped.files if entry.role == "pruned")
    program = FORMATS[entry.format].load(folder / entry.file, 1)
    assert len(shipped.golden) == 8
    for golden in shipped.golden:
        image = np.asarray(Image.open(folder / golden.file))[None]
        np.testing.assert_allclose(program(image)[0], golden.artifacts[entry.file], rtol=1e-5)
        np.testing.assert_allclose(golden.model, golden.artifacts[entry.file], atol=1e-3)
    assert 0 < shipped.golden_share[entry.file] < 0.1


def test_memory_is_what_the_artifact_adds(finished):
    folder = finished[0] / "artifacts" / "host"
    image, load = np.zeros((1, 64, 64, 3), np.uint8), FORMATS["tflite"].load
    small, large = (measure.memory_mb(load, folder / f"{role}-fp32.tflite", 1, image) for role in ("pruned", "dense"))
    assert 0.5 < small < large < 100


def test_nothing_to_run_is_refused(finished):
    program = FORMATS["tflite"].load(finished[0] / "artifacts" / "host" / "pruned-fp32.tflite", 1)
    with pytest.raises(ValueError, match="at least one image"):
        measure.logits(program, [])


def test_an_app_gets_what_is_shipped_and_keeps_it_if_nothing_is(finished, tmp_path):
    artifacts, root = finished[0] / "artifacts" / "host", tmp_path / "apps"
    assert apps.install(artifacts, "web", root) is None, "this checkout has no such app"
    (root / "web").mkdir(parents=True)
    folder = apps.install(artifacts, "web", root)
    there = manifest.read(folder / manifest.FILE_NAME)
    assert {name for name, _ in there.checksums()} | {manifest.FILE_NAME} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    }
    empty = tmp_path / "nothing"
    empty.mkdir()
    assert apps.install(empty, "web", root) is None
    assert (folder / manifest.FILE_NAME).exists()
    assert apps.install(artifacts, "web", root) == folder, "a second time takes its place"

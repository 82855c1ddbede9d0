"""From a device's times to a profile, and from a profile to a run under a budget of milliseconds."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BRIEF, context_of, tiny_config
from dap_models import OTHERS, tiny_vit
from profiles import MICRO, synthetic

from dap import PruneConfig
from dap.pruner import Pruner
from pipeline import __main__ as cli
from pipeline import latency_budget, models, presets, profiling, stages
from pipeline.config import from_dict, to_dict
from pipeline.errors import EnvironmentLacks
from pipeline.methods import ON_LATENCY
from pipeline.report.report import asked_latency
from targets import TARGETS
from targets import profile as profiles
from targets.artifact import ExportInfo, Program
from targets.devices.job import DeviceResult, Job
from targets.formats import FORMATS
from targets.latency import LatencyResult, Protocol, invalid

TINY = "deit_micro_patch8_64"
SHORT = Protocol(name="short", seconds=0.2, min_samples=40, warmup=2, cooldown_s=0.0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Profiles of the tests are not those of the user."""
    monkeypatch.setattr(profiles, "FOLDER", tmp_path / "profiles")
    return tmp_path / "profiles"


class Fake:
    """A device that takes the time which a known profile gives, at a speed that changes from job to job."""

    name = "a fake"

    def __init__(self, truth: profiles.Profile, offset_ms: float = 0.0, **changes: Any) -> None:
        self.truth, self.offset_ms, self.changes = truth, offset_ms, changes
        self.description = truth.device
        self.draw = np.random.default_rng(0)
        self.samples = 200

    def run(self, job: Job, folder: Path, progress: Any) -> DeviceResult:
        speed = self.draw.uniform(0.95, 1.05)
        latency = {}
        for file in job.files:
            layers, precision = json.loads((folder / file).read_text())
            ms = self.truth.predict_ms(layers) * (2 if precision == "fp32" else 1)
            if len(layers) > profiling.BLOCKS + 1:  # whole models are slower than the sum of their parts
                ms = 1.3 * ms + self.offset_ms
            taken = speed * ms * self.draw.normal(1.0, 0.002, self.samples)
            latency[file] = LatencyResult(
                p5_ms=ms, p50_ms=ms, p90_ms=ms, mean_ms=ms, p90_bound_ms=ms, samples=self.samples, seconds=1.0,
                valid=True, why_invalid=None, samples_ms=tuple(taken.tolist()))  # fmt: skip
        values: dict[str, Any] = dict(
            job=job.id, file=job.files[0], sha256=job.sha256[job.files[0]], device=self.description,
            threads=job.threads, runtime="a runtime", runtime_version="1", latency=latency)  # fmt: skip
        return DeviceResult(**{**values, **self.changes})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    """Profiles with a fake device: exports are notes of what was to be exported."""

    def export(model: Any, *, path: Path, precision: str, **_: Any) -> ExportInfo:
        path.write_text(json.dumps([latency_budget.layers_of(model), precision]))
        return ExportInfo(path=path, size_bytes=1, sha256="", seconds=0.0, peak_mb=None)

    for name in ("tflite", "executorch"):
        loaded = Program(prepare=lambda image: image, run=lambda image: image, runtime="", runtime_version="")
        monkeypatch.setitem(
            FORMATS, name, replace(FORMATS[name], export=export, load=lambda path, threads, program=loaded: program)
        )

    def profile(device: Any, target: str = "host", model: str = TINY, **options: Any):
        monkeypatch.setattr(profiling, "connect", lambda target, name, say, format: device)
        said: list[str] = []
        found = profiling.profile(
            TARGETS[target], model, say=said.append, progress=lambda *_: None, protocol=SHORT, **options
        )
        return *found, said

    return profile


def test_a_profile_finds_what_blocks_cost(fake, folder):
    truth = synthetic()
    found, path, said = fake(Fake(truth, offset_ms=0.02))
    assert path == folder / "host.json"
    assert profiles.read(path) == [found]
    assert (found.shape, found.format, found.precision) == (MICRO, "tflite", "int8-dynamic")
    assert (found.target, found.model, found.threads) == ("host", TINY, 1)
    for kind, count in (("attn", 7), ("attn_last", 7), ("mlp", 9), ("mlp_last", 3)):
        curve = found.curves[kind]
        assert len(curve.widths) == count
        for width in curve.widths:
            assert curve.at(width) == pytest.approx(1.3 * truth.curves[kind].at(width), rel=0.25, abs=0.004)
    for layers in (((32, 384),) * 12, ((16, 100),) * 12, ((0, 384),) * 9 + ((20, 9),) * 3):
        assert found.predict_ms(layers) == pytest.approx(1.3 * truth.predict_ms(layers) + 0.02, rel=0.07)
    assert found.off() < 0.05
    assert not any("busy" in line for line in said)


def test_what_a_sum_cannot_say_is_told(fake, monkeypatch):
    class Erratic(Fake):
        def run(self, job: Job, folder: Path, progress: Any) -> DeviceResult:
            result = super().run(job, folder, progress)
            slow = {name: 1.0 + 2.0 * (name.startswith("some") and self.draw.random() < 0.5) for name in result.latency}
            latency = {
                name: replace(entry, samples_ms=tuple(slow[name] * ms for ms in entry.samples_ms))
                for name, entry in result.latency.items()
            }
            return replace(result, latency=latency)

    found, _, said = fake(Erratic(synthetic()))
    assert found.off() > 0.1
    assert "was the device busy?" in said[-1]


PI5 = {**synthetic().device, "device": "Raspberry Pi 5 Model B Rev 1.0"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": {**PI5, "emulated": "qemu-aarch64"}}, "qemu-aarch64 emulates this device"),
        ({"refused": "too large", "latency": {}}, "the device refuses attn_last-0.tflite: too large"),
        ({"unmeasured": {"attn_last-3.tflite": "too large"}}, "attn_last-3.tflite: too large"),
        ({"device": {**PI5, "device": "Raspberry Pi 4 Model B"}}, "is not a Raspberry Pi 5"),
    ],
)
def test_times_that_are_not_the_targets_make_no_profile(fake, folder, changes, message):
    device = Fake(synthetic(), **changes)
    device.description = PI5
    with pytest.raises(EnvironmentLacks, match=message):
        fake(device, target="rpi5")
    assert not folder.exists()


def test_a_device_of_another_kind_is_told_before_anything_is_exported(fake, folder):
    device = Fake(synthetic())
    device.run = None  # type: ignore[assignment]
    with pytest.raises(EnvironmentLacks, match="is not a Raspberry Pi 5"):
        fake(device, target="rpi5")


def test_a_board_that_is_held_back_and_a_busy_machine_are_told(fake):
    class Doubtful(Fake):
        def run(self, job: Job, folder: Path, progress: Any) -> DeviceResult:
            result = super().run(job, folder, progress)
            latency = {name: invalid(entry, "the machine was busy") for name, entry in result.latency.items()}
            return replace(result, latency=latency, after={"throttled": "0x50005"})

    *_, said = fake(Doubtful(synthetic()))
    assert any("doubtful: the machine was busy" in line for line in said)
    assert any("held back (flags 0x5:" in line for line in said)
    *_, said = fake(Fake(synthetic(), after={"throttled": "0x50000"}))  # it was, before
    assert not any("doubtful" in line for line in said)


def test_a_block_that_seems_to_be_free_is_named(fake, folder):
    class Noisy(Fake):
        def run(self, job: Job, folder: Path, progress: Any) -> DeviceResult:
            result = super().run(job, folder, progress)
            fast = {
                name: 0.1 if name.startswith("mlp-") and not name.startswith("mlp-0.") else 1.0 for name in job.files
            }
            latency = {
                name: replace(entry, samples_ms=tuple(fast[name] * ms for ms in entry.samples_ms))
                for name, entry in result.latency.items()
            }
            return replace(result, latency=latency)

    with pytest.raises(EnvironmentLacks, match="mlp: a whole block seems to cost no time"):
        fake(Noisy(synthetic()))
    assert not folder.exists()


def test_too_few_samples_make_no_profile(fake):
    device = Fake(synthetic())
    device.samples = 6
    with pytest.raises(EnvironmentLacks, match="too slow: 6 samples, 20 needed"):
        fake(device)


def test_a_damaged_file_shows_before_anything_is_measured(fake, folder):
    folder.mkdir()
    (folder / "host.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        fake(None)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("host", {"format": "onnx"}, "FORMAT=onnx is no format of TARGET=host; it has tflite, executorch, coreml"),
        ("rpi4", {"precision": "int8-dynamic"}, "PRECISION=int8-dynamic is no precision of tflite on TARGET=rpi4"),
        ("host", {"model": "deit_nano"}, "MODEL=deit_nano is unknown"),
    ],
)
def test_what_a_target_does_not_have_is_refused(fake, target, options, message):
    with pytest.raises(ValueError, match=message):
        fake(Fake(synthetic()), target=target, **options)


def test_without_a_device_there_is_no_profile(fake):
    with pytest.raises(EnvironmentLacks, match="name it with DEVICE="):
        fake(None, target="rpi5")
    with pytest.raises(EnvironmentLacks, match="name it with DEVICE="):
        fake(None, target="ios")


def test_a_format_that_something_stands_in_for_is_not_timed(fake, monkeypatch):
    program = FORMATS["executorch"].load(Path(), 1)
    stands_in = replace(FORMATS["executorch"], load=lambda *_: replace(program, timed=False))
    monkeypatch.setitem(FORMATS, "executorch", stands_in)
    with pytest.raises(EnvironmentLacks, match="no runtime here whose time counts"):
        fake(Fake(synthetic()), format="executorch")


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_the_grid_has_allowed_widths_from_the_smallest_to_the_dense_one(target):
    for kind, layer, factor in (("attn", "qkv", 3), ("attn_last", "qkv", 3), ("mlp", "hidden", 1)):
        widths = profiling.grid(target, MICRO, kind)
        rule = target.allowed_width or (lambda layer, n: True)
        assert widths == sorted(set(widths))
        assert widths[-1] == MICRO.dense_width(kind)
        assert all(rule(layer, factor * width) for width in widths)
        assert not any(rule(layer, factor * width) for width in range(1, widths[0]))
        assert len(widths) >= 6


def test_a_stack_is_a_compact_model_of_the_asked_widths():
    layers = ((0, 9), (5, 0), (32, 384))
    assert latency_budget.layers_of(profiling.stack(TINY, layers)) == layers


@pytest.mark.slow
def test_a_real_profile_of_this_machine(folder, monkeypatch):
    """Real exports, real times. A machine that runs other tests beside it tells little, so the bounds are wide.

    Of fewer points than a user's profile: an export takes seconds, and the grid is tested above.
    """
    for name, count in (("ATTN_WIDTHS", 2), ("MLP_WIDTHS", 3), ("MLP_LAST_WIDTHS", 2)):
        monkeypatch.setattr(profiling, name, count)
    said: list[str] = []
    found, path = profiling.profile(TARGETS["host"], TINY, protocol=SHORT, say=said.append, progress=lambda *_: None)
    assert profiles.read(path) == [found]
    assert found.device["arch"]
    assert len(found.whole) == len(profiling.WHOLE)
    assert found.curves["mlp"].ms[-1] > 2 * found.curves["mlp"].ms[0]
    assert found.curves["mlp"].ms[-1] > found.curves["mlp_last"].ms[-1]
    assert found.curves["attn"].ms[-1] > found.curves["attn_last"].ms[-1]
    assert found.dense_ms(12) == pytest.approx(found.whole[0].ms, rel=0.3)
    assert latency_budget.find(TARGETS["host"], MICRO, TINY) == found


# a run under a budget of milliseconds


def timed_config(image_folder: Path, latency_ms: float, **changes: Any):
    return presets.with_latency(tiny_config(image_folder, dense=None, **changes), latency_ms)


def test_without_a_profile_the_command_that_makes_one_is_named(folder):
    with pytest.raises(ValueError, match="`make profile TARGET=rpi5 MODEL=deit_micro_patch8_64` makes one"):
        latency_budget.find(TARGETS["rpi5"], MICRO, TINY)
    profiles.write([synthetic(replace(MICRO, dim=192))], folder / "rpi5.json")
    with pytest.raises(ValueError, match="there is no profile of deit_micro_patch8_64"):
        latency_budget.find(TARGETS["rpi5"], MICRO, TINY)


def test_the_budgets_first_format_and_precision_are_taken(folder):
    every = [synthetic(format=f, precision=p) for f, p in (
        ("coreml", "fp16"), ("executorch", "int8-dynamic"), ("tflite", "fp32"), ("tflite", "fp16"))]  # fmt: skip
    profiles.write(every, folder / "host.json")
    assert latency_budget.find(TARGETS["host"], MICRO, TINY) == every[3]
    profiles.write(every[:2], folder / "host.json")
    assert latency_budget.find(TARGETS["host"], MICRO, TINY) == every[1]


def test_another_machines_profile_is_not_this_ones(folder):
    other = {**synthetic().device, "cpu": "another processor"}
    for target in ("host", "rpi5"):
        profiles.write([synthetic(target=target, device=other)], folder / f"{target}.json")
    with pytest.raises(ValueError, match=r"measured on another machine \(another processor.*measures this one"):
        latency_budget.find(TARGETS["host"], MICRO, TINY)
    assert latency_budget.find(TARGETS["rpi5"], MICRO, TINY)


@pytest.mark.parametrize("scale", [1.0, 37.0, 0.013])
def test_out_of_reach_names_what_is_in_reach(scale):
    table = latency_budget.table_of(synthetic(scale=scale), 12)
    with pytest.raises(ValueError, match="the lowest reachable is") as raised:
        latency_budget.sparsity_of(table.least_ns / 2e6, table, "host")
    named = float(str(raised.value).split("the lowest reachable is ")[1].split(",")[0])
    assert table.least_ns / 1e6 <= named < 1.01 * table.least_ns / 1e6
    pruner(named, table).harden()
    with pytest.raises(ValueError, match="leaves nothing to prune: the dense model is predicted to take"):
        latency_budget.sparsity_of(table.dense_ns / 1e6, table, "host")
    assert latency_budget.sparsity_of(table.dense_ns / 4e6, table, "host") == pytest.approx(0.75)


def pruner(latency_ms: float, table: Any, allocation: Any = "bpi", target: str = "host") -> Pruner:
    config = PruneConfig(
        sparsity=latency_budget.sparsity_of(latency_ms, table, target), cost="latency", allocation=allocation
    )
    return Pruner(
        models.create_model(TINY, 4, from_scratch=True),
        config,
        steps_per_epoch=30,
        epochs=1,
        allowed_width=TARGETS[target].allowed_width,
        latency=table,
    )


@pytest.mark.parametrize("allocation", ["bpi", "uniform", "global"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_profile_of_any_target_is_allocated_under(target, allocation, tmp_path):
    """The small model's prediction, from its real modules, is what was asked for, but for less than one step."""
    scale = {"rpi4": 40.0, "rpi5": 12.0, "web": 6.0}.get(target, 1.0)
    found = synthetic(target=target, scale=scale)
    table = latency_budget.table_of(found, 12)
    asked = 0.4 * found.dense_ms(12)
    pruning = pruner(asked, table, allocation, target)
    rng = np.random.default_rng(1)
    pruning._importance = [rng.uniform(0, 3, 24), rng.uniform(0, 3, 24)]
    pruning._order = rng.permutation(pruning._order)
    small = pruning.finalize()
    predicted = found.predict_ms(latency_budget.layers_of(small))
    assert 0.97 * asked < predicted <= asked * (1 + 1e-4)
    held = [block["width"] for block in pruning.blocks()]
    spent = sum(int(b.cost(0, w, 0)) for b, w in zip(table.blocks, held, strict=True)) + table.outside_ns
    assert predicted == pytest.approx(spent / 1e6, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency_ms": 0.0}, "LATENCY_MS=0.0 must be a number of milliseconds above 0"),
        ({"latency_ms": float("nan")}, "LATENCY_MS=nan must be"),
        ({"method": "savit", "prune": None}, "LATENCY_MS is for METHOD=dap, uniform, taylor, magnitude; savit takes"),
        ({"method": "dense", "prune": None, "finetune": None}, "dense takes SPARSITY"),
        ({"pruning": PruneConfig()}, "belong together"),
        ({"pruning": PruneConfig(cost="latency", gates="heads")}, "HEADS=1 takes SPARSITY"),
        ({"latency_ms": None}, "belong together"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(image_folder, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(timed_config(image_folder, 0.5), **changes)


def test_a_config_with_a_latency_survives_its_json(image_folder):
    config = timed_config(image_folder, 0.5)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert "-dap-0.5ms-host-seed0" in presets.run_name(config)
    for method in ON_LATENCY:
        assert presets.with_method(config, method).latency_ms == 0.5
    without = to_dict(config)
    without.pop("latency_ms")
    without["pruning"]["cost"] = "params"
    assert from_dict(without).latency_ms is None  # a run from before there was such a budget


def test_a_run_keeps_the_profile_that_it_began_with(image_folder, folder, tmp_path):
    profiles.write([synthetic()], folder / "host.json")
    context, _ = context_of(tmp_path / "run", timed_config(image_folder, 0.6))
    first = latency_budget.fix(context.run)
    profiles.write([synthetic(scale=3.0)], folder / "host.json")
    assert latency_budget.fix(context.run) == first
    assert profiles.read(tmp_path / "run" / "profile.json") == [synthetic()]
    # of another target, it is not this run's
    profiles.write([synthetic(target="rpi5")], folder / "rpi5.json")
    (tmp_path / "run" / "config.json").unlink()
    context, _ = context_of(tmp_path / "other", timed_config(image_folder, 0.6, target="rpi5"))
    profiles.write([synthetic()], tmp_path / "other" / "profile.json")
    assert latency_budget.fix(context.run) != first


def test_a_profile_belongs_to_an_image_size(fake, image_folder, folder, tmp_path):
    small = replace(MICRO, tokens=17, image_size=32)
    for size, shape in ((None, MICRO), (32, small)):
        found, path, _ = fake(Fake(synthetic(shape)), img_size=size)
        assert found.shape == shape
    assert [one.shape for one in profiles.read(path)] == [MICRO, small]
    context, _ = context_of(tmp_path / "run", timed_config(image_folder, 0.6, img_size=32))
    latency_budget.fix(context.run)
    assert profiles.read(tmp_path / "run" / "profile.json") == [found]
    context, _ = context_of(tmp_path / "other", timed_config(image_folder, 0.6, img_size=96))
    with pytest.raises(
        ValueError, match=f"no profile of {TINY} IMG_SIZE=96 .*TARGET=host MODEL={TINY} IMG_SIZE=96` ma"
    ):
        latency_budget.fix(context.run)


def test_an_unreachable_latency_leaves_no_copy(image_folder, folder, tmp_path):
    profiles.write([synthetic()], folder / "host.json")
    for latency_ms, message in ((0.001, "lowest reachable is 0.0637"), (50.0, "nothing to prune")):
        context, _ = context_of(tmp_path / "run", timed_config(image_folder, latency_ms))
        with pytest.raises(ValueError, match=message):
            stages.run_training(context)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_run_without_latency_needs_no_profile(image_folder, tmp_path):
    context, _ = context_of(tmp_path / "run", tiny_config(image_folder))
    assert latency_budget.fix(context.run) == {}
    assert latency_budget.check_asked(context.run, "host", "tflite", None) == []  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def timed_run(image_folder, tmp_path_factory) -> Path:
    """A run under a budget of milliseconds, up to its small model."""
    folder = tmp_path_factory.mktemp("timed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "FOLDER", folder / "profiles")
        profiles.write([synthetic()], folder / "profiles" / "host.json")
        context, _ = context_of(folder / "run", timed_config(image_folder, 0.5))
        stages.run_training(context)
        stages.report(context)
    return folder / "run"


def test_a_whole_run_under_a_budget_of_milliseconds(timed_run):
    report = json.loads((timed_run / "report.json").read_text())
    assert report["latency_ms_target"] == 0.5
    assert 0.485 < report["latency_ms_predicted"] <= 0.5 * (1 + 1e-4)  # a table holds whole nanoseconds
    assert report["sparsity_target"] is None
    assert report["latency_profile"] == {"target": "host", "format": "tflite", "precision": "int8-dynamic"}
    assert dict(asked_latency(report))["latency asked"] == "0.500 ms"
    page = (timed_run / "report.html").read_text()
    assert "Latency asked: 0.500 ms" in page
    assert "Where the milliseconds went" in page
    context, said = context_of(timed_run)
    stages.run_training(context)  # without any profile of the target: the run has its own
    assert said == [f"{stage}: finished before" for stage in stages.TRAINING]


@pytest.mark.slow
def test_a_deployment_is_held_against_what_was_asked(timed_run, one_format, tmp_path):
    context, _ = context_of(timed_run)
    stages.run_deploying(context, "host", budget=one_format, protocol=BRIEF)
    report = json.loads((timed_run / "report.json").read_text())
    shipped = next(artifact for artifact in report["artifacts"] if artifact["role"] == "pruned")
    check = {check["name"]: check for check in shipped["checks"]}["latency_asked_ms_max"]
    assert check["limit"] == pytest.approx(0.55)
    assert check["value"] == shipped["latency_ms"]["p50"]
    assert check["verdict"] == ("pass" if check["value"] <= 0.55 else "fail")
    assert [name for name, _ in asked_latency(report)][-1] == "latency p50, host, tflite fp32"
    assert latency_budget.check_asked(context.run, "host", "executorch", None) == []  # type: ignore[arg-type]
    assert latency_budget.check_asked(context.run, "rpi5", "tflite", None) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "--sparsity", "0.5", "--latency-ms", "1"], "SPARSITY and LATENCY_MS exclude each other"),
        (["prune", "--latency-ms", "0"], "LATENCY_MS=0.0 must be a number of milliseconds above 0"),
        (["prune", "--latency-ms", "1", "--method", "wdpruning"], "wdpruning takes SPARSITY"),
        (["prune", "--latency-ms", "1", "--target", "rpi5"], "`make profile TARGET=rpi5 MODEL=deit_micro_patch8_64`"),
        (["profile", "--img-size", "60"], "IMG_SIZE=60 is no multiple of the model's patch of 8 pixels: take 56 or 64"),
        (["prune", "--img-size", "60"], "IMG_SIZE=60 is no multiple"),
        (["compare", "--dataset", "digits", "--img-size", "60"], "IMG_SIZE=60 is no multiple"),
        (["profile", "--target", "toaster"], "TARGET=toaster is unknown. Known: host"),
        (["profile", "--target", "rpi5"], "name it with DEVICE="),
    ],
)
def test_wrong_use_is_told(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pipeline", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == (3 if arguments[-1] == "rpi5" and arguments[0] == "profile" else 2)
    captured = capsys.readouterr()
    assert message in " ".join((captured.out + captured.err).split())


def test_every_row_of_a_profile_is_shown():
    found = synthetic()
    assert len(profiling.rows(found)) == 1 + sum(len(curve.widths) for curve in found.curves.values())
    assert profiling.depth_of(TINY) == 12
    assert dataclasses.asdict(found)["format"] == "tflite"


def test_a_profile_of_another_pooling_is_another_shape() -> None:
    shapes = {
        profiling.shape_of(tiny_vit(**changes))
        for changes in ({}, OTHERS["mean beside a class token"], OTHERS["SwiGLU"])
    }
    assert len(shapes) == 3

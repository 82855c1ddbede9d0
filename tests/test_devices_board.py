"""The runner as a board runs it, on this machine: only the pushed files, a job's folder, and what comes of it."""

import dataclasses
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import board_jobs
import numpy as np
import pytest

from targets import executorch, executorch_program, latency, tflite_program
from targets.artifact import RuntimeUnavailable
from targets.devices import board_setup, measure
from targets.devices.job import END_TO_END, RESULT, DeviceError, read_result, write_job, write_result

pytestmark = pytest.mark.slow
# numpy is there and no interpreter: stands in for a board where nothing has been installed
NO_INTERPRETER = """
import sys
sys.modules.update(ai_edge_litert=None, tflite_runtime=None)
from targets.devices import board
sys.exit(board.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Path:
    return board_jobs.runner(tmp_path_factory.mktemp("runner"))


@pytest.fixture(scope="module")
def tflite_file() -> Path:
    return board_jobs.tflite_file()


@pytest.fixture(scope="module")
def executorch_file() -> Path:
    return board_jobs.executorch_file()


@pytest.fixture
def job(tmp_path, tflite_file):
    """A job and its folder, job.json in it."""
    job = board_jobs.make_job(tmp_path / "job", tflite_file, tflite_program.load, "tflite")
    write_job(job, tmp_path / "job")
    return job, tmp_path / "job"


@pytest.fixture
def start(runner, tmp_path):
    """Starts the runner with a home folder of its own."""
    home = tmp_path / "home"
    home.mkdir()
    started = []

    def run(*arguments, **variables) -> subprocess.Popen:
        environment = {**os.environ, "HOME": str(home), **variables}
        command = [sys.executable, "-m", "targets.devices.board", *map(str, arguments)]
        started.append(subprocess.Popen(command, cwd=runner, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    run.home = home
    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def finish(process: subprocess.Popen) -> tuple[int, list[dict]]:
    """Exit status, and the lines that were printed."""
    printed, _ = process.communicate(timeout=60)
    return process.returncode, [json.loads(line) for line in printed.splitlines()]


def test_a_job_is_done_with_the_pushed_files_alone(start, job):
    status, lines = finish(start(job[1]))
    result = read_result(job[1] / RESULT, job[0])
    assert status == 0
    assert result.golden_error == 0
    assert result.top1 == 1
    assert result.latency["model-fp32.tflite"].samples >= 20
    assert ["images", 6, 6] in [line.get("progress") for line in lines]
    assert not any("error" in line for line in lines)


NO_PILLOW = """
import sys
sys.modules.update(PIL=None)
from targets.devices import board
sys.exit(board.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("pillow", [True, False])
def test_loading_and_a_photograph_are_timed_with_the_pushed_files_alone(start, runner, job, pillow):
    whole = board_jobs.with_photo(*job)
    write_job(whole, job[1])
    if pillow:
        status, lines = finish(start(job[1]))
        assert status == 0, lines
        assert ["loading", 2, 2] in [line.get("progress") for line in lines]
    else:
        found = in_runner(runner, start.home, NO_PILLOW, arguments=[str(job[1])])
        assert found.returncode == 0, found.stderr
    result = read_result(job[1] / RESULT, whole)
    assert result.loading is not None
    assert len(result.loading.cold_ms) == 2
    assert result.peak_mb is not None
    if pillow:
        assert result.end_to_end is not None
        assert result.end_to_end.total.samples >= 1
        assert result.unmeasured == {}
    else:
        assert result.end_to_end is None
        assert "pip install pillow" in result.unmeasured[END_TO_END]


def test_what_the_board_is_takes_one_line(start):
    status, (line,) = finish(start())
    assert (status, set(line)) == (0, {"device", "os", "cpu", "cores", "arch", "emulated"})


def test_a_damaged_push_is_never_run(start, job):
    (job[1] / "images.u8").write_bytes(b"short")
    status, (line,) = finish(start(job[1]))
    assert (status, line["error"]) == (1, "images.u8 did not arrive whole; repeat the command")
    assert not (job[1] / RESULT).exists()


@pytest.mark.parametrize("change", [lambda text: text[:-40], lambda text: text.replace('"version": 1', '"version": 2')])
def test_a_job_that_is_not_whole_or_of_another_version_is_never_run(start, job, change):
    path = job[1] / "job.json"
    path.write_text(change(path.read_text()))
    status, (line,) = finish(start(job[1]))
    assert status == 1
    assert "job.json" in line["error"]


def test_a_format_that_boards_have_not_is_an_error(start, job):
    write_job(dataclasses.replace(job[0], format="coreml"), job[1])
    status, (line,) = finish(start(job[1]))
    assert (status, line["error"]) == (1, "this runner has no coreml; it has tflite, executorch")


def test_a_file_that_the_runtime_refuses_is_a_result_that_names_the_runtime(start, job, tmp_path, tflite_file):
    path = job[1] / "model-fp32.tflite"
    content = bytearray(path.read_bytes())
    path.unlink()
    content[4:8] = b"none"  # the file's kind: stands in for a file that is too new for the runtime
    path.write_bytes(content)
    sha256 = {**job[0].sha256, path.name: hashlib.sha256(content).hexdigest()}
    changed = dataclasses.replace(job[0], sha256=sha256)
    write_job(changed, job[1])
    status, _ = finish(start(job[1]))
    result = read_result(job[1] / RESULT, changed)
    assert status == 0
    assert result.refused.startswith("ai-edge-litert 2.3.0 does not take it (The model is not")
    assert result.refused.endswith("~/.dap/env/bin/pip install --upgrade numpy ai-edge-litert"), "it arrived whole"


ODD_RUNNER = """
import sys
from dataclasses import replace
from odd import load
from targets.devices import board, measure
from targets.formats import FORMATS
known = FORMATS["tflite"]
FORMATS["tflite"] = replace(known, board=replace(known.board, load=load))
measure.FRESH_S = 2
if __name__ == "__main__":
    sys.exit(board.main(sys.argv[1:]))
"""
# What a loader is given first: whether it is in the process that measures memory; and the program that it loads.
ODD_LOADER = """
import dataclasses, multiprocessing, os, time
from targets import tflite_program
def load(path, threads):
    measuring = multiprocessing.parent_process() is not None
    program = tflite_program.load(path, threads)
    {}
    return program
def raises(pixels):
    raise RuntimeError("node number 3 failed to invoke")
"""


@pytest.fixture
def done_oddly(runner, start, job, tmp_path):
    """Does the job with a loader of which some lines are given, and with changes; returns the result and its lines."""

    def run(lines: str, **changes):
        changed = dataclasses.replace(job[0], **changes)
        write_job(changed, job[1])
        (tmp_path / "odd.py").write_text(ODD_LOADER.format(lines))
        (tmp_path / "odd_runner.py").write_text(ODD_RUNNER)
        environment = {**os.environ, "HOME": str(start.home), "PYTHONPATH": f"{runner}:{tmp_path}"}
        command = [sys.executable, "-m", "odd_runner", str(job[1])]
        done = subprocess.run(command, cwd=runner, env=environment, stdout=subprocess.PIPE, text=True, timeout=120)
        assert done.returncode == 0, done.stdout
        return read_result(job[1] / RESULT, changed), [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_memory_is_measured_in_a_process_of_its_own(start, job):
    changed = dataclasses.replace(job[0], memory=True)
    write_job(changed, job[1])
    status, _ = finish(start(job[1]))
    result = read_result(job[1] / RESULT, changed)
    assert (status, result.unmeasured) == (0, {})
    assert 0.1 < result.peak_mb < 100


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "time.sleep(60)"])
def test_a_process_that_measures_memory_may_be_killed_or_hang(done_oddly, end):
    """The system kills it when memory runs out; everything else that was measured stays."""
    result, _ = done_oddly(f"if measuring: {end}", memory=True)
    assert result.peak_mb is None
    assert result.unmeasured == {"memory": "the process that measures memory ended early: has the memory run out?"}
    assert result.latency["model-fp32.tflite"].samples >= 20
    result, _ = done_oddly(f"if measuring: {end}", loads=1)
    assert result.loading is None
    assert result.unmeasured == {"loading": "the process that measures loading ended early: has the memory run out?"}


@pytest.mark.parametrize("error", ["KeyError('serving')", "ValueError('serving')", "AssertionError('serving')"])
@pytest.mark.parametrize("after", [0, 1, 5, 9])  # at once, of the golden pictures, of the others, while it is timed
def test_an_artifact_that_ends_in_any_error_at_any_time_is_refused(done_oddly, error, after):
    result, lines = done_oddly(
        f"""
    count, whole = iter(range(99)), program.run
    def run(pixels):
        if next(count) >= {after}: raise {error}
        return whole(pixels)
    program = dataclasses.replace(program, run=run)"""
    )
    assert result.refused.startswith("ai-edge-litert 2.3.0 does not run it: ")
    assert "serving" in result.refused
    assert not any("error" in line for line in lines)


def test_an_artifact_that_loads_and_does_not_run_is_refused(done_oddly):
    result, lines = done_oddly("program = dataclasses.replace(program, run=raises)")
    assert result.refused == "ai-edge-litert 2.3.0 does not run it: node number 3 failed to invoke"
    assert not any("error" in line for line in lines), "the board is well, and other formats may run"


@pytest.mark.parametrize(
    "lines",
    [
        "if path.name == 'other.tflite': program = dataclasses.replace(program, run=raises)",
        "if path.name == 'other.tflite': raise ValueError('node number 3 failed to invoke')",
    ],
)
def test_what_an_artifact_is_compared_with_does_not_decide_about_it(done_oddly, job, lines):
    (job[1] / "other.tflite").symlink_to((job[1] / "model-fp32.tflite").resolve())
    sha256 = {**job[0].sha256, "other.tflite": job[0].sha256["model-fp32.tflite"]}
    result, _ = done_oddly(lines, files=("model-fp32.tflite", "other.tflite"), sha256=sha256)
    assert (result.refused, result.top1) == (None, 1)
    assert list(result.latency) == ["model-fp32.tflite"]
    assert result.unmeasured["other.tflite"].endswith("node number 3 failed to invoke")


def test_without_a_runtime_the_line_says_what_to_install(start, job, runner):
    command, home = [sys.executable, "-c", NO_INTERPRETER, job[1]], {**os.environ, "HOME": str(start.home)}
    done = subprocess.run(command, cwd=runner, capture_output=True, text=True, env=home)
    line = json.loads(done.stdout)
    assert (done.returncode, line["runtime"]) == (3, True)
    assert "pip install ai-edge-litert" in line["error"]


def holding(start, job) -> subprocess.Popen:
    """A runner in the middle of its measurement."""
    write_job(dataclasses.replace(job[0], protocol=board_jobs.LONG), job[1])
    first = start(job[1], "anna on laptop")
    while json.loads(first.stdout.readline()).get("progress") != ["latency", 0, 1]:
        pass
    return first


def test_a_second_deployment_is_told_who_has_the_board_and_a_killed_one_holds_nothing(start, job, monkeypatch):
    first = holding(start, job)
    begun = time.monotonic()
    status, (line,) = finish(start(job[1], "ben on desk"))
    assert status == 4
    assert line["error"].startswith("it is in use by anna on laptop, since 20")
    assert 2 < time.monotonic() - begun < 15, "it waits a moment: the first may be about to end"
    first.kill()
    write_job(job[0], job[1])
    status, _ = finish(start(job[1], "ben on desk"))
    assert status == 0


def test_a_runner_that_nobody_listens_to_ends(start, job):
    first = holding(start, job)
    first.stdout.close()  # what the connection's end does
    assert first.wait(timeout=10) != 0
    assert not (job[1] / RESULT).exists()


def test_a_runner_shows_a_sign_of_life_while_it_measures(start, job):
    first = holding(start, job)
    begun = time.monotonic()
    assert json.loads(first.stdout.readline()) == {"alive": True}
    assert time.monotonic() - begun < 6


@pytest.mark.parametrize("linked", [False, True], ids=["", "on another disk"])
def test_clearing_up_ends_a_runner_that_hangs(start, job, monkeypatch, linked, tmp_path):
    folder = start.home / ".dap"
    if linked:
        (tmp_path / "disk").mkdir()
        folder.symlink_to(tmp_path / "disk")
    for name, path in (("FOLDER", folder), ("JOBS", folder / "jobs"), ("LOCK", folder / "lock")):
        monkeypatch.setattr(board_setup, name, path)
    jobs = folder / "jobs"
    jobs.mkdir(parents=True)
    job[1].rename(jobs / "mine")
    first = holding(start, (job[0], jobs / "mine"))
    first.send_signal(signal.SIGSTOP)
    board_setup.end("other")
    assert (jobs / "mine").is_dir(), "another job is left alone"
    assert first.poll() is None
    board_setup.end("mine")
    assert first.wait(timeout=5) == -signal.SIGKILL
    assert list(jobs.iterdir()) == []


def test_leftovers_of_dead_deployments_go_after_a_day(tmp_path, monkeypatch):
    for name, path in (("FOLDER", tmp_path), ("JOBS", tmp_path / "jobs"), ("LOCK", tmp_path / "lock")):
        monkeypatch.setattr(board_setup, name, path)
    for name, hours in (("old.partial", 25), ("old", 30), ("young.partial", 1)):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        os.utime(tmp_path / "jobs" / name, (time.time() - hours * 3600,) * 2)
    board_setup.begin("new", 1000)
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["new.partial", "young.partial"]
    assert "full" in board_setup.begin("large", 10**15)


@pytest.fixture
def result(start, job):
    """A sound result: its job, the path, and the result itself."""
    assert finish(start(job[1]))[0] == 0
    return job[0], job[1] / RESULT, read_result(job[1] / RESULT, job[0])


def test_a_result_survives_being_written_and_read(result, tmp_path):
    job, _, found = result
    strange = dataclasses.replace(found, logits=((float("nan"),) * job.classes, *found.logits[1:]))
    again = read_result(write_result(strange, tmp_path / "again.json"), job)
    np.testing.assert_array_equal(np.array(again.logits), np.array(strange.logits))
    assert again.latency == found.latency


def test_a_truncated_result_is_no_result(result):
    job, path, _ = result
    content = path.read_text()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        path.write_text(content[:length])
        with pytest.raises(DeviceError, match="not whole"):
            read_result(path, job)


@pytest.mark.parametrize("change", [{"id": "another"}, {"files": ("other.tflite",), "sha256": {"other.tflite": "0"}}])
def test_a_result_of_another_job_or_artifact_is_no_result(result, change):
    with pytest.raises(DeviceError, match="belongs to another artifact"):
        read_result(result[1], dataclasses.replace(result[0], **change))


@pytest.mark.parametrize("change", [{"logits": ()}, {"golden": ((1.0,),)}, {"latency": {}}])
def test_a_result_with_something_missing_is_no_result(result, change):
    job, path, found = result
    write_result(dataclasses.replace(found, **change), path)
    with pytest.raises(DeviceError, match="not whole"):
        read_result(path, job)


CPUINFO, MODALIAS, STATUS = "/proc/cpuinfo", "/sys/devices/system/cpu/modalias", "/proc/self/status"
X86, ARM = "cpu:type:x86,ven0000fam0006mod009E:feature:,0000", "cpu:type:aarch64:feature:,0000"


@pytest.mark.parametrize(
    ("machine", "files", "emulated"),
    [
        ("aarch64", {STATUS: "Name:\tpython3.11\n", CPUINFO: "CPU implementer\t: 0x41", MODALIAS: ARM}, None),
        ("x86_64", {STATUS: "Name:\tpython3.11\n", CPUINFO: "vendor_id\t: GenuineIntel", MODALIAS: X86}, None),
        ("aarch64", {}, None),
        ("aarch64", {STATUS: "Name:\tqemu-aarch64\n"}, "qemu-aarch64"),
        ("aarch64", {CPUINFO: "vendor_id\t: GenuineIntel"}, "an x86 machine"),
        # qemu 8 writes a cpuinfo of its own
        ("aarch64", {STATUS: "Name:\tpython3.11\n", CPUINFO: "CPU part\t: 0xd0b", MODALIAS: X86}, "an x86 machine"),
        ("x86_64", {CPUINFO: "vendor_id\t: GenuineIntel", MODALIAS: ARM}, "an aarch64 machine"),
        ("x86_64", {CPUINFO: "vendor_id\t: VirtualApple"}, "Rosetta"),
        ("aarch64", {"/proc/device-tree/compatible": "linux,dummy-virt\0"}, "QEMU"),
    ],
)
def test_an_emulated_processor_is_known_by_what_it_cannot_hide(monkeypatch, machine, files, emulated):
    monkeypatch.setattr(measure, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert measure.emulator() == emulated


@pytest.mark.parametrize(
    ("machine", "system", "features", "float16"),
    [
        ("x86_64", "linux", 0xFFFF, False),
        ("aarch64", "linux", 0x0FF, False),  # Cortex-A72
        ("aarch64", "linux", 0x6FF, True),  # Cortex-A76
        ("arm64", "darwin", 0, True),
    ],
)
def test_whether_a_processor_computes_in_float16(monkeypatch, machine, system, features, float16):
    class Library:
        def __init__(self, name):
            self.getauxval = lambda kind: features if kind == 16 else 0

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(measure.sys, "platform", system)
    monkeypatch.setattr(measure.ctypes, "CDLL", Library)
    assert measure.computes_float16() is float16


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch):
    times = count(1e9, -86400)  # a day back at every look: a board without a clock of its own that finds the time
    monkeypatch.setattr(time, "time", lambda: next(times))
    found = latency.measure({"a": lambda: time.sleep(0.001)}, board_jobs.BRIEF)["a"]
    assert found.valid
    assert 0.9 < found.p50_ms < 20


def test_a_monotonic_clock_that_goes_back_makes_the_measurement_invalid(monkeypatch):
    clock, looks = time.perf_counter_ns, count()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock() - (10**7 if next(looks) >= 32 else 0))  # within one
    found = latency.measure({"a": lambda: time.sleep(0.001)}, board_jobs.BRIEF)["a"]
    assert not found.valid
    assert found.why_invalid.startswith("the clock showed -")


# ExecuTorch without torch. In a process of its own: the libraries that its Python package loads hold the same kernels.


def in_runner(runner: Path, home: Path, script: str, arguments=(), **variables) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HOME": str(home), **variables}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=runner,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_executorch_without_torch_computes_what_it_computes_with_it(start, tmp_path, executorch_file):
    job = board_jobs.make_job(tmp_path / "job", executorch_file, executorch.load, "executorch")
    write_job(job, tmp_path / "job")
    status, lines = finish(start(tmp_path / "job"))
    assert status == 0, lines
    found = read_result(tmp_path / "job" / RESULT, job)
    assert (found.golden_error, found.top1, found.refused) == (0, 1, None)
    assert (found.runtime, found.latency["model.pte"].samples >= 20) == ("executorch", True)
    compiled = list((start.home / ".dap" / "executorch").iterdir())
    assert [path.suffix for path in compiled] == [".so"], "compiled once, nothing half-made beside it"


def test_a_damaged_library_of_executorchs_functions_is_compiled_again(runner, start, executorch_file):
    """Stands in for a power cut, or a system library that an upgrade has replaced."""
    script = CHECKS.format(path=str(executorch_file)) + "load(path, 2)"
    assert in_runner(runner, start.home, script).returncode == 0
    (library,) = (start.home / ".dap" / "executorch").iterdir()
    library.write_bytes(b"")
    done = in_runner(runner, start.home, script)
    assert done.returncode == 0, done.stderr
    assert library.stat().st_size > 0


def test_boards_are_given_the_executorch_that_counts():
    path = Path(board_setup.__file__).with_name("requirements-board-executorch.txt")
    assert f"\nexecutorch=={executorch_program.RELEASE} " in path.read_text()


@pytest.mark.parametrize(("release", "library"), [("1.5.1", True), ("1.5.1", False), ("1.0.0", True)])
def test_executorch_counts_if_it_is_whole_and_the_right_one(tmp_path, release, library):
    """A package that a power cut has left without its libraries, or one of the user's own."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "executorch" / "lib").mkdir(parents=True)
    (tmp_path / "executorch" / "__init__.py").touch()
    if library:
        (tmp_path / "executorch" / "lib" / "libexecutorch.so").touch()
    (tmp_path / f"executorch-{release}.dist-info").mkdir()
    (tmp_path / f"executorch-{release}.dist-info" / "METADATA").write_text(f"Name: executorch\nVersion: {release}\n")
    capable = library and release == executorch_program.RELEASE
    assert ("executorch" in board_setup._formats(str(python), {"executorch": executorch_program.CHECK})) == capable


CHECKS = """
import sys
from pathlib import Path
import numpy as np
from targets.executorch_program import load
path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path({path!r})
assert "torch" not in sys.modules
"""


def test_executorch_refuses_what_is_damaged_foreign_or_of_another_size(runner, start, tmp_path, executorch_file):
    content = executorch_file.read_bytes()
    for name, changed in {
        "damaged": content[:999] + b"?" + content[1000:],
        "short": content[:-1],
        "empty": b"",
        "foreign": content[:-32],
        # sealed, but no program: stands in for one that this runtime does not understand
        "strange": content[:100] + executorch_program.seal(content[:100]),
    }.items():
        (tmp_path / f"{name}.pte").write_bytes(changed)
    script = CHECKS.format(path=str(executorch_file)) + (
        "program = load(path, 2)\n"
        "assert program(np.zeros((1, 24, 24, 3), np.uint8)).shape[0] == 1\n"
        f"for name in ('damaged', 'short', 'empty', 'foreign', 'strange', 'missing'):\n"
        "    try:\n"
        f"        load(Path({str(tmp_path)!r}) / f'{{name}}.pte', 2)\n"
        "        print('loaded')\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
        "for wrong in (lambda: load(path, 1), lambda: program(np.zeros((1, 16, 16, 3), np.uint8))):\n"
        "    try:\n"
        "        wrong()\n"
        "        print('taken')\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
        "del program\n"
        "load(path, 1)\n"
    )
    done = in_runner(runner, start.home, script)
    assert done.returncode == 0, done.stderr
    damaged, short, empty, foreign, strange, missing, threads, size = done.stdout.splitlines()
    for line in (damaged, short, empty, foreign):
        assert "its checksum is wrong" in line
    assert f"does not load in executorch {executorch.version('executorch')}" in strange
    assert "there is no such file" in missing
    assert "programs with 2 threads are in use" in threads
    assert "takes 1728 numbers" in size


def test_executorch_says_what_it_lacks(runner, start, tmp_path, executorch_file, monkeypatch):
    script = CHECKS.format(path=str(executorch_file)) + "load(path, 2)"
    (tmp_path / "none").mkdir()
    done = in_runner(runner, start.home, script, PATH=str(tmp_path / "none"))
    assert "RuntimeUnavailable: no C++ compiler" in done.stderr
    compiler = tmp_path / "none" / "c++"
    compiler.write_text("#!/bin/sh\necho 'fatal error: no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = in_runner(runner, start.home, script, PATH=f"{tmp_path / 'none'}:/bin")
    assert "does not compile executorch_program.cpp: fatal error: no such header" in done.stderr
    assert list((start.home / ".dap" / "executorch").iterdir()) == []
    monkeypatch.setattr(executorch_program, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match="pip install --no-deps executorch"):
        executorch_program.runtime()

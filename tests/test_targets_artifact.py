"""The process that a converter lives in: it ends with its parent and with Ctrl-C, and what it says has a name."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import converter_double
import pytest

from targets import artifact

SCRIPT = """
import signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
import converter_double
from targets.artifact import convert

class Stopped(BaseException):
    pass

def stop(*_):
    raise Stopped

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    convert(converter_double.lock, Path("other.bin"), noise="^$")
    convert(converter_double.last, Path("model.bin"), Path("started"), noise="^$")
"""


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(autouse=True)
def _own_process():
    """No test meets the process of another one."""
    artifact.end_converters()
    yield
    artifact.end_converters()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to end"])
def test_a_converter_at_work_ends_with_its_parent(tmp_path: Path, number: int) -> None:
    """However that ends: one that is killed says nothing, one that is told to end does not wait for the file."""
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    (tmp_path / "script.py").write_text(SCRIPT.format(path=path))
    parent = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    started = tmp_path / "started"
    wait_for(lambda: started.exists() and started.read_text())
    converter = int(started.read_text())
    assert is_alive(converter)
    os.kill(parent.pid, number)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode != 0
    wait_for(lambda: not is_alive(converter))
    if number == signal.SIGTERM:
        assert {path.name for path in tmp_path.iterdir()} == {"script.py", "started", "other.bin"}, "nothing half done"
        assert said.rstrip().endswith("Stopped"), "no word of what was left behind"


def test_what_a_converter_says_has_the_name_of_its_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.bin"
    artifact.convert(converter_double.tell, path, "progress: 3 %\nout of cheese\n", noise="progress")
    assert capfd.readouterr().err == "model.bin: out of cheese\n"


def test_a_converter_that_was_killed_is_told_and_the_next_export_has_another(tmp_path: Path) -> None:
    process = artifact._process(converter_double.__name__)
    os.kill(process.submit(os.getpid).result(), signal.SIGKILL)
    with pytest.raises(artifact.RuntimeUnavailable, match=r"converter to model\.bin was killed"):
        artifact.convert(converter_double.tell, tmp_path / "model.bin", "", noise="^$")
    assert artifact.convert(converter_double.tell, tmp_path / "model.bin", "", noise="^$").size_bytes


def test_it_gets_ready_at_low_priority_and_works_at_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, path = tmp_path / "ready", tmp_path / "model.bin"
    monkeypatch.setenv("WARMED_UP", str(ready))
    artifact.begin(converter_double.__name__)
    artifact.convert(converter_double.tell, path, "", noise="^$")
    (before, nice_before), (after, nice) = (file.read_text().split() for file in (ready, path))
    assert before == after, "the same process"
    assert int(nice) == os.nice(0)
    assert int(nice_before) == (min(19, int(nice) + artifact.LOW_PRIORITY) if sys.platform == "linux" else int(nice))


def test_what_cannot_get_ready_is_told_by_the_export_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    artifact.begin(converter_double.__name__)  # WARMED_UP is missing
    artifact.convert(converter_double.tell, tmp_path / "model.bin", "", noise="^$")
    assert capfd.readouterr().err == ""

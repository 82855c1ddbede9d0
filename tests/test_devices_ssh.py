"""Boards over ssh, against a real ssh server on this machine: what it stands in for is said where it is not a board.

The runner, its Python and its packages are this machine's own; the emulated Raspberry Pi is in test_devices_qemu.py.
"""

import contextlib
import dataclasses
import json
import os
import platform
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import board_jobs
import loopback_board
import pytest

from targets import TARGETS, executorch, strict, tflite_program
from targets.devices import connection, ssh
from targets.devices.connection import Connection
from targets.devices.job import DeviceError, FormatUnavailable
from targets.devices.ssh import Ssh

pytestmark = [pytest.mark.slow, pytest.mark.ssh]

# This machine stands in for a Raspberry Pi: its processor is taken for the board's.
TARGET = dataclasses.replace(TARGETS["rpi5"], machines=(platform.machine(),))
# A Python that finds no installed packages: stands in for that of a board where nothing has been installed.
BARE = f'exec {os.path.realpath(sys.executable)} -S "$@"'


@pytest.fixture
def board(tmp_path):
    with loopback_board.running(tmp_path / "board") as board:
        yield board


@pytest.fixture
def connect(board):
    """Connects to the board; connections are closed afterwards, as they are when a process ends."""
    connected = []

    def run(address=None, target=TARGET, say=lambda text: None) -> Ssh:
        connected.append(Ssh.connect(address or board.address, target, say))
        return connected[-1]

    yield run
    for device in connected:
        device._connection.close()


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "job"
    return board_jobs.make_job(folder, board_jobs.tflite_file(), tflite_program.load, "tflite"), folder


def lasting(job):
    """The job with a measurement that takes long enough for something to happen."""
    return dataclasses.replace(job[0], protocol=board_jobs.LONG)


def at_latency(do):
    """Progress that does something when the measurement begins."""

    def progress(what, done, total):
        if (what, done) == ("latency", 0):
            do()

    return progress


def runner_of(board) -> int:
    """Process of the runner, from the board's lock."""
    return json.loads((board.home / ".dap" / "lock").read_text())["pid"]


def ends(pid: int, seconds: float) -> bool:
    """Whether a process ends in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


def test_a_job_is_done_there_and_leaves_nothing_behind(board, connect, job):
    board.program("python3", f'echo "a line of the shell"; exec {sys.executable} "$@"')  # not every line is ours
    device, told = connect(), []
    result = device.run(*job, lambda *line: told.append(line))
    assert (result.golden_error, result.top1) == (0, 1)
    assert result.latency["model-fp32.tflite"].valid or "busy" in str(result.latency["model-fp32.tflite"].why_invalid)
    assert result.latency["model-fp32.tflite"].samples >= 20
    assert result.device == device.description
    assert result.device["device"] == board.address, "not 'this machine', which is another one"
    assert ("images", 6, 6) in told
    assert (board.jobs, [path.name for path in board.home.iterdir()]) == ([], [".dap"])
    again = device.run(*job, lambda *_: None)
    assert again.logits == result.logits
    control = Path(device._connection._options[0].removeprefix("-oControlPath="))
    assert control.exists(), "one connection serves everything"
    device._connection.close()
    assert not control.parent.exists()


def test_executorch_is_run_there_without_torch(board, connect, tmp_path):
    job = board_jobs.make_job(tmp_path / "job", board_jobs.executorch_file(), executorch.load, "executorch")
    result = connect().run(job, tmp_path / "job", lambda *_: None)
    assert (result.golden_error, result.runtime) == (0, "executorch")
    assert board.jobs == []


@pytest.mark.parametrize(
    "address",
    [
        "-oProxyCommand=touch /tmp/x",
        "a b",
        "a;b",
        "$(a)",
        "pi@",
        "@pi",
        "pi@-v",
        "pi:port",
        "pi:123456",
        "::1",
        "a/b",
        "",
    ],
)
def test_what_is_no_address_never_reaches_ssh(address):
    with pytest.raises(ValueError, match=r"is not \[user@\]host"):
        Connection(address)


@pytest.mark.parametrize(
    ("address", "destination", "port", "remote"),
    [
        ("pi@raspberrypi.local", "pi@raspberrypi.local", None, "pi@raspberrypi.local"),
        ("board_1:22", "board_1", "22", "board_1"),
        ("pi@[fe80::1%eth0]:2222", "pi@fe80::1%eth0", "2222", "pi@[fe80::1%eth0]"),
    ],
)
def test_addresses(address, destination, port, remote):
    found = Connection(address)
    assert (found.destination, found.port, found._remote) == (destination, port, remote)
    found.close()


def test_a_port_where_nobody_listens_says_so(board, connect):
    board.stop()
    with pytest.raises(DeviceError, match=r"no ssh answers: switch ssh on there .*Connection refused"):
        connect()


def test_a_machine_that_takes_the_call_and_says_nothing_is_given_up(connect, monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_S", 1)
    with socket.socket() as mute:  # stands in for a board that hangs, or a firewall that swallows everything
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        begun = time.monotonic()
        with pytest.raises(DeviceError, match="does not answer: is it switched on"):
            connect(f"127.0.0.1:{mute.getsockname()[1]}")
    assert time.monotonic() - begun < 5


def test_a_name_that_nobody_has_says_so(connect):
    with pytest.raises(DeviceError, match="no machine of that name"):
        connect("pi@no-such-board.invalid")


def test_an_unknown_host_key_is_not_accepted_for_the_user(board, connect):
    board.known_hosts.write_text("")
    with pytest.raises(DeviceError, match=rf"not known here yet: ssh -p {board.port} 127\.0\.0\.1 once, and compare"):
        connect()
    assert board.known_hosts.read_text() == ""


def test_at_a_terminal_ssh_itself_asks_about_an_unknown_host_key(board):
    board.known_hosts.write_text("")
    script = f"from targets.devices.connection import Connection; Connection({board.address!r}).open(); print('open')"
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", script])
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while chunk := os.read(terminal, 4096):
            shown += chunk
            if chunk.rstrip().endswith(b"(yes/no/[fingerprint])?"):
                os.write(terminal, b"yes\n")
    os.close(terminal)
    assert os.waitpid(process, 0)[1] == 0, shown
    assert shown.rstrip().endswith(b"open")
    assert str(board.port) in board.known_hosts.read_text()


def test_a_changed_host_key_is_an_alarm(board, connect):
    board.stop()
    board.new_host_key(known=False)
    board.start()
    with pytest.raises(
        DeviceError, match=rf"ssh-keygen -R '\[127\.0\.0\.1\]:{board.port}'.* somebody may be in between"
    ):
        connect()


def test_a_board_that_does_not_know_the_user_says_how_to_be_let_in(board, connect):
    board.stop()
    (board.folder / "user_key.pub").write_text("")
    board.start()
    with pytest.raises(DeviceError, match=rf"ssh-copy-id -p {board.port} 127\.0\.0\.1"):
        connect()


def test_without_ssh_here_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="apt install openssh-client"):
        Ssh.connect("pi@board", TARGET, print)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"machine": "riscv64"}, "is riscv64, but TARGET=rpi5 is"),
        ({"machine": "armv7l", "bits": 32}, r"32-bit system \(armv7l\): install the 64-bit"),
        # a 64-bit kernel under a 32-bit system, as Raspberry Pi OS had it for years
        ({"bits": 32}, "32-bit system"),
        ({"python": [3, 9]}, r"has Python 3\.9, and 3\.11 is needed: install Raspberry Pi OS bookworm"),
    ],
)
def test_a_board_that_cannot_do_it_says_why(board, connect, answer, message):
    """An answer that is written down stands in for such a board."""
    fit = {"python": [3, 11], "machine": platform.machine(), "bits": 64, "folder": "/x", "pythons": {}}
    board.program("python3", f"echo '{json.dumps({**fit, **answer})}'")
    with pytest.raises(DeviceError, match=message):
        connect()


def test_this_machine_is_no_raspberry_pi(connect):
    if platform.machine() == "aarch64":
        pytest.skip("this machine's processor is one that a Raspberry Pi has")
    with pytest.raises(DeviceError, match=rf"is {platform.machine()}, but TARGET=rpi5 is aarch64"):
        connect(target=TARGETS["rpi5"])


def test_a_board_without_python_says_so(board, connect):
    board.program("python3", "exit 127")  # what a shell says of a program that is not there
    with pytest.raises(DeviceError, match="no python3: sudo apt install python3"):
        connect()


def test_a_home_folder_that_cannot_be_written_is_named(board, connect):
    (board.home / ".dap").write_text("a file where the folder should be")
    with pytest.raises(DeviceError, match=r"Not a directory: .*\.dap"):
        connect()


@pytest.fixture
def small_disk(board):
    """A board's home folder on a disk of 2 MB: a real file system that gets full."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", board.home], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here; it takes root")
    yield
    board.stop()
    subprocess.run(["umount", "-l", board.home], check=True)


def test_a_full_disk_is_found_before_anything_is_pushed(board, connect, small_disk):
    with pytest.raises(DeviceError, match=r"its disk is full\. .* MB are to be pushed, 2\.\d MB are free; make room"):
        connect()
    assert board.jobs == []


def test_a_disk_that_fills_up_meanwhile_is_told_and_nothing_stays(
    board, connect, job, small_disk, tmp_path, monkeypatch
):
    """Without the look at the disk beforehand: stands in for one that something else fills while files are pushed."""
    careless = tmp_path / "careless.py"
    careless.write_text(ssh.SETUP.read_text().replace("SPARE_BYTES = 8_000_000", "SPARE_BYTES = -10**9"))
    monkeypatch.setattr(ssh, "SETUP", careless)
    device = connect()
    large = dataclasses.replace(job[0], sha256={**job[0].sha256, "large": "0"})
    (job[1] / "large").write_bytes(bytes(3_000_000))
    with pytest.raises(DeviceError, match="its disk is full"):
        device.run(large, job[1], lambda *_: None)
    assert board.jobs == []
    assert device.run(*job, lambda *_: None).golden_error == 0, "repeating it without the large file is safe"


def test_a_runner_that_is_killed_half_way_is_told_and_done_again(board, connect, job):
    device = connect()
    with pytest.raises(DeviceError, match="what ran there was killed"):
        device.run(lasting(job), job[1], at_latency(lambda: os.kill(runner_of(board), signal.SIGKILL)))
    assert board.jobs == []
    assert device.run(*job, lambda *_: None).golden_error == 0


def test_a_runner_that_hangs_is_given_up_and_ended(board, connect, job, monkeypatch):
    device, pids = connect(), []
    monkeypatch.setattr(ssh, "SILENCE_S", 3.0)

    def hang():
        pids.append(runner_of(board))
        os.kill(pids[0], signal.SIGSTOP)

    with pytest.raises(DeviceError, match="no sign of life for 3 s"):
        device.run(lasting(job), job[1], at_latency(hang))
    assert ends(pids[0], 3), "it would hold the lock for ever"
    assert board.jobs == []
    assert device.run(*job, lambda *_: None).golden_error == 0


HANGING = """
import dataclasses, sys, time
from targets import tflite_program
from targets.devices import board
from targets.formats import FORMATS
def load(path, threads):
    program = tflite_program.load(path, threads)
    return dataclasses.replace(program, run=lambda pixels: time.sleep(60))
known = FORMATS["tflite"]
FORMATS["tflite"] = dataclasses.replace(known, board=dataclasses.replace(known.board, load=load))
sys.exit(board.main(sys.argv[1:]))
"""


def test_a_runtime_that_hangs_while_its_runner_shows_life_is_given_up(board, connect, job, monkeypatch, tmp_path):
    """As one that waits for itself in an inference."""
    monkeypatch.setattr(ssh, "STALLED_S", 3.0)
    (tmp_path / "hanging.py").write_text(HANGING)
    run = f"PYTHONPATH=. exec {sys.executable} {tmp_path}/hanging.py . me"
    device = connect()
    board.program("python3", f'case "$*" in *targets.devices.board\\ .*) {run};; esac; exec {sys.executable} "$@"')
    begun, pids = time.monotonic(), []
    watching = threading.Timer(2.5, lambda: pids.append(runner_of(board)))
    watching.start()
    with pytest.raises(DeviceError, match=r"is alive, but its runner gets no further for 3\.9 s"):
        device.run(*job, lambda *_: None)
    assert time.monotonic() - begun < 20
    assert ends(pids[0], 3)
    assert board.jobs == []


def test_a_board_that_is_unplugged_meanwhile_is_given_up(board, connect, job, monkeypatch):
    """Its server's processes are stopped: stands in for a cable that is pulled."""
    monkeypatch.setattr(connection, "ALIVE_S", 1)
    monkeypatch.setattr(ssh, "LEAVE_S", 1.0)
    device, stopped = connect(), []

    def unplug():
        stopped.extend(
            [board.process.pid, *(pid for pid in board.sessions() if "sshd" in Path(f"/proc/{pid}/comm").read_text())]
        )
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    begun = time.monotonic()
    try:
        with pytest.raises(DeviceError, match=r"still switched on|does not answer"):
            device.run(lasting(job), job[1], at_latency(unplug))
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert time.monotonic() - begun < 20
    assert device.run(*job, lambda *_: None).golden_error == 0, "plugged in again, it is connected again"


def test_a_result_that_arrives_truncated_is_no_result(board, connect, job, tmp_path):
    """A copy that loses its end: stands in for whatever truncates a file on its way."""
    scp = (board.folder / "client" / "scp").read_text().splitlines()[1].removeprefix("exec ")
    fetched = 'case "$last" in /*) f="$last/result.json"; [ -f "$f" ] && truncate -s -200 "$f";; esac'
    board.local_program("scp", f"for last; do :; done\n{scp} || exit\n{fetched}\nexit 0")
    with pytest.raises(DeviceError, match=r"result\.json is missing or not whole"):
        connect().run(*job, lambda *_: None)
    assert board.jobs == []


def test_a_result_of_another_artifact_is_no_result(board, connect, job):
    """A runner that leaves an old result: stands in for anything that mixes them up."""
    device = connect()
    run = f'{sys.executable} "$@" || exit; sed -i s/{job[0].id}/0/ result.json; exit'
    board.program("python3", f'case "$*" in *targets.devices.board\\ .*) {run};; esac; exec {sys.executable} "$@"')
    with pytest.raises(DeviceError, match="belongs to another artifact"):
        device.run(*job, lambda *_: None)
    assert board.jobs == []


def test_a_second_deployment_is_refused_and_does_not_disturb_the_first(board, connect, job):
    first, second, refused = connect(), connect(), []

    def deploy():
        try:
            second.run(*job, lambda *_: None)
        except DeviceError as error:
            refused.append(str(error))

    job_of_first = dataclasses.replace(job[0], protocol=dataclasses.replace(board_jobs.BRIEF, seconds=6.0))
    other = threading.Thread(target=deploy)
    result = first.run(job_of_first, job[1], at_latency(other.start))
    other.join()
    assert result.golden_error == 0
    assert len(refused) == 1
    assert f"in use by {ssh._who()}, since 20" in refused[0]
    assert board.jobs == []
    assert second.run(*job, lambda *_: None).golden_error == 0


DEPLOYMENT = """
import dataclasses, platform, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from targets import TARGETS
from targets.devices.job import read_job
from targets.devices.ssh import Ssh
target = dataclasses.replace(TARGETS["rpi5"], machines=(platform.machine(),))
folder = Path({folder!r})
device = Ssh.connect({address!r}, target, print)
print(device._connection._options[0], flush=True)
device.run(read_job(folder), folder, lambda what, done, total: print(what, done, flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_deployment_that_is_cut_off_here_holds_nothing_there(board, connect, job, how):
    ssh.write_job(lasting(job), job[1])
    script = DEPLOYMENT.format(paths=[p for p in sys.path if p], folder=str(job[1]), address=board.address)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with process:
        control = process.stdout.readline().strip()
        while process.stdout.readline() != "latency 0\n":
            assert process.poll() is None
        pid, begun = runner_of(board), time.monotonic()
        # Ctrl-C reaches ssh, too
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
        process.wait(timeout=15)
    assert time.monotonic() - begun < 10
    assert ends(pid, 8), "nobody listens to it any more"
    if how == signal.SIGINT:
        assert board.jobs == []
        assert not Path(control.partition("=")[2]).parent.exists()
    else:  # ssh keeps the connection of a process that could not close it for connection.PERSIST
        subprocess.run(["ssh", control, "-Oexit", "board"], check=True, capture_output=True)
        shutil.rmtree(Path(control.partition("=")[2]).parent)
    assert connect().run(*job, lambda *_: None).golden_error == 0


def test_what_a_board_lacks_is_installed_or_the_way_by_hand_is_told(board, connect, job):
    """Installing fails here, as it does without a network; test_a_bare_board_is_set_up does it for real."""
    board.program("python3", BARE)
    board.stop()
    board.environment = {"PIP_NO_INDEX": "1"}
    board.start()
    said = []
    with pytest.raises(
        FormatUnavailable, match=r"could not be installed \(ERROR: .*By hand, there: rm -rf ~/\.dap/env\* && python3 -m"
    ):
        connect(say=said.append)
    assert "installing what runs tflite into its ~/.dap/env" in said[0]
    assert [path.name for path in (board.home / ".dap").iterdir() if path.name.startswith("env")] == []


def test_a_python_that_makes_no_environments_says_what_to_install(board, connect):
    """As Debian's says it without python3-venv."""
    says = "The virtual environment was not created successfully because ensurepip is not available. On Debian ..."
    board.program("python3", f'case "$*" in "-m venv"*) echo "{says}"; exit 1;; esac; {BARE}')
    with pytest.raises(FormatUnavailable, match="sudo apt install python3-venv"):
        connect()


# Instead of an environment a Python that has no packages until pip has "installed" them, at the number of times told:
# what it did, and with which options, stands in ~/.dap/pip. {pip}: what pip does else
ENVIRONMENT = """case "$*" in "-m venv "*)
mkdir -p "$3/bin"
cat > "$3/bin/python" <<'END'
#!/bin/sh
case "$*" in
*"-m pip"*) echo "$*" >> ~/.dap/pip; {pip}; [ $(wc -l < ~/.dap/pip) -lt {times} ] || touch ~/.dap/env/installed; exit;;
esac
[ -e ~/.dap/env/installed ] || set -- -S "$@"
exec {python} "$@"
END
chmod +x "$3/bin/python"; exit;; esac; {bare}"""


def environment(times: int = 1, pip: str = ":") -> str:
    """A bare board's python3."""
    return ENVIRONMENT.format(times=times, pip=pip, python=sys.executable, bare=BARE)


def test_what_is_installed_and_does_not_load_is_installed_over_itself(board, connect, job):
    board.program("python3", environment(times=2))
    assert connect().run(*job, lambda *_: None).golden_error == 0
    first, second = (board.home / ".dap" / "pip").read_text().splitlines()
    assert ("--force-reinstall" in first, "--force-reinstall" in second) == (False, True)


def test_an_environment_in_which_nothing_works_is_made_anew(board, connect, job):
    """As a power cut leaves one, or an upgrade of the system: its Python starts, and not even pip is there."""
    old = board.home / ".dap" / "env" / "bin" / "python"
    old.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    (old.parent / "left").touch()
    board.program("python3", environment())
    assert connect().run(*job, lambda *_: None).golden_error == 0
    assert not (old.parent / "left").exists()


def test_the_environment_is_preferred_to_what_the_system_has(board, connect):
    python = board.home / ".dap" / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert connect()._python_for("tflite") == str(python)


def test_a_deployment_may_be_repeated_at_once_when_it_was_cut_off_while_installing(board, connect, job):
    """pip would go on beside the second one, in an environment that this one removes."""
    board.program("python3", environment(times=2, pip="[ -e ~/.dap/pids ] || { echo $$ > ~/.dap/pids; sleep 60; }"))
    script = DEPLOYMENT.format(paths=[p for p in sys.path if p], folder=str(job[1]), address=board.address)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    pids = board.home / ".dap" / "pids"
    with process:
        while not (pids.exists() and pids.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=15)
    assert (board.home / ".dap" / "env.unfinished").exists()
    assert connect().run(*job, lambda *_: None).golden_error == 0
    assert ends(int(pids.read_text()), 5)


def test_a_sign_of_life_after_the_answer_is_no_answer(board, connect):
    assert connect()._connection.answer("""echo '{"a": 1}'; echo '{"alive": true}'""") == {"a": 1}


def test_a_board_is_given_what_runs_the_format_that_is_wanted(board, connect):
    board.program("python3", f'case "$*" in "-m venv"*) exit 1;; esac; {BARE}')
    with pytest.raises(FormatUnavailable, match="what runs executorch could not be installed"):
        Ssh.connect(board.address, TARGET, lambda text: None, "executorch")


def test_a_board_that_lacks_executorch_alone_still_does_the_rest(board, connect, job):
    """An environment in its place that has TFLite only; installing fails, as it does without a network."""
    board.stop()
    board.environment = {"PIP_NO_INDEX": "1"}
    board.start()
    device = connect()
    device._pythons = {"python3": ["tflite"]}
    other = dataclasses.replace(job[0], format="executorch")
    with pytest.raises(FormatUnavailable, match="what runs executorch could not be installed"):
        device.run(other, job[1], lambda *_: None)
    assert device.run(*job, lambda *_: None).golden_error == 0


def test_a_bare_board_is_set_up(board, connect, job, tmp_path):
    board.program("python3", BARE)
    try:
        device = connect()
    except FormatUnavailable as error:
        pytest.skip(f"nothing can be installed here: {error}")
    assert device.run(*job, lambda *_: None).golden_error == 0
    other = board_jobs.make_job(tmp_path / "other", board_jobs.executorch_file(), executorch.load, "executorch")
    assert device.run(other, tmp_path / "other", lambda *_: None).golden_error == 0
    assert not (board.home / ".dap" / "env.unfinished").exists()
    said = []
    connect(say=said.append)
    assert said == [], "once"


def test_nothing_of_the_users_is_forwarded_whatever_the_configuration_says(board):
    """The agent and the screen would be the board's to use."""
    config = board.folder / "ssh_config"
    config.write_text(f"{config.read_text()}ForwardAgent yes\nForwardX11 yes\nForwardX11Trusted yes\n")
    link = Connection(board.address)
    asked = ["ssh", "-G", *link._options, link.destination]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"forwardagent no", "forwardx11 no", "clearallforwardings yes"} <= set(found)
    link.close()


NEWS = r'{"error": "\u001b[2Jred", "b": [1]}'


def test_lines_that_are_no_messages_are_passed_over_and_texts_are_cleaned(board):
    link = Connection(board.address)
    link.open()
    script = board.folder / "noise.py"
    noise = ("[" * 100_000, '{"a": NaN}', '{"a": 1, "a": 2}', "[1]", "é", "text")
    script.write_text(f"print({chr(10).join([*noise, NEWS])!r})")
    command = f"{sys.executable} {script}"
    assert list(link.lines(command)) == [{"error": "�[2Jred", "b": [1]}]
    link.close()


def test_a_line_without_an_end_is_given_up(board):
    link = Connection(board.address)
    link.open()
    with pytest.raises(DeviceError, match="prints a line without an end: xxx") as raised:
        list(link.lines("yes x | tr -d '\\n'"))  # which ends when nobody reads it any more
    assert len(str(raised.value)) < 300
    link.close()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("probe", '{"python": [3, 11], "machine": "x", "bits": "64", "folder": "/", "pythons": {}}'),
        ("probe", '{"python": "3.11"}'),
        ("probe", '{"error": "\\u001b[2J"}'),
        ("begin", '{"folder": 3}'),
        ("begin", '{"full": "all"}'),
        ("end", '{"free": -0.5}'),
        ("end", "{}"),
        ("install", '{"pythons": [1]}'),
    ],
)
def test_an_answer_that_is_none_is_told(monkeypatch, command, answer):
    device = Ssh(Connection("board"), lambda text: None)
    monkeypatch.setattr(device._connection, "lines", lambda *_: iter([strict.parse_json(answer.encode(), Any, "")]))
    kind = {"probe": ssh._Probe, "begin": ssh._Room, "end": ssh._Ended, "install": ssh._Installed}[command]
    with pytest.raises(DeviceError) as raised:
        device._setup(command, kind)
    assert str(raised.value).startswith("board: ")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("line", ['{"progress": 3}', '{"progress": ["x", 1]}', '{"progress": ["x", "1", 2]}'])
def test_progress_that_is_none_is_told(monkeypatch, line):
    device = Ssh(Connection("board"), lambda text: None)
    monkeypatch.setattr(device._connection, "lines", lambda *_, **__: iter([strict.parse_json(line.encode(), Any, "")]))
    with pytest.raises(DeviceError, match=r"board: .*must be"):
        device._follow("x", lambda *_: None, 60.0)

"""Stand-ins for an Android phone: scripts in place of adb that say what adb says, and the real adbd in a network of its
own, whose am, app_process and others are scripts. `app_process` there starts this machine's Java with TFLite's library
for Android, over what bionic.py makes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bionic
import pytest

ANDROID = Path(__file__).parent.parent / "apps" / "android"
sys.path.insert(0, str(ANDROID))
import toolchain  # noqa: E402 (it lies in the app's folder)

SERIAL = "127.0.0.1:5555"
PORT = 5099
"""of adb's server in that network"""
APP = "org.dap.classifier"
PROPERTIES = {
    "ro.product.manufacturer": "Acme",
    "ro.product.model": "One",
    "ro.build.version.release": "15",
    "ro.build.version.sdk": "35",
    "ro.product.cpu.abilist": "x86_64",
    "ro.product.cpu.abi": "x86_64",
    "ro.hardware": "acme",
}
LO_UP = (
    "import fcntl, socket, struct; s = socket.socket(); "
    "fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 0x41))"  # SIOCSIFFLAGS: up and running
)


def tools() -> toolchain.Tools:
    """The toolchain, fetched if need be; skips where it cannot be had."""
    try:
        return toolchain.prepare(lambda text: print(text, file=sys.stderr), tests=True)
    except toolchain.Missing as missing:
        pytest.skip(str(missing))


class FakeAdb:
    """A script in place of adb: answers by what its arguments begin with, behind -s SERIAL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.answers: list[tuple[str, str]] = []
        self.answer("devices -l", "echo 'List of devices attached'; echo 'P1 device usb:1-1 model:One'")
        self.answer("shell -T echo maker", properties_script(PROPERTIES))
        self.write()

    def answer(self, arguments: str, script: str) -> None:
        """The last one that fits counts."""
        self.answers.append((arguments, script))
        self.write()

    def properties(self, **changes: str) -> None:
        self.answer("shell -T echo maker", properties_script({**PROPERTIES, **changes}))

    def write(self) -> None:
        lines = ["#!/bin/bash", f'echo "$@" >> {self.folder}/log', '[ "$1" = -s ] && shift 2', 'case "$*" in']
        for arguments, script in reversed(self.answers):
            pattern = arguments.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'  "{pattern}"*) {script} ;;')
        path = self.folder / "adb"
        path.write_text("\n".join([*lines, "esac"]) + "\n")
        path.chmod(0o755)

    @property
    def log(self) -> list[str]:
        """What was asked, with all arguments."""
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []


def properties_script(properties: dict[str, str]) -> str:
    names = {
        "maker": "ro.product.manufacturer", "model": "ro.product.model", "release": "ro.build.version.release",
        "sdk": "ro.build.version.sdk", "abis": "ro.product.cpu.abilist", "hardware": "ro.hardware",
    }  # fmt: skip
    return "; ".join(f"echo '{name}={properties[key]}'" for name, key in names.items()) + "; echo cores=0-7"


class Phone:
    """What answers to the real adb. Its programs are scripts in `programs`; its app's files lie in `app`."""

    def __init__(self, folder: Path, tools: toolchain.Tools, classes: Path) -> None:
        self.folder, self.tools, self.programs, self.app = folder, tools, folder / "programs", folder / "app"
        self.shim, self.client, self.data = folder / "shim", folder / "client", folder / "data"
        for path in (self.programs, self.app, self.shim, self.client, self.data):
            path.mkdir(parents=True)
        bionic.build(tools.native("x86_64"), self.shim)
        self.properties = dict(PROPERTIES)
        self.write_properties()
        libraries = ":".join(map(str, [classes, tools.kotlin / "kotlin-stdlib.jar", tools.tflite]))
        self.program(
            "app_process",
            'there="$1"; shift\n'
            f"LD_LIBRARY_PATH={self.shim} exec {shutil.which('java')} "
            f'-Djava.library.path="$there" -cp {libraries} "$@"',
        )
        self.program("dumpsys", f"cat {folder}/dumpsys.$1")
        self.program("settings", "echo 0")
        self.program("pm", f"[ -e {folder}/installed ] && echo package:{APP}; true")
        self.program("pidof", f"[ -e {folder}/pid ] && kill -0 $(cat {folder}/pid) && cat {folder}/pid")
        self.program("run-as", f'[ "$1" = {APP} ] && cd {self.app} || exit 1\nshift\nexec "$@"')
        # The app is Android's; the runner does its jobs here, and says its progress into a file as the app does.
        self.program(
            "am",
            f'case "$1" in\n'
            f"force-stop) [ -e {folder}/pid ] && kill $(cat {folder}/pid) 2>/dev/null; rm -f {folder}/pid;;\n"
            f'start) echo "Starting: $*"; job="${{@: -1}}"; there={self.app}/files/jobs/$job\n'
            f"  (echo $BASHPID > {folder}/pid; app_process {self.shim} org.dap.runner.MainKt $there 2>/dev/null |\n"
            '   while read -r line; do case "$line" in *progress*) echo "$line" > $there/progress.json;; esac; done\n'
            f"   sleep 1; rm -f {folder}/pid) >/dev/null 2>&1 </dev/null &;;\n"
            "esac",
        )
        (folder / "dumpsys.battery").write_text("  level: 80\n  status: 3\n  temperature: 315\n")
        (folder / "dumpsys.thermalservice").write_text("Thermal Status: 0\n")
        (folder / "dumpsys.power").write_text("  mWakefulness=Awake\n")
        self.process: subprocess.Popen | None = None

    def write_properties(self) -> None:
        cases = "\n".join(f"{name}) echo '{value}';;" for name, value in self.properties.items())
        self.program("getprop", f'case "$1" in\n{cases}\nesac')

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def install(self) -> None:
        """The app is there."""
        (self.folder / "installed").touch()

    @property
    def left(self) -> list[str]:
        """What lies where jobs are pushed to, and among the app's files."""
        jobs = self.app / "files" / "jobs"
        return [
            path.name for path in [*(self.data / "local/tmp").iterdir(), *(jobs.iterdir() if jobs.exists() else [])]
        ]

    def start(self) -> None:
        """Start adbd in a network, and with a /data, of its own. Skips where that is not allowed."""
        root = self.tools.adbd
        libraries = ":".join(str(root / "usr/lib/x86_64-linux-gnu" / name) for name in ("", "android"))
        loader = root / "usr/lib64/ld-linux-x86-64.so.2"
        loader = loader if loader.exists() else root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        adbd = root / "usr/lib/android-sdk/platform-tools/adbd"
        (self.data / "local/tmp").mkdir(parents=True)
        self.made_data = not Path("/data").exists()
        script = (
            f'{sys.executable} -c "{LO_UP}" && mkdir -p /data && mount --bind {self.data} /data && '
            f"exec {loader} --library-path {libraries} {adbd}"
        )
        environment = {**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}"}
        with open(self.folder / "adbd.log", "wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "-n", "-m", "bash", "-c", script],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        adb = self.client / "adb"
        places = ("usr/lib/x86_64-linux-gnu/android", "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
        adb_libraries = ":".join(str(self.tools.folder / "adb" / place) for place in places)
        adb.write_text(
            f"#!/bin/bash\nexec nsenter -t {self.process.pid} -n env HOME={self.folder} ANDROID_ADB_SERVER_PORT={PORT} "
            f'LD_LIBRARY_PATH={adb_libraries} {self.tools.adb} "$@"\n'
        )
        adb.chmod(0o755)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if self.process.poll() is not None:
                pytest.skip(f"no adbd in a network of its own here: {(self.folder / 'adbd.log').read_text()[-300:]}")
            told = subprocess.run([adb, "connect", SERIAL], capture_output=True, text=True, check=False).stdout
            if "connected to" in told:
                return
            time.sleep(0.3)
        pytest.skip(f"adbd does not answer here: {told} {(self.folder / 'adbd.log').read_text()[-300:]}")

    def stop(self) -> None:
        if self.process is None:
            return
        subprocess.run([self.client / "adb", "kill-server"], capture_output=True, check=False)
        self.process.kill()
        self.process.wait()
        if self.made_data and Path("/data").is_dir():
            Path("/data").rmdir()


@contextmanager
def running(folder: Path) -> Iterator[Phone]:
    """A phone whose adb comes first in PATH. Skips where it cannot be had."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter") or not shutil.which("gcc"):
        pytest.skip("adbd in a network of its own needs root, unshare, nsenter and gcc")
    found = tools()
    runner = subprocess.run(
        [sys.executable, ANDROID / "build.py", "runner", ANDROID / "build" / "runner"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert runner.returncode == 0, runner.stderr
    phone = Phone(folder, found, ANDROID / "build" / "classes-runner")
    try:
        phone.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{phone.client}:{os.environ['PATH']}")
            yield phone
    finally:
        phone.stop()

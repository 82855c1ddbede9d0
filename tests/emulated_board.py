"""Raspberry Pi OS bookworm's Python and the real aarch64 packages under qemu, which emulates the processor alone.

Debian 12's arm64 packages stand in for Raspberry Pi OS, which is made of them; a cross compiler for the board's own.
All is downloaded once, by the machine's own apt and pip, into a folder of the user's cache.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
CROSS = shutil.which("aarch64-linux-gnu-g++")
CACHE = Path.home() / ".cache" / "dap-tests" / "arm64"
PACKAGES = ("python3.11", "libstdc++6", "libgomp1")
REQUIREMENTS = Path(__file__).parent.parent / "targets" / "devices"
OLD = Path(__file__).with_name("requirements-tflite-runtime.txt")
WHEELS = [f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)] + ["manylinux2014_aarch64"]
CPU = "processor\t: {}\nBogoMIPS\t: 108.00\nFeatures\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"


def _files(model: str, compatible: str, features: str, cpu: str) -> dict[str, str]:
    """What qemu 7.2 would show of the real machine otherwise; Python, and XNNPACK by its cpuinfo, read it."""
    return {
        "proc/cpuinfo": "".join(CPU.format(core, features) + cpu for core in range(4)),
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": f"{compatible}\0",
        "sys/devices/system/cpu/possible": "0-3\n",
        "sys/devices/system/cpu/present": "0-3\n",
    }


PI_5, PI_4 = "cortex-a76", "cortex-a72"
"""their processors, as qemu calls them"""
FILES = _files(
    "Raspberry Pi 5 Model B Rev 1.0",
    "raspberrypi,5-model-b\0brcm,bcm2712",
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp",
    "CPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n",
)
FILES_OF_PI_4 = _files(
    "Raspberry Pi 4 Model B Rev 1.4",
    "raspberrypi,4-model-b\0brcm,bcm2711",
    "fp asimd evtstrm crc32 cpuid",
    "CPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n",
)


def python(kind: str, cpu: str = PI_5) -> str:
    """The shell command that starts the board's Python with packages of a kind: litert, executorch (and litert), old.

    cpu: PI_5 or PI_4
    Skips where it cannot be had.
    """
    if QEMU is None:
        pytest.skip("no qemu-aarch64 here: apt install qemu-user")
    system, folder = _system(cpu), packages(kind)
    path = f"PYTHONPATH={folder}${{PYTHONPATH:+:$PYTHONPATH}}"
    return f"{path} exec {QEMU} -cpu {cpu} -L {system} {system}/usr/bin/python3.11"


def compiler() -> str:
    """The shell command that stands in for the board's own compiler. Skips where there is none."""
    if CROSS is None:
        pytest.skip("no compiler for aarch64 here: apt install g++-aarch64-linux-gnu")
    return f"exec {CROSS}"


def _system(cpu: str) -> Path:
    """Root file system with Python, from this machine's own package sources."""
    files = {PI_5: FILES, PI_4: FILES_OF_PI_4}[cpu]
    path = CACHE / f"system-{_digest(*PACKAGES, *files.values())}"
    if not path.exists() and cpu != PI_5:
        with _making(path) as partial:
            shutil.copytree(_system(PI_5), partial, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
            for name, text in files.items():
                (partial / name).unlink()
                (partial / name).write_text(text)
    elif not path.exists():
        with _making(path) as partial:
            apt = partial / "apt"
            (apt / "lists" / "partial").mkdir(parents=True)
            (apt / "cache" / "archives" / "partial").mkdir(parents=True)
            (apt / "status").touch()
            options = {
                "APT::Architecture": "arm64",
                "APT::Architectures": "arm64",
                "APT::Install-Recommends": "false",
                "Acquire::Languages": "none",
                "Debug::NoLocking": "true",
                "Dir::State::lists": apt / "lists",
                "Dir::State::status": apt / "status",
                "Dir::Cache": apt / "cache",
            }
            command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
            _call([*command, "update"])
            _call([*command, "-y", "--download-only", "install", *PACKAGES])
            for package in sorted((apt / "cache" / "archives").glob("*.deb")):
                _call(["dpkg-deb", "-x", package, partial])
            shutil.rmtree(apt)
            for name, text in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_text(text)
    return path


def packages(kind: str) -> Path:
    """Folder of the aarch64 packages, as pip would install them there."""
    lists = {
        "litert": [(REQUIREMENTS / "requirements-board.txt", [])],
        "executorch": [
            (REQUIREMENTS / "requirements-board.txt", []),
            (REQUIREMENTS / "requirements-board-executorch.txt", ["--no-deps"]),
        ],
        "old": [(OLD, [])],
    }[kind]
    path = CACHE / f"{kind}-{_digest(*(file.read_text() for file, _ in lists))}"
    if not path.exists():
        with _making(path) as partial:
            for requirements, options in lists:
                command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]
                command += ["--require-hashes", "--only-binary", ":all:", "--target", partial, "--upgrade"]
                command += [*(f"--platform={wheel}" for wheel in WHEELS), "--implementation=cp", "--abi=cp311"]
                _call([*command, "--python-version=3.11", "--no-compile", "-r", requirements])
    return path


@contextmanager
def _making(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its name when it is complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if not path.exists():  # another session may have been faster
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _call(command: list) -> None:
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"the emulated board cannot be made here: {error}")
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        pytest.skip(f"the emulated board cannot be made here: {command[0]}: {lines[-1]}")


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]

"""A real ssh server on 127.0.0.1 that stands in for a board: its own keys, port, home folder and programs."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


class Board:
    """What the tests may touch of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.programs = folder, folder / "home", folder / "programs"
        self.known_hosts = folder / "known_hosts"
        for path in (self.home, self.programs, folder / "client"):
            path.mkdir(parents=True)
        self.program("python3", f'exec {sys.executable} "$@"')
        self.environment: dict[str, str] = {}
        self.port = _free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def program(self, name: str, script: str) -> None:
        """Give the board a program, a shell script."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def local_program(self, name: str, script: str) -> None:
        """Put a program before those of this machine, for what is under test."""
        path = self.folder / "client" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    @property
    def jobs(self) -> list[str]:
        """Names of the job folders that are there."""
        return sorted(path.name for path in (self.home / ".dap" / "jobs").iterdir())

    def new_host_key(self, known: bool = True) -> None:
        """Make a host key; whether this machine knows it."""
        key = self.folder / "host_key"
        for path in (key, key.with_suffix(".pub")):
            path.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        if known:
            public = key.with_suffix(".pub").read_text()
            self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}")

    def start(self) -> None:
        """Start the server with the keys and the environment as they are now."""
        variables = {"HOME": self.home, "PATH": f"{self.programs}:/usr/bin:/bin", **self.environment}
        config = self.folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host_key\nPidFile none\nUsePAM no\n"
            f"StrictModes no\nAuthorizedKeysFile {self.folder}/user_key.pub\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\nMaxStartups 100\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in variables.items())}\n"
        )
        with open(self.folder / "sshd.log", "ab") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=log, start_new_session=True)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        pytest.skip(f"sshd does not start here: {(self.folder / 'sshd.log').read_text().strip()}")

    def sessions(self) -> list[int]:
        """Processes of the server that serve a connection each."""
        assert self.process is not None
        found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(parent) for pid, parent in (line.split() for line in found.splitlines())}
        return [pid for pid in parents if pid != self.process.pid and self._is_below(pid, parents)]

    def _is_below(self, pid: int, parents: dict[int, int]) -> bool:
        while pid in parents and self.process is not None:
            pid = parents[pid]
            if pid == self.process.pid:
                return True
        return False

    def stop(self) -> None:
        """Stop the server."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None


@contextmanager
def running(folder: Path) -> Iterator[Board]:
    """A board that answers, whose `ssh` and `scp` come first in PATH. Skips where there is no server."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("no sshd here: apt install openssh-server openssh-client")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)
    board = Board(folder)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "user_key"], check=True)
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {board.known_hosts}\nGlobalKnownHostsFile /dev/null\n"
    )
    for name in ("ssh", "scp"):
        board.local_program(name, f'exec {shutil.which(name)} -F {folder}/ssh_config "$@"')
    board.new_host_key()
    board.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{folder / 'client'}:{os.environ['PATH']}")
            yield board
    finally:
        board.stop()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]

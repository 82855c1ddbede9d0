"""Files of Debian's archive for the phone apps' toolchains: each of a fixed SHA-256, from the mirror that apt is set up
for. Standard library only; nothing is installed.
"""

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

APT_HELPER = Path("/usr/lib/apt/apt-helper")


class Missing(Exception):
    """Something cannot be had here; the text says what, and what to do."""


@dataclass(frozen=True)
class File:
    """A file of Debian's archive."""

    path: str
    """below the mirror's address"""
    sha256: str


@dataclass(frozen=True)
class Debian:
    """What a toolchain is made from, and how its errors begin."""

    failing: str
    """what cannot be done without the files"""
    pins: str
    """where their versions stand"""

    def run(self, command: Sequence[str], what: str) -> str:
        """What a command prints. Raises Missing if it fails."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise Missing(f"{self.failing}: {what} does not start ({error})") from error
        if done.returncode:
            lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-10:])
            raise Missing(f"{self.failing}: {what} has failed\n{lines}")
        return done.stdout

    def mirrors(self) -> list[str]:
        """Addresses of the archives that apt is set up for, with / at the end. Raises Missing."""
        listed = self.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], "apt-get").splitlines()
        return list(dict.fromkeys(line.rstrip("/") + "/" for line in listed if line.strip()))

    def fetch(self, file: File, folder: Path, mirrors: Sequence[str]) -> Path:
        """The file in that folder, unless it is there from a time before. Raises Missing."""
        path = folder / file.path.rsplit("/", 1)[1]
        if path.exists() and sha256_of(path) == file.sha256:
            return path
        errors = ""
        for mirror in mirrors:
            path.unlink(missing_ok=True)
            address = mirror + file.path.replace("~", "%7e").replace("+", "%2b")
            done = subprocess.run(
                [str(APT_HELPER), "-o", "APT::Sandbox::User=root", "download-file", address, str(path),
                 f"SHA256:{file.sha256}"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode == 0 and path.exists() and sha256_of(path) == file.sha256:
                return path
            errors = (done.stderr.strip().splitlines() or [errors])[-1]
        raise Missing(
            f"{self.failing}: {path.name} cannot be had from the mirror that apt is set up for "
            f"({errors or 'it has none'}). Without a network try again with one; if the mirror has it no more, take "
            f"the version that it has and its SHA-256 into {self.pins}"
        )


def sha256_of(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

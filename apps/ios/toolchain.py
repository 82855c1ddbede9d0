"""A Swift compiler for Linux: fetched once, each file of a fixed version and SHA-256; it tests this app's logic.

    python3 apps/ios/toolchain.py                  # fetch it
    python3 apps/ios/toolchain.py swift test --package-path apps/ios/ClassifierKit ...

Needs Python, a Debian's apt with dpkg-deb, unshare, and the right to make a mount namespace (root, or a kernel that
gives users one); nothing is installed, all of it lies in ~/.cache/dap/swift (2.5 GB; 490 MB are fetched). The packages
come from the mirror that this machine's own apt is set up for. Exit status 3, and what is missing, where that cannot
be had. Xcode needs none of this: see docs/ios.md.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from pinned import Debian, File, Missing  # noqa: E402 (it lies beside the apps' folders)

DEBIAN = Debian("no Swift compiler can be had here", "apps/ios/toolchain.txt")
REPOSITORY = HERE.parents[1]
PINS = HERE / "toolchain.txt"
FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dap" / "swift"
RECIPE = 1
"""goes up when something is made otherwise from the same files"""
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
"""what Debian's own base system has"""
Say = Callable[[str], None]


def pins() -> list[File]:
    """Every file that is needed."""
    lines = [line.split() for line in PINS.read_text().splitlines() if line and not line.startswith("#")]
    return [File(path, sha256) for path, sha256 in lines]


def key() -> str:
    """Says which files, made how, lie in the folder; what a cache may go by."""
    return hashlib.sha256(f"{RECIPE} {PINS.read_text()}".encode()).hexdigest()


def is_there() -> bool:
    """Whether it has been fetched already."""
    stamp = FOLDER / "made"
    return (FOLDER / "root").is_dir() and stamp.exists() and stamp.read_text() == key()


def prepare(say: Say) -> None:
    """Fetch it unless it is there. Raises Missing."""
    _programs()
    if is_there():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_there():
            return
        say("fetching a Swift compiler: 490 MB, 2.5 GB unpacked; once")
        (FOLDER / "made").unlink(missing_ok=True)
        archives, root, partial = FOLDER / "archives", FOLDER / "root", FOLDER / "root.partial"
        for folder in (root, partial):
            shutil.rmtree(folder, ignore_errors=True)
        archives.mkdir(exist_ok=True)
        mirrors = DEBIAN.mirrors()
        for name, target in LINKS.items():
            (partial / target).mkdir(parents=True)
            (partial / name).symlink_to(target)
        for name in ("dev", "proc", "tmp", "etc"):
            (partial / name).mkdir()
        with ThreadPoolExecutor(4) as pool:
            paths = list(pool.map(lambda file: DEBIAN.fetch(file, archives, mirrors), pins()))
        say("unpacking it")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda path: DEBIAN.run(["dpkg-deb", "-x", str(path), str(partial)], "dpkg-deb"), paths))
        os.replace(partial, root)
        (FOLDER / "made").write_text(key())
        shutil.rmtree(archives)


def command(arguments: Sequence[str]) -> list[str]:
    """What runs a program of it: in the repository's folder, under the paths that are known here."""
    root, here = FOLDER / "root", Path.cwd()
    place = f"{root}{REPOSITORY}"
    script = (
        f'mkdir -p "{place}" && mount --rbind /dev "{root}/dev" && mount --rbind /proc "{root}/proc" && '
        f'mount --bind "{REPOSITORY}" "{place}" && '
        f"exec env -i HOME=/tmp PATH=/usr/libexec/swift/bin:/usr/bin LANG=C.UTF-8 "
        f'DAP_VECTORS="{REPOSITORY}/tests/vectors" "$(command -v unshare)" -R "{root}" -w "{here}" "$@"'
    )
    user = [] if os.geteuid() == 0 else ["-r"]
    return ["unshare", *user, "-m", "sh", "-c", script, "sh", *arguments]


def _programs() -> None:
    if os.uname().machine != "x86_64" or sys.platform != "linux":
        raise Missing("this Swift compiler is one for x86-64 Linux; on a Mac Xcode has its own, see docs/ios.md")
    for program, what in (
        ("dpkg-deb", "dpkg-deb, as Debian has it"),
        ("apt-get", "apt, set up for a Debian mirror"),
        ("unshare", "unshare (util-linux)"),
    ):
        if not shutil.which(program):
            raise Missing(f"{DEBIAN.failing}: {program} is missing. Install {what}")
    user = [] if os.geteuid() == 0 else ["-r"]
    done = subprocess.run(["unshare", *user, "-m", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{DEBIAN.failing}: no mount namespace ({done.stderr.strip()}); try as root")


if __name__ == "__main__":
    try:
        prepare(lambda text: print(text, file=sys.stderr))
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(3)
    if sys.argv[1:]:
        os.execvp("unshare", command(sys.argv[1:]))
    print(FOLDER)

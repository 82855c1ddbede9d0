"""A browser as a device: a headless Chromium on this machine, or whatever opens the page in the local network."""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from targets.devices.browser_server import Server
from targets.devices.job import Description, DeviceError, DeviceResult, Job, Progress, result_of, write_job
from targets.devices.measure import describe
from targets.latency import conditions, invalid

WEB = Path(__file__).parents[2] / "apps" / "web"
"""the web runner's sources; in dist/ what is built from them"""
DEVICES = ("chromium", "lan")
PROGRAMS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
PHONE_S = 300.0
"""how long a phone is waited for"""

Say = Callable[[str], None]


class Browser:
    """A browser that has been found, or has opened the page."""

    def __init__(self, name: str, description: Description, program: str | None, server: Server | None) -> None:
        """program: of the Chromium on this machine;  server: that a browser elsewhere is connected to; one of them"""
        self.name = name
        self.description = description
        self._program = program
        self._server = server

    @staticmethod
    def connect(device: str | None, say: Say) -> "Browser | None":
        """The browser; None, and `say` is told why, if this machine has none or cannot build the page.

        device: "chromium", a headless one on this machine (the default), or "lan", any that opens the page in the local
                network: its address is told and shown as a QR code
        Raises ValueError for any other device, DeviceError if no phone has opened the page in time.
        """
        device = device or DEVICES[0]
        if device not in DEVICES:
            raise ValueError(f"DEVICE={device} is no browser: DEVICE is {' or '.join(DEVICES)}, or adb:SERIAL")
        program = version = None
        if device == "chromium":
            program = _find_chromium()
            version = program and _version(program)
            if not version:
                say("no Chromium: install chromium or google-chrome, or name one in CHROME_PATH; DEVICE=lan needs none")
                return None
        problem = build(say)
        if problem:
            say(problem)
            return None
        if program and version:
            return Browser("Chromium", {**describe(), "device": version}, program, None)
        server = Server(WEB / "dist", "0.0.0.0")
        try:
            description = _wait_for_phone(server, say)
        except BaseException:
            server.close()
            raise
        return Browser(description["device"], description, None, server)

    def run(self, job: Job, folder: Path, progress: Progress) -> DeviceResult:
        """Do the job whose files are in `folder`. Raises DeviceError."""
        job = job.without_photo()
        write_job(job, folder)
        if self._server:
            return result_of(self._server.answer_to(job, folder, progress, lambda: None), job)
        assert self._program is not None, "a browser is here or elsewhere"
        server = Server(WEB / "dist", "127.0.0.1")
        try:
            before = conditions()
            with _chromium(self._program, server.url("127.0.0.1")) as check:
                result = result_of(server.answer_to(job, folder, progress, check), job)
        finally:
            server.close()
        # The browser knows less of this machine than this program.
        latency = result.latency
        if self.description["emulated"]:
            why = f"{self.description['emulated']} emulates this processor"
            latency = {file: invalid(found, why) for file, found in latency.items()}
        return replace(result, device=self.description, before=before, after=conditions(), latency=latency)

    def close(self) -> None:
        """Let a phone's page go; without it, it goes with this process."""
        if self._server:
            self._server.close()


def build(say: Say) -> str | None:
    """Build the runner unless that is newer than its sources. Returns what is in the way, None if nothing is."""
    handle = os.open(WEB, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # another process may be building it
        # written last, and removed by the next build before anything else: what broke off does not count as built
        built = WEB / "dist" / ".built"
        sources = [path for path in WEB.iterdir() if path.is_file()]
        sources += [path for folder in ("src", "public") for path in (WEB / folder).rglob("*") if path.is_file()]
        model = WEB / "public" / "model"  # put beside the pages by whoever serves it
        newest = max(path.stat().st_mtime for path in sources if model not in path.parents)
        if built.exists() and built.stat().st_mtime >= newest:
            return None
        built.unlink(missing_ok=True)
        npm = shutil.which("npm")
        if not npm:
            return "the page for browsers is not built: install Node.js 20.19 or newer, with npm"
        say("building the page for browsers (apps/web)")
        for command in ([npm, "ci"], [npm, "run", "build"]):
            done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                lines = (done.stdout + done.stderr).strip().splitlines()[-10:]
                told = "\n".join(["the page for browsers could not be built; it needs Node.js 20.19 or newer", *lines])
                return f"{told}\n(`{' '.join(['npm', *command[1:]])}` in {WEB})"
        built.touch()
        return None
    finally:
        os.close(handle)


def _wait_for_phone(server: Server, say: Say) -> Description:
    url = server.url(_lan_address())
    say("Open this page on the phone, in the same network, and leave it in front:")
    for line in _qr_code(url):
        say(line)
    say(url)
    description = server.wait_for_page(PHONE_S)
    if description is None:
        raise DeviceError(
            f"no browser has opened {url} within {PHONE_S / 60:g} minutes: is the phone in the same network, and does "
            "this machine's firewall let it in?"
        )
    say(f"connected: {description['device']}, {description['os']}")
    return description


def _lan_address() -> str:
    """This machine's address in the network that its traffic takes. Raises DeviceError without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation; a UDP socket sends nothing by this
            return probe.getsockname()[0]
        except OSError as error:
            raise DeviceError(f"this machine is in no network that a phone could reach it in ({error})") from error


def _qr_code(text: str) -> list[str]:
    """Lines for a dark terminal, two rows of modules each; phones read the inverse too."""
    # Imported here: nobody else needs it, and the boards that get files of this folder do not have it.
    import segno

    rows = [[not dark for dark in row] for row in segno.make(text, error="l", micro=False).matrix_iter(border=2)]
    if len(rows) % 2:
        rows.append([False] * len(rows[0]))
    blocks = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
    return [
        "".join(blocks[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    ]


def _find_chromium() -> str | None:
    """The program; CHROME_PATH names another one. Raises ValueError if that is none."""
    named = os.environ.get("CHROME_PATH")
    if named and not shutil.which(named):
        raise ValueError(f"CHROME_PATH={named} is no program")
    return named or next((found for program in PROGRAMS if (found := shutil.which(program))), None)


def _version(program: str) -> str | None:
    """For example Chromium 150.0.7871.100; None for a program that does not start."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
        found = re.search(r"[A-Z][\w ]* [\d.]+\d", done.stdout)
        return found.group() if found and done.returncode == 0 else None
    return None


@contextlib.contextmanager
def _chromium(program: str, url: str) -> Iterator[Callable[[], None]]:
    """A headless Chromium with the page open, and nothing else of it left behind.

    Yields a function that raises DeviceError once the browser has ended.
    """
    with tempfile.TemporaryDirectory(prefix="dap-chromium-", ignore_cleanup_errors=True) as profile:
        log = Path(profile) / "stderr"
        # It ends when its debugging pipe closes (file descriptors 3 and 4), so even if this process is killed.
        to_browser, from_browser = os.pipe(), os.pipe()
        shell = f'exec "$0" "$@" 3</dev/fd/{to_browser[0]} 4>/dev/fd/{from_browser[1]}'
        command = ["sh", "-c", shell, program, *_flags(), f"--user-data-dir={profile}", url]
        try:
            with open(log, "wb") as stderr:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=(to_browser[0], from_browser[1]),
                    start_new_session=True,  # Ctrl-C is for this process; it ends the browser
                )
        finally:
            os.close(to_browser[0])
            os.close(from_browser[1])

        def check() -> None:
            if process.poll() is not None:
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:]
                raise DeviceError("\n".join([f"Chromium has ended (exit code {process.returncode})", *lines]))

        try:
            yield check
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
            os.close(to_browser[1])
            os.close(from_browser[0])


def _flags() -> list[str]:
    flags = [
        "--headless",
        "--remote-debugging-pipe",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    return [*flags, "--no-sandbox"] if os.geteuid() == 0 else flags  # root cannot have the sandbox

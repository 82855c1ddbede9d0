"""A small page: the live picture, what it shows, how long that takes, how warm the board is. Standard library only."""

import contextlib
import errno
import hmac
import ipaddress
import json
import math
import re
import secrets
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from classifier import pictures
from classifier.model import Classifier, installed
from targets import serving
from targets.latency import conditions

PAGE = Path(__file__).with_name("page.html")
RECENT = 256
"""inferences that the shown percentiles are of"""
UNWATCHED_S = 5.0
"""without a look at the page for so long, the camera and the processor rest"""
AGAIN_S = 5.0
"""until a camera that failed is tried again"""
END_S = 10.0
"""that the end waits for an inference; the process must not go while a runtime computes in it"""
LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Watch:
    """Looks at the camera's pictures, one after the other, while somebody looks at the page."""

    def __init__(self, classifier: Classifier, frames: Callable[[], Generator[np.ndarray, None, None]]) -> None:
        self.classifier, self._frames = classifier, frames
        self._changed = threading.Condition()
        self._number, self._jpeg = 0, b""
        self._state: dict[str, Any] = {}
        self._looked = -math.inf
        self._ended = False
        # of the thread that runs
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._begun: deque[float] = deque(maxlen=32)
        self._conditions, self._asked = conditions(), time.monotonic()

    def run(self) -> None:
        """Until told to end, in a thread of its own: open the camera on a look, close it without; try again what has
        failed.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._watched())
            if self._ended:
                return
            self._begun.clear()
            try:
                with contextlib.closing(self._frames()) as frames:
                    for pixels in frames:
                        self._show(pixels)
                        if self._ended or not self._watched():
                            self._become(b"", {})  # the next one who looks is not to see an old picture
                            break
            except Exception as error:  # cameras, runtimes and the system fail in any way, and the page has to say it
                failed = str(error) or type(error).__name__
                print(f"error: {failed}", file=sys.stderr)
                self._become(b"", {"failed": failed})
                with self._changed:
                    self._changed.wait_for(lambda: self._ended, AGAIN_S)

    def end(self) -> None:
        """Have `run` return behind the picture that it has."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _watched(self) -> bool:
        return time.monotonic() - self._looked < UNWATCHED_S

    def _show(self, pixels: np.ndarray) -> None:
        answer = self.classifier(pixels)
        now = time.monotonic()
        self._recent.append(answer.milliseconds)
        self._begun.append(now)
        if now - self._asked >= 1:
            self._conditions, self._asked = conditions(), now
        p50, p90 = (float(value) for value in np.percentile(self._recent, [50, 90]))
        span = self._begun[-1] - self._begun[0]
        state = {
            "top": [{"label": label, "probability": share} for label, share in answer.top],
            "p50_ms": p50,
            "p90_ms": p90,
            "inferences": len(self._recent),
            "pictures_per_s": (len(self._begun) - 1) / span if span else None,
            **self._conditions,
        }
        self._become(pictures.preview(pixels), state)

    def _become(self, jpeg: bytes, state: dict[str, Any]) -> None:
        with self._changed:
            self._number, self._jpeg, self._state = self._number + 1, jpeg, state
            self._changed.notify_all()

    def look(self, after: int) -> tuple[int, bytes, dict[str, Any]]:
        """The first news after number `after`, waited for: its number, a JPEG, and what is to be said of it.

        The number stays `after` if nothing new came in time. The JPEG is empty if there is no picture: the camera
        failed, which the state tells, or is being opened.
        """
        with self._changed:
            self._looked = time.monotonic()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._number > after, timeout=2.0)
            state = {"number": self._number, "failed": None, "warning": self.classifier.warning, **self._state}
            return self._number, self._jpeg, state


def about(classifier: Classifier) -> dict[str, Any]:
    """The model's card: what the manifest says of it, and what runs it here."""
    described = classifier.manifest
    entry = next(file for file in described.files if file.file == classifier.file)
    return {
        "model": described.model,
        "classes": list(described.labels),
        "file": entry.file,
        "precision": entry.precision,
        "size_bytes": entry.size_bytes,
        "parameters": described.params,
        "parameters_dense": described.params_dense,
        "runtime": f"{classifier.program.runtime} {classifier.program.runtime_version}",
        "runtimes_installed": installed(),
        "threads": classifier.threads,
        "golden_error": classifier.golden_error,
        "warning": classifier.warning,
        "measured": entry.measured,
    }


def serve(
    classifier: Classifier, frames: Callable[[], Generator[np.ndarray, None, None]], host: str, port: int
) -> None:
    """Serve the page until interrupted. On any address but this machine's own, only with a token that is printed.

    frames: opens the camera
    Raises ValueError if the address cannot be bound.
    """
    watch = Watch(classifier, frames)
    try:
        server = Server((host, port), watch, None if _is_own(host) else secrets.token_urlsafe(16))
    except (OSError, UnicodeError) as error:
        taken = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        todo = "try another --port" if taken else "--host is this machine's own address, or 0.0.0.0 for all it has"
        reason = error.strerror if isinstance(error, OSError) else "this is no name"
        raise ValueError(f"{host}:{port} cannot be served ({reason}); {todo}") from error
    watching = threading.Thread(target=watch.run, daemon=True)
    watching.start()
    print(f"open {server.address()}", flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()
        watch.end()
        watching.join(END_S)


class Server(serving.HttpServer):
    """The page and what it asks for."""

    def __init__(self, address: tuple[str, int], watch: Watch, token: str | None) -> None:
        self.watch, self.token = watch, token
        super().__init__(address, Handler)
        self.cookie = f"classifier-{self.server_address[1]}"  # browsers share cookies between the ports of a host

    def address(self) -> str:
        """What to open in a browser."""
        host, port = str(self.server_address[0]), self.server_address[1]
        if self.token is None:
            return f"http://{host}:{port}/"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            if ipaddress.ip_address(host).is_unspecified:
                try:  # nothing is sent: it only asks which of our addresses the network would see
                    probe.connect(("192.0.2.1", 9))
                    host = probe.getsockname()[0]
                except OSError:
                    host = socket.gethostname()
        return f"http://{host}:{port}/?token={self.token}"


class Handler(serving.Handler):
    """One request."""

    server: Server

    def do_GET(self) -> None:  # noqa: N802 (how the base class calls it)
        """The page, its state, its picture."""
        try:
            parts = urlsplit(self.path)
        except ValueError:
            self._send(400, b"this is no address\n", "text/plain")
            return
        asked = parse_qs(parts.query)
        if not self._ours(parts.path):
            self._send(403, b"this is for the page of this server alone\n", "text/plain")
        elif not self._allowed(asked.get("token", [""])[0]):
            self._send(403, b"open the address with the token that was printed at start\n", "text/plain")
        elif parts.path == "/":
            self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif parts.path == "/about":
            self._json(about(self.server.watch.classifier))
        elif parts.path == "/state":
            after = asked.get("after", ["0"])[0]
            if re.fullmatch("[0-9]{1,15}", after):
                self._json(self.server.watch.look(int(after))[2])
            else:
                self._send(400, b"after is the number of a picture\n", "text/plain")
        elif parts.path == "/picture":
            self._stream()
        else:
            self._send(404, b"there is no such page\n", "text/plain")

    def _allowed(self, token: str) -> bool:
        if self.server.token is None:  # a page elsewhere that gives this machine a name of its own is not let in
            name = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::\d*)?", self.headers.get("Host") or "")
            return name is not None and name[1].lower() in LOCAL
        # not SimpleCookie, which takes none of the cookies if another port's page has set one that it cannot read
        cookies = [part.strip().partition("=") for part in self.headers.get("Cookie", "").split(";")]
        found = [token, *(value for name, _, value in cookies if name == self.server.cookie)]
        return any(hmac.compare_digest(self.server.token.encode(), one.encode()) for one in found)

    def _ours(self, path: str) -> bool:
        """Whether this server's own page asks, or somebody opens that: no other page is to start the camera."""
        site = self.headers.get("Sec-Fetch-Site")
        if site is not None:
            opened = path == "/" and self.headers.get("Sec-Fetch-Mode") == "navigate"  # by a link elsewhere
            return site in ("same-origin", "none") or opened
        told = self.headers.get("Origin") or self.headers.get("Referer")  # older browsers
        if not told or path == "/":
            return True
        try:
            return urlsplit(told).netloc.lower() == (self.headers.get("Host") or "").lower()
        except ValueError:
            return False

    def _stream(self) -> None:
        """JPEGs one after the other, as every browser shows them in an <img>."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        seen = 0
        # a browser says nothing more; its end is what can be read, and without pictures nothing else tells of it
        while not select.select([self.connection], [], [], 0)[0]:
            number, jpeg, _ = self.server.watch.look(seen)
            if number > seen and jpeg:
                self.allow_bytes(len(jpeg))
                self.wfile.write(b"--next\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n")
            seen = number

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content, allow_nan=False).encode(), "application/json")

    def _send(self, code: int, content: bytes, kind: str) -> None:
        if code == 403:
            self.close_connection = True
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", "default-src 'self'; style-src 'unsafe-inline'; "
                         "script-src 'unsafe-inline'; frame-ancestors 'none'")  # fmt: skip
        if self.server.token and code == 200:
            cookie = f"{self.server.cookie}={self.server.token}"
            self.send_header("Set-Cookie", f"{cookie}; HttpOnly; SameSite=Strict; Path=/")
        self.end_headers()
        self.wfile.write(content)


def _is_own(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

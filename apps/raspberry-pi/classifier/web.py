"""A small page: the live picture, what it shows, how long that takes, how warm the board is. Standard library only."""

import hmac
import ipaddress
import json
import secrets
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from classifier import pictures
from classifier.model import Classifier, installed
from targets.latency import conditions

PAGE = Path(__file__).with_name("page.html")
RECENT = 256
"""inferences that the shown percentiles are of"""
UNWATCHED_S = 5.0
"""without a look at the page for so long, the camera and the processor rest"""
LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Watch:
    """Looks at the camera's pictures, one after the other, while somebody looks at the page."""

    def __init__(self, classifier: Classifier, frames: Iterator[np.ndarray]) -> None:
        self.classifier, self._frames = classifier, frames
        self._changed = threading.Condition()
        self._number, self._jpeg = 0, b""
        self._state: dict[str, Any] = {"number": 0}
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._begun: deque[float] = deque(maxlen=32)
        self._looked = 0.0
        self.failed: str | None = None

    def run(self) -> None:
        """Until the camera fails; to be run in a thread of its own."""
        try:
            for pixels in self._frames:
                while time.monotonic() - self._looked > UNWATCHED_S:
                    time.sleep(0.1)
                    self._begun.clear()
                self._show(pixels)
        except ValueError as error:
            with self._changed:
                self.failed = str(error)
                self._changed.notify_all()
            print(f"error: {error}", file=sys.stderr)

    def _show(self, pixels: np.ndarray) -> None:
        answer = self.classifier(pixels)
        jpeg, self._number = pictures.preview(pixels), self._number + 1
        self._recent.append(answer.milliseconds)
        self._begun.append(time.monotonic())
        p50, p90 = (float(value) for value in np.percentile(self._recent, [50, 90]))
        span = self._begun[-1] - self._begun[0]
        with self._changed:
            self._jpeg = jpeg
            self._state = {
                "number": self._number,
                "top": [{"label": label, "probability": share} for label, share in answer.top],
                "p50_ms": p50,
                "p90_ms": p90,
                "inferences": len(self._recent),
                "pictures_per_s": (len(self._begun) - 1) / span if span else None,
                **conditions(),
            }
            self._changed.notify_all()

    def look(self, after: int) -> tuple[int, bytes, dict[str, Any]]:
        """The first picture after number `after`, waited for: its number, a JPEG, and what is to be said of it.

        The number stays `after` if nothing new came in time.
        """
        self._looked = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._number > after or self.failed, timeout=2.0)
            state = {**self._state, "failed": self.failed, "warning": self.classifier.warning}
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


def serve(classifier: Classifier, frames: Iterator[np.ndarray], host: str, port: int) -> None:
    """Serve the page until interrupted. On any address but this machine's own, only with a token that is printed.

    Raises ValueError if the address cannot be bound.
    """
    watch = Watch(classifier, frames)
    try:
        server = Server((host, port), watch, None if _is_own(host) else secrets.token_urlsafe(16))
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be served ({error.strerror}); try another --port") from error
    threading.Thread(target=watch.run, daemon=True).start()
    print(f"open {server.address()}", flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()


class Server(ThreadingHTTPServer):
    """The page and what it asks for."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], watch: Watch, token: str | None) -> None:
        self.watch, self.token = watch, token
        super().__init__(address, Handler)

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


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, its state, its picture."""
        parts = urlsplit(self.path)
        if not self._allowed(parse_qs(parts.query).get("token", [""])[0]):
            self._send(403, b"open the address with the token that was printed at start\n", "text/plain")
        elif parts.path == "/":
            self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif parts.path == "/about":
            self._json(about(self.server.watch.classifier))
        elif parts.path == "/state":
            after = parse_qs(parts.query).get("after", ["0"])[0]
            self._json(self.server.watch.look(int(after) if after.isdigit() else 0)[2])
        elif parts.path == "/picture":
            self._stream()
        else:
            self._send(404, b"there is no such page\n", "text/plain")

    def _allowed(self, token: str) -> bool:
        if self.server.token is None:  # a page elsewhere that gives this machine a name of its own is not let in
            name = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            return name in LOCAL
        kept = SimpleCookie(self.headers.get("Cookie", "")).get("token")
        return any(hmac.compare_digest(self.server.token, one) for one in (token, kept.value if kept else ""))

    def _stream(self) -> None:
        """JPEGs one after the other, as every browser shows them in an <img>."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        seen = 0
        try:
            while not self.server.watch.failed:
                number, jpeg, _ = self.server.watch.look(seen)
                if number > seen:
                    self.wfile.write(b"--next\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n")
                    seen = number
        except (BrokenPipeError, ConnectionResetError):
            return

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), "application/json")

    def _send(self, code: int, content: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'self'; style-src 'unsafe-inline'; "
                         "script-src 'unsafe-inline'; frame-ancestors 'none'")  # fmt: skip
        if self.server.token and code == 200:
            self.send_header("Set-Cookie", f"token={self.server.token}; HttpOnly; SameSite=Strict; Path=/")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests come several times a second, and the token stands in some."""


def _is_own(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

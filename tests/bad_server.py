"""A web server on this machine with everything that can be wrong with one."""

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `files`; each fault is an attribute."""

    def __init__(self) -> None:
        self.port = 0
        self.files: dict[str, bytes] = {}
        self.version: str | None = '"1"'  # an ETag, or a date
        self.ranges = True
        self.lengths = True
        self.cuts: list[int] = []  # bytes of body after which an answer breaks off; the last one stays
        self.statuses: list[int] = []  # instead of an answer, one each
        self.stalls = 0  # so many requests are not answered
        self.asked: list[str] = []  # "name range" of each request
        self.sent = 0  # bytes of bodies
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name, asked = request.path.removeprefix("/"), request.headers["Range"]
        self.asked.append(f"{name} {asked}" if asked else name)
        if self.stalls:
            self.stalls -= 1
            self.over.wait(5)
        elif self.statuses:
            request.send_error(self.statuses.pop(0))
        elif name.startswith("moved/"):
            request.send_response(302)
            request.send_header("Location", f"{self.url}/{name.removeprefix('moved/')}")
            request.end_headers()
        else:
            known = self.ranges and asked and request.headers["If-Range"] == self.version
            self._send(request, self.files[name], int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if known else 0)

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, start: int) -> None:
        if start and start >= len(body):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.version:
            request.send_header("ETag" if '"' in self.version else "Last-Modified", self.version)
        if self.lengths:
            request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        cut = (self.cuts.pop(0) if len(self.cuts) > 1 else self.cuts[0]) if self.cuts else len(body)
        piece = body[start : start + cut]
        self.sent += len(piece)
        with contextlib.suppress(OSError):  # a client may have had enough
            request.wfile.write(piece)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        server.port = httpd.server_port
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        httpd.shutdown()
        thread.join()

"""The web server of a browser that measures: the runner's pages, one job's files at a time, and what the page answers.

Everything lies below a token that cannot be guessed: in a network others can reach the port too.
"""

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from targets import strict
from targets.devices.job import JOB, Description, DeviceError, Job, Progress
from targets.serving import Handler, HttpServer

SILENT_S = 60.0
"""a page that has not been heard of for that long is given up; it says something every 5 s"""
STALLED_S = 300.0
"""likewise one that gets no further: the slowest step is one inference, or compiling a model"""
TAKEOVER_S = 10.0
"""after so long a silence another page of the same device takes the first one's place"""
ATTEMPTS = 3
"""a page that is loaded again begins its job again; a browser that always runs out of memory must not do so for ever"""
MAX_BYTES = strict.MAX_BYTES
"""of a result: 256 images of 1,000 classes and 60 s of latencies are about 8 MB"""

MIME = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
HEADERS = {
    # these two let the page have threads and a finer clock, where the connection is secure (or this machine's own)
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
RUNNER = ("runner.html", "assets", "litert")
"""what of the built pages belongs to the runner; a model that was put beside them does not"""
DESCRIPTION = tuple(Description.__annotations__)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """How far the page is."""

    job: str
    what: str
    done: float
    total: float

    def __post_init__(self) -> None:
        if not 0 <= self.done <= self.total or len(self.what) > 40:
            raise ValueError("progress is what, done and total, in few words")


@dataclass(frozen=True, kw_only=True)
class _Failed:
    """Why the page cannot do its job."""

    job: str
    error: str


class Refusal(Exception):
    """A request that is not answered as asked."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Server:
    """Serves from its making until `close`. Jobs are given to one page, the first that asks."""

    def __init__(self, pages: Path, address: str) -> None:
        """pages: folder of the built runner;  address: to listen at; the port is any that is free"""
        # Only what is listed here is served: no path of a request reaches the file system.
        built = {
            path.relative_to(pages).as_posix(): path
            for path in pages.rglob("*")
            if path.is_file() and path.resolve() == pages.resolve() / path.relative_to(pages)  # links are not followed
        }
        self.pages = {name: path for name, path in built.items() if name.split("/")[0] in RUNNER}
        self.token = secrets.token_urlsafe(12)
        self.description: Description | None = None
        """of the page's device, once it has asked"""
        self._changed = threading.Condition()
        self._closed = False
        self._page: str | None = None
        self._job: Job | None = None
        self._folder = Path()
        self._heard_at = self._moved_at = time.monotonic()
        self._attempts = 0
        self._progress: tuple[str, int, int] | None = None
        self._answer: bytes | None = None
        self._error: str | None = None
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = HttpServer((address, 0), handler)
        threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True).start()

    @property
    def port(self) -> int:
        """That it listens at."""
        return self._http.server_port

    def url(self, host: str) -> str:
        """Where the page is, for a browser that reaches this machine as `host`."""
        return f"http://{host}:{self.port}/{self.token}/runner.html"

    def close(self) -> None:
        """Take no connection any more; the page, whose connection lives on, is told so."""
        self._closed = True
        self._http.shutdown()
        self._http.server_close()

    def wait_for_page(self, seconds: float) -> Description | None:
        """The description of the first page's device; None if there is none in that time."""
        with self._changed:
            self._changed.wait_for(lambda: self.description is not None, seconds)
            return self.description

    def answer_to(self, job: Job, folder: Path, progress: Progress, check: Callable[[], None]) -> bytes:
        """Give the job to the page; what it answers, unread.

        check: called four times a second, raises DeviceError if the browser is known to be gone
        Raises DeviceError too for what the page reports, for one that is not heard of or gets no further.
        """
        with self._changed:
            self._job, self._folder, self._answer, self._error, self._progress = job, folder, None, None, None
            self._attempts, self._heard_at = 0, time.monotonic()
            self._moved_at = self._heard_at
        shown = None
        try:
            while True:
                with self._changed:
                    self._changed.wait(0.25)
                    answer, error, moved = self._answer, self._error, self._progress
                    silent_s, stalled_s = time.monotonic() - self._heard_at, time.monotonic() - self._moved_at
                if answer is not None:
                    return answer
                if error is not None:
                    raise DeviceError(f"the browser reports: {error}")
                check()
                if moved is not None and moved != shown:
                    shown = moved
                    progress(*moved)
                if silent_s > SILENT_S:
                    raise DeviceError(f"nothing was heard of the browser for {SILENT_S:g} s: keep its page in front")
                if stalled_s > STALLED_S:
                    raise DeviceError(f"the browser's page gets no further for {STALLED_S:g} s")
        finally:
            with self._changed:
                self._job = None

    def file(self, path: str) -> tuple[Path, str]:
        """The file behind a path below the token, and how long it may be cached. Raises Refusal."""
        with self._changed:
            job, folder = self._job, self._folder
        match path.split("/"):
            case ["job", id, name] if job and id == job.id and name in (JOB, *job.sha256):
                return folder / name, "no-store"
        if path not in self.pages:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such file")
        return self.pages[path], "private, max-age=3600"  # no other version ever has this token

    def post(self, name: str, page: str, body: bytes) -> dict[str, Any]:
        """What the page says or asks. Returns the answer. Raises Refusal."""
        content = _object(body)
        with self._changed:
            if self._closed:
                raise Refusal(HTTPStatus.GONE, "The computer has ended the session.")
            if name == "hello":
                self._hello(page, content.get("device"))
            elif page != self._page:
                raise Refusal(HTTPStatus.CONFLICT, "Another browser is connected. Close this page.")
            self._heard_at = time.monotonic()
            answer = {"job": self._next()} if name == "next" else {}
            if name in ("progress", "error", "result"):
                self._take(name, content, body)
            elif name not in ("hello", "next"):
                raise Refusal(HTTPStatus.NOT_FOUND, "there is no such request")
            self._changed.notify_all()
        return answer

    def _hello(self, page: str, device: Any) -> None:
        told = {key: device[key] for key in DESCRIPTION if key in device} if isinstance(device, dict) else device
        description: Description = _parsed(Description, told)
        if not description["device"]:
            raise Refusal(HTTPStatus.BAD_REQUEST, "the page does not say what device it is on")
        if any(len(str(value)) > 200 for value in description.values()):
            raise Refusal(HTTPStatus.BAD_REQUEST, "the device's description is too long")
        if self._page not in (None, page):
            silent_s = time.monotonic() - self._heard_at
            if silent_s < TAKEOVER_S or description != self.description:
                raise Refusal(HTTPStatus.CONFLICT, "Another browser is connected. Close this page.")
        self._page, self.description = page, description

    def _next(self) -> str | None:
        if self._job is None or self._answer is not None or self._error is not None:
            return None
        self._attempts += 1
        if self._attempts > ATTEMPTS:
            self._error = f"the page was loaded {ATTEMPTS} times and never finished; is the device short of memory?"
            return None
        return self._job.id

    def _take(self, name: str, content: dict[str, Any], body: bytes) -> None:
        if self._job is None or content.get("job") != self._job.id:
            raise Refusal(HTTPStatus.CONFLICT, "The computer does not wait for this any more.")
        if name == "result":
            self._answer = body
        elif name == "error":
            self._error = _parsed(_Failed, content).error
        else:
            step: _Step = _parsed(_Step, content)
            moved = (step.what, int(step.done), int(step.total))
            if moved != self._progress:
                self._progress, self._moved_at = moved, time.monotonic()


class _Handler(Handler):
    owner: Server

    def do_GET(self) -> None:  # noqa: N802 (how the base class calls it)
        try:
            path, cache = self.owner.file(self._below_token())
            try:
                file = open(path, "rb")  # noqa: SIM115 (closed below: only the opening is watched)
            except FileNotFoundError as error:  # of a job that has ended meanwhile
                raise Refusal(HTTPStatus.NOT_FOUND, "there is no such file any more") from error
            with file:
                size = os.fstat(file.fileno()).st_size
                self.allow_bytes(size)
                self._head(HTTPStatus.OK, MIME.get(path.suffix, "application/octet-stream"), size, cache)
                shutil.copyfileobj(file, self.wfile, 1 << 20)
        except Refusal as refusal:
            self._refuse(refusal)

    def do_POST(self) -> None:  # noqa: N802 (likewise)
        try:
            self.close_connection = True  # unless the whole body is read, what follows it is no request
            name = self._below_token().removeprefix("api/")
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise Refusal(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed")
            if int(length) > MAX_BYTES:
                raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BYTES:,} bytes are taken")
            self.allow_bytes(int(length))
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                return  # the page has gone; it says it again if it comes back
            self.close_connection = False
            self.allow_bytes(0)
            answer = json.dumps(self.owner.post(name, self.headers.get("X-Page", ""), body)).encode()
            self._head(HTTPStatus.OK, MIME[".json"], len(answer), "no-store")
            self.wfile.write(answer)
        except Refusal as refusal:
            self._refuse(refusal)

    def _below_token(self) -> str:
        """The request's path below the token. Raises Refusal for any other."""
        token, _, path = self.path.split("?")[0].removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.owner.token.encode()):
            raise Refusal(HTTPStatus.FORBIDDEN, "This address is not valid (any more). Open the one that is shown.")
        return path

    def _head(self, status: HTTPStatus, mime: str, size: int, cache: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": mime, "Content-Length": str(size), "Cache-Control": cache, **HEADERS}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, refusal: Refusal) -> None:
        if refusal.status == HTTPStatus.FORBIDDEN:
            self.close_connection = True  # whoever has no token has no use for it
        text = refusal.text.encode()
        self._head(refusal.status, "text/plain; charset=utf-8", len(text), "no-store")
        self.wfile.write(text)


def _object(body: bytes) -> dict[str, Any]:
    try:
        return strict.parse_json(body, dict[str, Any], "the body", source="device")
    except ValueError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error


def _parsed(kind: Any, values: Any) -> Any:
    try:
        return strict.parse(kind, values, "the body", source="device")
    except ValueError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error

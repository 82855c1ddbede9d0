"""The built web app on an address of this machine, as any static web server would serve it, and nothing else."""

import re
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

from targets.devices import browser_server
from targets.devices.browser_server import HttpServer

HEADERS = {
    **browser_server.HEADERS,
    "Cache-Control": "no-cache",  # ask whether it is still the same: a deployment replaces files under their names
}


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    extensions_map = {  # noqa: RUF012 (the base class's own; this machine's table of types is not to be relied on)
        **SimpleHTTPRequestHandler.extensions_map,
        **browser_server.MIME,
        ".tflite": "application/octet-stream",
    }

    def __init__(self, *arguments: Any, policy: str, **options: Any) -> None:
        self._policy = policy
        super().__init__(*arguments, **options)

    def end_headers(self) -> None:
        # the page has its policy in itself; its workers are bound by this alone
        for name, value in {**HEADERS, "Content-Security-Policy": self._policy}.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """No folder is listed."""
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


def server(folder: Path, host: str, port: int) -> HttpServer:
    """A server of the files in `folder`, bound and not yet serving. Port 0: any that is free.

    Raises ValueError if the address cannot be bound.
    """
    found = re.search(r'"Content-Security-Policy"\s+content="([^"]+)"', (folder / "index.html").read_text())
    assert found, "the built page says what it may load"
    try:
        return HttpServer((host, port), partial(_Handler, directory=str(folder), policy=found.group(1)))
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be served ({error.strerror or error}); try another PORT") from error

"""The built web app on an address of this machine, as any static web server would serve it, and nothing else."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HEADERS = {
    # these two let the page have threads and a finer clock, where the connection is secure (or this machine's own)
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # ask whether it is still the same: a deployment replaces files under their names
}


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    extensions_map = {  # noqa: RUF012 (the base class's own; this machine's table of types is not to be relied on)
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".webmanifest": "application/manifest+json",
        ".tflite": "application/octet-stream",
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """No folder is listed."""
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


def server(folder: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server of the files in `folder`, bound and not yet serving. Port 0: any that is free.

    Raises ValueError if the address cannot be bound.
    """
    try:
        return ThreadingHTTPServer((host, port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be served ({error.strerror or error}); try another PORT") from error

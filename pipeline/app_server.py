"""The built web app on an address of this machine, as any static web server would serve it, and nothing else."""

import os
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

from targets.devices import browser_server
from targets.serving import Handler, HttpServer

HEADERS = {
    **browser_server.HEADERS,
    "Cache-Control": "no-cache",  # ask whether it is still the same: a deployment replaces files under their names
}


class _Handler(Handler, SimpleHTTPRequestHandler):
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

    def send_head(self) -> Any:
        """The file that was asked for; links are not followed, wherever they lead."""
        path = Path(self.translate_path(self.path))
        if any(file.exists() and file.resolve() != file for file in (path, path / "index.html")):
            self.send_error(404)
            return None
        return super().send_head()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send a file."""
        self.allow_bytes(os.fstat(source.fileno()).st_size)
        super().copyfile(source, outputfile)

    def list_directory(self, path: Any) -> None:
        """No folder is listed."""
        self.send_error(404)


def server(folder: Path, host: str, port: int) -> HttpServer:
    """A server of the files in `folder`, bound and not yet serving. Port 0: any that is free.

    Raises ValueError if the address cannot be bound.
    """
    found = re.search(r'"Content-Security-Policy"\s+content="([^"]+)"', (folder / "index.html").read_text())
    assert found, "the built page says what it may load"
    try:
        return HttpServer((host, port), partial(_Handler, directory=str(folder.resolve()), policy=found.group(1)))
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be served ({error.strerror or error}); try another PORT") from error

"""What the three web servers have in common: how long a client may take, and how many there may be.

Needs the standard library only: a Raspberry Pi runs this very file. Anybody in the network can connect, and most of
what follows happens before a server knows who it is.
"""

import io
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_CONNECTIONS = 32
"""at once, each with a thread; a browser makes six"""
ANSWER_S = 60.0
"""for an answer, or for a request's body, beside the time that its bytes take"""
SLOWEST_BYTES_PER_S = 100_000
"""what is slower than that is no network"""


class HttpServer(ThreadingHTTPServer):
    """One with a limit to its connections, and that does not make a fuss about browsers that go away."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._lock = threading.Lock()
        self._asking: dict[socket.socket, bool] = {}
        """connections, the oldest first, and whether each has yet to ask something"""
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread. If there are too many, the one that has been silent longest makes room."""
        with self._lock:
            if len(self._asking) >= MAX_CONNECTIONS:
                silent = next((other for other, asking in self._asking.items() if asking), None)
                if silent is None:
                    super().shutdown_request(request)
                    return
                del self._asking[silent]
                _hang_up(silent)
            self._asking[request] = True
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Let a connection go."""
        with self._lock:
            self._asking.pop(request, None)
        super().shutdown_request(request)

    def asks(self, request: socket.socket, asking: bool) -> None:
        """Note whether a connection has yet to ask something; if so, it is the youngest of those."""
        with self._lock:
            if self._asking.pop(request, None) is not None:
                self._asking[request] = asking

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes, or is too slow, is no error of this program; anything else is a defect and shown."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def _hang_up(connection: socket.socket) -> None:
    """Its thread finds the end of it, and closes it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the client was faster
        return


class Handler(BaseHTTPRequestHandler):
    """One connection. A client that drips bytes has no more time than one that sends nothing."""

    server: HttpServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dap", ""

    timeout = 30.0
    """seconds that a client may take to ask, from the first byte it could send to the last header"""

    def setup(self) -> None:
        """As the base class does, with streams that keep to the time."""
        super().setup()
        self.rfile.close()
        self.until = 0.0
        self.rfile = io.BufferedReader(_Input(self))
        self.wfile = _Output(self)

    def allow(self, seconds: float) -> None:
        """Let reading and writing take so long from now on, all in all."""
        self.until = time.monotonic() + seconds

    def allow_bytes(self, size: int) -> None:
        """Let it take as long as an answer, or a body, of that size may."""
        self.allow(ANSWER_S + size / SLOWEST_BYTES_PER_S)

    def handle_one_request(self) -> None:
        """Wait for a request and answer it."""
        self.server.asks(self.connection, True)
        self.allow(self.timeout)
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Read the headers; the answer has a time of its own."""
        sound = super().parse_request()
        self.server.asks(self.connection, False)
        self.allow(ANSWER_S)
        return sound

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are no news, and the token stands in some."""


class _Timed:
    """A connection, as long as its time is not over."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    def _socket(self) -> socket.socket:
        """Raises TimeoutError when the time is over."""
        left_s = self.handler.until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the client is too slow")
        self.handler.connection.settimeout(left_s)
        return self.handler.connection


class _Input(_Timed, io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._socket().recv_into(buffer)


class _Output(_Timed, io.BufferedIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._socket().sendall(data)
        return len(data)

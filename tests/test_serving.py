"""The three web servers and clients that mean no good: too many of them, too slow, from other pages, along links."""

import contextlib
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import app_server, apps
from targets import serving
from targets.devices import browser_server
from targets.serving import Handler, HttpServer

APP = Path(__file__).parent.parent / "apps" / "raspberry-pi"
PAGE = '<meta http-equiv="Content-Security-Policy" content="default-src \'self\'">'
TYPES = {"device": "a phone", "os": "an OS", "cpu": None, "cores": 8, "arch": None, "emulated": None}


class Served:
    """A server that runs, and a path that it answers with 200."""

    def __init__(self, server: HttpServer, path: str, owner: Any = None) -> None:
        self.server, self.path, self.owner = server, path, owner

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.server_port), timeout=20)

    def ask(self, path: str | None = None, method: str = "GET", body: bytes | None = None, **headers: str) -> Any:
        """The answer, read; its status and headers are what http.client has."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        connection.request(method, path or self.path, body, {name.replace("_", "-"): v for name, v in headers.items()})
        answer = connection.getresponse()
        answer.text = answer.read()  # type: ignore[attr-defined]
        connection.close()
        return answer


@contextlib.contextmanager
def running(server: HttpServer) -> Iterator[HttpServer]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text(PAGE)
    (folder / "runner.html").write_text(PAGE)
    (folder / "assets" / "large").write_bytes(b"x" * 30_000_000)
    return folder


@pytest.fixture
def pi(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The Raspberry Pi's page; its camera has one picture, and `owner.opened` counts how often it was opened."""
    monkeypatch.syspath_prepend(str(APP))
    from classifier import web

    class Classifier:
        warning = None

        def __call__(self, pixels: np.ndarray) -> Any:
            raise AssertionError("nobody looks")

    class Watch(web.Watch):
        looks = 0

        def look(self, after: int) -> tuple[int, bytes, dict[str, Any]]:
            self.looks += 1
            time.sleep(0.05)
            return after + 1, b"\xff\xd8 a picture", {"number": after + 1}

    watch = Watch(Classifier(), None)  # type: ignore[arg-type]
    with running(web.Server(("127.0.0.1", 0), watch, None)) as server:
        yield Served(server, "/", watch)


@pytest.fixture
def runner(site: Path) -> Iterator[Served]:
    """The server of a browser that measures."""
    owner = browser_server.Server(site, "127.0.0.1")
    yield Served(owner._http, f"/{owner.token}/runner.html", owner)
    owner.close()


@pytest.fixture
def app(site: Path) -> Iterator[Served]:
    """The server of the web app."""
    with running(app_server.server(site, "127.0.0.1", 0)) as server:
        yield Served(server, "/")


@pytest.fixture(params=["runner", "app", "pi"])
def served(request: pytest.FixtureRequest) -> Served:
    return request.getfixturevalue(request.param)


def closed(client: socket.socket) -> bool:
    """Whether the other side ends the connection, after whatever it sends, within the client's timeout."""
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def drip(client: socket.socket, byte: bytes) -> float:
    """Send a byte now and then, until the other side has enough; returns the seconds that it took, 8 at most."""
    begun = time.monotonic()
    client.settimeout(0.05)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - begun < 8:
            client.sendall(byte)
            try:
                if not client.recv(65536):
                    break
            except TimeoutError:
                continue
    return time.monotonic() - begun


def test_idle_connections_hold_few_threads_and_lock_nobody_out(served: Served) -> None:
    before = threading.active_count()
    assert served.ask().status == 200
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.connect()) for _ in range(150)]
        begun = time.monotonic()
        assert served.ask().status == 200, "the newest is let in"
        assert time.monotonic() - begun < 5
        while threading.active_count() - before > serving.MAX_CONNECTIONS + 5:
            assert time.monotonic() - begun < 10  # threads of connections that made room need a moment to notice
            time.sleep(0.05)
        assert closed(clients[0]), "the one that has been silent longest made room"


@pytest.mark.parametrize("begins", [b"", b"GET", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_request_that_drips_has_no_more_time_than_none(
    served: Served, begins: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "timeout", 0.6)
    with served.connect() as client:
        client.sendall(begins)
        assert 0.3 < drip(client, b"x") < 5
    assert served.ask().status == 200


def test_a_connection_that_stays_may_ask_again_but_not_wait_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "timeout", 0.6)
    connection = http.client.HTTPConnection("127.0.0.1", served.server.server_port, timeout=20)
    connection.connect()
    client = connection.sock
    for _ in range(3):
        connection.request("GET", served.path)
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        assert connection.sock is client, "the same connection"
        time.sleep(0.3)
    begun = time.monotonic()
    assert closed(client)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("kind", ["runner", "app"])
def test_an_answer_that_nobody_takes_ends(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "ANSWER_S", 0.3)
    monkeypatch.setattr(serving, "SLOWEST_BYTES_PER_S", 1e8)
    served = request.getfixturevalue(kind)
    large = f"{served.path.rpartition('/')[0]}/assets/large"
    assert len(served.ask(large).text) == 30_000_000
    with served.connect() as client:
        client.sendall(f"GET {large} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        deadline = time.monotonic() + 5
        while served.server._asking and time.monotonic() < deadline:
            time.sleep(0.02)
            with contextlib.suppress(OSError):
                client.recv(1)  # drips the other way
        assert not served.server._asking


def test_a_body_that_drips_ends(runner: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "ANSWER_S", 0.5)
    with runner.connect() as client:
        path = runner.path.replace("runner.html", "api/hello")
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n".encode())
        assert 0.3 < drip(client, b" ") < 5


def test_without_a_token_no_body_is_read_and_the_connection_ends(runner: Served) -> None:
    with runner.connect() as client:
        client.settimeout(3)
        client.sendall(b"POST /wrong/api/hello HTTP/1.1\r\nHost: localhost\r\nContent-Length: 64000000\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 403")
        assert closed(client)


@pytest.mark.parametrize(
    "body",
    [
        b'{"job": "1", "what": "x", "done": Infinity, "total": Infinity}',
        b'{"job": "1", "what": "x", "done": 1e999, "total": 1e999}',
        b'{"job": "1", "what": "x", "done": NaN, "total": 1}',
        b'{"job": "1", "what": "x", "done": -1, "total": 1}',
        b'{"job": "1", "what": "x", "done": true, "total": 1}',
        b'{"job": "1", "what": ["x"], "done": 0, "total": 1}',
        b'{"job": "1", "what": "x", "done": 0}',
        b'{"job": "1", "job": "1"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"job": 1e400}',
        b"\xff",
    ],
)
def test_messages_of_a_page_that_are_none_are_refused(runner: Served, body: bytes, tmp_path: Path) -> None:
    api = runner.path.replace("runner.html", "api")
    hello = json.dumps({"device": TYPES}).encode()
    assert runner.ask(f"{api}/hello", "POST", hello, X_Page="one").status == 200
    runner.owner._job = type("Job", (), {"id": "1", "sha256": {}})()
    for name in ("progress", "error"):
        assert runner.ask(f"{api}/{name}", "POST", body, X_Page="one").status == 400
    assert runner.owner._progress is runner.owner._error is None
    sound = b'{"job": "1", "what": "\\u001b[2J", "done": 1.5, "total": 3}'
    assert runner.ask(f"{api}/progress", "POST", sound, X_Page="one").status == 200
    assert runner.owner._progress == ("�[2J", 1, 3)


@pytest.mark.parametrize("change", [{"cores": "8"}, {"device": ""}, {"os": None}, {"cpu": ["x"]}, {"os": "x" * 201}])
def test_a_page_says_what_it_is_in_the_right_types(runner: Served, change: dict[str, Any]) -> None:
    path = runner.path.replace("runner.html", "api/hello")
    for device in ({**TYPES, **change}, None, [], "phone"):
        assert runner.ask(path, "POST", json.dumps({"device": device}).encode(), X_Page="one").status == 400
    assert runner.owner.description is None
    clean = {**TYPES, "device": "\x1b[2Ja phone"}
    assert runner.ask(path, "POST", json.dumps({"device": clean}).encode(), X_Page="one").status == 200
    assert runner.owner.description == {**TYPES, "device": "�[2Ja phone"}


def test_links_inside_served_folders_are_not_followed(site: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "index.html").write_text("secret")
    (site / "assets" / "link").symlink_to(tmp_path / "secret" / "index.html")
    (site / "assets" / "folder").symlink_to(tmp_path / "secret")
    (site / "assets" / "inside").symlink_to(site / "assets" / "large")
    (site / "place").mkdir()
    (site / "place" / "index.html").symlink_to(tmp_path / "secret" / "index.html")
    paths = ("assets/link", "assets/folder/index.html", "assets/folder/", "assets/inside", "place/", "place/index.html")
    with running(app_server.server(site, "127.0.0.1", 0)) as server:
        served = Served(server, "/")
        assert served.ask().status == served.ask("/assets/large").status == 200
        assert [served.ask(f"/{path}").status for path in paths] == [404] * len(paths)
    owner = browser_server.Server(site, "127.0.0.1")
    assert owner.pages.keys() == {"runner.html", "assets/large"}
    owner.close()


def test_a_site_below_a_link_is_served(site: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(site)
    with running(app_server.server(tmp_path / "current", "127.0.0.1", 0)) as server:
        assert Served(server, "/").ask().status == 200
    owner = browser_server.Server(tmp_path / "current", "127.0.0.1")
    assert "runner.html" in owner.pages
    owner.close()


def test_a_link_among_a_models_files_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "public" / "model"
    model.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (model / "a").symlink_to(tmp_path / "secret")
    monkeypatch.setattr("targets.manifest.read", lambda path: None)
    built = apps.publish(tmp_path)
    assert (built / "model" / "a").is_symlink(), "and the server follows none"


# The Raspberry Pi's page: whoever looks at it starts the camera.


FOREIGN: tuple[dict[str, str], ...] = (
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
    {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},  # another port of this machine
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},
    {"Sec_Fetch_Site": "?"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Referer": "https://evil.example/page"},
    {"Referer": "http://localhost:1/"},
    {"Referer": "http://["},
)


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("path", ["/picture", "/state", "/about"])
def test_no_other_page_starts_the_camera(pi: Served, path: str, headers: dict[str, str]) -> None:
    assert pi.ask(path, **headers).status == 403
    assert pi.owner.looks == 0


def test_the_page_itself_and_a_link_to_it_work(pi: Served) -> None:
    host = f"localhost:{pi.server.server_port}"
    assert pi.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200
    assert pi.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors").status == 403
    for headers in (
        {"Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},
        {"Referer": f"http://{host}/", "Host": host},
        {"Origin": f"http://{host}", "Host": host},
        {},
    ):
        answer = pi.ask("/state", **headers)
        assert answer.status == 200
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    with pi.connect() as client:
        client.sendall(b"GET /picture HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n\r\n")
        found = b""
        while b"a picture" not in found:
            found += client.recv(1000)
    assert b"Cross-Origin-Resource-Policy: same-origin" in found


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000")),
        *((host, 403) for host in ("evil.example", "evil.example:80", "[::2]", "[::1]x", "[::1", "::1", "", "a]:80")),
    ],
)
def test_only_this_machines_own_names_are_let_in(pi: Served, host: str, status: int) -> None:
    assert pi.ask("/state", Host=host).status == status


def test_a_stream_that_nobody_takes_ends(pi: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "ANSWER_S", 0.3)
    monkeypatch.setattr(type(pi.owner), "look", lambda self, after: (after + 1, b"x" * 3_000_000, {}), raising=True)
    monkeypatch.setattr(serving, "SLOWEST_BYTES_PER_S", 1e9)
    with pi.connect() as client:
        client.sendall(b"GET /picture HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.2)
        deadline = time.monotonic() + 5
        while pi.server._asking and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not pi.server._asking


def test_a_defect_is_shown_and_a_client_that_goes_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(Handler):
        def do_GET(self) -> None:  # noqa: N802 (how the base class calls it)
            raise {"/defect": KeyError, "/gone": ConnectionResetError}[self.path]("x")

    with running(HttpServer(("127.0.0.1", 0), Broken)) as server:
        for path in ("/gone", "/defect"):
            with pytest.raises(http.client.RemoteDisconnected):
                Served(server, path).ask()
            time.sleep(0.1)
            assert ("KeyError" in capfd.readouterr().err) == (path == "/defect")


def test_the_file_runs_where_nothing_is_installed() -> None:
    import ast

    tree = ast.parse(Path(serving.__file__).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names
    assert "serving.py" in apps.SHARED


def test_a_token_lets_in_by_the_address_or_its_cookie(pi: Served) -> None:
    pi.server.token = "secret"  # type: ignore[attr-defined]
    assert pi.ask("/").status == pi.ask("/picture").status == pi.ask("/?token=wrong").status == 403
    answer = pi.ask("/?token=secret")
    cookie = answer.headers["Set-Cookie"].split(";")[0]
    assert (answer.status, pi.ask("/state", Cookie=cookie).status) == (200, 200)
    assert pi.ask("/state", Cookie=cookie, Sec_Fetch_Site="cross-site").status == 403
    assert pi.ask("/state", Cookie="classifier-1=secret").status == 403


def test_clients_that_go_in_the_middle_of_a_stream_are_no_errors(pi: Served, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        with pi.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
            client.sendall(b"GET /picture HTTP/1.1\r\nHost: localhost\r\n\r\n")
            client.recv(100)
    with pi.connect() as client:
        client.sendall(b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    deadline = time.monotonic() + 5
    while pi.server._asking and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not pi.server._asking
    assert capfd.readouterr().err == ""

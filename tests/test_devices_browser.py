"""Browsers as devices: what is served to whom, browsers that misbehave, and a real one against the native runtime."""

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import BRIEF, context_of

from pipeline import stages
from targets import latency
from targets.artifact import sha256_of
from targets.devices import browser, browser_server
from targets.devices.browser import Browser
from targets.devices.browser_server import Server
from targets.devices.job import GOLDEN, IMAGES, JOB, RESULT, DeviceError, Job, rows_of, write_job
from targets.formats import FORMATS

pytestmark = pytest.mark.slow
CHROMIUM = browser._find_chromium()
IMAGE_COUNT = 12


def real(test):
    """Marks a test that drives a real browser."""
    without = pytest.mark.skipif(not CHROMIUM or not shutil.which("npm"), reason="no Chromium, or no Node.js")
    return pytest.mark.browser(without(test))


def nothing(*_) -> None:
    pass


def job_in(folder: Path, artifacts: list[Path], size: int, **changes) -> tuple[Job, np.ndarray | None]:
    """A job on generated pictures, and the logits (N, C) that the native runtime gives; None for no sound artifact."""
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (2 + IMAGE_COUNT, 1, size, size, 3), dtype=np.uint8)
    (folder / GOLDEN).write_bytes(pictures[:2].tobytes())
    (folder / IMAGES).write_bytes(pictures[2:].tobytes())
    for path in artifacts:
        shutil.copy(path, folder / path.name)
    names, rows = tuple(path.name for path in artifacts), None
    with contextlib.suppress(ValueError):
        program = FORMATS["tflite"].load(folder / names[0], 1)
        rows = np.concatenate([program(picture) for picture in pictures])
    job = Job(
        id=uuid.uuid4().hex,
        format="tflite",
        files=names,
        sha256={name: sha256_of(folder / name) for name in (*names, GOLDEN, IMAGES)},
        threads=1,
        height=size,
        width=size,
        classes=3,
        golden=((0.0, 0.0, 0.0),) * 2 if rows is None else rows_of(rows[:2]),
        labels=(1,) * IMAGE_COUNT,
        protocol=BRIEF,
        memory=True,
    )
    return dataclasses.replace(job, **changes), None if rows is None else rows[2:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


# What is served, without a browser.


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runner that is none, in place of the one that has to be built."""
    dist = tmp_path / "web" / "dist"
    (dist / "litert").mkdir(parents=True)
    (dist / "runner.html").write_text("<title>runner</title>")
    (dist / "litert" / "a.wasm").write_bytes(b"\0asm")
    (tmp_path / "web" / "secret").write_text("secret")
    (dist / "model").mkdir()
    (dist / "model" / "manifest.json").write_text("{}")
    monkeypatch.setattr(browser, "WEB", tmp_path / "web")
    monkeypatch.setattr(browser, "build", lambda say: None)
    return dist


@pytest.fixture
def served(pages: Path) -> Iterator[Server]:
    server = Server(pages, "127.0.0.1")
    yield server
    server.close()


def ask(server: Server, method: str, path: str, content: object = None, page: str = "one") -> tuple[int, dict, str]:
    """Status, headers and text; the path goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server._http.server_port, timeout=10)
    body = None if content is None else json.dumps(content)
    connection.request(method, path, body, {"X-Page": page})
    answer = connection.getresponse()
    found = answer.status, dict(answer.headers), answer.read().decode(errors="replace")
    connection.close()
    return found


@contextlib.contextmanager
def waiting_for(server: Server, job: Job, folder: Path) -> Iterator[None]:
    """The server with a job to give, while another thread waits for its answer."""
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise DeviceError("stopped")

    def wait() -> None:
        with contextlib.suppress(DeviceError):
            server.answer_to(job, folder, nothing, check)

    thread = threading.Thread(target=wait)
    thread.start()
    while server._job is None:
        pass
    yield
    stop.set()
    thread.join()


@pytest.fixture
def job(folder: Path, tmp_path: Path) -> Job:
    """A job whose artifact is none: nobody runs it."""
    artifact = tmp_path / "a.tflite"
    artifact.write_bytes(b"no model")
    job, _ = job_in(folder, [artifact], 4)
    write_job(job, folder)
    return job


def test_pages_are_isolated_and_have_their_types(served):
    status, headers, text = ask(served, "GET", f"/{served.token}/runner.html")
    assert (status, text) == (200, "<title>runner</title>")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Content-Type"].startswith("text/html")
    assert ask(served, "GET", f"/{served.token}/litert/a.wasm")[1]["Content-Type"] == "application/wasm"


@pytest.mark.parametrize("path", ["/", "/runner.html", "/wrong/runner.html", "//runner.html", "/wrong/api/hello"])
def test_another_token_is_refused(served, path):
    assert ask(served, "GET", path)[0] == 403
    assert ask(served, "POST", path, {})[0] == 403


@pytest.mark.parametrize(
    "path",
    ["", "litert", "litert/", "model/manifest.json", "api/next", "../secret", "%2e%2e/secret",
     "litert/../runner.html", "/etc/passwd", "job/ID/../../x", "job/ID/result.json", "job/ID/", "job/ID/%2e%2e",
     "job/other/job.json", "job/ID/a.tflite/../job.json"],
)  # fmt: skip
def test_nothing_else_is_served(served, job, folder, path):
    (folder / RESULT).write_text("not for the page")
    with waiting_for(served, job, folder):
        prefix = f"/{served.token}"
        for name in (JOB, "a.tflite"):
            assert ask(served, "GET", f"{prefix}/job/{job.id}/{name}")[0] == 200
        assert ask(served, "GET", f"{prefix}/{path.replace('ID', job.id)}")[0] == 404
    assert ask(served, "GET", f"{prefix}/job/{job.id}/{JOB}")[0] == 404, "the job is over"


def test_one_page_is_given_the_jobs_and_others_are_sent_away(served, job, folder, monkeypatch):
    api, device = f"/{served.token}/api", {**dict.fromkeys(browser_server.DESCRIPTION, "a phone"), "cores": 8}
    assert ask(served, "POST", f"{api}/next", {})[0] == 409, "it has not said what it is"
    assert ask(served, "POST", f"{api}/hello", {"device": {"device": "a phone"}})[0] == 400
    assert ask(served, "POST", f"{api}/hello", {"device": {**device, "os": "x" * 300}})[0] == 400
    assert served.description is None
    assert ask(served, "POST", f"{api}/hello", {"device": {**device, "more": 1}})[0] == 200
    assert served.description == device
    assert json.loads(ask(served, "POST", f"{api}/next", {})[2]) == {"job": None}
    with waiting_for(served, job, folder):
        assert json.loads(ask(served, "POST", f"{api}/next", {})[2]) == {"job": job.id}
        for name in ("hello", "next", "result"):
            assert ask(served, "POST", f"{api}/{name}", {"device": device, "job": job.id}, "two")[0] == 409
        assert ask(served, "POST", f"{api}/result", {"job": "an earlier one"})[0] == 409
        assert ask(served, "POST", f"{api}/progress", {"job": job.id, "what": "images"})[0] == 400
        monkeypatch.setattr(browser_server, "TAKEOVER_S", 0.0)
        assert ask(served, "POST", f"{api}/hello", {"device": {**device, "os": "other"}}, "two")[0] == 409
        assert ask(served, "POST", f"{api}/hello", {"device": device}, "two")[0] == 200, "the same phone, another tab"
    served._closed = True
    assert ask(served, "POST", f"{api}/next", {}, "two")[0] == 410


@pytest.mark.parametrize(("body", "length", "status"), [(b"{", "1", 400), (b"[]", "2", 400), (b"", "", 411),
                                                       (b"", "99000000", 413), (b"", "-1", 411)])  # fmt: skip
def test_bodies_that_are_not_sound_are_refused(served, body, length, status):
    connection = http.client.HTTPConnection("127.0.0.1", served._http.server_port, timeout=10)
    connection.putrequest("POST", f"/{served.token}/api/hello")
    if length:
        connection.putheader("Content-Length", length)
    connection.endheaders(body)
    assert connection.getresponse().status == status
    connection.close()


# Browsers that misbehave: a program that takes Chromium's place.


@pytest.fixture
def fake(tmp_path: Path, pages: Path, monkeypatch: pytest.MonkeyPatch):
    """Connects to a "browser" that does what the given lines say; `say(name, content)` talks as the runner does."""

    def connect(lines: str) -> Browser:
        program = tmp_path / "chromium"
        pid = tmp_path / "pid"
        program.write_text(
            f"#!{sys.executable} -S\n"
            + textwrap.dedent(f"""\
            import json, os, sys, time
            if sys.argv[1:] == ["--version"]:
                print("Chromium 1.2.3 built on a test")
                sys.exit()
            open({str(pid)!r}, "w").write(str(os.getpid()))
            import urllib.request
            base = sys.argv[-1].removesuffix("runner.html")
            assert base.startswith("http://127.0.0.1:")
            assert any(flag.startswith("--user-data-dir=") for flag in sys.argv)
            def say(name, content):
                headers = {{"X-Page": "fake"}}
                request = urllib.request.Request(f"{{base}}api/{{name}}", json.dumps(content).encode(), headers)
                return json.load(urllib.request.urlopen(request))
            say("hello", {{"device": {{**dict.fromkeys({browser_server.DESCRIPTION!r}, "fake"), "cores": 2}}}})
            while not (job := say("next", {{}})["job"]):
                time.sleep(0.02)
            """)
            + textwrap.dedent(lines)
        )
        program.chmod(0o755)
        monkeypatch.setenv("CHROME_PATH", str(program))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        found = Browser.connect(None, nothing)
        assert found is not None
        assert found.description["device"] == "Chromium 1.2.3"
        return found

    connect.pid = tmp_path / "pid"
    return connect


def gone(pid: Path) -> bool:
    try:
        os.kill(int(pid.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("sys.exit('no sandbox')", r"Chromium has ended \(exit code 1\)\nno sandbox"),
        ("say('error', {'job': job, 'error': 'boom'}); time.sleep(60)", "the browser reports: boom"),
        ("time.sleep(60)", "nothing was heard of the browser for 2.5 s"),
        ("while True: time.sleep(0.1); say('progress', {'job': job, 'what': 'x', 'done': 1, 'total': 2})",
         "gets no further for 3 s"),
        ("for _ in range(3): say('next', {})\ntime.sleep(60)", "loaded 3 times and never finished"),
        ("say('result', {'job': job}); time.sleep(60)", "version is None"),
        ("say('result', {'version': 1, 'job': job}); time.sleep(60)", "not whole"),
        ("""
         keys = ("before after latency", "golden logits", "file sha256 runtime runtime_version")
         result = {key: kind for keys, kind in zip(keys, ({}, [], "other")) for key in keys.split()}
         device = {"device": "a", "os": "b", "cpu": None, "cores": 1, "arch": None, "emulated": None}
         result = {**result, "threads": 1, "device": device}
         say("result", {**result, "version": 1, "job": job})
         """, "belongs to another artifact than a.tflite"),
        ("""
         figures = "p5_ms p50_ms p90_ms mean_ms p90_bound_ms samples seconds"
         time = {**dict.fromkeys(figures.split(), 1), "samples_ms": [1], "valid": True, "why_invalid": "it is not"}
         say("result", {"version": 1, "job": job, "golden": [], "logits": [], "latency": {"a.tflite": time}})
         """, r"not whole \(.*latency.'a.tflite': why_invalid must give the reason"),
    ],
)  # fmt: skip
def test_what_a_browser_does_wrong_is_told(fake, job, folder, monkeypatch, lines, message):
    monkeypatch.setattr(browser_server, "SILENT_S", 2.5)
    monkeypatch.setattr(browser_server, "STALLED_S", 3.0)
    with pytest.raises(DeviceError, match=message):
        fake(lines).run(job, folder, nothing)
    assert gone(fake.pid)


def test_ctrl_c_leaves_no_browser_and_no_profile(fake, job, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(browser.tempfile, "tempdir", str(tmp_path))

    def interrupt(*_):
        assert list(tmp_path.glob("dap-chromium-*"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake("say('progress', {'job': job, 'what': 'x', 'done': 1, 'total': 2}); time.sleep(60)").run(
            job, folder, interrupt
        )
    assert gone(fake.pid)
    assert not list(tmp_path.glob("dap-chromium-*"))


def test_a_device_that_is_no_browser_is_refused():
    with pytest.raises(ValueError, match="DEVICE is chromium or lan"):
        Browser.connect("firefox", nothing)


def test_without_chromium_nothing_is_measured(monkeypatch, tmp_path):
    said: list[str] = []
    monkeypatch.delenv("CHROME_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(browser, "PROGRAMS", ("chromium",))
    assert Browser.connect(None, said.append) is None
    assert "install chromium" in said[0]
    monkeypatch.setenv("CHROME_PATH", "/no/such/program")
    with pytest.raises(ValueError, match="CHROME_PATH=/no/such/program is no program"):
        Browser.connect("chromium", said.append)


def test_without_node_nothing_is_measured(monkeypatch, tmp_path):
    said: list[str] = []
    monkeypatch.setattr(browser, "WEB", tmp_path)
    (tmp_path / "package.json").write_text("{}")
    monkeypatch.setenv("PATH", "")
    assert Browser.connect("lan", said.append) is None
    assert "install Node.js" in said[0]


def test_a_phone_that_does_not_come_is_not_waited_for_for_ever(pages, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(browser, "PHONE_S", 0.1)
    monkeypatch.setattr(browser, "_lan_address", lambda: "127.0.0.1")
    monkeypatch.setattr(browser, "_qr_code", lambda url: ["▀"])
    with pytest.raises(DeviceError, match=r"no browser has opened http://127\.0\.0\.1"):
        Browser.connect("lan", said.append)
    assert said[1] == "▀"
    assert said[2].endswith("/runner.html")


def test_the_qr_code_has_its_corners():
    pytest.importorskip("segno")
    lines = browser._qr_code("http://192.0.2.2:43369/Ljn0Mg5m4V7wNyAl/runner.html")
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("██ ▄▄▄▄▄ █")
    assert lines[1].endswith("█ ▄▄▄▄▄ ██")


# A real browser.


@pytest.fixture
def artifacts(finished: tuple[Path, str]) -> list[Path]:
    """The tiny run's pruned and dense artifact; they take 64 x 64 pixels."""
    return [finished[0] / "artifacts" / "host" / f"{role}-fp32.tflite" for role in ("pruned", "dense")]


@pytest.fixture
def chromium() -> Browser:
    said: list[str] = []
    found = Browser.connect("chromium", said.append)
    assert found is not None, said
    return found


@pytest.fixture
def other_pages(chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the built runner, to be changed."""
    copied = shutil.copytree(browser.WEB / "dist", tmp_path / "web" / "dist")
    monkeypatch.setattr(browser, "WEB", tmp_path / "web")
    return copied


@real
@pytest.mark.parametrize("threads", [1, 2])
def test_a_browser_computes_what_the_native_runtime_does(chromium, artifacts, folder, threads):
    job, expected = job_in(folder, artifacts, 64, threads=threads)
    told: list[tuple[str, int, int]] = []
    result = chromium.run(job, folder, lambda *progress: told.append(progress))
    assert expected is not None
    np.testing.assert_allclose(result.logits, expected, atol=1e-5)
    assert result.golden_error is not None
    assert result.golden_error < 1e-5
    assert result.top1 == np.mean(expected.argmax(1) == 1)
    assert (result.job, result.refused, result.peak_mb) == (job.id, None, None)
    assert (result.threads, result.runtime, result.runtime_version) == (threads, "LiteRT.js (wasm)", "2.5.3")
    assert result.device == chromium.description
    assert result.device["device"].startswith(("Chromium ", "Google Chrome "))
    assert {"governor", "temperature_c", "throttled", "battery"} == result.before.keys() == result.after.keys()
    for name in job.files:
        found = result.latency[name]
        assert found.samples >= BRIEF.min_samples
        again = latency.summarise([round(1e6 * ms) for ms in found.samples_ms], found.seconds, BRIEF.min_samples)
        assert (found.p5_ms, found.p50_ms, found.p90_ms) == pytest.approx((again.p5_ms, again.p50_ms, again.p90_ms))
        assert found.valid or "clock" in str(found.why_invalid) or "busy" in str(found.why_invalid)
    assert told
    assert {what for what, _, _ in told} <= {"loading", "golden", "images", "latency"}


@real
def test_without_a_protocol_nothing_is_timed(chromium, artifacts, folder):
    job, _ = job_in(folder, artifacts[:1], 64, protocol=None, golden=(), labels=(0,))
    result = chromium.run(job, folder, nothing)
    assert (result.latency, result.golden, result.golden_error, len(result.logits)) == ({}, (), None, 1)


@real
@pytest.mark.parametrize("damage", ["garbage", "half", "operators"])
def test_an_artifact_that_is_no_sound_model_is_refused(chromium, artifacts, folder, tmp_path, damage):
    content = bytearray(artifacts[0].read_bytes())
    if damage == "half":
        del content[len(content) // 2 :]
    elif damage == "garbage":
        content[:] = b"this is no model" * 100
    else:  # the tables, which lie behind the weights or before them
        content[4096:] = bytes(reversed(content[4096:]))
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(content)
    job, rows = job_in(folder, [broken], 64)
    assert rows is None, "the native runtime refuses it too"
    result = chromium.run(job, folder, nothing)
    assert result.refused is not None
    assert result.refused.startswith("LiteRT.js does not take broken.tflite: ")
    assert (result.latency, result.logits, result.top1) == ({}, (), None)


@real
@pytest.mark.parametrize("name", ["pruned-fp32.tflite", IMAGES])
def test_a_file_that_does_not_arrive_whole_is_not_used(chromium, artifacts, folder, name):
    job, _ = job_in(folder, artifacts[:1], 64)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DeviceError, match=rf"the browser reports: {name} did not arrive whole"):
        chromium.run(job, folder, nothing)


@real
def test_an_error_of_the_page_is_told(chromium, other_pages, artifacts, folder):
    shutil.rmtree(other_pages / "litert")
    job, _ = job_in(folder, artifacts[:1], 64)
    with pytest.raises(DeviceError, match=r"the browser reports: .*litert"):
        chromium.run(job, folder, nothing)


@real
def test_time_on_a_page_that_is_not_in_front_does_not_count(chromium, other_pages, artifacts, folder):
    page = other_pages / "runner.html"
    hide = "<script>Object.defineProperty(document, 'hidden', {get: () => true})</script></head>"
    page.write_text(page.read_text().replace("</head>", hide))
    job, _ = job_in(folder, artifacts[:1], 64)
    (found,) = chromium.run(job, folder, nothing).latency.values()
    assert not found.valid
    assert "not in front" in str(found.why_invalid)


@real
def test_a_browser_that_is_killed_is_told_and_leaves_nothing(chromium, artifacts, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(browser.tempfile, "tempdir", str(tmp_path))
    started: list[subprocess.Popen] = []
    original = subprocess.Popen

    def popen(*arguments, **options):
        started.append(original(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(browser.subprocess, "Popen", popen)
    job, _ = job_in(folder, artifacts, 64, protocol=latency.QUICK)
    with pytest.raises(DeviceError, match="Chromium has ended"):
        chromium.run(job, folder, lambda *_: os.killpg(started[0].pid, signal.SIGKILL))
    assert not list(tmp_path.glob("dap-chromium-*"))


@real
def test_a_browser_ends_with_the_program_that_started_it(artifacts, tmp_path):
    """Even if that is killed."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from targets.devices import browser
browser.tempfile.tempdir = {str(tmp_path)!r}
with browser._chromium({CHROMIUM!r}, "about:blank"):
    print("started", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "started\n"
        wait_until(lambda: running(tmp_path))
        program.kill()
    wait_until(lambda: not running(tmp_path))


def running(profiles: Path) -> bool:
    """Whether a browser with its profile in that folder is there."""
    commands = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != "self")
    with contextlib.suppress(OSError):  # one that ends meanwhile
        return any(f"--user-data-dir={profiles}".encode() in command for command in commands)
    return True


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@real
def test_a_phone_does_one_job_after_the_other(artifacts, folder, tmp_path, monkeypatch):
    """Over the network's address, where browsers give a page fewer rights than over 127.0.0.1."""
    pytest.importorskip("segno")
    try:
        browser._lan_address()
    except DeviceError as error:
        pytest.skip(str(error))
    said: list[str] = []
    with contextlib.ExitStack() as phones:

        def say(line: str) -> None:
            said.append(line)
            if line.startswith("http://"):
                phones.enter_context(browser._chromium(str(CHROMIUM), line))

        found = Browser.connect("lan", say)
        assert found is not None
        phones.callback(found.close)
        assert found.description["emulated"] is None
        assert "Chrome" in found.description["device"]
        assert "Linux" in found.description["os"]
        assert said[-1].startswith("connected: ")
        for paths in (artifacts, artifacts[:1]):
            job, expected = job_in(folder, paths, 64)
            result = found.run(job, folder, nothing)
            np.testing.assert_allclose(result.logits, expected, atol=1e-5)
            assert result.device == found.description
            for latencies in result.latency.values():
                coarse = latencies.p50_ms < 2.0  # 20 of the 100 us steps that the clock has here
                assert not (coarse and latencies.valid)


@real
def test_statistics_are_those_of_python(tmp_path):
    assert browser.build(nothing) is None  # installs what is needed, if it is not there
    bundle = tmp_path / "latency.mjs"
    rolldown = browser.WEB / "node_modules" / ".bin" / "rolldown"
    subprocess.run(
        [rolldown, "src/latency.ts", "--format", "esm", "--file", bundle], cwd=browser.WEB, check=True,
        capture_output=True,
    )  # fmt: skip
    draw = np.random.default_rng(0)
    cases = [
        (draw.lognormal(15, spread, count).astype(int).tolist(), float(draw.uniform(1, 200)), needed)
        for spread in (0.02, 0.5, 2.0)
        for count, needed in ((1, 1), (2, 2), (63, 1024), (64, 1024), (100, 128), (500, 1024), (1023, 1024), (3000, 1))
    ]
    cases += [([0, *[1000] * 99], 1.0, 10), ([-5, *[1000] * 99], 1.0, 10), ([1000] * 80 + [5000] * 20, 1.0, 100)]
    cases += [([1000] * 80 + [5010] * 20, 1.0, 100), ([1000] * 49, 1.0, 50)]
    script = f"""
import {{ clockStepNs, summarise }} from {json.dumps(bundle.as_uri())};
const cases = JSON.parse(await new Response(process.stdin).text());
const found = cases.map(([samples, seconds, needed]) => summarise(samples, seconds, needed, 0));
const steps = [1.9, 2].map((ms) => summarise([1e6 * ms], 1, 1, 1e5));
console.log(JSON.stringify([found, clockStepNs(), ...steps]));
"""
    done = subprocess.run(["node", "--input-type=module", "-e", script], input=json.dumps(cases), text=True, check=True,
                          capture_output=True)  # fmt: skip
    found, step_ns, nineteen_steps, twenty_steps = json.loads(done.stdout)
    for (samples, seconds, needed), ours in zip(cases, found, strict=True):
        theirs = dataclasses.asdict(latency.summarise(samples, seconds, needed))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            expected = pytest.approx(value, rel=1e-12) if isinstance(value, (float, tuple)) else value
            assert (tuple(ours[key]) if isinstance(value, tuple) else ours[key]) == expected, key
    assert 0 < step_ns < 1e6
    assert twenty_steps["valid"]
    assert nineteen_steps["why_invalid"] == (
        "the browser's clock moves in steps of 0.1 ms, too coarse for an inference of 1.900 ms"
    )


@real
def test_a_deployment_to_the_web_has_a_full_verdict(run_copy, one_format):
    context, said = context_of(run_copy)
    assert stages.run_deploying(context, "web", protocol=BRIEF, budget=one_format) == "pass", said
    report = json.loads((run_copy / "report.json").read_text())
    (pruned,) = [a for a in report["artifacts"] if a["target"] == "web" and a["role"] == "pruned"]
    assert pruned["verdict"] == "pass"
    assert pruned["device"]["device"].startswith(("Chromium ", "Google Chrome "))
    assert pruned["latency_ms"]["p50"] > 0
    assert {c["name"]: c["verdict"] for c in pruned["checks"]}["golden_on_device"] == "pass"
    kept = json.loads((run_copy / "artifacts" / "web" / "device" / "pruned-fp32.tflite.json").read_text())
    assert kept["runtime"] == "LiteRT.js (wasm)"

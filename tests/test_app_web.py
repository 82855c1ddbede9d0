"""The web app, built from its sources, in a real browser: a phone with a camera that shows a known picture."""

import base64
import functools
import io
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import browser_driver
import numpy as np
import pytest
from browser_driver import Chromium, Page
from PIL import Image
from typer.testing import CliRunner

from pipeline import __main__ as command
from pipeline import app_server, apps
from pipeline.data import augment
from pipeline.data.images import of_array, open_picture
from pipeline.data.view import View
from targets import manifest
from targets.devices import browser, browser_server
from targets.formats import FORMATS

PROGRAM = browser._find_chromium()
pytestmark = [
    pytest.mark.slow,  # as a whole: a build, a browser, and seconds a test
    pytest.mark.browser,
    pytest.mark.skipif(not PROGRAM or not shutil.which("npm"), reason="no Chromium, or no Node.js"),
]
CAMERA = (
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)
ISOLATION = ("Cross-Origin-Opener-Policy", "Cross-Origin-Embedder-Policy")
LONG = "Leucanthemum vulgare subsp. something that goes on and on"


@pytest.fixture(scope="module")
def web(finished, tmp_path_factory) -> Path:
    """The app's folder in a copy of apps/, with the small model of a finished run, built."""
    said: list[str] = []
    assert browser.build(said.append) is None, said  # node_modules, once for all
    folder = tmp_path_factory.mktemp("app") / "apps"
    ignored = shutil.ignore_patterns("node_modules", "dist", "model")
    web = Path(shutil.copytree(browser.WEB, folder / "web", ignore=ignored))
    (web / "node_modules").symlink_to(browser.WEB / "node_modules")
    assert apps.install(finished[0] / "artifacts" / "host", "web", folder)
    subprocess.run(["npm", "run", "build"], cwd=web, check=True, capture_output=True)
    (web / "dist" / ".built").touch()  # as browser.build does, which would exchange node_modules
    apps.publish(web)
    return web


@dataclass
class Site:
    """The app on an address of its own, so that nothing is stored for it yet."""

    folder: Path
    server: ThreadingHTTPServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"

    def change(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Another content in place of a file, which is a link to everybody's."""
        content = change((self.folder / name).read_bytes())
        (self.folder / name).unlink()
        (self.folder / name).write_bytes(content)

    def describe(self, **changes) -> None:
        """Change the model's manifest."""
        self.change("model/manifest.json", lambda old: json.dumps({**json.loads(old), **changes}).encode())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(web, tmp_path) -> Iterator[Site]:
    folder = Path(shutil.copytree(web / "dist", tmp_path / "site", copy_function=os.link))
    site = Site(folder, app_server.server(folder, "127.0.0.1", 0))
    threading.Thread(target=site.server.serve_forever, args=(0.05,), daemon=True).start()
    yield site
    site.close()


@pytest.fixture(scope="module")
def known(web) -> manifest.Manifest:
    return manifest.read(web / "public" / "model" / "manifest.json")


@pytest.fixture(scope="module")
def classify(web, known) -> Callable[[np.ndarray], str]:
    """What the native runtime says of an input tensor (H, W, 3)."""
    file = next(entry.file for entry in known.files if entry.role == "pruned" and entry.format == "tflite")
    program = FORMATS["tflite"].load(web / "public" / "model" / file, 1)
    return lambda pixels: known.labels[int(program(pixels[None])[0].argmax())]


@pytest.fixture(scope="module")
def chromium(web, known, tmp_path_factory) -> Iterator[Chromium]:
    film = tmp_path_factory.mktemp("camera") / "film.y4m"
    write_film(film, np.asarray(Image.open(web / "public" / "model" / known.golden[0].file).convert("L")))
    with browser_driver.running(PROGRAM, *CAMERA, f"--use-file-for-fake-video-capture={film}") as chromium:
        yield chromium


def write_film(path: Path, grey: np.ndarray) -> None:
    """A 4:2:0 film of one picture in the middle of 640 x 480, black at both sides."""
    frame = np.zeros((480, 640), np.uint8)
    frame[:, 80:560] = np.asarray(Image.fromarray(grey).resize((480, 480), Image.Resampling.BICUBIC))
    luma = (16 + frame * (219 / 255)).round().astype(np.uint8)
    chroma = np.full(2 * 240 * 320, 128, np.uint8)
    content = b"FRAME\n" + luma.tobytes() + chroma.tobytes()
    path.write_bytes(b"YUV4MPEG2 W640 H480 F30:1 Ip A1:1 C420jpeg\n" + 3 * content)


@pytest.fixture
def phone(chromium) -> Iterator[Page]:
    page = chromium.page(permissions=("videoCapture",))
    yield page
    page.close()


def start(page: Page, site: Site) -> None:
    page.open(site.url)
    page.wait("document.body.dataset.state == 'ready'")


def settled(page: Page) -> None:
    """All that happens by itself after the start has happened."""
    page.wait("""document.body.dataset.offline
        && /faster|slower|not measurable/.test(document.getElementById('bought').textContent)""")


def answer(page: Page) -> str:
    """The class in front, once there is one for the picture on show."""
    page.wait("!document.getElementById('top').hidden && document.getElementById('busy').hidden")
    return page.text("#top li:first-child .name")


def figures(page: Page) -> str:
    """What stands below the answer, once it does."""
    return page.wait("!document.getElementById('figures').hidden && document.getElementById('figures').innerText")


def notices(page: Page) -> str:
    return page.wait("document.getElementById('notices').innerText")


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def before_the_page(page: Page, script: str) -> None:
    """Run a script in every page that is opened from now on, before its own."""
    page.call("Page.addScriptToEvaluateOnNewDocument", source=script)


def show_or_hide(page: Page, hidden: bool) -> None:
    """The page goes out of sight, or comes back."""
    page.run(f"""Object.defineProperty(document, 'hidden', {{value: {json.dumps(hidden)}, configurable: true}});
        document.dispatchEvent(new Event('visibilitychange')); null""")


WORKERS = """
    window.Worker = class extends Worker {
        constructor(...given) {
            super(...given);
            this.addEventListener('message', ({data}) => window.hear?.(data, this));
        }
        postMessage(message, transfer) {
            window.tell?.(message.call, this);
            if (window.hold !== message.call.do) super.postMessage(message, transfer);
            else window.release = () => super.postMessage(message, transfer);
        }
    };"""
"""What is said to workers can be held back and changed, what they say too."""


def stripes(height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) with noise, in which any mistake shows."""
    draw = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    wave = 127 + 60 * np.sin((x + 2 * y)[..., None] * (0.1, 0.13, 0.17))
    return (wave + draw.normal(0, 25, (height, width, 3))).clip(0, 255).astype(np.uint8)


def test_the_golden_pictures_get_the_class_that_the_pipeline_gives_them(phone, site, known, web):
    start(phone, site)
    page_says = []
    for golden in known.golden:
        phone.choose(web / "public" / "model" / golden.file)
        phone.run("new Promise(requestAnimationFrame)")
        page_says.append(answer(phone))
    assert page_says == [known.labels[int(np.argmax(golden.model))] for golden in known.golden]
    settled(phone)
    assert phone.run("document.body.dataset.golden") == "good"
    assert "faster" in phone.text("#bought") or "slower" in phone.text("#bought")
    phone.click("[value=dense]")
    assert phone.wait("document.body.dataset.role") == "dense"
    assert answer(phone) in known.labels
    assert phone.console == []
    assert {urlsplit(url).netloc for url in phone.requests if not url.startswith("blob:")} == {
        urlsplit(site.url).netloc
    }


def test_it_starts_without_a_network_after_the_first_load(phone, site, known, web):
    start(phone, site)
    settled(phone)
    assert phone.run("document.body.dataset.offline") == "yes"
    assert "works offline" in phone.text("#status")
    phone.run("window.before = true")
    site.close()
    phone.reload()
    phone.wait("!window.before && document.body.dataset.state == 'ready'")
    settled(phone)
    phone.choose(web / "public" / "model" / known.golden[1].file)
    assert answer(phone) == known.labels[int(np.argmax(known.golden[1].model))]
    phone.wait("!document.getElementById('switch').disabled")
    assert "2 threads" in phone.text("#status") or os.cpu_count() == 1
    site.server = app_server.server(site.folder, "127.0.0.1", 0)  # for the fixture to close
    threading.Thread(target=site.server.serve_forever, daemon=True).start()


def test_it_can_be_installed(phone, site):
    start(phone, site)
    settled(phone)
    assert phone.call("Page.getInstallabilityErrors")["installabilityErrors"] in (
        [],
        [{"errorId": "in-incognito", "errorArguments": []}],
    )
    described = json.loads((site.folder / "app.webmanifest").read_text())
    assert described["display"] == "standalone"
    for icon in described["icons"]:
        assert (site.folder / icon["src"]).exists()


def test_a_new_model_is_taken_at_the_next_start(phone, site):
    start(phone, site)
    settled(phone)
    site.describe(dataset="other pictures")
    for expected in (False, True):
        phone.run("window.before = true")
        phone.reload()
        phone.wait("!window.before && document.body.dataset.offline")
        phone.run("location.hash = '#model'")
        assert ("other pictures" in phone.wait("document.getElementById('card').innerText")) is expected
        assert ("A new model" in phone.text("#notices")) is not expected


def refuse(site: Site, known: manifest.Manifest) -> None:
    """Deploy something that is no model, with the right checksum."""
    file = "model/" + next(e.file for e in known.files if e.role == "pruned" and e.format == "tflite")
    site.change(file, lambda old: b"no model" * 100)
    entries = json.loads((site.folder / "model" / "manifest.json").read_text())["files"]
    digest = manifest.sha256_of(site.folder / file)
    site.describe(files=[{**entry, "sha256": digest} for entry in entries if entry["role"] == "pruned"])


def again(page: Page) -> None:
    page.run("window.before = true")
    page.reload()
    page.wait("!window.before && (document.body.dataset.offline || document.body.dataset.asked)")


@pytest.mark.parametrize("damage", ["refused", "version"])
def test_a_kept_model_that_fails_is_replaced_once_there_is_another(phone, site, web, known, damage):
    start(phone, site)
    settled(phone)
    if damage == "refused":
        refuse(site, known)
    else:
        site.describe(manifest_version=99)
    for _ in range(2):
        again(phone)
    assert "cannot be used" in notices(phone)
    shutil.rmtree(site.folder / "model")
    shutil.copytree(web / "dist" / "model", site.folder / "model")
    again(phone)
    assert "A new model is here" in notices(phone)
    phone.click("[data-kind=update] button")
    phone.wait("document.body?.dataset.state == 'ready'")


def test_what_is_missing_of_the_app_is_fetched_again(phone, site):
    start(phone, site)
    settled(phone)
    missing = phone.run("""(async () => {
        const names = await caches.keys();
        const cache = await caches.open(names.find((name) => name.startsWith('app ')));
        const {url} = (await cache.keys()).find(({url}) => url.endsWith('.css'));
        await cache.delete(url);
        return url;
    })()""")
    (file,) = (site.folder / "assets").glob(f"*{missing.split('/')[-1]}")
    content = file.read_bytes()
    file.unlink()
    again(phone)
    assert phone.run("document.body.dataset.offline") == "no"
    assert "404" in phone.run("document.getElementById('card').textContent")
    file.write_bytes(content)
    again(phone)
    assert phone.run("document.body.dataset.offline") == "yes"


def test_a_page_of_an_earlier_build_finds_its_files(phone, site):
    start(phone, site)
    settled(phone)
    phone.run("caches.open('app earlier').then((cache) => cache.put('assets/earlier.js', new Response('here')))")
    assert phone.run("fetch('assets/earlier.js').then((found) => found.text())") == "here"
    assert phone.run("fetch('assets/never.js').then(({status}) => status)") == 404


def test_a_part_of_a_new_model_is_not_kept(phone, site, known):
    kept = "caches.open('model').then((cache) => cache.keys()).then((all) => all.map(({url}) => url).sort())"
    start(phone, site)
    settled(phone)
    before = phone.run(kept)
    golden = json.loads((site.folder / "model" / "manifest.json").read_text())["golden"]
    (site.folder / "model" / golden[0]["file"]).rename(site.folder / "model" / "other.png")
    site.describe(golden=[{**golden[0], "file": "other.png"}, {**golden[1], "file": "none.png"}])
    again(phone)
    assert phone.run(kept) == before


def test_the_camera_is_followed(phone, site, known):
    start(phone, site)
    phone.click("#live")
    assert answer(phone) == known.labels[int(np.argmax(known.golden[0].model))]
    phone.wait("document.getElementById('figures').innerText.includes('p90')")
    assert re.search(r"\d /s", phone.wait("/\\d \\/s/.test(document.getElementById('figures').innerText)"
                                          " && document.getElementById('figures').innerText"))  # fmt: skip
    phone.click("#live")
    assert phone.run("document.body.dataset.source") == "none"
    assert phone.run("document.getElementById('video').srcObject") is None
    assert phone.console == []


def test_a_denied_camera_is_explained(chromium, site):
    page = chromium.page()
    denied = {"permission": {"name": "camera"}, "setting": "denied", "browserContextId": page._context}
    chromium.call("Browser.setPermission", **denied)
    start(page, site)
    page.click("#live")
    assert "may not use the camera" in notices(page)
    assert page.run("document.body.dataset.source") == "none"
    assert page.console == []
    page.close()


PROMPT = """
    window.asked = 0;
    window.streams = [];
    window.locks = 0;
    const media = navigator.mediaDevices;
    const real = media.getUserMedia.bind(media);
    media.getUserMedia = async (wanted) => {
        asked++;
        await new Promise((resolve, reject) => {
            window.allow = resolve;
            window.deny = () => reject(new DOMException('no', 'NotAllowedError'));
        });
        const stream = await real(wanted);
        streams.push(stream);
        return stream;
    };
    navigator.wakeLock.request = async () => (locks++, {release: async () => locks--});
    window.on = () => streams.flatMap((each) => each.getTracks()).filter((each) => each.readyState == 'live').length;"""
"""A camera that the user is asked for: allow() and deny() are the answers."""


@pytest.fixture
def asked(phone, site) -> Page:
    before_the_page(phone, PROMPT)
    start(phone, site)
    return phone


def off(page: Page) -> bool:
    """Camera and screen lock have gone, and stay so."""
    page.wait("streams.length > 0 && on() == 0 && locks == 0")
    return page.run("""new Promise((done) => setTimeout(done, 200)).then(() => on() == 0 && locks == 0
        && document.body.dataset.source != 'camera' && document.getElementById('flip').hidden)""")


def test_a_photo_takes_the_place_of_a_camera_that_is_still_asked_for(asked, web, known):
    for answered in ("allow", "deny"):
        asked.click("#live")
        asked.choose(web / "public" / "model" / known.golden[0].file)
        figures(asked)
        asked.run(f"{answered}()")
        assert off(asked)
        assert asked.run("document.body.dataset.source") == "photo"
        assert answer(asked) == known.labels[int(np.argmax(known.golden[0].model))]
        assert asked.text("#notices") == ""


def test_a_camera_that_is_asked_for_can_be_stopped(asked):
    for stop in ("document.getElementById('live').click()", "location.hash = '#model'"):
        asked.run("location.hash = ''; window.streams = []")
        asked.click("#live")
        assert asked.text("#live") == "Stop"
        asked.run(stop)
        asked.wait("document.getElementById('live').textContent.includes('Camera')")
        asked.run("allow()")
        assert off(asked)
    asked.run("location.hash = ''; window.streams = []")
    asked.click("#live")
    asked.run("allow()")
    asked.wait("document.body.dataset.source == 'camera'")
    assert asked.run("[on(), locks]") == [1, 1]
    asked.click("#live")
    assert off(asked)
    assert asked.text("#notices") == ""


def test_a_page_out_of_sight_has_no_camera(asked, web, known):
    asked.click("#live")
    show_or_hide(asked, True)
    asked.run("allow()")
    assert off(asked)
    show_or_hide(asked, False)
    asked.wait("asked == 2")
    asked.run("allow()")
    asked.wait("document.body.dataset.source == 'camera'")
    show_or_hide(asked, True)
    assert off(asked)
    asked.choose(web / "public" / "model" / known.golden[0].file)  # somebody wants something else meanwhile
    answer(asked)
    show_or_hide(asked, False)
    assert asked.run("asked") == 2


def test_the_other_camera_is_the_next_one_where_none_says_its_side(asked):
    asked.run("""{
        const media = navigator.mediaDevices;
        const real = media.getUserMedia;
        media.enumerateDevices = async () => ['a', 'b'].map((deviceId) => ({kind: 'videoinput', deviceId}));
        media.getUserMedia = async (wanted) => {
            window.wanted = wanted.video.deviceId?.exact;
            const promise = real({video: true});
            allow();
            const stream = await promise;
            stream.getVideoTracks()[0].getSettings = () => ({deviceId: wanted.video.deviceId?.exact ?? 'a'});
            return stream;
        };
    }""")
    asked.click("#live")
    for other in ("b", "a"):
        asked.wait("!document.getElementById('flip').hidden")
        asked.click("#flip")
        asked.wait(f"window.wanted == '{other}' && on() == 1")


def test_without_isolation_there_is_one_thread(phone, site, known, web, monkeypatch):
    for header in ISOLATION:
        monkeypatch.delitem(app_server.HEADERS, header)
    start(phone, site)
    assert phone.run("[self.crossOriginIsolated, typeof SharedArrayBuffer]") == [False, "undefined"]
    phone.choose(web / "public" / "model" / known.golden[0].file)
    assert answer(phone) == known.labels[int(np.argmax(known.golden[0].model))]
    assert "one thread" in phone.text("#status")
    settled(phone)
    assert phone.run("document.body.dataset.offline") == "yes"


@pytest.mark.parametrize("damage", ["no manifest", "no JSON", "version", "no model", "no file", "corrupt", "no graph"])
def test_a_model_that_is_not_whole_is_told(phone, site, known, damage):
    file = "model/" + next(e.file for e in known.files if e.role == "pruned" and e.format == "tflite")
    if damage == "no manifest":
        (site.folder / "model" / "manifest.json").unlink()
    elif damage == "no JSON":
        site.change("model/manifest.json", lambda old: old[:100])
    elif damage == "version":
        site.describe(manifest_version=99)
    elif damage == "no model":
        site.describe(files=[])
    elif damage == "no file":
        (site.folder / file).unlink()
    elif damage == "corrupt":
        site.change(file, lambda old: old[:-1] + bytes([old[-1] ^ 1]))
    else:  # the right checksum of something that is no model
        site.change(file, lambda old: b"no model" * 100)
        entries = json.loads((site.folder / "model" / "manifest.json").read_text())["files"]
        digest = manifest.sha256_of(site.folder / file)
        site.describe(files=[{**entry, "sha256": digest} for entry in entries if entry["role"] == "pruned"])
    phone.open(site.url)
    phone.wait("document.body.dataset.state == 'failed'")
    assert "The model cannot be used" in notices(phone)
    told = {
        "no manifest": "No model has been deployed", "no JSON": "manifest.json, is damaged", "version": "version 99",
        "no model": "names no model", "no file": "404", "corrupt": "did not arrive whole", "no graph": "",
    }  # fmt: skip
    assert told[damage] in notices(phone)
    assert phone.run("document.getElementById('live').disabled && document.getElementById('choose').disabled")


def test_a_model_that_cannot_compute_leaves_nothing_to_press(phone, site):
    before_the_page(phone, WORKERS)
    before_the_page(phone, "window.tell = (call) => { if (call.do === 'time') call.name = 'nothing'; }")
    phone.open(site.url)
    phone.wait("document.body.dataset.state == 'failed'")
    assert "cannot be used" in notices(phone)
    assert phone.run("['live', 'choose', 'check-run'].every((id) => document.getElementById(id).disabled)")


def test_other_numbers_than_the_golden_ones_are_warned_of(phone, site):
    content = json.loads((site.folder / "model" / "manifest.json").read_text())
    for golden in content["golden"]:
        golden["artifacts"] = {name: [row[0] + 1, *row[1:]] for name, row in golden["artifacts"].items()}
    site.describe(golden=content["golden"])
    start(phone, site)
    phone.wait("document.body.dataset.golden == 'bad'")
    assert "not to be trusted" in notices(phone)
    assert "1.00 off" in notices(phone)


def test_a_missing_golden_picture_does_not_take_the_app_away(phone, site, known):
    (site.folder / "model" / known.golden[1].file).unlink()
    start(phone, site)
    phone.wait("document.body.dataset.golden == 'unknown'")
    assert "could not be checked" in notices(phone)
    assert "cannot be used" not in notices(phone)
    assert phone.run("document.body.dataset.state") == "ready"
    assert "could not be checked" in phone.run("document.getElementById('card').textContent")
    settled(phone)  # times are taken all the same


def test_a_clock_that_shows_nothing_gives_no_ratio(phone, site):
    before_the_page(phone, WORKERS)
    before_the_page(phone, "window.hear = ({value}) => { if (value?.logits) value.milliseconds = 0; }")
    start(phone, site)
    settled(phone)
    assert "not measurable" in phone.text("#bought")
    assert not re.search("NaN|Infinity|faster", phone.text("#bought"))


GPU = """
    Object.defineProperty(navigator, 'gpu', {value: {}});
    window.tell = (call, worker) => {
        if (call.accelerator === 'webgpu') { call.accelerator = 'wasm'; call.threads = 1; worker.gpu = true; }
        if (call.do === 'time' && worker.gpu && window.broken) call.name = 'nothing';
    };
    window.hear = ({value}, worker) => {
        if (value?.threads && worker.gpu) value.runtime = 'GPU';
        if (value?.logits && worker.gpu) value.milliseconds /= 100;
    };"""
"""The processor in the role of a fast graphics processor, which can be broken."""


def test_a_graphics_processor_that_fails_gives_way_to_the_processor(phone, site, known, web):
    before_the_page(phone, WORKERS)
    before_the_page(phone, GPU)
    start(phone, site)
    phone.wait("document.body.dataset.gpu == 'yes'")
    assert "GPU" in phone.text("#status")
    phone.wait("caches.match('litert/litert_wasm_internal.wasm').then(Boolean)")  # for a start without a network
    assert phone.run("localStorage.length") == 0
    phone.run("window.broken = true")
    for golden in known.golden[:2]:
        phone.choose(web / "public" / "model" / golden.file)
        figures(phone)
        assert answer(phone) == known.labels[int(np.argmax(golden.model))]
    assert phone.run("document.body.dataset.gpu") == "no"
    assert "wasm" in phone.text("#status")
    assert "has failed" in notices(phone)


def test_a_graphics_processor_that_took_the_page_down_is_not_tried_again(phone, site):
    before_the_page(phone, WORKERS)
    before_the_page(phone, GPU)
    before_the_page(phone, "localStorage.setItem('gpu trial', navigator.userAgent)")
    start(phone, site)
    phone.wait("document.body.dataset.gpu == 'no'")
    assert "did not survive" in phone.run("document.getElementById('card').textContent")
    assert phone.text("#notices") == ""


def test_a_graphics_processor_that_does_not_work_is_not_used(phone, site):
    phone.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="Object.defineProperty(navigator, 'gpu', {value: {requestAdapter: async () => ({})}})",
    )
    start(phone, site)
    phone.wait("document.body.dataset.gpu == 'no'")
    assert "WebAssembly" in phone.text("#status") or "wasm" in phone.text("#status")
    assert "not used" in phone.run("document.getElementById('card').textContent")


# Pictures


VIEWS = {
    "64": {"size": 64, "crop_ratio": 1.0},
    "224 / 0.9": {"size": 224, "crop_ratio": 0.9},
    "96, bilinear": {"size": 96, "crop_ratio": 0.875, "interpolation": "bilinear"},
    "96, squash": {"size": 96, "crop_ratio": 0.9, "crop_mode": "squash"},
}
SHAPES = [(8, 8), (1, 1), (3, 200), (64, 64), (375, 500), (450, 200), (1001, 480), (24, 9000)]


OLD = """
    const create = self.createImageBitmap;
    self.createImageBitmap = (source, wanted = {}) => wanted.imageOrientation === 'from-image'
        ? Promise.reject(new TypeError('no such orientation')) : create(source, wanted);
    Object.defineProperty(navigator, 'deviceMemory', {value: undefined});"""
"""A worker as in an older browser."""


@pytest.fixture(scope="module", params=["", OLD], ids=["new", "old"])
def prepare(request, chromium, web) -> Iterator[Callable[[bytes, View], np.ndarray]]:
    """The worker's own: bytes of an image file and a view -> RGB (size, size, 3)."""
    server = app_server.server(web / "dist", "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    page = chromium.page()
    page.open(f"http://127.0.0.1:{server.server_port}/")
    (worker,) = (path.name for path in (web / "dist" / "assets").glob("worker-*.js"))
    page.run(f"""
        const script = {json.dumps(request.param)} + `;importScripts("${{location.origin}}/assets/{worker}")`;
        window.worker = new Worker(URL.createObjectURL(new Blob([script])));
        window.prepare = (text, rule) => new Promise((resolve, reject) => {{
            worker.onmessage = ({{data}}) => {{
                if (data.error) return reject(new Error(data.error));
                const bytes = Uint8Array.from(data.value.pixels);
                let out = '';
                for (let i = 0; i < bytes.length; i += 8192) out += String.fromCharCode(...bytes.subarray(i, i + 8192));
                resolve(btoa(out));
            }};
            const source = new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))]);
            worker.postMessage({{id: 0, call: {{do: 'prepare', source, rule, preview: 0}}}});
        }}); null""")

    def prepare(file: bytes, view: View) -> np.ndarray:
        rule = json.dumps(augment.resize_rule(view))
        found = base64.b64decode(page.run(f"prepare('{base64.b64encode(file).decode()}', {rule})"))
        return np.frombuffer(found, np.uint8).reshape(view.size, view.size, 3).astype(int)

    yield prepare
    page.close()
    server.shutdown()
    server.server_close()


def view_of(name: str) -> View:
    return View(mean=(0.5,) * 3, std=(0.5,) * 3, **VIEWS[name])


@pytest.mark.parametrize("name", VIEWS)
def test_pictures_are_prepared_as_the_pipeline_does(prepare, name):
    view = view_of(name)
    for shape in SHAPES:
        pixels = stripes(*shape)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        difference = np.abs(prepare(file.getvalue(), view) - augment.eval_transform(view)(of_array(pixels)))
        assert difference.max() <= 1, f"{shape}: {(difference > 1).mean():.1%} of the values"
        assert (difference > 0).mean() < 0.001, shape


def test_golden_pictures_are_prepared_to_the_bit(prepare, web, known):
    view = view_of("64")
    for golden in known.golden:
        file = web / "public" / "model" / golden.file
        np.testing.assert_array_equal(prepare(file.read_bytes(), view), np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "P", "LA"])
def test_grey_palette_and_opaque_alpha_become_rgb(prepare, mode):
    image = Image.fromarray(stripes(90, 120)).convert("L").convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    view = view_of("64")
    expected = augment.eval_transform(view)(open_picture(file.getvalue(), "a.png"))
    assert np.abs(prepare(file.getvalue(), view) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_says(prepare, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(stripes(300, 420)).save(file, "JPEG", quality=95, exif=exif)
    view = view_of("224 / 0.9")
    difference = np.abs(
        prepare(file.getvalue(), view) - augment.eval_transform(view)(open_picture(file.getvalue(), "a.jpg"))
    )
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_a_photo_of_100_megapixels_is_classified_and_the_page_stays_alive(phone, site, known, classify, tmp_path):
    tile = stripes(870, 1160)
    path = save(tmp_path / "huge.jpg", np.tile(tile, (10, 10, 1)), quality=50)
    view = View(mean=(0.5,) * 3, std=(0.5,) * 3, **VIEWS["64"])
    expected = classify(augment.eval_transform(view)(open_picture(path.read_bytes(), "huge.jpg")))
    start(phone, site)
    settled(phone)
    phone.run("""
        window.gap = 0;
        let last = performance.now();
        setInterval(() => { const now = performance.now(); gap = Math.max(gap, now - last); last = now; }, 10); null""")
    phone.choose(path)
    phone.wait("!document.getElementById('busy').hidden")
    assert answer(phone) == expected
    assert "11600 × 8700" in figures(phone)
    assert phone.run("gap") < 500
    assert phone.text("#notices") == ""


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("notes.txt", b"this is no picture", "no picture that this browser can read"),
        ("nothing.png", b"", "empty"),
        ("half.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "damaged"),
        ("a.heic", b"\0\0\0\x18ftypheic" + b"\0" * 64, "HEIC"),
        ("bomb.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4) * 2 + b"\x08\2\0\0\0", "3600 megapixels"),
    ],
)
def test_what_is_no_picture_is_told(phone, site, tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    start(phone, site)
    phone.choose(tmp_path / name)
    assert told in notices(phone)
    assert phone.run("document.getElementById('busy').hidden")
    assert phone.console == []


@pytest.mark.parametrize("prepare", [OLD], indirect=True, ids=["old"])
def test_a_browser_that_does_not_tell_its_memory_gets_pictures_for_a_phone(prepare):
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (11_000).to_bytes(4) * 2 + b"\x08\2\0\0\0"
    with pytest.raises(browser_driver.BrowserError, match="Up to 100 fit"):
        prepare(header, view_of("64"))


def test_the_answer_is_that_of_the_picture_on_show(phone, site, known, web):
    before_the_page(phone, WORKERS)
    start(phone, site)
    settled(phone)
    first, second = (web / "public" / "model" / golden.file for golden in known.golden[:2])
    phone.choose(first)
    figures(phone)
    phone.run("window.hold = 'prepare'")
    phone.choose(second)
    phone.wait("!!window.release && document.getElementById('top').hidden")
    phone.click("[value=dense]")
    assert not phone.run("document.getElementById('busy').hidden")
    phone.run("window.hold = null; release()")
    figures(phone)
    dense = answer(phone)
    phone.click("[value=pruned]")
    phone.wait("document.getElementById('busy').hidden && !document.getElementById('figures').hidden")
    assert answer(phone) == known.labels[int(np.argmax(known.golden[1].model))]
    phone.click("[value=dense]")
    figures(phone)
    assert answer(phone) == dense


def test_nothing_is_being_looked_at_once_the_camera_is_wanted(phone, site, known, web):
    before_the_page(phone, WORKERS)
    start(phone, site)
    settled(phone)
    phone.run("window.hold = 'prepare'")
    phone.choose(web / "public" / "model" / known.golden[0].file)
    phone.wait("!!window.release")
    phone.run("window.hold = null")
    phone.click("#live")
    assert phone.run("document.getElementById('busy').hidden")
    phone.run("release()")
    phone.wait("!document.getElementById('top').hidden")
    assert phone.run("document.body.dataset.source") == "camera"


def test_a_model_that_fails_on_a_picture_is_told(phone, site, known, web):
    before_the_page(phone, WORKERS)
    start(phone, site)
    settled(phone)
    phone.choose(web / "public" / "model" / known.golden[0].file)
    figures(phone)
    phone.run("window.tell = (call) => { if (call.do === 'time') call.name = 'nothing'; }")
    phone.click("[value=dense]")
    assert "That did not work" in notices(phone)
    assert phone.run("document.getElementById('busy').hidden && document.getElementById('top').hidden")
    assert phone.console == []


# The other views, and how everything looks


def test_the_check_gives_its_result_as_json(phone, site, known, tmp_path, chromium):
    start(phone, site)
    settled(phone)
    chromium.call(
        "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), browserContextId=phone._context
    )
    phone.run("location.hash = '#check'")
    phone.click("#check-run")
    phone.wait("!document.getElementById('check-save').hidden")
    assert "It computes what it should" in phone.text("#check-results")
    phone.click("#check-save")
    path = tmp_path / "classifier-check.json"
    browser_wait(path.exists)
    result = json.loads(path.read_text())
    pruned = next(entry for entry in known.files if entry.role == "pruned" and entry.format == "tflite")
    assert (result["file"], result["sha256"], result["warning"]) == (pruned.file, pruned.sha256, None)
    assert result["golden_error"] < 1e-4
    assert result["golden_top1"] == [known.labels[int(np.argmax(golden.model))] for golden in known.golden]
    found = result["latency"][pruned.file]
    assert found["samples"] >= 128
    assert found["p50_ms"] == pytest.approx(np.percentile(found["samples_ms"], 50))
    assert found["p90_ms"] == pytest.approx(np.percentile(found["samples_ms"], 90))
    assert len(result["latency"]) == 2


def test_nothing_else_runs_during_a_check_which_can_be_cancelled(phone, site, known, web):
    before_the_page(phone, PROMPT)
    start(phone, site)
    settled(phone)
    used = "['live', 'choose', 'switch'].filter((id) => !document.getElementById(id).disabled)"
    assert len(phone.run(used)) == 3
    phone.run("location.hash = '#check'")
    phone.wait("document.body.dataset.view == 'check'")
    phone.run("document.getElementById('check-run').focus()")
    phone.click("#check-run")
    phone.wait("document.getElementById('check-text').textContent.startsWith('Time')")
    assert phone.run(used) == []
    assert phone.run("locks") == 1
    assert "runs" in phone.run("document.getElementById('check-said').textContent")
    phone.choose(web / "public" / "model" / known.golden[0].file)
    assert "A check runs" in notices(phone)
    assert phone.text("#check-run") == "Cancel"
    phone.click("#check-run")
    phone.wait("document.getElementById('check-progress').hidden", 5)
    assert len(phone.run(used)) == 3
    assert phone.run("document.activeElement.id") == "check-run"
    phone.wait("locks == 0")
    assert phone.run("document.getElementById('check-save').hidden")


def test_a_check_without_golden_pictures_takes_times(phone, site):
    """Which take a second here: their protocol is that of the check above."""
    quick = rb"(name:.quick.,seconds:1)0"
    (script,) = (path for path in site.folder.rglob("*.js") if re.search(quick, path.read_bytes()))
    site.change(str(script.relative_to(site.folder)), lambda old: re.sub(quick, rb"\1", old))
    site.describe(golden=[])
    start(phone, site)
    settled(phone)
    assert "could not be checked" in phone.run("document.getElementById('card').textContent")
    phone.run("location.hash = '#check'")
    phone.click("#check-run")
    phone.wait("!document.getElementById('check-save').hidden")
    assert "could not be checked" in phone.text("#check-results")
    assert re.search(r"p50\)\s+[\d.]+ ms", phone.text("#check-results"))
    assert "is done" in phone.run("document.getElementById('check-said').textContent")


def browser_wait(condition: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(100):
        if condition():
            return
        event.wait(0.1)
    raise AssertionError("not within 10 s")


@pytest.mark.parametrize(("width", "height"), [(320, 568), (360, 800), (1280, 800)])
def test_everything_fits_with_long_names_and_many_classes(chromium, site, known, web, width, height):
    site.describe(labels=[f"{LONG} {i}" for i in range(1010)], golden=[])  # whose logits would be too few
    page = chromium.page(width=width, height=height, mobile=width < 600)
    start(page, site)
    page.choose(web / "public" / "model" / known.golden[0].file)
    assert LONG in answer(page)
    settled(page)
    for view in ("classify", "check", "model"):
        page.run(f"location.hash = '#{view}'")
        page.wait(f"document.body.dataset.view == '{view}'")
        assert page.run("document.documentElement.scrollWidth - innerWidth") <= 0
        cut = page.run("""[...document.querySelectorAll('button, nav a, h2, dd')].filter((each) =>
            each.checkVisibility() && !each.closest('.hidden') && each.scrollWidth > each.clientWidth + 1
            && getComputedStyle(each).display !== 'inline').map((each) => each.outerHTML)""")
        assert cut == []
    page.run("const search = document.querySelector('[type=search]'); search.value = 'on 1009';"
             "search.dispatchEvent(new Event('input'))")  # fmt: skip
    assert page.run("document.querySelectorAll('.classes li:not([hidden])').length") == 1
    page.close()


def test_everything_that_can_be_used_has_a_name_and_is_large_enough(phone, site):
    start(phone, site)
    settled(phone)
    for view in ("classify", "check", "model"):
        phone.run(f"location.hash = '#{view}'")
        phone.wait(f"document.body.dataset.view == '{view}'")
        nodes = phone.call("Accessibility.getFullAXTree")["nodes"]
        used = [n for n in nodes if not n["ignored"] and n["role"]["value"] in ("button", "link", "radio", "searchbox")]
        assert used
        assert [n for n in used if not n.get("name", {}).get("value")] == []
        small = phone.run("""[...document.querySelectorAll('button, nav a, label')].filter((each) => {
            const {width, height} = each.getBoundingClientRect();
            return each.checkVisibility() && (width < 36 || height < 36);
        }).map((each) => each.outerHTML)""")
        assert small == []


def test_the_keyboard_is_enough(phone, site):
    start(phone, site)
    settled(phone)
    reached = []
    for _ in range(24):
        for kind in ("keyDown", "keyUp"):
            phone.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(phone.run("document.activeElement.id || document.activeElement.value || "
                                 "document.activeElement.innerText || document.activeElement.ariaLabel"))  # fmt: skip
    assert {"Skip to the content", "Check", "Model", "pruned", "live", "choose", "Test picture 1"} <= set(reached)
    assert not {"file", "shot"} & set(reached)


def test_the_content_can_be_skipped_to_in_every_view(phone, site):
    start(phone, site)
    for view in ("check", "model", "classify"):
        phone.run(f"location.hash = '#{view}'")
        phone.wait(f"document.body.dataset.view == '{view}'")
        phone.click(".skip")
        assert phone.run("[document.activeElement.id, document.body.dataset.view]") == ["main", view]


def test_every_photo_is_spoken_of_and_the_test_pictures_stay(phone, site, known):
    start(phone, site)
    settled(phone)
    for i, golden in enumerate(known.golden[:2]):
        phone.run(
            f"{{const button = document.querySelectorAll('#sample-list button')[{i}]; button.focus(); button.click()}}"
        )
        phone.wait("!document.getElementById('figures').hidden")
        expected = known.labels[int(np.argmax(golden.model))]
        assert phone.wait("document.getElementById('spoken').textContent").startswith(expected)
        assert phone.run("document.activeElement.ariaLabel") == f"Test picture {i + 1}"


def test_what_was_typed_stays_when_something_new_is_known(phone, site):
    site.describe(labels=[f"class {i}" for i in range(1010)], golden=[])
    before_the_page(phone, WORKERS)
    before_the_page(phone, "window.tell = ({name}) => { if (name == 'dense') window.hold = 'load'; }")
    start(phone, site)
    phone.wait("!!window.release")
    phone.run("location.hash = '#model'")
    phone.wait("document.body.dataset.view == 'model'")
    phone.run("""document.querySelector('details').open = true;
        const search = document.querySelector('[type=search]'); search.value = 'class 7'; search.focus(); null""")
    phone.run("release()")
    settled(phone)
    assert phone.run("[document.activeElement.value, document.querySelector('details').open]") == ["class 7", True]


def test_forced_colours_show_what_is_chosen(phone, site):
    start(phone, site)
    phone.call("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
    assert phone.run("getComputedStyle(document.querySelector('#switch :checked + span')).outlineStyle") == "solid"


def test_colours_can_be_told_apart():
    """WCAG's contrast, 4.5 for text and 3 for what is drawn, light and dark."""
    css = (browser.WEB / "src" / "app.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\)", css))

    def luminance(name: str, theme: int) -> float:
        code = colours[name].split(", ")[theme]
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    pairs = [("text", "ground"), ("text", "card"), ("quiet", "ground"), ("quiet", "card"), ("quiet", "raised"),
             ("accent", "card"), ("on-accent", "accent"), ("bad", "bad-ground"), ("warn", "warn-ground"),
             ("text", "bad-ground"), ("text", "warn-ground"), ("bad", "card"), ("warn", "card")]  # fmt: skip
    for least, (front, back) in [*((4.5, pair) for pair in pairs), (3.0, ("dense", "card"))]:
        for theme in (0, 1):
            lighter, darker = sorted((luminance(front, theme), luminance(back, theme)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= least, (front, back, theme)


def test_it_moves_nothing_for_those_who_ask_for_that(chromium, site):
    page = chromium.page(still=True)
    start(page, site)
    assert page.run("getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"
    page.close()


def test_something_is_there_to_see_before_the_model_is(phone, site):
    """The first paint comes without a byte of model or runtime."""
    for name in ("model", "litert"):
        shutil.rmtree(site.folder / name)
    phone.open(site.url)
    assert phone.wait("performance.getEntriesByName('first-contentful-paint')[0]?.startTime") < 3000
    assert "Classify" in phone.text("nav")
    built = [*(site.folder / "assets").glob("index-*"), *(site.folder / "assets").glob("job-*")]
    assert sum(path.stat().st_size for path in built) < 60_000


def test_the_sources_know_nothing_of_a_model(known):
    """No name, class or size of any model or data set."""
    sources = [browser.WEB / "index.html", *(browser.WEB / "src" / "app").glob("*.ts")]
    words = r"\b(deit|vit|imagenet|cifar|inat|ifood|224)\b"
    for path in sources:
        assert not re.search(words, path.read_text(), re.IGNORECASE), path
    assert "resolved" not in (browser.WEB / "package-lock.json").read_text(), "it names where packages come from"


# The command


def test_the_command_serves_the_built_app(web, monkeypatch):
    monkeypatch.chdir(web.parents[1])
    monkeypatch.setattr(browser, "WEB", web)
    made: list[ThreadingHTTPServer] = []
    serving = threading.Event()
    original = app_server.server

    def server(*arguments) -> ThreadingHTTPServer:
        made.append(original(*arguments))
        serving.set()
        return made[0]

    monkeypatch.setattr(app_server, "server", server)
    result = []
    runner = functools.partial(CliRunner().invoke, command.app, ["app", "--target", "web", "--port", "0"])
    thread = threading.Thread(target=lambda: result.append(runner()), daemon=True)
    thread.start()
    assert serving.wait(60)
    with browser_driver.running(PROGRAM) as chromium:
        page = chromium.page()
        page.open(f"http://127.0.0.1:{made[0].server_port}/")
        page.wait("document.body.dataset.state == 'ready'")
        assert page.run("self.crossOriginIsolated") is True
    made[0].shutdown()
    thread.join(20)
    assert result[0].exit_code == 0, result[0].output
    assert f"http://127.0.0.1:{made[0].server_port}/" in result[0].output


def test_a_build_that_broke_off_or_is_older_than_its_pictures_is_done_again(tmp_path, monkeypatch):
    for folder in ("src", "public", "public/model", "dist"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "public" / "icon.svg").write_text("")
    ran: list[str] = []
    code = 1

    def run(command: list[str], **options) -> subprocess.CompletedProcess:
        ran.append(command[-1])
        (tmp_path / "dist" / "runner.html").write_text("")
        return subprocess.CompletedProcess(command, code if command[-1] == "build" else 0, "", "")

    monkeypatch.setattr(browser, "WEB", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)

    def builds() -> bool:
        ran.clear()
        browser.build(lambda text: None)
        return bool(ran)

    assert builds()
    assert builds(), "it had broken off"
    code = 0
    assert builds()
    assert not builds()
    (tmp_path / "public" / "model" / "manifest.json").write_text("{}")
    os.utime(tmp_path / "public" / "model" / "manifest.json", (2e9, 2e9))
    assert not builds()
    os.utime(tmp_path / "public" / "icon.svg", (2e9, 2e9))
    assert builds()


def test_workers_are_bound_by_the_page_s_policy(site):
    (worker,) = (site.folder / "assets").glob("worker-*.js")
    with urllib.request.urlopen(f"{site.url}assets/{worker.name}") as answered:
        policy = answered.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert policy in (site.folder / "index.html").read_text()


def test_a_browser_that_goes_away_is_no_news(site, capfd):
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", site.server.server_port)) as connection:
            connection.sendall(b"GET /litert/litert_wasm_internal.wasm HTTP/1.1\r\nHost: a\r\n\r\n")
            connection.recv(100)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # gone at once
    threading.Event().wait(0.5)
    assert capfd.readouterr().err == ""


def test_a_job_s_file_that_has_gone_is_not_found(web, tmp_path):
    server = browser_server.Server(web / "dist", "127.0.0.1")
    try:
        server.pages["gone.js"] = tmp_path / "gone.js"
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(server.url("127.0.0.1").replace("runner.html", "gone.js"))
        assert raised.value.code == 404
        raised.value.close()
    finally:
        server.close()

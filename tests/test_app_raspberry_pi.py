"""The Raspberry Pi's app as it is unpacked on a board, run by this machine's Python; cameras are recorded frames."""

import ast
import contextlib
import dataclasses
import http.client
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import board_jobs
import browser_driver
import cv2
import emulated_board
import numpy as np
import pytest
import timm.data
from PIL import Image

from pipeline import apps
from pipeline.data import augment, images, index
from pipeline.data.view import View
from targets import executorch_program, manifest, tflite_program
from targets.artifact import RuntimeUnavailable, sha256_of
from targets.devices import browser
from targets.manifest import InputSpec

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
APP = ROOT / "apps" / "raspberry-pi"


@pytest.fixture(scope="module")
def bundle(finished, tmp_path_factory) -> Path:
    """The unpacked archive, with the small model of a finished run."""
    folder = tmp_path_factory.mktemp("pi")
    shutil.copytree(APP, folder / "apps" / "raspberry-pi", ignore=shutil.ignore_patterns("model", "__pycache__"))
    assert apps.install(finished[0] / "artifacts" / "host", "raspberry-pi", folder / "apps")
    archive = apps.bundle(folder / "classifier.tar.gz", folder / "apps")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    return folder / "unpacked" / apps.BUNDLE


@pytest.fixture
def app(monkeypatch):
    """The app's modules, in this process."""
    monkeypatch.syspath_prepend(str(APP))
    from classifier import camera, check, model, pictures, web

    return SimpleNamespace(camera=camera, check=check, model=model, pictures=pictures, web=web)


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "classifier"))


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "classifier", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def classify(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def hasten(folder: Path) -> None:
    """Let the quick check of a copy measure for less than its 10 s, where its time is not what is tested."""
    path = folder / "targets" / "latency.py"
    text = path.read_text()
    assert 'name="quick", seconds=10.0' in text
    path.write_text(text.replace('name="quick", seconds=10.0', 'name="quick", seconds=1.0'))


def described(folder: Path) -> manifest.Manifest:
    return manifest.read(folder / "model" / "manifest.json")


def test_the_golden_pictures_get_the_class_that_the_pipeline_gives_them(bundle):
    known = described(bundle)
    paths = [bundle / "model" / golden.file for golden in known.golden]
    code, out, err = classify(bundle, *paths, "--json")
    assert (code, err) == (0, "")
    for line, golden, path in zip(out.splitlines(), known.golden, paths, strict=True):
        found = json.loads(line)
        assert found["file"] == str(path)
        assert found["milliseconds"] > 0
        top = [entry["label"] for entry in found["top"]]
        assert top[0] == known.labels[int(np.argmax(golden.model))]
        assert len(top) == min(5, len(known.labels))
        assert sum(entry["probability"] for entry in found["top"]) == pytest.approx(1, abs=1e-6)


def test_a_folder_and_words_for_people(bundle, image_folder):
    code, out, _ = classify(bundle, image_folder / "val" / "along", "--top", "1")
    assert code == 0
    assert out.count("%") == 6


def test_every_file_that_cannot_be_read_is_named_and_the_others_go_on(bundle, tmp_path):
    text, cut = tmp_path / "notes.jpg", tmp_path / "cut.png"
    text.write_text("not a picture")
    golden = bundle / "model" / described(bundle).golden[0].file
    cut.write_bytes(golden.read_bytes()[:200])
    code, out, err = classify(bundle, text, cut, tmp_path / "missing.jpg", golden, "--json")
    assert code == 1
    assert len(out.splitlines()) == 1
    for name, words in (("notes.jpg", "no image"), ("cut.png", "cannot be read"), ("missing.jpg", "no such file")):
        assert any(name in line and words in line for line in err.splitlines()), err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("artifact", "has changed"),
        ("manifest", "not JSON"),
        ("missing", "which is missing"),
        ("none", "cannot be read"),
    ],
)
def test_damaged_files_are_refused(copy, damage, message):
    model = copy / "model"
    artifact = model / next(file.file for file in described(copy).files if file.role == "pruned")
    if damage == "artifact":
        content = bytearray(artifact.read_bytes())
        content[len(content) // 2] ^= 1
        artifact.write_bytes(content)
    elif damage == "manifest":
        (model / "manifest.json").write_text("{")
    elif damage == "missing":
        artifact.unlink()
    else:
        shutil.rmtree(model)
    code, out, err = classify(copy, copy / "any.jpg")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_model_that_computes_something_else_is_told_at_start(copy):
    path = copy / "model" / "manifest.json"
    content = json.loads(path.read_text())
    for golden in content["golden"]:
        golden["artifacts"] = {file: [-x for x in row] for file, row in golden["artifacts"].items()}
    path.write_text(json.dumps(content))
    hasten(copy)
    code, _, err = classify(copy, copy / "model" / "golden" / "0.png")
    assert code == 0
    assert "warning: the model computes something else here" in err
    assert classify(copy, "check", "--quick")[0] == 1


def test_a_runtime_without_a_file_is_told(bundle):
    code, _, err = classify(bundle, "photo.jpg", "--runtime", "executorch")
    assert code == 2
    assert "executorch: the manifest names no file for it" in err


def test_the_check_follows_the_protocol(bundle):
    code, out, _ = classify(bundle, "check", "--quick", "--threads", "1")
    found = json.loads(out)
    assert code == 0
    assert found["latency_ms"]["samples"] >= 128
    assert found["latency_ms"]["seconds"] >= 10
    assert found["warning"] is None
    assert 0 <= found["golden_error"] < 1e-3
    assert found["peak_mb"] > 0
    assert found["device"]["arch"]
    assert found["before"].keys() == found["after"].keys()


SPEC = InputSpec(height=64, width=64, color="RGB", range=(0.0, 255.0), resize={})


@pytest.mark.parametrize("size", [(64, 64), (50, 40), (640, 480), (481, 1000), (3000, 65), (1, 700)])
@pytest.mark.parametrize(("crop_ratio", "mode"), [(1.0, "center"), (0.875, "center"), (0.9, "squash")])
def test_pictures_are_cut_to_the_bit_as_the_pipeline_cuts_them(app, size, crop_ratio, mode):
    view = View(
        size=64, crop_ratio=crop_ratio, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_mode=mode
    )
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    spec = InputSpec(height=64, width=64, color="RGB", range=(0.0, 255.0), resize=augment.resize_rule(view))
    expected = augment.eval_transform(view)(images.of_array(pixels))
    np.testing.assert_array_equal(app.pictures.fit(pixels, spec), expected)
    assert timm.data  # which eval_transform is held against elsewhere


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16"])
def test_files_are_read_as_the_pipeline_reads_them(app, tmp_path, orientation, mode):
    draw = np.random.default_rng(1)
    if mode == "I;16":
        image = Image.fromarray(draw.integers(0, 65536, (30, 20), dtype=np.uint16))
    else:
        image = Image.fromarray(draw.integers(0, 256, (30, 20, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / ("a.png" if mode != "CMYK" else "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    expected = images.open_picture(path.read_bytes(), "it").pixels()
    np.testing.assert_array_equal(app.pictures.read(path), expected)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("kept", [8, 10, 20, None])
def test_damaged_exif_says_nothing_about_the_pixels(app, tmp_path, suffix, kept):
    draw = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    content = exif.tobytes()[:kept]
    path = tmp_path / f"a{suffix}"
    Image.fromarray(draw.integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(path, exif=content)
    expected = images.open_picture(path.read_bytes(), "it").pixels()
    assert expected.shape == ((20, 30, 3) if kept is None else (30, 20, 3))
    np.testing.assert_array_equal(app.pictures.read(path), expected)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg", "a.webp", "a.gif", "a.ppm", "a.avif"])
def test_whatever_a_file_holds_it_is_read_or_refused(app, tmp_path, name):
    draw = np.random.default_rng(2)
    path = tmp_path / name
    Image.fromarray(draw.integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(path)
    sound = path.read_bytes()
    assert path.suffix in app.pictures.SUFFIXES
    np.testing.assert_array_equal(app.pictures.read(path), images.open_picture(sound, "it").pixels())
    for _ in range(60):
        content = bytearray(sound)
        for place in draw.integers(0, min(len(sound), 200), 4):
            content[place] = draw.integers(256)
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            app.pictures.read(path)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ValueError, match="no image that can be read here"):
        app.pictures.read(path)  # PostScript is a program


def test_the_pictures_of_a_folder_are_those_that_the_pipeline_finds(app, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (9, 8), "red").save(picture, "JPEG")
    names = ["a.JPG", "deep/er/b.mpo", "c.pbm", "d.jif", "no suffix", "e.photo", "f.heic"]
    junk = [".hidden.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg", "Thumbs.db", ".git/x.jpg"]
    for name in [*names, *junk]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture.getvalue())
    for name in ("notes.txt", "notes", "film.mp4", "raw.nef"):
        (tmp_path / name).write_bytes(b"II*\0" if name == "raw.nef" else b"text")
    os.mkfifo(tmp_path / "pipe")
    found = [str(path.relative_to(tmp_path)) for path in app.pictures.inside(tmp_path)]
    assert sorted(found) == sorted(names) == sorted(index.list_images(tmp_path).files)


def test_heic_gets_a_hint(app, tmp_path):
    (tmp_path / "IMG_1.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    with pytest.raises(ValueError, match="HEIC, which is not supported: convert it to JPEG"):
        app.pictures.read(tmp_path / "IMG_1.heic")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no picture"):
        app.pictures.inside(tmp_path / "empty")


class Page:
    """The page's server while it runs on recorded frames."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.process = start(folder, "serve", "--port", "0", "--threads", "1", *arguments, **environment)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def get(self, path: str, **headers: str) -> tuple[int, bytes, http.client.HTTPResponse]:
        place = self.url.removeprefix("http://").partition("/?")[0]
        connection = http.client.HTTPConnection("127.0.0.1", int(place.rstrip("/").rsplit(":", 1)[1]), timeout=20)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.said = self.process.communicate(timeout=20)[1]
        assert "Traceback" not in self.said


@pytest.fixture
def recording(tmp_path, image_folder) -> Path:
    """Frames as a camera gives them, 320x240, in a lossless video."""
    path = tmp_path / "recording.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 25, (320, 240))
    for picture in sorted((image_folder / "val" / "along").glob("*.png")):
        writer.write(cv2.resize(cv2.imread(str(picture)), (320, 240)))
    writer.release()
    return path


def test_the_page_shows_what_a_recorded_camera_sees(bundle, recording):
    with Page(bundle, "--camera", str(recording), CAMERA_PYTHON=sys.executable) as page:
        assert page.url.startswith("http://127.0.0.1:")
        status, content, answer = page.get("/")
        assert status == 200
        assert b"What the camera sees" in content
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        first = json.loads(page.get("/state?after=0")[1])
        second = json.loads(page.get(f"/state?after={first['number'] + 1}")[1])
        assert second["number"] > first["number"]
        assert {entry["label"] for entry in second["top"]} == set(described(bundle).labels)
        assert second["p90_ms"] >= second["p50_ms"] > 0
        assert "temperature_c" in second
        assert second["warning"] is second["failed"] is None
        card = json.loads(page.get("/about")[1])
        assert card["classes"] == list(described(bundle).labels)
        assert card["measured"]["verdict"] == "pass"
        assert page.get("/model/manifest.json")[0] == page.get("/../classify")[0] == 404


def test_the_picture_is_a_stream_of_jpegs(bundle, image_folder):
    with Page(bundle, "--camera", str(image_folder / "val" / "across")) as page:
        connection = http.client.HTTPConnection("127.0.0.1", int(page.url.rstrip("/").rsplit(":", 1)[1]), timeout=20)
        connection.request("GET", "/picture")
        begun = connection.getresponse().read(4000)
        assert begun.startswith(b"--next\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8")


def test_nobody_else_is_let_in(bundle, image_folder):
    frames = str(image_folder / "val" / "across")
    with Page(bundle, "--camera", frames) as page:
        assert page.get("/state", Host="evil.example:8000")[0] == 403, "a name that was pointed at this machine"
    with Page(bundle, "--camera", frames, "--host", "0.0.0.0") as page:
        token = page.url.split("token=")[1]
        port = page.url.rsplit("/?", 1)[0].rsplit(":", 1)[1]
        assert len(token) > 20
        assert page.get("/")[0] == page.get("/picture")[0] == page.get("/?token=wrong")[0] == 403
        assert page.get("/?token=%C3%A9")[0] == 403
        status, _, answer = page.get(f"/?token={token}")
        assert status == 200
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith(f"classifier-{port}="), "another port's page has another"
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert page.get("/state", Cookie=cookie.split(";")[0])[0] == 200
        assert page.get("/state", Cookie=f'theirs="{{"a": 1}}; {cookie.split(";")[0]}; b')[0] == 200
        assert page.get("/state", Cookie="classifier-1=\xe9")[0] == 403


def test_requests_that_make_no_sense_and_clients_that_go_are_no_errors(bundle, image_folder):
    with Page(bundle, "--camera", str(image_folder / "val" / "across")) as page:
        assert page.get("/state?after=%C2%B2")[0] == page.get(f"/state?after={5000 * '9'}")[0] == 400
        port = int(page.url.rstrip("/").rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 400")
        for _ in range(3):  # gone in the middle of a picture
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
                client.sendall(b"GET /picture HTTP/1.1\r\nHost: localhost\r\n\r\n")
                client.recv(100)
        assert page.get("/state")[0] == 200
        time.sleep(1)
    assert page.said == ""


def test_a_client_that_asks_nothing_is_let_go(app, monkeypatch):
    assert app.web.Handler.timeout == 30
    monkeypatch.setattr(app.web.Handler, "timeout", 0.3)
    with app.web.Server(("127.0.0.1", 0), None, None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with socket.create_connection(server.server_address, timeout=20) as client:
            client.sendall(b"GET /state")
            assert client.recv(100) == b""
        server.shutdown()


def test_a_camera_that_fails_is_shown_and_tried_again(bundle, recording, tmp_path):
    broken = tmp_path / "broken.avi"
    broken.write_bytes(b"no video")
    with Page(bundle, "--camera", str(broken), CAMERA_PYTHON=sys.executable) as page:
        state = wait_for(page, lambda state: state["failed"])
        assert "cannot be opened as a camera or video" in state["failed"]
        assert page.get("/")[0] == 200
        recording.replace(broken)
        assert wait_for(page, lambda state: not state["failed"])["top"]


def wait_for(page, found) -> dict:
    """The state, once it is as it should be."""
    deadline = time.monotonic() + 30
    state = json.loads(page.get("/state")[1])
    while not found(state):
        assert time.monotonic() < deadline, state
        state = json.loads(page.get(f"/state?after={state['number']}")[1])
    return state


def test_a_camera_that_is_none_and_addresses_that_cannot_be_served(bundle, image_folder):
    frames = image_folder / "val" / "across"
    with Page(bundle, "--camera", str(frames)) as page:
        port = page.url.rstrip("/").rsplit(":", 1)[1]
        code, _, err = classify(bundle, "serve", "--port", port, "--camera", frames)
        assert code == 2
        assert f"127.0.0.1:{port} cannot be served" in err
        assert "try another --port" in err
    for host in ("192.0.2.1", "no..name", "::1"):
        code, _, err = classify(bundle, "serve", "--host", host, "--port", "0", "--camera", frames)
        assert code == 2
        assert f"{host}:0 cannot be served" in err
        assert "--host is this machine's own address" in err
        assert "Traceback" not in err
    code, _, err = classify(bundle, "serve", "--port", "70000")
    assert code == 2
    assert "--port must be from 0" in err
    with Page(bundle, "--camera", "picamera9") as page:
        assert "picamera9 is no camera" in wait_for(page, lambda state: state["failed"])["failed"]


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Puts a module in the place of one that only a board has, for the process that has the camera."""
    launcher = tmp_path / "python"
    launcher.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("CAMERA_PYTHON", str(launcher))
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


# picamera2 cannot be had here: this has the calls that are used, from its manual
PICAMERA2 = """
import os, sys, time
import numpy
class Picamera2:
    @staticmethod
    def global_camera_info(): return [{"Model": "imx708", "Num": 0}]
    def create_video_configuration(self, main):
        assert main == {"format": "BGR888", "size": (640, 480)}, main
        return main
    def configure(self, configuration): self.ready = bool(configuration)
    def start(self): assert self.ready
    def capture_array(self, name):
        assert name == "main"
        return numpy.full((480, 640, 3), (200, 10, 20), numpy.uint8)
"""


def test_the_pi_camera_is_asked_for_rgb(bundle, stand_in):
    stand_in("picamera2", PICAMERA2)
    with Page(bundle, "--camera", "picamera2") as page:
        assert wait_for(page, lambda state: "top" in state)["failed"] is None
    with Page(bundle, "--camera", "picamera2", CAMERA_PYTHON=sys.executable) as page:
        failed = wait_for(page, lambda state: state["failed"])["failed"]
        assert "sudo apt install python3-picamera2" in failed


def test_a_usb_camera_is_opened_by_number(app, stand_in):
    stand_in("cv2", """
import numpy
CAP_V4L2, CAP_PROP_FRAME_WIDTH, CAP_PROP_FRAME_HEIGHT, CAP_PROP_BUFFERSIZE, COLOR_BGR2RGB = 200, 3, 4, 38, 4
class VideoCapture:
    def __init__(self, *source): assert source == (12, CAP_V4L2), source
    def isOpened(self): return True
    def set(self, what, value): pass
    def read(self): return True, numpy.full((2, 3, 3), (1, 2, 3), numpy.uint8)
def cvtColor(frame, how): return frame[..., ::-1] if how == COLOR_BGR2RGB else None
""")  # fmt: skip
    with contextlib.closing(app.camera.frames("usb:12")) as frames:
        np.testing.assert_array_equal(next(frames), np.full((2, 3, 3), (3, 2, 1)))
    with pytest.raises(ValueError, match=r"usb failed|usb:0 failed"):
        next(app.camera.frames("usb"))  # which is camera 0, not 12
    for wrong in ("usb:", "usb:x", "usb:-1", "usb:²", "picamera2x"):
        with pytest.raises(ValueError, match="is no camera"):
            next(app.camera.frames(wrong))


def test_a_driver_that_says_much_does_not_stand_still(app, stand_in):
    stand_in("picamera2", PICAMERA2 + "        " + """
    def start(self): sys.stderr.write("Corrupt JPEG data: premature end of data segment\\n" * 20_000)
""")  # fmt: skip
    with contextlib.closing(app.camera.frames("picamera2")) as frames:
        for pixels in itertools.islice(frames, 3):
            assert pixels[0, 0].tolist() == [200, 10, 20]


@pytest.mark.parametrize("where", ["start", "picture", "body"])
def test_a_camera_that_hangs_has_failed_and_is_ended(app, stand_in, monkeypatch, tmp_path, where):
    monkeypatch.setattr(app.camera, "SILENCE_S", 2.0)
    if where == "body":
        launcher = tmp_path / "python"
        launcher.write_text("#!/bin/sh\nprintf '\\0\\0\\0\\100\\0\\0\\0\\100some'\necho $$ >&2\nexec sleep 1000\n")
    else:
        method = "start(self)" if where == "start" else "capture_array(self, name)"
        stand_in("picamera2", f"{PICAMERA2}\n    def {method}:\n        time.sleep(1000)\n")
    begun, started = time.monotonic(), []
    popen = subprocess.Popen
    monkeypatch.setattr(app.camera.subprocess, "Popen", lambda *a, **b: started.append(popen(*a, **b)) or started[0])
    with pytest.raises(ValueError, match="the camera picamera2 gives no picture for 2 s"):
        next(app.camera.frames("picamera2"))
    assert time.monotonic() - begun < 30
    assert started[0].returncode == -signal.SIGKILL


def test_a_camera_that_hangs_ends_with_whoever_asked(stand_in):
    stand_in(
        "picamera2",
        f"{PICAMERA2}\n    def start(self):\n        print('hangs', flush=True)\n        time.sleep(1000)\n",
    )
    command = [os.environ["CAMERA_PYTHON"], APP / "classifier" / "frames.py", "picamera2"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"hangs\n"
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    process.stdout.close()


def test_the_reason_is_told_and_nothing_that_the_driver_said_is_lost(app, stand_in, capfd):
    stand_in("picamera2", PICAMERA2.replace('[{"Model": "imx708", "Num": 0}]', "[]"))
    with pytest.raises(ValueError, match="no camera was found; check the ribbon cable, and rpicam-hello"):
        next(app.camera.frames("picamera2"))
    stand_in("picamera2", PICAMERA2 + """
    def start(self):
        print("ERROR V4L2: Unable to set format: Device or resource busy", file=sys.stderr)
        raise RuntimeError("Camera __init__ sequence did not complete.")
    def __del__(self): raise AttributeError("'Picamera2' object has no attribute 'allocator'")
""")  # fmt: skip
    with pytest.raises(ValueError, match=r"^the camera picamera2 failed: Camera __init__ sequence did not complete\.$"):
        next(app.camera.frames("picamera2"))
    assert "Device or resource busy" in capfd.readouterr().err


def test_a_camera_that_dies_in_between_is_told(app, stand_in):
    stand_in("picamera2", PICAMERA2 + """
    def capture_array(self, name):
        if hasattr(self, "shown"): os.kill(os.getpid(), 11)
        self.shown = True
        return numpy.zeros((4, 4, 3), numpy.uint8)
""")  # fmt: skip
    frames = app.camera.frames("picamera2")
    assert next(frames).shape == (4, 4, 3)
    with pytest.raises(ValueError, match="the camera picamera2 stopped"):
        next(frames)


def test_a_folder_is_shown_without_what_cannot_be_read(app, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"none")
    with pytest.raises(ValueError, match="holds no picture that can be read"):
        next(app.camera.frames(str(tmp_path)))
    Image.new("RGB", (3, 2), "red").save(tmp_path / "b.png")
    assert [pixels.shape for pixels in itertools.islice(app.camera.frames(str(tmp_path)), 3)] == [(2, 3, 3)] * 3
    assert capsys.readouterr().err.count("a.jpg: this is no image") == 2, "once in each run"


class Camera:
    """A camera for a Watch: what it does at each opening, and whether it is open."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.opened, self.open = list(failures), 0, False

    def __call__(self):
        self.opened += 1
        self.open = True
        try:
            if self.opened <= len(self.failures):
                raise self.failures[self.opened - 1]
            for _ in itertools.count():
                time.sleep(0.01)
                yield np.full((8, 8, 3), 10 * self.opened, np.uint8)
        finally:
            self.open = False


@pytest.fixture
def watch(app, monkeypatch):
    """Makes a Watch that runs with a camera and a stand-in for a model."""
    monkeypatch.setattr(app.web, "AGAIN_S", 0.2)

    def model(pixels):
        if pixels[0, 0, 0] == 20:
            raise RuntimeError("the runtime failed")
        return SimpleNamespace(top=[("a", 1.0)], milliseconds=1.0)

    model.warning = None

    made = []

    def make(camera):
        watch = app.web.Watch(model, camera)
        thread = threading.Thread(target=watch.run, daemon=True)
        made.append((watch, thread))
        thread.start()
        return watch

    yield make
    for watch, thread in made:  # what it does must not be counted in the next test
        watch.end()
        thread.join(20)
        assert not thread.is_alive()


def test_whatever_fails_is_told_and_tried_again_until_it_works(watch):
    camera = Camera(OSError("no such program"))  # the second opening gives pictures at which the model fails
    watch, after, seen = watch(camera), 0, []
    for _ in range(100):
        after, jpeg, state = watch.look(after)
        if state["failed"] and state["failed"] not in seen:
            seen.append(state["failed"])
            assert not jpeg
        if jpeg:
            break
    assert seen == ["no such program", "the runtime failed"]
    assert state["failed"] is None
    assert state["number"] == after
    assert camera.opened == 3


def test_memory_that_runs_out_does_not_end_it(watch):
    watch = watch(Camera(MemoryError(), MemoryError(), ValueError("third")))
    said = {watch.look(number)[2]["failed"] for number in range(4)}
    assert {"MemoryError", "third"} <= said


def test_the_camera_rests_unwatched_and_the_next_look_gets_no_old_picture(app, watch, monkeypatch):
    monkeypatch.setattr(app.web, "UNWATCHED_S", 1.0)
    camera = Camera(OSError("1"), OSError("2"))
    watch = watch(camera)
    time.sleep(0.3)
    assert camera.opened == 0, "nobody has looked yet"
    number = 0
    while not (found := watch.look(number))[1]:
        number = found[0]
    deadline = time.monotonic() + 20
    while camera.open:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    opened, (number, jpeg, state) = camera.opened, watch.look(0)
    assert (jpeg, state.get("top")) == (b"", None)
    while not jpeg:
        number, jpeg, state = watch.look(number)
    assert camera.opened == opened + 1


def test_a_client_that_has_gone_watches_no_more_even_without_pictures(app, watch, monkeypatch):
    monkeypatch.setattr(app.web, "UNWATCHED_S", 3.0)  # more than one look takes
    camera = Camera(*[OSError("no camera")] * 1000)
    with app.web.Server(("127.0.0.1", 0), watch(camera), None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with socket.create_connection(server.server_address, timeout=20) as client:
            client.sendall(b"GET /picture HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in client.recv(1000)
            time.sleep(1)
        time.sleep(6)
        opened = camera.opened
        assert opened > 1
        time.sleep(1)
        assert camera.opened == opened
        server.shutdown()


def test_what_the_system_tells_is_asked_once_a_second_outside_the_lock(app, watch, monkeypatch):
    asked, held, made = [], [], []

    def conditions():
        asked.append(time.monotonic())
        held.append(bool(made) and made[0]._changed._is_owned())
        return {"temperature_c": 50.0}

    monkeypatch.setattr(app.web, "conditions", conditions)
    made.append(watch(Camera()))
    number, end = 0, time.monotonic() + 2.5
    while time.monotonic() < end:
        number, _, state = made[0].look(number)
    assert len(asked) >= 2
    assert not any(held)
    assert len(asked) <= 2 + (asked[-1] - asked[0])
    assert state["temperature_c"] == 50.0


def test_an_inference_under_way_ends_before_the_process_may(app, monkeypatch):
    begun, done = threading.Event(), threading.Event()

    def model(pixels):
        begun.set()
        time.sleep(0.5)
        done.set()
        return SimpleNamespace(top=[("a", 1.0)], milliseconds=1.0)

    def serve_forever(server):
        threading.Thread(target=server.watch.look, args=(0,), daemon=True).start()  # somebody opens the page
        assert begun.wait(20)
        raise KeyboardInterrupt

    camera, model.warning = Camera(), None
    monkeypatch.setattr(app.web.Server, "serve_forever", serve_forever)
    with pytest.raises(KeyboardInterrupt):
        app.web.serve(model, camera, "127.0.0.1", 0)
    assert done.is_set()
    assert not camera.open


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_how_the_page_ends(bundle, stand_in, number, code):
    stand_in("picamera2", PICAMERA2)
    process = start(bundle, "serve", "--port", "0", "--threads", "1")
    url = process.stdout.readline().split()[-1]
    page = SimpleNamespace(get=lambda path: (200, http_get(url, path)))
    wait_for(page, lambda state: "top" in state)
    os.killpg(process.pid, number)  # as a terminal does it
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, "")


def http_get(url: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=20)
    connection.request("GET", path)
    return connection.getresponse().read()


def test_a_reader_that_has_enough_is_no_error(bundle):
    golden = bundle / "model" / described(bundle).golden[0].file
    for arguments in ((golden, "--json"), (golden,), ("about",)):
        process = start(bundle, *arguments)
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == ""
        process.stderr.close()


def test_numbers_that_are_none_are_refused(app, bundle):
    sound = app.model.load(bundle / "model", "ai-edge-litert", 1)
    program = dataclasses.replace(sound.program, run=lambda _: np.array([[0.0, np.nan, 1.0]], np.float32))
    with pytest.raises(ValueError, match="computes no finite numbers"):
        dataclasses.replace(sound, program=program)(np.zeros((64, 64, 3), np.uint8))
    known = sound.manifest
    assert app.model._check(known, sound.file, program, sound.golden)[0] is None


def test_without_golden_pictures_the_check_says_so_in_json(copy):
    path = copy / "model" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "golden": []}))
    hasten(copy)
    code, out, err = classify(copy, "check", "--quick", "--threads", "1")
    found = json.loads(out, parse_constant=pytest.fail)
    assert (code, found["golden_error"]) == (1, None)
    assert "no golden pictures" in found["warning"]
    assert "Traceback" not in err


def test_the_app_knows_no_model_and_needs_little():
    allowed = {"numpy", "PIL", "classifier", "targets", "picamera2", "cv2", *sys.stdlib_module_names}
    shared = {name.removesuffix(".py").replace("/", ".") for name in apps.SHARED}
    for path in (APP / "classifier").glob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
                if node.module == "targets":
                    assert {alias.name for alias in node.names} <= shared, path
                elif node.module.startswith("targets."):
                    assert node.module.removeprefix("targets.") in shared, path
            assert {name.split(".")[0] for name in names} <= allowed, path
        assert not any(word in text for word in ("deit", "vit_", "digits")), path


@pytest.mark.qemu
@pytest.mark.parametrize("kind", ["litert", "old"])
def test_on_an_emulated_board_it_gives_the_same_answers(bundle, tmp_path, kind):
    """qemu-aarch64 with the real wheels (of ai-edge-litert; of tflite-runtime 2.14) stands in for a Raspberry Pi."""
    known, python = described(bundle), emulated_board.python(kind)
    if kind == "old":  # those packages are for the pipeline's runner, which needs no Pillow
        for name in ("PIL", "pillow.libs"):
            (tmp_path / name).symlink_to(emulated_board.packages("litert") / name)
    paths = [bundle / "model" / golden.file for golden in known.golden]
    script = f"PYTHONPATH={bundle}:{tmp_path}; {python} -P -m classifier --json {' '.join(map(str, paths))}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), "its own check against the golden logits passes there too"
    here = classify(bundle, *paths, "--json")[1].splitlines()
    for line, native in zip(done.stdout.splitlines(), here, strict=True):
        for one, other in zip(json.loads(line)["top"], json.loads(native)["top"], strict=True):
            assert one["label"] == other["label"]
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)


def test_the_launcher_says_what_to_do_first(copy):
    done = subprocess.run([copy / "classify", "photo.jpg"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "install.sh first" in done.stderr


# python3, and what it makes of a folder as venv does: answers what install.sh asks, and notes the rest. A file beside
# it says how it is broken.
STUB = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
    *'%d.%d'*) [ -f "$here/old" ] && echo 3.9 || echo {version} ;;
    -c*) exec {python} "$@" ;;
    "-m pip --version") [ ! -f "$here/nopip" ] ;;
    *) echo "$(basename "$here")/python $*" >>{log}
       case "$*" in
           *"-m venv"*) eval folder=\\$$#; rm -rf "$folder"; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
           *{fails}*) exit 2 ;;
       esac ;;
esac
"""


@pytest.fixture
def install(bundle, tmp_path):
    """Runs install.sh of a bundle in a folder with an awkward name; returns exit code, stderr, what was called."""
    folder = Path(shutil.copytree(bundle, tmp_path / "my apps & 100 %" / "classifier"))
    log, system = tmp_path / "log", tmp_path / "system"
    system.mkdir()

    def run(*arguments: str, version: str = "3.13", fails: str = "nothing") -> tuple[int, str, list[str]]:
        log.write_text("")
        stub = STUB.format(version=version, python=sys.executable, log=log, fails=f'"{fails}"')
        (system / "python3").write_text(stub)
        (system / "python3").chmod(0o755)
        path = folder / "env" / "bin" / "python"
        if path.exists():
            path.write_text(stub)
        environment = {
            **os.environ,
            "PATH": f"{system}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        }
        environment.pop("PYTHON", None)
        done = subprocess.run(
            ["sh", folder / "install.sh", *arguments], env=environment, capture_output=True, text=True
        )
        assert ("installed. Try:" in done.stdout) == (done.returncode == 0)
        return done.returncode, done.stderr, log.read_text().splitlines()

    run.folder, run.unit = folder, tmp_path / "config" / "systemd" / "user" / "classifier.service"
    return run


def made(calls: list[str]) -> int:
    return sum("-m venv --clear" in call for call in calls)


def test_the_environment_is_made_once_and_anew_if_it_is_half_made_or_of_another_python(install):
    code, err, calls = install()
    assert (code, err, made(calls)) == (0, "", 1)
    pip = next(call for call in calls if "pip install" in call)
    assert pip.startswith("bin/python -m pip install")
    assert "--require-hashes --only-binary :all: -r" in pip
    assert made(install()[2]) == 0
    env = install.folder / "env" / "bin"
    for broken in ("nopip", "old"):
        (env / broken).touch()
        code, _, calls = install()
        assert (code, made(calls)) == (0, 1), broken
        assert not (env / broken).exists()
    (env / "python").unlink()
    (env / "python").symlink_to("/nowhere/python3.11")
    assert made(install()[2]) == 1


def test_the_unit_names_the_app_wherever_it_lies(install):
    assert install()[0] == 0
    name = str(install.folder).replace("%", "%%")
    assert f'ExecStart="{name}/classify" serve\n' in install.unit.read_text()


def test_packages_that_are_not_made_for_a_python_are_explained(install):
    code, err, _ = install(version="3.15", fails="pip install")
    assert code == 3
    assert "made for Python 3.11 to 3.13; this is 3.15" in err
    assert not install.unit.exists()


def test_executorch_is_tried_before_it_is_called_installed(install):
    code, _, calls = install("--executorch")
    assert code == 0
    assert any("--no-deps -r" in call and "requirements-executorch.txt" in call for call in calls)
    assert any("-m classifier about --runtime executorch" in call for call in calls)
    code, _, _ = install("--executorch", fails="about --runtime executorch")
    assert code == 2


def test_executorch_gives_the_answers_that_tflite_gives(tmp_path, bundle):
    """The same model in both formats; both are of the pipeline's own making."""
    try:
        executorch_program.runtime()
        files = {"executorch": board_jobs.executorch_file(), "tflite": board_jobs.tflite_file()}
        programs = {
            "executorch": executorch_program.load(files["executorch"], 1),
            "tflite": tflite_program.load(files["tflite"], 1),
        }
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    model, image = tmp_path / "model", board_jobs.pictures(1)
    model.mkdir()
    Image.fromarray(image[0]).save(model / "golden.png")
    logits = {path.name: tuple(map(float, programs[format](image)[0])) for format, path in files.items()}
    size = board_jobs.SIZE
    view = View(size=size, crop_ratio=1.0, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_mode="center")
    rule = augment.resize_rule(view)
    entries = [
        manifest.ArtifactFile(
            file=path.name, format=format, precision="fp32", role="pruned", size_bytes=path.stat().st_size,
            sha256=sha256_of(path), layout="NHWC", dtype="float32",
        )
        for format, path in files.items()
    ]  # fmt: skip
    for path in files.values():
        shutil.copy(path, model)
    golden = manifest.Golden(
        file="golden.png", sha256=sha256_of(model / "golden.png"), model=logits["model.pte"], artifacts=logits
    )
    described = manifest.Manifest(
        model="two layers", dataset="noise", target="rpi5", labels=tuple(map(str, range(len(golden.model)))),
        input=InputSpec(height=size, width=size, color="RGB", range=(0.0, 255.0), resize=rule),
        files=tuple(entries), golden=(golden,), golden_share=dict.fromkeys(logits, 1e-3),
    )  # fmt: skip
    manifest.write(described, model / manifest.FILE_NAME)
    picture = tmp_path / "picture.png"
    Image.fromarray(board_jobs.pictures(2)[1]).save(picture)
    found = {}
    for runtime in ("executorch", "ai-edge-litert"):
        code, out, err = classify(bundle, picture, "--json", "--model", model, "--runtime", runtime)
        assert (code, err) == (0, ""), "its own check against the golden logits passes"
        found[runtime] = json.loads(out)["top"]
        card = json.loads(classify(bundle, "about", "--model", model, "--runtime", runtime)[1])
        assert card["runtime"].startswith(runtime)
    for one, other in zip(*found.values(), strict=True):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-3)


@pytest.mark.browser
@pytest.mark.skipif(not browser._find_chromium(), reason="no Chromium")
def test_the_page_tells_a_camera_that_failed_from_a_board_that_is_gone(bundle, recording, tmp_path):
    camera = tmp_path / "camera.avi"
    shutil.copy(recording, camera)
    arguments = ("serve", "--threads", "1", "--camera", str(camera), "--port")
    with browser_driver.running(browser._find_chromium()) as chromium:
        process = start(bundle, *arguments, "0", CAMERA_PYTHON=sys.executable)
        url = process.stdout.readline().split()[-1]
        page = chromium.page()
        page.open(url)
        says = "document.querySelector('#warning:not([hidden])')?.innerText ?? ''"
        shown = "document.querySelector('#picture').naturalWidth"
        page.wait("document.querySelectorAll('#top li').length === 3")
        page.wait(f"{shown} === 320")
        assert page.run(says) == ""
        assert "classes" in page.text("#about")

        def again(*more: str) -> None:
            nonlocal process
            process.terminate()
            process.communicate(timeout=20)
            if more:
                process = start(
                    bundle, *arguments, url.rstrip("/").rsplit(":", 1)[1], *more, CAMERA_PYTHON=sys.executable
                )
                process.stdout.readline()

        try:
            again()
            page.wait(f"({says}).includes('does not answer')")
            camera.write_bytes(b"none")
            again("--host", "127.0.0.1")
            page.wait(f"({says}).includes('No new picture, trying again: the camera')")
            shutil.copy(recording, camera)
            page.wait(f"!({says})")
            again("--host", "0.0.0.0")
            page.wait(f"({says}).includes('does not let this page in')")
        finally:
            again()


def test_an_app_without_model_is_not_bundled(tmp_path):
    (tmp_path / "raspberry-pi").mkdir()
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        apps.bundle(tmp_path / "out.tar.gz", tmp_path)
    assert not (tmp_path / "out.tar.gz").exists()

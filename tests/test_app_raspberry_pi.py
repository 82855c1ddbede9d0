"""The Raspberry Pi's app as it is unpacked on a board, run by this machine's Python; cameras are recorded frames."""

import ast
import http.client
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import emulated_board
import numpy as np
import pytest
import timm.data
from PIL import Image

from pipeline import apps, augment, images
from pipeline.data import View
from targets import manifest
from targets.manifest import InputSpec

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
def copy(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "classifier"))


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "classifier", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def classify(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


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
def test_pictures_are_cut_to_the_bit_as_the_pipeline_cuts_them(monkeypatch, size, crop_ratio, mode):
    monkeypatch.syspath_prepend(str(APP))
    from classifier import pictures

    view = View(
        size=64, crop_ratio=crop_ratio, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_mode=mode
    )
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    spec = InputSpec(height=64, width=64, color="RGB", range=(0.0, 255.0), resize=augment.resize_rule(view))
    expected = augment.eval_transform(view)(images.of_array(pixels))
    np.testing.assert_array_equal(pictures.fit(pixels, spec), expected)
    assert timm.data  # which eval_transform is held against elsewhere


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16"])
def test_files_are_read_as_the_pipeline_reads_them(monkeypatch, tmp_path, orientation, mode):
    monkeypatch.syspath_prepend(str(APP))
    from classifier import pictures

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
    np.testing.assert_array_equal(pictures.read(path, "it"), expected)


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
        self.process.communicate(timeout=20)


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
        assert len(token) > 20
        assert page.get("/")[0] == page.get("/picture")[0] == page.get("/?token=wrong")[0] == 403
        status, _, answer = page.get(f"/?token={token}")
        assert status == 200
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert page.get("/state", Cookie=cookie.split(";")[0])[0] == 200


def test_a_camera_that_fails_is_shown_and_the_page_stays(bundle, tmp_path):
    broken = tmp_path / "broken.avi"
    broken.write_bytes(b"no video")
    with Page(bundle, "--camera", str(broken), CAMERA_PYTHON=sys.executable) as page:
        deadline = time.monotonic() + 20
        while not (state := json.loads(page.get("/state")[1]))["failed"]:
            assert time.monotonic() < deadline
        assert "cannot be opened as a camera or video" in state["failed"]
        assert page.get("/")[0] == 200


def test_a_camera_that_is_none_and_a_port_that_is_taken(bundle, image_folder):
    with Page(bundle, "--camera", str(image_folder / "val" / "across")) as page:
        port = page.url.rstrip("/").rsplit(":", 1)[1]
        code, _, err = classify(bundle, "serve", "--port", port, "--camera", str(image_folder / "val" / "across"))
        assert code == 2
        assert f"127.0.0.1:{port} cannot be served" in err
    with Page(bundle, "--camera", "picamera9") as page:
        assert "picamera9 is no camera" in json.loads(page.get("/state")[1])["failed"]


def test_the_pi_camera_is_asked_for_rgb(bundle, tmp_path):
    """picamera2 cannot be had here: this stand-in has the calls that are used, from its manual."""
    (tmp_path / "picamera2.py").write_text(
        "import numpy\n"
        "class Picamera2:\n"
        "    def create_video_configuration(self, main):\n"
        "        assert main == {'format': 'BGR888', 'size': (640, 480)}, main\n"
        "        return main\n"
        "    def configure(self, configuration): self.ready = bool(configuration)\n"
        "    def start(self): assert self.ready\n"
        "    def capture_array(self, name):\n"
        "        assert name == 'main'\n"
        "        return numpy.full((480, 640, 3), (200, 10, 20), numpy.uint8)\n"
    )
    launcher = tmp_path / "python"
    launcher.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    launcher.chmod(0o755)
    with Page(bundle, "--camera", "picamera2", CAMERA_PYTHON=str(launcher)) as page:
        state = json.loads(page.get("/state?after=0")[1])
        assert state["failed"] is None
        assert state["top"]
    with Page(bundle, "--camera", "picamera2", CAMERA_PYTHON=sys.executable) as page:
        failed = json.loads(page.get("/state")[1])["failed"]
        assert "sudo apt install python3-picamera2" in failed


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


def test_an_app_without_model_is_not_bundled(tmp_path):
    (tmp_path / "raspberry-pi").mkdir()
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        apps.bundle(tmp_path / "out.tar.gz", tmp_path)
    assert not (tmp_path / "out.tar.gz").exists()

"""Putting what a target ships into the folder of the app that runs it; the apps that become one file."""

import contextlib
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from rich.filesize import decimal

from pipeline import app_server, console
from pipeline.errors import EnvironmentLacks, Interrupted
from targets import manifest
from targets.artifact import replacing
from targets.devices import browser
from targets.devices.ssh import PACKAGE
from targets.formats import boards

APPS = Path("apps")
MODEL = {
    "web": Path("web/public/model"),
    "raspberry-pi": Path("raspberry-pi/model"),
    "android": Path("android/model"),
    "ios": Path("ios/model"),
}
"""app -> the folder below APPS that it reads its manifest from"""
NAMED = (".run", "android")
"""file in which an app's model says what run it is of, and the app that wants to know"""
LACKING = 3
"""what apps/android/build.py ends with where something cannot be had"""
COREML = "coreml"
PROJECT = "Classifier.xcodeproj"
"""of the iOS app"""
BUNDLE = "classifier"
"""the folder that the Raspberry Pi's archive unpacks into"""
APP_FILES = ("classify", "install.sh", "classifier.service")
TARGETS = Path(manifest.__file__).parent
SHARED = ("manifest.py", "serving.py", *PACKAGE)
"""files of targets that run on a board: measuring, loading, reading the manifest and pictures are the pipeline's own"""
REQUIREMENTS = {
    name.replace("-board", ""): f"devices/{name}" for board in boards().values() for name in board.requirements
}
"""name in the archive -> file of targets"""


def install(artifacts: Path, app: str, apps: Path = APPS) -> Path | None:
    """Copy the manifest of a target and the files that it names into the app's folder, in one step.

    artifacts: runs/<name>/artifacts/<target>
    Returns the folder; None if nothing is shipped or this checkout has no such app: what the app had stays there.
    """
    described, folder = artifacts / manifest.FILE_NAME, apps / MODEL[app]
    if not described.exists() or not (apps / app).is_dir():
        return None
    names = [name for name, _ in manifest.read(described).checksums()]
    with replacing(folder) as partial:
        for name in [manifest.FILE_NAME, *names]:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (artifacts / name).is_dir() else shutil.copy
            copy(artifacts / name, partial / name)
        if app == NAMED[1]:
            (partial / NAMED[0]).write_text(artifacts.parents[1].name)
    return folder


def has_model(app: str, apps: Path = APPS) -> bool:
    """Whether a model has been deployed into the app."""
    return (apps / MODEL[app] / manifest.FILE_NAME).exists()


def publish(web: Path) -> Path:
    """Put the model that the web app has beside its built pages; returns the folder to serve.

    web: the app's folder. Raises ValueError if a file of the model is missing or damaged.
    """
    source, built = web / MODEL["web"].relative_to("web"), web / "dist"
    manifest.read(source / manifest.FILE_NAME)
    with replacing(built / "model") as partial:
        shutil.copytree(source, partial, symlinks=True)  # the server follows none
    return built


def serve(address: str, port: int) -> None:
    """Build the web app and serve it with the model that it has, until Ctrl-C.

    Raises EnvironmentLacks if it cannot be built here, ValueError for a damaged model or an address that is taken.
    """
    if problem := browser.build(console.say):
        raise EnvironmentLacks(problem)
    server = app_server.server(publish(browser.WEB), address, port)
    console.tell(f"open http://{address}:{server.server_port}/  (Ctrl-C ends it)")
    with server, contextlib.suppress(Interrupted):
        server.serve_forever()


def pack_for_board(target: str, folder: Path) -> None:
    """Put the Raspberry Pi's app with the model that it has into an archive in `folder`, and say what to do with it."""
    archive = bundle(folder / f"{BUNDLE}-{target}.tar.gz")
    console.tell(f"app: {archive}, {decimal(archive.stat().st_size)}")
    console.tell(f"next: scp {archive} pi@raspberrypi.local: and there tar xf {archive.name} && {BUNDLE}/install.sh")


def bundle(archive: Path, apps: Path = APPS) -> Path:
    """The Raspberry Pi's app with its model as a .tar.gz that needs nothing else but its pinned wheels.

    Returns the archive's path. Raises ValueError if the app has no sound model yet.
    """
    app, model = apps / "raspberry-pi", apps / MODEL["raspberry-pi"]
    described = manifest.read(model / manifest.FILE_NAME)
    content = {
        **{name: app / name for name in APP_FILES},
        **{f"classifier/{path.name}": path for path in sorted((app / "classifier").glob("*.*"))},
        **{f"targets/{name}": TARGETS / name for name in SHARED},
        **{name: TARGETS / path for name, path in REQUIREMENTS.items()},
        f"model/{manifest.FILE_NAME}": model / manifest.FILE_NAME,
        **{f"model/{name}": model / name for name, _ in described.checksums()},
    }
    with replacing(archive) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        # an empty package: the real one brings torch along
        empty = tarfile.TarInfo(f"{BUNDLE}/targets/__init__.py")
        with tarfile.open(partial, "w:gz") as tar:
            tar.addfile(empty)
            for name, path in content.items():
                tar.add(path, f"{BUNDLE}/{name}", filter=_plain)
    return archive


def build_apk(apps: Path = APPS) -> Path:
    """The Android app with the model that it has, signed with a key of this checkout's own; returns the .apk's path.

    Raises ValueError if the app has no sound model, EnvironmentLacks if it cannot be built here.
    """
    app, model = apps / "android", apps / MODEL["android"]
    manifest.read(model / manifest.FILE_NAME)
    named = model / NAMED[0]
    apk = app / "build" / f"dap-{named.read_text() if named.exists() else 'model'}.apk"
    command = [sys.executable, str(app / "build.py"), "app", str(model), str(apk)]
    console.say("building the Android app; the first time some 250 MB are fetched for that")
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode == LACKING:
        raise EnvironmentLacks(done.stderr.strip().rsplit("error: ", 1)[-1])
    assert done.returncode == 0, f"apps/android does not build:\n{done.stderr}"
    console.tell(f"app: {apk}, {decimal(apk.stat().st_size)}")
    console.tell("it carries TFLite 2.14, which is slow: for trying; Android Studio builds it with LiteRT 2")
    console.tell(f"next: adb install -r {apk}")
    return apk


def ready_for_xcode(apps: Path = APPS) -> Path:
    """The iOS app's folder with the model that it has, which Xcode builds; returns it, and says what to do with it.

    Raises ValueError if the app has no sound model, or one that Core ML does not run.
    """
    app, model = apps / "ios", apps / MODEL["ios"]
    described = manifest.read(model / manifest.FILE_NAME)
    if not any(entry.format == COREML and entry.role == "pruned" for entry in described.files):
        raise ValueError(f"{model} holds no Core ML package: {console.make('deploy', target='ios')} puts one there")
    console.tell(f"app: {app}, with {described.model} for {described.dataset} in {model}")
    if sys.platform == "darwin":
        console.tell(f"next: open {app / PROJECT}, choose your team under Signing & Capabilities, and press Run")
    else:
        console.tell("not built: that needs a Mac with Xcode 16 or newer")
        console.tell(f"next, on the Mac: copy this folder, open {app / PROJECT}, choose your team, and press Run")
    return app


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without this machine's users."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info

"""The iOS app: its logic run on Linux, its sources checked against stubs of Apple's frameworks, its project parsed.

Neither Xcode nor a phone has seen it. What only they can tell is listed in docs/ios.md as not run.
"""

import importlib.util
import plistlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import apps
from targets.devices import xcode

ROOT = Path(__file__).parent.parent
IOS = ROOT / "apps" / "ios"
STUBS = ROOT / "tests" / "swift_stubs"
KIT = IOS / "ClassifierKit"
APP = {path: path.read_text() for path in sorted((IOS / "App").glob("*.swift"))}
LOGIC = {path: path.read_text() for path in sorted((KIT / "Sources").rglob("*.swift"))}

_found = importlib.util.spec_from_file_location("ios_toolchain", IOS / "toolchain.py")
assert _found and _found.loader
toolchain = importlib.util.module_from_spec(_found)
_found.loader.exec_module(toolchain)


# with the compiler


def swift(*arguments: str | Path) -> str:
    """What a program of the toolchain says; the test fails if it does."""
    done = subprocess.run(
        toolchain.command([str(argument) for argument in arguments]),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def compiler() -> None:
    """490 MB are not fetched by a test: .ci/run does, or a developer."""
    if not toolchain.is_there():
        pytest.skip("no Swift compiler here: python3 apps/ios/toolchain.py fetches one (490 MB, once)")


@pytest.fixture(scope="module")
def kit() -> Path:
    """Folder of the compiled logic, once its tests have passed."""
    if not toolchain.is_there():
        pytest.skip("no Swift compiler here: python3 apps/ios/toolchain.py fetches one (490 MB, once)")
    # Observation's own library leaves symbols to be found later, which a linker takes for an error
    options = ("-Xlinker", "--allow-shlib-undefined", "--disable-sandbox")
    said = swift("swift", "test", "--package-path", KIT, *options)
    counts = [int(count) for count in re.findall(r"Executed (\d+) tests, with 0 failures", said)]
    assert max(counts) >= 25, said
    return KIT / ".build" / "debug" / "Modules"


@pytest.mark.slow
@pytest.mark.swift
def test_the_logic_gives_what_all_others_give(kit):
    assert (kit / "ClassifierKit.swiftmodule").exists()


@pytest.mark.slow
@pytest.mark.swift
def test_the_apps_sources_fit_together(kit):
    stubs = IOS / "build" / "stubs"
    stubs.mkdir(parents=True, exist_ok=True)
    for name in modules():
        swift(
            "swiftc", "-swift-version", "5", "-parse-as-library", "-emit-module", "-module-name", name, "-I", stubs,
            "-emit-module-path", stubs / f"{name}.swiftmodule", STUBS / f"{name}.swift",
        )  # fmt: skip
    strict = ("-swift-version", "6", "-warnings-as-errors", "-parse-as-library")
    swift("swiftc", *strict, "-typecheck", "-module-name", "Classifier", "-I", stubs, "-I", kit, *APP)


@pytest.mark.slow
@pytest.mark.swift
def test_swift_is_written_alike(compiler):
    folders = (IOS / "App", KIT / "Sources", KIT / "Tests")
    swift("swift-format", "lint", "--strict", "-r", "--configuration", IOS / ".swift-format", *folders)


def modules() -> list[str]:
    return (STUBS / "order.txt").read_text().split()


# without it


def imports(text: str) -> set[str]:
    return set(re.findall(r"^(?:@\w+ )*import (\w+)", text, re.M))


def test_the_logic_knows_none_of_apples_frameworks():
    assert len(LOGIC) >= 9
    for path, text in LOGIC.items():
        assert imports(text) <= {"Foundation", "Observation"}, path


def test_the_app_uses_what_there_are_stubs_for_and_no_network():
    for path, text in APP.items():
        assert imports(text) <= {"ClassifierKit", "Foundation", *modules()}, path
    for path, text in {**APP, **LOGIC}.items():
        assert not re.search(r"URLSession|NWConnection|https?://|import Vision", text), path


def test_the_privacy_manifest_says_that_nothing_is_collected():
    found = plistlib.loads((IOS / "App" / "PrivacyInfo.xcprivacy").read_bytes())
    assert found["NSPrivacyTracking"] is False
    assert [value for key, value in found.items() if key != "NSPrivacyTracking"] == [[], [], []]


class Project:
    """An Xcode project file: an old-style property list."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/", "", text.partition("\n")[2], flags=re.S)  # the first line names the encoding
        self.tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[{}()=;,]|[^\s{}()=;,"]+', text)
        self.at = 0

    def take(self, expected: str | None = None) -> str:
        token = self.tokens[self.at]
        assert expected in (None, token), f"{expected} expected, not {' '.join(self.tokens[self.at : self.at + 5])}"
        self.at += 1
        return token.strip('"')

    def value(self) -> Any:
        if self.tokens[self.at] == "{":
            return self.members()
        if self.tokens[self.at] == "(":
            return self.items()
        return self.take()

    def members(self) -> dict[str, Any]:
        self.take("{")
        found: dict[str, Any] = {}
        while self.tokens[self.at] != "}":
            key = self.take()
            assert key not in found, key
            self.take("=")
            found[key] = self.value()
            self.take(";")
        self.take("}")
        return found

    def items(self) -> list[Any]:
        self.take("(")
        found = []
        while self.tokens[self.at] != ")":
            found.append(self.value())
            if self.tokens[self.at] == ",":
                self.take(",")
        self.take(")")
        return found


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    parser = Project((IOS / "Classifier.xcodeproj" / "project.pbxproj").read_text())
    found = parser.value()
    assert parser.at == len(parser.tokens)
    return found


def test_the_project_opens_as_xcode_16_has_it(project):
    assert (project["archiveVersion"], project["objectVersion"]) == ("1", "77")
    assert project["objects"][project["rootObject"]]["isa"] == "PBXProject"


def test_everything_in_the_project_exists_and_is_used(project):
    objects = project["objects"]
    text = str(objects)
    for key in objects:
        assert re.fullmatch("[0-9A-F]{24}", key)
        assert key == project["rootObject"] or text.count(key) > 1, f"{key} is nobody's"
    for key in set(re.findall("DA[0-9A-F]{22}", text)):
        assert key in objects
    (group,) = (one for one in objects.values() if one["isa"] == "PBXFileSystemSynchronizedRootGroup")
    assert (IOS / group["path"]).is_dir()
    (package,) = (one for one in objects.values() if one["isa"] == "XCLocalSwiftPackageReference")
    assert (IOS / package["relativePath"] / "Package.swift").exists()
    (model,) = (one for one in objects.values() if one.get("lastKnownFileType") == "folder")
    assert apps.MODEL["ios"] == Path("ios") / model["path"]


def settings(project: dict[str, Any], name: str) -> list[str]:
    kept = [one for one in project["objects"].values() if one["isa"] == "XCBuildConfiguration"]
    return [one["buildSettings"][name] for one in kept if name in one["buildSettings"]]


def test_the_project_says_what_the_sources_and_the_driver_rely_on(project):
    assert set(settings(project, "PRODUCT_BUNDLE_IDENTIFIER")) == {xcode.APP}
    assert set(settings(project, "IPHONEOS_DEPLOYMENT_TARGET")) == {"17.0"}
    assert ".iOS(.v17)" in (KIT / "Package.swift").read_text()
    assert set(settings(project, "SWIFT_VERSION")) == {"6.0"}
    assert len(settings(project, "INFOPLIST_KEY_NSCameraUsageDescription")) == 2


def test_the_driver_and_the_app_speak_of_the_same_files():
    text = (IOS / "App" / "JobView.swift").read_text()
    assert '"--job"' in text and f'"{xcode.PROGRESS}"' in text and f'"{xcode.ERROR}"' in text
    assert 'path: "jobs"' in text and xcode.JOBS == "Documents/jobs"


# what cannot be had


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """PATH holds programs that do nothing, and nothing has been fetched."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dpkg-deb", "apt-get", "unshare"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(toolchain, "FOLDER", tmp_path / "swift")
    return folder


@pytest.mark.parametrize("name", ["dpkg-deb", "apt-get", "unshare"])
def test_a_program_that_is_missing_is_named(programs, name):
    (programs / name).unlink()
    with pytest.raises(toolchain.Missing, match=f"{name} is missing. Install"):
        toolchain.prepare(lambda text: None)


def test_a_kernel_without_namespaces_is_told(programs):
    (programs / "unshare").write_text("#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
    with pytest.raises(toolchain.Missing, match=r"no mount namespace .Operation not permitted.; try as root"):
        toolchain.prepare(lambda text: None)


@pytest.mark.parametrize("answer", ["echo 'E: 404 Not Found' >&2; exit 1", 'echo other > "$5"'])
def test_a_file_that_no_mirror_has_as_it_was_is_named_and_nothing_is_left(programs, tmp_path, monkeypatch, answer):
    (programs / "apt-get").write_text("#!/bin/sh\necho mirror:/debian\n")
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\n{answer}\n")
    helper.chmod(0o755)
    monkeypatch.setattr("pinned.APT_HELPER", helper)
    with pytest.raises(toolchain.Missing, match="cannot be had from the mirror"):
        toolchain.prepare(lambda text: None)
    assert not (tmp_path / "swift" / "root").exists() and not toolchain.is_there()


def test_every_download_has_a_fixed_content():
    pins = toolchain.pins()
    assert any("/swiftlang_6.0.3" in one.path for one in pins)
    for one in pins:
        assert re.fullmatch("[0-9a-f]{64}", one.sha256) and one.path.startswith("pool/main/")
    for name in ("toolchain.py", "toolchain.txt"):
        assert "://" not in (IOS / name).read_text(), "no registry is named: the machine's own are asked"

"""The Android app: what it is built to, and what can be said of its screens without a phone to show them.

No phone has run it. Its logic runs on this machine's Java (test_the_logic_...), its engine there too on TFLite's
library for Android (test_devices_adb.py); layouts are held to rules here, which is not the same as looking at them.
"""

import hashlib
import importlib
import itertools
import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import android_phone
import class_files
import pytest
from android_phone import ANDROID, toolchain

from pipeline import apps
from pipeline.errors import EnvironmentLacks
from targets import manifest

SOURCES = ANDROID / "app" / "src" / "main"
RES = SOURCES / "res"
NS = "{http://schemas.android.com/apk/res/android}"
KOTLIN = {path: path.read_text() for path in sorted(ANDROID.glob("*/src/*/kotlin/**/*.kt"))}
APP = {path: text for path, text in KOTLIN.items() if SOURCES in path.parents}
XML = {
    path: ElementTree.fromstring(path.read_text()) for path in [*RES.rglob("*.xml"), SOURCES / "AndroidManifest.xml"]
}
LAYOUTS = {path: root for path, root in XML.items() if path.parent.name.startswith("layout")}
NEWER = {
    # member that Android 6 does not have -> what keeps it from older phones; the app is for Android 8 (API 26) on
    "android/os/PowerManager.getCurrentThermalStatus": "SDK_INT >= 29",
    "android/os/Build.SOC_MODEL": "SDK_INT >= 31",
    "android/app/Activity.setTurnScreenOn": "SDK_INT >= 27",
    "android/media/ExifInterface.<init>": "API 24",
    "java/lang/Process.waitFor": "API 26",
}


def named(folder: str, kind: str) -> dict[str, str]:
    """Resources of a kind in res/<folder>/*.xml: name -> text."""
    return {
        one.attrib["name"]: one.text or ""
        for path, root in XML.items()
        if path.parent.name == folder
        for one in root.iter(kind)
    }


STRINGS = named("values", "string")


def resources() -> dict[str, set[str]]:
    """Kind -> names that there are."""
    ids = {
        element.attrib[f"{NS}id"].removeprefix("@+id/")
        for root in LAYOUTS.values()
        for element in root.iter()
        if f"{NS}id" in element.attrib
    }
    found = {kind: set(named("values", kind)) for kind in ("string", "color", "style")}
    files = {path.parent.name.split("-")[0]: set() for path in RES.rglob("*.xml")}
    for path in RES.rglob("*.xml"):
        files[path.parent.name.split("-")[0]].add(path.stem)
    return {**found, "id": ids, **{kind: files[kind] for kind in ("layout", "drawable", "mipmap")}}


# what stands in the sources


def test_every_resource_that_is_named_exists():
    known = resources()
    for path, root in XML.items():
        for element in root.iter():
            for value in [*element.attrib.values(), element.text or ""]:
                for kind, name in re.findall(r"^@(\w+)/([\w.]+)$", value.strip()):
                    assert name in known[kind], f"{path}: {value}"
    for path, text in APP.items():
        for kind, name in re.findall(r"\bR\.(\w+)\.(\w+)", text):
            assert name in known[kind], f"{path}: R.{kind}.{name}"


def test_no_resource_is_left_over():
    texts = "\n".join([*APP.values(), *(path.read_text() for path in XML)])
    for kind in ("string", "color", "layout"):
        for name in resources()[kind]:
            assert re.search(rf"(@{kind}/|R\.{kind}\.){name}\b", texts), f"{kind} {name}"


def test_texts_take_what_they_are_given():
    for name, text in STRINGS.items():
        places = sorted({int(place) for place in re.findall(r"%(\d)\$", text)})
        assert places == list(range(1, len(places) + 1)), name
        assert not re.search(r"%(?!\d\$[sd])", text), name
        for path, code in APP.items():
            for call in re.findall(
                rf"getString\(R\.string\.{name}\b((?:[^()]|\([^()]*(?:\([^()]*\)[^()]*)*\))*)\)", code
            ):
                given = re.sub(r"\([^()]*(?:\([^()]*\)[^()]*)*\)", "", call).count(",") - call.endswith(",")
                assert given == len(places), f"{path}: {name}{call}"


def calls(code: str, begin: str) -> Iterator[str]:
    """What follows `begin` up to its closing bracket, without what stands in inner brackets or quotes."""
    for place in (found.end() for found in re.finditer(re.escape(begin) + r"\b", code)):
        depth, kept = 1, ""
        for character in re.sub(r'"[^"]*"', '""', code[place:]):
            depth += (character in "([{") - (character in ")]}")
            if depth == 0:
                break
            kept += character if depth == 1 else ""
        yield kept.rstrip().rstrip(",")


def luminance(colour: str) -> float:
    """Of #RRGGBB, by WCAG 2."""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("folder", ["values", "values-night"])
@pytest.mark.parametrize(
    ("front", "back", "least"),
    [
        ("text", "background", 7),
        ("text", "surface", 7),
        ("quiet", "background", 4.5),
        ("on_accent", "accent", 4.5),
        ("warning", "warning_surface", 4.5),
        ("accent", "background", 3),
    ],
)
def test_colours_can_be_told_apart(folder, front, back, least):
    colours = {**named("values", "color"), **named(folder, "color")}
    light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= least


def test_the_night_has_every_colour_of_its_own():
    always = {"icon_background", "icon_foreground"}  # the icon is the same at night
    assert set(named("values-night", "color")) == set(named("values", "color")) - always


def items(style: str) -> dict[str, str]:
    for root in (root for path, root in XML.items() if path.parent.name == "values"):
        for one in root.iter("style"):
            if one.attrib["name"] == style:
                return {item.attrib["name"]: item.text or "" for item in one.iter("item")}
    raise AssertionError(style)


def test_what_is_pressed_is_large_enough_and_has_a_name():
    pressed = [e for root in LAYOUTS.values() for e in root.iter() if e.tag in ("Button", "RadioButton")]
    assert len(pressed) >= 10
    for element in pressed:
        style = items(element.attrib["style"].split("/")[1]) if "style" in element.attrib else {}
        height = element.attrib.get(f"{NS}minHeight", style.get("android:minHeight", "0dp"))
        assert int(height.removesuffix("dp")) >= 48
        named_by = f"{NS}text" in element.attrib or element.attrib[f"{NS}id"] == "@+id/notice_action"  # named by code
        assert named_by


def test_a_screen_reader_is_told_what_is_shown():
    for path, root in LAYOUTS.items():
        for element in root.iter():
            if element.tag in ("ImageView", "ProgressBar"):
                told = f"{NS}contentDescription" in element.attrib
                assert told or element.attrib.get(f"{NS}importantForAccessibility") == "no", path


def test_texts_grow_with_the_users_setting_and_can_be_translated():
    for path, root in LAYOUTS.items():
        for element in root.iter():
            assert element.attrib.get(f"{NS}text", "@string/").startswith("@string/"), path
            assert f"{NS}textSize" not in element.attrib, path
    for style in ("Title", "Body", "Quiet"):
        assert items(style)["android:textSize"].endswith("sp")


def test_both_ways_to_hold_the_phone_have_the_same_parts():
    def parts(folder: str) -> set[str]:
        return set(re.findall(r"(?:@\+id|@layout)/\w+", (RES / folder / "main.xml").read_text()))

    assert parts("layout") == parts("layout-land")


def test_screens_scroll_where_they_may_be_too_long():
    for name in ("panel", "card", "check"):
        assert XML[RES / "layout" / f"{name}.xml"].tag == "ScrollView"


def test_the_app_may_use_the_camera_and_nothing_else():
    root = XML[SOURCES / "AndroidManifest.xml"]
    assert [one.attrib[f"{NS}name"] for one in root.iter("uses-permission")] == ["android.permission.CAMERA"]
    activities = list(root.iter("activity"))
    for one in activities:
        path = SOURCES / "kotlin" / f"{one.attrib[f'{NS}name'].replace('.', '/')}.kt"
        assert path.exists()
    exported = {one.attrib[f"{NS}name"].split(".")[-1] for one in activities if one.attrib[f"{NS}exported"] == "true"}
    assert exported == {"MainActivity", "JobActivity"}
    job = next(one for one in activities if one.attrib[f"{NS}name"].endswith("JobActivity"))
    assert job.attrib[f"{NS}permission"] == "android.permission.DUMP"


def test_the_logic_knows_no_android_and_nothing_knows_androidx():
    for path, text in KOTLIN.items():
        modules = set(re.findall(r"^import ([\w.]+)", text, re.M))
        assert not {one for one in modules if one.startswith(("androidx.", "com.google.", "java.net."))}, path
        if path.relative_to(ANDROID).parts[0] in ("core", "runner"):
            assert not {one for one in modules if one.startswith("android.")}, path
        if path.relative_to(ANDROID).parts[0] != "engine":
            assert not {one for one in modules if one.startswith("org.tensorflow.")}, path


def test_kotlin_is_written_alike():
    for path, text in KOTLIN.items():
        for number, line in enumerate(text.splitlines(), start=1):
            assert len(line) <= 120, f"{path}:{number}"
            assert line == line.rstrip() and "\t" not in line, f"{path}:{number}"
            indent = len(line) - len(line.lstrip())
            assert indent % 4 == 0 or line.lstrip().startswith("*"), f"{path}:{number}"
        assert text.endswith("\n") and not text.endswith("\n\n"), path


def test_versions_are_said_once():
    catalogue = (ANDROID / "gradle" / "libs.versions.toml").read_text()
    assert re.search(r'^litert = "2\.', catalogue, re.M)
    text = (ANDROID / "app" / "build.gradle.kts").read_text()
    build = (ANDROID / "build.py").read_text()
    assert "minSdk = 26" in text and "MIN_SDK, TARGET_SDK = 26, 34" in build
    assert re.search(r"targetSdk = 34", text)
    assert 'applicationId = "org.dap.classifier"' in text and 'PACKAGE = "org.dap.classifier"' in build


# what cannot be had


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Iterator[Path]:
    """PATH holds programs that do nothing, and the toolchain is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("javac", "java", "keytool", "npm", "dpkg-deb", "apt-get"):
        (folder / name).write_text("#!/bin/sh\necho javac 17.0.1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    monkeypatch.setattr(toolchain, "FOLDER", tmp_path / "toolchain")
    return folder


@pytest.mark.parametrize("name", ["javac", "npm"])
def test_a_program_that_is_missing_is_named(programs, monkeypatch, name):
    monkeypatch.setenv("PATH", str(programs))
    (programs / name).unlink()
    with pytest.raises(toolchain.Missing, match=f"{name} is missing. Install"):
        toolchain.prepare(lambda text: None)


def test_a_java_that_is_too_old_is_named(programs):
    (programs / "javac").write_text("#!/bin/sh\necho javac 11.0.2\n")
    with pytest.raises(toolchain.Missing, match=r"javac is javac 11\.0\.2, 17 is needed"):
        toolchain.prepare(lambda text: None)


def test_a_file_that_no_mirror_has_is_named_and_nothing_is_left(programs, tmp_path, monkeypatch):
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\necho 'E: 404 Not Found' >&2\nexit 1\n")
    helper.chmod(0o755)
    monkeypatch.setattr("pinned.APT_HELPER", helper)
    with pytest.raises(
        toolchain.Missing, match=r"libart_.*cannot be had from the mirror .*404 Not Found|cannot be had"
    ):
        toolchain.prepare(lambda text: None)
    assert not (tmp_path / "toolchain" / "tools").exists()


def test_a_file_of_another_content_is_not_taken(programs, tmp_path, monkeypatch):
    helper = tmp_path / "helper"
    helper.write_text('#!/bin/sh\nfor last; do before=$file; file=$last; done\necho other > "$before"\n')
    helper.chmod(0o755)
    monkeypatch.setattr("pinned.APT_HELPER", helper)
    with pytest.raises(toolchain.Missing, match="cannot be had"):
        toolchain.prepare(lambda text: None)
    (programs / "npm").write_text(
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = --pack-destination ] && to=$2; shift; done\n'
        f"echo other > $to/{toolchain.KOTLIN.name}-{toolchain.KOTLIN.version}.tgz\n"
    )
    with pytest.raises(toolchain.Missing, match="is not what it was: its SHA-256 differs"):
        toolchain._npm(toolchain.KOTLIN, tmp_path)


def test_a_stubs_constants_are_no_constants(tmp_path):
    """A compiler puts a constant's value in its place: SDK_INT must not become what a stub has in it."""
    text = "package a {\n  public class B {\n    field public static final int SDK_INT;\n"
    stubs = importlib.import_module("stubs")
    stubs.Stubs(stubs.read(text + "    field public static final int P = 28; // 0x1c\n  }\n}\n")).write(tmp_path)
    source = (tmp_path / "a" / "B.java").read_text()
    assert "SDK_INT = Integer.valueOf(0);" in source
    assert "P = 28;" in source


def test_every_download_has_a_fixed_content():
    files = [*toolchain.TOOLS, *toolchain.DEX, *toolchain.RESOURCES, *toolchain.ADB, *toolchain.ADBD, *toolchain.JUNIT]
    for one in [*files, toolchain.FRAMEWORK, toolchain.TENSORFLOW, toolchain.KOTLIN, toolchain.TFLITE]:
        assert re.fullmatch("[0-9a-f]{64}", one.sha256)
    for path in (ANDROID / "toolchain.py", ANDROID.parent / "pinned.py"):
        assert "://" not in path.read_text(), "no registry is named: the machine's own are asked"


def test_make_app_ends_with_what_is_missing(tmp_path, finished):
    folder = tmp_path / "apps"
    (folder / "android").mkdir(parents=True)
    assert apps.install(finished[0] / "artifacts" / "host", "android", folder)
    (folder / "android" / "build.py").write_text("import sys\nprint('error: no npm', file=sys.stderr)\nsys.exit(3)\n")
    with pytest.raises(EnvironmentLacks, match="no npm"):
        apps.build_apk(folder)


# what is built


@pytest.mark.slow
@pytest.mark.android
def test_the_logic_gives_what_all_others_give():
    android_phone.tools()
    done = subprocess.run([sys.executable, ANDROID / "build.py", "test"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"OK \((\d+) tests?\)", done.stdout)[1]) >= 8


@pytest.fixture(scope="module")
def built(finished, tmp_path_factory) -> tuple[Path, Path]:
    """The app with the small model of a finished run: the model's folder, and the .apk."""
    android_phone.tools()
    folder = tmp_path_factory.mktemp("app") / "apps"
    ignored = shutil.ignore_patterns(".toolchain", "build", "model")
    shutil.copytree(ANDROID, folder / "android", ignore=ignored)
    shutil.copy(ANDROID.parent / "pinned.py", folder)
    (folder / "android" / ".toolchain").symlink_to(ANDROID / ".toolchain")
    model = apps.install(finished[0] / "artifacts" / "host", "android", folder)
    assert model
    return model, apps.build_apk(folder)


def tool(*command: object) -> str:
    tools = toolchain.Tools(toolchain.FOLDER)
    done = subprocess.run(
        [str(part) for part in command], env=tools.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.android
def test_the_apk_is_signed_aligned_and_says_what_it_is(built):
    _, apk = built
    assert apk.name == "dap-whole.apk", "after the run"
    programs = toolchain.Tools(toolchain.FOLDER)
    said = tool("java", "-jar", programs.apksigner, "verify", "-v", apk)
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in said
    assert "Verified using v3 scheme (APK Signature Scheme v3): true" in said
    badging = tool(programs.programs / "aapt", "dump", "badging", apk)
    for line in (
        "package: name='org.dap.classifier'",
        "sdkVersion:'26'",
        "targetSdkVersion:'34'",
        "launchable-activity: name='org.dap.classifier.MainActivity'",
        "native-code: 'arm64-v8a' 'x86_64'",
    ):
        assert line in badging
    assert re.findall(r"uses-permission: name='(.*?)'", badging) == ["android.permission.CAMERA"]
    tool(programs.programs / "zipalign", "-c", "-p", "4", apk)
    described = tool(programs.programs / "aapt", "dump", "xmltree", apk, "AndroidManifest.xml")
    assert re.search(r"extractNativeLibs\S*=\(type 0x12\)0x0$", described, re.M), (
        "the libraries are mapped from the .apk"
    )


@pytest.mark.slow
@pytest.mark.android
def test_the_apk_holds_the_model_and_the_library_of_each_kind_of_phone(built):
    model, apk = built
    described = manifest.read(model / "manifest.json")
    with zipfile.ZipFile(apk) as archive:
        names = {name for name in archive.namelist() if name.startswith("assets/")}
        wanted = ["manifest.json", *(e.file for e in described.files if e.format == "tflite")]
        wanted += [golden.file for golden in described.golden]
        assert names == {f"assets/model/{name}" for name in wanted}
        for name, sha256 in described.checksums():
            if f"assets/model/{name}" in names:
                assert hashlib.sha256(archive.read(f"assets/model/{name}")).hexdigest() == sha256
        assert json.loads(archive.read("assets/model/manifest.json")) == json.loads(
            (model / "manifest.json").read_text()
        )
        for abi, machine in (("arm64-v8a", 183), ("x86_64", 62)):
            info = archive.getinfo(f"lib/{abi}/libtensorflowlite_jni.so")
            library = archive.read(info)
            assert library[:4] == b"\x7fELF"
            assert struct.unpack_from("<H", library, 18)[0] == machine
            assert library == toolchain.Tools(toolchain.FOLDER).native(abi).read_bytes()
        stored = [info for info in archive.infolist() if info.filename.endswith((".so", ".tflite"))]
        assert all(info.compress_type == zipfile.ZIP_STORED for info in stored), "they are mapped"
        with open(apk, "rb") as file:
            for info in stored:
                file.seek(info.header_offset + 26)
                name, extra = struct.unpack("<HH", file.read(4))
                begin = info.header_offset + 30 + name + extra
                assert begin % (4096 if info.filename.endswith(".so") else 4) == 0


@pytest.mark.slow
@pytest.mark.android
def test_no_code_asks_for_what_phones_do_not_have(built):
    """dx leaves what is linked at run time as it is, and Android has no LambdaMetafactory."""
    _, apk = built
    tools = toolchain.Tools(toolchain.FOLDER)
    with zipfile.ZipFile(apk) as archive:
        path = Path(archive.extract("classes.dex", apk.parent))
    assert path.read_bytes()[:8] == b"dex\n038\0"
    said = tool(tools.programs / "dexdump", "-d", path)
    found = re.findall(r"\|\[[0-9a-f]+\] (\S+)|(invoke-custom)", said)
    # every enum has a list of its values; nobody prints one
    known = ["kotlin.collections.AbstractCollection.toString:()Ljava/lang/String;"]
    assert [before for (before, _), (_, custom) in itertools.pairwise(found) if custom] == known
    with zipfile.ZipFile(apk.parent / "dex-app" / "shrunk.jar") as shrunk:
        assert len(shrunk.namelist()) < 600
    classes = class_files.of_folder(apk.parent / "classes-app")
    assert len(classes) > 40
    old = class_files.of_jar(tools.android_23)
    assert class_files.lacking(classes, old, ("android/", "java/")) == set(NEWER)
    sources = "\n".join(APP.values())
    for member, guard in NEWER.items():
        if guard.startswith("SDK_INT"):
            name = member.split(".")[-1].removeprefix("get")
            lines = [line for line in sources.splitlines() if name.lower() in line.lower()]
            assert lines and all(guard in line for line in lines), member

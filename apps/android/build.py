"""Builds the Android app without Gradle, from this folder's sources and the toolchain of toolchain.py.

    python3 apps/android/build.py app MODEL APK    the app with the model in the folder MODEL
    python3 apps/android/build.py runner FOLDER    what `app_process` runs: runner.jar, and a library for each ABI
    python3 apps/android/build.py test             the tests of core/ on this machine's Java

Exit status: 0 done, 1 the sources do not compile or a test fails, 3 something cannot be had here.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from toolchain import ABIS, Missing, Tools, prepare

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
PACKAGE = "org.dap.classifier"
MIN_SDK, TARGET_SDK = 26, 34
VERSION = "0.1.0"
FORMAT = "tflite"
MODULES = ("core", "engine", "runner", "app")
PAGE = 16384
"""libraries are mapped from the archive: phones with pages of that size want them at its multiples"""
STORED = (".tflite", ".so", ".png", ".webp", ".arsc")
"""stay uncompressed: what is mapped, and what is small already"""
EPOCH = (1980, 1, 1, 0, 0, 0)
# dx knows no invokedynamic, and Android no LambdaMetafactory: Kotlin makes a class of each lambda.
KOTLIN = (
    "-jvm-target", "1.8", "-Xjdk-release=1.8", "-Xlambdas=class", "-Xsam-conversions=class", "-Xstring-concat=inline",
    "-no-stdlib", "-no-reflect", "-Werror", "-Xsuppress-deprecated-jvm-target-warning",
)  # fmt: skip

NATIVE = ("class org.tensorflow.lite.** { *; }",)
"""the library calls these by their names"""


class Broken(Exception):
    """The sources do not compile, or a tool refuses what it is given."""


def compile_modules(tools: Tools, modules: Sequence[str], extra: Sequence[Path] = ()) -> Path:
    """Classes of these modules, compiled again only if a source has changed. extra: further class paths."""
    sources = [path for module in modules for path in sorted((HERE / module / "src/main/kotlin").rglob("*.kt"))]
    classpath = [tools.android, tools.tflite, tools.kotlin / "kotlin-stdlib.jar", *extra]
    return _compiled(tools, f"classes-{modules[-1]}", sources, classpath)


def _compiled(tools: Tools, name: str, sources: Sequence[Path], classpath: Sequence[Path]) -> Path:
    folder = BUILD / name
    key = _key([*sources, *(path for path in classpath if path.is_file()), Path(__file__)])
    stamp = folder.with_suffix(".key")
    if stamp.exists() and stamp.read_text() == key and folder.is_dir():
        return folder
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run(
        [
            "java", "-Xmx1g", "-cp", ":".join(map(str, sorted(tools.kotlin.glob("*.jar")))),
            "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
            *KOTLIN, "-cp", ":".join(map(str, classpath)), "-d", folder, *sources,
        ],
        "kotlinc",
    )  # fmt: skip
    stamp.write_text(key)
    return folder


def test(tools: Tools) -> None:
    """Run the tests of core/."""
    main = compile_modules(tools, ["core"])
    sources = sorted((HERE / "core/src/test/kotlin").rglob("*.kt"))
    libraries = [tools.kotlin / f"{name}.jar" for name in ("kotlin-stdlib", "kotlin-test", "kotlin-test-junit")]
    classpath = [main, *libraries, *tools.junit]
    # the classes under test are part of what these are compiled from
    classes = _compiled(tools, f"classes-test-{_key(sorted(main.rglob('*.class')))[:8]}", sources, classpath)
    names = [
        ".".join(path.relative_to(HERE / "core/src/test/kotlin").with_suffix("").parts)
        for path in sources
        if path.stem.endswith("Test")
    ]
    vectors = HERE.parent.parent / "tests" / "vectors"
    classpath = [classes, *classpath]
    command = ["java", f"-Dvectors={vectors}", "-cp", ":".join(map(str, classpath)), "org.junit.runner.JUnitCore"]
    print(_run([*command, *names], "the tests of core/"))


def runner(tools: Tools, folder: Path) -> None:
    """What app_process runs, with TFLite's Java classes, and the native library that goes beside it."""
    classes = compile_modules(tools, ["core", "engine", "runner"])
    jar = folder / "runner.jar"
    for abi in ABIS:
        (folder / abi).mkdir(parents=True, exist_ok=True)
        shutil.copy(tools.native(abi), folder / abi)
    with zipfile.ZipFile(_partial(jar), "w") as archive:
        entry = "class org.dap.runner.MainKt { public static void main(java.lang.String[]); }"
        _add(archive, "classes.dex", _dex(tools, "runner", [classes], [entry]))
    os.replace(_partial(jar), jar)


def _dex(tools: Tools, name: str, classes: Sequence[Path], entries: Sequence[str]) -> bytes:
    """Classes, and what they use of Kotlin's and TFLite's, as dex.

    entries: what is begun from outside, as ProGuard has it; what nothing of it leads to is left out
    """
    folder = BUILD / f"dex-{name}"
    files = [file for path in classes for file in sorted(path.rglob("*.class"))]
    key = _key([*files, tools.kotlin / "kotlin-stdlib.jar", tools.tflite, Path(__file__)])
    stamp, dex = folder.with_suffix(".key"), folder / "classes.dex"
    if not (stamp.exists() and stamp.read_text() == key and dex.exists()):
        stamp.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shrunk, rules = folder / "shrunk.jar", folder / "rules"
        inputs = [*(f"{path}(**.class)" for path in classes), f"{tools.tflite}(**.class)"]
        # Kotlin's library holds classes for newer Javas too, which Android does not load
        inputs.append(f"{tools.kotlin / 'kotlin-stdlib.jar'}(!META-INF/**,!module-info.class,**.class)")
        lines = [f"-injars {path}" for path in inputs] + [f"-outjars {shrunk}"]
        lines += [f"-libraryjars {path}(!META-INF/**)" for path in (tools.android_23, tools.android)]
        lines += ["-dontoptimize", "-dontobfuscate", "-dontpreverify", "-dontnote", "-dontwarn **"]
        lines += ["-keepattributes *Annotation*,Signature,InnerClasses,EnclosingMethod"]
        lines += [f"-keep {entry}" for entry in (*entries, *NATIVE)]
        rules.write_text("\n".join(lines) + "\n")
        _run(["java", "-Xmx1g", "-cp", tools.proguard, "proguard.ProGuard", f"@{rules}"], "ProGuard")
        command = ["java", "-Xmx1g", "-cp", tools.dx, "com.android.dx.command.Main", "--dex"]
        _run([*command, f"--min-sdk-version={MIN_SDK}", f"--output={dex}", shrunk], "dx")
        stamp.write_text(key)
    return dex.read_bytes()


def app(tools: Tools, model: Path, apk: Path) -> None:
    """The signed APK with the model in it."""
    linked, generated = BUILD / "linked.apk", BUILD / "generated"
    _resources(tools, linked, generated)
    r_classes = BUILD / "classes-r"
    _run(
        ["javac", "--release", "8", "-nowarn", "-Xlint:-options", "-d", r_classes, *generated.rglob("*.java")], "javac"
    )
    classes = compile_modules(tools, list(MODULES), [r_classes])
    dex = _dex(tools, "app", [classes, r_classes], ["public class * extends android.app.Activity"])
    unsigned = BUILD / "unsigned.apk"
    with zipfile.ZipFile(linked) as source, zipfile.ZipFile(unsigned, "w") as archive:
        for name in source.namelist():
            _add(archive, name, source.read(name))
        _add(archive, "classes.dex", dex)
        for abi in ABIS:
            _add(archive, f"lib/{abi}/libtensorflowlite_jni.so", tools.native(abi).read_bytes())
        for name in _named(model):
            _add(archive, f"assets/model/{name}", (model / name).read_bytes())
    apk.parent.mkdir(parents=True, exist_ok=True)
    _run(
        ["java", "-jar", tools.apksigner, "sign", "--ks", _keystore(), "--ks-pass", "pass:android", "--ks-key-alias",
         "debug", "--min-sdk-version", str(MIN_SDK), "--out", _partial(apk), unsigned],
        "apksigner",
    )  # fmt: skip
    os.replace(_partial(apk), apk)


def _named(model: Path) -> list[str]:
    """The manifest and the files of it that the app can use."""
    described = json.loads((model / "manifest.json").read_text())
    files = [entry["file"] for entry in described["files"] if entry["format"] == FORMAT]
    return ["manifest.json", *files, *(golden["file"] for golden in described["golden"])]


def _resources(tools: Tools, linked: Path, generated: Path) -> None:
    compiled = BUILD / "resources.zip"
    environment = tools.environment
    _run(
        [tools.programs / "aapt2", "compile", "--dir", HERE / "app/src/main/res", "-o", compiled], "aapt2", environment
    )
    manifest = BUILD / "AndroidManifest.xml"
    # Gradle has both from its own file.
    text = (HERE / "app/src/main/AndroidManifest.xml").read_text()
    text = text.replace("<manifest ", f'<manifest package="{PACKAGE}" ', 1)
    manifest.write_text(text.replace("<application", '<application android:extractNativeLibs="false"', 1))
    shutil.rmtree(generated, ignore_errors=True)
    _run(
        [tools.programs / "aapt2", "link", "-I", tools.resources, "--manifest", manifest, "-o", linked, "--java",
         generated, "--min-sdk-version", str(MIN_SDK), "--target-sdk-version", str(TARGET_SDK), "--version-code", "1",
         "--version-name", VERSION, "--debug-mode", "--auto-add-overlay", compiled],
        "aapt2",
        environment,
    )  # fmt: skip


def _keystore() -> Path:
    """A key of this checkout's own, made at the first build: an app of another checkout is not updated by this one."""
    path = BUILD / "debug.keystore"
    if not path.exists():
        _run(
            ["keytool", "-genkeypair", "-keystore", _partial(path), "-storepass", "android", "-alias", "debug",
             "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000", "-dname", "CN=Android Debug"],
            "keytool",
        )  # fmt: skip
        os.replace(_partial(path), path)
    return path


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """An entry without a time; what is stored begins at a multiple of 4, libraries at one of a page."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.external_attr = 0o644 << 16
    if not name.endswith(STORED):
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, content)
        return
    multiple = PAGE if name.endswith(".so") else 4
    begin = archive.fp.tell() + 30 + len(name.encode())  # type: ignore[union-attr]
    info.extra = b"\0" * (-begin % multiple)
    archive.writestr(info, content)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _key(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _run(command: Sequence[object], what: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, errors="replace", env=environment, check=False
    )
    if done.returncode:
        raise Broken(f"{what} has failed:\n{(done.stdout + done.stderr).strip()[-6000:]}")
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    try:
        command, given = arguments[0], [Path(argument).resolve() for argument in arguments[1:]]
        if (command, len(given)) not in (("app", 2), ("runner", 1), ("test", 0)):
            raise IndexError
    except IndexError:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        tools = prepare(lambda text: print(text, file=sys.stderr), tests=command == "test")
        BUILD.mkdir(exist_ok=True)
        with open(BUILD / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if command == "app":
                app(tools, *given)
            elif command == "runner":
                runner(tools, *given)
            else:
                test(tools)
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 3
    except Broken as broken:
        print(f"error: {broken}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

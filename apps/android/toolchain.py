"""What builds the Android app, and what tests it: fetched once, each file of a fixed version and SHA-256.

    python3 apps/android/toolchain.py [tests]

Needs Python, a JDK (17 or newer), npm, and a Debian's apt with dpkg-deb; nothing is installed, all of it lies below
apps/android/.toolchain (about 1 GB). Debian's packages come from the mirror that this machine's own apt is set up for,
npm's from the registry that npm is set up for. Exit status 3, and what is missing, where that cannot be had.

Android Studio needs none of this: it has its own tools, see docs/android.md.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from pinned import Debian, File, Missing, sha256_of  # noqa: E402 (it lies beside the apps' folders)

DEBIAN = Debian("the Android app cannot be built here", "apps/android/toolchain.py")
FOLDER = HERE / ".toolchain"
OLDEST_JAVA = 17
RECIPES = 2
"""goes up when something is made otherwise from the same files"""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Npm:
    """An npm package."""

    name: str
    version: str
    sha256: str
    """of the .tgz"""


# Debian 12: aapt2, zipalign, dexdump (Apache-2.0) and what they load; apksigner (Apache-2.0).
TOOLS = (
    File(
        "pool/main/a/android-platform-frameworks-base/aapt_10.0.0+r36-10_amd64.deb",
        "a4790dd07923a45ba17982d257abbce3f8050e8b30b0952545255502a5d1f505",
    ),
    File(
        "pool/main/a/android-platform-tools/android-liblog_29.0.6-28_amd64.deb",
        "d495761ec2dc87070f6ac75c771d221d05e2be387cbaeab7e7c7fcd740ce4ce2",
    ),
    File(
        "pool/main/a/android-platform-tools/android-libbase_29.0.6-28_amd64.deb",
        "c651582c9beb229b6a4581eef5d03796293aa2da3b602eafc5427b198060819f",
    ),
    File(
        "pool/main/a/android-platform-tools/android-libbacktrace_29.0.6-28_amd64.deb",
        "78733043d8e8f5906eb969a18c3178c1898f50d3684de23398a3eeb7ba7ea122",
    ),
    File(
        "pool/main/a/android-platform-tools/android-libcutils_29.0.6-28_amd64.deb",
        "12ac0a99beb683269d77af09bf80ddd7b8c428fda442c05070ea3ff50429718c",
    ),
    File(
        "pool/main/a/android-platform-tools/android-libutils_29.0.6-28_amd64.deb",
        "c9554365cd0d20ac22138195963b2b790e45fc3edade3626a05311a9cae5cf36",
    ),
    File(
        "pool/main/a/android-platform-tools/android-libziparchive_29.0.6-28_amd64.deb",
        "e6d674143b948017a96740f449547799127feba75109875446c89e0e05a3e29d",
    ),
    File(
        "pool/main/a/android-platform-frameworks-base/android-libandroidfw_10.0.0+r36-10_amd64.deb",
        "26add03f0edf12da9d710b9be2bf0ec867f583d490135d99b9789bbbfe1bab4e",
    ),
    File(
        "pool/main/a/android-platform-frameworks-base/android-libaapt_10.0.0+r36-10_amd64.deb",
        "e18333b3d0259c3ceffeed142a5bbce2114eb7021c0ca5ef1ac505c0629c5171",
    ),
    File(
        "pool/main/p/protobuf/libprotobuf-lite32_3.21.12-3+deb12u1_amd64.deb",
        "441812aa574e1baa4435a9b62c34a39e0fc4177994ccfb35fab5a03ef6ef1e8d",
    ),
    File(
        "pool/main/a/android-platform-art/android-libart_11.0.0+r48-5_amd64.deb",
        "0b564ead30c91a6640c48138f7167d339770b0d17a43568c90a98dbc0f3226b1",
    ),
    File(
        "pool/main/a/android-platform-art/android-libnativebridge_11.0.0+r48-5_amd64.deb",
        "1a70201b4f28566d5de3a83c15787c096812fa3ab07360ff49dbc2208111ed08",
    ),
    File(
        "pool/main/a/android-platform-art/android-libnativeloader_11.0.0+r48-5_amd64.deb",
        "cc2ef4aad7cbedd4a6788aa4f7e38fa86e52fb97c2f30aa768b811829d164d2c",
    ),
    File(
        "pool/main/a/android-platform-art/dexdump_11.0.0+r48-5_amd64.deb",
        "cda30e433ee1cf5463800a09abeb010e8962ec14886f9851b0482724e38ac152",
    ),
    File(
        "pool/main/z/zopfli/libzopfli1_1.0.3-1_amd64.deb",
        "3e38ea3c54c9cab39943ef7c6df6ac0868768244afcf088d2cfdd3fb85e5710d",
    ),
    File(
        "pool/main/a/android-platform-build/zipalign_10.0.0+r36-1_amd64.deb",
        "522d9efffbd2602a508530e58c8e2f21b1fb2598c7986350e41906d439e4758c",
    ),
    File(
        "pool/main/e/expat/libexpat1_2.5.0-1+deb12u2_amd64.deb",
        "2255e62fc22a86d2c544b8a3f516da9aee19383ad5742722ab4ce7f66a30dbc8",
    ),
    File(
        "pool/main/libp/libpng1.6/libpng16-16_1.6.39-2+deb12u5_amd64.deb",
        "a56d64bfaa9da12aafb83347909e62e6fd5fd251e6b34c194065911a30359978",
    ),
    File(
        "pool/main/p/p7zip/p7zip-full_16.02+really26.01+dfsg-0+deb12u1_amd64.deb",
        "91624c886bf525705beb66dd2bb063015c5cab4e51d9f08d9464cbbb53b00cb7",
    ),
    File(
        "pool/main/p/p7zip/p7zip_16.02+really26.01+dfsg-0+deb12u1_amd64.deb",
        "58b6aaf4fd163a4f5f7251792b870856dd63c249e62d505a20fcd0b6c2aefbc0",
    ),
    File(
        "pool/main/g/gcc-12/libatomic1_12.2.0-14+deb12u1_amd64.deb",
        "fbd4e154a6b444229ea002cc209df099209c0adc09102e5fd21239a3d2b55e2d",
    ),
    File(
        "pool/main/l/lz4/liblz4-1_1.9.4-1_amd64.deb",
        "64cde86cef1deaf828bd60297839b59710b5cd8dc50efd4f12643caaee9389d3",
    ),
    File(
        "pool/main/a/android-platform-tools-apksig/apksigner_31.0.2-1_all.deb",
        "6ded96d6156f8b0bc1355e87b5fad8e6ebfcf8a694dedd9987768b37a41878d4",
    ),
)
# Debian 11: dx (Apache-2.0), the last package of a compiler to dex; android.jar of API 23 (Apache-2.0), to see what is
# newer than that.
DEX = (
    File(
        "pool/main/a/android-platform-dalvik/dalvik-exchange_10.0.0+r36-1_all.deb",
        "8fc128db7c27253d963eb9b33de79b197162a4749d2ba69019b2fd0664cbd7fe",
    ),
    File(
        "pool/main/a/android-framework-23/libandroid-23-java_6.0.1+r72-6_all.deb",
        "8af1b6df556971dda0a6da3536ea526a838e0c363afcdd454213d8bce94793e3",
    ),
)
# Debian 12: ProGuard (GPL-2+; a tool, nothing of it goes into the app).
SHRINKER = (
    File(
        "pool/main/p/proguard/libproguard-java_6.2.2-3_all.deb",
        "61a0f6f6666c8f336e11ecd54af4a78ed9ef384df264078eda2f9321dbd7ea03",
    ),
)
# Debian 13: the framework's resources, API 34 (Apache-2.0).
RESOURCES = (
    File(
        "pool/main/a/android-platform-frameworks-base/android-framework-res_14~beta1-3_all.deb",
        "2813eeaa722b1fc67d66701ddb6111d4b74f84df20974c220da04b0ef5f4c1c8",
    ),
)
# Debian 13's sources of the framework (Apache-2.0): the published API, 34; nothing else of it is kept.
FRAMEWORK = File(
    "pool/main/a/android-platform-frameworks-base/android-platform-frameworks-base_14~beta1.orig.tar.xz",
    "c1d64d78588fc7641923ad05b5ef12c3366f73b8bbca429f13f60c981e166d35",
)
SIGNATURES = "core/api/current.txt"
# Debian sid's sources of TensorFlow (Apache-2.0): TFLite's Java API, which the native library below belongs to.
TENSORFLOW = File(
    "pool/main/t/tensorflow/tensorflow_2.14.1+dfsg.orig.tar.xz",
    "9dfff0627def4e999f66a80d0fb57fd0651d12d525dcd67d6c24f1e9bca72b93",
)
JAVA_API = ("tensorflow/lite/java/src/main/java/", "tensorflow/lite/delegates/nnapi/java/src/main/java/")
# Apache-2.0, JetBrains' own package.
KOTLIN = Npm("kotlin-compiler", "2.4.20", "c23dab400d7ce5ea8b6c909947c0ca5454189e4bb1108695b5f464500e5e950f")
# The package is MIT; the libraries in it are TensorFlow's (Apache-2.0), copied from its 2.14.0 release for Android by
# the package's author: good enough to prove things with, not to ship.
TFLITE = Npm("react-native-fast-tflite", "1.4.0", "101ea34de5548cbc58a17b0704e33861e31265d64386d2938d8d8987f112533e")
TFLITE_VERSION = "2.14.0"
ABIS = ("arm64-v8a", "x86_64")
# JUnit (EPL-1.0) and Hamcrest (BSD-3-Clause), Debian 12: for the tests of core/.
JUNIT = (
    File(
        "pool/main/j/junit4/junit4_4.13.2-3_all.deb",
        "2f516bef5fa0f714da4f8b95c367c00aea64159c099c5157579fb95823dbcc56",
    ),
    File(
        "pool/main/libh/libhamcrest-java/libhamcrest-java_2.2-1_all.deb",
        "a3e84b0462e4bd75bfcd34dd46c9a5db6b9e7174da2d120339f4dc89aab90a56",
    ),
)
# adb (Apache-2.0), Debian 12, and adbd, Debian 13 with the C library that it wants: a phone's end of the cable.
ADB = (
    File(
        "pool/main/a/android-platform-tools/android-liblog_29.0.6-28_amd64.deb",
        "d495761ec2dc87070f6ac75c771d221d05e2be387cbaeab7e7c7fcd740ce4ce2",
    ),
    File(
        "pool/main/a/android-platform-tools/android-libbase_29.0.6-28_amd64.deb",
        "c651582c9beb229b6a4581eef5d03796293aa2da3b602eafc5427b198060819f",
    ),
    File(
        "pool/main/a/android-platform-tools/android-libcutils_29.0.6-28_amd64.deb",
        "12ac0a99beb683269d77af09bf80ddd7b8c428fda442c05070ea3ff50429718c",
    ),
    File(
        "pool/main/a/android-platform-external-boringssl/android-libboringssl_13.0.0+r24-2_amd64.deb",
        "638b90834022a5dfe46c13778481d1d22b9b54eabee26a7bddf83253c14c009b",
    ),
    File(
        "pool/main/libu/libusb-1.0/libusb-1.0-0_1.0.26-1_amd64.deb",
        "0a8a6c4a7d944538f2820cbde2a313f2fe6f94c21ffece9e6f372fc2ab8072e1",
    ),
    File(
        "pool/main/a/android-platform-tools/adb_29.0.6-28_amd64.deb",
        "a12693b0fab2edd8389017ce4589f59d11770dcdb585f090f3eff26f4a7d2dbc",
    ),
)
ADBD = (
    File(
        "pool/main/g/gcc-14/gcc-14-base_14.2.0-19_amd64.deb",
        "5b6825de4263824b78c4c51f6476414f3b4e89c2ab63e81dc8b9b5501e867cf6",
    ),
    File(
        "pool/main/g/gcc-14/libgcc-s1_14.2.0-19_amd64.deb",
        "3c71917b490d1a17aed43196a2787a256ecf060526cdb20216a74bedc061b150",
    ),
    File(
        "pool/main/g/glibc/libc6_2.41-12+deb13u5_amd64.deb",
        "b59b0625cd1a791375d40dab23a4d5d3d0641e3d0a773501becdc3725b7f99cf",
    ),
    File(
        "pool/main/g/gcc-14/libstdc++6_14.2.0-19_amd64.deb",
        "ab1fa05837aa7a92aae748fd07a18a35f7d18bb4a71c4724fe2bbf0e32089de0",
    ),
    File(
        "pool/main/a/android-platform-tools/android-liblog_34.0.5-12_amd64.deb",
        "cb3ed2107c9fcf2569eaf8b8400ac6e95df4e70edba35dbc29e5ffe063ec8081",
    ),
    File(
        "pool/main/a/android-platform-tools/android-libbase_34.0.5-12_amd64.deb",
        "8a8dd5890a7555c5cc92cbf6215e533122423459eb5d677580fe186222310730",
    ),
    File(
        "pool/main/a/android-platform-external-boringssl/android-libboringssl_14.0.0+r45-2_amd64.deb",
        "f139f5a5192f7dc3b5442976523c505e1ff2b900336ad654d07a91a517939aaa",
    ),
    File(
        "pool/main/libm/libmd/libmd0_1.1.0-2+b1_amd64.deb",
        "7244ec3839b61fac0c1884fe08aaa040f26e8f1f35f1f5d3482eacefd30d1b44",
    ),
    File(
        "pool/main/libb/libbsd/libbsd0_0.12.2-2_amd64.deb",
        "e5a85986fa6bec3307ab1bc860736b478b331882bc45e17675a7bdf88eecb43a",
    ),
    File(
        "pool/main/a/android-platform-tools/android-libcutils_34.0.5-12_amd64.deb",
        "d906693f2acde3833f319dfbb552f2d063f2f064784734adec091d51dfa9f1c6",
    ),
    File(
        "pool/main/b/brotli/libbrotli1_1.1.0-2+deb13u1_amd64.deb",
        "db46824c60fee46aff3cc0be3e5f736bc606cae669b1fb17516a41e8073251a9",
    ),
    File(
        "pool/main/x/xxhash/libxxhash0_0.8.3-2_amd64.deb",
        "81da7064d56fc044f5db4bb3c1e80ff50a4986dcbbf80d958eeca565b44c157f",
    ),
    File(
        "pool/main/l/lz4/liblz4-1_1.10.0-4_amd64.deb",
        "c31ec4c7c82755a38b2f3fe066fc0c5518cc91a601a268fbcd19bdacb1f22e1e",
    ),
    File(
        "pool/main/z/zlib/zlib1g_1.3.dfsg+really1.3.1-1+deb13u1_amd64.deb",
        "8c27c342230503b73dfde629642c3b352e87b554e06d60cf58772f236a305ceb",
    ),
    File(
        "pool/main/p/protobuf/libprotobuf32t64_3.21.12-11+deb13u1_amd64.deb",
        "38c43ec79a043d2b2659fed321725049a7e457096a66691cf6eb0d3a1a8f0e85",
    ),
    File(
        "pool/main/libc/libcap2/libcap2_2.75-10+deb13u1+b3_amd64.deb",
        "89fc4d34fc7a28ad6f0fcd0c561ab253b9dedf6f77f5a000b47c276c8295bf67",
    ),
    File(
        "pool/main/s/systemd/libsystemd0_257.13-1~deb13u1_amd64.deb",
        "ab0d4127b5e46e6f8c015a1db15a62ba9ae274cdefa150083adf90ada0600ea1",
    ),
    File(
        "pool/main/libz/libzstd/libzstd1_1.5.7+dfsg-1_amd64.deb",
        "2f6a2aeacfc925eba8b00ac9139bc4bfccf8cacb09eb93de067074b26948eef9",
    ),
    File(
        "pool/main/a/android-platform-tools/adbd_34.0.5-12_amd64.deb",
        "9d3263d5126e26f6e38f221e48e972a48c60bbae33835b1f72b63b723418f804",
    ),
)


@dataclass(frozen=True)
class Tools:
    """Where everything lies."""

    folder: Path

    @property
    def programs(self) -> Path:
        """aapt2, zipalign, dexdump."""
        return self.folder / "tools/usr/lib/android-sdk/build-tools/debian"

    @property
    def environment(self) -> dict[str, str]:
        """What those need beside this process's own."""
        root = self.folder / "tools"
        places = ("usr/lib/x86_64-linux-gnu/android", "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib")
        libraries = [str(root / place) for place in (*places, "usr/lib/p7zip")]
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}

    @property
    def apksigner(self) -> Path:
        return self.programs / "apksigner.jar"

    @property
    def dx(self) -> Path:
        return self.folder / "dex/usr/share/java/com.android.dx-10.0.0.jar"

    @property
    def proguard(self) -> Path:
        return self.folder / "shrinker/usr/share/java/proguard.jar"

    @property
    def android_23(self) -> Path:
        """The API of Android 6."""
        return self.folder / "dex/usr/share/java/com.android.android-23.jar"

    @property
    def android(self) -> Path:
        """The API of Android 14, without bodies."""
        return self.folder / "android/android.jar"

    @property
    def resources(self) -> Path:
        return self.folder / "resources/usr/share/android-framework-res/framework-res.apk"

    @property
    def kotlin(self) -> Path:
        """kotlinc's jars."""
        return self.folder / "kotlin/package/lib"

    @property
    def tflite(self) -> Path:
        """TFLite's Java classes."""
        return self.folder / "tflite/tflite.jar"

    def native(self, abi: str) -> Path:
        """TFLite's library."""
        return self.folder / "native" / abi / "libtensorflowlite_jni.so"

    @property
    def junit(self) -> list[Path]:
        return [self.folder / "junit/usr/share/java" / name for name in ("junit4.jar", "hamcrest.jar")]

    @property
    def adb(self) -> Path:
        return self.folder / "adb/usr/lib/android-sdk/platform-tools/adb"

    @property
    def adbd(self) -> Path:
        """The folder of a system in which adbd runs."""
        return self.folder / "adbd"


def prepare(say: Say, tests: bool = False) -> Tools:
    """Fetch what is not there yet. tests: with adb and adbd. Raises Missing."""
    _programs()
    FOLDER.mkdir(exist_ok=True)
    with open(FOLDER / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tools = Tools(FOLDER)
        parts: list[tuple[str, object, Callable[[Path], None]]] = [
            ("tools", TOOLS, lambda to: _unpack(TOOLS, to)),
            ("dex", DEX, lambda to: _unpack(DEX, to)),
            ("shrinker", SHRINKER, lambda to: _unpack(SHRINKER, to)),
            ("resources", RESOURCES, lambda to: _unpack(RESOURCES, to)),
            ("kotlin", KOTLIN, lambda to: _npm(KOTLIN, to)),
            ("native", TFLITE, _native),
            ("android", FRAMEWORK, _android),
            ("tflite", TENSORFLOW, _tflite),
        ]
        if tests:
            parts += [("junit", JUNIT, lambda to: _unpack(JUNIT, to))]
            parts += [("adb", ADB, lambda to: _unpack(ADB, to)), ("adbd", ADBD, lambda to: _unpack(ADBD, to))]
        for name, pins, make in parts:
            _part(name, repr(pins), make, say)
    return tools


def _programs() -> None:
    for program, what in (
        ("javac", f"a JDK, {OLDEST_JAVA} or newer (openjdk-17-jdk-headless)"),
        ("java", f"a JDK, {OLDEST_JAVA} or newer (openjdk-17-jdk-headless)"),
        ("keytool", f"a JDK, {OLDEST_JAVA} or newer (openjdk-17-jdk-headless)"),
        ("npm", "npm, for the Kotlin compiler"),
        ("dpkg-deb", "dpkg-deb, as Debian has it"),
        ("apt-get", "apt, set up for a Debian mirror"),
    ):
        if not shutil.which(program):
            raise Missing(f"{DEBIAN.failing}: {program} is missing. Install {what}")
    told = subprocess.run(["javac", "-version"], capture_output=True, text=True, check=False).stdout
    version = told.removeprefix("javac ").split(".")[0].strip()
    if not version.isdigit() or int(version) < OLDEST_JAVA:
        raise Missing(f"{DEBIAN.failing}: javac is {told.strip()}, {OLDEST_JAVA} is needed")
    if os.uname().machine != "x86_64" or sys.platform != "linux":
        raise Missing("the Android app is built on x86-64 Linux (or anywhere by Android Studio, see docs/android.md)")


def _part(name: str, pins: str, make: Callable[[Path], None], say: Say) -> None:
    """Make one folder, whole or not at all."""
    folder, stamp = FOLDER / name, FOLDER / f"{name}.made"
    recipe = (HERE / "stubs.py").read_text() if name == "android" else ""
    key = hashlib.sha256(f"{RECIPES} {pins} {recipe}".encode()).hexdigest()
    if folder.is_dir() and stamp.exists() and stamp.read_text() == key:
        return
    say(f"  Android toolchain: {name}")
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial = FOLDER / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    make(partial)
    os.replace(partial, folder)
    stamp.write_text(key)


def _unpack(files: Sequence[File], folder: Path) -> None:
    mirrors = DEBIAN.mirrors()
    for file in files:
        archive = DEBIAN.fetch(file, folder, mirrors)
        DEBIAN.run(["dpkg-deb", "-x", str(archive), str(folder)], "dpkg-deb")
        archive.unlink()


def _npm(package: Npm, folder: Path) -> None:
    named = f"{package.name}@{package.version}"
    done = subprocess.run(
        ["npm", "pack", named, "--pack-destination", str(folder), "--silent"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    archive = folder / f"{package.name}-{package.version}.tgz"
    if done.returncode or not archive.exists():
        last = (done.stderr.strip().splitlines() or ["npm says nothing"])[-1]
        raise Missing(f"{DEBIAN.failing}: npm has no {named} ({last})")
    if sha256_of(archive) != package.sha256:
        raise Missing(f"{named} is not what it was: its SHA-256 differs from the one in apps/android/toolchain.py")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()


def _native(folder: Path) -> None:
    _npm(TFLITE, folder)
    for abi in ABIS:
        (found,) = (folder / "package").rglob(f"{abi}/libtensorflowlite_jni.so")
        (folder / abi).mkdir()
        shutil.copy(found, folder / abi)
    shutil.rmtree(folder / "package")


def _android(folder: Path) -> None:
    """The API's classes without bodies."""
    archive = DEBIAN.fetch(FRAMEWORK, folder, DEBIAN.mirrors())
    with tarfile.open(archive) as tar:
        member = next(one for one in tar if one.name.split("/", 1)[-1] == SIGNATURES)
        content = tar.extractfile(member)
        assert content is not None, "it is a file"
        (folder / "current.txt").write_bytes(content.read())
    archive.unlink()
    DEBIAN.run([sys.executable, str(HERE / "stubs.py"), str(folder / "current.txt"), str(folder / "src")], "stubs.py")
    # ProGuard reads no newer class files
    options = ["-source", "8", "-target", "8", "-Xlint:-options"]
    _javac(sorted((folder / "src").rglob("*.java")), folder / "classes", options)
    DEBIAN.run(["jar", "cf", str(folder / "android.jar"), "-C", str(folder / "classes"), "."], "jar")
    for name in ("src", "classes"):
        shutil.rmtree(folder / name)


def _tflite(folder: Path) -> None:
    """TFLite's Java API; an annotation that its sources take from elsewhere is replaced by an empty one."""
    archive = DEBIAN.fetch(TENSORFLOW, folder, DEBIAN.mirrors())
    source = folder / "src"
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.split("/", 1)[-1]
            place = next((place for place in JAVA_API if inside.startswith(place)), None)
            if place and inside.endswith(".java") and (content := tar.extractfile(member)):
                path = source / inside.removeprefix(place)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    archive.unlink()
    checker = source / "org/checkerframework/checker/nullness/qual"
    checker.mkdir(parents=True)
    for name in ("NonNull", "Nullable"):
        (checker / f"{name}.java").write_text(
            f"package org.checkerframework.checker.nullness.qual;\n"
            "import java.lang.annotation.*;\n"
            f"@Retention(RetentionPolicy.SOURCE) @Target({{ElementType.TYPE_USE}}) public @interface {name} {{}}\n"
        )
    _javac(sorted(source.rglob("*.java")), folder / "classes", ["--release", "8"])
    DEBIAN.run(["jar", "cf", str(folder / "tflite.jar"), "-C", str(folder / "classes"), "."], "jar")
    for name in ("src", "classes"):
        shutil.rmtree(folder / name)


def _javac(sources: Sequence[Path], to: Path, options: Sequence[str]) -> None:
    listed = to.with_suffix(".list")
    listed.write_text("\n".join(map(str, sources)))
    DEBIAN.run(
        ["javac", "-nowarn", "-proc:none", "-XDignore.symbol.file", *options, "-d", str(to), f"@{listed}"], "javac"
    )
    listed.unlink()


if __name__ == "__main__":
    try:
        print(prepare(print, tests="tests" in sys.argv[1:]).folder)
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(3)

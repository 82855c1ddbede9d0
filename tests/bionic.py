"""Libraries that stand in for Android's own, for exactly what one library asks of them; see bionic.c."""

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
# fmt: off
OWN = {
    "__errno", "__sF", "__strlen_chk", "__strchr_chk", "__strrchr_chk", "__write_chk", "__read_chk", "__open_2",
    "__gnu_strerror_r", "__gcov_dump", "__gcov_flush", "__system_property_get", "android_set_abort_message",
    "__android_log_vprint", "__android_log_print", "__android_log_write", "sysconf", "fprintf", "vfprintf", "fputc",
    "fputs", "fwrite", "fflush", "fclose", "fread", "putc", "fileno", "fseek", "fseeko", "ftello", "stderr", "stdout",
    "stdin", "dlsym",
}
# fmt: on
"""what bionic.c itself has; the rest is a jump into glibc"""
VERSIONS = ("LIBC", "LIBC_N", "LIBC_O", "LIBC_P", "LIBC_Q", "LIBC_R")
OTHERS = ("libm.so", "libdl.so", "liblog.so")
"""asked for by name; libc.so has what they have"""


def build(library: Path, folder: Path) -> None:
    """Put libc.so and the others into the folder, beside a copy of the library."""
    wanted = _wanted(library)
    jumps = sorted(set(wanted) - OWN)
    (folder / "names.h").write_text(f"static const char *const names[] = {{{', '.join(map(_quoted, jumps))}}};\n")
    (folder / "jumps.S").write_text(
        ".text\n"
        + "".join(
            f".globl {name}\n.type {name},@function\n.hidden slot_{i}\n{name}: jmp *slot_{i}(%rip)\n"
            for i, name in enumerate(jumps)
        )
        + ".data\n"
        + "".join(f".hidden slot_{i}\n.globl slot_{i}\nslot_{i}: .quad 0\n" for i in range(len(jumps)))
        + '.section .note.GNU-stack,"",@progbits\n'
    )
    versions: dict[str, list[str]] = defaultdict(list)
    for name, version in wanted.items():
        versions[version].append(name)
    _script(folder / "libc.map", {version: versions[version] or [f"bionic_{version}"] for version in VERSIONS})
    _script(folder / "other.map", {version: [f"bionic_{version}"] for version in VERSIONS})
    other = folder / "other.c"
    other.write_text("char " + ", ".join(f"bionic_{version}" for version in VERSIONS) + ";\n")
    _gcc(folder, "libc.so", "libc.map", [SOURCE, folder / "jumps.S"])
    for name in OTHERS:
        _gcc(folder, name, "other.map", [other])
    shutil.copy(library, folder)


def _wanted(library: Path) -> dict[str, str]:
    """Name -> version of what a library does not have itself."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], text=True, capture_output=True, check=True)
    found = {}
    for line in listed.stdout.splitlines():
        kind, name = line.split()[-2:]
        if "@" in name:
            found[name.split("@")[0]] = name.split("@")[-1]
        elif kind not in "wv" and not name.startswith("_ZN"):
            found[name] = "LIBC"
    return found


def _script(path: Path, versions: dict[str, list[str]]) -> None:
    lines, before = [], ""
    for version, names in versions.items():
        local = " local: *;" if version == "LIBC" else ""
        lines.append(f"{version} {{ global: {'; '.join(sorted(names))};{local} }}{before};\n")
    path.write_text("".join(lines))


def _gcc(folder: Path, name: str, script: str, sources: list[Path]) -> None:
    command = ["gcc", "-shared", "-fPIC", "-O1", "-fno-builtin", "-w", f"-Wl,-soname,{name}", f"-I{folder}"]
    subprocess.run([*command, f"-Wl,--version-script={folder / script}", "-o", folder / name, *sources], check=True)


def _quoted(name: str) -> str:
    return f'"{name}"'

"""What Java class files name: just enough of the format to see which members of others a class uses."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

# tag -> bytes behind it; text and the two that take two places are treated by themselves
_SIZES = {3: 4, 4: 4, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4, 19: 2, 20: 2}
Member = tuple[str, str, str]
"""class, name, descriptor"""


@dataclass(frozen=True)
class ClassFile:
    """One class."""

    name: str
    above: tuple[str, ...]
    """superclass and interfaces"""
    own: frozenset[tuple[str, str]]
    """name and descriptor of its fields and methods"""
    used: frozenset[Member]
    indy: bool
    """whether something in it is linked when it runs"""


def parse(content: bytes) -> ClassFile:
    """Source: the Java virtual machine specification, chapter 4."""
    count = struct.unpack_from(">H", content, 8)[0]
    pool: list[tuple[int, bytes]] = [(0, b"")] * count
    at, i = 10, 1
    while i < count:
        tag = content[at]
        size = 2 + struct.unpack_from(">H", content, at + 1)[0] if tag == 1 else 8 if tag in (5, 6) else _SIZES[tag]
        pool[i] = (tag, content[at + 1 : at + 1 + size])
        at += 1 + size
        i += 2 if tag in (5, 6) else 1

    def text(index: int) -> str:
        return pool[index][1][2:].decode(errors="replace")

    def word(index: int, place: int = 0) -> int:
        return struct.unpack_from(">H", pool[index][1], place)[0]

    def class_at(index: int) -> str:
        return text(word(index)) if index else ""

    _, this, parent, interfaces = struct.unpack_from(">HHHH", content, at)
    names = struct.unpack_from(f">{interfaces}H", content, at + 8)
    at += 8 + 2 * interfaces
    own = set()
    for _ in range(2):  # fields, methods
        (members,) = struct.unpack_from(">H", content, at)
        at += 2
        for _ in range(members):
            _, name, descriptor, attributes = struct.unpack_from(">HHHH", content, at)
            own.add((text(name), text(descriptor)))
            at += 8
            for _ in range(attributes):
                at += 6 + struct.unpack_from(">I", content, at + 2)[0]
    used = set()
    for tag, _ in pool:
        assert tag in (0, 1, 5, 6) or tag in _SIZES
    for index, (tag, _) in enumerate(pool):
        if tag in (9, 10, 11):
            both = word(index, 2)
            used.add((class_at(word(index)), text(word(both)), text(word(both, 2))))
    above = tuple(name for name in (class_at(parent), *map(class_at, names)) if name)
    return ClassFile(class_at(this), above, frozenset(own), frozenset(used), any(tag == 18 for tag, _ in pool))


def of_folder(folder: Path) -> list[ClassFile]:
    """Every class below a folder."""
    return [parse(path.read_bytes()) for path in sorted(folder.rglob("*.class"))]


def of_jar(jar: Path) -> dict[str, ClassFile]:
    """Name -> class."""
    with ZipFile(jar) as archive:
        found = [parse(archive.read(name)) for name in archive.namelist() if name.endswith(".class")]
    return {one.name: one for one in found}


def lacking(users: Iterable[ClassFile], library: dict[str, ClassFile], packages: tuple[str, ...]) -> set[str]:
    """Members of these packages that are used, or inherited, and that the library does not have: "class.name"."""
    mine = {one.name: one for one in users}

    def has(name: str, member: tuple[str, str]) -> bool:
        one = mine.get(name) or library.get(name)
        return one is not None and (member in one.own or any(has(above, member) for above in one.above))

    def origin(name: str) -> str:
        """The first superclass that is not the users' own."""
        while name in mine:
            name = mine[name].above[0]
        return name

    return {
        f"{origin(owner)}.{name}"
        for user in mine.values()
        for owner, name, descriptor in user.used
        if origin(owner).startswith(packages) and not has(owner, (name, descriptor))
    }

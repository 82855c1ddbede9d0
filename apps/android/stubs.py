"""Android's published API signatures (core/api/current.txt) as Java sources to compile against.

No method has a body: the classes serve the compiler and are in no app. Android's own android.jar is made likewise.
Signatures also name types that JDKs do not have, or that are hidden: members with those are left out.
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

JDK = re.compile(r"^(java|javax\.(net|crypto|security|sql|xml)|org\.w3c|org\.xml)\b")
NOT_IN_JDK = ("javax.microedition", "java.lang.invoke.VarHandle.AccessDescriptor")
ZERO = {"int": "0", "long": "0L", "short": "(short) 0", "byte": "(byte) 0", "char": "(char) 0", "float": "0f"}
ZERO |= {"double": "0d", "boolean": "false"}
BOXES = {"int": "Integer", "char": "Character"}
"""the others are called as their type, with a capital"""
STUB = 'throw new RuntimeException("Stub!");'
SUPER = {
    "java.io.FileInputStream": "super((java.io.FileDescriptor) null); ",
    "java.io.FileOutputStream": "super((java.io.FileDescriptor) null); ",
    "java.io.FilterInputStream": "super(null); ",
    "java.io.FilterOutputStream": "super(null); ",
}
"""what a constructor calls where the JDK's superclass has none without arguments"""
NOT_ABSTRACT = {
    "android.view.ViewGroup.onLayout",
    "android.telephony.CellSignalStrength.hashCode",
    "android.telephony.CellSignalStrength.equals",
}
"""abstract there, and not implemented by published subclasses"""
_ANNOTATION = re.compile(r'@(?!interface)[\w.]+(\((?:"(?:[^"\\]|\\.)*"|[^()"]|\([^()]*\))*\))?\s*')
_HEAD = re.compile(r"(.*?)\b(class|@interface|interface|enum) ([\w.]+)(.*)\{$")
_TYPE = re.compile(r"\b(?:[a-z]\w*\.)+[A-Z]\w*(?:\.[A-Z]\w*)*")


@dataclass
class ApiClass:
    """A class of the list; nested ones are called Outer.Inner."""

    package: str
    name: str
    modifiers: str
    kind: str
    generics: str
    bases: str
    """extends ... implements ..."""
    members: list[str] = field(default_factory=list)

    @property
    def full(self) -> str:
        """With its package."""
        return f"{self.package}.{self.name}"


def read(text: str) -> dict[str, ApiClass]:
    """The classes of a signature file by their full name."""
    classes: dict[str, ApiClass] = {}
    package, current = "", None
    for line in text.splitlines():
        plain = _without_annotations(line)
        if line.startswith("package "):
            package = plain.split()[1]
        elif line.startswith("    ") and current:
            member = plain.strip()
            current.members.append(member if member.startswith("field") else member.rstrip(";"))
        elif line.startswith("  ") and (head := _HEAD.match(plain.strip())):
            modifiers, kind, name, rest = head.groups()
            generics, bases = _generics(rest.strip())
            current = ApiClass(package, name, modifiers.replace("deprecated", ""), kind, generics, bases)
            classes[current.full] = current
    return classes


def _without_annotations(text: str) -> str:
    while (shorter := _ANNOTATION.sub("", text)) != text:
        text = shorter
    return text


def _generics(rest: str) -> tuple[str, str]:
    """ "<T extends Foo<T>> extends Bar" -> its two parts."""
    depth = 0
    for i, character in enumerate(rest):
        depth += (character == "<") - (character == ">")
        if depth == 0:
            return (rest[: i + 1], rest[i + 1 :].strip()) if rest.startswith("<") else ("", rest)
    return "", rest


def _split(text: str, separators: str = ",") -> list[str]:
    """Parts between separators that are in no angle brackets."""
    parts, depth, part = [], 0, ""
    for character in text:
        depth += (character == "<") - (character == ">")
        if depth == 0 and character in separators:
            parts.append(part.strip())
            part = ""
        else:
            part += character
    return [part for part in [*parts, part.strip()] if part]


class Stubs:
    """Writes the sources."""

    def __init__(self, classes: dict[str, ApiClass]) -> None:
        self.classes = classes
        self.inner: dict[str, list[str]] = {}
        for full, one in classes.items():
            if "." in one.name:
                self.inner.setdefault(f"{one.package}.{one.name.rsplit('.', 1)[0]}", []).append(full)

    def write(self, folder: Path) -> None:
        """One file a class of its own."""
        for full, one in self.classes.items():
            if "." not in one.name:
                path = folder / one.package.replace(".", "/") / f"{one.name}.java"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"package {one.package};\n" + "\n".join(self._class(full)) + "\n")

    def _known(self, signature: str) -> bool:
        plain = re.sub(r'"(?:[^"\\]|\\.)*"', "", signature).split(" // ")[0]
        return all(
            name in self.classes or (JDK.match(name) and not name.startswith(NOT_IN_JDK))
            for name in _TYPE.findall(plain)
        )

    def _class(self, full: str) -> list[str]:
        one = self.classes[full]
        modifiers = one.modifiers
        if "." not in one.name:
            modifiers = modifiers.replace("static", "").replace("protected", "public")
        if one.kind != "class":
            modifiers = modifiers.replace("abstract", "")
        if one.kind == "enum":
            modifiers = modifiers.replace("final", "")
        lines = [f"{modifiers}{one.kind} {one.name.split('.')[-1]}{one.generics}{self._bases(one)} {{"]
        if one.kind == "enum":
            constants = [member.split()[-1] for member in one.members if member.startswith("enum_constant")]
            lines.append(", ".join(constants) + ";")
        known = [member for member in one.members if self._known(member)]
        for member in known:
            kind, body = member.split(" ", 1)
            body = body.replace("deprecated ", "")
            if kind == "field":
                lines.append(_field(body))
            elif kind == "ctor" and one.kind != "enum":
                lines.append(self._constructor(one, body))
            elif kind == "method":
                lines.append(_method(one, body))
        if one.kind == "class" and not any(member.startswith("ctor") for member in known):
            access = "protected" if "abstract" in one.modifiers else ""
            lines.append(f"{access} {one.name.split('.')[-1]}() {{ {self._super(one)} }}")
        for nested in self.inner.get(full, []):
            lines += self._class(nested)
        return [*lines, "}"]

    def _bases(self, one: ApiClass) -> str:
        if one.kind in ("@interface", "enum"):
            return ""
        bases = one.bases.replace("implements", "extends", 1) if one.kind == "interface" else one.bases
        text = ""
        for kind, names in re.findall(r"(extends|implements) (.*?)(?= implements |$)", bases):
            if known := [name for name in _split(names, " ,") if self._known(name)]:
                text += f" {kind} {', '.join(known)}"
        return text

    def _super(self, one: ApiClass) -> str:
        """The call that a constructor begins with, if the superclass has no constructor without arguments."""
        base = re.match(r"extends ([\w.]+)", one.bases)
        if one.kind != "class" or not base:
            return ""
        above = self.classes.get(base[1])
        if above is None:
            return SUPER.get(base[1], "")
        every = [_parameters(member) for member in above.members if member.startswith("ctor") and self._known(member)]
        if not every or not all(every):
            return ""
        values = [
            ZERO.get(kind, f"({re.sub('<.*>', '', kind.replace('...', '[]'))}) null") for kind in min(every, key=len)
        ]
        return f"super({', '.join(values)}); "

    def _constructor(self, one: ApiClass, body: str) -> str:
        modifiers, parameters, throws = _taken(r"(.*?)[\w.]+\((.*)\)( throws .*)?$", body)
        name = one.name.split(".")[-1]
        return f"{modifiers}{name}({_named(parameters)}){throws} {{ {self._super(one)}if (true) {STUB} }}"


def _taken(pattern: str, text: str) -> list[str]:
    found = re.match(pattern, text)
    assert found, text
    return [group or "" for group in found.groups()]


def _parameters(member: str) -> list[str]:
    return _split(member[member.index("(") + 1 : member.rindex(")")])


def _named(parameters: str) -> str:
    return ", ".join(f"{kind} p{i}" for i, kind in enumerate(_split(parameters)))


def _field(body: str) -> str:
    declared, value = _taken(r"(.*?)(?: = (.*?))?;(?: // .*)?$", body)
    kind = declared.split()[-2]
    if value:
        value = value.replace("(0.0f/0.0f)", "Float.NaN").replace("(1.0f/0.0f)", "Float.POSITIVE_INFINITY")
        if kind == "float" and not value.startswith("Float."):
            value = value.removesuffix("f") + "f"
        elif kind in ("char", "byte", "short"):
            value = f"({kind}) {value}"
    elif "final" in declared:
        # no constant: a compiler would put the zero itself in the place of SDK_INT
        box = BOXES.get(kind, kind.capitalize())
        value = f"{box}.valueOf({ZERO[kind]})" if kind in ZERO else "null"
    return f"{declared} = {value};" if value else f"{declared};"


def _method(one: ApiClass, body: str) -> str:
    head, parameters, throws, default = _taken(r"(.*?)\((.*)\)( throws .*?)?( default .*)?$", body)
    name = head.split()[-1]
    if one.kind == "@interface":
        return f"{head}(){default};"
    if one.kind == "enum" and name in ("valueOf", "values"):
        return ""
    abstract = " abstract " in f" {head}"
    if one.kind == "interface":
        abstract = "default " not in head and "static " not in head
    if one.kind == "enum" or f"{one.full}.{name}" in NOT_ABSTRACT:
        abstract = False
    if not abstract or one.kind == "interface":
        head = head.replace("abstract ", "")
    return f"{head}({_named(parameters)}){throws}" + (";" if abstract else f" {{ {STUB} }}")


if __name__ == "__main__":
    Stubs(read(Path(sys.argv[1]).read_text())).write(Path(sys.argv[2]))

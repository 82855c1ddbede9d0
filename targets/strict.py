"""The door for everything that comes from outside as JSON or TOML: it becomes a frozen dataclass, or is refused.

Needs the standard library only, so that a board can run this very file. A kind is what annotations say: str, int (no
bool), float (finite; an int stays one), bool, None, Literal, unions, tuples of a fixed or any length, dict[str, X],
dataclasses and TypedDicts of all these, and Any, which is plain JSON. Keys must be known, and there unless they have a
default; ranges are for a dataclass's own __post_init__. Behind this door nothing is checked again.

Raises ValueError for everything: `FILE: key.path: what is wrong`, and what to do about it if the caller knows.
"""

import dataclasses
import functools
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

MAX_BYTES = 64_000_000
MAX_DEPTH = 32
"""of plain JSON; everything else is as deep as its kind"""
MAX_TEXT = 2000
"""characters of a device's texts that are kept"""
MAX_ITEMS = 5_000_000
"""of a list or an object"""
LARGEST = 2**63
"""whole numbers stay below it on either side: no file of ours has larger ones, and float() fails for those"""

Source = Literal["ours", "foreign", "device"]
"""ours: as this program writes it, every key known;  foreign: keys that are not needed are left out;  device: as ours,
and texts are cut and cleaned, see `printable`"""
_Read = Callable[[Any], Any]


class Fault(ValueError):
    """What is wrong with a value, and where; `keys` lead there from the outside."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.keys: list[str | int] = []
        self.where = self.fix = ""

    def below(self, key: str | int) -> "Fault":
        """The same fault, seen from one level further out."""
        self.keys.insert(0, key)
        return self

    def __str__(self) -> str:
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{_key(key)}" for key in self.keys).removeprefix(".")
        told = ": ".join(part for part in (self.where, path, self.problem) if part)
        return f"{told}; {self.fix}" if self.fix else told


def read_json(
    path: Path,
    kind: Any,
    *,
    version: tuple[str, int] | None = None,
    source: Source = "ours",
    fix: str = "",
    limit: int = MAX_BYTES,
) -> Any:
    """A JSON file as `kind`.

    version: the key of the outermost object that must have this number; it is no part of `kind`
    fix:     what to do if the file cannot be used;  limit: bytes
    """
    return parse_json(
        read_bytes(path, limit, fix), kind, str(path), version=version, source=source, fix=fix, limit=limit
    )


def parse_json(
    content: bytes,
    kind: Any,
    where: str,
    *,
    version: tuple[str, int] | None = None,
    source: Source = "ours",
    fix: str = "",
    limit: int = MAX_BYTES,
) -> Any:
    """JSON text (UTF-8) as `kind`; as `read_json`. where: what errors begin with."""
    if len(content) > limit:
        raise _told(where, f"is larger than {limit:,} bytes", fix)
    try:
        values = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise _told(where, f"is damaged, it is not JSON ({reason})", fix) from error
    if version is not None:
        key, expected = version
        found = values.pop(key, None) if isinstance(values, dict) else None
        if type(found) is not int or found != expected:
            raise _told(f"{where}:", f"{key} is {shown(found)}, this program reads {expected}", fix)
    return parse(kind, values, where, source=source, fix=fix)


def read_toml(path: Path, kind: Any, *, fix: str = "") -> Any:
    """A TOML file as `kind`."""
    content = read_bytes(path, fix=fix)
    try:
        values = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise _told(str(path), f"is not TOML ({reason})", fix) from error
    return parse(kind, values, str(path), fix=fix)


def parse(kind: Any, values: Any, where: str = "", *, source: Source = "ours", fix: str = "") -> Any:
    """Values as JSON has them (tuples may stand for lists), as `kind`. where: what errors begin with, if anything."""
    try:
        return _reader(kind, source)(values)
    except Fault as fault:
        fault.where, fault.fix = where, fix
        raise


def read_bytes(path: Path, limit: int = MAX_BYTES, fix: str = "") -> bytes:
    """A file's content, as far as a byte beyond the limit."""
    try:
        with open(path, "rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise _told(str(path), f"cannot be read ({error.strerror or error})", fix) from error


def printable(text: str) -> str:
    """Text that a terminal takes for nothing else: control and other invisible characters become �, lines stay."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def _told(where: str, problem: str, fix: str) -> ValueError:
    return ValueError(f"{where} {problem}{f'; {fix}' if fix else ''}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} stands there twice")
            seen.add(key)
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


@functools.cache
def _reader(kind: Any, source: Source) -> _Read:
    """What turns a value into `kind` or raises Fault; made once per kind, since results hold a million numbers."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if source == "device" and kind in (str, Any):
        return _cleaned if kind is str else functools.partial(_free, _cleaned)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if origin is Literal:
        return functools.partial(_literal, arguments)
    if origin in (typing.Union, types.UnionType):
        return functools.partial(_union, [(one, _reader(one, source)) for one in arguments])
    if origin is tuple and arguments[1:] == (...,):
        return functools.partial(_list, _reader(arguments[0], source))
    if origin is tuple:
        return functools.partial(_fixed, [_reader(one, source) for one in arguments])
    if origin is dict:
        return functools.partial(_dict, *(_reader(one, source) for one in arguments))
    hints = typing.get_type_hints(kind)
    if typing.is_typeddict(kind):
        required = kind.__required_keys__
    else:
        fields = [field for field in dataclasses.fields(kind) if field.init]
        none = dataclasses.MISSING
        hints = {field.name: hints[field.name] for field in fields}
        required = {field.name for field in fields if field.default is none and field.default_factory is none}
    readers = {name: _reader(hint, source) for name, hint in hints.items()}
    return functools.partial(_built, kind, readers, required, source == "foreign")


def _is(kind: type, name: str, value: Any) -> Any:
    if type(value) is not kind:
        raise Fault(f"must be {name}, not {shown(value)}")
    return value


def _cleaned(value: Any) -> str:
    return printable(_is(str, "text", value)[:MAX_TEXT])


def _number(whole: bool, value: Any) -> float:
    if (type(value) is int and -LARGEST < value < LARGEST) or (
        not whole and type(value) is float and math.isfinite(value)
    ):
        return value
    raise Fault(f"must be a {'whole' if whole else 'finite'} number, not {shown(value)}")


def _free(text: _Read, value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise Fault("is nested too deeply")
    if isinstance(value, dict):
        return _dict(text, functools.partial(_free, text, depth=depth + 1), value)
    if isinstance(value, list | tuple):
        return list(_list(functools.partial(_free, text, depth=depth + 1), value))
    if isinstance(value, str):
        return text(value)
    return value if value is None or isinstance(value, bool) else _number(False, value)


_text = functools.partial(_is, str, "text")
_PLAIN: dict[Any, _Read] = {
    str: _text,
    int: functools.partial(_number, True),
    float: functools.partial(_number, False),
    bool: functools.partial(_is, bool, "true or false"),
    type(None): functools.partial(_is, type(None), "null"),
    Any: functools.partial(_free, _text),
}


def _literal(allowed: tuple[Any, ...], value: Any) -> Any:
    for one in allowed:
        if type(value) is type(one) and value == one:
            return one
    raise Fault(f"must be {' or '.join(map(shown, allowed))}, not {shown(value)}")


def _union(members: list[tuple[Any, _Read]], value: Any) -> Any:
    if value is None and any(kind is type(None) for kind, _ in members):
        return None
    faults = []
    for kind, read in members:
        if kind is not type(None):
            try:
                return read(value)
            except Fault as fault:
                faults.append(fault)
    raise max(faults, key=lambda fault: len(fault.keys))  # of the member that fitted furthest


def _list(item: _Read, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise Fault(f"must be a list, not {shown(value)}")
    _few(value)
    found: list[Any] = []
    try:
        for one in value:
            found.append(item(one))
    except Fault as fault:
        raise fault.below(len(found)) from None
    return tuple(found)


def _fixed(items: list[_Read], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) != len(items):
        raise Fault(f"must be a list of {len(items)}, not {shown(value)}")
    found: list[Any] = []
    try:
        for item, one in zip(items, value, strict=True):
            found.append(item(one))
    except Fault as fault:
        raise fault.below(len(found)) from None
    return tuple(found)


def _dict(name: _Read, item: _Read, value: Any) -> dict[Any, Any]:
    _few(_keyed(value))
    found = {}
    for key, one in value.items():
        try:
            found[name(key)] = item(one)
        except Fault as fault:
            raise fault.below(key) from None
    return found


def _built(kind: Any, readers: dict[str, _Read], required: Iterable[str], foreign: bool, value: Any) -> Any:
    _keyed(value)
    if not foreign and (unknown := [key for key in value if key not in readers]):
        raise Fault(f"has the unknown key {shown(unknown[0])}. Known: {', '.join(readers)}")
    arguments = {}
    for name, read in readers.items():
        if name in value:
            try:
                arguments[name] = read(value[name])
            except Fault as fault:
                raise fault.below(name) from None
    if missing := [name for name in readers if name in required and name not in value]:
        raise Fault(f"lacks {', '.join(missing)}")
    try:
        return kind(**arguments)
    except Fault:
        raise
    except ValueError as error:  # its own __post_init__
        raise Fault(str(error)) from error


def _keyed(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(type(key) is str for key in value):
        raise Fault(f"must be an object, not {shown(value)}")
    return value


def _few(value: Any) -> None:
    if len(value) > MAX_ITEMS:
        raise Fault(f"has {len(value):,} entries; at most {MAX_ITEMS:,} are taken")


def _key(key: str) -> str:
    return key if key.isidentifier() else shown(key)


def shown(value: Any) -> str:
    """A value for a message, in a few words."""
    for kinds, name in ((dict, "an object"), (list | tuple, "a list")):
        if isinstance(value, kinds):
            return f"{name} of {len(value)}" if value else f"an empty {name.split()[1]}"
    if type(value) is int and abs(value) >= LARGEST:
        return "a number that is too large"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

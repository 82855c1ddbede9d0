"""The strict reader: what it takes, what it refuses, and how it says so."""

import ast
import contextlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets import strict
from targets.strict import parse, parse_json, printable, read_json, read_toml


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, not {self.width}")


class Named(TypedDict):
    name: str
    cores: int | None


@dataclass(frozen=True, kw_only=True)
class Outer:
    text: str = ""
    count: int = 0
    ms: float = 0.0
    on: bool = False
    nothing: None = None
    kind: Literal["a", "b", 1] = "a"
    maybe: float | None = None
    either: int | str | tuple[int, ...] = 0
    pair: tuple[int, str] = (0, "")
    rows: tuple[tuple[float | None, ...], ...] = ()
    by_name: dict[str, Inner] = field(default_factory=dict)
    by_kind: dict[Literal["x", "y"], int] = field(default_factory=dict)
    inner: Inner | None = None
    named: Named | None = None
    free: Any = None


SOUND: dict[str, Any] = {
    "text": "é",
    "count": -3,
    "ms": 2,
    "on": True,
    "nothing": None,
    "kind": 1,
    "maybe": None,
    "either": [1],
    "pair": [1, "b"],
    "rows": [[1.5, None], []],
    "by_name": {"a.b": {"width": 2}},
    "by_kind": {"y": 1},
    "inner": {"width": 3},
    "named": {"name": "x", "cores": None},
    "free": {"a": [1, {"b": None}, 1.5, True, "c"]},
}


def test_every_kind_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps(SOUND))
    expected = Outer(
        **{
            **SOUND,
            "either": (1,),
            "pair": (1, "b"),
            "rows": ((1.5, None), ()),
            "by_name": {"a.b": Inner(width=2)},
            "inner": Inner(width=3),
        }
    )
    assert read_json(path, Outer) == expected
    assert parse(Outer, {**SOUND, "pair": (1, "b")}) == expected, "tuples stand for lists"
    path.write_text('count = 3\nfree = [1, {a = "b"}]\n[inner]\nwidth = 4\n')
    assert read_toml(path, Outer) == Outer(count=3, free=[1, {"a": "b"}], inner=Inner(width=4))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": 1}', "text: must be text, not 1"),
        ('{"count": true}', "count: must be a whole number, not True"),
        ('{"count": 1.0}', "count: must be a whole number, not 1.0"),
        ('{"count": 9223372036854775808}', "count: must be a whole number, not a number that is too large"),
        ('{"ms": "fast"}', "ms: must be a finite number, not 'fast'"),
        ('{"ms": true}', "ms: must be a finite number, not True"),
        ('{"ms": 1e999}', "ms: must be a finite number, not inf"),
        (f'{{"ms": 1{"0" * 400}}}', "ms: must be a finite number, not a number that is too large"),
        ('{"ms": NaN}', "damaged, it is not JSON (NaN is no number)"),
        ('{"ms": -Infinity}', "damaged, it is not JSON (-Infinity is no number)"),
        (f'{{"ms": {"9" * 5000}}}', "damaged, it is not JSON (Exceeds the limit"),
        ('{"on": 1}', "on: must be true or false, not 1"),
        ('{"nothing": false}', "nothing: must be null, not False"),
        ('{"kind": "c"}', "kind: must be 'a' or 'b' or 1, not 'c'"),
        ('{"kind": true}', "kind: must be 'a' or 'b' or 1, not True"),
        ('{"either": [1, "x"]}', "either[1]: must be a whole number, not 'x'"),
        ('{"either": 1.5}', "either: must be a whole number, not 1.5"),
        ('{"pair": [1]}', "pair: must be a list of 2, not a list of 1"),
        ('{"pair": [1, 2]}', "pair[1]: must be text, not 2"),
        ('{"rows": [[1], [2, "3"]]}', "rows[1][1]: must be a finite number, not '3'"),
        ('{"rows": [1]}', "rows[0]: must be a list, not 1"),
        ('{"rows": {}}', "rows: must be a list, not an empty object"),
        ('{"by_name": {"a.b": {"width": "x"}}}', "by_name.'a.b'.width: must be a whole number, not 'x'"),
        ('{"by_name": {"a": {"width": 0}}}', "by_name.a: width must be at least 1, not 0"),
        ('{"by_name": [1]}', "by_name: must be an object, not a list of 1"),
        ('{"by_kind": {"z": 1}}', "by_kind.z: must be 'x' or 'y', not 'z'"),
        ('{"inner": {}}', "inner: lacks width"),
        ('{"inner": {"width": 1, "height": 2}}', "inner: has the unknown key 'height'. Known: width"),
        ('{"named": {"name": "x"}}', "named: lacks cores"),
        ('{"named": {"name": "x", "cores": 1, "z": 1}}', "named: has the unknown key 'z'. Known: name, cores"),
        ('{"free": {"a": [1e999]}}', "free.a[0]: must be a finite number, not inf"),
        (f'{{"free": {"[" * 40 + "]" * 40}}}', ": is nested too deeply"),
        (f'{{"free": {DEEP}}}', "damaged, it is not JSON (nested too deeply)"),
        (f'{{"ms": {"[" * 400 + "]" * 400}}}', "ms: must be a finite number, not a list of 1"),
        ('{"ms": 1, "ms": 2}', "damaged, it is not JSON (the key 'ms' stands there twice)"),
        ('{"free": {"b": 1, "a": {"\\u001b": 1, "\\u001b": 2}}}', r"the key '\x1b' stands there twice"),
        ('{"speed": 1}', "has the unknown key 'speed'. Known: text, count"),
        ("[]", "must be an object, not an empty list"),
        ("null", "must be an object, not None"),
        ("", "damaged, it is not JSON (Expecting value"),
        ("{", "damaged, it is not JSON"),
        ("{} {}", "damaged, it is not JSON (Extra data"),
    ],
)
def test_what_does_not_fit_is_named_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(ValueError) as raised:
        read_json(path, Outer, fix="make it anew")
    assert str(raised.value).startswith(f"{path}: " if "damaged" not in str(raised.value) else f"{path} is ")
    assert message in str(raised.value)
    assert str(raised.value).endswith("; make it anew")
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b'{"text": "\xe9"}', '{"text": "é"}'.encode("utf-16")])
def test_what_is_no_utf8_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="f is damaged, it is not JSON"):
        read_json(path, Outer)
    with pytest.raises(ValueError, match="f is not TOML"):
        read_toml(path, Outer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count = ", "is not TOML"),
        ("count = 1\ncount = 2", "is not TOML"),
        ("ms = nan", "ms: must be a finite number, not nan"),
        ("ms = inf", "ms: must be a finite number, not inf"),
        ("free = 2026-01-01", "free: must be a finite number, not datetime.date"),
        (f"free = {'[' * 5000}{']' * 5000}", "is not TOML (nested too deeply)"),
    ],
)
def test_toml_is_read_as_strictly(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f.toml").write_text(text)
    with pytest.raises(ValueError) as raised:
        read_toml(tmp_path / "f.toml", Outer)
    assert message in str(raised.value)


def test_missing_and_too_large_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json cannot be read \(No such file or directory\); look again"):
        read_json(tmp_path / "none.json", Outer, fix="look again")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        read_toml(tmp_path, Outer)
    (tmp_path / "f.json").write_text(json.dumps({"text": "x" * 100}))
    with pytest.raises(ValueError, match=r"f\.json is larger than 100 bytes"):
        read_json(tmp_path / "f.json", Outer, limit=100)
    assert read_json(tmp_path / "f.json", Outer, limit=200).text == "x" * 100


def test_lists_and_objects_have_a_longest_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "MAX_ITEMS", 3)
    assert parse(tuple[int, ...], [1, 2, 3]) == (1, 2, 3)
    for kind, values in ((tuple[int, ...], [1] * 4), (Any, [1] * 4), (dict[str, int], dict.fromkeys("abcd", 1))):
        with pytest.raises(ValueError, match="4 entries; at most 3"):
            parse(kind, values)


@pytest.mark.parametrize("found", ["2", "null", "true", '"1"', "1.0"])
def test_a_file_of_another_version_is_refused(found: str) -> None:
    def read(text: str) -> Any:
        return parse_json(text.encode(), Outer, "f.json", version=("version", 1), fix="make it anew")

    assert read('{"version": 1, "count": 2}') == Outer(count=2)
    with pytest.raises(ValueError, match=r"f\.json: version is .*, this program reads 1; make it anew"):
        read(f'{{"version": {found}, "count": 2}}')
    for text in ("{}", "[]"):
        with pytest.raises(ValueError, match="version is None, this program reads 1"):
            read(text)


def test_of_a_foreign_file_only_what_is_needed_is_read() -> None:
    kind = tuple[Inner, ...]
    assert parse(kind, [{"width": 1, "licence": 3}], source="foreign") == (Inner(width=1),)
    with pytest.raises(ValueError, match="unknown key 'licence'"):
        parse(kind, [{"width": 1, "licence": 3}])


def test_texts_of_a_device_reach_no_terminal_as_they_are() -> None:
    dirty = "\x1b[2Jred\x9b31m\r\b\0\u202e\ud800 \u2028ok é 漢\n\tend"
    clean = "�[2Jred�31m����� �ok é 漢\n\tend"
    assert printable(dirty) == clean
    assert printable("plain é 漢") == "plain é 漢"
    content = json.dumps({"text": dirty, "free": [dirty, {dirty: dirty}], "either": dirty}).encode()
    found = parse_json(content, Outer, "f", source="device")
    assert (found.text, found.either, found.free) == (clean, clean, [clean, {clean: clean}])
    assert parse_json(content, Outer, "f").text == dirty


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(list(SOUND)) | st.text(), inner),
)


@given(VALUES, st.sampled_from(["ours", "foreign", "device"]))
def test_anything_is_read_or_refused(values: Any, source: strict.Source) -> None:
    for given_values in (values, {**SOUND, "free": values}, {**SOUND, "rows": values}, {**SOUND, "by_name": values}):
        with contextlib.suppress(strict.Fault):
            assert isinstance(parse(Outer, given_values, "f", source=source), Outer)


@dataclass(frozen=True, kw_only=True)
class Large:
    logits: tuple[tuple[float | None, ...], ...]
    samples_ms: tuple[float, ...]


def test_a_large_result_takes_no_second() -> None:
    """256 images of 1,000 classes and 250,000 samples: 8 MB."""
    rows = [[(1 + i) * (1 + j) / 7 for i in range(1000)] for j in range(256)]
    content = json.dumps({"logits": rows, "samples_ms": [i / 7 for i in range(250_000)]}).encode()
    assert len(content) > 8e6
    begun = time.process_time()
    found = parse_json(content, Large, "result.json")
    assert time.process_time() - begun < 1
    assert found.logits[3][2] == 12 / 7


def test_the_file_runs_where_nothing_is_installed() -> None:
    tree = ast.parse(Path(strict.__file__).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names

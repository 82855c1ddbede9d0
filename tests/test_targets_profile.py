"""Profiles: on disk and back, what is refused, and what they say of a model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import synthetic

from targets.profile import Curve, Whole, add, path_of, read, write


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "host.json"
    one = synthetic()
    other = replace(one, precision="fp32", whole=(Whole(layers=((32, 0), (16, 48)), ms=0.5),))
    write([one, other], path)
    assert read(path) == [one, other]
    assert not list(path.parent.glob("*.tmp"))


def test_no_file_holds_no_profile(tmp_path: Path) -> None:
    assert read(tmp_path / "none.json") == []


def test_a_newer_profile_takes_the_place_of_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    old, other = synthetic(), synthetic(precision="fp32")
    new = replace(old, base_ms=2 * old.base_ms)
    for profile in (old, other, new):
        add(profile, path)
    assert read(path) == [other, new]


def test_every_target_has_a_file_of_its_own() -> None:
    assert path_of("rpi5").name == "rpi5.json"
    assert path_of("rpi5").parent.name == "profiles"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "version is 2, this program reads 1"),
        (lambda c: c.update(extra=1), "has the unknown key 'extra'. Known: profiles"),
        (lambda c: c["profiles"][0].update(speed=1), r"profiles\[0\]: has the unknown key 'speed'"),
        (lambda c: c["profiles"][0].pop("base_ms"), r"profiles\[0\]: lacks base_ms"),
        (lambda c: c["profiles"][0]["shape"].pop("tokens"), r"profiles\[0\]\.shape: lacks tokens"),
        (lambda c: c["profiles"][0]["shape"].update(dim=0), "dim must be a whole number of at least 1"),
        (lambda c: c["profiles"][0].update(base_ms=-1), "base_ms must be above 0"),
        (
            lambda c: c["profiles"][0].update(base_ms="fast"),
            r"\.base_ms: must be a finite number, not 'fast'",
        ),
        (lambda c: c["profiles"][0]["curves"].pop("mlp"), "curves must be those of attn, mlp, attn_last, mlp_last"),
        (lambda c: c["profiles"][0].update(curves=[]), r"\.curves: must be an object"),
        (lambda c: c["profiles"][0].update(device="host"), r"\.device: must be an object"),
        (lambda c: c["profiles"][0]["curves"]["mlp"].update(ms=1), r"curves\.mlp\.ms: must be a list"),
        (lambda c: c["profiles"][0]["curves"]["mlp"]["ms"].reverse(), "never fall"),
        (lambda c: c["profiles"][0]["curves"]["mlp"]["widths"].reverse(), "widths must rise"),
        (lambda c: c["profiles"][0]["curves"]["mlp"]["ms"].pop(), "ms, raw_ms and spread_ms for each"),
        (lambda c: c["profiles"][0]["shape"].update(hidden=999), "the dense one is 999"),
        (
            lambda c: c["profiles"][0].update(whole=[{"layers": [1], "ms": 1}]),
            r"layers\[0\]: must be a list of 2",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, change: Any, message: str) -> None:
    path = write([synthetic()], tmp_path / "host.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert "`make profile`" in str(raised.value)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    for text in ("{", "[]", "3"):
        path.write_text(text)
        with pytest.raises(ValueError, match="make profile"):
            read(path)


@given(st.lists(st.floats(-0.5, 5.0), min_size=1, max_size=9))
def test_a_measured_curve_never_falls_and_is_never_free(raw_ms: list[float]) -> None:
    widths = list(range(3, 3 + len(raw_ms)))
    if max(raw_ms) <= 0:
        with pytest.raises(ValueError, match="too busy"):
            Curve.measured(widths, raw_ms, raw_ms)
        return
    curve = Curve.measured(widths, raw_ms, [0.0] * len(raw_ms))
    values = [curve.at(width) for width in range(1, widths[-1] + 3)]
    assert values == sorted(values)
    assert values[0] > 0
    assert curve.at(0) == 0
    assert curve.raw_ms == tuple(raw_ms)
    assert all(curve.at(width) >= raw - 1e-12 for width, raw in zip(widths, raw_ms, strict=True))
    assert curve.at(widths[-1]) == pytest.approx(max(raw_ms))


def test_between_measured_widths_a_curve_is_straight() -> None:
    curve = Curve.measured([4, 8, 16], [1.0, 2.0, 3.0], [0.0] * 3)
    assert [curve.at(width) for width in (1, 4, 6, 12, 16, 20)] == [1.0, 1.0, 1.5, 2.5, 3.0, 3.0]


def test_a_model_costs_the_sum_of_its_living_blocks() -> None:
    profile = synthetic()
    at = {kind: curve.at for kind, curve in profile.curves.items()}
    layers = [(32, 192), (0, 384), (9, 0), (16, 100)]
    expected = at["attn"](32) + at["mlp"](192) + at["mlp"](384) + at["attn"](9)
    expected += at["attn_last"](16) + at["mlp_last"](100)
    assert profile.predict_ms(layers) == pytest.approx(profile.base_ms + expected)
    assert profile.dense_ms(4) == profile.predict_ms([(32, 384)] * 4)


def test_behind_the_last_living_attention_everything_is_cheap() -> None:
    profile = synthetic()
    at = {kind: curve.at for kind, curve in profile.curves.items()}
    layers = [(32, 384), (0, 384), (0, 384)]
    assert profile.predict_ms(layers) == pytest.approx(profile.base_ms + at["attn_last"](32) + 3 * at["mlp_last"](384))


def test_a_model_without_attention_has_no_latency() -> None:
    profile = synthetic()
    with pytest.raises(ValueError, match="without attention"):
        profile.predict_ms([(0, 384), (0, 9)])
    assert profile.least_ms() == min(profile.predict_ms([(width, 0)]) for width in range(1, 33))


def test_the_error_for_whole_models_is_told() -> None:
    profile = synthetic()
    layers = ((32, 384), (16, 0))
    ms = profile.predict_ms(layers)
    assert profile.off() == 0
    assert replace(profile, whole=(Whole(layers=layers, ms=ms), Whole(layers=layers, ms=ms / 1.2))).off() == (
        pytest.approx(0.2)
    )

"""Stage export: formats side by side, of each the dense model and the smallest candidate; nothing outlives a stop."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dap_models import tiny_vit

from pipeline import exporting
from targets.budget import Budget, FormatBudget

LIMITS = Budget(size_mb_max=1.0)
BUDGETS = {
    "tflite": FormatBudget(precisions=("int8-dynamic", "fp16", "fp32"), limits=LIMITS),
    "executorch": FormatBudget(precisions=("int8-dynamic", "fp32"), limits=LIMITS),
}


def maker(make: Callable[[str], Any]) -> Any:
    """A Maker whose artifacts are what `make` returns of their names: an error, or None."""
    said: list[str] = []
    asked: list[str] = []

    def made(name: str, entry: dict) -> dict:
        asked.append(name)
        error = make(name)
        return {**entry, "error": error, "unavailable": True} if error else {**entry, "sha256": "0" * 64}

    context = SimpleNamespace(say=said.append)
    return SimpleNamespace(
        budgets=BUDGETS, context=context, dense=tiny_vit(), make=made, described=lambda *_: None, said=said, asked=asked
    )


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with processors and memory for two converters."""
    monkeypatch.setattr(exporting, "available_memory_mb", lambda: 1e5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def test_of_each_format_the_dense_model_and_the_smallest_are_made_side_by_side(two: None) -> None:
    both = threading.Barrier(2, timeout=60)
    work = maker(lambda name: both.wait() and None)
    results = exporting._side_by_side(work, {}, True)
    names = ["dense-fp32.tflite", "pruned-int8-dynamic.tflite", "pruned-fp16.tflite", "pruned-fp32.tflite",
             "dense-fp32.pte", "pruned-int8-dynamic.pte", "pruned-fp32.pte"]  # fmt: skip
    assert list(results) == names, "format by format, whichever was first"
    assert sorted(work.asked) == sorted(names[:2] + names[4:6])
    assert {name for name, entry in results.items() if "sha256" in entry} == set(work.asked)
    assert work.said == ["  to export: 2 files of 2 formats, 2 at a time; less than a minute"]


def test_all_of_them_but_what_is_there_already_if_all_are_asked_for(two: None) -> None:
    work = maker(lambda name: None)
    there = SimpleNamespace(size_bytes=7, sha256="1" * 64)
    results = exporting._side_by_side(work, {"pruned-fp16.tflite": there}, False)
    assert all("sha256" in entry for entry in results.values())
    assert set(work.asked) == results.keys() - {"pruned-fp16.tflite"}
    assert results["pruned-fp16.tflite"] == {"role": "pruned", "format": "tflite", "precision": "fp16", "error": None,
                                             "size_bytes": 7, "sha256": "1" * 64}  # fmt: skip


def test_one_that_cannot_be_made_gives_way_to_the_next_and_is_named(two: None) -> None:
    work = maker(lambda name: "it is strange" if name.endswith("int8-dynamic.tflite") else None)
    results = exporting._side_by_side(work, {}, True)
    assert {name for name, entry in results.items() if "sha256" in entry} == {
        "dense-fp32.tflite", "pruned-fp16.tflite", "dense-fp32.pte", "pruned-int8-dynamic.pte"}  # fmt: skip
    assert results["pruned-int8-dynamic.tflite"]["error"] == "it is strange"
    assert "  pruned-int8-dynamic.tflite: it is strange" in work.said


def test_what_stops_one_format_stops_all(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or Ctrl-C: the converter that is still at work is ended, and nothing is begun any more."""
    begun, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(exporting, "end_converters", ended.set)

    def make(name: str) -> str | None:
        if name == "dense-fp32.pte":
            assert begun.wait(60)
            raise OSError(28, "No space left on device")
        begun.set()
        assert ended.wait(60)
        return "the converter was killed"

    work = maker(make)
    with pytest.raises(OSError, match="No space left"):
        exporting._side_by_side(work, {}, True)
    assert ended.is_set()
    assert sorted(work.asked) == ["dense-fp32.pte", "dense-fp32.tflite"]
    assert not [line for line in work.said if "killed" in line], "it is no failure of that format"


@pytest.mark.parametrize(
    ("free_mb", "threads", "at_once"), [(1e5, 2, 2), (1e5, 64, 2), (1e5, 1, 1), (2000, 2, 1), (100, 2, 1), (None, 2, 2)]
)
def test_a_small_machine_converts_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, free_mb: float | None, threads: int, at_once: int
) -> None:
    monkeypatch.setattr(exporting, "available_memory_mb", lambda: free_mb)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert exporting._at_once(tiny_vit()) == at_once
    work = maker(lambda name: None)
    exporting._side_by_side(work, {}, True)
    assert ("at a time" in work.said[0]) == (at_once > 1)


def test_nothing_made_says_why(two: None) -> None:
    def make(name: str) -> str:
        return "no converter: pip install it"

    results = exporting._side_by_side(maker(make), {}, True)
    assert len(results) == 7, "each has been tried"
    assert {entry["error"] for entry in results.values()} == {"no converter: pip install it"}
